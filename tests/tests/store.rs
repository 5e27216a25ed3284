//! The store in bad luck: full, read-only, locked, of another version, damaged, torn, killed.

#![expect(clippy::unwrap_used, reason = "a test that finds anything else has failed")]

use larder_store::{Disk, DiskFile, OpenMode, OsDisk};
use larder_tests::mount::{Mount, fill_device};
use larder_tests::node::{Node, noise, skip, wait_for};
use larder_tests::store::{copy, raise_version, segments};
use larder_tests::wire;
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, IoSlice};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

fn content(index: usize) -> Vec<u8> {
    let length = [0, 100, 5_000, 120_000, 400_000, 2_000_000][index % 6];
    noise(length, &format!("object {index}"))
}

/// Puts this many objects, named by their number.
fn fill(node: &Node, count: usize) {
    for index in 0..count {
        node.run_with(["put", "--stdin", &format!("o/{index:03}")], &content(index)).expect(0);
    }
}

fn all_whole(node: &Node, count: usize) {
    assert_eq!(node.names("o/").len(), count);
    for index in 0..count {
        assert!(node.get(&format!("o/{index:03}")).unwrap() == content(index), "object {index}");
    }
}

fn notes(node: &Node) -> String {
    node.status()["store"]["notes"].to_string()
}

#[test]
fn a_store_that_cannot_be_written_is_refused_with_the_way_out() {
    let mut node = Node::new("cam", "worker");
    fill(&node, 3);
    let Some(mount) = Mount::read_only(&node.store()) else {
        return skip("a_store_that_cannot_be_written_is_refused_with_the_way_out", "mounting needs root");
    };
    let refused = node.refused_start();
    assert_eq!(refused.code, 6, "{}", refused.stderr);
    assert!(
        refused.stderr.contains("can not be written") && refused.stderr.contains("mount it read-write"),
        "{}",
        refused.stderr
    );
    for arguments in [vec!["status"], vec!["put", "larder.toml"], vec!["ls"]] {
        let refused = node.run(&arguments).expect(6);
        assert!(refused.stderr.contains("mount it read-write"), "{}", refused.stderr);
    }
    drop(mount);
    node.start();
    all_whole(&node, 3);
}

#[test]
fn a_full_device_refuses_new_data_keeps_the_rest_and_starts_again() {
    let name = "a_full_device_refuses_new_data_keeps_the_rest_and_starts_again";
    let mut node = Node::new("cam", "worker");
    fs::create_dir(node.path("disk")).unwrap();
    let Some(_mount) = Mount::tmpfs(&node.path("disk"), "96m") else {
        return skip(name, "mounting needs root");
    };
    node.set("node", "store", "\"disk/store\"");
    node.set("storage", "segment", "\"4 MiB\"");
    node.start();
    fill(&node, 12);
    fill_device(&node.path("disk/filler"));
    fs::write(node.path("large"), noise(16 << 20, "large")).unwrap();
    let full = node.run(["put", "large"]).expect(5);
    assert!(full.stderr.contains("full"), "{}", full.stderr);
    assert!(node.status()["store"]["blocks"].as_u64().unwrap() > 0);
    all_whole(&node, 12);
    node.run(["rm", "o/000"]).expect(0);
    node.kill();
    node.start();
    assert_eq!(node.names("o/").len(), 11, "{}", node.log());
    for index in 1..12 {
        assert!(node.get(&format!("o/{index:03}")).unwrap() == content(index), "object {index}");
    }
    node.run(["rm", "o/001"]).expect(0);
    node.run(["put", "large"]).expect(5);
    assert_eq!(node.stop(), 0);
    node.start();
    fs::remove_file(node.path("disk/filler")).unwrap();
    node.run(["put", "large"]).expect(0);
    assert!(node.get("large").unwrap() == noise(16 << 20, "large"));
    node.run(["verify"]).expect(0);
}

