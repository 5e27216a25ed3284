//! A whole fleet in one thread: real cores, simulated stores, files, broker, links and clocks, from a seed.
//!
//! One queue of events in the order of their time. A core is called when something happens to it and when its
//! own deadline says so, never otherwise; a core that asks to be woken again and again for nothing is found.

pub(crate) mod client;
pub(crate) mod engine;
pub(crate) mod flash;
pub(crate) mod folder;
pub(crate) mod hasher;
pub(crate) mod impostor;
pub(crate) mod judge;
pub(crate) mod net;
pub(crate) mod random;
pub(crate) mod setup;

use client::{Client, Frame};
use engine::Engine;
use flash::{Flash, wants_checkpoint};
use folder::Folders;
use hasher::Hasher;
use judge::Judge;
use larder_core::id::NodeName;
use larder_core::message::{Caller, ClientId, Effect, Effects, FileId, FileJob, Input, Job, JobId, Presence};
use larder_core::name::Name;
use larder_core::node::{Node, Woken};
use larder_core::note::Note;
use larder_core::power::conditions::Readings;
use larder_core::request::{AirNumbers, ProcessNumbers, Response};
use larder_core::settings::Settings;
use larder_core::start::{self, STARTS_KEY, Start};
use larder_core::time::Time;
use net::{Message, Net};
use random::Random;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Unix milliseconds at the start of every world.
pub(crate) const START_MS: i64 = 1_800_000_000_000;
/// Wakes of one node within one millisecond after which it is called a busy loop.
const WAKES_IN_A_ROW_MAX: u32 = 200;

/// What a machine's helper thread has to do.
pub(crate) enum Work {
    Store(JobId, Job),
    File(FileId, FileJob),
}

/// What happens next.
pub(crate) enum Event {
    /// The helper thread has finished its oldest work.
    Worked {
        node: usize,
        life: u32,
    },
    /// The thread that hashes has finished its oldest work.
    Cut {
        node: usize,
        life: u32,
    },
    Timer {
        node: usize,
        life: u32,
        alarm: u64,
    },
    ClientFrame {
        node: usize,
        life: u32,
        client: u32,
    },
    ClientSilent {
        node: usize,
        life: u32,
        client: u32,
    },
    ClientReady {
        node: usize,
        life: u32,
        client: u32,
    },
    Sent {
        node: usize,
        connection: u64,
        token: u64,
    },
    AtBroker {
        connection: u64,
        message: Message,
    },
    Arrives {
        connection: u64,
        message: Message,
    },
    Connects {
        node: usize,
    },
    Notices {
        node: usize,
        connection: u64,
    },
}

/// One machine.
pub(crate) struct Machine {
    pub(crate) settings: Settings,
    pub(crate) node: Option<Node>,
    pub(crate) engine: Engine,
    /// What the work costs a real store, where a test asks.
    pub(crate) flash: Option<Flash>,
    pub(crate) folders: Folders,
    pub(crate) hasher: Hasher,
    pub(crate) notes: Vec<Note>,
    pub(crate) clients: BTreeMap<u32, Client>,
    pub(crate) wakes: BTreeMap<&'static str, u64>,
    pub(crate) stopped: bool,
    /// What its sensors say.
    pub(crate) readings: Readings,
    pub(crate) readings_taken: u64,
    /// What its clock shows too much.
    pub(crate) clock_off_ms: i64,
    /// Moments at which something woke it, whatever that was.
    pub(crate) wake_ups: u64,
    input_ms: Option<u64>,
    pub(crate) telemetry: u64,
    /// Messages of this life and their payload: packets have no form here.
    pub(crate) air: AirNumbers,
    pub(crate) profile: String,
    /// Longest time one job may take, in ms.
    pub(crate) job_ms_max: u64,
    out: Box<Effects>,
    life: u32,
    booted_ms: u64,
    alarm: u64,
    work: VecDeque<Work>,
    helper_free_ms: u64,
    woken_ms: u64,
    woken_in_a_row: u32,
}

