//! What the embedded broker knows: sessions, queues, retained messages. No I/O.
//!
//! Duty: routes a message to every session that wants it and keeps it until that session's
//! connection takes it.
//! Refuses: more sessions, filters or retained bytes than its limits, with MQTT's reason codes.
//! Bound: the constants below; what waits for all sessions together, sent and not acknowledged included,
//! is at most [`HELD_BYTES_MAX`].
//! Fails: a message that finds a queue full is dropped for that one session and counted. Blocks are
//! asked for again by their receivers, so a drop costs time and never data.

use super::access;
use bytes::{Bytes, BytesMut};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{
    Filter, LastWill, PubAckReason, Publish, PublishProperties, RetainForwardRule, SubscribeReasonCode,
};
use rumqttc::v5::mqttbytes::valid_filter;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Sessions, and so connections.
pub(super) const SESSIONS_MAX: usize = 256;
const FILTERS_MAX: usize = 64;
const QUEUE_BYTES_MAX: usize = 8 * 1024 * 1024;
const QUEUE_MESSAGES_MAX: usize = 8192;
const HELD_BYTES_MAX: usize = 32 * 1024 * 1024;
const RETAINED_MAX: usize = 4096;
const RETAINED_BYTES_MAX: usize = 8 * 1024 * 1024;
const SESSION_EXPIRY_MAX: Duration = Duration::from_secs(24 * 3600);
/// Unacknowledged messages per connection, whatever the client would take; as many are taken from it.
pub(super) const IN_FLIGHT_MAX: u16 = 64;
/// What a queued message costs beside its own bytes.
const ENTRY_BYTES: usize = 64;
/// Smaller payloads are copied, so that they do not keep a whole receive buffer alive.
const COPIED_BYTES_MAX: usize = 16 * 1024;

/// What a broker did since it started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Messages taken from clients.
    pub received: u64,
    /// Messages handed to clients.
    pub delivered: u64,
    /// Messages dropped because a session's queue was full.
    pub dropped: u64,
    /// Messages refused by the access rules.
    pub refused: u64,
}

struct Message {
    publish: Publish,
    expires: Option<Instant>,
}

impl Message {
    fn live(&self, now: Instant) -> bool {
        self.expires.is_none_or(|expires| expires > now)
    }

    fn bytes(&self) -> usize {
        self.publish.size() + ENTRY_BYTES
    }
}

#[derive(Clone)]
struct Delivery {
    message: Arc<Message>,
    qos: QoS,
    retain: bool,
    repeated: bool,
}

struct Session {
    /// The name in the client's certificate.
    name: Option<String>,
    filters: Vec<Filter>,
    queue: VecDeque<Delivery>,
    queue_bytes: usize,
    flying: VecDeque<(u16, Delivery)>,
    packet_id_last: u16,
    /// Number of the connection that has the session now.
    connection: Option<u64>,
    in_flight_max: u16,
    packet_bytes_max: usize,
    wake: Arc<Notify>,
    will: Option<LastWill>,
    expiry: Duration,
    expires: Option<Instant>,
}

/// What a client said about itself when it connected.
pub(super) struct Arrival {
    pub(super) key: String,
    pub(super) name: Option<String>,
    pub(super) clean_start: bool,
    pub(super) expiry: Duration,
    pub(super) in_flight_max: u16,
    pub(super) packet_bytes_max: usize,
    pub(super) will: Option<LastWill>,
}

/// A session given to a connection.
pub(super) struct Attached {
    pub(super) connection: u64,
    pub(super) session_present: bool,
    pub(super) wake: Arc<Notify>,
}

/// Another connection has the session now.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TakenOver;

/// Sums over all sessions.
#[derive(Default)]
struct Totals {
    /// In queues, and on their way without an acknowledgement.
    held_bytes: usize,
    counters: Counters,
}

