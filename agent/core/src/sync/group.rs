//! One announcement being taken in: what is needed, asked for, stored and bound.
//!
//! Plain state with no way to send; `receiver` drives it. Bounded by the announcement's entries, one
//! manifest per level of the object being walked, and the window of blocks.

use super::RETRY_MS;
use super::credit::Credit;
use super::wire::{Outcome, Refusal, Wanted};
use crate::binding::{Binding, Content};
use crate::id::{BlockId, NodeName};
use crate::message::{Answer, ChangeDone};
use crate::name::Name;
use crate::object::BLOCK_BYTES_MAX;
use crate::object::manifest::{Child, Manifest};
use crate::request::Failure;
use std::collections::{BTreeMap, BTreeSet};

/// Damaged manifests a transfer bears: with more the disk is not to be trusted.
const DAMAGED_MAX: u32 = 64;

/// What the store was asked on behalf of a group.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// The present bindings of all names.
    Lookup,
    /// Which roots are here.
    Roots,
    /// The manifest to walk next, and which of its children are here.
    Manifest,
    /// The manifest to walk after the present one, and which of its children are here.
    Ahead(BlockId),
    /// A received block of this length is being written.
    Put(u32),
    /// The binding at the name of a conflict's copy.
    Copy(u16),
    /// A conflict's copy is being bound.
    CopyBound(u16),
    /// A name is being bound.
    Bound(u16),
    /// A name was bound by somebody else in between: its binding now.
    Again(u16),
}

/// What the store said.
pub(super) enum News {
    Answer(Answer),
    Written(Result<ChangeDone, Failure>),
}

/// What is to be done with an entry.
#[expect(clippy::large_enum_variant, reason = "most entries are taken, and 64 are the most")]
pub(super) enum Plan {
    /// Not compared with the local binding yet.
    Unknown,
    /// Bind it once its content is here.
    Take(Take),
    /// Nothing more.
    Done(Outcome),
}

/// How an entry will be bound.
#[derive(Clone)]
pub(super) struct Take {
    pub(super) binding: Binding,
    pub(super) via: Option<NodeName>,
    pub(super) expected_seq: Option<u64>,
    /// The name stands for it already, and only what is lacking of its content is asked for.
    pub(super) is_bound: bool,
    /// The version that loses its name in a conflict.
    pub(super) copy: Option<(Name, Binding)>,
    pub(super) outcome: Outcome,
    /// The writes have been handed over.
    pub(super) binding_now: bool,
}

/// One announced name.
pub(super) struct InEntry {
    pub(super) name: Name,
    pub(super) incoming: Binding,
    pub(super) plan: Plan,
    pub(super) content_here: bool,
}

impl InEntry {
    /// The content that must be here before it is bound.
    pub(super) fn needs(&self) -> Option<(BlockId, u8)> {
        match (&self.plan, &self.incoming.content) {
            (Plan::Take(_), Content::Object { root, depth }) if self.incoming.meta.size > 0 => {
                Some((*root, *depth))
            }
            _ => None,
        }
    }
}

/// A manifest to be looked at.
#[derive(Clone, Copy)]
pub(super) struct Node {
    pub(super) id: BlockId,
    pub(super) level: u8,
    pub(super) bytes: u64,
}

/// What is known of the manifest to walk next, so that its blocks are asked for as soon as the present ones
/// have come.
#[derive(Default)]
pub(super) enum Ahead {
    #[default]
    Unknown,
    /// It is being read.
    Asked(BlockId),
    /// The manifest, and how long those of its children are that were here when it was read.
    Read(BlockId, Option<Manifest>, Vec<Option<u32>>),
}

/// An announcement being taken in.
pub(super) struct InGroup {
    /// No other has it: a late answer of the store to an earlier one of the same number is not for this one.
    pub(super) life: u64,
    pub(super) request: Option<u32>,
    pub(super) entries: Vec<InEntry>,
    /// Counts the wants.
    pub(super) round: u32,
    /// The present one asks once more for what is missing of the one before.
    pub(super) is_repeated: bool,
    /// Bytes that have come of what was asked for.
    pub(super) bytes_came: u64,
    /// Blocks asked for and not received, each with the length that the manifest says of it; a manifest's
    /// length is not known, and of a root each entry says its own.
    pub(super) expected: BTreeMap<BlockId, Option<u64>>,
    /// The entry whose manifests are being walked, and the manifests still to be looked at.
    pub(super) walking: Option<u16>,
    pub(super) nodes: Vec<Node>,
    /// The manifest being looked at and its children; none while roots are received.
    pub(super) node: Option<(Node, Vec<Child>)>,
    /// What is expected is known: no question about it is open.
    pub(super) expected_known: bool,
    /// The manifest to be looked at next.
    pub(super) ahead: Ahead,
    /// The children of the manifest before: they have come, though a look-up may not know them yet.
    pub(super) before: Vec<Child>,
    pub(super) credit: Credit,
    /// Manifests that were here and turned out damaged.
    pub(super) damaged: u32,
    /// A block that the sender could not read.
    pub(super) lost: Option<BlockId>,
    /// Outcomes not yet acknowledged.
    pub(super) outcomes: Vec<(u16, Outcome)>,
    pub(super) acknowledged: usize,
    /// When its sender was last heard of it.
    pub(super) heard_ms: u64,
    pub(super) retry_at_ms: u64,
    pub(super) retry_wait_ms: u64,
}

