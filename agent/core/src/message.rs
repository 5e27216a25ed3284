//! What crosses the border of the core, and what actors say to each other.
//!
//! The shell turns the world into an [`Input`], calls [`crate::node::Node::handle`] and carries out
//! every [`Effect`]. Requests between actors flow one way, replies come back as messages carrying the
//! asker's [`Ticket`]. Both queues are bounded; see [`crate::limits`].

use crate::id::{BlockId, NodeName};
use crate::ingest::cutter::{Cut, Cutter, StreamId};
use crate::limits::{EFFECTS_MAX, EFFECTS_ROOM, MESSAGES_MAX};
use crate::name::Name;
use crate::note::Note;
use crate::object::manifest::Manifest;
use crate::power::conditions::Readings;
use crate::power::plan::Steering;
use crate::power::report::{PowerAsk, PowerReport};
use crate::request::{Failure, ProcessNumbers, Request, Response, StoreNumbers, Target};
use bytes::Bytes;
use heapless::Deque;
use std::sync::Arc;

/// The actors that ask others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Actor {
    /// Takes objects in.
    Ingest,
    /// Talks to peers.
    Sync,
    /// Answers requests.
    Control,
    /// Cleans, evicts, verifies.
    Keeper,
}

/// Who asked, and which of its questions this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket {
    /// The asker.
    pub actor: Actor,
    /// The asker's own number.
    pub number: u32,
}

/// A local connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClientId(pub u32);

/// A request of a connection, to which every answer refers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Caller {
    /// The connection.
    pub client: ClientId,
    /// The number the connection gave the request.
    pub number: u32,
}

/// What happens to the core.
#[derive(Debug)]
pub enum Input {
    /// The first input of a node's life.
    Start,
    /// A deadline has come.
    Wake,
    /// The disk's helper thread has finished a job.
    JobDone {
        /// As given in the job.
        job: JobId,
        /// What came of it.
        done: JobDone,
    },
    /// The disk's helper thread has finished with a file.
    FileDone {
        /// As given in the effect.
        file: FileId,
        /// What came of it.
        done: FileDone,
    },
    /// A cutter has done its work.
    Cut {
        /// As given in the effect.
        stream: StreamId,
        /// What came of it.
        cut: Cut,
    },
    /// A watched folder says that something at this path, relative to the folder, may be complete.
    FileChanged {
        /// Index of the folder in the configuration.
        watch: u8,
        /// Path inside it.
        path: String,
    },
    /// The kernel dropped notices of a watched folder: it must be scanned.
    FilesMissed {
        /// Index of the folder in the configuration.
        watch: u8,
    },
    /// The link to the broker is up and subscribed.
    LinkUp,
    /// The link is down; whatever was not `Sent` is forgotten below.
    LinkDown {
        /// Why, and what to do.
        reason: String,
    },
    /// The broker has taken over a message. Says nothing about the peer.
    Sent {
        /// As given in the effect.
        token: u64,
    },
    /// A message for this node.
    Wire {
        /// The sender, from the topic.
        from: NodeName,
        /// Which of the node's inboxes.
        channel: Channel,
        /// The bytes, not yet believed.
        payload: Bytes,
    },
    /// A local connection was made.
    ClientCame(ClientId),
    /// A request of a connection.
    ClientAsked {
        /// Which.
        caller: Caller,
        /// What.
        request: Request,
    },
    /// Data of a `Put`.
    ClientData {
        /// Which put.
        caller: Caller,
        /// The next bytes.
        bytes: Bytes,
    },
    /// The data of a `Put` is complete.
    ClientDataEnd {
        /// Which put.
        caller: Caller,
    },
    /// The connection has said nothing that was not read: the answer to `PullIfThere`.
    ClientSilent(ClientId),
    /// The connection has taken the last data frame.
    ClientReady(ClientId),
    /// The connection is gone.
    ClientGone(ClientId),
    /// To `Measure`.
    Measured(ProcessNumbers),
    /// To `Sense`.
    Sensed(Readings),
    /// The process shall end.
    Stop,
}

