//! Fleets that tests begin with.

use super::World;
use ed25519_dalek::SigningKey;
use larder_core::id::NodeName;
use larder_core::power::plan::PowerPlan;
use larder_core::role::{Evict, Role};
use larder_core::settings::{BatchSettings, Peer, Settings};

pub(crate) const FLEET: &str = "test";

pub(crate) fn name(text: &str) -> NodeName {
    text.parse().expect("tests use names of nodes")
}

/// The key of the node with this name, the same in every world.
pub(crate) fn key(node: &str) -> SigningKey {
    SigningKey::from_bytes(blake3::hash(node.as_bytes()).as_bytes())
}

pub(crate) fn peer(node: &str, role: Role) -> Peer {
    Peer { name: name(node), role, key: key(node).verifying_key() }
}

/// A node of the usual profile that knows these peers.
pub(crate) fn settings(node: &str, role: Role, peers: Vec<Peer>) -> Settings {
    Settings {
        me: name(node),
        fleet: FLEET.into(),
        role,
        key: key(node),
        starts: Vec::new(),
        store: u64::from_le_bytes(blake3::hash(node.as_bytes()).as_bytes()[..8].try_into().unwrap()) >> 1,
        peers,
        subscriptions: Vec::new(),
        commands: true,
        watches: Vec::new(),
        kernels: larder_kernels::Level::detect(),
        tick_ms: 10,
        flush: BatchSettings { bytes: 1 << 20, age_ms: 20 },
        send: BatchSettings { bytes: 256 << 10, age_ms: 50 },
        window_blocks: 64,
        in_flight_max: 32,
        sessions_max: 16,
        unlinked: String::new(),
        offline_requests_max: 16,
        evict: if role == Role::Leecher { Evict::Oldest } else { Evict::Never },
        quota_bytes: 1 << 40,
        clean_watermark_percent: 90,
        clean_period_ms: 3_600_000,
        clean_step_bytes: 1 << 20,
        verify_step_bytes: 1 << 20,
        step_rest_ms: 0,
        scrub_period_ms: 0,
        scrub_rest_ms: 0,
        checkpoint_age_ms: 60_000,
        power: PowerPlan::default(),
        in_force: Vec::new(),
        version: "test".into(),
    }
}

pub(crate) fn master_settings(below: &[(&str, Role)]) -> Settings {
    settings("master", Role::Master, below.iter().map(|(node, role)| peer(node, *role)).collect())
}

pub(crate) fn below_settings(node: &str, role: Role) -> Settings {
    settings(node, role, vec![peer("master", Role::Master)])
}

impl World {
    /// A master and one worker, connected.
    pub(crate) fn pair(seed: u64) -> (World, usize, usize) {
        let mut world = World::new(seed);
        let master = world.add(master_settings(&[("worker", Role::Worker)]));
        let worker = world.add(below_settings("worker", Role::Worker));
        world.run_ms(500);
        (world, master, worker)
    }

    /// A master, two workers and a leecher of `shared`, connected.
    pub(crate) fn fleet(seed: u64) -> (World, [usize; 4]) {
        let mut world = World::new(seed);
        let below = [("w1", Role::Worker), ("w2", Role::Worker), ("leech", Role::Leecher)];
        let master = world.add(master_settings(&below));
        let w1 = world.add(below_settings("w1", Role::Worker));
        let w2 = world.add(below_settings("w2", Role::Worker));
        let mut leecher = below_settings("leech", Role::Leecher);
        leecher.subscriptions = vec!["shared".into()];
        let leecher = world.add(leecher);
        world.run_ms(500);
        (world, [master, w1, w2, leecher])
    }
}
