//! The Power actor: which profile is in force, when the loop wakes, when the radio may be used, what it costs.
//!
//! Profiles are data, and so are their reactions: while a [`Condition`] holds, the profile asked for (by
//! configuration or, for a time, by hand) names the one that takes its place. A reading that shows a condition
//! is answered in the turn that brings it; see [`conditions`] for what keeps a noisy sensor from flapping.
//!
//! Every deadline has a window. The timer fires at the first tick inside the earliest window, so that
//! deadlines of one tick share a wake-up; where no tick falls inside it, at the window's end: nothing is
//! ever later than its deadline allows. Sensors are read when the loop is awake anyway, if half of the
//! profile's `sense_s` has passed, and else at its end. Sensors that do not answer within five seconds count
//! as absent until they do: then the kernel alone is asked in their time, so that reactions end, hours close and
//! telemetry goes on.
//!
//! A profile set by hand lasts for its time or until the next start; it is not remembered over one, because
//! an order that outlives its reason costs more than one that ends early.

pub mod conditions;
pub mod meter;
pub mod plan;
pub mod report;
#[cfg(test)]
mod tests;
pub mod windows;

use std::sync::Arc;

use conditions::{Belief, Condition, Conditions, Readings};
use meter::Meter;
use plan::{PowerPlan, Steering};
use report::{ByHand, PowerAsk, PowerReport};

use crate::message::{Effect, Effects, Message, Presence, Ticket};
use crate::note::Note;
use crate::request::{Failure, FailureKind, PowerNumbers, ProcessNumbers, WakeReason};
use crate::settings::Settings;
use crate::time::{Deadline, Time};

/// A turn of the loop longer than this is a stall.
pub const STALL_MS: u64 = 20;

/// Sensors that have not answered after so long hang.
const SENSORS_MS: u64 = 5_000;
/// A second reading that settles a doubt comes after this.
const DOUBT_MS: u64 = 1_000;
/// A link with nothing under way goes after this.
const LINGER_MS: u64 = 5_000;
/// A link that does not come up goes after this: there may be no network until the next window.
const CONNECT_MS: u64 = 60_000;
/// A clock that differs by this from what has passed was set.
const CLOCK_STEP_MS: u64 = 60_000;
/// The longest time a profile may be set for.
pub const BY_HAND_S_MAX: u64 = 30 * 24 * 3_600;

/// A profile asked for by hand.
struct Manual {
    index: usize,
    until_ms: Option<u64>,
}

/// The link of a profile with windows.
enum Radio {
    /// Up, or on its way; then it is looked at whether it may go.
    Awake { look_ms: u64 },
    /// Down until then.
    Asleep { until_ms: u64 },
}

/// The actor.
pub struct Power {
    tick_ms: u64,
    numbers: PowerNumbers,
    plan: PowerPlan,
    /// The profile in force.
    index: usize,
    manual: Option<Manual>,
    conditions: Conditions,
    belief: Belief,
    readings: Readings,
    meter: Meter,
    /// When the sensors were asked last, or the kernel alone since they hang; and whether they owe an answer.
    sensed_ms: Option<u64>,
    sensing: bool,
    sensors_hang: bool,
    /// A doubt wants another reading at this moment.
    again_at_ms: Option<u64>,
    waiting: Vec<Ticket>,
    radio: Radio,
    link_up: bool,
    /// What the clock showed when this node started, as far as is known now.
    started_wall_ms: i64,
    told_ms: Option<u64>,
    changes: u64,
}

impl Power {
    /// The actor of a node that has just started.
    pub fn new(settings: &Settings) -> Self {
        Power {
            tick_ms: settings.tick_ms.max(1),
            numbers: PowerNumbers::default(),
            plan: settings.power.clone(),
            index: 0,
            manual: None,
            conditions: Conditions::default(),
            belief: Belief::default(),
            readings: Readings::default(),
            meter: Meter::default(),
            sensed_ms: None,
            sensing: false,
            sensors_hang: false,
            again_at_ms: None,
            waiting: Vec::new(),
            radio: Radio::Awake { look_ms: CONNECT_MS },
            link_up: false,
            started_wall_ms: 0,
            told_ms: None,
            changes: 0,
        }
    }

