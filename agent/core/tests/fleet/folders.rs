//! Watched folders: complete files are taken, once, and deleted only when they are safe.

use crate::sim::World;
use crate::sim::setup::{below_settings, master_settings, peer, settings};
use crate::transfer::{are_alike, by_name, noise};
use larder_core::id::BlockId;
use larder_core::message::Input;
use larder_core::name::Name;
use larder_core::note::Note;
use larder_core::request::Request;
use larder_core::role::Role;
use larder_core::settings::Watch;

const SETTLE_MS: u64 = 2_000;

/// A master and a worker that watches one folder.
fn watching(seed: u64, delete_after_ack: bool) -> (World, usize, usize) {
    let mut world = World::new(seed);
    let master = world.add(master_settings(&[("worker", Role::Worker)]));
    let mut settings = below_settings("worker", Role::Worker);
    settings.watches = vec![Watch { prefix: "cam/".into(), settle_ms: SETTLE_MS, delete_after_ack }];
    let worker = world.add(settings);
    world.run_ms(500);
    (world, master, worker)
}

fn wall_ms(world: &World) -> i64 {
    crate::sim::START_MS + i64::try_from(world.now_ms).unwrap()
}

fn write(world: &mut World, node: usize, path: &str, bytes: Vec<u8>) {
    let now_ms = wall_ms(world);
    world.machines[node].folders.write(now_ms, 0, path, bytes);
    world.input(node, Input::FileChanged { watch: 0, path: path.into() });
}

#[test]
fn a_complete_file_is_taken_with_its_metadata() {
    let (mut world, master, worker) = watching(1, false);
    write(&mut world, worker, "day/1.jpg", noise(1, 700_000));
    let mtime_ms = wall_ms(&world);
    world.run_until(10_000, "the master has it", |world| {
        are_alike(world, master, worker) && !world.machines[master].engine.table().is_empty()
    });
    assert!(world.get(master, by_name("cam/day/1.jpg")) == Some(noise(1, 700_000)));
    let meta = world.machines[master].engine.binding(&"cam/day/1.jpg".parse().unwrap()).unwrap().meta;
    assert_eq!((meta.size, meta.mtime_ms, meta.mode), (700_000, mtime_ms, 0o644));
    assert!(world.machines[worker].folders.has(0, "day/1.jpg"), "it is kept");
    assert_eq!(world.machines[worker].folders.open_files(), 0);
}

#[test]
fn a_file_that_grows_is_taken_when_it_has_stopped() {
    let (mut world, _, worker) = watching(2, false);
    for step in 0..40 {
        let now_ms = wall_ms(&world);
        world.machines[worker].folders.append(now_ms, 0, "film", &noise(step, 90_000));
        world.input(worker, Input::FileChanged { watch: 0, path: "film".into() });
        world.run_ms(500);
        assert!(world.machines[worker].engine.names.is_empty(), "taken after {step} pieces");
    }
    world.run_until(20_000, "it is taken", |world| !world.machines[worker].engine.names.is_empty());
    let whole: Vec<u8> = (0..40).flat_map(|step| noise(step, 90_000)).collect();
    assert!(world.get(worker, by_name("cam/film")) == Some(whole));
    assert_eq!(world.status(worker).ingest.objects, 1);
}

#[test]
fn a_file_that_changes_while_it_is_read_is_read_again() {
    let (mut world, _, worker) = watching(3, false);
    world.machines[worker].job_ms_max = 200;
    write(&mut world, worker, "film", noise(1, 5 << 20));
    world.run_until(10_000, "it is being read", |world| world.machines[worker].folders.open_files() == 1);
    world.run_ms(500);
    let now_ms = wall_ms(&world);
    world.machines[worker].folders.append(now_ms, 0, "film", b"the end");
    world.run_until(60_000, "it is taken", |world| !world.machines[worker].engine.names.is_empty());
    let whole = [noise(1, 5 << 20).as_slice(), b"the end"].concat();
    assert!(world.get(worker, by_name("cam/film")) == Some(whole));
    assert!(world.status(worker).ingest.deferred >= 1);
}

