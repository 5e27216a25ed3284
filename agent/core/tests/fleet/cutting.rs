//! Long objects are cut and hashed beside the loop: whatever happens while a cutter is away.

use crate::sim::World;
use crate::sim::client::Call;
use crate::sim::setup::{below_settings, master_settings};
use crate::transfer::{by_name, is_whole, noise};
use larder_core::limits::{CUT_BYTES_MAX, FRAME_BYTES_MAX, HASHED_ON_LOOP_BYTES_MAX, INGEST_WINDOW_BYTES};
use larder_core::message::Input;
use larder_core::request::{FailureKind, Request, Response};
use larder_core::role::Role;
use larder_core::settings::{BatchSettings, Watch};

/// A master alone, whose cutters may be away for so long.
fn slow(seed: u64, cut_ms_max: u64) -> (World, usize) {
    let mut world = World::new(seed);
    let master = world.add(master_settings(&[]));
    world.machines[master].hasher.cut_ms_max = cut_ms_max;
    world.run_ms(500);
    (world, master)
}

/// Begins a put and stops with a cutter away.
fn put_until_away(world: &mut World, node: usize, client: u32, name: &str, bytes: Vec<u8>) -> Call {
    let call = world.put_as(node, client, name, bytes);
    world.run_until(60_000, "a cutter is away", |world| world.machines[node].hasher.away() > 0);
    call
}

fn is_stored(answer: &Response) -> bool {
    matches!(answer, Response::Stored { .. })
}

#[test]
fn long_objects_of_many_connections_arrive_byte_for_byte_and_are_counted() {
    for seed in 0..6 {
        let (mut world, node) = slow(seed, [0, 1, 40, 900][seed as usize % 4]);
        let length = |index: u64| (1 << 20) + (index as usize * 777_777) * (seed as usize + 1) / 2;
        let calls: Vec<Call> = (0..8)
            .map(|index| {
                let bytes = noise(seed * 10 + index, length(index));
                world.put_as(node, 10 + index as u32, &format!("f{index}"), bytes)
            })
            .collect();
        for (index, call) in (0..).zip(calls) {
            let answer = world.wait(call);
            let size = length(index) as u64;
            assert!(
                matches!(&answer, Response::Stored { size: of, .. } if *of == size),
                "seed {seed}: {answer:?}"
            );
        }
        for index in 0..8 {
            let bytes = noise(seed * 10 + index, length(index));
            assert!(world.get(node, by_name(&format!("f{index}"))) == Some(bytes), "seed {seed}: f{index}");
        }
        let ingest = world.status(node).ingest;
        let on_loop = ingest.bytes - ingest.hashed_beside;
        // the first has as much as is cut on the loop; of the others its last block is begun there
        let most = 8 * HASHED_ON_LOOP_BYTES_MAX;
        let least = 7 * (HASHED_ON_LOOP_BYTES_MAX - (256 << 10) - (120 << 10)) + HASHED_ON_LOOP_BYTES_MAX;
        assert!((least..=most).contains(&on_loop), "seed {seed}: {on_loop} bytes on the loop");
        assert!(is_whole(&world, node));
    }
}

#[test]
fn what_is_short_stays_on_the_loop() {
    let (mut world, node) = slow(20, 60_000);
    for (index, length) in [0, 1, 16 << 10, 120 << 10, 1_000_000, 1 << 20].into_iter().enumerate() {
        world.put_now(node, &format!("f{index}"), noise(index as u64, length));
    }
    assert_eq!(world.status(node).ingest.hashed_beside, 0);
}

#[test]
fn a_source_is_held_while_the_window_is_full_of_what_is_not_cut() {
    let (mut world, node) = slow(21, 0);
    let length = 16 << 20;
    world.machines[node].hasher.cut_ms_max = 50_000;
    let call = put_until_away(&mut world, node, 9, "big", noise(1, length));
    let mut most = 0;
    for _ in 0..2_000 {
        world.run_ms(100);
        let pulled =
            length - world.machines[node].clients[&9].frames.len().saturating_sub(1) * FRAME_BYTES_MAX;
        let written: usize = world.machines[node].engine.blocks.values().map(bytes::Bytes::len).sum();
        most = most.max(pulled.saturating_sub(written));
    }
    let window = INGEST_WINDOW_BYTES + 2 * FRAME_BYTES_MAX;
    assert!(most <= window, "{most} bytes were held for a window of {window}");
    assert!(most > CUT_BYTES_MAX, "it was read on while it was cut: {most}");
    world.machines[node].hasher.cut_ms_max = 4;
    assert!(is_stored(&world.wait(call)));
    assert!(world.get(node, by_name("big")) == Some(noise(1, length)));
}

