//! Thermal zones and their trip points: `Documentation/driver-api/thermal/sysfs-api.rst` of the kernel.

use std::path::Path;

use super::{entries, number, text};

/// Beyond these no chip still answers; a sensor that says so lies.
const POSSIBLE_MILLI_CELSIUS: std::ops::RangeInclusive<i64> = -55_000..=150_000;
const TRIPS_MAX: usize = 16;

#[derive(Clone, Copy, Default)]
pub(super) struct Heat {
    pub(super) milli_celsius: Option<i64>,
    /// A zone is past a trip at which the kernel slows the processor down.
    pub(super) over_trip: Option<bool>,
}

/// Says 100 degrees on every Tegra, whatever it has.
const CONSTANT_ZONE: &str = "PMIC-Die";

/// The hottest of the zones of these types, or of all that measure anything where none is named.
pub(super) fn read(root: &Path, types: &[String]) -> Heat {
    let mut heat = Heat::default();
    for zone in entries(&root.join("sys/class/thermal"), "thermal_zone") {
        let Some(kind) = text(&zone.join("type")) else { continue };
        let counts = if types.is_empty() { kind != CONSTANT_ZONE } else { types.contains(&kind) };
        if !counts {
            continue;
        }
        let Some(found) = number::<i64>(&zone.join("temp")).filter(|at| POSSIBLE_MILLI_CELSIUS.contains(at))
        else {
            continue;
        };
        heat.milli_celsius = heat.milli_celsius.max(Some(found));
        if let Some(trip) = lowest_trip(&zone) {
            heat.over_trip = Some(heat.over_trip == Some(true) || found >= trip);
        }
    }
    heat
}

/// The lowest trip that means more than a faster fan.
fn lowest_trip(zone: &Path) -> Option<i64> {
    let trip = |index| {
        let kind = text(&zone.join(format!("trip_point_{index}_type")))?;
        let at: i64 = number(&zone.join(format!("trip_point_{index}_temp")))?;
        // A trip that is switched off says 0 or less.
        (matches!(kind.as_str(), "passive" | "hot" | "critical") && at > 0).then_some(at)
    };
    (0..TRIPS_MAX).filter_map(trip).min()
}
