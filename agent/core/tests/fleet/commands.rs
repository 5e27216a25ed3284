//! Commands over MQTT: obeyed once, in time, from those who may.

use crate::sim::World;
use crate::sim::net::Message;
use crate::sim::setup::{FLEET, key, name};
use crate::transfer::{are_alike, noise};
use bytes::Bytes;
use larder_core::control::remote::Envelope;
use larder_core::id::NodeName;
use larder_core::limits::{COMMAND_SKEW_MS, COMMANDS_OPEN_MAX, ERRANDS_MAX};
use larder_core::message::Channel;
use larder_core::request::{FailureKind, Request, Response};
use larder_core::seal::Between;
use larder_core::start::Start;

pub(crate) fn remote(node: &str, request: Request) -> Request {
    Request::Remote { node: name(node), request: Box::new(request) }
}

fn remove(object: &str) -> Request {
    Request::Remove { name: object.parse().unwrap() }
}

/// A command as `from` would send it.
fn command(from: &str, to: &str, counter: u64, expires_ms: i64, request: &Request) -> Message {
    let (from, to): (NodeName, NodeName) = (name(from), name(to));
    let between = Between { fleet: FLEET, from: &from, to: &to, channel: Channel::Command };
    let body = serde_json::to_string(request).unwrap();
    let envelope = Envelope::seal(&key(from.as_str()), between, counter, expires_ms, body);
    let payload = Bytes::from(envelope.encode());
    Message { from, to, channel: Channel::Command, payload }
}

fn wall_ms(world: &World) -> i64 {
    crate::sim::START_MS + i64::try_from(world.now_ms).unwrap()
}

#[test]
fn a_master_commands_its_workers_and_leechers() {
    let (mut world, [master, w1, _, leecher]) = World::fleet(1);
    world.put_now(w1, "shared/a", noise(1, 50_000));
    world.run_ms(10_000);
    match world.request(master, remote("w1", Request::Status)) {
        Response::Status(status) => assert_eq!(status.node, "w1"),
        other => panic!("{other:?}"),
    }
    let list = Request::List { prefix: String::new(), after: None };
    match world.request(master, remote("leech", list)) {
        Response::Names { objects, .. } => assert_eq!(objects[0].name.as_str(), "shared/a"),
        other => panic!("{other:?}"),
    }
    assert_eq!(world.request(master, remote("w1", Request::Flush)), Response::Flushed);
    assert!(matches!(
        world.request(master, remote("leech", Request::Verify)),
        Response::Verified { blocks: 1, .. }
    ));
    let removed = world.request(master, remote("w1", remove("shared/a")));
    assert_eq!(removed, Response::Removed { name: "shared/a".parse().unwrap() });
    world.run_until(60_000, "it is deleted everywhere", |world| {
        [master, w1, leecher].iter().all(|node| world.machines[*node].engine.table().is_empty())
    });
    let missing = world.request(master, remote("w1", remove("nothing")));
    assert!(matches!(missing, Response::Error(failure) if failure.kind == FailureKind::NotFound));
}

#[test]
fn only_a_master_may_command() {
    let (mut world, [master, w1, _, leecher]) = World::fleet(2);
    world.put_now(w1, "shared/a", noise(1, 50_000));
    world.run_ms(10_000);
    for (from, to) in [("leech", "master"), ("w1", "master")] {
        let dropped = world.status(master).sync.messages_dropped;
        let expires_ms = wall_ms(&world) + 30_000;
        world.forward(command(from, to, 1 << 60, expires_ms, &remove("shared/a")));
        world.run_ms(1_000);
        assert_eq!(world.status(master).sync.messages_dropped, dropped + 1);
    }
    let answer = world.request(leecher, remote("master", remove("shared/a")));
    assert!(matches!(answer, Response::Error(failure) if failure.kind == FailureKind::Forbidden));
    assert_eq!(world.machines[master].engine.table().len(), 1);
}

#[test]
fn a_command_is_obeyed_once_even_after_a_restart() {
    let (mut world, [master, w1, ..]) = World::fleet(3);
    world.put_now(w1, "a", noise(1, 1_000));
    let expires_ms = wall_ms(&world) + 3_600_000;
    let replayed = command("master", "w1", 1 << 60, expires_ms, &remove("a"));
    world.forward(replayed.clone());
    world.run_until(10_000, "it is obeyed", |world| world.machines[w1].engine.table().is_empty());
    world.run_ms(1_000);
    for restarts in [false, true, true] {
        world.put_now(w1, "a", noise(2, 1_000));
        if restarts {
            world.crash(w1);
            world.start(w1);
            world.run_ms(1_000);
        }
        let dropped = world.status(w1).sync.messages_dropped;
        world.forward(replayed.clone());
        world.run_ms(5_000);
        assert_eq!(world.machines[w1].engine.table().len(), 1, "obeyed again");
        assert_eq!(world.status(w1).sync.messages_dropped, dropped + 1);
    }
    assert_eq!(world.machines[master].engine.table().len(), 1);
}

