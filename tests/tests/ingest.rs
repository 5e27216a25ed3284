//! Files on their way in and out: what bad files, bad names and bad moments get.

#![expect(clippy::unwrap_used, reason = "a test that finds anything else has failed")]

use larder_tests::intake::{assert_names_refused, half_way, long, refused_names, smuggle, smuggled_names};
use larder_tests::node::{Node, Said, noise, wait_for, wait_read};
use larder_tests::wire;
use rustix::process::Signal;
use serde_json::json;
use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

fn worker() -> Node {
    Node::new("cam", "worker")
}

fn running() -> Node {
    let mut node = worker();
    node.start();
    node
}

fn watch(node: &Node, more: &str) {
    fs::create_dir(node.path("in")).unwrap();
    node.append(&format!("[[watch]]\npath = \"in\"\nprefix = \"in/\"\nsettle_s = 1\n{more}"));
}

/// Writes a file, with its folders.
fn write(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

#[test]
fn many_unchanged_files_put_by_several_commands_at_once_come_to_an_end() {
    let node = running();
    for index in 0..3_000 {
        write(&node.path(format!("empty/{index}")), b"");
    }
    node.run(["put", "empty", "--quiet"]).expect(0);
    let mut puts: Vec<Child> = (0..3).map(|_| node.spawn(["put", "empty", "--quiet"])).collect();
    for put in &mut puts {
        let status = wait_for("the put ends", || put.try_wait().unwrap());
        assert!(status.success(), "{status}");
    }
}

#[test]
fn a_file_that_may_not_be_read_is_named_and_the_others_are_stored() {
    let mut node = worker();
    let folder = node.path("data");
    write(&folder.join("a"), b"a");
    write(&folder.join("b"), b"b");
    write(&folder.join("c"), b"c");
    fs::set_permissions(folder.join("b"), fs::Permissions::from_mode(0o000)).unwrap();
    watch(&node, "");
    write(&node.path("in/one"), b"one");
    write(&node.path("in/two"), b"two");
    fs::set_permissions(node.path("in/one"), fs::Permissions::from_mode(0o000)).unwrap();
    let own = ["", "larder.toml", "node.key", "data", "data/a", "data/b", "data/c", "in", "in/one"];
    let put = node.run_as_nobody(&own, ["put", "data"]).expect(6);
    assert!(put.stderr.contains("data/b cannot be read: Permission denied"), "{}", put.stderr);
    assert!(put.text().contains("stored 2 objects"), "{}", put.text());
    let mut agent = node.command_as_nobody(&[], ["run"]);
    node.launch(&mut agent).unwrap();
    node.wait_status("the readable file is taken", |status| {
        let problem = status["ingest"]["last_problem"].as_str()?;
        let taken = node.names("").contains(&"in/two".to_owned());
        (taken && problem.contains("one")).then_some(())
    });
    assert_eq!(node.names(""), ["data/a", "data/c", "in/two"]);
    assert_eq!(node.stop(), 0);
}

#[test]
fn a_file_whose_reading_fails_is_named_and_nothing_of_it_is_stored() {
    let node = running();
    // a regular file whose first byte cannot be read, on every Linux
    let put = node.run(["put", "/proc/self/mem", "--name", "broken"]).expect(9);
    assert!(put.stderr.contains("/proc/self/mem cannot be read: Input/output error"), "{}", put.stderr);
    assert!(node.names("").is_empty());
    let missing = node.run(["put", "nothing-here"]).expect(3);
    assert!(missing.stderr.contains("nothing-here cannot be read: No such file"), "{}", missing.stderr);
}

#[test]
fn a_file_that_grows_while_it_is_read_is_read_again_and_stored_whole() {
    let node = running();
    let child = half_way(&node, "grows", 24 << 20);
    let more = noise(1 << 20, "more");
    OpenOptions::new().append(true).open(node.path("grows")).unwrap().write_all(&more).unwrap();
    node.signal(Signal::CONT);
    Said::at_end_of(child).expect(0);
    assert!(node.get("grows").unwrap() == fs::read(node.path("grows")).unwrap());
}

#[test]
fn a_file_that_shrinks_while_it_is_read_is_read_again_and_stored_whole() {
    let node = running();
    let child = half_way(&node, "shrinks", 24 << 20);
    OpenOptions::new().write(true).open(node.path("shrinks")).unwrap().set_len(3 << 20).unwrap();
    node.signal(Signal::CONT);
    Said::at_end_of(child).expect(0);
    assert!(node.get("shrinks").unwrap() == fs::read(node.path("shrinks")).unwrap());
}

#[test]
fn a_file_that_never_stops_growing_is_refused_and_what_was_there_before_stays() {
    let node = running();
    fs::write(node.path("journal"), b"before").unwrap();
    node.run(["put", "journal"]).expect(0);
    fs::remove_file(node.path("journal")).unwrap();
    let child = half_way(&node, "journal", 24 << 20);
    let is_over = AtomicBool::new(false);
    let put = thread::scope(|scope| {
        scope.spawn(|| {
            let mut file = OpenOptions::new().append(true).open(node.path("journal")).unwrap();
            while !is_over.load(Ordering::Relaxed) {
                file.write_all(b"another line\n").unwrap();
            }
        });
        node.signal(Signal::CONT);
        let put = Said::at_end_of(child);
        is_over.store(true, Ordering::Relaxed);
        put.expect(8)
    });
    assert!(put.stderr.contains("journal kept changing while it was read"), "{}", put.stderr);
    assert_eq!(node.get("journal").unwrap(), b"before");
}

#[test]
fn a_file_that_vanishes_while_it_is_read_leaves_what_was_there_before() {
    let node = running();
    fs::write(node.path("gone"), b"before").unwrap();
    node.run(["put", "gone"]).expect(0);
    let child = half_way(&node, "gone", 24 << 20);
    fs::remove_file(node.path("gone")).unwrap();
    node.signal(Signal::CONT);
    let put = Said::at_end_of(child).expect(3);
    assert!(put.stderr.contains("gone vanished while it was read"), "{}", put.stderr);
    assert_eq!(node.get("gone").unwrap(), b"before");
    assert_eq!(node.run(["verify"]).expect(0).code, 0);
}

#[test]
fn symbolic_links_are_reported_not_followed_and_loops_end() {
    let node = running();
    write(&node.path("tree/a/file"), b"file");
    symlink(".", node.path("tree/self")).unwrap();
    symlink("../..", node.path("tree/a/up")).unwrap();
    symlink("y", node.path("tree/x")).unwrap();
    symlink("x", node.path("tree/y")).unwrap();
    symlink("a/file", node.path("tree/to-file")).unwrap();
    let put = node.run(["put", "tree"]).expect(1);
    for link in ["tree/self", "tree/a/up", "tree/x", "tree/y", "tree/to-file"] {
        assert!(put.stderr.contains(&format!("{link} is skipped: it is a symbolic link")), "{}", put.stderr);
    }
    assert_eq!(node.names(""), ["tree/a/file"]);
    let looped = node.run(["put", "tree/x"]).expect(1);
    assert!(looped.stderr.contains("Too many levels of symbolic links"), "{}", looped.stderr);
    node.run(["put", "tree/to-file", "--name", "linked"]).expect(0);
    assert_eq!(node.get("linked").unwrap(), b"file", "a link named on the command line is followed");
}

#[test]
fn what_is_no_file_is_skipped_and_the_store_is_never_put_into_itself() {
    let node = running();
    fs::create_dir(node.path("odd")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, node.path("odd/pipe"), rustix::fs::FileType::Fifo, 0o600.into(), 0)
        .unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(node.path("odd/socket")).unwrap();
    write(&node.path("odd/file"), b"file");
    let put = node.run(["put", "odd"]).expect(1);
    assert!(put.stderr.contains("odd/pipe is skipped: it is a pipe"), "{}", put.stderr);
    assert!(put.stderr.contains("odd/socket is skipped: it is a socket"), "{}", put.stderr);
    let put = node.run(["put", "."]).expect(1);
    assert!(put.stderr.contains("store is skipped: it is the store itself"), "{}", put.stderr);
    assert!(node.names("").iter().all(|name| !name.starts_with("store")), "{:?}", node.names(""));
}

#[test]
fn names_of_every_refused_kind_are_refused_by_put_get_rm_and_stdin() {
    let node = running();
    fs::write(node.path("file"), b"file").unwrap();
    for (name, why) in refused_names() {
        // To `get` a name with `/` behind it is all below it.
        let got = if name == "a/" { "a//" } else { &name };
        for arguments in [
            vec!["put", "file", "--name", &name],
            vec!["put", "--stdin", &name],
            vec!["get", got],
            vec!["rm", &name],
            vec!["put", "file", "--prefix", &name],
        ] {
            let refused = node.run(&arguments).expect(2);
            // clap has its own words for nothing at all
            let is_said = refused.stderr.contains(why) || name.is_empty();
            assert!(is_said, "{arguments:?}: {}", refused.stderr);
            assert!(!refused.stderr.contains('\x1b'), "{arguments:?} writes a command to the terminal");
        }
    }
    let not_text = OsStr::from_bytes(b"a\xff");
    node.run([OsStr::new("put"), OsStr::new("file"), OsStr::new("--name"), not_text]).expect(2);
    node.run(["put", "file", "--name", &long(1024)]).expect(0);
    assert_eq!(node.names("").len(), 1);
    assert_eq!(node.get(&long(1024)).unwrap(), b"file");
}

#[test]
fn files_with_names_no_object_may_have_are_skipped_and_named() {
    let node = running();
    write(&node.path("odd/good"), b"good");
    for name in [&b"new\nline"[..], b"escape\x1b[2J", b"latin\xe9"] {
        fs::write(node.path("odd").join(OsStr::from_bytes(name)), b"bad").unwrap();
    }
    let deep = node.path("odd").join(long(1000));
    write(&deep, b"deep");
    let prefix = "x".repeat(30);
    let put = node.run(["put", "odd", "--prefix", &prefix]).expect(1);
    assert!(put.stderr.contains("control character '\\n'"), "{}", put.stderr);
    assert!(put.stderr.contains("is not UTF-8: rename the file"), "{}", put.stderr);
    assert!(put.stderr.contains("at most 1024 bytes"), "{}", put.stderr);
    assert!(!put.stderr.contains('\x1b'), "a name commands the terminal");
    assert_eq!(node.names(""), [format!("{prefix}/odd/good")]);
}

#[test]
fn names_of_every_refused_kind_are_refused_by_the_socket_too_nul_included() {
    let node = running();
    assert_names_refused(&node);
    assert!(node.names("").is_empty());
}

#[test]
fn refused_names_that_are_in_the_store_are_not_handed_out() {
    let mut node = worker();
    fs::write(node.path("file"), b"file").unwrap();
    node.run(["put", "file", "--name", "m/good"]).expect(0);
    smuggle(&node, "m/good", smuggled_names());
    node.start();
    assert_eq!(node.names(""), ["m/good"]);
    assert_eq!(node.run(["verify"]).expect(0).code, 0);
    fs::create_dir(node.path("out")).unwrap();
    node.run(["get", "m/good", "-o", "out"]).expect(0);
    let cid = node.json(["ls"])[0]["objects"][0]["cid"].as_str().unwrap().to_owned();
    node.run(["get", &cid, "-o", "out", "--force"]).expect(0);
    fs::create_dir(node.path("all")).unwrap();
    node.run(["get", "/", "-o", "all"]).expect(0);
    assert_eq!(fs::read_dir(node.path("all/m")).unwrap().count(), 1);
    assert_eq!(fs::read_dir(node.path("all")).unwrap().count(), 1);
    assert!(!node.path("up").exists() && !node.folder().parent().unwrap().join("up").exists());
    assert_eq!(fs::read_dir(node.path("out")).unwrap().count(), 1);
}

#[test]
fn pages_of_nothing_but_refused_names_hide_nothing_from_listing_or_cleaning() {
    let mut node = worker();
    node.set("storage", "segment", "\"1 MiB\"");
    node.set("storage", "limit", "\"100 MB\"");
    let content = noise(3_000_000, "good");
    node.run_with(["put", "--stdin", "m/good"], &content).expect(0);
    smuggle(&node, "m/good", (0..700).map(|index| format!("../{index:03}")));
    node.set("storage", "clean_period_s", "1");
    node.start();
    assert_eq!(node.names(""), ["m/good"]);
    node.run_with(["put", "--stdin", "junk"], &noise(3_000_000, "junk")).expect(0);
    node.run(["rm", "junk"]).expect(0);
    wait_for("a cleaning ends", || node.log().contains("cleaning gave").then_some(()));
    assert!(node.get("m/good").unwrap() == content);
    node.run(["verify"]).expect(0);
}

#[test]
fn get_never_leaves_the_directory_it_was_given() {
    let node = running();
    fs::write(node.path("file"), b"file").unwrap();
    for name in ["a/b/c", "d/e"] {
        node.run(["put", "file", "--name", name]).expect(0);
    }
    for folder in ["out/a", "outside"] {
        fs::create_dir_all(node.path(folder)).unwrap();
    }
    symlink(node.path("outside"), node.path("out/a/b")).unwrap();
    symlink("../outside/new", node.path("out/d")).unwrap();
    for name in ["a/b/c", "d/e"] {
        let refused = node.run(["get", name, "-o", "out", "--force"]).expect(6);
        assert!(refused.stderr.contains("nothing is written through it"), "{}", refused.stderr);
    }
    assert_eq!(fs::read_dir(node.path("outside")).unwrap().count(), 0);
    node.run(["put", "file", "--name", "plain"]).expect(0);
    symlink("../outside/target", node.path("out/plain")).unwrap();
    let exists = node.run(["get", "plain", "-o", "out"]).expect(2);
    assert!(exists.stderr.contains("--force replaces it"), "{}", exists.stderr);
    node.run(["get", "plain", "-o", "out", "--force"]).expect(0);
    assert!(fs::symlink_metadata(node.path("out/plain")).unwrap().is_file(), "the link itself is replaced");
    assert_eq!(fs::read_dir(node.path("outside")).unwrap().count(), 0);
}

#[test]
fn all_below_a_directory_of_names_is_written_and_what_is_in_the_way_costs_nothing_else() {
    let node = running();
    let names = ["a/1", "a/b/2", "a/b/3", "ab", "c"];
    for name in names {
        write(&node.path("data").join(name), name.as_bytes());
        node.run(["put", &format!("data/{name}"), "--name", name]).expect(0);
    }
    // A name that can not be a file beside the others, since `ab` is no directory.
    node.run(["put", "data/c", "--name", "ab/c"]).expect(0);
    let written = |folder: &str| -> Vec<&str> {
        let is_there =
            |name: &&str| fs::read(node.path(folder).join(name)).is_ok_and(|b| b == name.as_bytes());
        names.into_iter().filter(is_there).collect()
    };
    for folder in ["out", "all"] {
        fs::create_dir(node.path(folder)).unwrap();
    }

    let said = node.run(["get", "a/", "-o", "out"]).expect(0);
    assert!(said.text().contains("wrote 3 objects, 13 B"), "{}", said.text());
    assert_eq!(written("out"), names[..3]);
    fs::remove_file(node.path("out/a/b/2")).unwrap();
    fs::write(node.path("out/a/1"), "mine").unwrap();
    let again = node.run(["get", "a/", "-o", "out"]).expect(2);
    assert!(again.stderr.contains("out/a/1 exists; --force replaces it"), "{}", again.stderr);
    assert_eq!(written("out"), names[1..3], "what was missing is there, what was there is as it was");
    node.run(["get", "a/", "-o", "out", "--force"]).expect(0);
    assert_eq!(written("out"), names[..3]);

    let all = node.run(["--json", "get", "/", "-o", "all"]).expect(6);
    assert_eq!(all.text().lines().filter(|line| line.contains("\"answer\":\"object\"")).count(), 5);
    assert_eq!(written("all"), names, "{}", all.text());
    node.run(["get", "b/", "-o", "all"]).expect(3);
    node.run(["get", "a/", "-o", "nowhere"]).expect(3);
    let file = node.run(["get", "/", "-o", "data/c"]).expect(1);
    assert_eq!(file.stderr.lines().count(), 1, "{}", file.stderr);
}

#[test]
fn a_damaged_object_below_a_directory_is_named_and_all_others_are_written() {
    let node = running();
    let rotten = noise(5_000, "rotten");
    write(&node.path("many/150 rotten"), &rotten);
    // more than a page of names
    for index in 0..300 {
        write(&node.path(format!("many/{index:03}")), &noise(index + 1, "whole"));
    }
    node.run(["put", "many"]).expect(0);
    let segment = node.store().join("segment-00000000");
    let log = fs::read(&segment).unwrap();
    let at = log.windows(rotten.len()).position(|window| window == rotten).unwrap();
    let file = OpenOptions::new().write(true).open(&segment).unwrap();
    file.write_all_at(&[rotten[0] ^ 1], at as u64).unwrap();
    fs::create_dir(node.path("out")).unwrap();

    let said = node.run(["get", "many/", "-o", "out"]).expect(4);
    assert!(said.stderr.contains("is damaged in segment-"), "{}", said.stderr);
    assert!(said.text().contains("wrote 300 objects"), "{}", said.text());
    assert!(!node.path("out/many/150 rotten").exists());
    for index in 0..300 {
        let written = fs::read(node.path(format!("out/many/{index:03}"))).unwrap();
        assert!(written == noise(index + 1, "whole"), "{index}");
    }
}

#[test]
fn files_come_back_with_their_bytes_time_and_mode_and_empty_ones_empty() {
    let node = running();
    for (name, length) in
        [("empty", 0), ("one", 1), ("block", 120 << 10), ("over", (120 << 10) + 1), ("large", 9_000_001)]
    {
        write(&node.path("data").join(name), &noise(length, name));
    }
    fs::set_permissions(node.path("data/one"), fs::Permissions::from_mode(0o751)).unwrap();
    let put = node.run(["put", "data", "data/empty"]).expect(0);
    assert!(put.text().contains("stored 6 objects"), "{}", put.text());
    for name in ["empty", "one", "block", "over", "large"] {
        node.run(["get", &format!("data/{name}"), "-o", "out/"]).expect(3);
        fs::create_dir_all(node.path("out")).unwrap();
        node.run(["get", &format!("data/{name}"), "-o", "out"]).expect(0);
        let (before, after) = (node.path("data").join(name), node.path("out/data").join(name));
        assert!(fs::read(&before).unwrap() == fs::read(&after).unwrap(), "{name}");
        let (before, after) = (before.metadata().unwrap(), after.metadata().unwrap());
        assert_eq!(before.permissions().mode() & 0o777, after.permissions().mode() & 0o777, "{name}");
        let gap = before.modified().unwrap().duration_since(after.modified().unwrap()).unwrap();
        assert!(gap < Duration::from_millis(1), "{name}: {gap:?}");
        fs::remove_dir_all(node.path("out")).unwrap();
    }
    let again = node.run(["put", "data"]).expect(0);
    assert!(again.text().contains("5 of them unchanged"), "{}", again.text());
}

/// The names 300 small files get from an agent with these flags, and the level it says it has.
fn names_of_small_files(flags: &[&str]) -> (Vec<serde_json::Value>, serde_json::Value) {
    let mut node = worker();
    for number in 0..300 {
        write(&node.path(format!("data/{number}")), &noise(number * 13, &number.to_string()));
    }
    node.start_with(flags);
    node.run(["put", "data"]).expect(0);
    let status = node.status();
    assert!(status["ingest"]["hashed_together"].as_u64() > Some(0), "{}", status["ingest"]);
    let is_level = |setting: &&serde_json::Value| setting["key"] == "kernels";
    let level = status["settings"].as_array().unwrap().iter().find(is_level).unwrap().clone();
    let pages = node.json(["ls"]);
    let listed = pages.iter().flat_map(|page| page["objects"].as_array().unwrap());
    let names: Vec<_> = listed.map(|entry| json!([entry["name"], entry["cid"]])).collect();
    assert_eq!(names.len(), 300);
    (names, level)
}

#[test]
fn small_files_get_the_same_names_at_every_level_and_status_shows_which() {
    let (detected, level) = names_of_small_files(&[]);
    // the best of those that the board names
    assert!(level["from"].as_str().unwrap().starts_with("board "), "{level}");
    let (portable, level) = names_of_small_files(&["--kernels", "portable"]);
    assert_eq!(level, json!({ "key": "kernels", "value": "portable", "from": "flag --kernels" }));
    assert_eq!(detected, portable);
    assert!(detected.iter().all(|name| name[1].is_string()), "{detected:?}");
}

/// What of a long object is cut on the loop: its first MiB, but for the block that is begun there and, as its
/// source gives pieces of another length, the piece that would go beyond.
const ON_LOOP_MAX: u64 = 1 << 20;
const ON_LOOP_MIN: u64 = ON_LOOP_MAX - (256 << 10) - (120 << 10);

fn on_loop(node: &Node) -> u64 {
    let status = node.status();
    let of = |key: &str| status["ingest"][key].as_u64().unwrap();
    of("bytes") - of("hashed_beside")
}

#[test]
fn a_long_file_is_hashed_beside_the_loop_by_put_by_a_folder_and_without_an_agent() {
    let mut node = worker();
    let (alone, long) = (noise(5 << 20, "alone"), noise((40 << 20) + 7, "long"));
    fs::write(node.path("alone"), &alone).unwrap();
    node.run(["put", "alone"]).expect(0);
    watch(&node, "");
    node.start();
    assert!(node.get("alone").unwrap() == alone);
    fs::write(node.path("long"), &long).unwrap();
    node.run(["put", "long"]).expect(0);
    assert!(node.get("long").unwrap() == long);
    let by_put = on_loop(&node);
    assert!((ON_LOOP_MIN..=ON_LOOP_MAX).contains(&by_put), "{by_put} bytes on the loop");
    let shown = node.run(["status"]).expect(0);
    assert!(shown.text().contains("39.07 MiB of it hashed beside the loop"), "{}", shown.text());
    fs::write(node.path("in/watched"), &long).unwrap();
    node.wait_status("the file is taken", |_| {
        node.names("").contains(&"in/watched".to_owned()).then_some(())
    });
    let by_folder = on_loop(&node) - by_put;
    assert!((ON_LOOP_MIN..=ON_LOOP_MAX).contains(&by_folder), "{by_folder} bytes on the loop");
    assert!(node.get("in/watched").unwrap() == long);
    assert_eq!(node.status()["power"]["dropped"], 0);
}

/// Puts this much of an object and does not end it.
fn put_without_end(node: &Node, name: &str, bytes: &[u8]) -> std::os::unix::net::UnixStream {
    let mut stream = node.connect();
    let meta = json!({"size": bytes.len(), "mtime_ms": 0, "mode": 0o644});
    wire::ask(&mut stream, 1, &json!({"do": "put", "name": name, "meta": meta, "patient": false})).unwrap();
    for piece in bytes.chunks(256 << 10) {
        stream.write_all(&wire::frame(wire::DATA, 1, piece)).unwrap();
    }
    stream
}

#[test]
fn clients_that_go_or_are_killed_while_their_objects_are_hashed_leave_nothing_and_hold_nobody() {
    let node = running();
    let bytes = noise(8 << 20, "cut off");
    for round in 0..16 {
        // what was said last is still being cut, or waits to be
        drop(put_without_end(&node, "cut-off", &bytes[round << 10..]));
    }
    fs::write(node.path("killed"), noise(96 << 20, "killed")).unwrap();
    for round in 1..=8 {
        let mut child = node.spawn(["put", "killed"]);
        wait_read(&child, round << 20);
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(
        node.status()["ingest"]["hashed_beside"].as_u64() > Some(16 << 20),
        "{}",
        node.status()["ingest"]
    );
    fs::write(node.path("whole"), &bytes).unwrap();
    node.run(["put", "whole"]).expect(0);
    assert_eq!(node.names(""), ["whole"]);
    assert!(node.get("whole").unwrap() == bytes);
    node.run(["verify"]).expect(0);
}

#[test]
fn an_agent_killed_while_it_hashes_keeps_what_it_had_acknowledged_and_nothing_of_the_rest() {
    let mut node = running();
    let bytes = noise(12 << 20, "before");
    fs::write(node.path("before"), &bytes).unwrap();
    node.run(["put", "before"]).expect(0);
    for round in 1..=6 {
        let stream = put_without_end(&node, "cut-off", &noise(round << 20, "cut off"));
        node.kill();
        drop(stream);
        node.start();
        assert_eq!(node.names(""), ["before"]);
        assert!(node.get("before").unwrap() == bytes);
    }
    node.run(["verify"]).expect(0);
    fs::write(node.path("cut-off"), noise(9 << 20, "cut off")).unwrap();
    node.run(["put", "cut-off"]).expect(0);
    assert!(node.get("cut-off").unwrap() == noise(9 << 20, "cut off"));
}
