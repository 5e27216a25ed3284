//! What one record means for the state.
//!
//! Duty: take a record that is in the log, from a commit, a replay or a move, into table and counts. Records
//! are applied in the log's order. Of a block the last word in the log counts: cleaning moves a block only
//! while its record is the one in use, and a deletion only while its block is gone, so a moved record
//! never overrules a later one. Of a name or setting the highest sequence number counts; an equal one is a
//! moved copy, and the later place wins. So any part of the log may be applied again, up to its end.

use super::Store;
use super::commit::UnknownAt;
use crate::Hash;
use crate::batch::{Key, Record};
use crate::disk::Disk;
use crate::format::{Kind, record_bytes};
use crate::index::{Entry, IndexError, Place, prefix_of};

impl<D: Disk> Store<D> {
    /// Applies one record that lies at `place`.
    pub(super) fn apply(
        &mut self,
        record: &Record,
        place: Place,
        unknown_at: UnknownAt,
    ) -> Result<(), IndexError> {
        let seq = record.seq;
        match (&record.key, record.kind) {
            (Key::Hash(hash), Kind::Block) => self.apply_block(hash, place, unknown_at),
            (Key::Hash(hash), Kind::Delete) => self.apply_delete(hash),
            (Key::Text(name), Kind::Bind) => {
                self.apply_name(name, seq, Some(Entry { seq, place, value: record.value.clone() }))
            }
            (Key::Text(name), Kind::Unbind) => self.apply_name(name, seq, None),
            (Key::Text(key), Kind::Setting) => {
                self.apply_setting(key, seq, Some(Entry { seq, place, value: record.value.clone() }))
            }
            (Key::Text(key), Kind::SettingRemoved) => self.apply_setting(key, seq, None),
            (
                _,
                Kind::Block
                | Kind::Delete
                | Kind::Bind
                | Kind::Unbind
                | Kind::Setting
                | Kind::SettingRemoved
                | Kind::Commit,
            ) => Ok(()),
        }
    }

    fn apply_block(&mut self, hash: &Hash, place: Place, unknown_at: UnknownAt) -> Result<(), IndexError> {
        let indexed =
            if unknown_at == Some(self.counters.checkpoints) { None } else { self.find_block(hash)? };
        let old = self.table.put_block(&prefix_of(hash), Some(place)).unwrap_or(indexed);
        match old {
            Some(old) if old == place => return Ok(()),
            Some(old) => self.account(32, &old, false),
            None => self.blocks += 1,
        }
        self.account(32, &place, true);
        if old.is_some() {
            self.release(hash);
        }
        Ok(())
    }

    fn apply_delete(&mut self, hash: &Hash) -> Result<(), IndexError> {
        if let Some(old) = self.find_block(hash)? {
            self.forget_block(hash, &old);
        }
        Ok(())
    }

    /// Takes a block out of the index.
    pub(super) fn forget_block(&mut self, hash: &Hash, old: &Place) {
        self.account(32, old, false);
        self.blocks = self.blocks.saturating_sub(1);
        self.table.put_block(&prefix_of(hash), None);
        self.cache.remove(hash);
        self.release(hash);
    }

    fn apply_name(&mut self, name: &str, seq: u64, entry: Option<Entry>) -> Result<(), IndexError> {
        let old = self.find_name(name)?;
        if old.as_ref().is_some_and(|old| old.seq > seq) {
            return Ok(());
        }
        match (&old, &entry) {
            (None, None) => return Ok(()),
            (None, Some(_)) => self.names += 1,
            (Some(_), None) => self.names = self.names.saturating_sub(1),
            (Some(_), Some(_)) => {}
        }
        self.replace_accounts(name.len(), old.as_ref(), entry.as_ref());
        self.table.put_name(name.to_owned(), entry);
        Ok(())
    }

    fn apply_setting(&mut self, key: &str, seq: u64, entry: Option<Entry>) -> Result<(), IndexError> {
        let old = self.find_setting(key)?;
        let known = old.as_ref().is_some_and(|old| old.seq > seq);
        if known || (old.is_none() && entry.is_none()) {
            return Ok(());
        }
        self.replace_accounts(key.len(), old.as_ref(), entry.as_ref());
        self.table.put_setting(key.to_owned(), entry);
        Ok(())
    }

    pub(super) fn find_name(&self, name: &str) -> Result<Option<Entry>, IndexError> {
        match self.table.names().get(name) {
            Some(entry) => Ok(entry.clone()),
            None => self.index.name(name),
        }
    }

    pub(super) fn find_setting(&self, key: &str) -> Result<Option<Entry>, IndexError> {
        match self.table.settings().get(key) {
            Some(entry) => Ok(entry.clone()),
            None => self.index.setting(key),
        }
    }

    fn replace_accounts(&mut self, key_length: usize, old: Option<&Entry>, new: Option<&Entry>) {
        if let Some(old) = old {
            self.account(key_length, &old.place, false);
        }
        if let Some(new) = new {
            self.account(key_length, &new.place, true);
        }
    }

    /// Keeps the live bytes of a segment. They are an estimate for choosing what to clean, no more.
    fn account(&mut self, key_length: usize, place: &Place, live: bool) {
        self.account_bytes(place.segment, record_bytes(key_length, place.length as usize), live);
    }

    pub(super) fn account_bytes(&mut self, segment: u32, bytes: u64, live: bool) {
        if let Some(segment) = self.segments.get_mut(segment) {
            let old = segment.row.live;
            segment.row.live = if live { old.saturating_add(bytes) } else { old.saturating_sub(bytes) };
            segment.changed = true;
        }
    }
}