#[test]
fn an_index_lost_on_a_full_device_is_made_again_once_there_is_room() {
    let name = "an_index_lost_on_a_full_device_is_made_again_once_there_is_room";
    let mut node = Node::new("cam", "worker");
    fs::create_dir(node.path("disk")).unwrap();
    let Some(_mount) = Mount::tmpfs(&node.path("disk"), "96m") else {
        return skip(name, "mounting needs root");
    };
    node.set("node", "store", "\"disk/store\"");
    node.start();
    fill(&node, 6);
    node.kill();
    fs::remove_file(node.path("disk/store/index.redb")).unwrap();
    fill_device(&node.path("disk/filler"));
    let refused = node.refused_start();
    assert_eq!(refused.code, 5, "{}", refused.stderr);
    assert!(refused.stderr.contains("the device is full; make room on it"), "{}", refused.stderr);
    fs::remove_file(node.path("disk/filler")).unwrap();
    node.start();
    all_whole(&node, 6);
}

#[test]
fn the_quota_is_a_hard_limit_and_deleting_makes_room() {
    let mut node = Node::new("cam", "worker");
    node.set("storage", "limit", "\"32 MB\"");
    node.start();
    let mut stored = Vec::new();
    let full = loop {
        let name = format!("piece/{}", stored.len());
        let put = node.run_with(["put", "--stdin", &name], &noise(2_000_000, &name));
        if put.code != 0 {
            break put.expect(5);
        }
        stored.push(name);
        assert!(stored.len() < 20, "40 MB in 32");
    };
    assert!(stored.len() >= 6, "only {} pieces of 2 MB in 32 MB", stored.len());
    assert!(full.stderr.contains("full"), "{}", full.stderr);
    let used: u64 = fs::read_dir(node.store())
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap())
        .map(|metadata| std::os::unix::fs::MetadataExt::blocks(&metadata) * 512)
        .sum();
    assert!(used <= 32_000_000, "{used} bytes on disk");
    for name in &stored {
        assert!(node.get(name).unwrap() == noise(2_000_000, name), "{name}");
    }
    for name in &stored[..stored.len() / 2] {
        node.run(["rm", name]).expect(0);
    }
    wait_for("deleting makes room", || {
        (node.run_with(["put", "--stdin", "after"], &noise(2_000_000, "after")).code == 0).then_some(())
    });
    for name in &stored[stored.len() / 2..] {
        assert!(node.get(name).unwrap() == noise(2_000_000, name), "{name}");
    }
    node.run(["verify"]).expect(0);
}

#[test]
fn a_newer_format_is_refused_names_both_versions_and_changes_nothing() {
    for (file, check) in [("superblock", 60), ("segment-00000001", 76)] {
        let mut node = Node::new("cam", "worker");
        fill(&node, 3);
        let path = match file {
            "superblock" => node.path("store/superblock"),
            _ => segments(&node.store())[0].clone(),
        };
        raise_version(&path, check);
        let read = || {
            let files = fs::read_dir(node.store()).unwrap().map(|entry| entry.unwrap().path());
            files.map(|path| (path.clone(), fs::read(path).unwrap())).collect::<BTreeMap<_, _>>()
        };
        let before = read();
        let said = node.run(["ls"]).expect(2);
        assert!(
            said.stderr.contains("has store format 3, this program knows up to 2; upgrade larder"),
            "{file}: {}",
            said.stderr
        );
        assert!(before == read(), "{file}: something was changed");
        let said = node.refused_start();
        assert!(said.code == 2 && said.stderr.contains("upgrade larder"), "{file}: {}", said.stderr);
    }
}

#[test]
fn a_store_in_use_is_refused_to_a_second_agent_and_to_commands_that_miss_the_socket() {
    let mut node = Node::new("cam", "worker");
    node.start();
    fill(&node, 2);
    for arguments in [vec!["run"], vec!["ls"], vec!["put", "larder.toml"]] {
        let mut all = vec!["--socket", "other.sock"];
        all.extend(arguments);
        let refused = node.run(&all).expect(8);
        assert!(refused.stderr.contains("is in use by another process"), "{}", refused.stderr);
    }
    let refused = node.run(["run"]).expect(8);
    assert!(
        refused.stderr.contains("in use") || refused.stderr.contains("another agent listens"),
        "{}",
        refused.stderr
    );
    all_whole(&node, 2);
}