/// The fleet and everything between.
pub(crate) struct World {
    pub(crate) seed: u64,
    pub(crate) now_ms: u64,
    pub(crate) random: Random,
    pub(crate) machines: Vec<Machine>,
    pub(crate) net: Net,
    pub(crate) judge: Judge,
    pub(crate) answers: BTreeMap<(usize, u32, u32), Vec<Response>>,
    pub(crate) data: BTreeMap<(usize, u32, u32), Vec<u8>>,
    events: BTreeMap<(u64, u64), Event>,
    last_event: u64,
    pub(crate) last_number: u32,
}

impl World {
    pub(crate) fn new(seed: u64) -> World {
        World {
            seed,
            now_ms: 0,
            random: Random::new(seed),
            machines: Vec::new(),
            net: Net::default(),
            judge: Judge::default(),
            answers: BTreeMap::new(),
            data: BTreeMap::new(),
            events: BTreeMap::new(),
            last_event: 0,
            last_number: 0,
        }
    }

    /// Adds a machine and starts it.
    pub(crate) fn add(&mut self, settings: Settings) -> usize {
        let quota_bytes = settings.quota_bytes;
        self.machines.push(Machine {
            settings,
            node: None,
            engine: Engine::new(quota_bytes),
            flash: None,
            folders: Folders::default(),
            hasher: Hasher::default(),
            notes: Vec::new(),
            clients: BTreeMap::new(),
            wakes: BTreeMap::new(),
            stopped: false,
            readings: Readings::default(),
            readings_taken: 0,
            clock_off_ms: 0,
            wake_ups: 0,
            input_ms: None,
            telemetry: 0,
            air: AirNumbers::default(),
            profile: String::new(),
            job_ms_max: 4,
            out: Box::default(),
            life: 0,
            booted_ms: 0,
            alarm: 0,
            work: VecDeque::new(),
            helper_free_ms: 0,
            woken_ms: 0,
            woken_in_a_row: 0,
        });
        self.net.links.push(net::Link::default());
        let node = self.machines.len() - 1;
        self.start(node);
        node
    }

    /// Starts a machine that is off, with a new epoch.
    pub(crate) fn start(&mut self, node: usize) {
        if self.machines[node].node.is_some() {
            return;
        }
        let epoch = self.random.next() >> 1;
        let now_ms = self.now_ms;
        let machine = &mut self.machines[node];
        let saved = machine.engine.settings.get(STARTS_KEY).map(|value| value.as_ref());
        machine.settings.starts = start::with(saved, Start { epoch, log: machine.engine.last_seq });
        machine.booted_ms = now_ms;
        machine.stopped = false;
        machine.air = AirNumbers::default();
        machine.node = Some(Node::new(&machine.settings));
        self.input(node, Input::Start);
        self.connect(node);
    }

    /// The power goes: work that was not finished is lost, or was finished and nobody learnt of it.
    pub(crate) fn crash(&mut self, node: usize) {
        let was_done = self.random.chance(300);
        let machine = &mut self.machines[node];
        if machine.node.take().is_none() {
            return;
        }
        machine.life += 1;
        if was_done && let Some(Work::Store(_, job)) = machine.work.pop_front() {
            machine.engine.run(job);
        }
        machine.work.clear();
        machine.helper_free_ms = 0;
        machine.engine.crash();
        machine.hasher.crash();
        machine.folders.crash();
        machine.clients.clear();
        while machine.out.next_effect().is_some() {}
        *machine.out = Effects::default();
        self.lose_link(node);
    }

    /// The store is gone and a new one made.
    pub(crate) fn wipe(&mut self, node: usize) {
        assert!(self.machines[node].node.is_none(), "only a machine that is off can be wiped");
        let store = self.random.next() >> 1;
        let machine = &mut self.machines[node];
        machine.engine = Engine::new(machine.settings.quota_bytes);
        machine.settings.store = store;
    }

    /// Puts a node's settings in force, as they are now.
    pub(crate) fn reload(&mut self, node: usize) {
        let now = self.time(node);
        let machine = &mut self.machines[node];
        machine.node.as_mut().expect("the node runs").reload(now, &machine.settings);
    }