    /// Takes over new settings. The profile set by hand stays if there still is one of its name.
    pub fn reload(&mut self, now: Time, settings: &Settings) {
        let by_hand =
            self.manual.take().map(|manual| (self.plan.profiles[manual.index].name.clone(), manual));
        self.plan = settings.power.clone();
        self.manual = by_hand.and_then(|(name, manual)| {
            let index = self.plan.profiles.iter().position(|profile| profile.name == name)?;
            Some(Manual { index, ..manual })
        });
        self.index = self.wanted();
        self.tick_ms = self.steering().map_or(settings.tick_ms, |steering| steering.tick_ms).max(1);
        self.follow_windows(now);
    }

    /// The node has started.
    pub fn start(&mut self, now: Time, out: &mut Effects) {
        self.meter.start(now.mono_ms);
        self.started_wall_ms = started_wall_ms(now);
        self.radio = Radio::Awake { look_ms: now.mono_ms + CONNECT_MS };
        if let Some(steering) = self.steering() {
            out.emit(Effect::Profile(steering.clone()));
            self.sense(now, out);
        }
    }

    /// The profile in force; none where the node has no plan.
    pub fn steering(&self) -> Option<&Arc<Steering>> {
        self.plan.profiles.get(self.index)
    }

    /// The moment at which all of these are served that can be served together, and the reason that
    /// allows no later one.
    pub fn alarm(&self, deadlines: impl Iterator<Item = Deadline>) -> Option<(u64, &'static str)> {
        deadlines.map(|deadline| (self.aligned(deadline), deadline.why)).min()
    }

    fn aligned(&self, deadline: Deadline) -> u64 {
        let tick = deadline.at_ms.div_ceil(self.tick_ms).saturating_mul(self.tick_ms);
        tick.min(deadline.latest_ms())
    }

    /// The loop was woken.
    pub fn woken(&mut self, why: &'static str, by_timer: bool) {
        self.meter.woken(why, 1);
        if !by_timer {
            return;
        }
        match self.numbers.timer_wakes.iter_mut().find(|reason| reason.why == why) {
            Some(reason) => reason.count += 1,
            None => self.numbers.timer_wakes.push(WakeReason { why: why.to_owned(), count: 1 }),
        }
    }

    /// The loop was woken so often for what needs no turn of it.
    pub fn woken_without_turn(&mut self, times: u64) {
        self.meter.woken("other", times);
    }

    /// The loop has gone round once and took so long.
    pub fn turned(&mut self, took_ms: u64) {
        self.numbers.turns += 1;
        self.numbers.longest_turn_ms = self.numbers.longest_turn_ms.max(took_ms);
        self.numbers.stalls += u64::from(took_ms > STALL_MS);
    }

    /// Counters for `status`.
    pub fn numbers(&self) -> &PowerNumbers {
        &self.numbers
    }

    /// The counters of kernel, disk and link; while the sensors hang, all there is to go by. Says whether another
    /// profile is in force now.
    pub fn measured(&mut self, now: Time, process: &ProcessNumbers, out: &mut Effects) -> bool {
        self.meter.measured(now.mono_ms, process);
        self.sensors_hang && self.conclude(now, Readings::default(), out)
    }

    /// The sensors have answered. Says whether another profile is in force now.
    pub fn sensed(&mut self, now: Time, readings: Readings, out: &mut Effects) -> bool {
        (self.sensing, self.sensors_hang) = (false, false);
        let (readings, doubted) = self.belief.weigh(readings);
        self.again_at_ms = doubted.then_some(now.mono_ms + DOUBT_MS);
        self.conclude(now, readings, out)
    }

    /// Everything that follows from readings.
    fn conclude(&mut self, now: Time, readings: Readings, out: &mut Effects) -> bool {
        self.meter.sensed(now.mono_ms, &readings);
        self.readings = readings;
        let changed = self.judge(now, out);
        self.answer_all(now, out);
        self.publish(now, out);
        changed
    }