impl Totals {
    fn queue(&mut self, session: &mut Session, delivery: Delivery) {
        if session.connection.is_none() && delivery.qos == QoS::AtMostOnce {
            return;
        }
        let bytes = delivery.message.bytes();
        let full = session.queue.len() >= QUEUE_MESSAGES_MAX
            || session.queue_bytes + bytes > QUEUE_BYTES_MAX
            || self.held_bytes + bytes > HELD_BYTES_MAX;
        if full || delivery.message.publish.size() > session.packet_bytes_max {
            self.counters.dropped += 1;
            return;
        }
        session.queue_bytes += bytes;
        self.held_bytes += bytes;
        session.queue.push_back(delivery);
        session.wake.notify_one();
    }
}

pub(super) struct Hub {
    /// Whether the access rules apply: they need certificates.
    ruled: bool,
    sessions: BTreeMap<String, Session>,
    retained: BTreeMap<Bytes, Arc<Message>>,
    retained_bytes: usize,
    connection_last: u64,
    totals: Totals,
}

impl Hub {
    pub(super) fn new(ruled: bool) -> Self {
        Self {
            ruled,
            sessions: BTreeMap::new(),
            retained: BTreeMap::new(),
            retained_bytes: 0,
            connection_last: 0,
            totals: Totals::default(),
        }
    }

    pub(super) fn counters(&self) -> Counters {
        self.totals.counters
    }

    /// A client id for one who came without.
    pub(super) fn fresh_id(&mut self) -> String {
        self.connection_last += 1;
        format!("anonymous-{}", self.connection_last)
    }

    /// Gives the session to a new connection; none when there is no room for another session.
    pub(super) fn attach(&mut self, arrival: Arrival, now: Instant) -> Option<Attached> {
        self.expire(now);
        if let Some(session) = self.sessions.get_mut(&arrival.key) {
            session.wake.notify_one();
            let will = session.connection.take().and(session.will.take());
            self.publish_will(will, now);
        }
        if arrival.clean_start {
            self.remove(&arrival.key);
        }
        let session_present = self.sessions.contains_key(&arrival.key);
        if !session_present && !self.make_room() {
            return None;
        }
        self.connection_last += 1;
        let wake = Arc::new(Notify::new());
        let session = self.sessions.entry(arrival.key).or_insert_with(Session::empty);
        session.wake = wake.clone();
        session.name = arrival.name;
        session.connection = Some(self.connection_last);
        session.expires = None;
        session.expiry = arrival.expiry.min(SESSION_EXPIRY_MAX);
        session.in_flight_max = arrival.in_flight_max.clamp(1, IN_FLIGHT_MAX);
        session.packet_bytes_max = arrival.packet_bytes_max;
        session.will = arrival.will;
        while let Some((_, delivery)) = session.flying.pop_back() {
            session.queue_bytes += delivery.message.bytes();
            session.queue.push_front(Delivery { repeated: true, ..delivery });
        }
        Some(Attached { connection: self.connection_last, session_present, wake })
    }

    /// The connection is gone. Without a goodbye the will is published.
    pub(super) fn detach(&mut self, key: &str, connection: u64, goodbye: bool, now: Instant) {
        let Some(session) = self.held_by(key, connection) else { return };
        session.connection = None;
        session.expires = Some(now + session.expiry);
        let will = session.will.take().filter(|_| !goodbye);
        self.publish_will(will, now);
        self.expire(now);
    }

    /// Routes a message; the reason code goes back to its sender.
    pub(super) fn publish(&mut self, key: &str, publish: Publish, now: Instant) -> PubAckReason {
        let name = self.sessions.get(key).and_then(|session| session.name.as_deref());
        let Ok(topic) = std::str::from_utf8(&publish.topic) else { return PubAckReason::TopicNameInvalid };
        if self.ruled && !name.is_some_and(|name| access::may_publish(name, topic)) {
            self.totals.counters.refused += 1;
            return PubAckReason::NotAuthorized;
        }
        self.totals.counters.received += 1;
        self.route(key, publish, now)
    }

