//! A machine without a clock of its own wakes up in 1970: what it takes in is safe and in order, and what the
//! clock stops is said and goes on when the clock is right.

use larder_tests::broker::{Certificates, Config, Mosquitto};
use larder_tests::clock::{self, set_clock, with_clock};
use larder_tests::fleet::{befriend, connect, connect_by_tls, put, settled};
use larder_tests::node::{Node, noise, skip, wait_for};
use std::fs;
use std::path::Path;

const BOOT: &str = "@1970-01-01 00:00:07";
const RIGHT: &str = "+0";

fn pair() -> (Node, Node) {
    let (master, worker) = (Node::new("hub", "master"), Node::new("cam", "worker"));
    befriend(&master, &worker);
    (master, worker)
}

/// A pair whose worker has put this with its clock right, and was stopped when the master had it.
fn stopped_behind(broker: &Mosquitto, library: &Path, name: &str, bytes: &[u8]) -> (Node, Node) {
    let (mut master, mut worker) = pair();
    connect(&master, broker.port());
    connect(&worker, broker.port());
    with_clock(&mut worker, library, RIGHT);
    master.start();
    worker.start();
    put(&worker, name, bytes);
    settled(&[&worker, &master]);
    assert_eq!(worker.stop(), 0);
    (master, worker)
}

#[test]
fn a_worker_that_wakes_up_in_1970_syncs_and_its_versions_stay_in_order() {
    let Some(library) = clock::library() else {
        return skip("a clock in 1970", "no libfaketime here");
    };
    let broker = Mosquitto::start(Config::default());
    let (master, mut worker) = stopped_behind(&broker, &library, "log", b"before the restart");

    set_clock(&worker, BOOT);
    worker.start();
    put(&worker, "log", b"newer, and dated 1970");
    put(&worker, "fresh", &noise(300_000, "1970"));
    settled(&[&worker, &master]);
    for node in [&worker, &master] {
        assert_eq!(node.get("log").as_deref(), Some(&b"newer, and dated 1970"[..]), "{}", node.name());
        assert!(node.get("fresh").is_some_and(|got| got == noise(300_000, "1970")), "{}", node.name());
        assert_eq!(node.status()["sync"]["conflicts"], 0, "{}", node.name());
    }
    master.run(["--node", "cam", "status"]).expect(0);

    set_clock(&worker, RIGHT);
    put(&worker, "log", b"the clock is right");
    settled(&[&worker, &master]);
    assert_eq!(master.get("log").as_deref(), Some(&b"the clock is right"[..]));
    master.run(["--node", "cam", "rm", "fresh"]).expect(0);
    wait_for("the deletion came back", || (master.names("") == ["log"]).then_some(()));
}

#[test]
fn a_worker_that_lost_its_store_and_wakes_up_in_1970_keeps_what_it_writes_beside_what_it_wrote() {
    let Some(library) = clock::library() else {
        return skip("a lost store in 1970", "no libfaketime here");
    };
    let broker = Mosquitto::start(Config::default());
    let (master, mut worker) =
        stopped_behind(&broker, &library, "DCF0001.jpg", b"before the card was written anew");

    fs::remove_dir_all(worker.store()).expect("the store is there");
    set_clock(&worker, BOOT);
    worker.start();
    put(&worker, "DCF0001.jpg", b"after it");
    for node in [&worker, &master] {
        let names = wait_for("both are there", || Some(node.names("")).filter(|names| names.len() == 2));
        let mut contents: Vec<_> = names.iter().filter_map(|name| node.get(name)).collect();
        contents.sort();
        assert_eq!(contents, [&b"after it"[..], b"before the card was written anew"], "{}", node.name());
        assert!(names.iter().any(|name| name.starts_with("DCF0001.jpg.conflict-")), "{names:?}");
    }
    settled(&[&worker, &master]);
}

#[test]
fn tls_in_1970_says_what_is_wrong_and_the_link_comes_up_when_the_clock_does() {
    let Some(library) = clock::library() else {
        return skip("a clock in 1970 with TLS", "no libfaketime here");
    };
    let certificates = Certificates::new();
    let broker = Mosquitto::start(Config { tls: Some(&certificates), ..Config::default() });
    let (mut master, mut worker) = pair();
    connect_by_tls(&master, broker.port(), &certificates);
    connect_by_tls(&worker, broker.port(), &certificates);
    with_clock(&mut worker, &library, BOOT);
    master.start();
    worker.start();
    put(&worker, "early", b"taken before the clock was set");
    worker.wait_status("the link says why it is down", |status| {
        status["link"]["reason"].as_str().filter(|reason| reason.contains("clock")).map(|_| ())
    });
    set_clock(&worker, RIGHT);
    settled(&[&worker, &master]);
    assert_eq!(master.get("early").as_deref(), Some(&b"taken before the clock was set"[..]));
}
