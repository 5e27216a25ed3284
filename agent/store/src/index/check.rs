//! A check for each page of the index file, below redb, which verifies none when it reads.
//!
//! Duty: keep the CRC of every page that was written, bound to the page's number, and hand out only what fits: a
//! rotten, misdirected or torn page is an error, never an answer, and so is one that this process wrote and the device
//! forgot; a device that forgot page and check together, before this start, is not found out. The CRCs of 1,024 pages
//! fill a check page in front of them. Memory: a check page is loaded with the first of its pages that is asked for and then
//! stays, 0.1 % of the file; so what is written or read again meanwhile is compared with what this process wrote,
//! whatever the device says. It refuses access to parts of pages, which redb does not ask for, its header aside.
//!
//! Power cuts: check pages are written before the sync that makes their pages durable, each once a sync. A cut
//! tears them at sectors, and a CRC lies in one sector. Those of pages that the last durable commit refers to are
//! the same before and behind the tear, since redb writes to none of these pages before the next commit is durable
//! (a page is freed when no durable root has it any more; each durable commit is two-phase, so the older slot is
//! never read). Pages that were written for a commit that did not become durable may fit their checks or not: no
//! root leads to them, and they are written before they are read. So are pages that were never written, which need
//! no mark of their own: whatever their check is, they are not read. The file grows before its pages are written,
//! and shrinks only when no durable root has what is cut.
//!
//! Page 0, redb's header, is written in place. Its check lies in the same sector, so that a cut leaves both or none.

use crate::disk::DiskFile;
use crate::limits::PAGE_BYTES;
use std::io::{self, IoSlice};
use std::ops::Range;

const PAGE: usize = PAGE_BYTES as usize;
const SECTOR: usize = 512;
/// Bytes of the header's sector in front of its check; redb uses the first 320.
const HEADER: usize = SECTOR - CHECK;
const CHECK: usize = 4;
/// Pages of one check page.
const GROUP: u64 = PAGE_BYTES / CHECK as u64;

/// The index file as redb sees it: without its check pages.
#[derive(Debug)]
pub(super) struct CheckedFile<F> {
    file: F,
    groups: Vec<Option<Group>>,
}

/// A check page.
#[derive(Debug)]
struct Group {
    page: Box<[u8; PAGE]>,
    /// Not written yet.
    changed: bool,
}

impl<F: DiskFile> CheckedFile<F> {
    pub(super) fn new(file: F) -> Self {
        Self { file, groups: Vec::new() }
    }

    pub(super) fn len(&self) -> io::Result<u64> {
        let length = self.file.len()?;
        let pages = length / PAGE_BYTES;
        let is_whole = length.is_multiple_of(PAGE_BYTES) && pages % (GROUP + 1) != 1;
        if !is_whole {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the index is cut off"));
        }
        Ok((pages - pages.div_ceil(GROUP + 1)) * PAGE_BYTES)
    }

    pub(super) fn set_len(&mut self, length: u64) -> io::Result<()> {
        let pages = page_at(length, 0)?;
        let groups = pages.div_ceil(GROUP);
        self.file.set_len((pages + groups) * PAGE_BYTES)?;
        // What is cut off comes back as zeros.
        self.groups.truncate(usize::try_from(groups).unwrap_or(usize::MAX));
        Ok(())
    }

    pub(super) fn read(&mut self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if is_header(offset, out.len()) {
            return self.read_header(out);
        }
        for (page, part) in parts(page_at(offset, out.len())?, out.len()) {
            let out = &mut out[part];
            self.file.read_at(out, place_of(page))?;
            for (page, bytes) in (page..).zip(out.chunks_exact(PAGE)) {
                if self.check_of(page)? != check(page, bytes) {
                    return Err(unfit(page));
                }
            }
        }
        Ok(())
    }

