//! The agent: one thread, one loop, the core's actors in the middle and the world around them.
//!
//! The loop waits for whatever comes first (a result of a helper thread, the link, a connection, a
//! watched folder, a signal, the core's deadline), hands it to the core, and carries out what the core
//! wants. It decides nothing. A turn over 20 ms is counted as a stall; systemd's watchdog is fed here, by
//! the loop itself, so that a loop that hangs is ended. `mqtt`, `socket` and `config` know nothing of each other.

mod engine;
mod files;
mod hasher;
mod link;
mod mounts;
mod notes;
mod sensors;
mod service;
mod settings;
mod store;
#[cfg(test)]
mod tests;
mod timer;
mod watcher;

use crate::config::{Config, ConfigError, Effective, Environment, KeyError, NodeKey, Overrides};
use crate::mqtt::embedded::Embedded;
use crate::socket::Frame;
use crate::socket::server::{Server, SocketError};
use engine::Engine;
use files::Files;
use hasher::Hasher;
use larder_core::board::Board;
use larder_core::message::{Effect, Effects, Input};
use larder_core::node::{Node, Woken};
use larder_core::power::plan::{PowerPlan, Steering};
use larder_core::request::{FailureKind, ProcessNumbers};
use larder_core::settings::Settings;
use larder_core::start::{self, Start};
use larder_core::time::Time;
use larder_hal::board::Machine;
use larder_store::{MaintainError, OpenError, OsDisk};
pub use link::LinkError;
use link::Wire;
use sensors::Reader;
use service::Service;
use std::io;
use std::num::NonZeroU64;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};
use timer::Timer;
use tokio::io::DuplexStream;
use tokio::sync::{mpsc, oneshot};
use watcher::Watcher;

const IN_PROCESS_BYTES: usize = 512 * 1024;
const ORDERS_MAX: usize = 16;
const INPUTS_AT_ONCE: usize = 32;

/// Why an agent does not start, or does not end well.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration leaves no room.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The node's key can not be read.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The store can not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The store could not be closed; what was acknowledged is safe in its log.
    #[error("closing the store: {0}")]
    Close(#[from] MaintainError),
    /// The local socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The link or the embedded broker.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// No random numbers from the kernel.
    #[error("the kernel gave no random numbers: {0}")]
    Random(getrandom::Error),
    /// The kernel gives no timer, or no thread.
    #[error("starting the loop: {0}")]
    Start(io::Error),
}

impl RunError {
    /// The kind of failure, for exit codes; none where no kind fits.
    pub fn kind(&self) -> Option<FailureKind> {
        match self {
            RunError::Config(_) | RunError::Key(_) | RunError::Link(_) => Some(FailureKind::Invalid),
            RunError::Open(error) => Some(store::kind_of_open(error)),
            RunError::Close(_) => Some(FailureKind::Disk),
            RunError::Socket(SocketError::InUse(_)) => Some(FailureKind::Busy),
            RunError::Socket(_) | RunError::Random(_) | RunError::Start(_) => None,
        }
    }
}

/// What a running agent can be told from outside.
enum Order {
    Stop,
    Reload(Box<Config>),
    Connect(DuplexStream),
    CutBroker(oneshot::Sender<()>),
    RestoreBroker(oneshot::Sender<()>),
}

/// A way to tell a running agent things.
#[derive(Clone)]
pub struct Handle(mpsc::Sender<Order>);

impl Handle {
    /// Ends the agent: everything is flushed, its going is published, the store closed.
    pub async fn stop(&self) {
        let _ = self.0.send(Order::Stop).await;
    }

    /// Puts another configuration in force, as far as it may change while running.
    pub async fn reload(&self, config: Config) {
        let _ = self.0.send(Order::Reload(Box::new(config))).await;
    }

    /// A connection, as if by the socket.
    pub async fn connect(&self) -> DuplexStream {
        let (ours, theirs) = tokio::io::duplex(IN_PROCESS_BYTES);
        let _ = self.0.send(Order::Connect(theirs)).await;
        ours
    }

