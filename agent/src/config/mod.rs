//! The configuration: from TOML, environment and flags to checked values that steer the agent.
//!
//! Duty: find the file, read it, check it whole before anything starts, resolve what profile, board
//! and role say where it is silent ([`Config::effective`]), make a new node's files ([`init`]).
//! Refuses: unknown keys, wrong types, impossible values and combinations, plain MQTT beyond
//! loopback. Bound: 1 MiB a file, 16,384 peers, 256 watched folders.
//! Fails: [`ConfigError`], which names file, line, key and what is allowed there.
//!
//! The strongest says: flag, environment, configuration, profile, board, role.

mod effective;
mod error;
pub mod init;
mod keys;
mod library;
mod mqtt;
mod places;
mod raw;
mod schema;
mod size;
#[cfg(test)]
mod tests;
mod watch;

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use larder_core::board::{Board, choose};
use larder_core::id::NodeName;
use larder_core::limits::ANNOUNCE_ENTRIES_MAX;
use larder_core::profile::Profile;
use larder_core::role::{Role, may_announce, may_command, may_fetch};
use larder_hal::board::Machine;
use larder_kernels::Level;
use toml::Spanned;

pub use effective::Effective;
pub use error::{ConfigError, Origin, Setting, Sourced};
pub use keys::{KeyError, NoPublicKey, NodeKey, PublicKey, read_password};
pub use mqtt::{Login, Mqtt, Tls};
pub use places::{Environment, Overrides};
pub use size::{NoSize, Size};
pub use watch::{After, FOLDER_DEPTH_MAX, Watch};

use effective::Wishes;
use raw::{Layer, Layers, RawPeer};

const PEERS_MAX: usize = 16_384;
const WATCHES_MAX: usize = 256;
/// A socket's address in the kernel has 108 bytes, the last of them NUL.
const SOCKET_BYTES_MAX: usize = 107;
const FLEET_DEFAULT: &str = "home";

/// A checked configuration.
#[derive(Debug)]
pub struct Config {
    /// The file it was read from; without one everything is a default or an override.
    pub file: Option<PathBuf>,
    /// This node's name.
    pub name: NodeName,
    /// The topic level that the nodes of one fleet share; spelled like a node's name.
    pub fleet: NodeName,
    /// What the node is for.
    pub role: Sourced<Role>,
    /// The file of its secret key.
    pub key: PathBuf,
    /// The directory of its store.
    pub store: PathBuf,
    /// The socket commands come in by.
    pub socket: PathBuf,
    /// Name prefixes it fetches without being asked; each empty or ending in `/`.
    pub subscribe: Vec<String>,
    /// Whether commands over MQTT are obeyed.
    pub commands: bool,
    /// The link, if there is to be one.
    pub mqtt: Option<Mqtt>,
    /// Whom it trusts.
    pub peers: Vec<Peer>,
    /// Folders it takes files from.
    pub watches: Vec<Watch>,
    /// The power profile.
    pub profile: Sourced<Profile>,
    /// The profiles that can take its place, by its own reactions or by hand.
    pub other_profiles: Vec<Profile>,
    /// The board.
    pub board: Sourced<Board>,
    /// The instructions hashing and filter use.
    pub kernels: Sourced<Level>,
    /// Where the machine's `/proc` and `/sys` lie.
    pub machine_root: PathBuf,
    /// The log filter, if one is set.
    pub log: Option<String>,
    /// What the user should know and no value shows.
    pub notes: Vec<String>,
    wishes: Wishes,
}

/// A node this one trusts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub name: NodeName,
    /// Its role.
    pub role: Role,
    /// The key its messages are signed with.
    pub key: PublicKey,
}

