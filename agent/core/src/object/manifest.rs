//! Manifests: the blocks of an object, listed in blocks.
//!
//! A manifest of level 1 lists data blocks, one of a higher level lists manifests of the level below. Reading
//! refuses whatever a builder does not write; at most [`MANIFEST_CHILDREN_MAX`] children are allocated. The
//! builder keeps one unfinished manifest per level and hands out each as it fills.

use std::fmt;

use bytes::Bytes;
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, de};
use thiserror::Error;

use super::{BLOCK_BYTES_MAX, DEPTH_MAX, EMPTY_OBJECT, MANIFEST_CHILDREN_MAX, object_bytes_max};
use crate::id::BlockId;

const FORMAT: u8 = 1;
/// A hash and the longest varint of 64 bits.
const CHILD_BYTES_MAX: usize = 32 + 10;
const _: () =
    assert!(8 + MANIFEST_CHILDREN_MAX * CHILD_BYTES_MAX <= BLOCK_BYTES_MAX, "a manifest fits a block");

/// A block that a manifest lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Child {
    /// The data block, or the manifest of the level below.
    pub id: BlockId,
    /// Bytes of the object below it, at least 1.
    pub bytes: u64,
}

/// One manifest, checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Manifest {
    level: u8,
    children: Vec<Child>,
}

/// Why a block is not a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ManifestError {
    /// Longer than a block.
    #[error("a manifest has at most {BLOCK_BYTES_MAX} bytes, this has {0}")]
    TooLong(usize),
    /// Written by another format.
    #[error("manifest format {0} is not known (this program knows {FORMAT}): use a newer program")]
    Format(u8),
    /// Not a manifest at all, or one with too many children.
    #[error("the bytes are not a manifest of at most {MANIFEST_CHILDREN_MAX} children: {0}")]
    Malformed(postcard::Error),
    /// Bytes behind the end.
    #[error("a manifest is followed by {0} bytes that do not belong to it")]
    Trailing(usize),
    /// A level that no builder reaches.
    #[error("manifest level {0} is not from 1 to {DEPTH_MAX}")]
    Level(u8),
    /// No children.
    #[error("the manifest lists nothing")]
    Childless,
    /// Too many children.
    #[error("a manifest lists at most {MANIFEST_CHILDREN_MAX} children, this lists {0}")]
    TooMany(usize),
    /// A child of no bytes, or of more than fit below it.
    #[error("child {index} of a manifest of level {level} claims {bytes} bytes")]
    ChildBytes {
        /// Its place in the list.
        index: usize,
        /// The level of the manifest.
        level: u8,
        /// What it claims.
        bytes: u64,
    },
    /// Children that sum up to more than 64 bits.
    #[error("the children of a manifest claim more bytes than 64 bits can count")]
    Total,
}

impl Manifest {
    /// Checks a list of children.
    ///
    /// # Errors
    /// Names the first claim that can not be true.
    pub fn new(level: u8, children: Vec<Child>) -> Result<Manifest, ManifestError> {
        if level == 0 || level > DEPTH_MAX {
            return Err(ManifestError::Level(level));
        }
        if children.is_empty() {
            return Err(ManifestError::Childless);
        }
        if children.len() > MANIFEST_CHILDREN_MAX {
            return Err(ManifestError::TooMany(children.len()));
        }
        let most = object_bytes_max(level - 1);
        if let Some(index) = children.iter().position(|child| child.bytes == 0 || child.bytes > most) {
            return Err(ManifestError::ChildBytes { index, level, bytes: children[index].bytes });
        }
        let total = children.iter().try_fold(0, |sum: u64, child| sum.checked_add(child.bytes));
        total.ok_or(ManifestError::Total)?;
        Ok(Manifest { level, children })
    }

    /// 1 if the children are data blocks, one more for each level of manifests between.
    #[must_use]
    pub fn level(&self) -> u8 {
        self.level
    }

