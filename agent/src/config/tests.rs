//! Every way a configuration can be wrong, and what a right one resolves to.

use std::fs;
use std::path::Path;

use larder_core::role::Evict;
use tempfile::TempDir;

use super::*;

const MASTER_KEY: u8 = 7;

fn machine() -> Machine {
    Machine {
        compatible: vec!["raspberrypi,4-model-b".to_owned(), "brcm,bcm2711".to_owned()],
        arch: "aarch64",
        memory_bytes: Some(4 << 30),
        page_bytes: Some(4_096),
    }
}

fn public_key(seed: u8) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    keys::write_new(&path, format!("{seed:02x}").repeat(32).as_bytes(), 0o600).unwrap();
    NodeKey::load(&path).unwrap().public().to_string()
}

fn master_peer() -> String {
    format!("[[peer]]\nname = \"attic\"\nrole = \"master\"\nkey = \"{}\"\n", public_key(MASTER_KEY))
}

/// A folder with this text as its configuration.
fn written(text: &str) -> (TempDir, Overrides) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("larder.toml");
    fs::write(&path, text).unwrap();
    (dir, Overrides { config: Some(path), ..Overrides::default() })
}

fn home() -> Environment {
    Environment::isolated([("HOME", "/home/ann")])
}

fn load(text: &str) -> Result<Config, ConfigError> {
    let (_dir, overrides) = written(text);
    Config::load(&overrides, &home(), &machine())
}

/// The error of a bad configuration must hold all of these.
#[track_caller]
fn refused_with(text: &str, parts: &[&str]) {
    let error = load(text).expect_err("this configuration is bad").to_string();
    for part in parts {
        assert!(error.contains(part), "{error:?} lacks {part:?}");
    }
}

#[test]
fn an_unknown_section_is_refused_with_line_and_nearest() {
    refused_with(
        "\n[nodes]\nname = \"a\"\n",
        &["larder.toml:2:", "nodes", "did you mean [node]?", "[[watch]]"],
    );
}

#[test]
fn a_key_outside_its_section_is_sent_home() {
    refused_with("role = \"worker\"\n", &["larder.toml:1:", "unknown key role", "did you mean [node] role?"]);
}

#[test]
fn an_unknown_nested_key_is_refused_with_line_and_nearest() {
    refused_with(
        "[node]\nname = \"a\"\n\n[mqtt]\nhots = \"localhost\"\n",
        &["larder.toml:5:", "[mqtt] hots", "did you mean [mqtt] host?", "password_file"],
    );
    let peer = master_peer().replace("role", "rolle");
    refused_with(&peer, &["larder.toml:3:", "[[peer]] rolle", "did you mean [[peer]] role?"]);
}

#[test]
fn a_password_in_the_file_is_refused_in_favour_of_its_own() {
    refused_with("[mqtt]\npassword = \"x\"\n", &["did you mean [mqtt] password_file?"]);
}

#[test]
fn a_wrong_type_names_what_is_allowed() {
    for (text, parts) in [
        ("[node]\nname = 5\n", ["larder.toml:2:", "[node] name = 5", "1 to 64 characters"]),
        ("[mqtt]\nport = \"x\"\n", ["larder.toml:2:", "[mqtt] port = \"x\"", "1 to 65535"]),
        ("[node]\ncommands = 1\n", ["larder.toml:2:", "[node] commands = 1", "true or false"]),
        ("[node]\nsubscribe = \"a/\"\n", ["larder.toml:2:", "[node] subscribe = \"a/\"", "a list of"]),
        ("node = 5\n", ["larder.toml:1:", "node = 5", "one table headed [node]"]),
        ("[peer]\nname = \"a\"\n", ["larder.toml:1:", "peer", "headed [[peer]]"]),
    ] {
        refused_with(text, &parts);
    }
}

