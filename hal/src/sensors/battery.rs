//! Batteries and what feeds them: `Documentation/ABI/testing/sysfs-class-power` of the kernel.

use std::path::Path;

use super::{entries, flag, number, text};

/// No battery of a machine this program runs on gives more; a gauge that says so lies.
const POWER_UW_MAX: u64 = 1_000_000_000;

#[derive(Clone, Copy, Default)]
pub(super) struct Battery {
    pub(super) percent: Option<u8>,
    pub(super) external_power: Option<bool>,
    /// What is drawn from it; absent while it is charged.
    pub(super) power_uw: Option<u64>,
}

/// All batteries together; those of mice and headsets aside.
pub(super) fn read(root: &Path) -> Battery {
    let (mut charges, mut batteries) = (Vec::new(), 0);
    let (mut discharging, mut fed, mut power_uw) = (None, None, None);
    for supply in entries(&root.join("sys/class/power_supply"), "") {
        let kind = text(&supply.join("type")).unwrap_or_default();
        if text(&supply.join("scope")).as_deref() == Some("Device") {
            continue;
        }
        if kind != "Battery" {
            if let Some(online) = flag(&supply.join("online")) {
                fed = Some(fed == Some(true) || online);
            }
            continue;
        }
        if flag(&supply.join("present")) == Some(false) {
            continue;
        }
        batteries += 1;
        charges.extend(number::<u8>(&supply.join("capacity")).filter(|&percent| percent <= 100));
        match text(&supply.join("status")).as_deref() {
            Some("Discharging") => {
                discharging = Some(true);
                power_uw = power_uw.or_else(|| power_of(&supply));
            }
            Some("Charging" | "Full" | "Not charging") => discharging = discharging.or(Some(false)),
            Some(_) | None => {}
        }
    }
    let sum: usize = charges.iter().map(|&percent| usize::from(percent)).sum();
    let percent = sum.checked_div(charges.len()).and_then(|mean| u8::try_from(mean).ok());
    // Many chargers have no driver of their own, and an idle USB port has one: where nothing is online the battery's
    // status says whether it is fed, as systemd takes it. Without a battery something feeds the machine.
    let by_battery = discharging.map_or(fed, |discharging| Some(!discharging)).filter(|_| batteries > 0);
    let external_power = if fed == Some(true) { fed } else { by_battery };
    Battery { percent, external_power, power_uw }
}

/// Gauges give power, or current (with either sign) and voltage.
fn power_of(battery: &Path) -> Option<u64> {
    let value = |name: &str| number::<i64>(&battery.join(name)).map(i64::unsigned_abs);
    let product = || {
        let product = u128::from(value("current_now")?) * u128::from(value("voltage_now")?) / 1_000_000;
        u64::try_from(product).ok()
    };
    value("power_now").or_else(product).filter(|&power_uw| power_uw > 0 && power_uw <= POWER_UW_MAX)
}
