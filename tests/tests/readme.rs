//! README.md to the letter: its blocks are taken out of it and carried out here, in temporary folders and on
//! loopback, so that what it says stays true.

use larder_tests::broker::{Config, Mosquitto, free_port};
use larder_tests::fleet::settled;
use larder_tests::node::{Node, Said, larder_bin, noise, wait_for};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

const README: &str = include_str!("../../README.md");

/// The indented block of README that holds this.
#[track_caller]
fn block(holding: &str) -> String {
    let mut blocks = vec![String::new()];
    for line in README.lines() {
        match (line.strip_prefix("    "), blocks.last_mut()) {
            (Some(line), Some(block)) => *block += &format!("{line}\n"),
            _ => blocks.push(String::new()),
        }
    }
    let found = blocks.into_iter().find(|block| block.contains(holding));
    found.unwrap_or_else(|| panic!("README.md has no block with {holding:?}"))
}

/// The text with something of README replaced by what stands for it here.
#[track_caller]
fn replaced(text: &str, theirs: &str, ours: &str) -> String {
    assert!(text.contains(theirs), "README.md no longer says {theirs:?} in {text:?}");
    text.replace(theirs, ours)
}

/// What comes before a comment, in words.
fn words(line: &str) -> Vec<&str> {
    line.split('#').next().unwrap_or_default().split_whitespace().collect()
}

#[track_caller]
fn shell(folder: &Path, script: &str) {
    let done = Command::new("bash").args(["-euo", "pipefail", "-c", script]).current_dir(folder).output();
    let done = done.expect("bash can be started");
    assert!(done.status.success(), "{script}{}", String::from_utf8_lossy(&done.stderr));
}

