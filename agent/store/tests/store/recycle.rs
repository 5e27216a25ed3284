//! Emptied segments come back as the next ones, and nothing they held comes back with them.

use crate::common::faults::{FaultDisk, Faults};
use crate::common::*;
use larder_store::{CommitError, Op, Options, OsDisk, Prepare, Store, rebuild_index};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

const PAGE: usize = 4096;
/// Numbers of the first blocks, all deleted before the others come.
const OLD: std::ops::Range<u64> = 0..100;
const NEW: std::ops::Range<u64> = 1000..1060;

fn recycling() -> Options {
    Options { spare_segments_max: 4, prepare: Prepare::Allocate, ..options() }
}

fn opened(directory: &Path) -> Store<OsDisk> {
    Store::open(disk(directory), recycling()).unwrap().0
}

fn put_all<D: larder_store::Disk>(store: &mut Store<D>, numbers: std::ops::Range<u64>) {
    for number in numbers.step_by(5) {
        store.commit(puts(number..number + 5, 5000)).unwrap();
    }
}

/// Deletes the old blocks and a name, and cleans.
fn empty<D: larder_store::Disk>(store: &mut Store<D>) {
    let deletes = OLD.map(|number| Op::Delete { hash: hash(&content(number, 5000)) });
    store.commit(deletes.chain([unbind("old")]).collect()).unwrap();
    store.clean_begin();
    while !store.clean_step(1 << 20).unwrap().done {}
    store.checkpoint().unwrap();
}

/// A store whose emptied segments are spares, with nothing live in it.
fn with_spares(directory: &Path) -> Store<OsDisk> {
    let mut store = opened(directory);
    put_all(&mut store, OLD);
    store.commit(vec![bind("old", "value")]).unwrap();
    empty(&mut store);
    store
}

fn files(directory: &Path, prefix: &str) -> Vec<PathBuf> {
    let paths = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    paths.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(prefix)).collect()
}

fn inodes(paths: &[PathBuf]) -> BTreeSet<u64> {
    paths.iter().map(|path| fs::metadata(path).unwrap().ino()).collect()
}

fn assert_only_new(store: &mut Store<OsDisk>) {
    assert_all_there(store, NEW, 5000);
    assert!(OLD.into_iter().all(|number| !store.has(&hash(&content(number, 5000))).unwrap()));
    assert_eq!(store.binding("old").unwrap(), None);
    assert_eq!(store.status().blocks, NEW.end - NEW.start);
}

#[test]
fn emptied_segments_are_the_next_ones_and_the_store_does_not_grow() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = with_spares(directory.path());
    let before = store.status();
    assert!(before.spare_segments >= 2, "{before:?}");
    assert!(before.spare_disk_bytes >= before.spare_segments * (128 << 10), "{before:?}");
    let spares = inodes(&files(directory.path(), "spare-"));
    put_all(&mut store, NEW);
    let after = store.status();
    assert_eq!(after.spare_segments, before.spare_segments - 1);
    assert_eq!(inodes(&segments(directory.path())).intersection(&spares).count(), 1);
    assert!(after.log_disk_bytes + after.spare_disk_bytes <= before.log_disk_bytes + before.spare_disk_bytes);
    assert_only_new(&mut store);
    store.close().unwrap();
    let mut store = opened(directory.path());
    assert_eq!(store.status().spare_segments, after.spare_segments);
    assert_only_new(&mut store);
    drop(store);
    let report = rebuild_index(disk(directory.path()), recycling()).unwrap();
    assert_eq!((report.damaged_bytes, report.torn), (0, false), "{report:?}");
    assert_only_new(&mut opened(directory.path()));
}

#[test]
fn killed_at_any_batch_nothing_old_comes_back_whatever_else_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = with_spares(directory.path());
    for number in NEW.step_by(5) {
        store.commit(puts(number..number + 5, 5000)).unwrap();
        type Loss = fn(&Path);
        let losses: [Loss; 4] = [
            |_| {},
            |place| fs::remove_file(place.join("index.redb")).unwrap(),
            |place| {
                fs::remove_file(place.join("index.redb")).unwrap();
                for segment in segments(place) {
                    let file = fs::OpenOptions::new().write(true).open(segment).unwrap();
                    file.write_all_at(&[0x55; PAGE], 0).unwrap();
                }
            },
            |place| files(place, "spare-").iter().for_each(|spare| fs::write(spare, b"anything").unwrap()),
        ];
        for loss in losses {
            let killed = copy_to_memory(directory.path());
            loss(killed.path());
            let (mut other, report) = Store::open(disk(killed.path()), recycling()).unwrap();
            assert_eq!((report.damaged_bytes, report.torn), (0, false), "{report:?}");
            assert_all_there(&mut other, NEW.start..number + 5, 5000);
            assert_eq!(other.status().blocks, number + 5 - NEW.start);
            assert_eq!(other.binding("old").unwrap(), None);
            other.commit(puts(5000..5005, 5000)).unwrap();
        }
    }
}

