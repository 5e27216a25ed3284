//! The sorted runs: which there are, what is found in them, and how a new one comes.
//!
//! Duty: keep blocks' places as runs, each written once, in order, and never changed: the memory table of each
//! checkpoint becomes the newest. Each run has a filter of its own, so a look-up reads one page of one run and
//! a miss none. The newest word about a key counts. When runs of one size get many, `merge` makes one of them.
//! Memory: the filters, and some numbers a run.

use super::cursor::Walk;
use super::merge::{Merge, MergeCounts};
use super::page::{Builder, Page};
use super::pages::{Kind, Pages, Rows, damaged_page, read_rows, write_rows};
use super::table::{Place, Prefix, head};
use crate::filter::{Filter, probe};
use crate::limits::{RUN_DECIBITS, RUN_SIZES};
use larder_kernels::Level;
use larder_kernels::bloom::Probe;
use redb::{ReadTransaction, WriteTransaction};

#[derive(Debug)]
pub(super) struct Run {
    pub(super) id: u32,
    pub(super) entries: u64,
    pub(super) filter: Filter,
}

/// All runs of an index.
#[derive(Debug)]
pub(super) struct Runs {
    pub(super) level: Level,
    pub(super) newest_first: Vec<Run>,
    pub(super) merges: Vec<Merge>,
    /// Merged ones whose rows are still there.
    pub(super) dropping: Vec<u32>,
    pub(super) next_id: u32,
    /// Bytes of filters written since the index was opened.
    pub(super) filter_bytes_written: u64,
    pub(super) merged: MergeCounts,
}

/// What the runs say of a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) place: Option<Place>,
    /// Pages read for nothing.
    pub(crate) in_vain: u64,
}

impl Runs {
    pub(super) fn new(level: Level) -> Self {
        let (newest_first, merges, dropping, merged) = Default::default();
        Self { level, newest_first, merges, dropping, next_id: 0, filter_bytes_written: 0, merged }
    }

    pub(super) fn find(
        &self,
        pages: &mut Pages,
        prefix: &Prefix,
        probe: &Probe,
    ) -> Result<Answer, redb::Error> {
        let mut in_vain = 0;
        for run in self.newest_first.iter().filter(|run| run.filter.contains(probe)) {
            if let Some(row) = pages.of(run.id)?.range(head(prefix)..)?.next() {
                let (_, bytes) = row?;
                let page = Page::of(bytes.value()).ok_or_else(damaged_page)?;
                if let Some(place) = page.find(prefix) {
                    return Ok(Answer { place, in_vain });
                }
            }
            in_vain += 1;
        }
        Ok(Answer { place: None, in_vain })
    }

    /// Whether any run may know a key; false is certain.
    pub(super) fn may_know(&self, probe: &Probe) -> bool {
        self.newest_first.iter().any(|run| run.filter.contains(probe))
    }

