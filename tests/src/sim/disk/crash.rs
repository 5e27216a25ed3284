//! What is on the device, what is on its way there, and what a power cut makes of it.
//!
//! Duty: keep for every file and for the directory a version everybody sees and a version that a cut leaves,
//! and the changes between the two in their order. A sync makes the first the second, but for what a failed sync
//! dropped: that is seen until the kernel forgets it, and no later sync writes it. At a cut each change
//! that waits is lost, kept, or torn at a sector, as a [`Fate`] says: so writes come back reordered, lengths
//! and names get lost, and a file whose name was never made durable is gone with all it had.

use super::content::{Content, SECTOR};
use super::recycling::is_spare;
use crate::sim::random::Random;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::Arc;

/// What becomes of changes that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// All are lost.
    Nothing,
    /// All are kept.
    Everything,
    /// All but the end of each file's last write.
    Begun,
    /// Each has its own luck.
    Drawn,
}

/// What a power cut does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fate {
    /// To new, removed and renamed names.
    pub names: Keep,
    /// To bytes and lengths of files.
    pub data: Keep,
    /// Where luck comes from.
    pub seed: u64,
}

impl Fate {
    /// Nothing that was not synced is kept.
    pub const NOTHING: Self = Self { names: Keep::Nothing, data: Keep::Nothing, seed: 0 };
    /// Everything is kept.
    pub const EVERYTHING: Self = Self { names: Keep::Everything, data: Keep::Everything, seed: 0 };
    /// Names are kept and bytes are not, as file systems like it that write their metadata first.
    pub const NAMES: Self = Self { names: Keep::Everything, data: Keep::Nothing, seed: 0 };

    /// The power fails while the last write of each file arrives, sector after sector.
    pub fn begun(seed: u64) -> Self {
        Self { names: Keep::Everything, data: Keep::Begun, seed }
    }

    /// As luck has it.
    pub fn drawn(seed: u64) -> Self {
        Self { names: Keep::Drawn, data: Keep::Drawn, seed }
    }
}

#[derive(Clone, Debug)]
pub(super) enum Change {
    Write { offset: u64, bytes: Arc<[u8]> },
    Length(u64),
    Allocate { offset: u64, length: u64 },
}

/// A file, with or without a name.
#[derive(Clone, Debug, Default)]
pub(super) struct Inode {
    /// What reads see.
    pub(super) seen: Content,
    /// What a cut leaves of it if all that waits is lost.
    durable: Content,
    /// What was durable before the last sync.
    earlier: Content,
    waiting: Vec<Change>,
    /// A sync failed, so that not all that is seen is durable or waits.
    dropped: bool,
    /// It was a spare and is a segment again.
    pub(super) was_spare: bool,
}

#[derive(Clone, Debug)]
enum NameChange {
    Link(String, u64),
    Unlink(String),
    Rename(String, String),
}

/// Everything on one device. Clones share their pages.
#[derive(Clone, Debug, Default)]
pub struct Image {
    pub(super) inodes: BTreeMap<u64, Inode>,
    pub(super) names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    waiting_names: Vec<NameChange>,
    /// What a failed sync of the directory left in the kernel's memory, called clean.
    dropped_names: Vec<NameChange>,
    next_inode: u64,
}

impl Inode {
    pub(super) fn change(&mut self, change: Change) {
        apply(&mut self.seen, &change);
        self.waiting.push(change);
    }

    pub(super) fn sync(&mut self) {
        if !self.waiting.is_empty() {
            let arrived = self.arrived();
            self.earlier = std::mem::replace(&mut self.durable, arrived);
            self.waiting.clear();
        }
    }

    /// A sync that failed: the kernel keeps the pages, calls them clean, and never writes them. Some reached
    /// the device before it failed.
    pub(super) fn sync_fails(&mut self, random: &mut Random) {
        self.durable = self.drawn(random);
        self.dropped |= !self.waiting.is_empty();
        self.waiting.clear();
    }

    /// The kernel lets go of pages that it calls clean: reads ask the device for them.
    pub(super) fn forget(&mut self, from: u64, to: u64) {
        if self.dropped {
            let arrived = self.arrived();
            self.seen.take(from, to, &arrived);
        }
    }

    /// What the device holds when all that waits is there.
    fn arrived(&self) -> Content {
        if !self.dropped {
            return self.seen.clone();
        }
        let mut content = self.durable.clone();
        self.waiting.iter().for_each(|change| apply(&mut content, change));
        content
    }

    /// An older version of the bytes.
    pub(super) fn earlier(&self) -> &Content {
        &self.earlier
    }

    pub(super) fn rot(&mut self, offset: u64, bit: u8) {
        for content in [&mut self.seen, &mut self.durable] {
            let mut byte = [0];
            content.read(offset, &mut byte);
            byte[0] ^= 1 << bit;
            content.place(offset, &byte);
        }
    }

