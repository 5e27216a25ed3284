//! What one node of a fleet refuses in plain words: files and names, configurations, stores, and the torn end of a log.
//! The others go on meanwhile, and once the cause is gone all come to hold the same bytes.

#![expect(clippy::unwrap_used, reason = "a test that finds anything else has failed")]

use larder_core::role::Role;
use larder_tests::broker::{Config, Mosquitto, Proxy};
use larder_tests::fleet::{Contents, Fleet, connect, contents, put, write_files};
use larder_tests::intake::{assert_names_refused, half_way, long, smuggle, smuggled_names};
use larder_tests::mount::{Mount, fill_device};
use larder_tests::node::{Node, Said, noise, skip, wait_for};
use larder_tests::store::{copy, raise_version, segments};
use rustix::process::Signal;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::thread;

const ROLES: [Role; 3] = [Role::Master, Role::Worker, Role::Leecher];

/// A fleet in which everybody takes all that anybody is given.
fn fleet(broker: &Mosquitto) -> Fleet {
    let fleet = Fleet::new(broker.port());
    for node in [&fleet.worker, &fleet.leecher] {
        node.set("node", "subscribe", "[\"\"]");
    }
    fleet
}

/// Who can be given something while the victim is down, and who then has it.
fn others(fleet: &Fleet, victim: Role) -> (&Node, &Node) {
    match victim {
        Role::Master => (&fleet.worker, &fleet.worker),
        Role::Worker => (&fleet.master, &fleet.leecher),
        Role::Leecher => (&fleet.worker, &fleet.master),
    }
}

#[track_caller]
fn assert_says(said: &Said, parts: &[&str]) {
    for part in parts {
        assert!(said.stderr.contains(part), "{part:?} is missing in {}", said.stderr);
    }
    assert!(!said.stderr.contains('\x1b'), "a name commands the terminal");
}

/// Has a node take in a folder of files that it can not take, and some that it can; what it then has of it.
fn take_in_odd_files(node: &Node) -> Contents {
    let odd = node.name();
    let good: Contents = [("a", &b"a"[..]), ("empty", b""), ("z", b"z")]
        .map(|(name, bytes)| (format!("{odd}/{name}"), bytes.to_vec()))
        .into();
    let deep = format!("{odd}/{}", long(1021));
    write_files(node.folder(), &good);
    write_files(node.folder(), &Contents::from([(deep, b"deep".to_vec())]));
    let folder = node.path(odd);
    for name in [&b"new\nline"[..], b"escape\x1b[2J", b"latin\xe9"] {
        fs::write(folder.join(OsStr::from_bytes(name)), b"bad").unwrap();
    }
    for (link, to) in [("self", "."), ("x", "y"), ("y", "x")] {
        symlink(to, folder.join(link)).unwrap();
    }
    let put = node.run(["put", odd]).expect(1);
    assert_says(
        &put,
        &["control character '\\n'", "control character '\\u{1b}'", "is not UTF-8: rename the file"],
    );
    assert_says(&put, &["at most 1024 bytes"]);
    assert!(put.text().contains("stored 3 objects"), "{}", put.text());
    for link in ["self", "x", "y"] {
        assert_says(&put, &[&format!("{odd}/{link} is skipped: it is a symbolic link")]);
    }
    let looped = node.run(["put", &format!("{odd}/x")]).expect(1);
    assert_says(&looped, &["Too many levels of symbolic links"]);
    good
}

/// Has a node put a folder of which one file may not be read, and again once it may be.
fn take_in_unreadable_files(node: &Node) -> Contents {
    let folder = format!("{}-closed", node.name());
    let [open, closed] = ["open", "closed"].map(|name| format!("{folder}/{name}"));
    let files = Contents::from([(open.clone(), b"open".to_vec()), (closed.clone(), b"closed".to_vec())]);
    write_files(node.folder(), &files);
    fs::set_permissions(node.path(&closed), fs::Permissions::from_mode(0o000)).unwrap();
    let own = ["", "larder.toml", "larder.sock", &folder, &open, &closed];
    let put = node.run_as_nobody(&own, ["put", &folder]).expect(6);
    assert_says(&put, &[&format!("{closed} cannot be read: Permission denied")]);
    assert_eq!(node.names(&format!("{folder}/")), [open]);
    fs::set_permissions(node.path(&closed), fs::Permissions::from_mode(0o600)).unwrap();
    node.run_as_nobody(&[], ["put", &folder]).expect(0);
    let failing = node.run(["put", "/proc/self/mem", "--name", "failing"]).expect(9);
    assert_says(&failing, &["/proc/self/mem cannot be read: Input/output error"]);
    files
}

