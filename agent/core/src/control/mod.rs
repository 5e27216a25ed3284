//! The Control actor: answers requests, from local connections and, signed, over MQTT.
//!
//! Refused: commands that are unsigned, expired, repeated, or of a role that may not command; puts on a
//! leecher; requests that carry data over MQTT. Bounds: connections, requests of each, one export of each.
//! A connection is read only while there is room for what it may say.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "an answer of another kind is one case, however many kinds there are"
)]

mod command;
mod export;
mod patience;
pub mod remote;

use crate::binding::{Binding, Content, Meta, Stored};
use crate::id::{BlockId, NodeName};
use crate::limits::{CLIENTS_MAX, LIST_PAGE, MESSAGE_BYTES_MAX};
use crate::message::{
    Actor, Answer, Bound, Caller, Change, ChangeDone, ClientId, Effect, Effects, Errand, FetchDone, Haste,
    Message, Question, Ticket,
};
use crate::name::Name;
use crate::power::report::{PowerAsk, PowerReport};
use crate::request::{
    Failure, FailureKind, Listed, ProcessNumbers, Request, Response, Status, StoreNumbers, Target, Unit,
};
use crate::role::Role;
use crate::settings::Settings;
use crate::time::Time;
use bytes::Bytes;
use command::{Obeying, Sent, read_counters};
use export::{Export, Next, listed};
use patience::Reading;
use std::collections::BTreeMap;

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
    Errand(Origin),
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
    /// Requests that are not answered, and whether each is a put that can wait.
    open: BTreeMap<u32, bool>,
    export: Option<(Caller, Export)>,
    /// A frame was asked for and has not come.
    pulled: bool,
    /// Ingest has said that it can take no more for now.
    held: bool,
    reading: Reading,
}

/// The actor.
pub struct Control {
    settings: Settings,
    clients: BTreeMap<ClientId, Client>,
    /// Since when somebody's patient put waits.
    rest_ms: Option<u64>,
    asked: BTreeMap<u32, Purpose>,
    next_ticket: u32,
    /// Statuses that wait for the store's and the process's numbers.
    statuses: Vec<(Origin, Option<StoreNumbers>)>,
    /// The greatest counter obeyed of each signer; `None` until they are read from the store.
    obeyed: Option<BTreeMap<NodeName, u64>>,
    /// Commands of others that are not answered yet.
    obeying: BTreeMap<(NodeName, u64), Obeying>,
    sent: BTreeMap<u64, Sent>,
    last_counter: u64,
    /// No connection is read any more.
    stopping: bool,
}

