//! Commands between nodes: ours to others, theirs to us.
//!
//! Refused: what is not signed by a configured peer that may command, is late, or was obeyed before; and more
//! than [`COMMANDS_OPEN_MAX`] at once. A command of ours that nobody answers fails after a while; while one that
//! takes long is under way, its asker is told so often enough.

use super::remote::Envelope;
use super::{Control, Origin, Purpose};
use crate::id::NodeName;
use crate::limits::{COMMANDS_OPEN_MAX, MESSAGE_BYTES_MAX};
use crate::message::{Answer, Change, Channel, Effects, Haste, Message};
use crate::request::{Failure, FailureKind, Request, Response, Unit};
use crate::role::may_command;
use crate::seal::Between;
use crate::time::{Deadline, Time};
use bytes::Bytes;
use std::collections::BTreeMap;

/// Milliseconds a command over MQTT may take to be answered.
const COMMAND_MS: u64 = 30_000;

/// Milliseconds between two words about a command that takes long.
const PROGRESS_MS: u64 = COMMAND_MS / 3;

/// Milliseconds without a step forward after which what takes long is taken to hang: its asker hears no more of it,
/// and no radio stays awake for it.
const HANGS_MS: u64 = 30 * 60_000;

/// A command of another node that is not answered yet.
pub(super) struct Obeying {
    given_up_at_ms: u64,
    /// How far it is, if it takes long.
    word: Option<Word>,
}

struct Word {
    /// When the asker is told.
    at_ms: u64,
    far: Response,
    /// Whether it went on since the asker was told.
    moved: bool,
    /// When that was last so.
    moved_at_ms: u64,
}

/// A command of ours that a peer has not answered.
pub(super) struct Sent {
    origin: Origin,
    to: NodeName,
    expires_at_ms: u64,
}

impl Control {
    /// Signs a command and sends it to another node.
    pub(super) fn command(
        &mut self,
        now: Time,
        origin: Origin,
        to: NodeName,
        request: Request,
        out: &mut Effects,
    ) {
        if !request.may_be_remote() {
            let why = "put and get carry data, which travels by sync: run them on the node itself";
            return self.respond(origin, Err(Failure::new(FailureKind::Invalid, why)), out);
        }
        if to == self.settings.me {
            return self.request(now, origin, request, out);
        }
        let Some(peer) = self.settings.peers.iter().find(|peer| peer.name == to) else {
            let why = format!("no [[peer]] named {to} is configured here");
            return self.respond(origin, Err(Failure::new(FailureKind::Invalid, why)), out);
        };
        if !may_command(self.settings.role, peer.role) {
            let why = format!("a {} may not command a {}: ask on {to} itself", self.settings.role, peer.role);
            return self.respond(origin, Err(Failure::new(FailureKind::Forbidden, why)), out);
        }
        self.last_counter = (self.last_counter + 1).max(u64::try_from(now.wall_ms).unwrap_or(0) * 1024);
        let counter = self.last_counter;
        let body = serde_json::to_string(&request).expect("requests hold only types that JSON has");
        let between = self.between(&to, Channel::Command);
        let expires_ms = now.wall_ms + COMMAND_MS as i64;
        let envelope = Envelope::seal(&self.settings.key, between, counter, expires_ms, body);
        let payload = Bytes::from(envelope.encode());
        out.tell(Message::Post { to: to.clone(), channel: Channel::Command, payload });
        self.sent.insert(counter, Sent { origin, to, expires_at_ms: now.mono_ms + COMMAND_MS });
    }

    fn between<'a>(&'a self, to: &'a NodeName, channel: Channel) -> Between<'a> {
        Between { fleet: &self.settings.fleet, from: &self.settings.me, to, channel }
    }

