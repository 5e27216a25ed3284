//! A disk that fails on demand, around a real one.

use larder_store::{Disk, DiskFile, Listed, OpenMode, OsDisk, Space};
use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

/// Which operations on which files fail; a name matches by its beginning.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    /// Syncs of segments that fail from now on; counted down.
    pub(crate) failing_syncs: AtomicU64,
    /// `EROFS` for everything that changes something.
    pub(crate) read_only: AtomicBool,
    /// Bytes files may still grow by; negative for any number.
    pub(crate) room: AtomicI64,
    /// `EIO` for reads of segments that touch this offset; 0 for none.
    pub(crate) bad_sector: AtomicU64,
    /// The only segment that has it; none for all of them.
    pub(crate) bad_sector_of: Mutex<Option<String>>,
    /// Reads that failed so.
    pub(crate) reads_of_bad_sector: AtomicU64,
    /// `EOPNOTSUPP` for reserving blocks.
    pub(crate) reserves_nothing: AtomicBool,
    /// `EIO` for reading the header of this segment.
    pub(crate) bad_header_of: Mutex<Option<String>>,
    /// `ENOSPC` for writes to the index behind its header, which needs no new room, until a spare goes.
    pub(crate) index_full: AtomicBool,
    /// Syncs asked for on segments.
    pub(crate) segment_syncs: AtomicU64,
    /// Gathered writes to segments.
    pub(crate) segment_writes: AtomicU64,
    /// Parts of segments that need not stay in memory.
    pub(crate) forgotten: Mutex<Vec<(u64, u64)>>,
    /// Questions for what a file takes on the device.
    pub(crate) sizes_asked: AtomicU64,
    /// Reads of segments' first pages that fail with `EIO` from now on; counted down.
    pub(crate) bad_reads: AtomicU64,
    /// The read of a segment from now on that answers a wrong bit; 0 for none.
    pub(crate) wrong_read: AtomicU64,
    /// `EIO` for removing or renaming segments.
    pub(crate) keeps_segments: AtomicBool,
    /// Errors that opening the index answers with from now on, the last first.
    pub(crate) index_opens: Mutex<Vec<i32>>,
    /// Reads of the index that fail with `ENOMEM` from now on; counted down.
    pub(crate) starved_index_reads: AtomicU64,
    /// Opens of segments and spares for writing that fail with `EMFILE` from now on; counted down.
    pub(crate) starved_opens: AtomicU64,
    /// The same of syncs of the directory, which is opened for them.
    pub(crate) starved_directory_syncs: AtomicU64,
    /// Writes to segments that fail with `ENOMEM` from now on; counted down.
    pub(crate) starved_writes: AtomicU64,
    /// `EIO` for opening, removing or renaming files whose names begin so.
    refused: Mutex<Vec<String>>,
}

#[derive(Clone, Debug)]
pub(crate) struct FaultDisk {
    inner: OsDisk,
    pub(crate) faults: Arc<Faults>,
}

impl FaultDisk {
    pub(crate) fn new(inner: OsDisk) -> Self {
        let faults = Faults { room: AtomicI64::new(-1), ..Faults::default() };
        Self { inner, faults: Arc::new(faults) }
    }
}

impl Faults {
    /// From now on nothing can be done with files whose names begin so.
    pub(crate) fn refuse(&self, name: &str) {
        self.refused.lock().unwrap().push(name.into());
    }

    pub(crate) fn allow_all(&self) {
        self.refused.lock().unwrap().clear();
        *self.bad_header_of.lock().unwrap() = None;
        self.bad_reads.store(0, SeqCst);
    }

    fn reaches(&self, name: &str) -> io::Result<()> {
        let refused = self.refused.lock().unwrap().iter().any(|refused| name.starts_with(refused));
        if refused { Err(io::Error::from_raw_os_error(5)) } else { Ok(()) }
    }

    fn lets_go(&self, name: &str) -> io::Result<()> {
        self.changes()?;
        if self.keeps_segments.load(SeqCst) && name.starts_with("segment-") {
            return Err(io::Error::from_raw_os_error(5));
        }
        self.reaches(name)
    }

    fn changes(&self) -> io::Result<()> {
        if self.read_only.load(SeqCst) { Err(io::ErrorKind::ReadOnlyFilesystem.into()) } else { Ok(()) }
    }

    fn takes(&self, bytes: u64) -> io::Result<()> {
        self.changes()?;
        let room = self.room.load(SeqCst);
        if room < 0 {
            return Ok(());
        }
        if (room as u64) < bytes {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.room.fetch_sub(bytes as i64, SeqCst);
        Ok(())
    }
}

/// Whether there was something left to count.
fn counts_down(left: &AtomicU64) -> bool {
    left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok()
}

#[derive(Debug)]
pub(crate) struct FaultFile {
    inner: <OsDisk as Disk>::File,
    is_segment: bool,
    is_index: bool,
    has_bad_header: bool,
    has_bad_sector: bool,
    faults: Arc<Faults>,
}

impl Disk for FaultDisk {
    type File = FaultFile;

