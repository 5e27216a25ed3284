//! RocksDB with a synced write-ahead log, a bloom filter, and values apart from keys from 4 KiB on.

use super::{CACHE_BYTES, Peer};
use crate::blocks::Block;
use rocksdb::{BlockBasedOptions, Cache, DB, Options, WriteBatch, WriteOptions};
use std::path::Path;

pub struct Rocks(DB);

impl Rocks {
    pub fn open(directory: &Path, size: usize) -> Self {
        let mut table = BlockBasedOptions::default();
        table.set_bloom_filter(10.0, false);
        table.set_block_cache(&Cache::new_lru_cache(CACHE_BYTES));
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_block_based_table_factory(&table);
        options.set_enable_blob_files(size >= 4096);
        Self(DB::open(&options, directory.join("rocksdb")).expect("RocksDB opens"))
    }
}

impl Peer for Rocks {
    fn put(&mut self, blocks: &[Block]) {
        let mut batch = WriteBatch::default();
        for (hash, bytes) in blocks {
            batch.put(hash, bytes);
        }
        let mut options = WriteOptions::default();
        options.set_sync(true);
        self.0.write_opt(batch, &options).expect("RocksDB writes");
    }

    fn get(&mut self, hash: &[u8; 32]) -> Option<usize> {
        self.0.get(hash).expect("RocksDB reads").map(|value| value.len())
    }

    fn has(&mut self, hash: &[u8; 32]) -> bool {
        self.0.get_pinned(hash).expect("RocksDB reads").is_some()
    }
}
