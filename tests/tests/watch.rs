//! Watched folders: which files are taken, when, and what becomes of odd ones.

#![expect(clippy::unwrap_used, reason = "a test that finds anything else has failed")]

use larder_tests::broker::{Config, Mosquitto};
use larder_tests::fleet::{befriend, connect};
use larder_tests::mount::Mount;
use larder_tests::node::{Node, SOON, larder_bin, noise, skip, wait_for};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::{Duration, Instant};

/// A node that watches its folder `in`, in which files may be made before it starts.
fn watching(more: &str) -> Node {
    let node = Node::new("cam", "worker");
    fs::create_dir(node.path("in")).unwrap();
    node.append(&format!("[[watch]]\npath = \"in\"\nprefix = \"in/\"\nsettle_s = 1\n{more}"));
    node
}

fn write(node: &Node, path: &str, bytes: &[u8]) {
    fs::create_dir_all(node.path(path).parent().unwrap()).unwrap();
    fs::write(node.path(path), bytes).unwrap();
}

#[track_caller]
fn wait_names(node: &Node, names: &[&str]) {
    let deadline = Instant::now() + SOON;
    let mut found = node.names("");
    while found != names {
        assert!(Instant::now() < deadline, "{found:?} instead of {names:?}");
        std::thread::sleep(Duration::from_millis(50));
        found = node.names("");
    }
}

#[test]
fn files_there_before_files_made_later_files_moved_in_and_new_folders_are_taken_and_kept() {
    let mut node = watching("");
    write(&node, "in/before", b"before");
    write(&node, "in/deep/er/before", b"before too");
    node.start();
    wait_names(&node, &["in/before", "in/deep/er/before"]);
    write(&node, "in/later", b"later");
    write(&node, "elsewhere/file", b"moved");
    fs::rename(node.path("elsewhere/file"), node.path("in/moved")).unwrap();
    write(&node, "in/new/folder/file", b"in a new folder");
    write(&node, "tree/x/y", b"moved with its folder");
    fs::rename(node.path("tree"), node.path("in/tree")).unwrap();
    let names =
        ["in/before", "in/deep/er/before", "in/later", "in/moved", "in/new/folder/file", "in/tree/x/y"];
    wait_names(&node, &names);
    write(&node, "in/new/folder/second", b"a folder stays watched");
    wait_for("a file in the new folder is taken", || node.get("in/new/folder/second"));
    for name in names {
        assert_eq!(node.get(name).unwrap(), fs::read(node.path(name)).unwrap(), "{name}");
    }
}

#[test]
fn a_folder_that_was_moved_away_and_made_anew_is_the_one_that_is_there_now() {
    let mut node = watching("");
    write(&node, "in/first", b"in the first folder");
    node.start();
    wait_names(&node, &["in/first"]);
    fs::rename(node.path("in"), node.path("away")).unwrap();
    write(&node, "in/anew", b"in the folder made anew");
    wait_names(&node, &["in/anew", "in/first"]);
    write(&node, "in/later", b"the new folder is watched");
    wait_names(&node, &["in/anew", "in/first", "in/later"]);
    write(&node, "in/first", b"a later version of what has gone");
    wait_for("it is taken", || node.get("in/first").filter(|bytes| bytes.starts_with(b"a later version")));
}

#[test]
fn what_is_mounted_over_a_folder_is_taken_and_what_lies_below_when_it_is_gone() {
    let mut node = watching("");
    write(&node, "in/first", b"below");
    node.start();
    wait_names(&node, &["in/first"]);
    let Some(mounted) = Mount::tmpfs(&node.path("in"), "1m") else {
        let name = "what_is_mounted_over_a_folder_is_taken_and_what_lies_below_when_it_is_gone";
        return skip(name, "mounting needs root");
    };
    write(&node, "in/mounted", b"on what was mounted");
    wait_names(&node, &["in/first", "in/mounted"]);
    drop(mounted);
    write(&node, "in/later", b"below again");
    wait_names(&node, &["in/first", "in/later", "in/mounted"]);
}