#[test]
fn no_command_is_obeyed_while_the_counters_can_not_be_read() {
    let (mut world, [_, w1, ..]) = World::fleet(8);
    world.put_now(w1, "a", noise(1, 1_000));
    let expires_ms = wall_ms(&world) + 3_600_000;
    let old = command("master", "w1", 1 << 60, expires_ms, &remove("a"));
    world.forward(old.clone());
    world.run_until(10_000, "it is obeyed", |world| world.machines[w1].engine.table().is_empty());
    world.put_now(w1, "a", noise(2, 1_000));
    world.crash(w1);
    // the first question for settings of a start is the one for the counters
    world.machines[w1].engine.failing_settings = 1;
    world.start(w1);
    world.run_ms(1_000);
    assert_eq!(world.machines[w1].engine.failing_settings, 0);
    let newer = command("master", "w1", (1 << 60) + 1, expires_ms, &remove("a"));
    for (message, why) in [(newer.clone(), "once the store has been read"), (old, "was obeyed already")] {
        world.forward(message);
        world.run_ms(1_000);
        let problem = world.status(w1).sync.last_problem;
        assert!(problem.contains(why), "{problem}, not {why}");
        assert_eq!(world.machines[w1].engine.table().len(), 1, "obeyed: {why}");
    }
    world.forward(newer);
    world.run_until(10_000, "the newer one is obeyed", |world| world.machines[w1].engine.table().is_empty());
}

