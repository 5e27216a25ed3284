//! Holds work until it is worth waking flash or radio for it.
//!
//! Writes, and the news that the radio is woken for, go through a [`LowPowerBatcher`]. A batch is due when enough
//! bytes or items wait, when the oldest has waited long enough, when an item can not wait, or when the device is awake
//! anyway. It keeps the order and loses nothing. Its bounds are [`Limits::bytes_held_max`] and
//! [`Limits::count_held_max`]: past them an item goes back to the caller, who waits or refuses in turn; one
//! item longer than the bound on bytes is taken when nothing else is held, or it could never go.

use std::collections::VecDeque;

use crate::time::{Deadline, Time};

/// When a batch is due, and how much may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes at which a batch is due, and the most in one of several items.
    pub bytes: usize,
    /// Items at which a batch is due, and the most in one; 0 counts as 1.
    pub count: usize,
    /// The longest a patient item waits. The last quarter of it is the window of the wake-up.
    pub age_ms: u64,
    /// Bytes past which items are refused.
    pub bytes_held_max: usize,
    /// Items past which items are refused.
    pub count_held_max: usize,
}

/// The longest a part of something larger waits where the profile's own age is shorter.
pub const BULK_AGE_MS: u64 = 250;

/// Whether an item may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// It is part of something larger whose end will come by itself: it waits for company, at most
    /// [`BULK_AGE_MS`] or [`Limits::age_ms`], whichever is longer.
    Bulk,
    /// It waits for company, at most [`Limits::age_ms`].
    Patient,
    /// It makes the batch due at once.
    Now,
}

/// Why a batch is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// An item can not wait.
    Asked,
    /// Enough bytes wait.
    Bytes,
    /// Enough items wait.
    Count,
    /// The oldest item has waited long enough.
    Age,
    /// The device is awake anyway.
    Awake,
}

/// What has gone out since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Batches taken; the sum of those by reason.
    pub batches: u64,
    /// Items in them.
    pub items: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Items refused because too much was held.
    pub refused: u64,
    /// Batches taken for [`Reason::Asked`].
    pub asked: u64,
    /// Batches taken for [`Reason::Bytes`].
    pub by_bytes: u64,
    /// Batches taken for [`Reason::Count`].
    pub by_count: u64,
    /// Batches taken for [`Reason::Age`].
    pub by_age: u64,
    /// Batches taken for [`Reason::Awake`].
    pub by_awake: u64,
}

/// Items that wait for their batch.
#[derive(Debug)]
pub struct LowPowerBatcher<T> {
    limits: Limits,
    held: VecDeque<Held<T>>,
    bytes: usize,
    asked: usize,
    counters: Counters,
}

#[derive(Debug)]
struct Held<T> {
    item: T,
    bytes: usize,
    since_ms: u64,
    urgency: Urgency,
}

impl<T> LowPowerBatcher<T> {
    /// A batcher that holds nothing.
    #[must_use]
    pub fn new(limits: Limits) -> LowPowerBatcher<T> {
        LowPowerBatcher { limits, held: VecDeque::new(), bytes: 0, asked: 0, counters: Counters::default() }
    }

    /// Takes an item of `bytes` in.
    ///
    /// # Errors
    /// Gives the item back when too much is held.
    pub fn push(&mut self, now: Time, item: T, bytes: usize, urgency: Urgency) -> Result<(), T> {
        let fits = self.bytes.checked_add(bytes).is_some_and(|sum| sum <= self.limits.bytes_held_max);
        if !self.held.is_empty() && (self.held.len() >= self.limits.count_held_max || !fits) {
            self.counters.refused += 1;
            return Err(item);
        }
        self.bytes += bytes;
        self.asked += usize::from(urgency == Urgency::Now);
        self.held.push_back(Held { item, bytes, since_ms: now.mono_ms, urgency });
        Ok(())
    }

    /// Why a batch is due now, if it is; `awake` says that the device is in use anyway.
    #[must_use]
    pub fn due(&self, now: Time, awake: bool) -> Option<Reason> {
        if self.held.is_empty() {
            return None;
        }
        if let Some(reason) = self.due_at_once() {
            return Some(reason);
        }
        if self.window().is_some_and(|(start_ms, _)| now.mono_ms >= start_ms) {
            return Some(Reason::Age);
        }
        awake.then_some(Reason::Awake)
    }

