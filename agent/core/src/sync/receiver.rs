//! The receiving half: compares announced versions with its own, asks for what it lacks, stores it,
//! binds the names, acknowledges.
//!
//! Blocks and bindings are written in the order they are handed over, and a batch that fails takes what
//! waits behind it with it; so a binding may be handed over as soon as its last block has been.

use super::credit::Amount;
use super::group::{Ahead, InGroup, News, Node, Plan, Step, Take};
use super::wire::{Announce, Blocks, Outcome, Refusal, SyncMessage, Want};
use super::{Peer, Purpose, RETRY_MS, RETRY_MS_MAX, Sync, Wires};
use crate::binding::{Binding, Content, Resolution, Stored, reconcile, resolve};
use crate::id::{BlockId, NodeName};
use crate::limits::{ANNOUNCE_BYTES_MAX, IN_GROUPS_MAX, IN_GROUPS_PEER_MAX, OUT_GROUPS_MAX};
use crate::message::{Answer, Bound, Change, ChangeDone, Effects, Haste, Message, Question};
use crate::name::Name;
use crate::note::Note;
use crate::object::manifest::{Child, Manifest};
use crate::request::{Failure, FailureKind};
use crate::role::{Role, may_announce};
use crate::time::Time;
use bytes::Bytes;
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// Why a transfer is forgotten. Its sender knows nothing of it any more; were that wrong it would announce again.
const SILENT: &str = "the sender went silent";

/// A group is wrong or stuck: it is dropped, and the sender announces it again later.
struct GivenUp(String);

impl Sync {
    pub(super) fn announced(&mut self, now: Time, from: &NodeName, announce: Announce, out: &mut Effects) {
        let Some(peer) = self.peers.get(from) else { return };
        let key = (from.clone(), announce.group);
        if !may_announce(peer.role, self.wires.role) {
            let why = format!("a {} may not announce to a {}", peer.role, self.wires.role);
            self.wires.dropped(from, why, out);
            let refused = |index| (index, Outcome::Refused(Refusal::Role));
            let outcomes =
                (0..announce.entries.len()).filter_map(|index| u16::try_from(index).ok().map(refused));
            let ack = SyncMessage::Ack { group: announce.group, outcomes: outcomes.collect(), log: 0 };
            return self.wires.post(from, &ack, out);
        }
        // What a peer keeps was checked when it was written there, so an honest one never says such a thing.
        if let Some(error) = announce.entries.iter().find_map(|(_, binding)| binding.check().err()) {
            return self.wires.dropped(from, error.to_string(), out);
        }
        if self.incoming.contains_key(&key) || announce.entries.is_empty() {
            return;
        }
        if !self.has_place(now, from, announce.request, out) {
            return self.wires.post(from, &SyncMessage::Busy { group: announce.group }, out);
        }
        self.lives += 1;
        let mut group = InGroup::new(self.lives, announce.request, announce.entries);
        group.touch(now);
        self.fetches.moves(now, &group, out);
        let names = group.entries.iter().map(|entry| entry.name.clone()).collect();
        self.ask_for(&key, &group, Step::Lookup, Question::Lookup(names), out);
        self.incoming.insert(key, group);
    }

    /// Whether a peer may announce one more. Each has its part, so that one can not take all places, and what
    /// dead ones hold is free: the one that has been silent for longest is forgotten.
    fn has_place(&mut self, now: Time, from: &NodeName, request: Option<u32>, out: &mut Effects) -> bool {
        let is_answer = |request: Option<u32>| request.is_some_and(|request| self.fetches.is_open(request));
        let counts = |(peer, group): (&NodeName, &InGroup)| peer == from && !is_answer(group.request);
        let of_peer = self.incoming.iter().filter(|((peer, _), group)| counts((peer, group))).count();
        if of_peer >= IN_GROUPS_PEER_MAX && !is_answer(request) {
            return false;
        }
        if self.incoming.len() < IN_GROUPS_MAX {
            return true;
        }
        let silent = self.incoming.iter().filter(|(_, group)| group.is_silent());
        let longest = silent.max_by_key(|(_, group)| (group.retry_wait_ms, Reverse(group.retry_at_ms)));
        let Some(group) = longest.map(|(key, _)| key.clone()).and_then(|key| self.incoming.remove(&key))
        else {
            return false;
        };
        self.fetches.finished(now, &group, Some(SILENT), out);
        true
    }

