//! Whole fleets of the real core in a simulated world, each from a seed.

mod commands;
mod folders;
mod keeping;
mod peers;
mod sim;
mod storm;
mod transfer;
