//! What the store makes of bad luck: each case ends in a clear message, and everything else is served.

use crate::common::faults::FaultDisk;
use crate::common::*;
use bytes::Bytes;
use larder_store::{
    Check, CommitError, Hash, MaintainError, Op, OpenError, OpenReport, Options, OsDisk, Prepare, ReadError,
    ReadTo, Store, VerifyPosition,
};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::SeqCst;

/// A closed store with 100 blocks of 5000 bytes and a name, over several segments.
fn filled() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, _) = open(directory.path());
    for batch in 0..10 {
        store.commit(puts(batch * 10..batch * 10 + 10, 5000)).unwrap();
    }
    store.commit(vec![bind("name", "value"), set("key", Some("setting"))]).unwrap();
    store.close().unwrap();
    directory
}

fn assert_filled(directory: &Path) -> OpenReport {
    let (mut store, report) = open(directory);
    assert_all_there(&mut store, 0..100, 5000);
    assert_eq!(&store.binding("name").unwrap().unwrap().value[..], b"value");
    assert_eq!(store.setting("key").unwrap().as_deref(), Some(&b"setting"[..]));
    let blocks = store.status().blocks;
    assert_eq!((blocks, store.status().names), (100 + u64::from(blocks > 100), 1));
    store.commit(puts(100..101, 10)).unwrap();
    report
}

fn flip(path: &Path, offset: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
}

/// The segment file with these bytes, and where.
fn find(directory: &Path, bytes: &[u8]) -> (std::path::PathBuf, u64) {
    segments(directory)
        .into_iter()
        .find_map(|path| {
            let content = fs::read(&path).unwrap();
            let at = content.windows(bytes.len()).position(|window| window == bytes)?;
            Some((path, at as u64))
        })
        .unwrap()
}

#[test]
fn a_second_process_is_told_which_directory_is_in_use() {
    let directory = tempfile::tempdir().unwrap();
    let (_store, _) = open(directory.path());
    let error = Store::open(disk(directory.path()), options()).unwrap_err();
    assert!(matches!(error, OpenError::Locked { .. }));
    assert!(error.to_string().contains(directory.path().to_str().unwrap()), "{error}");
}

#[test]
fn a_newer_format_is_refused_with_both_versions_and_the_way_out() {
    let directory = filled();
    let superblock = directory.path().join("superblock");
    let mut page = fs::read(&superblock).unwrap();
    page[8] = 9;
    let check = crc32c::crc32c(&page[..60]);
    page[60..64].copy_from_slice(&check.to_le_bytes());
    fs::write(&superblock, page).unwrap();
    let message = Store::open(disk(directory.path()), options()).unwrap_err().to_string();
    assert!(message.contains("format 9") && message.contains("up to 2") && message.contains("upgrade"));
}

#[test]
fn no_store_is_made_unless_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let options = Options { create: false, ..options() };
    let error = Store::open(disk(directory.path()), options).unwrap_err();
    assert!(matches!(error, OpenError::Missing { .. }), "{error}");
}

#[test]
fn impossible_options_name_what_is_allowed() {
    let directory = tempfile::tempdir().unwrap();
    for options in [
        Options { segment_bytes: 5000, ..options() },
        Options { segment_bytes: 4096, ..options() },
        Options { table_entries: 0, ..options() },
        Options { reserve_bytes: 10, quota_bytes: 10, ..options() },
    ] {
        let error = Store::open(disk(directory.path()), options).unwrap_err();
        assert!(matches!(error, OpenError::Option { .. }), "{error}");
    }
}

#[test]
fn a_read_only_directory_says_so() {
    let directory = filled();
    let faulty = FaultDisk::new(disk(directory.path()));
    faulty.faults.read_only.store(true, SeqCst);
    let error = Store::open(faulty, options()).unwrap_err();
    assert!(matches!(error, OpenError::ReadOnly { .. }), "{error}");
    assert!(error.to_string().contains("mount it read-write"), "{error}");
}

