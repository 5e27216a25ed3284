//! The commands as people and programs use them: pages, JSON, exit codes, standard input and large objects.

#![expect(clippy::unwrap_used, reason = "a test that finds anything else has failed")]

use larder_tests::node::{Node, noise};
use larder_tests::terminal;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

fn running() -> Node {
    let mut node = Node::new("cam", "worker");
    node.start();
    node
}

fn many(node: &Node, count: usize) {
    fs::create_dir(node.path("many")).unwrap();
    for index in 0..count {
        fs::write(node.path(format!("many/{index:05}")), index.to_string()).unwrap();
    }
    node.run(["put", "many"]).expect(0);
}

#[test]
fn a_listing_of_many_pages_is_whole_in_order_and_in_json_line_by_line() {
    let node = running();
    many(&node, 1000);
    let names = node.names("");
    assert_eq!(names, (0..1000).map(|index| format!("many/{index:05}")).collect::<Vec<_>>());
    let pages = node.json(["ls", "many/"]);
    assert!(pages.len() >= 4, "{} pages", pages.len());
    let listed = pages.iter().flat_map(|page| page["objects"].as_array().unwrap());
    assert!(listed.map(|object| object["name"].as_str().unwrap()).eq(names.iter().map(String::as_str)));
    assert_eq!(node.names("many/009").len(), 100, "a prefix of a part");
    let long = node.run(["ls", "-l", "many/00042"]).expect(0).text();
    assert!(long.contains("0644") && long.contains("2 B") && long.contains(" cam "), "{long}");
}

