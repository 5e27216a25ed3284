//! One store on one simulated disk, with the model of what it must hold.

use super::model::{Change, Checked, Model, Presence, Seen, block, look};
use crate::sim::disk::{Fate, Faults, Image, SimDisk};
use larder_store::{CommitError, OpenReport, Options, Store, rebuild_index};
use std::collections::BTreeSet;

/// What is done to a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Commits a batch.
    Commit(Vec<Change>),
    /// Makes a checkpoint.
    Checkpoint,
    /// Closes and opens.
    Reopen,
    /// Ends without closing, and opens.
    Kill,
    /// Ends without closing, makes the index again, and opens.
    Rebuild,
    /// Cleans in so many steps of so many bytes; a block is garbage if its number has this rest by 3.
    Clean {
        /// Which blocks nothing leads to.
        garbage: u32,
        /// Bytes of each step.
        budget: u64,
        /// At most so many steps.
        steps: usize,
    },
    /// Verifies everything.
    Verify,
}

/// A store that lives.
pub struct Life {
    /// What it lives on.
    pub disk: SimDisk,
    /// The store, while it is open.
    pub store: Option<Store<SimDisk>>,
    options: Options,
    /// What it must hold.
    pub model: Model,
    /// Whether any error is one too many: the disk has no faults.
    pub faultless: bool,
}

/// What a small machine might set, so small that a few steps fill segments.
pub fn options() -> Options {
    Options {
        segment_bytes: 64 << 10,
        cache_bytes: 20_000,
        index_cache_bytes: 256 << 10,
        table_entries: 1000,
        quota_bytes: 64 << 20,
        reserve_bytes: 8 << 20,
        ..Options::default()
    }
}

impl Life {
    /// A store on a device that holds `image`, which nothing is wrong with from now on.
    ///
    /// # Errors
    /// It does not open.
    pub fn faultless(image: Image, model: Model, options: Options) -> Checked<Self> {
        let disk = SimDisk::new(image, Faults::default(), 0);
        let mut life = Self { disk, store: None, options, model, faultless: true };
        life.open()?;
        Ok(life)
    }

    /// The same, not opened yet, with faults.
    pub fn faulty(disk: SimDisk, model: Model, options: Options) -> Self {
        Self { disk, store: None, options, model, faultless: false }
    }

    /// Opens the store; nothing if the disk did not let it.
    ///
    /// # Errors
    /// It does not open and nothing was wrong with the disk.
    pub fn open(&mut self) -> Checked<Option<OpenReport>> {
        self.store = None;
        match Store::open(self.disk.clone(), self.options.clone()) {
            Ok((store, report)) => {
                self.store = Some(store);
                Ok(Some(report))
            }
            Err(error) => self.excuse(&format!("DOES NOT OPEN: {error}")).map(|()| None),
        }
    }

    fn excuse(&self, words: &str) -> Checked {
        if self.faultless { Err(words.to_owned()) } else { Ok(()) }
    }

    /// What may be found if the power fails in this step.
    pub fn expected_during(&self, step: &Step) -> Model {
        let mut model = self.model.clone();
        match step {
            Step::Commit(batch) => model.begin(batch),
            Step::Clean { garbage, .. } => model.cleaning(&self.kept(*garbage)),
            Step::Checkpoint | Step::Reopen | Step::Kill | Step::Rebuild | Step::Verify => {}
        }
        model
    }

    fn kept(&self, garbage: u32) -> BTreeSet<u32> {
        let mut blocks: BTreeSet<u32> = self.model.known.blocks.keys().copied().collect();
        blocks.retain(|number| number % 3 != garbage);
        blocks
    }

    /// Does one step. A disk that fails ends the store now and then; it is opened again by the next step.
    ///
    /// # Errors
    /// A promise is broken.
    pub fn step(&mut self, step: &Step) -> Checked {
        if self.store.is_none() && self.open()?.is_none() {
            return Ok(());
        }
        match step {
            Step::Commit(batch) => self.commit(batch),
            Step::Checkpoint => {
                let done = self.with(|store| store.checkpoint().map_err(|error| error.to_string()))?;
                done.or_else(|words| self.excuse(&words))
            }
            Step::Reopen => {
                let store = self.store.take().ok_or("no store is open")?;
                store.close().or_else(|error| self.excuse(&error.to_string()))?;
                self.open().map(drop)
            }
            Step::Kill => self.open().map(drop),
            Step::Rebuild => {
                self.store = None;
                match rebuild_index(self.disk.clone(), self.options.clone()) {
                    Ok(_) => self.open().map(drop),
                    Err(error) => self.excuse(&format!("DOES NOT OPEN: {error}")),
                }
            }
            Step::Clean { garbage, budget, steps } => self.clean(*garbage, *budget, *steps),
            Step::Verify => self.verify(),
        }
    }

