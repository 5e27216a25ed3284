//! The small set of files the demo makes when it is given none.

use super::DemoError;
use std::path::{Path, PathBuf};

const PHOTO_BYTES: usize = 3_000_000;
const LOG_LINES: usize = 20_000;
const READINGS: usize = 200;

/// Makes the files: photos that do not compress, a log and its later copy that share most blocks, many
/// small readings, an empty file.
pub(super) fn make(folder: &Path) -> Result<PathBuf, DemoError> {
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        let failed = |source| DemoError::Io { path: path.clone(), source };
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(failed)?;
        }
        std::fs::write(&path, bytes).map_err(failed)
    };
    for number in 1..=6 {
        write(&format!("photos/{number:03}.raw"), &noise(PHOTO_BYTES, number))?;
    }
    let log: String =
        (0..LOG_LINES).map(|line| format!("{line:08} sensor {} ok\n", line * 7919 % 101)).collect();
    write("logs/monday.log", log.as_bytes())?;
    write(
        "logs/tuesday.log",
        format!("a line that was not there on monday\n{log}and one more\n").as_bytes(),
    )?;
    for number in 0..READINGS {
        write(
            &format!("readings/{number:04}.json"),
            format!("{{\"celsius\":{}}}\n", number % 40).as_bytes(),
        )?;
    }
    write("empty", b"")?;
    folder.canonicalize().map_err(|source| DemoError::Io { path: folder.to_owned(), source })
}

fn noise(bytes: usize, seed: u32) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut noise);
    noise
}
