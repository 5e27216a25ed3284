//! Checkpoints, closing, and making the index again while the store is in use.
//!
//! Duty: bring the memory table into the index in one commit, save the filter of that checkpoint, and
//! replace an index that fails. A checkpoint that finds no room changes nothing: the table stays, the log has
//! it all, and the next one tries again.

use super::Store;
use crate::Hash;
use crate::disk::{Disk, DiskFile, OpenMode};
use crate::error::{CommitError, MaintainError};
use crate::filter::Filter;
use crate::format::{FILTER_NAME, INDEX_NAME, SET_ASIDE_PREFIX, StoreId, TEMPORARY_NAME};
use crate::index::{Checkpoint, Index, IndexError, Place, Table, Update};
use crate::limits::{LOG_BYTES_PER_CHECKPOINT, TABLE_BYTES_MAX, WALK_ENTRIES};
use std::io;

impl<D: Disk> Store<D> {
    /// Whether enough was written since the last checkpoint that one is due.
    pub fn needs_checkpoint(&self) -> bool {
        self.table.entries() >= self.options.table_entries
            || self.table.text_bytes() >= TABLE_BYTES_MAX
            || self.log_since_checkpoint >= LOG_BYTES_PER_CHECKPOINT
    }

    /// Makes the index durable up to now. Does nothing if there is nothing new.
    ///
    /// # Errors
    /// No room, or an index that can not be made again. Nothing acknowledged is lost.
    pub fn checkpoint(&mut self) -> Result<(), MaintainError> {
        let now = self.position(false);
        let known = now == Checkpoint { clean: false, ..self.checkpoint };
        if known && self.nothing_new() { Ok(()) } else { self.checkpoint_at(now) }
    }

    fn nothing_new(&self) -> bool {
        self.table.entries() == 0 && self.segments.changed_rows().is_empty() && !self.damaged_changed
    }

    /// Checkpoints and marks the store as closed, so that the next start reads nothing again.
    ///
    /// # Errors
    /// As for [`Store::checkpoint`]; the store is closed all the same, and the next start reads the log.
    pub fn close(mut self) -> Result<(), MaintainError> {
        let now = self.position(self.stopped.is_none() && !self.end_untold);
        let known = now == self.checkpoint && !self.filter_changed;
        if known && self.nothing_new() { Ok(()) } else { self.checkpoint_at(now) }
    }

    /// The end of the log as it is now.
    pub(super) fn position(&self, clean: bool) -> Checkpoint {
        let (generation, offset) =
            self.segments.newest().map_or((0, 0), |(_, segment)| (segment.row.generation, segment.row.end));
        Checkpoint {
            generation,
            offset,
            next_seq: self.next_seq,
            blocks: self.blocks,
            names: self.names,
            clean,
        }
    }

    fn checkpoint_at(&mut self, checkpoint: Checkpoint) -> Result<(), MaintainError> {
        if self.index.is_shut() {
            self.reopen_index();
        }
        match self.write_index(checkpoint) {
            Ok(()) => {}
            Err(IndexError::Full) => {
                self.reopen_index();
                return Err(self.full().into());
            }
            Err(IndexError::Failed(reason)) => {
                self.heal_index(reason).map_err(|error| MaintainError::Index { reason: error.reason() })?;
            }
        }
        self.save_filter();
        Ok(())
    }

    /// Writes table and rows; `checkpoint` says up to where the log is in them.
    pub(super) fn write_index(&mut self, checkpoint: Checkpoint) -> Result<(), IndexError> {
        #[cfg(planted)]
        self.table.forget_newest_segment();
        let damaged = self.damaged_changed.then(|| self.damaged.clone());
        let segments = self.segments.changed_rows();
        self.index.write(&Update { table: &self.table, checkpoint, segments, damaged })?;
        self.table.clear();
        self.segments.rows_written();
        self.damaged_changed = false;
        self.checkpoint = checkpoint;
        self.log_since_checkpoint = 0;
        self.counters.checkpoints += 1;
        Ok(())
    }

    /// Saves the filter of the checkpoint just written; one that can not be saved is made again at start.
    pub(super) fn save_filter(&mut self) {
        if self.filter.is_over_capacity() && self.rebuild_filter(self.blocks * 2).is_err() {
            return;
        }
        let Store { disk, filter, id, checkpoint, .. } = self;
        match filter.save(disk.as_ref(), id, checkpoint.next_seq) {
            Ok(()) => {
                self.filter_changed = false;
                self.counters.other_bytes_written += self.filter.bytes();
            }
            Err(_full_or_failed) => drop(self.disk.remove(TEMPORARY_NAME)),
        }
        self.other_bytes = other_bytes(self.disk.as_ref());
    }

    /// Makes the filter from index and table.
    pub(super) fn rebuild_filter(&mut self, keys: u64) -> Result<(), IndexError> {
        let mut filter = Filter::sized_for(keys);
        let mut after: Option<Hash> = None;
        loop {
            let page = self.blocks_page(after.as_ref())?;
            page.iter().for_each(|(hash, _)| filter.insert(hash));
            match page.last() {
                Some((hash, _)) => after = Some(*hash),
                None => break,
            }
        }
        self.filter = filter;
        self.filter_changed = true;
        Ok(())
    }

