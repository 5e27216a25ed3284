//! What the process's heap keeps of the memory that is freed.
//!
//! glibc gives memory at the heap's end back to the kernel, which hands it out again page by page, each with a fault
//! and a clearing: for a master that frees one batch and receives the next that was 4 % of a whole transfer's processor time.
//! Source: `mallopt(3)`. Other C libraries keep what they think right.

/// Keeps up to `bytes` of freed memory at the end of the heap, and at that of each thread's; what goes beyond is given
/// back as it is freed.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "the allocator's settings are a C function")]
pub fn keep_freed(bytes: usize) {
    /// What is longer is mapped, and given back, on its own: the most that glibc takes on 32 bits, and twice the
    /// longest message.
    const MAPPED_ALONE: libc::c_int = 512 << 10;
    let bytes = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    // SAFETY: mallopt takes two numbers and refuses what it does not know. What it sets are two words that glibc itself
    // changes and reads without a lock while threads allocate: one that reads the old value gives back by that.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, bytes);
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_ALONE);
    }
}

/// Leaves it to this C library.
#[cfg(not(target_env = "gnu"))]
pub fn keep_freed(_bytes: usize) {}

// On 32 bits a thread's own heap is made of pieces of 1 MiB that go back whatever is set; the main thread's is not.
#[cfg(test)]
#[cfg(all(target_env = "gnu", target_pointer_width = "64"))]
mod tests {
    use super::*;

    const PIECES: usize = 32;
    const PIECE_BYTES: usize = 100 << 10;

    /// Page faults of this thread so far.
    fn faults() -> u64 {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        let behind_the_name = stat.rsplit_once(')').unwrap().1;
        behind_the_name.split_whitespace().nth(7).unwrap().parse().unwrap()
    }

    /// Faults of a batch that is received where one has just been freed.
    fn faults_of_the_next_batch() -> u64 {
        let batch = || (0..PIECES).map(|_| std::hint::black_box(vec![1u8; PIECE_BYTES])).collect::<Vec<_>>();
        drop(batch());
        let before = faults();
        drop(batch());
        faults() - before
    }

    #[test]
    fn the_next_batch_takes_the_memory_of_the_last_where_it_is_kept() {
        let page_bytes = crate::auxv::page_bytes(std::path::Path::new("/")).unwrap();
        let pages = (PIECES * PIECE_BYTES) as u64 / page_bytes;
        keep_freed(0);
        assert!(faults_of_the_next_batch() > pages / 2);
        keep_freed(2 * PIECES * PIECE_BYTES);
        assert!(faults_of_the_next_batch() < pages / 20);
    }
}
