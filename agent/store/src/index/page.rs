//! One packed page of a sorted run.
//!
//! Duty: lay sorted entries out so that a page fills one 4 KiB leaf of redb's tree with hardly any waste, and find
//! a key in it. Neighbours have much in common: the beginnings of keys and the segments are kept as distances from the
//! least of the page, in as many bytes as the page needs.

use super::table::{PREFIX_BYTES, Place, Prefix, head};
use crate::format::{array_at, u32_at};
use std::cmp::Ordering;

const HEAD_BYTES: usize = 8;
/// Least head, least segment, then the bytes of a head's and of a segment's distance.
const HEADER_BYTES: usize = HEAD_BYTES + 4 + 1 + 1;
/// Of an entry, besides its distances: the rest of its key; length and offset.
const FIXED_BYTES: usize = PREFIX_BYTES - HEAD_BYTES + 6;
/// What redb leaves of a leaf for one value with a key of eight bytes: 4 bytes of header, 4 of its length.
const VALUE_BYTES: usize = 4096 - 4 - 4 - 8;
/// Entries of a full page, at least.
pub(crate) const PAGE_ENTRIES: usize = (VALUE_BYTES - HEADER_BYTES) / (HEAD_BYTES + FIXED_BYTES + 4);

const LENGTH_BITS: u32 = 21;
/// No block is that long: the entry says that the key is gone.
const GONE: u64 = (1 << LENGTH_BITS) - 1;

/// Bytes that numbers up to `most` need.
fn width(most: u64) -> usize {
    (u64::BITS - most.leading_zeros()).div_ceil(8) as usize
}

/// A page being filled.
#[derive(Debug, Default)]
pub(crate) struct Builder {
    entries: Vec<(Prefix, Option<Place>)>,
    /// The least and the greatest.
    segments: Option<(u32, u32)>,
}

impl Builder {
    /// Whether one more entry finds room.
    pub(crate) fn fits(&self, prefix: &Prefix, place: Option<&Place>) -> bool {
        let first = self.entries.first().map_or(0, |(first, _)| head(first));
        let segments = place.map_or(self.segments, |place| Some(self.segments_with(place.segment)));
        let entry = width(head(prefix).wrapping_sub(first)) + segment_width(segments) + FIXED_BYTES;
        self.entries.is_empty() || HEADER_BYTES + (self.entries.len() + 1) * entry <= VALUE_BYTES
    }

    /// Whether one more like the last finds no room.
    pub(crate) fn is_full(&self) -> bool {
        self.entries.last().is_some_and(|(last, place)| !self.fits(last, place.as_ref()))
    }

    pub(crate) fn push(&mut self, prefix: &Prefix, place: Option<&Place>) {
        if let Some(place) = place {
            self.segments = Some(self.segments_with(place.segment));
        }
        self.entries.push((*prefix, place.copied()));
    }

    fn segments_with(&self, segment: u32) -> (u32, u32) {
        self.segments.map_or((segment, segment), |(least, most)| (least.min(segment), most.max(segment)))
    }

    /// The head of the last entry.
    pub(crate) fn last(&self) -> Option<u64> {
        self.entries.last().map(|(last, _)| head(last))
    }

    /// The page; the builder is empty afterwards.
    pub(crate) fn finish(&mut self) -> Vec<u8> {
        let first = self.entries.first().map_or(0, |(first, _)| head(first));
        let head_bytes = width(self.last().unwrap_or(first) - first);
        let (least, segment_bytes) = (self.segments.unwrap_or_default().0, segment_width(self.segments));
        let mut bytes = Vec::with_capacity(VALUE_BYTES);
        bytes.extend(first.to_be_bytes());
        bytes.extend(least.to_le_bytes());
        // At most eight and four.
        bytes.extend([head_bytes as u8, segment_bytes as u8]);
        for (prefix, place) in &self.entries {
            bytes.extend(&(head(prefix) - first).to_be_bytes()[HEAD_BYTES - head_bytes..]);
            bytes.extend(&prefix[HEAD_BYTES..]);
            let (segment, packed) = place.map_or((least, GONE), |place| {
                let length = u64::from(place.length).min(GONE - 1);
                (place.segment, length | u64::from(place.offset / 8) << LENGTH_BITS)
            });
            bytes.extend(&(segment - least).to_le_bytes()[..segment_bytes]);
            bytes.extend(&packed.to_le_bytes()[..6]);
        }
        *self = Self::default();
        bytes
    }
}

fn segment_width(segments: Option<(u32, u32)>) -> usize {
    segments.map_or(0, |(least, most)| width(u64::from(most - least)))
}

/// A page as it was read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Page<'a> {
    first: u64,
    segment: u32,
    head_bytes: usize,
    segment_bytes: usize,
    entries: &'a [u8],
}

impl<'a> Page<'a> {
    /// None if it is none.
    pub(crate) fn of(bytes: &'a [u8]) -> Option<Self> {
        let (header, entries) = bytes.split_at_checked(HEADER_BYTES)?;
        let [.., head_bytes, segment_bytes] = header else { return None };
        let page = Self {
            first: u64::from_be_bytes(array_at(header, 0)),
            segment: u32_at(header, HEAD_BYTES),
            head_bytes: usize::from(*head_bytes),
            segment_bytes: usize::from(*segment_bytes),
            entries,
        };
        let whole = page.head_bytes <= HEAD_BYTES && page.segment_bytes <= 4;
        (whole && entries.len().is_multiple_of(page.entry_bytes())).then_some(page)
    }

