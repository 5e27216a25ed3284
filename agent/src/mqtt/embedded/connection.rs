//! One client of the embedded broker: bytes in, bytes out.
//!
//! Duty: reads packets, asks the hub, writes answers and deliveries. Reading and writing never wait
//! for each other, so a client that writes before it reads cannot stop both.
//! Refuses: everything the module above lists, each with MQTT's reason code.
//! Bound: one packet of input, about [`OUT_BYTES_MAX`] of output, one and a half keep-alives of silence.
//! Fails: by a DISCONNECT with a reason, written with a property length because rumqttc swallows
//! the short form.

use super::ENTRY_WITHIN;
use super::access;
use super::hub::{Arrival, Attached, Hub, IN_FLIGHT_MAX};
use crate::mqtt::PACKET_BYTES_MAX;
use bytes::BytesMut;
use rumqttc::v5::mqttbytes::v5::{
    ConnAck, ConnAckProperties, Connect, ConnectReturnCode, DisconnectReasonCode, LastWill, Login, Packet,
    PingResp, PubAck, PubAckReason, Publish, SubAck, Subscribe, UnsubAck, UnsubAckReason, Unsubscribe, check,
};
use rumqttc::v5::mqttbytes::{Error as PacketError, QoS};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::time::{self, Instant};

const OUT_BYTES_MAX: usize = 256 * 1024;
/// A client that asks and never reads the answers is not read from beyond this.
const OUT_BYTES_STOP: usize = 4 * OUT_BYTES_MAX;
const READ_BYTES: usize = 16 * 1024;
/// For clients that ask for no keep-alive: a vanished one must not hold its place for ever.
const KEEP_ALIVE_DEFAULT: u16 = 60;
const CLIENT_ID_BYTES_MAX: usize = 256;

/// The login at the door, kept as hashes: comparing them takes the same time for every guess.
pub(super) struct Gate {
    login: Option<(blake3::Hash, blake3::Hash)>,
}

impl Gate {
    pub(super) fn new(login: Option<(String, String)>) -> Self {
        let hashes = |(user, password): (String, String)| {
            (blake3::hash(user.as_bytes()), blake3::hash(password.as_bytes()))
        };
        Self { login: login.map(hashes) }
    }

    fn admits(&self, login: Option<&Login>) -> bool {
        let Some((user, password)) = &self.login else { return true };
        let Some(login) = login else { return false };
        let same_user = blake3::hash(login.username.as_bytes()) == *user;
        let same_password = blake3::hash(login.password.as_bytes()) == *password;
        same_user & same_password
    }
}

/// Why a connection ends.
enum End {
    /// The client said goodbye.
    Goodbye,
    /// The socket closed or broke, or there is nobody to tell.
    Gone,
    /// The client is told this reason.
    Because(DisconnectReasonCode),
}

impl From<std::io::Error> for End {
    fn from(_: std::io::Error) -> Self {
        Self::Gone
    }
}

/// Serves one client until it leaves.
pub(super) async fn serve<S>(mut stream: S, name: Option<String>, hub: Arc<Mutex<Hub>>, gate: Arc<Gate>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let mut input = BytesMut::new();
    let first = time::timeout(ENTRY_WITHIN, packet(&mut stream, &mut input)).await;
    let Ok(Ok(Packet::Connect(connect, will, login))) = first else { return };
    let keep_alive = if connect.keep_alive == 0 { KEEP_ALIVE_DEFAULT } else { connect.keep_alive };
    let entered = enter(&hub, &gate, name, connect, will, login.as_ref());
    let mut answer = BytesMut::new();
    let (code, session_present, assigned) = match &entered {
        Ok(client) => (ConnectReturnCode::Success, client.session_present, client.assigned.clone()),
        Err(code) => (*code, false, None),
    };
    if welcome(code, session_present, assigned, keep_alive).write(&mut answer).is_err() {
        return;
    }
    let written = async {
        stream.write_all(&answer).await?;
        stream.flush().await
    };
    let welcomed = matches!(time::timeout(ENTRY_WITHIN, written).await, Ok(Ok(())));
    let Ok(mut client) = entered else { return };
    if !welcomed {
        return;
    }
    let silence_max = Duration::from_millis(u64::from(keep_alive) * 1500);
    let mut out = BytesMut::new();
    match client.run(&mut stream, &mut input, &mut out, silence_max).await {
        End::Goodbye => client.goodbye = true,
        End::Gone => {}
        End::Because(code) => {
            tracing::debug!(client = client.key, ?code, "the embedded broker ends a connection");
            // behind what is half written already, or it would become part of a payload
            out.extend_from_slice(&[0xe0, 2, code as u8, 0]);
            let written = async {
                stream.write_all(&out).await?;
                stream.shutdown().await
            };
            // the client may be gone already; then there is nobody to tell
            let _told = time::timeout(Duration::from_secs(1), written).await.is_ok();
        }
    }
}

