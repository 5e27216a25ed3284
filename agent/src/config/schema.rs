//! The keys of a configuration: one table that errors, environment variables and the template of
//! `larder init` agree on, and the search for the place of a mistake in a file.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

/// How a key's value is written when it comes as text, from a flag or the environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Number,
    Switch,
    /// Texts; separated by commas in the environment.
    List,
}

/// One key.
pub(super) struct Key {
    pub(super) section: &'static str,
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) allowed: &'static str,
}

const fn key(section: &'static str, name: &'static str, kind: Kind, allowed: &'static str) -> Key {
    Key { section, name, kind, allowed }
}

const NODE_NAME: &str = "1 to 64 characters of a-z 0-9 . _ -, starting with a letter or digit";
const PATH: &str = "a path as text";
const ROLE: &str = "\"master\", \"worker\" or \"leecher\"";
const SIZE: &str = "a size such as \"10 GB\" or \"512 MiB\"";
const SWITCH: &str = "true or false";
const TEXT: &str = "a text in quotes";

use Kind::{List, Number, Switch, Text};

/// Every key there is.
pub(super) const KEYS: [Key; 41] = [
    key("node", "name", Text, NODE_NAME),
    key("node", "fleet", Text, NODE_NAME),
    key("node", "role", Text, ROLE),
    key("node", "key", Text, PATH),
    key("node", "store", Text, PATH),
    key("node", "socket", Text, "a path of at most 107 bytes"),
    key("node", "profile", Text, "the name of a profile or the path of a profile file"),
    key("node", "board", Text, "\"auto\", the name of a board or the path of a board file"),
    key("node", "kernels", Text, "\"auto\" or the name of a level this machine has, such as \"portable\""),
    key(
        "node",
        "subscribe",
        List,
        "a list of at most 64 name prefixes such as [\"maps/\"]; [\"\"] is everything",
    ),
    key("node", "commands", Switch, SWITCH),
    key("storage", "limit", Text, "a size of at least \"16 MB\", such as \"10 GB\""),
    key("storage", "reserve", Text, SIZE),
    key("storage", "segment", Text, "1 MiB to 1 GiB in multiples of 64 KiB, at most an eighth of the quota"),
    key("storage", "cache", Text, "a size of at least \"256 KiB\", such as \"16 MiB\""),
    key("storage", "evict", Text, "\"never\" or, on a worker or a leecher, \"oldest\""),
    key("storage", "clean_watermark_percent", Number, "a number from 1 to 99"),
    key("storage", "clean_period_s", Number, "a number from 1 to 2592000"),
    key("mqtt", "host", Text, "a host name or address"),
    key("mqtt", "port", Number, "a number from 1 to 65535"),
    key("mqtt", "ca", Text, PATH),
    key("mqtt", "certificate", Text, PATH),
    key("mqtt", "key", Text, PATH),
    key("mqtt", "user", Text, TEXT),
    key("mqtt", "password_file", Text, PATH),
    key("mqtt", "keep_alive_s", Number, "a number from 5 to 65535"),
    key("mqtt", "embedded_broker", Switch, SWITCH),
    key("mqtt", "listen", Text, "an address and a port such as \"127.0.0.1:1883\""),
    key("peer", "name", Text, NODE_NAME),
    key("peer", "role", Text, ROLE),
    key("peer", "key", Text, "\"ed25519:\" and 44 characters of base64, as `larder init` prints it"),
    key("watch", "path", Text, "the path of a folder outside the store"),
    key("watch", "prefix", Text, "the start of a name, such as \"camera/\": relative, without . or .."),
    key("watch", "include", List, "a list of patterns such as [\"*.jpg\"]"),
    key("watch", "exclude", List, "a list of patterns such as [\"*.tmp\"]"),
    key("watch", "recursive", Switch, SWITCH),
    key("watch", "settle_s", Number, "a number of seconds from 0 to 3600"),
    key("watch", "after", Text, "\"keep\" or \"delete-after-ack\""),
    key("node", "", Text, "one table headed [node]"),
    key("storage", "", Text, "one table headed [storage]"),
    key("mqtt", "", Text, "one table headed [mqtt]"),
];

/// Sections that are lists of tables.
const LISTS: [(&str, &str); 2] = [
    ("peer", "tables headed [[peer]], one for each peer"),
    ("watch", "tables headed [[watch]], one for each folder, on a master or a worker"),
];

/// A mistake found by its place.
pub(super) struct Found {
    /// The key with its section, as people write it.
    pub(super) key: String,
    pub(super) allowed: &'static str,
}

/// A key no table knows.
pub(super) struct Unknown {
    pub(super) at: usize,
    pub(super) key: String,
    pub(super) nearest: Option<String>,
    pub(super) allowed: String,
}

pub(super) fn named(section: &str, name: &str) -> String {
    let bracketed = if is_list(section) { format!("[[{section}]]") } else { format!("[{section}]") };
    if name.is_empty() { bracketed } else { format!("{bracketed} {name}") }
}

fn is_list(section: &str) -> bool {
    LISTS.iter().any(|&(list, _)| list == section)
}

fn is_section(name: &str) -> bool {
    KEYS.iter().any(|key| key.section == name)
}