#[test]
fn a_file_that_vanishes_at_any_moment_leaves_nothing() {
    for after_ms in [0, 1, 500, 2_001, 2_020, 2_060, 2_150, 2_300, 2_800] {
        let (mut world, _, worker) = watching(4, true);
        world.machines[worker].job_ms_max = 100;
        write(&mut world, worker, "gone", noise(1, 3 << 20));
        world.run_ms(after_ms);
        world.machines[worker].folders.remove(0, "gone");
        world.run_ms(1_000);
        write(&mut world, worker, "kept", noise(2, 100_000));
        world.run_until(60_000, "the next is taken", |world| {
            world.machines[worker].engine.table().contains_key("cam/kept")
        });
        world.run_ms(5_000);
        assert_eq!(world.machines[worker].folders.open_files(), 0);
    }
}

#[test]
fn a_file_is_deleted_after_the_masters_ack_and_not_before() {
    let (mut world, master, worker) = watching(5, true);
    world.cut(worker, 0);
    for index in 0..20 {
        write(&mut world, worker, &format!("{index}"), noise(index, 40_000));
    }
    world.run_ms(600_000);
    assert_eq!(world.machines[worker].engine.table().len(), 20);
    assert!((0..20).all(|index| world.machines[worker].folders.has(0, &index.to_string())));
    world.mend(worker);
    world.run_until(60_000, "all are deleted", |world| {
        for index in 0..20 {
            let has = world.machines[worker].folders.has(0, &index.to_string());
            let name = format!("cam/{index}").parse().unwrap();
            let binding = world.machines[master].engine.binding(&name);
            let safe = binding.is_some_and(|binding| world.machines[master].engine.is_complete(&binding));
            assert!(has || safe, "{index} was deleted before it was safe");
        }
        (0..20).all(|index| !world.machines[worker].folders.has(0, &index.to_string()))
    });
    assert_eq!(world.status(worker).ingest.deleted, 20);
}

#[test]
fn a_file_whose_stored_block_has_rotted_stays_until_it_mended_the_block_and_the_master_has_it() {
    let (mut world, master, worker) = watching(15, true);
    world.cut(worker, 0);
    write(&mut world, worker, "only", noise(1, 40_000));
    world.run_ms(60_000);
    let name = "cam/only".parse().unwrap();
    let root = world.machines[worker].engine.table()["cam/only"];
    world.machines[worker].engine.damaged.insert(root);
    world.mend(worker);
    world.run_ms(20_000);
    assert_eq!(world.status(worker).sync.objects_refused, 1);
    assert!(world.machines[worker].folders.has(0, "only"), "it may be the last whole copy");
    assert!(world.machines[master].engine.binding(&name).is_none());
    // A worker that starts again knows it from its log.
    world.crash(worker);
    world.start(worker);
    world.run_until(4_000_000, "the file was read again, sent and deleted", |world| {
        let has = world.machines[worker].folders.has(0, "only");
        let binding = world.machines[master].engine.binding(&name);
        let safe = binding.is_some_and(|binding| world.machines[master].engine.is_complete(&binding));
        assert!(has || safe, "it was deleted before it was safe");
        !has
    });
}

#[test]
fn a_masters_file_stays_while_the_block_it_would_mend_can_not_be_written() {
    let mut world = World::new(16);
    let mut settings = master_settings(&[]);
    settings.watches = vec![Watch { prefix: "cam/".into(), settle_ms: SETTLE_MS, delete_after_ack: true }];
    let master = world.add(settings);
    let (written_ms, bytes) = (wall_ms(&world), noise(1, 40_000));
    write(&mut world, master, "only", bytes.clone());
    world.run_until(60_000, "it is stored and deleted", |world| {
        !world.machines[master].folders.has(0, "only")
    });
    let root = world.machines[master].engine.table()["cam/only"];
    world.machines[master].engine.damaged.insert(root);
    // the same file comes back, and its name needs no change
    world.machines[master].folders.write(written_ms, 0, "only", bytes.clone());
    world.input(master, Input::FileChanged { watch: 0, path: "only".into() });
    world.machines[master].engine.failing_commits = 3;
    world.run_until(4_000_000, "it is deleted", |world| {
        let has = world.machines[master].folders.has(0, "only");
        assert!(has || !world.machines[master].engine.damaged.contains(&root), "the last whole copy is gone");
        !has
    });
    assert_eq!(world.machines[master].engine.failing_commits, 0);
    assert!(world.get(master, by_name("cam/only")) == Some(bytes));
}

