//! Names, what changed since, and settings.
//!
//! Duty: answer look-ups and pages that are part memory table, part index. Values are opaque. A page takes
//! the memory of its entries; the caller gives the limit.

use super::Store;
use crate::disk::Disk;
use crate::error::ReadError;
use crate::index::{Entry, IndexError, texts_after};
use bytes::Bytes;

/// Settings read at a time.
const SETTINGS_PAGE: usize = 256;

/// What a name is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// Sequence number of the binding: greater than that of every older one in this store.
    pub seq: u64,
    /// The value.
    pub value: Bytes,
}

impl From<Entry> for Binding {
    fn from(entry: Entry) -> Self {
        Self { seq: entry.seq, value: entry.value }
    }
}

impl<D: Disk> Store<D> {
    /// What a name is bound to.
    ///
    /// # Errors
    /// The index failed and could not be made again.
    pub fn binding(&mut self, name: &str) -> Result<Option<Binding>, ReadError> {
        Ok(self.asked(|store| store.find_name(name)).map_err(read_error)?.map(Binding::from))
    }

    /// Names that start with `prefix`, in their order, behind `after`, at most `limit`.
    ///
    /// # Errors
    /// The index failed and could not be made again.
    pub fn bindings(
        &mut self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Binding)>, ReadError> {
        let page = self.asked(|store| store.names_page(prefix, after, limit)).map_err(read_error)?;
        Ok(page.into_iter().map(|(name, entry)| (name, entry.into())).collect())
    }

    /// Names bound after a sequence number, in its order, at most `limit`: only the newest binding of each.
    ///
    /// # Errors
    /// The index failed and could not be made again.
    pub fn changes(&mut self, after_seq: u64, limit: usize) -> Result<Vec<(u64, String, Bytes)>, ReadError> {
        self.asked(|store| store.changes_page(after_seq, limit)).map_err(read_error)
    }

    /// The value of a setting.
    ///
    /// # Errors
    /// The index failed and could not be made again.
    pub fn setting(&mut self, key: &str) -> Result<Option<Bytes>, ReadError> {
        Ok(self.asked(|store| store.find_setting(key)).map_err(read_error)?.map(|entry| entry.value))
    }

    /// All settings whose keys start with `prefix`, in their order. Settings are few by design.
    ///
    /// # Errors
    /// The index failed and could not be made again.
    pub fn settings(&mut self, prefix: &str) -> Result<Vec<(String, Bytes)>, ReadError> {
        let mut settings: Vec<(String, Bytes)> = Vec::new();
        loop {
            let after = settings.last().map(|(key, _)| key.clone());
            let page = self
                .asked(|store| store.settings_page(prefix, after.as_deref(), SETTINGS_PAGE))
                .map_err(read_error)?;
            if page.is_empty() {
                return Ok(settings);
            }
            settings.extend(page.into_iter().map(|(key, entry)| (key, entry.value)));
        }
    }

    pub(super) fn names_page(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Entry)>, IndexError> {
        let names = self.table.names();
        let indexed = self.index.names_after(prefix, after, limit, |name| names.contains_key(name))?;
        Ok(merged(indexed, texts_after(names, prefix, after), limit))
    }

    pub(super) fn settings_page(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Entry)>, IndexError> {
        let settings = self.table.settings();
        let indexed = self.index.settings_after(prefix, after, limit, |key| settings.contains_key(key))?;
        Ok(merged(indexed, texts_after(settings, prefix, after), limit))
    }

    fn changes_page(&self, after_seq: u64, limit: usize) -> Result<Vec<(u64, String, Bytes)>, IndexError> {
        let (mut page, mut after_seq) = (Vec::new(), after_seq);
        // A page is short only at the end: whoever reads on takes a short one for the last.
        while page.len() < limit {
            let changes = self.change_candidates(after_seq, limit - page.len())?;
            let Some((last, _)) = changes.last() else { break };
            after_seq = *last;
            for (seq, name) in changes {
                if let Some(entry) = self.find_name(&name)?.filter(|entry| entry.seq == seq) {
                    page.push((seq, name, entry.value));
                }
            }
        }
        Ok(page)
    }

    /// The next entries of index and table, of which some may be of bindings that are no longer the newest.
    fn change_candidates(&self, after_seq: u64, limit: usize) -> Result<Vec<(u64, String)>, IndexError> {
        let names = self.table.names();
        let mut changes = self.index.changes_after(after_seq, limit, |name| names.contains_key(name))?;
        let pending = self.table.changes_after(after_seq).take(limit);
        changes.extend(pending.map(|(seq, name)| (*seq, name.clone())));
        changes.sort_unstable();
        changes.truncate(limit);
        Ok(changes)
    }
}

fn merged<'a>(
    mut page: Vec<(String, Entry)>,
    pending: impl Iterator<Item = (&'a String, &'a Entry)>,
    limit: usize,
) -> Vec<(String, Entry)> {
    page.extend(pending.take(limit).map(|(key, entry)| (key.clone(), entry.clone())));
    page.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
    page.truncate(limit);
    page
}

pub(super) fn read_error(error: IndexError) -> ReadError {
    ReadError::Index { reason: error.reason() }
}
