//! Buffers that messages are read to and sent from. One that was sent takes the next message: memory that comes
//! from the kernel anew, page by page, costs more than the copy into it.

use crate::limits::{BUFFERS_KEPT_MAX, MESSAGE_BYTES_MAX};
use bytes::Bytes;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Where buffers come from and go back to.
#[derive(Clone, Debug, Default)]
pub struct Buffers(Arc<Mutex<Vec<Vec<u8>>>>);

impl Buffers {
    /// One as long as the longest message, with any bytes in it.
    pub(super) fn take(&self) -> Vec<u8> {
        let kept = self.kept().pop();
        kept.unwrap_or_else(|| vec![0; MESSAGE_BYTES_MAX])
    }

    /// The first bytes of a buffer, which comes back when the last who has them lets go.
    pub(super) fn lend(&self, buffer: Vec<u8>, length: usize) -> Bytes {
        Bytes::from_owner(Lent { buffer, length, home: self.clone() })
    }

    fn kept(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Lent {
    buffer: Vec<u8>,
    length: usize,
    home: Buffers,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.length]
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut kept = self.home.kept();
        if kept.len() < BUFFERS_KEPT_MAX {
            kept.push(std::mem::take(&mut self.buffer));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_with_the_last_of_its_bytes_and_few_are_kept() {
        let buffers = Buffers::default();
        let mut buffer = buffers.take();
        buffer[..4].copy_from_slice(b"sent");
        let memory = buffer.as_ptr();
        let sent = buffers.lend(buffer, 4);
        assert_eq!(sent, &b"sent"[..]);
        let part = sent.slice(1..3);
        drop(sent);
        let other = buffers.take();
        assert_ne!(other.as_ptr(), memory, "a part is still read");
        assert_eq!(part, &b"en"[..]);
        drop(part);
        let again = buffers.take();
        assert_eq!((again.as_ptr(), again.len()), (memory, MESSAGE_BYTES_MAX));

        let many: Vec<Bytes> = (0..2 * BUFFERS_KEPT_MAX).map(|_| buffers.lend(buffers.take(), 1)).collect();
        drop(many);
        assert_eq!(buffers.kept().len(), BUFFERS_KEPT_MAX);
    }
}
