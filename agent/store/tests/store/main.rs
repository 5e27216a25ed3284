//! The store on a real file system, by its public functions. One program, because each would compile the store anew.
#![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

mod bad_files;
mod bad_luck;
mod clean;
mod common;
mod index_rot;
mod model;
mod ordinary;
mod recycle;
mod room;