#[test]
fn a_store_that_nothing_tells_the_id_of_begins_anew_and_keeps_its_files_for_a_look() {
    let directory = filled();
    fs::write(directory.path().join("superblock"), [0; 4096]).unwrap();
    for path in segments(directory.path()) {
        fs::OpenOptions::new().write(true).open(path).unwrap().write_all_at(&[0; 4096], 0).unwrap();
    }
    let count = segments(directory.path()).len();
    let (mut store, report) = open(directory.path());
    assert!(report.created && report.index_rebuilt.is_some(), "{report:?}");
    assert_eq!(report.unreadable_files.len(), count);
    assert!(report.unreadable_files.iter().all(|name| directory.path().join(name).exists()), "{report:?}");
    store.commit(puts(0..10, 100)).unwrap();
    drop(store);
    let (mut store, report) = open(directory.path());
    assert!(!report.created && report.unreadable_files.is_empty(), "{report:?}");
    assert_all_there(&mut store, 0..10, 100);
}

#[test]
fn a_lost_or_damaged_superblock_is_written_again() {
    let directory = filled();
    let superblock = directory.path().join("superblock");
    fs::remove_file(&superblock).unwrap();
    assert!(assert_filled(directory.path()).superblock_restored);
    flip(&superblock, 20);
    assert!(assert_filled(directory.path()).superblock_restored);
    assert!(!assert_filled(directory.path()).superblock_restored);
}

#[test]
fn an_index_that_is_gone_cut_zeroed_or_torn_is_made_again() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 6] = [
        ("deleted", |index| fs::remove_file(index).unwrap()),
        ("emptied", |index| fs::write(index, []).unwrap()),
        ("zeroed", |index| {
            let length = fs::metadata(index).unwrap().len();
            fs::write(index, vec![0; length as usize]).unwrap();
        }),
        ("halved", |index| {
            let length = fs::metadata(index).unwrap().len();
            fs::OpenOptions::new().write(true).open(index).unwrap().set_len(length / 2).unwrap();
        }),
        ("shortened to 100 bytes", |index| {
            fs::OpenOptions::new().write(true).open(index).unwrap().set_len(100).unwrap();
        }),
        ("overwritten with noise", |index| {
            let length = fs::metadata(index).unwrap().len();
            let noise = content(1, length as usize - 4096);
            fs::OpenOptions::new().write(true).open(index).unwrap().write_all_at(&noise, 4096).unwrap();
        }),
    ];
    for (what, damage) in damages {
        let directory = filled();
        damage(&directory.path().join("index.redb"));
        let report = assert_filled(directory.path());
        assert!(report.index_rebuilt.is_some(), "{what}: {report:?}");
        assert!(assert_filled(directory.path()).index_rebuilt.is_none(), "{what}");
    }
}

#[test]
fn an_index_of_another_store_or_of_another_time_is_made_again() {
    let (directory, other) = (filled(), filled());
    let index = |place: &Path| place.join("index.redb");
    fs::copy(index(other.path()), index(directory.path())).unwrap();
    let report = assert_filled(directory.path());
    assert!(report.index_rebuilt.unwrap().contains("another store"));

    let old = filled();
    let kept = fs::read(index(old.path())).unwrap();
    fs::remove_file(&segments(old.path())[0]).unwrap();
    let (store, report) = open(old.path());
    assert!(report.index_rebuilt.unwrap().contains("segment-00000000"));
    drop(store);
    fs::write(index(old.path()), kept).unwrap();
    assert!(open(old.path()).1.index_rebuilt.is_some());
    let aside = fs::read_dir(old.path()).unwrap();
    let aside = aside
        .filter(|entry| entry.as_ref().unwrap().file_name().to_str().unwrap().starts_with("index.damaged-"));
    assert_eq!(aside.count(), 1, "at most one damaged index is kept");
}

