//! What a worker costs under performance and under low-power with the same work, and what it costs idle.
//!
//! `cargo bench -p larder-tests --bench power`; `LARDER_BENCH_SECONDS` of work for each profile (default 120),
//! `LARDER_BENCH_IDLE_SECONDS` (default 300). A program puts a reading of 4 KiB four times a second over one
//! connection; worker, master and a Mosquitto run beside it. Counted are the worker's own: voluntary context
//! switches of all its threads, syncs, bytes to flash, CPU time, from its report on power.

use larder_tests::broker::{Config, Mosquitto};
use larder_tests::fleet::{befriend, connect, settled};
use larder_tests::node::{Node, noise};
use larder_tests::wire;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

const READING_BYTES: usize = 4_096;
const PAUSE: Duration = Duration::from_millis(250);

fn main() {
    let work = Duration::from_secs(from_env("LARDER_BENCH_SECONDS", 120));
    let idle = Duration::from_secs(from_env("LARDER_BENCH_IDLE_SECONDS", 300));
    let eager = run("performance", work);
    let frugal = run("low-power", work);
    for (what, key, wanted) in [
        ("wake-ups", "wake_ups", "90 % fewer"),
        ("syncs", "syncs", "90 % fewer"),
        ("CPU time", "cpu_ms", "30 % less"),
    ] {
        let (before, after) = (eager.cost(key), frugal.cost(key));
        let less = 100.0 * (1.0 - after / before.max(1.0));
        println!("{what}: {before} and {after}: {less:.0} % less (wanted: {wanted})");
    }
    for (profile, run) in [("performance", &eager), ("low-power", &frugal)] {
        let ratio = run.cost("flash_bytes") / run.payload_bytes.max(1.0);
        println!("{profile}: {ratio:.2} bytes to flash per payload byte, latest answer {} ms", run.latest_ms);
    }
    rest(idle);
}

fn from_env(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

struct Run {
    before: Value,
    after: Value,
    payload_bytes: f64,
    latest_ms: u128,
}

impl Run {
    fn cost(&self, key: &str) -> f64 {
        let of = |report: &Value| report["total"][key].as_f64().unwrap_or(0.0);
        of(&self.after) - of(&self.before)
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

fn report(node: &Node) -> Value {
    node.json(["power"]).pop().expect("power has an answer")
}

/// The same work under a profile; ends when the master has it all.
fn run(profile: &str, work: Duration) -> Run {
    let broker = Mosquitto::start(Config::default());
    let (_master, worker) = pair(&broker, profile);
    let before = report(&worker);
    let stream = worker.connect();
    let reader = stream.try_clone().expect("a socket has a second descriptor");
    let answers = std::thread::spawn(move || read_answers(reader));
    let (asked, count) = write_readings(stream, work);
    let answered = answers.join().expect("the reader ends");
    settled(&[&worker]);
    let late = asked.iter().map(|(number, at)| answered[number].duration_since(*at).as_millis());
    let latest_ms = late.max().unwrap_or(0);
    Run { before, after: report(&worker), payload_bytes: (count * READING_BYTES) as f64, latest_ms }
}

/// Puts readings, none in a hurry, and says at the end that nothing more comes.
fn write_readings(mut stream: UnixStream, work: Duration) -> (BTreeMap<u32, Instant>, usize) {
    let (mut asked, began) = (BTreeMap::new(), Instant::now());
    while began.elapsed() < work {
        let number = u32::try_from(asked.len() + 1).expect("few readings");
        asked.insert(number, Instant::now());
        let name = format!("readings/{number}");
        wire::put(&mut stream, number, &name, &noise(READING_BYTES, &name)).expect("the agent listens");
        std::thread::sleep(PAUSE);
    }
    let count = asked.len();
    let last = u32::try_from(count + 1).expect("few readings");
    wire::ask(&mut stream, last, &json!({"do": "flush"})).expect("the agent listens");
    (asked, count)
}

/// When each number was answered, until all are; the flush has the last number.
fn read_answers(mut stream: UnixStream) -> BTreeMap<u32, Instant> {
    let (mut answered, mut last) = (BTreeMap::new(), u32::MAX);
    while answered.len() < last as usize {
        let (number, _, body) = wire::next(&mut stream).expect("the agent answers");
        let body: Value = serde_json::from_slice(&body).expect("answers are JSON");
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
fn rest(idle: Duration) {
    let broker = Mosquitto::start(Config::default());
    let (_master, worker) = pair(&broker, "low-power");
    // what the start has brought is over
    std::thread::sleep(Duration::from_secs(20));
    let switches = || sum_of_threads(&worker);
    let (before, cpu_before) = (switches(), report(&worker)["total"]["cpu_ms"].as_f64().unwrap_or(0.0));
    let asked = switches() - before;
    std::thread::sleep(idle);
    let woken = switches() - before - asked;
    let after = report(&worker);
    let minutes = idle.as_secs_f64() / 60.0;
    let resident = worker.status()["process"]["resident_bytes"].as_f64().unwrap_or(0.0) / f64::from(1 << 20);
    let cpu_ms = after["total"]["cpu_ms"].as_f64().unwrap_or(0.0) - cpu_before;
    println!(
        "idle: {:.1} wake-ups a minute (wanted: 2 beyond keep-alive), {resident:.1} MiB resident (wanted: 16), {:.3} % CPU (wanted: 0.05)",
        woken as f64 / minutes,
        cpu_ms / (minutes * 600.0)
    );
}

/// Voluntary context switches of all threads.
fn sum_of_threads(node: &Node) -> u64 {
    let tasks = format!("/proc/{}/task", node.pid().as_raw_nonzero());
    let threads = std::fs::read_dir(tasks).expect("Linux lists threads").flatten();
    let switches = threads.filter_map(|thread| {
        let status = std::fs::read_to_string(thread.path().join("status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
        line.trim().parse::<u64>().ok()
    });
    switches.sum()
}
