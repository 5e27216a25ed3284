//! Between the core's inboxes and the broker's topics. See `docs/protocol.md`.
//!
//! Refused: topics that are no inbox of this node. Messages that find the link full wait here, at most
//! [`WAITING_MAX`]; beyond it they are dropped, counted as sent, and repeated by the core's own timers.

use crate::config::{Config, ConfigError, Effective, KeyError, read_password};
use crate::mqtt::embedded::{Embedded, EmbeddedError, EmbeddedOptions, EmbeddedTls};
use crate::mqtt::{
    Link, LinkEvent, LinkOptions, LinkOptionsError, Outgoing, Plan, Qos, Refused, TlsOptions, Transport, Will,
};
use bytes::Bytes;
use larder_core::id::NodeName;
use larder_core::message::{Channel, Input, Presence};
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
    waiting: VecDeque<Outgoing>,
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
        Ok(Some(Wire { link, closing: None, wanted: true, options, topics, epoch, waiting: VecDeque::new() }))
    }

    pub(super) fn send(
        &mut self,
        token: u64,
        to: &NodeName,
        channel: Channel,
        payload: Bytes,
    ) -> Option<Input> {
        let topic = self.topics.inbox(to, channel);
        self.offer(Outgoing::new(token, topic, payload, Qos::AtLeastOnce))
    }

    pub(super) fn presence(&mut self, presence: Presence) -> Option<Input> {
        let farewell = self.state_message(presence);
        match presence {
            Presence::Online => self.offer(farewell),
            Presence::Sleeping | Presence::Offline => None, // said by what ends the link, as the last message
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

    /// Publishes what the node costs, retained.
    pub(super) fn telemetry(&mut self, payload: Bytes) -> Option<Input> {
        let topic = format!("{}/tele", self.topics.node(&self.topics.me));
        self.offer(Outgoing { retain: true, ..Outgoing::new(0, topic, payload, Qos::AtLeastOnce) })
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

    fn offer(&mut self, message: Outgoing) -> Option<Input> {
        let token = message.token;
        if !self.waiting.is_empty() {
            return self.wait(message);
        }
        let link = self.link.as_mut()?;
        match link.send(message) {
            Ok(()) => None,
            Err(Refused::Full(message)) => self.wait(*message),
            Err(Refused::Down(_)) => None, // the core forgets it with the link
            Err(refused @ (Refused::TooLarge { .. } | Refused::Topic { .. })) => {
                tracing::warn!("{refused}");
                Some(Input::Sent { token })
            }
        }
    }

    fn wait(&mut self, message: Outgoing) -> Option<Input> {
        let token = message.token;
        if self.waiting.len() >= WAITING_MAX {
            tracing::warn!("more than {WAITING_MAX} messages wait for the broker; one was dropped");
            return Some(Input::Sent { token });
        }
        self.waiting.push_back(message);
        None
    }

    fn send_waiting(&mut self) {
        let Some(link) = &mut self.link else { return };
        while link.room() > 0
            && let Some(message) = self.waiting.pop_front()
        {
            if let Err(Refused::Full(message)) = link.send(message) {
                self.waiting.push_front(*message);
                break;
            }
        }
    }

    /// The next thing the core must hear of. Cancel safe.
    pub(super) async fn next(&mut self) -> Input {
        loop {
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
            LinkEvent::Sent { token } => {
                self.send_waiting();
                Input::Sent { token }
            }
            LinkEvent::Rejected { token, reason } => {
                tracing::warn!("the broker will not carry a message: {reason}");
                self.send_waiting();
                Input::Sent { token }
            }
            LinkEvent::Message { topic, payload, .. } => {
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