#[test]
fn a_file_rewritten_before_its_deletion_is_taken_again() {
    let (mut world, master, worker) = watching(6, true);
    world.cut(worker, 0);
    write(&mut world, worker, "a", noise(1, 40_000));
    world.run_ms(10_000);
    let now_ms = wall_ms(&world);
    // No notice comes: only the deletion meets the other version.
    world.machines[worker].folders.write(now_ms, 0, "a", noise(2, 50_000));
    world.mend(worker);
    world.run_until(600_000, "the new version is safe and gone", |world| {
        !world.machines[worker].folders.has(0, "a")
    });
    assert!(world.get(master, by_name("cam/a")) == Some(noise(2, 50_000)));
}

#[test]
fn a_file_rewritten_with_its_old_size_and_time_is_read_again_before_its_deletion() {
    for restarts in [false, true] {
        let (mut world, master, worker) = watching(17, true);
        world.cut(worker, 0);
        let written_ms = wall_ms(&world);
        write(&mut world, worker, "a", noise(1, 40_000));
        world.run_ms(10_000);
        // no notice comes, and nothing that a binding keeps of a file tells the two apart
        world.machines[worker].folders.write(written_ms, 0, "a", noise(2, 40_000));
        if restarts {
            world.crash(worker);
            world.start(worker);
            world.run_ms(10_000);
        }
        world.mend(worker);
        world.run_until(600_000, "the new content is safe and gone", |world| {
            !world.machines[worker].folders.has(0, "a")
        });
        assert!(world.get(master, by_name("cam/a")) == Some(noise(2, 40_000)), "restarts: {restarts}");
    }
}

#[test]
fn a_file_whose_name_was_bound_anew_before_it_went_up_is_not_deleted_before_it_is_safe() {
    let (mut world, master, worker) = watching(19, true);
    world.cut(worker, 0);
    write(&mut world, worker, "a", noise(1, 40_000));
    world.run_ms(10_000);
    world.put_now(worker, "cam/a", noise(2, 50_000));
    world.mend(worker);
    world.run_until(60_000, "the master has what was put", |world| {
        world.machines[master].engine.table().contains_key("cam/a")
    });
    world.run_ms(30_000);
    assert!(world.machines[worker].folders.has(0, "a"), "its bytes are nowhere else");
    world.run_until(600_000, "it is deleted", |world| !world.machines[worker].folders.has(0, "a"));
    assert!(world.get(master, by_name("cam/a")) == Some(noise(1, 40_000)), "it is safe");
}

#[test]
fn a_file_that_is_read_again_while_its_name_changes_is_not_deleted_before_it_is_safe() {
    for seed in 0..100 {
        let (mut world, master, worker) = watching(700 + seed, true);
        world.cut(worker, 0);
        write(&mut world, worker, "a", noise(1, 40_000));
        world.run_ms(10_000);
        world.machines[worker].job_ms_max = 300;
        world.input(worker, Input::FileChanged { watch: 0, path: "a".into() });
        world.run_until(20_000, "it is read again", |world| world.machines[worker].folders.open_files() == 1);
        let wait_ms = world.random.below(600);
        world.run_ms(wait_ms);
        if seed % 2 == 0 {
            world.put_now(worker, "cam/a", noise(2, 50_000));
        } else {
            world.request(worker, Request::Remove { name: "cam/a".parse().unwrap() });
        }
        world.run_ms(5_000);
        world.machines[worker].job_ms_max = 4;
        world.mend(worker);
        for _ in 0..300 {
            world.run_ms(100);
            let is_safe = world.machines[master]
                .engine
                .table()
                .values()
                .any(|of| *of == BlockId::of(&noise(1, 40_000)));
            assert!(is_safe || world.machines[worker].folders.has(0, "a"), "seed {seed}: it is nowhere else");
        }
    }
}

