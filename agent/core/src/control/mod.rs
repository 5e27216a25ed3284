//! The Control actor: answers requests, from local connections and, signed, over MQTT.
//!
//! Refused: commands that are unsigned, expired, repeated, or of a role that may not command; puts on a
//! leecher; requests that carry data over MQTT. Bounds: connections, requests of each, one export of each.
//! A connection is read only while there is room for what it may say.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "an answer of another kind is one case, however many kinds there are"
)]

mod export;
pub mod remote;

use crate::binding::{Binding, Content, Meta, Stored};
use crate::id::{BlockId, NodeName};
use crate::limits::{CLIENTS_MAX, LIST_PAGE, MESSAGE_BYTES_MAX, REQUESTS_OPEN_MAX, REQUESTS_PER_CLIENT_MAX};
use crate::message::{
    Actor, Answer, Bound, Caller, Change, ChangeDone, Channel, ClientId, Effect, Effects, FetchDone, Haste,
    Message, PowerAsk, Question, Ticket,
};
use crate::name::Name;
use crate::power::report::PowerReport;
use crate::request::{
    Failure, FailureKind, Listed, ProcessNumbers, Request, Response, Status, StoreNumbers, Target,
};
use crate::role::{Role, may_command};
use crate::seal::Between;
use crate::settings::Settings;
use crate::time::{Deadline, Time};
use bytes::Bytes;
use export::{Export, Next, listed};
use remote::Envelope;
use std::collections::{BTreeMap, BTreeSet};

/// Milliseconds a command over MQTT may take to be answered.
const COMMAND_MS: u64 = 30_000;

/// Who is to be answered.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// A local connection.
    Local(Caller),
    /// A node, and the counter of its command.
    Remote(NodeName, u64),
}

/// What a question, write or fetch of this actor was for.
enum Purpose {
    /// Obeyed counters of all signers, at the start.
    Counters,
    /// A signer's counter.
    Counter,
    Flush(Origin),
    List(Origin),
    /// The binding to delete.
    Remove(Origin, Name),
    /// The deletion.
    Removed(Origin, Name),
    /// The object to send.
    Find(Wish),
    /// The bare block to send.
    FindBlock(Wish, BlockId),
    /// A block of an object being sent.
    Block(Caller),
    /// The object of a fetch on behalf of a `Get`.
    FetchForGet(Wish),
    Fetch(Origin),
    /// The object a fetch has brought.
    Fetched(Origin, Name),
    Numbers(Origin),
    Rebuild(Origin),
    Verify(Origin),
    Power(Origin),
}

/// A `Get` that is looking for its object.
#[derive(Clone)]
struct Wish {
    caller: Caller,
    target: Target,
    offset: u64,
    length: Option<u64>,
    fetched: bool,
}

#[derive(Default)]
struct Client {
    open: BTreeSet<u32>,
    export: Option<(Caller, Export)>,
    /// A frame was asked for and has not come.
    pulled: bool,
    /// Ingest has said that it can take no more for now.
    held: bool,
}

/// A command of ours that a peer has not answered.
struct Sent {
    origin: Origin,
    to: NodeName,
    expires_at_ms: u64,
}

/// The actor.
pub struct Control {
    settings: Settings,
    clients: BTreeMap<ClientId, Client>,
    asked: BTreeMap<u32, Purpose>,
    next_ticket: u32,
    /// Statuses that wait for the store's and the process's numbers.
    statuses: Vec<(Origin, Option<StoreNumbers>)>,
    /// The greatest counter obeyed of each signer; `None` until they are read from the store.
    obeyed: Option<BTreeMap<NodeName, u64>>,
    sent: BTreeMap<u64, Sent>,
    last_counter: u64,
}

impl Control {
    /// The actor of a node that has just started.
    pub fn new(settings: &Settings) -> Self {
        Control {
            settings: settings.clone(),
            clients: BTreeMap::new(),
            asked: BTreeMap::new(),
            next_ticket: 0,
            statuses: Vec::new(),
            obeyed: None,
            sent: BTreeMap::new(),
            last_counter: 0,
        }
    }

