//! Reading the log: batches, the end of a segment, and what can be saved of a damaged batch.
//!
//! Duty: parse one segment from a given offset without trusting a byte of it. A batch is answered whole or
//! not at all. Block payloads are checked but not kept, so memory is bounded by the keys of one batch, one read
//! window and a number for each sector that fails. Such a sector counts as damaged bytes; nothing here stops an open.

use crate::batch::{Key, Record};
use crate::disk::DiskFile;
use crate::format::{
    COMMIT_RECORD_BYTES, CommitValue, Kind, RECORD_HEADER_BYTES, RecordHeader, array_at, is_checked_by_name,
};
use crate::limits::{PAGE_BYTES, READ_BYTES};
use bytes::Bytes;
use std::collections::BTreeSet;
use std::io;

/// What a device reads or fails to read as one.
const SECTOR_BYTES: u64 = 512;

/// A record read from the log. The value of a block stays on disk.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) record: Record,
    pub(crate) offset: u64,
    pub(crate) value_length: u32,
}

/// A batch that passed every check.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) records: Vec<Found>,
    pub(crate) commit_seq: u64,
    /// Where the next batch starts.
    pub(crate) end: u64,
}

/// What is left of a damaged stretch of the log.
#[derive(Debug, Default)]
pub(crate) struct Salvage {
    /// Records that are whole by themselves.
    pub(crate) whole: Vec<Found>,
    /// Blocks whose header is whole and whose bytes are not.
    pub(crate) broken_blocks: Vec<Found>,
    /// There is something else, which may have been any record.
    pub(crate) is_gapped: bool,
    /// Bytes of the stretch.
    pub(crate) bytes: u64,
}

/// A segment being read, through one window of memory.
#[derive(Debug)]
pub(crate) struct Reader<F> {
    file: F,
    salt: u32,
    generation: u64,
    /// Nothing at or behind this offset belongs to the log.
    end: u64,
    window: Vec<u8>,
    window_start: u64,
    /// Numbers of sectors that the device could not read, of which none is asked for again: a failing read can take
    /// seconds.
    bad_sectors: BTreeSet<u64>,
    met_error: bool,
}

impl<F: DiskFile> Reader<F> {
    pub(crate) fn new(file: F, salt: u32, generation: u64, end: u64) -> Self {
        let (window, window_start, bad_sectors, met_error) = Default::default();
        Self { file, salt, generation, end, window, window_start, bad_sectors, met_error }
    }

    /// The next whole batch at or behind `offset` that is newer than `newer_than`, and where it starts. Reads
    /// to the segment's end if there is none, each byte about once.
    pub(crate) fn next_batch(&mut self, offset: u64, newer_than: u64) -> Option<(u64, Batch)> {
        let mut at = offset;
        while at < self.end {
            at = match self.batch_or_reach(at) {
                Ok(batch) if batch.commit_seq > newer_than => return Some((at, batch)),
                Ok(batch) => batch.end,
                Err(reach) => reach.max(at + 1).next_multiple_of(PAGE_BYTES),
            };
        }
        None
    }

    /// Whether the device reads all of it.
    pub(crate) fn reads_whole(mut self) -> bool {
        let _none = self.next_batch(PAGE_BYTES, u64::MAX);
        !self.met_error
    }

    /// The batch that starts at `offset`, if it is whole.
    pub(crate) fn batch(&mut self, offset: u64) -> Option<Batch> {
        self.batch_or_reach(offset).ok()
    }

