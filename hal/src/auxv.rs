//! Constants the kernel hands to every process: page size and clock ticks.
//!
//! Read from `/proc/self/auxv`, a list of (kind, value) pairs of machine words, so that they are
//! absent in a recorded tree that has none. Kinds: `linux/auxvec.h`.

use std::path::Path;

const AT_PAGESZ: usize = 6;
const AT_CLKTCK: usize = 17;
const WORD: usize = size_of::<usize>();

/// Bytes of a memory page.
pub(crate) fn page_bytes(root: &Path) -> Option<u64> {
    value(root, AT_PAGESZ)
}

/// Ticks a second in which `/proc/*/stat` counts CPU time.
pub(crate) fn clock_ticks(root: &Path) -> Option<u64> {
    value(root, AT_CLKTCK)
}

fn value(root: &Path, kind: usize) -> Option<u64> {
    let bytes = crate::read_bytes(&root.join("proc/self/auxv"))?;
    let (pairs, _) = bytes.as_chunks::<{ 2 * WORD }>();
    pairs.iter().find_map(|pair| {
        let (found, value) = pair.split_at(WORD);
        (word(found) == kind).then(|| word(value) as u64).filter(|&value| value > 0)
    })
}

fn word(bytes: &[u8]) -> usize {
    let mut word = [0; WORD];
    word.copy_from_slice(bytes);
    usize::from_ne_bytes(word)
}

/// A recorded `auxv` with these two values, for the tests of this crate.
#[cfg(test)]
pub(crate) fn recorded(page_bytes: usize, clock_ticks: usize) -> Vec<u8> {
    [AT_PAGESZ, page_bytes, AT_CLKTCK, clock_ticks, 0, 0].iter().flat_map(|word| word.to_ne_bytes()).collect()
}