/// Step 1: a node by the `init` that README has for its master, under its own name and role.
fn initialised(name: &str, role: &str) -> Node {
    let block = block("larder init --name attic");
    let mut line = words(block.lines().next().expect("a block has a line"));
    assert_eq!(line.remove(0), "larder");
    let own = |word: &str| match word {
        "attic" => name.to_owned(),
        "master" => role.to_owned(),
        word => word.to_owned(),
    };
    let line: Vec<String> = line.into_iter().map(own).collect();
    Node::by(name, &line.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Step 2.
fn certificates() -> String {
    replaced(&block("openssl req"), "broker=attic.example.org ", "broker=localhost ")
}

/// Steps 2 and 3: certificates, and a Mosquitto that has them and the packaged files.
fn broker(folder: &Path, port: u16) -> Mosquitto {
    shell(folder, &certificates());
    let packaged = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/mosquitto");
    let (certificates, etc) = (folder.join("certificates"), folder.join("etc-mosquitto"));
    for file in ["larder.acl", "mosquitto.conf"] {
        fs::copy(packaged.join(file), certificates.join(file)).expect("the folder is writable");
    }
    fs::create_dir_all(etc.join("conf.d")).expect("the folder is writable");
    let install = block("apt install mosquitto");
    let of_the_machine = |line: &&str| line.starts_with("apt ") || line.starts_with("systemctl ");
    let lines: Vec<&str> = install.lines().filter(|line| !of_the_machine(line)).collect();
    assert_eq!(lines.len(), 3, "{install}");
    let script = replaced(&lines.join("\n"), "-o mosquitto ", "");
    shell(&certificates, &replaced(&script, "/etc/mosquitto", etc.to_str().expect("a plain name")));
    Mosquitto::start(Config { port: Some(port), installed: Some(&etc), ..Config::default() })
}

/// Step 4, and the files that step 2 brings to each node.
fn link(node: &Node, certificates: &Path, port: u16) {
    let install =
        replaced(&block("install -m 0644 ca.pem /etc/larder"), "cam.", &format!("{}.", node.name()));
    let folder = node.folder().to_str().expect("a plain name");
    shell(certificates, &replaced(&install, "/etc/larder", folder));
    for line in block("[mqtt]").lines().skip(1) {
        let (key, value) = line.split_once(" = ").expect("a key and its value");
        node.set("mqtt", key, value);
    }
    node.set("mqtt", "host", "\"localhost\"");
    node.set("mqtt", "port", &port.to_string());
}

#[test]
fn three_machines_do_as_the_readme_says() {
    let home = tempfile::tempdir().expect("a folder can be made");
    let port = free_port();
    let broker = broker(home.path(), port);
    let mut attic = initialised("attic", "master");
    let (mut cam, mut van) = (initialised("cam", "worker"), initialised("van", "leecher"));
    for node in [&cam, &van] {
        node.trust(&attic);
        attic.trust(node);
    }
    let subscribe =
        README.split_once("On `van` also `subscribe = ").and_then(|(_, rest)| rest.split_once('`'));
    van.set("node", "subscribe", subscribe.expect("README.md says what van subscribes to").0);
    let photos = home.path().join("srv/photos");
    fs::create_dir_all(photos.join("old")).expect("the folder is writable");
    for (name, length) in [("1.jpg", 1_500_000), ("2.jpg", 90_000), ("old/3.jpg", 300_000)] {
        fs::write(photos.join(name), noise(length, name)).expect("the folder is writable");
    }
    fs::create_dir(home.path().join("tmp")).expect("the folder is writable");
    for node in [&mut attic, &mut cam, &mut van] {
        link(node, &home.path().join("certificates"), port);
        node.start();
    }
    settled(&[&cam, &van, &attic]);
    let here = |word: &str| match word {
        "/srv/photos" => photos.display().to_string(),
        "/tmp/" => format!("{}/tmp/", home.path().display()),
        word => word.to_owned(),
    };
    let mut said: Vec<Said> = Vec::new();
    for line in block("cam# larder put").lines() {
        let (prompt, command) = line.split_once("# larder ").expect("a prompt and a command");
        let node = [&attic, &cam, &van].into_iter().find(|node| node.name() == prompt);
        let node = node.unwrap_or_else(|| panic!("there is no {prompt}"));
        let arguments: Vec<String> = words(command).into_iter().map(here).collect();
        said.push(node.run(&arguments).expect(0));
        settled(&[&cam, &van, &attic]);
    }
    let [_, listing, status, _] = said.as_slice() else { panic!("four commands, not {}", said.len()) };
    for name in ["photos/1.jpg", "photos/2.jpg", "photos/old/3.jpg"] {
        assert!(listing.text().lines().any(|line| line.ends_with(name)), "{name}: {}", listing.text());
        assert!(van.names("").iter().any(|held| held == name), "van has fetched {name} without being asked");
    }
    assert!(status.text().contains("cam") && status.text().contains("worker"), "{}", status.text());
    let got = fs::read(home.path().join("tmp/photos/1.jpg")).expect("it was got");
    assert!(got == noise(1_500_000, "1.jpg"));
    assert!(!broker.log().contains("Denied"), "the rules allow all a node does: {}", broker.log());
}

#[test]
fn a_master_has_the_broker_as_the_readme_says() {
    let home = tempfile::tempdir().expect("a folder can be made");
    shell(home.path(), &(certificates() + &block("issue attic \"serverAuth,clientAuth")));
    let (mut attic, mut cam) = (initialised("attic", "master"), initialised("cam", "worker"));
    cam.trust(&attic);
    attic.trust(&cam);
    let port = free_port();
    let listen = README.split_once("`listen = ").and_then(|(_, rest)| rest.split_once('`'));
    let listen = listen.expect("README.md says where it listens").0;
    attic.set("mqtt", "embedded_broker", "true");
    attic.set("mqtt", "listen", &replaced(listen, "8883", &port.to_string()));
    for node in [&mut attic, &mut cam] {
        link(node, &home.path().join("certificates"), port);
        node.start();
    }
    let photo = home.path().join("1.jpg");
    fs::write(&photo, noise(300_000, "1.jpg")).expect("the folder is writable");
    cam.run(["put", photo.to_str().expect("a plain name")]).expect(0);
    wait_for("the master has it", || attic.get("1.jpg").filter(|got| *got == noise(300_000, "1.jpg")));
}

#[test]
fn a_watched_folder_is_taken_as_the_readme_says() {
    let mut node = Node::new("cam", "worker");
    let camera = node.path("camera");
    fs::create_dir(&camera).expect("the folder is writable");
    let block = replaced(&block("[[watch]]"), "/srv/camera", camera.to_str().expect("a plain name"));
    node.append(&block);
    fs::write(camera.join("1.jpg"), b"picture").expect("the folder is writable");
    fs::write(camera.join("1.txt"), b"text").expect("the folder is writable");
    node.start();
    wait_for("the picture is taken", || node.get("camera/1.jpg"));
    assert_eq!(node.names(""), ["camera/1.jpg"]);
    assert!(camera.join("1.jpg").exists(), "no master has it yet");
}

#[test]
fn the_readme_lists_every_command_and_no_other() {
    let table = README.lines().filter_map(|line| line.strip_prefix("| `"));
    let listed: BTreeSet<&str> = table.filter_map(|line| line.split([' ', '`']).next()).collect();
    let help = Command::new(larder_bin()).arg("--help").output().expect("larder can be started");
    let help = String::from_utf8(help.stdout).expect("help is text");
    let commands = help.split_once("Commands:\n").expect("help lists commands").1;
    let commands = commands.lines().take_while(|line| !line.is_empty());
    let commands = commands.filter_map(|line| line.strip_prefix("  ")).filter(|line| !line.starts_with(' '));
    let there: BTreeSet<&str> =
        commands.filter_map(|line| line.split(' ').next()).filter(|command| *command != "help").collect();
    assert_eq!(listed, there);
}
