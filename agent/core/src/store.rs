//! The Store actor: gathers writes into batches, one sync each, and passes questions on.
//!
//! One batch is being made durable at a time, a full one may wait behind it so that the disk never idles, and
//! the next fills meanwhile. A write is answered when its batch is durable and not before. A batch that fails
//! takes everything that waits behind it with it, here and at the helper thread, and a write that is refused
//! takes what was said in the same breath, so a binding never becomes durable without the blocks handed over
//! before it. Bounds: batches handed over, writes and questions waiting, answered `Busy` beyond them.

use crate::batcher::{Limits, LowPowerBatcher, Reason, Urgency};
use crate::limits::{BATCH_WRITES_MAX, COMMITS_MAX, JOBS_MAX, QUESTIONS_MAX, WRITES_MAX};
use crate::message::{
    Answer, Change, ChangeDone, Effect, Effects, Haste, Job, JobDone, JobId, Message, Question, Ticket,
};
use crate::object::chunk::BLOCK_BYTES_AVERAGE;
use crate::request::{Failure, FailureKind};
use crate::settings::Settings;
use crate::start::{self, STARTS_KEY};
use crate::time::{Deadline, Time};
use heapless::Deque;
use std::collections::BTreeMap;

/// A write that waits, or the mark of somebody who waits for all before it.
enum Waiting {
    Change(Ticket, Change),
    Barrier(Ticket),
}

impl Waiting {
    fn ticket(self) -> Ticket {
        let (Waiting::Change(ticket, _) | Waiting::Barrier(ticket)) = self;
        ticket
    }
}

/// The actor.
pub struct Store {
    batcher: LowPowerBatcher<Waiting>,
    /// So many of the oldest waiting writes were asked for at once.
    hurry: usize,
    /// The node stops: nothing waits for company any more.
    stopping: bool,
    /// The batches handed to the helper thread, the oldest first.
    committing: Deque<Committing, COMMITS_MAX>,
    /// Batches since the last failure, see [`Job::Commit`].
    run: u32,
    /// A batch has failed: what waits behind it fails too, a batch's worth at a time.
    failing: Option<Failure>,
    /// A write was refused in this turn: what follows may lean on it.
    refused: bool,
    questions: Deque<(Ticket, Question), QUESTIONS_MAX>,
    open: BTreeMap<JobId, Option<Ticket>>,
    next_job: u32,
    /// The setting of this start goes with the first batch that adds anything, before the rest, until it is durable.
    first: Option<Change>,
    checkpoint_age_ms: u64,
    /// When the index must follow the log.
    checkpoint_at_ms: Option<u64>,
}

struct Committing {
    job: JobId,
    /// Whom to answer, in order; `false`: a barrier, which has no change.
    askers: Vec<(Ticket, bool)>,
    /// [`Store::first`] was in it.
    has_first: bool,
    bytes: u64,
}

impl Store {
    /// The actor of a store that is open.
    pub fn new(settings: &Settings) -> Self {
        Store {
            batcher: LowPowerBatcher::new(limits(settings)),
            hurry: 0,
            stopping: false,
            committing: Deque::new(),
            run: 0,
            failing: None,
            refused: false,
            questions: Deque::new(),
            open: BTreeMap::new(),
            next_job: 0,
            first: Some(Change::Set {
                key: STARTS_KEY.into(),
                value: start::encode(&settings.starts).into(),
            }),
            checkpoint_age_ms: settings.checkpoint_age_ms,
            checkpoint_at_ms: None,
        }
    }

    /// Takes over new settings.
    pub fn reload(&mut self, settings: &Settings) {
        self.batcher.set_limits(limits(settings));
        self.checkpoint_age_ms = settings.checkpoint_age_ms;
    }

    /// Takes a write in.
    pub fn write(&mut self, now: Time, ticket: Ticket, change: Change, haste: Haste, out: &mut Effects) {
        let bytes = change.bytes();
        let urgency = match haste {
            Haste::Bulk => Urgency::Bulk,
            Haste::Patient => Urgency::Patient,
            Haste::Now => Urgency::Now,
        };
        let refused =
            self.refused || self.batcher.push(now, Waiting::Change(ticket, change), bytes, urgency).is_err();
        if refused {
            self.refused = true;
            let failure = Failure::new(FailureKind::Busy, "too many writes wait for the disk; try again");
            return out.tell(Message::Written { ticket, done: Err(failure) });
        }
        self.commit_if_due(now, out);
    }

    /// Whoever was refused knows it by now.
    pub fn forget_refusal(&mut self) {
        self.refused = false;
    }

