//! The messages of sync, byte for byte those of `docs/protocol.md`: postcard, one message a payload.
//!
//! Refused, and counted by the caller: other versions, messages over [`MESSAGE_BYTES_MAX`], lists over
//! their bound, trailing bytes.

use super::buffer::Buffers;
use crate::binding::Binding;
use crate::id::BlockId;
use crate::limits::{ANNOUNCE_ENTRIES_MAX, MESSAGE_BLOCKS_MAX, MESSAGE_BYTES_MAX};
use crate::name::Name;
use crate::request::Target;
use crate::role::Role;
use crate::start::{STARTS_MAX, Start};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::convert::Infallible;

/// A signed message of sync.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SyncMessage {
    /// I am here, and this is what I want to hear of.
    Hello(Hello),
    /// These names have these contents; ask for what you lack.
    Announce(Announce),
    /// Send me these blocks.
    Want(Want),
    /// You may have sent this many blocks of that want in all.
    Credit {
        /// The announcement.
        group: u32,
        /// The want's round.
        round: u32,
        /// Blocks, counted from the beginning of the round.
        limit: u32,
    },
    /// These entries are on my flash, synced, or will never be.
    Ack {
        /// The announcement.
        group: u32,
        /// Index of the entry and what became of it.
        outcomes: Vec<(u16, Outcome)>,
        /// A number in the receiver's log, no less than those under which it has these entries.
        log: u64,
    },
    /// Announce again, later: too much at once.
    Busy {
        /// The announcement.
        group: u32,
    },
    /// Announce this object to me.
    Fetch {
        /// The asker's number for it.
        request: u32,
        /// What.
        target: Target,
    },
    /// There is no such object here.
    NotFound {
        /// The asker's number.
        request: u32,
    },
    /// A block that was wanted can not be read here.
    Missing {
        /// The announcement.
        group: u32,
        /// The want's round.
        round: u32,
        /// The block.
        id: BlockId,
    },
    /// Others have the sessions now: our session, if there was one, has ended; say hello again later.
    Later,
    /// The object can not be given, or not now.
    Unable {
        /// The asker's number.
        request: u32,
        /// Why.
        why: Hindrance,
    },
}

/// Why a fetch can not be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Hindrance {
    /// Ask again, later.
    #[error("the master has too much to do")]
    Busy,
    /// The bytes are not what they were.
    #[error("it is damaged on the master")]
    Damaged,
    /// Ask again, later.
    #[error("the master's disk can not be read")]
    Disk,
}

/// The first message of a session, repeated until it is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Drawn at each start of the process: another one means that all in flight is forgotten.
    pub epoch: u64,
    /// Counts what the sender calls a session: the same one again means that this hello is a repetition.
    pub session: u64,
    /// The store: another one means that every acknowledgement so far is void.
    pub store: u64,
    /// What the sender takes itself to be; the receiver's configuration decides.
    pub role: Role,
    /// Prefixes it wants to hear of.
    pub subscriptions: Vec<String>,
    /// The receiver's epoch and session, whose hello this answers; `None`: please answer.
    pub answers: Option<(u64, u64)>,
    /// The sender's last starts, the present one last; none if it does not say. Who was told of a later change than there
    /// was at one knows that the end of that log is lost, and with it what was acknowledged there.
    pub starts: Vec<Start>,
}

/// A [`Hello`] of version 2.
#[derive(Deserialize)]
struct Hello2 {
    epoch: u64,
    session: u64,
    store: u64,
    role: Role,
    subscriptions: Vec<String>,
    answers: Option<(u64, u64)>,
    log: Option<u64>,
}

impl From<Hello2> for Hello {
    fn from(hello: Hello2) -> Hello {
        let Hello2 { epoch, session, store, role, subscriptions, answers, log } = hello;
        let starts = log.map(|log| Start { epoch, log }).into_iter().collect();
        Hello { epoch, session, store, role, subscriptions, answers, starts }
    }
}

/// Up to [`ANNOUNCE_ENTRIES_MAX`] names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announce {
    /// The sender's number for it; answers refer to it.
    pub group: u32,
    /// The number of the `Fetch` this answers.
    pub request: Option<u32>,
    /// The names and what they are bound to.
    pub entries: Vec<(Name, Binding)>,
    /// A number in the sender's log, no less than those of these entries.
    pub log: u64,
}

/// What a receiver lacks of one announcement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Want {
    /// The announcement.
    pub group: u32,
    /// Counts up with every want of the announcement; blocks of older rounds still count when asked for.
    pub round: u32,
    /// Which blocks.
    pub blocks: Wanted,
    /// How many may be sent before a `Credit` says more.
    pub limit: u32,
}

