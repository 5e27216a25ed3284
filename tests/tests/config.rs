//! The configuration as users write it: what is wrong is named with its line and the way out, and what is
//! right is in force.

#![expect(clippy::unwrap_used, reason = "a test that finds anything else has failed")]

use bytes::BytesMut;
use larder_tests::broker::{self, Mosquitto};
use larder_tests::fleet::{befriend, connect, settled};
use larder_tests::mount::Mount;
use larder_tests::node::{Node, larder_bin, noise, skip, wait_for};
use larder_tests::wire;
use rumqttc::v5::mqttbytes::v5::Packet;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Output, Stdio};

/// The number of the line that starts with this.
fn line(node: &Node, start: &str) -> usize {
    let text = fs::read_to_string(node.config()).unwrap();
    1 + text.lines().position(|line| line.starts_with(start)).unwrap()
}

#[track_caller]
fn refused(node: &mut Node, parts: &[&str]) {
    for arguments in [vec!["run"], vec!["status"], vec!["put", "larder.toml"]] {
        let said = node.run(&arguments).expect(2);
        for part in parts {
            assert!(said.stderr.contains(part), "{part:?} is missing in {}", said.stderr);
        }
    }
    assert!(!node.store().exists(), "something was done with a configuration that is wrong");
}

/// A node with one more line in `[section]`, and what is to be said of it.
#[track_caller]
fn refused_line(section: &str, key: &str, value: &str, parts: &[&str]) {
    let mut node = Node::new("cam", "worker");
    node.set(section, key, value);
    let place = format!("larder.toml:{}", line(&node, &format!("{key} = {value}")));
    refused(&mut node, &[&[place.as_str()], parts].concat());
}

#[test]
fn an_unknown_key_is_refused_and_the_nearest_is_named() {
    refused_line("node", "rol", "\"worker\"", &["unknown key [node] rol", "did you mean [node] role?"]);
    refused_line(
        "storage",
        "limits",
        "\"1 GB\"",
        &["unknown key [storage] limits", "did you mean [storage] limit?"],
    );
    refused_line("storage", "profile", "\"balanced\"", &["did you mean [node] profile?"]);
    refused_line("mqtt", "keepalive", "60", &["did you mean [mqtt] keep_alive_s?"]);
    let mut node = Node::new("cam", "worker");
    node.append("[[peers]]\nname = \"x\"");
    refused(&mut node, &["unknown key peers", "did you mean [[peer]]?"]);
    let mut node = Node::new("cam", "worker");
    node.variable("LARDER_STORAGE_LIMITT", "1 GB");
    refused(&mut node, &["environment LARDER_STORAGE_LIMITT", "did you mean [storage] limit?"]);
}

#[test]
fn a_value_of_the_wrong_type_is_refused_with_what_is_allowed() {
    refused_line("node", "role", "7", &["[node] role", "\"master\", \"worker\" or \"leecher\""]);
    refused_line("node", "commands", "\"yes\"", &["[node] commands", "true or false"]);
    refused_line("storage", "limit", "true", &["[storage] limit", "such as \"10 GB\""]);
    refused_line("mqtt", "port", "\"1883\"", &["[mqtt] port", "a number from 1 to 65535"]);
    refused_line(
        "node",
        "subscribe",
        "\"maps/\"",
        &["[node] subscribe", "a list of at most 64 name prefixes"],
    );
    let mut node = Node::new("cam", "worker");
    node.append("this is no TOML");
    refused(&mut node, &["not TOML"]);
}

#[test]
fn a_level_that_the_machine_lacks_is_refused_by_naming_those_it_has() {
    let node = Node::new("cam", "worker");
    node.set("node", "kernels", "\"neon\"");
    // the agent's machine, which need not be this test's; none has both
    let foreign = if node.run(["status"]).code == 0 { "avx2" } else { "neon" };
    let lacks = format!("this machine has no level `{foreign}`; it has portable");
    refused_line("node", "kernels", &format!("\"{foreign}\""), &["[node] kernels", &lacks]);
}

