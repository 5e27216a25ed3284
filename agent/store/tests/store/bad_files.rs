//! Files that can not be opened or read, one at a time: the store starts, says so, and serves the rest.

use crate::common::faults::FaultDisk;
use crate::common::*;
use larder_store::{MaintainError, OpenError, Store};
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

#[test]
fn a_segment_that_does_not_open_costs_its_own_blocks_and_comes_back() {
    let (directory, disk) = filled();
    disk.faults.refuse("segment-00000001");
    let (mut store, report) = Store::open(disk.clone(), options()).unwrap();
    assert!(report.clean && report.index_rebuilt.is_none(), "{report:?}");
    assert_eq!(there(&mut store), 160);
    store.commit(puts(300..310, 5000)).unwrap();
    store.clean_begin();
    while !store.clean_step(1 << 20).unwrap().done {}
    drop(store);
    disk.faults.allow_all();
    assert!(directory.path().join("segment-00000001").exists());
}

#[test]
fn a_segment_that_the_index_does_not_know_and_that_does_not_open_stops_writes_until_it_opens() {
    let (directory, disk) = filled();
    std::fs::remove_file(directory.path().join("index.redb")).unwrap();
    disk.faults.refuse("segment-00000001");
    let (mut store, report) = Store::open(disk.clone(), options()).unwrap();
    assert_eq!(report.unreadable_files, ["segment-00000001"]);
    assert_eq!(there(&mut store), 160);
    let error = store.commit(puts(300..310, 5000)).unwrap_err();
    assert!(error.to_string().contains("segment-00000001 could not be read"), "{error}");
    drop(store);
    disk.faults.allow_all();
    let (mut store, _) = Store::open(disk, options()).unwrap();
    assert_eq!(there(&mut store), 200);
    store.commit(puts(300..310, 5000)).unwrap();
}

#[test]
fn an_emptied_segment_that_can_not_be_freed_is_freed_later() {
    let (directory, disk) = filled();
    let (mut store, _) = Store::open(disk.clone(), options()).unwrap();
    disk.faults.keeps_segments.store(true, SeqCst);
    store.clean_begin();
    let error = loop {
        match store.clean_step(1 << 20) {
            Ok(progress) => assert!(!progress.done),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, MaintainError::Io { .. }), "{error}");
    drop(store);
    let (mut store, report) = Store::open(disk.clone(), options()).unwrap();
    assert!(report.index_rebuilt.is_none(), "{report:?}");
    store.commit(puts(300..310, 5000)).unwrap();
    let before = segments(directory.path()).len();
    disk.faults.keeps_segments.store(false, SeqCst);
    store.clean_begin();
    while !store.clean_step(1 << 20).unwrap().done {}
    assert!(segments(directory.path()).len() < before);
}

/// The directory has to change before its sync says anything of names that a dead process may have left in memory.
#[test]
fn a_start_that_can_not_change_the_directory_reads_and_refuses_writes() {
    let (directory, disk) = filled();
    let (mut store, _) = Store::open(disk.clone(), options()).unwrap();
    store.commit(puts(300..310, 5000)).unwrap();
    drop(store);
    disk.faults.refuse("scratch");
    let (mut store, _) = Store::open(disk.clone(), options()).unwrap();
    assert_eq!(there(&mut store), 200);
    let error = store.commit(puts(310..320, 5000)).unwrap_err();
    assert!(error.to_string().contains("syncing the directory failed"), "{error}");
    drop(store);
    disk.faults.allow_all();
    std::fs::write(directory.path().join("scratch"), "left by a power cut").unwrap();
    let (mut store, _) = Store::open(disk, options()).unwrap();
    assert!(!directory.path().join("scratch").exists());
    store.commit(puts(310..320, 5000)).unwrap();
    assert_eq!(there(&mut store), 200);
}

