//! Files of watched folders, on the helper thread: scanned a page at a time, read a piece at a time.
//!
//! A scan has each folder watched before it reads it.
//! Symbolic links are never followed, and only regular files are taken. A file is opened by its path below
//! the folder; one that is no longer a regular file is refused.

use super::watcher::Watching;
use crate::config::{FOLDER_DEPTH_MAX, Watch};
use bytes::BytesMut;
use larder_core::limits::{FRAME_BYTES_MAX, SCAN_PAGE};
use larder_core::message::{FileDone, FileId, FileJob, FileStat};
use std::collections::BTreeMap;
use std::fs::{File, Metadata, OpenOptions, ReadDir};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Entries one job of a scan looks at, files or not, so that others have their turn.
const SCAN_ENTRIES_MAX: usize = 4096;

/// The open files and scans of all watched folders.
pub(super) struct Files {
    watches: Vec<Watch>,
    open: BTreeMap<FileId, File>,
    scans: BTreeMap<u8, Vec<(PathBuf, ReadDir)>>,
    watching: Watching,
}

impl Files {
    pub(super) fn new(watches: Vec<Watch>, watching: Watching) -> Self {
        Files { watches, open: BTreeMap::new(), scans: BTreeMap::new(), watching }
    }

    /// Carries out a job; `None` when it has no answer.
    pub(super) fn work(&mut self, file: FileId, job: FileJob) -> Option<FileDone> {
        let done = match job {
            FileJob::Scan { watch, restart } => self.scan(watch, restart),
            FileJob::Stat { watch, path } => Ok(FileDone::Stat(self.stat(watch, &path))),
            FileJob::Open { watch, path } => self.open(file, watch, &path),
            FileJob::Read => self.read(file),
            FileJob::Close => {
                self.open.remove(&file);
                return None;
            }
            FileJob::Delete { watch, path, expected } => self.delete(watch, &path, expected),
        };
        Some(done.unwrap_or_else(|error| {
            self.open.remove(&file);
            FileDone::Failed(error.to_string())
        }))
    }

    fn watch(&self, watch: u8) -> &Watch {
        &self.watches[usize::from(watch)]
    }

    fn path(&self, watch: u8, path: &str) -> PathBuf {
        self.watch(watch).path.join(path)
    }

    fn stat(&self, watch: u8, path: &str) -> Option<FileStat> {
        let takes = self.watch(watch).takes(Path::new(path));
        let metadata = std::fs::symlink_metadata(self.path(watch, path)).ok()?;
        (takes && metadata.is_file()).then(|| stat_of(&metadata))
    }

    fn open(&mut self, file: FileId, watch: u8, path: &str) -> io::Result<FileDone> {
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(flags.bits().cast_signed())
            .open(self.path(watch, path))?;
        let metadata = opened.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("it is no longer a regular file"));
        }
        self.open.insert(file, opened);
        Ok(FileDone::Opened(stat_of(&metadata)))
    }

    fn read(&mut self, file: FileId) -> io::Result<FileDone> {
        let open = self.open.get_mut(&file).ok_or_else(|| io::Error::other("it is not open"))?;
        let mut bytes = BytesMut::zeroed(FRAME_BYTES_MAX);
        let mut filled = 0;
        while filled < bytes.len() {
            match open.read(&mut bytes[filled..]) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let end = if filled < bytes.len() { Some(stat_of(&open.metadata()?)) } else { None };
        bytes.truncate(filled);
        Ok(FileDone::Data { bytes: bytes.freeze(), end })
    }

    fn delete(&mut self, watch: u8, path: &str, expected: FileStat) -> io::Result<FileDone> {
        if self.stat(watch, path) != Some(expected) {
            return Ok(FileDone::Deleted(false));
        }
        std::fs::remove_file(self.path(watch, path))?;
        Ok(FileDone::Deleted(true))
    }

    /// The next page of regular files; folders that can not be read are left out and said.
    fn scan(&mut self, watch: u8, restart: bool) -> io::Result<FileDone> {
        let mut stack: Vec<(PathBuf, ReadDir)> = self.scans.remove(&watch).unwrap_or_default();
        let root = self.watch(watch).path.clone();
        let recursive = self.watch(watch).recursive;
        if restart || stack.is_empty() {
            self.watching.begin(watch);
            self.watching.watch(watch, &root, Path::new(""));
            stack = vec![(PathBuf::new(), std::fs::read_dir(&root)?)];
        }
        let mut files: Vec<(String, FileStat)> = Vec::new();
        let mut looked_at = 0;
        while files.len() < SCAN_PAGE
            && looked_at < SCAN_ENTRIES_MAX
            && let Some((folder, entries)) = stack.last_mut()
        {
            looked_at += 1;
            let Some(entry) = entries.next() else {
                stack.pop();
                continue;
            };
            let Ok(entry) = entry else { continue };
            let relative = folder.join(entry.file_name());
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() && recursive && stack.len() <= FOLDER_DEPTH_MAX {
                self.watching.watch(watch, &root.join(&relative), &relative);
                match std::fs::read_dir(root.join(&relative)) {
                    Ok(entries) => stack.push((relative, entries)),
                    Err(error) => tracing::warn!("{}: {error}", root.join(&relative).display()),
                }
            } else if metadata.is_file() && self.watches[usize::from(watch)].takes(&relative) {
                match relative.to_str() {
                    Some(path) => files.push((path.to_owned(), stat_of(&metadata))),
                    None => tracing::warn!("{}: its name is not UTF-8; rename it", relative.display()),
                }
            }
        }
        let end = stack.is_empty();
        if !end {
            self.scans.insert(watch, stack);
        }
        Ok(FileDone::Page { files, end })
    }
}

fn stat_of(metadata: &Metadata) -> FileStat {
    FileStat {
        size: metadata.len(),
        mtime_ms: metadata.mtime() * 1000 + metadata.mtime_nsec() / 1_000_000,
        mode: metadata.mode() & 0o7777,
        inode: metadata.ino(),
    }
}
