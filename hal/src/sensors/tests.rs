//! Recorded trees: what each kind of machine has in sysfs, as text, made in a temporary folder.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// A machine of paths and contents, one a line: `path = content`, `path -> target` for a link.
struct Recorded(tempfile::TempDir);

impl Recorded {
    fn new(tree: &str) -> Self {
        let recorded = Recorded(tempfile::tempdir().unwrap());
        for line in tree.lines().map(str::trim).filter(|line| !line.is_empty()) {
            if let Some((path, content)) = line.split_once(" = ") {
                recorded.write(path, content);
            } else {
                let (path, target) = line.split_once(" -> ").unwrap();
                let path = recorded.0.path().join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::os::unix::fs::symlink(target, path).unwrap();
            }
        }
        recorded
    }

    fn write(&self, path: &str, content: &str) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{content}\n")).unwrap();
    }

    fn remove(&self, path: &str) {
        let path = self.0.path().join(path);
        fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path)).unwrap();
    }

    fn sensors(&self, zones: &[&str], rails: &[&str]) -> Sensors {
        let texts = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect();
        let labels = Labels { thermal_zones: texts(zones), power_rails: texts(rails), pmic: false };
        Sensors::new(self.0.path(), labels, Some((179, 2)))
    }

    fn read(&self, zones: &[&str], rails: &[&str]) -> Readings {
        self.sensors(zones, rails).read(SECOND)
    }
}

const RASPBERRY_PI_4: &str = "
    sys/class/thermal/thermal_zone0/type = cpu-thermal
    sys/class/thermal/thermal_zone0/temp = 48686
    sys/class/thermal/thermal_zone0/trip_point_0_type = critical
    sys/class/thermal/thermal_zone0/trip_point_0_temp = 110000
    sys/class/hwmon/hwmon0/name = cpu_thermal
    sys/class/hwmon/hwmon1/name = rpi_volt
    sys/class/hwmon/hwmon1/in0_lcrit_alarm = 0
    sys/devices/platform/soc/soc:firmware/get_throttled = 0
    sys/devices/platform/soc/soc:firmware/other = 5
    sys/devices/platform/emmc2/mmc0/block/mmcblk0/size = 62333952
    sys/devices/platform/emmc2/mmc0/block/mmcblk0/mmcblk0p2/partition = 2
    sys/devices/platform/emmc2/mmc0/block/mmcblk0/device -> ../../card
    sys/devices/platform/emmc2/mmc0/card/type = SD
    sys/dev/block/179:2 -> ../../devices/platform/emmc2/mmc0/block/mmcblk0/mmcblk0p2";

#[test]
fn a_raspberry_pi_tells_heat_and_voltage_and_its_sd_card_nothing() {
    let pi = Recorded::new(RASPBERRY_PI_4);
    let well = Readings {
        heat_milli_celsius: Some(48_686),
        throttled: Some(false),
        under_voltage: Some(false),
        ..Readings::default()
    };
    assert_eq!(pi.read(&["cpu-thermal"], &[]), well);
    pi.write("sys/devices/platform/soc/soc:firmware/get_throttled", "50005");
    let low = pi.read(&["cpu-thermal"], &[]);
    assert_eq!((low.under_voltage, low.throttled), (Some(true), Some(false)), "throttled for its voltage");
    pi.write("sys/devices/platform/soc/soc:firmware/get_throttled", "80008");
    let hot = pi.read(&["cpu-thermal"], &[]);
    assert_eq!((hot.under_voltage, hot.throttled), (Some(false), Some(true)), "the soft limit of heat");
    pi.write("sys/devices/platform/soc/soc:firmware/get_throttled", "f0000");
    assert_eq!(pi.read(&["cpu-thermal"], &[]), well, "what was is not what is");
}

