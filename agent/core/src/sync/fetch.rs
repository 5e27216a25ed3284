//! Fetches: a node below asks its master for one object, which is then announced to it like any other.
//!
//! So many are asked for at once as the master answers at once; the others wait for their turn, first those of
//! which somebody waits for the answer. Without a session a fetch that may wait does, up to the role's bound; any
//! other fails at once and says so. Who waits too long for an answer is told that the fetch waits; from then on
//! it is asked for again, and a note says when it is given up. The master looks a CID up among its names and,
//! failing that, among its blocks. Of an object that is here already what is lacking is asked for, and nothing is
//! bound.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "an answer of another kind is one case, however many kinds there are"
)]

use super::group::{InGroup, Plan};
use super::outbox::OutGroup;
use super::wire::{Hindrance, Outcome, SyncMessage};
use super::{Purpose, RETRY_MS, Sync, Wires};
use crate::binding::{Binding, Content, Meta, Stored};
use crate::id::{BlockId, NodeName};
use crate::limits::{FETCHES_MAX, FETCHES_OPEN_MAX};
use crate::message::{Answer, Bound, Effects, FetchDone, Message, Question, Ticket};
use crate::name::Name;
use crate::note::Note;
use crate::request::{Failure, FailureKind, Target};
use crate::role::may_fetch;
use crate::time::Time;
use crate::version::Version;
use std::collections::{BTreeMap, VecDeque};

/// Milliseconds without any sign of the object after which a fetch was in vain.
const FETCH_MS: u64 = 60_000;
/// Milliseconds between two words to who waits for the answer.
const PROGRESS_MS: u64 = 500;
/// Milliseconds after which a master that could not answer is asked on.
const PAUSE_MS: u64 = RETRY_MS / 4;
/// Times a fetch is asked for in vain before it is given up.
const TRIES_MAX: u32 = 8;

/// Fetches of this node.
pub(super) struct Fetches {
    /// Those to be asked for, in this order; of none behind the first without a ticket is an answer waited for.
    waiting: VecDeque<Fetch>,
    waiting_max: usize,
    open: BTreeMap<u32, Open>,
    next: u32,
    /// Nothing is asked for until then.
    pause_until_ms: u64,
    /// There is no session: who waits for an answer is told so then.
    patience_until_ms: Option<u64>,
}

struct Fetch {
    /// Who waits for the answer; nobody, once it was said that the fetch waits.
    ticket: Option<Ticket>,
    target: Target,
    /// Whether it may wait for a session.
    wait: bool,
    /// So often it was asked for in vain.
    tries: u32,
}

/// A fetch that was asked for.
struct Open {
    fetch: Fetch,
    expires_at_ms: u64,
    /// When it is told how far it is.
    word_at_ms: u64,
}

impl Fetch {
    fn fail(self, failure: Failure, out: &mut Effects) {
        match self.ticket {
            Some(ticket) => out.tell(Message::Fetched { ticket, done: Err(failure) }),
            None => out.note(Note::Fetch { target: self.target, why: failure.message }),
        }
    }
}

impl Fetches {
    /// Requests are numbered from a place of this epoch's own, as announcements are.
    pub(super) fn new(waiting_max: usize, epoch: u64) -> Self {
        Fetches {
            waiting: VecDeque::new(),
            waiting_max,
            open: BTreeMap::new(),
            next: (epoch ^ (epoch >> 32)) as u32,
            pause_until_ms: 0,
            patience_until_ms: None,
        }
    }

    pub(super) fn resize(&mut self, waiting_max: usize) {
        self.waiting_max = waiting_max;
    }

    /// Takes its turn; who waits for an answer goes first.
    fn push(&mut self, fetch: Fetch) {
        let untold = self.waiting.iter().position(|other| other.ticket.is_none());
        let place = untold.filter(|_| fetch.ticket.is_some()).unwrap_or(self.waiting.len());
        self.waiting.insert(place, fetch);
    }

    /// Asks for as many as the master answers at once.
    fn ask(&mut self, now: Time, master: &NodeName, wires: &mut Wires, out: &mut Effects) {
        while self.pause_until_ms <= now.mono_ms
            && self.open.len() < FETCHES_OPEN_MAX
            && let Some(fetch) = self.waiting.pop_front()
        {
            self.next = self.next.wrapping_add(1);
            let target = fetch.target.clone();
            wires.post(master, &SyncMessage::Fetch { request: self.next, target }, out);
            let expires_at_ms = now.mono_ms + FETCH_MS;
            self.open.insert(self.next, Open { fetch, expires_at_ms, word_at_ms: 0 });
        }
    }

    /// The master is there, and remembers nothing: what was asked for is asked for again.
    pub(super) fn session(&mut self) {
        self.patience_until_ms = None;
        self.ask_all_again();
    }

    fn ask_all_again(&mut self) {
        self.pause_until_ms = 0;
        for (_, open) in std::mem::take(&mut self.open).into_iter().rev() {
            self.waiting.push_front(open.fetch);
        }
    }

