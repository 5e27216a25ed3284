//! The broker and the links to it: what is lost, doubled, late and out of order.
//!
//! A message is lost only with the link it is on, as in MQTT at QoS 1 with clean sessions; it may be doubled
//! and overtaken at any time. A cut link is noticed by the broker at once and by the node after a while.

use super::{Event, World};
use bytes::Bytes;
use larder_core::id::NodeName;
use larder_core::message::{Channel, Input};
use std::collections::BTreeMap;

#[derive(Clone)]
pub(crate) struct Message {
    pub(crate) from: NodeName,
    pub(crate) to: NodeName,
    pub(crate) channel: Channel,
    pub(crate) payload: Bytes,
}

/// The faults of one world, in thousandths and milliseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Faults {
    pub(crate) double_permille: u64,
    pub(crate) late_permille: u64,
    pub(crate) late_ms_max: u64,
    pub(crate) delay_ms_max: u64,
}

impl Faults {
    pub(crate) const NONE: Faults =
        Faults { double_permille: 0, late_permille: 0, late_ms_max: 0, delay_ms_max: 5 };
}

/// A node's link to the broker.
#[derive(Default)]
pub(crate) struct Link {
    /// The broker holds a connection.
    alive: bool,
    /// The node believes that it has one.
    up: bool,
    /// There is no network.
    pub(crate) cut: bool,
    /// The node has taken it down itself.
    asleep: bool,
    connection: u64,
    last_arrival_ms: u64,
    /// Bytes a second that it takes of the node's; `None`: as fast as they come.
    pub(crate) uplink: Option<u64>,
    /// When it has taken what it was given.
    uplink_free_ms: u64,
}

impl Link {
    pub(crate) fn is_up(&self) -> bool {
        self.up
    }

    pub(crate) fn is_up_as(&self, connection: u64) -> bool {
        self.up && self.alive && self.connection == connection
    }
}

pub(crate) struct Net {
    pub(crate) links: Vec<Link>,
    pub(crate) faults: Faults,
    pub(crate) broker_down: bool,
    /// Payload bytes of blocks that reached their receiver, by sender and receiver.
    pub(crate) block_bytes: BTreeMap<(NodeName, NodeName), u64>,
    pub(crate) messages: u64,
    states: BTreeMap<usize, String>,
}

impl Default for Net {
    fn default() -> Self {
        Net {
            links: Vec::new(),
            faults: Faults::NONE,
            broker_down: false,
            block_bytes: BTreeMap::new(),
            messages: 0,
            states: BTreeMap::new(),
        }
    }
}

impl World {
    pub(crate) fn connect(&mut self, node: usize) {
        let after_ms = 1 + self.random.below(50);
        self.schedule(after_ms, Event::Connects { node });
    }

    pub(crate) fn connects(&mut self, node: usize) {
        let link = &mut self.net.links[node];
        if link.up || link.cut || link.asleep || self.net.broker_down || self.machines[node].node.is_none() {
            return;
        }
        (link.up, link.alive) = (true, true);
        link.connection += 1;
        link.last_arrival_ms = self.now_ms;
        self.input(node, Input::LinkUp);
        let states: Vec<(usize, String)> =
            self.net.states.iter().map(|(of, state)| (*of, state.clone())).collect();
        for (of, state) in states.into_iter().filter(|(of, _)| *of != node) {
            self.state_to(node, of, &state);
        }
    }

    /// The node takes its link down, or lets it come up.
    pub(crate) fn radio(&mut self, node: usize, up: bool) {
        self.net.links[node].asleep = !up;
        if up {
            return self.connect(node);
        }
        let was_up = std::mem::take(&mut self.net.links[node].up);
        self.net.links[node].alive = false;
        if was_up {
            self.input(node, Input::LinkDown { reason: "asleep".into() });
        }
    }

    /// The node ends its link in order, which drops its will, and makes another at once.
    pub(crate) fn renew_link(&mut self, node: usize) {
        self.net.links[node].up = false;
        self.net.links[node].alive = false;
        self.input(node, Input::LinkDown { reason: "renewed".into() });
        self.connect(node);
    }

    /// The node's link breaks; it notices after up to `notice_ms`.
    pub(crate) fn break_link(&mut self, node: usize, notice_ms: u64) {
        let link = &mut self.net.links[node];
        if !link.alive {
            return;
        }
        link.alive = false;
        let connection = link.connection;
        let epoch = self.machines[node].settings.epoch();
        if !self.net.broker_down {
            self.retain(node, "lost", epoch);
        }
        self.schedule(notice_ms, Event::Notices { node, connection });
    }

    /// No network for the node until [`World::mend`].
    pub(crate) fn cut(&mut self, node: usize, notice_ms: u64) {
        self.net.links[node].cut = true;
        self.break_link(node, notice_ms);
    }

    pub(crate) fn mend(&mut self, node: usize) {
        self.net.links[node].cut = false;
        self.connect(node);
    }