    /// Takes over new settings.
    pub fn reload(&mut self, settings: &Settings) {
        self.settings = settings.clone();
    }

    /// Reads which commands were obeyed before the last stop.
    pub fn start(&mut self, out: &mut Effects) {
        self.ask(Purpose::Counters, Question::Settings("counter/".into()), out);
    }

    /// A connection was made.
    pub fn client_came(&mut self, client: ClientId, out: &mut Effects) {
        if self.clients.len() >= CLIENTS_MAX {
            let failure =
                Failure::new(FailureKind::Busy, format!("{CLIENTS_MAX} connections are open; try again"));
            let response = Box::new(Response::Error(failure));
            return out.emit(Effect::Reply { caller: Caller { client, number: 0 }, response });
        }
        self.clients.insert(client, Client::default());
        self.pull(client, out);
    }

    /// A connection is gone.
    pub fn client_gone(&mut self, client: ClientId, out: &mut Effects) {
        self.clients.remove(&client);
        out.tell(Message::PutsGone(client));
    }

    /// A request of a connection.
    pub fn client_asked(&mut self, now: Time, caller: Caller, request: Request, out: &mut Effects) {
        let Some(client) = self.clients.get_mut(&caller.client) else { return };
        client.pulled = false;
        if !client.open.insert(caller.number) {
            let failure = Failure::new(FailureKind::Invalid, "a request with this number is still open");
            let response = Box::new(Response::Error(failure));
            return out.emit(Effect::Reply { caller, response });
        }
        self.request(now, Origin::Local(caller), request, out);
        self.pull(caller.client, out);
    }

    /// Data of a put, or its end.
    pub fn client_data(&mut self, caller: Caller, bytes: Option<Bytes>, out: &mut Effects) {
        let Some(client) = self.clients.get_mut(&caller.client) else { return };
        client.pulled = false;
        client.held = true;
        out.tell(match bytes {
            Some(bytes) => Message::PutData { caller, bytes },
            None => Message::PutEnd { caller },
        });
    }

    /// Ingest has room again.
    pub fn put_ready(&mut self, client: ClientId, out: &mut Effects) {
        if let Some(open) = self.clients.get_mut(&client) {
            open.held = false;
        }
        self.pull(client, out);
    }

