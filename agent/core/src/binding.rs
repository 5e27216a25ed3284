//! What a name stands for, and what happens when two nodes have said different things about it.
//!
//! A binding ties a name to an object or to its deletion, with the version that says who knew what. It refuses
//! claims that no honest node makes (see [`BindingError`]); a stored one takes at most [`STORED_BYTES_MAX`].
//! Conflicts are resolved by the bindings alone, so every node comes to the same end in any order.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::id::{BlockId, NodeName};
use crate::name::Name;
use crate::object::{DEPTH_MAX, EMPTY_OBJECT, object_bytes_max};
use crate::version::{Relation, Version, VersionError};

/// The most bytes a stored binding takes: 64 writers with names of 64 bytes are 4.9 KB, a name 1 KB.
pub const STORED_BYTES_MAX: usize = 8 * 1024;
const FORMAT: u8 = 1;

/// What is known of the file an object was made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Meta {
    /// Bytes in the object; 0 for a deletion.
    pub size: u64,
    /// Last modification in ms since 1970 by the writer's clock; for a deletion, when it happened.
    pub mtime_ms: i64,
    /// Unix permission bits. They come from a peer: whoever writes a file masks them.
    pub mode: u32,
}

/// What a name is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Content {
    /// Nothing any more.
    Deleted,
    /// An object.
    Object {
        /// The only data block at depth 0, else a manifest. The empty object has [`EMPTY_OBJECT`], a block
        /// that nobody stores or fetches.
        root: BlockId,
        /// Levels of manifests above the data blocks.
        depth: u8,
    },
}

/// One version of what a name stands for; this is what nodes tell each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    /// Who had written what when this was written.
    pub version: Version,
    /// What the name stands for.
    pub content: Content,
    /// About the file.
    pub meta: Meta,
    /// The node that wrote this version.
    pub origin: NodeName,
    /// The name this one lost a conflict over.
    pub conflict_of: Option<Name>,
}

/// A binding as a node keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// What the name stands for.
    pub binding: Binding,
    /// The peer it came from, `None` if it was written here. Local knowledge, never sent.
    pub via: Option<NodeName>,
}

/// Why a binding is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BindingError {
    /// Too long for what a binding can hold.
    #[error("a stored binding has at most {STORED_BYTES_MAX} bytes, this has {0}")]
    TooLong(usize),
    /// Written by another format.
    #[error("binding format {0} is not known (this program knows {FORMAT}): use a newer program")]
    Format(u8),
    /// Not a binding at all.
    #[error("the bytes are not a binding: {0}")]
    Malformed(postcard::Error),
    /// Bytes behind the end.
    #[error("a binding is followed by {0} bytes that do not belong to it")]
    Trailing(usize),
    /// More levels than a builder makes.
    #[error("the binding claims {0} levels of manifests; at most {DEPTH_MAX} are used")]
    Depth(u8),
    /// A size that can not be at that depth.
    #[error("the binding claims {size} bytes at depth {depth}, which can not be")]
    Size {
        /// The claimed bytes.
        size: u64,
        /// The claimed levels.
        depth: u8,
    },
    /// The writer is missing in its own version.
    #[error("the binding says node {0} wrote it, but its version does not")]
    Origin(NodeName),
}

/// What to do about a binding that came in for a name that already has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// Nothing: it is the one we have.
    Same,
    /// Nothing: we have a later one.
    Stale,
    /// Take it.
    Newer,
    /// Both wrote the same, or one only deleted: keep this for both, nothing is lost.
    Merged(Binding),
    /// Both wrote something else: keep both and say so.
    Conflict {
        /// Keeps the name.
        winner: Binding,
        /// Where the other goes.
        loser_name: Name,
        /// The other.
        loser: Binding,
    },
}

impl Binding {
    /// Checks what the types can not: to be called on every binding from a peer or a disk.
    ///
    /// # Errors
    /// Names the claim that can not be true.
    pub fn check(&self) -> Result<(), BindingError> {
        if !self.version.contains(&self.origin) {
            return Err(BindingError::Origin(self.origin.clone()));
        }
        let Content::Object { root, depth } = self.content else { return Ok(()) };
        if depth > DEPTH_MAX {
            return Err(BindingError::Depth(depth));
        }
        let size = self.meta.size;
        let is_empty = root == EMPTY_OBJECT;
        if size > object_bytes_max(depth) || (size == 0) != is_empty || (is_empty && depth != 0) {
            return Err(BindingError::Size { size, depth });
        }
        Ok(())
    }

    /// The order in which concurrent versions win, the same on every node: an object beats a deletion, then
    /// the later modification, then the greater root. The rest only decides between bindings of one content.
    fn precedence(&self, other: &Binding) -> Ordering {
        let is_object = |binding: &Binding| binding.content != Content::Deleted;
        is_object(self)
            .cmp(&is_object(other))
            .then_with(|| self.meta.mtime_ms.cmp(&other.meta.mtime_ms))
            .then_with(|| self.content.cmp(&other.content))
            .then_with(|| self.meta.cmp(&other.meta))
            .then_with(|| self.origin.cmp(&other.origin))
            .then_with(|| self.conflict_of.cmp(&other.conflict_of))
    }
}

impl Stored {
    /// One format byte, then postcard.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_extend(self, vec![FORMAT]).expect("a Vec grows and every length is known")
    }

    /// Reads and checks what [`Stored::encode`] wrote.
    ///
    /// # Errors
    /// Names what is wrong; nothing of the length claimed inside is allocated.
    pub fn decode(bytes: &[u8]) -> Result<Stored, BindingError> {
        if bytes.len() > STORED_BYTES_MAX {
            return Err(BindingError::TooLong(bytes.len()));
        }
        let (format, body) =
            bytes.split_first().ok_or(BindingError::Malformed(postcard::Error::DeserializeUnexpectedEnd))?;
        if *format != FORMAT {
            return Err(BindingError::Format(*format));
        }
        let (stored, rest) = postcard::take_from_bytes::<Stored>(body).map_err(BindingError::Malformed)?;
        if !rest.is_empty() {
            return Err(BindingError::Trailing(rest.len()));
        }
        stored.binding.check()?;
        Ok(stored)
    }
}

/// Decides what `incoming` means for `name`, which stands for `local` here. The peer that decides the same
/// with the roles exchanged comes to the same bindings.
///
/// # Errors
/// When both versions together have too many writers; the local binding then stays as it is.
pub fn resolve(name: &Name, local: &Binding, incoming: &Binding) -> Result<Resolution, VersionError> {
    match local.version.order(&incoming.version) {
        Relation::After => return Ok(Resolution::Stale),
        Relation::Before => return Ok(Resolution::Newer),
        Relation::Equal if local == incoming => return Ok(Resolution::Same),
        // Equal versions of different bindings: a node lost its store and counts anew under its old name.
        Relation::Equal | Relation::Concurrent => {}
    }
    let version = local.version.merge(&incoming.version)?;
    let merged = |binding: &Binding| Binding { version: version.clone(), ..binding.clone() };
    let (winner, loser) =
        if local.precedence(incoming).is_ge() { (local, incoming) } else { (incoming, local) };
    Ok(match loser.content {
        Content::Object { root, .. } if winner.content != loser.content => Resolution::Conflict {
            winner: merged(winner),
            loser_name: name.conflict(root),
            loser: Binding { conflict_of: Some(name.clone()), ..merged(loser) },
        },
        Content::Object { .. } | Content::Deleted if merged(winner) == *local => Resolution::Same,
        Content::Object { .. } | Content::Deleted => Resolution::Merged(merged(winner)),
    })
}
