//! One erasure: what lies under a CID goes, as far as no object needs it.
//!
//! The block is read first, to know whether it is a manifest; then everything that is needed is marked; then what
//! lies below goes, a manifest's page at a time, the block itself last, so that one that broke off can be asked for
//! again. Data that reads as a manifest does no harm: whatever it lists, only what nothing needs is deleted.

use crate::id::BlockId;
use crate::message::{Answer, Question, Ticket};
use crate::name::Name;
use crate::object::manifest::Manifest;
use crate::object::reach::{Page, Reach};
use crate::request::{Failure, FailureKind, Response};

/// What an erasure needs next.
pub(super) enum Next {
    /// Ask the store, then [`Erasing::supply`].
    Ask(Question),
    /// It is over.
    Done(Response),
}

enum Stage {
    /// Is the block here, and a manifest?
    Looking,
    /// Going down.
    Below(Reach),
    /// Nothing lies below, or no more.
    Alone,
    /// The block itself is being deleted.
    Itself,
}

/// How far it is.
pub(super) struct Erasing {
    /// Who has asked for it.
    pub(super) ticket: Ticket,
    id: BlockId,
    stage: Stage,
    /// The manifest being read.
    reading: Option<BlockId>,
    /// Found below and to be deleted: one page, and the manifests that lead to it.
    found: Vec<BlockId>,
    deleted: u64,
}

impl Erasing {
    /// The caller asks for the block first.
    pub(super) fn new(ticket: Ticket, id: BlockId) -> Self {
        Erasing { ticket, id, stage: Stage::Looking, reading: None, found: Vec::new(), deleted: 0 }
    }

    /// Why it must not go on, if the block is among these, which an object needs.
    pub(super) fn refusal(&self, needed: &[BlockId], by: Option<&Name>) -> Option<Failure> {
        needed.contains(&self.id).then(|| match by {
            Some(name) => {
                let why = format!("{name} needs {}; delete that name first", self.id);
                Failure::new(FailureKind::Invalid, why)
            }
            None => {
                let why = format!("something under way needs {}; try again when it is over", self.id);
                Failure::new(FailureKind::Busy, why)
            }
        })
    }

    /// Takes an answer of the store in; `false` when all that is needed has to be marked before it goes on.
    ///
    /// # Errors
    /// It ends here.
    pub(super) fn supply(&mut self, answer: Answer) -> Result<bool, Failure> {
        match (answer, &mut self.stage) {
            (Answer::Block(None), Stage::Looking) => {
                Err(Failure::new(FailureKind::NotFound, format!("{} is not here", self.id)))
            }
            (Answer::Block(Some(bytes)), stage @ Stage::Looking) => {
                *stage = match Manifest::decode(&bytes) {
                    Ok(manifest) => Stage::Below(Reach::new(self.id, manifest.level(), manifest.total())),
                    Err(_) => Stage::Alone,
                };
                Ok(false)
            }
            (Answer::Failed(failure), stage @ Stage::Looking) if failure.kind == FailureKind::Damaged => {
                *stage = Stage::Alone;
                Ok(false)
            }
            (Answer::Block(block), Stage::Below(reach)) => {
                self.found.extend(self.reading.take().filter(|id| *id != self.id));
                match block {
                    Some(bytes) => reach.supply(&bytes),
                    None => reach.skip(),
                }
                Ok(true)
            }
            // what a damaged manifest lists is left to cleaning
            (Answer::Failed(failure), Stage::Below(reach))
                if failure.kind == FailureKind::Damaged && self.reading.is_some() =>
            {
                self.found.extend(self.reading.take().filter(|id| *id != self.id));
                reach.skip();
                Ok(true)
            }
            (Answer::Deleted(blocks), _) => {
                self.deleted += blocks;
                Ok(true)
            }
            (answer, _) => Err(answer.failure()),
        }
    }

    /// What it needs, once all that is needed is marked.
    pub(super) fn next(&mut self) -> Next {
        while let Stage::Below(reach) = &mut self.stage {
            match reach.next() {
                Page::Read(id) => {
                    self.reading = Some(id);
                    return Next::Ask(Question::Read(id));
                }
                Page::Leaves(children) => {
                    self.found.extend(children.into_iter().map(|child| child.id));
                    return self.delete_found();
                }
                // what a bad manifest leads to is left to cleaning
                Page::Bad(_) | Page::Done => self.stage = Stage::Alone,
            }
        }
        if matches!(self.stage, Stage::Itself) {
            return Next::Done(Response::Erased { cid: self.id, blocks: self.deleted });
        }
        self.stage = Stage::Itself;
        self.found.push(self.id);
        self.delete_found()
    }

    fn delete_found(&mut self) -> Next {
        Next::Ask(Question::CleanDelete(std::mem::take(&mut self.found)))
    }
}
