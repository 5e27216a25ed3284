//! A board: what a machine model can bear, and how to recognise it.
//!
//! Duty: the shape of a board file, the check of its values, and the choice of one among many by
//! what the machine says of itself. The files are in `boards/`; reading the machine is hal's.
//! Refuses: values that contradict each other. Bound: every value has a range.
//! Failure: [`BoardError`] names the key; an unknown machine is no failure, it gets the generic
//! board and a note that says so.

use core::fmt;

use larder_kernels::Level;
use serde::{Deserialize, Serialize};

/// How a fresh segment file is made ready before records go into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Prepare {
    /// Not at all: the file grows. Least wear on a first pass, slowest sync.
    None,
    /// Space is reserved, so that a batch cannot meet a full disk halfway.
    Allocate,
    /// Written once with zeros: costs a pass of wear, makes every later sync an overwrite.
    Zero,
}

impl fmt::Display for Prepare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::None => "none",
            Self::Allocate => "allocate",
            Self::Zero => "zero",
        })
    }
}

/// A board as its file writes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Board {
    /// How configuration and status name it.
    pub name: String,
    /// One sentence for people.
    pub summary: String,
    /// Device tree `compatible` strings, any of which identifies it.
    #[serde(default)]
    pub compatible: Vec<String>,
    /// For generic boards: the architecture, as Rust names it, whose unknown machines get this one.
    /// A board with neither this nor `compatible` is the last resort.
    #[serde(default)]
    pub arch: Option<String>,
    /// Memory of the smallest such machine, used where the kernel does not tell.
    pub memory_bytes: u64,
    /// Page size its usual kernel has; segments are a multiple of it.
    pub page_bytes: u64,
    /// Size of a segment file.
    pub segment_bytes: u64,
    /// How fresh segments are made ready.
    pub prepare: Prepare,
    /// Most emptied segment files kept for the next segments.
    pub spare_segments_max: u32,
    /// Bytes redb may cache of the index.
    pub index_cache_bytes: u64,
    /// Most bytes the block cache may take here, whatever the profile wishes.
    pub cache_bytes_max: u64,
    /// Most of the disk, in percent, that the store may take here, whatever the limit says.
    pub storage_share_percent: u64,
    /// Levels of the kernels its processor has beyond portable code; the best of them is used.
    pub kernels: Vec<String>,
    /// Profile where none is configured.
    pub default_profile: String,
    /// Types of the thermal zones of its processor; every zone where none is named.
    #[serde(default)]
    pub thermal_zones: Vec<String>,
    /// Labels of the INA3221 channels that together are its supply.
    #[serde(default)]
    pub power_rails: Vec<String>,
    /// Its firmware's mailbox is asked for what a Raspberry Pi 5's PMIC says, and for throttling.
    #[serde(default)]
    pub pmic: bool,
    /// Degrees Celsius from which it is hot.
    pub hot_celsius: u64,
    /// Degrees Celsius below which it is hot no longer.
    pub cool_celsius: u64,
}

/// A board value that cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key} = {value} is impossible: allowed are {allowed}")]
pub struct BoardError {
    /// The key in the board file.
    pub key: &'static str,
    /// What it says.
    pub value: String,
    /// What it may say.
    pub allowed: String,
}

/// A key, its value, whether that can work, and what can.
type Rule = (&'static str, u64, bool, &'static str);

impl Board {
    /// Checks every value, alone and against the others.
    ///
    /// # Errors
    /// The first value that cannot work.
    pub fn check(&self) -> Result<(), BoardError> {
        let mut rules = self.sizes().into_iter().chain(self.temperatures());
        if let Some((key, value, _, allowed)) = rules.find(|&(_, _, holds, _)| !holds) {
            return Err(BoardError { key, value: value.to_string(), allowed: allowed.to_owned() });
        }
        match self.kernels.iter().find(|name| !Level::NAMES.contains(&name.as_str())) {
            Some(name) => {
                let allowed = format!("a list of {}", Level::NAMES.join(", "));
                Err(BoardError { key: "kernels", value: format!("[… {name:?} …]"), allowed })
            }
            None => Ok(()),
        }
    }