/// A client with its session; dropping it gives the session back.
struct Client {
    hub: Arc<Mutex<Hub>>,
    key: String,
    connection: u64,
    session_present: bool,
    /// The id given to a client that came without one.
    assigned: Option<String>,
    wake: Arc<Notify>,
    goodbye: bool,
}

impl Drop for Client {
    fn drop(&mut self) {
        lock(&self.hub).detach(&self.key, self.connection, self.goodbye, std::time::Instant::now());
    }
}

fn lock(hub: &Mutex<Hub>) -> MutexGuard<'_, Hub> {
    // the hub is consistent between its calls, and none of them panics half way on client input
    hub.lock().unwrap_or_else(PoisonError::into_inner)
}

fn enter(
    hub: &Arc<Mutex<Hub>>,
    gate: &Gate,
    name: Option<String>,
    connect: Connect,
    will: Option<LastWill>,
    login: Option<&Login>,
) -> Result<Client, ConnectReturnCode> {
    if !gate.admits(login) {
        return Err(ConnectReturnCode::BadUserNamePassword);
    }
    let id = connect.client_id;
    if id.len() > CLIENT_ID_BYTES_MAX || (id.is_empty() && !connect.clean_start) {
        return Err(ConnectReturnCode::ClientIdentifierNotValid);
    }
    if let Some(will) = &will {
        let topic = std::str::from_utf8(&will.topic).map_err(|_| ConnectReturnCode::TopicNameInvalid)?;
        if !crate::mqtt::options::valid_topic(topic) {
            return Err(ConnectReturnCode::TopicNameInvalid);
        }
        if name.as_deref().is_some_and(|name| !access::may_publish(name, topic)) {
            return Err(ConnectReturnCode::NotAuthorized);
        }
    }
    let properties = connect.properties.as_ref();
    let now = std::time::Instant::now();
    let assigned = id.is_empty().then(|| lock(hub).fresh_id());
    let id = assigned.clone().unwrap_or(id);
    // a certificate's name is part of the key, so that one node cannot take another's session
    let key = format!("{}/{id}", name.as_deref().unwrap_or(""));
    let arrival = Arrival {
        key: key.clone(),
        name,
        clean_start: connect.clean_start,
        expiry: Duration::from_secs(properties.and_then(|p| p.session_expiry_interval).unwrap_or(0).into()),
        in_flight_max: properties.and_then(|p| p.receive_maximum).unwrap_or(u16::MAX),
        packet_bytes_max: properties
            .and_then(|p| p.max_packet_size)
            .map_or(PACKET_BYTES_MAX, |max| max as usize),
        will,
    };
    let Attached { connection, session_present, wake } =
        lock(hub).attach(arrival, now).ok_or(ConnectReturnCode::ServerBusy)?;
    Ok(Client { hub: hub.clone(), key, connection, session_present, assigned, wake, goodbye: false })
}

fn welcome(
    code: ConnectReturnCode,
    session_present: bool,
    assigned: Option<String>,
    keep_alive: u16,
) -> ConnAck {
    let properties = ConnAckProperties {
        session_expiry_interval: None,
        receive_max: Some(IN_FLIGHT_MAX),
        max_qos: Some(1),
        retain_available: None,
        max_packet_size: u32::try_from(PACKET_BYTES_MAX).ok(),
        assigned_client_identifier: assigned,
        topic_alias_max: None,
        reason_string: None,
        user_properties: Vec::new(),
        wildcard_subscription_available: None,
        subscription_identifiers_available: Some(0),
        shared_subscription_available: Some(0),
        server_keep_alive: Some(keep_alive),
        response_information: None,
        server_reference: None,
        authentication_method: None,
        authentication_data: None,
    };
    // who is refused has no use for them
    let properties = (code == ConnectReturnCode::Success).then_some(properties);
    ConnAck { session_present, code, properties }
}