/// Directory images of a power cut while a spare becomes a segment: renamed, and its header old, torn or new.
#[test]
fn a_spare_that_became_a_segment_without_a_batch_is_no_damage() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = with_spares(directory.path());
    store.commit(puts(NEW.start..NEW.start + 5, 5000)).unwrap();
    drop(store);
    let newest = segments(directory.path()).pop().unwrap();
    let next =
        u32::from_str_radix(&newest.to_str().unwrap()[newest.to_str().unwrap().len() - 8..], 16).unwrap() + 1;
    let spare = files(directory.path(), "spare-").pop().unwrap();
    let spare = spare.file_name().unwrap();
    // what is left of a header that was being written: nothing, half of it, or of another segment's
    for torn in [0, 40, PAGE] {
        for index_is_lost in [false, true] {
            let place = copy_to_memory(directory.path());
            let (from, to) = (place.path().join(spare), place.path().join(format!("segment-{next:08x}")));
            fs::rename(from, &to).unwrap();
            fs::OpenOptions::new().write(true).open(&to).unwrap().write_all_at(&vec![7; torn], 0).unwrap();
            if index_is_lost {
                fs::remove_file(place.path().join("index.redb")).unwrap();
            }
            let (mut store, report) = Store::open(disk(place.path()), recycling()).unwrap();
            assert!(report.unreadable_files.is_empty() && report.damaged_bytes == 0, "{report:?}");
            assert_eq!(report.index_rebuilt.is_some(), index_is_lost, "{report:?}");
            assert_eq!(store.status().blocks, 5);
            put_all(&mut store, NEW);
            drop(store);
            assert_only_new(&mut opened(place.path()));
        }
    }
}

#[test]
fn a_batch_torn_into_old_bytes_at_any_sector_is_dropped_whole() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = with_spares(directory.path());
    put_all(&mut store, NEW);
    let before = copy_to_memory(directory.path());
    store.commit(vec![put(&content(2000, 6000)), bind("last", "value")]).unwrap();
    let newest = segments(directory.path()).pop().unwrap();
    let name = newest.file_name().unwrap();
    let (old, new) = (fs::read(before.path().join(name)).unwrap(), fs::read(&newest).unwrap());
    let changed: Vec<usize> =
        (0..new.len() / 512).filter(|s| old[s * 512..][..512] != new[s * 512..][..512]).collect();
    assert!(changed.len() > 8, "{changed:?}");
    let stop = (changed[changed.len() - 1] + 1) * 512;
    let padding = new[..stop].iter().rposition(|byte| *byte != 0).unwrap() / 512 + 1;
    // every sector missing alone, and everything from it on
    for (nth, sector) in changed.iter().enumerate() {
        for missing in [&changed[nth..=nth], &changed[nth..]] {
            let place = copy_to_memory(before.path());
            let mut bytes = new.clone();
            for sector in missing {
                bytes[sector * 512..][..512].copy_from_slice(&old[sector * 512..][..512]);
            }
            fs::write(place.path().join(name), bytes).unwrap();
            let (mut store, report) = Store::open(disk(place.path()), recycling()).unwrap();
            assert_eq!(report.damaged_bytes, 0, "sector {sector}: {report:?}");
            let is_there = store.binding("last").unwrap().is_some();
            assert_eq!(is_there, store.has(&hash(&content(2000, 6000))).unwrap());
            assert_eq!(is_there, missing[0] >= padding, "sector {sector}");
            if !is_there {
                assert_only_new(&mut store);
            }
            store.commit(vec![put(&content(3000, 100))]).unwrap();
            drop(store);
            assert!(opened(place.path()).has(&hash(&content(3000, 100))).unwrap());
        }
    }
}

