//! Split-block bloom filter: membership of 64-bit keys, each probe inside one 32-byte block.
//!
//! Duty: add keys to, and ask for keys in, a slice of blocks that the caller owns. A key that was added is
//! always found; one that was not is found at a rate that the size decides, see [`blocks_for`]. Keys must
//! already be well mixed (the first bytes of a BLAKE3 hash are); keys can not be taken out again. An empty
//! slice holds nothing and is never full.
//! The layout is the one of Parquet (Putze, Sanders, Singler: "Cache-, Hash- and Space-Efficient Bloom
//! Filters", 2007): block number from the upper 32 bits, eight bits in eight lanes from the lower 32.

use crate::Level;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
use crate::isa::neon::Neon;
#[cfg(target_arch = "x86_64")]
use crate::isa::{avx2::Avx2, avx512::Avx512};
use crate::level::Isa;

/// One block: eight lanes of 32 bits, one bit of each lane is set per key. It lies in one line of a cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(align(32))]
pub struct Block(pub [u32; 8]);

/// Bytes of one block.
pub const BLOCK_BYTES: usize = 32;

/// Odd multipliers that pick a bit in each lane; the constants of the Parquet specification.
pub(crate) const SALTS: Block = Block([
    0x47b6_137b,
    0x4497_4d91,
    0x8824_ad5b,
    0xa2b7_289d,
    0x7054_95c7,
    0x2df1_424b,
    0x9efc_4947,
    0x5c6b_fb31,
]);

/// How many blocks a filter for `keys` keys needs at this many tenths of a bit per key; at least one, at most
/// `u32::MAX`. 108 give at most 1 % false positives, 170 about 0.1 %.
pub fn blocks_for(keys: u64, decibits_per_key: u32) -> usize {
    let bits = keys.saturating_mul(u64::from(decibits_per_key)).div_ceil(10);
    let blocks = bits.div_ceil(BLOCK_BYTES as u64 * 8).clamp(1, u64::from(u32::MAX));
    usize::try_from(blocks).unwrap_or(u32::MAX as usize)
}

/// How many keys a filter of `blocks` blocks holds at that rate; the inverse of [`blocks_for`].
pub fn keys_for(blocks: usize, decibits_per_key: u32) -> u64 {
    blocks as u64 * BLOCK_BYTES as u64 * 8 * 10 / u64::from(decibits_per_key.max(1))
}

/// A key prepared to be looked for in any number of filters, of any sizes.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    /// Where in a filter its block is, in parts of 2^32.
    place: u32,
    bits: Bits,
}

/// The key's bits in its block, ready, or where vectors make them faster than they are read, what makes them.
#[derive(Clone, Copy, Debug)]
enum Bits {
    Ready([u32; 8]),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2, u32),
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    Neon(Neon, u32),
}

impl Probe {
    /// Prepares a key.
    #[inline]
    pub fn of(level: Level, key: u64) -> Probe {
        let low = key as u32;
        let bits = match level.0 {
            Isa::Portable => Bits::Ready(SALTS.0.map(|salt| 1 << (low.wrapping_mul(salt) >> 27))),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(isa) | Isa::Avx512(Avx512(isa)) => Bits::Avx2(isa, low),
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            Isa::Neon(isa) => Bits::Neon(isa, low),
        };
        Probe { place: (key >> 32) as u32, bits }
    }

    /// Adds the key. Does nothing on an empty slice.
    #[inline]
    pub fn add_to(&self, blocks: &mut [Block]) {
        let number = self.block_number(blocks.len());
        let Some(block) = blocks.get_mut(number) else { return };
        match &self.bits {
            Bits::Ready(bits) => block.0.iter_mut().zip(bits).for_each(|(lane, bit)| *lane |= bit),
            #[cfg(target_arch = "x86_64")]
            Bits::Avx2(isa, low) => isa.set_bits(block, *low),
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            Bits::Neon(isa, low) => isa.set_bits(block, *low),
        }
    }

