//! Every short program, cut at every change, and cut again in every recovery.
//!
//! Of each program only the last step is cut: the cuts in the others are those of shorter programs. The
//! device is looked at as each [`Fate`] leaves it. What was looked at before is not looked at again. Shorter
//! programs also end with a killed process on a kernel that lives on: what was written is seen, and not durable.

use super::life::{Life, Step, options};
use super::model::{Change, Checked, Model};
use super::programs::{Letter, merging_options, programs, store_before_merge, used_store};
use super::workers::spread;
use crate::sim::coverage::{Coverage, Event};
use crate::sim::disk::{Cut, Errno, Fate, Faults, Image, Injection, SimDisk};
use larder_store::Options;
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::AddAssign;
use std::sync::{Arc, Mutex};

/// What was looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Looked {
    /// Programs.
    pub programs: u64,
    /// Places where the power failed, in a program or a recovery.
    pub cuts: u64,
    /// Different devices that were left and opened.
    pub images: u64,
    /// Places that were got to.
    pub coverage: Coverage,
}

impl AddAssign for Looked {
    fn add_assign(&mut self, other: Self) {
        self.programs += other.programs;
        self.cuts += other.cuts;
        self.images += other.images;
        self.coverage += other.coverage;
    }
}

/// Devices that were opened, and with what expectations, so that each is opened once. Clones share them.
#[derive(Clone, Default)]
pub(super) struct Opened(Arc<Mutex<HashSet<u64>>>);

impl Opened {
    /// Whether it is the first of its kind.
    pub(super) fn is_new(&self, image: &Image, expected: impl Hash) -> bool {
        let mut hasher = DefaultHasher::new();
        (image.fingerprint(), expected).hash(&mut hasher);
        self.0.lock().is_ok_and(|mut seen| seen.insert(hasher.finish()))
    }
}

/// Cuts programs, and remembers what was looked at.
pub struct Examiner {
    options: Options,
    opened: Opened,
    /// So far.
    pub looked: Looked,
}

impl Examiner {
    /// One of stores with these options.
    pub fn new(options: Options) -> Self {
        Self { options, opened: Opened::default(), looked: Looked::default() }
    }

    /// One that knows what others looked at, and tells them.
    pub fn beside(other: &Self) -> Self {
        let (options, opened) = (other.options.clone(), other.opened.clone());
        Self { options, opened, looked: Looked::default() }
    }

    /// Runs a program from a store and cuts its last step everywhere.
    ///
    /// # Errors
    /// A promise is broken; the words say where.
    pub fn examine(&mut self, image: &Image, model: &Model, program: &[Letter]) -> Checked {
        self.looked.programs += 1;
        let within = |words: String| format!("{program:?}: {words}");
        let last_step = self.run_and_record(image, model, program).map_err(within)?;
        self.cut_everywhere(&last_step, true).map_err(within)
    }

    /// Runs a program from a store and kills the process at every change of its last step. The next one sees what
    /// was written, and what it sees and what it acknowledges must outlast a power cut.
    ///
    /// # Errors
    /// As for [`Examiner::examine`].
    pub fn examine_kills(&mut self, image: &Image, model: &Model, program: &[Letter]) -> Checked {
        self.looked.programs += 1;
        let within = |words: String| format!("{program:?}: {words}");
        let last_step = self.run_and_record(image, model, program).map_err(within)?;
        for (number, (cut, expected)) in last_step.cuts().enumerate() {
            self.looked.cuts += 1;
            let place = |words: String| format!("killed {number} before {}: {words}", cut.before);
            self.restart(&cut.image, expected, number as u64).map_err(place).map_err(within)?;
            if program.len() == 1 {
                self.restart_badly(&cut.image, expected).map_err(place).map_err(within)?;
            }
        }
        Ok(())
    }

