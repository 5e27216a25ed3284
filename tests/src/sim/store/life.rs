//! One store on one simulated disk, with the model of what it must hold.

use super::model::{Change, Checked, Model, Presence, Seen, block, look};
use crate::sim::coverage::{Coverage, Event};
use crate::sim::disk::{Fate, Faults, Image, SimDisk};
use larder_store::{
    CommitError, MaintainError, OpenError, OpenReport, Options, Store, StoreStatus, rebuild_index,
};
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
        /// Those of them with a number below this one are deleted first, as one batch.
        deleted: u32,
        /// Bytes of each step.
        budget: u64,
        /// At most so many steps.
        steps: usize,
    },
    /// Verifies everything.
    Verify,
    /// Asks for everything, whatever fails.
    Read,
    /// Deletes nearly everything, cleans to the end, and puts what was refused last.
    Relieve,
}

/// A store that lives.
pub struct Life {
    /// What it lives on.
    pub disk: SimDisk,
    /// The store, while it is open.
    pub store: Option<Store<SimDisk>>,
    options: Options,
    /// A store said that it could not read all of its log; only a reading of all of it makes up for that.
    pub reported: bool,
    unsettled: bool,
    /// What it must hold.
    pub model: Model,
    /// Whether any error is one too many, unless the power has failed: the disk has no other faults.
    pub faultless: bool,
    /// Whether it has to open, unless the power has failed: a device that only lies of its syncs refuses nothing.
    pub opens: bool,
    /// What the store said of itself after the last step. Asking it once more would be one more call to the disk, and
    /// another life from there on.
    pub status: Option<StoreStatus>,
    /// What it went through, without what its disk knows.
    pub coverage: Coverage,
    /// The batch that was refused last for want of room.
    refused: Option<Vec<Change>>,
}

