//! The profiles and boards built into the binary, and those read from a path.
//!
//! Refuses: unknown keys, values out of range, unknown names (the nearest known one is named).
//! Code never asks for a board or a profile by name: names come from configuration and board files.

use std::path::{Path, PathBuf};

use larder_core::board::Board;
use larder_core::profile::Profile;
use serde::de::DeserializeOwned;

use super::error::{ConfigError, Origin, Sourced};
use super::raw::{beside, read_text};
use super::schema;

macro_rules! files {
    ($folder:literal: $($name:literal),+ $(,)?) => {
        [$(($name, include_str!(concat!("../../../", $folder, "/", $name, ".toml")))),+]
    };
}

const PROFILES: [(&str, &str); 4] =
    files!("power-profiles": "performance", "balanced", "low-power", "duty-cycle");

const BOARDS: [(&str, &str); 12] = files!("boards":
    "raspberry-pi-zero-2-w",
    "raspberry-pi-3b-plus",
    "raspberry-pi-4",
    "raspberry-pi-5",
    "raspberry-pi-cm4",
    "jetson-nano",
    "jetson-xavier-nx",
    "jetson-orin-nano",
    "beaglebone-black",
    "generic-arm64",
    "generic-x86-64",
    "generic",
);

/// All built-in boards.
pub(super) fn boards() -> Vec<Board> {
    BOARDS
        .iter()
        .map(|(_, text)| toml::from_str(text).expect("a test of this module parses every built-in board"))
        .collect()
}

/// The profile that a name or a path means.
pub(super) fn profile(wish: &Sourced<String>) -> Result<Profile, ConfigError> {
    load(wish, "profile", &PROFILES, |profile: &Profile| {
        profile.check().map_err(|error| (error.key, error.value, error.allowed))
    })
}

/// The names of the built-in profiles.
pub(super) fn profile_names() -> impl Iterator<Item = &'static str> {
    PROFILES.iter().map(|(name, _)| *name)
}

/// The board that a name or a path means.
pub(super) fn board(wish: &Sourced<String>) -> Result<Board, ConfigError> {
    load(wish, "board", &BOARDS, |board: &Board| {
        board.check().map_err(|error| (error.key, error.value, error.allowed))
    })
}

