//! What the shell's helper thread is asked and answers: jobs for the store, operations on files.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "an answer of another kind is one case, however many kinds there are"
)]

use crate::id::BlockId;
use crate::name::Name;
use crate::object::manifest::Manifest;
use crate::request::{Failure, FailureKind, StoreNumbers};
use crate::sync::wire::Pack;
use bytes::Bytes;

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
    /// Several blocks at once, packed to be sent.
    Pack {
        /// For this announcement.
        group: u32,
        /// Which.
        ids: Vec<BlockId>,
        /// The peer wants them once more: each is checked here before it is sent.
        again: bool,
    },
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
    /// Delete those of these that are not marked.
    CleanDelete(Vec<BlockId>),
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
    /// To `Pack`.
    Packed {
        /// The messages.
        packs: Vec<Pack>,
        /// What is not here, or damaged.
        missing: Vec<BlockId>,
    },
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
    /// To `CleanDelete`: how many.
    Deleted(u64),
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

impl Answer {
    /// Why there is no answer, where another kind was wanted.
    pub fn failure(self) -> Failure {
        match self {
            Answer::Failed(failure) => failure,
            _ => Failure::new(FailureKind::Disk, "the store gave an answer to another question"),
        }
    }
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
    /// The device that its file system lies on.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
    /// Change time in Unix nanoseconds: the one that nobody can set back.
    pub ctime_ns: i64,
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
