//! Every short program with every error at every call.
//!
//! Of each program the last step meets one error: once, or from there on until the device is well again. Then
//! the live store must answer as if nothing had happened but the step, take another batch or say why not,
//! and a power cut must leave what was acknowledged.

use super::exhaustive::{Letter, Looked};
use super::life::{Life, Step, options};
use super::model::{Change, Checked, Model};
use crate::sim::disk::{Errno, Fate, Faults, Image, Injection, SimDisk};

/// One error in one step.
struct Trial<'a> {
    image: &'a Image,
    model: &'a Model,
    steps: &'a [Step],
    errno: Errno,
    lasting: bool,
}

/// Runs a program once for each call of its last step, each error and each duration.
///
/// # Errors
/// A promise is broken; the words say where.
pub fn fail_everywhere(image: &Image, model: &Model, program: &[Letter], looked: &mut Looked) -> Checked {
    looked.programs += 1;
    let mut broken: Vec<String> = Vec::new();
    let steps: Vec<Step> = (0..).zip(program).map(|(place, letter)| letter.step(place)).collect();
    for errno in Errno::ALL {
        for lasting in [false, true] {
            let trial = Trial { image, model, steps: &steps, errno, lasting };
            for call in 1.. {
                looked.cuts += 1;
                match trial.run(call, looked) {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(words) => {
                        let from = if lasting { "from" } else { "at" };
                        broken.push(format!(
                            "{program:?}, {errno:?} {from} call {call} of the last step: {words}"
                        ));
                    }
                }
            }
        }
    }
    if broken.is_empty() { Ok(()) } else { Err(broken.join("\n")) }
}

impl Trial<'_> {
    /// False if the step has fewer calls.
    fn run(&self, call: u64, looked: &mut Looked) -> Checked<bool> {
        let disk = SimDisk::new(self.image.clone(), Faults::default(), call);
        let mut life = Life::faulty(disk, self.model.clone(), options());
        life.open()?;
        let (last, before) = self.steps.split_last().ok_or("a program has a step")?;
        for step in before {
            life.step(step)?;
        }
        let at = life.disk.calls() + call;
        let injection = Some(Injection { at, errno: self.errno, lasting: self.lasting });
        life.disk.set_faults(Faults { injection, ..Faults::default() });
        life.step(last)?;
        let reached = life.disk.calls() >= at;
        life.disk.set_faults(Faults::default());
        if life.disk.injected() {
            self.aftermath(life, call, looked)?;
        }
        Ok(reached)
    }

    fn aftermath(&self, mut life: Life, call: u64, looked: &mut Looked) -> Checked {
        life.faultless = true;
        if life.store.is_some() {
            let seen = life.look()?;
            if let Some(words) = life.model.known.differs(&seen, &life.model.universe) {
                return Err(format!("while open: {words}"));
            }
            life.check_limits()?;
        }
        let mut cut = |life: &Life, fate: Fate, when: &str| {
            looked.images += 1;
            let place = |words: String| format!("cut {when}, {fate:?}: {words}");
            let mut after = Life::faultless(life.cut(fate), life.model.clone(), options()).map_err(place)?;
            after.check().map_err(place)
        };
        for fate in [Fate::NOTHING, Fate::EVERYTHING, Fate::drawn(call)] {
            cut(&life, fate, "after it")?;
        }
        life.faultless = false;
        life.step(&Step::Commit(vec![Change::Put(90), Change::Put(93), Change::Bind(7, 77)]))?;
        cut(&life, Fate::NOTHING, "after another batch")
    }
}
