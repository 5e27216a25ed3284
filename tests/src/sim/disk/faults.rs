//! What else can go wrong with a disk, as data.

use crate::sim::random::Random;
use std::io;

/// An error a call answers with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errno {
    /// EIO: the device failed.
    Io,
    /// ENOSPC: no room.
    Full,
    /// EROFS: the kernel has made the file system read-only.
    ReadOnly,
    /// EMFILE: the process has too many open files.
    TooManyOpen,
    /// A write that stops half-way, then EIO.
    Short,
    /// EIO from reads alone: sectors that went bad.
    Unreadable,
}

impl Errno {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Io, Self::Full, Self::ReadOnly, Self::TooManyOpen, Self::Short, Self::Unreadable];

    pub(super) fn error(self) -> io::Error {
        io::Error::from_raw_os_error(match self {
            Self::Io | Self::Short | Self::Unreadable => 5,
            Self::Full => 28,
            Self::ReadOnly => 30,
            Self::TooManyOpen => 24,
        })
    }

    /// Whether a kernel answers a call of this kind so. ext4 that gave up its journal answers a sync with EROFS too, of
    /// what was written before.
    pub(super) fn fits(self, call: Call) -> bool {
        match self {
            Self::Io => true,
            Self::Full => call.changes() && call != Call::Remove,
            Self::ReadOnly => call.changes(),
            Self::TooManyOpen => matches!(call, Call::Open | Call::Create | Call::List | Call::SyncNames),
            Self::Short => call == Call::Write,
            Self::Unreadable => call == Call::Read,
        }
    }
}

/// What a disk is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Opening a file that is there.
    Open,
    /// Making a file, or emptying one.
    Create,
    /// Listing names.
    List,
    /// Asking for a length, for what a file takes, or for room.
    Ask,
    /// Reading.
    Read,
    /// Writing.
    Write,
    /// Cutting, extending, allocating.
    Length,
    /// Making bytes durable.
    Sync,
    /// Making names durable.
    SyncNames,
    /// Removing a name.
    Remove,
    /// Renaming.
    Rename,
}

impl Call {
    /// Whether it changes what a power cut would leave.
    pub fn changes(self) -> bool {
        match self {
            Self::Open | Self::List | Self::Ask | Self::Read => false,
            Self::Create
            | Self::Write
            | Self::Length
            | Self::Sync
            | Self::SyncNames
            | Self::Remove
            | Self::Rename => true,
        }
    }
}

/// One error at one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Injection {
    /// The number of the call, counted from the making of the disk.
    pub at: u64,
    /// The error.
    pub errno: Errno,
    /// Whether every later call it fits fails too.
    pub lasting: bool,
}

/// Faults, each with its chance in a thousand calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// A read fails, or asking for a length or room.
    pub read_error: u32,
    /// A write fails, half-way or at once.
    pub write_error: u32,
    /// A sync fails: what was written is on the device or dropped, and the next sync says that all is well.
    pub sync_error: u32,
    /// Making, opening, removing or renaming fails.
    pub name_error: u32,
    /// A change finds no room, although there is some.
    pub full: u32,
    /// Opening finds too many open files.
    pub too_many_open: u32,
    /// A change finds the file system read-only, as does every later one until a restart.
    pub read_only: u32,
    /// A sync says it is done and does nothing.
    pub lying_sync: u32,
    /// A read answers with what another place of the file holds.
    pub misdirected_read: u32,
    /// A read answers with what was there before the last sync.
    pub stale_read: u32,
    /// A bit flips on the device at each power cut.
    pub rot: u32,
    /// A bit of the index flips on the device, before a step and at each power cut. The log is whole.
    pub index_rot: u32,
    /// A call fails that has to do with a file that is used again, or was.
    pub recycling: u32,
    /// A call takes seconds.
    pub stall: u32,
    /// Bytes the device has; none for no bound.
    pub room: Option<u64>,
    /// One error at one call.
    pub injection: Option<Injection>,
}

impl Faults {
    /// Faults that a store must survive without losing anything acknowledged.
    pub fn honest(random: &mut Random) -> Self {
        let mut faults = Self::default();
        let weights = [
            &mut faults.read_error,
            &mut faults.write_error,
            &mut faults.sync_error,
            &mut faults.name_error,
            &mut faults.full,
            &mut faults.too_many_open,
            &mut faults.read_only,
            &mut faults.stall,
        ];
        for weight in weights {
            *weight = *random.pick(&[0, 0, 0, 2, 10, 50]);
        }
        faults.index_rot = *random.pick(&[0, 0, 100, 1000]);
        faults.room = random.chance(150).then(|| (3 << 20) + random.below(3 << 20));
        faults
    }

    /// Faults under which acknowledged data may be lost, but never be wrong.
    pub fn lying(random: &mut Random) -> Self {
        let mut faults = if random.chance(500) { Self::honest(random) } else { Self::default() };
        for weight in [&mut faults.lying_sync, &mut faults.misdirected_read, &mut faults.stale_read] {
            *weight = *random.pick(&[0, 0, 2, 20, 200]);
        }
        faults.rot = *random.pick(&[0, 200, 1000]);
        faults
    }

    /// Whether the device itself is honest: it keeps what it said is synced, and reads what it keeps.
    pub fn is_honest(&self) -> bool {
        self.lying_sync == 0 && self.misdirected_read == 0 && self.stale_read == 0 && self.rot == 0
    }

    /// Whether nothing is wrong but that syncs lie.
    pub fn are_lies(&self) -> bool {
        Self { lying_sync: 0, ..self.clone() }.are_none()
    }

    /// Whether nothing is wrong.
    pub fn are_none(&self) -> bool {
        *self == Self::default()
    }

    /// An error of a call that has to do with recycling.
    pub(super) fn error_in_recycling(&self, call: Call, random: &mut Random) -> Option<Errno> {
        let errno = *random.pick(&[Errno::Io, Errno::Io, Errno::Full, Errno::Short]);
        (random.chance(self.recycling) && errno.fits(call)).then_some(errno)
    }

    pub(super) fn error_for(&self, call: Call, random: &mut Random) -> Option<Errno> {
        let chances = match call {
            Call::Read | Call::Ask => [(self.read_error, Errno::Io), (0, Errno::Io), (0, Errno::Io)],
            Call::Write => {
                let (full, short) = (self.full, self.write_error / 2);
                [(self.write_error, Errno::Io), (short, Errno::Short), (full, Errno::Full)]
            }
            Call::Length => [(self.write_error, Errno::Io), (self.full, Errno::Full), (0, Errno::Io)],
            Call::Sync => [(self.sync_error, Errno::Io), (self.full / 2, Errno::Full), (0, Errno::Io)],
            Call::Open | Call::List => {
                [(self.name_error / 2, Errno::Io), (self.too_many_open, Errno::TooManyOpen), (0, Errno::Io)]
            }
            Call::Create => {
                let (open, full) = (self.too_many_open, self.full);
                [(self.name_error, Errno::Io), (open, Errno::TooManyOpen), (full, Errno::Full)]
            }
            // the directory, or its log, may need a block
            Call::SyncNames | Call::Rename => {
                [(self.name_error, Errno::Io), (self.full, Errno::Full), (0, Errno::Io)]
            }
            Call::Remove => [(self.name_error, Errno::Io), (0, Errno::Io), (0, Errno::Io)],
        };
        chances.into_iter().find(|(chance, _)| random.chance(*chance)).map(|(_, errno)| errno)
    }
}
