//! One packed page of a sorted run.
//!
//! Duty: lay sorted entries of fixed size out so that a page fills one 4 KiB leaf of redb's tree with hardly
//! any waste, and find a key in it. A check covers it all: redb looks at its own only when it repairs.

use super::table::{PREFIX_BYTES, Place, Prefix};
use crate::format::{array_at, u32_at};
use std::cmp::Ordering;

/// Key, segment, then length and offset in six bytes.
const ENTRY_BYTES: usize = PREFIX_BYTES + 10;
const CHECK_BYTES: usize = 4;
/// What redb leaves of a leaf for one value with a key of [`KEY_BYTES`]: 4 bytes of header, 4 of its length.
const VALUE_BYTES: usize = 4096 - 4 - 4 - KEY_BYTES;
/// Run and first key.
pub(crate) const KEY_BYTES: usize = 4 + 8;
/// Entries of a full page.
pub(crate) const PAGE_ENTRIES: usize = (VALUE_BYTES - CHECK_BYTES) / ENTRY_BYTES;

const LENGTH_BITS: u32 = 21;
/// No block is that long: the entry says that the key is gone.
const GONE: u64 = (1 << LENGTH_BITS) - 1;

/// The key of the row that starts with `first`, the beginning of an entry's key.
pub(crate) fn row_key(run: u32, first: u64) -> [u8; KEY_BYTES] {
    let mut key = [0; KEY_BYTES];
    key[..4].copy_from_slice(&run.to_be_bytes());
    key[4..].copy_from_slice(&first.to_be_bytes());
    key
}

/// What rows are sorted and found by.
pub(crate) fn head(prefix: &Prefix) -> u64 {
    u64::from_be_bytes(array_at(prefix, 0))
}

/// A page being filled.
#[derive(Debug)]
pub(crate) struct Builder {
    bytes: Vec<u8>,
}

impl Builder {
    pub(crate) fn new() -> Self {
        Self { bytes: vec![0; CHECK_BYTES] }
    }

    pub(crate) fn entries(&self) -> usize {
        (self.bytes.len() - CHECK_BYTES) / ENTRY_BYTES
    }

    pub(crate) fn push(&mut self, prefix: &Prefix, place: Option<&Place>) {
        self.bytes.extend(prefix);
        let (segment, packed) = match place {
            Some(place) => (
                place.segment,
                u64::from(place.length).min(GONE - 1) | u64::from(place.offset / 8) << LENGTH_BITS,
            ),
            None => (0, GONE),
        };
        self.bytes.extend(segment.to_le_bytes());
        self.bytes.extend(&packed.to_le_bytes()[..6]);
    }

    /// Heads of the first and the last entry.
    pub(crate) fn ends(&self) -> Option<(u64, u64)> {
        let last = self.entries().checked_sub(1)?;
        let entries = &self.bytes[CHECK_BYTES..];
        Some((head(&array_at(entries, 0)), head(&array_at(entries, last * ENTRY_BYTES))))
    }

    /// The page; the builder is empty afterwards.
    pub(crate) fn finish(&mut self) -> Vec<u8> {
        let check = crc32c::crc32c(&self.bytes[CHECK_BYTES..]);
        self.bytes[..CHECK_BYTES].copy_from_slice(&check.to_le_bytes());
        std::mem::replace(&mut self.bytes, vec![0; CHECK_BYTES])
    }
}

/// A page as it was read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Page<'a> {
    entries: &'a [u8],
}

impl<'a> Page<'a> {
    /// None if it is not what was written.
    pub(crate) fn checked(bytes: &'a [u8]) -> Option<Self> {
        let entries = bytes.get(CHECK_BYTES..)?;
        let whole = entries.len().is_multiple_of(ENTRY_BYTES) && u32_at(bytes, 0) == crc32c::crc32c(entries);
        whole.then_some(Self { entries })
    }

    /// Of bytes that were checked before.
    pub(crate) fn trusted(bytes: &'a [u8]) -> Self {
        Self { entries: &bytes[CHECK_BYTES..] }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len() / ENTRY_BYTES
    }

    fn prefix(&self, number: usize) -> &'a [u8] {
        &self.entries[number * ENTRY_BYTES..][..PREFIX_BYTES]
    }

    pub(crate) fn entry(&self, number: usize) -> (Prefix, Option<Place>) {
        (array_at(self.prefix(number), 0), self.place(number))
    }

    fn place(&self, number: usize) -> Option<Place> {
        let at = number * ENTRY_BYTES + PREFIX_BYTES;
        let mut packed = [0; 8];
        packed[..6].copy_from_slice(&self.entries[at + 4..at + 10]);
        let packed = u64::from_le_bytes(packed);
        let length = packed & GONE;
        // 27 bits times 8 fit.
        let offset = (packed >> LENGTH_BITS) as u32 * 8;
        (length != GONE).then(|| Place { segment: u32_at(self.entries, at), offset, length: length as u32 })
    }

    /// The first entry that is not less.
    pub(crate) fn lower_bound(&self, prefix: &Prefix) -> usize {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = (low + high) / 2;
            match self.prefix(middle).cmp(prefix.as_slice()) {
                Ordering::Less => low = middle + 1,
                Ordering::Equal | Ordering::Greater => high = middle,
            }
        }
        low
    }

    /// What the page says of a key: nothing, that it is gone, or where it is.
    pub(crate) fn find(&self, prefix: &Prefix) -> Option<Option<Place>> {
        let number = self.lower_bound(prefix);
        (number < self.len() && self.prefix(number) == prefix).then(|| self.place(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back_at_their_extremes_and_damage_is_seen() {
        let places = [
            Some(Place { segment: u32::MAX, offset: (1 << 30) - 8, length: 1 << 20 }),
            None,
            Some(Place { segment: 0, offset: 4096, length: 0 }),
        ];
        let mut builder = Builder::new();
        for (number, place) in places.iter().enumerate() {
            builder.push(&[number as u8 * 2; PREFIX_BYTES], place.as_ref());
        }
        let mut bytes = builder.finish();
        let page = Page::checked(&bytes).expect("it was just made");
        for (number, place) in places.iter().enumerate() {
            assert_eq!(page.find(&[number as u8 * 2; PREFIX_BYTES]), Some(*place));
            assert_eq!(page.find(&[number as u8 * 2 + 1; PREFIX_BYTES]), None);
        }
        for at in 0..bytes.len() {
            bytes[at] ^= 1;
            assert!(Page::checked(&bytes).is_none(), "byte {at}");
            bytes[at] ^= 1;
        }
    }

    #[test]
    fn a_full_page_and_its_key_fill_a_leaf() {
        let row = 4 + 4 + KEY_BYTES + CHECK_BYTES + PAGE_ENTRIES * ENTRY_BYTES;
        assert!(row <= 4096 && row + ENTRY_BYTES > 4096, "{row}");
    }
}
