//! What is left when there is hardly room: the reserve, what counts as used, and segments of another size.

use crate::common::faults::FaultDisk;
use crate::common::*;
use larder_store::{CommitError, Disk, Hash, Op, Options, Prepare, Store};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

fn used(directory: &Path) -> u64 {
    let files = fs::read_dir(directory).unwrap();
    files.map(|file| file.unwrap().metadata().unwrap().blocks() * 512).sum()
}

fn clean<D: Disk>(store: &mut Store<D>, marked: impl Iterator<Item = (u64, usize)>) {
    store.clean_begin();
    let marked: Vec<Hash> = marked.map(|(number, length)| hash(&content(number, length))).collect();
    store.clean_mark(&marked).unwrap();
    while !store.clean_step(1 << 20).unwrap().done {}
}

#[test]
fn binding_names_to_the_last_byte_leaves_room_to_take_away_and_to_clean() {
    for prepare in [Prepare::None, Prepare::Allocate] {
        let directory = tempfile::tempdir().unwrap();
        let options = Options { quota_bytes: 6 << 20, reserve_bytes: 2 << 20, prepare, ..options() };
        let (mut store, _) = Store::open(disk(directory.path()), options.clone()).unwrap();
        let mut blocks = 0;
        while store.commit(puts(blocks..blocks + 5, 8000)).is_ok() {
            blocks += 5;
        }
        let mut bound = 0;
        let error = loop {
            match store.commit(vec![bind(&format!("name{bound}"), "value")]) {
                Ok(_) => bound += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(error, CommitError::Full { .. }), "{error}");
        assert!(bound > 50, "{bound} names");
        store.commit(vec![unbind("name1")]).unwrap();
        let gone = (0..blocks).filter(|number| number % 5 > 1);
        store.commit(gone.map(|number| Op::Delete { hash: hash(&content(number, 8000)) }).collect()).unwrap();
        clean(&mut store, (0..blocks).filter(|number| number % 5 < 2).map(|number| (number, 8000)));
        assert!(used(directory.path()) <= options.quota_bytes);
        store.commit(vec![bind("one more", "value")]).unwrap();
        store.commit(puts(1000..1005, 8000)).unwrap();
    }
}

#[test]
fn under_a_quota_below_what_is_used_nothing_is_put_and_all_can_be_taken_away() {
    let (large, small) = (12 << 20, 3 << 20);
    for at_start in [true, false] {
        let directory = tempfile::tempdir().unwrap();
        let options = |quota_bytes| Options {
            quota_bytes,
            reserve_bytes: 1 << 20,
            prepare: Prepare::Allocate,
            spare_segments_max: 8,
            ..options()
        };
        let (mut store, _) = Store::open(disk(directory.path()), options(large)).unwrap();
        let mut blocks = 0;
        while store.commit(puts(blocks..blocks + 5, 8000)).is_ok() {
            blocks += 5;
        }
        if at_start {
            store.close().unwrap();
            store = Store::open(disk(directory.path()), options(small)).unwrap().0;
        } else {
            store.set_quota(small, 1 << 20);
        }
        assert_eq!(store.status().quota_bytes, small);
        let used_before = used(directory.path());
        let refused = store.commit(puts(blocks..blocks + 1, 8000));
        assert!(matches!(refused, Err(CommitError::Full { .. })), "{refused:?}");
        store.commit(vec![bind("name", "is deleted")]).unwrap();
        let kept = 100;
        store.commit((kept..blocks).map(|n| Op::Delete { hash: hash(&content(n, 8000)) }).collect()).unwrap();
        clean(&mut store, (0..kept).map(|number| (number, 8000)));
        assert!(used_before > small && used(directory.path()) < small, "{}", used(directory.path()));
        assert_all_there(&mut store, 0..kept, 8000);
        store.commit(puts(1000..1005, 8000)).unwrap();
        let mut bound =
            |number: u32| store.commit(vec![bind(&format!("{number:0>900}"), "a long name")]).is_ok();
        let names = (0..10_000).take_while(|number| bound(*number)).count();
        let after = used(directory.path());
        assert!(names < 10_000 && after <= small, "{names} names and {after} bytes under the smaller quota");
        store.set_quota(large, 1 << 20);
        let mut more = 2000;
        while store.commit(puts(more..more + 5, 8000)).is_ok() {
            more += 5;
        }
        assert!((small..=large).contains(&used(directory.path())), "the larger quota is filled again");
    }
}

#[test]
fn spares_beyond_a_smaller_quota_go_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let options = Options {
        quota_bytes: 32 << 20,
        reserve_bytes: 1 << 20,
        prepare: Prepare::Allocate,
        spare_segments_max: 8,
        ..options()
    };
    let (mut store, _) = Store::open(disk(directory.path()), options.clone()).unwrap();
    for first in (0..600).step_by(10) {
        store.commit(puts(first..first + 10, 8000)).unwrap();
    }
    clean(&mut store, std::iter::empty());
    let before = store.status();
    store.set_quota(8 << 20, 1 << 20);
    let after = store.status();
    assert!(after.spare_segments < before.spare_segments, "{before:?} {after:?}");
    assert!(after.spare_disk_bytes <= 1 << 20 && used(directory.path()) < 8 << 20, "{after:?}");
}