#[test]
fn the_firmware_of_a_raspberry_pi_5_is_found_under_its_name_beside_soc_or_by_its_mailbox() {
    let word = |pi: &Recorded| {
        let said = pi.read(&[], &[]);
        (said.under_voltage, said.throttled)
    };
    for place in ["soc@107c000000/soc@107c000000:firmware", "soc:firmware"] {
        let pi = Recorded::new(&format!(
            "sys/devices/platform/soc@107c000000/107d004000.spi/driver_override = (null)
             sys/devices/platform/{place}/get_throttled = 50005"
        ));
        assert_eq!(word(&pi), (Some(true), Some(false)), "{place}");
    }
    let pi = Recorded::new("sys/devices/platform/soc@107c000000/soc@107c000000:firmware/modalias = of:x");
    assert_eq!(word(&pi), (None, None));
    let mut sensors = pi.sensors(&[], &[]);
    sensors.labels.pmic = true;
    sensors.mailbox = |_, command| (command == "get_throttled").then(|| "throttled=0x80008\n".to_owned());
    assert_eq!(sensors.read(SECOND).throttled, Some(true));
    sensors.mailbox = |_, _| Some("error=1 error_msg=\"Command not registered\"".to_owned());
    assert_eq!(sensors.read(SECOND).throttled, None);
}

#[test]
fn low_voltage_is_known_by_hwmon_alone_too_under_any_number() {
    let pi = Recorded::new(
        "sys/class/hwmon/hwmon7/name = rpi_volt
         sys/class/hwmon/hwmon7/in0_lcrit_alarm = 1
         sys/class/hwmon/hwmon1/name = pwmfan
         sys/class/hwmon/hwmon1/in0_lcrit_alarm = 0",
    );
    assert_eq!(pi.read(&[], &[]), Readings { under_voltage: Some(true), ..Readings::default() });
}

#[test]
fn a_zone_is_found_by_its_type_whatever_its_number_and_the_hottest_counts() {
    let jetson = Recorded::new(
        "sys/class/thermal/thermal_zone0/type = AO-therm
         sys/class/thermal/thermal_zone0/temp = 99000
         sys/class/thermal/thermal_zone5/type = CPU-therm
         sys/class/thermal/thermal_zone5/temp = 61000
         sys/class/thermal/thermal_zone5/trip_point_0_type = active
         sys/class/thermal/thermal_zone5/trip_point_0_temp = 50000
         sys/class/thermal/thermal_zone5/trip_point_1_type = passive
         sys/class/thermal/thermal_zone5/trip_point_1_temp = 60000
         sys/class/thermal/thermal_zone6/type = GPU-therm
         sys/class/thermal/thermal_zone6/temp = 52000",
    );
    let both = jetson.read(&["CPU-therm", "GPU-therm"], &[]);
    assert_eq!((both.heat_milli_celsius, both.throttled), (Some(61_000), Some(true)));
    let gpu = jetson.read(&["GPU-therm"], &[]);
    assert_eq!((gpu.heat_milli_celsius, gpu.throttled), (Some(52_000), None));
    assert_eq!(jetson.read(&[], &[]).heat_milli_celsius, Some(99_000), "none named: all of them");
    assert_eq!(jetson.read(&["other"], &[]), Readings::default());
}

#[test]
fn an_ina3221_is_found_by_its_labels_in_both_drivers() {
    let orin = Recorded::new(
        "sys/class/hwmon/hwmon3/name = ina3221
         sys/class/hwmon/hwmon3/in1_label = VDD_IN
         sys/class/hwmon/hwmon3/in1_input = 5000
         sys/class/hwmon/hwmon3/curr1_input = 900
         sys/class/hwmon/hwmon3/in2_label = VDD_CPU_GPU_CV
         sys/class/hwmon/hwmon3/in2_input = 5000
         sys/class/hwmon/hwmon3/curr2_input = 200",
    );
    assert_eq!(orin.read(&[], &["VDD_IN"]).power_uw, Some(4_500_000));
    assert_eq!(orin.read(&[], &[]).power_uw, None, "no label is guessed");
    let nano = Recorded::new(
        "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/rail_name_0 = POM_5V_IN
         sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/in_power0_input = 2100
         sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/rail_name_1 = POM_5V_GPU
         sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/in_power1_input = 40",
    );
    assert_eq!(nano.read(&[], &["POM_5V_IN"]).power_uw, Some(2_100_000));
}