    /// Takes the next batch, in the order of the pushes; counted under the reason that [`Self::due`] gave.
    /// What goes beyond one batch stays, and is due again if it was.
    pub fn take(&mut self, reason: Reason) -> Vec<T> {
        let mut bytes: usize = 0;
        let fitting =
            self.held.iter().take(self.limits.count.max(1)).enumerate().take_while(|(index, held)| {
                bytes = bytes.saturating_add(held.bytes);
                *index == 0 || bytes <= self.limits.bytes
            });
        let count = fitting.count();
        let batch: Vec<Held<T>> = self.held.drain(..count).collect();
        let bytes: usize = batch.iter().map(|held| held.bytes).sum();
        self.bytes -= bytes;
        self.asked -= batch.iter().filter(|held| held.urgency == Urgency::Now).count();
        if !batch.is_empty() {
            self.count(reason, batch.len(), bytes);
        }
        batch.into_iter().map(|held| held.item).collect()
    }

    /// When [`Self::due`] has to be asked next if nothing else happens.
    #[must_use]
    pub fn deadline(&self) -> Option<Deadline> {
        let oldest = self.held.front()?;
        Some(match self.due_at_once() {
            Some(_) => Deadline { at_ms: oldest.since_ms, slack_ms: 0, why: "batch" },
            None => {
                let (at_ms, slack_ms) = self.window()?;
                Deadline { at_ms, slack_ms, why: "batch age" }
            }
        })
    }

