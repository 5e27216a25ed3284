//! What a node makes of a peer that breaks the rules: counted, said in plain words, nothing stored, and
//! everything else goes on. The peer is made by hand from the core's own types.

#![expect(clippy::wildcard_enum_match_arm, reason = "a test waits for one message and passes the others by")]

use bytes::Bytes;
use larder::mqtt::LinkEvent;
use larder_core::id::{BlockId, NodeName};
use larder_core::limits::{COMMAND_BYTES_MAX, COMMANDS_OPEN_MAX, MESSAGE_BYTES_MAX};
use larder_core::message::Channel;
use larder_core::name::Name;
use larder_core::object::manifest::{Child, Manifest};
use larder_core::request::{Failure, FailureKind, Request, Response, Target};
use larder_core::role::Role;
use larder_core::seal::{Between, seal};
use larder_core::sync::wire::{Announce, Hello, Outcome, Refusal, SyncMessage, Wanted};
use larder_tests::broker::{Config, Mosquitto};
use larder_tests::fleet::{Contents, Fleet, connect, contents, number, put};
use larder_tests::impostor::{FLEET, Impostor};
use larder_tests::node::{Node, noise, wait_for};
use std::fs;
use std::process::Command;
use std::time::{Duration, SystemTime};

/// Drops so far, and the last reason.
fn dropped(node: &Node) -> (u64, String) {
    let status = node.status();
    let problem = status["sync"]["last_problem"].as_str().unwrap_or_default().to_owned();
    (number(&status, "sync", "messages_dropped"), problem)
}

/// Does something that has to be counted once, with a reason that names the sender and has these words.
#[track_caller]
fn assert_counted(node: &Node, from: &str, words: &str, act: impl FnOnce()) {
    let (before, _) = dropped(node);
    act();
    node.wait_status(&format!("a drop that says {words:?}"), |status| {
        let dropped = number(status, "sync", "messages_dropped");
        assert!(dropped <= before + 1, "counted {} times: {}", dropped - before, status["sync"]);
        (dropped == before + 1).then_some(())
    });
    let (_, problem) = dropped(node);
    assert!(
        problem.starts_with(&format!("{from}: ")) && problem.contains(words),
        "{problem:?}, not {words:?}"
    );
    let shown = node.run(["status"]).expect(0).text();
    assert!(shown.contains(words), "status shows it: {shown}");
}

/// [`assert_counted`] of many, each with one of these reasons in the log.
#[track_caller]
fn assert_all_counted(node: &Node, from: &str, words: &[&str], act: impl FnOnce() -> u64) {
    let (before, _) = dropped(node);
    let sent = act();
    let (name, mut now) = (node.name(), 0);
    let all = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        node.wait_status("all are counted", |status| {
            now = number(status, "sync", "messages_dropped") - before;
            (now >= sent).then_some(())
        });
    }));
    assert!(all.is_ok() && now == sent, "{name}: {now} of {sent} were counted: {}", node.log());
    for words in words {
        wait_for(&format!("the log of {name} says {words:?}"), || {
            let is_said = |line: &str| {
                line.contains(&format!("a message of {from} was dropped: ")) && line.contains(words)
            };
            node.log().lines().any(is_said).then_some(())
        });
    }
}

/// Waits until a node has counted so many blocks for which it did not ask.
fn wait_unasked(node: &Node, count: u64) {
    node.wait_status(&format!("{count} blocks are counted"), |status| {
        (number(status, "sync", "blocks_unasked") == count).then_some(())
    });
}

struct World {
    broker: Mosquitto,
    fleet: Fleet,
}

impl World {
    /// A master, a worker and a leecher that take all, not started.
    fn new() -> Self {
        let broker = Mosquitto::start(Config::default());
        let fleet = Fleet::new(broker.port());
        for node in [&fleet.worker, &fleet.leecher] {
            node.set("node", "subscribe", "[\"\"]");
        }
        Self { broker, fleet }
    }

    fn hub(&self) -> &Node {
        &self.fleet.master
    }

    /// Those that believe nobody but the hub.
    fn others(&self) -> [&Node; 2] {
        [&self.fleet.worker, &self.fleet.leecher]
    }

