//! Long random lives: a store that is used, starved, lied to and cut, over and over.
//!
//! A seed decides everything: options, faults and their weights, steps, where the power fails, and what each
//! cut leaves. Behind every cut several images are opened and compared with the model; life goes on with one.
//! An honest device may lose nothing that was acknowledged; a lying one may, but nothing is ever wrong.

use super::habits::Habit;
use super::life::{Life, Step};
use super::model::{Checked, Model};
use super::workers::spread;
use crate::sim::coverage::{Coverage, Event};
use crate::sim::disk::{Fate, Faults, Image, SimDisk};
use crate::sim::random::Random;
use larder_store::{Options, Store};
use std::ops::AddAssign;
use std::panic::catch_unwind;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Images opened behind each cut, besides those that no luck decides.
const DRAWN_PER_CUT: u64 = 5;

/// What a life went through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Images opened and compared.
    pub images: u64,
    /// Steps done.
    pub steps: u64,
    /// Calls to the disks.
    pub calls: u64,
    /// Time the calls and stalls would have taken.
    pub simulated_ms: u64,
    /// Places it got to.
    pub coverage: Coverage,
}

struct Storm {
    random: Random,
    habit: Habit,
    options: Options,
    faults: Faults,
    told: Told,
    trace: bool,
    merging: Merging,
}

/// What was seen of an index's merges.
#[derive(Clone, Copy, Default)]
struct Merging {
    finished: u64,
    collections: u64,
    /// One of them is under way.
    collecting: bool,
}

/// One life. With `trace` each step is printed.
///
/// # Errors
/// A promise is broken; the words say what the device was like.
pub fn live(seed: u64, trace: bool) -> Checked<Told> {
    quiet_redb();
    let mut random = Random::new(seed);
    let habit = Habit::drawn(&mut random);
    let (options, faults) = (habit.options(&mut random), habit.faults(&mut random));
    let (told, merging) = (Told::default(), Merging::default());
    let mut storm = Storm { random, habit, options, faults, told, trace, merging };
    let rounds = storm.random.below(8) + 2;
    let mut life = storm.begin()?;
    for round in 0..rounds {
        let lived = storm.round(&mut life).and_then(|()| storm.cut(&life));
        life = lived.map_err(|words| {
            let Storm { habit, faults, options, .. } = &storm;
            format!("round {round} of {habit:?} life {seed}: {words}\n  with {faults:?}\n  and {options:?}")
        })?;
    }
    Ok(storm.told)
}

/// Lives from a seed on, until so many images were opened; and the words of those that broke a promise.
pub fn storms(seed: u64, images: u64, threads: usize) -> (Told, Vec<String>) {
    quiet_redb();
    let opened = AtomicU64::new(0);
    let seeds: Vec<u64> = (seed..seed + images).collect();
    let (told, broken) = spread(&seeds, threads, Told::default, |told, seed| {
        if opened.load(Relaxed) < images {
            let lived = catch_unwind(|| live(*seed, false));
            let life = lived.unwrap_or_else(|_| Err(format!("life {seed} ends in a panic")))?;
            opened.fetch_add(life.images, Relaxed);
            *told += life;
        }
        Ok(())
    });
    let mut all = Told::default();
    told.into_iter().for_each(|told| all += told);
    (all, broken)
}

/// redb stops by panic on damaged pages; the store catches that, and nobody wants to read about it.
fn quiet_redb() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !info.location().is_some_and(|location| location.file().contains("redb")) {
                hook(info);
            }
        }));
    });
}

impl AddAssign for Told {
    fn add_assign(&mut self, other: Self) {
        self.images += other.images;
        self.steps += other.steps;
        self.calls += other.calls;
        self.simulated_ms += other.simulated_ms;
        self.coverage += other.coverage;
    }
}

fn is_index(name: &str) -> bool {
    name == "index.redb"
}

impl Storm {
    fn begin(&mut self) -> Checked<Life> {
        let disk = SimDisk::new(Image::default(), Faults::default(), self.random.number());
        let mut life = Life::faulty(disk, Model::default(), self.options.clone());
        // the first store is made in good weather or bad
        life.faultless = self.random.chance(700);
        if life.faultless {
            life.open()?;
        }
        Ok(life)
    }

    /// Some steps, until the power fails.
    fn round(&mut self, life: &mut Life) -> Checked {
        life.faultless = self.faults.are_none();
        life.opens = self.faults.are_lies();
        life.disk.set_faults(self.faults.clone());
        let calm = self.random.chance(200);
        let changes = self.habit.changes(&mut self.random);
        if !calm {
            life.disk.fail_power_after(changes, self.random.chance(500));
        }
        for _step in 0..3 + self.random.below(25) {
            let step = self.habit.step(&mut self.random);
            if self.random.chance(100) {
                life.disk.forget();
            }
            let rots = self.random.chance(self.faults.index_rot);
            let rotten = if rots { life.disk.rot(is_index) } else { None };
            let done = life.step(&step).map_err(|words| format!("{step:?}, rotten {rotten:?}: {words}"));
            self.told.steps += 1;
            if self.trace {
                self.tell(&step, life);
            }
            done?;
            self.watch_merges(life);
            if life.disk.is_dark() {
                return Ok(());
            }
            if self.random.chance(200) {
                self.glance(life).map_err(|words| format!("while open, after {step:?}: {words}"))?;
            }
        }
        Ok(())
    }