    /// Blocks of a peer, each believed for its own hash and taken only if it was asked for.
    pub(super) fn blocks(&mut self, now: Time, from: &NodeName, payload: Bytes, out: &mut Effects) {
        let message = match Blocks::decode(payload) {
            Ok(message) => message,
            Err(error) => return self.wires.dropped(from, error.to_string(), out),
        };
        let key = (from.clone(), message.group);
        let Some(mut group) = self.incoming.remove(&key) else {
            self.wires.numbers.blocks_unasked += message.blocks.len() as u64;
            return;
        };
        group.touch(now);
        for (_, other) in self.incoming.range_mut((from.clone(), 0)..=(from.clone(), u32::MAX)) {
            other.waits_behind(now);
        }
        self.fetches.moves(now, &group, out);
        let ids = BlockId::of_many(self.kernels, &message.blocks);
        for (id, bytes) in ids.into_iter().zip(message.blocks) {
            self.block(&key, &mut group, id, bytes, out);
        }
        self.hasten(&key, &mut group, out);
        let result = self.round_may_be_over(&key, &mut group, out);
        self.put_back(now, key, group, result, out);
    }

    fn block(
        &mut self,
        key: &(NodeName, u32),
        group: &mut InGroup,
        id: BlockId,
        bytes: Bytes,
        out: &mut Effects,
    ) {
        let wanted_bytes = group.wanted_bytes(&id);
        let is_allowed = group.credit.allows();
        if !is_allowed || !group.came(id, bytes.len() as u64) {
            self.wires.numbers.blocks_unasked += 1;
            if is_allowed && group.credit.strange() {
                let why = format!("block {id} was not asked for, or came twice");
                self.wires.numbers.last_problem = format!("{}: {why}", key.0);
                out.note(Note::Dropped { from: key.0.clone(), why });
            }
            return;
        }
        self.wires.numbers.blocks_received += 1;
        self.wires.numbers.bytes_received += bytes.len() as u64;
        group.credit.received(Amount::block(bytes.len()), wanted_bytes);
        let length = u32::try_from(bytes.len()).expect("a message bounds its blocks");
        let purpose =
            Purpose::Receive { peer: key.0.clone(), group: key.1, life: group.life, step: Step::Put(length) };
        self.asked.write(purpose, Change::Put { id, bytes }, Haste::Bulk, out);
    }

    /// Has what came written when the sender waits for that, or will soon; and what came for nothing sent once more.
    fn hasten(&mut self, key: &(NodeName, u32), group: &mut InGroup, out: &mut Effects) {
        let credit = &group.credit;
        let is_half = credit.held().reaches(self.window(group).over(2));
        let waits = group.expected.is_empty() || credit.is_used_up() || credit.is_wasted();
        if group.is_writing() && (waits || is_half) {
            out.tell(Message::FlushNow);
        }
        if group.credit.is_wasted() && !group.is_repeated {
            // Nothing else comes: what is still missing rotted where it was sent from, where it is looked at now.
            self.want_again(key, group, out);
        }
    }

