//! Connections that can wait.
//!
//! A put may say that it is patient: neither it nor what its connection says next is in a hurry. Such a
//! connection, when it has said all for now, *rests*: it is not read, and the processor is not woken for it.
//! Between five and seven eighths of the profile's flush age later all that rest are read together, and what
//! they have put goes in one batch, so that nothing is answered later than that age unless writing takes longer than an
//! eighth of it. Profiles with a short age have no rests, which would save nothing.

use super::{Client, Control};
use crate::limits::REQUESTS_PER_CLIENT_MAX;
use crate::message::{Caller, ClientId, Effect, Effects, Message};
use crate::request::Request;
use crate::time::{Deadline, Time};

/// With a shorter flush age nobody rests.
const REST_AGE_MS_MIN: u64 = 1_000;

/// How a connection is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Reading {
    /// Whatever it says wakes the node.
    #[default]
    Listening,
    /// What it has said already is read, then it rests.
    Draining,
    /// Not at all.
    Resting,
    /// It has rested: what it has said meanwhile is read, then it is listened to.
    Waking,
}

impl Control {
    /// Whether anybody rests under this profile.
    pub(super) fn rests(&self) -> bool {
        self.settings.flush.age_ms >= REST_AGE_MS_MIN
    }

    /// Whether this request leaves its connection patient.
    pub(super) fn is_patient(&self, request: &Request) -> bool {
        matches!(request, Request::Put { patient: true, .. }) && self.rests()
    }

    /// The data of a put is complete.
    pub(super) fn put_ended(&mut self, now: Time, caller: Caller) {
        let is_patient = |client: &&mut Client| client.open.get(&caller.number) == Some(&true);
        let Some(client) = self.clients.get_mut(&caller.client).filter(is_patient) else { return };
        match client.reading {
            Reading::Waking => {} // it goes with all that was said meanwhile
            Reading::Listening | Reading::Draining | Reading::Resting => {
                client.reading = Reading::Draining;
                self.rest_ms.get_or_insert(now.mono_ms);
            }
        }
    }

    /// Reads a connection on, if there is room for what it may say.
    pub(super) fn pull(&mut self, id: ClientId, out: &mut Effects) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        if client.pulled || client.held || self.stopping {
            return;
        }
        if client.open.len() >= REQUESTS_PER_CLIENT_MAX {
            // what it has put may be what it waits for
            return out.tell(Message::PutsGo);
        }
        client.pulled = client.reading != Reading::Resting;
        match client.reading {
            Reading::Listening => out.emit(Effect::Pull(id)),
            Reading::Draining | Reading::Waking => out.emit(Effect::PullIfThere(id)),
            Reading::Resting => {}
        }
    }

    /// A connection has said all for now.
    pub fn client_silent(&mut self, now: Time, id: ClientId, out: &mut Effects) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        client.pulled = false;
        if client.reading == Reading::Draining {
            client.reading = Reading::Resting;
            self.rest_ms.get_or_insert(now.mono_ms);
        } else {
            client.reading = Reading::Listening;
            self.pull(id, out);
            self.go_when_all_are_read(out);
        }
    }

    /// The last of those that have rested is silent, or gone.
    pub(super) fn go_when_all_are_read(&mut self, out: &mut Effects) {
        let is_waking = |client: &Client| client.reading == Reading::Waking;
        if !self.clients.values().any(is_waking) {
            out.tell(Message::PutsGo);
        }
    }

    pub(super) fn end_rests(&mut self, now: Time, out: &mut Effects) {
        if self.rest_deadline().is_none_or(|deadline| now.mono_ms < deadline.at_ms) {
            return;
        }
        self.rest_ms = None;
        let resting: Vec<ClientId> = self
            .clients
            .iter()
            .filter(|(_, one)| one.reading == Reading::Resting)
            .map(|(id, _)| *id)
            .collect();
        for id in &resting {
            if let Some(client) = self.clients.get_mut(id) {
                client.reading = Reading::Waking;
            }
        }
        resting.into_iter().for_each(|id| self.pull(id, out));
        self.go_when_all_are_read(out);
    }

    pub(super) fn rest_deadline(&self) -> Option<Deadline> {
        let age_ms = self.settings.flush.age_ms;
        let at_ms = self.rest_ms?.saturating_add(age_ms / 8 * 5);
        Some(Deadline { at_ms, slack_ms: age_ms / 4, why: "patient puts" })
    }
}