    /// The children in the order of the object.
    #[must_use]
    pub fn children(&self) -> &[Child] {
        &self.children
    }

    /// The children, without the manifest.
    #[must_use]
    pub fn into_children(self) -> Vec<Child> {
        self.children
    }

    /// Bytes of the object below this manifest.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.children.iter().map(|child| child.bytes).sum()
    }

    /// The manifest as a block: one format byte, then postcard.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut bytes = Vec::with_capacity(8 + self.children.len() * CHILD_BYTES_MAX);
        bytes.push(FORMAT);
        postcard::to_extend(self, bytes).expect("a Vec grows and every length is known").into()
    }

    /// Reads and checks what [`Manifest::encode`] wrote.
    ///
    /// # Errors
    /// Names what is wrong; nothing of a length claimed inside is allocated.
    pub fn decode(bytes: &[u8]) -> Result<Manifest, ManifestError> {
        if bytes.len() > BLOCK_BYTES_MAX {
            return Err(ManifestError::TooLong(bytes.len()));
        }
        let (format, body) =
            bytes.split_first().ok_or(ManifestError::Malformed(postcard::Error::DeserializeUnexpectedEnd))?;
        if *format != FORMAT {
            return Err(ManifestError::Format(*format));
        }
        let ((level, Children(children)), rest) =
            postcard::take_from_bytes(body).map_err(ManifestError::Malformed)?;
        if !rest.is_empty() {
            return Err(ManifestError::Trailing(rest.len()));
        }
        Manifest::new(level, children)
    }
}

/// Reads children one by one, so that a claimed length allocates nothing.
struct Children(Vec<Child>);

impl<'de> Deserialize<'de> for Children {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Children, D::Error> {
        deserializer.deserialize_seq(ChildrenVisitor).map(Children)
    }
}

struct ChildrenVisitor;

impl<'de> Visitor<'de> for ChildrenVisitor {
    type Value = Vec<Child>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at most {MANIFEST_CHILDREN_MAX} children")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<Child>, A::Error> {
        let mut children = Vec::new();
        while let Some(child) = seq.next_element()? {
            if children.len() == MANIFEST_CHILDREN_MAX {
                return Err(de::Error::custom("too many children"));
            }
            children.push(child);
        }
        Ok(children)
    }
}

/// Lists the data blocks of one object in their order.
#[derive(Debug, Default)]
pub struct ManifestBuilder {
    /// The children of the unfinished manifest of each level, from level 1 up.
    levels: Vec<Vec<Child>>,
    size: u64,
}

/// What an object is bound by, and the manifests that were not handed out before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// The root block.
    pub root: BlockId,
    /// Levels of manifests above the data blocks.
    pub depth: u8,
    /// Bytes in the object.
    pub size: u64,
    /// The last manifests, children before parents; at most one per level.
    pub last: Vec<(BlockId, Bytes)>,
}

impl ManifestBuilder {
    /// A builder for an object that has no blocks yet.
    #[must_use]
    pub fn new() -> ManifestBuilder {
        ManifestBuilder::default()
    }

    /// Adds the next data block and hands out a manifest to be stored, if one has filled. A level fills once
    /// in 2,048 times the level below, so one manifest a push keeps up with all levels.
    ///
    /// # Panics
    /// When `bytes` is no length of a block, or the object is longer than 64 bits can count.
    pub fn push(&mut self, id: BlockId, bytes: u64) -> Option<(BlockId, Bytes)> {
        assert!(
            (1..=BLOCK_BYTES_MAX as u64).contains(&bytes),
            "a block has 1 B to 120 KiB, this has {bytes}"
        );
        self.size = self.size.checked_add(bytes).expect("no stream is longer than 64 bits can count");
        self.add(0, Child { id, bytes });
        let full = self.levels.iter().position(|children| children.len() == MANIFEST_CHILDREN_MAX)?;
        Some(self.close(full))
    }

