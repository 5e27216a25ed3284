//! Objects reach those who want them, whole, once, and are acknowledged when they are durable.

use crate::sim::net::Faults;
use crate::sim::random::Random;
use crate::sim::setup::{below_settings, master_settings};
use crate::sim::{START_MS, World};
use larder_core::id::BlockId;
use larder_core::note::Note;
use larder_core::request::{FailureKind, Request, Response, Target};
use larder_core::role::Role;

/// Bytes that no two seeds share.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    Random::new(seed).bytes(length)
}

pub(crate) fn by_name(name: &str) -> Target {
    Target::Name(name.parse().unwrap())
}

/// Both have the same names for the same objects, with all their blocks.
pub(crate) fn are_alike(world: &World, one: usize, other: usize) -> bool {
    world.machines[one].engine.table() == world.machines[other].engine.table()
        && is_whole(world, one)
        && is_whole(world, other)
}

pub(crate) fn is_whole(world: &World, node: usize) -> bool {
    let engine = &world.machines[node].engine;
    engine.names.keys().all(|name| engine.is_complete(&engine.binding(name).unwrap()))
}

fn sent_bytes(world: &World, from: usize, to: usize) -> u64 {
    world.net.block_bytes.get(&(world.name(from), world.name(to))).copied().unwrap_or(0)
}

#[test]
fn a_small_object_reaches_the_master() {
    let (mut world, master, worker) = World::pair(1);
    world.put_now(worker, "a/b", noise(1, 5_000));
    world.run_until(10_000, "the master has it", |world| are_alike(world, master, worker));
    assert_eq!(world.get(master, by_name("a/b")), Some(noise(1, 5_000)));
    world.run_ms(5_000);
    let status = world.status(worker);
    assert!(status.peers[0].outbox_empty && status.sync.objects_acknowledged == 1, "{status:?}");
}

#[test]
fn an_object_of_several_levels_of_manifests_reaches_the_master() {
    let (mut world, master, worker) = World::pair(2);
    let bytes = noise(2, 90 << 20);
    world.put_now(worker, "big", bytes.clone());
    let depth = world.machines[worker].engine.binding(&"big".parse().unwrap()).unwrap().content;
    assert!(matches!(depth, larder_core::binding::Content::Object { depth: 2, .. }), "{depth:?}");
    world.run_until(600_000, "the master has it", |world| are_alike(world, master, worker));
    assert!(world.get(master, by_name("big")) == Some(bytes));
    let sent = sent_bytes(&world, worker, master);
    assert!(sent < (90 << 20) * 101 / 100, "{sent} bytes were sent for 90 MiB");
}

#[test]
fn an_empty_object_and_its_deletion_reach_the_master() {
    let (mut world, master, worker) = World::pair(3);
    world.put_now(worker, "empty", Vec::new());
    world.run_until(10_000, "the master has it", |world| {
        world.machines[master].engine.table().contains_key("empty")
    });
    assert_eq!(world.get(master, by_name("empty")), Some(Vec::new()));
    world.request(worker, Request::Remove { name: "empty".parse().unwrap() });
    world.run_until(10_000, "it is deleted there", |world| world.machines[master].engine.table().is_empty());
}

#[test]
fn a_thousand_small_objects_of_many_connections_arrive() {
    let (mut world, master, worker) = World::pair(4);
    let mut calls = Vec::new();
    for index in 0..1_000_u32 {
        let bytes = noise(u64::from(index), 100 + index as usize % 400);
        calls.push(world.put_as(worker, 1 + index % 20, &format!("small/{index}"), bytes));
    }
    for call in calls {
        let answer = world.wait(call);
        assert!(matches!(answer, Response::Stored { .. }), "{answer:?}");
    }
    world.run_until(120_000, "all are there", |world| {
        world.machines[master].engine.table().len() == 1_000 && are_alike(world, master, worker)
    });
    let names = match world.request(master, Request::List { prefix: "small/".into(), after: None }) {
        Response::Names { objects, next } => (objects.len(), next.is_some()),
        other => panic!("{other:?}"),
    };
    assert_eq!(names, (256, true));
}

