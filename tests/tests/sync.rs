//! A fleet of real agents on a real broker: what one node takes in, the others come to hold.

use larder_tests::broker::{Certificates, Config, Mosquitto, free_port};
use larder_tests::fleet::{
    Contents, Fleet, assert_holds, befriend, connect, connect_by_tls, contents, listing, number, put,
    settled, write_files,
};
use larder_tests::node::{Node, noise, wait_for};
use rustix::process::Signal;
use serde_json::Value;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, UNIX_EPOCH};

fn mosquitto() -> Mosquitto {
    Mosquitto::start(Config { persistence: true, ..Config::default() })
}

/// The hash of an object as `get` gives it, never held in memory.
fn hash_of(node: &Node, target: &str) -> blake3::Hash {
    let mut child =
        node.command(["get", target, "-o", "-"]).stdout(Stdio::piped()).spawn().expect("it starts");
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(child.stdout.take().expect("it was piped")).expect("the pipe can be read");
    assert!(child.wait().expect("our own child can be waited for").success(), "{}: {target}", node.name());
    hasher.finalize()
}

/// The listed object of this name.
fn listed(node: &Node, name: &str) -> Option<Value> {
    listing(node, name).into_iter().find(|object| object["name"] == name)
}

/// Waits until the node lists the name and gives these bytes for it.
#[track_caller]
fn wait_for_bytes(node: &Node, name: &str, bytes: &[u8]) {
    wait_for(&format!("{} has its {name}", node.name()), || {
        listed(node, name)?;
        node.get(&format!("name:{name}")).filter(|got| got == bytes)
    });
}

fn mixed() -> Contents {
    let mut files = contents([
        ("box/empty", Vec::new()),
        ("box/one", vec![7]),
        ("box/block", noise(120 * 1024, "block")),
        ("box/more than a block", noise(120 * 1024 + 1, "block")),
        ("box/maps/large", noise(3_000_000, "large")),
        ("box/größe/日本", b"unicode".to_vec()),
    ]);
    for index in 0..40 {
        files.insert(format!("box/readings/{index:02}"), noise(index * 50, &index.to_string()));
    }
    files
}

#[test]
fn a_mixed_folder_arrives_at_the_master_whole_and_at_the_leecher_as_subscribed() {
    let broker = mosquitto();
    let mut fleet = Fleet::new(broker.port());
    fleet.leecher.set("node", "subscribe", "[\"box/maps/\", \"box/one\"]");
    fleet.start();
    let mut files = mixed();
    write_files(fleet.worker.folder(), &files);
    fleet.worker.run(["put", "box"]).expect(0);
    fleet.settled();
    put(&fleet.worker, "box/maps/twin", &files["box/maps/large"]);
    files.insert("box/maps/twin".to_owned(), files["box/maps/large"].clone());
    fleet.settled();
    assert_holds(&fleet.worker, &files);
    assert_holds(&fleet.master, &files);
    let subscribed = |name: &str| name.starts_with("box/maps/") || name == "box/one";
    let wanted = files.iter().filter(|(name, _)| subscribed(name));
    assert_holds(&fleet.leecher, &wanted.map(|(name, bytes)| (name.clone(), bytes.clone())).collect());
    // the twin, and all that is in both blocks, is sent once; 2 % for manifests
    let unique =
        files.iter().filter(|(name, _)| !name.ends_with("twin")).map(|(_, bytes)| bytes.len() as u64);
    let (unique, sent) = (unique.sum::<u64>(), number(&fleet.worker.status(), "sync", "bytes_sent"));
    assert!(sent <= unique + unique / 50, "{sent} bytes were sent for {unique} different ones");
}

