//! Compares larder-store with what else one could use, on the same blocks, and prints one table of ratios.
//!
//! `cargo run --release --manifest-path tests/compare/Cargo.toml -- [--svg FILE] [--dir DIR] [--quick] [PEER...]`;
//! with `--features rocksdb` RocksDB takes part too (it builds for many minutes). Every peer is a process of its
//! own (`child.rs`) that holds its store open and does rounds when told; the rounds of all peers are interleaved
//! (`contest.rs`), so that they meet the same device in the same minutes. Device flushes and bytes are those of
//! the block device as the kernel counts them: run it on a machine that does nothing else.

mod blocks;
mod chart;
mod child;
mod contest;
mod device;
mod peers;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;

/// What to compare, and where.
pub struct Plan {
    /// Where the stores are made; on the device that is to be measured.
    pub directory: PathBuf,
    /// A tenth of the work: to see that it runs.
    pub quick: bool,
    /// Names of [`peers::NAMES`].
    pub peers: Vec<String>,
    /// Where to draw the durable writes.
    pub svg: Option<PathBuf>,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).peekable();
    if arguments.peek().map(String::as_str) == Some("child") {
        let words: Vec<String> = arguments.skip(1).collect();
        let [peer, directory, size] = words.as_slice() else { return usage() };
        let Ok(size) = size.parse() else { return usage() };
        child::run(peer, directory.as_ref(), size);
        return ExitCode::SUCCESS;
    }
    let mut plan = Plan { directory: ".".into(), quick: false, peers: Vec::new(), svg: None };
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--quick" => plan.quick = true,
            "--dir" | "--svg" => {
                let Some(path) = arguments.next().map(PathBuf::from) else { return usage() };
                if argument == "--dir" { plan.directory = path } else { plan.svg = Some(path) }
            }
            name if peers::NAMES.contains(&name) => plan.peers.push(name.to_owned()),
            _ => return usage(),
        }
    }
    if plan.peers.is_empty() {
        plan.peers = peers::NAMES.iter().map(|name| (*name).to_owned()).collect();
    }
    let results = contest::run(&plan);
    print!("{}", report::table(&results));
    if let Some(path) = &plan.svg {
        std::fs::write(path, chart::svg(&results)).expect("the chart can be written");
    }
    ExitCode::SUCCESS
}

fn usage() -> ExitCode {
    eprintln!(
        "larder-compare [--svg FILE] [--dir DIR] [--quick] [PEER...]; peers: {}",
        peers::NAMES.join(", ")
    );
    ExitCode::from(2)
}
