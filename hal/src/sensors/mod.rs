//! What the machine's sensors say: heat, voltage, battery, energy, wear of the flash.
//!
//! Duty: read them from sysfs under a root that tests replace by a recorded tree. A sensor is found by
//! its label at every reading, never by a number (`hwmon3`) that another kernel or another order of
//! loading gives to something else. Refuses: values no such sensor can have. Bound: 256 entries of any
//! directory, 64 KiB of any file. Failure: what is absent, vanished or impossible is `None`, never zero.

mod battery;
mod energy;
mod flash;
mod mailbox;
mod pmic;
mod thermal;
mod voltage;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use energy::Counter;

const ENTRIES_MAX: usize = 256;

/// Which sensors of a board are meant, by their labels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels {
    /// Types of the thermal zones of the processor; every zone where none is named.
    pub thermal_zones: Vec<String>,
    /// Labels of the INA3221 channels that together are the machine's supply.
    pub power_rails: Vec<String>,
    /// The firmware's mailbox is asked for what sysfs lacks: the Raspberry Pi 5's PMIC, and its throttling.
    pub pmic: bool,
}

/// What the sensors said; absent where there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readings {
    /// The hottest of the processor's thermal zones, in thousandths of a degree Celsius.
    pub heat_milli_celsius: Option<i64>,
    /// Kernel or firmware hold the processor back for its heat.
    pub throttled: Option<bool>,
    /// The supply's voltage is too low now.
    pub under_voltage: Option<bool>,
    /// Power comes from outside: mains, USB, solar.
    pub external_power: Option<bool>,
    /// Charge of the battery.
    pub battery_percent: Option<u8>,
    /// Power the machine takes now.
    pub power_uw: Option<u64>,
    /// Energy the processor has taken since the first reading.
    pub energy_uj: Option<u64>,
    /// How much of the life of the flash under the store is used up.
    pub flash_used_percent: Option<u8>,
}

/// The sensors of a machine.
#[derive(Debug)]
pub struct Sensors {
    root: PathBuf,
    labels: Labels,
    /// Major and minor number of the block device the store is on.
    store_device: Option<(u32, u32)>,
    /// Asks the firmware's mailbox; a recorded tree has none that would answer.
    mailbox: fn(&Path, &str) -> Option<String>,
    counter: Counter,
}

impl Sensors {
    /// The sensors under `root`: `/` in production, a recorded tree in tests.
    #[must_use]
    pub fn new(root: &Path, labels: Labels, store_device: Option<(u32, u32)>) -> Self {
        Self {
            root: root.to_owned(),
            labels,
            store_device,
            mailbox: mailbox::ask,
            counter: Counter::default(),
        }
    }

    /// Reads every sensor there is. `since_last` is the time since the last call; it tells a counter that
    /// wrapped from one that lies.
    pub fn read(&mut self, since_last: Duration) -> Readings {
        let (root, labels) = (self.root.as_path(), &self.labels);
        let heat = thermal::read(root, &labels.thermal_zones);
        let ask = |command| labels.pmic.then(|| (self.mailbox)(root, command)).flatten();
        let firmware = voltage::firmware(root).or_else(|| voltage::answered(&ask(voltage::COMMAND)?));
        let battery = battery::read(root);
        Readings {
            heat_milli_celsius: heat.milli_celsius,
            throttled: either(heat.over_trip, firmware.map(voltage::Firmware::is_held_back)),
            under_voltage: either(voltage::alarm(root), firmware.map(voltage::Firmware::is_under_voltage)),
            external_power: battery.external_power,
            battery_percent: battery.percent,
            power_uw: energy::rails_uw(root, &labels.power_rails)
                .or_else(|| pmic::power_uw(&ask(pmic::COMMAND)?))
                .or(battery.power_uw),
            energy_uj: self.counter.read(root, since_last),
            flash_used_percent: self.store_device.and_then(|device| flash::used_percent(root, device)),
        }
    }
}

/// Whether one of two sensors says so; absent only where both are.
fn either(one: Option<bool>, other: Option<bool>) -> Option<bool> {
    match (one, other) {
        (None, None) => None,
        (one, other) => Some(one == Some(true) || other == Some(true)),
    }
}

/// The entries of a directory of sysfs whose name starts with `prefix`, in the order of their names.
fn entries(directory: &Path, prefix: &str) -> Vec<PathBuf> {
    let Ok(listing) = fs::read_dir(directory) else { return Vec::new() };
    let named = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with(prefix);
    let mut found: Vec<PathBuf> =
        listing.flatten().filter(named).map(|entry| entry.path()).take(ENTRIES_MAX).collect();
    found.sort();
    found
}

/// The hwmon devices with this name.
fn hwmon(root: &Path, name: &str) -> Vec<PathBuf> {
    let mut found = entries(&root.join("sys/class/hwmon"), "hwmon");
    found.retain(|device| text(&device.join("name")).as_deref() == Some(name));
    found
}

fn text(path: &Path) -> Option<String> {
    crate::read_text(path).map(|text| text.trim().to_owned())
}

fn number<T: std::str::FromStr>(path: &Path) -> Option<T> {
    text(path)?.parse().ok()
}

fn flag(path: &Path) -> Option<bool> {
    number::<u32>(path).map(|value| value != 0)
}

#[cfg(test)]
mod tests;