#[test]
fn everything_in_a_full_store_can_be_deleted_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let options =
        Options { segment_bytes: 1 << 20, quota_bytes: 12 << 20, reserve_bytes: 3 << 20, ..options() };
    let (mut store, _) = Store::open(disk(directory.path()), options.clone()).unwrap();
    let mut blocks = 0;
    while store.commit(puts(blocks..blocks + 50, 1000)).is_ok() {
        blocks += 50;
    }
    let deletion = |number| Op::Delete { hash: hash(&content(number, 1000)) };
    store.commit((0..blocks).map(deletion).collect()).unwrap();
    store.checkpoint().unwrap();
    assert_eq!(store.status().blocks, 0);
    assert!(used(directory.path()) <= options.quota_bytes);
}

#[test]
fn what_was_written_to_longer_segments_is_cleaned_into_shorter_ones() {
    let directory = tempfile::tempdir().unwrap();
    let options = |segment_bytes| Options { segment_bytes, ..options() };
    let (mut store, _) = Store::open(disk(directory.path()), options(4 << 20)).unwrap();
    store.commit(puts(0..30, 100_000)).unwrap();
    store.commit(puts(100..140, 100_000)).unwrap();
    store.close().unwrap();
    let (mut store, _) = Store::open(disk(directory.path()), options(64 << 10)).unwrap();
    store.commit(puts(200..201, 100)).unwrap();
    let long = segments(directory.path()).remove(0);
    clean(&mut store, (0..10).chain(100..140).map(|number| (number, 100_000)));
    assert!(!long.exists());
    store.close().unwrap();
    for _ in 0..2 {
        let (mut store, _) = Store::open(disk(directory.path()), options(64 << 10)).unwrap();
        assert_all_there(&mut store, 0..10, 100_000);
        assert_all_there(&mut store, 200..201, 100);
        drop(store);
        larder_store::rebuild_index(disk(directory.path()), options(64 << 10)).unwrap();
    }
    let (mut store, _) = Store::open(disk(directory.path()), options(64 << 10)).unwrap();
    assert!(matches!(store.commit(puts(300..301, 100_000)), Err(CommitError::TooLarge { .. })));
}

#[test]
fn long_names_are_moved_in_batches_that_fit() {
    let directory = tempfile::tempdir().unwrap();
    let options = Options { segment_bytes: 64 << 10, ..options() };
    let (mut store, _) = Store::open(disk(directory.path()), options).unwrap();
    let name = |number: u64| format!("{number:06}{}", "x".repeat(2000));
    for first in (0..60).step_by(10) {
        let binds = (first..first + 10).map(|number| bind(&name(number), "v"));
        store.commit(binds.chain(puts(first..first + 1, 9000)).collect()).unwrap();
    }
    clean(&mut store, std::iter::empty());
    for number in 0..60 {
        assert_eq!(&store.binding(&name(number)).unwrap().unwrap().value[..], b"v");
    }
}

#[test]
fn an_index_that_was_set_aside_in_use_counts_and_goes_where_its_room_is_needed() {
    for (room, stays) in [(64 << 20, true), (128 << 10, false)] {
        let directory = tempfile::tempdir().unwrap();
        let options =
            |quota_bytes| Options { index_cache_bytes: 0, cache_bytes: 0, quota_bytes, ..options() };
        let (mut store, _) = Store::open(disk(directory.path()), options(1 << 30)).unwrap();
        for batch in 0..10 {
            store.commit(puts(batch * 500..batch * 500 + 500, 64)).unwrap();
        }
        store.close().unwrap();
        let quota_bytes = used(directory.path()) + options(0).reserve_bytes + room;
        let (mut store, _) = Store::open(disk(directory.path()), options(quota_bytes)).unwrap();
        rot_index(directory.path());
        assert_all_there(&mut store, 0..5000, 64);
        assert!(store.status().index_rebuilt.is_some());
        assert_eq!(directory.path().join("index.damaged-1").exists(), stays);
        assert!(used(directory.path()).abs_diff(store.status().used_bytes) <= 8192);
    }
}

#[test]
fn a_spare_that_can_be_neither_opened_nor_removed_counts_and_stops_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let options = Options { spare_segments_max: 4, prepare: Prepare::Allocate, ..options() };
    let (mut store, _) = Store::open(disk(directory.path()), options.clone()).unwrap();
    for first in (0..100).step_by(5) {
        store.commit(puts(first..first + 5, 5000)).unwrap();
    }
    clean(&mut store, std::iter::empty());
    let spares = store.status().spare_segments;
    assert!(spares > 0);
    store.close().unwrap();
    let faulty = FaultDisk::new(disk(directory.path()));
    faulty.faults.refuse("spare-");
    let (mut store, _) = Store::open(faulty, options).unwrap();
    assert_eq!(store.status().spare_segments, spares);
    assert!(used(directory.path()) <= store.status().used_bytes + 8192);
    store.commit(puts(200..210, 5000)).unwrap();
}
