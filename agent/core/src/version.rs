//! Versions of a name: which node has written it how often.
//!
//! Two versions are ordered if one knows all that the other knows; otherwise they are concurrent and a
//! conflict. At most [`WRITERS_MAX`] nodes may write one name: forgetting the eldest instead would make a
//! stale version look concurrent or, worse, new. Past the limit a write is refused and nothing changes.

use std::cmp::Ordering;
use std::fmt;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;

use crate::id::NodeName;

/// How many nodes may write one name.
pub const WRITERS_MAX: usize = 64;

/// A version vector: writers in the order of their names, each with its count of writes, never 0.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Version(Vec<(NodeName, u64)>);

/// How a version stands to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// Both know the same writes.
    Equal,
    /// The other knows all of this one's writes and more.
    Before,
    /// This one knows all of the other's writes and more.
    After,
    /// Each knows a write that the other does not.
    Concurrent,
}

/// Why a version can not be made or read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum VersionError {
    /// A name is written by too many nodes.
    #[error("more than {WRITERS_MAX} nodes write this name: give each node a directory of its own")]
    TooManyWriters,
    /// A counter is at its end, which no honest writer reaches.
    #[error("the write counter of node {0} is at its end: remove the name on every node and write it anew")]
    Exhausted(NodeName),
    /// Writers out of order, named twice, or with a count of 0.
    #[error("the writers of a version are not in order, or one has written nothing")]
    Malformed,
}

impl Version {
    /// Counts a write by `node` at `wall_ms`. The count never falls behind the clock: a node that has lost its
    /// store, and with it its counts, still writes later versions than before, if its clock is set.
    ///
    /// # Errors
    /// As [`Version::bump`].
    pub fn write(&mut self, node: &NodeName, wall_ms: i64) -> Result<(), VersionError> {
        self.bump(node)?;
        if let (Ok(index), Ok(clock)) = (self.place(node), u64::try_from(wall_ms)) {
            let count = &mut self.0[index].1;
            *count = clock.max(*count);
        }
        Ok(())
    }

    /// Counts one more write by `node`.
    ///
    /// # Errors
    /// Leaves the version as it was when `node` is one writer too many or its counter is at its end.
    pub fn bump(&mut self, node: &NodeName) -> Result<(), VersionError> {
        match self.place(node) {
            Ok(index) => {
                let count = &mut self.0[index].1;
                *count = count.checked_add(1).ok_or_else(|| VersionError::Exhausted(node.clone()))?;
            }
            Err(_) if self.0.len() >= WRITERS_MAX => return Err(VersionError::TooManyWriters),
            Err(index) => self.0.insert(index, (node.clone(), 1)),
        }
        Ok(())
    }

    /// How this version stands to `other`.
    #[must_use]
    pub fn order(&self, other: &Version) -> Relation {
        match (self.knows(other), other.knows(self)) {
            (true, true) => Relation::Equal,
            (true, false) => Relation::After,
            (false, true) => Relation::Before,
            (false, false) => Relation::Concurrent,
        }
    }

    /// The least version that knows all that both know.
    ///
    /// # Errors
    /// [`VersionError::TooManyWriters`].
    pub fn merge(&self, other: &Version) -> Result<Version, VersionError> {
        let mut merged = Vec::with_capacity((self.0.len() + other.0.len()).min(WRITERS_MAX));
        let (mut left, mut right) = (self.0.iter().peekable(), other.0.iter().peekable());
        loop {
            let side = match (left.peek(), right.peek()) {
                (None, None) => return Ok(Version(merged)),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((a, _)), Some((b, _))) => a.cmp(b),
            };
            let from_left = if side.is_le() { left.next() } else { None };
            let from_right = if side.is_ge() { right.next() } else { None };
            if merged.len() == WRITERS_MAX {
                return Err(VersionError::TooManyWriters);
            }
            merged.extend(from_left.max(from_right).cloned());
        }
    }

    /// Whether `node` has written this version or one before it.
    #[must_use]
    pub fn contains(&self, node: &NodeName) -> bool {
        self.place(node).is_ok()
    }

    /// The writers in the order of their names, with their counts.
    #[must_use]
    pub fn writers(&self) -> &[(NodeName, u64)] {
        &self.0
    }

    /// How often `node` has written, as far as this version knows.
    #[must_use]
    pub fn count(&self, node: &NodeName) -> u64 {
        self.place(node).map_or(0, |index| self.0[index].1)
    }

    fn knows(&self, other: &Version) -> bool {
        other.0.iter().all(|(node, count)| self.count(node) >= *count)
    }

    fn place(&self, node: &NodeName) -> Result<usize, usize> {
        self.0.binary_search_by(|(writer, _)| writer.cmp(node))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (node, count)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{node}:{count}")?;
        }
        Ok(())
    }
}

impl Serialize for Version {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Version, D::Error> {
        deserializer.deserialize_seq(Writers)
    }
}

