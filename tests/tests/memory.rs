//! Memory of a worker in the low-power profile, as the kernel counts it: it depends on neither the size of a
//! file nor the number of files.

#![expect(clippy::unwrap_used, reason = "a test that finds anything else has failed")]

use larder_tests::memory::{
    MIB, PEAK_BYTES_MAX, SMALL_BYTES, SMALL_FILES, low_power_worker, small_name, write_large, write_small,
};
use larder_tests::node::{Node, wait_for};
use std::fs;

/// The hash of an object as `get` writes it.
fn got(node: &Node, name: &str) -> blake3::Hash {
    let mut get =
        node.command(["get", name, "-o", "-"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut hash = blake3::Hasher::new();
    std::io::copy(&mut get.stdout.take().unwrap(), &mut hash).unwrap();
    assert!(get.wait().unwrap().success());
    hash.finalize()
}

fn report(node: &Node, what: &str) {
    let (peak, status) = (node.peak_bytes(), node.status());
    let now = status["process"]["resident_bytes"].as_u64().unwrap_or(0);
    println!("{what}: peak {:.1} MiB, now {:.1} MiB", peak as f64 / MIB as f64, now as f64 / MIB as f64);
    assert!(peak < PEAK_BYTES_MAX, "{what}: {peak} bytes");
    assert_eq!(status["power"]["dropped"], 0);
}

#[test]
fn a_worker_takes_in_two_gib_by_put_and_by_a_watched_folder_within_48_mib() {
    let mut node = low_power_worker();
    fs::create_dir(node.path("in")).unwrap();
    node.append("[[watch]]\npath = \"in\"\nprefix = \"in/\"\nsettle_s = 0\n");
    let hash = write_large(&node, "large");
    node.start();
    report(&node, "started");
    node.run(["put", "large"]).expect(0);
    report(&node, "after a put of 2 GiB");
    fs::rename(node.path("large"), node.path("in/large")).unwrap();
    wait_for("the watched folder's file is taken", || {
        node.names("").contains(&"in/large".to_owned()).then_some(())
    });
    report(&node, "after 2 GiB more from a watched folder, all of it there already");
    fs::remove_file(node.path("in/large")).unwrap();
    assert_eq!(got(&node, "in/large"), hash);
    report(&node, "after reading 2 GiB");
    node.run(["verify"]).expect(0);
    report(&node, "after verifying 2 GiB");
    node.kill();
    node.start();
    report(&node, "started again after a kill");
    assert_eq!(node.stop(), 0);
}

#[test]
fn a_worker_takes_in_a_hundred_thousand_small_files_within_48_mib_and_all_are_right() {
    let mut node = low_power_worker();
    let noise = write_small(&node);
    node.start();
    let put = node.run(["put", "many"]).expect(0).text();
    assert!(put.contains("stored 100000 objects"), "{put}");
    report(&node, "after 100,000 files of 100 bytes");
    let names = node.names("");
    assert_eq!(names.len(), SMALL_FILES);
    report(&node, "after listing them");
    let mut stream = node.connect();
    for (number, (index, content)) in (1..).zip(noise.chunks(SMALL_BYTES).enumerate().step_by(7)) {
        let name = small_name(index);
        assert!(larder_tests::wire::get(&mut stream, number, &name).unwrap().unwrap() == content, "{name}");
    }
    node.run(["verify"]).expect(0);
    report(&node, "after reading some and verifying all");
    node.kill();
    node.start();
    report(&node, "started again after a kill");
    assert_eq!(node.names("").len(), SMALL_FILES);
    assert_eq!(node.stop(), 0);
}
