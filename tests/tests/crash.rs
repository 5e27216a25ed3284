//! The store on the simulated disk: every short program cut everywhere, every error at every call, and long
//! random lives. `larder-sim` replays such a life and the programs that are cut, and runs more.

use larder_tests::sim::coverage::{Coverage, Event};
use larder_tests::sim::store::errors::{fail_all, refuse_a_deletion};
use larder_tests::sim::store::exhaustive::{cut_all, cut_merges, kill_all};
use larder_tests::sim::store::storm::{live, storms};
use larder_tests::sim::store::workers::threads;

/// Letters of the longest programs.
const LENGTH: usize = 3;
/// Checkpoints behind the one that begins a merge, one of which ends it.
const MERGING_CHECKPOINTS: usize = 6;
/// Random images of each run; `LARDER_SIM_IMAGES` asks for more.
const IMAGES: u64 = 10_000;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}

/// Places that random lives have to get to, and how often in each 10,000 images.
const LIVES_REACH: [(Event, u64); 13] = [
    (Event::RefusedByQuota, 15),
    (Event::DeviceFull, 20),
    (Event::RoomCameBack, 3),
    (Event::Recycled, 150),
    (Event::OldGenerationMet, 300),
    (Event::ErrorInRecycling, 60),
    (Event::ErrorOnRecycled, 40),
    (Event::GarbageDeleted, 150),
    (Event::ErrorAnswered, 80),
    (Event::Merged, 6),
    (Event::Collected, 6),
    (Event::CutInMerge, 60),
    (Event::CutInCollection, 8),
];

fn reaches(coverage: &Coverage, least: &[(Event, u64)]) {
    let lacking = coverage.lacking(least);
    assert!(lacking.is_empty(), "a hole in what is tested: {lacking:?}, wanted were {least:?}");
}

#[test]
fn every_short_program_cut_anywhere_keeps_what_was_acknowledged() {
    let (looked, broken) = cut_all(LENGTH, threads());
    println!("{looked:?}");
    assert!(broken.is_empty(), "{} programs break a promise:\n{}", broken.len(), broken.join("\n"));
    assert!(looked.programs >= 584 && looked.images > 50_000, "{looked:?}");
}

#[test]
fn a_merge_cut_anywhere_loses_nothing() {
    let (looked, broken) = cut_merges(MERGING_CHECKPOINTS, threads());
    println!("{looked:?}");
    assert!(broken.is_empty(), "{} programs break a promise:\n{}", broken.len(), broken.join("\n"));
    reaches(&looked.coverage, &[(Event::CutInMerge, 300)]);
}

#[test]
fn a_process_killed_anywhere_leaves_nothing_that_the_next_one_builds_on_and_the_power_takes() {
    let (looked, broken) = kill_all(LENGTH - 1, threads());
    println!("{looked:?}");
    assert!(broken.is_empty(), "{} programs break a promise:\n{}", broken.len(), broken.join("\n"));
    assert!(looked.programs >= 72 && looked.images > 2_500, "{looked:?}");
}

#[test]
fn every_error_at_every_call_of_a_step_loses_nothing() {
    let (looked, broken) = fail_all(threads());
    println!("{looked:?}");
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    assert!(looked.programs >= 24 && looked.images > 5_000, "{looked:?}");
    let least = [(Event::ErrorInRecycling, 90), (Event::ErrorOnRecycled, 30), (Event::ErrorInMerge, 90)];
    reaches(&looked.coverage, &least);
}

#[test]
fn a_deletion_that_a_full_device_refused_does_not_come_back_after_a_put() {
    let looked = refuse_a_deletion(150).unwrap_or_else(|words| panic!("{words}"));
    println!("{looked:?}");
    assert!(looked.images >= 1_800, "{looked:?}");
}

#[test]
fn random_lives_break_no_promise() {
    let first = number("LARDER_SIM_SEED").unwrap_or(1);
    let images = number("LARDER_SIM_IMAGES").unwrap_or(IMAGES);
    let (told, broken) = storms(first, images, threads());
    println!("{told:?}");
    assert!(broken.is_empty(), "{}\nreplay with: larder-sim store --seed N", broken.join("\n"));
    assert!(told.images >= images, "{told:?}");
    reaches(&told.coverage, &LIVES_REACH.map(|(event, least)| (event, least * images / 10_000)));
}

#[test]
fn a_life_is_the_same_again() {
    for seed in 1..20 {
        assert_eq!(live(seed, false), live(seed, false), "life {seed}");
    }
}
