//! Cuts a stream into data blocks by its content (FastCDC 2020), so that equal parts become equal blocks.
//!
//! The cuts depend on the bytes alone, never on the sizes of the pushes. An object that fits a block is never
//! cut, so nothing leaves before it is known to be longer. Memory: one push and [`BLOCK_BYTES_MAX`] bytes; a
//! caller that pushes before it has taken what is ready breaks that bound and is stopped by an assertion.
//!
//! A block inside one push shares its memory and keeps the whole push alive; only a block across two pushes
//! is copied. So push large pieces (256 KiB to 1 MiB) and copy what is kept for long.

use bytes::{Buf, Bytes};
use fastcdc::v2020::FastCDC;

use super::BLOCK_BYTES_MAX;

/// No data block is shorter, save the last of an object.
pub const BLOCK_BYTES_MIN: usize = 8 * 1024;
/// What the cuts aim at.
pub const BLOCK_BYTES_AVERAGE: usize = 32 * 1024;

/// A stream on its way into blocks.
#[derive(Debug, Default)]
pub struct Chunker {
    /// Bytes of earlier pushes, not in a block yet; the stream goes on in `push`.
    carried: Vec<u8>,
    /// What is left of the last push.
    push: Bytes,
    is_cut: bool,
    is_finished: bool,
}

impl Chunker {
    /// A chunker at the start of a stream.
    #[must_use]
    pub fn new() -> Chunker {
        Chunker::default()
    }

    /// Adds the next bytes of the stream. Take blocks by [`Chunker::next`] until there are none before the
    /// next push.
    ///
    /// # Panics
    /// When blocks are still ready, or after [`Chunker::finish`].
    pub fn push(&mut self, bytes: Bytes) {
        assert!(!self.is_finished, "a finished stream takes no more bytes");
        assert!(!self.is_decided(), "blocks are taken until there are none before the next push");
        if self.is_empty() {
            self.push = bytes;
        } else {
            self.carried.extend_from_slice(&self.push);
            self.push = bytes;
        }
    }

    /// Says that the stream has ended; what is left now comes out of [`Chunker::next`].
    pub fn finish(&mut self) {
        self.is_finished = true;
    }

    /// The next block, if more bytes could not change it.
    #[expect(clippy::should_implement_trait, reason = "an iterator that goes on after None misleads")]
    pub fn next(&mut self) -> Option<Bytes> {
        if self.is_empty() || !(self.is_finished || self.is_decided()) {
            return None;
        }
        let is_whole = !self.is_cut && self.waiting() <= BLOCK_BYTES_MAX;
        self.is_cut = true;
        Some(if self.carried.is_empty() { self.within_push(is_whole) } else { self.across_pushes(is_whole) })
    }

    /// Bytes pushed and not handed out yet.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.carried.len() + self.push.len()
    }

    fn is_empty(&self) -> bool {
        self.waiting() == 0
    }

    /// Whether the next cut is certain: a full window for it, and for the first one a byte more.
    fn is_decided(&self) -> bool {
        self.waiting() >= BLOCK_BYTES_MAX + usize::from(!self.is_cut)
    }

    fn within_push(&mut self, is_whole: bool) -> Bytes {
        let length = if is_whole { self.push.len() } else { cut(&self.push) };
        self.push.split_to(length)
    }

    fn across_pushes(&mut self, is_whole: bool) -> Bytes {
        let carried = self.carried.len();
        let borrowed = BLOCK_BYTES_MAX.saturating_sub(carried).min(self.push.len());
        self.carried.extend_from_slice(&self.push[..borrowed]);
        let length = if is_whole { self.carried.len() } else { cut(&self.carried) };
        let block = Bytes::copy_from_slice(&self.carried[..length]);
        if length >= carried {
            self.push.advance(length - carried);
            self.carried.clear();
        } else {
            self.carried.truncate(carried);
            self.carried.drain(..length);
        }
        block
    }
}