    /// Cuts every link to the embedded broker, until [`Handle::restore_broker`].
    pub async fn cut_broker(&self) {
        self.order_and_wait(Order::CutBroker).await;
    }

    /// Lets links be made again.
    pub async fn restore_broker(&self) {
        self.order_and_wait(Order::RestoreBroker).await;
    }

    async fn order_and_wait(&self, order: fn(oneshot::Sender<()>) -> Order) {
        let (done, is_done) = oneshot::channel();
        if self.0.send(order(done)).await.is_ok() {
            let _ = is_done.await;
        }
    }
}

/// An agent that has opened its store and is about to run.
pub struct Agent {
    /// Like the effects boxed: by far the largest parts, which would else be moved with every future that runs this.
    node: Box<Node>,
    core: Settings,
    /// What was in force at the start: some of it stays so.
    opened: Effective,
    board: Board,
    machine: Machine,
    started: Instant,
    effects: Box<Effects>,
    engine: Engine,
    hasher: Hasher,
    wire: Option<Wire>,
    broker: Option<Embedded>,
    server: Server,
    watcher: Option<Watcher>,
    service: Service,
    sensors: Reader,
    timer: Timer,
    /// How often the loop had slept when it was last asked.
    sleeps: u64,
    /// What the link shall have at the end of the turn, when all that was to be sent is.
    keep_alive: Option<Duration>,
    disk: OsDisk,
    orders: mpsc::Receiver<Order>,
    stopped: bool,
}

/// What an agent takes part in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A service: socket, link, watched folders, systemd.
    Service,
    /// An agent beside others in one process: link and watched folders, connections inside the process.
    Guest,
    /// One command's own: the store and a connection inside the process.
    Command,
}

impl Agent {
    /// Opens the store and everything the mode has beside it.
    pub async fn start(config: &Config, machine: &Machine, mode: Mode) -> Result<(Self, Handle), RunError> {
        let effective = settings::effective(config, machine)?;
        let epoch = random()?;
        let key = node_key(config, mode)?;
        let mut service = Service::new(mode == Mode::Service);
        let is_alone = mode == Mode::Command;
        let watches = if is_alone { &[][..] } else { &config.watches };
        let (watcher, watching) = Watcher::start(watches);
        let files = Files::new(watches.to_vec(), watching);
        let options = settings::store_options(config, &effective);
        let opening = Engine::start(config.store.clone(), options, files);
        let (engine, opened) = service.while_starting(opening).await?;
        for note in store::notes(&opened.report) {
            tracing::warn!("{note}");
        }
        let plan = settings::plan(config, machine, &effective, &effective);
        let starts = start::with(opened.starts.as_deref(), Start { epoch, log: opened.log });
        let mut core = settings::core(config, &effective, plan, key, opened.id, starts);
        if is_alone {
            // a command of its own ends before any sensor could matter
            core.watches.clear();
            core.power = PowerPlan::default();
        }
        let broker = if is_alone { None } else { link::embedded(config).await? };
        let wire = if is_alone { None } else { start_wire(config, &effective, epoch, broker.as_ref())? };
        let server = match mode {
            Mode::Service => Server::listen(&config.socket).await?,
            Mode::Guest | Mode::Command => Server::without_socket(),
        };
        let (give, orders) = mpsc::channel(ORDERS_MAX);
        let agent = Agent {
            node: Box::new(Node::new(&core)),
            core,
            opened: effective,
            board: config.board.value.clone(),
            machine: machine.clone(),
            started: Instant::now(),
            effects: Box::default(),
            engine,
            hasher: Hasher::start().map_err(RunError::Start)?,
            wire,
            broker,
            server,
            watcher,
            service,
            sensors: Reader::start(config).map_err(RunError::Start)?,
            timer: Timer::new().map_err(RunError::Start)?,
            sleeps: 0,
            keep_alive: None,
            disk: opened.disk,
            orders,
            stopped: false,
        };
        Ok((agent, Handle(give)))
    }

