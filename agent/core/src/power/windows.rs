//! When the radio may be used.
//!
//! A profile names hours of the day, a rhythm, or both: inside its hours the link comes up every `every_ms`
//! and goes again when nothing is under way. Without a rhythm it stays up for the hours; without hours they
//! are the whole day; with neither the link is always up. Hours are UTC. With a clock that was never set
//! nobody knows the hour: then every hour is inside, lest a node that can not be told the time never speaks.

use crate::time::Time;

const DAY_MS: i64 = 24 * 3_600_000;

/// Part of a day, in milliseconds since midnight UTC; one that ends before it begins goes over midnight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hours {
    /// First moment inside.
    pub from_ms: i64,
    /// First moment outside.
    pub until_ms: i64,
}

impl Hours {
    /// Reads `22:00-06:30`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Hours> {
        let (from, until) = text.split_once('-')?;
        let hours = Hours { from_ms: time_of_day(from)?, until_ms: time_of_day(until)? };
        (hours.from_ms != hours.until_ms).then_some(hours)
    }

    /// Milliseconds until these hours begin; 0 inside them.
    fn begin_in_ms(self, day_ms: i64) -> i64 {
        let length = (self.until_ms - self.from_ms).rem_euclid(DAY_MS);
        let since = (day_ms - self.from_ms).rem_euclid(DAY_MS);
        if since < length { 0 } else { DAY_MS - since }
    }
}

fn time_of_day(text: &str) -> Option<i64> {
    let (hours, minutes) = text.trim().split_once(':')?;
    let part = |text: &str, below: i64| text.parse().ok().filter(|value| (0..below).contains(value));
    Some((part(hours, 24)? * 60 + part(minutes, 60)?) * 60_000)
}

/// The windows of a profile.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Windows {
    /// Inside these; the whole day if there are none.
    pub hours: Vec<Hours>,
    /// So often; 0: always.
    pub every_ms: u64,
}

impl Windows {
    /// Whether the link comes and goes at all.
    pub(super) fn are_set(&self) -> bool {
        !self.hours.is_empty() || self.every_ms > 0
    }

    /// Milliseconds until the hours that allow the radio now are over; an hour while nobody knows.
    pub(super) fn closed_in_ms(&self, now: Time) -> u64 {
        const HOUR_MS: u64 = 3_600_000;
        if !now.clock_is_set() {
            return HOUR_MS;
        }
        let day_ms = now.wall_ms.rem_euclid(DAY_MS);
        let inside = self.hours.iter().filter(|hours| hours.begin_in_ms(day_ms) == 0);
        let left = inside.map(|hours| (hours.until_ms - day_ms).rem_euclid(DAY_MS)).max();
        left.and_then(|left| u64::try_from(left).ok()).unwrap_or(HOUR_MS)
    }

    /// Milliseconds until the radio may come up again, if it goes now.
    pub(super) fn next_in_ms(&self, now: Time) -> u64 {
        self.every_ms.max(self.allowed_in_ms(now))
    }

    /// Milliseconds until the hours allow the radio; 0: they do.
    pub(super) fn allowed_in_ms(&self, now: Time) -> u64 {
        if self.hours.is_empty() || !now.clock_is_set() {
            return 0;
        }
        let day_ms = now.wall_ms.rem_euclid(DAY_MS);
        let soonest = self.hours.iter().map(|hours| hours.begin_in_ms(day_ms)).min().unwrap_or(0);
        u64::try_from(soonest).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: i64 = 3_600_000;
    /// Midnight UTC.
    const MIDNIGHT_MS: i64 = 20_000 * DAY_MS;

    fn at(hour: i64) -> Time {
        Time { mono_ms: 0, wall_ms: MIDNIGHT_MS + hour * HOUR_MS }
    }

    #[test]
    fn hours_read_as_they_are_written_and_nonsense_does_not() {
        let hours = Hours::parse("22:00-06:30").unwrap();
        assert_eq!((hours.from_ms, hours.until_ms), (22 * HOUR_MS, 6 * HOUR_MS + HOUR_MS / 2));
        for nonsense in ["", "22:00", "24:00-01:00", "10:60-11:00", "10:00-10:00", "-1:00-02:00", "a-b"] {
            assert_eq!(Hours::parse(nonsense), None, "{nonsense}");
        }
    }

    #[test]
    fn hours_over_midnight_are_inside_on_both_sides() {
        let windows = Windows { hours: vec![Hours::parse("22:00-06:00").unwrap()], every_ms: 0 };
        let waits = |hour| windows.allowed_in_ms(at(hour)) / HOUR_MS as u64;
        assert_eq!((waits(22), waits(23), waits(0), waits(5)), (0, 0, 0, 0));
        assert_eq!((waits(6), waits(21)), (16, 1));
        let left = |hour| windows.closed_in_ms(at(hour)) / HOUR_MS as u64;
        assert_eq!((left(22), left(0), left(5)), (8, 6, 1));
    }

    #[test]
    fn a_clock_in_1970_shuts_nobody_up() {
        let windows = Windows { hours: vec![Hours::parse("10:00-11:00").unwrap()], every_ms: 0 };
        assert_eq!(windows.allowed_in_ms(Time { mono_ms: 5, wall_ms: 0 }), 0);
        assert!(windows.allowed_in_ms(at(0)) > 0);
    }
}
