//! Kinds of lives: each spends its time at a place that a life with a bit of everything hardly gets to.

use super::life::{Step, options};
use super::model::{Change, LARGE};
use crate::sim::disk::Faults;
use crate::sim::random::Random;
use larder_store::{Options, Prepare};
use std::ops::Range;

const BLOCKS: u64 = 60;
/// Blocks of some pages, by the rest of their numbers by eight.
const LONG: [u32; 4] = [2, 4, 5, 7];

/// A reserve as small as it may be beside segments of 64 KiB: two of them, and checkpoints of a small index.
const TIGHT_RESERVE: u64 = 384 << 10;
/// Bytes besides it: reached soon, and enough for an index that has been larger and two segments.
const TIGHT: Range<u64> = (640 << 10)..(1000 << 10);
/// Bytes of a device that gets full.
const CRAMPED: Range<u64> = (400 << 10)..(1200 << 10);

/// What a life is mostly about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Habit {
    /// Everything, and room without end.
    Mixed,
    /// The quota is reached, and room comes back.
    Tight,
    /// The device is smaller than the quota, and gets full.
    Cramped,
    /// Segments fill, are emptied and used again.
    Recycling,
    /// Checkpoint after checkpoint, so that runs are merged.
    Merging,
}

impl Habit {
    /// As luck has it.
    pub fn drawn(random: &mut Random) -> Self {
        match random.below(20) {
            0..8 => Self::Mixed,
            8..11 => Self::Tight,
            11 | 12 => Self::Cramped,
            13..17 => Self::Recycling,
            _ => Self::Merging,
        }
    }

    /// Options that lead there.
    pub fn options(self, random: &mut Random) -> Options {
        let quota = *random.pick(&[64, 64, 8]) << 20;
        let mut drawn = Options {
            segment_bytes: *random.pick(&[64 << 10, 128 << 10]),
            table_entries: *random.pick(&[5, 20, 200]),
            cache_bytes: *random.pick(&[0, 20_000]),
            index_cache_bytes: *random.pick(&[0, 256 << 10]),
            prepare: *random.pick(&[Prepare::None, Prepare::Allocate, Prepare::Zero]),
            quota_bytes: quota,
            reserve_bytes: quota / 4,
            ..options()
        };
        match self {
            Self::Mixed | Self::Cramped => {}
            Self::Tight => {
                drawn.reserve_bytes = TIGHT_RESERVE;
                drawn.segment_bytes = 64 << 10;
                drawn.quota_bytes = TIGHT_RESERVE + within(TIGHT, random);
            }
            Self::Recycling => drawn.segment_bytes = 64 << 10,
            Self::Merging => drawn.table_entries = *random.pick(&[4, 8]),
        }
        drawn
    }

    /// What is wrong with the device.
    pub fn faults(self, random: &mut Random) -> Faults {
        let mut faults = match random.below(20) {
            0..8 => Faults::default(),
            8..15 => Faults::honest(random),
            _ => Faults::lying(random),
        };
        match self {
            Self::Mixed | Self::Merging => {}
            // any other fault would hide who it was that refused
            Self::Tight if random.chance(700) => faults = Faults::default(),
            Self::Tight => {}
            Self::Cramped => faults.room = Some(within(CRAMPED, random)),
            Self::Recycling => faults.recycling = *random.pick(&[0, 50, 200]),
        }
        faults
    }

    /// How many changes of the device the power may last.
    pub fn changes(self, random: &mut Random) -> u64 {
        let most = match self {
            Self::Mixed => [6, 30, 200],
            Self::Tight | Self::Cramped | Self::Recycling => [30, 200, 400],
            Self::Merging => [100, 300, 600],
        };
        let most = *random.pick(&most);
        1 + random.below(most)
    }

    /// What is done next.
    pub fn step(self, random: &mut Random) -> Step {
        match (self, random.below(30)) {
            (Self::Merging, 12..24) => Step::Checkpoint,
            (Self::Tight | Self::Cramped, 21..24) => Step::Relieve,
            (Self::Tight | Self::Cramped, 24..28) => Step::Commit(long_blocks(random)),
            (_, 0..18) => Step::Commit(self.batch(random)),
            (_, 18..21) => Step::Checkpoint,
            (Self::Recycling, 21..24) => {
                let (garbage, deleted) = garbage(random);
                Step::Clean { garbage, deleted, budget: 1 << 20, steps: 20 }
            }
            (_, 21 | 22) => Step::Reopen,
            (_, 23) => Step::Kill,
            (_, 24) => Step::Rebuild,
            (_, 25..28) => {
                let (garbage, deleted) = garbage(random);
                let (budget, steps) = (1000 + random.below(200_000), 1 + random.below(20) as usize);
                Step::Clean { garbage, deleted, budget, steps }
            }
            (_, 28) => Step::Read,
            _ => Step::Verify,
        }
    }

    fn batch(self, random: &mut Random) -> Vec<Change> {
        if random.chance(250) {
            return short_records(random);
        }
        match self {
            Self::Mixed | Self::Merging => mixed_batch(random),
            Self::Tight | Self::Cramped | Self::Recycling if random.chance(300) => mixed_batch(random),
            Self::Tight | Self::Cramped | Self::Recycling => long_blocks(random),
        }
    }
}

/// What is garbage, and below which number it is deleted.
fn garbage(random: &mut Random) -> (u32, u32) {
    let number = random.below(12) as u32;
    (number % 3, [0, 0, 30, 120][number as usize / 3])
}

fn within(range: Range<u64>, random: &mut Random) -> u64 {
    range.start + random.below(range.end - range.start)
}

fn mixed_batch(random: &mut Random) -> Vec<Change> {
    let most = *random.pick(&[3, 12]);
    let length = random.below(most);
    let change = |_| match random.below(20) {
        0..9 => Change::Put(random.below(BLOCKS) as u32),
        9 => Change::Delete(random.below(BLOCKS) as u32),
        10..14 => Change::Bind(random.below(12) as u8, random.below(1000) as u32),
        14 => Change::Unbind(random.below(12) as u8),
        15 | 16 => {
            let value = random.below(1000) as u32;
            Change::Set(random.below(6) as u8, random.chance(700).then_some(value))
        }
        _ => Change::Delete(random.below(BLOCKS) as u32),
    };
    let mut batch: Vec<Change> = (0..length).map(change).collect();
    // one of these and a small batch still fit a segment
    if random.chance(150) {
        batch.truncate(1);
        batch.retain(|change| !matches!(change, Change::Put(_)));
        batch.push(Change::Put(LARGE + random.below(6) as u32));
    }
    batch
}

/// So short that every sector of the batch begins inside one of them: what is torn ends between two.
fn short_records(random: &mut Random) -> Vec<Change> {
    let length = 30 + random.below(60);
    let change = |_| {
        let value = 4 * random.below(250) as u32;
        if random.chance(700) {
            Change::Bind(random.below(12) as u8, value)
        } else {
            Change::Set(random.below(6) as u8, Some(value))
        }
    };
    (0..length).map(change).collect()
}

/// Up to half a segment of blocks, or such blocks away.
fn long_blocks(random: &mut Random) -> Vec<Change> {
    let (deletes, length) = (random.chance(200), 1 + random.below(4));
    let change = |_| {
        let number = 8 * random.below(30) as u32 + *random.pick(&LONG);
        if deletes { Change::Delete(number) } else { Change::Put(number) }
    };
    (0..length).map(change).collect()
}
