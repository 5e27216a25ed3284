//! What is kept, what is cleaned away, what is evicted, and what is found to be damaged.

use crate::sim::World;
use crate::sim::engine::Engine;

use crate::sim::setup::{below_settings, master_settings};
use crate::transfer::{are_alike, by_name, is_whole, noise};
use bytes::Bytes;
use larder_core::id::BlockId;
use larder_core::note::Note;
use larder_core::object::manifest::Manifest;
use larder_core::request::{Failure, FailureKind, Request, Response, Target};
use larder_core::role::{Evict, Role};
use larder_core::settings::BatchSettings;
use std::collections::BTreeSet;

#[test]
fn verify_names_damaged_blocks_and_incomplete_objects() {
    let (mut world, _, worker) = World::pair(1);
    for index in 0..300 {
        world.put(worker, &format!("f{index:03}"), noise(index, 2_000));
    }
    world.put_now(worker, "big", noise(1000, 3 << 20));
    let clean = world.request(worker, Request::Verify);
    match &clean {
        Response::Verified { blocks, damaged, incomplete, .. } => {
            assert_eq!(*blocks, world.machines[worker].engine.blocks.len() as u64);
            assert!(damaged.is_empty() && incomplete.is_empty(), "{clean:?}");
        }
        other => panic!("{other:?}"),
    }
    let table = world.machines[worker].engine.table();
    let leaf =
        *world.machines[worker].engine.blocks.iter().find(|(_, block)| block.len() > 40_000).unwrap().0;
    let damaged = [table["f007"], leaf];
    world.machines[worker].engine.damaged.extend(damaged);
    world.machines[worker].engine.blocks.remove(&table["f200"]);
    match world.request(worker, Request::Verify) {
        Response::Verified { damaged: found, incomplete, .. } => {
            assert_eq!(found.len(), 2);
            assert!(damaged.iter().all(|id| found.contains(id)));
            let incomplete: Vec<&str> = incomplete.iter().map(|name| name.as_str()).collect();
            assert_eq!(incomplete, ["big", "f007", "f200"]);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(world.get(worker, by_name("f007")), None);
    assert_eq!(world.get(worker, by_name("f008")), Some(noise(8, 2_000)), "the rest is served");
    // A manifest that can not be read is named once more, by its object.
    world.machines[worker].engine.damaged = [table["big"]].into();
    match world.request(worker, Request::Verify) {
        Response::Verified { incomplete, .. } => {
            assert!(incomplete.iter().any(|name| name.as_str() == "big"))
        }
        other => panic!("{other:?}"),
    }
}

/// A pair that cleans every few seconds.
fn cleaning(seed: u64) -> (World, usize, usize) {
    let mut world = World::new(seed);
    let mut master = master_settings(&[("worker", Role::Worker)]);
    let mut worker = below_settings("worker", Role::Worker);
    for settings in [&mut master, &mut worker] {
        settings.clean_period_ms = 700;
        settings.clean_step_bytes = 300_000;
    }
    let (master, worker) = (world.add(master), world.add(worker));
    world.run_ms(500);
    (world, master, worker)
}

#[test]
fn cleaning_takes_what_nothing_leads_to_and_nothing_else() {
    let (mut world, master, worker) = cleaning(2);
    for index in 0..300 {
        world.put(worker, &format!("f{index}"), noise(index, 3_000));
    }
    world.put_now(worker, "big", noise(999, 10 << 20));
    world.run_until(60_000, "all are there", |world| are_alike(world, master, worker));
    for name in ["big", "f7"] {
        world.request(worker, Request::Remove { name: name.parse().unwrap() });
    }
    world.run_until(60_000, "they are cleaned away", |world| {
        [master, worker].iter().all(|node| world.machines[*node].engine.blocks.len() == 299)
    });
    assert!(are_alike(&world, master, worker));
    assert!(world.machines[worker].notes.iter().any(|note| matches!(note, Note::Cleaned { bytes: 1.. })));
}

#[test]
fn cleaning_takes_no_block_whose_manifest_still_waits_to_be_written() {
    for seed in 0..10 {
        let mut world = World::new(300 + seed);
        let mut settings = master_settings(&[]);
        settings.clean_period_ms = 1_700;
        settings.flush = BatchSettings { bytes: 1 << 20, age_ms: 5_000 };
        let master = world.add(settings);
        world.run_ms(500);
        for index in 0..8 {
            world.put_now(master, "junk", noise(2_000 + index, 30_000));
            let call = world.put_as(master, 9, &format!("f{index}"), noise(seed * 100 + index, 1_200_000));
            world.run_ms(7_000);
            assert!(matches!(world.wait(call), Response::Stored { .. }));
            assert!(is_whole(&world, master), "seed {seed}: f{index} was stored and then cleaned away");
        }
        assert!(world.machines[master].engine.cleaned > 0);
    }
}

#[test]
fn cleaning_takes_nothing_of_what_is_under_way() {
    for seed in 0..2 {
        let (mut world, master, worker) = cleaning(100 + seed);
        world.net.faults.delay_ms_max = 60;
        world.machines[worker].job_ms_max = 30;
        // Something is deleted all the time, so that every cleaning has work.
        let big = noise(seed, 90 << 20);
        let call = world.put_as(worker, 9, "big", big.clone());
        for index in 0..40 {
            world.put_now(worker, "junk", noise(1_000 + index, 30_000));
            world.put_now(master, "other", noise(2_000 + index, 30_000));
            world.run_ms(300);
        }
        assert!(matches!(world.wait(call), Response::Stored { .. }));
        assert!(is_whole(&world, worker), "seed {seed}: cleaned away while it was put");
        world.run_until(1_200_000, "the master has it", |world| {
            let (above, below) =
                (world.machines[master].engine.table(), world.machines[worker].engine.table());
            below.iter().all(|(name, root)| above.get(name) == Some(root)) && is_whole(world, master)
        });
        let resent = world.status(worker).sync.bytes_sent;
        assert!(resent < 95 << 20, "seed {seed}: {resent} bytes were sent, some twice");
        assert!(world.machines[worker].engine.cleaned > 0);
        if seed == 0 {
            assert!(world.get(master, by_name("big")) == Some(big));
        }
    }
}

#[test]
fn what_can_not_be_read_whole_stops_cleaning_and_goes_with_its_name() {
    let harms: [fn(&mut Engine, BlockId); 3] = [
        |engine, root| assert!(engine.damaged.insert(root), "the manifest is damaged"),
        |engine, root| assert!(engine.blocks.remove(&root).is_some(), "the manifest is missing"),
        |engine, _| {
            let name = "torn".parse().unwrap();
            engine.names.get_mut(&name).expect("it is bound").value =
                Bytes::from_static(b"of a newer program");
        },
    ];
    for harm in harms {
        let (mut world, _, worker) = cleaning(4);
        for (index, name) in ["junk", "torn", "rest"].into_iter().enumerate() {
            world.put_now(worker, name, noise(index as u64, 2 << 20));
        }
        let root = world.machines[worker].engine.table()["torn"];
        let bound = world.machines[worker].engine.names.clone();
        harm(&mut world.machines[worker].engine, root);
        let said = |world: &World| {
            let notes = &world.machines[worker].notes;
            notes.iter().any(
                |note| matches!(note, Note::Store { what } if what.contains("while torn can not be read whole")),
            )
        };
        let cleaned = world.machines[worker].engine.cleaned;
        world.request(worker, Request::Remove { name: "junk".parse().unwrap() });
        world.run_until(60_000, "it is said", said);
        assert_eq!(world.machines[worker].engine.cleaned, cleaned, "what lies below is not known");
        // the newer program is back
        world.machines[worker].engine.names.extend(bound.into_iter().filter(|(name, _)| name.under("torn")));
        world.request(worker, Request::Remove { name: "torn".parse().unwrap() });
        world.run_until(60_000, "both are cleaned away", |world| {
            world.machines[worker].engine.cleaned > cleaned
        });
        assert!(world.get(worker, by_name("rest")) == Some(noise(2, 2 << 20)));
    }
}

#[test]
fn while_a_part_of_the_log_is_unread_nothing_is_cleaned_erased_or_evicted_and_it_is_said() {
    for evict in [Evict::Never, Evict::Oldest] {
        let mut world = World::new(13);
        let mut settings = master_settings(&[]);
        settings.evict = evict;
        settings.quota_bytes = 8 << 20;
        settings.clean_period_ms = 700;
        let node = world.add(settings);
        world.put_now(node, "junk", noise(0, 300_000));
        let root = world.machines[node].engine.table()["junk"];
        world.machines[node].engine.is_unread = true;
        world.request(node, Request::Remove { name: "junk".parse().unwrap() });
        for index in 0..25 {
            world.put_now(node, &format!("f{index:02}"), noise(1 + index, 300_000));
        }
        world.run_ms(20_000);
        let erased = world.request(node, Request::Erase { cid: root });
        assert!(
            matches!(&erased, Response::Error(why) if why.message.contains("segment-00000007")),
            "{erased:?}"
        );
        let machine = &world.machines[node];
        assert_eq!((machine.engine.cleaned, machine.engine.erased, machine.engine.table().len()), (0, 0, 25));
        let says = |note: &Note| matches!(note, Note::Store { what } if what.contains("segment-00000007"));
        assert!(machine.notes.iter().any(says));
        assert_eq!(world.status(node).store.unread, ["segment-00000007"]);
        world.machines[node].engine.is_unread = false;
        world.put_now(node, "last", noise(100, 300_000));
        world.run_until(60_000, "it is cleaned", |world| world.machines[node].engine.cleaned > 0);
    }
}

#[test]
fn cleaning_takes_nothing_of_what_is_being_sent_to_a_connection() {
    for seed in 0..30 {
        let (mut world, _, worker) = cleaning(500 + seed);
        // a page of names, and manifests to be read, before the tours come to it
        for index in 0..600 {
            let bytes = if index < 60 { 150_000 } else { 300 };
            world.put(worker, &format!("f{index:03}"), noise(1_000 + index, bytes));
        }
        world.put_now(worker, "y", noise(0, 300));
        let (others, big) = (world.machines[worker].engine.blocks.len(), noise(seed, 6 << 20));
        world.put_now(worker, "z", big.clone());
        world.machines[worker].job_ms_max = 30;
        let wait_ms = world.random.below(5_000);
        world.run_ms(wait_ms);
        let call = world.ask_as(worker, 9, Request::Get { target: by_name("z"), offset: 0, length: None });
        world.run_until(1_000, "it is found", |world| !world.heard(call).is_empty());
        world.request(worker, Request::Remove { name: "z".parse().unwrap() });
        assert!(world.wait_for_get(call) == Some(big), "seed {seed}: {:?}", world.heard(call));
        world.run_until(60_000, "then it is cleaned away", |world| {
            world.machines[worker].engine.blocks.len() == others
        });
    }
}

fn blocks_of(world: &World, node: usize, root: BlockId) -> BTreeSet<BlockId> {
    let blocks = &world.machines[node].engine.blocks;
    let mut found = BTreeSet::from([root]);
    if let Ok(manifest) = Manifest::decode(&blocks[&root]) {
        found.extend(manifest.children().iter().flat_map(|child| blocks_of(world, node, child.id)));
    }
    found
}

#[test]
fn cleaning_takes_nothing_of_a_version_that_loses_a_conflict_meanwhile() {
    // so long that the copy's name is cut, and comes before: a tour has passed it when the name is bound anew
    let name = |index: u64| format!("{}{index:03}", "z".repeat(250));
    for seed in 0..3 {
        let (mut world, master, worker) = cleaning(400 + seed);
        world.machines[master].job_ms_max = 40;
        for index in 0..600 {
            world.put(master, &format!("{}a{index:03}", "z".repeat(240)), noise(index, 60));
            world.put(master, &name(index), noise(5_000 + index, 700));
        }
        world.run_ms(20_000);
        world.cut(worker, 0);
        world.run_ms(1_000);
        for index in 0..600 {
            world.put(worker, &name(index), noise(9_000 + index, 900));
        }
        world.run_ms(2_000);
        world.put_now(master, "junk", noise(0, 90_000));
        world.request(master, Request::Remove { name: "junk".parse().unwrap() });
        world.mend(worker);
        world.run_ms(300_000);
        assert!(world.status(master).sync.conflicts > 500);
        assert!(
            is_whole(&world, master) && is_whole(&world, worker),
            "seed {seed}: a loser was cleaned away"
        );
    }
}

#[test]
fn an_erasure_takes_what_lies_under_a_cid_and_no_object_needs() {
    let (mut world, _, worker) = World::pair(8);
    let (big, other) = (noise(1, 100 << 20), noise(2, 4 << 20));
    let shared = [&big[..3 << 20], &other[..]].concat();
    world.put_now(worker, "big", big.clone());
    world.put_now(worker, "shared", shared.clone());
    let root = world.machines[worker].engine.table()["big"];
    let (all, needed) = (
        blocks_of(&world, worker, root),
        blocks_of(&world, worker, world.machines[worker].engine.table()["shared"]),
    );
    let garbage = all.difference(&needed).count() as u64;
    assert!(garbage > 2_048 && garbage < all.len() as u64 - 20, "{garbage} of {}: several pages", all.len());
    world.request(worker, Request::Remove { name: "big".parse().unwrap() });
    assert!(world.get(worker, Target::Cid(root)).is_some(), "until then its CID finds it");
    let erased = world.request(worker, Request::Erase { cid: root });
    assert_eq!(erased, Response::Erased { cid: root, blocks: garbage });
    assert!(blocks_of(&world, worker, needed.first().copied().unwrap()).len() == 1);
    assert!(world.get(worker, by_name("shared")) == Some(shared));
    let again = world.request(worker, Request::Erase { cid: root });
    assert!(matches!(&again, Response::Error(why) if why.kind == FailureKind::NotFound), "{again:?}");
    world.put_now(worker, "big", big.clone());
    assert!(world.get(worker, by_name("big")) == Some(big), "it can be put again");
}

#[test]
fn an_erasure_of_what_an_object_needs_is_refused_and_names_it() {
    let (mut world, _, worker) = cleaning(9);
    world.put_now(worker, "junk", noise(0, 300_000));
    world.put_now(worker, "big", noise(1, 2 << 20));
    let root = world.machines[worker].engine.table()["big"];
    let leaf = *blocks_of(&world, worker, root).iter().find(|id| **id != root).unwrap();
    let before = world.machines[worker].engine.blocks.len();
    for cid in [root, leaf] {
        let refused = world.request(worker, Request::Erase { cid });
        let Response::Error(why) = &refused else { panic!("{refused:?}") };
        assert_eq!(why.kind, FailureKind::Invalid);
        assert!(why.message.contains(&format!("big needs {cid}; delete that name first")), "{why}");
    }
    assert_eq!(world.machines[worker].engine.blocks.len(), before);
    let root = world.machines[worker].engine.table()["junk"];
    world.request(worker, Request::Remove { name: "junk".parse().unwrap() });
    assert!(matches!(
        world.request(worker, Request::Erase { cid: root }),
        Response::Erased { blocks: 2.., .. }
    ));
    world.run_until(60_000, "cleaning goes on", |world| {
        world.machines[worker].engine.blocks.len()
            == blocks_of(world, worker, world.machines[worker].engine.table()["big"]).len()
    });
}

#[test]
fn what_is_damaged_and_needed_by_nothing_can_be_erased() {
    let (mut world, _, worker) = World::pair(10);
    world.put_now(worker, "big", noise(1, 2 << 20));
    let root = world.machines[worker].engine.table()["big"];
    world.request(worker, Request::Remove { name: "big".parse().unwrap() });
    world.machines[worker].engine.damaged.insert(root);
    let erased = world.request(worker, Request::Erase { cid: root });
    assert_eq!(erased, Response::Erased { cid: root, blocks: 1 }, "what it lists is not known");
    assert!(world.machines[worker].engine.damaged.is_empty());
}

#[test]
fn erasures_take_nothing_of_what_is_under_way() {
    for seed in 0..2 {
        let (mut world, master, worker) = cleaning(200 + seed);
        world.net.faults.delay_ms_max = 60;
        world.machines[worker].job_ms_max = 30;
        let big = noise(seed, 8 << 20);
        let call = world.put_as(worker, 9, "big", big.clone());
        let (mut busy, mut asked) = (0, Vec::new());
        for index in 0..30 {
            let last = world.machines[worker].engine.table().get("junk").copied();
            world.put_now(worker, "junk", noise(1_000 + index, 30_000));
            asked.extend(last.map(|cid| world.ask(worker, Request::Erase { cid })));
            for node in [worker, master] {
                // any block that is there, of what is put, on its way up, or nobody's
                let ids: Vec<BlockId> = world.machines[node].engine.blocks.keys().copied().collect();
                if let Some(cid) = ids.get((index as usize * 7919) % ids.len().max(1)) {
                    asked.push(world.ask(node, Request::Erase { cid: *cid }));
                }
            }
            world.run_ms(200);
        }
        assert!(matches!(world.wait(call), Response::Stored { .. }));
        for call in asked {
            match world.wait(call) {
                Response::Error(Failure { kind: FailureKind::Busy, message }) => {
                    let is_needed = message.starts_with("something under way needs ");
                    assert!(is_needed || message.ends_with(" wait already; try again"), "{message}");
                    busy += usize::from(is_needed);
                }
                Response::Error(Failure { kind: FailureKind::NotFound | FailureKind::Invalid, .. })
                | Response::Erased { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        assert!(busy > 0, "seed {seed}: nothing was under way");
        assert!(is_whole(&world, worker), "seed {seed}: erased while it was put");
        world.run_until(1_200_000, "the master has it", |world| are_alike(world, master, worker));
        assert!(world.get(master, by_name("big")) == Some(big));
        assert!(world.machines[worker].engine.erased > 0, "seed {seed}");
    }
}

#[test]
fn a_leecher_evicts_the_oldest_and_can_have_it_again() {
    let mut world = World::new(3);
    let master = world.add(master_settings(&[("leech", Role::Leecher)]));
    let mut settings = below_settings("leech", Role::Leecher);
    settings.subscriptions = vec![String::new()];
    settings.quota_bytes = 4 << 20;
    let leecher = world.add(settings);
    world.run_ms(500);
    for index in 0..40 {
        world.put_now(master, &format!("f{index:02}"), noise(index, 300_000));
        world.run_ms(20_000);
    }
    world.run_ms(60_000);
    let table = world.machines[leecher].engine.table();
    assert!(table.contains_key("f39") && !table.contains_key("f00"), "{:?}", table.keys());
    assert!(table.len() >= 6, "{:?}", table.keys());
    assert!(is_whole(&world, leecher));
    assert!(world.machines[leecher].notes.iter().any(|note| matches!(note, Note::Evicted { .. })));
    assert!(world.get(leecher, by_name("f00")) == Some(noise(0, 300_000)));
    assert_eq!(world.machines[master].engine.table().len(), 40, "an eviction is no deletion");
}

#[test]
fn a_full_worker_refuses_and_goes_on_after_deletions() {
    let mut world = World::new(4);
    let master = world.add(master_settings(&[("worker", Role::Worker)]));
    let mut settings = below_settings("worker", Role::Worker);
    settings.quota_bytes = 3 << 20;
    let worker = world.add(settings);
    world.run_ms(500);
    let mut refused = 0;
    for index in 0..12 {
        let call = world.put(worker, &format!("f{index}"), noise(index, 400_000));
        match world.wait(call) {
            Response::Error(failure) => {
                assert_eq!(failure.kind, FailureKind::Full);
                refused += 1;
            }
            Response::Stored { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    assert!((4..8).contains(&refused), "{refused} refused");
    world.run_until(60_000, "the rest is safe", |world| are_alike(world, master, worker));
    for index in 0..4 {
        world.request(worker, Request::Remove { name: format!("f{index}").parse().unwrap() });
    }
    world.run_ms(20_000);
    let mut put = world.put(worker, "new", noise(77, 400_000));
    if matches!(world.wait(put), Response::Error(_)) {
        world.run_ms(20_000);
        put = world.put(worker, "new", noise(77, 400_000));
    }
    assert!(matches!(world.wait(put), Response::Stored { .. }));
}

#[test]
fn a_full_master_takes_the_rest_when_it_has_room() {
    let (mut world, master, worker) = World::pair(5);
    world.machines[master].engine.quota_bytes = 2 << 20;
    for index in 0..10 {
        world.put_now(worker, &format!("f{index}"), noise(index, 500_000));
    }
    world.run_ms(120_000);
    assert!(is_whole(&world, master));
    assert!(!world.status(worker).peers[0].outbox_empty, "nothing is lost");
    world.machines[master].engine.quota_bytes = 1 << 40;
    world.run_until(900_000, "the master has all", |world| are_alike(world, master, worker));
}

#[test]
fn a_full_master_is_sent_the_rest_ever_more_rarely() {
    let (mut world, master, worker) = World::pair(29);
    world.machines[master].engine.quota_bytes = 2 << 20;
    for index in 0..10 {
        world.put_now(worker, &format!("f{index}"), noise(index, 500_000));
    }
    world.run_ms(120_000);
    let sent = |world: &World| world.net.block_bytes[&(world.name(worker), world.name(master))];
    let (before, announcements) = (sent(&world), world.judge.announcements);
    world.run_ms(3_600_000);
    let (sent, announcements) = (sent(&world) - before, world.judge.announcements - announcements);
    assert!(sent <= 32 << 20 && announcements <= 64, "{sent} bytes and {announcements} announcements");
}

#[test]
fn an_object_with_a_lost_block_is_refused_and_the_others_arrive() {
    // What rotted unseen is sent, not taken, wanted again, and only then looked at.
    for is_known in [true, false] {
        let (mut world, master, worker) = World::pair(6);
        world.cut(worker, 0);
        for index in 0..5 {
            world.put_now(worker, &format!("f{index}"), noise(index, 500_000));
        }
        let engine = &mut world.machines[worker].engine;
        let root = engine.table()["f2"];
        let leaf = Manifest::decode(&engine.blocks[&root]).unwrap().children()[3].id;
        if is_known {
            engine.damaged.insert(leaf)
        } else {
            engine.rotten.insert(leaf)
        };
        world.mend(worker);
        world.run_until(120_000, "the others are there", |world| {
            world.machines[master].engine.table().len() == 4 && is_whole(world, master)
        });
        world.run_ms(60_000);
        let status = world.status(worker);
        assert_eq!(status.sync.objects_refused, 1);
        assert!(status.sync.last_problem.contains("f2"), "{}", status.sync.last_problem);
        assert!(world.machines[worker].engine.damaged.contains(&leaf), "the worker knows");
        // Put again, it is whole again.
        world.put_now(worker, "f2", noise(2, 500_000));
        world.run_until(120_000, "it is there too", |world| are_alike(world, master, worker));
    }
}

#[test]
fn a_refusal_that_can_not_be_written_down_at_once_is_written_later() {
    let (mut world, master, worker) = World::pair(10);
    world.cut(worker, 0);
    for index in 0..5 {
        world.put_now(worker, &format!("f{index}"), noise(index, 100_000));
    }
    let engine = &mut world.machines[worker].engine;
    let lost = engine.table()["f2"];
    engine.damaged.insert(lost);
    world.mend(worker);
    world.run_until(20_000, "it is refused", |world| {
        world.machines[worker].notes.iter().any(|note| matches!(note, Note::Refused { .. }))
    });
    world.machines[worker].engine.failing_commits = 2;
    world.run_ms(300_000);
    assert_eq!(world.machines[worker].engine.failing_commits, 0);
    assert_eq!(world.machines[master].engine.table().len(), 4);
    let status = world.status(worker);
    assert!(status.peers.iter().all(|peer| peer.outbox_empty), "nothing waits behind it");
}

#[test]
fn a_worker_that_evicts_keeps_what_its_master_refused() {
    let mut world = World::new(12);
    let master = world.add(master_settings(&[("worker", Role::Worker)]));
    let mut settings = below_settings("worker", Role::Worker);
    settings.evict = Evict::Oldest;
    settings.quota_bytes = 4 << 20;
    let worker = world.add(settings);
    world.cut(worker, 0);
    world.put_now(worker, "refused", noise(100, 500_000));
    let engine = &mut world.machines[worker].engine;
    let leaf = Manifest::decode(&engine.blocks[&engine.table()["refused"]]).unwrap().children()[3].id;
    engine.damaged.insert(leaf);
    world.mend(worker);
    for index in 0..40 {
        // some come while room is still being made
        let _put = world.put(worker, &format!("f{index:02}"), noise(index, 300_000));
        world.run_ms(20_000);
    }
    let table = world.machines[worker].engine.table();
    assert!(!table.contains_key("f00"), "{:?}", table.keys());
    assert!(table.contains_key("refused"), "what is left of it is nowhere else");
    assert!(world.machines[master].engine.table().contains_key("f00"));
}

#[test]
fn many_rotten_blocks_cost_their_neighbours_no_time() {
    for is_known in [false, true] {
        let (mut world, master, worker) = World::pair(8);
        world.machines[master].settings.window_blocks = 16;
        world.machines[master].settings.flush.age_ms = 5_000;
        world.reload(master);
        world.cut(worker, 0);
        for index in 0..60 {
            world.put_now(worker, &format!("f{index:02}"), noise(index, 100_000));
        }
        let engine = &mut world.machines[worker].engine;
        let roots: Vec<_> = engine.table().into_values().step_by(3).collect();
        if is_known {
            engine.damaged.extend(&roots)
        } else {
            engine.rotten.extend(&roots)
        };
        world.mend(worker);
        world.run_until(20_000, "the others are there", |world| {
            world.machines[master].engine.table().len() == 40 && is_whole(world, master)
        });
        world.run_ms(20_000);
        let status = world.status(worker);
        assert!(status.peers.iter().all(|peer| peer.outbox_empty), "nothing is left");
        assert_eq!(status.sync.objects_refused, 20);
        let dropped = world.status(master).sync.blocks_unasked;
        let expected = if is_known { 0..=0 } else { 1..=20 };
        assert!(expected.contains(&dropped), "{dropped}: each is sent for nothing at most once");
    }
}

#[test]
fn objects_with_several_rotten_blocks_each_are_told_from_the_others_at_once() {
    let (mut world, master, worker) = World::pair(9);
    world.cut(worker, 0);
    for index in 0..12 {
        world.put_now(worker, &format!("f{index:02}"), noise(index, 500_000));
    }
    let engine = &mut world.machines[worker].engine;
    for (index, (_, root)) in engine.table().into_iter().enumerate().step_by(2) {
        let children = Manifest::decode(&engine.blocks[&root]).unwrap().into_children();
        engine.rotten.extend(children[index % 3..4].iter().map(|child| child.id));
        if index % 4 == 0 {
            engine.damaged.insert(children.last().unwrap().id);
        }
    }
    world.mend(worker);
    world.run_until(9_000, "the others are there before anything is asked for by the clock", |world| {
        world.machines[master].engine.table().len() == 6 && is_whole(world, master)
    });
    world.run_ms(20_000);
    assert_eq!(world.status(worker).sync.objects_refused, 6);
}