/// Names that a store has room for that was nearly emptied.
const NAMES_THAT_FIT: usize = 12;

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
        let mut life = Self::faulty(SimDisk::new(image, Faults::default(), 0), model, options);
        life.faultless = true;
        life.open()?;
        Ok(life)
    }

    /// The same, not opened yet, with faults.
    pub fn faulty(disk: SimDisk, model: Model, options: Options) -> Self {
        let (store, reported, unsettled, faultless, opens) = (None, false, false, false, false);
        let (status, coverage, refused) = (None, Coverage::default(), None);
        Self { disk, store, options, reported, unsettled, model, faultless, opens, status, coverage, refused }
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
                self.note(&report);
                self.unsettled = !self.faultless && !self.model.unsure.is_empty() && self.disk.is_honest();
                Ok(Some(report))
            }
            Err(error) => self.excuse_opening(&error).map(|()| None),
        }
    }

    /// A start decides what becomes of batches that failed before it; what it decided stays so.
    fn settle_calmly(&mut self) -> Checked {
        let faults = self.disk.set_faults(Faults::default());
        if self.reported {
            self.done(&Step::Rebuild)?;
        }
        let looked = if self.store.is_some() { self.look() } else { Err("no store is open".into()) };
        match looked {
            Err(words) if self.disk.is_dark() && !words.contains("WRONG") => {}
            looked => self.model.settle(&looked?)?,
        }
        self.disk.set_faults(faults);
        Ok(())
    }

    fn note(&mut self, report: &OpenReport) {
        self.reported |= report.damaged_bytes > 0 || !report.unreadable_files.is_empty();
    }

    fn excuse_opening(&self, error: &OpenError) -> Checked {
        let words = format!("DOES NOT OPEN: {error}");
        if self.opens && !self.disk.is_dark() { Err(words) } else { self.excuse(&words) }
    }

    fn excuse(&self, words: &str) -> Checked {
        if self.faultless && !self.disk.is_dark() { Err(words.to_owned()) } else { Ok(()) }
    }

    /// What may be found if the power fails in this step.
    pub fn expected_during(&self, step: &Step) -> Model {
        let mut model = self.model.clone();
        match step {
            Step::Commit(batch) => model.begin(batch),
            Step::Clean { garbage, .. } => model.cleaning(&self.kept(*garbage)),
            Step::Checkpoint
            | Step::Reopen
            | Step::Kill
            | Step::Rebuild
            | Step::Verify
            | Step::Read
            | Step::Relieve => {}
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
        if std::mem::take(&mut self.unsettled) {
            self.settle_calmly()?;
            if self.store.is_none() {
                return Ok(());
            }
        }
        let done = self.done(step);
        if self.store.is_some() {
            self.is_degraded()?;
        }
        done
    }

    fn done(&mut self, step: &Step) -> Checked {
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
                    Ok(report) => {
                        self.reported = false;
                        self.note(&report);
                        self.open().map(drop)
                    }
                    Err(error) => self.excuse_opening(&error),
                }
            }
            Step::Clean { garbage, deleted, budget, steps } => {
                self.clean(*garbage, *deleted, *budget, *steps)
            }
            Step::Verify => self.verify(),
            Step::Read => self.read(),
            Step::Relieve => self.relieve(),
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
            Err(error @ CommitError::Full { .. }) => self.refuse(batch, &error.to_string())?,
            // it may be durable and half-known: the owner opens the store again
            Err(CommitError::Index { reason }) => {
                self.excuse(&reason)?;
                self.store = None;
            }
            Err(error) => self.excuse(&error.to_string())?,
        }
        Ok(())
    }

    /// A disk without faults refuses nothing: it was the quota, before anything was written. A device that is full may
    /// have taken all of the batch.
    fn refuse(&mut self, batch: &[Change], words: &str) -> Checked {
        self.refused = Some(batch.to_vec());
        if !self.faultless {
            return Ok(());
        }
        if batch.iter().all(Change::is_removal) {
            return Err(format!("A REMOVAL IS REFUSED: {words}"));
        }
        self.coverage.note(Event::RefusedByQuota);
        self.model.refused();
        Ok(())
    }

    /// Whatever filled the store, taking away and cleaning make room, if not for many names at once: each is charged
    /// with a leaf of the index.
    fn relieve(&mut self) -> Checked {
        let Some(mut refused) = self.refused.take() else { return Ok(()) };
        refused.truncate(NAMES_THAT_FIT);
        let known = &self.model.known;
        let names = known.names.keys().skip(2).map(|name| Change::Unbind(*name));
        let batch: Vec<Change> =
            known.blocks.keys().skip(2).map(|number| Change::Delete(*number)).chain(names).collect();
        self.commit(&batch)?;
        if self.store.is_some() {
            self.clean(0, 0, 1 << 20, 1000)?;
        }
        if self.store.is_none() || self.disk.is_dark() {
            return Ok(());
        }
        self.refused = None;
        self.commit(&refused)?;
        match &self.refused {
            Some(_) if self.faultless => Err(format!("NO ROOM COMES BACK for {refused:?}")),
            Some(_) => Ok(()),
            None => {
                self.coverage.note(Event::RoomCameBack);
                Ok(())
            }
        }
    }

    fn clean(&mut self, garbage: u32, deleted: u32, budget: u64, steps: usize) -> Checked {
        let kept = self.kept(garbage);
        let hashes: Vec<_> = kept.iter().map(|number| block(*number).0).collect();
        let marked = self.with(|store| {
            store.clean_begin();
            store.clean_mark(&hashes)
        })?;
        if let Err(error) = marked {
            return self.excuse(&error.to_string());
        }
        if deleted > 0 {
            self.delete_garbage(&kept, deleted)?;
            if self.store.is_none() {
                return Ok(());
            }
        }
        self.model.cleaning(&kept);
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

    /// What was acknowledged is gone for good, where a step of cleaning may only have dropped it.
    fn delete_garbage(&mut self, kept: &BTreeSet<u32>, below: u32) -> Checked {
        let garbage = self.model.known.blocks.iter().filter(|(number, _)| !kept.contains(number));
        let garbage: Vec<(u32, Presence)> =
            garbage.filter(|(number, _)| **number < below).map(|(number, there)| (*number, *there)).collect();
        let there = garbage.iter().filter(|(_, presence)| *presence == Presence::There).count();
        let hashes: Vec<_> = garbage.iter().map(|(number, _)| block(*number).0).collect();
        self.model.begin(&garbage.iter().map(|(number, _)| Change::Delete(*number)).collect::<Vec<_>>());
        match self.with(|store| store.clean_delete(&hashes))? {
            Ok(count) => {
                self.model.acknowledged();
                self.coverage.note_times(Event::GarbageDeleted, u64::from(there > 0));
                if self.faultless && !(there..=hashes.len()).contains(&count) {
                    return Err(format!("{count} blocks deleted of {garbage:?}"));
                }
                Ok(())
            }
            Err(error) => {
                self.excuse(&error.to_string())?;
                // as of a commit
                if matches!(error, MaintainError::Index { .. }) {
                    self.store = None;
                }
                Ok(())
            }
        }
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

    /// While the device fails too, each answer is right or an error; what a heal could not read may be missing.
    fn read(&mut self) -> Checked {
        let store = self.store.as_mut().ok_or("no store is open")?;
        let asked = self.model.ask(store)?;
        self.coverage.note_times(Event::ErrorAnswered, asked.errors);
        match asked.denied {
            Some(words) if self.disk.is_honest() && !self.is_degraded()? => Err(format!("DENIED: {words}")),
            Some(_) | None => Ok(()),
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

    /// What was not acknowledged since the store was opened is not to be seen.
    ///
    /// # Errors
    /// It is, or something else differs from what is known.
    pub fn compare(&self, seen: &Seen) -> Checked {
        if self.unsettled {
            return self.model.clone().settle(seen);
        }
        self.model.known.differs(seen, &self.model.universe).map_or(Ok(()), Err)
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
            return Err(format!(
                "status counts {counted:?} blocks and names, there are {blocks}, {names}; {:?}",
                seen.errors
            ));
        }
        self.check_limits()
    }

    /// Everything in the directory together, at the worst moment so far.
    ///
    /// # Errors
    /// It was more than the quota.
    pub fn check_quota(&self) -> Checked {
        let (taken, _) = self.disk.most();
        let quota = self.options.quota_bytes;
        if taken > quota {
            Err(format!("QUOTA: {taken} bytes on the device, allowed are {quota}"))
        } else {
            Ok(())
        }
    }

    /// Quota, memory and open files.
    ///
    /// # Errors
    /// One of them does not hold.
    pub fn check_limits(&mut self) -> Checked {
        self.check_quota()?;
        let (_, open) = self.disk.most();
        let status = self.with(|store| store.status())?;
        let entries = 2 * self.options.table_entries as u64 + 64;
        let filter = 96 << 10;
        let limits = [
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

    /// Whether the store says that it could not read all of its log, so that something may be missing until
    /// the device is well and the log is read again.
    ///
    /// # Errors
    /// No store is open.
    pub fn is_degraded(&mut self) -> Checked<bool> {
        let status = self.with(|store| store.status())?;
        let unread = status.stopped.as_ref().is_some_and(|reason| reason.contains("could not be read"));
        self.reported |= unread || status.damaged_bytes > 0;
        self.status = Some(status);
        Ok(self.reported)
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
