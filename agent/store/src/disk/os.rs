//! The real disk: the only file of the store that does real I/O.
//!
//! Duty: map each operation of [`Disk`] to its system call and count writes, syncs and bytes. It refuses
//! names with a slash. A gathered write longer than the kernel's limit of buffers takes several calls; a long one
//! is begun to be written out before all of it is handed over, so that the device works while the kernel copies.

use super::{Disk, DiskFile, Listed, OpenMode, Space};
use rustix::buffer::spare_capacity;
use rustix::fs::{Advice, FallocateFlags, FlockOperation};
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::num::NonZeroU64;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Buffers the kernel takes in one call (`UIO_MAXIOV`).
const BUFFERS_PER_CALL: usize = 1024;
/// A longer write takes several calls, none of which crosses a multiple of this: the kernel's cache then holds the
/// file in pages no larger. A small write into a large one is slow, and one that is being written out while it is filled
/// is written twice.
const PIECE_BYTES: u64 = 256 << 10;
/// From how many bytes on a write is begun to be written out before all of it is copied: over what was written before,
/// and in new room, where each beginning changes the file system's tables once more.
const EARLY_BYTES: u64 = PIECE_BYTES;
const EARLY_BYTES_IN_NEW_ROOM: u64 = 1 << 20;
/// What is worth a beginning, and must be left to copy meanwhile.
const EARLY_BYTES_MIN: u64 = 64 << 10;

/// A directory of the operating system. Clones share their counters.
#[derive(Clone, Debug)]
pub struct OsDisk {
    directory: PathBuf,
    counters: Arc<Counters>,
}

/// What went through an [`OsDisk`] and its files since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskCounts {
    /// Write calls.
    pub writes: u64,
    /// Bytes written.
    pub bytes: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// `fdatasync` calls on files.
    pub file_syncs: u64,
    /// `fsync` calls on the directory.
    pub directory_syncs: u64,
}

#[derive(Debug, Default)]
struct Counters {
    writes: AtomicU64,
    bytes: AtomicU64,
    bytes_read: AtomicU64,
    file_syncs: AtomicU64,
    directory_syncs: AtomicU64,
}

impl OsDisk {
    /// A disk in an existing directory.
    ///
    /// # Errors
    /// The directory is missing, is not a directory, or may not be looked at.
    pub fn new(directory: impl Into<PathBuf>) -> io::Result<Self> {
        let directory = directory.into();
        if !std::fs::metadata(&directory)?.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok(Self { directory, counters: Arc::default() })
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// What was written, read and synced so far.
    pub fn counts(&self) -> DiskCounts {
        let counters = &self.counters;
        DiskCounts {
            writes: counters.writes.load(Relaxed),
            bytes: counters.bytes.load(Relaxed),
            bytes_read: counters.bytes_read.load(Relaxed),
            file_syncs: counters.file_syncs.load(Relaxed),
            directory_syncs: counters.directory_syncs.load(Relaxed),
        }
    }

    fn path(&self, name: &str) -> io::Result<PathBuf> {
        if name.is_empty() || name.contains('/') || name == "." || name == ".." {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(self.directory.join(name))
    }

    fn file(&self, file: File, early_bytes: u64) -> OsFile {
        OsFile { file, early_bytes, counters: Arc::clone(&self.counters) }
    }
}

impl Disk for OsDisk {
    type File = OsFile;

    fn open(&self, name: &str, mode: OpenMode) -> io::Result<OsFile> {
        let mut options = OpenOptions::new();
        options.read(true);
        let early_bytes = match mode {
            OpenMode::Read => EARLY_BYTES,
            OpenMode::ReadWrite => {
                options.write(true);
                EARLY_BYTES
            }
            OpenMode::Create => {
                options.write(true).create(true).truncate(true);
                EARLY_BYTES_IN_NEW_ROOM
            }
        };
        Ok(self.file(options.open(self.path(name)?)?, early_bytes))
    }

    fn list(&self) -> io::Result<Vec<Listed>> {
        let mut listed = Vec::new();
        for entry in std::fs::read_dir(&self.directory)? {
            let entry = entry?;
            let metadata = match entry.metadata() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            if let (true, Ok(name)) = (metadata.is_file(), entry.file_name().into_string()) {
                listed.push(Listed { name, length: metadata.len() });
            }
        }
        Ok(listed)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path(name)?)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path(from)?, self.path(to)?)
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.counters.directory_syncs.fetch_add(1, Relaxed);
        File::open(&self.directory)?.sync_all()
    }

    fn lock(&self, name: &str) -> io::Result<OsFile> {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(self.path(name)?)?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(self.file(file, EARLY_BYTES))
    }

    fn space(&self) -> io::Result<Space> {
        let status = rustix::fs::statvfs(&self.directory)?;
        Ok(Space {
            total: status.f_frsize.saturating_mul(status.f_blocks),
            free: status.f_frsize.saturating_mul(status.f_bavail),
        })
    }

    fn location(&self) -> String {
        self.directory.display().to_string()
    }
}

/// An open file of an [`OsDisk`].
#[derive(Debug)]
pub struct OsFile {
    file: File,
    early_bytes: u64,
    counters: Arc<Counters>,
}

impl OsFile {
    /// One call; how many bytes the kernel took.
    fn write_some(&self, buffers: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        loop {
            match rustix::io::pwritev(&self.file, buffers, offset) {
                Err(rustix::io::Errno::INTR) => {}
                other => {
                    let written = other?;
                    self.counters.writes.fetch_add(1, Relaxed);
                    self.counters.bytes.fetch_add(written as u64, Relaxed);
                    return Ok(written);
                }
            }
        }
    }

