//! Durable puts of the store against the two things a file system can do with the same bytes at the same cadence:
//! overwriting a file that was written before (`limit`) and appending to one, each with one `fdatasync`.
//!
//! `cargo bench -p larder-store --bench durable [-- WORD...]` in `LARDER_BENCH_DIR` or a temporary directory
//! beside `target`; words choose rows (`recycled`, `4096`, `batch`). Rounds of all three are interleaved in turning
//! order; the table shows medians of rounds, ratios of these with the least that is wanted, for the store the share of
//! time in checkpoints and the bytes written per payload byte, and of all three what a batch costs: processor time
//! (median), and flushes of the device (of everybody who uses it meanwhile). Payload differs in each round, so nothing
//! is found present; a piece of a round is made before it is measured, small enough to lie in the processor's cache,
//! as what was just hashed does.

use bytes::Bytes;
use larder_store::{Hash, Op, Options, OsDisk, Prepare, Store};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const ROUNDS: usize = 11;
const SEGMENT_BYTES: u64 = 32 << 20;
/// As the performance profile has it. The row of the smallest blocks in batches makes a checkpoint in each round.
const TABLE_ENTRIES: usize = 65_536;

/// One row: how long the blocks are, how many make a batch, and on which segments.
#[derive(Clone, Copy)]
struct Row {
    block_bytes: usize,
    batch_blocks: usize,
    /// Batches in a piece, and pieces in a round.
    batches: usize,
    pieces: usize,
    segments: Segments,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Segments {
    Fresh(Prepare),
    Recycled,
}

impl Row {
    /// Bytes of a piece.
    fn payload(&self) -> u64 {
        (self.block_bytes * self.batch_blocks * self.batches) as u64
    }

    /// Batches in all rounds.
    fn all_batches(&self) -> usize {
        self.batches * self.pieces * ROUNDS
    }

    fn label(&self) -> String {
        let cadence = if self.batch_blocks == 1 { "one by one" } else { "batch" };
        let segments = format!("{:?}", self.segments).to_lowercase();
        format!("{:>6} {cadence:<10} {segments:<15}", self.block_bytes)
    }

    /// The least that is wanted of the limit and of appending.
    fn wanted(&self) -> (Option<f64>, Option<f64>) {
        match (self.segments, self.batch_blocks, self.block_bytes) {
            (Segments::Fresh(_), ..) => (None, Some(1.0)),
            (Segments::Recycled, 1, _) => (Some(0.9), None),
            (Segments::Recycled, _, 0..4096) => (Some(0.7), None),
            (Segments::Recycled, ..) => (Some(0.85), None),
        }
    }
}

fn main() {
    // `cargo test --benches` passes no `--bench`: there is nothing to measure then.
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if !arguments.iter().any(|argument| argument == "--bench") {
        return;
    }
    let base = std::env::var_os("LARDER_BENCH_DIR").map_or_else(beside_target, PathBuf::from);
    let directory = tempfile::tempdir_in(&base).expect("the bench directory can be written");
    println!("{ROUNDS} rounds, in {}", base.display());
    println!("{:<111}{:>26}   flushes/batch:", "", "processor us/batch:");
    println!(
        "{:<33} {:>9} {:>9} {:>9} {:>8} {:<6} {:>9} {:<6} {:>11} {:>10}   {:>7} {:>7} {:>7}   {:>5} {:>5} {:>5}",
        " bytes",
        "limit/s",
        "append/s",
        "store/s",
        "of limit",
        "wanted",
        "of append",
        "wanted",
        "checkpoints",
        "bytes/byte",
        "limit",
        "append",
        "store",
        "limit",
        "append",
        "store"
    );
    for row in rows() {
        let wanted = |word: &String| word.starts_with("--") || row.label().contains(word.as_str());
        if arguments.iter().all(wanted) {
            measure(directory.path(), row);
        }
    }
}

fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for (batch_blocks, sizes) in [
        (1, [(256, 60, 1), (4096, 60, 1), (32 << 10, 60, 1), (120 << 10, 60, 1)]),
        (100, [(256, 40, 18), (4096, 20, 1), (32 << 10, 8, 1), (120 << 10, 4, 1)]),
    ] {
        for (block_bytes, batches, pieces) in sizes {
            let fresh = [Prepare::None, Prepare::Allocate, Prepare::Zero].map(Segments::Fresh);
            for segments in fresh.into_iter().chain([Segments::Recycled]) {
                rows.push(Row { block_bytes, batch_blocks, batches, pieces, segments });
            }
        }
    }
    rows
}

