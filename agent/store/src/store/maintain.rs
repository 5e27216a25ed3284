//! Checkpoints, closing, and making the index again while the store is in use.
//!
//! Duty: bring the memory table into the index in one commit, with a bounded piece of merging, and replace an
//! index that fails. A checkpoint that finds no room changes nothing: the table stays, the log has
//! it all, and the next one tries again.

use super::Store;
use crate::disk::{Disk, DiskFile, OpenMode};
use crate::error::{CommitError, MaintainError};
use crate::format::{INDEX_NAME, SET_ASIDE_PREFIX, StoreId, segment_id, spare_id};
use crate::index::{Checkpoint, Index, IndexError, Opened, Place, Prefix, Update};
use crate::limits::{
    INDEX_BYTES_PER_BLOCK, LOG_BYTES_PER_CHECKPOINT, MERGE_PACE, TABLE_BYTES_MAX, WALK_ENTRIES,
};
use crate::options::Options;
use std::io;

impl<D: Disk> Store<D> {
    /// Whether enough was written since the last checkpoint that one is due.
    pub fn needs_checkpoint(&self) -> bool {
        let is_due = self.table.entries() >= self.options.table_entries
            || self.table.text_bytes() >= TABLE_BYTES_MAX
            || self.log_since_checkpoint >= LOG_BYTES_PER_CHECKPOINT;
        is_due && self.unsettled.is_none()
    }

    /// Makes the index durable up to now. Does nothing if there is nothing new.
    ///
    /// # Errors
    /// No room, an index that can not be made again, or a log whose end could not be made durable at the start.
    /// Nothing acknowledged is lost.
    pub fn checkpoint(&mut self) -> Result<(), MaintainError> {
        let now = self.position(false);
        if self.unsettled.is_some() {
            self.refuse_if_stopped()?;
        }
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
        let known = now == self.checkpoint && self.nothing_new();
        if known || self.unsettled.is_some() { Ok(()) } else { self.checkpoint_at(now) }
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
        let failed = |error: IndexError| MaintainError::Index { reason: error.reason() };
        self.reopen_if_wanted().map_err(failed)?;
        match self.write_index(checkpoint) {
            Ok(()) => {}
            Err(IndexError::Full) => {
                let _put_off = self.reopen_index();
                if self.segments.spares.give_back(0) {
                    return self.checkpoint_at(checkpoint);
                }
                return Err(self.full().into());
            }
            Err(IndexError::Passing(reason)) => return Err(MaintainError::Index { reason }),
            Err(IndexError::Failed(reason)) => self.heal_index(reason).map_err(failed)?,
        }
        Ok(())
    }

    /// Writes table and rows; `checkpoint` says up to where the log is in them. What could not be made durable stays
    /// in the table: what was written since the checkpoint before it, or all of the log if the index is made again.
    pub(super) fn write_index(&mut self, checkpoint: Checkpoint) -> Result<(), IndexError> {
        if self.unsettled.is_some_and(|generation| checkpoint.generation >= generation) {
            return Ok(());
        }
        #[cfg(planted)]
        self.table.forget_newest_segment();
        let damaged = self.damaged_changed.then(|| self.damaged.clone());
        let (segments, unread) = (self.segments.changed_rows(), Some(self.segments.unread()));
        self.index.write(&Update { table: Some(&self.table), checkpoint, segments, unread, damaged })?;
        let merge_entries = self.merge_entries();
        self.table.clear();
        self.segments.rows_written();
        self.damaged_changed = false;
        self.checkpoint = checkpoint;
        self.log_since_checkpoint = 0;
        self.counters.checkpoints += 1;
        match self.index.merge(merge_entries, self.blocks, self.options.garbage_entries_min()) {
            // Merging can wait for room or memory; the checkpoint is written.
            Err(IndexError::Full | IndexError::Passing(_)) => {
                let _put_off = self.reopen_index();
                Ok(())
            }
            merged => merged,
        }
    }

    /// Entries to merge with a checkpoint: in proportion to what it writes, so that runs are merged as fast as they
    /// come; none while there is hardly room for a second copy of them.
    fn merge_entries(&self) -> u64 {
        let blocks = self.table.blocks().len() as u64;
        let entries =
            if blocks == 0 { 0 } else { (blocks * MERGE_PACE).max(self.options.merge_entries_min()) };
        let room =
            self.options.quota_bytes.saturating_sub(self.used_bytes() + self.options.reserve_bytes / 2);
        if room > entries * INDEX_BYTES_PER_BLOCK { entries } else { 0 }
    }