/// The length of the first block of `bytes`, which hold a full window or the end of the stream.
fn cut(bytes: &[u8]) -> usize {
    let window = &bytes[..bytes.len().min(BLOCK_BYTES_MAX)];
    FastCDC::new(window, BLOCK_BYTES_MIN, BLOCK_BYTES_AVERAGE, BLOCK_BYTES_MAX).cut(0, window.len()).1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bytes with long equal runs and noise, so that cuts fall at, below and above the average.
    fn stream() -> impl Strategy<Value = Bytes> {
        let part = (any::<u64>(), 1usize..150_000, any::<bool>());
        prop::collection::vec(part, 0..6).prop_map(|parts| {
            let mut bytes = Vec::new();
            for (mut state, length, noisy) in parts {
                bytes.extend((0..length).map(|_| {
                    state = state.wrapping_mul(6364136223846793005).wrapping_add(u64::from(noisy));
                    if noisy { (state >> 33) as u8 } else { 0 }
                }));
            }
            bytes.into()
        })
    }

    fn blocks_of(stream: &Bytes, pushes: &[usize]) -> Vec<Bytes> {
        let (mut chunker, mut rest, mut blocks) = (Chunker::new(), stream.clone(), Vec::new());
        for length in pushes.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let held = chunker.waiting();
            assert!(held <= BLOCK_BYTES_MAX, "{held} bytes are held between pushes");
            chunker.push(rest.split_to(rest.len().min(*length)));
            blocks.extend(std::iter::from_fn(|| chunker.next()));
        }
        chunker.finish();
        blocks.extend(std::iter::from_fn(|| chunker.next()));
        blocks
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases / 4))]
        #[test]
        fn the_cuts_are_those_of_the_whole_whatever_the_pushes(
            stream in stream(), pushes in prop::collection::vec(1usize..200_000, 1..5), small in 500usize..9000,
        ) {
            let blocks = blocks_of(&stream, &pushes);
            prop_assert_eq!(&blocks, &blocks_of(&stream, &[small]));
            prop_assert_eq!(&blocks, &blocks_of(&stream, &[usize::MAX]));
            prop_assert_eq!(Bytes::from(blocks.concat()), stream.clone());
            if stream.len() > BLOCK_BYTES_MAX {
                let lengths: Vec<_> = blocks.iter().map(Bytes::len).collect();
                let whole: Vec<_> = FastCDC::new(&stream, BLOCK_BYTES_MIN, BLOCK_BYTES_AVERAGE, BLOCK_BYTES_MAX)
                    .map(|chunk| chunk.length).collect();
                prop_assert_eq!(lengths, whole);
            } else {
                prop_assert_eq!(blocks.len(), usize::from(!stream.is_empty()));
            }
        }
    }

    #[test]
    fn an_object_that_fits_a_block_is_one_block_without_a_copy() {
        for length in [1, BLOCK_BYTES_MIN + 1, BLOCK_BYTES_MAX - 1, BLOCK_BYTES_MAX] {
            let stream = Bytes::from((0..length).map(|i| ((i % 251).pow(2) % 251) as u8).collect::<Vec<_>>());
            let blocks = blocks_of(&stream, &[usize::MAX]);
            assert_eq!(blocks, std::slice::from_ref(&stream));
            assert_eq!(blocks[0].as_ptr(), stream.as_ptr());
        }
        let long = Bytes::from(vec![0; BLOCK_BYTES_MAX + 1]);
        assert_eq!(
            blocks_of(&long, &[BLOCK_BYTES_MAX]).iter().map(Bytes::len).collect::<Vec<_>>(),
            [122_880, 1]
        );
        assert!(blocks_of(&Bytes::new(), &[1]).is_empty());
    }

    #[test]
    #[should_panic(expected = "blocks are taken until there are none")]
    fn a_push_before_the_blocks_are_taken_is_stopped() {
        let mut chunker = Chunker::new();
        chunker.push(vec![0; 200_000].into());
        chunker.push(vec![0; 1].into());
    }
}