    /// An answer or a write of one of a group's steps.
    pub(super) fn receive_step(
        &mut self,
        now: Time,
        (peer, group_id, life): (&NodeName, u32, u64),
        step: Step,
        news: News,
        out: &mut Effects,
    ) {
        let key = (peer.clone(), group_id);
        if self.incoming.get(&key).is_none_or(|group| group.life != life) {
            return;
        }
        let Some(mut group) = self.incoming.remove(&key) else { return };
        group.touch(now);
        self.fetches.moves(now, &group, out);
        let result = match news {
            News::Answer(Answer::Failed(Failure { kind: FailureKind::Damaged, .. }))
                if group.bears_damage(&step) =>
            {
                if group.lacks(&step) {
                    group.begin_again();
                    self.ask_for_roots(&key, &group, out);
                }
                Ok(())
            }
            News::Answer(Answer::Failed(failure)) | News::Written(Err(failure)) => {
                if failure.kind == FailureKind::Busy {
                    self.wires.post(peer, &SyncMessage::Busy { group: group_id }, out);
                }
                Err(GivenUp(failure.message))
            }
            News::Answer(answer) => self.step_answered(now, &key, &mut group, step, answer, out),
            News::Written(Ok(done)) => self.step_written(now, &key, &mut group, step, done, out),
        };
        self.put_back(now, key, group, result, out);
    }

    fn step_answered(
        &mut self,
        now: Time,
        key: &(NodeName, u32),
        group: &mut InGroup,
        step: Step,
        answer: Answer,
        out: &mut Effects,
    ) -> Result<(), GivenUp> {
        match (step, answer) {
            (Step::Lookup, Answer::Bindings(found)) => {
                self.remind(now, &key.0, group, &found, out);
                let mends = group.request.is_some_and(|request| self.fetches.is_open(request));
                for (index, bound) in group.indices().zip(found) {
                    plan(group, index, bound, &key.0, &self.wires, mends);
                }
                if group.roots_needed().is_empty() {
                    group.expected_known = true;
                    return self.roots_here(key, group, out);
                }
                self.ask_for_roots(key, group, out);
            }
            (Step::Roots, Answer::Has(here)) => {
                group.expect_roots(group.roots_needed().into_iter().zip(here));
                self.want(key, group, out);
                return self.round_may_be_over(key, group, out);
            }
            (Step::Manifest, Answer::Children { manifest, here }) => {
                return self.manifest_here(key, group, manifest, here, out);
            }
            (Step::Ahead(id), Answer::Children { manifest, here }) => {
                if !matches!(group.ahead, Ahead::Asked(asked) if asked == id) {
                    return Ok(()); // refused since
                }
                if group.expected_known {
                    group.ahead = Ahead::Read(id, manifest, here);
                } else {
                    group.ahead = Ahead::Unknown;
                    return self.manifest_here(key, group, manifest, here, out);
                }
            }
            (Step::Copy(index), Answer::Bindings(found)) => {
                let bound = found.into_iter().next().flatten();
                self.bind_copy(key, group, index, bound, out);
            }
            (Step::Again(index), Answer::Bindings(found)) => {
                group.entries[usize::from(index)].plan = Plan::Unknown;
                plan(group, index, found.into_iter().next().flatten(), &key.0, &self.wires, false);
                self.bind(key, group, index, out);
            }
            (_, _) => return Err(GivenUp("the store gave an answer to another question".into())),
        }
        Ok(())
    }

    /// Tells the peer what it has written itself and, by what it announces, knows nothing of: it keeps both then. What
    /// finds no room is told when it is announced again.
    fn remind(
        &mut self,
        now: Time,
        peer: &NodeName,
        group: &InGroup,
        found: &[Option<Bound>],
        out: &mut Effects,
    ) {
        let may = |known: &Peer| {
            may_announce(self.wires.role, known.role) && known.out.groups.len() < OUT_GROUPS_MAX
        };
        if !self.peers.get(peer).is_some_and(may) {
            return;
        }
        let mut bytes = 0;
        let forgotten = group.entries.iter().zip(found).filter_map(|(entry, bound)| {
            let bound = bound.as_ref()?;
            let here = Stored::decode(&bound.value).ok()?.binding;
            let is_its_own = entry.incoming.origin == *peer && !entry.name.under("cid");
            if !is_its_own || !entry.incoming.has_forgotten(peer, &here) {
                return None;
            }
            bytes += entry.name.as_str().len() + bound.value.len();
            (bytes <= ANNOUNCE_BYTES_MAX).then(|| (entry.name.clone(), here))
        });
        let forgotten: Vec<_> = forgotten.collect();
        if !forgotten.is_empty() {
            self.announce(now, peer, forgotten, None, None, out);
        }
    }

