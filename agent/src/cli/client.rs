//! A command's connection to the agent, or to a loop of its own where no agent runs.
//!
//! Duty: send requests, hand out answers. Answers are taken in while a request is being written, so neither
//! side waits for the other for ever. Refuses: to open the store of another user, whose agent would then meet
//! files it may not write. Bound: as many answers are kept as requests may be open. Fails: [`CommandError`].

use std::collections::VecDeque;
use std::io;
use std::os::unix::fs::MetadataExt;

use bytes::Bytes;
use larder_core::id::NodeName;
use larder_core::limits::REQUESTS_PER_CLIENT_MAX;
use larder_core::request::{Failure, FailureKind, Request, Response};
use tokio::io::{AsyncRead, AsyncWrite, BufWriter};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::exit::CommandError;
use super::output::Output;
use crate::config::Config;
use crate::run::{self, InProcess};
use crate::socket::{self, Frame, FrameError};

/// Frames read ahead of the command: a get then holds at most 1 MiB.
const READ_AHEAD: usize = 4;

type Answer = (u32, Frame<Response>);

/// Connects to the agent, or starts the loop here.
///
/// # Errors
/// There is an agent that does not let us in, or none and the store can not be opened.
pub async fn connect(config: &Config) -> Result<Connection, CommandError> {
    if let Some(stream) = agent(config).await? {
        return Ok(Connection::over(stream));
    }
    refuse_the_store_of_another(config)?;
    let (stream, in_process) = run::in_process(config).await?;
    let mut connection = Connection::over(stream);
    connection.in_process = Some(in_process);
    Ok(connection)
}

/// Connects to the agent, for what makes no sense without one.
///
/// # Errors
/// There is none, or it does not let us in.
pub async fn connect_to_agent(config: &Config) -> Result<Connection, CommandError> {
    let why = || {
        let why = format!("no agent runs at {}; `larder run` starts one", config.socket.display());
        Failure::new(FailureKind::Unreachable, why)
    };
    Ok(Connection::over(agent(config).await?.ok_or_else(why)?))
}

async fn agent(config: &Config) -> Result<Option<UnixStream>, CommandError> {
    let error = match UnixStream::connect(&config.socket).await {
        Ok(stream) => return Ok(Some(stream)),
        Err(error) => error,
    };
    // a socket that nobody listens on is left from an agent that was killed
    if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) {
        return Ok(None);
    }
    let (kind, what) = if error.kind() == io::ErrorKind::PermissionDenied {
        (FailureKind::Forbidden, "is another user's: use `sudo`, or --store and --socket of your own")
    } else {
        (FailureKind::Unreachable, "does not answer")
    };
    let why = format!("the agent's socket {} {what} ({error})", config.socket.display());
    Err(Failure::new(kind, why).into())
}

fn refuse_the_store_of_another(config: &Config) -> Result<(), CommandError> {
    let Ok(metadata) = std::fs::metadata(&config.store) else { return Ok(()) };
    let owner = metadata.uid();
    if owner == rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    let why = format!(
        "no agent runs, and the store {} belongs to user {owner}: start the agent, or run this as that \
         user, as in `sudo -u '#{owner}' larder ...`",
        config.store.display()
    );
    Err(Failure::new(FailureKind::Forbidden, why).into())
}

/// A connection to a loop.
pub struct Connection {
    writer: BufWriter<Box<dyn AsyncWrite + Send + Unpin>>,
    answers: mpsc::Receiver<Result<Answer, FrameError>>,
    /// What came while a request was being written.
    early: VecDeque<Answer>,
    reader: JoinHandle<()>,
    last_number: u32,
    node: Option<NodeName>,
    in_process: Option<InProcess>,
}

impl Connection {
    /// A connection over any stream.
    pub fn over(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        let (sender, answers) = mpsc::channel(READ_AHEAD);
        Connection {
            writer: BufWriter::new(Box::new(writer)),
            answers,
            early: VecDeque::new(),
            reader: tokio::spawn(read_all(reader, sender)),
            last_number: 0,
            node: None,
            in_process: None,
        }
    }

    /// Has every request passed on to another node.
    #[must_use]
    pub fn to_node(mut self, node: Option<NodeName>) -> Self {
        self.node = node;
        self
    }

