//! `larder get`: an object, or a part of it, on its way to a file or to standard output.
//!
//! The file is there whole or not at all ([`super::destination`]). Standard output can not be taken back:
//! there the exit code alone says whether all of it came. Bound: the frames read ahead. Fails when bytes are
//! missing, whatever the agent says.

use std::path::Path;

use bytes::Bytes;
use larder_core::binding::Meta;
use larder_core::request::{Failure, FailureKind, Listed, Request, Response, Unit};

use super::arguments::Get;
use super::client::Connection;
use super::destination::{Destination, Partial};
use super::exit::{CommandError, Exit};
use super::output::{Output, bytes};
use crate::socket::Frame;

enum Sink {
    Stdout,
    File(Partial),
}

impl Sink {
    fn open(output: Option<&Path>, object: &Listed, force: bool) -> Result<Sink, CommandError> {
        if output == Some(Path::new("-")) {
            return Ok(Sink::Stdout);
        }
        Ok(Sink::File(Destination::of(output, &object.name, force)?.create(&object.meta)?))
    }

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
    let to = arguments.output.as_deref();
    let (target, offset, length) = (arguments.target.clone(), arguments.offset, arguments.length);
    let number = connection.send(Request::Get { target, offset, length }).await?;
    let object = object(connection, number, output).await?;
    let expected = expected(&object.meta, offset, length);
    let mut sink = Sink::open(to, &object, arguments.force)?;
    output.begin(expected, Unit::Bytes);
    let copied = copy(connection, number, &mut sink, output).await;
    output.end();
    let received = copied?;
    if received != expected {
        let name = object.name.as_str();
        let why =
            format!("{name} ended after {received} of {expected} bytes; `larder verify` checks the store");
        return Err(Failure::new(FailureKind::Damaged, why).into());
    }
    if let Sink::File(partial) = sink {
        let path = partial.finish(&object.meta)?;
        output.remark(format_args!("{}  {}", path.display(), bytes(received)))?;
        output.answer(&Response::Object { object })?;
    }
    Ok(Exit::OK)
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

async fn copy(
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
