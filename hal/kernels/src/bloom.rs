//! Split-block bloom filter: membership of 64-bit keys, each probe inside one 32-byte block.
//!
//! Duty: insert keys into, and ask for keys in, a slice of blocks that the caller owns. A key that was
//! inserted is always found; one that was not is found with a probability of about 1 % when the slice was
//! sized by [`blocks_for`] for the number of keys in it. Keys must already be well mixed (the first bytes
//! of a BLAKE3 hash are); keys can not be taken out again. An empty slice holds nothing and is never full.
//! The layout is the one of Parquet (Putze, Sanders, Singler: "Cache-, Hash- and Space-Efficient Bloom
//! Filters", 2007): block number from the upper 32 bits, eight bits in eight lanes from the lower 32.

/// One block: eight lanes of 32 bits, one bit of each lane is set per key.
pub type Block = [u32; 8];

/// Bytes of one block.
pub const BLOCK_BYTES: usize = 32;

/// Tenths of a bit per key: 10.8 bits give at most 1 % false positives.
const DECIBITS_PER_KEY: u64 = 108;

/// Odd multipliers that pick a bit in each lane; the constants of the Parquet specification.
const SALTS: Block =
    [0x47b6_137b, 0x4497_4d91, 0x8824_ad5b, 0xa2b7_289d, 0x7054_95c7, 0x2df1_424b, 0x9efc_4947, 0x5c6b_fb31];

/// How many blocks a filter for `keys` keys needs; at least one, at most `u32::MAX`.
pub fn blocks_for(keys: u64) -> usize {
    let bits = keys.saturating_mul(DECIBITS_PER_KEY).div_ceil(10);
    let blocks = bits.div_ceil(BLOCK_BYTES as u64 * 8).clamp(1, u64::from(u32::MAX));
    usize::try_from(blocks).unwrap_or(u32::MAX as usize)
}

/// How many keys a filter of `blocks` blocks holds at the stated rate; the inverse of [`blocks_for`].
pub fn keys_for(blocks: usize) -> u64 {
    blocks as u64 * BLOCK_BYTES as u64 * 8 * 10 / DECIBITS_PER_KEY
}

/// Adds a key. Does nothing on an empty slice.
pub fn insert(blocks: &mut [Block], key: u64) {
    let Some(number) = block_number(blocks.len(), key) else { return };
    let mask = mask(key);
    for (lane, bit) in blocks[number].iter_mut().zip(mask) {
        *lane |= bit;
    }
}

/// Whether a key may have been added. `false` is certain. An empty slice contains nothing.
pub fn contains(blocks: &[Block], key: u64) -> bool {
    let Some(number) = block_number(blocks.len(), key) else { return false };
    let mask = mask(key);
    let missing = blocks[number].iter().zip(mask).fold(0, |missing, (lane, bit)| missing | (bit & !lane));
    missing == 0
}

/// Multiply-shift instead of a remainder: no division, and no power-of-two sizes.
fn block_number(blocks: usize, key: u64) -> Option<usize> {
    let number = ((key >> 32) * (blocks as u64)) >> 32;
    (blocks > 0).then_some(number as usize)
}

fn mask(key: u64) -> Block {
    let low = key as u32;
    SALTS.map(|salt| 1 << (low.wrapping_mul(salt) >> 27))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// SplitMix64: a mixed sequence without a dependency.
    fn mixed(number: u64) -> u64 {
        let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        state ^ (state >> 31)
    }

    #[test]
    fn at_most_one_percent_false_positives_at_the_stated_size() {
        for keys in [1_000_u64, 65_536, 300_000] {
            let mut blocks = vec![[0; 8]; blocks_for(keys)];
            (1..=keys).for_each(|number| insert(&mut blocks, mixed(number)));
            let probes = 400_000_u64;
            let wrong = (1..=probes).filter(|n| contains(&blocks, mixed(n + 1_000_000_000))).count() as u64;
            assert!(wrong * 100 <= probes, "{wrong} of {probes} at {keys} keys");
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
            let blocks = blocks_for(keys);
            assert!(blocks >= 1);
            assert!(keys_for(blocks) >= keys, "{keys} keys do not fit {blocks} blocks");
        }
        assert!(blocks_for(u64::MAX) <= u32::MAX as usize);
    }

    #[test]
    fn bits_stay_where_the_parquet_layout_puts_them() {
        let mut blocks = vec![[0_u32; 8]; 4];
        insert(&mut blocks, 0x8000_0000_0000_0001);
        assert_eq!(blocks[2], SALTS.map(|salt| 1 << (salt >> 27)));
        assert_eq!([blocks[0], blocks[1], blocks[3]], [[0; 8]; 3]);
    }

    proptest! {
        #[test]
        fn every_inserted_key_is_found(keys in prop::collection::vec(any::<u64>(), 0..200), size in 1_usize..40) {
            let mut blocks = vec![[0; 8]; size];
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
        let mut blocks = vec![[0; 8]; blocks_for(keys.len() as u64)];
        order.for_each(|key| insert(&mut blocks, *key));
        blocks
    }
}
