//! `larder put`: files, directories and standard input on their way to the agent.
//!
//! Many small files travel on one connection without waiting for each other: up to [`WINDOW`] puts are
//! unanswered, and every [`FLUSH_EVERY`] of them the agent is asked not to wait for more. A file that changes
//! while it is read is read again, and never stored as a mixture: what fits a frame is confirmed before it is
//! sent, a longer file before its end is sent. The protocol has no word for giving a put up, since dropping
//! the connection says it: then all others are waited for first. Fails, one report each, for single files; for
//! all that follow when the store is full, failed or not ours to write.

use std::collections::BTreeMap;
use std::io;
use std::time::SystemTime;

use bytes::{Bytes, BytesMut};
use larder_core::binding::Meta;
use larder_core::limits::FRAME_BYTES_MAX;
use larder_core::name::Name;
use larder_core::request::{Failure, FailureKind, Request, Response, Unit};

use super::arguments::Put;
use super::client::Connection;
use super::exit::{CommandError, Exit};
use super::output::{Output, bytes, count};
use super::source::{Reading, Source, SourceError, Walk};
use crate::below;
use crate::config::Config;
use crate::socket::Frame;

/// Puts that may be unanswered; with flushes, below what the agent reads ahead of its answers.
const WINDOW: usize = 128;
/// Half the window: one half becomes durable while the other is sent.
const FLUSH_EVERY: usize = WINDOW / 2;
/// Readings of a file that changes before it is given up.
const TRIES: u32 = 3;

/// Runs the command.
pub(super) async fn put(
    arguments: &Put,
    config: &Config,
    connection: &mut Connection,
    output: &mut Output,
) -> Result<Exit, CommandError> {
    let walk = || {
        let paths = arguments.paths.clone();
        Walk::new(paths, arguments.prefix.as_ref(), arguments.name.as_ref(), &config.store)
    };
    if output.shows_progress() {
        let known = || walk().flatten().map(|source| source.size()).sum();
        output.begin(if arguments.stdin.is_some() { 0 } else { known() }, Unit::Bytes);
    }
    let mut upload = Upload {
        config,
        connection,
        output,
        open: BTreeMap::new(),
        unflushed: 0,
        patient: arguments.patient,
        stored: Stored::default(),
        exit: Exit::OK,
        is_hopeless: false,
    };
    let done = match &arguments.stdin {
        Some(name) => upload.stdin(prefixed(arguments.prefix.as_ref(), name)?).await,
        None => upload.files(walk()).await,
    };
    upload.output.end();
    done?;
    let Upload { stored, exit, .. } = upload;
    if arguments.now {
        connection.ask(Request::Send, output).await?;
    }
    output.remark(&stored)?;
    Ok(exit)
}

fn prefixed(prefix: Option<&Name>, name: &Name) -> Result<Name, CommandError> {
    let Some(prefix) = prefix else { return Ok(name.clone()) };
    let name = format!("{}/{}", prefix.as_str(), name.as_str());
    Name::parse(&name).map_err(|error| CommandError::Usage(error.to_string()))
}

/// What has been stored.
#[derive(Default)]
struct Stored {
    objects: u64,
    unchanged: u64,
    bytes: u64,
}

impl std::fmt::Display for Stored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "stored {}, {}", count(self.objects, "object"), bytes(self.bytes))?;
        if self.unchanged > 0 {
            write!(f, "; {} of them unchanged", self.unchanged)?;
        }
        Ok(())
    }
}

/// What became of one reading of a file.
enum Outcome {
    /// All of it is with the agent.
    Sent,
    /// Nothing of it will be stored.
    Lost(SourceError),
}

/// A put without its answer.
struct Open {
    name: Name,
    /// It has its line when it is stored; what was found in a directory is only counted.
    is_named: bool,
}

