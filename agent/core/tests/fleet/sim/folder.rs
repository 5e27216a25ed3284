//! A watched folder in memory.

use bytes::Bytes;
use larder_core::message::{FileDone, FileId, FileJob, FileStat};
use std::collections::{BTreeMap, BTreeSet};

const READ_BYTES: usize = 256 * 1024;
const PAGE: usize = 64;

#[derive(Clone)]
struct File {
    bytes: Bytes,
    mtime_ms: i64,
    inode: u64,
    ctime_ns: i64,
}

struct Opened {
    path: (u8, String),
    offset: usize,
}

/// All watched folders of one node; files outlive a crash, open ones do not.
#[derive(Default)]
pub(crate) struct Folders {
    files: BTreeMap<(u8, String), File>,
    opened: BTreeMap<FileId, Opened>,
    scans: BTreeMap<u8, Option<String>>,
    last_inode: u64,
    changes: i64,
    /// Paths that do not open.
    pub(crate) unreadable: BTreeSet<String>,
}

impl Folders {
    pub(crate) fn write(&mut self, now_ms: i64, watch: u8, path: &str, bytes: impl Into<Bytes>) {
        self.last_inode += 1;
        self.changes += 1;
        let key = (watch, path.to_owned());
        let inode = self.files.get(&key).map_or(self.last_inode, |old| old.inode);
        self.files.insert(key, File { bytes: bytes.into(), mtime_ms: now_ms, inode, ctime_ns: self.changes });
    }

    pub(crate) fn append(&mut self, now_ms: i64, watch: u8, path: &str, more: &[u8]) {
        let old = self.files.get(&(watch, path.to_owned())).map(|file| file.bytes.to_vec());
        self.write(now_ms, watch, path, [old.unwrap_or_default().as_slice(), more].concat());
    }

    pub(crate) fn remove(&mut self, watch: u8, path: &str) {
        self.files.remove(&(watch, path.to_owned()));
    }

    pub(crate) fn has(&self, watch: u8, path: &str) -> bool {
        self.files.contains_key(&(watch, path.to_owned()))
    }

    pub(crate) fn count(&self) -> usize {
        self.files.len()
    }

    pub(crate) fn crash(&mut self) {
        self.opened.clear();
        self.scans.clear();
    }

    pub(crate) fn open_files(&self) -> usize {
        self.opened.len()
    }

    pub(crate) fn run(&mut self, id: FileId, job: FileJob) -> Option<FileDone> {
        Some(match job {
            FileJob::Scan { watch, restart } => self.scan(watch, restart),
            FileJob::Stat { watch, path } => FileDone::Stat(self.stat(&(watch, path))),
            FileJob::Open { path, .. } if self.unreadable.contains(&path) => {
                FileDone::Failed("permission denied".into())
            }
            FileJob::Open { watch, path } => match self.stat(&(watch, path.clone())) {
                Some(stat) => {
                    self.opened.insert(id, Opened { path: (watch, path), offset: 0 });
                    FileDone::Opened(stat)
                }
                None => FileDone::Failed("no such file".into()),
            },
            FileJob::Read => self.read(id),
            FileJob::Close => {
                self.opened.remove(&id);
                return None;
            }
            FileJob::Delete { watch, path, expected } => {
                let key = (watch, path);
                let is_expected = self.stat(&key).is_none_or(|stat| stat == expected);
                if is_expected {
                    self.files.remove(&key);
                }
                FileDone::Deleted(is_expected)
            }
        })
    }

    fn stat(&self, key: &(u8, String)) -> Option<FileStat> {
        self.files.get(key).map(|file| FileStat {
            size: file.bytes.len() as u64,
            mtime_ms: file.mtime_ms,
            mode: 0o644,
            device: 0,
            inode: file.inode,
            ctime_ns: file.ctime_ns,
        })
    }

    fn scan(&mut self, watch: u8, restart: bool) -> FileDone {
        let after = self.scans.remove(&watch).flatten().filter(|_| !restart);
        let later = |path: &String| after.as_ref().is_none_or(|after| path > after);
        let paths = self.files.keys().filter(|(of, path)| *of == watch && later(path));
        let files: Vec<(String, FileStat)> =
            paths.take(PAGE).map(|key| (key.1.clone(), self.stat(key).expect("listed"))).collect();
        let end = files.len() < PAGE;
        if !end {
            self.scans.insert(watch, files.last().map(|(path, _)| path.clone()));
        }
        FileDone::Page { files, end }
    }

    fn read(&mut self, id: FileId) -> FileDone {
        let Some(opened) = self.opened.get_mut(&id) else { return FileDone::Failed("not open".into()) };
        // An unlinked file can still be read; here it vanishes, which a removable disk does.
        let Some(file) = self.files.get(&opened.path) else {
            self.opened.remove(&id);
            return FileDone::Failed("it has vanished".into());
        };
        let start = opened.offset.min(file.bytes.len());
        let end = (start + READ_BYTES).min(file.bytes.len());
        opened.offset = end;
        let bytes = file.bytes.slice(start..end);
        let path = opened.path.clone();
        FileDone::Data { end: bytes.is_empty().then(|| self.stat(&path).expect("read above")), bytes }
    }
}
