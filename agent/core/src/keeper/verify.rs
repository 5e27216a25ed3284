//! One verification: every block is read, then every name asked whether all its blocks are there.

use super::tour::{Tour, TourStep};
use crate::id::BlockId;
use crate::limits::VERIFY_LISTED_MAX;
use crate::message::{Answer, Question, Ticket};
use crate::name::Name;
use crate::request::{Failure, FailureKind, Response, Unit};
use std::collections::BTreeSet;

/// How far it is.
pub(super) struct Verifying {
    /// Who has asked for it; nobody where the node scrubs by itself.
    pub(super) ticket: Option<Ticket>,
    position: u64,
    pub(super) total: u64,
    pub(super) blocks: u64,
    pub(super) bytes: u64,
    pub(super) damaged: BTreeSet<BlockId>,
    pub(super) incomplete: Vec<Name>,
    /// The second half: names.
    tour: Option<Tour>,
    /// The question about names that waits for its answer.
    asked: Option<Question>,
    /// A block of the present object is not there.
    lacking: bool,
}

impl Verifying {
    pub(super) fn new(ticket: Option<Ticket>) -> Self {
        Verifying {
            ticket,
            position: 0,
            total: 0,
            blocks: 0,
            bytes: 0,
            damaged: BTreeSet::new(),
            incomplete: Vec::new(),
            tour: None,
            asked: None,
            lacking: false,
        }
    }

    /// Whether the blocks are read and the names are being asked.
    pub(super) fn is_at_names(&self) -> bool {
        self.tour.is_some()
    }

    /// Names and blocks have gone meanwhile: what was found of the names counts no more.
    pub(super) fn ask_names_again(&mut self) {
        if self.tour.is_some() {
            self.tour = Some(Tour::new(Vec::new()));
            self.lacking = false;
            self.incomplete.clear();
        }
    }

    /// What is to be asked again when the store has less to do.
    pub(super) fn put_off(&self, answer: &Answer) -> Option<Question> {
        let is_busy = matches!(answer, Answer::Failed(failure) if failure.kind == FailureKind::Busy);
        self.asked.as_ref().filter(|_| is_busy).cloned()
    }

    /// Takes an answer of the store in.
    ///
    /// # Errors
    /// It can not go on.
    pub(super) fn supply(&mut self, answer: Answer) -> Result<(), Failure> {
        match (answer, &mut self.tour) {
            (Answer::Failed(failure), _) if !matches!(self.asked, Some(Question::Read(_))) => {
                return Err(failure);
            }
            (Answer::Numbers(numbers), _) => self.total = numbers.blocks,
            (Answer::Verified { next, blocks, bytes, damaged }, _) => {
                self.blocks += blocks;
                self.bytes += bytes;
                let room = VERIFY_LISTED_MAX.saturating_sub(self.damaged.len());
                self.damaged.extend(damaged.into_iter().take(room));
                match next {
                    Some(next) => self.position = next,
                    None => self.tour = Some(Tour::new(Vec::new())),
                }
            }
            (Answer::Has(here), _) => self.lacking |= here.contains(&None),
            (answer, Some(tour)) => tour.supply(answer),
            (_, None) => {}
        }
        Ok(())
    }

    /// The next question, of at most so many bytes to be read; none when all was asked.
    ///
    /// # Errors
    /// The names can not be read.
    pub(super) fn next(&mut self, step_bytes: u64) -> Result<Option<Question>, Failure> {
        let Some(tour) = &mut self.tour else {
            return Ok(Some(Question::Verify { position: self.position, bytes: step_bytes }));
        };
        self.asked = loop {
            match tour.next() {
                TourStep::Ask(question) => break Some(question),
                TourStep::Ids(ids) => break Some(Question::Has(ids)),
                TourStep::Object { name, whole } => {
                    let lacking = std::mem::take(&mut self.lacking) || !whole;
                    if let Some(name) = name.filter(|_| lacking && self.incomplete.len() < VERIFY_LISTED_MAX)
                    {
                        self.incomplete.push(name);
                    }
                }
                TourStep::Done => break None,
                TourStep::Failed(failure) => return Err(failure),
            }
        };
        Ok(self.asked.clone())
    }

    pub(super) fn progress(&self) -> Response {
        Response::Progress { done: self.blocks, total: self.total, unit: Unit::Blocks }
    }

    pub(super) fn report(self) -> Response {
        Response::Verified {
            blocks: self.blocks,
            bytes: self.bytes,
            damaged: self.damaged.into_iter().collect(),
            incomplete: self.incomplete,
        }
    }
}
