//! Wear of the eMMC under the store: JEDEC eMMC 5.0's `DEVICE_LIFE_TIME_EST` and `PRE_EOL_INFO`, which the
//! kernel gives as `life_time` and `pre_eol_info` of the card. SD cards do not tell.

use std::path::Path;

use super::{entries, text};

/// A store on a mapping (encryption, LVM) on a partition on a card is three deep.
const DEPTH_MAX: u32 = 4;

/// The used share of the life of the card that holds this block device, as the upper end of the tenth
/// that the card gives; or, if that is more, what its spare blocks say.
pub(super) fn used_percent(root: &Path, (major, minor): (u32, u32)) -> Option<u8> {
    of_block(&root.join(format!("sys/dev/block/{major}:{minor}")), DEPTH_MAX)
}

fn of_block(block: &Path, depth: u32) -> Option<u8> {
    // A partition lies in the folder of its disk, and only that has a device.
    let own = [block.join("device"), block.join("../device")].iter().find_map(|card| of_card(card));
    if own.is_some() || depth == 0 {
        return own;
    }
    entries(&block.join("slaves"), "").iter().filter_map(|below| of_block(below, depth - 1)).max()
}

fn of_card(card: &Path) -> Option<u8> {
    let hex = |word: &str| u8::from_str_radix(word.trim_start_matches("0x"), 16).ok();
    // Type A and type B cells, each in tenths; 0 is not defined, 11 is past the end.
    let tenths = text(&card.join("life_time"))
        .and_then(|words| words.split_whitespace().filter_map(hex).filter(|n| (1..=11).contains(n)).max());
    let life = tenths.map(|tenths| (tenths * 10).min(100));
    // 1 normal, 2: 80 % of the spare blocks are used, 3: 90 %.
    let spare = match text(&card.join("pre_eol_info")).as_deref().and_then(hex) {
        Some(1) => Some(0),
        Some(2) => Some(80),
        Some(3) => Some(90),
        Some(_) | None => None,
    };
    life.max(spare)
}
