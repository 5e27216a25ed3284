//! The command line.
//!
//! Duty: from arguments to requests, from answers to text, JSON and exit codes. What a command does is decided
//! by the loop, be it the agent's or one of its own. Fails: [`exit::CommandError`], shown once, as one exit code.

pub(crate) mod arguments;
pub mod client;
pub(crate) mod destination;
pub(crate) mod exit;
mod get;
mod names;
mod output;
mod power;
mod put;
pub(crate) mod source;
mod status;
#[cfg(test)]
mod transfer_tests;

use std::path::Path;

use clap::{CommandFactory, Parser};
use larder_core::request::{Failure, FailureKind, Response};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

pub use arguments::Cli;
pub use exit::{CommandError, Exit};

use crate::config::init::Init;
use crate::config::{Config, Environment};
use crate::demo::{self, DemoOptions};
use crate::run;
use arguments::{Command, Index};
use client::Connection;
use output::Output;

/// The profile of the demo, where none is asked for: it is watched by somebody who waits.
const DEMO_PROFILE: &str = "performance";

impl Cli {
    /// Reads this process's command line; answers `--help`, `--version` and mistakes itself.
    ///
    /// # Errors
    /// The exit code to end with.
    pub fn of_process() -> Result<Cli, Exit> {
        let mistake = match Cli::try_parse() {
            Ok(cli) => return Ok(cli),
            Err(mistake) => mistake,
        };
        if mistake.use_stderr() && std::env::args_os().any(|argument| argument == "--json") {
            let text = mistake.render().to_string();
            let message = text.trim().trim_start_matches("error: ");
            let failure = Failure::new(FailureKind::Invalid, message);
            let _ = Output::new(true, true).answer(&Response::Error(failure));
        } else {
            // a reader that is gone needs no help
            let _ = mistake.print();
        }
        Err(if mistake.use_stderr() { Exit::USAGE } else { Exit::OK })
    }

    /// Starts to log to standard error, as the flag, `LARDER_LOG` or the command says.
    ///
    /// # Errors
    /// The exit code to end with when that is no filter.
    pub fn start_log(&self) -> Result<(), Exit> {
        let by_command = if matches!(self.command, Command::Run(_)) { "info" } else { "warn" };
        let wish = self.global.log.clone().or_else(|| std::env::var("LARDER_LOG").ok());
        let wish = wish.filter(|wish| !wish.is_empty()).unwrap_or_else(|| by_command.to_owned());
        let filter = EnvFilter::try_new(&wish).map_err(|error| {
            let why = format!("--log {wish:?} does not work ({error}): try info, debug or larder=debug");
            Output::new(self.global.json, true).problem(&CommandError::Usage(why))
        })?;
        let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        // the journal has its own clock and no colours
        if std::env::var_os("JOURNAL_STREAM").is_some() {
            log.without_time().with_ansi(false).init();
        } else {
            log.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init();
        }
        Ok(())
    }
}

/// Runs a command to its end and reports what went wrong.
pub async fn run(cli: Cli) -> Exit {
    let mut output = Output::new(cli.global.json, cli.global.quiet);
    match dispatch(cli, &mut output).await {
        Ok(exit) => exit,
        Err(error) => {
            output.end();
            output.problem(&error)
        }
    }
}

async fn dispatch(cli: Cli, output: &mut Output) -> Result<Exit, CommandError> {
    cli.check()?;
    match &cli.command {
        Command::Demo(arguments) => {
            let options = DemoOptions {
                dir: arguments.dir.clone(),
                keep: arguments.keep.clone(),
                json: cli.global.json,
                quiet: cli.global.quiet,
                profile: cli.global.profile.clone().unwrap_or_else(|| DEMO_PROFILE.to_owned()),
            };
            demo::demo(&options, interruption()?).await?;
            Ok(Exit::OK)
        }
        Command::Init(arguments) => init(&cli, arguments, output),
        Command::Completions(arguments) => {
            let mut script = Vec::new();
            clap_complete::generate(arguments.shell, &mut Cli::command(), "larder", &mut script);
            output.write(&script).map(|()| Exit::OK)
        }
        Command::Manual(arguments) => {
            let failed = |error| CommandError::Usage(format!("{}: {error}", arguments.dir.display()));
            clap_mangen::generate_to(Cli::command(), &arguments.dir).map_err(failed)?;
            Ok(Exit::OK)
        }
        Command::Run(_) => {
            let config = load(&cli)?;
            run::agent(&config, cli.overrides()).await?;
            Ok(Exit::OK)
        }
        Command::Put(_)
        | Command::Get(_)
        | Command::Ls(_)
        | Command::Rm(_)
        | Command::Fetch(_)
        | Command::Status
        | Command::Power(_)
        | Command::Verify
        | Command::Index(_) => {
            let config = load(&cli)?;
            let interrupted = interruption()?;
            // what is dropped here cleans up after itself; the store needs no cleaning up
            tokio::select! {
                ended = ask(&cli, &config, output) => ended,
                () = interrupted => Err(CommandError::Interrupted),
            }
        }
    }
}

