//! What Larder's tests share: nodes, fleets, brokers, certificates and bad networks.

pub mod broker;
pub mod clock;
pub mod fleet;
pub mod impostor;
pub mod intake;
pub mod memory;
pub mod mount;
pub mod node;
pub mod powercut;
pub mod sim;
pub mod store;
pub mod terminal;
pub mod wire;
