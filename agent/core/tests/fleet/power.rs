//! Power in a whole fleet: an hour of work under two profiles, noisy sensors, radios that sleep.

use crate::commands::remote;
use crate::sim::client::Call;
use crate::sim::flash::Flash;
use crate::sim::random::Random;
use crate::sim::setup::{below_settings, master_settings};
use crate::sim::{START_MS, World};
use crate::transfer::{are_alike, by_name, noise};
use larder_core::power::conditions::{Condition, Readings, Thresholds};
use larder_core::power::plan::{PowerPlan, Steering};
use larder_core::power::windows::{Hours, Windows};
use larder_core::profile::Profile;
use larder_core::request::{FailureKind, Request, Response};
use larder_core::role::Role;
use larder_core::settings::{BatchSettings, Settings};
use std::sync::Arc;

const MINUTE_MS: u64 = 60_000;
const HOUR_MS: u64 = 60 * MINUTE_MS;
const READING_BYTES: u64 = 4_096;

const LOW_POWER: &str = include_str!("../../../../power-profiles/low-power.toml");

fn performance() -> Steering {
    shipped(include_str!("../../../../power-profiles/performance.toml"))
}

fn low_power() -> Steering {
    shipped(LOW_POWER)
}

fn profile(file: &str) -> Profile {
    toml::from_str(file).unwrap()
}

/// What a profile's file steers on a board of the usual heat; it reacts to nothing.
fn shipped(file: &str) -> Steering {
    let profile = profile(file);
    let batch = |bytes, age_ms| BatchSettings { bytes: usize::try_from(bytes).unwrap(), age_ms };
    let percent = |value| u8::try_from(value).unwrap();
    Steering {
        tick_ms: profile.tick_ms,
        flush: batch(profile.flush_bytes, profile.flush_age_ms),
        send: batch(profile.send_bytes, profile.send_age_ms),
        window_blocks: u32::try_from(profile.window_blocks).unwrap(),
        quota_bytes: 1 << 40,
        reserve_bytes: 1 << 20,
        clean_step_bytes: profile.clean_step_bytes,
        verify_step_bytes: profile.verify_step_bytes,
        step_rest_ms: profile.step_rest_ms,
        scrub_period_ms: profile.scrub_period_s * 1_000,
        scrub_rest_ms: profile.scrub_rest_ms,
        checkpoint_age_ms: profile.checkpoint_age_s * 1_000,
        windows: profile.windows(),
        sense_ms: profile.sense_s * 1_000,
        calm_ms: profile.calm_s * 1_000,
        telemetry_ms: profile.telemetry_s * 1_000,
        thresholds: Thresholds {
            hot_milli_celsius: 80_000,
            cool_milli_celsius: 70_000,
            battery_low_percent: percent(profile.battery_low_percent),
            battery_ok_percent: percent(profile.battery_ok_percent),
            flash_worn_percent: percent(profile.flash_worn_percent),
        },
        instead: Vec::new(),
        timer_slack_us: profile.timer_slack_us,
        keep_alive_s: profile.keep_alive_s,
        in_force: Vec::new(),
        name: profile.name,
    }
}

fn under(settings: Settings, profiles: Vec<Steering>) -> Settings {
    let settings = settings.under(&profiles[0]);
    Settings { power: PowerPlan { profiles: profiles.into_iter().map(Arc::new).collect() }, ..settings }
}

/// A master, and a worker that may run under these profiles.
fn pair(seed: u64, profiles: Vec<Steering>) -> (World, usize, usize) {
    pair_with(seed, "worker", profiles)
}

fn pair_with(seed: u64, name: &str, profiles: Vec<Steering>) -> (World, usize, usize) {
    let mut world = World::new(seed);
    let master = world.add(master_settings(&[(name, Role::Worker)]));
    let worker = world.add(under(below_settings(name, Role::Worker), profiles));
    world.run_ms(500);
    (world, master, worker)
}

