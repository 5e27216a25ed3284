//! What is hard on a fleet and damages nothing: a master without room, very many files, a very long one, files
//! that vanish or grow while they are taken. All ends in the same bytes on all nodes.

#![expect(clippy::unwrap_used, reason = "a test that finds anything else has failed")]

use larder_tests::broker::{Config, Mosquitto};
use larder_tests::fleet::{Contents, Fleet, contents, listing, number, put, write_files};
use larder_tests::mount::Mount;
use larder_tests::node::{Node, noise, skip, wait_for};
use larder_tests::{terminal, wire};
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

const GIB: u64 = 1 << 30;
const FILM_BYTES: usize = 6_000_000;

/// Puts more films on the worker than the master has room for, and gives them once it has said so.
fn more_than_fits(fleet: &Fleet) -> Contents {
    let mut films = Contents::new();
    for index in 0..6 {
        let (name, film) = (format!("film/{index}"), noise(FILM_BYTES, &format!("film {index}")));
        put(&fleet.worker, &name, &film);
        films.insert(name, film);
    }
    fleet.master.wait_status("the master says that it is full", |status| {
        status["sync"]["last_problem"]
            .as_str()
            .filter(|said| said.contains("store or device full"))
            .map(|_| ())
    });
    let taken = fleet.master.names("");
    assert!(!taken.is_empty() && taken.len() < films.len(), "of all films {taken:?} fitted");
    for name in &taken {
        assert!(fleet.master.get(name).as_ref() == Some(&films[name]), "{name} has other bytes");
    }
    assert_eq!(fleet.worker.names("").len(), films.len(), "the worker keeps what the master has no room for");
    films
}

#[test]
fn a_master_past_its_limit_says_so_and_takes_the_rest_once_the_limit_is_raised() {
    let broker = Mosquitto::start(Config::default());
    let mut fleet = Fleet::new(broker.port());
    fleet.master.set("storage", "limit", "\"20 MB\"");
    fleet.master.set("storage", "segment", "\"1 MiB\"");
    fleet.leecher.set("node", "subscribe", "[\"\"]");
    fleet.start();
    let films = more_than_fits(&fleet);
    fleet.master.set("storage", "limit", "\"1 GB\"");
    fleet.master.signal(Signal::HUP);
    fleet.settled();
    fleet.assert_hold(&films);
}

#[test]
fn a_master_on_a_full_device_says_so_and_takes_the_rest_once_there_is_room() {
    let name = "a_master_on_a_full_device_says_so_and_takes_the_rest_once_there_is_room";
    let broker = Mosquitto::start(Config::default());
    let mut fleet = Fleet::new(broker.port());
    fs::create_dir(fleet.master.path("disk")).unwrap();
    let Some(_mount) = Mount::tmpfs(&fleet.master.path("disk"), "200m") else {
        return skip(name, "mounting needs root");
    };
    fleet.master.set("node", "store", "\"disk/store\"");
    fleet.master.set("storage", "segment", "\"1 MiB\"");
    fleet.leecher.set("node", "subscribe", "[\"\"]");
    fleet.start();
    let others = fleet.master.path("disk/of-others");
    File::create(&others).unwrap().write_all(&vec![1; 180 << 20]).unwrap();
    let films = more_than_fits(&fleet);
    fs::remove_file(others).unwrap();
    fleet.settled();
    fleet.assert_hold(&films);
}

#[test]
fn a_hundred_thousand_small_files_reach_master_and_leecher_whatever_is_killed_meanwhile() {
    let broker = Mosquitto::start(Config::default());
    let mut fleet = Fleet::new(broker.port());
    fleet.leecher.set("node", "subscribe", "[\"\"]");
    fleet.start();
    let bytes = noise(100 * 100_000, "small");
    let files: BTreeMap<String, &[u8]> =
        (0..).map(|index| format!("many/{:03}/{index:06}", index / 100)).zip(bytes.chunks(100)).collect();
    for (name, content) in &files {
        let path = fleet.worker.path(name);
        if name.ends_with("00") {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
        }
        fs::write(path, content).unwrap();
    }
    let putting = fleet.worker.command(["put", "many"]).stdout(Stdio::null()).spawn().unwrap();
    let names = |node: &Node| node.status()["store"]["names"].as_u64().unwrap();
    wait_for("some are there", || (names(&fleet.master) > 10_000).then_some(()));
    fleet.master.kill();
    fleet.master.start();
    assert!(putting.wait_with_output().unwrap().status.success());
    fleet.worker.kill();
    fleet.worker.start();
    for count in (20_000..=100_000).step_by(10_000) {
        wait_for("more of them are there", || (names(&fleet.master) >= count).then_some(()));
    }
    fleet.leecher.kill();
    fleet.leecher.start();
    for count in (10_000..=100_000).step_by(10_000) {
        wait_for("more of them are fetched", || (names(&fleet.leecher) >= count).then_some(()));
    }
    fleet.settled();
    for node in [&fleet.master, &fleet.leecher] {
        assert_eq!(names(node), 100_000);
        assert_eq!(listing(node, ""), listing(&fleet.worker, ""));
        node.run(["verify"]).expect(0);
    }
    let mut stream = fleet.master.connect();
    for (number, (name, content)) in (1..).zip(&files) {
        assert!(wire::get(&mut stream, number, name).unwrap().unwrap() == *content, "{name}");
    }
}

/// What a range of a sparse file with islands holds.
fn expected(islands: &BTreeMap<u64, Vec<u8>>, from: u64, length: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(length).unwrap()];
    for (at, island) in islands {
        for (byte, place) in island.iter().zip(*at..) {
            if (from..from + length).contains(&place) {
                bytes[usize::try_from(place - from).unwrap()] = *byte;
            }
        }
    }
    bytes
}

