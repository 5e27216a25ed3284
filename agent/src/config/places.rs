//! Where things lie: the configuration file, the store, the socket; and the layers above the file.
//!
//! Duty: the search for the file and the defaults of paths, from variables passed in, so that tests
//! have an environment of their own. Refuses: unknown `LARDER_NODE_`, `LARDER_STORAGE_` and
//! `LARDER_MQTT_` variables, since a typing error there would be silent otherwise.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::error::{ConfigError, Origin};
use super::raw::Layer;
use super::schema::{self, Key};

const SYSTEM_CONFIG: &str = "/etc/larder/larder.toml";
const SYSTEM_STORE: &str = "/var/lib/larder";
const SYSTEM_SOCKET: &str = "/run/larder/larder.sock";
/// Where systemd puts the secrets that a unit asks for by `LoadCredential=`.
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";
/// Variables that are shorter than `LARDER_<SECTION>_<KEY>`.
const SHORT: [(&str, &str); 4] = [
    ("LARDER_STORE", "store"),
    ("LARDER_PROFILE", "profile"),
    ("LARDER_BOARD", "board"),
    ("LARDER_SOCKET", "socket"),
];
const SECTIONS: [&str; 3] = ["node", "storage", "mqtt"];

/// What the command line says over the environment and the file.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `--config`
    pub config: Option<PathBuf>,
    /// `--store`
    pub store: Option<PathBuf>,
    /// `--socket`
    pub socket: Option<PathBuf>,
    /// `--name`
    pub name: Option<String>,
    /// `--role`
    pub role: Option<String>,
    /// `--profile`
    pub profile: Option<String>,
    /// `--board`
    pub board: Option<String>,
    /// `--kernels`
    pub kernels: Option<String>,
    /// `--limit`
    pub limit: Option<String>,
    /// `--embedded-broker`
    pub embedded_broker: bool,
    /// `--log`
    pub log: Option<String>,
}

impl Overrides {
    /// The flags as a layer. A path that is not UTF-8 is shown with marks and then not found.
    pub(super) fn layer(&self) -> Result<Layer, ConfigError> {
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.to_string_lossy().into_owned());
        let values = [
            ("node", "store", "--store", path(&self.store)),
            ("node", "socket", "--socket", path(&self.socket)),
            ("node", "name", "--name", self.name.clone()),
            ("node", "role", "--role", self.role.clone()),
            ("node", "profile", "--profile", self.profile.clone()),
            ("node", "board", "--board", self.board.clone()),
            ("node", "kernels", "--kernels", self.kernels.clone()),
            ("storage", "limit", "--limit", self.limit.clone()),
            ("mqtt", "embedded_broker", "--embedded-broker", self.embedded_broker.then(|| "true".to_owned())),
        ];
        Layer::of_values(values.into_iter().filter_map(|(section, name, flag, value)| {
            let key = schema::keys_of(section).find(|key| key.name == name)?;
            Some((key, value?, Origin::Flag(flag)))
        }))
    }
}

/// The process environment, as far as configuration reads it.
#[derive(Clone, Debug)]
pub struct Environment {
    variables: BTreeMap<String, String>,
    superuser: bool,
    system_config: PathBuf,
    host: String,
}

