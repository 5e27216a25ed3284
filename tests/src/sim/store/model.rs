//! What a store must hold: what was acknowledged, and what may or may not have become durable.
//!
//! A batch that was not acknowledged is there whole or not at all, and is settled by the next look. Blocks
//! that a cleaning was allowed to drop may be there or not. Contents are numbers: the bytes follow from them.

use bytes::Bytes;
use larder_store::{Disk, Hash, Op, Store};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::{Debug, Display};

/// What a check found: nothing, or words that say what is wrong.
pub type Checked<T = ()> = Result<T, String>;

/// Blocks from this number on fill most of a small segment.
pub const LARGE: u32 = 10_000;
const LARGE_BYTES: usize = 50_000;

/// One change, by numbers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Change {
    /// Puts the block of this number.
    Put(u32),
    /// Deletes it.
    Delete(u32),
    /// Binds a name to the value of a number.
    Bind(u8, u32),
    /// Takes a name away.
    Unbind(u8),
    /// Sets a setting, or removes it.
    Set(u8, Option<u32>),
}

/// Whether a block is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Presence {
    /// It must be.
    There,
    /// A cleaning may have dropped it.
    Perhaps,
}

/// Contents of a store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct State {
    /// Blocks; those not named must not be there.
    pub blocks: BTreeMap<u32, Presence>,
    /// Names and the numbers of their values.
    pub names: BTreeMap<u8, u32>,
    /// Settings likewise.
    pub settings: BTreeMap<u8, u32>,
}

/// What must and what may be in a store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Model {
    /// What was acknowledged.
    pub known: State,
    /// Batches since then that failed or were under way.
    pub unsure: Vec<Vec<Change>>,
    /// Every block that was ever put.
    pub universe: BTreeSet<u32>,
    /// Every value a name or setting (by its key) ever had.
    ever: BTreeSet<(String, u32)>,
}

/// What a store answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Blocks that are there.
    pub blocks: BTreeSet<u32>,
    /// Blocks that are answered with an error.
    pub errors: BTreeMap<u32, String>,
    names: BTreeMap<u8, u32>,
    settings: BTreeMap<u8, u32>,
    /// Two answers that do not fit each other; a device that reads wrong may bring that about.
    contradiction: Option<String>,
}

thread_local! {
    static BLOCKS: RefCell<HashMap<u32, (Hash, Bytes)>> = RefCell::default();
}

/// The block of a number and its name; lengths from nothing to some pages.
pub fn block(number: u32) -> (Hash, Bytes) {
    let make = || {
        let length = match number {
            1 => 0,
            LARGE.. => LARGE_BYTES,
            _ => [700, 20, 5000, 9, 12_000, 4096 - 64, 100, 3000][number as usize % 8],
        };
        let bytes = noise("block", number, length);
        (*blake3::hash(&bytes).as_bytes(), bytes)
    };
    BLOCKS.with_borrow_mut(|blocks| blocks.entry(number).or_insert_with(make).clone())
}

