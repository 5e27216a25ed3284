//! Whole fleets of the real core in a simulated world, each from a seed.

#![expect(clippy::unwrap_used, reason = "a test that can not go on fails")]
#![expect(clippy::wildcard_enum_match_arm, reason = "an answer of another kind fails the test")]

mod commands;
mod cutting;
mod fetches;
mod folders;
mod keeping;
mod peers;
mod power;
mod scrub;
mod sim;
mod storm;
mod strain;
mod transfer;
