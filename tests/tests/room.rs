//! Room: what nothing leads to any more gives its place to what comes, within the limit.

use larder_tests::broker::{Config, Mosquitto};
use larder_tests::fleet::{Fleet, number, put};
use larder_tests::node::{Node, noise};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;

const LIMIT_BYTES: u64 = 64_000_000;
const OBJECT_BYTES: usize = 6_000_000;

#[test]
fn twice_the_limit_passes_through_three_names_and_the_last_versions_are_whole() {
    let mut node = Node::new("hub", "master");
    node.set("storage", "limit", "\"64 MB\"");
    node.set("storage", "segment", "\"1 MiB\"");
    node.start();
    let mut last = [const { Vec::new() }; 3];
    for version in 0..22_usize {
        let bytes = noise(OBJECT_BYTES, &format!("version {version}"));
        let name = format!("name{}", version % 3);
        node.run_with(["put", "--stdin", &name], &bytes).expect(0);
        last[version % 3] = bytes;
        let used = node.status()["store"]["used_bytes"].as_u64().expect("a number");
        assert!(used <= LIMIT_BYTES, "{used} bytes are used after version {version}");
    }
    for (index, bytes) in last.iter().enumerate() {
        assert!(node.get(&format!("name{index}")).as_ref() == Some(bytes), "name{index} is not what was put");
    }
    node.run(["verify"]).expect(0);
    assert!(node.log().contains("cleaning gave"), "{}", node.log());
    assert_eq!(node.stop(), 0);
}

/// A node with small segments, so that little garbage can be given back.
fn small(node: &Node, limit: &str) {
    node.set("storage", "limit", &format!("{limit:?}"));
    node.set("storage", "segment", "\"1 MiB\"");
}

/// Bytes in use, without the files kept for the next segments.
fn in_use(status: &Value) -> u64 {
    number(status, "store", "used_bytes") - number(status, "store", "spare_bytes")
}

#[test]
fn a_leecher_drops_the_oldest_past_its_watermark_and_can_have_it_again() {
    let broker = Mosquitto::start(Config::default());
    let mut fleet = Fleet::new(broker.port());
    let (limit, watermark) = (40_000_000, 20_000_000);
    small(&fleet.leecher, "40 MB");
    fleet.leecher.set("storage", "clean_watermark_percent", "50");
    fleet.leecher.set("node", "subscribe", "[\"film/\"]");
    fleet.start();
    let (count, bytes) = (12, 4_000_000);
    let film = |index: usize| noise(bytes, &format!("film {index}"));
    for index in 0..count {
        put(&fleet.worker, &format!("film/{index:02}"), &film(index));
        fleet.settled();
        let used = number(&fleet.leecher.status(), "store", "used_bytes");
        assert!(used <= limit, "{used} bytes are used after film {index}");
    }
    let all: Vec<String> = (0..count).map(|index| format!("film/{index:02}")).collect();
    fleet
        .leecher
        .wait_status("it is below its watermark again", |status| (in_use(status) <= watermark).then_some(()));
    let kept = fleet.leecher.names("film/");
    assert!(!kept.is_empty() && kept.len() < count, "{kept:?}");
    assert_eq!(kept, all[count - kept.len()..], "the newest are kept");
    assert!(fleet.leecher.log().contains("film/00 was dropped to make room"), "{}", fleet.leecher.log());
    for (index, name) in all.iter().enumerate().skip(count - kept.len()) {
        assert!(fleet.leecher.get(name) == Some(film(index)), "{name}");
    }
    for node in [&fleet.master, &fleet.worker] {
        assert_eq!(node.names("film/"), all, "{}: an eviction is no deletion", node.name());
    }
    assert!(fleet.leecher.get("film/00") == Some(film(0)), "it can be fetched again");
    fleet.leecher.run(["verify"]).expect(0);
}

#[test]
fn a_node_that_keeps_all_gives_room_back_at_its_period_and_not_before() {
    let node = |period_s: &str| {
        let mut node = Node::new("hub", "master");
        small(&node, "200 MB");
        node.set("storage", "clean_period_s", period_s);
        node.start();
        for index in 0..4 {
            put(&node, &format!("o/{index}"), &noise(5_000_000, &index.to_string()));
        }
        node.run(["rm", "o/0", "o/1", "o/2"]).expect(0);
        node
    };
    let (often, seldom) = (node("1"), node("3600"));
    often.wait_status("the room is given back", |status| (in_use(status) < 12_000_000).then_some(()));
    assert!(in_use(&seldom.status()) > 20_000_000, "far below its watermark it waits for its period");
    assert!(often.get("o/3") == Some(noise(5_000_000, "3")));
    often.run(["verify"]).expect(0);
    let in_force: BTreeSet<String> =
        often.run(["status"]).expect(0).text().lines().map(str::to_owned).collect();
    let says = |key: &str| in_force.iter().any(|line| line.contains(key) && line.contains("larder.toml"));
    assert!(says("clean_period_s"), "{in_force:?}");
}

/// The files of the store whose names begin so, by what stays theirs when they are renamed.
fn inodes(node: &Node, prefix: &str) -> BTreeSet<u64> {
    let files = fs::read_dir(node.store()).expect("the store is there").map(|file| file.expect("a file"));
    let named = files.filter(|file| file.file_name().to_string_lossy().starts_with(prefix));
    named.filter_map(|file| Some(file.metadata().ok()?.ino())).collect()
}

#[test]
fn deleted_names_give_their_files_to_what_comes_next_and_status_counts_them() {
    let mut node = Node::new("hub", "master");
    node.set("storage", "limit", "\"64 MB\"");
    node.set("storage", "segment", "\"1 MiB\"");
    node.start();
    let mut spares = BTreeSet::new();
    let mut version = 0;
    // deleted until the limit makes the node clean, then put until a spare is a segment again
    while spares.intersection(&inodes(&node, "segment-")).count() == 0 {
        assert!(version < 40, "no spare came back: {}", node.log());
        let name = format!("name{version}");
        node.run_with(["put", "--stdin", &name], &noise(OBJECT_BYTES, &name)).expect(0);
        spares.append(&mut inodes(&node, "spare-"));
        let store = &node.status()["store"];
        let (count, bytes) = (store["spare_segments"].as_u64(), store["spare_bytes"].as_u64());
        assert!(count <= Some(8) && bytes <= Some(LIMIT_BYTES / 8 + (1 << 20)), "{store}");
        if count > Some(0) {
            let said = node.run(["status"]).expect(0).text();
            assert!(said.contains(" spare"), "{said}");
        }
        if version > 0 {
            node.run(["rm", &format!("name{}", version - 1)]).expect(0);
        }
        version += 1;
    }
    let name = format!("name{}", version - 1);
    assert!(node.get(&name).as_ref() == Some(&noise(OBJECT_BYTES, &name)), "{name} is not what was put");
    node.run(["verify"]).expect(0);
    node.kill();
    node.start();
    assert!(node.get(&name).as_ref() == Some(&noise(OBJECT_BYTES, &name)), "{name} is not what was put");
    assert_eq!(node.stop(), 0);
}
