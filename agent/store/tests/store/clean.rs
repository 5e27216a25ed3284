//! Cleaning gives space back and loses nothing.

use crate::common::faults::FaultDisk;
use crate::common::*;
use larder_store::{Hash, MaintainError, Op, Options, OsDisk, Store, rebuild_index};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::SeqCst;

/// 300 blocks of 4000 bytes; only every third is worth keeping.
fn mixed(directory: &Path) -> Store<OsDisk> {
    let (mut store, _) = open(directory);
    for batch in 0..30 {
        store.commit(puts(batch * 10..batch * 10 + 10, 4000)).unwrap();
        store.commit(vec![bind(&format!("n{}", batch % 7), &batch.to_string())]).unwrap();
    }
    store.commit(vec![set("key", Some("value")), unbind("n0")]).unwrap();
    store
}

fn kept() -> Vec<Hash> {
    (0..300).step_by(3).map(|number| hash(&content(number, 4000))).collect()
}

fn assert_kept(store: &mut Store<OsDisk>) {
    for number in (0..300).step_by(3) {
        assert_all_there(store, number..number + 1, 4000);
    }
    let names = store.bindings("", None, 100).unwrap();
    assert_eq!(
        names.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
        ["n1", "n2", "n3", "n4", "n5", "n6"]
    );
    assert_eq!(&names[0].1.value[..], b"29");
    assert_eq!(store.changes(0, 100).unwrap().len(), 6);
    assert_eq!(store.setting("key").unwrap().as_deref(), Some(&b"value"[..]));
}

#[test]
fn space_is_given_back_and_what_was_marked_stays() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = mixed(directory.path());
    let changes = store.changes(0, 100).unwrap();
    let before = store.status();
    store.clean_begin();
    kept().chunks(7).for_each(|hashes| store.clean_mark(hashes).unwrap());
    let (mut freed, mut dropped) = (0, 0);
    loop {
        let progress = store.clean_step(100_000).unwrap();
        assert!(progress.bytes_read <= 200_000, "{progress:?}");
        (freed, dropped) = (freed + progress.bytes_freed, dropped + progress.blocks_dropped);
        if progress.done {
            break;
        }
    }
    let after = store.status();
    assert!(freed > 700_000 && dropped >= 150, "{freed} bytes, {dropped} blocks");
    assert!(after.used_bytes + 400_000 < before.used_bytes);
    assert_kept(&mut store);
    assert_eq!(store.changes(0, 100).unwrap(), changes, "moved names keep their sequence numbers");
    assert!(matches!(store.clean_step(1), Err(MaintainError::NotCleaning)));
    store.close().unwrap();
    assert_kept(&mut open(directory.path()).0);
    rebuild_index(disk(directory.path()), options()).unwrap();
    let (mut store, report) = open(directory.path());
    assert_eq!(report.damaged_bytes, 0);
    assert_kept(&mut store);
    assert_eq!(store.changes(0, 100).unwrap(), changes);
}

#[test]
fn killed_between_any_two_steps_nothing_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = mixed(directory.path());
    store.clean_begin();
    store.clean_mark(&kept()).unwrap();
    loop {
        let done = store.clean_step(30_000).unwrap().done;
        let killed = copy(directory.path());
        let (mut other, _) = open(killed.path());
        assert_kept(&mut other);
        drop(other);
        std::fs::remove_file(killed.path().join("index.redb")).unwrap();
        assert_kept(&mut open(killed.path()).0);
        if done {
            break;
        }
    }
}

#[test]
fn what_is_written_or_found_present_meanwhile_stays() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = mixed(directory.path());
    store.clean_begin();
    store.clean_mark(&kept()).unwrap();
    let found = content(1, 4000);
    let put_again = content(4, 4000);
    assert!(store.has(&hash(&found)).unwrap());
    assert_eq!(store.commit(vec![put(&put_again)]).unwrap().already_there, 1);
    let mut number = 1000;
    while !store.clean_step(20_000).unwrap().done {
        store.commit(puts(number..number + 1, 4000)).unwrap();
        number += 1;
    }
    assert!(number > 1010);
    assert_all_there(&mut store, 1..2, 4000);
    assert_all_there(&mut store, 4..5, 4000);
    assert_all_there(&mut store, 1000..number, 4000);
    assert_kept(&mut store);
    let gone = (0..300).filter(|number| !store.has(&hash(&content(*number, 4000))).unwrap()).count();
    assert!(gone > 150, "{gone}");
}