/// Reads writers one by one, so that a claimed length allocates nothing.
struct Writers;

impl<'de> Visitor<'de> for Writers {
    type Value = Version;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at most {WRITERS_MAX} writers in the order of their names")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Version, A::Error> {
        let mut writers: Vec<(NodeName, u64)> = Vec::new();
        while let Some((node, count)) = seq.next_element::<(NodeName, u64)>()? {
            if writers.len() == WRITERS_MAX {
                return Err(de::Error::custom(VersionError::TooManyWriters));
            }
            if count == 0 || writers.last().is_some_and(|(last, _)| *last >= node) {
                return Err(de::Error::custom(VersionError::Malformed));
            }
            writers.push((node, count));
        }
        Ok(Version(writers))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node(index: usize) -> NodeName {
        format!("n{index:03}").parse().unwrap()
    }

    fn version() -> impl Strategy<Value = Version> {
        prop::collection::vec(0usize..5, 0..8).prop_map(|writes| {
            let mut version = Version::default();
            writes.into_iter().for_each(|writer| version.bump(&node(writer)).unwrap());
            version
        })
    }

    fn opposite(relation: Relation) -> Relation {
        match relation {
            Relation::Before => Relation::After,
            Relation::After => Relation::Before,
            Relation::Equal | Relation::Concurrent => relation,
        }
    }

    proptest! {
        #[test]
        fn the_order_is_seen_alike_from_both_sides(a in version(), b in version()) {
            prop_assert_eq!(a.order(&b), opposite(b.order(&a)));
            prop_assert_eq!(a.order(&b) == Relation::Equal, a == b);
        }

        #[test]
        fn a_merge_knows_both_and_nothing_more(a in version(), b in version(), c in version()) {
            let ab = a.merge(&b).unwrap();
            prop_assert!(matches!(ab.order(&a), Relation::Equal | Relation::After));
            prop_assert!(matches!(ab.order(&b), Relation::Equal | Relation::After));
            prop_assert_eq!(&ab, &b.merge(&a).unwrap());
            prop_assert_eq!(a.merge(&a).unwrap(), a.clone());
            prop_assert_eq!(ab.merge(&c).unwrap(), a.merge(&b.merge(&c).unwrap()).unwrap());
            let knows_both = |v: &Version| v.knows(&a) && v.knows(&b);
            prop_assert!(!knows_both(&c) || c.knows(&ab), "the merge is the least");
        }

        #[test]
        fn a_write_comes_after_all_it_knew(a in version(), writer in 0usize..5) {
            let mut next = a.clone();
            next.bump(&node(writer)).unwrap();
            prop_assert_eq!(next.order(&a), Relation::After);
            prop_assert!(next.contains(&node(writer)));
        }

        #[test]
        fn two_writes_apart_are_concurrent(a in version()) {
            let (mut left, mut right) = (a.clone(), a);
            left.bump(&node(7)).unwrap();
            right.bump(&node(8)).unwrap();
            prop_assert_eq!(left.order(&right), Relation::Concurrent);
        }

        #[test]
        fn a_version_survives_postcard(a in version()) {
            prop_assert_eq!(postcard::from_bytes::<Version>(&postcard::to_allocvec(&a).unwrap()).unwrap(), a);
        }
    }

    #[test]
    fn a_writer_too_many_is_refused_and_changes_nothing() {
        let mut full = Version::default();
        (0..WRITERS_MAX).for_each(|index| full.bump(&node(index)).unwrap());
        let before = full.clone();
        assert_eq!(full.bump(&node(99)), Err(VersionError::TooManyWriters));
        assert_eq!(full, before);
        full.bump(&node(3)).unwrap();
        let mut other = Version::default();
        other.bump(&node(99)).unwrap();
        assert_eq!(full.merge(&other), Err(VersionError::TooManyWriters));
        assert_eq!(full.merge(&before), Ok(full.clone()));
    }

    #[test]
    fn malformed_versions_are_not_read() {
        let (a, b) = (node(1), node(2));
        let read = |writers: &[(NodeName, u64)]| {
            postcard::from_bytes::<Version>(&postcard::to_allocvec(writers).unwrap())
        };
        assert!(read(&[(a.clone(), 1), (b.clone(), u64::MAX)]).is_ok());
        assert!(read(&[(b.clone(), 1), (a.clone(), 1)]).is_err(), "out of order");
        assert!(read(&[(a.clone(), 1), (a.clone(), 2)]).is_err(), "twice");
        assert!(read(&[(a.clone(), 0)]).is_err(), "wrote nothing");
        assert!(read(&(0..65).map(|index| (node(index), 1)).collect::<Vec<_>>()).is_err(), "too many");
        assert!(postcard::from_bytes::<Version>(&[0xff; 10]).is_err(), "a claimed length allocates nothing");
        let mut last = read(&[(a.clone(), u64::MAX)]).unwrap();
        assert_eq!(last.bump(&a), Err(VersionError::Exhausted(a)));
    }
}