#[test]
fn an_index_lost_cut_zeroed_or_of_another_store_is_made_again_and_nothing_is_missing() {
    type Harm = fn(&Path, &Path);
    let harms: [(&str, Harm); 5] = [
        ("deleted", |index, _| fs::remove_file(index).unwrap()),
        ("truncated", |index, _| {
            OpenOptions::new().write(true).open(index).unwrap().set_len(10_000).unwrap()
        }),
        ("empty", |index, _| File::create(index).unwrap().set_len(0).unwrap()),
        ("zeroed", |index, _| {
            let length = index.metadata().unwrap().len();
            File::create(index).unwrap().set_len(length).unwrap();
        }),
        ("from another store", |index, other| {
            fs::copy(other, index).unwrap();
        }),
    ];
    let other = Node::new("other", "worker");
    fill(&other, 2);
    let mut node = Node::new("cam", "worker");
    node.start();
    fill(&node, 6);
    for (harm, act) in harms {
        for is_killed in [true, false] {
            if is_killed {
                node.kill();
            } else {
                assert_eq!(node.stop(), 0);
            }
            act(&node.path("store/index.redb"), &other.path("store/index.redb"));
            node.start();
            let notes = notes(&node);
            assert!(notes.contains("the index was made again from the log"), "{harm}: {notes}");
            assert!(node.log().contains("the index was made again"), "{harm}: {}", node.log());
            all_whole(&node, 6);
        }
    }
    node.run(["verify"]).expect(0);
    node.restart();
    assert_eq!(notes(&node), "[]", "what was repaired is not repaired again");
}

#[test]
fn a_store_of_nothing_but_its_segments_has_lost_nothing() {
    let mut node = Node::new("cam", "worker");
    node.set("storage", "limit", "\"64 MB\"");
    node.set("storage", "segment", "\"1 MiB\"");
    fill(&node, 12);
    assert!(segments(&node.store()).len() > 3);
    for entry in fs::read_dir(node.store()).unwrap() {
        let path = entry.unwrap().path();
        if !segments(&node.store()).contains(&path) {
            fs::remove_file(path).unwrap();
        }
    }
    node.start();
    all_whole(&node, 12);
    node.run(["verify"]).expect(0);
}

/// Flips one bit.
fn flip(path: &Path, at: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

/// Files of a process may not grow beyond a length: the kernel takes the part of a write that fits, and refuses the rest.
#[test]
fn what_the_kernel_took_of_a_write_is_in_its_place_when_it_refuses_the_rest() {
    const FOLDER: &str = "LARDER_SHORT_WRITES";
    const TEST: &str = "what_the_kernel_took_of_a_write_is_in_its_place_when_it_refuses_the_rest";
    const FITS: u64 = 9_000;
    let bytes = noise(20_000, "a short write");
    if let Some(folder) = std::env::var_os(FOLDER) {
        let limit = Rlimit { current: Some(FITS), ..rustix::process::getrlimit(Resource::Fsize) };
        rustix::process::setrlimit(Resource::Fsize, limit).unwrap();
        let file = OsDisk::new(folder).unwrap().open("file", OpenMode::Create).unwrap();
        let parts: Vec<IoSlice<'_>> = bytes.chunks(700).map(IoSlice::new).collect();
        let error = file.write_gathered(&parts, 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge, "{error}");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    // only a shell makes a process begin with the signal ignored that would end it
    let mut child = Command::new("sh");
    child.args(["-c", "trap '' XFSZ && exec \"$0\" --exact \"$1\""]);
    let child = child.arg(std::env::current_exe().unwrap()).arg(TEST).env(FOLDER, folder.path());
    let ended = child.output().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stdout));
    let written = fs::read(folder.path().join("file")).unwrap();
    assert!(written == bytes[..FITS as usize], "{} bytes are there", written.len());
}

