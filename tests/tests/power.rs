//! Power as its user has it: what the sensors do to the profile, profiles set by hand here and from afar,
//! radio windows, telemetry, and what the node says of its costs. The machine is a recorded tree.

use larder_tests::broker::{Config, Mosquitto, Proxy};
use larder_tests::clock::{self, set_clock, with_clock};
use larder_tests::fleet::{Fleet, befriend, connect, put, settled};
use larder_tests::node::{Node, noise, skip, wait_for};
use larder_tests::terminal;
use rustix::fs::{major, minor};
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const FILE_TEMP: &str = "machine/sys/class/thermal/thermal_zone0/temp";
const FILE_BATTERY: &str = "machine/sys/class/power_supply/BAT0";
const FILE_RAPL: &str = "machine/sys/class/powercap/intel-rapl:0";
const FILE_ALARM: &str = "machine/sys/class/hwmon/hwmon3/in0_lcrit_alarm";
const FILE_THROTTLED: &str = "machine/sys/devices/platform/soc/soc:firmware/get_throttled";

fn write(node: &Node, path: &str, content: &str) {
    let path = node.path(path);
    fs::create_dir_all(path.parent().expect("a file has a folder")).expect("the folder is writable");
    fs::write(path, format!("{content}\n")).expect("the folder is writable");
}

/// Gives a node a machine of its own: a Raspberry Pi 4 that is cool.
fn record_machine(node: &mut Node) {
    write(node, "machine/proc/device-tree/compatible", "raspberrypi,4-model-b\0brcm,bcm2711\0");
    write(node, "machine/sys/class/thermal/thermal_zone0/type", "cpu-thermal");
    write(node, FILE_TEMP, "45000");
    let root = node.path("machine").display().to_string();
    node.variable("LARDER_MACHINE", &root);
}

/// Gives a node a profile of its own: the built-in one named, with other values and reactions.
fn own_profile(node: &Node, built_in: &str, values: &[(&str, &str)], reactions: &str) {
    write_profile(node, "own", built_in, values, reactions);
    node.set("node", "profile", "\"own.toml\"");
}

fn write_profile(node: &Node, name: &str, built_in: &str, values: &[(&str, &str)], reactions: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../power-profiles");
    let text = fs::read_to_string(folder.join(format!("{built_in}.toml"))).expect("a built-in profile");
    let (mut text, _) =
        text.split_once("\n[on]").map_or((text.clone(), ()), |(head, _)| (head.to_owned(), ()));
    text = text.replace(&format!("\"{built_in}\""), &format!("{name:?}"));
    for (key, value) in values {
        let line =
            text.lines().find(|line| line.starts_with(&format!("{key} = "))).expect("a key").to_owned();
        text = text.replace(&line, &format!("{key} = {value}"));
    }
    let file = node.path(format!("{name}.toml"));
    fs::write(file, format!("{text}\n[on]\n{reactions}")).expect("the folder is writable");
}

/// Quick sensors and a short calm.
const QUICK: [(&str, &str); 2] = [("sense_s", "1"), ("calm_s", "1")];

#[track_caller]
fn power(node: &Node) -> Value {
    node.json(["power"]).pop().expect("power has an answer")
}

fn wait_profile(node: &Node, profile: &str) -> Value {
    wait_for(&format!("profile {profile}"), || {
        Some(power(node)).filter(|report| report["profile"] == profile)
    })
}

#[test]
fn heat_moves_the_profile_at_once_and_calm_brings_it_back() {
    let mut node = Node::new("cam", "worker");
    record_machine(&mut node);
    own_profile(&node, "performance", &QUICK, "hot = \"low-power\"\n");
    node.start();
    let cool = power(&node);
    assert_eq!((&cool["profile"], &cool["readings"]["heat_milli_celsius"]), (&"own".into(), &45_000.into()));
    assert_eq!(cool["readings"].get("battery_percent"), None, "what has no sensor is absent, not 0");
    write(&node, FILE_TEMP, "95000");
    let hot = wait_profile(&node, "low-power");
    assert_eq!((&hot["because"], &hot["configured"]), (&"hot".into(), &"own".into()));
    for (key, value) in [
        ("tick_ms", "5000"),
        ("keep_alive_s", "300"),
        ("clean_step_bytes", "4194304"),
        ("scrub_period_s", "2592000"),
        ("scrub_rest_ms", "5000"),
    ] {
        assert_eq!(setting(&node, key).0, value, "{key} is in force");
    }
    write(&node, FILE_TEMP, "60000");
    let back = wait_profile(&node, "own");
    assert_eq!(back["changes"], 2);
    write(&node, FILE_TEMP, "95000");
    wait_profile(&node, "low-power");
    fs::remove_dir_all(node.path("machine/sys/class/thermal")).expect("the sensor can vanish");
    let vanished = wait_profile(&node, "own");
    assert_eq!(vanished["readings"].get("heat_milli_celsius"), None);
    let text = node.run(["power"]).expect(0).text();
    assert!(text.contains("profile     own (as configured)") && text.contains("woken by"), "{text}");
}