/// What the core wants done.
#[derive(Debug)]
pub enum Effect {
    /// Run this on the disk's helper thread, in order.
    Job {
        /// Comes back with the result.
        job: JobId,
        /// What to do.
        what: Job,
    },
    /// Do this with a file, on the disk's helper thread.
    File {
        /// Comes back with the result.
        file: FileId,
        /// What to do.
        what: FileJob,
    },
    /// Cut and hash this on the other helper thread, in order.
    Cut {
        /// Comes back with the result.
        stream: StreamId,
        /// What to do.
        cutter: Cutter,
    },
    /// Publish this; `Sent` comes back with the token.
    Send {
        /// Comes back when the broker has it.
        token: u64,
        /// The receiver.
        to: NodeName,
        /// Which inbox of the receiver.
        channel: Channel,
        /// The bytes.
        payload: Bytes,
    },
    /// Publish the node's state, retained.
    Presence(Presence),
    /// Read the next frame of this connection.
    Pull(ClientId),
    /// Read its next frame if it is there already; else say `ClientSilent`, and do not be woken by it.
    PullIfThere(ClientId),
    /// Write an answer.
    Reply {
        /// To which request.
        caller: Caller,
        /// The answer.
        response: Box<Response>,
    },
    /// Write a frame of data; `ClientReady` comes back when it is on its way.
    ReplyData {
        /// To which request.
        caller: Caller,
        /// The bytes.
        bytes: Bytes,
    },
    /// The data of this request is complete.
    ReplyDataEnd {
        /// Which request.
        caller: Caller,
    },
    /// Something people should know.
    Note(Note),
    /// Say what the kernel counts of this process.
    Measure,
    /// Read the sensors, beside the loop: one of them may hang.
    Sense,
    /// This profile is in force from now on.
    Profile(Arc<Steering>),
    /// Bring the link up, or take it down.
    Radio(bool),
    /// Publish what the node costs, retained.
    Telemetry(Bytes),
    /// All is flushed and said; the process may end.
    Stopped,
}

/// The inboxes of a node, each a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Channel {
    /// Signed sync messages: hello, announce, want, ack.
    Sync,
    /// Blocks; each verifies by its own name.
    Blocks,
    /// Signed commands.
    Command,
    /// Signed answers to commands.
    Answer,
    /// A node's own retained state; read by others, never an inbox.
    State,
}

impl Channel {
    /// The topic level of this inbox.
    pub fn level(self) -> &'static str {
        match self {
            Channel::Sync => "sync",
            Channel::Blocks => "blocks",
            Channel::Command => "cmd",
            Channel::Answer => "resp",
            Channel::State => "state",
        }
    }
}

/// What the retained state topic says of a node. The broker says `lost` for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Connected.
    Online,
    /// The radio goes until its next window, on purpose.
    Sleeping,
    /// Going, on purpose.
    Offline,
}

/// A job's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct JobId(pub u32);

/// A file operation's number; the shell keeps an open file under it until `Close`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileId(pub u32);

/// Work for the thread that owns the store.
#[derive(Debug)]
pub enum Job {
    /// Make changes durable as one batch.
    Commit {
        /// Batches of one run lean on each other: once one has failed, the rest of its run is refused.
        run: u32,
        /// In the order they were handed over.
        changes: Vec<Change>,
    },
    /// Answer a question.
    Ask(Question),
}

/// What came of a [`Job`].
#[derive(Debug)]
pub enum JobDone {
    /// One outcome a change, in order; or the whole batch failed.
    Committed(Result<Vec<ChangeDone>, Failure>),
    /// The answer.
    Answered(Answer),
}

/// One change to the store.
#[derive(Clone, Debug)]
pub enum Change {
    /// Store a block; a no-op where it is there.
    Put {
        /// Its hash, computed by the sender of this change.
        id: BlockId,
        /// Its bytes.
        bytes: Bytes,
    },
    /// Bind a name, if its binding is still the one the writer saw.
    Bind {
        /// The name.
        name: Name,
        /// An encoded [`crate::binding::Stored`].
        value: Bytes,
        /// Sequence number of the binding the writer saw; `None`: it saw none.
        expected_seq: Option<u64>,
    },
    /// Forget a name here, without a deletion that others would see, if it is still that binding.
    Unbind {
        /// The name.
        name: Name,
        /// Sequence number of the binding the writer saw.
        expected_seq: u64,
    },
    /// Remember a setting.
    Set {
        /// Its key.
        key: String,
        /// Its value.
        value: Bytes,
    },
}