#[test]
fn size_time_and_mode_are_the_files_own_on_every_node_and_on_what_it_gives_back() {
    let broker = mosquitto();
    let mut fleet = Fleet::new(broker.port());
    fleet.leecher.set("node", "subscribe", "[\"\"]");
    fleet.start();
    let files = contents([("kit/tool", noise(200_000, "tool")), ("kit/key", vec![7]), ("kit/empty", vec![])]);
    write_files(fleet.worker.folder(), &files);
    let metas =
        [("kit/empty", 0o444, 86_400_000), ("kit/key", 0o600, 1_234_567_890_123), ("kit/tool", 0o755, 1)];
    for (name, mode, mtime_ms) in metas {
        let file = File::options().write(true).open(fleet.worker.path(name)).expect("it was written");
        file.set_modified(UNIX_EPOCH + Duration::from_millis(mtime_ms)).expect("it is our own file");
        file.set_permissions(fs::Permissions::from_mode(mode)).expect("it is our own file");
    }
    fleet.worker.run(["put", "kit"]).expect(0);
    fleet.settled();
    fleet.assert_hold(&files);
    for node in fleet.nodes() {
        fs::create_dir(node.path("back")).expect("the folder is writable");
        for (object, (name, mode, mtime_ms)) in listing(node, "kit/").iter().zip(metas) {
            let meta = serde_json::json!({"size": files[name].len(), "mtime_ms": mtime_ms, "mode": mode});
            assert_eq!((&object["name"], &object["meta"]), (&name.into(), &meta), "{}", node.name());
            node.run(["get", name, "-o", "back"]).expect(0);
            let given = node.path("back").join(name).metadata().expect("it was given back");
            let since = given.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
            assert_eq!(since, Some(Duration::from_millis(mtime_ms)), "{}: {name}", node.name());
            assert_eq!(given.permissions().mode() & 0o7777, mode, "{}: {name}", node.name());
        }
    }
}

#[test]
fn an_object_with_nested_manifests_has_the_same_hash_everywhere() {
    let broker = mosquitto();
    let mut fleet = Fleet::new(broker.port());
    fleet.leecher.set("node", "subscribe", "[\"\"]");
    fleet.start();
    // more than one level of manifests lists: 2,048 blocks of 120 KiB; almost all of them are the same zeros
    let path = fleet.worker.path("huge");
    let mut file = File::create(&path).expect("the folder is writable");
    file.write_all(&noise(300_000, "head")).expect("the folder is writable");
    file.seek(SeekFrom::Start(2048 * 120 * 1024 + 5_000_000)).expect("files can have holes");
    file.write_all(&noise(300_000, "tail")).expect("the folder is writable");
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(&path).expect("it is there")).expect("it can be read");
    let expected = hasher.finalize();
    fleet.worker.run(["put", "huge"]).expect(0);
    fleet.settled();
    for node in fleet.nodes() {
        assert_eq!(hash_of(node, "huge"), expected, "{}", node.name());
        node.run(["verify"]).expect(0);
    }
    let sent = number(&fleet.worker.status(), "sync", "bytes_sent");
    assert!(sent < 1_500_000, "{sent} bytes were sent for 600,000 different ones and some manifests");
}

#[test]
fn leecher_and_worker_fetch_by_name_and_by_cid() {
    let broker = mosquitto();
    let mut fleet = Fleet::new(broker.port());
    fleet.start();
    let (a, b, c) = (noise(400_000, "a"), noise(90_000, "b"), b"c".to_vec());
    put(&fleet.master, "shelf/a", &a);
    put(&fleet.master, "shelf/b", &b);
    put(&fleet.master, "shelf/c", &c);
    let cid =
        |name| listed(&fleet.master, name).expect("it was put")["cid"].as_str().unwrap_or("").to_owned();
    for node in [&fleet.leecher, &fleet.worker] {
        assert_eq!(node.names(""), [""; 0], "nobody asked for anything");
        assert!(node.get("shelf/a").is_some_and(|got| got == a), "get brings what is not here");
        assert_eq!(node.names(""), ["shelf/a"]);
        node.run(["fetch", "shelf/c"]).expect(0);
        assert_eq!(node.names(""), ["shelf/a", "shelf/c"]);
        let by_cid = format!("cid/{}", cid("shelf/b"));
        node.run(["fetch", &cid("shelf/b")]).expect(0);
        assert_eq!(node.names("cid/"), [by_cid]);
        assert!(node.get(&cid("shelf/b")).is_some_and(|got| got == b));
        assert!(node.get(&cid("shelf/a")).is_some_and(|got| got == a), "a manifest's CID is the object's");
        let missing = node.run(["fetch", "shelf/none"]).expect(3);
        assert!(missing.stderr.contains("shelf/none"), "{}", missing.stderr);
        node.run(["get", "shelf/none", "-o", "-"]).expect(3);
        node.run(["verify"]).expect(0);
    }
    let a_block = larder_core::id::BlockId::of(&noise(10, "nobody has it")).to_string();
    fleet.leecher.run(["fetch", &a_block]).expect(3);
}

