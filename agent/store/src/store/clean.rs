//! Cleaning: mark what is reachable, move it out of the emptiest segments, retire those.
//!
//! Duty: give space back. The caller marks every block that a name leads to; blocks written or found present
//! since `clean_begin` count as marked. The marks are a bloom filter: a false positive keeps garbage, never
//! loses a block. Live records go to the open segment as ordinary batches with their old sequence numbers;
//! only when an index that knows the new places is durable is the old file removed, so a crash at any point
//! leaves at least one copy. A segment with bytes that are no records is left alone.

use super::Store;
use super::names::read_error;
use crate::Hash;
use crate::batch::{Key, Record};
use crate::disk::Disk;
use crate::error::MaintainError;
use crate::filter::Filter;
use crate::format::{Kind, record_bytes};
use crate::index::IndexError;
use crate::limits::{CLEAN_LIVE_PERCENT_MAX, MOVE_BYTES, PAGE_BYTES, WALK_ENTRIES};
use crate::scan::{Found, Reader};
use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};

/// A cleaning under way.
#[derive(Debug)]
pub(super) struct Cleaning {
    /// Records from here on are live.
    horizon: u64,
    marks: Filter,
    /// Chosen at the first step; the first one is being worked on.
    victims: Option<VecDeque<u32>>,
    /// How far in the first victim.
    position: u64,
}

impl Cleaning {
    /// The log was read again, and with it what was dropped from victims: they must not be retired now.
    pub(super) fn give_up(&mut self) {
        (self.victims, self.position) = (None, PAGE_BYTES);
    }
}

/// What a step of cleaning did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CleanProgress {
    /// Nothing is left to clean; the marks are gone.
    pub done: bool,
    /// Bytes of segments looked through.
    pub bytes_read: u64,
    /// Bytes written anew.
    pub bytes_moved: u64,
    /// Bytes given back to the device.
    pub bytes_freed: u64,
    /// Blocks that nothing led to, now forgotten.
    pub blocks_dropped: u64,
}

impl<D: Disk> Store<D> {
    /// Starts a cleaning, in place of one under way. Memory: a filter for the blocks there are.
    pub fn clean_begin(&mut self) {
        let marks = Filter::sized_for(self.blocks.saturating_add(self.blocks / 4));
        let position = PAGE_BYTES;
        self.cleaning = Some(Cleaning { horizon: self.next_seq, marks, victims: None, position });
    }

    /// Marks blocks as reachable. All of them have to be marked before the first step.
    ///
    /// # Errors
    /// No cleaning is under way.
    pub fn clean_mark(&mut self, hashes: &[Hash]) -> Result<(), MaintainError> {
        let cleaning = self.under_way()?;
        hashes.iter().for_each(|hash| cleaning.marks.insert(hash));
        Ok(())
    }

    /// Ends a cleaning early. What was moved stays moved.
    pub fn clean_abort(&mut self) {
        self.cleaning = None;
    }

    /// Cleans for about `budget_bytes` bytes read. The first step also walks the index once.
    ///
    /// # Errors
    /// No cleaning is under way, no room to move, or failing I/O; the step may be tried again.
    pub fn clean_step(&mut self, budget_bytes: u64) -> Result<CleanProgress, MaintainError> {
        self.refuse_if_stopped()?;
        self.choose_victims()?;
        let mut progress = CleanProgress::default();
        while progress.bytes_read < budget_bytes.max(1)
            && let Some(victim) =
                self.under_way()?.victims.as_ref().and_then(|victims| victims.front().copied())
        {
            let left = budget_bytes.saturating_sub(progress.bytes_read);
            if self.clean_segment(victim, left, &mut progress)? {
                let cleaning = self.under_way()?;
                cleaning.victims.as_mut().and_then(VecDeque::pop_front);
                cleaning.position = PAGE_BYTES;
            }
        }
        progress.bytes_freed = self.remove_emptied()?;
        progress.done = self.under_way()?.victims.as_ref().is_none_or(VecDeque::is_empty);
        if progress.done {
            self.cleaning = None;
        }
        Ok(progress)
    }

