//! Names of objects: relative paths in UTF-8, parts separated by `/`.
//!
//! A name may become a path on another machine, so whatever could leave a directory there is refused here,
//! on the way in, by deserialisation, and once more when it is turned into a path. A backslash is an ordinary
//! character: every node runs Linux, where it separates nothing, and files that hold one exist.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;

use crate::id::BlockId;

/// The longest name in bytes.
pub const NAME_BYTES_MAX: usize = 1024;
/// The longest part Linux file systems can hold; conflict names respect it so that they can be written out.
const PART_BYTES_MAX: usize = 255;

/// The checked name of an object.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

/// Why a text is not the name of an object.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NameError {
    /// Nothing at all.
    #[error("the name is empty")]
    Empty,
    /// Too long.
    #[error("a name has at most {NAME_BYTES_MAX} bytes, this has {0}")]
    TooLong(usize),
    /// Not UTF-8; only from raw bytes.
    #[error("name {0:?} is not UTF-8: rename the file")]
    NotUtf8(String),
    /// NUL or another control character.
    #[error("name {name:?} holds the control character {character:?}")]
    Control {
        /// What was given.
        name: String,
        /// The first such character.
        character: char,
    },
    /// Starts with `/`.
    #[error("name {0:?} is absolute: leave out the leading `/`")]
    Absolute(String),
    /// Ends with `/`.
    #[error("name {0:?} ends with `/`: it has to name a file, not a directory")]
    TrailingSlash(String),
    /// Two `/` in a row.
    #[error("name {0:?} has an empty part: write one `/` where it has two")]
    EmptyPart(String),
    /// A part that is `.` or `..`.
    #[error("name {name:?} has the part `{part}`, which could leave the directory")]
    DotPart {
        /// What was given.
        name: String,
        /// `.` or `..`.
        part: &'static str,
    },
}

impl Name {
    /// Checks a text.
    ///
    /// # Errors
    /// Names the first thing that is wrong.
    pub fn parse(text: &str) -> Result<Name, NameError> {
        check(text)?;
        Ok(Name(text.into()))
    }

    /// Checks raw bytes, as a directory listing or a message gives them.
    ///
    /// # Errors
    /// [`NameError::NotUtf8`], or what [`Name::parse`] finds.
    pub fn from_bytes(bytes: &[u8]) -> Result<Name, NameError> {
        if bytes.len() > NAME_BYTES_MAX {
            return Err(NameError::TooLong(bytes.len()));
        }
        match std::str::from_utf8(bytes) {
            Ok(text) => Name::parse(text),
            Err(_) => Err(NameError::NotUtf8(String::from_utf8_lossy(bytes).into_owned())),
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the name is `prefix` or lies below it; whole parts count, so `ab` is not under `a`. The empty
    /// prefix holds everything, a trailing `/` changes nothing.
    #[must_use]
    pub fn under(&self, prefix: &str) -> bool {
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        match self.0.strip_prefix(prefix) {
            Some(rest) => prefix.is_empty() || rest.is_empty() || rest.starts_with('/'),
            None => false,
        }
    }

    /// The name under which the losing version of this name is kept: `<name>.conflict-<8 hex of root>`. When
    /// that is too long, the last part (and then the whole) is cut at a character, the same way everywhere.
    #[must_use]
    pub fn conflict(&self, root: BlockId) -> Name {
        let suffix = format!(".conflict-{}", root.short());
        let last_start = self.0.rfind('/').map_or(0, |slash| slash + 1);
        let room = (last_start + PART_BYTES_MAX).min(NAME_BYTES_MAX) - suffix.len();
        let kept = &self.0[..self.0.floor_char_boundary(room)];
        Name::parse(&format!("{kept}{suffix}"))
            .expect("a cut name ends in the suffix, which completes any part")
    }

    /// The name as a path relative to a directory, checked once more: what a store gave back is not trusted.
    ///
    /// # Errors
    /// What [`Name::parse`] would say.
    pub fn to_relative_path(&self) -> Result<&Path, NameError> {
        check(&self.0)?;
        Ok(Path::new(&*self.0))
    }
}

fn check(text: &str) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    if text.len() > NAME_BYTES_MAX {
        return Err(NameError::TooLong(text.len()));
    }
    if let Some(character) = text.chars().find(|c| c.is_control()) {
        return Err(NameError::Control { name: text.to_owned(), character });
    }
    if text.starts_with('/') {
        return Err(NameError::Absolute(text.to_owned()));
    }
    if text.ends_with('/') {
        return Err(NameError::TrailingSlash(text.to_owned()));
    }
    text.split('/').try_for_each(|part| match part {
        "" => Err(NameError::EmptyPart(text.to_owned())),
        "." => Err(NameError::DotPart { name: text.to_owned(), part: "." }),
        ".." => Err(NameError::DotPart { name: text.to_owned(), part: ".." }),
        _ => Ok(()),
    })
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Name, NameError> {
        Name::parse(text)
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(text: String) -> Result<Name, NameError> {
        Name::parse(&text)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Name({:?})", &*self.0)
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Name, D::Error> {
        Name::try_from(String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}