fn beside_target() -> PathBuf {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target");
    std::fs::create_dir_all(&target).expect("the target directory can be made");
    target
}

/// Seconds of each round on the clock and on the processor, and flushes of the device in all of them.
#[derive(Default)]
struct Contestant {
    seconds: Vec<f64>,
    processor_seconds: Vec<f64>,
    flushes: u64,
}

impl Contestant {
    fn begin_round(&mut self) {
        self.seconds.push(0.0);
        self.processor_seconds.push(0.0);
    }

    /// Adds a piece to the round.
    fn run(&mut self, directory: &Path, work: impl FnOnce() -> f64) {
        let before = device_flushes(directory);
        let processor = processor_seconds();
        *self.seconds.last_mut().expect("a round has begun") += work();
        *self.processor_seconds.last_mut().expect("a round has begun") += processor_seconds() - processor;
        self.flushes += device_flushes(directory) - before;
    }
}

fn median(seconds: &[f64]) -> f64 {
    let mut seconds = seconds.to_vec();
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

fn measure(directory: &Path, row: Row) {
    let place = tempfile::tempdir_in(directory).expect("the bench directory can be written");
    let path = |name: &str| place.path().join(name);
    let store_place = path("store");
    std::fs::create_dir(&store_place).expect("the bench directory can be written");
    let disk = OsDisk::new(&store_place).expect("the directory was just made");
    let mut store = filled(&disk, row);
    let overwritten = written(&path("limit"), row.payload() * (row.pieces * ROUNDS) as u64);
    let appended = OpenOptions::new().append(true).create(true).open(path("append"));
    let appended = appended.expect("the bench directory can be written");
    let [mut limit, mut append, mut stored] = [(); 3].map(|()| Contestant::default());
    let mut checkpoints = Duration::ZERO;
    let mut seed = row.block_bytes as u64;
    let before = disk.counts();
    for piece in 0..ROUNDS * row.pieces {
        if piece % row.pieces == 0 {
            for one in [&mut limit, &mut append, &mut stored] {
                one.begin_round();
            }
        }
        let batches = batches(&mut seed, row);
        let whole = joined(&batches);
        // Who goes first turns: the second finds a warmer or a busier device.
        for turn in 0..3 {
            match (piece + turn) % 3 {
                0 => limit.run(directory, || overwrite(&overwritten, piece as u64 * row.payload(), &whole)),
                1 => append.run(directory, || append_all(&appended, &whole)),
                _ => stored.run(directory, || commit(&mut store, &batches, &mut checkpoints)),
            }
        }
    }
    let all_batches = row.all_batches() as f64;
    let payload = (row.payload() / row.batches as u64) as f64 * all_batches;
    let [limit_s, append_s, store_s] = [&limit, &append, &stored].map(|one| median(&one.seconds));
    let round_batches = (row.batches * row.pieces) as f64;
    let blocks = round_batches * row.batch_blocks as f64;
    let processor = |one: &Contestant| median(&one.processor_seconds) * 1e6 / round_batches;
    let flushes = |contestant: &Contestant| contestant.flushes as f64 / all_batches;
    let least = |wanted: Option<f64>| wanted.map_or_else(String::new, |ratio| format!(">={ratio}"));
    let (of_limit, of_append) = row.wanted();
    println!(
        "{} {:>9.0} {:>9.0} {:>9.0} {:>8.2} {:<6} {:>9.2} {:<6} {:>10.1}% {:>10.3}   {:>7.0} {:>7.0} {:>7.0}   {:>5.2} {:>5.2} {:>5.2}",
        row.label(),
        blocks / limit_s,
        blocks / append_s,
        blocks / store_s,
        limit_s / store_s,
        least(of_limit),
        append_s / store_s,
        least(of_append),
        checkpoints.as_secs_f64() * 100.0 / stored.seconds.iter().sum::<f64>(),
        (disk.counts().bytes - before.bytes) as f64 / payload,
        processor(&limit),
        processor(&append),
        processor(&stored),
        flushes(&limit),
        flushes(&append),
        flushes(&stored),
    );
}

/// An empty store; on recycled segments, one that held enough before, deleted and cleaned it.
fn filled(disk: &OsDisk, row: Row) -> Store<OsDisk> {
    let prepare = match row.segments {
        Segments::Fresh(prepare) => prepare,
        Segments::Recycled => Prepare::Allocate,
    };
    let options = Options {
        prepare,
        segment_bytes: SEGMENT_BYTES,
        table_entries: TABLE_ENTRIES,
        quota_bytes: 1 << 40,
        spare_segments_max: 1000,
        ..Options::default()
    };
    let (mut store, _) = Store::open(disk.clone(), options).expect("an empty directory opens");
    if row.segments != Segments::Recycled {
        return store;
    }
    // Batches of large blocks waste the end of a segment, and small ones take heads and padding.
    let batch_bytes = (row.block_bytes + 72) * row.batch_blocks + 8192;
    let per_segment = (SEGMENT_BYTES as usize / batch_bytes).max(1);
    let segments = row.all_batches() / per_segment + 3;
    let mut seed = 1;
    for _ in 0..segments {
        let quarter = Row { block_bytes: 120 << 10, batch_blocks: 67, batches: 4, pieces: 1, ..row };
        for batch in batches(&mut seed, quarter) {
            store.commit(ops(&batch)).expect("there is room");
        }
    }
    store.clean_begin();
    while !store.clean_step(u64::MAX).expect("there is room").done {}
    // The open segment's tail is fresh: it is filled until the next one is made, of a spare.
    let before = store.status().segments;
    while store.status().segments == before {
        let block = Row { block_bytes: 512 << 10, batch_blocks: 1, batches: 1, pieces: 1, ..row };
        store.commit(ops(&batches(&mut seed, block)[0])).expect("there is room");
    }
    let spares = store.status().spare_segments;
    assert!(spares + 2 >= segments as u64, "{spares} spares for {segments} segments");
    store
}

/// A file of this length whose every byte has been written and synced.
fn written(path: &Path, bytes: u64) -> File {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path);
    let file = file.expect("the bench directory can be written");
    let piece = vec![0x5a; 1 << 20];
    for at in (0..bytes).step_by(piece.len()) {
        let length = piece.len().min((bytes - at) as usize);
        file.write_all_at(&piece[..length], at).expect("there is room");
    }
    file.sync_all().expect("the device works");
    file
}