#[test]
fn a_new_version_is_taken_and_one_that_was_there_at_the_last_stop_is_not_taken_twice() {
    let mut node = watching("");
    write(&node, "in/a", b"one");
    write(&node, "in/b", b"same");
    node.start();
    wait_names(&node, &["in/a", "in/b"]);
    write(&node, "in/a", b"two, and longer");
    wait_for("the new version is taken", || node.get("in/a").filter(|bytes| bytes.starts_with(b"two")));
    assert_eq!(node.stop(), 0);
    write(&node, "in/a", b"three");
    node.start();
    wait_for("what was written meanwhile is taken", || node.get("in/a").filter(|bytes| bytes == b"three"));
    let status = node.status();
    assert_eq!(status["ingest"]["objects"], 1, "{}", status["ingest"]);
}

#[test]
fn a_name_that_was_deleted_does_not_come_back_with_its_kept_file_after_a_restart() {
    let mut node = watching("");
    write(&node, "in/a", b"unwanted");
    write(&node, "in/b", b"wanted");
    node.start();
    wait_names(&node, &["in/a", "in/b"]);
    node.run(["rm", "in/a"]).expect(0);
    node.restart();
    write(&node, "in/c", b"taken after the first scan has been looked up");
    wait_names(&node, &["in/b", "in/c"]);
    assert!(node.path("in/a").exists());
    write(&node, "in/a", b"wanted again");
    wait_names(&node, &["in/a", "in/b", "in/c"]);
}

#[test]
fn only_what_the_patterns_say_is_taken_and_not_from_below_where_that_is_not_wanted() {
    let mut node = watching("include = [\"*.jpg\", \"*.txt\"]\nexclude = [\"*draft*\"]\nrecursive = false\n");
    for name in ["in/a.jpg", "in/b.txt", "in/c.png", "in/draft.jpg", "in/below/d.jpg"] {
        write(&node, name, name.as_bytes());
    }
    node.start();
    wait_names(&node, &["in/a.jpg", "in/b.txt"]);
    for name in ["in/e.png", "in/my-draft.txt", "in/below/f.jpg", "in/z.jpg"] {
        write(&node, name, name.as_bytes());
    }
    wait_names(&node, &["in/a.jpg", "in/b.txt", "in/z.jpg"]);
}