#[test]
fn a_read_that_fails_for_want_of_descriptors_loses_no_block() {
    let mut node = Node::new("cam", "worker");
    node.set("storage", "limit", "\"200 MB\"");
    node.set("storage", "segment", "\"1 MiB\"");
    node.set("storage", "cache", "\"256 KiB\"");
    fill(&node, 36);
    node.start();
    let mut stream = node.connect();
    wire::ask(&mut stream, 1, &json!({"do": "status"})).unwrap();
    wire::answer(&mut stream).unwrap();
    let none = Rlimit { current: Some(0), ..rustix::process::getrlimit(Resource::Nofile) };
    let before = rustix::process::prlimit(Some(node.pid()), Resource::Nofile, none).unwrap();
    let mut failed = 0;
    for index in 0..36_usize {
        let name = format!("o/{index:03}");
        match wire::get(&mut stream, 10 + index as u32, &name).unwrap() {
            Ok(bytes) => assert!(bytes == content(index), "{name}"),
            Err(failure) => {
                assert_eq!(failure["kind"], "disk", "{failure}");
                failed += 1;
            }
        }
    }
    assert!(failed > 0, "all segments were open already");
    rustix::process::prlimit(Some(node.pid()), Resource::Nofile, before).unwrap();
    all_whole(&node, 36);
    assert_eq!(node.status()["store"]["damaged"], 0, "nothing was taken for damaged");
    node.run(["verify"]).expect(0);
}

#[test]
fn a_rebuild_that_fails_for_want_of_descriptors_leaves_the_agent_serving_when_it_has_them_again() {
    let mut node = Node::new("cam", "worker");
    node.start();
    fill(&node, 3);
    let mut stream = node.connect();
    wire::ask(&mut stream, 1, &json!({"do": "status"})).unwrap();
    wire::answer(&mut stream).unwrap();
    let none = Rlimit { current: Some(0), ..rustix::process::getrlimit(Resource::Nofile) };
    let before = rustix::process::prlimit(Some(node.pid()), Resource::Nofile, none).unwrap();
    for request in 2..4 {
        wire::ask(&mut stream, request, &json!({"do": "index_rebuild"})).unwrap();
        let mut answers = std::iter::repeat_with(|| wire::answer(&mut stream).unwrap().1);
        let end = answers.find(|answer| answer["answer"] != "progress").unwrap();
        assert!(end["answer"] == "error" && end["kind"] == "disk", "{end}");
    }
    rustix::process::prlimit(Some(node.pid()), Resource::Nofile, before).unwrap();
    wait_for("the store is open again", || node.get("o/000"));
    fill(&node, 4);
    all_whole(&node, 4);
    node.run(["verify"]).expect(0);
}

#[test]
fn an_index_that_can_not_be_made_again_for_want_of_room_leaves_the_agent_serving() {
    let name = "an_index_that_can_not_be_made_again_for_want_of_room_leaves_the_agent_serving";
    let mut node = Node::new("cam", "worker");
    fs::create_dir(node.path("disk")).unwrap();
    let Some(_mount) = Mount::tmpfs(&node.path("disk"), "96m") else {
        return skip(name, "mounting needs root");
    };
    node.set("node", "store", "\"disk/store\"");
    node.start();
    fill(&node, 12);
    fill_device(&node.path("disk/filler"));
    node.run(["index", "rebuild"]).expect(5);
    all_whole(&node, 12);
    fs::remove_file(node.path("disk/filler")).unwrap();
    node.run(["index", "rebuild"]).expect(0);
    all_whole(&node, 12);
    node.run_with(["put", "--stdin", "more"], b"more").expect(0);
}

#[test]
fn after_a_restart_a_block_that_is_new_costs_no_look_into_the_index_and_one_that_is_known_is_found() {
    let mut node = Node::new("cam", "worker");
    node.start();
    fill(&node, 6);
    fs::write(node.path("file"), content(5)).unwrap();
    node.run(["put", "file"]).expect(0);
    // what is in memory needs no filter: only now does all of it lie in the index
    node.restart();
    assert_eq!(notes(&node), "[]", "the filter was read, not made again");
    let count = |key: &str| node.status()["store"][key].as_u64().unwrap();
    let put = |name: &str| {
        let answers = node.json(["put", name]);
        answers.into_iter().find(|answer| answer["answer"] == "stored").unwrap()
    };
    let (skips, blocks) = (count("filter_skips"), count("blocks"));
    assert_eq!(put("file")["unchanged"], true);
    node.run_with(["put", "--stdin", "twin"], &content(5)).expect(0);
    assert_eq!((count("filter_skips"), count("blocks")), (skips, blocks), "all of it is known");
    fs::write(node.path("new"), noise(1_000_000, "new")).unwrap();
    let new = put("new");
    let parts = new["blocks"].as_u64().unwrap();
    assert!(parts > 10 && count("blocks") - blocks >= parts, "{new}");
    // one in a hundred may be looked for in vain
    assert!(count("filter_skips") - skips >= parts - 1, "{} of {new}", count("filter_skips") - skips);
}

