//! `larder-sim`: replays a life of the store on the simulated disk, or runs many.
//!
//!     larder-sim store --seed N                 one life, step by step
//!     larder-sim store [--seed N] --images M    lives from seed N on, until M images were opened
//!     larder-sim programs [--length L]          every program of up to L steps, cut everywhere
//!
//! `--threads T` for both of the latter. It ends with 1 and the seeds if a promise is broken, with 2 if it does not
//! understand what it is asked for; `--help` tells.

use larder_tests::sim::store::exhaustive::cut_all;
use larder_tests::sim::store::storm::{live, storms};
use larder_tests::sim::store::workers::threads;
use std::process::ExitCode;

const USAGE: &str = "usage: larder-sim store --seed N | store [--seed N] --images M [--threads T] | \
                     programs [--length L] [--threads T]";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--help") {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let broken = match run(&arguments) {
        Ok(broken) => broken,
        Err(words) => {
            eprintln!("{words}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    broken.iter().for_each(|words| println!("BROKEN: {words}"));
    if broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run(arguments: &[String]) -> Result<Vec<String>, String> {
    let (command, flags) = arguments.split_first().ok_or("a command is missing")?;
    let mut numbers = [("--seed", None), ("--images", None), ("--length", None), ("--threads", None)];
    for flag in flags.chunks(2) {
        let [flag, number] = flag else { return Err(format!("{} needs a number", flag[0])) };
        let known = numbers.iter_mut().find(|(name, _)| name == flag);
        let (_, value) = known.ok_or_else(|| format!("{flag} is not known"))?;
        *value = Some(number.parse::<u64>().map_err(|error| format!("{flag} {number}: {error}"))?);
    }
    let [seed, images, length, workers] = numbers.map(|(_, value)| value);
    let workers = workers.map_or(threads(), |workers| workers as usize);
    match (command.as_str(), images) {
        ("store", None) => {
            let seed = seed.ok_or("--seed or --images is missing")?;
            println!("life {seed}");
            Ok(live(seed, true).map(|told| println!("{told:?}")).err().into_iter().collect())
        }
        ("store", Some(images)) => {
            let (told, broken) = storms(seed.unwrap_or(1), images, workers);
            println!("{told:?}");
            Ok(broken)
        }
        ("programs", None) => {
            let (looked, broken) = cut_all(length.unwrap_or(3) as usize, workers);
            println!("{looked:?}");
            Ok(broken)
        }
        _ => Err(format!("{command} is not known, or takes other flags")),
    }
}
