//! What one peer has not acknowledged yet: a cursor into the log and the few announcements under way.
//!
//! The cursor moves only over changes that the peer has acknowledged, or that do not concern it. It is
//! saved now and then, not each time: an old one costs announcements that are answered at once. A peer whose log
//! ends before what it has told of it has lost that end: the cursor goes back to where it was before.

use super::RETRY_MS;
use super::session::Session;
use super::wire::{Refusal, Wanted};
use crate::id::BlockId;
use crate::name::Name;
use crate::start;
use crate::time::Time;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Milliseconds of silence after which an announcement is repeated at first.
pub(super) const SILENCE_MS: u64 = 3 * RETRY_MS;

/// Acknowledged changes after which the cursor is saved at once, and the longest it waits otherwise.
const SAVE_CHANGES: u64 = 1024;
const SAVE_MS: u64 = 60_000;

/// Places in the log of a peer that are remembered; what it has lost before them it is told from the beginning.
const MARKS_MAX: usize = 64;

/// A cursor as it is saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Saved {
    cursor: u64,
    /// The peer's, of which the cursor speaks, as of what it subscribes to.
    store: u64,
    interest: u64,
    /// The echo that is unfinished.
    echo: Option<Lost>,
    /// The newest change known in the peer's log, and its last two starts when it told of it.
    known: u64,
    epochs: [u64; 2],
}

/// The outbox of one peer.
#[derive(Default)]
pub(super) struct Outbox {
    /// Everything up to here is acknowledged or none of the peer's business.
    pub(super) cursor: u64,
    /// The saved cursor is being read; nothing is announced meanwhile.
    pub(super) loading: bool,
    /// Everything up to here has been read from the log.
    pub(super) announced: u64,
    /// A page of changes is being read.
    pub(super) reading: bool,
    /// The log could not be read; when to try again.
    pub(super) read_at_ms: Option<u64>,
    /// There may be changes behind `announced`.
    pub(super) more: bool,
    /// Announcements, oldest first; those that answer a fetch have no place in the log's order.
    pub(super) groups: VecDeque<OutGroup>,
    pub(super) next_group: u32,
    /// The announcement that was served last.
    pub(super) served: u32,
    store: u64,
    interest: u64,
    /// The peer has lost what it had: what came from it is told to it too, up to the log's end.
    pub(super) echo: Option<Echo>,
    /// The newest change known in the peer's log, and of some before: where the cursor was when they were the newest.
    known: u64,
    marks: VecDeque<(u64, u64)>,
    /// The peer's last two starts when it told of it.
    epochs: [u64; 2],
    /// What it told while the saved cursor was being read.
    told: u64,
    saved: u64,
    save_at_ms: Option<u64>,
    saving: bool,
}

/// What came from a peer and is told to it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Echo {
    /// How far: the end of the log as it was, once that has been seen.
    pub(super) until: Option<u64>,
    pub(super) lost: Lost,
}

/// What a peer has lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Lost {
    /// Its store, or it never had what we do.
    Store,
    /// The end of its log.
    End,
}

/// One announcement under way.
pub(super) struct OutGroup {
    pub(super) id: u32,
    /// Sequence number of its last change; `None` when it answers a fetch.
    pub(super) last_seq: Option<u64>,
    pub(super) request: Option<u32>,
    pub(super) entries: Vec<OutEntry>,
    pub(super) serving: Option<Serving>,
    /// What the last want was for.
    pub(super) wanted: Option<Layer>,
    pub(super) retry_at_ms: u64,
    pub(super) retry_wait_ms: u64,
}

/// One announced name.
pub(super) struct OutEntry {
    pub(super) name: Name,
    pub(super) binding: crate::binding::Binding,
    pub(super) acknowledged: bool,
    /// Upstream has not taken it; acknowledged once the log knows.
    pub(super) untaken: Option<Untaken>,
    /// How often upstream has answered that it has a later version, while none was here.
    pub(super) superseded: u8,
}

/// Why upstream has not taken an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Untaken {
    Refused(Refusal),
    /// It has a later version: of another node that saw this one, or of this node before it lost its store. That comes
    /// from upstream, and then the name is bound anew.
    Superseded,
}

/// What a want is for. A second one for the same is for blocks that were sent and did not come whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layer {
    Roots,
    Below(BlockId),
}

