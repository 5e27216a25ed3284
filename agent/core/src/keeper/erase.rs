//! One erasure: what lies under a CID goes, as far as no object needs it.
//!
//! The block is read first, to know whether it is a manifest; then everything that is needed is marked; then what
//! lies below goes, a manifest before what it lists, the block itself last. What is below a manifest that stays is not
//! looked at, for it is needed too, and a manifest that went is not met again: so the work is bounded by what goes,
//! even where data reads as manifests that list each other.

use crate::id::BlockId;
use crate::message::{Answer, Question, Ticket};
use crate::name::Name;
use crate::object::manifest::Manifest;
use crate::object::reach::{Page, Reach};
use crate::request::{Failure, FailureKind, Response, Unit};
use bytes::Bytes;

/// What an erasure needs next.
pub(super) enum Next {
    /// Ask the store, then [`Erasing::supply`].
    Ask(Question),
    /// All that is needed has to be marked before it goes on.
    Mark,
    /// It is over.
    Done(Response),
}

enum Stage {
    /// Is the block here, and a manifest?
    Looking,
    /// Going down.
    Below(Reach),
    /// A manifest below is being read.
    Reading(Reach, BlockId),
    /// A manifest below was read and is being deleted.
    Opening(Reach, Bytes),
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
    deleted: u64,
}

impl Erasing {
    /// Of this block; the caller asks for it first.
    pub(super) fn new(ticket: Ticket, id: BlockId) -> Self {
        Erasing { ticket, id, stage: Stage::Looking, deleted: 0 }
    }

    /// Why it must not go on, if the block is among these, which an object needs.
    pub(super) fn refusal(&self, needed: &[BlockId], by: Option<&Name>) -> Option<Failure> {
        needed.contains(&self.id).then(|| match by {
            Some(name) => {
                let why = format!("{name} needs {}; delete that name first", self.id);
                Failure::new(FailureKind::Invalid, why)
            }
            None => self.in_use(),
        })
    }

    fn in_use(&self) -> Failure {
        let why = format!("something under way needs {}; try again when it is over", self.id);
        Failure::new(FailureKind::Busy, why)
    }

    /// Nothing was marked for it yet.
    pub(super) fn is_looking(&self) -> bool {
        matches!(self.stage, Stage::Looking)
    }

    pub(super) fn progress(&self) -> Response {
        Response::Progress { done: self.deleted, total: 0, unit: Unit::Blocks }
    }

    /// Takes an answer of the store in, and says what comes next.
    ///
    /// # Errors
    /// It ends here.
    pub(super) fn supply(&mut self, answer: Answer) -> Result<Next, Failure> {
        let is_damaged = |failure: &Failure| failure.kind == FailureKind::Damaged;
        match (std::mem::replace(&mut self.stage, Stage::Alone), answer) {
            (Stage::Looking, Answer::Block(None)) => {
                return Err(Failure::new(FailureKind::NotFound, format!("{} is not here", self.id)));
            }
            (Stage::Looking, Answer::Block(Some(bytes))) => {
                if let Ok(manifest) = Manifest::decode(&bytes) {
                    self.stage = Stage::Below(Reach::new(self.id, manifest.level(), manifest.total()));
                }
                return Ok(Next::Mark);
            }
            // what a damaged manifest lists is left to cleaning
            (Stage::Looking, Answer::Failed(failure)) if is_damaged(&failure) => return Ok(Next::Mark),
            (Stage::Reading(mut reach, id), Answer::Block(Some(bytes))) => {
                if id != self.id {
                    self.stage = Stage::Opening(reach, bytes);
                    return Ok(Next::Ask(Question::CleanDelete(vec![id])));
                }
                reach.supply(&bytes);
                self.stage = Stage::Below(reach);
            }
            (Stage::Reading(mut reach, _), Answer::Block(None)) => {
                reach.skip();
                self.stage = Stage::Below(reach);
            }
            (Stage::Reading(mut reach, id), Answer::Failed(failure)) if is_damaged(&failure) => {
                reach.skip();
                self.stage = Stage::Below(reach);
                return Ok(Next::Ask(Question::CleanDelete(vec![id])));
            }
            (Stage::Opening(mut reach, bytes), Answer::Deleted(blocks)) => {
                self.deleted += blocks;
                if blocks > 0 {
                    reach.supply(&bytes);
                } else {
                    reach.skip();
                }
                self.stage = Stage::Below(reach);
            }
            (stage @ Stage::Below(_), Answer::Deleted(blocks)) => {
                self.deleted += blocks;
                self.stage = stage;
            }
            // it is needed by what the marks came too late for, or for once they say so without a reason
            (Stage::Itself, Answer::Deleted(0)) => return Err(self.in_use()),
            (Stage::Itself, Answer::Deleted(blocks)) => {
                return Ok(Next::Done(Response::Erased { cid: self.id, blocks: self.deleted + blocks }));
            }
            (_, answer) => return Err(answer.failure()),
        }
        Ok(self.next())
    }

    /// What comes next, once all that is needed is marked.
    pub(super) fn next(&mut self) -> Next {
        if let Stage::Below(mut reach) = std::mem::replace(&mut self.stage, Stage::Alone) {
            match reach.next() {
                Page::Read(id) => {
                    self.stage = Stage::Reading(reach, id);
                    return Next::Ask(Question::Read(id));
                }
                Page::Leaves(children) => {
                    self.stage = Stage::Below(reach);
                    let ids = children.into_iter().map(|child| child.id).collect();
                    return Next::Ask(Question::CleanDelete(ids));
                }
                // what a bad manifest leads to is left to cleaning
                Page::Bad(_) | Page::Done => {}
            }
        }
        self.stage = Stage::Itself;
        Next::Ask(Question::CleanDelete(vec![self.id]))
    }
}
