//! x86-64 with AVX2: eight lanes.

use super::Lanes;
use crate::bloom::{Block, SALTS};
use crate::hash::{Job, run};
use std::arch::x86_64::*;

/// This machine has AVX2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Avx2(());

impl Avx2 {
    pub(crate) fn find() -> Option<Avx2> {
        is_x86_feature_detected!("avx2").then_some(Avx2(()))
    }
}

impl Lanes<8> for Avx2 {
    type Words = __m256i;

    registers_only! {
        fn add(self, a, b) -> __m256i { _mm256_add_epi32(a, b) }
        fn xor(self, a, b) -> __m256i { _mm256_xor_si256(a, b) }
        fn select(self, mask, a, b) -> __m256i { _mm256_blendv_epi8(b, a, mask) }
        fn rotate_16(self, a) -> __m256i { rotate_bytes::<2>(a) }
        fn rotate_12(self, a) -> __m256i { _mm256_or_si256(_mm256_srli_epi32::<12>(a), _mm256_slli_epi32::<20>(a)) }
        fn rotate_8(self, a) -> __m256i { rotate_bytes::<1>(a) }
        fn rotate_7(self, a) -> __m256i { _mm256_or_si256(_mm256_srli_epi32::<7>(a), _mm256_slli_epi32::<25>(a)) }
    }

    #[inline(always)]
    fn splat(self, word: u32) -> __m256i {
        // SAFETY: `self` was made where the machine has AVX2.
        unsafe { _mm256_set1_epi32(word.cast_signed()) }
    }

    #[inline(always)]
    fn load(self, words: &[u32; 8]) -> __m256i {
        // SAFETY: `self` was made where the machine has AVX2; the array has the 32 bytes that are read, and
        // they need no alignment.
        unsafe { _mm256_loadu_si256(words.as_ptr().cast()) }
    }

    #[inline(always)]
    fn store(self, words: __m256i, to: &mut [u32; 8]) {
        // SAFETY: `self` was made where the machine has AVX2; the array has the 32 bytes that are written,
        // and they need no alignment.
        unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), words) }
    }

    #[inline(always)]
    fn transposed(self, blocks: &[&[u8; 64]; 8]) -> [__m256i; 16] {
        let mut halves = [[self.splat(0); 8]; 2];
        for (lane, block) in blocks.iter().enumerate() {
            for (half, bytes) in halves.iter_mut().zip(block.as_chunks::<32>().0) {
                // SAFETY: `self` was made where the machine has AVX2; the chunk has the 32 bytes that are
                // read, and they need no alignment.
                half[lane] = unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) };
            }
        }
        let mut columns = [self.splat(0); 16];
        for (columns, rows) in columns.as_chunks_mut().0.iter_mut().zip(halves) {
            // SAFETY: `self` was made where the machine has AVX2.
            *columns = unsafe { transpose(rows) };
        }
        columns
    }

    fn hash_jobs(self, jobs: &mut [Job<'_>]) {
        #[target_feature(enable = "avx2")]
        fn compiled(lanes: Avx2, jobs: &mut [Job<'_>]) {
            run(lanes, jobs);
        }
        // SAFETY: `self` was made where the machine has AVX2.
        unsafe { compiled(self, jobs) }
    }
}

/// Rotates each word to the right by whole bytes.
#[inline]
#[target_feature(enable = "avx2")]
fn rotate_bytes<const BYTES: usize>(words: __m256i) -> __m256i {
    const { assert!(BYTES < 4) };
    let word = |word: usize| {
        let byte = |byte: usize| ((byte + BYTES) % 4 + 4 * word) as u32;
        i32::from_ne_bytes([byte(0) as u8, byte(1) as u8, byte(2) as u8, byte(3) as u8])
    };
    let order = _mm256_setr_epi32(word(0), word(1), word(2), word(3), word(0), word(1), word(2), word(3));
    _mm256_shuffle_epi8(words, order)
}

/// Rows to columns: within the halves of each register, then the halves themselves.
#[inline]
#[target_feature(enable = "avx2")]
fn transpose(rows: [__m256i; 8]) -> [__m256i; 8] {
    let mut halves = rows;
    for (four, [r0, r1, r2, r3]) in halves.as_chunks_mut().0.iter_mut().zip(rows.as_chunks().0) {
        let (low_01, high_01) = (_mm256_unpacklo_epi32(*r0, *r1), _mm256_unpackhi_epi32(*r0, *r1));
        let (low_23, high_23) = (_mm256_unpacklo_epi32(*r2, *r3), _mm256_unpackhi_epi32(*r2, *r3));
        *four = [
            _mm256_unpacklo_epi64(low_01, low_23),
            _mm256_unpackhi_epi64(low_01, low_23),
            _mm256_unpacklo_epi64(high_01, high_23),
            _mm256_unpackhi_epi64(high_01, high_23),
        ];
    }
    let mut columns = rows;
    for word in 0..4 {
        columns[word] = _mm256_permute2x128_si256::<0x20>(halves[word], halves[word + 4]);
        columns[word + 4] = _mm256_permute2x128_si256::<0x31>(halves[word], halves[word + 4]);
    }
    columns
}

/// Bloom filter: in each lane of a block the bit that the upper five bits of `low * salt` name.
impl Avx2 {
    /// Whether the block has all of them.
    #[inline]
    pub(crate) fn has_bits(self, block: &Block, low: u32) -> bool {
        #[target_feature(enable = "avx2")]
        fn compiled(lanes: Avx2, block: &Block, low: u32) -> bool {
            _mm256_testc_si256(lanes.load(&block.0), bits(lanes, low)) == 1
        }
        // SAFETY: `self` was made where the machine has AVX2.
        unsafe { compiled(self, block, low) }
    }

    /// Sets all of them.
    #[inline]
    pub(crate) fn set_bits(self, block: &mut Block, low: u32) {
        #[target_feature(enable = "avx2")]
        fn compiled(lanes: Avx2, block: &mut Block, low: u32) {
            lanes.store(_mm256_or_si256(lanes.load(&block.0), bits(lanes, low)), &mut block.0);
        }
        // SAFETY: `self` was made where the machine has AVX2.
        unsafe { compiled(self, block, low) }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn bits(lanes: Avx2, low: u32) -> __m256i {
    let products = _mm256_mullo_epi32(lanes.splat(low), lanes.load(&SALTS.0));
    _mm256_sllv_epi32(lanes.splat(1), _mm256_srli_epi32::<27>(products))
}
