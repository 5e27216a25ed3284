//! What dead, slow, greedy and failing peers and disks may cost, and what they may not.

use crate::sim::World;
use crate::sim::impostor::{hello, sealed};
use crate::sim::setup::{below_settings, master_settings};
use crate::transfer::{are_alike, by_name, is_whole, noise};
use bytes::Bytes;
use larder_core::binding::Content;
use larder_core::id::BlockId;
use larder_core::limits::MESSAGE_BLOCKS_MAX;
use larder_core::message::Input;
use larder_core::note::Note;
use larder_core::object::manifest::{Child, Manifest};
use larder_core::request::{FailureKind, Response};
use larder_core::role::Role;
use larder_core::settings::Watch;
use larder_core::sync::wire::{Announce, Outcome, SyncMessage, Want, Wanted};

fn object(bytes: &[u8]) -> Content {
    Content::Object { root: BlockId::of(bytes), depth: 0 }
}

/// A master that knows a worker and these impostors, all of them in a session.
fn world_of(seed: u64, impostors: &[&str]) -> (World, usize, usize) {
    let mut world = World::new(seed);
    let mut below: Vec<(&str, Role)> = impostors.iter().map(|name| (*name, Role::Worker)).collect();
    below.push(("worker", Role::Worker));
    let master = world.add(master_settings(&below));
    let worker = world.add(below_settings("worker", Role::Worker));
    world.run_ms(500);
    for name in impostors {
        world.say_as(name, "master", &hello(Role::Worker, 1, None));
    }
    (world, master, worker)
}

/// `groups` announcements of `entries` blocks each, of which nothing ever comes.
fn announce_and_die(world: &mut World, from: &str, groups: u32, entries: u32) {
    for group in 1..=groups {
        let entry = |index: u32| {
            let name = format!("{from}/{group}/{index}");
            let content = object(name.as_bytes());
            (name, 30_000, content)
        };
        world.announce_as(from, "master", group, (0..entries).map(entry).collect());
    }
}

#[test]
fn dead_workers_that_hold_every_transfer_leave_room_after_the_first_repetition() {
    let dead: Vec<String> = (0..8).map(|index| format!("dead{index}")).collect();
    let dead: Vec<&str> = dead.iter().map(String::as_str).collect();
    let (mut world, master, worker) = world_of(1, &dead);
    for name in &dead {
        announce_and_die(&mut world, name, 4, 1);
    }
    world.put_now(worker, "alive", noise(1, 3 << 20));
    world.run_until(30_000, "the living one is served", |world| are_alike(world, master, worker));
}

#[test]
fn one_peer_takes_no_more_transfers_than_its_part() {
    let (mut world, master, worker) = world_of(2, &["greedy"]);
    announce_and_die(&mut world, "greedy", 40, 1);
    let busy = |message: &SyncMessage| matches!(message, SyncMessage::Busy { .. });
    assert_eq!(world.told("greedy").iter().filter(|message| busy(message)).count(), 36);
    world.put_now(worker, "alive", noise(1, 1_000));
    world.run_until(2_000, "others are served at once", |world| are_alike(world, master, worker));
}

#[test]
fn a_dead_transfer_gives_its_part_of_the_window_back() {
    let (mut world, master, worker) = world_of(3, &["dead"]);
    announce_and_die(&mut world, "dead", 1, 64);
    world.run_ms(15_000);
    world.put_now(worker, "film", noise(1, 4 << 20));
    world.run_until(30_000, "it is there", |world| are_alike(world, master, worker));
    let limit = world.judge.limits[&"worker".parse().unwrap()];
    assert!(limit >= 32, "the living one was given {limit} blocks of 64");
}

#[test]
fn a_transfer_that_was_silent_for_long_still_ends() {
    let (mut world, master, worker) = world_of(4, &[]);
    world.net.faults.delay_ms_max = 20;
    world.put_now(worker, "film", noise(1, 12 << 20));
    world.run_ms(300);
    // longer than the first repetition, and neither side loses its link
    world.net.faults.delay_ms_max = 0;
    world.machines[master].job_ms_max = 40_000;
    world.run_ms(60_000);
    world.machines[master].job_ms_max = 4;
    world.run_until(600_000, "it is there", |world| are_alike(world, master, worker));
}

