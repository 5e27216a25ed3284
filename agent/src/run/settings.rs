//! From the checked configuration to what steers the core and the store.

use crate::config::{After, Config, ConfigError, Effective};
use ed25519_dalek::SigningKey;
use larder_core::board;
use larder_core::power::conditions::Thresholds;
use larder_core::power::plan::{PowerPlan, Steering};
use larder_core::profile::Profile;
use larder_core::request::SettingInForce;
use larder_core::settings::{BatchSettings, Peer, Settings, Watch};
use larder_core::start::Start;
use larder_hal::board::Machine;
use larder_store::{Options, Prepare};
use std::path::Path;
use std::sync::Arc;

/// The values in force, with the size of the file system the store is (or will be) on.
pub(super) fn effective(config: &Config, machine: &Machine) -> Result<Effective, ConfigError> {
    config.effective(machine, file_system_bytes(&config.store))
}

/// The size of the file system of the nearest folder that exists.
fn file_system_bytes(path: &Path) -> Option<u64> {
    let existing = path.ancestors().find(|path| path.exists())?;
    let stat = rustix::fs::statvfs(existing).ok()?;
    stat.f_blocks.checked_mul(stat.f_frsize)
}

/// What the store is opened with.
pub(super) fn store_options(config: &Config, effective: &Effective) -> Options {
    Options {
        segment_bytes: effective.segment_bytes.value,
        cache_bytes: effective.cache_bytes.value,
        index_cache_bytes: to_usize(effective.index_cache_bytes.value),
        table_entries: to_usize(effective.table_entries.value),
        quota_bytes: effective.quota_bytes.value,
        reserve_bytes: effective.reserve_bytes.value,
        prepare: match effective.prepare.value {
            board::Prepare::None => Prepare::None,
            board::Prepare::Allocate => Prepare::Allocate,
            board::Prepare::Zero => Prepare::Zero,
        },
        spare_segments_max: effective.spare_segments_max.value,
        kernels: config.kernels.value,
        reads_back: config.role.value.defaults().reads_back,
        create: true,
    }
}

/// The profiles the node moves between, the configured one first; `opened` is what the store was opened with.
pub(super) fn plan(config: &Config, machine: &Machine, own: &Effective, opened: &Effective) -> PowerPlan {
    let disk_bytes = file_system_bytes(&config.store);
    let names: Vec<&str> = std::iter::once(&config.profile.value)
        .chain(&config.other_profiles)
        .map(|profile| profile.name.as_str())
        .collect();
    let mut profiles = vec![steering(config, &config.profile.value, own, &names)];
    for profile in &config.other_profiles {
        let effective = config.effective_instead(profile, own, machine, disk_bytes).since(opened);
        profiles.push(steering(config, profile, &effective, &names));
    }
    PowerPlan { profiles }
}

fn steering(config: &Config, profile: &Profile, effective: &Effective, names: &[&str]) -> Arc<Steering> {
    let celsius = |degrees: u64| i64::try_from(degrees * 1_000).unwrap_or(i64::MAX);
    let percent = |value: u64| u8::try_from(value).unwrap_or(100);
    let index = |name: &str| names.iter().position(|known| *known == name);
    let mut on = profile.on.clone();
    let instead = on.each_mut().filter_map(|(condition, name)| Some((condition, index(name)?)));
    Arc::new(Steering {
        name: profile.name.clone(),
        tick_ms: effective.tick_ms.value,
        flush: flush(effective),
        send: send(effective),
        window_blocks: u32::try_from(effective.window_blocks.value).unwrap_or(u32::MAX),
        quota_bytes: effective.quota_bytes.value,
        reserve_bytes: effective.reserve_bytes.value,
        clean_step_bytes: effective.clean_step_bytes.value,
        verify_step_bytes: effective.verify_step_bytes.value,
        step_rest_ms: effective.step_rest_ms.value,
        scrub_period_ms: effective.scrub_period_s.value * 1000,
        scrub_rest_ms: effective.scrub_rest_ms.value,
        checkpoint_age_ms: effective.checkpoint_age_s.value * 1000,
        windows: profile.windows(),
        sense_ms: effective.sense_s.value * 1000,
        calm_ms: effective.calm_s.value * 1000,
        telemetry_ms: effective.telemetry_s.value * 1000,
        thresholds: Thresholds {
            hot_milli_celsius: celsius(config.board.value.hot_celsius),
            cool_milli_celsius: celsius(config.board.value.cool_celsius),
            battery_low_percent: percent(profile.battery_low_percent),
            battery_ok_percent: percent(profile.battery_ok_percent),
            flash_worn_percent: percent(profile.flash_worn_percent),
        },
        instead: instead.collect(),
        timer_slack_us: effective.timer_slack_us.value,
        keep_alive_s: effective.keep_alive_s.value,
        in_force: in_force(config, effective),
    })
}

