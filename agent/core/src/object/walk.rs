//! Reads a range of an object, block by block.
//!
//! [`Walk`] says which block it needs, takes it, and gives the payload in order. What a manifest claims is
//! checked against its parent and against the blocks; whether a block's bytes have its hash is checked by
//! whoever read or received it, once. Memory: one manifest a level, at most 82 KB each, and one data block.

use std::ops::Range;
use std::vec;

use bytes::Bytes;
use thiserror::Error;

use super::manifest::{Child, Manifest, ManifestError};
use super::{DEPTH_MAX, object_bytes_max};
use crate::id::BlockId;

/// Why an object can not be read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WalkError {
    /// A depth and size that no object has.
    #[error("object {root} can not have {size} bytes at depth {depth}")]
    Claim {
        /// Its root.
        root: BlockId,
        /// The claimed levels.
        depth: u8,
        /// The claimed bytes.
        size: u64,
    },
    /// A block that should be a manifest is none.
    #[error("block {id} is not the manifest it should be")]
    Manifest {
        /// The block.
        id: BlockId,
        /// What is wrong with it.
        source: ManifestError,
    },
    /// A manifest of another level than its place.
    #[error("manifest {id} has level {found} at a place of level {expected}")]
    Level {
        /// The block.
        id: BlockId,
        /// The level of its place.
        expected: u8,
        /// The level it says.
        found: u8,
    },
    /// A block with more or fewer bytes of the object than its parent says.
    #[error("block {id} holds {found} bytes of the object where {expected} are listed")]
    Bytes {
        /// The block.
        id: BlockId,
        /// What its parent says.
        expected: u64,
        /// What it holds.
        found: u64,
    },
}

/// What a walk needs or gives next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Fetch this block and give it to [`Walk::supply`].
    Read(BlockId),
    /// The next payload within the range.
    Data(Bytes),
    /// All of the range has been given.
    Done,
    /// The object is damaged or a lie; the walk ends here.
    Bad(WalkError),
}

/// A reader of one range of one object.
#[derive(Debug)]
pub struct Walk {
    descent: Descent,
    wanted: Range<u64>,
    state: State,
}

#[derive(Debug)]
enum State {
    Ready,
    Awaits(Place),
    Holds(Bytes),
    Failed(WalkError),
}

impl Walk {
    /// A walk over the part of `range` that the object has.
    #[must_use]
    pub fn new(root: BlockId, depth: u8, size: u64, range: Range<u64>) -> Walk {
        let wanted = range.start..range.end.min(size);
        let (descent, state) = match Descent::new(root, depth, size) {
            Ok(descent) if !wanted.is_empty() => (descent, State::Ready),
            Ok(_) => (Descent::default(), State::Ready),
            Err(error) => (Descent::default(), State::Failed(error)),
        };
        Walk { descent, wanted, state }
    }

    /// What is needed or ready; a [`Step::Read`] is repeated until it is answered.
    #[expect(clippy::should_implement_trait, reason = "steps ask as well as give")]
    pub fn next(&mut self) -> Step {
        match std::mem::replace(&mut self.state, State::Ready) {
            State::Holds(payload) => Step::Data(payload),
            State::Failed(error) => {
                self.state = State::Failed(error.clone());
                Step::Bad(error)
            }
            State::Awaits(place) => self.ask(place),
            State::Ready => match self.descent.next(&self.wanted) {
                Some(place) => self.ask(place),
                None => Step::Done,
            },
        }
    }

    /// Takes the block that [`Step::Read`] asked for; its bytes have the hash asked for.
    ///
    /// # Panics
    /// When no block was asked for.
    pub fn supply(&mut self, block: Bytes) {
        let State::Awaits(place) = std::mem::replace(&mut self.state, State::Ready) else {
            panic!("a block is supplied once, and only when asked for");
        };
        let taken = if place.level == 0 { self.hold(&place, &block) } else { self.open(&place, &block) };
        self.state = taken.unwrap_or_else(State::Failed);
    }

    fn ask(&mut self, place: Place) -> Step {
        let id = place.id;
        self.state = State::Awaits(place);
        Step::Read(id)
    }

    fn hold(&self, place: &Place, block: &Bytes) -> Result<State, WalkError> {
        place.check_bytes(block.len() as u64)?;
        let within = |offset: u64| {
            let inside = offset.clamp(place.start, place.start + place.bytes) - place.start;
            usize::try_from(inside).expect("a block's length fits memory")
        };
        Ok(State::Holds(block.slice(within(self.wanted.start)..within(self.wanted.end))))
    }

    fn open(&mut self, place: &Place, block: &[u8]) -> Result<State, WalkError> {
        let children = place.manifest(block)?;
        self.descent.enter(place, children);
        Ok(State::Ready)
    }
}

/// A block in the tree, and what it has to be there.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) id: BlockId,
    /// 0 for a data block.
    pub(super) level: u8,
    /// Where its bytes start in the object.
    start: u64,
    /// How many bytes of the object it holds or lists.
    pub(super) bytes: u64,
}