    fn step_written(
        &mut self,
        now: Time,
        key: &(NodeName, u32),
        group: &mut InGroup,
        step: Step,
        done: ChangeDone,
        out: &mut Effects,
    ) -> Result<(), GivenUp> {
        if let ChangeDone::Bound { seq } = done {
            self.wires.log = self.wires.log.max(seq);
        }
        match (step, done) {
            (Step::Put(length), _) => {
                group.credit.stored(Amount::block(length as usize));
                self.extend_credit(key, group, out);
                return self.round_may_be_over(key, group, out);
            }
            (Step::CopyBound(index), ChangeDone::Done | ChangeDone::Bound { .. }) => {
                // Should the name be outrun, this is the only word of the copy.
                out.tell(Message::Changed { bytes: 0 });
                self.bind_name(key, group, index, out)
            }
            (Step::Bound(index), ChangeDone::Done) => self.bound(key, group, index, out),
            (Step::Bound(index), ChangeDone::Bound { seq }) => {
                let name = group.entries[usize::from(index)].name.clone();
                self.announce_now(now, &key.0, &name);
                out.tell(Message::Rebound { name, seq });
                self.bound(key, group, index, out)
            }
            (Step::CopyBound(index) | Step::Bound(index), ChangeDone::Outrun) => {
                let names = vec![group.entries[usize::from(index)].name.clone()];
                self.ask_for(key, group, Step::Again(index), Question::Lookup(names), out);
            }
            (_, _) => return Err(GivenUp("the store answered a write that was none".into())),
        }
        Ok(())
    }

    /// Asks for what is expected, with a fresh credit.
    fn want(&mut self, key: &(NodeName, u32), group: &mut InGroup, out: &mut Effects) {
        group.is_repeated = false;
        group.credit.begin_layer();
        self.want_round(key, group, out);
    }

    /// Asks once more for what is still expected: the sender looks at it before it sends it.
    fn want_again(&mut self, key: &(NodeName, u32), group: &mut InGroup, out: &mut Effects) {
        group.is_repeated = true;
        self.want_round(key, group, out);
    }

    fn want_round(&mut self, key: &(NodeName, u32), group: &mut InGroup, out: &mut Effects) {
        if group.expected.is_empty() {
            return;
        }
        group.round += 1;
        let (blocks, lengths) = group.wanted();
        let window = self.window(group);
        let limit = group.credit.begin(lengths.into_iter(), window);
        let want = Want { group: key.1, round: group.round, blocks, limit };
        self.wires.post(&key.0, &SyncMessage::Want(want), out);
    }

    fn extend_credit(&mut self, key: &(NodeName, u32), group: &mut InGroup, out: &mut Effects) {
        let window = self.window(group);
        if !group.expected.is_empty()
            && let Some(limit) = group.credit.extend(window)
        {
            let credit = SyncMessage::Credit { group: key.1, round: group.round, limit };
            self.wires.post(&key.0, &credit, out);
        }
    }

    /// A group's part of the window; it is not among `incoming` at this moment. Each transfer has its share
    /// of what the others leave, and never less than gets it on. What silent ones were promised is free again:
    /// they are asked for the least, and have their share as soon as anything comes.
    fn window(&self, group: &InGroup) -> Amount {
        let least = Amount::window(4);
        if group.is_silent() {
            return least;
        }
        let whole = Amount::window(self.window_blocks);
        let mut others = 0;
        let mut promised = Amount::default();
        for other in self.incoming.values() {
            if other.is_silent() {
                promised = promised.plus(other.credit.held());
            } else if !other.expected.is_empty() || other.is_writing() {
                others += 1;
                promised = promised.plus(other.credit.promised());
            }
        }
        whole.over(others + 1).min(whole.minus(promised)).max(least)
    }

