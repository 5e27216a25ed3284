//! A disk that lives in memory, loses its power, and lies.
//!
//! Duty: be a [`Disk`] for the store, redb's file included, over an [`Image`] that knows what a power cut
//! would leave. Every call is numbered; faults are drawn from a seed. It can keep the image before each
//! change, so that one run of a program gives every place where the power can fail. Time is counted, not
//! spent: the store has no clock, so a stall shows only in [`SimDisk::simulated_ms`].

mod content;
mod crash;
mod faults;
mod recycling;

pub use crash::{Fate, Image, Keep};
pub use faults::{Call, Errno, Faults, Injection};

use crate::sim::coverage::{Coverage, Event};
use crate::sim::random::Random;
use content::SECTOR;
use crash::{Change, Inode};
use larder_store::{Disk, DiskFile, Listed, OpenMode, Space};
use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex, MutexGuard};

const DEVICE_BYTES: u64 = 1 << 40;

/// A place where the power can fail: before this change.
#[derive(Clone, Debug)]
pub struct Cut {
    /// What the device holds and what waits.
    pub image: Image,
    /// What was about to happen, for messages.
    pub before: String,
}

#[derive(Debug)]
struct Machine {
    image: Image,
    faults: Faults,
    random: Random,
    /// Calls so far, and those of them that change something.
    calls: u64,
    changes: u64,
    /// The change before which the power fails.
    power_until: u64,
    /// Or at the first sync from there on.
    power_waits_for_sync: bool,
    cuts: Option<Vec<Cut>>,
    injected: bool,
    locked: bool,
    read_only: bool,
    open: BTreeMap<u64, u32>,
    open_max: u64,
    taken_max: u64,
    simulated_us: u64,
    coverage: Coverage,
}

/// The disk; clones are the same disk.
#[derive(Clone, Debug)]
pub struct SimDisk {
    machine: Arc<Mutex<Machine>>,
}

/// An open file of a [`SimDisk`].
#[derive(Debug)]
pub struct SimFile {
    machine: Arc<Mutex<Machine>>,
    inode: u64,
    name: String,
    is_lock: bool,
}

impl SimDisk {
    /// A disk that holds an image; `seed` is where its faults come from.
    pub fn new(image: Image, faults: Faults, seed: u64) -> Self {
        let machine = Machine {
            taken_max: image.bytes_taken(),
            image,
            faults,
            random: Random::new(seed),
            calls: 0,
            changes: 0,
            power_until: u64::MAX,
            power_waits_for_sync: false,
            cuts: None,
            injected: false,
            locked: false,
            read_only: false,
            open: BTreeMap::new(),
            open_max: 0,
            simulated_us: 0,
            coverage: Coverage::default(),
        };
        Self { machine: Arc::new(Mutex::new(machine)) }
    }

    /// From now on the image before each change is kept.
    pub fn record(&self) {
        self.machine().cuts = Some(Vec::new());
    }

    /// The images kept, and the one there is now.
    pub fn recorded(&self) -> Vec<Cut> {
        let mut machine = self.machine();
        let mut cuts = machine.cuts.take().unwrap_or_default();
        cuts.push(Cut { image: machine.image.clone(), before: "the next call".into() });
        cuts
    }

    /// The power fails before the change that comes after `changes` more; or before the next sync, when most waits.
    pub fn fail_power_after(&self, changes: u64, at_sync: bool) {
        let mut machine = self.machine();
        machine.power_until = machine.changes + changes;
        machine.power_waits_for_sync = at_sync;
    }

    /// Whether the power has failed.
    pub fn is_dark(&self) -> bool {
        let machine = self.machine();
        machine.changes > machine.power_until
    }

    /// Everything on the device and everything that waits, now.
    pub fn image(&self) -> Image {
        self.machine().image.clone()
    }

    /// Other faults from now on; gives those until now.
    pub fn set_faults(&self, faults: Faults) -> Faults {
        let mut machine = self.machine();
        machine.read_only = false;
        std::mem::replace(&mut machine.faults, faults)
    }

