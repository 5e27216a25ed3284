//! sled: a batch, then its flush, which does not flush the device.

use super::{CACHE_BYTES, Peer};
use crate::blocks::Block;
use std::path::Path;

pub struct Sled(sled::Db);

impl Sled {
    pub fn open(directory: &Path) -> Self {
        let config = sled::Config::new().path(directory.join("sled")).cache_capacity(CACHE_BYTES as u64);
        Self(config.open().expect("sled opens"))
    }
}

impl Peer for Sled {
    fn put(&mut self, blocks: &[Block]) {
        let mut batch = sled::Batch::default();
        for (hash, bytes) in blocks {
            batch.insert(hash.as_slice(), bytes.as_ref());
        }
        self.0.apply_batch(batch).expect("sled writes");
        self.0.flush().expect("sled flushes");
    }

    fn get(&mut self, hash: &[u8; 32]) -> Option<usize> {
        self.0.get(hash).expect("sled reads").map(|value| value.len())
    }

    fn has(&mut self, hash: &[u8; 32]) -> bool {
        self.0.contains_key(hash).expect("sled reads")
    }
}
