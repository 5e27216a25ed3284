//! Prefetching: a hint to the processor, which changes no result and never fails.

use crate::bloom::Block;

/// Has the processor fetch a block into its nearest cache, without waiting for it.
#[inline(always)]
pub(crate) fn fetch(block: &Block) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: it reads nothing that the program sees, and every x86-64 has it.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(block).cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: it reads nothing that the program sees, and every ARMv8 has it.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{}]", in(reg) block, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _nothing = block;
}