    fn judge(&mut self, now: Time, out: &mut Effects) -> bool {
        let Some(asked_for) = self.plan.profiles.get(self.asked_for()) else { return false };
        self.conditions.judge(now.mono_ms, &self.readings, &asked_for.thresholds, asked_for.calm_ms);
        self.change(now, out)
    }

    /// The profile asked for, by hand or by configuration.
    fn asked_for(&self) -> usize {
        self.manual.as_ref().map_or(0, |manual| manual.index)
    }

    /// The profile that shall be in force: the one asked for, or what it names for the strongest condition
    /// it names one for.
    fn wanted(&self) -> usize {
        self.because().map_or(self.asked_for(), |(_, index)| index)
    }

    fn because(&self) -> Option<(Condition, usize)> {
        let asked_for = self.plan.profiles.get(self.asked_for())?;
        self.conditions.held().find_map(|held| asked_for.instead.iter().find(|(on, _)| *on == held).copied())
    }

    /// Puts the wanted profile in force. Says whether that is another one.
    fn change(&mut self, now: Time, out: &mut Effects) -> bool {
        let wanted = self.wanted();
        if wanted == self.index {
            return false;
        }
        self.index = wanted;
        self.changes += 1;
        let Some(steering) = self.steering().cloned() else { return false };
        self.tick_ms = steering.tick_ms.max(1);
        self.follow_windows(now);
        let why = match (self.because(), &self.manual) {
            (Some((condition, _)), _) => condition.words(),
            (None, Some(_)) => "it was set by hand",
            (None, None) => "it is the configured one and nothing speaks against it",
        };
        out.note(Note::Profile { name: steering.name.clone(), why });
        out.emit(Effect::Profile(steering));
        true
    }

    /// A request about power. Says whether another profile is in force now.
    pub fn asked(&mut self, now: Time, ticket: Ticket, ask: PowerAsk, out: &mut Effects) -> bool {
        let (name, seconds) = match ask {
            PowerAsk::Report => {
                self.waiting.push(ticket);
                self.sense(now, out);
                return false;
            }
            PowerAsk::Set { profile, seconds } => (profile, seconds),
        };
        match self.by_hand(now, name.as_deref(), seconds) {
            Err(failure) => {
                out.tell(Message::PowerNews { ticket, done: Err(failure) });
                false
            }
            Ok(manual) => {
                self.manual = manual;
                let changed = self.change(now, out);
                let report = Box::new(self.report(now));
                out.tell(Message::PowerNews { ticket, done: Ok(report) });
                changed
            }
        }
    }

    fn by_hand(
        &self,
        now: Time,
        name: Option<&str>,
        seconds: Option<u64>,
    ) -> Result<Option<Manual>, Failure> {
        let Some(name) = name else { return Ok(None) };
        let wrong = |why: String| Err(Failure::new(FailureKind::Invalid, why));
        if seconds.is_some_and(|seconds| seconds == 0 || seconds > BY_HAND_S_MAX) {
            return wrong(format!("a profile can be set for 1 s to {BY_HAND_S_MAX} s"));
        }
        let Some(index) = self.plan.profiles.iter().position(|profile| profile.name == name) else {
            let known = self.names().join(", ");
            return wrong(format!("no profile {name:?} is known here: choose one of {known}"));
        };
        let until_ms = seconds.map(|seconds| now.mono_ms + seconds * 1_000);
        Ok(Some(Manual { index, until_ms }))
    }

    fn names(&self) -> Vec<String> {
        self.plan.profiles.iter().map(|profile| profile.name.clone()).collect()
    }

    /// Asks the kernel, and the sensors unless they still owe an answer.
    fn sense(&mut self, now: Time, out: &mut Effects) {
        out.emit(Effect::Measure);
        if self.sensing && !self.sensors_hang {
            return;
        }
        self.sensed_ms = Some(now.mono_ms);
        self.again_at_ms = None;
        if !std::mem::replace(&mut self.sensing, true) {
            out.emit(Effect::Sense);
        }
    }

