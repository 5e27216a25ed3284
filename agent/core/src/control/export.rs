//! One object on its way out to a local connection, block by block as fast as the connection takes them.

use crate::binding::{Binding, Content};
use crate::id::BlockId;
use crate::name::Name;
use crate::object::walk::{Step, Walk};
use crate::request::{Failure, FailureKind, Listed};
use bytes::Bytes;

/// What a connection gets next.
pub(super) enum Next {
    /// Ask the store for this block.
    Read(BlockId),
    /// Send these bytes, then wait until the connection is ready again.
    Send(Bytes),
    /// All was sent.
    Done,
    /// It can not go on.
    Failed(Failure),
}

/// An object being sent.
pub(super) struct Export {
    name: Name,
    /// Its root, depth and bytes.
    pub(super) root: (BlockId, u8, u64),
    walk: Walk,
    asked: Option<BlockId>,
}

impl Export {
    /// Sends `length` bytes from `offset`, or what there is of them.
    pub(super) fn new(listed: &Listed, depth: u8, offset: u64, length: Option<u64>) -> Self {
        let end = length.map_or(u64::MAX, |length| offset.saturating_add(length));
        let walk = Walk::new(listed.cid, depth, listed.meta.size, offset..end);
        Export { name: listed.name.clone(), root: (listed.cid, depth, listed.meta.size), walk, asked: None }
    }

    pub(super) fn next(&mut self) -> Next {
        match self.walk.next() {
            Step::Read(id) => {
                self.asked = Some(id);
                Next::Read(id)
            }
            Step::Data(bytes) => Next::Send(bytes),
            Step::Done => Next::Done,
            Step::Bad(error) => Next::Failed(Failure::new(
                FailureKind::Damaged,
                format!("{}: {error}; `larder verify` lists what is damaged", self.name.as_str()),
            )),
        }
    }

    /// The block asked for, or why there is none.
    pub(super) fn supply(&mut self, block: Result<Option<Bytes>, Failure>) -> Result<(), Failure> {
        let Some(id) = self.asked.take() else { return Ok(()) };
        match block {
            Ok(Some(bytes)) => {
                self.walk.supply(bytes);
                Ok(())
            }
            Ok(None) => Err(Failure::new(
                FailureKind::Damaged,
                format!("{}: block {id} is missing; fetch or put the object again", self.name.as_str()),
            )),
            Err(failure) => {
                Err(Failure::new(failure.kind, format!("{}: {}", self.name.as_str(), failure.message)))
            }
        }
    }
}

/// An object as a listing shows it; deletions are not shown.
pub(super) fn listed(name: Name, binding: Binding) -> Option<(Listed, u8)> {
    match binding.content {
        Content::Object { root, depth } => Some((
            Listed {
                name,
                cid: root,
                meta: binding.meta,
                origin: binding.origin,
                conflict_of: binding.conflict_of,
            },
            depth,
        )),
        Content::Deleted => None,
    }
}