/// The blocks of an object of so many different blocks of two bytes, and its manifest.
fn crumbs(count: u16) -> (Vec<Bytes>, Manifest) {
    let blocks: Vec<Bytes> = (0..count).map(|index| Bytes::copy_from_slice(&index.to_le_bytes())).collect();
    let children = blocks.iter().map(|block| Child { id: BlockId::of(block), bytes: 2 }).collect();
    (blocks, Manifest::new(1, children).unwrap())
}

/// Their object is announced to the master, who has its manifest and wants them.
fn announce_crumbs(world: &mut World, count: u16) -> Vec<Bytes> {
    let (blocks, manifest) = crumbs(count);
    let root = manifest.encode();
    let content = Content::Object { root: BlockId::of(&root), depth: 1 };
    world.announce_as("imp", "master", 1, vec![("crumbs".into(), 2 * u64::from(count), content)]);
    world.send_blocks_as("imp", "master", 1, vec![root]);
    world.run_ms(1_000);
    blocks
}

#[test]
fn a_message_of_more_blocks_than_allowed_is_dropped_and_counted() {
    let (mut world, master, _) = world_of(5, &["imp"]);
    let blocks = announce_crumbs(&mut world, 2_048);
    let before = world.status(master).sync;
    world.send_blocks_as("imp", "master", 1, blocks[..MESSAGE_BLOCKS_MAX + 1].to_vec());
    world.send_blocks_as("imp", "master", 1, blocks.clone());
    world.run_ms(1_000);
    let after = world.status(master).sync;
    assert_eq!(after.messages_dropped - before.messages_dropped, 2);
    assert_eq!(after.blocks_received, before.blocks_received);
    assert_crumbs_arrive(&mut world, master, &blocks);
}

/// Sent over and over, as much as the credit allows is taken each time.
fn assert_crumbs_arrive(world: &mut World, master: usize, blocks: &[Bytes]) {
    for blocks in blocks.chunks(MESSAGE_BLOCKS_MAX).cycle().take(100) {
        world.send_blocks_as("imp", "master", 1, blocks.to_vec());
        world.run_ms(200);
    }
    assert!(is_whole(world, master) && world.machines[master].engine.table().contains_key("crumbs"));
}

#[test]
fn blocks_beyond_the_credit_are_not_taken() {
    let (mut world, master, _) = world_of(6, &["imp"]);
    let blocks = announce_crumbs(&mut world, 640);
    let limit = world.judge.limits[&"imp".parse().unwrap()] as usize;
    assert!(limit < 640, "there is a limit: {limit}");
    world.machines[master].job_ms_max = 0;
    let before = world.status(master).sync;
    // all at once, before anything can be durable
    world.net.faults.delay_ms_max = 0;
    for blocks in blocks.chunks(MESSAGE_BLOCKS_MAX) {
        world.send_blocks_as("imp", "master", 1, blocks.to_vec());
    }
    world.run_ms(1_000);
    let after = world.status(master).sync;
    assert!(after.blocks_unasked > before.blocks_unasked, "what was not allowed is counted");
    assert_crumbs_arrive(&mut world, master, &blocks);
}

#[test]
fn a_disk_that_can_not_be_read_for_a_moment_refuses_nothing() {
    for kind in [FailureKind::Disk, FailureKind::Busy] {
        let (mut world, master, worker) = World::pair(7);
        world.cut(worker, 0);
        world.put_now(worker, "film", noise(1, 2 << 20));
        world.run_ms(1_000);
        world.mend(worker);
        world.run_until(10_000, "it is announced", |world| world.judge.announcements > 0);
        for _ in 0..4 {
            world.machines[worker].engine.failing_reads.push_back(kind);
        }
        world.run_until(900_000, "it is there", |world| are_alike(world, master, worker));
        let refused = |note: &Note| matches!(note, Note::Refused { .. });
        assert!(!world.machines[worker].notes.iter().any(refused), "{kind:?}");
        assert!(world.machines[worker].engine.failing_reads.is_empty());
    }
}