#[test]
fn an_impossible_value_is_refused_with_what_is_possible() {
    refused_line("node", "role", "\"boss\"", &["\"boss\"", "\"master\", \"worker\" or \"leecher\""]);
    refused_line("node", "name", "\"No Spaces\"", &["[node] name", "1 to 64 characters"]);
    refused_line("node", "profile", "\"low_power\"", &["did you mean \"low-power\"?"]);
    refused_line("node", "board", "\"raspberry-pi-6\"", &["did you mean \"raspberry-pi-"]);
    refused_line("node", "kernels", "\"fast\"", &["`fast` is no level; it has portable"]);
    refused_line("storage", "limit", "\"1 MB\"", &["a size of at least \"16 MB\""]);
    refused_line("storage", "limit", "\"ten GB\"", &["[storage] limit"]);
    refused_line("storage", "segment", "\"100 KiB\"", &["1 MiB to 1 GiB in multiples of 64 KiB"]);
    refused_line("storage", "reserve", "\"99 GB\"", &["at most half of the quota"]);
    refused_line("mqtt", "port", "70000", &["[mqtt] port", "a number from 1 to 65535"]);
    let mut node = Node::new("attic", "master");
    node.set("mqtt", "host", "\"127.0.0.1\"");
    node.set("mqtt", "keep_alive_s", "1");
    refused(&mut node, &["[mqtt] keep_alive_s", "a number from 5 to 65535"]);
    let mut node = Node::new("attic", "master");
    node.set("storage", "evict", "\"oldest\"");
    refused(&mut node, &["\"oldest\" on a master", "on a worker or a leecher"]);
    let mut node = Node::new("van", "leecher");
    node.append("[[watch]]\npath = \"in\"");
    refused(&mut node, &["a folder for a leecher", "on a master or a worker"]);
    let mut node = Node::new("cam", "worker");
    node.append("[[watch]]\npath = \"store/inside\"");
    refused(&mut node, &["which overlaps the store"]);
    let mut node = Node::new("cam", "worker");
    node.append("[[watch]]\npath = \"in\"\nprefix = \"../out/\"");
    refused(&mut node, &["[[watch]] prefix", "without . or .."]);
    let mut node = Node::new("cam", "worker");
    node.append("[[watch]]\npath = \"in\"\ninclude = [\"[\"]");
    refused(&mut node, &["[[watch]] include", "a list of patterns"]);
}

#[test]
fn a_configuration_that_is_not_there_is_named_with_the_command_that_makes_one() {
    let node = Node::new("cam", "worker");
    let said = node.run(["--config", "elsewhere.toml", "status"]).expect(2);
    assert!(
        said.stderr.contains("elsewhere.toml cannot be read") && said.stderr.contains("`larder init`"),
        "{}",
        said.stderr
    );
}

#[test]
fn a_key_that_is_missing_damaged_or_open_to_others_stops_an_agent_with_a_link() {
    let mut node = Node::new("attic", "master");
    node.set("mqtt", "host", "\"127.0.0.1\"");
    let key = node.path("node.key");
    let good = fs::read(&key).unwrap();
    assert_eq!(key.metadata().unwrap().mode() & 0o777, 0o600);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let loose = node.run(["run"]).expect(2);
    assert!(loose.stderr.contains("node.key") && loose.stderr.contains("chmod 600"), "{}", loose.stderr);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&key, b"nonsense").unwrap();
    let damaged = node.run(["run"]).expect(2);
    assert!(damaged.stderr.contains("node.key"), "{}", damaged.stderr);
    fs::remove_file(&key).unwrap();
    let missing = node.run(["run"]).expect(2);
    assert!(
        missing.stderr.contains("node.key") && missing.stderr.contains("larder init"),
        "{}",
        missing.stderr
    );
    fs::write(&key, good).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    node.start();
}

#[test]
fn plain_mqtt_to_another_machine_and_a_link_without_a_master_are_refused() {
    for host in ["broker.example.org", "192.168.1.5", "::2"] {
        let mut node = Node::new("attic", "master");
        node.set("mqtt", "host", &format!("{host:?}"));
        refused(&mut node, &[host, "plain MQTT is spoken on loopback alone: set [mqtt] ca"]);
    }
    let mut node = Node::new("attic", "master");
    node.set("mqtt", "embedded_broker", "true");
    node.set("mqtt", "listen", "\"0.0.0.0:1883\"");
    refused(&mut node, &["0.0.0.0", "plain MQTT is spoken on loopback alone"]);
    let mut node = Node::new("cam", "worker");
    node.set("mqtt", "host", "\"127.0.0.1\"");
    refused(&mut node, &["needs exactly one [[peer]] with role = \"master\""]);
}

fn setting(node: &Node, key: &str) -> (String, String) {
    let status = node.status();
    let settings = status["settings"].as_array().unwrap();
    let setting = settings.iter().find(|setting| setting["key"] == key);
    let setting = setting.unwrap_or_else(|| panic!("{key} is missing in {settings:?}"));
    let text = |field: &str| setting[field].as_str().unwrap().to_owned();
    (text("value"), text("from"))
}

