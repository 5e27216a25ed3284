//! How much a sender may send: what is promised to it and not yet durable here stays within a window.
//!
//! A window bounds blocks and bytes. A limit is counted in blocks, for the sender knows their order; the
//! receiver knows their lengths and chooses the limit so that the bytes fit too. One block longer than the
//! window is asked for when nothing else is on its way, or it could never come.

use crate::object::BLOCK_BYTES_MAX;
use crate::object::chunk::BLOCK_BYTES_AVERAGE;

/// Blocks and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Amount {
    pub(super) blocks: u64,
    pub(super) bytes: u64,
}

impl Amount {
    /// A window of so many blocks, and what they have on average.
    pub(super) fn window(blocks: u32) -> Amount {
        Amount { blocks: u64::from(blocks), bytes: u64::from(blocks) * BLOCK_BYTES_AVERAGE as u64 }
    }

    pub(super) fn block(bytes: usize) -> Amount {
        Amount { blocks: 1, bytes: bytes as u64 }
    }

    pub(super) fn plus(self, other: Amount) -> Amount {
        Amount { blocks: self.blocks + other.blocks, bytes: self.bytes + other.bytes }
    }

    pub(super) fn minus(self, other: Amount) -> Amount {
        let blocks = self.blocks.saturating_sub(other.blocks);
        Amount { blocks, bytes: self.bytes.saturating_sub(other.bytes) }
    }

    pub(super) fn over(self, divisor: u64) -> Amount {
        Amount { blocks: self.blocks / divisor, bytes: self.bytes / divisor }
    }

    pub(super) fn min(self, other: Amount) -> Amount {
        Amount { blocks: self.blocks.min(other.blocks), bytes: self.bytes.min(other.bytes) }
    }

    pub(super) fn max(self, other: Amount) -> Amount {
        Amount { blocks: self.blocks.max(other.blocks), bytes: self.bytes.max(other.bytes) }
    }

    fn fits(self, window: Amount) -> bool {
        self.blocks <= window.blocks && self.bytes <= window.bytes
    }

    /// Whether either is reached.
    pub(super) fn reaches(self, other: Amount) -> bool {
        self.blocks >= other.blocks || self.bytes >= other.bytes
    }
}

/// The credit of one transfer.
#[derive(Debug, Default)]
pub(super) struct Credit {
    /// What the round's blocks up to and including each come to, in the order they are wanted.
    sums: Vec<u64>,
    /// Blocks of the round the sender may have sent.
    limit: usize,
    /// What has come of the round.
    received: Amount,
    /// What has come, of this round or an earlier one, and is not durable yet.
    held: Amount,
    /// Blocks of all rounds that were allowed and have not come. A late one of an earlier round uses up what was
    /// allowed then, so an honest sender never has more to send than this.
    open: u64,
    /// Blocks that came of what was allowed and were not expected, since the layer began.
    strange: u64,
    /// Blocks that earlier layers allowed and that may be among the strange ones, until one of this layer came.
    stale: u64,
    /// Nothing that this layer wants has come yet.
    is_new: bool,
}

impl Credit {
    /// What follows wants other blocks than before: roots, or the children of another manifest.
    pub(super) fn begin_layer(&mut self) {
        self.stale = self.open.saturating_sub(std::mem::take(&mut self.strange));
        self.open = self.stale;
        self.is_new = true;
    }

    /// A round begins that wants blocks of these lengths; its first limit.
    pub(super) fn begin(&mut self, lengths: impl Iterator<Item = u64>, window: Amount) -> u32 {
        let mut sum = 0;
        let sums = lengths.map(|length| {
            sum += length.min(BLOCK_BYTES_MAX as u64);
            sum
        });
        self.sums = sums.collect();
        (self.limit, self.received) = (0, Amount::default());
        self.raise(self.allowed(window))
    }

    /// Whether one more block may come.
    pub(super) fn allows(&self) -> bool {
        self.open > 0
    }

