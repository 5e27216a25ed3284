//! Opening: find out whose directory it is, get an index that fits the segments, read the rest of the log.
//!
//! Duty: start on whatever a power cut or a bad device left. It refuses a directory that another process
//! holds, that can not be written, or that a newer program wrote; damage it reports. An index that does
//! not open, belongs to another store or does not fit the segments is set aside and made again.

use super::maintain::{fresh_index, open_index, other_bytes};
use super::status::Counters;
use super::{ByBytes, Store};
use crate::disk::{Disk, DiskFile, Listed, OpenMode};
use crate::error::{MaintainError, OpenError, says_nothing_of_the_file};
use crate::format::{
    Decoded, FORMAT_VERSION, INDEX_NAME, LOCK_NAME, OBSOLETE_NAMES, SEGMENT_HEADER_BYTES, SUPERBLOCK_BYTES,
    SUPERBLOCK_NAME, SegmentHeader, StoreId, decode_superblock, encode_superblock, segment_name,
    unreadable_name, unreadable_number,
};
use crate::index::{Checkpoint, Index, IndexError, Opened, SegmentRow, Table};
use crate::options::Options;
use crate::segments::{SegmentFile, Segments, list_files, sync_dir_again};
use crate::spares::Spares;
use quick_cache::unsync::Cache;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::sync::Arc;

/// What opening found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OpenReport {
    /// The store is new.
    pub created: bool,
    /// It had been closed; nothing had to be read again.
    pub clean: bool,
    /// Batches read behind the last checkpoint.
    pub replayed_batches: u64,
    /// Records in them.
    pub replayed_records: u64,
    /// The newest segment ended in a batch that was never acknowledged; it was dropped.
    pub torn: bool,
    /// Bytes of the log that are not what was written.
    pub damaged_bytes: u64,
    /// Records saved from them.
    pub salvaged_records: u64,
    /// Blocks among them that can not be read until they are put again.
    pub damaged_blocks: u64,
    /// Why the index was made again from the log.
    pub index_rebuilt: Option<String>,
    /// The superblock was written again from a segment's header.
    pub superblock_restored: bool,
    /// Segment files in which nothing of this store was found; they are left alone.
    pub unreadable_files: Vec<String>,
}

/// Makes the index again from the log alone, and says what the log held. What it can not read either holds no cleaning
/// up any more.
///
/// # Errors
/// As for [`Store::open`].
pub fn rebuild_index<D: Disk>(disk: D, options: Options) -> Result<OpenReport, OpenError> {
    let (mut store, report) = open(disk, options, Some("a rebuild was asked for"))?;
    store.segments.give_up_unread();
    let disk = Arc::clone(&store.disk);
    store.close().map_err(|error| {
        let is_full = matches!(error, MaintainError::Full { .. });
        let failed = if is_full { IndexError::Full } else { IndexError::Failed(error.to_string()) };
        index_error(disk.as_ref(), failed)
    })?;
    Ok(report)
}

impl<D: Disk> Store<D> {
    /// Opens a store, or makes one if the options say so.
    ///
    /// # Errors
    /// Locked, read-only, missing, of a newer format, an impossible option, or failing I/O. Damage to what is
    /// stored is none of them.
    pub fn open(disk: D, options: Options) -> Result<(Self, OpenReport), OpenError> {
        open(disk, options, None)
    }

    /// Brings index and log together.
    fn start(&mut self, opened: Opened, report: &mut OpenReport) -> Result<(), IndexError> {
        let checkpoint = opened.checkpoint.unwrap_or_default();
        self.checkpoint = checkpoint;
        self.next_seq = self.next_seq.max(checkpoint.next_seq);
        (self.blocks, self.names) = (checkpoint.blocks, checkpoint.names);
        self.damaged = opened.damaged;
        self.segments.take_unread(opened.unread);
        let newest = self.segments.newest().map(|(id, segment)| (id, segment.row.generation));
        if checkpoint.clean && newest.map_or(0, |(_, generation)| generation) == checkpoint.generation {
            report.clean = true;
            // The log ends where the closing checkpoint says.
            if let Some(segment) = newest.and_then(|(id, _)| self.segments.get_mut(id)) {
                (segment.row.end, segment.end_known) = (checkpoint.offset, true);
            }
            return Ok(());
        }
        self.replay(&checkpoint, report)
    }

