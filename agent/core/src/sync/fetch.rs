//! Fetches: a node below asks its master for one object, which is then announced to it like any other.
//!
//! Without a link a fetch that may wait does, up to the role's bound; any other fails at once and says
//! so. The master looks a CID up among its names and, failing that, among its blocks.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "an answer of another kind is one case, however many kinds there are"
)]

use super::group::{InGroup, Plan};
use super::outbox::OutGroup;
use super::wire::{Outcome, SyncMessage};
use super::{Purpose, Sync, Wires};
use crate::binding::{Binding, Content, Meta, Stored};
use crate::id::{BlockId, NodeName};
use crate::limits::{FETCHES_MAX, OUT_GROUPS_MAX};
use crate::message::{Answer, Bound, Effects, FetchDone, Message, Question, Ticket};
use crate::name::Name;
use crate::request::{Failure, FailureKind, Target};
use crate::role::may_fetch;
use crate::time::Time;
use crate::version::Version;
use std::collections::{BTreeMap, VecDeque};

/// Milliseconds without any sign of the object after which a fetch fails.
const FETCH_MS: u64 = 60_000;

/// Fetches this node has asked for.
pub(super) struct Fetches {
    waiting: VecDeque<(Ticket, Target)>,
    waiting_max: usize,
    open: BTreeMap<u32, Open>,
    next: u32,
}

struct Open {
    ticket: Ticket,
    target: Target,
    wait: bool,
    expires_at_ms: u64,
}

impl Fetches {
    /// Requests are numbered from a place of this epoch's own, as announcements are.
    pub(super) fn new(waiting_max: usize, epoch: u64) -> Self {
        let next = (epoch ^ (epoch >> 32)) as u32;
        Fetches { waiting: VecDeque::new(), waiting_max, open: BTreeMap::new(), next }
    }

    pub(super) fn resize(&mut self, waiting_max: usize) {
        self.waiting_max = waiting_max;
    }

    fn send(
        &mut self,
        now: Time,
        to: &NodeName,
        open: (Ticket, Target, bool),
        wires: &mut Wires,
        out: &mut Effects,
    ) {
        let (ticket, target, wait) = open;
        self.next = self.next.wrapping_add(1);
        wires.post(to, &SyncMessage::Fetch { request: self.next, target: target.clone() }, out);
        let expires_at_ms = now.mono_ms + FETCH_MS;
        self.open.insert(self.next, Open { ticket, target, wait, expires_at_ms });
    }

    /// The master is there, and remembers nothing: what waited is asked for, and what was asked again.
    pub(super) fn session(&mut self, now: Time, master: &NodeName, wires: &mut Wires, out: &mut Effects) {
        for (_, open) in std::mem::take(&mut self.open) {
            self.send(now, master, (open.ticket, open.target, open.wait), wires, out);
        }
        while let Some((ticket, target)) = self.waiting.pop_front() {
            self.send(now, master, (ticket, target, true), wires, out);
        }
    }

    /// What may wait does, the rest fails.
    pub(super) fn link_down(&mut self, _now: Time, out: &mut Effects) {
        for (_, open) in std::mem::take(&mut self.open) {
            if open.wait && self.waiting.len() < self.waiting_max {
                self.waiting.push_back((open.ticket, open.target));
            } else {
                fail(
                    open.ticket,
                    FailureKind::Unreachable,
                    "the link fell before it was here; ask again",
                    out,
                );
            }
        }
    }

    /// Whether the answer to this request is waited for.
    pub(super) fn is_open(&self, request: u32) -> bool {
        self.open.contains_key(&request)
    }

    /// There is a sign of the object.
    pub(super) fn moves(&mut self, now: Time, group: &InGroup) {
        if let Some(open) = group.request.and_then(|request| self.open.get_mut(&request)) {
            open.expires_at_ms = now.mono_ms + FETCH_MS;
        }
    }

    pub(super) fn not_found(&mut self, request: u32, out: &mut Effects) {
        if let Some(open) = self.open.remove(&request) {
            let why = format!("{} is neither here nor on the master", open.target);
            fail(open.ticket, FailureKind::NotFound, why, out);
        }
    }

    /// A group is finished; if it answers a fetch, that is too.
    pub(super) fn finished(&mut self, _now: Time, group: &InGroup, failed: Option<&str>, out: &mut Effects) {
        let Some(open) = group.request.and_then(|request| self.open.remove(&request)) else { return };
        if let Some(why) = failed {
            return fail(open.ticket, FailureKind::Disk, why, out);
        }
        let Some(entry) = group.entries.first() else { return };
        match &entry.plan {
            Plan::Done(Outcome::Refused(why)) => {
                fail(open.ticket, FailureKind::Damaged, why.to_string(), out)
            }
            Plan::Done(Outcome::Stored | Outcome::Superseded | Outcome::Conflict)
            | Plan::Take(_)
            | Plan::Unknown => {
                let done = Ok(FetchDone::Here(entry.name.clone()));
                out.tell(Message::Fetched { ticket: open.ticket, done });
            }
        }
    }

    pub(super) fn expire(&mut self, now: Time, out: &mut Effects) {
        let expired = |open: &Open| open.expires_at_ms <= now.mono_ms;
        let requests: Vec<u32> =
            self.open.iter().filter(|(_, open)| expired(open)).map(|(request, _)| *request).collect();
        for request in requests {
            if let Some(open) = self.open.remove(&request) {
                let why = "the master did not answer within a minute; see the link in `larder status`";
                fail(open.ticket, FailureKind::Unreachable, why, out);
            }
        }
    }

