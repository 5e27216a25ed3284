//! The actor by itself: windows of wake-ups, reactions, profiles set by hand, the radio, hanging sensors.

#![expect(clippy::wildcard_enum_match_arm, reason = "a test looks for the effects it is about")]

use super::plan::PowerPlan;
use super::windows::{Hours, Windows};
use super::*;
use crate::message::Actor;
use crate::power::conditions::Thresholds;
use crate::settings::BatchSettings;

const MINUTE_MS: u64 = 60_000;

/// With a clock in 1970.
fn at(mono_ms: u64) -> Time {
    Time { mono_ms, wall_ms: i64::try_from(mono_ms).unwrap() }
}

fn steering(name: &str, instead: &[(Condition, usize)]) -> Arc<Steering> {
    Arc::new(Steering {
        name: name.to_owned(),
        tick_ms: 1_000,
        flush: BatchSettings { bytes: 1 << 20, age_ms: 1_000 },
        send: BatchSettings { bytes: 1 << 20, age_ms: 1_000 },
        window_blocks: 16,
        quota_bytes: 1 << 30,
        reserve_bytes: 1 << 20,
        clean_step_bytes: 1 << 20,
        verify_step_bytes: 1 << 20,
        step_rest_ms: 0,
        scrub_period_ms: 0,
        scrub_rest_ms: 0,
        checkpoint_age_ms: MINUTE_MS,
        windows: Windows::default(),
        sense_ms: 10_000,
        calm_ms: 5 * MINUTE_MS,
        telemetry_ms: 60 * MINUTE_MS,
        thresholds: Thresholds {
            hot_milli_celsius: 80_000,
            cool_milli_celsius: 70_000,
            battery_low_percent: 20,
            battery_ok_percent: 30,
            flash_worn_percent: 80,
        },
        instead: instead.to_vec(),
        timer_slack_us: 50,
        keep_alive_s: 60,
        in_force: Vec::new(),
    })
}