#[test]
fn a_damaged_block_of_a_leecher_or_worker_is_mended_by_fetch() {
    let broker = mosquitto();
    let mut fleet = Fleet::new(broker.port());
    fleet.leecher.set("node", "subscribe", "[\"\"]");
    fleet.start();
    let bytes = noise(700_000, "film");
    put(&fleet.worker, "film", &bytes);
    fleet.settled();
    // between the records' heads, in the middle of the object
    let wrong = &bytes[350_000..350_064];
    for node in [&mut fleet.leecher, &mut fleet.worker] {
        assert_eq!(node.stop(), 0);
        flip(&node.store(), wrong);
        node.start();
        let failed = node.run(["get", "film", "-o", "-"]).expect(4);
        assert!(failed.stderr.contains("fetch it from a peer"), "{}", failed.stderr);
        wait_for("there is a session with the master", || {
            let peers = node.status()["peers"].clone();
            (peers[0]["session"] == true).then_some(())
        });
        node.run(["fetch", "film"]).expect(0);
        assert!(node.get("film").is_some_and(|got| got == bytes), "{}", node.name());
        node.run(["verify"]).expect(0);
    }
}

/// Flips a bit of these bytes, wherever they stand in the log.
fn flip(store: &Path, bytes: &[u8]) {
    for entry in fs::read_dir(store).expect("the store is there").flatten() {
        let mut file = fs::read(entry.path()).expect("a file of the store can be read");
        let at = file.windows(bytes.len()).position(|window| window == bytes);
        if let Some(at) = at.filter(|_| entry.file_name().to_string_lossy().starts_with("segment-")) {
            file[at] ^= 1;
            return fs::write(entry.path(), file).expect("a file of the store can be written");
        }
    }
    panic!("nothing of it is in {}", store.display());
}

#[test]
fn new_versions_and_deletions_reach_everybody_who_has_the_name() {
    let broker = mosquitto();
    let mut fleet = Fleet::new(broker.port());
    fleet.leecher.set("node", "subscribe", "[\"log/\"]");
    fleet.start();
    for (writer, text) in [("cam", "one"), ("cam", "two"), ("hub", "three"), ("cam", "four")] {
        let node = fleet.nodes().into_iter().find(|node| node.name() == writer).expect("one of the three");
        put(node, "log/day", text.as_bytes());
        for node in fleet.nodes() {
            wait_for_bytes(node, "log/day", text.as_bytes());
        }
    }
    for remover in ["cam", "hub"] {
        let node = fleet.nodes().into_iter().find(|node| node.name() == remover).expect("one of the three");
        node.run(["rm", "log/day"]).expect(0);
        for node in fleet.nodes() {
            wait_for("the name is gone", || listed(node, "log/day").is_none().then_some(()));
            node.run(["get", "log/day", "-o", "-"]).expect(3);
        }
        put(&fleet.worker, "log/day", b"again");
        for node in fleet.nodes() {
            wait_for_bytes(node, "log/day", b"again");
        }
    }
    fleet.settled();
    for node in fleet.nodes() {
        assert_eq!(number(&node.status(), "sync", "conflicts"), 0, "{}", node.name());
    }
}

/// Checks that all hold the same two versions under `name` and its conflict name, and say so.
#[track_caller]
fn assert_conflict(nodes: &[&Node], name: &str, versions: [&[u8]; 2]) {
    let first = nodes[0];
    let names = first.names(name);
    assert_eq!(names.len(), 2, "{}: {names:?}", first.name());
    assert!(names[0] == name && names[1].starts_with(&format!("{name}.conflict-")), "{names:?}");
    let mut found: Vec<Vec<u8>> = names.iter().map(|name| first.get(name).expect("it is listed")).collect();
    for node in nodes {
        assert_eq!(node.names(name), names, "{}", node.name());
        for (name, bytes) in names.iter().zip(&found) {
            assert!(node.get(name).is_some_and(|got| got == *bytes), "{}: {name}", node.name());
        }
        let copy = listed(node, &names[1]).expect("it is listed");
        assert_eq!(copy["conflict_of"], name, "{}", node.name());
        node.run(["verify"]).expect(0);
    }
    let mut versions: Vec<Vec<u8>> = versions.map(<[u8]>::to_vec).to_vec();
    found.sort();
    versions.sort();
    assert!(found == versions, "both versions are kept");
}