impl Config {
    /// Finds, reads and checks the configuration for `machine`.
    ///
    /// # Errors
    /// The first thing that is wrong, by its place.
    pub fn load(
        overrides: &Overrides,
        environment: &Environment,
        machine: &Machine,
    ) -> Result<Self, ConfigError> {
        let file = environment.search(overrides);
        let mut layers = vec![overrides.layer()?, environment.layer()?];
        if let Some(path) = &file {
            layers.push(Layer::read(path)?);
        }
        let layers = Layers(layers);

        let mut notes = Vec::new();
        let board = board(&layers, machine, &mut notes)?;
        let (profile, other_profiles) = with_others(profile(&layers, &board)?)?;
        let kernels = kernels(&layers, &board.value, &mut notes)?;
        let role = layers.pick(|raw| raw.node.role.as_ref());
        let role = role.unwrap_or(Sourced::new(Role::Worker, Origin::Machine("default")));
        let name =
            layers.pick(|raw| raw.node.name.as_ref()).map_or_else(|| host_name(environment), |n| n.value);
        let store = match layers.pick_path(|raw| raw.node.store.as_ref()) {
            Some(path) => path.value,
            None => environment.store(file.as_deref())?,
        };
        let config = Self {
            fleet: layers.pick(|raw| raw.node.fleet.as_ref()).map_or_else(fleet_default, |fleet| fleet.value),
            key: environment.secret(key_path(
                &layers,
                file.as_deref().and_then(|path| path.parent()),
                &store,
            )),
            socket: socket(&layers, environment, file.as_deref(), &store)?,
            subscribe: subscribe(&layers)?,
            commands: layers.pick(|raw| raw.node.commands.as_ref()).is_none_or(|given| given.value),
            mqtt: mqtt::check(&layers, environment)?,
            peers: peers(&layers, &name, role.value)?,
            watches: watches(&layers, role.value, &store)?,
            kernels,
            wishes: Wishes::check(&layers, role.value)?,
            log: overrides.log.clone().or_else(|| environment.variable("LARDER_LOG").map(str::to_owned)),
            machine_root: environment.machine_root(),
            file,
            name,
            role,
            store,
            profile,
            other_profiles,
            board,
            notes,
        };
        config.check_masters()?;
        config.effective(machine, None)?;
        Ok(config)
    }

    /// A worker uploads to one master; a leecher fetches from some; a master needs nobody.
    fn check_masters(&self) -> Result<(), ConfigError> {
        if self.mqtt.is_none() {
            return Ok(());
        }
        let found = self.peers.iter().filter(|peer| peer.role == Role::Master).count();
        let (holds, needed) = match self.role.value {
            Role::Master => (true, "any number of"),
            Role::Worker => (found == 1, "exactly one"),
            Role::Leecher => (found >= 1, "at least one"),
        };
        if holds {
            Ok(())
        } else {
            Err(ConfigError::Masters { from: self.role.from.clone(), role: self.role.value, needed, found })
        }
    }
}

fn board(layers: &Layers, machine: &Machine, notes: &mut Vec<String>) -> Result<Sourced<Board>, ConfigError> {
    let wish = layers.pick(|raw| raw.node.board.as_ref());
    let board = match wish {
        Some(wish) if wish.value != "auto" => {
            let board = library::board(&wish)?;
            Sourced::new(board, wish.from)
        }
        Some(_) | None => {
            let boards = library::boards();
            let choice = choose(&boards, &machine.compatible, machine.arch)
                .expect("a test of the library finds one last resort among the built-in boards");
            notes.extend(choice.note());
            Sourced::new(choice.board.clone(), Origin::Machine("recognised"))
        }
    };
    if let Some(pages) = machine.page_bytes.filter(|&pages| pages != board.value.page_bytes) {
        let (name, usual) = (&board.value.name, board.value.page_bytes);
        notes.push(format!("board {name} usually has pages of {usual} bytes, this kernel's have {pages}"));
    }
    Ok(board)
}

fn profile(layers: &Layers, board: &Sourced<Board>) -> Result<Sourced<Profile>, ConfigError> {
    let by_board =
        || Sourced::new(board.value.default_profile.clone(), Origin::Board(board.value.name.clone()));
    let wish = layers.pick(|raw| raw.node.profile.as_ref()).unwrap_or_else(by_board);
    library::profile(&wish).map(|profile| Sourced::new(profile, wish.from))
}