fn power_with(profiles: Vec<Arc<Steering>>) -> Power {
    let tick_ms = profiles.first().map_or(1_000, |profile| profile.tick_ms);
    Power {
        tick_ms,
        numbers: PowerNumbers::default(),
        plan: PowerPlan { profiles },
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

/// Everyday work, and what takes its place when it is hot or the battery is low.
fn reacting() -> Power {
    let instead = [(Condition::Hot, 1), (Condition::BatteryLow, 2)];
    power_with(vec![steering("usual", &instead), steering("cool", &[]), steering("frugal", &[])])
}

fn heat(milli_celsius: i64) -> Readings {
    Readings { heat_milli_celsius: Some(milli_celsius), ..Readings::default() }
}

fn name(power: &Power) -> &str {
    &power.steering().unwrap().name
}

fn effects(out: &mut Effects) -> Vec<Effect> {
    std::iter::from_fn(|| out.next_effect()).collect()
}

fn report_ticket() -> (Ticket, PowerAsk) {
    (Ticket { actor: Actor::Control, number: 1 }, PowerAsk::Report)
}

/// Numbers that look random and are the same for a seed (xorshift64).
struct Noise(u64);

impl Noise {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

#[test]
fn deadlines_of_one_tick_share_a_wake_up_and_none_is_late() {
    let power = power_with(vec![steering("usual", &[])]);
    let soon = Deadline { at_ms: 1_200, slack_ms: 2_000, why: "soon" };
    let later = Deadline { at_ms: 1_900, slack_ms: 500, why: "later" };
    assert_eq!(power.alarm([soon, later].into_iter()), Some((2_000, "later")));
    let tight = Deadline { at_ms: 1_200, slack_ms: 100, why: "tight" };
    assert_eq!(power.alarm([soon, tight].into_iter()), Some((1_300, "tight")));
    assert_eq!(power.alarm(std::iter::empty()), None);
}

#[test]
fn an_alarm_is_never_outside_its_window() {
    for tick_ms in [1, 7, 10, 1_000, 5_000] {
        let mut power = power_with(Vec::new());
        power.tick_ms = tick_ms;
        for at_ms in (0..20_000).step_by(37) {
            for slack_ms in [0, 1, 9, 999, 10_000] {
                let deadline = Deadline { at_ms, slack_ms, why: "" };
                let (alarm, _) = power.alarm([deadline].into_iter()).unwrap();
                assert!((at_ms..=at_ms + slack_ms).contains(&alarm));
            }
        }
    }
}

#[test]
fn a_reading_is_answered_in_the_turn_that_brings_it() {
    let (mut power, mut out) = (reacting(), Effects::default());
    assert!(!power.sensed(at(0), heat(70_000), &mut out));
    assert!(power.sensed(at(1), heat(80_000), &mut out));
    assert_eq!(name(&power), "cool");
    let effects = effects(&mut out);
    assert!(matches!(&effects[0], Effect::Note(Note::Profile { name, .. }) if name == "cool"));
    assert!(matches!(&effects[1], Effect::Profile(steering) if steering.name == "cool"));
    assert_eq!(power.report(at(2)).because, Some(Condition::Hot));
}

#[test]
fn the_strongest_condition_that_the_profile_answers_decides() {
    let (mut power, mut out) = (reacting(), Effects::default());
    let low = Readings { battery_percent: Some(10), under_voltage: Some(true), ..heat(60_000) };
    power.sensed(at(0), low, &mut out);
    assert_eq!(name(&power), "frugal", "low voltage holds, and this profile names nothing for it");
    power.sensed(at(1), Readings { throttled: Some(true), ..low }, &mut out);
    assert_eq!(name(&power), "cool");
    assert_eq!(power.report(at(2)).conditions.len(), 3);
}

#[test]
fn a_noisy_sensor_does_not_make_it_flap() {
    for seed in 1..=20u64 {
        let (mut power, mut out, mut noise) = (reacting(), Effects::default(), Noise(seed));
        let (mut changes, mut now_ms, hours) = (0, 0, 12);
        while now_ms < hours * 60 * MINUTE_MS {
            // around the threshold for hours, with spikes of a sensor that lies
            let spike = if noise.below(50) == 0 { 60_000 } else { 0 };
            let celsius = 72_000 + i64::try_from(noise.below(16_000) + spike).unwrap();
            let readings =
                Readings { battery_percent: u8::try_from(15 + noise.below(30)).ok(), ..heat(celsius) };
            changes += u64::from(power.sensed(at(now_ms), readings, &mut out));
            effects(&mut out);
            now_ms += if power.again_at_ms.is_some() { DOUBT_MS } else { 10_000 };
        }
        assert!(changes <= 3, "seed {seed}: {changes} changes in {hours} h");
        assert!(changes >= 1, "seed {seed}: it was hot and nothing happened");
    }
}

#[test]
fn a_battery_whose_reports_jump_changes_nothing() {
    let (mut power, mut out) = (reacting(), Effects::default());
    let charge = |percent| Readings { battery_percent: Some(percent), ..Readings::default() };
    for (turn, percent) in [85, 3, 84, 0, 83, 100, 84, 1, 60, 83].into_iter().enumerate() {
        assert!(!power.sensed(at(turn as u64 * 1_000), charge(percent), &mut out), "{percent}");
    }
    assert!(power.sensed(at(20_000), charge(12), &mut out) || power.sensed(at(21_000), charge(12), &mut out));
    assert_eq!(name(&power), "frugal", "what is read twice is believed");
}

#[test]
fn a_sensor_that_vanishes_ends_its_reaction_after_the_calm() {
    let (mut power, mut out) = (reacting(), Effects::default());
    power.sensed(at(0), heat(85_000), &mut out);
    assert!(!power.sensed(at(4 * MINUTE_MS), Readings::default(), &mut out));
    assert!(power.sensed(at(5 * MINUTE_MS), Readings::default(), &mut out));
    assert_eq!(name(&power), "usual");
}

/// What is wanted is carried out, with a kernel that counts and sensors that never answer.
fn carry_out(power: &mut Power, now_ms: u64, out: &mut Effects) -> Vec<Effect> {
    let mut all = Vec::new();
    while let Some(effect) = out.next_effect() {
        if matches!(effect, Effect::Measure) {
            power.measured(at(now_ms), &ProcessNumbers::default(), out);
        }
        all.push(effect);
    }
    all
}

#[test]
fn sensors_that_hang_count_as_absent_and_nobody_waits_for_them() {
    let (mut power, mut out) = (reacting(), Effects::default());
    power.start(at(0), &mut out);
    power.sensed(at(1), heat(85_000), &mut out);
    let (ticket, ask) = report_ticket();
    power.asked(at(MINUTE_MS), ticket, ask, &mut out);
    assert_eq!(power.deadline().map(|deadline| deadline.why), Some("sensors that hang"));
    power.ride(at(MINUTE_MS + SENSORS_MS), || false, &mut out);
    carry_out(&mut power, MINUTE_MS + SENSORS_MS, &mut out);
    let Some(Message::PowerNews { done: Ok(report), .. }) = out.next_message() else { panic!("an answer") };
    assert!(report.sensors_hang && report.readings == Readings::default());
    power.asked(at(2 * MINUTE_MS), ticket, PowerAsk::Report, &mut out);
    carry_out(&mut power, 2 * MINUTE_MS, &mut out);
    assert!(matches!(out.next_message(), Some(Message::PowerNews { .. })), "who asks is told at once");
    assert!(power.sensed(at(10 * MINUTE_MS), Readings::default(), &mut out), "what was hot is not for ever");
    assert!(!power.report(at(10 * MINUTE_MS)).sensors_hang);
}

#[test]
fn while_sensors_hang_reactions_end_hours_close_and_telemetry_goes_on() {
    let (mut power, mut out) = (reacting(), Effects::default());
    power.start(at(0), &mut out);
    power.sensed(at(1), heat(85_000), &mut out);
    power.link(at(2), true, &mut out);
    let (mut now_ms, mut asked, mut told, mut woken) = (10_000, 0, 0, 0);
    power.ride(at(now_ms), || false, &mut out);
    while now_ms < 121 * MINUTE_MS {
        for effect in carry_out(&mut power, now_ms, &mut out) {
            asked += u32::from(matches!(effect, Effect::Sense));
            told += u32::from(matches!(effect, Effect::Telemetry(_)));
        }
        let expected = if now_ms < 5 * MINUTE_MS { "cool" } else { "usual" };
        assert_eq!(name(&power), expected, "at {now_ms} ms");
        now_ms = power.alarm(power.deadline().into_iter()).unwrap().0;
        woken += 1;
        power.ride(at(now_ms), || false, &mut out);
    }
    assert_eq!((asked, told), (2, 3), "one order is open, and one is enough; telemetry comes every hour");
    assert_eq!(power.report(at(now_ms)).hours.len(), 2);
    assert!(woken <= 121 * 7, "no more often than the sensors would be read: {woken}");
}

#[test]
fn a_profile_set_by_hand_ends_in_time_and_reacts_by_its_own_rules() {
    let (mut power, mut out) = (reacting(), Effects::default());
    let set = |profile: &str, seconds| PowerAsk::Set { profile: Some(profile.to_owned()), seconds };
    let (ticket, _) = report_ticket();
    assert!(power.asked(at(0), ticket, set("frugal", Some(60)), &mut out));
    power.sensed(at(1), heat(90_000), &mut out);
    assert_eq!(name(&power), "frugal", "it names nothing for heat");
    assert!(power.deadline().is_some_and(|deadline| deadline.latest_ms() <= 61_000));
    assert!(!power.ride(at(59_999), || false, &mut out));
    assert!(power.ride(at(60_000), || false, &mut out));
    assert_eq!(name(&power), "cool", "the configured one, which answers the heat");
    for (name, seconds) in [("warp", Some(60)), ("frugal", Some(0)), ("frugal", Some(u64::MAX))] {
        out = Effects::default();
        assert!(!power.asked(at(60_001), ticket, set(name, seconds), &mut out));
        let Some(Message::PowerNews { done: Err(failure), .. }) = out.next_message() else {
            panic!("{name}")
        };
        assert_eq!(failure.kind, FailureKind::Invalid);
    }
    power.asked(at(60_002), ticket, set("frugal", None), &mut out);
    assert!(!power.ride(at(u64::MAX / 2), || false, &mut out), "without an end it stays");
    let auto = PowerAsk::Set { profile: None, seconds: None };
    assert!(power.asked(at(u64::MAX / 2), ticket, auto, &mut out));
}

#[test]
fn idle_sensors_wake_the_loop_once_in_their_time_and_ride_along_otherwise() {
    let (mut power, mut out) = (reacting(), Effects::default());
    power.start(at(0), &mut out);
    power.sensed(at(1), heat(40_000), &mut out);
    effects(&mut out);
    let (alarm, why) = power.alarm(power.deadline().into_iter()).unwrap();
    assert_eq!((alarm, why), (9_000, "sensors"));
    power.ride(at(4_999), || false, &mut out);
    assert!(effects(&mut out).is_empty(), "not before half of the time has passed");
    power.ride(at(5_000), || false, &mut out);
    assert!(effects(&mut out).iter().any(|effect| matches!(effect, Effect::Sense)), "awake anyway");
}

#[test]
fn an_alarm_for_the_sensors_comes_when_they_may_be_read() {
    let times =
        [1_000, 7_000, 240_000].map(|sense_ms| [1, 10, 250, 5_000, 60_000].map(|tick| (tick, sense_ms)));
    for (tick_ms, sense_ms) in times.into_iter().flatten() {
        let steering = Steering { tick_ms, sense_ms, ..(*steering("usual", &[])).clone() };
        let (mut power, mut out) = (power_with(vec![Arc::new(steering)]), Effects::default());
        power.start(at(3), &mut out);
        // a jump is doubted three times, and then left alone
        for celsius in [40, 90, 10, 60, 100, 20] {
            power.sensed(at(power.sensed_ms.unwrap() + 4), heat(celsius * 1_000), &mut out);
            effects(&mut out);
            let (alarm_ms, _) = power.alarm(power.deadline().into_iter()).unwrap();
            power.ride(at(alarm_ms), || false, &mut out);
            let asks = effects(&mut out).iter().any(|effect| matches!(effect, Effect::Sense));
            assert!(asks, "tick {tick_ms} ms, sensors {sense_ms} ms: woken at {alarm_ms} ms for nothing");
        }
    }
}

fn windowed(every_ms: u64, hours: &[&str]) -> Power {
    power_with(vec![windows("windowed", every_ms, hours)])
}

fn windows(name: &str, every_ms: u64, hours: &[&str]) -> Arc<Steering> {
    let hours = hours.iter().map(|text| Hours::parse(text).unwrap()).collect();
    let windows = Windows { hours, every_ms };
    Arc::new(Steering { windows, sense_ms: 0, ..(*steering(name, &[])).clone() })
}

/// What the radio was told: `sleeping` is said before it goes.
fn radio(out: &mut Effects) -> Vec<&'static str> {
    let word = |effect| match effect {
        Effect::Presence(Presence::Sleeping) => Some("sleeping"),
        Effect::Radio(true) => Some("up"),
        Effect::Radio(false) => Some("down"),
        _ => None,
    };
    effects(out).into_iter().filter_map(word).collect()
}

#[test]
fn the_radio_goes_when_nothing_is_under_way_and_comes_back_in_its_rhythm() {
    let (mut power, mut out) = (windowed(15 * MINUTE_MS, &[]), Effects::default());
    power.start(at(0), &mut out);
    power.link(at(1_000), true, &mut out);
    effects(&mut out);
    power.ride(at(6_000), || true, &mut out);
    assert_eq!(radio(&mut out), [""; 0], "something is under way");
    power.ride(at(11_000), || false, &mut out);
    assert_eq!(radio(&mut out), ["sleeping", "down"]);
    power.link(at(11_000), false, &mut out);
    assert_eq!(power.deadline().map(|deadline| deadline.at_ms), Some(11_000 + 15 * MINUTE_MS));
    power.ride(at(11_000 + 15 * MINUTE_MS), || false, &mut out);
    assert_eq!(radio(&mut out), ["up"]);
    power.ride(at(12_000 + 16 * MINUTE_MS), || false, &mut out);
    assert_eq!(radio(&mut out), ["sleeping", "down"], "no network: it tries again in the next window");
    power.wake_radio(at(20 * MINUTE_MS), &mut out);
    assert_eq!(radio(&mut out), ["up"], "who can not wait is obeyed");
}

#[test]
fn hours_keep_the_radio_down_outside_and_up_inside() {
    const DAY_MS: i64 = 24 * 3_600_000;
    let wall = |mono_ms: u64, hour: i64| Time { mono_ms, wall_ms: 20_000 * DAY_MS + hour * 3_600_000 };
    let (mut power, mut out) = (windowed(0, &["01:00-05:00"]), Effects::default());
    power.start(wall(0, 3), &mut out);
    power.link(wall(0, 3), true, &mut out);
    power.ride(wall(LINGER_MS, 3), || false, &mut out);
    assert_eq!(radio(&mut out), [""; 0], "inside its hours it stays up");
    assert_eq!(power.deadline().map(|deadline| deadline.at_ms), Some(LINGER_MS + 2 * 60 * MINUTE_MS));
    power.ride(wall(LINGER_MS + 120 * MINUTE_MS, 5), || false, &mut out);
    assert_eq!(radio(&mut out), ["sleeping", "down"]);
    let next = power.deadline().unwrap().at_ms;
    assert_eq!(next, LINGER_MS + (120 + 20 * 60) * MINUTE_MS);
    power.ride(Time { mono_ms: next, wall_ms: 0 }, || false, &mut out);
    assert_eq!(radio(&mut out), ["up"], "a clock in 1970 knows no hours");
}

const DAY_MS: u64 = 24 * 60 * MINUTE_MS;

/// That long after midnight, on both clocks.
fn of_day(mono_ms: u64) -> Time {
    Time { mono_ms, wall_ms: 20_000 * 24 * 3_600_000 + i64::try_from(mono_ms).unwrap() }
}

#[test]
fn the_radio_follows_a_change_between_two_profiles_with_windows() {
    let rare = windows("rare", DAY_MS, &[]);
    let often = windows("often", 15 * MINUTE_MS, &[]);
    let nightly = windows("nightly", 0, &["00:00-06:00"]);
    let (mut power, mut out) = (power_with(vec![rare, often, nightly]), Effects::default());
    let (ticket, _) = report_ticket();
    let set = |power: &mut Power, now: Time, profile: &str, out: &mut Effects| {
        let ask = PowerAsk::Set { profile: Some(profile.to_owned()), seconds: None };
        assert!(power.asked(now, ticket, ask, out));
        power.ride(now, || false, out);
        radio(out)
    };
    power.start(of_day(0), &mut out);
    power.link(of_day(0), true, &mut out);
    power.ride(of_day(LINGER_MS), || false, &mut out);
    power.link(of_day(LINGER_MS), false, &mut out);
    assert_eq!(radio(&mut out), ["sleeping", "down"]);

    assert_eq!(set(&mut power, of_day(MINUTE_MS), "often", &mut out), [""; 0]);
    assert_eq!(power.deadline().map(|deadline| deadline.at_ms), Some(16 * MINUTE_MS), "not in a day");
    let back = set(&mut power, of_day(2 * MINUTE_MS), "rare", &mut out);
    assert_eq!(back, [""; 0]);
    assert_eq!(power.deadline().map(|deadline| deadline.at_ms), Some(16 * MINUTE_MS), "that was promised");

    assert_eq!(set(&mut power, of_day(3 * MINUTE_MS), "nightly", &mut out), ["up"], "its hours are now");
    power.link(of_day(3 * MINUTE_MS), true, &mut out);
    power.ride(of_day(4 * MINUTE_MS), || false, &mut out);
    assert_eq!(power.deadline().map(|deadline| deadline.at_ms), Some(6 * 60 * MINUTE_MS));
    assert_eq!(set(&mut power, of_day(5 * MINUTE_MS), "often", &mut out), [""; 0], "its answer still goes");
    power.ride(of_day(5 * MINUTE_MS + LINGER_MS), || false, &mut out);
    assert_eq!(radio(&mut out), ["sleeping", "down"], "not at six o'clock");
}

#[test]
fn a_clock_that_is_set_moves_the_hours_of_the_radio() {
    let (mut power, mut out) = (windowed(0, &["01:00-05:00"]), Effects::default());
    power.start(at(0), &mut out);
    power.link(at(0), true, &mut out);
    power.ride(at(MINUTE_MS), || false, &mut out);
    assert_eq!(radio(&mut out), [""; 0], "nobody knows the hour");
    power.ride(of_day(2 * MINUTE_MS), || false, &mut out);
    power.ride(of_day(2 * MINUTE_MS + LINGER_MS), || false, &mut out);
    assert_eq!(radio(&mut out), ["sleeping", "down"], "it is midnight");
    power.link(of_day(3 * MINUTE_MS), false, &mut out);
    assert_eq!(power.deadline().map(|deadline| deadline.at_ms), Some(60 * MINUTE_MS));
    let ahead = of_day(3 * MINUTE_MS);
    let ahead = Time { wall_ms: ahead.wall_ms + 2 * 3_600_000, ..ahead };
    power.ride(ahead, || false, &mut out);
    assert_eq!(radio(&mut out), ["up"], "it was two hours later all the time");
}

#[test]
fn the_first_telemetry_waits_for_the_first_readings() {
    let (mut power, mut out) = (reacting(), Effects::default());
    power.start(at(0), &mut out);
    power.link(at(1), true, &mut out);
    assert!(!effects(&mut out).iter().any(|effect| matches!(effect, Effect::Telemetry(_))));
    power.sensed(at(2), heat(45_000), &mut out);
    let told = effects(&mut out).into_iter().find_map(|effect| match effect {
        Effect::Telemetry(text) => serde_json::from_slice::<PowerReport>(&text).ok(),
        _ => None,
    });
    assert_eq!(told.and_then(|report| report.readings.heat_milli_celsius), Some(45_000));
}

#[test]
fn telemetry_is_never_later_than_its_time() {
    for (sense_s, telemetry_s) in [(10, 300), (240, 3_600), (240, 10), (3_600, 86_400), (7, 60)] {
        let steering = Steering {
            sense_ms: sense_s * 1_000,
            telemetry_ms: telemetry_s * 1_000,
            ..(*steering("usual", &[])).clone()
        };
        let (mut power, mut out) = (power_with(vec![Arc::new(steering)]), Effects::default());
        power.start(at(0), &mut out);
        power.link(at(0), true, &mut out);
        let (mut now_ms, mut told_ms, mut count) = (0, 0, 0);
        while now_ms < 3 * telemetry_s * 1_000 {
            power.sensed(at(now_ms), heat(40_000), &mut out);
            if effects(&mut out).iter().any(|effect| matches!(effect, Effect::Telemetry(_))) {
                (told_ms, count) = (now_ms, count + 1);
            }
            now_ms = power.alarm(power.deadline().into_iter()).unwrap().0;
            assert!(now_ms <= told_ms + telemetry_s * 1_000, "{sense_s} s, {telemetry_s} s");
            power.ride(at(now_ms), || false, &mut out);
        }
        assert!(count <= 4 + 3 * sense_s / telemetry_s, "{sense_s} s, {telemetry_s} s: {count} times");
    }
}

#[test]
fn telemetry_is_published_when_the_link_comes_up_and_then_in_its_time() {
    let (mut power, mut out) = (reacting(), Effects::default());
    power.start(at(0), &mut out);
    let told = |out: &mut Effects| {
        let text = |effect| match effect {
            Effect::Telemetry(text) => Some(text),
            _ => None,
        };
        effects(out).into_iter().find_map(text)
    };
    power.sensed(at(1), heat(40_000), &mut out);
    assert_eq!(told(&mut out), None, "nobody hears it");
    power.link(at(2), true, &mut out);
    let text = told(&mut out).unwrap();
    let report: PowerReport = serde_json::from_slice(&text).unwrap();
    assert_eq!(report.profile, "usual");
    power.sensed(at(30 * MINUTE_MS), heat(40_000), &mut out);
    assert_eq!(told(&mut out), None);
    power.sensed(at(61 * MINUTE_MS), heat(40_000), &mut out);
    assert!(told(&mut out).is_some());
}