#[track_caller]
fn assert_conflict_is_said(node: &Node, name: &str) {
    let status = node.status();
    assert!(number(&status, "sync", "conflicts") > 0, "{}: {}", node.name(), status["sync"]);
    assert_eq!(status["sync"]["conflicted_names"], serde_json::json!([name]), "{}", node.name());
    assert!(node.run(["status"]).expect(0).text().contains(name), "{}: status names it", node.name());
}

#[test]
fn a_name_written_on_two_workers_apart_keeps_both_versions_everywhere() {
    let mut broker = mosquitto();
    let port = broker.port();
    let mut nodes = [Node::new("hub", "master"), Node::new("cam1", "worker"), Node::new("cam2", "worker")];
    for node in &nodes {
        connect(node, port);
    }
    let [hub, cam1, cam2] = &nodes;
    befriend(hub, cam1);
    befriend(hub, cam2);
    broker.stop();
    nodes.iter_mut().for_each(Node::start);
    let [hub, cam1, cam2] = &nodes;
    let (one, two) = (noise(200_000, "one"), noise(300_000, "two"));
    put(cam1, "plan", &one);
    put(cam2, "plan", &two);
    broker.restart(true);
    settled(&[cam1, cam2, hub]);
    assert_conflict(&[hub, cam1, cam2], "plan", [&one, &two]);
    assert_conflict_is_said(hub, "plan");
    let writers = [cam1, cam2].map(|node| number(&node.status(), "sync", "conflicts"));
    assert!(writers.iter().any(|conflicts| *conflicts > 0), "a writer says so too: {writers:?}");
}

#[test]
fn a_name_written_on_worker_and_master_apart_keeps_both_versions_everywhere() {
    let mut broker = mosquitto();
    let mut fleet = Fleet::new(broker.port());
    fleet.leecher.set("node", "subscribe", "[\"\"]");
    fleet.start();
    put(&fleet.worker, "plan", b"the first");
    fleet.settled();
    broker.stop();
    put(&fleet.worker, "plan", b"the worker's");
    put(&fleet.master, "plan", b"the master's");
    broker.restart(true);
    fleet.settled();
    assert_conflict(&fleet.nodes(), "plan", [b"the worker's", b"the master's"]);
    assert_conflict_is_said(&fleet.master, "plan");
    assert_conflict_is_said(&fleet.worker, "plan");
}

#[test]
fn a_watched_file_is_deleted_only_when_the_master_has_it_on_flash() {
    let broker = mosquitto();
    let mut fleet = Fleet::new(broker.port());
    let (gone, kept) = (fleet.worker.path("outbox"), fleet.worker.path("kept"));
    for folder in [&gone, &kept] {
        fs::create_dir(folder).expect("the folder is writable");
    }
    let watch = |path: &Path, after: &str| {
        let prefix = path.file_name().and_then(|name| name.to_str()).expect("a plain name");
        format!("[[watch]]\npath = {path:?}\nprefix = \"{prefix}/\"\nsettle_s = 0\nafter = \"{after}\"\n")
    };
    fleet.worker.append(&watch(&gone, "delete-after-ack"));
    fleet.worker.append(&watch(&kept, "keep"));
    fleet.worker.start();
    let files = contents([("a", noise(500_000, "a")), ("sub/b", b"b".to_vec()), ("empty", Vec::new())]);
    write_files(&gone, &files);
    write_files(&kept, &files);
    for (name, bytes) in &files {
        wait_for_bytes(&fleet.worker, &format!("outbox/{name}"), bytes);
        wait_for_bytes(&fleet.worker, &format!("kept/{name}"), bytes);
    }
    for name in files.keys() {
        assert!(gone.join(name).exists(), "{name} is not on the master yet");
    }
    fleet.master.start();
    for name in files.keys() {
        wait_for("it is deleted", || (!gone.join(name).exists()).then_some(()));
    }
    fleet.leecher.start();
    fleet.settled();
    assert_eq!(number(&fleet.worker.status(), "ingest", "deleted"), 3);
    let mut everything = Contents::new();
    for (name, bytes) in &files {
        everything.insert(format!("outbox/{name}"), bytes.clone());
        everything.insert(format!("kept/{name}"), bytes.clone());
    }
    assert_holds(&fleet.master, &everything);
    assert_holds(&fleet.worker, &everything);
    for (name, bytes) in &files {
        assert!(fs::read(kept.join(name)).is_ok_and(|read| read == *bytes), "{name} is kept");
    }
}