    /// Called at the end of every turn: what may use an awake processor does. Says whether another profile
    /// is in force now.
    pub fn ride(&mut self, now: Time, is_busy: impl FnOnce() -> bool, out: &mut Effects) -> bool {
        let mut changed = false;
        if self.manual.as_ref().is_some_and(|manual| manual.until_ms.is_some_and(|end| end <= now.mono_ms)) {
            self.manual = None;
            changed = self.change(now, out);
        }
        if self.sense_at().is_some_and(|(ride_ms, _)| ride_ms <= now.mono_ms) {
            self.sense(now, out);
        }
        let asked_ms = self.sensed_ms.unwrap_or(0);
        if self.sensing && !self.sensors_hang && now.mono_ms >= asked_ms + SENSORS_MS {
            self.sensors_hang = true;
            out.emit(Effect::Measure);
        }
        if self.started_wall_ms.abs_diff(started_wall_ms(now)) >= CLOCK_STEP_MS {
            self.started_wall_ms = started_wall_ms(now);
            self.follow_windows(now);
        }
        self.move_radio(now, is_busy, out);
        changed
    }

    /// From when on the sensors may be read, and when they must.
    fn sense_at(&self) -> Option<(u64, u64)> {
        if self.sensing && !self.sensors_hang {
            return None;
        }
        if let Some(at_ms) = self.again_at_ms {
            return Some((at_ms, at_ms));
        }
        let sense_ms = self.steering().map_or(0, |steering| steering.sense_ms);
        let last_ms = self.sensed_ms.filter(|_| sense_ms > 0)?;
        let latest_ms = self.tell_ms().unwrap_or(u64::MAX).min(last_ms + sense_ms);
        Some((latest_ms.min(last_ms + sense_ms / 2), latest_ms))
    }

    /// When the next report on the telemetry topic is due; none where nobody would hear it.
    fn tell_ms(&self) -> Option<u64> {
        let steering = self.steering().filter(|_| self.link_up)?;
        Some(self.told_ms.map_or(0, |told_ms| told_ms + steering.telemetry_ms))
    }

    /// The earliest moment something here must be done.
    pub fn deadline(&self) -> Option<Deadline> {
        let exact = |at_ms, why| Deadline { at_ms, slack_ms: 0, why };
        let slack_ms = self.tick_ms;
        let sense = self.sense_at().map(|(ride_ms, latest_ms)| {
            let at_ms = latest_ms.saturating_sub(slack_ms).max(ride_ms);
            Deadline { at_ms, slack_ms: latest_ms.saturating_sub(at_ms), why: "sensors" }
        });
        let hang = (self.sensing && !self.sensors_hang).then_some(self.sensed_ms).flatten();
        let hang = hang.map(|at_ms| exact(at_ms + SENSORS_MS, "sensors that hang"));
        let by_hand = self.manual.as_ref().and_then(|manual| manual.until_ms);
        let by_hand = by_hand.map(|at_ms| Deadline { at_ms, slack_ms, why: "end of a profile set by hand" });
        let window = self.radio_at_ms().map(|at_ms| Deadline { at_ms, slack_ms, why: "sync window" });
        [sense, hang, by_hand, window].into_iter().flatten().min_by_key(|deadline| deadline.at_ms)
    }

    /// The link is up or down.
    pub fn link(&mut self, now: Time, up: bool, out: &mut Effects) {
        self.link_up = up;
        self.follow_windows(now);
        // Readings that are on their way bring their own report.
        if up && (!self.sensing || self.sensors_hang) {
            self.publish(now, out);
        }
    }

    /// The link, the clock or the windows have changed. A window that was promised comes no later for it: where
    /// it is too early after all, that is seen when it comes.
    fn follow_windows(&mut self, now: Time) {
        let Some(windows) = self.steering().map(|steering| steering.windows.clone()) else { return };
        let until_next_ms = now.mono_ms + windows.next_in_ms(now);
        match &mut self.radio {
            Radio::Awake { look_ms } => {
                *look_ms = now.mono_ms + if self.link_up { LINGER_MS } else { CONNECT_MS };
            }
            Radio::Asleep { until_ms } => *until_ms = until_next_ms.min(*until_ms),
        }
    }

