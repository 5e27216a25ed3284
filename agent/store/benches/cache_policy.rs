//! Which cache policy answers most reads: traces of a real store, replayed against four of them.
//!
//! `cargo bench -p larder-store --bench cache_policy`. The store is read as the product reads it: whole objects one
//! after the other, popular blocks (Zipf), a working set over and over, and popular blocks while others
//! are written and while everything is read once. A cache holds a tenth of the blocks, all of one length. LRU, ARC (Megiddo and
//! Modha, 2003) and S3-FIFO (Yang and others, 2023) are short and plain here; quick_cache is the one in use.

use bytes::Bytes;
use larder_store::{Hash, Op, Options, OsDisk, Prepare, Store};
use quick_cache::unsync::Cache;
use std::collections::{BTreeMap, VecDeque};

const BLOCKS: u64 = 4000;
const READS: usize = 60_000;
const CAPACITY: usize = 400;
const LENGTH: usize = 512;

fn main() {
    // `cargo test --benches` passes no `--bench`: there is nothing to measure then.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    println!("hit rates in %, {READS} reads, {CAPACITY} of {BLOCKS} blocks");
    println!("{:<30} {:>11} {:>6} {:>6} {:>8}", "trace", "quick_cache", "LRU", "ARC", "S3-FIFO");
    let traces: [(&str, Record); 5] = [
        ("objects, one after another", scans),
        ("Zipf", zipf),
        ("loop over 480 blocks", looped),
        ("Zipf and scans", zipf_and_scans),
        ("Zipf over what is written", ingest),
    ];
    for (name, record) in traces {
        let mut recorder = Recorder::new();
        record(&mut recorder);
        let trace = recorder.trace;
        let mut quick = Cache::new(CAPACITY);
        let mut quick_rate = 0;
        for key in &trace {
            match quick.get(key) {
                Some(()) => quick_rate += 1,
                None => quick.insert(*key, ()),
            }
        }
        let rate = |hits: usize| hits as f64 * 100.0 / trace.len() as f64;
        println!(
            "{name:<30} {:>11.1} {:>6.1} {:>6.1} {:>8.1}",
            rate(quick_rate),
            rate(hits(&mut Lru::default(), &trace)),
            rate(hits(&mut Arc::default(), &trace)),
            rate(hits(&mut S3Fifo::default(), &trace)),
        );
    }
}

/// Reads a store in one way.
type Record = fn(&mut Recorder);

/// A store, and what was read from it.
struct Recorder {
    store: Store<OsDisk>,
    _directory: tempfile::TempDir,
    hashes: Vec<Hash>,
    random: u64,
    trace: Vec<Hash>,
}

