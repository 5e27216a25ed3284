//! The supply's voltage, as a Raspberry Pi's firmware judges it.
//!
//! Two ways lead to it: the hwmon driver `rpi_volt`, which mainline kernels have, and the firmware's
//! throttling word in `get_throttled`, which Raspberry Pi's own kernels have.

use std::path::Path;

use super::{entries, flag, hwmon, text};

/// The firmware's throttling word. Bits 0 to 3 are of now, 16 to 19 of any time since the start.
#[derive(Clone, Copy)]
pub(super) struct Firmware(u32);

impl Firmware {
    pub(super) fn is_under_voltage(self) -> bool {
        self.0 & 1 != 0
    }

    /// Frequency capped, throttled, or past the soft limit of heat. A cap alone comes with low voltage too.
    pub(super) fn is_held_back(self) -> bool {
        self.0 & 0b1000 != 0 || self.0 & 0b0110 != 0 && !self.is_under_voltage()
    }
}

/// The word, where the firmware's device is: below `soc` on all boards so far, beside it on the first
/// kernels of the Raspberry Pi 5.
pub(super) fn firmware(root: &Path) -> Option<Firmware> {
    let platform = root.join("sys/devices/platform");
    let below = entries(&platform, "soc").into_iter().flat_map(|soc| entries(&soc, "soc:firmware"));
    let mut places = below.chain(entries(&platform, "soc")).map(|place| place.join("get_throttled"));
    let word = places.find_map(|place| text(&place))?;
    u32::from_str_radix(word.trim_start_matches("0x"), 16).ok().map(Firmware)
}

/// The alarm of low voltage.
pub(super) fn alarm(root: &Path) -> Option<bool> {
    hwmon(root, "rpi_volt").iter().find_map(|device| flag(&device.join("in0_lcrit_alarm")))
}
