//! The configuration as files write it, and the layers it comes in: flags, environment, file.
//!
//! Every layer is TOML: a flag or variable becomes a line of its own, so one parser, one table of
//! keys and one set of errors serve all three. Bound: 1 MiB of text.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use larder_core::id::NodeName;
use larder_core::role::{Evict, Role};
use serde::Deserialize;
use toml::Spanned;
use toml::de::DeTable;

use super::error::{ConfigError, Origin, Sourced};
use super::keys::PublicKey;
use super::schema::{self, Kind};
use super::size::Size;
use super::watch::After;

pub(super) const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// Longest piece of a wrong value that an error quotes.
const QUOTE_CHARS_MAX: usize = 60;

type Given<T> = Option<Spanned<T>>;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Raw {
    pub(super) node: RawNode,
    pub(super) storage: RawStorage,
    pub(super) mqtt: Given<RawMqtt>,
    pub(super) peer: Vec<Spanned<RawPeer>>,
    pub(super) watch: Vec<Spanned<RawWatch>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawNode {
    pub(super) name: Given<NodeName>,
    pub(super) fleet: Given<NodeName>,
    pub(super) role: Given<Role>,
    pub(super) key: Given<PathBuf>,
    pub(super) store: Given<PathBuf>,
    pub(super) socket: Given<PathBuf>,
    pub(super) profile: Given<String>,
    pub(super) board: Given<String>,
    pub(super) subscribe: Given<Vec<String>>,
    pub(super) commands: Given<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawStorage {
    pub(super) limit: Given<Size>,
    pub(super) reserve: Given<Size>,
    pub(super) segment: Given<Size>,
    pub(super) cache: Given<Size>,
    pub(super) evict: Given<Evict>,
    pub(super) clean_watermark_percent: Given<u8>,
    pub(super) clean_period_s: Given<u32>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawMqtt {
    pub(super) host: Given<String>,
    pub(super) port: Given<u16>,
    pub(super) ca: Given<PathBuf>,
    pub(super) certificate: Given<PathBuf>,
    pub(super) key: Given<PathBuf>,
    pub(super) user: Given<String>,
    pub(super) password_file: Given<PathBuf>,
    pub(super) keep_alive_s: Given<u64>,
    pub(super) embedded_broker: Given<bool>,
    pub(super) listen: Given<std::net::SocketAddr>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawPeer {
    pub(super) name: Given<NodeName>,
    pub(super) role: Given<Role>,
    pub(super) key: Given<PublicKey>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawWatch {
    pub(super) path: Given<PathBuf>,
    pub(super) prefix: Given<String>,
    pub(super) include: Given<Vec<String>>,
    pub(super) exclude: Given<Vec<String>>,
    pub(super) recursive: Given<bool>,
    pub(super) settle_s: Given<u64>,
    pub(super) after: Given<After>,
}

/// Where the text of a layer came from.
#[derive(Debug)]
enum Source {
    File(PathBuf),
    /// One origin a line.
    Lines(Vec<Origin>),
}

/// One layer: what it says, and how to tell where.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) raw: Raw,
    text: String,
    source: Source,
}

impl Layer {
    /// Reads a configuration file.
    pub(super) fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = read_text(path)?;
        Self::parse(text, Source::File(path.to_owned()))
    }

    /// Makes a layer of single values; texts become what the key's kind says, or stay text and are
    /// then refused as a value of that key.
    pub(super) fn of_values<'a>(
        values: impl IntoIterator<Item = (&'a schema::Key, String, Origin)>,
    ) -> Result<Self, ConfigError> {
        let mut text = String::new();
        let mut origins = Vec::new();
        for (key, value, origin) in values {
            let literal = literal(key.kind, &value);
            text.push_str(&format!("{}.{} = {literal}\n", key.section, key.name));
            origins.push(origin);
        }
        Self::parse(text, Source::Lines(origins))
    }

    fn parse(text: String, source: Source) -> Result<Self, ConfigError> {
        let mut layer = Self { raw: Raw::default(), text, source };
        let document = DeTable::parse(&layer.text).map_err(|error| layer.syntax(&error))?;
        if let Some(unknown) = schema::unknown(document.get_ref()) {
            let from = layer.origin(unknown.at);
            let schema::Unknown { key, nearest, allowed, .. } = unknown;
            return Err(ConfigError::UnknownKey { from, key, nearest, allowed });
        }
        let raw = toml::from_str(&layer.text).map_err(|error| layer.value(document.get_ref(), &error))?;
        layer.raw = raw;
        Ok(layer)
    }

    fn syntax(&self, error: &toml::de::Error) -> ConfigError {
        let from = self.origin(error.span().map_or(0, |span| span.start));
        ConfigError::Syntax { from, message: error.message().to_owned() }
    }

    fn value(&self, document: &DeTable<'_>, error: &toml::de::Error) -> ConfigError {
        let Some(span) = error.span() else { return self.syntax(error) };
        let Some(found) = schema::locate(document, &span) else { return self.syntax(error) };
        let quote = self.text.get(span.clone()).unwrap_or_default();
        ConfigError::Value {
            from: self.origin(span.start),
            key: found.key,
            found: shortened(quote),
            allowed: found.allowed.to_owned(),
        }
    }

    /// Where the byte at `at` came from.
    pub(super) fn origin(&self, at: usize) -> Origin {
        let line = schema::line(&self.text, at);
        match &self.source {
            Source::File(path) => Origin::File { path: path.clone(), line },
            Source::Lines(origins) => {
                origins.get(line - 1).cloned().unwrap_or(Origin::Machine("command line or environment"))
            }
        }
    }
}

fn shortened(quote: &str) -> String {
    let line = quote.lines().next().unwrap_or_default();
    match line.char_indices().nth(QUOTE_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}

fn literal(kind: Kind, text: &str) -> String {
    // JSON's escapes are a part of TOML's
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    match kind {
        Kind::Number if text.parse::<i64>().is_ok() => text.to_owned(),
        Kind::Switch if text == "true" || text == "false" => text.to_owned(),
        Kind::List => {
            let items: Vec<_> = text.split(',').filter(|item| !item.is_empty()).map(quoted).collect();
            format!("[{}]", items.join(", "))
        }
        Kind::Text | Kind::Number | Kind::Switch => quoted(text),
    }
}

pub(super) fn read_text(path: &Path) -> Result<String, ConfigError> {
    let unreadable = |reason| ConfigError::Unreadable { path: path.to_owned(), reason };
    let mut text = String::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(CONFIG_BYTES_MAX + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > CONFIG_BYTES_MAX {
        return Err(ConfigError::TooLarge { path: path.to_owned(), max: CONFIG_BYTES_MAX });
    }
    Ok(text)
}

/// The layers, strongest first.
#[derive(Debug)]
pub(super) struct Layers(pub(super) Vec<Layer>);

impl Layers {
    /// The strongest value of a key.
    pub(super) fn pick<T: Clone>(&self, get: impl Fn(&Raw) -> Option<&Spanned<T>>) -> Option<Sourced<T>> {
        self.0.iter().find_map(|layer| {
            let given = get(&layer.raw)?;
            Some(Sourced::new(given.get_ref().clone(), layer.origin(given.span().start)))
        })
    }

    /// The strongest value of a key that is a path; in a file it is relative to the file.
    pub(super) fn pick_path(
        &self,
        get: impl Fn(&Raw) -> Option<&Spanned<PathBuf>>,
    ) -> Option<Sourced<PathBuf>> {
        self.pick(get).map(|given| {
            let from = given.from.clone();
            given.map(|path| beside(&from, &path))
        })
    }

    /// The strongest value of a key of `[mqtt]`.
    pub(super) fn pick_mqtt<T: Clone>(
        &self,
        get: impl Fn(&RawMqtt) -> Option<&Spanned<T>>,
    ) -> Option<Sourced<T>> {
        self.pick(|raw| raw.mqtt.as_ref().and_then(|mqtt| get(mqtt.get_ref())))
    }
}

/// A path from a file is relative to that file.
pub(super) fn beside(from: &Origin, path: &Path) -> PathBuf {
    match from {
        Origin::File { path: file, .. } => {
            file.parent().map_or_else(|| path.to_owned(), |dir| dir.join(path))
        }
        Origin::Flag(_)
        | Origin::Environment(_)
        | Origin::Profile(_)
        | Origin::Board(_)
        | Origin::Role(_)
        | Origin::Machine(_) => path.to_owned(),
    }
}
