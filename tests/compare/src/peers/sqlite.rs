//! SQLite, write-ahead log, `synchronous = FULL`.

use super::{CACHE_BYTES, Peer};
use crate::blocks::Block;
use rusqlite::{Connection, OptionalExtension};
use std::path::Path;

pub struct Sqlite(Connection);

impl Sqlite {
    pub fn open(directory: &Path) -> Self {
        let connection = Connection::open(directory.join("sqlite")).expect("SQLite opens");
        let settings = format!(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA cache_size = -{};
             CREATE TABLE IF NOT EXISTS blocks (hash BLOB PRIMARY KEY, bytes BLOB) WITHOUT ROWID;",
            CACHE_BYTES / 1024
        );
        connection.execute_batch(&settings).expect("SQLite takes its settings");
        Self(connection)
    }
}

impl Peer for Sqlite {
    fn put(&mut self, blocks: &[Block]) {
        let transaction = self.0.transaction().expect("SQLite writes");
        {
            let mut insert =
                transaction.prepare_cached("INSERT INTO blocks VALUES (?1, ?2)").expect("a valid statement");
            for (hash, bytes) in blocks {
                insert.execute((hash.as_slice(), bytes.as_ref())).expect("SQLite inserts");
            }
        }
        transaction.commit().expect("SQLite commits");
    }

    fn get(&mut self, hash: &[u8; 32]) -> Option<usize> {
        let mut select =
            self.0.prepare_cached("SELECT bytes FROM blocks WHERE hash = ?1").expect("a valid statement");
        let bytes: Option<Vec<u8>> =
            select.query_row([hash.as_slice()], |row| row.get(0)).optional().expect("SQLite reads");
        bytes.map(|bytes| bytes.len())
    }

    fn has(&mut self, hash: &[u8; 32]) -> bool {
        let mut select =
            self.0.prepare_cached("SELECT 1 FROM blocks WHERE hash = ?1").expect("a valid statement");
        select.exists([hash.as_slice()]).expect("SQLite reads")
    }
}