    /// The batch that starts at `offset`, or before where none can start: up to there lie whole records of
    /// something else.
    fn batch_or_reach(&mut self, offset: u64) -> Result<Batch, u64> {
        let mut records = Vec::new();
        let mut records_check = 0;
        let mut at = offset;
        loop {
            #[cfg(planted)]
            if crate::planted::is(crate::planted::Bug::MissingCommitCheck) && self.header(at).is_none() {
                let commit_seq = records.last().map(|found: &Found| found.record.seq).ok_or(at)? + 1;
                return Ok(Batch { records, commit_seq, end: at.next_multiple_of(PAGE_BYTES) });
            }
            let header = self.header(at).ok_or(at)?;
            if header.kind == Kind::Commit {
                let commit = self.commit(at, &header).ok_or(at)?;
                let stop = at + COMMIT_RECORD_BYTES as u64;
                let start = stop.saturating_sub(u64::from(commit.batch_bytes));
                let fits = commit.count as usize == records.len()
                    && start == offset
                    && commit.records_check == records_check;
                let end = stop.next_multiple_of(PAGE_BYTES);
                // The commit may close a batch that starts further on.
                let reach = if start > offset { start } else { stop };
                return if fits { Ok(Batch { records, commit_seq: header.seq, end }) } else { Err(reach) };
            }
            records_check = crc32c::crc32c_append(records_check, &header.check.to_le_bytes());
            records.push(self.record(at, &header).ok_or(at)?);
            at += header.record_bytes();
        }
    }

    /// Saves what is whole between two offsets.
    pub(crate) fn salvage(&mut self, from: u64, to: u64) -> Salvage {
        let mut salvage = Salvage { bytes: to.saturating_sub(from), ..Salvage::default() };
        let mut at = from;
        while at < to {
            let header = self.header(at).filter(|header| at + header.record_bytes() <= to);
            let Some(header) = header else {
                salvage.is_gapped = true;
                at += 8;
                continue;
            };
            let end = at + header.record_bytes();
            match (self.record(at, &header), self.keyed(at, &header)) {
                (Some(found), _) if header.kind != Kind::Commit => salvage.whole.push(found),
                (None, Some(found)) if header.kind == Kind::Block => salvage.broken_blocks.push(found),
                (found, _) => salvage.is_gapped |= found.is_none(),
            }
            // what pads a batch is no gap
            at = if header.kind == Kind::Commit { end.next_multiple_of(PAGE_BYTES) } else { end };
        }
        salvage
    }

    /// Generation and sequence number of the first record on a page start whose generation is this file's `own`;
    /// the way out when a segment's header page is damaged. An error if there is none and not all could be read.
    pub(crate) fn any_record(
        file: F,
        salt: u32,
        end: u64,
        own: impl Fn(u64) -> bool + Copy,
    ) -> io::Result<Option<(u64, u64)>> {
        let mut reader = Reader::new(file, salt, 0, end);
        let mut at = PAGE_BYTES;
        while at < end {
            if let Some(header) = reader.header_of(at, own) {
                return Ok(Some((header.generation, header.seq)));
            }
            at += PAGE_BYTES;
        }
        if reader.met_error { Err(io::Error::other("a page can not be read")) } else { Ok(None) }
    }

    /// Whether the device failed to read something so far.
    pub(crate) fn met_error(&self) -> bool {
        self.met_error
    }

    /// Whether a batch of this segment was begun at `offset`.
    pub(crate) fn is_begun(&mut self, offset: u64) -> bool {
        self.header(offset).is_some()
    }

    /// The value of a record that was found.
    pub(crate) fn value(&mut self, found: &Found) -> Option<Bytes> {
        let key_bytes = found.record.key.bytes().len();
        let offset = found.offset + (RECORD_HEADER_BYTES + key_bytes) as u64;
        self.bytes(offset, found.value_length as usize).map(Bytes::copy_from_slice)
    }

    fn header(&mut self, at: u64) -> Option<RecordHeader> {
        let generation = self.generation;
        #[cfg(planted)]
        if crate::planted::is(crate::planted::Bug::OldGeneration) {
            return self.header_of(at, |_| true);
        }
        self.header_of(at, |found| found == generation)
    }

    /// What the file held in an earlier use stops at the generation, before any check is computed.
    fn header_of(&mut self, at: u64, own: impl Fn(u64) -> bool) -> Option<RecordHeader> {
        let salt = self.salt;
        let header = RecordHeader::decode(&array_at(self.bytes(at, RECORD_HEADER_BYTES)?, 0))?;
        if !own(header.generation) {
            return None;
        }
        let keyed = self.bytes(at, header.value_offset() as usize)?;
        header.check_fits(salt, keyed).then_some(header)
    }

