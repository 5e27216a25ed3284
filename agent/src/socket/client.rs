//! The asking side of a connection: one request after another.

use super::{Frame, FrameError, read, write_request};
use larder_core::request::{Failure, Listed, Request, Response, Target};
use std::io;
use tokio::io::{AsyncRead, AsyncWrite};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The connection failed.
    #[error("the agent's connection failed: {0}")]
    Io(#[from] io::Error),
    /// What came was no frame.
    #[error("the agent's connection: {0}")]
    Frame(#[from] FrameError),
    /// The agent closed the connection.
    #[error("the agent closed the connection; see its log")]
    Closed,
    /// The agent could not do it.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// An answer to something else.
    #[error("the agent gave an answer that was not asked for; it may be of another version")]
    Unexpected,
}

/// One connection.
pub struct Client<S> {
    stream: S,
    number: u32,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    /// A client of this connection, which nobody has used.
    pub fn new(stream: S) -> Self {
        Client { stream, number: 0 }
    }

    /// Asks, and waits for the last answer; the others go to `progress`.
    pub async fn ask(
        &mut self,
        request: Request,
        mut progress: impl FnMut(Response),
    ) -> Result<Response, ClientError> {
        self.send(request).await?;
        loop {
            match self.next().await? {
                Frame::Message(Response::Error(failure)) => return Err(failure.into()),
                Frame::Message(response @ Response::Progress { .. }) => progress(response),
                Frame::Message(response) => return Ok(response),
                Frame::Data(_) | Frame::End => return Err(ClientError::Unexpected),
            }
        }
    }

    /// Reads a whole object.
    pub async fn get(&mut self, target: Target, mut take: impl FnMut(&[u8])) -> Result<Listed, ClientError> {
        self.send(Request::Get { target, offset: 0, length: None }).await?;
        let object = loop {
            match self.next().await? {
                Frame::Message(Response::Progress { .. }) => {}
                Frame::Message(Response::Object { object }) => break object,
                Frame::Message(Response::Error(failure)) => return Err(failure.into()),
                Frame::Message(_) | Frame::Data(_) | Frame::End => return Err(ClientError::Unexpected),
            }
        };
        loop {
            match self.next().await? {
                Frame::Data(bytes) => take(&bytes),
                Frame::End => return Ok(object),
                Frame::Message(Response::Error(failure)) => return Err(failure.into()),
                Frame::Message(_) => return Err(ClientError::Unexpected),
            }
        }
    }

    async fn send(&mut self, request: Request) -> Result<(), ClientError> {
        self.number = self.number.wrapping_add(1);
        Ok(write_request(&mut self.stream, self.number, &Frame::Message(request)).await?)
    }

    async fn next(&mut self) -> Result<Frame<Response>, ClientError> {
        let (number, frame) = read::<Response>(&mut self.stream).await?.ok_or(ClientError::Closed)?;
        if number == self.number || number == 0 { Ok(frame) } else { Err(ClientError::Unexpected) }
    }
}
