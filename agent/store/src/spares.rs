//! Spares: files that were segments and wait to be segments again.
//!
//! Duty: hold a few of them, so that the log overwrites blocks the file system has given it already, which
//! syncs with one flush instead of two. Nothing in a spare is ever read, and each may be removed at any moment:
//! they are the first to go when the quota or the device is full. Memory: one row per spare.

use crate::disk::{Disk, DiskFile, Listed, OpenMode};
use crate::error::lacks_means;
use crate::format::{spare_id, spare_name};
use crate::options::Options;
use std::io;
use std::sync::Arc;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Spare {
    pub(crate) id: u32,
    pub(crate) disk_bytes: u64,
    /// It could be neither opened nor removed; it is there, and counts as a whole segment.
    is_stuck: bool,
}

/// The spares of a store.
#[derive(Debug)]
pub(crate) struct Spares<D> {
    disk: Arc<D>,
    segment_bytes: u64,
    count_max: usize,
    held: Vec<Spare>,
}

impl<D: Disk> Spares<D> {
    /// Takes over what a directory holds; what is too many or of a wrong size goes.
    pub(crate) fn load(disk: Arc<D>, options: &Options, listed: &[Listed]) -> Self {
        let count_max = options.spares_max();
        let mut spares = Self { disk, segment_bytes: options.segment_bytes, count_max, held: Vec::new() };
        for id in listed.iter().filter_map(|file| spare_id(&file.name)) {
            spares.add(id);
        }
        spares
    }

    pub(crate) fn count(&self) -> usize {
        self.held.len()
    }

    /// The highest number among them; the next segment's is above it.
    pub(crate) fn id_max(&self) -> Option<u32> {
        self.held.iter().map(|spare| spare.id).max()
    }

    /// Bytes they take on the device.
    pub(crate) fn disk_bytes(&self) -> u64 {
        self.held.iter().map(|spare| spare.disk_bytes).sum()
    }

    /// Whether a file of this size is worth keeping beside what is here and `coming`. A file that is much shorter
    /// than a segment would be appended to again.
    pub(crate) fn want(&self, disk_bytes: u64, coming: usize) -> bool {
        let sizes = self.segment_bytes / 2..=self.segment_bytes + self.segment_bytes / 32;
        self.held.len() + coming < self.count_max && sizes.contains(&disk_bytes)
    }

    /// How much of a sealed segment's end may stay unused, so that the file is whole when it comes back.
    pub(crate) fn tail_bytes(&self) -> u64 {
        if self.count_max > 0 { self.segment_bytes / 32 } else { 0 }
    }

    /// Takes over a file that has its spare's name already, if it is there.
    pub(crate) fn add(&mut self, id: u32) {
        let opened = self.disk.open(&spare_name(id), OpenMode::Read);
        let disk_bytes = match opened.and_then(|file| file.bytes_on_disk()) {
            Ok(disk_bytes) => disk_bytes,
            Err(error) if lacks_means(&error) => self.segment_bytes,
            Err(_unusable) => return self.give_up(id),
        };
        let wanted = self.want(disk_bytes, 0);
        self.held.push(Spare { id, disk_bytes, is_stuck: false });
        if !wanted {
            self.remove_last();
        }
    }

    /// Removes a file that is good for nothing.
    pub(crate) fn give_up(&mut self, id: u32) {
        self.let_go(id);
        if !self.is_removed(id) {
            self.held.insert(0, Spare { id, disk_bytes: self.segment_bytes, is_stuck: true });
        }
    }

    /// Keeps so many at most from now on.
    pub(crate) fn set_count_max(&mut self, count_max: usize) {
        self.count_max = count_max;
        self.give_back(count_max);
    }

    /// What the next segment would be made of: the spare that needs least appending.
    pub(crate) fn best(&self) -> Option<Spare> {
        self.held.iter().filter(|spare| !spare.is_stuck).copied().max_by_key(|spare| spare.disk_bytes)
    }

    /// Opens a spare to make a segment of it.
    pub(crate) fn open(&self, spare: Spare) -> io::Result<D::File> {
        self.disk.open(&spare_name(spare.id), OpenMode::ReadWrite)
    }

    /// It has become a segment.
    pub(crate) fn let_go(&mut self, id: u32) {
        self.held.retain(|held| held.id != id);
    }

    /// Gives spares back to the device until `kept` are left. True if one went.
    pub(crate) fn give_back(&mut self, kept: usize) -> bool {
        let before = self.held.len();
        while self.held.len() > kept && self.remove_last() {}
        before > self.held.len()
    }

    /// A spare that can not be removed still counts.
    fn remove_last(&mut self) -> bool {
        let gone = self.held.last().is_some_and(|spare| self.is_removed(spare.id));
        if gone {
            self.held.pop();
        }
        gone
    }

    fn is_removed(&self, id: u32) -> bool {
        let removed = self.disk.remove(&spare_name(id));
        removed.is_ok() || removed.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    }
}