    /// One came that was expected, and wanted with this length.
    pub(super) fn received(&mut self, block: Amount, wanted_bytes: u64) {
        if std::mem::take(&mut self.is_new) {
            // A sender's messages keep their order: nothing of an earlier layer comes any more.
            self.strange = self.strange.saturating_sub(std::mem::take(&mut self.stale));
            self.open = self.limit as u64;
        }
        self.open = self.open.saturating_sub(1);
        self.received = self.received.plus(Amount { bytes: wanted_bytes, ..block });
        self.held = self.held.plus(block);
    }

    /// One came that was not expected; whether it is the layer's first.
    pub(super) fn strange(&mut self) -> bool {
        self.strange += 1;
        self.strange == 1
    }

    /// One that was expected, and wanted with this length, will not come.
    pub(super) fn absent(&mut self, wanted_bytes: u64) {
        self.open = self.open.saturating_sub(1);
        self.received = self.received.plus(Amount { blocks: 1, bytes: wanted_bytes });
    }

    /// One that was allowed, and is not expected any more, will not come.
    pub(super) fn gone(&mut self) {
        self.open = self.open.saturating_sub(1);
    }

    /// Whether all that was allowed is here and some of it is not what was wanted.
    pub(super) fn is_wasted(&self) -> bool {
        !self.is_used_up() && self.strange >= self.open
    }

    pub(super) fn stored(&mut self, block: Amount) {
        self.held = self.held.minus(block);
    }

    /// What has come and is not durable yet.
    pub(super) fn held(&self) -> Amount {
        self.held
    }

    /// What may come or has come, and is not durable yet.
    pub(super) fn promised(&self) -> Amount {
        self.with(self.limit)
    }

    /// Whether all that was allowed has come.
    pub(super) fn is_used_up(&self) -> bool {
        self.received.blocks >= self.limit as u64
    }

    /// A greater limit, once it is worth a message: for an eighth of the window, for the rest of the round,
    /// or when the sender has nothing left to send.
    pub(super) fn extend(&mut self, window: Amount) -> Option<u32> {
        let allowed = self.allowed(window);
        if allowed <= self.limit {
            return None;
        }
        let gain = self.with(allowed).minus(self.promised());
        let is_worth = gain.reaches(window.over(8)) || allowed == self.sums.len() || self.is_used_up();
        is_worth.then(|| self.raise(allowed))
    }

    /// What would be promised with this limit.
    fn with(&self, limit: usize) -> Amount {
        let bytes = limit.checked_sub(1).map_or(0, |last| self.sums[last]);
        Amount { blocks: limit as u64, bytes }.minus(self.received).plus(self.held)
    }

    /// The greatest limit that keeps the window, never below the present one.
    fn allowed(&self, window: Amount) -> usize {
        let mut limit = self.limit;
        while limit < self.sums.len()
            && (self.with(limit + 1).fits(window) || (self.promised().blocks == 0 && limit == self.limit))
        {
            limit += 1;
        }
        limit
    }

