//! Every bound of the core in one place, each with what happens when it is reached.

/// Bytes of one MQTT payload. Hosted brokers stop at packets of 128 KiB, topic and headers included; a
/// block and its envelope fit.
/// A larger message is refused by the sender and dropped, counted, by the receiver.
pub const MESSAGE_BYTES_MAX: usize = 127 * 1024;

/// Entries of one announcement. Further changes wait for the next one.
pub const ANNOUNCE_ENTRIES_MAX: usize = 64;

/// Bytes of one announcement's entries; the announcement ends before it would exceed them.
pub const ANNOUNCE_BYTES_MAX: usize = 96 * 1024;

/// Announcements on their way to one peer. Further changes wait in the log.
pub const OUT_GROUPS_MAX: usize = 4;

/// Announcements taken in at once from all peers. A further one takes the place of one whose sender has been
/// silent; where there is none it is answered with `Busy`.
pub const IN_GROUPS_MAX: usize = 32;

/// Announcements taken in at once from one peer, answers to fetches aside. A further one is answered with `Busy`.
pub const IN_GROUPS_PEER_MAX: usize = OUT_GROUPS_MAX;

/// Reads a sender has under way for one announcement, each of one message's blocks; so many are begun together,
/// or a quarter of what may be on its way.
pub const SERVE_READS_MAX: usize = 8;

/// Buffers of messages with blocks that were sent and wait for the next, 4 MiB at most: as many as a worker has on
/// their way. A profile with a small window never has so many.
pub const BUFFERS_KEPT_MAX: usize = 32;

/// Blocks of one message. One with more is dropped, counted, by the receiver.
pub const MESSAGE_BLOCKS_MAX: usize = 64;

/// Peers in the configuration. A configuration with more is refused.
pub const PEERS_MAX: usize = 16_384;

/// Effects of one call of [`crate::node::Node::handle`]. A call ends early, and asks to be woken at once,
/// when [`EFFECTS_ROOM`] are left; were the bound reached the effect would be dropped, counted and asserted
/// in tests.
pub const EFFECTS_MAX: usize = 512;

/// Effects that one input or one message between actors may have at the most. What could have more, such as
/// repeating something to every peer, looks before each whether there is this room and goes on in the next call.
pub const EFFECTS_ROOM: usize = 192;

/// Messages between actors waiting inside one call, with the same policy.
pub const MESSAGES_MAX: usize = 1024;

/// Jobs handed to the helper thread and not yet answered. Further ones wait in the Store actor.
pub const JOBS_MAX: usize = 32;

/// Batches handed to the helper thread and not yet answered. What is written next waits in the Store actor.
pub const COMMITS_MAX: usize = 2;

/// Questions waiting in the Store actor. A further one is answered `Busy`.
pub const QUESTIONS_MAX: usize = 512;

/// Writes waiting for a batch. A further one is answered `Busy`.
pub const WRITES_MAX: usize = 2048;

/// Writes of one batch. Further ones go with the next.
pub const BATCH_WRITES_MAX: usize = 256;

/// Fetches of this node that are not answered, those that wait for their turn or for a link included. A further
/// one is answered `Busy`.
pub const FETCHES_MAX: usize = 256;

/// Fetches asked of the master at once; further ones wait for their turn. A master that answers so many of one
/// peer's answers a further one `Busy`.
pub const FETCHES_OPEN_MAX: usize = 16;

/// Local connections at once. A further one is told so and closed.
pub const CLIENTS_MAX: usize = 32;

/// Requests of one connection that are not answered yet. The connection is not read meanwhile.
pub const REQUESTS_PER_CLIENT_MAX: usize = 256;

/// Commands of other nodes that are neither answered nor given up by their askers. A further one is answered
/// `Busy`.
pub const COMMANDS_OPEN_MAX: usize = 64;

/// Verifications and erasures that wait for their turn. A further one is answered `Busy`.
pub const ERRANDS_MAX: usize = 64;

/// Bytes of one frame on the local socket, its header aside.
pub const FRAME_BYTES_MAX: usize = 256 * 1024;

/// Objects being taken in at once. A further put is answered `Busy`, a further file waits.
pub const INGESTS_MAX: usize = 1024;

/// Objects whose data is complete and whose name is not yet bound. No source is read past it; it stays below
/// [`QUESTIONS_MAX`], for each of them asks one.
pub const INGESTS_ENDING_MAX: usize = 256;

/// Bytes an ingest may have taken in and not yet seen stored.
pub const INGEST_WINDOW_BYTES: usize = 2 * 1024 * 1024;

/// Bytes of an object that are cut and hashed on the loop: milliseconds of it in the whole, in turns of one
/// piece. What follows is done beside it, and pays for the two wake-ups of each way there and back.
pub const HASHED_ON_LOOP_BYTES_MAX: u64 = 1024 * 1024;

/// Bytes that are cut at once beside the loop; what waits behind them goes the next time. In the shortest of
/// blocks they are 64 messages of the [`MESSAGES_MAX`] of one call.
pub const CUT_BYTES_MAX: usize = 512 * 1024;

/// Changed files noted and not yet read. Past it the folder is scanned again later.
pub const FILES_NOTED_MAX: usize = 4096;

/// Files of one page of a folder scan.
pub const SCAN_PAGE: usize = 256;

/// Names of one page of a listing.
pub const LIST_PAGE: usize = 256;

/// Bytes a command over MQTT may have, its signature included.
pub const COMMAND_BYTES_MAX: usize = 16 * 1024;

/// Milliseconds a command may be ahead of or behind our clock, when the clock is set at all.
pub const COMMAND_SKEW_MS: i64 = 5 * 60 * 1000;

/// Names of conflicts kept for `status`. Older ones leave the list; the copies themselves stay.
pub const CONFLICTS_SHOWN: usize = 16;

/// Damaged blocks, and incomplete objects, that a verification lists and counts. There may be more; `status` knows
/// of further blocks.
pub const VERIFY_LISTED_MAX: usize = 1_000;

/// Segment files that the device does not read, listed by `status`.
pub const UNREAD_LISTED_MAX: usize = 256;

/// Names of incomplete objects the last verification has found, kept for `status`. Further ones are in the log.
pub const SCRUB_NAMES_SHOWN: usize = 16;
