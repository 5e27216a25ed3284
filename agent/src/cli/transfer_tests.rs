//! Put and get against an agent that is played by the test, over a real socket.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use clap::Parser;
use larder_core::binding::Meta;
use larder_core::id::BlockId;
use larder_core::name::Name;
use larder_core::request::{Failure, FailureKind, Listed, Request, Response};
use larder_hal::board::Machine;
use tokio::net::{UnixListener, UnixStream};

use super::exit::{CommandError, Exit};
use super::output::Output;
use super::{Cli, ask};
use crate::config::{Config, Environment};
use crate::socket::{self, Frame};

/// What the played agent has seen and how it is to behave.
#[derive(Default)]
struct Agent {
    stored: BTreeMap<Name, Bytes>,
    begun: usize,
    connections: usize,
    flushes: usize,
    /// Puts that may be stored before there is no room.
    room: Option<usize>,
    /// Called when data of a put comes, or a get.
    on_data: Option<Box<dyn FnMut() + Send>>,
    /// What it has, as it says.
    listed: Vec<Listed>,
    /// What a get is answered with.
    object: Vec<Frame<Response>>,
}

type Shared = Arc<Mutex<Agent>>;

/// Answers puts only when it is asked to flush, as a profile that waits long would.
async fn serve(mut stream: UnixStream, agent: Shared) {
    let mut open: BTreeMap<u32, (Name, BytesMut)> = BTreeMap::new();
    let mut done: Vec<(u32, Name, Bytes)> = Vec::new();
    while let Ok(Some((number, frame))) = socket::read::<Request>(&mut stream).await {
        let mut answers = Vec::new();
        match frame {
            Frame::Message(Request::Put { name, .. }) => {
                agent.lock().unwrap().begun += 1;
                open.insert(number, (name, BytesMut::new()));
            }
            Frame::Data(bytes) => {
                if let Some(on_data) = &mut agent.lock().unwrap().on_data {
                    on_data();
                }
                open.get_mut(&number).unwrap().1.extend_from_slice(&bytes);
            }
            Frame::End => {
                let (name, bytes) = open.remove(&number).unwrap();
                done.push((number, name, bytes.freeze()));
                assert!(done.len() <= 128, "no more are unanswered than the window holds");
            }
            Frame::Message(Request::Flush) => {
                let mut agent = agent.lock().unwrap();
                agent.flushes += 1;
                for (put, name, bytes) in done.drain(..) {
                    answers.push((put, Frame::Message(agent.store(name, bytes))));
                }
                answers.push((number, Frame::Message(Response::Flushed)));
            }
            Frame::Message(Request::List { .. }) => {
                let objects = agent.lock().unwrap().listed.clone();
                answers.push((number, Frame::Message(Response::Names { objects, next: None })));
            }
            Frame::Message(Request::Get { .. }) => {
                if let Some(on_data) = &mut agent.lock().unwrap().on_data {
                    on_data();
                }
                answers.extend(agent.lock().unwrap().object.drain(..).map(|frame| (number, frame)));
            }
            Frame::Message(other) => panic!("{other:?} is not asked here"),
        }
        for (to, answer) in answers {
            if socket::write_response(&mut stream, to, &answer).await.is_err() {
                return;
            }
        }
    }
}

impl Agent {
    fn store(&mut self, name: Name, bytes: Bytes) -> Response {
        if self.room.is_some_and(|room| self.stored.len() >= room) {
            return Response::Error(Failure::new(FailureKind::Full, "no room"));
        }
        let (cid, size) = (BlockId::of(&bytes), bytes.len() as u64);
        self.stored.insert(name.clone(), bytes);
        Response::Stored { name, cid, size, blocks: 1, unchanged: false }
    }
}

fn config(dir: &Path) -> Config {
    let socket = dir.join("socket");
    let variables = [("HOME", dir.to_str().unwrap()), ("LARDER_SOCKET", socket.to_str().unwrap())];
    let machine = Machine { compatible: vec![], arch: "x86_64", memory_bytes: None, page_bytes: None };
    Config::load(&Default::default(), &Environment::isolated(variables), &machine).unwrap()
}

/// Runs a command line against the agent.
fn command(dir: &Path, agent: &Shared, line: &[&str]) -> Result<Exit, CommandError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let config = config(dir);
        let _ = fs::remove_file(&config.socket);
        let listener = UnixListener::bind(&config.socket).unwrap();
        let accepting = agent.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                accepting.lock().unwrap().connections += 1;
                tokio::spawn(serve(stream, accepting.clone()));
            }
        });
        let cli = Cli::try_parse_from(["larder"].iter().chain(line)).unwrap();
        ask(&cli, &config, &mut Output::new(false, true)).await
    })
}

fn put(dir: &Path, agent: &Shared, path: &Path) -> Exit {
    command(dir, agent, &["put", path.to_str().unwrap()]).unwrap()
}

#[test]
fn many_small_files_go_through_one_connection_within_the_window() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("t");
    fs::create_dir(&tree).unwrap();
    for index in 0..1_000 {
        fs::write(tree.join(format!("{index:04}")), format!("content {}", index % 10)).unwrap();
    }
    fs::write(tree.join("empty"), "").unwrap();
    let agent = Shared::default();
    assert_eq!(put(dir.path(), &agent, &tree), Exit::OK);
    let agent = agent.lock().unwrap();
    assert_eq!((agent.stored.len(), agent.connections), (1_001, 1));
    assert_eq!(agent.stored[&Name::parse("t/0123").unwrap()], "content 3");
    assert!(agent.flushes <= 1_001 / 64 + 1, "{} flushes", agent.flushes);
}

