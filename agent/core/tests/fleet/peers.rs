//! Who gets what, who may do what, and what happens to the rest.

use crate::sim::World;
use crate::sim::client::Call;
use crate::sim::impostor::{self, sealed};
use crate::sim::net::Message;
use crate::sim::setup::{FLEET, below_settings, key, master_settings, name, peer, settings};
use crate::transfer::{are_alike, by_name, is_whole, noise};
use bytes::Bytes;
use larder_core::binding::Content;
use larder_core::id::BlockId;
use larder_core::message::{Channel, Input};
use larder_core::note::Note;
use larder_core::request::{FailureKind, Request, Response, Target};
use larder_core::role::Role;
use larder_core::seal::{Between, seal};
use larder_core::settings::{Peer, Settings};
use larder_core::sync::wire::{Announce, SyncMessage, Want, Wanted};

fn names(world: &World, node: usize) -> Vec<String> {
    world.machines[node].engine.table().into_keys().collect()
}

#[test]
fn a_leecher_gets_what_it_subscribes_to_and_nothing_else() {
    let (mut world, [master, w1, _, leecher]) = World::fleet(1);
    for name in ["shared/a", "shared/b/c", "sharedX/no", "private/d", "shared"] {
        world.put_now(w1, name, noise(name.len() as u64, 60_000));
    }
    world.put_now(master, "shared/own", noise(7, 200_000));
    world.run_until(60_000, "it has them", |world| names(world, leecher).len() >= 4);
    world.run_ms(120_000);
    assert_eq!(names(&world, leecher), ["shared", "shared/a", "shared/b/c", "shared/own"]);
    assert!(is_whole(&world, leecher));
    world.request(w1, Request::Remove { name: "shared/a".parse().unwrap() });
    world.put_now(master, "shared/own", noise(8, 100_000));
    world.run_until(60_000, "news reach it", |world| {
        let own = world.machines[leecher].engine.binding(&"shared/own".parse().unwrap());
        !names(world, leecher).contains(&"shared/a".into()) && own.is_some_and(|own| own.meta.size == 100_000)
    });
    assert_eq!(world.get(leecher, by_name("shared/own")), Some(noise(8, 100_000)));
}

#[test]
fn a_get_of_what_is_only_on_the_master_brings_it() {
    let (mut world, [master, w1, w2, leecher]) = World::fleet(2);
    let bytes = noise(1, 3 << 20);
    world.put_now(w1, "film", bytes.clone());
    world.put_now(w1, "tiny", b"tiny".to_vec());
    world.run_until(60_000, "the master has them", |world| are_alike(world, master, w1));
    assert!(world.get(leecher, by_name("film")) == Some(bytes.clone()));
    assert_eq!(world.get(w2, by_name("tiny")), Some(b"tiny".to_vec()));
    let root = world.machines[master].engine.table()["film"];
    assert!(world.get(w2, Target::Cid(root)) == Some(bytes));
    let fetched = world.request(leecher, Request::Fetch { target: Target::Cid(BlockId::of(b"tiny")) });
    assert!(matches!(fetched, Response::Fetched { object } if object.meta.size == 4));
    assert_eq!(world.get(leecher, by_name("nothing")), None);
    assert_eq!(world.get(leecher, Target::Cid(BlockId([7; 32]))), None);
    let block = world.machines[master].engine.blocks.iter().find(|(_, block)| block.len() > 30_000);
    let (id, block) = block.map(|(id, block)| (*id, block.clone())).unwrap();
    assert!(world.get(leecher, Target::Cid(id)) == Some(block.to_vec()), "a bare block can be had too");
    world.run_ms(60_000);
    assert_eq!(names(&world, master), ["film", "tiny"], "what was fetched by hash is not announced upward");
}

