//! Walking over sorted runs.
//!
//! Duty: give the entries of one run in order, or those of many as one order in which the newest word about a
//! key wins. Memory is one page a run.

use super::page::Page;
use super::pages::{Pages, RunPages, damaged_page};
use super::table::{Place, Prefix, head};
use redb::{AccessGuard, Range};

/// Entries of one run, in order.
struct Cursor {
    rows: Range<'static, u64, &'static [u8]>,
    page: Option<AccessGuard<'static, &'static [u8]>>,
    length: usize,
    next: usize,
    /// The entry `next` stands at.
    entry: Option<(Prefix, Option<Place>)>,
}

impl Cursor {
    /// Stands at the first entry behind `after`.
    fn new(pages: &RunPages, after: Option<&Prefix>) -> Result<Self, redb::Error> {
        let rows = pages.range(after.map_or(0, head)..)?;
        let mut cursor = Self { rows, page: None, length: 0, next: 0, entry: None };
        cursor.turn_page()?;
        if let (Some(page), Some(after)) = (cursor.page(), after) {
            cursor.next = page.lower_bound(after);
            cursor.load()?;
            if cursor.entry.is_some_and(|(prefix, _)| prefix == *after) {
                cursor.step()?;
            }
        }
        Ok(cursor)
    }

    fn step(&mut self) -> Result<(), redb::Error> {
        self.next += 1;
        self.load()
    }

    fn load(&mut self) -> Result<(), redb::Error> {
        if self.next >= self.length {
            return self.turn_page();
        }
        self.entry = self.page().map(|page| page.entry(self.next));
        Ok(())
    }

    fn page(&self) -> Option<Page<'_>> {
        self.page.as_ref().and_then(|page| Page::of(page.value()))
    }

    fn turn_page(&mut self) -> Result<(), redb::Error> {
        let Some(row) = self.rows.next() else {
            (self.page, self.entry) = (None, None);
            return Ok(());
        };
        let (_, guard) = row?;
        let page = Page::of(guard.value()).filter(|page| page.len() > 0).ok_or_else(damaged_page)?;
        (self.length, self.next, self.entry) = (page.len(), 0, Some(page.entry(0)));
        self.page = Some(guard);
        Ok(())
    }
}

/// Entries of many runs as one order.
pub(super) struct Walk {
    /// Newest first.
    cursors: Vec<Cursor>,
}

impl Walk {
    /// Over runs given newest first, behind `after`.
    pub(super) fn new(
        pages: &mut Pages,
        runs: impl Iterator<Item = u32>,
        after: Option<&Prefix>,
    ) -> Result<Self, redb::Error> {
        let mut cursors = Vec::new();
        for run in runs {
            cursors.push(Cursor::new(pages.of(run)?, after)?);
        }
        cursors.retain(|cursor| cursor.entry.is_some());
        Ok(Self { cursors })
    }

    /// The beginning of the next key.
    pub(super) fn head(&self) -> Option<u64> {
        self.cursors.iter().filter_map(|cursor| cursor.entry).map(|(prefix, _)| head(&prefix)).min()
    }

    /// The next key and the newest word about it, and how many entries were passed for it.
    pub(super) fn next(&mut self) -> Result<Option<(Prefix, Option<Place>, u64)>, redb::Error> {
        let mut found: Option<(Prefix, Option<Place>)> = None;
        for (prefix, place) in self.cursors.iter().filter_map(|cursor| cursor.entry) {
            if found.is_none_or(|(least, _)| prefix < least) {
                found = Some((prefix, place));
            }
        }
        let Some((prefix, place)) = found else { return Ok(None) };
        let mut passed = 0;
        for cursor in &mut self.cursors {
            if cursor.entry.is_some_and(|(other, _)| other == prefix) {
                cursor.step()?;
                passed += 1;
            }
        }
        Ok(Some((prefix, place, passed)))
    }
}
