//! Local connections: what applications and commands say to a node, and what they hear.

use super::{Event, World};
use bytes::Bytes;
use larder_core::binding::Meta;
use larder_core::message::{ClientId, Input};
use larder_core::name::Name;
use larder_core::request::{Request, Response, Status};
use std::collections::VecDeque;
use std::collections::btree_map::Entry;

const FRAME_BYTES: usize = 256 * 1024;

pub(crate) enum Frame {
    Ask(Request),
    Data(Bytes),
    End,
}

/// One connection: what it will say, and whether the node wants to hear it.
#[derive(Default)]
pub(crate) struct Client {
    pub(crate) frames: VecDeque<(u32, Frame)>,
    pub(crate) pulled: bool,
}

/// One request and where its answers are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) node: usize,
    pub(crate) client: u32,
    pub(crate) number: u32,
}

impl World {
    fn say(&mut self, node: usize, client: u32, number: u32, frames: impl IntoIterator<Item = Frame>) {
        if let Entry::Vacant(place) = self.machines[node].clients.entry(client) {
            place.insert(Client::default());
            self.input(node, Input::ClientCame(ClientId(client)));
        }
        let life = self.machines[node].life;
        let connection = self.machines[node].clients.get_mut(&client).expect("made above");
        connection.frames.extend(frames.into_iter().map(|frame| (number, frame)));
        if connection.pulled {
            self.schedule(0, Event::ClientFrame { node, life, client });
        }
    }

    /// Asks on a connection of its own number.
    pub(crate) fn ask_as(&mut self, node: usize, client: u32, request: Request) -> Call {
        self.last_number += 1;
        let number = self.last_number;
        self.say(node, client, number, [Frame::Ask(request)]);
        Call { node, client, number }
    }

    pub(crate) fn ask(&mut self, node: usize, request: Request) -> Call {
        self.ask_as(node, 1, request)
    }

    pub(crate) fn put_as(&mut self, node: usize, client: u32, name: &str, bytes: impl Into<Bytes>) -> Call {
        self.put_with(node, client, name, bytes, false)
    }

    /// A put that can wait, on a connection that can.
    pub(crate) fn put_patiently(
        &mut self,
        node: usize,
        client: u32,
        name: &str,
        bytes: impl Into<Bytes>,
    ) -> Call {
        self.put_with(node, client, name, bytes, true)
    }

    /// The same by somebody who asks something else before the put's end.
    pub(crate) fn put_patiently_and_ask(
        &mut self,
        node: usize,
        client: u32,
        name: &str,
        bytes: impl Into<Bytes>,
        request: Request,
    ) -> [Call; 2] {
        let put = self.put_patiently(node, client, name, bytes);
        let asked = self.ask_as(node, client, request);
        let frames = &mut self.machines[node].clients.get_mut(&client).expect("made above").frames;
        let last = frames.len() - 1;
        frames.swap(last - 1, last);
        [put, asked]
    }

    fn put_with(
        &mut self,
        node: usize,
        client: u32,
        name: &str,
        bytes: impl Into<Bytes>,
        patient: bool,
    ) -> Call {
        let bytes: Bytes = bytes.into();
        self.last_number += 1;
        let number = self.last_number;
        let name = Name::parse(name).expect("tests put under names");
        let mtime_ms = super::START_MS + i64::try_from(self.now_ms).expect("simulated time is short");
        let meta = Meta { size: 0, mtime_ms, mode: 0o644 };
        let mut frames = vec![Frame::Ask(Request::Put { name, meta, patient })];
        let mut start = 0;
        while start < bytes.len() {
            let end = (start + FRAME_BYTES).min(bytes.len());
            frames.push(Frame::Data(bytes.slice(start..end)));
            start = end;
        }
        frames.push(Frame::End);
        self.say(node, client, number, frames);
        Call { node, client, number }
    }

    /// A put by somebody who goes on with data, and ends it once more, after its end.
    pub(crate) fn put_with_more(
        &mut self,
        node: usize,
        client: u32,
        name: &str,
        bytes: impl Into<Bytes>,
    ) -> Call {
        let call = self.put_as(node, client, name, bytes);
        let more = [Frame::Data(Bytes::from_static(b"more")), Frame::End];
        self.say(node, client, call.number, more);
        call
    }

    pub(crate) fn put(&mut self, node: usize, name: &str, bytes: impl Into<Bytes>) -> Call {
        self.put_as(node, 1, name, bytes)
    }

    /// Puts and waits until it is answered.
    pub(crate) fn put_now(&mut self, node: usize, name: &str, bytes: impl Into<Bytes>) -> Response {
        let call = self.put(node, name, bytes);
        let answer = self.wait(call);
        assert!(matches!(answer, Response::Stored { .. }), "put {name}: {answer:?}");
        answer
    }

    /// The answers so far.
    pub(crate) fn heard(&self, call: Call) -> &[Response] {
        self.answers.get(&(call.node, call.client, call.number)).map_or(&[], Vec::as_slice)
    }

    /// Waits for the last answer.
    pub(crate) fn wait(&mut self, call: Call) -> Response {
        let is_last = |response: &Response| !matches!(response, Response::Progress { .. });
        self.run_until(300_000, "a request is answered", |world| world.heard(call).iter().any(is_last));
        self.heard(call).iter().rev().find(|response| is_last(response)).expect("waited for").clone()
    }

    pub(crate) fn request(&mut self, node: usize, request: Request) -> Response {
        let call = self.ask(node, request);
        self.wait(call)
    }

    /// Reads a whole object; `None` when the node says that it can not.
    pub(crate) fn get(&mut self, node: usize, target: larder_core::request::Target) -> Option<Vec<u8>> {
        let call = self.ask(node, Request::Get { target, offset: 0, length: None });
        self.wait_for_get(call)
    }

    /// Waits until all was sent.
    pub(crate) fn wait_for_get(&mut self, call: Call) -> Option<Vec<u8>> {
        let is_over =
            |response: &Response| !matches!(response, Response::Object { .. } | Response::Progress { .. });
        self.run_until(300_000, "a get ends", |world| world.heard(call).iter().any(is_over));
        let failed = self.heard(call).iter().any(|response| matches!(response, Response::Error(_)));
        let key = (call.node, call.client, call.number);
        (!failed).then(|| self.data.remove(&key).unwrap_or_default())
    }

    pub(crate) fn status(&mut self, node: usize) -> Status {
        match self.request(node, Request::Status) {
            Response::Status(status) => *status,
            other => panic!("status was answered by {other:?}"),
        }
    }

    /// The connection ends, whatever it was doing.
    pub(crate) fn hang_up(&mut self, node: usize, client: u32) {
        self.machines[node].clients.remove(&client);
        self.input(node, Input::ClientGone(ClientId(client)));
    }
}