#[test]
fn a_slow_fetch_may_take_longer_than_a_minute() {
    let (mut world, [master, _, _, leecher]) = World::fleet(3);
    world.put_now(master, "film", noise(1, 12 << 20));
    world.net.faults.delay_ms_max = 6_000;
    let began_ms = world.now_ms;
    let fetched = world.request(leecher, Request::Fetch { target: by_name("film") });
    assert!(matches!(fetched, Response::Fetched { .. }), "{fetched:?}");
    assert!(world.now_ms - began_ms > 60_000, "it took {} ms", world.now_ms - began_ms);
}

#[test]
fn without_a_link_a_fetch_is_queued_and_a_get_fails() {
    let (mut world, [master, _, _, leecher]) = World::fleet(4);
    world.put_now(master, "film", noise(1, 1_000_000));
    world.cut(leecher, 0);
    world.run_ms(100);
    let answer = world.request(leecher, Request::Fetch { target: by_name("film") });
    assert_eq!(answer, Response::Queued { waiting: 1 });
    let call = world.ask(leecher, Request::Get { target: by_name("film"), offset: 0, length: None });
    assert!(matches!(world.wait(call), Response::Error(failure) if failure.kind == FailureKind::Unreachable));
    world.run_ms(600_000);
    world.mend(leecher);
    world.run_until(60_000, "it is here", |world| {
        names(world, leecher) == ["film"] && is_whole(world, leecher)
    });
}

/// A master, a leecher that fetches a film from it and is cut off meanwhile, the call and the film.
fn fetching_when_cut(seed: u64) -> (World, usize, usize, Call, Vec<u8>) {
    let (mut world, [master, _, _, leecher]) = World::fleet(seed);
    let bytes = noise(1, 8 << 20);
    world.put_now(master, "film", bytes.clone());
    world.net.faults.delay_ms_max = 50;
    let call = world.ask(leecher, Request::Fetch { target: by_name("film") });
    world.run_ms(400);
    world.cut(leecher, 100);
    (world, master, leecher, call, bytes)
}

#[test]
fn a_fetch_goes_on_after_the_link_or_the_master_failed() {
    let (mut world, master, leecher, call, bytes) = fetching_when_cut(5);
    world.run_ms(1_000);
    world.mend(leecher);
    world.run_ms(600);
    world.crash(master);
    world.run_ms(2_000);
    world.start(master);
    let answer = world.wait(call);
    assert!(matches!(answer, Response::Fetched { .. }), "{answer:?}");
    assert!(world.get(leecher, by_name("film")) == Some(bytes));
}

#[test]
fn who_waits_for_a_fetch_is_told_within_two_minutes_that_the_link_is_gone() {
    let (mut world, _, leecher, call, bytes) = fetching_when_cut(18);
    world.run_ms(120_000);
    assert!(
        matches!(world.heard(call).last(), Some(Response::Queued { waiting: 1 })),
        "{:?}",
        world.heard(call)
    );
    world.mend(leecher);
    world.run_until(120_000, "it comes", |world| {
        is_whole(world, leecher) && names(world, leecher) == ["film"]
    });
    assert!(world.get(leecher, by_name("film")) == Some(bytes));
}

#[test]
fn what_a_leecher_removes_is_gone_there_alone_and_can_be_had_again() {
    let (mut world, [master, _, _, leecher]) = World::fleet(17);
    world.put_now(master, "shared/a", noise(1, 50_000));
    world.put_now(master, "film", noise(2, 50_000));
    assert!(world.get(leecher, by_name("film")).is_some());
    world.run_until(10_000, "it has both", |world| names(world, leecher).len() == 2);
    for name in ["shared/a", "film"] {
        let removed = world.request(leecher, Request::Remove { name: name.parse().unwrap() });
        assert_eq!(removed, Response::Removed { name: name.parse().unwrap() });
    }
    let again = world.request(leecher, Request::Remove { name: "film".parse().unwrap() });
    assert!(matches!(again, Response::Error(failure) if failure.kind == FailureKind::NotFound));
    assert!(world.machines[leecher].engine.names.is_empty(), "no deletion is kept");
    world.run_ms(60_000);
    assert_eq!(names(&world, master), ["film", "shared/a"]);
    assert_eq!(world.get(leecher, by_name("film")), Some(noise(2, 50_000)));
    let fetched = world.request(leecher, Request::Fetch { target: by_name("shared/a") });
    assert!(matches!(fetched, Response::Fetched { .. }), "{fetched:?}");
    world.put_now(master, "shared/a", noise(3, 50_000));
    world.run_until(10_000, "news still come", |world| are_alike(world, master, leecher));
}

