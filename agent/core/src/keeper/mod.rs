//! The Keeper actor: makes room and checks what is kept, one task at a time, in small steps.
//!
//! Cleaning marks everything that names reach, and what is under way, then lets the store move live records
//! out of its worst segments. It runs when the store fills past the role's watermark, and at the role's
//! period if anything was written. Where the role evicts, the oldest names are dropped first, never one
//! that upstream has not acknowledged. Verifying reads every block and then asks for each name whether all
//! its blocks are there. Erasing deletes what lies under a CID and is not marked, then cleans. A step that fails
//! ends the task; the next trigger begins anew.

mod erase;
mod scrub;
mod tour;
mod verify;

use crate::binding::{Content, Stored};
use crate::id::BlockId;
use crate::limits::ERRANDS_MAX;
use crate::message::{
    Actor, Answer, Bound, Change, ChangeDone, Effects, Errand, Haste, Message, Question, Ticket,
};
use crate::name::Name;
use crate::note::Note;
use crate::request::{Failure, FailureKind, Response, ScrubNumbers, StoreNumbers};
use crate::role::{Evict, Role};
use crate::settings::Settings;
use crate::time::{Deadline, Time};
use erase::{Erasing, Next};
use scrub::Scrub;
use std::collections::VecDeque;
use tour::{Tour, TourStep};
use verify::Verifying;

/// Blocks marked at once: each time costs a wake-up of the helper thread and one of the loop.
const MARKS_STEP: usize = 1_024;
/// Names looked at in one step of eviction.
const EVICT_PAGE: usize = 64;
/// The shortest time between two cleanings that a full store asks for, in milliseconds.
const FULL_PAUSE_MS: u64 = 10_000;
/// Milliseconds until a store that has too much to do is asked about a name again.
const BUSY_PAUSE_MS: u64 = 1_000;

enum Task {
    Idle,
    /// The store is asked when everything was verified last.
    Recalling,
    /// The store's numbers decide what is to be done; `forced`: it is full, or the period is over.
    Deciding {
        forced: bool,
    },
    Evicting {
        after: u64,
        excess: u64,
        writes: usize,
        freed: u64,
    },
    /// The marks have been begun.
    Beginning,
    /// What is under way, waiting until its manifests can be read.
    Settling(Vec<(BlockId, u8, u64)>),
    Marking(Tour),
    Moving {
        freed: u64,
    },
    Verifying(Verifying),
    Erasing(Erasing),
}

/// The actor.
pub struct Keeper {
    role: Role,
    evict: Evict,
    quota_bytes: u64,
    watermark_percent: u64,
    period_ms: u64,
    step_bytes: u64,
    verify_step_bytes: u64,
    step_rest_ms: u64,
    /// The next question, which waits until then.
    resting: Option<(u64, Question)>,
    task: Task,
    scrub: Scrub,
    /// Blocks to be marked.
    marks: Vec<BlockId>,
    /// For what is marked, if not for cleaning alone.
    erasing: Option<Erasing>,
    /// The write that remembers the end of a verification.
    remembering: Option<u32>,
    next_ticket: u32,
    waiting: VecDeque<(Ticket, Errand)>,
    /// Bytes written since the store's numbers were looked at, and whether any since the last cleaning.
    grown: u64,
    dirty: bool,
    clean_at_ms: Option<u64>,
    last_full_ms: Option<u64>,
    delivered: u64,
}

impl Keeper {
    /// The actor of a node that has just started.
    pub fn new(settings: &Settings) -> Self {
        let mut keeper = Keeper {
            role: settings.role,
            evict: settings.evict,
            quota_bytes: 0,
            watermark_percent: 0,
            period_ms: 0,
            step_bytes: 0,
            verify_step_bytes: 0,
            step_rest_ms: 0,
            resting: None,
            task: Task::Idle,
            scrub: Scrub::default(),
            marks: Vec::new(),
            erasing: None,
            remembering: None,
            next_ticket: 0,
            waiting: VecDeque::new(),
            grown: 0,
            dirty: true,
            clean_at_ms: None,
            last_full_ms: None,
            delivered: 0,
        };
        keeper.reload(settings);
        keeper
    }