/// Value and origin of a setting in force.
#[track_caller]
fn setting(node: &Node, key: &str) -> (String, String) {
    let settings = node.status()["settings"].clone();
    let setting = settings.as_array().and_then(|all| all.iter().find(|setting| setting["key"] == key));
    let setting = setting.unwrap_or_else(|| panic!("{key} is missing in {settings}"));
    let text = |field: &str| setting[field].as_str().expect("text").to_owned();
    (text("value"), text("from"))
}

/// Puts objects until there is no room; the bytes on disk then.
#[track_caller]
fn fill(node: &Node, prefix: &str) -> u64 {
    for index in 0..100 {
        let name = format!("{prefix}{index}");
        let said = node.run_with(["put", "--stdin", &name], &noise(3_000_000, &name));
        if said.code != 0 {
            assert_eq!(said.code, 5, "{}", said.stderr);
            let files = fs::read_dir(node.store()).expect("the store is a folder").flatten();
            return files.map(|file| file.metadata().map_or(0, |file| file.blocks() * 512)).sum();
        }
    }
    panic!("300 MB are no reason to refuse: {}", node.status()["store"]);
}

#[test]
fn a_change_of_profile_moves_the_hard_quota_and_shows_only_what_is_in_force() {
    let mut node = Node::new("cam", "worker");
    own_profile(&node, "performance", &[], "hot = \"half.toml\"\n");
    let half = [
        ("quota_share_percent", "50"),
        ("cache_bytes", "1_048_576"),
        ("table_entries", "2_048"),
        ("tick_ms", "20"),
    ];
    write_profile(&node, "half", "performance", &half, "");
    node.set("storage", "limit", "\"64 MB\"");
    node.set("storage", "segment", "\"1 MiB\"");
    node.set("storage", "clean_period_s", "1");
    node.start();
    let quota = |node: &Node| {
        let (value, from) = setting(node, "quota_bytes");
        let hard = node.status()["store"]["quota_bytes"].as_u64().expect("a number");
        assert_eq!(value, hard.to_string(), "what is shown is what holds");
        (hard, from)
    };
    let (all, from_limit) = quota(&node);
    assert_eq!(all, 64_000_000);
    let (cache, table) = (setting(&node, "cache_bytes"), setting(&node, "table_entries"));
    assert!(cache.0 != "1048576" && table.1 == "profile own", "{cache:?} {table:?}");

    node.run(["power", "set", "half"]).expect(0);
    assert_eq!(quota(&node), (32_000_000, format!("{from_limit}, 50 % by profile half")));
    assert_eq!(setting(&node, "tick_ms"), ("20".into(), "profile half".into()));
    let stays = |(value, from): &(String, String)| (value.clone(), format!("{from}, until a restart"));
    assert_eq!(setting(&node, "cache_bytes"), stays(&cache));
    assert_eq!(setting(&node, "table_entries"), stays(&table));
    let used = fill(&node, "half");
    assert!((20_000_000..=32_000_000).contains(&used), "{used} bytes are on disk under half of 64 MB");

    node.run(["power", "auto"]).expect(0);
    assert_eq!(quota(&node), (64_000_000, from_limit));
    assert_eq!((setting(&node, "cache_bytes"), setting(&node, "table_entries")), (cache, table));
    let used = fill(&node, "all");
    assert!((50_000_000..=64_000_000).contains(&used), "{used} bytes are on disk under 64 MB");

    // the quota is below what is used now: nothing comes, and what goes makes room
    node.run(["power", "set", "half"]).expect(0);
    assert_eq!(node.run_with(["put", "--stdin", "more"], b"more").code, 5);
    let names = node.names("");
    node.run(std::iter::once("rm").chain(names.iter().map(String::as_str))).expect(0);
    node.wait_status("there is room again", |status| {
        (status["store"]["used_bytes"].as_u64()? < 20_000_000).then_some(())
    });
    put(&node, "more", b"more");
}

#[test]
fn a_limit_that_is_read_again_is_in_force_at_once_and_a_cache_is_not() {
    let mut node = Node::new("cam", "worker");
    node.set("storage", "limit", "\"64 MB\"");
    node.start();
    let (value, from) = setting(&node, "cache_bytes");
    node.set("storage", "limit", "\"40 MB\"");
    node.set("storage", "cache", "\"2 MiB\"");
    node.signal(Signal::HUP);
    node.wait_status("the limit is read again", |status| {
        (status["store"]["quota_bytes"] == 40_000_000).then_some(())
    });
    assert_eq!(setting(&node, "quota_bytes").0, "40000000");
    assert_eq!(setting(&node, "cache_bytes"), (value, format!("{from}, until a restart")));
    let used = fill(&node, "a");
    assert!(used <= 40_000_000, "{used} bytes are on disk under 40 MB");
    node.restart();
    assert_eq!(
        (setting(&node, "quota_bytes").0, setting(&node, "cache_bytes").0),
        ("40000000".into(), "2097152".into())
    );
}

