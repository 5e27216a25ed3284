//! One peer in a process of its own: opens its store, then answers one line per line it reads.
//!
//! `put FIRST COUNT AT_ONCE` stores blocks FIRST.. durably, AT_ONCE together; `get FIRST COUNT KNOWN` reads
//! random ones of the first KNOWN; `miss FIRST COUNT` asks for what is not there; `memory` says the peak of
//! resident bytes. Each answer is a number: nanoseconds, or bytes. Blocks and hashes are made before the clock
//! starts. The first line it writes is the time from the start to the first block read, 0 for a new store.

use crate::blocks::{block, missing, mixed};
use crate::peers;
use std::io::BufRead;
use std::path::Path;
use std::time::Instant;

/// Serves until standard input ends.
pub fn run(name: &str, directory: &Path, size: usize) {
    let fresh = !directory.exists();
    std::fs::create_dir_all(directory).expect("the directory can be made");
    let began = Instant::now();
    let mut peer = peers::open(name, directory, size);
    if !fresh {
        let (hash, bytes) = block(size, 0);
        assert_eq!(peer.get(&hash), Some(bytes.len()), "{name} lost its first block");
    }
    println!("{}", if fresh { 0 } else { began.elapsed().as_nanos() });
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("standard input can be read");
        let words: Vec<&str> = line.split(' ').collect();
        let number = |index: usize| words[index].parse::<u64>().expect("a number");
        let answer = match words[0] {
            "put" => put(peer.as_mut(), size, number(1), number(2), number(3)),
            "get" => get(peer.as_mut(), size, number(1), number(2), number(3)),
            "miss" => miss(peer.as_mut(), number(1), number(2)),
            "memory" => u128::from(peak_memory()),
            other => panic!("no command {other}"),
        };
        println!("{answer}");
    }
}

fn put(peer: &mut dyn peers::Peer, size: usize, first: u64, count: u64, at_once: u64) -> u128 {
    let blocks: Vec<_> = (first..first + count).map(|number| block(size, number)).collect();
    let began = Instant::now();
    for batch in blocks.chunks(at_once as usize) {
        peer.put(batch);
    }
    began.elapsed().as_nanos()
}

fn get(peer: &mut dyn peers::Peer, size: usize, first: u64, count: u64, known: u64) -> u128 {
    let hashes: Vec<_> = (first..first + count).map(|number| block(size, mixed(number) % known).0).collect();
    let began = Instant::now();
    for hash in &hashes {
        assert_eq!(peer.get(hash), Some(size), "a block that was stored is read");
    }
    began.elapsed().as_nanos()
}

fn miss(peer: &mut dyn peers::Peer, first: u64, count: u64) -> u128 {
    let hashes: Vec<_> = (first..first + count).map(missing).collect();
    let began = Instant::now();
    for hash in &hashes {
        assert!(!peer.has(hash), "what was never stored is not there");
    }
    began.elapsed().as_nanos()
}

fn peak_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) * 1024
}