    /// Takes over new settings.
    pub fn reload(&mut self, settings: &Settings) {
        self.evict = settings.evict;
        self.quota_bytes = settings.quota_bytes;
        self.watermark_percent = u64::from(settings.clean_watermark_percent);
        self.period_ms = settings.clean_period_ms;
        self.step_bytes = settings.clean_step_bytes;
        self.verify_step_bytes = settings.verify_step_bytes;
        self.step_rest_ms = settings.step_rest_ms;
        self.scrub.reload(settings);
    }

    /// The node has started.
    pub fn start(&mut self, now: Time, out: &mut Effects) {
        self.clean_at_ms = Some(now.mono_ms + self.period_ms);
        if self.scrub.is_wanted() {
            self.task = Task::Recalling;
            self.ask(Question::Settings(scrub::SETTING.to_owned()), out);
        }
    }

    /// A batch is durable, or did not fit.
    pub fn grown(&mut self, now: Time, bytes: u64, full: bool, out: &mut Effects) {
        self.grown += bytes;
        self.dirty |= bytes > 0;
        let far = self.has_grown_far();
        let rested = self.last_full_ms.is_none_or(|at_ms| now.mono_ms >= at_ms + FULL_PAUSE_MS);
        if matches!(self.task, Task::Idle) && (far || full && rested) {
            if full {
                self.last_full_ms = Some(now.mono_ms);
            }
            self.decide(full, out);
        }
    }

    /// Far enough since the last look at how full the store is.
    fn has_grown_far(&self) -> bool {
        self.grown >= (self.quota_bytes / 100).max(1 << 20)
    }

    /// Upstream has acknowledged everything up to `seq`; nothing, where it is another.
    pub fn delivered(&mut self, seq: u64) {
        // fewer than before, where the master is another or has a new store
        self.delivered = seq;
    }

    /// A name, or a connection, is given what another name leads to, which may go on to lead elsewhere: a tour that has
    /// not yet come to the one, or has passed the other, would miss it. Marking knows of everything else that is bound.
    pub fn copied(&mut self, root: BlockId, depth: u8, size: u64) {
        match &mut self.task {
            Task::Marking(tour) => tour.add(root, depth, size),
            Task::Settling(roots) => roots.push((root, depth, size)),
            Task::Idle
            | Task::Recalling
            | Task::Deciding { .. }
            | Task::Evicting { .. }
            | Task::Beginning
            | Task::Moving { .. }
            | Task::Verifying(_)
            | Task::Erasing(_) => {}
        }
    }

    /// Does this for a caller, after those that asked before.
    pub fn asked(&mut self, ticket: Ticket, errand: Errand, out: &mut Effects) {
        if self.waiting.len() >= ERRANDS_MAX {
            let why = format!("{ERRANDS_MAX} verifications and erasures wait already; try again");
            return tell(ticket, Response::Error(Failure::new(FailureKind::Busy, why)), out);
        }
        self.waiting.push_back((ticket, errand));
        self.next_task(out);
    }

    /// A deadline has come.
    pub fn wake(&mut self, now: Time, out: &mut Effects) {
        if let Some((_, question)) = self.resting.take_if(|(at_ms, _)| *at_ms <= now.mono_ms) {
            self.ask(question, out);
        }
        if matches!(self.task, Task::Idle) && self.clean_at_ms.is_some_and(|at_ms| at_ms <= now.mono_ms) {
            self.clean_at_ms = Some(now.mono_ms + self.period_ms);
            if self.dirty {
                self.decide(true, out);
            }
        }
        if matches!(self.task, Task::Idle)
            && let Some((verifying, begins)) = self.scrub.turn(now)
        {
            self.task = if begins {
                self.ask(Question::Numbers, out);
                Task::Verifying(verifying)
            } else {
                self.verify_next(now, verifying, out)
            };
        }
    }