    /// A master that has gone mad, beside itself.
    fn double(&self) -> Impostor {
        Impostor::double_of(self.hub(), Role::Master, self.broker.port())
    }

    /// Everything else goes on: one link for all that time, honest work is done, and nothing else is there, before
    /// and after all have started again.
    fn assert_goes_on(&mut self) {
        self.assert_goes_on_beside(&Contents::new());
    }

    /// The same, when these have been taken too.
    fn assert_goes_on_beside(&mut self, taken: &Contents) {
        let mut all = contents([("honest", noise(300_000, "honest"))]);
        put(&self.fleet.worker, "honest", &all["honest"]);
        all.extend(taken.clone());
        self.fleet.settled();
        for node in self.fleet.nodes() {
            let status = node.status();
            assert_eq!(number(&status, "link", "connects"), 1, "{}: {}", node.name(), status["link"]);
            assert_eq!(number(&status, "power", "dropped"), 0, "{}", node.name());
        }
        for role in Role::ALL {
            self.fleet.of_role(role).restart();
        }
        self.fleet.settled();
        self.fleet.assert_hold(&all);
    }
}

/// An announcement of a name that no honest node could say.
fn announcing(imp: &Impostor, name: &[u8]) -> Vec<u8> {
    let good = Name::parse("aa/x").expect("a plain name");
    let entries = vec![(good, imp.binding(BlockId::of(b"x"), 0, 1))];
    let body = SyncMessage::Announce(Announce { group: 9, request: None, entries, log: 0 }).encode();
    let at = body.windows(5).position(|bytes| bytes == b"\x04aa/x").expect("the name is in the message");
    // a length in postcard is seven bits a byte, the least ones first
    let length = match u8::try_from(name.len()) {
        Ok(short @ ..0x80) => vec![short],
        _ => vec![name.len() as u8 | 0x80, (name.len() >> 7) as u8],
    };
    [&body[..at], &length, name, &body[at + 5..]].concat()
}

#[test]
fn a_name_of_every_refused_kind_is_refused_to_announcements_and_commands() {
    let mut world = World::new();
    let mut boss = Impostor::new("boss", Role::Master, world.broker.port());
    let mut imp = Impostor::new("imp", Role::Worker, world.broker.port());
    let mut van = Node::new("van", "worker");
    connect(&van, world.broker.port());
    van.append(&boss.stanza());
    van.start();
    world.hub().append(&imp.stanza());
    world.fleet.start();
    imp.greet("hub");
    boss.greet("van");
    let long = ["p".repeat(200), "q".repeat(200)].join("/").repeat(3);
    let refused: [&[u8]; 13] = [
        b"",
        b"..",
        b"../x",
        b"a/../../x",
        b"a/./x",
        b"/etc/passwd",
        b"a//x",
        b"a/",
        b"a\0x",
        b"a\nx",
        b"a\x1b[2Jx",
        b"a\xffx",
        long.as_bytes(),
    ];
    let (announce, command) = (imp.topic("hub", "c"), boss.topic("van", "cmd"));
    let expires_ms = now_ms() + 600_000;
    for (counter, name) in (1..).zip(refused) {
        let sealed = imp.sealed("hub", &announcing(&imp, name));
        assert_counted(world.hub(), "imp", "does not parse", || imp.publish(&announce, sealed));
        let Ok(name) = std::str::from_utf8(name) else { continue };
        let body = serde_json::json!({"do": "remove", "name": name}).to_string();
        let sealed = boss.sealed_command("van", counter, expires_ms, body);
        boss.publish(&command, sealed);
        let answer = boss.hears_answer(counter);
        let is_refused = |failure: &Failure| {
            failure.kind == FailureKind::Invalid && failure.message.starts_with("no such request: ")
        };
        assert!(matches!(&answer, Response::Error(failure) if is_refused(failure)), "{name:?}: {answer:?}");
    }
    let mut double = world.double();
    for node in world.others() {
        assert_all_counted(node, "hub", &["does not parse"], || {
            for name in refused {
                let sealed = double.sealed(node.name(), &announcing(&double, name));
                double.publish(&double.topic(node.name(), "c"), sealed);
            }
            refused.len() as u64
        });
    }
    // the same message with the longest of good names is understood
    let sealed = imp.sealed("hub", &announcing(&imp, &long.as_bytes()[..1024]));
    imp.publish(&announce, sealed);
    imp.hears_want(9);
    world.assert_goes_on();
}

