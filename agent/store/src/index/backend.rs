//! redb's storage on a file of the store's disk.
//!
//! Duty: pass redb's reads and writes on, through the checks of pages, and count them. It remembers that the
//! device said it was full, or that the machine lacked memory, because redb answers later operations with an error
//! that no longer tells.

use super::check::CheckedFile;
use crate::disk::DiskFile;
use crate::error::{is_full, lacks_means};
use redb::StorageBackend;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

/// Clones share the file and the counters.
#[derive(Debug)]
pub(crate) struct Backend<F> {
    shared: Arc<Shared<F>>,
}

#[derive(Debug)]
struct Shared<F> {
    /// None when it was given up.
    file: Mutex<Option<CheckedFile<F>>>,
    bytes: AtomicU64,
    syncs: AtomicU64,
    full: AtomicBool,
    starved: AtomicBool,
    /// What the file takes on the device, [`UNKNOWN`] after a write: asking costs more than a system call, since Linux
    /// gives a file whose times were looked at new ones with the next write.
    disk_bytes: AtomicU64,
}

const UNKNOWN: u64 = u64::MAX;

impl<F: DiskFile> Backend<F> {
    pub(crate) fn new(file: F) -> Self {
        let (bytes, syncs, full, starved) = Default::default();
        let disk_bytes = AtomicU64::new(UNKNOWN);
        let file = Mutex::new(Some(CheckedFile::new(file)));
        Self { shared: Arc::new(Shared { file, bytes, syncs, full, starved, disk_bytes }) }
    }

    /// Lets go of the file, whoever else still holds a clone.
    pub(crate) fn give_up(&self) {
        *self.shared.file.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn with<T>(&self, act: impl FnOnce(&mut CheckedFile<F>) -> io::Result<T>) -> io::Result<T> {
        let mut file = self.shared.file.lock().unwrap_or_else(PoisonError::into_inner);
        let done = file.as_mut().map_or(Err(io::ErrorKind::NotConnected.into()), act);
        if done.as_ref().is_err_and(lacks_means) {
            self.shared.starved.store(true, Relaxed);
        }
        done
    }

    pub(crate) fn bytes_on_disk(&self) -> u64 {
        let known = self.shared.disk_bytes.load(Relaxed);
        if known != UNKNOWN {
            return known;
        }
        let found = self.with(|file| file.bytes_on_disk());
        self.shared.disk_bytes.store(*found.as_ref().unwrap_or(&UNKNOWN), Relaxed);
        found.unwrap_or(0)
    }

    pub(crate) fn bytes_written(&self) -> u64 {
        self.shared.bytes.load(Relaxed)
    }

    pub(crate) fn syncs(&self) -> u64 {
        self.shared.syncs.load(Relaxed)
    }

    pub(crate) fn met_full(&self) -> bool {
        self.shared.full.load(Relaxed)
    }

    pub(crate) fn was_starved(&self) -> bool {
        self.shared.starved.load(Relaxed)
    }

    fn noted<T>(&self, result: io::Result<T>) -> io::Result<T> {
        self.shared.disk_bytes.store(UNKNOWN, Relaxed);
        result.inspect_err(|error| self.shared.full.store(is_full(error), Relaxed))
    }

    fn counted(&self, written: io::Result<u64>) -> io::Result<()> {
        let bytes = self.noted(written)?;
        self.shared.bytes.fetch_add(bytes, Relaxed);
        Ok(())
    }
}

impl<F> Clone for Backend<F> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<F: DiskFile> StorageBackend for Backend<F> {
    fn len(&self) -> io::Result<u64> {
        self.with(|file| file.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.with(|file| file.read(offset, out))
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.noted(self.with(|file| file.set_len(length)))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.shared.syncs.fetch_add(1, Relaxed);
        self.counted(self.with(CheckedFile::sync_data))
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.counted(self.with(|file| file.write(offset, data)))
    }
}
