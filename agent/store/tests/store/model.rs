//! The store against a map: any program of operations, with reopening, killing, checkpoints, rebuilding and
//! cleaning in between, leaves what a map would hold.

use crate::common::*;
use bytes::Bytes;
use larder_store::{Hash, Op, Options, OsDisk, Prepare, Store, rebuild_index};
use proptest::prelude::*;
use std::collections::BTreeMap;

#[derive(Clone, Debug)]
enum Step {
    Commit(Vec<Change>),
    Checkpoint,
    Reopen,
    Kill,
    /// Killed while a batch was being written: noise behind the end.
    Tear(usize),
    Rebuild,
    Clean {
        budget: u64,
        steps: usize,
    },
    Verify,
}

#[derive(Clone, Debug)]
enum Change {
    Put(u64),
    Delete(u64),
    Bind(u8, u16),
    Unbind(u8),
    Set(u8, Option<u16>),
}

#[derive(Default)]
struct Model {
    blocks: BTreeMap<Hash, Bytes>,
    names: BTreeMap<String, (u64, Bytes)>,
    settings: BTreeMap<String, Bytes>,
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        8 => (0..60_u64).prop_map(Change::Put),
        2 => (0..60_u64).prop_map(Change::Delete),
        3 => (0..12_u8, any::<u16>()).prop_map(|(name, value)| Change::Bind(name, value)),
        1 => (0..12_u8).prop_map(Change::Unbind),
        1 => (0..6_u8, any::<Option<u16>>()).prop_map(|(key, value)| Change::Set(key, value)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => prop::collection::vec(change(), 0..12).prop_map(Step::Commit),
        2 => Just(Step::Checkpoint),
        1 => Just(Step::Reopen),
        1 => Just(Step::Kill),
        1 => (1..9000_usize).prop_map(Step::Tear),
        1 => Just(Step::Rebuild),
        2 => (1_000..200_000_u64, 1..20_usize).prop_map(|(budget, steps)| Step::Clean { budget, steps }),
        1 => Just(Step::Verify),
    ]
}

/// Lengths from nothing to several pages.
fn block(number: u64) -> Bytes {
    content(number, (number * number * 7) as usize % 9000)
}

fn small(prepare: Prepare, spare_segments_max: u32) -> Options {
    let options = Options { spare_segments_max, ..options() };
    Options { segment_bytes: 128 << 10, table_entries: 20, cache_bytes: 20_000, prepare, ..options }
}

fn apply(store: &mut Store<OsDisk>, model: &mut Model, changes: &[Change]) {
    let text = |value: u16| Bytes::from(value.to_string());
    let mut ops = Vec::new();
    for change in changes {
        ops.push(match change {
            Change::Put(number) => {
                model.blocks.insert(hash(&block(*number)), block(*number));
                put(&block(*number))
            }
            Change::Delete(number) => {
                model.blocks.remove(&hash(&block(*number)));
                Op::Delete { hash: hash(&block(*number)) }
            }
            Change::Bind(name, value) => {
                model.names.insert(format!("n{name}"), (0, text(*value)));
                Op::Bind { name: format!("n{name}"), value: text(*value) }
            }
            Change::Unbind(name) => {
                model.names.remove(&format!("n{name}"));
                Op::Unbind { name: format!("n{name}") }
            }
            Change::Set(key, value) => {
                let (key, value) = (format!("k{key}"), value.map(text));
                match &value {
                    Some(value) => drop(model.settings.insert(key.clone(), value.clone())),
                    None => drop(model.settings.remove(&key)),
                }
                Op::Set { key, value }
            }
        });
    }
    let committed = store.commit(ops).unwrap();
    for (name, (seq, value)) in &mut model.names {
        let binding = store.binding(name).unwrap().unwrap();
        assert_eq!(&binding.value, value);
        assert!(binding.seq == *seq || (committed.first_seq..=committed.last_seq).contains(&binding.seq));
        *seq = binding.seq;
    }
}