#[test]
fn low_voltage_moves_the_profile_and_the_end_of_it_brings_it_back() {
    let mut node = Node::new("cam", "worker");
    record_machine(&mut node);
    own_profile(&node, "performance", &QUICK, "under_voltage = \"low-power\"\n");
    write(&node, FILE_THROTTLED, "0");
    node.start();
    assert_eq!(power(&node)["readings"]["under_voltage"], false);
    write(&node, FILE_THROTTLED, "1");
    assert_eq!(wait_profile(&node, "low-power")["because"], "under_voltage");
    write(&node, FILE_THROTTLED, "10000"); // what was is not what is
    assert_eq!(wait_profile(&node, "own")["changes"], 2);
}

#[test]
fn low_voltage_is_told_by_hwmon_alone_too() {
    let mut node = Node::new("cam", "worker");
    record_machine(&mut node);
    own_profile(&node, "performance", &QUICK, "under_voltage = \"low-power\"\n");
    write(&node, "machine/sys/class/hwmon/hwmon3/name", "rpi_volt");
    write(&node, FILE_ALARM, "0");
    node.start();
    assert_eq!(power(&node)["readings"]["under_voltage"], false);
    write(&node, FILE_ALARM, "1");
    assert_eq!(wait_profile(&node, "low-power")["because"], "under_voltage");
    write(&node, FILE_ALARM, "0");
    assert_eq!(wait_profile(&node, "own")["readings"]["under_voltage"], false);
}

#[test]
fn worn_flash_moves_the_profile_and_is_shown() {
    let mut node = Node::new("cam", "worker");
    record_machine(&mut node);
    own_profile(&node, "performance", &QUICK, "flash_worn = \"low-power\"\n");
    // the device that the store lies on is an eMMC
    let device = fs::metadata(node.folder()).expect("the node has a folder").dev();
    let card = format!("machine/sys/dev/block/{}:{}/device", major(device), minor(device));
    let (life_time, pre_eol_info) = (format!("{card}/life_time"), format!("{card}/pre_eol_info"));
    write(&node, &life_time, "0x02 0x03");
    write(&node, &pre_eol_info, "0x01");
    node.start();
    let fresh = power(&node);
    assert_eq!((&fresh["profile"], &fresh["readings"]["flash_used_percent"]), (&"own".into(), &30.into()));
    write(&node, &life_time, "0x02 0x09");
    let worn = wait_profile(&node, "low-power");
    assert_eq!(
        (&worn["because"], &worn["readings"]["flash_used_percent"]),
        (&"flash_worn".into(), &90.into())
    );
    assert_eq!(setting(&node, "tick_ms"), ("5000".into(), "profile low-power".into()));
    let text = node.run(["power"]).expect(0).text();
    assert!(text.contains("90 % of the flash's life used") && text.contains("the flash is worn"), "{text}");
    write(&node, &life_time, "0x02 0x03");
    wait_profile(&node, "own");
    write(&node, &pre_eol_info, "0x02");
    assert_eq!(wait_profile(&node, "low-power")["readings"]["flash_used_percent"], 80);
}

#[test]
fn joules_are_counted_where_the_processor_counts_them() {
    let mut node = Node::new("cam", "worker");
    record_machine(&mut node);
    own_profile(&node, "performance", &QUICK, "");
    write(&node, "machine/sys/class/powercap/intel-rapl:0/name", "package-0");
    write(&node, &format!("{FILE_RAPL}/max_energy_range_uj"), "262143328850");
    write(&node, &format!("{FILE_RAPL}/energy_uj"), "262143000000");
    node.start();
    wait_for("the counter is read", || power(&node)["readings"]["energy_uj"].as_u64());
    write(&node, &format!("{FILE_RAPL}/energy_uj"), "7671150"); // it has wrapped
    let total = wait_for("joules", || {
        Some(power(&node)["total"].take()).filter(|total| total["millijoules"].as_u64() > Some(0))
    });
    assert_eq!(total["millijoules"], 8_000);
    let text = node.run(["power"]).expect(0).text();
    assert!(text.contains("energy"), "{text}");
}

