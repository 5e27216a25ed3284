//! The segment files: which there are, which one is open, and how many bytes they take.
//!
//! Duty: make, prepare, write, seal, read and retire segment files. A retired file becomes a spare, and a spare
//! the next segment; what it held before is of another generation and never read again. A segment whose write
//! or sync failed is cut back to its last acknowledged byte and never written again; the next header says where
//! it ended. One whose first sync failed goes, since its own header may be lost. Memory: one row per segment, and
//! a bounded number of open files.

use crate::disk::{Disk, DiskFile, Listed, OpenMode};
use crate::error::{is_full, is_unsupported, lacks_means, says_nothing_of_the_file};
use crate::format::{
    Decoded, RECYCLED_GENERATION_MIN, SCRATCH_NAME, SEGMENT_HEADER_BYTES, SegmentHeader, StoreId, generation,
    salt, segment_id, segment_name, spare_name,
};
use crate::index::{SegmentRow, Unread};
use crate::limits::{AHEAD_BATCH_BYTES, AHEAD_BYTES, OPEN_FILES_MAX, PAGE_BYTES, UNREAD_LOOKS};
use crate::options::Prepare;
use crate::scan::Reader;
use crate::spares::Spares;
use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::sync::Arc;

/// What is written ahead of batches, as often as it takes.
static ZEROS: [u8; PAGE_BYTES as usize] = [0; PAGE_BYTES as usize];
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
    /// A replay could not read all of it: it may hold what the index lacks, so that it is damaged at later starts too,
    /// until a replay reads it whole.
    unread: bool,
    pub(crate) disk_bytes: u64,
    header_whole: bool,
}

#[derive(Debug)]
struct Open<F> {
    id: u32,
    file: F,
    /// From here on its blocks are reserved and were never written, if that is known.
    blank_from: Option<u64>,
    /// Its header is durable, and with it where the segment before it ended.
    header_durable: bool,
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
    /// For so many more looks at what the device would not read nothing is given back.
    looks_left: u8,
    /// Zeros written ahead of batches.
    pub(crate) ahead_bytes_written: u64,
    pub(crate) spares: Spares<D>,
    /// Files that are gone and rows that the index still has.
    pub(crate) forgotten: Vec<u32>,
}

/// A segment file as the directory shows it.
#[derive(Debug)]
pub(crate) struct SegmentFile {
    pub(crate) id: u32,
    length: u64,
    disk_bytes: u64,
    pub(crate) opens: bool,
    header_was_read: bool,
    pub(crate) header: Decoded<SegmentHeader>,
}

/// Reads the header of every segment file. One that does not open, for a reason of its own, stops nothing.
pub(crate) fn list_files<D: Disk>(disk: &D, listed: &[Listed]) -> io::Result<Vec<SegmentFile>> {
    let named = listed.iter().filter_map(|file| Some((segment_id(&file.name)?, file.length)));
    let mut files = named.map(|(id, length)| read_file(disk, id, length)).collect::<io::Result<Vec<_>>>()?;
    files.sort_by_key(|file| file.id);
    Ok(files)
}

fn read_file<D: Disk>(disk: &D, id: u32, length: u64) -> io::Result<SegmentFile> {
    let file = match disk.open(&segment_name(id), OpenMode::Read) {
        Ok(file) => file,
        Err(error) if says_nothing_of_the_file(&error) => return Err(error),
        Err(_unreadable) => {
            let (disk_bytes, header) = (length, Decoded::Damaged);
            return Ok(SegmentFile { id, length, disk_bytes, opens: false, header_was_read: false, header });
        }
    };
    let mut bytes = [0; SEGMENT_HEADER_BYTES];
    let (header_was_read, header) = match file.read_at(&mut bytes, 0) {
        Ok(()) => (true, SegmentHeader::decode(&bytes)),
        Err(error) => (error.kind() == io::ErrorKind::UnexpectedEof, Decoded::Damaged),
    };
    let header = match header {
        // A spare was on its way to become this segment, and its old header is still there.
        Decoded::Whole(header) if header.id != id => Decoded::Damaged,
        Decoded::Whole(_) | Decoded::Newer(_) | Decoded::Damaged => header,
    };
    let disk_bytes = file.bytes_on_disk().unwrap_or(length);
    Ok(SegmentFile { id, length, disk_bytes, opens: true, header_was_read, header })
}