    pub(super) fn subscribe(&mut self, key: &str, filter: Filter, now: Instant) -> SubscribeReasonCode {
        if !valid_filter(&filter.path) || filter.path.contains('\0') {
            return SubscribeReasonCode::TopicFilterInvalid;
        }
        if filter.path.starts_with("$share/") {
            return SubscribeReasonCode::SharedSubscriptionsNotSupported;
        }
        let qos = at_most_once_or_more(filter.qos);
        let filter = Filter { qos, ..filter };
        let Some(session) = self.sessions.get_mut(key) else { return SubscribeReasonCode::Unspecified };
        let known = session.filters.iter().position(|other| other.path == filter.path);
        let wants_retained = match filter.retain_forward_rule {
            RetainForwardRule::OnEverySubscribe => true,
            RetainForwardRule::OnNewSubscribe => known.is_none(),
            RetainForwardRule::Never => false,
        };
        match known {
            Some(position) => session.filters[position] = filter.clone(),
            None if session.filters.len() >= FILTERS_MAX => return SubscribeReasonCode::QuotaExceeded,
            None => session.filters.push(filter.clone()),
        }
        if wants_retained {
            self.queue_retained(key, &filter, now);
        }
        SubscribeReasonCode::Success(qos)
    }

    /// Whether there was such a filter.
    pub(super) fn unsubscribe(&mut self, key: &str, path: &str) -> bool {
        let Some(session) = self.sessions.get_mut(key) else { return false };
        let before = session.filters.len();
        session.filters.retain(|filter| filter.path != path);
        session.filters.len() < before
    }

    /// Moves messages from the session's queue into `out`, up to about `bytes_max` bytes.
    pub(super) fn take(
        &mut self,
        key: &str,
        connection: u64,
        out: &mut BytesMut,
        bytes_max: usize,
        now: Instant,
    ) -> Result<(), TakenOver> {
        let session = self.sessions.get_mut(key).filter(|session| session.connection == Some(connection));
        let session = session.ok_or(TakenOver)?;
        while out.len() < bytes_max {
            let Some(next) = session.queue.front() else { break };
            if next.qos == QoS::AtLeastOnce && session.flying.len() >= usize::from(session.in_flight_max) {
                break;
            }
            let Some(delivery) = session.queue.pop_front() else { break };
            let bytes = delivery.message.bytes();
            session.queue_bytes -= bytes;
            let flying = session.flying.len();
            if delivery.message.live(now) && session.write(delivery, out, now) {
                self.totals.counters.delivered += 1;
            }
            if session.flying.len() == flying {
                self.totals.held_bytes -= bytes; // it needs no acknowledgement, or is dropped
            }
        }
        Ok(())
    }

    pub(super) fn acknowledge(&mut self, key: &str, connection: u64, packet_id: u16) {
        let session = self.sessions.get_mut(key).filter(|session| session.connection == Some(connection));
        let Some(session) = session else { return };
        let position = session.flying.iter().position(|(flying, _)| *flying == packet_id);
        if let Some((_, delivery)) = position.and_then(|position| session.flying.remove(position)) {
            self.totals.held_bytes -= delivery.message.bytes();
        }
    }

    fn held_by(&mut self, key: &str, connection: u64) -> Option<&mut Session> {
        self.sessions.get_mut(key).filter(|session| session.connection == Some(connection))
    }

    fn route(&mut self, from: &str, mut publish: Publish, now: Instant) -> PubAckReason {
        if publish.payload.len() <= COPIED_BYTES_MAX {
            publish.payload = Bytes::copy_from_slice(&publish.payload);
        }
        publish.topic = Bytes::copy_from_slice(&publish.topic);
        let lifetime = publish.properties.as_ref().and_then(|properties| properties.message_expiry_interval);
        let expires = lifetime.map(|seconds| now + Duration::from_secs(seconds.into()));
        let retain = publish.retain;
        let message = Arc::new(Message { publish, expires });
        if retain && !self.retain(&message) {
            return PubAckReason::QuotaExceeded;
        }
        let mut wanted = false;
        for (key, session) in &mut self.sessions {
            let Some((qos, as_published)) = session.wants(&message, key == from, self.ruled) else {
                continue;
            };
            wanted = true;
            let qos = qos.min(at_most_once_or_more(message.publish.qos) as u8);
            let delivery = Delivery {
                message: message.clone(),
                qos: if qos == 0 { QoS::AtMostOnce } else { QoS::AtLeastOnce },
                retain: retain && as_published,
                repeated: false,
            };
            self.totals.queue(session, delivery);
        }
        if wanted { PubAckReason::Success } else { PubAckReason::NoMatchingSubscribers }
    }