type Batch = Vec<(Hash, Bytes)>;

fn batches(seed: &mut u64, row: Row) -> Vec<Batch> {
    let mut block = || {
        *seed += 1_000_003;
        let mut bytes = vec![0; row.block_bytes];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
        (*blake3::hash(&bytes).as_bytes(), Bytes::from(bytes))
    };
    (0..row.batches).map(|_| (0..row.batch_blocks).map(|_| block()).collect()).collect()
}

/// The payload of each batch in one piece.
fn joined(batches: &[Batch]) -> Vec<Vec<u8>> {
    batches.iter().map(|batch| batch.iter().flat_map(|(_, bytes)| bytes.to_vec()).collect()).collect()
}

/// Seconds for all batches, one after the other over what the file held from `at` on.
fn overwrite(file: &File, mut at: u64, batches: &[Vec<u8>]) -> f64 {
    let start = Instant::now();
    for batch in batches {
        file.write_all_at(batch, at).expect("the file is long enough");
        file.sync_data().expect("the device works");
        at += batch.len() as u64;
    }
    start.elapsed().as_secs_f64()
}

fn append_all(file: &File, batches: &[Vec<u8>]) -> f64 {
    use std::io::Write;
    let mut file = file;
    let start = Instant::now();
    for batch in batches {
        file.write_all(batch).expect("there is room");
        file.sync_data().expect("the device works");
    }
    start.elapsed().as_secs_f64()
}

/// Seconds for all batches, and for the checkpoints that became due, which are also counted apart.
fn commit(store: &mut Store<OsDisk>, batches: &[Batch], checkpoints: &mut Duration) -> f64 {
    let batches: Vec<Vec<Op>> = batches.iter().map(ops).collect();
    let start = Instant::now();
    for batch in batches {
        store.commit(batch).expect("there is room");
        if store.needs_checkpoint() {
            let start = Instant::now();
            store.checkpoint().expect("there is room");
            *checkpoints += start.elapsed();
        }
    }
    start.elapsed().as_secs_f64()
}

fn ops(batch: &Batch) -> Vec<Op> {
    batch.iter().map(|(hash, bytes)| Op::Put { hash: *hash, bytes: bytes.clone() }).collect()
}

/// What this process has used of the processor, in the kernel too.
fn processor_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Flushes the device behind a directory has done; 0 where the kernel does not tell (`Documentation/block/stat.rst`,
/// sixteenth field).
fn device_flushes(directory: &Path) -> u64 {
    let Ok(device) = std::fs::metadata(directory).map(|metadata| metadata.dev()) else { return 0 };
    let (major, minor) = ((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & 0xfff00));
    let text = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).unwrap_or_default();
    text.split_whitespace().nth(15).and_then(|field| field.parse().ok()).unwrap_or(0)
}