    /// A new limit of the round, as messages say it.
    fn raise(&mut self, limit: usize) -> u32 {
        self.open += (limit - self.limit) as u64;
        self.limit = limit;
        u32::try_from(limit).expect("a round wants at most a manifest's children")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_came_for_nothing_is_wasted_when_nothing_else_is_on_its_way() {
        let (mut credit, window) = (Credit::default(), Amount { blocks: 4, bytes: 1000 });
        let block = Amount::block(10);
        assert_eq!(credit.begin([10; 6].into_iter(), window), 4);
        credit.received(block, 10);
        credit.strange();
        credit.received(block, 10);
        assert!(!credit.is_wasted(), "one more may come");
        credit.received(block, 10);
        assert!(credit.is_wasted());
        // once more, and the sender has lost it
        assert_eq!(credit.begin([10; 3].into_iter(), window), 1, "three are not durable yet");
        assert!(!credit.is_wasted());
        credit.absent(10);
        assert!(credit.is_used_up() && !credit.is_wasted());
        (0..3).for_each(|_| credit.stored(block));
        assert_eq!(credit.extend(window), Some(3));
    }

    #[test]
    fn what_an_earlier_layer_left_is_not_taken_for_waste_of_the_next() {
        let (mut credit, window) = (Credit::default(), Amount { blocks: 4, bytes: 1000 });
        let block = Amount::block(10);
        credit.begin_layer();
        assert_eq!(credit.begin([10; 4].into_iter(), window), 4);
        credit.received(block, 10);
        credit.stored(block);
        // the object is refused: three more of it come, and its sender says of none that it is missing
        credit.begin_layer();
        assert_eq!(credit.begin([10; 6].into_iter(), window), 4);
        for _ in 0..3 {
            credit.strange();
        }
        assert!(!credit.is_wasted());
        (0..4).for_each(|_| credit.received(block, 10));
        assert!(!credit.is_wasted(), "all is here, and the rest is not allowed yet");
        (0..4).for_each(|_| credit.stored(block));
        assert_eq!(credit.extend(window), Some(6));
        credit.received(block, 10);
        credit.strange();
        assert!(credit.is_wasted());
    }

    #[test]
    fn a_block_beyond_the_window_comes_alone() {
        let mut credit = Credit::default();
        let window = Amount { blocks: 4, bytes: 1000 };
        assert_eq!(credit.begin([5000, 10, 10].into_iter(), window), 1);
        credit.received(Amount::block(5000), 5000);
        assert_eq!(credit.extend(window), None, "it is not durable yet");
        credit.stored(Amount::block(5000));
        assert_eq!(credit.extend(window), Some(3));
    }

    #[test]
    fn what_an_earlier_round_allowed_may_come_late() {
        let mut credit = Credit::default();
        let window = Amount { blocks: 2, bytes: 1000 };
        assert_eq!(credit.begin([100; 4].into_iter(), window), 2);
        assert_eq!(credit.begin([100; 4].into_iter(), window), 2, "asked again: they did not come in time");
        for _ in 0..4 {
            assert!(credit.allows());
            credit.received(Amount::block(100), 100);
        }
        assert!(!credit.allows());
    }

    #[test]
    fn what_an_earlier_round_left_unwritten_counts() {
        let mut credit = Credit::default();
        let window = Amount { blocks: 4, bytes: 1000 };
        assert_eq!(credit.begin([100; 3].into_iter(), window), 3);
        for _ in 0..3 {
            assert!(credit.allows());
            credit.received(Amount::block(100), 100);
        }
        assert!(!credit.allows());
        assert_eq!(credit.begin([100; 6].into_iter(), window), 1);
        credit.stored(Amount::block(100));
        assert_eq!(credit.extend(window), Some(2));
    }

    proptest! {
        /// Whatever is received and stored in whatever order: the window holds, and everything comes.
        #[test]
        fn the_window_holds_and_everything_comes(
            lengths in prop::collection::vec(1_u64..=BLOCK_BYTES_MAX as u64, 1..80),
            blocks in 4_u32..32,
            steps in prop::collection::vec(any::<bool>(), 0..400),
        ) {
            let window = Amount::window(blocks).max(Amount { blocks: 0, bytes: BLOCK_BYTES_MAX as u64 });
            let mut credit = Credit::default();
            let mut limit = credit.begin(lengths.iter().copied(), window) as usize;
            let (mut received, mut stored) = (0, 0);
            for stores in steps.into_iter().chain(std::iter::repeat_n([false, true], 200).flatten()) {
                // every third is shorter than was known when it was wanted, as manifests are
                let bytes = |index: usize| if index.is_multiple_of(3) { lengths[index] / 2 } else { lengths[index] };
                let block = |index: usize| Amount { blocks: 1, bytes: bytes(index) };
                if stores && stored < received {
                    credit.stored(block(stored));
                    stored += 1;
                } else if !stores && received < limit {
                    prop_assert!(credit.allows());
                    credit.received(block(received), lengths[received]);
                    received += 1;
                }
                limit = credit.extend(window).map_or(limit, |limit| limit as usize);
                prop_assert!(credit.promised().fits(window));
                prop_assert!(limit <= lengths.len());
                prop_assert_eq!(credit.allows(), received < limit);
            }
            prop_assert_eq!(stored, lengths.len());
        }
    }
}