fn noise(what: &str, number: u32, length: usize) -> Bytes {
    let mut bytes = vec![0; length];
    let mut hasher = blake3::Hasher::new();
    hasher.update(what.as_bytes()).update(&number.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes.into()
}

/// The value of a number: it starts with the number, and its length varies.
fn value(number: u32) -> Bytes {
    let length = [0, 40, 600, 3000][number as usize % 4];
    [&number.to_le_bytes()[..], &noise("value", number, length)].concat().into()
}

fn number_of(key: &str, bytes: &[u8]) -> Checked<u32> {
    let number = bytes.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
    let number = number.filter(|number| value(*number) == bytes);
    number.ok_or_else(|| format!("WRONG BYTES: {key} is {} bytes that nobody wrote", bytes.len()))
}

fn name(number: u8) -> String {
    format!("name/{number}")
}

fn key(number: u8) -> String {
    format!("setting/{number}")
}

fn suffix(text: &str) -> Checked<u8> {
    let number = text.rsplit('/').next().and_then(|number| number.parse().ok());
    number.ok_or_else(|| format!("WRONG BYTES: a name {text:?} that nobody wrote"))
}

impl Change {
    /// The store's own form of it.
    pub fn op(&self) -> Op {
        match self {
            Self::Put(number) => {
                let (hash, bytes) = block(*number);
                Op::Put { hash, bytes }
            }
            Self::Delete(number) => Op::Delete { hash: block(*number).0 },
            Self::Bind(number, to) => Op::Bind { name: name(*number), value: value(*to) },
            Self::Unbind(number) => Op::Unbind { name: name(*number) },
            Self::Set(number, to) => Op::Set { key: key(*number), value: to.map(value) },
        }
    }
}

impl Change {
    /// Whether it only takes away, which works within the reserve.
    pub fn is_removal(&self) -> bool {
        match self {
            Self::Delete(_) | Self::Unbind(_) | Self::Set(_, None) => true,
            Self::Put(_) | Self::Bind(..) | Self::Set(_, Some(_)) => false,
        }
    }
}

impl State {
    /// Takes a batch in.
    pub fn apply(&mut self, batch: &[Change]) {
        for change in batch {
            match change {
                Change::Put(number) => drop(self.blocks.insert(*number, Presence::There)),
                // what a cleaning dropped is not deleted: it may come back from the log
                Change::Delete(number) if self.blocks.get(number) == Some(&Presence::Perhaps) => {}
                Change::Delete(number) => drop(self.blocks.remove(number)),
                Change::Bind(number, to) => drop(self.names.insert(*number, *to)),
                Change::Unbind(number) => drop(self.names.remove(number)),
                Change::Set(number, Some(to)) => drop(self.settings.insert(*number, *to)),
                Change::Set(number, None) => drop(self.settings.remove(number)),
            }
        }
    }

    /// What differs from what was seen; none if it may be so.
    pub fn differs(&self, seen: &Seen, universe: &BTreeSet<u32>) -> Option<String> {
        if seen.contradiction.is_some() {
            return seen.contradiction.clone();
        }
        for number in universe {
            let there = seen.blocks.contains(number);
            match self.blocks.get(number) {
                Some(Presence::There) if !there => {
                    let why = seen.errors.get(number).map_or("is not there", String::as_str);
                    return Some(format!("LOST: block {number} {why}"));
                }
                None if there => return Some(format!("block {number} is there and should not be")),
                Some(Presence::There | Presence::Perhaps) | None => {}
            }
        }
        if let Some(words) = texts_differ("name", &self.names, &seen.names) {
            return Some(words);
        }
        texts_differ("setting", &self.settings, &seen.settings)
    }
}

fn texts_differ(what: &str, expected: &BTreeMap<u8, u32>, seen: &BTreeMap<u8, u32>) -> Option<String> {
    let keys: BTreeSet<&u8> = expected.keys().chain(seen.keys()).collect();
    let different = keys.into_iter().find(|key| expected.get(key) != seen.get(key))?;
    let (should, is) = (expected.get(different), seen.get(different));
    Some(format!(
        "{} {what} {different} is {is:?}, acknowledged is {should:?}",
        if is.is_none() { "LOST:" } else { "" }
    ))
}

impl Model {
    /// A batch is about to be written.
    pub fn begin(&mut self, batch: &[Change]) {
        for change in batch {
            match change {
                Change::Put(number) => drop(self.universe.insert(*number)),
                Change::Bind(number, to) => drop(self.ever.insert((name(*number), *to))),
                Change::Set(number, Some(to)) => drop(self.ever.insert((key(*number), *to))),
                Change::Delete(_) | Change::Unbind(_) | Change::Set(_, None) => {}
            }
        }
        self.unsure.push(batch.to_vec());
    }

    /// It was acknowledged: what failed before it can not come any more.
    pub fn acknowledged(&mut self) {
        if let Some(batch) = self.unsure.pop() {
            self.known.apply(&batch);
        }
        self.unsure.clear();
    }

    /// It was refused before anything of it was written.
    pub fn refused(&mut self) {
        self.unsure.pop();
    }

    /// A cleaning begins that knows only of the blocks in `kept`.
    pub fn cleaning(&mut self, kept: &BTreeSet<u32>) {
        for (number, presence) in &mut self.known.blocks {
            if !kept.contains(number) {
                *presence = Presence::Perhaps;
            }
        }
    }

    /// Finds out which of what was unsure is there; from now on that is known.
    ///
    /// # Errors
    /// The store holds what none of the possibilities explains.
    pub fn settle(&mut self, seen: &Seen) -> Checked {
        let mut possible = vec![self.known.clone()];
        for batch in &self.unsure {
            let with = possible.clone().into_iter().map(|mut state| {
                state.apply(batch);
                state
            });
            let with: Vec<State> = with.collect();
            possible.extend(with);
        }
        let found = possible.iter().find(|state| state.differs(seen, &self.universe).is_none());
        let Some(found) = found.cloned() else {
            let words: BTreeSet<_> =
                possible.iter().filter_map(|state| state.differs(seen, &self.universe)).collect();
            return Err(format!("{words:?} ({} possible states)", possible.len()));
        };
        self.known = found;
        self.unsure.clear();
        Ok(())
    }

    /// After a device lied: everything seen was once written, and is now what is known.
    ///
    /// # Errors
    /// A name has a value it never had.
    pub fn believe(&mut self, seen: &Seen) -> Checked {
        let names = seen.names.iter().map(|(number, to)| (name(*number), *to));
        let settings = seen.settings.iter().map(|(number, to)| (key(*number), *to));
        for text in names.chain(settings) {
            if !self.ever.contains(&text) {
                return Err(format!("WRONG BYTES: {} has value {} and never had", text.0, text.1));
            }
        }
        self.known = State {
            blocks: seen.blocks.iter().map(|number| (*number, Presence::There)).collect(),
            names: seen.names.clone(),
            settings: seen.settings.clone(),
        };
        self.unsure.clear();
        Ok(())
    }
}

/// What came of questions to a store whose device may fail.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Answers that were errors.
    pub errors: u64,
    /// What is known and was answered otherwise: only a device that lies or a log that can not be read excuses it.
    pub denied: Option<String>,
}

