//! Everybody who takes part, behind one trait. Each is set up as its own documentation advises for durable
//! writes, and with a cache of 64 MiB where it has one.

mod fjall;
mod iroh;
mod larder;
mod plain;
mod redb;
#[cfg(feature = "rocksdb")]
mod rocks;
mod sled;
mod sqlite;

use crate::blocks::Block;
use std::path::Path;

/// Cache of every peer that has one.
const CACHE_BYTES: usize = 64 << 20;

/// A store of blocks.
pub trait Peer {
    /// Returns when all of them would survive a power cut, as far as the peer promises.
    fn put(&mut self, blocks: &[Block]);
    /// Reads a block's content; its length.
    fn get(&mut self, hash: &[u8; 32]) -> Option<usize>;
    /// Whether a block is there.
    fn has(&mut self, hash: &[u8; 32]) -> bool;
}

/// The first is the measure of all others; the second what the kernel can do at best.
pub const NAMES: &[&str] = &[
    "append",
    "limit",
    "larder",
    "larder-recycled",
    "redb",
    "fjall",
    "sled",
    "sqlite",
    #[cfg(feature = "rocksdb")]
    "rocksdb",
    "iroh-blobs",
    "files",
];

/// Whether it can find and read blocks at all.
pub fn reads(name: &str) -> bool {
    !matches!(name, "append" | "limit")
}

/// Whether it checks what it reads before it hands it out.
pub fn checks(name: &str) -> bool {
    matches!(name, "larder" | "larder-recycled" | "fjall" | "rocksdb" | "iroh-blobs")
}

/// Opens or makes the store of a peer. `size` is the length of the blocks to come.
pub fn open(name: &str, directory: &Path, size: usize) -> Box<dyn Peer> {
    match name {
        "append" => Box::new(plain::Append::open(directory)),
        "limit" => Box::new(plain::Overwrite::open(directory)),
        "files" => Box::new(plain::Files::open(directory)),
        "larder" => Box::new(larder::Larder::open(directory)),
        "larder-recycled" => Box::new(larder::Larder::open_recycled(directory, size)),
        "redb" => Box::new(redb::Redb::open(directory)),
        "fjall" => Box::new(fjall::Fjall::open(directory, size)),
        "sled" => Box::new(sled::Sled::open(directory)),
        "sqlite" => Box::new(sqlite::Sqlite::open(directory)),
        #[cfg(feature = "rocksdb")]
        "rocksdb" => Box::new(rocks::Rocks::open(directory, size)),
        "iroh-blobs" => Box::new(iroh::Iroh::open(directory)),
        other => panic!("no peer {other}"),
    }
}