#[test]
fn flags_are_stronger_than_the_environment_that_is_stronger_than_the_file_and_status_says_so() {
    let mut node = Node::new("cam", "worker");
    node.set("storage", "limit", "\"2 GB\"");
    node.set("storage", "cache", "\"1 MiB\"");
    node.set("storage", "segment", "\"2 MiB\"");
    let from = |node: &Node, start: &str| format!("config {}:{}", node.config().display(), line(node, start));
    node.start();
    assert_eq!(setting(&node, "quota_bytes"), ("2000000000".into(), from(&node, "limit")));
    assert_eq!(setting(&node, "cache_bytes"), ("1048576".into(), from(&node, "cache")));
    assert_eq!(setting(&node, "segment_bytes"), ("2097152".into(), from(&node, "segment")));
    assert_eq!(setting(&node, "profile"), ("performance".into(), from(&node, "profile")));
    assert_eq!(setting(&node, "tick_ms"), ("10".into(), "profile performance".into()));
    assert_eq!(setting(&node, "role"), ("worker".into(), from(&node, "role")));
    assert_eq!(setting(&node, "clean_watermark_percent"), ("90".into(), "role worker".into()));
    assert_eq!(setting(&node, "clean_period_s"), ("3600".into(), "role worker".into()));
    assert_eq!(setting(&node, "evict"), ("never".into(), "role worker".into()));
    let (board, from_machine) = setting(&node, "board");
    assert_eq!(from_machine, "recognised");
    assert_eq!(setting(&node, "prepare").1, format!("board {board}"));
    assert_eq!(node.stop(), 0);

    node.variable("LARDER_STORAGE_LIMIT", "1 GB");
    node.variable("LARDER_STORAGE_CACHE", "512 KiB");
    node.variable("LARDER_PROFILE", "balanced");
    node.start_with(["--limit", "500 MB", "--board", "raspberry-pi-4", "--role", "leecher"]);
    assert_eq!(
        setting(&node, "quota_bytes"),
        ("475000000".into(), "flag --limit, 95 % by profile balanced".into())
    );
    assert_eq!(setting(&node, "cache_bytes"), ("524288".into(), "environment LARDER_STORAGE_CACHE".into()));
    assert_eq!(setting(&node, "profile"), ("balanced".into(), "environment LARDER_PROFILE".into()));
    assert_eq!(setting(&node, "board"), ("raspberry-pi-4".into(), "flag --board".into()));
    assert_eq!(setting(&node, "role"), ("leecher".into(), "flag --role".into()));
    assert_eq!(setting(&node, "evict"), ("oldest".into(), "role leecher".into()));
    let text = node.run(["status"]).expect(0).text();
    assert!(text.contains("quota_bytes") && text.contains("flag --limit"), "{text}");
}

#[test]
fn each_role_has_its_own_defaults() {
    // most disks are smaller than a master's limit; a file in memory takes what is written to it
    let large = tempfile::tempdir().unwrap();
    let Some(_disk) = Mount::tmpfs(large.path(), "2t") else {
        return skip("each_role_has_its_own_defaults", "mounting needs root");
    };
    for (role, of_role) in [
        ("master", ["1000000000000", "80", "43200", "256", "64", "0", "never"]),
        ("worker", ["100000000000", "90", "3600", "1", "32", "16", "never"]),
        ("leecher", ["10000000000", "95", "1800", "4", "16", "256", "oldest"]),
    ] {
        let node = Node::new("solo", role);
        node.set("node", "store", &format!("{:?}", large.path().join(role)));
        let keys = [
            "quota_bytes",
            "clean_watermark_percent",
            "clean_period_s",
            "sessions_max",
            "in_flight_max",
            "offline_requests_max",
            "evict",
        ];
        let status = node.status();
        for (key, value) in keys.into_iter().zip(of_role) {
            let row = status["settings"].as_array().unwrap().iter().find(|row| row["key"] == key).unwrap();
            let expected = json!({"key": key, "value": value, "from": format!("role {role}")});
            assert_eq!(*row, expected);
        }
    }
}

#[test]
fn only_the_configured_profile_decides_whether_sizes_fit() {
    let mut node = Node::new("cam", "worker");
    node.set("storage", "limit", "\"80 MiB\"");
    node.set("storage", "segment", "\"10 MiB\"");
    node.set("storage", "reserve", "\"40 MiB\"");
    node.start();
    let segment = setting(&node, "segment_bytes");
    assert_eq!((segment.0.as_str(), setting(&node, "reserve_bytes").0.as_str()), ("10485760", "41943040"));
    node.run_with(["put", "--stdin", "a"], b"a").expect(0);
    // nine tenths of the limit are no eight segments, and the reserve is more than half of them
    node.run(["power", "set", "low-power"]).expect(0);
    assert_eq!(setting(&node, "quota_bytes").0, "75497472");
    assert_eq!(setting(&node, "segment_bytes"), segment);
    assert_eq!(setting(&node, "reserve_bytes"), ("37748736".into(), "half of the quota".into()));
    assert_eq!(node.status()["store"]["reserve_bytes"], 37_748_736);
    node.run_with(["put", "--stdin", "b"], b"b").expect(0);
    assert_eq!(node.stop(), 0);
    node.set("node", "profile", "\"low-power\"");
    let said = node.refused_start();
    assert!(said.code == 2 && said.stderr.contains("[storage] segment"), "{}", said.stderr);
}

