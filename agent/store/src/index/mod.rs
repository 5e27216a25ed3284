//! The index over the log: where each block, name and setting lies.
//!
//! Duty: answer look-ups and ordered pages from redb, and take a memory table in one sorted, durable commit
//! per checkpoint. Blocks lie in sorted runs, since their keys are random; names and settings in trees. The
//! layout is private to this module. It holds nothing that the log does not: an index that can not be read is
//! set aside by the caller and made again. Memory is redb's cache, the runs' filters, the checks of pages (0.1 % of the
//! file) and one page of answers. A panic inside redb is an error here, not the end of the process.

mod backend;
mod blocks;
mod check;
mod cursor;
mod merge;
mod page;
mod pages;
mod runs;
mod table;
#[cfg(test)]
mod tests;
mod texts;

pub(crate) use merge::MergeCounts;
pub(crate) use runs::Answer;
pub(crate) use table::{ByPrefix, Entry, PREFIX_BYTES, Place, Prefix, Table, prefix_of, texts_after};

use crate::disk::{Disk, OpenMode};
use crate::format::{INDEX_NAME, StoreId, u64_at};
use crate::limits::{INDEX_BYTES_PER_BLOCK, MERGE_ENTRIES_MIN};
use backend::Backend;
use larder_kernels::Level;
use larder_kernels::bloom::Probe;
use pages::Pages;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use runs::Runs;
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::io;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};

const ROW_BYTES: usize = 33;
const CHECKPOINT_BYTES: usize = 41;
/// The layout of the tables below; an index of another layout is made again.
const LAYOUT: u8 = 6;

const SEGMENTS: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("segments");
const DAMAGED: TableDefinition<'_, &Prefix, ()> = TableDefinition::new("damaged");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
/// Keys of `meta` whose values decide over the log.
const CHECKPOINT: &str = "checkpoint";
const RUNS: &str = "runs";
/// [`Unread`]; absent if there are none.
const UNREAD: &str = "unread";

/// Why the index can not answer.
#[derive(Debug)]
pub(crate) enum IndexError {
    /// The device is full.
    Full,
    /// The process or the machine lacks something; the index may be well.
    Passing(String),
    /// Anything else; the words are redb's or the operating system's.
    Failed(String),
}

impl IndexError {
    pub(crate) fn reason(self) -> String {
        match self {
            Self::Full => "the device is full".to_owned(),
            Self::Passing(reason) | Self::Failed(reason) => reason,
        }
    }
}

/// What the log contained when the index was last made durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    /// The segment that was open and the offset behind its last batch; zeros if there was none.
    pub(crate) generation: u64,
    pub(crate) offset: u64,
    pub(crate) next_seq: u64,
    pub(crate) blocks: u64,
    pub(crate) names: u64,
    /// Nothing was written after it.
    pub(crate) clean: bool,
}

/// What is known of a segment besides its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentRow {
    pub(crate) generation: u64,
    pub(crate) first_seq: u64,
    /// Behind the last batch.
    pub(crate) end: u64,
    /// Bytes of records the index points at.
    pub(crate) live: u64,
    /// Its live records are elsewhere; the file goes next.
    pub(crate) retired: bool,
}

/// Segments that a replay passed over bytes of: they may hold what the index lacks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Unread {
    pub(crate) ids: Vec<u32>,
    /// They say nothing, or the device would not read them often enough.
    pub(crate) given_up: bool,
}

/// Everything one checkpoint makes durable.
pub(crate) struct Update<'a> {
    /// What is new, if anything but the checkpoint is.
    pub(crate) table: Option<&'a Table>,
    pub(crate) checkpoint: Checkpoint,
    /// Segments to write, or with `None` to forget.
    pub(crate) segments: Vec<(u32, Option<SegmentRow>)>,
    /// All there are; with `None` they are those of the checkpoint before.
    pub(crate) unread: Option<Unread>,
    /// The whole quarantine, if it changed.
    pub(crate) damaged: Option<BTreeSet<Prefix>>,
}

