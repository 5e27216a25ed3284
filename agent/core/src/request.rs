//! What can be asked of a node, and what it answers: one set of types for the local socket, for
//! MQTT control and for the command line. On MQTT they travel as JSON, see `docs/protocol.md`.

use crate::binding::Meta;
use crate::id::{BlockId, NodeName};
use crate::name::Name;
use crate::power::report::PowerReport;
use crate::role::Role;
use serde::{Deserialize, Serialize};

/// What a request is about: an object's name, or the hash of its root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// The newest version bound to this name.
    Name(Name),
    /// The object, or the single block, with this root.
    Cid(BlockId),
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::Name(name) => write!(f, "{}", name.as_str()),
            Target::Cid(id) => write!(f, "{id}"),
        }
    }
}

/// One request. `Put` and `Get` carry data and exist on the local socket only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Store the data frames that follow under `name`.
    Put {
        /// Where the object will be found.
        name: Name,
        /// Modification time and mode; the size is counted.
        meta: Meta,
        /// Neither this put nor what its connection says next is in a hurry: the profile's flush age may pass
        /// before either is looked at.
        #[serde(default)]
        patient: bool,
    },
    /// Make everything handed over so far durable now, without waiting for the profile's age.
    Flush,
    /// Send what waits for peers now, without waiting for the profile's age or its next sync window.
    Send,
    /// Send `length` bytes from `offset` as data frames; the whole object without `length`.
    Get {
        /// Which object.
        target: Target,
        /// First byte.
        #[serde(default)]
        offset: u64,
        /// How many bytes at the most.
        #[serde(default)]
        length: Option<u64>,
    },
    /// One page of names under a prefix, in order.
    List {
        /// Only names that start with this.
        #[serde(default)]
        prefix: String,
        /// Only names after this one.
        #[serde(default)]
        after: Option<Name>,
    },
    /// Delete a name here and, by sync, where it went.
    Remove {
        /// The name to delete.
        name: Name,
    },
    /// Delete what is stored here under a CID and no object needs: the block, and what it lists if it is a manifest.
    Erase {
        /// The block, or the root.
        cid: BlockId,
    },
    /// Ask the master for an object and keep it here.
    Fetch {
        /// Which object.
        target: Target,
    },
    /// Everything the node knows of itself.
    Status,
    /// The profile in force, what the sensors say, what the node costs.
    Power,
    /// Use another profile.
    Profile {
        /// Its name; none: the configured one again.
        #[serde(default)]
        profile: Option<String>,
        /// For how long; none: until the next start.
        #[serde(default)]
        seconds: Option<u64>,
    },
    /// Read every block and check it.
    Verify,
    /// Make the index again from the log.
    IndexRebuild,
    /// Ask another node, signed with this node's key. Local socket only.
    Remote {
        /// The node to ask.
        node: NodeName,
        /// What to ask it.
        request: Box<Request>,
    },
}

impl Request {
    /// Whether a repetition could change something; such commands leave their counter in the log.
    pub fn changes_something(&self) -> bool {
        matches!(
            self,
            Request::Remove { .. }
                | Request::Erase { .. }
                | Request::Fetch { .. }
                | Request::IndexRebuild
                | Request::Profile { .. }
        )
    }

    /// Whether it may take minutes, so that who asked has to hear meanwhile that it is under way.
    pub fn takes_long(&self) -> bool {
        matches!(
            self,
            Request::Erase { .. } | Request::Fetch { .. } | Request::Verify | Request::IndexRebuild
        )
    }

    /// Whether the request may come over MQTT.
    pub fn may_be_remote(&self) -> bool {
        !matches!(self, Request::Put { .. } | Request::Get { .. } | Request::Remote { .. })
    }
}

/// One object of a listing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Its name.
    pub name: Name,
    /// Its root, as a CID.
    pub cid: BlockId,
    /// Size, modification time, mode.
    pub meta: Meta,
    /// The node that wrote this version.
    pub origin: NodeName,
    /// Set on the copy that lost a conflict: the name it was written under.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conflict_of: Option<Name>,
}

