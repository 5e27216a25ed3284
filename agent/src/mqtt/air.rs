//! What goes over the air: whole MQTT packets, counted when the client library tells of them.
//!
//! Duty: both directions and every kind of packet, by the library's own encoder, and publishes by its formula. A
//! message that was accepted and never written is not counted. Publishes alone are messages.
//! Left out: TLS, TCP and IP, and what TCP sends again.
//! Not told by the library, and so not counted: a CONNECT that nobody answered in time, a DISCONNECT without a
//! property length (see the traps), a packet that it refuses, how much of a packet was written when the connection
//! broke, and what it had still to tell of a goodbye that took too long.
//! A PUBACK may be written in three ways that read the same. It is taken for the shortest, which Mosquitto and our own
//! broker write; others may write up to two bytes more. Of the CONNACK that refuses a connection the library tells the
//! code alone: what else a broker says in one is not counted, and those two say nothing else.

use super::options::Plan;
use super::reason::Ending;
use super::{Outgoing, Qos};
use larder_core::request::AirNumbers;
use rumqttc::Outgoing as Written;
use rumqttc::v5::mqttbytes::v5::{
    ConnAck, Connect, Disconnect, DisconnectReasonCode, Packet, PingReq, PubAck, PubAckReason, Subscribe,
};
use rumqttc::v5::{ConnectionError, Event, MqttOptions};
use std::sync::{Arc, Mutex, MutexGuard};

/// Counters of links; clones count together.
#[derive(Clone, Debug, Default)]
pub struct Air(Arc<Mutex<AirNumbers>>);

