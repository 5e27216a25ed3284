//! Starts of the process on one store, and how its log ended at each.
//!
//! A peer that was told of a later change than there was at a start knows that the end of the log is lost. It may hear
//! of that start only after others, when the log is longer again: so a node keeps its last [`STARTS_MAX`], writes them
//! with its first batch that adds anything, and tells them all. A command without an agent is a start too.

use serde::{Deserialize, Serialize};

/// How many starts are kept and told.
pub const STARTS_MAX: usize = 16;
/// The setting that holds them.
pub const STARTS_KEY: &str = "starts";
const FORMAT: u8 = 1;

/// One start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// Drawn at the start.
    pub epoch: u64,
    /// The newest sequence number in the log at the time.
    pub log: u64,
}

/// The starts that the setting holds, and this one behind them; this one alone where it can not be read.
#[must_use]
pub fn with(saved: Option<&[u8]>, this: Start) -> Vec<Start> {
    let saved = saved.and_then(|saved| saved.strip_prefix(&[FORMAT]));
    let mut starts: Vec<Start> = saved.and_then(|body| postcard::from_bytes(body).ok()).unwrap_or_default();
    starts.push(this);
    starts.drain(..starts.len().saturating_sub(STARTS_MAX));
    starts
}

/// The setting's value.
#[must_use]
pub fn encode(starts: &[Start]) -> Vec<u8> {
    postcard::to_extend(starts, vec![FORMAT]).expect("a Vec grows and every length is known")
}

/// The least that the log was at the starts behind those of `known`, as far as `starts` reach; none if there are none.
/// The last start that somebody knows may have written nothing, and so be missing here: the one before it is not.
#[must_use]
pub fn least_behind(starts: &[Start], known: [u64; 2]) -> Option<u64> {
    let behind = starts.iter().rposition(|start| known.contains(&start.epoch)).map_or(0, |index| index + 1);
    starts[behind..].iter().map(|start| start.log).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_starts_are_kept_and_the_least_behind_one_is_found() {
        let mut saved = None;
        for number in 0..20 {
            let this = Start { epoch: number, log: 100 - number };
            saved = Some(encode(&with(saved.as_deref(), this)));
        }
        let starts = with(saved.as_deref(), Start { epoch: 20, log: 500 });
        assert_eq!(starts.iter().map(|start| start.epoch).collect::<Vec<_>>(), (5..21).collect::<Vec<_>>());
        for (known, least) in [
            ([4, 5], Some(81)),
            ([18, 19], Some(500)),
            ([19, 20], None),
            ([0, 1], Some(81)),
            ([19, 77], Some(500)),
        ] {
            assert_eq!(least_behind(&starts, known), least, "behind {known:?}");
        }
        assert_eq!(with(Some(&[9, 9]), starts[0]), [starts[0]], "of another format");
    }
}