/// Has a file grow and one vanish in the middle of their puts.
fn take_in_changing_files(node: &Node) -> Contents {
    let [grows, gone] = ["grows", "gone"].map(|name| format!("{}-{name}", node.name()));
    let put_of_it = half_way(node, &grows, 4 << 20);
    let file = OpenOptions::new().append(true).open(node.path(&grows));
    file.unwrap().write_all(&noise(100_000, "more")).unwrap();
    node.signal(Signal::CONT);
    Said::at_end_of(put_of_it).expect(0);
    put(node, &gone, b"before");
    let put_of_it = half_way(node, &gone, 4 << 20);
    fs::remove_file(node.path(&gone)).unwrap();
    node.signal(Signal::CONT);
    let vanished = Said::at_end_of(put_of_it).expect(3);
    assert_says(&vanished, &[&format!("{gone} vanished while it was read")]);
    let grown = fs::read(node.path(&grows)).unwrap();
    Contents::from([(grows, grown), (gone, b"before".to_vec())])
}

#[test]
fn bad_files_and_names_are_refused_where_they_are_put_and_all_nodes_have_the_rest() {
    let broker = Mosquitto::start(Config::default());
    let mut fleet = fleet(&broker);
    fleet.start();
    let mut files = Contents::new();
    for node in [&fleet.master, &fleet.worker] {
        assert_names_refused(node);
        files.extend(take_in_odd_files(node));
        files.extend(take_in_unreadable_files(node));
        files.extend(take_in_changing_files(node));
    }
    fleet.settled();
    fleet.assert_hold(&files);
    for role in ROLES {
        let node = fleet.of_role(role);
        node.kill();
        smuggle(node, "cam/a", smuggled_names());
        node.start();
    }
    fleet.settled();
    fleet.assert_hold(&files);
    for node in fleet.nodes() {
        assert!(node.log().contains("a name in the store is refused"), "{}", node.log());
    }
}

/// On a device of its own, below a node's folder.
const STORE: &str = "disk/store";
const FILLER: &str = "disk/filler";

#[track_caller]
fn assert_start_refused(node: &mut Node, code: i32, parts: &[&str]) {
    let said = node.refused_start();
    assert_eq!(said.code, code, "{}", said.stderr);
    assert_says(&said, parts);
}

fn starts_with_a_wrong_configuration(node: &mut Node) {
    let good = fs::read_to_string(node.config()).unwrap();
    for (section, key, value, parts) in [
        ("storage", "limits", "\"1 GB\"", ["unknown key [storage] limits", "did you mean [storage] limit?"]),
        ("mqtt", "port", "\"1883\"", ["[mqtt] port", "a number from 1 to 65535"]),
        ("storage", "limit", "\"1 MB\"", ["[storage] limit", "a size of at least \"16 MB\""]),
    ] {
        node.set(section, key, value);
        let text = fs::read_to_string(node.config()).unwrap();
        let line = text.lines().position(|line| line == format!("{key} = {value}")).unwrap();
        assert_start_refused(node, 2, &[&format!("larder.toml:{}", line + 1), parts[0], parts[1]]);
        fs::write(node.config(), &good).unwrap();
    }
}

fn starts_with_a_store_that_can_not_be_had(node: &mut Node) {
    let store = node.path(STORE);
    let read_only = Mount::read_only(&store).unwrap();
    assert_start_refused(node, 6, &["can not be written", "mount it read-write"]);
    drop(read_only);
    for (file, check) in [(store.join("superblock"), 60), (segments(&store).remove(0), 76)] {
        let good = fs::read(&file).unwrap();
        raise_version(&file, check);
        assert_start_refused(node, 2, &["has store format 3, this program knows up to 2; upgrade larder"]);
        fs::write(&file, good).unwrap();
    }
    let lock = File::open(store.join("lock")).unwrap();
    lock.lock().unwrap();
    assert_start_refused(node, 8, &["is in use by another process"]);
}

/// Fills a node's device, has it meet an object that it has no room for, and makes room.
fn runs_out_of_room(fleet: &mut Fleet, victim: Role) -> (String, Vec<u8>) {
    let (name, bytes) = (format!("large/{victim:?}"), noise(3_000_000, &format!("{victim:?}")));
    let filler = fleet.of_role(victim).path(FILLER);
    fill_device(&filler);
    if victim == Role::Worker {
        let put = fleet.worker.run_with(["put", "--stdin", &name], &bytes).expect(5);
        assert_says(&put, &["full"]);
    } else {
        put(&fleet.worker, &name, &bytes);
        fleet.of_role(victim).wait_status("it says that it is full", |status| {
            let problem = status["sync"]["last_problem"].as_str()?;
            problem.contains("store or device full").then_some(())
        });
    }
    let node = fleet.of_role(victim);
    node.kill();
    node.start();
    fs::remove_file(filler).unwrap();
    if victim == Role::Worker {
        put(node, &name, &bytes);
    } else {
        // its peer would say it again by itself, half a minute later
        node.restart();
    }
    (name, bytes)
}