/// What a peer can send that no node takes for a message of sync, and what is said of it.
fn no_messages(from: &Impostor, to: &str, ghost: &Impostor) -> Vec<(&'static str, Vec<u8>)> {
    let body = anything();
    let good = from.sealed(to, &body);
    let mut unsigned = good.clone();
    unsigned[1..65].fill(0);
    let mut altered = good.clone();
    *altered.last_mut().expect("it has bytes") ^= 1;
    let mut newer = good.clone();
    newer[0] = 4;
    let by_another_key = {
        let to = to.parse().expect("a plain name");
        let between = Between { fleet: FLEET, from: &from.name, to: &to, channel: Channel::Sync };
        seal(ghost.key.signing(), between, &body)
    };
    let for_another_node = from.sealed("somebody-else", &body);
    let trailing = from.sealed(to, &[&body[..], b"more"].concat());
    let garbage = from.sealed(to, &noise(5_000, "garbage"));
    // as large as a packet may be is larger than a message may be
    let huge = noise(128 * 1024 - 18 - from.topic(to, "c").len(), "huge");
    assert!(huge.len() > MESSAGE_BYTES_MAX);
    vec![
        ("too short to be signed", b"hello".to_vec()),
        ("too short to be signed", Vec::new()),
        ("seal version 4", newer),
        ("signature", unsigned),
        ("signature", altered),
        ("signature", by_another_key),
        ("signature", for_another_node),
        ("does not parse", trailing),
        ("does not parse", garbage),
        ("are the limit", huge),
    ]
}

/// A message that would be answered.
fn anything() -> Vec<u8> {
    SyncMessage::Fetch { request: 1, target: Target::Cid(BlockId::of(b"x")) }.encode()
}

#[test]
fn what_is_no_message_of_a_known_peer_is_counted_and_dropped() {
    let mut world = World::new();
    let port = world.broker.port();
    let mut imp = Impostor::new("imp", Role::Worker, port);
    let mut ghost = Impostor::new("ghost", Role::Worker, port);
    world.hub().append(&imp.stanza());
    world.fleet.start();
    imp.greet("hub");
    let topic = imp.topic("hub", "c");
    for (words, payload) in no_messages(&imp, "hub", &ghost) {
        assert_counted(world.hub(), "imp", words, || imp.publish(&topic, payload));
    }
    let topic = imp.topic("hub", "b");
    assert_counted(world.hub(), "imp", "does not parse", || imp.publish(&topic, b"no blocks".to_vec()));
    let mut double = world.double();
    for node in world.others() {
        let mut messages = no_messages(&double, node.name(), &ghost);
        let words: Vec<&str> = messages.iter().map(|(words, _)| *words).collect();
        assert_all_counted(node, "hub", &words, || {
            let topic = double.topic(node.name(), "c");
            let sent = messages.len() as u64;
            messages.drain(..).for_each(|(_, payload)| double.publish(&topic, payload));
            double.publish(&double.topic(node.name(), "b"), b"no blocks".to_vec());
            sent + 1
        });
    }
    for node in world.fleet.nodes() {
        let (topic, sealed) = (ghost.topic(node.name(), "c"), ghost.sealed(node.name(), &anything()));
        assert_counted(node, "ghost", "no [[peer]] of this name", || ghost.publish(&topic, sealed));
        // blocks are not signed: one of nobody is one that nobody asked for
        ghost.send_blocks(node.name(), 1, vec![Bytes::from_static(b"x")]);
        wait_unasked(node, 1);
    }
    world.assert_goes_on();
}

