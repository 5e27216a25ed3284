//! The sending half: announces what the log has behind a peer's cursor, and serves what the peer wants.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "an answer of another kind is one case, however many kinds there are"
)]

use super::outbox::{Echo, Layer, Lost, OutEntry, OutGroup, Outbox, SILENCE_MS, Serving, Untaken};
use super::session::{Session, cursor_key};
use super::wire::{Announce, BLOCK_HEAD, BLOCKS_HEAD, Outcome, Refusal, SyncMessage, Want, Wanted};
use super::{Asked, Peer, Purpose, RETRY_MS, RETRY_MS_MAX, Sync};
use crate::binding::{Binding, Content, Stored};
use crate::id::{BlockId, NodeName};
use crate::limits::{
    ANNOUNCE_BYTES_MAX, ANNOUNCE_ENTRIES_MAX, MESSAGE_BLOCKS_MAX, MESSAGE_BYTES_MAX, OUT_GROUPS_MAX,
    QUESTIONS_MAX, SERVE_READS_MAX,
};
use crate::message::{Answer, Bound, Change, Channel, Effects, Haste, Message, Question};
use crate::name::Name;
use crate::note::Note;
use crate::object::BLOCK_BYTES_MAX;
use crate::object::manifest::{Child, Manifest};
use crate::request::{Failure, FailureKind};
use crate::role::may_announce;
use crate::time::Time;
use bytes::Bytes;
use std::ops::Bound::{Excluded, Unbounded};

/// Milliseconds after which the log is read again when the store had no time.
const READ_AGAIN_MS: u64 = 1_000;
/// Announcements of what upstream has a later version of, before that is taken for one that will not come.
const SUPERSEDED_MAX: u8 = 10;
/// Cursors saved in one turn.
const CURSORS_MAX: usize = 128;

impl Sync {
    /// Reads on in the log for a peer, if there is room for another announcement.
    pub(super) fn pump(&mut self, now: Time, name: &NodeName, out: &mut Effects) {
        let Some(peer) = self.peers.get_mut(name) else { return };
        let allowed = may_announce(self.wires.role, peer.role);
        let outbox = &mut peer.out;
        outbox.read_at_ms = None;
        if !allowed {
            outbox.more = false;
        }
        let full = outbox.groups.len() >= OUT_GROUPS_MAX;
        if peer.session.is_none() || outbox.loading || outbox.reading || !outbox.more || full {
            return self.settle(now, name, out);
        }
        outbox.reading = true;
        let after = outbox.announced;
        let question = Question::Changes { after, limit: ANNOUNCE_ENTRIES_MAX };
        self.asked.ask(Purpose::Changes { peer: name.clone(), after }, question, out);
    }

    pub(super) fn changes_read(
        &mut self,
        now: Time,
        name: &NodeName,
        after: u64,
        answer: Answer,
        out: &mut Effects,
    ) {
        let Some(Peer { session: Some(session), out: outbox, .. }) = self.peers.get_mut(name) else { return };
        if !outbox.reading || outbox.announced != after {
            return; // rewound since
        }
        outbox.reading = false;
        let Answer::Page(page) = answer else {
            outbox.read_at_ms = Some(now.mono_ms + READ_AGAIN_MS);
            return;
        };
        outbox.more = page.len() == ANNOUNCE_ENTRIES_MAX;
        let entries = take_entries(session, name, outbox, page);
        if let Some(Echo { until: until @ None, .. }) = &mut outbox.echo
            && !outbox.more
        {
            *until = Some(outbox.announced);
        }
        let last_seq = outbox.announced;
        if !entries.is_empty() {
            self.announce(now, name, entries, Some(last_seq), None, out);
        }
        self.pump(now, name, out);
    }

    /// Opens an announcement and sends it, if there still is a session.
    pub(super) fn announce(
        &mut self,
        now: Time,
        name: &NodeName,
        entries: Vec<(Name, Binding)>,
        last_seq: Option<u64>,
        request: Option<u32>,
        out: &mut Effects,
    ) {
        let Some(peer) = self.peers.get_mut(name).filter(|peer| peer.session.is_some()) else { return };
        peer.out.next_group = peer.out.next_group.wrapping_add(1);
        let entries = entries.into_iter().map(|(name, binding)| OutEntry {
            name,
            binding,
            acknowledged: false,
            untaken: None,
            superseded: 0,
        });
        let group = OutGroup {
            id: peer.out.next_group,
            last_seq,
            request,
            entries: entries.collect(),
            serving: None,
            wanted: None,
            retry_at_ms: now.mono_ms + SILENCE_MS,
            retry_wait_ms: SILENCE_MS,
        };
        let message = announcement(&group, self.wires.log);
        peer.out.groups.push_back(group);
        self.wires.post(name, &message, out);
    }

