//! Watches every answer and every acknowledgement: neither may come before its data is durable.

use super::World;
use bytes::Bytes;
use larder_core::binding::{Binding, Content};
use larder_core::id::NodeName;
use larder_core::limits::MESSAGE_BYTES_MAX;
use larder_core::message::Channel;
use larder_core::name::Name;
use larder_core::request::Response;
use larder_core::sync::wire::{Outcome, SyncMessage};
use std::collections::{BTreeMap, BTreeSet};

/// Bytes of a sealed message before its body: version and signature.
const SEAL_BYTES: usize = 65;

/// What was announced, by sender, receiver and number.
type Announced = BTreeMap<(NodeName, NodeName, u32), Vec<(Name, Binding)>>;

#[derive(Default)]
pub(crate) struct Judge {
    announced: Announced,
    /// Entries acknowledged as stored.
    pub(crate) acknowledged: u64,
    pub(crate) announcements: u64,
    pub(crate) hellos: u64,
    /// What was said to nodes that no machine plays, in its order.
    pub(crate) said: Vec<(NodeName, SyncMessage)>,
    /// The greatest limit each sender was given in a want.
    pub(crate) limits: BTreeMap<NodeName, u32>,
    /// Messages with blocks that the broker has not taken yet, by machine and token; and the most there were.
    pub(crate) blocks_under_way: BTreeSet<(usize, u64)>,
    pub(crate) blocks_under_way_max: usize,
}

impl World {
    pub(crate) fn judge_reply(&self, node: usize, response: &Response) {
        let Response::Stored { name, cid, .. } = response else { return };
        let engine = &self.machines[node].engine;
        assert!(
            engine.ever_bound.contains(&(name.clone(), *cid)),
            "seed {}: {name} was said to be stored before it was",
            self.seed
        );
        if let Some(binding) = engine.binding(name)
            && matches!(binding.content, Content::Object { root, .. } if root == *cid)
            && engine.damaged.is_empty()
        {
            assert_eq!(engine.missing_of(&binding), None, "seed {}: {name} is stored without it", self.seed);
        }
    }

    pub(crate) fn judge_sent(
        &mut self,
        node: usize,
        token: u64,
        to: &NodeName,
        channel: Channel,
        payload: &Bytes,
    ) {
        assert!(payload.len() <= MESSAGE_BYTES_MAX, "seed {}: {} bytes sent", self.seed, payload.len());
        if channel == Channel::Blocks {
            let judge = &mut self.judge;
            judge.blocks_under_way.insert((node, token));
            judge.blocks_under_way_max = judge.blocks_under_way_max.max(judge.blocks_under_way.len());
        }
        if channel != Channel::Sync {
            return;
        }
        let from = self.name(node);
        let message = SyncMessage::decode(payload[0], &payload[SEAL_BYTES..]);
        if let (None, Ok(message)) = (self.index(to), &message) {
            self.judge.said.push((to.clone(), message.clone()));
        }
        match message {
            Ok(SyncMessage::Announce(announce)) => {
                self.judge.announcements += 1;
                self.judge.announced.insert((from, to.clone(), announce.group), announce.entries);
            }
            Ok(SyncMessage::Ack { group, outcomes, .. }) => {
                self.judge_ack(node, &(to.clone(), from, group), &outcomes);
            }
            Ok(SyncMessage::Want(want)) => {
                let greatest = self.judge.limits.entry(to.clone()).or_default();
                *greatest = want.limit.max(*greatest);
            }
            Ok(SyncMessage::Hello(_)) => self.judge.hellos += 1,
            Ok(_) => {}
            Err(error) => panic!("seed {}: {from} sent what does not parse: {error}", self.seed),
        }
    }

    fn judge_ack(&mut self, node: usize, group: &(NodeName, NodeName, u32), outcomes: &[(u16, Outcome)]) {
        let Some(entries) = self.judge.announced.get(group) else { return };
        let engine = &self.machines[node].engine;
        for (index, outcome) in outcomes {
            let (name, binding) = &entries[usize::from(*index)];
            if !matches!(outcome, Outcome::Stored | Outcome::Conflict) || !engine.damaged.is_empty() {
                continue;
            }
            self.judge.acknowledged += 1;
            let is_known = engine.names.contains_key(name);
            assert!(is_known, "seed {}: {name} is acknowledged without a binding", self.seed);
            // A later version may have come in the same batch, and a cleaning since.
            let is_present = engine.binding(name).is_some_and(|here| here.content == binding.content);
            if is_present {
                let missing = engine.missing_of(binding);
                assert_eq!(missing, None, "seed {}: {name} is acknowledged without its blocks", self.seed);
            }
        }
    }
}