/// What an hour of work cost, and the longest wait for an answer.
#[derive(Debug, Default)]
struct Cost {
    wake_ups: u64,
    batches: u64,
    messages: u64,
    latest_ms: u64,
    payload_bytes: u64,
}

/// A program that puts readings of 4 KiB and can wait.
struct Program {
    node: usize,
    random: Random,
    open: Vec<(u64, Call)>,
    count: usize,
    latest_ms: u64,
}

impl Program {
    fn put(&mut self, world: &mut World) {
        self.count += 1;
        let bytes: Vec<u8> = (0..READING_BYTES).map(|_| self.random.next() as u8).collect();
        let call = world.put_patiently(self.node, 1, &format!("readings/{}", self.count), bytes);
        self.open.push((world.now_ms, call));
    }

    fn pass(&mut self, world: &mut World, ms: u64) {
        world.run_ms(ms);
        self.open.retain(|(asked_ms, call)| {
            let is_stored = world.heard(*call).iter().any(|answer| matches!(answer, Response::Stored { .. }));
            if is_stored {
                self.latest_ms = self.latest_ms.max(world.now_ms - asked_ms);
            }
            !is_stored
        });
    }
}

/// An hour of a program, until the master has all of it.
fn hour_of_work(
    (world, master, worker): &mut (World, usize, usize),
    mut put: impl FnMut(&mut World, &mut Program),
) -> Cost {
    let machine = &world.machines[*worker];
    let (woken, batches) = (machine.wake_ups, machine.engine.commits);
    let messages = world.net.messages;
    let (random, open) = (Random::new(72), Vec::new());
    let mut program = Program { node: *worker, random, open, count: 0, latest_ms: 0 };
    let began_ms = world.now_ms;
    while world.now_ms < began_ms + HOUR_MS {
        put(world, &mut program);
    }
    world.run_until(2 * MINUTE_MS, "the master has all", |world| {
        world.machines[*master].engine.names.len() == program.count
    });
    let machine = &world.machines[*worker];
    Cost {
        wake_ups: machine.wake_ups - woken,
        batches: machine.engine.commits - batches,
        messages: world.net.messages - messages,
        latest_ms: program.latest_ms,
        payload_bytes: program.count as u64 * READING_BYTES,
    }
}

/// Twenty readings within a second, a quarter of a minute apart on average.
fn in_bursts(world: &mut World, program: &mut Program) {
    for _ in 0..20 {
        program.put(world);
        let ms = program.random.below(40);
        program.pass(world, ms);
    }
    for _ in 0..program.random.below(290) {
        program.pass(world, 100);
    }
}

/// Four readings a second, as the bench `power` puts them.
fn steadily(world: &mut World, program: &mut Program) {
    program.put(world);
    program.pass(world, 250);
}

fn assert_saves(eager: &Cost, frugal: &Cost) {
    println!("performance {eager:?}\nlow-power {frugal:?}");
    // all of them: by the program that puts, the disk, the peer, sensors and the node itself
    assert!(frugal.wake_ups * 10 <= eager.wake_ups, "{frugal:?} against {eager:?}");
    assert!(frugal.batches * 10 <= eager.batches, "{frugal:?} against {eager:?}");
    assert!(frugal.messages * 10 <= eager.messages, "{frugal:?} against {eager:?}");
    assert!(frugal.latest_ms <= low_power().flush.age_ms, "{frugal:?}");
}

#[test]
fn low_power_saves_nine_tenths_of_what_it_can_wait_with_and_is_never_late() {
    let [eager, frugal] =
        [performance(), low_power()].map(|of| hour_of_work(&mut pair(71, vec![of]), in_bursts));
    assert_saves(&eager, &frugal);
}