struct Upload<'a> {
    config: &'a Config,
    connection: &'a mut Connection,
    output: &'a mut Output,
    /// Unanswered puts.
    open: BTreeMap<u32, Open>,
    /// Puts since the last flush.
    unflushed: usize,
    /// Batches are the profile's to make.
    patient: bool,
    stored: Stored,
    exit: Exit,
    /// Whatever follows would fail like the last.
    is_hopeless: bool,
}

impl Upload<'_> {
    async fn files(&mut self, walk: Walk) -> Result<(), CommandError> {
        for found in walk {
            match found {
                Ok(source) => self.file(&source).await?,
                Err(error) => self.problem(error.into()),
            }
            self.collect()?;
            if self.is_hopeless {
                break;
            }
        }
        self.settle().await
    }

    async fn file(&mut self, source: &Source) -> Result<(), CommandError> {
        for _ in 1..TRIES {
            match self.attempt(source).await? {
                Outcome::Sent => return Ok(()),
                Outcome::Lost(SourceError::Changed { .. }) => {}
                Outcome::Lost(error) => {
                    self.problem(error.into());
                    return Ok(());
                }
            }
        }
        if let Outcome::Lost(error) = self.attempt(source).await? {
            self.problem(error.into());
        }
        Ok(())
    }

    async fn attempt(&mut self, source: &Source) -> Result<Outcome, CommandError> {
        let mut reading = match source.open() {
            Ok(reading) => reading,
            Err(error) => return Ok(Outcome::Lost(error)),
        };
        if reading.fits_a_frame() {
            return match reading.next().and_then(|bytes| reading.confirm().map(|()| bytes)) {
                Ok(bytes) => self.small(source, reading.meta(), bytes).await,
                Err(error) => Ok(Outcome::Lost(error)),
            };
        }
        let number = self.begin(source.name.clone(), reading.meta(), source.is_named()).await?;
        match self.large(number, &mut reading).await? {
            Ok(()) => Ok(Outcome::Sent),
            Err(error) => {
                self.give_up(number).await?;
                Ok(Outcome::Lost(error))
            }
        }
    }

    async fn small(&mut self, source: &Source, meta: Meta, bytes: Bytes) -> Result<Outcome, CommandError> {
        let number = self.begin(source.name.clone(), meta, source.is_named()).await?;
        if !bytes.is_empty() {
            self.send(number, bytes).await?;
        }
        self.connection.send_end(number).await?;
        Ok(Outcome::Sent)
    }

    /// Sends a file that takes several frames. The inner error is the file's, the outer the connection's.
    async fn large(
        &mut self,
        number: u32,
        reading: &mut Reading<'_>,
    ) -> Result<Result<(), SourceError>, CommandError> {
        loop {
            let bytes = match reading.next() {
                Ok(bytes) => bytes,
                Err(error) => return Ok(Err(error)),
            };
            if bytes.is_empty() {
                break;
            }
            self.send(number, bytes).await?;
            self.collect()?;
            if !self.open.contains_key(&number) {
                // refused already; its problem is reported
                return Ok(Ok(()));
            }
        }
        if let Err(error) = reading.confirm() {
            return Ok(Err(error));
        }
        self.connection.send_end(number).await?;
        Ok(Ok(()))
    }

    async fn stdin(&mut self, name: Name) -> Result<(), CommandError> {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let mtime_ms = i64::try_from(since.as_millis()).unwrap_or(i64::MAX);
        let number = self.begin(name, Meta { size: 0, mtime_ms, mode: 0o644 }, true).await?;
        loop {
            // an error here ends the command, so the put is never ended and nothing of it stays
            let bytes = read_stdin().await.map_err(CommandError::Input)?;
            if bytes.is_empty() {
                break;
            }
            self.send(number, bytes).await?;
            self.collect()?;
            if !self.open.contains_key(&number) {
                return Ok(());
            }
        }
        self.connection.send_end(number).await?;
        self.settle().await
    }

    /// Announces a put, once there is room for it in the window.
    async fn begin(&mut self, name: Name, meta: Meta, is_named: bool) -> Result<u32, CommandError> {
        if self.unflushed >= FLUSH_EVERY {
            self.flush().await?;
        }
        while self.open.len() >= WINDOW {
            self.wait().await?;
        }
        let number =
            self.connection.send(Request::Put { name: name.clone(), meta, patient: self.patient }).await?;
        self.open.insert(number, Open { name, is_named });
        self.unflushed += 1;
        Ok(number)
    }

    async fn send(&mut self, number: u32, bytes: Bytes) -> Result<(), CommandError> {
        self.output.advance(bytes.len() as u64);
        self.connection.send_data(number, bytes).await
    }

    async fn flush(&mut self) -> Result<(), CommandError> {
        self.unflushed = 0;
        if self.patient {
            return Ok(());
        }
        self.connection.send(Request::Flush).await.map(|_| ())
    }

    /// Waits until every put is answered.
    async fn settle(&mut self) -> Result<(), CommandError> {
        if self.unflushed > 0 {
            self.flush().await?;
        }
        while !self.open.is_empty() {
            self.wait().await?;
        }
        Ok(())
    }

    /// Leaves a put without its end: the agent forgets it with the connection.
    async fn give_up(&mut self, number: u32) -> Result<(), CommandError> {
        if self.open.remove(&number).is_none() {
            return Ok(());
        }
        self.settle().await?;
        self.connection.reconnect(self.config).await
    }

    async fn wait(&mut self) -> Result<(), CommandError> {
        let (number, frame) = self.connection.next().await?;
        self.answered(number, frame)
    }

    /// Takes in the answers that are here.
    fn collect(&mut self) -> Result<(), CommandError> {
        while let Some((number, frame)) = self.connection.ready()? {
            self.answered(number, frame)?;
        }
        Ok(())
    }

    fn answered(&mut self, number: u32, frame: Frame<Response>) -> Result<(), CommandError> {
        let Frame::Message(response) = frame else { return Err(CommandError::Answer("put")) };
        let put = self.open.remove(&number);
        if let Response::Error(failure) = response {
            self.refused(put, failure);
        } else if let Response::Stored { name, cid, size, unchanged, .. } = &response {
            self.stored.objects += 1;
            self.stored.bytes += size;
            self.stored.unchanged += u64::from(*unchanged);
            self.output.answer(&response)?;
            if put.is_some_and(|put| put.is_named) {
                self.output.remark(format_args!("{cid}  {}", name.as_str()))?;
            }
        }
        Ok(())
    }

    fn refused(&mut self, put: Option<Open>, failure: Failure) {
        let was_hopeless = self.is_hopeless;
        self.is_hopeless |= dooms_all(failure.kind);
        // a window full of puts meets the same wall: once is enough to say so
        if was_hopeless && dooms_all(failure.kind) {
            return;
        }
        let message = match put {
            Some(put) if !failure.message.contains(put.name.as_str()) => {
                format!("{}: {}", put.name.as_str(), failure.message)
            }
            Some(_) | None => failure.message,
        };
        self.problem(Failure::new(failure.kind, message).into());
    }

    fn problem(&mut self, error: CommandError) {
        self.exit = self.exit.or(self.output.problem(&error));
    }
}

/// Whether the next file would meet the same failure.
fn dooms_all(kind: FailureKind) -> bool {
    matches!(kind, FailureKind::Full | FailureKind::Forbidden | FailureKind::Disk)
}

/// Reads on a thread that may block: a pipe may say nothing for a long time, and the loop may run here.
async fn read_stdin() -> io::Result<Bytes> {
    let read = || {
        let mut buffer = BytesMut::zeroed(FRAME_BYTES_MAX);
        let filled = below::read_full(&mut io::stdin().lock(), &mut buffer)?;
        buffer.truncate(filled);
        Ok(buffer.freeze())
    };
    tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?
}