#[test]
fn a_file_with_the_last_number_a_segment_can_have_is_not_taken_for_one() {
    let mut node = Node::new("cam", "worker");
    fill(&node, 3);
    let first = segments(&node.store()).remove(0);
    let last = node.store().join("segment-ffffffff");
    let alike = fs::read(first).unwrap();
    fs::write(&last, &alike).unwrap();
    node.start();
    all_whole(&node, 3);
    node.run_with(["put", "--stdin", "more"], b"more").expect(0);
    node.run(["index", "rebuild"]).expect(0);
    node.restart();
    all_whole(&node, 3);
    assert!(fs::read(&last).unwrap() == alike, "it was left alone");
}

/// Where some bytes stand in the log.
fn find(store: &Path, bytes: &[u8]) -> (PathBuf, u64) {
    let found = segments(store).into_iter().find_map(|path| {
        let log = fs::read(&path).unwrap();
        let at = log.windows(bytes.len()).position(|window| window == bytes)?;
        Some((path, at as u64))
    });
    found.expect("the block is in the log")
}

#[test]
fn a_flipped_bit_in_a_block_is_named_never_served_and_healed_by_a_new_put() {
    for is_running in [false, true] {
        let mut node = Node::new("cam", "worker");
        fill(&node, 6);
        if is_running {
            node.start();
        }
        // object 4 has several blocks; its second half is in a later one than its first
        let object = content(4);
        let (path, at) = find(&node.store(), &object[300_000..300_064]);
        flip(&path, at);
        let damaged = node.run(["get", "o/004", "-o", "-"]).expect(4);
        assert!(object.starts_with(&damaged.stdout), "wrong bytes were served");
        assert!(
            damaged.stderr.contains("block bafkr4i") && damaged.stderr.contains("is damaged in segment-"),
            "{}",
            damaged.stderr
        );
        let block =
            damaged.stderr.split_whitespace().find(|word| word.starts_with("bafkr4i")).unwrap().to_owned();
        node.run(["get", "o/004", "-o", "file"]).expect(4);
        assert!(!node.path("file").exists(), "a file is there whole or not at all");
        for index in [0, 1, 2, 3, 5] {
            assert!(node.get(&format!("o/{index:03}")).unwrap() == content(index), "object {index}");
        }
        let verified = node.run(["--json", "verify"]).expect(4).json().pop().unwrap();
        assert_eq!((&verified["damaged"], &verified["incomplete"]), (&json!([block]), &json!(["o/004"])));
        let text = node.run(["verify"]).expect(4).text();
        assert!(
            text.contains(&format!("damaged block {block}")) && text.contains("incomplete o/004"),
            "{text}"
        );
        node.run(["rm", "o/004"]).expect(0);
        let verified = node.run(["verify"]).expect(4).text();
        assert!(verified.contains("no object needs: `larder rm CID` deletes it"), "{verified}");
        node.run(["rm", &block]).expect(0);
        node.run(["verify"]).expect(0);
        node.run_with(["put", "--stdin", "o/004"], &object).expect(0);
        assert!(node.get("o/004").unwrap() == object);
        node.run(["verify"]).expect(0);
        if is_running {
            node.restart();
        }
        all_whole(&node, 6);
        node.run(["verify"]).expect(0);
    }
}