const PROFILE: &str = "name = \"own\"\nsummary = \"A profile of one's own.\"\ntick_ms = 20\nflush_age_ms = 60000\n\
    flush_bytes = 1048576\nsend_age_ms = 10\nsend_bytes = 262144\nkeep_alive_s = 77\ncache_bytes = 262144\n\
    table_entries = 1024\nquota_share_percent = 50\nwindow_blocks = 8\nclean_step_bytes = 1048576\ncheckpoint_age_s = 30\n\
    verify_step_bytes = 1048576\nstep_rest_ms = 100\nscrub_period_s = 0\nscrub_rest_ms = 0\nsense_s = 60\ncalm_s = 60\ntelemetry_s = 600\ntimer_slack_us = 50\n\
    battery_low_percent = 20\nbattery_ok_percent = 30\nflash_worn_percent = 80\nsync_every_s = 0\nsync_hours = []\n";

const BOARD: &str = "name = \"shed\"\nsummary = \"A board of one's own.\"\nmemory_bytes = 536870912\npage_bytes = 4096\n\
    segment_bytes = 3145728\nprepare = \"zero\"\nspare_segments_max = 3\nindex_cache_bytes = 2097152\ncache_bytes_max = 1048576\n\
    storage_share_percent = 90\nkernels = []\ndefault_profile = \"low-power\"\nhot_celsius = 80\ncool_celsius = 70\n";

fn own(role: &str) -> Node {
    let node = Node::new("cam", role);
    fs::write(node.path("own.toml"), PROFILE).unwrap();
    fs::write(node.path("shed.toml"), BOARD).unwrap();
    node.set("node", "profile", "\"own.toml\"");
    node.set("node", "board", "\"./shed.toml\"");
    node.set("storage", "limit", "\"2 GB\"");
    node
}

#[test]
fn a_board_is_known_by_its_device_tree_and_can_be_overridden() {
    let node = Node::new("cam", "worker");
    let on_a_pi = |more: &str| {
        let script = format!(
            "mount -t tmpfs tmpfs /proc && mkdir /proc/device-tree && \
            printf 'raspberrypi,4-model-b\\0brcm,bcm2711\\0' >/proc/device-tree/compatible && \
            exec \"$0\" --json {more} status"
        );
        let mut command = Command::new("unshare");
        node.prepare(&mut command);
        command.args(["--mount", "sh", "-c", &script]).arg(larder_bin()).output().unwrap()
    };
    let output = on_a_pi("");
    if !output.status.success() && String::from_utf8_lossy(&output.stderr).contains("Operation not permitted")
    {
        return skip("a_board_is_known_by_its_device_tree_and_can_be_overridden", "mounting needs root");
    }
    let board = |output: Output| {
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        let status: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{stderr}"));
        let rows = status["settings"].as_array().unwrap();
        let row = rows.iter().find(|row| row["key"] == "board").unwrap();
        (row["value"].as_str().unwrap().to_owned(), row["from"].as_str().unwrap().to_owned())
    };
    let (name, from) = board(output);
    assert!(name == "raspberry-pi-4" && from.contains("recognised"), "{name} {from}");
    let (name, from) = board(on_a_pi("--board raspberry-pi-5"));
    assert!(name == "raspberry-pi-5" && from.contains("--board"), "{name} {from}");
}

#[test]
fn a_board_of_ones_own_decides_how_segments_lie_on_the_disk() {
    let mut node = own("worker");
    node.start();
    assert_eq!(setting(&node, "segment_bytes"), ("3145728".into(), "board shed".into()));
    assert_eq!(setting(&node, "prepare"), ("zero".into(), "board shed".into()));
    assert_eq!(setting(&node, "spare_segments_max"), ("3".into(), "board shed".into()));
    assert_eq!(setting(&node, "index_cache_bytes"), ("2097152".into(), "board shed".into()));
    node.run_with(["put", "--stdin", "large"], &noise(9_000_000, "large")).expect(0);
    let files = fs::read_dir(node.store()).unwrap().map(|entry| entry.unwrap());
    let segments = files.filter(|file| file.file_name().to_str().unwrap().starts_with("segment-"));
    let sizes: Vec<(u64, u64)> =
        segments.map(|file| file.metadata().unwrap()).map(|file| (file.len(), file.blocks() * 512)).collect();
    assert!(sizes.len() >= 3 && sizes.iter().all(|(length, _)| *length <= 3 << 20), "{sizes:?}");
    let open = sizes.iter().max().unwrap();
    assert!(open.0 == 3 << 20 && open.1 >= 3 << 20, "the open segment is there whole, in zeros: {sizes:?}");
}

