//! Cleaning: mark what is reachable, move it out of the emptiest segments, retire those.
//!
//! Duty: give space back. The caller marks every block that a name leads to; blocks written or found present
//! since `clean_begin` count as marked. The marks are a bloom filter: a false positive keeps garbage, never
//! loses a block. Live records go to the open segment as ordinary batches with their old sequence numbers;
//! only when an index that knows the new places is durable is the old file freed, so a crash at any point
//! leaves at least one copy. A segment with bytes that are no records is left alone; while the device does
//! not read a part of the log, which may hold names that the caller can not know of, nothing is given back.

use super::commit::{Op, Purpose};
use super::names::read_error;
use super::{Store, VerifyPosition};
use crate::Hash;
use crate::batch::{Key, Record};
use crate::disk::Disk;
use crate::error::MaintainError;
use crate::filter::{Filter, probe};
use crate::format::{Kind, record_bytes};
use crate::index::{Entry, IndexError, PREFIX_BYTES, Place};
use crate::limits::{CLEAN_LIVE_PERCENT_MAX, MARKS_DECIBITS, MOVE_BYTES, PAGE_BYTES, WALK_ENTRIES};
use crate::scan::{Found, Reader};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Keys the smallest filter of marks is sized for (88 kB).
const MARKS_MIN: u64 = 65_536;
/// Bytes of the index that are read for an entry, about.
const COUNTED_BYTES: u64 = 40;
const HASH_BYTES: usize = 32;
/// Parts of a hash that marks can be of: the index knows so many whole ones.
const MARKED_PARTS: u64 = (PREFIX_BYTES / 8) as u64;

/// A cleaning under way.
#[derive(Debug)]
pub(super) struct Cleaning {
    /// Records from here on are live.
    horizon: u64,
    /// Generation and offset the log ended at.
    log_end: (u64, u64),
    marks: Filter,
    /// Which part of a hash they are of: another one each time, so that what they hold by mistake is not held for ever.
    part: usize,
    /// How far the index was looked through for live bytes, and what was found in each segment.
    counting: VerifyPosition,
    live: BTreeMap<u32, u64>,
    /// Chosen when that is done; the first one is being worked on.
    victims: Option<VecDeque<u32>>,
    /// How far in the first victim.
    position: u64,
}

impl Cleaning {
    /// The log was read again, and with it what was dropped from victims: they must not be retired now, and others
    /// may be chosen.
    pub(super) fn give_up(&mut self) {
        (self.victims, self.position) = (None, PAGE_BYTES);
        (self.counting, self.live) = (VerifyPosition::Blocks(None), BTreeMap::new());
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
    /// Bytes of emptied segments: given back to the device, or kept as spares for the next ones.
    pub bytes_freed: u64,
    /// Blocks that nothing led to, now forgotten.
    pub blocks_dropped: u64,
}

impl<D: Disk> Store<D> {
    /// Starts a cleaning, in place of one under way. Memory: a filter for the blocks there are. Where the device reads by
    /// now what it would not, the index is made again first.
    pub fn clean_begin(&mut self) {
        if self.segments.look_at_unread() {
            // What it lacks it lacks until the next cleaning.
            let _put_off = self.heal_index("a part of the log can be read that could not".into());
        }
        let keys = self.blocks.saturating_add(self.blocks / 4).max(MARKS_MIN);
        let end = self.position(false);
        self.counters.cleanings += 1;
        self.cleaning = Some(Cleaning {
            part: (self.counters.cleanings % MARKED_PARTS) as usize * 8,
            horizon: self.next_seq,
            log_end: (end.generation, end.offset),
            marks: Filter::sized_for(keys, MARKS_DECIBITS),
            counting: VerifyPosition::Blocks(None),
            live: BTreeMap::new(),
            victims: None,
            position: PAGE_BYTES,
        });
    }

    /// Marks blocks as reachable. All of them have to be marked before the first step.
    ///
    /// # Errors
    /// No cleaning is under way, or a part of the log is unread.
    pub fn clean_mark(&mut self, hashes: &[Hash]) -> Result<(), MaintainError> {
        self.under_way()?;
        self.note_used(hashes);
        Ok(())
    }

    /// Deletes those of these blocks that are not marked, as one batch; how many. All that is to be marked has to be.
    ///
    /// # Errors
    /// No cleaning is under way, a part of the log is unread, or those of [`Store::commit`].
    pub fn clean_delete(&mut self, hashes: &[Hash]) -> Result<usize, MaintainError> {
        self.under_way()?;
        let mut garbage = BTreeSet::new();
        for hash in hashes {
            let place = self.asked(|store| store.find_block(hash)).map_err(index_error)?;
            if place.is_some_and(|place| !self.is_marked(hash, self.is_new(&place))) {
                garbage.insert(*hash);
            }
        }
        let deleted = garbage.len();
        self.commit(garbage.into_iter().map(|hash| Op::Delete { hash }).collect())?;
        Ok(deleted)
    }