    /// The next blocks in order of their hashes; an empty page is the end.
    pub(super) fn blocks_page(&mut self, after: Option<&Hash>) -> Result<Vec<(Hash, Place)>, IndexError> {
        let mut start = after.copied();
        loop {
            let indexed = self.index.blocks_after(start.as_ref(), WALK_ENTRIES)?;
            // Behind a full page there may be more in the index: the table's part stops there too.
            let stop = indexed.last().filter(|_| indexed.len() == WALK_ENTRIES).map(|(hash, _)| *hash);
            let table = self.table.blocks();
            let mut page: Vec<(Hash, Place)> =
                indexed.into_iter().filter(|(hash, _)| !table.contains_key(hash)).collect();
            let pending = self.table.blocks_after(start.as_ref());
            let pending = pending.take_while(|(hash, _)| stop.is_none_or(|stop| **hash <= stop));
            page.extend(pending.filter_map(|(hash, place)| Some((*hash, (*place)?))));
            page.sort_unstable_by_key(|(hash, _)| *hash);
            match stop {
                // Everything on the page was deleted since: go on behind it.
                Some(stop) if page.is_empty() => start = Some(stop),
                _ => return Ok(page),
            }
        }
    }

    /// The mark that nothing was written since goes before anything is written.
    pub(super) fn clear_clean_mark(&mut self) -> Result<(), CommitError> {
        if !self.checkpoint.clean {
            return Ok(());
        }
        let checkpoint = Checkpoint { clean: false, ..self.checkpoint };
        let update = Update { table: &Table::default(), checkpoint, segments: Vec::new(), damaged: None };
        match self.index.write(&update) {
            Ok(()) => {}
            Err(IndexError::Full) => {
                self.reopen_index();
                return Err(self.full());
            }
            Err(IndexError::Failed(reason)) => {
                self.heal_index(reason).map_err(|error| CommitError::Index { reason: error.reason() })?;
            }
        }
        self.checkpoint.clean = false;
        Ok(())
    }

    /// After a failed write redb answers nothing until it is opened again. True if it is as it was.
    fn reopen_index(&mut self) -> bool {
        self.index.shut();
        if self.index_incomplete {
            return false;
        }
        match Index::open(self.disk.as_ref(), self.options.index_cache_bytes, &self.id) {
            Ok((index, opened)) => {
                let fits = opened.checkpoint.unwrap_or_default().next_seq >= self.checkpoint.next_seq;
                if fits {
                    self.index = index;
                }
                fits
            }
            Err(_full_or_failed) => false,
        }
    }

    /// Sets a failed index aside and makes it again from the log.
    pub(super) fn heal_index(&mut self, reason: String) -> Result<(), IndexError> {
        if self.index.is_shut() && self.reopen_index() {
            return Ok(());
        }
        self.index.shut();
        self.index_incomplete = true;
        self.index = fresh_index(self.disk.as_ref(), self.options.index_cache_bytes, &self.id)?;
        self.counters.index_rebuilt = Some(reason);
        if let Err(error) = self.replay_everything() {
            // Half of the log must answer nothing: what it lacks would pass for never stored.
            self.table.clear();
            self.index.shut();
            return Err(error);
        }
        self.index_incomplete = false;
        self.cleaning.iter_mut().for_each(super::clean::Cleaning::give_up);
        Ok(())
    }
}

/// A new index beside the one that failed, of which the last is kept for a look.
pub(super) fn fresh_index<D: Disk>(
    disk: &D,
    cache_bytes: usize,
    id: &StoreId,
) -> Result<Index<D>, IndexError> {
    let aside = |error: io::Error| IndexError::Failed(format!("setting {INDEX_NAME} aside: {error}"));
    let listed = disk.list().map_err(aside)?;
    let old: Vec<&str> = listed
        .iter()
        .map(|file| file.name.as_str())
        .filter(|name| name.starts_with(SET_ASIDE_PREFIX))
        .collect();
    let number =
        old.iter().filter_map(|name| name[SET_ASIDE_PREFIX.len()..].parse::<u32>().ok()).max().unwrap_or(0);
    for name in old {
        disk.remove(name).map_err(aside)?;
    }
    if listed.iter().any(|file| file.name == INDEX_NAME) {
        disk.rename(INDEX_NAME, &format!("{SET_ASIDE_PREFIX}{}", number.saturating_add(1))).map_err(aside)?;
    }
    // A filter belongs to a checkpoint of the old index.
    match disk.remove(FILTER_NAME) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(aside(error)),
        _ => {}
    }
    disk.sync_dir().map_err(aside)?;
    Ok(Index::open(disk, cache_bytes, id)?.0)
}

/// Bytes of all files that are neither segments nor the index.
pub(super) fn other_bytes<D: Disk>(disk: &D) -> u64 {
    let is_other = |name: &str| crate::format::segment_id(name).is_none() && name != INDEX_NAME;
    let names = disk.list().unwrap_or_default().into_iter().map(|file| file.name);
    names
        .filter(|name| is_other(name))
        .filter_map(|name| disk.open(&name, OpenMode::Read).and_then(|file| file.bytes_on_disk()).ok())
        .sum()
}
