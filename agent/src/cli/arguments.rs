//! What can be said on the command line.
//!
//! Refuses what can not be meant: unknown flags, names and CIDs that are none, flags that exclude each other.
//! Fails: with clap's message, which names the argument, and exit code 2.

use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use larder_core::id::{BlockId, NodeName};
use larder_core::name::Name;
use larder_core::request::Target;
use larder_core::role::Role;

use super::exit::{self, CommandError};
use crate::config::Overrides;

const PUT_NAMES: &str = "A file is stored under its own name, a directory DIR as DIR/... with the paths below \
    it, like `cp -r`; `.`, `..` and `/` stand for what is in them. Symbolic links inside a directory are not \
    followed but reported, as is everything else that is no readable file; the rest goes on.";

const RM_CIDS: &str = "What a deleted name leaves behind goes with a later cleaning; until then its CID still finds it. \
    `rm CID` deletes that on this node without waiting: the block, and what it lists if it is a manifest, as far as no \
    object needs it. It is refused while an object needs the block itself. The bytes lie in the log until their \
    segment is cleaned.";

const NO_NODE: &str = "--node goes with ls, rm, fetch, status, power, verify and index";

/// Keeps data safe on small ARM machines and gets it home.
#[derive(Debug, Parser)]
#[command(name = "larder", version, after_help = exit::help(), max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// What every command takes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of all commands")]
pub(super) struct Global {
    /// Configuration file [default: /etc/larder/larder.toml, then the user's own]
    #[arg(long, global = true, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Directory of the store
    #[arg(long, global = true, value_name = "DIR")]
    pub(super) store: Option<PathBuf>,
    /// Socket of the agent
    #[arg(long, global = true, value_name = "PATH")]
    pub(super) socket: Option<PathBuf>,
    /// Power profile: performance, balanced, low-power, duty-cycle or the path of a profile file
    #[arg(long, global = true, value_name = "PROFILE")]
    pub(super) profile: Option<String>,
    /// Board: auto, the name of a board or the path of a board file
    #[arg(long, global = true, value_name = "BOARD")]
    pub(super) board: Option<String>,
    /// Instructions for hashing: auto, or a level such as portable; the result is the same
    #[arg(long, global = true, value_name = "LEVEL")]
    pub(super) kernels: Option<String>,
    /// Answers as JSON, one object a line
    #[arg(long, global = true)]
    pub(super) json: bool,
    /// Ask another node, through the agent here and MQTT
    #[arg(long, global = true, value_name = "NODE")]
    pub(super) node: Option<NodeName>,
    /// What to log: error, warn, info, debug, trace or a filter such as larder=debug
    #[arg(long, global = true, value_name = "LEVEL")]
    pub(super) log: Option<String>,
    /// Say nothing but what was asked for and what went wrong
    #[arg(long, short, global = true)]
    pub(super) quiet: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run master, worker and leecher here on a folder of files and check every byte
    Demo(Demo),
    /// Write a new node's configuration and key, and print what its peers need
    Init(Init),
    /// Run the agent
    Run(Run),
    /// Store files, directories or standard input; ends when all of it is on flash
    #[command(after_help = PUT_NAMES)]
    Put(Put),
    /// Write an object, or a part of it, to a file
    Get(Get),
    /// List names
    Ls(List),
    /// Delete names here and, by sync, where they went; on a leecher its own copy alone. Or a CID's blocks, here
    #[command(after_help = RM_CIDS)]
    Rm(Remove),
    /// Ask the master for objects and keep them here
    Fetch(Fetch),
    /// Show what the node knows of itself
    Status,
    /// Show the profile in force, what the sensors say and what the node costs; or set a profile
    ///
    /// On air are whole MQTT packets both ways, without TLS and TCP; messages are the publishes among them.
    Power(Power),
    /// Read every block and check it
    Verify,
    /// Work on the index
    #[command(subcommand)]
    Index(Index),
    /// Print completions for a shell
    Completions(Completions),
    /// Write a manual page for each command
    #[command(hide = true)]
    Manual(Manual),
}

