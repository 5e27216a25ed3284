//! A tour of everything that names reach: page by page over the names, manifest by manifest down each.
//!
//! Pure and bounded: one page of names and one manifest a level. The cleaner marks what it yields, the
//! verifier asks whether it is there.

use crate::binding::{Content, Stored};
use crate::id::BlockId;
use crate::limits::LIST_PAGE;
use crate::message::{Answer, Question};
use crate::name::Name;
use crate::object::reach::{Page, Reach};
use crate::request::{Failure, FailureKind};
use std::collections::VecDeque;

/// What the tour needs or has found.
pub(super) enum TourStep {
    /// Ask the store, then [`Tour::supply`].
    Ask(Question),
    /// These blocks belong to the present object.
    Ids(Vec<BlockId>),
    /// The present object is complete; `whole` tells whether its binding and all its manifests could be read.
    Object { name: Option<Name>, whole: bool },
    /// Everything was seen.
    Done,
    /// The names can not be read.
    Failed(Failure),
}

/// A root, its depth and the object's bytes.
type Root = (BlockId, u8, u64);

/// Where it stands.
pub(super) struct Tour {
    /// Objects of the present page, still to be visited; without a root where the binding is not understood.
    objects: VecDeque<(Option<Name>, Option<Root>)>,
    /// Where the next page begins; `None` after the last.
    next_page: Option<Option<Name>>,
    present: Option<(Option<Name>, Reach)>,
    whole: bool,
    /// The manifest being read, to be yielded too.
    reading: bool,
    found: Option<TourStep>,
}

impl Tour {
    /// A tour that begins with these nameless roots.
    pub(super) fn new(roots: Vec<Root>) -> Self {
        Tour {
            objects: roots.into_iter().map(|root| (None, Some(root))).collect(),
            next_page: Some(None),
            present: None,
            whole: true,
            reading: false,
            found: None,
        }
    }

    /// Has it visit this object too.
    pub(super) fn add(&mut self, root: BlockId, depth: u8, size: u64) {
        self.objects.push_back((None, Some((root, depth, size))));
    }

    pub(super) fn next(&mut self) -> TourStep {
        if let Some(found) = self.found.take() {
            return found;
        }
        if let Some((name, reach)) = &mut self.present {
            match reach.next() {
                Page::Read(id) => {
                    if std::mem::replace(&mut self.reading, true) {
                        return TourStep::Ask(Question::Read(id));
                    }
                    return TourStep::Ids(vec![id]);
                }
                Page::Leaves(children) => {
                    return TourStep::Ids(children.into_iter().map(|child| child.id).collect());
                }
                Page::Bad(_) => self.whole = false,
                Page::Done => {}
            }
            let name = name.take();
            self.present = None;
            return TourStep::Object { name, whole: std::mem::replace(&mut self.whole, true) };
        }
        if let Some((name, root)) = self.objects.pop_front() {
            let Some((root, depth, size)) = root else { return TourStep::Object { name, whole: false } };
            self.present = Some((name, Reach::new(root, depth, size)));
            return self.next();
        }
        match &self.next_page {
            Some(after) => TourStep::Ask(Question::List {
                prefix: String::new(),
                after: after.clone(),
                limit: LIST_PAGE,
            }),
            None => TourStep::Done,
        }
    }

    /// The name of the object being visited, if it has one.
    pub(super) fn object(&self) -> Option<&Name> {
        self.present.as_ref().and_then(|(name, _)| name.as_ref())
    }

    /// The answer to what was asked.
    pub(super) fn supply(&mut self, answer: Answer) {
        match (&mut self.present, answer) {
            (Some((_, reach)), Answer::Block(Some(bytes))) => {
                self.reading = false;
                reach.supply(&bytes);
            }
            (Some((_, reach)), _) => {
                // A manifest that is missing or damaged: go on beside it.
                self.reading = false;
                self.whole = false;
                reach.skip();
            }
            (None, Answer::Page(page)) => {
                self.next_page = (page.len() >= LIST_PAGE).then(|| page.last().map(|(name, _)| name.clone()));
                self.objects.extend(page.into_iter().filter_map(|(name, bound)| {
                    let Ok(Stored { binding, .. }) = Stored::decode(&bound.value) else {
                        return Some((Some(name), None));
                    };
                    match binding.content {
                        Content::Object { root, depth } => {
                            Some((Some(name), Some((root, depth, binding.meta.size))))
                        }
                        Content::Deleted => None,
                    }
                }));
            }
            (None, Answer::Failed(failure)) => self.found = Some(TourStep::Failed(failure)),
            (None, _) => {
                let failure = Failure::new(FailureKind::Disk, "the store gave an answer to another question");
                self.found = Some(TourStep::Failed(failure));
            }
        }
    }
}
