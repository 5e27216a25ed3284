//! What the node costs: counted since its start and by the hour.
//!
//! Bound: [`HOURS_MAX`] hours; reasons for waking are words of the program, so there is a fixed number.
//! What the kernel does not tell, and joules without a sensor, are absent.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::conditions::Readings;
use crate::request::{AirNumbers, ProcessNumbers};

/// Hours that are remembered.
pub const HOURS_MAX: usize = 24;
const HOUR_MS: u64 = 3_600_000;

/// Costs of a stretch of time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Costs {
    /// How long it was.
    pub ms: u64,
    /// Times the loop was woken, by what for.
    pub wakes: BTreeMap<String, u64>,
    /// Times any thread of the process slept and was woken, as the kernel counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wake_ups: Option<u64>,
    /// Syncs asked of the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub syncs: Option<u64>,
    /// Bytes written to the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flash_bytes: Option<u64>,
    /// What went over the air.
    #[serde(flatten)]
    pub air: AirNumbers,
    /// Milliseconds of CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_ms: Option<u64>,
    /// Energy of the whole machine, or of its processor, whichever has a sensor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub millijoules: Option<u64>,
}

impl Costs {
    /// Wakes of the loop for whatever reason.
    #[must_use]
    pub fn wakes_sum(&self) -> u64 {
        self.wakes.values().sum()
    }

    /// What came after `earlier`.
    fn since(&self, earlier: &Costs) -> Costs {
        let both = |now: Option<u64>, then: Option<u64>| Some(now?.saturating_sub(then.unwrap_or(0)));
        let wakes = self.wakes.iter().filter_map(|(why, count)| {
            let count = count - earlier.wakes.get(why).copied().unwrap_or(0);
            (count > 0).then(|| (why.clone(), count))
        });
        Costs {
            ms: self.ms - earlier.ms,
            wakes: wakes.collect(),
            wake_ups: both(self.wake_ups, earlier.wake_ups),
            syncs: both(self.syncs, earlier.syncs),
            flash_bytes: both(self.flash_bytes, earlier.flash_bytes),
            air: AirNumbers {
                messages_sent: self.air.messages_sent - earlier.air.messages_sent,
                bytes_sent: self.air.bytes_sent - earlier.air.bytes_sent,
                messages_received: self.air.messages_received - earlier.air.messages_received,
                bytes_received: self.air.bytes_received - earlier.air.bytes_received,
            },
            cpu_ms: both(self.cpu_ms, earlier.cpu_ms),
            millijoules: both(self.millijoules, earlier.millijoules),
        }
    }
}

/// Counts.
#[derive(Debug, Default)]
pub(super) struct Meter {
    started_ms: u64,
    total: Costs,
    /// The total when the present hour began.
    hour_began: Costs,
    /// Complete hours, the latest last.
    hours: VecDeque<Costs>,
    /// The kernel's counters as they were read last.
    counted: ProcessNumbers,
    energy_uj: Option<u64>,
    /// The energy counter as it was read last: it counts on while nobody reads it.
    counter_uj: Option<u64>,
    /// When the power was read last; none if the last readings did not have it.
    sampled_ms: Option<u64>,
}

impl Meter {
    pub(super) fn start(&mut self, now_ms: u64) {
        self.started_ms = now_ms;
    }

    pub(super) fn woken(&mut self, why: &str, times: u64) {
        match self.total.wakes.get_mut(why) {
            Some(count) => *count += times,
            None if times > 0 => {
                self.total.wakes.insert(why.to_owned(), times);
            }
            None => {}
        }
    }

    /// The counters of kernel, disk and link.
    pub(super) fn measured(&mut self, now_ms: u64, process: &ProcessNumbers) {
        self.total.ms = now_ms.saturating_sub(self.started_ms);
        self.total.air = process.air;
        for (total, last, now) in [
            (&mut self.total.wake_ups, &mut self.counted.wake_ups, process.wake_ups),
            (&mut self.total.cpu_ms, &mut self.counted.cpu_ms, process.cpu_ms),
            (&mut self.total.syncs, &mut self.counted.syncs, process.syncs),
            (&mut self.total.flash_bytes, &mut self.counted.flash_bytes, process.flash_bytes),
        ] {
            let Some(now) = now else { continue };
            // A thread that ends takes its part of a counter with it; costs do not shrink.
            let step = now.saturating_sub(last.replace(now).unwrap_or(0));
            *total = Some(total.unwrap_or(0) + step);
        }
        if self.total.ms - self.hour_began.ms >= HOUR_MS {
            if self.hours.len() == HOURS_MAX {
                self.hours.pop_front();
            }
            self.hours.push_back(self.total.since(&self.hour_began));
            self.hour_began = self.total.clone();
        }
    }