    /// Whether the message could be kept, or its empty payload removed the one before.
    fn retain(&mut self, message: &Arc<Message>) -> bool {
        let topic = &message.publish.topic;
        let before = self.retained.get(topic).map_or(0, |before| before.bytes());
        if message.publish.payload.is_empty() {
            self.retained.remove(topic);
            self.retained_bytes -= before;
            return true;
        }
        let after = self.retained_bytes - before + message.bytes();
        if after > RETAINED_BYTES_MAX || (before == 0 && self.retained.len() >= RETAINED_MAX) {
            return false;
        }
        self.retained_bytes = after;
        self.retained.insert(topic.clone(), message.clone());
        true
    }

    fn queue_retained(&mut self, key: &str, filter: &Filter, now: Instant) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let name = session.name.clone();
        let wanted: Vec<Arc<Message>> = self
            .retained
            .values()
            .filter(|message| message.live(now) && readable(message, filter, name.as_deref(), self.ruled))
            .cloned()
            .collect();
        for message in wanted {
            let qos = if filter.qos == QoS::AtMostOnce { QoS::AtMostOnce } else { message.publish.qos };
            let delivery =
                Delivery { message, qos: at_most_once_or_more(qos), retain: true, repeated: false };
            self.totals.queue(session, delivery);
        }
    }

    fn publish_will(&mut self, will: Option<LastWill>, now: Instant) {
        let Some(will) = will else { return };
        let properties = will.properties.map(|properties| PublishProperties {
            message_expiry_interval: properties.message_expiry_interval,
            response_topic: properties.response_topic,
            correlation_data: properties.correlation_data,
            ..PublishProperties::default()
        });
        let publish = Publish {
            qos: at_most_once_or_more(will.qos),
            retain: will.retain,
            topic: will.topic,
            payload: will.message,
            properties,
            ..Publish::default()
        };
        // nobody is left to hear how it went
        self.route("", publish, now);
    }

    fn expire(&mut self, now: Instant) {
        let dead = |session: &Session| session.expires.is_some_and(|expires| expires <= now);
        let keys: Vec<String> =
            self.sessions.iter().filter(|(_, session)| dead(session)).map(|(key, _)| key.clone()).collect();
        for key in keys {
            self.remove(&key);
        }
    }

    fn remove(&mut self, key: &str) {
        if let Some(session) = self.sessions.remove(key) {
            let flying = session.flying.iter().map(|(_, delivery)| delivery.message.bytes());
            self.totals.held_bytes -= session.queue_bytes + flying.sum::<usize>();
        }
    }

    /// Forgets the absent session that would expire first, if it has to.
    fn make_room(&mut self) -> bool {
        if self.sessions.len() < SESSIONS_MAX {
            return true;
        }
        let absent = self.sessions.iter().filter(|(_, session)| session.connection.is_none());
        let Some(first) = absent.min_by_key(|(_, session)| session.expires).map(|(key, _)| key.clone())
        else {
            return false;
        };
        self.remove(&first);
        true
    }
}

impl Session {
    fn empty() -> Self {
        Self {
            name: None,
            filters: Vec::new(),
            queue: VecDeque::new(),
            queue_bytes: 0,
            flying: VecDeque::new(),
            packet_id_last: 0,
            connection: None,
            in_flight_max: IN_FLIGHT_MAX,
            packet_bytes_max: usize::MAX,
            wake: Arc::new(Notify::new()),
            will: None,
            expiry: Duration::ZERO,
            expires: None,
        }
    }

    /// The highest QoS of the filters that match, and whether one wants the retain flag as sent.
    fn wants(&self, message: &Message, same: bool, ruled: bool) -> Option<(u8, bool)> {
        let matching = self.filters.iter().filter(|filter| {
            !(same && filter.nolocal) && readable(message, filter, self.name.as_deref(), ruled)
        });
        matching.fold(None, |best: Option<(u8, bool)>, filter| {
            let (qos, as_published) = best.unwrap_or((0, false));
            Some((qos.max(filter.qos as u8), as_published || filter.preserve_retain))
        })
    }

