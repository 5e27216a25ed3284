//! The index over the log: where each block, name and setting lies.
//!
//! Duty: answer look-ups and ordered pages from redb, and take a memory table in one sorted, durable commit
//! per checkpoint. The layout is private to this module. It holds nothing that the log does not: an index
//! that can not be read is set aside by the caller and made again. Memory is redb's cache and one page of
//! answers. A panic inside redb on damaged pages is an error here, not the end of the process.

mod backend;
mod table;

pub(crate) use table::{Entry, Place, Table, texts_after};

use crate::Hash;
use crate::disk::{Disk, OpenMode};
use crate::format::{INDEX_NAME, StoreId, array_at, u32_at, u64_at};
use backend::Backend;
use redb::{Database, ReadOnlyTable, ReadableDatabase, ReadableTable, TableDefinition};
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

const PLACE_BYTES: usize = 20;
const ROW_BYTES: usize = 33;
const CHECKPOINT_BYTES: usize = 41;
/// The layout of the tables below; an index of another layout is made again.
const LAYOUT: u8 = 1;

type Bytes20 = &'static [u8; PLACE_BYTES];

const BLOCKS: TableDefinition<'_, &[u8; 32], Bytes20> = TableDefinition::new("blocks");
const NAMES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("names");
const CHANGES: TableDefinition<'_, u64, &str> = TableDefinition::new("changes");
const SETTINGS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("settings");
const SEGMENTS: TableDefinition<'_, u32, &[u8; ROW_BYTES]> = TableDefinition::new("segments");
const DAMAGED: TableDefinition<'_, &[u8; 32], ()> = TableDefinition::new("damaged");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

/// Why the index can not answer.
#[derive(Debug)]
pub(crate) enum IndexError {
    /// The device is full.
    Full,
    /// Anything else; the words are redb's or the operating system's.
    Failed(String),
}