#[test]
fn an_impossible_value_names_what_is_allowed() {
    for (text, parts) in [
        (
            "[node]\nrole = \"boss\"\n",
            ["larder.toml:2:", "role = \"boss\"", "\"master\", \"worker\" or \"leecher\""],
        ),
        ("[node]\nname = \"My Pi\"\n", ["larder.toml:2:", "name = \"My Pi\"", "a-z 0-9"]),
        ("[storage]\nlimit = \"ten\"\n", ["larder.toml:2:", "limit = \"ten\"", "\"10 GB\""]),
        ("[storage]\nlimit = \"1 MB\"\n", ["larder.toml:2:", "limit = 1000000 bytes", "16 MB"]),
        ("[storage]\nsegment = \"1000 B\"\n", ["larder.toml:2:", "segment = 1000 bytes", "64 KiB"]),
        ("[storage]\nevict = \"newest\"\n", ["larder.toml:2:", "evict = \"newest\"", "\"oldest\""]),
        (
            "[storage]\nlimit = \"1 GB\"\nreserve = \"1 GB\"\n",
            ["larder.toml:3:", "reserve", "half of the quota"],
        ),
        ("[storage]\nlimit = \"1 GB\"\nsegment = \"512 MiB\"\n", ["larder.toml:3:", "segment", "an eighth"]),
        ("[mqtt]\nhost = \"localhost\"\nport = 0\n", ["larder.toml:3:", "port = 0", "1 to 65535"]),
        ("[mqtt]\nhost = \"localhost\"\nport = 70000\n", ["larder.toml:3:", "port = 70000", "1 to 65535"]),
        (
            "[storage]\nclean_watermark_percent = 100\n",
            ["larder.toml:2:", "clean_watermark_percent = 100", "1 to 99"],
        ),
        ("[storage]\nclean_period_s = 0\n", ["larder.toml:2:", "clean_period_s = 0", "1 to 2592000"]),
        (
            "[mqtt]\nhost = \"localhost\"\nkeep_alive_s = 1\n",
            ["larder.toml:3:", "keep_alive_s = 1", "5 to 65535"],
        ),
        ("[node]\nsubscribe = [\"../up\"]\n", ["larder.toml:2:", "\"../up\"", "prefixes"]),
        (
            &format!("[node]\nsubscribe = [{}]\n", ["\"a/\""; 65].join(", ")),
            ["larder.toml:2:", "65 prefixes", "at most 64"],
        ),
        (
            "[node]\nprofile = \"fast\"\n",
            ["larder.toml:2:", "profile = \"fast\"", "performance, balanced, low-power"],
        ),
        (
            "[node]\nboard = \"raspberry-pi-44\"\n",
            ["larder.toml:2:", "did you mean \"raspberry-pi-4\"?", "auto, "],
        ),
        (
            "[[peer]]\nname = \"a\"\nrole = \"master\"\nkey = \"abc\"\n",
            ["larder.toml:4:", "[[peer]] key", "ed25519:"],
        ),
        ("[[watch]]\npath = \"/a\"\nsettle_s = 4000\n", ["larder.toml:3:", "settle_s = 4000", "0 to 3600"]),
        ("[[watch]]\npath = \"/a\"\nafter = \"delete\"\n", ["larder.toml:3:", "after", "delete-after-ack"]),
        ("[[watch]]\npath = \"/a\"\nprefix = \"/x\"\n", ["larder.toml:3:", "prefix = \"/x\"", "relative"]),
        (
            "[[watch]]\npath = \"/a\"\n[[watch]]\npath = \"/b\"\nafter = \"delete-after-ack\"\n",
            ["larder.toml:3:", "\"/a\" has too", "relative"],
        ),
        ("[[watch]]\npath = \"/a\"\ninclude = [\"[\"]\n", ["larder.toml:3:", "include = \"[\"", "patterns"]),
        (
            "[node]\nstore = \"/a/b\"\n[[watch]]\npath = \"/a\"\n",
            ["larder.toml:4:", "overlaps the store", "outside"],
        ),
    ] {
        refused_with(text, &parts);
    }
}

#[test]
fn a_socket_path_longer_than_the_kernel_takes_is_refused() {
    let long = "x".repeat(120);
    refused_with(&format!("[node]\nsocket = \"/{long}\"\n"), &["larder.toml:2:", "107 bytes"]);
}

#[test]
fn what_is_not_toml_is_refused_by_line() {
    refused_with("[node]\nname = \n", &["larder.toml:2:", "not TOML"]);
    refused_with("[node]\nname = \"a\"\nname = \"b\"\n", &["larder.toml:3:", "not TOML", "duplicate"]);
}

#[test]
fn a_file_that_was_asked_for_and_is_not_there_is_an_error() {
    let overrides = Overrides { config: Some("/nonexistent/x.toml".into()), ..Overrides::default() };
    let error = Config::load(&overrides, &home(), &machine()).unwrap_err().to_string();
    assert!(error.contains("/nonexistent/x.toml cannot be read") && error.contains("larder init"), "{error}");
}

#[test]
fn a_huge_file_is_refused_unread() {
    refused_with(&"# padding\n".repeat(120_000), &["more than 1048576 bytes"]);
}

