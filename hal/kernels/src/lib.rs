//! Byte functions, with a portable form of each as the oracle.
//!
//! This crate is the only one in which unsafe code may live. What is here today is portable and needs
//! none; instruction-set specific forms stand beside their oracle and give the same bits.

pub mod bloom;
mod level;

pub use level::{Level, LevelError};