#[test]
fn a_node_that_can_not_start_or_has_no_room_says_why_and_catches_up_once_it_can() {
    let name = "a_node_that_can_not_start_or_has_no_room_says_why_and_catches_up_once_it_can";
    let broker = Mosquitto::start(Config::default());
    let mut fleet = fleet(&broker);
    let mut disks = Vec::new();
    for node in fleet.nodes() {
        fs::create_dir(node.path("disk")).unwrap();
        let Some(disk) = Mount::tmpfs(&node.path("disk"), "96m") else {
            return skip(name, "mounting needs root");
        };
        disks.push(disk);
        node.set("node", "store", &format!("{STORE:?}"));
        node.set("storage", "segment", "\"1 MiB\"");
    }
    fleet.start();
    put(&fleet.worker, "first", b"first");
    fleet.settled();
    let mut files = Contents::from([("first".to_owned(), b"first".to_vec())]);
    for victim in ROLES {
        let node = fleet.of_role(victim);
        node.kill();
        starts_with_a_wrong_configuration(node);
        starts_with_a_store_that_can_not_be_had(node);
        let (giver, taker) = others(&fleet, victim);
        let meanwhile = format!("meanwhile/{victim:?}");
        put(giver, &meanwhile, meanwhile.as_bytes());
        wait_for("the others go on", || taker.get(&format!("name:{meanwhile}")));
        files.insert(meanwhile.clone(), meanwhile.into_bytes());
        fleet.of_role(victim).start();
        fleet.settled();
        files.extend([runs_out_of_room(&mut fleet, victim)]);
        fleet.settled();
    }
    fleet.assert_hold(&files);
}

const CUTS: usize = 6;
const TORN: &str =
    "the last batch is not whole: torn before it was acknowledged, or damaged since; it was dropped";

/// The end of a log: its newest segment.
struct End {
    segment: PathBuf,
    log: Vec<u8>,
    /// Where the records of one batch begin, and where the last of them ends.
    borders: Vec<usize>,
}

impl End {
    /// From the last batch on that has this name; behind it there may be one that saved a cursor meanwhile.
    #[track_caller]
    fn of(store: &Path, name: &str) -> End {
        let segment = segments(store).pop().unwrap();
        let log = fs::read(&segment).unwrap();
        let has_name = |records: &Vec<usize>| {
            let range = records[0]..records[records.len() - 1];
            log[range].windows(name.len()).any(|bytes| bytes == name.as_bytes())
        };
        let borders = batches(&log).into_iter().rfind(has_name);
        let borders = borders.unwrap_or_else(|| panic!("{name} is in no batch of {}", segment.display()));
        End { segment: segment.file_name().unwrap().into(), log, borders }
    }

    fn range(&self) -> Range<usize> {
        self.borders[0]..self.borders[self.borders.len() - 1]
    }

    /// Ends the log of a copy of the store at a byte of it: cut off, or with zeros, as a file system leaves them that had
    /// grown the file already.
    fn tear(&self, store: &Path, at: usize, is_cut_off: bool) {
        let mut log = self.log.clone();
        if is_cut_off {
            log.truncate(at);
        } else {
            log[at..].fill(0);
        }
        fs::write(store.join(&self.segment), log).unwrap();
    }

    /// Whether what says of a torn batch that it is one is whole: the first record's header and key.
    fn is_begun(&self, at: usize) -> bool {
        let key_bytes = u16::from_le_bytes(self.log[self.borders[0] + 10..][..2].try_into().unwrap());
        at >= self.borders[0] + 32 + usize::from(key_bytes)
    }

    /// Its first byte alone is there; a half of the first record; one record; all but the commit; half of that; all but
    /// the last byte that is not zero.
    fn cuts(&self) -> [usize; CUTS] {
        let Range { start, end } = self.range();
        let commit = self.borders[self.borders.len() - 2];
        let last = self.log[..end].iter().rposition(|byte| *byte != 0).unwrap();
        [start + 1, (start + self.borders[1]) / 2, self.borders[1], commit, (commit + end) / 2, last]
    }

    fn is_zero_from(&self, at: usize) -> bool {
        self.log[at..self.range().end].iter().all(|byte| *byte == 0)
    }
}

/// Where the records of each batch of a segment begin, and where the last of them ends.
fn batches(log: &[u8]) -> Vec<Vec<usize>> {
    let generation = |at: usize| log.get(at + 24..at + 32);
    let (mut batches, mut at) = (Vec::new(), 4096);
    while generation(at).is_some_and(|bytes| *bytes == log[32..40]) {
        let mut records = vec![at];
        loop {
            let key_bytes = u16::from_le_bytes(log[at + 10..at + 12].try_into().unwrap());
            let value_bytes = u32::from_le_bytes(log[at + 12..at + 16].try_into().unwrap());
            let is_commit = log[at + 8] == 7;
            at += (32 + usize::from(key_bytes) + value_bytes as usize).next_multiple_of(8);
            records.push(at);
            if is_commit {
                break;
            }
        }
        at = at.next_multiple_of(4096);
        batches.push(records);
    }
    batches
}

