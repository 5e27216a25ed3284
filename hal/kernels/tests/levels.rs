//! Every level this machine has gives what the oracle gives.

use larder_kernels::bloom::{Block, Probe};
use larder_kernels::{Hash, Level, hash_many};
use proptest::prelude::*;

fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn assert_hashes(level: Level, messages: &[&[u8]]) {
    let mut hashes = vec![Hash::default(); messages.len()];
    hash_many(level, messages, &mut hashes);
    for (number, (message, hash)) in messages.iter().zip(&hashes).enumerate() {
        let expected = blake3::hash(message);
        assert_eq!(hash, expected.as_bytes(), "{level}: message {number} of {} bytes", message.len());
    }
}

#[test]
fn messages_of_every_length_around_blocks_chunks_and_lanes_hash_alike() {
    let source = bytes(1, 40_000);
    let lengths =
        (0..=2 * 64 + 1).chain([191, 192, 193, 1023, 1024, 1025, 1087, 1088, 1089, 2047, 2048, 2049]);
    let lengths =
        lengths.chain((2..=17).flat_map(|chunks| [chunks * 1024 - 1, chunks * 1024, chunks * 1024 + 1]));
    // every start is of another alignment
    let messages: Vec<&[u8]> = lengths.enumerate().map(|(at, length)| &source[at..at + length]).collect();
    for level in Level::available() {
        assert_hashes(level, &messages);
        messages.iter().for_each(|message| assert_hashes(level, &[message]));
    }
}

#[test]
fn any_number_of_messages_fills_the_lanes_or_not() {
    let source = bytes(2, 4_000);
    for level in Level::available() {
        for count in 0..=2 * 16 + 1 {
            let messages: Vec<&[u8]> = (0..count).map(|number| &source[number..number * 40 + 1]).collect();
            assert_hashes(level, &messages);
        }
    }
}

#[test]
#[should_panic(expected = "a hash for every message")]
fn as_many_hashes_as_messages() {
    hash_many(Level::PORTABLE, &[b"a", b"b"], &mut [Hash::default()]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn any_mix_of_lengths_hashes_alike(
        seed: u64, lengths in prop::collection::vec(prop_oneof![0..200_usize, 0..1_100_usize, 0..20_000_usize], 0..80),
    ) {
        let source = bytes(seed, 20_064);
        let messages: Vec<&[u8]> = lengths.iter().map(|&length| &source[length % 64..][..length]).collect();
        Level::available().for_each(|level| assert_hashes(level, &messages));
    }

    #[test]
    fn every_level_sets_and_finds_the_same_bits(
        keys in prop::collection::vec(any::<u64>(), 0..200), others in prop::collection::vec(any::<u64>(), 200),
        size in 0_usize..20,
    ) {
        let filled = |level| {
            let mut blocks: Vec<Block> = vec![Block::default(); size];
            keys.iter().for_each(|&key| Probe::of(level, key).add_to(&mut blocks));
            blocks
        };
        let expected = filled(Level::PORTABLE);
        for level in Level::available() {
            prop_assert_eq!(&filled(level), &expected, "{}", level);
            for &key in keys.iter().chain(&others) {
                let oracle = Probe::of(Level::PORTABLE, key).is_in(&expected);
                prop_assert_eq!(Probe::of(level, key).is_in(&expected), oracle, "{} {:x}", level, key);
            }
        }
    }
}