impl Recorder {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("the temporary directory can be written");
        let disk = OsDisk::new(directory.path()).expect("the directory was just made");
        let options = Options { prepare: Prepare::None, ..Options::default() };
        let (store, _) = Store::open(disk, options).expect("an empty directory opens");
        let mut recorder =
            Self { store, _directory: directory, hashes: Vec::new(), random: 1, trace: Vec::new() };
        (0..BLOCKS / 100).for_each(|_| recorder.put(100));
        recorder
    }

    fn put(&mut self, count: u64) {
        let start = self.hashes.len() as u64;
        let mut ops = Vec::new();
        for number in start..start + count {
            let mut bytes = vec![0; LENGTH];
            blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut bytes);
            let hash = *blake3::hash(&bytes).as_bytes();
            self.hashes.push(hash);
            ops.push(Op::Put { hash, bytes: Bytes::from(bytes) });
        }
        self.store.commit(ops).expect("there is room");
    }

    fn read(&mut self, number: usize) {
        let hash = self.hashes[number];
        assert!(self.store.get(&hash).expect("it is whole").is_some());
        self.trace.push(hash);
    }

    /// Below one, always the same sequence (SplitMix64).
    fn uniform(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut state = self.random;
        state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((state ^ (state >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A rank below `count`; the first are asked for most (exponent about 1).
    fn popular(&mut self, count: usize) -> usize {
        let rank = (count as f64).powf(self.uniform()) as usize;
        rank.min(count) - 1
    }

    fn is_done(&self) -> bool {
        self.trace.len() >= READS
    }
}

/// Forty objects of a hundred blocks, again and again, in an order of chance.
fn scans(recorder: &mut Recorder) {
    while !recorder.is_done() {
        let object = (recorder.uniform() * (BLOCKS / 100) as f64) as usize;
        (0..100).for_each(|block| recorder.read(object * 100 + block));
    }
}

fn zipf(recorder: &mut Recorder) {
    while !recorder.is_done() {
        let number = recorder.popular(BLOCKS as usize);
        recorder.read(number);
    }
}

fn looped(recorder: &mut Recorder) {
    while !recorder.is_done() {
        (0..CAPACITY / 5 * 6).for_each(|number| recorder.read(number));
    }
}

fn zipf_and_scans(recorder: &mut Recorder) {
    while !recorder.is_done() {
        for _ in 0..6000 {
            let number = recorder.popular(BLOCKS as usize);
            recorder.read(number);
        }
        (0..BLOCKS as usize).for_each(|number| recorder.read(number));
    }
}

/// Newer blocks are asked for more.
fn ingest(recorder: &mut Recorder) {
    while !recorder.is_done() {
        recorder.put(20);
        for _ in 0..300 {
            let count = recorder.hashes.len();
            let back = recorder.popular(count);
            recorder.read(count - 1 - back);
        }
    }
}

trait Policy {
    /// Whether a key is held; it is then, or afterwards.
    fn read(&mut self, key: Hash) -> bool;
}

fn hits(policy: &mut impl Policy, trace: &[Hash]) -> usize {
    trace.iter().filter(|key| policy.read(**key)).count()
}

/// Keys in an order, the next to go first.
#[derive(Default)]
struct Queue {
    order: BTreeMap<u64, Hash>,
    at: BTreeMap<Hash, u64>,
    next: u64,
}

impl Queue {
    fn push(&mut self, key: Hash) {
        self.next += 1;
        self.order.insert(self.next, key);
        self.at.insert(key, self.next);
    }

    fn remove(&mut self, key: &Hash) -> bool {
        self.at.remove(key).is_some_and(|at| self.order.remove(&at).is_some())
    }

    fn pop(&mut self) -> Option<Hash> {
        let (_, key) = self.order.pop_first()?;
        self.at.remove(&key);
        Some(key)
    }

    fn len(&self) -> usize {
        self.order.len()
    }
}

#[derive(Default)]
struct Lru(Queue);

impl Policy for Lru {
    fn read(&mut self, key: Hash) -> bool {
        let held = self.0.remove(&key);
        self.0.push(key);
        if self.0.len() > CAPACITY {
            self.0.pop();
        }
        held
    }
}

/// Seen once and seen often, each with a memory of what went, and a share that follows which memory is asked for.
#[derive(Default)]
struct Arc {
    once: Queue,
    often: Queue,
    once_gone: Queue,
    often_gone: Queue,
    share: usize,
}

impl Arc {
    fn replace(&mut self, wants_often: bool) {
        let once = self.once.len();
        if once > 0 && (once > self.share || (wants_often && once == self.share)) {
            self.once.pop().into_iter().for_each(|key| self.once_gone.push(key));
        } else {
            self.often.pop().into_iter().for_each(|key| self.often_gone.push(key));
        }
    }
}

impl Policy for Arc {
    fn read(&mut self, key: Hash) -> bool {
        if self.once.remove(&key) || self.often.remove(&key) {
            self.often.push(key);
            return true;
        }
        let (gone_once, gone_often) = (self.once_gone.len().max(1), self.often_gone.len().max(1));
        if self.once_gone.remove(&key) {
            self.share = (self.share + (gone_often / gone_once).max(1)).min(CAPACITY);
            self.replace(false);
            self.often.push(key);
            return false;
        }
        if self.often_gone.remove(&key) {
            self.share = self.share.saturating_sub((gone_once / gone_often).max(1));
            self.replace(true);
            self.often.push(key);
            return false;
        }
        let seen_once = self.once.len() + self.once_gone.len();
        let all = seen_once + self.often.len() + self.often_gone.len();
        if seen_once == CAPACITY {
            if self.once.len() < CAPACITY {
                self.once_gone.pop();
                self.replace(false);
            } else {
                self.once.pop();
            }
        } else if all >= CAPACITY {
            if all >= 2 * CAPACITY {
                self.often_gone.pop();
            }
            self.replace(false);
        }
        self.once.push(key);
        false
    }
}

/// A small queue for newcomers, a large one for what was asked for again, and a memory of what left the small one.
#[derive(Default)]
struct S3Fifo {
    small: VecDeque<Hash>,
    large: VecDeque<Hash>,
    gone: Queue,
    reads: BTreeMap<Hash, u8>,
}

impl S3Fifo {
    fn evict(&mut self) {
        if self.small.len() > CAPACITY / 10 || self.large.is_empty() {
            while let Some(key) = self.small.pop_front() {
                if self.reads.get(&key).is_some_and(|reads| *reads > 1) {
                    self.reads.insert(key, 0);
                    self.large.push_back(key);
                    continue;
                }
                self.reads.remove(&key);
                self.gone.push(key);
                if self.gone.len() > CAPACITY * 9 / 10 {
                    self.gone.pop();
                }
                return;
            }
        }
        while let Some(key) = self.large.pop_front() {
            match self.reads.get_mut(&key) {
                Some(reads) if *reads > 0 => {
                    *reads -= 1;
                    self.large.push_back(key);
                }
                _ => {
                    self.reads.remove(&key);
                    return;
                }
            }
        }
    }
}

impl Policy for S3Fifo {
    fn read(&mut self, key: Hash) -> bool {
        if let Some(reads) = self.reads.get_mut(&key) {
            *reads = (*reads + 1).min(3);
            return true;
        }
        while self.small.len() + self.large.len() >= CAPACITY {
            self.evict();
        }
        if self.gone.remove(&key) {
            self.large.push_back(key)
        } else {
            self.small.push_back(key)
        }
        self.reads.insert(key, 0);
        false
    }
}
