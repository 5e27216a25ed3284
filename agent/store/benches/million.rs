//! A million blocks, or as many as asked for: what they cost in bytes, memory and time.
//!
//! `cargo bench -p larder-store --bench million`, with `LARDER_BENCH_COUNT` blocks (1,000,000), of
//! `LARDER_BENCH_SIZES` bytes (`256,4096`), in `LARDER_BENCH_DIR` or a directory beside `target`. Each phase
//! runs in a process of its own, so that each has a peak of resident memory of its own. A process that has
//! written ends without closing; the next one opens what it left.

use bytes::Bytes;
use larder_store::{Hash, Op, Options, OsDisk, Prepare, Store, StoreStatus};
use redb::{ReadableDatabase, TableDefinition};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

const BATCH: u64 = 100;
const PROBES: u64 = 200_000;
const FLAT: TableDefinition<'_, &[u8; 32], &[u8; 20]> = TableDefinition::new("flat");

/// Options as a power profile would set them.
#[derive(Clone, Copy)]
struct Profile {
    name: &'static str,
    table_entries: usize,
    cache_bytes: u64,
    index_cache_bytes: usize,
}

const PROFILES: [Profile; 2] = [
    Profile { name: "performance", table_entries: 65_536, cache_bytes: 24 << 20, index_cache_bytes: 8 << 20 },
    Profile { name: "low-power", table_entries: 32_768, cache_bytes: 4 << 20, index_cache_bytes: 4 << 20 },
];

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, phase, directory, profile, count, size] = &arguments[..] {
        let number = |text: &String| text.parse::<u64>().expect("the parent passes numbers");
        let profile =
            PROFILES.iter().find(|known| known.name == profile).expect("the parent passes a profile");
        return run_phase(phase, Path::new(directory), *profile, number(count), number(size) as usize);
    }
    // `cargo test --benches` passes no `--bench`: there is nothing to measure then.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return;
    }
    let variable = |name, otherwise: &str| std::env::var(name).unwrap_or_else(|_| otherwise.to_owned());
    let count = variable("LARDER_BENCH_COUNT", "1000000");
    let base = std::env::var_os("LARDER_BENCH_DIR").map_or_else(beside_target, PathBuf::from);
    for size in variable("LARDER_BENCH_SIZES", "256,4096").split(',') {
        for profile in PROFILES {
            let place = tempfile::tempdir_in(&base).expect("the bench directory can be written");
            println!("{count} blocks of {size} bytes, {}", profile.name);
            for phase in ["write", "reopen", "read", "redb"] {
                let program = std::env::current_exe().expect("a running program has a path");
                let status = Command::new(program)
                    .args([phase.as_ref(), place.path().as_os_str()])
                    .args([profile.name, &count, size])
                    .status()
                    .expect("this program can be started again");
                assert!(status.success(), "{phase} failed");
            }
        }
    }
}

fn beside_target() -> PathBuf {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target");
    std::fs::create_dir_all(&target).expect("the target directory can be made");
    target
}

fn run_phase(phase: &str, directory: &Path, profile: Profile, count: u64, size: usize) {
    match phase {
        "write" => write(directory, profile, count, size),
        "reopen" => reopen(directory, profile),
        "read" => read(directory, profile, count, size),
        _ => flat_tree(directory, profile, count),
    }
    println!("  {phase:<7} peak resident {:.1} MiB", peak_resident_kib() as f64 / 1024.0);
    // As if killed: nothing is closed.
    std::process::exit(0);
}

fn open(directory: &Path, profile: Profile) -> (Store<OsDisk>, larder_store::OpenReport) {
    let disk = OsDisk::new(directory).expect("the directory was made");
    let options = Options {
        table_entries: profile.table_entries,
        cache_bytes: profile.cache_bytes,
        index_cache_bytes: profile.index_cache_bytes,
        quota_bytes: 1 << 40,
        prepare: Prepare::Allocate,
        ..Options::default()
    };
    Store::open(disk, options).expect("the store opens")
}

fn content(number: u64, size: usize) -> (Hash, Bytes) {
    let mut bytes = vec![0; size];
    blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut bytes);
    (*blake3::hash(&bytes).as_bytes(), Bytes::from(bytes))
}

