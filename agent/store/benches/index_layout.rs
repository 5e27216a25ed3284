//! Layouts of an index over redb, on the same random keys: what a checkpoint writes, what a look-up takes.
//!
//! `cargo bench -p larder-store --bench index_layout`, with `LARDER_BENCH_COUNT` keys (1,000,000) in checkpoints of
//! 65,536, in `LARDER_BENCH_DIR` or a directory beside `target`. The runs have no filters here: a look-up asks
//! the one run that has the key, as it does behind filters, and a miss asks all of them, as none does.

use redb::{Database, ReadOnlyTable, ReadableDatabase, StorageBackend, Table, TableDefinition};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

const CHECKPOINT: usize = 65_536;
const RUNS_MERGED: usize = 16;
const PROBES: usize = 100_000;
/// So much that redb writes no page of a commit early; the store does the same by keeping its commits small.
const WRITE_CACHE_BYTES: usize = 512 << 20;
const CACHE_BYTES: usize = 8 << 20;

type Hash = [u8; 32];
/// What is kept of a block: where it lies.
type Place = [u8; 10];

fn main() {
    // `cargo test --benches` passes no `--bench`: there is nothing to measure then.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let count = std::env::var("LARDER_BENCH_COUNT").map_or(1_000_000, |text| text.parse().expect("a number"));
    let base = std::env::var_os("LARDER_BENCH_DIR").map_or_else(beside_target, PathBuf::from);
    let directory = tempfile::tempdir_in(&base).expect("the bench directory can be written");
    println!("{count} keys, bytes written a key and microseconds a look-up");
    println!("{:<28} {:>8} {:>11} {:>8} {:>8}", "layout", "bytes", "last tenth", "look-up", "miss");
    measure::<Flat>(directory.path(), count);
    measure::<RowRuns>(directory.path(), count);
    measure::<PageRuns>(directory.path(), count);
}

fn beside_target() -> PathBuf {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target");
    std::fs::create_dir_all(&target).expect("the target directory can be made");
    target
}

trait Layout {
    const NAME: &'static str;
    type Key: redb::Key + 'static;
    type Value: redb::Value + 'static;