    /// Sends a request; its answers carry the number returned.
    ///
    /// # Errors
    /// The agent has hung up.
    pub async fn send(&mut self, request: Request) -> Result<u32, CommandError> {
        let request = match &self.node {
            Some(node) => Request::Remote { node: node.clone(), request: Box::new(request) },
            None => request,
        };
        // numbers are reused after four billion requests, which are answered by then; 0 is the agent's own
        self.last_number = self.last_number.checked_add(1).unwrap_or(1);
        self.write(self.last_number, Frame::Message(request)).await?;
        Ok(self.last_number)
    }

    /// Sends data of a put.
    ///
    /// # Errors
    /// The agent has hung up.
    pub async fn send_data(&mut self, number: u32, bytes: Bytes) -> Result<(), CommandError> {
        self.write(number, Frame::Data(bytes)).await
    }

    /// Says that a put's data is complete.
    ///
    /// # Errors
    /// The agent has hung up.
    pub async fn send_end(&mut self, number: u32) -> Result<(), CommandError> {
        self.write(number, Frame::End).await
    }

    /// The next answer to any request.
    ///
    /// # Errors
    /// The agent has hung up, or refuses the whole connection.
    pub async fn next(&mut self) -> Result<Answer, CommandError> {
        let answer = match self.early.pop_front() {
            Some(answer) => answer,
            None => self.answers.recv().await.ok_or_else(hung_up)??,
        };
        refuse_number_zero(answer)
    }

    /// An answer that is here already.
    ///
    /// # Errors
    /// As [`Connection::next`]. That the agent has hung up shows when something is sent.
    pub fn ready(&mut self) -> Result<Option<Answer>, CommandError> {
        let answer = match self.early.pop_front() {
            Some(answer) => Some(answer),
            None => self.answers.try_recv().ok().transpose()?,
        };
        answer.map(refuse_number_zero).transpose()
    }

    /// Sends a request without data and waits for its last answer; shows progress meanwhile.
    ///
    /// # Errors
    /// The request failed, or the agent has hung up.
    pub(super) async fn ask(
        &mut self,
        request: Request,
        output: &mut Output,
    ) -> Result<Response, CommandError> {
        let sent = self.send(request).await?;
        let answer = loop {
            match self.next().await {
                Ok((number, Frame::Message(response))) if number == sent => {
                    if let Response::Progress { done, total, unit } = response {
                        output.progress(done, total, unit);
                    } else if let Response::Error(failure) = response {
                        break Err(failure.into());
                    } else {
                        break Ok(response);
                    }
                }
                // what an earlier request, given up by now, was still owed
                Ok(_) => {}
                Err(error) => break Err(error),
            }
        };
        output.end();
        answer
    }

    async fn write(&mut self, number: u32, frame: Frame<Request>) -> Result<(), CommandError> {
        let Connection { writer, answers, early, .. } = self;
        let writing = socket::write_request(writer, number, &frame);
        tokio::pin!(writing);
        let failed = loop {
            tokio::select! {
                biased;
                written = &mut writing => match written {
                    Ok(()) => return Ok(()),
                    Err(error) => break error,
                },
                answer = answers.recv(), if early.len() < 2 * REQUESTS_PER_CLIENT_MAX => {
                    early.push_back(answer.ok_or_else(hung_up)??);
                }
            }
        };
        // an agent that hangs up says why first
        while let Some(Ok(answer)) = self.answers.recv().await {
            self.early.push_back(refuse_number_zero(answer)?);
        }
        Err(FrameError::Io(failed).into())
    }

    /// Drops the connection, and with it what was not put completely, and makes a new one.
    ///
    /// # Errors
    /// As [`connect`].
    pub async fn reconnect(&mut self, config: &Config) -> Result<(), CommandError> {
        self.hang_up().await?;
        let node = self.node.take();
        *self = connect(config).await?.to_node(node);
        Ok(())
    }

    /// Ends the connection; a loop in this process writes what is waiting and closes the store.
    ///
    /// # Errors
    /// That loop could not be stopped cleanly.
    pub async fn finish(mut self) -> Result<(), CommandError> {
        self.hang_up().await
    }

