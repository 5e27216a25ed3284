//! Files on their way in: found below the paths of a command, named, opened, and read whole or not at all.
//!
//! Duty: walk directories in the order of their names; read each file as it was at one moment. Refuses, one
//! report each: symbolic links inside a directory, whatever is no regular file, names that [`Name`] refuses,
//! and the store's own directory. Everything below a directory is opened relative to it and never through a
//! link, so a tree that changes meanwhile leads nowhere else. Bound: one listing and one descriptor a level of
//! directories, of which a name of 1,024 bytes allows 512; one frame of a file. Fails: [`SourceError`].

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::vec;

use bytes::{Bytes, BytesMut};
use larder_core::binding::Meta;
use larder_core::limits::FRAME_BYTES_MAX;
use larder_core::name::{Name, NameError};
use larder_core::request::FailureKind;
use rustix::fs::Dir;

use super::exit::kind_of;
use crate::below;

/// Why a file was not stored.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The system does not let us.
    #[error("{} cannot be read: {reason}", path.display())]
    Unreadable {
        /// The file or directory.
        path: PathBuf,
        /// What the system says.
        reason: io::Error,
    },
    /// It was there, and is gone.
    #[error("{} vanished while it was read; what was stored under its name before is unchanged", path.display())]
    Vanished {
        /// The file.
        path: PathBuf,
    },
    /// It did not hold still.
    #[error("{} kept changing while it was read; put it again when nobody writes to it", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// A symbolic link inside a directory.
    #[error("{} is skipped: it is a symbolic link; put what it leads to by its own path", path.display())]
    Link {
        /// The link.
        path: PathBuf,
    },
    /// Not a regular file.
    #[error("{} is skipped: it is a {what}, not a file", path.display())]
    Special {
        /// Where it is.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// A name that no object may have.
    #[error("{} is skipped: {error}", path.display())]
    Name {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with it.
        error: NameError,
    },
    /// The store itself.
    #[error("{} is skipped: it is the store itself", path.display())]
    Store {
        /// The store's directory.
        path: PathBuf,
    },
}

impl SourceError {
    /// What kind of failure it is, where one of them fits.
    pub(super) fn kind(&self) -> Option<FailureKind> {
        match self {
            Self::Unreadable { reason, .. } => kind_of(reason),
            Self::Vanished { .. } => Some(FailureKind::NotFound),
            Self::Changed { .. } => Some(FailureKind::Busy),
            Self::Link { .. } | Self::Special { .. } | Self::Name { .. } | Self::Store { .. } => None,
        }
    }
}

/// A regular file and the name it is to have.
#[derive(Debug)]
pub(super) struct Source {
    /// The directory it was found in; none for a path of the command line.
    parent: Option<Rc<OwnedFd>>,
    entry: OsString,
    /// Where it is, for people.
    pub(super) path: PathBuf,
    /// What it is to be called.
    pub(super) name: Name,
}

impl Source {
    /// Whether it was named on the command line.
    pub(super) fn is_named(&self) -> bool {
        self.parent.is_none()
    }

    /// Its bytes now, or 0 if nobody knows.
    pub(super) fn size(&self) -> u64 {
        look(self.parent.as_deref(), &self.entry).map_or(0, |metadata| metadata.len())
    }

    /// Opens it for one reading.
    pub(super) fn open(&self) -> Result<Reading<'_>, SourceError> {
        let unreadable = |reason: io::Error| SourceError::Unreadable { path: self.path.clone(), reason };
        let file = match &self.parent {
            Some(parent) => below::file(parent, &self.entry),
            None => below::named_file(&self.path),
        };
        let file = file.map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        match special(&metadata) {
            Some(what) => Err(SourceError::Special { path: self.path.clone(), what }),
            None => Ok(Reading { source: self, file, stamp: Stamp::of(&metadata), metadata, done: 0 }),
        }
    }
}

/// What tells one version of a file from another.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Stamp {
        let modified = (metadata.mtime(), metadata.mtime_nsec());
        Stamp { device: metadata.dev(), inode: metadata.ino(), size: metadata.len(), modified }
    }
}

/// A file being read.
pub(super) struct Reading<'a> {
    source: &'a Source,
    file: File,
    stamp: Stamp,
    metadata: Metadata,
    done: u64,
}

