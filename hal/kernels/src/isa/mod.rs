//! Instruction sets: for each a token, which exists only where the machine has it, and its vectors.
//!
//! Whoever holds a token may use the instructions; that is why the functions here are safe to call. Those of
//! [`Lanes`] are always inlined, so that they become single instructions inside `hash_jobs`, which is where
//! the compiler is told that it may use them.

use crate::hash::Job;

/// Methods of a token that use its instructions and no memory.
#[cfg(any(target_arch = "x86_64", all(target_arch = "aarch64", target_endian = "little")))]
macro_rules! registers_only {
    ($(fn $name:ident($self:ident $(, $argument:ident)*) -> $words:ty { $body:expr })*) => {$(
        #[inline(always)]
        fn $name($self $(, $argument: $words)*) -> $words {
            // SAFETY: the instructions touch no memory, and `self` was made where the machine has them.
            unsafe { $body }
        }
    )*};
}

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "intrinsics: each rests on the token, or on the array it loads")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "intrinsics: each rests on the token, or on the array it loads")]
pub(crate) mod avx512;
#[cfg_attr(
    any(target_arch = "x86_64", target_arch = "aarch64"),
    expect(unsafe_code, reason = "one instruction, a hint")
)]
mod fetch;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
#[expect(unsafe_code, reason = "intrinsics: each rests on the token, or on the array it loads")]
pub(crate) mod neon;

pub(crate) use fetch::fetch;

/// Vectors of `N` lanes, each lane a 32-bit word.
pub(crate) trait Lanes<const N: usize>: Copy {
    /// A word in each lane.
    type Words: Copy;

    /// The same word in each lane.
    fn splat(self, word: u32) -> Self::Words;
    /// Words from memory.
    fn load(self, words: &[u32; N]) -> Self::Words;
    /// Words to memory.
    fn store(self, words: Self::Words, to: &mut [u32; N]);
    /// Sums modulo 2^32.
    fn add(self, a: Self::Words, b: Self::Words) -> Self::Words;
    /// Exclusive or.
    fn xor(self, a: Self::Words, b: Self::Words) -> Self::Words;
    /// Of each lane `a` where the mask is all ones, `b` where it is zero.
    fn select(self, mask: Self::Words, a: Self::Words, b: Self::Words) -> Self::Words;
    /// Rotation to the right by 16 bits.
    fn rotate_16(self, a: Self::Words) -> Self::Words;
    /// Rotation to the right by 12 bits.
    fn rotate_12(self, a: Self::Words) -> Self::Words;
    /// Rotation to the right by 8 bits.
    fn rotate_8(self, a: Self::Words) -> Self::Words;
    /// Rotation to the right by 7 bits.
    fn rotate_7(self, a: Self::Words) -> Self::Words;
    /// The sixteen little-endian words of a block a lane: word 0 of each, word 1 of each, and so on.
    fn transposed(self, blocks: &[&[u8; 64]; N]) -> [Self::Words; 16];

    /// [`crate::hash::run`] over these vectors, compiled for these instructions.
    fn hash_jobs(self, jobs: &mut [Job<'_>]);
}