/// On a real store, whose index follows: all that an hour costs the flash, log and index. Names are those of the bench
/// `power`, the node's among them, which is twice in each binding.
#[test]
fn an_hour_of_low_power_writes_a_tenth_more_to_flash_than_was_put() {
    let eager = hour_of_work(&mut pair_with(71, "cam", vec![performance()]), steadily);
    let mut fleet = pair_with(71, "cam", vec![low_power()]);
    let worker = fleet.2;
    fleet.0.machines[worker].flash = Some(Flash::new(profile(LOW_POWER).table_entries));
    let frugal = hour_of_work(&mut fleet, steadily);
    assert_saves(&eager, &frugal);
    let flash = |world: &World| world.machines[worker].flash.as_ref().unwrap().status();
    let age_ms = low_power().checkpoint_age_ms;
    fleet.0.run_until(age_ms * 5 / 4, "all is in the index", |world| flash(world).table_entries == 0);
    let store = flash(&fleet.0);
    let (log, index) = (store.log_bytes_written, store.index_bytes_written);
    let share = |bytes: u64| bytes as f64 / frugal.payload_bytes as f64;
    println!(
        "log {:.4} of payload, index {:.4} in {} checkpoints",
        share(log),
        share(index),
        store.checkpoints
    );
    assert!(store.checkpoints >= 2, "{}", store.checkpoints);
    assert!(fleet.0.machines[worker].flash.as_ref().unwrap().bytes() * 10 <= frugal.payload_bytes * 11);
}

#[test]
fn a_flood_of_patient_puts_is_not_slowed_by_rests() {
    let (mut world, _, worker) = pair(77, vec![low_power()]);
    let began_ms = world.now_ms;
    let calls: Vec<_> =
        (0..3_000).map(|n| world.put_patiently(worker, 1, &format!("f{n}"), vec![n as u8; 3_000])).collect();
    for call in calls {
        assert!(matches!(world.wait(call), Response::Stored { .. }));
    }
    let took_ms = world.now_ms - began_ms;
    assert!(took_ms <= low_power().flush.age_ms, "{took_ms} ms for 3,000 puts that were there at once");
}

#[test]
fn who_is_in_a_hurry_never_waits_for_one_who_rests() {
    let (mut world, _, worker) = pair(78, vec![low_power()]);
    let patient = world.put_patiently(worker, 1, "patient", vec![1; 100]);
    world.run_ms(500);
    let later = world.put_patiently(worker, 1, "later", vec![2; 100]);
    let began_ms = world.now_ms;
    let hasty = world.put_as(worker, 2, "hasty", vec![3; 100]);
    world.ask_as(worker, 2, Request::Flush);
    assert!(matches!(world.wait(hasty), Response::Stored { .. }));
    assert!(world.now_ms - began_ms <= 50, "obeyed at once");
    assert!(world.heard(later).is_empty(), "it is not even read");
    for call in [patient, later] {
        assert!(matches!(world.wait(call), Response::Stored { .. }));
    }
    assert!(world.now_ms - began_ms <= low_power().flush.age_ms);
    world.put_patiently(worker, 1, "last words", vec![4; 100]);
    world.run_ms(20);
    world.hang_up(worker, 1);
    world.run_ms(low_power().flush.age_ms);
    assert!(world.get(worker, by_name("last words")).is_some(), "it was heard before the connection ended");
}

#[test]
fn a_patient_put_is_answered_in_time_though_its_connection_asks_something_else_before_its_end() {
    let (mut world, _, worker) = pair(89, vec![low_power()]);
    let began_ms = world.now_ms;
    let [put, asked] = world.put_patiently_and_ask(worker, 1, "a", vec![1; 100], Request::Status);
    assert!(matches!(world.wait(asked), Response::Status(_)));
    assert!(matches!(world.wait(put), Response::Stored { .. }));
    assert!(world.now_ms - began_ms <= low_power().flush.age_ms);
}

