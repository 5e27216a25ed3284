//! A machine without a clock of its own wakes up in 1970: what it takes in is safe and in order, and what the
//! clock stops is said and goes on when the clock is right.
//!
//! `libfaketime` gives one agent a wall clock of its own; its monotonic clock runs as it is.

use larder_tests::broker::{Certificates, Config, Mosquitto};
use larder_tests::fleet::{befriend, connect, connect_by_tls, put, settled};
use larder_tests::node::{Node, noise, skip, wait_for};
use std::fs;
use std::path::{Path, PathBuf};

const BOOT: &str = "@1970-01-01 00:00:07";
const RIGHT: &str = "+0";

/// Where Debian puts the library on this machine.
fn library() -> Option<PathBuf> {
    let places = fs::read_dir("/usr/lib").ok()?.flatten().map(|entry| entry.path());
    let library = |place: PathBuf| place.join("faketime/libfaketime.so.1");
    places.map(library).find(|library| library.exists())
}

/// Gives a node's next processes a wall clock, which [`set_clock`] steps while they run.
fn with_clock(node: &mut Node, library: &Path, clock: &str) {
    set_clock(node, clock);
    let file = node.path("clock");
    node.variable("LD_PRELOAD", library.to_str().expect("a plain path"));
    node.variable("FAKETIME_TIMESTAMP_FILE", file.to_str().expect("a plain path"));
    node.variable("FAKETIME_NO_CACHE", "1");
    node.variable("FAKETIME_DONT_FAKE_MONOTONIC", "1");
}

fn set_clock(node: &Node, clock: &str) {
    // in one step, so that nobody reads half of it
    fs::write(node.path("clock.new"), clock).expect("the folder is writable");
    fs::rename(node.path("clock.new"), node.path("clock")).expect("the folder is writable");
}

fn pair() -> (Node, Node) {
    let (master, worker) = (Node::new("hub", "master"), Node::new("cam", "worker"));
    befriend(&master, &worker);
    (master, worker)
}

#[test]
fn a_worker_that_wakes_up_in_1970_syncs_and_its_versions_stay_in_order() {
    let Some(library) = library() else {
        return skip("a clock in 1970", "no libfaketime here");
    };
    let broker = Mosquitto::start(Config::default());
    let (mut master, mut worker) = pair();
    connect(&master, broker.port());
    connect(&worker, broker.port());
    with_clock(&mut worker, &library, RIGHT);
    master.start();
    worker.start();
    put(&worker, "log", b"before the restart");
    settled(&[&worker, &master]);
    assert_eq!(worker.stop(), 0);

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
fn tls_in_1970_says_what_is_wrong_and_the_link_comes_up_when_the_clock_does() {
    let Some(library) = library() else {
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