#[test]
fn what_waits_in_the_queue_of_a_slow_link_is_not_asked_for_again() {
    let (mut world, master, worker) = World::pair(4);
    world.net.links[worker].uplink = Some(40_000);
    world.cut(worker, 0);
    let length = 15_000;
    for index in 0..250 {
        world.put_now(worker, &format!("f{index}"), noise(index, length));
    }
    world.mend(worker);
    world.run_until(300_000, "the master has all", |world| are_alike(world, master, worker));
    let (sent, put) = (sent_bytes(&world, worker, master), 250 * length as u64);
    assert!(sent < put * 105 / 100, "{sent} bytes were sent for {put}");
}

#[test]
fn equal_content_is_sent_once() {
    let (mut world, master, worker) = World::pair(5);
    let bytes = noise(5, 3 << 20);
    world.put_now(worker, "one", bytes.clone());
    world.run_until(60_000, "the first is there", |world| are_alike(world, master, worker));
    let before = sent_bytes(&world, worker, master);
    world.put_now(worker, "two", bytes.clone());
    world.put_now(worker, "three", [bytes.as_slice(), b"and more"].concat());
    world.run_until(60_000, "all are there", |world| are_alike(world, master, worker));
    let more = sent_bytes(&world, worker, master) - before;
    assert!(more < 300_000, "{more} bytes for what was there");
}

#[test]
fn cut_links_cost_time_and_not_what_is_durable() {
    let (mut world, master, worker) = World::pair(6);
    world.net.faults.delay_ms_max = 40;
    let bytes = noise(6, 20 << 20);
    world.put_now(worker, "film", bytes.clone());
    for _ in 0..40 {
        let ms = 100 + world.random.below(700);
        world.run_ms(ms);
        let node = if world.random.chance(500) { worker } else { master };
        world.cut(node, 200);
        world.run_ms(300);
        world.mend(node);
    }
    world.run_until(600_000, "the master has it", |world| are_alike(world, master, worker));
    assert!(world.get(master, by_name("film")) == Some(bytes));
    let sent = sent_bytes(&world, worker, master);
    // What was on its way to flash when a link fell may come again: a window for each cut.
    let window = 64 * 120 * 1024 * 40;
    assert!(sent < (20 << 20) + window / 4, "{sent} bytes arrived for 20 MiB");
    assert_eq!(world.status(worker).power.dropped + world.status(master).power.dropped, 0);
}

#[test]
fn fifty_cuts_leave_the_master_able_to_receive() {
    let (mut world, master, worker) = World::pair(7);
    world.net.faults.delay_ms_max = 60;
    for index in 0..60 {
        world.put_now(worker, &format!("f{index}"), noise(index, 4 << 20));
        world.run_ms(150);
        world.cut(worker, 0);
        world.run_ms(10);
        world.mend(worker);
        world.run_ms(100);
    }
    world.run_until(600_000, "the master has all", |world| are_alike(world, master, worker));
}

#[test]
fn doubled_and_overtaken_messages_change_nothing() {
    let (mut world, master, worker) = World::pair(8);
    world.net.faults =
        Faults { double_permille: 300, late_permille: 200, late_ms_max: 3_000, delay_ms_max: 20 };
    for index in 0..30 {
        world.put_now(worker, &format!("f{index}"), noise(100 + index, 20_000 * index as usize));
    }
    world.run_until(600_000, "the master has all", |world| are_alike(world, master, worker));
    world.net.faults = Faults::NONE;
    world.run_ms(60_000);
    assert!(world.status(worker).peers[0].outbox_empty);
}

#[test]
fn new_versions_and_deletions_reach_the_master() {
    let (mut world, master, worker) = World::pair(9);
    for version in 0..5 {
        world.put_now(worker, "log", noise(version, 200_000));
        world.run_ms(40 * version);
    }
    world.run_until(60_000, "the last version is there", |world| are_alike(world, master, worker));
    assert_eq!(world.get(master, by_name("log")), Some(noise(4, 200_000)));
    world.request(worker, Request::Remove { name: "log".parse().unwrap() });
    world.run_until(60_000, "it is deleted there", |world| world.machines[master].engine.table().is_empty());
    world.put_now(worker, "log", noise(9, 10));
    world.run_until(60_000, "it is back", |world| are_alike(world, master, worker));
    assert_eq!(world.get(master, by_name("log")), Some(noise(9, 10)));
    assert_eq!(world.status(master).sync.conflicts, 0);
}

