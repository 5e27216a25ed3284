//! What a profile steers, ready for use, and the profiles a node may move between.

use std::sync::Arc;

use super::conditions::{Condition, Thresholds};
use super::windows::Windows;
use crate::request::SettingInForce;
use crate::settings::{BatchSettings, Settings};

/// Everything that follows the profile in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Steering {
    /// The profile's name, for people.
    pub name: String,
    /// The one timer's period.
    pub tick_ms: u64,
    /// How writes wait.
    pub flush: BatchSettings,
    /// How news for peers wait.
    pub send: BatchSettings,
    /// Blocks a receiver asks for at once.
    pub window_blocks: u32,
    /// Bytes the store may use.
    pub quota_bytes: u64,
    /// For the shell: bytes of these that the store keeps free.
    pub reserve_bytes: u64,
    /// Bytes one step of cleaning moves.
    pub clean_step_bytes: u64,
    /// Bytes one step of verification reads.
    pub verify_step_bytes: u64,
    /// Rest between two such steps.
    pub step_rest_ms: u64,
    /// Everything is verified by itself so long after the last time; 0: never.
    pub scrub_period_ms: u64,
    /// Rest between two steps of that.
    pub scrub_rest_ms: u64,
    /// The index follows the log at least this often.
    pub checkpoint_age_ms: u64,
    /// When the radio may be used.
    pub windows: Windows,
    /// The longest time between two readings of the sensors; 0: they are not read.
    pub sense_ms: u64,
    /// A condition ends when nothing has shown it for so long.
    pub calm_ms: u64,
    /// The longest time between two reports on the telemetry topic, while the link is up.
    pub telemetry_ms: u64,
    /// From where conditions begin and end.
    pub thresholds: Thresholds,
    /// What takes this one's place while a condition holds: an index into [`PowerPlan::profiles`].
    pub instead: Vec<(Condition, usize)>,
    /// For the shell: how late the kernel may wake its threads.
    pub timer_slack_us: u64,
    /// For the shell: MQTT keep-alive.
    pub keep_alive_s: u64,
    /// For `status`: all values and where each came from.
    pub in_force: Vec<SettingInForce>,
}

/// The profiles of a node. Without any the settings stay what they are and no sensor is read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PowerPlan {
    /// The configured one first, then all that can take its place.
    pub profiles: Vec<Arc<Steering>>,
}

impl Settings {
    /// These settings with what the profile steers.
    #[must_use]
    pub fn under(&self, steering: &Steering) -> Settings {
        Settings {
            tick_ms: steering.tick_ms,
            flush: steering.flush,
            send: steering.send,
            window_blocks: steering.window_blocks,
            quota_bytes: steering.quota_bytes,
            clean_step_bytes: steering.clean_step_bytes,
            verify_step_bytes: steering.verify_step_bytes,
            step_rest_ms: steering.step_rest_ms,
            scrub_period_ms: steering.scrub_period_ms,
            scrub_rest_ms: steering.scrub_rest_ms,
            checkpoint_age_ms: steering.checkpoint_age_ms,
            in_force: steering.in_force.clone(),
            ..self.clone()
        }
    }
}
