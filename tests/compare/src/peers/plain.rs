//! What the kernel does by itself: appending, overwriting, one file per block.

use super::Peer;
use crate::blocks::Block;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, IoSlice, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Bytes of the file that is overwritten, again from its start when its end is reached.
const OVERWRITTEN_BYTES: u64 = 1 << 30;

/// One gathered write at the end of a file and one `fdatasync`.
pub struct Append(File);

impl Append {
    pub fn open(directory: &Path) -> Self {
        let file = OpenOptions::new().append(true).create(true).open(directory.join("plain"));
        Self(file.expect("the file can be made"))
    }
}

impl Peer for Append {
    fn put(&mut self, blocks: &[Block]) {
        write_all(&mut self.0, blocks);
        self.0.sync_data().expect("the device syncs");
    }

    fn get(&mut self, _hash: &[u8; 32]) -> Option<usize> {
        None
    }

    fn has(&mut self, _hash: &[u8; 32]) -> bool {
        false
    }
}

/// One gathered write over bytes that were written before, and one `fdatasync`.
pub struct Overwrite {
    file: File,
    at: u64,
}

impl Overwrite {
    pub fn open(directory: &Path) -> Self {
        let path = directory.join("written");
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let file = file.expect("the file can be made");
        let noise = vec![0x5a; 1 << 20];
        for at in (0..OVERWRITTEN_BYTES).step_by(noise.len()) {
            file.write_all_at(&noise, at).expect("the device has room");
        }
        file.sync_all().expect("the device syncs");
        Self { file, at: 0 }
    }
}

impl Peer for Overwrite {
    fn put(&mut self, blocks: &[Block]) {
        use std::io::{Seek, SeekFrom};
        let bytes: u64 = blocks.iter().map(|(_, bytes)| bytes.len() as u64).sum();
        if self.at + bytes > OVERWRITTEN_BYTES {
            self.at = 0;
        }
        self.file.seek(SeekFrom::Start(self.at)).expect("a file can be sought");
        write_all(&mut self.file, blocks);
        self.file.sync_data().expect("the device syncs");
        self.at += bytes;
    }

    fn get(&mut self, _hash: &[u8; 32]) -> Option<usize> {
        None
    }

    fn has(&mut self, _hash: &[u8; 32]) -> bool {
        false
    }
}

fn write_all(file: &mut File, blocks: &[Block]) {
    for blocks in blocks.chunks(1024) {
        let mut slices: Vec<IoSlice<'_>> = blocks.iter().map(|(_, bytes)| IoSlice::new(bytes)).collect();
        let mut rest = slices.as_mut_slice();
        while !rest.is_empty() {
            let written = file.write_vectored(rest).expect("the device has room");
            IoSlice::advance_slices(&mut rest, written);
        }
    }
}

/// A file for each block, in 256 folders: written aside, synced, renamed, folder synced.
pub struct Files(PathBuf);

impl Files {
    pub fn open(directory: &Path) -> Self {
        for number in 0..=255_u8 {
            match std::fs::create_dir(directory.join(format!("{number:02x}"))) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => panic!("a folder: {error}"),
                _ => {}
            }
        }
        Self(directory.to_owned())
    }

    fn folder(&self, hash: &[u8; 32]) -> PathBuf {
        self.0.join(format!("{:02x}", hash[0]))
    }

    fn path(&self, hash: &[u8; 32]) -> PathBuf {
        self.folder(hash).join(blake3::Hash::from(*hash).to_hex().as_str())
    }
}

impl Peer for Files {
    fn put(&mut self, blocks: &[Block]) {
        for (hash, bytes) in blocks {
            let aside = self.folder(hash).join("new");
            let mut file = File::create(&aside).expect("a file can be made");
            file.write_all(bytes).expect("the device has room");
            file.sync_data().expect("the device syncs");
            std::fs::rename(&aside, self.path(hash)).expect("a file can be renamed");
        }
        let folders: std::collections::BTreeSet<PathBuf> =
            blocks.iter().map(|(hash, _)| self.folder(hash)).collect();
        for folder in folders {
            File::open(folder).and_then(|folder| folder.sync_all()).expect("the device syncs");
        }
    }

    fn get(&mut self, hash: &[u8; 32]) -> Option<usize> {
        std::fs::read(self.path(hash)).ok().map(|bytes| bytes.len())
    }

    fn has(&mut self, hash: &[u8; 32]) -> bool {
        self.path(hash).exists()
    }
}
