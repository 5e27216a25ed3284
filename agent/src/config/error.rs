//! Where a value came from, and what is wrong with it.

use std::fmt;
use std::io;
use std::path::PathBuf;

use larder_core::role::Role;
use serde::{Deserialize, Serialize};

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A configuration file, by line.
    File {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// A command line flag, by name.
    Flag(&'static str),
    /// An environment variable, by name.
    Environment(String),
    /// The power profile of this name.
    Profile(String),
    /// The board of this name.
    Board(String),
    /// The role's defaults.
    Role(Role),
    /// What the machine says of itself, or where things lie on it.
    Machine(&'static str),
}

impl Origin {
    pub(super) fn says<T>(&self, value: T) -> Setting<T> {
        Setting { value, from: self.to_string() }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line } => write!(f, "config {}:{line}", path.display()),
            Self::Flag(name) => write!(f, "flag {name}"),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Profile(name) => write!(f, "profile {name}"),
            Self::Board(name) => write!(f, "board {name}"),
            Self::Role(role) => write!(f, "role {role}"),
            Self::Machine(fact) => f.write_str(fact),
        }
    }
}

/// A value and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sourced<T> {
    /// The value.
    pub value: T,
    /// Where it came from.
    pub from: Origin,
}

impl<T> Sourced<T> {
    pub(super) fn new(value: T, from: Origin) -> Self {
        Self { value, from }
    }

    pub(super) fn map<U>(self, change: impl FnOnce(T) -> U) -> Sourced<U> {
        Sourced { value: change(self.value), from: self.from }
    }
}

/// A value in force and, as text, where it came from: what `larder status` shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting<T> {
    /// The value.
    pub value: T,
    /// Where it came from.
    pub from: String,
}

impl<T> From<Sourced<T>> for Setting<T> {
    fn from(sourced: Sourced<T>) -> Self {
        Self { value: sourced.value, from: sourced.from.to_string() }
    }
}

/// Why there is no configuration to run with.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file that was asked for cannot be read.
    #[error("{} cannot be read: {reason}; `larder init` writes a configuration", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        reason: io::Error,
    },
    /// More text than any configuration has.
    #[error("{} has more than {max} bytes: this is no configuration", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The bound.
        max: u64,
    },
    /// Not TOML.
    #[error("{from}: not TOML: {message}")]
    Syntax {
        /// Where.
        from: Origin,
        /// What the parser says.
        message: String,
    },
    /// A key nobody knows.
    #[error("{from}: unknown key {key}{}; allowed are {allowed}", did_you_mean(nearest.as_deref()))]
    UnknownKey {
        /// Where.
        from: Origin,
        /// The key as written, with its section.
        key: String,
        /// The known key most like it.
        nearest: Option<String>,
        /// The known keys there.
        allowed: String,
    },
    /// A value of the wrong type, or one that cannot work.
    #[error("{from}: {key} = {found} does not work: allowed is {allowed}")]
    Value {
        /// Where.
        from: Origin,
        /// The key with its section.
        key: String,
        /// What is written there.
        found: String,
        /// What may be.
        allowed: String,
    },
    /// Instructions this machine does not have.
    #[error("{from}: [node] kernels: {reason}; \"auto\" takes the best of them")]
    Level {
        /// Where.
        from: Origin,
        /// What it has.
        reason: larder_kernels::LevelError,
    },
    /// A key that is needed beside others.
    #[error("{from}: {key} is missing: {why}")]
    Missing {
        /// What makes it necessary.
        from: Origin,
        /// The key with its section.
        key: String,
        /// What it is needed for.
        why: String,
    },
    /// A node that cannot know whom to talk to.
    #[error(
        "{from}: a {role} with [mqtt] needs {needed} [[peer]] with role = \"master\", here are {found}: paste what `larder init` printed on the master"
    )]
    Masters {
        /// What made it that role.
        from: Origin,
        /// This node's role.
        role: Role,
        /// How many it needs.
        needed: &'static str,
        /// How many there are.
        found: usize,
    },
    /// Data in the clear on a network.
    #[error(
        "{from}: {key} = {address:?} is not on this machine, and plain MQTT is spoken on loopback alone: set [mqtt] {needed}"
    )]
    Plaintext {
        /// Where.
        from: Origin,
        /// The key with its section.
        key: &'static str,
        /// The address.
        address: String,
        /// What makes it TLS.
        needed: &'static str,
    },
    /// No directory to put something by default.
    #[error("no place for {what}: set {key}, or HOME")]
    NoPlace {
        /// What needs one.
        what: &'static str,
        /// The setting that gives one.
        key: &'static str,
    },
}

fn did_you_mean(nearest: Option<&str>) -> String {
    nearest.map(|key| format!(" (did you mean {key}?)")).unwrap_or_default()
}