/// One answer. `Progress` may come any number of times before the last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Response {
    /// A put is on flash, synced.
    Stored {
        /// The name.
        name: Name,
        /// The root.
        cid: BlockId,
        /// Bytes.
        size: u64,
        /// Blocks, manifests aside.
        blocks: u64,
        /// The same content was bound already; nothing changed.
        unchanged: bool,
    },
    /// Everything handed over before is on flash, synced.
    Flushed,
    /// The data frames that follow are this object's.
    Object {
        /// What was found.
        object: Listed,
    },
    /// A page of names.
    Names {
        /// The objects.
        objects: Vec<Listed>,
        /// Ask again with this as `after`; nothing when this was the last page.
        next: Option<Name>,
    },
    /// The name is deleted.
    Removed {
        /// The name.
        name: Name,
    },
    /// The block is deleted.
    Erased {
        /// The block, or the root.
        cid: BlockId,
        /// Blocks deleted, itself and below it; what other objects need stays.
        blocks: u64,
    },
    /// The object is here, on flash.
    Fetched {
        /// The object.
        object: Listed,
    },
    /// The master will be asked when there is a link.
    Queued {
        /// Requests waiting.
        waiting: u32,
    },
    /// See [`Status`].
    Status(Box<Status>),
    /// See [`PowerReport`].
    Power(Box<PowerReport>),
    /// How far a long request is.
    Progress {
        /// Done so far.
        done: u64,
        /// In all, as far as known.
        total: u64,
        /// Of what.
        unit: Unit,
    },
    /// Every live block was read.
    Verified {
        /// Blocks read.
        blocks: u64,
        /// Their bytes.
        bytes: u64,
        /// Blocks that are not what their name says.
        damaged: Vec<BlockId>,
        /// Objects that need a damaged or missing block.
        incomplete: Vec<Name>,
    },
    /// The index was made again.
    Rebuilt {
        /// Blocks found in the log.
        blocks: u64,
        /// Names found in the log.
        names: u64,
    },
    /// It did not work.
    Error(Failure),
}

impl Response {
    /// Whether no other answer to the same request follows.
    pub fn is_last(&self) -> bool {
        !matches!(self, Response::Progress { .. })
    }
}

/// What a progress counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Blocks.
    Blocks,
}

/// Why a request failed, for programs (`kind`) and for people (`message`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// For programs.
    pub kind: FailureKind,
    /// For people: the thing and the way out.
    pub message: String,
}

impl Failure {
    /// A failure of `kind` that says `message`.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Failure { kind, message: message.into() }
    }
}

/// The kinds of failure; the command line's exit codes follow them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// No such name or block.
    NotFound,
    /// The request makes no sense.
    Invalid,
    /// Stored bytes are not what they were.
    Damaged,
    /// The quota or the disk is full.
    Full,
    /// The role or the peer may not do that.
    Forbidden,
    /// A peer could not be reached in time.
    Unreachable,
    /// Too much at once; try again.
    Busy,
    /// The disk failed.
    Disk,
}

/// What a node says of itself. Counters count since the start of the process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The node's name.
    pub node: String,
    /// The fleet.
    pub fleet: String,
    /// Its role.
    pub role: Option<Role>,
    /// Version of the program.
    pub version: String,
    /// Milliseconds since it started.
    pub uptime_ms: u64,
    /// The values in force and where each came from, from the shell.
    pub settings: Vec<SettingInForce>,
    /// The store's own status, from the engine.
    pub store: StoreNumbers,
    /// The link to the broker.
    pub link: LinkStatus,
    /// One line a peer with a session.
    pub peers: Vec<PeerStatus>,
    /// Ingest.
    pub ingest: IngestNumbers,
    /// Sync.
    pub sync: SyncNumbers,
    /// The last verification, and the next one.
    #[serde(default)]
    pub scrub: ScrubNumbers,
    /// Power.
    pub power: PowerNumbers,
    /// The process, as the kernel, its disk and its link count it; absent where the kernel does not say.
    pub process: ProcessNumbers,
}

/// One value in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingInForce {
    /// Its key.
    pub key: String,
    /// Its value.
    pub value: String,
    /// Who said so.
    pub from: String,
}

/// The store in numbers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StoreNumbers {
    /// Blocks that can be read.
    pub blocks: u64,
    /// Names bound, deletions included.
    pub names: u64,
    /// Segment files.
    pub segments: u64,
    /// Emptied ones that wait to be segments again; they go as soon as their room is needed.
    pub spare_segments: u64,
    /// Their bytes of disk, part of `used_bytes`.
    pub spare_bytes: u64,
    /// Bytes of disk really in use.
    pub used_bytes: u64,
    /// The most it may use.
    pub quota_bytes: u64,
    /// Kept back so that deletion and start-up work when full.
    pub reserve_bytes: u64,
    /// Bytes offered to the store.
    pub offered_bytes: u64,
    /// Bytes of those that were new.
    pub stored_bytes: u64,
    /// Bytes written to the log, the index and the filter.
    pub written_bytes: u64,
    /// Batches made durable.
    pub batches: u64,
    /// Syncs asked of the disk.
    pub syncs: u64,
    /// Reads the cache answered.
    pub cache_hits: u64,
    /// Reads it did not.
    pub cache_misses: u64,
    /// Lookups the filter answered alone.
    pub filter_skips: u64,
    /// Blocks known to be damaged.
    pub damaged: u64,
    /// Batches or records set aside at start because they were damaged.
    pub quarantined: u64,
    /// Segment files that the device does not read, for which nothing is given back; up to
    /// [`UNREAD_LISTED_MAX`](crate::limits::UNREAD_LISTED_MAX).
    #[serde(default)]
    pub unread: Vec<String>,
    /// What opening found, for people; empty when all was well.
    pub notes: Vec<String>,
}