    /// Reads on for peers for which the store had no time.
    pub(super) fn read_again(&mut self, now: Time, out: &mut Effects) {
        let due = |peer: &Peer| peer.out.read_at_ms.is_some_and(|at_ms| at_ms <= now.mono_ms);
        let due = self.peers.iter().filter(|(_, peer)| due(peer)).map(|(name, _)| name.clone());
        for name in due.take(QUESTIONS_MAX / 4).collect::<Vec<_>>() {
            self.pump(now, &name, out);
        }
    }

    /// What the peer has a later version of is bound here: announced again at once, it is known not to matter any more.
    pub(super) fn announce_now(&mut self, now: Time, name: &NodeName, of: &Name) {
        let Some(peer) = self.peers.get_mut(name) else { return };
        for group in peer.out.groups.iter_mut().filter(|group| group.is_superseded(of)) {
            group.retry_at_ms = now.mono_ms;
        }
    }

    /// As many as there is room for; the others are still due.
    pub(super) fn repeat_announcements(&mut self, now: Time, out: &mut Effects) {
        let due = |group: &OutGroup| group.retry_at_ms <= now.mono_ms && !group.is_done();
        for (name, peer) in self.peers.iter_mut().filter(|(_, peer)| peer.session.is_some()) {
            for group in peer.out.groups.iter_mut().filter(|group| due(group)) {
                if !out.has_room() {
                    return;
                }
                if group.serving.as_ref().is_some_and(Serving::is_under_way) {
                    group.touch(now); // what it waits for is the link, or the disk
                    continue;
                }
                group.serving = None;
                group.retry_wait_ms = (group.retry_wait_ms * 2).clamp(SILENCE_MS, RETRY_MS_MAX);
                group.touch(now);
                self.wires.post(name, &announcement(group, self.wires.log), out);
            }
        }
    }

    pub(super) fn peer_is_busy(&mut self, now: Time, from: &NodeName, group: u32) {
        if let Some(group) = self.peers.get_mut(from).and_then(|peer| peer.out.group(group)) {
            group.serving = None;
            group.retry_wait_ms = RETRY_MS / 4;
            group.touch(now);
        }
    }

    pub(super) fn wanted(&mut self, now: Time, from: &NodeName, want: Want, out: &mut Effects) {
        let Some(group) = self.peers.get_mut(from).and_then(|peer| peer.out.group(want.group)) else {
            return;
        };
        if group.serving.as_ref().is_some_and(|serving| serving.round >= want.round) {
            return;
        }
        group.touch(now);
        self.lives += 1;
        let life = self.lives;
        let layer = match &want.blocks {
            Wanted::Roots(_) => Layer::Roots,
            Wanted::Children { manifest, .. } => Layer::Below(*manifest),
        };
        let again = group.wanted.replace(layer) == Some(layer);
        let mut serving = Serving::new(life, want.round, again, want.limit);
        match want.blocks {
            Wanted::Roots(indices) => {
                let root = |index: u16| group.entries.get(usize::from(index)).and_then(OutEntry::root);
                serving.blocks = indices.into_iter().filter_map(root).collect();
                group.serving = Some(serving);
                self.serve(from, want.group, out);
            }
            Wanted::Children { manifest, missing } => {
                serving.wanted = Some(Wanted::Children { manifest, missing });
                group.serving = Some(serving);
                let purpose = Purpose::Manifest { peer: from.clone(), group: want.group, life };
                self.asked.ask(purpose, Question::Read(manifest), out);
            }
        }
    }

