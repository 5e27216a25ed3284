//! The local socket byte by byte, for what no client of ours would say.

use serde_json::Value;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

/// The kind of a frame that holds a request or an answer.
pub const MESSAGE: u8 = 1;
/// The kind of a frame that holds data.
pub const DATA: u8 = 2;
/// The kind of a frame that says that all data was sent.
pub const END: u8 = 3;

/// A frame as it travels.
pub fn frame(kind: u8, number: u32, body: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(body.len()).expect("frames are short").to_le_bytes().to_vec();
    frame.push(kind);
    frame.extend_from_slice(&number.to_le_bytes());
    frame.extend_from_slice(body);
    frame
}

/// Sends a request.
///
/// # Errors
/// The agent has hung up.
pub fn ask(stream: &mut UnixStream, number: u32, request: &Value) -> io::Result<()> {
    stream.write_all(&frame(MESSAGE, number, request.to_string().as_bytes()))
}

/// Sends data of an object.
///
/// # Errors
/// The agent has hung up.
pub fn data(stream: &mut UnixStream, number: u32, bytes: &[u8]) -> io::Result<()> {
    bytes.chunks(256 << 10).try_for_each(|piece| stream.write_all(&frame(DATA, number, piece)))
}

/// Puts an object whole.
///
/// # Errors
/// The agent has hung up.
pub fn put(stream: &mut UnixStream, number: u32, name: &str, bytes: &[u8]) -> io::Result<()> {
    put_with(stream, number, name, bytes, false)
}

/// The same; neither the put nor what the connection says next is in a hurry.
///
/// # Errors
/// The agent has hung up.
pub fn put_patiently(stream: &mut UnixStream, number: u32, name: &str, bytes: &[u8]) -> io::Result<()> {
    put_with(stream, number, name, bytes, true)
}

fn put_with(stream: &mut UnixStream, number: u32, name: &str, bytes: &[u8], patient: bool) -> io::Result<()> {
    let meta = serde_json::json!({"size": bytes.len(), "mtime_ms": 0, "mode": 0o644});
    let request = serde_json::json!({"do": "put", "name": name, "meta": meta, "patient": patient});
    ask(stream, number, &request)?;
    data(stream, number, bytes)?;
    stream.write_all(&frame(END, number, b""))
}

/// The next frame: its number, its kind and its body.
///
/// # Errors
/// The agent has hung up.
pub fn next(stream: &mut UnixStream) -> io::Result<(u32, u8, Vec<u8>)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head)?;
    let [a, b, c, d, kind, number @ ..] = head;
    let mut body = vec![0; u32::from_le_bytes([a, b, c, d]) as usize];
    stream.read_exact(&mut body)?;
    Ok((u32::from_le_bytes(number), kind, body))
}

/// The next answer.
///
/// # Errors
/// The agent has hung up.
///
/// # Panics
/// When the frame is none.
pub fn answer(stream: &mut UnixStream) -> io::Result<(u32, Value)> {
    let (number, kind, body) = next(stream)?;
    assert_eq!(kind, MESSAGE);
    Ok((number, serde_json::from_slice(&body).expect("answers are JSON")))
}

/// The bytes of an object, or the agent's failure.
///
/// # Errors
/// The agent has hung up.
///
/// # Panics
/// When an answer is no JSON, or none to a get.
pub fn get(stream: &mut UnixStream, number: u32, name: &str) -> io::Result<Result<Vec<u8>, Value>> {
    let target = serde_json::json!({ "name": name });
    ask(stream, number, &serde_json::json!({"do": "get", "target": target}))?;
    let mut bytes = Vec::new();
    loop {
        let (of, kind, body) = next(stream)?;
        assert_eq!(of, number);
        match kind {
            DATA => bytes.extend(body),
            END => return Ok(Ok(bytes)),
            _ => {
                let answer: Value = serde_json::from_slice(&body).expect("answers are JSON");
                if answer["answer"] == "error" {
                    return Ok(Err(answer));
                }
                assert_eq!(answer["answer"], "object");
            }
        }
    }
}