#[test]
fn a_worker_on_a_link_needs_exactly_one_master() {
    let link = "[node]\nrole = \"worker\"\n[mqtt]\nhost = \"localhost\"\n";
    refused_with(link, &["a worker with [mqtt] needs exactly one [[peer]]", "here are 0", "larder init"]);
    let second = master_peer().replace("attic", "cellar");
    refused_with(
        &format!("{link}{}{second}", master_peer()),
        &["larder.toml:2:", "exactly one", "here are 2"],
    );
    let config = load(&format!("{link}{}", master_peer())).unwrap();
    assert_eq!(config.peers.len(), 1);
}

#[test]
fn a_leecher_on_a_link_needs_a_master() {
    let link = "[node]\nrole = \"leecher\"\n[mqtt]\nhost = \"localhost\"\n";
    refused_with(link, &["a leecher with [mqtt] needs at least one", "here are 0"]);
}

#[test]
fn a_peer_without_a_key_twice_or_without_business_is_refused() {
    let lacking = "[[peer]]\nname = \"a\"\nrole = \"master\"\n";
    refused_with(lacking, &["larder.toml:1:", "[[peer]] key is missing"]);
    let twice = format!("{}{}", master_peer(), master_peer());
    refused_with(&twice, &["larder.toml:5:", "\"attic\"", "another [[peer]]"]);
    let own = format!("[node]\nname = \"attic\"\n{}", master_peer());
    refused_with(&own, &["larder.toml:3:", "\"attic\"", "this node"]);
    let strange = master_peer().replace("\"master\"", "\"leecher\"");
    refused_with(&strange, &["larder.toml:1:", "no business with a worker"]);
}

#[test]
fn plain_mqtt_is_spoken_on_loopback_alone() {
    let master = "[node]\nrole = \"master\"\n[mqtt]\n";
    for host in ["broker.example.org", "192.168.1.5", "0.0.0.0"] {
        refused_with(
            &format!("{master}host = \"{host}\"\n"),
            &["larder.toml:4:", host, "loopback alone", "ca"],
        );
    }
    refused_with(
        &format!("{master}embedded_broker = true\nlisten = \"0.0.0.0:1883\"\n"),
        &["larder.toml:5:", "0.0.0.0:1883", "ca, certificate and key"],
    );
    for host in ["localhost", "127.0.0.1", "127.3.2.1", "::1"] {
        let link = load(&format!("{master}host = \"{host}\"\n")).unwrap().mqtt.unwrap();
        assert_eq!((link.port, link.tls), (1_883, None));
    }
}

#[test]
fn an_authority_makes_the_link_tls() {
    let text = "[node]\nrole = \"master\"\n[mqtt]\nhost = \"broker.example.org\"\nca = \"ca.pem\"\n";
    let (dir, overrides) = written(&format!("{text}certificate = \"node.pem\"\nkey = \"/k.pem\"\n"));
    let link = Config::load(&overrides, &home(), &machine()).unwrap().mqtt.unwrap();
    assert_eq!(link.port, 8_883);
    let own = Some((dir.path().join("node.pem"), "/k.pem".into()));
    assert_eq!(link.tls, Some(Tls { ca: dir.path().join("ca.pem"), own }));
    refused_with(
        &format!("{text}certificate = \"node.pem\"\n"),
        &["larder.toml:6:", "[mqtt] key is missing"],
    );
    let without_ca = text.replace("ca =", "key = \"k\"\ncertificate =");
    refused_with(&without_ca, &["larder.toml:6:", "[mqtt] ca is missing"]);
}

#[test]
fn an_embedded_broker_needs_no_host() {
    let master = "[node]\nrole = \"master\"\n[mqtt]\nembedded_broker = true\n";
    let link = load(master).unwrap().mqtt.unwrap();
    assert_eq!((link.host.as_str(), link.port), ("127.0.0.1", 1_883));
    assert_eq!(link.embedded, Some("127.0.0.1:1883".parse().unwrap()));
    let link = load(&format!("{master}listen = \"127.0.0.1:2000\"\n")).unwrap().mqtt.unwrap();
    assert_eq!(link.port, 2_000);
    refused_with("[mqtt]\nuser = \"a\"\n", &["larder.toml:1:", "[mqtt] host is missing", "embedded_broker"]);
}

