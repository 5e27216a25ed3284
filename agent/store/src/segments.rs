//! The segment files: which there are, which one is open, and how many bytes they take.
//!
//! Duty: make, prepare, append to, seal, read and remove segment files. A segment whose write or sync failed
//! is cut back to its last acknowledged byte and never written again; the next header says where it ended.
//! Memory: one row per segment, and a bounded number of open files.

use crate::disk::{Disk, DiskFile, Listed, OpenMode};
use crate::format::{Decoded, SEGMENT_HEADER_BYTES, SegmentHeader, StoreId, salt, segment_id, segment_name};
use crate::index::SegmentRow;
use crate::limits::{OPEN_FILES_MAX, PAGE_BYTES};
use crate::options::Prepare;
use crate::scan::Reader;
use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::sync::Arc;

/// Bytes written at once when a fresh segment is zeroed.
const ZERO_BYTES: usize = 1 << 20;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    pub(crate) row: SegmentRow,
    /// The row differs from the one in the index.
    pub(crate) changed: bool,
    /// `row.end` is known to be the end; otherwise the log may end before.
    pub(crate) end_known: bool,
    /// Holds bytes that are no records; it is not cleaned, because something live may hide there.
    pub(crate) damaged: bool,
    pub(crate) disk_bytes: u64,
    header_whole: bool,
}

#[derive(Debug)]
struct Open<F> {
    id: u32,
    file: F,
}

/// All segments of a store.
#[derive(Debug)]
pub(crate) struct Segments<D: Disk> {
    disk: Arc<D>,
    store: StoreId,
    all: BTreeMap<u32, Segment>,
    open: Option<Open<D::File>>,
    /// Most recently used last.
    readers: Vec<(u32, D::File)>,
    next_id: u32,
    next_generation: u64,
    /// Files that are gone and rows that the index still has.
    pub(crate) forgotten: Vec<u32>,
}

/// A segment file as the directory shows it.
#[derive(Debug)]
pub(crate) struct SegmentFile {
    pub(crate) id: u32,
    length: u64,
    disk_bytes: u64,
    pub(crate) header: Decoded<SegmentHeader>,
}

/// Reads the header of every segment file.
pub(crate) fn list_files<D: Disk>(disk: &D, listed: &[Listed]) -> io::Result<Vec<SegmentFile>> {
    let mut files = Vec::new();
    for (id, length) in listed.iter().filter_map(|file| Some((segment_id(&file.name)?, file.length))) {
        let file = disk.open(&segment_name(id), OpenMode::Read)?;
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        let header = match file.read_at(&mut bytes, 0) {
            Ok(()) => SegmentHeader::decode(&bytes),
            Err(_unreadable) => Decoded::Damaged,
        };
        files.push(SegmentFile { id, length, disk_bytes: file.bytes_on_disk()?, header });
    }
    files.sort_by_key(|file| file.id);
    Ok(files)
}

impl<D: Disk> Segments<D> {
    /// Brings files and index rows together. Files that hold no record of this store are answered by name.
    pub(crate) fn load(
        disk: Arc<D>,
        store: StoreId,
        files: &[SegmentFile],
        rows: &BTreeMap<u32, SegmentRow>,
        checkpoint_generation: u64,
    ) -> io::Result<(Self, Vec<String>)> {
        let next_id =
            files.iter().map(|file| file.id).chain(rows.keys().copied()).max().map_or(0, |id| id + 1);
        let all = BTreeMap::new();
        let (open, readers, forgotten) = (None, Vec::new(), Vec::new());
        let mut segments = Self { disk, store, all, open, readers, next_id, next_generation: 1, forgotten };
        let mut unreadable = Vec::new();
        for file in files {
            match segments.segment_of(file, rows.get(&file.id), checkpoint_generation)? {
                Some(segment) => drop(segments.all.insert(file.id, segment)),
                None if file.id + 1 == next_id && segments.reads_whole(file) => {
                    segments.disk.remove(&segment_name(file.id))?;
                }
                None => unreadable.push(segment_name(file.id)),
            }
        }
        segments.learn_ends(files);
        let newest = segments.all.values().map(|segment| segment.row.generation);
        let newest = newest.chain(rows.values().map(|row| row.generation)).max().unwrap_or(0);
        segments.next_generation = newest + 1 + unreadable.len() as u64;
        Ok((segments, unreadable))
    }