    /// The earliest moment something here must be done.
    pub fn deadline(&self) -> Option<Deadline> {
        if let Some((at_ms, _)) = self.resting {
            let is_cleaning = matches!(self.task, Task::Moving { .. });
            let why = if is_cleaning { "next step of cleaning" } else { "verify on" };
            return Some(Deadline { at_ms, slack_ms: self.step_rest_ms, why });
        }
        if !matches!(self.task, Task::Idle) {
            return None;
        }
        let slack_ms = self.period_ms / 10;
        let clean = self.clean_at_ms.map(|at_ms| Deadline { at_ms, slack_ms, why: "clean" });
        clean.into_iter().chain(self.scrub.deadline()).min_by_key(|deadline| deadline.at_ms)
    }

    fn decide(&mut self, forced: bool, out: &mut Effects) {
        self.grown = 0;
        self.task = Task::Deciding { forced };
        self.ask(Question::Numbers, out);
    }

    /// The next step of moving, after the profile's rest; at once where a full store waits. Verifying does not
    /// rest: somebody has asked for it and waits.
    fn ask_after_rest(&mut self, now: Time, question: Question, out: &mut Effects) {
        if self.step_rest_ms == 0 || self.is_full(now) {
            return self.ask(question, out);
        }
        self.resting = Some((now.mono_ms + self.step_rest_ms, question));
    }

    /// A write has just found no room.
    fn is_full(&self, now: Time) -> bool {
        self.last_full_ms.is_some_and(|at_ms| now.mono_ms < at_ms + FULL_PAUSE_MS)
    }

    fn next_task(&mut self, out: &mut Effects) {
        if !matches!(self.task, Task::Idle) {
            return;
        }
        match self.waiting.pop_front() {
            Some((ticket, Errand::Verify)) => {
                self.scrub.drop_for_another();
                self.task = Task::Verifying(Verifying::new(Some(ticket)));
                self.ask(Question::Numbers, out);
            }
            Some((ticket, Errand::Erase(id))) => {
                self.task = Task::Erasing(Erasing::new(ticket, id));
                self.ask(Question::Read(id), out);
            }
            // While something else was done; what comes next may be long in coming.
            None if self.has_grown_far() => self.decide(false, out),
            None => {}
        }
    }

    /// An answer of the store; `roots` is what is under way and has no name yet.
    pub fn answered(
        &mut self,
        now: Time,
        number: u32,
        answer: Answer,
        roots: impl FnOnce() -> Vec<(BlockId, u8, u64)>,
        out: &mut Effects,
    ) {
        if number != self.next_ticket {
            return; // of a task that has ended
        }
        let task = std::mem::replace(&mut self.task, Task::Idle);
        self.task = match (task, answer) {
            (Task::Recalling, answer) => {
                self.scrub.recall(now, answer);
                Task::Idle
            }
            (Task::Verifying(verifying), answer) => self.verify_on(now, verifying, answer, out),
            (Task::Erasing(erasing), answer) => self.erase_on(erasing, answer, out),
            // What can be fetched again may go with its damaged manifest; elsewhere its blocks are kept, and
            // with them everything, until the object is put again or deleted.
            (Task::Marking(mut tour), Answer::Failed(failure))
                if failure.kind == FailureKind::Damaged && self.evict == Evict::Oldest =>
            {
                tour.supply(Answer::Block(None));
                self.mark_on(tour, out)
            }
            (Task::Marking(tour), Answer::Failed(failure)) if failure.kind == FailureKind::Damaged => {
                self.fail_marking(tour.object(), &failure, out)
            }
            (_, Answer::Failed(failure)) => self.fail(&failure, out),
            (Task::Deciding { forced }, Answer::Numbers(numbers)) => self.decided(forced, &numbers, out),
            (Task::Evicting { after, excess, freed, .. }, Answer::Page(page)) => {
                self.evict_page(after, excess, freed, page, out)
            }
            (Task::Beginning, Answer::Done) => {
                // Manifests of what is under way may still wait to be written, above blocks that are older
                // than the marks: they are read only when all that was handed over is durable.
                let ticket = self.ticket();
                out.tell(Message::Barrier { ticket });
                Task::Settling(roots())
            }
            (Task::Marking(tour), Answer::Done) => self.mark_on(tour, out),
            (Task::Marking(mut tour), answer) => {
                tour.supply(answer);
                self.mark_on(tour, out)
            }
            (Task::Moving { freed }, Answer::Cleaned { done, bytes_freed }) => {
                self.moved(now, freed + bytes_freed, done, out)
            }
            (Task::Idle | Task::Deciding { .. } | Task::Evicting { .. }, _)
            | (Task::Beginning | Task::Settling(_), _)
            | (Task::Moving { .. }, _) => Task::Idle,
        };
        self.next_task(out);
    }