#[test]
fn what_is_deleted_by_request_is_what_was_neither_marked_nor_written_since() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, _) = open(directory.path());
    store.commit(puts(0..30, 4000)).unwrap();
    let hashes: Vec<Hash> = (0..60).map(|number| hash(&content(number, 4000))).collect();
    assert!(matches!(store.clean_delete(&hashes), Err(MaintainError::NotCleaning)));
    store.clean_begin();
    store.clean_mark(&hashes[..10]).unwrap();
    store.commit(puts(30..40, 4000)).unwrap();
    store.commit(puts(10..12, 4000)).unwrap(); // found present
    assert!(store.has(&hashes[12]).unwrap(), "somebody relies on the answer");
    let syncs = store.status().batches;
    let twice: Vec<Hash> = hashes.iter().chain(&hashes).copied().collect();
    assert_eq!(store.clean_delete(&twice).unwrap(), 30 - 13);
    assert_eq!(store.status().batches, syncs + 1);
    assert_eq!(store.clean_delete(&hashes).unwrap(), 0);
    let there = (0..13).chain(30..40);
    for _ in 0..2 {
        for (number, hash) in hashes.iter().enumerate() {
            assert_eq!(store.has(hash).unwrap(), there.clone().any(|here| here == number), "{number}");
        }
        drop(store);
        rebuild_index(disk(directory.path()), options()).unwrap();
        (store, _) = open(directory.path());
    }
}

#[test]
fn what_one_cleaning_takes_for_marked_by_mistake_the_next_ones_do_not() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, _) = open(directory.path());
    for from in (0..4000).step_by(400) {
        store.commit(puts(from..from + 400, 8)).unwrap();
    }
    let garbage: Vec<Hash> = (0..4000).map(|number| hash(&content(number, 8))).collect();
    let others: Vec<Hash> = (0..80_000).map(|number| hash(&content(number, 9))).collect();
    let (mut left, mut kept) = (4000, Vec::new());
    for _ in 0..4 {
        store.clean_begin();
        store.clean_mark(&others).unwrap();
        left -= store.clean_delete(&garbage).unwrap();
        assert_eq!(store.clean_delete(&garbage).unwrap(), 0);
        store.clean_abort();
        assert!(left > 0 || store.status().blocks == 0);
        kept.push(left);
    }
    assert!(kept[0] > 0 && kept[3] == 0, "{kept:?}");
}

#[test]
fn deletions_are_not_forgotten_while_what_they_delete_is_on_disk() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, _) = open(directory.path());
    // A first segment that is nearly all live, so it is not cleaned, with one block that is deleted later.
    store.commit(puts(0..55, 4000)).unwrap();
    store.commit([puts(100..150, 4000), vec![bind("name", "old")]].concat()).unwrap();
    let mut ops: Vec<Op> =
        (100..150).map(|number| Op::Delete { hash: hash(&content(number, 4000)) }).collect();
    ops.extend([Op::Delete { hash: hash(&content(7, 4000)) }, unbind("name")]);
    store.commit(ops).unwrap();
    store.commit(puts(200..255, 4000)).unwrap();
    let marked: Vec<Hash> = (0..55).chain(200..255).map(|number| hash(&content(number, 4000))).collect();
    for _ in 0..3 {
        store.clean_begin();
        store.clean_mark(&marked).unwrap();
        while !store.clean_step(1 << 20).unwrap().done {}
        store.commit(puts(300..301, 4000)).unwrap();
    }
    drop(store);
    rebuild_index(disk(directory.path()), options()).unwrap();
    let (mut store, _) = open(directory.path());
    assert!(!store.has(&hash(&content(7, 4000))).unwrap());
    assert_eq!(store.binding("name").unwrap(), None);
    assert_all_there(&mut store, 0..7, 4000);
    assert_all_there(&mut store, 200..255, 4000);
}

