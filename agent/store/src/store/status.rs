//! What the store can say about itself.

use super::{OpenReport, Store};
use crate::disk::Disk;
use crate::error::Hex;
use serde::Serialize;

/// Counted since the store was opened.
#[derive(Clone, Debug, Default)]
pub(super) struct Counters {
    pub(super) payload_bytes_written: u64,
    pub(super) log_bytes_written: u64,
    pub(super) log_syncs: u64,
    pub(super) batches: u64,
    pub(super) checkpoints: u64,
    pub(super) cleanings: u64,
    pub(super) cache_hits: u64,
    pub(super) cache_misses: u64,
    pub(super) filter_negatives: u64,
    pub(super) filter_false_positives: u64,
    pub(super) blocks_found_damaged: u64,
    pub(super) damaged_bytes: u64,
    pub(super) write_faults: u64,
    pub(super) last_fault: Option<String>,
    pub(super) index_rebuilt: Option<String>,
}

impl Counters {
    pub(super) fn add_damage(&mut self, report: &OpenReport) {
        self.blocks_found_damaged += report.damaged_blocks;
        self.damaged_bytes += report.damaged_bytes;
    }
}

/// The store's state and what it did since it was opened; sizes in bytes.
#[derive(Clone, Debug, Serialize)]
pub struct StoreStatus {
    /// The store's id, in hexadecimal.
    pub store: String,
    /// The format it is written in.
    pub format: u32,
    /// Blocks that can be asked for.
    pub blocks: u64,
    /// Names that are bound.
    pub names: u64,
    /// Segment files.
    pub segments: u64,
    /// Emptied ones that wait to be segments again.
    pub spare_segments: u64,
    /// What the directory takes on the device.
    pub used_bytes: u64,
    /// Part of it for segments.
    pub log_disk_bytes: u64,
    /// Part of it for spare segments.
    pub spare_disk_bytes: u64,
    /// Part of it for the index.
    pub index_disk_bytes: u64,
    /// Bytes of records that are still asked for; an estimate.
    pub live_bytes: u64,
    /// The quota.
    pub quota_bytes: u64,
    /// What of it is kept in reserve.
    pub reserve_bytes: u64,
    /// Size of the device's file system.
    pub device_total_bytes: u64,
    /// What is free on it.
    pub device_free_bytes: u64,
    /// Values of blocks, names and settings written.
    pub payload_bytes_written: u64,
    /// Bytes written to segments.
    pub log_bytes_written: u64,
    /// Bytes written to the index.
    pub index_bytes_written: u64,
    /// Part of it for filters.
    pub filter_bytes_written: u64,
    /// Syncs of segments: one per batch.
    pub log_syncs: u64,
    /// Syncs of the index.
    pub index_syncs: u64,
    /// Batches acknowledged.
    pub batches: u64,
    /// Checkpoints written.
    pub checkpoints: u64,
    /// The newest sequence number.
    pub last_seq: u64,
    /// The newest sequence number in the index.
    pub checkpoint_seq: u64,
    /// Entries in the memory table.
    pub table_entries: u64,
    /// Reads answered by the cache.
    pub cache_hits: u64,
    /// Reads that went to a segment.
    pub cache_misses: u64,
    /// Bytes in the cache.
    pub cache_bytes: u64,
    /// Bytes of the filters.
    pub filter_bytes: u64,
    /// Sorted runs of the index.
    pub runs: u64,
    /// Merges of runs that have not come to their end.
    pub merges_under_way: u64,
    /// Merges that came to their end since the index was opened.
    pub merges: u64,
    /// Merges of all runs begun since then because most entries said nothing any more.
    pub collections: u64,
    /// Look-ups the filter answered with "not there".
    pub filter_negatives: u64,
    /// Look-ups it passed on in vain.
    pub filter_false_positives: u64,
    /// Blocks in quarantine now.
    pub damaged: u64,
    /// Blocks found damaged since the store was opened.
    pub blocks_found_damaged: u64,
    /// Bytes of the log found damaged while reading it again.
    pub damaged_bytes: u64,
    /// Segment files that could not be read whole, for which nothing is given back.
    pub unread: Vec<String>,
    /// Writes or syncs of segments that failed.
    pub write_faults: u64,
    /// The last of them.
    pub last_fault: Option<String>,
    /// Why writes are refused.
    pub stopped: Option<String>,
    /// Why the index was made again since the store was opened.
    pub index_rebuilt: Option<String>,
    /// Whether a cleaning is under way.
    pub cleaning: bool,
}

impl<D: Disk> Store<D> {
    /// Bytes of blocks written since the store was opened, see [`StoreStatus`]; without a look at the device.
    #[must_use]
    pub fn payload_bytes_written(&self) -> u64 {
        self.counters.payload_bytes_written
    }

    /// State and counts.
    pub fn status(&self) -> StoreStatus {
        let counters = &self.counters;
        let space = self.disk.space().ok();
        let (merges_under_way, merged) = self.index.merges();
        StoreStatus {
            store: Hex(&self.id).to_string(),
            format: crate::format::FORMAT_VERSION,
            blocks: self.blocks,
            names: self.names,
            segments: self.segments.count() as u64,
            spare_segments: self.segments.spares.count() as u64,
            used_bytes: self.used_bytes(),
            log_disk_bytes: self.segments.disk_bytes(),
            spare_disk_bytes: self.segments.spares.disk_bytes(),
            index_disk_bytes: self.index.bytes_on_disk(),
            live_bytes: self.segments.iter().map(|(_, segment)| segment.row.live).sum(),
            quota_bytes: self.options.quota_bytes,
            reserve_bytes: self.options.reserve_bytes,
            device_total_bytes: space.map_or(0, |space| space.total),
            device_free_bytes: space.map_or(0, |space| space.free),
            payload_bytes_written: counters.payload_bytes_written,
            log_bytes_written: counters.log_bytes_written + self.segments.ahead_bytes_written,
            index_bytes_written: self.index.bytes_written(),
            filter_bytes_written: self.index.filter_bytes_written(),
            log_syncs: counters.log_syncs,
            index_syncs: self.index.syncs(),
            batches: counters.batches,
            checkpoints: counters.checkpoints,
            last_seq: self.next_seq - 1,
            checkpoint_seq: self.checkpoint.next_seq.saturating_sub(1),
            table_entries: self.table.entries() as u64,
            cache_hits: counters.cache_hits,
            cache_misses: counters.cache_misses,
            cache_bytes: self.cache.weight(),
            filter_bytes: self.index.filter_bytes(),
            runs: self.index.runs() as u64,
            merges_under_way: merges_under_way as u64,
            merges: merged.finished,
            collections: merged.collections,
            filter_negatives: counters.filter_negatives,
            filter_false_positives: counters.filter_false_positives,
            damaged: self.damaged.len() as u64,
            blocks_found_damaged: counters.blocks_found_damaged,
            damaged_bytes: counters.damaged_bytes,
            unread: self.segments.withheld_files(),
            write_faults: counters.write_faults,
            last_fault: counters.last_fault.clone(),
            stopped: self.stopped.clone(),
            index_rebuilt: counters.index_rebuilt.clone(),
            cleaning: self.cleaning.is_some(),
        }
    }
}