    /// Goes on where the log ends. What a torn batch left there is written over; cutting it off would take
    /// away what was prepared, or is recycled.
    fn resume(&mut self) -> io::Result<()> {
        // What can not be freed now is freed with the next cleaning.
        let _put_off = self.segments.free_retired();
        self.segments.resume(self.options.segment_bytes)
    }
}

/// What a start made durable before it read the log.
#[derive(Default)]
struct Settled {
    syncs: u64,
    /// From this generation on nothing is, and why.
    failed: Option<(u64, String)>,
}

/// What will be read must be durable before anything is built on it, its name included: a process may have died
/// between a write or rename and its sync, or behind a sync that failed, and a put of what it wrote, or a batch in a
/// file whose name the power takes back, would be acknowledged and lost.
fn settle<D: Disk>(
    disk: &D,
    files: &mut [SegmentFile],
    rows: &BTreeMap<u32, SegmentRow>,
    checkpoint: &Checkpoint,
) -> io::Result<Settled> {
    let mut settled = Settled::default();
    #[cfg(planted)]
    if crate::planted::is(crate::planted::Bug::NoSettle) {
        return Ok(settled);
    }
    let generation_of = |file: &SegmentFile| file.generation(rows.get(&file.id));
    let Some(newest) = files.iter().map(generation_of).max() else { return Ok(settled) };
    // Where a file is gone and its row is not, the sync in between failed before it was closed.
    let is_gone = |id: &u32| files.binary_search_by_key(id, |file| file.id).is_err();
    if checkpoint.clean && newest == checkpoint.generation && !rows.keys().any(is_gone) {
        return Ok(settled);
    }
    match sync_dir_again(disk) {
        Ok(()) => {}
        Err(error) if says_nothing_of_the_file(&error) => return Err(error),
        // no segment behind the checkpoint has been settled yet
        Err(error) => {
            let reason = format!("syncing the directory failed: {error}");
            settled.failed = Some((checkpoint.generation, reason));
            return Ok(settled);
        }
    }
    for file in files.iter_mut() {
        let generation = generation_of(file);
        if generation < checkpoint.generation {
            continue;
        }
        settled.syncs += 1;
        match file.settle(disk) {
            Ok(()) => {}
            Err(error) if says_nothing_of_the_file(&error) => return Err(error),
            Err(error) => {
                let reason = format!("syncing {} failed: {error}", segment_name(file.id));
                settled.failed = Some((generation, reason));
                break;
            }
        }
    }
    Ok(settled)
}

fn open<D: Disk>(
    disk: D,
    options: Options,
    rebuild: Option<&str>,
) -> Result<(Store<D>, OpenReport), OpenError> {
    options.check()?;
    let disk = Arc::new(disk);
    match open_once(&disk, &options, rebuild) {
        Err(error) if error.is_full() => {
            let listed = disk.list().map_err(io_error(disk.as_ref(), "listing files"))?;
            let mut spares = Spares::load(Arc::clone(&disk), &options, &listed);
            if spares.give_back(0) { open_once(&disk, &options, rebuild) } else { Err(error) }
        }
        other => other,
    }
}

