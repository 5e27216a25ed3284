//! The MQTT link against a real Mosquitto and against the embedded broker: one suite for both.
//!
//! Every claim in [`contract`] is a test on each broker. [`scripted`] has the claims about
//! brokers that behave in ways only a scripted one does on demand.
#![expect(clippy::wildcard_enum_match_arm, reason = "a test waits for one event and passes the others by")]

mod scripted;

use bytes::Bytes;
use larder::mqtt::embedded::{Embedded, EmbeddedOptions, EmbeddedTls};
use larder::mqtt::{
    Air, BackoffOptions, Link, LinkEvent, LinkOptions, LinkOptionsError, Outgoing, Plan, Qos, Refused,
    TlsOptions, Transport, Will,
};
use larder_core::request::AirNumbers;
use larder_tests::broker::{Certificates, Config, Identity, Mosquitto, Proxy, free_port};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

const SOON: Duration = Duration::from_secs(30);

#[derive(Clone, Copy)]
enum Kind {
    Mosquitto,
    Embedded,
}

#[derive(Default)]
struct Setup<'a> {
    port: Option<u16>,
    login: Option<(&'a str, &'a str)>,
    tls: Option<&'a Certificates>,
}

enum Broker {
    Mosquitto(Box<Mosquitto>),
    Embedded(Box<Embedded>),
}

impl Broker {
    async fn start(kind: Kind, setup: Setup<'_>) -> Self {
        match kind {
            Kind::Mosquitto => {
                let Setup { port, login, tls } = setup;
                let config = Config { port, login, tls, persistence: true, ..Config::default() };
                Self::Mosquitto(Box::new(Mosquitto::start(config)))
            }
            Kind::Embedded => {
                let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, setup.port.unwrap_or(0)));
                let owned = |(user, password): (&str, &str)| (user.to_owned(), password.to_owned());
                let tls = setup.tls.map(|certificates| {
                    let Identity { certificate, key } = certificates.broker();
                    EmbeddedTls { ca: certificates.ca(), certificate, key }
                });
                let options = EmbeddedOptions { listen, tls, login: setup.login.map(owned) };
                let embedded = Embedded::start(options).await.expect("the embedded broker starts");
                Self::Embedded(Box::new(embedded))
            }
        }
    }

    fn port(&self) -> u16 {
        match self {
            Self::Mosquitto(mosquitto) => mosquitto.port(),
            Self::Embedded(embedded) => embedded.address().port(),
        }
    }

    async fn stop(&mut self) {
        match self {
            Self::Mosquitto(mosquitto) => mosquitto.stop(),
            Self::Embedded(embedded) => embedded.cut().await,
        }
    }

    async fn restart(&mut self, keep_state: bool) {
        match self {
            Self::Mosquitto(mosquitto) => mosquitto.restart(keep_state),
            Self::Embedded(embedded) if keep_state => {
                embedded.restore().await.expect("the port is still free")
            }
            Self::Embedded(embedded) => {
                let listen = embedded.address();
                embedded.cut().await;
                let options = EmbeddedOptions { listen, tls: None, login: None };
                **embedded = Embedded::start(options).await.expect("the port is still free");
            }
        }
    }
}

fn options(port: u16, client_id: &str, subscriptions: &[&str]) -> LinkOptions {
    let mut options = LinkOptions::new("127.0.0.1", port, client_id);
    options.subscriptions = subscriptions.iter().map(|&filter| filter.to_owned()).collect();
    options.backoff =
        BackoffOptions { min: Duration::from_millis(20), max: Duration::from_millis(400), seed: 1 };
    options
}

fn start(options: LinkOptions) -> Link {
    Link::start(Plan::new(options).expect("the options are fine"))
}

fn message(token: u64, topic: &str, payload: impl Into<Bytes>) -> Outgoing {
    Outgoing::new(token, topic, payload, Qos::AtLeastOnce)
}