#[test]
fn what_the_master_deletes_is_deleted_on_its_writer() {
    let (mut world, master, worker) = World::pair(10);
    world.put_now(worker, "a", noise(1, 1_000));
    world.run_until(60_000, "it is there", |world| are_alike(world, master, worker));
    world.request(master, Request::Remove { name: "a".parse().unwrap() });
    world.run_until(60_000, "it is deleted here", |world| world.machines[worker].engine.table().is_empty());
}

#[test]
fn a_wiped_master_gets_everything_again() {
    let (mut world, master, worker) = World::pair(11);
    for index in 0..100 {
        world.put_now(worker, &format!("f{index}"), noise(index, 30_000));
    }
    world.run_until(60_000, "all are there", |world| are_alike(world, master, worker));
    world.run_ms(120_000);
    world.crash(master);
    world.wipe(master);
    world.run_ms(1_000);
    world.start(master);
    world.run_until(120_000, "all are there again", |world| are_alike(world, master, worker));
    world.run_ms(300_000);
}

#[test]
fn a_node_that_lost_the_end_of_its_log_is_told_again_what_was_there_and_no_more() {
    for victim in 0..3 {
        let mut world = World::new(40 + victim as u64);
        let master = world.add(master_settings(&[("worker", Role::Worker), ("leech", Role::Leecher)]));
        let worker = world.add(below_settings("worker", Role::Worker));
        let mut settings = below_settings("leech", Role::Leecher);
        settings.subscriptions = vec![String::new()];
        let leecher = world.add(settings);
        let all_alike = |world: &World| are_alike(world, master, worker) && are_alike(world, master, leecher);
        let says_so = |world: &World| {
            let is_it =
                |note: &Note| matches!(note, Note::Store { what } if what.contains("the end of its log"));
            world.machines.iter().filter(|machine| machine.notes.iter().any(is_it)).count()
        };
        for index in 0..150 {
            world.put(worker, &format!("f{index}"), noise(index, 100));
        }
        world.run_until(120_000, "all are there", |world| {
            world.machines[worker].engine.names.len() == 150 && all_alike(world)
        });
        let before = world.machines[victim].engine.clone();
        for index in 150..170 {
            world.put_now(worker, &format!("f{index}"), noise(index, 3_000));
        }
        world.put_now(worker, "f0", noise(1_000, 3_000));
        world.request(worker, Request::Remove { name: "f1".parse().unwrap() });
        world.run_until(120_000, "these are there too", all_alike);
        // a start that lost nothing is told nothing
        for node in [master, worker, leecher] {
            world.crash(node);
            world.start(node);
            world.run_ms(20_000);
        }
        assert!(all_alike(&world) && says_so(&world) == 0);
        let announced = world.judge.announcements;
        world.crash(victim);
        world.machines[victim].engine = before;
        world.start(victim);
        world.run_until(120_000, "what was lost is there again", all_alike);
        assert!(says_so(&world) > 0);
        let table = world.machines[victim].engine.table();
        assert!(!table.contains_key("f1"), "it was deleted in the end that was lost");
        assert!(!table.keys().any(|name| name.contains(".conflict-")), "nobody has written beside anybody");
        world.run_ms(60_000);
        assert!(all_alike(&world));
        let more = world.judge.announcements - announced;
        assert!(more <= 20, "{more} announcements for 22 changes");
        // one supply for all: who would know better has started again too
        let before = world.machines[victim].engine.clone();
        for index in 200..210 {
            world.put_now(worker, &format!("f{index}"), noise(index, 3_000));
        }
        world.run_until(120_000, "all are there", all_alike);
        [master, worker, leecher].into_iter().for_each(|node| world.crash(node));
        world.machines[victim].engine = before;
        [master, worker, leecher].into_iter().for_each(|node| world.start(node));
        world.run_until(120_000, "what was lost is there again", all_alike);
    }
}

