//! What rots in the index costs the index, which is made again, and nothing that the log has.

use crate::common::*;
use larder_store::{Hash, Op, Options, OsDisk, Store};
use std::fs;
use std::path::Path;

const PAGE: usize = 4096;
const SECTOR: usize = 512;
const BYTES: usize = 300;
const BLOCKS: u64 = 2400;
/// Of these every third block was deleted.
const DELETED: std::ops::Range<u64> = 0..1500;
const NAMES: u64 = 200;

/// A killed store whose trees have branches: two runs of many pages, names, settings, sealed segments with garbage,
/// a checkpoint, and a batch behind it.
fn killed() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, _) = open(directory.path());
    for half in 0..2 {
        for batch in 0..11 {
            let first = half * 1100 + batch * 100;
            store.commit(puts(first..first + 100, BYTES)).unwrap();
        }
        let gone = DELETED.filter(|number| number % 3 == 0 && number / 1100 == half);
        store.commit(gone.map(|number| Op::Delete { hash: name_of(number) }).collect()).unwrap();
        store.checkpoint().unwrap();
    }
    let names = (0..NAMES).map(|number| bind(&format!("name/{number:03}"), &number.to_string().repeat(20)));
    store.commit(names.chain([set("key", Some("value"))]).collect()).unwrap();
    store.checkpoint().unwrap();
    store.commit(puts(2200..BLOCKS, BYTES)).unwrap();
    copy_to_memory(directory.path())
}

fn name_of(number: u64) -> Hash {
    hash(&content(number, BYTES))
}

fn kept() -> impl Iterator<Item = u64> {
    (0..BLOCKS).filter(|number| number % 3 > 0 || !DELETED.contains(number))
}

fn assert_everything_is_there(store: &mut Store<OsDisk>, what: &str) {
    for number in kept() {
        let bytes = content(number, BYTES);
        assert_eq!(store.get(&hash(&bytes)).unwrap(), Some(bytes), "{what}: block {number}");
    }
    let names = store.bindings("", None, 1000).unwrap();
    assert_eq!(names.len() as u64, NAMES, "{what}");
    for (number, (name, binding)) in (0..NAMES).zip(names) {
        let value = number.to_string().repeat(20);
        assert_eq!((name, &binding.value[..]), (format!("name/{number:03}"), value.as_bytes()), "{what}");
        assert_eq!(store.binding(&format!("name/{number:03}")).unwrap().unwrap().value, value, "{what}");
    }
    assert_eq!(store.changes(0, 1000).unwrap().len() as u64, NAMES, "{what}");
    assert_eq!(store.setting("key").unwrap().as_deref(), Some(&b"value"[..]), "{what}");
}

/// Opens the store with other bytes in place of its index, cleans it or not, and asks it for everything. True if the
/// index was made again.
fn survives(directory: &Path, index: &[u8], clean: bool, what: &str) -> bool {
    let place = copy_to_memory(directory);
    fs::write(place.path().join("index.redb"), index).unwrap();
    let (mut store, _) = open(place.path());
    if clean {
        let marked: Vec<Hash> = kept().map(name_of).collect();
        store.clean_begin();
        store.clean_mark(&marked).unwrap();
        while !store.clean_step(1 << 20).unwrap().done {}
    }
    assert_everything_is_there(&mut store, what);
    store.status().index_rebuilt.is_some()
}

/// Numbers that look random, and are the same each time.
fn drawn(number: usize, below: usize) -> usize {
    let digest = blake3::hash(&number.to_le_bytes());
    u64::from_le_bytes(*digest.as_bytes().first_chunk().unwrap()) as usize % below
}

/// Pages of a file that something was written to.
fn written(index: &[u8]) -> Vec<usize> {
    let pages = index.chunks(PAGE).enumerate();
    pages.filter(|(_, page)| page.iter().any(|byte| *byte != 0)).map(|(number, _)| number).collect()
}