#[test]
fn a_file_still_being_written_is_not_taken_and_then_taken_whole() {
    let mut node = Node::new("cam", "worker");
    fs::create_dir(node.path("in")).unwrap();
    node.append("[[watch]]\npath = \"in\"\nprefix = \"in/\"\nsettle_s = 3\n");
    node.start();
    let mut file = OpenOptions::new().create(true).append(true).open(node.path("in/grows")).unwrap();
    let began = Instant::now();
    let (mut last, mut longest_pause) = (began, Duration::ZERO);
    // longer than twice the settle time, never still for half of it
    while began.elapsed() < Duration::from_secs(7) {
        file.write_all(&noise(50_000, "piece")).unwrap();
        longest_pause = longest_pause.max(last.elapsed());
        last = Instant::now();
        let is_there = !node.names("").is_empty();
        if longest_pause < Duration::from_secs(2) && last.elapsed() < Duration::from_secs(1) {
            assert!(!is_there, "taken while it was written, the longest pause was {longest_pause:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(file);
    let whole = fs::read(node.path("in/grows")).unwrap();
    wait_for("the file is taken", || node.get("in/grows").filter(|bytes| *bytes == whole));
}

#[test]
fn files_that_vanish_links_pipes_and_names_of_no_object_disturb_nothing() {
    let mut node = watching("");
    write(&node, "secret/file", b"outside");
    symlink(".", node.path("in/loop")).unwrap();
    symlink("../secret", node.path("in/out")).unwrap();
    symlink("../secret/file", node.path("in/file")).unwrap();
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, node.path("in/pipe"), rustix::fs::FileType::Fifo, mode, 0).unwrap();
    write(&node, "in/new\nline", b"no name");
    write(&node, "in/good-1", b"good");
    fs::create_dir_all(node.path(format!("in{}", "/deep".repeat(65)))).unwrap();
    node.start();
    for index in 0..200 {
        write(&node, &format!("in/short-lived-{index:03}"), &noise(10_000, "x"));
        fs::remove_file(node.path(format!("in/short-lived-{index:03}"))).unwrap();
    }
    write(&node, "in/good-2", b"good");
    wait_names(&node, &["in/good-1", "in/good-2"]);
    let status = node.status();
    assert_eq!((&status["ingest"]["objects"], &status["power"]["dropped"]), (&2.into(), &0.into()));
    assert!(status["ingest"]["refused"].as_u64().unwrap() >= 1, "{}", status["ingest"]);
    assert!(
        status["ingest"]["last_problem"].as_str().unwrap().contains("control character"),
        "{}",
        status["ingest"]
    );
    assert!(
        node.log().contains("/in: 5 left out, "),
        "three links, a pipe and a folder too deep: {}",
        node.log()
    );
}

#[test]
fn a_folder_replaced_by_a_link_leads_to_no_file_outside_and_nothing_there_is_deleted() {
    let broker = Mosquitto::start(Config::default());
    let (mut master, mut node) = (Node::new("hub", "master"), watching("after = \"delete-after-ack\"\n"));
    befriend(&master, &node);
    connect(&master, broker.port());
    connect(&node, broker.port());
    write(&node, "in/a/first", b"taken");
    write(&node, "outside/x", b"not to be taken");
    master.start();
    node.start();
    wait_for("the folder is watched and works", || (!node.path("in/a/first").exists()).then_some(()));
    fs::rename(node.path("in/a"), node.path("aside")).unwrap();
    symlink("../outside", node.path("in/a")).unwrap();
    // the kernel still gives notice of this folder, by its old name
    write(&node, "aside/x", b"no longer below the folder");
    write(&node, "in/last", b"taken after all notices before it");
    wait_for("what comes later is taken", || (!node.path("in/last").exists()).then_some(()));
    assert_eq!(node.names(""), ["in/a/first", "in/last"]);
    assert_eq!(fs::read(node.path("outside/x")).unwrap(), b"not to be taken");
    assert_eq!(fs::read(node.path("aside/x")).unwrap(), b"no longer below the folder");
}

#[test]
fn a_watched_folder_that_is_not_there_is_said_and_the_rest_goes_on() {
    let mut node = watching("");
    node.append("[[watch]]\npath = \"missing\"\nprefix = \"missing/\"\nsettle_s = 0\n");
    write(&node, "in/file", b"file");
    node.start();
    wait_names(&node, &["in/file"]);
    assert!(node.log().contains("not watched but scanned every minute"), "{}", node.log());
    write(&node, "missing/late", b"late");
    node.restart();
    wait_names(&node, &["in/file", "missing/late"]);
}

#[test]
fn without_an_inotify_instance_the_agent_starts_and_takes_what_it_finds() {
    let name = "without_an_inotify_instance_the_agent_starts_and_takes_what_it_finds";
    if Command::new("strace").arg("-V").output().is_err() {
        return skip(name, "there is no strace");
    }
    let mut node = watching("");
    write(&node, "in/deep/before", b"before");
    let mut command = Command::new("strace");
    node.prepare(&mut command);
    // as a grandchild, so that the agent is ours to end
    command.args(["-D", "-f", "-qq", "-o", "trace", "-e", "trace=inotify_init1"]);
    command.args(["-e", "inject=inotify_init1:error=EMFILE"]).arg(larder_bin()).arg("run");
    if let Err(said) = node.launch(&mut command) {
        return skip(name, &format!("strace may not trace: {}", said.stderr));
    }
    wait_names(&node, &["in/deep/before"]);
    assert!(node.log().contains("the kernel gives no notices of files"), "{}", node.log());
    assert!(node.log().contains("not watched but scanned every minute"), "{}", node.log());
    assert_eq!(node.stop(), 0);
}

#[test]
fn twenty_thousand_files_are_all_taken_by_a_watched_folder() {
    let mut node = watching("");
    let content = |index: usize| noise(100, &index.to_string());
    for index in 0..10_000 {
        write(&node, &format!("in/{:02}/{index:05}", index % 100), &content(index));
    }
    node.start();
    for index in 10_000..20_000 {
        write(&node, &format!("in/{:02}/{index:05}", index % 100), &content(index));
    }
    let status = node.wait_status("all files are taken", |status| {
        (status["store"]["names"] == 20_000).then(|| status.clone())
    });
    assert_eq!(status["power"]["dropped"], 0);
    let names = node.names("");
    assert_eq!(names.len(), 20_000);
    for index in (0..20_000).step_by(997) {
        assert!(node.get(&format!("in/{:02}/{index:05}", index % 100)).unwrap() == content(index), "{index}");
    }
    assert!(node.run(["verify"]).expect(0).text().contains("all whole"));
}
