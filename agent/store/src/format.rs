//! The bytes of `docs/format.md`: superblock, segment header, record header, commit value.
//!
//! Duty: turn those structures into bytes and back. Decoding takes fixed-size input, allocates nothing and
//! answers `None` for anything whose magic or check does not fit; it never panics on foreign bytes.

use crate::limits::{KEY_BYTES_MAX, PAGE_BYTES, VALUE_BYTES_MAX};

/// The format this code writes; it reads every version from 1 on.
pub(crate) const FORMAT_VERSION: u32 = 2;
/// Generations below belong to segments of version 1, whose files are never used again.
pub(crate) const RECYCLED_GENERATION_MIN: u64 = 1 << 32;
pub(crate) const RECORD_HEADER_BYTES: usize = 32;
pub(crate) const COMMIT_VALUE_BYTES: usize = 24;
pub(crate) const COMMIT_RECORD_BYTES: usize = RECORD_HEADER_BYTES + COMMIT_VALUE_BYTES;
pub(crate) const SEGMENT_HEADER_BYTES: usize = 80;
pub(crate) const SUPERBLOCK_BYTES: usize = 64;

pub(crate) const LOCK_NAME: &str = "lock";
pub(crate) const SUPERBLOCK_NAME: &str = "superblock";
pub(crate) const INDEX_NAME: &str = "index.redb";
/// Files that earlier versions kept and that nothing reads any more.
pub(crate) const OBSOLETE_NAMES: [&str; 2] = ["filter", "filter.new"];
/// Made and removed where the directory has to change; a power cut may leave it.
pub(crate) const SCRATCH_NAME: &str = "scratch";
pub(crate) const SET_ASIDE_PREFIX: &str = "index.damaged-";

const SUPERBLOCK_MAGIC: [u8; 8] = *b"LARDERSB";
const SEGMENT_MAGIC: [u8; 8] = *b"LARDERSG";

pub(crate) type StoreId = [u8; 16];

pub(crate) fn segment_name(id: u32) -> String {
    format!("segment-{id:08x}")
}

/// The generation of the segment with this number: a file's name alone tells which records are its own.
pub(crate) fn generation(id: u32) -> u64 {
    RECYCLED_GENERATION_MIN + u64::from(id)
}

pub(crate) fn segment_id(name: &str) -> Option<u32> {
    number(name, "segment-")
}

/// A file that was a segment; its bytes mean nothing.
pub(crate) fn spare_name(id: u32) -> String {
    format!("spare-{id:08x}")
}

/// The number of the segment that a spare was last.
pub(crate) fn spare_id(name: &str) -> Option<u32> {
    number(name, "spare-")
}

/// A file that was a segment of a store whose id nothing tells any more.
pub(crate) fn unreadable_name(number: u32) -> String {
    format!("unreadable-{number:08x}")
}

pub(crate) fn unreadable_number(name: &str) -> Option<u32> {
    number(name, "unreadable-")
}

fn number(name: &str, prefix: &str) -> Option<u32> {
    let digits = name.strip_prefix(prefix)?;
    let id = (digits.len() == 8).then(|| u32::from_str_radix(digits, 16).ok()).flatten();
    // the last number has no next one; no store gets there, so a file of that name is not ours
    id.filter(|id| *id < u32::MAX)
}

/// What a page that should hold a superblock or segment header turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decoded<T> {
    Whole(T),
    Newer(u32),
    Damaged,
}