/// The answer to a want, as far as it has come.
pub(super) struct Serving {
    /// No other has it: a late answer of the store to an earlier one of the same round is not for this one.
    pub(super) life: u64,
    pub(super) round: u32,
    /// The same was wanted before.
    pub(super) again: bool,
    /// The blocks and the bytes they should have; empty while the manifest is being read.
    pub(super) blocks: Vec<(BlockId, usize)>,
    /// What was wanted, until the manifest is there.
    pub(super) wanted: Option<Wanted>,
    /// Blocks asked of the store so far.
    pub(super) next: usize,
    /// Blocks that the receiver allows so far.
    pub(super) limit: u32,
    /// Reads under way, each of one message's blocks.
    pub(super) reads: usize,
}

impl Outbox {
    /// An empty outbox. Its announcements are numbered from a place of this epoch's own, so that a late
    /// answer to an earlier start's is not taken for one to this start's.
    pub(super) fn new(epoch: u64) -> Self {
        let next_group = (epoch ^ (epoch >> 32)) as u32;
        Outbox { next_group, ..Outbox::default() }
    }

    /// Forgets what is under way; it will be announced again from the cursor.
    pub(super) fn rewind(&mut self) {
        self.groups.clear();
        self.announced = self.cursor;
        self.reading = false;
        self.read_at_ms = None;
        self.more = true;
    }

    /// Takes the saved cursor, if it speaks of this store of the peer and these subscriptions. Goes back where the peer
    /// has started again and its log then ended before what is known of it; whether it did.
    pub(super) fn load(&mut self, value: Option<&[u8]>, session: &Session) -> bool {
        let (store, interest) = (session.store, session.interest());
        let saved = value.and_then(read_saved).filter(|saved| saved.store == store);
        let is_same_store = self.store == store;
        let told = std::mem::take(&mut self.told);
        let is_unwatched = !is_same_store && saved.is_some_and(|saved| saved.epochs[1] != session.epoch);
        if !is_same_store {
            (self.known, self.epochs) =
                saved.map_or((0, session.epochs()), |saved| (saved.known, saved.epochs));
        }
        let saved = saved.filter(|saved| saved.interest == interest);
        let from_log = saved.map_or(0, |saved| saved.cursor);
        if !is_same_store || self.interest != interest {
            self.cursor = from_log;
            // Both have started again: what came last from the peer may not be known of, nor be there any more.
            let lost =
                saved.map_or(Some(Lost::Store), |saved| saved.echo.or(is_unwatched.then_some(Lost::End)));
            self.echo = lost.map(|lost| Echo { until: None, lost });
            let mark = saved.filter(|saved| saved.known > 0).map(|saved| (saved.known, saved.cursor));
            self.marks = mark.into_iter().collect();
        }
        (self.store, self.interest) = (store, interest);
        self.saved = from_log;
        self.save_at_ms = None;
        self.loading = false;
        let epochs = std::mem::replace(&mut self.epochs, session.epochs());
        let lost_behind = start::least_behind(&session.starts, epochs).filter(|log| *log < self.known);
        if let Some(log) = lost_behind {
            self.marks.retain(|(known, _)| *known <= log);
            self.cursor = self.cursor.min(self.marks.back().map_or(0, |(_, cursor)| *cursor));
            (self.known, self.saved) = (log, self.cursor);
            // what an unfinished echo of a lost store tells is more
            let lost = self.echo.map_or(Lost::End, |echo| echo.lost);
            self.echo = Some(Echo { until: None, lost: if session.upstream { lost } else { Lost::End } });
        }
        self.rewind();
        self.peer_has(told);
        lost_behind.is_some()
    }

    /// The peer has told of a change in its log.
    pub(super) fn peer_has(&mut self, log: u64) {
        if self.loading {
            // of a start that is not compared with the one before it yet
            self.told = self.told.max(log);
        } else if log > self.known {
            self.known = log;
            if self.marks.len() == MARKS_MAX {
                // further apart, and as far back
                let mut is_kept = false;
                self.marks.retain(|_| {
                    is_kept = !is_kept;
                    is_kept
                });
            }
            self.marks.push_back((log, self.cursor));
        }
    }

    /// The cursor as it is saved.
    pub(super) fn value(&self) -> Vec<u8> {
        let saved = Saved {
            cursor: self.cursor,
            store: self.store,
            interest: self.interest,
            echo: self.echo.map(|echo| echo.lost),
            known: self.known,
            epochs: self.epochs,
        };
        postcard::to_allocvec(&saved).expect("numbers can be written")
    }