#[test]
fn a_master_commands_other_nodes_over_mqtt_and_nobody_else_does() {
    let broker = mosquitto();
    let mut fleet = Fleet::new(broker.port());
    fleet.start();
    put(&fleet.worker, "a", b"a");
    put(&fleet.worker, "b", &noise(200_000, "b"));
    let remote = |arguments: &[&str]| {
        fleet.master.run(["--json", "--node", "cam"].iter().chain(arguments)).expect(0).json()
    };
    let status = remote(&["status"]).pop().expect("status has an answer");
    assert_eq!((&status["node"], &status["role"]), (&"cam".into(), &"worker".into()));
    let page = remote(&["ls"]).pop().expect("ls has an answer");
    let names: Vec<&Value> = page["objects"].as_array().expect("a list").iter().map(|o| &o["name"]).collect();
    assert_eq!(names, ["a", "b"]);
    let verified = remote(&["verify"]).pop().expect("verify has an answer");
    assert!(verified["blocks"].as_u64().is_some_and(|blocks| blocks > 2), "{verified}");
    let rebuilt = remote(&["index", "rebuild"]).pop().expect("a rebuild has an answer");
    assert_eq!((&rebuilt["answer"], &rebuilt["names"]), (&"rebuilt".into(), &2.into()));
    put(&fleet.master, "shelf/c", &noise(300_000, "c"));
    let fetched = remote(&["fetch", "shelf/c"]).pop().expect("a fetch has an answer");
    assert_eq!(fetched["object"]["name"], "shelf/c", "{fetched}");
    remote(&["rm", "shelf/c"]);
    let cid = listed(&fleet.worker, "a").expect("it was put")["cid"].as_str().unwrap_or("").to_owned();
    remote(&["rm", "a"]);
    assert_eq!(fleet.worker.names(""), ["b"]);
    let erased = remote(&["rm", &cid]).pop().expect("rm of a CID has an answer");
    assert_eq!((&erased["answer"], &erased["blocks"]), (&"erased".into(), &1.into()));
    fleet.master.run(["--node", "cam", "rm", "a"]).expect(3);
    let unknown = fleet.master.run(["--node", "nobody", "status"]).expect(2);
    assert!(unknown.stderr.contains("[[peer]]"), "{}", unknown.stderr);
    for node in [&fleet.worker, &fleet.leecher] {
        let refused = node.run(["--node", "hub", "status"]).expect(6);
        assert!(refused.stderr.contains("may not command"), "{}", refused.stderr);
    }
}

#[test]
fn news_waits_for_a_radio_that_is_awake_as_the_profile_says() {
    let broker = mosquitto();
    let mut fleet = Fleet::new(broker.port());
    let patient =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../power-profiles/balanced.toml"));
    let patient: String = patient
        .expect("the profile is there")
        .lines()
        .map(|line| match line.split_once('=').map(|(key, _)| key.trim()) {
            Some("name") => "name = \"patient\"\n".to_owned(),
            Some("send_age_ms") => "send_age_ms = 3600000\n".to_owned(),
            _ => format!("{line}\n"),
        })
        .collect();
    fs::write(fleet.worker.path("patient.toml"), patient).expect("the folder is writable");
    fleet.worker.set("node", "profile", "\"patient.toml\"");
    fleet.start();
    put(&fleet.worker, "news", b"news");
    for _ in 0..20 {
        assert!(listed(&fleet.master, "news").is_none(), "the radio was woken for it");
    }
    // a command wakes it, and what waits goes along
    fleet.master.run(["--node", "cam", "status"]).expect(0);
    wait_for_bytes(&fleet.master, "news", b"news");
}

#[test]
fn a_listing_over_mqtt_is_whole_however_long_the_names_are() {
    let broker = mosquitto();
    let mut fleet = Fleet::new(broker.port());
    let long = |index: usize| format!("{index:03}/{0}/{0}/{0}/{index:03}", "n".repeat(240));
    let files = (0..200).map(|index| (format!("tree/{}", long(index)), index.to_string().into_bytes()));
    let files: Contents = files.collect();
    write_files(fleet.worker.folder(), &files);
    fleet.start();
    fleet.worker.run(["put", "tree"]).expect(0);
    let listed = fleet.master.run(["--node", "cam", "ls", "tree/"]).expect(0).text();
    assert!(listed.lines().eq(files.keys().map(String::as_str)), "{listed}");
    let pages = fleet.master.run(["--json", "--node", "cam", "ls"]).expect(0).json();
    assert!(pages.len() > 4, "{} pages: more than the names alone would fill", pages.len());
}

