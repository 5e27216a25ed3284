//! Every short program with every error at every call.
//!
//! Of each program the last step meets one error: once, or from there on until the device is well again. Then
//! the live store must answer as if nothing had happened but the step, take another batch or say why not,
//! and a power cut must leave what was acknowledged. Programs start from a used store, from nothing, so that making a
//! store is part of their first step, with each way of preparing segments, and one checkpoint before a merge.

use super::exhaustive::{Looked, Opened, batch_after};
use super::life::{Life, Step, options};
use super::model::{Change, Checked, Model};
use super::programs::{Letter, merging_options, programs, store_before_merge, used_store};
use super::workers::spread;
use crate::sim::coverage::Event;
use crate::sim::disk::{Errno, Fate, Faults, Image, Injection, SimDisk};
use larder_store::{Options, Prepare};
use std::sync::Arc;

/// Programs whose last step makes a segment of a spare, or writes to one that was made so.
const RECYCLED: [&[Letter]; 2] =
    [&[Letter::Clean, Letter::Seal], &[Letter::Clean, Letter::Seal, Letter::Put]];

/// From nothing: making a store, its first segment, closing it and opening it again.
const FROM_NOTHING: [&[Letter]; 2] = [&[Letter::Put], &[Letter::Open]];

/// Where preparing makes a difference: the open segment grows, a fresh one is made, and grows.
const PREPARED: [&[Letter]; 3] = [&[Letter::Put], &[Letter::Seal], &[Letter::Seal, Letter::Put]];

/// Checkpoints that begin a merge, go on with it, and end it, and the one behind.
const MERGING: [usize; 4] = [1, 2, 5, 6];

/// Calls of a put that has to tell first where the log ends.
const CALLS_OF_A_PUT: u64 = 8;

/// What programs start from.
struct Start {
    image: Image,
    model: Model,
    options: Options,
    /// There is no store yet: the first step makes it.
    is_nothing: bool,
    opened: Opened,
}

/// One error in one step.
struct Trial<'a> {
    start: &'a Start,
    steps: &'a [Step],
    errno: Errno,
    lasting: bool,
}

/// Runs a program once for each call of its last step, each error and each duration.
fn fail_everywhere(start: &Start, program: &[Letter], looked: &mut Looked) -> Checked {
    looked.programs += 1;
    let mut broken: Vec<String> = Vec::new();
    let steps: Vec<Step> = (0..).zip(program).map(|(place, letter)| letter.step(place)).collect();
    for errno in Errno::ALL {
        for lasting in [false, true] {
            let trial = Trial { start, steps: &steps, errno, lasting };
            for call in 1.. {
                looked.cuts += 1;
                match trial.run(call, looked) {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(words) => {
                        let (from, place) = (if lasting { "from" } else { "at" }, start.words());
                        broken.push(format!(
                            "{program:?} {place}, {errno:?} {from} call {call} of the last step: {words}"
                        ));
                    }
                }
            }
        }
    }
    if broken.is_empty() { Ok(()) } else { Err(broken.join("\n")) }
}

/// Every program of one letter and those of recycled segments from a used store, and a few from each other start,
/// errors everywhere.
pub fn fail_all(threads: usize) -> (Looked, Vec<String>) {
    let work = match work() {
        Ok(work) => work,
        Err(words) => return (Looked::default(), vec![words]),
    };
    let fail = |looked: &mut Looked, (start, program): &(Arc<Start>, Vec<Letter>)| {
        fail_everywhere(start, program, looked)
    };
    let (parts, broken) = spread(&work, threads, Looked::default, fail);
    let mut looked = Looked::default();
    parts.into_iter().for_each(|part| looked += part);
    (looked, broken)
}

/// Programs, each with what it starts from.
fn work() -> Checked<Vec<(Arc<Start>, Vec<Letter>)>> {
    let all = |of: &[&[Letter]]| of.iter().map(|program| program.to_vec()).collect::<Vec<_>>();
    let used = |prepare| {
        let options = Options { prepare, ..options() };
        used_store(&options).map(|made| Start::new(made, options))
    };
    let nothing = Start { is_nothing: true, ..Start::new((Image::default(), Model::default()), options()) };
    let works = [
        (used(Prepare::Allocate)?, [programs(&Letter::FAILING, 1), all(&RECYCLED)].concat()),
        (nothing, all(&FROM_NOTHING)),
        (used(Prepare::None)?, all(&PREPARED)),
        (used(Prepare::Zero)?, all(&PREPARED)),
        (
            Start::new(store_before_merge()?, merging_options()),
            MERGING.map(|length| [Letter::Put, Letter::Checkpoint].repeat(length)).to_vec(),
        ),
    ];
    let mut work = Vec::new();
    for (start, programs) in works {
        let start = Arc::new(start);
        work.extend(programs.into_iter().map(|program| (Arc::clone(&start), program)));
    }
    Ok(work)
}

impl Start {
    fn new((image, model): (Image, Model), options: Options) -> Self {
        Self { image, model, options, is_nothing: false, opened: Opened::default() }
    }

    fn words(&self) -> String {
        let Options { prepare, table_entries, .. } = self.options;
        let place = if self.is_nothing { "nothing" } else { "a store" };
        format!("from {place}, prepared {prepare:?}, {table_entries} entries in the table")
    }
}