/// A batch is one write into one segment: four of the longest, with their records' heads, fill one. Were each a
/// quarter, the fourth would have no room.
fn flush(effective: &Effective) -> BatchSettings {
    let bytes = effective.flush_bytes.value.min(effective.segment_bytes.value / 64 * 15);
    BatchSettings { bytes: to_usize(bytes), age_ms: effective.flush_age_ms.value }
}

fn send(effective: &Effective) -> BatchSettings {
    BatchSettings { bytes: to_usize(effective.send_bytes.value), age_ms: effective.send_age_ms.value }
}

/// What the core is told.
pub(super) fn core(
    config: &Config,
    effective: &Effective,
    plan: PowerPlan,
    key: SigningKey,
    store: u64,
    starts: Vec<Start>,
) -> Settings {
    Settings {
        me: config.name.clone(),
        fleet: config.fleet.to_string(),
        role: config.role.value,
        key,
        store,
        starts,
        peers: config.peers.iter().map(peer).collect(),
        unlinked: unlinked(config).into(),
        subscriptions: config.subscribe.clone(),
        commands: config.commands,
        watches: config.watches.iter().map(watch).collect(),
        kernels: config.kernels.value,
        tick_ms: effective.tick_ms.value,
        flush: flush(effective),
        send: send(effective),
        window_blocks: u32::try_from(effective.window_blocks.value).unwrap_or(u32::MAX),
        in_flight_max: u32::from(effective.in_flight_max.value),
        sessions_max: usize::from(effective.sessions_max.value),
        offline_requests_max: usize::from(effective.offline_requests_max.value),
        evict: effective.evict.value,
        quota_bytes: effective.quota_bytes.value,
        clean_watermark_percent: effective.clean_watermark_percent.value,
        clean_period_ms: u64::from(effective.clean_period_s.value) * 1000,
        clean_step_bytes: effective.clean_step_bytes.value,
        verify_step_bytes: effective.verify_step_bytes.value,
        step_rest_ms: effective.step_rest_ms.value,
        scrub_period_ms: effective.scrub_period_s.value * 1000,
        scrub_rest_ms: effective.scrub_rest_ms.value,
        checkpoint_age_ms: effective.checkpoint_age_s.value * 1000,
        power: plan,
        in_force: in_force(config, effective),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

fn unlinked(config: &Config) -> &'static str {
    match (config.peers.is_empty(), &config.mqtt) {
        (true, _) => "", // who trusts nobody has no link to wait for
        (false, None) => "the configuration has no [mqtt], so nothing goes to its peers",
        (false, Some(_)) => "not connected yet",
    }
}

fn in_force(config: &Config, effective: &Effective) -> Vec<SettingInForce> {
    let value = |(key, value, from): (&str, String, &str)| SettingInForce {
        key: key.to_owned(),
        value,
        from: from.to_owned(),
    };
    let notes = config.notes.iter().map(|note| value(("note", note.clone(), "this machine")));
    effective.rows().into_iter().map(value).chain(notes).collect()
}

fn peer(peer: &crate::config::Peer) -> Peer {
    Peer { name: peer.name.clone(), role: peer.role, key: *peer.key.verifying() }
}

fn watch(watch: &crate::config::Watch) -> Watch {
    Watch {
        prefix: watch.prefix.clone(),
        settle_ms: watch.settle_s * 1000,
        delete_after_ack: watch.after == After::DeleteAfterAck,
    }
}

fn to_usize(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}
