//! 64-bit ARM with NEON: four lanes.

use super::Lanes;
use crate::bloom::{Block, SALTS};
use crate::hash::{Job, run};
use std::arch::aarch64::*;
use std::arch::is_aarch64_feature_detected;

/// This machine has NEON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Neon(());

impl Neon {
    pub(crate) fn find() -> Option<Neon> {
        is_aarch64_feature_detected!("neon").then_some(Neon(()))
    }
}

impl Lanes<4> for Neon {
    type Words = uint32x4_t;

    registers_only! {
        fn add(self, a, b) -> uint32x4_t { vaddq_u32(a, b) }
        fn xor(self, a, b) -> uint32x4_t { veorq_u32(a, b) }
        fn select(self, mask, a, b) -> uint32x4_t { vbslq_u32(mask, a, b) }
        fn rotate_16(self, a) -> uint32x4_t { vreinterpretq_u32_u16(vrev32q_u16(vreinterpretq_u16_u32(a))) }
        fn rotate_12(self, a) -> uint32x4_t { vsriq_n_u32::<12>(vshlq_n_u32::<20>(a), a) }
        fn rotate_8(self, a) -> uint32x4_t { vsriq_n_u32::<8>(vshlq_n_u32::<24>(a), a) }
        fn rotate_7(self, a) -> uint32x4_t { vsriq_n_u32::<7>(vshlq_n_u32::<25>(a), a) }
    }

    #[inline(always)]
    fn splat(self, word: u32) -> uint32x4_t {
        // SAFETY: `self` was made where the machine has NEON.
        unsafe { vdupq_n_u32(word) }
    }

    #[inline(always)]
    fn load(self, words: &[u32; 4]) -> uint32x4_t {
        // SAFETY: `self` was made where the machine has NEON; the array has the four words that are read.
        unsafe { vld1q_u32(words.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, words: uint32x4_t, to: &mut [u32; 4]) {
        // SAFETY: `self` was made where the machine has NEON; the array has the four words that are written.
        unsafe { vst1q_u32(to.as_mut_ptr(), words) }
    }

    #[inline(always)]
    fn transposed(self, blocks: &[&[u8; 64]; 4]) -> [uint32x4_t; 16] {
        let mut columns = [self.splat(0); 16];
        let mut rows = [self.splat(0); 4];
        for (quarter, columns) in columns.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            for (row, block) in rows.iter_mut().zip(blocks) {
                let bytes = &block.as_chunks::<16>().0[quarter];
                // SAFETY: `self` was made where the machine has NEON; the chunk has the sixteen bytes that
                // are read.
                *row = unsafe { vreinterpretq_u32_u8(vld1q_u8(bytes.as_ptr())) };
            }
            // SAFETY: `self` was made where the machine has NEON.
            *columns = unsafe { transpose(rows) };
        }
        columns
    }

    fn hash_jobs(self, jobs: &mut [Job<'_>]) {
        #[target_feature(enable = "neon")]
        fn compiled(lanes: Neon, jobs: &mut [Job<'_>]) {
            run(lanes, jobs);
        }
        // SAFETY: `self` was made where the machine has NEON.
        unsafe { compiled(self, jobs) }
    }
}

/// Rows to columns.
#[inline]
#[target_feature(enable = "neon")]
fn transpose([r0, r1, r2, r3]: [uint32x4_t; 4]) -> [uint32x4_t; 4] {
    let even_01 = vreinterpretq_u64_u32(vtrn1q_u32(r0, r1));
    let even_23 = vreinterpretq_u64_u32(vtrn1q_u32(r2, r3));
    let odd_01 = vreinterpretq_u64_u32(vtrn2q_u32(r0, r1));
    let odd_23 = vreinterpretq_u64_u32(vtrn2q_u32(r2, r3));
    [
        vreinterpretq_u32_u64(vtrn1q_u64(even_01, even_23)),
        vreinterpretq_u32_u64(vtrn1q_u64(odd_01, odd_23)),
        vreinterpretq_u32_u64(vtrn2q_u64(even_01, even_23)),
        vreinterpretq_u32_u64(vtrn2q_u64(odd_01, odd_23)),
    ]
}

/// Bloom filter: in each lane of a block the bit that the upper five bits of `low * salt` name.
impl Neon {
    /// Whether the block has all of them.
    #[inline]
    pub(crate) fn has_bits(self, block: &Block, low: u32) -> bool {
        let ([b0, b1], [m0, m1]) = (self.halves(block), self.bits(low));
        // SAFETY: `self` was made where the machine has NEON.
        unsafe { vmaxvq_u32(vorrq_u32(vbicq_u32(m0, b0), vbicq_u32(m1, b1))) == 0 }
    }

    /// Sets all of them.
    #[inline]
    pub(crate) fn set_bits(self, block: &mut Block, low: u32) {
        for (half, bits) in block.0.as_chunks_mut().0.iter_mut().zip(self.bits(low)) {
            // SAFETY: `self` was made where the machine has NEON.
            let both = unsafe { vorrq_u32(self.load(half), bits) };
            self.store(both, half);
        }
    }

    #[inline(always)]
    fn bits(self, low: u32) -> [uint32x4_t; 2] {
        // SAFETY: `self` was made where the machine has NEON.
        self.halves(&SALTS).map(|salts| unsafe {
            let shifts = vreinterpretq_s32_u32(vshrq_n_u32::<27>(vmulq_n_u32(salts, low)));
            vshlq_u32(vdupq_n_u32(1), shifts)
        })
    }

    /// Both halves of a block.
    #[inline(always)]
    fn halves(self, block: &Block) -> [uint32x4_t; 2] {
        let (halves, _) = block.0.as_chunks();
        [self.load(&halves[0]), self.load(&halves[1])]
    }
}
