//! What the kernel counts for the block device under a directory.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A block device's counters.
pub struct Device(PathBuf);

/// Counts since the machine started.
#[derive(Clone, Copy, Default)]
pub struct Counts {
    /// Bytes written to the device, by anybody.
    pub bytes: u64,
    /// Cache flushes the device was asked for.
    pub flushes: u64,
}

impl Device {
    /// The device a directory lies on.
    pub fn under(directory: &Path) -> Self {
        let number = std::fs::metadata(directory).expect("the directory is there").dev();
        // glibc's makedev, for the small numbers block devices have
        let (major, minor) = ((number >> 8) & 0xfff, (number & 0xff) | ((number >> 12) & 0xfff00));
        Self(format!("/sys/dev/block/{major}:{minor}/stat").into())
    }

    /// Zeros where the kernel does not say (overlay, tmpfs).
    pub fn counts(&self) -> Counts {
        let text = std::fs::read_to_string(&self.0).unwrap_or_default();
        let fields: Vec<u64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let field = |index: usize| fields.get(index).copied().unwrap_or(0);
        Counts { bytes: field(6) * 512, flushes: field(15) }
    }
}

/// Bytes the files of a directory take on the device, and those below it.
pub fn space(directory: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(directory) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(found) if found.is_dir() => space(&entry.path()),
            Ok(found) => found.blocks() * 512,
            Err(_gone) => 0,
        })
        .sum()
}
