//! Which calls have to do with files that are used again: segments that become spares, and spares that become
//! segments.

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