    /// The next blocks in order of their hashes; an empty page is the end.
    pub(super) fn blocks_page(&self, after: Option<&Prefix>) -> Result<Vec<(Prefix, Place)>, IndexError> {
        let mut start = after.copied();
        loop {
            let indexed = self.index.blocks_after(start.as_ref(), WALK_ENTRIES)?;
            // Behind a full page there may be more in the index: the table's part stops there too.
            let stop = indexed.last().filter(|_| indexed.len() == WALK_ENTRIES).map(|(prefix, _)| *prefix);
            let table = self.table.blocks();
            let indexed = indexed.into_iter().filter(|(prefix, _)| table.get(prefix).is_none());
            let mut page: Vec<(Prefix, Place)> =
                indexed.filter_map(|(prefix, place)| Some((prefix, place?))).collect();
            let pending = table.iter().filter(|(prefix, _)| {
                start.is_none_or(|start| **prefix > start) && stop.is_none_or(|stop| **prefix <= stop)
            });
            page.extend(pending.filter_map(|(prefix, place)| Some((*prefix, (*place)?))));
            page.sort_unstable_by_key(|(prefix, _)| *prefix);
            match stop {
                Some(_) if page.is_empty() => start = stop,
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
        let (segments, unread, damaged) = (Vec::new(), None, None);
        let update = Update { table: None, checkpoint, segments, unread, damaged };
        let failed = |error: IndexError| CommitError::Index { reason: error.reason() };
        self.reopen_if_wanted().map_err(failed)?;
        match self.index.write(&update) {
            Ok(()) => {}
            Err(IndexError::Full) => {
                let _put_off = self.reopen_index();
                if self.segments.spares.give_back(0) {
                    return self.clear_clean_mark();
                }
                return Err(self.full());
            }
            Err(IndexError::Passing(reason)) => return Err(CommitError::Index { reason }),
            Err(IndexError::Failed(reason)) => self.heal_index(reason).map_err(failed)?,
        }
        self.checkpoint.clean = false;
        Ok(())
    }

    /// Opens the index again if that may be all it takes, and says whether it was. An error says that it may be well.
    fn reopen_if_wanted(&mut self) -> Result<bool, IndexError> {
        match self.index.wants_opening().then(|| self.reopen_index()) {
            Some(Ok(())) => Ok(true),
            Some(Err(passing @ IndexError::Passing(_))) => Err(passing),
            Some(Err(IndexError::Full | IndexError::Failed(_))) | None => Ok(false),
        }
    }

    /// After a failed write or read redb answers nothing until it is opened again; it is as it was then. What a failed
    /// sync dropped does no harm: no page of the last durable commit is in it, and opening writes redb's header anew.
    fn reopen_index(&mut self) -> Result<(), IndexError> {
        self.index.shut();
        if self.index_incomplete {
            return Err(IndexError::Failed("it lacks a part of the log".into()));
        }
        let (index, opened) = open_index(self.disk.as_ref(), &self.options, &self.id)?;
        if opened.checkpoint.unwrap_or_default().next_seq < self.checkpoint.next_seq {
            return Err(IndexError::Failed("it is older than it was".into()));
        }
        self.index = index;
        Ok(())
    }

    /// Answers nothing until the index has been made again from the log, with the next question.
    pub(super) fn give_up_index(&mut self) {
        self.table.clear();
        self.index.shut();
        self.index_incomplete = true;
    }

    /// Sets a failed index aside and makes it again from the log, unless it only has to be opened again.
    pub(super) fn heal_index(&mut self, reason: String) -> Result<(), IndexError> {
        if self.reopen_if_wanted()? {
            return Ok(());
        }
        self.index.give_up();
        self.index_incomplete = true;
        self.index = fresh_index(self.disk.as_ref(), &self.options, &self.id)?;
        self.other_bytes = other_bytes(self.disk.as_ref());
        self.counters.index_rebuilt = Some(reason);
        if let Err(error) = self.replay_everything() {
            // Half of the log must answer nothing: what it lacks would pass for never stored.
            self.give_up_index();
            return Err(error);
        }
        self.index_incomplete = false;
        self.make_room_for_reserve();
        self.cleaning.iter_mut().for_each(super::clean::Cleaning::give_up);
        Ok(())
    }
}

impl<D: Disk> Store<D> {
    /// What was set aside is for a look, and goes where it takes what the reserve is for.
    pub(super) fn make_room_for_reserve(&mut self) {
        if self.used_bytes() + self.options.reserve_bytes > self.options.quota_bytes {
            for file in self.disk.list().unwrap_or_default() {
                if file.name.starts_with(SET_ASIDE_PREFIX) {
                    // What can not be removed counts.
                    let _kept = self.disk.remove(&file.name);
                }
            }
            self.other_bytes = other_bytes(self.disk.as_ref());
        }
    }
}

/// A new index beside the one that failed, of which the last is kept for a look.
pub(super) fn fresh_index<D: Disk>(
    disk: &D,
    options: &Options,
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
    disk.sync_dir().map_err(aside)?;
    Ok(open_index(disk, options, id)?.0)
}

pub(super) fn open_index<D: Disk>(
    disk: &D,
    options: &Options,
    id: &StoreId,
) -> Result<(Index<D>, Opened), IndexError> {
    Index::open(disk, options.index_cache_bytes, options.kernels, id)
}

/// Bytes of all files that are neither segments, spares nor the index.
pub(super) fn other_bytes<D: Disk>(disk: &D) -> u64 {
    let is_other = |name: &str| segment_id(name).or(spare_id(name)).is_none() && name != INDEX_NAME;
    let names = disk.list().unwrap_or_default().into_iter().map(|file| file.name);
    names
        .filter(|name| is_other(name))
        .filter_map(|name| disk.open(&name, OpenMode::Read).and_then(|file| file.bytes_on_disk()).ok())
        .sum()
}