#[test]
fn a_packet_beyond_what_an_agent_takes_reaches_none_and_harms_none() {
    let mut world = World::new();
    world.fleet.start();
    let file = world.hub().path("large");
    fs::write(&file, noise(200 * 1024, "large")).expect("the folder is writable");
    let inboxes = ["hub/sync/cam/c", "hub/sync/cam/b", "hub/cmd/cam", "cam/sync/hub/c", "cam/sync/hub/b"];
    for inbox in inboxes.into_iter().chain(["cam/cmd/hub", "kiosk/sync/hub/c", "kiosk/cmd/hub"]) {
        let (port, topic) = (world.broker.port().to_string(), format!("larder/1/{FLEET}/{inbox}"));
        let mut command = Command::new("mosquitto_pub");
        command.args(["-V", "mqttv5", "-h", "127.0.0.1", "-p", &port, "-q", "1", "-t", &topic]);
        let done = command.arg("-f").arg(&file).status();
        assert!(done.expect("these tests need mosquitto_pub: apt-get install mosquitto-clients").success());
    }
    for node in world.fleet.nodes() {
        assert_eq!(dropped(node).0, 0, "the broker keeps to the size that the agent announced");
    }
    world.assert_goes_on();
}

/// Has a node ask for a block and gives it another: counted and not stored. Groups of this number and the next are used.
fn send_other_blocks(imp: &mut Impostor, node: &Node, group: u32) -> Bytes {
    let before = number(&node.status(), "store", "blocks");
    let unasked = vec![Bytes::from_static(b"nobody asked"), Bytes::from_static(b"for these")];
    imp.send_blocks(node.name(), group + 1, unasked);
    wait_unasked(node, 2);
    let wanted = Bytes::from(noise(1000, "wanted"));
    imp.announce(node.name(), group, "taken", imp.binding(BlockId::of(&wanted), 0, 1000));
    let want = imp.hears_want(group);
    assert_eq!(want.blocks, Wanted::Roots(vec![0]));
    imp.send_blocks(node.name(), group, vec![Bytes::from(noise(1000, "another"))]);
    wait_unasked(node, 3);
    assert_eq!(number(&node.status(), "store", "blocks"), before, "nothing was stored");
    assert_eq!(node.names(""), [""; 0]);
    wanted
}

/// Above the numbers of groups that a node itself gets to.
const OF_DOUBLE: u32 = 1 << 30;

#[test]
fn blocks_that_were_not_asked_for_are_counted_and_not_stored() {
    let mut world = World::new();
    let mut imp = Impostor::new("imp", Role::Worker, world.broker.port());
    world.hub().append(&imp.stanza());
    world.fleet.start();
    imp.greet("hub");
    let mut double = world.double();
    for node in world.others() {
        // and the right one never comes
        send_other_blocks(&mut double, node, OF_DOUBLE);
    }
    let wanted = send_other_blocks(&mut imp, world.hub(), 1);
    // the double's announcements may be forgotten for what the true master says, and late blocks are no lie
    let problem = dropped(world.hub()).1;
    assert!(
        problem.starts_with("imp: block ") && problem.ends_with("was not asked for, or came twice"),
        "{problem}"
    );
    // the right one comes twice
    imp.send_blocks("hub", 1, vec![wanted.clone(), wanted.clone()]);
    assert_eq!(imp.hears_outcome(1), Outcome::Stored);
    wait_unasked(world.hub(), 4);
    assert!(world.hub().get("taken").is_some_and(|got| got == wanted));
    world.assert_goes_on_beside(&contents([("taken", wanted.to_vec())]));
}

