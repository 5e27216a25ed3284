//! Runs against a map: whatever is flushed and merged, in pieces of any size and reopened at any step, the index
//! says what the map says.
#![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

use super::runs::Run;
use super::table::PREFIX_BYTES;
use super::*;
use crate::disk::OsDisk;
use crate::filter::{Filter, probe};
use crate::limits::{GARBAGE_ENTRIES_MIN, RUN_DECIBITS, RUN_SIZES, RUNS_PER_SIZE};
use proptest::prelude::*;
use std::collections::BTreeMap;

type Model = BTreeMap<Prefix, Place>;

const STORE: StoreId = [7; 16];

/// Few enough that keys meet again, with heads that are alike.
fn prefix(number: u16) -> Prefix {
    let mut prefix = [0; PREFIX_BYTES];
    prefix[..8].copy_from_slice(&blake3::hash(&(number / 3).to_le_bytes()).as_bytes()[..8]);
    prefix[PREFIX_BYTES - 1] = (number % 3) as u8;
    prefix
}

#[derive(Clone, Debug)]
enum Step {
    /// Keys, each put or gone.
    Flush(Vec<(u16, bool)>),
    Merge(u64),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let keys = prop::collection::vec((0..1200_u16, prop::bool::weighted(0.7)), 1..400);
    prop_oneof![
        6 => keys.prop_map(Step::Flush),
        3 => (1..600_u64).prop_map(Step::Merge),
        1 => Just(Step::Reopen),
    ]
}

fn open(disk: &OsDisk) -> Index<OsDisk> {
    Index::open(disk, 1 << 20, Level::PORTABLE, &STORE).unwrap().0
}

fn flush(index: &mut Index<OsDisk>, model: &mut Model, keys: &[(u16, bool)], version: u32) {
    let mut table = Table::default();
    for (number, there) in keys {
        let prefix = prefix(*number);
        let place = Place { segment: version, offset: u32::from(*number) * 8, length: 9 };
        let place = there.then_some(place);
        table.put_block(&prefix, place);
        match place {
            Some(place) => drop(model.insert(prefix, place)),
            None => drop(model.remove(&prefix)),
        }
    }
    let checkpoint = Checkpoint { blocks: model.len() as u64, ..Checkpoint::default() };
    let (segments, unread, damaged) = (Vec::new(), None, None);
    index.write(&Update { table: Some(&table), checkpoint, segments, unread, damaged }).unwrap();
}

fn compare(index: &mut Index<OsDisk>, model: &Model) {
    for number in 0..1200 {
        let prefix = prefix(number);
        let found = index.block(&prefix, &probe(Level::PORTABLE, &prefix)).unwrap();
        assert_eq!(found.place, model.get(&prefix).copied(), "key {number}");
    }
    let (mut after, mut walked) = (None, Model::new());
    loop {
        let page = index.blocks_after(after.as_ref(), 37).unwrap();
        assert!(page.is_sorted_by(|one, other| one.0 < other.0));
        let Some((last, _)) = page.last() else { break };
        after = Some(*last);
        walked.extend(page.into_iter().filter_map(|(prefix, place)| Some((prefix, place?))));
    }
    assert_eq!(&walked, model);
}

/// Names, each bound or gone, in one checkpoint.
fn flush_names(index: &mut Index<OsDisk>, model: &mut BTreeMap<String, Entry>, names: &[(String, bool)]) {
    let mut table = Table::default();
    let last = model.values().map(|entry| entry.seq).max().unwrap_or_default();
    for (seq, (name, there)) in (last + 1..).zip(names) {
        let value = bytes::Bytes::from(vec![seq as u8; 62]);
        let place = Place { segment: 1, offset: seq as u32 * 8, length: 62 };
        let entry = there.then_some(Entry { seq, place, value });
        table.put_name(name.clone(), entry.clone());
        match entry {
            Some(entry) => drop(model.insert(name.clone(), entry)),
            None => drop(model.remove(name)),
        }
    }
    let (segments, unread, damaged, checkpoint) = (Vec::new(), None, None, Checkpoint::default());
    index.write(&Update { table: Some(&table), checkpoint, segments, unread, damaged }).unwrap();
}