/// The level that is forced, or the best of the board's.
fn kernels(layers: &Layers, board: &Board, notes: &mut Vec<String>) -> Result<Sourced<Level>, ConfigError> {
    match layers.pick(|raw| raw.node.kernels.as_ref()) {
        Some(Sourced { value, from }) if value != "auto" => match value.parse() {
            Ok(level) => Ok(Sourced::new(level, from)),
            Err(reason) => Err(ConfigError::Level { from, reason }),
        },
        Some(_) | None => {
            let level = board.level();
            if level == Level::PORTABLE && !board.kernels.is_empty() {
                let (name, usual) = (&board.name, board.kernels.join(" or "));
                notes.push(format!(
                    "board {name} usually has the instructions {usual}, this machine does not"
                ));
            }
            Ok(Sourced::new(level, Origin::Board(board.name.clone())))
        }
    }
}

/// Every built-in profile, and every one that a reaction of one of them leads to; reactions then say names.
fn with_others(first: Sourced<Profile>) -> Result<(Sourced<Profile>, Vec<Profile>), ConfigError> {
    let Sourced { value, from } = first;
    let mut profiles = vec![value];
    for name in library::profile_names() {
        add_profile(&mut profiles, library::profile(&Sourced::new(name.to_owned(), from.clone()))?);
    }
    let mut next = 0;
    while next < profiles.len() {
        let (name, mut on) = (profiles[next].name.clone(), profiles[next].on.clone());
        for (condition, wish) in on.each_mut() {
            // it stays: no library has to know a profile of one's own
            if *wish == name {
                continue;
            }
            let key = format!("[on] {condition} of profile {name}");
            let found = library::profile(&Sourced::new(wish.clone(), from.clone()));
            let profile = found.map_err(|error| of_reaction(error, key))?;
            wish.clone_from(&profile.name);
            add_profile(&mut profiles, profile);
        }
        profiles[next].on = on;
        next += 1;
    }
    let first = profiles.remove(0);
    Ok((Sourced::new(first, from), profiles))
}

fn add_profile(profiles: &mut Vec<Profile>, profile: Profile) {
    if profiles.iter().all(|known| known.name != profile.name) {
        profiles.push(profile);
    }
}

/// The same mistake, at the reaction that names the profile.
fn of_reaction(mut error: ConfigError, reaction: String) -> ConfigError {
    if let ConfigError::Value { key, .. } = &mut error {
        *key = reaction;
    }
    error
}

/// The machine's own name, as far as it can be a node's.
pub(crate) fn host_name(environment: &Environment) -> NodeName {
    let host = environment.host().split('.').next().unwrap_or_default().to_ascii_lowercase();
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '-' };
    let host: String = host.chars().map(plain).take(64).collect();
    host.trim_start_matches(['-', '_'])
        .parse()
        .unwrap_or_else(|_| "node".parse().expect("\"node\" is made of letters alone"))
}

fn fleet_default() -> NodeName {
    FLEET_DEFAULT.parse().expect("the default fleet is made of letters alone")
}

fn key_path(layers: &Layers, folder: Option<&Path>, store: &Path) -> PathBuf {
    let beside = || folder.unwrap_or(store).join(init::KEY_FILE);
    layers.pick_path(|raw| raw.node.key.as_ref()).map_or_else(beside, |path| path.value)
}

fn socket(
    layers: &Layers,
    environment: &Environment,
    file: Option<&Path>,
    store: &Path,
) -> Result<PathBuf, ConfigError> {
    let by_place = || Sourced::new(environment.socket(file, store), Origin::Machine("default"));
    let socket = layers.pick_path(|raw| raw.node.socket.as_ref()).unwrap_or_else(by_place);
    if socket.value.as_os_str().as_bytes().len() <= SOCKET_BYTES_MAX {
        return Ok(socket.value);
    }
    Err(refused(socket.from, "node", "socket", format!("{:?}", socket.value)))
}

