//! A power profile: how much waiting, memory and work at once a node may spend.
//!
//! Duty: the shape of a profile file and the check of its values. The files are in
//! `power-profiles/`; whoever loads one parses it, calls [`Profile::check`] and uses it whole.
//! Refuses: unknown keys (when parsed) and values that cannot work (when checked).
//! Bound: every value has a range. Failure: [`ProfileError`] names key, value and range.

use core::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::power::conditions::Condition;
use crate::power::windows::{Hours, Windows};

/// Bytes of the largest MQTT message that carries a block; batches smaller than it make no sense.
const MESSAGE_BYTES: u64 = 128 << 10;

/// A power profile as its file writes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// How configuration and status name it.
    pub name: String,
    /// One sentence for people.
    pub summary: String,
    /// The one timer: deadlines are served together, at a multiple of this or at the end of what they may wait.
    pub tick_ms: u64,
    /// Longest wait of a write for company before its batch is synced.
    pub flush_age_ms: u64,
    /// Bytes that make a write batch due at once.
    pub flush_bytes: u64,
    /// Longest wait of a message that can wait before the radio is used for it.
    pub send_age_ms: u64,
    /// Bytes of waiting messages that make sending due at once.
    pub send_bytes: u64,
    /// MQTT keep-alive in seconds.
    pub keep_alive_s: u64,
    /// Bytes of payload the block cache may hold, if the board allows as much.
    pub cache_bytes: u64,
    /// Entries the store's memory table may hold before they go to the index.
    pub table_entries: u64,
    /// Share of the storage limit, in percent, that the store may use. What is left keeps cleaning
    /// cheap: the fuller a log, the more live bytes each reclaimed one costs.
    pub quota_share_percent: u64,
    /// Blocks a sync receiver asks for at once.
    pub window_blocks: u64,
    /// Bytes the cleaner may move in one step.
    pub clean_step_bytes: u64,
    /// Longest time between two checkpoints of the index.
    pub checkpoint_age_s: u64,
    /// Bytes one step of verification reads.
    pub verify_step_bytes: u64,
    /// Rest between two steps of cleaning, unless a full store waits.
    pub step_rest_ms: u64,
    /// Everything is verified by itself so long after the last time; 0: never.
    pub scrub_period_s: u64,
    /// Rest between two steps of that.
    pub scrub_rest_ms: u64,
    /// Longest time between two readings of the sensors.
    pub sense_s: u64,
    /// A reaction ends when its cause has not been seen for so long.
    pub calm_s: u64,
    /// Longest time between two reports on the telemetry topic.
    pub telemetry_s: u64,
    /// How much later than asked the kernel may wake the loop's thread, so that wake-ups of many are one.
    pub timer_slack_us: u64,
    /// The battery is low up to this charge.
    pub battery_low_percent: u64,
    /// The battery is low no longer from this charge.
    pub battery_ok_percent: u64,
    /// The flash is worn from this share of its life.
    pub flash_worn_percent: u64,
    /// The link comes up so often and goes when nothing is under way; 0: it stays.
    pub sync_every_s: u64,
    /// Hours of the day (UTC) in which the radio may be used, such as `22:00-06:00`; none: all day.
    pub sync_hours: Vec<String>,
    /// What takes this profile's place, and when.
    #[serde(default)]
    pub on: Reactions,
}

/// Profiles, by name or path, that take another's place while something is so.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reactions {
    /// The supply's voltage is low.
    pub under_voltage: Option<String>,
    /// The processor is hot, or held back for it.
    pub hot: Option<String>,
    /// The battery is low and nothing feeds it.
    pub battery_low: Option<String>,
    /// Nothing feeds the machine but its battery.
    pub on_battery: Option<String>,
    /// The flash under the store is worn.
    pub flash_worn: Option<String>,
}

impl Reactions {
    /// Each condition with the profile it asks for.
    pub fn each_mut(&mut self) -> impl Iterator<Item = (Condition, &mut String)> {
        let named = [
            (Condition::UnderVoltage, &mut self.under_voltage),
            (Condition::Hot, &mut self.hot),
            (Condition::BatteryLow, &mut self.battery_low),
            (Condition::OnBattery, &mut self.on_battery),
            (Condition::FlashWorn, &mut self.flash_worn),
        ];
        named.into_iter().filter_map(|(condition, profile)| Some((condition, profile.as_mut()?)))
    }
}

/// A value no node can work with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key} = {value} is impossible: allowed are {allowed}")]
pub struct ProfileError {
    /// The key in the profile file.
    pub key: &'static str,
    /// What it says.
    pub value: String,
    /// What it may say.
    pub allowed: String,
}

impl Profile {
    /// Checks every value against its range.
    ///
    /// # Errors
    /// The first value outside its range.
    pub fn check(&self) -> Result<(), ProfileError> {
        for (key, value, allowed) in self.values() {
            if !allowed.contains(&value) {
                let allowed = format!("{} to {}", allowed.start(), allowed.end());
                return Err(ProfileError { key, value: value.to_string(), allowed });
            }
        }
        match self.sync_hours.iter().find(|text| Hours::parse(text).is_none()) {
            Some(text) => Err(ProfileError {
                key: "sync_hours",
                value: format!("{text:?}"),
                allowed: "hours of a day such as \"22:00-06:00\"".to_owned(),
            }),
            None => Ok(()),
        }
    }