#[test]
fn a_window_that_is_smaller_than_a_batch_is_written_when_it_is_full() {
    for cut_ms_max in [0, 30, 400] {
        let mut world = World::new(26 + cut_ms_max);
        let mut settings = master_settings(&[]);
        settings.flush = BatchSettings { bytes: 64 << 20, age_ms: 3_600_000 };
        let node = world.add(settings);
        world.machines[node].hasher.cut_ms_max = cut_ms_max;
        world.run_ms(500);
        // the longest of blocks, so that a batch is not full of them either
        let call = world.put_as(node, 9, "big", vec![0; 70 << 20]);
        world.run_until(600_000, "all was read", |world| world.machines[node].clients[&9].frames.is_empty());
        world.ask_as(node, 9, Request::Flush);
        assert!(is_stored(&world.wait(call)));
    }
}

#[test]
fn a_client_that_goes_while_its_cutter_is_away_leaves_nothing_and_holds_nobody() {
    let (mut world, node) = slow(22, 3_000);
    for round in 0..30 {
        put_until_away(&mut world, node, 100, "cut-off", noise(round, 6 << 20));
        let more_ms = world.random.below(500);
        world.run_ms(more_ms);
        world.hang_up(node, 100);
    }
    // what any of them had left in the window would hold this one for ever
    world.machines[node].hasher.cut_ms_max = 4;
    world.put_now(node, "whole", noise(99, 6 << 20));
    world.run_ms(60_000);
    let names: Vec<String> = world.machines[node].engine.table().into_keys().collect();
    assert_eq!(names, ["whole"]);
    assert_eq!(world.status(node).ingest.objects, 1);
    assert_eq!(world.machines[node].hasher.away(), 0);
}

#[test]
fn a_client_that_goes_after_its_last_byte_has_put_its_object() {
    let (mut world, node) = slow(23, 3_000);
    put_until_away(&mut world, node, 9, "whole", noise(1, (1 << 20) + 5));
    world.run_until(60_000, "all was said", |world| world.machines[node].clients[&9].frames.is_empty());
    world.run_ms(1);
    assert!(world.machines[node].hasher.away() > 0, "it is still being cut");
    world.hang_up(node, 9);
    world.run_until(60_000, "it is bound", |world| !world.machines[node].engine.names.is_empty());
    assert!(world.get(node, by_name("whole")) == Some(noise(1, (1 << 20) + 5)));
}

#[test]
fn a_disk_that_fails_while_a_cutter_is_away_fails_that_put_and_not_the_next() {
    for seed in 0..12 {
        let (mut world, node) = slow(30 + seed, 400);
        let call = put_until_away(&mut world, node, 9, "failed", noise(seed, 5 << 20));
        let more_ms = world.random.below(300);
        world.run_ms(more_ms);
        world.machines[node].engine.failing_commits = 1;
        let answer = world.wait(call);
        assert!(
            matches!(&answer, Response::Error(failure) if failure.kind == FailureKind::Disk),
            "seed {seed}: {answer:?}"
        );
        world.put_now(node, "next", noise(seed + 100, 5 << 20));
        assert!(world.get(node, by_name("next")) == Some(noise(seed + 100, 5 << 20)));
        assert_eq!(world.machines[node].engine.table().len(), 1);
    }
}

#[test]
fn cleaning_takes_nothing_of_a_stream_whose_cutter_is_away() {
    for seed in 0..4 {
        let mut world = World::new(50 + seed);
        let mut settings = master_settings(&[]);
        settings.clean_period_ms = 700;
        settings.clean_step_bytes = 300_000;
        let node = world.add(settings);
        world.machines[node].hasher.cut_ms_max = 2_500;
        world.run_ms(500);
        // two manifests of the first level and more
        let bytes = noise(seed, 80 << 20);
        let call = world.put_as(node, 9, "big", bytes.clone());
        let mut junk = 0;
        while !world.heard(call).iter().any(is_stored) {
            junk += 1;
            assert!(junk < 4_000, "seed {seed}: it does not come to an end");
            world.put_now(node, "junk", noise(1_000 + junk, 30_000));
            world.run_ms(150);
        }
        assert!(world.machines[node].engine.cleaned > 10, "{}", world.machines[node].engine.cleaned);
        assert!(is_whole(&world, node), "seed {seed}: cleaned away while it was cut");
        assert!(world.get(node, by_name("big")) == Some(bytes));
    }
}