    pub(super) fn expires_at_ms(&self) -> Option<u64> {
        self.open.values().map(|open| open.expires_at_ms).min()
    }
}

impl Sync {
    /// Brings an object from the master.
    pub fn fetch(&mut self, now: Time, ticket: Ticket, target: Target, wait: bool, out: &mut Effects) {
        let Some(upstream) = self.upstream.clone() else {
            return fail(
                ticket,
                FailureKind::NotFound,
                format!("{target} is not here, and this node has no master"),
                out,
            );
        };
        if self.fetches.open.len() >= FETCHES_MAX {
            let why = format!("{FETCHES_MAX} fetches are under way already; try again");
            return fail(ticket, FailureKind::Busy, why, out);
        }
        if self.peers.get(&upstream).is_some_and(|peer| peer.session.is_some()) {
            return self.fetches.send(now, &upstream, (ticket, target, wait), &mut self.wires, out);
        }
        if !wait {
            let why = format!(
                "{target} is not here, and there is no session with {upstream}: {}",
                self.wires.reason
            );
            return fail(ticket, FailureKind::Unreachable, why, out);
        }
        if self.fetches.waiting.len() >= self.fetches.waiting_max {
            let why =
                format!("{} requests wait for a link already, no more are kept", self.fetches.waiting_max);
            return fail(ticket, FailureKind::Busy, why, out);
        }
        self.fetches.waiting.push_back((ticket, target));
        let waiting = u32::try_from(self.fetches.waiting.len()).unwrap_or(u32::MAX);
        out.tell(Message::Fetched { ticket, done: Ok(FetchDone::Waiting(waiting)) });
    }

    /// A peer asks for an object.
    pub(super) fn fetch_asked(&mut self, from: &NodeName, request: u32, target: Target, out: &mut Effects) {
        let Some(peer) = self.peers.get_mut(from) else { return };
        if !may_fetch(peer.role, self.wires.role) {
            let why = format!("a {} may not fetch from a {}", peer.role, self.wires.role);
            return self.wires.dropped(from, why, out);
        }
        let answers = peer.out.groups.iter().filter(|group: &&OutGroup| group.request.is_some()).count();
        if answers >= OUT_GROUPS_MAX * 4 {
            return; // it asks again when it is still interested
        }
        let question = match &target {
            Target::Name(name) => Question::Lookup(vec![name.clone()]),
            Target::Cid(root) => Question::Find { root: *root, after: None },
        };
        self.asked.ask(Purpose::Find { peer: from.clone(), request, target }, question, out);
    }

    pub(super) fn found(
        &mut self,
        now: Time,
        peer: &NodeName,
        request: u32,
        target: Target,
        answer: Answer,
        out: &mut Effects,
    ) {
        let entry = match (target, answer) {
            (Target::Name(name), Answer::Bindings(found)) => found
                .into_iter()
                .next()
                .flatten()
                .and_then(decode)
                .filter(|binding| binding.content != Content::Deleted)
                .map(|binding| (name, binding)),
            (Target::Cid(root), Answer::Found { binding: Some((_, bound)), .. }) => {
                decode(bound).and_then(|found| self.by_cid(root, found.content, found.meta))
            }
            (target @ Target::Cid(root), Answer::Found { binding: None, next: Some(next) }) => {
                let question = Question::Find { root, after: Some(next) };
                return self.asked.ask(Purpose::Find { peer: peer.clone(), request, target }, question, out);
            }
            (Target::Cid(root), Answer::Found { binding: None, next: None }) => {
                let purpose = Purpose::FindBlock { peer: peer.clone(), request, root };
                return self.asked.ask(purpose, Question::Read(root), out);
            }
            (_, _) => None,
        };
        self.announce_found(now, peer, request, entry, out);
    }

    pub(super) fn found_block(
        &mut self,
        now: Time,
        peer: &NodeName,
        request: u32,
        root: BlockId,
        answer: Answer,
        out: &mut Effects,
    ) {
        let entry = match answer {
            Answer::Block(Some(bytes)) => {
                let meta = Meta { size: bytes.len() as u64, mtime_ms: 0, mode: 0o644 };
                self.by_cid(root, Content::Object { root, depth: 0 }, meta)
            }
            _ => None,
        };
        self.announce_found(now, peer, request, entry, out);
    }

    fn announce_found(
        &mut self,
        now: Time,
        peer: &NodeName,
        request: u32,
        entry: Option<(Name, Binding)>,
        out: &mut Effects,
    ) {
        match entry {
            Some(entry) => self.announce(now, peer, vec![entry], None, Some(request), out),
            None => self.wires.post(peer, &SyncMessage::NotFound { request }, out),
        }
    }

    /// An object asked for by its root is kept under `cid/<root>`, whatever else it is called.
    fn by_cid(&self, root: BlockId, content: Content, meta: Meta) -> Option<(Name, Binding)> {
        let name = Name::parse(&format!("cid/{root}")).ok()?;
        let mut version = Version::default();
        version.bump(&self.wires.me).ok()?;
        let binding = Binding { version, content, meta, origin: self.wires.me.clone(), conflict_of: None };
        Some((name, binding))
    }
}

fn decode(bound: Bound) -> Option<Binding> {
    Stored::decode(&bound.value).ok().map(|stored| stored.binding)
}

fn fail(ticket: Ticket, kind: FailureKind, why: impl Into<String>, out: &mut Effects) {
    out.tell(Message::Fetched { ticket, done: Err(Failure::new(kind, why)) });
}