impl IndexError {
    pub(crate) fn reason(self) -> String {
        match self {
            Self::Full => "the device is full".to_owned(),
            Self::Failed(reason) => reason,
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

/// Everything one checkpoint makes durable.
pub(crate) struct Update<'a> {
    pub(crate) table: &'a Table,
    pub(crate) checkpoint: Checkpoint,
    /// Segments to write, or with `None` to forget.
    pub(crate) segments: Vec<(u32, Option<SegmentRow>)>,
    /// The whole quarantine, if it changed.
    pub(crate) damaged: Option<BTreeSet<Hash>>,
}

/// An open index.
#[derive(Debug)]
pub(crate) struct Index<D: Disk> {
    database: Option<Database>,
    blocks: Option<ReadOnlyTable<&'static [u8; 32], Bytes20>>,
    backend: Backend<D::File>,
}

/// What an index says when it is opened.
#[derive(Debug, Default)]
pub(crate) struct Opened {
    /// None in a new or unfinished index.
    pub(crate) checkpoint: Option<Checkpoint>,
    pub(crate) segments: Vec<(u32, SegmentRow)>,
    pub(crate) damaged: BTreeSet<Hash>,
}

impl<D: Disk> Index<D> {
    /// Opens the index file, or makes it if there is none.
    pub(crate) fn open(disk: &D, cache_bytes: usize, store: &StoreId) -> Result<(Self, Opened), IndexError> {
        let file = match disk.open(INDEX_NAME, OpenMode::ReadWrite) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => disk.open(INDEX_NAME, OpenMode::Create),
            other => other,
        };
        let backend = Backend::new(file.map_err(failed)?);
        let handle = backend.clone();
        let (database, opened) = guarded(|| {
            let mut database = Database::builder();
            let database = database.set_cache_size(cache_bytes).create_with_backend(handle)?;
            let opened = read_opening(&database, store)?;
            Ok((database, opened))
        })
        .map_err(|error| if backend.met_full() { IndexError::Full } else { error })?;
        let opened =
            opened.ok_or_else(|| IndexError::Failed("it belongs to another store or layout".into()))?;
        Ok((Self { database: Some(database), blocks: None, backend }, opened))
    }

    pub(crate) fn block(&mut self, hash: &Hash) -> Result<Option<Place>, IndexError> {
        if self.blocks.is_none() {
            self.blocks = Some(guarded(|| Ok(self.database()?.begin_read()?.open_table(BLOCKS)?))?);
        }
        let Some(blocks) = &self.blocks else { return Ok(None) };
        guarded(|| Ok(blocks.get(hash)?.map(|value| decode_place(value.value()))))
    }

    pub(crate) fn blocks_after(
        &self,
        after: Option<&Hash>,
        limit: usize,
    ) -> Result<Vec<(Hash, Place)>, IndexError> {
        guarded(|| {
            let table = self.database()?.begin_read()?.open_table(BLOCKS)?;
            let range = match after {
                Some(hash) => {
                    table.range::<&[u8; 32]>((std::ops::Bound::Excluded(hash), std::ops::Bound::Unbounded))?
                }
                None => table.range::<&[u8; 32]>(..)?,
            };
            let decode = |item: Result<(_, _), redb::StorageError>| {
                let (key, value): (redb::AccessGuard<'_, &[u8; 32]>, redb::AccessGuard<'_, Bytes20>) = item?;
                Ok((*key.value(), decode_place(value.value())))
            };
            range.take(limit).map(decode).collect()
        })
    }

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
                let (seq, name) = item?;
                if !skip(name.value()) {
                    changes.push((seq.value(), name.value().to_owned()));
                }
                if changes.len() >= limit {
                    break;
                }
            }
            Ok(changes)
        })
    }

    /// Makes a memory table durable: one sorted commit.
    pub(crate) fn write(&mut self, update: &Update<'_>) -> Result<(), IndexError> {
        self.blocks = None;
        guarded(|| {
            let mut transaction = self.database()?.begin_write()?;
            // The allocator state is kept with the commit: opening after a power cut reads no tree.
            transaction.set_quick_repair(true);
            write_table(&transaction, update.table)?;
            write_rows(&transaction, update)?;
            transaction.commit()?;
            Ok(())
        })
        .map_err(|error| if self.backend.met_full() { IndexError::Full } else { error })
    }

    /// Closes the file; every later question is an error.
    pub(crate) fn shut(&mut self) {
        self.blocks = None;
        // A database that failed before may panic while it closes; its content is in the log anyway.
        let database = self.database.take();
        let _closed = catch_unwind(AssertUnwindSafe(|| drop(database)));
    }

    pub(crate) fn is_shut(&self) -> bool {
        self.database.is_none()
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
        self.database.as_ref().ok_or_else(|| redb::Error::Corrupted("the index is closed".into()))
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

impl<D: Disk> Drop for Index<D> {
    fn drop(&mut self) {
        self.shut();
    }
}

/// None if it is of another store or layout.
fn read_opening(database: &Database, store: &StoreId) -> Result<Option<Opened>, redb::Error> {
    let transaction = database.begin_read()?;
    let meta = match transaction.open_table(META) {
        Ok(meta) => meta,
        Err(redb::TableError::TableDoesNotExist(_)) => {
            create_tables(database, store)?;
            return Ok(Some(Opened::default()));
        }
        Err(error) => return Err(error.into()),
    };
    let belongs = meta.get("store")?.is_some_and(|value| value.value() == store)
        && meta.get("layout")?.is_some_and(|value| value.value() == [LAYOUT]);
    if !belongs {
        return Ok(None);
    }
    let checkpoint = meta.get("checkpoint")?.and_then(|value| decode_checkpoint(value.value()));
    let mut opened = Opened { checkpoint, ..Opened::default() };
    for item in transaction.open_table(SEGMENTS)?.iter()? {
        let (id, row) = item?;
        opened.segments.push((id.value(), decode_row(row.value())));
    }
    for item in transaction.open_table(DAMAGED)?.iter()?.take(crate::limits::DAMAGED_MAX) {
        opened.damaged.insert(*item?.0.value());
    }
    Ok(Some(opened))
}

fn create_tables(database: &Database, store: &StoreId) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut meta = transaction.open_table(META)?;
        meta.insert("store", store.as_slice())?;
        meta.insert("layout", [LAYOUT].as_slice())?;
        transaction.open_table(BLOCKS)?;
        transaction.open_table(NAMES)?;
        transaction.open_table(CHANGES)?;
        transaction.open_table(SETTINGS)?;
        transaction.open_table(SEGMENTS)?;
        transaction.open_table(DAMAGED)?;
    }
    transaction.commit()?;
    Ok(())
}