type Wrong = (&'static str, String, String);

fn load<T: DeserializeOwned>(
    wish: &Sourced<String>,
    what: &'static str,
    known: &[(&str, &str)],
    check: impl Fn(&T) -> Result<(), Wrong>,
) -> Result<T, ConfigError> {
    let (path, text) = if is_path(&wish.value) {
        let path = beside(&wish.from, Path::new(&wish.value));
        let text = read_text(&path)?;
        (path, text)
    } else {
        match known.iter().find(|(name, _)| *name == wish.value) {
            Some((name, text)) => (PathBuf::from(format!("built-in {what} {name}")), (*text).to_owned()),
            None => return Err(unknown(wish, what, known)),
        }
    };
    let at = |at: usize| Origin::File { path: path.clone(), line: schema::line(&text, at) };
    let value: T = toml::from_str(&text).map_err(|error| ConfigError::Syntax {
        from: at(error.span().map_or(0, |span| span.start)),
        message: format!("as a {what}: {}", error.message()),
    })?;
    check(&value).map_err(|(key, found, allowed)| ConfigError::Value {
        from: at(text.find(&format!("\n{key} ")).map_or(0, |newline| newline + 1)),
        key: key.to_owned(),
        found,
        allowed,
    })?;
    Ok(value)
}

fn is_path(wish: &str) -> bool {
    wish.contains('/') || Path::new(wish).extension().is_some_and(|extension| extension == "toml")
}

fn unknown(wish: &Sourced<String>, what: &'static str, known: &[(&str, &str)]) -> ConfigError {
    let names = || known.iter().map(|(name, _)| *name);
    let guess = schema::nearest(&wish.value, names());
    let guess = guess.map(|name| format!(" (did you mean {name:?}?)")).unwrap_or_default();
    let auto = if what == "board" { "auto, " } else { "" };
    ConfigError::Value {
        from: wish.from.clone(),
        key: schema::named("node", what),
        found: format!("{:?}{guess}", wish.value),
        allowed: format!("{auto}{}, or the path of a {what} file", names().collect::<Vec<_>>().join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;

    use larder_core::power::conditions::Condition;

    use super::*;

    fn wish(text: &str) -> Sourced<String> {
        Sourced::new(text.to_owned(), Origin::Flag("--test"))
    }

    #[test]
    fn every_built_in_profile_works_and_is_named_like_its_file() {
        for (name, _) in PROFILES {
            assert_eq!(profile(&wish(name)).unwrap().name, name);
        }
    }

    #[test]
    fn every_built_in_board_works_is_named_like_its_file_and_knows_its_profile() {
        for (name, _) in BOARDS {
            let board = board(&wish(name)).unwrap();
            assert_eq!(board.name, name);
            profile(&wish(&board.default_profile)).unwrap();
        }
    }

    #[test]
    fn the_profile_of_every_board_answers_every_condition() {
        for (name, _) in BOARDS {
            let default = board(&wish(name)).unwrap().default_profile;
            let mut on = profile(&wish(&default)).unwrap().on;
            let answered: Vec<Condition> = on.each_mut().map(|(condition, _)| condition).collect();
            assert_eq!(answered, Condition::ALL, "{default}, the profile of {name}");
        }
    }

    #[test]
    fn no_two_boards_claim_the_same_machine() {
        let boards = boards();
        let mut claimed = BTreeSet::new();
        for board in &boards {
            for text in board.compatible.iter().chain(&board.arch) {
                assert!(claimed.insert(text.clone()), "{text} is claimed twice");
            }
        }
        let last_resorts = boards.iter().filter(|b| b.compatible.is_empty() && b.arch.is_none()).count();
        assert_eq!(last_resorts, 1);
    }

    #[test]
    fn every_file_in_the_folders_is_built_in() {
        for (folder, known) in [("power-profiles", PROFILES.len()), ("boards", BOARDS.len())] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(folder);
            let files = fs::read_dir(path).unwrap().flatten();
            let files = files.filter(|file| file.path().extension().is_some_and(|e| e == "toml")).count();
            assert_eq!(files, known, "{folder}");
        }
    }

    #[test]
    fn low_power_wakes_seldom_and_performance_answers_at_once() {
        let [performance, balanced, low] =
            ["performance", "balanced", "low-power"].map(|name| profile(&wish(name)).unwrap());
        assert!(performance.tick_ms <= 10 && performance.flush_age_ms <= 5);
        assert!(low.tick_ms >= 3_000 && low.cache_bytes <= 8 << 20);
        assert!(performance.tick_ms < balanced.tick_ms && balanced.tick_ms < low.tick_ms);
        assert!(performance.timer_slack_us < balanced.timer_slack_us && balanced.sense_s < low.sense_s);
    }

    #[test]
    fn an_unknown_profile_names_the_nearest() {
        let error = profile(&wish("low_power")).unwrap_err().to_string();
        assert!(error.contains("did you mean \"low-power\"?") && error.contains("balanced"), "{error}");
    }

    #[test]
    fn a_profile_of_ones_own_is_read_from_its_path_and_checked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("own.toml");
        let text = PROFILES[1].1.replace("\"balanced\"", "\"own\"");
        fs::write(&path, &text).unwrap();
        assert_eq!(profile(&wish(path.to_str().unwrap())).unwrap().name, "own");

        fs::write(&path, text.replace("keep_alive_s = 60", "keep_alive_s = 1")).unwrap();
        let error = profile(&wish(path.to_str().unwrap())).unwrap_err().to_string();
        assert!(error.contains("own.toml:9: keep_alive_s = 1") && error.contains("5 to 65535"), "{error}");

        fs::write(&path, text.replace("keep_alive_s", "keepalive")).unwrap();
        let error = profile(&wish(path.to_str().unwrap())).unwrap_err().to_string();
        assert!(error.contains("own.toml:9") && error.contains("keepalive"), "{error}");
    }
}