fn load(cli: &Cli) -> Result<Config, CommandError> {
    let environment = Environment::of_process();
    let machine = larder_hal::board::detect(&environment.machine_root());
    Ok(Config::load(&cli.overrides(), &environment, &machine)?)
}

/// Comes to its end when the user or the system asks to stop; from the call on neither ends the process.
fn interruption() -> Result<impl Future<Output = ()>, CommandError> {
    let failed = CommandError::Signals;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// The commands that ask a node.
async fn ask(cli: &Cli, config: &Config, output: &mut Output) -> Result<Exit, CommandError> {
    let needs_agent =
        cli.global.node.is_some() || matches!(cli.command, Command::Fetch(_) | Command::Power(_));
    let connection =
        if needs_agent { client::connect_to_agent(config).await? } else { client::connect(config).await? };
    let mut connection = connection.to_node(cli.global.node.clone());
    let ended = ask_over(&cli.command, config, &mut connection, output).await;
    let finished = connection.finish().await;
    let exit = ended?;
    finished.map(|()| exit)
}

async fn ask_over(
    command: &Command,
    config: &Config,
    connection: &mut Connection,
    output: &mut Output,
) -> Result<Exit, CommandError> {
    match command {
        Command::Put(arguments) => put::put(arguments, config, connection, output).await,
        Command::Get(arguments) => get::get(arguments, connection, output).await,
        Command::Ls(arguments) => names::list(arguments, connection, output).await,
        Command::Rm(arguments) => names::remove(&arguments.targets, connection, output).await,
        Command::Fetch(arguments) => names::fetch(&arguments.targets, connection, output).await,
        Command::Status => status::status(connection, output).await,
        Command::Power(arguments) => power::power(arguments, connection, output).await,
        Command::Verify => status::verify(connection, output).await,
        Command::Index(Index::Rebuild) => status::rebuild(connection, output).await,
        Command::Demo(_)
        | Command::Init(_)
        | Command::Run(_)
        | Command::Completions(_)
        | Command::Manual(_) => {
            unreachable!("these ask no node and are handled before a connection is made")
        }
    }
}

/// What `init --json` says.
#[derive(Serialize)]
struct Initialised<'a> {
    answer: &'static str,
    config: &'a Path,
    key: &'a Path,
    public: String,
    peer: &'a str,
}

fn init(cli: &Cli, arguments: &arguments::Init, output: &Output) -> Result<Exit, CommandError> {
    let environment = Environment::of_process();
    let no_place =
        || CommandError::Usage("no place for the configuration: name one with --config".to_owned());
    let init = Init {
        config: cli.global.config.clone().or_else(|| environment.config_path()).ok_or_else(no_place)?,
        name: arguments.name.clone().unwrap_or_else(|| crate::config::host_name(&environment)),
        fleet: arguments.fleet.clone(),
        role: arguments.role,
    };
    let made = init.write()?;
    output.record(&Initialised {
        answer: "initialised",
        config: &made.config,
        key: &made.key,
        public: made.public.to_string(),
        peer: &made.stanza,
    })?;
    output.remark(format_args!(
        "# {} and {} are written. Paste this into the configuration of the nodes that are to trust {}:\n",
        made.config.display(),
        made.key.display(),
        init.name
    ))?;
    output.line(made.stanza.trim_end())?;
    Ok(Exit::OK)
}
