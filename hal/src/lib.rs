//! What Larder knows of the machine it runs on.
//!
//! Duty: read facts from `/proc`, `/sys` and the device tree under a root that tests replace by a recorded
//! tree; tell the C library what its heap may keep. Decides nothing: which board follows from the facts is
//! `larder-core`'s.
//! Bound: at most 64 KiB of any file is read. Failure: a fact that cannot be read or does not parse
//! is absent (`None`), never zero and never an error.

mod auxv;
pub mod board;
pub mod heap;
pub mod sensors;
pub mod usage;

use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Most bytes read of any file; the largest of them, `/proc/meminfo`, has about 1.5 KiB.
const FILE_BYTES_MAX: u64 = 64 << 10;

fn read_bytes(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(FILE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

fn read_text(path: &Path) -> Option<String> {
    String::from_utf8(read_bytes(path)?).ok()
}

/// The number after `key:` in a file of `key: number [kB]` lines; in bytes where it says kB.
fn field(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    let mut words = line.split_whitespace();
    let number: u64 = words.next()?.parse().ok()?;
    match words.next() {
        Some("kB") => number.checked_mul(1_024),
        _ => Some(number),
    }
}
