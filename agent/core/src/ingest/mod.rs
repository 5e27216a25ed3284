//! The Ingest actor: turns byte streams from local connections and watched folders into objects.
//!
//! A put is answered when its blocks and its name are on flash, synced. A source is read only while
//! little of what it gave is still unwritten, so memory stays bounded whatever the object's size and
//! however many there are. Refused: names that leave the root, objects on a leecher (Control says so).
//! A file that vanishes, grows or can not be read is dropped without a trace and tried again.

pub mod cutter;
mod folder;
mod stream;

use crate::binding::{Binding, Content, Meta, Stored};
use crate::id::BlockId;
use crate::limits::{INGEST_WINDOW_BYTES, INGESTS_ENDING_MAX, INGESTS_MAX};
use crate::message::{
    Actor, Answer, Bound, Caller, Change, ChangeDone, ClientId, Effects, FileDone, FileId, Haste, Message,
    Question, Ticket,
};
use crate::name::Name;
use crate::object::manifest::Root;
use crate::request::{Failure, FailureKind, IngestNumbers, Response};
use crate::role::Role;
use crate::settings::{Settings, Watch};
use crate::time::{Deadline, Time};
use bytes::Bytes;
use folder::Folders;
use larder_kernels::Level;
use std::collections::{BTreeMap, BTreeSet};
use stream::{Finished, Phase, Source, Stream};

/// Names of one question about patient puts.
const LOOKUPS_MAX: usize = 64;

/// What a question or write of this actor was for.
enum Purpose {
    /// A block or manifest of a stream, and its bytes.
    Put { stream: u32, bytes: usize },
    /// The present binding of a stream's name.
    Lookup { stream: u32 },
    /// Those of patient puts.
    Lookups(Vec<u32>),
    /// The stream's name.
    Bind { stream: u32 },
    /// The bindings of a page of scanned files.
    Page(folder::Page),
}

/// The actor.
pub struct Ingest {
    me: crate::id::NodeName,
    watches: Vec<Watch>,
    streams: BTreeMap<u32, Stream>,
    by_caller: BTreeMap<Caller, u32>,
    next_stream: u32,
    asked: BTreeMap<u32, Purpose>,
    next_ticket: u32,
    /// Bytes taken in and not answered, of all streams: those that are cut, and those of the store.
    unwritten: usize,
    /// Chunkers on their way beside the loop.
    away: usize,
    /// The window was full while one was: what comes back is written without waiting for more.
    full: bool,
    /// Streams whose data is complete.
    ending: usize,
    /// Objects of one small block that have no name yet; bounded as those are.
    unnamed: Vec<(u32, Bytes)>,
    /// Patient puts that are complete and wait until they go together.
    patient: Vec<u32>,
    kernels: Level,
    window: usize,
    /// Connections that are not read because too much is unwritten.
    held: BTreeSet<ClientId>,
    /// The node stops: what is complete is not waited with, and folders are not read.
    stopping: bool,
    folders: Folders,
    numbers: IngestNumbers,
}

impl Ingest {
    /// The actor of a node that has just started.
    pub fn new(settings: &Settings) -> Self {
        Ingest {
            me: settings.me.clone(),
            watches: settings.watches.clone(),
            streams: BTreeMap::new(),
            by_caller: BTreeMap::new(),
            next_stream: 0,
            asked: BTreeMap::new(),
            next_ticket: 0,
            unwritten: 0,
            away: 0,
            full: false,
            ending: 0,
            unnamed: Vec::new(),
            patient: Vec::new(),
            kernels: settings.kernels,
            window: window(settings),
            held: BTreeSet::new(),
            stopping: false,
            folders: Folders::new(settings.watches.len(), settings.role == Role::Master),
            numbers: IngestNumbers::default(),
        }
    }

    /// Takes over new settings; a changed set of watched folders needs a restart.
    pub fn reload(&mut self, settings: &Settings) {
        self.window = window(settings);
        self.kernels = settings.kernels;
    }

