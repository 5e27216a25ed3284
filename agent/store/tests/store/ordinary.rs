//! What the store promises when nothing goes wrong.

use crate::common::faults::FaultDisk;
use crate::common::*;
use bytes::Bytes;
use larder_store::{CommitError, Hash, Op, Options, Prepare, Store, limits, rebuild_index};

#[test]
fn what_was_put_is_read_back_before_and_after_reopening() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, report) = open(directory.path());
    assert!(report.created);
    let lengths = [0_usize, 1, 7, 511, 4096, 32_768, 122_880];
    let blocks: Vec<Bytes> = lengths.iter().map(|length| content(*length as u64, *length)).collect();
    let committed = store.commit(blocks.iter().map(put).collect()).unwrap();
    assert_eq!((committed.stored, committed.first_seq, committed.last_seq), (7, 1, 7));
    for block in &blocks {
        assert_eq!(store.get(&hash(block)).unwrap().as_ref(), Some(block));
    }
    store.close().unwrap();
    let (mut store, report) = open(directory.path());
    assert!(report.clean && report.replayed_batches == 0, "{report:?}");
    for block in &blocks {
        assert_eq!(store.get(&hash(block)).unwrap().as_ref(), Some(block));
        assert!(store.has(&hash(block)).unwrap());
    }
    assert_eq!(store.status().blocks, 7);
}

#[test]
fn a_range_is_cut_to_the_block() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, _) = open(directory.path());
    let block = content(1, 1000);
    store.commit(vec![put(&block)]).unwrap();
    assert_eq!(store.read_range(&hash(&block), 10..20).unwrap().unwrap(), block.slice(10..20));
    assert_eq!(store.read_range(&hash(&block), 990..5000).unwrap().unwrap(), block.slice(990..));
    assert_eq!(store.read_range(&hash(&block), 2000..3000).unwrap().unwrap(), Bytes::new());
    let (end, start) = (10, 20);
    assert_eq!(store.read_range(&hash(&block), start..end).unwrap().unwrap(), Bytes::new(), "reversed");
    let reversed = std::ops::Range { start: u32::MAX, end: 0 };
    assert_eq!(store.read_range(&hash(&block), reversed).unwrap().unwrap(), Bytes::new());
    assert_eq!(store.read_range(&[9; 32], 0..1).unwrap(), None);
}

#[test]
fn a_block_that_is_there_is_not_written_again_and_an_empty_batch_does_no_io() {
    let directory = tempfile::tempdir().unwrap();
    let disk = disk(directory.path());
    let (mut store, _) = Store::open(disk.clone(), options()).unwrap();
    let block = content(1, 4096);
    let committed = store.commit(vec![put(&block), put(&block)]).unwrap();
    assert_eq!((committed.stored, committed.already_there, committed.payload_bytes), (1, 1, 4096));
    let before = disk.counts();
    let committed = store.commit(vec![put(&block), unbind("nobody"), set("nothing", None)]).unwrap();
    assert_eq!((committed.stored, committed.already_there, committed.bytes_written), (0, 1, 0));
    assert_eq!((committed.first_seq, committed.last_seq), (2, 2));
    store.commit(Vec::new()).unwrap();
    store.commit(vec![Op::Delete { hash: [1; 32] }]).unwrap();
    assert_eq!(disk.counts(), before);
}

#[test]
fn each_batch_is_one_write_and_one_sync() {
    for prepare in [Prepare::None, Prepare::Allocate, Prepare::Zero] {
        let directory = tempfile::tempdir().unwrap();
        let disk = disk(directory.path());
        let options = Options { segment_bytes: 64 << 20, prepare, ..options() };
        let (mut store, _) = Store::open(disk.clone(), options).unwrap();
        store.commit(puts(0..1, 100)).unwrap();
        let before = disk.counts();
        for batch in 0..10 {
            store.commit(puts(batch * 100 + 1..batch * 100 + 101, 2048)).unwrap();
        }
        let after = disk.counts();
        assert_eq!(after.file_syncs - before.file_syncs, 10, "{prepare:?}");
        assert_eq!(after.writes - before.writes, 10, "{prepare:?}");
        assert_eq!(after.directory_syncs, before.directory_syncs, "{prepare:?}");
    }
}

#[test]
fn what_is_not_read_back_leaves_memory_once_it_is_durable() {
    for (reads_back, bytes, forgotten) in
        [(false, 8 << 10, true), (false, 100, false), (true, 8 << 10, false)]
    {
        let directory = tempfile::tempdir().unwrap();
        let disk = FaultDisk::new(disk(directory.path()));
        let options = Options { segment_bytes: 8 << 20, reads_back, ..options() };
        let (mut store, _) = Store::open(disk.clone(), options).unwrap();
        let written = store.commit(puts(0..100, bytes)).unwrap().bytes_written;
        let ranges = disk.faults.forgotten.lock().unwrap().clone();
        let expected = if forgotten { vec![(4096, 4096 + written)] } else { Vec::new() };
        assert_eq!(ranges, expected, "reads back: {reads_back}, {bytes} bytes");
        for number in 0..100 {
            let block = content(number, bytes);
            assert_eq!(store.get(&hash(&block)).unwrap(), Some(block));
        }
    }
}