#[test]
fn a_sparse_file_of_five_gib_is_stored_small_and_every_range_of_it_is_right_on_every_node() {
    let broker = Mosquitto::start(Config::default());
    let mut fleet = Fleet::new(broker.port());
    fleet.start();
    let node = &fleet.worker;
    let file = File::create(node.path("sparse")).unwrap();
    file.set_len(5 * GIB).unwrap();
    let places = [0, GIB + 12_345, 4 * GIB - 1_000, 5 * GIB - 3_000];
    let islands: BTreeMap<u64, Vec<u8>> =
        places.into_iter().map(|at| (at, noise(3_000, &at.to_string()))).collect();
    for (at, island) in &islands {
        file.write_all_at(island, *at).unwrap();
    }
    let stored = node.json(["put", "sparse"]).remove(0);
    assert_eq!(stored["size"], 5 * GIB);
    fleet.settled();
    let (ended, screen) = terminal::watch(fleet.leecher.command(["fetch", "sparse"]));
    let shows_how_far = [" of 5.00 GiB, ", "/s, ", " left"].iter().all(|part| screen.contains(part));
    assert!(ended.success() && shows_how_far, "{screen:?}");
    for node in [&fleet.worker, &fleet.master, &fleet.leecher] {
        let used = number(&node.status(), "store", "used_bytes");
        assert!(used < 100 << 20, "equal blocks are stored once, but {used} bytes are used");
        for (from, length) in [
            (0, 5_000),
            (GIB, 40_000),
            (4 * GIB - 2_000, 4_000),
            (5 * GIB - 4_000, 4_000),
            (3 * GIB, 1),
            (5 * GIB - 1, 1),
            (5 * GIB, 0),
        ] {
            let range = ["--offset", &from.to_string(), "--length", &length.to_string()];
            let got = node.run([&["get", "sparse", "-o", "-"][..], &range].concat()).expect(0);
            assert!(got.stdout == expected(&islands, from, length), "{length} bytes from {from}");
        }
        let last = (5 * GIB - 3_000).to_string();
        let tail = node.run(["get", "sparse", "-o", "-", "--offset", &last]).expect(0);
        assert!(tail.stdout == islands[&(5 * GIB - 3_000)]);
        node.run(["verify"]).expect(0);
    }
    let mut whole =
        fleet.master.command(["get", "sparse", "-o", "-"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = whole.stdout.take().unwrap();
    let mut piece = vec![0; 1 << 20];
    for position in (0..5 * GIB).step_by(1 << 20) {
        stdout.read_exact(&mut piece).unwrap();
        let holds_an_island = places.iter().any(|at| *at < position + (1 << 20) && position < at + 3_000);
        if holds_an_island {
            assert!(piece == expected(&islands, position, 1 << 20), "from {position}");
        } else {
            assert!(piece.iter().all(|byte| *byte == 0), "from {position}");
        }
    }
    assert_eq!(stdout.read(&mut piece).unwrap(), 0);
    assert!(whole.wait().unwrap().success());
}

#[test]
fn watched_files_that_vanish_or_grow_end_on_all_nodes_as_they_are_in_the_end() {
    let broker = Mosquitto::start(Config::default());
    let mut fleet = Fleet::new(broker.port());
    let watched = fleet.worker.path("in");
    fs::create_dir(&watched).unwrap();
    fleet.worker.append("[[watch]]\npath = \"in\"\nprefix = \"in/\"\nsettle_s = 1\n");
    fleet.leecher.set("node", "subscribe", "[\"in/\"]");
    fleet.start();
    let (grows, kept) = (noise(4_000_000, "grows"), noise(300_000, "kept"));
    let mut vanished = Contents::new();
    for (index, piece) in grows.chunks(400_000).enumerate() {
        // closed each time: complete, as far as anybody can tell
        let growing = OpenOptions::new().create(true).append(true).open(watched.join("grows"));
        growing.unwrap().write_all(piece).unwrap();
        if index % 4 != 3 {
            thread::sleep(Duration::from_millis(100));
            continue;
        }
        let vanishing: Contents = (0..20)
            .map(|number| (format!("in/vanishes-{index}-{number}"), piece[number..].to_vec()))
            .collect();
        write_files(fleet.worker.folder(), &vanishing);
        wait_for("what has grown so far is taken, as long as it is", || {
            let listed = listing(&fleet.worker, "in/grows").pop()?;
            (listed["meta"]["size"] == (index + 1) * 400_000).then_some(())
        });
        // some of them have been taken by now, some are being taken, and some are waiting
        for name in vanishing.keys() {
            fs::remove_file(fleet.worker.path(name)).unwrap();
        }
        vanished.extend(vanishing);
    }
    fs::write(watched.join("kept"), &kept).unwrap();
    let mut files = contents([("in/grows", grows), ("in/kept", kept)]);
    wait_for("the last of it is taken", || {
        let listed = listing(&fleet.worker, "in/");
        let is_whole = |(name, bytes): (&String, &Vec<u8>)| {
            listed.iter().any(|object| object["name"] == **name && object["meta"]["size"] == bytes.len())
        };
        files.iter().all(is_whole).then_some(())
    });
    let taken = fleet.worker.names("in/vanishes");
    files.extend(vanished.into_iter().filter(|(name, _)| taken.contains(name)));
    wait_for("the leecher has what it subscribes to", || {
        (fleet.leecher.names("in/").len() == files.len()).then_some(())
    });
    fleet.settled();
    fleet.assert_hold(&files);
}