    /// As [`Runs::may_know`], for many: one filter after the other, so that the processor waits for the bits of
    /// several keys at once.
    pub(super) fn sort_out_known<'a>(
        &self,
        probes: impl Iterator<Item = Option<&'a Probe>> + Clone,
        unknown: &mut [bool],
    ) {
        for run in &self.newest_first {
            let still_unknown =
                || probes.clone().zip(&*unknown).filter_map(|(probe, unknown)| probe.filter(|_| *unknown));
            still_unknown().for_each(|probe| run.filter.fetch(probe));
            for (probe, unknown) in probes.clone().zip(unknown.iter_mut()) {
                *unknown &= !probe.is_some_and(|probe| run.filter.contains(probe));
            }
        }
    }

    /// Entries behind `after`, at most `limit`, those that say that a key is gone included.
    pub(super) fn entries_after(
        &self,
        pages: &mut Pages,
        after: Option<&Prefix>,
        limit: usize,
    ) -> Result<Vec<(Prefix, Option<Place>)>, redb::Error> {
        let mut walk = Walk::new(pages, self.newest_first.iter().map(|run| run.id), after)?;
        let mut entries = Vec::with_capacity(limit);
        while entries.len() < limit
            && let Some((prefix, place, _)) = walk.next()?
        {
            entries.push((prefix, place));
        }
        Ok(entries)
    }

    /// Makes the blocks of a memory table the newest run. The word that a key is gone is left out if no older
    /// run may know it.
    pub(super) fn flush<'a>(
        &mut self,
        blocks: impl ExactSizeIterator<Item = (&'a Prefix, &'a Option<Place>)>,
        out: &WriteTransaction,
    ) -> Result<(), redb::Error> {
        let mut run = self.begin(blocks.len() as u64);
        let mut writer = Writer::new(self.level, &mut run, out)?;
        for (prefix, place) in blocks {
            if place.is_some() || self.may_know(&probe(self.level, prefix)) {
                writer.push(prefix, place.as_ref())?;
            }
        }
        writer.end_page()?;
        if run.entries > 0 {
            self.filter_bytes_written += save_filter(&run, 0..run.filter.rows(), out)?;
            self.newest_first.insert(0, run);
        }
        Ok(())
    }

    /// A run for about so many entries.
    pub(super) fn begin(&mut self, entries: u64) -> Run {
        let id = self.next_id;
        // Four thousand million runs are more than any flash outlives.
        self.next_id = self.next_id.wrapping_add(1);
        Run { id, entries: 0, filter: Filter::sized_for(entries, decibits(entries)) }
    }

    pub(super) fn entries(&self) -> u64 {
        self.newest_first.iter().map(|run| run.entries).sum()
    }

    /// Bytes of all filters.
    pub(super) fn filter_bytes(&self) -> u64 {
        let merging = self.merges.iter().map(|merge| &merge.target);
        self.newest_first.iter().chain(merging).map(|run| run.filter.bytes()).sum()
    }

    /// The list of runs, for the index to keep.
    pub(super) fn encode(&self) -> Vec<u8> {
        let list = |ids: &[u32]| -> Vec<u64> {
            std::iter::once(ids.len() as u64).chain(ids.iter().map(|id| u64::from(*id))).collect()
        };
        let mut words = vec![u64::from(self.next_id), self.newest_first.len() as u64];
        words.extend(self.newest_first.iter().flat_map(Run::words));
        words.push(self.merges.len() as u64);
        for merge in &self.merges {
            words.extend(merge.target.words());
            words.extend([u64::from(merge.is_oldest), u64::from(merge.after.is_some())]);
            let after = merge.after.unwrap_or_default();
            words.extend([0, 8, 16].map(|at| crate::format::u64_at(&after, at)));
            words.extend(list(&merge.sources));
        }
        words.extend(list(&self.dropping));
        words.into_iter().flat_map(u64::to_le_bytes).collect()
    }

    /// The runs of a list, with their filters. None if the list or a filter is not what was written.
    pub(super) fn load(
        level: Level,
        list: &[u8],
        from: &ReadTransaction,
    ) -> Result<Option<Self>, redb::Error> {
        let mut words = list.chunks_exact(8).map(|word| crate::format::u64_at(word, 0));
        let Some(mut runs) = Self::decode(level, &mut words) else { return Ok(None) };
        for run in &mut runs.newest_first {
            let rows = run.filter.rows();
            if !load_filter(run, rows, from)? {
                return Ok(None);
            }
        }
        for merge in &mut runs.merges {
            let rows = merge.filter_rows(level);
            if !load_filter(&mut merge.target, rows, from)? {
                return Ok(None);
            }
        }
        Ok(Some(runs))
    }

    fn decode(level: Level, words: &mut impl Iterator<Item = u64>) -> Option<Self> {
        let list = |words: &mut dyn Iterator<Item = u64>| -> Option<Vec<u32>> {
            let count = words.next()?;
            (0..count).map(|_| u32::try_from(words.next()?).ok()).collect()
        };
        let mut runs = Self::new(level);
        runs.next_id = u32::try_from(words.next()?).ok()?;
        let count = words.next()?;
        runs.newest_first = (0..count).map(|_| Run::of_words(words)).collect::<Option<_>>()?;
        for _ in 0..words.next()? {
            let target = Run::of_words(words)?;
            let (is_oldest, begun) = (words.next()? != 0, words.next()? != 0);
            let mut after = Prefix::default();
            for bytes in after.chunks_exact_mut(8) {
                bytes.copy_from_slice(&words.next()?.to_le_bytes());
            }
            let sources = list(words)?;
            runs.merges.push(Merge { target, sources, is_oldest, after: begun.then_some(after) });
        }
        runs.dropping = list(words)?;
        Some(runs)
    }
}