    pub(crate) fn stop_broker(&mut self, forgets: bool) {
        self.net.broker_down = true;
        for node in 0..self.machines.len() {
            self.break_link(node, 0);
        }
        if forgets {
            self.net.states.clear();
        }
    }

    pub(crate) fn start_broker(&mut self) {
        self.net.broker_down = false;
        for node in 0..self.machines.len() {
            self.connect(node);
        }
    }

    pub(crate) fn notices(&mut self, node: usize, connection: u64) {
        let link = &mut self.net.links[node];
        if !link.up || link.connection != connection {
            return;
        }
        link.up = false;
        self.input(node, Input::LinkDown { reason: "the simulated link broke".into() });
        self.connect(node);
    }

    /// The machine is off: its link is gone at once.
    pub(crate) fn lose_link(&mut self, node: usize) {
        self.break_link(node, 0);
        self.net.links[node].up = false;
    }

    pub(crate) fn publish(&mut self, node: usize, token: Option<u64>, message: Message) {
        self.net.messages += 1;
        self.count_sent(node, &message.payload);
        let connection = self.net.links[node].connection;
        let mut after_ms = self.random.below(self.net.faults.delay_ms_max + 1);
        let link = &mut self.net.links[node];
        if let Some(uplink) = link.uplink {
            let begins_ms = link.uplink_free_ms.max(self.now_ms);
            link.uplink_free_ms = begins_ms + message.payload.len() as u64 * 1000 / uplink;
            after_ms += link.uplink_free_ms - self.now_ms;
        }
        if let Some(token) = token {
            self.schedule(after_ms, Event::Sent { node, connection, token });
        }
        self.schedule(after_ms, Event::AtBroker { connection, message });
    }

    pub(crate) fn count_sent(&mut self, node: usize, payload: &[u8]) {
        if self.net.links[node].up {
            let air = &mut self.machines[node].air;
            air.messages_sent += 1;
            air.bytes_sent += payload.len() as u64;
        }
    }

    pub(crate) fn at_broker(&mut self, connection: u64, message: Message) {
        let Some(from) = self.index(&message.from) else { return };
        if !self.net.links[from].alive || self.net.links[from].connection != connection {
            return;
        }
        self.forward(message);
    }

    /// The broker passes a message on; also the way in for forged ones.
    pub(crate) fn forward(&mut self, message: Message) {
        let Some(to) = self.index(&message.to) else { return };
        if !self.net.links[to].alive {
            return;
        }
        let faults = self.net.faults;
        let copies = if self.random.chance(faults.double_permille) { 2 } else { 1 };
        for copy in 0..copies {
            let late = copy > 0 || self.random.chance(faults.late_permille);
            let delay_ms = self.random.below(faults.delay_ms_max + 1);
            let link = &mut self.net.links[to];
            let in_order_ms = (self.now_ms + delay_ms).max(link.last_arrival_ms);
            let at_ms = if late {
                self.now_ms + self.random.below(faults.late_ms_max + 1)
            } else {
                link.last_arrival_ms = in_order_ms;
                in_order_ms
            };
            let connection = link.connection;
            let message = message.clone();
            self.schedule(at_ms - self.now_ms, Event::Arrives { connection, message });
        }
    }

    pub(crate) fn arrives(&mut self, connection: u64, message: Message) {
        let Some(to) = self.index(&message.to) else { return };
        if !self.net.links[to].is_up_as(connection) {
            return;
        }
        let Message { from, to: name, channel, payload } = message;
        if channel == Channel::Blocks {
            *self.net.block_bytes.entry((from.clone(), name)).or_default() += payload.len() as u64;
        }
        let air = &mut self.machines[to].air;
        air.messages_received += 1;
        air.bytes_received += payload.len() as u64;
        self.input(to, Input::Wire { from, channel, payload });
    }

    pub(crate) fn publish_state(&mut self, node: usize, state: &str, epoch: u64) {
        if self.net.links[node].alive {
            self.count_sent(node, state_text(state, epoch).as_bytes());
            self.retain(node, state, epoch);
        }
    }

    fn retain(&mut self, node: usize, state: &str, epoch: u64) {
        let text = state_text(state, epoch);
        self.net.states.insert(node, text.clone());
        for other in (0..self.machines.len()).filter(|other| *other != node) {
            self.state_to(other, node, &text);
        }
    }

    /// A node listens to its master's state alone.
    fn state_to(&mut self, to: usize, of: usize, text: &str) {
        if self.machines[to].settings.upstream().is_none_or(|peer| peer.name != self.machines[of].settings.me)
        {
            return;
        }
        let message = Message {
            from: self.name(of),
            to: self.name(to),
            channel: Channel::State,
            payload: Bytes::copy_from_slice(text.as_bytes()),
        };
        self.forward(message);
    }
}

fn state_text(state: &str, epoch: u64) -> String {
    format!("{{\"state\":\"{state}\",\"epoch\":{epoch}}}")
}