    /// Whether the key may have been added. `false` is certain. An empty slice contains nothing.
    #[inline]
    pub fn is_in(&self, blocks: &[Block]) -> bool {
        let Some(block) = blocks.get(self.block_number(blocks.len())) else { return false };
        match &self.bits {
            Bits::Ready(bits) => {
                block.0.iter().zip(bits).fold(0, |missing, (lane, bit)| missing | (bit & !lane)) == 0
            }
            #[cfg(target_arch = "x86_64")]
            Bits::Avx2(isa, low) => isa.has_bits(block, *low),
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            Bits::Neon(isa, low) => isa.has_bits(block, *low),
        }
    }

    /// Has the processor fetch the block that [`Probe::is_in`] will look at, and waits for nothing: several keys'
    /// blocks are then on their way at once.
    #[inline]
    pub fn fetch(&self, blocks: &[Block]) {
        if let Some(block) = blocks.get(self.block_number(blocks.len())) {
            crate::isa::fetch(block);
        }
    }

    /// Which block of so many is the key's: greater keys have greater ones. Multiply-shift instead of a
    /// remainder: no division, and no power-of-two sizes.
    #[inline]
    pub fn block_number(&self, blocks: usize) -> usize {
        ((u64::from(self.place) * blocks as u64) >> 32) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn insert(blocks: &mut [Block], key: u64) {
        Probe::of(Level::PORTABLE, key).add_to(blocks);
    }

    fn contains(blocks: &[Block], key: u64) -> bool {
        Probe::of(Level::PORTABLE, key).is_in(blocks)
    }

    /// SplitMix64: a mixed sequence without a dependency.
    fn mixed(number: u64) -> u64 {
        let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        state ^ (state >> 31)
    }

    #[test]
    fn false_positives_stay_below_the_stated_rate() {
        // `most` in a hundred thousand
        for (keys, decibits, most) in [(1_000_u64, 108, 1_000), (65_536, 170, 125), (300_000, 108, 1_000)] {
            let mut blocks = vec![Block::default(); blocks_for(keys, decibits)];
            (1..=keys).for_each(|number| insert(&mut blocks, mixed(number)));
            let probes = 400_000_u64;
            let wrong = (1..=probes).filter(|n| contains(&blocks, mixed(n + 1_000_000_000))).count() as u64;
            assert!(
                wrong * 100_000 <= probes * most,
                "{wrong} of {probes} at {keys} keys, {decibits} decibits"
            );
        }
    }

    #[test]
    fn an_empty_slice_holds_nothing_and_takes_anything() {
        insert(&mut [], 7);
        assert!(!contains(&[], 7));
    }

    #[test]
    fn sizes_are_inverse_and_bounded() {
        for keys in [0, 1, 24, 25, 1_000_000, 10_000_000] {
            for decibits in [1, 108, 175] {
                let blocks = blocks_for(keys, decibits);
                assert!(blocks >= 1);
                assert!(keys_for(blocks, decibits) >= keys, "{keys} keys do not fit {blocks} blocks");
            }
        }
        assert!(blocks_for(u64::MAX, 108) <= u32::MAX as usize);
    }

    #[test]
    fn bits_stay_where_the_parquet_layout_puts_them() {
        let mut blocks = [Block::default(); 4];
        insert(&mut blocks, 0x8000_0000_0000_0001);
        assert_eq!(blocks[2].0, SALTS.0.map(|salt| 1 << (salt >> 27)));
        assert_eq!([blocks[0], blocks[1], blocks[3]], [Block::default(); 3]);
    }

    proptest! {
        #[test]
        fn every_inserted_key_is_found(keys in prop::collection::vec(any::<u64>(), 0..200), size in 1_usize..40) {
            let mut blocks = vec![Block::default(); size];
            keys.iter().for_each(|key| insert(&mut blocks, *key));
            prop_assert!(keys.iter().all(|key| contains(&blocks, *key)));
        }

        #[test]
        fn the_order_of_inserts_changes_no_bit(keys in prop::collection::btree_set(any::<u64>(), 0..100)) {
            let forwards = filled(&keys, keys.iter());
            let backwards = filled(&keys, keys.iter().rev());
            prop_assert_eq!(forwards, backwards);
        }
    }

    fn filled<'a>(keys: &BTreeSet<u64>, order: impl Iterator<Item = &'a u64>) -> Vec<Block> {
        let mut blocks = vec![Block::default(); blocks_for(keys.len() as u64, 108)];
        order.for_each(|key| insert(&mut blocks, *key));
        blocks
    }
}
