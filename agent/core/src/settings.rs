//! What the core is told once, checked by the shell's configuration, and again on reload.

use crate::id::NodeName;
use crate::power::plan::PowerPlan;
use crate::request::SettingInForce;
use crate::role::{Evict, Role};
use crate::start::Start;
use ed25519_dalek::{SigningKey, VerifyingKey};
use larder_kernels::Level;

/// A peer this node trusts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub name: NodeName,
    /// What it may do is what this role may do.
    pub role: Role,
    /// What it signs with.
    pub key: VerifyingKey,
}

/// A watched folder; its path and patterns stay in the shell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watch {
    /// Goes before the path inside the folder to make the name; empty or ending in `/`.
    pub prefix: String,
    /// A file is complete when it has not changed for this long.
    pub settle_ms: u64,
    /// Delete the file once it is acknowledged upstream (on a master: stored).
    pub delete_after_ack: bool,
}

/// Bounds of one of the two batchers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchSettings {
    /// So many bytes make a batch due.
    pub bytes: usize,
    /// So long may an item wait, in milliseconds.
    pub age_ms: u64,
}

/// Everything that steers the core.
#[derive(Clone)]
pub struct Settings {
    /// This node.
    pub me: NodeName,
    /// Its fleet.
    pub fleet: String,
    /// Its role.
    pub role: Role,
    /// What it signs with.
    pub key: SigningKey,
    /// Drawn when the store was made.
    pub store: u64,
    /// Its last starts on this store, the present one last.
    pub starts: Vec<Start>,
    /// Whom it trusts.
    pub peers: Vec<Peer>,
    /// Why there is no link before there is one; empty where none is wanted.
    pub unlinked: String,
    /// Prefixes it wants from its master.
    pub subscriptions: Vec<String>,
    /// Whether commands over MQTT are obeyed.
    pub commands: bool,
    /// Watched folders.
    pub watches: Vec<Watch>,
    /// The instructions hashing uses; every level gives the same names.
    pub kernels: Level,
    /// The one timer's period in milliseconds.
    pub tick_ms: u64,
    /// How writes wait.
    pub flush: BatchSettings,
    /// How news for peers wait.
    pub send: BatchSettings,
    /// Blocks a receiver has asked for and not yet stored, for all transfers together.
    pub window_blocks: u32,
    /// Messages the broker has not acknowledged.
    pub in_flight_max: u32,
    /// Peers with a session.
    pub sessions_max: usize,
    /// Fetches that wait for a link.
    pub offline_requests_max: usize,
    /// What makes room on a full store.
    pub evict: Evict,
    /// Bytes the store may use.
    pub quota_bytes: u64,
    /// Clean at this share of the quota.
    pub clean_watermark_percent: u8,
    /// Clean at least this often, in milliseconds.
    pub clean_period_ms: u64,
    /// Bytes moved by one step of cleaning.
    pub clean_step_bytes: u64,
    /// Bytes read by one step of verification.
    pub verify_step_bytes: u64,
    /// Rest between two steps of cleaning or verification, in milliseconds.
    pub step_rest_ms: u64,
    /// Everything is verified by itself so long after the last time; 0: never.
    pub scrub_period_ms: u64,
    /// Rest between two steps of that.
    pub scrub_rest_ms: u64,
    /// The index follows the log at least this often, in milliseconds.
    pub checkpoint_age_ms: u64,
    /// The profiles this node moves between; those above are of the configured one.
    pub power: PowerPlan,
    /// For `status`: the values above and where each came from.
    pub in_force: Vec<SettingInForce>,
    /// Version of the program.
    pub version: String,
}

impl Settings {
    /// Drawn at each start of the process.
    pub fn epoch(&self) -> u64 {
        self.starts.last().map_or(0, |start| start.epoch)
    }

    /// The newest sequence number in the log when the process started.
    pub fn log(&self) -> u64 {
        self.starts.last().map_or(0, |start| start.log)
    }

    /// The peer this node uploads to and fetches from; a master has none.
    pub fn upstream(&self) -> Option<&Peer> {
        match self.role {
            Role::Master => None,
            Role::Worker | Role::Leecher => self.peers.iter().find(|peer| peer.role == Role::Master),
        }
    }
}
