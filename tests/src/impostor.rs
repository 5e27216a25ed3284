//! A peer made by hand from the core's own types: it signs and says what no honest node would.
//!
//! Duty: one link to a broker, of one name and key. What it waits for and does not hear in time is a panic.

#![expect(clippy::wildcard_enum_match_arm, reason = "who waits for one message passes the others by")]

use crate::node::{Node, SOON};
use bytes::Bytes;
use larder::config::NodeKey;
use larder::config::init::stanza;
use larder::mqtt::{Link, LinkEvent, LinkOptions, Outgoing, Plan, Qos, Transport};
use larder_core::binding::{Binding, Content, Meta};
use larder_core::control::remote::Envelope;
use larder_core::id::{BlockId, NodeName};
use larder_core::message::Channel;
use larder_core::name::Name;
use larder_core::request::{Request, Response};
use larder_core::role::Role;
use larder_core::seal::{Between, seal};
use larder_core::sync::buffer::Buffers;
use larder_core::sync::wire::{Announce, Hello, Outcome, Packing, SyncMessage, Want};
use larder_core::version::Version;
use std::collections::VecDeque;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::time::timeout;

/// The fleet that test nodes are in.
pub const FLEET: &str = "home";

/// A node of a fleet that says whatever it is told to say.
pub struct Impostor {
    /// Whom it says it is.
    pub name: NodeName,
    role: Role,
    /// What it signs with.
    pub key: NodeKey,
    runtime: Runtime,
    link: Link,
    token: u64,
    /// What was heard while something was published.
    heard: VecDeque<LinkEvent>,
}

impl Impostor {
    /// One that hears what is said to it.
    pub fn new(name: &str, role: Role, port: u16) -> Self {
        Self::hearing(name, role, port, &format!("larder/1/{FLEET}/{name}/#"))
    }

    /// One that hears what is said to others too.
    pub fn hearing(name: &str, role: Role, port: u16, filter: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime can be made");
        let mut options = LinkOptions::new("127.0.0.1", port, format!("larder-{FLEET}-{name}"));
        options.subscriptions = vec![filter.to_owned()];
        let plan = Plan::new(options).expect("the options are fine");
        let entered = runtime.enter();
        let link = Link::start(plan);
        drop(entered);
        let key = NodeKey::generate().expect("the kernel has random bytes");
        let mut impostor = Self {
            name: name.parse().expect("a plain name"),
            role,
            key,
            runtime,
            link,
            token: 0,
            heard: VecDeque::new(),
        };
        impostor.until("Up", |event| matches!(event, LinkEvent::Up { .. }).then_some(()));
        impostor
    }

    /// One that has a node's key and name, hears what is said to it, and says what the node itself would not.
    pub fn double_of(node: &Node, role: Role, port: u16) -> Self {
        let inbox = format!("larder/1/{FLEET}/{}/sync/#", node.name());
        let mut double = Self::hearing(&format!("double-of-{}", node.name()), role, port, &inbox);
        double.name = node.name().parse().expect("a plain name");
        double.key = NodeKey::load(&node.path("node.key")).expect("it was made by init");
        double
    }

    /// How others trust it.
    pub fn stanza(&self) -> String {
        stanza(&self.name, self.role, &self.key.public())
    }

    /// What is wanted of what it hears.
    pub fn until<T>(&mut self, what: &str, wanted: impl FnMut(&LinkEvent) -> Option<T>) -> T {
        self.within(SOON, wanted).unwrap_or_else(|| panic!("no {what} within {SOON:?}"))
    }

    /// What is wanted of what it hears, if it comes in time.
    pub fn within<T>(
        &mut self,
        patience: Duration,
        mut wanted: impl FnMut(&LinkEvent) -> Option<T>,
    ) -> Option<T> {
        let (link, heard) = (&mut self.link, &mut self.heard);
        let search = async {
            loop {
                let event = match heard.pop_front() {
                    Some(event) => event,
                    None => link.next().await,
                };
                if let Some(found) = wanted(&event) {
                    return found;
                }
            }
        };
        self.runtime.block_on(async { timeout(patience, search).await }).ok()
    }

    /// Publishes, and waits until the broker has it.
    pub fn publish(&mut self, topic: &str, payload: impl Into<Bytes>) {
        self.token += 1;
        let token = self.token;
        let message = Outgoing::new(token, topic, payload, Qos::AtLeastOnce);
        let entered = self.runtime.enter();
        self.link.send(message).expect("the link takes it");
        drop(entered);
        // an answer may come before the broker's own
        let mut heard = std::mem::take(&mut self.heard);
        self.until("acknowledgement of the broker", |event| {
            let is_sent = *event == LinkEvent::Sent { token };
            if !is_sent {
                heard.push_back(event.clone());
            }
            is_sent.then_some(())
        });
        self.heard = heard;
    }

    /// Where a message of its own goes: `c`, `b`, `cmd` or `resp`.
    pub fn topic(&self, to: &str, kind: &str) -> String {
        let from = &self.name;
        match kind {
            "c" | "b" => format!("larder/1/{FLEET}/{to}/sync/{from}/{kind}"),
            _ => format!("larder/1/{FLEET}/{to}/{kind}/{from}"),
        }
    }