#[test]
fn a_reader_that_has_seen_enough_ends_a_listing_in_silence() {
    let node = running();
    many(&node, 2000);
    let mut ls = node.command(["ls"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    let mut reader = BufReader::with_capacity(16, ls.stdout.take().unwrap());
    reader.read_line(&mut first).unwrap();
    drop(reader);
    assert_eq!(first, "many/00000\n");
    let ended = ls.wait_with_output().unwrap();
    assert_eq!((ended.status.code(), &ended.stderr[..]), (Some(0), &b""[..]));
    let full = node.command(["ls"]).stdout(File::create("/dev/full").unwrap()).output().unwrap();
    let stderr = String::from_utf8_lossy(&full.stderr);
    assert!(full.status.code() == Some(5) && stderr.contains("standard output: No space left"), "{stderr}");
}

#[test]
fn standard_input_is_stored_whole_with_and_without_an_agent() {
    let mut node = Node::new("cam", "worker");
    for (name, length) in [("alone/empty", 0), ("alone/large", 5_000_000)] {
        node.run_with(["put", "--stdin", name], &noise(length, name)).expect(0);
    }
    node.start();
    node.run_with(["put", "--stdin", "agent/large", "--prefix", "x"], &noise(5_000_000, "agent")).expect(0);
    assert_eq!(node.names(""), ["alone/empty", "alone/large", "x/agent/large"]);
    assert!(node.get("alone/large").unwrap() == noise(5_000_000, "alone/large"));
    assert_eq!(node.get("alone/empty").unwrap(), b"");
    assert!(node.get("x/agent/large").unwrap() == noise(5_000_000, "agent"));
}

#[test]
fn every_command_answers_in_json_and_every_failure_is_json_with_its_exit_code() {
    let node = running();
    fs::write(node.path("a"), b"hello").unwrap();
    let one = |arguments: &[&str]| {
        let answers = node.json(arguments);
        assert_eq!(answers.len(), 1, "{arguments:?}: {answers:?}");
        answers.into_iter().next().unwrap()
    };
    let stored = one(&["put", "a"]);
    assert_eq!(
        (&stored["answer"], &stored["size"], &stored["unchanged"]),
        (&"stored".into(), &5.into(), &false.into())
    );
    let cid = stored["cid"].as_str().unwrap();
    assert!(cid.starts_with("bafkr4i"), "{cid}: a CIDv1, raw, BLAKE3");
    assert_eq!(node.get(cid).unwrap(), b"hello");
    assert_eq!(one(&["get", "a", "-o", "b"])["answer"], "object");
    assert_eq!(one(&["ls"])["objects"][0]["cid"], cid);
    assert_eq!(one(&["status"])["answer"], "status");
    assert_eq!(one(&["verify"])["blocks"], 1);
    assert_eq!(one(&["index", "rebuild"])["names"], 1);
    let needed = &node.run(["--json", "rm", cid]).expect(2).json()[0];
    assert!(needed["message"].as_str().unwrap().contains(&format!("a needs {cid}; delete that name first")));
    assert_eq!(one(&["rm", "name:a"])["answer"], "removed");
    let erased = one(&["rm", cid]);
    assert_eq!(
        (&erased["answer"], &erased["cid"], &erased["blocks"]),
        (&"erased".into(), &cid.into(), &1.into())
    );
    for (code, kind, arguments) in [
        (2, "invalid", vec!["get"]),
        (2, "invalid", vec!["put", "a", "--node", "x"]),
        (2, "invalid", vec!["--profile", "fast", "status"]),
        (3, "not_found", vec!["get", "a", "-o", "c"]),
        (3, "not_found", vec!["rm", "a"]),
        (3, "not_found", vec!["rm", cid]),
        (3, "not_found", vec!["get", cid, "-o", "c"]),
        (3, "not_found", vec!["put", "nothing"]),
        (2, "invalid", vec!["--node", "other", "status"]),
        (7, "unreachable", vec!["--socket", "/nonexistent/sock", "fetch", "a"]),
    ] {
        let all = [vec!["--json"], arguments].concat();
        let failed = node.run(&all).expect(code);
        let answers = failed.json();
        assert_eq!((&answers[0]["answer"], &answers[0]["kind"]), (&"error".into(), &kind.into()), "{all:?}");
        assert!(failed.stderr.is_empty(), "{all:?}: {}", failed.stderr);
    }
}

#[test]
fn long_work_shows_how_far_it_is_on_a_terminal_and_only_there() {
    let node = running();
    fs::write(node.path("large"), noise(30_000_000, "large")).unwrap();
    let put = ["put", "large"].as_slice();
    let (get, verify) = (["get", "large", "-o", "copy", "--force"].as_slice(), ["verify"].as_slice());
    let rebuild = ["index", "rebuild"].as_slice();
    for (arguments, of_what) in [(put, "/s, "), (get, "/s, "), (verify, " blocks, "), (rebuild, "/s, ")] {
        let (ended, screen) = terminal::watch(node.command(arguments));
        assert!(ended.success(), "{arguments:?}: {screen}");
        let shows = [" of ", of_what, " left"].iter().all(|part| screen.contains(part));
        assert!(shows, "{arguments:?}: {screen:?}");
        for flag in ["--quiet", "--json"] {
            let (ended, screen) = terminal::watch(node.command([&[flag], arguments].concat()));
            assert!(ended.success() && !screen.contains(" left"), "{flag} {arguments:?}: {screen:?}");
        }
        let piped = node.run(arguments).expect(0);
        assert!(!piped.stderr.contains(" left") && !piped.text().contains(" left"), "{arguments:?}");
    }
    assert_eq!(fs::read(node.path("copy")).unwrap(), fs::read(node.path("large")).unwrap());
    let mut piped = node.command(["put", "--stdin", "piped"]);
    piped.stdin(File::open(node.path("large")).unwrap());
    let (ended, screen) = terminal::watch(piped);
    assert!(ended.success() && screen.contains("/s, ") && !screen.contains(" left"), "{screen:?}");
}

#[test]
fn what_is_deleted_is_gone_for_good_and_several_names_are_each_tried() {
    let mut node = running();
    many(&node, 10);
    let removed = node.run(["rm", "many/00001", "many/nothing", "many/00002"]).expect(3);
    assert!(removed.stderr.contains("many/nothing"), "{}", removed.stderr);
    assert_eq!(node.names("").len(), 8);
    node.kill();
    node.start();
    assert_eq!(node.names("").len(), 8);
    assert_eq!(node.run(["get", "many/00001", "-o", "-"]).expect(3).stdout, b"");
    node.run(["index", "rebuild"]).expect(0);
    assert_eq!(node.names("").len(), 8, "the log knows of the deletion too");
    node.run(["put", "many"]).expect(0);
    assert_eq!(node.names("").len(), 10);
}

#[test]
fn what_a_deleted_name_leaves_behind_is_had_by_its_cid_until_that_is_deleted_too() {
    for is_running in [false, true] {
        let mut node = Node::new("cam", "worker");
        let (large, small) = (noise(3_000_000, "large"), noise(100_000, "small"));
        let both = [&large[..1_500_000], &small[..]].concat();
        for (name, bytes) in [("large", &large), ("both", &both)] {
            node.run_with(["put", "--stdin", name], bytes).expect(0);
        }
        if is_running {
            node.start();
        }
        let cid = node.json(["ls", "large"])[0]["objects"][0]["cid"].as_str().unwrap().to_owned();
        let blocks = node.status()["store"]["blocks"].as_u64().unwrap();
        node.run(["rm", "large"]).expect(0);
        assert!(node.get(&cid).is_some(), "until then its CID finds it");
        let deleted = node.run(["rm", &cid]).expect(0).text();
        let left = node.status()["store"]["blocks"].as_u64().unwrap();
        let count = blocks - left;
        assert!((20..blocks - 20).contains(&count), "{count} of {blocks}");
        assert!(deleted.contains(&format!("deleted {count} blocks of {cid}")), "{deleted}");
        assert!(node.run(["rm", &cid]).expect(3).stderr.contains("is not here"));
        if is_running {
            node.kill();
            node.start();
        }
        node.run(["index", "rebuild"]).expect(0);
        assert_eq!(node.run(["get", &cid, "-o", "-"]).expect(3).stdout, b"", "the log knows of it");
        assert_eq!(node.status()["store"]["blocks"], left);
        assert!(node.get("both").unwrap() == both, "what another object needs stays");
        node.run(["verify"]).expect(0);
        node.run_with(["put", "--stdin", "large"], &large).expect(0);
        assert!(node.get("large").unwrap() == large);
    }
}

#[test]
fn the_index_is_made_again_from_the_log_while_the_agent_runs() {
    let node = running();
    many(&node, 300);
    fs::write(node.path("large"), noise(8_000_000, "large")).unwrap();
    node.run(["put", "large"]).expect(0);
    let rebuilt = node.run(["index", "rebuild"]).expect(0).text();
    assert!(rebuilt.contains("301 names"), "{rebuilt}");
    assert!(node.get("large").unwrap() == noise(8_000_000, "large"));
    assert_eq!(node.names("").len(), 301);
    assert!(node.run(["verify"]).expect(0).text().contains("all whole"));
}

#[test]
fn completions_are_made_for_each_shell_and_the_one_for_bash_parses() {
    let node = Node::new("cam", "worker");
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = node.run(["completions", shell]).expect(0).text();
        assert!(script.contains("larder") && script.contains("verify"), "{shell}");
        if shell == "bash" {
            fs::write(node.path("script"), &script).unwrap();
            assert!(Command::new("bash").arg("-n").arg(node.path("script")).status().unwrap().success());
        }
    }
}

#[test]
fn a_manual_page_is_made_for_each_command_and_says_what_its_help_says() {
    let node = Node::new("cam", "worker");
    let pages = node.path("pages");
    node.run(["manual", pages.to_str().unwrap()]).expect(2);
    fs::create_dir(&pages).unwrap();
    node.run(["manual", pages.to_str().unwrap()]).expect(0);
    for (page, says) in
        [("larder.1", "Exit codes"), ("larder-put.1", "like `cp"), ("larder-index-rebuild.1", "log")]
    {
        let text = fs::read_to_string(pages.join(page)).unwrap();
        assert!(text.contains(".TH") && text.contains(says), "{page}: {text}");
    }
    assert!(!pages.join("larder-manual.1").exists(), "it is made for packages, not for people");
}

#[test]
fn with_an_agent_commands_go_to_it_and_without_they_open_the_store_themselves() {
    let mut node = Node::new("cam", "worker");
    fs::write(node.path("a"), b"a").unwrap();
    node.run(["put", "a"]).expect(0);
    node.start();
    assert_eq!(node.get("a").unwrap(), b"a");
    assert!(node.status()["uptime_ms"].as_u64().is_some());
    let shown = node.run(["status"]).expect(0).text();
    assert!(shown.contains("\nlink        none\n"), "nothing is to be connected: {shown}");
    node.run(["put", "a", "--name", "b"]).expect(0);
    assert_eq!(node.stop(), 0);
    assert_eq!(node.names(""), ["a", "b"]);
    let fetch = node.run(["fetch", "a"]).expect(7);
    assert!(
        fetch.stderr.contains("no agent runs at") && fetch.stderr.contains("`larder run` starts one"),
        "{}",
        fetch.stderr
    );
}