#[test]
fn spares_are_given_back_before_a_batch_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let quota_bytes = 10 << 20;
    let tight = Options { quota_bytes, reserve_bytes: 512 << 10, ..recycling() };
    let (mut store, _) = Store::open(disk(directory.path()), tight).unwrap();
    put_all(&mut store, OLD);
    empty(&mut store);
    let spares = store.status().spare_segments;
    assert!(spares >= 2);
    let mut number = 10_000;
    let error = loop {
        match store.commit(puts(number..number + 5, 5000)) {
            Ok(_) => number += 5,
            Err(error) => break error,
        }
        let used: u64 =
            files(directory.path(), "").iter().map(|path| fs::metadata(path).unwrap().blocks() * 512).sum();
        assert!(used <= quota_bytes, "{used}");
    };
    assert!(matches!(error, CommitError::Full { .. }), "{error}");
    assert_eq!(store.status().spare_segments, 0);
    assert_all_there(&mut store, 10_000..number, 5000);
}

fn faulty(directory: &Path) -> (FaultDisk, Store<FaultDisk>) {
    let disk = FaultDisk::new(OsDisk::new(directory).unwrap());
    let options = Options { prepare: Prepare::None, ..recycling() };
    let (mut store, _) = Store::open(disk.clone(), options).unwrap();
    put_all(&mut store, OLD);
    empty(&mut store);
    put_all(&mut store, 5000..5010);
    assert!(store.status().spare_segments >= 1);
    (disk, store)
}

#[test]
fn a_batch_over_prepared_bytes_is_one_write_and_one_sync_and_looks_at_no_file() {
    let directory = tempfile::tempdir().unwrap();
    let disk = FaultDisk::new(OsDisk::new(directory.path()).unwrap());
    let (mut store, _) = Store::open(disk.clone(), recycling()).unwrap();
    store.commit(puts(1..2, 100)).unwrap();
    let faults = &disk.faults;
    let counts = || {
        [&faults.segment_writes, &faults.segment_syncs, &faults.sizes_asked].map(|count| count.load(SeqCst))
    };
    let [writes, syncs, asked] = counts();
    let committed = store.commit(puts(2..5, 100)).unwrap();
    assert_eq!((committed.stored, committed.payload_bytes), (3, 300));
    assert_eq!(counts(), [writes + 1, syncs + 1, asked]);
}

#[test]
fn a_full_device_gets_the_spares_back_for_a_batch() {
    let directory = tempfile::tempdir().unwrap();
    let (disk, mut store) = faulty(directory.path());
    disk.faults.room.store(0, SeqCst);
    let mut number = 6000;
    let error = loop {
        match store.commit(puts(number..number + 5, 5000)) {
            Ok(_) => number += 5,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, CommitError::Full { .. }), "{error}");
    assert_eq!(store.status().spare_segments, 0);
    for number in (5000..5010).chain(6000..number) {
        assert_eq!(store.get(&hash(&content(number, 5000))).unwrap(), Some(content(number, 5000)));
    }
}

#[test]
fn too_few_open_files_or_no_memory_cost_a_batch_and_neither_a_spare_nor_the_store() {
    let starve: [fn(&Faults) -> &AtomicU64; 3] = [
        |faults| &faults.starved_opens,
        |faults| &faults.starved_directory_syncs,
        |faults| &faults.starved_writes,
    ];
    for starved in starve {
        let directory = tempfile::tempdir().unwrap();
        let (disk, mut store) = faulty(directory.path());
        let (spares, mut number) = (store.status().spare_segments, 6000);
        let count = starved(&disk.faults);
        count.store(1000, SeqCst);
        let error = loop {
            match store.commit(puts(number..number + 5, 5000)) {
                Ok(_) => number += 5,
                Err(error) => break error,
            }
        };
        assert!(matches!(error, CommitError::Passing { .. }), "{error}");
        assert!(!store.has(&hash(&content(number, 5000))).unwrap());
        count.store(0, SeqCst);
        assert_eq!((store.status().stopped, store.status().spare_segments), (None, spares));
        store.commit(puts(number..number + 5, 5000)).unwrap();
        drop(store);
        let (mut store, report) = Store::open(disk, recycling()).unwrap();
        assert_eq!(report.damaged_bytes, 0, "{report:?}");
        for number in (5000..5010).chain(6000..number + 5) {
            assert_eq!(store.get(&hash(&content(number, 5000))).unwrap(), Some(content(number, 5000)));
        }
    }
}

/// The spare that was a segment for a moment says where the log ended, and a power cut may bring its name back.
#[test]
fn a_store_that_closes_behind_a_segment_it_took_back_makes_that_durable_at_its_next_start() {
    let directory = tempfile::tempdir().unwrap();
    let (disk, mut store) = faulty(directory.path());
    disk.faults.starved_directory_syncs.store(1000, SeqCst);
    let error = (6000..).step_by(5).find_map(|number| store.commit(puts(number..number + 5, 5000)).err());
    assert!(matches!(error, Some(CommitError::Passing { .. })), "{error:?}");
    disk.faults.starved_directory_syncs.store(0, SeqCst);
    store.close().unwrap();
    let (store, report) = Store::open(disk.clone(), recycling()).unwrap();
    assert!(!report.clean, "a clean start syncs nothing: {report:?}");
    store.close().unwrap();
    assert!(Store::open(disk, recycling()).unwrap().1.clean, "once is enough");
}