/// Which blocks a want is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wanted {
    /// The roots of these entries.
    Roots(Vec<u16>),
    /// The children of a manifest, a bit each, least significant first.
    Children {
        /// The manifest, which the receiver has.
        manifest: BlockId,
        /// Set: send it.
        missing: Vec<u8>,
    },
}

/// What became of an announced entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It is on flash, synced.
    Stored,
    /// The receiver has a newer version.
    Superseded,
    /// It is on flash, synced, beside another version: a conflict.
    Conflict,
    /// It will not be taken.
    Refused(Refusal),
}

/// Why an entry is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The sender's role may not announce to the receiver's.
    #[error("its role may not announce to this node")]
    Role,
    /// The content is not what the binding says.
    #[error("its content does not match its binding")]
    Content,
    /// More writers than a version can hold.
    #[error("too many nodes have written this name")]
    Writers,
    /// The sender can not read a block of it.
    #[error("the sender has lost a block of it")]
    Lost,
}

/// Why a payload is no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Over the limit.
    #[error("the message has {0} bytes, {MESSAGE_BYTES_MAX} are the limit")]
    Large(usize),
    /// Not a message of this version.
    #[error("the message does not parse; the peer may run another version")]
    Malformed,
    /// A list over its bound.
    #[error("the message lists too much")]
    Long,
}

impl SyncMessage {
    /// The message's bytes.
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_allocvec(self).expect("sync messages hold only types that postcard can write")
    }

    /// Reads a message whose signature was checked. Those of version 1 say nothing of logs, which a message says last;
    /// a hello of version 2 knows of one start.
    pub fn decode(version: u8, bytes: &[u8]) -> Result<Self, WireError> {
        let with_log;
        let bytes = if version == 1 && matches!(bytes.first(), Some(0 | 1 | 4)) {
            with_log = [bytes, &[0]].concat();
            &with_log
        } else {
            bytes
        };
        let message = match bytes {
            [0, hello @ ..] if version < 3 => SyncMessage::Hello(decode_all::<Hello2>(hello)?.into()),
            _ => decode_all(bytes)?,
        };
        let long = match &message {
            SyncMessage::Hello(hello) => {
                hello.subscriptions.len() > ANNOUNCE_ENTRIES_MAX || hello.starts.len() > STARTS_MAX
            }
            SyncMessage::Announce(announce) => announce.entries.len() > ANNOUNCE_ENTRIES_MAX,
            SyncMessage::Want(Want { blocks: Wanted::Roots(roots), .. }) => {
                roots.len() > ANNOUNCE_ENTRIES_MAX
            }
            SyncMessage::Ack { outcomes, .. } => outcomes.len() > ANNOUNCE_ENTRIES_MAX,
            SyncMessage::Want(_)
            | SyncMessage::Credit { .. }
            | SyncMessage::Busy { .. }
            | SyncMessage::Fetch { .. }
            | SyncMessage::NotFound { .. }
            | SyncMessage::Missing { .. }
            | SyncMessage::Unable { .. }
            | SyncMessage::Later => false,
        };
        if long { Err(WireError::Long) } else { Ok(message) }
    }
}

fn decode_all<'b, T: Deserialize<'b>>(bytes: &'b [u8]) -> Result<T, WireError> {
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(WireError::Large(bytes.len()));
    }
    match postcard::take_from_bytes(bytes) {
        Ok((message, [])) => Ok(message),
        Ok(_) | Err(_) => Err(WireError::Malformed),
    }
}

/// Up to [`MESSAGE_BLOCKS_MAX`] blocks for one announcement: the group, then each block behind its length, all
/// little-endian `u32`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// The announcement.
    pub group: u32,
    /// The blocks.
    pub blocks: Vec<Bytes>,
}

/// Bytes a block takes in a [`Blocks`] message beside its own.
pub const BLOCK_HEAD: usize = 4;
/// Bytes of a [`Blocks`] message before its first block.
pub const BLOCKS_HEAD: usize = 5;
const BLOCKS_VERSION: u8 = 1;

