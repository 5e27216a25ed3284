//! Sync: what peers lack reaches them, and what they announce is taken in, by one machine used in
//! both directions.
//!
//! The receiver drives. A sender [`announce`](wire::Announce)s names, the receiver compares versions,
//! asks for missing blocks by bitmap and credit, stores them, binds the names and only then acknowledges;
//! the sender's cursor into the log moves on that acknowledgement and on nothing else. Every step may be
//! repeated, lost or doubled: blocks verify by their names and bindings by their versions.
//!
//! Refused, and counted: messages from unknown nodes, unsigned or altered ones, and what the sender's
//! *configured* role may not do. Bounds: see [`crate::limits`]; memory grows with the sessions and the
//! transfers under way, never with the fleet's or the store's objects. When the link falls all transfers
//! are forgotten and begun again: what is on flash is not asked for twice.

pub mod buffer;
mod credit;
mod fetch;
mod group;
mod outbox;
mod receiver;
mod sender;
mod session;
pub mod wire;

use crate::batcher::{Limits, LowPowerBatcher, Urgency};
use crate::id::{BlockId, NodeName};
use crate::limits::{CONFLICTS_SHOWN, SERVE_READS_MAX};
use crate::message::{
    Actor, Answer, Bound, Change, ChangeDone, Channel, Effect, Effects, Haste, Message, Question, Ticket,
};
use crate::name::Name;
use crate::note::Note;
use crate::request::{Failure, LinkStatus, PeerStatus, SyncNumbers, Target};
use crate::role::Role;
use crate::seal::{self, Between};
use crate::settings::{Peer as PeerSettings, Settings};
use crate::start::Start;
use crate::time::{Deadline, Time};
use bytes::Bytes;
use ed25519_dalek::SigningKey;
use larder_kernels::Level;
use std::collections::{BTreeMap, BTreeSet};
use wire::SyncMessage;

use fetch::Fetches;
use group::InGroup;
use outbox::Outbox;
use session::Session;

/// Milliseconds after which a step without an answer is repeated at first; doubled up to the last.
const RETRY_MS: u64 = 10_000;
const RETRY_MS_MAX: u64 = 300_000;

/// News counted while the radio sleeps; more would say nothing new.
const NEWS_MAX: usize = 1024;

/// What a question or write of this actor was for.
#[derive(Clone, Debug)]
enum Purpose {
    /// The durable cursor of a peer.
    Cursor { peer: NodeName },
    /// The cursor's write.
    CursorSaved { peer: NodeName },
    /// The next changes for a peer.
    Changes { peer: NodeName, after: u64 },
    /// A binding that upstream has not taken, and then the mark on it.
    Untaken { peer: NodeName, group: u32, entry: u16 },
    /// The manifest a peer wants children of.
    Manifest { peer: NodeName, group: u32, life: u64 },
    /// Blocks a peer wants.
    Blocks { peer: NodeName, group: u32, life: u64 },
    /// What a peer wants to fetch.
    Find { peer: NodeName, request: u32, target: Target },
    /// The bare block a peer wants to fetch.
    FindBlock { peer: NodeName, request: u32, root: BlockId },
    /// A step of a transfer to this node.
    Receive { peer: NodeName, group: u32, life: u64, step: group::Step },
}

/// A node this one knows by its configuration.
struct Peer {
    role: Role,
    key: ed25519_dalek::VerifyingKey,
    session: Option<Session>,
    /// Counts the sessions with this peer that this node has begun anew.
    session_number: u64,
    out: Outbox,
    /// Its place in the order in which sessions were begun.
    begun: u64,
    /// When to say hello (again), and how long to wait after that.
    hello_at_ms: Option<u64>,
    hello_wait_ms: u64,
}

/// The sending side of the link: identity, tokens, counters.
pub(crate) struct Wires {
    me: NodeName,
    fleet: String,
    role: Role,
    key: SigningKey,
    epoch: u64,
    store: u64,
    starts: Vec<Start>,
    /// The newest number in the log that this actor has met.
    log: u64,
    up: bool,
    reason: String,
    connects: u64,
    next_token: u64,
    in_flight: BTreeSet<u64>,
    in_flight_max: usize,
    /// Messages with blocks that are being read.
    reads: usize,
    pub(crate) numbers: SyncNumbers,
}

