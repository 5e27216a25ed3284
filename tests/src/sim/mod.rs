//! The simulator: a disk that fails on purpose, and lives of the real store on it.
//!
//! Everything follows from a seed; whatever finds a fault names the seed that shows it again.

pub mod coverage;
pub mod disk;
pub mod random;
pub mod store;