#[derive(Debug, Args)]
pub(super) struct Demo {
    /// Files to work on [default: a small set made for it]
    #[arg(value_name = "DIR")]
    pub(super) dir: Option<PathBuf>,
    /// Keep the three stores in this directory
    #[arg(long, value_name = "DIR")]
    pub(super) keep: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct Init {
    /// The node's name [default: the host's]
    #[arg(long)]
    pub(super) name: Option<NodeName>,
    /// master, worker or leecher
    #[arg(long, default_value = "worker")]
    pub(super) role: Role,
    /// What the nodes of one fleet share
    #[arg(long, default_value = "home")]
    pub(super) fleet: NodeName,
}

#[derive(Debug, Args)]
pub(super) struct Run {
    /// The node's name
    #[arg(long)]
    pub(super) name: Option<String>,
    /// master, worker or leecher
    #[arg(long)]
    pub(super) role: Option<String>,
    /// Most bytes on disk, such as "10 GB"
    #[arg(long, value_name = "SIZE")]
    pub(super) limit: Option<String>,
    /// Run an MQTT broker in this process
    #[arg(long)]
    pub(super) embedded_broker: bool,
}

#[derive(Debug, Args)]
pub(super) struct Put {
    /// Files and directories
    #[arg(required_unless_present = "stdin", value_name = "PATH")]
    pub(super) paths: Vec<PathBuf>,
    /// Put before every name, as a directory
    #[arg(long)]
    pub(super) prefix: Option<Name>,
    /// Store the one PATH under this name instead of its own
    #[arg(long, value_name = "NAME", conflicts_with = "stdin")]
    pub(super) name: Option<Name>,
    /// Store standard input under this name
    #[arg(long, value_name = "NAME", conflicts_with = "paths")]
    pub(super) stdin: Option<Name>,
    /// Have it sent to peers at once, without waiting for the profile's age or sync window
    #[arg(long)]
    pub(super) now: bool,
    /// Wait for the profile's next batch instead of having one made for this
    #[arg(long, conflicts_with = "now")]
    pub(super) patient: bool,
}

#[derive(Debug, Args)]
pub(super) struct Get {
    /// Name or CID, `name:` or `cid:` before it says which; `DIR/` for all names here below DIR, `/` for all
    #[arg(value_name = "TARGET", value_parser = wanted)]
    pub(super) wanted: Wanted,
    /// File, directory (names' own paths below it) or `-` [default: one name's last part, all names' paths, here]
    #[arg(long, short, value_name = "PATH")]
    pub(super) output: Option<PathBuf>,
    /// Replace a file that exists
    #[arg(long, short)]
    pub(super) force: bool,
    /// First byte
    #[arg(long, default_value_t = 0, value_name = "BYTES")]
    pub(super) offset: u64,
    /// How many bytes at the most
    #[arg(long, value_name = "BYTES")]
    pub(super) length: Option<u64>,
}

/// What is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// One object.
    One(Target),
    /// All whose names begin with this: nothing, or a name and `/`.
    Below(String),
}

#[derive(Debug, Args)]
pub(super) struct List {
    /// Only names that start with this
    #[arg(default_value = "", hide_default_value = true)]
    pub(super) prefix: String,
    /// With mode, size, time (UTC), node and CID
    #[arg(long, short)]
    pub(super) long: bool,
}

#[derive(Debug, Args)]
pub(super) struct Remove {
    /// Names or CIDs; `name:` or `cid:` before one says which
    #[arg(required = true, value_name = "TARGET", value_parser = target)]
    pub(super) targets: Vec<Target>,
}

