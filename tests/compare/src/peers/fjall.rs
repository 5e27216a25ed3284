//! fjall, with values apart from keys from 4 KiB on, as its documentation advises for large values.

use super::{CACHE_BYTES, Peer};
use crate::blocks::Block;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, KvSeparationOptions, PersistMode};
use std::path::Path;

pub struct Fjall {
    database: Database,
    blocks: Keyspace,
}

impl Fjall {
    pub fn open(directory: &Path, size: usize) -> Self {
        let database = Database::builder(directory.join("fjall")).cache_size(CACHE_BYTES as u64).open();
        let database = database.expect("fjall opens");
        let apart = (size >= 4096).then(KvSeparationOptions::default);
        let options = || KeyspaceCreateOptions::default().with_kv_separation(apart);
        let blocks = database.keyspace("blocks", options).expect("fjall makes a keyspace");
        Self { database, blocks }
    }
}

impl Peer for Fjall {
    fn put(&mut self, blocks: &[Block]) {
        let mut batch = self.database.batch().durability(Some(PersistMode::SyncData));
        for (hash, bytes) in blocks {
            batch.insert(&self.blocks, hash.as_slice(), bytes.as_ref());
        }
        batch.commit().expect("fjall commits");
    }

    fn get(&mut self, hash: &[u8; 32]) -> Option<usize> {
        self.blocks.get(hash).expect("fjall reads").map(|value| value.len())
    }

    fn has(&mut self, hash: &[u8; 32]) -> bool {
        self.blocks.contains_key(hash).expect("fjall reads")
    }
}