pub(crate) fn encode_superblock(store: &StoreId) -> Vec<u8> {
    let mut page = vec![0; PAGE_BYTES as usize];
    page[..8].copy_from_slice(&SUPERBLOCK_MAGIC);
    page[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    page[16..32].copy_from_slice(store);
    let check = crc32c::crc32c(&page[..60]);
    page[60..64].copy_from_slice(&check.to_le_bytes());
    page
}

pub(crate) fn decode_superblock(bytes: &[u8; SUPERBLOCK_BYTES]) -> Decoded<StoreId> {
    if bytes[..8] != SUPERBLOCK_MAGIC || u32_at(bytes, 60) != crc32c::crc32c(&bytes[..60]) {
        return Decoded::Damaged;
    }
    match u32_at(bytes, 8) {
        1..=FORMAT_VERSION => Decoded::Whole(array_at(bytes, 16)),
        newer => Decoded::Newer(newer),
    }
}

/// The header page of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) id: u32,
    pub(crate) store: StoreId,
    pub(crate) generation: u64,
    pub(crate) first_seq: u64,
    /// The segment that was open before, and where its last acknowledged batch ended; zeros if none was.
    pub(crate) previous_generation: u64,
    pub(crate) previous_end: u64,
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut page = vec![0; PAGE_BYTES as usize];
        page[..8].copy_from_slice(&SEGMENT_MAGIC);
        page[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        page[12..16].copy_from_slice(&self.id.to_le_bytes());
        page[16..32].copy_from_slice(&self.store);
        page[32..40].copy_from_slice(&self.generation.to_le_bytes());
        page[40..48].copy_from_slice(&self.first_seq.to_le_bytes());
        page[48..56].copy_from_slice(&self.previous_generation.to_le_bytes());
        page[56..64].copy_from_slice(&self.previous_end.to_le_bytes());
        let check = crc32c::crc32c(&page[..76]);
        page[76..80].copy_from_slice(&check.to_le_bytes());
        page
    }

    pub(crate) fn decode(bytes: &[u8; SEGMENT_HEADER_BYTES]) -> Decoded<Self> {
        if bytes[..8] != SEGMENT_MAGIC || u32_at(bytes, 76) != crc32c::crc32c(&bytes[..76]) {
            return Decoded::Damaged;
        }
        match u32_at(bytes, 8) {
            1..=FORMAT_VERSION => Decoded::Whole(Self {
                id: u32_at(bytes, 12),
                store: array_at(bytes, 16),
                generation: u64_at(bytes, 32),
                first_seq: u64_at(bytes, 40),
                previous_generation: u64_at(bytes, 48),
                previous_end: u64_at(bytes, 56),
            }),
            newer => Decoded::Newer(newer),
        }
    }
}

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Block = 1,
    Bind = 2,
    Unbind = 3,
    Delete = 4,
    Setting = 5,
    SettingRemoved = 6,
    Commit = 7,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        [
            Self::Block,
            Self::Bind,
            Self::Unbind,
            Self::Delete,
            Self::Setting,
            Self::SettingRemoved,
            Self::Commit,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == byte)
    }

    /// The lengths this kind may have; checked before anything is read or allocated.
    fn admits(self, key_length: usize, value_length: usize) -> bool {
        match self {
            Self::Block => key_length == 32 && value_length <= VALUE_BYTES_MAX,
            Self::Delete => key_length == 32 && value_length == 0,
            Self::Bind | Self::Setting => key_length <= KEY_BYTES_MAX && value_length <= VALUE_BYTES_MAX,
            Self::Unbind | Self::SettingRemoved => key_length <= KEY_BYTES_MAX && value_length == 0,
            Self::Commit => key_length == 0 && value_length == COMMIT_VALUE_BYTES,
        }
    }
}

/// A record's header; its check covers these fields and the key, and starts from the store's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecordHeader {
    pub(crate) check: u32,
    pub(crate) value_check: u32,
    pub(crate) kind: Kind,
    pub(crate) key_length: u16,
    pub(crate) value_length: u32,
    pub(crate) seq: u64,
    pub(crate) generation: u64,
}

impl RecordHeader {
    /// Bytes of header, key, value and padding.
    pub(crate) fn record_bytes(&self) -> u64 {
        record_bytes(usize::from(self.key_length), self.value_length as usize)
    }

    pub(crate) fn value_offset(&self) -> u64 {
        (RECORD_HEADER_BYTES + usize::from(self.key_length)) as u64
    }

    /// Appends header and key to `out`, fills in the check and returns it.
    pub(crate) fn encode(mut self, salt: u32, key: &[u8], out: &mut Vec<u8>) -> u32 {
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.value_check.to_le_bytes());
        out.extend_from_slice(&[self.kind as u8, 0]);
        out.extend_from_slice(&self.key_length.to_le_bytes());
        out.extend_from_slice(&self.value_length.to_le_bytes());
        out.extend_from_slice(&self.seq.to_le_bytes());
        out.extend_from_slice(&self.generation.to_le_bytes());
        out.extend_from_slice(key);
        self.check = crc32c::crc32c_append(salt, &out[start + 4..]);
        out[start..start + 4].copy_from_slice(&self.check.to_le_bytes());
        self.check
    }

    /// The fields, if kind and lengths are possible; the check still has to be compared with the key.
    pub(crate) fn decode(bytes: &[u8; RECORD_HEADER_BYTES]) -> Option<Self> {
        let header = Self {
            check: u32_at(bytes, 0),
            value_check: u32_at(bytes, 4),
            kind: Kind::from_byte(bytes[8])?,
            key_length: u16::from_le_bytes(array_at(bytes, 10)),
            value_length: u32_at(bytes, 12),
            seq: u64_at(bytes, 16),
            generation: u64_at(bytes, 24),
        };
        let lengths_fit = header.kind.admits(usize::from(header.key_length), header.value_length as usize);
        (lengths_fit && bytes[9] == 0).then_some(header)
    }

    /// Whether `header_and_key` carries the check it should.
    pub(crate) fn check_fits(&self, salt: u32, header_and_key: &[u8]) -> bool {
        header_and_key.len() > 4 && crc32c::crc32c_append(salt, &header_and_key[4..]) == self.check
    }
}