#[test]
fn joules_are_counted_by_samples_of_a_jetsons_power() {
    let mut node = Node::new("cam", "worker");
    record_machine(&mut node);
    own_profile(&node, "performance", &QUICK, "");
    let compatible = "nvidia,p3768-0000+p3767-0003\0nvidia,p3767-0003\0nvidia,tegra234\0";
    write(&node, "machine/proc/device-tree/compatible", compatible);
    for (file, content) in [
        ("name", "ina3221"),
        ("in1_label", "VDD_IN"),
        ("in1_input", "5000"),
        ("curr1_input", "900"),
        ("in2_label", "VDD_CPU_GPU_CV"),
        ("in2_input", "5000"),
        ("curr2_input", "300"),
    ] {
        write(&node, &format!("machine/sys/class/hwmon/hwmon3/{file}"), content);
    }
    node.start();
    let report = wait_for("joules of three seconds", || {
        Some(power(&node)).filter(|report| report["total"]["millijoules"].as_u64() >= Some(3 * 4_500))
    });
    assert_eq!(report["readings"]["power_uw"], 4_500_000, "what goes in, not a part of it once more");
    let total = &report["total"];
    let (millijoules, ms) = (total["millijoules"].as_u64(), total["ms"].as_u64());
    assert!(millijoules <= ms.map(|ms| ms * 9 / 2), "4.5 W at most, for {total}");
}

#[test]
fn a_sensor_frozen_at_a_plausible_value_does_not_hide_that_the_processor_is_held_back() {
    let mut node = Node::new("cam", "worker");
    record_machine(&mut node);
    own_profile(&node, "performance", &QUICK, "hot = \"low-power\"\n");
    write(&node, FILE_THROTTLED, "0");
    node.start();
    assert_eq!(power(&node)["profile"], "own");
    write(&node, FILE_THROTTLED, "4");
    let hot = wait_profile(&node, "low-power");
    assert_eq!((&hot["because"], &hot["readings"]["heat_milli_celsius"]), (&"hot".into(), &45_000.into()));
}

#[test]
fn a_battery_that_runs_low_and_is_fed_again() {
    let mut node = Node::new("cam", "worker");
    record_machine(&mut node);
    own_profile(&node, "performance", &QUICK, "on_battery = \"balanced\"\nbattery_low = \"low-power\"\n");
    write(&node, &format!("{FILE_BATTERY}/type"), "Battery");
    write(&node, &format!("{FILE_BATTERY}/status"), "Charging");
    write(&node, &format!("{FILE_BATTERY}/capacity"), "24");
    node.start();
    assert_eq!(power(&node)["profile"], "own");
    write(&node, &format!("{FILE_BATTERY}/status"), "Discharging");
    assert_eq!(wait_profile(&node, "balanced")["because"], "on_battery");
    write(&node, &format!("{FILE_BATTERY}/capacity"), "17");
    let low = wait_profile(&node, "low-power");
    assert_eq!(low["conditions"], serde_json::json!(["battery_low", "on_battery"]));
    write(&node, &format!("{FILE_BATTERY}/status"), "Charging");
    wait_profile(&node, "own");
}

#[test]
fn a_machine_nobody_knows_is_served_by_its_architectures_board_and_noted() {
    let mut node = Node::new("cam", "worker");
    record_machine(&mut node);
    write(&node, "machine/proc/device-tree/compatible", "who,knows-it\0unheard,of\0");
    node.start();
    put(&node, "a", b"stored on whatever this is");
    assert_eq!(node.get("a").as_deref(), Some(&b"stored on whatever this is"[..]));
    let (board, note) = (setting(&node, "board").0, setting(&node, "note").0);
    assert!(board.starts_with("generic"), "{board}");
    assert!(note.contains("no board file knows who,knows-it"), "{note}");
}

#[test]
fn a_sensor_that_lies_is_absent_and_changes_nothing() {
    let mut node = Node::new("cam", "worker");
    record_machine(&mut node);
    own_profile(&node, "performance", &QUICK, "hot = \"low-power\"\nbattery_low = \"low-power\"\n");
    write(&node, &format!("{FILE_BATTERY}/type"), "Battery");
    write(&node, &format!("{FILE_BATTERY}/status"), "Discharging");
    write(&node, &format!("{FILE_BATTERY}/capacity"), "81");
    node.start();
    for lie in ["999000", "-273150", "hot", "99999999999999999999", ""] {
        write(&node, FILE_TEMP, lie);
        write(&node, &format!("{FILE_BATTERY}/capacity"), "255");
        let report = wait_for("the lie is seen", || {
            Some(power(&node)).filter(|report| report["readings"].get("heat_milli_celsius").is_none())
        });
        assert_eq!(report["readings"].get("battery_percent"), None, "{lie:?}: {report}");
        write(&node, FILE_TEMP, "45000");
        write(&node, &format!("{FILE_BATTERY}/capacity"), "81");
        wait_for("the truth is seen", || {
            Some(power(&node)).filter(|report| report["readings"]["heat_milli_celsius"] == 45_000)
        });
    }
    let report = power(&node);
    assert_eq!((&report["profile"], &report["changes"]), (&"own".into(), &0.into()));
}