/// An open index.
#[derive(Debug)]
pub(crate) struct Index<D: Disk> {
    database: Option<Database>,
    runs: Runs,
    /// Entries one commit can merge without redb writing pages twice: what does not fit half its cache it writes
    /// early, and again when it fills in the checks. About each second page there is one that was given up.
    commit_entries: u64,
    /// As the last commit left them.
    pages: Option<Pages>,
    /// A commit failed: what is known of the runs may be ahead of what is stored.
    failed: bool,
    backend: Backend<D::File>,
}

/// What an index says when it is opened.
#[derive(Debug, Default)]
pub(crate) struct Opened {
    /// None in a new or unfinished index.
    pub(crate) checkpoint: Option<Checkpoint>,
    pub(crate) segments: Vec<(u32, SegmentRow)>,
    pub(crate) unread: Unread,
    pub(crate) damaged: BTreeSet<Prefix>,
}

impl<D: Disk> Index<D> {
    /// Opens the index file, or makes it if there is none.
    pub(crate) fn open(
        disk: &D,
        cache_bytes: usize,
        level: Level,
        store: &StoreId,
    ) -> Result<(Self, Opened), IndexError> {
        let file = match disk.open(INDEX_NAME, OpenMode::ReadWrite) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => disk.open(INDEX_NAME, OpenMode::Create),
            other => other,
        };
        let backend = Backend::new(file.map_err(failed)?);
        let handle = backend.clone();
        let opened = guarded(|| {
            let mut database = Database::builder();
            let database = database.set_cache_size(cache_bytes).create_with_backend(handle)?;
            let database = ManuallyDrop::new(database);
            let opened = read_opening(&database, level, store)?;
            Ok((database, opened))
        });
        let (database, opened) = opened.map_err(|error| {
            let (full, starved) = (backend.met_full(), backend.was_starved());
            backend.give_up();
            match error {
                _ if full => IndexError::Full,
                IndexError::Failed(reason) if starved => IndexError::Passing(reason),
                IndexError::Full | IndexError::Passing(_) | IndexError::Failed(_) => error,
            }
        })?;
        let database = Some(ManuallyDrop::into_inner(database));
        let (runs, opened) =
            opened.ok_or_else(|| IndexError::Failed("it belongs to another store or layout".into()))?;
        let commit_entries = cache_bytes as u64 / 2 / (2 * INDEX_BYTES_PER_BLOCK);
        Ok((Self { database, runs, commit_entries, pages: None, failed: false, backend }, opened))
    }

    /// What is known of a block; a filter's false answer costs a page that is read in vain.
    pub(crate) fn block(&mut self, prefix: &Prefix, probe: &Probe) -> Result<Answer, IndexError> {
        if self.database.is_some() && !self.failed && !self.runs.may_know(probe) {
            return Ok(Answer::default());
        }
        if self.pages.is_none() {
            self.pages = Some(guarded(|| self.read_pages())?);
        }
        let Some(pages) = &mut self.pages else { return Ok(Answer::default()) };
        guarded(|| self.runs.find(pages, prefix, probe))
    }

    /// Blocks behind `after` in order, those that are gone included.
    pub(crate) fn blocks_after(
        &self,
        after: Option<&Prefix>,
        limit: usize,
    ) -> Result<Vec<(Prefix, Option<Place>)>, IndexError> {
        guarded(|| self.runs.entries_after(&mut self.read_pages()?, after, limit))
    }

    /// Leaves `unknown` true only where no run knows the block, for certain.
    pub(crate) fn sort_out_known<'a>(
        &self,
        probes: impl Iterator<Item = Option<&'a Probe>> + Clone,
        unknown: &mut [bool],
    ) {
        if self.database.is_none() || self.failed {
            unknown.fill(false);
        }
        self.runs.sort_out_known(probes, unknown);
    }

    fn read_pages(&self) -> Result<Pages, redb::Error> {
        Ok(Pages::new(self.database()?.begin_read()?))
    }

    /// Makes a memory table durable: one commit. After an error the index answers nothing until it is opened or
    /// made again.
    pub(crate) fn write(&mut self, update: &Update<'_>) -> Result<(), IndexError> {
        self.commit(Durability::Immediate, |index, transaction| {
            if let Some(table) = update.table {
                if !table.blocks().is_empty() {
                    index.runs.flush(table.blocks().sorted(), transaction)?;
                    index.keep_runs(transaction)?;
                }
                texts::write_texts(transaction, table)?;
            }
            write_rows(transaction, update)
        })
    }

    /// Merges runs, about `entries` of each merge under way, and removes what was merged before. `blocks` is how
    /// many entries would do, `garbage` how many more there may be. Several commits of a bounded size, which become durable with the next checkpoint:
    /// a power cut before it undoes them, and nothing is lost but the work.
    pub(crate) fn merge(&mut self, entries: u64, blocks: u64, garbage: u64) -> Result<(), IndexError> {
        let mut left = entries;
        self.runs.plan(blocks, garbage);
        while left > 0 && self.runs.has_work() {
            let merges = (self.runs.merges.len() as u64).max(1);
            let piece = (self.commit_entries / merges).max(MERGE_ENTRIES_MIN).min(left);
            self.merge_piece(piece)?;
            left -= piece;
        }
        Ok(())
    }

    fn merge_piece(&mut self, entries: u64) -> Result<(), IndexError> {
        let mut before = guarded(|| self.read_pages())?;
        self.commit(Durability::None, |index, transaction| {
            index.runs.drop_merged(transaction, entries)?;
            index.runs.advance(&mut before, transaction, entries)?;
            drop(before);
            index.keep_runs(transaction)
        })
    }

    fn commit(
        &mut self,
        durability: Durability,
        change: impl FnOnce(&mut Self, &WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), IndexError> {
        self.pages = None;
        let was_open = self.database.is_some();
        let written = guarded(|| {
            let mut transaction = self.database()?.begin_write()?;
            transaction.set_durability(durability)?;
            // The allocator state is kept with each durable commit: opening after a power cut reads no tree.
            transaction.set_quick_repair(true);
            change(self, &transaction)?;
            transaction.commit()?;
            Ok(())
        });
        self.failed = written.is_err();
        // what the device once said does not tell why a shut index answers nothing
        written.map_err(|error| match error {
            _ if was_open && self.backend.met_full() => IndexError::Full,
            IndexError::Failed(reason) if was_open && self.backend.was_starved() => {
                IndexError::Passing(reason)
            }
            IndexError::Full | IndexError::Passing(_) | IndexError::Failed(_) => error,
        })
    }

    fn keep_runs(&self, transaction: &WriteTransaction) -> Result<(), redb::Error> {
        transaction.open_table(META)?.insert(RUNS, self.runs.encode().as_slice())?;
        Ok(())
    }

    /// Bytes of the runs' filters.
    pub(crate) fn filter_bytes(&self) -> u64 {
        self.runs.filter_bytes()
    }

    /// Those written since the index was opened.
    pub(crate) fn filter_bytes_written(&self) -> u64 {
        self.runs.filter_bytes_written
    }

    /// Runs there are.
    pub(crate) fn runs(&self) -> usize {
        self.runs.newest_first.len()
    }

    /// Merges that are under way, and what was merged since the index was opened.
    pub(crate) fn merges(&self) -> (usize, MergeCounts) {
        (self.runs.merges.len(), self.runs.merged)
    }

    /// Closes the file; every later question is an error.
    pub(crate) fn shut(&mut self) {
        self.pages = None;
        // A database that failed before may panic while it closes; its content is in the log anyway.
        let database = self.database.take();
        let _closed = catch_unwind(AssertUnwindSafe(|| drop(database)));
    }

    /// Lets go of an index that is damaged. redb would end the process while it closes one: it panics at a page, and
    /// once more while that panic is on its way. So its memory is not given back.
    pub(crate) fn give_up(&mut self) {
        std::mem::forget((self.pages.take(), self.database.take()));
        self.backend.give_up();
    }

    pub(crate) fn is_shut(&self) -> bool {
        self.database.is_none()
    }

    /// Whether it may be well and only has to be opened again: it is closed, or the machine lacked memory for a read,
    /// after which redb answers nothing.
    pub(crate) fn wants_opening(&self) -> bool {
        self.is_shut() || self.backend.was_starved()
    }

    pub(crate) fn bytes_on_disk(&self) -> u64 {
        self.backend.bytes_on_disk()
    }

    pub(crate) fn bytes_written(&self) -> u64 {
        self.backend.bytes_written()
    }

    pub(crate) fn syncs(&self) -> u64 {
        self.backend.syncs()
    }

    fn database(&self) -> Result<&Database, redb::Error> {
        let open = self.database.as_ref().filter(|_| !self.failed);
        open.ok_or_else(|| redb::Error::Corrupted("the index is closed".into()))
    }
}