    fn sizes(&self) -> [Rule; 7] {
        let caches = self.index_cache_bytes.saturating_add(self.cache_bytes_max);
        let (page, segment, share) = (self.page_bytes, self.segment_bytes, self.storage_share_percent);
        let spares = u64::from(self.spare_segments_max);
        let is_segment = (1 << 20..=1 << 30).contains(&segment) && segment.is_multiple_of(65_536);
        let (memory, index_cache) = (self.memory_bytes, self.index_cache_bytes);
        let is_memory = (64 << 20..=1 << 42).contains(&memory);
        let is_index_cache = (1 << 20..=1 << 30).contains(&index_cache);
        let is_cache = self.cache_bytes_max >= 256 << 10 && caches <= memory / 2;
        let halves = "256 KiB to what makes both caches half of memory_bytes";
        [
            ("page_bytes", page, matches!(page, 4_096 | 16_384 | 65_536), "4096, 16384 and 65536"),
            ("segment_bytes", segment, is_segment, "1 MiB to 1 GiB in multiples of 64 KiB"),
            ("spare_segments_max", spares, spares <= 1024, "0 to 1024"),
            ("memory_bytes", memory, is_memory, "64 MiB to 4 TiB"),
            ("index_cache_bytes", index_cache, is_index_cache, "1 MiB to 1 GiB"),
            ("cache_bytes_max", self.cache_bytes_max, is_cache, halves),
            ("storage_share_percent", share, (1..=100).contains(&share), "1 to 100"),
        ]
    }

    fn temperatures(&self) -> [Rule; 2] {
        let (hot, cool) = (self.hot_celsius, self.cool_celsius);
        let is_cool = (20..=hot.saturating_sub(3)).contains(&cool);
        [
            ("hot_celsius", hot, (40..=120).contains(&hot), "40 to 120"),
            ("cool_celsius", cool, is_cool, "20 to 3 below hot_celsius"),
        ]
    }

    /// The best level the machine has of those its board names; it is portable code where it has none.
    #[must_use]
    pub fn level(&self) -> Level {
        let named = |level: &Level| self.kernels.iter().any(|name| name == level.name());
        Level::available().filter(named).max().unwrap_or(Level::PORTABLE)
    }
}

/// How a board was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recognised {
    /// By this device tree string.
    Compatible(String),
    /// By architecture alone; the device tree, if there is one, named this machine.
    Architecture(Option<String>),
    /// By nothing: the last resort; the device tree, if there is one, named this machine.
    Fallback(Option<String>),
}

/// The board chosen for a machine, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice<'a> {
    /// The board.
    pub board: &'a Board,
    /// What it was chosen by.
    pub by: Recognised,
}

impl Choice<'_> {
    /// What to tell people of a machine no board file knows.
    #[must_use]
    pub fn note(&self) -> Option<String> {
        let unknown = match &self.by {
            Recognised::Architecture(Some(model)) | Recognised::Fallback(Some(model)) => model,
            Recognised::Fallback(None) => "this architecture",
            Recognised::Compatible(_) | Recognised::Architecture(None) => return None,
        };
        Some(format!(
            "no board file knows {unknown}: {} is used; [node] board = NAME or PATH sets another",
            self.board.name
        ))
    }
}

