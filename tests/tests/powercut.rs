//! The real agent on a real file system, and the power cut two hundred times.
//!
//! An agent takes puts, new versions and removals on a logged ext4, and cleans meanwhile, so that segments are moved
//! and used again. At each answer the length of the log is noted. A cut at or behind that entry must leave what was
//! answered: the store opens, every object that was acknowledged has its bytes, or whole those that it was being given,
//! and `verify` finds nothing wrong. Of two cuts one is read before anything could have repaired it, the other is
//! recovered by the agent.

#![expect(clippy::unwrap_used, reason = "a test that finds anything else has failed")]

use larder_core::binding::{Content, Stored};
use larder_core::id::BlockId;
use larder_core::object::manifest::Manifest;
use larder_store::{Options, OsDisk, Store};
use larder_tests::node::{Node, noise, skip};
use larder_tests::powercut::{LoggedDisk, Mounted, Replay, entries};
use larder_tests::sim::random::Random;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::SystemTime;

const DEVICE_BYTES: u64 = 128 << 20;
const SEGMENT_BYTES: u64 = 1 << 20;
const LIMIT_BYTES: u64 = 64_000_000;
/// Clients that put at the same time, and puts of all of them: until enough segments were used again.
const CLIENTS: usize = 3;
const PUTS: usize = 240;
const PUTS_MAX: usize = 2000;
const RECYCLED: usize = 4;
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

/// Files of segments by their inodes and the times they were made, and every number each has had.
type SegmentFiles = BTreeMap<(u64, SystemTime), BTreeSet<String>>;

/// Notes the segments there are, and says how many files were used again.
fn watch_segments(store: &Path, files: &mut SegmentFiles) -> usize {
    for file in fs::read_dir(store).unwrap().flatten() {
        let name = file.file_name().into_string().unwrap();
        // it may have got another name just now
        if let (true, Ok(metadata)) = (name.starts_with("segment-"), file.metadata()) {
            let made = metadata.created().unwrap();
            files.entry((metadata.ino(), made)).or_default().insert(name);
        }
    }
    files.values().filter(|names| names.len() > 1).count()
}

/// What the clients share.
struct Load<'a> {
    node: &'a Node,
    log: &'a Path,
    store: &'a Path,
    next: AtomicUsize,
    files: Mutex<SegmentFiles>,
}

/// Puts and removes until the work is done. Each client has its own names.
fn client(load: &Load<'_>, client: usize) -> Vec<Change> {
    let Load { node, log, store, next, files } = load;
    let mut changes: Vec<Change> = Vec::new();
    loop {
        let turn = next.fetch_add(1, Relaxed);
        let recycled = watch_segments(store, &mut files.lock().unwrap());
        if turn >= PUTS && recycled >= RECYCLED || turn >= PUTS_MAX {
            return changes;
        }
        let name = format!("client{client}/{}", turn % 17);
        let asked = entries(log) as usize;
        let removes = turn % 5 == 4 && changes.iter().any(|change| change.name == name);
        if removes {
            node.run(["rm", &name]);
        } else {
            node.run_with(["put", "--stdin", &name], &content(turn)).expect(0);
        }
        let answered = entries(log) as usize;
        changes.push(Change { name, content: (!removes).then_some(turn), asked, answered });
    }
}

/// What a name may hold after a cut: what it held, and what it was being given then, if it was. None is no object.
#[derive(Clone, Copy, Default)]
struct Allowed {
    old: Option<usize>,
    new: Option<Option<usize>>,
}

/// What each name may hold after a cut. One is changed by one client alone, so at most once at a time.
fn expected(changes: &[Change], cut: usize) -> BTreeMap<&str, Allowed> {
    let mut names: BTreeMap<&str, Allowed> = BTreeMap::new();
    for change in changes.iter().filter(|change| change.asked <= cut) {
        let allowed = names.entry(&change.name).or_default();
        if change.answered <= cut {
            *allowed = Allowed { old: change.content, new: None };
        } else {
            allowed.new = Some(change.content);
        }
    }
    names
}

/// Opens the store by its own means and reads every object: each is whole, as it was or as it was to be. How many were
/// found that were being changed, as they were and as they were to be.
fn compare(store: &Path, expected: &BTreeMap<&str, Allowed>) -> [usize; 2] {
    let options = Options {
        segment_bytes: SEGMENT_BYTES,
        quota_bytes: LIMIT_BYTES,
        reserve_bytes: 2 * SEGMENT_BYTES,
        ..Options::default()
    };
    let (mut store, report) = Store::open(OsDisk::new(store).unwrap(), options).unwrap();
    assert_eq!((report.damaged_bytes, report.index_rebuilt), (0, None));
    let mut under_change = [0, 0];
    for (name, Allowed { old, new }) in expected {
        let bound = store.binding(name).unwrap().map(|bound| Stored::decode(&bound.value).unwrap());
        let found = match bound.map(|stored| stored.binding.content) {
            Some(Content::Object { root, depth }) => Some(read(&mut store, &root, depth)),
            Some(Content::Deleted) | None => None,
        };
        let is_new = new.is_some_and(|new| found == new.map(content));
        assert!(is_new || found == old.map(content), "{name} has not the bytes of {old:?}, nor of {new:?}");
        under_change[usize::from(is_new)] += usize::from(new.is_some());
    }
    store.close().unwrap();
    under_change
}