    pub(crate) fn time(&self, node: usize) -> Time {
        let wall_ms = START_MS + i64::try_from(self.now_ms).expect("simulated time is short");
        let machine = &self.machines[node];
        Time { mono_ms: self.now_ms - machine.booted_ms, wall_ms: wall_ms + machine.clock_off_ms }
    }

    pub(crate) fn name(&self, node: usize) -> NodeName {
        self.machines[node].settings.me.clone()
    }

    pub(crate) fn index(&self, name: &NodeName) -> Option<usize> {
        self.machines.iter().position(|machine| machine.settings.me == *name)
    }

    pub(crate) fn schedule(&mut self, after_ms: u64, event: Event) {
        self.last_event += 1;
        self.events.insert((self.now_ms + after_ms, self.last_event), event);
    }

    /// Runs everything that happens until `ms` later.
    pub(crate) fn run_ms(&mut self, ms: u64) {
        let end_ms = self.now_ms + ms;
        while self.events.first_key_value().is_some_and(|((at_ms, _), _)| *at_ms <= end_ms) {
            self.step();
        }
        self.now_ms = end_ms;
    }

    /// Runs until the claim holds; fails when it does not within `ms`.
    pub(crate) fn run_until(&mut self, ms: u64, claim: &str, mut holds: impl FnMut(&World) -> bool) {
        let end_ms = self.now_ms + ms;
        while !holds(self) {
            let next_ms = self.events.first_key_value().map(|((at_ms, _), _)| *at_ms);
            if next_ms.is_none_or(|at_ms| at_ms > end_ms) {
                panic!("seed {}: not within {ms} ms: {claim}\n{}", self.seed, self.describe());
            }
            self.step();
        }
    }

    fn step(&mut self) {
        let Some(((at_ms, _), event)) = self.events.pop_first() else { return };
        self.now_ms = at_ms;
        match event {
            Event::Worked { node, life } if self.machines[node].life == life => self.worked(node),
            Event::Cut { node, life } if self.machines[node].life == life => self.was_cut(node),
            Event::Timer { node, life, alarm } => {
                let machine = &self.machines[node];
                if machine.life == life && machine.alarm == alarm && machine.node.is_some() {
                    self.woken(node);
                }
            }
            Event::ClientFrame { node, life, client } if self.machines[node].life == life => {
                self.client_frame(node, client);
            }
            Event::ClientReady { node, life, client } if self.machines[node].life == life => {
                self.input(node, Input::ClientReady(ClientId(client)));
            }
            Event::ClientSilent { node, life, client } if self.machines[node].life == life => {
                self.input(node, Input::ClientSilent(ClientId(client)));
            }
            Event::Worked { .. }
            | Event::Cut { .. }
            | Event::ClientFrame { .. }
            | Event::ClientSilent { .. }
            | Event::ClientReady { .. } => {}
            Event::Sent { node, connection, token } => {
                self.judge.blocks_under_way.remove(&(node, token));
                if self.net.links[node].is_up_as(connection) {
                    self.input(node, Input::Sent { token });
                }
            }
            Event::AtBroker { connection, message } => self.at_broker(connection, message),
            Event::Arrives { connection, message } => self.arrives(connection, message),
            Event::Connects { node } => self.connects(node),
            Event::Notices { node, connection } => self.notices(node, connection),
        }
    }

    fn woken(&mut self, node: usize) {
        let now_ms = self.now_ms;
        let machine = &mut self.machines[node];
        let Some(core) = &mut machine.node else { return };
        let Some((_, why)) = core.deadline() else { return };
        core.woken(Woken::Timer(why), 1);
        *machine.wakes.entry(why).or_default() += 1;
        machine.woken_in_a_row = if machine.woken_ms == now_ms { machine.woken_in_a_row + 1 } else { 0 };
        machine.woken_ms = now_ms;
        let busy = machine.woken_in_a_row > WAKES_IN_A_ROW_MAX;
        assert!(!busy, "seed {}: {} loops: {why}", self.seed, machine.settings.me);
        self.input(node, Input::Wake);
    }