#[test]
fn a_board_of_ones_own_bounds_disk_cache_and_spares_and_names_the_profile() {
    let disk = tempfile::tempdir().unwrap();
    let Some(_disk) = Mount::tmpfs(disk.path(), "64m") else {
        return skip(
            "a_board_of_ones_own_bounds_disk_cache_and_spares_and_names_the_profile",
            "mounting needs root",
        );
    };
    let mut node = own("worker");
    let board = BOARD.replace("storage_share_percent = 90", "storage_share_percent = 50");
    let board = board.replace("spare_segments_max = 3", "spare_segments_max = 1");
    let board = board.replace("segment_bytes = 3145728", "segment_bytes = 1048576");
    fs::write(node.path("shed.toml"), &board).unwrap();
    let text = fs::read_to_string(node.config()).unwrap();
    let without = |key: &'static str| move |line: &&str| !line.starts_with(key);
    let text: Vec<&str> = text.lines().filter(without("profile = ")).filter(without("limit = ")).collect();
    fs::write(node.config(), text.join("\n")).unwrap();
    node.set("node", "store", &format!("{:?}", disk.path().join("store")));
    node.set("storage", "clean_period_s", "1");
    node.start();
    let by_board = |value: &str| (value.to_owned(), "board shed".to_owned());
    assert_eq!(setting(&node, "profile"), by_board("low-power"));
    assert_eq!(setting(&node, "tick_ms"), ("5000".into(), "profile low-power".into()));
    assert_eq!(setting(&node, "quota_bytes"), ("33554432".into(), "board shed, 50 % of the disk".into()));
    assert_eq!(setting(&node, "cache_bytes"), by_board("1048576"));
    assert_eq!(setting(&node, "spare_segments_max"), by_board("1"));
    // a cache of a few blocks holds no object of forty
    let count = |key: &str| node.status()["store"][key].as_u64().unwrap();
    node.run_with(["put", "--stdin", "read"], &noise(4_000_000, "read")).expect(0);
    node.get("read").unwrap();
    let misses = count("cache_misses");
    node.get("read").unwrap();
    assert!(count("cache_misses") - misses > 50);
    // half of the disk is full, then given back with one spare
    let full = (0..20).find(|index| {
        let name = format!("large{index}");
        node.run_with(["put", "--stdin", &name], &noise(3_000_000, &name)).code == 5
    });
    assert!(full.is_some() && count("used_bytes") <= 33_554_432);
    let names = node.names("large");
    node.run(std::iter::once("rm").chain(names.iter().map(String::as_str))).expect(0);
    let mut version = 0;
    let spares = || {
        version += 1;
        let _full_or_not =
            node.run_with(["put", "--stdin", "next"], &noise(3_000_000, &format!("version {version}")));
        assert!(count("spare_segments") <= 1);
        (count("spare_segments") == 1).then_some(())
    };
    wait_for("one spare", spares);
}

#[test]
fn where_the_machine_does_not_tell_its_memory_the_boards_bounds_the_cache() {
    let mut node = own("worker");
    fs::create_dir(node.path("machine")).unwrap();
    node.variable("LARDER_MACHINE", node.path("machine").to_str().unwrap());
    let board = BOARD.replace("memory_bytes = 536870912", "memory_bytes = 67108864");
    fs::write(node.path("shed.toml"), board.replace("_max = 1048576", "_max = 25165824")).unwrap();
    node.set("node", "profile", "\"performance\"");
    assert_eq!(setting(&node, "cache_bytes"), ("4194304".into(), "a sixteenth of the memory".into()));
}

#[test]
fn a_board_says_which_instructions_are_used_and_status_notes_a_machine_without_them() {
    let known = Node::new("any", "worker").run(["--kernels", "quantum", "status"]).expect(2).stderr;
    let (_, native) = known.split_once("it has ").unwrap();
    let native = native.split(';').next().unwrap().rsplit(", ").next().unwrap();
    let foreign = if cfg!(target_arch = "aarch64") { "avx2" } else { "neon" };
    let with = |kernels: &str| {
        let node = own("worker");
        let board = BOARD.replace("kernels = []", &format!("kernels = {kernels}"));
        fs::write(node.path("shed.toml"), board).unwrap();
        node
    };
    let by_board = |level: &str| (level.to_owned(), "board shed".to_owned());
    assert_eq!(setting(&with("[]"), "kernels"), by_board("portable"));
    let node = with("[\"neon\", \"avx2\", \"avx512\"]");
    assert_eq!(setting(&node, "kernels"), by_board(native));
    node.set("node", "kernels", "\"portable\"");
    assert_eq!(setting(&node, "kernels").0, "portable", "what is forced is obeyed");
    let node = with(&format!("[\"{foreign}\"]"));
    assert_eq!(setting(&node, "kernels"), by_board("portable"));
    assert!(setting(&node, "note").0.contains(&format!("usually has the instructions {foreign}")));
    let mut node = with("[\"sse9\"]");
    refused(&mut node, &["shed.toml:", "kernels", "portable, neon, avx2, avx512"]);
}