fn open_once<D: Disk>(
    disk: &Arc<D>,
    options: &Options,
    rebuild: Option<&str>,
) -> Result<(Store<D>, OpenReport), OpenError> {
    let failed = |doing: &str| io_error(disk.as_ref(), doing);
    let lock = lock(disk.as_ref())?;
    let listed = disk.list().map_err(failed("listing files"))?;
    let mut files = list_files(disk.as_ref(), &listed).map_err(failed("reading segment headers"))?;
    let mut report = OpenReport::default();
    let id = identify(disk.as_ref(), &listed, &files, options.create, &mut report)?;
    let set_aside = if report.created { set_aside(disk.as_ref(), &listed, &mut files)? } else { Vec::new() };
    for file in listed.iter().filter(|file| OBSOLETE_NAMES.contains(&file.name.as_str())) {
        // If it stays, it goes the next time.
        let _put_off = disk.remove(&file.name);
    }
    let (index, opened, rebuilt) = fitting_index(disk.as_ref(), options, &id, &files, &listed, rebuild)?;
    report.index_rebuilt = rebuilt;
    let rows: BTreeMap<u32, SegmentRow> = opened.segments.iter().copied().collect();
    let checkpoint = opened.checkpoint.unwrap_or_default();
    let settled =
        settle(disk.as_ref(), &mut files, &rows, &checkpoint).map_err(failed("reading segments"))?;
    let spares = Spares::load(Arc::clone(disk), options, &listed);
    let (mut segments, unreadable) =
        Segments::load(Arc::clone(disk), id, &files, spares, &rows, checkpoint.generation)
            .map_err(failed("reading segments"))?;
    if let Some(reason) = late_misfit(&segments, &rows, &checkpoint) {
        drop((lock, index, segments));
        return open_once(disk, options, Some(&reason));
    }
    report.unreadable_files = [set_aside, unreadable].concat();
    segments.forgotten = rows.keys().copied().filter(|id| segments.get(*id).is_none()).collect();
    let mut store = empty_store(Arc::clone(disk), lock, options.clone(), id, segments, index);
    store.counters.log_syncs += settled.syncs;
    if let Some((generation, reason)) = settled.failed {
        (store.unsettled, store.stopped) = (Some(generation), Some(reason));
    }
    match store.start(opened, &mut report) {
        Ok(()) => {}
        Err(IndexError::Failed(reason)) => {
            // the replay may have gone half its way: opened again it would lack the rest
            store.index_incomplete = true;
            store.heal_index(reason.clone()).map_err(|error| index_error(disk.as_ref(), error))?;
            report.index_rebuilt = Some(reason);
        }
        Err(error @ (IndexError::Full | IndexError::Passing(_))) => {
            return Err(index_error(disk.as_ref(), error));
        }
    }
    if !report.unreadable_files.is_empty() {
        store.skip_numbers();
    }
    // It may hold what is newer than anything that is known.
    if let Some(file) = files.iter().find(|file| !file.opens && store.segments.get(file.id).is_none()) {
        store.stopped.get_or_insert_with(|| format!("{} could not be read", segment_name(file.id)));
    }
    store.resume().map_err(failed("opening the newest segment"))?;
    store.counters.index_rebuilt = report.index_rebuilt.clone();
    store.counters.add_damage(&report);
    if report.index_rebuilt.is_some() || store.needs_checkpoint() {
        // Without room for it the log is read again at the next start.
        let _tried = store.checkpoint();
    }
    if report.index_rebuilt.is_some() {
        store.make_room_for_reserve();
    }
    store.lower_ceiling();
    Ok((store, report))
}

fn empty_store<D: Disk>(
    disk: Arc<D>,
    lock: D::File,
    options: Options,
    id: StoreId,
    segments: Segments<D>,
    index: Index<D>,
) -> Store<D> {
    let items = usize::try_from(options.cache_bytes / 16_384).unwrap_or(usize::MAX).max(16);
    Store {
        other_bytes: other_bytes(disk.as_ref()),
        cache: Cache::with_weighter(items, options.cache_bytes, ByBytes),
        disk,
        _lock: lock,
        id,
        segments,
        index,
        table: Table::default(),
        ceiling_bytes: u64::MAX,
        options,
        index_incomplete: false,
        next_seq: 1,
        blocks: 0,
        names: 0,
        damaged: BTreeSet::new(),
        damaged_changed: false,
        checkpoint: Checkpoint::default(),
        log_since_checkpoint: 0,
        cleaning: None,
        stopped: None,
        unsettled: None,
        end_untold: false,
        counters: Counters::default(),
    }
}

fn lock<D: Disk>(disk: &D) -> Result<D::File, OpenError> {
    disk.lock(LOCK_NAME).map_err(|source| {
        if source.kind() == io::ErrorKind::WouldBlock {
            OpenError::Locked { directory: disk.location() }
        } else {
            io_error(disk, "locking")(source)
        }
    })
}

