//! Cutting and hashing, beside the loop where it is long.
//!
//! The chunker of a stream leaves it with the pieces that wait, as a [`Cutter`], and comes back with their
//! blocks, as a [`Cut`]. For a long stream the way is [`Effect::Cut`] and [`Input::Cut`], and a thread of the
//! shell does the work; for a short one it is done at once. One cutter of a stream is away, and what comes
//! meanwhile waits for the next. Bound: pieces count as unwritten until their blocks do, so that sources are
//! held for a slow processor as for a slow disk. The manifest does not travel: cleaning sees whatever was
//! handed to the store, and marks what is away when it is written. What comes back to a stream that has failed
//! is dropped.
//!
//! [`Input::Cut`]: crate::message::Input::Cut

use super::{Ingest, Phase};
use crate::id::BlockId;
use crate::limits::CUT_BYTES_MAX;
use crate::message::{Effect, Effects, Message};
use crate::object::chunk::Chunker;
use crate::time::Time;
use bytes::Bytes;
use std::collections::VecDeque;

/// What a piece takes beside its bytes, so that many short ones are no way around the window.
const PIECE_BYTES: usize = 64;

/// The stream a cutter is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StreamId(pub(super) u32);

/// Pieces of a stream in their order, and what they cost.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    pieces: VecDeque<Bytes>,
    cost: usize,
}

impl Pieces {
    /// Says what it costs.
    pub(super) fn push(&mut self, piece: Bytes) -> usize {
        let cost = PIECE_BYTES + piece.len();
        self.cost += cost;
        self.pieces.push_back(piece);
        cost
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    pub(super) fn cost(&self) -> usize {
        self.cost
    }

    /// The first pieces, as many as go at once.
    pub(super) fn take_some(&mut self) -> Pieces {
        let mut taken = Pieces::default();
        while let Some(piece) = self.pieces.pop_front_if(|next| {
            taken.pieces.is_empty() || taken.cost + PIECE_BYTES + next.len() <= CUT_BYTES_MAX
        }) {
            self.cost -= taken.push(piece);
        }
        taken
    }
}

/// A chunker and what it shall cut.
#[derive(Debug)]
pub struct Cutter {
    chunker: Chunker,
    pieces: Pieces,
    is_last: bool,
}

/// What has come of a [`Cutter`].
#[derive(Debug)]
pub struct Cut {
    /// None after the last.
    pub(super) chunker: Option<Chunker>,
    pub(super) blocks: Vec<(BlockId, Bytes)>,
    /// What the pieces have cost.
    cost: usize,
}

impl Cutter {
    pub(super) fn new(chunker: Chunker, pieces: Pieces, is_last: bool) -> Self {
        Cutter { chunker, pieces, is_last }
    }

    /// Cuts and hashes.
    #[must_use]
    pub fn cut(self) -> Cut {
        let Cutter { mut chunker, pieces, is_last } = self;
        let mut blocks = Vec::new();
        for piece in pieces.pieces {
            chunker.push(piece);
            drain(&mut chunker, &mut blocks);
        }
        if is_last {
            chunker.finish();
            drain(&mut chunker, &mut blocks);
        }
        Cut { chunker: (!is_last).then_some(chunker), blocks, cost: pieces.cost }
    }
}

fn drain(chunker: &mut Chunker, blocks: &mut Vec<(BlockId, Bytes)>) {
    blocks.extend(std::iter::from_fn(|| chunker.next()).map(|bytes| (BlockId::of(&bytes), bytes)));
}

impl Ingest {
    /// Cuts what a stream has, unless its chunker is away.
    pub(super) fn cut(&mut self, number: u32, out: &mut Effects) {
        let Some(stream) = self.streams.get_mut(&number) else { return };
        let Some(cutter) = stream.cutter() else { return };
        if stream.is_long() {
            self.away += 1;
            out.emit(Effect::Cut { stream: StreamId(number), cutter });
        } else {
            self.take(number, cutter.cut(), out);
        }
    }

    fn take(&mut self, number: u32, cut: Cut, out: &mut Effects) {
        self.unwritten -= cut.cost;
        let Some(stream) = self.streams.get_mut(&number) else { return };
        let blocks = stream.take(cut);
        let is_whole = matches!(stream.phase, Phase::Binding(_));
        self.put_blocks(number, blocks, out);
        if is_whole {
            self.look_up(number, out);
        } else {
            self.cut(number, out);
        }
    }

    /// A cutter has come back.
    pub fn was_cut(&mut self, now: Time, StreamId(number): StreamId, cut: Cut, out: &mut Effects) {
        self.away -= 1;
        self.numbers.hashed_beside += cut.blocks.iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>();
        self.take(number, cut, out);
        if self.away == 0 && std::mem::take(&mut self.full) {
            out.tell(Message::FlushNow);
        }
        self.release(now, out);
    }
}