impl Environment {
    /// This process's.
    #[must_use]
    pub fn of_process() -> Self {
        let wanted = |name: &str| {
            name.starts_with("LARDER_") || name.starts_with("XDG_") || ["HOME", CREDENTIALS].contains(&name)
        };
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, value)| wanted(name) && !value.is_empty())
            .collect();
        Self {
            variables,
            superuser: rustix::process::geteuid().is_root(),
            system_config: PathBuf::from(SYSTEM_CONFIG),
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        }
    }

    /// An environment of its own, for tests and the demo: these variables, an ordinary user, and
    /// no system-wide configuration.
    pub fn isolated<'a>(variables: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        Self {
            variables: variables
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            superuser: false,
            system_config: PathBuf::from("/nonexistent/larder.toml"),
            host: "isolated".to_owned(),
        }
    }

    pub(super) fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str)
    }

    pub(super) fn host(&self) -> &str {
        &self.host
    }

    /// The variables as a layer; a short form counts before the long one.
    pub(super) fn layer(&self) -> Result<Layer, ConfigError> {
        let mut values: BTreeMap<(&str, &str), (&Key, String, Origin)> = BTreeMap::new();
        for (variable, value) in &self.variables {
            let Some(key) = self.key(variable)? else { continue };
            let short = SHORT.iter().any(|(name, _)| name == variable);
            if short || !values.contains_key(&(key.section, key.name)) {
                let origin = Origin::Environment(variable.clone());
                values.insert((key.section, key.name), (key, value.clone(), origin));
            }
        }
        Layer::of_values(values.into_values())
    }

    fn key(&self, variable: &str) -> Result<Option<&'static Key>, ConfigError> {
        if let Some((_, name)) = SHORT.iter().find(|(short, _)| *short == variable) {
            return Ok(schema::keys_of("node").find(|key| key.name == *name));
        }
        let lower = variable.to_ascii_lowercase();
        let Some((section, name)) = lower
            .strip_prefix("larder_")
            .and_then(|rest| rest.split_once('_'))
            .filter(|(s, _)| SECTIONS.contains(s))
        else {
            return Ok(None);
        };
        if let Some(key) = schema::keys_of(section).find(|key| key.name == name) {
            return Ok(Some(key));
        }
        let unknown = schema::unknown_key(0, section, name);
        Err(ConfigError::UnknownKey {
            from: Origin::Environment(variable.to_owned()),
            key: unknown.key,
            nearest: unknown.nearest,
            allowed: unknown.allowed,
        })
    }

    /// Where `/proc` and `/sys` of the machine lie: a recorded tree where `LARDER_MACHINE` names one.
    #[must_use]
    pub fn machine_root(&self) -> PathBuf {
        self.variable("LARDER_MACHINE").map_or_else(|| PathBuf::from("/"), PathBuf::from)
    }

    /// Where a secret is to be read: the credential of the file's name, where the service manager gave one of more
    /// than one byte (the unit's mark for none), else the file. So one configuration serves the service, which
    /// may not read the file, and root.
    pub(super) fn secret(&self, file: PathBuf) -> PathBuf {
        let credential =
            self.variable(CREDENTIALS).zip(file.file_name()).map(|(dir, name)| Path::new(dir).join(name));
        credential.filter(|path| path.metadata().is_ok_and(|found| found.len() > 1)).unwrap_or(file)
    }

    /// Where `larder init` writes and where an ordinary search ends.
    #[must_use]
    pub fn config_path(&self) -> Option<PathBuf> {
        if self.superuser {
            return Some(self.system_config.clone());
        }
        self.xdg("XDG_CONFIG_HOME", ".config").map(|dir| dir.join("larder/larder.toml"))
    }

    /// The file to read: the one asked for, else one that exists in the usual places.
    pub(super) fn search(&self, overrides: &Overrides) -> Option<PathBuf> {
        let asked = overrides.config.clone().or_else(|| self.variable("LARDER_CONFIG").map(PathBuf::from));
        asked.or_else(|| {
            let usual = [Some(self.system_config.clone()), self.config_path()];
            usual.into_iter().flatten().find(|path| path.exists())
        })
    }

    /// Whether the whole machine's places are meant, not a user's.
    fn is_system(&self, config: Option<&Path>) -> bool {
        self.superuser || config == Some(&self.system_config)
    }

    pub(super) fn store(&self, config: Option<&Path>) -> Result<PathBuf, ConfigError> {
        if self.is_system(config) {
            return Ok(PathBuf::from(SYSTEM_STORE));
        }
        self.xdg("XDG_DATA_HOME", ".local/share")
            .map(|dir| dir.join("larder"))
            .ok_or(ConfigError::NoPlace { what: "the store", key: "[node] store or --store" })
    }

    pub(super) fn socket(&self, config: Option<&Path>, store: &Path) -> PathBuf {
        if self.is_system(config) {
            return PathBuf::from(SYSTEM_SOCKET);
        }
        let dir = self.variable("XDG_RUNTIME_DIR").map_or(store, Path::new);
        dir.join("larder.sock")
    }

    fn xdg(&self, variable: &str, below_home: &str) -> Option<PathBuf> {
        let set = self.variable(variable).map(PathBuf::from);
        set.or_else(|| self.variable("HOME").map(|home| Path::new(home).join(below_home)))
    }
}
