//! A rotten bit in what the index says about the log: the index is made again, and the log loses nothing by it.
#![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

mod common;

use common::*;
use larder_store::Op;
use redb::{Database, ReadableDatabase, TableDefinition};
use std::fs;
use std::path::Path;

/// A killed store: sealed segments, a checkpoint, and a batch behind it.
fn killed() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, _) = open(directory.path());
    for batch in 0..16 {
        store.commit(puts(batch * 10..batch * 10 + 10, 5000)).unwrap();
    }
    store.commit((0..8).map(|number| Op::Delete { hash: hash(&content(number, 5000)) }).collect()).unwrap();
    store.checkpoint().unwrap();
    store.commit(puts(160..170, 5000)).unwrap();
    copy_to_memory(directory.path())
}

/// The bytes of everything in the index that decides over the log.
fn deciding(directory: &Path) -> Vec<(&'static str, Vec<u8>)> {
    let place = copy_to_memory(directory);
    let database = Database::open(place.path().join("index.redb")).unwrap();
    let read = database.begin_read().unwrap();
    let meta = read.open_table(TableDefinition::<&str, &[u8]>::new("meta")).unwrap();
    let segments = read.open_table(TableDefinition::<u32, &[u8]>::new("segments")).unwrap();
    let row = |id| segments.get(id).unwrap().unwrap().value().to_vec();
    let of = |key| meta.get(key).unwrap().unwrap().value().to_vec();
    vec![
        ("the first segment's row", row(0)),
        ("another row", row(1)),
        ("the checkpoint", of("checkpoint")),
        ("the runs", of("runs")),
    ]
}

#[test]
fn a_rotten_bit_in_rows_checkpoint_or_runs_costs_the_index_and_no_block() {
    let directory = killed();
    let raw = fs::read(directory.path().join("index.redb")).unwrap();
    for (what, bytes) in deciding(directory.path()) {
        let places: Vec<usize> =
            raw.windows(bytes.len()).enumerate().filter(|(_, w)| *w == bytes).map(|(at, _)| at).collect();
        assert!(!places.is_empty(), "{what}");
        for byte in 0..bytes.len() {
            let bit = 1 << (byte * 5 % 8);
            let place = copy_to_memory(directory.path());
            let mut rotten = raw.clone();
            places.iter().for_each(|at| rotten[at + byte] ^= bit);
            fs::write(place.path().join("index.redb"), rotten).unwrap();
            let (mut store, report) = open(place.path());
            assert!(report.index_rebuilt.is_some(), "{what}, byte {byte}: {report:?}");
            assert_all_there(&mut store, 8..170, 5000);
            store.commit(puts(200..210, 5000)).unwrap();
            drop(store);
            let (mut store, _) = open(place.path());
            assert_all_there(&mut store, 8..170, 5000);
            assert_all_there(&mut store, 200..210, 5000);
        }
    }
}

#[test]
fn an_index_that_was_closed_before_the_newest_segment_is_no_clean_end() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, _) = open(directory.path());
    store.commit(puts(0..10, 5000)).unwrap();
    store.close().unwrap();
    let older = fs::read(directory.path().join("index.redb")).unwrap();
    let (mut store, _) = open(directory.path());
    for batch in 1..8 {
        store.commit(puts(batch * 10..batch * 10 + 10, 5000)).unwrap();
    }
    drop(store);
    fs::write(directory.path().join("index.redb"), older).unwrap();
    let (mut store, report) = open(directory.path());
    assert!(!report.clean, "{report:?}");
    assert_all_there(&mut store, 0..80, 5000);
}
