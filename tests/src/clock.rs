//! A wall clock of its own for one agent, by `libfaketime`; its monotonic clock runs as it is.

use crate::node::Node;
use std::fs;
use std::path::{Path, PathBuf};

/// Where Debian puts the library on this machine.
pub fn library() -> Option<PathBuf> {
    let places = fs::read_dir("/usr/lib").ok()?.flatten().map(|entry| entry.path());
    let library = |place: PathBuf| place.join("faketime/libfaketime.so.1");
    places.map(library).find(|library| library.exists())
}

/// Gives a node's next processes a wall clock, which [`set_clock`] steps while they run.
///
/// # Panics
/// When the node's folder can not be written to.
pub fn with_clock(node: &mut Node, library: &Path, clock: &str) {
    set_clock(node, clock);
    let file = node.path("clock");
    node.variable("LD_PRELOAD", library.to_str().expect("a plain path"));
    node.variable("FAKETIME_TIMESTAMP_FILE", file.to_str().expect("a plain path"));
    node.variable("FAKETIME_NO_CACHE", "1");
    node.variable("FAKETIME_DONT_FAKE_MONOTONIC", "1");
}

/// Sets it to `@DATE TIME` at the start of the process, or to `+SECONDS` from the machine's.
///
/// # Panics
/// When the node's folder can not be written to.
pub fn set_clock(node: &Node, clock: &str) {
    // in one step, so that nobody reads half of it
    fs::write(node.path("clock.new"), clock).expect("the folder is writable");
    fs::rename(node.path("clock.new"), node.path("clock")).expect("the folder is writable");
}