impl Change {
    /// Bytes it takes in memory, for the batcher.
    pub fn bytes(&self) -> usize {
        match self {
            Change::Put { bytes, .. } => 64 + bytes.len(),
            Change::Bind { name, value, .. } => 64 + name.as_str().len() + value.len(),
            Change::Unbind { name, .. } => 64 + name.as_str().len(),
            Change::Set { key, value } => 64 + key.len() + value.len(),
        }
    }
}

/// What came of one change of a batch that is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeDone {
    /// It is on flash.
    Done,
    /// The name is bound, on flash, under this sequence number.
    Bound {
        /// Its place in the order of all changes.
        seq: u64,
    },
    /// The name was bound by somebody else in between: look again.
    Outrun,
}

/// A question to the store.
#[derive(Clone, Debug)]
pub enum Question {
    /// The bytes of a block.
    Read(BlockId),
    /// A manifest, and which of its children are here and whole.
    Children(BlockId),
    /// The bytes of several blocks at once.
    ReadMany(Vec<BlockId>),
    /// Which of these are here and whole, and how long they are.
    Has(Vec<BlockId>),
    /// The bindings of these names.
    Lookup(Vec<Name>),
    /// Names in order.
    List {
        /// Starting with this.
        prefix: String,
        /// After this one.
        after: Option<Name>,
        /// How many.
        limit: usize,
    },
    /// Bindings in the order they were made.
    Changes {
        /// After this sequence number.
        after: u64,
        /// How many.
        limit: usize,
    },
    /// The binding whose root this is: the first after the given name, looking at one page.
    Find {
        /// The root.
        root: BlockId,
        /// Where the last page ended.
        after: Option<Name>,
    },
    /// Settings whose key starts with this.
    Settings(String),
    /// The store in numbers.
    Numbers,
    /// Start marking what is alive.
    CleanBegin,
    /// These are alive.
    CleanMark(Vec<BlockId>),
    /// Move live records out of a bad segment, about this many bytes.
    CleanStep(u64),
    /// Forget the marks.
    CleanAbort,
    /// Check blocks from this position on, about this many bytes.
    Verify {
        /// Where the last step ended; 0 at first.
        position: u64,
        /// About how many bytes to read.
        bytes: u64,
    },
    /// Make the index again from the log.
    Rebuild,
    /// Bring the index up to date, so that opening is quick.
    Checkpoint,
}

/// An answer of the store.
#[derive(Debug)]
pub enum Answer {
    /// To `Read`; `None`: there is no such block.
    Block(Option<Bytes>),
    /// To `Children`.
    Children {
        /// The manifest; `None`: there is no such block, or it is none.
        manifest: Option<Manifest>,
        /// The length of each of its children that is here, in their order.
        here: Vec<Option<u32>>,
    },
    /// To `ReadMany`, in order; `None`: it is not here, or can not be read.
    Blocks(Vec<Option<Bytes>>),
    /// To `Has`, in order: the bytes of those that are here.
    Has(Vec<Option<u32>>),
    /// To `Lookup`, in order.
    Bindings(Vec<Option<Bound>>),
    /// To `List` and `Changes`.
    Page(Vec<(Name, Bound)>),
    /// To `Find`.
    Found {
        /// The binding.
        binding: Option<(Name, Bound)>,
        /// Where to go on; `None`: all names were looked at.
        next: Option<Name>,
    },
    /// To `Settings`.
    Settings(Vec<(String, Bytes)>),
    /// To `Numbers`.
    Numbers(Box<StoreNumbers>),
    /// To `CleanBegin`, `CleanMark`, `CleanAbort`, `Checkpoint`.
    Done,
    /// To `CleanStep`.
    Cleaned {
        /// Nothing is left to move.
        done: bool,
        /// Bytes of disk given back by this step.
        bytes_freed: u64,
    },
    /// To `Verify`.
    Verified {
        /// Where to go on; `None`: all was read.
        next: Option<u64>,
        /// Blocks of this step.
        blocks: u64,
        /// Bytes of this step.
        bytes: u64,
        /// Blocks that failed.
        damaged: Vec<BlockId>,
    },
    /// To `Rebuild`.
    Rebuilt {
        /// Blocks found.
        blocks: u64,
        /// Names found.
        names: u64,
    },
    /// It did not work.
    Failed(Failure),
}

/// A binding as the store has it.
#[derive(Clone, Debug)]
pub struct Bound {
    /// Its place in the order of all changes.
    pub seq: u64,
    /// An encoded [`crate::binding::Stored`].
    pub value: Bytes,
}

