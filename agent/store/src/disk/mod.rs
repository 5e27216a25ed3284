//! The store's only way to a device: one directory with flat file names.
//!
//! Duty: name the few file operations the store needs, so that a simulated disk can take the place of a real
//! one. Nothing here retries, caches or decides. Errors are the operating system's own; a disk whose
//! operations fail half-way must leave what it did visible to a later read, as a kernel does.

mod os;

pub use os::{DiskCounts, OsDisk};

use std::fmt::Debug;
use std::io::{self, IoSlice};

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// Existing, for reading.
    Read,
    /// Existing, for reading and writing.
    ReadWrite,
    /// Made if missing, emptied if not, for reading and writing.
    Create,
}

/// A file of a directory listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name, without a directory.
    pub name: String,
    /// Its length in bytes.
    pub length: u64,
}

/// The file system behind a directory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Size of the file system.
    pub total: u64,
    /// What an unprivileged process may still use.
    pub free: u64,
}

/// One directory on one device.
pub trait Disk: Send + Sync + 'static {
    /// An open file.
    type File: DiskFile;

    /// Opens a file. A missing file is `ErrorKind::NotFound`.
    fn open(&self, name: &str, mode: OpenMode) -> io::Result<Self::File>;
    /// All files, in any order.
    fn list(&self) -> io::Result<Vec<Listed>>;
    /// Removes a file; durable after [`Disk::sync_dir`].
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Renames a file over any file of the new name, atomically; durable after [`Disk::sync_dir`].
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Makes new, removed and renamed names durable.
    fn sync_dir(&self) -> io::Result<()>;
    /// Locks a file (made if missing) against every other process until the returned file is dropped.
    /// A lock that is held already is `ErrorKind::WouldBlock`.
    fn lock(&self, name: &str) -> io::Result<Self::File>;
    /// The file system's size and what is free.
    fn space(&self) -> io::Result<Space>;
    /// The directory, for messages.
    fn location(&self) -> String;
}

/// An open file; offsets and lengths in bytes.
pub trait DiskFile: Debug + Send + Sync + 'static {
    /// Fills `buffer` from `offset`. A file that ends before is `ErrorKind::UnexpectedEof`.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// `length` bytes from `offset`; as [`DiskFile::read_at`], without filling memory before.
    fn read_new(&self, length: usize, offset: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.read_at(&mut bytes, offset)?;
        Ok(bytes)
    }
    /// Writes all buffers one after the other from `offset`, in as few calls as the system allows.
    fn write_gathered(&self, buffers: &[IoSlice<'_>], offset: u64) -> io::Result<()>;
    /// Cuts or extends the file; an extension reads as zeros.
    fn set_len(&self, length: u64) -> io::Result<()>;
    /// The file's length.
    fn len(&self) -> io::Result<u64>;
    /// Whether the file has no byte.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Makes everything written so far durable, with what is needed to read it again.
    fn sync_data(&self) -> io::Result<()>;
    /// What is durable of a range will not be read soon and need not stay in the system's memory. A hint, which
    /// a disk may ignore.
    fn forget(&self, _from: u64, _to: u64) {}
    /// Reserves blocks for a range and extends the file over it; new bytes read as zeros.
    fn allocate(&self, offset: u64, length: u64) -> io::Result<()>;
    /// What the file takes on the device.
    fn bytes_on_disk(&self) -> io::Result<u64>;
}
