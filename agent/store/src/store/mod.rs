//! The store itself: its state, and the look-ups all its parts share.

mod apply;
mod clean;
mod commit;
mod maintain;
mod names;
mod open;
mod read;
mod replay;
mod status;
mod verify;

pub use clean::CleanProgress;
pub use commit::{Committed, Op};
pub use names::Binding;
pub use open::{OpenReport, rebuild_index};
pub use read::{Check, ReadTo};
pub use status::StoreStatus;
pub use verify::{VerifyPosition, VerifyStep};

use crate::Hash;
use crate::disk::Disk;
use crate::filter::probe;
use crate::format::{StoreId, salt};
use crate::index::{Answer, Checkpoint, Index, IndexError, Place, Prefix, Table, prefix_of};
use crate::options::Options;
use crate::segments::Segments;
use bytes::Bytes;
use clean::Cleaning;
use quick_cache::Weighter;
use quick_cache::unsync::Cache;
use status::Counters;
use std::collections::BTreeSet;
use std::sync::Arc;

/// A store; see the crate's own page.
#[derive(Debug)]
pub struct Store<D: Disk> {
    disk: Arc<D>,
    /// Held for the lock on it.
    _lock: D::File,
    options: Options,
    /// What names, deletions and cleaning may take, each its part of the reserve: the quota, or where more than that is
    /// in use, the reserve beyond it. It comes down with what is in use, and goes up with the quota alone.
    ceiling_bytes: u64,
    id: StoreId,
    segments: Segments<D>,
    index: Index<D>,
    /// The index was being made again from the log, or a batch applied, and that failed half-way.
    index_incomplete: bool,
    table: Table,
    cache: Cache<Hash, Bytes, ByBytes>,
    /// The next sequence number.
    next_seq: u64,
    blocks: u64,
    names: u64,
    /// Blocks that failed their check and were not put again.
    damaged: BTreeSet<Prefix>,
    damaged_changed: bool,
    checkpoint: Checkpoint,
    /// Bytes a start would have to read again.
    log_since_checkpoint: u64,
    cleaning: Option<Cleaning>,
    /// Why writes are refused.
    stopped: Option<String>,
    /// Generation of the first segment that could not be made durable at the start: what it and later ones say is
    /// served, and nothing durable is built on it.
    unsettled: Option<u64>,
    /// A batch failed behind the newest segment's end; nothing is acknowledged before the next header, which
    /// tells where that end is, is durable.
    end_untold: bool,
    /// Bytes of files that are neither segments nor the index.
    other_bytes: u64,
    counters: Counters,
}

#[derive(Clone, Debug)]
struct ByBytes;

impl Weighter<Hash, Bytes> for ByBytes {
    fn weight(&self, hash: &Hash, bytes: &Bytes) -> u64 {
        (hash.len() + bytes.len()) as u64
    }
}

impl<D: Disk> Store<D> {
    fn salt(&self) -> u32 {
        salt(&self.id)
    }

    /// Puts another quota and another reserve, a part of it, in force at once: puts that do not fit are refused from
    /// now on. Spares beyond them go; what is beyond them otherwise can still be deleted and cleaned away.
    pub fn set_quota(&mut self, quota_bytes: u64, reserve_bytes: u64) {
        assert!(reserve_bytes < quota_bytes, "a reserve is a part of its quota");
        (self.options.quota_bytes, self.options.reserve_bytes) = (quota_bytes, reserve_bytes);
        self.segments.spares.set_count_max(self.options.spares_max());
        while self.used_bytes() > quota_bytes {
            let fewer = self.segments.spares.count().saturating_sub(1);
            if !self.segments.spares.give_back(fewer) {
                break;
            }
        }
        self.make_room_for_reserve();
        self.lower_ceiling();
    }

    fn lower_ceiling(&mut self) {
        let Options { quota_bytes, reserve_bytes, .. } = self.options;
        let used = self.used_bytes();
        let beyond = if used > quota_bytes { used + reserve_bytes } else { quota_bytes };
        self.ceiling_bytes = beyond.min(self.ceiling_bytes).max(quota_bytes);
    }

    /// Where the newest record of a block lies: memory table, then index, each behind its filters.
    fn find_block(&mut self, hash: &Hash) -> Result<Option<Place>, IndexError> {
        let prefix = prefix_of(hash);
        if let Some(place) = self.table.block(&prefix) {
            return Ok(place);
        }
        let answer = self.index.block(&prefix, &probe(self.options.kernels, hash))?;
        self.counters.filter_false_positives += answer.in_vain;
        self.counters.filter_negatives += u64::from(answer == Answer::default());
        Ok(answer.place)
    }

    /// Asks the index; if it fails it is made again from the log, and asked once more.
    fn asked<T>(&mut self, question: impl Fn(&mut Self) -> Result<T, IndexError>) -> Result<T, IndexError> {
        match question(self) {
            Ok(answer) => Ok(answer),
            Err(IndexError::Failed(reason)) => {
                self.heal_index(reason)?;
                question(self)
            }
            Err(other) => Err(other),
        }
    }

    /// What the directory takes on the device.
    fn used_bytes(&self) -> u64 {
        self.segments.disk_bytes()
            + self.segments.spares.disk_bytes()
            + self.index.bytes_on_disk()
            + self.other_bytes
    }

    fn is_quarantined(&self, hash: &Hash) -> bool {
        !self.damaged.is_empty() && self.damaged.contains(&prefix_of(hash))
    }

    fn quarantine(&mut self, hash: &Hash) {
        if self.damaged.len() < crate::limits::DAMAGED_MAX && self.damaged.insert(prefix_of(hash)) {
            self.damaged_changed = true;
        }
        self.cache.remove(hash);
    }

    fn release(&mut self, hash: &Hash) {
        self.damaged_changed |= self.damaged.remove(&prefix_of(hash));
    }
}