    /// Each call of the restart fails once; then the store is closed, if it opened at all, and the power fails.
    fn restart_badly(&mut self, image: &Image, expected: &Model) -> Checked {
        for at in 1.. {
            let injection = Injection { at, errno: Errno::Io, lasting: false };
            let faults = Faults { injection: Some(injection), ..Faults::default() };
            let disk = SimDisk::new(image.clone(), faults, 0);
            let mut life = Life::faulty(disk, expected.clone(), self.options.clone());
            life.open()?;
            if life.disk.calls() < at {
                return Ok(());
            }
            let reported = life.reported;
            drop(life.store.take().map(larder_store::Store::close));
            for fate in [Fate::NOTHING, Fate::EVERYTHING] {
                let left = life.cut(fate);
                if !self.opened.is_new(&left, (expected, reported)) {
                    continue;
                }
                self.looked.images += 1;
                let place =
                    |words| format!("call {at} of the restart failed, closed, cut, {fate:?}: {words}");
                let after = Life::faultless(left, expected.clone(), self.options.clone());
                let mut after = after.map_err(place)?;
                if reported {
                    after.step(&Step::Rebuild).map_err(place)?;
                }
                after.check().map_err(place)?;
            }
        }
        Ok(())
    }

    fn restart(&mut self, image: &Image, expected: &Model, luck: u64) -> Checked {
        let mut life = Life::faultless(image.clone(), expected.clone(), self.options.clone())?;
        life.check()?;
        for acknowledges in [false, true] {
            if acknowledges {
                life.step(&batch_after())?;
            }
            for fate in [Fate::NOTHING, Fate::drawn(luck), Fate::drawn(luck + 77)] {
                let left = life.cut(fate);
                if !self.opened.is_new(&left, &life.model) {
                    continue;
                }
                self.looked.images += 1;
                let place = |words| format!("cut, {fate:?}, another batch {acknowledges}: {words}");
                let after = Life::faultless(left, life.model.clone(), self.options.clone());
                after.and_then(|mut after| after.check()).map_err(place)?;
            }
        }
        Ok(())
    }

    /// The making of a store, cut everywhere.
    ///
    /// # Errors
    /// As for [`Examiner::examine`].
    pub fn examine_making(&mut self) -> Checked {
        let model = Model::default();
        let disk = SimDisk::new(Image::default(), Faults::default(), 0);
        disk.record();
        let mut life = Life::faulty(disk, model.clone(), self.options.clone());
        life.faultless = true;
        life.open()?;
        let making = Recorded { cuts: life.disk.recorded(), during: model.clone(), after: model };
        self.cut_everywhere(&making, true).map_err(|words| format!("making a store: {words}"))
    }

    fn cut_everywhere(&mut self, recorded: &Recorded, again: bool) -> Checked {
        for (number, (cut, expected)) in recorded.cuts().enumerate() {
            self.looked.cuts += 1;
            let drawn = |luck: u64| Fate::drawn(number as u64 + 1000 * luck);
            let fates =
                [Fate::NOTHING, Fate::EVERYTHING, Fate::NAMES, drawn(1), drawn(2), drawn(3), drawn(4)];
            let one = fates[(number + recorded.cuts.len()) % fates.len()];
            for fate in if again { &fates[..] } else { std::slice::from_ref(&one) } {
                let place = |words: String| format!("cut {number} before {}, {fate:?}: {words}", cut.before);
                self.open_after(cut.image.cut(*fate), expected, again).map_err(place)?;
            }
        }
        Ok(())
    }

    /// Opens what a cut left, and cuts that too.
    fn open_after(&mut self, image: Image, expected: &Model, again: bool) -> Checked {
        if !self.opened.is_new(&image, (expected, again)) {
            return Ok(());
        }
        self.looked.images += 1;
        let disk = SimDisk::new(image, Faults::default(), 0);
        disk.record();
        let mut life = Life::faulty(disk, expected.clone(), self.options.clone());
        life.faultless = true;
        let report = life.open()?.ok_or("it did not open")?;
        let cuts = life.disk.recorded();
        life.check()?;
        let in_merge = life.store.as_ref().is_some_and(|store| store.status().merges_under_way > 0);
        self.looked.coverage.note_times(Event::CutInMerge, u64::from(in_merge));
        if report.damaged_bytes > 0 {
            return Err(format!("a power cut passes for damage: {report:?}"));
        }
        if again {
            let recovery = Recorded { cuts, during: expected.clone(), after: life.model.clone() };
            self.cut_everywhere(&recovery, false).map_err(|words| format!("again {words}"))?;
            self.write_again(life)?;
        }
        Ok(())
    }

