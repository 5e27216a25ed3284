//! Time as the core knows it: a value that is passed in, and the windows in which it wants to be called.
//!
//! Decisions use [`Time::mono_ms`] alone. The wall clock may say 1970 or step by years, so it is only ever
//! shown or stored. Sums saturate: 2^64 ms are 584 million years.

/// A moment, by both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time {
    /// Milliseconds since the agent started; never goes back.
    pub mono_ms: u64,
    /// Milliseconds since 1970 by the machine's clock; may be wrong.
    pub wall_ms: i64,
}

/// A clock before 2020 was never set.
pub(crate) const CLOCK_UNSET_MS: i64 = 1_577_836_800_000;

impl Time {
    /// Whether the machine's clock can be taken for one that was set.
    #[must_use]
    pub fn clock_is_set(self) -> bool {
        self.wall_ms >= CLOCK_UNSET_MS
    }

    /// The moment `ms` later on both clocks.
    #[must_use]
    pub fn plus_ms(self, ms: u64) -> Time {
        Time {
            mono_ms: self.mono_ms.saturating_add(ms),
            wall_ms: self.wall_ms.saturating_add(i64::try_from(ms).unwrap_or(i64::MAX)),
        }
    }

    /// Milliseconds from `earlier` to this moment by the monotonic clock, 0 if it is not earlier.
    #[must_use]
    pub fn since_ms(self, earlier: Time) -> u64 {
        self.mono_ms.saturating_sub(earlier.mono_ms)
    }
}

/// A wish to be called: at any moment from `at_ms` to `at_ms + slack_ms`, so that one wake-up serves many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    /// First moment at which the call finds work to do, in [`Time::mono_ms`].
    pub at_ms: u64,
    /// How much later the call may come without breaking a promise.
    pub slack_ms: u64,
    /// What the wake-up is counted under.
    pub why: &'static str,
}

impl Deadline {
    /// The last moment that keeps the promise, in [`Time::mono_ms`].
    #[must_use]
    pub fn latest_ms(self) -> u64 {
        self.at_ms.saturating_add(self.slack_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_clocks_advance_together_and_never_wrap() {
        let start = Time { mono_ms: 5, wall_ms: -20 };
        assert_eq!(start.plus_ms(30), Time { mono_ms: 35, wall_ms: 10 });
        assert_eq!(start.plus_ms(30).since_ms(start), 30);
        assert_eq!(start.since_ms(start.plus_ms(30)), 0);
        assert_eq!(start.plus_ms(u64::MAX), Time { mono_ms: u64::MAX, wall_ms: i64::MAX - 20 });
    }
}
