//! The simulator finds bugs.

extern crate larder_planted as larder_store;

#[allow(dead_code, unreachable_pub, reason = "the simulator is larder-tests' own; a part of it is used here")]
#[path = "../../src/sim/mod.rs"]
mod sim;

#[test]
fn storm() {
    let n: u64 = std::env::var("IMAGES").map_or(3000, |n| n.parse().unwrap());
    let s: u64 = std::env::var("SEED").map_or(1, |n| n.parse().unwrap());
    let start = std::time::Instant::now();
    if n == 0 {
        println!("{:?}", sim::store::storm::live(s, true));
        return;
    }
    let (told, broken) = sim::store::storm::storms(s, n, 2);
    println!("{told:?} {:?}", start.elapsed());
    for b in &broken {
        println!("{b}");
    }
}
