//! Long random lives: a store that is used, starved, lied to and cut, over and over.
//!
//! A seed decides everything: options, faults and their weights, steps, where the power fails, and what each
//! cut leaves. Behind every cut several images are opened and compared with the model; life goes on with one.
//! An honest device may lose nothing that was acknowledged; a lying one may, but nothing is ever wrong.

use super::life::{Life, Step, options};
use super::model::{Change, Checked, LARGE, Model};
use super::workers::spread;
use crate::sim::disk::{Fate, Faults, Image, SimDisk};
use crate::sim::random::Random;
use larder_store::{Options, Prepare};
use std::ops::AddAssign;
use std::panic::catch_unwind;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Images opened behind each cut.
const IMAGES_PER_CUT: u64 = 6;
const BLOCKS: u64 = 60;

/// What a life went through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Images opened and compared.
    pub images: u64,
    /// Steps done.
    pub steps: u64,
    /// Calls to the disks.
    pub calls: u64,
    /// Time the calls and stalls would have taken.
    pub simulated_ms: u64,
}

struct Storm {
    random: Random,
    options: Options,
    faults: Faults,
    told: Told,
    trace: bool,
}

/// One life. With `trace` each step is printed.
///
/// # Errors
/// A promise is broken; the words say what the device was like.
pub fn live(seed: u64, trace: bool) -> Checked<Told> {
    quiet_redb();
    let mut random = Random::new(seed);
    let options = draw_options(&mut random);
    let faults = match random.below(20) {
        0..8 => Faults::default(),
        8..15 => Faults::honest(&mut random),
        _ => Faults::lying(&mut random),
    };
    let mut storm = Storm { random, options, faults, told: Told::default(), trace };
    let rounds = storm.random.below(8) + 2;
    let mut life = storm.begin()?;
    for round in 0..rounds {
        let lived = storm.round(&mut life).and_then(|()| storm.cut(&life));
        life = lived.map_err(|words| {
            let Storm { faults, options, .. } = &storm;
            format!("round {round} of life {seed}: {words}\n  with {faults:?}\n  and {options:?}")
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
    }
}

fn is_index(name: &str) -> bool {
    name == "index.redb"
}

fn draw_options(random: &mut Random) -> Options {
    let quota = *random.pick(&[64, 64, 8]);
    Options {
        segment_bytes: *random.pick(&[64 << 10, 128 << 10]),
        table_entries: *random.pick(&[5, 20, 200]),
        cache_bytes: *random.pick(&[0, 20_000]),
        index_cache_bytes: *random.pick(&[0, 256 << 10]),
        prepare: *random.pick(&[Prepare::None, Prepare::Allocate, Prepare::Zero]),
        quota_bytes: quota << 20,
        reserve_bytes: (quota << 20) / 4,
        ..options()
    }
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
        life.faultless = false;
        life.disk.set_faults(self.faults.clone());
        let calm = self.random.chance(200);
        let changes = 1 + self.random.below(*self.random.clone().pick(&[6, 30, 200]));
        if !calm {
            life.disk.fail_power_after(changes);
        }
        for _step in 0..3 + self.random.below(25) {
            let step = self.draw_step();
            let rots = self.random.chance(self.faults.index_rot);
            let rotten = if rots { life.disk.rot(is_index) } else { None };
            let done = life.step(&step).map_err(|words| format!("{step:?}, rotten {rotten:?}: {words}"));
            self.told.steps += 1;
            if self.trace {
                self.tell(&step, life);
            }
            done?;
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
        let state = match &life.store {
            None => "no store is open".to_owned(),
            Some(store) => {
                let status = store.status();
                let (stopped, fault, index) = (status.stopped, status.last_fault, status.index_rebuilt);
                format!("stopped {stopped:?}, fault {fault:?}, index {index:?}, {:?}", life.model.unsure)
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
            life.model.clone().settle(&seen)?;
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
        if self.random.chance(300) {
            self.told.images += 1;
            return self.inspect(image, life).map_err(|words| format!("killed: {words}"));
        }
        let drawn = (0..IMAGES_PER_CUT).map(|_| Fate::drawn(self.random.number()));
        let fates = [Fate::EVERYTHING, Fate::NOTHING].into_iter().chain(drawn.collect::<Vec<_>>());
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
        let disk = SimDisk::new(image, Faults::default(), self.random.number());
        let mut life = Life::faulty(disk, before.model.clone(), self.options.clone());
        life.faultless = true;
        life.open()?;
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

    fn draw_step(&mut self) -> Step {
        let random = &mut self.random;
        match random.below(30) {
            0..18 => Step::Commit(draw_batch(random)),
            18..21 => Step::Checkpoint,
            21 | 22 => Step::Reopen,
            23 => Step::Kill,
            24 => Step::Rebuild,
            25..29 => Step::Clean {
                garbage: random.below(3) as u32,
                budget: 1000 + random.below(200_000),
                steps: 1 + random.below(20) as usize,
            },
            _ => Step::Verify,
        }
    }
}

fn draw_batch(random: &mut Random) -> Vec<Change> {
    let length = random.below(*random.clone().pick(&[3, 12]));
    let change = |_| match random.below(20) {
        0..9 => Change::Put(random.below(BLOCKS) as u32),
        9 => Change::Delete(random.below(BLOCKS) as u32),
        10..14 => Change::Bind(random.below(12) as u8, random.below(1000) as u32),
        14 => Change::Unbind(random.below(12) as u8),
        15 | 16 => {
            let value = random.below(1000) as u32;
            Change::Set(random.below(6) as u8, random.chance(700).then_some(value))
        }
        _ => Change::Delete(random.below(BLOCKS) as u32),
    };
    let mut batch: Vec<Change> = (0..length).map(change).collect();
    // one of these and a small batch still fit a segment
    if random.chance(150) {
        batch.truncate(1);
        batch.retain(|change| !matches!(change, Change::Put(_)));
        batch.push(Change::Put(LARGE + random.below(6) as u32));
    }
    batch
}
