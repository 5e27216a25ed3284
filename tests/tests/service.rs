//! The agent as a service: systemd's protocol, signals, its socket and the clients that come in by it.

#![expect(clippy::unwrap_used, reason = "a test that finds anything else has failed")]

use larder_tests::broker::{Config, Mosquitto};
use larder_tests::fleet::Fleet;
use larder_tests::node::{Node, SOON, larder_bin, noise, skip, wait_for};
use larder_tests::wire;
use rustix::process::Signal;
use serde_json::json;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};

/// What systemd hears of a service.
struct Systemd {
    socket: UnixDatagram,
    heard: Vec<String>,
}

impl Systemd {
    /// Stands where the node's agent looks for systemd.
    fn of(node: &mut Node) -> Self {
        let path = node.path("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        node.variable("NOTIFY_SOCKET", path.to_str().unwrap());
        socket.set_read_timeout(Some(SOON)).unwrap();
        Systemd { socket, heard: Vec::new() }
    }

    /// The next message.
    fn next(&mut self) -> String {
        let mut bytes = [0; 4096];
        let length =
            self.socket.recv(&mut bytes).unwrap_or_else(|error| panic!("{error} after {:?}", self.heard));
        let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
        self.heard.push(text.clone());
        text
    }

    /// Waits for a message with this line, and gives all of it.
    fn wait(&mut self, line: &str) -> String {
        loop {
            let text = self.next();
            if text.lines().any(|found| found == line) {
                return text;
            }
        }
    }
}

#[test]
fn systemd_hears_of_readiness_reload_and_stop_and_the_agent_leaves_nothing_behind() {
    let mut node = Node::new("cam", "worker");
    let mut systemd = Systemd::of(&mut node);
    node.start();
    systemd.wait("READY=1");
    assert_eq!(node.socket().metadata().unwrap().mode() & 0o777, 0o600);
    node.run_with(["put", "--stdin", "a"], b"a").expect(0);

    let value = |node: &Node, key: &str| {
        let status = node.status();
        let settings = status["settings"].as_array().unwrap();
        let setting = settings.iter().find(|setting| setting["key"] == key).unwrap();
        setting["value"].as_str().unwrap().to_owned()
    };
    assert_eq!((value(&node, "profile").as_str(), value(&node, "tick_ms").as_str()), ("performance", "10"));
    node.set("node", "profile", "\"balanced\"");
    node.signal(Signal::HUP);
    let reloading = systemd.wait("RELOADING=1");
    assert!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
    systemd.wait("READY=1");
    assert_eq!(value(&node, "profile"), "balanced");
    assert_ne!(value(&node, "tick_ms"), "10");

    node.signal(Signal::TERM);
    systemd.wait("STOPPING=1");
    assert_eq!(node.ended(), 0);
    assert!(!node.socket().exists());
    assert_eq!(node.get("a").unwrap(), b"a");
}

#[test]
fn a_reload_with_a_mistake_keeps_the_agent_running_as_it_was_and_says_so() {
    let mut node = Node::new("cam", "worker");
    node.start();
    node.set("node", "profile", "\"fast\"");
    node.signal(Signal::HUP);
    wait_for("the mistake is in the log", || node.log().contains("not reloaded").then_some(()));
    assert!(node.log().contains("[node] profile = \"fast\""), "{}", node.log());
    node.set("node", "profile", "\"performance\"");
    assert_eq!(node.status()["node"], "cam");
    node.set("node", "name", "\"other\"");
    node.signal(Signal::HUP);
    wait_for("that the name needs a restart", || node.log().contains("need a restart").then_some(()));
    assert_eq!(node.status()["node"], "cam");
}

#[test]
fn the_watchdog_is_fed_by_the_loop_and_not_by_one_that_stands_still() {
    let mut node = Node::new("cam", "worker");
    let mut systemd = Systemd::of(&mut node);
    node.variable("WATCHDOG_USEC", "200000");
    node.start();
    for _ in 0..5 {
        systemd.wait("WATCHDOG=1");
    }
    node.signal(Signal::STOP);
    systemd.socket.set_read_timeout(Some(std::time::Duration::from_secs(2))).unwrap();
    let mut rest = 0;
    while systemd.socket.recv(&mut [0; 256]).is_ok() {
        rest += 1;
        assert!(rest < 10, "a process that stands still is alive");
    }
    node.signal(Signal::CONT);
    systemd.socket.set_read_timeout(Some(SOON)).unwrap();
    systemd.wait("WATCHDOG=1");
    assert_eq!(node.stop(), 0);
}

#[test]
fn a_profile_that_wakes_seldom_asks_systemd_for_patience_and_feeds_the_watchdog_all_the_same() {
    let mut node = Node::new("cam", "worker");
    let mut systemd = Systemd::of(&mut node);
    node.variable("WATCHDOG_USEC", "30000000");
    node.set("node", "profile", "\"low-power\"");
    node.start();
    systemd.wait("WATCHDOG_USEC=480000000"); // twice the time between two readings of the sensors
    systemd.wait("WATCHDOG=1");
    assert_eq!(node.stop(), 0);

    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../power-profiles/low-power.toml");
    let text = fs::read_to_string(shipped).unwrap();
    fs::write(node.path("own.toml"), text.replace("sense_s = 240", "sense_s = 1")).unwrap();
    node.set("node", "profile", "\"own.toml\"");
    node.variable("WATCHDOG_USEC", "500000");
    node.start();
    systemd.wait("WATCHDOG_USEC=2000000");
    for _ in 0..3 {
        systemd.wait("WATCHDOG=1");
    }
}

/// Its other threads run and it answers signals: only the loop hangs, in a wait that does not return.
#[test]
fn a_loop_that_hangs_beside_living_threads_does_not_feed_the_watchdog() {
    let name = "a_loop_that_hangs_beside_living_threads_does_not_feed_the_watchdog";
    let mut node = Node::new("cam", "worker");
    let mut systemd = Systemd::of(&mut node);
    node.variable("WATCHDOG_USEC", "200000");
    node.start();
    systemd.wait("WATCHDOG=1");
    // of the first thread alone, which is the loop's
    let waits = "epoll_wait,epoll_pwait,epoll_pwait2";
    let mut strace = Command::new("strace");
    strace.args(["-qq", "-o", "/dev/null", "-e", &format!("trace={waits}")]);
    strace.args(["-e", &format!("inject={waits}:delay_enter=60000000"), "-p", &node.pid().to_string()]);
    let Ok(mut strace) = strace.spawn() else { return skip(name, "there is no strace") };
    let thread = |id: &str| {
        let status = fs::read_to_string(format!("/proc/{}/task/{id}/status", node.pid())).unwrap();
        (status.contains("State:\tt "), !status.contains("TracerPid:\t0\n"))
    };
    let loop_thread = node.pid().to_string();
    let hangs = wait_for("that the loop hangs", || {
        if strace.try_wait().unwrap().is_some() {
            Some(false)
        } else {
            (thread(&loop_thread) == (true, true)).then_some(true)
        }
    });
    if !hangs {
        return skip(name, "strace may not trace");
    }
    systemd.socket.set_nonblocking(true).unwrap();
    while systemd.socket.recv(&mut [0; 256]).is_ok() {}
    systemd.socket.set_nonblocking(false).unwrap();
    systemd.socket.set_read_timeout(Some(std::time::Duration::from_secs(2))).unwrap();
    assert!(systemd.socket.recv(&mut [0; 256]).is_err(), "a loop that hangs is alive");
    let threads = fs::read_dir(format!("/proc/{}/task", node.pid())).unwrap();
    let mut others = threads.map(|thread| thread.unwrap().file_name().into_string().unwrap());
    assert!(others.any(|id| thread(&id) == (false, false)), "everything stands still");
    strace.kill().unwrap();
    strace.wait().unwrap();
    systemd.socket.set_read_timeout(Some(SOON)).unwrap();
    systemd.wait("WATCHDOG=1");
    assert_eq!(node.stop(), 0);
}

#[test]
fn a_turn_of_the_loop_that_takes_too_long_is_counted_and_shown() {
    let name = "a_turn_of_the_loop_that_takes_too_long_is_counted_and_shown";
    if Command::new("strace").arg("-V").output().is_err() {
        return skip(name, "there is no strace");
    }
    let mut node = Node::new("hub", "master");
    // a cleaning says so in the log, and the log takes 50 ms for every line
    node.set("storage", "clean_period_s", "1");
    let mut command = Command::new("strace");
    node.prepare(&mut command);
    // as a grandchild, so that the agent is ours to end
    command.args(["-D", "-f", "-qq", "-o", "trace", "-e", "trace=write"]);
    command.args(["-e", "inject=write:delay_enter=50000"]).arg(larder_bin()).arg("run");
    if let Err(said) = node.launch(&mut command) {
        return skip(name, &format!("strace may not trace: {}", said.stderr));
    }
    node.run_with(["put", "--stdin", "a"], b"a").expect(0);
    node.wait_status("a stall is counted", |status| {
        status["power"]["stalls"].as_u64().filter(|stalls| *stalls > 0)
    });
    let shown = node.run(["status"]).expect(0).text();
    assert!(shown.contains(" over 20 ms") && !shown.contains(" 0 over 20 ms"), "{shown}");
    assert_eq!(node.stop(), 0);
}

#[test]
fn sigint_stops_it_as_well_and_what_was_acknowledged_before_is_there() {
    let mut node = Node::new("cam", "worker");
    node.set("node", "profile", "\"low-power\"");
    node.start();
    node.run_with(["put", "--stdin", "a"], &noise(3_000_000, "a")).expect(0);
    node.signal(Signal::INT);
    assert_eq!(node.ended(), 0);
    node.start();
    assert!(node.get("a").unwrap() == noise(3_000_000, "a"));
}

#[test]
fn sigterm_in_the_middle_of_large_puts_ends_soon_and_cleanly() {
    let broker = Mosquitto::start(Config::default());
    let mut fleet = Fleet::new(broker.port());
    let node = &mut fleet.worker;
    node.start();
    let files = ["a", "b", "c"].map(|name| (name, noise(100_000_000, name)));
    let mut puts = Vec::new();
    for (name, bytes) in &files {
        fs::write(node.path(name), bytes).unwrap();
        let mut put = node.command(["put", name]);
        puts.push(put.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    }
    node.wait_status("all of it is under way", |status| {
        status["ingest"]["bytes"].as_u64().filter(|bytes| *bytes > 10_000_000)
    });
    assert_eq!(node.stop(), 0);
    let codes: Vec<_> = puts.iter_mut().map(|put| put.wait().unwrap().code()).collect();
    let state = broker.retained("larder/1/home/cam/state");
    assert_eq!(state.map(|state| state["state"].clone()), Some("offline".into()));
    node.start();
    let names = node.names("");
    assert!(names.len() < files.len(), "it went on until all was stored");
    for ((name, bytes), code) in files.iter().zip(codes) {
        assert_eq!(names.contains(&(*name).to_owned()), code == Some(0), "{name}");
        assert!(code != Some(0) || node.get(name).unwrap() == *bytes, "{name}");
    }
    node.run(["verify"]).expect(0);
}

#[test]
fn sigterm_answers_puts_that_still_waited() {
    let mut node = Node::new("cam", "worker");
    let built_in = concat!(env!("CARGO_MANIFEST_DIR"), "/../power-profiles/low-power.toml");
    let profile = fs::read_to_string(built_in).unwrap();
    let profile =
        profile.replace("\"low-power\"", "\"own\"").replace("flush_age_ms = 5_000", "flush_age_ms = 60_000");
    fs::write(node.path("own.toml"), profile).unwrap();
    node.set("node", "profile", "\"own.toml\"");
    node.start();
    let mut stream = node.connect();
    wire::put_patiently(&mut stream, 1, "a", b"patient").unwrap();
    node.wait_status("it has come", |status| (status["ingest"]["bytes"] == 7).then_some(()));
    assert_eq!(node.stop(), 0);
    let (number, answer) = wire::answer(&mut stream).unwrap();
    assert_eq!((number, &answer["answer"]), (1, &json!("stored")), "{answer}");
    node.start();
    assert_eq!(node.get("a").unwrap(), b"patient");
}

#[test]
fn a_second_agent_is_refused_and_the_first_one_keeps_its_socket() {
    let mut node = Node::new("cam", "worker");
    node.start();
    let refused = node.run(["run"]).expect(8);
    assert!(refused.stderr.contains("is in use by another process"), "{}", refused.stderr);
    let elsewhere = node.path("elsewhere");
    let refused = node.run(["run", "--store", elsewhere.to_str().unwrap()]).expect(8);
    assert!(refused.stderr.contains("another agent listens on"), "{}", refused.stderr);
    assert_eq!(node.status()["node"], "cam");
    assert_eq!(node.stop(), 0);
    fs::write(node.socket(), b"").unwrap();
    let refused = node.run(["run"]).expect(1);
    assert!(refused.stderr.contains("is there and is no socket"), "{}", refused.stderr);
}

#[test]
fn a_socket_left_by_a_killed_agent_is_replaced_and_no_obstacle_to_commands() {
    let mut node = Node::new("cam", "worker");
    node.start();
    node.kill();
    assert!(node.socket().exists());
    node.run_with(["put", "--stdin", "a"], b"a").expect(0);
    node.start();
    assert_eq!(node.get("a").unwrap(), b"a");
}

/// Whether the other side has closed the connection, once everything it said is read.
fn is_closed(stream: &mut UnixStream) -> bool {
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => true,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

#[track_caller]
fn answers(node: &Node) {
    node.run_with(["put", "--stdin", "well"], b"well").expect(0);
    assert_eq!(node.get("well").unwrap(), b"well");
}

#[test]
fn a_client_that_speaks_nonsense_is_told_or_cut_off_and_disturbs_nobody() {
    let mut node = Node::new("cam", "worker");
    node.start();

    let mut stream = node.connect();
    stream.write_all(&[0xff; 64]).unwrap();
    let (number, refused) = wire::answer(&mut stream).unwrap();
    assert_eq!((number, &refused["kind"]), (0, &json!("invalid")));
    assert!(refused["message"].as_str().unwrap().contains("262144 are the limit"), "{refused}");
    assert!(is_closed(&mut stream), "a frame that is too large");
    answers(&node);

    let mut stream = node.connect();
    stream.write_all(&wire::frame(99, 1, b"what")).unwrap();
    let (_, refused) = wire::answer(&mut stream).unwrap();
    assert!(refused["message"].as_str().unwrap().contains("unknown kind 99"), "{refused}");
    assert!(is_closed(&mut stream), "a frame of unknown kind");
    answers(&node);

    let mut stream = node.connect();
    for (number, text) in (1..).zip(["{", "[]", "null", "{\"do\":\"fly\"}", "{\"do\":\"get\"}", "\u{0}", ""])
    {
        stream.write_all(&wire::frame(wire::MESSAGE, number, text.as_bytes())).unwrap();
        let (to, refused) = wire::answer(&mut stream).unwrap();
        assert_eq!((to, &refused["kind"]), (number, &json!("invalid")), "{text}");
    }
    let deep = "[".repeat(200_000);
    stream.write_all(&wire::frame(wire::MESSAGE, 20, deep.as_bytes())).unwrap();
    assert_eq!(wire::answer(&mut stream).unwrap().1["kind"], "invalid");
    wire::ask(&mut stream, 21, &json!({"do": "status"})).unwrap();
    assert_eq!(wire::answer(&mut stream).unwrap().1["answer"], "status", "the connection goes on");
    // data and an end that belong to nothing
    stream.write_all(&wire::frame(wire::DATA, 30, b"x")).unwrap();
    stream.write_all(&wire::frame(wire::END, 31, b"")).unwrap();
    wire::ask(&mut stream, 32, &json!({"do": "flush"})).unwrap();
    while wire::answer(&mut stream).unwrap().0 != 32 {}
    answers(&node);

    let mut stream = node.connect();
    stream.write_all(&wire::frame(wire::MESSAGE, 1, b"{\"do\":\"status\"}")[..7]).unwrap();
    answers(&node);
    drop(stream);
    answers(&node);
    assert_eq!(node.status()["power"]["dropped"], 0);
}

#[test]
fn a_put_whose_client_goes_away_half_way_leaves_nothing() {
    let mut node = Node::new("cam", "worker");
    node.start();
    node.run_with(["put", "--stdin", "a"], b"before").expect(0);
    let mut stream = node.connect();
    let meta = json!({"size": 0, "mtime_ms": 0, "mode": 0o644});
    wire::ask(&mut stream, 1, &json!({"do": "put", "name": "a", "meta": meta})).unwrap();
    for piece in noise(2 << 20, "half").chunks(256 << 10) {
        stream.write_all(&wire::frame(wire::DATA, 1, piece)).unwrap();
    }
    drop(stream);
    assert_eq!(node.get("a").unwrap(), b"before");
    node.run(["verify"]).expect(0);
    assert_eq!(node.stop(), 0);
    assert_eq!(node.get("a").unwrap(), b"before");
}

#[test]
fn clients_that_take_no_answers_and_send_half_puts_hold_up_nobody() {
    let mut node = Node::new("cam", "worker");
    node.set("node", "profile", "\"low-power\"");
    node.start();
    let large = noise(40 << 20, "large");
    node.run_with(["put", "--stdin", "large"], &large).expect(0);
    let mut idle = Vec::new();
    for client in 0..8 {
        let mut stream = node.connect();
        // asks for far more than the socket holds, several times, and never reads
        for number in 1..=3 {
            let target = json!({"name": "large"});
            wire::ask(&mut stream, number, &json!({"do": "get", "target": target})).unwrap();
        }
        if client % 2 == 0 {
            let meta = json!({"size": 0, "mtime_ms": 0, "mode": 0o644});
            wire::ask(&mut stream, 9, &json!({"do": "put", "name": "half", "meta": meta})).unwrap();
        }
        idle.push(stream);
    }
    answers(&node);
    assert!(node.get("large").unwrap() == large);
    let peak = node.peak_bytes();
    println!("peak with eight clients that do not read: {} MiB", peak >> 20);
    assert!(peak < 48 << 20, "what waits for clients that do not read is bounded: {peak} bytes");
    drop(idle);
    answers(&node);
    assert_eq!(node.stop(), 0);
}

fn served_and_refused(streams: &mut [UnixStream]) -> (usize, usize) {
    let (mut served, mut refused) = (0, 0);
    for stream in streams {
        // one that is refused may be closed already
        let _sent = wire::ask(stream, 1, &json!({"do": "flush"})).is_ok();
        match wire::answer(stream) {
            Ok((1, answer)) if answer["answer"] == "flushed" => served += 1,
            Ok((0, answer)) if answer["kind"] == "busy" => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    (served, refused)
}

#[test]
fn more_connections_than_allowed_are_told_so_and_have_their_turn_later() {
    let mut node = Node::new("cam", "worker");
    node.start();
    let folder = format!("/proc/{}/fd", node.pid().as_raw_nonzero());
    let open_files = || fs::read_dir(&folder).unwrap().count();
    let open_before = open_files();
    let mut streams: Vec<UnixStream> = (0..40).map(|_| node.connect()).collect();
    let (served, refused) = served_and_refused(&mut streams);
    // the one that asked whether the agent is up may just be leaving
    assert!(served + refused == 40 && (31..=32).contains(&served), "{served} served, {refused} refused");
    if served == 31 {
        let mut last = [node.connect()];
        assert_eq!(served_and_refused(&mut last), (1, 0));
        streams.extend(last);
    }
    let busy = node.run(["ls"]).expect(8);
    assert!(busy.stderr.contains("32"), "{}", busy.stderr);
    drop(streams);
    wait_for("there is room for as many again", || {
        let mut streams: Vec<UnixStream> = (0..32).map(|_| node.connect()).collect();
        (served_and_refused(&mut streams) == (32, 0)).then_some(())
    });
    wait_for("there is room again", || (node.run(["ls"]).code == 0).then_some(()));
    wait_for("nothing of them is left open", || (open_files() <= open_before).then_some(()));
}

#[test]
fn a_socket_of_another_user_is_not_ours_to_use() {
    let name = "a_socket_of_another_user_is_not_ours_to_use";
    if !rustix::process::geteuid().is_root() {
        return larder_tests::node::skip(name, "acting as another user needs root");
    }
    let mut node = Node::new("cam", "worker");
    node.start();
    fs::copy(larder_tests::node::larder_bin(), node.path("larder")).unwrap();
    fs::set_permissions(node.folder(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(node.config(), fs::Permissions::from_mode(0o644)).unwrap();
    let mut command = std::process::Command::new("setpriv");
    node.prepare(&mut command);
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(node.path("larder")).arg("ls");
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(6) && stderr.contains("is another user's"), "{stderr}");
    assert_eq!(node.stop(), 0);
}

#[test]
fn the_service_reads_its_key_from_the_credential_that_the_manager_gives_it() {
    let mut node = Node::new("hub", "master");
    larder_tests::fleet::connect(&node, larder_tests::broker::free_port());
    let credentials = node.path("credentials");
    fs::create_dir(&credentials).unwrap();
    fs::rename(node.path("node.key"), credentials.join("node.key")).unwrap();
    let without = node.refused_start();
    assert!(without.stderr.contains("node.key cannot be read"), "{}", without.stderr);
    // as an access list of systemd's shows
    fs::set_permissions(credentials.join("node.key"), fs::Permissions::from_mode(0o440)).unwrap();
    node.variable("CREDENTIALS_DIRECTORY", credentials.to_str().unwrap());
    node.start();
    assert_eq!(node.stop(), 0);
}