#[test]
fn a_node_with_commands_off_refuses_them_in_plain_words() {
    let broker = mosquitto();
    let mut fleet = Fleet::new(broker.port());
    fleet.worker.set("node", "commands", "false");
    fleet.start();
    put(&fleet.worker, "a", b"a");
    let refused = fleet.master.run(["--node", "cam", "rm", "a"]).expect(6);
    assert!(refused.stderr.contains("switched off"), "{}", refused.stderr);
    assert_eq!(fleet.worker.names(""), ["a"]);
    let sync = &fleet.worker.status()["sync"];
    assert_eq!(sync["messages_dropped"], 1, "{sync}");
    assert!(sync["last_problem"].as_str().is_some_and(|why| why.contains("switched off")), "{sync}");
}

/// The retained state of a node, as anybody sees it who subscribes now.
fn presence(port: u16, node: &str) -> Option<String> {
    let topic = format!("larder/1/home/{node}/state");
    let port = port.to_string();
    let mut command = Command::new("mosquitto_sub");
    command.args(["-V", "mqttv5", "-h", "127.0.0.1", "-p", &port, "-t", &topic, "-C", "1", "-W", "2"]);
    let output = command.output().expect("these tests need mosquitto_sub: apt-get install mosquitto-clients");
    let state: Value = serde_json::from_slice(&output.stdout).ok()?;
    state["state"].as_str().map(str::to_owned)
}

#[test]
fn presence_is_online_then_offline_when_stopped_and_lost_when_killed() {
    let broker = mosquitto();
    let mut fleet = Fleet::new(broker.port());
    fleet.start();
    let sees = |node: &str, state: &str| {
        wait_for(&format!("{node} is {state}"), || {
            presence(broker.port(), node).filter(|seen| seen == state)
        });
    };
    for node in ["hub", "cam", "kiosk"] {
        sees(node, "online");
    }
    assert_eq!(fleet.worker.stop(), 0);
    assert_eq!(presence(broker.port(), "cam").as_deref(), Some("offline"), "said before the process ends");
    fleet.leecher.kill();
    sees("kiosk", "lost");
    fleet.leecher.start();
    sees("kiosk", "online");
}

#[test]
fn fetches_without_a_link_wait_up_to_the_bound_and_are_answered_later() {
    let mut broker = mosquitto();
    let mut fleet = Fleet::new(broker.port());
    fleet.start();
    put(&fleet.master, "wanted", b"wanted");
    let kept = noise(300_000, "kept");
    put(&fleet.master, "kept", &kept);
    fleet.leecher.run(["fetch", "kept"]).expect(0);
    let waits = |node: &Node| {
        node.wait_status("the link is down", |status| (status["link"]["up"] == false).then_some(()))
    };
    broker.stop();
    for (node, bound) in [(&fleet.leecher, 256), (&fleet.worker, 16)] {
        waits(node);
        let queued = node.json(["fetch", "wanted"]);
        assert_eq!(queued, [serde_json::json!({"answer": "queued", "waiting": 1})]);
        let unreachable = node.run(["get", "wanted", "-o", "-"]).expect(7);
        assert!(unreachable.stderr.contains("the broker at"), "why: {}", unreachable.stderr);
        let others = (1..bound).map(|number| format!("none/{number}"));
        let others: Vec<String> = std::iter::once("fetch".to_owned()).chain(others).collect();
        node.run(&others).expect(0);
        let refused = node.run(["fetch", "one/more"]).expect(8);
        assert!(refused.stderr.contains(&format!("{bound} requests wait")), "{}", refused.stderr);
    }
    assert!(fleet.leecher.get("kept") == Some(kept.clone()), "what is here is served without a broker");
    let no_master = fleet.master.run(["fetch", "other"]).expect(3);
    assert!(no_master.stderr.contains("no master"), "{}", no_master.stderr);
    broker.restart(true);
    for (node, names) in [(&fleet.leecher, &["kept", "wanted"][..]), (&fleet.worker, &["wanted"])] {
        wait_for_bytes(node, "wanted", b"wanted");
        assert_eq!(node.names(""), names);
    }
    broker.stop();
    fleet.leecher.restart();
    waits(&fleet.leecher);
    assert!(fleet.leecher.get("kept") == Some(kept), "after a start without a broker too");
}