    /// All of these buffers, however often the kernel stops; their length.
    fn write_piece(&self, buffers: &[IoSlice<'_>], offset: u64) -> io::Result<u64> {
        let length: usize = buffers.iter().map(|buffer| buffer.len()).sum();
        let mut written = if length > 0 { self.write_some(buffers, offset)? } else { 0 };
        if written < length {
            let mut rest = buffers.to_vec();
            let mut rest = rest.as_mut_slice();
            IoSlice::advance_slices(&mut rest, written);
            while !rest.is_empty() {
                let more = self.write_some(rest, offset + written as u64)?;
                if more == 0 {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                written += more;
                IoSlice::advance_slices(&mut rest, more);
            }
        }
        Ok(length as u64)
    }

    /// Says that a range is not needed any more. Linux then begins to write out what it holds of it, without waiting
    /// (errors are the next sync's), and lets go of what is written. A file system that can not do it writes at the
    /// sync, and keeps the pages until it needs their room.
    fn needs_no_more(&self, from: u64, to: u64) {
        let _hint = rustix::fs::fadvise(&self.file, from, NonZeroU64::new(to - from), Advice::DontNeed);
    }
}

/// The buffers in pieces that end at multiples of [`PIECE_BYTES`] in the file, or where a call takes no more.
fn pieces<'a>(buffers: &'a [IoSlice<'_>], offset: u64) -> Vec<Vec<IoSlice<'a>>> {
    let (mut pieces, mut piece, mut at) = (Vec::new(), Vec::with_capacity(buffers.len()), offset);
    for buffer in buffers {
        let mut rest: &[u8] = buffer;
        while !rest.is_empty() {
            let room = PIECE_BYTES - at % PIECE_BYTES;
            let (part, behind) = rest.split_at(rest.len().min(room as usize));
            piece.push(IoSlice::new(part));
            (at, rest) = (at + part.len() as u64, behind);
            if at % PIECE_BYTES == 0 || piece.len() == BUFFERS_PER_CALL {
                pieces.push(std::mem::take(&mut piece));
            }
        }
    }
    pieces.push(piece);
    pieces
}

impl DiskFile for OsFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)?;
        self.counters.bytes_read.fetch_add(buffer.len() as u64, Relaxed);
        Ok(())
    }

    fn read_new(&self, length: usize, offset: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(length);
        while bytes.len() < length {
            let at = offset + bytes.len() as u64;
            match rustix::io::pread(&self.file, spare_capacity(&mut bytes), at) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        bytes.truncate(length);
        self.counters.bytes_read.fetch_add(length as u64, Relaxed);
        Ok(bytes)
    }

    fn write_gathered(&self, buffers: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let end = offset + buffers.iter().map(|buffer| buffer.len() as u64).sum::<u64>();
        if end - offset <= PIECE_BYTES && buffers.len() <= BUFFERS_PER_CALL {
            return self.write_piece(buffers, offset).map(drop);
        }
        let is_long = end - offset >= self.early_bytes;
        let (mut at, mut begun) = (offset, offset);
        for piece in pieces(buffers, offset) {
            at += self.write_piece(&piece, at)?;
            let is_worth_it = at - begun >= EARLY_BYTES_MIN && end - at >= EARLY_BYTES_MIN;
            if is_long && is_worth_it && at % PIECE_BYTES == 0 {
                self.needs_no_more(begun, at);
                begun = at;
            }
        }
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.file.set_len(length)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.counters.file_syncs.fetch_add(1, Relaxed);
        self.file.sync_data()
    }

    fn forget(&self, from: u64, to: u64) {
        self.needs_no_more(from, to);
    }

    fn allocate(&self, offset: u64, length: u64) -> io::Result<()> {
        Ok(rustix::fs::fallocate(&self.file, FallocateFlags::empty(), offset, length)?)
    }

    fn bytes_on_disk(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.blocks() * 512)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file offset has 64 bits on every machine, whatever a `usize` has.
    #[test]
    fn a_file_is_written_read_and_measured_behind_four_gibibytes() {
        const FAR: u64 = (5 << 30) + 3;
        let folder = tempfile::tempdir().unwrap();
        let disk = OsDisk::new(folder.path()).unwrap();
        let file = disk.open("sparse", OpenMode::Create).unwrap();
        file.write_gathered(&[IoSlice::new(b"near")], FAR & 0xffff_ffff).unwrap();
        file.write_gathered(&[IoSlice::new(b"f"), IoSlice::new(b"ar")], FAR).unwrap();
        file.allocate(FAR + 3, 5).unwrap();
        assert_eq!(file.len().unwrap(), FAR + 8);
        assert_eq!(disk.list().unwrap()[0].length, FAR + 8);
        let mut read = [9; 5];
        file.read_at(&mut read, FAR).unwrap();
        assert_eq!(&read, b"far\0\0");
        assert_eq!(file.read_new(5, FAR).unwrap(), read);
        assert_eq!(file.read_new(9, FAR).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(file.bytes_on_disk().unwrap() < 1 << 20, "what was not written takes no room");
        file.set_len(FAR + 1).unwrap();
        assert_eq!(file.len().unwrap(), FAR + 1);
        assert!(disk.space().unwrap().total > 0);
    }
}
