//! What Larder's tests share: nodes, brokers, certificates and bad networks.

pub mod broker;
pub mod mount;
pub mod node;
pub mod wire;
