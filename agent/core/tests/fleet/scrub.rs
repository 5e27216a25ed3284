//! What a node verifies though nobody has asked.

use crate::sim::World;
use crate::sim::setup::master_settings;
use crate::transfer::noise;
use larder_core::note::Note;
use larder_core::request::{FailureKind, Request, Response, ScrubNumbers};

const MINUTE_MS: u64 = 60_000;
const PERIOD_MS: u64 = 30 * MINUTE_MS;

/// A node alone that scrubs every half hour, one MiB and one rest at a time, and holds 5 MiB.
fn scrubbing(seed: u64, rest_ms: u64) -> (World, usize) {
    let mut world = World::new(seed);
    let mut settings = master_settings(&[]);
    (settings.scrub_period_ms, settings.scrub_rest_ms) = (PERIOD_MS, rest_ms);
    settings.clean_period_ms = 10_000_000;
    let node = world.add(settings);
    for index in 0..250 {
        world.put(node, &format!("f{index:03}"), noise(index, 12_000));
    }
    world.put_now(node, "big", noise(1000, 2 << 20));
    (world, node)
}

fn scrub(world: &mut World, node: usize) -> ScrubNumbers {
    world.status(node).scrub
}

fn scrubs(world: &World, node: usize) -> Vec<&Note> {
    let notes = world.machines[node].notes.iter();
    notes.filter(|note| matches!(note, Note::Scrubbed { .. })).collect()
}

#[test]
fn a_scrub_comes_by_itself_rests_between_its_steps_and_reports_what_it_finds() {
    let (mut world, node) = scrubbing(90, 20_000);
    let before = scrub(&mut world, node);
    assert!((before.ended, before.last_ms, before.under_way) == (0, None, None), "{before:?}");
    assert!(before.next_in_ms.is_some_and(|ms| ms <= PERIOD_MS), "{before:?}");
    let hurt = world.machines[node].engine.table()["f007"];
    world.machines[node].engine.damaged.insert(hurt);
    world.run_ms(PERIOD_MS + 40_000);
    let under_way = scrub(&mut world, node).under_way;
    let (done, total) = under_way.expect("five steps take more than a minute and a half");
    assert!(0 < done && done < total, "{done} of {total}");
    world.run_until(5 * MINUTE_MS, "the scrub ends", |world| !scrubs(world, node).is_empty());
    let blocks = world.machines[node].engine.blocks.len() as u64;
    let incomplete = vec!["f007".parse().unwrap()];
    let found = Note::Scrubbed { blocks, damaged: vec![hurt], incomplete: incomplete.clone() };
    assert_eq!(scrubs(&world, node), [&found]);
    let after = scrub(&mut world, node);
    assert_eq!((after.ended, after.blocks, after.damaged, &after.incomplete), (1, blocks, 1, &incomplete));
    world.put_now(node, "f007", noise(7, 12_000));
    world.machines[node].engine.damaged.clear();
    world.run_ms(PERIOD_MS + 10 * MINUTE_MS);
    let healed = scrub(&mut world, node);
    assert_eq!((healed.ended, healed.damaged, healed.incomplete.len()), (2, 0, 0), "the next one comes too");
}

#[test]
fn the_last_scrub_is_remembered_over_a_restart() {
    let (mut world, node) = scrubbing(91, 100);
    world.run_until(PERIOD_MS + 5 * MINUTE_MS, "the scrub ends", |world| !scrubs(world, node).is_empty());
    world.run_ms(10 * MINUTE_MS);
    let before = scrub(&mut world, node);
    world.crash(node);
    world.start(node);
    world.run_ms(1_000);
    let after = scrub(&mut world, node);
    assert_eq!((after.ended, after.last_ms), (0, before.last_ms));
    let (before, after) = (before.next_in_ms.unwrap(), after.next_in_ms.unwrap());
    assert!(after <= before && before - after <= 5_000, "{before} and {after}");
    world.run_ms(PERIOD_MS);
    assert_eq!(scrub(&mut world, node).ended, 1);
}