impl Place {
    /// The children of the manifest at this place.
    pub(super) fn manifest(&self, block: &[u8]) -> Result<Vec<Child>, WalkError> {
        let manifest =
            Manifest::decode(block).map_err(|source| WalkError::Manifest { id: self.id, source })?;
        if manifest.level() != self.level {
            return Err(WalkError::Level { id: self.id, expected: self.level, found: manifest.level() });
        }
        self.check_bytes(manifest.total())?;
        Ok(manifest.into_children())
    }

    fn check_bytes(&self, found: u64) -> Result<(), WalkError> {
        if found == self.bytes {
            return Ok(());
        }
        Err(WalkError::Bytes { id: self.id, expected: self.bytes, found })
    }
}

/// The way down a tree: what is left of each manifest from the root to where the reader is.
#[derive(Debug, Default)]
pub(super) struct Descent {
    frames: Vec<Frame>,
}

#[derive(Debug)]
struct Frame {
    /// Level of the children.
    level: u8,
    /// Where the next child's bytes start in the object.
    start: u64,
    children: vec::IntoIter<Child>,
}

impl Descent {
    pub(super) fn new(root: BlockId, depth: u8, size: u64) -> Result<Descent, WalkError> {
        if depth > DEPTH_MAX || size > object_bytes_max(depth) {
            return Err(WalkError::Claim { root, depth, size });
        }
        let children = if size == 0 { Vec::new() } else { vec![Child { id: root, bytes: size }] };
        Ok(Descent { frames: vec![Frame { level: depth, start: 0, children: children.into_iter() }] })
    }

    /// The next block that holds or lists bytes of `wanted`.
    pub(super) fn next(&mut self, wanted: &Range<u64>) -> Option<Place> {
        while let Some(frame) = self.frames.last_mut() {
            let Some(child) = frame.children.next() else {
                self.frames.pop();
                continue;
            };
            let start = frame.start;
            // Sums stay below the size of the object: the manifest's total was checked against its parent.
            frame.start += child.bytes;
            if start >= wanted.end {
                self.frames.clear();
            } else if frame.start > wanted.start {
                return Some(Place { id: child.id, level: frame.level, start, bytes: child.bytes });
            }
        }
        None
    }