#[test]
fn patient_puts_and_a_change_of_profile_get_on() {
    let (mut world, _, worker) = pair(79, vec![low_power(), performance()]);
    let call = world.put_patiently(worker, 1, "a", vec![1; 100]);
    world.run_ms(100);
    let set = Request::Profile { profile: Some("performance".into()), seconds: None };
    let asked = world.ask_as(worker, 2, set);
    assert!(matches!(world.wait(asked), Response::Power(_)));
    let began_ms = world.now_ms;
    assert!(matches!(world.wait(call), Response::Stored { .. }));
    assert!(world.now_ms - began_ms <= 100, "its age counts now");
    let next = world.put_patiently(worker, 1, "b", vec![2; 100]);
    assert!(matches!(world.wait(next), Response::Stored { .. }));
    assert!(world.now_ms - began_ms <= 200);
}

#[test]
fn an_idle_node_in_low_power_wakes_less_than_once_in_two_minutes() {
    let (mut world, _, worker) = pair(73, vec![low_power()]);
    world.run_ms(10 * MINUTE_MS);
    let woken = world.machines[worker].wake_ups;
    world.run_ms(HOUR_MS);
    let wake_ups = world.machines[worker].wake_ups - woken;
    assert!(wake_ups <= 25, "{wake_ups} in an hour: {:?}", world.machines[worker].wakes);
    assert!(world.machines[worker].readings_taken >= 15, "and the sensors are read all the same");
}

#[test]
fn scrub_and_cleaning_follow_the_profile() {
    let scrubbing = Steering { scrub_period_ms: 10 * MINUTE_MS, scrub_rest_ms: 1_000, ..performance() };
    let (mut world, _, worker) = pair(80, vec![low_power(), scrubbing]);
    world.put_now(worker, "big", noise(80, 20 << 20));
    world.run_ms(HOUR_MS);
    assert_eq!(world.status(worker).scrub.ended, 0, "this profile does not scrub");
    let set = |profile: Option<&str>| Request::Profile { profile: profile.map(str::to_owned), seconds: None };
    world.request(worker, set(Some("performance")));
    world.run_ms(11 * MINUTE_MS);
    assert!(world.status(worker).scrub.ended > 0, "and this one does");
    let wakes = |world: &World| {
        let of = |why: &str| world.machines[worker].wakes.get(why).copied().unwrap_or(0);
        (of("next step of a scrub"), of("next step of cleaning"))
    };
    world.request(worker, Request::Remove { name: "big".parse().unwrap() });
    world.request(worker, set(None));
    let before = wakes(&world);
    world.run_ms(2 * HOUR_MS);
    let after = wakes(&world);
    assert_eq!(after.0, before.0, "and it does not again");
    assert!(after.1 > before.1, "20 MiB are cleaned 4 MiB at a time, with rests");
}

#[test]
fn a_noisy_sensor_does_not_make_a_node_flap() {
    let reacting = Steering { instead: vec![(Condition::Hot, 1)], ..performance() };
    let (mut world, _, worker) = pair(74, vec![reacting, low_power()]);
    let mut random = Random::new(75);
    let (mut changes, mut profile) = (0, world.machines[worker].profile.clone());
    for _ in 0..HOUR_MS / 1_000 {
        world.machines[worker].readings = noisy(&mut random);
        world.run_ms(1_000);
        changes += u64::from(profile != world.machines[worker].profile);
        profile.clone_from(&world.machines[worker].profile);
    }
    assert_eq!((profile.as_str(), changes), ("low-power", 1), "seed 75");
    world.machines[worker].readings = Readings::default();
    world.run_ms(20 * MINUTE_MS);
    assert_eq!(world.machines[worker].profile, "performance", "it has vanished, and the heat with it");
}

/// Around the threshold of heat, and now and then far from anything true.
fn noisy(random: &mut Random) -> Readings {
    let spike = [0, 60, -60][usize::try_from(random.below(20)).unwrap().saturating_sub(17)];
    let celsius = 72 + i64::try_from(random.below(12)).unwrap() + spike;
    let percent = if random.below(10) == 0 { random.below(101) } else { 60 };
    Readings {
        heat_milli_celsius: Some(celsius * 1_000),
        battery_percent: u8::try_from(percent).ok(),
        ..Readings::default()
    }
}