    fn under_way(&mut self) -> Result<&mut Cleaning, MaintainError> {
        self.cleaning.as_mut().ok_or(MaintainError::NotCleaning)
    }

    /// Blocks that are in use although the walk over the names may have missed them.
    pub(super) fn note_used(&mut self, hashes: &[Hash]) {
        if let Some(cleaning) = &mut self.cleaning {
            hashes.iter().for_each(|hash| cleaning.marks.insert(hash));
        }
    }

    /// Sealed segments with enough garbage, those with most of it first.
    fn choose_victims(&mut self) -> Result<(), MaintainError> {
        if self.under_way()?.victims.is_some() {
            return Ok(());
        }
        let live = self.asked(Self::live_bytes).map_err(index_error)?;
        let open = self.segments.open_segment().map(|(id, _, _)| id);
        let mut shares: Vec<(u64, u32)> = Vec::new();
        for (id, segment) in self.segments.iter() {
            let bytes = segment.row.end.saturating_sub(PAGE_BYTES).max(1);
            let percent = live.get(&id).copied().unwrap_or(0) * 100 / bytes;
            let usable = Some(id) != open && !segment.damaged && !segment.row.retired;
            if usable && percent <= CLEAN_LIVE_PERCENT_MAX {
                shares.push((percent, id));
            }
        }
        shares.sort_unstable();
        self.under_way()?.victims = Some(shares.into_iter().map(|(_, id)| id).collect());
        Ok(())
    }

    /// Bytes of live records in each segment.
    fn live_bytes(&mut self) -> Result<BTreeMap<u32, u64>, IndexError> {
        let mut live: BTreeMap<u32, u64> = BTreeMap::new();
        let mut after = None;
        loop {
            let page = self.blocks_page(after.as_ref())?;
            let Some((last, _)) = page.last() else { break };
            after = Some(*last);
            for (hash, place) in page.iter().filter(|(hash, place)| self.is_marked(hash, place.seq)) {
                *live.entry(place.segment).or_default() += record_bytes(hash.len(), place.length as usize);
            }
        }
        let mut add = |page: &[(String, crate::index::Entry)]| {
            for (key, entry) in page {
                *live.entry(entry.place.segment).or_default() += record_bytes(key.len(), entry.value.len());
            }
            page.last().map(|(key, _)| key.clone())
        };
        let mut name = None;
        loop {
            name = add(&self.names_page("", name.as_deref(), WALK_ENTRIES)?);
            if name.is_none() {
                break;
            }
        }
        let mut key = None;
        loop {
            key = add(&self.settings_page("", key.as_deref(), WALK_ENTRIES)?);
            if key.is_none() {
                return Ok(live);
            }
        }
    }

    fn is_marked(&self, hash: &Hash, seq: u64) -> bool {
        self.cleaning.as_ref().is_none_or(|cleaning| seq >= cleaning.horizon || cleaning.marks.contains(hash))
    }

    /// Goes on with a victim; true when there is nothing more to do in it.
    fn clean_segment(
        &mut self,
        victim: u32,
        budget: u64,
        progress: &mut CleanProgress,
    ) -> Result<bool, MaintainError> {
        let start = self.under_way()?.position;
        let end = self.segments.get(victim).map_or(0, |segment| segment.row.end);
        let reading = |source| MaintainError::Io { doing: "reading a segment", source };
        let mut parser = self.segments.parser(victim).map_err(reading)?;
        let mut moving = Vec::new();
        let mut at = start;
        while at < end && at - start < budget.max(1) {
            let Some(batch) = parser.batch(at) else {
                self.segments.get_mut(victim).into_iter().for_each(|segment| segment.damaged = true);
                break;
            };
            for found in batch.records {
                self.sort_out(victim, found, &mut parser, &mut moving, progress)?;
            }
            progress.bytes_read += batch.end - at;
            at = batch.end;
        }
        self.move_records(&mut moving, progress)?;
        if self.under_way()?.victims.is_none() {
            return Ok(false);
        }
        self.under_way()?.position = at;
        let Some(segment) = self.segments.get_mut(victim) else { return Ok(true) };
        if at >= end {
            (segment.row.retired, segment.changed) = (true, true);
        }
        Ok(at >= end || segment.damaged)
    }