pub(super) fn keys_of(section: &str) -> impl Iterator<Item = &'static Key> {
    KEYS.iter().filter(move |key| key.section == section && !key.name.is_empty())
}

/// What a key allows.
pub(super) fn allowed(section: &str, name: &str) -> &'static str {
    KEYS.iter()
        .find(|key| key.section == section && key.name == name)
        .map(|key| key.allowed)
        .or_else(|| LISTS.iter().find(|&&(list, _)| list == section).map(|&(_, allowed)| allowed))
        .unwrap_or("a known key")
}

/// The tables of a section: one, or each of a list.
fn tables<'a, 'i>(value: &'a DeValue<'i>) -> Vec<&'a DeTable<'i>> {
    match value {
        DeValue::Table(table) => vec![table],
        DeValue::Array(list) => list.iter().filter_map(|item| item.get_ref().as_table()).collect(),
        DeValue::String(_)
        | DeValue::Integer(_)
        | DeValue::Float(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_) => Vec::new(),
    }
}

/// The first key that no table knows.
pub(super) fn unknown(document: &DeTable<'_>) -> Option<Unknown> {
    let mut found = Vec::new();
    for (section, value) in document {
        if !is_section(section.get_ref()) {
            found.push(unknown_section(section.span().start, section.get_ref()));
            continue;
        }
        for table in tables(value.get_ref()) {
            for (name, _) in table {
                if !keys_of(section.get_ref()).any(|key| key.name == name.get_ref()) {
                    found.push(unknown_key(name.span().start, section.get_ref(), name.get_ref()));
                }
            }
        }
    }
    found.into_iter().min_by_key(|unknown| unknown.at)
}

fn unknown_section(at: usize, name: &str) -> Unknown {
    let sections = ["node", "storage", "mqtt", "peer", "watch"];
    let nearest = elsewhere(name, "")
        .or_else(|| nearest(name, sections.into_iter()).map(|section| named(section, "")))
        .or_else(|| nearest_anywhere(name));
    let allowed = sections.map(|section| named(section, "")).join(", ");
    Unknown { at, key: name.to_owned(), nearest, allowed }
}

pub(super) fn unknown_key(at: usize, section: &str, name: &str) -> Unknown {
    let names = || keys_of(section).map(|key| key.name);
    let near = nearest(name, names())
        .map(|near| named(section, near))
        .or_else(|| elsewhere(name, section))
        .or_else(|| nearest_anywhere(name));
    let allowed = names().collect::<Vec<_>>().join(", ");
    Unknown { at, key: named(section, name), nearest: near, allowed }
}

/// The same key in another section.
fn elsewhere(name: &str, section: &str) -> Option<String> {
    let key = KEYS.iter().find(|key| key.name == name && key.section != section && !name.is_empty())?;
    Some(named(key.section, key.name))
}

fn nearest_anywhere(name: &str) -> Option<String> {
    let near = nearest(name, KEYS.iter().map(|key| key.name).filter(|name| !name.is_empty()))?;
    elsewhere(near, "")
}

/// The candidate with the fewest typing errors from `name`, if they are few for its length, or one
/// that it begins or that begins it.
pub(super) fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let (distance, near) = candidates
        .map(|candidate| {
            let prefix = name.len() >= 3 && (candidate.starts_with(name) || name.starts_with(candidate));
            (if prefix { 1 } else { strsim::damerau_levenshtein(name, candidate) }, candidate)
        })
        .min_by_key(|&(distance, _)| distance)?;
    (distance <= 1.max(name.len() / 3)).then_some(near)
}

/// The key whose value holds the place of an error.
pub(super) fn locate(document: &DeTable<'_>, place: &Range<usize>) -> Option<Found> {
    for (section, value) in document {
        for table in tables(value.get_ref()) {
            for (name, value) in table {
                if value.span().start <= place.start && place.end <= value.span().end {
                    let (section, name) = (section.get_ref(), name.get_ref());
                    return Some(Found { key: named(section, name), allowed: allowed(section, name) });
                }
            }
        }
    }
    let (section, _) = document.iter().find(|(key, value)| {
        let span = key.span().start.min(value.span().start)..value.span().end.max(key.span().end);
        span.start <= place.start && place.end <= span.end
    })?;
    Some(Found { key: section.get_ref().to_string(), allowed: allowed(section.get_ref(), "") })
}

/// The line of a byte in a text, from 1.
pub(super) fn line(text: &str, at: usize) -> usize {
    text.bytes().take(at).filter(|&byte| byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_key_is_named_and_a_strange_one_is_not_guessed() {
        let names = || keys_of("mqtt").map(|key| key.name);
        assert_eq!(nearest("hots", names()), Some("host"));
        assert_eq!(nearest("password", names()), Some("password_file"));
        assert_eq!(nearest("keepalive_s", names()), Some("keep_alive_s"));
        assert_eq!(nearest("zebra", names()), None);
    }

    #[test]
    fn a_key_in_the_wrong_section_is_sent_to_the_right_one() {
        assert_eq!(unknown_key(0, "storage", "profile").nearest.as_deref(), Some("[node] profile"));
        assert_eq!(unknown_section(0, "role").nearest.as_deref(), Some("[node] role"));
        assert_eq!(unknown_section(0, "peers").nearest.as_deref(), Some("[[peer]]"));
    }
}