#[test]
fn a_file_whose_name_was_deleted_before_it_went_up_stays() {
    let (mut world, master, worker) = watching(21, true);
    world.cut(worker, 0);
    write(&mut world, worker, "a", noise(1, 40_000));
    world.run_ms(10_000);
    world.request(worker, Request::Remove { name: "cam/a".parse().unwrap() });
    world.mend(worker);
    world.run_ms(300_000);
    assert!(are_alike(&world, master, worker) && world.machines[master].engine.table().is_empty());
    assert!(world.machines[worker].folders.has(0, "a"), "its bytes are nowhere else");
}

#[test]
fn a_file_that_loses_a_conflict_stays_until_its_copy_has_gone_up_behind_all_that_waits() {
    let (mut world, master, worker) = watching(23, true);
    world.cut(worker, 0);
    write(&mut world, worker, "a", noise(1, 40_000));
    world.run_ms(20_000);
    for index in 0..400 {
        world.put_now(worker, &format!("other/{index:03}"), noise(100 + index, 9_000));
    }
    world.run_ms(5_000);
    world.put_now(master, "cam/a", noise(2, 40_000));
    world.mend(worker);
    let root = world.machines[worker].engine.table()["cam/a"];
    for _ in 0..2_000 {
        world.run_ms(10);
        let is_safe = world.machines[master].engine.table().values().any(|of| *of == root);
        assert!(is_safe || world.machines[worker].folders.has(0, "a"), "its bytes are on no other node");
    }
    world.run_until(60_000, "both versions are on both nodes", |world| {
        are_alike(world, master, worker) && world.machines[master].engine.table().len() == 402
    });
}

#[test]
fn what_a_master_acknowledged_before_it_lost_its_store_deletes_no_file() {
    let (mut world, master, worker) = watching(20, true);
    let written_ms = wall_ms(&world);
    write(&mut world, worker, "a", noise(1, 40_000));
    world.run_until(60_000, "it is safe and gone", |world| !world.machines[worker].folders.has(0, "a"));
    world.crash(master);
    world.wipe(master);
    world.machines[master].engine.quota_bytes = 1_000;
    world.start(master);
    world.run_ms(30_000);
    // the same file comes back, and its name needs no change
    world.machines[worker].folders.write(written_ms, 0, "a", noise(1, 40_000));
    world.input(worker, Input::FileChanged { watch: 0, path: "a".into() });
    world.run_ms(60_000);
    assert!(world.machines[worker].folders.has(0, "a"), "the new store has nothing yet");
    world.machines[master].engine.quota_bytes = 1 << 40;
    world.run_until(900_000, "it is deleted", |world| !world.machines[worker].folders.has(0, "a"));
    assert!(world.get(master, by_name("cam/a")) == Some(noise(1, 40_000)), "it is safe");
}

#[test]
fn a_file_that_a_master_knows_a_later_version_of_stays_until_its_own_bytes_are_safe() {
    for seed in 0..20 {
        let deletes = seed % 2 == 0;
        let (mut world, master, worker) = watching(600 + seed, deletes);
        world.net.faults.delay_ms_max = 300;
        write(&mut world, worker, "a", noise(1, 40_000));
        world.run_until(60_000, "it is safe", |world| !world.machines[master].engine.table().is_empty());
        world.run_ms(10_000);
        world.crash(worker);
        world.wipe(worker);
        world.machines[worker].folders.remove(0, "a");
        world.machines[worker].clock_off_ms = -crate::sim::START_MS;
        world.start(worker);
        let wait_ms = world.random.below(2_000);
        world.run_ms(wait_ms);
        let is = noise(2, 40_000);
        let (root, now_ms) = (BlockId::of(&is), world.time(worker).wall_ms);
        world.machines[worker].folders.write(now_ms, 0, "a", is.clone());
        world.input(worker, Input::FileChanged { watch: 0, path: "a".into() });
        for _ in 0..4_000 {
            world.run_ms(20);
            let is_safe = world.machines[master].engine.table().values().any(|of| *of == root);
            assert!(is_safe || world.machines[worker].folders.has(0, "a"), "seed {seed}: it is nowhere else");
        }
        world.run_ms(600_000);
        assert!(are_alike(&world, master, worker), "seed {seed}: {}", world.describe());
        let (name, was) = ("cam/a".parse().unwrap(), noise(1, 40_000));
        assert_kept(&mut world, [master, worker], &[(&name, &was), (&copy_of("cam/a", &is), &is)]);
    }
}

