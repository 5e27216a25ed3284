//! The agent as a service: systemd's protocol, signals, its socket and the clients that come in by it.

use larder_tests::node::Node;

#[test]
fn a_started_agent_answers_and_stops_with_zero() {
    let mut node = Node::new("solo", "worker");
    node.start();
    assert_eq!(node.status()["node"], "solo");
    std::fs::write(node.path("a.txt"), b"hello").unwrap();
    node.run(["put", "a.txt"]).expect(0);
    assert_eq!(node.get("a.txt").unwrap(), b"hello");
    node.kill();
    node.start();
    assert_eq!(node.names(""), ["a.txt"]);
    assert_eq!(node.stop(), 0);
    assert!(!node.socket().exists());
}
