//! Room: what nothing leads to any more gives its place to what comes, within the limit.

use larder_tests::node::{Node, noise};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;

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

/// The files of the store whose names begin so, by what stays theirs when they are renamed.
fn inodes(node: &Node, prefix: &str) -> BTreeSet<u64> {
    let files = fs::read_dir(node.store()).expect("the store is there").map(|file| file.expect("a file"));
    let named = files.filter(|file| file.file_name().to_string_lossy().starts_with(prefix));
    named.filter_map(|file| Some(file.metadata().ok()?.ino())).collect()
}

#[test]
fn deleted_names_give_their_files_to_what_comes_next_and_status_counts_them() {
    let mut node = Node::new("hub", "master");
    node.set("storage", "limit", "\"64 MB\"");
    node.set("storage", "segment", "\"1 MiB\"");
    node.start();
    let mut spares = BTreeSet::new();
    let mut version = 0;
    // deleted until the limit makes the node clean, then put until a spare is a segment again
    while spares.intersection(&inodes(&node, "segment-")).count() == 0 {
        assert!(version < 40, "no spare came back: {}", node.log());
        let name = format!("name{version}");
        node.run_with(["put", "--stdin", &name], &noise(OBJECT_BYTES, &name)).expect(0);
        spares.append(&mut inodes(&node, "spare-"));
        let store = &node.status()["store"];
        let (count, bytes) = (store["spare_segments"].as_u64(), store["spare_bytes"].as_u64());
        assert!(count <= Some(8) && bytes <= Some(LIMIT_BYTES / 8 + (1 << 20)), "{store}");
        if count > Some(0) {
            let said = node.run(["status"]).expect(0).text();
            assert!(said.contains(" spare"), "{said}");
        }
        if version > 0 {
            node.run(["rm", &format!("name{}", version - 1)]).expect(0);
        }
        version += 1;
    }
    let name = format!("name{}", version - 1);
    assert!(node.get(&name).as_ref() == Some(&noise(OBJECT_BYTES, &name)), "{name} is not what was put");
    node.run(["verify"]).expect(0);
    node.kill();
    node.start();
    assert!(node.get(&name).as_ref() == Some(&noise(OBJECT_BYTES, &name)), "{name} is not what was put");
    assert_eq!(node.stop(), 0);
}
