//! What sync carries from a worker to a master through a local Mosquitto, as a ratio to what two plain
//! rumqttc clients carry through the same broker with messages of the same size, in turns.
//!
//! `cargo bench -p larder-tests --bench sync`; `LARDER_BENCH_MIB` payload (default 512), `LARDER_BENCH_ROUNDS`
//! (default 5), `LARDER_BENCH_AGENT` another binary to measure than the one of this build. The worker has taken
//! its data in before the broker starts; the clock runs from the first byte the master has received until it
//! has acknowledged everything from flash. What the disk takes when it is asked for nothing but the same bytes, in
//! batches of the agent's size, each synced, stands beside it: sync can not be faster than that.
//!
//! The broker has the settings of `packaging/mosquitto/mosquitto.conf` that bear on speed, for both. Before
//! each half of a round half of the free memory, at most 4 GiB, is touched and given back: where the machine
//! is a guest its host hands memory out at the first touch, several times slower than it is written to later,
//! and a fresh store would measure that.

use larder::socket::client::Client;
use larder_core::request::{Request, Response, Status};
use larder_tests::broker::{Config as BrokerConfig, Mosquitto, free_port};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::Packet;
use rumqttc::v5::{AsyncClient, Event, MqttOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio::net::UnixStream;

const PATIENCE: Duration = Duration::from_secs(120);
/// How long at least between two questions how far an agent is; each answer costs it about a millisecond.
const LOOK: Duration = Duration::from_millis(10);
/// As many messages on their way as the agent's link allows.
const IN_FLIGHT: u16 = 96;
/// As long as a batch of the profile's.
const DISK_BATCH_BYTES: u64 = 8 << 20;

fn main() {
    let mib = from_env("LARDER_BENCH_MIB", 512);
    let rounds = from_env("LARDER_BENCH_ROUNDS", 5);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let larder = std::env::var_os("LARDER_BENCH_AGENT").map_or_else(larder, PathBuf::from);
    let (mut ours, mut plain, mut disk, mut ratios) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        let (our_rate, message_bytes) = runtime.block_on(sync_round(&larder, mib, round));
        touch_memory();
        let plain_rate = plain_round(mib, message_bytes);
        let disk_rate = disk_round(mib);
        println!(
            "round {round}: sync {our_rate:.0} MB/s, plain clients {plain_rate:.0} MB/s with messages of {message_bytes} bytes, ratio {:.2}; the disk alone {disk_rate:.0} MB/s",
            our_rate / plain_rate
        );
        ours.push(our_rate);
        plain.push(plain_rate);
        disk.push(disk_rate);
        ratios.push(our_rate / plain_rate);
    }
    println!(
        "median of {rounds}: sync {:.0} MB/s, plain clients {:.0} MB/s, ratio {:.2} (at least 0.50 is wanted); the disk alone {:.0} MB/s",
        median(&mut ours),
        median(&mut plain),
        median(&mut ratios),
        median(&mut disk)
    );
}

fn from_env(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The agent's binary of this build profile.
fn larder() -> PathBuf {
    let mut build = Command::new(env!("CARGO"));
    // Variables of this bench's own package would make some dependencies build again.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("CARGO_") && !["CARGO_HOME", "CARGO_TARGET_DIR"].contains(&name.as_str()) {
            build.env_remove(name);
        }
    }
    let status = build
        // With the bench itself, so that both are built with the same features of what they share.
        .args(["build", "--release", "--locked", "-p", "larder", "-p", "larder-tests"])
        .stderr(Stdio::inherit())
        .status()
        .expect("cargo runs");
    assert!(status.success(), "larder can not be built");
    let here = std::env::current_exe().expect("this program has a path");
    let profile = here.ancestors().nth(2).expect("benches are built in PROFILE/deps");
    profile.join("larder")
}

/// An agent that ends with the value.
struct Agent {
    child: Child,
    home: PathBuf,
}

impl Agent {
    fn configure(home: &Path, role: &str, peer: &str, port: u16) {
        std::fs::create_dir_all(home).expect("a folder");
        let text = format!(
            "[node]\nname = \"{role}\"\nfleet = \"bench\"\nrole = \"{role}\"\nkey = \"node.key\"\nstore = \"store\"\n\
             socket = \"s\"\nprofile = \"performance\"\n[mqtt]\nhost = \"127.0.0.1\"\nport = {port}\n{peer}"
        );
        std::fs::write(home.join("larder.toml"), text).expect("a configuration");
    }