    /// Runs a program and records its last step.
    fn run_and_record(&self, image: &Image, model: &Model, program: &[Letter]) -> Checked<Recorded> {
        let mut life = Life::faultless(image.clone(), model.clone(), self.options.clone())?;
        let steps: Vec<Step> = (0..).zip(program).map(|(place, letter)| letter.step(place)).collect();
        let (last, before) = steps.split_last().ok_or("a program has a step")?;
        for step in before {
            life.step(step)?;
        }
        let during = life.expected_during(last);
        life.disk.record();
        life.step(last)?;
        let cuts = life.disk.recorded();
        life.check()?;
        Ok(Recorded { cuts, during, after: life.model })
    }

    /// What is written after a recovery is as durable as anything, and harms nothing.
    fn write_again(&self, mut life: Life) -> Checked {
        life.step(&batch_after())?;
        let image = life.cut(Fate::NOTHING);
        let mut life = Life::faultless(image, life.model, self.options.clone())?;
        life.check().map_err(|words| format!("after writing again: {words}"))
    }
}

/// The places where one step can be cut.
struct Recorded {
    cuts: Vec<Cut>,
    /// What may be found at all of them but the last, which must hold what is known `after`.
    during: Model,
    after: Model,
}

impl Recorded {
    /// The cuts, with what is expected behind each.
    fn cuts(&self) -> impl Iterator<Item = (&Cut, &Model)> {
        let last = self.cuts.len().saturating_sub(1);
        let expected = move |number| if number == last { &self.after } else { &self.during };
        self.cuts.iter().enumerate().map(move |(number, cut)| (cut, expected(number)))
    }
}

/// All programs up to a length from a used store, each with its process killed everywhere in the last step.
pub fn kill_all(length: usize, threads: usize) -> (Looked, Vec<String>) {
    let (image, model) = match used_store(&options()) {
        Ok(made) => made,
        Err(words) => return (Looked::default(), vec![words]),
    };
    let work = programs(&Letter::CUT, length);
    let first = Examiner::new(options());
    let (examiners, broken) = spread(
        &work,
        threads,
        || Examiner::beside(&first),
        |examiner, program| examiner.examine_kills(&image, &model, program),
    );
    (sum(examiners), broken)
}

/// All programs up to a length from a used store, all shorter ones from an empty directory, each cut everywhere.
pub fn cut_all(length: usize, threads: usize) -> (Looked, Vec<String>) {
    let (image, model) = match used_store(&options()) {
        Ok(made) => made,
        Err(words) => return (Looked::default(), vec![words]),
    };
    let from_used = programs(&Letter::CUT, length).into_iter().map(|program| (true, program));
    let from_nothing =
        programs(&Letter::CUT, length.saturating_sub(1)).into_iter().map(|program| (false, program));
    let work: Vec<(bool, Vec<Letter>)> = from_used.chain(from_nothing).collect();
    let (nothing, no_model) = (Image::default(), Model::default());
    let mut first = Examiner::new(options());
    let making = first.examine_making().err();
    let (mut examiners, mut broken) = spread(
        &work,
        threads,
        || Examiner::beside(&first),
        |examiner, (used, program)| {
            let (image, model) = if *used { (&image, &model) } else { (&nothing, &no_model) };
            examiner.examine(image, model, program)
        },
    );
    broken.extend(making);
    examiners.push(first);
    (sum(examiners), broken)
}

/// So many changes and checkpoints after a store that is one checkpoint short of a merge, each checkpoint cut
/// everywhere.
pub fn cut_merges(checkpoints: usize, threads: usize) -> (Looked, Vec<String>) {
    let (image, model) = match store_before_merge() {
        Ok(made) => made,
        Err(words) => return (Looked::default(), vec![words]),
    };
    let program = |length| [Letter::Put, Letter::Checkpoint].repeat(length);
    let work: Vec<Vec<Letter>> = (1..=checkpoints).map(program).collect();
    let (examiners, broken) = spread(
        &work,
        threads,
        || Examiner::new(merging_options()),
        |examiner, program| examiner.examine(&image, &model, program),
    );
    (sum(examiners), broken)
}

fn sum(examiners: Vec<Examiner>) -> Looked {
    let mut looked = Looked::default();
    examiners.into_iter().for_each(|examiner| looked += examiner.looked);
    looked
}

/// A batch for after whatever happened.
pub(super) fn batch_after() -> Step {
    Step::Commit(vec![Change::Put(90), Change::Put(93), Change::Bind(7, 77)])
}