    fn worked(&mut self, node: usize) {
        // The helper may let everything else go before a batch that has not begun.
        let overtakes = self.random.chance(500);
        let machine = &mut self.machines[node];
        let is_batch = |work: &Work| matches!(work, Work::Store(_, Job::Commit { .. }));
        let first_other = machine.work.iter().position(|work| !is_batch(work)).filter(|_| overtakes);
        let Some(work) = machine.work.remove(first_other.unwrap_or(0)) else { return };
        match work {
            Work::Store(job, what) => {
                let told = machine.flash.as_ref().map(|_| (Flash::ops(&what), wants_checkpoint(&what)));
                let done = machine.engine.run(what);
                if let Some((flash, (ops, wants_checkpoint))) = machine.flash.as_mut().zip(told) {
                    flash.done(ops, wants_checkpoint, &done);
                }
                self.input(node, Input::JobDone { job, done });
            }
            Work::File(file, what) => {
                if let Some(done) = machine.folders.run(file, what) {
                    self.input(node, Input::FileDone { file, done });
                }
            }
        }
    }

    /// Calls a core and carries out what it wants.
    pub(crate) fn input(&mut self, node: usize, input: Input) {
        let now = self.time(node);
        let machine = &mut self.machines[node];
        let Some(core) = &mut machine.node else { return };
        // what comes in one moment comes to a processor that is awake
        if machine.input_ms.replace(self.now_ms) != Some(self.now_ms) {
            machine.wake_ups += 1;
        }
        core.handle(now, input, &mut machine.out);
        assert_eq!(machine.out.dropped(), 0, "seed {}: effects or messages were dropped", self.seed);
        loop {
            let machine = &mut self.machines[node];
            let Some(effect) = machine.out.next_effect() else { break };
            self.act(node, effect);
        }
        self.set_alarm(node);
    }

    fn set_alarm(&mut self, node: usize) {
        let machine = &mut self.machines[node];
        machine.alarm += 1;
        let Some((at_ms, _)) = machine.node.as_ref().and_then(Node::deadline) else { return };
        let after_ms = (machine.booted_ms.saturating_add(at_ms)).saturating_sub(self.now_ms);
        let event = Event::Timer { node, life: machine.life, alarm: machine.alarm };
        if after_ms < 1 << 40 {
            self.schedule(after_ms, event);
        }
    }

    fn act(&mut self, node: usize, effect: Effect) {
        match effect {
            Effect::Job { job, what } => self.work(node, Work::Store(job, what)),
            Effect::File { file, what } => self.work(node, Work::File(file, what)),
            Effect::Cut { stream, cutter } => self.hash(node, stream, cutter),
            Effect::Send { token, to, channel, payload } => {
                let from = self.name(node);
                self.judge_sent(node, token, &to, channel, &payload);
                self.publish(node, Some(token), Message { from, to, channel, payload });
            }
            Effect::Presence(presence) => {
                let epoch = self.machines[node].settings.epoch();
                let state = match presence {
                    Presence::Online => "online",
                    Presence::Sleeping => "sleeping",
                    Presence::Offline => "offline",
                };
                self.publish_state(node, state, epoch);
            }
            Effect::Pull(ClientId(client)) => self.pull(node, client),
            Effect::PullIfThere(ClientId(client)) => self.pull_if_there(node, client),
            Effect::Reply { caller, response } => {
                self.judge_reply(node, &response);
                self.answers.entry(key(node, caller)).or_default().push(*response);
            }
            Effect::ReplyData { caller, bytes } => {
                self.data.entry(key(node, caller)).or_default().extend_from_slice(&bytes);
                let life = self.machines[node].life;
                self.schedule(1, Event::ClientReady { node, life, client: caller.client.0 });
            }
            Effect::ReplyDataEnd { caller } => {
                let number = caller.number;
                // as good as any answer that no get has
                self.answers.entry((node, caller.client.0, number)).or_default().push(Response::Flushed);
            }
            Effect::Note(note) => self.machines[node].notes.push(note),
            Effect::Measure => {
                let air = self.machines[node].air;
                self.input(node, Input::Measured(ProcessNumbers { air, ..ProcessNumbers::default() }));
            }
            Effect::Sense => {
                self.machines[node].readings_taken += 1;
                self.input(node, Input::Sensed(self.machines[node].readings));
            }
            Effect::Radio(up) => self.radio(node, up),
            Effect::Telemetry(payload) => {
                self.machines[node].telemetry += 1;
                self.count_sent(node, &payload);
            }
            Effect::Profile(steering) => self.machines[node].profile.clone_from(&steering.name),
            Effect::Stopped => self.machines[node].stopped = true,
        }
    }

