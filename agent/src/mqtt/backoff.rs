//! When to try again: a pure state machine over what became of the last connection.
//!
//! Duty: waits that grow from `min` to `max` while the broker cannot be reached, are short for a
//! link that works but breaks, and long for one that another agent keeps taking away.
//! Bound: every wait lies between half of `min` and `max`.
//! The rule for a link that came up: when it lived longer than the wait before it, it was worth
//! the wait and the next one is short again; otherwise the wait doubles.

use std::time::Duration;

/// Bounds of the waits, and the seed of their jitter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackoffOptions {
    /// The first wait, at least 1 ms.
    pub min: Duration,
    /// The longest wait.
    pub max: Duration,
    /// Seeds the jitter, so that a fleet does not knock in step; take it from the node's key.
    pub seed: u64,
}

impl Default for BackoffOptions {
    fn default() -> Self {
        Self { min: Duration::from_secs(1), max: Duration::from_secs(300), seed: 0 }
    }
}

/// What became of a connection, as far as the next wait depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// Never up, or up and then broken.
    Broken {
        /// How long the link was up; zero if it never was.
        up_for: Duration,
    },
    /// Closed again and again soon after it came up, without a reason.
    Kicked {
        /// Whether anything was acknowledged or received meanwhile.
        progress: bool,
    },
    /// The broker says that another client took the session.
    TakenOver,
    /// The broker will not have this node until a person changes something.
    Refused,
}

/// The wait before the first try of a hopeless case, in units of `min`.
const LONG: u32 = 30;
const KICKED_MAX: u32 = 16;
const KICKED_WITH_PROGRESS_MAX: u32 = 4;

#[derive(Debug)]
pub(super) struct Backoff {
    options: BackoffOptions,
    state: u64,
    step: Duration,
}

impl Backoff {
    pub(super) fn new(options: BackoffOptions) -> Self {
        Self { options, state: options.seed, step: Duration::ZERO }
    }

    /// The wait before the next connection.
    pub(super) fn after(&mut self, ended: Ended) -> Duration {
        let BackoffOptions { min, max, .. } = self.options;
        let doubled = self.step.saturating_mul(2);
        self.step = match ended {
            Ended::Broken { up_for } if up_for > self.step => min,
            Ended::Broken { .. } => doubled,
            Ended::Kicked { progress: true } => doubled.min(min * KICKED_WITH_PROGRESS_MAX),
            Ended::Kicked { progress: false } => doubled.min(min * KICKED_MAX),
            Ended::TakenOver => doubled.max(min * LONG),
            Ended::Refused => doubled.max(min * 8),
        }
        .clamp(min, max);
        self.jittered().min(max)
    }

    /// Between a half and one and a half of the step.
    fn jittered(&mut self) -> Duration {
        // splitmix64 (Steele, Lea, Flood 2014)
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        let fraction = (mixed >> 11) as f64 / (1u64 << 53) as f64;
        self.step.mul_f64(0.5 + fraction)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEVER_UP: Ended = Ended::Broken { up_for: Duration::ZERO };

    fn backoff(seed: u64) -> Backoff {
        Backoff::new(BackoffOptions { seed, ..BackoffOptions::default() })
    }

    #[test]
    fn waits_grow_to_the_maximum_and_stay_there() {
        let mut backoff = backoff(7);
        let waits: Vec<Duration> = (0..14).map(|_| backoff.after(NEVER_UP)).collect();
        assert!(waits[0] >= Duration::from_millis(500) && waits[0] <= Duration::from_millis(1500));
        assert!(waits.iter().all(|wait| *wait <= Duration::from_secs(300)));
        assert!(waits[10..].iter().all(|wait| *wait >= Duration::from_secs(150)), "{waits:?}");
    }

    #[test]
    fn a_link_that_was_worth_the_wait_is_tried_again_soon() {
        let mut backoff = backoff(1);
        for _ in 0..6 {
            backoff.after(NEVER_UP);
        }
        let wait = backoff.after(Ended::Broken { up_for: Duration::from_secs(600) });
        assert!(wait <= Duration::from_millis(1500), "{wait:?}");
    }

    #[test]
    fn a_stolen_session_is_not_fought_for() {
        let mut backoff = backoff(2);
        assert!(backoff.after(Ended::TakenOver) >= Duration::from_secs(15));
        assert!(backoff.after(Ended::TakenOver) >= Duration::from_secs(30));
    }

    #[test]
    fn two_seeds_do_not_knock_in_step() {
        assert_ne!(backoff(1).after(NEVER_UP), backoff(2).after(NEVER_UP));
        assert_eq!(backoff(3).after(NEVER_UP), backoff(3).after(NEVER_UP));
    }
}
