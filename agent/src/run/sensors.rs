//! The sensors, read beside the loop.
//!
//! A driver may take its time or never answer, so a thread of its own reads: what hangs is this thread and
//! neither the loop nor the disk's. The core asks again only after an answer. Bound: one reading under way.

use crate::config::Config;
use larder_core::board::Board;
use larder_core::message::Input;
use larder_core::power::conditions::Readings;
use larder_hal::sensors::{Labels, Sensors};
use std::sync::mpsc as blocking;
use std::time::Instant;
use tokio::sync::mpsc;

const STACK_BYTES: usize = 256 << 10;

/// The loop's side of the thread.
pub(super) struct Reader {
    orders: blocking::SyncSender<()>,
    readings: mpsc::Receiver<Readings>,
}

impl Reader {
    /// Starts the thread. It ends with the reader, unless a sensor holds it: then with the process.
    pub(super) fn start(config: &Config) -> std::io::Result<Self> {
        let device = rustix::fs::stat(&config.store).ok().map(|stat| stat.st_dev);
        let device = device.map(|device| (rustix::fs::major(device), rustix::fs::minor(device)));
        let mut sensors = Sensors::new(&config.machine_root, labels(&config.board.value), device);
        let (orders, taken) = blocking::sync_channel(1);
        let (give, readings) = mpsc::channel(1);
        let body = move || {
            let mut last = Instant::now();
            while taken.recv().is_ok() {
                let now = Instant::now();
                let read = sensors.read(now - last);
                last = now;
                if give.blocking_send(core(read)).is_err() {
                    break;
                }
            }
        };
        std::thread::Builder::new().name("larder-sensors".into()).stack_size(STACK_BYTES).spawn(body)?;
        Ok(Reader { orders, readings })
    }

    /// Has the sensors read once.
    pub(super) fn read(&self) {
        // Full only while the last reading is under way, and the core does not ask then.
        let _ = self.orders.try_send(());
    }

    /// The next readings. Cancel safe.
    pub(super) async fn next(&mut self) -> Input {
        match self.readings.recv().await {
            Some(readings) => Input::Sensed(readings),
            None => std::future::pending().await,
        }
    }
}

fn labels(board: &Board) -> Labels {
    Labels {
        thermal_zones: board.thermal_zones.clone(),
        power_rails: board.power_rails.clone(),
        pmic: board.pmic,
    }
}

