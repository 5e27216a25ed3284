//! One batch on its way to the log.
//!
//! Duty: lay records and the closing commit record out as one gathered write that starts on a page and is
//! padded to a page, without copying a payload longer than [`INLINE_BYTES`]. The caller has checked the lengths. Pure: no I/O.

use crate::format::{COMMIT_VALUE_BYTES, CommitValue, Kind, RecordHeader, is_checked_by_name, record_bytes};
use crate::limits::PAGE_BYTES;
use bytes::Bytes;
use std::io::IoSlice;
use std::ops::Range;

/// Values up to this length are copied next to their header: fewer buffers for the kernel to walk.
const INLINE_BYTES: usize = 512;

/// A record to be written: its sequence number is fixed, its place follows from the batch.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) kind: Kind,
    pub(crate) key: Key,
    pub(crate) value: Bytes,
    pub(crate) seq: u64,
}

/// A record's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    Hash([u8; 32]),
    Text(String),
}

impl Key {
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::Hash(hash) => hash,
            Self::Text(text) => text.as_bytes(),
        }
    }
}

/// A laid-out batch.
#[derive(Debug)]
pub(crate) struct Encoded<'a> {
    headers: Vec<u8>,
    pieces: Vec<Piece<'a>>,
    /// Offset of each record from the batch's start, in the order given.
    pub(crate) offsets: Vec<u64>,
    /// Length with padding; a multiple of a page.
    pub(crate) length: u64,
}

#[derive(Debug)]
enum Piece<'a> {
    Header(Range<usize>),
    Payload(&'a [u8]),
}

/// Length of the batch on disk, padding included.
pub(crate) fn padded_length<'a>(records: impl Iterator<Item = &'a Record>) -> u64 {
    let bytes: u64 = records.map(|record| record_bytes(record.key.bytes().len(), record.value.len())).sum();
    (bytes + record_bytes(0, COMMIT_VALUE_BYTES)).next_multiple_of(PAGE_BYTES)
}

/// Lays out a batch; `commit_seq` is the sequence number of its commit record.
pub(crate) fn encode(records: &[Record], commit_seq: u64, generation: u64, salt: u32) -> Encoded<'_> {
    let copied: u64 = records.iter().map(copied_bytes).sum();
    let mut layout = Layout::with_capacity(copied + 2 * PAGE_BYTES, records.len());
    let mut offsets = Vec::with_capacity(records.len());
    let mut records_check = 0;
    for record in records {
        offsets.push(layout.length);
        let check = layout.record(record, generation, salt);
        records_check = crc32c::crc32c_append(records_check, &check.to_le_bytes());
    }
    let commit_bytes = record_bytes(0, COMMIT_VALUE_BYTES);
    let commit = CommitValue {
        first_seq: records.first().map_or(commit_seq, |record| record.seq),
        batch_bytes: u32::try_from(layout.length + commit_bytes).unwrap_or(u32::MAX),
        count: u32::try_from(records.len()).unwrap_or(u32::MAX),
        records_check,
    };
    let value = Bytes::copy_from_slice(&commit.encode());
    let closing = Record { kind: Kind::Commit, key: Key::Text(String::new()), value, seq: commit_seq };
    layout.header(&closing, generation, salt);
    layout.headers.extend_from_slice(&closing.value);
    layout.pad_to(PAGE_BYTES);
    layout.close_header();
    Encoded { headers: layout.headers, pieces: layout.pieces, offsets, length: layout.length }
}

impl Encoded<'_> {
    /// The gathered write.
    pub(crate) fn slices(&self) -> Vec<IoSlice<'_>> {
        self.pieces
            .iter()
            .map(|piece| match piece {
                Piece::Header(range) => IoSlice::new(&self.headers[range.clone()]),
                Piece::Payload(bytes) => IoSlice::new(bytes),
            })
            .collect()
    }
}

/// What a record adds to the bytes that are copied.
fn copied_bytes(record: &Record) -> u64 {
    let value = if record.value.len() <= INLINE_BYTES { record.value.len() } else { 0 };
    record_bytes(record.key.bytes().len(), value) + 8
}

struct Layout<'a> {
    headers: Vec<u8>,
    header_start: usize,
    pieces: Vec<Piece<'a>>,
    length: u64,
}

impl<'a> Layout<'a> {
    fn with_capacity(copied_bytes: u64, records: usize) -> Self {
        let headers = Vec::with_capacity(usize::try_from(copied_bytes).unwrap_or(0));
        Self { headers, header_start: 0, pieces: Vec::with_capacity(2 * records + 1), length: 0 }
    }

    fn record(&mut self, record: &'a Record, generation: u64, salt: u32) -> u32 {
        let check = self.header(record, generation, salt);
        if record.value.len() <= INLINE_BYTES {
            self.headers.extend_from_slice(&record.value);
        } else {
            self.close_header();
            self.pieces.push(Piece::Payload(&record.value));
        }
        self.pad_to(8);
        check
    }

    /// A header with its key, and room counted for the value.
    fn header(&mut self, record: &Record, generation: u64, salt: u32) -> u32 {
        let key = record.key.bytes();
        let is_named = is_checked_by_name(record.kind, generation);
        let header = RecordHeader {
            check: 0,
            value_check: if is_named { 0 } else { crc32c::crc32c(&record.value) },
            kind: record.kind,
            key_length: u16::try_from(key.len()).unwrap_or(u16::MAX),
            value_length: u32::try_from(record.value.len()).unwrap_or(u32::MAX),
            seq: record.seq,
            generation,
        };
        let check = header.encode(salt, key, &mut self.headers);
        self.length += header.value_offset() + record.value.len() as u64;
        check
    }

    fn pad_to(&mut self, alignment: u64) {
        let padding = self.length.next_multiple_of(alignment) - self.length;
        self.headers.resize(self.headers.len() + padding as usize, 0);
        self.length += padding;
    }

    fn close_header(&mut self) {
        if self.headers.len() > self.header_start {
            self.pieces.push(Piece::Header(self.header_start..self.headers.len()));
            self.header_start = self.headers.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_fills_whole_pages_and_its_records_lie_where_it_says() {
        let records: Vec<Record> = [0_usize, 1, 511, 512, 513, 5000]
            .into_iter()
            .enumerate()
            .map(|(number, length)| Record {
                kind: Kind::Bind,
                key: Key::Text(format!("name-{number}")),
                value: Bytes::from(vec![number as u8; length]),
                seq: 10 + number as u64,
            })
            .collect();
        let encoded = encode(&records, 99, 3, 1);
        let bytes: Vec<u8> = encoded.slices().iter().flat_map(|slice| slice.to_vec()).collect();
        assert_eq!(bytes.len() as u64, encoded.length);
        assert_eq!(encoded.length, padded_length(records.iter()));
        assert_eq!(encoded.length % PAGE_BYTES, 0);
        for (record, offset) in records.iter().zip(&encoded.offsets) {
            let at = *offset as usize;
            let header = RecordHeader::decode(&crate::format::array_at(&bytes, at)).unwrap();
            assert_eq!((header.seq, header.generation), (record.seq, 3));
            let value = at + header.value_offset() as usize;
            assert_eq!(&bytes[value..value + record.value.len()], &record.value[..]);
        }
    }
}
