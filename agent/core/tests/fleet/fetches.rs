//! Fetches that wait, that many ask for at once, and that can not be answered now.

use crate::sim::World;
use crate::sim::impostor::hello;
use crate::sim::setup::{below_settings, master_settings};
use crate::transfer::{by_name, is_whole, noise};
use larder_core::note::Note;
use larder_core::object::manifest::Manifest;
use larder_core::request::{FailureKind, Request, Response, Target};
use larder_core::role::Role;
use larder_core::sync::wire::SyncMessage;

fn pair(seed: u64) -> (World, usize, usize) {
    let mut world = World::new(seed);
    let master = world.add(master_settings(&[("leech", Role::Leecher)]));
    let mut leecher = below_settings("leech", Role::Leecher);
    leecher.offline_requests_max = 256;
    let leecher = world.add(leecher);
    world.run_ms(500);
    (world, master, leecher)
}

#[test]
fn every_fetch_that_waited_for_the_master_is_answered() {
    for (seed, count) in [(1, 100), (2, 256)] {
        let (mut world, master, leecher) = pair(seed);
        for index in 0..count {
            world.put_now(master, &format!("own/{index}"), noise(index, 3_000));
        }
        world.run_ms(1_000);
        world.crash(master);
        world.run_ms(1_000);
        for index in 0..count {
            let target = by_name(&format!("own/{index}"));
            let answer = world.request(leecher, Request::Fetch { target });
            assert_eq!(answer, Response::Queued { waiting: index as u32 + 1 });
        }
        world.run_ms(10_000);
        world.start(master);
        world.net.faults.delay_ms_max = 100;
        world.machines[leecher].job_ms_max = 60;
        world.run_until(120_000, "all have come", |world| {
            world.machines[leecher].engine.table().len() == count as usize && is_whole(world, leecher)
        });
    }
}

#[test]
fn more_fetches_at_once_than_are_under_way_wait_for_their_turn() {
    let (mut world, master, leecher) = pair(3);
    let mut calls = Vec::new();
    for index in 0..200 {
        world.put_now(master, &format!("own/{index}"), noise(index, 20_000));
    }
    for index in 0..200 {
        let target = by_name(&format!("own/{index}"));
        calls.push(world.ask_as(leecher, 1 + index as u32 % 4, Request::Fetch { target }));
    }
    for call in calls {
        let answer = world.wait(call);
        assert!(matches!(answer, Response::Fetched { .. }), "{answer:?}");
    }
}

#[test]
fn a_disk_of_the_masters_that_fails_for_a_moment_is_no_missing_object() {
    let (mut world, master, leecher) = pair(4);
    world.put_now(master, "film", noise(1, 1 << 20));
    let block = |(_, block): &(_, &bytes::Bytes)| block.len() > 30_000;
    let (id, bytes) = world.machines[master].engine.blocks.iter().find(block).unwrap();
    let (id, bytes) = (*id, bytes.to_vec());
    for kind in [FailureKind::Disk, FailureKind::Busy] {
        world.machines[master].engine.failing_reads.push_back(kind);
    }
    assert!(world.get(leecher, Target::Cid(id)) == Some(bytes));
    assert!(world.machines[master].engine.failing_reads.is_empty());
}

#[test]
fn what_a_worker_has_fetched_by_its_hash_and_removed_it_can_fetch_again() {
    let (mut world, [master, worker, ..]) = World::fleet(31);
    world.run_ms(60_000);
    world.put_now(master, "film", noise(1, 1 << 20));
    let root = world.machines[master].engine.table()["film"];
    for _ in 0..2 {
        let answer = world.request(worker, Request::Fetch { target: Target::Cid(root) });
        assert!(matches!(answer, Response::Fetched { .. }), "{answer:?}");
        let name = format!("cid/{root}").parse().unwrap();
        assert!(world.machines[worker].engine.table().contains_key(&format!("cid/{root}")));
        let answer = world.request(worker, Request::Remove { name });
        assert!(!matches!(answer, Response::Error(_)), "{answer:?}");
        world.run_ms(60_000);
        assert!(world.machines[worker].engine.table().is_empty());
        assert_eq!(world.machines[master].engine.table().len(), 1);
    }
}

#[test]
fn a_damaged_block_of_the_masters_is_said_to_be_damaged() {
    let (mut world, master, leecher) = pair(5);
    world.put_now(master, "film", noise(1, 1 << 20));
    let (id, _) = world.machines[master].engine.blocks.iter().find(|(_, b)| b.len() > 30_000).unwrap();
    let id = *id;
    world.machines[master].engine.damaged.insert(id);
    let answer = world.request(leecher, Request::Fetch { target: Target::Cid(id) });
    let is_damaged = |failure: &larder_core::request::Failure| failure.kind == FailureKind::Damaged;
    assert!(matches!(&answer, Response::Error(failure) if is_damaged(failure)), "{answer:?}");
}

