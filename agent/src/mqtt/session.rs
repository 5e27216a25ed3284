//! The task that polls the client library, one connection after the other, for ever.
//!
//! Duty: connects, subscribes, turns the library's events into [`Report`]s, notices connections
//! that are dead without saying so, and waits between connections as [`Backoff`] says.
//! Refuses: to carry anything from one connection to the next. Client and event loop are made anew
//! each time, so a lost session, a collision or a half-written packet ends with its connection.
//! Bound: the report channel; while it is full nothing is read from the broker.
//! Fails: every connection ends in one [`Report::Down`]; the task ends when the link is dropped.
//!
//! `EventLoop::poll` is never cancelled and continued: it loses packets. It is cancelled only
//! together with its connection, when the watchdog gives that up.

use super::LinkEvent;
use super::backoff::Backoff;
use super::options::{CONNECT_SECONDS_MAX, Plan};
use super::reason::{self, Ending, Reached};
use rumqttc::Outgoing as Written;
use rumqttc::v5::mqttbytes::v5::{ConnAck, Packet, PubAckReason, Publish, SubAck, SubscribeReasonCode};
use rumqttc::v5::{AsyncClient, Event, EventLoop};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{self, Instant};

/// Keep-alives without an acknowledgement after which a connection with waiting messages ends.
const UNACKNOWLEDGED_KEEP_ALIVES: u32 = 3;
/// Keep-alives without any event after which a connection ends; a ping is an event.
const SILENT_KEEP_ALIVES: u32 = 2;
const UP_WITHIN: Duration = Duration::from_secs(2 * CONNECT_SECONDS_MAX);

/// What the task tells the link.
pub(super) enum Report {
    Up {
        client: AsyncClient,
        session_present: bool,
        packet_bytes_max: Option<u32>,
    },
    Down {
        reason: String,
        retry_in: Duration,
    },
    Message(LinkEvent),
    /// The next accepted message is on the socket under this packet id; 0 is QoS 0.
    Written(u16),
    /// The next accepted message waits until an older one with its packet id is acknowledged.
    Held(u16),
    Acknowledged(u16, PubAckReason),
    /// The goodbye is on the socket.
    Goodbye,
}

/// The link was dropped; the task has nothing more to do.
struct Gone;

pub(super) struct Session {
    plan: Arc<Plan>,
    reports: mpsc::Sender<Report>,
    backoff: Backoff,
    kicks: u32,
    clean_start: bool,
    /// Subscribed once in this run: a kept session needs no second SUBSCRIBE.
    subscribed: bool,
}

impl Session {
    pub(super) fn new(plan: Arc<Plan>, reports: mpsc::Sender<Report>) -> Self {
        let backoff = Backoff::new(plan.options().backoff);
        let clean_start = plan.options().clean_start;
        Self { plan, reports, backoff, kicks: 0, clean_start, subscribed: false }
    }

    /// Runs until the link is dropped.
    pub(super) async fn run(mut self, wait_first: Duration) {
        time::sleep(wait_first).await;
        loop {
            let mut connection = Connection::new(&self);
            let Ok(ending) = connection.run().await else { return };
            connection.count_rest(&ending);
            let reached = Reached {
                up_for: connection.up_since.map(|since| since.elapsed()),
                progress: connection.progress,
                kicks: self.kicks,
            };
            self.subscribed |= connection.up_since.is_some();
            let verdict = reason::judge(&ending, reached, self.plan.options());
            self.kicks = if verdict.kicked { self.kicks + 1 } else { 0 };
            // once up, the options' wish for a clean start is fulfilled
            self.clean_start = verdict.oversized || (self.clean_start && reached.up_for.is_none());
            let retry_in = self.backoff.after(verdict.ended);
            drop(connection);
            if self.reports.send(Report::Down { reason: verdict.words, retry_in }).await.is_err() {
                return;
            }
            time::sleep(retry_in).await;
        }
    }
}

struct Connection {
    reports: mpsc::Sender<Report>,
    plan: Arc<Plan>,
    client: AsyncClient,
    event_loop: EventLoop,
    subscribe_always: bool,
    started: Instant,
    up_since: Option<Instant>,
    /// Connected; waiting for the SUBACK with these facts at hand.
    subscribing: Option<(bool, Option<u32>)>,
    progress: bool,
    unacknowledged: u32,
    acknowledged_last: Instant,
}

impl Connection {
    fn new(session: &Session) -> Self {
        let options = session.plan.connection(session.clean_start);
        let capacity = usize::from(session.plan.options().in_flight_max);
        let (client, event_loop) = AsyncClient::new(options, capacity);
        Self {
            reports: session.reports.clone(),
            plan: session.plan.clone(),
            client,
            event_loop,
            subscribe_always: !session.subscribed,
            started: Instant::now(),
            up_since: None,
            subscribing: None,
            progress: false,
            unacknowledged: 0,
            acknowledged_last: Instant::now(),
        }
    }

    async fn run(&mut self) -> Result<Ending, Gone> {
        loop {
            let Some(patience) = self.patience() else { return Ok(Ending::Silent) };
            let event = match time::timeout(patience, self.event_loop.poll()).await {
                Err(_) => return Ok(Ending::Silent),
                Ok(Err(error)) => return Ok(Ending::Error(Box::new(error))),
                Ok(Ok(event)) => event,
            };
            self.count(&event);
            let ending = match event {
                Event::Incoming(packet) => self.incoming(packet).await?,
                Event::Outgoing(written) => self.written(written).await?,
            };
            if let Some(ending) = ending {
                return Ok(ending);
            }
            let keep_alive = self.event_loop.options.keep_alive();
            let patience = keep_alive * UNACKNOWLEDGED_KEEP_ALIVES;
            if self.unacknowledged > 0 && self.acknowledged_last.elapsed() > patience {
                return Ok(Ending::Unacknowledged);
            }
        }
    }