#[test]
fn a_pmic_is_asked_where_the_board_has_one_and_before_a_battery() {
    let ups = Recorded::new(
        "sys/class/power_supply/BAT0/type = Battery
         sys/class/power_supply/BAT0/status = Discharging
         sys/class/power_supply/BAT0/power_now = 3000000
         dev/vcio = no mailbox",
    );
    let mut sensors = ups.sensors(&[], &[]);
    sensors.mailbox =
        |_, command| (command == "pmic_read_adc").then(|| "X_A current(0)=2.5A\nX_V volt(1)=1.0V".to_owned());
    assert_eq!(sensors.read(SECOND).power_uw, Some(3_000_000));
    sensors.labels.pmic = true;
    assert_eq!(sensors.read(SECOND).power_uw, Some(2_500_000));
    sensors.mailbox = mailbox::ask;
    assert_eq!(sensors.read(SECOND).power_uw, Some(3_000_000), "no firmware answers");
}

#[test]
fn a_battery_tells_its_charge_and_whether_it_is_fed() {
    let solar = Recorded::new(
        "sys/class/power_supply/BAT0/type = Battery
         sys/class/power_supply/BAT0/status = Discharging
         sys/class/power_supply/BAT0/capacity = 81
         sys/class/power_supply/BAT0/current_now = -500000
         sys/class/power_supply/BAT0/voltage_now = 12000000
         sys/class/power_supply/hidpp_battery_0/type = Battery
         sys/class/power_supply/hidpp_battery_0/scope = Device
         sys/class/power_supply/hidpp_battery_0/capacity = 5",
    );
    let on_battery = solar.read(&[], &[]);
    assert_eq!((on_battery.battery_percent, on_battery.external_power), (Some(81), Some(false)));
    assert_eq!(on_battery.power_uw, Some(6_000_000));
    solar.write("sys/class/power_supply/BAT0/status", "Charging");
    let fed = solar.read(&[], &[]);
    assert_eq!((fed.external_power, fed.power_uw), (Some(true), None));
    solar.write("sys/class/power_supply/AC/type", "Mains");
    solar.write("sys/class/power_supply/AC/online", "0");
    assert_eq!(solar.read(&[], &[]).external_power, Some(true), "something without a driver charges it");
    solar.write("sys/class/power_supply/BAT0/status", "Unknown");
    assert_eq!(solar.read(&[], &[]).external_power, Some(false), "all that could feed it is idle");
    solar.write("sys/class/power_supply/BAT0/status", "Discharging");
    solar.write("sys/class/power_supply/AC/online", "1");
    assert_eq!(solar.read(&[], &[]).external_power, Some(true), "what feeds it says more than what it says");
}

#[test]
fn a_machine_without_a_battery_never_runs_on_one() {
    let jetson = Recorded::new(
        "sys/class/power_supply/ucsi-source-psy-2-0008/type = USB
         sys/class/power_supply/ucsi-source-psy-2-0008/online = 0
         sys/class/power_supply/hidpp_battery_0/type = Battery
         sys/class/power_supply/hidpp_battery_0/scope = Device
         sys/class/power_supply/hidpp_battery_0/status = Discharging",
    );
    assert_eq!(jetson.read(&[], &[]).external_power, None, "an idle USB port feeds nothing");
    jetson.write("sys/class/power_supply/BAT0/type", "Battery");
    jetson.write("sys/class/power_supply/BAT0/present", "0");
    assert_eq!(jetson.read(&[], &[]).external_power, None, "its place for a battery is empty");
    jetson.write("sys/class/power_supply/ucsi-source-psy-2-0008/online", "1");
    assert_eq!(jetson.read(&[], &[]).external_power, Some(true));
}

