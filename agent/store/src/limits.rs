//! Every bound of the store that is not an option.

/// Bytes of a page: batches start on a page, and an acknowledged byte never lies in a page written again.
/// A constant of the format, whatever pages the machine's memory has: stores move between machines.
pub const PAGE_BYTES: u64 = 4096;
/// Longest block, binding value or setting value.
pub const VALUE_BYTES_MAX: usize = 1 << 20;
/// Longest name or setting key. Longer ones are refused by `CommitError::TooLarge`.
pub const KEY_BYTES_MAX: usize = 2048;
/// Most operations in one batch.
pub const BATCH_OPS_MAX: usize = 65_536;
/// Smallest and largest segment.
pub const SEGMENT_BYTES: std::ops::RangeInclusive<u64> = (64 << 10)..=(1 << 30);
/// Bytes of names and settings the memory table holds before a checkpoint is due.
pub(crate) const TABLE_BYTES_MAX: usize = 4 << 20;
/// Quarantined blocks that are remembered; damage beyond is found again by reading.
pub(crate) const DAMAGED_MAX: usize = 65_536;
/// Segment files held open for reading.
pub(crate) const OPEN_FILES_MAX: usize = 32;
/// Entries of one page of an internal walk over the index.
pub(crate) const WALK_ENTRIES: usize = 1024;
/// Bytes the log is read in.
pub(crate) const READ_BYTES: usize = 256 << 10;
/// Bytes of records the cleaner moves in one batch.
pub(crate) const MOVE_BYTES: u64 = 1 << 20;
/// Sealed segments are cleaned when at most this share of their bytes is live.
pub(crate) const CLEAN_LIVE_PERCENT_MAX: u64 = 80;
/// Tenths of a bit per key of the marks of a cleaning: at most 1 % of the garbage stays a round longer.
pub(crate) const MARKS_DECIBITS: u32 = 108;
/// Entries from which a run is of the next size class: each class is 16 times the one before.
pub(crate) const RUN_SIZES: [u64; 6] = [1 << 9, 1 << 13, 1 << 17, 1 << 21, 1 << 25, 1 << 29];
/// Tenths of a bit per key of a run's filter, by size class; the last for all larger ones. A look-up asks all
/// runs: the many small ones get more bits, which costs little, so that all together stay below 1 %.
pub(crate) const RUN_DECIBITS: [u32; 4] = [320, 320, 280, 230];
/// Runs of one size class that become one of the next.
pub(crate) const RUNS_PER_SIZE: usize = 16;
/// Entries a checkpoint merges of each merge under way, for each entry it writes.
pub(crate) const MERGE_PACE: u64 = 2;
/// What it merges at least: all of the smallest class, if the memory table is not small.
pub(crate) const MERGE_ENTRIES_MIN: u64 = 16 << 9;
/// What the index writes for a block, at most: its place in a run, its bits of a filter, its share of pages.
pub(crate) const INDEX_BYTES_PER_BLOCK: u64 = 40;
/// Entries that say nothing any more, beyond as many as there are blocks, before all runs become one.
pub(crate) const GARBAGE_ENTRIES_MIN: u64 = 1 << 17;
/// Sequence numbers left out behind a stretch of the log that could not be read: more than it can hold.
pub(crate) const SEQS_SKIPPED: u64 = 1 << 32;
/// Cleanings that look again for what the device would not read, and give nothing back, before it is taken for lost.
pub(crate) const UNREAD_LOOKS: u8 = 3;
/// Spare segments take at most one part in so many of the quota.
pub(crate) const SPARES_QUOTA_SHARE: u64 = 8;
/// Log bytes after which a checkpoint is due: what a start after a power cut reads again.
pub(crate) const LOG_BYTES_PER_CHECKPOINT: u64 = 128 << 20;
/// A batch up to this long in room that was reserved and never written takes zeros along up to the next multiple of
/// `AHEAD_BYTES`, so that the batches behind it overwrite. Longer ones would write more than that saves.
pub(crate) const AHEAD_BATCH_BYTES: u64 = 16 << 10;
/// See `AHEAD_BATCH_BYTES`.
pub(crate) const AHEAD_BYTES: u64 = 64 << 10;
