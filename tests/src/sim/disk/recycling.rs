//! Which calls have to do with files that are used again: segments that become spares, and spares that become
//! segments.

use super::content::PAGE;
use super::crash::Image;
use super::faults::Call;
use crate::sim::coverage::Event;

/// What it is called if this call fails; none if the call has nothing to do with a recycled file.
pub(super) fn error_in(image: &Image, call: Call, name: &str, inode: Option<u64>) -> Option<Event> {
    let inode = inode.or_else(|| image.names.get(name).copied());
    let of_spare = || inode.is_some_and(|inode| image.is_named(inode, is_spare));
    let was_spare = || inode.and_then(|inode| image.inodes.get(&inode)).is_some_and(|file| file.was_spare);
    let (begins, goes_on) = match call {
        Call::Rename => (is_spare_or_segment(name), false),
        Call::SyncNames => (image.waits_for_rename(is_spare), false),
        Call::Open | Call::Remove => (of_spare(), false),
        Call::Write | Call::Length | Call::Sync => (of_spare(), was_spare()),
        Call::Create | Call::List | Call::Ask | Call::Read => (false, false),
    };
    if begins { Some(Event::ErrorInRecycling) } else { goes_on.then_some(Event::ErrorOnRecycled) }
}

pub(super) fn is_spare(name: &str) -> bool {
    name.starts_with("spare-")
}

fn is_spare_or_segment(name: &str) -> bool {
    is_spare(name) || name.starts_with("segment-")
}

impl Image {
    /// Whether the newest segment holds, at the beginning of a page, a record of what its file was before. Whatever
    /// looks there for a batch must see that it is none. Offsets and values are those of `docs/format.md`.
    pub fn newest_segment_holds_older(&self) -> bool {
        let segment = |name: &str| u64::from_str_radix(name.strip_prefix("segment-")?, 16).ok();
        let Some((number, inode)) = self.names.iter().filter_map(|(n, i)| Some((segment(n)?, i))).max()
        else {
            return false;
        };
        let file = &self.inodes[inode];
        let (own, first) = ((1 << 32) + number, 1 << 32);
        file.was_spare
            && (1..file.seen.length / PAGE as u64).any(|page| {
                let mut header = [0; 32];
                file.seen.read(page * PAGE as u64, &mut header);
                let (head, generation) = header.split_at(24);
                let generation = u64::from_le_bytes(generation.try_into().expect("eight bytes are eight"));
                (1..=7).contains(&head[8]) && head[9] == 0 && (first..own).contains(&generation)
            })
    }
}