    fn after_cut(&self, keep: Keep, random: &mut Random) -> Content {
        match keep {
            Keep::Nothing => self.durable.clone(),
            Keep::Everything => self.arrived(),
            Keep::Begun => self.begun(random),
            Keep::Drawn => self.drawn(random),
        }
    }

    fn begun(&self, random: &mut Random) -> Content {
        let mut content = self.durable.clone();
        let last = self.waiting.iter().rposition(|change| matches!(change, Change::Write { .. }));
        for (number, change) in self.waiting.iter().enumerate() {
            match change {
                Change::Write { offset, bytes } if Some(number) == last => {
                    let sectors = random.below(bytes.len().div_ceil(SECTOR) as u64) as usize;
                    content.place(*offset, &bytes[..sectors * SECTOR]);
                    content.length = content.length.max(offset + bytes.len() as u64);
                }
                Change::Write { .. } | Change::Length(_) | Change::Allocate { .. } => {
                    apply(&mut content, change)
                }
            }
        }
        content
    }

    /// Each change has its luck: bytes may come without their length, and a length without its bytes.
    fn drawn(&self, random: &mut Random) -> Content {
        let mut content = self.durable.clone();
        if self.waiting.is_empty() {
            return content;
        }
        let lost = *random.pick(&[100, 300, 500, 900]);
        let torn = *random.pick(&[0, 300, 800]);
        for change in &self.waiting {
            match change {
                Change::Write { offset, bytes } => {
                    if !random.chance(lost) {
                        for kept in kept_sectors(*offset, bytes.len(), torn, random) {
                            content.place(offset + kept.start as u64, &bytes[kept]);
                        }
                    }
                    if !random.chance(lost) {
                        content.length = content.length.max(offset + bytes.len() as u64);
                    }
                }
                Change::Length(_) | Change::Allocate { .. } if random.chance(lost) => {}
                Change::Length(_) | Change::Allocate { .. } => apply(&mut content, change),
            }
        }
        content.forget_behind(content.length);
        content
    }
}

/// The parts of a write that arrived: all of it, or sectors from one on, up to one, between two, or any.
fn kept_sectors(offset: u64, length: usize, torn: u32, random: &mut Random) -> Vec<Range<usize>> {
    let misaligned = offset as usize % SECTOR;
    let cuts = (misaligned + length).saturating_sub(1) / SECTOR;
    let whole = 0..length;
    if cuts == 0 || !random.chance(torn) {
        return vec![whole];
    }
    let cut = |number: usize| (number * SECTOR).saturating_sub(misaligned).min(length);
    let mut drawn = || cut(1 + random.below(cuts as u64) as usize);
    let (one, other) = (drawn(), drawn());
    let part = match random.below(4) {
        0 => 0..one,
        1 => one..length,
        2 => one.min(other)..one.max(other),
        _ => {
            let sectors = (0..=cuts).map(|number| cut(number)..cut(number + 1));
            return sectors.filter(|_| random.chance(500)).collect();
        }
    };
    vec![part]
}

fn apply(content: &mut Content, change: &Change) {
    match change {
        Change::Write { offset, bytes } => content.write(*offset, bytes),
        Change::Length(length) => content.set_length(*length),
        Change::Allocate { offset, length } => content.allocate(*offset, *length),
    }
}

impl Image {
    pub(super) fn link(&mut self, name: &str) -> u64 {
        let inode = self.next_inode;
        self.next_inode += 1;
        self.inodes.insert(inode, Inode::default());
        self.names.insert(name.to_owned(), inode);
        self.change_names(NameChange::Link(name.to_owned(), inode));
        inode
    }

    pub(super) fn unlink(&mut self, name: &str) -> bool {
        let found = self.names.remove(name).is_some();
        if found {
            self.change_names(NameChange::Unlink(name.to_owned()));
        }
        found
    }

    pub(super) fn rename(&mut self, from: &str, to: &str) -> bool {
        let Some(inode) = self.names.remove(from) else { return false };
        if let Some(file) = self.inodes.get_mut(&inode) {
            file.was_spare = is_spare(from);
        }
        self.names.insert(to.to_owned(), inode);
        self.change_names(NameChange::Rename(from.to_owned(), to.to_owned()));
        true
    }

    /// A change of a name makes the directory's block dirty, and with it what a failed sync left in there.
    fn change_names(&mut self, change: NameChange) {
        self.waiting_names.append(&mut self.dropped_names);
        self.waiting_names.push(change);
    }

    pub(super) fn sync_names(&mut self) {
        if self.dropped_names.is_empty() {
            self.durable_names = self.names.clone();
        }
        self.waiting_names.clear();
    }

