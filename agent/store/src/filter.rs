//! Filters: what answers for certain that a key is not there, without asking redb.
//!
//! Duty: one split-block bloom filter over the keys of one thing (a sorted run, the memory table, the marks of
//! a cleaning), sized once and never grown. It is kept as rows of some kilobytes. Keys in ascending order fill its
//! blocks in ascending order, so a filter can be saved piece by piece while its run is being written.
//! Memory: the bits per key its owner asks for.

use crate::format::u32_at;
use larder_kernels::Level;
use larder_kernels::bloom::{BLOCK_BYTES, Block, Probe, blocks_for};
use std::ops::Range;

/// Blocks of one row: with its key and page header it fills a 4 KiB leaf of redb's tree.
const ROW_BLOCKS: usize = 127;

#[derive(Clone, Debug)]
pub(crate) struct Filter {
    blocks: Vec<Block>,
}

/// A key prepared for any number of filters: the first eight bytes of a hash are as mixed as it has to be.
pub(crate) fn probe(level: Level, hash: &[u8]) -> Probe {
    let first = hash.first_chunk().map_or(0, |first| u64::from_be_bytes(*first));
    Probe::of(level, first)
}

impl Filter {
    /// Sized for `keys` keys at so many tenths of a bit each.
    pub(crate) fn sized_for(keys: u64, decibits_per_key: u32) -> Self {
        Self { blocks: vec![Block::default(); blocks_for(keys, decibits_per_key)] }
    }

    pub(crate) fn with_blocks(blocks: usize) -> Self {
        Self { blocks: vec![Block::default(); blocks] }
    }

    pub(crate) fn insert(&mut self, probe: &Probe) {
        probe.add_to(&mut self.blocks);
    }

    /// Has the processor fetch what [`Filter::contains`] will look at.
    pub(crate) fn fetch(&self, probe: &Probe) {
        probe.fetch(&self.blocks);
    }

    pub(crate) fn contains(&self, probe: &Probe) -> bool {
        probe.is_in(&self.blocks)
    }

    pub(crate) fn blocks(&self) -> usize {
        self.blocks.len()
    }

    pub(crate) fn bytes(&self) -> u64 {
        (self.blocks.len() * BLOCK_BYTES) as u64
    }

    pub(crate) fn rows(&self) -> usize {
        self.blocks.len().div_ceil(ROW_BLOCKS)
    }

    /// The row a key belongs to.
    pub(crate) fn row_of(&self, probe: &Probe) -> usize {
        probe.block_number(self.blocks.len()) / ROW_BLOCKS
    }

    /// A row: its blocks.
    pub(crate) fn encode_row(&self, row: usize) -> Vec<u8> {
        let blocks = &self.blocks[self.blocks_of(row)];
        blocks.iter().flat_map(|block| block.0).flat_map(u32::to_le_bytes).collect()
    }

    /// Takes a saved row in; false if it is none.
    pub(crate) fn decode_row(&mut self, row: usize, bytes: &[u8]) -> bool {
        let range = self.blocks_of(row);
        if bytes.len() != range.len() * BLOCK_BYTES {
            return false;
        }
        for (block, saved) in self.blocks[range].iter_mut().zip(bytes.chunks_exact(BLOCK_BYTES)) {
            *block = Block(std::array::from_fn(|lane| u32_at(saved, lane * 4)));
        }
        true
    }

    fn blocks_of(&self, row: usize) -> Range<usize> {
        let blocks = self.blocks.len();
        (row * ROW_BLOCKS).min(blocks)..((row + 1) * ROW_BLOCKS).min(blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(number: u64) -> [u8; 32] {
        *blake3::hash(&number.to_le_bytes()).as_bytes()
    }

    #[test]
    fn rows_bring_a_filter_back_and_a_shortened_one_is_refused() {
        let mut filter = Filter::sized_for(10_000, 220);
        (0..10_000).for_each(|n| filter.insert(&probe(Level::PORTABLE, &hash(n))));
        let mut other = Filter::with_blocks(filter.blocks());
        for row in 0..filter.rows() {
            let bytes = filter.encode_row(row);
            assert!(!other.decode_row(row, &bytes[1..]));
            assert!(other.decode_row(row, &bytes));
        }
        assert_eq!(filter.blocks, other.blocks);
    }

    #[test]
    fn ascending_keys_fill_rows_in_ascending_order() {
        let filter = Filter::sized_for(100_000, 220);
        let mut hashes: Vec<[u8; 32]> = (0..10_000).map(hash).collect();
        hashes.sort_unstable();
        let rows: Vec<usize> =
            hashes.iter().map(|hash| filter.row_of(&probe(Level::PORTABLE, hash))).collect();
        assert!(rows.is_sorted() && rows.last() == Some(&(filter.rows() - 1)));
    }
}