#[test]
fn more_commands_than_are_answered_at_once_are_refused_and_have_their_turn_later() {
    let (mut world, [master, w1, ..]) = World::fleet(9);
    world.put_now(w1, "a", noise(1, 1_000));
    world.machines[w1].job_ms_max = 200;
    world.net.faults.delay_ms_max = 0; // in order, or a counter would be passed over
    let calls: Vec<_> =
        (0..COMMANDS_OPEN_MAX + 8).map(|_| world.ask(master, remote("w1", Request::Status))).collect();
    let mut busy = 0;
    for call in calls {
        match world.wait(call) {
            Response::Status(status) => assert_eq!(status.node, "w1"),
            Response::Error(failure) => {
                assert_eq!(failure.kind, FailureKind::Busy, "{failure}");
                assert!(failure.message.contains("commands are not answered yet"), "{failure}");
                busy += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(busy > 0);
    world.machines[w1].job_ms_max = 4;
    world.run_ms(60_000);
    assert!(matches!(world.request(master, remote("w1", Request::Status)), Response::Status(_)));
}

#[test]
fn a_verification_of_minutes_is_answered_to_another_node() {
    let (mut world, [master, w1, ..]) = World::fleet(11);
    world.put_now(w1, "a", noise(1, 12 << 20));
    world.run_until(60_000, "the master has it", |world| are_alike(world, master, w1));
    world.machines[w1].job_ms_max = 20_000;
    let asked_ms = world.now_ms;
    let sent_ms = wall_ms(&world);
    let call = world.ask(master, remote("w1", Request::Verify));
    world.run_ms(45_000);
    let expired_ms = wall_ms(&world) - COMMAND_SKEW_MS - 1;
    world.forward(command("master", "w1", sent_ms as u64 * 1024, expired_ms, &Request::Verify));
    world.run_ms(1_000);
    let problem = world.status(w1).sync.last_problem;
    assert!(problem.contains("is under way"), "{problem}");
    let answer = world.wait(call);
    assert!(matches!(&answer, Response::Verified { incomplete, .. } if incomplete.is_empty()), "{answer:?}");
    let took_ms = world.now_ms - asked_ms;
    assert!(took_ms > 60_000, "only {took_ms} ms");
    let words = world.heard(call).len() as u64 - 1;
    assert!(words <= took_ms / 9_000, "{words} words in {took_ms} ms are more than a radio is for");
    // one that is gone is no longer waited for
    world.ask(master, remote("w1", Request::Verify));
    world.run_ms(15_000);
    world.crash(w1);
    let call = world.ask(master, remote("w1", Request::Verify));
    let answer = world.wait(call);
    assert!(matches!(&answer, Response::Error(why) if why.kind == FailureKind::Unreachable), "{answer:?}");
}

#[test]
fn more_verifications_than_may_wait_are_refused() {
    let (mut world, [_, w1, ..]) = World::fleet(10);
    world.put_now(w1, "a", noise(1, 1_000));
    let calls: Vec<_> = (0..ERRANDS_MAX + 9).map(|_| world.ask(w1, Request::Verify)).collect();
    let mut answers = calls.into_iter().map(|call| world.wait(call));
    let busy = answers
        .by_ref()
        .filter(|answer| matches!(answer, Response::Error(failure) if failure.kind == FailureKind::Busy))
        .count();
    assert_eq!(busy, 8);
}

#[test]
fn late_altered_and_malformed_commands_are_dropped() {
    let (mut world, [_, w1, ..]) = World::fleet(4);
    world.put_now(w1, "a", noise(1, 1_000));
    let now_ms = wall_ms(&world);
    let in_time_ms = now_ms + 30_000;
    let good = command("master", "w1", 1 << 60, in_time_ms, &remove("a"));
    let altered = String::from_utf8(good.payload.to_vec()).unwrap().replace("remove", "Remove");
    let bad = [
        command("master", "w1", 1 << 60, now_ms - 3_600_000, &remove("a")),
        command("master", "w1", 1 << 60, now_ms + 100 * 3_600_000, &remove("a")),
        command("w2", "w1", 1 << 60, in_time_ms, &remove("a")),
        Message { to: name("w1"), ..command("master", "w2", 1 << 60, in_time_ms, &remove("a")) },
        Message { payload: Bytes::from(altered), ..good.clone() },
        Message { payload: Bytes::from_static(b"{}"), ..good.clone() },
        Message { payload: Bytes::from(vec![b'x'; 20_000]), ..good.clone() },
        Message { channel: Channel::Answer, ..good.clone() },
    ];
    for message in bad {
        let dropped = world.status(w1).sync.messages_dropped;
        world.forward(message);
        world.run_ms(1_000);
        assert_eq!(world.status(w1).sync.messages_dropped, dropped + 1);
    }
    assert_eq!(world.machines[w1].engine.table().len(), 1);
    world.forward(good);
    world.run_until(10_000, "the good one is obeyed", |world| world.machines[w1].engine.table().is_empty());
}

#[test]
fn a_request_that_carries_data_is_refused_over_mqtt() {
    let (mut world, [master, ..]) = World::fleet(5);
    let get = Request::Get { target: crate::transfer::by_name("a"), offset: 0, length: None };
    let answer = world.request(master, remote("w1", get.clone()));
    assert!(matches!(answer, Response::Error(failure) if failure.kind == FailureKind::Invalid));
    let expires_ms = wall_ms(&world) + 30_000;
    world.forward(command("master", "w1", 1 << 60, expires_ms, &get));
    world.forward(command("master", "w1", (1 << 60) + 1, expires_ms, &remote("w2", Request::Status)));
    world.run_ms(5_000);
    assert_eq!(world.machines[1].engine.commits, 0);
}

#[test]
fn commands_that_are_switched_off_or_have_no_receiver_say_so() {
    let (mut world, [master, w1, ..]) = World::fleet(6);
    world.machines[w1].settings.commands = false;
    world.reload(w1);
    for node in ["w1", "nobody"] {
        let answer = world.request(master, remote(node, Request::Status));
        let kind = if node == "w1" { FailureKind::Forbidden } else { FailureKind::Invalid };
        assert!(matches!(&answer, Response::Error(failure) if failure.kind == kind), "{answer:?}");
    }
    assert!(world.status(w1).sync.last_problem.contains("switched off"));
}

#[test]
fn a_leecher_takes_no_put_and_a_number_is_used_once() {
    let (mut world, [.., leecher]) = World::fleet(7);
    let call = world.put(leecher, "a", noise(1, 600_000));
    let answer = world.wait(call);
    assert!(matches!(answer, Response::Error(failure) if failure.kind == FailureKind::Forbidden));
    assert_eq!(world.request(leecher, Request::Flush), Response::Flushed, "the connection goes on");
    let verify = world.ask(leecher, Request::Verify);
    world.last_number -= 1;
    let again = world.ask(leecher, Request::Status);
    assert_eq!(again.number, verify.number);
    world.run_until(10_000, "both are answered", |world| world.heard(verify).len() >= 2);
    assert!(world.heard(verify).iter().any(|answer| matches!(answer, Response::Error(_))));
    assert_eq!(world.request(leecher, Request::Flush), Response::Flushed, "the connection goes on");
}

/// The examples of `docs/protocol.md`, made as it says they are.
#[test]
fn the_examples_of_the_protocol_page_are_what_the_code_makes() {
    let page = include_str!("../../../../docs/protocol.md");
    let signer = ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
    let (master, cam) = (name("master"), name("cam1"));
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let public = hex(signer.verifying_key().as_bytes());
    assert!(page.contains(&public), "public key {public}");
    let between = Between { fleet: "site", from: &master, to: &cam, channel: Channel::Command };
    let body = serde_json::to_string(&remove("cam/1.jpg")).unwrap();
    let body_hash = blake3::hash(body.as_bytes()).to_hex();
    assert!(page.contains(body_hash.as_str()), "body {body} hash {body_hash}");
    let envelope = Envelope::seal(&signer, between, 1_843_200_000_000_000, 1_800_000_030_000, body);
    let envelope = String::from_utf8(envelope.encode()).unwrap();
    assert!(page.contains(&envelope), "envelope {envelope}");
    let hello = larder_core::sync::wire::SyncMessage::Hello(larder_core::sync::wire::Hello {
        epoch: 300,
        session: 2,
        store: 77,
        role: larder_core::role::Role::Worker,
        subscriptions: vec!["maps".into()],
        answers: None,
        starts: [(5, 90), (300, 128)].map(|(epoch, log)| Start { epoch, log }).to_vec(),
    });
    let body = hello.encode();
    assert!(page.contains(&hex(&body)), "hello {}", hex(&body));
    let between = Between { channel: Channel::Sync, from: &cam, to: &master, ..between };
    let sealed = hex(&larder_core::seal::seal(&signer, between, &body));
    assert!(page.contains(&sealed), "sealed {sealed}");
}
