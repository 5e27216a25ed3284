//! Random work under random faults, then peace: everything converges, nothing acknowledged is lost.
//!
//! `LARDER_SIM_SEED=N` replays one seed, `LARDER_SIM_SEEDS=N` runs so many.

use crate::sim::World;
use crate::sim::net::Faults;
use crate::transfer::{is_whole, noise};
use larder_core::request::Request;
use larder_core::version::Relation;
use std::panic::{AssertUnwindSafe, catch_unwind};

const SEEDS: u64 = 200;
/// Simulated time in which everything has converged after the last fault.
const PEACE_MS: u64 = 3_600_000;

fn number(variable: &str) -> Option<u64> {
    #[expect(clippy::disallowed_methods, reason = "the tests' own switch, not the core's")]
    let text = std::env::var(variable).ok()?;
    Some(text.parse().expect("a seed is a number"))
}

#[test]
fn whatever_happens_the_fleet_converges() {
    if let Some(seed) = number("LARDER_SIM_SEED") {
        return storm(seed);
    }
    for seed in 0..number("LARDER_SIM_SEEDS").unwrap_or(SEEDS) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| storm(seed))) {
            eprintln!("replay with LARDER_SIM_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

/// One drawn world.
struct Storm {
    world: World,
    nodes: [usize; 4],
    wiped_master: bool,
}

fn storm(seed: u64) {
    let (mut world, nodes) = World::fleet(seed);
    world.net.faults = Faults {
        double_permille: world.random.below(200),
        late_permille: world.random.below(100),
        late_ms_max: world.random.below(20_000),
        delay_ms_max: 1 + world.random.below(200),
    };
    for node in nodes {
        world.machines[node].job_ms_max = world.random.below(60);
    }
    let mut storm = Storm { world, nodes, wiped_master: false };
    let steps = 30 + storm.world.random.below(60);
    for _ in 0..steps {
        storm.step();
        let pause_ms = storm.world.random.below(3_000);
        storm.world.run_ms(pause_ms);
    }
    storm.peace();
}

impl Storm {
    fn writer(&mut self) -> usize {
        let index = self.world.random.index(3);
        self.nodes[index]
    }

    fn any(&mut self) -> usize {
        let index = self.world.random.index(4);
        self.nodes[index]
    }

    fn step(&mut self) {
        match self.world.random.below(100) {
            0..50 => self.put(),
            50..58 => {
                let (node, name) = (self.writer(), self.name());
                if self.world.machines[node].node.is_some() {
                    self.world.ask(node, Request::Remove { name: name.parse().unwrap() });
                }
            }
            58..62 => {
                let (node, name) = (self.any(), self.name());
                if self.world.machines[node].node.is_some() {
                    let target = larder_core::request::Target::Name(name.parse().unwrap());
                    self.world.ask_as(node, 2, Request::Fetch { target });
                }
            }
            62..72 => {
                let (node, notice_ms) = (self.any(), self.world.random.below(30_000));
                self.world.cut(node, notice_ms);
            }
            72..82 => {
                let node = self.any();
                self.world.mend(node);
            }
            82..88 => {
                let node = self.any();
                self.world.crash(node);
            }
            88..94 => {
                let node = self.any();
                self.world.start(node);
            }
            94..96 => {
                let forgets = self.world.random.chance(500);
                self.world.stop_broker(forgets);
            }
            96..98 => self.world.start_broker(),
            98 => self.world.machines[self.nodes[0]].engine.failing_commits = 1,
            _ => self.wipe_master(),
        }
    }

    fn name(&mut self) -> String {
        let area = ["shared/", "own/"][self.world.random.index(2)];
        format!("{area}{}", self.world.random.below(12))
    }

    fn put(&mut self) {
        let (node, name) = (self.writer(), self.name());
        if self.world.machines[node].node.is_none() {
            return;
        }
        let length = match self.world.random.below(10) {
            0 => 0,
            1..7 => self.world.random.index(5_000),
            7..9 => self.world.random.index(400_000),
            _ => self.world.random.index(3 << 20),
        };
        let content = self.world.random.below(30);
        self.world.put_as(node, 1 + content as u32 % 3, &name, noise(content, length));
    }

    fn wipe_master(&mut self) {
        if self.wiped_master {
            return;
        }
        self.wiped_master = true;
        self.world.crash(self.nodes[0]);
        self.world.wipe(self.nodes[0]);
    }

    fn peace(mut self) {
        let world = &mut self.world;
        world.net.faults = Faults::NONE;
        world.start_broker();
        for node in self.nodes {
            world.machines[node].engine.failing_commits = 0;
            world.start(node);
            world.mend(node);
        }
        let ([master, w1, w2, leecher], wiped) = (self.nodes, self.wiped_master);
        world.run_until(PEACE_MS, "everything converges", |world| {
            [w1, w2].iter().all(|worker| is_below(world, master, *worker))
                && follows(world, master, leecher, wiped)
                && [master, w1, w2, leecher].iter().all(|node| is_whole(world, *node))
        });
        world.run_ms(600_000);
        let wakes: u64 = world.machines.iter().map(|machine| machine.wakes.values().sum::<u64>()).sum();
        world.run_ms(600_000);
        let idle: u64 = world.machines.iter().map(|machine| machine.wakes.values().sum::<u64>()).sum();
        assert!(idle - wakes < 60, "seed {}: an idle fleet wakes\n{}", world.seed, world.describe());
        for node in self.nodes {
            let status = world.status(node);
            assert_eq!(status.power.dropped, 0, "seed {}", world.seed);
            let waiting = status.peers.iter().find(|peer| peer.session && !peer.outbox_empty);
            assert!(waiting.is_none(), "seed {}: {} waits for {waiting:?}", world.seed, status.node);
        }
        assert!([w1, w2].iter().all(|worker| is_below(world, master, *worker)), "seed {}", world.seed);
    }
}

/// Everything a worker has is on the master too, bound to the same. What it has only fetched, and neither
/// wrote nor follows, may have gone on there.
fn is_below(world: &World, master: usize, worker: usize) -> bool {
    let (above, below) = (&world.machines[master].engine, &world.machines[worker].engine);
    below.names.keys().all(|name| {
        let (Some(here), Some(there)) = (below.binding(name), above.binding(name)) else { return false };
        let is_follower = there.version.contains(&world.name(worker));
        let is_older = here.version.order(&there.version) == Relation::Before;
        here.content == there.content || !is_follower && is_older
    })
}

/// A leecher has what its master has under its prefix. After the master's store was lost it may have more, and
/// later versions, for they are then nowhere else.
fn follows(world: &World, master: usize, leecher: usize, wiped: bool) -> bool {
    let (above, below) = (&world.machines[master].engine, &world.machines[leecher].engine);
    let (theirs, mine) = (above.table(), below.table());
    let shared = |name: &&String| name.starts_with("shared/");
    let is_alike = |name: &String| {
        let name = name.parse().unwrap();
        let (Some(there), Some(here)) = (above.binding(&name), below.binding(&name)) else { return false };
        here.content == there.content || wiped && there.version.order(&here.version) == Relation::Before
    };
    theirs.keys().filter(shared).all(is_alike) && (wiped || mine.keys().filter(shared).all(is_alike))
}