#[derive(Debug, Args)]
pub(super) struct Fetch {
    /// Names or CIDs; `name:` or `cid:` before one says which
    #[arg(required = true, value_name = "TARGET", value_parser = target)]
    pub(super) targets: Vec<Target>,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Power {
    #[command(subcommand)]
    pub(super) set: Option<PowerSet>,
    /// Show it again and again
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2",
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(super) watch: Option<u64>,
}

#[derive(Debug, Subcommand)]
pub(super) enum PowerSet {
    /// Use another profile until it is set again, for a time, or until the next start
    Set {
        /// Name of a profile
        #[arg(value_name = "PROFILE")]
        name: String,
        /// Such as 90s, 30m, 2h or 1d
        #[arg(long = "for", value_name = "TIME", value_parser = super::power::duration)]
        time: Option<std::time::Duration>,
    },
    /// Use the configured profile and its reactions again
    Auto,
}

#[derive(Debug, Subcommand)]
pub(super) enum Index {
    /// Make the index again from the log
    Rebuild,
}

#[derive(Debug, Args)]
pub(super) struct Completions {
    /// Which shell
    pub(super) shell: Shell,
}

#[derive(Debug, Args)]
pub(super) struct Manual {
    /// Directory that takes them
    #[arg(value_name = "DIR")]
    pub(super) dir: PathBuf,
}

impl Cli {
    /// What the command line says over the environment and the file.
    pub(super) fn overrides(&self) -> Overrides {
        let global = &self.global;
        let mut overrides = Overrides {
            config: global.config.clone(),
            store: global.store.clone(),
            socket: global.socket.clone(),
            profile: global.profile.clone(),
            board: global.board.clone(),
            kernels: global.kernels.clone(),
            log: global.log.clone(),
            ..Overrides::default()
        };
        if let Command::Run(run) = &self.command {
            overrides.name.clone_from(&run.name);
            overrides.role.clone_from(&run.role);
            overrides.limit.clone_from(&run.limit);
            overrides.embedded_broker = run.embedded_broker;
        }
        overrides
    }
}

impl Cli {
    /// What clap can not see: arguments that make no sense together.
    pub(super) fn check(&self) -> Result<(), CommandError> {
        let has_node = self.global.node.is_some();
        let why = match &self.command {
            Command::Put(_) | Command::Get(_) if has_node => {
                "put and get carry data, which travels by sync: run them on the node itself"
            }
            Command::Put(put) if put.name.is_some() && put.paths.len() > 1 => {
                "--name names one PATH; --prefix puts several below a directory"
            }
            Command::Get(get) if self.global.json && get.output.as_deref() == Some(Path::new("-")) => {
                "--json and `-o -` would both write to standard output: leave one out"
            }
            Command::Get(get) if matches!(get.wanted, Wanted::Below(_)) && get.is_of_one() => {
                "--offset, --length and `-o -` are for one object, not for all below a directory"
            }
            Command::Demo(_) | Command::Init(_) | Command::Run(_) if has_node => NO_NODE,
            Command::Completions(_) | Command::Manual(_) if has_node => NO_NODE,
            Command::Put(_) | Command::Get(_) => return Ok(()),
            Command::Demo(_) | Command::Init(_) | Command::Run(_) => return Ok(()),
            Command::Completions(_) | Command::Manual(_) => return Ok(()),
            Command::Ls(_) | Command::Rm(_) | Command::Fetch(_) => return Ok(()),
            Command::Status | Command::Power(_) | Command::Verify | Command::Index(_) => return Ok(()),
        };
        Err(CommandError::Usage(why.to_owned()))
    }
}

impl Get {
    /// Whether it says what can be done with one object alone.
    fn is_of_one(&self) -> bool {
        self.offset > 0 || self.length.is_some() || self.output.as_deref() == Some(Path::new("-"))
    }
}

/// One object, or with `/` at the end the directory of names.
fn wanted(text: &str) -> Result<Wanted, String> {
    match text.strip_suffix('/') {
        None => target(text).map(Wanted::One),
        Some("" | "name:") => Ok(Wanted::Below(String::new())),
        Some(directory) => {
            let name = Name::parse(directory.strip_prefix("name:").unwrap_or(directory));
            let below = |name: Name| Wanted::Below(format!("{}/", name.as_str()));
            name.map(below).map_err(|error| error.to_string())
        }
    }
}

/// A name or a CID. What reads as a CID is one, unless it says that it is a name.
fn target(text: &str) -> Result<Target, String> {
    let name = |text: &str| Name::parse(text).map(Target::Name).map_err(|error| error.to_string());
    if let Some(text) = text.strip_prefix("name:") {
        return name(text);
    }
    if let Some(text) = text.strip_prefix("cid:") {
        return text.parse().map(Target::Cid).map_err(|error: larder_core::id::CidError| error.to_string());
    }
    text.parse::<BlockId>().map_or_else(|_| name(text), |id| Ok(Target::Cid(id)))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_exit_codes_are_in_the_help() {
        let help = Cli::command().render_help().to_string();
        assert!(help.contains("Exit codes") && help.contains("  5  the quota or the disk is full"), "{help}");
    }

    #[test]
    fn flags_for_all_commands_work_before_and_behind_the_command() {
        for line in ["larder --json --node cam ls a", "larder ls a --json --node cam"] {
            let cli = parse(line).unwrap();
            assert!(cli.global.json && cli.global.node.as_ref().is_some_and(|node| node.as_str() == "cam"));
        }
    }

    #[test]
    fn a_text_that_reads_as_a_cid_is_one_unless_it_says_otherwise() {
        let id = BlockId::of(b"x");
        assert_eq!(target(&id.to_string()), Ok(Target::Cid(id)));
        assert_eq!(target(&format!("cid:{id}")), Ok(Target::Cid(id)));
        let name = Target::Name(Name::parse(&id.to_string()).unwrap());
        assert_eq!(target(&format!("name:{id}")), Ok(name));
        assert_eq!(target("a/b.jpg"), Ok(Target::Name(Name::parse("a/b.jpg").unwrap())));
        assert!(target("cid:a/b.jpg").unwrap_err().contains("is not a CID"));
        assert!(target("../b").unwrap_err().contains("could leave the directory"));
    }

    #[test]
    fn a_slash_at_the_end_means_all_names_below() {
        let below = |prefix: &str| Ok(Wanted::Below(prefix.to_owned()));
        assert_eq!(wanted("a/b/"), below("a/b/"));
        assert_eq!(wanted("name:a/"), below("a/"));
        assert_eq!(wanted("/"), below(""));
        assert_eq!(wanted("a/b"), target("a/b").map(Wanted::One));
        assert!(wanted("../").unwrap_err().contains("could leave the directory"));
        assert!(wanted("a//").is_err());
    }

    #[test]
    fn names_that_leave_the_root_are_refused_on_the_command_line() {
        for line in [
            "larder rm ../a",
            "larder put a --name /b",
            "larder put a --prefix a/../b",
            "larder put --stdin a/",
            "larder get ..",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn what_can_not_be_meant_is_refused() {
        for line in [
            "larder",
            "larder put",
            "larder put a --stdin b",
            "larder put --stdin a --name b",
            "larder get a --offset -1",
            "larder rm",
            "larder fetch",
            "larder init --role boss",
            "larder --node UPPER status",
            "larder index",
            "larder completions csh9",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn what_makes_no_sense_together_is_refused_with_the_way_out() {
        for line in [
            "larder put a --node cam",
            "larder get a --node cam",
            "larder run --node cam",
            "larder put a b --name c",
            "larder get a -o - --json",
            "larder get a/ -o -",
            "larder get a/ --offset 1",
            "larder get / --length 1",
        ] {
            let error = parse(line).unwrap().check().unwrap_err();
            assert_eq!(error.exit(), exit::Exit::USAGE, "{line}");
        }
        parse("larder index rebuild --node cam").unwrap().check().unwrap();
    }

    #[test]
    fn what_run_says_of_the_node_overrides_the_configuration() {
        let cli = parse("larder run --role master --embedded-broker --store /s --log debug").unwrap();
        let overrides = cli.overrides();
        assert_eq!(overrides.role.as_deref(), Some("master"));
        assert_eq!((overrides.store, overrides.log), (Some("/s".into()), Some("debug".into())));
        assert!(overrides.embedded_broker);
    }
}
