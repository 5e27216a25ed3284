//! The other helper thread: cuts and hashes what is long, beside the loop and the disk.
//!
//! A disk that syncs needs no processor and hashing needs no disk, so they have a thread each. The order of what
//! it is told is the order of what it answers. Bound: the core's window, in which everything here counts. Cutting
//! does not fail; the thread ends with the hasher.

use larder_core::ingest::cutter::{Cutter, StreamId};
use larder_core::message::Input;
use std::sync::mpsc as blocking;
use tokio::sync::mpsc;

const STACK_BYTES: usize = 256 << 10;

/// The loop's side of the thread.
pub(super) struct Hasher {
    orders: blocking::Sender<(StreamId, Cutter)>,
    done: mpsc::UnboundedReceiver<Input>,
}

impl Hasher {
    /// Starts the thread.
    pub(super) fn start() -> std::io::Result<Self> {
        let (orders, taken) = blocking::channel::<(StreamId, Cutter)>();
        let (give, done) = mpsc::unbounded_channel();
        let body = move || {
            while let Ok((stream, cutter)) = taken.recv() {
                if give.send(Input::Cut { stream, cut: cutter.cut() }).is_err() {
                    break;
                }
            }
        };
        std::thread::Builder::new().name("larder-hash".into()).stack_size(STACK_BYTES).spawn(body)?;
        Ok(Hasher { orders, done })
    }

    pub(super) fn cut(&self, stream: StreamId, cutter: Cutter) {
        // Refused only by a thread that has failed, and then the loop ends by `next`.
        let _ = self.orders.send((stream, cutter));
    }

    /// The next result; none if the thread has failed. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<Input> {
        self.done.recv().await
    }

    /// A result that is there already.
    pub(super) fn ready(&mut self) -> Option<Input> {
        self.done.try_recv().ok()
    }
}