/// Announces content that is not what its binding says, in every way; groups from this number on are used.
fn tell_lies(imp: &mut Impostor, node: &Node, groups: u32) {
    let to = node.name();
    let block = Bytes::from(noise(1000, "block"));
    let child = Child { id: BlockId::of(&block), bytes: 1000 };
    let manifest = Manifest::new(1, vec![child, child]).expect("it is an honest one");
    let two_levels = Manifest::new(2, vec![Child { id: BlockId::of(&manifest.encode()), bytes: 2000 }]);
    let liar = |first: u64| {
        let lies = vec![Child { bytes: first, ..child }, Child { bytes: 2000 - first, ..child }];
        Manifest::new(1, lies).expect("no parser can see it lie").encode()
    };
    let lies: [(&str, Bytes, u8, u64); 7] = [
        ("a manifest that lies about a block that is still to come", liar(700), 1, 2000),
        ("a manifest that lies about a block that is here", liar(800), 1, 2000),
        ("more bytes than the block has", block.clone(), 0, 1001),
        ("fewer bytes than the block has", block.clone(), 0, 999),
        ("a block that is no manifest", block.clone(), 1, 200_000),
        ("a manifest of other sizes", manifest.encode(), 1, 200_000),
        (
            "a manifest of another level",
            two_levels.map_or_else(|_| manifest.encode(), |two| two.encode()),
            1,
            2000,
        ),
    ];
    for (group, (lie, root, depth, size)) in (groups..).zip(lies) {
        imp.announce(to, group, "lie", imp.binding(BlockId::of(&root), depth, size));
        let outcome = loop {
            let answer = imp.hears("an answer", |message| match message {
                SyncMessage::Want(want) if want.group == group => Some(Err(want.blocks)),
                SyncMessage::Ack { group: of, outcomes, .. } if of == group => {
                    Some(Ok(outcomes[0].1.clone()))
                }
                _ => None,
            });
            match answer {
                Ok(outcome) => break outcome,
                Err(Wanted::Roots(_)) => imp.send_blocks(to, group, vec![root.clone()]),
                Err(Wanted::Children { .. }) => imp.send_blocks(to, group, vec![block.clone()]),
            }
        };
        assert_eq!(outcome, Outcome::Refused(Refusal::Content), "{to}: {lie}");
        let said = format!("lie of {} is refused: its content does not match its binding", imp.name);
        node.wait_status(&said, |status| {
            status["sync"]["last_problem"]
                .as_str()
                .is_some_and(|problem| problem.contains(&said))
                .then_some(())
        });
        assert_eq!(node.names(""), [""; 0], "{to}: {lie}");
    }
    // what no honest node writes is not even looked at
    let from = imp.name.to_string();
    let impossible = imp.binding(BlockId::of(&block), 0, 1 << 40);
    assert_counted(node, &from, "which can not be", || imp.announce(to, groups + 20, "lie", impossible));
    let mut foreign = imp.binding(BlockId::of(&block), 0, 1000);
    foreign.origin = "somebody-else".parse().expect("a plain name");
    assert_counted(node, &from, "its version does not", || imp.announce(to, groups + 21, "lie", foreign));
}

#[test]
fn content_that_is_not_what_its_binding_says_is_refused() {
    let mut world = World::new();
    let mut imp = Impostor::new("imp", Role::Worker, world.broker.port());
    world.hub().append(&imp.stanza());
    world.fleet.start();
    imp.greet("hub");
    tell_lies(&mut imp, world.hub(), 1);
    let mut double = world.double();
    for node in world.others() {
        tell_lies(&mut double, node, OF_DOUBLE);
    }
    world.assert_goes_on();
}

#[test]
fn what_a_role_may_not_send_is_counted_and_refused() {
    let mut world = World::new();
    let port = world.broker.port();
    let mut thief = Impostor::new("thief", Role::Leecher, port);
    let mut imp = Impostor::new("imp", Role::Worker, port);
    world.hub().append(&thief.stanza());
    world.hub().append(&imp.stanza());
    world.fleet.start();
    thief.greet("hub");
    let binding = thief.binding(BlockId::of(b"x"), 0, 1);
    assert_counted(world.hub(), "thief", "a leecher may not announce to a master", || {
        thief.announce("hub", 1, "planted", binding);
    });
    assert_eq!(thief.hears_outcome(1), Outcome::Refused(Refusal::Role));
    let hello = Hello {
        epoch: 2,
        session: 1,
        store: 1,
        role: Role::Master,
        subscriptions: vec![],
        answers: None,
        starts: Vec::new(),
    };
    let promoted = SyncMessage::Hello(hello.clone());
    assert_counted(
        world.hub(),
        "thief",
        "it says it is a master; here it is configured as a leecher",
        || {
            thief.say("hub", &promoted);
        },
    );
    // nobody can even be configured for what his role may not do
    let refused = Node::new("other", "worker");
    refused.append(&imp.stanza());
    let said = refused.run(["ls"]).expect(2);
    assert!(said.stderr.contains("has no business with a worker"), "{}", said.stderr);
    let expires_ms = now_ms() + 30_000;
    let refuses_command = |from: &mut Impostor, to: &Node, why: &str| {
        let name = from.name.to_string();
        let topic = from.topic(to.name(), "cmd");
        let command = from.command(to.name(), 1, expires_ms, &Request::Status);
        assert_counted(to, &name, why, || from.publish(&topic, command));
    };
    refuses_command(&mut imp, world.hub(), "a worker may not command a master");
    refuses_command(&mut thief, world.hub(), "a leecher may not command a master");
    let mut double = world.double();
    let target = Target::Name(Name::parse("its own").expect("a name"));
    let fetch = SyncMessage::Fetch { request: 1, target };
    let demoted = SyncMessage::Hello(Hello { role: Role::Worker, ..hello });
    for (node, role) in world.others().into_iter().zip(["worker", "leecher"]) {
        for from in [&mut imp, &mut thief] {
            let (name, binding) = (from.name.to_string(), from.binding(BlockId::of(b"x"), 0, 1));
            assert_counted(node, &name, "no [[peer]] of this name", || {
                from.announce(node.name(), 1, "planted", binding);
            });
            refuses_command(from, node, "no [[peer]] of this name");
        }
        assert_counted(node, "hub", &format!("a master may not fetch from a {role}"), || {
            double.say(node.name(), &fetch);
        });
        assert_counted(node, "hub", "it says it is a worker; here it is configured as a master", || {
            double.say(node.name(), &demoted);
        });
    }
    world.assert_goes_on();
}

