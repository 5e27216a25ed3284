//! Larder's store: an append-only log of records is the truth, an index over it can always be made again.
//!
//! Duty: keep blocks (bytes named by their BLAKE3 hash), name bindings and settings so that whatever was
//! acknowledged survives a power cut, and never hand out wrong bytes as checked. The formats are in `docs/format.md`.
//! It refuses a second process, a newer format and anything beyond its quota. One owner calls it; there is
//! no thread inside and every call returns when its work is done. Memory is bounded by the options, by the
//! filters (23 to 32 bits a block) and by one row per segment. Damage is quarantined and reported; it stops neither
//! opening nor the reading of anything else.

mod batch;
mod disk;
mod error;
mod filter;
mod format;
mod index;
pub mod limits;
mod options;
#[cfg(planted)]
pub mod planted;
mod scan;
mod segments;
mod spares;
mod store;

pub use disk::{Disk, DiskCounts, DiskFile, Listed, OpenMode, OsDisk, Space};
pub use error::{CommitError, MaintainError, OpenError, ReadError};
pub use options::{Options, Prepare};
pub use store::{
    Binding, Check, CleanProgress, Committed, Op, OpenReport, ReadTo, Store, StoreStatus, VerifyPosition,
    VerifyStep, rebuild_index,
};

/// The BLAKE3 hash of a block's content, its name.
pub type Hash = [u8; 32];
