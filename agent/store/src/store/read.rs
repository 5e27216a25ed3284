//! Reading blocks: cache, memory table, filters, one page of redb, one read, BLAKE3, caller.
//!
//! Duty: hand out a block's bytes, or an error that names it; never wrong bytes. A block that fails its check
//! is quarantined until it is put again, or passes after all. Memory is one block and the bounded cache.

use super::Store;
use super::names::read_error;
use crate::Hash;
use crate::disk::{Disk, DiskFile};
use crate::error::ReadError;
use crate::format::{RECORD_HEADER_BYTES, segment_name};
use crate::index::{Place, Prefix, prefix_of};
use crate::limits::VALUE_BYTES_MAX;
use bytes::Bytes;
use std::io;
use std::ops::Range;

impl<D: Disk> Store<D> {
    /// A block's bytes; none if it is not stored.
    ///
    /// # Errors
    /// The block is damaged, or its file or the index can not be read.
    pub fn get(&mut self, hash: &Hash) -> Result<Option<Bytes>, ReadError> {
        self.read_block(hash, true)
    }

    /// As [`Store::get`], for one who passes through: what is read does not enter the cache.
    ///
    /// # Errors
    /// As for [`Store::get`].
    pub fn get_once(&mut self, hash: &Hash) -> Result<Option<Bytes>, ReadError> {
        self.read_block(hash, false)
    }

    fn read_block(&mut self, hash: &Hash, keep: bool) -> Result<Option<Bytes>, ReadError> {
        // What is in quarantine is looked for on the device: `has` would contradict the cache.
        if !self.is_quarantined(hash)
            && let Some(bytes) = self.cache.get(hash)
        {
            self.counters.cache_hits += 1;
            return Ok(Some(bytes.clone()));
        }
        let Some(place) = self.asked(|store| store.find_block(hash)).map_err(read_error)? else {
            return Ok(None);
        };
        self.counters.cache_misses += 1;
        let bytes = self.read_checked(hash, &place)?;
        if keep && self.options.cache_bytes > 0 {
            self.cache.insert(*hash, bytes.clone());
        }
        Ok(Some(bytes))
    }

    /// A part of a block, cut to its length; nothing of a range that ends before it begins. The whole block is read
    /// and checked.
    ///
    /// # Errors
    /// As for [`Store::get`].
    pub fn read_range(&mut self, hash: &Hash, range: Range<u32>) -> Result<Option<Bytes>, ReadError> {
        let Some(bytes) = self.get(hash)? else { return Ok(None) };
        let end = (range.end as usize).min(bytes.len());
        Ok(Some(bytes.slice((range.start as usize).min(end)..end)))
    }

    /// Whether a block is stored and, as far as is known, whole.
    ///
    /// # Errors
    /// The index failed and could not be made again.
    pub fn has(&mut self, hash: &Hash) -> Result<bool, ReadError> {
        Ok(self.length(hash)?.is_some())
    }

    /// The bytes of each of these blocks, as far as they are here and not known to be damaged.
    ///
    /// # Errors
    /// The index failed and could not be made again.
    pub fn lengths(&mut self, hashes: &[Hash]) -> Result<Vec<Option<u32>>, ReadError> {
        hashes.iter().map(|hash| self.length(hash)).collect()
    }

    fn length(&mut self, hash: &Hash) -> Result<Option<u32>, ReadError> {
        let found = self.asked(|store| store.find_block(hash)).map_err(read_error)?;
        let found = found.filter(|_| !self.is_quarantined(hash));
        if found.is_some() {
            self.note_used(std::slice::from_ref(hash));
        }
        Ok(found.map(|place| place.length))
    }

    /// Reads a block from its segment and checks it.
    pub(super) fn read_checked(&mut self, hash: &Hash, place: &Place) -> Result<Bytes, ReadError> {
        match self.read_value(32, place) {
            Ok(bytes) if blake3::hash(&bytes).as_bytes() == hash => {
                // A device that failed once may read again what is whole.
                self.release(hash);
                Ok(bytes)
            }
            Err(source) if says_nothing_of_the_block(&source) => {
                Err(ReadError::Io { file: segment_name(place.segment), source })
            }
            Ok(_) | Err(_) => {
                self.counters.blocks_found_damaged += u64::from(!self.is_quarantined(hash));
                self.quarantine(hash);
                Err(damaged(hash, place))
            }
        }
    }

    /// Reads a block that is known by the beginning of its hash, and checks it. Its record tells the whole hash;
    /// where that can not be read the rest is zeros.
    pub(super) fn read_known(&mut self, prefix: &Prefix, place: &Place) -> Result<Bytes, ReadError> {
        let mut hash = [0; 32];
        let key_offset = u64::from(place.offset) + RECORD_HEADER_BYTES as u64;
        let read = self.segments.reader(place.segment).and_then(|file| file.read_at(&mut hash, key_offset));
        if read.is_err() || prefix_of(&hash) != *prefix {
            hash = [0; 32];
            hash[..prefix.len()].copy_from_slice(prefix);
        }
        self.read_checked(&hash, place)
    }

    /// The value of the record at a place, unchecked.
    pub(super) fn read_value(&mut self, key_length: usize, place: &Place) -> io::Result<Bytes> {
        if place.length as usize > VALUE_BYTES_MAX {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut bytes = vec![0; place.length as usize];
        let offset = u64::from(place.offset) + (RECORD_HEADER_BYTES + key_length) as u64;
        self.segments.reader(place.segment)?.read_at(&mut bytes, offset)?;
        Ok(bytes.into())
    }
}

fn damaged(hash: &Hash, place: &Place) -> ReadError {
    ReadError::Damaged { hash: *hash, file: segment_name(place.segment), offset: u64::from(place.offset) }
}

/// Errors of the process or the mount rather than of the sectors asked for. `EMFILE` and `ENFILE` are 24 and
/// 23 on every Linux.
fn says_nothing_of_the_block(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::OutOfMemory)
        || matches!(error.raw_os_error(), Some(23 | 24))
}
