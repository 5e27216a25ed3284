//! From the checked configuration to what steers the core and the store.

use crate::config::{After, Config, ConfigError, Effective};
use ed25519_dalek::SigningKey;
use larder_core::board;
use larder_core::request::SettingInForce;
use larder_core::settings::{BatchSettings, Peer, Settings, Watch};
use larder_hal::board::Machine;
use larder_store::{Options, Prepare};
use std::path::Path;

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
        create: true,
    }
}

/// What the core is told.
pub(super) fn core(
    config: &Config,
    effective: &Effective,
    key: SigningKey,
    epoch: u64,
    store: u64,
) -> Settings {
    // A batch is one write into one segment, which has to have room for it and its records' heads.
    let flush_bytes = effective.flush_bytes.value.min(effective.segment_bytes.value / 4);
    Settings {
        me: config.name.clone(),
        fleet: config.fleet.to_string(),
        role: config.role.value,
        key,
        epoch,
        store,
        peers: config.peers.iter().map(peer).collect(),
        subscriptions: config.subscribe.clone(),
        commands: config.commands,
        watches: config.watches.iter().map(watch).collect(),
        kernels: config.kernels.value,
        tick_ms: effective.tick_ms.value,
        flush: BatchSettings { bytes: to_usize(flush_bytes), age_ms: effective.flush_age_ms.value },
        send: BatchSettings {
            bytes: to_usize(effective.send_bytes.value),
            age_ms: effective.send_age_ms.value,
        },
        window_blocks: u32::try_from(effective.window_blocks.value).unwrap_or(u32::MAX),
        in_flight_max: u32::from(effective.in_flight_max.value),
        sessions_max: usize::from(effective.sessions_max.value),
        offline_requests_max: usize::from(effective.offline_requests_max.value),
        evict: effective.evict.value,
        quota_bytes: effective.quota_bytes.value,
        clean_watermark_percent: effective.clean_watermark_percent.value,
        clean_period_ms: u64::from(effective.clean_period_s.value) * 1000,
        clean_step_bytes: effective.clean_step_bytes.value,
        checkpoint_age_ms: effective.checkpoint_age_s.value * 1000,
        in_force: in_force(config, effective),
        version: env!("CARGO_PKG_VERSION").to_owned(),
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
