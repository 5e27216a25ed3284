//! x86-64 with AVX-512F: sixteen lanes.

use super::Lanes;
use super::avx2::Avx2;
use crate::hash::{Job, run};
use std::arch::x86_64::*;

/// This machine has AVX-512F, and AVX2 as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Avx512(pub(crate) Avx2);

impl Avx512 {
    pub(crate) fn find() -> Option<Avx512> {
        Avx2::find().filter(|_| is_x86_feature_detected!("avx512f")).map(Avx512)
    }
}

impl Lanes<16> for Avx512 {
    type Words = __m512i;

    registers_only! {
        fn add(self, a, b) -> __m512i { _mm512_add_epi32(a, b) }
        fn xor(self, a, b) -> __m512i { _mm512_xor_si512(a, b) }
        fn select(self, mask, a, b) -> __m512i { _mm512_ternarylogic_epi32::<0xca>(mask, a, b) }
        fn rotate_16(self, a) -> __m512i { _mm512_ror_epi32::<16>(a) }
        fn rotate_12(self, a) -> __m512i { _mm512_ror_epi32::<12>(a) }
        fn rotate_8(self, a) -> __m512i { _mm512_ror_epi32::<8>(a) }
        fn rotate_7(self, a) -> __m512i { _mm512_ror_epi32::<7>(a) }
    }

    #[inline(always)]
    fn splat(self, word: u32) -> __m512i {
        // SAFETY: `self` was made where the machine has AVX-512F.
        unsafe { _mm512_set1_epi32(word.cast_signed()) }
    }

    #[inline(always)]
    fn load(self, words: &[u32; 16]) -> __m512i {
        // SAFETY: `self` was made where the machine has AVX-512F; the array has the 64 bytes that are read,
        // and they need no alignment.
        unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
    }

    #[inline(always)]
    fn store(self, words: __m512i, to: &mut [u32; 16]) {
        // SAFETY: `self` was made where the machine has AVX-512F; the array has the 64 bytes that are
        // written, and they need no alignment.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), words) }
    }

    #[inline(always)]
    fn transposed(self, blocks: &[&[u8; 64]; 16]) -> [__m512i; 16] {
        let mut rows = [self.splat(0); 16];
        for (row, block) in rows.iter_mut().zip(blocks) {
            // SAFETY: `self` was made where the machine has AVX-512F; the block has the 64 bytes that are
            // read, and they need no alignment.
            *row = unsafe { _mm512_loadu_si512(block.as_ptr().cast()) };
        }
        // SAFETY: `self` was made where the machine has AVX-512F.
        unsafe { transpose(rows) }
    }

    fn hash_jobs(self, jobs: &mut [Job<'_>]) {
        #[target_feature(enable = "avx512f")]
        fn compiled(lanes: Avx512, jobs: &mut [Job<'_>]) {
            run(lanes, jobs);
        }
        // SAFETY: `self` was made where the machine has AVX-512F.
        unsafe { compiled(self, jobs) }
    }
}

/// Rows to columns: within the four quarters of each register, then the quarters themselves.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(rows: [__m512i; 16]) -> [__m512i; 16] {
    let mut columns = rows;
    let mut quarters = rows;
    for (four, [r0, r1, r2, r3]) in quarters.as_chunks_mut().0.iter_mut().zip(rows.as_chunks().0) {
        let (low_01, high_01) = (_mm512_unpacklo_epi32(*r0, *r1), _mm512_unpackhi_epi32(*r0, *r1));
        let (low_23, high_23) = (_mm512_unpacklo_epi32(*r2, *r3), _mm512_unpackhi_epi32(*r2, *r3));
        *four = [
            _mm512_unpacklo_epi64(low_01, low_23),
            _mm512_unpackhi_epi64(low_01, low_23),
            _mm512_unpacklo_epi64(high_01, high_23),
            _mm512_unpackhi_epi64(high_01, high_23),
        ];
    }
    for word in 0..4 {
        let [r0, r1, r2, r3] = [quarters[word], quarters[word + 4], quarters[word + 8], quarters[word + 12]];
        let (even_01, odd_01) = (_mm512_shuffle_i32x4::<0x88>(r0, r1), _mm512_shuffle_i32x4::<0xdd>(r0, r1));
        let (even_23, odd_23) = (_mm512_shuffle_i32x4::<0x88>(r2, r3), _mm512_shuffle_i32x4::<0xdd>(r2, r3));
        columns[word] = _mm512_shuffle_i32x4::<0x88>(even_01, even_23);
        columns[word + 4] = _mm512_shuffle_i32x4::<0x88>(odd_01, odd_23);
        columns[word + 8] = _mm512_shuffle_i32x4::<0xdd>(even_01, even_23);
        columns[word + 12] = _mm512_shuffle_i32x4::<0xdd>(odd_01, odd_23);
    }
    columns
}
