//! Fleets of real nodes on a real broker, and what is asked of them.
//!
//! Duty: joins nodes (peers, broker), waits until they have nothing left to tell each other, and compares
//! what they hold byte for byte. Fails by panic with what each node says of itself.

use crate::broker::{Certificates, Proxy};
use crate::node::{Node, wait_for};
use larder_core::role::Role;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Names and the bytes they stand for.
pub type Contents = BTreeMap<String, Vec<u8>>;

/// Points a node at a broker on 127.0.0.1, without TLS.
pub fn connect(node: &Node, port: u16) {
    node.set("mqtt", "host", "\"127.0.0.1\"");
    node.set("mqtt", "port", &port.to_string());
}

/// Points a node at a broker on localhost, with a client certificate of the node's own name.
pub fn connect_by_tls(node: &Node, port: u16, certificates: &Certificates) {
    let own = certificates.node(node.name());
    let path = |path: &Path| format!("{path:?}");
    node.set("mqtt", "host", "\"localhost\"");
    node.set("mqtt", "port", &port.to_string());
    node.set("mqtt", "ca", &path(&certificates.ca()));
    node.set("mqtt", "certificate", &path(&own.certificate));
    node.set("mqtt", "key", &path(&own.key));
}

/// Has two nodes trust each other.
pub fn befriend(one: &Node, other: &Node) {
    one.trust(other);
    other.trust(one);
}

/// A master, a worker and a leecher that subscribes to nothing, joined and not started.
pub struct Fleet {
    /// Takes in and serves.
    pub master: Node,
    /// Uploads.
    pub worker: Node,
    /// Fetches.
    pub leecher: Node,
}

impl Fleet {
    /// Three nodes that trust each other and know the broker at this port.
    pub fn new(port: u16) -> Self {
        let fleet = Self::without_broker();
        for node in fleet.nodes() {
            connect(node, port);
        }
        fleet
    }

    /// A started fleet in which the leecher takes all, and a proxy is in the victim's link; all receive in windows of
    /// the balanced profile.
    pub fn with_proxy(port: u16, victim: Role) -> (Self, Proxy) {
        let (mut fleet, proxy) = (Self::new(port), Proxy::start(port));
        connect(fleet.of_role(victim), proxy.port());
        fleet.leecher.set("node", "subscribe", "[\"\"]");
        for node in [&fleet.master, &fleet.leecher] {
            node.set("node", "profile", "\"balanced\"");
        }
        fleet.start();
        (fleet, proxy)
    }

    /// Three nodes that trust each other and have no link.
    pub fn without_broker() -> Self {
        let (master, worker) = (Node::new("hub", "master"), Node::new("cam", "worker"));
        let leecher = Node::new("kiosk", "leecher");
        befriend(&master, &worker);
        befriend(&master, &leecher);
        Self { master, worker, leecher }
    }

    /// The one that has this role.
    pub fn of_role(&mut self, role: Role) -> &mut Node {
        match role {
            Role::Master => &mut self.master,
            Role::Worker => &mut self.worker,
            Role::Leecher => &mut self.leecher,
        }
    }

    /// All three.
    pub fn nodes(&self) -> [&Node; 3] {
        [&self.master, &self.worker, &self.leecher]
    }

    /// Starts all three and waits until they know each other.
    #[track_caller]
    pub fn start(&mut self) {
        self.master.start();
        self.worker.start();
        self.leecher.start();
        self.settled();
    }

    /// Waits until nobody has anything left to tell.
    #[track_caller]
    pub fn settled(&self) {
        settled(&[&self.worker, &self.leecher, &self.master]);
    }

    /// [`assert_all_hold`] of all three.
    #[track_caller]
    pub fn assert_hold(&self, expected: &Contents) {
        assert_all_hold(&self.nodes(), expected);
    }
}

/// Waits until each node is up, has a session with everybody it should, and has been acknowledged everything.
///
/// # Panics
/// When that does not come; with what the nodes say.
#[track_caller]
pub fn settled(nodes: &[&Node]) {
    let mut last = String::new();
    let waited = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        wait_for("all is told", || {
            // told one after the other: what comes in may have to be passed on, so all twice in a row
            let mut is_settled = true;
            for _ in 0..2 {
                for node in nodes {
                    let status = node.status();
                    if !is_node_settled(&status) {
                        last = format!("{}: {}", node.name(), brief(&status));
                        is_settled = false;
                    }
                }
            }
            is_settled.then_some(())
        });
    }));
    if waited.is_err() {
        panic!("not settled: {last}");
    }
}

fn is_node_settled(status: &Value) -> bool {
    let peers = status["peers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let is_told = |peer: &Value| peer["session"] == true && peer["outbox_empty"] == true;
    status["link"]["up"] == true && !peers.is_empty() && peers.iter().all(is_told)
}

/// What matters of a status when something hangs.
pub fn brief(status: &Value) -> String {
    format!(
        "link {}, peers {}, sync {}, ingest {}",
        status["link"], status["peers"], status["sync"], status["ingest"]
    )
}

/// A number in a status; `sync.bytes_sent` for `("sync", "bytes_sent")`.
#[track_caller]
pub fn number(status: &Value, section: &str, key: &str) -> u64 {
    status[section][key].as_u64().unwrap_or_else(|| panic!("{section}.{key} is no number in {status}"))
}

/// Stores bytes under a name.
#[track_caller]
pub fn put(node: &Node, name: &str, bytes: &[u8]) {
    node.run_with(["put", "--stdin", name], bytes).expect(0);
}

/// Checks that a node has exactly these names with exactly these bytes, and that its store is whole.
#[track_caller]
pub fn assert_holds(node: &Node, expected: &Contents) {
    let names: BTreeSet<String> = node.names("").into_iter().collect();
    let expected_names: BTreeSet<String> = expected.keys().cloned().collect();
    assert_eq!(names, expected_names, "{}", node.name());
    let folder = tempfile::tempdir().expect("a folder");
    if !expected.is_empty() {
        node.run(["get".as_ref(), "/".as_ref(), "-o".as_ref(), folder.path().as_os_str()]).expect(0);
    }
    for (name, bytes) in expected {
        let got = fs::read(folder.path().join(name));
        assert!(got.is_ok_and(|got| got == *bytes), "{}: {name} has other bytes", node.name());
    }
    node.run(["verify"]).expect(0);
}

/// Objects as a node lists them: name, root, size, time, mode and who wrote it.
#[track_caller]
pub fn listing(node: &Node, prefix: &str) -> Vec<Value> {
    let pages = node.json(["ls", prefix]);
    pages.iter().filter_map(|page| page["objects"].as_array()).flatten().cloned().collect()
}

/// Checks that nodes have exactly these names with exactly these bytes, and say the same of each name.
#[track_caller]
pub fn assert_all_hold(nodes: &[&Node], expected: &Contents) {
    for node in nodes {
        assert_holds(node, expected);
        assert_eq!(listing(node, ""), listing(nodes[0], ""), "{} and {}", node.name(), nodes[0].name());
    }
}

/// Writes files for `put` or a watched folder.
pub fn write_files(folder: &Path, contents: &Contents) {
    for (name, bytes) in contents {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().expect("a file has a folder")).expect("the folder is writable");
        fs::write(path, bytes).expect("the folder is writable");
    }
}

/// Contents from pairs.
pub fn contents<'a>(pairs: impl IntoIterator<Item = (&'a str, Vec<u8>)>) -> Contents {
    pairs.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect()
}
