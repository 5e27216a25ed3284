//! The rounds: all peers in turn, so that each meets the same device in the same minutes.

use crate::Plan;
use crate::device::{Counts, Device, space};
use crate::peers;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// Lengths of the blocks.
pub const SIZES: [usize; 4] = [256, 4 << 10, 32 << 10, 120 << 10];
const ROUNDS: usize = 7;
const READ_ROUNDS: usize = 5;

/// How blocks are handed over for one durable write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// One block.
    Single,
    /// A hundred.
    Hundred,
    /// As many as 8 MiB hold, a thousand at most.
    Bulk,
}

/// All of them, with the words of the report.
pub const WAYS: [(Way, &str); 3] =
    [(Way::Single, "one by one"), (Way::Hundred, "batches of 100"), (Way::Bulk, "in bulk")];

impl Way {
    fn at_once(self, size: usize) -> u64 {
        match self {
            Self::Single => 1,
            Self::Hundred => 100,
            Self::Bulk => ((8 << 20) / size).min(1_000) as u64,
        }
    }

    /// Writes in a round.
    fn writes(self, size: usize) -> u64 {
        match self {
            Self::Single => 100,
            Self::Hundred if size > 4096 => 5,
            Self::Hundred => 10,
            Self::Bulk => 4,
        }
    }
}

/// What one way of writing took; medians of the rounds.
#[derive(Clone, Copy, Default)]
pub struct Written {
    /// Payload bytes a second.
    pub bytes_per_second: f64,
    /// Device flushes for each durable write.
    pub flushes: f64,
    /// Bytes the device wrote for each payload byte.
    pub bytes_per_byte: f64,
}

/// What one peer did with blocks of one size.
pub struct Outcome {
    pub peer: String,
    pub size: usize,
    /// In the order of [`WAYS`].
    pub written: [Written; 3],
    /// Nanoseconds for a random read of a block that lies in the page cache.
    pub get_ns: f64,
    /// Nanoseconds to say that a block is not there.
    pub miss_ns: f64,
    /// Milliseconds from the start after `kill -9` to the first block read.
    pub open_ms: f64,
    /// Bytes on the device for each payload byte, before the kill.
    pub space: f64,
    /// Peak of resident memory in bytes, before the kill.
    pub memory: f64,
}

/// A peer's process.
struct Entrant {
    name: String,
    directory: PathBuf,
    size: usize,
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    opened_ns: f64,
}

