//! A store's files as docs/format.md says they are, for tests that harm them.

use std::fs;
use std::path::{Path, PathBuf};

/// The segments, in order of their numbers.
///
/// # Panics
/// When there is no such folder.
pub fn segments(store: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(store).expect("the store is there").map(|entry| entry.expect("a file").path());
    let is_segment = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"segment-"))
    };
    let mut segments: Vec<PathBuf> = files.filter(is_segment).collect();
    segments.sort();
    segments
}

/// Makes a folder the same as another one, in which there are only files.
///
/// # Panics
/// When it can not be written.
pub fn copy(from: &Path, to: &Path) {
    let _there_was_one = fs::remove_dir_all(to).is_ok();
    fs::create_dir(to).expect("the folder above is writable");
    for entry in fs::read_dir(from).expect("there is something to copy") {
        let entry = entry.expect("a file");
        fs::copy(entry.path(), to.join(entry.file_name())).expect("the copy is writable");
    }
}

/// CRC32C, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg()))
    })
}

/// Raises the format version in a header whose check stands at `check`: 60 in the superblock, 76 in a segment.
///
/// # Panics
/// When the check is not there.
pub fn raise_version(path: &Path, check: usize) {
    let mut bytes = fs::read(path).expect("the header is there");
    assert_eq!(bytes[check..check + 4], crc32c(&bytes[..check]).to_le_bytes(), "docs/format.md");
    bytes[8] = 3;
    let sum = crc32c(&bytes[..check]);
    bytes[check..check + 4].copy_from_slice(&sum.to_le_bytes());
    fs::write(path, bytes).expect("the header is writable");
}
