//! What the store's tests share: small stores in temporary directories, blocks that are easy to tell apart.

pub(crate) mod faults;

use bytes::Bytes;
use larder_store::{Hash, Op, OpenReport, Options, OsDisk, Prepare, Store};
use std::os::unix::fs::FileExt;
use std::path::Path;

pub(crate) fn options() -> Options {
    Options {
        segment_bytes: 256 << 10,
        cache_bytes: 64 << 10,
        index_cache_bytes: 1 << 20,
        table_entries: 1000,
        quota_bytes: 1 << 30,
        reserve_bytes: 1 << 20,
        prepare: Prepare::None,
        spare_segments_max: 0,
        create: true,
        ..Options::default()
    }
}

pub(crate) fn disk(directory: &Path) -> OsDisk {
    OsDisk::new(directory).unwrap()
}

pub(crate) fn open(directory: &Path) -> (Store<OsDisk>, OpenReport) {
    Store::open(disk(directory), options()).unwrap()
}

/// Content that differs for each number and does not repeat.
pub(crate) fn content(number: u64, length: usize) -> Bytes {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut bytes);
    Bytes::from(bytes)
}

pub(crate) fn hash(bytes: &[u8]) -> Hash {
    *blake3::hash(bytes).as_bytes()
}

pub(crate) fn put(bytes: &Bytes) -> Op {
    Op::Put { hash: hash(bytes), bytes: bytes.clone() }
}

pub(crate) fn bind(name: &str, value: &str) -> Op {
    Op::Bind { name: name.into(), value: Bytes::copy_from_slice(value.as_bytes()) }
}

pub(crate) fn unbind(name: &str) -> Op {
    Op::Unbind { name: name.into() }
}

pub(crate) fn set(key: &str, value: Option<&str>) -> Op {
    Op::Set { key: key.into(), value: value.map(|value| Bytes::copy_from_slice(value.as_bytes())) }
}

/// Blocks of one batch.
pub(crate) fn puts(numbers: std::ops::Range<u64>, length: usize) -> Vec<Op> {
    numbers.map(|number| put(&content(number, length))).collect()
}

/// Overwrites all of the index but its first pages, under whoever has it open.
pub(crate) fn rot_index(directory: &Path) {
    let file = std::fs::OpenOptions::new().write(true).open(directory.join("index.redb")).unwrap();
    let length = file.metadata().unwrap().len();
    file.write_all_at(&content(1, length as usize - 8192), 8192).unwrap();
}

/// The directory as a killed process would leave it.
pub(crate) fn copy(from: &Path) -> tempfile::TempDir {
    copied(from, tempfile::tempdir().unwrap())
}

/// [`copy`] to where a sync costs nothing, for tests that open a store thousands of times.
pub(crate) fn copy_to_memory(from: &Path) -> tempfile::TempDir {
    copied(from, tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap())
}

fn copied(from: &Path, to: tempfile::TempDir) -> tempfile::TempDir {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.path().join(entry.file_name())).unwrap();
    }
    to
}

/// Segment files, oldest first.
pub(crate) fn segments(directory: &Path) -> Vec<std::path::PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("segment-"))
        .collect();
    files.sort();
    files
}

pub(crate) fn assert_all_there(store: &mut Store<OsDisk>, numbers: std::ops::Range<u64>, length: usize) {
    for number in numbers {
        let bytes = content(number, length);
        assert_eq!(store.get(&hash(&bytes)).unwrap(), Some(bytes), "block {number}");
    }
}
