//! What a worker in the low-power profile has resident at the most, as the kernel counts it (VmHWM), beside what is
//! wanted of it: `tests/memory.rs` asserts the same of more.
//!
//! `cargo bench -p larder-tests --bench memory`; needs 6 GB for temporary files. One worker takes in a file of 2 GiB,
//! another 100,000 files of 100 bytes. Exits with 1 where a line misses what is wanted.

use larder_tests::memory::{MIB, PEAK_BYTES_MAX, low_power_worker, write_large, write_small};
use larder_tests::node::Node;
use std::process::ExitCode;

fn main() -> ExitCode {
    println!("{:<28}{:>10}{:>10}", "", "peak MiB", "wanted");
    let large = |node: &Node| {
        write_large(node, "large");
    };
    let small = |node: &Node| drop(write_small(node));
    let holds = [line("a file of 2 GiB", "large", large), line("100,000 small files", "many", small)];
    if holds == [true; 2] { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Has a new worker take something in; whether it kept to its memory.
fn line(what: &str, name: &str, write: impl FnOnce(&Node)) -> bool {
    let mut node = low_power_worker();
    write(&node);
    node.start();
    let started = node.peak_bytes();
    node.run(["put", name]).expect(0);
    let peak = node.peak_bytes();
    let mib = |bytes: u64| format!("{:.1}", bytes as f64 / MIB as f64);
    let wanted = format!("<= {}", PEAK_BYTES_MAX / MIB);
    println!("{what:<28}{:>10}{wanted:>10}   (started with {})", mib(peak), mib(started));
    peak <= PEAK_BYTES_MAX
}