#[test]
fn rapl_counts_on_over_a_wrap_and_not_over_a_lie() {
    let server = Recorded::new(
        "sys/class/powercap/intel-rapl:0/name = package-0
         sys/class/powercap/intel-rapl:0/energy_uj = 262143000000
         sys/class/powercap/intel-rapl:0/max_energy_range_uj = 262143328850
         sys/class/powercap/intel-rapl:0:0/name = core
         sys/class/powercap/intel-rapl:0:0/energy_uj = 77",
    );
    let mut sensors = server.sensors(&[], &[]);
    assert_eq!(sensors.read(SECOND).energy_uj, Some(0));
    server.write("sys/class/powercap/intel-rapl:0/energy_uj", "15000000");
    assert_eq!(sensors.read(SECOND).energy_uj, Some(328_850 + 15_000_000));
    server.write("sys/class/powercap/intel-rapl:0/energy_uj", "14000000");
    assert_eq!(sensors.read(SECOND).energy_uj, Some(15_328_850), "set back: no 262 kJ in a second");
    server.write("sys/class/powercap/intel-rapl:0/energy_uj", "24000000");
    assert_eq!(sensors.read(SECOND).energy_uj, Some(25_328_850));
    server.remove("sys/class/powercap/intel-rapl:0");
    assert_eq!(sensors.read(SECOND).energy_uj, None);
}

#[test]
fn an_emmc_tells_its_wear_through_partition_and_mapping() {
    let tree = RASPBERRY_PI_4.replace("card/type = SD", "card/type = MMC");
    let cm4 = Recorded::new(&tree);
    let card = "sys/devices/platform/emmc2/mmc0/card";
    for (life_time, pre_eol_info, percent) in [
        ("0x01 0x02", "0x01", Some(20)),
        ("0x0b 0x01", "0x01", Some(100)),
        ("0x01 0x01", "0x02", Some(80)),
        ("0x00 0x00", "0x03", Some(90)),
        ("0x00 0x00", "0x00", None),
        ("0xff garbage", "", None),
    ] {
        cm4.write(&format!("{card}/life_time"), life_time);
        cm4.write(&format!("{card}/pre_eol_info"), pre_eol_info);
        assert_eq!(cm4.read(&[], &[]).flash_used_percent, percent, "{life_time} {pre_eol_info}");
    }
    cm4.write(&format!("{card}/life_time"), "0x05 0x03");
    fs::remove_file(cm4.0.path().join("sys/dev/block/179:2")).unwrap();
    cm4.write("sys/dev/block/253:0/dm/name", "vault");
    fs::create_dir(cm4.0.path().join("sys/dev/block/253:0/slaves")).unwrap();
    let below = cm4.0.path().join("sys/devices/platform/emmc2/mmc0/block/mmcblk0/mmcblk0p2");
    std::os::unix::fs::symlink(below, cm4.0.path().join("sys/dev/block/253:0/slaves/mmcblk0p2")).unwrap();
    let mut mapped = Sensors::new(cm4.0.path(), Labels::default(), Some((253, 0)));
    assert_eq!(mapped.read(SECOND).flash_used_percent, Some(50));
}

#[test]
fn a_sensor_that_lies_or_vanishes_is_absent_and_the_others_stay() {
    let pi = Recorded::new(RASPBERRY_PI_4);
    pi.write("sys/class/power_supply/BAT0/type", "Battery");
    for lie in ["-273150", "999000", "", "hot", "99999999999999999999"] {
        pi.write("sys/class/thermal/thermal_zone0/temp", lie);
        pi.write("sys/class/power_supply/BAT0/capacity", "255");
        let readings = pi.read(&[], &[]);
        assert_eq!((readings.heat_milli_celsius, readings.battery_percent), (None, None), "{lie:?}");
        assert_eq!(readings.under_voltage, Some(false), "{lie:?}");
    }
    pi.remove("sys/class/thermal/thermal_zone0");
    pi.remove("sys/class/hwmon/hwmon1");
    pi.remove("sys/devices/platform/soc");
    assert_eq!(pi.read(&[], &[]), Readings::default());
}

#[test]
fn this_machine_can_be_read() {
    let mut sensors = Sensors::new(Path::new("/"), Labels::default(), None);
    let readings = sensors.read(SECOND);
    assert!(readings.heat_milli_celsius.is_none_or(|heat| (-55_000..=150_000).contains(&heat)));
    assert!(readings.battery_percent.is_none_or(|percent| percent <= 100));
}
