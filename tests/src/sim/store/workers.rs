//! Work spread over threads.

use super::model::Checked;
use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;

/// Threads to use unless somebody says otherwise: the machine's, up to eight.
pub fn threads() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get).min(8)
}

/// Does every piece of work, each thread with a tool of its own; gives the tools back, and the words of all
/// pieces that failed.
pub fn spread<T: Sync, W: Send>(
    work: &[T],
    threads: usize,
    tool: impl Fn() -> W + Sync,
    act: impl Fn(&mut W, &T) -> Checked + Sync,
) -> (Vec<W>, Vec<String>) {
    let next = AtomicUsize::new(0);
    let run = || {
        let (mut tool, mut broken) = (tool(), Vec::new());
        while let Some(piece) = work.get(next.fetch_add(1, Relaxed)) {
            broken.extend(act(&mut tool, piece).err());
        }
        (tool, broken)
    };
    thread::scope(|scope| {
        let running: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(run)).collect();
        let ended =
            running.into_iter().map(|thread| thread.join().expect("a panic is a failure of the test"));
        let (tools, broken): (Vec<W>, Vec<Vec<String>>) = ended.unzip();
        (tools, broken.concat())
    })
}