#[test]
fn the_end_of_a_log_that_was_lost_before_starts_that_nobody_heard_of_is_told_again() {
    for seed in 0..12 {
        let (mut world, master, worker) = World::pair(700 + seed);
        let victim = if seed % 2 == 0 { master } else { worker };
        for index in 0..20 {
            world.put_now(worker, &format!("f{index}"), noise(index, 3_000));
        }
        world.run_until(60_000, "all are there", |world| are_alike(world, master, worker));
        let before = world.machines[victim].engine.clone();
        for index in 20..30 {
            world.put_now(worker, &format!("f{index}"), noise(index, 3_000));
        }
        world.run_until(60_000, "these too", |world| are_alike(world, master, worker));
        world.cut(victim, 1_000);
        world.crash(victim);
        world.machines[victim].engine = before;
        // its log grows past what the other knows of it, before that hears of any of these starts
        for start in 0..1 + seed / 2 {
            world.start(victim);
            for index in 0..20 * (1 - start.min(1)) {
                world.put_now(victim, &format!("own{index}"), noise(100 + index, 3_000));
            }
            world.run_ms(10_000);
            world.crash(victim);
        }
        world.start(victim);
        world.mend(victim);
        world.run_until(300_000, "what was lost is there again", |world| {
            let table = world.machines[victim].engine.table();
            is_whole(world, victim) && (0..30).all(|index| table.contains_key(&format!("f{index}")))
        });
    }
}

#[test]
fn a_worker_that_lost_its_store_writes_later_versions_than_before() {
    let (mut world, master, worker) = World::pair(20);
    for version in 0..4 {
        world.put_now(worker, "latest.jpg", noise(version, 30_000));
        world.run_ms(1_000);
    }
    world.run_until(60_000, "the last is there", |world| are_alike(world, master, worker));
    world.crash(worker);
    world.wipe(worker);
    world.start(worker);
    world.put_now(worker, "latest.jpg", noise(9, 30_000));
    world.run_until(60_000, "it is there", |world| are_alike(world, master, worker));
    assert!(world.get(master, by_name("latest.jpg")) == Some(noise(9, 30_000)));
    assert_eq!(world.status(master).sync.conflicts, 0);
}

#[test]
fn what_a_worker_writes_after_it_lost_its_store_with_its_clock_unset_is_kept_beside_what_it_wrote_before() {
    for seed in 0..40 {
        let (mut world, master, worker) = World::pair(500 + seed);
        world.net.faults.delay_ms_max = 300;
        let (before, after) = (noise(seed, 30_000), noise(100 + seed, 30_000));
        world.put_now(worker, "latest.jpg", before.clone());
        world.put_now(worker, "same.jpg", before.clone());
        world.run_until(60_000, "both are there", |world| are_alike(world, master, worker));
        world.crash(worker);
        world.wipe(worker);
        world.machines[worker].clock_off_ms = -START_MS;
        world.start(worker);
        let wait_ms = world.random.below(1_000);
        world.run_ms(wait_ms);
        world.put_now(worker, "latest.jpg", after.clone());
        world.put_now(worker, "same.jpg", before.clone());
        world.run_ms(60_000);
        assert!(are_alike(&world, master, worker), "seed {seed}: {}", world.describe());
        for node in [master, worker] {
            let table = world.machines[node].engine.table();
            let of_latest = |bytes: &[u8]| {
                let root = BlockId::of(bytes);
                table.iter().any(|(name, of)| name.starts_with("latest") && *of == root)
            };
            assert!(of_latest(&after), "seed {seed}: {}", world.describe());
            assert!(of_latest(&before), "seed {seed}: {}", world.describe());
            assert!(table.len() <= 3, "the same bytes are no conflict: {}", world.describe());
        }
    }
}