    fn fail(&mut self, failure: &Failure, out: &mut Effects) -> Task {
        out.note(Note::Store { what: failure.message.clone() });
        self.end_erasing(failure.clone(), out)
    }

    /// Ends what was begun, and tells whoever asked for it.
    fn end_erasing(&mut self, failure: Failure, out: &mut Effects) -> Task {
        if let Some(erasing) = self.erasing.take() {
            self.dirty = true;
            tell(erasing.ticket, Response::Error(failure), out);
        }
        self.ask(Question::CleanAbort, out);
        Task::Idle
    }

    /// What lies below an unreadable manifest is not known, so nothing is taken for garbage until it is.
    fn fail_marking(&mut self, name: Option<&Name>, failure: &Failure, out: &mut Effects) -> Task {
        let Some(name) = name else { return self.fail(failure, out) };
        let why = format!("no space is given back while {name} can not be read whole: {failure}");
        self.fail(&Failure::new(failure.kind, why), out)
    }

    fn decided(&mut self, forced: bool, numbers: &StoreNumbers, out: &mut Effects) -> Task {
        let watermark = self.quota_bytes / 100 * self.watermark_percent;
        // The store gives its spares back by itself: they are no reason to clean, let alone to evict.
        let excess = numbers.used_bytes.saturating_sub(numbers.spare_bytes).saturating_sub(watermark);
        // While a part of the log is unread the store gives nothing back, whatever is evicted: a cleaning tries again.
        if excess > 0 && self.evict == Evict::Oldest && numbers.unread.is_empty() {
            self.scrub.names_change();
            // A tenth more, so that the next object does not start it again.
            let excess = excess + watermark / 10;
            self.ask(Question::Changes { after: 0, limit: EVICT_PAGE }, out);
            return Task::Evicting { after: 0, excess, writes: 0, freed: 0 };
        }
        if forced || excess > 0 { self.begin(out) } else { Task::Idle }
    }

    fn begin(&mut self, out: &mut Effects) -> Task {
        self.dirty = false;
        self.marks.clear();
        self.scrub.names_change();
        self.ask(Question::CleanBegin, out);
        Task::Beginning
    }

    fn evict_page(
        &mut self,
        after: u64,
        excess: u64,
        mut freed: u64,
        page: Vec<(Name, Bound)>,
        out: &mut Effects,
    ) -> Task {
        let (mut writes, mut last) = (0, after);
        let is_full_page = page.len() == EVICT_PAGE;
        for (name, bound) in page {
            last = bound.seq;
            let stored = Stored::decode(&bound.value).ok();
            let object = stored.as_ref().filter(|stored| stored.binding.content != Content::Deleted);
            let is_upstream = bound.seq <= self.delivered && !object.is_some_and(|object| object.refused);
            let evictable = self.role != Role::Worker || is_upstream;
            if let (true, Some(object)) = (evictable && freed < excess, object) {
                freed += object.binding.meta.size.max(4096);
                writes += 1;
                out.note(Note::Evicted { name: name.clone() });
                let change = Change::Unbind { name, expected_seq: bound.seq };
                let ticket = self.ticket();
                out.tell(Message::Write { ticket, change, haste: Haste::Now });
            }
        }
        if writes == 0 {
            return self.evict_more(last, excess, freed, is_full_page, out);
        }
        Task::Evicting { after: if is_full_page { last } else { u64::MAX }, excess, writes, freed }
    }