    /// A command or an answer from another node; what is not believed is said to the caller, for counting.
    pub fn wire(
        &mut self,
        now: Time,
        from: &NodeName,
        channel: Channel,
        payload: &[u8],
        out: &mut Effects,
    ) -> Result<(), String> {
        let peer = self.settings.peers.iter().find(|peer| peer.name == *from);
        let peer = peer.ok_or("no [[peer]] of this name is configured here")?;
        let between = Between { fleet: &self.settings.fleet, from, to: &self.settings.me, channel };
        let envelope = Envelope::open(payload, &peer.key, between).map_err(|error| error.to_string())?;
        if channel == Channel::Answer {
            return self.answer_came(now, from, &envelope, out);
        }
        let role = peer.role;
        if !may_command(role, self.settings.role) {
            return Err(format!("a {role} may not command a {}", self.settings.role));
        }
        // What is under way may have expired when a broker says it again: its answer is still to come.
        if self.obeying.contains_key(&(from.clone(), envelope.counter)) {
            return Err(format!("command {} is under way", envelope.counter));
        }
        if let Err(why) = self.check_command(now, &envelope) {
            // an honest asker shall not wait for an answer that can not come
            let origin = Origin::Remote(from.clone(), envelope.counter);
            self.respond(origin, Err(Failure::new(FailureKind::Forbidden, why.clone())), out);
            return Err(why);
        }
        if self.obeyed.is_none() && !self.asked.values().any(|purpose| matches!(purpose, Purpose::Counters)) {
            self.start(out);
        }
        let origin = Origin::Remote(from.clone(), envelope.counter);
        if self.obeying.len() >= COMMANDS_OPEN_MAX {
            self.obeying.retain(|_, obeying| obeying.given_up_at_ms > now.mono_ms);
        }
        if self.obeying.len() >= COMMANDS_OPEN_MAX {
            let why = format!("{COMMANDS_OPEN_MAX} commands are not answered yet; try again");
            self.respond(origin, Err(Failure::new(FailureKind::Busy, why.clone())), out);
            return Err(why);
        }
        let obeyed =
            self.obeyed.as_mut().ok_or("commands are obeyed once the store has been read; try again")?;
        let last = obeyed.entry(from.clone()).or_insert(0);
        if envelope.counter <= *last {
            return Err(format!("command {} was obeyed already", envelope.counter));
        }
        *last = envelope.counter;
        let obeying = Obeying { given_up_at_ms: now.mono_ms + COMMAND_MS, word: None };
        self.obeying.insert((from.clone(), envelope.counter), obeying);
        self.obey(now, from, &envelope, out);
        Ok(())
    }

    fn obey(&mut self, now: Time, from: &NodeName, envelope: &Envelope, out: &mut Effects) {
        let origin = Origin::Remote(from.clone(), envelope.counter);
        let request = match serde_json::from_str::<Request>(&envelope.body) {
            Ok(request) => request,
            Err(error) => {
                let failure = Failure::new(FailureKind::Invalid, format!("no such request: {error}"));
                return self.respond(origin, Err(failure), out);
            }
        };
        if request.changes_something() {
            self.save_counter(from, envelope.counter, out);
        }
        if request.takes_long()
            && let Some(obeying) = self.obeying.get_mut(&(from.clone(), envelope.counter))
        {
            let begun = Response::Progress { done: 0, total: 0, unit: Unit::Bytes };
            let (at_ms, moved_at_ms) = (now.mono_ms + PROGRESS_MS, now.mono_ms);
            obeying.word = Some(Word { at_ms, far: begun, moved: false, moved_at_ms });
        }
        self.request(now, origin, request, out);
    }

    fn check_command(&self, now: Time, envelope: &Envelope) -> Result<(), String> {
        if !self.settings.commands {
            return Err("commands over MQTT are switched off here ([node] commands)".into());
        }
        envelope.check_expiry(now.wall_ms).map_err(|error| error.to_string())
    }

    /// The counter is handed over before the effect, so it is durable no later than that.
    fn save_counter(&mut self, from: &NodeName, counter: u64, out: &mut Effects) {
        let value = Bytes::copy_from_slice(&counter.to_le_bytes());
        let change = Change::Set { key: format!("counter/{from}"), value };
        let ticket = self.ticket(Purpose::Counter);
        out.tell(Message::Write { ticket, change, haste: Haste::Patient });
    }

    fn answer_came(
        &mut self,
        now: Time,
        from: &NodeName,
        envelope: &Envelope,
        out: &mut Effects,
    ) -> Result<(), String> {
        let Some(sent) = self.sent.get_mut(&envelope.counter).filter(|sent| sent.to == *from) else {
            return Err("it answers a command that is not open".into());
        };
        sent.expires_at_ms = now.mono_ms + COMMAND_MS;
        let response: Response =
            serde_json::from_str(&envelope.body).map_err(|error| format!("no such answer: {error}"))?;
        let origin = sent.origin.clone();
        if response.is_last() {
            self.sent.remove(&envelope.counter);
        }
        self.respond(origin, Ok(response), out);
        Ok(())
    }