#[test]
fn a_store_that_was_closed_behind_a_failed_sync_of_the_directory_does_it_at_the_next_start() {
    let (_directory, disk) = filled();
    let (mut store, _) = Store::open(disk.clone(), options()).unwrap();
    let starved = &disk.faults.starved_directory_syncs;
    starved.store(1000, SeqCst);
    store.clean_begin();
    while store.clean_step(1 << 20).is_ok_and(|progress| !progress.done) {}
    assert!(starved.load(SeqCst) < 1000);
    store.close().unwrap();
    starved.store(1, SeqCst);
    let error = Store::open(disk.clone(), options()).unwrap_err();
    assert!(matches!(error, OpenError::Io { .. }), "nothing is wrong with the store: {error}");
    assert_eq!(starved.load(SeqCst), 0);
    Store::open(disk, options()).unwrap();
}

#[test]
fn an_index_that_fails_to_open_once_is_not_made_again() {
    let (_directory, disk) = filled();
    disk.faults.index_opens.lock().unwrap().push(5);
    let (mut store, report) = Store::open(disk.clone(), options()).unwrap();
    assert!(report.clean && report.index_rebuilt.is_none(), "{report:?}");
    assert_eq!(there(&mut store), 200);
    drop(store);
    disk.faults.index_opens.lock().unwrap().extend([24, 24, 24]);
    let error = Store::open(disk.clone(), options()).unwrap_err();
    assert!(matches!(error, OpenError::Index { .. }), "{error}");
    disk.faults.index_opens.lock().unwrap().clear();
    assert!(Store::open(disk, options()).unwrap().1.index_rebuilt.is_none());
}

/// A start that could not read it has left it out of the index and gone on, so that it lies behind the checkpoint.
#[test]
fn a_segment_that_was_left_out_and_has_lost_its_header_is_read_and_not_taken_for_empty() {
    let (directory, disk) = filled();
    std::fs::remove_file(directory.path().join("index.redb")).unwrap();
    let name = "segment-00000001";
    disk.faults.refuse(name);
    let (store, report) = Store::open(disk.clone(), options()).unwrap();
    assert_eq!(report.unreadable_files, [name]);
    drop(store);
    disk.faults.allow_all();
    let mut bytes = std::fs::read(directory.path().join(name)).unwrap();
    bytes[35] ^= 1;
    std::fs::write(directory.path().join(name), bytes).unwrap();
    let (mut store, report) = Store::open(disk.clone(), options()).unwrap();
    assert_eq!(report.index_rebuilt.as_deref(), Some("it does not know segment-00000001"));
    assert_eq!(there(&mut store), 200);
    let kept: Vec<_> = (0..200).map(|number| hash(&content(number, 5000))).collect();
    store.clean_begin();
    store.clean_mark(&kept).unwrap();
    while !store.clean_step(1 << 20).unwrap().done {}
    assert_eq!(there(&mut store), 200);
    drop(store);
    assert!(Store::open(disk, options()).unwrap().1.index_rebuilt.is_none(), "once is enough");
}

/// Its header says where the segment before it ends: what was written behind that would be gone when it is read again.
#[test]
fn behind_a_segment_whose_header_was_not_read_the_log_goes_on_in_a_new_one() {
    let (directory, disk) = filled();
    let newest = segments(directory.path()).last().unwrap().clone();
    // as if the process had died before the first batch in it, and before any checkpoint
    std::fs::File::options().write(true).open(&newest).unwrap().set_len(4096).unwrap();
    std::fs::remove_file(directory.path().join("index.redb")).unwrap();
    let name = newest.file_name().unwrap().to_str().unwrap().to_owned();
    *disk.faults.bad_header_of.lock().unwrap() = Some(name.clone());
    let (mut store, report) = Store::open(disk.clone(), options()).unwrap();
    assert_eq!(report.unreadable_files, [name]);
    store.commit(puts(300..301, 100)).unwrap();
    drop(store);
    disk.faults.allow_all();
    let (mut store, _) = Store::open(disk, options()).unwrap();
    let bytes = content(300, 100);
    assert_eq!(store.get(&hash(&bytes)).unwrap(), Some(bytes));
}
