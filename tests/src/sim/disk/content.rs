//! The bytes of one version of a file: pages that are shared with every other version that has them.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, LazyLock, OnceLock};

pub(super) const PAGE: usize = 4096;

/// What a crash can tear apart.
pub(super) const SECTOR: usize = 512;

#[derive(Clone, Debug)]
struct Page {
    bytes: [u8; PAGE],
    print: OnceLock<u64>,
}

static ZEROS: LazyLock<Arc<Page>> =
    LazyLock::new(|| Arc::new(Page { bytes: [0; PAGE], print: OnceLock::new() }));

/// A file's bytes; pages that were never written or allocated are holes.
#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    pub(super) length: u64,
    pages: Arc<Vec<Option<Arc<Page>>>>,
}

impl Content {
    /// Fills a buffer; what lies behind the end reads as zeros.
    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) {
        for (page, within, range) in pieces(offset, buffer.len()) {
            match self.pages.get(page) {
                Some(Some(found)) => {
                    buffer[range.clone()].copy_from_slice(&found.bytes[within..within + range.len()]);
                }
                Some(None) | None => buffer[range].fill(0),
            }
        }
    }

    /// Puts bytes in place; the length stays.
    pub(super) fn place(&mut self, offset: u64, bytes: &[u8]) {
        let pages = Arc::make_mut(&mut self.pages);
        for (page, within, range) in pieces(offset, bytes.len()) {
            if pages.len() <= page {
                pages.resize(page + 1, None);
            }
            let old = pages[page].get_or_insert_with(|| Arc::clone(&ZEROS));
            let new = Arc::make_mut(old);
            new.bytes[within..within + range.len()].copy_from_slice(&bytes[range]);
            new.print = OnceLock::new();
        }
    }

    /// Writes, and extends the file over what was written.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.place(offset, bytes);
        self.length = self.length.max(offset + bytes.len() as u64);
    }

    /// Cuts or extends.
    pub(super) fn set_length(&mut self, length: u64) {
        self.length = length;
        self.forget_behind(length);
    }

    /// What lies behind `end` is gone: it would read as zeros if the file grew again.
    pub(super) fn forget_behind(&mut self, end: u64) {
        let keep = end.div_ceil(PAGE as u64) as usize;
        if self.pages.len() >= keep && !self.pages.is_empty() {
            let pages = Arc::make_mut(&mut self.pages);
            pages.truncate(keep);
            let within = end as usize % PAGE;
            if let (true, Some(Some(last))) = (within > 0 && pages.len() == keep, pages.last_mut()) {
                let last = Arc::make_mut(last);
                last.bytes[within..].fill(0);
                last.print = OnceLock::new();
            }
        }
    }

    /// Takes over the bytes of another version, in whole pages.
    pub(super) fn take(&mut self, from: u64, to: u64, other: &Self) {
        let pages = Arc::make_mut(&mut self.pages);
        let end = (to as usize).div_ceil(PAGE).min(pages.len());
        for (number, page) in pages.iter_mut().enumerate().take(end).skip(from as usize / PAGE) {
            if let Some(page) = page {
                *page = other.pages.get(number).cloned().flatten().unwrap_or_else(|| Arc::clone(&ZEROS));
            }
        }
    }

    /// Takes blocks for a range without changing a byte.
    pub(super) fn allocate(&mut self, offset: u64, length: u64) {
        let pages = Arc::make_mut(&mut self.pages);
        let (first, end) = (offset as usize / PAGE, ((offset + length) as usize).div_ceil(PAGE));
        if pages.len() < end {
            pages.resize(end, None);
        }
        pages[first..end].iter_mut().for_each(|page| {
            page.get_or_insert_with(|| Arc::clone(&ZEROS));
        });
        self.length = self.length.max(offset + length);
    }

    /// Bytes this version takes on the device.
    pub(super) fn bytes_taken(&self) -> u64 {
        self.pages.iter().flatten().count() as u64 * PAGE as u64
    }

    /// Pages that a write would have to take.
    pub(super) fn holes(&self, offset: u64, length: u64) -> u64 {
        let pages = pieces(offset, length as usize).map(|(page, _, _)| page);
        pages.filter(|page| !matches!(self.pages.get(*page), Some(Some(_)))).count() as u64
    }

    /// Something that differs when the bytes do.
    pub(super) fn fingerprint(&self, hasher: &mut impl Hasher) {
        self.length.hash(hasher);
        for (number, page) in self.pages.iter().enumerate() {
            if let Some(page) = page {
                let print = page.print.get_or_init(|| {
                    let mut hasher = DefaultHasher::new();
                    let hash = blake3::hash(&page.bytes);
                    hash.as_bytes().hash(&mut hasher);
                    hasher.finish()
                });
                (number, print).hash(hasher);
            }
        }
    }
}

/// A range of a file, page by page: the page, the offset within it, the part of the buffer.
fn pieces(offset: u64, length: usize) -> impl Iterator<Item = (usize, usize, std::ops::Range<usize>)> {
    let offset = offset as usize;
    let mut done = 0;
    std::iter::from_fn(move || {
        let within = (offset + done) % PAGE;
        let size = (PAGE - within).min(length - done);
        (size > 0).then(|| {
            let piece = ((offset + done) / PAGE, within, done..done + size);
            done += size;
            piece
        })
    })
}