#[test]
fn an_index_of_an_earlier_layout_is_made_again_and_its_filter_goes() {
    let directory = filled();
    let index = directory.path().join("index.redb");
    fs::remove_file(&index).unwrap();
    // Up to layout 4 the file was redb's own.
    let database = redb::Database::create(&index).unwrap();
    let change = database.begin_write().unwrap();
    let meta = redb::TableDefinition::<&str, &[u8]>::new("meta");
    change.open_table(meta).unwrap().insert("layout", [4].as_slice()).unwrap();
    change.commit().unwrap();
    drop(database);
    fs::write(directory.path().join("filter"), content(1, 5000)).unwrap();
    let report = assert_filled(directory.path());
    assert!(report.index_rebuilt.unwrap().contains("layout"));
    assert!(!directory.path().join("filter").exists());
    assert!(assert_filled(directory.path()).index_rebuilt.is_none());
}

#[test]
fn the_last_batch_torn_at_every_byte_is_dropped_whole_and_the_rest_is_served() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, _) = open(directory.path());
    store.commit(puts(0..2, 700)).unwrap();
    store.checkpoint().unwrap();
    store.commit(puts(2..4, 700)).unwrap();
    let end = fs::metadata(&segments(directory.path())[0]).unwrap().len();
    store.commit([puts(4..7, 1300), vec![bind("name", "value")]].concat()).unwrap();
    let killed = copy_to_memory(directory.path());
    drop(store);
    let segment = segments(killed.path())[0].clone();
    let whole = fs::read(&segment).unwrap();
    let index = fs::read(killed.path().join("index.redb")).unwrap();
    let records_end = whole.iter().rposition(|byte| *byte != 0).unwrap() as u64;
    for cut in end..=records_end {
        // A lost length at some bytes, lost bytes at all of them.
        for zeroed in [true, false].into_iter().take(1 + usize::from(cut % 16 == 0)) {
            let mut torn = whole[..cut as usize].to_vec();
            if zeroed {
                torn.resize(whole.len(), 0);
            }
            fs::write(&segment, torn).unwrap();
            fs::write(killed.path().join("index.redb"), &index).unwrap();
            let (mut store, report) = open(killed.path());
            assert_eq!((report.replayed_batches, report.damaged_bytes), (1, 0), "cut at {cut}: {report:?}");
            assert_all_there(&mut store, 0..4, 700);
            assert!((4..7).all(|number| !store.has(&hash(&content(number, 1300))).unwrap()));
            assert_eq!(store.binding("name").unwrap(), None);
            if cut % 256 == 0 {
                store.commit(puts(4..7, 1300)).unwrap();
                drop(store);
                let (mut store, _) = open(killed.path());
                assert_all_there(&mut store, 4..7, 1300);
            }
        }
    }
}

/// A store whose block 33 has a wrong bit, 1,234 bytes behind its beginning; the block as it was, its file and place.
fn with_a_flipped_bit() -> (tempfile::TempDir, Bytes, PathBuf, u64) {
    let directory = filled();
    let bytes = content(33, 5000);
    let (path, at) = find(directory.path(), &bytes);
    flip(&path, at + 1234);
    (directory, bytes, path, at)
}

#[test]
fn a_flipped_bit_in_a_block_is_an_error_that_names_it_and_a_new_put_heals_it() {
    let (directory, bytes, path, at) = with_a_flipped_bit();
    let (mut store, _) = open(directory.path());
    let error = store.get(&hash(&bytes)).unwrap_err();
    let ReadError::Damaged { hash: named, file, offset } = &error else { panic!("{error}") };
    assert_eq!(*named, hash(&bytes));
    assert_eq!(path.file_name().unwrap().to_str().unwrap(), file);
    assert_eq!(*offset, at - 64);
    assert!(!store.has(&hash(&bytes)).unwrap());
    assert_all_there(&mut store, 0..33, 5000);
    assert_all_there(&mut store, 34..100, 5000);
    store.close().unwrap();

    let (mut store, _) = open(directory.path());
    assert!(!store.has(&hash(&bytes)).unwrap(), "the quarantine is remembered");
    assert_eq!(store.commit(vec![put(&bytes)]).unwrap().stored, 1);
    assert!(store.has(&hash(&bytes)).unwrap());
    assert_all_there(&mut store, 0..100, 5000);
    assert_eq!(store.status().damaged, 0);
}