#[test]
fn a_name_that_was_deleted_does_not_come_back_with_its_kept_file_by_a_scan() {
    for delete_after_ack in [false, true] {
        let (mut world, master, worker) = watching(18, false);
        world.machines[worker].settings.watches[0].delete_after_ack = delete_after_ack;
        write(&mut world, worker, "a", noise(1, 40_000));
        world.run_until(10_000, "the master has it", |world| {
            world.machines[master].engine.table().contains_key("cam/a")
        });
        let on = if delete_after_ack { worker } else { master };
        world.request(on, Request::Remove { name: "cam/a".parse().unwrap() });
        world.run_ms(10_000);
        world.crash(worker);
        world.start(worker);
        world.run_ms(120_000);
        assert!(world.machines[worker].engine.table().is_empty() && are_alike(&world, master, worker));
        assert!(world.machines[worker].folders.has(0, "a"), "it is kept");
        write(&mut world, worker, "a", noise(1, 40_000));
        world.run_until(10_000, "written anew it is taken again", |world| {
            world.machines[master].engine.table().contains_key("cam/a")
        });
    }
}

#[test]
fn a_name_that_is_deleted_while_its_file_is_read_again_does_not_come_back() {
    for restarts in [false, true] {
        let (mut world, master, worker) = watching(33, true);
        world.cut(worker, 0);
        write(&mut world, worker, "a", noise(1, 40_000));
        world.run_ms(10_000);
        if restarts {
            world.crash(worker);
            world.start(worker);
            world.run_ms(10_000);
            world.mend(worker);
            world.run_until(60_000, "the master has it", |world| are_alike(world, master, worker));
            world.run_ms(500);
        } else {
            world.input(worker, Input::FileChanged { watch: 0, path: "a".into() });
        }
        world.request(worker, Request::Remove { name: "cam/a".parse().unwrap() });
        world.run_ms(10_000);
        world.mend(worker);
        world.run_ms(300_000);
        assert!(world.machines[worker].engine.table().is_empty(), "restarts: {restarts}");
        assert!(are_alike(&world, master, worker));
        assert!(world.machines[worker].folders.has(0, "a"), "it is kept");
        world.input(worker, Input::FileChanged { watch: 0, path: "a".into() });
        world.run_ms(60_000);
        let problem = world.status(worker).ingest.last_problem;
        assert!(problem.starts_with("a: its name was deleted"), "{problem}");
    }
}

/// What a node's names are bound to, down to the last write.
fn bindings(world: &World, node: usize) -> Vec<(String, u64)> {
    let names = world.machines[node].engine.names.iter();
    names.map(|(name, bound)| (name.as_str().to_owned(), bound.seq)).collect()
}

/// The worker starts again, and has time for many scans.
fn restart(world: &mut World, worker: usize) {
    world.crash(worker);
    world.start(worker);
    world.run_ms(600_000);
}

fn copy_of(name: &str, bytes: &[u8]) -> Name {
    name.parse::<Name>().unwrap().conflict(BlockId::of(bytes))
}

/// Both nodes have these objects and no others.
fn assert_kept(world: &mut World, nodes: [usize; 2], objects: &[(&Name, &[u8])]) {
    assert!(are_alike(world, nodes[0], nodes[1]), "{}", world.describe());
    for node in nodes {
        assert_eq!(world.machines[node].engine.table().len(), objects.len());
        for (name, bytes) in objects {
            assert!(world.get(node, by_name(name.as_str())).as_deref() == Some(*bytes), "{name} on {node}");
        }
    }
}