    fn start(larder: &Path, home: &Path) -> Self {
        let child = Command::new(larder)
            .args(["run", "--config"])
            .arg(home.join("larder.toml"))
            .stderr(Stdio::null())
            .spawn()
            .expect("the agent starts");
        Agent { child, home: home.to_owned() }
    }

    async fn client(&self) -> Client<UnixStream> {
        let began = Instant::now();
        loop {
            match UnixStream::connect(self.home.join("s")).await {
                Ok(stream) => return Client::new(stream),
                Err(_) if began.elapsed() < PATIENCE => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(error) => panic!("no agent at {}: {error}", self.home.display()),
            }
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn status(client: &mut Client<UnixStream>) -> Status {
    match client.ask(Request::Status, |_| {}).await {
        Ok(Response::Status(status)) => *status,
        other => panic!("no status: {other:?}"),
    }
}

/// One fresh worker, master and broker. Returns MB/s and the mean size of a message with blocks.
async fn sync_round(larder: &Path, mib: u64, round: u64) -> (f64, usize) {
    let folder = tempfile::tempdir().expect("a folder");
    let port = free_port();
    let (worker_home, master_home) = configure_pair(folder.path(), port);
    let worker = Agent::start(larder, &worker_home);
    let mut worker_client = worker.client().await;
    let data = folder.path().join("data");
    std::fs::write(&data, noise(mib << 20, round)).expect("a file");
    let put = Command::new(larder)
        .arg("--config")
        .arg(worker_home.join("larder.toml"))
        .args(["-q", "put"])
        .arg(&data)
        .stdout(Stdio::null())
        .status();
    assert!(put.expect("larder put runs").success(), "the put failed");
    let master = Agent::start(larder, &master_home);
    let mut master_client = master.client().await;
    touch_memory();
    let _broker = Mosquitto::start(BrokerConfig { port: Some(port), ..broker_config() });

    let (began, before) = first_bytes(&mut master_client).await;
    let sent = all_acknowledged(&mut worker_client, mib << 20).await;
    let rate = ((mib << 20) - before.min(mib << 20)) as f64 / 1e6 / began.elapsed().as_secs_f64();
    let received = status(&mut master_client).await;
    println!(
        "  worker: {} turns, {} ms of CPU; master: {} turns, {} batches, {} ms of CPU; {:.0} ms",
        sent.power.turns,
        sent.process.cpu_ms.unwrap_or_default(),
        received.power.turns,
        received.store.batches,
        received.process.cpu_ms.unwrap_or_default(),
        began.elapsed().as_secs_f64() * 1e3
    );
    (rate, (sent.sync.bytes_sent / sent.sync.messages_sent.max(1)) as usize)
}

/// Homes of a worker and a master that know each other.
fn configure_pair(folder: &Path, port: u16) -> (PathBuf, PathBuf) {
    let (worker_home, master_home) = (folder.join("w"), folder.join("m"));
    let key = |home: &Path| {
        std::fs::create_dir_all(home).expect("a folder");
        let key = larder::config::NodeKey::generate().expect("a key");
        key.write_new(&home.join("node.key")).expect("a key file");
        key.public().to_string()
    };
    let (worker_key, master_key) = (key(&worker_home), key(&master_home));
    let peer =
        |role: &str, key: &str| format!("[[peer]]\nname = \"{role}\"\nrole = \"{role}\"\nkey = \"{key}\"\n");
    Agent::configure(&worker_home, "worker", &peer("master", &master_key), port);
    Agent::configure(&master_home, "master", &peer("worker", &worker_key), port);
    (worker_home, master_home)
}

/// Waits until something has arrived; when that was, and how much.
async fn first_bytes(master: &mut Client<UnixStream>) -> (Instant, u64) {
    let waiting = Instant::now();
    loop {
        let received = status(master).await.sync.bytes_received;
        if received > 0 {
            return (Instant::now(), received);
        }
        assert!(waiting.elapsed() < PATIENCE, "nothing arrives");
        tokio::time::sleep(LOOK).await;
    }
}

/// Waits until the master has acknowledged everything, of which it asks more often the less is left.
async fn all_acknowledged(worker: &mut Client<UnixStream>, bytes: u64) -> Status {
    let waiting = Instant::now();
    loop {
        let status = status(worker).await;
        if status.sync.objects_acknowledged > 0 && status.peers.iter().all(|peer| peer.outbox_empty) {
            return status;
        }
        assert!(waiting.elapsed() < PATIENCE, "the transfer does not end: {:?}", status.sync);
        let left = bytes.saturating_sub(status.sync.bytes_sent) as f64 / status.sync.bytes_sent.max(1) as f64;
        let wait = waiting.elapsed().mul_f64(left / 2.0).min(Duration::from_millis(200));
        tokio::time::sleep(wait.max(LOOK)).await;
    }
}

fn broker_config<'a>() -> BrokerConfig<'a> {
    BrokerConfig {
        lines: vec!["set_tcp_nodelay true", "max_inflight_messages 64"],
        ..BrokerConfig::default()
    }
}

/// See the head of this page.
fn touch_memory() {
    const MOST: usize = 4 << 30;
    let facts = std::fs::read_to_string("/proc/meminfo").expect("Linux says how much memory is free");
    let free = facts.lines().find_map(|line| line.strip_prefix("MemFree:")?.trim().strip_suffix(" kB"));
    let free: usize = free.and_then(|kib| kib.parse().ok()).expect("a number of kB");
    drop(std::hint::black_box(vec![1_u8; (free * 1024 / 2).min(MOST)]));
}

fn noise(bytes: u64, seed: u64) -> Vec<u8> {
    let mut noise = vec![0; bytes as usize];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut noise);
    noise
}

/// Two plain clients, a thread each; the clock runs from the first message received to the last.
fn plain_round(mib: u64, message_bytes: usize) -> f64 {
    let broker = Mosquitto::start(broker_config());
    let messages = (mib << 20) / message_bytes as u64;
    let port = broker.port();
    let (ready, is_ready) = std::sync::mpsc::channel();
    let receiver = std::thread::spawn(move || receive(port, messages, &ready));
    is_ready.recv().expect("the receiver subscribes");
    let sender = std::thread::spawn(move || send(port, messages, message_bytes));
    let took = receiver.join().expect("the receiver ends");
    sender.join().expect("the sender ends");
    (messages * message_bytes as u64) as f64 / 1e6 / took.as_secs_f64()
}

/// A file that grows by batches, each synced; MB/s.
fn disk_round(mib: u64) -> f64 {
    let folder = tempfile::tempdir().expect("a folder");
    let file = std::fs::File::create(folder.path().join("file")).expect("a file");
    let batch = noise(DISK_BATCH_BYTES, 7);
    let batches = (mib << 20) / DISK_BATCH_BYTES;
    let began = Instant::now();
    for number in 0..batches {
        file.write_all_at(&batch, number * DISK_BATCH_BYTES).expect("the disk has room");
        file.sync_data().expect("the disk syncs");
    }
    (batches * DISK_BATCH_BYTES) as f64 / 1e6 / began.elapsed().as_secs_f64()
}

fn options(name: &str, port: u16) -> MqttOptions {
    let mut options = MqttOptions::new(name, "127.0.0.1", port);
    options.set_max_packet_size(Some(256 * 1024));
    options.set_receive_maximum(Some(IN_FLIGHT));
    options.set_outgoing_inflight_upper_limit(IN_FLIGHT);
    options
}

#[tokio::main(flavor = "current_thread")]
async fn receive(port: u16, messages: u64, ready: &std::sync::mpsc::Sender<()>) -> Duration {
    let (client, mut events) = AsyncClient::new(options("receiver", port), 16);
    client.subscribe("bench", QoS::AtLeastOnce).await.expect("a subscription");
    let (mut received, mut began) = (0, Instant::now());
    loop {
        match events.poll().await.expect("the broker stays") {
            Event::Incoming(Packet::SubAck(_)) => ready.send(()).expect("the bench waits"),
            Event::Incoming(Packet::Publish(_)) => {
                if received == 0 {
                    began = Instant::now();
                }
                received += 1;
                if received == messages {
                    return began.elapsed();
                }
            }
            Event::Incoming(_) | Event::Outgoing(_) => {}
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn send(port: u16, messages: u64, message_bytes: usize) {
    let (client, mut events) = AsyncClient::new(options("sender", port), 16);
    let payload = noise(message_bytes as u64, 7);
    let publishing = tokio::spawn(async move {
        for _ in 0..messages {
            client.publish("bench", QoS::AtLeastOnce, false, payload.clone()).await.expect("a publish");
        }
        client
    });
    let mut acknowledged = 0;
    while acknowledged < messages {
        if let Event::Incoming(Packet::PubAck(_)) = events.poll().await.expect("the broker stays") {
            acknowledged += 1;
        }
    }
    drop(publishing.await);
}