fn write(directory: &Path, profile: Profile, count: u64, size: usize) {
    let (mut store, _) = open(directory, profile);
    let mut nine_tenths = store.status();
    let (mut longest, mut most_runs) = (0.0_f64, 0);
    for start in (0..count).step_by(BATCH as usize) {
        if start == count / 10 * 9 {
            nine_tenths = store.status();
        }
        let blocks = (start..count.min(start + BATCH)).map(|number| content(number, size));
        let ops = blocks.map(|(hash, bytes)| Op::Put { hash, bytes }).collect();
        store.commit(ops).expect("there is room");
        if store.needs_checkpoint() {
            let begun = Instant::now();
            store.checkpoint().expect("there is room");
            longest = longest.max(begun.elapsed().as_secs_f64());
            most_runs = most_runs.max(store.status().runs);
        }
    }
    let end = store.status();
    bytes_written("to the end", None, &end);
    bytes_written("last tenth", Some(&nine_tenths), &end);
    println!(
        "  space used per payload byte {:.4}; runs at most {most_runs}, now {}; filters {:.1} bits a block; longest checkpoint {:.0} ms",
        end.used_bytes as f64 / end.payload_bytes_written as f64,
        end.runs,
        end.filter_bytes as f64 * 8.0 / end.blocks as f64,
        longest * 1e3,
    );
}

fn bytes_written(what: &str, from: Option<&StoreStatus>, to: &StoreStatus) {
    let since = |field: fn(&StoreStatus) -> u64| (field(to) - from.map_or(0, field)) as f64;
    let payload = since(|status| status.payload_bytes_written);
    let log = since(|status| status.log_bytes_written) / payload;
    let index = since(|status| status.index_bytes_written) / payload;
    let filters = since(|status| status.filter_bytes_written) / payload;
    println!(
        "  {what}: {:.4} bytes written per payload byte: log {log:.4}, index {:.4}, filters {filters:.4}",
        log + index,
        index - filters,
    );
}

fn reopen(directory: &Path, profile: Profile) {
    let start = Instant::now();
    let (store, report) = open(directory, profile);
    println!(
        "  reopened after a crash in {:.0} ms: {} records read again of {} blocks",
        start.elapsed().as_secs_f64() * 1e3,
        report.replayed_records,
        store.status().blocks
    );
}

fn read(directory: &Path, profile: Profile, count: u64, size: usize) {
    let (mut store, _) = open(directory, profile);
    let there: Vec<Hash> = some(count).map(|number| content(number, size).0).collect();
    let missing: Vec<Hash> = (0..PROBES).map(|number| content(number + (1 << 40), 32).0).collect();
    for hash in there.iter().take(5000) {
        store.get(hash).expect("it is whole");
    }
    let get = per_item(&there, |hash| assert!(store.get(hash).expect("it is whole").is_some()));
    let has = per_item(&there, |hash| assert!(store.has(hash).expect("the index works")));
    let hashing = {
        let block = content(0, size).1;
        per_item(&there, |_| assert_ne!(blake3::hash(&block), blake3::Hash::from([0; 32])))
    };
    let before = store.status().filter_false_positives;
    let miss = per_item(&missing, |hash| drop(std::hint::black_box(store.has(hash))));
    let wrong = store.status().filter_false_positives - before;
    println!(
        "  get {get:.0} ns, of which {hashing:.0} ns BLAKE3; has {has:.0} ns; has, missing {miss:.0} ns"
    );
    println!("  false positives {:.3} %", wrong as f64 * 100.0 / missing.len() as f64);
}

/// Numbers of blocks all over the store.
fn some(count: u64) -> impl Iterator<Item = u64> {
    (0..PROBES).map(move |number| number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % count)
}

fn per_item(hashes: &[Hash], mut question: impl FnMut(&Hash)) -> f64 {
    let start = Instant::now();
    hashes.iter().for_each(&mut question);
    start.elapsed().as_secs_f64() * 1e9 / hashes.len() as f64
}

/// redb's own look-ups, in one tree with the same keys.
fn flat_tree(directory: &Path, profile: Profile, count: u64) {
    let mut builder = redb::Database::builder();
    let database = builder
        .set_cache_size(profile.index_cache_bytes)
        .create(directory.join("flat"))
        .expect("there is room");
    let key = |number: u64| *blake3::hash(&number.to_le_bytes()).as_bytes();
    let mut keys: Vec<Hash> = (0..count).map(key).collect();
    keys.sort_unstable();
    let change = database.begin_write().expect("nobody else writes");
    {
        let mut table = change.open_table(FLAT).expect("it is the only table");
        keys.iter().for_each(|key| drop(table.insert(key, &[0; 20]).expect("there is room")));
    }
    change.commit().expect("there is room");
    let table = database.begin_read().expect("it was written").open_table(FLAT).expect("it was made");
    let there: Vec<Hash> = some(count).map(key).collect();
    let missing: Vec<Hash> = (0..PROBES).map(|number| key(number + (1 << 40))).collect();
    let hit = per_item(&there, |key| assert!(table.get(key).expect("it is whole").is_some()));
    let miss = per_item(&missing, |key| assert!(table.get(key).expect("it is whole").is_none()));
    println!("  redb with the same keys: look-up {hit:.0} ns, missing {miss:.0} ns");
}

/// `VmHWM`: the most memory this process ever had resident.
fn peak_resident_kib() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}