/// A long one is handed over in pieces, so that the device writes while the next is copied.
#[test]
fn a_long_batch_is_a_few_writes_one_sync_and_the_same_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let options = Options { segment_bytes: 8 << 20, ..options() };
    let open = |path: &std::path::Path| Store::open(disk(path), options.clone()).unwrap();
    let (mut store, _) = open(directory.path());
    store.commit(puts(0..1, 5)).unwrap();
    let before = store.status().log_syncs;
    store.commit(puts(1..31, 120 << 10)).unwrap();
    assert_eq!(store.status().log_syncs - before, 1);
    drop(store);
    let (mut store, report) = open(directory.path());
    assert_eq!((report.replayed_batches, report.damaged_bytes, report.torn), (2, 0, false));
    for op in puts(1..31, 120 << 10) {
        let Op::Put { hash, bytes } = op else { unreachable!("puts") };
        assert_eq!(store.get(&hash).unwrap(), Some(bytes));
    }
}

/// Reserved room that a small batch was the first to write holds zeros behind it, which the next batches overwrite.
#[test]
fn small_batches_in_new_room_write_ahead_once() {
    let directory = tempfile::tempdir().unwrap();
    let disk = disk(directory.path());
    let options = Options { segment_bytes: 1 << 20, prepare: Prepare::Allocate, ..options() };
    let (mut store, _) = Store::open(disk.clone(), options.clone()).unwrap();
    store.commit(puts(0..1, 100)).unwrap();
    let before = disk.counts();
    for number in 1..15 {
        store.commit(puts(number..number + 1, 100)).unwrap();
    }
    assert_eq!(disk.counts().bytes - before.bytes, 14 * 4096, "up to 64 KiB all has been written once");
    store.commit(puts(15..16, 100)).unwrap();
    assert_eq!(disk.counts().bytes - before.bytes, 14 * 4096 + (64 << 10), "a batch and 15 pages of zeros");
    drop(store);
    let (store, report) = Store::open(disk, options).unwrap();
    assert_eq!((report.replayed_batches, report.damaged_bytes, report.torn), (16, 0, false));
    assert_eq!(store.status().blocks, 16);
}

#[test]
fn names_settings_and_changes_follow_the_newest_word() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, _) = open(directory.path());
    for round in 0..3 {
        store.commit(vec![bind("a/1", "one"), bind("a/2", "two"), bind("b", "three")]).unwrap();
        store
            .commit(vec![bind("a/1", "four"), unbind("b"), set("x/1", Some("y")), set("x/2", None)])
            .unwrap();
        if round == 1 {
            store.checkpoint().unwrap();
        }
        let names: Vec<String> =
            store.bindings("a/", None, 10).unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["a/1", "a/2"]);
        assert_eq!(store.bindings("a/", Some("a/1"), 10).unwrap().len(), 1);
        assert_eq!(store.bindings("", None, 1).unwrap().len(), 1);
        let binding = store.binding("a/1").unwrap().unwrap();
        assert_eq!(&binding.value[..], b"four");
        let changes = store.changes(0, 10).unwrap();
        let changed: Vec<&str> = changes.iter().map(|(_, name, _)| name.as_str()).collect();
        assert_eq!(changed, ["a/2", "a/1"]);
        assert_eq!(changes[1].0, binding.seq);
        assert_eq!(store.changes(binding.seq, 10).unwrap(), []);
        assert_eq!(store.changes(0, 1).unwrap().len(), 1);
        assert_eq!(store.setting("x/1").unwrap().as_deref(), Some(&b"y"[..]));
        assert_eq!(store.settings("x/").unwrap().len(), 1);
        assert_eq!(store.status().names, 2);
    }
}

#[test]
fn operations_of_a_batch_see_those_before_them() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, _) = open(directory.path());
    let block = content(1, 100);
    let delete = Op::Delete { hash: hash(&block) };
    store.commit(vec![put(&block), delete.clone(), bind("n", "1"), unbind("n")]).unwrap();
    assert!(!store.has(&hash(&block)).unwrap());
    assert_eq!(store.binding("n").unwrap(), None);
    store.commit(vec![put(&block), delete, put(&block)]).unwrap();
    assert_eq!(store.get(&hash(&block)).unwrap(), Some(block));
}

#[test]
fn too_large_is_refused_before_anything_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, _) = open(directory.path());
    let long = "n".repeat(limits::KEY_BYTES_MAX + 1);
    let big = Bytes::from(vec![0; limits::VALUE_BYTES_MAX + 1]);
    let refused = [
        vec![bind(&long, "")],
        vec![unbind(&long)],
        vec![set(&long, None)],
        vec![Op::Bind { name: "n".into(), value: big.clone() }],
        vec![Op::Put { hash: hash(&big), bytes: big }],
        puts(0..10, 32 << 10),
    ];
    for ops in refused {
        assert!(matches!(store.commit(ops), Err(CommitError::TooLarge { .. })));
    }
    assert_eq!(store.status().log_bytes_written, 0);
}

