//! The core's notes as lines of the log.

use larder_core::note::Note;

/// Writes one note, at the level a service's operator would want it.
pub(super) fn write(note: &Note) {
    match note {
        Note::Dropped { from, why } => tracing::warn!("a message of {from} was dropped: {why}"),
        Note::Conflict { name, kept_as: Some(kept) } => {
            tracing::warn!(
                "{} was written on two nodes: the other version is {}",
                name.as_str(),
                kept.as_str()
            );
        }
        Note::Conflict { name, kept_as: None } => {
            tracing::warn!("{} was written on two nodes: the peer keeps both versions", name.as_str());
        }
        Note::Refused { by, name, why } => tracing::warn!("{by} refused {}: {why}", name.as_str()),
        Note::File { path, what } => tracing::warn!("{path}: {what}"),
        Note::Store { what } => tracing::warn!("store: {what}"),
        Note::Fetch { target, why } => tracing::warn!("the fetch of {target} is given up: {why}"),
        Note::Received { from, name } => tracing::debug!("{} was taken from {from}", name.as_str()),
        Note::Profile { name, why } => tracing::info!("profile {name} is in force: {why}"),
        Note::Cleaned { bytes } => tracing::info!("cleaning gave {bytes} bytes back"),
        Note::Scrubbed { blocks, damaged, incomplete } if damaged.is_empty() && incomplete.is_empty() => {
            tracing::info!("{blocks} blocks were verified, all whole");
        }
        Note::Scrubbed { blocks, damaged, incomplete } => {
            damaged.iter().for_each(|id| tracing::warn!("block {id} is damaged"));
            incomplete.iter().for_each(|name| tracing::warn!("{} is incomplete", name.as_str()));
            tracing::warn!(
                "of {blocks} verified blocks {} are damaged: put or fetch these objects again to heal them",
                damaged.len()
            );
        }
        Note::Evicted { name } => tracing::info!("{} was dropped to make room", name.as_str()),
    }
}
