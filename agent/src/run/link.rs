//! Between the core's inboxes and the broker's topics. See `docs/protocol.md`.
//!
//! Refused: topics that are no inbox of this node. Messages that find the link full wait here, at most
//! [`WAITING_MAX`]; those beyond it, and those that the broker does not carry, are dropped, counted as sent, and
//! repeated by the core's own timers.

use crate::config::{Config, ConfigError, Effective, KeyError, read_password};
use crate::mqtt::embedded::{Embedded, EmbeddedError, EmbeddedOptions, EmbeddedTls};
use crate::mqtt::{
    Link, LinkEvent, LinkOptions, LinkOptionsError, Outgoing, Plan, Qos, Refused, TlsOptions, Transport, Will,
};
use bytes::Bytes;
use larder_core::id::NodeName;
use larder_core::message::{Channel, Input, Presence};
use larder_core::request::AirNumbers;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::task::JoinHandle;

const WAITING_MAX: usize = 1024;
/// Small messages may be on their way beside the blocks the core counts.
const SMALL_MESSAGES: u16 = 64;
const FAREWELL: Duration = Duration::from_secs(5);

/// Why there is no link.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The options do not make a link.
    #[error(transparent)]
    Options(#[from] LinkOptionsError),
    /// The embedded broker does not start.
    #[error(transparent)]
    Embedded(#[from] EmbeddedError),
    /// The password can not be read.
    #[error(transparent)]
    Password(#[from] KeyError),
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// The node's end of the link.
pub(super) struct Wire {
    /// Absent while the radio sleeps.
    link: Option<Link>,
    /// The last link is saying goodbye; the next one waits for it, or the broker would cut its last words off.
    closing: Option<JoinHandle<()>>,
    /// A link is wanted when that is done.
    wanted: bool,
    options: LinkOptions,
    topics: Topics,
    epoch: u64,
    waiting: Waiting,
}

/// Messages for the link, in their order.
#[derive(Default)]
struct Waiting {
    messages: VecDeque<Outgoing>,
    /// Tokens of those that were dropped, for the core, which counts what is on its way.
    dropped: VecDeque<u64>,
}

impl Waiting {
    fn add(&mut self, link: &mut impl Transport, message: Outgoing) {
        if self.messages.len() >= WAITING_MAX {
            tracing::warn!("more than {WAITING_MAX} messages wait for the broker; one was dropped");
            return self.dropped.push_back(message.token);
        }
        self.messages.push_back(message);
        self.send(link);
    }

    /// Hands over as many as the link takes.
    fn send(&mut self, link: &mut impl Transport) {
        while let Some(message) = self.messages.pop_front() {
            let token = message.token;
            match link.send(message) {
                Ok(()) => {}
                Err(Refused::Full(message)) => return self.messages.push_front(*message),
                Err(Refused::Down(_)) => {} // the core forgets it with the link
                Err(refused @ (Refused::TooLarge { .. } | Refused::Topic { .. })) => {
                    tracing::warn!("{refused}");
                    self.dropped.push_back(token);
                }
            }
        }
    }

    fn clear(&mut self) {
        *self = Waiting::default();
    }
}

/// How topics are made and read.
struct Topics {
    fleet: String,
    me: NodeName,
}

impl Wire {
    /// Starts the link; to the broker in this process where there is one.
    pub(super) fn start(
        config: &Config,
        effective: &Effective,
        epoch: u64,
        broker: Option<SocketAddr>,
    ) -> Result<Option<Self>, LinkError> {
        let Some(mqtt) = &config.mqtt else { return Ok(None) };
        let topics = Topics { fleet: config.fleet.to_string(), me: config.name.clone() };
        let own = mqtt.tls.as_ref().and_then(|tls| tls.own.clone());
        let mut options = LinkOptions::new(
            mqtt.host.clone(),
            broker.map_or(mqtt.port, |broker| broker.port()),
            format!("larder-{}-{}", config.fleet, config.name),
        );
        options.tls = mqtt.tls.as_ref().map(|tls| TlsOptions {
            ca: tls.ca.clone(),
            certificate: own.as_ref().map(|(certificate, _)| certificate.clone()),
            key: own.as_ref().map(|(_, key)| key.clone()),
        });
        options.login = login(config)?;
        // What is under way is begun again after a hello; what a broker kept for us would be stale.
        options.clean_start = true;
        options.session_expiry = Duration::ZERO;
        options.keep_alive = Duration::from_secs(effective.keep_alive_s.value);
        options.in_flight_max = effective.in_flight_max.value.saturating_add(SMALL_MESSAGES);
        options.subscriptions = topics.subscriptions(config);
        options.backoff.seed = epoch;
        options.will = Some(Will {
            topic: topics.state(&topics.me),
            payload: Bytes::from(state_text("lost", epoch)),
            retain: true,
        });
        let link = Some(Link::start(Plan::new(options.clone())?));
        Ok(Some(Wire {
            link,
            closing: None,
            wanted: true,
            options,
            topics,
            epoch,
            waiting: Waiting::default(),
        }))
    }

    pub(super) fn send(&mut self, token: u64, to: &NodeName, channel: Channel, payload: Bytes) {
        let topic = self.topics.inbox(to, channel);
        self.offer(Outgoing::new(token, topic, payload, Qos::AtLeastOnce));
    }

    pub(super) fn presence(&mut self, presence: Presence) {
        match presence {
            Presence::Online => self.offer(self.state_message(presence)),
            Presence::Sleeping | Presence::Offline => {} // said by what ends the link, as the last message
        }
    }

    fn state_message(&self, presence: Presence) -> Outgoing {
        let state = match presence {
            Presence::Online => "online",
            Presence::Sleeping => "sleeping",
            Presence::Offline => "offline",
        };
        let topic = self.topics.state(&self.topics.me);
        Outgoing { retain: true, ..Outgoing::new(0, topic, state_text(state, self.epoch), Qos::AtLeastOnce) }
    }

    /// What all links of this node have sent and received.
    pub(super) fn air(&self) -> AirNumbers {
        self.options.air.numbers()
    }

    /// Publishes what the node costs, retained.
    pub(super) fn telemetry(&mut self, payload: Bytes) {
        let topic = format!("{}/tele", self.topics.node(&self.topics.me));
        self.offer(Outgoing { retain: true, ..Outgoing::new(0, topic, payload, Qos::AtLeastOnce) });
    }

    /// Brings the link up, or says that the node sleeps and takes it down.
    pub(super) fn radio(&mut self, up: bool) -> Option<Input> {
        self.wanted = up;
        if up {
            self.start_link();
            return None;
        }
        let sleeping = self.state_message(Presence::Sleeping);
        self.end_link(Some(sleeping), "the radio sleeps until the profile's next sync window")
    }

    /// Has the link ping so often. The broker learns it only with a new connection.
    pub(super) fn keep_alive(&mut self, keep_alive: Duration) -> Option<Input> {
        if keep_alive == self.options.keep_alive {
            return None;
        }
        self.options.keep_alive = keep_alive;
        self.end_link(None, "connecting again with the profile's keep-alive")
    }

    /// Takes over whose states are to be heard; the broker learns it with a new connection.
    pub(super) fn reload(&mut self, config: &Config) -> Option<Input> {
        let subscriptions = self.topics.subscriptions(config);
        if subscriptions == self.options.subscriptions {
            return None;
        }
        self.options.subscriptions = subscriptions;
        self.end_link(None, "connecting again to hear of another master")
    }

    fn start_link(&mut self) {
        if self.link.is_some() || self.closing.is_some() {
            return;
        }
        match Plan::new(self.options.clone()) {
            Ok(plan) => self.link = Some(Link::start(plan)),
            Err(error) => tracing::error!("the link does not come back: {error}"),
        }
    }

    /// Ends the link beside the loop: a goodbye may take a while.
    fn end_link(&mut self, last: Option<Outgoing>, why: &str) -> Option<Input> {
        let link = self.link.take()?;
        self.waiting.clear();
        self.closing = Some(tokio::spawn(link.close(last, FAREWELL)));
        Some(Input::LinkDown { reason: why.to_owned() })
    }

    fn offer(&mut self, message: Outgoing) {
        if let Some(link) = &mut self.link {
            self.waiting.add(link, message);
        }
    }

    /// The broker has taken a message, or never will.
    fn went(&mut self, token: u64) -> Input {
        if let Some(link) = &mut self.link {
            self.waiting.send(link);
        }
        Input::Sent { token }
    }

    /// The next thing the core must hear of. Cancel safe.
    pub(super) async fn next(&mut self) -> Input {
        loop {
            if let Some(token) = self.waiting.dropped.pop_front() {
                return Input::Sent { token };
            }
            if let Some(closing) = &mut self.closing {
                // Whether it went well or not: it is gone.
                let _ = closing.await;
                self.closing = None;
                if self.wanted {
                    self.start_link();
                }
            }
            let Some(link) = &mut self.link else { return std::future::pending().await };
            let event = link.next().await;
            if let Some(input) = self.heard(event) {
                return input;
            }
        }
    }

    /// What is there already.
    pub(super) fn ready(&mut self) -> Option<Input> {
        if let Some(token) = self.waiting.dropped.pop_front() {
            return Some(Input::Sent { token });
        }
        while let Some(event) = self.link.as_mut().and_then(Link::ready) {
            if let Some(input) = self.heard(event) {
                return Some(input);
            }
        }
        None
    }

    fn heard(&mut self, event: LinkEvent) -> Option<Input> {
        Some(match event {
            LinkEvent::Up { .. } => {
                tracing::info!("the link to the broker is up");
                Input::LinkUp
            }
            LinkEvent::Down { reason, retry_in } => {
                self.waiting.clear();
                tracing::warn!("the link is down: {reason}; trying again in {} s", retry_in.as_secs());
                Input::LinkDown { reason }
            }
            LinkEvent::Sent { token } => self.went(token),
            LinkEvent::Rejected { token, reason } => {
                tracing::warn!("the broker will not carry a message: {reason}");
                self.went(token)
            }
            LinkEvent::Message { topic, payload } => {
                let Some((from, channel)) = self.topics.read(&topic) else {
                    tracing::debug!("{topic} is no inbox of this node");
                    return None;
                };
                Input::Wire { from, channel, payload }
            }
        })
    }

    /// Says goodbye.
    pub(super) async fn close(self) {
        let last = self.state_message(Presence::Offline);
        if let Some(closing) = self.closing {
            let _ = closing.await;
        }
        if let Some(link) = self.link {
            link.close(Some(last), FAREWELL).await;
        }
    }
}

impl Topics {
    fn node(&self, node: &NodeName) -> String {
        format!("larder/1/{}/{node}", self.fleet)
    }

    fn state(&self, node: &NodeName) -> String {
        format!("{}/state", self.node(node))
    }

    fn inbox(&self, to: &NodeName, channel: Channel) -> String {
        let (node, me) = (self.node(to), &self.me);
        match channel {
            Channel::Sync => format!("{node}/sync/{me}/c"),
            Channel::Blocks => format!("{node}/sync/{me}/b"),
            Channel::Command | Channel::Answer | Channel::State => format!("{node}/{}/{me}", channel.level()),
        }
    }

    fn subscriptions(&self, config: &Config) -> Vec<String> {
        let me = self.node(&self.me);
        let mut topics = vec![format!("{me}/sync/+/+"), format!("{me}/cmd/+"), format!("{me}/resp/+")];
        let masters = config.peers.iter().filter(|peer| peer.role == larder_core::role::Role::Master);
        topics.extend(masters.map(|master| self.state(&master.name)));
        topics
    }

    fn read(&self, topic: &str) -> Option<(NodeName, Channel)> {
        let rest = topic.strip_prefix("larder/1/")?.strip_prefix(&self.fleet)?.strip_prefix('/')?;
        let levels: Vec<&str> = rest.split('/').collect();
        let mine = levels.first().is_some_and(|node| *node == self.me.as_str());
        let (from, channel) = match levels[..] {
            [_, "sync", from, "c"] if mine => (from, Channel::Sync),
            [_, "sync", from, "b"] if mine => (from, Channel::Blocks),
            [_, "cmd", from] if mine => (from, Channel::Command),
            [_, "resp", from] if mine => (from, Channel::Answer),
            [from, "state"] => (from, Channel::State),
            _ => return None,
        };
        Some((from.parse().ok()?, channel))
    }
}

fn state_text(state: &str, epoch: u64) -> String {
    format!("{{\"state\":\"{state}\",\"epoch\":{epoch}}}")
}

fn login(config: &Config) -> Result<Option<(String, String)>, LinkError> {
    let Some(login) = config.mqtt.as_ref().and_then(|mqtt| mqtt.login.as_ref()) else { return Ok(None) };
    let password = match &login.password_file {
        Some(file) => read_password(file)?,
        None => String::new(),
    };
    Ok(Some((login.user.clone(), password)))
}

/// The broker inside the process, where the configuration asks for one.
pub(super) async fn embedded(config: &Config) -> Result<Option<Embedded>, LinkError> {
    let Some(mqtt) = &config.mqtt else { return Ok(None) };
    let Some(listen) = mqtt.embedded else { return Ok(None) };
    let tls = mqtt.tls.as_ref().and_then(|tls| {
        let (certificate, key) = tls.own.clone()?;
        Some(EmbeddedTls { ca: tls.ca.clone(), certificate, key })
    });
    let options = EmbeddedOptions { listen, tls, login: login(config)? };
    let broker = Embedded::start(options).await?;
    let address: SocketAddr = broker.address();
    tracing::info!("the embedded broker listens on {address}");
    Ok(Some(broker))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A link that is up, has room for so many, and carries so many bytes at once.
    struct Twin {
        room: usize,
        bytes_max: usize,
        sent: Vec<u64>,
    }

    impl Transport for Twin {
        fn send(&mut self, message: Outgoing) -> Result<(), Refused> {
            let bytes = message.packet_bytes();
            if bytes > self.bytes_max {
                let (topic, bytes_max) = (message.topic, self.bytes_max);
                return Err(Refused::TooLarge { topic, bytes, bytes_max });
            }
            if self.room == 0 {
                return Err(Refused::Full(Box::new(message)));
            }
            self.room -= 1;
            self.sent.push(message.token);
            Ok(())
        }

        fn room(&self) -> usize {
            self.room
        }

        async fn next(&mut self) -> LinkEvent {
            std::future::pending().await
        }

        async fn close(self, _last: Option<Outgoing>, _timeout: Duration) {}
    }

    #[test]
    fn a_message_that_the_broker_does_not_carry_is_counted_as_sent_whether_it_waited_or_not() {
        let mut link = Twin { room: 1, bytes_max: 100, sent: Vec::new() };
        let mut waiting = Waiting::default();
        let message = |token, bytes| Outgoing::new(token, "a", vec![0; bytes], Qos::AtLeastOnce);
        for (token, bytes) in [(1, 200), (2, 10), (3, 10), (4, 200), (5, 10)] {
            waiting.add(&mut link, message(token, bytes));
        }
        assert_eq!((link.sent.as_slice(), waiting.messages.len()), (&[2][..], 3));
        link.room = 8;
        waiting.send(&mut link);
        assert_eq!((link.sent.as_slice(), waiting.messages.len()), (&[2, 3, 5][..], 0));
        assert_eq!(waiting.dropped, [1, 4]);
        link.room = 0;
        for token in 0..WAITING_MAX as u64 + 2 {
            waiting.add(&mut link, message(token, 10));
        }
        assert_eq!((waiting.messages.len(), waiting.dropped.len()), (WAITING_MAX, 4));
    }

    #[test]
    fn every_inbox_reads_back_and_foreign_topics_do_not() {
        let topics = |me: &str| Topics { fleet: "home".into(), me: me.parse().unwrap() };
        let (cam, hub) = (topics("cam"), topics("hub"));
        for channel in [Channel::Sync, Channel::Blocks, Channel::Command, Channel::Answer] {
            let topic = cam.inbox(&hub.me, channel);
            assert_eq!(hub.read(&topic), Some((cam.me.clone(), channel)), "{topic}");
            assert_eq!(cam.read(&topic), None, "{topic} is not cam's");
        }
        assert_eq!(cam.read("larder/1/home/hub/state"), Some((hub.me.clone(), Channel::State)));
        for foreign in
            ["larder/1/away/cam/cmd/hub", "larder/2/home/cam/cmd/hub", "larder/1/home/cam/cmd/a/b", ""]
        {
            assert_eq!(cam.read(foreign), None, "{foreign}");
        }
    }
}