#[test]
fn a_kept_file_that_lost_a_conflict_stays_its_copy_when_the_worker_starts_again() {
    let (mut world, master, worker) = watching(28, false);
    let (name, old, new) = ("cam/a".parse().unwrap(), noise(1, 40_000), noise(2, 50_000));
    let copy = copy_of("cam/a", &old);
    world.cut(worker, 0);
    write(&mut world, worker, "a", old.clone());
    world.run_ms(10_000);
    world.put_now(master, "cam/a", new.clone());
    world.mend(worker);
    world.run_until(60_000, "both have both", |world| {
        world.machines[master].engine.names.len() == 2 && are_alike(world, master, worker)
    });
    world.run_ms(10_000);
    let before = [bindings(&world, master), bindings(&world, worker)];
    for _ in 0..2 {
        restart(&mut world, worker);
        assert_kept(&mut world, [master, worker], &[(&name, &new), (&copy, &old)]);
        assert_eq!([bindings(&world, master), bindings(&world, worker)], before, "nothing is written");
        assert_eq!(world.status(worker).sync.conflicts, 0, "nor said again");
    }
    assert!(world.machines[worker].folders.has(0, "a"), "it is kept");
}

#[test]
fn a_later_version_from_elsewhere_keeps_its_name_and_the_old_file_becomes_the_copy() {
    for delete_after_ack in [false, true] {
        let (mut world, master, worker) = watching(29, delete_after_ack);
        let (name, old, new) = ("cam/a".parse().unwrap(), noise(1, 40_000), noise(2, 300_000));
        let copy = copy_of("cam/a", &old);
        let written_ms = wall_ms(&world);
        write(&mut world, worker, "a", old.clone());
        world.run_ms(10_000);
        world.put_now(master, "cam/a", new.clone());
        world.run_ms(10_000);
        assert_kept(&mut world, [master, worker], &[(&name, &new)]);
        world.machines[worker].folders.write(written_ms, 0, "a", old.clone());
        restart(&mut world, worker);
        assert_kept(&mut world, [master, worker], &[(&name, &new), (&copy, &old)]);
        let status = world.status(worker);
        assert_eq!((status.sync.conflicts, status.sync.conflicted_names), (1, vec![name.clone()]));
        let said = Note::Conflict { name: name.clone(), kept_as: Some(copy.clone()) };
        assert_eq!(world.machines[worker].notes.iter().filter(|note| **note == said).count(), 1);
        let before = [bindings(&world, master), bindings(&world, worker)];
        restart(&mut world, worker);
        assert_eq!([bindings(&world, master), bindings(&world, worker)], before, "nothing is written");
        let wake_ups = world.machines[worker].wake_ups;
        world.run_ms(3_600_000);
        assert!(world.machines[worker].wake_ups - wake_ups < 10, "it is not read again and again");
        assert!(world.machines[worker].folders.has(0, "a"), "only its copy was acknowledged");
    }
}

/// The worker's file `a` is bound, and then the master puts another version; that one, and the file as its copy.
fn later_version(world: &mut World, master: usize, worker: usize) -> [(Name, Vec<u8>); 2] {
    let (old, new) = (noise(1, 40_000), noise(2, 50_000));
    write(world, worker, "a", old.clone());
    world.run_ms(10_000);
    world.put_now(master, "cam/a", new.clone());
    [("cam/a".parse().unwrap(), new), (copy_of("cam/a", &old), old)]
}

#[test]
fn an_edit_of_a_file_that_is_kept_as_a_copy_takes_the_name() {
    let (mut world, master, worker) = watching(30, false);
    let [(name, new), (copy, old)] = later_version(&mut world, master, worker);
    world.run_ms(10_000);
    restart(&mut world, worker);
    assert_kept(&mut world, [master, worker], &[(&name, &new), (&copy, &old)]);
    let edit = noise(3, 60_000);
    write(&mut world, worker, "a", edit.clone());
    world.run_ms(60_000);
    assert_kept(&mut world, [master, worker], &[(&name, &edit), (&copy, &old)]);
    restart(&mut world, worker);
    assert_kept(&mut world, [master, worker], &[(&name, &edit), (&copy, &old)]);
}

#[test]
fn a_copy_that_was_deleted_does_not_come_back_with_its_file() {
    let (mut world, master, worker) = watching(31, false);
    let [(name, new), (copy, _)] = later_version(&mut world, master, worker);
    world.run_ms(10_000);
    restart(&mut world, worker);
    world.request(master, Request::Remove { name: copy });
    world.run_ms(10_000);
    restart(&mut world, worker);
    assert_kept(&mut world, [master, worker], &[(&name, &new)]);
    assert_eq!(world.status(worker).sync.conflicts, 0);
}

