//! .
pub mod board;
pub mod profile;
pub mod role;
