//! `larder demo`, run as a newcomer runs it: it ends well, says what it did, and leaves nothing behind.

use larder_tests::node::{larder_bin, noise, wait_for};
use larder_tests::terminal;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use tempfile::TempDir;

/// A demo whose temporary files and processes can be told from all others.
struct Demo {
    home: TempDir,
    child: Option<Child>,
    group: u32,
}

impl Drop for Demo {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("our own child can be killed");
            child.wait().expect("our own child can be waited for");
        }
    }
}

impl Demo {
    fn command(home: &TempDir, arguments: &[&str]) -> Command {
        let temporary = home.path().join("tmp");
        fs::create_dir(&temporary).expect("the directory is writable");
        let mut command = Command::new(larder_bin());
        command.arg("demo").args(arguments).current_dir(home.path());
        command.env("TMPDIR", temporary).env("HOME", home.path()).stdin(Stdio::null());
        command
    }

    fn start(arguments: &[&str]) -> Self {
        let home = tempfile::tempdir().expect("a temporary directory can be made");
        let child = Self::command(&home, arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .expect("larder can be started");
        let group = child.id();
        Self { home, child: Some(child), group }
    }

    fn run(arguments: &[&str]) -> (Self, Output) {
        let mut demo = Self::start(arguments);
        let output = demo.finish();
        (demo, output)
    }

    fn finish(&mut self) -> Output {
        let child = self.child.take().expect("the demo is finished once");
        child.wait_with_output().expect("our own child can be waited for")
    }

    fn temporary(&self) -> PathBuf {
        self.home.path().join("tmp")
    }

    fn assert_nothing_left(&self) {
        let left: Vec<PathBuf> = entries(&self.temporary());
        assert!(left.is_empty(), "left behind: {left:?}");
        assert_eq!(processes_of(self.group), Vec::<String>::new());
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("the directory is there");
    entries.map(|entry| entry.expect("the directory can be read").path()).collect()
}

/// Process ids of everything in a process group that still runs.
fn processes_of(group: u32) -> Vec<String> {
    let is_of_group = |stat: &str| {
        let behind_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let mut fields = behind_name.split_whitespace();
        fields.next() != Some("Z") && fields.nth(1) == Some(group.to_string().as_str())
    };
    let stats = entries(Path::new("/proc")).into_iter().map(|process| process.join("stat"));
    stats.filter_map(|stat| fs::read_to_string(stat).ok()).filter(|stat| is_of_group(stat)).collect()
}

fn summary(output: &Output) -> Value {
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{}: {stdout}{stderr}", output.status);
    serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout:?}"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn the_demo_on_its_own_files_verifies_three_copies_and_leaves_nothing() {
    let (demo, output) = Demo::run(&["--json"]);
    let summary = summary(&output);
    assert_eq!(summary["verified_copies"], 3);
    assert_eq!(summary["left_out"], 0);
    assert!(summary["files"].as_u64().is_some_and(|files| files > 100), "{summary}");
    assert!(summary["dedup_ratio"].as_f64().is_some_and(|ratio| ratio > 1.0), "{summary}");
    assert!(summary["megabytes_per_second"].as_f64().is_some_and(|speed| speed > 0.0), "{summary}");
    assert!(summary["link_connects"].as_u64().is_some_and(|connects| connects >= 2), "cut once: {summary}");
    for key in ["bytes", "seconds", "blocks_sent_by_worker", "bytes_sent_by_worker", "process_wake_ups"] {
        assert!(summary[key].as_f64().is_some_and(|value| value > 0.0), "{key}: {summary}");
    }
    let nodes = summary["nodes"].as_array().expect("a list of nodes");
    let names: Vec<&str> = nodes.iter().filter_map(|node| node["node"].as_str()).collect();
    assert_eq!(names, ["master", "worker", "leecher"]);
    for node in nodes {
        assert_eq!(node["objects"], summary["files"], "{node}");
        for key in ["blocks", "batches", "syncs", "bytes_to_disk"] {
            assert!(node[key].as_u64().is_some_and(|value| value > 0), "{key}: {node}");
        }
    }
    demo.assert_nothing_left();
}

/// Blocks that a receiver in the balanced profile has asked for and not stored, of 40 KiB as noise is cut.
const WINDOW_BYTES: u64 = 32 * 40 * 1024;

#[test]
fn the_demo_cuts_the_link_with_something_left_to_send_and_sends_nothing_twice() {
    let (_demo, output) = Demo::run(&["--json", "--profile", "balanced"]);
    let summary = summary(&output);
    let number = |key: &str| summary[key].as_u64().unwrap_or_else(|| panic!("{key}: {summary}"));
    let (at_cut, unique) = (number("bytes_arrived_at_cut"), number("bytes_stored_by_worker"));
    assert!(at_cut > 0 && at_cut < unique, "{summary}");
    assert!(unique < number("bytes"), "some is there twice: {summary}");
    let sent = number("bytes_sent_by_worker");
    assert!(sent >= unique - unique / 50 && sent <= unique + WINDOW_BYTES, "{summary}");
}

#[test]
fn the_demo_tells_a_reader_what_it_did() {
    let (_demo, output) = Demo::run(&["--quiet"]);
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}{}", text(&output.stderr));
    let number_before = |words: &str| {
        let (before, _) = said.split_once(words).unwrap_or_else(|| panic!("no {words:?} in {said}"));
        let number = before.split_whitespace().last().and_then(|number| number.parse::<f64>().ok());
        number.unwrap_or_else(|| panic!("no number before {words:?} in {said}"))
    };
    assert!(number_before(" bytes taken for each one stored") > 1.0, "{said}");
    for words in [" files, ", " MB/s", " MB in ", " blocks over ", " wake-ups, ", " ms of CPU"] {
        assert!(number_before(words) > 0.0, "{words}: {said}");
    }
    assert!(number_before(" connections") >= 2.0, "{said}");
    let row = |name: &str| -> Vec<String> {
        let line = said.lines().find(|line| line.starts_with(name));
        let line = line.unwrap_or_else(|| panic!("no row of {name} in {said}"));
        line.split_whitespace().map(str::to_owned).collect()
    };
    let head = said.lines().find(|line| line.starts_with("node")).unwrap_or_else(|| panic!("{said}"));
    for column in ["objects", "blocks", "batches", "syncs", "MB to disk", "timer wakes"] {
        assert!(head.contains(column), "{column}: {said}");
    }
    for role in ["master", "worker", "leecher"] {
        let row = row(role);
        let is_positive = |cell: &String| cell.parse::<f64>().is_ok_and(|number| number > 0.0);
        assert!(row.len() == 7 && row[1..6].iter().all(is_positive), "{row:?}");
    }
}