#[test]
fn a_doubted_reading_costs_one_wake_up_more() {
    for profile in [performance(), low_power()] {
        let (mut world, _, worker) = pair(81, vec![profile]);
        let mut random = Random::new(82);
        for _ in 0..HOUR_MS / 1_000 {
            world.machines[worker].readings = noisy(&mut random);
            world.run_ms(1_000);
        }
        let machine = &world.machines[worker];
        let (woken, taken) = (machine.wakes.get("sensors").copied().unwrap_or(0), machine.readings_taken);
        assert!(woken <= taken, "seed 82: woken {woken} times for {taken} readings");
    }
}

#[test]
fn a_radio_that_sleeps_carries_all_in_bursts_and_loses_nothing() {
    let windows = Windows { hours: Vec::new(), every_ms: 15 * MINUTE_MS };
    let (mut world, master, worker) = pair(76, vec![Steering { windows, ..low_power() }]);
    let mut up_ms = 0;
    for minute in 0..60 {
        world.put_now(worker, &format!("f{minute}"), vec![minute; 2_000]);
        for _ in 0..60 {
            world.run_ms(1_000);
            up_ms += if world.net.links[worker].is_up() { 1_000 } else { 0 };
        }
    }
    assert!(up_ms <= 2 * MINUTE_MS, "the radio was up for {up_ms} ms of an hour");
    world.run_until(20 * MINUTE_MS, "the next window has the rest", |world| {
        world.machines[master].engine.names.len() == 60
    });
    world.run_ms(MINUTE_MS);
    assert!(!world.net.links[worker].is_up(), "{}", world.describe());
    world.put_now(worker, "urgent", vec![7; 100]);
    let Response::Power(_) = world.request(worker, Request::Send) else { panic!("an answer") };
    world.run_until(10_000, "who can not wait is obeyed", |world| {
        world.machines[master].engine.names.len() == 61
    });
    world.run_ms(MINUTE_MS);
    let Response::Power(report) = world.request(worker, Request::Power) else { panic!("an answer") };
    let air = world.machines[worker].air;
    assert!(air.messages_sent > 0 && air.bytes_received > 0, "{air:?}");
    assert_eq!(report.total.air, air, "what the link counts is what the node says");
}

/// How long the radio is up in the next hour.
fn up_ms_of_an_hour(world: &mut World, node: usize) -> u64 {
    let mut up_ms = 0;
    for _ in 0..HOUR_MS / 1_000 {
        world.run_ms(1_000);
        up_ms += if world.net.links[node].is_up() { 1_000 } else { 0 };
    }
    up_ms
}

#[test]
fn a_radio_is_not_kept_up_for_a_master_that_is_known_to_be_gone() {
    let windows = Windows { hours: Vec::new(), every_ms: 15 * MINUTE_MS };
    let (mut world, master, worker) = pair(87, vec![Steering { windows, ..low_power() }]);
    world.crash(master);
    let up_ms = up_ms_of_an_hour(&mut world, worker);
    assert!(up_ms <= 2 * MINUTE_MS, "the radio was up for {up_ms} ms of an hour");
}

#[test]
fn a_radio_is_not_kept_up_for_a_master_that_is_full() {
    let windows = Windows { hours: Vec::new(), every_ms: 15 * MINUTE_MS };
    let (mut world, master, worker) = pair(88, vec![Steering { windows, ..low_power() }]);
    world.machines[master].engine.quota_bytes = 2 << 20;
    for index in 0..10 {
        world.put_now(worker, &format!("f{index}"), noise(index, 500_000));
    }
    let up_ms = up_ms_of_an_hour(&mut world, worker);
    assert!(up_ms <= 6 * MINUTE_MS, "the radio was up for {up_ms} ms of an hour");
    world.machines[master].engine.quota_bytes = 1 << 40;
    world.run_until(16 * MINUTE_MS, "the master has all", |world| are_alike(world, master, worker));
}