#[test]
fn what_its_receiver_checks_is_read_as_it_is_until_it_is_known_to_be_damaged() {
    let (directory, bytes, ..) = with_a_flipped_bit();
    let (mut store, _) = open(directory.path());
    let mut room = [7; 6000];
    let mut read = |room: &mut [u8], check| store.read_to(room, &hash(&bytes), check);
    assert_eq!(read(&mut room[..4999], Check::Here).unwrap(), ReadTo::TooLong);
    assert_eq!(read(&mut room, Check::ByReceiver).unwrap(), ReadTo::Bytes(5000));
    assert_eq!(room[1235..5000], bytes[1235..]);
    assert_eq!((room[1234] ^ bytes[1234]).count_ones(), 1);
    for check in [Check::Here, Check::ByReceiver] {
        let error = read(&mut room, check).unwrap_err();
        assert!(matches!(error, ReadError::Damaged { hash: named, .. } if named == hash(&bytes)), "{error}");
    }
    let whole = content(34, 5000);
    assert_eq!(store.read_to(&mut room, &hash(&whole), Check::Here).unwrap(), ReadTo::Bytes(5000));
    assert_eq!(room[..5000], whole);
    assert_eq!(store.read_to(&mut room, &[9; 32], Check::ByReceiver).unwrap(), ReadTo::NotStored);
}

#[test]
fn a_range_of_a_damaged_block_is_an_error_even_where_its_bytes_are_whole_and_none_of_a_deleted_one() {
    let (directory, damaged, ..) = with_a_flipped_bit();
    let deleted = content(34, 5000);
    let (mut store, _) = open(directory.path());
    for range in [0..10, 1230..1240, 4990..5000] {
        let error = store.read_range(&hash(&damaged), range).unwrap_err();
        assert!(
            matches!(&error, ReadError::Damaged { hash: named, .. } if *named == hash(&damaged)),
            "{error}"
        );
    }
    store.commit(vec![Op::Delete { hash: hash(&deleted) }]).unwrap();
    assert_eq!(store.read_range(&hash(&deleted), 0..10).unwrap(), None);
    let whole = content(35, 5000);
    assert_eq!(store.read_range(&hash(&whole), 0..10).unwrap().unwrap(), whole.slice(..10));
}

#[test]
fn verifying_finds_every_damaged_block_and_mends_names() {
    let directory = filled();
    for number in [3, 70] {
        let (path, at) = find(directory.path(), &content(number, 5000));
        flip(&path, at);
    }
    let (path, at) = find(directory.path(), b"value");
    flip(&path, at);
    let (mut store, _) = open(directory.path());
    let mut position = None;
    let (mut damaged, mut blocks, mut mended): (Vec<Hash>, u64, u64) = Default::default();
    loop {
        let step = store.verify_step(position, 40_000).unwrap();
        assert!(step.bytes <= 45_000);
        damaged.extend(step.damaged);
        (blocks, mended) = (blocks + step.blocks, mended + step.mended);
        let Some(next) = step.next else { break };
        position = Some(next);
    }
    let mut expected = vec![hash(&content(3, 5000)), hash(&content(70, 5000))];
    expected.sort_unstable();
    assert_eq!((damaged, blocks, mended), (expected, 100, 1));
    drop(store);
    let report = larder_store::rebuild_index(disk(directory.path()), options()).unwrap();
    assert!(report.damaged_bytes > 0);
    let (mut store, _) = open(directory.path());
    assert_eq!(&store.binding("name").unwrap().unwrap().value[..], b"value");
    assert_eq!(store.verify_step(Some(VerifyPosition::Names(None)), 1).unwrap().mended, 0);
}

