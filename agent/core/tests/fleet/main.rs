//! Whole fleets of the real core in a simulated world, each from a seed.

mod sim;
mod transfer;