    fn segment_of(
        &self,
        file: &SegmentFile,
        row: Option<&SegmentRow>,
        checkpoint_generation: u64,
    ) -> io::Result<Option<Segment>> {
        let header = match file.header {
            Decoded::Whole(header) if header.store == self.store && header.id == file.id => Some(header),
            Decoded::Whole(_) | Decoded::Newer(_) | Decoded::Damaged => None,
        };
        let row = match (row, header) {
            (Some(row), _) if row.generation < checkpoint_generation => *row,
            (Some(row), _) => SegmentRow { end: file.length, ..*row },
            (None, Some(header)) => SegmentRow {
                generation: header.generation,
                first_seq: header.first_seq,
                end: file.length,
                live: 0,
                retired: false,
            },
            (None, None) => {
                let opened = self.disk.open(&segment_name(file.id), OpenMode::Read)?;
                let found = Reader::any_record(opened, salt(&self.store), file.length);
                let Some((generation, first_seq)) = found else { return Ok(None) };
                SegmentRow { generation, first_seq, end: file.length, live: 0, retired: false }
            }
        };
        Ok(Some(Segment {
            row,
            changed: true,
            end_known: row.generation < checkpoint_generation,
            damaged: false,
            disk_bytes: file.disk_bytes,
            header_whole: header.is_some(),
        }))
    }

    fn reads_whole(&self, file: &SegmentFile) -> bool {
        let opened = self.disk.open(&segment_name(file.id), OpenMode::Read);
        opened.is_ok_and(|opened| Reader::new(opened, 0, 0, file.length).reads_whole())
    }

    /// Keeps a segment out of the index; its file stays.
    pub(crate) fn leave_out(&mut self, id: u32) {
        self.all.remove(&id);
        self.forgotten.push(id);
        self.open.take_if(|open| open.id == id);
    }

    /// A segment's end is in the header of the one that was made after it.
    fn learn_ends(&mut self, files: &[SegmentFile]) {
        let lengths: BTreeMap<u32, u64> = files.iter().map(|file| (file.id, file.length)).collect();
        for file in files {
            let Decoded::Whole(header) = file.header else { continue };
            let previous =
                self.all.iter_mut().find(|(_, segment)| segment.row.generation == header.previous_generation);
            if let Some((id, segment)) = previous {
                segment.row.end = header.previous_end.min(lengths.get(id).copied().unwrap_or(0));
                segment.end_known = true;
            }
        }
    }

    pub(crate) fn get(&self, id: u32) -> Option<&Segment> {
        self.all.get(&id)
    }