    fn work(&mut self, node: usize, work: Work) {
        let took_ms = self.random.below(self.machines[node].job_ms_max + 1);
        let machine = &mut self.machines[node];
        machine.helper_free_ms = machine.helper_free_ms.max(self.now_ms) + took_ms;
        machine.work.push_back(work);
        let (after_ms, life) = (machine.helper_free_ms - self.now_ms, machine.life);
        self.schedule(after_ms, Event::Worked { node, life });
    }

    /// What a failing claim is shown with.
    pub(crate) fn describe(&self) -> String {
        let mut text = format!("at {} ms\n", self.now_ms);
        for (index, machine) in self.machines.iter().enumerate() {
            let link = &self.net.links[index];
            text += &format!(
                "{}: running {}, link {}, {} names, {} blocks, wakes {:?}, last notes {:?}\n",
                machine.settings.me,
                machine.node.is_some(),
                link.is_up(),
                machine.engine.names.len(),
                machine.engine.blocks.len(),
                machine.wakes,
                machine.notes.iter().rev().take(3).collect::<Vec<_>>(),
            );
        }
        text + &self.differences()
    }

    /// The first names that do not stand for the same everywhere.
    fn differences(&self) -> String {
        let names: BTreeSet<&Name> =
            self.machines.iter().flat_map(|machine| machine.engine.names.keys()).collect();
        let lines = names.into_iter().filter_map(|name| {
            let shown = |machine: &Machine| {
                let binding = machine.engine.binding(name)?;
                let whole = if machine.engine.is_complete(&binding) { "" } else { " incomplete" };
                Some(format!("{:?} {:?}{whole}", binding.version, binding.content))
            };
            let all: Vec<Option<String>> = self.machines.iter().map(shown).collect();
            let differs = all.iter().any(|one| *one != all[0]);
            differs.then(|| format!("{name}: {all:#?}\n"))
        });
        lines.take(24).collect()
    }
}

fn key(node: usize, caller: Caller) -> (usize, u32, u32) {
    (node, caller.client.0, caller.number)
}

impl World {
    fn client_frame(&mut self, node: usize, client: u32) {
        let Some(connection) = self.machines[node].clients.get_mut(&client) else { return };
        if !connection.pulled {
            return;
        }
        let Some((number, frame)) = connection.frames.pop_front() else { return };
        connection.pulled = false;
        let caller = Caller { client: ClientId(client), number };
        let input = match frame {
            Frame::Ask(request) => Input::ClientAsked { caller, request },
            Frame::Data(bytes) => Input::ClientData { caller, bytes },
            Frame::End => Input::ClientDataEnd { caller },
        };
        self.input(node, input);
    }

    fn pull_if_there(&mut self, node: usize, client: u32) {
        let life = self.machines[node].life;
        let connection = self.machines[node].clients.get(&client);
        if connection.is_some_and(|connection| connection.frames.is_empty()) {
            return self.schedule(0, Event::ClientSilent { node, life, client });
        }
        self.pull(node, client);
    }

    fn pull(&mut self, node: usize, client: u32) {
        let life = self.machines[node].life;
        let Some(connection) = self.machines[node].clients.get_mut(&client) else { return };
        assert!(!connection.pulled, "seed {}: a frame was pulled twice", self.seed);
        connection.pulled = true;
        if !connection.frames.is_empty() {
            self.schedule(0, Event::ClientFrame { node, life, client });
        }
    }
}
