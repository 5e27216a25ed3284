//! Bad names, and files at bad moments, for whatever takes them in.

use crate::node::{Node, noise, wait_read};
use crate::wire;
use rustix::process::Signal;
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::process::Child;

/// A put of a large file that stands still in its middle: the agent is stopped and takes no more.
pub fn half_way(node: &Node, file: &str, length: usize) -> Child {
    fs::write(node.path(file), noise(length, file)).expect("the folder is writable");
    node.signal(Signal::STOP);
    let child = node.spawn(["put", file]);
    wait_read(&child, 256 << 10);
    child
}

/// A name of so many bytes, no part of it too long.
pub fn long(bytes: usize) -> String {
    let part = "p".repeat(200);
    let mut name = vec![part; bytes / 201].join("/");
    name.push('/');
    name.push_str(&"q".repeat(bytes - name.len()));
    name
}

/// A name of every refused kind that an argument can be, and what is said of it.
pub fn refused_names() -> Vec<(String, &'static str)> {
    vec![
        ("../up".into(), "could leave the directory"),
        ("a/../b".into(), "could leave the directory"),
        ("..".into(), "could leave the directory"),
        ("a/./b".into(), "could leave the directory"),
        ("/etc/passwd".into(), "is absolute"),
        ("a//b".into(), "empty part"),
        ("a/".into(), "ends with `/`"),
        ("a\nb".into(), "control character"),
        ("a\x1b[2Jb".into(), "control character"),
        ("a\u{85}b".into(), "control character"),
        (String::new(), "empty"),
        (long(1025), "at most 1024 bytes"),
    ]
}

/// Checks that a running node refuses a put under a name of every refused kind, NUL included, and says why.
#[track_caller]
pub fn assert_names_refused(node: &Node) {
    let mut stream = node.connect();
    let mut names = refused_names();
    names.push(("a\0b".into(), "control character"));
    for (number, (name, _)) in (1..).zip(&names) {
        wire::put(&mut stream, number, name, b"x").expect("the agent listens");
    }
    wire::ask(&mut stream, 1000, &json!({"do": "status"})).expect("the agent listens");
    let mut answers = BTreeMap::new();
    loop {
        let (number, answer) = wire::answer(&mut stream).expect("the agent answers");
        if number == 1000 {
            break;
        }
        answers.entry(number).or_insert(answer);
    }
    for (number, (_, why)) in (1..).zip(names) {
        let refused = &answers[&number];
        assert_eq!((&refused["answer"], &refused["kind"]), (&json!("error"), &json!("invalid")), "{why}");
        assert!(refused["message"].as_str().is_some_and(|said| said.contains(why)), "{refused}");
    }
}

/// Names for [`smuggle`] that lead elsewhere, or that no file can have.
pub fn smuggled_names() -> Vec<String> {
    let names = ["../../up", "/tmp/absolute", "m/../../up", "m/new\nline", "m/nul\0x", "m//x", "m/"];
    names.map(str::to_owned).into_iter().chain([long(1025)]).collect()
}

/// Binds the object of `good` under names that no command lets in, as a damaged or hostile store would have it.
///
/// # Panics
/// When the store does not open, as while the agent runs.
pub fn smuggle(node: &Node, good: &str, names: impl IntoIterator<Item = String>) {
    let disk = larder_store::OsDisk::new(node.store()).expect("the store is there");
    let (mut store, _) = larder_store::Store::open(disk, larder_store::Options::default()).expect("it opens");
    let value = store.binding(good).expect("the index is whole").expect("the name is there").value;
    let bind = |name| larder_store::Op::Bind { name, value: value.clone() };
    store.commit(names.into_iter().map(bind).collect()).expect("there is room");
    store.close().expect("the store is writable");
}
