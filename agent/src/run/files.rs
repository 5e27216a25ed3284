//! Files of watched folders, on the helper thread: scanned a page at a time, read a piece at a time.
//!
//! A scan has each folder watched before it reads it.
//! Only regular files are taken. Every look, reading and deletion goes from the watched folder down part by part
//! and follows no link, whatever becomes of the tree meanwhile: what is outside stays unread and where it is.
//! The watched folder itself is opened anew each time, since it may be mounted or made again.

use super::watcher::Watching;
use crate::below;
use crate::config::{FOLDER_DEPTH_MAX, Watch};
use bytes::BytesMut;
use larder_core::limits::{FRAME_BYTES_MAX, SCAN_PAGE};
use larder_core::message::{FileDone, FileId, FileJob, FileStat};
use rustix::fs::{AtFlags, Dir, unlinkat};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Entries one job of a scan looks at, files or not, so that others have their turn.
const SCAN_ENTRIES_MAX: usize = 4096;

/// The open files and scans of all watched folders.
pub(super) struct Files {
    watches: Vec<Watch>,
    open: BTreeMap<FileId, File>,
    scans: BTreeMap<u8, Scan>,
    /// What the last whole scan of each has left out.
    left_out: BTreeMap<u8, Option<(PathBuf, u64)>>,
    watching: Watching,
}

/// How far the scan of a watched folder is.
#[derive(Default)]
struct Scan {
    /// From the watched folder down to the one being read.
    levels: Vec<Level>,
    /// Entries that are never taken: the first, and how many.
    left_out: Option<(PathBuf, u64)>,
}

/// A folder being scanned.
struct Level {
    /// Its path below the watched folder.
    relative: PathBuf,
    entries: Dir,
}

impl Files {
    pub(super) fn new(watches: Vec<Watch>, watching: Watching) -> Self {
        Files { watches, open: BTreeMap::new(), scans: BTreeMap::new(), left_out: BTreeMap::new(), watching }
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

    /// The folder of a file below a watched one, open, and the file's own name.
    fn parent<'a>(&self, watch: u8, path: &'a str) -> io::Result<(OwnedFd, &'a OsStr)> {
        let root = below::root(&self.watch(watch).path)?;
        below::parent(root.as_fd(), Path::new(path))
    }

    fn stat(&self, watch: u8, path: &str) -> Option<FileStat> {
        let takes = self.watch(watch).takes(Path::new(path));
        let (parent, entry) = self.parent(watch, path).ok()?;
        let metadata = below::look(parent, entry).ok()?;
        (takes && metadata.is_file()).then(|| stat_of(&metadata))
    }

    fn open(&mut self, file: FileId, watch: u8, path: &str) -> io::Result<FileDone> {
        let (parent, entry) = self.parent(watch, path)?;
        let opened = below::file(parent, entry)?;
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
        let filled = below::read_full(open, &mut bytes)?;
        let end = if filled < bytes.len() { Some(stat_of(&open.metadata()?)) } else { None };
        bytes.truncate(filled);
        Ok(FileDone::Data { bytes: bytes.freeze(), end })
    }

    fn delete(&mut self, watch: u8, path: &str, expected: FileStat) -> io::Result<FileDone> {
        let Ok((parent, entry)) = self.parent(watch, path) else { return Ok(FileDone::Deleted(false)) };
        let is_expected = |metadata: Metadata| metadata.is_file() && stat_of(&metadata) == expected;
        if !below::look(&parent, entry).is_ok_and(is_expected) {
            return Ok(FileDone::Deleted(false));
        }
        unlinkat(&parent, entry, AtFlags::empty())?;
        Ok(FileDone::Deleted(true))
    }

    /// The next page of regular files; folders that can not be read are left out and said.
    fn scan(&mut self, watch: u8, restart: bool) -> io::Result<FileDone> {
        let mut scan = self.scans.remove(&watch).unwrap_or_default();
        if restart || scan.levels.is_empty() {
            self.watching.begin(watch);
            let root = below::root(&self.watch(watch).path);
            scan = Scan { levels: vec![self.descend(watch, PathBuf::new(), root)?], left_out: None };
        }
        let mut files: Vec<(String, FileStat)> = Vec::new();
        let mut looked_at = 0;
        while files.len() < SCAN_PAGE
            && looked_at < SCAN_ENTRIES_MAX
            && let depth @ 1.. = scan.levels.len()
        {
            looked_at += 1;
            let level = &mut scan.levels[depth - 1];
            let Some(entry) = level.entries.next() else {
                scan.levels.pop();
                continue;
            };
            let (Ok(entry), Ok(folder)) = (entry, level.entries.fd()) else { continue };
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let Ok(metadata) = below::look(folder, name) else { continue };
            let relative = level.relative.join(name);
            let is_folder = metadata.is_dir();
            if is_folder && !self.watch(watch).recursive {
                continue;
            }
            if is_folder && depth <= FOLDER_DEPTH_MAX {
                let opened = below::folder(folder, name);
                scan.levels.extend(self.descend(watch, relative, opened));
            } else if is_folder || !metadata.is_file() && self.watch(watch).takes(&relative) {
                scan.left_out.get_or_insert((relative, 0)).1 += 1;
            } else if metadata.is_file() && self.watch(watch).takes(&relative) {
                match relative.to_str() {
                    Some(path) => files.push((path.to_owned(), stat_of(&metadata))),
                    None => tracing::warn!("{}: its name is not UTF-8; rename it", relative.display()),
                }
            }
        }
        let end = scan.levels.is_empty();
        if end {
            self.say_left_out(watch, scan.left_out);
        } else {
            self.scans.insert(watch, scan);
        }
        Ok(FileDone::Page { files, end })
    }