impl Client {
    async fn run<S>(
        &mut self,
        stream: &mut S,
        input: &mut BytesMut,
        out: &mut BytesMut,
        silence_max: Duration,
    ) -> End
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let mut unflushed = false;
        let mut deadline = Instant::now() + silence_max;
        if let Err(end) = self.answer(input, out) {
            return end;
        }
        loop {
            let taken = lock(&self.hub).take(&self.key, self.connection, out, OUT_BYTES_MAX, now());
            if taken.is_err() {
                return End::Because(DisconnectReasonCode::SessionTakenOver);
            }
            input.reserve(READ_BYTES);
            tokio::select! {
                read = reader.read_buf(input), if out.len() < OUT_BYTES_STOP => {
                    if !matches!(read, Ok(1..)) {
                        return End::Gone;
                    }
                    deadline = Instant::now() + silence_max;
                    if let Err(end) = self.answer(input, out) {
                        return end;
                    }
                }
                pushed = push(&mut writer, out), if unflushed || !out.is_empty() => match pushed {
                    Ok(more) => unflushed = more,
                    Err(_) => return End::Gone,
                },
                () = self.wake.notified() => {}
                () = time::sleep_until(deadline) => return End::Because(DisconnectReasonCode::KeepAliveTimeout),
            }
        }
    }

    /// Works through every whole packet in `input`.
    fn answer(&mut self, input: &mut BytesMut, out: &mut BytesMut) -> Result<(), End> {
        while let Some(packet) = next_packet(input)? {
            match packet {
                Packet::Publish(publish) => self.publish(publish, out)?,
                Packet::PubAck(answer) => {
                    lock(&self.hub).acknowledge(&self.key, self.connection, answer.pkid);
                }
                Packet::Subscribe(subscribe) => self.subscribe(subscribe, out)?,
                Packet::Unsubscribe(unsubscribe) => self.unsubscribe(&unsubscribe, out)?,
                Packet::PingReq(_) => {
                    PingResp::write(out).map_err(|_| End::Gone)?;
                }
                Packet::Disconnect(goodbye) => {
                    let normal = goodbye.reason_code == DisconnectReasonCode::NormalDisconnection;
                    return Err(if normal { End::Goodbye } else { End::Gone });
                }
                Packet::Auth(_)
                | Packet::Connect(..)
                | Packet::ConnAck(_)
                | Packet::PingResp(_)
                | Packet::SubAck(_)
                | Packet::PubRec(_)
                | Packet::PubRel(_)
                | Packet::PubComp(_)
                | Packet::UnsubAck(_) => return Err(End::Because(DisconnectReasonCode::ProtocolError)),
            }
        }
        Ok(())
    }

    fn publish(&mut self, mut publish: Publish, out: &mut BytesMut) -> Result<(), End> {
        let (qos, packet_id) = (publish.qos, publish.pkid);
        if qos == QoS::ExactlyOnce {
            return Err(End::Because(DisconnectReasonCode::QoSNotSupported));
        }
        if let Some(properties) = &mut publish.properties {
            if properties.topic_alias.is_some() {
                return Err(End::Because(DisconnectReasonCode::TopicAliasInvalid));
            }
            properties.subscription_identifiers.clear();
        }
        let valid = std::str::from_utf8(&publish.topic).is_ok_and(crate::mqtt::options::valid_topic);
        if !valid {
            return Err(End::Because(DisconnectReasonCode::TopicNameInvalid));
        }
        let reason = lock(&self.hub).publish(&self.key, publish, now());
        if qos == QoS::AtLeastOnce {
            acknowledge(packet_id, reason, out)?;
        }
        Ok(())
    }

    fn subscribe(&mut self, subscribe: Subscribe, out: &mut BytesMut) -> Result<(), End> {
        if subscribe.properties.is_some_and(|properties| properties.id.is_some()) {
            return Err(End::Because(DisconnectReasonCode::SubscriptionIdentifiersNotSupported));
        }
        let mut hub = lock(&self.hub);
        let subscribed = subscribe.filters.into_iter().map(|filter| hub.subscribe(&self.key, filter, now()));
        let answer = SubAck { pkid: subscribe.pkid, return_codes: subscribed.collect(), properties: None };
        answer.write(out).map(drop).map_err(|_| End::Gone)
    }

    fn unsubscribe(&mut self, unsubscribe: &Unsubscribe, out: &mut BytesMut) -> Result<(), End> {
        let mut hub = lock(&self.hub);
        let reasons = unsubscribe.filters.iter().map(|path| match hub.unsubscribe(&self.key, path) {
            true => UnsubAckReason::Success,
            false => UnsubAckReason::NoSubscriptionExisted,
        });
        let answer = UnsubAck { pkid: unsubscribe.pkid, reasons: reasons.collect(), properties: None };
        answer.write(out).map(drop).map_err(|_| End::Gone)
    }
}