/// A worker whose master is an impostor, in a session.
fn below_an_impostor(seed: u64) -> (World, usize) {
    let mut world = World::new(seed);
    let worker = world.add(below_settings("worker", Role::Worker));
    world.run_ms(500);
    let Some(SyncMessage::Hello(said)) = world.told("master").pop() else { panic!("it says hello") };
    world.say_as("master", "worker", &hello(Role::Master, 1, Some((said.epoch, said.session))));
    (world, worker)
}

#[test]
fn what_the_disk_says_late_is_not_taken_for_the_next_transfer_of_that_number() {
    for seed in 0..40 {
        let (mut world, worker) = below_an_impostor(seed);
        world.put_now(worker, "a", noise(1, 50_000));
        world.run_ms(1_000);
        let group = announced(&mut world, "master")[0].group;
        let want = Want { group, round: 1, blocks: Wanted::Roots(vec![0]), limit: 1 };
        world.machines[worker].job_ms_max = 9_000;
        world.say_as("master", "worker", &SyncMessage::Want(want.clone()));
        world.say_as("master", "worker", &SyncMessage::Busy { group });
        world.run_ms(4_000);
        world.say_as("master", "worker", &SyncMessage::Want(want));
        world.run_ms(60_000);
        let told = world.status(worker).sync;
        assert!(told.blocks_sent >= 1, "seed {seed}");
    }
}

#[test]
fn a_write_of_an_earlier_transfer_is_not_taken_for_one_of_the_next_of_that_number() {
    for seed in 0..60 {
        let (mut world, master, _) = world_of(100 + seed, &["imp"]);
        let first = Bytes::from(noise(1, 30_000));
        let (blocks, manifest) = crumbs(3);
        let root = manifest.encode();
        world.announce_as("imp", "master", 1, vec![("first".into(), 30_000, object(&first))]);
        world.machines[master].job_ms_max = 1_000;
        world.send_blocks_as("imp", "master", 1, vec![first]);
        world.run_ms(20);
        world.told("imp");
        world.say_as("imp", "master", &hello(Role::Worker, 2, None));
        let content = Content::Object { root: BlockId::of(&root), depth: 1 };
        world.announce_as("imp", "master", 1, vec![("second".into(), 6, content)]);
        let mut outcomes = Vec::new();
        for _ in 0..1_500 {
            world.run_ms(20);
            for message in world.told("imp") {
                match message {
                    SyncMessage::Want(Want { blocks: Wanted::Roots(_), .. }) => {
                        world.send_blocks_as("imp", "master", 1, vec![root.clone()]);
                    }
                    SyncMessage::Want(_) => world.send_blocks_as("imp", "master", 1, blocks.clone()),
                    SyncMessage::Ack { outcomes: more, .. } => {
                        let is_there = world.machines[master].engine.table().contains_key("second");
                        assert!(is_there && is_whole(&world, master), "seed {seed}: {more:?} too early");
                        outcomes.extend(more);
                    }
                    _ => {}
                }
            }
        }
        assert_eq!(outcomes, [(0, Outcome::Stored)], "seed {seed}");
    }
}

#[test]
fn a_stop_saves_the_cursors_of_more_peers_than_one_turn_has_room_for() {
    let mut world = World::new(8);
    let names: Vec<String> = (0..1_100).map(|index| format!("l{index}")).collect();
    let below: Vec<(&str, Role)> = names.iter().map(|name| (name.as_str(), Role::Leecher)).collect();
    let mut master = master_settings(&below);
    master.sessions_max = 2_000;
    let master = world.add(master);
    world.run_ms(500);
    world.put_now(master, "private", noise(1, 100));
    for name in &names {
        world.forward(sealed(name, "master", name, &hello(Role::Leecher, 1, None)));
    }
    world.run_ms(20_000);
    world.input(master, Input::Stop);
    world.run_until(60_000, "it has stopped", |world| world.machines[master].stopped);
    let saved = world.machines[master].engine.settings.keys().filter(|key| key.starts_with("cursor/l"));
    assert_eq!(saved.count(), 1_100);
}