    pub(super) fn manifest_read(
        &mut self,
        name: &NodeName,
        group: u32,
        life: u64,
        answer: Answer,
        out: &mut Effects,
    ) {
        let Some(serving) = self.serving_mut(name, group).filter(|serving| serving.life == life) else {
            return;
        };
        let Some(Wanted::Children { manifest, missing }) = serving.wanted.take() else { return };
        let node = match answer {
            Answer::Block(Some(bytes)) => Manifest::decode(&bytes).ok(),
            // A disk that can not be read now may be read when it is wanted again.
            Answer::Failed(failure) if failure.kind != FailureKind::Damaged => {
                return self.stop_serving(name, group, &failure, out);
            }
            _ => None,
        };
        let Some(node) = node else {
            let message = SyncMessage::Missing { group, round: serving.round, id: manifest };
            return self.wires.post(name, &message, out);
        };
        let is_set = |index: usize| missing.get(index / 8).is_some_and(|byte| byte >> (index % 8) & 1 == 1);
        let children = node.children().iter().enumerate();
        let level = node.level();
        let block = |(_, child): (usize, &Child)| (child.id, block_bytes(level - 1, child.bytes));
        serving.blocks = children.filter(|(index, _)| is_set(*index)).map(block).collect();
        self.serve(name, group, out);
    }

    pub(super) fn credited(
        &mut self,
        from: &NodeName,
        group: u32,
        round: u32,
        limit: u32,
        out: &mut Effects,
    ) {
        let Some(serving) = self.serving_mut(from, group).filter(|serving| serving.round == round) else {
            return;
        };
        serving.limit = serving.limit.max(limit);
        self.serve(from, group, out);
    }

    /// Goes on with the transfers that wait for room on the link, while there is some, in turns.
    pub(super) fn serve_all(&mut self, out: &mut Effects) {
        for _ in 0..self.serving.len() {
            if self.wires.room() == 0 {
                return;
            }
            let last = self.served.take();
            let behind = last.as_ref().map_or(Unbounded, Excluded);
            let mut behind = self.serving.range((behind, Unbounded));
            let Some(name) = behind.next().or_else(|| self.serving.first()).cloned() else { return };
            self.served = Some(name.clone());
            let Some(peer) = self.peers.get(&name) else { continue };
            let may_read = |group: &&OutGroup| group.serving.as_ref().is_some_and(Serving::may_read);
            let groups: Vec<u32> = peer.out.groups_in_turn().filter(may_read).map(|group| group.id).collect();
            if groups.is_empty() {
                self.serving.remove(&name);
            }
            for group in groups {
                self.serve(&name, group, out);
            }
        }
    }

    /// Reads as many wanted blocks as credit, link and store allow, several messages' at a time.
    fn serve(&mut self, name: &NodeName, group_id: u32, out: &mut Effects) {
        let Some(peer) = self.peers.get_mut(name) else { return };
        let room = self.wires.room();
        if room > 0 {
            peer.out.served = group_id;
        }
        let Some(serving) = peer.out.group(group_id).and_then(|group| group.serving.as_mut()) else { return };
        for _ in 0..room {
            if !serving.may_read() {
                break;
            }
            let ids = serving.next_message();
            serving.reads += 1;
            self.wires.reads += 1;
            let purpose = Purpose::Blocks { peer: name.clone(), group: group_id, life: serving.life };
            let question = Question::Pack { group: group_id, ids, again: serving.again };
            self.asked.ask(purpose, question, out);
        }
        if serving.may_read() {
            self.serving.insert(name.clone());
        }
    }

    pub(super) fn blocks_read(
        &mut self,
        now: Time,
        name: &NodeName,
        group: u32,
        life: u64,
        answer: Answer,
        out: &mut Effects,
    ) {
        let Some(serving) = self.serving_mut(name, group).filter(|serving| serving.life == life) else {
            return;
        };
        serving.reads -= 1;
        let round = serving.round;
        let (packs, missing) = match answer {
            Answer::Packed { packs, missing } => (packs, missing),
            Answer::Failed(failure) => return self.stop_serving(name, group, &failure, out),
            _ => return,
        };
        for id in missing {
            self.wires.post(name, &SyncMessage::Missing { group, round, id }, out);
        }
        if !packs.is_empty()
            && let Some(group) = self.peers.get_mut(name).and_then(|peer| peer.out.group(group))
        {
            group.touch(now);
        }
        for pack in packs {
            self.wires.numbers.blocks_sent += u64::from(pack.blocks);
            self.wires.numbers.bytes_sent += pack.block_bytes();
            self.wires.send(name, Channel::Blocks, pack.payload, out);
        }
        self.serve(name, group, out);
    }

    /// The store has no time, or the disk fails: what is still wanted will be wanted again.
    fn stop_serving(&mut self, name: &NodeName, group: u32, failure: &Failure, out: &mut Effects) {
        if failure.kind != FailureKind::Busy {
            out.note(Note::Store { what: failure.message.clone() });
        }
        if let Some(group) = self.peers.get_mut(name).and_then(|peer| peer.out.group(group)) {
            group.serving = None;
        }
    }

