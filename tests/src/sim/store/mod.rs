//! Lives of the real store on the simulated disk.

pub mod errors;
pub mod exhaustive;
pub mod life;
pub mod model;
pub mod workers;