    fn pull(&mut self, id: ClientId, out: &mut Effects) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        if !client.pulled && !client.held && client.open.len() < REQUESTS_PER_CLIENT_MAX {
            client.pulled = true;
            out.emit(Effect::Pull(id));
        }
    }

    fn request(&mut self, now: Time, origin: Origin, request: Request, out: &mut Effects) {
        match (request, &origin) {
            (Request::Put { name, meta }, Origin::Local(caller)) => self.put(*caller, name, meta, out),
            (Request::Get { target, offset, length }, Origin::Local(caller)) => {
                self.find(Wish { caller: *caller, target, offset, length, fetched: false }, None, out);
            }
            (Request::Remote { node, request }, Origin::Local(_)) => {
                self.command(now, origin, node, *request, out);
            }
            (Request::Put { .. } | Request::Get { .. } | Request::Remote { .. }, Origin::Remote(..)) => {
                let why = "this request carries data or another command and is answered locally only";
                self.respond(origin, Err(Failure::new(FailureKind::Invalid, why)), out);
            }
            (Request::Send, _) => {
                out.tell(Message::SendNow);
                self.ask_power(origin, PowerAsk::Report, out);
            }
            (Request::Flush, _) => {
                if let Origin::Local(caller) = &origin {
                    out.tell(Message::PutsHurry(caller.client));
                }
                let ticket = self.ticket(Purpose::Flush(origin));
                out.tell(Message::Barrier { ticket });
            }
            (Request::List { prefix, after }, Origin::Local(_)) => {
                self.ask(Purpose::List(origin), Question::List { prefix, after, limit: LIST_PAGE }, out);
            }
            (Request::List { prefix, after }, Origin::Remote(..)) => {
                let limit = LIST_PAGE / 4; // a page must fit one message
                self.ask(Purpose::List(origin), Question::List { prefix, after, limit }, out);
            }
            (Request::Remove { name }, _) => {
                let question = Question::Lookup(vec![name.clone()]);
                self.ask(Purpose::Remove(origin, name), question, out);
            }
            (Request::Fetch { target }, _) => {
                let ticket = self.ticket(Purpose::Fetch(origin));
                out.tell(Message::Fetch { ticket, target, wait: true });
            }
            (Request::Status, _) => {
                self.statuses.push((origin.clone(), None));
                self.ask(Purpose::Numbers(origin), Question::Numbers, out);
            }
            (Request::Power, _) => self.ask_power(origin, PowerAsk::Report, out),
            (Request::Profile { profile, seconds }, _) => {
                self.ask_power(origin, PowerAsk::Set { profile, seconds }, out);
            }
            (Request::Verify, _) => {
                let ticket = self.ticket(Purpose::Verify(origin));
                out.tell(Message::VerifyAll { ticket });
            }
            (Request::IndexRebuild, _) => self.ask(Purpose::Rebuild(origin), Question::Rebuild, out),
        }
    }

    fn ask_power(&mut self, origin: Origin, ask: PowerAsk, out: &mut Effects) {
        let ticket = self.ticket(Purpose::Power(origin));
        out.tell(Message::Power { ticket, ask });
    }

    /// News of power.
    pub fn power_news(&mut self, number: u32, done: Result<Box<PowerReport>, Failure>, out: &mut Effects) {
        if let Some(Purpose::Power(origin)) = self.asked.remove(&number) {
            self.respond(origin, done.map(Response::Power), out);
        }
    }

    fn put(&mut self, caller: Caller, name: Name, meta: Meta, out: &mut Effects) {
        if self.settings.role == Role::Leecher {
            let why = "a leecher keeps nothing of its own: put on a worker or on the master";
            let failure = Failure::new(FailureKind::Forbidden, why);
            return self.respond(Origin::Local(caller), Err(failure), out);
        }
        out.tell(Message::PutBegin { caller, name, meta });
    }

    /// A put is finished.
    pub fn put_done(&mut self, caller: Caller, done: Result<Response, Failure>, out: &mut Effects) {
        self.respond(Origin::Local(caller), done, out);
    }

    /// Looks for the object of a `Get`.
    fn find(&mut self, wish: Wish, after: Option<Name>, out: &mut Effects) {
        let busy = self.clients.get(&wish.caller.client).is_none_or(|client| client.export.is_some());
        if busy {
            let why = "this connection is being sent an object already; use another";
            let failure = Failure::new(FailureKind::Busy, why);
            return self.respond(Origin::Local(wish.caller), Err(failure), out);
        }
        let question = match &wish.target {
            Target::Name(name) => Question::Lookup(vec![name.clone()]),
            Target::Cid(root) => Question::Find { root: *root, after },
        };
        self.ask(Purpose::Find(wish), question, out);
    }

    fn found(&mut self, wish: Wish, answer: Answer, out: &mut Effects) {
        let found = match (&wish.target, answer) {
            (Target::Name(name), Answer::Bindings(found)) => found
                .into_iter()
                .next()
                .flatten()
                .and_then(|bound| decode(&bound))
                .and_then(|binding| listed(name.clone(), binding)),
            (Target::Cid(_), Answer::Found { binding: Some((name, bound)), .. }) => {
                decode(&bound).and_then(|binding| listed(name, binding))
            }
            (Target::Cid(_), Answer::Found { binding: None, next: Some(next) }) => {
                return self.find(wish, Some(next), out);
            }
            (Target::Cid(root), Answer::Found { binding: None, next: None }) => {
                let root = *root;
                return self.ask(Purpose::FindBlock(wish, root), Question::Read(root), out);
            }
            (_, Answer::Failed(failure)) => {
                return self.respond(Origin::Local(wish.caller), Err(failure), out);
            }
            (_, _) => None,
        };
        match found {
            Some((object, depth)) => self.export(wish, object, depth, out),
            None => self.not_here(wish, out),
        }
    }

    fn found_block(&mut self, wish: Wish, root: BlockId, answer: Answer, out: &mut Effects) {
        match answer {
            Answer::Block(Some(bytes)) => {
                let meta = Meta { size: bytes.len() as u64, mtime_ms: 0, mode: 0o644 };
                let name = Name::parse(&format!("cid/{root}")).expect("a CID is letters and digits");
                let origin = self.settings.me.clone();
                self.export(wish, Listed { name, cid: root, meta, origin, conflict_of: None }, 0, out);
            }
            Answer::Failed(failure) => self.respond(Origin::Local(wish.caller), Err(failure), out),
            _ => self.not_here(wish, out),
        }
    }

    /// What is not here may be on the master.
    fn not_here(&mut self, wish: Wish, out: &mut Effects) {
        if wish.fetched || self.settings.upstream().is_none() {
            let why = format!("{} is not here; `larder ls` shows what is", wish.target);
            return self.respond(
                Origin::Local(wish.caller),
                Err(Failure::new(FailureKind::NotFound, why)),
                out,
            );
        }
        let target = wish.target.clone();
        let ticket = self.ticket(Purpose::FetchForGet(Wish { fetched: true, ..wish }));
        out.tell(Message::Fetch { ticket, target, wait: false });
    }

    fn export(&mut self, wish: Wish, object: Listed, depth: u8, out: &mut Effects) {
        let Some(client) = self.clients.get_mut(&wish.caller.client) else { return };
        let export = Export::new(&object, depth, wish.offset, wish.length);
        client.export = Some((wish.caller, export));
        let response = Box::new(Response::Object { object });
        out.emit(Effect::Reply { caller: wish.caller, response });
        self.export_on(wish.caller.client, out);
    }

    /// The connection has taken the last data frame.
    pub fn client_ready(&mut self, client: ClientId, out: &mut Effects) {
        self.export_on(client, out);
    }

    fn export_on(&mut self, id: ClientId, out: &mut Effects) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        let Some((caller, export)) = &mut client.export else { return };
        let caller = *caller;
        match export.next() {
            Next::Read(block) => self.ask(Purpose::Block(caller), Question::Read(block), out),
            Next::Send(bytes) => out.emit(Effect::ReplyData { caller, bytes }),
            Next::Done => {
                client.export = None;
                client.open.remove(&caller.number);
                out.emit(Effect::ReplyDataEnd { caller });
                self.pull(id, out);
            }
            Next::Failed(failure) => self.export_failed(caller, failure, out),
        }
    }

    fn export_failed(&mut self, caller: Caller, failure: Failure, out: &mut Effects) {
        if let Some(client) = self.clients.get_mut(&caller.client) {
            client.export = None;
        }
        self.respond(Origin::Local(caller), Err(failure), out);
    }

    fn export_block(&mut self, caller: Caller, answer: Answer, out: &mut Effects) {
        let Some(client) = self.clients.get_mut(&caller.client) else { return };
        let Some((of, export)) = &mut client.export else { return };
        if *of != caller {
            return;
        }
        let block = match answer {
            Answer::Block(block) => Ok(block),
            Answer::Failed(failure) => Err(failure),
            _ => Ok(None),
        };
        match export.supply(block) {
            Ok(()) => self.export_on(caller.client, out),
            Err(failure) => self.export_failed(caller, failure, out),
        }
    }

    fn remove(&mut self, now: Time, origin: Origin, name: Name, answer: Answer, out: &mut Effects) {
        let bound = match answer {
            Answer::Bindings(found) => found.into_iter().next().flatten(),
            Answer::Failed(failure) => return self.respond(origin, Err(failure), out),
            _ => None,
        };
        let expected_seq = bound.as_ref().map(|bound| bound.seq);
        let old = bound.as_ref().and_then(decode).filter(|old| old.content != Content::Deleted);
        let Some(mut binding) = old else {
            let why = format!("{} is not here; `larder ls` shows what is", name.as_str());
            return self.respond(origin, Err(Failure::new(FailureKind::NotFound, why)), out);
        };
        if let Err(error) = binding.version.write(&self.settings.me, now.wall_ms) {
            return self.respond(origin, Err(Failure::new(FailureKind::Invalid, error.to_string())), out);
        }
        binding.content = Content::Deleted;
        binding.meta.size = 0;
        binding.origin = self.settings.me.clone();
        let value = Bytes::from(Stored { binding, via: None, refused: false }.encode());
        let change = Change::Bind { name: name.clone(), value, expected_seq };
        let ticket = self.ticket(Purpose::Removed(origin, name));
        out.tell(Message::Write { ticket, change, haste: Haste::Now });
    }

    /// Signs a command and sends it to another node.
    fn command(&mut self, now: Time, origin: Origin, to: NodeName, request: Request, out: &mut Effects) {
        if !request.may_be_remote() {
            let why = "put and get carry data, which travels by sync: run them on the node itself";
            return self.respond(origin, Err(Failure::new(FailureKind::Invalid, why)), out);
        }
        if to == self.settings.me {
            return self.request(now, origin, request, out);
        }
        let Some(peer) = self.settings.peers.iter().find(|peer| peer.name == to) else {
            let why = format!("no [[peer]] named {to} is configured here");
            return self.respond(origin, Err(Failure::new(FailureKind::Invalid, why)), out);
        };
        if !may_command(self.settings.role, peer.role) {
            let why = format!("a {} may not command a {}: ask on {to} itself", self.settings.role, peer.role);
            return self.respond(origin, Err(Failure::new(FailureKind::Forbidden, why)), out);
        }
        self.last_counter = (self.last_counter + 1).max(u64::try_from(now.wall_ms).unwrap_or(0) * 1024);
        let counter = self.last_counter;
        let body = serde_json::to_string(&request).expect("requests hold only types that JSON has");
        let between = self.between(&to, Channel::Command);
        let expires_ms = now.wall_ms + COMMAND_MS as i64;
        let envelope = Envelope::seal(&self.settings.key, between, counter, expires_ms, body);
        let payload = Bytes::from(envelope.encode());
        out.tell(Message::Post { to: to.clone(), channel: Channel::Command, payload });
        self.sent.insert(counter, Sent { origin, to, expires_at_ms: now.mono_ms + COMMAND_MS });
    }

    fn between<'a>(&'a self, to: &'a NodeName, channel: Channel) -> Between<'a> {
        Between { fleet: &self.settings.fleet, from: &self.settings.me, to, channel }
    }

    /// A command or an answer from another node; what is not believed is said to the caller, for counting.
    pub fn wire(
        &mut self,
        now: Time,
        from: &NodeName,
        channel: Channel,
        payload: &[u8],
        out: &mut Effects,
    ) -> Result<(), String> {
        let peer = self.settings.peers.iter().find(|peer| peer.name == *from);
        let peer = peer.ok_or("no [[peer]] of this name is configured here")?;
        let between = Between { fleet: &self.settings.fleet, from, to: &self.settings.me, channel };
        let envelope = Envelope::open(payload, &peer.key, between).map_err(|error| error.to_string())?;
        if channel == Channel::Answer {
            return self.answer_came(from, &envelope, out);
        }
        let role = peer.role;
        if !may_command(role, self.settings.role) {
            return Err(format!("a {role} may not command a {}", self.settings.role));
        }
        if let Err(why) = self.check_command(now, &envelope) {
            // an honest asker shall not wait for an answer that can not come
            let origin = Origin::Remote(from.clone(), envelope.counter);
            self.respond(origin, Err(Failure::new(FailureKind::Forbidden, why.clone())), out);
            return Err(why);
        }
        if self.obeyed.is_none() && !self.asked.values().any(|purpose| matches!(purpose, Purpose::Counters)) {
            self.start(out);
        }
        if self.asked.len() >= REQUESTS_OPEN_MAX {
            return Err("too many requests are open; try again".into());
        }
        let obeyed =
            self.obeyed.as_mut().ok_or("commands are obeyed once the store has been read; try again")?;
        let last = obeyed.entry(from.clone()).or_insert(0);
        if envelope.counter <= *last {
            return Err(format!("command {} was obeyed already", envelope.counter));
        }
        *last = envelope.counter;
        let origin = Origin::Remote(from.clone(), envelope.counter);
        match serde_json::from_str::<Request>(&envelope.body) {
            Err(error) => {
                let failure = Failure::new(FailureKind::Invalid, format!("no such request: {error}"));
                self.respond(origin, Err(failure), out);
            }
            Ok(request) => {
                if request.changes_something() {
                    self.save_counter(from, envelope.counter, out);
                }
                self.request(now, origin, request, out);
            }
        }
        Ok(())
    }

    fn check_command(&self, now: Time, envelope: &Envelope) -> Result<(), String> {
        if !self.settings.commands {
            return Err("commands over MQTT are switched off here (node.commands)".into());
        }
        envelope.check_expiry(now.wall_ms).map_err(|error| error.to_string())
    }

    /// The counter is handed over before the effect, so it is durable no later than that.
    fn save_counter(&mut self, from: &NodeName, counter: u64, out: &mut Effects) {
        let value = Bytes::copy_from_slice(&counter.to_le_bytes());
        let change = Change::Set { key: format!("counter/{from}"), value };
        let ticket = self.ticket(Purpose::Counter);
        out.tell(Message::Write { ticket, change, haste: Haste::Patient });
    }

    fn answer_came(&mut self, from: &NodeName, envelope: &Envelope, out: &mut Effects) -> Result<(), String> {
        let Some(sent) = self.sent.get(&envelope.counter).filter(|sent| sent.to == *from) else {
            return Err("it answers a command that is not open".into());
        };
        let response: Response =
            serde_json::from_str(&envelope.body).map_err(|error| format!("no such answer: {error}"))?;
        let origin = sent.origin.clone();
        if !matches!(response, Response::Progress { .. } | Response::Queued { .. }) {
            self.sent.remove(&envelope.counter);
        }
        self.respond(origin, Ok(response), out);
        Ok(())
    }

    /// An answer of the store.
    pub fn answered(&mut self, now: Time, number: u32, answer: Answer, out: &mut Effects) {
        match self.asked.remove(&number) {
            Some(Purpose::Counters) => self.obeyed = read_counters(answer),
            Some(Purpose::List(origin)) => self.list_read(origin, answer, out),
            Some(Purpose::Remove(origin, name)) => self.remove(now, origin, name, answer, out),
            Some(Purpose::Find(wish)) => self.found(wish, answer, out),
            Some(Purpose::FindBlock(wish, root)) => self.found_block(wish, root, answer, out),
            Some(Purpose::Block(caller)) => self.export_block(caller, answer, out),
            Some(Purpose::Fetched(origin, name)) => self.fetched_object(origin, name, answer, out),
            Some(Purpose::Numbers(origin)) => self.numbers_read(&origin, answer, out),
            Some(Purpose::Rebuild(origin)) => {
                let done = match answer {
                    Answer::Rebuilt { blocks, names } => Ok(Response::Rebuilt { blocks, names }),
                    answer => Err(failure_of(answer)),
                };
                self.respond(origin, done, out);
            }
            Some(
                Purpose::Counter
                | Purpose::Flush(_)
                | Purpose::Removed(..)
                | Purpose::FetchForGet(_)
                | Purpose::Fetch(_)
                | Purpose::Verify(_)
                | Purpose::Power(_),
            )
            | None => {}
        }
    }

    /// A write is durable, or failed.
    pub fn written(&mut self, number: u32, done: Result<ChangeDone, Failure>, out: &mut Effects) {
        match (self.asked.remove(&number), done) {
            (Some(Purpose::Flush(origin)), done) => {
                self.respond(origin, done.map(|_| Response::Flushed), out);
            }
            (Some(Purpose::Removed(origin, name)), Ok(ChangeDone::Outrun)) => {
                let question = Question::Lookup(vec![name.clone()]);
                self.ask(Purpose::Remove(origin, name), question, out);
            }
            (Some(Purpose::Removed(origin, name)), done) => {
                out.tell(Message::Changed { bytes: 0 });
                self.respond(origin, done.map(|_| Response::Removed { name }), out);
            }
            (_, _) => {}
        }
    }

    /// News of a fetch.
    pub fn fetched(&mut self, number: u32, done: Result<FetchDone, Failure>, out: &mut Effects) {
        match (self.asked.remove(&number), done) {
            (Some(Purpose::FetchForGet(wish)), Ok(FetchDone::Here(name))) => {
                self.find(Wish { target: Target::Name(name), ..wish }, None, out);
            }
            (Some(Purpose::FetchForGet(wish)), Ok(FetchDone::Waiting(_))) => self.not_here(wish, out),
            (Some(Purpose::FetchForGet(wish)), Err(failure)) => {
                self.respond(Origin::Local(wish.caller), Err(failure), out);
            }
            (Some(Purpose::Fetch(origin)), Ok(FetchDone::Here(name))) => {
                let question = Question::Lookup(vec![name.clone()]);
                self.ask(Purpose::Fetched(origin, name), question, out);
            }
            (Some(Purpose::Fetch(origin)), Ok(FetchDone::Waiting(waiting))) => {
                self.respond(origin, Ok(Response::Queued { waiting }), out);
            }
            (Some(Purpose::Fetch(origin)), Err(failure)) => self.respond(origin, Err(failure), out),
            (_, _) => {}
        }
    }

    fn fetched_object(&mut self, origin: Origin, name: Name, answer: Answer, out: &mut Effects) {
        let bound = match answer {
            Answer::Bindings(found) => found.into_iter().next().flatten(),
            _ => None,
        };
        let object = bound.as_ref().and_then(decode).and_then(|binding| listed(name.clone(), binding));
        let gone = || Failure::new(FailureKind::NotFound, format!("{} is deleted", name.as_str()));
        self.respond(origin, object.map(|(object, _)| Response::Fetched { object }).ok_or_else(gone), out);
    }

    fn list_read(&mut self, origin: Origin, answer: Answer, out: &mut Effects) {
        let page = match answer {
            Answer::Page(page) => page,
            answer => return self.respond(origin, Err(failure_of(answer)), out),
        };
        let limit = if matches!(origin, Origin::Local(_)) { LIST_PAGE } else { LIST_PAGE / 4 };
        let next = if page.len() >= limit { page.last().map(|(name, _)| name.clone()) } else { None };
        let shown = |(name, bound): (Name, Bound)| listed(name, decode(&bound)?).map(|(object, _)| object);
        let objects = page.into_iter().filter_map(shown).collect();
        let mut names = Response::Names { objects, next };
        // Long names: over MQTT the page ends where the message does.
        while let Response::Names { objects, next } = &mut names
            && matches!(origin, Origin::Remote(..))
            && objects.len() > 1
            && serde_json::to_string(&objects).is_ok_and(|text| text.len() > MESSAGE_BYTES_MAX / 4)
        {
            objects.truncate(objects.len() / 2);
            *next = objects.last().map(|object| object.name.clone());
        }
        self.respond(origin, Ok(names), out);
    }

    fn numbers_read(&mut self, origin: &Origin, answer: Answer, out: &mut Effects) {
        let waiting = self.statuses.iter().position(|(waiting, _)| waiting == origin);
        match (waiting, answer) {
            (Some(index), Answer::Numbers(numbers)) => {
                self.statuses[index].1 = Some(*numbers);
                out.emit(Effect::Measure);
            }
            (Some(index), answer) => {
                let (origin, _) = self.statuses.remove(index);
                self.respond(origin, Err(failure_of(answer)), out);
            }
            (None, _) => {}
        }
    }

    /// The process's numbers: every status whose store numbers are here can be given.
    pub fn measured(&mut self, process: &ProcessNumbers, status: &Status, out: &mut Effects) {
        let (ready, waiting) =
            std::mem::take(&mut self.statuses).into_iter().partition(|(_, numbers)| numbers.is_some());
        self.statuses = waiting;
        for (origin, numbers) in ready {
            let status = Status {
                node: self.settings.me.to_string(),
                fleet: self.settings.fleet.clone(),
                role: Some(self.settings.role),
                version: self.settings.version.clone(),
                settings: self.settings.in_force.clone(),
                store: numbers.unwrap_or_default(),
                process: process.clone(),
                ..status.clone()
            };
            self.respond(origin, Ok(Response::Status(Box::new(status))), out);
        }
    }

    /// News of a verification.
    pub fn verify_news(&mut self, number: u32, news: Response, out: &mut Effects) {
        let Some(Purpose::Verify(origin)) = self.asked.get(&number) else { return };
        let origin = origin.clone();
        if !matches!(news, Response::Progress { .. }) {
            self.asked.remove(&number);
        } else if matches!(origin, Origin::Remote(..)) {
            return; // a radio is no place for a progress bar
        }
        self.respond(origin, Ok(news), out);
    }

    fn respond(&mut self, origin: Origin, done: Result<Response, Failure>, out: &mut Effects) {
        let response = done.unwrap_or_else(Response::Error);
        match origin {
            Origin::Local(caller) => {
                let is_last = !matches!(response, Response::Progress { .. });
                let Some(client) = self.clients.get_mut(&caller.client) else { return };
                if is_last {
                    client.open.remove(&caller.number);
                }
                out.emit(Effect::Reply { caller, response: Box::new(response) });
                if is_last {
                    self.pull(caller.client, out);
                }
            }
            Origin::Remote(node, counter) => {
                let mut body = answer_text(&response);
                if body.len() > MESSAGE_BYTES_MAX / 2 {
                    let why = "the answer does not fit one message; ask for less, or on the node itself";
                    body = answer_text(&Response::Error(Failure::new(FailureKind::Invalid, why)));
                }
                let between = self.between(&node, Channel::Answer);
                let envelope = Envelope::seal(&self.settings.key, between, counter, 0, body);
                let payload = Bytes::from(envelope.encode());
                out.tell(Message::Post { to: node, channel: Channel::Answer, payload });
            }
        }
    }

    /// A deadline has come: commands without an answer have failed.
    pub fn wake(&mut self, now: Time, out: &mut Effects) {
        let expired = |sent: &Sent| sent.expires_at_ms <= now.mono_ms;
        let counters: Vec<u64> =
            self.sent.iter().filter(|(_, sent)| expired(sent)).map(|(counter, _)| *counter).collect();
        for counter in counters {
            if !out.has_room() {
                return;
            }
            if let Some(sent) = self.sent.remove(&counter) {
                let why = format!(
                    "{} has not answered within {} s: it may be offline, refuse commands, or not know this node's key",
                    sent.to,
                    COMMAND_MS / 1000
                );
                self.respond(sent.origin, Err(Failure::new(FailureKind::Unreachable, why)), out);
            }
        }
    }

    /// The earliest moment something here must be done.
    pub fn deadline(&self) -> Option<Deadline> {
        let at_ms = self.sent.values().map(|sent| sent.expires_at_ms).min()?;
        Some(Deadline { at_ms, slack_ms: 1_000, why: "a command without an answer" })
    }

    fn ask(&mut self, purpose: Purpose, question: Question, out: &mut Effects) {
        let ticket = self.ticket(purpose);
        out.tell(Message::Ask { ticket, question });
    }

    fn ticket(&mut self, purpose: Purpose) -> Ticket {
        self.next_ticket = self.next_ticket.wrapping_add(1);
        self.asked.insert(self.next_ticket, purpose);
        Ticket { actor: Actor::Control, number: self.next_ticket }
    }
}

fn decode(bound: &Bound) -> Option<Binding> {
    Stored::decode(&bound.value).ok().map(|stored| stored.binding)
}

fn answer_text(response: &Response) -> String {
    serde_json::to_string(response).expect("answers hold only types that JSON has")
}

/// The counters obeyed so far; without them no command is obeyed, or an old one could come again.
fn read_counters(answer: Answer) -> Option<BTreeMap<NodeName, u64>> {
    let Answer::Settings(settings) = answer else { return None };
    let read = |(key, value): (String, Bytes)| {
        let node = key.strip_prefix("counter/")?.parse().ok()?;
        Some((node, u64::from_le_bytes(value.as_ref().try_into().ok()?)))
    };
    Some(settings.into_iter().filter_map(read).collect())
}

fn failure_of(answer: Answer) -> Failure {
    match answer {
        Answer::Failed(failure) => failure,
        _ => Failure::new(FailureKind::Disk, "the store gave an answer to another question"),
    }
}