/// The store's id: from the superblock, or from a segment if the superblock is gone, or a new one.
fn identify<D: Disk>(
    disk: &D,
    listed: &[Listed],
    files: &[SegmentFile],
    create: bool,
    report: &mut OpenReport,
) -> Result<StoreId, OpenError> {
    let directory = disk.location();
    let newer =
        |found| OpenError::NewerFormat { directory: disk.location(), found, supported: FORMAT_VERSION };
    let superblock = read_superblock(disk, listed);
    // a segment of a newer program would otherwise pass for one that was being made, and be removed
    let segment = files.iter().find_map(|file| match file.header {
        Decoded::Newer(found) => Some(found),
        Decoded::Whole(_) | Decoded::Damaged => None,
    });
    if let Some(found) = segment {
        return Err(newer(found));
    }
    match superblock {
        Ok(Some(Decoded::Whole(id))) => return Ok(id),
        Ok(Some(Decoded::Newer(found))) => return Err(newer(found)),
        Ok(Some(Decoded::Damaged) | None) | Err(_) => {}
    }
    for file in files {
        match file.header {
            Decoded::Whole(header) => {
                // Where it can not be written, the next start asks a segment again.
                report.superblock_restored = write_superblock(disk, &header.store).is_ok();
                return Ok(header.store);
            }
            Decoded::Newer(_) | Decoded::Damaged => {}
        }
    }
    // It may be readable the next time.
    superblock.map_err(io_error(disk, "reading the superblock"))?;
    let begins_anew = create && files.iter().all(|file| holds_no_header(disk, file));
    if !files.is_empty() && !begins_anew {
        return Err(OpenError::Unrecognised { directory });
    }
    if !create {
        return Err(OpenError::Missing { directory });
    }
    let mut id = [0; 16];
    let unsupported = |error| io_error(disk, "asking for random bytes")(io::Error::other(error));
    getrandom::fill(&mut id).map_err(unsupported)?;
    write_superblock(disk, &id)?;
    report.created = true;
    Ok(id)
}

/// The first page can be read and is no header; a page that can not be read now, or could not before, may be one.
fn holds_no_header<D: Disk>(disk: &D, file: &SegmentFile) -> bool {
    let mut page = [0; SEGMENT_HEADER_BYTES];
    match disk.open(&segment_name(file.id), OpenMode::Read).and_then(|opened| opened.read_at(&mut page, 0)) {
        Ok(()) => !matches!(SegmentHeader::decode(&page), Decoded::Whole(header) if header.id == file.id),
        Err(error) => error.kind() == io::ErrorKind::UnexpectedEof,
    }
}

/// Without the id no record can be told from chance: the files are kept for a look, and the store begins anew.
fn set_aside<D: Disk>(
    disk: &D,
    listed: &[Listed],
    files: &mut Vec<SegmentFile>,
) -> Result<Vec<String>, OpenError> {
    let taken = listed.iter().filter_map(|file| unreadable_number(&file.name)).max();
    let numbers = taken.map_or(0, |number| number + 1)..;
    let mut names = Vec::new();
    for (file, number) in files.drain(..).zip(numbers) {
        let name = unreadable_name(number);
        disk.rename(&segment_name(file.id), &name).map_err(io_error(disk, "setting a segment aside"))?;
        names.push(name);
    }
    disk.sync_dir().map_err(io_error(disk, "setting segments aside"))?;
    Ok(names)
}

fn read_superblock<D: Disk>(disk: &D, listed: &[Listed]) -> io::Result<Option<Decoded<StoreId>>> {
    if !listed.iter().any(|file| file.name == SUPERBLOCK_NAME) {
        return Ok(None);
    }
    let mut bytes = [0; SUPERBLOCK_BYTES];
    match disk.open(SUPERBLOCK_NAME, OpenMode::Read)?.read_at(&mut bytes, 0) {
        Ok(()) => Ok(Some(decode_superblock(&bytes))),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(Some(Decoded::Damaged)),
        Err(error) => Err(error),
    }
}

fn write_superblock<D: Disk>(disk: &D, id: &StoreId) -> Result<(), OpenError> {
    let written = disk.open(SUPERBLOCK_NAME, OpenMode::Create).and_then(|file| {
        file.write_gathered(&[IoSlice::new(&encode_superblock(id))], 0)?;
        file.sync_data()?;
        disk.sync_dir()
    });
    written.map_err(io_error(disk, "writing the superblock"))
}

type Fitting<D> = (Index<D>, Opened, Option<String>);