#[test]
fn a_restarted_master_is_found_without_a_new_link_of_the_worker() {
    let (mut world, master, worker) = World::pair(12);
    world.put_now(worker, "before", noise(1, 100_000));
    world.run_until(60_000, "it is there", |world| are_alike(world, master, worker));
    world.crash(master);
    world.run_ms(5_000);
    world.start(master);
    world.run_ms(5_000);
    world.put_now(worker, "after", noise(2, 100_000));
    world.run_until(5_000, "the new one is there", |world| are_alike(world, master, worker));
}

#[test]
fn a_worker_that_crashes_in_mid_transfer_goes_on() {
    let (mut world, master, worker) = World::pair(13);
    world.net.faults.delay_ms_max = 30;
    let bytes = noise(13, 12 << 20);
    world.put_now(worker, "film", bytes.clone());
    for _ in 0..6 {
        let ms = 100 + world.random.below(400);
        world.run_ms(ms);
        world.crash(worker);
        world.run_ms(200);
        world.start(worker);
    }
    world.run_until(600_000, "the master has it", |world| are_alike(world, master, worker));
    assert!(world.get(master, by_name("film")) == Some(bytes));
}

#[test]
fn a_put_the_crash_came_before_is_whole_or_absent() {
    let (mut world, _, worker) = World::pair(14);
    for index in 0..30 {
        let call = world.put(worker, &format!("f{index}"), noise(index, 300_000));
        let ms = world.random.below(60);
        world.run_ms(ms);
        let was_stored = world.heard(call).iter().any(|answer| matches!(answer, Response::Stored { .. }));
        world.crash(worker);
        let name = format!("f{index}").parse().unwrap();
        let binding = world.machines[worker].engine.binding(&name);
        assert!(!was_stored || binding.is_some(), "f{index} was acknowledged and is gone");
        let engine = &world.machines[worker].engine;
        assert!(binding.is_none_or(|binding| engine.is_complete(&binding)), "f{index} lacks blocks");
        world.start(worker);
    }
}

#[test]
fn a_failed_batch_is_answered_by_an_error_and_binds_nothing() {
    let (mut world, _, worker) = World::pair(15);
    world.machines[worker].engine.failing_commits = 1;
    let call = world.put(worker, "a", noise(1, 100_000));
    assert!(matches!(world.wait(call), Response::Error(_)));
    assert!(world.machines[worker].engine.names.is_empty());
    world.put_now(worker, "a", noise(1, 100_000));
}

#[test]
fn a_failing_batch_of_very_many_writes_is_told_to_each() {
    let (mut world, master, worker) = World::pair(16);
    world.machines[worker].settings.flush.age_ms = 5_000;
    world.machines[worker].job_ms_max = 60;
    world.reload(worker);
    world.machines[worker].engine.failing_commits = 2;
    let calls: Vec<_> = (0..3_000_u32)
        .map(|index| world.put_as(worker, 1 + index % 30, &format!("f{index}"), noise(u64::from(index), 100)))
        .collect();
    for call in &calls {
        world.wait(*call);
    }
    let stored =
        calls.iter().filter(|call| matches!(world.heard(**call)[0], Response::Stored { .. })).count();
    assert!(stored < calls.len());
    // Counted first: comparing so many at each step would take longer than all of the rest.
    world.run_until(600_000, "what was stored is there", |world| {
        world.machines[master].engine.names.len() == stored && are_alike(world, master, worker)
    });
}

#[test]
fn the_end_of_a_process_waits_for_its_flush() {
    let (mut world, _, worker) = World::pair(17);
    world.machines[worker].settings.flush.age_ms = 60_000;
    world.reload(worker);
    let call = world.put(worker, "a", noise(1, 1_000));
    world.run_ms(100);
    assert!(world.heard(call).is_empty(), "a patient put waits");
    world.input(worker, larder_core::message::Input::Stop);
    world.run_until(1_000, "it has stopped", |world| world.machines[worker].stopped);
    assert!(matches!(world.heard(call), [Response::Stored { .. }]));
}