#[test]
fn nobody_waits_for_a_scrub_and_who_verifies_spares_it() {
    let (mut world, node) = scrubbing(92, 10 * MINUTE_MS);
    world.run_until(2 * PERIOD_MS, "a scrub is under way", |world| {
        world.machines[node].wakes.contains_key("next step of a scrub")
    });
    let asked_ms = world.now_ms;
    let Response::Verified { .. } = world.request(node, Request::Verify) else { panic!("a report") };
    assert!(world.now_ms - asked_ms < 5_000, "asked for, it does not rest");
    let after = scrub(&mut world, node);
    assert!((after.ended, after.under_way) == (1, None), "{after:?}");
    assert!(after.next_in_ms.is_some_and(|ms| ms > PERIOD_MS - MINUTE_MS), "{after:?}");
    assert!(scrubs(&world, node).is_empty());
}

#[test]
fn a_cleaning_between_two_steps_makes_no_object_incomplete() {
    for seed in 0..4 {
        let mut world = World::new(900 + seed);
        let mut settings = master_settings(&[]);
        (settings.scrub_period_ms, settings.scrub_rest_ms) = (20_000, 400);
        settings.verify_step_bytes = 200_000;
        settings.clean_period_ms = 1_700;
        let node = world.add(settings);
        for round in 0..60 {
            for index in 0..20 {
                world.put_now(node, &format!("f{index:02}"), noise(round * 100 + index, 30_000));
            }
            world.put_now(node, "big", noise(round, 1 << 20));
            world.run_ms(2_000);
            if round % 3 == 0 {
                world.request(node, Request::Remove { name: "big".parse().unwrap() });
            }
        }
        let found = scrubs(&world, node);
        assert!(found.len() >= 2 && world.machines[node].engine.cleaned > 0, "seed {seed}: {found:?}");
        for note in found {
            let Note::Scrubbed { damaged, incomplete, .. } = note else { unreachable!() };
            assert!(damaged.is_empty() && incomplete.is_empty(), "seed {seed}: {note:?}");
        }
    }
}

#[test]
fn a_profile_without_a_period_never_scrubs() {
    let mut world = World::new(93);
    let node = world.add(master_settings(&[]));
    world.put_now(node, "a", noise(1, 100_000));
    world.run_ms(100 * 60 * MINUTE_MS);
    assert_eq!(scrub(&mut world, node), ScrubNumbers::default());
    assert!(scrubs(&world, node).is_empty());
}

#[test]
fn blocks_that_can_not_be_looked_up_end_a_verification_or_a_scrub_and_it_is_tried_again() {
    let (mut world, node) = scrubbing(94, 100);
    world.put_now(node, "a", noise(2000, 12_000));
    world.machines[node].engine.failing_has.push_back(FailureKind::Disk);
    let answer = world.request(node, Request::Verify);
    assert!(matches!(&answer, Response::Error(why) if why.kind == FailureKind::Disk), "{answer:?}");
    world.machines[node].engine.failing_has.push_back(FailureKind::Disk);
    let says_so =
        |note: &Note| matches!(note, Note::Store { what } if what.contains("the scrub ended early"));
    world.run_until(2 * PERIOD_MS, "a scrub ends early", |world| {
        world.machines[node].notes.iter().any(says_so)
    });
    world.run_until(2 * PERIOD_MS, "the next one ends", |world| !scrubs(world, node).is_empty());
    let after = scrub(&mut world, node);
    assert!((after.ended, after.damaged, after.incomplete.len()) == (1, 0, 0), "{after:?}");
}

#[test]
fn a_store_with_too_much_to_do_delays_a_verification_and_makes_no_object_incomplete() {
    let (mut world, node) = scrubbing(95, 100);
    let engine = &mut world.machines[node].engine;
    engine.failing_has.extend([FailureKind::Busy; 3]);
    engine.failing_reads.extend([FailureKind::Busy; 2]);
    match world.request(node, Request::Verify) {
        Response::Verified { damaged, incomplete, .. } => {
            assert!(damaged.is_empty() && incomplete.is_empty(), "{incomplete:?}");
        }
        other => panic!("{other:?}"),
    }
    let engine = &world.machines[node].engine;
    assert!(engine.failing_has.is_empty() && engine.failing_reads.is_empty());
}
