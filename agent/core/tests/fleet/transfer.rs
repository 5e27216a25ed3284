//! Objects reach those who want them, whole, once, and are acknowledged when they are durable.

use crate::sim::World;
use crate::sim::random::Random;

/// Bytes that no two calls share.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    Random::new(seed).bytes(length)
}

#[test]
fn a_small_object_reaches_the_master() {
    let (mut world, master, worker) = World::pair(1);
    world.put_now(worker, "a/b", noise(1, 5_000));
    world.run_until(10_000, "the master has it", |world| {
        world.machines[master].engine.table() == world.machines[worker].engine.table()
    });
    let object = world.get(master, larder_core::request::Target::Name("a/b".parse().unwrap()));
    assert_eq!(object, Some(noise(1, 5_000)));
    world.run_ms(5_000);
    let status = world.status(worker);
    assert!(status.peers[0].outbox_empty && status.sync.objects_acknowledged == 1, "{status:?}");
}