fn compare(store: &mut Store<OsDisk>, model: &Model) {
    for number in 0..60 {
        let hash = hash(&block(number));
        assert_eq!(store.get(&hash).unwrap().as_ref(), model.blocks.get(&hash), "block {number}");
        assert_eq!(store.has(&hash).unwrap(), model.blocks.contains_key(&hash));
    }
    let names = store.bindings("", None, 100).unwrap();
    let expected: Vec<_> =
        model.names.iter().map(|(name, (seq, value))| (name.as_str(), *seq, value)).collect();
    assert_eq!(names.iter().map(|(n, b)| (n.as_str(), b.seq, &b.value)).collect::<Vec<_>>(), expected);
    let mut by_seq: Vec<_> =
        model.names.iter().map(|(name, (seq, value))| (*seq, name.clone(), value.clone())).collect();
    by_seq.sort();
    assert_eq!(store.changes(0, 100).unwrap(), by_seq);
    let settings: BTreeMap<String, Bytes> = store.settings("").unwrap().into_iter().collect();
    assert_eq!(&settings, &model.settings);
    let status = store.status();
    assert_eq!((status.blocks, status.names), (model.blocks.len() as u64, model.names.len() as u64));
    assert_eq!(status.damaged_bytes, 0);
}

/// Puts noise behind the last written page of the newest segment.
fn tear(directory: &std::path::Path, length: usize) {
    let Some(newest) = segments(directory).pop() else { return };
    let mut bytes = std::fs::read(&newest).unwrap();
    let written = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let end = written.next_multiple_of(4096);
    bytes.resize(bytes.len().max(end + length), 0);
    bytes[end..end + length].copy_from_slice(&content(1, length));
    std::fs::write(newest, bytes).unwrap();
}

fn run(steps: &[Step], prepare: Prepare, spares_max: u32) {
    let mut directory = tempfile::tempdir().unwrap();
    let opened =
        |place: &tempfile::TempDir| Store::open(disk(place.path()), small(prepare, spares_max)).unwrap().0;
    let mut store = opened(&directory);
    let mut model = Model::default();
    for step in steps {
        match step {
            Step::Commit(changes) => apply(&mut store, &mut model, changes),
            Step::Checkpoint => store.checkpoint().unwrap(),
            Step::Reopen => {
                store.close().unwrap();
                store = opened(&directory);
            }
            Step::Kill => {
                let killed = copy(directory.path());
                drop(store);
                directory = killed;
                store = opened(&directory);
            }
            Step::Tear(length) => {
                let killed = copy(directory.path());
                drop(store);
                directory = killed;
                tear(directory.path(), *length);
                store = opened(&directory);
            }
            Step::Rebuild => {
                drop(store);
                let report = rebuild_index(disk(directory.path()), small(prepare, spares_max)).unwrap();
                assert_eq!(report.damaged_bytes, 0);
                store = opened(&directory);
            }
            Step::Clean { budget, steps } => {
                store.clean_begin();
                store.clean_mark(&model.blocks.keys().copied().collect::<Vec<_>>()).unwrap();
                for _ in 0..*steps {
                    if store.clean_step(*budget).unwrap().done {
                        break;
                    }
                }
            }
            Step::Verify => {
                let step = store.verify_step(None, u64::MAX).unwrap();
                assert_eq!((step.blocks, step.damaged.len()), (model.blocks.len() as u64, 0));
            }
        }
        compare(&mut store, &model);
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: ProptestConfig::default().cases * 150 / 256,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_program_leaves_what_a_map_would_hold(
        steps in prop::collection::vec(step(), 1..40),
        prepare in prop_oneof![Just(Prepare::None), Just(Prepare::Allocate), Just(Prepare::Zero)],
        spares_max in 0..4_u32,
    ) {
        run(&steps, prepare, spares_max);
    }
}
