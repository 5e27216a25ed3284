//! The thread that cuts and hashes: what it is told comes back in order, each after a time of its own.

use super::{Event, World};
use larder_core::ingest::cutter::{Cutter, StreamId};
use larder_core::message::Input;
use std::collections::VecDeque;

/// One machine's.
pub(crate) struct Hasher {
    waiting: VecDeque<(StreamId, Cutter)>,
    free_ms: u64,
    /// Longest time one cutter may be away, in ms.
    pub(crate) cut_ms_max: u64,
}

impl Default for Hasher {
    fn default() -> Self {
        Hasher { waiting: VecDeque::new(), free_ms: 0, cut_ms_max: 4 }
    }
}

impl Hasher {
    pub(crate) fn crash(&mut self) {
        self.waiting.clear();
        self.free_ms = 0;
    }

    /// Cutters that have not come back.
    pub(crate) fn away(&self) -> usize {
        self.waiting.len()
    }
}

impl World {
    pub(super) fn hash(&mut self, node: usize, stream: StreamId, cutter: Cutter) {
        let took_ms = self.random.below(self.machines[node].hasher.cut_ms_max + 1);
        let machine = &mut self.machines[node];
        let hasher = &mut machine.hasher;
        hasher.free_ms = hasher.free_ms.max(self.now_ms) + took_ms;
        hasher.waiting.push_back((stream, cutter));
        let (after_ms, life) = (hasher.free_ms - self.now_ms, machine.life);
        self.schedule(after_ms, Event::Cut { node, life });
    }

    pub(super) fn was_cut(&mut self, node: usize) {
        if let Some((stream, cutter)) = self.machines[node].hasher.waiting.pop_front() {
            self.input(node, Input::Cut { stream, cut: cutter.cut() });
        }
    }
}