    /// Says what a scan has left out, if the one before it has not said the same.
    fn say_left_out(&mut self, watch: u8, left_out: Option<(PathBuf, u64)>) {
        let said = self.left_out.insert(watch, left_out.clone()).flatten();
        if let Some((first, count)) = left_out.filter(|left_out| said.as_ref() != Some(left_out)) {
            tracing::warn!(
                "{}: {count} left out, {} first: no regular file (a link, a pipe), or over {FOLDER_DEPTH_MAX} deep",
                self.watch(watch).path.display(),
                first.display(),
            );
        }
    }

    /// A folder that was opened is watched, and then read.
    fn descend(&mut self, watch: u8, relative: PathBuf, opened: io::Result<OwnedFd>) -> io::Result<Level> {
        let path = self.watch(watch).path.join(&relative);
        let entries = opened.and_then(|folder| {
            self.watching.watch(watch, folder.as_fd(), &path, &relative);
            Ok(Dir::new(folder)?)
        });
        match entries {
            Ok(entries) => Ok(Level { relative, entries }),
            Err(error) => {
                self.watching.unwatched(watch, &path, &error);
                Err(error)
            }
        }
    }
}

fn stat_of(metadata: &Metadata) -> FileStat {
    FileStat {
        size: metadata.len(),
        mtime_ms: metadata.mtime() * 1000 + metadata.mtime_nsec() / 1_000_000,
        mode: metadata.mode() & 0o7777,
        device: metadata.dev(),
        inode: metadata.ino(),
        ctime_ns: metadata.ctime().saturating_mul(1_000_000_000).saturating_add(metadata.ctime_nsec()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::watcher::Watcher;
    use super::*;
    use crate::config::After;
    use globset::GlobSet;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn watching(folder: &Path) -> Files {
        let watches = vec![Watch {
            path: folder.to_owned(),
            prefix: String::new(),
            include: GlobSet::empty(),
            exclude: GlobSet::empty(),
            recursive: true,
            settle_s: 0,
            after: After::DeleteAfterAck,
        }];
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (_watcher, watching) = runtime.block_on(async { Watcher::start(&watches) });
        Files::new(watches, watching)
    }

    #[test]
    fn a_folder_that_becomes_a_link_while_it_is_scanned_shows_nothing_of_where_it_leads() {
        let dir = tempfile::tempdir().unwrap();
        let (watched, outside) = (dir.path().join("in"), dir.path().join("outside"));
        for index in 0..2 * SCAN_PAGE {
            for (root, content) in [(&watched, "ours"), (&outside, "of somebody else")] {
                let folder = root.join(format!("a/{index}"));
                fs::create_dir_all(&folder).unwrap();
                fs::write(folder.join("file"), content).unwrap();
            }
        }
        let mut files = watching(&watched);
        let mut found = Vec::new();
        for restart in [true, false] {
            let Some(FileDone::Page { files: page, end: false }) =
                files.work(FileId(1), FileJob::Scan { watch: 0, restart })
            else {
                panic!("a page and more to come");
            };
            found.extend(page);
            if restart {
                fs::rename(watched.join("a"), dir.path().join("aside")).unwrap();
                symlink(outside.join("a"), watched.join("a")).unwrap();
            }
        }
        assert_eq!(found.len(), 2 * SCAN_PAGE);
        assert!(found.iter().all(|(_, stat)| stat.size == 4), "a file outside was found");
        let path = found[0].0.clone();
        assert_eq!(files.stat(0, &path), None);
        assert!(matches!(
            files.work(FileId(2), FileJob::Open { watch: 0, path: path.clone() }),
            Some(FileDone::Failed(_))
        ));
        let outside = outside.join(&path);
        let expected = stat_of(&fs::metadata(&outside).unwrap());
        let done = files.work(FileId(3), FileJob::Delete { watch: 0, path, expected });
        assert!(matches!(done, Some(FileDone::Deleted(false))) && outside.exists());
    }

    #[test]
    fn a_file_rewritten_in_place_with_its_old_size_and_time_is_another_version_and_is_not_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "one").unwrap();
        let mut files = watching(dir.path());
        let expected = files.stat(0, "file").unwrap();
        let written = fs::metadata(&path).unwrap().modified().unwrap();
        // the kernel tells changes apart that are a tick of its clock away from each other
        while stat_of(&fs::metadata(&path).unwrap()).ctime_ns == expected.ctime_ns {
            fs::write(&path, "two").unwrap();
            fs::File::options().write(true).open(&path).unwrap().set_modified(written).unwrap();
        }
        let delete = |expected| FileJob::Delete { watch: 0, path: "file".into(), expected };
        let is_deleted = |done| matches!(done, Some(FileDone::Deleted(true)));
        assert!(!is_deleted(files.work(FileId(1), delete(expected))));
        let now = files.stat(0, "file").unwrap();
        assert_eq!((now.size, now.mtime_ms, now.inode), (expected.size, expected.mtime_ms, expected.inode));
        assert!(is_deleted(files.work(FileId(2), delete(now))));
    }
}