/// Writes a PUBACK in its shortest form: the codec says of every reason but success that no properties follow.
fn acknowledge(packet_id: u16, reason: PubAckReason, out: &mut BytesMut) -> Result<(), End> {
    const REASON_ALONE: u8 = 3;
    let begins = out.len();
    let answer = PubAck { pkid: packet_id, reason, properties: None };
    answer.write(out).map_err(|_| End::Gone)?;
    if reason != PubAckReason::Success {
        out.truncate(out.len() - 1);
        out[begins + 1] = REASON_ALONE;
    }
    Ok(())
}

/// Writes some of `out`, or flushes once it is empty; true while a flush is due. Cancel safe.
async fn push<W: AsyncWrite + Unpin>(writer: &mut W, out: &mut BytesMut) -> std::io::Result<bool> {
    if out.is_empty() {
        writer.flush().await?;
        return Ok(false);
    }
    writer.write_buf(out).await?;
    Ok(true)
}

fn now() -> std::time::Instant {
    std::time::Instant::now()
}

/// Reads until one packet is whole.
async fn packet<S: AsyncRead + Unpin>(stream: &mut S, input: &mut BytesMut) -> Result<Packet, End> {
    loop {
        if let Some(packet) = next_packet(input)? {
            return Ok(packet);
        }
        input.reserve(READ_BYTES);
        if stream.read_buf(input).await? == 0 {
            return Err(End::Gone);
        }
    }
}

/// The next whole packet, if there is one.
fn next_packet(input: &mut BytesMut) -> Result<Option<Packet>, End> {
    let header = match check(input.iter(), u32::try_from(PACKET_BYTES_MAX).ok()) {
        Ok(header) => header,
        Err(PacketError::InsufficientBytes(_)) => return Ok(None),
        Err(PacketError::PayloadSizeLimitExceeded { .. }) => {
            return Err(End::Because(DisconnectReasonCode::PacketTooLarge));
        }
        Err(_) => return Err(End::Because(DisconnectReasonCode::MalformedPacket)),
    };
    let mut whole = input.split_to(header.frame_length());
    if whole[..] == [0xe0, 0] {
        // rumqttc writes this form and does not read it
        return Err(End::Goodbye);
    }
    match Packet::read(&mut whole, None) {
        Ok(packet) => Ok(Some(packet)),
        Err(_) => Err(End::Because(DisconnectReasonCode::MalformedPacket)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One packet of each kind a client sends.
    fn samples() -> Vec<BytesMut> {
        use rumqttc::v5::mqttbytes::v5::{ConnectProperties, Filter, PingReq, PublishProperties};
        let properties = PublishProperties {
            message_expiry_interval: Some(9),
            response_topic: Some("r".to_owned()),
            correlation_data: Some(vec![1, 2, 3].into()),
            user_properties: vec![("k".to_owned(), "v".to_owned())],
            ..PublishProperties::default()
        };
        let mut publish = Publish::new("t/x", QoS::AtLeastOnce, vec![0; 20], Some(properties));
        publish.pkid = 7;
        let mut connect_properties = ConnectProperties::new();
        connect_properties.session_expiry_interval = Some(5);
        let connect = Connect {
            keep_alive: 60,
            client_id: "cam".to_owned(),
            clean_start: true,
            properties: Some(connect_properties),
        };
        let will = LastWill::new("w", "lost", QoS::AtLeastOnce, true, None);
        let packets = [
            Packet::Connect(connect, Some(will), Some(Login::new("user", "password"))),
            Packet::Publish(publish),
            Packet::PubAck(PubAck::new(7, None)),
            Packet::Subscribe(Subscribe::new(Filter::new("t/#", QoS::AtLeastOnce), None)),
            Packet::Unsubscribe(Unsubscribe::new("t/#", None)),
            Packet::PingReq(PingReq),
        ];
        let encode = |packet: Packet| {
            let mut bytes = BytesMut::new();
            packet.write(&mut bytes, None).expect("the sample is valid");
            bytes
        };
        packets.into_iter().map(encode).collect()
    }

    #[test]
    fn damaged_packets_are_refused_and_never_panic() {
        let mut state = 1u64;
        let mut random = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        for sample in samples() {
            assert!(matches!(next_packet(&mut sample.clone()), Ok(Some(_))));
            for _ in 0..20_000 {
                let mut damaged = sample.clone();
                for _ in 0..=random(3) {
                    let at = random(damaged.len());
                    damaged[at] = random(256) as u8;
                }
                if random(2) == 0 {
                    // a shorter body whose header says so
                    let length = 2 + random(damaged.len() - 1);
                    damaged.truncate(length);
                    damaged[1] = u8::try_from(length - 2).expect("the samples are short");
                }
                // whatever it says, it says it without a panic and comes to an end
                while let Ok(Some(_)) = next_packet(&mut damaged) {}
            }
        }
    }
}