#[test]
fn fetches_that_wait_for_a_master_that_is_down_are_all_answered() {
    let broker = mosquitto();
    let mut fleet = Fleet::new(broker.port());
    fleet.start();
    let names: Vec<String> = (0..100).map(|index| format!("own/{index:02}")).collect();
    let files: Contents = names.iter().map(|name| (name.clone(), noise(9_000, name))).collect();
    write_files(fleet.master.folder(), &files);
    fleet.master.run(["put", "own"]).expect(0);
    assert_eq!(fleet.master.stop(), 0);
    fleet.leecher.wait_status("the session is over", |status| {
        let peers = status["peers"].as_array()?;
        peers.iter().all(|peer| peer["session"] == false).then_some(())
    });
    let fetch = std::iter::once("fetch").chain(names.iter().map(String::as_str));
    let said = fleet.leecher.run(fetch).expect(0).text();
    assert!(said.contains("100 requests waiting"), "{said}");
    fleet.master.start();
    wait_for("all have come", || (fleet.leecher.names("").len() == names.len()).then_some(()));
    assert_holds(&fleet.leecher, &files);
}

#[test]
fn rm_on_a_leecher_drops_its_copy_alone_which_can_be_had_again() {
    let broker = mosquitto();
    let mut fleet = Fleet::new(broker.port());
    fleet.leecher.set("node", "subscribe", "[\"maps/\"]");
    fleet.start();
    let (map, film) = (noise(50_000, "map"), noise(300_000, "film"));
    put(&fleet.master, "maps/a", &map);
    put(&fleet.master, "film", &film);
    wait_for_bytes(&fleet.leecher, "maps/a", &map);
    assert!(fleet.leecher.get("film").is_some_and(|got| got == film));
    fleet.leecher.run(["rm", "maps/a", "film"]).expect(0);
    assert_eq!(fleet.leecher.names(""), [""; 0]);
    fleet.leecher.run(["rm", "film"]).expect(3);
    let said = fleet.leecher.run_with(["put", "--stdin", "own"], b"a leecher takes nothing in").expect(6);
    assert!(said.stderr.contains("leecher"), "{}", said.stderr);
    fleet.leecher.restart();
    fleet.settled();
    assert_eq!(fleet.master.names(""), ["film", "maps/a"], "what others have stays");
    assert!(fleet.leecher.get("film").is_some_and(|got| got == film));
    fleet.leecher.run(["fetch", "maps/a"]).expect(0);
    assert_eq!(fleet.leecher.names(""), ["film", "maps/a"]);
    let newer = noise(60_000, "newer");
    put(&fleet.master, "maps/a", &newer);
    wait_for_bytes(&fleet.leecher, "maps/a", &newer);
}

/// The whole job once, over whatever the nodes are joined by.
fn do_the_job(fleet: &mut Fleet) {
    fleet.leecher.set("node", "subscribe", "[\"maps/\"]");
    fleet.start();
    let files = contents([
        ("maps/a", noise(1_500_000, "a")),
        ("maps/empty", Vec::new()),
        ("other/b", noise(300_000, "b")),
    ]);
    for (name, bytes) in &files {
        put(&fleet.worker, name, bytes);
    }
    fleet.settled();
    assert_holds(&fleet.master, &files);
    fleet.leecher.run(["fetch", "other/b"]).expect(0);
    assert_holds(&fleet.leecher, &files);
    fleet.master.run(["--node", "cam", "rm", "maps/a"]).expect(0);
    fleet.settled();
    let rest: Contents = files.into_iter().filter(|(name, _)| name != "maps/a").collect();
    for node in fleet.nodes() {
        wait_for("the deletion arrives", || listed(node, "maps/a").is_none().then_some(()));
        assert_holds(node, &rest);
    }
}

#[test]
fn the_job_is_done_over_tls_with_client_certificates_and_the_packaged_rules() {
    let certificates = Certificates::new();
    let broker = Mosquitto::start(Config { tls: Some(&certificates), ..Config::default() });
    let mut fleet = Fleet::without_broker();
    for node in fleet.nodes() {
        connect_by_tls(node, broker.port(), &certificates);
    }
    do_the_job(&mut fleet);
    assert!(!broker.log().contains("Denied"), "the rules allow all a node does: {}", broker.log());
}