impl<D: Disk> Drop for Index<D> {
    fn drop(&mut self) {
        self.shut();
    }
}

/// None if it is of another store or layout.
fn read_opening(
    database: &Database,
    level: Level,
    store: &StoreId,
) -> Result<Option<(Runs, Opened)>, redb::Error> {
    let transaction = database.begin_read()?;
    let meta = match transaction.open_table(META) {
        Ok(meta) => meta,
        Err(redb::TableError::TableDoesNotExist(_)) => {
            create_tables(database, level, store)?;
            return Ok(Some((Runs::new(level), Opened::default())));
        }
        Err(error) => return Err(error.into()),
    };
    let belongs = meta.get("store")?.is_some_and(|value| value.value() == store)
        && meta.get("layout")?.is_some_and(|value| value.value() == [LAYOUT]);
    if !belongs {
        return Ok(None);
    }
    let checkpoint = match meta.get(CHECKPOINT)? {
        Some(bytes) => Some(decode_checkpoint(bytes.value())?),
        None => None,
    };
    let list = meta.get(RUNS)?.ok_or_else(damaged)?;
    let runs = Runs::load(level, list.value(), &transaction)?;
    let unread = match meta.get(UNREAD)? {
        Some(bytes) => decode_unread(bytes.value())?,
        None => Unread::default(),
    };
    let mut opened = Opened { checkpoint, unread, ..Opened::default() };
    for item in transaction.open_table(SEGMENTS)?.iter()? {
        let (id, row) = item?;
        opened.segments.push((id.value(), decode_row(row.value())?));
    }
    for item in transaction.open_table(DAMAGED)?.iter()?.take(crate::limits::DAMAGED_MAX) {
        opened.damaged.insert(*item?.0.value());
    }
    Ok(Some((runs.ok_or_else(damaged)?, opened)))
}