#[test]
fn a_conflict_of_two_workers_keeps_both_versions_everywhere_and_says_so() {
    let (mut world, [master, w1, w2, _]) = World::fleet(6);
    world.cut(w2, 0);
    world.put_now(w1, "plan", noise(1, 150_000));
    world.run_ms(1_000);
    world.put_now(w2, "plan", noise(2, 150_000));
    world.mend(w2);
    world.run_until(120_000, "all have both", |world| {
        names(world, master).len() == 2 && are_alike(world, master, w1) && are_alike(world, master, w2)
    });
    world.run_ms(120_000);
    assert!(are_alike(&world, master, w1) && are_alike(&world, master, w2));
    assert_eq!(world.get(w1, by_name("plan")), Some(noise(2, 150_000)), "the later one keeps the name");
    let copy = names(&world, master).into_iter().find(|name| name != "plan").unwrap();
    assert_eq!(world.get(w2, by_name(&copy)), Some(noise(1, 150_000)));
    let status = world.status(master);
    assert_eq!(status.sync.conflicts, 1);
    assert_eq!(status.sync.conflicted_names, ["plan".parse().unwrap()]);
    assert!(world.machines[master].notes.iter().any(|note| matches!(note, Note::Conflict { .. })));
    assert!(world.status(w2).sync.conflicts >= 1, "its writer is told");
}

#[test]
fn a_conflict_of_worker_and_master_keeps_both_versions() {
    let (mut world, master, worker) = World::pair(7);
    for round in 0..4 {
        world.cut(worker, 0);
        let (mine, yours) = (noise(round, 20_000), noise(100 + round, 90_000));
        world.put_now(master, &format!("plan{round}"), mine);
        world.put_now(worker, &format!("plan{round}"), yours);
        world.mend(worker);
        world.run_until(120_000, "both have both", |world| {
            names(world, master).len() == 2 * (round as usize + 1) && are_alike(world, master, worker)
        });
    }
    let call = world.ask(worker, Request::Remove { name: "plan0".parse().unwrap() });
    world.wait(call);
    world.put_now(worker, "plan1", noise(50, 10));
    world.run_until(60_000, "later writes are no conflict", |world| {
        names(world, master).len() == 7 && are_alike(world, master, worker)
    });
}

fn hello(role: Role) -> SyncMessage {
    impostor::hello(role, 1, None)
}

fn announcement(writer: &str, size: u64, content: Content) -> SyncMessage {
    let entries = vec![("evil".parse().unwrap(), impostor::binding(writer, size, content))];
    SyncMessage::Announce(Announce { group: 1, request: None, entries, log: 0 })
}

fn object(bytes: &[u8]) -> Content {
    Content::Object { root: BlockId::of(bytes), depth: 0 }
}

/// Lets the message in and says how many more were dropped.
fn dropped_by(world: &mut World, node: usize, message: Message) -> u64 {
    let before = world.status(node).sync.messages_dropped;
    world.forward(message);
    world.run_ms(1_000);
    world.status(node).sync.messages_dropped - before
}