    /// Somebody can not wait for the window.
    pub fn wake_radio(&mut self, now: Time, out: &mut Effects) {
        if matches!(self.radio, Radio::Asleep { .. }) {
            out.emit(Effect::Radio(true));
        }
        self.radio = Radio::Awake { look_ms: now.mono_ms + CONNECT_MS };
    }

    fn radio_at_ms(&self) -> Option<u64> {
        match self.radio {
            Radio::Asleep { until_ms } => Some(until_ms),
            Radio::Awake { look_ms } => {
                Some(look_ms).filter(|_| self.steering().is_some_and(|s| s.windows.are_set()))
            }
        }
    }

    fn move_radio(&mut self, now: Time, is_busy: impl FnOnce() -> bool, out: &mut Effects) {
        let Some(windows) = self.steering().map(|steering| steering.windows.clone()) else { return };
        let allowed_in_ms = windows.allowed_in_ms(now);
        match &mut self.radio {
            Radio::Asleep { .. } if !windows.are_set() => self.wake_radio(now, out),
            Radio::Asleep { until_ms } if *until_ms <= now.mono_ms => {
                if allowed_in_ms == 0 {
                    self.wake_radio(now, out);
                } else {
                    *until_ms = now.mono_ms + allowed_in_ms;
                }
            }
            Radio::Awake { look_ms } if windows.are_set() && *look_ms <= now.mono_ms => {
                if self.link_up && is_busy() {
                    *look_ms = now.mono_ms + LINGER_MS;
                } else if allowed_in_ms == 0 && windows.every_ms == 0 {
                    *look_ms = now.mono_ms + windows.closed_in_ms(now);
                } else {
                    let until_ms = now.mono_ms + windows.next_in_ms(now);
                    self.radio = Radio::Asleep { until_ms };
                    out.emit(Effect::Presence(Presence::Sleeping));
                    out.emit(Effect::Radio(false));
                }
            }
            Radio::Asleep { .. } | Radio::Awake { .. } => {}
        }
    }

    fn answer_all(&mut self, now: Time, out: &mut Effects) {
        if self.waiting.is_empty() {
            return;
        }
        let report = self.report(now);
        for ticket in self.waiting.drain(..) {
            out.tell(Message::PowerNews { ticket, done: Ok(Box::new(report.clone())) });
        }
    }

    /// Says on the telemetry topic what the node costs, if the next readings could come too late for it.
    fn publish(&mut self, now: Time, out: &mut Effects) {
        let Some((steering, tell_ms)) = self.steering().zip(self.tell_ms()) else { return };
        if now.mono_ms + steering.sense_ms <= tell_ms {
            return;
        }
        self.told_ms = Some(now.mono_ms);
        let last_hour = self.meter.hours().last().cloned();
        let report = PowerReport { hours: last_hour.into_iter().collect(), ..self.report(now) };
        let text = serde_json::to_vec(&report).expect("a report holds only types that JSON has");
        out.emit(Effect::Telemetry(text.into()));
    }

    /// Everything about power.
    pub fn report(&self, now: Time) -> PowerReport {
        let name = |index: usize| self.plan.profiles.get(index).map(|profile| profile.name.clone());
        PowerReport {
            profile: name(self.index).unwrap_or_default(),
            configured: name(0).unwrap_or_default(),
            because: self.because().map(|(condition, _)| condition),
            by_hand: self.manual.as_ref().map(|manual| ByHand {
                profile: name(manual.index).unwrap_or_default(),
                left_ms: manual.until_ms.map(|until_ms| until_ms.saturating_sub(now.mono_ms)),
            }),
            conditions: self.conditions.held().collect(),
            profiles: self.names(),
            asleep_ms: match self.radio {
                Radio::Asleep { until_ms } => Some(until_ms.saturating_sub(now.mono_ms)),
                Radio::Awake { .. } => None,
            },
            readings: self.readings,
            sensors_hang: self.sensors_hang,
            changes: self.changes,
            total: self.meter.total().clone(),
            this_hour: self.meter.this_hour(),
            hours: self.meter.hours().cloned().collect(),
        }
    }
}

fn started_wall_ms(now: Time) -> i64 {
    now.wall_ms.saturating_sub_unsigned(now.mono_ms)
}
