//! A new node's files: a commented configuration and a key, and the stanza its peers need.
//!
//! Refuses: to touch anything that exists. Fails: [`InitError`]; what this call had made by then is
//! removed again.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use larder_core::id::NodeName;
use larder_core::role::Role;

use super::keys::{KeyError, NodeKey, PublicKey, write_new};

const TEMPLATE: &str = include_str!("template.toml");
/// The key's file, beside the configuration.
pub const KEY_FILE: &str = "node.key";

/// What a new node is to be.
#[derive(Clone, Debug)]
pub struct Init {
    /// The configuration file to write; the key goes beside it.
    pub config: PathBuf,
    /// The node's name.
    pub name: NodeName,
    /// Its fleet; spelled like a node's name.
    pub fleet: NodeName,
    /// Its role.
    pub role: Role,
}

/// What was made.
#[derive(Clone, Debug)]
pub struct Initialised {
    /// The configuration file.
    pub config: PathBuf,
    /// The key's file.
    pub key: PathBuf,
    /// The public key.
    pub public: PublicKey,
    /// The `[[peer]]` stanza to paste on nodes that are to trust this one.
    pub stanza: String,
}

/// Why a node was not made.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// There is one already.
    #[error("{} exists and is left alone: move it away first, or name another with --config", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The folder or file cannot be made.
    #[error("{} cannot be written: {reason}", path.display())]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        reason: io::Error,
    },
    /// The key cannot be made.
    #[error(transparent)]
    Key(#[from] KeyError),
}

impl Init {
    /// Writes the files.
    ///
    /// # Errors
    /// Something exists, or cannot be written.
    pub fn write(&self) -> Result<Initialised, InitError> {
        let folder = self.config.parent().unwrap_or(Path::new(""));
        let key_path = folder.join(KEY_FILE);
        for path in [&self.config, &key_path] {
            if path.symlink_metadata().is_ok() {
                return Err(InitError::Exists { path: path.clone() });
            }
        }
        let unwritable = |path: &Path, reason| InitError::Unwritable { path: path.to_owned(), reason };
        if !folder.as_os_str().is_empty() {
            let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(folder);
            made.map_err(|reason| unwritable(folder, reason))?;
        }
        let key = NodeKey::generate()?;
        key.write_new(&key_path)?;
        if let Err(reason) = write_new(&self.config, self.text().as_bytes(), 0o644) {
            // a key without its configuration would stop the next attempt
            let _ = fs::remove_file(&key_path);
            return Err(unwritable(&self.config, reason));
        }
        let public = key.public();
        let stanza = stanza(&self.name, self.role, &public);
        Ok(Initialised { config: self.config.clone(), key: key_path, public, stanza })
    }

    fn text(&self) -> String {
        let defaults = self.role.defaults();
        let peer = if self.role == Role::Master { Role::Worker } else { Role::Master };
        [
            ("@NAME@", self.name.as_str()),
            ("@FLEET@", self.fleet.as_str()),
            ("@ROLE@", self.role.as_str()),
            ("@KEY@", KEY_FILE),
            ("@LIMIT@", &format!("{} GB", defaults.storage_limit_bytes / 1_000_000_000)),
            ("@EVICT@", defaults.evict.as_str()),
            ("@WATERMARK@", &defaults.clean_watermark_percent.to_string()),
            ("@PERIOD@", &defaults.clean_period_s.to_string()),
            ("@PEER@", peer.as_str()),
        ]
        .into_iter()
        .fold(TEMPLATE.to_owned(), |text, (mark, value)| text.replace(mark, value))
    }
}

/// The stanza that makes other nodes trust this one.
#[must_use]
pub fn stanza(name: &NodeName, role: Role, key: &PublicKey) -> String {
    format!("[[peer]]\nname = \"{name}\"\nrole = \"{role}\"\nkey = \"{key}\"\n")
}

#[cfg(test)]
mod tests {
    use larder_hal::board::Machine;

    use super::*;
    use crate::config::{Config, Environment, Overrides, schema};