#[test]
fn a_full_device_gets_the_spares_back_for_the_index_and_for_a_start() {
    let directory = tempfile::tempdir().unwrap();
    let (disk, mut store) = faulty(directory.path());
    let killed = copy(directory.path());
    disk.faults.index_full.store(true, SeqCst);
    store.checkpoint().unwrap();
    assert_eq!(store.status().spare_segments, 0);
    assert_eq!(store.get(&hash(&content(5009, 5000))).unwrap(), Some(content(5009, 5000)));

    fs::remove_file(killed.path().join("index.redb")).unwrap();
    let disk = FaultDisk::new(OsDisk::new(killed.path()).unwrap());
    disk.faults.index_full.store(true, SeqCst);
    let (mut store, _) = Store::open(disk, recycling()).unwrap();
    assert_eq!(store.status().spare_segments, 0);
    assert_eq!(store.get(&hash(&content(5009, 5000))).unwrap(), Some(content(5009, 5000)));
}

#[test]
fn no_more_spares_are_kept_than_asked_for_and_an_eighth_of_the_quota_holds() {
    for (quota_bytes, spare_segments_max, most) in [(1 << 30, 1, 1), (5 << 20, 4, 2), (1 << 30, 0, 0)] {
        let directory = tempfile::tempdir().unwrap();
        with_spares(directory.path()).close().unwrap();
        let options = Options { quota_bytes, spare_segments_max, ..recycling() };
        let (store, _) = Store::open(disk(directory.path()), options).unwrap();
        assert_eq!(store.status().spare_segments, most);
        assert_eq!(files(directory.path(), "spare-").len() as u64, most);
    }
}

#[test]
fn a_store_of_version_1_is_read_and_gone_on_with_and_its_segments_are_never_recycled() {
    let directory = copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/version-1"));
    let options = Options { segment_bytes: 64 << 10, ..recycling() };
    let assert_old = |store: &mut Store<OsDisk>| {
        for (numbers, length) in [(0..1, 900), (2..3, 900), (3..10, 6900), (10..12, 4500)] {
            assert_all_there(store, numbers, length);
        }
        assert!(!store.has(&hash(&content(1, 900))).unwrap());
        assert_eq!(&store.binding("kept").unwrap().unwrap().value[..], b"second");
        assert_eq!(store.binding("gone").unwrap(), None);
        assert_eq!(store.setting("key").unwrap().as_deref(), Some(&b"value"[..]));
    };
    // its generations do not follow from its numbers: both are told by the records when the headers are gone
    let headless = copy(directory.path());
    for segment in segments(headless.path()) {
        fs::OpenOptions::new().write(true).open(segment).unwrap().write_all_at(&[0; PAGE], 0).unwrap();
    }
    for place in [headless.path(), directory.path()] {
        let (mut store, report) = Store::open(disk(place), options.clone()).unwrap();
        assert!(report.unreadable_files.is_empty() && report.damaged_bytes == 0, "{report:?}");
        assert_old(&mut store);
    }
    let (mut store, _) = Store::open(disk(directory.path()), options.clone()).unwrap();
    store.commit(puts(60..62, 900)).unwrap();
    assert_eq!(segments(directory.path()).len(), 2, "what fits goes on in a segment of version 1");
    store.commit(puts(50..58, 7000)).unwrap();
    assert_eq!(segments(directory.path()).len(), 3);
    drop(store);
    let report = rebuild_index(disk(directory.path()), options.clone()).unwrap();
    assert_eq!((report.damaged_bytes, report.torn), (0, false), "{report:?}");
    let (mut store, _) = Store::open(disk(directory.path()), options).unwrap();
    assert_old(&mut store);
    assert_all_there(&mut store, 60..62, 900);
    store.clean_begin();
    let kept = (50..58).map(|number| hash(&content(number, 7000)));
    store.clean_mark(&kept.collect::<Vec<_>>()).unwrap();
    while !store.clean_step(1 << 20).unwrap().done {}
    assert_eq!(store.status().spare_segments, 0);
    assert_all_there(&mut store, 50..58, 7000);
}