    /// Whether the message was within the client's limits and is in `out` now.
    fn write(&mut self, delivery: Delivery, out: &mut BytesMut, now: Instant) -> bool {
        let mut publish = delivery.message.publish.clone();
        publish.qos = delivery.qos;
        publish.retain = delivery.retain;
        publish.dup = delivery.repeated;
        publish.pkid = 0;
        if let (Some(properties), Some(expires)) = (&mut publish.properties, delivery.message.expires) {
            let left = expires.saturating_duration_since(now).as_secs().max(1);
            properties.message_expiry_interval = Some(u32::try_from(left).unwrap_or(u32::MAX));
        }
        if delivery.qos == QoS::AtLeastOnce {
            publish.pkid = self.packet_id_next();
        }
        let packet_id = publish.pkid;
        if publish.size() > self.packet_bytes_max || publish.write(out).is_err() {
            return false;
        }
        if packet_id != 0 {
            self.flying.push_back((packet_id, delivery));
        }
        true
    }

    fn packet_id_next(&mut self) -> u16 {
        // at most 64 are in use, so a free one is near
        loop {
            self.packet_id_last = self.packet_id_last.checked_add(1).unwrap_or(1);
            if self.flying.iter().all(|(packet_id, _)| *packet_id != self.packet_id_last) {
                return self.packet_id_last;
            }
        }
    }
}

fn at_most_once_or_more(qos: QoS) -> QoS {
    match qos {
        QoS::AtMostOnce => QoS::AtMostOnce,
        QoS::AtLeastOnce | QoS::ExactlyOnce => QoS::AtLeastOnce,
    }
}

fn readable(message: &Message, filter: &Filter, name: Option<&str>, ruled: bool) -> bool {
    let Ok(topic) = std::str::from_utf8(&message.publish.topic) else { return false };
    matches(topic, &filter.path) && (!ruled || name.is_some_and(|name| access::may_read(name, topic)))
}

