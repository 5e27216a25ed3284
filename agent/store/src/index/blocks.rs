//! The blocks of the memory table: entries in the order they came, and a hash table of their numbers.
//!
//! Duty: say and take what is new of a block, in as few cold lines of memory as can be. Entries are written one behind
//! the other; what is met at random is four bytes an entry and its control byte, which stay in the processor's cache
//! where whole entries would not.

use super::table::{ByHead, Place, Prefix, head};
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use std::hash::BuildHasher;

/// None as a value says that the block is gone.
type Word = Option<Place>;

#[derive(Debug, Default)]
pub(crate) struct Blocks {
    prefixes: Vec<Prefix>,
    words: Vec<Word>,
    /// Of both.
    numbers: HashTable<u32>,
    hasher: ByHead,
}

impl Blocks {
    pub(crate) fn len(&self) -> usize {
        self.prefixes.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.prefixes.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        self.prefixes.clear();
        self.words.clear();
        self.numbers.clear();
    }

    pub(crate) fn get(&self, prefix: &Prefix) -> Option<Word> {
        let is_it = |number: &u32| self.prefixes[*number as usize] == *prefix;
        self.numbers.find(self.hasher.hash_one(prefix), is_it).map(|number| self.words[*number as usize])
    }

    /// What was said before, if anything.
    pub(crate) fn insert(&mut self, prefix: &Prefix, word: Word) -> Option<Word> {
        if self.insert_new(prefix, word) {
            return None;
        }
        let is_it = |number: &u32| self.prefixes[*number as usize] == *prefix;
        let number = self.numbers.find(self.hasher.hash_one(prefix), is_it)?;
        Some(std::mem::replace(&mut self.words[*number as usize], word))
    }

    /// Whether nothing was said before; else nothing is done. What it writes it keeps in registers: a processor that has
    /// to read back what it wrote to the stack waits for all cold lines that were written before.
    #[inline(always)]
    pub(crate) fn insert_new(&mut self, prefix: &Prefix, word: Word) -> bool {
        let Self { prefixes, words, numbers, hasher } = self;
        let is_it = |number: &u32| prefixes[*number as usize] == *prefix;
        let hash_of = |number: &u32| hasher.hash_one(prefixes[*number as usize]);
        let Entry::Vacant(place) = numbers.entry(hasher.hash_one(prefix), is_it, hash_of) else {
            return false;
        };
        place.insert(u32::try_from(prefixes.len()).expect("a checkpoint comes long before"));
        prefixes.push(*prefix);
        words.push(word);
        true
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Prefix, &Word)> {
        self.prefixes.iter().zip(&self.words)
    }

    /// In the order of their prefixes.
    pub(crate) fn sorted(&self) -> impl ExactSizeIterator<Item = (&Prefix, &Word)> {
        // numbers are compared and moved faster than prefixes, and hardly ever are two heads alike
        let mut order: Vec<(u64, u32)> = self.prefixes.iter().map(head).zip(0..).collect();
        order.sort_unstable_by_key(|(head, _)| *head);
        let prefix = |number: u32| &self.prefixes[number as usize];
        for alike in order.chunk_by_mut(|(one, _), (other, _)| one == other).filter(|alike| alike.len() > 1) {
            alike.sort_unstable_by_key(|(_, number)| *prefix(*number));
        }
        order.into_iter().map(move |(_, number)| (prefix(number), &self.words[number as usize]))
    }

    #[cfg(planted)]
    pub(crate) fn forget_newest_segment(&mut self) {
        let segment = |word: &Word| word.map(|place| place.segment);
        let Some(newest) = self.words.iter().filter_map(segment).max() else { return };
        let kept: Vec<(Prefix, Word)> = self
            .iter()
            .filter(|(_, word)| segment(word) != Some(newest))
            .map(|(prefix, word)| (*prefix, *word))
            .collect();
        self.clear();
        for (prefix, word) in &kept {
            self.insert(prefix, *word);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// Few prefixes, of which some begin alike.
    fn prefix(number: u8) -> Prefix {
        let mut prefix = [number / 4; 24];
        prefix[20] = number % 4;
        prefix
    }

    proptest! {
        #[test]
        fn the_last_word_about_each_block_is_kept_and_comes_out_in_order(
            words in proptest::collection::vec((any::<u8>(), proptest::option::of(any::<u32>())), 0..500),
            again in 0_usize..500,
        ) {
            let (mut blocks, mut model) = (Blocks::default(), BTreeMap::new());
            for (at, (number, word)) in words.into_iter().enumerate() {
                if at == again {
                    blocks.clear();
                    model.clear();
                }
                let word = word.map(|offset| Place { segment: 1, offset, length: 2 });
                let prefix = prefix(number);
                prop_assert_eq!(blocks.get(&prefix), model.get(&prefix).copied());
                prop_assert_eq!(blocks.insert(&prefix, word), model.insert(prefix, word));
                prop_assert_eq!(blocks.get(&prefix), Some(word));
            }
            prop_assert_eq!((blocks.len(), blocks.is_empty()), (model.len(), model.is_empty()));
            prop_assert!(blocks.sorted().eq(&model));
        }
    }
}
