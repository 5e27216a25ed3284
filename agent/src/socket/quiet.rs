//! One direction of a connection, of which the kernel tells us only while somebody waits for it.
//!
//! Tokio's own sockets stay registered with the kernel for both directions: whatever happens to one wakes the
//! process, be it that a client nobody listens to has said something or has taken an answer. Here a direction
//! is registered when it would block, a reader until it is told to rest, a writer until it could write.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

/// Something frames are read from that can be left alone.
pub(super) trait Source: AsyncRead + Unpin + Send + 'static {
    /// Nothing it has to say wakes anybody, until it is read again.
    fn rest(&mut self) {}
}

impl Source for tokio::io::ReadHalf<tokio::io::DuplexStream> {}

/// One direction.
pub(super) struct Half {
    stream: UnixStream,
    /// The same connection, registered with the kernel.
    waiting: Option<AsyncFd<UnixStream>>,
}

impl Half {
    /// Both directions of a connection that does not block.
    pub(super) fn pair(stream: UnixStream) -> io::Result<(Half, Half)> {
        let other = stream.try_clone()?;
        Ok((Half { stream, waiting: None }, Half { stream: other, waiting: None }))
    }

    /// Waits until it may be tried again.
    #[expect(
        deprecated,
        reason = "its successor is unsafe, for types whose descriptor may change; a socket's never does"
    )]
    fn poll_ready(&mut self, interest: Interest, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let waiting = match self.waiting.take() {
            Some(waiting) => waiting,
            None => AsyncFd::with_interest(self.stream.try_clone()?, interest)?,
        };
        let waiting = self.waiting.insert(waiting);
        let mut guard = ready!(match interest {
            Interest::WRITABLE => waiting.poll_write_ready(context),
            _ => waiting.poll_read_ready(context),
        })?;
        // what became ready since the last try is found by the next one
        guard.clear_ready();
        Poll::Ready(Ok(()))
    }
}

impl Source for Half {
    fn rest(&mut self) {
        self.waiting = None;
    }
}

fn would_block(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

impl AsyncRead for Half {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let half = self.get_mut();
        loop {
            match half.stream.read(buffer.initialize_unfilled()) {
                Ok(count) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if would_block(&error) => {
                    ready!(half.poll_ready(Interest::READABLE, context))?;
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Half {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let half = self.get_mut();
        loop {
            match half.stream.write(bytes) {
                Ok(count) => {
                    half.waiting = None;
                    return Poll::Ready(Ok(count));
                }
                Err(error) if would_block(&error) => {
                    ready!(half.poll_ready(Interest::WRITABLE, context))?;
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.stream.shutdown(Shutdown::Write) {
            Err(error) if error.kind() != io::ErrorKind::NotConnected => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn ends() -> (Half, Half, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let (read, write) = Half::pair(ours).unwrap();
        (read, write, theirs)
    }

    #[tokio::test]
    async fn what_was_said_while_nobody_listened_is_heard_afterwards() {
        let (mut read, _write, mut theirs) = ends();
        let mut byte = [0];
        for round in 0..3 {
            // once it has waited, it is registered until it rests
            let waits = tokio::time::timeout(std::time::Duration::from_millis(5), read.read(&mut byte));
            assert!(waits.await.is_err() && read.waiting.is_some());
            read.rest();
            assert!(read.waiting.is_none());
            theirs.write_all(&[round]).unwrap();
            assert_eq!((read.read(&mut byte).await.unwrap(), byte[0]), (1, round));
        }
        drop(theirs);
        assert_eq!(read.read(&mut byte).await.unwrap(), 0, "the end is heard too");
    }

    #[tokio::test]
    async fn more_than_a_socket_holds_goes_out_and_a_writer_is_then_left_alone() {
        let (_read, mut write, mut theirs) = ends();
        let bytes: Vec<u8> = (0..2_000_000_u32).map(|index| index as u8).collect();
        let wanted = bytes.clone();
        let reader = std::thread::spawn(move || {
            let mut got = vec![0; wanted.len()];
            theirs.read_exact(&mut got).unwrap();
            assert!(got == wanted);
            assert_eq!(theirs.read(&mut got).unwrap(), 0, "its end is heard");
        });
        write.write_all(&bytes).await.unwrap();
        assert!(write.waiting.is_none());
        write.shutdown().await.unwrap();
        reader.join().unwrap();
    }
}