impl Entrant {
    fn start(name: &str, directory: PathBuf, size: usize) -> Self {
        let program = std::env::current_exe().expect("this program has a path");
        let mut child = Command::new(program)
            .args(["child", name])
            .arg(&directory)
            .arg(size.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program starts");
        let input = child.stdin.take().expect("standard input is a pipe");
        let output = BufReader::new(child.stdout.take().expect("standard output is a pipe"));
        let name = name.to_owned();
        let mut entrant = Self { name, directory, size, child, input, output, opened_ns: 0.0 };
        entrant.opened_ns = entrant.answer();
        entrant
    }

    fn ask(&mut self, question: &str) -> f64 {
        writeln!(self.input, "{question}").expect("the peer listens");
        self.answer()
    }

    fn answer(&mut self) -> f64 {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("the peer answers");
        line.trim().parse().unwrap_or_else(|_| panic!("{} ended", self.name))
    }
}

impl Drop for Entrant {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Compares everybody on every size.
pub fn run(plan: &Plan) -> Vec<Outcome> {
    SIZES.into_iter().flat_map(|size| contest(plan, size)).collect()
}

fn contest(plan: &Plan, size: usize) -> Vec<Outcome> {
    eprintln!("blocks of {size} bytes");
    let place = tempfile::tempdir_in(&plan.directory).expect("the directory can be written");
    let device = Device::under(place.path());
    let start = |name: &String| Entrant::start(name, place.path().join(name), size);
    let mut entrants: Vec<Entrant> = plan.peers.iter().map(start).collect();
    let rounds = if plan.quick { 1 } else { ROUNDS };
    let (mut next, mut written) = (0, vec![[Written::default(); 3]; entrants.len()]);
    for (index, (way, words)) in WAYS.into_iter().enumerate() {
        eprintln!("  {words}");
        let (count, at_once) = (way.writes(size) * way.at_once(size), way.at_once(size));
        let mut taken: Vec<Vec<(f64, Counts)>> = vec![Vec::new(); entrants.len()];
        for _round in 0..rounds {
            for (entrant, taken) in entrants.iter_mut().zip(&mut taken) {
                taken.push(write_round(entrant, &device, place.path(), next, count, at_once));
            }
            next += count;
        }
        for (written, taken) in written.iter_mut().zip(taken) {
            written[index] = medians(&taken, (count * size as u64) as f64, way.writes(size) as f64);
        }
    }
    let reads = read_rounds(&mut entrants, size, next, if plan.quick { 1 } else { READ_ROUNDS });
    let payload = (next * size as u64) as f64;
    let each = entrants.into_iter().zip(written).zip(reads);
    each.map(|((entrant, written), (get_ns, miss_ns))| finish(entrant, written, get_ns, miss_ns, payload))
        .collect()
}

/// One peer's share of a round. Everything written before is on the device when its clock starts.
fn write_round(
    entrant: &mut Entrant,
    device: &Device,
    place: &Path,
    first: u64,
    count: u64,
    at_once: u64,
) -> (f64, Counts) {
    let _synced = Command::new("sync").arg("-f").arg(place).status();
    let before = device.counts();
    let took = entrant.ask(&format!("put {first} {count} {at_once}"));
    let after = device.counts();
    (took, Counts { bytes: after.bytes - before.bytes, flushes: after.flushes - before.flushes })
}

fn medians(taken: &[(f64, Counts)], payload: f64, writes: f64) -> Written {
    Written {
        bytes_per_second: payload * 1e9 / median(taken.iter().map(|(took, _)| *took)),
        flushes: median(taken.iter().map(|(_, counts)| counts.flushes as f64)) / writes,
        bytes_per_byte: median(taken.iter().map(|(_, counts)| counts.bytes as f64)) / payload,
    }
}

fn read_rounds(entrants: &mut [Entrant], size: usize, known: u64, rounds: usize) -> Vec<(f64, f64)> {
    eprintln!("  reads");
    let gets = ((64 << 20) / size as u64).clamp(500, 20_000);
    let misses = 20_000_u64;
    let mut taken: Vec<(Vec<f64>, Vec<f64>)> = vec![(Vec::new(), Vec::new()); entrants.len()];
    // the round before the first brings the page cache to the same state for everybody
    for round in 0..=rounds as u64 {
        for (entrant, (got, missed)) in entrants.iter_mut().zip(&mut taken) {
            if !peers::reads(&entrant.name) {
                continue;
            }
            let get = entrant.ask(&format!("get {} {gets} {known}", round * gets)) / gets as f64;
            let miss = entrant.ask(&format!("miss {} {misses}", round * misses)) / misses as f64;
            if round > 0 {
                got.push(get);
                missed.push(miss);
            }
        }
    }
    taken.into_iter().map(|(got, missed)| (median(got.into_iter()), median(missed.into_iter()))).collect()
}

fn finish(mut entrant: Entrant, written: [Written; 3], get_ns: f64, miss_ns: f64, payload: f64) -> Outcome {
    let memory = entrant.ask("memory");
    let space = space(&entrant.directory) as f64 / payload;
    let (peer, size, directory) = (entrant.name.clone(), entrant.size, entrant.directory.clone());
    drop(entrant);
    let opened = |_| Entrant::start(&peer, directory, size).opened_ns / 1e6;
    let open_ms = Some(()).filter(|()| peers::reads(&peer)).map_or(f64::NAN, opened);
    Outcome { peer, size, written, get_ns, miss_ns, open_ms, space, memory }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