    /// Moves the cursor over every leading announcement that is wholly acknowledged.
    pub(super) fn advance(&mut self, now: Time) {
        while let Some(group) = self.groups.front() {
            if !group.is_done() {
                break;
            }
            if let Some(seq) = group.last_seq {
                self.cursor = self.cursor.max(seq);
            }
            self.groups.pop_front();
        }
        // A fetch's announcement behind others is done for itself.
        self.groups.retain(|group| group.last_seq.is_some() || !group.is_done());
        if !self.groups.iter().any(|group| group.last_seq.is_some()) && !self.reading {
            self.cursor = self.cursor.max(self.announced);
        }
        if self.echo.and_then(|echo| echo.until).is_some_and(|end| self.cursor >= end) {
            self.echo = None;
        }
        if self.cursor > self.saved && self.save_at_ms.is_none() && !self.saving {
            self.save_at_ms = Some(now.mono_ms + SAVE_MS);
        }
    }

    /// Whether the cursor should be saved now; says yes once.
    pub(super) fn wants_saving(&mut self, now: Time, at_once: bool) -> bool {
        let far = self.cursor >= self.saved + SAVE_CHANGES;
        let old = self.save_at_ms.is_some_and(|at_ms| at_ms <= now.mono_ms);
        let wants = !self.saving && !self.loading && self.cursor > self.saved && (far || old || at_once);
        if wants {
            self.saving = true;
            self.saved = self.cursor;
            self.save_at_ms = None;
        }
        wants
    }

    pub(super) fn saved(&mut self, now: Time, durable: bool) {
        self.saving = false;
        if !durable {
            self.saved = 0;
        }
        if self.cursor > self.saved {
            self.save_at_ms = Some(now.mono_ms + SAVE_MS);
        }
    }

    pub(super) fn save_at_ms(&self) -> Option<u64> {
        self.save_at_ms.filter(|_| !self.loading)
    }

    pub(super) fn retry_at_ms(&self) -> Option<u64> {
        self.groups.iter().filter(|group| !group.is_done()).map(|group| group.retry_at_ms).min()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.groups.is_empty() && !self.more && !self.reading && !self.loading
    }

    /// Whether anything is under way of which the peer can still be expected to say something soon.
    pub(super) fn is_busy(&self, now: Time) -> bool {
        let reads = self.loading || self.reading || self.read_at_ms.is_some();
        reads || self.groups.iter().any(|group| !group.is_done() && !group.is_silent(now))
    }

    /// All announcements, first those behind the one that was served last.
    pub(super) fn groups_in_turn(&self) -> impl Iterator<Item = &OutGroup> {
        let last = self.groups.iter().position(|group| group.id == self.served);
        let behind = last.map_or(0, |last| last + 1);
        self.groups.range(behind..).chain(self.groups.range(..behind))
    }

    pub(super) fn group(&mut self, id: u32) -> Option<&mut OutGroup> {
        self.groups.iter_mut().find(|group| group.id == id)
    }
}

/// Also as it was saved when nothing was known of the peer's log.
fn read_saved(bytes: &[u8]) -> Option<Saved> {
    let of_one_start = |bytes| {
        let (cursor, store, interest, echo, known, epoch) = postcard::from_bytes(bytes).ok()?;
        Some(Saved { cursor, store, interest, echo, known, epochs: [0, epoch] })
    };
    let of_no_start = |bytes| {
        let (cursor, store, interest, echoes): (u64, u64, u64, bool) = postcard::from_bytes(bytes).ok()?;
        let echo = echoes.then_some(Lost::Store);
        Some(Saved { cursor, store, interest, echo, known: 0, epochs: [0; 2] })
    };
    postcard::from_bytes(bytes).ok().or_else(|| of_one_start(bytes)).or_else(|| of_no_start(bytes))
}

impl OutGroup {
    pub(super) fn is_done(&self) -> bool {
        self.entries.iter().all(|entry| entry.acknowledged)
    }

    /// Nothing was heard of it for as long as it takes to be repeated at first; it waits longer now.
    fn is_silent(&self, now: Time) -> bool {
        self.retry_at_ms + SILENCE_MS <= now.mono_ms + self.retry_wait_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_format_page_is_the_cursor_that_is_saved() {
        let outbox =
            Outbox { cursor: 300, store: 77, interest: 9, known: 400, epochs: [4, 5], ..Outbox::default() };
        let hex: String = outbox.value().iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(include_str!("../../../../docs/format.md").contains(&format!("    {hex}\n")), "{hex}");
    }
}