    /// Goes on when everything asked for has come; manifests must be durable before they are read.
    fn round_may_be_over(
        &mut self,
        key: &(NodeName, u32),
        group: &mut InGroup,
        out: &mut Effects,
    ) -> Result<(), GivenUp> {
        if !group.expected.is_empty() || !group.expected_known {
            return Ok(());
        }
        match group.node.take() {
            None => self.roots_here(key, group, out),
            Some((node, children)) if node.level == 1 => {
                group.before = children;
                self.next_node(key, group, out)
            }
            Some(inner) if group.is_writing() => {
                group.node = Some(inner);
                Ok(())
            }
            Some((node, children)) => {
                let level = node.level - 1;
                let below =
                    children.into_iter().map(|child| Node { id: child.id, level, bytes: child.bytes });
                group.nodes.extend(below);
                self.next_node(key, group, out)
            }
        }
    }

    /// All roots are here or handed over: one-block objects can be bound, the others are walked.
    fn roots_here(
        &mut self,
        key: &(NodeName, u32),
        group: &mut InGroup,
        out: &mut Effects,
    ) -> Result<(), GivenUp> {
        for index in group.indices() {
            let entry = &group.entries[usize::from(index)];
            if !entry.content_here && entry.needs().is_none_or(|(_, depth)| depth == 0) {
                self.content_here(key, group, index, out);
            }
        }
        if group.walking.is_none() { self.next_node(key, group, out) } else { Ok(()) }
    }

    /// Looks at the next manifest, of this object or of the next one.
    fn next_node(
        &mut self,
        key: &(NodeName, u32),
        group: &mut InGroup,
        out: &mut Effects,
    ) -> Result<(), GivenUp> {
        if group.nodes.is_empty() {
            if let Some(index) = group.walking.take() {
                self.content_here(key, group, index, out);
            }
            let next = group.indices().find_map(|index| {
                let entry = &group.entries[usize::from(index)];
                let (id, level) = entry.needs().filter(|(_, depth)| *depth > 0)?;
                (!entry.content_here).then_some((index, Node { id, level, bytes: entry.incoming.meta.size }))
            });
            let Some((index, root)) = next else { return Ok(()) };
            if group.is_writing() {
                return Ok(()); // the root is not durable yet; its write brings us back
            }
            group.walking = Some(index);
            group.nodes.push(root);
        }
        let Some(node) = group.nodes.pop() else { return Ok(()) };
        group.node = Some((node, Vec::new()));
        // Nothing is expected while the manifest is read: the round must not seem to be over.
        group.expected_known = false;
        match std::mem::take(&mut group.ahead) {
            Ahead::Read(id, manifest, here) if id == node.id => {
                return self.manifest_here(key, group, manifest, here, out);
            }
            Ahead::Asked(id) if id == node.id => group.ahead = Ahead::Asked(id),
            Ahead::Unknown | Ahead::Asked(_) | Ahead::Read(..) => {
                self.ask_for(key, group, Step::Manifest, Question::Children(node.id), out);
            }
        }
        Ok(())
    }

