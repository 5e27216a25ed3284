//! What can go wrong, one enum per operation; each message names the thing and the way out.

use crate::Hash;
use std::fmt::{self, Display, Formatter};
use std::io;
use thiserror::Error;

/// Why a store could not be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("{directory} is in use by another process; stop it, or ask it through its socket")]
    Locked {
        /// The store's directory.
        directory: String,
    },
    /// It can not be written.
    #[error("{directory} can not be written ({reason}); mount it read-write or fix its owner")]
    ReadOnly {
        /// The store's directory.
        directory: String,
        /// The operating system's words.
        reason: String,
    },
    /// There is none, and making one was not asked for.
    #[error("{directory} holds no store; `larder put` or `larder run` makes one")]
    Missing {
        /// The directory.
        directory: String,
    },
    /// A later version of the program wrote it.
    #[error("{directory} has store format {found}, this program knows up to {supported}; upgrade larder")]
    NewerFormat {
        /// The store's directory.
        directory: String,
        /// The format found.
        found: u32,
        /// The newest format this program reads.
        supported: u32,
    },
    /// There are segments, and whose they are can not be read, at least not now.
    #[error(
        "{directory} has segment files but no superblock or segment header can be read; try again, or restore one"
    )]
    Unrecognised {
        /// The store's directory.
        directory: String,
    },
    /// An option has an impossible value.
    #[error("option {option} is {found}, allowed is {allowed}")]
    Option {
        /// Its name.
        option: &'static str,
        /// Its value.
        found: u64,
        /// What may stand there.
        allowed: String,
    },
    /// The directory or a file in it could not be read or written.
    #[error("{doing} in {directory}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// The store's directory.
        directory: String,
        /// The operating system's answer.
        source: io::Error,
    },
    /// The index could be neither opened nor made again.
    #[error("the index in {directory} can not be made: {reason}")]
    Index {
        /// The store's directory.
        directory: String,
        /// Why.
        reason: String,
    },
}

impl OpenError {
    /// Whether it only lacks room on the device.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_full(source))
    }
}

/// Why a batch was not acknowledged. Nothing of it can be relied on.
#[derive(Debug, Error)]
pub enum CommitError {
    /// The quota, or the device, has no room for it.
    #[error("store or device full: {used} of {quota} bytes used; delete and clean, or raise the quota")]
    Full {
        /// Bytes in the store's directory, and those this batch and its index entries need.
        used: u64,
        /// The quota; less what is kept in reserve for batches that put blocks.
        quota: u64,
    },
    /// A part of it, or all of it, is longer than the format takes.
    #[error("{what} is {found} long, at most {limit} fit; split it")]
    TooLarge {
        /// What is too long.
        what: &'static str,
        /// Its length, in bytes or operations.
        found: u64,
        /// The bound.
        limit: u64,
    },
    /// The machine lacks memory or open files; the store goes on.
    #[error("the batch was not written: {source}; try again")]
    Passing {
        /// The operating system's answer.
        source: io::Error,
    },
    /// The log could not be written, and the second segment tried neither.
    #[error("the store refuses writes since {reason}; it still reads; check the device and reopen")]
    Stopped {
        /// The first failure.
        reason: String,
    },
    /// The index could not be read or written.
    #[error("the index failed: {reason}")]
    Index {
        /// Why.
        reason: String,
    },
}

/// Why something stored could not be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The block's bytes do not match its name any more. Put it again to heal it.
    #[error("block {} is damaged in {file} at {offset}; put it again, or let a peer send it", Hex(hash))]
    Damaged {
        /// The block.
        hash: Hash,
        /// The segment file.
        file: String,
        /// Where its record starts.
        offset: u64,
    },
    /// A segment file could not be opened or read for a reason that says nothing about the block.
    #[error("reading {file} failed: {source}")]
    Io {
        /// The segment file.
        file: String,
        /// The operating system's answer.
        source: io::Error,
    },
    /// The index could not be read, and not be made again.
    #[error("the index failed: {reason}")]
    Index {
        /// Why.
        reason: String,
    },
}

/// Why a checkpoint, a cleaning step or closing did not finish. Nothing acknowledged is lost.
#[derive(Debug, Error)]
pub enum MaintainError {
    /// Moving records, or the index, found no room.
    #[error(
        "store or device full: {used} of {quota} bytes used; free space on the device, or raise the quota"
    )]
    Full {
        /// Bytes in the store's directory.
        used: u64,
        /// The quota.
        quota: u64,
    },
    /// The store refuses writes.
    #[error("the store refuses writes since {reason}; check the device and reopen")]
    Stopped {
        /// The first failure.
        reason: String,
    },
    /// The index could not be read or written.
    #[error("the index failed: {reason}")]
    Index {
        /// Why.
        reason: String,
    },
    /// A file could not be removed, renamed or written.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The operating system's answer.
        source: io::Error,
    },
    /// Something stored could not be read.
    #[error(transparent)]
    Read(ReadError),
    /// Part of the log could not be read when a start or a healing came to it. It may hold names that need any block.
    #[error(
        "no space is given back while the device does not read {}: cleaning tries again, some times, and \
         `larder index rebuild` once",
        first_of(files)
    )]
    Unread {
        /// The segment files, at least one.
        files: Vec<String>,
    },
    /// `clean_mark` or `clean_step` without `clean_begin`.
    #[error("no cleaning is under way; begin one first")]
    NotCleaning,
}

impl From<CommitError> for MaintainError {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Full { used, quota } => Self::Full { used, quota },
            CommitError::Passing { source } => Self::Io { doing: "writing a batch", source },
            CommitError::Stopped { reason } => Self::Stopped { reason },
            CommitError::Index { reason } => Self::Index { reason },
            CommitError::TooLarge { .. } => Self::Stopped { reason: error.to_string() },
        }
    }
}

fn first_of(files: &[String]) -> String {
    match files {
        [] => String::new(),
        [only] => only.clone(),
        [first, others @ ..] => format!("{first} and {} more", others.len()),
    }
}

/// Lower-case hexadecimal.
pub(crate) struct Hex<'a>(pub(crate) &'a [u8]);

impl Display for Hex<'_> {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

/// Whether the device, not the quota, said that it is full.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// The device or the machine lacks something that may be there the next time.
pub(crate) fn is_passing(error: &io::Error) -> bool {
    is_full(error) || lacks_means(error)
}

/// Errors of the process or the mount rather than of the file or its sectors.
pub(crate) fn says_nothing_of_the_file(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied || lacks_means(error)
}

/// The kernel or the file system has no such call: `ENOSYS`, `EOPNOTSUPP` and, of some, `EINVAL`.
pub(crate) fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(38 | 95 | 22))
}

/// Too many open files, or no memory: it may work the next time. `EMFILE` and `ENFILE` are 24 and 23 on every Linux.
pub(crate) fn lacks_means(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::OutOfMemory || matches!(error.raw_os_error(), Some(23 | 24))
}