#[test]
fn the_stronger_source_wins_and_is_named() {
    let text = "[node]\nprofile = \"performance\"\n[storage]\nlimit = \"20 GB\"\ncache = \"1 MiB\"\n";
    let (dir, mut overrides) = written(text);
    let path = dir.path().join("larder.toml");
    let from = |overrides: &Overrides, variables: &[(&str, &str)]| {
        let variables = variables.iter().copied().chain([("HOME", "/home/ann")]);
        let config = Config::load(overrides, &Environment::isolated(variables), &machine()).unwrap();
        config.effective(&machine(), None).unwrap()
    };

    let file = from(&overrides, &[]);
    assert_eq!(
        file.profile,
        Setting { value: "performance".into(), from: format!("config {}:2", path.display()) }
    );
    assert_eq!(file.quota_bytes.value, 20_000_000_000);
    assert_eq!(file.cache_bytes.from, format!("config {}:5", path.display()));
    assert_eq!((file.tick_ms.value, file.tick_ms.from.as_str()), (10, "profile performance"));

    let variables = [("LARDER_PROFILE", "low-power"), ("LARDER_STORAGE_LIMIT", "30 GB")];
    let environment = from(&overrides, &variables);
    assert_eq!(environment.profile.from, "environment LARDER_PROFILE");
    assert_eq!(environment.quota_bytes.value, 27_000_000_000);
    assert_eq!(environment.quota_bytes.from, "environment LARDER_STORAGE_LIMIT, 90 % by profile low-power");

    overrides.profile = Some("balanced".to_owned());
    assert_eq!(from(&overrides, &variables).profile.from, "flag --profile");
}

#[test]
fn what_nobody_says_comes_from_board_role_and_profile() {
    let config = load("[node]\nrole = \"leecher\"\n").unwrap();
    let effective = config.effective(&machine(), None).unwrap();
    assert_eq!(
        (effective.board.value.as_str(), effective.board.from.as_str()),
        ("raspberry-pi-4", "recognised")
    );
    assert_eq!(effective.profile.from, "board raspberry-pi-4");
    assert_eq!((effective.evict.value, effective.evict.from.as_str()), (Evict::Oldest, "role leecher"));
    assert_eq!(effective.segment_bytes.from, "board raspberry-pi-4");
    assert_eq!(effective.clean_period_s.value, 1_800);
    // the board's processor is usually another one than that of the machine these tests run on
    assert!(config.notes.iter().all(|note| note.contains("instructions")), "{:?}", config.notes);
}

#[test]
fn the_disk_caps_the_quota_and_the_quota_the_segments() {
    let config = load("[node]\nprofile = \"performance\"\n").unwrap();
    let effective = config.effective(&machine(), Some(100_000_000)).unwrap();
    assert_eq!(effective.quota_bytes.value, 80_000_000);
    assert!(effective.quota_bytes.from.contains("80 % of the disk"));
    assert!(effective.segment_bytes.value * 8 <= 80_000_000, "{:?}", effective.segment_bytes);
    assert!(effective.reserve_bytes.value <= 40_000_000);
}

#[test]
fn a_small_memory_caps_the_cache() {
    let config = load("[node]\nprofile = \"performance\"\n").unwrap();
    let small = Machine { memory_bytes: Some(256 << 20), ..machine() };
    let cache = config.effective(&small, None).unwrap().cache_bytes;
    assert_eq!((cache.value, cache.from.as_str()), (16 << 20, "a sixteenth of the memory"));
}

#[test]
fn an_unknown_board_is_noted() {
    let stranger = Machine { compatible: vec!["who,knows".to_owned()], ..machine() };
    let (_dir, overrides) = written("");
    let config = Config::load(&overrides, &home(), &stranger).unwrap();
    assert_eq!(config.board.value.arch.as_deref(), Some("aarch64"));
    assert!(config.notes[0].contains("who,knows"));
}

#[test]
fn effective_values_survive_json_and_list_as_rows() {
    let effective = load("").unwrap().effective(&machine(), None).unwrap();
    let json = serde_json::to_string(&effective).unwrap();
    assert_eq!(serde_json::from_str::<Effective>(&json).unwrap(), effective);
    let rows = effective.rows();
    assert!(rows.contains(&("prepare", "allocate".to_owned(), "board raspberry-pi-4")));
}

