//! The local socket: how commands and applications talk to a running agent.
//!
//! A connection carries frames both ways: four bytes of body length, one of kind, four of request number,
//! all little-endian, then the body. A request and its answers are JSON, exactly the types of
//! [`larder_core::request`]; the data of a put or get follows in data frames and ends with an empty end
//! frame. A body over [`FRAME_BYTES_MAX`] ends the connection.

pub mod client;
mod quiet;
pub mod server;

use bytes::{Bytes, BytesMut};
use larder_core::limits::FRAME_BYTES_MAX;
use larder_core::request::{Request, Response};
use serde::de::DeserializeOwned;
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

const HEAD: usize = 9;
const KIND_JSON: u8 = 1;
const KIND_DATA: u8 = 2;
const KIND_END: u8 = 3;

/// What one side says to the other; `M` is [`Request`] on the way in and [`Response`] on the way out.
#[derive(Clone, Debug, PartialEq)]
pub enum Frame<M> {
    /// A request or an answer.
    Message(M),
    /// Data of a put or get.
    Data(Bytes),
    /// The data is complete.
    End,
}

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The socket failed, or ended inside a frame.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    /// A frame longer than any may be.
    #[error("a frame of {0} bytes; {FRAME_BYTES_MAX} are the limit")]
    Large(u32),
    /// A kind of frame that does not exist.
    #[error("a frame of unknown kind {0}; the two sides may be of different versions")]
    Kind(u8),
    /// JSON that is no such message. The connection can go on.
    #[error("request {number} does not parse: {error}")]
    Malformed {
        /// The request's number.
        number: u32,
        /// What is wrong with it.
        error: serde_json::Error,
    },
}

/// Reads the next frame; `None` when the other side has closed the connection between two frames.
pub async fn read<M: DeserializeOwned>(
    from: &mut (impl AsyncRead + Unpin),
) -> Result<Option<(u32, Frame<M>)>, FrameError> {
    let mut first = [0];
    if from.read(&mut first).await? == 0 {
        return Ok(None);
    }
    read_on(first, from).await.map(Some)
}

/// Reads the rest of a frame that begins with this byte.
async fn read_on<M: DeserializeOwned>(
    first: [u8; 1],
    from: &mut (impl AsyncRead + Unpin),
) -> Result<(u32, Frame<M>), FrameError> {
    let mut head = [0; HEAD];
    head[..1].copy_from_slice(&first);
    from.read_exact(&mut head[1..]).await?;
    let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
    let number = u32::from_le_bytes([head[5], head[6], head[7], head[8]]);
    if length as usize > FRAME_BYTES_MAX {
        return Err(FrameError::Large(length));
    }
    let mut body = BytesMut::zeroed(length as usize);
    from.read_exact(&mut body).await?;
    let frame = match head[4] {
        KIND_JSON => Frame::Message(
            serde_json::from_slice(&body).map_err(|error| FrameError::Malformed { number, error })?,
        ),
        KIND_DATA => Frame::Data(body.freeze()),
        KIND_END => Frame::End,
        kind => return Err(FrameError::Kind(kind)),
    };
    Ok((number, frame))
}

/// Writes a request.
pub async fn write_request(
    to: &mut (impl AsyncWrite + Unpin),
    number: u32,
    frame: &Frame<Request>,
) -> io::Result<()> {
    write(to, number, frame).await
}

/// Writes an answer.
pub async fn write_response(
    to: &mut (impl AsyncWrite + Unpin),
    number: u32,
    frame: &Frame<Response>,
) -> io::Result<()> {
    write(to, number, frame).await
}

async fn write<M: serde::Serialize>(
    to: &mut (impl AsyncWrite + Unpin),
    number: u32,
    frame: &Frame<M>,
) -> io::Result<()> {
    let (kind, body) = match frame {
        Frame::Message(message) => (KIND_JSON, Bytes::from(serde_json::to_vec(message)?)),
        Frame::Data(bytes) => (KIND_DATA, bytes.clone()),
        Frame::End => (KIND_END, Bytes::new()),
    };
    let length = u32::try_from(body.len()).map_err(|_| io::Error::other("a frame over 4 GiB"))?;
    let mut head = [0; HEAD];
    head[..4].copy_from_slice(&length.to_le_bytes());
    head[4] = kind;
    head[5..].copy_from_slice(&number.to_le_bytes());
    to.write_all(&head).await?;
    to.write_all(&body).await?;
    to.flush().await
}