    /// A sync of the directory that failed, as of ext4 without a journal: its block arrived or not, and is called clean.
    /// (With a journal, ext4 gives up the journal and refuses every later change, as [`super::Faults::read_only`].)
    pub(super) fn sync_names_fails(&mut self, random: &mut Random) {
        if random.chance(500) {
            self.sync_names();
        } else {
            self.dropped_names.append(&mut self.waiting_names);
        }
    }

    /// Forgets files that nothing leads to any more.
    pub(super) fn forget_unreachable(&mut self, is_open: impl Fn(u64) -> bool) {
        let Self { inodes, names, durable_names, waiting_names, dropped_names, .. } = self;
        if waiting_names.is_empty() && dropped_names.is_empty() {
            inodes.retain(|inode, _| {
                is_open(*inode) || names.values().chain(durable_names.values()).any(|named| named == inode)
            });
        }
    }

    /// Whether a file has a name that fits.
    pub(super) fn is_named(&self, inode: u64, fits: impl Fn(&str) -> bool) -> bool {
        self.names.iter().any(|(name, named)| *named == inode && fits(name))
    }

    /// Whether a name that fits, or fitted, is not durable yet.
    pub(super) fn waits_for_rename(&self, fits: impl Fn(&str) -> bool) -> bool {
        let renames =
            |change: &NameChange| matches!(change, NameChange::Rename(from, to) if fits(from) || fits(to));
        self.waiting_names.iter().any(renames)
    }

    /// The kernel needs its memory for something else.
    pub(super) fn forget(&mut self) {
        self.inodes.values_mut().for_each(|file| file.forget(0, file.seen.length));
    }

    pub(super) fn bytes_taken(&self) -> u64 {
        self.names.values().map(|inode| self.inodes[inode].seen.bytes_taken()).sum()
    }

    /// The device as a power cut leaves it.
    pub fn cut(&self, fate: Fate) -> Image {
        let mut random = Random::new(fate.seed);
        let names = self.names_after_cut(fate.names, &mut random);
        let mut inodes = BTreeMap::new();
        for inode in names.values() {
            let file = &self.inodes[inode];
            let (content, was_spare) = (file.after_cut(fate.data, &mut random), file.was_spare);
            let (seen, earlier, durable) = (content.clone(), content.clone(), content);
            inodes.insert(*inode, Inode { seen, durable, earlier, was_spare, ..Inode::default() });
        }
        let durable_names = names.clone();
        let (waiting_names, dropped_names) = Default::default();
        Image { inodes, names, durable_names, waiting_names, dropped_names, next_inode: self.next_inode }
    }

    /// Names change in order, as a journal has it, or with less luck each alone: but never against the order
    /// of changes of the same name.
    fn names_after_cut(&self, keep: Keep, random: &mut Random) -> BTreeMap<String, u64> {
        let mut names = self.durable_names.clone();
        if keep == Keep::Nothing {
            return names;
        }
        let (lost, in_order) = (*random.pick(&[100, 500, 900]), random.chance(500));
        let (mut stuck, mut stopped): (Vec<&str>, bool) = (Vec::new(), false);
        for change in &self.waiting_names {
            let touched = match change {
                NameChange::Link(name, _) | NameChange::Unlink(name) => [name.as_str(), name.as_str()],
                NameChange::Rename(from, to) => [from.as_str(), to.as_str()],
            };
            let blocked = stopped || touched.iter().any(|name| stuck.contains(name));
            if keep == Keep::Drawn && (blocked || random.chance(lost)) {
                stopped |= in_order;
                stuck.extend(touched);
                continue;
            }
            match change {
                NameChange::Link(name, inode) => drop(names.insert(name.clone(), *inode)),
                NameChange::Unlink(name) => drop(names.remove(name)),
                NameChange::Rename(from, to) => {
                    if let Some(inode) = names.remove(from) {
                        names.insert(to.clone(), inode);
                    }
                }
            }
        }
        names
    }

    /// Flips one bit of a file whose name fits; says where.
    pub fn rot(&mut self, random: &mut Random, fits: impl Fn(&str) -> bool) -> Option<(String, u64)> {
        let names: Vec<(String, u64)> = self.names.clone().into_iter().filter(|(n, _)| fits(n)).collect();
        let (name, inode) = names.get(random.below(names.len() as u64) as usize)?;
        let inode = self.inodes.get_mut(inode)?;
        let length = inode.seen.length;
        let offset = random.below(length);
        inode.rot(offset, random.below(8) as u8);
        (length > 0).then(|| (name.clone(), offset))
    }

    /// Something that differs when a file or a name does. Only for images nothing waits for.
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for (name, inode) in &self.names {
            name.hash(&mut hasher);
            self.inodes[inode].seen.fingerprint(&mut hasher);
        }
        hasher.finish()
    }
}