    /// Ends a cleaning early. What was moved stays moved.
    pub fn clean_abort(&mut self) {
        self.cleaning = None;
    }

    /// Cleans for about `budget_bytes` bytes read. The first steps look through the index.
    ///
    /// # Errors
    /// No cleaning is under way, a part of the log is unread, no room to move, or failing I/O; the step may be tried
    /// again.
    pub fn clean_step(&mut self, budget_bytes: u64) -> Result<CleanProgress, MaintainError> {
        self.refuse_if_stopped()?;
        let mut progress = CleanProgress::default();
        while self.under_way()?.victims.is_none() {
            if progress.bytes_read >= budget_bytes {
                return Ok(progress);
            }
            let position = self.under_way()?.counting.clone();
            let counted = self.asked(|store| store.count_live(&position)).map_err(index_error)?;
            progress.bytes_read += counted.bytes_read;
            // else the index was made again meanwhile, and all is counted from its beginning
            if self.under_way()?.counting == position {
                self.take_count(counted)?;
            }
        }
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
        progress.bytes_freed = self.free_emptied()?;
        progress.done = self.under_way()?.victims.as_ref().is_some_and(VecDeque::is_empty);
        if progress.done {
            self.cleaning = None;
        }
        Ok(progress)
    }

    /// The cleaning, unless nothing may be dropped.
    fn under_way(&mut self) -> Result<&mut Cleaning, MaintainError> {
        let files = self.segments.withheld_files();
        if !files.is_empty() {
            return Err(MaintainError::Unread { files });
        }
        self.cleaning.as_mut().ok_or(MaintainError::NotCleaning)
    }

    /// Blocks that are in use although the walk over the names may have missed them.
    pub(super) fn note_used(&mut self, hashes: &[Hash]) {
        let level = self.options.kernels;
        if let Some(cleaning) = &mut self.cleaning {
            hashes.iter().for_each(|hash| cleaning.marks.insert(&probe(level, &hash[cleaning.part..])));
        }
    }

    fn take_count(&mut self, counted: Counted) -> Result<(), MaintainError> {
        let cleaning = self.under_way()?;
        for (segment, bytes) in counted.live {
            *cleaning.live.entry(segment).or_default() += bytes;
        }
        match counted.next {
            Some(next) => cleaning.counting = next,
            None => self.choose_victims()?,
        }
        Ok(())
    }

    /// Segments sealed before this cleaning with enough garbage, those with most of it first.
    fn choose_victims(&mut self) -> Result<(), MaintainError> {
        let cleaning = self.under_way()?;
        let (end, live) = (cleaning.log_end.0, std::mem::take(&mut cleaning.live));
        let mut shares: Vec<(u64, u32)> = Vec::new();
        for (id, segment) in self.segments.iter() {
            let bytes = segment.row.end.saturating_sub(PAGE_BYTES).max(1);
            let percent = live.get(&id).copied().unwrap_or(0) * 100 / bytes;
            let usable = segment.row.generation < end && !segment.damaged && !segment.row.retired;
            if usable && percent <= CLEAN_LIVE_PERCENT_MAX {
                shares.push((percent, id));
            }
        }
        shares.sort_unstable();
        self.under_way()?.victims = Some(shares.into_iter().map(|(_, id)| id).collect());
        Ok(())
    }

    /// Live bytes of the next page of blocks, names or settings.
    fn count_live(&mut self, position: &VerifyPosition) -> Result<Counted, IndexError> {
        let mut counted = Counted::default();
        counted.next = match position {
            VerifyPosition::Blocks(after) => {
                let page = self.blocks_page(after.as_ref())?;
                for (prefix, place) in &page {
                    let live = self.is_marked(prefix, self.is_new(place));
                    counted.add(place, HASH_BYTES, live);
                }
                let last = page.last().map(|(prefix, _)| VerifyPosition::Blocks(Some(*prefix)));
                Some(last.unwrap_or(VerifyPosition::Names(None)))
            }
            VerifyPosition::Names(after) => {
                let page = self.names_page("", after.as_deref(), WALK_ENTRIES)?;
                let last = counted.texts(page).map(|last| VerifyPosition::Names(Some(last)));
                Some(last.unwrap_or(VerifyPosition::Settings(None)))
            }
            VerifyPosition::Settings(after) => {
                let page = self.settings_page("", after.as_deref(), WALK_ENTRIES)?;
                counted.texts(page).map(|last| VerifyPosition::Settings(Some(last)))
            }
        };
        Ok(counted)
    }