impl SegmentFile {
    /// The generation of a row of the index, of the header, or of the name.
    pub(crate) fn generation(&self, row: Option<&SegmentRow>) -> u64 {
        match (row, self.header) {
            (Some(row), _) => row.generation,
            (None, Decoded::Whole(header)) => header.generation,
            (None, Decoded::Newer(_) | Decoded::Damaged) => generation(self.id),
        }
    }

    /// Makes durable what a process wrote and died. What a failed sync dropped is in the system's memory all the same,
    /// and no later sync writes it: the file is to be read from the device, and its header is read again. One that
    /// does not open is not read at all.
    pub(crate) fn settle<D: Disk>(&mut self, disk: &D) -> io::Result<()> {
        match disk.open(&segment_name(self.id), OpenMode::Read) {
            Err(error) if says_nothing_of_the_file(&error) => return Err(error),
            Err(_unreadable) => self.opens = false,
            Ok(file) => {
                file.sync_data()?;
                file.forget(0, self.length);
                *self = read_file(disk, self.id, self.length)?;
            }
        }
        Ok(())
    }
}

impl<D: Disk> Segments<D> {
    /// Brings files and index rows together. Files that hold no record of this store are answered by name.
    pub(crate) fn load(
        disk: Arc<D>,
        store: StoreId,
        files: &[SegmentFile],
        spares: Spares<D>,
        rows: &BTreeMap<u32, SegmentRow>,
        checkpoint_generation: u64,
    ) -> io::Result<(Self, Vec<String>)> {
        let used = files.iter().map(|file| file.id).chain(rows.keys().copied()).chain(spares.id_max());
        let next_id = used.max().map_or(0, |id| id + 1);
        let all = BTreeMap::new();
        let (open, readers, forgotten) = (None, Vec::new(), Vec::new());
        let (looks_left, ahead_bytes_written) = (0, 0);
        let mut segments = Self {
            disk,
            store,
            all,
            open,
            readers,
            next_id,
            looks_left,
            ahead_bytes_written,
            spares,
            forgotten,
        };
        let mut unreadable = Vec::new();
        for file in files {
            let name = segment_name(file.id);
            match segments.segment_of(file, rows.get(&file.id), checkpoint_generation)? {
                Some(segment) => drop(segments.all.insert(file.id, segment)),
                None if file.id + 1 == next_id
                    && segments.holds_nothing(file)
                    && segments.disk.remove(&name).is_ok() => {}
                None => unreadable.push(name),
            }
        }
        segments.learn_ends(files);
        Ok((segments, unreadable))
    }

