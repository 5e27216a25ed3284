//! The blocks all peers store: incompressible, different in every round, the same for every peer.

use bytes::Bytes;

/// A block and its name, computed before the clock starts.
pub type Block = ([u8; 32], Bytes);

/// Block number `number` among those of `size` bytes.
pub fn block(size: usize, number: u64) -> Block {
    let mut bytes = vec![0; size];
    let mut seed = [0; 16];
    seed[..8].copy_from_slice(&(size as u64).to_le_bytes());
    seed[8..].copy_from_slice(&number.to_le_bytes());
    blake3::Hasher::new().update(&seed).finalize_xof().fill(&mut bytes);
    (*blake3::hash(&bytes).as_bytes(), bytes.into())
}

/// A name that no block has.
pub fn missing(number: u64) -> [u8; 32] {
    *blake3::hash(&[b"missing".as_slice(), &number.to_le_bytes()].concat()).as_bytes()
}

/// SplitMix64: which blocks are read; the same for every peer.
pub fn mixed(number: u64) -> u64 {
    let mut state = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}