impl Wires {
    /// Seals and sends a message. Small; it does not wait for room.
    fn post(&mut self, to: &NodeName, message: &SyncMessage, out: &mut Effects) {
        if !self.up {
            return;
        }
        let between = Between { fleet: &self.fleet, from: &self.me, to, channel: Channel::Sync };
        let sealed = seal::seal(&self.key, between, &message.encode());
        self.send(to, Channel::Sync, Bytes::from(sealed), out);
    }

    fn send(&mut self, to: &NodeName, channel: Channel, payload: Bytes, out: &mut Effects) {
        self.next_token += 1;
        self.in_flight.insert(self.next_token);
        self.numbers.messages_sent += 1;
        out.emit(Effect::Send { token: self.next_token, to: to.clone(), channel, payload });
    }

    /// Messages with blocks that may be read now, to be sent: none before there is room for several, so that the
    /// disk is woken for several while the others are on their way.
    fn room(&self) -> usize {
        let taken = if self.up { self.in_flight.len() + self.reads } else { usize::MAX };
        let room = self.in_flight_max.saturating_sub(taken);
        if room < SERVE_READS_MAX.min(self.in_flight_max / 4) { 0 } else { room }
    }

    fn dropped(&mut self, from: &NodeName, why: String, out: &mut Effects) {
        self.numbers.messages_dropped += 1;
        self.numbers.last_problem = format!("{from}: {why}");
        out.note(Note::Dropped { from: from.clone(), why });
    }
}

/// Questions and writes under way, by number.
#[derive(Default)]
pub(crate) struct Asked {
    next: u32,
    open: BTreeMap<u32, Purpose>,
}

impl Asked {
    fn ask(&mut self, purpose: Purpose, question: Question, out: &mut Effects) {
        let ticket = self.ticket(purpose);
        out.tell(Message::Ask { ticket, question });
    }

    fn write(&mut self, purpose: Purpose, change: Change, haste: Haste, out: &mut Effects) {
        let ticket = self.ticket(purpose);
        out.tell(Message::Write { ticket, change, haste });
    }

    fn barrier(&mut self, purpose: Purpose, out: &mut Effects) {
        let ticket = self.ticket(purpose);
        out.tell(Message::Barrier { ticket });
    }

    fn ticket(&mut self, purpose: Purpose) -> Ticket {
        self.next = self.next.wrapping_add(1);
        self.open.insert(self.next, purpose);
        Ticket { actor: Actor::Sync, number: self.next }
    }
}

/// The actor.
pub struct Sync {
    wires: Wires,
    asked: Asked,
    peers: BTreeMap<NodeName, Peer>,
    upstream: Option<NodeName>,
    subscriptions: Vec<String>,
    sessions_max: usize,
    sessions_begun: u64,
    /// No peer that was forgotten had a session of this number or a later one.
    session_numbers_used: u64,
    window_blocks: u32,
    kernels: Level,
    /// Transfers to this node, by peer and the peer's number.
    incoming: BTreeMap<(NodeName, u32), InGroup>,
    /// Counts transfers, in both directions: the last one's `life`.
    lives: u64,
    /// Peers that are being sent blocks: the next message freed serves them in turn.
    serving: BTreeSet<NodeName>,
    /// Who was served last of them.
    served: Option<NodeName>,
    /// News for peers, waiting for bytes, age or an awake radio.
    news: LowPowerBatcher<()>,
    fetches: Fetches,
    /// Peers whose cursors are not saved yet, when the process ends.
    unsaved: Vec<NodeName>,
}

