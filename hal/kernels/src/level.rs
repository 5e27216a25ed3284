//! Levels: which instructions the kernels may use.
//!
//! A [`Level`] exists only for instructions this machine has, so holding one is the proof that they may be
//! used. Portable code is a level too, and the oracle of all others.

#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
use crate::isa::neon::Neon;
#[cfg(target_arch = "x86_64")]
use crate::isa::{avx2::Avx2, avx512::Avx512};
use std::fmt;
use std::str::FromStr;

/// Instructions that this machine has; the better of two is the greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Level(pub(crate) Isa);

/// Every level this kind of machine can have, the better one later, with the proof that this one has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Isa {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    Neon(Neon),
}

/// Why a level can not be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LevelError {
    asked: String,
}

impl fmt::Display for LevelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let asked = &self.asked;
        let why = if Level::NAMES.contains(&asked.as_str()) {
            format!("this machine has no level `{asked}`")
        } else {
            format!("`{asked}` is no level")
        };
        let has: Vec<&str> = Level::available().map(Level::name).collect();
        write!(f, "{why}; it has {}", has.join(", "))
    }
}

impl std::error::Error for LevelError {}

impl Level {
    /// The names of all levels, of whatever machine.
    pub const NAMES: [&str; 4] = ["portable", "neon", "avx2", "avx512"];

    /// What every machine has.
    pub const PORTABLE: Level = Level(Isa::Portable);

    /// The best this machine has.
    pub fn detect() -> Level {
        Level::available().max().unwrap_or(Level::PORTABLE)
    }

    /// All this machine has, the best last.
    pub fn available() -> impl Iterator<Item = Level> {
        let found = [
            Some(Isa::Portable),
            #[cfg(target_arch = "x86_64")]
            Avx2::find().map(Isa::Avx2),
            #[cfg(target_arch = "x86_64")]
            Avx512::find().map(Isa::Avx512),
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            Neon::find().map(Isa::Neon),
        ];
        found.into_iter().flatten().map(Level)
    }

    /// What people call it.
    pub const fn name(self) -> &'static str {
        match self.0 {
            Isa::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(_) => "avx512",
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            Isa::Neon(_) => "neon",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Level {
    type Err = LevelError;

    fn from_str(name: &str) -> Result<Level, LevelError> {
        let found = Level::available().find(|level| level.name() == name);
        found.ok_or_else(|| LevelError { asked: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    /// What this kind of machine may have.
    const KNOWN: &[&str] = if cfg!(target_arch = "x86_64") {
        &["portable", "avx2", "avx512"]
    } else if cfg!(all(target_arch = "aarch64", target_endian = "little")) {
        &["portable", "neon"]
    } else {
        &["portable"]
    };

    /// A suite goes over the levels there are: one that no machine of a run has would go untested without a word. No
    /// machine can be given one, so that is no skip, which would fail the run.
    #[test]
    fn a_level_that_this_machine_lacks_is_noted_as_untested() {
        assert!(Level::available().all(|level| KNOWN.contains(&level.name())));
        for name in KNOWN.iter().filter(|name| name.parse::<Level>().is_err()) {
            let note = format!("kernels at level {name}: this machine does not have it");
            println!("untested: {note}");
            if let Some(path) = std::env::var_os("LARDER_NOTES") {
                let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
                writeln!(file.unwrap(), "{note}").unwrap();
            }
        }
    }

    #[test]
    fn every_level_of_this_machine_is_found_by_its_name() {
        for level in Level::available() {
            assert_eq!(level.name().parse(), Ok(level));
        }
        assert!(Level::available().any(|level| level == Level::PORTABLE));
        assert_eq!(Level::available().max(), Some(Level::detect()));
    }

    #[test]
    fn a_level_that_is_not_to_be_had_is_refused_by_naming_those_that_are() {
        let error = "quantum".parse::<Level>().unwrap_err().to_string();
        assert!(error.starts_with("`quantum` is no level; it has portable"), "{error}");
    }
}
