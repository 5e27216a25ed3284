//! How a command ends: one table of exit codes, and the errors that lead to them.

use std::fmt;
use std::io;
use std::process::ExitCode;

use larder_core::request::{Failure, FailureKind};

use super::destination::DestinationError;
use super::source::SourceError;
use crate::config::{ConfigError, init::InitError};
use crate::demo::DemoError;
use crate::run::RunError;
use crate::socket::FrameError;

/// Every exit code and what it means; `larder --help` and the README show it.
const CODES: [(u8, &str); 10] = [
    (0, "done"),
    (1, "another failure, an interruption; a file that was skipped"),
    (2, "the command line, the configuration or the request is wrong, or the store of a newer format"),
    (3, "no such name, block or file"),
    (4, "stored bytes are damaged or missing"),
    (5, "the quota or the disk is full"),
    (6, "the role, the peer or the user may not do that, or the disk is read-only"),
    (7, "no agent, or a peer that could not be reached"),
    (8, "in use, too much at once, or a file that kept changing: try again"),
    (9, "the disk failed"),
];

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit(pub u8);

impl Exit {
    /// All was done.
    pub const OK: Exit = Exit(0);
    /// A failure that no other code names.
    pub const OTHER: Exit = Exit(1);
    /// Wrong usage or configuration.
    pub const USAGE: Exit = Exit(2);

    /// The first problem of a command decides how it ends.
    #[must_use]
    pub fn or(self, later: Exit) -> Exit {
        if self == Exit::OK { later } else { self }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.0)
    }
}

impl From<FailureKind> for Exit {
    fn from(kind: FailureKind) -> Exit {
        Exit(match kind {
            FailureKind::Invalid => 2,
            FailureKind::NotFound => 3,
            FailureKind::Damaged => 4,
            FailureKind::Full => 5,
            FailureKind::Forbidden => 6,
            FailureKind::Unreachable => 7,
            FailureKind::Busy => 8,
            FailureKind::Disk => 9,
        })
    }
}

/// The kind of failure an error of the file system is, if it is one that has a kind.
pub(super) fn kind_of(error: &io::Error) -> Option<FailureKind> {
    const KINDS: [(io::ErrorKind, FailureKind); 5] = [
        (io::ErrorKind::NotFound, FailureKind::NotFound),
        (io::ErrorKind::PermissionDenied, FailureKind::Forbidden),
        (io::ErrorKind::StorageFull, FailureKind::Full),
        (io::ErrorKind::QuotaExceeded, FailureKind::Full),
        (io::ErrorKind::ReadOnlyFilesystem, FailureKind::Forbidden),
    ];
    // the standard library has no kind for a device that fails
    if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) {
        return Some(FailureKind::Disk);
    }
    KINDS.into_iter().find(|(kind, _)| *kind == error.kind()).map(|(_, kind)| kind)
}

/// The table as `larder --help` shows it.
pub(super) fn help() -> String {
    let rows = CODES.iter().map(|(code, meaning)| format!("  {code}  {meaning}\n"));
    format!("Exit codes; of several problems the first decides:\n{}", rows.collect::<String>())
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// Something on the command line can not go together.
    #[error("{0}")]
    Usage(String),
    /// There is no configuration to work with.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The node's files could not be made.
    #[error(transparent)]
    Init(#[from] InitError),
    /// The agent's answer.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// A file to be put.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A file to be written.
    #[error(transparent)]
    Destination(#[from] DestinationError),
    /// The connection to the agent.
    #[error("the agent has hung up ({0}); `journalctl -u larder` may say why")]
    Connection(#[from] FrameError),
    /// The agent answered with something that is no answer to this request.
    #[error("the agent gave an unexpected answer to {0}; agent and command may be of different versions")]
    Answer(&'static str),
    /// The loop could not be started or stopped.
    #[error(transparent)]
    Agent(#[from] RunError),
    /// The demo failed.
    #[error(transparent)]
    Demo(#[from] DemoError),
    /// Signals can not be caught.
    #[error("signals can not be caught: {0}")]
    Signals(io::Error),
    /// Standard output does not take what is written.
    #[error("standard output: {0}")]
    Output(io::Error),
    /// Standard input can not be read.
    #[error("standard input: {0}")]
    Input(io::Error),
    /// The user or the system asked to stop.
    #[error("interrupted; what was acknowledged is safe")]
    Interrupted,
}

impl CommandError {
    /// What kind of failure it is, where one of them fits.
    pub(super) fn kind(&self) -> Option<FailureKind> {
        match self {
            Self::Usage(_) | Self::Config(_) => Some(FailureKind::Invalid),
            Self::Init(InitError::Exists { .. }) => Some(FailureKind::Invalid),
            Self::Init(InitError::Unwritable { reason, .. }) => kind_of(reason),
            Self::Init(InitError::Key(_)) => None,
            Self::Failed(failure) => Some(failure.kind),
            Self::Source(error) => error.kind(),
            Self::Destination(error) => error.kind(),
            Self::Connection(FrameError::Io(_)) => Some(FailureKind::Unreachable),
            Self::Connection(FrameError::Large(_) | FrameError::Kind(_) | FrameError::Malformed { .. }) => {
                None
            }
            Self::Agent(error) | Self::Demo(DemoError::Run(error)) => error.kind(),
            Self::Demo(DemoError::Io { source, .. }) => kind_of(source),
            Self::Demo(DemoError::NotEmpty(_)) => Some(FailureKind::Invalid),
            Self::Demo(DemoError::Nothing(_)) => Some(FailureKind::NotFound),
            Self::Demo(_) | Self::Signals(_) => None,
            Self::Output(error) | Self::Input(error) => kind_of(error),
            Self::Answer(_) | Self::Interrupted => None,
        }
    }

    /// The exit code.
    pub(super) fn exit(&self) -> Exit {
        self.kind().map_or(Exit::OTHER, Exit::from)
    }

    /// Whether it only says that the reader of our output has seen enough.
    pub(super) fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

/// A text with nothing in it that could command a terminal: names and messages come from elsewhere.
pub(super) fn plain(text: impl fmt::Display) -> String {
    let text = text.to_string();
    if !text.chars().any(|c| c.is_control() && c != '\n') {
        return text;
    }
    text.chars().fold(String::with_capacity(text.len()), |mut plain, c| {
        if c.is_control() && c != '\n' {
            plain.extend(c.escape_default());
        } else {
            plain.push(c);
        }
        plain
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [FailureKind; 8] = [
        FailureKind::Invalid,
        FailureKind::NotFound,
        FailureKind::Damaged,
        FailureKind::Full,
        FailureKind::Forbidden,
        FailureKind::Unreachable,
        FailureKind::Busy,
        FailureKind::Disk,
    ];

    #[test]
    fn every_kind_of_failure_has_an_exit_code_of_its_own_in_the_table() {
        let mut codes: Vec<u8> = KINDS.iter().map(|kind| Exit::from(*kind).0).collect();
        codes.extend([Exit::OK.0, Exit::OTHER.0]);
        codes.sort_unstable();
        assert_eq!(codes, CODES.map(|(code, _)| code));
    }

    #[test]
    fn a_message_cannot_command_the_terminal() {
        assert_eq!(plain("a\x1b[2Jb\nc"), "a\\u{1b}[2Jb\nc");
        assert_eq!(plain("größer"), "größer");
    }

    #[test]
    fn the_first_problem_decides_the_exit_code() {
        assert_eq!(Exit::OK.or(Exit(3)).or(Exit(5)), Exit(3));
    }
}
