//! What `larder power` shows, and the telemetry topic carries a part of.

use serde::{Deserialize, Serialize};

use super::conditions::{Condition, Readings};
use super::meter::Costs;

/// A request about power.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PowerAsk {
    /// Say how things are.
    Report,
    /// Use this profile, for so long.
    Set {
        /// Its name; none: the configured one again.
        profile: Option<String>,
        /// For how long; none: until the next start.
        seconds: Option<u64>,
    },
}

/// The profile in force, why, what the sensors say and what the node costs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PowerReport {
    /// The profile in force.
    pub profile: String,
    /// The one that was configured.
    pub configured: String,
    /// The condition the profile in force answers; none: it is the one that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub because: Option<Condition>,
    /// The profile set by hand, if one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by_hand: Option<ByHand>,
    /// Every condition that holds, the strongest first.
    pub conditions: Vec<Condition>,
    /// Profiles that can be set.
    pub profiles: Vec<String>,
    /// The radio sleeps, and for so many milliseconds yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asleep_ms: Option<u64>,
    /// What the sensors said last.
    pub readings: Readings,
    /// The sensors have not answered; what they said before no longer counts.
    pub sensors_hang: bool,
    /// Times the profile has changed.
    pub changes: u64,
    /// Costs since the start.
    pub total: Costs,
    /// Costs of the present hour.
    pub this_hour: Costs,
    /// Costs of complete hours, the latest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hours: Vec<Costs>,
}

/// A profile set by hand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ByHand {
    /// Its name.
    pub profile: String,
    /// Milliseconds until it ends; none: it stays until the next start, or another is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_ms: Option<u64>,
}
