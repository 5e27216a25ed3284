//! Real brokers and bad networks for tests.
//!
//! Duty: a real Mosquitto on a free loopback port, certificates for it, and a TCP relay that breaks
//! connections on demand. Everything listens on loopback, and ends when its value is dropped.
//! Fails: by a panic that says what is missing; these are tests.

mod certificates;
mod mosquitto;
mod proxy;

pub use certificates::{Certificates, Identity};
pub use mosquitto::{Config, Mosquitto};
pub use proxy::Proxy;

use std::net::{Ipv4Addr, TcpListener};

/// A loopback port that nobody listens on at this moment.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has a free port");
    listener.local_addr().expect("a bound listener has an address").port()
}
