//! Objects: byte streams of any size as trees of blocks.
//!
//! `chunk` cuts a stream into data blocks, `manifest` lists them in nested blocks, `walk` reads a range
//! back and `reach` lists every block of an object. All four take and give blocks and never store or fetch
//! one; each keeps at most a few blocks in memory whatever the object's size.

use crate::id::BlockId;

/// The most bytes in a block, so that a block fits one MQTT message of a hosted broker.
pub const BLOCK_BYTES_MAX: usize = 120 * 1024;
/// The most children in a manifest: 2,048 of at most 42 bytes always fit a block.
pub const MANIFEST_CHILDREN_MAX: usize = 2048;
/// The most levels of manifests: four hold 1.9 EiB of full blocks, five all that 64 bits can count.
pub const DEPTH_MAX: u8 = 5;
/// The root of the empty object: the hash of no bytes. Blocks have at least one byte, so no store keeps this
/// one and nobody fetches it; an object of size 0 is whole as soon as it is bound.
pub const EMPTY_OBJECT: BlockId = BlockId([
    0xaf, 0x13, 0x49, 0xb9, 0xf5, 0xf9, 0xa1, 0xa6, 0xa0, 0x40, 0x4d, 0xea, 0x36, 0xdc, 0xc9, 0x49, 0x9b,
    0xcb, 0x25, 0xc9, 0xad, 0xc1, 0x12, 0xb7, 0xcc, 0x9a, 0x93, 0xca, 0xe4, 0x1f, 0x32, 0x62,
]);

/// The most bytes an object can have below `depth` levels of manifests.
#[must_use]
pub fn object_bytes_max(depth: u8) -> u64 {
    (0..depth).fold(BLOCK_BYTES_MAX as u64, |below, _| below.saturating_mul(MANIFEST_CHILDREN_MAX as u64))
}