fn compare_names(index: &Index<OsDisk>, model: &BTreeMap<String, Entry>) {
    let found = index.names_after("", None, usize::MAX, |_| false).unwrap();
    assert!(found.iter().map(|(name, entry)| (name, entry)).eq(model));
    let mut changes: Vec<(u64, String)> =
        model.iter().map(|(name, entry)| (entry.seq, name.clone())).collect();
    changes.sort_unstable();
    assert_eq!(index.changes_after(0, usize::MAX, |_| false).unwrap(), changes);
}

#[test]
fn names_that_come_between_others_fill_their_leaves() {
    let directory = tempfile::tempdir().unwrap();
    let disk = OsDisk::new(directory.path()).unwrap();
    let (mut index, mut model) = (open(&disk), BTreeMap::new());
    let readings = |numbers: std::ops::Range<u32>| -> Vec<(String, bool)> {
        numbers.map(|number| (format!("readings/{number}"), true)).collect()
    };
    let costs = [1..7_200, 7_200..14_400].map(|numbers| {
        let before = index.bytes_written();
        flush_names(&mut index, &mut model, &readings(numbers));
        index.bytes_written() - before
    });
    compare_names(&index, &model);
    assert!(costs[1] * 10 <= costs[0] * 14, "10000 to 14399 lie between 1000 and 1440: {costs:?}");
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: ProptestConfig::default().cases * 40 / 256,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn names_are_what_a_map_says_wherever_new_ones_come(
        flushes in prop::collection::vec(prop::collection::vec((0..3_000_u32, prop::bool::weighted(0.8)), 1..600), 1..12)
    ) {
        let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let disk = OsDisk::new(directory.path()).unwrap();
        let (mut index, mut model) = (open(&disk), BTreeMap::new());
        for names in flushes {
            let names: Vec<_> = names.iter().map(|(number, there)| (format!("n/{number}"), *there)).collect();
            flush_names(&mut index, &mut model, &names);
            compare_names(&index, &model);
        }
    }

    #[test]
    fn runs_say_what_a_map_says_whatever_is_merged_and_when_it_is_reopened(
        steps in prop::collection::vec(step(), 1..60)
    ) {
        let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let disk = OsDisk::new(directory.path()).unwrap();
        let (mut index, mut model) = (open(&disk), Model::new());
        for (version, step) in steps.iter().enumerate() {
            match step {
                Step::Flush(keys) => flush(&mut index, &mut model, keys, version as u32),
                Step::Merge(entries) => {
                    index.runs.plan(model.len() as u64, GARBAGE_ENTRIES_MIN);
                    index.merge_piece(*entries).unwrap();
                }
                Step::Reopen => {
                    drop(index);
                    index = open(&disk);
                }
            }
            compare(&mut index, &model);
        }
    }
}

#[test]
fn an_index_of_another_layout_is_refused_and_its_file_may_go() {
    let directory = tempfile::tempdir().unwrap();
    let disk = OsDisk::new(directory.path()).unwrap();
    let index = open(&disk);
    let change = index.database().unwrap().begin_write().unwrap();
    change.open_table(META).unwrap().insert("layout", [LAYOUT + 1].as_slice()).unwrap();
    change.commit().unwrap();
    drop(index);
    let refused = Index::open(&disk, 1 << 20, Level::PORTABLE, &STORE).map(drop).unwrap_err().reason();
    assert!(refused.contains("another store or layout"), "{refused}");
}

