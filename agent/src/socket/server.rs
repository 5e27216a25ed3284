//! The listening side of the local socket: connections as inputs of the loop.
//!
//! The socket's file has mode 0600. A connection is read one frame at a time, only when the core asks for
//! it; one that does not take its answers is closed when `ANSWERS_MAX` wait. What does not parse is
//! answered and the connection goes on; what is no frame ends it.

use super::quiet::{Half, Source};
use super::{Frame, FrameError, read_on, write_response};
use larder_core::limits::CLIENTS_MAX;
use larder_core::message::{Caller, ClientId, Input};
use larder_core::request::{Failure, FailureKind, Request, Response};
use std::collections::{BTreeMap, VecDeque};
use std::future::{Future, poll_fn};
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::task::Poll;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::net::{UnixListener, UnixSocket, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Answers that wait for a connection to take them.
const ANSWERS_MAX: usize = 1024;
/// Connections the kernel holds until they are accepted.
const CONNECTIONS_WAITING_MAX: u32 = 128;
/// Inputs of all connections that wait for the loop.
const INPUTS_MAX: usize = 64;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another agent answers on it.
    #[error("another agent listens on {0}; stop it, or choose another socket")]
    InUse(PathBuf),
    /// Something that is no socket has its name.
    #[error("{0} is there and is no socket; remove it, or choose another socket")]
    NoSocket(PathBuf),
    /// It can not be made.
    #[error("the socket {path} can not be made: {source}")]
    Io {
        /// Its path.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
}

/// What goes out to a connection.
enum Answer {
    Frame(u32, Frame<Response>),
    Close,
}

/// How a connection's next frame is let in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pull {
    /// When it comes.
    Next,
    /// If it is there.
    IfThere,
}

struct Client {
    answers: mpsc::Sender<Answer>,
    pulls: mpsc::Sender<Pull>,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Client {
    fn drop(&mut self) {
        // The writer ends by itself, after what it was given.
        self.tasks[0].abort();
    }
}

/// All connections.
pub struct Server {
    listener: Option<(UnixListener, PathBuf)>,
    clients: BTreeMap<ClientId, Client>,
    next_client: u32,
    /// Connections closed here of which the loop has not been told.
    gone: VecDeque<ClientId>,
    give: mpsc::Sender<Input>,
    inputs: mpsc::Receiver<Input>,
}

impl Server {
    /// A server for connections made inside the process.
    pub fn without_socket() -> Self {
        let (give, inputs) = mpsc::channel(INPUTS_MAX);
        Server {
            listener: None,
            clients: BTreeMap::new(),
            next_client: 0,
            gone: VecDeque::new(),
            give,
            inputs,
        }
    }

    /// A server that listens at `path`, replacing a socket nobody answers on.
    pub async fn listen(path: &Path) -> Result<Self, SocketError> {
        let failed = |source| SocketError::Io { path: path.to_owned(), source };
        if let Ok(metadata) = std::fs::symlink_metadata(path) {
            if !metadata.file_type().is_socket() {
                return Err(SocketError::NoSocket(path.to_owned()));
            }
            if UnixStream::connect(path).await.is_ok() {
                return Err(SocketError::InUse(path.to_owned()));
            }
            std::fs::remove_file(path).map_err(failed)?;
        }
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(failed)?;
        }
        let listener = bind_private(path).map_err(failed)?;
        let mut server = Server::without_socket();
        server.listener = Some((listener, path.to_owned()));
        Ok(server)
    }

    /// Takes a connection inside the process over.
    pub fn connect(&mut self, stream: DuplexStream) -> Input {
        let (from, to) = tokio::io::split(stream);
        self.take(from, to)
    }

    fn take(&mut self, from: impl Source, to: impl AsyncWrite + Unpin + Send + 'static) -> Input {
        self.next_client = self.next_client.wrapping_add(1);
        let client = ClientId(self.next_client);
        let (answers, answers_to_write) = mpsc::channel(ANSWERS_MAX);
        let (pulls, pulled) = mpsc::channel(1);
        let reader = read_requests(client, from, pulled, self.give.clone(), answers.clone());
        let writer = write_answers(client, to, answers_to_write, self.give.clone());
        let tasks = [tokio::spawn(reader), tokio::spawn(writer)];
        self.clients.insert(client, Client { answers, pulls, tasks });
        Input::ClientCame(client)
    }

    /// The next thing a connection says. Cancel safe.
    pub async fn next(&mut self) -> Input {
        loop {
            if let Some(client) = self.gone.pop_front() {
                return Input::ClientGone(client);
            }
            tokio::select! {
                input = self.inputs.recv() => {
                    let input = input.expect("the server itself holds a sender");
                    if let Input::ClientGone(client) = input {
                        self.clients.remove(&client);
                    }
                    return input;
                }
                stream = accept(self.listener.as_ref()) => match stream {
                    Ok(stream) if self.clients.len() >= CLIENTS_MAX => drop(tokio::spawn(turn_away(stream))),
                    Ok(stream) => match stream.into_std().and_then(Half::pair) {
                        Ok((from, to)) => return self.take(from, to),
                        Err(error) => tracing::warn!("a connection was not taken over: {error}"),
                    },
                    Err(error) => {
                        tracing::warn!("a connection was not accepted: {error}");
                        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    }
                }
            }
        }
    }

