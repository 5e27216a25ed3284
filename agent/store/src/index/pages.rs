//! The tables of redb that runs lie in: two a run, one of its pages and one of the rows of its filter.
//!
//! Each run has tables of its own so that it only ever grows at the end: redb leaves full leaves alone there,
//! and splits them anywhere else.

use redb::{ReadOnlyTable, ReadTransaction, ReadableTable, Table, TableDefinition, WriteTransaction};
use std::collections::BTreeMap;

/// The pages of one run, as they are read.
pub(super) type RunPages = ReadOnlyTable<u64, &'static [u8]>;

/// A table of a run while it is written.
pub(super) type Rows<'t> = Table<'t, u64, &'static [u8]>;

/// Of which kind a run's table is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Pages,
    Filter,
}

impl Kind {
    fn name(self, run: u32) -> String {
        match self {
            Self::Pages => format!("run-{run:08x}"),
            Self::Filter => format!("filter-{run:08x}"),
        }
    }
}

/// The pages of all runs, as one commit left them.
pub(super) struct Pages {
    transaction: ReadTransaction,
    open: BTreeMap<u32, RunPages>,
}

impl std::fmt::Debug for Pages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pages").field("open", &self.open.keys()).finish_non_exhaustive()
    }
}

impl Pages {
    pub(super) fn new(transaction: ReadTransaction) -> Self {
        Self { transaction, open: BTreeMap::new() }
    }

    pub(super) fn of(&mut self, run: u32) -> Result<&RunPages, redb::Error> {
        if !self.open.contains_key(&run) {
            self.open.insert(run, read_rows(&self.transaction, Kind::Pages, run)?);
        }
        self.open.get(&run).ok_or_else(damaged_page)
    }
}

pub(super) fn read_rows(
    transaction: &ReadTransaction,
    kind: Kind,
    run: u32,
) -> Result<RunPages, redb::Error> {
    Ok(transaction.open_table(TableDefinition::new(&kind.name(run)))?)
}

pub(super) fn write_rows(
    transaction: &WriteTransaction,
    kind: Kind,
    run: u32,
) -> Result<Rows<'_>, redb::Error> {
    Ok(transaction.open_table(TableDefinition::new(&kind.name(run)))?)
}

/// Removes at most `budget` rows of a run's table, and says how many. The table goes with its last row; to take it
/// away whole redb would read all of it.
pub(super) fn remove_rows(
    transaction: &WriteTransaction,
    kind: Kind,
    run: u32,
    budget: usize,
) -> Result<usize, redb::Error> {
    let mut rows = write_rows(transaction, kind, run)?;
    let (mut count, mut end) = (0, None);
    for row in rows.range(0..)?.take(budget) {
        end = Some(row?.0.value());
        count += 1;
    }
    if let Some(end) = end {
        rows.retain_in(..=end, |_, _| false)?;
    }
    drop(rows);
    if count < budget {
        let name = kind.name(run);
        transaction.delete_table(TableDefinition::<u64, &[u8]>::new(&name))?;
    }
    Ok(count)
}

/// A page of a run, or what is kept of one, is not what was written.
pub(super) fn damaged_page() -> redb::Error {
    redb::Error::Corrupted("a page of a run is damaged".into())
}
