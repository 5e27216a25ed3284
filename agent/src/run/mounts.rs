//! What is mounted at, above and below the watched folders. A file system that comes to lie over a folder, or goes from
//! there, is told by no notice of files: the kernel says that its table of mounts has changed. A folder whose own path
//! has a link or `..` in it is not found in the table: to follow links could wait for a dead server, and keep the agent
//! from starting.

use std::fs::File;
use std::future::pending;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// See `proc_pid_mountinfo(5)`.
const TABLE: &str = "/proc/self/mountinfo";
/// Most bytes read of it, some thousand mounts; what lies behind is not seen.
const TABLE_BYTES_MAX: u64 = 1 << 20;

pub(super) struct Mounts {
    /// `None` where the kernel does not tell.
    table: Option<AsyncFd<File>>,
    /// Each folder, and the mounts it lies in or holds.
    folders: Vec<(PathBuf, Vec<u8>)>,
}

impl Mounts {
    pub(super) fn of<'a>(folders: impl Iterator<Item = &'a Path>) -> Self {
        let table = noticed().inspect_err(|error| tracing::warn!("mounts are not noticed: {error}")).ok();
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let folders = folders.map(|path| (absolute(path), Vec::new())).collect();
        let mut mounts = Mounts { table, folders };
        mounts.look();
        mounts
    }

    /// Waits until a file system has come or gone near folders; gives their places. Cancel safe.
    pub(super) async fn changed(&mut self) -> Vec<usize> {
        loop {
            let Some(table) = &self.table else { return pending().await };
            match table.ready(Interest::PRIORITY).await {
                Ok(mut told) => told.clear_ready(),
                Err(_) => self.table = None,
            }
            let changed = self.look();
            if !changed.is_empty() {
                return changed;
            }
        }
    }

    /// Which folders' mounts are others than at the last look.
    fn look(&mut self) -> Vec<usize> {
        let Ok(table) = read_table() else { return Vec::new() };
        let folders = self.folders.iter_mut().enumerate();
        let changed = folders.filter_map(|(place, (folder, before))| {
            let now = near(folder, &table);
            (std::mem::replace(before, now) != *before).then_some(place)
        });
        changed.collect()
    }
}

#[expect(
    deprecated,
    reason = "its successor is unsafe, for types whose descriptor may change; a file's never does"
)]
fn noticed() -> io::Result<AsyncFd<File>> {
    AsyncFd::with_interest(File::open(TABLE)?, Interest::PRIORITY)
}

fn read_table() -> io::Result<Vec<u8>> {
    let mut table = Vec::new();
    File::open(TABLE)?.take(TABLE_BYTES_MAX).read_to_end(&mut table)?;
    Ok(table)
}

/// The lines of mounts that a folder lies in, or that lie in it.
fn near(folder: &Path, table: &[u8]) -> Vec<u8> {
    let folder = escaped(folder);
    let is_near = |line: &&[u8]| {
        let at = line.split(|&byte| byte == b' ').nth(4);
        at.is_some_and(|at| is_within(&folder, at) || is_within(at, &folder))
    };
    table.split_inclusive(|&byte| byte == b'\n').filter(is_near).flatten().copied().collect()
}

fn is_within(path: &[u8], folder: &[u8]) -> bool {
    let folder = folder.strip_suffix(b"/").unwrap_or(folder);
    path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

/// A path as the table writes it.
fn escaped(path: &Path) -> Vec<u8> {
    let mut text = Vec::new();
    for &byte in path.as_os_str().as_bytes() {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' | b'#' => text.extend(format!("\\{byte:03o}").bytes()),
            _ => text.push(byte),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_s_mounts_are_those_it_lies_in_and_those_in_it() {
        let table = b"1 0 8:1 / / rw - ext4 /dev/a rw\n\
            2 1 8:2 / /srv rw - ext4 /dev/b rw\n\
            3 2 8:3 / /srv/my\\040camera/card rw - vfat /dev/c rw\n\
            4 2 8:4 / /srv/my\\040camera2 rw - vfat /dev/d rw\n\
            5 1 0:5 / /proc rw - proc proc rw\n\
            short\n";
        let numbers = |folder: &str| {
            let lines = near(Path::new(folder), table);
            lines.split(|&byte| byte == b'\n').filter_map(|line| line.first().copied()).collect::<Vec<u8>>()
        };
        assert_eq!(numbers("/srv/my camera"), b"123");
        assert_eq!(numbers("/srv/my camera2/below"), b"124");
        assert_eq!(numbers("/home"), b"1");
        assert_eq!(numbers("/"), b"12345");
    }
}
