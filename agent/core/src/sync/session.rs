//! Sessions: who is there, since when, and with which store.
//!
//! The node below (worker, leecher) says hello to its master whenever the link comes up and whenever
//! the master's retained state shows another start of it. A hello that asks for an answer gets one.
//! A hello of a new session, by its epoch and number, ends whatever was under way, on both sides: who says
//! one has forgotten all of it, and who answers it forgets. A repeated one changes nothing. One with a new
//! store voids the cursor. A master that goes ends the session with it.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "an answer of another kind is one case, however many kinds there are"
)]

use super::group::InGroup;
use super::sender::save_cursor;
use super::wire::{Hello, SyncMessage};
use super::{Peer, Purpose, RETRY_MS, RETRY_MS_MAX, Sync};
use crate::id::NodeName;
use crate::message::{Answer, Effects, Question};
use crate::name::NAME_BYTES_MAX;
use crate::note::Note;
use crate::role::{Role, may_announce, may_fetch};
use crate::start::Start;
use crate::time::Time;
use bytes::Bytes;
use serde::Deserialize;

/// Milliseconds until a peer that had no session for us is asked again.
const LATER_MS: u64 = 60_000;

/// A peer that has said hello since the link came up.
#[derive(Clone, Debug)]
pub(super) struct Session {
    /// The peer is our master: everything of ours concerns it.
    pub(super) upstream: bool,
    pub(super) epoch: u64,
    pub(super) number: u64,
    pub(super) store: u64,
    /// Its last starts, as far as it says.
    pub(super) starts: Vec<Start>,
    pub(super) subscriptions: Vec<String>,
}

impl Session {
    fn is_of(&self, hello: &Hello) -> bool {
        (self.epoch, self.number) == (hello.epoch, hello.session)
    }

    /// The peer's last two starts, as far as it says.
    pub(super) fn epochs(&self) -> [u64; 2] {
        [self.starts.iter().rev().nth(1).map_or(0, |start| start.epoch), self.epoch]
    }

    /// A number that changes when the peer wants to hear of other names.
    pub(super) fn interest(&self) -> u64 {
        let mut hasher = blake3::Hasher::new();
        for prefix in &self.subscriptions {
            hasher.update(prefix.as_bytes());
            hasher.update(&[0]);
        }
        let hash = hasher.finalize();
        u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("a hash has 32 bytes"))
    }
}

impl Sync {
    pub(super) fn say_hello(&mut self, now: Time, to: &NodeName, out: &mut Effects) {
        self.send_hello(to, None, out);
        if let Some(peer) = self.peers.get_mut(to) {
            peer.hello_at_ms = Some(now.mono_ms + peer.hello_wait_ms);
            peer.hello_wait_ms = (peer.hello_wait_ms * 2).min(RETRY_MS_MAX);
        }
    }

    fn send_hello(&mut self, to: &NodeName, answers: Option<(u64, u64)>, out: &mut Effects) {
        let upstream = self.upstream.as_ref() == Some(to);
        let Some(peer) = self.peers.get(to) else { return };
        let hello = Hello {
            epoch: self.wires.epoch,
            session: peer.session_number,
            store: self.wires.store,
            role: self.wires.role,
            subscriptions: if upstream { self.subscriptions.clone() } else { Vec::new() },
            answers,
            starts: self.wires.starts.clone(),
        };
        self.wires.post(to, &SyncMessage::Hello(hello), out);
    }

    pub(super) fn repeat_hellos(&mut self, now: Time, out: &mut Effects) {
        let due = |peer: &Peer| peer.hello_at_ms.is_some_and(|at_ms| at_ms <= now.mono_ms);
        let names: Vec<NodeName> =
            self.peers.iter().filter(|(_, peer)| due(peer)).map(|(name, _)| name.clone()).collect();
        for name in names {
            if !out.has_room() {
                return;
            }
            self.say_hello(now, &name, out);
        }
    }

    pub(super) fn hello(&mut self, now: Time, from: &NodeName, hello: Hello, out: &mut Effects) {
        let upstream = self.upstream.as_ref() == Some(from);
        let Some(peer) = self.peers.get(from) else { return };
        if hello.role != peer.role || !are_related(peer.role, self.wires.role) {
            let why = format!("it says it is a {}; here it is configured as a {}", hello.role, peer.role);
            return self.wires.dropped(from, why, out);
        }
        if hello.subscriptions.iter().any(|prefix| prefix.len() > NAME_BYTES_MAX) {
            return self.wires.dropped(from, "a subscription longer than any name".into(), out);
        }
        if hello.answers.is_some_and(|answers| answers != (self.wires.epoch, peer.session_number)) {
            // It speaks to an earlier start or session of ours; perhaps it knows no later one.
            let is_known = peer.session.as_ref().is_some_and(|session| session.is_of(&hello));
            if !is_known {
                self.say_hello(now, from, out);
            }
            return;
        }
        if !self.has_session_for(now, from, out) {
            return self.wires.post(from, &SyncMessage::Later, out);
        }
        self.sessions_begun += 1;
        let Some(peer) = self.peers.get_mut(from) else { return };
        peer.begun = self.sessions_begun;
        peer.hello_at_ms = None;
        peer.hello_wait_ms = RETRY_MS;
        let (asked, is_of) = (hello.answers.is_none(), (hello.epoch, hello.session));
        let is_repeated = peer.session.as_ref().is_some_and(|session| session.is_of(&hello));
        let session = Session {
            upstream,
            epoch: hello.epoch,
            number: hello.session,
            store: hello.store,
            starts: hello.starts,
            subscriptions: hello.subscriptions,
        };
        if !is_repeated {
            peer.session = Some(session);
            peer.out.rewind();
            peer.out.loading = true;
            self.incoming.retain(|(name, _), _| name != from);
        }
        if asked {
            self.send_hello(from, Some(is_of), out);
        }
        if is_repeated {
            return;
        }
        let question = Question::Settings(cursor_key(from));
        self.asked.ask(Purpose::Cursor { peer: from.clone() }, question, out);
        if upstream {
            self.fetches.session();
            self.ask_fetches(now, out);
        }
    }