/// Has the log of a killed node end at every other byte of its last batch, and the store opened by a command each time;
/// cut off and filled with zeros take turns.
fn torn_at_every_byte(node: &Node, end: &End, before: &Contents, last: &str, is_cut_off: bool) {
    // hundreds of syncs: in memory, if there is a place for it
    let memory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir_in(node.folder())).unwrap();
    let [store, out] = ["store", "out"].map(|name| memory.path().join(name));
    fs::create_dir(&out).unwrap();
    for at in end.range().skip(usize::from(is_cut_off)).step_by(2) {
        copy(&node.store(), &store);
        end.tear(&store, at, is_cut_off);
        let _there_was_one = fs::remove_file(out.join(last)).is_ok();
        let get_all = ["get", "/", "--force", "--socket", "none", "--store"].map(OsStr::new);
        let said = node.run(get_all.into_iter().chain([store.as_ref(), "-o".as_ref(), out.as_os_str()]));
        let said = said.expect(0).stderr;
        for (name, bytes) in before {
            assert!(fs::read(out.join(name)).unwrap() == *bytes, "{at}: {name}");
        }
        let is_there = out.join(last).exists();
        assert!(!is_there || fs::read(out.join(last)).unwrap() == last.as_bytes(), "{at}: wrong bytes");
        // the commit ends with zeros: a file that has them still is whole, and one that ends there need not be
        let is_whole = end.is_zero_from(at);
        assert!(if is_cut_off { is_whole || !is_there } else { is_whole == is_there }, "{at}: {said}");
        assert_eq!(said.contains(TORN), end.is_begun(at) && !is_there, "{at}: {said}");
    }
}

#[test]
fn a_log_torn_at_any_byte_of_its_last_batch_has_all_before_it_and_the_fleet_ends_with_the_same_bytes() {
    let broker = Mosquitto::start(Config::default());
    let mut fleet = fleet(&broker);
    let proxies = ROLES.map(|_| Proxy::start(broker.port()));
    for (role, proxy) in ROLES.into_iter().zip(&proxies) {
        let node = fleet.of_role(role);
        connect(node, proxy.port());
        // small ones are soon copied
        node.set("storage", "segment", "\"1 MiB\"");
        node.set("storage", "limit", "\"64 MB\"");
    }
    fleet.start();
    let mut files = contents([("before/empty", Vec::new()), ("before/some", noise(3_000, "some"))]);
    for (name, bytes) in &files {
        put(&fleet.worker, name, bytes);
    }
    fleet.settled();
    for round in 0..CUTS {
        // to the others they all die in mid-write: of what is acknowledged here and then gone nobody was told
        for proxy in &proxies {
            proxy.stall();
        }
        let names = ROLES.map(|role| format!("last/{role:?}/{round}"));
        put(&fleet.master, &names[0], names[0].as_bytes());
        put(&fleet.worker, &names[1], names[1].as_bytes());
        // it writes nothing of its own but that a copy goes
        fleet.leecher.run(["rm", "before/some"]).expect(0);
        let ends = [&names[0], &names[1], "before/some"];
        let ends: [(Role, &str); 3] = std::array::from_fn(|index| (ROLES[index], ends[index]));
        let ends = ends.map(|(role, last)| {
            let node = fleet.of_role(role);
            node.kill();
            End::of(&node.store(), last)
        });
        if round == 0 {
            thread::scope(|scope| {
                for is_cut_off in [true, false] {
                    let (node, end, files, name) = (&fleet.worker, &ends[1], &files, &names[1]);
                    scope.spawn(move || torn_at_every_byte(node, end, files, name, is_cut_off));
                }
            });
        }
        for proxy in &proxies {
            proxy.unstall();
        }
        for (role, end) in ROLES.into_iter().zip(ends) {
            let (node, at) = (fleet.of_role(role), end.cuts()[round]);
            end.tear(&node.store(), at, round % 2 == 0);
            node.start();
            let notes = node.status()["store"]["notes"].to_string();
            assert_eq!(notes.contains(TORN), end.is_begun(at), "{role:?} at {at}: {notes}");
        }
        for (node, name) in [&fleet.master, &fleet.worker].into_iter().zip(names) {
            assert!(!node.names("last/").contains(&name), "{name} is of a batch that is not whole");
            put(node, &name, name.as_bytes());
            files.insert(name.clone(), name.into_bytes());
        }
        fleet.settled();
    }
    fleet.assert_hold(&files);
}