    /// Flips a bit of a file whose name fits, on the device and in the kernel's memory; says where.
    pub fn rot(&self, fits: impl Fn(&str) -> bool) -> Option<(String, u64)> {
        let Machine { image, random, .. } = &mut *self.machine();
        image.rot(random, fits)
    }

    /// The kernel forgets what it calls clean, and reads it again when it is asked for.
    pub fn forget(&self) {
        self.machine().image.forget();
    }

    /// Whether the one error at one call has happened.
    pub fn injected(&self) -> bool {
        self.machine().injected
    }

    /// Whether it keeps what it says is synced and reads what it keeps.
    pub fn is_honest(&self) -> bool {
        self.machine().faults.is_honest()
    }

    /// Calls so far.
    pub fn calls(&self) -> u64 {
        self.machine().calls
    }

    /// The most bytes that were ever taken, and the most files that were ever open.
    pub fn most(&self) -> (u64, u64) {
        let machine = self.machine();
        (machine.taken_max, machine.open_max)
    }

    /// What became of files that are used again.
    pub fn coverage(&self) -> Coverage {
        self.machine().coverage.clone()
    }

    /// Time that calls and stalls took, had they been real.
    pub fn simulated_ms(&self) -> u64 {
        self.machine().simulated_us / 1000
    }

    fn machine(&self) -> MutexGuard<'_, Machine> {
        lock(&self.machine)
    }

    fn handle(&self, machine: &mut Machine, name: &str, inode: u64, is_lock: bool) -> SimFile {
        *machine.open.entry(inode).or_default() += 1;
        machine.open_max = machine.open_max.max(machine.open.values().map(|n| u64::from(*n)).sum());
        SimFile { machine: Arc::clone(&self.machine), inode, name: name.to_owned(), is_lock }
    }
}

/// A panic inside a call is a panic of the test.
fn lock(machine: &Mutex<Machine>) -> MutexGuard<'_, Machine> {
    machine.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Machine {
    /// Counts a call, of the file of a name or of an open one, and says how it fails.
    fn enter(&mut self, call: Call, name: &str, inode: Option<u64>) -> Result<(), Errno> {
        self.calls += 1;
        self.simulated_us += if matches!(call, Call::Sync | Call::SyncNames) { 4000 } else { 20 };
        if self.random.chance(self.faults.stall) {
            self.simulated_us += 1_000_000 + self.random.below(30_000_000);
        }
        if call.changes() {
            self.changes += 1;
            if let Some(cuts) = &mut self.cuts {
                cuts.push(Cut { image: self.image.clone(), before: format!("{call:?} of {name}") });
            }
        }
        if self.power_waits_for_sync && call.changes() && call != Call::Sync {
            self.power_until = self.power_until.max(self.changes);
        }
        if self.is_dark() {
            self.power_waits_for_sync = false;
            return Err(Errno::Io);
        }
        let Err(errno) = self.outcome(call, name, inode) else { return Ok(()) };
        if let Some(event) = recycling::error_in(&self.image, call, name, inode) {
            self.coverage.note(event);
        }
        Err(errno)
    }

    fn outcome(&mut self, call: Call, name: &str, inode: Option<u64>) -> Result<(), Errno> {
        let injected = self.faults.injection.filter(|injection| {
            let now = if injection.lasting { self.calls >= injection.at } else { self.calls == injection.at };
            now && injection.errno.fits(call)
        });
        self.injected |= injected.is_some();
        let recycles =
            self.faults.recycling > 0 && recycling::error_in(&self.image, call, name, inode).is_some();
        let drawn = || {
            let in_recycling = recycles.then(|| self.faults.error_in_recycling(call, &mut self.random));
            in_recycling.flatten().or_else(|| self.faults.error_for(call, &mut self.random))
        };
        if let Some(errno) = injected.map(|injection| injection.errno).or_else(drawn) {
            return Err(errno);
        }
        let blocked = Errno::ReadOnly.fits(call);
        self.read_only |= blocked && self.random.chance(self.faults.read_only);
        if self.read_only && blocked { Err(Errno::ReadOnly) } else { Ok(()) }
    }

    fn is_dark(&self) -> bool {
        self.changes > self.power_until
    }

    /// Whether `pages` more fit.
    fn takes(&mut self, pages: u64) -> Result<(), Errno> {
        let taken = self.image.bytes_taken() + pages * content::PAGE as u64;
        if self.faults.room.is_some_and(|room| pages > 0 && taken > room) {
            self.coverage.note(Event::DeviceFull);
            return Err(Errno::Full);
        }
        self.taken_max = self.taken_max.max(taken);
        Ok(())
    }

    fn sync(&mut self, inode: u64, name: &str) -> io::Result<()> {
        let entered = self.enter(Call::Sync, name, Some(inode));
        let lies = self.random.chance(self.faults.lying_sync);
        let dark = self.is_dark();
        let Self { image, random, .. } = self;
        let file = image.inodes.get_mut(&inode).ok_or(Errno::Io.error())?;
        match entered {
            Ok(()) if lies => Ok(()),
            Ok(()) => {
                file.sync();
                Ok(())
            }
            Err(errno) => {
                if !dark {
                    file.sync_fails(random);
                }
                Err(errno.error())
            }
        }
    }
}