/// Waits for the first event that `wanted` turns into a value.
async fn until<T>(link: &mut Link, what: &str, mut wanted: impl FnMut(&LinkEvent) -> Option<T>) -> T {
    let mut seen = Vec::new();
    let search = async {
        loop {
            let event = link.next().await;
            if let Some(found) = wanted(&event) {
                return found;
            }
            seen.push(brief(&event));
        }
    };
    match timeout(SOON, search).await {
        Ok(found) => found,
        Err(_) => panic!("no {what}; instead: {seen:?}"),
    }
}

fn brief(event: &LinkEvent) -> String {
    let mut text = format!("{event:?}");
    let end = (0..=200.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    text.truncate(end);
    text
}

async fn up(link: &mut Link) -> bool {
    until(link, "Up", |event| match event {
        LinkEvent::Up { session_present } => Some(*session_present),
        _ => None,
    })
    .await
}

async fn down(link: &mut Link) -> String {
    until(link, "Down", |event| match event {
        LinkEvent::Down { reason, .. } => Some(reason.clone()),
        _ => None,
    })
    .await
}

async fn sent(link: &mut Link, wanted: u64) {
    until(link, "Sent", |event| match event {
        LinkEvent::Sent { token } if *token == wanted => Some(()),
        LinkEvent::Rejected { reason, .. } => panic!("{reason}"),
        _ => None,
    })
    .await;
}

async fn payload_on(link: &mut Link, wanted: &str) -> Bytes {
    until(link, "message", |event| match event {
        LinkEvent::Message { topic, payload, .. } if topic == wanted => Some(payload.clone()),
        _ => None,
    })
    .await
}

async fn connected(port: u16, client_id: &str, subscriptions: &[&str]) -> Link {
    let mut link = start(options(port, client_id, subscriptions));
    up(&mut link).await;
    link
}

macro_rules! contract {
    ($($claim:ident),* $(,)?) => {
        mod on_mosquitto { $(#[tokio::test] async fn $claim() { super::$claim(super::Kind::Mosquitto).await; })* }
        mod on_embedded { $(#[tokio::test] async fn $claim() { super::$claim(super::Kind::Embedded).await; })* }
    };
}

contract!(
    a_block_and_its_answer_make_the_round_trip,
    retained_messages_and_odd_topics_arrive,
    a_broker_absent_at_the_start_is_waited_for,
    a_restart_with_state_keeps_the_session,
    a_restart_without_state_is_subscribed_again,
    a_refused_login_says_so,
    certificates_decide_who_may_publish,
    a_link_that_drops_after_every_nth_packet_always_comes_back,
    two_agents_with_one_client_id_both_say_so,
    oversized_messages_are_refused_before_they_enter,
    an_oversized_message_of_a_stranger_does_not_stop_the_link,
    the_will_of_a_killed_link_is_published,
    a_closed_link_says_goodbye_and_its_will_is_not_published,
    messages_on_their_way_never_exceed_the_bound,
    a_link_counts_every_packet_whole,
);

async fn a_block_and_its_answer_make_the_round_trip(kind: Kind) {
    let broker = Broker::start(kind, Setup::default()).await;
    let mut asker = connected(broker.port(), "asker", &["answers/#"]).await;
    let mut other = connected(broker.port(), "other", &["t/#"]).await;
    let block = Bytes::from((0..120 * 1024).map(|number| (number % 251) as u8).collect::<Vec<u8>>());
    asker.send(message(7, "t/x", block.clone())).expect("there is room");
    sent(&mut asker, 7).await;
    assert!(payload_on(&mut other, "t/x").await == block);
    other.send(Outgoing::new(8, "answers/asker", &b"yes"[..], Qos::AtMostOnce)).expect("there is room");
    sent(&mut other, 8).await;
    assert_eq!(payload_on(&mut asker, "answers/asker").await, b"yes"[..]);
}

async fn retained_messages_and_odd_topics_arrive(kind: Kind) {
    let broker = Broker::start(kind, Setup::default()).await;
    let mut teller = connected(broker.port(), "teller", &[]).await;
    for number in 0..150 {
        while teller.room() == 0 {
            teller.next().await;
        }
        let state = Outgoing { retain: true, ..message(number, &format!("été/{number}"), "on") };
        teller.send(state).expect("there is room");
    }
    sent(&mut teller, 149).await;
    let mut late = connected(broker.port(), "late", &["été/#"]).await;
    let mut missing: BTreeSet<String> = (0..150).map(|number| format!("été/{number}")).collect();
    until(&mut late, "every retained message", |event| {
        if let LinkEvent::Message { topic, .. } = event {
            missing.remove(topic);
        }
        missing.is_empty().then_some(())
    })
    .await;
}

async fn a_broker_absent_at_the_start_is_waited_for(kind: Kind) {
    let port = free_port();
    let mut link = start(options(port, "cam", &["t/#"]));
    let reason = down(&mut link).await;
    assert!(reason.contains("nothing listens") && reason.contains(&port.to_string()), "{reason}");
    assert_eq!(link.room(), 0);
    assert!(matches!(link.send(message(1, "t/x", "early")), Err(Refused::Down(_))));
    let _broker = Broker::start(kind, Setup { port: Some(port), ..Setup::default() }).await;
    assert!(!up(&mut link).await);
    link.send(message(2, "t/x", "now")).expect("there is room");
    assert_eq!(payload_on(&mut link, "t/x").await, "now");
}

async fn a_restart_with_state_keeps_the_session(kind: Kind) {
    let mut broker = Broker::start(kind, Setup::default()).await;
    let mut cam = connected(broker.port(), "cam", &["t/#"]).await;
    broker.stop().await;
    down(&mut cam).await;
    broker.restart(true).await;
    assert!(up(&mut cam).await, "the session is gone");
    let mut hub = connected(broker.port(), "hub", &[]).await;
    hub.send(message(1, "t/x", "after")).expect("there is room");
    assert_eq!(payload_on(&mut cam, "t/x").await, "after");
}

async fn a_restart_without_state_is_subscribed_again(kind: Kind) {
    let mut broker = Broker::start(kind, Setup::default()).await;
    let mut cam = connected(broker.port(), "cam", &["t/#"]).await;
    broker.restart(false).await;
    down(&mut cam).await;
    assert!(!up(&mut cam).await, "there should be no session");
    let mut hub = connected(broker.port(), "hub", &[]).await;
    hub.send(message(1, "t/x", "after")).expect("there is room");
    assert_eq!(payload_on(&mut cam, "t/x").await, "after");
}

async fn a_refused_login_says_so(kind: Kind) {
    let setup = Setup { login: Some(("cam", "right-one")), ..Setup::default() };
    let broker = Broker::start(kind, setup).await;
    let mut wrong = options(broker.port(), "cam", &[]);
    wrong.login = Some(("cam".to_owned(), "wrong-one".to_owned()));
    let reason = down(&mut start(wrong.clone())).await;
    assert!(reason.contains("refuses the login") && reason.contains("\"cam\""), "{reason}");
    assert!(!reason.contains("wrong-one"), "{reason}");
    let reason = down(&mut start(LinkOptions { login: None, ..wrong.clone() })).await;
    assert!(reason.contains("refuses the login (no user)"), "{reason}");
    up(&mut start(LinkOptions { login: Some(("cam".to_owned(), "right-one".to_owned())), ..wrong })).await;
}

fn with_tls(
    port: u16,
    name: &str,
    filters: &[&str],
    authority: &Certificates,
    identity: Option<Identity>,
) -> Link {
    let (certificate, key) = match identity {
        Some(identity) => (Some(identity.certificate), Some(identity.key)),
        None => (None, None),
    };
    let mut options = options(port, name, filters);
    options.host = "localhost".to_owned();
    options.tls = Some(TlsOptions { ca: authority.ca(), certificate, key });
    start(options)
}

async fn certificates_decide_who_may_publish(kind: Kind) {
    let ours = Certificates::new();
    let broker = Broker::start(kind, Setup { tls: Some(&ours), ..Setup::default() }).await;
    let port = broker.port();
    let own = |name: &str| format!("larder/1/farm/{name}/#");
    let mut hub = with_tls(port, "hub", &[&own("hub"), "larder/1/+/+/state"], &ours, Some(ours.node("hub")));
    let mut cam = with_tls(port, "cam", &[&own("cam"), &own("hub")], &ours, Some(ours.node("cam")));
    up(&mut hub).await;
    up(&mut cam).await;

    for (token, topic) in (1..).zip(["hub/sync/cam/data", "hub/cmd/cam", "hub/resp/cam", "cam/state"]) {
        let topic = format!("larder/1/farm/{topic}");
        let block = Bytes::from(vec![token as u8; 120 * 1024]);
        cam.send(message(token, &topic, block.clone())).expect("there is room");
        assert!(payload_on(&mut hub, &topic).await == block);
    }
    sent(&mut cam, 4).await;
    for (token, topic) in (10..).zip(["hub/state", "hub/sync/other/data", "hub/cmd/other", "hub/tele"]) {
        cam.send(message(token, &format!("larder/1/farm/{topic}"), "forged")).expect("there is room");
        let reason = until(&mut cam, "Rejected", |event| match event {
            LinkEvent::Rejected { token: rejected, reason } if *rejected == token => Some(reason.clone()),
            _ => None,
        });
        let reason = reason.await;
        assert!(reason.contains(topic) && reason.contains("ACL"), "{reason}");
    }
    // hub hears its own telemetry; cam asked for it too, must not, and hears what comes after
    hub.send(message(20, "larder/1/farm/hub/tele", "private")).expect("there is room");
    hub.send(message(21, "larder/1/farm/cam/cmd/hub", "after")).expect("there is room");
    assert_eq!(payload_on(&mut hub, "larder/1/farm/hub/tele").await, "private");
    until(&mut cam, "the command", |event| match event {
        LinkEvent::Message { topic, .. } if topic.contains("tele") => panic!("cam reads hub's telemetry"),
        LinkEvent::Message { topic, .. } => topic.ends_with("cam/cmd/hub").then_some(()),
        _ => None,
    })
    .await;

    let reason = down(&mut with_tls(port, "nobody", &[], &ours, None)).await;
    assert!(reason.contains("TLS") && reason.contains("[mqtt] certificate"), "{reason}");
    let theirs = Certificates::new();
    let reason = down(&mut with_tls(port, "cam", &[], &theirs, Some(ours.node("cam")))).await;
    assert!(reason.contains("[mqtt] ca"), "{reason}");
    let reason = down(&mut with_tls(port, "cam", &[], &ours, Some(theirs.node("cam")))).await;
    assert!(reason.contains("does not accept this node's certificate"), "{reason}");
}

/// An outbox as the layers above keep it: everything not Sent is sent again after each Up.
struct Outbox {
    waiting: BTreeMap<u64, Bytes>,
    on_the_way: BTreeSet<u64>,
    ups: u32,
    downs: u32,
}

impl Outbox {
    fn push(&mut self, link: &mut Link) {
        for (token, payload) in &self.waiting {
            if self.on_the_way.contains(token) {
                continue;
            }
            match link.send(message(*token, "t/x", payload.clone())) {
                Ok(()) => self.on_the_way.insert(*token),
                Err(Refused::Full(_) | Refused::Down(_)) => return,
                Err(other) => panic!("{other}"),
            };
        }
    }

    fn take(&mut self, event: &LinkEvent) {
        match event {
            LinkEvent::Up { .. } => {
                self.ups += 1;
                assert_eq!(self.ups, self.downs + 1, "Up and Down take turns");
            }
            LinkEvent::Down { .. } => {
                self.on_the_way.clear();
                // a connection that never came up is one more Down without an Up before it
                self.downs = self.ups;
            }
            LinkEvent::Sent { token } => {
                assert!(self.on_the_way.remove(token), "{token} was reported and not on its way");
                self.waiting.remove(token);
            }
            LinkEvent::Message { .. } => {}
            LinkEvent::Rejected { reason, .. } => panic!("{reason}"),
        }
    }
}

async fn a_link_that_drops_after_every_nth_packet_always_comes_back(kind: Kind) {
    let broker = Broker::start(kind, Setup::default()).await;
    let mut receiver = connected(broker.port(), "receiver", &["t/#"]).await;
    let mut missing: BTreeSet<Bytes> = (0..200u64).map(|number| number.to_string().into()).collect();
    let waiting = (0..).zip(missing.iter().cloned()).collect();
    let mut outbox = Outbox { waiting, on_the_way: BTreeSet::new(), ups: 0, downs: 0 };
    let proxy = Proxy::start(broker.port());
    proxy.drop_after_packets(40);
    let mut sender = start(options(proxy.port(), "sender", &["own/#"]));
    let exchange = async {
        while !(outbox.waiting.is_empty() && missing.is_empty()) {
            tokio::select! {
                event = sender.next() => outbox.take(&event),
                event = receiver.next() => {
                    if let LinkEvent::Message { payload, .. } = event {
                        missing.remove(&payload);
                    }
                }
            }
            outbox.push(&mut sender);
        }
    };
    timeout(SOON * 2, exchange).await.expect("everything arrives");
    assert!(proxy.drops() >= 5 && outbox.ups >= 5, "{} drops, {} ups", proxy.drops(), outbox.ups);
    assert_eq!(sender.pending(), outbox.on_the_way.len());
}

async fn two_agents_with_one_client_id_both_say_so(kind: Kind) {
    let broker = Broker::start(kind, Setup::default()).await;
    let twin = |seed| {
        let mut options = options(broker.port(), "twin", &["t/#"]);
        options.backoff =
            BackoffOptions { min: Duration::from_millis(50), max: Duration::from_secs(20), seed };
        start(options)
    };
    let mut links = [twin(1), twin(2)];
    let (mut said, mut waits, mut ups) = ([false; 2], Vec::new(), 0);
    let deadline = Instant::now() + SOON;
    while said != [true; 2] {
        let [first, second] = &mut links;
        let (who, event) = tokio::select! {
            event = first.next() => (0, event),
            event = second.next() => (1, event),
            () = tokio::time::sleep_until(deadline) => panic!("after {ups} connections: {said:?} {waits:?}"),
        };
        match event {
            LinkEvent::Up { .. } => ups += 1,
            LinkEvent::Down { reason, retry_in } => {
                said[who] |= reason.contains("client id \"twin\"") && reason.contains("its own name");
                waits.push(retry_in);
            }
            LinkEvent::Message { .. } | LinkEvent::Sent { .. } | LinkEvent::Rejected { .. } => {}
        }
    }
    assert!(ups <= 12, "they fought: {ups} connections, waits {waits:?}");
    assert!(waits.iter().any(|wait| *wait >= Duration::from_millis(50)), "{waits:?}");
}

async fn oversized_messages_are_refused_before_they_enter(kind: Kind) {
    let broker = Broker::start(kind, Setup::default()).await;
    let mut link = connected(broker.port(), "cam", &["t/#"]).await;
    let refused = link.send(message(1, "t/x", vec![0; 128 * 1024])).expect_err("it is too large");
    assert!(matches!(refused, Refused::TooLarge { bytes_max: 131_072, .. }), "{refused}");
    for topic in ["", "a/#", "+", "a\0b"] {
        assert!(matches!(link.send(message(1, topic, "x")), Err(Refused::Topic { .. })), "{topic:?}");
    }
    // two of the three bytes of its length are not there when it is empty
    let largest = 128 * 1024 - message(2, "t/x", "").packet_bytes() - 2;
    assert_eq!(message(2, "t/x", vec![9; largest]).packet_bytes(), 128 * 1024);
    link.send(message(2, "t/x", vec![9; largest])).expect("it fits");
    assert_eq!(payload_on(&mut link, "t/x").await.len(), largest);
}

async fn an_oversized_message_of_a_stranger_does_not_stop_the_link(kind: Kind) {
    let broker = Broker::start(kind, Setup::default()).await;
    let mut small = options(broker.port(), "small", &["t/#"]);
    small.packet_bytes_max = 4096;
    let mut small = start(small);
    up(&mut small).await;
    let mut stranger = connected(broker.port(), "stranger", &[]).await;
    stranger.send(Outgoing { retain: true, ..message(1, "t/x", vec![0; 10_000]) }).expect("there is room");
    stranger.send(message(2, "t/x", "fits")).expect("there is room");
    let heard = until(&mut small, "the small message", |event| match event {
        LinkEvent::Message { payload, .. } => Some(payload.clone()),
        LinkEvent::Down { reason, .. } => panic!("{reason}"),
        _ => None,
    });
    assert_eq!(heard.await, "fits");
}

fn with_will(port: u16) -> LinkOptions {
    let mut options = options(port, "cam", &[]);
    options.will =
        Some(Will { topic: "state/cam".to_owned(), payload: Bytes::from_static(b"lost"), retain: true });
    options
}

async fn the_will_of_a_killed_link_is_published(kind: Kind) {
    let broker = Broker::start(kind, Setup::default()).await;
    let mut watcher = connected(broker.port(), "watcher", &["state/#"]).await;
    let proxy = Proxy::start(broker.port());
    let mut cam = start(with_will(proxy.port()));
    up(&mut cam).await;
    proxy.cut();
    assert_eq!(payload_on(&mut watcher, "state/cam").await, "lost");
    down(&mut cam).await;
    proxy.restore();
    up(&mut cam).await;
    drop(cam);
    assert_eq!(payload_on(&mut watcher, "state/cam").await, "lost");
}

async fn a_closed_link_says_goodbye_and_its_will_is_not_published(kind: Kind) {
    let broker = Broker::start(kind, Setup::default()).await;
    let mut watcher = connected(broker.port(), "watcher", &["state/#", "end"]).await;
    let mut cam = start(with_will(broker.port()));
    up(&mut cam).await;
    cam.send(message(1, "state/cam", "working")).expect("there is room");
    cam.close(Some(message(2, "state/cam", "asleep")), SOON).await;
    assert_eq!(payload_on(&mut watcher, "state/cam").await, "working");
    assert_eq!(payload_on(&mut watcher, "state/cam").await, "asleep");
    // the broker has taken the goodbye when it takes a later packet of a later connection
    let mut late = connected(broker.port(), "cam", &[]).await;
    late.send(message(3, "end", "end")).expect("there is room");
    until(&mut watcher, "the end", |event| match event {
        LinkEvent::Message { topic, .. } if topic == "state/cam" => panic!("the will was published"),
        LinkEvent::Message { topic, .. } => (topic == "end").then_some(()),
        _ => None,
    })
    .await;
    let started = Instant::now();
    start(options(free_port(), "cam", &[])).close(Some(message(4, "end", "never")), SOON).await;
    assert!(started.elapsed() < SOON / 2, "a link that is down has nothing to wait for");
}

async fn messages_on_their_way_never_exceed_the_bound(kind: Kind) {
    let broker = Broker::start(kind, Setup::default()).await;
    let proxy = Proxy::start(broker.port());
    let mut bounded = options(proxy.port(), "cam", &[]);
    bounded.in_flight_max = 4;
    let mut link = start(bounded);
    up(&mut link).await;
    proxy.stall();
    for token in 0..4 {
        assert_eq!(link.room() as u64, 4 - token);
        link.send(message(token, "t/x", "x")).expect("there is room");
    }
    let refused = link.send(message(4, "t/x", "given back")).expect_err("there is no room");
    assert_eq!(refused, Refused::Full(Box::new(message(4, "t/x", "given back"))));
    proxy.unstall();
    let mut next = 4;
    for expected in 0..100 {
        sent(&mut link, expected).await;
        while link.room() > 0 && next < 100 {
            link.send(message(next, "t/x", "x")).expect("there is room");
            next += 1;
        }
        assert!(link.pending() <= 4);
    }
    assert_eq!((link.pending(), link.room()), (0, 4));
}

async fn a_link_counts_every_packet_whole(kind: Kind) {
    let login = Some(("cam", "secret"));
    let broker = Broker::start(kind, Setup { login, ..Setup::default() }).await;
    let proxy = Proxy::start(broker.port());
    let air = Air::default();
    let link = |password: &str| {
        let once = BackoffOptions { min: SOON * 2, max: SOON * 2, seed: 1 };
        let mut options = with_will(proxy.port());
        options.subscriptions = vec!["own/#".to_owned(), "other".to_owned()];
        options.login = Some(("cam".to_owned(), password.to_owned()));
        (options.backoff, options.air) = (once, air.clone());
        start(options)
    };
    down(&mut link("wrong")).await;
    for _ in 0..2 {
        let mut cam = link("secret");
        up(&mut cam).await;
        cam.send(message(1, "nobody/listens", "x")).expect("there is room");
        cam.send(Outgoing::new(2, "nobody/listens", "x", Qos::AtMostOnce)).expect("there is room");
        for bytes in [0, 100, 120, 16_000, 16_384, 120_000] {
            cam.send(message(3, "own/x", vec![7; bytes])).expect("there is room");
        }
        cam.send(message(4, "own/last", "x")).expect("there is room");
        payload_on(&mut cam, "own/last").await;
        cam.close(Some(message(5, "state/cam", "asleep")), SOON).await;
    }
    // what the proxy has still to relay of the goodbyes comes before the answers to this
    let mut last = link("secret");
    up(&mut last).await;
    let relayed = || {
        let ((messages_sent, bytes_sent), (messages_received, bytes_received)) =
            (proxy.sent_by_clients(), proxy.sent_by_broker());
        AirNumbers { messages_sent, bytes_sent, messages_received, bytes_received }
    };
    let agree = async {
        while air.numbers() != relayed() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(timeout(SOON, agree).await.is_ok(), "counted {:?}, relayed {:?}", air.numbers(), relayed());
    assert_eq!((air.numbers().messages_sent, air.numbers().messages_received), (20, 14));
}

#[test]
fn plain_tcp_to_another_machine_is_refused() {
    let mut options = options(1883, "cam", &[]);
    options.host = "192.0.2.1".to_owned();
    let refused = Plan::new(options).expect_err("that would be in the clear");
    assert!(matches!(refused, LinkOptionsError::PlainBeyondLoopback { .. }));
    assert!(refused.to_string().contains("set [mqtt] ca"), "{refused}");
}

#[tokio::test]
async fn the_embedded_broker_refuses_plain_tcp_beyond_loopback() {
    let listen = "0.0.0.0:0".parse().expect("this is an address");
    let refused = Embedded::start(EmbeddedOptions { listen, tls: None, login: None }).await;
    assert!(
        refused
            .expect_err("that would be in the clear")
            .to_string()
            .contains("ca, certificate and key of [mqtt]")
    );
}

#[tokio::test]
async fn the_brokers_own_limit_counts_too() {
    let mosquitto = Mosquitto::start(Config { lines: vec!["max_packet_size 20000"], ..Config::default() });
    let mut link = connected(mosquitto.port(), "cam", &[]).await;
    let refused = link.send(message(1, "t/x", vec![0; 20_000])).expect_err("the broker would not take it");
    assert!(matches!(refused, Refused::TooLarge { bytes_max: 20_000, .. }), "{refused}");
    link.send(message(2, "t/x", vec![0; 19_000])).expect("there is room");
    sent(&mut link, 2).await;
}

#[tokio::test]
async fn clients_without_an_id_do_not_push_each_other_out() {
    let broker = Broker::start(Kind::Embedded, Setup::default()).await;
    let connect = b"\x10\x0d\x00\x04MQTT\x05\x02\x00\x0a\x00\x00\x00";
    let mut sockets = Vec::new();
    for _ in 0..2 {
        let mut socket = TcpStream::connect((Ipv4Addr::LOCALHOST, broker.port())).await.expect("it listens");
        socket.write_all(connect).await.expect("the socket is open");
        assert_eq!(read_packet(&mut socket).await[0], 0x20);
        sockets.push(socket);
    }
    for socket in &mut sockets {
        socket.write_all(&[0xc0, 0]).await.expect("the socket is open");
        assert_eq!(read_packet(socket).await, [0xd0, 0]);
    }
}

#[tokio::test]
async fn a_client_that_never_reads_is_not_read_for_ever() {
    let broker = Broker::start(Kind::Embedded, Setup::default()).await;
    let mut socket = TcpStream::connect((Ipv4Addr::LOCALHOST, broker.port())).await.expect("it listens");
    let connect = b"\x10\x10\x00\x04MQTT\x05\x02\x00\x05\x00\x00\x03mad";
    socket.write_all(connect).await.expect("the socket is open");
    let pings = [0xc0, 0].repeat(32 * 1024);
    let flood = async {
        let mut written = 0;
        // 64 MiB fit into no socket buffers: either the broker stops reading or it has closed
        while written < 64 << 20 && socket.write_all(&pings).await.is_ok() {
            written += pings.len();
        }
        written
    };
    let written = timeout(SOON, flood).await.expect("the broker closes after one and a half keep-alives");
    assert!(written < 64 << 20, "{written} bytes of answers are held");
}

#[tokio::test]
async fn garbage_ends_one_connection_and_no_other() {
    let broker = Broker::start(Kind::Embedded, Setup::default()).await;
    let mut link = connected(broker.port(), "cam", &["t/#"]).await;
    let connect = b"\x10\x10\x00\x04MQTT\x05\x02\x00\x0a\x00\x00\x03bad";
    let attacks: [&[u8]; 8] = [
        b"\xff\xff\xff\xff\xff\xff",
        b"GET / HTTP/1.1\r\nHost: larder.example\r\nUser-Agent: a browser that is lost\r\n\r\n",
        b"\x10\x00",
        b"\x30\x05\x00\xff\x00\x00\x00",
        b"\x30\xff\xff\xff\x7f",
        b"\x82\x02\x00\x01",
        b"\xf0\x00",
        b"\x34\x07\x00\x01t\x00\x01\x00x",
    ];
    for attack in attacks {
        for prefix in [&b""[..], &connect[..]] {
            let mut socket =
                TcpStream::connect((Ipv4Addr::LOCALHOST, broker.port())).await.expect("it listens");
            socket.write_all(prefix).await.expect("the socket is open");
            socket.write_all(attack).await.expect("the socket is open");
            let mut answer = Vec::new();
            let ended = timeout(SOON, socket.read_to_end(&mut answer)).await;
            assert!(ended.is_ok(), "{attack:?} is not answered by an end");
        }
    }
    link.send(message(1, "t/x", "alive")).expect("there is room");
    assert_eq!(payload_on(&mut link, "t/x").await, "alive");
}

async fn read_packet(socket: &mut TcpStream) -> Vec<u8> {
    next_packet(socket).await.expect("the link writes another packet")
}

/// None when the link has closed the connection.
async fn next_packet(socket: &mut TcpStream) -> Option<Vec<u8>> {
    let mut packet = vec![socket.read_u8().await.ok()?];
    let (mut length, mut shift) = (0, 0);
    loop {
        let byte = socket.read_u8().await.ok()?;
        packet.push(byte);
        length |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            break;
        }
    }
    let body = packet.len();
    packet.resize(body + length, 0);
    socket.read_exact(&mut packet[body..]).await.ok()?;
    Some(packet)
}