fn subscribe(layers: &Layers) -> Result<Vec<String>, ConfigError> {
    let Some(given) = layers.pick(|raw| raw.node.subscribe.as_ref()) else { return Ok(Vec::new()) };
    let prefix = |text: &String| {
        watch::prefix(text)
            .ok_or_else(|| refused(given.from.clone(), "node", "subscribe", format!("[… {text:?} …]")))
    };
    if given.value.len() > ANNOUNCE_ENTRIES_MAX {
        let found = format!("{} prefixes", given.value.len());
        return Err(refused(given.from, "node", "subscribe", found));
    }
    given.value.iter().map(prefix).collect()
}

fn peers(layers: &Layers, own: &NodeName, role: Role) -> Result<Vec<Peer>, ConfigError> {
    let mut names = BTreeSet::from([own.clone()]);
    let mut peers = Vec::new();
    for layer in &layers.0 {
        for raw in &layer.raw.peer {
            let peer = peer(layer, raw)?;
            let at = || layer.origin(raw.span().start);
            if peers.len() == PEERS_MAX {
                return Err(refused(at(), "peer", "", format!("more than {PEERS_MAX} peers")));
            }
            if !names.insert(peer.name.clone()) {
                let found = format!("{:?}, which this node or another [[peer]] has", peer.name.as_str());
                return Err(refused(at(), "peer", "name", found));
            }
            if !related(role, peer.role) {
                let found = format!("{:?}, which has no business with a {role}", peer.role.as_str());
                return Err(refused(at(), "peer", "role", found));
            }
            peers.push(peer);
        }
    }
    Ok(peers)
}

fn related(one: Role, other: Role) -> bool {
    [may_announce, may_fetch, may_command].iter().any(|may| may(one, other) || may(other, one))
}

fn peer(layer: &Layer, raw: &Spanned<RawPeer>) -> Result<Peer, ConfigError> {
    let missing = |name: &str| ConfigError::Missing {
        from: layer.origin(raw.span().start),
        key: schema::named("peer", name),
        why: "a peer is known by name, role and key; paste what `larder init` printed there".to_owned(),
    };
    let peer = raw.get_ref();
    Ok(Peer {
        name: peer.name.as_ref().ok_or_else(|| missing("name"))?.get_ref().clone(),
        role: *peer.role.as_ref().ok_or_else(|| missing("role"))?.get_ref(),
        key: *peer.key.as_ref().ok_or_else(|| missing("key"))?.get_ref(),
    })
}

fn watches(layers: &Layers, role: Role, store: &Path) -> Result<Vec<Watch>, ConfigError> {
    let mut watches = Vec::new();
    for layer in &layers.0 {
        for raw in &layer.raw.watch {
            let all = |found: String| refused(layer.origin(raw.span().start), "watch", "", found);
            if role == Role::Leecher {
                return Err(all("a folder for a leecher, which takes nothing in".to_owned()));
            }
            if watches.len() == WATCHES_MAX {
                return Err(all(format!("more than {WATCHES_MAX} folders")));
            }
            let watch = Watch::check(layer, raw, store)?;
            let loses_files =
                |other: &&Watch| other.prefix == watch.prefix && (other.deletes() || watch.deletes());
            if let Some(other) = watches.iter().find(loses_files) {
                let found = format!(
                    "{:?}, which {:?} has too: of two files of one name, one could be deleted and lost",
                    watch.prefix, other.path
                );
                return Err(refused(layer.origin(raw.span().start), "watch", "prefix", found));
            }
            watches.push(watch);
        }
    }
    Ok(watches)
}

fn refused(from: Origin, section: &str, name: &str, found: String) -> ConfigError {
    let allowed = schema::allowed(section, name).to_owned();
    ConfigError::Value { from, key: schema::named(section, name), found, allowed }
}