#[test]
fn a_profile_of_ones_own_decides_on_quota_cache_and_how_long_a_write_waits() {
    let mut node = own("worker");
    node.start();
    assert_eq!(setting(&node, "profile").0, "own");
    assert_eq!(setting(&node, "tick_ms"), ("20".into(), "profile own".into()));
    assert_eq!(setting(&node, "quota_bytes").0, "1000000000");
    assert!(setting(&node, "quota_bytes").1.contains("50 % by profile own"));
    assert_eq!(setting(&node, "cache_bytes"), ("262144".into(), "profile own".into()));
    let count = |key: &str| node.status()["store"][key].as_u64().unwrap();

    // a write waits for company, for a minute or until somebody says that it is enough
    let before = count("batches");
    let mut stream = node.connect();
    wire::put(&mut stream, 1, "small", b"waits").unwrap();
    let mut other = node.connect();
    wire::put(&mut other, 1, "other", b"waits as well").unwrap();
    for _ in 0..20 {
        assert_eq!(count("batches"), before, "a batch was written before its time");
    }
    wire::ask(&mut other, 2, &json!({"do": "flush"})).unwrap();
    assert_eq!(wire::answer(&mut stream).unwrap().1["answer"], "stored");
    assert!(count("batches") > before);
    drop((stream, other));

    // a cache of two blocks holds no object of forty
    node.run_with(["put", "--stdin", "large"], &noise(4_000_000, "large")).expect(0);
    let misses = count("cache_misses");
    for _ in 0..3 {
        assert!(node.get("large").unwrap() == noise(4_000_000, "large"));
    }
    let misses = count("cache_misses") - misses;
    assert!(misses > 200, "{misses} misses in three readings");
}

#[test]
fn a_large_cache_holds_what_was_read() {
    let mut node = own("worker");
    node.set("storage", "cache", "\"64 MiB\"");
    node.start();
    node.run_with(["put", "--stdin", "large"], &noise(4_000_000, "large")).expect(0);
    node.get("large").unwrap();
    let misses = |node: &Node| node.status()["store"]["cache_misses"].as_u64().unwrap();
    let before = misses(&node);
    node.get("large").unwrap();
    assert_eq!(misses(&node), before);
}

#[test]
fn peers_without_a_broker_to_reach_them_by_are_said() {
    let (mut node, peer) = (own("worker"), Node::new("other", "master"));
    let reason = |node: &Node| node.status()["link"]["reason"].as_str().unwrap().to_owned();
    assert_eq!(reason(&node), "", "who has no peers wants no link");
    node.trust(&peer);
    assert!(reason(&node).contains("no [mqtt]"), "{}", reason(&node));
    node.start();
    assert!(reason(&node).contains("no [mqtt]"), "{}", reason(&node));
    node.set("mqtt", "host", "\"127.0.0.1\"");
    node.set("mqtt", "port", &broker::free_port().to_string());
    node.restart();
    node.wait_status("the link is tried", |status| {
        status["link"]["reason"].as_str()?.contains("nothing listens").then_some(())
    });
}

#[test]
fn the_keep_alive_of_a_profile_reaches_the_broker() {
    let mut mosquitto = Mosquitto::start(broker::Config::default());
    let mut node = own("master");
    node.set("mqtt", "host", "\"127.0.0.1\"");
    node.set("mqtt", "port", &mosquitto.port().to_string());
    let is_up = |status: &Value| status["link"]["up"].as_bool().filter(|up| *up);
    node.start();
    node.wait_status("the link is up", is_up);
    node.set("mqtt", "keep_alive_s", "33");
    node.restart();
    node.wait_status("the link is up again", is_up);
    // it writes its log in pieces, the last when it ends
    mosquitto.stop();
    let log = mosquitto.log();
    assert!(log.contains("k77") && log.contains("k33"), "{log}");
}