#[test]
fn a_battery_whose_report_jumps_is_believed_when_it_says_so_twice() {
    let mut node = Node::new("cam", "worker");
    record_machine(&mut node);
    // read when it is asked for, and again a second after a doubt
    own_profile(
        &node,
        "performance",
        &[("sense_s", "3600"), ("calm_s", "1")],
        "battery_low = \"low-power\"\n",
    );
    write(&node, &format!("{FILE_BATTERY}/type"), "Battery");
    write(&node, &format!("{FILE_BATTERY}/status"), "Discharging");
    write(&node, &format!("{FILE_BATTERY}/capacity"), "81");
    node.start();
    assert_eq!(power(&node)["readings"]["battery_percent"], 81);
    write(&node, &format!("{FILE_BATTERY}/capacity"), "3");
    let doubted = power(&node);
    assert_eq!((&doubted["readings"]["battery_percent"], &doubted["profile"]), (&81.into(), &"own".into()));
    assert_eq!(wait_profile(&node, "low-power")["readings"]["battery_percent"], 3);
}

#[test]
fn power_is_shown_live_until_it_is_ended() {
    let mut node = Node::new("cam", "worker");
    record_machine(&mut node);
    node.start();
    let mut shown = node.command(["--json", "power", "--watch", "1"]);
    let mut shown = shown.stdout(Stdio::piped()).spawn().expect("larder can be started");
    let lines = BufReader::new(shown.stdout.take().expect("a pipe")).lines();
    let heats = lines.take(2).map(|line| {
        let line = line.expect("it says on");
        write(&node, FILE_TEMP, "46000");
        let report: Value = serde_json::from_str(&line).expect("each line is JSON");
        report["readings"]["heat_milli_celsius"].as_i64()
    });
    assert_eq!(heats.collect::<Vec<_>>(), [Some(45_000), Some(46_000)]);
    shown.kill().expect("it runs until then");
    shown.wait().expect("it has been ended");
}

#[test]
fn on_a_terminal_power_is_a_table_with_a_chart_that_is_drawn_anew() {
    let mut node = Node::new("cam", "worker");
    record_machine(&mut node);
    node.start();
    let screen = terminal::watch_until(node.command(["power", "--watch", "1"]), |screen| {
        if screen.contains("45.0 °C") {
            write(&node, FILE_TEMP, "46000");
        }
        screen.contains("46.0 °C") && screen.contains("woken by")
    });
    let tables: Vec<&str> = screen.split("\x1b[H\x1b[J").skip(1).collect();
    assert!(tables.len() >= 2, "each begins at the top of an empty screen: {screen:?}");
    for table in &tables[..tables.len() - 1] {
        for part in ["profile     performance (as configured)", "by the hour", "wake-ups", "woken by", "█"]
        {
            assert!(table.contains(part), "{part:?} is missing in {table}");
        }
    }
}

#[test]
fn the_keep_alive_follows_the_profile() {
    let mut broker = Mosquitto::start(Config::default());
    let mut node = Node::new("hub", "master");
    connect(&node, broker.port());
    node.start();
    node.wait_status("the link is up", |status| status["link"]["up"].as_bool().filter(|up| *up));
    node.run(["power", "set", "low-power"]).expect(0);
    node.wait_status("the link is up again", |status| {
        (status["link"]["up"] == true && status["link"]["connects"] == 2).then_some(())
    });
    // it writes its log in pieces, the last when it ends
    broker.stop();
    let log = broker.log();
    assert!(log.contains("k30)") && log.contains("k300)"), "{log}");
}

#[test]
fn a_master_that_makes_its_link_anew_is_heard_again() {
    let broker = Mosquitto::start(Config::default());
    let mut fleet = Fleet::new(broker.port());
    fleet.start();
    fleet.settled();
    fleet.master.run(["power", "set", "low-power"]).expect(0);
    fleet.master.wait_status("the link is up again", |status| {
        (status["link"]["up"] == true && status["link"]["connects"] == 2).then_some(())
    });
    put(&fleet.master, "news", b"of the master's new session");
    wait_for("the leecher has it", || {
        (fleet.leecher.get("news").as_deref() == Some(&b"of the master's new session"[..])).then_some(())
    });
    put(&fleet.worker, "up", b"to the master");
    wait_for("the master has it", || fleet.master.get("up"));
}

#[test]
fn a_sensor_that_freezes_holds_nobody_up() {
    let mut node = Node::new("cam", "worker");
    record_machine(&mut node);
    own_profile(&node, "performance", &QUICK, "hot = \"low-power\"\n");
    fs::remove_file(node.path(FILE_TEMP)).expect("it was just written");
    // whoever opens it waits for somebody who writes
    let made = Command::new("mkfifo").arg(node.path(FILE_TEMP)).status().expect("coreutils are here");
    assert!(made.success());
    node.start();
    put(&node, "a", b"stored while a sensor hangs");
    assert_eq!(node.get("a").as_deref(), Some(&b"stored while a sensor hangs"[..]));
    let report =
        wait_for("the sensors hang", || Some(power(&node)).filter(|report| report["sensors_hang"] == true));
    assert_eq!(report["readings"], serde_json::json!({}));
    assert!(report["total"]["wake_ups"].as_u64().is_some_and(|count| count > 0), "{report}");
    assert_eq!(node.stop(), 0, "and the agent stops well");
}

