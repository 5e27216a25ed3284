//! A configured peer that no machine plays: it says what a test tells it to, and what it is told is kept.

use super::World;
use super::net::Message;
use super::setup::{FLEET, key, name};
use bytes::Bytes;
use larder_core::binding::{Binding, Content, Meta};
use larder_core::message::Channel;
use larder_core::role::Role;
use larder_core::seal::{Between, seal};
use larder_core::sync::buffer::Buffers;
use larder_core::sync::wire::{Announce, Hello, Pack, Packing, SyncMessage};
use larder_core::version::Version;

/// A message sealed as `from` would seal it with `signer`'s key.
pub(crate) fn sealed(from: &str, to: &str, signer: &str, message: &SyncMessage) -> Message {
    let (from, to) = (name(from), name(to));
    let between = Between { fleet: FLEET, from: &from, to: &to, channel: Channel::Sync };
    let payload = Bytes::from(seal(&key(signer), between, &message.encode()));
    Message { from, to, channel: Channel::Sync, payload }
}

/// A first version of `writer`.
pub(crate) fn binding(writer: &str, size: u64, content: Content) -> Binding {
    let mut version = Version::default();
    version.bump(&name(writer)).unwrap();
    let meta = Meta { size, mtime_ms: 0, mode: 0o644 };
    Binding { version, content, meta, origin: name(writer), conflict_of: None }
}

/// A hello of session `session`, as somebody who has just come or as an answer to this epoch and session.
pub(crate) fn hello(role: Role, session: u64, answers: Option<(u64, u64)>) -> SyncMessage {
    SyncMessage::Hello(Hello {
        epoch: 9,
        session,
        store: 9,
        role,
        subscriptions: Vec::new(),
        answers,
        starts: Vec::new(),
    })
}

impl World {
    /// `from` says this to `to`, and everything that follows at once happens.
    pub(crate) fn say_as(&mut self, from: &str, to: &str, message: &SyncMessage) {
        self.forward(sealed(from, to, from, message));
        self.run_ms(100);
    }

    pub(crate) fn announce_as(
        &mut self,
        from: &str,
        to: &str,
        group: u32,
        entries: Vec<(String, u64, Content)>,
    ) {
        let entry = |(name, size, content): (String, u64, Content)| {
            (name.parse().unwrap(), binding(from, size, content))
        };
        let entries = entries.into_iter().map(entry).collect();
        self.say_as(from, to, &SyncMessage::Announce(Announce { group, request: None, entries, log: 0 }));
    }

    pub(crate) fn send_blocks_as(&mut self, from: &str, to: &str, group: u32, blocks: Vec<Bytes>) {
        let mut packing = Packing::new(group, &Buffers::default());
        blocks.iter().for_each(|block| packing.add_block(block));
        for Pack { payload, .. } in packing.finish() {
            self.forward(Message { from: name(from), to: name(to), channel: Channel::Blocks, payload });
        }
    }

    /// What `node` was told since this was last asked.
    pub(crate) fn told(&mut self, node: &str) -> Vec<SyncMessage> {
        let node = name(node);
        let (told, others) =
            std::mem::take(&mut self.judge.said).into_iter().partition(|(to, _)| *to == node);
        self.judge.said = others;
        told.into_iter().map(|(_, message)| message).collect()
    }
}