impl Trial<'_> {
    /// False if the step has fewer calls.
    fn run(&self, call: u64, looked: &mut Looked) -> Checked<bool> {
        let Start { image, model, options, is_nothing, .. } = self.start;
        let disk = SimDisk::new(image.clone(), Faults::default(), call);
        let mut life = Life::faulty(disk, model.clone(), options.clone());
        if !is_nothing {
            life.open()?;
        }
        let (last, before) = self.steps.split_last().ok_or("a program has a step")?;
        for step in before {
            life.step(step)?;
        }
        let at = life.disk.calls() + call;
        let injection = Some(Injection { at, errno: self.errno, lasting: self.lasting });
        life.disk.set_faults(Faults { injection, ..Faults::default() });
        let merged = life.is_merging();
        life.step(last)?;
        let reached = life.disk.calls() >= at;
        life.disk.set_faults(Faults::default());
        if life.disk.injected() {
            let in_merge = merged || life.is_merging();
            looked.coverage.note_times(Event::ErrorInMerge, u64::from(in_merge));
            looked.coverage += life.disk.coverage();
            self.aftermath(life, call, looked)?;
        }
        Ok(reached)
    }

    fn aftermath(&self, mut life: Life, call: u64, looked: &mut Looked) -> Checked {
        life.faultless = true;
        if life.store.is_some() {
            life.is_degraded()?;
        }
        let degraded = life.reported;
        if life.store.is_some() && !degraded {
            let seen = life.look()?;
            if let Some(words) = life.model.known.differs(&seen, &life.model.universe) {
                return Err(format!("while open: {words}"));
            }
            life.check_limits()?;
        }
        if self.errno == Errno::Io {
            self.start_again(&life, looked).map_err(|words| format!("the process dies, {words}"))?;
        }
        let mut cut = |life: &Life, fate: Fate, when: &str| {
            let image = life.cut(fate);
            if !self.start.opened.is_new(&image, (&life.model, degraded)) {
                return Ok(());
            }
            looked.images += 1;
            let place = |words: String| format!("cut {when}, {fate:?}: {words}");
            let mut after =
                Life::faultless(image, life.model.clone(), self.start.options.clone()).map_err(place)?;
            if degraded {
                after.step(&Step::Rebuild).map_err(place)?;
            }
            after.check().map_err(place)
        };
        for fate in [Fate::NOTHING, Fate::EVERYTHING, Fate::drawn(call)] {
            cut(&life, fate, "after it")?;
        }
        life.faultless = false;
        life.step(&batch_after())?;
        cut(&life, Fate::NOTHING, "after another batch")?;
        // what the index was opened on again after a failed sync must be on the device too
        life.disk.forget();
        life.step(&Step::Checkpoint)?;
        cut(&life, Fate::NOTHING, "after another checkpoint")
    }

    /// The process dies and not the kernel, which shows the next one what a failed sync dropped. That does the step
    /// once more, and what it acknowledges outlasts a power cut.
    fn start_again(&self, life: &Life, looked: &mut Looked) -> Checked {
        let mut next = Life::faultless(life.disk.image(), life.model.clone(), self.start.options.clone())?;
        if life.reported {
            next.step(&Step::Rebuild)?;
        }
        next.check()?;
        let last = self.steps.last().ok_or("a program has a step")?;
        next.step(last)?;
        looked.images += 1;
        let after = Life::faultless(next.cut(Fate::NOTHING), next.model.clone(), self.start.options.clone());
        after.and_then(|mut after| after.check()).map_err(|words| format!("then the power fails: {words}"))
    }
}

/// A deletion that a full device refuses, at each of its first calls, however much of it arrived; then the block is
/// put, found there and acknowledged without a write, at once or after the device was full once more. The deletion
/// must not come back.
///
/// # Errors
/// The block is lost; the words say how.
pub fn refuse_a_deletion(seeds: u64) -> Checked<Looked> {
    let (image, model) = used_store(&options())?;
    let mut looked = Looked::default();
    for seed in 0..seeds {
        let again = seed % CALLS_OF_A_PUT;
        for call in 1..4 {
            looked.cuts += 1;
            let disk = SimDisk::new(image.clone(), Faults::default(), seed);
            let mut life = Life::faulty(disk, model.clone(), options());
            life.open()?;
            life.full_at(call, Change::Delete(1))?;
            if again > 0 {
                life.full_at(again, Change::Put(1))?;
            }
            life.faultless = true;
            life.step(&Step::Commit(vec![Change::Put(1)]))?;
            for fate in [Fate::NOTHING, Fate::EVERYTHING, Fate::drawn(seed), Fate::drawn(seed + 1000)] {
                looked.images += 1;
                let place = |words: String| format!("seed {seed}, call {call}, {again}, {fate:?}: {words}");
                let after = Life::faultless(life.cut(fate), life.model.clone(), options());
                after.and_then(|mut after| after.check()).map_err(place)?;
            }
        }
    }
    Ok(looked)
}

impl Life {
    fn is_merging(&self) -> bool {
        self.store.as_ref().is_some_and(|store| store.status().merges_under_way > 0)
    }

    /// The device is full at one call of a commit.
    fn full_at(&mut self, call: u64, change: Change) -> Checked {
        let at = self.disk.calls() + call;
        let injection = Some(Injection { at, errno: Errno::Full, lasting: false });
        self.disk.set_faults(Faults { injection, ..Faults::default() });
        self.step(&Step::Commit(vec![change]))?;
        self.disk.set_faults(Faults::default());
        Ok(())
    }
}