#[test]
fn a_bad_variable_is_refused_by_name() {
    for (variable, value, parts) in [
        ("LARDER_NODE_PROFIL", "x", ["environment LARDER_NODE_PROFIL", "did you mean [node] profile?"]),
        ("LARDER_MQTT_PORT", "many", ["environment LARDER_MQTT_PORT", "1 to 65535"]),
        ("LARDER_NODE_COMMANDS", "yes", ["environment LARDER_NODE_COMMANDS", "true or false"]),
        ("LARDER_PROFILE", "fast\"\n", ["environment LARDER_PROFILE", "balanced"]),
    ] {
        let environment = Environment::isolated([("HOME", "/home/ann"), (variable, value)]);
        let error = Config::load(&Overrides::default(), &environment, &machine()).unwrap_err().to_string();
        for part in parts {
            assert!(error.contains(part), "{error:?} lacks {part:?}");
        }
    }
}

#[test]
fn variables_say_lists_switches_and_numbers() {
    let environment = Environment::isolated([
        ("HOME", "/home/ann"),
        ("LARDER_NODE_ROLE", "master"),
        ("LARDER_NODE_SUBSCRIBE", "maps/,models"),
        ("LARDER_NODE_COMMANDS", "false"),
        ("LARDER_MQTT_EMBEDDED_BROKER", "true"),
        ("LARDER_MQTT_PORT", "2883"),
        ("LARDER_LOG", "debug"),
        ("LARDER_UNRELATED", "left alone"),
    ]);
    let config = Config::load(&Overrides::default(), &environment, &machine()).unwrap();
    assert_eq!(config.subscribe, ["maps/", "models/"]);
    assert!(!config.commands);
    assert_eq!(config.mqtt.unwrap().port, 2_883);
    assert_eq!(config.log.as_deref(), Some("debug"));
}

#[test]
fn without_a_file_a_user_gets_places_of_their_own() {
    let config = Config::load(&Overrides::default(), &home(), &machine()).unwrap();
    assert_eq!(config.file, None);
    assert_eq!(config.name.as_str(), "isolated");
    assert_eq!(config.store, Path::new("/home/ann/.local/share/larder"));
    assert_eq!(config.socket, config.store.join("larder.sock"));
    let environment = Environment::isolated([
        ("XDG_DATA_HOME", "/data"),
        ("XDG_RUNTIME_DIR", "/run/user/1"),
        ("HOME", "/h"),
    ]);
    let config = Config::load(&Overrides::default(), &environment, &machine()).unwrap();
    assert_eq!(config.store, Path::new("/data/larder"));
    assert_eq!(config.socket, Path::new("/run/user/1/larder.sock"));
    let homeless = Config::load(&Overrides::default(), &Environment::isolated([]), &machine());
    assert!(homeless.unwrap_err().to_string().contains("no place for the store"));
}

#[test]
fn the_users_file_is_found_by_its_place() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("larder")).unwrap();
    fs::write(dir.path().join("larder/larder.toml"), "[node]\nname = \"found\"\n").unwrap();
    let config_home = dir.path().to_str().unwrap();
    let environment = Environment::isolated([("XDG_CONFIG_HOME", config_home), ("HOME", "/h")]);
    let config = Config::load(&Overrides::default(), &environment, &machine()).unwrap();
    assert_eq!(config.name.as_str(), "found");
    assert_eq!(config.key, dir.path().join("larder/node.key"));
}

#[test]
fn a_credential_of_the_same_file_name_stands_for_each_secret_unless_it_is_one_byte() {
    let text = "[mqtt]\nhost = \"a.example\"\nca = \"ca.pem\"\ncertificate = \"node.pem\"\nkey = \"tls/node-tls.key\"\n\
                user = \"cam\"\npassword_file = \"password\"\n";
    let (dir, overrides) = written(&format!("{text}{}", master_peer()));
    let given = tempfile::tempdir().unwrap();
    for (name, content) in
        [("node.key", "key"), ("node-tls.key", "key"), ("password", "-"), ("node.pem", "no secret")]
    {
        fs::write(given.path().join(name), content).unwrap();
    }
    let folder = given.path().to_str().unwrap();
    let environment = Environment::isolated([("HOME", "/home/ann"), ("CREDENTIALS_DIRECTORY", folder)]);
    let config = Config::load(&overrides, &environment, &machine()).unwrap();
    let mqtt = config.mqtt.unwrap();
    assert_eq!(config.key, given.path().join("node.key"));
    assert_eq!(
        mqtt.tls.unwrap().own.unwrap(),
        (dir.path().join("node.pem"), given.path().join("node-tls.key"))
    );
    assert_eq!(mqtt.login.unwrap().password_file, Some(dir.path().join("password")));
}