    /// The session with the master has ended, and may be back soon.
    pub(super) fn session_over(&mut self, now: Time) {
        self.patience_until_ms.get_or_insert(now.mono_ms + FETCH_MS);
    }

    /// What may wait does, the rest fails. Patience goes on from when the session ended, however often the link falls.
    pub(super) fn link_down(&mut self, now: Time, out: &mut Effects) {
        self.ask_all_again();
        self.session_over(now);
        for fetch in std::mem::take(&mut self.waiting) {
            if fetch.ticket.is_none() || fetch.wait && self.waiting.len() < self.waiting_max {
                self.push(fetch);
            } else {
                let why = "the link fell before it was here; ask again";
                fetch.fail(Failure::new(FailureKind::Unreachable, why), out);
            }
        }
    }

    /// Whether the answer to this request is waited for.
    pub(super) fn is_open(&self, request: u32) -> bool {
        self.open.contains_key(&request)
    }

    /// There is a sign of the object.
    pub(super) fn moves(&mut self, now: Time, group: &InGroup, out: &mut Effects) {
        let open = group.request.and_then(|request| self.open.get_mut(&request));
        let (Some(open), Some(entry)) = (open, group.entries.first()) else { return };
        open.expires_at_ms = now.mono_ms + FETCH_MS;
        if let Some(ticket) = open.fetch.ticket
            && open.word_at_ms <= now.mono_ms
        {
            open.word_at_ms = now.mono_ms + PROGRESS_MS;
            let total = entry.incoming.meta.size;
            // manifests come too
            let done = group.bytes_came.min(total);
            out.tell(Message::Progress { ticket, done, total });
        }
    }

    pub(super) fn not_found(&mut self, request: u32, out: &mut Effects) {
        if let Some(Open { fetch, .. }) = self.open.remove(&request) {
            let why = format!("{} is neither here nor on the master", fetch.target);
            fetch.fail(Failure::new(FailureKind::NotFound, why), out);
        }
    }

    /// The master can not answer, for now or for good.
    pub(super) fn unable(&mut self, now: Time, request: u32, why: Hindrance, out: &mut Effects) {
        let Some(Open { fetch, .. }) = self.open.remove(&request) else { return };
        let message = format!("{}: {why}", fetch.target);
        match why {
            Hindrance::Damaged => fetch.fail(Failure::new(FailureKind::Damaged, message), out),
            Hindrance::Busy => self.again(now, fetch, Failure::new(FailureKind::Busy, message), out),
            Hindrance::Disk => self.again(now, fetch, Failure::new(FailureKind::Disk, message), out),
        }
    }

    /// A group is finished; if it answers a fetch, that is too.
    pub(super) fn finished(&mut self, now: Time, group: &InGroup, failed: Option<&str>, out: &mut Effects) {
        let Some(open) = group.request.and_then(|request| self.open.remove(&request)) else { return };
        let fetch = open.fetch;
        if let Some(why) = failed {
            let failure = Failure::new(FailureKind::Disk, why);
            return match fetch.ticket {
                Some(_) => fetch.fail(failure, out),
                None => self.again(now, fetch, failure, out),
            };
        }
        let Some(entry) = group.entries.first() else { return };
        match &entry.plan {
            Plan::Done(Outcome::Refused(why)) => {
                let lost = group.lost.map_or_else(String::new, |id| format!(": {id}"));
                fetch.fail(Failure::new(FailureKind::Damaged, format!("{why}{lost}")), out)
            }
            Plan::Done(Outcome::Stored | Outcome::Superseded | Outcome::Conflict)
            | Plan::Take(_)
            | Plan::Unknown => {
                if let Some(ticket) = fetch.ticket {
                    let done = Ok(FetchDone::Here(entry.name.clone()));
                    out.tell(Message::Fetched { ticket, done });
                }
            }
        }
    }

    /// It was in vain this time.
    fn again(&mut self, now: Time, mut fetch: Fetch, failure: Failure, out: &mut Effects) {
        fetch.tries += 1;
        if fetch.tries >= TRIES_MAX {
            return fetch.fail(failure, out);
        }
        self.pause_until_ms = now.mono_ms + PAUSE_MS;
        self.push(fetch);
    }

    /// Nobody shall wait for the answer any longer; the fetch does, if it may.
    fn put_off(&mut self, now: Time, mut fetch: Fetch, out: &mut Effects) {
        let why = "the master did not answer within a minute; see the link in `larder status`";
        let failure = Failure::new(FailureKind::Unreachable, why);
        if let Some(ticket) = fetch.ticket {
            if !fetch.wait || self.waiting.len() >= self.waiting_max {
                return fetch.fail(failure, out);
            }
            fetch.ticket = None;
            out.tell(Message::Fetched { ticket, done: Ok(FetchDone::Waiting(self.count() + 1)) });
        }
        self.again(now, fetch, failure, out);
    }