impl InGroup {
    pub(super) fn new(life: u64, request: Option<u32>, entries: Vec<(Name, Binding)>) -> Self {
        let entry = |(name, incoming)| InEntry { name, incoming, plan: Plan::Unknown, content_here: false };
        InGroup {
            life,
            request,
            entries: entries.into_iter().map(entry).collect(),
            round: 0,
            is_repeated: false,
            bytes_came: 0,
            expected: BTreeMap::new(),
            walking: None,
            nodes: Vec::new(),
            node: None,
            expected_known: false,
            ahead: Ahead::Unknown,
            before: Vec::new(),
            credit: Credit::default(),
            damaged: 0,
            lost: None,
            outcomes: Vec::new(),
            acknowledged: 0,
            heard_ms: 0,
            retry_at_ms: u64::MAX,
            retry_wait_ms: 0,
        }
    }

    /// Roots of what is under way, for the cleaner.
    pub(super) fn roots(&self) -> Vec<(BlockId, u8, u64)> {
        let root = |entry: &InEntry| match entry.incoming.content {
            Content::Object { root, depth } => Some((root, depth, entry.incoming.meta.size)),
            Content::Deleted => None,
        };
        self.entries.iter().filter_map(root).collect()
    }

    /// Roots of what must be here before it is bound.
    pub(super) fn roots_needed(&self) -> Vec<BlockId> {
        self.entries.iter().filter_map(|entry| entry.needs().map(|(root, _)| root)).collect()
    }

    /// Whether a manifest that turned out damaged at this step is one that can be had again.
    pub(super) fn bears_damage(&self, step: &Step) -> bool {
        let is_walked = matches!(step, Step::Manifest) && self.node.is_some();
        (is_walked || matches!(step, Step::Ahead(_))) && self.damaged < DAMAGED_MAX
    }

    /// Takes in that the manifest of this step is damaged. Whether the walk can not go on without it: not if its turn
    /// is still to come, or if it was refused since.
    pub(super) fn lacks(&mut self, step: &Step) -> bool {
        let Step::Ahead(id) = step else { return true };
        let is_asked = matches!(self.ahead, Ahead::Asked(asked) if asked == *id);
        if is_asked {
            self.ahead = Ahead::Unknown;
        }
        is_asked && !self.expected_known
    }

    /// What was here is compared from the roots on: a manifest that was found damaged is lacking now.
    pub(super) fn begin_again(&mut self) {
        self.damaged += 1;
        self.walking = None;
        self.nodes.clear();
        self.node = None;
        self.ahead = Ahead::Unknown;
        self.before.clear();
    }

    /// Settles an entry; it is acknowledged with the next message.
    pub(super) fn settle(&mut self, index: u16, outcome: Outcome) {
        let entry = &mut self.entries[usize::from(index)];
        if !matches!(entry.plan, Plan::Done(_)) {
            entry.plan = Plan::Done(outcome.clone());
            self.outcomes.push((index, outcome));
        }
    }

    /// Takes in which roots are here, and how long those are: the others are expected.
    pub(super) fn expect_roots(&mut self, roots: impl Iterator<Item = (BlockId, Option<u32>)>) {
        self.expected.clear();
        self.expected_known = true;
        for (id, here) in roots {
            match here {
                Some(length) => self.root_has(id, u64::from(length)),
                None => drop(self.expected.insert(id, None)),
            }
        }
    }

    /// Takes in a manifest, and how long those of its children are that are here: the others are expected.
    pub(super) fn expect_children(&mut self, node: Node, children: Vec<(Child, Option<u32>)>) {
        self.expected.clear();
        self.expected_known = true;
        let mut lies = false;
        for (child, here) in &children {
            let says = (node.level == 1).then_some(child.bytes);
            let other = match here {
                Some(length) => Some(says.map(|_| u64::from(*length))),
                None => self.expected.insert(child.id, says),
            };
            lies |= other.is_some_and(|other| other != says);
        }
        self.node = Some((node, children.into_iter().map(|(child, _)| child).collect()));
        if lies {
            self.refuse_walked(Refusal::Content);
        }
    }