/// A master that has an object of 12 MiB, and the worker it came from, whose radio was woken between its windows.
fn awake_between_windows(seed: u64, every_ms: u64) -> (World, usize, usize) {
    let windows = Windows { hours: Vec::new(), every_ms };
    let (mut world, master, worker) = pair(seed, vec![Steering { windows, ..low_power() }]);
    world.put_now(worker, "a", noise(1, 12 << 20));
    world.run_until(2 * every_ms, "it is there", |world| world.machines[master].engine.names.len() == 1);
    world.run_ms(MINUTE_MS);
    let Response::Power(_) = world.request(worker, Request::Send) else { panic!("an answer") };
    world.run_until(10_000, "the radio is awake", |world| world.net.links[worker].is_up());
    (world, master, worker)
}

#[test]
fn a_radio_stays_awake_until_a_command_of_minutes_is_answered() {
    let (mut world, master, worker) = awake_between_windows(85, 15 * MINUTE_MS);
    world.machines[worker].job_ms_max = 20_000;
    let asked_ms = world.now_ms;
    let call = world.ask(master, remote("worker", Request::Verify));
    let answer = world.wait(call);
    assert!(matches!(&answer, Response::Verified { incomplete, .. } if incomplete.is_empty()), "{answer:?}");
    assert!(world.now_ms - asked_ms > MINUTE_MS, "that was no command of minutes");
    world.run_ms(MINUTE_MS);
    assert!(!world.net.links[worker].is_up(), "{}", world.describe());
}

#[test]
fn a_radio_waits_half_an_hour_and_no_longer_for_what_hangs_and_its_asker_is_told() {
    let (mut world, master, worker) = awake_between_windows(86, 2 * HOUR_MS);
    world.run_ms(3_000); // what sync asks the store at the beginning of a session is answered
    world.machines[worker].job_ms_max = 24 * HOUR_MS;
    let call = world.ask(master, remote("worker", Request::Verify));
    world.run_ms(29 * MINUTE_MS);
    assert!(world.net.links[worker].is_up(), "{}", world.describe());
    world.run_ms(3 * MINUTE_MS);
    assert!(!world.net.links[worker].is_up(), "{}", world.describe());
    let answer = world.wait(call);
    assert!(matches!(&answer, Response::Error(why) if why.kind == FailureKind::Unreachable), "{answer:?}");
}

#[test]
fn a_clock_that_is_set_outside_the_hours_puts_the_radio_to_sleep_until_they_come() {
    // the world begins at 8:00
    let windows = Windows { hours: vec![Hours::parse("11:00-11:30").unwrap()], every_ms: 0 };
    let profile = Steering { windows, ..low_power() };
    let bound_ms = profile.sense_ms + 2 * profile.tick_ms;
    let (mut world, master, worker) = pair(84, vec![profile]);
    world.crash(worker);
    world.machines[worker].clock_off_ms = -START_MS;
    world.start(worker);
    for _ in 0..4 {
        world.run_ms(30 * MINUTE_MS);
        assert!(world.net.links[worker].is_up(), "in 1970 nobody knows the hour");
    }
    world.machines[worker].clock_off_ms = 0;
    world.run_ms(bound_ms);
    assert!(!world.net.links[worker].is_up(), "it is ten o'clock: {}", world.describe());
    world.put_now(worker, "a", vec![1; 100]);
    world.run_ms(HOUR_MS - bound_ms - MINUTE_MS);
    assert!(world.machines[master].engine.names.is_empty());
    world.run_until(2 * MINUTE_MS, "its hours have come", |world| {
        world.machines[master].engine.names.len() == 1
    });
}
