//! The real agent on a real file system, and the power cut two hundred times.
//!
//! An agent takes puts, new versions and removals on a logged ext4. At each answer the length of the log is
//! noted. A cut at or behind that entry must leave what was answered: the store opens, every object that was
//! acknowledged and not touched since has its bytes, and `verify` finds nothing wrong.

#![expect(clippy::unwrap_used, reason = "a test that finds anything else has failed")]

use larder_store::{Options, OsDisk, Store};
use larder_tests::node::{Node, noise, skip};
use larder_tests::powercut::{LoggedDisk, Mounted, Replay, entries};
use larder_tests::sim::random::Random;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;

const DEVICE_BYTES: u64 = 128 << 20;
/// Clients that put at the same time, and puts of all of them.
const CLIENTS: usize = 3;
const PUTS: usize = 240;
/// Cuts of each run; `LARDER_POWER_CUTS` asks for more, `LARDER_SIM_SEED` for others.
const CUTS: u64 = 200;

/// What a client did to a name: entries in the log before it asked, and after the answer.
#[derive(Clone, Debug)]
struct Change {
    name: String,
    /// The number its bytes follow from; none for a removal.
    content: Option<usize>,
    asked: usize,
    answered: usize,
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap())
}

fn content(number: usize) -> Vec<u8> {
    noise([1, 700, 5_000, 40_000, 110_000, 300_000][number % 6], &format!("powercut {number}"))
}

/// Puts and removes until the work is done. Each client has its own names.
fn client(node: &Node, log: &Path, client: usize, next: &AtomicUsize) -> Vec<Change> {
    let mut changes: Vec<Change> = Vec::new();
    loop {
        let turn = next.fetch_add(1, Relaxed);
        if turn >= PUTS {
            return changes;
        }
        let name = format!("client{client}/{}", turn % 17);
        let asked = entries(log) as usize;
        let removes = turn % 10 == 9 && changes.iter().any(|change| change.name == name);
        if removes {
            node.run(["rm", &name]);
        } else {
            node.run_with(["put", "--stdin", &name], &content(turn)).expect(0);
        }
        let answered = entries(log) as usize;
        changes.push(Change { name, content: (!removes).then_some(turn), asked, answered });
    }
}

/// What each name must hold after a cut: only names that nobody was changing then.
fn expected(changes: &[Change], cut: usize) -> BTreeMap<&str, Option<usize>> {
    let mut names = BTreeMap::new();
    for change in changes {
        if change.answered <= cut {
            names.insert(change.name.as_str(), change.content);
        } else if change.asked <= cut {
            names.remove(change.name.as_str());
        }
    }
    names
}

/// Opens the store by its own means and compares every object that is one block.
fn compare(store: &Path, expected: &BTreeMap<&str, Option<usize>>) {
    let options = Options { segment_bytes: 1 << 20, ..Options::default() };
    let (mut store, report) = Store::open(OsDisk::new(store).unwrap(), options).unwrap();
    assert_eq!((report.damaged_bytes, report.index_rebuilt), (0, None));
    for (name, number) in expected {
        let bound = store.bindings(name, None, 1).unwrap().into_iter().any(|(found, _)| found == *name);
        let Some(number) = number else { continue };
        assert!(bound, "{name} is not bound");
        let bytes = content(*number);
        if bytes.len() <= 120 << 10 {
            let found = store.get(blake3::hash(&bytes).as_bytes()).unwrap();
            assert!(found.as_deref() == Some(&bytes[..]), "{name} has not the bytes of {number}");
        }
    }
    store.close().unwrap();
}

#[test]
fn two_hundred_power_cuts_keep_every_acknowledged_object() {
    let test = "two_hundred_power_cuts_keep_every_acknowledged_object";
    let folder = tempfile::tempdir().unwrap();
    let logged = match LoggedDisk::start(folder.path(), DEVICE_BYTES) {
        Ok(logged) => logged,
        Err(reason) => return skip(test, &reason),
    };
    let log = logged.log();
    let mut node = Node::new("cam", "worker");
    node.set("node", "store", &format!("{:?}", logged.mount().join("store").display().to_string()));
    node.set("storage", "segment", "\"1 MiB\"");
    node.set("storage", "limit", "\"64 MB\"");
    node.start();
    let started = entries(&log) as usize;
    let next = AtomicUsize::new(0);
    let changes: Vec<Change> = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                scope.spawn({
                    let (node, log, next) = (&node, &log, &next);
                    move || client(node, log, number, next)
                })
            })
            .collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    node.kill();
    drop(logged);
    let mut replay = Replay::new(&log, DEVICE_BYTES).unwrap();
    let (seed, cuts) = (number("LARDER_SIM_SEED").unwrap_or(1), number("LARDER_POWER_CUTS").unwrap_or(CUTS));
    println!("{} changes, {} entries, {cuts} cuts from seed {seed}", changes.len(), replay.len());
    let mut random = Random::new(seed);
    let behind = (replay.len() - started) as u64;
    let mut places: Vec<usize> = (0..cuts).map(|_| started + random.below(behind + 1) as usize).collect();
    places.sort_unstable();
    let image = folder.path().join("state.img");
    let at = folder.path().join("state");
    fs::create_dir(&at).unwrap();
    node.set("node", "store", &format!("{:?}", at.join("store").display().to_string()));
    for (number, cut) in places.into_iter().enumerate() {
        let luck = random.number();
        println!("cut {number} at entry {cut}, luck {luck}");
        replay.state(cut, luck, &image).unwrap();
        let _mounted = Mounted::new(&image, &at).unwrap();
        let expected = expected(&changes, cut);
        node.run(["verify"]).expect(0);
        compare(&at.join("store"), &expected);
        let named: Vec<_> =
            expected.iter().filter_map(|(name, content)| Some((*name, (*content)?))).collect();
        if let Some((name, of)) = named.get(random.below(named.len() as u64) as usize) {
            assert!(node.get(name).as_ref() == Some(&content(*of)), "{name} has not the bytes of {of}");
        }
    }
}