fn core(read: larder_hal::sensors::Readings) -> Readings {
    Readings {
        heat_milli_celsius: read.heat_milli_celsius,
        throttled: read.throttled,
        under_voltage: read.under_voltage,
        external_power: read.external_power,
        battery_percent: read.battery_percent,
        power_uw: read.power_uw,
        energy_uj: read.energy_uj,
        flash_used_percent: read.flash_used_percent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, Overrides};
    use larder_hal::board::{Machine, detect};
    use std::collections::BTreeSet;
    use std::path::Path;
    use std::time::Duration;

    /// What a machine says of itself: board, architecture, device tree; zones with degrees; the rest of sysfs; then
    /// the degrees and milliwatts that count.
    type Recorded = (
        &'static str,
        &'static str,
        &'static str,
        &'static [(&'static str, i64)],
        &'static [(&'static str, &'static str)],
        Option<i64>,
        Option<u64>,
    );

    #[rustfmt::skip]
    const MACHINES: [Recorded; 16] = [
        ("raspberry-pi-zero-2-w", "aarch64", "raspberrypi,model-zero-2-w\0brcm,bcm2837\0",
            &[("cpu-thermal", 44)], &[], Some(44), None),
        ("raspberry-pi-3b-plus", "aarch64", "raspberrypi,3-model-b-plus\0brcm,bcm2837\0",
            &[("cpu-thermal", 51)], &[], Some(51), None),
        ("raspberry-pi-3b-plus", "arm", "raspberrypi,3-model-b-plus\0brcm,bcm2837\0",
            &[("bcm2835_thermal", 52)], &[], Some(52), None),
        ("raspberry-pi-4", "aarch64", "raspberrypi,4-model-b\0brcm,bcm2711\0",
            &[("cpu-thermal", 48)], &[], Some(48), None),
        ("raspberry-pi-5", "aarch64", "raspberrypi,5-model-b\0brcm,bcm2712\0",
            &[("cpu-thermal", 55)], &[], Some(55), None),
        ("raspberry-pi-cm4", "aarch64", "raspberrypi,4-compute-module\0brcm,bcm2711\0",
            &[("cpu-thermal", 47)], &[], Some(47), None),
        // its PMIC always says 100 degrees
        ("jetson-nano", "aarch64", "nvidia,p3450-0000\0nvidia,jetson-nano\0nvidia,tegra210\0",
            &[("AO-therm", 41), ("CPU-therm", 38), ("GPU-therm", 37), ("PLL-therm", 36), ("PMIC-Die", 100)],
            &[("sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/rail_name_0", "POM_5V_IN"),
              ("sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/in_power0_input", "2100"),
              ("sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/rail_name_1", "POM_5V_GPU"),
              ("sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/in_power1_input", "40")],
            Some(38), Some(2_100)),
        ("jetson-xavier-nx", "aarch64",
            "nvidia,p3449-0000+p3668-0000\0nvidia,p3509-0000+p3668-0000\0nvidia,tegra194\0",
            &[("AO-therm", 45), ("AUX-therm", 43), ("CPU-therm", 42), ("GPU-therm", 41), ("PMIC-Die", 100)],
            &[("sys/class/hwmon/hwmon4/name", "ina3221"), ("sys/class/hwmon/hwmon4/in1_label", "VDD_IN"),
              ("sys/class/hwmon/hwmon4/in1_input", "5000"), ("sys/class/hwmon/hwmon4/curr1_input", "900"),
              ("sys/class/hwmon/hwmon4/in2_label", "VDD_CPU_GPU_CV"),
              ("sys/class/hwmon/hwmon4/in2_input", "5000"), ("sys/class/hwmon/hwmon4/curr2_input", "200")],
            Some(43), Some(4_500)),
        ("jetson-orin-nano", "aarch64",
            "nvidia,p3768-0000+p3767-0005\0nvidia,p3767-0005\0nvidia,tegra234\0",
            &[("cpu-thermal", 46), ("gpu-thermal", 44), ("soc0-thermal", 90), ("tj-thermal", 47)],
            &[("sys/class/hwmon/hwmon1/name", "ina3221"), ("sys/class/hwmon/hwmon1/in1_label", "VDD_IN"),
              ("sys/class/hwmon/hwmon1/in1_input", "4800"), ("sys/class/hwmon/hwmon1/curr1_input", "1000")],
            Some(47), Some(4_800)),
        ("jetson-orin-nano", "aarch64",
            "nvidia,p3768-0000+p3767-0003\0nvidia,p3767-0003\0nvidia,tegra234\0",
            &[("CPU-therm", 46), ("GPU-therm", 44), ("tj-therm", 48)], &[], Some(48), None),
        ("jetson-orin-nano", "aarch64",
            "nvidia,p3768-0000+p3767-0003-super\0nvidia,p3767-0003\0nvidia,tegra234\0",
            &[("cpu-thermal", 46), ("tj-thermal", 48)], &[], Some(48), None),
        ("beaglebone-black", "arm", "ti,am335x-bone-black\0ti,am335x-bone\0ti,am33xx\0", &[], &[], None, None),
        ("generic-arm64", "aarch64", "friendlyarm,nanopi-r4s\0rockchip,rk3399\0",
            &[("cpu-thermal", 50), ("gpu-thermal", 53)], &[], Some(53), None),
        // a Jetson that no file knows, whose PMIC always says 100 degrees too
        ("generic-arm64", "aarch64", "nvidia,p2771-0000\0nvidia,tegra186\0",
            &[("BCPU-therm", 39), ("GPU-therm", 37), ("PMIC-Die", 100)], &[], Some(39), None),
        ("generic-x86-64", "x86_64", "", &[("acpitz", 28), ("iwlwifi_1", 90), ("x86_pkg_temp", 57)], &[],
            Some(57), None),
        ("generic", "riscv64", "starfive,visionfive-2\0starfive,jh7110\0", &[("cpu-thermal", 40)], &[], Some(40), None),
    ];

    fn write(root: &Path, path: &str, content: &str) {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    #[test]
    fn every_machine_gets_its_board_and_by_its_labels_heat_and_power() {
        let mut seen = BTreeSet::new();
        for (name, arch, compatible, zones, files, degrees, milliwatts) in MACHINES {
            let tree = tempfile::tempdir().unwrap();
            let root = tree.path();
            write(root, "proc/device-tree/compatible", compatible);
            for (number, (kind, degrees)) in zones.iter().enumerate() {
                let zone = format!("sys/class/thermal/thermal_zone{number}");
                write(root, &format!("{zone}/type"), kind);
                write(root, &format!("{zone}/temp"), &format!("{degrees}000\n"));
            }
            files.iter().for_each(|(path, content)| write(root, path, content));
            let environment = Environment::isolated([("LARDER_MACHINE", root.to_str().unwrap())]);
            let overrides = Overrides { store: Some(root.join("store")), ..Overrides::default() };
            let machine = Machine { arch, ..detect(root) };
            let config = Config::load(&overrides, &environment, &machine).unwrap();
            let board = &config.board.value;
            assert_eq!(board.name, name);
            let read = Sensors::new(&config.machine_root, labels(board), None).read(Duration::ZERO);
            assert_eq!(read.heat_milli_celsius, degrees.map(|degrees| degrees * 1_000), "{compatible:?}");
            assert_eq!(read.power_uw, milliwatts.map(|milliwatts| milliwatts * 1_000), "{compatible:?}");
            assert_eq!(board.pmic, compatible.contains("bcm2712"), "the Pi 5's supply is its PMIC's to tell");
            seen.insert(name.to_owned());
        }
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../boards");
        let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
        let files = files.filter(|path| path.extension().is_some_and(|extension| extension == "toml"));
        let files: BTreeSet<_> =
            files.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect();
        assert_eq!(seen, files);
    }
}
