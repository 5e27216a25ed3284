//! One object being taken in: cut into blocks, its manifest built, its name bound.
//!
//! Holds at most one pull and one partial manifest a level, whatever the object's size.

use crate::binding::Meta;
use crate::id::BlockId;
use crate::message::{Caller, FileId, FileStat};
use crate::name::Name;
use crate::object::chunk::Chunker;
use crate::object::manifest::{ManifestBuilder, Root};
use crate::request::Failure;
use bytes::Bytes;

/// Blocks up to this length are worth hashing side by side.
const SMALL_BLOCK_BYTES_MAX: usize = 16 << 10;

/// Where an object comes from.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// A local connection's put.
    Client(Caller),
    /// A file of a watched folder.
    File {
        /// The open file.
        file: FileId,
        /// The folder.
        watch: u8,
        /// The path inside it.
        path: String,
        /// The version that was opened.
        stat: FileStat,
    },
}

/// How far it is.
pub(super) enum Phase {
    /// Bytes are still coming.
    Reading(Box<(Chunker, ManifestBuilder)>),
    /// All blocks are handed over; the name is looked up, then bound.
    Binding(Root),
    /// It failed; writes under way are waited for and forgotten.
    Failed,
}

/// An object being taken in.
pub(super) struct Stream {
    pub(super) source: Source,
    pub(super) name: Name,
    pub(super) meta: Meta,
    pub(super) phase: Phase,
    pub(super) size: u64,
    pub(super) blocks: u64,
    /// Writes handed over and not answered.
    pub(super) writes: usize,
    /// The name is bound; the reply waits for nothing but the last writes.
    pub(super) finished: Option<Finished>,
    /// Its data is complete.
    pub(super) ending: bool,
    /// Do not wait for the profile's age.
    pub(super) hasty: bool,
    /// Its name is looked up together with others, when they go.
    pub(super) patient: bool,
}

/// What a finished stream has come to.
#[derive(Clone, Debug)]
pub(super) enum Finished {
    /// Bound anew.
    Bound {
        /// Its place in the order of changes.
        seq: u64,
    },
    /// It was bound to the same content before.
    Unchanged {
        /// Its place in the order of changes.
        seq: u64,
    },
    /// It could not be stored.
    Failed(Failure),
}

impl Stream {
    pub(super) fn new(source: Source, name: Name, meta: Meta) -> Self {
        let phase = Phase::Reading(Box::new((Chunker::new(), ManifestBuilder::new())));
        Stream {
            source,
            name,
            meta,
            phase,
            size: 0,
            blocks: 0,
            writes: 0,
            finished: None,
            ending: false,
            hasty: false,
            patient: false,
        }
    }

    /// Takes bytes in and hands out the blocks and manifests that are complete.
    pub(super) fn push(&mut self, bytes: Bytes) -> Vec<(BlockId, Bytes)> {
        let Phase::Reading(reading) = &mut self.phase else { return Vec::new() };
        reading.0.push(bytes);
        self.drain()
    }

    /// Says that all bytes were given; hands out what is left and knows the root from now on.
    pub(super) fn end(&mut self) -> Vec<(BlockId, Bytes)> {
        if let Phase::Reading(reading) = &mut self.phase {
            reading.0.finish();
        }
        let mut blocks = self.drain();
        if let Phase::Reading(reading) = std::mem::replace(&mut self.phase, Phase::Failed) {
            let mut root = reading.1.finish();
            blocks.append(&mut root.last);
            self.phase = Phase::Binding(root);
        }
        blocks
    }

    /// Says that all bytes were given, where they are one small block; hands it out without a name.
    pub(super) fn end_small(&mut self) -> Option<Bytes> {
        let Phase::Reading(reading) = &mut self.phase else { return None };
        let chunker = &mut reading.0;
        if self.blocks > 0 || chunker.waiting() > SMALL_BLOCK_BYTES_MAX {
            return None;
        }
        chunker.finish();
        chunker.next()
    }

    /// The name of that block is known, and so is the root.
    pub(super) fn name_small(&mut self, id: BlockId, bytes: u64) {
        if let Phase::Reading(reading) = std::mem::replace(&mut self.phase, Phase::Failed) {
            let mut builder = reading.1;
            self.size += bytes;
            self.blocks += 1;
            let manifest = builder.push(id, bytes);
            let root = builder.finish();
            debug_assert!(manifest.is_none() && root.last.is_empty(), "one block needs no manifest");
            self.phase = Phase::Binding(root);
        }
    }

    fn drain(&mut self) -> Vec<(BlockId, Bytes)> {
        let Phase::Reading(reading) = &mut self.phase else { return Vec::new() };
        let (chunker, builder) = &mut **reading;
        let mut blocks = Vec::new();
        while let Some(bytes) = chunker.next() {
            let id = BlockId::of(&bytes);
            self.size += bytes.len() as u64;
            self.blocks += 1;
            let manifest = builder.push(id, bytes.len() as u64);
            blocks.push((id, bytes));
            blocks.extend(manifest);
        }
        blocks
    }

    /// What the cleaner must keep though no name leads to it: the root, or every block so far.
    pub(super) fn roots(&self) -> Vec<(BlockId, u8, u64)> {
        match &self.phase {
            Phase::Reading(reading) => reading.1.open_children(),
            Phase::Binding(root) => vec![(root.root, root.depth, root.size)],
            Phase::Failed => Vec::new(),
        }
    }
}