/// What a careless folder may hold; how many files of it can be taken, and how many entries can not.
fn make_nasty(folder: &Path) -> (u64, u64) {
    let write = |name: &Path, bytes: &[u8]| {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().expect("a file has a folder")).expect("the directory is writable");
        fs::write(path, bytes).expect("the directory is writable");
    };
    let deep = |levels: usize| PathBuf::from_iter(std::iter::repeat_n("d", levels)).join("file");
    let good = [
        PathBuf::from("empty"),
        PathBuf::from("also/empty"),
        PathBuf::from("größe/日本語 – 文書.txt"),
        PathBuf::from("emoji 🦀/e\u{301}"),
        PathBuf::from(" leading and trailing "),
        PathBuf::from("back\\slash"),
        PathBuf::from("-rf"),
        PathBuf::from("quote\"'$(x)`y`"),
        PathBuf::from("x".repeat(255)),
        deep(64),
    ];
    for (index, name) in good.iter().enumerate() {
        let bytes = if index < 2 { Vec::new() } else { noise(index * 50_000, &index.to_string()) };
        write(name, &bytes);
    }
    write(&deep(70), b"too deep");
    write(Path::new("new\nline"), b"a control character in its name");
    write(Path::new(std::ffi::OsStr::from_bytes(b"not \xff utf-8")), b"?");
    write(
        &PathBuf::from_iter([&"a".repeat(250), &"b".repeat(250), &"c".repeat(250)])
            .join("d".repeat(250))
            .join("e".repeat(250)),
        b"over 1,024 bytes",
    );
    symlink(".", folder.join("also/loop")).expect("links can be made");
    symlink("../also", folder.join("also/around")).expect("links can be made");
    symlink("empty", folder.join("link to a file")).expect("links can be made");
    symlink("nowhere", folder.join("dangling")).expect("links can be made");
    let fifo = folder.join("fifo");
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, kind, 0o644.into(), 0).expect("a fifo can be made");
    (good.len() as u64, 9)
}

#[test]
fn the_demo_on_a_terminal_shows_how_far_each_node_is() {
    let home = tempfile::tempdir().expect("a temporary directory can be made");
    fs::create_dir(home.path().join("own")).expect("the directory is writable");
    for index in 0..40 {
        let bytes = noise(100_000, &index.to_string());
        fs::write(home.path().join(format!("own/{index}")), bytes).expect("the directory is writable");
    }
    let (ended, screen) = terminal::watch(Demo::command(&home, &["own"]));
    assert!(ended.success(), "{screen}");
    // each node's own line with its bar, its count and what it does
    for node in ["worker", "master", "leecher"] {
        let line = |line: &str| line.contains(node) && line.contains("/40 objects");
        assert!(screen.split(['\r', '\n']).any(line), "no line of the {node}: {screen:?}");
    }
    for part in ["link up", "blocks", "MB/s"] {
        assert!(screen.contains(part), "{part:?} is missing: {screen:?}");
    }
}

