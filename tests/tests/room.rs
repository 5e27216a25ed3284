//! Room: what nothing leads to any more gives its place to what comes, within the limit.

use larder_tests::node::{Node, noise};

const LIMIT_BYTES: u64 = 64_000_000;
const OBJECT_BYTES: usize = 6_000_000;

#[test]
fn twice_the_limit_passes_through_three_names_and_the_last_versions_are_whole() {
    let mut node = Node::new("hub", "master");
    node.set("storage", "limit", "\"64 MB\"");
    node.set("storage", "segment", "\"1 MiB\"");
    node.start();
    let mut last = [const { Vec::new() }; 3];
    for version in 0..22_usize {
        let bytes = noise(OBJECT_BYTES, &format!("version {version}"));
        let name = format!("name{}", version % 3);
        node.run_with(["put", "--stdin", &name], &bytes).expect(0);
        last[version % 3] = bytes;
        let used = node.status()["store"]["used_bytes"].as_u64().expect("a number");
        assert!(used <= LIMIT_BYTES, "{used} bytes are used after version {version}");
    }
    for (index, bytes) in last.iter().enumerate() {
        assert!(node.get(&format!("name{index}")).as_ref() == Some(bytes), "name{index} is not what was put");
    }
    node.run(["verify"]).expect(0);
    assert!(node.log().contains("cleaning gave"), "{}", node.log());
    assert_eq!(node.stop(), 0);
}
