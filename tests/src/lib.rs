//! What Larder's tests share: brokers, certificates and bad networks.

pub mod broker;
