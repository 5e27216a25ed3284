//! The loop, the core and the store together, through a connection inside the process.

use super::{InProcess, in_process};
use crate::config::{Config, Environment, Overrides};
use crate::socket::{Frame, read, write_request};
use larder_core::binding::Meta;
use larder_core::name::Name;
use larder_core::request::{Request, Response, Target};
use std::path::Path;
use tokio::io::DuplexStream;

async fn open(store: &Path) -> (DuplexStream, InProcess) {
    let machine = larder_hal::board::detect(Path::new("/"));
    let overrides =
        Overrides { store: Some(store.to_owned()), name: Some("test".into()), ..Overrides::default() };
    let config = Config::load(&overrides, &Environment::isolated([]), &machine).unwrap();
    in_process(&config).await.unwrap()
}

async fn ask(stream: &mut DuplexStream, number: u32, request: Request) -> Response {
    write_request(stream, number, &Frame::Message(request)).await.unwrap();
    answer(stream, number).await
}

async fn answer(stream: &mut DuplexStream, number: u32) -> Response {
    loop {
        match read::<Response>(stream).await.unwrap().expect("the connection stays open") {
            (of, Frame::Message(Response::Progress { .. })) if of == number => {}
            (of, Frame::Message(response)) if of == number => return response,
            (of, frame) => panic!("unexpected frame for {of}: {frame:?}"),
        }
    }
}

async fn put(stream: &mut DuplexStream, number: u32, name: &str, bytes: &[u8]) -> Response {
    let meta = Meta { size: 0, mtime_ms: 1, mode: 0o644 };
    let request = Request::Put { name: Name::parse(name).unwrap(), meta, patient: false };
    write_request(stream, number, &Frame::Message(request)).await.unwrap();
    for piece in bytes.chunks(200_000) {
        write_request(stream, number, &Frame::Data(piece.to_vec().into())).await.unwrap();
    }
    write_request(stream, number, &Frame::End).await.unwrap();
    answer(stream, number).await
}

async fn get(stream: &mut DuplexStream, number: u32, name: &str) -> Result<Vec<u8>, Response> {
    let target = Target::Name(Name::parse(name).unwrap());
    let first = ask(stream, number, Request::Get { target, offset: 0, length: None }).await;
    if !matches!(first, Response::Object { .. }) {
        return Err(first);
    }
    let mut bytes = Vec::new();
    loop {
        match read::<Response>(stream).await.unwrap().expect("the connection stays open") {
            (_, Frame::Data(piece)) => bytes.extend_from_slice(&piece),
            (_, Frame::End) => return Ok(bytes),
            (_, Frame::Message(response)) => return Err(response),
        }
    }
}

fn noise(length: usize, seed: &str) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(seed.as_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

#[tokio::test]
async fn what_is_put_is_there_after_a_restart_and_gone_after_rm() {
    let folder = tempfile::tempdir().unwrap();
    let large = noise(5_000_000, "large");
    let (mut stream, agent) = open(folder.path()).await;
    for (number, (name, bytes)) in
        [("a/empty", &[][..]), ("a/small", b"hello"), ("b/large", &large)].into_iter().enumerate()
    {
        let answer = put(&mut stream, number as u32, name, bytes).await;
        assert!(
            matches!(&answer, Response::Stored { size, .. } if *size == bytes.len() as u64),
            "{answer:?}"
        );
    }
    let status = ask(&mut stream, 9, Request::Status).await;
    let Response::Status(status) = status else { panic!("{status:?}") };
    // pieces of 200,000 bytes: the sixth goes beyond what is hashed on the loop
    let on_loop = status.ingest.bytes - status.ingest.hashed_beside;
    assert!((1_000_000 - (120 << 10)..=1_000_005).contains(&on_loop), "{on_loop} bytes on the loop");
    drop(stream);
    agent.finish().await.unwrap();

    let (mut stream, agent) = open(folder.path()).await;
    assert_eq!(get(&mut stream, 1, "a/empty").await.unwrap(), b"");
    assert_eq!(get(&mut stream, 2, "a/small").await.unwrap(), b"hello");
    assert!(get(&mut stream, 3, "b/large").await.unwrap() == large);
    let again = put(&mut stream, 4, "a/small", b"hello").await;
    assert!(matches!(again, Response::Stored { unchanged: true, .. }), "{again:?}");
    let names = ask(&mut stream, 5, Request::List { prefix: "a/".into(), after: None }).await;
    assert!(matches!(&names, Response::Names { objects, next: None } if objects.len() == 2), "{names:?}");
    let verified = ask(&mut stream, 6, Request::Verify).await;
    assert!(
        matches!(&verified, Response::Verified { damaged, incomplete, blocks, .. }
            if damaged.is_empty() && incomplete.is_empty() && *blocks > 100),
        "{verified:?}"
    );
    let rebuilt = ask(&mut stream, 7, Request::IndexRebuild).await;
    assert!(matches!(rebuilt, Response::Rebuilt { names: 3, .. }), "{rebuilt:?}");
    let removed = ask(&mut stream, 8, Request::Remove { name: Name::parse("b/large").unwrap() }).await;
    assert!(matches!(removed, Response::Removed { .. }), "{removed:?}");
    assert!(matches!(get(&mut stream, 9, "b/large").await, Err(Response::Error(_))));
    let status = ask(&mut stream, 10, Request::Status).await;
    let Response::Status(status) = status else { panic!("{status:?}") };
    assert_eq!(status.power.dropped, 0);
    assert!(status.settings.iter().any(|setting| setting.key == "quota_bytes"));
    drop(stream);
    agent.finish().await.unwrap();
}

/// The thread of the loop is slept and woken by tasks too: pings of the link, clients that go.
#[tokio::test]
async fn every_wake_up_of_the_loop_has_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let (mut stream, agent) = open(folder.path()).await;
    let reasons = async |stream: &mut DuplexStream, number| {
        let before = super::sleeps();
        let answer = ask(stream, number, Request::Power).await;
        let Response::Power(report) = answer else { panic!("{answer:?}") };
        (before, report.total.wakes, super::sleeps())
    };
    let (before, first, asked) = reasons(&mut stream, 1).await;
    for _ in 0..10 {
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    let (slept, second, after) = reasons(&mut stream, 2).await;
    let sum = |wakes: &std::collections::BTreeMap<String, u64>| wakes.values().sum::<u64>();
    let counted = sum(&second) - sum(&first);
    assert!(
        (slept - asked..=after - before).contains(&counted),
        "{counted} of {slept} - {asked}: {second:?}"
    );
    // all but those that a turn of the loop happens to share
    assert!(second.get("other").is_some_and(|others| *others > 0), "{second:?}");
    drop(stream);
    agent.finish().await.unwrap();
}