#[test]
fn a_deletion_that_is_moved_does_not_take_back_a_later_put() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, _) = open(directory.path());
    let again = content(7, 4000);
    // The first segment stays, so deletions are kept; the second holds one and little else that is live.
    store.commit([puts(0..55, 4000), vec![put(&content(55, 4000))]].concat()).unwrap();
    let deletions = vec![Op::Delete { hash: hash(&again) }, Op::Delete { hash: hash(&content(9, 4000)) }];
    store.commit([puts(100..155, 4000), deletions].concat()).unwrap();
    store.commit([vec![put(&again)], puts(200..254, 4000)].concat()).unwrap();
    store.commit(puts(300..310, 4000)).unwrap();
    let marked: Vec<Hash> =
        (0..56).chain(200..254).chain(300..310).map(|number| hash(&content(number, 4000))).collect();
    store.clean_begin();
    store.clean_mark(&marked).unwrap();
    let mut moved = 0;
    loop {
        let progress = store.clean_step(1 << 20).unwrap();
        moved += progress.bytes_moved;
        if progress.done {
            break;
        }
    }
    assert!(moved > 0, "the deletion of block 9 is moved");
    drop(store);
    for _ in 0..2 {
        let (mut store, _) = open(directory.path());
        assert_all_there(&mut store, 7..8, 4000);
        assert!(!store.has(&hash(&content(9, 4000))).unwrap());
        drop(store);
        rebuild_index(disk(directory.path()), options()).unwrap();
    }
}

#[test]
fn an_aborted_cleaning_keeps_everything_marked() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = mixed(directory.path());
    store.clean_begin();
    store.clean_mark(&kept()).unwrap();
    store.clean_step(50_000).unwrap();
    store.clean_abort();
    assert_kept(&mut store);
    store.close().unwrap();
    assert_kept(&mut open(directory.path()).0);
}

#[test]
fn a_segment_with_damage_is_left_alone_and_served() {
    let directory = tempfile::tempdir().unwrap();
    let store = mixed(directory.path());
    store.close().unwrap();
    let first = segments(directory.path())[0].clone();
    let mut bytes = std::fs::read(&first).unwrap();
    let at = bytes.windows(4000).position(|window| window == &content(2, 4000)[..]).unwrap();
    bytes[at - 40] ^= 1;
    std::fs::write(&first, bytes).unwrap();
    let (mut store, _) =
        Store::open(disk(directory.path()), Options { cache_bytes: 0, ..options() }).unwrap();
    store.clean_begin();
    store.clean_mark(&kept()).unwrap();
    while !store.clean_step(1 << 20).unwrap().done {}
    assert!(first.exists());
    assert_kept(&mut store);
}

/// A killed store of several segments, on a disk that can not read the sector with one of its names for now; the file
/// with that sector.
fn with_an_unread_name(directory: &Path) -> (FaultDisk, PathBuf) {
    with_a_bad_sector(directory, b"value 7")
}

/// The same of the sector in which these bytes begin.
fn with_a_bad_sector(directory: &Path, bytes: &[u8]) -> (FaultDisk, PathBuf) {
    let (mut store, _) = open(directory);
    for batch in 0..20 {
        store.commit(puts(batch * 10..batch * 10 + 10, 5000)).unwrap();
        store.commit(vec![bind(&format!("n{batch}"), &format!("value {batch}"))]).unwrap();
    }
    drop(store);
    let place = segments(directory).into_iter().find_map(|path| {
        let content = std::fs::read(&path).unwrap();
        let at = content.windows(bytes.len()).position(|window| window == bytes)?;
        Some((path, at as u64))
    });
    let (path, at) = place.unwrap();
    let disk = FaultDisk::new(disk(directory));
    *disk.faults.bad_sector_of.lock().unwrap() = Some(path.file_name().unwrap().to_str().unwrap().into());
    disk.faults.bad_sector.store(at, SeqCst);
    (disk, path)
}

/// Cleans a store of which no block is kept; how many bytes were freed.
fn clean_all(store: &mut Store<FaultDisk>) -> u64 {
    let mut freed = 0;
    store.clean_begin();
    loop {
        let progress = store.clean_step(1 << 20).unwrap();
        freed += progress.bytes_freed;
        if progress.done {
            return freed;
        }
    }
}

fn assert_named(store: &mut Store<FaultDisk>, name: &str, value: &str) {
    let found = store.binding(name).unwrap().map(|binding| binding.value);
    assert_eq!(found.as_deref(), Some(value.as_bytes()), "{name}");
}