    fn with<T>(&mut self, act: impl FnOnce(&mut Store<SimDisk>) -> T) -> Checked<T> {
        self.store.as_mut().map(act).ok_or_else(|| "no store is open".into())
    }

    fn commit(&mut self, batch: &[Change]) -> Checked {
        self.model.begin(batch);
        let ops = batch.iter().map(Change::op).collect();
        match self.with(|store| store.commit(ops))? {
            Ok(_) => self.model.acknowledged(),
            // it may be durable and half-known: the owner opens the store again
            Err(CommitError::Index { reason }) => {
                self.excuse(&reason)?;
                self.store = None;
            }
            Err(error) => self.excuse(&error.to_string())?,
        }
        Ok(())
    }

    fn clean(&mut self, garbage: u32, budget: u64, steps: usize) -> Checked {
        let kept = self.kept(garbage);
        self.model.cleaning(&kept);
        let hashes: Vec<_> = kept.iter().map(|number| block(*number).0).collect();
        self.with(|store| {
            store.clean_begin();
            store.clean_mark(&hashes).map_err(|error| error.to_string())
        })??;
        for _step in 0..steps {
            match self.with(|store| store.clean_step(budget))? {
                Ok(progress) if progress.done => return Ok(()),
                Ok(_) => {}
                Err(error) => {
                    self.excuse(&error.to_string())?;
                    break;
                }
            }
        }
        self.with(|store| store.clean_abort())
    }

    fn verify(&mut self) -> Checked {
        let mut position = None;
        loop {
            match self.with(|store| store.verify_step(position.take(), 1 << 20))? {
                Ok(step) if self.faultless && !step.damaged.is_empty() => {
                    return Err(format!("verify finds {} blocks damaged", step.damaged.len()));
                }
                Ok(step) => match step.next {
                    Some(next) => position = Some(next),
                    None => return Ok(()),
                },
                Err(error) => return self.excuse(&error.to_string()),
            }
        }
    }

    /// What the open store answers.
    ///
    /// # Errors
    /// Wrong bytes, or answers that do not fit each other.
    pub fn look(&mut self) -> Checked<Seen> {
        let universe = self.model.universe.clone();
        self.with(|store| look(store, &universe))?
    }

    /// Looks, settles what was unsure, and checks counts and limits.
    ///
    /// # Errors
    /// Something acknowledged is gone, wrong or half there, or a limit does not hold.
    pub fn check(&mut self) -> Checked {
        let seen = self.look()?;
        self.model.settle(&seen)?;
        let status = self.with(|store| store.status())?;
        let (blocks, names) = (seen.blocks.len() as u64, self.model.known.names.len() as u64);
        if (status.blocks, status.names) != (blocks, names) {
            let counted = (status.blocks, status.names);
            return Err(format!("status counts {counted:?} blocks and names, there are {blocks}, {names}"));
        }
        self.check_limits()
    }

    /// Quota, memory and open files.
    ///
    /// # Errors
    /// One of them does not hold.
    pub fn check_limits(&mut self) -> Checked {
        let (taken, open) = self.disk.most();
        let status = self.with(|store| store.status())?;
        let entries = 2 * self.options.table_entries as u64 + 64;
        let filter = 96 << 10;
        let limits = [
            ("bytes on the device", taken, self.options.quota_bytes),
            ("open files", open, 40),
            ("entries of the memory table", status.table_entries, entries),
            ("bytes of the cache", status.cache_bytes, self.options.cache_bytes),
            ("bytes of the filter", status.filter_bytes, filter),
        ];
        match limits.into_iter().find(|(_, most, limit)| most > limit) {
            Some((what, most, limit)) => Err(format!("LIMIT: {most} {what}, allowed are {limit}")),
            None => Ok(()),
        }
    }

    /// Whether all that is known is settled.
    pub fn is_certain(&self) -> bool {
        self.model.unsure.is_empty()
            && self.model.known.blocks.values().all(|presence| *presence == Presence::There)
    }

    /// A device as a power cut now would leave it.
    pub fn cut(&self, fate: Fate) -> Image {
        self.disk.image().cut(fate)
    }
}
