//! Typed events of the core that people may want to read.

use crate::id::{BlockId, NodeName};
use crate::name::Name;
use crate::request::Target;

/// Things worth a line in the log. The shell writes them; tests assert on them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// A message was dropped and counted.
    Dropped {
        /// Who sent it.
        from: NodeName,
        /// Why.
        why: String,
    },
    /// Two nodes wrote one name; both versions are kept.
    Conflict {
        /// The name.
        name: Name,
        /// Where the version that lost the name is.
        kept_as: Option<Name>,
    },
    /// A peer refused an object.
    Refused {
        /// The peer.
        by: NodeName,
        /// The object.
        name: Name,
        /// Its reason.
        why: String,
    },
    /// Something of a file went wrong; it is tried again where that can help.
    File {
        /// The path in its folder.
        path: String,
        /// What.
        what: String,
    },
    /// The store answered with a failure that belongs to nobody's request.
    Store {
        /// What.
        what: String,
    },
    /// A fetch of which nobody waits for the answer was given up.
    Fetch {
        /// What was asked for.
        target: Target,
        /// Why.
        why: String,
    },
    /// An object was taken from a peer.
    Received {
        /// The peer.
        from: NodeName,
        /// The object.
        name: Name,
    },
    /// Garbage was collected.
    Cleaned {
        /// Bytes given back.
        bytes: u64,
    },
    /// The node has verified everything by itself.
    Scrubbed {
        /// Blocks read.
        blocks: u64,
        /// Those that are not what their name says.
        damaged: Vec<BlockId>,
        /// Objects that need a damaged or missing block.
        incomplete: Vec<Name>,
    },
    /// Another profile is in force.
    Profile {
        /// Its name.
        name: String,
        /// Why.
        why: &'static str,
    },
    /// A leecher made room.
    Evicted {
        /// The object.
        name: Name,
    },
}