fn write_table(transaction: &redb::WriteTransaction, table: &Table) -> Result<(), redb::Error> {
    let mut blocks = transaction.open_table(BLOCKS)?;
    for (hash, place) in table.blocks() {
        match place {
            Some(place) => drop(blocks.insert(hash, &encode_place(place))?),
            None => drop(blocks.remove(hash)?),
        }
    }
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
            changes.insert(entry.place.seq, name.as_str())?;
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

fn write_rows(transaction: &redb::WriteTransaction, update: &Update<'_>) -> Result<(), redb::Error> {
    let mut segments = transaction.open_table(SEGMENTS)?;
    for (id, row) in &update.segments {
        match row {
            Some(row) => drop(segments.insert(id, &encode_row(row))?),
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
    transaction.open_table(META)?.insert("checkpoint", encode_checkpoint(&update.checkpoint).as_slice())?;
    Ok(())
}

fn encode_place(place: &Place) -> [u8; PLACE_BYTES] {
    let mut bytes = [0; PLACE_BYTES];
    bytes[..8].copy_from_slice(&place.seq.to_le_bytes());
    bytes[8..12].copy_from_slice(&place.segment.to_le_bytes());
    bytes[12..16].copy_from_slice(&place.offset.to_le_bytes());
    bytes[16..].copy_from_slice(&place.length.to_le_bytes());
    bytes
}

fn decode_place(bytes: &[u8; PLACE_BYTES]) -> Place {
    Place {
        seq: u64_at(bytes, 0),
        segment: u32_at(bytes, 8),
        offset: u32_at(bytes, 12),
        length: u32_at(bytes, 16),
    }
}

fn encode_entry(entry: &Entry) -> Vec<u8> {
    [encode_place(&entry.place).as_slice(), &entry.value].concat()
}

fn decode_entry(bytes: &[u8]) -> Result<Entry, redb::Error> {
    let (place, value) = bytes
        .split_first_chunk::<PLACE_BYTES>()
        .ok_or_else(|| redb::Error::Corrupted("an entry is too short".into()))?;
    Ok(Entry { place: decode_place(place), value: bytes::Bytes::copy_from_slice(value) })
}

fn encode_row(row: &SegmentRow) -> [u8; ROW_BYTES] {
    let mut bytes = [0; ROW_BYTES];
    for (number, field) in [row.generation, row.first_seq, row.end, row.live].into_iter().enumerate() {
        bytes[number * 8..number * 8 + 8].copy_from_slice(&field.to_le_bytes());
    }
    bytes[32] = u8::from(row.retired);
    bytes
}

fn decode_row(bytes: &[u8; ROW_BYTES]) -> SegmentRow {
    SegmentRow {
        generation: u64_at(bytes, 0),
        first_seq: u64_at(bytes, 8),
        end: u64_at(bytes, 16),
        live: u64_at(bytes, 24),
        retired: bytes[32] != 0,
    }
}

fn encode_checkpoint(checkpoint: &Checkpoint) -> [u8; CHECKPOINT_BYTES] {
    let mut bytes = [0; CHECKPOINT_BYTES];
    let Checkpoint { generation, offset, next_seq, blocks, names, clean } = *checkpoint;
    let fields = [generation, offset, next_seq, blocks, names];
    for (number, field) in fields.into_iter().enumerate() {
        bytes[number * 8..number * 8 + 8].copy_from_slice(&field.to_le_bytes());
    }
    bytes[40] = u8::from(clean);
    bytes
}

fn decode_checkpoint(bytes: &[u8]) -> Option<Checkpoint> {
    (bytes.len() == CHECKPOINT_BYTES).then(|| {
        let bytes: [u8; CHECKPOINT_BYTES] = array_at(bytes, 0);
        Checkpoint {
            generation: u64_at(&bytes, 0),
            offset: u64_at(&bytes, 8),
            next_seq: u64_at(&bytes, 16),
            blocks: u64_at(&bytes, 24),
            names: u64_at(&bytes, 32),
            clean: bytes[40] != 0,
        }
    })
}

fn failed(error: io::Error) -> IndexError {
    if crate::error::is_full(&error) { IndexError::Full } else { IndexError::Failed(error.to_string()) }
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