impl Blocks {
    /// Reads a message; the blocks share its memory.
    pub fn decode(mut bytes: Bytes) -> Result<Self, WireError> {
        if bytes.len() > MESSAGE_BYTES_MAX {
            return Err(WireError::Large(bytes.len()));
        }
        if bytes.len() < BLOCKS_HEAD || bytes[0] != BLOCKS_VERSION {
            return Err(WireError::Malformed);
        }
        let head = bytes.split_to(BLOCKS_HEAD);
        let group = u32::from_le_bytes([head[1], head[2], head[3], head[4]]);
        let mut blocks = Vec::new();
        while !bytes.is_empty() {
            if bytes.len() < BLOCK_HEAD {
                return Err(WireError::Malformed);
            }
            let head = bytes.split_to(BLOCK_HEAD);
            let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
            if length == 0 || length > bytes.len() {
                return Err(WireError::Malformed);
            }
            if blocks.len() == MESSAGE_BLOCKS_MAX {
                return Err(WireError::Long);
            }
            blocks.push(bytes.split_to(length));
        }
        Ok(Blocks { group, blocks })
    }
}

/// [`Blocks`] messages in the making: a block is read to where it will be sent from.
#[derive(Debug)]
pub struct Packing {
    group: u32,
    buffers: Buffers,
    /// As long as the longest message, of which so much is filled; none before its first block.
    message: Option<Vec<u8>>,
    filled: usize,
    blocks: u32,
    packs: Vec<Pack>,
}

/// What became of a block that was to be read to a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placed {
    /// It has so many bytes, which lie at the beginning of the room.
    Bytes(usize),
    /// There is none.
    Absent,
    /// It is longer than the room.
    TooLong,
}

/// A [`Blocks`] message, and what it carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pack {
    /// The message.
    pub payload: Bytes,
    /// How many blocks.
    pub blocks: u32,
}

impl Pack {
    /// Bytes of the blocks alone.
    pub fn block_bytes(&self) -> u64 {
        (self.payload.len() - BLOCKS_HEAD - BLOCK_HEAD * self.blocks as usize) as u64
    }
}

impl Packing {
    /// Nothing yet, for this announcement.
    pub fn new(group: u32, buffers: &Buffers) -> Self {
        Self { group, buffers: buffers.clone(), message: None, filled: 0, blocks: 0, packs: Vec::new() }
    }

    /// Has `read` put a block into the room that is left, or once more into that of a message of its own; `false` if
    /// there is none, or it is longer than a message.
    ///
    /// # Errors
    /// Those of `read`. What it left behind is no block.
    pub fn add<E>(&mut self, mut read: impl FnMut(&mut [u8]) -> Result<Placed, E>) -> Result<bool, E> {
        loop {
            let message = self.message.get_or_insert_with(|| {
                let mut message = self.buffers.take();
                message[0] = BLOCKS_VERSION;
                message[1..BLOCKS_HEAD].copy_from_slice(&self.group.to_le_bytes());
                self.filled = BLOCKS_HEAD;
                message
            });
            let start = self.filled + BLOCK_HEAD;
            let Some(room) = message.get_mut(start..) else {
                self.close();
                continue;
            };
            match read(room)? {
                Placed::Bytes(length) => {
                    let head = u32::try_from(length).expect("a message is short").to_le_bytes();
                    message[self.filled..start].copy_from_slice(&head);
                    self.filled = start + length;
                    self.blocks += 1;
                    return Ok(true);
                }
                Placed::TooLong if self.blocks > 0 => self.close(),
                Placed::TooLong | Placed::Absent => return Ok(false),
            }
        }
    }

    /// As [`Packing::add`], for a block that lies in memory.
    pub fn add_block(&mut self, block: &[u8]) {
        let copy = |room: &mut [u8]| {
            Ok::<_, Infallible>(match room.get_mut(..block.len()) {
                Some(room) => {
                    room.copy_from_slice(block);
                    Placed::Bytes(block.len())
                }
                None => Placed::TooLong,
            })
        };
        let Ok(_added) = self.add(copy);
    }

    /// The messages.
    pub fn finish(mut self) -> Vec<Pack> {
        self.close();
        self.packs
    }