/// A node of this role with one peer more than it has sessions for, all the peers being one impostor; `goes` is the
/// one whose session ends.
fn one_session_more_than_the_role_has(role: Role, of_peers: Role, goes: &str) {
    let broker = Mosquitto::start(Config::default());
    let mut node = Node::new("node", role.as_str());
    connect(&node, broker.port());
    let everybody = format!("larder/1/{FLEET}/+/sync/node/c");
    let mut imp = Impostor::hearing("imp", of_peers, broker.port(), &everybody);
    let sessions_max = role.defaults().sessions_max;
    let names: Vec<NodeName> =
        (0..=sessions_max).map(|number| format!("p{number:03}").parse().expect("a plain name")).collect();
    let mut stanzas = String::new();
    for name in &names {
        imp.name = name.clone();
        stanzas += &imp.stanza();
    }
    node.append(&stanzas);
    node.start();
    for name in &names[..names.len() - 1] {
        imp.name = name.clone();
        imp.greet("node");
    }
    let has_session = |node: &Node| -> Vec<String> {
        let status = node.status();
        let peers = status["peers"].as_array().expect("a list").iter();
        let peers = peers.filter(|peer| peer["session"] == true);
        peers.map(|peer| peer["node"].as_str().expect("a name").to_owned()).collect()
    };
    assert_eq!(has_session(&node).len(), usize::from(sessions_max));
    imp.name = names[names.len() - 1].clone();
    imp.say_hello("node");
    let to_it = format!("larder/1/{FLEET}/{goes}/sync/node/c");
    imp.until("word that there is no session for now", |event| {
        let LinkEvent::Message { topic, payload, .. } = event else { return None };
        let message = SyncMessage::decode(payload[0], &payload[65..]).expect("the node speaks sync");
        (*topic == to_it && message == SyncMessage::Later).then_some(())
    });
    imp.hears("a hello", |message| matches!(message, SyncMessage::Hello(_)).then_some(()));
    let now = has_session(&node);
    assert_eq!(now.len(), usize::from(sessions_max));
    assert!(!now.contains(&goes.to_owned()) && now.contains(&imp.name.to_string()), "{now:?}");
}

#[test]
fn a_master_past_its_sessions_ends_the_oldest_idle_one_and_says_so() {
    one_session_more_than_the_role_has(Role::Master, Role::Worker, "p000");
}

#[test]
fn a_leecher_past_its_sessions_ends_the_oldest_idle_one_but_its_own_masters_and_says_so() {
    one_session_more_than_the_role_has(Role::Leecher, Role::Master, "p001");
}

