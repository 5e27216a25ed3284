//! What the owner of a store decides.

use crate::error::OpenError;
use crate::limits::{GARBAGE_ENTRIES_MIN, MERGE_ENTRIES_MIN, PAGE_BYTES, SEGMENT_BYTES, SPARES_QUOTA_SHARE};
use larder_kernels::Level;

/// How a fresh segment is prepared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Prepare {
    /// Not at all: the file grows with each batch.
    #[default]
    None,
    /// Blocks are reserved with `fallocate`.
    Allocate,
    /// Zeros are written and synced once, so that later batches overwrite.
    Zero,
}

/// Options of a store; sizes in bytes.
#[derive(Clone, Debug)]
pub struct Options {
    /// Length of a segment, a multiple of 4096 within [`SEGMENT_BYTES`]; no batch is longer.
    pub segment_bytes: u64,
    /// Bound of the cache of blocks; 0 for none.
    pub cache_bytes: u64,
    /// redb's own cache.
    pub index_cache_bytes: usize,
    /// Entries of the memory table after which a checkpoint is due; a commit makes one itself at twice that.
    pub table_entries: usize,
    /// What the directory may take on the device, everything in it counted.
    pub quota_bytes: u64,
    /// The last part of the quota: blocks stop before it, names and settings at half of it; the rest is kept for
    /// deleting, cleaning, checkpoints and starting up.
    pub reserve_bytes: u64,
    /// How fresh segments are prepared.
    pub prepare: Prepare,
    /// The instructions the filter uses.
    pub kernels: Level,
    /// Most emptied segment files to keep for the next segments; together never more than an eighth of the quota.
    pub spare_segments_max: u32,
    /// Whether what a long batch wrote is likely to be read soon and may stay in the system's memory.
    pub reads_back: bool,
    /// Whether to make a store where there is none.
    pub create: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_bytes: 32 << 20,
            cache_bytes: 8 << 20,
            index_cache_bytes: 8 << 20,
            table_entries: 16_384,
            quota_bytes: 10 << 30,
            reserve_bytes: 64 << 20,
            prepare: Prepare::Allocate,
            kernels: Level::detect(),
            spare_segments_max: 8,
            reads_back: true,
            create: true,
        }
    }
}

impl Options {
    pub(crate) fn spares_max(&self) -> usize {
        let share = self.quota_bytes / SPARES_QUOTA_SHARE / self.segment_bytes;
        share.min(u64::from(self.spare_segments_max)) as usize
    }

    /// What a checkpoint merges at least: who keeps the table small wants short checkpoints.
    pub(crate) fn merge_entries_min(&self) -> u64 {
        MERGE_ENTRIES_MIN.min(self.table_entries as u64 / 2)
    }

    /// Entries that say nothing any more before all runs become one: no more than a few tables of them.
    pub(crate) fn garbage_entries_min(&self) -> u64 {
        GARBAGE_ENTRIES_MIN.min(self.table_entries as u64 * 8)
    }

    pub(crate) fn check(&self) -> Result<(), OpenError> {
        let wrong =
            |option, found, allowed: &str| OpenError::Option { option, found, allowed: allowed.into() };
        if !SEGMENT_BYTES.contains(&self.segment_bytes) || !self.segment_bytes.is_multiple_of(PAGE_BYTES) {
            let allowed = "a multiple of 4096 from 64 KiB to 1 GiB";
            return Err(wrong("segment_bytes", self.segment_bytes, allowed));
        }
        if self.table_entries == 0 {
            return Err(wrong("table_entries", 0, "1 and more"));
        }
        if self.reserve_bytes >= self.quota_bytes {
            return Err(wrong("reserve_bytes", self.reserve_bytes, "less than quota_bytes"));
        }
        Ok(())
    }
}