/// The link to the broker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkStatus {
    /// Connected and subscribed.
    pub up: bool,
    /// Why not, and what to do.
    pub reason: String,
    /// Times the link came up.
    pub connects: u64,
}

/// What is between this node and a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// The peer.
    pub node: NodeName,
    /// Its role.
    pub role: Role,
    /// It has answered since the link came up.
    pub session: bool,
    /// Everything up to this sequence number is acknowledged by it.
    pub acknowledged_seq: u64,
    /// Everything of ours that concerns it has been acknowledged.
    pub outbox_empty: bool,
}

/// Ingest in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IngestNumbers {
    /// Objects stored.
    pub objects: u64,
    /// Objects that were there already.
    pub unchanged: u64,
    /// Bytes taken in.
    pub bytes: u64,
    /// Blocks cut.
    pub blocks: u64,
    /// Small blocks that were hashed side by side with others.
    #[serde(default)]
    pub hashed_together: u64,
    /// Bytes of long objects that were cut and hashed beside the loop.
    #[serde(default)]
    pub hashed_beside: u64,
    /// Files of watched folders that could not be taken yet; tried again.
    pub deferred: u64,
    /// Files of watched folders refused for their name.
    pub refused: u64,
    /// Files deleted after their acknowledgement.
    pub deleted: u64,
    /// The last thing that went wrong.
    pub last_problem: String,
}

/// Sync in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncNumbers {
    /// Blocks sent.
    pub blocks_sent: u64,
    /// Their bytes.
    pub bytes_sent: u64,
    /// Blocks received and asked for.
    pub blocks_received: u64,
    /// Their bytes.
    pub bytes_received: u64,
    /// Blocks received that nobody waits for: repeated, late or claiming another hash.
    pub blocks_unasked: u64,
    /// Objects this node has taken from peers.
    pub objects_received: u64,
    /// Objects peers have acknowledged.
    pub objects_acknowledged: u64,
    /// Objects a peer refused.
    pub objects_refused: u64,
    /// Messages dropped: they did not parse, were too large, unsigned, or not for this role.
    pub messages_dropped: u64,
    /// Messages sent.
    pub messages_sent: u64,
    /// Messages received.
    pub messages_received: u64,
    /// The last reason for a drop or a refusal.
    pub last_problem: String,
    /// Conflicts seen.
    pub conflicts: u64,
    /// The latest of them.
    pub conflicted_names: Vec<Name>,
}

/// Power in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PowerNumbers {
    /// Turns of the loop.
    pub turns: u64,
    /// Times the loop woke by its own timer, and why.
    pub timer_wakes: Vec<WakeReason>,
    /// Turns that took longer than 20 ms.
    pub stalls: u64,
    /// The longest turn.
    pub longest_turn_ms: u64,
    /// Effects or messages dropped at a bound; anything but 0 is a defect.
    pub dropped: u64,
}

/// Verifications of everything, asked for or by the profile's period.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubNumbers {
    /// Those that came to their end since the start of the process.
    pub ended: u64,
    /// Blocks read and blocks in all, of the one under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub under_way: Option<(u64, u64)>,
    /// When the last one ended, in milliseconds since 1970 by the machine's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_ms: Option<i64>,
    /// Milliseconds until the next one; none: none is under way and none will begin by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_in_ms: Option<u64>,
    /// Blocks the last one has read since this start.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Blocks it has found damaged, up to [`VERIFY_LISTED_MAX`](crate::limits::VERIFY_LISTED_MAX).
    pub damaged: u64,
    /// Some objects that need a damaged or missing block.
    pub incomplete: Vec<Name>,
}

/// How often a deadline woke the loop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WakeReason {
    /// The reason the actor gave.
    pub why: String,
    /// How often.
    pub count: u64,
}

/// What has gone over the air since the process started: MQTT packets as they are, without TLS and TCP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AirNumbers {
    /// Messages published.
    pub messages_sent: u64,
    /// Bytes of all packets sent: those that connect, subscribe, acknowledge and ping are among them.
    pub bytes_sent: u64,
    /// Messages received.
    pub messages_received: u64,
    /// Bytes of all packets received.
    pub bytes_received: u64,
}

/// The process as the kernel, its disk and its link count it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessNumbers {
    /// Bytes resident.
    pub resident_bytes: Option<u64>,
    /// Times a thread of it slept and was woken.
    pub wake_ups: Option<u64>,
    /// Milliseconds of CPU.
    pub cpu_ms: Option<u64>,
    /// Bytes sent to the disk.
    pub disk_bytes: Option<u64>,
    /// Syncs the store asked of the disk.
    #[serde(default)]
    pub syncs: Option<u64>,
    /// Bytes the store wrote: log, index and filter.
    #[serde(default)]
    pub flash_bytes: Option<u64>,
    /// What went over the air.
    #[serde(default)]
    pub air: AirNumbers,
}