/// The index, made anew if it does not open or does not fit the segments; and why.
fn fitting_index<D: Disk>(
    disk: &D,
    options: &Options,
    id: &StoreId,
    files: &[SegmentFile],
    listed: &[Listed],
    rebuild: Option<&str>,
) -> Result<Fitting<D>, OpenError> {
    let missing = !files.is_empty() && !listed.iter().any(|file| file.name == INDEX_NAME && file.length > 0);
    let found = match rebuild {
        Some(reason) => Err(IndexError::Failed(reason.into())),
        None if missing => Err(IndexError::Failed(format!("{INDEX_NAME} was missing or empty"))),
        // A device that failed once may read again what is whole.
        None => match open_index(disk, options, id) {
            Err(IndexError::Failed(_)) => open_index(disk, options, id),
            found => found,
        },
    };
    let reason = match found {
        Ok((index, opened)) => match misfit(&opened, files) {
            None => return Ok((index, opened, None)),
            Some(reason) => reason,
        },
        Err(IndexError::Failed(reason)) => reason,
        Err(error @ (IndexError::Full | IndexError::Passing(_))) => return Err(index_error(disk, error)),
    };
    let index = fresh_index(disk, options, id).map_err(|error| index_error(disk, error))?;
    Ok((index, Opened::default(), Some(reason)))
}

/// Why index and segments do not belong together.
fn misfit(opened: &Opened, files: &[SegmentFile]) -> Option<String> {
    let Some(checkpoint) = opened.checkpoint else {
        // A store that was never checkpointed has nothing in its index, and its whole log is read.
        return None;
    };
    let rows: BTreeMap<u32, SegmentRow> = opened.segments.iter().copied().collect();
    // What was emptied was sealed before, and its file goes because the row says so.
    if let Some((id, _)) = rows.iter().find(|(_, row)| row.retired && row.generation >= checkpoint.generation)
    {
        return Some(format!("it gives up {}, which is the newest it knows", segment_name(*id)));
    }
    let headers: BTreeMap<u32, _> = files.iter().map(|file| (file.id, file.header)).collect();
    for (id, row) in rows.iter().filter(|(_, row)| !row.retired) {
        let name = segment_name(*id);
        match headers.get(id) {
            None => return Some(format!("it refers to {name}, which is not there")),
            Some(Decoded::Whole(header)) if header.generation != row.generation => {
                return Some(format!("it knows another {name}"));
            }
            Some(Decoded::Whole(_) | Decoded::Newer(_) | Decoded::Damaged) => {}
        }
    }
    let unknown = files.iter().find(|file| match file.header {
        Decoded::Whole(header) => header.generation <= checkpoint.generation && !rows.contains_key(&file.id),
        Decoded::Newer(_) | Decoded::Damaged => false,
    });
    unknown.map(|file| not_known(file.id))
}

/// The same of a segment whose header is damaged, so that only its records tell that it is one. What they say is in no
/// table, and nobody would read them: it would pass for empty.
fn late_misfit<D: Disk>(
    segments: &Segments<D>,
    rows: &BTreeMap<u32, SegmentRow>,
    checkpoint: &Checkpoint,
) -> Option<String> {
    let mut settled = segments.iter().filter(|(_, segment)| segment.row.generation <= checkpoint.generation);
    settled.find(|(id, _)| !rows.contains_key(id)).map(|(id, _)| not_known(id))
}

fn not_known(id: u32) -> String {
    format!("it does not know {}", segment_name(id))
}

fn index_error<D: Disk>(disk: &D, error: IndexError) -> OpenError {
    match error {
        IndexError::Full => {
            let full = "the device is full; make room on it, then start again";
            io_error(disk, "making the index")(io::Error::new(io::ErrorKind::StorageFull, full))
        }
        IndexError::Passing(reason) | IndexError::Failed(reason) => {
            OpenError::Index { directory: disk.location(), reason }
        }
    }
}

fn io_error<D: Disk>(disk: &D, doing: &str) -> impl Fn(io::Error) -> OpenError + use<D> {
    let (doing, directory) = (doing.to_owned(), disk.location());
    move |source| {
        let (doing, directory) = (doing.clone(), directory.clone());
        if matches!(source.kind(), io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied) {
            OpenError::ReadOnly { directory, reason: source.to_string() }
        } else {
            OpenError::Io { doing, directory, source }
        }
    }
}