    fn open(&self, name: &str, mode: OpenMode) -> io::Result<FaultFile> {
        if mode != OpenMode::Read {
            self.faults.changes()?;
        }
        self.faults.reaches(name)?;
        if let Some(errno) = self.faults.index_opens.lock().unwrap().pop_if(|_| name == "index.redb") {
            return Err(io::Error::from_raw_os_error(errno));
        }
        let is_log = name.starts_with("segment-") || name.starts_with("spare-");
        if is_log && mode != OpenMode::Read && counts_down(&self.faults.starved_opens) {
            return Err(io::Error::from_raw_os_error(24));
        }
        let inner = self.inner.open(name, mode)?;
        let (is_segment, is_index) = (name.starts_with("segment-"), name == "index.redb");
        let has_bad_header = self.faults.bad_header_of.lock().unwrap().as_deref() == Some(name);
        let bad_sector_of = self.faults.bad_sector_of.lock().unwrap();
        let has_bad_sector = is_segment && bad_sector_of.as_deref().is_none_or(|bad| bad == name);
        let faults = Arc::clone(&self.faults);
        Ok(FaultFile { inner, is_segment, is_index, has_bad_header, has_bad_sector, faults })
    }

    fn list(&self) -> io::Result<Vec<Listed>> {
        self.inner.list()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        // a kernel looks for the name before the device has to do anything
        let given_back = self.inner.open(name, OpenMode::Read)?.len()?;
        self.faults.lets_go(name)?;
        if self.faults.room.load(SeqCst) >= 0 {
            self.faults.room.fetch_add(given_back as i64, SeqCst);
        }
        if name.starts_with("spare-") {
            self.faults.index_full.store(false, SeqCst);
        }
        self.inner.remove(name)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.faults.lets_go(from)?;
        self.inner.rename(from, to)
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.faults.changes()?;
        if counts_down(&self.faults.starved_directory_syncs) {
            return Err(io::Error::from_raw_os_error(24));
        }
        self.inner.sync_dir()
    }

    fn lock(&self, name: &str) -> io::Result<FaultFile> {
        self.faults.changes()?;
        let inner = self.inner.lock(name)?;
        let faults = Arc::clone(&self.faults);
        let (is_segment, is_index, has_bad_header, has_bad_sector) = (false, false, false, false);
        Ok(FaultFile { inner, is_segment, is_index, has_bad_header, has_bad_sector, faults })
    }

    fn space(&self) -> io::Result<Space> {
        self.inner.space()
    }

    fn location(&self) -> String {
        self.inner.location()
    }
}

impl DiskFile for FaultFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let bad = self.faults.bad_sector.load(SeqCst);
        if self.has_bad_sector && bad > 0 && (offset..offset + buffer.len() as u64).contains(&bad) {
            self.faults.reads_of_bad_sector.fetch_add(1, SeqCst);
            return Err(io::Error::from_raw_os_error(5));
        }
        if self.has_bad_header && offset == 0 {
            return Err(io::Error::from_raw_os_error(5));
        }
        if self.is_segment && offset == 0 && counts_down(&self.faults.bad_reads) {
            return Err(io::Error::from_raw_os_error(5));
        }
        if self.is_index && counts_down(&self.faults.starved_index_reads) {
            return Err(io::Error::from_raw_os_error(12));
        }
        self.inner.read_at(buffer, offset)?;
        if self.is_segment && counts_down(&self.faults.wrong_read) && self.faults.wrong_read.load(SeqCst) == 0
        {
            buffer[buffer.len() / 2] ^= 1;
        }
        Ok(())
    }

    fn write_gathered(&self, buffers: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let end = offset + buffers.iter().map(|buffer| buffer.len() as u64).sum::<u64>();
        self.faults.takes(end.saturating_sub(self.inner.len()?))?;
        if self.is_index && offset > 4096 && self.faults.index_full.load(SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if self.is_segment && counts_down(&self.faults.starved_writes) {
            return Err(io::Error::from_raw_os_error(12));
        }
        self.faults.segment_writes.fetch_add(u64::from(self.is_segment), SeqCst);
        self.inner.write_gathered(buffers, offset)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.faults.changes()?;
        self.inner.set_len(length)
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn sync_data(&self) -> io::Result<()> {
        self.faults.changes()?;
        if self.is_segment {
            self.faults.segment_syncs.fetch_add(1, SeqCst);
            let left = self.faults.failing_syncs.load(SeqCst);
            if left > 0 {
                self.faults.failing_syncs.store(left - 1, SeqCst);
                return Err(io::Error::from_raw_os_error(5));
            }
        }
        self.inner.sync_data()
    }

    fn forget(&self, from: u64, to: u64) {
        if self.is_segment {
            self.faults.forgotten.lock().unwrap().push((from, to));
        }
        self.inner.forget(from, to);
    }

    fn allocate(&self, offset: u64, length: u64) -> io::Result<()> {
        if self.faults.reserves_nothing.load(SeqCst) {
            return Err(io::Error::from_raw_os_error(95));
        }
        self.faults.takes(length)?;
        self.inner.allocate(offset, length)
    }

    fn bytes_on_disk(&self) -> io::Result<u64> {
        self.faults.sizes_asked.fetch_add(1, SeqCst);
        self.inner.bytes_on_disk()
    }
}
