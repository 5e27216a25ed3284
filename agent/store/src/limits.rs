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
/// Payload bytes the cleaner moves in one batch.
pub(crate) const MOVE_BYTES: usize = 1 << 20;
/// Sealed segments are cleaned when at most this share of their bytes is live.
pub(crate) const CLEAN_LIVE_PERCENT_MAX: u64 = 80;
/// Keys the smallest filter is sized for (88 kB).
pub(crate) const FILTER_KEYS_MIN: u64 = 65_536;
/// Log bytes after which a checkpoint is due: what a start after a power cut reads again.
pub(crate) const LOG_BYTES_PER_CHECKPOINT: u64 = 128 << 20;