    /// Takes a live record along; forgets a block that nothing leads to.
    fn sort_out(
        &mut self,
        victim: u32,
        found: Found,
        parser: &mut Reader<D::File>,
        moving: &mut Vec<Record>,
        progress: &mut CleanProgress,
    ) -> Result<(), MaintainError> {
        if !self.asked(|store| store.is_current(victim, &found)).map_err(index_error)? {
            return Ok(());
        }
        let mut record = found.record.clone();
        if let (Kind::Block, Key::Hash(hash)) = (record.kind, &record.key) {
            if !self.is_marked(hash, record.seq) {
                if let Some(place) = self.asked(|store| store.find_block(hash)).map_err(index_error)? {
                    self.forget_block(hash, &place);
                    progress.blocks_dropped += 1;
                }
                return Ok(());
            }
            let gone = || std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
            record.value = parser
                .value(&found)
                .ok_or_else(|| MaintainError::Io { doing: "reading a block to move it", source: gone() })?;
        }
        let bound = MOVE_BYTES.min(self.options.segment_bytes as usize / 4);
        let held: usize = moving.iter().map(|record| record.value.len() + 256).sum();
        if held + record.value.len() > bound {
            self.move_records(moving, progress)?;
        }
        moving.push(record);
        Ok(())
    }

    /// Whether the index, or an older segment, still needs this record where it lies.
    fn is_current(&mut self, victim: u32, found: &Found) -> Result<bool, IndexError> {
        let seq = found.record.seq;
        let here = |place: crate::index::Place| {
            place.segment == victim && u64::from(place.offset) == found.offset && place.seq == seq
        };
        match (&found.record.key, found.record.kind) {
            (Key::Hash(hash), Kind::Block) => Ok(self.find_block(hash)?.is_some_and(here)),
            (Key::Text(name), Kind::Bind) => Ok(self.find_name(name)?.is_some_and(|e| here(e.place))),
            (Key::Text(key), Kind::Setting) => Ok(self.find_setting(key)?.is_some_and(|e| here(e.place))),
            (_, Kind::Delete | Kind::Unbind | Kind::SettingRemoved) => {
                // What it takes back can only lie in a segment that was begun before it was written.
                let older = |(id, segment): (u32, &crate::segments::Segment)| {
                    id != victim && segment.row.first_seq <= seq
                };
                Ok(self.segments.iter().any(older))
            }
            (_, Kind::Block | Kind::Bind | Kind::Setting | Kind::Commit) => Ok(false),
        }
    }

    fn move_records(
        &mut self,
        moving: &mut Vec<Record>,
        progress: &mut CleanProgress,
    ) -> Result<(), MaintainError> {
        if moving.is_empty() {
            return Ok(());
        }
        if self.table.entries() + moving.len() > 2 * self.options.table_entries {
            self.checkpoint()?;
        }
        progress.bytes_moved += self.append(moving, false)?;
        moving.clear();
        Ok(())
    }

    fn remove_emptied(&mut self) -> Result<u64, MaintainError> {
        if !self.segments.iter().any(|(_, segment)| segment.row.retired) {
            return Ok(0);
        }
        self.checkpoint()?;
        self.segments
            .remove_retired()
            .map_err(|source| MaintainError::Io { doing: "removing an emptied segment", source })
    }
}

fn index_error(error: IndexError) -> MaintainError {
    MaintainError::Index { reason: read_error(error).to_string() }
}
