//! redb with the blocks as inline values.

use super::{CACHE_BYTES, Peer};
use crate::blocks::Block;
use redb::{Database, ReadableDatabase, TableDefinition};
use std::path::Path;

const BLOCKS: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("blocks");

pub struct Redb(Database);

impl Redb {
    pub fn open(directory: &Path) -> Self {
        let database = Database::builder().set_cache_size(CACHE_BYTES).create(directory.join("redb"));
        let database = database.expect("redb opens");
        let transaction = database.begin_write().expect("redb writes");
        transaction.open_table(BLOCKS).expect("redb makes a table");
        transaction.commit().expect("redb commits");
        Self(database)
    }
}

impl Peer for Redb {
    fn put(&mut self, blocks: &[Block]) {
        let transaction = self.0.begin_write().expect("redb writes");
        {
            let mut table = transaction.open_table(BLOCKS).expect("the table is there");
            for (hash, bytes) in blocks {
                table.insert(hash, bytes.as_ref()).expect("redb inserts");
            }
        }
        transaction.commit().expect("redb commits");
    }

    fn get(&mut self, hash: &[u8; 32]) -> Option<usize> {
        let transaction = self.0.begin_read().expect("redb reads");
        let table = transaction.open_table(BLOCKS).expect("the table is there");
        table.get(hash).expect("redb reads").map(|value| value.value().to_vec().len())
    }

    fn has(&mut self, hash: &[u8; 32]) -> bool {
        let transaction = self.0.begin_read().expect("redb reads");
        let table = transaction.open_table(BLOCKS).expect("the table is there");
        table.get(hash).expect("redb reads").is_some()
    }
}
