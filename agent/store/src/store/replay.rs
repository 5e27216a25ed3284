//! Reading the log again, from the last checkpoint or from its beginning.
//!
//! Duty: apply every batch behind a position, find the torn end of the newest segment, and tell it from
//! damage: behind a torn end there is no later batch. Of a damaged batch what is whole by itself is saved,
//! and blocks that are not are quarantined. The memory table goes to the index whenever it is full, so a
//! replay of any length takes the same memory.

use super::{OpenReport, Store};
use crate::batch::Key;
use crate::disk::{Disk, DiskFile};
use crate::error::says_nothing_of_the_file;
use crate::index::{Checkpoint, IndexError, Place};
use crate::limits::{PAGE_BYTES, SEQS_SKIPPED, TABLE_BYTES_MAX};
use crate::scan::{Batch, Found, Reader, Salvage};
use std::io;

impl<D: Disk> Store<D> {
    /// Forgets what the index said and applies the whole log; ends with a checkpoint.
    pub(super) fn replay_everything(&mut self) -> Result<(), IndexError> {
        self.table.clear();
        self.checkpoint = Checkpoint::default();
        self.damaged.clear();
        self.damaged_changed = true;
        (self.blocks, self.names) = (0, 0);
        self.segments.begin_anew();
        let mut report = OpenReport::default();
        self.replay(&Checkpoint::default(), &mut report)?;
        self.counters.add_damage(&report);
        self.write_index(self.position(false))
    }

    /// Applies what lies behind a checkpoint.
    pub(super) fn replay(&mut self, from: &Checkpoint, report: &mut OpenReport) -> Result<(), IndexError> {
        for id in self.segments.in_order() {
            let Some(row) = self.segments.get(id).map(|segment| segment.row) else { continue };
            if row.generation < from.generation || row.retired {
                continue;
            }
            let start = if row.generation == from.generation { from.offset } else { PAGE_BYTES };
            self.next_seq = self.next_seq.max(row.first_seq);
            self.replay_segment(id, start, report)?;
        }
        if report.damaged_bytes > 0 || !report.unreadable_files.is_empty() {
            self.skip_numbers();
        }
        Ok(())
    }

    /// What could not be read took numbers too; should it be read one day, it must be older than what comes now.
    pub(super) fn skip_numbers(&mut self) {
        self.next_seq += SEQS_SKIPPED;
    }

    /// A file that does not open now may hold anything. It stays out of the index, so that the next start
    /// reads the log again, and nothing is written meanwhile that could be taken for older than what it holds.
    fn leave_out(&mut self, id: u32, error: &io::Error, report: &mut OpenReport) {
        let name = crate::format::segment_name(id);
        self.stopped = Some(format!("{name} could not be read: {error}"));
        report.unreadable_files.push(name);
        self.segments.leave_out(id);
    }

    fn replay_segment(&mut self, id: u32, start: u64, report: &mut OpenReport) -> Result<(), IndexError> {
        let Some(segment) = self.segments.get(id).copied() else { return Ok(()) };
        let mut parser = match self.segments.parser(id) {
            Ok(parser) => parser,
            Err(error) if says_nothing_of_the_file(&error) => {
                return Err(IndexError::Passing(error.to_string()));
            }
            Err(error) => {
                self.leave_out(id, &error, report);
                return Ok(());
            }
        };
        let mut at = start;
        let mut newest = 0;
        while at < segment.row.end {
            let (from, batch) = match parser.batch(at) {
                Some(batch) => (at, Some(batch)),
                None => match parser.next_batch(at + PAGE_BYTES, newest) {
                    Some((from, batch)) => (from, Some(batch)),
                    // A batch that can not be read is not one that was never written.
                    None if segment.end_known || parser.met_error() => (segment.row.end, None),
                    None => {
                        report.torn |= parser.is_begun(at);
                        break;
                    }
                },
            };
            if from > at {
                self.apply_damaged(id, at, from, &mut parser, report)?;
            }
            at = from;
            if let Some(batch) = batch {
                (at, newest) = (batch.end, batch.commit_seq);
                self.apply_batch(id, &batch, report)?;
            }
            self.flush_replayed(segment.row.generation, at)?;
        }
        if let Some(segment) = self.segments.get_mut(id) {
            (segment.row.end, segment.end_known, segment.changed) = (at, true, true);
        }
        self.log_since_checkpoint += at.saturating_sub(start);
        Ok(())
    }

    fn apply_batch(&mut self, id: u32, batch: &Batch, report: &mut OpenReport) -> Result<(), IndexError> {
        for found in &batch.records {
            self.apply(&found.record, place_of(id, found), None)?;
        }
        self.next_seq = self.next_seq.max(batch.commit_seq + 1);
        report.replayed_batches += 1;
        report.replayed_records += batch.records.len() as u64;
        Ok(())
    }

    fn apply_damaged<F: DiskFile>(
        &mut self,
        id: u32,
        from: u64,
        to: u64,
        parser: &mut Reader<F>,
        report: &mut OpenReport,
    ) -> Result<(), IndexError> {
        let Salvage { whole, broken_blocks, is_gapped, bytes } = parser.salvage(from, to);
        // Of a block the last word in the log counts.
        let mut in_order: Vec<&Found> = whole.iter().chain(&broken_blocks).collect();
        in_order.sort_unstable_by_key(|found| found.offset);
        for found in in_order {
            self.apply(&found.record, place_of(id, found), None)?;
            self.next_seq = self.next_seq.max(found.record.seq + 1);
        }
        for found in &broken_blocks {
            if let Key::Hash(hash) = found.record.key
                && self.find_block(&hash)? == Some(place_of(id, found))
            {
                self.quarantine(&hash);
                report.damaged_blocks += 1;
            }
        }
        report.damaged_bytes += bytes;
        report.salvaged_records += whole.len() as u64;
        if is_gapped {
            self.segments.set_unread(id, parser.met_error());
        }
        self.segments.get_mut(id).into_iter().for_each(|segment| segment.damaged = true);
        Ok(())
    }

    fn flush_replayed(&mut self, generation: u64, offset: u64) -> Result<(), IndexError> {
        if self.table.entries() < self.options.table_entries && self.table.text_bytes() < TABLE_BYTES_MAX {
            return Ok(());
        }
        let (next_seq, blocks, names) = (self.next_seq, self.blocks, self.names);
        self.write_index(Checkpoint { generation, offset, next_seq, blocks, names, clean: false })
    }
}

fn place_of(segment: u32, found: &Found) -> Place {
    Place { segment, offset: u32::try_from(found.offset).unwrap_or(u32::MAX), length: found.value_length }
}