    /// Says how many bytes it wrote.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<u64> {
        if is_header(offset, data.len()) {
            return self.write_header(data);
        }
        for (page, part) in parts(page_at(offset, data.len())?, data.len()) {
            for (page, bytes) in (page..).zip(data[part.clone()].chunks_exact(PAGE)) {
                // First the check: half a write is noticed.
                self.group(page)?.put(page, check(page, bytes));
            }
            self.file.write_gathered(&[IoSlice::new(&data[part])], place_of(page))?;
        }
        Ok(data.len() as u64)
    }

    /// Writes the checks that changed, makes everything durable, and says how many bytes it wrote. After an error redb
    /// does nothing more with a file that is not opened anew.
    pub(super) fn sync_data(&mut self) -> io::Result<u64> {
        let mut written = 0;
        for (number, group) in (0..).zip(&mut self.groups) {
            if let Some(group) = group.as_mut().filter(|group| group.changed) {
                self.file.write_gathered(&[IoSlice::new(&group.page[..])], place_of_group(number))?;
                group.changed = false;
                written += PAGE_BYTES;
            }
        }
        self.file.sync_data()?;
        Ok(written)
    }

    pub(super) fn bytes_on_disk(&self) -> io::Result<u64> {
        self.file.bytes_on_disk()
    }

    fn read_header(&self, out: &mut [u8]) -> io::Result<()> {
        let mut sector = [0; SECTOR];
        self.file.read_at(&mut sector, place_of(0))?;
        let (header, found) = sector.split_at(HEADER);
        if found != check(0, header).to_le_bytes() {
            return Err(unfit(0));
        }
        out.copy_from_slice(&header[..out.len()]);
        Ok(())
    }

    fn write_header(&self, data: &[u8]) -> io::Result<u64> {
        let mut sector = [0; SECTOR];
        sector[..data.len()].copy_from_slice(data);
        let check = check(0, &sector[..HEADER]);
        sector[HEADER..].copy_from_slice(&check.to_le_bytes());
        self.file.write_gathered(&[IoSlice::new(&sector)], place_of(0))?;
        Ok(SECTOR as u64)
    }

    fn check_of(&mut self, page: u64) -> io::Result<u32> {
        Ok(crate::format::u32_at(&self.group(page)?.page[..], slot_of(page).start))
    }

    fn group(&mut self, page: u64) -> io::Result<&mut Group> {
        let number = usize::try_from(page / GROUP).unwrap_or(usize::MAX);
        if self.groups.len() <= number {
            self.groups.resize_with(number + 1, || None);
        }
        let group = &mut self.groups[number];
        if group.is_none() {
            let mut page = Box::new([0; PAGE]);
            self.file.read_at(&mut page[..], place_of_group(number as u64))?;
            *group = Some(Group { page, changed: false });
        }
        group.as_mut().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Group {
    fn put(&mut self, page: u64, check: u32) {
        self.page[slot_of(page)].copy_from_slice(&check.to_le_bytes());
        self.changed = true;
    }
}

fn check(page: u64, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&page.to_le_bytes()), bytes)
}

fn slot_of(page: u64) -> Range<usize> {
    let start = (page % GROUP) as usize * CHECK;
    start..start + CHECK
}

fn place_of(page: u64) -> u64 {
    (page + page / GROUP + 1) * PAGE_BYTES
}

fn place_of_group(number: u64) -> u64 {
    number * (GROUP + 1) * PAGE_BYTES
}

fn is_header(offset: u64, length: usize) -> bool {
    offset == 0 && length <= HEADER
}