    fn evict_more(&mut self, after: u64, excess: u64, freed: u64, more: bool, out: &mut Effects) -> Task {
        if freed >= excess || !more {
            return self.begin(out);
        }
        self.ask(Question::Changes { after, limit: EVICT_PAGE }, out);
        Task::Evicting { after, excess, writes: 0, freed }
    }

    /// A name was dropped, or not; or everything handed over before the marks is durable.
    pub fn written(&mut self, number: u32, done: Result<ChangeDone, Failure>, out: &mut Effects) {
        if self.remembering.take_if(|remembering| *remembering == number).is_some() {
            return;
        }
        if matches!(self.task, Task::Settling(_)) && number == self.next_ticket {
            let Task::Settling(roots) = std::mem::replace(&mut self.task, Task::Idle) else { return };
            self.task = match done {
                Ok(_) => self.mark_on(Tour::new(roots), out),
                Err(failure) => self.fail(&failure, out),
            };
            return self.next_task(out);
        }
        if let Task::Evicting { after, excess, writes, freed } = &mut self.task {
            *writes = writes.saturating_sub(1);
            if *writes == 0 {
                let (after, excess, freed) = (*after, *excess, *freed);
                self.task = self.evict_more(after, excess, freed, after != u64::MAX, out);
            }
        }
    }

    fn mark_on(&mut self, mut tour: Tour, out: &mut Effects) -> Task {
        while self.marks.len() < MARKS_STEP {
            match tour.next() {
                TourStep::Ids(ids) => {
                    let refusal = self.erasing.as_ref().and_then(|it| it.refusal(&ids, tour.object()));
                    if let Some(failure) = refusal {
                        return self.end_erasing(failure, out);
                    }
                    self.marks.extend(ids);
                }
                // As with a damaged manifest: a peer may have the one that is missing, a newer program may know the
                // binding, and what lies below is perhaps here alone.
                TourStep::Object { name: name @ Some(_), whole: false } if self.evict != Evict::Oldest => {
                    let why = "a manifest is missing or is none, or its binding is not understood";
                    return self.fail_marking(name.as_ref(), &Failure::new(FailureKind::Damaged, why), out);
                }
                TourStep::Object { .. } => {}
                TourStep::Ask(question) => {
                    self.ask(question, out);
                    return Task::Marking(tour);
                }
                TourStep::Done if self.marks.is_empty() => {
                    if let Some(mut erasing) = self.erasing.take() {
                        let next = erasing.next();
                        return self.erase_next(erasing, next, out);
                    }
                    self.ask(Question::CleanStep(self.step_bytes), out);
                    return Task::Moving { freed: 0 };
                }
                TourStep::Done => break,
                TourStep::Failed(failure) => return self.fail(&failure, out),
            }
        }
        let ids = std::mem::take(&mut self.marks);
        self.ask(Question::CleanMark(ids), out);
        Task::Marking(tour)
    }

    fn moved(&mut self, now: Time, freed: u64, done: bool, out: &mut Effects) -> Task {
        if !done && !self.waiting.is_empty() && !self.is_full(now) {
            // Somebody waits, and nobody for room: what is left is cleaned at the period's end.
            self.dirty = true;
            self.ask(Question::CleanAbort, out);
            return Task::Idle;
        }
        if !done {
            self.ask_after_rest(now, Question::CleanStep(self.step_bytes), out);
            return Task::Moving { freed };
        }
        self.clean_at_ms = Some(now.mono_ms + self.period_ms);
        out.note(Note::Cleaned { bytes: freed });
        Task::Idle
    }

