//! Lists every block of an object without reading its data: for marks of garbage collection, for what a
//! receiver lacks, for verification.
//!
//! Each manifest asked for is itself a block of the object; its data blocks come a manifest at a time. What
//! is checked, what fails and how much memory is held is as in [`super::walk`]. A block that occurs often in
//! the object is listed as often.

use super::manifest::Child;
use super::walk::{Descent, Place, WalkError};
use crate::id::BlockId;

/// What a listing needs or gives next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Page {
    /// Fetch this manifest and give it to [`Reach::supply`], or go on beside it by [`Reach::skip`].
    Read(BlockId),
    /// The data blocks of one manifest with their lengths, at most
    /// [`MANIFEST_CHILDREN_MAX`](super::MANIFEST_CHILDREN_MAX).
    Leaves(Vec<Child>),
    /// All has been listed.
    Done,
    /// A manifest is damaged or a lie; the listing ends here.
    Bad(WalkError),
}

/// A listing of one object.
#[derive(Debug)]
pub struct Reach {
    descent: Descent,
    state: State,
}

#[derive(Debug)]
enum State {
    Ready,
    Awaits(Place),
    Holds(Vec<Child>),
    Failed(WalkError),
}

impl Reach {
    /// A listing of the whole object.
    #[must_use]
    pub fn new(root: BlockId, depth: u8, size: u64) -> Reach {
        match Descent::new(root, depth, size) {
            Ok(descent) => Reach { descent, state: State::Ready },
            Err(error) => Reach { descent: Descent::default(), state: State::Failed(error) },
        }
    }

    /// What is needed or ready; a [`Page::Read`] is repeated until it is answered.
    #[expect(clippy::should_implement_trait, reason = "pages ask as well as give")]
    pub fn next(&mut self) -> Page {
        match std::mem::replace(&mut self.state, State::Ready) {
            State::Holds(leaves) => Page::Leaves(leaves),
            State::Failed(error) => {
                self.state = State::Failed(error.clone());
                Page::Bad(error)
            }
            State::Awaits(place) => self.ask(place),
            State::Ready => match self.descent.next(&(0..u64::MAX)) {
                // Only an object of depth 0 comes here: the data blocks of others leave with their manifest.
                Some(place) if place.level == 0 => {
                    Page::Leaves(vec![Child { id: place.id, bytes: place.bytes }])
                }
                Some(place) => self.ask(place),
                None => Page::Done,
            },
        }
    }

    /// Takes the manifest that [`Page::Read`] asked for; its bytes have the hash asked for.
    ///
    /// # Panics
    /// When no manifest was asked for.
    pub fn supply(&mut self, block: &[u8]) {
        let place = self.awaited();
        self.state = match place.manifest(block) {
            Err(error) => State::Failed(error),
            Ok(children) if place.level == 1 => State::Holds(children),
            Ok(children) => {
                self.descent.enter(&place, children);
                State::Ready
            }
        };
    }

    /// Goes on beside a manifest that is missing here; nothing below it is listed.
    ///
    /// # Panics
    /// When no manifest was asked for.
    pub fn skip(&mut self) {
        self.awaited();
    }

    fn ask(&mut self, place: Place) -> Page {
        let id = place.id;
        self.state = State::Awaits(place);
        Page::Read(id)
    }

    fn awaited(&mut self) -> Place {
        let State::Awaits(place) = std::mem::replace(&mut self.state, State::Ready) else {
            panic!("a manifest is supplied or skipped once, and only when asked for");
        };
        place
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::walk::tests::{Blocks, object};
    use super::*;

    /// The blocks that were listed, the most on one page, and the manifests that were missing.
    fn list(mut reach: Reach, blocks: &Blocks) -> Result<(BTreeSet<BlockId>, usize, usize), WalkError> {
        let (mut listed, mut most, mut missing) = (BTreeSet::new(), 0, 0);
        loop {
            match reach.next() {
                Page::Read(id) => match blocks.get(&id) {
                    Some(block) => {
                        listed.insert(id);
                        reach.supply(block);
                    }
                    None => {
                        missing += 1;
                        reach.skip();
                    }
                },
                Page::Leaves(leaves) => {
                    most = most.max(leaves.len());
                    listed.extend(leaves.iter().map(|leaf| leaf.id));
                }
                Page::Done => return Ok((listed, most, missing)),
                Page::Bad(error) => return Err(error),
            }
        }
    }

    fn numbered(count: u32) -> Vec<u8> {
        (0..count).flat_map(u32::to_le_bytes).collect()
    }

    #[test]
    fn every_block_of_an_object_is_listed_and_only_manifests_are_read() {
        for (count, most) in [(0, 0), (1, 1), (2, 2), (2048, 2048), (5000, 2048)] {
            let (root, mut blocks) = object(&numbered(count), 4);
            let all: BTreeSet<_> = blocks.keys().copied().collect();
            blocks.retain(|_, block| block.len() > 4);
            assert_eq!(
                list(Reach::new(root.root, root.depth, root.size), &blocks),
                Ok((all, most, 0)),
                "{count}"
            );
        }
    }

    #[test]
    fn beside_a_missing_manifest_the_rest_is_listed() {
        let (root, mut blocks) = object(&numbered(5000), 4);
        let all = blocks.len();
        let lost = root.last[0].0;
        blocks.remove(&lost);
        let (listed, _, missing) = list(Reach::new(root.root, root.depth, root.size), &blocks).unwrap();
        assert_eq!((listed.len(), missing), (all - 1 - (5000 - 2 * 2048), 1));
    }

    #[test]
    fn lies_are_named_as_in_a_walk() {
        let (root, blocks) = object(&numbered(10), 4);
        let id = root.root;
        assert_eq!(
            list(Reach::new(id, 1, 41), &blocks),
            Err(WalkError::Bytes { id, expected: 41, found: 40 })
        );
        assert_eq!(
            list(Reach::new(id, 9, 40), &blocks),
            Err(WalkError::Claim { root: id, depth: 9, size: 40 })
        );
    }
}
