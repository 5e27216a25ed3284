//! Durable batches of the store against a plain append of the same bytes with the same syncs.
//!
//! `cargo bench -p larder-store`, in `LARDER_BENCH_DIR` or a temporary directory beside `target`. Rounds of both
//! are interleaved; the table shows medians. Payload differs in each round, so nothing is found present.

use bytes::Bytes;
use larder_store::{Hash, Op, Options, OsDisk, Prepare, Store};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

const ROUNDS: u64 = 9;
const BATCHES: u64 = 20;
const BLOCKS: u64 = 100;

fn main() {
    // `cargo test --benches` passes no `--bench`: there is nothing to measure then.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let base = std::env::var_os("LARDER_BENCH_DIR").map_or_else(beside_target, PathBuf::from);
    let directory = tempfile::tempdir_in(&base).expect("the bench directory can be written");
    println!("batches of {BLOCKS} blocks, {BATCHES} a round, {ROUNDS} rounds, in {}", base.display());
    println!(
        "{:>7} {:>9} {:>11} {:>11} {:>6} {:>12} {:>12} {:>11}",
        "block", "prepare", "append MB/s", "store MB/s", "ratio", "bytes/byte", "io bytes", "syncs/batch"
    );
    for length in [4 << 10, 32 << 10] {
        for prepare in [Prepare::None, Prepare::Allocate, Prepare::Zero] {
            row(directory.path(), length, prepare);
        }
    }
}

fn beside_target() -> PathBuf {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target");
    std::fs::create_dir_all(&target).expect("the target directory can be made");
    target
}

fn row(directory: &Path, length: usize, prepare: Prepare) {
    let place = tempfile::tempdir_in(directory).expect("the bench directory can be written");
    let store_place = place.path().join("store");
    std::fs::create_dir(&store_place).expect("the bench directory can be written");
    let disk = OsDisk::new(&store_place).expect("the directory was just made");
    let options = Options { prepare, quota_bytes: 1 << 40, ..Options::default() };
    let (mut store, _) = Store::open(disk.clone(), options).expect("an empty directory opens");
    let mut plain = OpenOptions::new()
        .append(true)
        .create(true)
        .open(place.path().join("plain"))
        .expect("the bench directory can be written");
    let payload = BATCHES * BLOCKS * length as u64;
    let (mut appends, mut stores, mut io_bytes) = (Vec::new(), Vec::new(), 0);
    let mut seed = length as u64;
    let before = (store.status(), disk.counts());
    for round in 0..ROUNDS {
        let batches = batches(&mut seed, length);
        // Who goes first alternates: the second finds a warmer or a busier device.
        if round % 2 == 0 {
            appends.push(append(&mut plain, &batches));
        }
        let io_before = written_by_process();
        stores.push(commit(&mut store, &batches));
        io_bytes += written_by_process() - io_before;
        if round % 2 == 1 {
            appends.push(append(&mut plain, &batches));
        }
    }
    let io_before = written_by_process();
    store.checkpoint().expect("there is room");
    io_bytes += written_by_process() - io_before;
    let (status, counts) = (store.status(), disk.counts());
    let all_payload = (payload * ROUNDS) as f64;
    let (append, stored) = (median(appends), median(stores));
    println!(
        "{:>7} {:>9} {:>11.0} {:>11.0} {:>6.2} {:>12.3} {:>12.3} {:>11.3}",
        length,
        format!("{prepare:?}"),
        payload as f64 / append / 1e6,
        payload as f64 / stored / 1e6,
        append / stored,
        (counts.bytes - before.1.bytes) as f64 / all_payload,
        io_bytes as f64 / all_payload,
        (status.log_syncs - before.0.log_syncs) as f64 / (status.batches - before.0.batches) as f64,
    );
}

fn batches(seed: &mut u64, length: usize) -> Vec<Vec<(Hash, Bytes)>> {
    let mut block = || {
        *seed += 1_000_003;
        let mut bytes = vec![0; length];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
        (*blake3::hash(&bytes).as_bytes(), Bytes::from(bytes))
    };
    (0..BATCHES).map(|_| (0..BLOCKS).map(|_| block()).collect()).collect()
}

/// Seconds for all batches, one `write` of the whole batch and one `fdatasync` each.
fn append(file: &mut File, batches: &[Vec<(Hash, Bytes)>]) -> f64 {
    let whole: Vec<Vec<u8>> = batches
        .iter()
        .map(|batch| batch.iter().flat_map(|(_, bytes)| bytes.iter().copied()).collect())
        .collect();
    let start = Instant::now();
    for batch in &whole {
        file.write_all(batch).expect("there is room");
        file.sync_data().expect("the device works");
    }
    start.elapsed().as_secs_f64()
}

/// Seconds for all batches, and for the checkpoints that became due.
fn commit(store: &mut Store<OsDisk>, batches: &[Vec<(Hash, Bytes)>]) -> f64 {
    let ops: Vec<Vec<Op>> = batches
        .iter()
        .map(|batch| {
            batch.iter().map(|(hash, bytes)| Op::Put { hash: *hash, bytes: bytes.clone() }).collect()
        })
        .collect();
    let start = Instant::now();
    for batch in ops {
        store.commit(batch).expect("there is room");
        if store.needs_checkpoint() {
            store.checkpoint().expect("there is room");
        }
    }
    start.elapsed().as_secs_f64()
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

/// `write_bytes` of this process: what it made the kernel send to a device.
fn written_by_process() -> u64 {
    let text = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix("write_bytes: ")?.trim().parse().ok()).unwrap_or(0)
}
