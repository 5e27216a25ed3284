//! Damage to one node of a fleet in mid-transfer: once it has started again, all come to hold the same bytes, or
//! say which block nobody has.

#![expect(clippy::unwrap_used, reason = "a test that finds anything else has failed")]

use larder_core::role::Role;
use larder_tests::broker::{Config, Mosquitto, Proxy};
use larder_tests::fleet::{Contents, Fleet, number, put};
use larder_tests::node::{Node, noise, wait_for};
use larder_tests::store::segments;
use larder_tests::wire;
use serde_json::json;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const OBJECT_BYTES: usize = 4_000_000;
/// Of the object, when the victim's link stands still: more than a window of the balanced profile.
const HELD_UP_BYTES: u64 = 2_500_000;

/// Does something to a store; the other one belongs to somebody else.
type Harm = fn(&Path, &Path);

const REBUILT: &str = "the index was made again from the log";
const TORN: &str =
    "the last batch is not whole: torn before it was acknowledged, or damaged since; it was dropped";

/// What happens to a store, how, and what its agent then says.
const HARMS: [(&str, Harm, &str); 6] = [
    ("index deleted", |store, _| fs::remove_file(store.join("index.redb")).unwrap(), REBUILT),
    ("index truncated", |store, _| open(&store.join("index.redb")).set_len(10_000).unwrap(), REBUILT),
    (
        "index zeroed",
        |store, _| {
            let length = store.join("index.redb").metadata().unwrap().len();
            File::create(store.join("index.redb")).unwrap().set_len(length).unwrap();
        },
        REBUILT,
    ),
    (
        "index of another store",
        |store, other| {
            fs::copy(other.join("index.redb"), store.join("index.redb")).unwrap();
        },
        REBUILT,
    ),
    (
        "last batch cut off",
        |store, _| {
            let (path, end) = end_of_log(store);
            open(&path).set_len(end - 50).unwrap();
        },
        TORN,
    ),
    (
        "last batch torn into zeros",
        |store, _| {
            let (path, end) = end_of_log(store);
            open(&path).write_all_at(&[0; 50], end - 50).unwrap();
        },
        TORN,
    ),
];

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

/// The newest segment, and where the last batch in it ends: with a commit record of 56 bytes.
fn end_of_log(store: &Path) -> (PathBuf, u64) {
    let newest = segments(store).pop().unwrap();
    let bytes = fs::read(&newest).unwrap();
    (newest, bytes.iter().rposition(|byte| *byte != 0).unwrap() as u64 + 1)
}

/// A fleet in which the leecher takes all and the victim's link goes through a proxy.
struct World {
    _broker: Mosquitto,
    proxy: Proxy,
    fleet: Fleet,
    victim: Role,
}

impl World {
    fn new(victim: Role) -> World {
        let broker = Mosquitto::start(Config { persistence: true, ..Config::default() });
        let (fleet, proxy) = Fleet::with_proxy(broker.port(), victim);
        World { _broker: broker, proxy, fleet, victim }
    }

    /// Has the worker put an object, and kills the victim when a part of it is on its flash and more under way.
    fn killed_in_mid_transfer(&mut self, name: &str, bytes: &[u8]) {
        let node = self.fleet.of_role(self.victim);
        let blocks = number(&node.status(), "store", "blocks");
        self.proxy.stall_after_bytes(HELD_UP_BYTES);
        put(&self.fleet.worker, name, bytes);
        wait_for("the transfer is held up", || self.proxy.is_stalled().then_some(()));
        let node = self.fleet.of_role(self.victim);
        if self.victim == Role::Worker {
            // one that is not acknowledged comes last
            let mut stream = node.connect();
            let batches = number(&node.status(), "store", "batches");
            let meta = json!({"size": 1_000_000, "mtime_ms": 0, "mode": 0o644});
            wire::ask(&mut stream, 1, &json!({"do": "put", "name": "half", "meta": meta})).unwrap();
            wire::data(&mut stream, 1, &noise(900_000, &format!("half of {name}"))).unwrap();
            node.wait_status("half of it is on flash", |status| {
                (number(status, "store", "batches") > batches).then_some(())
            });
        } else {
            node.wait_status("a part is on flash", |status| {
                (number(status, "store", "blocks") > blocks + 10).then_some(())
            });
            assert!(!node.names("").contains(&name.to_owned()), "it is not in mid-transfer");
        }
        node.kill();
    }