    fn manifest_here(
        &mut self,
        key: &(NodeName, u32),
        group: &mut InGroup,
        manifest: Option<Manifest>,
        here: Vec<Option<u32>>,
        out: &mut Effects,
    ) -> Result<(), GivenUp> {
        let Some((node, _)) = group.node else { return Ok(()) };
        group.expected_known = true;
        let fits = |manifest: &Manifest| manifest.level() == node.level && manifest.total() == node.bytes;
        let Some(manifest) = manifest.filter(fits) else {
            group.refuse_walked(Refusal::Content);
            return self.next_node(key, group, out);
        };
        let before = std::mem::take(&mut group.before);
        let before: BTreeMap<BlockId, u64> =
            before.into_iter().map(|child| (child.id, child.bytes)).collect();
        let came = |id: &BlockId| before.get(id).and_then(|bytes| u32::try_from(*bytes).ok());
        let child = |(child, here): (Child, Option<u32>)| (child, here.or_else(|| came(&child.id)));
        let children = manifest.into_children().into_iter().zip(here).map(child);
        group.expect_children(node, children.collect());
        self.want(key, group, out);
        if let (Ahead::Unknown, Some(next)) = (&group.ahead, group.nodes.last()) {
            group.ahead = Ahead::Asked(next.id);
            self.ask_for(key, group, Step::Ahead(next.id), Question::Children(next.id), out);
        }
        self.round_may_be_over(key, group, out)
    }

    fn content_here(&mut self, key: &(NodeName, u32), group: &mut InGroup, index: u16, out: &mut Effects) {
        group.entries[usize::from(index)].content_here = true;
        self.bind(key, group, index, out);
    }

    /// Binds an entry whose content is here; a conflict's copy first, so that nothing is ever without name.
    fn bind(&mut self, key: &(NodeName, u32), group: &mut InGroup, index: u16, out: &mut Effects) {
        let Some(take) = group.take(index) else { return };
        if std::mem::replace(&mut take.binding_now, true) {
            return;
        }
        match &take.copy {
            Some((copy, _)) => {
                let names = vec![copy.clone()];
                self.ask_for(key, group, Step::Copy(index), Question::Lookup(names), out);
            }
            None => self.bind_name(key, group, index, out),
        }
    }

    fn bind_copy(
        &mut self,
        key: &(NodeName, u32),
        group: &mut InGroup,
        index: u16,
        bound: Option<Bound>,
        out: &mut Effects,
    ) {
        let Some(Take { copy: Some((name, binding)), .. }) = group.take(index).cloned() else { return };
        let there = bound.as_ref().and_then(|bound| Stored::decode(&bound.value).ok());
        if there.is_some_and(|there| there.binding.content == binding.content) {
            return self.bind_name(key, group, index, out);
        }
        if let Content::Object { root, depth } = binding.content {
            out.tell(Message::Copied { root, depth, size: binding.meta.size });
        }
        let expected_seq = bound.map(|bound| bound.seq);
        self.write_binding(key, group.life, Step::CopyBound(index), &name, binding, None, expected_seq, out);
    }