fn create_tables(database: &Database, level: Level, store: &StoreId) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    // Two-phase, like all commits: a start would else read the newer of two roots, whose pages may be torn.
    transaction.set_quick_repair(true);
    {
        let mut meta = transaction.open_table(META)?;
        meta.insert("store", store.as_slice())?;
        meta.insert("layout", [LAYOUT].as_slice())?;
        meta.insert(RUNS, Runs::new(level).encode().as_slice())?;
        transaction.open_table(texts::NAMES)?;
        transaction.open_table(texts::CHANGES)?;
        transaction.open_table(texts::SETTINGS)?;
        transaction.open_table(SEGMENTS)?;
        transaction.open_table(DAMAGED)?;
    }
    transaction.commit()?;
    Ok(())
}

fn write_rows(transaction: &redb::WriteTransaction, update: &Update<'_>) -> Result<(), redb::Error> {
    let mut segments = transaction.open_table(SEGMENTS)?;
    for (id, row) in &update.segments {
        match row {
            Some(row) => drop(segments.insert(id, encode_row(row).as_slice())?),
            None => drop(segments.remove(id)?),
        }
    }
    if let Some(damaged) = &update.damaged {
        let mut table = transaction.open_table(DAMAGED)?;
        table.retain(|hash, ()| damaged.contains(hash))?;
        for hash in damaged {
            table.insert(hash, ())?;
        }
    }
    let mut meta = transaction.open_table(META)?;
    match &update.unread {
        Some(unread) if unread.ids.is_empty() => drop(meta.remove(UNREAD)?),
        Some(unread) => drop(meta.insert(UNREAD, encode_unread(unread).as_slice())?),
        None => {}
    }
    meta.insert(CHECKPOINT, encode_checkpoint(&update.checkpoint).as_slice())?;
    Ok(())
}