    /// What has become of a command of another node. How far it is waits for its time: a radio is no place for a
    /// progress bar.
    pub(super) fn answer_command(
        &mut self,
        node: NodeName,
        counter: u64,
        response: Response,
        out: &mut Effects,
    ) {
        let key = (node, counter);
        if response.is_last() {
            self.obeying.remove(&key);
            return self.post_answer(key, &response, out);
        }
        if let Some(Obeying { word: Some(word), .. }) = self.obeying.get_mut(&key) {
            word.moved |= word.far != response;
            word.far = response;
        }
    }

    fn post_answer(&self, (node, counter): (NodeName, u64), response: &Response, out: &mut Effects) {
        let mut body = answer_text(response);
        if body.len() > MESSAGE_BYTES_MAX / 2 {
            let why = "the answer does not fit one message; ask for less, or on the node itself";
            body = answer_text(&Response::Error(Failure::new(FailureKind::Invalid, why)));
        }
        let between = self.between(&node, Channel::Answer);
        let envelope = Envelope::seal(&self.settings.key, between, counter, 0, body);
        let payload = Bytes::from(envelope.encode());
        out.tell(Message::Post { to: node, channel: Channel::Answer, payload });
    }

    /// Whoever waits for something long, and would soon give up, hears how far it is.
    fn give_word(&mut self, now: Time, out: &mut Effects) {
        let mut words = Vec::new();
        for (key, obeying) in &mut self.obeying {
            let Some(word) = obeying.word.as_mut().filter(|word| word.at_ms <= now.mono_ms) else { continue };
            if std::mem::take(&mut word.moved) {
                word.moved_at_ms = now.mono_ms;
            } else if now.mono_ms - word.moved_at_ms >= HANGS_MS {
                obeying.word = None;
                continue;
            }
            word.at_ms = now.mono_ms + PROGRESS_MS;
            obeying.given_up_at_ms = now.mono_ms + COMMAND_MS;
            words.push((key.clone(), word.far.clone()));
        }
        words.into_iter().for_each(|(key, word)| self.post_answer(key, &word, out));
    }

    /// Whether an answer to a command is still awaited, here or by another node.
    pub fn is_busy(&self, now: Time) -> bool {
        !self.sent.is_empty() || self.obeying.values().any(|one| one.given_up_at_ms > now.mono_ms)
    }

    /// A deadline has come: commands without an answer have failed.
    pub fn wake(&mut self, now: Time, out: &mut Effects) {
        self.end_rests(now, out);
        self.give_word(now, out);
        let expired = |sent: &Sent| sent.expires_at_ms <= now.mono_ms;
        let counters: Vec<u64> =
            self.sent.iter().filter(|(_, sent)| expired(sent)).map(|(counter, _)| *counter).collect();
        for counter in counters {
            if !out.has_room() {
                return;
            }
            if let Some(sent) = self.sent.remove(&counter) {
                let why = format!(
                    "{} has not answered within {} s: it may be offline, refuse commands, or not know this node's key",
                    sent.to,
                    COMMAND_MS / 1000
                );
                self.respond(sent.origin, Err(Failure::new(FailureKind::Unreachable, why)), out);
            }
        }
    }

    /// The earliest moment something here must be done.
    pub fn deadline(&self) -> Option<Deadline> {
        let expires_at_ms = self.sent.values().map(|sent| sent.expires_at_ms).min();
        let expires = expires_at_ms.map(|at_ms| Deadline {
            at_ms,
            slack_ms: 1_000,
            why: "a command without an answer",
        });
        let words = self.obeying.values().filter_map(|obeying| obeying.word.as_ref());
        let word_at_ms = words.map(|word| word.at_ms).min();
        let word =
            word_at_ms.map(|at_ms| Deadline { at_ms, slack_ms: 1_000, why: "a command that takes long" });
        [expires, word, self.rest_deadline()].into_iter().flatten().min_by_key(|deadline| deadline.at_ms)
    }
}

fn answer_text(response: &Response) -> String {
    serde_json::to_string(response).expect("answers hold only types that JSON has")
}

/// The counters obeyed so far; without them no command is obeyed, or an old one could come again.
pub(super) fn read_counters(answer: Answer) -> Option<BTreeMap<NodeName, u64>> {
    let Answer::Settings(settings) = answer else { return None };
    let read = |(key, value): (String, Bytes)| {
        let node = key.strip_prefix("counter/")?.parse().ok()?;
        Some((node, u64::from_le_bytes(value.as_ref().try_into().ok()?)))
    };
    Some(settings.into_iter().filter_map(read).collect())
}
