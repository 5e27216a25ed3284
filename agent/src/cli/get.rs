//! `larder get`: objects, or a part of one, on their way to files or to standard output.
//!
//! A file is there whole or not at all ([`super::destination`]). Standard output can not be taken back:
//! there the exit code alone says whether all of it came. Of a directory of names each object is tried, and each
//! failure reported. Bound: the frames read ahead, one page of names. Fails when bytes are missing, whatever the
//! agent says; for all that follow when there is no room to write to, or nobody to ask.

use std::path::Path;

use bytes::Bytes;
use larder_core::binding::Meta;
use larder_core::name::Name;
use larder_core::request::{Failure, FailureKind, Listed, Request, Response, Target, Unit};

use super::arguments::{Get, Wanted};
use super::client::Connection;
use super::destination::{Destination, Partial};
use super::exit::{CommandError, Exit};
use super::names::Pages;
use super::output::{Output, bytes, count};
use crate::socket::Frame;

/// From how many bytes on it is shown how far an object is.
const SHOWN_BYTES_MIN: u64 = 1 << 20;

enum Sink {
    Stdout,
    File(Partial),
}

impl Sink {
    fn write(&mut self, bytes: &[u8], output: &Output) -> Result<(), CommandError> {
        match self {
            Sink::Stdout => output.write(bytes),
            Sink::File(partial) => Ok(partial.write(bytes)?),
        }
    }
}

/// Runs the command.
pub(super) async fn get(
    arguments: &Get,
    connection: &mut Connection,
    output: &mut Output,
) -> Result<Exit, CommandError> {
    match &arguments.wanted {
        Wanted::One(target) => one(arguments, target.clone(), connection, output).await,
        Wanted::Below(prefix) => below(arguments, prefix, connection, output).await,
    }
}

async fn one(
    arguments: &Get,
    target: Target,
    connection: &mut Connection,
    output: &mut Output,
) -> Result<Exit, CommandError> {
    let to = arguments.output.as_deref();
    let (offset, length) = (arguments.offset, arguments.length);
    let number = connection.send(Request::Get { target, offset, length }).await?;
    let object = object(connection, number, output).await?;
    let mut sink = if to == Some(Path::new("-")) {
        Sink::Stdout
    } else {
        Sink::File(Destination::of(to, &object.name, arguments.force)?.create(&object.meta)?)
    };
    let expected = expected(&object.meta, offset, length);
    copy(connection, number, &mut sink, &object, expected, output).await?;
    if let Sink::File(partial) = sink {
        let path = partial.finish(&object.meta)?;
        output.remark(format_args!("{}  {}", path.display(), bytes(expected)))?;
        output.answer(&Response::Object { object })?;
    }
    Ok(Exit::OK)
}

async fn below(
    arguments: &Get,
    prefix: &str,
    connection: &mut Connection,
    output: &mut Output,
) -> Result<Exit, CommandError> {
    let root = arguments.output.as_deref().unwrap_or(Path::new("."));
    Destination::check_root(root)?;
    let (mut exit, mut found, mut pages) = (Exit::OK, false, Pages::of(prefix));
    let (mut objects, mut size) = (0, 0);
    'all: loop {
        let page = match pages.next(connection, output).await {
            Ok(Some((page, _))) => page,
            Ok(None) => break,
            Err(error) => {
                exit = exit.or(output.problem(&error));
                break;
            }
        };
        found |= !page.is_empty();
        for Listed { name, .. } in page {
            match one_below(root, name, arguments.force, connection, output).await {
                Ok(written) => (objects, size) = (objects + 1, size + written),
                Err(error) => {
                    exit = exit.or(output.problem(&error));
                    if dooms_all(&error) {
                        break 'all;
                    }
                }
            }
        }
    }
    if !found && exit == Exit::OK {
        let what = if prefix.is_empty() {
            "there is no name here".to_owned()
        } else {
            format!("no name here is below {prefix}")
        };
        let why =
            format!("{what}; `larder ls` lists what there is, `larder fetch` brings what the master has");
        return Err(Failure::new(FailureKind::NotFound, why).into());
    }
    match output.remark(format_args!("wrote {}, {}", count(objects, "object"), bytes(size))) {
        Ok(()) => Ok(exit),
        Err(error) => Ok(exit.or(output.problem(&error))),
    }
}