    /// The port of the broker in this process, if there is one.
    pub fn broker_port(&self) -> Option<u16> {
        self.broker.as_ref().map(|broker| broker.address().port())
    }

    /// Runs until it is told to stop.
    pub async fn run(mut self) -> Result<(), RunError> {
        self.turn(Input::Start);
        self.service.ready();
        self.sleeps = sleeps();
        while !self.stopped {
            let deadline = self.node.deadline();
            let at = deadline.map(|(at_ms, _)| self.started + Duration::from_millis(at_ms));
            let (input, woken) = tokio::select! {
                input = self.engine.next() => match input {
                    Some(input) => (input, Woken::By("disk")),
                    None => return Err(ended("the helper thread ended")),
                },
                input = self.hasher.next() => match input {
                    Some(input) => (input, Woken::By("hashing")),
                    None => return Err(ended("the thread that hashes ended")),
                },
                input = next_of_wire(&mut self.wire) => (input, Woken::By("link")),
                input = self.server.next() => (input, Woken::By("client")),
                input = next_of_watcher(&mut self.watcher) => (input, Woken::By("folder")),
                input = self.sensors.next() => (input, Woken::By("sensors")),
                order = self.orders.recv() => match order {
                    Some(order) => match self.obey(order).await {
                        Some(input) => (input, Woken::By("order")),
                        None => continue,
                    },
                    None => (Input::Stop, Woken::By("order")),
                },
                signal = self.service.next() => match signal {
                    service::Event::Stop => {
                        self.service.stopping();
                        (Input::Stop, Woken::By("signal"))
                    }
                    service::Event::Fed => {
                        self.has_woken(Woken::By("watchdog"));
                        continue;
                    }
                },
                () = self.timer.until(at) => (Input::Wake, Woken::Timer(deadline.map_or("", |(_, why)| why))),
            };
            self.has_woken(woken);
            self.turn(input);
            self.service.turned();
            // What is there already needs no waiting; a few at a time, lest others starve.
            for _ in 0..INPUTS_AT_ONCE {
                let ready = self.engine.ready().or_else(|| self.hasher.ready());
                let ready = ready.or_else(|| self.wire.as_mut().and_then(Wire::ready));
                match ready {
                    Some(input) => self.turn(input),
                    None => break,
                }
            }
        }
        if let Some(wire) = self.wire.take() {
            wire.close().await;
        }
        self.server.close().await;
        self.engine.close()?;
        Ok(())
    }

    /// Counts the sleeps since the last time: this has ended the last, tasks of the link and of connections the
    /// others. Without any it was there already.
    fn has_woken(&mut self, by: Woken) {
        let sleeps = sleeps();
        self.node.woken(by, sleeps - std::mem::replace(&mut self.sleeps, sleeps));
    }

    async fn obey(&mut self, order: Order) -> Option<Input> {
        match order {
            Order::Stop => Some(Input::Stop),
            Order::Connect(stream) => Some(self.server.connect(stream)),
            Order::Reload(config) => {
                self.service.reloading();
                let input = self.reload(&config);
                self.service.ready();
                input
            }
            Order::CutBroker(done) => {
                if let Some(broker) = &mut self.broker {
                    broker.cut().await;
                }
                let _ = done.send(());
                None
            }
            Order::RestoreBroker(done) => {
                if let Some(broker) = &mut self.broker
                    && let Err(error) = broker.restore().await
                {
                    tracing::error!("the embedded broker does not come back: {error}");
                }
                let _ = done.send(());
                None
            }
        }
    }