    /// Whatever waits is written as soon as the disk is free.
    pub fn flush_now(&mut self, now: Time, out: &mut Effects) {
        if let Some(failure) = self.failing.take() {
            return self.fail_waiting(failure, out);
        }
        self.hurry = self.batcher.len();
        self.commit_if_due(now, out);
    }

    /// Whatever waits, or comes from now on, is written as soon as the disk is free.
    pub fn stop(&mut self) {
        self.stopping = true;
    }

    /// Answers when all that was handed over before is durable.
    pub fn barrier(&mut self, now: Time, ticket: Ticket, out: &mut Effects) {
        if self.batcher.is_empty() && self.committing.is_empty() {
            return out.tell(Message::Written { ticket, done: Ok(ChangeDone::Done) });
        }
        if self.batcher.push(now, Waiting::Barrier(ticket), 0, Urgency::Now).is_err() {
            let failure = Failure::new(FailureKind::Busy, "too many writes wait for the disk; try again");
            return out.tell(Message::Written { ticket, done: Err(failure) });
        }
        self.commit_if_due(now, out);
    }

    /// Takes a question in.
    pub fn ask(&mut self, ticket: Ticket, question: Question, out: &mut Effects) {
        if let Err((ticket, _)) = self.questions.push_back((ticket, question)) {
            let failure = Failure::new(FailureKind::Busy, "too many questions wait for the disk; try again");
            return out.tell(Message::Answered { ticket, answer: Answer::Failed(failure) });
        }
        self.start_questions(out);
    }

    /// The helper thread has finished a job.
    pub fn job_done(&mut self, now: Time, job: JobId, done: JobDone, out: &mut Effects) {
        match done {
            JobDone::Committed(result) => self.committed(now, job, result, out),
            JobDone::Answered(answer) => {
                if let Some(Some(ticket)) = self.open.remove(&job) {
                    out.tell(Message::Answered { ticket, answer });
                }
            }
        }
        self.commit_if_due(now, out);
        self.start_questions(out);
    }

    /// The helper thread is at a long job.
    pub fn job_progress(&mut self, job: JobId, done: u64, total: u64, out: &mut Effects) {
        if let Some(Some(ticket)) = self.open.get(&job) {
            out.tell(Message::Progress { ticket: *ticket, done, total });
        }
    }

    /// A deadline has come.
    pub fn wake(&mut self, now: Time, out: &mut Effects) {
        self.commit_if_due(now, out);
        if self.checkpoint_at_ms.is_some_and(|at_ms| at_ms <= now.mono_ms) && self.open.len() < JOBS_MAX {
            self.checkpoint_at_ms = None;
            self.start(None, Job::Ask(Question::Checkpoint), out);
        }
    }

    /// The earliest moment something here must be done.
    pub fn deadline(&self) -> Option<Deadline> {
        let batch = self.batcher.deadline().filter(|_| self.committing.is_empty() && self.failing.is_none());
        let checkpoint = self.checkpoint_at_ms.filter(|_| self.open.len() < JOBS_MAX).map(|at_ms| Deadline {
            at_ms,
            slack_ms: self.checkpoint_age_ms / 4,
            why: "checkpoint",
        });
        [batch, checkpoint].into_iter().flatten().min_by_key(|deadline| deadline.at_ms)
    }

    /// Nothing waits and nothing is being written.
    pub fn is_quiet(&self) -> bool {
        self.batcher.is_empty() && self.committing.is_empty()
    }

    fn commit_if_due(&mut self, now: Time, out: &mut Effects) {
        while self.failing.is_none() && self.has_turn() {
            let reason = match self.batcher.due(now, false) {
                Some(reason) => reason,
                None if (self.hurry > 0 || self.stopping) && !self.batcher.is_empty() => Reason::Asked,
                None => return,
            };
            self.commit(reason, out);
        }
    }

    /// The helper thread is free, or has room and what waits would gain no company by waiting longer.
    fn has_turn(&self) -> bool {
        self.committing.is_empty() || !self.committing.is_full() && self.batcher.is_full()
    }

