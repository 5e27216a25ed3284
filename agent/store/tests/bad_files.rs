//! Files that can not be opened or read, one at a time: the store starts, says so, and serves the rest.
#![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

mod common;

use common::faults::FaultDisk;
use common::*;
use larder_store::{OpenError, Store};
use std::sync::atomic::Ordering::SeqCst;

/// A closed store of several segments on a disk that can fail.
fn filled() -> (tempfile::TempDir, FaultDisk) {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, _) = open(directory.path());
    for batch in 0..20 {
        store.commit(puts(batch * 10..batch * 10 + 10, 5000)).unwrap();
    }
    store.close().unwrap();
    let disk = FaultDisk::new(disk(directory.path()));
    (directory, disk)
}

fn there(store: &mut Store<FaultDisk>) -> usize {
    (0..200).filter(|n| matches!(store.get(&hash(&content(*n, 5000))), Ok(Some(_)))).count()
}

#[test]
fn a_superblock_that_can_not_be_read_is_no_reason_to_begin_anew() {
    let (directory, disk) = filled();
    disk.faults.refuse("superblock");
    let (mut store, report) = Store::open(disk.clone(), options()).unwrap();
    assert!(!report.created && !report.superblock_restored, "{report:?}");
    assert_eq!(there(&mut store), 200);
    drop(store);
    // Every header was unreadable once, and can be read when it is looked at again.
    disk.faults.bad_reads.store(1 + segments(directory.path()).len() as u64, SeqCst);
    let error = Store::open(disk.clone(), options()).unwrap_err();
    assert!(matches!(error, OpenError::Io { .. } | OpenError::Unrecognised { .. }), "{error}");
    disk.faults.allow_all();
    assert_eq!(there(&mut Store::open(disk, options()).unwrap().0), 200);
}