    fn tell(&self, step: &Step, life: &Life) {
        let state = match life.status.as_ref().filter(|_| life.store.is_some()) {
            None => "no store is open".to_owned(),
            Some(status) => {
                let (used, of_index) = (status.used_bytes, status.index_disk_bytes);
                let (stopped, fault, index) = (&status.stopped, &status.last_fault, &status.index_rebuilt);
                let unsure = &life.model.unsure;
                format!(
                    "used {used}, index {of_index}, stopped {stopped:?}, fault {fault:?}, rebuilt {index:?}, {unsure:?}"
                )
            }
        };
        println!("  {step:?}\n    dark {}, {state}", life.disk.is_dark());
    }

    /// Compares the open store with the model in a calm moment.
    fn glance(&self, life: &mut Life) -> Checked {
        if life.store.is_none() {
            return Ok(());
        }
        life.disk.set_faults(Faults::default());
        let seen = match life.look() {
            Err(words) if life.disk.is_dark() && !words.contains("WRONG") => return Ok(()),
            looked => looked?,
        };
        if life.disk.is_dark() {
            return Ok(());
        }
        if self.faults.is_honest() && !life.is_degraded()? {
            life.compare(&seen)?;
            life.check_limits()?;
        }
        life.disk.set_faults(self.faults.clone());
        Ok(())
    }

    /// Looks at several images a power cut may leave now; life goes on with the last. Or only the process died: the
    /// next one sees all that was written, durable or not.
    fn cut(&mut self, life: &Life) -> Checked<Life> {
        let image = life.disk.image();
        self.told.calls += life.disk.calls();
        self.told.simulated_ms += life.disk.simulated_ms();
        self.told.coverage += life.disk.coverage();
        self.told.coverage += life.coverage.clone();
        if self.faults.is_honest() {
            life.check_quota()?;
        }
        if self.random.chance(300) {
            self.told.images += 1;
            return self.inspect(image, life).map_err(|words| format!("killed: {words}"));
        }
        let drawn = (0..DRAWN_PER_CUT).map(|_| Fate::drawn(self.random.number()));
        let drawn: Vec<Fate> = drawn.collect();
        let begun = Fate::begun(self.random.number());
        let fates = [Fate::EVERYTHING, Fate::NOTHING, begun].into_iter().chain(drawn);
        let mut next = None;
        for fate in fates {
            let mut left = image.cut(fate);
            let mut rotten = None;
            if self.random.chance(self.faults.rot) {
                rotten = left.rot(&mut self.random, |_| true);
            }
            if self.random.chance(self.faults.index_rot) {
                rotten = left.rot(&mut self.random, is_index).or(rotten);
            }
            self.told.images += 1;
            let place = |words: String| format!("cut, {fate:?}, rotten {rotten:?}: {words}");
            next = Some(self.inspect(left, life).map_err(place)?);
        }
        next.ok_or_else(|| "a cut leaves something".into())
    }

    fn inspect(&mut self, image: Image, before: &Life) -> Checked<Life> {
        let has_older = image.newest_segment_holds_older();
        let disk = SimDisk::new(image, Faults::default(), self.random.number());
        let mut life = Life::faulty(disk, before.model.clone(), self.options.clone());
        life.faultless = true;
        let report = life.open()?;
        // after a clean end nothing is looked for behind it
        let met = has_older && report.is_some_and(|report| !report.clean);
        self.told.coverage.note_times(Event::OldGenerationMet, u64::from(met));
        self.watch_cut(&life);
        if !self.faults.is_honest() {
            let seen = life.look()?;
            life.model.believe(&seen)?;
            return Ok(life);
        }
        if before.reported {
            life.step(&Step::Rebuild)?;
        }
        life.check()?;
        Ok(life)
    }

    /// Notes what became of merges since it was called last.
    fn watch_merges(&mut self, life: &Life) {
        let Some(status) = life.store.as_ref().map(Store::status) else { return };
        let before = self.merging;
        // an index that was opened again counts anew
        let since = |now: u64, before: u64| if now < before { now } else { now - before };
        let collections = since(status.collections, before.collections);
        self.told.coverage.note_times(Event::Merged, since(status.merges, before.finished));
        self.told.coverage.note_times(Event::Collected, collections);
        self.merging = Merging {
            finished: status.merges,
            collections: status.collections,
            collecting: status.merges_under_way > 0 && (before.collecting || collections > 0),
        };
    }

    /// Notes whether a cut came in the middle of a merge.
    fn watch_cut(&mut self, after: &Life) {
        let under_way = after.store.as_ref().is_some_and(|store| store.status().merges_under_way > 0);
        self.told.coverage.note_times(Event::CutInMerge, u64::from(under_way));
        let collecting = under_way && self.merging.collecting;
        self.told.coverage.note_times(Event::CutInCollection, u64::from(collecting));
    }
}