impl Reading<'_> {
    /// About the file, as it was when it was opened.
    pub(super) fn meta(&self) -> Meta {
        let mtime_ms = self.metadata.mtime().saturating_mul(1000) + self.metadata.mtime_nsec() / 1_000_000;
        Meta { size: self.metadata.len(), mtime_ms, mode: self.metadata.mode() & 0o7777 }
    }

    /// Whether one frame holds it all.
    pub(super) fn fits_a_frame(&self) -> bool {
        self.stamp.size <= FRAME_BYTES_MAX as u64
    }

    /// The next bytes, at most a frame; none at the end. More or fewer than it had: it has changed.
    pub(super) fn next(&mut self) -> Result<Bytes, SourceError> {
        let left = self.stamp.size - self.done;
        // one byte more than there should be shows a file that grows
        let room = usize::try_from(left + 1).map_or(FRAME_BYTES_MAX, |room| room.min(FRAME_BYTES_MAX));
        let mut buffer = BytesMut::zeroed(room);
        let filled =
            below::read_full(&mut self.file, &mut buffer).map_err(|reason| self.unreadable(reason))?;
        buffer.truncate(filled);
        self.done += filled as u64;
        if self.done > self.stamp.size || (filled < room && self.done < self.stamp.size) {
            return Err(self.changed());
        }
        Ok(buffer.freeze())
    }

    /// Whether what was read is what the file still is.
    pub(super) fn confirm(&self) -> Result<(), SourceError> {
        let now = self.file.metadata().map_err(|reason| self.unreadable(reason))?;
        let named = match &self.source.parent {
            Some(parent) => look(Some(parent), &self.source.entry),
            None => std::fs::metadata(&self.source.path),
        };
        match named {
            Ok(named) if Stamp::of(&now) == self.stamp && Stamp::of(&named) == self.stamp => Ok(()),
            Ok(_) => Err(self.changed()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(SourceError::Vanished { path: self.source.path.clone() })
            }
            Err(reason) => Err(self.unreadable(reason)),
        }
    }

    fn changed(&self) -> SourceError {
        SourceError::Changed { path: self.source.path.clone() }
    }

    fn unreadable(&self, reason: io::Error) -> SourceError {
        SourceError::Unreadable { path: self.source.path.clone(), reason }
    }
}

/// A directory being walked.
struct Level {
    directory: Rc<OwnedFd>,
    path: PathBuf,
    /// What the names in it begin with; empty or ending in `/`.
    prefix: String,
    entries: vec::IntoIter<OsString>,
}

/// All files at and below some paths, in order.
pub(super) struct Walk {
    paths: vec::IntoIter<PathBuf>,
    prefix: String,
    name: Option<Name>,
    store: Option<(u64, u64)>,
    levels: Vec<Level>,
}

impl Walk {
    /// `name` stands in for the own name of the one path; `store` is left out.
    pub(super) fn new(paths: Vec<PathBuf>, prefix: Option<&Name>, name: Option<&Name>, store: &Path) -> Walk {
        Walk {
            paths: paths.into_iter(),
            prefix: prefix.map(|prefix| format!("{}/", prefix.as_str())).unwrap_or_default(),
            name: name.cloned(),
            store: std::fs::metadata(store).ok().map(|metadata| (metadata.dev(), metadata.ino())),
            levels: Vec::new(),
        }
    }