#[test]
fn a_stop_under_load_ends_soon_answers_what_was_complete_and_leaves_nothing_half() {
    for seed in 20..28 {
        let (mut world, master, worker) = world_of(seed, &[]);
        world.machines[master].settings.watches =
            vec![Watch { prefix: "in/".into(), settle_ms: 100, delete_after_ack: false }];
        world.machines[master].settings.flush.age_ms = 60_000;
        for index in 0..100 {
            let bytes = noise(100 + index, 500_000);
            world.machines[master].folders.write(0, 0, &index.to_string(), bytes);
        }
        world.crash(master);
        world.start(master);
        let complete = world.put_patiently(master, 2, "complete", noise(2, 1_000));
        world.run_ms(1_000);
        assert!(world.heard(complete).is_empty(), "seed {seed}: it waits for others");
        world.machines[master].job_ms_max = 100;
        world.put(worker, "film", noise(3, 40 << 20));
        let puts: Vec<_> = (0..4)
            .map(|index| {
                world.put_as(master, 3 + index, &format!("large/{index}"), noise(index.into(), 20 << 20))
            })
            .collect();
        world.run_ms(1_500 + 100 * (seed - 20));
        assert!(puts.iter().all(|call| world.heard(*call).is_empty()), "seed {seed}: they are under way");
        world.input(master, Input::Stop);
        world.run_until(5_000, "it has stopped", |world| world.machines[master].stopped);
        assert!(matches!(world.heard(complete), [Response::Stored { .. }]), "seed {seed}");
        assert!(
            puts.iter().all(|call| world.heard(*call).is_empty()),
            "seed {seed}: answered without its end"
        );
        let names = world.machines[master].engine.table();
        assert!(names.contains_key("complete") && !names.contains_key("film"), "seed {seed}");
        assert!(
            !names.keys().any(|name| name.starts_with("large/")) && is_whole(&world, master),
            "seed {seed}"
        );
    }
}

#[test]
fn a_stop_ends_though_the_disk_fails() {
    let (mut world, _, worker) = World::pair(9);
    world.put_now(worker, "a", noise(1, 100));
    world.run_ms(2_000);
    world.machines[worker].engine.failing_commits = u32::MAX;
    world.input(worker, Input::Stop);
    world.run_until(60_000, "it has stopped", |world| world.machines[worker].stopped);
}

#[test]
fn a_master_of_many_that_want_much_keeps_to_its_bound() {
    let mut world = World::new(11);
    let names: Vec<String> = (0..12).map(|number| format!("leecher-{number:02}")).collect();
    let below: Vec<(&str, Role)> = names.iter().map(|name| (name.as_str(), Role::Leecher)).collect();
    let mut settings = master_settings(&below);
    settings.in_flight_max = 8;
    let master = world.add(settings);
    for number in 0..3 {
        world.put_now(master, &format!("film/{number}"), noise(number, 1 << 20));
    }
    world.net.faults.delay_ms_max = 500;
    let leechers: Vec<usize> = names
        .iter()
        .map(|name| {
            let mut settings = below_settings(name, Role::Leecher);
            settings.subscriptions = vec!["film/".into()];
            world.add(settings)
        })
        .collect();
    world.run_until(120_000, "all have all", |world| {
        leechers.iter().all(|leecher| are_alike(world, master, *leecher) && is_whole(world, *leecher))
    });
    assert_eq!(world.judge.blocks_under_way_max, 8);
}

/// A master that has a film and news, and an impostor below it that follows the news; the log can not be read for it
/// at first.
fn above_an_impostor(seed: u64, failing_changes: u32) -> (World, usize) {
    let mut world = World::new(seed);
    let master = world.add(master_settings(&[("imp", Role::Leecher)]));
    world.put_now(master, "film", noise(1, 1_000));
    world.put_now(master, "shared/news", noise(2, 1_000));
    world.run_ms(500);
    world.machines[master].engine.failing_changes = failing_changes;
    let mut said = hello(Role::Leecher, 1, None);
    if let SyncMessage::Hello(said) = &mut said {
        said.subscriptions.push("shared".into());
    }
    world.say_as("imp", "master", &said);
    (world, master)
}