#[test]
fn a_profile_is_set_by_hand_here_and_from_the_master_and_ends() {
    let broker = Mosquitto::start(Config::default());
    let mut fleet = Fleet::new(broker.port());
    fleet.start();
    let slack = |node: &Node| {
        let path = format!("/proc/{}/timerslack_ns", node.pid().as_raw_nonzero());
        fs::read_to_string(path).expect("Linux tells the slack").trim().to_owned()
    };
    let worker = &fleet.worker;
    assert_eq!(slack(worker), "50000");
    let said = worker.run(["power", "set", "low-power", "--for", "1h"]).expect(0).text();
    assert!(said.contains("low-power (set by hand, for another"), "{said}");
    assert_eq!(slack(worker), "100000000", "the timer slack follows the profile");
    fleet.settled();
    put(worker, "a", b"under the other profile");
    fleet.settled();
    assert_eq!(fleet.master.get("a").as_deref(), Some(&b"under the other profile"[..]));

    let ask =
        |arguments: &[&str]| fleet.master.run([&["--node", "cam", "--json", "power"], arguments].concat());
    let report = ask(&["set", "balanced", "--for", "30m"]).expect(0).json().pop().expect("an answer");
    assert_eq!((&report["profile"], &report["by_hand"]["profile"]), (&"balanced".into(), &"balanced".into()));
    assert_eq!(power(worker)["profile"], "balanced");
    fleet.settled();
    assert_eq!(ask(&["auto"]).expect(0).json()[0]["profile"], "performance");
    fleet.settled();
    let refused = worker.run(["power", "set", "warp"]);
    assert_ne!(refused.code, 0);
    assert!(
        refused.stderr.contains("\"warp\"") && refused.stderr.contains("low-power"),
        "{}",
        refused.stderr
    );
    assert_eq!(worker.run(["power", "set", "balanced", "--for", "0s"]).code, 2);

    worker.run(["power", "set", "balanced", "--for", "1s"]).expect(0);
    let ended = wait_profile(worker, "performance");
    assert_eq!(ended.get("by_hand"), None);
}

/// The retained message on a topic below the node's own.
fn retained(broker: &Mosquitto, topic: &str) -> Option<Value> {
    broker.retained(&format!("larder/1/home/{topic}"))
}

#[test]
fn between_its_windows_a_node_says_that_it_sleeps_and_who_can_not_wait_is_obeyed() {
    let broker = Mosquitto::start(Config::default());
    let mut fleet = Fleet::new(broker.port());
    own_profile(&fleet.worker, "duty-cycle", &[("sync_every_s", "86400"), ("tick_ms", "100")], "");
    fleet.master.start();
    fleet.worker.start();
    let worker = &fleet.worker;
    wait_for("it sleeps", || retained(&broker, "cam/state").filter(|state| state["state"] == "sleeping"));
    let report = power(worker);
    assert!(report["asleep_ms"].as_u64().is_some_and(|ms| ms > 80_000_000), "{report}");
    assert_eq!(worker.status()["link"]["up"], false);
    put(worker, "patient", b"waits for the window");
    assert_eq!(fleet.master.names(""), [""; 0]);
    worker.run_with(["put", "--now", "--stdin", "urgent"], b"can not wait").expect(0);
    wait_for("both are there", || (fleet.master.names("") == ["patient", "urgent"]).then_some(()));
    wait_for("it sleeps again", || {
        retained(&broker, "cam/state").filter(|state| state["state"] == "sleeping")
    });
    assert_eq!(worker.json(["power", "set", "performance"])[0]["profile"], "performance");
    settled(&[worker]);
    assert_eq!(retained(&broker, "cam/state").map(|state| state["state"].clone()), Some("online".into()));
}