    fn commit(&mut self, reason: Reason, out: &mut Effects) {
        let batch = self.batcher.take(reason);
        self.hurry = self.hurry.saturating_sub(batch.len());
        let mut changes = Vec::with_capacity(batch.len());
        let mut askers = Vec::with_capacity(batch.len());
        for waiting in batch {
            match waiting {
                Waiting::Change(ticket, change) => {
                    askers.push((ticket, true));
                    changes.push(change);
                }
                Waiting::Barrier(ticket) => askers.push((ticket, false)),
            }
        }
        let bytes = changes.iter().map(|change| change.bytes() as u64).sum();
        // what only takes away has room where a setting has none
        let grows = changes.iter().any(|change| !matches!(change, Change::Unbind { .. }));
        let first = self.first.clone().filter(|_| grows);
        let has_first = first.is_some();
        changes.splice(..0, first);
        let job = self.start(None, Job::Commit { run: self.run, changes }, out);
        let handed = self.committing.push_back(Committing { job, askers, has_first, bytes });
        debug_assert!(handed.is_ok(), "a batch is handed over in its turn");
    }

    fn committed(
        &mut self,
        now: Time,
        job: JobId,
        result: Result<Vec<ChangeDone>, Failure>,
        out: &mut Effects,
    ) {
        self.open.remove(&job);
        // A batch refused behind a failed one was answered with that.
        let Some(committing) = self.committing.pop_front_if(|committing| committing.job == job) else {
            return;
        };
        match result {
            Ok(done) => {
                let mut done = done.into_iter().skip(usize::from(committing.has_first));
                self.first.take_if(|_| committing.has_first);
                for (ticket, has_change) in committing.askers {
                    let done =
                        if has_change { done.next().unwrap_or(ChangeDone::Done) } else { ChangeDone::Done };
                    out.tell(Message::Written { ticket, done: Ok(done) });
                }
                out.tell(Message::Grown { bytes: committing.bytes, full: false });
                self.checkpoint_at_ms.get_or_insert(now.mono_ms + self.checkpoint_age_ms);
            }
            Err(failure) => {
                let full = failure.kind == FailureKind::Full;
                for (ticket, _) in committing.askers {
                    out.tell(Message::Written { ticket, done: Err(failure.clone()) });
                }
                self.run = self.run.wrapping_add(1);
                self.fail_waiting(failure, out);
                out.tell(Message::Grown { bytes: 0, full });
            }
        }
    }

    /// What waits behind a failed batch may lean on it: first the batch that the helper thread refuses, then
    /// those not handed over. So many can wait that they are told in portions.
    fn fail_waiting(&mut self, failure: Failure, out: &mut Effects) {
        self.hurry = 0;
        let portion: Vec<Ticket> = match self.committing.pop_front() {
            Some(refused) => refused.askers.into_iter().map(|(ticket, _)| ticket).collect(),
            None => self.batcher.take(Reason::Asked).into_iter().map(Waiting::ticket).collect(),
        };
        for ticket in portion {
            out.tell(Message::Written { ticket, done: Err(failure.clone()) });
        }
        if !self.is_quiet() {
            self.failing = Some(failure);
            out.tell(Message::FlushNow);
        }
    }

    fn start_questions(&mut self, out: &mut Effects) {
        while self.open.len() < JOBS_MAX
            && let Some((ticket, question)) = self.questions.pop_front()
        {
            self.start(Some(ticket), Job::Ask(question), out);
        }
    }

    fn start(&mut self, ticket: Option<Ticket>, what: Job, out: &mut Effects) -> JobId {
        self.next_job = self.next_job.wrapping_add(1);
        let job = JobId(self.next_job);
        self.open.insert(job, ticket);
        out.emit(Effect::Job { job, what });
        job
    }
}