    /// A path of the command line: a link is followed here and only here.
    fn path(&mut self, path: PathBuf) -> Option<Result<Source, SourceError>> {
        let metadata = match std::fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(reason) => return Some(Err(SourceError::Unreadable { path, reason })),
        };
        let own = self.name.as_ref().map(|name| OsStr::new(name.as_str())).or(path.file_name());
        let own = own.map(OsStr::to_owned);
        if !metadata.is_dir() {
            return Some(self.file(None, path.clone().into(), path, &own.unwrap_or_default(), &metadata));
        }
        let prefix = match own {
            Some(own) => match self.directory_prefix(&path, &own) {
                Ok(prefix) => prefix,
                Err(error) => return Some(Err(error)),
            },
            None => self.prefix.clone(),
        };
        self.descend(below::root(&path), path, prefix).err().map(Err)
    }

    /// An entry of the innermost directory.
    fn entry(&mut self, entry: OsString) -> Option<Result<Source, SourceError>> {
        let level = self.levels.last()?;
        let path = level.path.join(&entry);
        let directory = level.directory.clone();
        let metadata = match look(Some(&directory), &entry) {
            Ok(metadata) => metadata,
            Err(reason) => return Some(Err(SourceError::Unreadable { path, reason })),
        };
        if metadata.is_symlink() {
            return Some(Err(SourceError::Link { path }));
        }
        if !metadata.is_dir() {
            let own = entry.clone();
            return Some(self.file(Some(directory), entry, path, &own, &metadata));
        }
        let prefix = match self.directory_prefix(&path, &entry) {
            Ok(prefix) => prefix,
            Err(error) => return Some(Err(error)),
        };
        self.descend(below::folder(&directory, &entry), path, prefix).err().map(Err)
    }

    fn file(
        &self,
        parent: Option<Rc<OwnedFd>>,
        entry: OsString,
        path: PathBuf,
        own: &OsStr,
        metadata: &Metadata,
    ) -> Result<Source, SourceError> {
        if let Some(what) = special(metadata) {
            return Err(SourceError::Special { path, what });
        }
        match self.named(own) {
            Ok(name) => Ok(Source { parent, entry, path, name }),
            Err(error) => Err(SourceError::Name { path, error }),
        }
    }

    /// The name of an entry of the innermost directory, or of a path of the command line.
    fn named(&self, own: &OsStr) -> Result<Name, NameError> {
        let prefix = self.levels.last().map_or(&self.prefix, |level| &level.prefix);
        Name::from_bytes(&[prefix.as_bytes(), own.as_bytes()].concat())
    }

    fn directory_prefix(&self, path: &Path, own: &OsStr) -> Result<String, SourceError> {
        match self.named(own) {
            Ok(name) => Ok(format!("{}/", name.as_str())),
            Err(error) => Err(SourceError::Name { path: path.to_owned(), error }),
        }
    }

    fn descend(
        &mut self,
        opened: io::Result<OwnedFd>,
        path: PathBuf,
        prefix: String,
    ) -> Result<(), SourceError> {
        let list = || {
            let directory = File::from(opened?);
            let metadata = directory.metadata()?;
            if self.store == Some((metadata.dev(), metadata.ino())) {
                return Ok(None);
            }
            let directory = OwnedFd::from(directory);
            let entries = entries(&directory)?;
            Ok(Some((directory, entries)))
        };
        match list() {
            Ok(Some((directory, entries))) => {
                let (directory, entries) = (Rc::new(directory), entries.into_iter());
                self.levels.push(Level { directory, path, prefix, entries });
                Ok(())
            }
            Ok(None) => Err(SourceError::Store { path }),
            Err(reason) => Err(SourceError::Unreadable { path, reason }),
        }
    }
}

impl Iterator for Walk {
    type Item = Result<Source, SourceError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let found = match self.levels.last_mut() {
                Some(level) => match level.entries.next() {
                    Some(entry) => self.entry(entry),
                    None => {
                        self.levels.pop();
                        None
                    }
                },
                None => {
                    let path = self.paths.next()?;
                    self.path(path)
                }
            };
            if found.is_some() {
                return found;
            }
        }
    }
}

fn entries(directory: &OwnedFd) -> io::Result<Vec<OsString>> {
    let mut entries = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            entries.push(OsStr::from_bytes(name).to_owned());
        }
    }
    entries.sort_unstable();
    Ok(entries)
}

/// What is there, links not followed.
fn look(parent: Option<&OwnedFd>, entry: &OsStr) -> io::Result<Metadata> {
    match parent {
        Some(parent) => below::look(parent, entry),
        None => std::fs::metadata(entry),
    }
}

