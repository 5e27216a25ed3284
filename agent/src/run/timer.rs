//! The loop's one timer, by the kernel's own.
//!
//! Tokio keeps timers in a wheel and wakes for each of its levels on the way to a far deadline: three times
//! for one two minutes ahead. Far ones are therefore a timerfd's, which wakes once; near ones, which come
//! thick and fast, stay with tokio and cost no system call.

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};
use tokio::io::unix::AsyncFd;

/// Up to here tokio's wheel has one level.
const NEAR: Duration = Duration::from_millis(64);

/// Wakes once at a moment.
pub(super) struct Timer {
    kernel: AsyncFd<OwnedFd>,
    /// What the kernel's timer is set to.
    armed: Option<Instant>,
}

impl Timer {
    #[expect(
        deprecated,
        reason = "its successor is unsafe, for types whose descriptor may change; an OwnedFd's never does"
    )]
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let kernel = AsyncFd::new(timerfd_create(TimerfdClockId::Monotonic, flags)?)?;
        Ok(Timer { kernel, armed: None })
    }

    /// Returns at that moment; never without one. Cancel safe.
    pub(super) async fn until(&mut self, at: Option<Instant>) {
        let Some(at) = at else { return self.disarm_and_wait().await };
        let left = at.saturating_duration_since(Instant::now());
        if left <= NEAR {
            return tokio::time::sleep_until(at.into()).await;
        }
        if self.armed != Some(at) {
            self.set(left);
            self.armed = Some(at);
        }
        self.expired().await;
    }

    async fn disarm_and_wait(&mut self) {
        if self.armed.take().is_some() {
            self.set(Duration::ZERO);
        }
        std::future::pending().await
    }

    /// Zero ends it.
    fn set(&self, left: Duration) {
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let value = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            // below a thousand million, so it fits the kernel's word on 32 bits too
            tv_nsec: left.subsec_nanos() as _,
        };
        let value = Itimerspec { it_interval: zero, it_value: value };
        let set = timerfd_settime(self.kernel.get_ref(), TimerfdTimerFlags::empty(), &value);
        debug_assert!(set.is_ok(), "a timer of our own takes any time");
    }

    async fn expired(&mut self) {
        loop {
            let Ok(mut ready) = self.kernel.readable().await else { return };
            let mut count = [0; 8];
            let read = ready.try_io(|kernel| rustix::io::read(kernel, &mut count).map_err(io::Error::from));
            // Would block: it was set anew since it was ready.
            if read.is_ok() {
                self.armed = None;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_deadline_near_or_far_is_waited_for_and_never_cut_short() {
        let mut timer = Timer::new().unwrap();
        for ms in [0, 1, 80, 30, 90] {
            let at = Instant::now() + Duration::from_millis(ms);
            timer.until(Some(at)).await;
            assert!(Instant::now() >= at, "{ms} ms");
        }
    }

    #[tokio::test]
    async fn a_wait_that_is_given_up_leaves_nothing_behind() {
        let mut timer = Timer::new().unwrap();
        let far = Instant::now() + Duration::from_millis(70);
        tokio::select! {
            biased;
            () = timer.until(Some(far)) => panic!("too early"),
            () = tokio::task::yield_now() => {}
        }
        let farther = far + Duration::from_millis(60);
        timer.until(Some(farther)).await;
        assert!(Instant::now() >= farther, "the earlier deadline does not end the later one");
        tokio::select! {
            () = timer.until(None) => panic!("without a deadline it never ends"),
            () = tokio::time::sleep(Duration::from_millis(80)) => {}
        }
    }
}
