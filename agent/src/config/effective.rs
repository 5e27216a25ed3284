//! The values that steer the agent, each with where it came from.
//!
//! Duty: resolve flag, environment, configuration, profile, board and role to one value each, for
//! the agent to run by and `larder status` to show. Refuses: a quota without room for segments.

use larder_core::board::Prepare;
use larder_core::profile::Profile;
use larder_core::role::{Evict, Role};
use larder_hal::board::Machine;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::RangeInclusive;

use super::error::{ConfigError, Origin, Setting, Sourced};
use super::raw::{Layers, RawStorage};
use super::size::Size;
use super::{Config, refused};

const LIMIT_BYTES_MIN: u64 = 16_000_000;
const CACHE_BYTES_MIN: u64 = 256 << 10;
const SEGMENT_BYTES_MIN: u64 = 1 << 20;
const SEGMENT_BYTES_MAX: u64 = 1 << 30;
const SEGMENT_BYTES_UNIT: u64 = 64 << 10;
/// Fewer segments than this in a quota, and cleaning has nowhere to move live records to.
const SEGMENTS_MIN: u64 = 8;
/// Thirty days.
const CLEAN_PERIOD_S_MAX: u32 = 30 * 24 * 3600;
/// The block cache takes at most this part of the memory.
const MEMORY_PER_CACHE: u64 = 16;

/// What flag, environment and file say of values that profile, board or role have too.
#[derive(Debug)]
pub(super) struct Wishes {
    limit: Option<Sourced<u64>>,
    reserve: Option<Sourced<u64>>,
    segment: Option<Sourced<u64>>,
    cache: Option<Sourced<u64>>,
    evict: Option<Sourced<Evict>>,
    clean_watermark_percent: Option<Sourced<u8>>,
    clean_period_s: Option<Sourced<u32>>,
    keep_alive_s: Option<Sourced<u64>>,
}

impl Wishes {
    pub(super) fn check(layers: &Layers, role: Role) -> Result<Self, ConfigError> {
        let size = |get: fn(&RawStorage) -> Option<&toml::Spanned<Size>>| {
            layers.pick(|raw| get(&raw.storage)).map(|given| given.map(|size| size.0))
        };
        let segment_fits = |bytes| {
            (SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&bytes) && bytes % SEGMENT_BYTES_UNIT == 0
        };
        let evict = layers.pick(|raw| raw.storage.evict.as_ref());
        if let Some(Sourced { value: Evict::Oldest, from }) = &evict
            && role == Role::Master
        {
            let found = "\"oldest\" on a master, which could have it from nowhere again".to_owned();
            return Err(refused(from.clone(), "storage", "evict", found));
        }
        Ok(Self {
            limit: within(size(|raw| raw.limit.as_ref()), "limit", |bytes| bytes >= LIMIT_BYTES_MIN)?,
            reserve: size(|raw| raw.reserve.as_ref()),
            segment: within(size(|raw| raw.segment.as_ref()), "segment", segment_fits)?,
            cache: within(size(|raw| raw.cache.as_ref()), "cache", |bytes| bytes >= CACHE_BYTES_MIN)?,
            evict,
            clean_watermark_percent: between(
                layers.pick(|raw| raw.storage.clean_watermark_percent.as_ref()),
                ("storage", "clean_watermark_percent"),
                1..=99,
            )?,
            clean_period_s: between(
                layers.pick(|raw| raw.storage.clean_period_s.as_ref()),
                ("storage", "clean_period_s"),
                1..=CLEAN_PERIOD_S_MAX,
            )?,
            keep_alive_s: between(
                layers.pick_mqtt(|raw| raw.keep_alive_s.as_ref()),
                ("mqtt", "keep_alive_s"),
                5..=65_535,
            )?,
        })
    }
}

fn between<T: PartialOrd + fmt::Display>(
    given: Option<Sourced<T>>,
    (section, name): (&str, &str),
    allowed: RangeInclusive<T>,
) -> Result<Option<Sourced<T>>, ConfigError> {
    match given {
        Some(given) if !allowed.contains(&given.value) => {
            Err(refused(given.from, section, name, given.value.to_string()))
        }
        given => Ok(given),
    }
}

