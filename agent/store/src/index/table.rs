//! The memory table: what the index will learn at the next checkpoint.
//!
//! Duty: hold the newest word about each key since the last checkpoint, sorted. Its owner checkpoints before
//! it outgrows its bound; the table itself refuses nothing.

use crate::filter::Filter;
use crate::{Hash, limits};
use bytes::Bytes;
use larder_kernels::bloom::Probe;
use std::collections::BTreeMap;
use std::ops::Bound;

/// Bytes of a hash by which the index knows a block: 192 bits, of which nobody finds two alike.
pub(crate) const PREFIX_BYTES: usize = 24;

/// The beginning of a block's hash.
pub(crate) type Prefix = [u8; PREFIX_BYTES];

pub(crate) fn prefix_of(hash: &Hash) -> Prefix {
    crate::format::array_at(hash, 0)
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

/// None as a value says that the key is gone.
#[derive(Debug)]
pub(crate) struct Table {
    blocks: BTreeMap<Prefix, Option<Place>>,
    /// Of the blocks: most of those asked for are not here.
    filter: Filter,
    names: Texts,
    changes: BTreeMap<u64, String>,
    settings: Texts,
    text_bytes: usize,
}

impl Table {
    /// A table that is checkpointed at so many entries.
    pub(crate) fn new(entries: usize) -> Self {
        let filter = Filter::sized_for(2 * entries as u64, limits::TABLE_DECIBITS);
        let (blocks, names, changes, settings, text_bytes) = Default::default();
        Self { blocks, filter, names, changes, settings, text_bytes }
    }

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
        self.filter.clear();
        self.blocks.clear();
        self.names.clear();
        self.changes.clear();
        self.settings.clear();
        self.text_bytes = 0;
    }

    pub(crate) fn blocks(&self) -> &BTreeMap<Prefix, Option<Place>> {
        &self.blocks
    }

    /// What the table says of a block, if it says anything.
    pub(crate) fn block(&self, prefix: &Prefix, probe: &Probe) -> Option<Option<Place>> {
        if self.filter.contains(probe) { self.blocks.get(prefix).copied() } else { None }
    }

    pub(crate) fn names(&self) -> &Texts {
        &self.names
    }

    pub(crate) fn settings(&self) -> &Texts {
        &self.settings
    }

    pub(crate) fn put_block(&mut self, prefix: Prefix, probe: &Probe, place: Option<Place>) {
        self.filter.insert(probe);
        self.blocks.insert(prefix, place);
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

    /// The first block behind `after`.
    pub(crate) fn blocks_after(
        &self,
        after: Option<&Prefix>,
    ) -> impl Iterator<Item = (&Prefix, &Option<Place>)> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.blocks.range::<Prefix, _>((start, Bound::Unbounded))
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