    fn serving_mut(&mut self, name: &NodeName, group: u32) -> Option<&mut Serving> {
        self.peers.get_mut(name)?.out.group(group)?.serving.as_mut()
    }

    pub(super) fn acknowledged(
        &mut self,
        now: Time,
        from: &NodeName,
        group_id: u32,
        outcomes: &[(u16, Outcome)],
        out: &mut Effects,
    ) {
        let is_upstream = self.upstream.as_ref() == Some(from);
        let Some(peer) = self.peers.get_mut(from) else { return };
        let Some(group) = peer.out.group(group_id) else { return };
        let (mut conflicts, mut asked) = (Vec::new(), Vec::new());
        for (index, outcome) in outcomes {
            let Some(entry) = group.entries.get_mut(usize::from(*index)) else { continue };
            if entry.acknowledged || entry.untaken.is_some() {
                continue;
            }
            group.retry_wait_ms = SILENCE_MS;
            let untaken = match outcome {
                Outcome::Refused(why) => Some(Untaken::Refused(*why)),
                Outcome::Superseded => Some(Untaken::Superseded),
                Outcome::Stored | Outcome::Conflict => None,
            };
            // The cursor may pass only once the log knows that the master does not have it.
            entry.untaken = untaken.filter(|_| is_upstream && group.last_seq.is_some());
            entry.acknowledged = entry.untaken.is_none();
            if entry.untaken.is_some() {
                asked.push((*index, entry.name.clone()));
            }
            match outcome {
                Outcome::Superseded if entry.untaken.is_some() => {}
                Outcome::Stored | Outcome::Superseded => self.wires.numbers.objects_acknowledged += 1,
                Outcome::Conflict => {
                    self.wires.numbers.objects_acknowledged += 1;
                    conflicts.push(entry.name.clone());
                }
                Outcome::Refused(why) => {
                    let why = why.to_string();
                    self.wires.numbers.objects_refused += 1;
                    self.wires.numbers.last_problem =
                        format!("{from} refused {}: {why}", entry.name.as_str());
                    out.note(Note::Refused { by: from.clone(), name: entry.name.clone(), why });
                }
            }
        }
        group.touch(now);
        if group.is_done() {
            group.serving = None;
        }
        for name in conflicts {
            self.conflict(&name, None, out);
        }
        for (entry, name) in asked {
            let purpose = Purpose::Untaken { peer: from.clone(), group: group_id, entry };
            self.asked.ask(purpose, Question::Lookup(vec![name]), out);
        }
        self.pump(now, from, out);
    }

    /// The binding that upstream has not taken, as it is now: marked in the log, if it is still that one.
    pub(super) fn untaken_found(
        &mut self,
        now: Time,
        name: &NodeName,
        group: u32,
        entry: u16,
        answer: Answer,
        out: &mut Effects,
    ) {
        let Answer::Bindings(found) = answer else { return self.announce_again(name, group, entry) };
        let bound = found.into_iter().next().flatten();
        let Some(of) = self.untaken_entry(name, group, entry) else { return };
        let stored = bound.as_ref().and_then(|bound| Stored::decode(&bound.value).ok());
        let stored = stored.filter(|stored| stored.binding == of.binding);
        let is_own = stored.as_ref().is_some_and(|stored| stored.via.as_ref() != Some(name));
        let stored = stored.filter(|_| is_own || of.untaken != Some(Untaken::Superseded));
        if of.untaken == Some(Untaken::Superseded) && stored.is_some() {
            of.superseded += 1;
            if of.superseded < SUPERSEDED_MAX {
                return self.announce_again(name, group, entry);
            }
        }
        match (bound, stored) {
            (Some(bound), Some(stored)) if !stored.refused => {
                let value = Bytes::from(Stored { refused: true, ..stored }.encode());
                let change = Change::Bind { name: of.name.clone(), value, expected_seq: Some(bound.seq) };
                let purpose = Purpose::Untaken { peer: name.clone(), group, entry };
                self.asked.write(purpose, change, Haste::Patient, out);
            }
            (_, Some(_)) => self.mark_kept(now, name, group, entry, out),
            (_, None) => {
                // bound anew: that version goes its own way; or it came from upstream, which has replaced it
                of.acknowledged = true;
                self.pump(now, name, out);
            }
        }
    }

