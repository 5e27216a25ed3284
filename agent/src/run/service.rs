//! systemd and signals: readiness, the watchdog, stop and reload.
//!
//! The watchdog is fed by the loop's own turns: this only says when it is time. Outside systemd every
//! message is dropped, as the protocol wants it.

use sd_notify::NotifyState;
use std::future::Future;
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// What happened.
pub(super) enum Event {
    /// SIGTERM or SIGINT.
    Stop,
    /// The watchdog was fed.
    Fed,
}

/// The service manager's and the kernel's wishes.
pub(super) struct Service {
    signals: Option<[Signal; 2]>,
    watchdog: Option<Watchdog>,
}

/// systemd's watchdog. It is fed by turns of the loop that happen anyway; a wake-up of its own comes only
/// when there were none for two thirds of the time.
struct Watchdog {
    /// As the unit says.
    unit: Duration,
    period: Duration,
    fed: Instant,
}

impl Watchdog {
    fn feed(&mut self) {
        self.fed = Instant::now();
        say(&[NotifyState::Watchdog]);
    }
}

impl Service {
    /// For a process that is the agent; a guest in another process hears no signals.
    pub(super) fn new(is_service: bool) -> Self {
        if !is_service {
            return Service { signals: None, watchdog: None };
        }
        let watchdog = sd_notify::watchdog_enabled();
        let watchdog = watchdog.map(|unit| Watchdog { unit, period: unit, fed: Instant::now() });
        let kinds = [SignalKind::terminate(), SignalKind::interrupt()];
        let signals = kinds.map(|kind| signal(kind).expect("these signals can be listened to"));
        Service { signals: Some(signals), watchdog }
    }

    /// Waits for a start that may take longer than systemd would wait by itself.
    pub(super) async fn while_starting<T>(&mut self, starting: impl Future<Output = T>) -> T {
        const EXTENSION: Duration = Duration::from_secs(30);
        let mut starting = std::pin::pin!(starting);
        loop {
            tokio::select! {
                started = &mut starting => return started,
                () = tokio::time::sleep(EXTENSION / 2), if self.signals.is_some() => {
                    say(&[NotifyState::ExtendTimeoutUsec(EXTENSION.as_micros().try_into().unwrap_or(u32::MAX))]);
                }
            }
        }
    }

    /// Everything is open.
    pub(super) fn ready(&self) {
        if self.signals.is_some() {
            say(&[NotifyState::Ready]);
        }
    }

    pub(super) fn stopping(&self) {
        say(&[NotifyState::Stopping]);
    }

    /// The configuration is being put in force; `ready` follows.
    pub(super) fn reloading(&self) {
        if self.signals.is_some() {
            match NotifyState::monotonic_usec_now() {
                Ok(now) => say(&[NotifyState::Reloading, now]),
                Err(error) => tracing::debug!("the clock can not be read: {error}"),
            }
        }
    }

    /// The loop wakes at least so often by itself: where that is seldom, systemd is asked for patience.
    pub(super) fn wakes_every(&mut self, wakes: Duration) {
        let Some(watchdog) = &mut self.watchdog else { return };
        let period = patience(watchdog.unit, wakes);
        if period != watchdog.period {
            watchdog.period = period;
            say(&[NotifyState::WatchdogUsec(period.as_micros().try_into().unwrap_or(u32::MAX))]);
        }
        watchdog.feed();
    }

    /// The loop has made a turn.
    pub(super) fn turned(&mut self) {
        if let Some(watchdog) = &mut self.watchdog
            && watchdog.fed.elapsed() >= watchdog.period / 4
        {
            watchdog.feed();
        }
    }

    /// The next event. Cancel safe.
    pub(super) async fn next(&mut self) -> Event {
        let Service { signals, watchdog } = self;
        let Some([terminate, interrupt]) = signals else { return std::future::pending().await };
        tokio::select! {
            _ = terminate.recv() => Event::Stop,
            _ = interrupt.recv() => Event::Stop,
            () = hungry(watchdog.as_ref()) => {
                if let Some(watchdog) = watchdog {
                    watchdog.feed();
                }
                Event::Fed
            }
        }
    }
}

/// How long systemd shall wait; its message has room for 71 minutes, and what is not in it is not granted.
fn patience(unit: Duration, wakes: Duration) -> Duration {
    let longest = Duration::from_micros(u32::MAX.into());
    if wakes > unit { (wakes * 2).min(longest) } else { unit }
}

async fn hungry(watchdog: Option<&Watchdog>) {
    match watchdog {
        Some(watchdog) => tokio::time::sleep_until((watchdog.fed + watchdog.period * 2 / 3).into()).await,
        None => std::future::pending().await,
    }
}

/// SIGHUPs, for whoever reads the configuration again.
pub(super) fn hangups() -> Signal {
    signal(SignalKind::hangup()).expect("this signal can be listened to")
}

fn say(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!("systemd was not told: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemd_is_asked_for_patience_and_never_for_more_than_it_can_be_told() {
        let seconds = |unit, wakes| patience(Duration::from_secs(unit), Duration::from_secs(wakes)).as_secs();
        assert_eq!((seconds(30, 10), seconds(30, 30), seconds(30, 240)), (30, 30, 480));
        assert_eq!(seconds(30, 3_600), 4_294, "fed by itself after two thirds of what systemd waits");
    }
}
