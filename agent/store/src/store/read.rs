//! Reading blocks: cache, memory table, filters, one page of redb, one read, BLAKE3, caller.
//!
//! Duty: hand out a block's bytes, or an error that names it; wrong bytes to nobody but who says that he checks them
//! himself ([`Check::ByReceiver`]). A block that fails its check is quarantined until it is put again, or passes after
//! all. Memory is one block and the bounded cache.

use super::Store;
use super::names::read_error;
use crate::Hash;
use crate::disk::{Disk, DiskFile};
use crate::error::{ReadError, says_nothing_of_the_file};
use crate::format::{RECORD_HEADER_BYTES, segment_name};
use crate::index::{Place, Prefix, prefix_of};
use crate::limits::VALUE_BYTES_MAX;
use bytes::Bytes;
use std::io;
use std::ops::Range;

/// Who finds out whether the bytes read are the block's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// The store.
    Here,
    /// Whoever is handed them, and believes nothing: a peer that takes a block by its hash.
    ByReceiver,
}

/// What came of [`Store::read_to`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadTo {
    /// So many bytes were read.
    Bytes(usize),
    /// There is no such block.
    NotStored,
    /// The block is longer than the room.
    TooLong,
}

impl<D: Disk> Store<D> {
    /// A block's bytes; none if it is not stored.
    ///
    /// # Errors
    /// The block is damaged, or its file or the index can not be read.
    pub fn get(&mut self, hash: &Hash) -> Result<Option<Bytes>, ReadError> {
        if let Some(bytes) = self.cached(hash) {
            return Ok(Some(bytes));
        }
        let Some(place) = self.place_to_read(hash)? else { return Ok(None) };
        let bytes = self.read_checked(hash, &place)?;
        if self.options.cache_bytes > 0 {
            self.cache.insert(*hash, bytes.clone());
        }
        Ok(Some(bytes))
    }

    /// Reads a block to the beginning of `room`, for one who passes through: what is read does not enter the cache.
    /// What is in quarantine is checked here whatever is said. If it is not `Bytes`, anything may be in the room.
    ///
    /// # Errors
    /// As for [`Store::get`].
    pub fn read_to(&mut self, room: &mut [u8], hash: &Hash, check: Check) -> Result<ReadTo, ReadError> {
        if let Some(bytes) = self.cached(hash) {
            let Some(room) = room.get_mut(..bytes.len()) else { return Ok(ReadTo::TooLong) };
            room.copy_from_slice(&bytes);
            return Ok(ReadTo::Bytes(bytes.len()));
        }
        let Some(place) = self.place_to_read(hash)? else { return Ok(ReadTo::NotStored) };
        let length = place.length as usize;
        let Some(room) = room.get_mut(..length) else { return Ok(ReadTo::TooLong) };
        let check = if self.is_quarantined(hash) { Check::Here } else { check };
        let read = self.segments.reader(place.segment);
        let read = read.and_then(|file| file.read_at(room, value_offset(&place))).map(|()| room);
        self.judge(hash, &place, check, read)?;
        Ok(ReadTo::Bytes(length))
    }

    fn cached(&mut self, hash: &Hash) -> Option<Bytes> {
        // What is in quarantine is looked for on the device: `has` would contradict the cache.
        if self.is_quarantined(hash) {
            return None;
        }
        let found = self.cache.get(hash).cloned();
        self.counters.cache_hits += u64::from(found.is_some());
        found
    }

    fn place_to_read(&mut self, hash: &Hash) -> Result<Option<Place>, ReadError> {
        let place = self.asked(|store| store.find_block(hash)).map_err(read_error)?;
        self.counters.cache_misses += u64::from(place.is_some());
        Ok(place)
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
        // No block is longer, whatever a place says.
        let length = (place.length as usize).min(VALUE_BYTES_MAX);
        let read = self.segments.reader(place.segment);
        let read = read.and_then(|file| file.read_new(length, value_offset(place)));
        self.judge(hash, place, Check::Here, read).map(Bytes::from)
    }

    /// What is to be said of the bytes that were read from a place.
    fn judge<B: AsRef<[u8]>>(
        &mut self,
        hash: &Hash,
        place: &Place,
        check: Check,
        read: io::Result<B>,
    ) -> Result<B, ReadError> {
        match read {
            Ok(bytes) if check == Check::ByReceiver => Ok(bytes),
            Ok(bytes) if blake3::hash(bytes.as_ref()).as_bytes() == hash => {
                // A device that failed once may read again what is whole.
                self.release(hash);
                Ok(bytes)
            }
            Err(source) if says_nothing_of_the_file(&source) => {
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
}

/// Where the bytes of the record at a place begin.
fn value_offset(place: &Place) -> u64 {
    u64::from(place.offset) + (RECORD_HEADER_BYTES + size_of::<Hash>()) as u64
}

fn damaged(hash: &Hash, place: &Place) -> ReadError {
    ReadError::Damaged { hash: *hash, file: segment_name(place.segment), offset: u64::from(place.offset) }
}