impl Sync {
    /// Sync of a node that has just started.
    pub fn new(settings: &Settings) -> Self {
        let mut sync = Sync {
            wires: Wires {
                me: settings.me.clone(),
                fleet: settings.fleet.clone(),
                role: settings.role,
                key: settings.key.clone(),
                epoch: settings.epoch(),
                store: settings.store,
                starts: settings.starts.clone(),
                log: settings.log(),
                up: false,
                reason: settings.unlinked.clone(),
                connects: 0,
                next_token: 0,
                in_flight: BTreeSet::new(),
                reads: 0,
                in_flight_max: 0,
                numbers: SyncNumbers::default(),
            },
            asked: Asked::default(),
            peers: BTreeMap::new(),
            upstream: None,
            subscriptions: Vec::new(),
            sessions_max: 0,
            sessions_begun: 0,
            session_numbers_used: 0,
            window_blocks: 0,
            kernels: settings.kernels,
            incoming: BTreeMap::new(),
            lives: 0,
            serving: BTreeSet::new(),
            served: None,
            news: LowPowerBatcher::new(news_limits(settings)),
            fetches: Fetches::new(settings.offline_requests_max, settings.epoch()),
            unsaved: Vec::new(),
        };
        sync.reload(Time { mono_ms: 0, wall_ms: 0 }, settings);
        sync
    }

    /// Takes over new settings; identity and store are those of the start.
    pub fn reload(&mut self, now: Time, settings: &Settings) {
        self.wires.in_flight_max = settings.in_flight_max as usize;
        self.sessions_max = settings.sessions_max;
        self.window_blocks = settings.window_blocks;
        self.kernels = settings.kernels;
        self.news.set_limits(news_limits(settings));
        self.fetches.resize(settings.offline_requests_max);
        self.reload_peers(&settings.peers);
        let upstream = settings.upstream().map(|peer| peer.name.clone());
        let wants_others = self.subscriptions != settings.subscriptions;
        self.subscriptions.clone_from(&settings.subscriptions);
        self.upstream = upstream;
        // Only a hello tells a master of us, and what we subscribe to; without a link the next one does.
        if self.wires.up
            && let Some(upstream) = self.upstream.clone()
            && let Some(peer) = self.peers.get(&upstream)
            && (wants_others || !peer.is_active())
        {
            self.end_session(now, &upstream);
            if let Some(peer) = self.peers.get_mut(&upstream) {
                peer.hello_at_ms = Some(now.mono_ms);
            }
        }
    }

    /// A peer of another role or key is another peer: whatever was under way with the old one is forgotten.
    fn reload_peers(&mut self, peers: &[PeerSettings]) {
        let configured: BTreeMap<&NodeName, &PeerSettings> =
            peers.iter().map(|peer| (&peer.name, peer)).collect();
        let is_known = |name: &NodeName, peer: &mut Peer| {
            configured.get(name).is_some_and(|p| p.role == peer.role && p.key == peer.key)
        };
        for (_, gone) in self.peers.extract_if(.., |name, peer| !is_known(name, peer)) {
            self.session_numbers_used = self.session_numbers_used.max(gone.session_number + 1);
        }
        let peers = &self.peers;
        self.incoming.retain(|(peer, _), _| peers.contains_key(peer));
        self.serving.retain(|peer| peers.contains_key(peer));
        for (name, PeerSettings { role, key, .. }) in configured {
            if !self.peers.contains_key(name) {
                let peer = Peer::new(*role, *key, self.wires.epoch, self.session_numbers_used);
                self.peers.insert(name.clone(), peer);
            }
        }
    }

    /// The link is up: say hello to the master, who answers with its own.
    pub fn link_up(&mut self, now: Time, out: &mut Effects) {
        self.wires.up = true;
        self.wires.reason.clear();
        self.wires.connects += 1;
        if let Some(upstream) = self.upstream.clone() {
            self.say_hello(now, &upstream, out);
        }
    }

    /// The link is down: everything under way is begun again later.
    pub fn link_down(&mut self, now: Time, reason: String, out: &mut Effects) {
        self.wires.up = false;
        self.wires.reason = reason;
        self.wires.in_flight.clear();
        let names: Vec<NodeName> = self.peers.keys().cloned().collect();
        for name in names {
            self.end_session(now, &name);
        }
        self.fetches.link_down(now, out);
    }

    /// The broker has taken a message: there is room for another.
    pub fn sent(&mut self, token: u64, out: &mut Effects) {
        if self.wires.in_flight.remove(&token) {
            self.serve_all(out);
        }
    }