    pub(super) fn expire(&mut self, now: Time, out: &mut Effects) {
        let is_over = |at_ms: u64| at_ms <= now.mono_ms;
        let expired = |(_, open): &(&u32, &Open)| is_over(open.expires_at_ms);
        let requests: Vec<u32> = self.open.iter().filter(expired).map(|(request, _)| *request).collect();
        for request in requests {
            if let Some(open) = self.open.remove(&request) {
                self.put_off(now, open.fetch, out);
            }
        }
        if self.patience_until_ms.take_if(|at_ms| is_over(*at_ms)).is_some() {
            for fetch in std::mem::take(&mut self.waiting) {
                match fetch.ticket {
                    Some(_) => self.put_off(now, fetch, out),
                    None => self.push(fetch),
                }
            }
        }
    }

    /// When something must be done, with a session or without.
    pub(super) fn deadline_ms(&self, in_session: bool) -> Option<u64> {
        let first = self.waiting.front();
        let expires = self.open.values().map(|open| open.expires_at_ms).min();
        let patience = self.patience_until_ms.filter(|_| first.is_some_and(|fetch| fetch.ticket.is_some()));
        let may_ask = in_session && first.is_some() && self.open.len() < FETCHES_OPEN_MAX;
        [expires, patience, may_ask.then_some(self.pause_until_ms)].into_iter().flatten().min()
    }

    /// All fetches.
    fn count(&self) -> u32 {
        u32::try_from(self.waiting.len() + self.open.len()).expect("FETCHES_MAX is the most")
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
        if self.has_upstream_session() {
            if self.fetches.count() as usize >= FETCHES_MAX {
                let why = format!("{FETCHES_MAX} fetches are under way already; try again");
                return fail(ticket, FailureKind::Busy, why, out);
            }
            self.fetches.push(Fetch { ticket: Some(ticket), target, wait, tries: 0 });
            return self.ask_fetches(now, out);
        }
        if !wait {
            let why = format!(
                "{target} is not here, and there is no session with {upstream}: {}",
                self.wires.reason
            );
            return fail(ticket, FailureKind::Unreachable, why, out);
        }
        // without a session all of them wait
        if self.fetches.count() as usize >= self.fetches.waiting_max.min(FETCHES_MAX) {
            let why =
                format!("{} requests wait for a link already, no more are kept", self.fetches.waiting_max);
            return fail(ticket, FailureKind::Busy, why, out);
        }
        self.fetches.push(Fetch { ticket: None, target, wait, tries: 0 });
        out.tell(Message::Fetched { ticket, done: Ok(FetchDone::Waiting(self.fetches.count())) });
    }

    /// Asks for what waits for its turn.
    pub(super) fn ask_fetches(&mut self, now: Time, out: &mut Effects) {
        if self.has_upstream_session()
            && let Some(master) = &self.upstream
        {
            self.fetches.ask(now, master, &mut self.wires, out);
        }
    }

    pub(super) fn has_upstream_session(&self) -> bool {
        let master = self.upstream.as_ref().and_then(|master| self.peers.get(master));
        master.is_some_and(|peer| peer.session.is_some())
    }

    /// A peer asks for an object.
    pub(super) fn fetch_asked(&mut self, from: &NodeName, request: u32, target: Target, out: &mut Effects) {
        let Some(peer) = self.peers.get_mut(from) else { return };
        if !may_fetch(peer.role, self.wires.role) {
            let why = format!("a {} may not fetch from a {}", peer.role, self.wires.role);
            return self.wires.dropped(from, why, out);
        }
        let answers = peer.out.groups.iter().filter(|group: &&OutGroup| group.request.is_some()).count();
        if answers >= FETCHES_OPEN_MAX {
            let busy = SyncMessage::Unable { request, why: Hindrance::Busy };
            return self.wires.post(from, &busy, out);
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
            (_, Answer::Failed(failure)) => return self.unable(peer, request, failure, out),
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
            Answer::Failed(failure) => return self.unable(peer, request, failure, out),
            Answer::Block(Some(bytes)) => {
                let meta = Meta { size: bytes.len() as u64, mtime_ms: 0, mode: 0o644 };
                self.by_cid(root, Content::Object { root, depth: 0 }, meta)
            }
            _ => None,
        };
        self.announce_found(now, peer, request, entry, out);
    }

    /// What a peer asked for can not be looked for, or not be read.
    fn unable(&mut self, peer: &NodeName, request: u32, failure: Failure, out: &mut Effects) {
        let why = match failure.kind {
            FailureKind::Busy => Hindrance::Busy,
            FailureKind::Damaged => Hindrance::Damaged,
            _ => Hindrance::Disk,
        };
        if why != Hindrance::Busy {
            out.note(Note::Store { what: failure.message });
        }
        self.wires.post(peer, &SyncMessage::Unable { request, why }, out);
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