#[test]
fn a_long_file_arrives_in_frames() {
    let dir = tempfile::tempdir().unwrap();
    let content: Vec<u8> = (0..3_000_000_u32).map(|index| (index % 253) as u8).collect();
    fs::write(dir.path().join("f"), &content).unwrap();
    let agent = Shared::default();
    assert_eq!(put(dir.path(), &agent, &dir.path().join("f")), Exit::OK);
    assert_eq!(agent.lock().unwrap().stored[&Name::parse("f").unwrap()], content);
}

#[test]
fn a_file_that_changes_once_while_it_is_sent_is_stored_as_it_is_then() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("t");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("a"), "before").unwrap();
    fs::write(tree.join("big"), vec![1; 2_000_000]).unwrap();
    fs::write(tree.join("c"), "after").unwrap();
    let agent = Shared::default();
    let (big, mut times) = (tree.join("big"), 0);
    // the first data is that of `a`, the second the beginning of `big`
    agent.lock().unwrap().on_data = Some(Box::new(move || {
        times += 1;
        if times == 2 {
            fs::write(&big, vec![2; 3_000_000]).unwrap();
        }
    }));
    assert_eq!(put(dir.path(), &agent, &tree), Exit::OK);
    let agent = agent.lock().unwrap();
    assert_eq!(agent.stored[&Name::parse("t/big").unwrap()], vec![2; 3_000_000]);
    assert_eq!((agent.stored.len(), agent.begun, agent.connections), (3, 4, 2));
}

#[test]
fn a_file_that_keeps_changing_is_reported_and_never_stored() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("t");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("big"), vec![1; 2_000_000]).unwrap();
    fs::write(tree.join("c"), "after").unwrap();
    let agent = Shared::default();
    let (big, mut bytes) = (tree.join("big"), 2_000_000);
    agent.lock().unwrap().on_data = Some(Box::new(move || {
        bytes += 1;
        fs::write(&big, vec![2; bytes]).unwrap();
    }));
    assert_eq!(put(dir.path(), &agent, &tree), Exit(8));
    let agent = agent.lock().unwrap();
    assert_eq!(agent.stored.keys().map(Name::as_str).collect::<Vec<_>>(), ["t/c"]);
    assert_eq!((agent.begun, agent.connections), (4, 4));
}

#[test]
fn a_full_store_stops_the_rest_and_says_so_by_its_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("t");
    fs::create_dir(&tree).unwrap();
    for index in 0..1_000 {
        fs::write(tree.join(index.to_string()), "x").unwrap();
    }
    let agent = Shared::default();
    agent.lock().unwrap().room = Some(10);
    assert_eq!(put(dir.path(), &agent, &tree), Exit(5));
    assert!(agent.lock().unwrap().begun < 300);
}

fn listed(size: u64) -> Listed {
    Listed {
        name: Name::parse("a/f").unwrap(),
        cid: BlockId::of(b""),
        meta: Meta { size, mtime_ms: 0, mode: 0o644 },
        origin: "cam".parse().unwrap(),
        conflict_of: None,
    }
}

fn object(size: u64) -> Frame<Response> {
    Frame::Message(Response::Object { object: listed(size) })
}

fn get(dir: &Path, frames: Vec<Frame<Response>>) -> (Result<Exit, CommandError>, PathBuf) {
    let agent = Shared::default();
    agent.lock().unwrap().object = frames;
    let out = dir.join("out");
    fs::create_dir(&out).unwrap();
    (command(dir, &agent, &["get", "a/f", "-o", out.to_str().unwrap()]), out)
}

#[test]
fn an_object_is_written_below_the_directory_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let data = |bytes: &'static str| Frame::Data(Bytes::from_static(bytes.as_bytes()));
    let (ended, out) = get(dir.path(), vec![object(6), data("abc"), data("def"), Frame::End]);
    assert_eq!(ended.unwrap(), Exit::OK);
    assert_eq!(fs::read(out.join("a/f")).unwrap(), b"abcdef");
}

#[test]
fn a_file_that_appears_while_its_bytes_come_is_left_alone_and_ends_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (out, agent) = (dir.path().join("out"), Shared::default());
    fs::create_dir_all(out.join("a")).unwrap();
    let path = out.join("a/f");
    {
        let mut agent = agent.lock().unwrap();
        agent.listed = vec![listed(3)];
        agent.object = vec![object(3), Frame::Data(Bytes::from_static(b"abc")), Frame::End];
        let path = path.clone();
        agent.on_data = Some(Box::new(move || fs::write(&path, "mine").unwrap()));
    }
    let ended = command(dir.path(), &agent, &["get", "a/", "-o", out.to_str().unwrap()]);
    assert_eq!(ended.unwrap(), Exit::USAGE);
    assert_eq!(fs::read(path).unwrap(), b"mine");
    assert_eq!(fs::read_dir(out.join("a")).unwrap().count(), 1);
}

#[test]
fn whatever_ends_a_get_early_leaves_no_file() {
    let data = || Frame::Data(Bytes::from_static(b"abc"));
    let damaged = || Frame::Message(Response::Error(Failure::new(FailureKind::Damaged, "block x")));
    for frames in [vec![object(6), data(), damaged()], vec![object(6), data(), Frame::End]] {
        let dir = tempfile::tempdir().unwrap();
        let (ended, out) = get(dir.path(), frames);
        assert_eq!(ended.unwrap_err().exit(), Exit(4));
        assert_eq!(fs::read_dir(out.join("a")).unwrap().count(), 0);
    }
}