    /// A name was bound here.
    pub fn changed(&mut self, now: Time, bytes: u64, out: &mut Effects) {
        if self.peers.is_empty() {
            return;
        }
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        // One more news beyond the bound changes nothing: the batch is due already.
        let _ = self.news.push(now, (), bytes, Urgency::Patient);
        self.spread_news(now, false, out);
    }

    /// What waits for the radio goes now, or as soon as the link is up.
    pub fn send_now(&mut self, now: Time, out: &mut Effects) {
        self.spread_news(now, true, out);
    }

    /// Whether something is under way that needs the link. A master that does not answer is waited for, for
    /// as long as it is asked again soon.
    pub fn is_busy(&self, now: Time) -> bool {
        let is_soon = |at_ms: u64| at_ms <= now.mono_ms + 2 * RETRY_MS;
        let works = |peer: &Peer| match peer.session {
            Some(_) => peer.out.is_busy(now),
            None => peer.hello_at_ms.is_some_and(is_soon) && peer.hello_wait_ms <= 4 * RETRY_MS,
        };
        self.peers.values().any(works)
            || !self.incoming.is_empty()
            || !self.wires.in_flight.is_empty()
            || !self.news.is_empty()
            || self.fetches.deadline_ms(self.has_upstream_session()).is_some()
    }

    /// A message was not believed by Control.
    pub fn refuse(&mut self, from: &NodeName, why: String, out: &mut Effects) {
        self.wires.dropped(from, why, out);
    }

    /// A command or an answer of Control's for a peer.
    pub fn relay(&mut self, to: &NodeName, channel: Channel, payload: Bytes, out: &mut Effects) {
        if self.wires.up {
            self.wires.send(to, channel, payload, out);
        }
    }

    /// A message from a peer, as the transport gave it.
    pub fn wire(&mut self, now: Time, from: &NodeName, channel: Channel, payload: Bytes, out: &mut Effects) {
        self.wires.numbers.messages_received += 1;
        match channel {
            Channel::Blocks => self.blocks(now, from, payload, out),
            Channel::Sync => match self.believe(from, &payload) {
                Ok(message) => self.message(now, from, message, out),
                Err(why) => self.wires.dropped(from, why, out),
            },
            Channel::State => self.peer_state(now, from, &payload, out),
            Channel::Command | Channel::Answer => {}
        }
        self.ask_fetches(now, out);
        // The radio is awake now; what waits for it need not wait longer.
        self.spread_news(now, true, out);
    }

    /// The message, if a known peer signed it for this node.
    fn believe(&self, from: &NodeName, payload: &[u8]) -> Result<SyncMessage, String> {
        let peer = self.peers.get(from).ok_or("no [[peer]] of this name is configured here")?;
        if payload.len() > crate::limits::MESSAGE_BYTES_MAX {
            return Err(wire::WireError::Large(payload.len()).to_string());
        }
        let between = Between { fleet: &self.wires.fleet, from, to: &self.wires.me, channel: Channel::Sync };
        let (version, body) = seal::open(&peer.key, between, payload).map_err(|error| error.to_string())?;
        SyncMessage::decode(version, body).map_err(|error| error.to_string())
    }

    fn message(&mut self, now: Time, from: &NodeName, message: SyncMessage, out: &mut Effects) {
        let has_session = self.peers.get(from).is_some_and(|peer| peer.session.is_some());
        if let SyncMessage::Hello(hello) = message {
            return self.hello(now, from, hello, out);
        }
        if message == SyncMessage::Later {
            return self.later(now, from);
        }
        if !self.peers.get(from).is_some_and(|peer| session::are_related(peer.role, self.wires.role)) {
            let why = "nodes of its role and of this one have nothing to say to each other";
            return self.wires.dropped(from, why.into(), out);
        }
        if !has_session {
            // It takes us to be in a session that we do not remember: we have started again since.
            return self.say_hello(now, from, out);
        }
        match message {
            SyncMessage::Hello(_) | SyncMessage::Later => {}
            SyncMessage::Announce(announce) => {
                self.peer_has(from, announce.log);
                self.announced(now, from, announce, out);
            }
            SyncMessage::Want(want) => self.wanted(now, from, want, out),
            SyncMessage::Credit { group, round, limit } => self.credited(from, group, round, limit, out),
            SyncMessage::Ack { group, outcomes, log } => {
                self.peer_has(from, log);
                self.acknowledged(now, from, group, &outcomes, out);
            }
            SyncMessage::Busy { group } => self.peer_is_busy(now, from, group),
            SyncMessage::Fetch { request, target } => self.fetch_asked(from, request, target, out),
            SyncMessage::NotFound { request } => self.fetches.not_found(request, out),
            SyncMessage::Unable { request, why } => self.fetches.unable(now, request, why, out),
            SyncMessage::Missing { group, round, id } => self.missing(now, from, group, round, id, out),
        }
    }