#[test]
fn what_a_role_may_not_do_is_refused_by_the_receiver() {
    let (mut world, [master, w1, _, leecher]) = World::fleet(8);
    let offer = announcement("leech", 4, object(b"evil"));
    assert_eq!(dropped_by(&mut world, master, sealed("leech", "master", "leech", &offer)), 1);
    // A worker that knows another worker still hears nothing from it.
    world.crash(w1);
    world.machines[w1].settings.peers.push(peer("w2", Role::Worker));
    world.machines[w1].settings.peers.push(peer("leech", Role::Leecher));
    world.start(w1);
    world.run_ms(1_000);
    for (from, role) in [("w2", Role::Worker), ("leech", Role::Leecher)] {
        assert_eq!(dropped_by(&mut world, w1, sealed(from, "w1", from, &hello(role))), 1);
        let offer = announcement(from, 4, object(b"evil"));
        assert_eq!(dropped_by(&mut world, w1, sealed(from, "w1", from, &offer)), 1);
        let fetch = SyncMessage::Fetch { request: 1, target: by_name("x") };
        assert_eq!(dropped_by(&mut world, w1, sealed(from, "w1", from, &fetch)), 1);
    }
    // It says it is a master; here it is configured as a leecher.
    let lie = sealed("leech", "master", "leech", &hello(Role::Master));
    assert_eq!(dropped_by(&mut world, master, lie), 1);
    world.run_ms(60_000);
    for node in [master, w1, leecher] {
        assert!(names(&world, node).is_empty() && world.machines[node].engine.blocks.is_empty());
    }
    assert!(world.machines[w1].notes.iter().any(|note| matches!(note, Note::Dropped { .. })));
}

#[test]
fn what_is_not_signed_by_the_sender_for_this_receiver_is_dropped() {
    let (mut world, [master, w1, ..]) = World::fleet(9);
    let offer = announcement("w1", 4, object(b"evil"));
    for message in [
        sealed("w1", "master", "w2", &offer),
        sealed("stranger", "master", "stranger", &offer),
        Message { to: name("master"), ..sealed("w1", "w2", "w1", &offer) },
        Message { from: name("w2"), ..sealed("w1", "master", "w1", &offer) },
        Message { payload: Bytes::new(), ..sealed("w1", "master", "w1", &offer) },
        Message { payload: Bytes::from(vec![9; 100]), ..sealed("w1", "master", "w1", &offer) },
        Message { payload: Bytes::from(vec![1; 200_000]), ..sealed("w1", "master", "w1", &offer) },
    ] {
        assert_eq!(dropped_by(&mut world, master, message), 1);
    }
    let between = Between { fleet: FLEET, from: &name("w1"), to: &name("master"), channel: Channel::Sync };
    for body in [&b""[..], &[200], &[1; 500], &[0xff; 300]] {
        let payload = Bytes::from(seal(&key("w1"), between, body));
        let message = Message { payload, ..sealed("w1", "master", "w1", &offer) };
        assert_eq!(dropped_by(&mut world, master, message), 1, "{body:?}");
    }
    world.put_now(w1, "a", noise(1, 1_000));
    world.run_until(60_000, "honest messages still arrive", |world| are_alike(world, master, w1));
}

#[test]
fn blocks_that_nobody_asked_for_are_counted_and_not_kept() {
    let (mut world, [master, ..]) = World::fleet(10);
    for (from, group) in [("w1", 1), ("leech", 7), ("stranger", 1)] {
        let before = world.status(master).sync;
        world.send_blocks_as(from, "master", group, vec![Bytes::from_static(b"evil"); 3]);
        world.run_ms(1_000);
        let after = world.status(master).sync;
        let counted = |sync: &larder_core::request::SyncNumbers| sync.blocks_unasked + sync.messages_dropped;
        assert!(counted(&after) > counted(&before), "{from}");
    }
    for payload in
        [&b""[..], &[1], &[2, 0, 0, 0, 0], &[1, 0, 0, 0, 0, 9, 0, 0, 0, 1], &[1, 0, 0, 0, 0, 0, 0, 0, 0]]
    {
        let payload = Bytes::copy_from_slice(payload);
        let message = Message { from: name("w1"), to: name("master"), channel: Channel::Blocks, payload };
        assert_eq!(dropped_by(&mut world, master, message), 1);
    }
    assert!(world.machines[master].engine.blocks.is_empty());
}