/// The page that starts at an offset, for access to whole pages.
fn page_at(offset: u64, length: usize) -> io::Result<u64> {
    let is_whole = offset.is_multiple_of(PAGE_BYTES) && length.is_multiple_of(PAGE);
    is_whole.then_some(offset / PAGE_BYTES).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// The parts of an access that check pages lie between: the first page of each, and its bytes.
fn parts(page: u64, length: usize) -> impl Iterator<Item = (u64, Range<usize>)> {
    let (mut page, mut start) = (page, 0);
    std::iter::from_fn(move || {
        let room = (GROUP - page % GROUP) as usize * PAGE;
        let end = length.min(start + room);
        let part = (page, start..end);
        page += ((end - start) / PAGE) as u64;
        start = end;
        (!part.1.is_empty()).then_some(part)
    })
}

fn unfit(page: u64) -> io::Error {
    let words = match page {
        0 => "its header is damaged, or of an earlier layout".to_owned(),
        page => format!("its page {page} does not pass its check"),
    };
    io::Error::new(io::ErrorKind::InvalidData, words)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

    use super::*;
    use crate::disk::{Disk, OpenMode, OsDisk};

    const PAGES: u64 = 2 * GROUP + 40;

    /// A file of more than two groups, with a page written over each edge, and a header.
    fn written(disk: &OsDisk) -> CheckedFile<<OsDisk as Disk>::File> {
        let mut file = CheckedFile::new(disk.open("index", OpenMode::Create).unwrap());
        file.set_len(PAGES * PAGE_BYTES).unwrap();
        file.write(0, &bytes(0, 320)).unwrap();
        for page in firsts() {
            assert_eq!(file.write(page * PAGE_BYTES, &bytes(page, 4 * PAGE)).unwrap(), 4 * PAGE_BYTES);
        }
        assert_eq!(file.sync_data().unwrap(), 3 * PAGE_BYTES);
        assert_eq!(file.sync_data().unwrap(), 0);
        file
    }

    fn firsts() -> [u64; 4] {
        [1, GROUP - 2, 2 * GROUP - 1, PAGES - 4]
    }

    fn bytes(number: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }

    fn assert_whole<F: DiskFile>(file: &mut CheckedFile<F>) {
        assert_eq!(file.len().unwrap(), PAGES * PAGE_BYTES);
        for (page, length) in [(0, 9), (0, 320)].into_iter().chain(firsts().map(|page| (page, 4 * PAGE))) {
            let mut out = vec![0; length];
            file.read(page * PAGE_BYTES, &mut out).unwrap();
            assert_eq!(out, bytes(page, length), "page {page}");
        }
    }

    fn reads<F: DiskFile>(file: &mut CheckedFile<F>, page: u64) -> bool {
        file.read(page * PAGE_BYTES, &mut [0; PAGE]).is_ok()
    }

    #[test]
    fn what_is_written_over_the_edges_of_groups_comes_back_after_a_start() {
        let directory = tempfile::tempdir().unwrap();
        let disk = OsDisk::new(directory.path()).unwrap();
        assert_whole(&mut written(&disk));
        assert_whole(&mut CheckedFile::new(disk.open("index", OpenMode::ReadWrite).unwrap()));
    }

    #[test]
    fn a_wrong_bit_of_a_page_its_check_or_the_header_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let disk = OsDisk::new(directory.path()).unwrap();
        drop(written(&disk));
        let raw = disk.open("index", OpenMode::ReadWrite).unwrap();
        let page = GROUP - 2;
        let of_page = place_of(page)..place_of(page) + PAGE_BYTES;
        let of_check = (page * CHECK as u64)..(page * CHECK as u64 + 4);
        let of_header = place_of(0)..place_of(0) + SECTOR as u64;
        for (page, range) in [(page, of_page.clone()), (page, of_check), (0, of_header)] {
            for at in range.clone() {
                let mut byte = [0];
                raw.read_at(&mut byte, at).unwrap();
                raw.write_gathered(&[IoSlice::new(&[byte[0] ^ 1 << (at % 8)])], at).unwrap();
                let mut file = CheckedFile::new(disk.open("index", OpenMode::Read).unwrap());
                let is_read =
                    if page == 0 { file.read(0, &mut [0; 9]).is_ok() } else { reads(&mut file, page) };
                assert!(!is_read, "byte {at}");
                raw.write_gathered(&[IoSlice::new(&byte)], at).unwrap();
            }
        }
        assert_whole(&mut CheckedFile::new(raw));
    }

    #[test]
    fn a_page_that_is_older_another_one_or_was_never_written_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let disk = OsDisk::new(directory.path()).unwrap();
        let mut file = written(&disk);
        let raw = disk.open("index", OpenMode::ReadWrite).unwrap();
        let (mut older, mut other) = ([0; PAGE], [0; PAGE]);
        raw.read_at(&mut older, place_of(1)).unwrap();
        raw.read_at(&mut other, place_of(2)).unwrap();
        file.write(PAGE_BYTES, &[7; PAGE]).unwrap();
        for wrong in [older, other, [0; PAGE]] {
            raw.write_gathered(&[IoSlice::new(&wrong)], place_of(1)).unwrap();
            assert!(!reads(&mut file, 1));
        }
        assert!(reads(&mut file, 2) && !reads(&mut file, 20) && !reads(&mut file, GROUP + 500));
    }

    #[test]
    fn what_was_cut_off_does_not_come_back_and_a_length_between_pages_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let disk = OsDisk::new(directory.path()).unwrap();
        let mut file = written(&disk);
        file.set_len((GROUP + 1) * PAGE_BYTES).unwrap();
        file.set_len(PAGES * PAGE_BYTES).unwrap();
        assert!(reads(&mut file, GROUP) && !reads(&mut file, GROUP + 1) && !reads(&mut file, PAGES - 1));
        let raw = disk.open("index", OpenMode::ReadWrite).unwrap();
        for length in [100, PAGE_BYTES, (GROUP + 2) * PAGE_BYTES, 3 * PAGE_BYTES + 512] {
            raw.set_len(length).unwrap();
            assert!(file.len().is_err(), "{length}");
        }
        assert!(file.write(PAGE_BYTES, &[0; 100]).is_err() && file.read(100, &mut [0; PAGE]).is_err());
    }
}
