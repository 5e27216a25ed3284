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
use crate::time::CLOCK_UNSET_MS;
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
    /// The upstream peer will not take it: what it was made from must stay. Local knowledge, never sent.
    pub refused: bool,
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

    /// Whether `other` knows of writes of `node` of which this one, written by it, does not, and its clock was not set
    /// then: it had lost its store, so who wrote `other` has not seen this. With the clock set it wrote this before:
    /// what came behind may be lost with the end of its log, and `other` is later.
    #[must_use]
    pub fn has_forgotten(&self, node: &NodeName, other: &Binding) -> bool {
        let count = self.version.count(node);
        count < other.version.count(node) && i64::try_from(count).is_ok_and(|count| count < CLOCK_UNSET_MS)
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
        Relation::After => Ok(Resolution::Stale),
        Relation::Before => Ok(Resolution::Newer),
        Relation::Equal if local == incoming => Ok(Resolution::Same),
        // Equal versions of different bindings: a node lost its store and counts anew under its old name.
        Relation::Equal | Relation::Concurrent => reconcile(name, local, incoming),
    }
}

/// What [`resolve`] decides of two versions of which neither replaces the other.
///
/// # Errors
/// As [`resolve`].
pub fn reconcile(name: &Name, local: &Binding, incoming: &Binding) -> Result<Resolution, VersionError> {
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn node(index: usize) -> NodeName {
        format!("n{index:03}").parse().unwrap()
    }

    fn binding(origin: usize, version: Version, content: Content, meta: Meta) -> Binding {
        Binding { version, content, meta, origin: node(origin), conflict_of: None }
    }

    fn content() -> impl Strategy<Value = Content> {
        prop_oneof![
            1 => Just(Content::Deleted),
            4 => (0u8..4).prop_map(|byte| Content::Object { root: BlockId([byte; 32]), depth: 0 }),
        ]
    }

    /// A binding as node `origin` might write it after seeing some writes of others; few values, many ties.
    fn written(origin: usize) -> impl Strategy<Value = Binding> {
        let seen = prop::collection::vec(0usize..4, 0..4);
        (seen, content(), 0i64..3, 1u64..3, 0u32..2).prop_map(move |(seen, content, mtime_ms, size, mode)| {
            let mut version = Version::default();
            seen.into_iter().chain([origin]).for_each(|writer| version.bump(&node(writer)).unwrap());
            binding(origin, version, content, Meta { size, mtime_ms, mode })
        })
    }

    /// Takes an incoming binding as a node does; a loser is a further incoming binding for its own name.
    fn take(names: &mut BTreeMap<Name, Binding>, name: &Name, incoming: Binding) {
        let Some(local) = names.get(name) else {
            names.insert(name.clone(), incoming);
            return;
        };
        match resolve(name, local, &incoming).unwrap() {
            Resolution::Same | Resolution::Stale => {}
            Resolution::Newer => drop(names.insert(name.clone(), incoming)),
            Resolution::Merged(merged) => drop(names.insert(name.clone(), merged)),
            Resolution::Conflict { winner, loser_name, loser } => {
                names.insert(name.clone(), winner);
                take(names, &loser_name, loser);
            }
        }
    }

    proptest! {
        #[test]
        fn both_nodes_end_with_the_same_bindings(a in written(0), b in written(1)) {
            let name = Name::parse("a/b").unwrap();
            let mut left = BTreeMap::from([(name.clone(), a.clone())]);
            let mut right = BTreeMap::from([(name.clone(), b.clone())]);
            take(&mut left, &name, b.clone());
            take(&mut right, &name, a.clone());
            prop_assert_eq!(&left, &right);
            let is_kept = |content: Content| content == Content::Deleted || left.values().any(|kept| kept.content == content);
            if a.version.order(&b.version) == Relation::Concurrent {
                prop_assert!(is_kept(a.content) && is_kept(b.content), "no object is lost");
            }
            take(&mut left, &name, b);
            take(&mut left, &name, a);
            prop_assert_eq!(left, right, "what is known already changes nothing");
        }

        #[test]
        fn two_nodes_that_tell_each_other_all_converge(all in [written(0), written(1), written(2)], order in Just([0usize, 1, 2]).prop_shuffle()) {
            let name = Name::parse("a/b").unwrap();
            let (mut left, mut right) = (BTreeMap::new(), BTreeMap::new());
            all.iter().for_each(|binding| take(&mut left, &name, binding.clone()));
            order.iter().for_each(|index| take(&mut right, &name, all[*index].clone()));
            for _ in 0..4 {
                left.clone().into_iter().for_each(|(name, binding)| take(&mut right, &name, binding));
                right.clone().into_iter().for_each(|(name, binding)| take(&mut left, &name, binding));
            }
            prop_assert_eq!(left, right);
        }

        #[test]
        fn a_stored_binding_survives_and_any_bytes_are_refused_or_survive(
            mut binding in written(2), via in prop::option::of(0usize..9), bytes in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            binding.conflict_of = Some(Name::parse("x").unwrap());
            let stored = Stored { binding, via: via.map(node), refused: false };
            prop_assert_eq!(Stored::decode(&stored.encode()), Ok(stored));
            if let Ok(read) = Stored::decode(&[&[FORMAT], &bytes[..]].concat()) {
                prop_assert_eq!(Stored::decode(&read.encode()), Ok(read));
            }
        }
    }

    #[test]
    fn a_reborn_node_that_counts_anew_makes_a_conflict_and_loses_nothing() {
        let mut version = Version::default();
        version.bump(&node(0)).unwrap();
        let meta = Meta { size: 1, mtime_ms: 0, mode: 0o644 };
        let object = |byte| Content::Object { root: BlockId([byte; 32]), depth: 0 };
        let (old, new) = (binding(0, version.clone(), object(1), meta), binding(0, version, object(2), meta));
        let name = Name::parse("a").unwrap();
        assert!(matches!(resolve(&name, &old, &new), Ok(Resolution::Conflict { .. })));
        assert_eq!(resolve(&name, &old, &new), resolve(&name, &new, &old));
    }

    #[test]
    fn claims_that_can_not_be_are_refused() {
        let mut version = Version::default();
        version.bump(&node(0)).unwrap();
        let check = |root, depth, size| {
            let meta = Meta { size, mtime_ms: 0, mode: 0 };
            binding(0, version.clone(), Content::Object { root, depth }, meta).check()
        };
        let root = BlockId([1; 32]);
        assert_eq!(check(root, 0, 120 * 1024), Ok(()));
        assert_eq!(
            check(root, 0, 120 * 1024 + 1),
            Err(BindingError::Size { size: 120 * 1024 + 1, depth: 0 })
        );
        assert_eq!(check(root, 1, 2048 * 120 * 1024), Ok(()));
        assert!(check(root, 1, 2048 * 120 * 1024 + 1).is_err());
        assert_eq!(check(root, DEPTH_MAX, u64::MAX), Ok(()));
        assert_eq!(check(root, DEPTH_MAX + 1, 1), Err(BindingError::Depth(DEPTH_MAX + 1)));
        assert!(check(root, 1, 0).is_err(), "only the empty object has no bytes");
        assert_eq!(check(EMPTY_OBJECT, 0, 0), Ok(()));
        assert!(check(EMPTY_OBJECT, 0, 1).is_err());
        assert!(check(EMPTY_OBJECT, 1, 0).is_err());
        let meta = Meta { size: 0, mtime_ms: 0, mode: 0 };
        let foreign = binding(1, version.clone(), Content::Deleted, meta);
        assert_eq!(foreign.check(), Err(BindingError::Origin(node(1))));
        assert_eq!(EMPTY_OBJECT, BlockId::of(b""));
    }

    #[test]
    fn the_example_of_the_format_page_is_what_is_stored() {
        let cam: NodeName = "cam".parse().unwrap();
        let version: Version = serde_json::from_str(r#"[["cam",5]]"#).unwrap();
        let content = Content::Object { root: BlockId([0xab; 32]), depth: 0 };
        let meta = Meta { size: 1, mtime_ms: 1_800_000_000_000, mode: 0o644 };
        let binding = Binding { version, content, meta, origin: cam, conflict_of: None };
        let bytes = Stored { binding, via: None, refused: false }.encode();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(include_str!("../../../docs/format.md").contains(&hex), "{hex}");
    }

    #[test]
    fn the_largest_binding_fits_and_damage_is_named() {
        let long = |index: usize| format!("{index:064}").parse::<NodeName>().unwrap();
        let mut version = Version::default();
        (0..64).for_each(|index| version.bump(&long(index)).unwrap());
        let content = Content::Object { root: BlockId([1; 32]), depth: DEPTH_MAX };
        let meta = Meta { size: u64::MAX, mtime_ms: i64::MIN, mode: u32::MAX };
        let conflict_of = Some(Name::parse(&"x".repeat(1024)).unwrap());
        let binding = Binding { version, content, meta, origin: long(0), conflict_of };
        let stored = Stored { binding, via: Some(long(1)), refused: true };
        let bytes = stored.encode();
        // Counters near their end take nine bytes more each.
        assert!(bytes.len() + 64 * 9 <= STORED_BYTES_MAX, "{}", bytes.len());
        assert_eq!(Stored::decode(&bytes), Ok(stored));
        assert_eq!(Stored::decode(&[&bytes[..], &[0]].concat()), Err(BindingError::Trailing(1)));
        assert_eq!(Stored::decode(&[&[9], &bytes[1..]].concat()), Err(BindingError::Format(9)));
        assert_eq!(Stored::decode(&[0; 8193]), Err(BindingError::TooLong(8193)));
        for end in 0..bytes.len() {
            assert!(matches!(Stored::decode(&bytes[..end]), Err(BindingError::Malformed(_))), "cut at {end}");
        }
    }
}