    /// A counter of energy, or else samples of the power: each stands for the time since the one before, so that a
    /// gap between them is not made up.
    pub(super) fn sensed(&mut self, now_ms: u64, readings: &Readings) {
        let since_ms = |at_ms: u64| now_ms.saturating_sub(at_ms);
        let step_uj = match (readings.energy_uj, readings.power_uw) {
            (Some(energy_uj), _) => self.counter_uj.map(|last| energy_uj.saturating_sub(last)),
            (None, Some(power_uw)) => {
                self.sampled_ms.map(|at_ms| (power_uw / 1_000).saturating_mul(since_ms(at_ms)))
            }
            (None, None) => None,
        };
        self.counter_uj = readings.energy_uj.or(self.counter_uj);
        self.sampled_ms = readings.power_uw.map(|_| now_ms);
        if let Some(step_uj) = step_uj {
            let sum = self.energy_uj.unwrap_or(0).saturating_add(step_uj);
            self.energy_uj = Some(sum);
            self.total.millijoules = Some(sum / 1_000);
        }
    }

    /// Since the start.
    pub(super) fn total(&self) -> &Costs {
        &self.total
    }

    /// Since the present hour began.
    pub(super) fn this_hour(&self) -> Costs {
        self.total.since(&self.hour_began)
    }

    /// Complete hours, the latest last.
    pub(super) fn hours(&self) -> impl Iterator<Item = &Costs> {
        self.hours.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(wake_ups: u64, syncs: u64) -> ProcessNumbers {
        let air = AirNumbers { messages_sent: 2 * syncs, bytes_sent: 100 * syncs, ..AirNumbers::default() };
        ProcessNumbers { wake_ups: Some(wake_ups), syncs: Some(syncs), air, ..ProcessNumbers::default() }
    }

    #[test]
    fn hours_add_up_to_the_whole_and_are_bounded() {
        let mut meter = Meter::default();
        meter.start(1_000);
        for hour in 1..=30 {
            meter.woken("timer", 1);
            meter.measured(1_000 + hour * HOUR_MS, &process(hour * 7, hour));
        }
        assert_eq!(meter.hours().count(), HOURS_MAX);
        for hour in meter.hours() {
            assert_eq!(
                (hour.ms, hour.wakes_sum(), hour.wake_ups, hour.syncs),
                (HOUR_MS, 1, Some(7), Some(1))
            );
            assert_eq!((hour.air.messages_sent, hour.air.bytes_sent), (2, 100));
            assert_eq!((hour.cpu_ms, hour.millijoules), (None, None), "absent, not zero");
        }
        meter.woken("link", 1);
        assert_eq!(meter.this_hour().wakes, BTreeMap::from([("link".to_owned(), 1)]));
        assert_eq!(meter.total().wakes_sum(), 31);
    }

    #[test]
    fn a_thread_that_ends_takes_no_costs_back_and_hides_no_new_ones() {
        let mut meter = Meter::default();
        for (wake_ups, total) in [(100, 100), (40, 100), (50, 110)] {
            meter.measured(10, &process(wake_ups, 1));
            assert_eq!((meter.total().wake_ups, meter.total().syncs), (Some(total), Some(1)));
        }
        meter.measured(20, &ProcessNumbers::default());
        meter.measured(30, &process(60, 1));
        assert_eq!(meter.total().wake_ups, Some(120), "what was not told for once is not told twice");
    }

    #[test]
    fn joules_are_counted_by_a_counter_or_by_samples_and_absent_without_either() {
        let reading = |power_uw, energy_uj| Readings { power_uw, energy_uj, ..Readings::default() };
        let mut meter = Meter::default();
        meter.sensed(0, &reading(None, None));
        meter.sensed(1_000, &reading(Some(4_000_000), None));
        assert_eq!(meter.total().millijoules, None, "one sample stands for no time");
        meter.sensed(3_000, &reading(Some(4_000_000), None));
        assert_eq!(meter.total().millijoules, Some(8_000), "4 W for 2 s");
        meter.sensed(3_603_000, &reading(Some(1_000_000), None));
        assert_eq!(meter.total().millijoules, Some(8_000 + 3_600_000), "1 W for an hour");
        meter.sensed(3_604_000, &reading(None, None));
        meter.sensed(3_605_000, &reading(Some(1_000_000), None));
        assert_eq!(meter.total().millijoules, Some(8_000 + 3_600_000), "a gap is not made up");
        let mut counted = Meter::default();
        counted.sensed(0, &reading(Some(9_000_000), Some(500)));
        counted.sensed(1_000, &reading(Some(9_000_000), Some(2_500_500)));
        assert_eq!(counted.total().millijoules, Some(2_500));
        counted.sensed(2_000, &reading(None, None));
        counted.sensed(3_000, &reading(None, Some(4_000_500)));
        assert_eq!(counted.total().millijoules, Some(4_000), "it counts on while nobody reads it");
    }
}