#[test]
fn what_a_role_takes_at_once_reaches_the_broker_and_no_session_is_left_there() {
    let receives = ["master", "worker", "leecher"].map(|role| {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut node = own(role);
        let peer = Node::new("peer", if role == "master" { "worker" } else { "master" });
        node.trust(&peer);
        node.set("mqtt", "host", "\"127.0.0.1\"");
        node.set("mqtt", "port", &listener.local_addr().unwrap().port().to_string());
        node.start();
        let (mut stream, _) = listener.accept().unwrap();
        let mut bytes = BytesMut::zeroed(4096);
        let read = stream.read(&mut bytes).unwrap();
        bytes.truncate(read);
        let Packet::Connect(connect, will, _) = Packet::read(&mut bytes, None).unwrap() else {
            panic!("a link begins with CONNECT");
        };
        let properties = connect.properties.unwrap();
        assert!(connect.clean_start && properties.session_expiry_interval.unwrap_or(0) == 0);
        assert!(will.is_some_and(|will| will.retain && will.topic.ends_with(b"/state")));
        let settings = node.status()["settings"].clone();
        let mut shown = settings.as_array().unwrap().iter().filter(|row| row["key"] == "in_flight_max");
        let shown = shown.next().unwrap()["value"].as_str().unwrap().parse::<u16>().unwrap();
        (shown, properties.receive_maximum.unwrap())
    });
    assert_eq!(receives.map(|(shown, _)| shown), [64, 32, 16], "the roles' defaults");
    // beside blocks there is always room for the small messages that make them flow
    let small = receives.map(|(shown, receives)| receives - shown);
    assert!(small[0] > 0 && small.iter().all(|room| *room == small[0]), "{receives:?}");
}

#[test]
fn the_flag_for_an_embedded_broker_joins_a_fleet_and_a_fetch_answers_in_json() {
    let (mut hub, mut kiosk) = (Node::new("hub", "master"), Node::new("kiosk", "leecher"));
    befriend(&hub, &kiosk);
    let port = broker::free_port();
    connect(&hub, port);
    connect(&kiosk, port);
    hub.start_with(["--embedded-broker"]);
    kiosk.start();
    settled(&[&kiosk, &hub]);
    let stored = hub.run_with(["--json", "put", "--stdin", "a"], b"hello").expect(0).json().remove(0);
    assert_eq!((&stored["answer"], &stored["size"]), (&"stored".into(), &5.into()));
    let fetched = kiosk.json(["fetch", "a"]).pop().unwrap();
    assert_eq!((&fetched["answer"], &fetched["object"]["name"]), (&"fetched".into(), &"a".into()));
    assert_eq!(kiosk.get("a").as_deref(), Some(&b"hello"[..]));
    let busy = hub.run(["--json", "run"]).expect(8);
    assert_eq!(busy.json()[0]["answer"], "error");
}

#[test]
fn a_profile_or_board_of_ones_own_with_a_mistake_is_refused_at_its_line() {
    let mut node = own("worker");
    fs::write(node.path("own.toml"), PROFILE.replace("tick_ms = 20", "tick_ms = 0")).unwrap();
    refused(&mut node, &["own.toml:3", "tick_ms = 0", "1 to 60000"]);
    fs::write(node.path("own.toml"), PROFILE.replace("tick_ms", "tik_ms")).unwrap();
    refused(&mut node, &["own.toml:3", "tik_ms"]);
    fs::write(node.path("own.toml"), PROFILE).unwrap();
    fs::write(node.path("shed.toml"), BOARD.replace("segment_bytes = 3145728", "segment_bytes = 5")).unwrap();
    refused(&mut node, &["shed.toml:5", "segment_bytes = 5"]);
    fs::remove_file(node.path("shed.toml")).unwrap();
    refused(&mut node, &["shed.toml cannot be read"]);
}

#[test]
fn init_makes_what_runs_and_overwrites_nothing() {
    let mut node = Node::new("cam", "worker");
    let text = fs::read_to_string(node.config()).unwrap();
    for commented in ["# store = ", "# limit = ", "# [mqtt]", "# host = ", "# [[peer]]", "# [[watch]]"] {
        assert!(text.lines().any(|line| line.starts_with(commented)), "{commented:?} is missing in {text}");
    }
    let before = (fs::read(node.config()).unwrap(), fs::read(node.path("node.key")).unwrap());
    let again = node.run(["--config", node.config().to_str().unwrap(), "init", "--role", "master"]).expect(2);
    assert!(again.stderr.contains("larder.toml exists"), "{}", again.stderr);
    let after = (fs::read(node.config()).unwrap(), fs::read(node.path("node.key")).unwrap());
    assert!(before == after);
    for role in ["master", "worker", "leecher"] {
        let config = node.path(format!("{role}/larder.toml"));
        let flags = ["--config", config.to_str().unwrap()];
        let made =
            node.run([&flags[..], &["--json", "init", "--name", role, "--role", role]].concat()).expect(0);
        let made: Value = made.json().remove(0);
        assert_eq!(
            (&made["answer"], &made["key"]),
            (&json!("initialised"), &json!(node.path(format!("{role}/node.key"))))
        );
        assert!(made["peer"].as_str().unwrap().contains(made["public"].as_str().unwrap()));
        let store = node.path(format!("{role}/store"));
        let all =
            [&flags[..], &["--store", store.to_str().unwrap(), "--socket", "no.sock", "--json", "status"]]
                .concat();
        let status = node.run(all).expect(0).json().remove(0);
        assert_eq!((&status["node"], &status["role"]), (&json!(role), &json!(role)));
    }
    node.start();
}

