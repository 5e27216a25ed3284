//! The filter in front of the index, and its file.
//!
//! Duty: say for certain that a block is not there, without asking redb. It is a split-block bloom filter; it
//! never forgets, so deletions make it say "maybe" more often until it is made again. Its file belongs to
//! one checkpoint: any other is ignored and the filter is made from the index. Memory: 10.8 bits per key it
//! is sized for.

use crate::Hash;
use crate::disk::{Disk, DiskFile, OpenMode};
use crate::format::{FILTER_NAME, StoreId, TEMPORARY_NAME, array_at, u32_at, u64_at};
use crate::limits::FILTER_KEYS_MIN;
use larder_kernels::Level;
use larder_kernels::bloom::{BLOCK_BYTES, Block, Probe, blocks_for, keys_for};
use std::io::{self, IoSlice};

const MAGIC: [u8; 8] = *b"LARDERBF";
const HEADER_BYTES: usize = 64;
/// Tenths of a bit per key: 10.8 bits give at most 1 % false positives.
const DECIBITS_PER_KEY: u32 = 108;
/// Blocks converted to bytes at a time.
const CHUNK_BLOCKS: usize = 8192;

#[derive(Debug)]
pub(crate) struct Filter {
    level: Level,
    blocks: Vec<Block>,
    keys: u64,
}

impl Filter {
    /// Sized for at least `keys` keys.
    pub(crate) fn sized_for(level: Level, keys: u64) -> Self {
        let blocks = vec![[0; 8]; blocks_for(keys.max(FILTER_KEYS_MIN), DECIBITS_PER_KEY)];
        Self { level, blocks, keys: 0 }
    }

    pub(crate) fn insert(&mut self, hash: &Hash) {
        self.probe(hash).add_to(&mut self.blocks);
        self.keys += 1;
    }

    pub(crate) fn contains(&self, hash: &Hash) -> bool {
        self.probe(hash).is_in(&self.blocks)
    }

    /// The first bytes of a hash are as mixed as a key has to be.
    fn probe(&self, hash: &Hash) -> Probe {
        Probe::of(self.level, u64_at(hash, 0))
    }

    /// Holds more keys than its size is for.
    pub(crate) fn is_over_capacity(&self) -> bool {
        self.keys > keys_for(self.blocks.len(), DECIBITS_PER_KEY)
    }

    pub(crate) fn bytes(&self) -> u64 {
        (self.blocks.len() * BLOCK_BYTES) as u64
    }

    /// Writes the filter of a checkpoint beside the old one, syncs it and puts it in its place.
    pub(crate) fn save<D: Disk>(&self, disk: &D, store: &StoreId, seq: u64) -> io::Result<()> {
        let file = disk.open(TEMPORARY_NAME, OpenMode::Create)?;
        let mut check = 0;
        let mut at = HEADER_BYTES as u64;
        for chunk in self.blocks.chunks(CHUNK_BLOCKS) {
            let bytes: Vec<u8> = chunk.iter().flatten().flat_map(|lane| lane.to_le_bytes()).collect();
            check = crc32c::crc32c_append(check, &bytes);
            file.write_gathered(&[IoSlice::new(&bytes)], at)?;
            at += bytes.len() as u64;
        }
        file.write_gathered(&[IoSlice::new(&self.header(store, seq, check))], 0)?;
        file.sync_data()?;
        disk.rename(TEMPORARY_NAME, FILTER_NAME)?;
        disk.sync_dir()
    }

    /// The saved filter, if it is whole and belongs to this checkpoint of this store.
    pub(crate) fn load<D: Disk>(level: Level, disk: &D, store: &StoreId, seq: u64) -> Option<Self> {
        let file = disk.open(FILTER_NAME, OpenMode::Read).ok()?;
        let mut header = [0; HEADER_BYTES];
        file.read_at(&mut header, 0).ok()?;
        let fits = header[..8] == MAGIC
            && header[16..32] == *store
            && u64_at(&header, 32) == seq
            && u32_at(&header, 60) == crc32c::crc32c(&header[..60]);
        let count = u32_at(&header, 12) as usize;
        // The length is compared before anything of that size is allocated.
        if !fits || file.len().ok()? != (HEADER_BYTES + count * BLOCK_BYTES) as u64 {
            return None;
        }
        let mut blocks: Vec<Block> = Vec::with_capacity(count);
        let mut check = 0;
        let mut bytes = vec![0; CHUNK_BLOCKS * BLOCK_BYTES];
        while blocks.len() < count {
            let length = (count - blocks.len()).min(CHUNK_BLOCKS) * BLOCK_BYTES;
            file.read_at(&mut bytes[..length], (HEADER_BYTES + blocks.len() * BLOCK_BYTES) as u64).ok()?;
            check = crc32c::crc32c_append(check, &bytes[..length]);
            blocks.extend(bytes[..length].chunks_exact(BLOCK_BYTES).map(block_of));
        }
        (check == u32_at(&header, 48)).then_some(Self { level, blocks, keys: u64_at(&header, 40) })
    }

    fn header(&self, store: &StoreId, seq: u64, check: u32) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        header[..8].copy_from_slice(&MAGIC);
        header[8..12].copy_from_slice(&crate::format::FORMAT_VERSION.to_le_bytes());
        header[12..16].copy_from_slice(&u32::try_from(self.blocks.len()).unwrap_or(u32::MAX).to_le_bytes());
        header[16..32].copy_from_slice(store);
        header[32..40].copy_from_slice(&seq.to_le_bytes());
        header[40..48].copy_from_slice(&self.keys.to_le_bytes());
        header[48..52].copy_from_slice(&check.to_le_bytes());
        let check = crc32c::crc32c(&header[..60]);
        header[60..64].copy_from_slice(&check.to_le_bytes());
        header
    }
}

fn block_of(bytes: &[u8]) -> Block {
    let lanes: [u8; BLOCK_BYTES] = array_at(bytes, 0);
    std::array::from_fn(|lane| u32_at(&lanes, lane * 4))
}
