//! The MQTT link: messages out, events in, nothing else.
//!
//! Duty: one MQTT 5 connection to one broker, kept alive for ever, behind the small trait
//! [`Transport`], so that the loop above can run on a simulated twin as well.
//! Refuses: QoS 2, topic aliases, plain TCP beyond loopback, messages above the size that the
//! broker and this node agreed on, and anything sent while the link is down.
//! Bound: [`LinkOptions::in_flight_max`] messages out, [`EVENTS_MAX`] events in. When the loop
//! does not take its events the link stops reading, and the broker holds the rest.
//! Fails: by [`LinkEvent::Down`], which says in plain words what happened, what to do about it and
//! when the link tries again. Everything not reported [`LinkEvent::Sent`] before is forgotten
//! here: the layers above send it again from the outbox. Sent is a hint about the broker, never
//! durability; only the receiver's own acknowledgement is.
//!
//! rumqttc 0.25 has traps. Each is dealt with in one place:
//!
//! | trap | dealt with |
//! |---|---|
//! | reserves 65,536 in-flight slots | `options`: both directions are limited to `in_flight_max` |
//! | a packet above its size limit kills the connection for ever | outgoing: `link` refuses it before it enters; incoming: `options` tells the broker our limit, and `session` drops the broker's session when it does not listen |
//! | a lost session drops queued requests, a kept one repeats them | `session`: client and event loop are made anew for each connection; `link` forgets every pending token on Down |
//! | no back-off of its own | `backoff` |
//! | refused QoS 2 leaks slots | [`Qos`] has no such value |
//! | a collision with a lost session livelocks | `session`: fresh state per connection, and a watchdog that ends a connection on which nothing was acknowledged for three keep-alives |
//! | a blocked write stops its keep-alive too | `session`: a poll that returns nothing for two keep-alives ends the connection |
//! | `poll` loses packets when cancelled | `session` is a task of its own and never cancels a poll it goes on with |
//! | a DISCONNECT without a property length (the form Mosquitto writes) is swallowed, and Mosquitto 2.0 tells a client nothing when another takes its session | `session` counts quick closes without a reason, `reason` names the likely cause |
//! | keep-alives under 5 s and IPv6 addresses panic or do not resolve | `options` refuses or brackets them |
//! | a server keep-alive of 0 makes it ping without pause | `session` puts the configured one back |

mod air;
mod backoff;
pub mod embedded;
mod link;
mod options;
mod reason;
mod session;

pub use air::Air;
pub use backoff::BackoffOptions;
pub use link::Link;
pub use options::{LinkOptions, LinkOptionsError, Plan, TlsOptions, Will};

use bytes::Bytes;
use std::future::Future;
use std::time::Duration;

/// The largest MQTT packet a node sends or accepts: what the smallest hosted brokers carry.
pub const PACKET_BYTES_MAX: usize = 128 * 1024;

/// Events that wait for the loop before the link stops reading from the broker.
pub const EVENTS_MAX: usize = 32;

/// How a message is handed to the broker. QoS 2 is left out on purpose: blocks are named by their
/// content, so a second delivery costs nothing but its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Qos {
    /// Sent once, never acknowledged.
    AtMostOnce,
    /// Acknowledged by the broker.
    AtLeastOnce,
}

/// One message on its way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// The caller's own name for the message, reported by [`LinkEvent::Sent`].
    pub token: u64,
    /// A topic without wildcards.
    pub topic: String,
    /// The content, shared and not copied until it is on the socket.
    pub payload: Bytes,
    /// Whether the broker acknowledges it.
    pub qos: Qos,
    /// Whether the broker keeps it for those who subscribe later.
    pub retain: bool,
}

/// What the link reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkEvent {
    /// Connected and subscribed; messages may be sent.
    Up {
        /// The broker kept the session: subscriptions and what it queued meanwhile are there.
        session_present: bool,
    },
    /// Not connected. Whatever was not reported Sent is forgotten.
    Down {
        /// Plain words: what happened and what to do.
        reason: String,
        /// The link tries again by itself after this time.
        retry_in: Duration,
    },
    /// A message from the broker.
    Message {
        /// The topic it was published on.
        topic: String,
        /// Its content.
        payload: Bytes,
    },
    /// Acknowledged by the broker (QoS 1) or handed to the socket (QoS 0).
    Sent {
        /// The message's token.
        token: u64,
    },
    /// The broker will not carry the message; sending it again will not help.
    Rejected {
        /// The message's token.
        token: u64,
        /// Plain words: why, and what to do.
        reason: String,
    },
}

/// Why a message was not taken. It is given back where sending it later may work.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refused {
    /// The link is down; send again after the next Up.
    #[error("the link is down: send {:?} again when it is up", .0.topic)]
    Down(Box<Outgoing>),
    /// As many messages as allowed are on their way; send again after the next Sent.
    #[error("too many messages are on their way: send {:?} again after the next one was sent", .0.topic)]
    Full(Box<Outgoing>),
    /// The message can never be sent over this broker.
    #[error(
        "the message to {topic:?} takes {bytes} bytes, the broker and this node carry at most {bytes_max}"
    )]
    TooLarge {
        /// Where it should have gone.
        topic: String,
        /// What it would take as a packet.
        bytes: usize,
        /// The smaller of the broker's and our own limit.
        bytes_max: usize,
    },
    /// The topic is empty, too long, or holds a wildcard or a NUL.
    #[error("{topic:?} is no topic to publish on: it must be 1 to 65,535 bytes without '+', '#' and NUL")]
    Topic {
        /// The topic as given.
        topic: String,
    },
}

/// One link to one broker; the loop owns it.
pub trait Transport {
    /// Takes a message, or says why not. Never waits.
    fn send(&mut self, message: Outgoing) -> Result<(), Refused>;

    /// How many messages [`Transport::send`] takes now. 0 while the link is down.
    fn room(&self) -> usize;

    /// The next event. Cancel safe: made for `tokio::select!`.
    fn next(&mut self) -> impl Future<Output = LinkEvent>;

    /// Sends what is on its way, then `last`, then says goodbye, so that the broker does not
    /// publish the will. Gives up after `timeout`; then the broker does publish it.
    fn close(self, last: Option<Outgoing>, timeout: Duration) -> impl Future<Output = ()>;
}