#[test]
fn a_binding_no_honest_node_makes_is_refused() {
    let (mut world, [master, ..]) = World::fleet(11);
    let depth = |depth| Content::Object { root: BlockId::of(b"evil"), depth };
    for (size, content) in [(0, depth(0)), (4, depth(9)), (1 << 40, depth(0)), (0, depth(1))] {
        let before = world.status(master).sync;
        world.forward(sealed("w1", "master", "w1", &announcement("w1", size, content)));
        world.forward(sealed("w1", "master", "w1", &announcement("w2", size, content)));
        world.run_ms(1_000);
        let after = world.status(master).sync;
        assert_eq!(after.messages_dropped - before.messages_dropped, 2, "{size} {content:?}");
    }
    assert!(names(&world, master).is_empty() && world.machines[master].engine.names.is_empty());
}

#[test]
fn wants_of_what_was_never_announced_get_nothing() {
    let (mut world, [master, w1, ..]) = World::fleet(12);
    world.put_now(master, "secret", noise(1, 50_000));
    world.run_ms(5_000);
    for group in 0..50 {
        let blocks = Wanted::Roots(vec![0, 1, 60_000]);
        let want = SyncMessage::Want(Want { group, round: 1, blocks, limit: 1_000 });
        world.forward(sealed("w1", "master", "w1", &want));
        let blocks = Wanted::Children { manifest: BlockId::of(b"x"), missing: vec![255; 256] };
        let want = SyncMessage::Want(Want { group, round: 2, blocks, limit: u32::MAX });
        world.forward(sealed("w1", "master", "w1", &want));
    }
    world.run_ms(5_000);
    assert_eq!(world.net.block_bytes.get(&(name("master"), name("w1"))), None);
    assert!(names(&world, w1).is_empty());
}

#[test]
fn a_master_whose_own_link_breaks_still_tells_its_leechers() {
    let (mut world, [master, _, _, leecher]) = World::fleet(13);
    world.cut(master, 1_000);
    world.run_ms(5_000);
    world.mend(master);
    world.run_ms(1_000);
    world.put_now(master, "shared/news", noise(1, 50_000));
    world.run_until(20_000, "the leecher has it", |world| names(world, leecher) == ["shared/news"]);
}

/// As it does to ping otherwise, in another profile.
#[test]
fn a_master_that_made_its_link_anew_without_a_word_still_tells_its_leechers() {
    let (mut world, [master, _, _, leecher]) = World::fleet(15);
    world.run_ms(60_000);
    world.renew_link(master);
    world.run_ms(1_000);
    world.put_now(master, "shared/news", noise(1, 50_000));
    world.run_until(20_000, "the leecher has it", |world| names(world, leecher) == ["shared/news"]);
}

#[test]
fn more_workers_than_sessions_are_all_served_in_the_end() {
    let mut world = World::new(14);
    let workers: Vec<String> = (0..6).map(|index| format!("w{index}")).collect();
    let below: Vec<(&str, Role)> = workers.iter().map(|name| (name.as_str(), Role::Worker)).collect();
    let mut master = master_settings(&below);
    master.sessions_max = 2;
    let master = world.add(master);
    let nodes: Vec<usize> =
        workers.iter().map(|name| world.add(below_settings(name, Role::Worker))).collect();
    for (index, node) in nodes.iter().enumerate() {
        world.put_now(*node, &format!("f{index}"), noise(index as u64, 100_000));
    }
    world.run_until(3_600_000, "the master has all", |world| {
        names(world, master).len() == 6 && is_whole(world, master)
    });
}