impl Disk for SimDisk {
    type File = SimFile;

    fn open(&self, name: &str, mode: OpenMode) -> io::Result<SimFile> {
        let mut machine = self.machine();
        let call = if mode == OpenMode::Create { Call::Create } else { Call::Open };
        machine.enter(call, name, None).map_err(Errno::error)?;
        let inode = match (machine.image.names.get(name).copied(), mode) {
            (Some(inode), OpenMode::Create) => {
                let file = machine.image.inodes.get_mut(&inode).ok_or(Errno::Io.error())?;
                file.change(Change::Length(0));
                inode
            }
            (Some(inode), OpenMode::Read | OpenMode::ReadWrite) => inode,
            (None, OpenMode::Create) => machine.image.link(name),
            (None, OpenMode::Read | OpenMode::ReadWrite) => return Err(io::ErrorKind::NotFound.into()),
        };
        Ok(self.handle(&mut machine, name, inode, false))
    }

    fn list(&self) -> io::Result<Vec<Listed>> {
        let mut machine = self.machine();
        machine.enter(Call::List, "", None).map_err(Errno::error)?;
        let Image { names, inodes, .. } = &machine.image;
        let listed =
            |(name, inode): (&String, &u64)| Listed { name: name.clone(), length: inodes[inode].seen.length };
        Ok(names.iter().map(listed).collect())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut machine = self.machine();
        machine.enter(Call::Remove, name, None).map_err(Errno::error)?;
        if machine.image.unlink(name) { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut machine = self.machine();
        machine.enter(Call::Rename, from, None).map_err(Errno::error)?;
        if !machine.image.rename(from, to) {
            return Err(io::ErrorKind::NotFound.into());
        }
        if recycling::is_spare(from) {
            machine.coverage.note(Event::Recycled);
        }
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut machine = self.machine();
        let entered = machine.enter(Call::SyncNames, "the directory", None);
        let dark = machine.is_dark();
        let Machine { image, open, random, faults, .. } = &mut *machine;
        if let Err(errno) = entered {
            // a directory that could not be opened was not written
            if !dark && errno != Errno::TooManyOpen {
                image.sync_names_fails(random);
            }
            return Err(errno.error());
        }
        if !random.chance(faults.lying_sync) {
            image.sync_names();
            image.forget_unreachable(|inode| open.contains_key(&inode));
        }
        Ok(())
    }

    fn lock(&self, name: &str) -> io::Result<SimFile> {
        let mut machine = self.machine();
        let missing = !machine.image.names.contains_key(name);
        let call = if missing { Call::Create } else { Call::Open };
        machine.enter(call, name, None).map_err(Errno::error)?;
        if machine.locked {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        machine.locked = true;
        let known = machine.image.names.get(name).copied();
        let inode = known.unwrap_or_else(|| machine.image.link(name));
        Ok(self.handle(&mut machine, name, inode, true))
    }

    fn space(&self) -> io::Result<Space> {
        let mut machine = self.machine();
        machine.enter(Call::Ask, "", None).map_err(Errno::error)?;
        let total = machine.faults.room.unwrap_or(DEVICE_BYTES);
        Ok(Space { total, free: total.saturating_sub(machine.image.bytes_taken()) })
    }

    fn location(&self) -> String {
        "the simulated disk".into()
    }
}

impl SimFile {
    fn machine(&self) -> MutexGuard<'_, Machine> {
        lock(&self.machine)
    }

    fn ask(&self, answer: impl FnOnce(&Inode) -> u64) -> io::Result<u64> {
        let mut machine = self.machine();
        machine.enter(Call::Ask, &self.name, Some(self.inode)).map_err(Errno::error)?;
        machine.image.inodes.get(&self.inode).map(answer).ok_or(Errno::Io.error())
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        let mut machine = self.machine();
        machine.locked &= !self.is_lock;
        if let Some(count) = machine.open.get_mut(&self.inode) {
            *count -= 1;
            if *count == 0 {
                machine.open.remove(&self.inode);
            }
        }
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let mut machine = self.machine();
        machine.enter(Call::Read, &self.name, Some(self.inode)).map_err(Errno::error)?;
        let Machine { image, faults, random, .. } = &mut *machine;
        let file = image.inodes.get(&self.inode).ok_or(Errno::Io.error())?;
        if offset + buffer.len() as u64 > file.seen.length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if random.chance(faults.misdirected_read) {
            let elsewhere = random.below(file.seen.length) / SECTOR as u64 * SECTOR as u64;
            file.seen.read(elsewhere, buffer);
        } else if random.chance(faults.stale_read) {
            file.earlier().read(offset, buffer);
        } else {
            file.seen.read(offset, buffer);
        }
        Ok(())
    }

    fn write_gathered(&self, buffers: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let mut machine = self.machine();
        let mut bytes = buffers.iter().map(|buffer| &buffer[..]).collect::<Vec<_>>().concat();
        let entered = machine.enter(Call::Write, &self.name, Some(self.inode));
        let file = machine.image.inodes.get(&self.inode).ok_or(Errno::Io.error())?;
        let pages = file.seen.holes(offset, bytes.len() as u64);
        let entered = entered.and_then(|()| machine.takes(pages));
        if let Err(errno) = entered {
            let stops_inside = match errno {
                Errno::Short => true,
                Errno::Full => machine.random.chance(500),
                Errno::Io | Errno::ReadOnly | Errno::TooManyOpen | Errno::Unreadable => false,
            };
            let arrived = if stops_inside { machine.random.below(bytes.len() as u64) as usize } else { 0 };
            // what does not fit a full device did not get on it
            if pages > 0 && errno == Errno::Full || arrived == 0 {
                return Err(errno.error());
            }
            bytes.truncate(arrived);
        }
        let file = machine.image.inodes.get_mut(&self.inode).ok_or(Errno::Io.error())?;
        file.change(Change::Write { offset, bytes: bytes.into() });
        entered.map_err(Errno::error)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut machine = self.machine();
        machine.enter(Call::Length, &self.name, Some(self.inode)).map_err(Errno::error)?;
        let file = machine.image.inodes.get_mut(&self.inode).ok_or(Errno::Io.error())?;
        file.change(Change::Length(length));
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        self.ask(|file| file.seen.length)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.machine().sync(self.inode, &self.name)
    }

    fn forget(&self, from: u64, to: u64) {
        let mut machine = self.machine();
        if let Some(file) = machine.image.inodes.get_mut(&self.inode) {
            file.forget(from, to);
        }
    }

    fn allocate(&self, offset: u64, length: u64) -> io::Result<()> {
        let mut machine = self.machine();
        machine.enter(Call::Length, &self.name, Some(self.inode)).map_err(Errno::error)?;
        let file = machine.image.inodes.get(&self.inode).ok_or(Errno::Io.error())?;
        let pages = file.seen.holes(offset, length);
        machine.takes(pages).map_err(Errno::error)?;
        let file = machine.image.inodes.get_mut(&self.inode).ok_or(Errno::Io.error())?;
        file.change(Change::Allocate { offset, length });
        Ok(())
    }

    fn bytes_on_disk(&self) -> io::Result<u64> {
        self.ask(|file| file.seen.bytes_taken())
    }
}
