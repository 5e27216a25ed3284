//! Bugs planted in the store are found by the simulator, and where there is none it finds none.

extern crate larder_planted as larder_store;

#[allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    reason = "the simulator is larder-tests' own; a part of it is used here"
)]
#[path = "../../src/sim/mod.rs"]
mod sim;

use larder_store::planted::{Bug, plant};
use sim::store::storm::live;

/// Lives a bug has to be found in, and lives that are looked at where there is none.
const LIVES: u64 = 1000;
const SOUND_LIVES: u64 = 300;

/// The first life that breaks a promise, and its words.
fn found(bug: Bug, lives: u64) -> Option<(u64, String)> {
    plant(bug);
    (1..=lives).find_map(|seed| Some((seed, live(seed, false).err()?)))
}

fn is_found(bug: Bug, as_words: &[&str]) {
    let (seed, words) = found(bug, LIVES).unwrap_or_else(|| panic!("{bug:?} is not found in {LIVES} lives"));
    println!("{bug:?} is found by life {seed}: {words}");
    assert!(as_words.iter().any(|part| words.contains(part)), "{bug:?} shows as something else: {words}");
}

#[test]
fn a_store_without_a_planted_bug_breaks_no_promise() {
    assert_eq!(found(Bug::None, SOUND_LIVES), None);
}

#[test]
fn an_acknowledgement_before_the_sync_is_found() {
    is_found(Bug::AckBeforeSync, &["LOST"]);
}

#[test]
fn a_batch_without_its_commit_is_found() {
    is_found(Bug::MissingCommitCheck, &["possible states"]);
}

#[test]
fn a_checkpoint_that_forgets_a_segment_is_found() {
    is_found(Bug::ForgottenSegment, &["LOST", "status counts"]);
}

#[test]
fn a_start_that_builds_on_what_is_not_durable_is_found() {
    is_found(Bug::NoSettle, &["LOST", "possible states"]);
}

#[test]
fn a_failed_sync_that_is_retried_is_found() {
    is_found(Bug::SyncRetried, &["LOST", "possible states"]);
}

#[test]
fn bytes_of_an_older_generation_taken_for_new_ones_are_found() {
    is_found(Bug::OldGeneration, &["possible states", "status counts"]);
}