#[test]
fn a_rotten_record_of_the_log_takes_its_name_with_it_and_holds_nothing_else_up() {
    let mut node = Node::new("cam", "worker");
    node.start();
    fill(&node, 6);
    node.kill();
    // the record that binds a name, its bytes before its key's, in a batch that others follow
    let (path, at) = find(&node.store(), b"o/003");
    flip(&path, at - 8);
    node.start();
    assert!(notes(&node).contains("bytes of the log are damaged"), "{}", notes(&node));
    assert_eq!(node.status()["store"]["unread"], json!([]), "what is rotten is not read another time");
    let cid = node.json(["ls", "o/002"])[0]["objects"][0]["cid"].as_str().unwrap().to_owned();
    node.run(["rm", "o/002"]).expect(0);
    node.run(["rm", &cid]).expect(0);
    node.restart();
    assert_eq!(notes(&node), "[]");
    node.run(["index", "rebuild"]).expect(0);
    assert!(notes(&node).contains("bytes of the log are damaged"), "{}", notes(&node));
    assert_eq!(node.names("o/"), ["o/000", "o/001", "o/004", "o/005"]);
    for index in [0, 1, 4, 5] {
        assert!(node.get(&format!("o/{index:03}")).unwrap() == content(index), "object {index}");
    }
}

#[test]
fn a_flipped_bit_anywhere_in_the_log_never_yields_wrong_bytes_nor_keeps_the_store_shut() {
    let node = Node::new("cam", "worker");
    fill(&node, 6);
    let path = segments(&node.store()).remove(0);
    let log = fs::read(&path).unwrap();
    let end = log.iter().rposition(|byte| *byte != 0).unwrap() as u64;
    let mut places: Vec<u64> = (0..14).map(|step| step * end / 14 + step).collect();
    places.extend([9, 13, 20, 40, 77, 4096, 4100, 4104, 4112, end]);
    copy(&node.store(), &node.path("whole"));
    for is_index_lost in [false, true] {
        for at in &places {
            copy(&node.path("whole"), &node.store());
            flip(&path, *at);
            if is_index_lost {
                fs::remove_file(node.path("store/index.redb")).unwrap();
            }
            for index in 0..6 {
                let said = node.run(["get", &format!("o/{index:03}"), "-o", "-"]);
                let is_right = if said.code == 0 {
                    said.stdout == content(index)
                } else {
                    content(index).starts_with(&said.stdout)
                };
                assert!(is_right, "bit at {at}: wrong bytes of object {index}");
                assert!([0, 3, 4].contains(&said.code), "bit at {at}: {} {}", said.code, said.stderr);
            }
        }
    }
}

#[test]
fn what_was_acknowledged_before_a_kill_is_there_and_whole_after_it() {
    let mut node = Node::new("cam", "worker");
    node.set("storage", "limit", "\"1 GB\"");
    node.set("storage", "segment", "\"4 MiB\"");
    let acknowledged = Mutex::new(BTreeMap::<String, Vec<u8>>::new());
    for round in 0..20 {
        node.start();
        let (acks, pid) = (AtomicUsize::new(0), node.pid());
        let kill_at = 1 + round * 7 % 60;
        thread::scope(|scope| {
            for client in 0..4 {
                let mut stream = node.connect();
                let (acks, acknowledged) = (&acks, &acknowledged);
                scope.spawn(move || {
                    for number in 1.. {
                        let name = format!("{round}/{client}/{number}");
                        let length = [100, 3_000, 40_000, 300_000][number as usize % 4];
                        let bytes = noise(length, &name);
                        let Ok(()) = wire::put(&mut stream, number, &name, &bytes) else { return };
                        let Ok((_, answer)) = wire::answer(&mut stream) else { return };
                        assert_eq!(answer["answer"], "stored", "{answer}");
                        acknowledged.lock().unwrap().insert(name, bytes);
                        if acks.fetch_add(1, Ordering::Relaxed) == kill_at {
                            kill_process(pid, Signal::KILL).unwrap();
                        }
                    }
                });
            }
        });
        assert_eq!(node.ended(), 128 + 9);
        if round % 5 == 4 {
            node.start();
            let mut stream = node.connect();
            for (number, (name, bytes)) in (1..).zip(acknowledged.lock().unwrap().iter()) {
                let found = wire::get(&mut stream, number, name).unwrap();
                assert!(
                    found.as_ref().is_ok_and(|found| found == bytes),
                    "round {round}: {name} is not whole: {:?}",
                    found.err()
                );
            }
            node.run(["verify"]).expect(0);
            node.kill();
        }
    }
    node.start();
    let names = node.names("");
    let mut stream = node.connect();
    let acknowledged = acknowledged.into_inner().unwrap();
    println!("{} objects acknowledged in 20 killed agents, {} are there", acknowledged.len(), names.len());
    for (number, name) in (1..).zip(&names) {
        // an object that was not acknowledged is absent or whole
        let found = wire::get(&mut stream, number, name).unwrap().unwrap();
        assert!(found == noise(found.len(), name) && !found.is_empty(), "{name}");
    }
    assert!(acknowledged.keys().all(|name| names.contains(name)));
}

