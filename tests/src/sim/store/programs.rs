//! Programs of a few letters, and the stores they start from.

use super::life::{Life, Step, options};
use super::model::{Change, Checked, LARGE, Model};
use crate::sim::disk::{Fate, Image};
use larder_store::Options;

/// A letter of the alphabet programs are written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Letter {
    /// A batch of blocks and a setting.
    Put,
    /// A name is bound anew.
    Bind,
    /// A block is deleted and a name taken away.
    Delete,
    /// A checkpoint.
    Checkpoint,
    /// A block so large that the open segment is sealed.
    Seal,
    /// Closing and opening.
    Open,
    /// The index is made again.
    Rebuild,
    /// Cleaning, to its end.
    Clean,
    /// The process ends, and the store is opened again.
    Kill,
    /// Everything is asked for.
    Read,
}

impl Letter {
    /// What programs are made of. A cut in [`Letter::Kill`] is the second cut of every program.
    pub const CUT: [Self; 8] = [
        Self::Put,
        Self::Bind,
        Self::Delete,
        Self::Checkpoint,
        Self::Seal,
        Self::Open,
        Self::Rebuild,
        Self::Clean,
    ];

    /// What meets errors: opening after a crash and reading too.
    pub const FAILING: [Self; 10] = [
        Self::Kill,
        Self::Read,
        Self::Put,
        Self::Bind,
        Self::Delete,
        Self::Checkpoint,
        Self::Seal,
        Self::Open,
        Self::Rebuild,
        Self::Clean,
    ];

    /// What it means as the `place`-th of a program.
    pub(super) fn step(self, place: u32) -> Step {
        match self {
            Self::Put => {
                let first = 100 + 8 * place;
                let puts = [first, first + 2, first + 7].map(Change::Put);
                Step::Commit([&puts[..], &[Change::Set(1, Some(place))]].concat())
            }
            Self::Bind => Step::Commit(vec![Change::Bind(1, 10 + place)]),
            Self::Delete => Step::Commit(vec![Change::Delete(1 + place), Change::Unbind(2 + place as u8)]),
            Self::Checkpoint => Step::Checkpoint,
            Self::Seal => Step::Commit(vec![Change::Put(LARGE + 100 + place), Change::Bind(9, place)]),
            Self::Open => Step::Reopen,
            Self::Rebuild => Step::Rebuild,
            Self::Kill => Step::Kill,
            Self::Read => Step::Read,
            Self::Clean => Step::Clean { garbage: 0, deleted: 4, budget: 1 << 20, steps: 20 },
        }
    }
}

/// All programs of one to `length` letters.
pub fn programs(letters: &[Letter], length: usize) -> Vec<Vec<Letter>> {
    let mut all: Vec<Vec<Letter>> = vec![Vec::new()];
    let mut from = 0;
    for _ in 0..length {
        let to = all.len();
        for program in from..to {
            for letter in letters {
                all.push([&all[program][..], &[*letter]].concat());
            }
        }
        from = to;
    }
    all.remove(0);
    all
}

/// A store in the middle of its life: sealed segments with garbage, an index, and a log behind it.
///
/// # Errors
/// It can not be made.
pub fn used_store(options: &Options) -> Checked<(Image, Model)> {
    let mut life = Life::faultless(Image::default(), Model::default(), options.clone())?;
    let puts = (0..8).map(Change::Put).collect();
    let binds = (1..6).map(|name| Change::Bind(name, u32::from(name))).collect();
    let later = vec![Change::Put(8), Change::Put(20), Change::Bind(1, 9), Change::Set(2, Some(3))];
    let steps = [
        Step::Commit(puts),
        Step::Commit(binds),
        Step::Commit(vec![Change::Put(LARGE)]),
        Step::Commit(vec![Change::Delete(LARGE), Change::Delete(4)]),
        Step::Checkpoint,
        Step::Commit(later),
    ];
    for step in &steps {
        life.step(step)?;
    }
    life.check()?;
    Ok((life.cut(Fate::EVERYTHING), life.model))
}

/// Checkpoints so small that fifteen of them are one short of a merge, and that it takes several more to end it.
///
/// # Errors
/// It can not be made.
pub fn store_before_merge() -> Checked<(Image, Model)> {
    let mut life = Life::faultless(Image::default(), Model::default(), merging_options())?;
    for number in 0..15 {
        let old = if number % 3 == 0 { Change::Delete(3 * number / 2) } else { Change::Put(number) };
        life.step(&Step::Commit(vec![old, Change::Put(20 + 3 * number), Change::Put(21 + 3 * number)]))?;
        life.step(&Step::Checkpoint)?;
    }
    life.check()?;
    Ok((life.cut(Fate::EVERYTHING), life.model))
}

/// Options of [`store_before_merge`].
pub(super) fn merging_options() -> Options {
    Options { table_entries: 8, ..options() }
}
