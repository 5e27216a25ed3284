//! Watched folders as configured: what is taken in, under which names, and what becomes of it.

use std::path::{Path, PathBuf};

use globset::{Glob, GlobSet, GlobSetBuilder};
use larder_core::name::Name;
use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::error::{ConfigError, Origin};
use super::raw::{Layer, RawWatch, beside};
use super::schema;

/// Patterns of one list; more are a mistake, and each costs memory.
const PATTERNS_MAX: usize = 256;
const SETTLE_S_DEFAULT: u64 = 2;

/// How deep below a watched folder a folder may lie; deeper ones are not looked at.
pub const FOLDER_DEPTH_MAX: usize = 64;

/// What becomes of a file once its content is safe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum After {
    /// It stays.
    #[default]
    Keep,
    /// It is deleted once the master has acknowledged it.
    DeleteAfterAck,
}

/// One watched folder.
#[derive(Clone, Debug)]
pub struct Watch {
    /// The folder.
    pub path: PathBuf,
    /// Put before each file's path below the folder to make its name; empty or ending in `/`.
    pub prefix: String,
    /// Patterns of paths below the folder, one of which must match; none: all match.
    pub include: GlobSet,
    /// Patterns none of which may match.
    pub exclude: GlobSet,
    /// Whether folders below it are watched too.
    pub recursive: bool,
    /// Seconds a file must have been left alone before it is taken.
    pub settle_s: u64,
    /// What becomes of a file.
    pub after: After,
}

impl Watch {
    /// Whether a file of this path below the folder is taken.
    #[must_use]
    pub fn takes(&self, relative: &Path) -> bool {
        (self.include.is_empty() || self.include.is_match(relative)) && !self.exclude.is_match(relative)
    }

    pub(super) fn deletes(&self) -> bool {
        self.after == After::DeleteAfterAck
    }

    pub(super) fn check(layer: &Layer, raw: &Spanned<RawWatch>, store: &Path) -> Result<Self, ConfigError> {
        let head = layer.origin(raw.span().start);
        let raw = raw.get_ref();
        let Some(path) = &raw.path else {
            let why = "it is the folder to watch".to_owned();
            return Err(ConfigError::Missing { from: head, key: schema::named("watch", "path"), why });
        };
        let from = layer.origin(path.span().start);
        let folder = beside(&from, path.get_ref());
        if folder.starts_with(store) || store.starts_with(&folder) {
            return Err(refused(from, "path", format!("{:?}, which overlaps the store", folder)));
        }
        let settle_s = number(layer, raw.settle_s.as_ref())?;
        Ok(Self {
            path: folder,
            prefix: match &raw.prefix {
                Some(given) => prefix(given.get_ref()).ok_or_else(|| {
                    refused(layer.origin(given.span().start), "prefix", format!("{:?}", given.get_ref()))
                })?,
                None => String::new(),
            },
            include: patterns(layer, "include", raw.include.as_ref())?,
            exclude: patterns(layer, "exclude", raw.exclude.as_ref())?,
            recursive: raw.recursive.as_ref().is_none_or(|given| *given.get_ref()),
            settle_s,
            after: raw.after.as_ref().map(|given| *given.get_ref()).unwrap_or_default(),
        })
    }
}

/// A name prefix in its normal form, empty or ending in `/`; `None` if no name could begin so.
pub(super) fn prefix(text: &str) -> Option<String> {
    let trimmed = text.strip_suffix('/').unwrap_or(text);
    if text.is_empty() {
        return Some(String::new());
    }
    Name::parse(trimmed).ok().map(|name| format!("{}/", name.as_str()))
}

fn refused(from: Origin, name: &'static str, found: String) -> ConfigError {
    let allowed = schema::allowed("watch", name).to_owned();
    ConfigError::Value { from, key: schema::named("watch", name), found, allowed }
}

fn number(layer: &Layer, given: Option<&Spanned<u64>>) -> Result<u64, ConfigError> {
    match given {
        None => Ok(SETTLE_S_DEFAULT),
        Some(given) if *given.get_ref() <= 3_600 => Ok(*given.get_ref()),
        Some(given) => {
            Err(refused(layer.origin(given.span().start), "settle_s", given.get_ref().to_string()))
        }
    }
}

fn patterns(
    layer: &Layer,
    name: &'static str,
    given: Option<&Spanned<Vec<String>>>,
) -> Result<GlobSet, ConfigError> {
    let Some(given) = given else { return Ok(GlobSet::empty()) };
    let from = || layer.origin(given.span().start);
    let texts = given.get_ref();
    if texts.len() > PATTERNS_MAX {
        return Err(refused(from(), name, format!("{} patterns, over {PATTERNS_MAX}", texts.len())));
    }
    let mut set = GlobSetBuilder::new();
    for text in texts {
        set.add(Glob::new(text).map_err(|_| refused(from(), name, format!("{text:?}")))?);
    }
    set.build().map_err(|error| refused(from(), name, error.to_string()))
}
