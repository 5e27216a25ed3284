//! What one peer has not acknowledged yet: a cursor into the log and the few announcements under way.
//!
//! The cursor moves only over changes that the peer has acknowledged, or that do not concern it. It is
//! saved now and then, not each time: an old one costs announcements that are answered at once.

use super::wire::{Refusal, Wanted};
use crate::id::BlockId;
use crate::name::Name;
use crate::time::Time;
use std::collections::VecDeque;

/// Acknowledged changes after which the cursor is saved at once, and the longest it waits otherwise.
const SAVE_CHANGES: u64 = 1024;
const SAVE_MS: u64 = 60_000;

/// A cursor as it is saved: the peer's store and interest it speaks of, and whether an echo is unfinished.
type Saved = (u64, u64, u64, bool);

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
    store: u64,
    interest: u64,
    /// The peer's store is new to us: what came from its old one is told to it too, up to the log's end.
    pub(super) echo: Option<Echo>,
    saved: u64,
    save_at_ms: Option<u64>,
    saving: bool,
}

/// How far a peer with a new store is told what came from its old one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Echo {
    /// The end of the log has not been seen yet.
    Open,
    /// Up to this sequence number.
    Until(u64),
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
    /// Why upstream will not take it; acknowledged once the log knows.
    pub(super) refusal: Option<Refusal>,
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

    /// Takes the saved cursor, if it speaks of this store of the peer and these subscriptions.
    pub(super) fn load(&mut self, value: Option<&[u8]>, store: u64, interest: u64) {
        let saved: Option<Saved> = value.and_then(|bytes| postcard::from_bytes(bytes).ok());
        let saved =
            saved.filter(|(_, of_store, of_interest, _)| (*of_store, *of_interest) == (store, interest));
        let from_log = saved.map_or(0, |(cursor, ..)| cursor);
        let is_remembered = (self.store, self.interest) == (store, interest);
        let in_memory = if is_remembered { self.cursor } else { 0 };
        if !is_remembered {
            self.echo = saved.is_none_or(|(.., echoing)| echoing).then_some(Echo::Open);
        }
        (self.store, self.interest) = (store, interest);
        self.cursor = from_log.max(in_memory);
        self.saved = from_log;
        self.save_at_ms = None;
        self.loading = false;
        self.rewind();
    }

    /// The cursor as it is saved.
    pub(super) fn value(&self) -> Vec<u8> {
        let saved: Saved = (self.cursor, self.store, self.interest, self.echo.is_some());
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
        if matches!(self.echo, Some(Echo::Until(end)) if self.cursor >= end) {
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
        let wants = !self.saving && self.cursor > self.saved && (far || old || at_once);
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
        self.save_at_ms
    }

    pub(super) fn retry_at_ms(&self) -> Option<u64> {
        self.groups.iter().filter(|group| !group.is_done()).map(|group| group.retry_at_ms).min()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.groups.is_empty() && !self.more && !self.reading && !self.loading
    }

    pub(super) fn group(&mut self, id: u32) -> Option<&mut OutGroup> {
        self.groups.iter_mut().find(|group| group.id == id)
    }
}

impl OutGroup {
    pub(super) fn is_done(&self) -> bool {
        self.entries.iter().all(|entry| entry.acknowledged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_format_page_is_the_cursor_that_is_saved() {
        let outbox = Outbox { cursor: 300, store: 77, interest: 9, ..Outbox::default() };
        let hex: String = outbox.value().iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(include_str!("../../../../docs/format.md").contains(&format!("    {hex}\n")), "{hex}");
    }
}
