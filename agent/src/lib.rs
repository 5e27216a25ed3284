//! The parts of the agent that tests and benches drive from the outside.

mod below;
pub mod cli;
pub mod config;
pub mod demo;
pub mod mqtt;
pub mod run;
pub mod socket;
