//! What a node's role means: its defaults and what it may do to whom.
//!
//! Duty: two tables, read by the configuration (defaults) and by whoever receives a message
//! (permissions: the receiver enforces them, whatever the sender believed).
//! Refuses: a role name that is none of the three. Bound: constant tables.
//! Failure: [`UnknownRole`] names what was written and what is allowed.

use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

/// What a node is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Takes in what workers upload, keeps it, serves it, and commands the others.
    Master,
    /// Takes in data where it arises and uploads it to its master.
    Worker,
    /// Fetches what it subscribes to and keeps no more than it has room for.
    Leecher,
}

impl Role {
    /// All roles, in the order in which messages list them.
    pub const ALL: [Self; 3] = [Self::Master, Self::Worker, Self::Leecher];

    /// The role as configuration and messages spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Master => "master",
            Self::Worker => "worker",
            Self::Leecher => "leecher",
        }
    }

    /// What this role assumes where nothing else says otherwise.
    #[must_use]
    pub const fn defaults(self) -> &'static RoleDefaults {
        match self {
            Self::Master => &MASTER,
            Self::Worker => &WORKER,
            Self::Leecher => &LEECHER,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A role name that is none of the three.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown role {0:?}: allowed are master, worker and leecher")]
pub struct UnknownRole(pub String);

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|role| role.as_str() == text).ok_or_else(|| UnknownRole(text.to_owned()))
    }
}

/// What a store does when its quota is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Evict {
    /// Refuses new data: what is here may exist nowhere else.
    Never,
    /// Drops the oldest objects: all of them can be fetched again.
    Oldest,
}

impl Evict {
    /// The policy as configuration spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::Oldest => "oldest",
        }
    }
}

impl fmt::Display for Evict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What a role assumes where neither flag, environment, configuration, profile nor board speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct RoleDefaults {
    /// Bytes on disk that the whole pool directory may take.
    pub storage_limit_bytes: u64,
    /// How full the quota is, in percent, when cleaning starts without waiting for its period.
    pub clean_watermark_percent: u8,
    /// Seconds between two cleanings.
    pub clean_period_s: u32,
    /// Peers that may have a transfer open at once.
    pub sessions_max: u16,
    /// MQTT messages that may wait for their acknowledgement by the broker.
    pub in_flight_max: u16,
    /// Requests that may wait for a link to come back; 0: a request without a link fails at once.
    pub offline_requests_max: u16,
    /// What happens at the quota.
    pub evict: Evict,
    /// What is stored in bulk is read again soon: a worker uploads it. What a peer sent is not, and the memory
    /// it would take is left to others.
    pub reads_back: bool,
}

const GIGABYTE: u64 = 1_000_000_000;

const MASTER: RoleDefaults = RoleDefaults {
    storage_limit_bytes: 1_000 * GIGABYTE,
    clean_watermark_percent: 80,
    clean_period_s: 12 * 3_600,
    sessions_max: 256,
    in_flight_max: 64,
    offline_requests_max: 0,
    evict: Evict::Never,
    reads_back: false,
};

const WORKER: RoleDefaults = RoleDefaults {
    storage_limit_bytes: 100 * GIGABYTE,
    clean_watermark_percent: 90,
    clean_period_s: 3_600,
    sessions_max: 1,
    in_flight_max: 32,
    offline_requests_max: 16,
    evict: Evict::Never,
    reads_back: true,
};

const LEECHER: RoleDefaults = RoleDefaults {
    storage_limit_bytes: 10 * GIGABYTE,
    clean_watermark_percent: 95,
    clean_period_s: 30 * 60,
    sessions_max: 4,
    in_flight_max: 16,
    offline_requests_max: 256,
    evict: Evict::Oldest,
    reads_back: false,
};

/// Who may tell whom of a new version of a name: (from, to).
///
/// What the receiver then asks for inside that transfer (bitmaps, credits) needs no entry of its
/// own: it answers an announcement that was allowed.
const ANNOUNCE: [(Role, Role); 3] =
    [(Role::Worker, Role::Master), (Role::Master, Role::Worker), (Role::Master, Role::Leecher)];

/// Who may ask whom, unannounced, for an object by name, CID or prefix: (asks, is asked).
const FETCH: [(Role, Role); 2] = [(Role::Worker, Role::Master), (Role::Leecher, Role::Master)];

/// Who may command whom: (commands, obeys).
const COMMAND: [(Role, Role); 3] =
    [(Role::Master, Role::Master), (Role::Master, Role::Worker), (Role::Master, Role::Leecher)];

/// Whether `from` may announce a version to `to`.
#[must_use]
pub fn may_announce(from: Role, to: Role) -> bool {
    ANNOUNCE.contains(&(from, to))
}

/// Whether `from` may ask `to` for an object.
#[must_use]
pub fn may_fetch(from: Role, to: Role) -> bool {
    FETCH.contains(&(from, to))
}

/// Whether `from` may send a command to `to`.
#[must_use]
pub fn may_command(from: Role, to: Role) -> bool {
    COMMAND.contains(&(from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(may: fn(Role, Role) -> bool) -> Vec<(Role, Role)> {
        Role::ALL
            .into_iter()
            .flat_map(|from| Role::ALL.map(|to| (from, to)))
            .filter(|&(from, to)| may(from, to))
            .collect()
    }

    #[test]
    fn every_role_reads_back_as_it_is_written() {
        for role in Role::ALL {
            assert_eq!(role.to_string().parse(), Ok(role));
            assert_eq!(serde_json::to_string(&role).unwrap(), format!("\"{role}\""));
        }
    }

    #[test]
    fn an_unknown_role_is_refused_by_name() {
        let error = "boss".parse::<Role>().unwrap_err().to_string();
        assert_eq!(error, "unknown role \"boss\": allowed are master, worker and leecher");
    }

    #[test]
    fn a_leecher_may_only_ask() {
        for to in Role::ALL {
            assert!(!may_announce(Role::Leecher, to));
            assert!(!may_command(Role::Leecher, to));
            assert_eq!(may_fetch(Role::Leecher, to), to == Role::Master);
        }
    }

    #[test]
    fn workers_reach_nobody_but_the_master() {
        for to in [Role::Worker, Role::Leecher] {
            assert!(!may_announce(Role::Worker, to) && !may_fetch(Role::Worker, to));
        }
        assert_eq!(allowed(may_announce).len(), 3);
        assert_eq!(allowed(may_fetch), [(Role::Worker, Role::Master), (Role::Leecher, Role::Master)]);
    }

    #[test]
    fn only_a_master_commands() {
        assert!(allowed(may_command).iter().all(|&(from, _)| from == Role::Master));
        assert_eq!(allowed(may_command).len(), 3);
    }

    #[test]
    fn only_what_can_be_fetched_again_is_evicted() {
        for role in Role::ALL {
            assert_eq!(role.defaults().evict == Evict::Oldest, role == Role::Leecher);
        }
    }
}