impl Control {
    /// The actor of a node that has just started.
    pub fn new(settings: &Settings) -> Self {
        Control {
            settings: settings.clone(),
            clients: BTreeMap::new(),
            rest_ms: None,
            asked: BTreeMap::new(),
            next_ticket: 0,
            statuses: Vec::new(),
            obeyed: None,
            obeying: BTreeMap::new(),
            sent: BTreeMap::new(),
            last_counter: 0,
            stopping: false,
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

    /// The node stops: connections are not read any more. What was put whole is still answered.
    pub fn stop(&mut self) {
        self.stopping = true;
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
        let gone = self.clients.remove(&client);
        out.tell(Message::PutsGone(client));
        if gone.is_some_and(|gone| gone.reading == Reading::Waking) {
            self.go_when_all_are_read(out);
        }
    }

    /// A request of a connection.
    pub fn client_asked(&mut self, now: Time, caller: Caller, request: Request, out: &mut Effects) {
        let patient = self.is_patient(&request);
        let Some(client) = self.clients.get_mut(&caller.client) else { return };
        client.pulled = false;
        if !patient && client.reading == Reading::Draining {
            client.reading = Reading::Listening;
        }
        if client.open.contains_key(&caller.number) {
            let failure = Failure::new(FailureKind::Invalid, "a request with this number is still open");
            let response = Box::new(Response::Error(failure));
            return out.emit(Effect::Reply { caller, response });
        }
        client.open.insert(caller.number, patient);
        self.request(now, Origin::Local(caller), request, out);
        self.pull(caller.client, out);
    }

    /// Data of a put, or its end.
    pub fn client_data(&mut self, now: Time, caller: Caller, bytes: Option<Bytes>, out: &mut Effects) {
        let Some(client) = self.clients.get_mut(&caller.client) else { return };
        client.pulled = false;
        client.held = true;
        if bytes.is_none() {
            self.put_ended(now, caller);
        }
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

    fn request(&mut self, now: Time, origin: Origin, request: Request, out: &mut Effects) {
        match (request, &origin) {
            (Request::Put { name, meta, patient }, Origin::Local(caller)) => {
                let patient = patient && self.rests();
                self.put(*caller, name, meta, patient, out);
            }
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
            (Request::Verify, _) => self.send_on_errand(origin, Errand::Verify, out),
            (Request::Erase { cid }, _) => self.send_on_errand(origin, Errand::Erase(cid), out),
            (Request::IndexRebuild, _) => self.ask(Purpose::Rebuild(origin), Question::Rebuild, out),
        }
    }

    fn send_on_errand(&mut self, origin: Origin, errand: Errand, out: &mut Effects) {
        let ticket = self.ticket(Purpose::Errand(origin));
        out.tell(Message::Errand { ticket, errand });
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

    fn put(&mut self, caller: Caller, name: Name, meta: Meta, patient: bool, out: &mut Effects) {
        if self.settings.role == Role::Leecher {
            let why = "a leecher keeps nothing of its own: put on a worker or on the master";
            let failure = Failure::new(FailureKind::Forbidden, why);
            return self.respond(Origin::Local(caller), Err(failure), out);
        }
        out.tell(Message::PutBegin { caller, name, meta, patient });
    }

    /// A put is finished.
    pub fn put_done(&mut self, caller: Caller, done: Result<Response, Failure>, out: &mut Effects) {
        self.respond(Origin::Local(caller), done, out);
    }

    /// Looks for the object of a `Get`.
    fn find(&mut self, wish: Wish, after: Option<Name>, out: &mut Effects) {
        let busy = self.clients.get(&wish.caller.client).is_none_or(|client| client.export.is_some());
        if busy {
            return self.respond(Origin::Local(wish.caller), Err(exports_already()), out);
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
        if client.export.is_some() {
            // another get of this connection was found first
            return self.respond(Origin::Local(wish.caller), Err(exports_already()), out);
        }
        let export = Export::new(&object, depth, wish.offset, wish.length);
        let (root, depth, size) = export.root;
        out.tell(Message::Copied { root, depth, size });
        client.export = Some((wish.caller, export));
        let response = Box::new(Response::Object { object });
        out.emit(Effect::Reply { caller: wish.caller, response });
        self.export_on(wish.caller.client, out);
    }

    /// What is being sent, whatever its name stands for by now: a cleaning must not take it.
    pub fn roots(&self) -> impl Iterator<Item = (BlockId, u8, u64)> {
        self.clients.values().filter_map(|client| Some(client.export.as_ref()?.1.root))
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
        let old = bound.and_then(|bound| Some((bound.seq, decode(&bound)?)));
        let Some((seq, old)) = old.filter(|(_, old)| old.content != Content::Deleted) else {
            let why = format!("{} is not here; `larder ls` shows what is", name.as_str());
            return self.respond(origin, Err(Failure::new(FailureKind::NotFound, why)), out);
        };
        let is_copy = match (self.settings.role, old.content) {
            (Role::Leecher, _) => true,
            // as a fetch by hash has named it; it would keep a deletion to itself, and never have it again
            (Role::Worker, Content::Object { root, .. }) => name.as_str() == format!("cid/{root}"),
            (Role::Worker | Role::Master, _) => false,
        };
        let change = if is_copy {
            // Nothing is written: the copy goes, and can be had again from the master.
            Change::Unbind { name: name.clone(), expected_seq: seq }
        } else {
            match self.deletion(now, old) {
                Ok(value) => Change::Bind { name: name.clone(), value, expected_seq: Some(seq) },
                Err(failure) => return self.respond(origin, Err(failure), out),
            }
        };
        let ticket = self.ticket(Purpose::Removed(origin, name));
        out.tell(Message::Write { ticket, change, haste: Haste::Now });
    }

    /// What a name is bound to once `old` is deleted.
    fn deletion(&self, now: Time, old: Binding) -> Result<Bytes, Failure> {
        let mut binding = Binding { content: Content::Deleted, origin: self.settings.me.clone(), ..old };
        let written = binding.version.write(&self.settings.me, now.wall_ms);
        written.map_err(|error| Failure::new(FailureKind::Invalid, error.to_string()))?;
        binding.meta.size = 0;
        Ok(Bytes::from(Stored { binding, via: None, refused: false }.encode()))
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
                    answer => Err(answer.failure()),
                };
                self.respond(origin, done, out);
            }
            Some(
                Purpose::Counter
                | Purpose::Flush(_)
                | Purpose::Removed(..)
                | Purpose::FetchForGet(_)
                | Purpose::Fetch(_)
                | Purpose::Errand(_)
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
                if done.is_ok() {
                    // A file of this name may not have gone up: it stays.
                    out.tell(Message::Undelivered { name: name.clone(), is_lost: false });
                }
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
            answer => return self.respond(origin, Err(answer.failure()), out),
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
                self.respond(origin, Err(answer.failure()), out);
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

    /// News of what the Keeper was asked to do.
    pub fn errand_news(&mut self, number: u32, news: Response, out: &mut Effects) {
        let Some(Purpose::Errand(origin)) = self.asked.get(&number) else { return };
        let origin = origin.clone();
        if news.is_last() {
            self.asked.remove(&number);
        }
        self.respond(origin, Ok(news), out);
    }

    /// How far a fetch or a rebuild is.
    pub fn progress(&mut self, number: u32, done: u64, total: u64, out: &mut Effects) {
        let origin = match self.asked.get(&number) {
            Some(Purpose::Fetch(origin) | Purpose::Rebuild(origin)) => origin.clone(),
            Some(Purpose::FetchForGet(wish)) => Origin::Local(wish.caller),
            _ => return,
        };
        self.respond(origin, Ok(Response::Progress { done, total, unit: Unit::Bytes }), out);
    }

    fn respond(&mut self, origin: Origin, done: Result<Response, Failure>, out: &mut Effects) {
        let response = done.unwrap_or_else(Response::Error);
        match origin {
            Origin::Local(caller) => {
                let is_last = response.is_last();
                let Some(client) = self.clients.get_mut(&caller.client) else { return };
                if is_last {
                    client.open.remove(&caller.number);
                }
                out.emit(Effect::Reply { caller, response: Box::new(response) });
                if is_last {
                    self.pull(caller.client, out);
                }
            }
            Origin::Remote(node, counter) => self.answer_command(node, counter, response, out),
        }
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

fn exports_already() -> Failure {
    Failure::new(FailureKind::Busy, "this connection is being sent an object already; use another")
}

fn decode(bound: &Bound) -> Option<Binding> {
    Stored::decode(&bound.value).ok().map(|stored| stored.binding)
}