    fn start_again(&mut self) {
        self.proxy.unstall();
        self.fleet.of_role(self.victim).start();
    }
}

fn damaged_in_mid_transfer(victim: Role) {
    let mut world = World::new(victim);
    let other = Node::new("other", "worker");
    put(&other, "other", b"other");
    let mut files = Contents::new();
    for (name, harm, said) in HARMS {
        let bytes = noise(OBJECT_BYTES, name);
        world.killed_in_mid_transfer(name, &bytes);
        files.insert(name.to_owned(), bytes);
        harm(&world.fleet.of_role(victim).store(), &other.store());
        world.start_again();
        world.fleet.settled();
        let notes = world.fleet.of_role(victim).status()["store"]["notes"].to_string();
        assert!(notes.contains(said), "{name}: {notes}");
        for node in world.fleet.nodes() {
            assert!(node.get(name) == Some(files[name].clone()), "{}: {name}", node.name());
        }
    }
    world.fleet.assert_hold(&files);
}

#[test]
fn a_damaged_master_ends_with_the_same_bytes_as_all() {
    damaged_in_mid_transfer(Role::Master);
}

#[test]
fn a_damaged_worker_ends_with_the_same_bytes_as_all() {
    damaged_in_mid_transfer(Role::Worker);
}

#[test]
fn a_damaged_leecher_ends_with_the_same_bytes_as_all() {
    damaged_in_mid_transfer(Role::Leecher);
}

/// Flips a bit of these bytes in the log.
fn flip(store: &Path, bytes: &[u8]) {
    let found = segments(store).into_iter().find_map(|path| {
        let log = fs::read(&path).unwrap();
        let at = log.windows(bytes.len()).position(|window| window == bytes)?;
        Some((path, log[at], at as u64))
    });
    let (path, byte, at) = found.expect("the block is in the log");
    open(&path).write_all_at(&[byte ^ 0x10], at).unwrap();
}

/// The block that `get` of an object names as damaged; never a wrong byte.
#[track_caller]
fn damaged_block(node: &Node, name: &str, bytes: &[u8]) -> String {
    let said = node.run(["get", &format!("name:{name}"), "-o", "-"]).expect(4);
    assert!(bytes.starts_with(&said.stdout), "{}: wrong bytes were served", node.name());
    assert!(said.stderr.contains("is damaged in segment-"), "{}", said.stderr);
    let block = said.stderr.split_whitespace().find(|word| word.starts_with("bafkr4i"));
    block.expect("it names the block").to_owned()
}

#[test]
fn a_block_rotten_before_its_upload_is_named_and_a_new_put_brings_it_everywhere() {
    let mut world = World::new(Role::Worker);
    let bytes = noise(OBJECT_BYTES, "rotten");
    world.killed_in_mid_transfer("rotten", &bytes);
    flip(&world.fleet.worker.store(), &bytes[OBJECT_BYTES - 64..]);
    world.start_again();
    let (master, worker) = (&world.fleet.master, &world.fleet.worker);
    put(worker, "whole", b"everything else is served");
    for node in world.fleet.nodes() {
        wait_for("what is whole gets there", || node.get("name:whole"));
    }
    let block = damaged_block(worker, "rotten", &bytes);
    let verified = worker.run(["verify"]).expect(4).text();
    assert!(verified.contains(&block) && verified.contains("rotten"), "{verified}");
    assert!(!master.names("").contains(&"rotten".to_owned()), "an object is whole or absent");
    put(worker, "rotten", &bytes);
    world.fleet.settled();
    let whole = b"everything else is served".to_vec();
    world.fleet.assert_hold(&Contents::from([("rotten".to_owned(), bytes), ("whole".to_owned(), whole)]));
}