    /// The log knows that upstream does not have it: the cursor may pass, and what the object was made from stays.
    pub(super) fn mark_kept(
        &mut self,
        now: Time,
        name: &NodeName,
        group: u32,
        entry: u16,
        out: &mut Effects,
    ) {
        let Some(of) = self.untaken_entry(name, group, entry) else { return };
        of.acknowledged = true;
        let is_superseded = of.untaken == Some(Untaken::Superseded);
        let is_lost = is_superseded || of.untaken == Some(Untaken::Refused(Refusal::Lost));
        if is_superseded {
            let why = "it has a later version, which does not come".into();
            out.note(Note::Refused { by: name.clone(), name: of.name.clone(), why });
        }
        out.tell(Message::Undelivered { name: of.name.clone(), is_lost });
        self.pump(now, name, out);
    }

    /// The entry is announced again later.
    pub(super) fn announce_again(&mut self, name: &NodeName, group: u32, entry: u16) {
        if let Some(of) = self.untaken_entry(name, group, entry) {
            of.untaken = None;
        }
    }

    fn untaken_entry(&mut self, name: &NodeName, group: u32, entry: u16) -> Option<&mut OutEntry> {
        let entry = self.peers.get_mut(name)?.out.group(group)?.entries.get_mut(usize::from(entry))?;
        (entry.untaken.is_some() && !entry.acknowledged).then_some(entry)
    }

    /// Moves the cursor as far as it goes, and tells Ingest.
    fn settle(&mut self, now: Time, name: &NodeName, out: &mut Effects) {
        let Some(peer) = self.peers.get_mut(name) else { return };
        if peer.out.loading {
            return;
        }
        let (groups, cursor) = (peer.out.groups.len(), peer.out.cursor);
        peer.out.advance(now);
        let (moved, freed) = (peer.out.cursor > cursor, peer.out.groups.len() < groups);
        if moved {
            self.delivered(name, out);
            self.save_cursor_of(now, name, out);
        }
        if freed {
            self.pump(now, name, out);
        }
    }

    fn save_cursor_of(&mut self, now: Time, name: &NodeName, out: &mut Effects) {
        if let Some(peer) = self.peers.get_mut(name)
            && peer.out.wants_saving(now, false)
        {
            save_cursor(&mut self.asked, name, &peer.out, out);
        }
    }

    pub(super) fn delivered(&self, name: &NodeName, out: &mut Effects) {
        if self.upstream.as_ref() == Some(name)
            && let Some(peer) = self.peers.get(name)
        {
            out.tell(Message::Delivered { seq: peer.out.cursor });
        }
    }

    /// Saves the cursors that have moved far or long ago, a part at a time; the others are still due.
    pub(super) fn save_cursors(&mut self, now: Time, out: &mut Effects) {
        let peers = self.peers.iter_mut();
        let due = peers.filter_map(|(name, peer)| peer.out.wants_saving(now, false).then_some((name, peer)));
        for (name, peer) in due.take(CURSORS_MAX) {
            save_cursor(&mut self.asked, name, &peer.out, out);
        }
    }

    /// The process ends: all cursors are to be saved.
    pub fn stop(&mut self) {
        self.unsaved = self.peers.keys().cloned().collect();
    }

    /// Saves the next part of the cursors that are not saved yet, each once, whatever comes of it; whether there
    /// were any.
    pub fn save_last_cursors(&mut self, now: Time, out: &mut Effects) -> bool {
        let mut count = 0;
        while count < CURSORS_MAX
            && let Some(name) = self.unsaved.pop()
        {
            if let Some(peer) = self.peers.get_mut(&name)
                && peer.out.wants_saving(now, true)
            {
                save_cursor(&mut self.asked, &name, &peer.out, out);
                count += 1;
            }
        }
        count > 0
    }

    pub(super) fn missing(
        &mut self,
        now: Time,
        from: &NodeName,
        group: u32,
        round: u32,
        id: BlockId,
        out: &mut Effects,
    ) {
        self.give_up(now, from, group, round, id, Refusal::Lost, out);
    }
}

pub(super) fn save_cursor(asked: &mut Asked, name: &NodeName, outbox: &Outbox, out: &mut Effects) {
    let change = Change::Set { key: cursor_key(name), value: Bytes::from(outbox.value()) };
    asked.write(Purpose::CursorSaved { peer: name.clone() }, change, Haste::Patient, out);
}

