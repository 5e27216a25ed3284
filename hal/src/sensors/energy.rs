//! Energy and power: RAPL counters of x86 processors, INA3221 monitors of Jetsons.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use super::{entries, hwmon, number, text};

/// More than any processor takes; a counter that ran faster was set back, or lies.
const POWER_W_MAX: u128 = 2_000;
const CHANNELS: std::ops::RangeInclusive<usize> = 1..=3;

/// The sum of the package counters, which each start anywhere and wrap.
#[derive(Debug, Default)]
pub(super) struct Counter {
    last: BTreeMap<String, u64>,
    sum_uj: u64,
}

impl Counter {
    /// Energy of all packages since the first call: `Documentation/power/powercap/powercap.rst`.
    pub(super) fn read(&mut self, root: &Path, since_last: Duration) -> Option<u64> {
        let mut now = BTreeMap::new();
        for zone in entries(&root.join("sys/class/powercap"), "intel-rapl:") {
            let package = text(&zone.join("name")).filter(|name| name.starts_with("package"));
            let energy_uj: Option<u64> = number(&zone.join("energy_uj"));
            let (Some(package), Some(energy_uj)) = (package, energy_uj) else { continue };
            if let Some(&last) = self.last.get(&package) {
                let range: Option<u64> = number(&zone.join("max_energy_range_uj"));
                self.sum_uj += plausible(step(last, energy_uj, range), since_last);
            }
            now.insert(package, energy_uj);
        }
        self.last = now;
        (!self.last.is_empty()).then_some(self.sum_uj)
    }
}

fn step(last: u64, now: u64, range: Option<u64>) -> u64 {
    match (now.checked_sub(last), range) {
        (Some(step), _) => step,
        (None, Some(range)) => range.saturating_sub(last).saturating_add(now),
        (None, None) => 0,
    }
}

fn plausible(step_uj: u64, since_last: Duration) -> u64 {
    // a watt for a microsecond is a microjoule; a second more, for readings that come close together
    let most = (since_last.as_micros() + 1_000_000) * POWER_W_MAX;
    if u128::from(step_uj) <= most { step_uj } else { 0 }
}

/// Power over the channels with these labels, by the driver of mainline and JetPack 5 (hwmon, volt times
/// ampere) or of JetPack 4 (iio, ready made).
pub(super) fn rails_uw(root: &Path, labels: &[String]) -> Option<u64> {
    let is_meant = |label: Option<String>| label.is_some_and(|label| labels.contains(&label));
    let mut sum = None;
    let mut add = |power_uw: Option<u64>| {
        if let Some(power_uw) = power_uw {
            sum = Some(sum.unwrap_or(0) + power_uw);
        }
    };
    for device in hwmon(root, "ina3221") {
        for channel in CHANNELS.filter(|n| is_meant(text(&device.join(format!("in{n}_label"))))) {
            let millivolts: Option<u64> = number(&device.join(format!("in{channel}_input")));
            let milliamperes: Option<u64> = number(&device.join(format!("curr{channel}_input")));
            add(millivolts.zip(milliamperes).and_then(|(mv, ma)| mv.checked_mul(ma)));
        }
    }
    for chip in entries(&root.join("sys/bus/i2c/drivers/ina3221x"), "") {
        for device in entries(&chip, "iio:device") {
            for channel in (0..3).filter(|n| is_meant(text(&device.join(format!("rail_name_{n}"))))) {
                let milliwatts: Option<u64> = number(&device.join(format!("in_power{channel}_input")));
                add(milliwatts.and_then(|mw| mw.checked_mul(1_000)));
            }
        }
    }
    sum
}
