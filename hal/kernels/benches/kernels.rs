//! What each kernel costs at each level of this machine, as ratios to the portable one in the same run.
//!
//! `cargo bench -p larder-kernels` measures times. With `--count` everything runs once, between marks at
//! which an emulator counts instructions; `tests/arm/count-instructions` prints the table then.

#![expect(unsafe_code, reason = "prctl, to be seen by the emulator")]

use larder_kernels::bloom::{Block, Probe, blocks_for};
use larder_kernels::{Hash, Level, hash_many};
use std::cell::Cell;
use std::ffi::{c_int, c_ulong};
use std::hint::black_box;
use std::time::Instant;

/// Measurements of which the median is taken.
const ROUNDS: usize = 31;
/// Messages in a large batch.
const MESSAGES: usize = 1_000;
/// Keys in the filter, which then fits the first cache.
const KEYS: usize = 4_000;

fn main() {
    let has = |flag: &str| std::env::args().any(|argument| argument == flag);
    let bench = match (has("--count"), has("--bench")) {
        (true, _) => Bench::Count(Cell::new(0)),
        (false, true) => Bench::Time,
        // `cargo test --benches` passes no `--bench`: there is nothing to measure then.
        (false, false) => return,
    };
    for (name, shortest, longest) in [
        ("64 B", 64, 64),
        ("256 B", 256, 256),
        ("1 KiB", 1024, 1024),
        ("64 B to 1 KiB", 64, 1024),
        ("1 B to 4 KiB", 1, 4096),
    ] {
        hashing(&bench, &format!("BLAKE3, {name}"), &lengths(MESSAGES, shortest, longest));
    }
    for count in [1, 2, 4, 8, 16] {
        hashing(&bench, &format!("BLAKE3, {count} of 64 B to 1 KiB"), &lengths(count, 64, 1024));
    }
    filter(&bench);
}

/// SplitMix64: the same work in every run.
fn mixed(number: u64) -> u64 {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

fn lengths(count: usize, shortest: usize, longest: usize) -> Vec<usize> {
    (1..=count).map(|number| shortest + mixed(number as u64) as usize % (longest - shortest + 1)).collect()
}

fn hashing(bench: &Bench, work: &str, lengths: &[usize]) {
    let source: Vec<u8> = (0..lengths.iter().sum::<usize>()).map(|at| mixed(at as u64) as u8).collect();
    let mut rest = &source[..];
    let messages: Vec<&[u8]> =
        lengths.iter().map(|&length| rest.split_off(..length).unwrap_or_default()).collect();
    let mut hashes = vec![Hash::default(); messages.len()];
    bench.compare(work, "byte", source.len(), |level| {
        hash_many(level, black_box(&messages), black_box(&mut hashes));
    });
}

fn filter(bench: &Bench) {
    let keys: Vec<u64> = (0..2 * KEYS as u64).map(mixed).collect();
    let (inside, outside) = keys.split_at(KEYS);
    let mut blocks: Vec<Block> = vec![Block::default(); blocks_for(KEYS as u64, 108)];
    bench.compare("filter, insert", "key", KEYS, |level| {
        black_box(inside).iter().for_each(|&key| Probe::of(level, key).add_to(&mut blocks));
    });
    for (work, keys) in [("filter, key is there", inside), ("filter, key is not there", outside)] {
        bench.compare(work, "key", KEYS, |level| {
            let found = black_box(keys).iter().filter(|&&key| Probe::of(level, key).is_in(&blocks)).count();
            black_box(found);
        });
    }
    let eight = vec![blocks; 8];
    bench.compare("filter, key in 8 filters", "filter", 8 * KEYS, |level| {
        let probes = black_box(outside).iter().map(|&key| Probe::of(level, key));
        let found = probes.map(|probe| eight.iter().filter(|blocks| probe.is_in(blocks)).count());
        black_box(found.sum::<usize>());
    });
}

enum Bench {
    Time,
    /// Marks made so far.
    Count(Cell<usize>),
}

impl Bench {
    /// Runs the work, which has so many units, at each level.
    fn compare(&self, work: &str, unit: &str, units: usize, mut run: impl FnMut(Level)) {
        let levels: Vec<Level> = Level::available().collect();
        levels.iter().for_each(|&level| run(level));
        match self {
            Bench::Time => {
                let mut times = vec![Vec::new(); levels.len()];
                for _ in 0..ROUNDS {
                    levels
                        .iter()
                        .zip(&mut times)
                        .for_each(|(&level, times)| times.push(nanoseconds(&mut run, level)));
                }
                let medians: Vec<f64> = times.into_iter().map(median).collect();
                for (level, time) in levels.iter().zip(&medians) {
                    let (each, times) = (time / units as f64, medians[0] / time);
                    println!("{work:<28} {level:<9} {each:>9.3} ns a {unit:<7} {times:>6.2} times portable");
                }
            }
            Bench::Count(marks) => {
                for &level in &levels {
                    mark(0);
                    run(level);
                    marks.set(marks.get() + 1);
                    mark(marks.get());
                    println!("{}\t{work}\t{level}\t{units}\t{unit}", marks.get());
                }
            }
        }
    }
}

/// Nanoseconds of one run, of as many as take a while.
fn nanoseconds(run: &mut impl FnMut(Level), level: Level) -> f64 {
    let (begin, mut runs) = (Instant::now(), 0);
    while begin.elapsed().as_micros() < 500 {
        run(level);
        runs += 1;
    }
    begin.elapsed().as_nanos() as f64 / f64::from(runs)
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// A system call that no kernel knows and `tests/arm/icount.c` sees.
fn mark(label: usize) {
    const MARK: c_int = 0x5145_4d55;
    unsafe extern "C" {
        fn prctl(option: c_int, ...) -> c_int;
    }
    let zero: c_ulong = 0;
    // SAFETY: this is how the C library declares `prctl`; the kernel has no such option and refuses it,
    // whatever the arguments.
    unsafe { prctl(MARK, label as c_ulong, zero, zero, zero) };
}