    fn commit(&mut self, at: u64, header: &RecordHeader) -> Option<CommitValue> {
        let value = self.bytes(at + header.value_offset(), header.value_length as usize)?;
        (crc32c::crc32c(value) == header.value_check).then(|| CommitValue::decode(&array_at(value, 0)))
    }

    /// A record whose value passes its check: a block's is its name, except in segments of version 1.
    fn record(&mut self, at: u64, header: &RecordHeader) -> Option<Found> {
        let (start, key_length) = (at + RECORD_HEADER_BYTES as u64, usize::from(header.key_length));
        let (key, value) = self.bytes(start, key_length + header.value_length as usize)?.split_at(key_length);
        let passes = if is_checked_by_name(header.kind, header.generation) {
            blake3::hash(value).as_bytes() == key
        } else {
            crc32c::crc32c(value) == header.value_check
        };
        if !passes {
            return None;
        }
        let kept = if header.kind == Kind::Block { Bytes::new() } else { Bytes::copy_from_slice(value) };
        let mut found = self.keyed(at, header)?;
        found.record.value = kept;
        Some(found)
    }

    fn keyed(&mut self, at: u64, header: &RecordHeader) -> Option<Found> {
        let key = self.bytes(at + RECORD_HEADER_BYTES as u64, usize::from(header.key_length))?;
        let key = match header.kind {
            Kind::Block | Kind::Delete => Key::Hash(array_at(key, 0)),
            Kind::Bind | Kind::Unbind | Kind::Setting | Kind::SettingRemoved | Kind::Commit => {
                Key::Text(String::from_utf8(key.to_vec()).ok()?)
            }
        };
        let record = Record { kind: header.kind, key, value: Bytes::new(), seq: header.seq };
        Some(Found { record, offset: at, value_length: header.value_length })
    }

    /// `length` bytes from `offset`, if the log has them and the device reads them.
    fn bytes(&mut self, offset: u64, length: usize) -> Option<&[u8]> {
        let stop = offset.checked_add(length as u64).filter(|stop| *stop <= self.end)?;
        if offset < self.window_start || stop > self.window_start + self.window.len() as u64 {
            self.fill(offset, length)?;
        }
        let start = (offset - self.window_start) as usize;
        Some(&self.window[start..start + length])
    }

    fn fill(&mut self, offset: u64, length: usize) -> Option<()> {
        let bad = self.bad_sectors.range(offset / SECTOR_BYTES..).next();
        let readable_to = bad.map_or(self.end, |sector| sector * SECTOR_BYTES).min(self.end);
        let ahead = usize::try_from(readable_to.saturating_sub(offset)).unwrap_or(usize::MAX);
        if ahead < length {
            self.met_error = true;
            return None;
        }
        self.window_start = offset;
        self.window.resize(ahead.min(length.max(READ_BYTES)), 0);
        let read = match self.file.read_at(&mut self.window, offset) {
            Ok(()) => return Some(()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                self.window.truncate(length);
                let whole = self.file.read_at(&mut self.window, offset).is_ok();
                if whole { length } else { 0 }
            }
            // One bad sector behind what is asked for must not hide what is before it.
            Err(_) => self.read_up_to_a_bad_sector(offset),
        };
        self.window.truncate(read);
        let is_enough = read >= length;
        self.met_error |= !is_enough && !self.bad_sectors.is_empty();
        is_enough.then_some(())
    }

    /// Fills the window page by page, and the last of them sector by sector; how many bytes came.
    fn read_up_to_a_bad_sector(&mut self, offset: u64) -> usize {
        let (mut read, mut step) = (0, PAGE_BYTES);
        while read < self.window.len() {
            let at = offset + read as u64;
            let left = (at + 1).next_multiple_of(step) - at;
            let stop = self.window.len().min(read + left as usize);
            if self.file.read_at(&mut self.window[read..stop], at).is_ok() {
                read = stop;
            } else if step == PAGE_BYTES {
                step = SECTOR_BYTES;
            } else {
                self.bad_sectors.insert(at / SECTOR_BYTES);
                break;
            }
        }
        read
    }
}
