//! When everything is verified though nobody has asked.
//!
//! A profile says how long after the last verification the next one begins, and how long it rests between two
//! steps. Between them it is set aside, so that cleaning and whoever asks for a verification never wait for
//! more than a step. The end is remembered over restarts, by the wall clock; where that was never set, a
//! period counts from the start.

use super::verify::Verifying;
use crate::limits::SCRUB_NAMES_SHOWN;
use crate::message::Answer;
use crate::request::ScrubNumbers;
use crate::settings::Settings;
use crate::time::{Deadline, Time};
use bytes::Bytes;

/// Where the end of the last verification is remembered.
pub(super) const SETTING: &str = "keeper/verified";
/// A store nobody has verified is, so long after the start, if its period is no shorter.
const FIRST_MS: u64 = 3_600_000;
/// A scrub that failed begins again after this.
const FAILED_MS: u64 = 3_600_000;
/// Questions about names between two rests.
const NAMES_STEP: u32 = 1_024;

/// The schedule, and the scrub that is set aside.
#[derive(Default)]
pub(super) struct Scrub {
    period_ms: u64,
    rest_ms: u64,
    /// When everything was verified last, in [`Time::mono_ms`]; before the start it is below zero.
    last_ms: i64,
    /// The next one does not begin earlier.
    not_before_ms: u64,
    aside: Option<(u64, Verifying)>,
    asked: u32,
    numbers: ScrubNumbers,
}

impl Scrub {
    /// Takes over new settings.
    pub(super) fn reload(&mut self, settings: &Settings) {
        (self.period_ms, self.rest_ms) = (settings.scrub_period_ms, settings.scrub_rest_ms);
        if !self.is_wanted() {
            self.aside = None;
        }
    }

    pub(super) fn is_wanted(&self) -> bool {
        self.period_ms > 0
    }

    /// When the next one begins.
    fn at_ms(&self) -> Option<u64> {
        let at_ms = u64::try_from(self.last_ms.saturating_add_unsigned(self.period_ms)).unwrap_or(0);
        self.is_wanted().then_some(at_ms.max(self.not_before_ms))
    }

    /// The store says when everything was verified last.
    pub(super) fn recall(&mut self, now: Time, answer: Answer) {
        let Answer::Settings(found) = answer else { return };
        let value = found.into_iter().find_map(|(key, value)| (key == SETTING).then_some(value));
        let last_ms = value.and_then(|value| std::str::from_utf8(&value).ok()?.parse::<i64>().ok());
        self.numbers.last_ms = last_ms;
        let since_ms = match last_ms {
            None => self.period_ms.saturating_sub(FIRST_MS),
            Some(last_ms) if now.clock_is_set() => u64::try_from(now.wall_ms - last_ms).unwrap_or(0),
            Some(_) => 0,
        };
        self.last_ms = mono(now).saturating_sub_unsigned(since_ms);
    }

    /// The verification that has its turn now, and whether it begins.
    pub(super) fn turn(&mut self, now: Time) -> Option<(Verifying, bool)> {
        if let Some((_, verifying)) = self.aside.take_if(|(at_ms, _)| *at_ms <= now.mono_ms) {
            return Some((verifying, false));
        }
        let is_due = self.aside.is_none() && self.at_ms().is_some_and(|at_ms| at_ms <= now.mono_ms);
        is_due.then(|| (Verifying::new(None), true))
    }

    /// Whether the step that was just made is to be followed by a rest.
    pub(super) fn is_tired(&mut self, verifying: &Verifying) -> bool {
        self.asked = if verifying.is_at_names() { self.asked + 1 } else { NAMES_STEP };
        let is_tired = self.asked >= NAMES_STEP;
        if is_tired {
            self.asked = 0;
        }
        is_tired
    }

    /// Sets a scrub aside for its rest.
    pub(super) fn set_aside(&mut self, now: Time, verifying: Verifying) {
        self.aside = Some((now.mono_ms + self.rest_ms, verifying));
    }

    /// Somebody verifies everything: the scrub is not needed any more.
    pub(super) fn drop_for_another(&mut self) {
        self.aside = None;
    }

    /// A cleaning or an eviction begins.
    pub(super) fn names_change(&mut self) {
        if let Some((_, verifying)) = &mut self.aside {
            verifying.ask_names_again();
        }
    }

    /// Everything was verified. Says what is to be remembered.
    pub(super) fn ended(&mut self, now: Time, verifying: &Verifying) -> Bytes {
        self.last_ms = mono(now);
        let shown = verifying.incomplete.iter().take(SCRUB_NAMES_SHOWN);
        self.numbers = ScrubNumbers {
            ended: self.numbers.ended + 1,
            last_ms: Some(now.wall_ms),
            blocks: verifying.blocks,
            bytes: verifying.bytes,
            damaged: verifying.damaged.len() as u64,
            incomplete: shown.cloned().collect(),
            ..ScrubNumbers::default()
        };
        Bytes::from(now.wall_ms.to_string())
    }

    pub(super) fn failed(&mut self, now: Time) {
        self.not_before_ms = now.mono_ms + self.period_ms.min(FAILED_MS);
    }

    pub(super) fn deadline(&self) -> Option<Deadline> {
        if let Some((at_ms, _)) = self.aside {
            return Some(Deadline { at_ms, slack_ms: self.rest_ms, why: "next step of a scrub" });
        }
        self.at_ms().map(|at_ms| Deadline { at_ms, slack_ms: self.period_ms / 10, why: "scrub" })
    }

    /// For `status`; `present` is the one that has its turn.
    pub(super) fn numbers(&self, now: Time, present: Option<&Verifying>) -> ScrubNumbers {
        let under_way = present.or(self.aside.as_ref().map(|(_, verifying)| verifying));
        let next_in_ms = self.at_ms().filter(|_| under_way.is_none());
        ScrubNumbers {
            under_way: under_way.map(|verifying| (verifying.blocks, verifying.total)),
            next_in_ms: next_in_ms.map(|at_ms| at_ms.saturating_sub(now.mono_ms)),
            ..self.numbers.clone()
        }
    }
}

fn mono(now: Time) -> i64 {
    i64::try_from(now.mono_ms).unwrap_or(i64::MAX)
}