    fn entry_bytes(&self) -> usize {
        self.head_bytes + self.segment_bytes + FIXED_BYTES
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len() / self.entry_bytes()
    }

    /// Where the key of an entry ends.
    fn key_bytes(&self) -> usize {
        self.head_bytes + PREFIX_BYTES - HEAD_BYTES
    }

    fn key(&self, number: usize) -> &'a [u8] {
        &self.entries[number * self.entry_bytes()..][..self.key_bytes()]
    }

    pub(crate) fn entry(&self, number: usize) -> (Prefix, Option<Place>) {
        let (distance_bytes, rest) = self.key(number).split_at(self.head_bytes);
        let mut distance = [0; HEAD_BYTES];
        distance[HEAD_BYTES - self.head_bytes..].copy_from_slice(distance_bytes);
        let mut prefix = Prefix::default();
        let first = self.first.wrapping_add(u64::from_be_bytes(distance));
        prefix[..HEAD_BYTES].copy_from_slice(&first.to_be_bytes());
        prefix[HEAD_BYTES..].copy_from_slice(rest);
        (prefix, self.place(number))
    }

    fn place(&self, number: usize) -> Option<Place> {
        let bytes = &self.entries[number * self.entry_bytes()..][self.key_bytes()..];
        let (mut distance, mut packed) = ([0; 4], [0; 8]);
        distance[..self.segment_bytes].copy_from_slice(&bytes[..self.segment_bytes]);
        packed[..6].copy_from_slice(&bytes[self.segment_bytes..][..6]);
        let (distance, packed) = (u32::from_le_bytes(distance), u64::from_le_bytes(packed));
        let (segment, length) = (self.segment.wrapping_add(distance), packed & GONE);
        // 27 bits times 8 fit.
        let offset = (packed >> LENGTH_BITS) as u32 * 8;
        (length != GONE).then_some(Place { segment, offset, length: length as u32 })
    }

    /// The first entry that is not less, and whether it is the same.
    fn search(&self, prefix: &Prefix) -> (usize, bool) {
        let Some(distance) = head(prefix).checked_sub(self.first) else { return (0, false) };
        if width(distance) > self.head_bytes {
            return (self.len(), false);
        }
        let mut key = *prefix;
        key[..HEAD_BYTES].copy_from_slice(&distance.to_be_bytes());
        let key = &key[HEAD_BYTES - self.head_bytes..];
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = (low + high) / 2;
            match self.key(middle).cmp(key) {
                Ordering::Less => low = middle + 1,
                Ordering::Equal => return (middle, true),
                Ordering::Greater => high = middle,
            }
        }
        (low, false)
    }

    /// The first entry that is not less.
    pub(crate) fn lower_bound(&self, prefix: &Prefix) -> usize {
        self.search(prefix).0
    }

    /// What the page says of a key: nothing, that it is gone, or where it is.
    pub(crate) fn find(&self, prefix: &Prefix) -> Option<Option<Place>> {
        let (number, there) = self.search(prefix);
        there.then(|| self.place(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back_at_their_extremes() {
        let places = [
            Some(Place { segment: u32::MAX, offset: (1 << 30) - 8, length: 1 << 20 }),
            None,
            Some(Place { segment: 0, offset: 4096, length: 0 }),
        ];
        let mut builder = Builder::default();
        for (number, place) in places.iter().enumerate() {
            builder.push(&[number as u8 * 2; PREFIX_BYTES], place.as_ref());
        }
        let bytes = builder.finish();
        let page = Page::of(&bytes).expect("it was just made");
        for (number, place) in places.iter().enumerate() {
            assert_eq!(page.find(&[number as u8 * 2; PREFIX_BYTES]), Some(*place));
            assert_eq!(page.find(&[number as u8 * 2 + 1; PREFIX_BYTES]), None);
        }
    }

    #[test]
    fn a_page_takes_as_many_as_its_distances_allow_and_fills_a_leaf() {
        // How far heads and segments are apart, and the bytes of an entry then.
        for (step, segments, entry) in
            [(0, 1, FIXED_BYTES), (1 << 40, 1, FIXED_BYTES + 6), (1 << 56, 300, HEAD_BYTES + FIXED_BYTES + 2)]
        {
            let (mut builder, mut count) = (Builder::default(), 0_u64);
            let nth = |number: u64| {
                let mut prefix = [number as u8; PREFIX_BYTES];
                prefix[..8].copy_from_slice(&(number * step + 5).to_be_bytes());
                let segment = 70_000 + number as u32 * 3 % segments;
                (prefix, Some(Place { segment, offset: 8, length: 9 }))
            };
            while builder.fits(&nth(count).0, nth(count).1.as_ref()) {
                assert!(!builder.is_full());
                builder.push(&nth(count).0, nth(count).1.as_ref());
                count += 1;
            }
            let bytes = builder.finish();
            assert!(bytes.len() <= VALUE_BYTES && bytes.len() + entry > VALUE_BYTES, "{}", bytes.len());
            let page = Page::of(&bytes).expect("it was just made");
            assert_eq!(page.len() as u64, count);
            assert!((0..count).all(|number| page.entry(number as usize) == nth(number)));
        }
    }
}