    /// Puts in force what may change while running, and says what the core is to hear then; the rest waits for a
    /// restart.
    fn reload(&mut self, config: &Config) -> Option<Input> {
        let effective = match settings::effective(config, &self.machine) {
            Ok(effective) => effective.since(&self.opened),
            Err(error) => {
                tracing::error!("not reloaded: {error}");
                return None;
            }
        };
        let old = &self.core;
        let is_another = config.name != old.me || config.fleet.as_str() != old.fleet;
        if is_another || config.role.value != old.role || config.board.value != self.board {
            tracing::error!("not reloaded: name, fleet, role and board need a restart");
            return None;
        }
        let plan = settings::plan(config, &self.machine, &effective, &self.opened);
        let new = settings::core(config, &effective, plan, old.key.clone(), old.store, old.starts.clone());
        if new.watches != old.watches {
            tracing::warn!("changed [[watch]] folders need a restart");
        }
        let new = Settings { watches: old.watches.clone(), kernels: old.kernels, ..new };
        self.node.reload(self.now(Instant::now()), &new);
        self.core = new;
        if let Some(steering) = self.node.steering().cloned() {
            self.follow(&steering);
        }
        tracing::info!(
            "the configuration was reloaded; store, broker and socket keep theirs until a restart"
        );
        Some(self.wire.as_mut().and_then(|wire| wire.reload(config)).unwrap_or(Input::Wake))
    }

    /// What of a profile is the shell's: how late the kernel may wake it, what of freed memory is kept,
    /// keep-alive, the watchdog's patience, and what the store may take.
    fn follow(&mut self, steering: &Steering) {
        let slack = NonZeroU64::new(steering.timer_slack_us.saturating_mul(1_000));
        if let Err(error) = rustix::thread::set_current_timer_slack(slack) {
            tracing::debug!("the timer slack stays as it was: {error}");
        }
        // the batch that is written and the next one, which is received into what the one before had
        larder_hal::heap::keep_freed(steering.flush.bytes.saturating_mul(2));
        self.service.wakes_every(Duration::from_millis(steering.sense_ms));
        self.keep_alive = Some(Duration::from_secs(steering.keep_alive_s));
        self.engine.quota(steering.quota_bytes, steering.reserve_bytes);
    }

    /// One turn: the core decides, the shell carries out. What that brings at once is handled too.
    fn turn(&mut self, input: Input) {
        let began = Instant::now();
        let now = self.now(began);
        let mut next = Some(input);
        while let Some(input) = next.take() {
            self.node.handle(now, input, &mut self.effects);
            while let Some(effect) = self.effects.next_effect() {
                if let Some(input) = self.carry_out(effect) {
                    self.node.handle(now, input, &mut self.effects);
                }
            }
            next = self.keep_alive.take().and_then(|keep_alive| self.wire.as_mut()?.keep_alive(keep_alive));
        }
        let took = began.elapsed();
        self.node.turned(u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
    }

    fn now(&self, instant: Instant) -> Time {
        let mono = instant.saturating_duration_since(self.started).as_millis();
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
        Time {
            mono_ms: u64::try_from(mono).unwrap_or(u64::MAX),
            wall_ms: i64::try_from(wall).unwrap_or(i64::MAX),
        }
    }

    fn carry_out(&mut self, effect: Effect) -> Option<Input> {
        match effect {
            Effect::Job { job, what } => self.engine.job(job, what),
            Effect::File { file, what } => self.engine.file(file, what),
            Effect::Cut { stream, cutter } => self.hasher.cut(stream, cutter),
            Effect::Send { token, to, channel, payload } => {
                self.wire.as_mut()?.send(token, &to, channel, payload);
            }
            Effect::Presence(presence) => self.wire.as_mut()?.presence(presence),
            Effect::Pull(client) => self.server.pull(client),
            Effect::PullIfThere(client) => self.server.pull_if_there(client),
            Effect::Reply { caller, response } => self.server.answer(caller, Frame::Message(*response)),
            Effect::ReplyData { caller, bytes } => self.server.answer(caller, Frame::Data(bytes)),
            Effect::ReplyDataEnd { caller } => self.server.answer(caller, Frame::End),
            Effect::Note(note) => notes::write(&note),
            Effect::Measure => return Some(Input::Measured(self.measure())),
            Effect::Sense => self.sensors.read(),
            Effect::Profile(steering) => self.follow(&steering),
            Effect::Radio(up) => return self.wire.as_mut()?.radio(up),
            Effect::Telemetry(payload) => self.wire.as_mut()?.telemetry(payload),
            Effect::Stopped => self.stopped = true,
        }
        None
    }

    fn measure(&self) -> ProcessNumbers {
        let counts = self.disk.counts();
        let usage = larder_hal::usage::read(Path::new("/"));
        ProcessNumbers {
            resident_bytes: usage.resident_bytes,
            wake_ups: usage.wakeups,
            cpu_ms: usage.cpu_ms,
            disk_bytes: usage.written_bytes,
            syncs: Some(counts.file_syncs + counts.directory_syncs),
            flash_bytes: Some(counts.bytes),
            air: self.wire.as_ref().map(Wire::air).unwrap_or_default(),
        }
    }
}

/// Runs the agent as a service until a signal ends it. SIGHUP reads the configuration again, with the same
/// overrides.
pub async fn agent(config: &Config, overrides: Overrides) -> Result<(), RunError> {
    let machine = larder_hal::board::detect(&config.machine_root);
    // before anybody can see that it runs, or a signal would end it
    let mut hangups = service::hangups();
    let (agent, handle) = Agent::start(config, &machine, Mode::Service).await?;
    let reloader = tokio::spawn(async move {
        while hangups.recv().await.is_some() {
            match Config::load(&overrides, &Environment::of_process(), &machine) {
                Ok(config) => handle.reload(config).await,
                Err(error) => tracing::error!("not reloaded: {error}"),
            }
        }
    });
    let result = agent.run().await;
    reloader.abort();
    result
}

/// An agent in this process, for one command.
pub struct InProcess {
    handle: Handle,
    task: tokio::task::JoinHandle<Result<(), RunError>>,
}

impl InProcess {
    /// Another connection to it.
    pub async fn connect(&self) -> DuplexStream {
        self.handle.connect().await
    }

