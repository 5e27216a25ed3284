//! One object being taken in: cut into blocks, its manifest built, its name bound.
//!
//! Holds the pieces that wait for its chunker and one partial manifest a level, whatever the object's size.

use super::cutter::{Cut, Cutter, Pieces};
use crate::binding::{Binding, Content, Meta, Stored};
use crate::id::{BlockId, NodeName};
use crate::limits::HASHED_ON_LOOP_BYTES_MAX;
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
    /// Bytes are still coming, or being cut.
    Reading(Box<Reading>),
    /// All blocks are handed over; the name is looked up, then bound.
    Binding(Root),
    /// It failed; writes under way are waited for and forgotten.
    Failed,
}

/// What makes blocks of bytes, and what has become of them.
pub(super) struct Reading {
    /// Away with a [`Cutter`] while there is none.
    chunker: Option<Chunker>,
    /// What has come and was not given to the chunker.
    pieces: Pieces,
    /// Lists what was handed to the store, never what is away.
    builder: ManifestBuilder,
}

/// An object being taken in.
pub(super) struct Stream {
    pub(super) source: Source,
    pub(super) name: Name,
    /// The name that its file gave way under: `name` is that of a conflict's copy.
    pub(super) copy_of: Option<Name>,
    pub(super) meta: Meta,
    pub(super) phase: Phase,
    /// Bytes that have come.
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
        /// Its place in the order of changes; none where it does not go upstream or is deleted, and its file stays.
        seq: Option<u64>,
    },
    /// It could not be stored.
    Failed(Failure),
}

impl Stream {
    pub(super) fn new(source: Source, name: Name, meta: Meta) -> Self {
        let reading = Reading {
            chunker: Some(Chunker::new()),
            pieces: Pieces::default(),
            builder: ManifestBuilder::new(),
        };
        Stream {
            source,
            name,
            copy_of: None,
            meta,
            phase: Phase::Reading(Box::new(reading)),
            size: 0,
            blocks: 0,
            writes: 0,
            finished: None,
            ending: false,
            hasty: false,
            patient: false,
        }
    }

    /// Takes bytes in; says what they cost while they wait to be cut.
    pub(super) fn push(&mut self, bytes: Bytes) -> usize {
        let Phase::Reading(reading) = &mut self.phase else { return 0 };
        self.size += bytes.len() as u64;
        reading.pieces.push(bytes)
    }

    /// Whether it is cut beside the loop.
    pub(super) fn is_long(&self) -> bool {
        self.size > HASHED_ON_LOOP_BYTES_MAX
    }

    /// What can be cut now, with the chunker: it is away until [`Stream::take`].
    pub(super) fn cutter(&mut self) -> Option<Cutter> {
        let Phase::Reading(reading) = &mut self.phase else { return None };
        if reading.pieces.is_empty() && !self.ending {
            return None;
        }
        let chunker = reading.chunker.take()?;
        let pieces = reading.pieces.take_some();
        let is_last = self.ending && reading.pieces.is_empty();
        Some(Cutter::new(chunker, pieces, is_last))
    }

    /// Takes a chunker back and hands out the blocks and manifests that are complete. Knows the root after the
    /// last.
    pub(super) fn take(&mut self, cut: Cut) -> Vec<(BlockId, Bytes)> {
        let Phase::Reading(reading) = &mut self.phase else { return Vec::new() };
        self.blocks += cut.blocks.len() as u64;
        let mut blocks = Vec::with_capacity(cut.blocks.len() + 1);
        for (id, bytes) in cut.blocks {
            let manifest = reading.builder.push(id, bytes.len() as u64);
            blocks.push((id, bytes));
            blocks.extend(manifest);
        }
        reading.chunker = cut.chunker;
        if reading.chunker.is_none() {
            let mut root = std::mem::take(&mut reading.builder).finish();
            blocks.append(&mut root.last);
            self.phase = Phase::Binding(root);
        }
        blocks
    }

    /// Nothing will come of it; says what the pieces have cost that are not cut any more.
    pub(super) fn give_up(&mut self) -> usize {
        match std::mem::replace(&mut self.phase, Phase::Failed) {
            Phase::Reading(reading) => reading.pieces.cost(),
            Phase::Binding(_) | Phase::Failed => 0,
        }
    }

    /// Says that all bytes were given, where they are one small block; hands it out without a name.
    pub(super) fn end_small(&mut self) -> Option<Bytes> {
        let Phase::Reading(reading) = &mut self.phase else { return None };
        let chunker = reading.chunker.as_mut()?;
        if self.blocks > 0 || chunker.waiting() > SMALL_BLOCK_BYTES_MAX {
            return None;
        }
        chunker.finish();
        chunker.next()
    }

    /// The name of that block is known, and so is the root.
    pub(super) fn name_small(&mut self, id: BlockId, bytes: u64) {
        if let Phase::Reading(reading) = std::mem::replace(&mut self.phase, Phase::Failed) {
            let mut builder = reading.builder;
            self.blocks += 1;
            let manifest = builder.push(id, bytes);
            let root = builder.finish();
            debug_assert!(manifest.is_none() && root.last.is_empty(), "one block needs no manifest");
            self.phase = Phase::Binding(root);
        }
    }

    /// Whether its name stands for this already. A copy is known by its content, whoever made it. What was made of a
    /// file and then deleted stays so.
    pub(super) fn is_known(&self, old: &Stored, content: Content, meta: Meta) -> bool {
        let is_copy = self.copy_of.is_some();
        let is_deleted = matches!(self.source, Source::File { .. })
            && old.binding.content == Content::Deleted
            && old.binding.meta == Meta { size: 0, ..meta };
        let is_same = old.binding.content == content && (is_copy || old.binding.meta == meta);
        (is_same || is_deleted) && !old.refused
    }

    /// Whether its name belongs to a version from elsewhere that is not older: a file that was merely found again must
    /// not replace what has come since it was taken.
    pub(super) fn gives_way(&self, old: &Stored, content: Content, me: &NodeName) -> bool {
        let Binding { content: there, meta, origin, .. } = &old.binding;
        matches!(self.source, Source::File { .. })
            && self.copy_of.is_none()
            && !old.refused
            && matches!(there, Content::Object { .. })
            && *there != content
            && (origin != me || old.via.is_some())
            && meta.mtime_ms >= self.meta.mtime_ms
    }

    /// What the cleaner must keep though no name leads to it: the root, or every block so far.
    pub(super) fn roots(&self) -> Vec<(BlockId, u8, u64)> {
        match &self.phase {
            Phase::Reading(reading) => reading.builder.open_children(),
            Phase::Binding(root) => vec![(root.root, root.depth, root.size)],
            Phase::Failed => Vec::new(),
        }
    }
}
