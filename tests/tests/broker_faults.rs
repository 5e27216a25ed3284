//! Brokers that are absent, forget, refuse and break, and agents that die: the fleet goes on where it was.

use larder_core::role::Role;
use larder_tests::broker::{Config, Mosquitto, Proxy, free_port};
use larder_tests::fleet::{
    Contents, Fleet, assert_all_hold, assert_holds, befriend, connect, contents, number, put, settled,
};
use larder_tests::node::{Node, noise, wait_for};
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::thread;

/// What a receiver in the balanced profile has asked for and not stored: 32 blocks, of the 40 KiB that noise
/// is cut to on average. So much is sent again, at the most, when a link breaks.
const WINDOW_BYTES: u64 = 32 * 40 * 1024;

fn mosquitto() -> Mosquitto {
    Mosquitto::start(Config { persistence: true, ..Config::default() })
}

fn reason(status: &Value) -> String {
    status["link"]["reason"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn without_a_broker_agents_start_take_puts_and_sync_once_it_is_there() {
    let port = free_port();
    let mut fleet = Fleet::new(port);
    fleet.leecher.set("node", "subscribe", "[\"\"]");
    for node in [&mut fleet.master, &mut fleet.worker, &mut fleet.leecher] {
        node.start();
        let why =
            node.wait_status("it says why", |status| Some(reason(status)).filter(|why| !why.contains("yet")));
        assert!(why.contains("nothing listens") && why.contains("start the broker"), "{why}");
    }
    let files = contents([("from/cam", noise(300_000, "cam")), ("from/hub", b"hub".to_vec())]);
    put(&fleet.worker, "from/cam", &files["from/cam"]);
    put(&fleet.master, "from/hub", &files["from/hub"]);
    let _broker = Mosquitto::start(Config { port: Some(port), ..Config::default() });
    fleet.settled();
    assert_holds(&fleet.master, &files);
    assert_holds(&fleet.leecher, &files);
    assert_holds(&fleet.worker, &contents([("from/cam", files["from/cam"].clone())]));
}

/// Checks that a node's log tells of its broken link, of this broker, with one of these reasons.
#[track_caller]
fn assert_told_of_broken_link(node: &Node, port: u16, reasons: &[&str]) {
    let log = node.log();
    let broker = format!("the link is down: the broker at 127.0.0.1:{port} ");
    let told: Vec<&str> = log.lines().filter(|line| line.contains(&broker)).collect();
    let is_plain = |line: &&str| reasons.iter().any(|reason| line.contains(reason));
    assert!(told.iter().any(is_plain), "{}: {told:?}, none of {reasons:?}", node.name());
}

/// The victim's link is held up in the middle of a transfer, to the master or to the leecher, when the broker ends.
fn broker_restarted_in_mid_transfer(keep_state: bool, victim: Role) {
    let mut broker = mosquitto();
    let (mut fleet, proxy) = Fleet::with_proxy(broker.port(), victim);
    let files = contents([("large", noise(8_000_000, "large")), ("small", b"small".to_vec())]);
    let before = proxy.bytes();
    proxy.stall_after_bytes(3_000_000);
    for (name, bytes) in &files {
        put(&fleet.worker, name, bytes);
    }
    wait_for("the transfer is held up", || proxy.is_stalled().then_some(()));
    let receiver = if victim == Role::Leecher { &fleet.leecher } else { &fleet.master };
    assert!(!has_large(receiver), "it is not in mid-transfer");
    broker.restart(keep_state);
    proxy.unstall();
    fleet.settled();
    fleet.assert_hold(&files);
    let bytes = files.values().map(Vec::len).sum();
    assert_carried(victim, proxy.bytes() - before, bytes, 1);
    let sender = if victim == Role::Leecher { &fleet.master } else { &fleet.worker };
    assert_sent(sender, bytes);
    for role in Role::ALL {
        let port = if role == victim { proxy.port() } else { broker.port() };
        assert_told_of_broken_link(
            fleet.of_role(role),
            port,
            &["closed the connection", "it is shutting down"],
        );
    }
}

#[test]
fn a_broker_restarted_in_mid_transfer_with_its_state_costs_a_window() {
    of_each(&[Role::Worker, Role::Leecher], |victim| broker_restarted_in_mid_transfer(true, victim));
}

#[test]
fn a_broker_restarted_in_mid_transfer_without_its_state_costs_a_window() {
    of_each(&[Role::Worker, Role::Leecher], |victim| broker_restarted_in_mid_transfer(false, victim));
}

#[test]
fn a_refused_login_is_said_in_plain_words_and_works_once_corrected() {
    let broker = Mosquitto::start(Config { login: Some(("fleet", "open sesame")), ..Config::default() });
    let mut fleet = Fleet::new(broker.port());
    let write_password = |node: &Node, password: &str| {
        let path = node.path("password");
        fs::write(&path, password).expect("the folder is writable");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("it is our own file");
    };
    for role in Role::ALL {
        let node = fleet.of_role(role);
        node.set("mqtt", "user", "\"fleet\"");
        node.set("mqtt", "password_file", "\"password\"");
        if role != Role::Master {
            node.set("node", "subscribe", "[\"\"]");
        }
        write_password(node, "guessed\n");
        node.start();
    }
    let files = contents([("from/cam", b"cam".to_vec()), ("from/hub", b"hub".to_vec())]);
    put(&fleet.worker, "from/cam", b"cam");
    put(&fleet.master, "from/hub", b"hub");
    for role in Role::ALL {
        let node = fleet.of_role(role);
        let why = node.wait_status("the refusal", |status| {
            Some(reason(status)).filter(|why| why.contains("refuses the login"))
        });
        assert!(
            why.contains("\"fleet\"") && !why.contains("guessed"),
            "the user and not the password: {why}"
        );
        assert!(node.run(["status"]).expect(0).text().contains("refuses the login"));
        assert_eq!(node.stop(), 0);
        assert_told_of_broken_link(node, broker.port(), &["refuses the login"]);
        write_password(node, "open sesame\n");
    }
    fleet.start();
    fleet.assert_hold(&files);
}

/// Checks that the victim's link carried what it had to, and no more than a window again for each interruption.
#[track_caller]
fn assert_carried(victim: Role, carried: u64, bytes: usize, interruptions: u64) {
    println!("{victim}: {carried} bytes carried for {bytes}, {interruptions} interruptions");
    // to the master, from it, or both
    let passes = if victim == Role::Master { 2 } else { 1 };
    // manifests, packets and what they answer: 2 %
    let bytes = bytes as u64 + bytes as u64 / 50;
    let bound = passes * (bytes + interruptions * WINDOW_BYTES);
    assert!(carried < bound, "{victim}: {carried} bytes carried, {bound} are the limit");
}

/// Checks that a node sent no more than a window of all that again.
#[track_caller]
fn assert_sent(node: &Node, bytes: usize) {
    let sent = number(&node.status(), "sync", "bytes_sent");
    let bound = bytes as u64 + bytes as u64 / 50 + WINDOW_BYTES;
    assert!(sent < bound, "{sent} bytes were sent for {bytes}: more than a window again");
}

/// The victim's link breaks after every `packets` packets until `enough` says that it has been so.
fn link_dropped_after(packets: u64, bytes: usize, victim: Role, enough: impl Fn(&Fleet, &Proxy) -> bool) {
    let broker = mosquitto();
    let (mut fleet, proxy) = Fleet::with_proxy(broker.port(), victim);
    let seed = packets.to_string();
    let files = contents([("large", noise(bytes, &seed)), ("empty", Vec::new()), ("one", vec![1])]);
    // a connection that is older than the order has had its packets already
    proxy.drop_after_packets(packets);
    proxy.cut();
    proxy.restore();
    let before = proxy.bytes();
    for (name, bytes) in &files {
        put(&fleet.worker, name, bytes);
    }
    wait_for("the link has broken often enough", || enough(&fleet, &proxy).then_some(()));
    let drops = proxy.drops();
    proxy.drop_after_packets(0);
    fleet.settled();
    fleet.assert_hold(&files);
    assert_carried(victim, proxy.bytes() - before, bytes, drops);
    assert_told_of_broken_link(fleet.of_role(victim), proxy.port(), &["closed the connection"]);
}

fn has_large(node: &Node) -> bool {
    node.names("large") == ["large"]
}

fn all_have_large(fleet: &Fleet) -> bool {
    fleet.nodes().into_iter().all(has_large)
}

/// A fleet for each victim beside each other, since most of it is waiting.
fn of_each(victims: &[Role], test: impl Fn(Role) + Sync) {
    thread::scope(|scope| {
        for victim in victims {
            let test = &test;
            scope.spawn(move || test(*victim));
        }
    });
}

#[test]
fn a_link_that_never_lives_long_enough_harms_nothing() {
    of_each(&Role::ALL, |victim| {
        link_dropped_after(6, 1_000_000, victim, |fleet, proxy| {
            assert!(!all_have_large(fleet), "six packets carry nothing");
            proxy.drops() >= 3
        });
    });
}

#[test]
fn a_link_that_breaks_after_every_40_packets_gets_there_by_itself() {
    of_each(&Role::ALL, |victim| {
        link_dropped_after(40, 5_000_000, victim, |fleet, proxy| all_have_large(fleet) && proxy.drops() >= 2);
    });
}

#[test]
fn a_link_that_breaks_after_every_100_packets_gets_there_by_itself() {
    of_each(&Role::ALL, |victim| {
        link_dropped_after(100, 12_000_000, victim, |fleet, proxy| {
            all_have_large(fleet) && proxy.drops() >= 2
        });
    });
}

#[test]
fn two_agents_of_one_name_both_say_so_without_a_busy_loop_and_one_alone_works() {
    let broker = mosquitto();
    let (mut hub, mut kiosk) = (Node::new("hub", "master"), Node::new("kiosk", "leecher"));
    let mut twins = [Node::new("cam", "worker"), Node::new("cam", "worker")];
    for node in twins.iter().chain([&hub, &kiosk]) {
        connect(node, broker.port());
    }
    befriend(&hub, &twins[0]);
    befriend(&hub, &kiosk);
    twins[1].trust(&hub);
    kiosk.set("node", "subscribe", "[\"\"]");
    hub.start();
    kiosk.start();
    twins.iter_mut().for_each(Node::start);
    for twin in &twins {
        let why = twin.wait_status("it says so", |status| {
            Some(reason(status)).filter(|why| why.contains("another agent uses the client id"))
        });
        assert!(why.contains("larder-home-cam") && why.contains("give each node its own name"), "{why}");
    }
    let connects: Vec<u64> = twins.iter().map(|twin| number(&twin.status(), "link", "connects")).collect();
    println!("connects until both said so: {connects:?}");
    assert!(connects.iter().all(|connects| *connects <= 20), "a busy loop: {connects:?} connections");
    assert_eq!(twins[1].stop(), 0);
    put(&twins[0], "a", b"a");
    let nodes = [&twins[0], &kiosk, &hub];
    settled(&nodes);
    assert_all_hold(&nodes, &contents([("a", b"a".to_vec())]));
}

fn killed_in_mid_transfer(victim: Role) {
    let broker = mosquitto();
    let (mut fleet, proxy) = Fleet::with_proxy(broker.port(), victim);
    let mut files: Contents = contents([("large", noise(16_000_000, "large")), ("empty", Vec::new())]);
    for index in 0..20 {
        files.insert(format!("small/{index}"), noise(500 + index, "small"));
    }
    let before = proxy.bytes();
    proxy.stall_after_bytes(3_000_000);
    for (name, bytes) in &files {
        put(&fleet.worker, name, bytes);
    }
    wait_for("the transfer is held up", || proxy.is_stalled().then_some(()));
    let node = fleet.of_role(victim);
    let is_under_way = match victim {
        Role::Worker => node.status()["peers"][0]["outbox_empty"] == false,
        Role::Master | Role::Leecher => !has_large(node),
    };
    assert!(is_under_way, "it is not in mid-transfer");
    node.signal(Signal::KILL);
    assert_eq!(node.ended(), 128 + 9);
    proxy.unstall();
    node.start();
    fleet.settled();
    fleet.assert_hold(&files);
    let bytes: usize = files.values().map(Vec::len).sum();
    assert_carried(victim, proxy.bytes() - before, bytes, 1);
    // of a sender that was killed the link alone knows what it sent before
    let sender = match victim {
        Role::Worker => None,
        Role::Master => Some(&fleet.worker),
        Role::Leecher => Some(&fleet.master),
    };
    if let Some(sender) = sender {
        assert_sent(sender, bytes);
    }
    for node in fleet.nodes() {
        assert_eq!(number(&node.status(), "sync", "conflicts"), 0, "{}", node.name());
    }
}

#[test]
fn a_worker_killed_in_mid_transfer_goes_on_after_its_restart() {
    killed_in_mid_transfer(Role::Worker);
}

#[test]
fn a_master_killed_in_mid_transfer_goes_on_after_its_restart() {
    killed_in_mid_transfer(Role::Master);
}

#[test]
fn a_leecher_killed_in_mid_transfer_goes_on_after_its_restart() {
    killed_in_mid_transfer(Role::Leecher);
}