    /// Puts other limits in force, as a profile changes; what is held already stays.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Items held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether nothing is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Bytes held.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What has gone out since the start.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Whether waiting longer brings the next batch no more company.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.bytes >= self.limits.bytes || self.held.len() >= self.limits.count.max(1)
    }

    fn due_at_once(&self) -> Option<Reason> {
        if self.asked > 0 {
            Some(Reason::Asked)
        } else if self.bytes >= self.limits.bytes {
            Some(Reason::Bytes)
        } else if self.held.len() >= self.limits.count {
            Some(Reason::Count)
        } else {
            None
        }
    }

    /// When a batch has to go for its age, and how much later is still in time. Items of one urgency are held
    /// in the order of their ages, so the first of each decides.
    fn window(&self) -> Option<(u64, u64)> {
        let oldest = |is_bulk: bool, age_ms: u64| {
            let held = self.held.iter().find(|held| (held.urgency == Urgency::Bulk) == is_bulk)?;
            let latest_ms = held.since_ms.saturating_add(age_ms);
            Some((latest_ms - age_ms / 4, latest_ms))
        };
        let ages = [oldest(true, self.limits.age_ms.max(BULK_AGE_MS)), oldest(false, self.limits.age_ms)];
        let start_ms = ages.iter().flatten().map(|(start_ms, _)| *start_ms).min()?;
        let latest_ms = ages.iter().flatten().map(|(_, latest_ms)| *latest_ms).min()?;
        Some((start_ms, latest_ms - start_ms))
    }

    fn count(&mut self, reason: Reason, items: usize, bytes: usize) {
        self.counters.batches += 1;
        self.counters.items += items as u64;
        self.counters.bytes += bytes as u64;
        *match reason {
            Reason::Asked => &mut self.counters.asked,
            Reason::Bytes => &mut self.counters.by_bytes,
            Reason::Count => &mut self.counters.by_count,
            Reason::Age => &mut self.counters.by_age,
            Reason::Awake => &mut self.counters.by_awake,
        } += 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits =
        Limits { bytes: 100, count: 4, age_ms: 40, bytes_held_max: 300, count_held_max: 10 };

    fn at(mono_ms: u64) -> Time {
        Time { mono_ms, wall_ms: 0 }
    }

    #[test]
    fn each_reason_makes_a_batch_due_and_is_counted() {
        let mut batcher = LowPowerBatcher::new(LIMITS);
        assert_eq!((batcher.due(at(999), true), batcher.deadline()), (None, None));
        batcher.push(at(0), 'a', 10, Urgency::Patient).unwrap();
        assert_eq!(batcher.deadline(), Some(Deadline { at_ms: 30, slack_ms: 10, why: "batch age" }));
        assert_eq!((batcher.due(at(29), false), batcher.due(at(29), true)), (None, Some(Reason::Awake)));
        assert_eq!(batcher.due(at(30), true), Some(Reason::Age));
        batcher.push(at(1), 'b', 90, Urgency::Patient).unwrap();
        assert_eq!(batcher.due(at(1), false), Some(Reason::Bytes));
        assert_eq!(batcher.deadline().map(Deadline::latest_ms), Some(0));
        assert_eq!(batcher.take(Reason::Bytes), ['a', 'b']);
        for item in "cdef".chars() {
            batcher.push(at(2), item, 0, Urgency::Patient).unwrap();
        }
        assert_eq!(batcher.due(at(2), false), Some(Reason::Count));
        assert_eq!(batcher.take(Reason::Count).len(), 4);
        batcher.push(at(3), 'g', 1, Urgency::Now).unwrap();
        assert_eq!(batcher.due(at(3), false), Some(Reason::Asked));
        assert_eq!(batcher.take(Reason::Asked), ['g']);
        assert!(batcher.take(Reason::Asked).is_empty(), "an empty batch is not counted");
        let expected = Counters {
            batches: 3,
            items: 7,
            bytes: 101,
            asked: 1,
            by_bytes: 1,
            by_count: 1,
            ..Counters::default()
        };
        assert_eq!(batcher.counters(), expected);
    }

    #[test]
    fn what_is_too_much_goes_back_and_a_giant_goes_alone() {
        let mut batcher = LowPowerBatcher::new(LIMITS);
        batcher.push(at(0), 0, 1000, Urgency::Patient).unwrap();
        assert_eq!(batcher.push(at(0), 1, 1, Urgency::Now), Err(1));
        assert_eq!(batcher.take(Reason::Bytes), [0]);
        for item in 0..10 {
            batcher.push(at(0), item, 0, Urgency::Patient).unwrap();
        }
        assert_eq!(batcher.push(at(0), 10, 0, Urgency::Patient), Err(10));
        assert_eq!((batcher.counters().refused, batcher.len()), (2, 10));
    }

    #[derive(Clone, Debug)]
    enum Act {
        Push { bytes: usize, urgency: Urgency },
        Pass { ms: u64, awake: bool },
    }

    fn act() -> impl Strategy<Value = Act> {
        let urgency =
            prop_oneof![6 => Just(Urgency::Patient), 3 => Just(Urgency::Bulk), 1 => Just(Urgency::Now)];
        prop_oneof![
            (0usize..130, urgency).prop_map(|(bytes, urgency)| Act::Push { bytes, urgency }),
            (0u64..30, prop::bool::weighted(0.1)).prop_map(|(ms, awake)| Act::Pass { ms, awake }),
        ]
    }

    proptest! {
        /// A caller that comes by its deadlines, at the last moment of their windows.
        #[test]
        fn nothing_is_late_lost_or_out_of_order_and_the_bounds_hold(acts in prop::collection::vec(act(), 0..200)) {
            let mut batcher = LowPowerBatcher::new(LIMITS);
            let (mut now, mut pushed, mut taken) = (0, Vec::new(), Vec::new());
            let mut drain = |batcher: &mut LowPowerBatcher<usize>, pushed: &[(u64, usize, Urgency)], now, awake| {
                while let Some(reason) = batcher.due(at(now), awake) {
                    let batch = batcher.take(reason);
                    let bytes: usize = batch.iter().map(|item| pushed[*item].1).sum();
                    assert!(batch.len() <= 4 && (bytes <= 100 || batch.len() == 1), "{batch:?} of {bytes}");
                    let in_time = |item: &usize| {
                        let (since, _, urgency) = pushed[*item];
                        now - since <= if urgency == Urgency::Bulk { BULK_AGE_MS } else { 40 }
                    };
                    assert!(batch.iter().all(in_time), "late at {now}: {batch:?}");
                    taken.extend(batch);
                }
            };
            for act in acts {
                match act {
                    Act::Push { bytes, urgency } => {
                        if batcher.push(at(now), pushed.len(), bytes, urgency).is_ok() {
                            pushed.push((now, bytes, urgency));
                        }
                        if urgency == Urgency::Now {
                            drain(&mut batcher, &pushed, now, false);
                        }
                    }
                    Act::Pass { ms, awake } => {
                        let end = now + ms;
                        while let Some(deadline) = batcher.deadline().filter(|deadline| deadline.latest_ms() <= end) {
                            now = now.max(deadline.latest_ms());
                            prop_assert!(batcher.due(at(now), false).is_some(), "a deadline finds work");
                            drain(&mut batcher, &pushed, now, false);
                        }
                        now = end;
                        drain(&mut batcher, &pushed, now, awake);
                    }
                }
                prop_assert!(batcher.len() <= 10 && batcher.bytes() <= 300);
            }
            drain(&mut batcher, &pushed, now, true);
            prop_assert!(batcher.is_empty() && batcher.bytes() == 0 && batcher.deadline().is_none());
            prop_assert_eq!(batcher.counters().items, taken.len() as u64);
            prop_assert_eq!(taken, (0..pushed.len()).collect::<Vec<_>>());
        }
    }
}