#[test]
fn no_patient_write_waits_longer_than_its_age_and_a_flush_waits_for_nothing() {
    let (mut world, _, worker) = World::pair(18);
    world.machines[worker].settings.flush.age_ms = 10_000;
    world.machines[worker].settings.tick_ms = 1_000;
    world.reload(worker);
    for index in 0..20 {
        let asked_ms = world.now_ms;
        let call = world.put(worker, &format!("f{index}"), noise(index, 1_000));
        world.wait(call);
        let waited_ms = world.now_ms - asked_ms;
        assert!((5_000..=10_050).contains(&waited_ms), "{waited_ms} ms");
        let pause_ms = world.random.below(3_000);
        world.run_ms(pause_ms);
    }
    let commits = world.machines[worker].engine.commits;
    let call = world.put(worker, "last", noise(99, 1_000));
    world.run_ms(10);
    assert_eq!(world.request(worker, Request::Flush), Response::Flushed);
    assert!(matches!(world.heard(call), [Response::Stored { .. }]));
    assert_eq!(world.machines[worker].engine.commits, commits + 1);
}

#[test]
fn a_connection_that_ends_in_mid_put_leaves_no_name() {
    let (mut world, master, worker) = World::pair(21);
    for index in 0..40 {
        let call = world.put_as(worker, 2, &format!("f{index}"), noise(index, 3 << 20));
        let ms = world.random.below(30);
        world.run_ms(ms);
        let is_stored = world.heard(call).iter().any(|answer| matches!(answer, Response::Stored { .. }));
        if !is_stored {
            world.hang_up(worker, 2);
        }
    }
    world.put_now(worker, "last", noise(99, 100));
    assert!(is_whole(&world, worker));
    world.run_until(120_000, "all that has a name is there", |world| are_alike(world, master, worker));
}

#[test]
fn batches_of_a_patient_profile_spare_flash_and_radio() {
    let count = |flush_ms: u64, send_ms: u64| {
        let (mut world, master, worker) = World::pair(22);
        let settings = &mut world.machines[worker].settings;
        (settings.flush.age_ms, settings.send.age_ms) = (flush_ms, send_ms);
        world.reload(worker);
        let before = (world.machines[worker].engine.commits, world.judge.announcements);
        for index in 0..600 {
            world.put(worker, &format!("f{index}"), noise(index, 200));
            world.run_ms(100);
        }
        let after = (world.machines[worker].engine.commits, world.judge.announcements);
        world.run_until(300_000, "all are there", |world| are_alike(world, master, worker));
        (after.0 - before.0, after.1 - before.1)
    };
    let (quick, patient) = (count(10, 10), count(10_000, 20_000));
    assert!(patient.0 * 20 < quick.0, "commits: {patient:?} of {quick:?}");
    assert!(patient.1 * 10 < quick.1, "announcements: {patient:?} of {quick:?}");
}

#[test]
fn an_idle_fleet_sleeps() {
    let (mut world, master, worker) = World::pair(19);
    world.put_now(worker, "a", noise(1, 1_000));
    world.run_ms(300_000);
    let wakes = |world: &World, node: usize| world.machines[node].wakes.values().sum::<u64>();
    let before = wakes(&world, master) + wakes(&world, worker);
    world.run_ms(1_800_000);
    let after = wakes(&world, master) + wakes(&world, worker);
    assert!(after - before <= 2, "{}", world.describe());
}

#[test]
fn of_two_gets_at_once_on_one_connection_one_is_served_and_the_other_told_so() {
    let (mut world, _, worker) = World::pair(31);
    world.put_now(worker, "a", noise(1, 300_000));
    world.put_now(worker, "b", noise(2, 300_000));
    world.machines[worker].job_ms_max = 200;
    let get = |name| Request::Get { target: by_name(name), offset: 0, length: None };
    let calls = [get("a"), get("b")].map(|get| world.ask_as(worker, 7, get));
    let is_over = |response: &Response| !matches!(response, Response::Object { .. });
    for call in calls {
        world.run_until(10_000, "each get ends", |world| world.heard(call).iter().any(is_over));
    }
    let refused = world.heard(calls[1]);
    assert!(
        matches!(refused, [Response::Error(failure)] if failure.kind == FailureKind::Busy),
        "{refused:?}"
    );
    assert!(world.data[&(worker, 7, calls[0].number)] == noise(1, 300_000));
}
