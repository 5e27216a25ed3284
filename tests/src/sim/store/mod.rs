//! Lives of the real store on the simulated disk.

pub mod errors;
pub mod exhaustive;
pub mod habits;
pub mod life;
pub mod model;
pub mod programs;
pub mod storm;
pub mod workers;