#[test]
fn a_block_that_rots_on_a_receiver_in_mid_transfer_is_asked_for_again() {
    for victim in [Role::Master, Role::Leecher] {
        let mut world = World::new(victim);
        let bytes = noise(OBJECT_BYTES, "rotten");
        world.killed_in_mid_transfer("rotten", &bytes);
        flip(&world.fleet.of_role(victim).store(), &bytes[200_000..200_064]);
        world.start_again();
        world.fleet.settled();
        world.fleet.assert_hold(&Contents::from([("rotten".to_owned(), bytes)]));
    }
}

#[test]
fn a_block_that_rots_on_a_master_is_named_to_whoever_fetches_it_and_a_new_put_brings_it_everywhere() {
    let broker = Mosquitto::start(Config::default());
    let mut fleet = Fleet::new(broker.port());
    fleet.start();
    let (rotten, whole) = (noise(OBJECT_BYTES, "rotten"), noise(OBJECT_BYTES, "whole"));
    put(&fleet.worker, "rotten", &rotten);
    put(&fleet.worker, "whole", &whole);
    fleet.settled();
    flip(&fleet.master.store(), &rotten[OBJECT_BYTES - 64..]);
    let block = damaged_block(&fleet.master, "rotten", &rotten);
    let fetched = fleet.leecher.run(["get", "name:rotten", "-o", "-"]);
    assert!(fetched.code != 0 && rotten.starts_with(&fetched.stdout), "wrong bytes were served");
    assert!(fetched.stderr.contains(&block), "{}", fetched.stderr);
    assert!(fleet.leecher.get("name:whole").as_ref() == Some(&whole), "everything else is served");
    put(&fleet.worker, "rotten", &rotten);
    fleet.settled();
    assert!(fleet.leecher.get("name:rotten").as_ref() == Some(&rotten));
    fleet.assert_hold(&Contents::from([("rotten".to_owned(), rotten), ("whole".to_owned(), whole)]));
}

/// Cuts the log where these bytes last begin in it, and with that the batch that holds them.
fn cut(store: &Path, bytes: &[u8]) {
    let found = segments(store).into_iter().rev().find_map(|path| {
        let log = fs::read(&path).unwrap();
        let at = log.windows(bytes.len()).rposition(|window| window == bytes)?;
        Some((path, at as u64))
    });
    let (path, at) = found.expect("they are in the log");
    open(&path).set_len(at).unwrap();
}

#[test]
fn the_end_of_a_log_that_a_device_only_said_to_have_synced_is_told_again_by_those_who_know_of_it() {
    let broker = Mosquitto::start(Config::default());
    let mut fleet = Fleet::new(broker.port());
    fleet.leecher.set("node", "subscribe", "[\"\"]");
    fleet.start();
    let mut files = Contents::new();
    for role in [Role::Master, Role::Worker, Role::Leecher] {
        let (name, bytes) = (format!("told/{role}"), noise(300_000, &format!("told {role}")));
        put(&fleet.worker, &name, &bytes);
        for node in fleet.nodes() {
            wait_for("it gets there", || node.names("").contains(&name).then_some(()));
        }
        fleet.settled();
        let victim = fleet.of_role(role);
        victim.kill();
        cut(&victim.store(), name.as_bytes());
        assert!(!victim.names("").contains(&name), "it is lost here");
        victim.start();
        wait_for("it is there again", || victim.names("").contains(&name).then_some(()));
        files.insert(name, bytes);
        fleet.settled();
        fleet.assert_hold(&files);
    }
}