    fn peer_has(&mut self, from: &NodeName, log: u64) {
        if let Some(peer) = self.peers.get_mut(from) {
            peer.out.peer_has(log);
        }
    }

    /// An answer of the store.
    pub fn answered(&mut self, now: Time, number: u32, answer: Answer, out: &mut Effects) {
        let Some(purpose) = self.asked.open.remove(&number) else { return };
        self.wires.log = self.wires.log.max(newest(&answer));
        match purpose {
            Purpose::Cursor { peer } => self.cursor_loaded(now, &peer, answer, out),
            Purpose::Changes { peer, after } => self.changes_read(now, &peer, after, answer, out),
            Purpose::Untaken { peer, group, entry } => {
                self.untaken_found(now, &peer, group, entry, answer, out);
            }
            Purpose::Manifest { peer, group, life } => {
                self.manifest_read(&peer, group, life, answer, out);
            }
            Purpose::Blocks { peer, group, life } => {
                self.wires.reads -= 1;
                self.blocks_read(now, &peer, group, life, answer, out);
                self.serve_all(out);
            }
            Purpose::Find { peer, request, target } => self.found(now, &peer, request, target, answer, out),
            Purpose::FindBlock { peer, request, root } => {
                self.found_block(now, &peer, request, root, answer, out);
            }
            Purpose::Receive { peer, group, life, step } => {
                self.receive_step(now, (&peer, group, life), step, group::News::Answer(answer), out);
            }
            Purpose::CursorSaved { .. } => {}
        }
        self.ask_fetches(now, out);
    }

    /// A write is durable, or failed.
    pub fn written(&mut self, now: Time, number: u32, done: Result<ChangeDone, Failure>, out: &mut Effects) {
        match self.asked.open.remove(&number) {
            Some(Purpose::CursorSaved { peer }) => {
                if let Some(peer) = self.peers.get_mut(&peer) {
                    peer.out.saved(now, done.is_ok());
                }
            }
            Some(Purpose::Untaken { peer, group, entry }) => match done {
                Ok(_) => self.mark_kept(now, &peer, group, entry, out),
                Err(_) => self.announce_again(&peer, group, entry),
            },
            Some(Purpose::Receive { peer, group, life, step }) => {
                self.receive_step(now, (&peer, group, life), step, group::News::Written(done), out);
            }
            Some(_) | None => {}
        }
        self.ask_fetches(now, out);
    }

    /// A deadline has come.
    pub fn wake(&mut self, now: Time, out: &mut Effects) {
        self.spread_news(now, false, out);
        if self.wires.up {
            self.repeat_hellos(now, out);
            self.read_again(now, out);
            self.repeat_announcements(now, out);
            self.repeat_wants(now, out);
        }
        self.fetches.expire(now, out);
        self.ask_fetches(now, out);
        self.save_cursors(now, out);
    }

    /// The earliest moment something here must be done.
    pub fn deadline(&self) -> Option<Deadline> {
        let mut earliest = self.news.deadline().filter(|_| self.wires.up);
        let mut consider = |at_ms: Option<u64>, why| {
            if let Some(at_ms) = at_ms
                && earliest.is_none_or(|deadline| at_ms < deadline.at_ms)
            {
                earliest = Some(Deadline { at_ms, slack_ms: 1_000, why });
            }
        };
        if self.wires.up {
            for peer in self.peers.values().filter(|peer| peer.is_active()) {
                consider(peer.hello_at_ms, "hello to a peer");
                consider(peer.out.save_at_ms(), "save a cursor");
                if peer.session.is_some() {
                    consider(peer.out.retry_at_ms(), "announce again");
                    consider(peer.out.read_at_ms, "read the log again");
                }
            }
            consider(self.incoming.values().map(|group| group.retry_at_ms).min(), "want again");
        }
        let in_session = self.has_upstream_session();
        consider(self.fetches.deadline_ms(in_session), "a fetch without an answer");
        earliest
    }

