//! Merging: many runs become one, a bounded piece at a time.
//!
//! Duty: keep runs few. Sixteen of one size class become one of the next, and when more than half of all
//! entries say nothing any more, all runs become one. Each checkpoint does a piece of each merge that is
//! under way, in its own transaction, and says how far it came; so a crash costs nothing and no step is long.
//! The result is seen when it is whole. What a newer entry overrules is left out, and so is the word that a
//! key is gone when nothing older is left that could know it. The old rows go piece by piece too.

use super::cursor::Walk;
use super::page::PAGE_ENTRIES;
use super::pages::{Kind, Pages, remove_rows};
use super::runs::{Run, Runs, Writer, save_filter, size_class};
use super::table::{Prefix, head};
use crate::filter::probe;
use crate::limits::RUNS_PER_SIZE;
use larder_kernels::Level;
use redb::WriteTransaction;
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

/// What was merged since the index was opened.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct MergeCounts {
    /// Merges that came to their end.
    pub(crate) finished: u64,
    /// Merges of all runs that were begun because most of their entries said nothing any more.
    pub(crate) collections: u64,
}

impl Merge {
    /// Rows of the target's filter that are kept so far.
    pub(super) fn filter_rows(&self, level: Level) -> usize {
        self.after.map_or(0, |after| self.target.filter.row_of(&probe(level, &after)) + 1)
    }

    /// Merges about `budget` entries. Says whether nothing is left, and how many bytes of the filter it wrote.
    fn advance(
        &mut self,
        level: Level,
        pages: &mut Pages,
        out: &WriteTransaction,
        budget: u64,
    ) -> Result<(bool, u64), redb::Error> {
        let mut walk = Walk::new(pages, self.sources.iter().copied(), self.after.as_ref())?;
        let first_row = self.filter_rows(level).saturating_sub(1);
        let mut writer = Writer::new(level, &mut self.target, out)?;
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
        drop(writer);
        let rows = if whole { self.target.filter.rows() } else { self.filter_rows(level) };
        Ok((whole, save_filter(&self.target, first_row..rows, out)?))
    }
}

impl Runs {
    /// Starts the merges that are due. `blocks` is how many entries would do, `garbage` how many more there may be.
    pub(super) fn plan(&mut self, blocks: u64, garbage: u64) {
        let idle = self.newest_first.iter().rev().take_while(|run| !self.is_merging(run.id)).count();
        if self.entries() > 2 * blocks + garbage && idle >= 2 {
            self.merged.collections += 1;
            let all = self.newest_first.len();
            self.start(all - idle..all, blocks);
        }
        while let Some(crowd) = self.crowd() {
            self.start(crowd, blocks);
        }
    }

    pub(super) fn has_work(&self) -> bool {
        !self.merges.is_empty() || !self.dropping.is_empty()
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
        pages: &mut Pages,
        out: &WriteTransaction,
        budget: u64,
    ) -> Result<(), redb::Error> {
        let mut under_way = Vec::new();
        for mut merge in std::mem::take(&mut self.merges) {
            let (whole, filter_bytes) = merge.advance(self.level, pages, out, budget)?;
            self.filter_bytes_written += filter_bytes;
            if whole {
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
        self.merged.finished += 1;
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
    pub(super) fn drop_merged(&mut self, out: &WriteTransaction, entries: u64) -> Result<(), redb::Error> {
        let mut budget = usize::try_from(entries).unwrap_or(usize::MAX) / PAGE_ENTRIES + 1;
        while budget > 0
            && let Some(run) = self.dropping.first().copied()
        {
            for kind in [Kind::Pages, Kind::Filter] {
                budget -= remove_rows(out, kind, run, budget)?;
            }
            if budget > 0 {
                self.dropping.remove(0);
            }
        }
        Ok(())
    }
}