/// A way to run `larder` as an ordinary user to whom these folders belong; `None` where such a user would find the
/// machine's own Larder.
fn ordinary<'a>(node: &'a Node, folders: &[&str]) -> Option<impl Fn(&[&str]) -> Command + use<'a>> {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root && std::path::Path::new("/etc/larder/larder.toml").exists() {
        return None;
    }
    for folder in folders {
        fs::create_dir(node.path(folder)).unwrap();
        if is_root {
            chown(node.path(folder), Some(65_534), Some(65_534)).unwrap();
        }
    }
    if is_root {
        node.program_for_all();
        fs::set_permissions(node.folder(), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let home = node.path(folders[0]);
    Some(move |arguments: &[&str]| {
        let mut command = Command::new(if is_root { std::path::Path::new("setpriv") } else { larder_bin() });
        if is_root {
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(node.path("larder"));
        }
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", &home);
        command.current_dir(&home).args(arguments);
        command
    })
}

#[track_caller]
fn done(mut command: Command) -> Vec<u8> {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn an_ordinary_user_has_everything_below_home() {
    let node = Node::new("cam", "worker");
    let Some(larder) = ordinary(&node, &["home"]) else {
        return skip("an_ordinary_user_has_everything_below_home", "this machine has a Larder of its own");
    };
    done(larder(&["init"]));
    let (config, key) = (".config/larder/larder.toml", ".config/larder/node.key");
    let home = node.path("home");
    assert!(home.join(config).exists() && home.join(key).exists());
    done(larder(&["put", config, "--name", "mine"]));
    assert!(home.join(".local/share/larder/superblock").exists());
    assert_eq!(done(larder(&["get", "mine", "-o", "-"])), fs::read(home.join(config)).unwrap());
}

/// A process that ends with the value.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

#[test]
fn an_ordinary_user_has_everything_where_the_xdg_variables_say() {
    let name = "an_ordinary_user_has_everything_where_the_xdg_variables_say";
    let node = Node::new("cam", "worker");
    let folders = ["home", "config", "data", "runtime"].map(|folder| node.path(folder));
    let [home, config, data, runtime] = &folders;
    let Some(larder) = ordinary(&node, &["home", "config", "data", "runtime"]) else {
        return skip(name, "this machine has a Larder of its own");
    };
    let larder = |arguments: &[&str]| {
        let mut command = larder(arguments);
        command.env("XDG_CONFIG_HOME", config).env("XDG_DATA_HOME", data).env("XDG_RUNTIME_DIR", runtime);
        command
    };
    done(larder(&["init"]));
    assert!(config.join("larder/larder.toml").exists() && config.join("larder/node.key").exists());
    let agent = larder(&["run"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut agent = Ended(agent);
    let socket = runtime.join("larder.sock");
    wait_for("the agent listens", || UnixStream::connect(&socket).ok());
    assert_eq!(socket.metadata().unwrap().mode() & 0o777, 0o600);
    // the agent holds the store: whoever puts has found the socket
    done(larder(&["put", config.join("larder/larder.toml").to_str().unwrap(), "--name", "mine"]));
    assert!(data.join("larder/superblock").exists());
    rustix::process::kill_process(rustix::process::Pid::from_child(&agent.0), Signal::TERM).unwrap();
    assert!(agent.0.wait().unwrap().success());
    assert!(done(larder(&["get", "mine", "-o", "-"])).starts_with(b"# Larder's configuration."));
    assert_eq!(fs::read_dir(home).unwrap().count(), 0, "nothing lies below home");
}

#[test]
fn a_batch_is_written_when_it_is_as_large_as_the_profile_says() {
    let batches = |flush_bytes: &str| {
        let mut node = own("worker");
        let profile = PROFILE.replace("flush_bytes = 1048576", &format!("flush_bytes = {flush_bytes}"));
        fs::write(node.path("own.toml"), profile).unwrap();
        node.start();
        let count = || node.status()["store"]["batches"].as_u64().unwrap();
        let before = count();
        node.run_with(["put", "--stdin", "large"], &noise(8 << 20, "large")).expect(0);
        count() - before
    };
    let (large, small) = (batches("1048576"), batches("131072"));
    assert!((2..16).contains(&large) && small > 32, "{large} batches of 1 MiB, {small} of 128 KiB");
}