    /// A message of sync, signed.
    pub fn sealed(&self, to: &str, body: &[u8]) -> Vec<u8> {
        let to = to.parse().expect("a plain name");
        let between = Between { fleet: FLEET, from: &self.name, to: &to, channel: Channel::Sync };
        seal(self.key.signing(), between, body)
    }

    /// Says a message of sync.
    pub fn say(&mut self, to: &str, message: &SyncMessage) {
        let (topic, sealed) = (self.topic(to, "c"), self.sealed(to, &message.encode()));
        self.publish(&topic, sealed);
    }

    /// Sends blocks for an announcement.
    pub fn send_blocks(&mut self, to: &str, group: u32, blocks: Vec<Bytes>) {
        let topic = self.topic(to, "b");
        let mut packing = Packing::new(group, &Buffers::default());
        blocks.iter().for_each(|block| packing.add_block(block));
        for pack in packing.finish() {
            self.publish(&topic, pack.payload);
        }
    }

    /// Says hello once.
    pub fn say_hello(&mut self, to: &str) {
        let hello = Hello {
            epoch: 1,
            session: 1,
            store: 1,
            role: self.role,
            subscriptions: vec![],
            answers: None,
            starts: Vec::new(),
        };
        self.say(to, &SyncMessage::Hello(hello));
    }

    /// Says hello until it is answered: an agent that has just started may not be subscribed yet.
    pub fn greet(&mut self, to: &str) {
        let began = Instant::now();
        loop {
            self.say_hello(to);
            let name = self.name.clone();
            let answered = self.within(Duration::from_secs(2), |event| {
                let SyncMessage::Hello(hello) = sync_message(&name, event)? else { return None };
                hello.answers
            });
            if answered.is_some() {
                return;
            }
            assert!(began.elapsed() < SOON, "no hello from {to} within {SOON:?}");
        }
    }

    /// Waits for a message of sync.
    pub fn hears<T>(&mut self, what: &str, mut wanted: impl FnMut(SyncMessage) -> Option<T>) -> T {
        let name = self.name.clone();
        self.until(what, |event| sync_message(&name, event).and_then(&mut wanted))
    }

    /// Waits for what became of the one entry of an announcement.
    pub fn hears_outcome(&mut self, of_group: u32) -> Outcome {
        self.hears("an acknowledgement", |message| match message {
            SyncMessage::Ack { group, outcomes, .. } if group == of_group => Some(outcomes[0].1.clone()),
            _ => None,
        })
    }

    /// Waits until an announcement's blocks are wanted.
    pub fn hears_want(&mut self, of_group: u32) -> Want {
        self.hears("a want", |message| match message {
            SyncMessage::Want(want) if want.group == of_group => Some(want),
            _ => None,
        })
    }

    /// What it claims of an object.
    pub fn binding(&self, root: BlockId, depth: u8, size: u64) -> Binding {
        let mut version = Version::default();
        version.bump(&self.name).expect("there is room for one writer");
        let meta = Meta { size, mtime_ms: 1, mode: 0o644 };
        Binding {
            version,
            content: Content::Object { root, depth },
            meta,
            origin: self.name.clone(),
            conflict_of: None,
        }
    }

    /// Announces one name.
    pub fn announce(&mut self, to: &str, group: u32, name: &str, binding: Binding) {
        let entries = vec![(Name::parse(name).expect("a plain name"), binding)];
        self.say(to, &SyncMessage::Announce(Announce { group, request: None, entries, log: 0 }));
    }

    /// A command, signed.
    pub fn command(&self, to: &str, counter: u64, expires_ms: i64, request: &Request) -> Vec<u8> {
        self.sealed_command(
            to,
            counter,
            expires_ms,
            serde_json::to_string(request).expect("requests are JSON"),
        )
    }

    /// The same, whatever the body is.
    pub fn sealed_command(&self, to: &str, counter: u64, expires_ms: i64, body: String) -> Vec<u8> {
        let to = to.parse().expect("a plain name");
        let between = Between { fleet: FLEET, from: &self.name, to: &to, channel: Channel::Command };
        Envelope::seal(self.key.signing(), between, counter, expires_ms, body).encode()
    }

    /// Waits for the answer to a command.
    pub fn hears_answer(&mut self, counter: u64) -> Response {
        self.until("an answer", |event| {
            let LinkEvent::Message { topic, payload, .. } = event else { return None };
            let envelope: Option<Envelope> =
                serde_json::from_slice(payload).ok().filter(|_| topic.contains("/resp/"));
            let envelope = envelope.filter(|envelope| envelope.counter == counter)?;
            Some(serde_json::from_str(&envelope.body).expect("an answer is JSON"))
        })
    }
}

/// What a node says of sync to the one of this name.
fn sync_message(to: &NodeName, event: &LinkEvent) -> Option<SyncMessage> {
    let LinkEvent::Message { topic, payload, .. } = event else { return None };
    // a version byte and a signature come first
    let is_to = topic.starts_with(&format!("larder/1/{FLEET}/{to}/sync/")) && topic.ends_with("/c");
    is_to.then(|| SyncMessage::decode(payload[0], &payload[65..]).ok()).flatten()
}