#[test]
fn more_commands_than_are_answered_at_once_are_refused() {
    let broker = Mosquitto::start(Config::default());
    let mut boss = Impostor::new("boss", Role::Master, broker.port());
    let mut cam = Node::new("cam", "worker");
    connect(&cam, broker.port());
    cam.append(&boss.stanza());
    cam.start();
    cam.wait_status("the link is up", |status| (status["link"]["up"] == true).then_some(()));
    boss.greet("cam");
    let (topic, expires_ms) = (boss.topic("cam", "cmd"), now_ms() + 60_000);
    // the boss never answers the fetches it has them make
    let open = u64::try_from(COMMANDS_OPEN_MAX).expect("it is small");
    for counter in 1..=open + 1 {
        let name = Name::parse(&format!("none/{counter}")).expect("a plain name");
        let fetch = Request::Fetch { target: Target::Name(name) };
        let command = boss.command("cam", counter, expires_ms, &fetch);
        boss.publish(&topic, command);
    }
    let refused = boss.hears_answer(open + 1);
    assert!(
        matches!(&refused, Response::Error(failure) if failure.message.contains("not answered yet")),
        "{refused:?}"
    );
    put(&cam, "a", b"its own user is served");
    assert!(dropped(&cam).1.contains("commands are not answered yet"));
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("the clock is set");
    i64::try_from(since.as_millis()).expect("the clock is not in the far future")
}

#[test]
fn a_command_is_obeyed_once_in_time_and_unaltered() {
    let broker = Mosquitto::start(Config::default());
    let mut boss = Impostor::new("boss", Role::Master, broker.port());
    let mut cam = Node::new("cam", "worker");
    connect(&cam, broker.port());
    cam.append(&boss.stanza());
    cam.start();
    put(&cam, "a", b"a");
    cam.wait_status("the link is up", |status| (status["link"]["up"] == true).then_some(()));
    let topic = boss.topic("cam", "cmd");
    let (now, hour_ms) = (now_ms(), Duration::from_secs(3600).as_millis() as i64);
    let remove = Request::Remove { name: Name::parse("a").expect("a plain name") };

    let late = boss.command("cam", 1, now - hour_ms, &remove);
    assert_counted(&cam, "boss", "has expired; check both clocks", || boss.publish(&topic, late));
    assert!(matches!(boss.hears_answer(1), Response::Error(failure) if failure.message.contains("expired")));
    let far = boss.command("cam", 1, now + 48 * hour_ms, &remove);
    assert_counted(&cam, "boss", "has expired", || boss.publish(&topic, far));
    let good = boss.command("cam", 2, now + hour_ms, &remove);
    let altered =
        String::from_utf8(good.clone()).expect("JSON is text").replace("\"counter\":2", "\"counter\":3");
    assert_counted(&cam, "boss", "signature", || boss.publish(&topic, altered));
    assert_counted(&cam, "boss", "does not parse", || boss.publish(&topic, b"{}".to_vec()));
    let large = noise(COMMAND_BYTES_MAX + 1, "large");
    assert_counted(&cam, "boss", "are the limit", || boss.publish(&topic, large));
    let elsewhere = boss.command("hub", 2, now + hour_ms, &remove);
    assert_counted(&cam, "boss", "other nodes than its topic", || boss.publish(&topic, elsewhere));
    assert_eq!(cam.names(""), ["a"], "none of these was obeyed");

    boss.publish(&topic, good.clone());
    assert!(matches!(boss.hears_answer(2), Response::Removed { .. }));
    assert_eq!(cam.names(""), [""; 0]);
    put(&cam, "a", b"again");
    assert_counted(&cam, "boss", "was obeyed already", || boss.publish(&topic, good.clone()));
    cam.kill();
    cam.start();
    cam.wait_status("the link is up", |status| (status["link"]["up"] == true).then_some(()));
    assert_counted(&cam, "boss", "was obeyed already", || boss.publish(&topic, good));
    assert_eq!(cam.names(""), ["a"]);

    // with data it is answered, and not done
    let get =
        Request::Get { target: Target::Name(Name::parse("a").expect("plain")), offset: 0, length: None };
    let command = boss.command("cam", 4, now + hour_ms, &get);
    boss.publish(&topic, command);
    assert!(
        matches!(boss.hears_answer(4), Response::Error(failure) if failure.message.contains("locally only"))
    );
    let status = boss.command("cam", 5, now + hour_ms, &Request::Status);
    boss.publish(&topic, status);
    assert!(matches!(boss.hears_answer(5), Response::Status(status) if status.node == "cam"));
}