#[test]
fn damage_in_the_middle_of_the_log_costs_only_what_it_hit() {
    let directory = filled();
    let (path, at) = find(directory.path(), &content(33, 5000));
    for damage in [at, at - 64, at - 30] {
        let place = copy(directory.path());
        flip(&place.path().join(path.file_name().unwrap()), damage);
        let report = larder_store::rebuild_index(disk(place.path()), options()).unwrap();
        assert!(report.damaged_bytes > 0 && report.salvaged_records == 9, "{report:?}");
        let (mut store, _) = open(place.path());
        assert_all_there(&mut store, 0..33, 5000);
        assert_all_there(&mut store, 34..100, 5000);
        assert!(!store.has(&hash(&content(33, 5000))).unwrap());
        assert!(!matches!(store.get(&hash(&content(33, 5000))), Ok(Some(_))));
    }
}

#[test]
fn a_damaged_segment_header_loses_nothing() {
    let directory = filled();
    for segment in segments(directory.path()) {
        flip(&segment, 35);
    }
    assert_filled(directory.path());
    larder_store::rebuild_index(disk(directory.path()), options()).unwrap();
    assert_filled(directory.path());
}

#[test]
fn a_process_killed_in_mid_work_loses_no_acknowledged_batch() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, _) = open(directory.path());
    for batch in 0..20 {
        store.commit(puts(batch * 5..batch * 5 + 5, 3000)).unwrap();
        if batch % 7 == 0 {
            store.checkpoint().unwrap();
        }
        let killed = copy(directory.path());
        let (mut other, report) = open(killed.path());
        assert!(report.index_rebuilt.is_none(), "{report:?}");
        assert_all_there(&mut other, 0..batch * 5 + 5, 3000);
    }
}

fn faulty(directory: &Path, prepare: Prepare) -> (FaultDisk, Store<FaultDisk>) {
    let disk = FaultDisk::new(OsDisk::new(directory).unwrap());
    let (store, _) = Store::open(disk.clone(), Options { prepare, ..options() }).unwrap();
    (disk, store)
}

#[test]
fn a_failed_sync_is_not_retried_the_batch_goes_to_a_new_segment() {
    let directory = tempfile::tempdir().unwrap();
    let (disk, mut store) = faulty(directory.path(), Prepare::None);
    store.commit(puts(0..10, 1000)).unwrap();
    disk.faults.failing_syncs.store(1, SeqCst);
    let before = disk.faults.segment_syncs.load(SeqCst);
    store.commit(puts(10..20, 1000)).unwrap();
    assert_eq!(disk.faults.segment_syncs.load(SeqCst) - before, 2);
    assert_eq!(segments(directory.path()).len(), 2);
    assert_eq!(store.status().write_faults, 1);
    assert!(store.status().last_fault.unwrap().contains("segment-00000000"));
    store.commit(puts(20..30, 1000)).unwrap();
    let killed = copy(directory.path());
    let (mut store, _) = open(killed.path());
    assert_all_there(&mut store, 0..30, 1000);
}

#[test]
fn after_two_failed_syncs_writes_are_refused_and_reads_go_on() {
    let directory = tempfile::tempdir().unwrap();
    let (disk, mut store) = faulty(directory.path(), Prepare::None);
    store.commit(puts(0..10, 1000)).unwrap();
    disk.faults.failing_syncs.store(2, SeqCst);
    let error = store.commit(puts(10..20, 1000)).unwrap_err();
    assert!(matches!(error, CommitError::Stopped { .. }), "{error}");
    let error = store.commit(puts(20..21, 1000)).unwrap_err();
    assert!(error.to_string().contains("it still reads"), "{error}");
    for number in 0..10 {
        assert_eq!(store.get(&hash(&content(number, 1000))).unwrap(), Some(content(number, 1000)));
    }
    assert!(!store.has(&hash(&content(10, 1000))).unwrap());
    store.close().unwrap();
    let (mut store, _) = open(directory.path());
    assert_all_there(&mut store, 0..10, 1000);
    assert!(!store.has(&hash(&content(10, 1000))).unwrap());
    store.commit(puts(10..20, 1000)).unwrap();
}

