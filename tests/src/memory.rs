//! What a worker of little memory is given to take in: one file far larger than it, and very many small ones.

use crate::node::{Node, noise};
use std::fs::{self, File};
use std::io::{BufWriter, Write};

/// One mebibyte.
pub const MIB: u64 = 1 << 20;
/// What such a worker may have resident at the most.
pub const PEAK_BYTES_MAX: u64 = 48 * MIB;
/// Bytes of the large file.
pub const LARGE_BYTES: u64 = 2 << 30;
/// How many small files.
pub const SMALL_FILES: usize = 100_000;
/// Bytes of each.
pub const SMALL_BYTES: usize = 100;

/// A worker in the low-power profile, not started.
pub fn low_power_worker() -> Node {
    let node = Node::new("cam", "worker");
    node.set("node", "profile", "\"low-power\"");
    node.set("storage", "limit", "\"8 GB\"");
    node
}

/// Writes the large file, which looks random, and gives its hash.
///
/// # Panics
/// When there is no room for it.
pub fn write_large(node: &Node, name: &str) -> blake3::Hash {
    let file = File::create(node.path(name)).expect("the folder is writable");
    let mut file = BufWriter::with_capacity(1 << 20, file);
    let mut stream = blake3::Hasher::new().update(b"two gibibytes").finalize_xof();
    let mut hash = blake3::Hasher::new();
    let mut piece = vec![0; 1 << 20];
    for _ in 0..LARGE_BYTES >> 20 {
        stream.fill(&mut piece);
        hash.update(&piece);
        file.write_all(&piece).expect("there is room");
    }
    file.flush().expect("there is room");
    hash.finalize()
}

/// Writes the small files below `many` and gives what all of them hold, one after the other.
///
/// # Panics
/// When there is no room for them.
pub fn write_small(node: &Node) -> Vec<u8> {
    let noise = noise(SMALL_BYTES * SMALL_FILES, "small");
    for (index, content) in noise.chunks(SMALL_BYTES).enumerate() {
        let path = node.path(small_name(index));
        if index % 100 == 0 {
            fs::create_dir_all(path.parent().expect("a file has a folder")).expect("the folder is writable");
        }
        fs::write(path, content).expect("there is room");
    }
    noise
}

/// The name of a small file.
pub fn small_name(index: usize) -> String {
    format!("many/{:03}/{index:06}", index / 100)
}
