//! A node: the fixed set of actors and the way messages take between them.
//!
//! `handle` is the only way in, [`Effects`] the only way out, `deadline` says when the loop must wake and
//! why. A call runs until no actor has anything left to say, or until there is no room for more effects;
//! then the deadline is at once and the next call goes on.

use crate::control::Control;
use crate::ingest::Ingest;
use crate::keeper::Keeper;
use crate::limits::{COMMAND_BYTES_MAX, MESSAGE_BYTES_MAX};
use crate::message::{Actor, Channel, Effect, Effects, Input, Message, Presence, Ticket};
use crate::note::Note;
use crate::power::Power;
use crate::power::plan::Steering;
use crate::request::{ProcessNumbers, Status};
use crate::settings::Settings;
use crate::store::Store;
use crate::sync::Sync;
use crate::time::Time;
use std::sync::Arc;

/// What ended the loop's sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// Its own timer, for this deadline.
    Timer(&'static str),
    /// Something from outside.
    By(&'static str),
}

/// All actors of one node.
pub struct Node {
    /// As configured; what the profile in force steers is put over it.
    settings: Settings,
    ingest: Ingest,
    store: Store,
    sync: Sync,
    control: Control,
    power: Power,
    keeper: Keeper,
    started_ms: u64,
    stopping: bool,
    /// Messages between actors wait for room.
    backlog: bool,
    dropped: u64,
}

impl Node {
    /// A node that has not started.
    pub fn new(settings: &Settings) -> Self {
        Node {
            settings: settings.clone(),
            ingest: Ingest::new(settings),
            store: Store::new(settings),
            sync: Sync::new(settings),
            control: Control::new(settings),
            power: Power::new(settings),
            keeper: Keeper::new(settings),
            started_ms: 0,
            stopping: false,
            backlog: false,
            dropped: 0,
        }
    }

    /// Takes over new settings; identity, store and watched folders are those of the start.
    pub fn reload(&mut self, now: Time, settings: &Settings) {
        let key = |settings: &Settings| settings.upstream().map(|peer| (peer.name.clone(), peer.key));
        if key(&self.settings) != key(settings) {
            self.ingest.forget_delivered();
            self.keeper.delivered(0);
        }
        self.settings = settings.clone();
        self.power.reload(now, settings);
        self.follow_profile(now);
    }

    /// The profile in force, for the shell; none where the settings have no plan.
    pub fn steering(&self) -> Option<&Arc<Steering>> {
        self.power.steering()
    }

    /// Puts what the profile in force steers into all actors.
    fn follow_profile(&mut self, now: Time) {
        let settings = match self.power.steering() {
            Some(steering) => self.settings.under(steering),
            None => self.settings.clone(),
        };
        self.ingest.reload(&settings);
        self.store.reload(&settings);
        self.sync.reload(now, &settings);
        self.control.reload(&settings);
        self.keeper.reload(&settings);
    }

    /// Something has happened.
    pub fn handle(&mut self, now: Time, input: Input, out: &mut Effects) {
        if !out.has_messages() {
            self.store.forget_refusal();
        }
        self.take(now, input, out);
        while out.has_room()
            && let Some(message) = out.next_message()
        {
            self.pass(now, message, out);
        }
        let (sync, control) = (&self.sync, &self.control);
        if self.power.ride(now, || sync.is_busy(now) || control.is_busy(now), out) {
            self.follow_profile(now);
        }
        self.backlog = out.has_messages();
        self.dropped = out.dropped();
        if self.stopping && self.ingest.is_quiet() && self.store.is_quiet() && !self.backlog {
            if self.sync.save_last_cursors(now, out) {
                out.tell(Message::FlushNow);
                self.backlog = true;
                return;
            }
            self.stopping = false;
            out.emit(Effect::Presence(Presence::Offline));
            out.emit(Effect::Stopped);
        }
    }

    /// When the loop must wake at the latest, in milliseconds since the start, and why.
    pub fn deadline(&self) -> Option<(u64, &'static str)> {
        if self.backlog {
            return Some((0, "go on"));
        }
        let deadlines = [
            self.ingest.deadline(),
            self.store.deadline(),
            self.sync.deadline(),
            self.control.deadline(),
            self.keeper.deadline(),
            self.power.deadline(),
        ];
        self.power.alarm(deadlines.into_iter().flatten())
    }

    /// The loop has slept so often since it last said so: this has ended the last sleep, what needs no turn the
    /// others.
    pub fn woken(&mut self, by: Woken, sleeps: u64) {
        let Some(others) = sleeps.checked_sub(1) else { return };
        self.power.woken_without_turn(others);
        match by {
            Woken::Timer(why) => self.power.woken(why, true),
            Woken::By(what) => self.power.woken(what, false),
        }
    }

    /// The shell says how long the last turn took.
    pub fn turned(&mut self, took_ms: u64) {
        self.power.turned(took_ms);
    }

    fn take(&mut self, now: Time, input: Input, out: &mut Effects) {
        match input {
            // whatever a peer says is said again: a node that goes takes nothing more upon itself
            Input::Wire { .. } if self.stopping => {}
            Input::Start => self.start(now, out),
            Input::Wake => self.wake(now, out),
            Input::JobDone { job, done } => self.store.job_done(now, job, done, out),
            Input::JobProgress { job, done, total } => self.store.job_progress(job, done, total, out),
            Input::FileDone { file, done } => self.ingest.file_done(now, file, done, out),
            Input::Cut { stream, cut } => self.ingest.was_cut(now, stream, cut, out),
            Input::FileChanged { watch, path } => self.ingest.file_changed(now, watch, path, out),
            Input::FilesMissed { watch } => self.ingest.files_missed(now, watch, out),
            Input::LinkUp => {
                out.emit(Effect::Presence(Presence::Online));
                self.sync.link_up(now, out);
                self.power.link(now, true, out);
            }
            Input::LinkDown { reason } => {
                self.sync.link_down(now, reason, out);
                self.power.link(now, false, out);
            }
            Input::Sent { token } => self.sync.sent(token, out),
            Input::Wire { from, channel: channel @ (Channel::Command | Channel::Answer), payload } => {
                if let Err(why) = self.control.wire(now, &from, channel, &payload, out) {
                    self.sync.refuse(&from, why, out);
                }
                self.sync.wire(now, &from, channel, payload, out);
            }
            Input::Wire { from, channel, payload } => self.sync.wire(now, &from, channel, payload, out),
            Input::ClientCame(client) => self.control.client_came(client, out),
            Input::ClientAsked { caller, request } => self.control.client_asked(now, caller, request, out),
            Input::ClientData { caller, bytes } => self.control.client_data(now, caller, Some(bytes), out),
            Input::ClientDataEnd { caller } => self.control.client_data(now, caller, None, out),
            Input::ClientSilent(client) => self.control.client_silent(now, client, out),
            Input::ClientReady(client) => self.control.client_ready(client, out),
            Input::ClientGone(client) => self.control.client_gone(client, out),
            Input::Measured(process) => self.measured(now, &process, out),
            Input::Sensed(readings) => {
                if self.power.sensed(now, readings, out) {
                    self.follow_profile(now);
                }
            }
            Input::Stop => self.stop(out),
        }
    }

    /// What was handed over whole is made durable and answered; nothing new is let in meanwhile.
    fn stop(&mut self, out: &mut Effects) {
        self.stopping = true;
        self.sync.stop();
        self.control.stop();
        self.ingest.stop(out);
        self.store.stop();
        out.tell(Message::FlushNow);
    }

    fn start(&mut self, now: Time, out: &mut Effects) {
        self.started_ms = now.mono_ms;
        self.control.start(out);
        self.keeper.start(now, out);
        self.power.start(now, out);
        self.ingest.wake(now, out);
    }

    fn wake(&mut self, now: Time, out: &mut Effects) {
        self.store.wake(now, out);
        self.ingest.wake(now, out);
        self.sync.wake(now, out);
        self.control.wake(now, out);
        self.keeper.wake(now, out);
    }

    fn pass(&mut self, now: Time, message: Message, out: &mut Effects) {
        match message {
            Message::Write { ticket, change, haste } => self.store.write(now, ticket, change, haste, out),
            Message::FlushNow => self.store.flush_now(now, out),
            Message::Barrier { ticket } => self.store.barrier(now, ticket, out),
            Message::Ask { ticket, question } => self.store.ask(ticket, question, out),
            Message::Grown { bytes, full } => self.keeper.grown(now, bytes, full, out),
            Message::Written { ticket: Ticket { actor, number }, done } => match actor {
                Actor::Ingest => self.ingest.written(now, number, done, out),
                Actor::Sync => self.sync.written(now, number, done, out),
                Actor::Control => self.control.written(number, done, out),
                Actor::Keeper => self.keeper.written(number, done, out),
            },
            Message::Answered { ticket: Ticket { actor, number }, answer } => match actor {
                Actor::Ingest => self.ingest.answered(now, number, answer, out),
                Actor::Sync => self.sync.answered(now, number, answer, out),
                Actor::Control => self.control.answered(now, number, answer, out),
                Actor::Keeper => {
                    let (ingest, sync, control) = (&self.ingest, &self.sync, &self.control);
                    let roots =
                        || ingest.roots().into_iter().chain(sync.roots()).chain(control.roots()).collect();
                    self.keeper.answered(now, number, answer, roots, out);
                }
            },
            Message::Changed { bytes } => self.sync.changed(now, bytes, out),
            Message::Conflicted { name, kept_as } => self.sync.conflict(&name, Some(kept_as), out),
            Message::Delivered { seq } => {
                self.ingest.delivered(now, seq, out);
                self.keeper.delivered(seq);
            }
            Message::Undelivered { name, is_lost } => self.ingest.undelivered(now, &name, is_lost),
            Message::Rebound { name, seq } => self.ingest.superseded(now, &name, seq, None),
            Message::PutBegin { caller, name, meta, patient } => {
                self.ingest.put_begin(caller, name, meta, patient, out);
            }
            Message::PutData { caller, bytes } => self.ingest.put_data(caller, bytes, out),
            Message::PutEnd { caller } => self.ingest.put_end(caller, out),
            Message::PutsHurry(client) => self.ingest.puts_hurry(client, out),
            Message::PutsGo => self.ingest.puts_go(out),
            Message::PutsGone(client) => self.ingest.puts_gone(now, client, out),
            Message::PutReady(client) => self.control.put_ready(client, out),
            Message::PutDone { caller, done } => self.control.put_done(caller, done, out),
            Message::Fetch { ticket, target, wait } => self.sync.fetch(now, ticket, target, wait, out),
            Message::Fetched { ticket, done } => self.control.fetched(ticket.number, done, out),
            Message::Progress { ticket, done, total } => {
                self.control.progress(ticket.number, done, total, out);
            }
            Message::Post { to, channel, payload } => self.post(&to, channel, payload, out),
            Message::Power { ticket, ask } => {
                if self.power.asked(now, ticket, ask, out) {
                    self.follow_profile(now);
                }
            }
            Message::PowerNews { ticket, done } => self.control.power_news(ticket.number, done, out),
            Message::SendNow => {
                self.power.wake_radio(now, out);
                self.sync.send_now(now, out);
            }
            Message::Copied { root, depth, size } => self.keeper.copied(root, depth, size),
            Message::Errand { ticket, errand } => self.keeper.asked(ticket, errand, out),
            Message::ErrandNews { ticket, news } => self.control.errand_news(ticket.number, *news, out),
        }
    }

    fn post(&mut self, to: &crate::id::NodeName, channel: Channel, payload: bytes::Bytes, out: &mut Effects) {
        let bytes_max = if channel == Channel::Command { COMMAND_BYTES_MAX } else { MESSAGE_BYTES_MAX };
        if payload.len() > bytes_max {
            let what = format!("a message of {} bytes for {to} is too large", payload.len());
            return out.note(Note::Store { what });
        }
        self.sync.relay(to, channel, payload, out);
    }

    fn measured(&mut self, now: Time, process: &ProcessNumbers, out: &mut Effects) {
        if self.power.measured(now, process, out) {
            self.follow_profile(now);
        }
        let mut power = self.power.numbers().clone();
        power.dropped = self.dropped;
        let status = Status {
            uptime_ms: now.mono_ms - self.started_ms,
            link: self.sync.link(),
            peers: self.sync.peer_statuses(),
            ingest: self.ingest.numbers().clone(),
            sync: self.sync.numbers().clone(),
            scrub: self.keeper.scrub_numbers(now),
            power,
            ..Status::default()
        };
        self.control.measured(process, &status, out);
    }
}