#[test]
fn outside_its_hours_a_node_sleeps_and_inside_it_is_up() {
    let Some(library) = clock::library() else {
        return skip("hours of the radio", "no libfaketime here");
    };
    let broker = Mosquitto::start(Config::default());
    let mut fleet = Fleet::new(broker.port());
    let hours = [("sync_hours", "[\"22:00-06:00\"]"), ("tick_ms", "100")];
    own_profile(&fleet.worker, "performance", &hours, "");
    let (noon, night, morning) = ("@2030-01-01 12:00:00", "@2030-01-01 23:00:00", "@2030-01-02 07:00:00");
    with_clock(&mut fleet.worker, &library, noon);
    fleet.master.start();
    fleet.worker.start();
    let worker = &fleet.worker;
    let state = |wanted: &str| retained(&broker, "cam/state").filter(|state| state["state"] == wanted);
    wait_for("it sleeps", || state("sleeping"));
    let asleep_ms = |worker: &Node| power(worker)["asleep_ms"].as_u64();
    let left = asleep_ms(worker);
    assert!((35_000_000..=36_000_000).contains(&left.unwrap_or(0)), "until 22:00: {left:?}");
    put(worker, "patient", b"waits for the hours");
    assert_eq!((worker.status()["link"]["up"].clone(), fleet.master.names("")), (false.into(), vec![]));

    set_clock(worker, night);
    wait_for("what waited is there", || {
        // the clock is looked at when the node is awake anyway
        (asleep_ms(worker).is_none() && fleet.master.names("") == ["patient"]).then_some(())
    });
    state("online").expect("it says so");
    // with nothing to do either
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!((asleep_ms(worker), &worker.status()["link"]["up"]), (None, &true.into()));

    set_clock(worker, morning);
    let left = wait_for("it sleeps again", || asleep_ms(worker)).div_ceil(3_600_000);
    assert_eq!(left, 15, "hours until 22:00");
}

#[test]
fn telemetry_is_retained_for_whoever_asks() {
    let broker = Mosquitto::start(Config::default());
    let mut node = Node::new("cam", "master");
    record_machine(&mut node);
    connect(&node, broker.port());
    node.start();
    let told = wait_for("telemetry", || retained(&broker, "cam/tele"));
    assert_eq!(
        (&told["profile"], &told["readings"]["heat_milli_celsius"]),
        (&"performance".into(), &45_000.into())
    );
    for cost in ["wake_ups", "syncs", "flash_bytes", "messages_sent", "bytes_sent", "cpu_ms"] {
        assert!(told["total"][cost].as_u64().is_some(), "{cost} is missing in {told}");
    }
    assert!(told["total"]["wakes"].as_object().is_some_and(|wakes| !wakes.is_empty()), "{told}");
    assert_eq!(told["total"].get("millijoules"), None, "no sensor, no joules");
}

/// Waits until nothing moves and the node says of the air, message by message and byte by byte, what its proxy relayed.
#[track_caller]
fn wait_until_agreed(node: &Node, proxy: &Proxy) -> Value {
    wait_for("node and proxy agree", || {
        let relayed = || (proxy.sent_by_clients(), proxy.sent_by_broker());
        let before = relayed();
        let total = power(node)["total"].take();
        let cost = |key: &str| total[key].as_u64().expect("a number");
        let said = (
            (cost("messages_sent"), cost("bytes_sent")),
            (cost("messages_received"), cost("bytes_received")),
        );
        println!("said {said:?}, relayed {before:?}");
        (said == before && relayed() == before).then_some(total)
    })
}

#[test]
fn every_packet_on_air_is_counted_whole_and_nothing_else() {
    let broker = Mosquitto::start(Config::default());
    let proxy = Proxy::start(broker.port());
    let (mut master, mut worker) = (Node::new("hub", "master"), Node::new("cam", "worker"));
    befriend(&master, &worker);
    connect(&master, broker.port());
    connect(&worker, proxy.port());
    own_profile(&worker, "performance", &[("keep_alive_s", "5")], "");
    master.start();
    worker.start();
    settled(&[&worker, &master]);
    wait_until_agreed(&worker, &proxy);

    put(&worker, "a", &noise(300_000, "a"));
    settled(&[&worker, &master]);
    let uploaded = wait_until_agreed(&worker, &proxy);
    assert!(uploaded["bytes_sent"].as_u64() > Some(300_000), "{uploaded}");

    let packets = proxy.packets();
    wait_for("two pings and their answers", || (proxy.packets() >= packets + 4).then_some(()));
    wait_until_agreed(&worker, &proxy);

    // another keep-alive: the link says goodbye and comes again
    worker.run(["power", "set", "balanced"]).expect(0);
    worker.wait_status("the link is up again", |status| {
        (status["link"]["up"] == true && status["link"]["connects"] == 2).then_some(())
    });
    settled(&[&worker, &master]);
    wait_until_agreed(&worker, &proxy);
}

#[test]
fn impossible_values_of_a_profile_are_refused_by_line_key_and_range() {
    for (key, value, parts) in [
        ("sense_s", "0", ["sense_s = 0", "1 to 3600"]),
        ("battery_ok_percent", "21", ["battery_ok_percent = 21", "23 to 100"]),
        ("sync_hours", "[\"25:00-26:00\"]", ["sync_hours", "22:00-06:00"]),
        ("timer_slack_us", "99999999", ["timer_slack_us", "1 to 1000000"]),
    ] {
        let mut node = Node::new("cam", "worker");
        own_profile(&node, "low-power", &[(key, value)], "");
        let said = node.refused_start();
        assert_eq!(said.code, 2, "{}", said.stderr);
        for part in parts.into_iter().chain(["own.toml:"]) {
            assert!(said.stderr.contains(part), "{part:?} is missing in {}", said.stderr);
        }
    }
    let mut node = Node::new("cam", "worker");
    own_profile(&node, "low-power", &[], "hot = \"balancd\"\n");
    let said = node.refused_start();
    assert!(
        said.stderr.contains("[on] hot of profile own") && said.stderr.contains("balanced"),
        "{}",
        said.stderr
    );
}