/// The calls on files of the store while `work` was done, as strace tells them; the reason where it can not.
fn traced(node: &Node, work: impl FnOnce()) -> Result<Vec<String>, String> {
    let calls = "fsync,fdatasync,sync,syncfs,sync_file_range,msync,pwritev,pwritev2,pwrite64,writev";
    let trace = node.path("trace");
    let spawned = Command::new("strace")
        .args(["-f", "-y", "-e", &format!("trace={calls}"), "-o"])
        .arg(&trace)
        .args(["-p", &node.pid().as_raw_nonzero().to_string()])
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut strace) = spawned else { return Err("there is no strace".into()) };
    let mut said = String::new();
    let mut stderr = BufReader::new(strace.stderr.take().unwrap());
    while stderr.read_line(&mut said).unwrap() > 0 && !said.contains("attached") {}
    if !said.contains("attached") {
        strace.wait().unwrap();
        return Err(format!("strace may not attach: {said}"));
    }
    work();
    kill_process(Pid::from_child(&strace), Signal::INT).unwrap();
    strace.wait().unwrap();
    let calls = fs::read_to_string(&trace).unwrap();
    // a call that another thread's interrupts is told in two lines
    let of_store = calls.lines().filter(|line| line.contains('(') && line.contains("/store/"));
    Ok(of_store.map(str::to_owned).collect())
}

#[test]
fn a_batch_is_one_gathered_write_and_one_fdatasync_and_nothing_else_is_synced_on_the_way() {
    let name = "a_batch_is_one_gathered_write_and_one_fdatasync_and_nothing_else_is_synced_on_the_way";
    const PIECE_BYTES: u64 = 256 << 10;
    let mut node = Node::new("cam", "worker");
    node.start();
    // the first batch opens a segment, whose folder is synced too
    node.run_with(["put", "--stdin", "first"], b"first").expect(0);
    let short: Vec<usize> = (0..20).map(|index| 5_000 * index).collect();
    for (lengths, is_long) in [(short, false), (vec![8 << 20], true)] {
        let before = node.status();
        let calls = traced(&node, || {
            for length in lengths {
                let object = format!("object/{length}");
                node.run_with(["put", "--stdin", &object], &noise(length, &object)).expect(0);
            }
        });
        let calls = match calls {
            Ok(calls) => calls,
            Err(why) => return skip(name, &why),
        };
        let after = node.status();
        let count = |key: &str| {
            let number = |status: &serde_json::Value| status["store"][key].as_u64().unwrap();
            number(&after) - number(&before)
        };
        let (batches, bytes) = (count("batches"), count("written_bytes"));
        let (syncs, writes): (Vec<&String>, Vec<&String>) =
            calls.iter().partition(|line| line.contains("sync"));
        println!("{batches} batches, {bytes} bytes, {} syncs, {} writes", syncs.len(), writes.len());
        assert!(if is_long { bytes > 8 << 20 } else { batches >= 20 }, "{after}");
        assert_eq!(syncs.len() as u64, batches, "{syncs:#?}");
        let is_data = |line: &&String| line.contains("fdatasync(") && line.contains("/store/segment-");
        assert!(syncs.iter().all(is_data), "{syncs:#?}");
        // a long one goes in pieces, the first and the last of which may be short
        let pieces = if is_long { bytes / PIECE_BYTES + batches } else { 0 };
        let is_few = (batches..=batches + pieces).contains(&(writes.len() as u64));
        assert!(is_few, "{batches} batches of {bytes} bytes: {writes:#?}");
        assert!(writes.iter().all(|line| line.contains("/store/segment-")), "{writes:#?}");
        assert_eq!(count("syncs"), batches, "what status says");
    }
}