    /// Takes a block off the expected ones, and refuses whatever claims another length of it than it has.
    /// Whether it was expected.
    pub(super) fn came(&mut self, id: BlockId, bytes: u64) -> bool {
        let Some(says) = self.expected.remove(&id) else { return false };
        self.bytes_came += bytes;
        match &self.node {
            None => self.root_has(id, bytes),
            Some(_) if says.is_some_and(|says| says != bytes) => self.refuse_walked(Refusal::Content),
            Some(_) => {}
        }
        true
    }

    /// The length a want had in mind for a block that is expected.
    pub(super) fn wanted_bytes(&self, id: &BlockId) -> u64 {
        let of_root = |entry: &InEntry| match entry.needs() {
            Some((root, 0)) if root == *id && self.node.is_none() => Some(entry.incoming.meta.size),
            _ => None,
        };
        let says = self.expected.get(id).copied().flatten();
        says.or_else(|| self.entries.iter().find_map(of_root)).unwrap_or(BLOCK_BYTES_MAX as u64)
    }

    fn root_has(&mut self, id: BlockId, bytes: u64) {
        self.refuse_roots(Refusal::Content, |root, depth, size| (root, depth) == (id, 0) && size != bytes);
    }

    /// Refuses the object whose manifests are being walked; nothing more is expected of it.
    pub(super) fn refuse_walked(&mut self, why: Refusal) {
        self.expected.clear();
        self.nodes.clear();
        self.node = None;
        self.ahead = Ahead::Unknown;
        self.before.clear();
        if let Some(index) = self.walking.take() {
            self.settle(index, Outcome::Refused(why));
        }
    }

    /// Refuses the entries whose root, depth and size `is_bad` finds bad.
    pub(super) fn refuse_roots(&mut self, why: Refusal, is_bad: impl Fn(BlockId, u8, u64) -> bool) {
        for index in self.indices() {
            let entry = &self.entries[usize::from(index)];
            let size = entry.incoming.meta.size;
            if entry.needs().is_some_and(|(root, depth)| is_bad(root, depth, size)) {
                self.settle(index, Outcome::Refused(why));
            }
        }
    }

    pub(super) fn take(&mut self, index: u16) -> Option<&mut Take> {
        match &mut self.entries.get_mut(usize::from(index))?.plan {
            Plan::Take(take) => Some(take),
            Plan::Unknown | Plan::Done(_) => None,
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.entries.iter().all(|entry| matches!(entry.plan, Plan::Done(_)))
    }

    /// Entries being bound and not durable yet.
    pub(super) fn is_binding(&self) -> bool {
        self.entries.iter().any(|entry| matches!(&entry.plan, Plan::Take(take) if take.binding_now))
    }

    /// Indices of all entries.
    pub(super) fn indices(&self) -> std::ops::Range<u16> {
        0..u16::try_from(self.entries.len()).expect("an announcement has at most 64 entries")
    }

    /// Blocks handed to the store and not durable yet.
    pub(super) fn is_writing(&self) -> bool {
        self.credit.held().blocks > 0
    }

    /// The sender has not sent what was asked for since it was asked for again.
    pub(super) fn is_silent(&self) -> bool {
        self.retry_wait_ms > RETRY_MS && !self.expected.is_empty()
    }

    /// What is still expected of the present round, as a want says it, and the lengths in that order.
    pub(super) fn wanted(&self) -> (Wanted, Vec<u64>) {
        let length = |depth: u8, bytes: u64| if depth > 0 { BLOCK_BYTES_MAX as u64 } else { bytes };
        let mut lengths = Vec::with_capacity(self.expected.len());
        match &self.node {
            Some((node, children)) => {
                let mut missing = vec![0_u8; children.len().div_ceil(8)];
                let mut asked = BTreeSet::new();
                for (index, child) in children.iter().enumerate() {
                    if self.expected.contains_key(&child.id) && asked.insert(child.id) {
                        missing[index / 8] |= 1 << (index % 8);
                        lengths.push(length(node.level - 1, child.bytes));
                    }
                }
                (Wanted::Children { manifest: node.id, missing }, lengths)
            }
            None => {
                let mut asked = BTreeSet::new();
                let wants = |index: &u16| {
                    let entry = &self.entries[usize::from(*index)];
                    let root = entry.needs().filter(|(root, _)| self.expected.contains_key(root));
                    let Some((_, depth)) = root.filter(|(root, _)| asked.insert(*root)) else { return false };
                    lengths.push(length(depth, entry.incoming.meta.size));
                    true
                };
                let roots = self.indices().filter(wants).collect();
                (Wanted::Roots(roots), lengths)
            }
        }
    }
}