/// Flips one bit of the only place in the store's log that holds these bytes.
fn damage(node: &Node, bytes: &[u8]) {
    for entry in fs::read_dir(node.store()).expect("the store is a folder").flatten() {
        let mut content = fs::read(entry.path()).expect("its files can be read");
        if let Some(at) = content.windows(bytes.len()).position(|window| window == bytes) {
            content[at] ^= 0x10;
            let file =
                fs::OpenOptions::new().write(true).open(entry.path()).expect("its files can be written");
            return file.write_all_at(&content[at..=at], at as u64).expect("its files can be written");
        }
    }
    panic!("the bytes are in the log");
}

#[test]
fn damage_is_found_by_the_profiles_own_scrub_and_healed_by_a_new_put() {
    let mut node = Node::new("cam", "worker");
    own_profile(&node, "performance", &[("scrub_period_s", "1"), ("scrub_rest_ms", "50")], "");
    node.start();
    let (good, bad) = (noise(20_000, "good"), noise(20_000, "bad"));
    put(&node, "good", &good);
    put(&node, "bad", &bad);
    node.wait_status("a scrub", |status| (status["scrub"]["ended"].as_u64()? > 0).then_some(()));
    damage(&node, &bad[10_000..10_064]);
    let scrub = node.wait_status("the damage is found", |status| {
        Some(status["scrub"].clone()).filter(|scrub| scrub["damaged"] == 1)
    });
    assert_eq!(scrub["incomplete"], serde_json::json!(["bad"]));
    assert_eq!(node.status()["store"]["damaged"], 1, "it is quarantined");
    assert_eq!(node.run(["get", "bad", "-o", "-"]).code, 4);
    assert_eq!(node.get("good"), Some(good));
    let text = node.run(["status"]).expect(0).text();
    assert!(text.contains("1 damaged") && text.contains("incomplete: bad"), "{text}");
    assert!(node.log().contains("bad is incomplete"), "{}", node.log());
    put(&node, "bad", &bad);
    node.wait_status("it is healed", |status| (status["scrub"]["damaged"] == 0).then_some(()));
    assert_eq!(node.get("bad"), Some(bad));
}

#[test]
fn a_patient_put_waits_for_the_profiles_batch_and_an_ordinary_one_does_not() {
    let mut node = Node::new("cam", "worker");
    own_profile(&node, "low-power", &[("flush_age_ms", "5_000"), ("tick_ms", "1_000")], "");
    node.start();
    let batches = |node: &Node| node.status()["store"]["batches"].as_u64().expect("a number");
    let before = batches(&node);
    std::thread::scope(|scope| {
        for name in ["a", "b", "c", "d"] {
            let node = &node;
            scope.spawn(move || {
                node.run_with(["put", "--patient", "--stdin", name], name.as_bytes()).expect(0)
            });
        }
    });
    let patient = batches(&node) - before;
    assert!(patient < 4, "four patient puts made {patient} batches");
    for name in ["e", "f", "g", "h"] {
        put(&node, name, name.as_bytes());
    }
    assert!(batches(&node) - before - patient >= 4);
}

#[test]
fn a_lone_patient_put_waits_until_a_tick_or_the_end_of_its_window_and_an_ordinary_one_for_nothing() {
    let mut node = Node::new("cam", "worker");
    // between five and seven eighths of the age all that wait go, and no tick of a minute falls there
    own_profile(&node, "low-power", &[("flush_age_ms", "4_000"), ("tick_ms", "60_000")], "");
    node.start();
    let began = Instant::now();
    node.run_with(["put", "--patient", "--stdin", "patient"], b"waits").expect(0);
    let waited = began.elapsed();
    assert!(waited >= Duration::from_millis(3_490), "it waited {waited:?}");

    own_profile(&node, "low-power", &[("flush_age_ms", "60_000"), ("tick_ms", "60_000")], "");
    node.restart();
    let began = Instant::now();
    let mut patient = node.command(["put", "--patient", "own.toml"]);
    let mut patient = patient.stdout(Stdio::null()).spawn().expect("larder can be started");
    put(&node, "ordinary", b"does not wait");
    assert!(began.elapsed() < Duration::from_secs(30), "half of the age is not over");
    assert_eq!(node.get("ordinary").as_deref(), Some(&b"does not wait"[..]));
    patient.kill().expect("it is our own");
    patient.wait().expect("it was killed");
}