#[test]
fn the_job_is_done_over_the_masters_embedded_broker() {
    let port = free_port();
    let mut fleet = Fleet::new(port);
    fleet.master.set("mqtt", "embedded_broker", "true");
    do_the_job(&mut fleet);
    assert_eq!(fleet.master.stop(), 0);
    fleet.worker.wait_status("the broker is gone", |status| (status["link"]["up"] == false).then_some(()));
    put(&fleet.worker, "maps/late", b"late");
    fleet.master.start();
    for node in fleet.nodes() {
        wait_for_bytes(node, "maps/late", b"late");
    }
}

#[test]
fn the_job_is_done_over_the_masters_embedded_broker_with_tls_on_every_address() {
    let (certificates, port) = (Certificates::new(), free_port());
    let mut fleet = Fleet::without_broker();
    for node in fleet.nodes() {
        connect_by_tls(node, port, &certificates);
    }
    // over the same files: one certificate for both ends
    certificates.node_with_broker(fleet.master.name());
    fleet.master.set("mqtt", "embedded_broker", "true");
    fleet.master.set("mqtt", "listen", &format!("\"0.0.0.0:{port}\""));
    do_the_job(&mut fleet);
    let plain = Node::new("van", "worker");
    befriend(&fleet.master, &plain);
    connect(&plain, port);
    put(&plain, "maps/plain", b"without TLS");
    let mut plain = plain;
    plain.start();
    plain.wait_status("it is told why", |status| {
        (status["link"]["reason"].as_str()? != "not connected yet").then_some(())
    });
    assert_eq!(number(&plain.status(), "link", "connects"), 0);
}

#[test]
fn a_worker_fetches_what_it_subscribes_to_and_other_prefixes_after_sighup() {
    let broker = mosquitto();
    let mut fleet = Fleet::new(broker.port());
    fleet.worker.set("node", "subscribe", "[\"photos/\"]");
    fleet.start();
    for name in ["photos/a", "docs/b", "photographs"] {
        put(&fleet.master, name, name.as_bytes());
    }
    wait_for("what it subscribes to comes", || {
        fleet.worker.names("").contains(&"photos/a".into()).then_some(())
    });
    fleet.settled();
    assert_holds(&fleet.worker, &contents([("photos/a", b"photos/a".to_vec())]));
    fleet.worker.set("node", "subscribe", "[\"docs/\"]");
    fleet.worker.signal(Signal::HUP);
    wait_for("the other prefix comes", || fleet.worker.names("").contains(&"docs/b".into()).then_some(()));
    put(&fleet.master, "photos/c", b"no longer wanted");
    fleet.settled();
    let held = contents([("photos/a", b"photos/a".to_vec()), ("docs/b", b"docs/b".to_vec())]);
    assert_holds(&fleet.worker, &held);
}

/// Has a node trust another one instead.
fn trust_instead(node: &Node, one: &Node, other: &Node) {
    let text = fs::read_to_string(node.config()).expect("a configuration");
    assert!(text.contains(one.stanza()), "{text}");
    fs::write(node.config(), text.replace(one.stanza(), other.stanza())).expect("a configuration");
    node.signal(Signal::HUP);
}

#[test]
fn a_master_of_another_key_or_name_is_followed_by_sighup_without_a_restart() {
    let broker = mosquitto();
    let mut worker = Node::new("cam", "worker");
    let [before, mut rekeyed, mut renamed] = ["hub", "hub", "attic"].map(|name| Node::new(name, "master"));
    connect(&worker, broker.port());
    worker.trust(&before);
    for master in [&rekeyed, &renamed] {
        connect(master, broker.port());
        master.trust(&worker);
    }
    rekeyed.start();
    worker.start();
    put(&worker, "kept", b"here all the time");
    worker.wait_status("a hello went out", |status| {
        (number(status, "sync", "messages_sent") > 0).then_some(())
    });
    trust_instead(&worker, &before, &rekeyed);
    wait_for_bytes(&rekeyed, "kept", b"here all the time");
    assert_eq!(rekeyed.stop(), 0);
    trust_instead(&worker, &rekeyed, &renamed);
    // only a new connection makes the broker tell of the state of this one
    worker.wait_status("it connects again", |status| (number(status, "link", "connects") == 2).then_some(()));
    renamed.start();
    wait_for_bytes(&renamed, "kept", b"here all the time");
}
