//! Merging: many runs become one, a bounded piece at a time.
//!
//! Duty: keep runs few. Sixteen of one size class become one of the next, and when more than half of all
//! entries say nothing any more, all runs become one. Each checkpoint does a piece of each merge that is
//! under way, in its own transaction, and says how far it came; so a crash costs nothing and no step is long.
//! The result is seen when it is whole. What a newer entry overrules is left out, and so is the word that a
//! key is gone when nothing older is left that could know it. The old rows go piece by piece too.

use super::Pages;
use super::cursor::Walk;
use super::page::{PAGE_ENTRIES, head};
use super::runs::{Out, Run, Runs, Writer, remove_rows, save_filter, size_class};
use super::table::Prefix;
use crate::filter::probe;
use crate::limits::{GARBAGE_ENTRIES_MIN, RUNS_PER_SIZE};
use larder_kernels::Level;
use std::ops::Range;

/// A merge under way.
#[derive(Debug)]
pub(super) struct Merge {
    pub(super) target: Run,
    /// Neighbours in age, newest first.
    pub(super) sources: Vec<u32>,
    /// The oldest run is among them.
    pub(super) is_oldest: bool,
    /// The last key that was dealt with.
    pub(super) after: Option<Prefix>,
}

impl Merge {
    /// Rows of the target's filter that are kept so far.
    pub(super) fn filter_rows(&self, level: Level) -> usize {
        self.after.map_or(0, |after| self.target.filter.row_of(&probe(level, &after)) + 1)
    }

    /// Merges about `budget` entries; true when nothing is left.
    fn advance(
        &mut self,
        level: Level,
        pages: &Pages,
        out: &mut Out<'_>,
        budget: u64,
    ) -> Result<bool, redb::Error> {
        let mut walk = Walk::new(pages, self.sources.iter().copied(), self.after.as_ref())?;
        let first_row = self.filter_rows(level).saturating_sub(1);
        let mut writer = Writer::new(level, &mut self.target, &mut out.pages);
        let mut passed = 0;
        let whole = loop {
            let Some((prefix, place, entries)) = walk.next()? else { break true };
            passed += entries;
            self.after = Some(prefix);
            if place.is_some() || !self.is_oldest {
                writer.push(&prefix, place.as_ref())?;
            }
            let pause = passed >= budget && (writer.page_is_full() || passed >= 2 * budget);
            if pause && walk.head() != Some(head(&prefix)) {
                break false;
            }
        };
        writer.end_page()?;
        let rows = if whole { self.target.filter.rows() } else { self.filter_rows(level) };
        save_filter(&self.target, first_row..rows, &mut out.filters)?;
        Ok(whole)
    }
}

impl Runs {
    /// Starts the merges that are due. `blocks` is how many entries would do.
    pub(super) fn plan(&mut self, blocks: u64) {
        let idle = self.newest_first.iter().rev().take_while(|run| !self.is_merging(run.id)).count();
        if self.entries() > 2 * blocks + GARBAGE_ENTRIES_MIN && idle >= 2 {
            let all = self.newest_first.len();
            self.start(all - idle..all, blocks);
        }
        while let Some(crowd) = self.crowd() {
            self.start(crowd, blocks);
        }
    }

    fn is_merging(&self, run: u32) -> bool {
        self.merges.iter().any(|merge| merge.sources.contains(&run))
    }

    /// Neighbours of one size class of which there are too many. A small run among older, larger ones counts
    /// as large, so that classes never fall with age.
    fn crowd(&self) -> Option<Range<usize>> {
        let mut class = 0;
        let mut start = 0;
        for (number, run) in self.newest_first.iter().enumerate() {
            let its_class = size_class(run.entries).max(class);
            let is_merging = self.is_merging(run.id);
            if is_merging || its_class > class {
                if number - start >= RUNS_PER_SIZE {
                    return Some(start..number);
                }
                (class, start) = (its_class, number + usize::from(is_merging));
            }
        }
        let end = self.newest_first.len();
        (end - start >= RUNS_PER_SIZE).then_some(start..end)
    }

    fn start(&mut self, which: Range<usize>, blocks: u64) {
        let is_all = which.len() == self.newest_first.len();
        let is_oldest = which.end == self.newest_first.len();
        let sources = &self.newest_first[which];
        let entries: u64 = sources.iter().map(|run| run.entries).sum();
        let sources = sources.iter().map(|run| run.id).collect();
        let target = self.begin(if is_all { entries.min(blocks) } else { entries });
        self.merges.push(Merge { target, sources, is_oldest, after: None });
    }

    /// Does about `budget` entries of each merge. The sources are read as the last checkpoint left them.
    pub(super) fn advance(
        &mut self,
        pages: &Pages,
        out: &mut Out<'_>,
        budget: u64,
    ) -> Result<(), redb::Error> {
        let mut under_way = Vec::new();
        for mut merge in std::mem::take(&mut self.merges) {
            if merge.advance(self.level, pages, out, budget)? {
                self.replace(merge);
            } else {
                under_way.push(merge);
            }
        }
        self.merges = under_way;
        Ok(())
    }

    fn replace(&mut self, merge: Merge) {
        let Merge { target, sources, .. } = merge;
        let place = self.newest_first.iter().position(|run| sources.contains(&run.id)).unwrap_or(0);
        self.newest_first.retain(|run| !sources.contains(&run.id));
        if target.entries > 0 {
            self.newest_first.insert(place, target);
        } else {
            self.dropping.push(target.id);
        }
        self.dropping.extend(sources);
    }

    /// Removes old rows, about as many as `entries` entries take.
    pub(super) fn drop_merged(&mut self, out: &mut Out<'_>, entries: u64) -> Result<(), redb::Error> {
        let mut budget = usize::try_from(entries).unwrap_or(usize::MAX) / PAGE_ENTRIES + 1;
        while budget > 0
            && let Some(run) = self.dropping.first().copied()
        {
            for rows in [&mut out.pages, &mut out.filters] {
                budget -= remove_rows(rows, run, budget)?;
            }
            if budget > 0 {
                self.dropping.remove(0);
            }
        }
        Ok(())
    }
}
