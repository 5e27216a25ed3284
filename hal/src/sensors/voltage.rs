//! The supply's voltage, as a Raspberry Pi's firmware judges it.
//!
//! Two ways lead to it: the hwmon driver `rpi_volt`, which mainline kernels have, and the firmware's throttling word,
//! which Raspberry Pi's own kernels have in `get_throttled`, and on a Pi 5 some only in the firmware's mailbox.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::{entries, flag, hwmon, text};

/// Asks the firmware's mailbox for the word.
pub(super) const COMMAND: &str = "get_throttled";

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

/// The word from sysfs, where the firmware's device is: below `soc`, whose name it begins with on a Raspberry Pi 5, or
/// beside it on the first kernels of that.
pub(super) fn firmware(root: &Path) -> Option<Firmware> {
    let platform = root.join("sys/devices/platform");
    let is_firmware = |place: &PathBuf| place.as_os_str().as_bytes().ends_with(b":firmware");
    let below = entries(&platform, "soc").into_iter().flat_map(|soc| entries(&soc, "soc"));
    let mut places = below.chain(entries(&platform, "soc")).filter(is_firmware);
    word(&places.find_map(|place| text(&place.join("get_throttled")))?)
}

/// The word as the firmware's mailbox answers [`COMMAND`]: `throttled=0x50005`.
pub(super) fn answered(text: &str) -> Option<Firmware> {
    word(text.trim().strip_prefix("throttled=")?)
}

fn word(text: &str) -> Option<Firmware> {
    u32::from_str_radix(text.trim_start_matches("0x"), 16).ok().map(Firmware)
}

/// The alarm of low voltage.
pub(super) fn alarm(root: &Path) -> Option<bool> {
    hwmon(root, "rpi_volt").iter().find_map(|device| flag(&device.join("in0_lcrit_alarm")))
}