    /// The root of all that was pushed.
    #[must_use]
    pub fn finish(mut self) -> Root {
        let (size, mut last, mut index) = (self.size, Vec::new(), 0);
        loop {
            let is_top = index + 1 >= self.levels.len();
            match self.levels.get(index).map(Vec::as_slice) {
                None => return Root { root: EMPTY_OBJECT, depth: 0, size, last },
                Some([only]) if is_top => {
                    let depth = u8::try_from(index).expect("a level of 64-bit objects is at most DEPTH_MAX");
                    return Root { root: only.id, depth, size, last };
                }
                Some([]) => {}
                Some(_) => last.push(self.close(index)),
            }
            index += 1;
        }
    }

    /// What no manifest handed out yet lists, with its depth and the object's bytes below it: from these
    /// everything pushed can be reached.
    #[must_use]
    pub fn open_children(&self) -> Vec<(BlockId, u8, u64)> {
        let levels = (0_u8..).zip(&self.levels);
        let listed = |(depth, children): (u8, &Vec<Child>)| {
            children.iter().map(move |child| (child.id, depth, child.bytes)).collect::<Vec<_>>()
        };
        levels.flat_map(listed).collect()
    }

    fn add(&mut self, index: usize, child: Child) {
        if self.levels.len() == index {
            self.levels.push(Vec::new());
        }
        self.levels[index].push(child);
    }