fn blocks_there(store: &mut Store<FaultDisk>) -> usize {
    (0..200).filter(|number| store.has(&hash(&content(*number, 5000))).unwrap()).count()
}

/// The name whose record can not be read may lead to blocks in any segment.
#[test]
fn nothing_is_given_back_while_the_device_does_not_read_a_part_of_the_log_and_what_it_reads_again_is_there() {
    let directory = tempfile::tempdir().unwrap();
    let (disk, unread) = with_an_unread_name(directory.path());
    let (mut store, report) = Store::open(disk.clone(), options()).unwrap();
    assert!(report.damaged_bytes > 0 && store.binding("n7").unwrap().is_none(), "{report:?}");
    let name = unread.file_name().unwrap().to_str().unwrap();
    for start in 0..4 {
        // at each start it is looked at anew
        assert_eq!(store.status().unread, [name], "start {start}");
        let files = segments(directory.path());
        for _ in 0..2 {
            store.clean_begin();
            let error = store.clean_step(1 << 20).unwrap_err();
            assert!(matches!(error, MaintainError::Unread { .. }), "{error}");
            let words = error.to_string();
            assert!(words.contains(name) && words.contains("index rebuild"), "{error}");
            let error = store.clean_delete(&[hash(&content(0, 5000))]).unwrap_err();
            assert!(matches!(error, MaintainError::Unread { .. }), "{error}");
        }
        assert_eq!((blocks_there(&mut store), segments(directory.path())), (200, files));
        store.checkpoint().unwrap();
        drop(store);
        store = Store::open(disk.clone(), options()).unwrap().0;
        assert_eq!(store.status().index_rebuilt, None);
    }
    disk.faults.bad_sector.store(0, SeqCst);
    clean_all(&mut store);
    assert!(store.status().index_rebuilt.is_some() && store.status().unread.is_empty());
    assert!(!unread.exists(), "all of it was read");
    (0..20).for_each(|batch| assert_named(&mut store, &format!("n{batch}"), &format!("value {batch}")));
}

#[test]
fn what_the_device_never_reads_is_given_up_at_the_third_cleaning_and_its_segment_stays() {
    let directory = tempfile::tempdir().unwrap();
    let (disk, unread) = with_an_unread_name(directory.path());
    let (mut store, _) = Store::open(disk.clone(), options()).unwrap();
    for _ in 0..2 {
        store.clean_begin();
        store.clean_step(1 << 20).unwrap_err();
    }
    clean_all(&mut store);
    assert!(store.status().unread.is_empty() && unread.exists());
    assert!(
        segments(directory.path()).len() <= 3,
        "the others are cleaned: {:?}",
        segments(directory.path())
    );
    store.close().unwrap();
    let (mut store, _) = Store::open(disk.clone(), options()).unwrap();
    assert!(store.status().unread.is_empty(), "a later start knows");
    clean_all(&mut store);
    assert!(unread.exists());
    drop(store);
    disk.faults.bad_sector.store(0, SeqCst);
    rebuild_index(disk.clone(), options()).unwrap();
    let (mut store, _) = Store::open(disk, options()).unwrap();
    assert_named(&mut store, "n7", "value 7");
}

#[test]
fn what_a_rebuild_that_was_asked_for_can_not_read_either_holds_nothing_up_and_is_never_cleaned() {
    let directory = tempfile::tempdir().unwrap();
    let (disk, unread) = with_an_unread_name(directory.path());
    assert!(rebuild_index(disk.clone(), options()).unwrap().damaged_bytes > 0);
    for start in 0..3 {
        let (mut store, report) = Store::open(disk.clone(), options()).unwrap();
        assert!(report.index_rebuilt.is_none() && report.damaged_bytes == 0, "{report:?}");
        assert!(store.status().unread.is_empty());
        for batch in 0..10 {
            let first = 1000 + start * 100 + batch * 10;
            store.commit(puts(first..first + 10, 5000)).unwrap();
        }
        assert!(clean_all(&mut store) > 400_000, "the other segments are cleaned");
        assert!(unread.exists(), "start {start}");
        store.close().unwrap();
        disk.faults.bad_sector.store(0, SeqCst);
    }
    assert_eq!(rebuild_index(disk.clone(), options()).unwrap().damaged_bytes, 0);
    let (mut store, _) = Store::open(disk, options()).unwrap();
    (0..20).for_each(|batch| assert_named(&mut store, &format!("n{batch}"), &format!("value {batch}")));
    clean_all(&mut store);
    assert!(!unread.exists(), "a rebuild read all of it");
}