#[test]
fn a_rotten_bit_anywhere_in_the_index_loses_no_block_and_no_name() {
    let directory = killed();
    let whole = fs::read(directory.path().join("index.redb")).unwrap();
    assert!(!survives(directory.path(), &whole, false, "whole"));
    let pages = written(&whole);
    let mut noticed = 0;
    for (number, page) in pages.iter().flat_map(|page| [page; 6]).enumerate() {
        // Branches are short: half of the bits are near the beginning.
        let span = if number % 4 < 2 { 256 } else { PAGE };
        let (byte, bit) = (page * PAGE + drawn(2 * number, span), drawn(2 * number + 1, 8));
        let mut rotten = whole.clone();
        rotten[byte] ^= 1 << bit;
        let what = format!("byte {byte}, bit {bit}");
        noticed += usize::from(survives(directory.path(), &rotten, number % 2 == 0, &what));
    }
    println!("{noticed} of {} flips noticed in {} pages", 6 * pages.len(), pages.len());
    assert!(pages.len() > 40 && noticed > pages.len(), "{noticed} in {} pages", pages.len());
}

#[test]
fn a_page_of_the_index_that_is_lost_or_another_one_loses_no_block_and_no_name() {
    let directory = killed();
    let whole = fs::read(directory.path().join("index.redb")).unwrap();
    let pages = written(&whole);
    for (number, page) in pages.iter().flat_map(|page| [page; 3]).enumerate() {
        let range = page * PAGE..(page + 1) * PAGE;
        let other = pages[drawn(number, pages.len())];
        let mut rotten = whole.clone();
        match number % 3 {
            0 => rotten[range].fill(0),
            1 => rotten[range].copy_from_slice(&whole[other * PAGE..(other + 1) * PAGE]),
            _ => rotten[range].rotate_left(SECTOR),
        }
        survives(directory.path(), &rotten, number % 2 == 0, &format!("page {page}, kind {}", number % 3));
    }
}

#[test]
fn a_rotten_bit_in_the_header_of_the_index_is_noticed_at_each_byte() {
    let directory = killed();
    let whole = fs::read(directory.path().join("index.redb")).unwrap();
    let header = whole.windows(9).position(|bytes| bytes == b"redb\x1A\n\xA9\r\n").unwrap();
    for byte in 0..SECTOR {
        let place = copy_to_memory(directory.path());
        let mut rotten = whole.clone();
        rotten[header + byte] ^= 1 << (byte * 5 % 8);
        fs::write(place.path().join("index.redb"), rotten).unwrap();
        let (mut store, report) = open(place.path());
        assert!(report.index_rebuilt.is_some(), "byte {byte}");
        if byte % 16 == 0 {
            assert_everything_is_there(&mut store, &format!("byte {byte}"));
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

#[test]
fn an_index_that_rots_while_segments_are_cleaned_makes_no_others_be_cleaned() {
    let cleaning = || {
        let directory = killed();
        let options = Options { index_cache_bytes: 0, ..options() };
        let (mut store, _) = Store::open(disk(directory.path()), options).unwrap();
        store.clean_begin();
        store.clean_mark(&kept().map(name_of).collect::<Vec<_>>()).unwrap();
        (directory, store)
    };
    let step = |store: &mut Store<OsDisk>| store.clean_step(30_000).unwrap();
    let finish = |store: &mut Store<OsDisk>| {
        let mut moved = 0;
        loop {
            let step = step(store);
            moved += step.bytes_moved;
            if step.done {
                return moved;
            }
        }
    };
    let undisturbed = finish(&mut cleaning().1);
    for before in 1.. {
        let (directory, mut store) = cleaning();
        if (0..before).any(|_| step(&mut store).done) {
            assert!(before > 10, "there were few steps to disturb");
            return;
        }
        let path = directory.path().join("index.redb");
        let mut index = fs::read(&path).unwrap();
        index[PAGE..].iter_mut().for_each(|byte| *byte ^= 0x55);
        fs::write(&path, index).unwrap();
        assert!(kept().all(|number| store.has(&name_of(number)).unwrap()));
        assert!(store.status().index_rebuilt.is_some(), "the rot was met");
        let moved = finish(&mut store);
        assert_everything_is_there(&mut store, &format!("after {before} steps"));
        assert!(moved <= undisturbed, "{moved} bytes moved behind {before} steps, else {undisturbed} in all");
    }
}