    /// A local put begins.
    pub fn put_begin(&mut self, caller: Caller, name: Name, meta: Meta, patient: bool, out: &mut Effects) {
        if self.streams.len() >= INGESTS_MAX {
            let failure = Failure::new(FailureKind::Busy, "too many objects are being stored; try again");
            return out.tell(Message::PutDone { caller, done: Err(failure) });
        }
        let number = self.open(Source::Client(caller), name, meta);
        if let Some(stream) = self.streams.get_mut(&number) {
            stream.patient = patient;
        }
        self.by_caller.insert(caller, number);
        self.more_or_hold(caller.client, out);
    }

    /// Data of a local put.
    pub fn put_data(&mut self, caller: Caller, bytes: Bytes, out: &mut Effects) {
        if let Some(&number) = self.by_caller.get(&caller) {
            self.push(number, bytes, out);
        }
        self.more_or_hold(caller.client, out);
    }

    /// The data of a local put is complete.
    pub fn put_end(&mut self, caller: Caller, out: &mut Effects) {
        if let Some(&number) = self.by_caller.get(&caller) {
            self.end(number, out);
        }
        self.more_or_hold(caller.client, out);
    }

    /// What this connection has put shall not wait.
    pub fn puts_hurry(&mut self, client: ClientId, out: &mut Effects) {
        for stream in self.streams.values_mut() {
            stream.hasty |= matches!(stream.source, Source::Client(caller) if caller.client == client);
        }
        self.puts_go(out);
    }

    /// The node stops: what is complete goes, what is not is dropped with the node.
    pub fn stop(&mut self, out: &mut Effects) {
        self.stopping = true;
        self.puts_go(out);
    }

    /// No object whose data is complete waits for its answer.
    pub fn is_quiet(&self) -> bool {
        self.ending == 0
    }

    /// Patient puts have waited long enough: their names are looked up together.
    pub fn puts_go(&mut self, out: &mut Effects) {
        for streams in std::mem::take(&mut self.patient).chunks(LOOKUPS_MAX) {
            let name = |number| self.streams.get(number).map(|stream| (*number, stream.name.clone()));
            let (streams, names) = streams.iter().filter_map(name).unzip();
            let ticket = self.ticket(Purpose::Lookups(streams));
            out.tell(Message::Ask { ticket, question: Question::Lookup(names) });
        }
    }

    /// The connection is gone; what it had not finished is forgotten.
    pub fn puts_gone(&mut self, now: Time, client: ClientId, out: &mut Effects) {
        self.held.remove(&client);
        self.name_small(out);
        let gone: Vec<Caller> =
            self.by_caller.keys().filter(|caller| caller.client == client).copied().collect();
        for caller in gone {
            if let Some(number) = self.by_caller.remove(&caller)
                && let Some(stream) = self.streams.get_mut(&number)
                && matches!(stream.phase, Phase::Reading(_))
                && !stream.ending
            {
                self.unwritten -= stream.give_up();
                stream.finished = Some(Finished::Failed(gone_failure()));
                self.finish_if_written(now, number, out);
            }
        }
        self.release(now, out);
    }

    fn open(&mut self, source: Source, name: Name, meta: Meta) -> u32 {
        self.next_stream = self.next_stream.wrapping_add(1);
        self.streams.insert(self.next_stream, Stream::new(source, name, meta));
        self.next_stream
    }

    fn push(&mut self, number: u32, bytes: Bytes, out: &mut Effects) {
        let stream = self.streams.get_mut(&number).filter(|stream| !stream.ending);
        let Some(stream) = stream else { return };
        self.numbers.bytes += bytes.len() as u64;
        self.unwritten += stream.push(bytes);
        self.cut(number, out);
        self.full |= self.away > 0 && self.unwritten >= self.window;
    }

    fn end(&mut self, number: u32, out: &mut Effects) {
        let stream = self.streams.get_mut(&number).filter(|stream| !stream.ending);
        let Some(stream) = stream else { return };
        stream.ending = true;
        self.ending += 1;
        if let Some(bytes) = stream.end_small() {
            self.unwritten += bytes.len();
            self.unnamed.push((number, bytes));
            self.look_up(number, out);
        } else {
            self.cut(number, out);
        }
    }