/// What identifies a version of a file, to see whether it changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileStat {
    /// Bytes.
    pub size: u64,
    /// Modification time in Unix milliseconds.
    pub mtime_ms: i64,
    /// Permission bits.
    pub mode: u32,
    /// Inode number.
    pub inode: u64,
}

/// Work on files of watched folders.
#[derive(Debug)]
pub enum FileJob {
    /// The next page of a scan of a folder; a scan starts anew after `restart`.
    Scan {
        /// Index of the folder.
        watch: u8,
        /// From the beginning.
        restart: bool,
    },
    /// What is at this path now.
    Stat {
        /// Index of the folder.
        watch: u8,
        /// Path inside it.
        path: String,
    },
    /// Open the file under this operation's number.
    Open {
        /// Index of the folder.
        watch: u8,
        /// Path inside it.
        path: String,
    },
    /// Read on from the open file.
    Read,
    /// Forget the open file; no answer comes.
    Close,
    /// Delete the file if it is still this version.
    Delete {
        /// Index of the folder.
        watch: u8,
        /// Path inside it.
        path: String,
        /// The version that was stored.
        expected: FileStat,
    },
}

/// What came of a [`FileJob`].
#[derive(Debug)]
pub enum FileDone {
    /// A page of a scan: regular files that the patterns allow.
    Page {
        /// Their paths and versions.
        files: Vec<(String, FileStat)>,
        /// The scan is complete.
        end: bool,
    },
    /// To `Stat`; `None`: it is gone, no regular file, or excluded.
    Stat(Option<FileStat>),
    /// To `Open`.
    Opened(FileStat),
    /// To `Read`: the next bytes; none at the end, then with the file's version as it is now.
    Data {
        /// The bytes.
        bytes: Bytes,
        /// Set at the end.
        end: Option<FileStat>,
    },
    /// To `Delete`: it is gone, or it was another version and stays.
    Deleted(bool),
    /// It did not work; the open file, if any, is closed.
    Failed(String),
}

/// When a write must be durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Haste {
    /// With what it is a part of, whose end is handed over by itself; within the profile's age or a quarter
    /// of a second, whichever is longer.
    Bulk,
    /// Within the profile's age.
    Patient,
    /// As soon as the disk is free.
    Now,
}

/// What one actor says to another.
#[derive(Debug)]
pub enum Message {
    /// To Store: make this durable.
    Write {
        /// For the reply.
        ticket: Ticket,
        /// What.
        change: Change,
        /// By when.
        haste: Haste,
    },
    /// To Store: whatever waits shall be written as soon as the disk is free.
    FlushNow,
    /// To Store: say `Written` when all that was handed over before is durable.
    Barrier {
        /// For the reply.
        ticket: Ticket,
    },
    /// To Keeper: a batch is durable, or did not fit.
    Grown {
        /// Bytes of the batch.
        bytes: u64,
        /// The quota or the disk refused it.
        full: bool,
    },
    /// To Ingest: what this connection has put shall not wait.
    PutsHurry(ClientId),
    /// To Ingest: patient puts have waited long enough.
    PutsGo,
    /// To Store: a question.
    Ask {
        /// For the reply.
        ticket: Ticket,
        /// What.
        question: Question,
    },
    /// To the asker: the change is durable, outrun, or failed.
    Written {
        /// As asked.
        ticket: Ticket,
        /// What came of it.
        done: Result<ChangeDone, Failure>,
    },
    /// To the asker.
    Answered {
        /// As asked.
        ticket: Ticket,
        /// The answer.
        answer: Answer,
    },
    /// To Sync: a name was bound here; there may be something to announce.
    Changed {
        /// Its content's bytes, for the radio's batch.
        bytes: u64,
    },
    /// To Ingest: the upstream peer has acknowledged everything up to this sequence number.
    Delivered {
        /// The cursor.
        seq: u64,
    },
    /// To Ingest: upstream will not take this; the file it came from must stay.
    Undelivered {
        /// The name.
        name: Name,
        /// A block of it is damaged here: reading the file again mends it.
        is_lost: bool,
    },
    /// To Ingest: a local put begins.
    PutBegin {
        /// The request.
        caller: Caller,
        /// The name.
        name: Name,
        /// Its metadata.
        meta: crate::binding::Meta,
        /// It waits for `PutsGo`.
        patient: bool,
    },
    /// To Ingest: data of a local put.
    PutData {
        /// The request.
        caller: Caller,
        /// The bytes.
        bytes: Bytes,
    },
    /// To Ingest: the data is complete.
    PutEnd {
        /// The request.
        caller: Caller,
    },
    /// To Ingest: the connection is gone; unfinished puts are dropped.
    PutsGone(ClientId),
    /// To Control: Ingest has room for more of this connection's data.
    PutReady(ClientId),
    /// To Control: a put is finished.
    PutDone {
        /// The request.
        caller: Caller,
        /// What came of it.
        done: Result<Response, Failure>,
    },
    /// To Sync: bring an object from the master.
    Fetch {
        /// For the reply.
        ticket: Ticket,
        /// What.
        target: Target,
        /// Whether to wait for a link, or fail without one.
        wait: bool,
    },
    /// To the asker of a `Fetch`.
    Fetched {
        /// As asked.
        ticket: Ticket,
        /// The name it is bound to, or how many requests wait, or why not.
        done: Result<FetchDone, Failure>,
    },
    /// To Sync: a signed command or answer for a peer.
    Post {
        /// The peer.
        to: NodeName,
        /// Its inbox.
        channel: Channel,
        /// The envelope.
        payload: Bytes,
    },
    /// To Power.
    Power {
        /// For the reply.
        ticket: Ticket,
        /// What.
        ask: PowerAsk,
    },
    /// To the asker of `Power`.
    PowerNews {
        /// As asked.
        ticket: Ticket,
        /// What came of it.
        done: Result<Box<PowerReport>, Failure>,
    },
    /// To Sync and Power: what waits for the radio shall not wait longer.
    SendNow,
    /// To Keeper: verify everything for this caller.
    VerifyAll {
        /// Whom to tell.
        ticket: Ticket,
    },
    /// To the asker of `VerifyAll`.
    VerifyNews {
        /// As asked.
        ticket: Ticket,
        /// Progress, or the result, or a failure.
        news: Box<Response>,
    },
}