fn within(
    given: Option<Sourced<u64>>,
    name: &str,
    fits: impl Fn(u64) -> bool,
) -> Result<Option<Sourced<u64>>, ConfigError> {
    match given {
        Some(given) if !fits(given.value) => {
            Err(refused(given.from, "storage", name, format!("{} bytes", given.value)))
        }
        given => Ok(given),
    }
}

macro_rules! effective {
    ($($(#[$doc:meta])* $name:ident: $kind:ty,)+) => {
        /// The values in force, each with where it came from.
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        pub struct Effective {
            $($(#[$doc])* pub $name: Setting<$kind>,)+
        }

        impl Effective {
            /// Every value as name, text and origin, in the order in which people ask.
            #[must_use]
            pub fn rows(&self) -> Vec<(&'static str, String, &str)> {
                vec![$((stringify!($name), self.$name.value.to_string(), self.$name.from.as_str()),)+]
            }
        }
    };
}

effective! {
    /// What the node is for.
    role: Role,
    /// The power profile.
    profile: String,
    /// The board.
    board: String,
    /// The instructions hashing and filter use.
    kernels: String,
    /// Bytes on disk the pool directory may take, everything counted.
    quota_bytes: u64,
    /// Bytes of the quota kept free, so that deletion and start-up work when the rest is full.
    reserve_bytes: u64,
    /// What happens at the quota.
    evict: Evict,
    /// Size of a segment file.
    segment_bytes: u64,
    /// How a fresh segment is made ready.
    prepare: Prepare,
    /// Most emptied segment files kept for the next segments.
    spare_segments_max: u32,
    /// Bytes redb may cache of the index.
    index_cache_bytes: u64,
    /// Bytes of the block cache.
    cache_bytes: u64,
    /// Entries of the memory table.
    table_entries: u64,
    /// Longest time between two checkpoints.
    checkpoint_age_s: u64,
    /// The one timer.
    tick_ms: u64,
    /// Longest wait of a write.
    flush_age_ms: u64,
    /// Bytes that make a write batch due.
    flush_bytes: u64,
    /// Longest wait of a message.
    send_age_ms: u64,
    /// Bytes that make sending due.
    send_bytes: u64,
    /// MQTT keep-alive.
    keep_alive_s: u64,
    /// Blocks a sync receiver asks for at once.
    window_blocks: u64,
    /// Peers with a transfer open at once.
    sessions_max: u16,
    /// MQTT messages waiting for their acknowledgement.
    in_flight_max: u16,
    /// Requests waiting for a link; 0: none wait.
    offline_requests_max: u16,
    /// Fill of the quota at which cleaning starts.
    clean_watermark_percent: u8,
    /// Seconds between two cleanings.
    clean_period_s: u32,
    /// Bytes moved in one cleaning step.
    clean_step_bytes: u64,
    /// Bytes read in one step of verification.
    verify_step_bytes: u64,
    /// Rest between two steps.
    step_rest_ms: u64,
    /// How long after the last verification everything is verified by itself; 0: never.
    scrub_period_s: u64,
    /// Rest between two steps of that.
    scrub_rest_ms: u64,
    /// Longest time between two readings of the sensors.
    sense_s: u64,
    /// How long a reaction's cause must be gone.
    calm_s: u64,
    /// Longest time between two reports on the telemetry topic.
    telemetry_s: u64,
    /// How late the kernel may wake the process.
    timer_slack_us: u64,
    /// How often the link comes up; 0: it stays.
    sync_every_s: u64,
}

/// The values in force where a store lies, which go by its limit.
struct Storage {
    quota_bytes: Setting<u64>,
    reserve_bytes: Setting<u64>,
    segment_bytes: Setting<u64>,
}

impl Effective {
    /// These values in a process that opened its store with others: what only a start puts in force is that one's.
    #[must_use]
    pub fn since(self, opened: &Effective) -> Self {
        Effective {
            kernels: self.kernels.since(&opened.kernels),
            segment_bytes: self.segment_bytes.since(&opened.segment_bytes),
            cache_bytes: self.cache_bytes.since(&opened.cache_bytes),
            table_entries: self.table_entries.since(&opened.table_entries),
            ..self
        }
    }
}

impl<T: Clone + PartialEq> Setting<T> {
    fn since(self, start: &Setting<T>) -> Self {
        if self.value == start.value {
            return self;
        }
        Setting { value: start.value.clone(), from: format!("{}, until a restart", start.from) }
    }
}

impl Config {
    /// Resolves what steers the agent. `disk_bytes` is the size of the file system that holds the
    /// store, free or not; without it the quota is not capped by it.
    ///
    /// # Errors
    /// Configured sizes that leave no room for each other.
    pub fn effective(&self, machine: &Machine, disk_bytes: Option<u64>) -> Result<Effective, ConfigError> {
        let quota_bytes = self.quota(&self.profile.value, disk_bytes);
        let segment_bytes = self.segment(quota_bytes.value)?;
        let reserve_bytes = self.reserve(quota_bytes.value, segment_bytes.value)?;
        let storage = Storage { quota_bytes, reserve_bytes, segment_bytes };
        Ok(self.resolved(&self.profile, machine, storage))
    }

    /// The same under another profile, which has taken the configured one's place; `own` is what was in force
    /// under that. Its segments stay, and a reserve that is too large for the other quota gives way.
    #[must_use]
    pub fn effective_instead(
        &self,
        profile: &Profile,
        own: &Effective,
        machine: &Machine,
        disk_bytes: Option<u64>,
    ) -> Effective {
        let profile = Sourced::new(profile.clone(), Origin::Machine("instead of the configured one"));
        let quota_bytes = self.quota(&profile.value, disk_bytes);
        let half = quota_bytes.value / 2;
        let reserve_bytes = match &own.reserve_bytes {
            own if own.value > half => Setting { value: half, from: "half of the quota".to_owned() },
            own => own.clone(),
        };
        let storage = Storage { quota_bytes, reserve_bytes, segment_bytes: own.segment_bytes.clone() };
        self.resolved(&profile, machine, storage)
    }

    fn resolved(&self, profile: &Sourced<Profile>, machine: &Machine, storage: Storage) -> Effective {
        let (values, board, role) = (&profile.value, &self.board.value, self.role.value.defaults());
        let by_profile = Origin::Profile(values.name.clone());
        let by_board = Origin::Board(board.name.clone());
        let by_role = Origin::Role(self.role.value);
        let wishes = &self.wishes;
        Effective {
            role: self.role.clone().into(),
            profile: profile.clone().map(|profile| profile.name).into(),
            board: self.board.clone().map(|board| board.name).into(),
            kernels: self.kernels.clone().map(|level| level.to_string()).into(),
            quota_bytes: storage.quota_bytes,
            reserve_bytes: storage.reserve_bytes,
            evict: wished(&wishes.evict, by_role.says(role.evict)),
            segment_bytes: storage.segment_bytes,
            prepare: by_board.says(board.prepare),
            spare_segments_max: by_board.says(board.spare_segments_max),
            index_cache_bytes: by_board.says(board.index_cache_bytes),
            cache_bytes: self.cache(values, machine),
            table_entries: by_profile.says(values.table_entries),
            checkpoint_age_s: by_profile.says(values.checkpoint_age_s),
            tick_ms: by_profile.says(values.tick_ms),
            flush_age_ms: by_profile.says(values.flush_age_ms),
            flush_bytes: by_profile.says(values.flush_bytes),
            send_age_ms: by_profile.says(values.send_age_ms),
            send_bytes: by_profile.says(values.send_bytes),
            keep_alive_s: wished(&wishes.keep_alive_s, by_profile.says(values.keep_alive_s)),
            window_blocks: by_profile.says(values.window_blocks),
            sessions_max: by_role.says(role.sessions_max),
            in_flight_max: by_role.says(role.in_flight_max),
            offline_requests_max: by_role.says(role.offline_requests_max),
            clean_watermark_percent: wished(
                &wishes.clean_watermark_percent,
                by_role.says(role.clean_watermark_percent),
            ),
            clean_period_s: wished(&wishes.clean_period_s, by_role.says(role.clean_period_s)),
            clean_step_bytes: by_profile.says(values.clean_step_bytes),
            verify_step_bytes: by_profile.says(values.verify_step_bytes),
            step_rest_ms: by_profile.says(values.step_rest_ms),
            scrub_period_s: by_profile.says(values.scrub_period_s),
            scrub_rest_ms: by_profile.says(values.scrub_rest_ms),
            sense_s: by_profile.says(values.sense_s),
            calm_s: by_profile.says(values.calm_s),
            telemetry_s: by_profile.says(values.telemetry_s),
            timer_slack_us: by_profile.says(values.timer_slack_us),
            sync_every_s: by_profile.says(values.sync_every_s),
        }
    }

    /// The limit times the profile's share, and never more than the board's share of the disk.
    fn quota(&self, profile: &Profile, disk_bytes: Option<u64>) -> Setting<u64> {
        let board = &self.board.value;
        let by_role =
            || Sourced::new(self.role.value.defaults().storage_limit_bytes, Origin::Role(self.role.value));
        let limit = self.wishes.limit.clone().unwrap_or_else(by_role);
        let share = profile.quota_share_percent;
        let wanted = percent(limit.value, share);
        let by_share = if share == 100 {
            limit.from.to_string()
        } else {
            format!("{}, {share} % by profile {}", limit.from, profile.name)
        };
        let disk = disk_bytes.map(|bytes| percent(bytes, board.storage_share_percent));
        match disk.filter(|&disk| disk < wanted) {
            Some(disk) => {
                let from = format!("board {}, {} % of the disk", board.name, board.storage_share_percent);
                Setting { value: disk, from }
            }
            None => Setting { value: wanted, from: by_share },
        }
    }

    /// The board's size halves until enough segments fit; a configured one is obeyed or refused.
    fn segment(&self, quota_bytes: u64) -> Result<Setting<u64>, ConfigError> {
        let most = (quota_bytes / SEGMENTS_MIN).max(SEGMENT_BYTES_MIN);
        if let Some(wish) = &self.wishes.segment {
            if wish.value > most {
                let found = format!("{} bytes with a quota of {quota_bytes}", wish.value);
                return Err(refused(wish.from.clone(), "storage", "segment", found));
            }
            return Ok(wish.clone().into());
        }
        let board = &self.board.value;
        let mut bytes = board.segment_bytes;
        let mut from = Origin::Board(board.name.clone()).to_string();
        while bytes > most {
            bytes = bytes / 2 / SEGMENT_BYTES_UNIT * SEGMENT_BYTES_UNIT;
            from = format!("an eighth of the quota, below board {}", board.name);
        }
        Ok(Setting { value: bytes, from })
    }

    /// Two segments: one that cleaning fills while the one it empties is still there, one to open with.
    fn reserve(&self, quota_bytes: u64, segment_bytes: u64) -> Result<Setting<u64>, ConfigError> {
        match &self.wishes.reserve {
            Some(wish) if wish.value > quota_bytes / 2 => Err(ConfigError::Value {
                from: wish.from.clone(),
                key: super::schema::named("storage", "reserve"),
                found: format!("{} bytes", wish.value),
                allowed: format!("at most half of the quota of {quota_bytes} bytes"),
            }),
            Some(wish) => Ok(wish.clone().into()),
            None if 2 * segment_bytes > quota_bytes / 2 => {
                Ok(Setting { value: quota_bytes / 2, from: "half of the quota".to_owned() })
            }
            None => Ok(Setting { value: 2 * segment_bytes, from: "two segments".to_owned() }),
        }
    }

    /// The profile's wish, no more than the board or a sixteenth of the memory bears.
    fn cache(&self, profile: &Profile, machine: &Machine) -> Setting<u64> {
        if let Some(wish) = &self.wishes.cache {
            return wish.clone().into();
        }
        let board = &self.board.value;
        let memory = machine.memory_bytes.unwrap_or(board.memory_bytes) / MEMORY_PER_CACHE;
        let candidates = [
            (profile.cache_bytes, format!("profile {}", profile.name)),
            (board.cache_bytes_max, format!("board {}", board.name)),
            (memory.max(CACHE_BYTES_MIN), "a sixteenth of the memory".to_owned()),
        ];
        let (value, from) =
            candidates.into_iter().min_by_key(|&(bytes, _)| bytes).expect("there are three candidates");
        Setting { value, from }
    }
}

fn wished<T: Clone>(wish: &Option<Sourced<T>>, otherwise: Setting<T>) -> Setting<T> {
    wish.clone().map_or(otherwise, Setting::from)
}

fn percent(bytes: u64, share: u64) -> u64 {
    u64::try_from(u128::from(bytes) * u128::from(share) / 100).unwrap_or(u64::MAX)
}