    /// Flushes, checkpoints, and gives the store free.
    pub async fn finish(self) -> Result<(), RunError> {
        self.handle.stop().await;
        self.task.await.unwrap_or_else(|error| Err(ended(&format!("the agent failed: {error}"))))
    }
}

/// Starts an agent of its own for one command, where none is running.
pub async fn in_process(config: &Config) -> Result<(DuplexStream, InProcess), RunError> {
    let machine = larder_hal::board::detect(&config.machine_root);
    let (agent, handle) = Agent::start(config, &machine, Mode::Command).await?;
    let task = tokio::spawn(agent.run());
    let stream = handle.connect().await;
    Ok((stream, InProcess { handle, task }))
}

fn start_wire(
    config: &Config,
    effective: &Effective,
    epoch: u64,
    broker: Option<&Embedded>,
) -> Result<Option<Wire>, LinkError> {
    Wire::start(config, effective, epoch, broker.map(Embedded::address))
}

async fn next_of_wire(wire: &mut Option<Wire>) -> Input {
    match wire {
        Some(wire) => wire.next().await,
        None => std::future::pending().await,
    }
}

async fn next_of_watcher(watcher: &mut Option<Watcher>) -> Input {
    match watcher {
        Some(watcher) => watcher.next().await,
        None => std::future::pending().await,
    }
}

/// The node's key; a command that talks to nobody needs none.
fn node_key(config: &Config, mode: Mode) -> Result<ed25519_dalek::SigningKey, KeyError> {
    if mode == Mode::Command || (config.mqtt.is_none() && !config.key.exists()) {
        return Ok(NodeKey::generate()?.signing().clone());
    }
    Ok(NodeKey::load(&config.key)?.signing().clone())
}

/// How often the thread of the loop has slept.
fn sleeps() -> u64 {
    tokio::runtime::Handle::current().metrics().worker_park_count(0)
}

fn ended(reason: &str) -> RunError {
    MaintainError::Stopped { reason: reason.to_owned() }.into()
}

fn random() -> Result<u64, RunError> {
    getrandom::u64().map_err(RunError::Random)
}
