//! The memory table: what the index will learn at the next checkpoint.
//!
//! Duty: hold the newest word about each key since the last checkpoint, sorted. Its owner checkpoints before
//! it outgrows its bound; the table itself refuses nothing.

use crate::Hash;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Bound;

/// Where a record lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) seq: u64,
    pub(crate) segment: u32,
    /// Of the record's header.
    pub(crate) offset: u32,
    /// Of its value.
    pub(crate) length: u32,
}

/// A name or setting with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) place: Place,
    pub(crate) value: Bytes,
}

type Texts = BTreeMap<String, Option<Entry>>;

/// None as a value says that the key is gone.
#[derive(Debug, Default)]
pub(crate) struct Table {
    blocks: BTreeMap<Hash, Option<Place>>,
    names: Texts,
    changes: BTreeMap<u64, String>,
    settings: Texts,
    text_bytes: usize,
}

impl Table {
    pub(crate) fn entries(&self) -> usize {
        self.blocks.len() + self.names.len() + self.settings.len()
    }

    /// Bytes of names, settings and their values.
    pub(crate) fn text_bytes(&self) -> usize {
        self.text_bytes
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(crate) fn blocks(&self) -> &BTreeMap<Hash, Option<Place>> {
        &self.blocks
    }

    pub(crate) fn names(&self) -> &Texts {
        &self.names
    }

    pub(crate) fn settings(&self) -> &Texts {
        &self.settings
    }

    pub(crate) fn put_block(&mut self, hash: Hash, place: Option<Place>) {
        self.blocks.insert(hash, place);
    }

    pub(crate) fn put_name(&mut self, name: String, entry: Option<Entry>) {
        if let Some(Some(old)) = self.names.get(&name) {
            self.changes.remove(&old.place.seq);
        }
        if let Some(entry) = &entry {
            self.changes.insert(entry.place.seq, name.clone());
        }
        put_text(&mut self.names, &mut self.text_bytes, name, entry);
    }

    pub(crate) fn put_setting(&mut self, key: String, entry: Option<Entry>) {
        put_text(&mut self.settings, &mut self.text_bytes, key, entry);
    }

    #[cfg(planted)]
    pub(crate) fn forget_newest_segment(&mut self) {
        let newest = self.blocks.values().flatten().map(|place| place.segment).max();
        if newest.is_some() && crate::planted::is(crate::planted::Bug::ForgottenSegment) {
            self.blocks.retain(|_, place| place.map(|place| place.segment) != newest);
        }
    }

    /// The first block behind `after`.
    pub(crate) fn blocks_after(&self, after: Option<&Hash>) -> impl Iterator<Item = (&Hash, &Option<Place>)> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.blocks.range::<Hash, _>((start, Bound::Unbounded))
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
