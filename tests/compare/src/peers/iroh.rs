//! iroh-blobs' file store: blocks added side by side, each kept by a tag, then its database synced.

use super::Peer;
use crate::blocks::Block;
use iroh_blobs::Hash;
use iroh_blobs::store::fs::FsStore;
use std::path::Path;
use tokio::runtime::Runtime;

pub struct Iroh {
    runtime: Runtime,
    store: FsStore,
}

impl Iroh {
    pub fn open(directory: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let store = runtime.block_on(FsStore::load(directory.join("iroh"))).expect("iroh-blobs opens");
        Self { runtime, store }
    }
}

impl Peer for Iroh {
    fn put(&mut self, blocks: &[Block]) {
        let store = &self.store;
        self.runtime.block_on(async {
            let adding: Vec<_> =
                blocks.iter().map(|(_, bytes)| store.blobs().add_bytes(bytes.clone())).collect();
            for added in adding {
                added.with_tag().await.expect("iroh-blobs adds");
            }
            store.sync_db().await.expect("iroh-blobs syncs");
        });
    }

    fn get(&mut self, hash: &[u8; 32]) -> Option<usize> {
        let bytes = self.runtime.block_on(self.store.blobs().get_bytes(Hash::from_bytes(*hash)));
        bytes.ok().map(|bytes| bytes.len())
    }

    fn has(&mut self, hash: &[u8; 32]) -> bool {
        self.runtime.block_on(self.store.blobs().has(Hash::from_bytes(*hash))).expect("iroh-blobs reads")
    }
}