    fn verify_on(&mut self, now: Time, mut verifying: Verifying, answer: Answer, out: &mut Effects) -> Task {
        if let Some(question) = verifying.put_off(&answer) {
            self.resting = Some((now.mono_ms + BUSY_PAUSE_MS, question));
            return Task::Verifying(verifying);
        }
        let is_step = matches!(answer, Answer::Verified { .. });
        if let Err(failure) = verifying.supply(answer) {
            return self.verify_failed(now, &verifying, failure, out);
        }
        if let Some(ticket) = verifying.ticket.filter(|_| is_step) {
            tell(ticket, verifying.progress(), out);
        }
        if verifying.ticket.is_none() && self.scrub.is_tired(&verifying) {
            self.scrub.set_aside(now, verifying);
            return Task::Idle;
        }
        self.verify_next(now, verifying, out)
    }

    fn verify_next(&mut self, now: Time, mut verifying: Verifying, out: &mut Effects) -> Task {
        match verifying.next(self.verify_step_bytes) {
            Ok(Some(question)) => {
                self.ask(question, out);
                Task::Verifying(verifying)
            }
            Ok(None) => self.verified(now, verifying, out),
            Err(failure) => self.verify_failed(now, &verifying, failure, out),
        }
    }

    fn verified(&mut self, now: Time, verifying: Verifying, out: &mut Effects) -> Task {
        let value = self.scrub.ended(now, &verifying);
        let ticket = self.ticket();
        self.remembering = Some(ticket.number);
        let change = Change::Set { key: scrub::SETTING.to_owned(), value };
        out.tell(Message::Write { ticket, change, haste: Haste::Patient });
        match verifying.ticket {
            Some(ticket) => tell(ticket, verifying.report(), out),
            None => out.note(Note::Scrubbed {
                blocks: verifying.blocks,
                damaged: verifying.damaged.into_iter().collect(),
                incomplete: verifying.incomplete,
            }),
        }
        Task::Idle
    }

    fn verify_failed(
        &mut self,
        now: Time,
        verifying: &Verifying,
        failure: Failure,
        out: &mut Effects,
    ) -> Task {
        match verifying.ticket {
            Some(ticket) => tell(ticket, Response::Error(failure), out),
            None => {
                self.scrub.failed(now);
                out.note(Note::Store { what: format!("the scrub ended early: {failure}") });
            }
        }
        Task::Idle
    }

    fn erase_on(&mut self, mut erasing: Erasing, answer: Answer, out: &mut Effects) -> Task {
        let is_marked = !erasing.is_looking();
        match erasing.supply(answer) {
            Ok(next) => self.erase_next(erasing, next, out),
            Err(failure) if is_marked => {
                self.erasing = Some(erasing);
                self.end_erasing(failure, out)
            }
            Err(failure) => {
                tell(erasing.ticket, Response::Error(failure), out);
                Task::Idle
            }
        }
    }

    fn erase_next(&mut self, erasing: Erasing, next: Next, out: &mut Effects) -> Task {
        match next {
            Next::Mark => {
                self.erasing = Some(erasing);
                self.begin(out)
            }
            Next::Ask(question) => {
                tell(erasing.ticket, erasing.progress(), out);
                self.ask(question, out);
                Task::Erasing(erasing)
            }
            Next::Done(report) => {
                tell(erasing.ticket, report, out);
                // The marks are there, and room is what whoever erases wants.
                self.ask(Question::CleanStep(self.step_bytes), out);
                Task::Moving { freed: 0 }
            }
        }
    }

    /// What was verified, for `status`.
    pub fn scrub_numbers(&self, now: Time) -> ScrubNumbers {
        let present = if let Task::Verifying(verifying) = &self.task { Some(verifying) } else { None };
        self.scrub.numbers(now, present)
    }

    fn ask(&mut self, question: Question, out: &mut Effects) {
        let ticket = self.ticket();
        out.tell(Message::Ask { ticket, question });
    }

    fn ticket(&mut self) -> Ticket {
        self.next_ticket = self.next_ticket.wrapping_add(1);
        Ticket { actor: Actor::Keeper, number: self.next_ticket }
    }
}

fn tell(ticket: Ticket, news: Response, out: &mut Effects) {
    out.tell(Message::ErrandNews { ticket, news: Box::new(news) });
}