impl Run {
    fn words(&self) -> [u64; 3] {
        [u64::from(self.id), self.entries, self.filter.blocks() as u64]
    }

    fn of_words(words: &mut impl Iterator<Item = u64>) -> Option<Self> {
        let (id, entries) = (u32::try_from(words.next()?).ok()?, words.next()?);
        let filter = Filter::with_blocks(u32::try_from(words.next()?).ok()? as usize);
        Some(Self { id, entries, filter })
    }
}

/// Writes entries, given in order, to the end of a run.
pub(super) struct Writer<'a, 't> {
    level: Level,
    run: &'a mut Run,
    rows: Rows<'t>,
    page: Builder,
}

impl<'a, 't> Writer<'a, 't> {
    pub(super) fn new(
        level: Level,
        run: &'a mut Run,
        out: &'t WriteTransaction,
    ) -> Result<Self, redb::Error> {
        let rows = write_rows(out, Kind::Pages, run.id)?;
        Ok(Self { level, run, rows, page: Builder::default() })
    }

    pub(super) fn push(&mut self, prefix: &Prefix, place: Option<&Place>) -> Result<(), redb::Error> {
        // Rows are found by the heads of their last entries: equal heads stay together.
        if !self.page.fits(prefix, place) && self.page.last() != Some(head(prefix)) {
            self.end_page()?;
        }
        self.page.push(prefix, place);
        self.run.filter.insert(&probe(self.level, prefix));
        self.run.entries += 1;
        Ok(())
    }

    pub(super) fn page_is_full(&self) -> bool {
        self.page.is_full()
    }

    pub(super) fn end_page(&mut self) -> Result<(), redb::Error> {
        if let Some(last) = self.page.last() {
            self.rows.insert(last, self.page.finish().as_slice())?;
        }
        Ok(())
    }
}

/// Writes rows of a run's filter, and says how many bytes that were.
pub(super) fn save_filter(
    run: &Run,
    rows: std::ops::Range<usize>,
    out: &WriteTransaction,
) -> Result<u64, redb::Error> {
    let mut filter = write_rows(out, Kind::Filter, run.id)?;
    let mut bytes = 0;
    for row in rows {
        let encoded = run.filter.encode_row(row);
        filter.insert(row as u64, encoded.as_slice())?;
        bytes += encoded.len() as u64;
    }
    Ok(bytes)
}

/// Takes in the first `rows` of a run's filter; false if one is missing or damaged.
fn load_filter(run: &mut Run, rows: usize, from: &ReadTransaction) -> Result<bool, redb::Error> {
    if rows == 0 {
        return Ok(true);
    }
    let mut saved = read_rows(from, Kind::Filter, run.id)?.range(0..)?;
    for row in 0..rows {
        let Some((key, bytes)) = saved.next().transpose()? else { return Ok(false) };
        if key.value() != row as u64 || !run.filter.decode_row(row, bytes.value()) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Sizes are told apart by factors of 16, so that a run made of 16 is of the next.
pub(super) fn size_class(entries: u64) -> usize {
    RUN_SIZES.partition_point(|size| *size <= entries)
}

fn decibits(entries: u64) -> u32 {
    RUN_DECIBITS[size_class(entries).min(RUN_DECIBITS.len() - 1)]
}