    /// All its blocks are known: bind it, or wait for the other patient puts. A long one does not, since they
    /// may have gone while it was cut.
    fn look_up(&mut self, number: u32, out: &mut Effects) {
        let Some(stream) = self.streams.get(&number) else { return };
        if stream.patient && !stream.hasty && !stream.is_long() && !self.stopping {
            return self.patient.push(number);
        }
        self.look_up_now(number, out);
    }

    fn look_up_now(&mut self, number: u32, out: &mut Effects) {
        let Some(stream) = self.streams.get(&number) else { return };
        let names = vec![stream.name.clone()];
        let ticket = self.ticket(Purpose::Lookup { stream: number });
        out.tell(Message::Ask { ticket, question: Question::Lookup(names) });
    }

    /// Names all objects of one small block that wait for it, side by side. The first that has to know its
    /// name brings this about, and the store's look-up of its old binding takes long enough for company.
    fn name_small(&mut self, out: &mut Effects) {
        let (streams, blocks): (Vec<u32>, Vec<Bytes>) = std::mem::take(&mut self.unnamed).into_iter().unzip();
        if blocks.len() > 1 {
            self.numbers.hashed_together += blocks.len() as u64;
        }
        let ids = BlockId::of_many(self.kernels, &blocks);
        for ((number, bytes), id) in streams.into_iter().zip(blocks).zip(ids) {
            // counted again as it is put
            self.unwritten -= bytes.len();
            if let Some(stream) = self.streams.get_mut(&number) {
                stream.name_small(id, bytes.len() as u64);
                self.put_blocks(number, vec![(id, bytes)], out);
            }
        }
    }

    fn put_blocks(&mut self, number: u32, blocks: Vec<(BlockId, Bytes)>, out: &mut Effects) {
        for (id, bytes) in blocks {
            self.numbers.blocks += 1;
            self.unwritten += bytes.len();
            if let Some(stream) = self.streams.get_mut(&number) {
                stream.writes += 1;
            }
            let ticket = self.ticket(Purpose::Put { stream: number, bytes: bytes.len() });
            out.tell(Message::Write { ticket, change: Change::Put { id, bytes }, haste: Haste::Bulk });
        }
        if self.unwritten >= self.window {
            out.tell(Message::FlushNow);
        }
    }

    fn more_or_hold(&mut self, client: ClientId, out: &mut Effects) {
        if self.has_room() {
            out.tell(Message::PutReady(client));
        } else {
            self.held.insert(client);
            self.puts_go(out);
        }
    }

    /// Whether sources may be read.
    fn has_room(&self) -> bool {
        self.unwritten < self.window && self.ending < INGESTS_ENDING_MAX && self.streams.len() <= INGESTS_MAX
    }

    /// Reads on whatever was held, after anything that may have made room: a write, an answer, a connection's end.
    fn release(&mut self, now: Time, out: &mut Effects) {
        if self.unwritten <= self.window / 2 && self.ending < INGESTS_ENDING_MAX {
            for client in std::mem::take(&mut self.held) {
                out.tell(Message::PutReady(client));
            }
            self.read_on(now, out);
        }
    }

    /// An answer of the store.
    pub fn answered(&mut self, now: Time, number: u32, answer: Answer, out: &mut Effects) {
        self.name_small(out);
        match (self.asked.remove(&number), answer) {
            (Some(Purpose::Lookup { stream }), Answer::Bindings(found)) => {
                self.looked_up(now, stream, found.into_iter().next().flatten(), out);
            }
            (Some(Purpose::Lookups(streams)), Answer::Bindings(found)) => {
                for (stream, bound) in streams.into_iter().zip(found) {
                    self.looked_up(now, stream, bound, out);
                    // one batch for all, and no more patience with whoever was outrun
                    if let Some(stream) = self.streams.get_mut(&stream) {
                        stream.hasty = true;
                    }
                }
                out.tell(Message::FlushNow);
            }
            (Some(Purpose::Lookups(streams)), answer) => {
                let failure = answer.failure();
                streams.into_iter().for_each(|stream| self.fail(now, stream, failure.clone(), out));
            }
            (Some(Purpose::Lookup { stream }), answer) => self.fail(now, stream, answer.failure(), out),
            (Some(Purpose::Page(page)), Answer::Bindings(found)) => {
                self.page_looked_up(now, page, found, out);
            }
            (Some(Purpose::Page(page)), _) => self.folders.scan_failed(now, page.watch),
            (Some(Purpose::Put { .. } | Purpose::Bind { .. }) | None, _) => {}
        }
        self.release(now, out);
    }

