//! What dead, slow, greedy and failing peers and disks may cost, and what they may not.

use crate::sim::World;
use crate::sim::impostor::hello;
use crate::sim::setup::{below_settings, master_settings};
use crate::transfer::{are_alike, is_whole, noise};
use bytes::Bytes;
use larder_core::binding::Content;
use larder_core::id::BlockId;
use larder_core::limits::MESSAGE_BLOCKS_MAX;
use larder_core::message::Input;
use larder_core::note::Note;
use larder_core::object::manifest::{Child, Manifest};
use larder_core::request::FailureKind;
use larder_core::role::Role;
use larder_core::sync::wire::{Outcome, SyncMessage, Want, Wanted};

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

/// The blocks of an object of so many different blocks of two bytes, and its manifest.
fn crumbs(count: u16) -> (Vec<Bytes>, Manifest) {
    let blocks: Vec<Bytes> = (0..count).map(|index| Bytes::copy_from_slice(&index.to_le_bytes())).collect();
    let children = blocks.iter().map(|block| Child { id: BlockId::of(block), bytes: 2 }).collect();
    (blocks, Manifest::new(1, children).unwrap())
}

#[test]
fn a_message_of_more_blocks_than_allowed_is_dropped_and_counted() {
    let (mut world, master, _) = world_of(5, &["imp"]);
    let (blocks, manifest) = crumbs(2_048);
    let root = Bytes::from(manifest.encode());
    let content = Content::Object { root: BlockId::of(&root), depth: 1 };
    world.announce_as("imp", "master", 1, vec![("crumbs".into(), 4_096, content)]);
    world.send_blocks_as("imp", "master", 1, vec![root]);
    world.run_ms(1_000);
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
    let (blocks, manifest) = crumbs(640);
    let root = Bytes::from(manifest.encode());
    let content = Content::Object { root: BlockId::of(&root), depth: 1 };
    world.announce_as("imp", "master", 1, vec![("crumbs".into(), 1_280, content)]);
    world.send_blocks_as("imp", "master", 1, vec![root]);
    world.run_ms(1_000);
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
