//! Names, what changed, and settings: tables of redb as they are.
//!
//! Duty: answer look-ups and ordered pages, and take the texts of a memory table in. Memory is one page of
//! answers.

use super::table::{Entry, Place, Table};
use super::{Index, IndexError, damaged, guarded};
use crate::disk::Disk;
use crate::format::{u32_at, u64_at};
use redb::{ReadableDatabase, TableDefinition, WriteTransaction};

pub(super) const NAMES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("names");
pub(super) const CHANGES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("changes");
pub(super) const SETTINGS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("settings");

/// Sequence number and place in front of a value.
const ENTRY_BYTES: usize = 20;

impl<D: Disk> Index<D> {
    pub(crate) fn name(&self, name: &str) -> Result<Option<Entry>, IndexError> {
        self.text(NAMES, name)
    }

    pub(crate) fn setting(&self, key: &str) -> Result<Option<Entry>, IndexError> {
        self.text(SETTINGS, key)
    }

    pub(crate) fn names_after(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        skip: impl Fn(&str) -> bool,
    ) -> Result<Vec<(String, Entry)>, IndexError> {
        self.texts_after(NAMES, prefix, after, limit, skip)
    }

    pub(crate) fn settings_after(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        skip: impl Fn(&str) -> bool,
    ) -> Result<Vec<(String, Entry)>, IndexError> {
        self.texts_after(SETTINGS, prefix, after, limit, skip)
    }

    /// Names bound after a sequence number, in its order.
    pub(crate) fn changes_after(
        &self,
        seq: u64,
        limit: usize,
        skip: impl Fn(&str) -> bool,
    ) -> Result<Vec<(u64, String)>, IndexError> {
        guarded(|| {
            let table = self.database()?.begin_read()?.open_table(CHANGES)?;
            let mut changes = Vec::new();
            for item in table.range(seq.saturating_add(1)..)? {
                let (seq, bytes) = item?;
                let name = str::from_utf8(bytes.value()).map_err(|_| damaged())?;
                if !skip(name) {
                    changes.push((seq.value(), name.to_owned()));
                }
                if changes.len() >= limit {
                    break;
                }
            }
            Ok(changes)
        })
    }

    fn text(
        &self,
        definition: TableDefinition<'_, &'static str, &'static [u8]>,
        key: &str,
    ) -> Result<Option<Entry>, IndexError> {
        guarded(|| {
            let table = self.database()?.begin_read()?.open_table(definition)?;
            table.get(key)?.map(|value| decode_entry(value.value())).transpose()
        })
    }

    fn texts_after(
        &self,
        definition: TableDefinition<'_, &'static str, &'static [u8]>,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        skip: impl Fn(&str) -> bool,
    ) -> Result<Vec<(String, Entry)>, IndexError> {
        guarded(|| {
            let table = self.database()?.begin_read()?.open_table(definition)?;
            let mut entries = Vec::new();
            let start = after.filter(|after| *after > prefix).unwrap_or(prefix);
            for item in table.range(start..)? {
                let (key, value) = item?;
                let key = key.value();
                if !key.starts_with(prefix) || entries.len() >= limit {
                    break;
                }
                if after.is_none_or(|after| key > after) && !skip(key) {
                    entries.push((key.to_owned(), decode_entry(value.value())?));
                }
            }
            Ok(entries)
        })
    }
}

pub(super) fn write_texts(transaction: &WriteTransaction, table: &Table) -> Result<(), redb::Error> {
    let (mut names, mut changes) = (transaction.open_table(NAMES)?, transaction.open_table(CHANGES)?);
    for (name, entry) in table.names() {
        let old = match entry {
            Some(entry) => names.insert(name.as_str(), encode_entry(entry).as_slice())?,
            None => names.remove(name.as_str())?,
        };
        if let Some(old) = old {
            changes.remove(u64_at(old.value(), 0))?;
        }
    }
    for (name, entry) in table.names() {
        if let Some(entry) = entry {
            changes.insert(entry.seq, name.as_bytes())?;
        }
    }
    let mut settings = transaction.open_table(SETTINGS)?;
    for (key, entry) in table.settings() {
        match entry {
            Some(entry) => drop(settings.insert(key.as_str(), encode_entry(entry).as_slice())?),
            None => drop(settings.remove(key.as_str())?),
        }
    }
    Ok(())
}

fn encode_entry(entry: &Entry) -> Vec<u8> {
    let Entry { seq, place, value } = entry;
    let Place { segment, offset, length } = place;
    let mut bytes = Vec::with_capacity(ENTRY_BYTES + value.len());
    bytes.extend(seq.to_le_bytes());
    [segment, offset, length].into_iter().for_each(|field| bytes.extend(field.to_le_bytes()));
    bytes.extend(value);
    bytes
}

fn decode_entry(bytes: &[u8]) -> Result<Entry, redb::Error> {
    let (head, value) = bytes.split_first_chunk::<ENTRY_BYTES>().ok_or_else(damaged)?;
    let place = Place { segment: u32_at(head, 8), offset: u32_at(head, 12), length: u32_at(head, 16) };
    Ok(Entry { seq: u64_at(head, 0), place, value: bytes::Bytes::copy_from_slice(value) })
}