#[test]
fn the_quota_is_hard_and_deleting_still_works() {
    for prepare in [Prepare::None, Prepare::Allocate] {
        let directory = tempfile::tempdir().unwrap();
        let quota_bytes = 6 << 20;
        let options = Options { quota_bytes, reserve_bytes: 2 << 20, prepare, ..options() };
        let (mut store, _) = Store::open(disk(directory.path()), options.clone()).unwrap();
        let mut stored = 0;
        let error = loop {
            match store.commit(puts(stored..stored + 5, 8000)) {
                Ok(_) => stored += 5,
                Err(error) => break error,
            }
        };
        assert!(matches!(error, CommitError::Full { .. }), "{error}");
        assert!(stored > 100, "{stored} blocks fit");
        let used = || -> u64 {
            let files = fs::read_dir(directory.path()).unwrap();
            files
                .map(|file| std::os::unix::fs::MetadataExt::blocks(&file.unwrap().metadata().unwrap()) * 512)
                .sum()
        };
        assert!(used() <= quota_bytes - (2 << 20), "{} bytes", used());
        assert!(used().abs_diff(store.status().used_bytes) <= 8192);
        let deletes = (0..stored).map(|number| Op::Delete { hash: hash(&content(number, 8000)) });
        store.commit(deletes.collect()).unwrap();
        store.commit(vec![bind("name", "value")]).unwrap();
        store.checkpoint().unwrap();
        assert!(used() <= quota_bytes);
        clean(&mut store, &[]);
        assert!(used() < 2 << 20, "{} bytes after cleaning", used());
        store.close().unwrap();
        let (mut store, _) = Store::open(disk(directory.path()), options).unwrap();
        store.commit(puts(0..5, 8000)).unwrap();
        assert_eq!(&store.binding("name").unwrap().unwrap().value[..], b"value");
    }
}

fn clean(store: &mut Store<OsDisk>, marked: &[Hash]) {
    store.clean_begin();
    store.clean_mark(marked).unwrap();
    while !store.clean_step(1 << 20).unwrap().done {}
}

#[test]
fn a_full_device_refuses_the_batch_and_breaks_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (disk, mut store) = faulty(directory.path(), Prepare::None);
    store.commit(puts(0..10, 1000)).unwrap();
    disk.faults.room.store(3000, SeqCst);
    let error = store.commit(puts(10..20, 1000)).unwrap_err();
    assert!(matches!(error, CommitError::Full { .. }), "{error}");
    assert_eq!(store.get(&hash(&content(3, 1000))).unwrap(), Some(content(3, 1000)));
    assert!(!store.has(&hash(&content(10, 1000))).unwrap());
    let killed = copy(directory.path());
    let (mut other, _) = open(killed.path());
    assert_all_there(&mut other, 0..10, 1000);
    disk.faults.room.store(-1, SeqCst);
    store.commit(puts(10..20, 1000)).unwrap();
    store.close().unwrap();
    let (mut store, _) = open(directory.path());
    assert_all_there(&mut store, 0..20, 1000);
}

#[test]
fn a_checkpoint_without_room_changes_nothing_and_the_next_one_succeeds() {
    let directory = tempfile::tempdir().unwrap();
    let (disk, mut store) = faulty(directory.path(), Prepare::None);
    for round in 0..3 {
        store.commit(puts(round * 10..round * 10 + 10, 1000)).unwrap();
        disk.faults.index_full.store(true, SeqCst);
        let error = store.checkpoint().unwrap_err();
        assert!(matches!(error, MaintainError::Full { .. }), "{error}");
        disk.faults.index_full.store(false, SeqCst);
        assert!(store.has(&hash(&content(0, 1000))).unwrap());
        let killed = copy(directory.path());
        assert_all_there(&mut open(killed.path()).0, 0..round * 10 + 10, 1000);
        store.checkpoint().unwrap();
    }
    store.close().unwrap();
    let (mut store, report) = open(directory.path());
    assert!(report.clean && report.index_rebuilt.is_none());
    assert_all_there(&mut store, 0..30, 1000);
}

