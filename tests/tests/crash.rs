//! The store and the power: every short program, cut everywhere.

use larder_tests::sim::store::exhaustive::cut_all;
use larder_tests::sim::store::workers::threads;

/// Letters of the longest programs.
const LENGTH: usize = 3;

#[test]
fn every_short_program_cut_anywhere_keeps_what_was_acknowledged() {
    let (looked, broken) = cut_all(LENGTH, threads());
    println!("{looked:?}");
    assert!(broken.is_empty(), "{} programs break a promise:\n{}", broken.len(), broken.join("\n"));
    assert!(looked.programs >= 584 && looked.images > 50_000, "{looked:?}");
}