impl Model {
    /// Asks a store for everything while its device may fail: an error is an answer too.
    ///
    /// # Errors
    /// Wrong bytes, which no device excuses.
    pub fn ask<D: Disk>(&self, store: &mut Store<D>) -> Checked<Asked> {
        let mut asked = Asked::default();
        for number in &self.universe {
            let (hash, expected) = block(*number);
            let known = self.known.blocks.get(number);
            if let Some(bytes) = asked.answer(store.get(&hash)) {
                if bytes.as_ref().is_some_and(|bytes| *bytes != expected) {
                    return Err(format!("WRONG BYTES: block {number}"));
                }
                // what is in quarantine is not there for `has`
                let has = bytes.is_none() || asked.answer(store.has(&hash)).unwrap_or(true);
                let fits = match known {
                    Some(Presence::There) => bytes.is_some() && has,
                    Some(Presence::Perhaps) => has,
                    None => bytes.is_none(),
                };
                let length = bytes.map(|bytes| bytes.len());
                asked.check(fits, || {
                    format!("block {number} has {length:?} bytes, has says {has}, known is {known:?}")
                });
            }
        }
        if let Some(bindings) = asked.answer(store.bindings("", None, 1000)) {
            let texts = bindings.iter().map(|(text, binding)| (text, &binding.value));
            let names = self.texts_once_written(texts)?;
            asked.check(names == self.known.names, || format!("names are {names:?}"));
        }
        if let Some(changes) = asked.answer(store.changes(0, 1000)) {
            let names = self.texts_once_written(changes.iter().map(|(_, text, value)| (text, value)))?;
            asked.check(names == self.known.names, || format!("changes are {names:?}"));
        }
        if let Some(settings) = asked.answer(store.settings("")) {
            let settings = self.texts_once_written(settings.iter().map(|(text, value)| (text, value)))?;
            asked.check(settings == self.known.settings, || format!("settings are {settings:?}"));
        }
        Ok(asked)
    }

    fn texts_once_written<'a>(
        &self,
        texts: impl Iterator<Item = (&'a String, &'a Bytes)>,
    ) -> Checked<BTreeMap<u8, u32>> {
        let mut numbers = BTreeMap::new();
        for (text, bytes) in texts {
            let value = number_of(text, bytes)?;
            if !self.ever.contains(&(text.clone(), value)) {
                return Err(format!("WRONG BYTES: {text} has value {value} and never had"));
            }
            numbers.insert(suffix(text)?, value);
        }
        Ok(numbers)
    }
}

impl Asked {
    fn answer<T, E>(&mut self, answer: Result<T, E>) -> Option<T> {
        self.errors += u64::from(answer.is_err());
        answer.ok()
    }

    fn check(&mut self, fits: bool, words: impl FnOnce() -> String) {
        if !fits {
            self.denied.get_or_insert_with(words);
        }
    }
}

fn failed(what: impl Display) -> impl Fn(&dyn Debug) -> String {
    move |error| format!("{what} is answered with {error:?}")
}

/// Reads everything a store has.
///
/// # Errors
/// Wrong bytes, or names that can not be read.
pub fn look<D: Disk>(store: &mut Store<D>, universe: &BTreeSet<u32>) -> Checked<Seen> {
    let mut seen = Seen::default();
    for number in universe {
        let (hash, expected) = block(*number);
        match store.get(&hash) {
            Ok(Some(bytes)) if bytes == expected => drop(seen.blocks.insert(*number)),
            Ok(Some(bytes)) => return Err(format!("WRONG BYTES: block {number}, {} bytes", bytes.len())),
            Ok(None) => {}
            Err(error) => drop(seen.errors.insert(*number, error.to_string())),
        }
        let has = store.has(&hash).map_err(|error| failed("has")(&error))?;
        if has != seen.blocks.contains(number) && !seen.errors.contains_key(number) {
            seen.contradiction = Some(format!("has says {has} of block {number}, and get does not"));
        }
    }
    let bindings = store.bindings("", None, 1000).map_err(|error| failed("bindings")(&error))?;
    let mut changes: Vec<(u64, String)> = Vec::new();
    for (text, binding) in bindings {
        seen.names.insert(suffix(&text)?, number_of(&text, &binding.value)?);
        changes.push((binding.seq, text));
    }
    changes.sort();
    let told = store.changes(0, 1000).map_err(|error| failed("changes")(&error))?;
    let told: Vec<(u64, String)> = told.into_iter().map(|(seq, name, _)| (seq, name)).collect();
    if changes != told {
        seen.contradiction = Some(format!("changes are {told:?}, names are {changes:?}"));
    }
    for (text, bytes) in store.settings("").map_err(|error| failed("settings")(&error))? {
        seen.settings.insert(suffix(&text)?, number_of(&text, &bytes)?);
    }
    Ok(seen)
}
