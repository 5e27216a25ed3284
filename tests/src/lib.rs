//! What Larder's tests share: nodes, brokers, certificates and bad networks.

pub mod broker;
pub mod node;
pub mod wire;