/// What came of a fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FetchDone {
    /// It is here, durable, under this name.
    Here(Name),
    /// There is no link; so many requests wait.
    Waiting(u32),
}

/// The bounded way out of a call: effects for the shell, messages for other actors.
pub struct Effects {
    effects: Deque<Effect, EFFECTS_MAX>,
    messages: Deque<Message, MESSAGES_MAX>,
    dropped: u64,
    /// Messages for the network since this was last asked, and their bytes.
    sent: (u64, u64),
}

impl Default for Effects {
    fn default() -> Self {
        Effects { effects: Deque::new(), messages: Deque::new(), dropped: 0, sent: (0, 0) }
    }
}

impl Effects {
    /// An effect for the shell.
    pub fn emit(&mut self, effect: Effect) {
        if let Effect::Send { payload, .. } | Effect::Telemetry(payload) = &effect {
            self.sent.0 += 1;
            self.sent.1 += payload.len() as u64;
        }
        if self.effects.push_back(effect).is_err() {
            self.dropped += 1;
            debug_assert!(false, "an actor emitted more than EFFECTS_MAX effects in one call");
        }
    }

    /// A message for another actor.
    pub fn tell(&mut self, message: Message) {
        if self.messages.push_back(message).is_err() {
            self.dropped += 1;
            debug_assert!(false, "actors exchanged more than MESSAGES_MAX messages in one call");
        }
    }

    /// A line for the log.
    pub fn note(&mut self, note: Note) {
        self.emit(Effect::Note(note));
    }

    /// The next effect to carry out.
    pub fn next_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Messages for the network since the last call, and their bytes.
    pub(crate) fn take_sent(&mut self) -> (u64, u64) {
        std::mem::take(&mut self.sent)
    }

    pub(crate) fn next_message(&mut self) -> Option<Message> {
        self.messages.pop_front()
    }

    pub(crate) fn has_messages(&self) -> bool {
        !self.messages.is_empty()
    }

    /// Whether there is room for all the effects that one more step may have.
    pub(crate) fn has_room(&self) -> bool {
        self.room() >= EFFECTS_ROOM
    }

    /// Effects that may still be emitted in this call.
    pub fn room(&self) -> usize {
        EFFECTS_MAX - self.effects.len()
    }

    /// Effects and messages lost at a bound; anything but 0 is a defect.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}