    /// When the radio may be used; the hours have been checked.
    #[must_use]
    pub fn windows(&self) -> Windows {
        let hours = self.sync_hours.iter().filter_map(|text| Hours::parse(text)).collect();
        Windows { hours, every_ms: self.sync_every_s * 1_000 }
    }

    /// Every number with its range. The upper ends keep a typing error (a byte count where seconds
    /// belong) from being taken for a wish; keep-alive is 16 bits wide in MQTT.
    fn values(&self) -> [(&'static str, u64, RangeInclusive<u64>); 24] {
        [
            ("tick_ms", self.tick_ms, 1..=60_000),
            ("flush_age_ms", self.flush_age_ms, 0..=60_000),
            ("flush_bytes", self.flush_bytes, MESSAGE_BYTES..=64 << 20),
            ("send_age_ms", self.send_age_ms, 0..=3_600_000),
            ("send_bytes", self.send_bytes, MESSAGE_BYTES..=64 << 20),
            ("keep_alive_s", self.keep_alive_s, 5..=65_535),
            ("cache_bytes", self.cache_bytes, 256 << 10..=16 << 30),
            ("table_entries", self.table_entries, 1_024..=4 << 20),
            ("quota_share_percent", self.quota_share_percent, 1..=100),
            ("window_blocks", self.window_blocks, 1..=1_024),
            ("clean_step_bytes", self.clean_step_bytes, MESSAGE_BYTES..=1 << 30),
            ("checkpoint_age_s", self.checkpoint_age_s, 1..=86_400),
            ("verify_step_bytes", self.verify_step_bytes, MESSAGE_BYTES..=1 << 30),
            ("step_rest_ms", self.step_rest_ms, 0..=60_000),
            ("scrub_period_s", self.scrub_period_s, 0..=31_536_000),
            ("scrub_rest_ms", self.scrub_rest_ms, 0..=3_600_000),
            ("sense_s", self.sense_s, 1..=3_600),
            ("calm_s", self.calm_s, 1..=86_400),
            ("telemetry_s", self.telemetry_s, 10..=86_400),
            ("timer_slack_us", self.timer_slack_us, 1..=1_000_000),
            ("battery_low_percent", self.battery_low_percent, 0..=95),
            ("battery_ok_percent", self.battery_ok_percent, self.battery_low_percent.min(95) + 3..=100),
            ("flash_worn_percent", self.flash_worn_percent, 1..=100),
            ("sync_every_s", self.sync_every_s, 0..=86_400),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = r#"{"name": "sample", "summary": "A sample.", "tick_ms": 10, "flush_age_ms": 2,
        "flush_bytes": 1048576, "send_age_ms": 5, "send_bytes": 262144, "keep_alive_s": 30,
        "cache_bytes": 1048576, "table_entries": 1024, "quota_share_percent": 100, "window_blocks": 16,
        "clean_step_bytes": 1048576, "checkpoint_age_s": 60, "verify_step_bytes": 1048576, "step_rest_ms": 0,
        "scrub_period_s": 0, "scrub_rest_ms": 0,
        "sense_s": 10, "calm_s": 300, "telemetry_s": 300, "timer_slack_us": 50, "battery_low_percent": 20,
        "battery_ok_percent": 30, "flash_worn_percent": 80, "sync_every_s": 0, "sync_hours": []}"#;

    #[test]
    fn a_sane_profile_passes() {
        let profile: Profile = serde_json::from_str(SAMPLE).unwrap();
        assert_eq!(profile.check(), Ok(()));
    }

    #[test]
    fn each_value_outside_its_range_is_named() {
        let sane: serde_json::Value = serde_json::from_str(SAMPLE).unwrap();
        let profile: Profile = serde_json::from_value(sane.clone()).unwrap();
        for (key, _, allowed) in profile.values() {
            let mut raw = sane.clone();
            raw[key] = (allowed.end() + 1).into();
            let error = serde_json::from_value::<Profile>(raw).unwrap().check().unwrap_err();
            let allowed = format!("{} to {}", allowed.start(), allowed.end());
            assert_eq!((error.key, &error.allowed), (key, &allowed));
            assert!(error.to_string().starts_with(&format!("{key} = ")), "{error}");
        }
    }

    #[test]
    fn impossible_hours_and_a_battery_without_a_way_back_are_refused() {
        let refused = |from: &str, to: &str| {
            let raw = SAMPLE.replace(from, to);
            assert_ne!(raw, SAMPLE);
            serde_json::from_str::<Profile>(&raw).unwrap().check().unwrap_err().key
        };
        assert_eq!(refused("\"sync_hours\": []", "\"sync_hours\": [\"25:00-26:00\"]"), "sync_hours");
        assert_eq!(refused("\"battery_ok_percent\": 30", "\"battery_ok_percent\": 20"), "battery_ok_percent");
    }

    #[test]
    fn an_unknown_key_is_refused() {
        let raw = SAMPLE.replace("\"tick_ms\"", "\"tik_ms\"");
        let error = serde_json::from_str::<Profile>(&raw).unwrap_err().to_string();
        assert!(error.contains("tik_ms") && error.contains("tick_ms"), "{error}");
    }
}