fn limits(settings: &Settings) -> Limits {
    // What sync may ask for at once always finds room, beside a few batches of everybody else's.
    let window = settings.window_blocks as usize * BLOCK_BYTES_AVERAGE;
    Limits {
        bytes: settings.flush.bytes,
        count: BATCH_WRITES_MAX,
        age_ms: settings.flush.age_ms,
        bytes_held_max: settings.flush.bytes.saturating_mul(3).max(12 << 20).saturating_add(window),
        count_held_max: WRITES_MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batcher::Counters;
    use crate::id::BlockId;
    use crate::message::Actor;
    use bytes::Bytes;

    const NOW: Time = Time { mono_ms: 0, wall_ms: 0 };

    fn store(bytes_held_max: usize) -> Store {
        let limits = Limits { bytes: 1 << 20, count: 8, age_ms: 60_000, bytes_held_max, count_held_max: 64 };
        Store {
            batcher: LowPowerBatcher::new(limits),
            hurry: 0,
            stopping: false,
            committing: Deque::new(),
            run: 0,
            failing: None,
            refused: false,
            questions: Deque::new(),
            open: BTreeMap::new(),
            next_job: 0,
            first: None,
            checkpoint_age_ms: 60_000,
            checkpoint_at_ms: None,
        }
    }

    fn ticket(number: u32) -> Ticket {
        Ticket { actor: Actor::Sync, number }
    }

    fn put(bytes: usize) -> Change {
        Change::Put { id: BlockId([1; 32]), bytes: Bytes::from(vec![0; bytes]) }
    }

    fn bind() -> Change {
        Change::Bind { name: "a".parse().unwrap(), value: Bytes::new(), expected_seq: None }
    }

    /// Who was answered, and whether it went well.
    fn written(out: &mut Effects) -> Vec<(u32, bool)> {
        let mut written = Vec::new();
        while let Some(message) = out.next_message() {
            if let Message::Written { ticket, done } = message {
                written.push((ticket.number, done.is_ok()));
            }
        }
        written
    }

    #[test]
    fn a_name_never_gets_past_a_block_that_was_refused() {
        let (mut store, mut out) = (store(100_000), Effects::default());
        store.write(NOW, ticket(1), put(90_000), Haste::Patient, &mut out);
        store.write(NOW, ticket(2), put(90_000), Haste::Patient, &mut out);
        store.write(NOW, ticket(3), bind(), Haste::Patient, &mut out);
        assert_eq!(written(&mut out), [(2, false), (3, false)]);
        store.forget_refusal();
        store.write(NOW, ticket(4), bind(), Haste::Patient, &mut out);
        assert_eq!(written(&mut out), []);
        assert_eq!(store.batcher.counters(), Counters { refused: 1, ..Counters::default() });
    }

    /// The batches handed over, and the run of each.
    fn handed(out: &mut Effects) -> Vec<(JobId, u32, usize)> {
        let mut handed = Vec::new();
        while let Some(effect) = out.next_effect() {
            if let Effect::Job { job, what: Job::Commit { run, changes } } = effect {
                handed.push((job, run, changes.len()));
            }
        }
        handed
    }

    fn failed() -> JobDone {
        JobDone::Committed(Err(Failure::new(FailureKind::Disk, "broken")))
    }

    fn done(changes: usize) -> JobDone {
        JobDone::Committed(Ok(vec![ChangeDone::Done; changes]))
    }

    #[test]
    fn only_a_full_batch_waits_behind_another() {
        let (mut store, mut out) = (store(1 << 20), Effects::default());
        store.write(NOW, ticket(0), put(10), Haste::Now, &mut out);
        store.write(NOW, ticket(1), put(10), Haste::Now, &mut out);
        let first = handed(&mut out);
        assert_eq!(first.iter().map(|(_, _, writes)| *writes).collect::<Vec<_>>(), [1]);
        for number in 2..20 {
            store.write(NOW, ticket(number), put(10), Haste::Patient, &mut out);
        }
        let second = handed(&mut out);
        assert_eq!(second.iter().map(|(_, _, writes)| *writes).collect::<Vec<_>>(), [8], "two are under way");
        store.job_done(NOW, first[0].0, done(1), &mut out);
        assert_eq!(written(&mut out), [(0, true)]);
        assert_eq!(handed(&mut out).len(), 1, "the next full one");
        store.job_done(NOW, second[0].0, done(8), &mut out);
        assert_eq!(written(&mut out), (1..9).map(|number| (number, true)).collect::<Vec<_>>());
    }

    #[test]
    fn a_failed_batch_takes_all_behind_it_in_portions() {
        let (mut store, mut out) = (store(1 << 20), Effects::default());
        for number in 0..50 {
            store.write(NOW, ticket(number), put(10), Haste::Patient, &mut out);
        }
        let first = handed(&mut out);
        assert_eq!(first.len(), 2, "eight make a batch, and two are under way");
        store.job_done(NOW, first[0].0, failed(), &mut out);
        assert_eq!(written(&mut out).len(), 16, "the batch and the one behind it");
        assert!(handed(&mut out).is_empty(), "nothing is written in between");
        while !store.is_quiet() {
            store.flush_now(NOW, &mut out);
        }
        assert_eq!(written(&mut out).len(), 34);
        store.write(NOW, ticket(50), put(10), Haste::Now, &mut out);
        store.job_done(NOW, first[1].0, failed(), &mut out);
        assert_eq!(written(&mut out), [], "a refusal that is known already takes nothing with it");
        let later = handed(&mut out);
        assert!(later.len() == 1 && later[0].1 != first[0].1, "what comes after is another run");
        store.job_done(NOW, later[0].0, done(1), &mut out);
        assert_eq!(written(&mut out), [(50, true)]);
    }
}
