//! What a worker costs under performance and under low-power with the same work, and what it costs idle.
//!
//! `cargo bench -p larder-tests --bench power`; `LARDER_BENCH_SECONDS` of work for each profile (default 1,860, with
//! one checkpoint of low-power inside; in less its bytes to flash lack the index and are not judged),
//! `LARDER_BENCH_IDLE_SECONDS` (default 300). Both profiles work at the same time, each with a worker, a master and a
//! Mosquitto of its own. A program puts a reading of 4 KiB four times a second over one connection and says of each
//! that it can wait; the work ends when the master has them all. Counted are the worker's own: as wake-ups the
//! voluntary context switches of all its threads, whatever woke them, the program's writes and the broker's packets
//! among them; the rest from its report on power, which it is asked for once before and once after. Exits with 1 where
//! a line misses what is wanted. The same work, an hour of it in seconds, is in `agent/core/tests/fleet/power.rs`.

use larder_tests::broker::{Config, Mosquitto};
use larder_tests::fleet::{befriend, connect, settled};
use larder_tests::node::{Node, noise};
use larder_tests::wire;
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::{Duration, Instant};

const READING_BYTES: usize = 4_096;
const PAUSE: Duration = Duration::from_millis(250);
const MIB: f64 = 1_048_576.0;
/// The stated ages of both profiles, in ms.
const AGES_MS: [(&str, f64); 2] = [("performance", 2.0), ("low-power", 5_000.0)];
/// Seconds of work after which low-power has made a checkpoint.
const CHECKPOINT_S: u64 = 1_860;
/// Seconds between two pings of low-power, and the wake-ups of one: its timer, its answer.
const KEEP_ALIVE: (f64, f64) = (300.0, 2.0);