    /// Writes sorted keys as run `run`.
    fn write(table: &mut Table<'_, Self::Key, Self::Value>, run: u32, keys: &[Hash]);
    /// Takes a run out.
    fn remove(table: &mut Table<'_, Self::Key, Self::Value>, run: u32);
    fn has(table: &ReadOnlyTable<Self::Key, Self::Value>, run: u32, key: &Hash) -> bool;
    /// A tree is one run for ever.
    const IS_TREE: bool = false;
}

/// One tree of all keys.
struct Flat;

impl Layout for Flat {
    const NAME: &'static str = "one tree, a row a key";
    const IS_TREE: bool = true;
    type Key = &'static [u8; 32];
    type Value = &'static [u8; 10];

    fn write(table: &mut Table<'_, Self::Key, Self::Value>, _run: u32, keys: &[Hash]) {
        keys.iter().for_each(|key| drop(table.insert(key, &Place::default()).expect("there is room")));
    }

    fn remove(_table: &mut Table<'_, Self::Key, Self::Value>, _run: u32) {}

    fn has(table: &ReadOnlyTable<Self::Key, Self::Value>, _run: u32, key: &Hash) -> bool {
        table.get(key).expect("it is whole").is_some()
    }
}

/// Sorted runs, a row a key.
struct RowRuns;

fn row_key(run: u32, key: &[u8]) -> [u8; 36] {
    let mut row = [0; 36];
    row[..4].copy_from_slice(&run.to_be_bytes());
    row[4..4 + key.len()].copy_from_slice(key);
    row
}

impl Layout for RowRuns {
    const NAME: &'static str = "sorted runs, a row a key";
    type Key = &'static [u8; 36];
    type Value = &'static [u8; 10];

    fn write(table: &mut Table<'_, Self::Key, Self::Value>, run: u32, keys: &[Hash]) {
        for key in keys {
            table.insert(&row_key(run, key), &Place::default()).expect("there is room");
        }
    }

    fn remove(table: &mut Table<'_, Self::Key, Self::Value>, run: u32) {
        let (first, next) = (row_key(run, &[]), row_key(run + 1, &[]));
        table.retain_in::<&_, _>(&first..&next, |_, _| false).expect("there is room");
    }

    fn has(table: &ReadOnlyTable<Self::Key, Self::Value>, run: u32, key: &Hash) -> bool {
        table.get(&row_key(run, key)).expect("it is whole").is_some()
    }
}

/// Sorted runs, a row a packed page: the store's layout, without its checks.
struct PageRuns;

const PREFIX: usize = 24;
const ENTRY: usize = PREFIX + 10;
const PAGE_ENTRIES: usize = (4096 - 4 - 4 - 12 - 4) / ENTRY;

fn page_key(run: u32, key: &[u8]) -> [u8; 12] {
    let mut row = [0; 12];
    row[..4].copy_from_slice(&run.to_be_bytes());
    row[4..].copy_from_slice(&key[..8]);
    row
}

impl Layout for PageRuns {
    const NAME: &'static str = "sorted runs, packed pages";
    type Key = &'static [u8; 12];
    type Value = &'static [u8];

    fn write(table: &mut Table<'_, Self::Key, Self::Value>, run: u32, keys: &[Hash]) {
        for page in keys.chunks(PAGE_ENTRIES) {
            let entries: Vec<u8> =
                page.iter().flat_map(|key| key[..PREFIX].iter().copied().chain(Place::default())).collect();
            table.insert(&page_key(run, &page[0]), entries.as_slice()).expect("there is room");
        }
    }

    fn remove(table: &mut Table<'_, Self::Key, Self::Value>, run: u32) {
        let (first, next) = (page_key(run, &[0; 8]), page_key(run + 1, &[0; 8]));
        table.retain_in::<&_, _>(&first..&next, |_, _| false).expect("there is room");
    }

    fn has(table: &ReadOnlyTable<Self::Key, Self::Value>, run: u32, key: &Hash) -> bool {
        let (first, last) = (page_key(run, &[0; 8]), page_key(run, key));
        let mut rows = table.range::<&_>(&first..=&last).expect("it is whole");
        let Some(row) = rows.next_back() else { return false };
        let (_, page) = row.expect("it is whole");
        let (mut low, mut high) = (0, page.value().len() / ENTRY);
        while low < high {
            let middle = (low + high) / 2;
            if page.value()[middle * ENTRY..][..PREFIX] < key[..PREFIX] {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        page.value().get(low * ENTRY..low * ENTRY + PREFIX).is_some_and(|prefix| *prefix == key[..PREFIX])
    }
}

/// Keys of the runs there are: what the store reads from redb when it merges.
type Runs = Vec<(u32, Vec<Hash>)>;

fn measure<L: Layout>(directory: &Path, count: usize) {
    let file = tempfile::tempfile_in(directory).expect("the bench directory can be written");
    let written = Arc::new(AtomicU64::new(0));
    let open = |cache_bytes| {
        let backend = Counting { file: file.try_clone().expect("it is open"), written: Arc::clone(&written) };
        Database::builder().set_cache_size(cache_bytes).create_with_backend(backend).expect("there is room")
    };
    let database = open(WRITE_CACHE_BYTES);
    let table = TableDefinition::<L::Key, L::Value>::new("blocks");
    let mut runs: Runs = Vec::new();
    let mut nine_tenths = (0, 0);
    let mut done = 0;
    for (run, start) in (0..count).step_by(CHECKPOINT).enumerate() {
        if nine_tenths.0 == 0 && done >= count / 10 * 9 {
            nine_tenths = (done, written.load(Relaxed));
        }
        let mut keys: Vec<Hash> = (start..count.min(start + CHECKPOINT)).map(key).collect();
        keys.sort_unstable();
        done += keys.len();
        let mut change = database.begin_write().expect("nobody else writes");
        change.set_quick_repair(true);
        {
            let mut table = change.open_table(table).expect("one definition");
            L::write(&mut table, run as u32, &keys);
            runs.push((run as u32, keys));
            if !L::IS_TREE {
                merge::<L>(&mut table, &mut runs, (count + run) as u32);
            }
        }
        change.commit().expect("there is room");
    }
    let total = written.load(Relaxed);
    drop(database);
    let database = open(CACHE_BYTES);
    let table = database.begin_read().expect("it was written").open_table(table).expect("it was made");
    let some = |number: usize| number.wrapping_mul(0x9e37_79b9) % count;
    let with_run: Vec<(u32, Hash)> =
        (0..PROBES).map(|number| key(some(number))).map(|key| (run_of(&runs, &key), key)).collect();
    let missing: Vec<Hash> = (0..PROBES / 10).map(|number| key(number + (1 << 40))).collect();
    let hit = micros(&with_run, |(run, key)| assert!(L::has(&table, *run, key)));
    let ids: Vec<u32> = if L::IS_TREE { vec![0] } else { runs.iter().map(|(id, _)| *id).collect() };
    let miss = micros(&missing, |key| assert!(!ids.iter().any(|run| L::has(&table, *run, key))));
    println!(
        "{:<28} {:>8.1} {:>11.1} {:>8.2} {:>8.2}",
        L::NAME,
        total as f64 / count as f64,
        (total - nine_tenths.1) as f64 / (count - nine_tenths.0) as f64,
        hit,
        miss
    );
}

/// The newest sixteen runs of one size become one.
fn merge<L: Layout>(table: &mut Table<'_, L::Key, L::Value>, runs: &mut Runs, id: u32) {
    let small = runs.iter().rev().take_while(|(_, keys)| keys.len() <= CHECKPOINT).count();
    if small < RUNS_MERGED {
        return;
    }
    let old = runs.split_off(runs.len() - small);
    let mut keys: Vec<Hash> = old.iter().flat_map(|(_, keys)| keys.iter().copied()).collect();
    keys.sort_unstable();
    L::write(table, id, &keys);
    old.iter().for_each(|(run, _)| L::remove(table, *run));
    runs.push((id, keys));
}

fn run_of(runs: &Runs, key: &Hash) -> u32 {
    let run = runs.iter().find(|(_, keys)| keys.binary_search(key).is_ok());
    run.map_or(0, |(id, _)| *id)
}

fn key(number: usize) -> Hash {
    *blake3::hash(&(number as u64).to_le_bytes()).as_bytes()
}

fn micros<T>(items: &[T], question: impl FnMut(&T)) -> f64 {
    let start = Instant::now();
    items.iter().for_each(question);
    start.elapsed().as_secs_f64() * 1e6 / items.len() as f64
}

/// A file that counts what is written to it.
#[derive(Debug)]
struct Counting {
    file: File,
    written: Arc<AtomicU64>,
}

impl StorageBackend for Counting {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.file.set_len(length)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.written.fetch_add(data.len() as u64, Relaxed);
        self.file.write_all_at(data, offset)
    }
}