    /// Written since the cleaning began.
    fn is_new(&self, place: &Place) -> bool {
        let generation = self.segments.get(place.segment).map_or(0, |segment| segment.row.generation);
        self.cleaning
            .as_ref()
            .is_some_and(|cleaning| (generation, u64::from(place.offset)) >= cleaning.log_end)
    }

    fn is_marked(&self, hash: &[u8], is_new: bool) -> bool {
        let is_in = |cleaning: &Cleaning| {
            cleaning.marks.contains(&probe(self.options.kernels, &hash[cleaning.part..]))
        };
        self.cleaning.as_ref().is_none_or(|cleaning| is_new || is_in(cleaning))
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
        if at >= end && !segment.damaged {
            (segment.row.retired, segment.changed) = (true, true);
        }
        Ok(at >= end || segment.damaged)
    }

    /// Takes a live record along; forgets a block that nothing leads to. A block that reads wrong stays, and the
    /// victim with it.
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
            let is_new = self.cleaning.as_ref().is_some_and(|cleaning| record.seq >= cleaning.horizon);
            if !self.is_marked(hash, is_new) {
                if let Some(place) = self.asked(|store| store.find_block(hash)).map_err(index_error)? {
                    self.forget_block(hash, &place);
                    progress.blocks_dropped += 1;
                }
                return Ok(());
            }
            // A second read of what passed as part of its batch: it may answer something else.
            let value = parser.value(&found).filter(|value| blake3::hash(value).as_bytes() == hash);
            let Some(value) = value else {
                self.segments.get_mut(victim).into_iter().for_each(|segment| segment.damaged = true);
                return Ok(());
            };
            record.value = value;
        }
        let bound = MOVE_BYTES.min(self.options.segment_bytes / 4);
        let length = |record: &Record| record_bytes(record.key.bytes().len(), record.value.len());
        if moving.iter().map(length).sum::<u64>() + length(&record) > bound {
            self.move_records(moving, progress)?;
        }
        moving.push(record);
        Ok(())
    }

    /// Whether the index, or an older segment, still needs this record where it lies.
    fn is_current(&mut self, victim: u32, found: &Found) -> Result<bool, IndexError> {
        let seq = found.record.seq;
        let here = |place: Place| place.segment == victim && u64::from(place.offset) == found.offset;
        match (&found.record.key, found.record.kind) {
            (Key::Hash(hash), Kind::Block) => Ok(self.find_block(hash)?.is_some_and(here)),
            (Key::Text(name), Kind::Bind) => Ok(self.find_name(name)?.is_some_and(|e| here(e.place))),
            (Key::Text(key), Kind::Setting) => Ok(self.find_setting(key)?.is_some_and(|e| here(e.place))),
            // The block was put again: moved behind that, the deletion would take it back.
            (Key::Hash(hash), Kind::Delete) if self.find_block(hash)?.is_some() => Ok(false),
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
        progress.bytes_moved += self.append(moving, Purpose::Moves)?;
        moving.clear();
        Ok(())
    }

    fn free_emptied(&mut self) -> Result<u64, MaintainError> {
        if !self.segments.iter().any(|(_, segment)| segment.row.retired) {
            return Ok(0);
        }
        self.checkpoint()?;
        self.segments
            .free_retired()
            .map_err(|source| MaintainError::Io { doing: "freeing an emptied segment", source })
    }
}

/// What one page of the index said of segments.
#[derive(Default)]
struct Counted {
    live: BTreeMap<u32, u64>,
    bytes_read: u64,
    /// None at the end.
    next: Option<VerifyPosition>,
}

impl Counted {
    fn add(&mut self, place: &Place, key_length: usize, live: bool) {
        self.bytes_read += COUNTED_BYTES;
        if live {
            *self.live.entry(place.segment).or_default() += record_bytes(key_length, place.length as usize);
        }
    }

    /// Adds a page of texts; its last key.
    fn texts(&mut self, page: Vec<(String, Entry)>) -> Option<String> {
        page.iter().for_each(|(key, entry)| self.add(&entry.place, key.len(), true));
        page.into_iter().next_back().map(|(key, _)| key)
    }
}

fn index_error(error: IndexError) -> MaintainError {
    MaintainError::Index { reason: read_error(error).to_string() }
}