    /// The name's present binding is known: bind it, unless it says the same already. A file that gives way becomes
    /// the copy that a conflict would have made.
    fn looked_up(&mut self, now: Time, number: u32, bound: Option<Bound>, out: &mut Effects) {
        let Some(stream) = self.streams.get_mut(&number) else { return };
        let Phase::Binding(root) = &stream.phase else { return };
        let meta = Meta { size: root.size, ..stream.meta };
        let content = Content::Object { root: root.root, depth: root.depth };
        let old = bound.as_ref().and_then(|bound| Stored::decode(&bound.value).ok());
        let expected_seq = bound.map(|bound| bound.seq);
        if let Some(old) = &old
            && stream.is_known(old, content, meta)
        {
            let is_deleted = old.binding.content == Content::Deleted;
            stream.finished = Some(Finished::Unchanged { seq: expected_seq.filter(|_| !is_deleted) });
            if stream.hasty && stream.writes > 0 {
                out.tell(Message::FlushNow);
            }
            if is_deleted && let Source::File { path, .. } = &stream.source {
                let path = path.clone();
                self.problem(&path, "its name was deleted; it is taken when it has another time".into(), out);
            }
            return self.finish_if_written(now, number, out);
        }
        if old.as_ref().is_some_and(|old| stream.gives_way(old, content, &self.me)) {
            let copy = stream.name.conflict(root.root);
            stream.copy_of = Some(std::mem::replace(&mut stream.name, copy));
            return self.look_up_now(number, out);
        }
        let conflict_of = stream.copy_of.clone();
        let mut version = old.map(|old| old.binding.version).unwrap_or_default();
        if let Err(error) = version.write(&self.me, now.wall_ms) {
            return self.fail(now, number, Failure::new(FailureKind::Invalid, error.to_string()), out);
        }
        let binding = Binding { version, content, meta, origin: self.me.clone(), conflict_of };
        self.bind(number, binding, expected_seq, out);
    }

    fn bind(&mut self, number: u32, binding: Binding, expected_seq: Option<u64>, out: &mut Effects) {
        let Some(stream) = self.streams.get(&number) else { return };
        let haste = if stream.hasty { Haste::Now } else { Haste::Patient };
        let value = Bytes::from(Stored { binding, via: None, refused: false }.encode());
        let change = Change::Bind { name: stream.name.clone(), value, expected_seq };
        let ticket = self.ticket(Purpose::Bind { stream: number });
        out.tell(Message::Write { ticket, change, haste });
    }

    /// A write is durable, or failed.
    pub fn written(&mut self, now: Time, number: u32, done: Result<ChangeDone, Failure>, out: &mut Effects) {
        match self.asked.remove(&number) {
            Some(Purpose::Put { stream: number, bytes }) => {
                self.unwritten = self.unwritten.saturating_sub(bytes);
                if let Some(stream) = self.streams.get_mut(&number) {
                    stream.writes -= 1;
                }
                match done {
                    Ok(_) => self.finish_if_written(now, number, out),
                    Err(failure) => self.fail(now, number, failure, out),
                }
            }
            Some(Purpose::Bind { stream: number }) => self.bound(now, number, done, out),
            Some(Purpose::Lookup { .. } | Purpose::Lookups(_) | Purpose::Page(_)) | None => {}
        }
        self.release(now, out);
    }