#[test]
fn a_master_of_six_hundred_leechers_reaches_every_one() {
    let mut world = World::new(16);
    let names: Vec<String> = (0..600).map(|index| format!("l{index}")).collect();
    let below: Vec<(&str, Role)> = names.iter().map(|name| (name.as_str(), Role::Leecher)).collect();
    let mut master = master_settings(&below);
    master.sessions_max = 1_000;
    let master = world.add(master);
    let leechers: Vec<usize> = names
        .iter()
        .map(|name| {
            let mut settings = below_settings(name, Role::Leecher);
            settings.subscriptions = vec!["shared".into()];
            world.add(settings)
        })
        .collect();
    world.run_ms(60_000);
    world.put_now(master, "shared/a", noise(1, 3_000));
    let has = |world: &World, name: &str| {
        leechers.iter().all(|leecher| world.machines[*leecher].engine.table().contains_key(name))
    };
    world.run_until(120_000, "all have it", |world| has(world, "shared/a"));
    // All at once fall silent in the middle of the next, so that all are told again at one moment.
    world.put_now(master, "shared/b", noise(2, 3_000));
    world.run_until(60_000, "it is announced", |world| world.judge.announcements > 2 * 600 - 1);
    for leecher in &leechers {
        world.cut(*leecher, 200_000);
    }
    world.run_ms(250_000);
    for leecher in &leechers {
        world.mend(*leecher);
    }
    world.run_until(600_000, "all have the next", |world| has(world, "shared/b"));
}

#[test]
fn a_node_of_another_fleet_is_not_believed() {
    let mut world = World::new(15);
    let master = world.add(master_settings(&[("worker", Role::Worker)]));
    let mut other = settings("worker", Role::Worker, vec![peer("master", Role::Master)]);
    other.fleet = "other".into();
    let worker = world.add(other);
    world.put_now(worker, "a", noise(1, 100));
    world.run_ms(120_000);
    assert!(names(&world, master).is_empty());
    assert!(world.status(master).sync.messages_dropped > 0);
}

/// As SIGHUP does.
fn reload(world: &mut World, node: usize, change: impl FnOnce(&mut Settings)) {
    change(&mut world.machines[node].settings);
    world.reload(node);
    world.input(node, Input::Wake);
}

#[test]
fn other_subscriptions_are_in_force_without_a_restart() {
    let (mut world, [_, w1, _, leecher]) = World::fleet(41);
    world.put_now(w1, "shared/a", noise(1, 50_000));
    world.put_now(w1, "other/b", noise(2, 50_000));
    world.run_until(10_000, "what it subscribes to is there", |world| names(world, leecher) == ["shared/a"]);
    reload(&mut world, leecher, |settings| settings.subscriptions = vec!["other".into()]);
    world.run_until(5_000, "and now the other", |world| names(world, leecher) == ["other/b", "shared/a"]);
    reload(&mut world, leecher, |settings| settings.subscriptions.clear());
    world.run_ms(5_000);
    world.put_now(w1, "other/c", noise(3, 50_000));
    world.run_ms(20_000);
    assert_eq!(names(&world, leecher), ["other/b", "shared/a"]);
}

#[test]
fn a_master_that_is_new_or_has_another_key_is_known_without_a_restart() {
    let mut world = World::new(42);
    let master = world.add(master_settings(&[("worker", Role::Worker)]));
    let mut settings = below_settings("worker", Role::Worker);
    settings.peers.clear();
    let worker = world.add(settings);
    world.put_now(worker, "a", noise(1, 50_000));
    let keyed = |key_of: &str| Peer { key: key(key_of).verifying_key(), ..peer("master", Role::Master) };
    reload(&mut world, worker, |settings| settings.peers = vec![keyed("master")]);
    world.run_until(5_000, "the new master has it", |world| names(world, master) == ["a"]);
    for name in ["b", "c"] {
        reload(&mut world, worker, |settings| settings.peers = vec![keyed("somebody")]);
        world.put_now(worker, name, noise(2, 50_000));
        world.run_ms(30_000);
        assert!(!names(&world, master).contains(&name.to_owned()));
        reload(&mut world, worker, |settings| settings.peers = vec![keyed("master")]);
        world.run_until(5_000, "it has this too", |world| names(world, master).contains(&name.to_owned()));
    }
    world.run_ms(5_000);
    let sent = world.status(worker).sync.messages_sent;
    reload(&mut world, worker, |_| ());
    world.run_ms(5_000);
    assert_eq!(world.status(worker).sync.messages_sent, sent, "a reload of the same says nothing");
}
