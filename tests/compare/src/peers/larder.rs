//! Larder's own store, on fresh segments or on such as were written before.

use super::{CACHE_BYTES, Peer};
use crate::blocks::{Block, block};
use larder_store::{Op, Options, OsDisk, Prepare, Store};
use std::path::Path;

/// Blocks that fill the segments to be recycled have numbers no other block has.
const FILLING: u64 = 1 << 40;
/// What is filled, deleted and recycled.
const RECYCLED_BYTES: u64 = 1 << 30;
const BATCH: usize = 100;

pub struct Larder(Store<OsDisk>);

impl Larder {
    pub fn open(directory: &Path) -> Self {
        let options = Options {
            cache_bytes: CACHE_BYTES as u64,
            table_entries: 65_536,
            quota_bytes: 1 << 40,
            prepare: Prepare::Allocate,
            spare_segments_max: 1024,
            ..Options::default()
        };
        let disk = OsDisk::new(directory).expect("the directory is there");
        let (store, _) = Store::open(disk, options).expect("larder opens");
        Self(store)
    }

    pub fn open_recycled(directory: &Path, size: usize) -> Self {
        let fresh = directory.read_dir().expect("the directory is there").next().is_none();
        let mut larder = Self::open(directory);
        if fresh {
            larder.fill_and_clean(size.max(32 << 10));
        }
        larder
    }

    fn fill_and_clean(&mut self, size: usize) {
        let numbers: Vec<u64> = (FILLING..FILLING + RECYCLED_BYTES / size as u64).collect();
        for numbers in numbers.chunks(BATCH) {
            let blocks: Vec<Block> = numbers.iter().map(|number| block(size, *number)).collect();
            self.put(&blocks);
        }
        self.0.clean_begin();
        while !self.0.clean_step(64 << 20).expect("larder cleans").done {}
        // The open segment's tail is fresh: it is filled until the next one is made, of a spare.
        let segments = self.0.status().segments;
        let mut number = 2 * FILLING;
        while self.0.status().segments == segments {
            self.put(&[block(512 << 10, number)]);
            number += 1;
        }
        self.0.checkpoint().expect("larder makes a checkpoint");
    }
}

impl Peer for Larder {
    fn put(&mut self, blocks: &[Block]) {
        let put = |(hash, bytes): &Block| Op::Put { hash: *hash, bytes: bytes.clone() };
        self.0.commit(blocks.iter().map(put).collect()).expect("larder commits");
        if self.0.needs_checkpoint() {
            self.0.checkpoint().expect("larder makes a checkpoint");
        }
    }

    fn get(&mut self, hash: &[u8; 32]) -> Option<usize> {
        self.0.get(hash).expect("larder reads").map(|bytes| bytes.len())
    }

    fn has(&mut self, hash: &[u8; 32]) -> bool {
        self.0.has(hash).expect("larder reads")
    }
}