    async fn hang_up(&mut self) -> Result<(), CommandError> {
        // both halves have to go before the other side sees the end
        self.writer = BufWriter::new(Box::new(tokio::io::sink()));
        self.reader.abort();
        let _ = (&mut self.reader).await;
        match self.in_process.take() {
            Some(in_process) => Ok(in_process.finish().await?),
            None => Ok(()),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

async fn read_all(mut from: impl AsyncRead + Unpin, to: mpsc::Sender<Result<Answer, FrameError>>) {
    loop {
        let answer = match socket::read::<Response>(&mut from).await {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => return,
            Err(error) => Err(error),
        };
        let is_last = answer.is_err();
        if to.send(answer).await.is_err() || is_last {
            return;
        }
    }
}

fn hung_up() -> CommandError {
    FrameError::Io(io::ErrorKind::UnexpectedEof.into()).into()
}

/// Number 0 is no request's: the agent speaks of the connection.
fn refuse_number_zero(answer: Answer) -> Result<Answer, CommandError> {
    match answer {
        (0, Frame::Message(Response::Error(failure))) => Err(failure.into()),
        answer => Ok(answer),
    }
}

#[cfg(test)]
mod tests {
    use larder_core::request::Target;
    use tokio::io::DuplexStream;

    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    fn pair() -> (Connection, DuplexStream) {
        let (ours, theirs) = tokio::io::duplex(1024);
        (Connection::over(ours), theirs)
    }

    async fn request(stream: &mut DuplexStream) -> (u32, Frame<Request>) {
        socket::read::<Request>(stream).await.unwrap().unwrap()
    }

    async fn answer(stream: &mut DuplexStream, number: u32, response: Response) {
        socket::write_response(stream, number, &Frame::Message(response)).await.unwrap();
    }

    #[test]
    fn answers_are_taken_in_while_a_request_is_written_so_nobody_waits_for_ever() {
        runtime().block_on(async {
            let (mut connection, mut agent) = pair();
            let other = tokio::spawn(async move {
                for number in 1..=50 {
                    // far more than the stream holds goes out before anything is read
                    answer(&mut agent, number, Response::Flushed).await;
                }
                for _ in 0..50 {
                    request(&mut agent).await;
                }
            });
            let target = Target::Name("n".repeat(1000).parse().unwrap());
            for _ in 0..50 {
                connection.send(Request::Fetch { target: target.clone() }).await.unwrap();
            }
            for number in 1..=50 {
                assert_eq!(connection.next().await.unwrap(), (number, Frame::Message(Response::Flushed)));
            }
            other.await.unwrap();
        });
    }

    #[test]
    fn a_request_for_another_node_is_wrapped() {
        runtime().block_on(async {
            let (connection, mut agent) = pair();
            let node: NodeName = "cam".parse().unwrap();
            let mut connection = connection.to_node(Some(node.clone()));
            connection.send(Request::Status).await.unwrap();
            let wrapped = Request::Remote { node, request: Box::new(Request::Status) };
            assert_eq!(request(&mut agent).await, (1, Frame::Message(wrapped)));
        });
    }

    #[test]
    fn an_agent_that_refuses_the_connection_is_quoted() {
        runtime().block_on(async {
            let (mut connection, mut agent) = pair();
            let failure = Failure::new(FailureKind::Busy, "32 connections are open; try again");
            answer(&mut agent, 0, Response::Error(failure.clone())).await;
            drop(agent);
            let mut output = Output::new(false, true);
            let error = connection.ask(Request::Status, &mut output).await.unwrap_err();
            assert!(matches!(error, CommandError::Failed(found) if found == failure));
        });
    }

    #[test]
    fn an_agent_that_dies_is_an_error_and_no_hang() {
        runtime().block_on(async {
            let (mut connection, agent) = pair();
            drop(agent);
            let mut output = Output::new(false, true);
            let error = connection.ask(Request::Status, &mut output).await.unwrap_err();
            assert_eq!(error.kind(), Some(FailureKind::Unreachable));
        });
    }

    #[test]
    fn hanging_up_is_seen_by_the_other_side() {
        runtime().block_on(async {
            let (connection, mut agent) = pair();
            connection.finish().await.unwrap();
            assert!(socket::read::<Request>(&mut agent).await.unwrap().is_none());
        });
    }
}