#[test]
fn many_segments_survive_rebuilding_the_index_and_reopening() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, _) = open(directory.path());
    for batch in 0..30 {
        store.commit(puts(batch * 10..batch * 10 + 10, 9000)).unwrap();
        store.commit(vec![bind(&format!("n{batch}"), "v"), set("last", Some(&batch.to_string()))]).unwrap();
    }
    assert!(segments(directory.path()).len() > 5);
    let killed = copy(directory.path());
    store.close().unwrap();
    for place in [directory.path(), killed.path()] {
        let (mut store, _) = open(place);
        assert_all_there(&mut store, 0..300, 9000);
        let seq = store.status().last_seq;
        drop(store);
        let report = rebuild_index(disk(place), options()).unwrap();
        assert!(report.index_rebuilt.is_some());
        assert_eq!(report.damaged_bytes, 0);
        let (mut store, report) = open(place);
        assert!(report.clean && report.index_rebuilt.is_none(), "{report:?}");
        assert_all_there(&mut store, 0..300, 9000);
        assert_eq!(store.bindings("", None, 100).unwrap().len(), 30);
        assert_eq!(store.setting("last").unwrap().as_deref(), Some(&b"29"[..]));
        assert_eq!((store.status().blocks, store.status().names), (300, 30));
        assert_eq!(store.status().last_seq, seq);
    }
}

#[test]
fn the_memory_table_stays_within_its_bound_without_anybody_asking() {
    let directory = tempfile::tempdir().unwrap();
    let options = Options { table_entries: 50, segment_bytes: 1 << 20, ..options() };
    let (mut store, _) = Store::open(disk(directory.path()), options.clone()).unwrap();
    for batch in 0..40 {
        store.commit(puts(batch * 20..batch * 20 + 20, 64)).unwrap();
        assert!(store.status().table_entries <= 120);
    }
    assert!(store.status().checkpoints >= 6);
    let killed = copy(directory.path());
    let (mut store, report) = Store::open(disk(killed.path()), options).unwrap();
    assert!(report.replayed_records < 200, "{report:?}");
    assert_all_there(&mut store, 0..800, 64);
}

#[test]
fn a_miss_asks_the_filter_and_not_the_index() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, _) = open(directory.path());
    store.commit(puts(0..100, 64)).unwrap();
    store.checkpoint().unwrap();
    for number in 1000..3000_u64 {
        assert!(!store.has(&hash(&number.to_le_bytes())).unwrap());
    }
    let status = store.status();
    assert!(status.filter_negatives >= 1980 && status.filter_false_positives <= 20, "{status:?}");
}

#[test]
fn the_cache_stays_within_its_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, _) = open(directory.path());
    for batch in 0..10 {
        store.commit(puts(batch * 10..batch * 10 + 10, 8192)).unwrap();
    }
    for _ in 0..2 {
        assert_all_there(&mut store, 0..100, 8192);
    }
    assert!(store.status().cache_bytes <= 64 << 10);
    let hits = store.status().cache_hits;
    for _ in 0..5 {
        assert_all_there(&mut store, 0..1, 8192);
    }
    assert!(store.status().cache_hits >= hits + 4);
}

#[test]
fn a_store_can_be_given_to_a_helper_thread() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, _) = open(directory.path());
    let store = std::thread::spawn(move || {
        store.commit(puts(0..3, 100)).unwrap();
        store
    });
    assert_all_there(&mut store.join().unwrap(), 0..3, 100);
}

#[test]
fn an_index_that_fits_its_cache_is_not_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let blocks = 20_000_u64;
    let hashes: Vec<Hash> = (0..blocks).map(|number| hash(&content(number, 16))).collect();
    let (mut store, _) = open(folder.path());
    for from in (0..blocks).step_by(1_000) {
        store.commit(puts(from..from + 1_000, 16)).unwrap();
    }
    store.close().unwrap();
    let read_by_a_second_look = |index_cache_bytes: usize| {
        let disk = disk(folder.path());
        let (mut store, _) = Store::open(disk.clone(), Options { index_cache_bytes, ..options() }).unwrap();
        let mut look = || {
            let before = disk.counts().bytes_read;
            assert!(hashes.iter().all(|hash| store.has(hash).unwrap()));
            disk.counts().bytes_read - before
        };
        look();
        look()
    };
    let (without, with) = (read_by_a_second_look(0), read_by_a_second_look(16 << 20));
    assert!(
        without > blocks * 1_024,
        "{without} bytes read for {blocks} blocks: they are not looked for in pages"
    );
    assert_eq!(with, 0);
}