#[test]
fn what_is_damaged_here_is_mended_by_a_fetch_without_a_new_binding() {
    for (seed, size) in [(8, 30_000), (9, 5 << 20)] {
        let (mut world, master, leecher) = pair(seed);
        let bytes = noise(1, size);
        world.put_now(master, "film", bytes.clone());
        world.request(leecher, Request::Fetch { target: by_name("film") });
        let seq = world.machines[leecher].engine.names[&"film".parse().unwrap()].seq;
        let blocks: Vec<_> = world.machines[leecher].engine.blocks.keys().copied().collect();
        // all together, and then each alone, among them the manifest
        for damaged in [blocks.clone(), vec![blocks[0]], vec![*blocks.last().unwrap()]] {
            world.machines[leecher].engine.damaged.extend(&damaged);
            assert!(world.get(leecher, by_name("film")).is_none());
            let received = world.status(leecher).sync.blocks_received;
            let answer = world.request(leecher, Request::Fetch { target: by_name("film") });
            assert!(matches!(answer, Response::Fetched { .. }), "{answer:?}");
            assert!(world.machines[leecher].engine.damaged.is_empty(), "fetched before it was mended");
            assert!(world.get(leecher, by_name("film")) == Some(bytes.clone()));
            let received = world.status(leecher).sync.blocks_received - received;
            assert_eq!(received, damaged.len() as u64, "what is whole is not sent again");
        }
        let received = world.status(leecher).sync.objects_received;
        world.request(leecher, Request::Fetch { target: by_name("film") });
        assert_eq!(world.status(leecher).sync.objects_received, received, "nothing was lacking");
        assert_eq!(world.machines[leecher].engine.names[&"film".parse().unwrap()].seq, seq);
    }
}

#[test]
fn manifests_that_a_fetch_itself_finds_damaged_are_mended_by_it() {
    let (mut world, master, leecher) = pair(11);
    let bytes = noise(1, 90 << 20);
    world.put_now(master, "film", bytes.clone());
    world.request(leecher, Request::Fetch { target: by_name("film") });
    let engine = &mut world.machines[leecher].engine;
    let root = engine.table()["film"];
    let children = Manifest::decode(&engine.blocks[&root]).unwrap().into_children();
    let rotten = [&[root], &children.iter().map(|child| child.id).collect::<Vec<_>>()[..]].concat();
    let are_manifests = rotten.iter().all(|id| Manifest::decode(&engine.blocks[id]).is_ok());
    assert!(are_manifests && rotten.len() > 2, "the object has too few levels: {}", rotten.len());
    engine.rotten.extend(&rotten);
    let (blocks, asked_ms) = (world.status(leecher).sync.blocks_received, world.now_ms);
    let answer = world.request(leecher, Request::Fetch { target: by_name("film") });
    assert!(matches!(answer, Response::Fetched { .. }), "{answer:?}");
    assert!(world.now_ms - asked_ms < 20_000, "it was asked for anew");
    let received = world.status(leecher).sync.blocks_received - blocks;
    assert_eq!(received, rotten.len() as u64, "what is whole is not sent again");
    world.run_ms(1_000);
    assert!(world.status(master).peers.iter().all(|peer| peer.outbox_empty), "the master waits for nothing");
    assert!(world.get(leecher, by_name("film")) == Some(bytes));
}

#[test]
fn a_fetch_says_how_far_it_is_from_time_to_time() {
    let (mut world, master, leecher) = pair(10);
    world.machines[leecher].job_ms_max = 300;
    world.put_now(master, "film", noise(1, 8 << 20));
    let began_ms = world.now_ms;
    let call = world.ask(leecher, Request::Fetch { target: by_name("film") });
    world.wait(call);
    let words: Vec<(u64, u64)> = world.heard(call).iter().filter_map(how_far).collect();
    assert!(words.len() > 2 && words.is_sorted(), "{words:?}");
    assert!(words.iter().all(|(done, total)| done <= total && *total == 8 << 20), "{words:?}");
    assert!(words.len() as u64 <= (world.now_ms - began_ms) / 500 + 1, "{words:?}");
}

fn how_far(response: &Response) -> Option<(u64, u64)> {
    match response {
        Response::Progress { done, total, .. } => Some((*done, *total)),
        _ => None,
    }
}

/// A leecher below a master that no machine plays, in a session.
fn below_an_impostor(seed: u64) -> (World, usize) {
    let mut world = World::new(seed);
    let mut leecher = below_settings("leech", Role::Leecher);
    leecher.offline_requests_max = 256;
    let leecher = world.add(leecher);
    world.run_ms(500);
    world.ask(leecher, Request::Fetch { target: by_name("x") });
    world.run_ms(100);
    let Some(SyncMessage::Hello(said)) = world.told("master").pop() else { panic!("it says hello") };
    world.say_as("master", "leech", &hello(Role::Master, 1, Some((said.epoch, said.session))));
    (world, leecher)
}

fn asked(world: &mut World) -> Vec<u32> {
    let request = |message| match message {
        SyncMessage::Fetch { request, .. } => Some(request),
        _ => None,
    };
    world.told("master").into_iter().filter_map(request).collect()
}

fn given_up(world: &World, node: usize) -> usize {
    world.machines[node].notes.iter().filter(|note| matches!(note, Note::Fetch { .. })).count()
}

#[test]
fn a_fetch_that_waited_and_is_not_answered_is_asked_again_and_given_up_aloud() {
    let (mut world, leecher) = below_an_impostor(6);
    assert_eq!(asked(&mut world).len(), 1);
    world.run_ms(70_000);
    assert_eq!(asked(&mut world).len(), 1, "asked again");
    assert_eq!(given_up(&world, leecher), 0);
    world.run_ms(3_600_000);
    assert!(asked(&mut world).len() > 2);
    assert_eq!(given_up(&world, leecher), 1);
    world.run_ms(3_600_000);
    assert_eq!((asked(&mut world).len(), given_up(&world, leecher)), (0, 1), "once");
}

#[test]
fn a_fetch_that_waited_and_is_nowhere_is_noted() {
    let (mut world, leecher) = below_an_impostor(7);
    let request = asked(&mut world)[0];
    world.say_as("master", "leech", &SyncMessage::NotFound { request });
    assert_eq!(given_up(&world, leecher), 1);
}