    pub(super) fn enter(&mut self, place: &Place, children: Vec<Child>) {
        let level = place.level - 1;
        self.frames.push(Frame { level, start: place.start, children: children.into_iter() });
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::BLOCK_BYTES_MAX;
    use super::super::manifest::{ManifestBuilder, Root};
    use super::*;

    pub(in super::super) type Blocks = BTreeMap<BlockId, Bytes>;

    /// An object of blocks of `length` bytes; short ones make deep trees cheap.
    pub(in super::super) fn object(payload: &[u8], length: usize) -> (Root, Blocks) {
        let mut blocks = Blocks::new();
        let mut builder = ManifestBuilder::new();
        for block in payload.chunks(length) {
            let id = BlockId::of(block);
            blocks.insert(id, Bytes::copy_from_slice(block));
            blocks.extend(builder.push(id, block.len() as u64));
        }
        let root = builder.finish();
        blocks.extend(root.last.clone());
        (root, blocks)
    }

    fn payload(length: usize) -> Vec<u8> {
        (0..length).map(|index| (index ^ (index >> 8)) as u8).collect()
    }

    /// The payload and the blocks that were asked for.
    fn read(walk: &mut Walk, blocks: &Blocks) -> Result<(Vec<u8>, usize), WalkError> {
        let (mut payload, mut reads) = (Vec::new(), 0);
        loop {
            match walk.next() {
                Step::Read(id) => {
                    assert_eq!(walk.next(), Step::Read(id), "asked until answered");
                    reads += 1;
                    walk.supply(blocks[&id].clone());
                    assert!(walk.descent.frames.iter().all(|frame| frame.children.len() <= 2048));
                    assert!(walk.descent.frames.len() <= usize::from(DEPTH_MAX) + 1);
                }
                Step::Data(bytes) => payload.extend_from_slice(&bytes),
                Step::Done => return Ok((payload, reads)),
                Step::Bad(error) => {
                    assert_eq!(walk.next(), Step::Bad(error.clone()), "it stays bad");
                    return Err(error);
                }
            }
        }
    }

    #[test]
    fn a_range_in_a_deep_object_reads_only_the_way_to_it() {
        let bytes = payload(2 * 2048 * 3 + 7);
        let (root, blocks) = object(&bytes, 3);
        assert_eq!(root.depth, 2);
        let mut walk = Walk::new(root.root, root.depth, root.size, 7000..7001);
        assert_eq!(read(&mut walk, &blocks), Ok((bytes[7000..7001].to_vec(), 3)));
    }

    /// Offsets that a `usize` of 32 bits cannot hold, where cutting them would read the start again.
    #[test]
    fn a_range_behind_four_gibibytes_reads_its_own_bytes() {
        let (zeros, size) = (Bytes::from(vec![0; BLOCK_BYTES_MAX]), 5u64 << 30);
        let (zeros_id, tail) = (BlockId::of(&zeros), Bytes::from_static(b"the tail"));
        let mut blocks = Blocks::from([(zeros_id, zeros), (BlockId::of(&tail), tail.clone())]);
        let mut builder = ManifestBuilder::new();
        for _ in 0..size / BLOCK_BYTES_MAX as u64 {
            blocks.extend(builder.push(zeros_id, BLOCK_BYTES_MAX as u64));
        }
        blocks.extend(builder.push(BlockId::of(&tail), tail.len() as u64));
        let root = builder.finish();
        blocks.extend(root.last);
        let end = root.size;
        assert!(end > u64::from(u32::MAX) + (1 << 29));
        for (range, expected) in
            [(end - 8..end, &b"the tail"[..]), (end - 10..end - 3, b"\0\0the t"), (end..end + 9, b"")]
        {
            let mut walk = Walk::new(root.root, root.depth, root.size, range);
            assert_eq!(read(&mut walk, &blocks).unwrap().0, expected);
        }
    }

    #[test]
    fn the_empty_object_and_an_empty_range_read_nothing() {
        let (root, blocks) = object(&[], 3);
        assert_eq!(read(&mut Walk::new(root.root, 0, 0, 0..u64::MAX), &blocks), Ok((Vec::new(), 0)));
        let (root, blocks) = object(&payload(100), 3);
        for (start, end) in [(5, 5), (100, 200), (200, 100), (50, 10)] {
            assert_eq!(read(&mut Walk::new(root.root, 1, 100, start..end), &blocks), Ok((Vec::new(), 0)));
        }
    }

    #[test]
    fn every_lie_about_a_tree_is_named() {
        let (root, blocks) = object(&payload(100), 3);
        let walk = |root: BlockId, depth, size, blocks: &Blocks| {
            read(&mut Walk::new(root, depth, size, 0..u64::MAX), blocks).unwrap_err()
        };
        let id = root.root;
        assert_eq!(walk(id, 6, 100, &blocks), WalkError::Claim { root: id, depth: 6, size: 100 });
        assert_eq!(walk(id, 0, 122_881, &blocks), WalkError::Claim { root: id, depth: 0, size: 122_881 });
        assert_eq!(walk(id, 1, 99, &blocks), WalkError::Bytes { id, expected: 99, found: 100 });
        assert_eq!(walk(id, 2, 100, &blocks), WalkError::Level { id, expected: 2, found: 1 });
        let leaf = BlockId::of(&payload(3));
        assert!(matches!(walk(leaf, 1, 3, &blocks), WalkError::Manifest { .. }));
        assert_eq!(walk(leaf, 0, 4, &blocks), WalkError::Bytes { id: leaf, expected: 4, found: 3 });
        let mut short = blocks.clone();
        short.insert(leaf, Bytes::from_static(b"ab"));
        assert_eq!(walk(id, 1, 100, &short), WalkError::Bytes { id: leaf, expected: 3, found: 2 });
    }

    #[test]
    #[should_panic(expected = "only when asked for")]
    fn a_block_nobody_asked_for_is_a_bug_of_the_caller() {
        Walk::new(BlockId([1; 32]), 0, 1, 0..1).supply(Bytes::from_static(b"x"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases / 2))]
        #[test]
        fn any_range_reads_the_bytes_that_went_in(length in 0usize..20_000, block in 1usize..4000, a in 0usize..21_000, b in 0usize..21_000) {
            let bytes = payload(length);
            let (root, blocks) = object(&bytes, block);
            let mut walk = Walk::new(root.root, root.depth, root.size, a as u64..b as u64);
            let (start, end) = (a.min(length), b.min(length));
            let expected = if start < end { &bytes[start..end] } else { &[] };
            prop_assert_eq!(&read(&mut walk, &blocks).unwrap().0, expected);
        }

        #[test]
        fn a_damaged_tree_never_panics(at: prop::sample::Index, to: u8, byte: prop::sample::Index) {
            let (root, mut blocks) = object(&payload(3 * 2048 * 2), 3);
            let block = blocks.values_mut().filter(|block| block.len() > 3).nth(at.index(root.last.len())).unwrap();
            let mut damaged = block.to_vec();
            damaged[byte.index(block.len().min(80))] = to;
            *block = damaged.into();
            let mut walk = Walk::new(root.root, root.depth, root.size, 0..root.size);
            loop {
                match walk.next() {
                    Step::Read(id) => walk.supply(blocks.get(&id).cloned().unwrap_or_default()),
                    Step::Data(_) => {}
                    Step::Done | Step::Bad(_) => break,
                }
            }
        }
    }
}