    fn close(&mut self) {
        if let Some(message) = self.message.take()
            && self.blocks > 0
        {
            let payload = self.buffers.lend(message, self.filled);
            self.packs.push(Pack { payload, blocks: std::mem::take(&mut self.blocks) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pack(blocks: &[Bytes]) -> Vec<Pack> {
        let mut packing = Packing::new(7, &Buffers::default());
        blocks.iter().for_each(|block| packing.add_block(block));
        packing.finish()
    }

    #[test]
    fn messages_of_version_1_are_read_and_say_nothing_of_logs() {
        let (entries, outcomes) = (Vec::new(), vec![(3, Outcome::Stored)]);
        let subscriptions = vec!["maps".to_owned()];
        let hello = Hello {
            epoch: 300,
            session: 2,
            store: 77,
            role: Role::Worker,
            subscriptions,
            answers: None,
            starts: Vec::new(),
        };
        for message in [
            SyncMessage::Hello(hello),
            SyncMessage::Announce(Announce { group: 1, request: None, entries, log: 0 }),
            SyncMessage::Ack { group: 4, outcomes, log: 0 },
            SyncMessage::Busy { group: 5 },
        ] {
            let now = message.encode();
            let before =
                if matches!(message, SyncMessage::Busy { .. }) { &now } else { &now[..now.len() - 1] };
            assert_eq!(SyncMessage::decode(1, before), Ok(message.clone()));
            assert_eq!(
                SyncMessage::decode(2, &now),
                Ok(message.clone()),
                "no start is written as no log was"
            );
            assert_eq!(SyncMessage::decode(3, &now), Ok(message));
            assert_eq!(SyncMessage::decode(3, &before[..before.len() - 1]), Err(WireError::Malformed));
        }
    }

    #[test]
    fn a_hello_of_version_2_tells_of_one_start_and_none_tells_of_too_many() {
        // as the example of docs/protocol.md was until version 3
        let bytes = [0, 0xac, 2, 2, 77, 1, 1, 4, b'm', b'a', b'p', b's', 0, 1, 0x80, 1];
        let Ok(SyncMessage::Hello(hello)) = SyncMessage::decode(2, &bytes) else { panic!("it is a hello") };
        assert_eq!(hello.starts, [Start { epoch: 300, log: 128 }]);
        assert_eq!(SyncMessage::decode(3, &bytes), Err(WireError::Malformed));
        let starts = vec![hello.starts[0]; STARTS_MAX + 1];
        let long = SyncMessage::Hello(Hello { starts, ..hello }).encode();
        assert_eq!(SyncMessage::decode(3, &long), Err(WireError::Long));
    }

    #[test]
    fn packed_blocks_are_read_back_in_as_few_messages_as_hold_them() {
        let block = |length: usize| Bytes::from(vec![length as u8; length]);
        for (lengths, messages) in [
            (vec![], 0),
            (vec![1], 1),
            (vec![120 << 10], 1),
            (vec![32 << 10, 5, 60 << 10], 1),
            (vec![120 << 10, 120 << 10, 1, 6 << 10], 2),
        ] {
            let blocks: Vec<Bytes> = lengths.into_iter().map(block).collect();
            let packs = pack(&blocks);
            assert_eq!(packs.len(), messages);
            let bytes: usize = blocks.iter().map(Bytes::len).sum();
            assert_eq!(packs.iter().map(Pack::block_bytes).sum::<u64>(), bytes as u64);
            let read = packs.into_iter().flat_map(|pack| {
                let message = Blocks::decode(pack.payload).unwrap();
                assert_eq!((message.group, message.blocks.len()), (7, pack.blocks as usize));
                message.blocks
            });
            assert_eq!(read.collect::<Vec<_>>(), blocks);
        }
    }

    #[test]
    fn the_memory_of_a_message_that_was_sent_takes_the_next() {
        let buffers = Buffers::default();
        let sent = |block: &'static [u8]| {
            let mut packing = Packing::new(7, &buffers);
            packing.add_block(block);
            packing.finish().remove(0).payload
        };
        let first = sent(b"one");
        let memory = first.as_ptr();
        let another = sent(b"another");
        assert_ne!(another.as_ptr(), memory, "the first is on its way");
        drop(first);
        let next = sent(b"next");
        assert_eq!((next.as_ptr(), another.len()), (memory, BLOCKS_HEAD + BLOCK_HEAD + 7));
    }

    #[test]
    fn what_can_not_be_read_leaves_no_trace_in_a_message() {
        let mut packing = Packing::new(1, &Buffers::default());
        let half = |room: &mut [u8], answer: Result<Placed, &'static str>| {
            room[..4].copy_from_slice(b"half");
            answer
        };
        assert_eq!(packing.add(|room| half(room, Err("lost"))), Err("lost"));
        assert_eq!(packing.add(|room| half(room, Ok(Placed::Bytes(4)))), Ok(true));
        assert_eq!(packing.add(|room| half(room, Ok(Placed::Absent))), Ok(false));
        assert_eq!(packing.add(|room| half(room, Ok(Placed::TooLong))), Ok(false), "in a message of its own");
        let [pack] = &packing.finish()[..] else { panic!("one message") };
        assert_eq!(Blocks::decode(pack.payload.clone()).unwrap().blocks, [Bytes::from_static(b"half")]);
    }
}