/// Writes one of many; its bytes.
async fn one_below(
    root: &Path,
    name: Name,
    force: bool,
    connection: &mut Connection,
    output: &mut Output,
) -> Result<u64, CommandError> {
    // Before it is asked for: what can not be written need not come.
    let place = Destination::below(root, &name, force)?;
    let request = Request::Get { target: Target::Name(name), offset: 0, length: None };
    let number = connection.send(request).await?;
    let object = object(connection, number, output).await?;
    let copied = copy_below(place, connection, number, &object, output).await;
    if let Err(error @ CommandError::Destination(_)) = &copied
        && !dooms_all(error)
    {
        // The rest of it comes before anything else does.
        while !matches!(answer(connection, number).await, Ok(Frame::End) | Err(_)) {}
    }
    if let Sink::File(partial) = copied? {
        partial.finish(&object.meta)?;
    }
    let size = object.meta.size;
    output.answer(&Response::Object { object })?;
    Ok(size)
}

async fn copy_below(
    place: Destination,
    connection: &mut Connection,
    number: u32,
    object: &Listed,
    output: &mut Output,
) -> Result<Sink, CommandError> {
    let mut sink = Sink::File(place.create(&object.meta)?);
    copy(connection, number, &mut sink, object, object.meta.size, output).await?;
    Ok(sink)
}

/// Whether the next object would meet the same failure: no agent, no room, a device that fails.
fn dooms_all(error: &CommandError) -> bool {
    match error.kind() {
        Some(FailureKind::Full | FailureKind::Disk) => matches!(error, CommandError::Destination(_)),
        _ => !matches!(error, CommandError::Failed(_) | CommandError::Destination(_)),
    }
}

/// Bytes of a range that lie inside the object.
fn expected(meta: &Meta, offset: u64, length: Option<u64>) -> u64 {
    meta.size.saturating_sub(offset).min(length.unwrap_or(u64::MAX))
}

async fn object(
    connection: &mut Connection,
    number: u32,
    output: &mut Output,
) -> Result<Listed, CommandError> {
    let object = loop {
        match answer(connection, number).await? {
            Frame::Message(Response::Object { object }) => break object,
            Frame::Message(Response::Progress { done, total, unit }) => output.progress(done, total, unit),
            Frame::Message(_) | Frame::Data(_) | Frame::End => return Err(CommandError::Answer("get")),
        }
    };
    output.end();
    Ok(object)
}

/// All of what is expected of an object, into the sink.
async fn copy(
    connection: &mut Connection,
    number: u32,
    sink: &mut Sink,
    object: &Listed,
    expected: u64,
    output: &mut Output,
) -> Result<(), CommandError> {
    if expected >= SHOWN_BYTES_MIN {
        output.begin(expected, Unit::Bytes);
    }
    let received = copy_all(connection, number, sink, output).await;
    output.end();
    let received = received?;
    if received == expected {
        return Ok(());
    }
    let name = object.name.as_str();
    let why = format!("{name} ended after {received} of {expected} bytes; `larder verify` checks the store");
    Err(Failure::new(FailureKind::Damaged, why).into())
}

async fn copy_all(
    connection: &mut Connection,
    number: u32,
    sink: &mut Sink,
    output: &Output,
) -> Result<u64, CommandError> {
    let mut received = 0;
    loop {
        match answer(connection, number).await? {
            Frame::Data(bytes) => {
                received += bytes.len() as u64;
                take(sink, bytes, output)?;
            }
            Frame::End => return Ok(received),
            Frame::Message(Response::Progress { .. }) => {}
            Frame::Message(_) => return Err(CommandError::Answer("get")),
        }
    }
}

fn take(sink: &mut Sink, bytes: Bytes, output: &Output) -> Result<(), CommandError> {
    sink.write(&bytes, output)?;
    output.advance(bytes.len() as u64);
    Ok(())
}

/// The next answer to this request; an error is one.
async fn answer(connection: &mut Connection, number: u32) -> Result<Frame<Response>, CommandError> {
    loop {
        match connection.next().await? {
            (to, Frame::Message(Response::Error(failure))) if to == number => return Err(failure.into()),
            (to, frame) if to == number => return Ok(frame),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_has_as_many_bytes_as_lie_inside() {
        let meta = Meta { size: 10, mtime_ms: 0, mode: 0 };
        assert_eq!(expected(&meta, 0, None), 10);
        assert_eq!(expected(&meta, 4, None), 6);
        assert_eq!(expected(&meta, 4, Some(3)), 3);
        assert_eq!(expected(&meta, 4, Some(30)), 6);
        assert_eq!(expected(&meta, 11, Some(1)), 0);
    }
}
