//! The loop's end of the link: gives tokens to packet ids and back.
//!
//! Duty: takes messages without waiting, hands out events, and knows which token belongs to which
//! packet id. The client library writes messages in the order it was given them, so one queue of
//! tokens is enough to name the packet ids it reports.
//! Bound: `in_flight_max` tokens, waiting and unacknowledged together.
//! Fails: on Down every pending token is discarded and never reported. Should the client library
//! panic, that is one more Down, and a new task starts.

use super::options::{Plan, valid_topic};
use super::reason;
use super::session::{Report, Session};
use super::{EVENTS_MAX, LinkEvent, Outgoing, Qos, Refused, Transport};
use rumqttc::v5::AsyncClient;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::PubAckReason;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time;

/// A link to a real broker, by rumqttc.
pub struct Link {
    plan: Arc<Plan>,
    task: JoinHandle<()>,
    reports: mpsc::Receiver<Report>,
    /// Present while the link is up.
    client: Option<AsyncClient>,
    packet_bytes_max: usize,
    /// Accepted, not yet on the socket.
    waiting: VecDeque<Pending>,
    /// On the socket, not yet acknowledged; brokers acknowledge in order.
    flying: VecDeque<(u16, Pending)>,
    /// Held back by the client library until its packet id is free.
    held: Option<(u16, Pending)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Pending {
    token: u64,
    topic: String,
    packet_bytes: usize,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Link")
            .field("plan", &self.plan)
            .field("up", &self.client.is_some())
            .field("pending", &self.pending())
            .finish_non_exhaustive()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Link {
    /// Starts the link; it connects by itself. Must be called inside a tokio runtime.
    pub fn start(plan: Plan) -> Self {
        let plan = Arc::new(plan);
        let (task, reports) = spawn(&plan, Duration::ZERO);
        Self {
            packet_bytes_max: plan.options().packet_bytes_max,
            plan,
            task,
            reports,
            client: None,
            waiting: VecDeque::new(),
            flying: VecDeque::new(),
            held: None,
        }
    }

    /// Messages accepted and not yet reported Sent.
    pub fn pending(&self) -> usize {
        self.waiting.len() + self.flying.len() + usize::from(self.held.is_some())
    }

    /// An event that is there already.
    pub fn ready(&mut self) -> Option<LinkEvent> {
        while let Ok(report) = self.reports.try_recv() {
            if let Some(event) = self.translate(report) {
                return Some(event);
            }
        }
        None
    }

    fn forget(&mut self) {
        self.client = None;
        self.waiting.clear();
        self.flying.clear();
        self.held = None;
    }

    fn translate(&mut self, report: Report) -> Option<LinkEvent> {
        match report {
            Report::Up { client, session_present, packet_bytes_max } => {
                self.forget();
                self.client = Some(client);
                let broker_max = packet_bytes_max.map_or(usize::MAX, |bytes| bytes as usize);
                self.packet_bytes_max = self.plan.options().packet_bytes_max.min(broker_max);
                Some(LinkEvent::Up { session_present })
            }
            Report::Down { reason, retry_in } => {
                self.forget();
                Some(LinkEvent::Down { reason, retry_in })
            }
            Report::Message(message) => Some(message),
            Report::Written(packet_id) => self.written(packet_id),
            Report::Held(packet_id) => {
                self.held = self.waiting.pop_front().map(|pending| (packet_id, pending));
                None
            }
            Report::Acknowledged(packet_id, answer) => self.acknowledged(packet_id, answer),
            Report::Goodbye => None,
        }
    }

    fn written(&mut self, packet_id: u16) -> Option<LinkEvent> {
        let released = self.held.take_if(|(held_id, _)| *held_id == packet_id);
        let pending = match released {
            Some((_, pending)) => pending,
            None => self.waiting.pop_front()?,
        };
        self.plan.options().air.published(pending.packet_bytes);
        if packet_id == 0 {
            return Some(LinkEvent::Sent { token: pending.token });
        }
        self.flying.push_back((packet_id, pending));
        None
    }

    fn acknowledged(&mut self, packet_id: u16, answer: PubAckReason) -> Option<LinkEvent> {
        let position = self.flying.iter().position(|(flying_id, _)| *flying_id == packet_id)?;
        let (_, pending) = self.flying.remove(position)?;
        let token = pending.token;
        if matches!(answer, PubAckReason::Success | PubAckReason::NoMatchingSubscribers) {
            return Some(LinkEvent::Sent { token });
        }
        let what = format!("the message to {:?}", pending.topic);
        Some(LinkEvent::Rejected { token, reason: reason::rejection(answer, &what) })
    }

    /// The task is gone although nobody stopped it: the client library panicked.
    fn restart(&mut self) -> LinkEvent {
        self.forget();
        let retry_in = self.plan.options().backoff.max.min(Duration::from_secs(30));
        (self.task, self.reports) = spawn(&self.plan, retry_in);
        let reason = "the MQTT client failed inside and is started anew: please report this".to_owned();
        LinkEvent::Down { reason, retry_in }
    }

    async fn farewell(&mut self, last: Option<Outgoing>) {
        if let Some(last) = last {
            while self.room() == 0 {
                if matches!(self.next().await, LinkEvent::Down { .. }) {
                    return;
                }
            }
            if self.send(last).is_err() {
                return;
            }
        }
        while self.pending() > 0 {
            if matches!(self.next().await, LinkEvent::Down { .. }) {
                return;
            }
        }
        // nothing is pending, so the request channel is empty and takes one more
        if self.client.as_ref().is_none_or(|client| client.try_disconnect().is_err()) {
            return;
        }
        while let Some(report) = self.reports.recv().await {
            if matches!(report, Report::Goodbye | Report::Down { .. }) {
                return;
            }
        }
    }
}

impl Transport for Link {
    fn send(&mut self, message: Outgoing) -> Result<(), Refused> {
        if !valid_topic(&message.topic) {
            return Err(Refused::Topic { topic: message.topic });
        }
        let packet_bytes = message.packet_bytes();
        if packet_bytes > self.packet_bytes_max {
            let (topic, bytes_max) = (message.topic, self.packet_bytes_max);
            return Err(Refused::TooLarge { topic, bytes: packet_bytes, bytes_max });
        }
        let Some(client) = &self.client else { return Err(Refused::Down(Box::new(message))) };
        if self.room() == 0 {
            return Err(Refused::Full(Box::new(message)));
        }
        let taken = client.try_publish(
            message.topic.clone(),
            match message.qos {
                Qos::AtMostOnce => QoS::AtMostOnce,
                Qos::AtLeastOnce => QoS::AtLeastOnce,
            },
            message.retain,
            message.payload.clone(),
        );
        match taken {
            Ok(()) => {
                let Outgoing { token, topic, .. } = message;
                self.waiting.push_back(Pending { token, topic, packet_bytes });
                Ok(())
            }
            // the channel holds as many as `room` counts, so the connection is gone and Down is on its way
            Err(_) => Err(Refused::Down(Box::new(message))),
        }
    }

    fn room(&self) -> usize {
        match self.client {
            Some(_) => usize::from(self.plan.options().in_flight_max).saturating_sub(self.pending()),
            None => 0,
        }
    }

    async fn next(&mut self) -> LinkEvent {
        loop {
            match self.reports.recv().await {
                Some(report) => {
                    if let Some(event) = self.translate(report) {
                        return event;
                    }
                }
                None => return self.restart(),
            }
        }
    }

    async fn close(mut self, last: Option<Outgoing>, timeout: Duration) {
        if self.client.is_some() {
            // on a timeout the connection is cut and the broker publishes the will: that is the truth
            let _in_time = time::timeout(timeout, self.farewell(last)).await.is_ok();
        }
    }
}

fn spawn(plan: &Arc<Plan>, wait_first: Duration) -> (JoinHandle<()>, mpsc::Receiver<Report>) {
    let (reports, receiver) = mpsc::channel(EVENTS_MAX);
    let session = Session::new(plan.clone(), reports);
    (tokio::spawn(session.run(wait_first)), receiver)
}
