//! What a command says: answers on standard output, problems and progress on standard error.
//!
//! Text is for people and may change; `--json` is for programs: each line is one
//! [`larder_core::request::Response`], or an error of the command's own, which has a kind only if one fits. Progress
//! is shown on a terminal alone. Fails when standard output does not take what is written; a reader that has seen
//! enough (`larder ls | head`) ends the command in silence.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use larder_core::request::{FailureKind, Response, Unit};
use serde::Serialize;

use super::exit::{CommandError, Exit, plain};

/// How often a spinner turns.
const TURN: Duration = Duration::from_millis(200);

/// As [`Response::Error`], where no kind need fit.
#[derive(Serialize)]
struct Problem {
    answer: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<FailureKind>,
    message: String,
}

/// How this command speaks.
pub(super) struct Output {
    pub(super) json: bool,
    quiet: bool,
    bar: ProgressBar,
}

impl Output {
    pub(super) fn new(json: bool, quiet: bool) -> Self {
        Output { json, quiet, bar: ProgressBar::hidden() }
    }

    /// Whether somebody watches.
    pub(super) fn shows_progress(&self) -> bool {
        !self.json && !self.quiet && io::stderr().is_terminal()
    }

    /// An answer, as JSON; without `--json` nothing.
    pub(super) fn answer(&self, response: &Response) -> Result<(), CommandError> {
        self.record(response)
    }

    /// Any record, as JSON; without `--json` nothing.
    pub(super) fn record(&self, record: &impl Serialize) -> Result<(), CommandError> {
        if !self.json {
            return Ok(());
        }
        let mut line = serde_json::to_vec(record).map_err(|error| CommandError::Output(error.into()))?;
        line.push(b'\n');
        self.write(&line)
    }

    /// A line of what was asked for; nothing with `--json`.
    pub(super) fn line(&self, line: impl fmt::Display) -> Result<(), CommandError> {
        if self.json { Ok(()) } else { self.write(format!("{}\n", plain(line)).as_bytes()) }
    }

    /// A line that only says that all went well; nothing with `--quiet` or `--json`.
    pub(super) fn remark(&self, line: impl fmt::Display) -> Result<(), CommandError> {
        if self.quiet { Ok(()) } else { self.line(line) }
    }

    /// Bytes as they are.
    pub(super) fn write(&self, bytes: &[u8]) -> Result<(), CommandError> {
        self.bar.suspend(|| {
            let mut stdout = io::stdout().lock();
            stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(CommandError::Output)
        })
    }

    /// What went wrong, and the exit code it means.
    pub(super) fn problem(&self, error: &CommandError) -> Exit {
        if error.is_closed_pipe() {
            return Exit::OK;
        }
        if self.json {
            let problem = Problem { answer: "error", kind: error.kind(), message: error.to_string() };
            // nowhere is left to report that reporting failed
            let _ = self.record(&problem);
        } else {
            self.bar.suspend(|| {
                let _ = writeln!(io::stderr(), "larder: {}", plain(error));
            });
        }
        error.exit()
    }

    /// Starts to show progress towards `total`, if anybody watches; 0 is a total that nobody knows.
    pub(super) fn begin(&mut self, total: u64, unit: Unit) {
        if !self.shows_progress() {
            return;
        }
        let template = match unit {
            Unit::Bytes if total == 0 => "{spinner} {bytes}, {bytes_per_sec}, {elapsed}",
            Unit::Blocks if total == 0 => "{spinner} {human_pos} blocks, {elapsed}",
            Unit::Bytes => "{wide_bar} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left",
            Unit::Blocks => "{wide_bar} {human_pos} of {human_len} blocks, {eta} left",
        };
        let style = ProgressStyle::with_template(template).expect("the templates above are valid");
        self.bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr()).with_style(style);
        if total == 0 {
            self.bar.enable_steady_tick(TURN);
        }
    }

    /// So much more is done.
    pub(super) fn advance(&self, more: u64) {
        self.bar.inc(more);
    }

    /// What an agent says about a long request.
    pub(super) fn progress(&mut self, done: u64, total: u64, unit: Unit) {
        if self.bar.length().is_none_or(|known| known == 0 && total > 0) {
            self.begin(total, unit);
        }
        self.bar.set_length(total);
        self.bar.set_position(done);
    }

    /// Takes the progress away.
    pub(super) fn end(&mut self) {
        self.bar.finish_and_clear();
        self.bar = ProgressBar::hidden();
    }
}

/// Bytes for people.
pub(super) fn bytes(bytes: u64) -> String {
    if bytes < 1024 { format!("{bytes} B") } else { HumanBytes(bytes).to_string() }
}

/// A number with its word, in singular where it has to be.
pub(super) fn count(count: u64, word: &str) -> String {
    format!("{count} {word}{}", if count == 1 { "" } else { "s" })
}