/// Chooses the board for a machine: the first of its `compatible` strings (the device tree lists
/// the most specific first) that any board lists, else the board for `arch`, else the last resort.
/// `None` only if `boards` has no last resort.
#[must_use]
pub fn choose<'a>(boards: &'a [Board], compatible: &[String], arch: &str) -> Option<Choice<'a>> {
    for text in compatible {
        if let Some(board) = boards.iter().find(|board| board.compatible.contains(text)) {
            return Some(Choice { board, by: Recognised::Compatible(text.clone()) });
        }
    }
    let unknown = compatible.first().cloned();
    if let Some(board) = boards.iter().find(|board| board.arch.as_deref() == Some(arch)) {
        return Some(Choice { board, by: Recognised::Architecture(unknown) });
    }
    let board = boards.iter().find(|board| board.arch.is_none() && board.compatible.is_empty())?;
    Some(Choice { board, by: Recognised::Fallback(unknown) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn board(name: &str, compatible: &[&str], arch: Option<&str>) -> Board {
        Board {
            name: name.to_owned(),
            summary: String::new(),
            compatible: compatible.iter().map(|&text| text.to_owned()).collect(),
            arch: arch.map(str::to_owned),
            memory_bytes: 1 << 30,
            page_bytes: 4_096,
            segment_bytes: 32 << 20,
            prepare: Prepare::Allocate,
            spare_segments_max: 8,
            index_cache_bytes: 8 << 20,
            cache_bytes_max: 64 << 20,
            storage_share_percent: 80,
            kernels: Vec::new(),
            default_profile: "balanced".to_owned(),
            thermal_zones: Vec::new(),
            power_rails: Vec::new(),
            pmic: false,
            hot_celsius: 80,
            cool_celsius: 70,
        }
    }

    fn boards() -> Vec<Board> {
        vec![
            board("family", &["maker,chip"], None),
            board("model", &["maker,model"], None),
            board("arm", &[], Some("aarch64")),
            board("any", &[], None),
        ]
    }

    fn texts(list: &[&str]) -> Vec<String> {
        list.iter().map(|&text| text.to_owned()).collect()
    }

    #[test]
    fn the_most_specific_compatible_string_wins() {
        let boards = boards();
        let choice = choose(&boards, &texts(&["maker,model", "maker,chip"]), "aarch64").unwrap();
        assert_eq!((choice.board.name.as_str(), choice.note()), ("model", None));
        let choice = choose(&boards, &texts(&["maker,other", "maker,chip"]), "aarch64").unwrap();
        assert_eq!(choice.board.name, "family");
    }

    #[test]
    fn an_unknown_board_gets_its_architectures_with_a_note() {
        let boards = boards();
        let choice = choose(&boards, &texts(&["who,knows"]), "aarch64").unwrap();
        assert_eq!(choice.board.name, "arm");
        assert!(choice.note().unwrap().contains("who,knows"));
        let choice = choose(&boards, &[], "aarch64").unwrap();
        assert_eq!((choice.board.name.as_str(), choice.note()), ("arm", None));
    }

    #[test]
    fn an_unknown_architecture_gets_the_last_resort_with_a_note() {
        let boards = boards();
        let choice = choose(&boards, &[], "riscv64").unwrap();
        assert_eq!(choice.board.name, "any");
        assert!(choice.note().unwrap().contains("this architecture"));
        assert!(choose(&boards[..3], &[], "riscv64").is_none());
    }

    #[test]
    fn caches_that_eat_the_memory_are_refused() {
        let mut greedy = board("greedy", &[], None);
        assert_eq!(greedy.check(), Ok(()));
        greedy.cache_bytes_max = 1 << 30;
        assert_eq!(greedy.check().unwrap_err().key, "cache_bytes_max");
    }

    #[test]
    fn heat_without_a_way_back_is_refused() {
        let mut odd = board("odd", &[], None);
        odd.cool_celsius = 78;
        assert_eq!(odd.check().unwrap_err().key, "cool_celsius");
        odd.hot_celsius = 999;
        assert_eq!(odd.check().unwrap_err().key, "hot_celsius");
    }

    #[test]
    fn a_board_is_given_the_best_level_it_names_and_the_machine_has() {
        let named = |names: &[&str]| Board { kernels: texts(names), ..board("some", &[], None) };
        assert_eq!(named(&[]).level(), Level::PORTABLE, "one that names none has none");
        let all = named(&Level::NAMES);
        assert_eq!((all.check(), all.level()), (Ok(()), Level::detect()));
        for level in Level::available() {
            assert_eq!(named(&[level.name()]).level(), level, "a better one is left alone");
        }
        assert_eq!(named(&["neon", "sse9"]).check().unwrap_err().key, "kernels");
    }

    #[test]
    fn odd_segments_and_pages_are_refused() {
        let mut odd = board("odd", &[], None);
        odd.segment_bytes += 1;
        assert_eq!(odd.check().unwrap_err().key, "segment_bytes");
        odd.page_bytes = 5_000;
        assert_eq!(odd.check().unwrap_err().key, "page_bytes");
    }
}