    fn bound(&mut self, now: Time, number: u32, done: Result<ChangeDone, Failure>, out: &mut Effects) {
        let Some(stream) = self.streams.get_mut(&number) else { return };
        match done {
            Ok(ChangeDone::Bound { seq }) => {
                stream.finished = Some(Finished::Bound { seq });
                let (bytes, name) = (stream.size, stream.name.clone());
                if let Some(of) = stream.copy_of.clone() {
                    out.tell(Message::Conflicted { name: of, kept_as: name.clone() });
                }
                let file = match &stream.source {
                    Source::File { watch, path, .. } => Some((*watch, path.clone())),
                    Source::Client(_) => None,
                };
                self.superseded(now, &name, seq, file.as_ref());
                out.tell(Message::Changed { bytes });
                self.finish_if_written(now, number, out);
            }
            Ok(ChangeDone::Outrun | ChangeDone::Done) => self.look_up_now(number, out),
            Err(failure) => self.fail(now, number, failure, out),
        }
    }

    fn fail(&mut self, now: Time, number: u32, failure: Failure, out: &mut Effects) {
        let Some(stream) = self.streams.get_mut(&number) else { return };
        self.unwritten -= stream.give_up();
        // what was found unchanged or bound is not whole without the block whose write has failed
        if !matches!(stream.finished, Some(Finished::Failed(_))) {
            stream.finished = Some(Finished::Failed(failure));
        }
        self.finish_if_written(now, number, out);
    }

    fn finish_if_written(&mut self, now: Time, number: u32, out: &mut Effects) {
        let ready = |stream: &Stream| stream.writes == 0 && stream.finished.is_some();
        if !self.streams.get(&number).is_some_and(ready) {
            return;
        }
        let Some(stream) = self.streams.remove(&number) else { return };
        self.ending -= usize::from(stream.ending);
        let Some(finished) = stream.finished.clone() else { return };
        match &finished {
            Finished::Bound { .. } => self.numbers.objects += 1,
            Finished::Unchanged { .. } => self.numbers.unchanged += 1,
            Finished::Failed(failure) => self.numbers.last_problem.clone_from(&failure.message),
        }
        match stream.source.clone() {
            Source::Client(caller) => {
                self.by_caller.remove(&caller);
                let done = response(stream, finished);
                out.tell(Message::PutDone { caller, done });
            }
            Source::File { file, watch, path, stat } => {
                self.stop_reading(number, file, out);
                let is_copy = stream.copy_of.is_some();
                self.file_finished(now, (watch, path), stat, is_copy, finished, out);
            }
        }
    }

    fn ticket(&mut self, purpose: Purpose) -> Ticket {
        self.next_ticket = self.next_ticket.wrapping_add(1);
        self.asked.insert(self.next_ticket, purpose);
        Ticket { actor: Actor::Ingest, number: self.next_ticket }
    }

    /// A file operation is finished.
    pub fn file_done(&mut self, now: Time, file: FileId, done: FileDone, out: &mut Effects) {
        self.folder_file_done(now, file, done, out);
        self.release(now, out);
    }

    /// A deadline has come.
    pub fn wake(&mut self, now: Time, out: &mut Effects) {
        self.read_on(now, out);
    }

    /// The earliest moment something here must be done.
    pub fn deadline(&self) -> Option<Deadline> {
        self.folders.deadline(&self.watches, self.has_room()).filter(|_| !self.stopping)
    }

    /// Everything a cleaning must not take though no name leads to it yet: roots, depths and sizes.
    pub fn roots(&self) -> Vec<(BlockId, u8, u64)> {
        self.streams.values().flat_map(Stream::roots).collect()
    }

    /// Counters for `status`.
    pub fn numbers(&self) -> &IngestNumbers {
        &self.numbers
    }
}

fn window(settings: &Settings) -> usize {
    INGEST_WINDOW_BYTES.max(settings.flush.bytes.saturating_mul(2)).min(16 << 20)
}

fn response(stream: Stream, finished: Finished) -> Result<Response, Failure> {
    let unchanged = match finished {
        Finished::Failed(failure) => return Err(failure),
        Finished::Unchanged { .. } => true,
        Finished::Bound { .. } => false,
    };
    let Phase::Binding(Root { root: cid, .. }) = stream.phase else { return Err(gone_failure()) };
    Ok(Response::Stored { name: stream.name, cid, size: stream.size, blocks: stream.blocks, unchanged })
}

fn gone_failure() -> Failure {
    Failure::new(FailureKind::Invalid, "the connection ended before the object's data did")
}
