//! The memory table: what the index will learn at the next checkpoint.
//!
//! Duty: hold the newest word about each key since the last checkpoint. Blocks wait unsorted ([`Blocks`]), since each
//! commit puts some in and only a checkpoint needs their order. Its owner checkpoints before it outgrows its bound; the
//! table itself refuses nothing.

use super::blocks::Blocks;
use crate::Hash;
use bytes::Bytes;
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::ops::Bound;

/// Bytes of a hash by which the index knows a block: 192 bits, of which nobody finds two alike.
pub(crate) const PREFIX_BYTES: usize = 24;

/// The beginning of a block's hash.
pub(crate) type Prefix = [u8; PREFIX_BYTES];

pub(crate) fn prefix_of(hash: &Hash) -> Prefix {
    crate::format::array_at(hash, 0)
}

/// The beginning of a prefix as a number, in the same order: what rows are sorted and found by.
pub(crate) fn head(prefix: &Prefix) -> u64 {
    u64::from_be_bytes(crate::format::array_at(prefix, 0))
}

/// Where a record lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) segment: u32,
    /// Of the record's header; a multiple of eight.
    pub(crate) offset: u32,
    /// Of its value.
    pub(crate) length: u32,
}

/// A name or setting with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) seq: u64,
    pub(crate) place: Place,
    pub(crate) value: Bytes,
}

type Texts = BTreeMap<String, Option<Entry>>;

/// Something for each of some blocks.
pub(crate) type ByPrefix<T> = HashMap<Prefix, T, ByHead>;

/// Finds a prefix by its first bytes, which are as mixed as they have to be. The secret keeps those who choose
/// contents from choosing buckets.
#[derive(Clone, Debug)]
pub(crate) struct ByHead {
    secret: u64,
}

impl Default for ByHead {
    fn default() -> Self {
        Self { secret: RandomState::new().hash_one(0) }
    }
}

impl BuildHasher for ByHead {
    type Hasher = Head;

    fn build_hasher(&self) -> Head {
        Head(self.secret)
    }
}

#[derive(Debug)]
pub(crate) struct Head(u64);

impl Hasher for Head {
    fn write(&mut self, prefix: &[u8]) {
        let head = prefix.first_chunk().map_or(0, |head| u64::from_le_bytes(*head));
        let product = u128::from(self.0 ^ head) * 0x9e37_79b9_7f4a_7c15;
        self.0 = (product >> 64) as u64 ^ product as u64;
    }

    /// The length, which is the same for all.
    fn write_usize(&mut self, _length: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

/// None as a value says that the key is gone.
#[derive(Debug, Default)]
pub(crate) struct Table {
    blocks: Blocks,
    names: Texts,
    changes: BTreeMap<u64, String>,
    settings: Texts,
    text_bytes: usize,
}

impl Table {
    pub(crate) fn entries(&self) -> usize {
        self.blocks.len() + self.texts()
    }

    /// Names and settings.
    pub(crate) fn texts(&self) -> usize {
        self.names.len() + self.settings.len()
    }

    /// Bytes of names, settings and their values.
    pub(crate) fn text_bytes(&self) -> usize {
        self.text_bytes
    }

    pub(crate) fn clear(&mut self) {
        self.blocks.clear();
        self.names.clear();
        self.changes.clear();
        self.settings.clear();
        self.text_bytes = 0;
    }

    pub(crate) fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    /// What the table says of a block, if it says anything.
    pub(crate) fn block(&self, prefix: &Prefix) -> Option<Option<Place>> {
        self.blocks.get(prefix)
    }

    pub(crate) fn names(&self) -> &Texts {
        &self.names
    }

    pub(crate) fn settings(&self) -> &Texts {
        &self.settings
    }

    /// Takes in a block of which the table says nothing; `false`, and nothing is done, if it does.
    #[inline]
    pub(crate) fn put_new_block(&mut self, hash: &Hash, place: Place) -> bool {
        self.blocks.insert_new(&prefix_of(hash), Some(place))
    }

    /// What the table said before, if it said anything.
    pub(crate) fn put_block(&mut self, prefix: &Prefix, place: Option<Place>) -> Option<Option<Place>> {
        self.blocks.insert(prefix, place)
    }

    pub(crate) fn put_name(&mut self, name: String, entry: Option<Entry>) {
        if let Some(Some(old)) = self.names.get(&name) {
            self.changes.remove(&old.seq);
        }
        if let Some(entry) = &entry {
            self.changes.insert(entry.seq, name.clone());
        }
        put_text(&mut self.names, &mut self.text_bytes, name, entry);
    }

    pub(crate) fn put_setting(&mut self, key: String, entry: Option<Entry>) {
        put_text(&mut self.settings, &mut self.text_bytes, key, entry);
    }

    #[cfg(planted)]
    pub(crate) fn forget_newest_segment(&mut self) {
        if crate::planted::is(crate::planted::Bug::ForgottenSegment) {
            self.blocks.forget_newest_segment();
        }
    }

    /// Names bound after `seq` since the last checkpoint, in its order.
    pub(crate) fn changes_after(&self, seq: u64) -> impl Iterator<Item = (&u64, &String)> {
        self.changes.range((Bound::Excluded(seq), Bound::Unbounded))
    }
}

/// Entries of a text map that start with `prefix` and lie behind `after`.
pub(crate) fn texts_after<'a>(
    texts: &'a Texts,
    prefix: &'a str,
    after: Option<&'a str>,
) -> impl Iterator<Item = (&'a String, &'a Entry)> {
    let start = after.filter(|after| *after > prefix).unwrap_or(prefix);
    texts
        .range::<str, _>((Bound::Included(start), Bound::Unbounded))
        .take_while(move |(key, _)| key.starts_with(prefix))
        .filter(move |(key, _)| after.is_none_or(|after| key.as_str() > after))
        .filter_map(|(key, entry)| Some((key, entry.as_ref()?)))
}

fn put_text(texts: &mut Texts, bytes: &mut usize, key: String, entry: Option<Entry>) {
    *bytes += key.len() + entry.as_ref().map_or(0, |entry| entry.value.len());
    texts.insert(key, entry);
}