    fn bind_name(&mut self, key: &(NodeName, u32), group: &mut InGroup, index: u16, out: &mut Effects) {
        let Some(take) = group.take(index).cloned() else { return };
        if take.is_bound && group.bytes_came == 0 {
            return group.settle(index, take.outcome);
        }
        if take.is_bound {
            let purpose = Purpose::Receive {
                peer: key.0.clone(),
                group: key.1,
                life: group.life,
                step: Step::Bound(index),
            };
            return self.asked.barrier(purpose, out);
        }
        let name = group.entries[usize::from(index)].name.clone();
        self.write_binding(
            key,
            group.life,
            Step::Bound(index),
            &name,
            take.binding,
            take.via,
            take.expected_seq,
            out,
        );
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one change, used in two places")]
    fn write_binding(
        &mut self,
        key: &(NodeName, u32),
        life: u64,
        step: Step,
        name: &Name,
        binding: Binding,
        via: Option<NodeName>,
        expected_seq: Option<u64>,
        out: &mut Effects,
    ) {
        let value = Bytes::from(Stored { binding, via, refused: false }.encode());
        let change = Change::Bind { name: name.clone(), value, expected_seq };
        let purpose = Purpose::Receive { peer: key.0.clone(), group: key.1, life, step };
        self.asked.write(purpose, change, Haste::Now, out);
    }

    /// An entry is bound, on flash.
    fn bound(&mut self, key: &(NodeName, u32), group: &mut InGroup, index: u16, out: &mut Effects) {
        let Some(take) = group.take(index).cloned() else { return };
        let entry = &group.entries[usize::from(index)];
        let (name, bytes) = (entry.name.clone(), entry.incoming.meta.size);
        self.wires.numbers.objects_received += 1;
        if take.outcome == Outcome::Conflict {
            self.conflict(&name, take.copy.map(|(copy, _)| copy), out);
        }
        group.settle(index, take.outcome);
        out.note(Note::Received { from: key.0.clone(), name });
        out.tell(Message::Changed { bytes });
    }

    /// The sender, or the content, has let us down for one block: what needs it is refused.
    #[expect(clippy::too_many_arguments, reason = "the fields of one message")]
    pub(super) fn give_up(
        &mut self,
        now: Time,
        from: &NodeName,
        group_id: u32,
        round: u32,
        id: BlockId,
        why: Refusal,
        out: &mut Effects,
    ) {
        let key = (from.clone(), group_id);
        let Some(mut group) = self.incoming.remove(&key) else { return };
        let wanted_bytes = group.wanted_bytes(&id);
        let was_wanted = group.round == round && group.expected.remove(&id).is_some();
        let is_walked = group.node.as_ref().is_some_and(|(node, _)| node.id == id);
        if was_wanted {
            group.credit.absent(wanted_bytes);
        } else if !is_walked {
            group.credit.gone();
        }
        let mut result = Ok(());
        if was_wanted || is_walked {
            group.touch(now);
            if why == Refusal::Lost {
                group.lost = Some(id);
            }
            if group.walking.is_some() {
                group.refuse_walked(why);
            } else {
                group.refuse_roots(why, |root, _, _| root == id);
            }
            self.extend_credit(&key, &mut group, out);
            self.hasten(&key, &mut group, out);
            result = self.round_may_be_over(&key, &mut group, out);
        }
        self.put_back(now, key, group, result, out);
    }

    /// Acknowledges what can be, and keeps the group while it has anything left to do.
    fn put_back(
        &mut self,
        now: Time,
        key: (NodeName, u32),
        mut group: InGroup,
        result: Result<(), GivenUp>,
        out: &mut Effects,
    ) {
        if !group.outcomes.is_empty() && !group.is_binding() {
            let outcomes = std::mem::take(&mut group.outcomes);
            group.acknowledged += outcomes.len();
            for (index, outcome) in &outcomes {
                if let (Outcome::Refused(why), Some(entry)) =
                    (outcome, group.entries.get(usize::from(*index)))
                {
                    let (by, name, why) = (self.wires.me.clone(), entry.name.clone(), why.to_string());
                    self.wires.numbers.last_problem = format!("{name} of {} is refused: {why}", key.0);
                    out.note(Note::Refused { by, name, why });
                }
            }
            self.wires.post(&key.0, &SyncMessage::Ack { group: key.1, outcomes, log: self.wires.log }, out);
        }
        if let Err(GivenUp(why)) = result {
            self.wires.numbers.last_problem = format!("from {}: {why}", key.0);
            out.note(Note::Store { what: why.clone() });
            return self.fetches.finished(now, &group, Some(&why), out);
        }
        if group.is_done() && group.outcomes.is_empty() {
            return self.fetches.finished(now, &group, None, out);
        }
        self.incoming.insert(key, group);
    }

    /// What was asked for long ago is asked for again.
    pub(super) fn repeat_wants(&mut self, now: Time, out: &mut Effects) {
        let due: Vec<(NodeName, u32)> = self
            .incoming
            .iter()
            .filter(|(_, group)| group.retry_at_ms <= now.mono_ms)
            .map(|(key, _)| key.clone())
            .collect();
        for key in due {
            if !out.has_room() {
                return;
            }
            let Some(mut group) = self.incoming.remove(&key) else { continue };
            if group.retry_wait_ms >= RETRY_MS_MAX {
                self.fetches.finished(now, &group, Some(SILENT), out);
                continue;
            }
            group.retry_wait_ms = (group.retry_wait_ms * 2).min(RETRY_MS_MAX);
            group.retry_at_ms = now.mono_ms + group.retry_wait_ms;
            self.want_again(&key, &mut group, out);
            self.incoming.insert(key, group);
        }
    }

    fn ask_for_roots(&mut self, key: &(NodeName, u32), group: &InGroup, out: &mut Effects) {
        self.ask_for(key, group, Step::Roots, Question::Has(group.roots_needed()), out);
    }

    fn ask_for(
        &mut self,
        key: &(NodeName, u32),
        group: &InGroup,
        step: Step,
        question: Question,
        out: &mut Effects,
    ) {
        let purpose = Purpose::Receive { peer: key.0.clone(), group: key.1, life: group.life, step };
        self.asked.ask(purpose, question, out);
    }
}

impl InGroup {
    fn touch(&mut self, now: Time) {
        self.heard_ms = now.mono_ms;
        self.retry_wait_ms = RETRY_MS;
        self.retry_at_ms = now.mono_ms + RETRY_MS;
    }