impl Air {
    /// All up to now.
    pub fn numbers(&self) -> AirNumbers {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, AirNumbers> {
        self.0.lock().expect("nothing panics with the lock")
    }

    /// A message is on the socket; the library tells of its packet id alone.
    pub(super) fn published(&self, bytes: usize) {
        let mut numbers = self.lock();
        numbers.messages_sent += 1;
        numbers.bytes_sent += bytes as u64;
    }

    /// What the library tells of a connection.
    pub(super) fn told(&self, event: &Event, plan: &Plan, options: &MqttOptions) {
        match event {
            Event::Incoming(packet) => {
                if matches!(packet, Packet::ConnAck(_)) {
                    self.sent(&connect(options));
                }
                self.received(packet);
            }
            Event::Outgoing(written) => {
                if let Some(packet) = packet(written, plan) {
                    self.sent(&packet);
                }
            }
        }
    }

    /// A connection ended without an answer to its CONNECT that the library would have told of.
    pub(super) fn unanswered(&self, ending: &Ending, options: &MqttOptions) {
        let Ending::Error(error) = ending else { return };
        let answer = match &**error {
            ConnectionError::ConnectionRefused(code) => {
                Some(Packet::ConnAck(ConnAck { session_present: false, code: *code, properties: None }))
            }
            ConnectionError::NotConnAck(packet) => Some((**packet).clone()),
            ConnectionError::MqttState(_) => None,
            // most likely nothing was sent: there was no connection yet
            ConnectionError::Timeout(_)
            | ConnectionError::Tls(_)
            | ConnectionError::Io(_)
            | ConnectionError::RequestsDone => return,
        };
        self.sent(&connect(options));
        if let Some(packet) = answer {
            self.received(&packet);
        }
    }

    fn sent(&self, packet: &Packet) {
        self.lock().bytes_sent += packet.size() as u64;
    }

    fn received(&self, packet: &Packet) {
        let mut numbers = self.lock();
        numbers.messages_received += u64::from(matches!(packet, Packet::Publish(_)));
        numbers.bytes_received += received_bytes(packet) as u64;
    }
}

/// The packet that opens a connection with these options.
fn connect(options: &MqttOptions) -> Packet {
    let connect = Connect {
        keep_alive: 0, // of no matter for the size
        client_id: options.client_id(),
        clean_start: options.clean_start(),
        properties: options.connect_properties(),
    };
    Packet::Connect(connect, options.last_will(), options.credentials())
}

/// The packet that was written; none for a message, and for what a link never has written.
fn packet(written: &Written, plan: &Plan) -> Option<Packet> {
    Some(match written {
        Written::Subscribe(_) => Packet::Subscribe(Subscribe::new_many(plan.filters(), None)),
        Written::PubAck(packet_id) => Packet::PubAck(PubAck::new(*packet_id, None)),
        Written::PingReq => Packet::PingReq(PingReq),
        Written::Disconnect => Packet::Disconnect(Disconnect::new(DisconnectReasonCode::NormalDisconnection)),
        Written::Publish(_)
        | Written::AwaitAck(_)
        | Written::Unsubscribe(_)
        | Written::PubRec(_)
        | Written::PubRel(_)
        | Written::PubComp(_)
        | Written::PingResp => return None,
    })
}

/// The bytes a packet had when it came in: where a reason stands alone the library writes other forms than it read.
fn received_bytes(packet: &Packet) -> usize {
    if let Packet::PubAck(PubAck { reason, properties: None, .. }) = packet
        && *reason != PubAckReason::Success
    {
        return 5;
    }
    if let Packet::Disconnect(Disconnect { properties: None, .. }) = packet {
        return 4;
    }
    packet.size()
}

impl Outgoing {
    /// The bytes the message takes as an MQTT packet.
    pub fn packet_bytes(&self) -> usize {
        let packet_id_bytes = match self.qos {
            Qos::AtMostOnce => 0,
            Qos::AtLeastOnce => 2,
        };
        // topic length 2, property length 1
        let rest = 2 + self.topic.len() + packet_id_bytes + 1 + self.payload.len();
        let length_bytes = match rest {
            0..0x80 => 1,
            0x80..0x4000 => 2,
            0x4000..0x20_0000 => 3,
            _ => 4,
        };
        1 + length_bytes + rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::{Bytes, BytesMut};
    use rumqttc::v5::mqttbytes::QoS;
    use rumqttc::v5::mqttbytes::v5::{Publish, PublishProperties};

    #[test]
    fn a_message_takes_the_bytes_that_the_library_writes() {
        for (qos, library_qos) in [(Qos::AtMostOnce, QoS::AtMostOnce), (Qos::AtLeastOnce, QoS::AtLeastOnce)] {
            for payload_bytes in (0..300).chain(16_300..16_400).chain([100_000, 2_097_151]) {
                let payload = Bytes::from(vec![7; payload_bytes]);
                let mut publish = Publish::new("a/b", library_qos, payload.clone(), None);
                publish.pkid = 1;
                let written = publish.write(&mut BytesMut::new()).expect("it can be written");
                assert_eq!(Outgoing::new(1, "a/b", payload, qos).packet_bytes(), written, "{payload_bytes}");
            }
        }
    }

    #[test]
    fn a_packet_counts_as_it_came_in() {
        let properties = PublishProperties {
            message_expiry_interval: Some(1),
            subscription_identifiers: vec![1, 300],
            ..PublishProperties::default()
        };
        let mut publish = BytesMut::new();
        Publish::new("a", QoS::AtMostOnce, "x", Some(properties)).write(&mut publish).expect("it is valid");
        // as Mosquitto writes them, and a DISCONNECT as our own broker does
        let connack = [0x20, 9, 0, 0, 6, 0x22, 0, 10, 0x21, 0, 20];
        let packets: [&[u8]; 7] = [
            &connack,
            &[0x90, 5, 0, 1, 0, 1, 1],
            &[0x40, 2, 0, 1],
            &[0x40, 3, 0, 1, 0x10],
            &[0xd0, 0],
            &[0xe0, 2, 0x8e, 0],
            &publish,
        ];
        let air = Air::default();
        for bytes in packets {
            let packet = Packet::read(&mut BytesMut::from(bytes), None).expect("it is valid");
            let before = air.numbers().bytes_received;
            air.received(&packet);
            assert_eq!(air.numbers().bytes_received - before, bytes.len() as u64, "{packet:?}");
        }
        assert_eq!(air.numbers().messages_received, 1);
    }
}