    fn segment_of(
        &self,
        file: &SegmentFile,
        row: Option<&SegmentRow>,
        checkpoint_generation: u64,
    ) -> io::Result<Option<Segment>> {
        if !file.opens && file.generation(row) >= checkpoint_generation {
            return Ok(None);
        }
        let header = match file.header {
            Decoded::Whole(header) if header.store == self.store => Some(header),
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
                let (generation, first_seq) = match self.any_record(file) {
                    Ok(Some(found)) => found,
                    Err(error) if says_nothing_of_the_file(&error) => return Err(error),
                    Ok(None) | Err(_) => return Ok(None),
                };
                SegmentRow { generation, first_seq, end: file.length, live: 0, retired: false }
            }
        };
        Ok(Some(Segment {
            row,
            changed: true,
            end_known: row.generation < checkpoint_generation,
            damaged: !file.opens,
            unread: false,
            disk_bytes: file.disk_bytes,
            header_whole: header.is_some(),
        }))
    }

    /// Every page of it was read, and there is neither a header nor a record. What could not be read once may be
    /// either, and its header says where the segment before it ended.
    fn holds_nothing(&self, file: &SegmentFile) -> bool {
        file.header_was_read && self.any_record(file).is_ok_and(|found| found.is_none())
    }

    fn any_record(&self, file: &SegmentFile) -> io::Result<Option<(u64, u64)>> {
        let opened = self.disk.open(&segment_name(file.id), OpenMode::Read)?;
        let own = |found| found == generation(file.id) || found < RECYCLED_GENERATION_MIN;
        Reader::any_record(opened, salt(&self.store), file.length, own)
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
        let ids: BTreeMap<u64, u32> =
            self.all.iter().map(|(id, segment)| (segment.row.generation, *id)).collect();
        for file in files {
            let Decoded::Whole(header) = file.header else { continue };
            if let Some(id) = ids.get(&header.previous_generation)
                && let Some(segment) = self.all.get_mut(id)
            {
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
        self.all.values().map(|segment| segment.disk_bytes).sum()
    }

    /// The open segment: its number, generation and end.
    pub(crate) fn open_segment(&self) -> Option<(u32, u64, u64)> {
        let open = self.open.as_ref()?;
        self.all.get(&open.id).map(|segment| (open.id, segment.row.generation, segment.row.end))
    }

    /// What the open segment takes on the device, prepared bytes included.
    pub(crate) fn open_disk_bytes(&self) -> u64 {
        self.open.as_ref().and_then(|open| self.all.get(&open.id)).map_or(0, |segment| segment.disk_bytes)
    }

    /// The segment that was open last, whether it still is or not.
    pub(crate) fn newest(&self) -> Option<(u32, &Segment)> {
        self.iter().max_by_key(|(_, segment)| segment.row.generation)
    }

    /// Goes on with the newest segment after a start, if it is undamaged, its header whole and a page free. Not if there
    /// was another behind it, which may only not have been read this time: its header says where this one ends.
    pub(crate) fn resume(&mut self, segment_bytes: u64) -> io::Result<()> {
        let newest = self.newest().filter(|(id, _)| id + 1 == self.next_id);
        let newest = newest.filter(|(_, s)| s.header_whole && !s.damaged && !s.row.retired);
        let has_room =
            |end: u64| end.is_multiple_of(PAGE_BYTES) && end.saturating_add(PAGE_BYTES) <= segment_bytes;
        let Some((id, _)) = newest.filter(|(_, s)| has_room(s.row.end)) else {
            return Ok(());
        };
        self.readers.retain(|(reader, _)| *reader != id);
        match self.disk.open(&segment_name(id), OpenMode::ReadWrite) {
            Ok(file) => self.open = Some(Open { id, file, blank_from: None, header_durable: true }),
            Err(error) if says_nothing_of_the_file(&error) => return Err(error),
            // The next batch begins the next segment.
            Err(_unwritable) => {}
        }
        Ok(())
    }

    /// Makes the next segment, of a spare if there is one, and opens it. Its header is durable with the first sync.
    pub(crate) fn create(&mut self, first_seq: u64, prepare: Prepare, bytes: u64) -> io::Result<()> {
        debug_assert!(self.open.is_none(), "the open segment is sealed before the next is made");
        let previous = self.newest().map_or((0, 0), |(_, s)| (s.row.generation, s.row.end));
        let id = self.next_id;
        let header = SegmentHeader {
            id,
            store: self.store,
            generation: generation(id),
            first_seq,
            previous_generation: previous.0,
            previous_end: previous.1,
        };
        let made = self.make(&header, prepare, bytes);
        let made = made.and_then(|(file, blank_from)| Ok((file.bytes_on_disk()?, file, blank_from)));
        let (disk_bytes, file, blank_from) =
            made.inspect_err(|_| drop(self.disk.remove(&segment_name(id))))?;
        let generation = header.generation;
        let row = SegmentRow { generation, first_seq, end: PAGE_BYTES, live: 0, retired: false };
        let segment = Segment {
            row,
            changed: true,
            end_known: true,
            damaged: false,
            unread: false,
            disk_bytes,
            header_whole: true,
        };
        self.all.insert(id, segment);
        self.open = Some(Open { id, file, blank_from, header_durable: false });
        self.next_id = id + 1;
        Ok(())
    }

    /// The file of a new segment, and from where on it is blank.
    fn make(
        &mut self,
        header: &SegmentHeader,
        prepare: Prepare,
        bytes: u64,
    ) -> io::Result<(D::File, Option<u64>)> {
        let page = header.encode();
        let name = segment_name(header.id);
        while let Some(spare) = self.spares.best() {
            let made = self.spares.open(spare).and_then(|file| {
                file.write_gathered(&[IoSlice::new(&page)], 0)?;
                self.disk.rename(&spare_name(spare.id), &name)?;
                self.disk.sync_dir()?;
                Ok(file)
            });
            match made {
                Ok(file) => {
                    self.spares.let_go(spare.id);
                    return Ok((file, None));
                }
                Err(error) if lacks_means(&error) => {
                    // It may have either name; one that keeps the new one goes with it.
                    let _kept = self.disk.rename(&name, &spare_name(spare.id));
                    return Err(error);
                }
                // A spare is worth no error: it goes, under whichever name it has.
                Err(_unusable) => self.spares.give_up(spare.id),
            }
        }
        // A spare may have got this name before its sync failed: the directory has to change again.
        was_there(self.disk.remove(&name))?;
        let file = self.disk.open(&name, OpenMode::Create)?;
        let is_blank = prepare_file(&file, prepare, bytes)?;
        file.write_gathered(&[IoSlice::new(&page)], 0)?;
        self.disk.sync_dir()?;
        Ok((file, is_blank.then_some(PAGE_BYTES)))
    }

    /// Writes a batch of so many bytes at the end of the open segment; the end moves only by
    /// [`Segments::acknowledge`].
    pub(crate) fn write(&mut self, buffers: &[IoSlice<'_>], length: u64) -> io::Result<()> {
        let disk_bytes = self.open_disk_bytes();
        let (Some((_, _, start)), Some(open)) = (self.open_segment(), &mut self.open) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let end = start + length;
        let Some(blank_from) = open.blank_from.filter(|blank_from| *blank_from < end) else {
            return open.file.write_gathered(buffers, start);
        };
        let ahead =
            if length <= AHEAD_BATCH_BYTES { end.next_multiple_of(AHEAD_BYTES).min(disk_bytes) } else { end };
        let zeros = ahead.saturating_sub(end);
        let mut all = buffers.to_vec();
        for from in (0..zeros).step_by(ZEROS.len()) {
            all.push(IoSlice::new(&ZEROS[..ZEROS.len().min((zeros - from) as usize)]));
        }
        open.file.write_gathered(&all, start)?;
        open.blank_from = Some(blank_from.max(end + zeros));
        self.ahead_bytes_written += zeros;
        Ok(())
    }

    /// The last bytes of the log, so many, are durable and will not be read soon.
    pub(crate) fn forget_last(&self, bytes: u64) {
        if let (Some(open), Some((_, _, end))) = (&self.open, self.open_segment()) {
            open.file.forget(end.saturating_sub(bytes), end);
        }
    }

    /// Syncs the open segment.
    pub(crate) fn sync(&mut self) -> io::Result<()> {
        let Some(open) = &mut self.open else { return Ok(()) };
        open.file.sync_data()?;
        open.header_durable = true;
        Ok(())
    }

    /// The bytes just written and synced are part of the log. How much the file takes is asked only if they made it
    /// grow: Linux gives a file whose times were looked at new ones with the next write, which costs a journal entry.
    pub(crate) fn acknowledge(&mut self, bytes: u64) {
        if let Some(open) = &self.open
            && let Some(segment) = self.all.get_mut(&open.id)
        {
            segment.row.end += bytes;
            segment.changed = true;
            if segment.row.end > segment.disk_bytes {
                segment.disk_bytes = open.file.bytes_on_disk().unwrap_or(segment.row.end);
            }
        }
    }

    /// Takes back what lies behind the end of the open segment; durable with the next sync.
    pub(crate) fn cut(&mut self) -> io::Result<()> {
        let Some(open) = &self.open else { return Ok(()) };
        let Some(segment) = self.all.get_mut(&open.id) else { return Ok(()) };
        open.file.set_len(segment.row.end)?;
        segment.disk_bytes = open.file.bytes_on_disk().unwrap_or(segment.disk_bytes);
        Ok(())
    }

    /// Cuts the newest segment at its end: on a full device what it kept whole for is the room a deletion needs.
    pub(crate) fn give_back_tail(&mut self) {
        let Some((id, end)) = self.newest().map(|(id, segment)| (id, segment.row.end)) else { return };
        let cut = self.disk.open(&segment_name(id), OpenMode::ReadWrite).and_then(|file| {
            file.set_len(end)?;
            file.bytes_on_disk()
        });
        if let (Ok(bytes), Some(segment)) = (cut, self.all.get_mut(&id)) {
            segment.disk_bytes = bytes;
        }
    }

    /// Closes the open segment. What it has not used goes back to the file system, unless that is so little that
    /// the file is worth more whole.
    pub(crate) fn seal(&mut self) {
        let unused = self.open_segment().map_or(0, |(_, _, end)| self.open_disk_bytes().saturating_sub(end));
        if unused > self.spares.tail_bytes() {
            // A cut that fails costs space.
            let _kept = self.cut();
        }
        self.close();
    }

    /// Closes the open segment where it was last acknowledged: what a failed write or sync left behind may look
    /// whole. One whose header may be lost goes: the next header has to tell where the segment before it ended.
    pub(crate) fn seal_failed(&mut self) -> io::Result<()> {
        if let Some(open) = self.open.take_if(|open| !open.header_durable) {
            self.leave_out(open.id);
            return self.disk.remove(&segment_name(open.id));
        }
        // If it fails, the next header says where the segment ended.
        let _kept = self.cut();
        self.close();
        Ok(())
    }

    fn close(&mut self) {
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

    /// Makes spares of the files of retired segments, or removes them; their rows are forgotten once that is
    /// durable. Returns the bytes they took. One that can not go now stays retired; an error says that none could.
    pub(crate) fn free_retired(&mut self) -> io::Result<u64> {
        let retired: Vec<(u32, Segment)> =
            self.iter().filter(|(_, s)| s.row.retired).map(|(id, segment)| (id, *segment)).collect();
        let (mut freed, mut spared, mut changed, mut gone, mut failure) = (0, 0, false, Vec::new(), None);
        for (id, segment) in retired {
            match self.free(id, &segment, spared) {
                Ok((is_spare, was_there)) => {
                    spared += usize::from(is_spare);
                    changed |= was_there;
                    freed += segment.disk_bytes;
                    gone.push(id);
                }
                Err(error) => failure = Some(error),
            }
        }
        if gone.is_empty() {
            return failure.map_or(Ok(0), Err);
        }
        // What was not there went before a sync that failed.
        let disk = self.disk.as_ref();
        if changed { disk.sync_dir() } else { sync_dir_again(disk) }?;
        for id in gone {
            self.all.remove(&id);
            self.forgotten.push(id);
            self.spares.add(id);
        }
        Ok(freed)
    }

    /// Whether its file is a spare now, of which so many more are coming, and whether it still had its name.
    fn free(&mut self, id: u32, segment: &Segment, coming: usize) -> io::Result<(bool, bool)> {
        self.keep_end_of_previous(id)?;
        self.readers.retain(|(reader, _)| *reader != id);
        let recycled =
            segment.row.generation >= RECYCLED_GENERATION_MIN && self.spares.want(segment.disk_bytes, coming);
        let freed = if recycled {
            self.disk.rename(&segment_name(id), &spare_name(id))
        } else {
            self.disk.remove(&segment_name(id))
        };
        Ok((recycled, was_there(freed)?))
    }

    /// A header tells where the segment before it ended. Before it goes, that length must be durable.
    fn keep_end_of_previous(&mut self, id: u32) -> io::Result<()> {
        let generation = self.get(id).map_or(0, |segment| segment.row.generation);
        let previous = self.all.iter_mut().filter(|(_, s)| s.row.generation < generation);
        let previous = previous.max_by_key(|(_, s)| s.row.generation).filter(|(_, s)| !s.row.retired);
        let Some((previous, segment)) = previous else { return Ok(()) };
        let file = self.disk.open(&segment_name(*previous), OpenMode::ReadWrite)?;
        file.set_len(segment.row.end)?;
        file.sync_data()?;
        segment.disk_bytes = file.bytes_on_disk()?;
        Ok(())
    }

    /// A replay passed over bytes of it: because the device would not read them, which it may do later, or because they
    /// say nothing, which they always will.
    pub(crate) fn set_unread(&mut self, id: u32, met_error: bool) {
        if let Some(segment) = self.all.get_mut(&id) {
            (segment.unread, segment.damaged, segment.changed) = (true, true, true);
            if met_error {
                self.looks_left = UNREAD_LOOKS;
            }
        }
    }

    /// What the index says of segments that a replay passed over bytes of.
    pub(crate) fn take_unread(&mut self, unread: Unread) {
        unread.ids.into_iter().for_each(|id| self.set_unread(id, !unread.given_up));
    }

    /// Those a replay passed over bytes of.
    pub(crate) fn unread(&self) -> Unread {
        let ids = self.iter().filter(|(_, segment)| segment.unread).map(|(id, _)| id).collect();
        Unread { ids, given_up: self.looks_left == 0 }
    }

    /// What could not be read often enough is taken for lost, and holds no cleaning up any more.
    pub(crate) fn give_up_unread(&mut self) {
        self.looks_left = 0;
        self.all.values_mut().filter(|segment| segment.unread).for_each(|segment| segment.changed = true);
    }

    /// Looks whether the device reads by now what it would not. After some looks in vain that is given up.
    pub(crate) fn look_at_unread(&mut self) -> bool {
        let withheld: Vec<u32> = self.withheld().map(|(id, _)| id).collect();
        if withheld.is_empty() {
            return false;
        }
        if withheld.into_iter().any(|id| self.parser(id).is_ok_and(Reader::reads_whole)) {
            return true;
        }
        self.looks_left -= 1;
        if self.looks_left == 0 {
            self.give_up_unread();
        }
        false
    }

    /// Those that may hold names nobody knows of: what these lead to is not known to be garbage.
    fn withheld(&self) -> impl Iterator<Item = (u32, &Segment)> {
        self.iter().filter(|(_, segment)| segment.unread && self.looks_left > 0)
    }

    pub(crate) fn withheld_files(&self) -> Vec<String> {
        self.withheld().map(|(id, _)| segment_name(id)).collect()
    }

    /// The whole log is read again: what it says of a segment is found anew.
    pub(crate) fn begin_anew(&mut self) {
        self.looks_left = 0;
        for segment in self.all.values_mut() {
            (segment.unread, segment.damaged) = (false, false);
            (segment.row.live, segment.changed) = (0, true);
        }
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

/// Makes names durable that an earlier sync may have failed to. Behind that, a file system without a journal calls the
/// directory's block clean: its names are seen, and no sync writes them until a name in it changes. Of a directory of
/// several blocks (on ext4 from some 170 names on) this reaches the one the scratch name falls in, and no other.
pub(crate) fn sync_dir_again<D: Disk>(disk: &D) -> io::Result<()> {
    match disk.open(SCRATCH_NAME, OpenMode::Create) {
        Ok(scratch) => {
            drop(scratch);
            disk.remove(SCRATCH_NAME)?;
        }
        // A device without room for one more name is one that must still take deletions.
        Err(error) if is_full(&error) => {}
        Err(error) => return Err(error),
    }
    disk.sync_dir()
}

fn was_there(removed: io::Result<()>) -> io::Result<bool> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        removed => removed.map(|()| true),
    }
}

/// Whether its blocks are reserved now and were never written. A file system that reserves none gives them as they are
/// written.
fn prepare_file<F: DiskFile>(file: &F, prepare: Prepare, bytes: u64) -> io::Result<bool> {
    match prepare {
        Prepare::None => Ok(false),
        Prepare::Allocate => match file.allocate(0, bytes) {
            Err(error) if is_unsupported(&error) => Ok(false),
            allocated => allocated.map(|()| true),
        },
        Prepare::Zero => {
            let zeros = vec![0; ZERO_BYTES];
            let mut at = 0;
            while at < bytes {
                let length = (bytes - at).min(ZERO_BYTES as u64);
                file.write_gathered(&[IoSlice::new(&zeros[..length as usize])], at)?;
                at += length;
            }
            file.sync_data().map(|()| false)
        }
    }
}
