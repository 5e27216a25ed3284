//! The Power actor: decides when the loop's one timer fires, and counts what waking costs.
//!
//! Every deadline has a window. The timer fires at the first tick inside the earliest window, so that
//! deadlines of one tick share a wake-up; where no tick falls inside it, at the window's end: nothing is
//! ever later than its deadline allows.

use crate::request::{PowerNumbers, WakeReason};
use crate::settings::Settings;
use crate::time::Deadline;

/// A turn of the loop longer than this is a stall.
pub const STALL_MS: u64 = 20;

/// The actor.
pub struct Power {
    tick_ms: u64,
    numbers: PowerNumbers,
}

impl Power {
    /// The actor of a node that has just started.
    pub fn new(settings: &Settings) -> Self {
        Power { tick_ms: settings.tick_ms.max(1), numbers: PowerNumbers::default() }
    }

    /// Takes over new settings.
    pub fn reload(&mut self, settings: &Settings) {
        self.tick_ms = settings.tick_ms.max(1);
    }

    /// The moment at which all of these are served that can be served together, and the reason that
    /// allows no later one.
    pub fn alarm(&self, deadlines: impl Iterator<Item = Deadline>) -> Option<(u64, &'static str)> {
        deadlines.map(|deadline| (self.aligned(deadline), deadline.why)).min()
    }

    fn aligned(&self, deadline: Deadline) -> u64 {
        let tick = deadline.at_ms.div_ceil(self.tick_ms).saturating_mul(self.tick_ms);
        tick.min(deadline.latest_ms())
    }

    /// The timer has woken the loop.
    pub fn woken(&mut self, why: &'static str) {
        match self.numbers.timer_wakes.iter_mut().find(|reason| reason.why == why) {
            Some(reason) => reason.count += 1,
            None => self.numbers.timer_wakes.push(WakeReason { why: why.to_owned(), count: 1 }),
        }
    }

    /// The loop has gone round once and took so long.
    pub fn turned(&mut self, took_ms: u64) {
        self.numbers.turns += 1;
        self.numbers.longest_turn_ms = self.numbers.longest_turn_ms.max(took_ms);
        self.numbers.stalls += u64::from(took_ms > STALL_MS);
    }

    /// Counters for `status`.
    pub fn numbers(&self) -> &PowerNumbers {
        &self.numbers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn power(tick_ms: u64) -> Power {
        Power { tick_ms, numbers: PowerNumbers::default() }
    }

    #[test]
    fn deadlines_of_one_tick_share_a_wake_up_and_none_is_late() {
        let power = power(1_000);
        let soon = Deadline { at_ms: 1_200, slack_ms: 2_000, why: "soon" };
        let later = Deadline { at_ms: 1_900, slack_ms: 500, why: "later" };
        assert_eq!(power.alarm([soon, later].into_iter()), Some((2_000, "later")));
        let tight = Deadline { at_ms: 1_200, slack_ms: 100, why: "tight" };
        assert_eq!(power.alarm([soon, tight].into_iter()), Some((1_300, "tight")));
        assert_eq!(power.alarm(std::iter::empty()), None);
    }

    #[test]
    fn an_alarm_is_never_outside_its_window() {
        for tick_ms in [1, 7, 10, 1_000, 5_000] {
            for at_ms in (0..20_000).step_by(37) {
                for slack_ms in [0, 1, 9, 999, 10_000] {
                    let deadline = Deadline { at_ms, slack_ms, why: "" };
                    let (alarm, _) = power(tick_ms).alarm([deadline].into_iter()).unwrap();
                    assert!((at_ms..=at_ms + slack_ms).contains(&alarm));
                }
            }
        }
    }
}