#[test]
fn a_file_gives_way_also_where_something_else_has_the_name_of_its_copy() {
    let (mut world, master, worker) = watching(32, false);
    let [(name, new), (copy, old)] = later_version(&mut world, master, worker);
    world.put_now(worker, copy.as_str(), noise(3, 100));
    world.run_ms(10_000);
    restart(&mut world, worker);
    assert_kept(&mut world, [master, worker], &[(&name, &new), (&copy, &old)]);
}

#[test]
fn a_scan_finds_what_no_notice_told() {
    let (mut world, _, worker) = watching(7, false);
    world.run_ms(10_000);
    for index in 0..500 {
        let now_ms = wall_ms(&world);
        world.machines[worker].folders.write(now_ms, 0, &format!("f{index}"), noise(index, 300));
    }
    for _ in 0..8 {
        world.input(worker, Input::FilesMissed { watch: 0 });
        world.run_ms(10);
    }
    world.run_until(120_000, "all are taken", |world| world.machines[worker].engine.names.len() == 500);
    world.run_ms(120_000);
    world.machines[worker].folders.write(0, 0, "late", noise(1, 300));
    world.input(worker, Input::FilesMissed { watch: 0 });
    world.run_until(120_000, "missed again, and soon", |world| {
        world.machines[worker].engine.names.len() == 501
    });
}

#[test]
fn files_that_were_there_before_the_start_are_taken_once() {
    let (mut world, _, worker) = watching(8, false);
    world.crash(worker);
    for index in 0..5_000 {
        world.machines[worker].folders.write(0, 0, &format!("f{index}"), noise(index % 50, 200));
    }
    world.start(worker);
    world.run_until(600_000, "all are taken", |world| world.machines[worker].engine.names.len() == 5_000);
    let commits = world.machines[worker].engine.commits;
    world.crash(worker);
    world.start(worker);
    world.run_ms(600_000);
    let again = world.machines[worker].engine.commits - commits;
    assert!(again < 10, "{again} batches for files that are known");
}

#[test]
fn a_file_that_can_not_be_read_delays_no_other_however_many_there_are() {
    let (mut world, _, worker) = watching(22, false);
    world.crash(worker);
    for index in 0..8_000 {
        world.machines[worker].folders.write(0, 0, &format!("f{index:04}"), noise(index % 50, 200));
    }
    world.machines[worker].folders.unreadable.insert("f0000".into());
    world.start(worker);
    world.run_until(120_000, "all others are taken", |world| {
        world.machines[worker].engine.names.len() == 7_999
    });
    world.machines[worker].folders.unreadable.clear();
    world.run_until(600_000, "it is tried again", |world| world.machines[worker].engine.names.len() == 8_000);
}

#[test]
fn a_file_that_can_not_be_read_is_tried_ever_more_rarely() {
    let (mut world, _, worker) = watching(25, false);
    world.machines[worker].folders.unreadable.insert("a".into());
    write(&mut world, worker, "a", noise(1, 100));
    world.run_ms(6 * 3_600_000);
    let scans = world.machines[worker].wakes.get("scan a folder").copied().unwrap_or_default();
    assert!((5..15).contains(&scans), "{scans} scans in six hours");
}

#[test]
fn names_that_can_not_be_looked_up_now_end_no_scan_for_ever_and_none_of_another_folder() {
    let (mut world, _, worker) = watching(26, false);
    world.crash(worker);
    let other = Watch { prefix: "other/".into(), ..world.machines[worker].settings.watches[0].clone() };
    world.machines[worker].settings.watches.push(other);
    for (watch, index) in (0..2).flat_map(|watch| (0..300).map(move |index| (watch, index))) {
        world.machines[worker].folders.write(0, watch, &format!("f{index}"), noise(index, 200));
    }
    world.machines[worker].engine.failing_lookups = 3;
    world.start(worker);
    world.run_until(300_000, "all are taken", |world| world.machines[worker].engine.names.len() == 600);
}