fn announced(world: &mut World, node: &str) -> Vec<Announce> {
    let announced = |message| match message {
        SyncMessage::Announce(announce) => Some(announce),
        _ => None,
    };
    world.told(node).into_iter().filter_map(announced).collect()
}

#[test]
fn a_log_that_could_not_be_read_is_read_when_there_is_room_for_what_it_says() {
    let (mut world, _) = above_an_impostor(12, 1);
    for request in 0..4 {
        world.say_as("imp", "master", &SyncMessage::Fetch { request, target: by_name("film") });
    }
    world.run_ms(10_000);
    let answers = announced(&mut world, "imp");
    assert!(answers.len() == 4 && answers.iter().all(|answer| answer.request.is_some()), "{answers:?}");
    let stored = vec![(0, Outcome::Stored)];
    world.say_as("imp", "master", &SyncMessage::Ack { group: answers[0].group, outcomes: stored, log: 0 });
    let news = announced(&mut world, "imp");
    assert!(matches!(&news[..], [news] if news.entries[0].0.as_str() == "shared/news"), "{news:?}");
}

#[test]
fn what_is_found_for_a_session_that_has_ended_is_not_announced() {
    let (mut world, master) = above_an_impostor(13, 0);
    world.machines[master].job_ms_max = 60_000;
    let fetch = |request| SyncMessage::Fetch { request, target: by_name("film") };
    for message in [fetch(1), SyncMessage::Later] {
        world.say_as("imp", "master", &message);
    }
    world.told("imp");
    world.say_as("imp", "master", &fetch(2));
    world.run_ms(200_000);
    let told = world.told("imp");
    let is_hello = |message: &SyncMessage| matches!(message, SyncMessage::Hello(_));
    assert!(told.len() > 1 && told.iter().all(is_hello), "{told:?}");
}

#[test]
fn a_long_object_on_a_slow_link_does_not_hold_up_those_behind_it() {
    let (mut world, master, worker) = World::pair(14);
    world.machines[worker].settings.in_flight_max = 4;
    world.reload(worker);
    world.machines[master].settings.window_blocks = 512;
    world.reload(master);
    world.net.faults.delay_ms_max = 5_000;
    world.put_now(worker, "film", noise(1, 40 << 20));
    world.run_ms(30_000);
    world.put_now(worker, "note", noise(2, 200_000));
    world.run_until(90_000, "the note is there", |world| {
        world.machines[master].engine.table().contains_key("note")
    });
    assert!(!world.machines[master].engine.table().contains_key("film"), "that was no slow link");
}

#[test]
fn what_is_wanted_and_waits_for_the_link_is_not_forgotten() {
    let (mut world, worker) = below_an_impostor(16);
    world.machines[worker].settings.in_flight_max = 1;
    world.reload(worker);
    for name in ["a", "b"] {
        world.put_now(worker, name, noise(1, 50_000));
        world.run_ms(1_000);
    }
    world.machines[worker].job_ms_max = 1_000;
    for Announce { group, .. } in announced(&mut world, "master") {
        let want = Want { group, round: 1, blocks: Wanted::Roots(vec![0]), limit: 1 };
        world.forward(sealed("master", "worker", "master", &SyncMessage::Want(want)));
    }
    world.run_ms(5);
    let (wanted_ms, announcements) = (world.now_ms, world.judge.announcements);
    world.net.faults.delay_ms_max = 600_000;
    world.run_until(5_000, "one is on its way", |world| !world.judge.blocks_under_way.is_empty());
    world.net.faults.delay_ms_max = 0;
    world.run_until(600_000, "it is there", |world| world.judge.blocks_under_way.is_empty());
    assert!(world.now_ms - wanted_ms > 40_000, "that was no slow link");
    assert!(world.judge.announcements > announcements, "what was sent may have been lost");
    world.run_ms(2_000);
    assert_eq!(world.status(worker).sync.blocks_sent, 2);
}
