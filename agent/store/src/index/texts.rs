//! Names, what changed, and settings: tables of redb as they are.
//!
//! Duty: answer look-ups and ordered pages, and take the texts of a memory table in. Memory is one page of
//! answers.

use super::table::{Entry, Place, Table};
use super::{Index, IndexError, damaged, guarded};
use crate::disk::Disk;
use redb::{ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use std::ops::Bound;

pub(super) const NAMES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("names");
pub(super) const CHANGES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("changes");
pub(super) const SETTINGS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("settings");

/// Of one of the numbers in front of a value.
const NUMBER_BYTES_MAX: usize = 10;
/// So much between two new names is written anew with them: what a checkpoint touches of a leaf it writes whole.
const NEAR_BYTES: usize = 1_024;
/// A run of names that is as long goes: what it holds in memory, but for what lies between two names.
const RUN_BYTES_MAX: usize = 1 << 20;

type Names<'t> = redb::Table<'t, &'static str, &'static [u8]>;
type Run = Vec<(String, Vec<u8>)>;

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
    let mut new = Vec::new();
    for (name, entry) in table.names() {
        let old = match entry {
            Some(entry) => match names.get_mut(name.as_str())? {
                Some(mut there) => {
                    let seq = decode_seq(there.value())?;
                    there.insert(encode_entry(entry).as_slice())?;
                    Some(seq)
                }
                None => {
                    new.push((name, entry));
                    None
                }
            },
            None => names.remove(name.as_str())?.map(|old| decode_seq(old.value())).transpose()?,
        };
        if let Some(seq) = old {
            changes.remove(seq)?;
        }
    }
    insert_packed(&mut names, new.into_iter())?;
    // in their order: redb leaves full leaves alone at the end of a table, and splits them anywhere else
    for (seq, name) in table.changes_after(0) {
        changes.insert(seq, name.as_bytes())?;
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

/// Inserts names that are not there, in their order. Put one by one between others they would split every leaf in
/// halves, which stay so: a run of them goes as a whole, with what lies between, and fills its leaves.
fn insert_packed<'n>(
    names: &mut Names<'_>,
    new: impl Iterator<Item = (&'n String, &'n Entry)>,
) -> Result<(), redb::Error> {
    let (mut run, mut bytes): (Run, usize) = Default::default();
    for (name, entry) in new {
        if let Some((last, _)) = run.last() {
            match near(names, last, name)? {
                Some(mut between) if bytes < RUN_BYTES_MAX => {
                    bytes += size(&between);
                    run.append(&mut between);
                }
                _ => {
                    insert_run(names, &run)?;
                    (run, bytes) = Default::default();
                }
            }
        }
        run.push((name.clone(), encode_entry(entry)));
        bytes += size(&run[run.len() - 1..]);
    }
    insert_run(names, &run)
}

/// What lies between two names that are not there, if it is little.
fn near(names: &Names<'_>, from: &str, to: &str) -> Result<Option<Run>, redb::Error> {
    let mut between = Vec::new();
    for item in names.range(from..to)? {
        let (name, value) = item?;
        between.push((name.value().to_owned(), value.value().to_owned()));
        if size(&between) > NEAR_BYTES {
            return Ok(None);
        }
    }
    Ok(Some(between))
}

fn size(run: &[(String, Vec<u8>)]) -> usize {
    run.iter().map(|(name, value)| name.len() + value.len()).sum()
}

fn insert_run(names: &mut Names<'_>, run: &Run) -> Result<(), redb::Error> {
    let (Some((first, _)), Some((last, _))) = (run.first(), run.last()) else { return Ok(()) };
    names.retain_in(first.as_str()..last.as_str(), |_, _| false)?;
    let mut cursor = names.lower_bound_mut(Bound::Included(first.as_str()))?;
    for (name, value) in run {
        cursor.insert_before(name.as_str(), value.as_slice())?;
    }
    Ok(cursor.close()?)
}

/// Small numbers are short: in a table of names they would take a sixth of what it writes.
fn encode_entry(entry: &Entry) -> Vec<u8> {
    let Entry { seq, place, value } = entry;
    let mut bytes = Vec::with_capacity(3 * NUMBER_BYTES_MAX + value.len());
    for number in [*seq, u64::from(place.segment), u64::from(place.offset / 8)] {
        push_number(number, &mut bytes);
    }
    bytes.extend(value);
    bytes
}

fn decode_entry(bytes: &[u8]) -> Result<Entry, redb::Error> {
    let mut rest = bytes;
    let mut number = || take_number(&mut rest).ok_or_else(damaged);
    let (seq, segment, eighths) = (number()?, number()?, number()?);
    let narrow = |number: u64| u32::try_from(number).map_err(|_| damaged());
    let offset = narrow(eighths.saturating_mul(8))?;
    let place = Place { segment: narrow(segment)?, offset, length: narrow(rest.len() as u64)? };
    Ok(Entry { seq, place, value: bytes::Bytes::copy_from_slice(rest) })
}

fn decode_seq(mut bytes: &[u8]) -> Result<u64, redb::Error> {
    take_number(&mut bytes).ok_or_else(damaged)
}

/// Seven bits a byte, the lowest first; all but the last have the highest bit set.
fn push_number(mut number: u64, out: &mut Vec<u8>) {
    while number >= 1 << 7 {
        out.push(number as u8 | 1 << 7);
        number >>= 7;
    }
    out.push(number as u8);
}

/// None if it does not end, or is longer than it could be.
fn take_number(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for at in 0..NUMBER_BYTES_MAX {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << (7 * at);
        if byte >> 7 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back_at_their_extremes_and_what_is_cut_off_is_an_error() {
        for (seq, segment, offset) in
            [(0, 0, 0), (127, 128, 8), (1 << 40, 70_000, 4_096), (u64::MAX, u32::MAX, u32::MAX - 7)]
        {
            for length in [0_u32, 62] {
                let value = bytes::Bytes::from(vec![0xff; length as usize]);
                let entry = Entry { seq, place: Place { segment, offset, length }, value };
                let encoded = encode_entry(&entry);
                assert_eq!(decode_entry(&encoded).unwrap(), entry);
                assert!(decode_entry(&encoded[..encoded.len() - length as usize - 1]).is_err());
            }
        }
        assert!(decode_entry(&[0xff; 40]).is_err());
    }
}
