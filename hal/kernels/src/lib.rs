//! Byte functions, with a portable form of each as the oracle.
//!
//! Unsafe code lives here, beside one ioctl of `hal`, and here only in `isa` and a bench: a token for each
//! instruction set, and thin vectors over it. The functions themselves are written once, over these
//! vectors. A [`Level`] says which are used; the result never depends on it.

#![warn(clippy::undocumented_unsafe_blocks)]

pub mod bloom;
// where there are no vectors, nothing uses what is written over them
#[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), allow(dead_code))]
mod hash;
#[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), allow(dead_code))]
mod isa;
mod level;

pub use hash::{Hash, hash_many};
pub use level::{Level, LevelError};
