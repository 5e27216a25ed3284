//! `larder-sim` from the outside: what it replays is what the tests ran, and what it is asked wrongly it names.

#![expect(clippy::unwrap_used, reason = "a test that finds anything else has failed")]

use larder_tests::sim::store::exhaustive::cut_all;
use larder_tests::sim::store::storm::{live, storms};
use std::process::Command;

/// Short lives on bad devices: whoever asks such a device once more gets another life.
const SEEDS: [u64; 3] = [1, 3, 59];
/// The first of some more.
const SEED: u64 = 3;

/// How it ended, what it printed, and what it complained of.
fn larder_sim(arguments: &str) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_larder-sim"));
    let ended = command.args(arguments.split_whitespace()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (ended.status.code(), text(ended.stdout), text(ended.stderr))
}

#[test]
fn a_seed_replays_the_life_that_the_library_lives() {
    for seed in SEEDS {
        let told = live(seed, false).unwrap();
        let (code, printed, complaint) = larder_sim(&format!("store --seed {seed}"));
        assert_eq!((code, complaint.as_str()), (Some(0), ""), "{printed}");
        let lines: Vec<&str> = printed.lines().collect();
        assert_eq!(lines.first(), Some(&format!("life {seed}").as_str()));
        assert_eq!(lines.last(), Some(&format!("{told:?}").as_str()));
        let steps = lines.iter().filter(|line| line.starts_with("    dark ")).count();
        assert_eq!(steps as u64, told.steps, "each step is printed");
    }
}

#[test]
fn many_lives_and_all_programs_come_out_as_in_the_library() {
    let (told, broken) = storms(SEED, 40, 1);
    assert!(broken.is_empty());
    let asked = larder_sim(&format!("store --seed {SEED} --images 40 --threads 1"));
    assert_eq!(asked, (Some(0), format!("{told:?}\n"), String::new()));
    let (looked, broken) = cut_all(1, 1);
    assert!(broken.is_empty());
    let asked = larder_sim("programs --length 1 --threads 1");
    assert_eq!(asked, (Some(0), format!("{looked:?}\n"), String::new()));
}

#[test]
fn help_is_printed_and_what_is_asked_wrongly_is_named() {
    let (code, printed, complaint) = larder_sim("--help");
    assert_eq!((code, complaint.as_str()), (Some(0), ""));
    assert!(printed.starts_with("usage: larder-sim store --seed N"), "{printed}");
    let wrong = [
        ("", "a command is missing"),
        ("stoer --seed 1", "stoer is not known"),
        ("store", "--seed or --images is missing"),
        ("store --sede 1", "--sede is not known"),
        ("store --seed", "--seed needs a number"),
        ("store --seed one", "--seed one: "),
        ("programs --images 3", "programs is not known, or takes other flags"),
    ];
    for (arguments, words) in wrong {
        let (code, printed, complaint) = larder_sim(arguments);
        assert_eq!((code, printed.as_str()), (Some(2), ""), "{arguments}");
        assert!(complaint.starts_with(words) && complaint.contains("usage: "), "{arguments}: {complaint}");
    }
}