    /// News whose time has come go to every peer with a session.
    fn spread_news(&mut self, now: Time, awake: bool, out: &mut Effects) {
        if !self.wires.up || self.news.due(now, awake).is_none() {
            return;
        }
        while let Some(reason) = self.news.due(now, true) {
            self.news.take(reason);
        }
        let peers: Vec<NodeName> = self.sessions().cloned().collect();
        for peer in peers {
            if let Some(peer) = self.peers.get_mut(&peer) {
                peer.out.more = true;
            }
            self.pump(now, &peer, out);
        }
    }

    fn sessions(&self) -> impl Iterator<Item = &NodeName> {
        self.peers.iter().filter(|(_, peer)| peer.session.is_some()).map(|(name, _)| name)
    }

    /// Two versions of a name are kept: counted, and said.
    pub fn conflict(&mut self, name: &Name, kept_as: Option<Name>, out: &mut Effects) {
        self.wires.numbers.conflicts += 1;
        let names = &mut self.wires.numbers.conflicted_names;
        if !names.contains(name) {
            if names.len() == CONFLICTS_SHOWN {
                names.remove(0);
            }
            names.push(name.clone());
        }
        out.note(Note::Conflict { name: name.clone(), kept_as });
    }

    /// Everything a cleaning must not take though no name leads to it yet: roots, depths and sizes.
    pub fn roots(&self) -> Vec<(BlockId, u8, u64)> {
        self.incoming.values().flat_map(InGroup::roots).collect()
    }

    /// Counters for `status`.
    pub fn numbers(&self) -> &SyncNumbers {
        &self.wires.numbers
    }

    /// The link, for `status`.
    pub fn link(&self) -> LinkStatus {
        LinkStatus { up: self.wires.up, reason: self.wires.reason.clone(), connects: self.wires.connects }
    }

    /// The peers with a session and the master, for `status`.
    pub fn peer_statuses(&self) -> Vec<PeerStatus> {
        let shown = |(name, peer): (&NodeName, &Peer)| {
            let shown = peer.session.is_some() || self.upstream.as_ref() == Some(name);
            shown.then(|| PeerStatus {
                node: name.clone(),
                role: peer.role,
                session: peer.session.is_some(),
                acknowledged_seq: peer.out.cursor,
                outbox_empty: peer.out.is_empty() && self.news.is_empty(),
            })
        };
        self.peers.iter().filter_map(shown).collect()
    }
}

impl Peer {
    fn new(role: Role, key: ed25519_dalek::VerifyingKey, epoch: u64, session_number: u64) -> Self {
        Peer {
            role,
            key,
            session: None,
            session_number,
            begun: 0,
            out: Outbox::new(epoch),
            hello_at_ms: None,
            hello_wait_ms: RETRY_MS,
        }
    }

    fn is_active(&self) -> bool {
        self.session.is_some() || self.hello_at_ms.is_some()
    }
}

/// The newest change that an answer of the store shows, by its number.
fn newest(answer: &Answer) -> u64 {
    let of = |bound: &Bound| bound.seq;
    let newest = if let Answer::Bindings(found) = answer {
        found.iter().flatten().map(of).max()
    } else if let Answer::Page(page) = answer {
        page.iter().map(|(_, bound)| of(bound)).max()
    } else if let Answer::Found { binding, .. } = answer {
        binding.as_ref().map(|(_, bound)| of(bound))
    } else {
        None
    };
    newest.unwrap_or(0)
}

fn news_limits(settings: &Settings) -> Limits {
    Limits {
        bytes: settings.send.bytes,
        count: NEWS_MAX,
        age_ms: settings.send.age_ms,
        bytes_held_max: usize::MAX,
        count_held_max: NEWS_MAX,
    }
}