    pub(crate) fn get_mut(&mut self, id: u32) -> Option<&mut Segment> {
        self.all.get_mut(&id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &Segment)> {
        self.all.iter().map(|(id, segment)| (*id, segment))
    }

    /// Identifiers from the oldest generation to the newest.
    pub(crate) fn in_order(&self) -> Vec<u32> {
        let mut order: Vec<(u64, u32)> =
            self.all.iter().map(|(id, segment)| (segment.row.generation, *id)).collect();
        order.sort_unstable();
        order.into_iter().map(|(_, id)| id).collect()
    }

    pub(crate) fn count(&self) -> usize {
        self.all.len()
    }

    /// Bytes all segment files take on the device.
    pub(crate) fn disk_bytes(&self) -> u64 {
        let open = self.open.as_ref().map(|open| open.id);
        let sealed: u64 = self.iter().filter(|(id, _)| Some(*id) != open).map(|(_, s)| s.disk_bytes).sum();
        sealed + self.open_disk_bytes()
    }

    /// The open segment: its number, generation and end.
    pub(crate) fn open_segment(&self) -> Option<(u32, u64, u64)> {
        let open = self.open.as_ref()?;
        self.all.get(&open.id).map(|segment| (open.id, segment.row.generation, segment.row.end))
    }

    /// What the open segment takes on the device, prepared bytes included.
    pub(crate) fn open_disk_bytes(&self) -> u64 {
        self.open.as_ref().and_then(|open| open.file.bytes_on_disk().ok()).unwrap_or(0)
    }

    /// The segment that was open last, whether it still is or not.
    pub(crate) fn newest(&self) -> Option<(u32, &Segment)> {
        self.iter().max_by_key(|(_, segment)| segment.row.generation)
    }

    /// Goes on with the newest segment after a start, if it is undamaged, its header whole and a page free.
    pub(crate) fn resume(&mut self, segment_bytes: u64) -> io::Result<()> {
        let newest = self.newest().filter(|(_, s)| s.header_whole && !s.damaged && !s.row.retired);
        let Some((id, _)) = newest.filter(|(_, s)| s.row.end + PAGE_BYTES <= segment_bytes) else {
            return Ok(());
        };
        self.readers.retain(|(reader, _)| *reader != id);
        let file = self.disk.open(&segment_name(id), OpenMode::ReadWrite)?;
        self.open = Some(Open { id, file });
        Ok(())
    }

    /// Makes the next segment and opens it. Its header is durable with the first sync.
    pub(crate) fn create(&mut self, first_seq: u64, prepare: Prepare, bytes: u64) -> io::Result<()> {
        debug_assert!(self.open.is_none(), "the open segment is sealed before the next is made");
        let previous = self.newest().map_or((0, 0), |(_, s)| (s.row.generation, s.row.end));
        let (id, generation) = (self.next_id, self.next_generation);
        let header = SegmentHeader {
            id,
            store: self.store,
            generation,
            first_seq,
            previous_generation: previous.0,
            previous_end: previous.1,
        };
        let made = self.disk.open(&segment_name(id), OpenMode::Create).and_then(|file| {
            prepare_file(&file, prepare, bytes)?;
            file.write_gathered(&[IoSlice::new(&header.encode())], 0)?;
            self.disk.sync_dir()?;
            Ok(file)
        });
        let file = made.inspect_err(|_| drop(self.disk.remove(&segment_name(id))))?;
        let row = SegmentRow { generation, first_seq, end: PAGE_BYTES, live: 0, retired: false };
        let disk_bytes = file.bytes_on_disk()?;
        let segment =
            Segment { row, changed: true, end_known: true, damaged: false, disk_bytes, header_whole: true };
        self.all.insert(id, segment);
        self.open = Some(Open { id, file });
        (self.next_id, self.next_generation) = (id + 1, generation + 1);
        Ok(())
    }

    /// Writes at the end of the open segment; the end moves only by [`Segments::acknowledge`].
    pub(crate) fn write(&self, buffers: &[IoSlice<'_>]) -> io::Result<()> {
        let (Some(open), Some((_, _, end))) = (&self.open, self.open_segment()) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        open.file.write_gathered(buffers, end)
    }

    /// Syncs the open segment.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.open.as_ref().map_or(Ok(()), |open| open.file.sync_data())
    }

    /// The bytes just written and synced are part of the log.
    pub(crate) fn acknowledge(&mut self, bytes: u64) {
        if let Some(segment) = self.open.as_ref().and_then(|open| self.all.get_mut(&open.id)) {
            segment.row.end += bytes;
            segment.changed = true;
        }
    }

    /// Takes back what a write that met a full device left behind the end.
    pub(crate) fn cut(&self) {
        if let (Some(open), Some((_, _, end))) = (&self.open, self.open_segment()) {
            // A cut that fails costs space; the next header says where the segment ended.
            let _kept = open.file.set_len(end);
        }
    }

    /// Closes the open segment; what was prepared and not used goes back to the file system.
    pub(crate) fn seal(&mut self) {
        self.cut();
        if let Some(open) = self.open.take()
            && let Some(segment) = self.all.get_mut(&open.id)
        {
            segment.disk_bytes = open.file.bytes_on_disk().unwrap_or(segment.disk_bytes);
            segment.changed = true;
        }
    }

    /// A file to read a segment by.
    pub(crate) fn reader(&mut self, id: u32) -> io::Result<&D::File> {
        if self.open.as_ref().is_some_and(|open| open.id == id) {
            return self.open.as_ref().map(|open| &open.file).ok_or(io::ErrorKind::NotFound.into());
        }
        let held = match self.readers.iter().position(|(reader, _)| *reader == id) {
            Some(position) => self.readers.remove(position),
            None => (id, self.disk.open(&segment_name(id), OpenMode::Read)?),
        };
        if self.readers.len() >= OPEN_FILES_MAX {
            self.readers.remove(0);
        }
        self.readers.push(held);
        self.readers.last().map(|(_, file)| file).ok_or(io::ErrorKind::NotFound.into())
    }

    /// A parser over a segment, up to its end.
    pub(crate) fn parser(&self, id: u32) -> io::Result<Reader<D::File>> {
        let (generation, end) =
            self.get(id).map(|s| (s.row.generation, s.row.end)).ok_or(io::ErrorKind::NotFound)?;
        let file = self.disk.open(&segment_name(id), OpenMode::Read)?;
        Ok(Reader::new(file, salt(&self.store), generation, end))
    }

    /// Removes the files of retired segments; their rows are forgotten once that is durable.
    pub(crate) fn remove_retired(&mut self) -> io::Result<u64> {
        let retired: Vec<u32> = self.iter().filter(|(_, s)| s.row.retired).map(|(id, _)| id).collect();
        let mut freed = 0;
        for id in &retired {
            self.keep_end_of_previous(*id)?;
            self.readers.retain(|(reader, _)| reader != id);
            match self.disk.remove(&segment_name(*id)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => freed += self.get(*id).map_or(0, |segment| segment.disk_bytes),
            }
        }
        if !retired.is_empty() {
            self.disk.sync_dir()?;
        }
        for id in retired {
            self.all.remove(&id);
            self.forgotten.push(id);
        }
        Ok(freed)
    }

    /// A header tells where the segment before it ended. Before it goes, that length must be durable.
    fn keep_end_of_previous(&mut self, id: u32) -> io::Result<()> {
        let generation = self.get(id).map_or(0, |segment| segment.row.generation);
        let previous =
            self.iter().filter(|(_, s)| s.row.generation < generation).max_by_key(|(_, s)| s.row.generation);
        let Some((previous, end)) = previous.filter(|(_, s)| !s.row.retired).map(|(id, s)| (id, s.row.end))
        else {
            return Ok(());
        };
        let file = self.disk.open(&segment_name(previous), OpenMode::ReadWrite)?;
        file.set_len(end)?;
        file.sync_data()
    }

    /// Rows the index does not have yet, and those it should forget.
    pub(crate) fn changed_rows(&self) -> Vec<(u32, Option<SegmentRow>)> {
        let changed = self.iter().filter(|(_, s)| s.changed).map(|(id, s)| (id, Some(s.row)));
        changed.chain(self.forgotten.iter().map(|id| (*id, None))).collect()
    }

    pub(crate) fn rows_written(&mut self) {
        self.forgotten.clear();
        self.all.values_mut().for_each(|segment| segment.changed = false);
    }
}

fn prepare_file<F: DiskFile>(file: &F, prepare: Prepare, bytes: u64) -> io::Result<()> {
    match prepare {
        Prepare::None => Ok(()),
        Prepare::Allocate => file.allocate(0, bytes),
        Prepare::Zero => {
            let zeros = vec![0; ZERO_BYTES];
            let mut at = 0;
            while at < bytes {
                let length = (bytes - at).min(ZERO_BYTES as u64);
                file.write_gathered(&[IoSlice::new(&zeros[..length as usize])], at)?;
                at += length;
            }
            file.sync_data()
        }
    }
}