#[test]
fn a_full_device_can_be_opened_and_read() {
    let directory = filled();
    let disk = FaultDisk::new(OsDisk::new(directory.path()).unwrap());
    disk.faults.room.store(0, SeqCst);
    let (mut store, _) = Store::open(disk.clone(), options()).unwrap();
    for number in 0..100 {
        assert_eq!(store.get(&hash(&content(number, 5000))).unwrap(), Some(content(number, 5000)));
    }
    let error = store.commit(puts(100..101, 10)).unwrap_err();
    assert!(matches!(error, CommitError::Full { .. }), "{error}");
    disk.faults.room.store(-1, SeqCst);
    store.commit(puts(100..101, 10)).unwrap();
}

#[test]
fn an_index_page_that_rots_while_open_costs_no_answer() {
    let directory = tempfile::tempdir().unwrap();
    let options = Options { index_cache_bytes: 0, cache_bytes: 0, segment_bytes: 1 << 20, ..options() };
    let (mut store, _) = Store::open(disk(directory.path()), options).unwrap();
    for batch in 0..10 {
        store.commit(puts(batch * 500..batch * 500 + 500, 64)).unwrap();
    }
    store.checkpoint().unwrap();
    rot_index(directory.path());
    assert_all_there(&mut store, 0..5000, 64);
    assert!(store.status().index_rebuilt.is_some());
    drop(store);
    let (mut store, _) = open(directory.path());
    assert_all_there(&mut store, 0..5000, 64);
}

#[test]
fn a_batch_that_could_not_be_applied_whole_is_seen_whole_by_the_next_question() {
    let directory = filled();
    let (disk, mut store) = faulty(directory.path(), Prepare::None);
    let block = content(200, 5000);
    store.commit(vec![put(&block)]).unwrap();
    // what is bound is looked up when the batch is durable
    disk.faults.starved_index_reads.store(1, SeqCst);
    let both = vec![bind("name", "other"), Op::Delete { hash: hash(&block) }];
    let error = store.commit(both).unwrap_err();
    assert!(matches!(error, CommitError::Index { .. }), "{error}");
    assert_eq!(disk.faults.starved_index_reads.load(SeqCst), 0);
    let committed = store.commit(vec![put(&block)]).unwrap();
    assert_eq!((committed.stored, committed.already_there), (1, 0), "the batch had deleted it");
    assert_eq!(&store.binding("name").unwrap().unwrap().value[..], b"other");
    drop(store);
    let (mut store, _) = open(directory.path());
    assert_eq!(store.get(&hash(&block)).unwrap(), Some(block));
    assert_all_there(&mut store, 0..100, 5000);
}

#[test]
fn an_index_that_could_not_be_read_for_want_of_memory_is_opened_again_and_not_made_again() {
    let directory = filled();
    let disk = FaultDisk::new(OsDisk::new(directory.path()).unwrap());
    let options = Options { index_cache_bytes: 0, cache_bytes: 0, ..options() };
    let (mut store, _) = Store::open(disk.clone(), options).unwrap();
    store.commit(vec![bind("other", "value")]).unwrap();
    disk.faults.starved_index_reads.store(1, SeqCst);
    let error = store.binding("name").unwrap_err();
    assert!(matches!(error, ReadError::Index { .. }), "{error}");
    // nor while the file does not open either
    disk.faults.index_opens.lock().unwrap().push(24);
    assert!(store.binding("name").is_err());
    for name in ["name", "other"] {
        assert_eq!(&store.binding(name).unwrap().unwrap().value[..], b"value");
    }
    assert_eq!(store.status().index_rebuilt, None);
    disk.faults.starved_index_reads.store(1, SeqCst);
    assert!(store.checkpoint().is_err());
    store.checkpoint().unwrap();
    for number in 0..100 {
        assert_eq!(store.get(&hash(&content(number, 5000))).unwrap(), Some(content(number, 5000)));
    }
    assert_eq!((store.status().index_rebuilt, store.status().names), (None, 2));
    store.close().unwrap();
    let (mut store, report) = open(directory.path());
    assert!(report.clean, "{report:?}");
    assert_all_there(&mut store, 0..100, 5000);
    assert_eq!(&store.binding("other").unwrap().unwrap().value[..], b"value");
}