    /// Lets a connection's next frame in.
    pub fn pull(&self, client: ClientId) {
        self.let_in(client, Pull::Next);
    }

    /// Lets a connection's next frame in, if it is there, and leaves the connection alone if not.
    pub fn pull_if_there(&self, client: ClientId) {
        self.let_in(client, Pull::IfThere);
    }

    fn let_in(&self, client: ClientId, pull: Pull) {
        if let Some(client) = self.clients.get(&client) {
            // One pull is held; the core asks for no second before the first was answered.
            let _ = client.pulls.try_send(pull);
        }
    }

    /// Gives a connection a frame; one that takes none is closed.
    pub fn answer(&mut self, caller: Caller, frame: Frame<Response>) {
        let Some(client) = self.clients.get(&caller.client) else { return };
        if client.answers.try_send(Answer::Frame(caller.number, frame)).is_err() {
            self.clients.remove(&caller.client);
            self.gone.push_back(caller.client);
        }
    }

    /// Closes every connection once it has been given what waits for it.
    pub async fn close(mut self) {
        for (_, mut client) in std::mem::take(&mut self.clients) {
            let _ = client.answers.try_send(Answer::Close);
            let _ = tokio::time::timeout(std::time::Duration::from_secs(2), &mut client.tasks[1]).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some((_, path)) = &self.listener {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Says that too many are here, and closes.
async fn turn_away(mut stream: UnixStream) {
    let failure = Failure::new(FailureKind::Busy, format!("{CLIENTS_MAX} connections are open; try again"));
    let _ = write_response(&mut stream, 0, &Frame::Message(Response::Error(failure))).await;
    let _ = stream.shutdown().await;
}

/// A socket that nobody else can connect to: it listens only once its mode is set. A umask would be the
/// whole process's, and the helper thread makes files meanwhile.
fn bind_private(path: &Path) -> io::Result<UnixListener> {
    let socket = UnixSocket::new_stream()?;
    socket.bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    socket.listen(CONNECTIONS_WAITING_MAX)
}

async fn accept(listener: Option<&(UnixListener, PathBuf)>) -> io::Result<UnixStream> {
    match listener {
        Some((listener, _)) => listener.accept().await.map(|(stream, _)| stream),
        None => std::future::pending().await,
    }
}

async fn read_requests(
    client: ClientId,
    mut from: impl Source,
    mut pulled: mpsc::Receiver<Pull>,
    give: mpsc::Sender<Input>,
    answers: mpsc::Sender<Answer>,
) {
    while let Some(pull) = pulled.recv().await {
        let Some(input) = next_input(client, pull, &mut from, &answers).await else { break };
        if give.send(input).await.is_err() {
            return;
        }
    }
    let _ = answers.send(Answer::Close).await;
    let _ = give.send(Input::ClientGone(client)).await;
}

/// What a connection says; nothing when it has ended.
async fn next_input(
    client: ClientId,
    pull: Pull,
    from: &mut impl Source,
    answers: &mpsc::Sender<Answer>,
) -> Option<Input> {
    loop {
        let mut first = [0];
        let begun = match pull {
            Pull::Next => from.read(&mut first).await,
            Pull::IfThere => match at_once(from.read(&mut first)).await {
                Some(begun) => begun,
                None => {
                    from.rest();
                    return Some(Input::ClientSilent(client));
                }
            },
        };
        if !matches!(begun, Ok(1)) {
            return None;
        }
        match read_on::<Request>(first, from).await {
            Ok((number, frame)) => return Some(input_of(Caller { client, number }, frame)),
            Err(FrameError::Malformed { number, error }) => {
                let failure = Failure::new(FailureKind::Invalid, format!("no such request: {error}"));
                answers.send(Answer::Frame(number, Frame::Message(Response::Error(failure)))).await.ok()?;
            }
            Err(error @ (FrameError::Large(_) | FrameError::Kind(_))) => {
                let failure = Failure::new(FailureKind::Invalid, error.to_string());
                let _ = answers.send(Answer::Frame(0, Frame::Message(Response::Error(failure)))).await;
                return None;
            }
            Err(FrameError::Io(_)) => return None,
        }
    }
}

/// What comes of it without waiting.
async fn at_once<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = std::pin::pin!(future);
    poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(value) => Poll::Ready(Some(value)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

fn input_of(caller: Caller, frame: Frame<Request>) -> Input {
    match frame {
        Frame::Message(request) => Input::ClientAsked { caller, request },
        Frame::Data(bytes) => Input::ClientData { caller, bytes },
        Frame::End => Input::ClientDataEnd { caller },
    }
}

async fn write_answers(
    client: ClientId,
    mut to: impl AsyncWrite + Unpin,
    mut answers: mpsc::Receiver<Answer>,
    give: mpsc::Sender<Input>,
) {
    while let Some(Answer::Frame(number, frame)) = answers.recv().await {
        let is_data = matches!(frame, Frame::Data(_));
        if write_response(&mut to, number, &frame).await.is_err() {
            break;
        }
        if is_data && give.send(Input::ClientReady(client)).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}