/// Forty small checkpoints, merged in pieces: more than one run is under way at some time, old tables go, and what
/// is left is few runs.
#[test]
fn merging_keeps_runs_few_and_leaves_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    let disk = OsDisk::new(directory.path()).unwrap();
    let (mut index, mut model) = (open(&disk), Model::new());
    let mut paused = 0;
    for version in 0..40_u16 {
        let keys: Vec<(u16, bool)> =
            (0..100).map(|key| ((version * 37 + key * 11) % 1200, key % 5 > 0)).collect();
        flush(&mut index, &mut model, &keys, u32::from(version));
        index.runs.plan(model.len() as u64, GARBAGE_ENTRIES_MIN);
        index.merge_piece(300).unwrap();
        paused += usize::from(index.runs.merges.iter().any(|merge| merge.after.is_some()));
        assert!(index.runs() < 2 * RUNS_PER_SIZE, "{} runs", index.runs());
        drop(index);
        index = open(&disk);
    }
    assert!(paused > 3, "merges were under way {paused} times");
    while index.runs.has_work() {
        index.merge_piece(300).unwrap();
    }
    compare(&mut index, &model);
    let transaction = index.database().unwrap().begin_read().unwrap();
    let tables = transaction.list_tables().unwrap().map(|table| redb::TableHandle::name(&table).to_owned());
    let of_runs = tables.filter(|name| name.starts_with("run-") || name.starts_with("filter-")).count();
    assert_eq!(of_runs, 2 * index.runs());
}

/// Deletions of everything leave no entries when all runs have become one.
#[test]
fn what_is_deleted_leaves_the_index() {
    let directory = tempfile::tempdir().unwrap();
    let disk = OsDisk::new(directory.path()).unwrap();
    let (mut index, mut model) = (open(&disk), Model::new());
    for version in 0..RUNS_PER_SIZE as u32 {
        let keys: Vec<(u16, bool)> = (0..400).map(|key| (key, version + 1 < RUNS_PER_SIZE as u32)).collect();
        flush(&mut index, &mut model, &keys, version);
    }
    index.merge(u64::MAX / 2, 0, GARBAGE_ENTRIES_MIN).unwrap();
    assert_eq!((index.runs(), index.filter_bytes(), model.len()), (0, 0, 0));
    compare(&mut index, &model);
}

/// A look-up asks every run. The most runs there can be up to 33 million blocks: `RUNS_PER_SIZE` and those that come
/// while they are merged, of each size class, and of the largest as many as fit. Measured a filter, summed up.
#[test]
fn false_positives_of_all_runs_together_are_below_one_percent() {
    let under_way = RUNS_PER_SIZE.div_ceil(crate::limits::MERGE_PACE as usize);
    let mut expected = 0.0;
    for (class, decibits) in RUN_DECIBITS.iter().enumerate() {
        let keys = RUN_SIZES[class.min(2)].min(100_000);
        let mut filter = Filter::sized_for(keys, *decibits);
        let key = |number: u64| probe(Level::PORTABLE, blake3::hash(&number.to_le_bytes()).as_bytes());
        (0..keys).for_each(|number| filter.insert(&key(number)));
        let probes = 300_000_u64;
        let wrong = (0..probes).filter(|number| filter.contains(&key(number + (1 << 40)))).count();
        let runs = match class {
            // The smallest are merged at once.
            0 => RUNS_PER_SIZE,
            // The largest: those of 2 to 33 million besides.
            3 => RUNS_PER_SIZE + under_way + 5,
            _ => RUNS_PER_SIZE + under_way,
        };
        expected += runs as f64 * wrong as f64 / probes as f64;
    }
    assert!(expected <= 0.01, "{expected}");
}

#[test]
fn a_list_of_runs_comes_back_and_a_shortened_one_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let disk = OsDisk::new(directory.path()).unwrap();
    let (mut index, mut model) = (open(&disk), Model::new());
    for version in 0..20 {
        flush(&mut index, &mut model, &[(version, true), (version + 100, true)], u32::from(version));
    }
    let list = index.runs.encode();
    let transaction = index.database().unwrap().begin_read().unwrap();
    let loaded = Runs::load(Level::PORTABLE, &list, &transaction).unwrap().unwrap();
    let entries = |runs: &Runs| runs.newest_first.iter().map(|run: &Run| run.entries).collect::<Vec<_>>();
    assert_eq!(entries(&loaded), entries(&index.runs));
    for length in 0..list.len() {
        assert!(Runs::load(Level::PORTABLE, &list[..length], &transaction).unwrap().is_none(), "{length}");
    }
}