/// MQTT 5, 4.7. rumqttc's own `matches` panics on a topic that starts beyond ASCII.
fn matches(topic: &str, filter: &str) -> bool {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let mut levels = topic.split('/');
    for wanted in filter.split('/') {
        match (wanted, levels.next()) {
            ("#", _) => return true,
            ("+", Some(_)) => {}
            (wanted, Some(level)) if wanted == level => {}
            _ => return false,
        }
    }
    levels.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrival(key: &str, clean_start: bool) -> Arrival {
        Arrival {
            key: key.to_owned(),
            name: None,
            clean_start,
            expiry: Duration::from_secs(60),
            in_flight_max: 10,
            packet_bytes_max: 128 * 1024,
            will: None,
        }
    }

    fn publish(topic: &str, payload: Vec<u8>, retain: bool) -> Publish {
        Publish { retain, pkid: 1, ..Publish::new(topic, QoS::AtLeastOnce, payload, None) }
    }

    #[test]
    fn filters_match_as_the_standard_says() {
        for (topic, filter) in [("a/b", "a/b"), ("a/b", "a/+"), ("a", "a/#"), ("a/b/c", "#"), ("é/x", "+/x")]
        {
            assert!(matches(topic, filter), "{topic} {filter}");
        }
        for (topic, filter) in [("a/b", "a"), ("a", "a/+"), ("$SYS/x", "#"), ("$SYS/x", "+/x"), ("b", "a/#")]
        {
            assert!(!matches(topic, filter), "{topic} {filter}");
        }
    }

    #[test]
    fn queues_and_retained_messages_stay_within_their_bounds() {
        let (mut hub, now) = (Hub::new(false), Instant::now());
        hub.attach(arrival("sleeper", true), now).expect("there is room");
        hub.subscribe("sleeper", Filter::new("#", QoS::AtLeastOnce), now);
        for number in 0..200 {
            hub.publish("x", publish(&format!("t/{number}"), vec![0; 120_000], number % 2 == 0), now);
        }
        assert!(hub.totals.held_bytes <= QUEUE_BYTES_MAX && hub.retained_bytes <= RETAINED_BYTES_MAX);
        assert!(hub.totals.counters.dropped > 0);
        hub.remove("sleeper");
        assert_eq!(hub.totals.held_bytes, 0);
    }

    #[test]
    fn clients_that_acknowledge_nothing_hold_no_more_than_the_bound() {
        let (mut hub, now) = (Hub::new(false), Instant::now());
        let silent: Vec<(String, u64)> = (0..12)
            .map(|number| {
                let key = format!("silent{number}");
                let given = Arrival { in_flight_max: 64, ..arrival(&key, false) };
                let connection = hub.attach(given, now).expect("there is room").connection;
                hub.subscribe(&key, Filter::new("#", QoS::AtLeastOnce), now);
                (key, connection)
            })
            .collect();
        for number in 0..100 {
            hub.publish("x", publish(&format!("t/{number}"), vec![0; 120_000], false), now);
            for (key, connection) in &silent {
                let mut out = BytesMut::new();
                hub.take(key, *connection, &mut out, usize::MAX, now).expect("the session is held");
            }
        }
        let held = |hub: &Hub| {
            let flying = hub.sessions.values().flat_map(|session| &session.flying);
            let queued = hub.sessions.values().map(|session| session.queue_bytes).sum::<usize>();
            flying.map(|(_, delivery)| delivery.message.bytes()).sum::<usize>() + queued
        };
        assert!(hub.totals.held_bytes <= HELD_BYTES_MAX && hub.totals.counters.dropped > 0);
        assert_eq!(held(&hub), hub.totals.held_bytes);
        // an acknowledgement makes room, a new connection takes up what flew, an end gives everything back
        let before = hub.totals.held_bytes;
        let (key, connection) = &silent[0];
        hub.acknowledge(key, *connection, 1);
        assert!(before - hub.totals.held_bytes > 120_000);
        hub.attach(arrival(key, false), now).expect("there is room");
        assert_eq!(held(&hub), hub.totals.held_bytes);
        for (key, _) in &silent {
            hub.remove(key);
        }
        assert_eq!(hub.totals.held_bytes, 0);
    }

    #[test]
    fn sessions_stay_within_their_bound_and_absent_ones_make_room() {
        let (mut hub, now) = (Hub::new(false), Instant::now());
        let first = hub.attach(arrival("first", false), now).expect("there is room");
        for number in 1..SESSIONS_MAX {
            hub.attach(arrival(&format!("n{number}"), false), now).expect("there is room");
        }
        assert!(hub.attach(arrival("late", false), now).is_none());
        hub.detach("first", first.connection, true, now);
        assert!(hub.attach(arrival("late", false), now).is_some());
        assert!(!hub.sessions.contains_key("first"));
    }

    #[test]
    fn a_kept_session_repeats_what_was_not_acknowledged() {
        let (mut hub, now) = (Hub::new(false), Instant::now());
        let one = hub.attach(arrival("cam", false), now).expect("there is room");
        hub.subscribe("cam", Filter::new("t", QoS::AtLeastOnce), now);
        hub.publish("x", publish("t", b"one".to_vec(), false), now);
        let mut out = BytesMut::new();
        hub.take("cam", one.connection, &mut out, 1000, now).expect("the session is held");
        let two = hub.attach(arrival("cam", false), now).expect("there is room");
        assert!(two.session_present);
        assert_eq!(hub.take("cam", one.connection, &mut out, 1000, now), Err(TakenOver));
        let mut again = BytesMut::new();
        hub.take("cam", two.connection, &mut again, 1000, now).expect("the session is held");
        assert!(again.ends_with(b"one") && again[0] & 0b1000 != 0);
    }

    #[test]
    fn expired_messages_are_not_delivered() {
        let (mut hub, now) = (Hub::new(false), Instant::now());
        let cam = hub.attach(arrival("cam", false), now).expect("there is room");
        hub.subscribe("cam", Filter::new("t", QoS::AtLeastOnce), now);
        let mut late = publish("t", b"late".to_vec(), false);
        late.properties =
            Some(PublishProperties { message_expiry_interval: Some(5), ..PublishProperties::default() });
        hub.publish("x", late, now);
        let mut out = BytesMut::new();
        hub.take("cam", cam.connection, &mut out, 1000, now + Duration::from_secs(6))
            .expect("the session is held");
        assert!(out.is_empty());
    }
}