    fn init(folder: &Path, role: Role) -> Init {
        let name = "attic".parse().unwrap();
        Init { config: folder.join("etc/larder.toml"), name, fleet: "home".parse().unwrap(), role }
    }

    fn load(path: &Path) -> Config {
        let machine = Machine { compatible: vec![], arch: "aarch64", memory_bytes: None, page_bytes: None };
        let overrides = Overrides { config: Some(path.to_owned()), ..Overrides::default() };
        Config::load(&overrides, &Environment::isolated([("HOME", "/home/ann")]), &machine).unwrap()
    }

    /// The template with every commented key made real.
    fn uncommented(text: &str, public: &PublicKey) -> String {
        let key = |line: &str| {
            let name = line.split(" = ").next().unwrap_or_default();
            let plain = name.chars().all(|c| c.is_ascii_lowercase() || c == '_') && line.contains(" = ");
            plain || line.starts_with('[')
        };
        let lines = text.lines().map(|line| line.strip_prefix("# ").filter(|line| key(line)).unwrap_or(line));
        lines
            .collect::<Vec<_>>()
            .join("\n")
            .replace("ed25519:...", &public.to_string())
            .replace("\"attic\"\nrole = \"m", "\"cellar\"\nrole = \"m")
    }

    #[test]
    fn what_init_writes_for_each_role_loads_with_its_key() {
        for role in Role::ALL {
            let dir = tempfile::tempdir().unwrap();
            let made = init(dir.path(), role).write().unwrap();
            let config = load(&made.config);
            assert_eq!((config.name.as_str(), config.role.value), ("attic", role));
            assert_eq!(config.key, made.key);
            assert_eq!(NodeKey::load(&config.key).unwrap().public(), made.public);
        }
    }

    #[test]
    fn the_stanza_makes_a_peer_on_another_node() {
        let dir = tempfile::tempdir().unwrap();
        let master = init(dir.path(), Role::Master).write().unwrap();
        let path = dir.path().join("worker.toml");
        let stanza = master.stanza;
        fs::write(&path, format!("[node]\nname = \"cam\"\n[mqtt]\nhost = \"localhost\"\n{stanza}")).unwrap();
        let config = load(&path);
        assert_eq!(config.peers.len(), 1);
        assert_eq!((config.peers[0].role, config.peers[0].key), (Role::Master, master.public));
    }

    #[test]
    fn the_template_shows_every_key_and_each_works_when_uncommented() {
        let dir = tempfile::tempdir().unwrap();
        let made = init(dir.path(), Role::Worker).write().unwrap();
        let text = uncommented(&fs::read_to_string(&made.config).unwrap(), &made.public);
        let document: toml::Table = text.parse().unwrap();
        for section in ["node", "storage", "mqtt", "peer", "watch"] {
            let section_value = &document[section];
            let value = section_value.as_array().map_or(section_value, |list| &list[0]);
            let table = value.as_table().unwrap();
            for key in schema::keys_of(section) {
                assert!(table.contains_key(key.name), "{section}.{} is missing in the template", key.name);
            }
        }
        let path = dir.path().join("full.toml");
        fs::write(&path, text).unwrap();
        let config = load(&path);
        assert_eq!((config.peers.len(), config.watches.len()), (1, 1));
        assert!(
            config.watches[0].takes(Path::new("a/b.jpg")) && !config.watches[0].takes(Path::new("b.tmp"))
        );
    }

    #[test]
    fn nothing_that_exists_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let made = init(dir.path(), Role::Worker).write().unwrap();
        let before = fs::read_to_string(&made.config).unwrap();
        let again = init(dir.path(), Role::Master).write().unwrap_err().to_string();
        assert!(again.contains("larder.toml exists"), "{again}");
        fs::remove_file(&made.config).unwrap();
        let again = init(dir.path(), Role::Master).write().unwrap_err().to_string();
        assert!(again.contains("node.key exists"), "{again}");
        assert!(before.contains("role = \"worker\""));
    }
}
