//! Every decision Larder makes, without I/O.
//!
//! Nothing here reads a clock, a file, a socket, the environment or entropy: what a decision needs comes in
//! as an argument, what it wants done goes out as a value. So a whole fleet can be simulated from a seed.
//! `clippy.toml` beside this crate bans the ways round that.

#![forbid(unsafe_code)]

pub mod batcher;
pub mod binding;
pub mod board;
pub mod control;
pub mod id;
pub mod ingest;
pub mod keeper;
pub mod limits;
pub mod message;
pub mod name;
pub mod node;
pub mod note;
pub mod object;
pub mod power;
pub mod profile;
pub mod request;
pub mod role;
pub mod seal;
pub mod settings;
pub mod start;
pub mod store;
pub mod sync;
pub mod time;
pub mod version;