#[test]
fn the_demo_takes_what_it_can_of_a_nasty_folder_and_counts_the_rest() {
    let folder = tempfile::tempdir().expect("a temporary directory can be made");
    let (good, bad) = make_nasty(folder.path());
    let before = listing(folder.path());
    let (demo, output) = Demo::run(&[folder.path().to_str().expect("a plain name"), "--json"]);
    let summary = summary(&output);
    assert_eq!(summary["files"], good, "{}", text(&output.stderr));
    assert_eq!(summary["left_out"], bad, "{}", text(&output.stderr));
    assert_eq!(summary["verified_copies"], 3);
    assert_eq!(listing(folder.path()), before, "the folder is only read");
    demo.assert_nothing_left();
}

/// Everything below a folder, links not followed.
fn listing(folder: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for path in entries(&folder) {
            let metadata = path.symlink_metadata().expect("what is listed is there");
            if metadata.is_dir() {
                folders.push(path.clone());
            }
            found.push((path, if metadata.is_file() { metadata.len() } else { 0 }));
        }
    }
    found.sort();
    found
}

#[test]
fn what_the_demo_keeps_is_three_nodes_that_answer_commands() {
    let kept = tempfile::tempdir().expect("a temporary directory can be made");
    let keep = kept.path().join("kept");
    let files = kept.path().join("files");
    fs::create_dir(&files).expect("the directory is writable");
    let large = noise(700_000, "large");
    fs::write(files.join("large"), &large).expect("the directory is writable");
    fs::write(files.join("empty"), b"").expect("the directory is writable");
    let arguments = [&*files, Path::new("--keep"), &*keep, Path::new("--json")];
    let (demo, output) = Demo::run(&arguments.map(|path| path.to_str().expect("plain names")));
    summary(&output);
    demo.assert_nothing_left();
    let keys = ["master", "worker", "leecher"].map(|role| fs::read(keep.join(role).join("node.key")));
    let keys: BTreeSet<Vec<u8>> = keys.into_iter().map(|key| key.expect("a node has a key")).collect();
    assert_eq!(keys.len(), 3, "each has a key of its own");
    for role in ["master", "worker", "leecher"] {
        let config = keep.join(role).join("larder.toml");
        let larder = |arguments: &[&str]| {
            let mut command = Command::new(larder_bin());
            command.arg("--config").arg(&config).args(arguments).output().expect("larder can be started")
        };
        let listed = larder(&["ls"]);
        assert!(listed.status.success(), "{role}: {}", text(&listed.stderr));
        assert_eq!(text(&listed.stdout), "empty\nlarge\n", "{role}");
        let got = larder(&["get", "large", "-o", "-"]);
        assert!(got.status.success() && got.stdout == large, "{role}: {}", text(&got.stderr));
        let verified = larder(&["verify", "--json"]);
        assert!(verified.status.success(), "{role}: {}", text(&verified.stdout));
    }
    let again = Command::new(larder_bin()).args(["demo", "--keep"]).arg(&keep).output().expect("it starts");
    assert_eq!(again.status.code(), Some(2), "{}", text(&again.stderr));
    assert!(text(&again.stderr).contains("is not empty"), "{}", text(&again.stderr));
}

#[test]
fn a_demo_without_files_says_so_and_ends_with_not_found() {
    let (demo, output) = Demo::run(&["/nonexistent/folder"]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("/nonexistent/folder"), "{}", text(&output.stderr));
    demo.assert_nothing_left();
    let (demo, output) = Demo::run(&["/nonexistent/folder", "--json"]);
    let answer: Value = serde_json::from_slice(&output.stdout).expect("the failure is JSON too");
    assert_eq!(answer["kind"], "not_found", "{answer}");
    demo.assert_nothing_left();
    let empty = tempfile::tempdir().expect("a temporary directory can be made");
    let (demo, output) = Demo::run(&[empty.path().to_str().expect("a plain name")]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("no regular file"), "{}", text(&output.stderr));
    demo.assert_nothing_left();
}

#[test]
fn an_interrupted_demo_leaves_nothing() {
    let mut demo = Demo::start(&["--json"]);
    let temporary = demo.temporary();
    wait_for("the worker's first segment", || {
        let homes = entries(&temporary);
        homes.iter().any(|home| home.join("worker/store/segment-00000000").exists()).then_some(())
    });
    let pid = i32::try_from(demo.group).ok().and_then(Pid::from_raw).expect("a process id is positive");
    kill_process(pid, Signal::INT).expect("our own child takes a signal");
    let output = demo.finish();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let said = text(&output.stdout);
    let failure: Value = serde_json::from_str(said.lines().last().expect("it says why")).expect("in JSON");
    assert!(failure["message"].as_str().expect("a text").contains("interrupted"), "{failure}");
    assert_eq!((&failure["answer"], failure.get("kind")), (&"error".into(), None), "no kind of failure fits");
    demo.assert_nothing_left();
}