    fn count(&self, event: &Event) {
        self.plan.options().air.told(event, &self.plan, &self.event_loop.options);
    }

    /// Counts what the library had not told yet. Where it was its poll that failed or hung, what that was to write was
    /// not written.
    fn count_rest(&mut self, ending: &Ending) {
        let is_written = matches!(ending, Ending::SubscriptionRefused { .. } | Ending::Unacknowledged);
        for event in std::mem::take(&mut self.event_loop.state.events) {
            if is_written || matches!(event, Event::Incoming(_)) {
                self.count(&event);
            }
        }
        if self.subscribing.is_none() && self.up_since.is_none() {
            self.plan.options().air.unanswered(ending, &self.event_loop.options);
        }
    }

    /// How long the next poll may take; none when the connection has no time left to come up.
    fn patience(&self) -> Option<Duration> {
        if self.up_since.is_some() {
            return Some(self.event_loop.options.keep_alive() * SILENT_KEEP_ALIVES);
        }
        UP_WITHIN.checked_sub(self.started.elapsed())
    }

    async fn report(&mut self, report: Report) -> Result<(), Gone> {
        self.reports.send(report).await.map_err(|_| Gone)
    }

    async fn incoming(&mut self, packet: Packet) -> Result<Option<Ending>, Gone> {
        match packet {
            Packet::ConnAck(answer) => self.connected(&answer).await,
            Packet::SubAck(answer) => self.subscribed(&answer).await,
            Packet::Publish(publish) => {
                // a broker may send retained messages before its SUBACK; it works through our
                // packets in order, so whatever we send from now on comes after the subscription
                self.up().await?;
                self.progress = true;
                if let Some(message) = message(publish) {
                    self.report(Report::Message(message)).await?;
                }
                Ok(None)
            }
            Packet::PubAck(answer) => {
                self.progress = true;
                self.unacknowledged = self.unacknowledged.saturating_sub(1);
                self.acknowledged_last = Instant::now();
                self.report(Report::Acknowledged(answer.pkid, answer.reason)).await?;
                Ok(None)
            }
            Packet::Auth(_)
            | Packet::Connect(..)
            | Packet::PingReq(_)
            | Packet::PingResp(_)
            | Packet::Subscribe(_)
            | Packet::PubRec(_)
            | Packet::PubRel(_)
            | Packet::PubComp(_)
            | Packet::Unsubscribe(_)
            | Packet::UnsubAck(_)
            | Packet::Disconnect(_) => Ok(None),
        }
    }

    async fn connected(&mut self, answer: &ConnAck) -> Result<Option<Ending>, Gone> {
        if self.event_loop.options.keep_alive().is_zero() {
            self.event_loop.options.set_keep_alive(self.plan.options().keep_alive);
        }
        let packet_bytes_max = answer.properties.as_ref().and_then(|properties| properties.max_packet_size);
        self.subscribing = Some((answer.session_present, packet_bytes_max));
        let filters = self.plan.filters();
        if filters.is_empty() || (answer.session_present && !self.subscribe_always) {
            self.up().await?;
            return Ok(None);
        }
        // fails only on a full channel, and nothing else was sent on this connection yet
        let sent = self.client.try_subscribe_many(filters);
        debug_assert!(sent.is_ok(), "the first request of a connection finds room");
        Ok(None)
    }

    async fn subscribed(&mut self, answer: &SubAck) -> Result<Option<Ending>, Gone> {
        let refused =
            answer.return_codes.iter().position(|code| !matches!(code, SubscribeReasonCode::Success(_)));
        if let Some(position) = refused {
            let filter = self.plan.options().subscriptions.get(position).cloned().unwrap_or_default();
            let code = format!("{:?}", answer.return_codes[position]);
            return Ok(Some(Ending::SubscriptionRefused { filter, code }));
        }
        self.up().await?;
        Ok(None)
    }

    async fn up(&mut self) -> Result<(), Gone> {
        let Some((session_present, packet_bytes_max)) = self.subscribing.take() else { return Ok(()) };
        self.up_since = Some(Instant::now());
        self.report(Report::Up { client: self.client.clone(), session_present, packet_bytes_max }).await
    }

    async fn written(&mut self, written: Written) -> Result<Option<Ending>, Gone> {
        match written {
            Written::Publish(packet_id) => {
                if packet_id != 0 {
                    if self.unacknowledged == 0 {
                        self.acknowledged_last = Instant::now();
                    }
                    self.unacknowledged += 1;
                }
                self.report(Report::Written(packet_id)).await?;
            }
            Written::AwaitAck(packet_id) => self.report(Report::Held(packet_id)).await?,
            Written::Disconnect => self.report(Report::Goodbye).await?,
            Written::Subscribe(_)
            | Written::Unsubscribe(_)
            | Written::PubAck(_)
            | Written::PubRec(_)
            | Written::PubRel(_)
            | Written::PubComp(_)
            | Written::PingReq
            | Written::PingResp => {}
        }
        Ok(None)
    }
}

/// The message in our words; none when its topic is not text, which no node of ours publishes.
fn message(publish: Publish) -> Option<LinkEvent> {
    let Ok(topic) = String::from_utf8(publish.topic.to_vec()) else {
        tracing::warn!(bytes = publish.payload.len(), "a message whose topic is not UTF-8 was dropped");
        return None;
    };
    Some(LinkEvent::Message { topic, payload: publish.payload })
}