#[test]
fn killed_while_runs_are_merged_nothing_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let options = Options { segment_bytes: 4 << 20, ..options() };
    let (mut store, _) = Store::open(disk(directory.path()), options.clone()).unwrap();
    let mut runs = Vec::new();
    for batch in 0..40 {
        // a tenth of what is there goes with each batch
        let gone =
            (0..batch * 100).step_by(10).map(|number| Op::Delete { hash: hash(&content(number * 10, 16)) });
        store.commit(gone.collect()).unwrap();
        store.commit(puts(batch * 1000..batch * 1000 + 1000, 16)).unwrap();
        store.checkpoint().unwrap();
        runs.push(store.status().runs);
        if batch % 3 == 0 {
            let killed = copy_to_memory(directory.path());
            let (mut other, report) = Store::open(disk(killed.path()), options.clone()).unwrap();
            assert!(report.index_rebuilt.is_none(), "{report:?}");
            for number in (0..(batch + 1) * 1000).step_by(17) {
                let is_gone = number % 100 == 0 && number < batch * 1000;
                assert_eq!(other.has(&hash(&content(number, 16))).unwrap(), !is_gone, "block {number}");
            }
            assert_eq!(other.status().blocks, store.status().blocks);
        }
    }
    assert!(
        runs.iter().any(|runs| *runs > 16) && runs.last() < Some(&16),
        "runs after checkpoints: {runs:?}"
    );
}

#[test]
fn a_sector_that_can_not_be_read_stops_neither_opening_nor_the_other_blocks() {
    let directory = tempfile::tempdir().unwrap();
    let (disk, mut store) = faulty(directory.path(), Prepare::None);
    for batch in 0..3 {
        store.commit(puts(batch * 10..batch * 10 + 10, 2000)).unwrap();
    }
    drop(store);
    let (_, at) = find(directory.path(), &content(14, 2000));
    disk.faults.bad_sector.store(at + 1000, SeqCst);
    let (mut store, report) = Store::open(disk.clone(), options()).unwrap();
    assert_eq!((report.replayed_batches, report.salvaged_records), (2, 9), "{report:?}");
    let reads = disk.faults.reads_of_bad_sector.load(SeqCst);
    assert!(reads <= 6, "each may take seconds, and there were {reads}");
    for number in 0..30 {
        let bytes = content(number, 2000);
        match store.get(&hash(&bytes)) {
            Err(ReadError::Damaged { .. }) => assert_eq!(number, 14),
            found => assert_eq!(found.unwrap(), Some(bytes)),
        }
    }
}

#[test]
fn a_file_system_that_reserves_nothing_takes_batches_all_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let (disk, mut store) = faulty(directory.path(), Prepare::Allocate);
    disk.faults.reserves_nothing.store(true, SeqCst);
    for batch in 0..20 {
        store.commit(puts(batch * 10..batch * 10 + 10, 5000)).unwrap();
    }
    assert!(store.status().segments > 2);
    drop(store);
    let (mut store, _) = Store::open(disk, options()).unwrap();
    assert!((0..200).all(|number| store.has(&hash(&content(number, 5000))).unwrap()));
}