/// What it is if it is no regular file.
fn special(metadata: &Metadata) -> Option<&'static str> {
    let kind = metadata.file_type();
    match () {
        () if kind.is_file() => None,
        () if kind.is_dir() => Some("directory"),
        () if kind.is_symlink() => Some("symbolic link"),
        () if kind.is_socket() => Some("socket"),
        () if kind.is_fifo() => Some("pipe"),
        () => Some("device"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{Seek, SeekFrom};
    use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
    use std::os::unix::net::UnixListener;

    use rustix::fs::{CWD, Mode};

    use super::*;

    fn walk(paths: &[&Path]) -> Walk {
        Walk::new(paths.iter().map(|path| path.to_path_buf()).collect(), None, None, Path::new("/nowhere"))
    }

    fn names(walk: Walk) -> (Vec<String>, Vec<SourceError>) {
        let (mut names, mut errors) = (Vec::new(), Vec::new());
        for found in walk {
            match found {
                Ok(source) => names.push(source.name.as_str().to_owned()),
                Err(error) => errors.push(error),
            }
        }
        (names, errors)
    }

    fn tree(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, file).unwrap();
        }
        dir
    }

    #[test]
    fn files_get_their_own_name_and_directories_theirs_before_it() {
        let dir = tree(&["t/b/c.txt", "t/a.txt", "t/b/a/d.txt", "f.txt"]);
        let (found, errors) = names(walk(&[&dir.path().join("t"), &dir.path().join("f.txt")]));
        assert_eq!(found, ["t/a.txt", "t/b/a/d.txt", "t/b/c.txt", "f.txt"]);
        assert!(errors.is_empty());
        let (found, _) = names(walk(&[&dir.path().join("t/.")]));
        assert_eq!(found[0], "t/a.txt", "a dot behind a directory says nothing more");
        let (found, _) = names(walk(&[&dir.path().join("t/b/..")]));
        assert_eq!(found[0], "a.txt", "what has no name of its own gives its content");
    }

    #[test]
    fn a_prefix_comes_first_and_a_name_replaces_the_own_one() {
        let dir = tree(&["t/a.txt"]);
        let (prefix, name) = (Name::parse("p/q").unwrap(), Name::parse("x/y").unwrap());
        let walk = |path: &str, name| {
            names(Walk::new(vec![dir.path().join(path)], Some(&prefix), name, Path::new("/nowhere"))).0
        };
        assert_eq!(walk("t", None), ["p/q/t/a.txt"]);
        assert_eq!(walk("t", Some(&name)), ["p/q/x/y/a.txt"]);
        assert_eq!(walk("t/a.txt", Some(&name)), ["p/q/x/y"]);
    }

    #[test]
    fn links_are_followed_on_the_command_line_alone_so_loops_end() {
        let dir = tree(&["t/a.txt"]);
        symlink(dir.path().join("t"), dir.path().join("t/loop")).unwrap();
        symlink("self", dir.path().join("t/self")).unwrap();
        symlink("t", dir.path().join("link")).unwrap();
        symlink("t/a.txt", dir.path().join("file-link")).unwrap();
        let (found, errors) = names(walk(&[&dir.path().join("link"), &dir.path().join("file-link")]));
        assert_eq!(found, ["link/a.txt", "file-link"]);
        assert!(errors.len() == 2 && errors.iter().all(|error| matches!(error, SourceError::Link { .. })));
    }

    #[test]
    fn what_is_no_file_is_reported_and_the_rest_goes_on() {
        let dir = tree(&["t/a.txt", "t/z.txt"]);
        let _socket = UnixListener::bind(dir.path().join("t/socket")).unwrap();
        let pipe = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(CWD, dir.path().join("t/pipe"), pipe, Mode::RUSR, 0).unwrap();
        let (found, errors) = names(walk(&[&dir.path().join("t"), &dir.path().join("missing")]));
        assert_eq!(found, ["t/a.txt", "t/z.txt"]);
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert!(texts[0].ends_with("t/pipe is skipped: it is a pipe, not a file"), "{texts:?}");
        assert!(texts[1].ends_with("t/socket is skipped: it is a socket, not a file"), "{texts:?}");
        assert_eq!(errors[2].kind(), Some(FailureKind::NotFound));
    }

    #[test]
    fn every_refused_name_is_reported_with_its_reason_and_once_for_a_directory() {
        let dir = tree(&["t/a.txt", "t/bad\nname", "t/bad\x01dir/a", "t/bad\x01dir/b"]);
        fs::write(dir.path().join("t").join(OsStr::from_bytes(b"latin\xe9")), "").unwrap();
        let (found, errors) = names(walk(&[&dir.path().join("t")]));
        assert_eq!(found, ["t/a.txt"]);
        assert_eq!(errors.len(), 3);
        assert!(errors.iter().all(|error| matches!(error, SourceError::Name { .. })), "{errors:?}");
    }

    #[test]
    fn a_tree_deeper_than_a_name_can_be_long_ends_with_a_report() {
        let dir = tempfile::tempdir().unwrap();
        let part = "d".repeat(200);
        let deep = (0..8).fold(dir.path().join("t"), |path, _| path.join(&part));
        fs::create_dir_all(deep).unwrap();
        let (found, errors) = names(walk(&[&dir.path().join("t")]));
        assert!(found.is_empty());
        assert!(matches!(&errors[..], [SourceError::Name { error: NameError::TooLong(_), .. }]));
    }

    /// Cut to 32 bits, what is left of it would be seven bytes.
    #[test]
    fn a_file_of_over_four_gibibytes_is_read_in_frames_to_its_last_byte() {
        const SIZE: u64 = (4 << 30) + 7;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sparse");
        File::create(&path).unwrap().write_all_at(b"end", SIZE - 3).unwrap();
        let source = walk(&[&path]).next().unwrap().unwrap();
        let mut reading = source.open().unwrap();
        assert_eq!((source.size(), reading.meta().size), (SIZE, SIZE));
        assert_eq!(reading.next().unwrap().len(), FRAME_BYTES_MAX);
        reading.done = SIZE - FRAME_BYTES_MAX as u64 - 5;
        reading.file.seek(SeekFrom::Start(reading.done)).unwrap();
        assert_eq!(reading.next().unwrap().len(), FRAME_BYTES_MAX);
        assert_eq!(reading.next().unwrap(), &b"\0\0end"[..]);
        assert!(reading.next().unwrap().is_empty());
        reading.confirm().unwrap();
    }

    #[test]
    fn what_may_not_be_read_is_reported() {
        let dir = tree(&["t/a.txt", "t/secret"]);
        fs::set_permissions(dir.path().join("t/secret"), fs::Permissions::from_mode(0o0)).unwrap();
        let sources: Vec<Source> = walk(&[&dir.path().join("t")]).map(Result::unwrap).collect();
        // root reads everything
        if !rustix::process::geteuid().is_root() {
            assert_eq!(sources[1].open().err().and_then(|e| e.kind()), Some(FailureKind::Forbidden));
        }
        assert_eq!(sources[0].open().unwrap().next().unwrap(), "t/a.txt");
    }

    #[test]
    fn the_store_is_never_put_into_itself() {
        let dir = tree(&["t/a.txt", "t/store/segment"]);
        let store = dir.path().join("t/store");
        let (found, errors) = names(Walk::new(vec![dir.path().join("t")], None, None, &store));
        assert_eq!(found, ["t/a.txt"]);
        assert!(matches!(&errors[..], [SourceError::Store { .. }]));
    }

    fn only(path: PathBuf) -> Source {
        walk(&[&path]).next().unwrap().unwrap()
    }

    #[test]
    fn a_file_is_read_whole_in_frames_with_its_time_and_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let content: Vec<u8> = (0..600_000_u32).map(|index| (index % 251) as u8).collect();
        fs::write(&path, &content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o4750)).unwrap();
        let source = only(path);
        let mut reading = source.open().unwrap();
        assert!(!reading.fits_a_frame());
        assert_eq!((reading.meta().size, reading.meta().mode), (600_000, 0o4750));
        let mut read = Vec::new();
        loop {
            let bytes = reading.next().unwrap();
            assert!(bytes.len() <= FRAME_BYTES_MAX);
            if bytes.is_empty() {
                break;
            }
            read.extend_from_slice(&bytes);
        }
        assert_eq!(read, content);
        reading.confirm().unwrap();
    }

    #[test]
    fn an_empty_file_has_no_bytes_and_is_confirmed() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("f"), "").unwrap();
        let source = only(dir.path().join("f"));
        let mut reading = source.open().unwrap();
        assert!(reading.next().unwrap().is_empty());
        reading.confirm().unwrap();
    }

    #[test]
    fn a_file_that_grows_shrinks_or_is_replaced_while_read_has_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        for change in [b"longer than before".as_slice(), b"short"] {
            fs::write(&path, "as it was").unwrap();
            let source = only(path.clone());
            let mut reading = source.open().unwrap();
            fs::write(&path, change).unwrap();
            assert!(matches!(reading.next(), Err(SourceError::Changed { .. })));
        }
        fs::write(&path, "as it was").unwrap();
        let source = only(path.clone());
        let mut reading = source.open().unwrap();
        assert_eq!(reading.next().unwrap(), "as it was");
        fs::write(dir.path().join("other"), "as it was").unwrap();
        fs::rename(dir.path().join("other"), &path).unwrap();
        assert!(matches!(reading.confirm(), Err(SourceError::Changed { .. })));
    }

    #[test]
    fn a_file_that_vanishes_while_read_is_not_confirmed() {
        let dir = tree(&["t/f"]);
        for path in ["t", "t/f"] {
            fs::write(dir.path().join("t/f"), "content").unwrap();
            let source = only(dir.path().join(path));
            let mut reading = source.open().unwrap();
            reading.next().unwrap();
            fs::remove_file(dir.path().join("t/f")).unwrap();
            assert!(matches!(reading.confirm(), Err(SourceError::Vanished { .. })));
        }
    }
}