#[test]
fn no_scan_puts_off_a_file_that_waits_for_its_time() {
    let (mut world, _, worker) = watching(27, false);
    world.crash(worker);
    world.machines[worker].settings.watches[0].settle_ms = 90_000;
    world.start(worker);
    world.machines[worker].folders.write(0, 0, "a", noise(1, 200));
    for _ in 0..3 {
        world.input(worker, Input::FilesMissed { watch: 0 });
        world.run_ms(60_000);
    }
    assert_eq!(world.machines[worker].engine.names.len(), 1);
}

#[test]
fn more_files_than_can_wait_for_their_deletion_are_all_taken_offline_and_deleted_in_time() {
    let (mut world, master, worker) = watching(23, true);
    world.cut(worker, 0);
    world.crash(worker);
    for index in 0..12_000 {
        world.machines[worker].folders.write(0, 0, &format!("f{index:05}"), noise(index % 50, 200));
    }
    world.start(worker);
    world.run_until(300_000, "all are taken without a link", |world| {
        world.machines[worker].engine.names.len() == 12_000
    });
    world.run_ms(3_600_000);
    world.mend(worker);
    world.run_until(600_000, "all are deleted", |world| world.machines[worker].folders.count() == 0);
    assert_eq!(world.machines[master].engine.names.len(), 12_000);
}

#[test]
fn what_another_master_acknowledged_deletes_no_file() {
    let (mut world, _, worker) = watching(24, true);
    let other = world.add(settings("other", Role::Master, vec![peer("worker", Role::Worker)]));
    let written_ms = wall_ms(&world);
    write(&mut world, worker, "a", noise(1, 40_000));
    world.run_until(60_000, "it is safe and gone", |world| !world.machines[worker].folders.has(0, "a"));
    world.cut(other, 0);
    world.machines[worker].settings.peers = vec![peer("other", Role::Master)];
    world.reload(worker);
    // the same file comes back, and its name needs no change
    world.machines[worker].folders.write(written_ms, 0, "a", noise(1, 40_000));
    world.input(worker, Input::FileChanged { watch: 0, path: "a".into() });
    world.run_ms(60_000);
    assert!(world.machines[worker].folders.has(0, "a"), "the new master has nothing yet");
    world.mend(other);
    world.run_until(900_000, "it is deleted", |world| !world.machines[worker].folders.has(0, "a"));
    assert!(world.get(other, by_name("cam/a")) == Some(noise(1, 40_000)), "it is safe");
}

#[test]
fn a_failing_disk_stops_no_folder_for_ever() {
    let (mut world, _, worker) = watching(9, false);
    world.machines[worker].job_ms_max = 50;
    for round in 0..5 {
        write(&mut world, worker, &format!("f{round}"), noise(round, 6 << 20));
        world.run_until(20_000, "it is being read", |world| world.machines[worker].folders.open_files() == 1);
        world.run_ms(40 * round);
        world.machines[worker].engine.failing_commits = 1;
        world.run_ms(4_000);
    }
    world.run_until(7_200_000, "all are taken", |world| world.machines[worker].engine.names.len() == 5);
    world.run_ms(10_000);
    assert_eq!(world.machines[worker].folders.open_files(), 0);
}

#[test]
fn a_name_that_can_not_be_is_refused_and_the_rest_taken() {
    let (mut world, _, worker) = watching(10, false);
    for path in ["bad\nname", "x/../y", "fine", &"long".repeat(300)] {
        write(&mut world, worker, path, noise(1, 100));
    }
    world.run_ms(10_000);
    assert_eq!(world.machines[worker].engine.names.len(), 1);
    assert_eq!(world.status(worker).ingest.refused, 3);
    world.request(worker, Request::Flush);
}

#[test]
fn an_idle_folder_wakes_nobody() {
    let (mut world, _, worker) = watching(11, true);
    write(&mut world, worker, "a", noise(1, 100_000));
    world.run_ms(600_000);
    let wakes = world.machines[worker].wakes.values().sum::<u64>();
    world.run_ms(1_800_000);
    let more = world.machines[worker].wakes.values().sum::<u64>() - wakes;
    assert!(more <= 2, "{}", world.describe());
}
