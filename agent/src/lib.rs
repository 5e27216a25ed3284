//! The parts of the agent that tests and benches drive from the outside.

pub mod mqtt;