    /// Blocks of another group came from its sender: on a slow link its own may wait behind those.
    fn waits_behind(&mut self, now: Time) {
        if now.mono_ms < self.heard_ms + RETRY_MS_MAX {
            self.retry_at_ms = self.retry_at_ms.max(now.mono_ms + RETRY_MS);
        }
    }
}

/// Decides what becomes of an entry, from the binding that is here. `mends`: somebody here has asked for it, so what
/// is bound already is looked through for blocks that are damaged or missing.
fn plan(group: &mut InGroup, index: u16, bound: Option<Bound>, from: &NodeName, wires: &Wires, mends: bool) {
    let entry = &mut group.entries[usize::from(index)];
    let incoming = &entry.incoming;
    let expected_seq = bound.as_ref().map(|bound| bound.seq);
    let take = |binding: Binding, via: Option<NodeName>, copy, outcome| {
        Ok(Take { binding, via, expected_seq, is_bound: false, copy, outcome, binding_now: false })
    };
    let newer = || take(incoming.clone(), Some(from.clone()), None, Outcome::Stored);
    // A binding here that can not be read is worth less than one that can.
    let here = bound.and_then(|bound| Stored::decode(&bound.value).ok());
    let resolution = here.map(|here| {
        let has_forgotten = here.via.is_none() && here.binding.has_forgotten(&wires.me, incoming);
        let decide = if has_forgotten { reconcile } else { resolve };
        decide(&entry.name, &here.binding, incoming)
    });
    let planned = match resolution {
        None => newer(),
        Some(Ok(Resolution::Newer)) => newer(),
        Some(Ok(Resolution::Same)) if mends => newer().map(|take| Take { is_bound: true, ..take }),
        Some(Ok(Resolution::Same)) => Err(Outcome::Stored),
        Some(Ok(Resolution::Stale)) => Err(Outcome::Superseded),
        // A leecher writes nothing: where it differs, its master has changed.
        Some(Ok(Resolution::Merged(_) | Resolution::Conflict { .. })) if wires.role == Role::Leecher => {
            newer()
        }
        Some(Ok(Resolution::Merged(binding))) => take(binding, None, None, Outcome::Stored),
        Some(Ok(Resolution::Conflict { winner, loser_name, loser })) => {
            let via = (winner == *incoming).then(|| from.clone());
            take(winner, via, Some((loser_name, loser)), Outcome::Conflict)
        }
        Some(Err(_)) => Err(Outcome::Refused(Refusal::Writers)),
    };
    match planned {
        Ok(take) => entry.plan = Plan::Take(take),
        Err(outcome) => group.settle(index, outcome),
    }
}