/// The value of a commit record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CommitValue {
    pub(crate) first_seq: u64,
    /// From the batch's first byte to the end of the commit record.
    pub(crate) batch_bytes: u32,
    pub(crate) count: u32,
    /// CRC32C over the checks of the batch's records, in order.
    pub(crate) records_check: u32,
}

impl CommitValue {
    pub(crate) fn encode(&self) -> [u8; COMMIT_VALUE_BYTES] {
        let mut bytes = [0; COMMIT_VALUE_BYTES];
        bytes[..8].copy_from_slice(&self.first_seq.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.batch_bytes.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.count.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.records_check.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; COMMIT_VALUE_BYTES]) -> Self {
        Self {
            first_seq: u64_at(bytes, 0),
            batch_bytes: u32_at(bytes, 8),
            count: u32_at(bytes, 12),
            records_check: u32_at(bytes, 16),
        }
    }
}

/// Whether a record's value is checked by its key, a BLAKE3 hash, instead of a CRC beside it.
pub(crate) fn is_checked_by_name(kind: Kind, generation: u64) -> bool {
    kind == Kind::Block && generation >= RECYCLED_GENERATION_MIN
}

/// Where every record check of a store starts: bytes of another store, or bytes chosen by somebody who does
/// not know the store's id, are not taken for records.
pub(crate) fn salt(store: &StoreId) -> u32 {
    crc32c::crc32c(store)
}

pub(crate) fn record_bytes(key_length: usize, value_length: usize) -> u64 {
    ((RECORD_HEADER_BYTES + key_length + value_length) as u64).next_multiple_of(8)
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

pub(crate) fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_superblock_of_a_newer_format_is_named_and_a_damaged_one_is_not_believed() {
        let mut page = encode_superblock(&[7; 16]);
        assert_eq!(decode_superblock(&array_at(&page, 0)), Decoded::Whole([7; 16]));
        page[8] = 3;
        assert_eq!(decode_superblock(&array_at(&page, 0)), Decoded::Damaged);
        let check = crc32c::crc32c(&page[..60]);
        page[60..64].copy_from_slice(&check.to_le_bytes());
        assert_eq!(decode_superblock(&array_at(&page, 0)), Decoded::Newer(3));
    }

    #[test]
    fn a_record_of_another_store_or_with_any_flipped_bit_is_refused() {
        let header = RecordHeader {
            check: 0,
            value_check: 1,
            kind: Kind::Bind,
            key_length: 3,
            value_length: 5,
            seq: 9,
            generation: 4,
        };
        let mut bytes = Vec::new();
        header.encode(salt(&[1; 16]), b"key", &mut bytes);
        let decoded = RecordHeader::decode(&array_at(&bytes, 0)).unwrap();
        assert!(decoded.check_fits(salt(&[1; 16]), &bytes));
        assert!(!decoded.check_fits(salt(&[2; 16]), &bytes));
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let accepted = RecordHeader::decode(&array_at(&flipped, 0))
                .is_some_and(|header| header.check_fits(salt(&[1; 16]), &flipped));
            assert!(!accepted, "bit {bit}");
        }
    }

    #[test]
    fn segment_names_are_read_back_and_others_ignored() {
        assert_eq!(segment_id(&segment_name(0x1f)), Some(0x1f));
        assert_eq!((spare_id(&spare_name(0x1f)), spare_id(&segment_name(0x1f))), (Some(0x1f), None));
        assert_eq!(segment_id("segment-1"), None);
        assert_eq!(segment_id("index.redb"), None);
    }
}