/// The bytes of an object, block by block.
fn read(store: &mut Store<OsDisk>, id: &BlockId, depth: u8) -> Vec<u8> {
    let block = store.get(&id.0).unwrap().unwrap_or_else(|| panic!("{id} is not there"));
    if depth == 0 {
        return block.to_vec();
    }
    let manifest = Manifest::decode(&block).unwrap();
    manifest.children().iter().flat_map(|child| read(store, &child.id, depth - 1)).collect()
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
    let store = logged.mount().join("store");
    node.set("node", "store", &format!("{:?}", store.display().to_string()));
    node.set("storage", "segment", &format!("\"{SEGMENT_BYTES} B\""));
    node.set("storage", "limit", &format!("\"{LIMIT_BYTES} B\""));
    node.set("storage", "clean_period_s", "1");
    node.start();
    let started = entries(&log) as usize;
    let (next, files) = (AtomicUsize::new(0), Mutex::default());
    let load = Load { node: &node, log: &log, store: &store, next, files };
    let changes: Vec<Change> = thread::scope(|scope| {
        let load = &load;
        let clients: Vec<_> = (0..CLIENTS).map(|number| scope.spawn(move || client(load, number))).collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    let recycled = watch_segments(&store, &mut load.files.into_inner().unwrap());
    node.kill();
    drop(logged);
    let mut replay = Replay::new(&log, DEVICE_BYTES).unwrap();
    let (seed, cuts) = (number("LARDER_SIM_SEED").unwrap_or(1), number("LARDER_POWER_CUTS").unwrap_or(CUTS));
    assert!(recycled >= RECYCLED, "cleaning under load made segments of {recycled} spares alone");
    println!(
        "{recycled} segment files used again, {} changes, {} entries, {cuts} cuts from seed {seed}",
        changes.len(),
        replay.len()
    );
    let mut random = Random::new(seed);
    let behind = (replay.len() - started) as u64;
    let mut places: Vec<usize> = (0..cuts).map(|_| started + random.below(behind + 1) as usize).collect();
    places.sort_unstable();
    let image = folder.path().join("state.img");
    let at = folder.path().join("state");
    fs::create_dir(&at).unwrap();
    node.set("node", "store", &format!("{:?}", at.join("store").display().to_string()));
    let mut under_change = [0, 0];
    for (number, cut) in places.into_iter().enumerate() {
        let luck = random.number();
        println!("cut {number} at entry {cut}, luck {luck}");
        replay.state(cut, luck, &image).unwrap();
        let _mounted = Mounted::new(&image, &at).unwrap();
        let expected = expected(&changes, cut);
        // who opens it first recovers it: the agent, or the store by itself
        if number % 2 == 1 {
            node.run(["verify"]).expect(0);
        }
        let [old, new] = compare(&at.join("store"), &expected);
        (under_change[0], under_change[1]) = (under_change[0] + old, under_change[1] + new);
        if number % 2 == 0 {
            node.run(["verify"]).expect(0);
        }
        let named: Vec<_> = expected
            .iter()
            .filter_map(|(name, allowed)| Some((*name, allowed.old.filter(|_| allowed.new.is_none())?)))
            .collect();
        if let Some((name, of)) = named.get(random.below(named.len() as u64) as usize) {
            assert!(node.get(name).as_ref() == Some(&content(*of)), "{name} has not the bytes of {of}");
        }
    }
    let [old, new] = under_change;
    println!("of names that were being changed {old} are as they were, {new} as they were to be");
    let hardly = "cuts hardly come between a change and its answer";
    assert!(cuts < CUTS || old > 20 && new > 0, "{hardly}");
}

#[test]
fn a_file_system_whose_superblock_is_torn_is_mounted_as_at_a_boot() {
    let folder = tempfile::tempdir().unwrap();
    let disk = match LoggedDisk::start(folder.path(), DEVICE_BYTES) {
        Ok(disk) => disk,
        Err(reason) => {
            return skip("a_file_system_whose_superblock_is_torn_is_mounted_as_at_a_boot", &reason);
        }
    };
    let log = disk.log();
    fs::write(disk.mount().join("file"), "safe").unwrap();
    fs::File::open(disk.mount().join("file")).unwrap().sync_all().unwrap();
    let whole = entries(&log) as usize;
    drop(disk);
    let (image, at) = (folder.path().join("torn.img"), folder.path().join("torn"));
    Replay::new(&log, DEVICE_BYTES).unwrap().state(whole, 1, &image).unwrap();
    fs::create_dir(&at).unwrap();
    // how often it was mounted lies in the first of the superblock's two sectors, its checksum in the second
    let device = fs::OpenOptions::new().write(true).open(&image).unwrap();
    device.write_all_at(&[0x77], 1024 + 0x34).unwrap();
    let _mounted = Mounted::new(&image, &at).unwrap();
    assert_eq!(fs::read_to_string(at.join("file")).unwrap(), "safe");
}