fn encode_row(row: &SegmentRow) -> Vec<u8> {
    encode_fields(&[row.generation, row.first_seq, row.end, row.live], row.retired)
}

fn decode_row(bytes: &[u8]) -> Result<SegmentRow, redb::Error> {
    let bytes: &[u8; ROW_BYTES] = bytes.try_into().map_err(|_| damaged())?;
    Ok(SegmentRow {
        generation: u64_at(bytes, 0),
        first_seq: u64_at(bytes, 8),
        end: u64_at(bytes, 16),
        live: u64_at(bytes, 24),
        retired: bytes[32] != 0,
    })
}

fn encode_checkpoint(checkpoint: &Checkpoint) -> Vec<u8> {
    let Checkpoint { generation, offset, next_seq, blocks, names, clean } = *checkpoint;
    encode_fields(&[generation, offset, next_seq, blocks, names], clean)
}

fn decode_checkpoint(bytes: &[u8]) -> Result<Checkpoint, redb::Error> {
    let bytes: &[u8; CHECKPOINT_BYTES] = bytes.try_into().map_err(|_| damaged())?;
    Ok(Checkpoint {
        generation: u64_at(bytes, 0),
        offset: u64_at(bytes, 8),
        next_seq: u64_at(bytes, 16),
        blocks: u64_at(bytes, 24),
        names: u64_at(bytes, 32),
        clean: bytes[40] != 0,
    })
}

fn encode_unread(unread: &Unread) -> Vec<u8> {
    let ids = unread.ids.iter().flat_map(|id| id.to_le_bytes());
    ids.chain(unread.given_up.then_some(1)).collect()
}

fn decode_unread(bytes: &[u8]) -> Result<Unread, redb::Error> {
    let (ids, rest) = bytes.as_chunks();
    let given_up = match rest {
        [] => false,
        [1] => true,
        _ => return Err(damaged()),
    };
    Ok(Unread { ids: ids.iter().map(|id| u32::from_le_bytes(*id)).collect(), given_up })
}

/// Numbers and a mark.
fn encode_fields(fields: &[u64], mark: bool) -> Vec<u8> {
    fields.iter().flat_map(|field| field.to_le_bytes()).chain([u8::from(mark)]).collect()
}

fn failed(error: io::Error) -> IndexError {
    if crate::error::is_full(&error) {
        IndexError::Full
    } else if crate::error::lacks_means(&error) {
        IndexError::Passing(error.to_string())
    } else {
        IndexError::Failed(error.to_string())
    }
}

/// Something is not what was written, although its page passed the check.
fn damaged() -> redb::Error {
    redb::Error::Corrupted("an entry is not what was written".into())
}

/// Runs an operation of redb; an error or a panic of it becomes an [`IndexError`].
fn guarded<T>(operation: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, IndexError> {
    match catch_unwind(AssertUnwindSafe(operation)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(redb::Error::Io(error))) => Err(failed(error)),
        Ok(Err(error)) => Err(IndexError::Failed(error.to_string())),
        Err(_panic) => Err(IndexError::Failed("redb stopped on a damaged page".into())),
    }
}