#[test]
fn a_name_removed_or_put_by_others_while_its_cutter_is_away_gets_the_version_after_theirs() {
    let (mut world, node) = slow(24, 2_000);
    for (round, others) in [0, 1, 2].into_iter().enumerate() {
        let name = format!("name{round}");
        world.put_now(node, &name, noise(1, 2_000));
        let call = put_until_away(&mut world, node, 9, &name, noise(2, 3 << 20));
        if others < 2 {
            world.request(node, Request::Remove { name: name.parse().unwrap() });
        }
        if others > 0 {
            world.put_now(node, &name, noise(3, 2_000));
        }
        assert!(world.heard(call).is_empty(), "it is still being cut");
        assert!(is_stored(&world.wait(call)));
        assert!(world.get(node, by_name(&name)) == Some(noise(2, 3 << 20)));
    }
}

#[test]
fn a_power_cut_while_a_cutter_is_away_loses_what_was_not_acknowledged_and_nothing_else() {
    for seed in 0..10 {
        let (mut world, node) = slow(70 + seed, 300);
        world.put_now(node, "before", noise(1, 3 << 20));
        put_until_away(&mut world, node, 9, "cut-off", noise(2, 6 << 20));
        let more_ms = world.random.below(400);
        world.run_ms(more_ms);
        world.crash(node);
        world.start(node);
        world.run_ms(1_000);
        assert!(world.get(node, by_name("before")) == Some(noise(1, 3 << 20)), "seed {seed}");
        assert!(is_whole(&world, node));
        world.put_now(node, "cut-off", noise(2, 6 << 20));
        assert!(world.get(node, by_name("cut-off")) == Some(noise(2, 6 << 20)), "seed {seed}");
    }
}

#[test]
fn a_patient_long_put_is_stored_whatever_the_others_wait_for() {
    let mut world = World::new(25);
    let mut settings = master_settings(&[]);
    settings.flush.age_ms = 4_000;
    let node = world.add(settings);
    world.machines[node].hasher.cut_ms_max = 6_000;
    world.run_ms(500);
    let calls = [("a", 900), ("b", 3 << 20), ("c", 700), ("d", 2 << 20)]
        .map(|(name, length)| world.put_patiently(node, 9, name, noise(length as u64, length)));
    for call in calls {
        assert!(is_stored(&world.wait(call)));
    }
    assert!(world.get(node, by_name("b")) == Some(noise(3 << 20, 3 << 20)));
}

#[test]
fn a_watched_file_that_changes_or_vanishes_while_its_cutter_is_away_is_never_taken_in_halves() {
    for after_ms in [0, 3, 40, 300, 900, 2_000, 4_500] {
        for vanishes in [false, true] {
            let mut world = World::new(90 + after_ms);
            world.add(master_settings(&[("worker", Role::Worker)]));
            let mut settings = below_settings("worker", Role::Worker);
            let watch = Watch { prefix: "cam/".into(), settle_ms: 2_000, delete_after_ack: false };
            settings.watches = vec![watch];
            let worker = world.add(settings);
            world.machines[worker].hasher.cut_ms_max = 900;
            world.run_ms(500);
            let wall_ms = |world: &World| crate::sim::START_MS + i64::try_from(world.now_ms).unwrap();
            let at = wall_ms(&world);
            world.machines[worker].folders.write(at, 0, "film", noise(1, 5 << 20));
            world.input(worker, Input::FileChanged { watch: 0, path: "film".into() });
            world.run_until(20_000, "it is cut", |world| world.machines[worker].hasher.away() > 0);
            world.run_ms(after_ms);
            let was_taken = !world.machines[worker].engine.names.is_empty();
            if vanishes {
                world.machines[worker].folders.remove(0, "film");
            } else {
                let at = wall_ms(&world);
                world.machines[worker].folders.append(at, 0, "film", b"the end");
            }
            world.input(worker, Input::FileChanged { watch: 0, path: "film".into() });
            world.run_ms(60_000);
            let taken = world.get(worker, by_name("cam/film"));
            let first = noise(1, 5 << 20);
            if vanishes {
                assert!(taken.is_none_or(|taken| taken == first), "after {after_ms}, taken {was_taken}");
            } else {
                assert!(taken == Some([first.as_slice(), b"the end"].concat()), "after {after_ms}");
            }
            assert_eq!(world.machines[worker].folders.open_files(), 0);
            assert!(is_whole(&world, worker));
        }
    }
}

#[test]
fn what_a_connection_says_after_the_end_of_its_data_changes_nothing() {
    for (index, length) in [(1, 0), (2, 900), (3, 500_000), (4, 3 << 20)] {
        let (mut world, node) = slow(index, 500);
        world.machines[node].job_ms_max = 500;
        let call = world.put_with_more(node, 9, "said", noise(index, length));
        assert!(is_stored(&world.wait(call)));
        assert!(world.get(node, by_name("said")).unwrap() == noise(index, length), "{length} bytes");
        for other in 0..300 {
            // an end that was counted twice would fill the room for those that end
            world.put_now(node, &format!("{other}"), noise(other, 10));
        }
    }
}