/// All that is not known of the stretch is what the block says, and which it is its record's header tells.
#[test]
fn a_block_that_can_not_be_read_holds_up_its_own_segment_alone() {
    let directory = tempfile::tempdir().unwrap();
    let (disk, unread) = with_a_bad_sector(directory.path(), &content(75, 5000)[2000..2600]);
    for rebuilt in [false, true] {
        if rebuilt {
            rebuild_index(disk.clone(), options()).unwrap();
        }
        let (mut store, report) = Store::open(disk.clone(), options()).unwrap();
        assert_eq!((report.damaged_blocks, report.salvaged_records), if rebuilt { (0, 0) } else { (1, 9) });
        assert!(store.status().unread.is_empty() && store.status().damaged == 1);
        let kept: Vec<Hash> = (70..80).map(|number| hash(&content(number, 5000))).collect();
        store.clean_begin();
        store.clean_mark(&kept).unwrap();
        while !store.clean_step(1 << 20).unwrap().done {}
        assert!(unread.exists() && segments(directory.path()).len() <= 3, "{:?}", segments(directory.path()));
        store.close().unwrap();
    }
    disk.faults.bad_sector.store(0, SeqCst);
    let (mut store, _) = Store::open(disk, options()).unwrap();
    for number in 70..80 {
        assert_eq!(store.get(&hash(&content(number, 5000))).unwrap(), Some(content(number, 5000)));
    }
    assert_named(&mut store, "n7", "value 7");
}

#[test]
fn an_index_that_is_made_again_in_use_finds_what_could_not_be_read_before_and_it_is_cleaned() {
    let directory = tempfile::tempdir().unwrap();
    let (disk, unread) = with_an_unread_name(directory.path());
    let (store, _) = Store::open(disk.clone(), options()).unwrap();
    store.close().unwrap();
    disk.faults.bad_sector.store(0, SeqCst);
    let (mut store, report) = Store::open(disk, options()).unwrap();
    assert!(report.clean, "{report:?}");
    rot_index(directory.path());
    for number in 0..200 {
        assert!(store.has(&hash(&content(number, 5000))).unwrap());
    }
    assert!(store.status().index_rebuilt.is_some());
    assert_named(&mut store, "n7", "value 7");
    clean_all(&mut store);
    assert!(!unread.exists());
    assert_named(&mut store, "n7", "value 7");
}

#[test]
fn a_read_that_goes_wrong_while_a_block_is_moved_costs_no_block() {
    let directory = tempfile::tempdir().unwrap();
    let options = Options { segment_bytes: 4 << 20, cache_bytes: 0, ..options() };
    let (mut store, _) = Store::open(disk(directory.path()), options.clone()).unwrap();
    store.commit(puts(0..40, 50_000)).unwrap();
    store.commit(puts(40..75, 50_000)).unwrap();
    store.commit(puts(100..140, 50_000)).unwrap();
    store.close().unwrap();
    let live: Vec<u64> = (0..75).step_by(2).chain(100..140).collect();
    let marked: Vec<Hash> = live.iter().map(|number| hash(&content(*number, 50_000))).collect();
    let mut reads = 0;
    for wrong in 1.. {
        let place = copy_to_memory(directory.path());
        let disk = FaultDisk::new(disk(place.path()));
        let (mut store, _) = Store::open(disk.clone(), options.clone()).unwrap();
        store.clean_begin();
        store.clean_mark(&marked).unwrap();
        disk.faults.wrong_read.store(wrong, SeqCst);
        while !store.clean_step(1 << 30).unwrap().done {}
        if disk.faults.wrong_read.swap(0, SeqCst) > 0 {
            break;
        }
        for (number, hash) in live.iter().zip(&marked) {
            assert!(matches!(store.get(hash), Ok(Some(_))), "block {number}, wrong was read {wrong}");
        }
        reads = wrong;
    }
    assert!(reads > 20, "{reads} reads");
}
