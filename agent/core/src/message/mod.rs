//! What crosses the border of the core, and what actors say to each other.
//!
//! The shell turns the world into an [`Input`], calls [`crate::node::Node::handle`] and carries out
//! every [`Effect`]. Requests between actors flow one way, replies come back as messages carrying the
//! asker's [`Ticket`]. Both queues are bounded; see [`crate::limits`].

mod effects;
mod work;

pub use effects::Effects;
pub use work::{
    Answer, Bound, Change, ChangeDone, FileDone, FileId, FileJob, FileStat, Haste, Job, JobDone, JobId,
    Question,
};

use crate::id::{BlockId, NodeName};
use crate::ingest::cutter::{Cut, Cutter, StreamId};
use crate::name::Name;
use crate::note::Note;
use crate::power::conditions::Readings;
use crate::power::plan::Steering;
use crate::power::report::{PowerAsk, PowerReport};
use crate::request::{Failure, ProcessNumbers, Request, Response, Target};
use bytes::Bytes;
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
    /// The disk's helper thread is at a long job.
    JobProgress {
        /// As given in the job.
        job: JobId,
        /// Bytes so far.
        done: u64,
        /// Bytes in all, as far as known.
        total: u64,
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
    /// Say what kernel, disk and link count of this process.
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
    /// To Sync: a watched file gave way to another node's version of its name.
    Conflicted {
        /// The name.
        name: Name,
        /// What the file is bound as.
        kept_as: Name,
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
    /// To Ingest: a peer's version of this name was bound. What it stood for before goes upstream, if it has not gone,
    /// behind all that waits now.
    Rebound {
        /// The name.
        name: Name,
        /// Its place in the order of changes.
        seq: u64,
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
    /// To the asker of something that takes long: how far it is.
    Progress {
        /// As asked.
        ticket: Ticket,
        /// Bytes so far.
        done: u64,
        /// Bytes in all, as far as known.
        total: u64,
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
    /// To Keeper: what one name leads to is given to another, or to a connection, and the first may then lead elsewhere.
    Copied {
        /// The object's root.
        root: BlockId,
        /// Levels of its manifests.
        depth: u8,
        /// Its bytes.
        size: u64,
    },
    /// To Keeper: do this for a caller.
    Errand {
        /// Whom to tell.
        ticket: Ticket,
        /// What.
        errand: Errand,
    },
    /// To the asker of `Errand`.
    ErrandNews {
        /// As asked.
        ticket: Ticket,
        /// Progress, or the result, or a failure.
        news: Box<Response>,
    },
}

/// What the Keeper is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errand {
    /// Read every block and check it.
    Verify,
    /// Delete the block of this name, and what lies below it, as far as no object needs them.
    Erase(BlockId),
}

/// What came of a fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FetchDone {
    /// It is here, durable, under this name.
    Here(Name),
    /// There is no link; so many requests wait.
    Waiting(u32),
}