    /// Makes a block of the manifest at `index` and lists it one level up.
    fn close(&mut self, index: usize) -> (BlockId, Bytes) {
        let children = std::mem::take(&mut self.levels[index]);
        let level = u8::try_from(index + 1).expect("a level of 64-bit objects is at most DEPTH_MAX");
        let manifest = Manifest::new(level, children).expect("children were checked as they were pushed");
        let block = manifest.encode();
        let id = BlockId::of(&block);
        self.add(index + 1, Child { id, bytes: manifest.total() });
        (id, block)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn child(number: u64, bytes: u64) -> Child {
        Child { id: BlockId::of(&number.to_le_bytes()), bytes }
    }

    /// The data blocks below a root, and how many manifests lie between.
    fn leaves(root: &Root, blocks: &BTreeMap<BlockId, Bytes>) -> (Vec<Child>, usize) {
        let mut level = vec![Child { id: root.root, bytes: root.size }];
        let mut manifests = 0;
        for depth in (1..=root.depth).rev() {
            manifests += level.len();
            level = level
                .iter()
                .flat_map(|parent| {
                    let manifest = Manifest::decode(&blocks[&parent.id]).unwrap();
                    assert_eq!((manifest.level(), manifest.total()), (depth, parent.bytes));
                    manifest.children().to_vec()
                })
                .collect();
        }
        (level, manifests)
    }

    fn build(children: &[Child]) -> (Root, BTreeMap<BlockId, Bytes>) {
        let mut builder = ManifestBuilder::new();
        let mut blocks = BTreeMap::new();
        blocks.extend(children.iter().filter_map(|child| builder.push(child.id, child.bytes)));
        assert!(builder.levels.iter().all(|level| level.len() < MANIFEST_CHILDREN_MAX + 1));
        let root = builder.finish();
        blocks.extend(root.last.clone());
        (root, blocks)
    }

    #[test]
    fn every_count_of_blocks_around_a_full_manifest_is_listed_whole() {
        let all: Vec<_> = (0..2 * 2048 + 2).map(|number| child(number, number % 122_880 + 1)).collect();
        for (count, depth, manifests) in
            [(1, 0, 0), (2, 1, 1), (2047, 1, 1), (2048, 1, 1), (2049, 2, 3), (4096, 2, 3), (4098, 2, 4)]
        {
            let (root, blocks) = build(&all[..count]);
            assert_eq!(
                (root.depth, root.size),
                (depth, all[..count].iter().map(|c| c.bytes).sum()),
                "{count}"
            );
            assert_eq!(leaves(&root, &blocks), (all[..count].to_vec(), manifests), "{count}");
            assert!(blocks.values().all(|block| block.len() <= BLOCK_BYTES_MAX));
        }
    }

    #[test]
    fn a_third_level_comes_when_the_second_is_full() {
        let many: Vec<_> = (0..2048 * 2048 + 1).map(|_| child(0, 1)).collect();
        let (full, _) = build(&many[..2048 * 2048]);
        assert_eq!(full.depth, 2);
        let (root, blocks) = build(&many);
        assert_eq!((root.depth, root.size), (3, many.len() as u64));
        assert_eq!(leaves(&root, &blocks).0.len(), many.len());
    }

    #[test]
    fn one_block_is_its_own_root_and_the_empty_object_has_none() {
        let (root, blocks) = build(&[child(7, 5)]);
        assert_eq!(root, Root { root: child(7, 5).id, depth: 0, size: 5, last: Vec::new() });
        assert!(blocks.is_empty());
        assert_eq!(build(&[]).0, Root { root: EMPTY_OBJECT, depth: 0, size: 0, last: Vec::new() });
    }

    #[test]
    fn a_full_manifest_of_the_longest_children_fits_a_block() {
        let id = BlockId([0xff; 32]);
        let most = u64::MAX / 2048;
        let manifest = Manifest::new(5, vec![Child { id, bytes: most }; 2048]).unwrap();
        assert!(manifest.encode().len() <= BLOCK_BYTES_MAX);
        assert_eq!(Manifest::decode(&manifest.encode()), Ok(manifest));
    }

    #[test]
    fn each_kind_of_wrong_manifest_is_named() {
        let good = Manifest::new(1, vec![child(1, 10), child(2, 20)]).unwrap().encode();
        assert_eq!(Manifest::decode(&[&good[..], &[0]].concat()), Err(ManifestError::Trailing(1)));
        assert_eq!(Manifest::decode(&[&[7], &good[1..]].concat()), Err(ManifestError::Format(7)));
        assert_eq!(Manifest::decode(&[0; 122_881]), Err(ManifestError::TooLong(122_881)));
        for end in 0..good.len() {
            assert!(matches!(Manifest::decode(&good[..end]), Err(ManifestError::Malformed(_))));
        }
        let raw = |level: u8, children: &[Child]| {
            Manifest::decode(&postcard::to_extend(&(FORMAT, level, children), Vec::new()).unwrap())
        };
        assert_eq!(raw(0, &[child(1, 1)]), Err(ManifestError::Level(0)));
        assert_eq!(raw(6, &[child(1, 1)]), Err(ManifestError::Level(6)));
        assert_eq!(raw(1, &[]), Err(ManifestError::Childless));
        let wrong = |level, bytes| Err(ManifestError::ChildBytes { index: 1, level, bytes });
        assert_eq!(raw(1, &[child(1, 1), child(2, 0)]), wrong(1, 0));
        assert_eq!(raw(1, &[child(1, 1), child(2, 122_881)]), wrong(1, 122_881));
        assert_eq!(raw(2, &[child(1, 1), child(2, 2048 * 122_880 + 1)]), wrong(2, 2048 * 122_880 + 1));
        let most = object_bytes_max(4);
        assert_eq!(raw(5, &[child(1, most); 9]), Err(ManifestError::Total));
        assert!(matches!(raw(1, &[child(1, 1); 2049]), Err(ManifestError::Malformed(_))));
        assert!(matches!(
            Manifest::decode(&[FORMAT, 1, 0xff, 0xff, 0xff, 0xff, 0x0f]),
            Err(ManifestError::Malformed(_))
        ));
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_survive(bytes in prop::collection::vec(any::<u8>(), 0..120), level in 0u8..7, count in 0u8..4) {
            if let Ok(manifest) = Manifest::decode(&[&[FORMAT, level, count], &bytes[..]].concat()) {
                prop_assert_eq!(Manifest::decode(&manifest.encode()), Ok(manifest));
            }
        }
    }
}