    pub(super) fn cursor_loaded(&mut self, now: Time, from: &NodeName, answer: Answer, out: &mut Effects) {
        let Some(Peer { session: Some(session), out: outbox, role, .. }) = self.peers.get_mut(from) else {
            return;
        };
        let key = cursor_key(from);
        let value = match answer {
            Answer::Settings(settings) => {
                settings.into_iter().find(|(name, _)| *name == key).map(|(_, value)| value)
            }
            // Nothing known: announce everything again, which the receiver answers from what it has.
            _ => None,
        };
        if outbox.load(value.as_deref(), session) && may_announce(self.wires.role, *role) {
            let what = format!("{from} has lost the end of its log, and is told again what was there");
            self.wires.numbers.last_problem.clone_from(&what);
            out.note(Note::Store { what });
            save_cursor(&mut self.asked, from, outbox, out);
        }
        self.delivered(from, out);
        self.pump(now, from, out);
    }

    /// Whether this peer may have a session; the oldest one with nothing under way makes room for it, save with the
    /// master of this node.
    fn has_session_for(&mut self, now: Time, name: &NodeName, out: &mut Effects) -> bool {
        let others = self.peers.iter().filter(|(other, peer)| *other != name && peer.session.is_some());
        if others.clone().count() < self.sessions_max {
            return true;
        }
        let is_idle = |other: &NodeName, peer: &Peer| {
            let works =
                |((from, _), group): (&(NodeName, u32), &InGroup)| from == other && !group.is_silent();
            peer.out.is_empty() && !self.incoming.iter().any(works)
        };
        // this node's own master stays: nobody would say hello to it again
        let others = others.filter(|(other, _)| self.upstream.as_ref() != Some(*other));
        let idle = others.filter(|(other, peer)| is_idle(other, peer)).min_by_key(|(_, peer)| peer.begun);
        let Some(idle) = idle.map(|(other, _)| other.clone()) else { return false };
        self.wires.post(&idle, &SyncMessage::Later, out);
        self.end_session(now, &idle);
        true
    }

    /// The peer has no session for us now.
    pub(super) fn later(&mut self, now: Time, from: &NodeName) {
        self.end_session(now, from);
        if self.upstream.as_ref() == Some(from)
            && let Some(peer) = self.peers.get_mut(from)
        {
            peer.hello_at_ms = Some(now.mono_ms + LATER_MS);
        }
    }

    /// Ends the session with a peer: what was under way is forgotten, and a hello will say so.
    pub(super) fn end_session(&mut self, now: Time, name: &NodeName) {
        if self.upstream.as_ref() == Some(name) {
            self.fetches.session_over(now);
        }
        self.incoming.retain(|(from, _), _| from != name);
        self.serving.remove(name);
        if let Some(peer) = self.peers.get_mut(name) {
            peer.session = None;
            peer.session_number += 1;
            peer.hello_at_ms = None;
            peer.hello_wait_ms = RETRY_MS;
            peer.out.rewind();
        }
    }

    /// The retained state of the master. It may have had a new link without a word of the old one's end, and then it
    /// has no session any more: each time it comes online it gets a hello, which changes nothing where it has one.
    pub(super) fn peer_state(&mut self, now: Time, from: &NodeName, payload: &Bytes, out: &mut Effects) {
        if self.upstream.as_ref() != Some(from) || !self.wires.up {
            return;
        }
        let PeerState { state, epoch } = match serde_json::from_slice(payload) {
            Ok(state) => state,
            Err(error) => return self.wires.dropped(from, format!("no state of a node: {error}"), out),
        };
        let Some(peer) = self.peers.get(from) else { return };
        let known = peer.session.as_ref().is_some_and(|session| session.epoch == epoch);
        if state != "online" {
            // Without a session too: an answer to a hello may still be on its way.
            self.end_session(now, from);
            // Its coming back will be said; should that be missed, this is tried now and then.
            if let Some(peer) = self.peers.get_mut(from) {
                peer.hello_at_ms = Some(now.mono_ms + RETRY_MS_MAX);
            }
        } else {
            if !known && peer.session.is_some() {
                self.end_session(now, from);
            }
            self.say_hello(now, from, out);
        }
    }
}

/// What a node says of itself on its state topic.
#[derive(Deserialize)]
struct PeerState<'a> {
    state: &'a str,
    epoch: u64,
}

/// Whether nodes of these roles have anything to say to each other.
pub(super) fn are_related(one: Role, other: Role) -> bool {
    let may = |from, to| may_announce(from, to) || may_fetch(from, to);
    may(one, other) || may(other, one)
}

/// The setting that holds a peer's cursor.
pub(super) fn cursor_key(peer: &NodeName) -> String {
    format!("cursor/{peer}")
}
