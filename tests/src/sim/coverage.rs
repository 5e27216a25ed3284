//! What a run is there to reach, and how often it did.
//!
//! A simulator that never gets to a place finds nothing there, and nothing tells so. What is worth reaching is
//! therefore counted, and a run that did not get there often enough has failed.

use std::collections::BTreeMap;
use std::ops::AddAssign;

/// A place worth reaching.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// A batch was refused because of the quota.
    RefusedByQuota,
    /// A call found no room on the device.
    DeviceFull,
    /// What was refused was taken after deletions and a cleaning.
    RoomCameBack,
    /// A spare became a segment.
    Recycled,
    /// A start that read the log met, behind the end of the newest segment, records of the file's earlier use.
    OldGenerationMet,
    /// A call failed that made a segment a spare, or a spare a segment.
    ErrorInRecycling,
    /// A write, cut or sync failed of a segment that had been a spare.
    ErrorOnRecycled,
    /// Garbage was deleted before a cleaning.
    GarbageDeleted,
    /// A question was answered with an error.
    ErrorAnswered,
    /// A merge of runs came to its end.
    Merged,
    /// All runs began to become one because most of their entries said nothing any more.
    Collected,
    /// A call failed of a step that goes on with a merge.
    ErrorInMerge,
    /// A power cut left a merge half done.
    CutInMerge,
    /// A power cut left a merge half done that makes one run of all.
    CutInCollection,
}

/// How often each place was reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage(BTreeMap<Event, u64>);

impl Coverage {
    /// It was reached.
    pub fn note(&mut self, event: Event) {
        self.note_times(event, 1);
    }

    /// It was reached so many times.
    pub fn note_times(&mut self, event: Event, times: u64) {
        if times > 0 {
            *self.0.entry(event).or_default() += times;
        }
    }

    /// How often it was reached.
    pub fn of(&self, event: Event) -> u64 {
        self.0.get(&event).copied().unwrap_or(0)
    }

    /// Those of some places that were reached less often than they should, and how often.
    pub fn lacking(&self, least: &[(Event, u64)]) -> Vec<(Event, u64)> {
        let found = least.iter().map(|(event, least)| (*event, self.of(*event), least));
        found.filter(|(_, found, least)| found < least).map(|(event, found, _)| (event, found)).collect()
    }
}

impl AddAssign for Coverage {
    fn add_assign(&mut self, other: Self) {
        other.0.into_iter().for_each(|(event, times)| self.note_times(event, times));
    }
}