/// The leading changes of a page that concern the peer and fit one message; the outbox has read so far.
fn take_entries(
    session: &Session,
    peer: &NodeName,
    outbox: &mut Outbox,
    page: Vec<(Name, Bound)>,
) -> Vec<(Name, Binding)> {
    let mut entries = Vec::new();
    let mut bytes = 0;
    for (name, bound) in page {
        // A binding that can not be read is reported by verify; it can not be announced.
        if let Ok(stored) = Stored::decode(&bound.value)
            && concerns(session, peer, &name, &stored, outbox.echo.map(|echo| echo.lost))
        {
            let size = name.as_str().len() + bound.value.len();
            if bytes + size > ANNOUNCE_BYTES_MAX {
                outbox.more = true;
                return entries;
            }
            bytes += size;
            entries.push((name, stored.binding));
        }
        outbox.announced = bound.seq;
    }
    entries
}

/// Whether a change is of the peer's business: upstream everything but what it would not take, downstream what it
/// subscribes to or has written itself; never what came from it. Save what it has lost: upstream with a store, and the
/// end of a log.
fn concerns(session: &Session, peer: &NodeName, name: &Name, stored: &Stored, lost: Option<Lost>) -> bool {
    if session.upstream && stored.refused && lost.is_none() {
        return false;
    }
    if stored.via.as_ref() == Some(peer) {
        let is_lost = lost.is_some_and(|lost| session.upstream || lost == Lost::End);
        return is_lost && !name.under("cid");
    }
    session.upstream
        || stored.binding.version.contains(peer)
        || session.subscriptions.iter().any(|prefix| name.under(prefix))
}

fn announcement(group: &OutGroup, log: u64) -> SyncMessage {
    let entries = group.entries.iter().map(|entry| (entry.name.clone(), entry.binding.clone()));
    SyncMessage::Announce(Announce {
        group: group.id,
        request: group.request,
        entries: entries.collect(),
        log,
    })
}

impl OutGroup {
    /// Whether the peer has answered that it has a later version of this name.
    pub(super) fn is_superseded(&self, name: &Name) -> bool {
        let is_it = |entry: &OutEntry| entry.superseded > 0 && !entry.acknowledged && entry.name == *name;
        self.entries.iter().any(is_it)
    }

    /// It waits from now on; ever longer until the peer settles something, for one that is full wants over and over.
    fn touch(&mut self, now: Time) {
        self.retry_at_ms = now.mono_ms + self.retry_wait_ms;
    }
}

impl OutEntry {
    fn root(&self) -> Option<(BlockId, usize)> {
        match self.binding.content {
            Content::Object { root, depth } => Some((root, block_bytes(depth, self.binding.meta.size))),
            Content::Deleted => None,
        }
    }
}

impl Serving {
    fn new(life: u64, round: u32, again: bool, limit: u32) -> Self {
        Serving { life, round, again, blocks: Vec::new(), wanted: None, next: 0, limit, reads: 0 }
    }

    /// Whether there is anything left to do when there is room.
    fn may_read(&self) -> bool {
        self.reads < SERVE_READS_MAX && self.next < self.blocks.len() && self.next < self.limit as usize
    }

    /// Whether the peer waits for what is to come from here.
    fn is_under_way(&self) -> bool {
        self.wanted.is_some() || self.reads > 0 || self.may_read()
    }

    /// The next blocks that fit one message, at least one.
    fn next_message(&mut self) -> Vec<BlockId> {
        let allowed = &self.blocks[self.next..self.blocks.len().min(self.limit as usize)];
        let mut bytes = BLOCKS_HEAD;
        let fits = |(index, (_, length)): &(usize, &(BlockId, usize))| {
            bytes += BLOCK_HEAD + length;
            *index == 0 || bytes <= MESSAGE_BYTES_MAX
        };
        let message = allowed.iter().take(MESSAGE_BLOCKS_MAX).enumerate().take_while(fits);
        let ids: Vec<BlockId> = message.map(|(_, (id, _))| *id).collect();
        self.next += ids.len();
        ids
    }
}

/// What a block should have: at depth 0 it is data of this length, above it a manifest of any length.
fn block_bytes(depth: u8, bytes: u64) -> usize {
    if depth > 0 {
        return BLOCK_BYTES_MAX;
    }
    usize::try_from(bytes).unwrap_or(BLOCK_BYTES_MAX).min(BLOCK_BYTES_MAX)
}