fn main() -> ExitCode {
    let work = Duration::from_secs(from_env("LARDER_BENCH_SECONDS", CHECKPOINT_S));
    let idle = Duration::from_secs(from_env("LARDER_BENCH_IDLE_SECONDS", 300));
    let mut table = Table::default();
    let [eager, frugal] = std::thread::scope(|scope| {
        let runs = AGES_MS.map(|(profile, _)| scope.spawn(move || run(profile, work)));
        runs.map(|run| run.join().expect("a run ends well"))
    });
    table.head(["", "performance", "low-power", "measured", "wanted"]);
    for (what, key, least) in [
        ("wake-ups", "wake_ups", 90.0),
        ("syncs", "syncs", 90.0),
        ("CPU ms", "cpu_ms", 30.0),
        ("messages sent", "messages_sent", 0.0),
        ("bytes sent", "bytes_sent", -5.0),
    ] {
        let (before, after) = (eager.cost(key), frugal.cost(key));
        let less = 100.0 * (1.0 - after / before.max(1.0));
        table.row(
            [what, &text(before), &text(after)],
            format!("{less:.1} % less"),
            ">= ",
            least,
            less >= least,
        );
    }
    let ratio = |run: &Run| run.cost("flash_bytes") / run.payload_bytes;
    let (before, after) = (format!("{:.3}", ratio(&eager)), ratio(&frugal));
    let share = format!("{after:.3} of payload");
    let after_text = format!("{after:.3}");
    if work.as_secs() >= CHECKPOINT_S {
        table.row(["bytes to flash", &before, &after_text], share, "<= ", 1.1, after <= 1.1);
    } else {
        println!(
            "{:<16}{before:>12}{after_text:>12}{share:>18}  without the index: not judged",
            "bytes to flash"
        );
    }
    let (soon, latest) = (eager.latest_ms, frugal.latest_ms);
    let age_ms = AGES_MS[1].1;
    table.row(
        ["latest answer", &text(soon), &text(latest)],
        format!("{latest} ms"),
        "<= ",
        age_ms,
        latest <= age_ms,
    );
    rest(idle, &mut table);
    if table.missed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn from_env(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn text(value: f64) -> String {
    format!("{value:.0}")
}

#[derive(Default)]
struct Table {
    missed: bool,
}

impl Table {
    fn head(&self, [what, before, after, measured, wanted]: [&str; 5]) {
        println!("{what:<16}{before:>12}{after:>12}{measured:>18}  {wanted}");
    }

    fn row(
        &mut self,
        [what, before, after]: [&str; 3],
        measured: String,
        relation: &str,
        wanted: impl Display,
        holds: bool,
    ) {
        let verdict = if holds { "pass" } else { "FAIL" };
        println!("{what:<16}{before:>12}{after:>12}{measured:>18}  {relation}{wanted}: {verdict}");
        self.missed |= !holds;
    }
}

struct Run {
    before: BTreeMap<String, f64>,
    after: BTreeMap<String, f64>,
    payload_bytes: f64,
    latest_ms: f64,
}

impl Run {
    fn cost(&self, key: &str) -> f64 {
        self.after.get(key).unwrap_or(&0.0) - self.before.get(key).unwrap_or(&0.0)
    }
}

fn pair(broker: &Mosquitto, profile: &str) -> (Node, Node) {
    let (mut master, mut worker) = (Node::new("hub", "master"), Node::new("cam", "worker"));
    befriend(&master, &worker);
    for node in [&master, &worker] {
        connect(node, broker.port());
    }
    worker.set("node", "profile", &format!("\"{profile}\""));
    master.start();
    worker.start();
    settled(&[&worker, &master]);
    (master, worker)
}

/// The costs since the start, all wake-ups up to now among them.
fn costs(node: &Node) -> BTreeMap<String, f64> {
    let report = node.json(["power"]).pop().expect("power has an answer");
    let total = report["total"].as_object().expect("a report has a total");
    let mut costs: BTreeMap<String, f64> =
        total.iter().filter_map(|(key, value)| Some((key.clone(), value.as_f64()?))).collect();
    if std::env::var_os("LARDER_BENCH_WAKES").is_some() {
        println!("woken by {}", report["total"]["wakes"]);
    }
    costs.insert("wake_ups".to_owned(), wake_ups(node) as f64);
    costs
}

/// The same work under a profile; ends when the master has it all.
fn run(profile: &str, work: Duration) -> Run {
    let broker = Mosquitto::start(Config::default());
    let (master, worker) = pair(&broker, profile);
    // what the start has brought is over
    std::thread::sleep(Duration::from_secs(5));
    let before = costs(&worker);
    let stream = worker.connect();
    let reader = stream.try_clone().expect("a socket has a second descriptor");
    let answers = std::thread::spawn(move || read_answers(reader));
    let asked = write_readings(stream, work);
    let answered = answers.join().expect("the reader ends");
    // the worker is not asked: that would wake it
    while (master.status()["store"]["names"].as_u64().unwrap_or(0) as usize) < asked.len() {
        std::thread::sleep(Duration::from_secs(1));
    }
    std::thread::sleep(Duration::from_secs(2));
    let late = asked.iter().map(|(number, at)| answered[number].duration_since(*at).as_millis());
    let latest_ms = late.max().unwrap_or(0) as f64;
    let payload_bytes = (asked.len() * READING_BYTES) as f64;
    Run { before, after: costs(&worker), payload_bytes, latest_ms }
}

/// Puts readings, none in a hurry, and says at the end that nothing more comes.
fn write_readings(mut stream: UnixStream, work: Duration) -> BTreeMap<u32, Instant> {
    let (mut asked, began) = (BTreeMap::new(), Instant::now());
    while began.elapsed() < work {
        let number = u32::try_from(asked.len() + 1).expect("few readings");
        asked.insert(number, Instant::now());
        let name = format!("readings/{number}");
        let reading = noise(READING_BYTES, &name);
        wire::put_patiently(&mut stream, number, &name, &reading).expect("the agent listens");
        std::thread::sleep(PAUSE);
    }
    let last = u32::try_from(asked.len() + 1).expect("few readings");
    wire::ask(&mut stream, last, &json!({"do": "flush"})).expect("the agent listens");
    asked
}

/// When each number was answered, until all are; the flush has the last number.
fn read_answers(mut stream: UnixStream) -> BTreeMap<u32, Instant> {
    let (mut answered, mut last) = (BTreeMap::new(), u32::MAX);
    while answered.len() < last as usize {
        let (number, body) = wire::answer(&mut stream).expect("the agent answers");
        match body["answer"].as_str() {
            Some("stored") => {}
            Some("flushed") => last = number,
            Some(_) | None => panic!("{body}"),
        }
        answered.insert(number, Instant::now());
    }
    answered
}

/// A worker connected to its master with nothing to do.
fn rest(idle: Duration, table: &mut Table) {
    let broker = Mosquitto::start(Config::default());
    let (_master, worker) = pair(&broker, "low-power");
    // what the start has brought is over, the last of it after the profile's send age
    std::thread::sleep(Duration::from_secs(60));
    let before = costs(&worker);
    let woken = wake_ups(&worker);
    std::thread::sleep(idle);
    let woken = (wake_ups(&worker) - woken) as f64;
    let after = costs(&worker);
    let process = &worker.status()["process"];
    let resident = process["resident_bytes"].as_f64().unwrap_or(f64::NAN) / MIB;
    let minutes = idle.as_secs_f64() / 60.0;
    let pings = (idle.as_secs_f64() / KEEP_ALIVE.0).ceil() * KEEP_ALIVE.1;
    let cpu = (after["cpu_ms"] - before["cpu_ms"]) / (minutes * 600.0);
    let beyond = (woken - pings).max(0.0) / minutes;
    println!(
        "idle in low-power for {minutes:.1} minutes, {woken} wake-ups, at most {pings} of them for pings"
    );
    let none = ["", ""];
    let mut line = |what: &str, measured: String, wanted: f64, holds: bool| {
        table.row([what, none[0], none[1]], measured, "<= ", wanted, holds);
    };
    line("wake-ups", format!("{beyond:.1} a minute"), 2.0, beyond <= 2.0);
    line("resident", format!("{resident:.1} MiB"), 16.0, resident <= 16.0);
    line("CPU", format!("{cpu:.3} %"), 0.05, cpu < 0.05);
}

/// Voluntary context switches of all threads.
fn wake_ups(node: &Node) -> u64 {
    let tasks = format!("/proc/{}/task", node.pid().as_raw_nonzero());
    let threads = std::fs::read_dir(tasks).expect("Linux lists threads").flatten();
    let switches = threads.filter_map(|thread| {
        let status = std::fs::read_to_string(thread.path().join("status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
        line.trim().parse::<u64>().ok()
    });
    switches.sum()
}
