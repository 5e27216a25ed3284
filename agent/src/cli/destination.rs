//! Files on their way out: written beside their place, synced, and only then put there.
//!
//! Duty: a file is there whole or not at all, with its time and its permission bits. Refuses: to replace
//! anything without `--force`, anything but a file ever, set-user-id bits, and below a directory every path
//! that leads through a symbolic link. Fails: [`DestinationError`]; what was written by then is removed.

use std::ffi::{OsStr, OsString};
use std::fs::{File, FileType};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use larder_core::binding::Meta;
use larder_core::name::{Name, NameError};
use larder_core::request::FailureKind;
use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, RenameFlags, Timespec, Timestamps, futimens, mkdirat, openat, renameat,
    renameat_with, unlinkat,
};
use rustix::io::Errno;

use super::exit::kind_of;

/// Names tried for the file that is written first; as many are there only if nobody ever cleans up.
const TEMPORARY_NAMES: u32 = 100;

/// Why a file was not written.
#[derive(Debug, thiserror::Error)]
pub enum DestinationError {
    /// Something is there.
    #[error("{} exists; --force replaces it", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// Something is there that is never replaced.
    #[error("{} exists and is no file; name another place, or write with `-o -`", path.display())]
    NoFile {
        /// What is there.
        path: PathBuf,
    },
    /// A way that may lead elsewhere.
    #[error("{} is a symbolic link or no directory; nothing is written through it", path.display())]
    Link {
        /// The part of the path.
        path: PathBuf,
    },
    /// The path ends in nothing that could be a file.
    #[error("{} does not end in a file's name", path.display())]
    NoName {
        /// The path.
        path: PathBuf,
    },
    /// A name that no object may have.
    #[error("the object can not be written under its name: {0}")]
    Name(#[from] NameError),
    /// The system does not let us.
    #[error("{} cannot be written: {reason}", path.display())]
    Unwritable {
        /// The file or directory.
        path: PathBuf,
        /// What the system says.
        reason: io::Error,
    },
}

impl DestinationError {
    /// What kind of failure it is, where one of them fits.
    pub(super) fn kind(&self) -> Option<FailureKind> {
        match self {
            Self::Unwritable { reason, .. } => kind_of(reason),
            Self::Link { .. } | Self::Name(_) => Some(FailureKind::Forbidden),
            Self::Exists { .. } | Self::NoFile { .. } | Self::NoName { .. } => Some(FailureKind::Invalid),
        }
    }
}

/// Where a file goes.
#[derive(Debug)]
pub(super) struct Destination {
    directory: OwnedFd,
    entry: OsString,
    /// Where it is, for people.
    pub(super) path: PathBuf,
    force: bool,
}

impl Destination {
    /// The place that `output` means for an object of this name.
    pub(super) fn of(output: Option<&Path>, name: &Name, force: bool) -> Result<Self, DestinationError> {
        match output {
            None => {
                let relative = name.to_relative_path()?;
                let last = relative.file_name().unwrap_or(relative.as_os_str());
                Self::at(Path::new(last), force)
            }
            Some(path) if path.is_dir() || path.as_os_str().as_encoded_bytes().ends_with(b"/") => {
                Self::below(path, name, force)
            }
            Some(path) => Self::at(path, force),
        }
    }

    /// Whether anything can be written below a directory.
    pub(super) fn check_root(root: &Path) -> Result<(), DestinationError> {
        open_directory(root).map(drop)
    }

    /// Exactly there.
    fn at(path: &Path, force: bool) -> Result<Self, DestinationError> {
        let entry = path.file_name().ok_or_else(|| DestinationError::NoName { path: path.to_owned() })?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let directory = open_directory(parent.unwrap_or(Path::new(".")))?;
        let place = Self { directory, entry: entry.to_owned(), path: path.to_owned(), force };
        place.check()?;
        Ok(place)
    }

    /// The name's own path below `root`; directories are made as needed, links are never followed.
    pub(super) fn below(root: &Path, name: &Name, force: bool) -> Result<Self, DestinationError> {
        let relative = name.to_relative_path()?;
        let mut directory = open_directory(root)?;
        let mut path = root.to_owned();
        for part in relative.parent().unwrap_or(Path::new("")) {
            path.push(part);
            directory = enter(&directory, part, &path)?;
        }
        let entry = relative.file_name().unwrap_or(relative.as_os_str()).to_owned();
        path.push(&entry);
        let place = Self { directory, entry, path, force };
        place.check()?;
        Ok(place)
    }

    /// Whether the file may go there. What appears there later is refused once more in the end.
    fn check(&self) -> Result<(), DestinationError> {
        match self.present()? {
            None => Ok(()),
            Some(kind) if !kind.is_file() && !kind.is_symlink() => {
                Err(DestinationError::NoFile { path: self.path.clone() })
            }
            Some(_) if self.force => Ok(()),
            Some(_) => Err(DestinationError::Exists { path: self.path.clone() }),
        }
    }

    fn present(&self) -> Result<Option<FileType>, DestinationError> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(&self.directory, &self.entry, flags, Mode::empty()) {
            Ok(there) => {
                let metadata = File::from(there).metadata().map_err(|reason| self.unwritable(reason))?;
                Ok(Some(metadata.file_type()))
            }
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(self.unwritable(errno)),
        }
    }

    /// Begins to write; the kernel applies the umask to the object's permission bits.
    pub(super) fn create(self, meta: &Meta) -> Result<Partial, DestinationError> {
        let mode = Mode::from_raw_mode(meta.mode & 0o777);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        for number in 0..TEMPORARY_NAMES {
            let temporary = OsString::from(format!(".larder-{}-{number}.part", std::process::id()));
            match openat(&self.directory, &temporary, flags, mode) {
                Ok(file) => {
                    return Ok(Partial { place: self, file: file.into(), temporary, is_placed: false });
                }
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(self.unwritable(errno)),
            }
        }
        Err(self.unwritable(io::Error::other("files named .larder-*.part are in the way: delete them")))
    }

    fn unwritable(&self, reason: impl Into<io::Error>) -> DestinationError {
        DestinationError::Unwritable { path: self.path.clone(), reason: reason.into() }
    }
}

/// A file that is being written. Dropped before it is in its place, it is removed.
#[derive(Debug)]
pub(super) struct Partial {
    place: Destination,
    file: File,
    temporary: OsString,
    is_placed: bool,
}

impl Partial {
    /// Writes more.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), DestinationError> {
        self.file.write_all(bytes).map_err(|reason| self.place.unwritable(reason))
    }

    /// Puts the file in its place, synced.
    pub(super) fn finish(mut self, meta: &Meta) -> Result<PathBuf, DestinationError> {
        let modified = Timespec {
            tv_sec: meta.mtime_ms.div_euclid(1000),
            tv_nsec: (meta.mtime_ms.rem_euclid(1000) * 1_000_000) as _,
        };
        let times = Timestamps { last_access: modified, last_modification: modified };
        // a time the file system cannot hold is no reason to keep the bytes back
        let _ = futimens(&self.file, &times);
        self.file.sync_all().map_err(|reason| self.place.unwritable(reason))?;
        self.place()?;
        self.is_placed = true;
        // some file systems refuse to sync a directory: the rename is theirs to keep then
        let _ = openat(&self.place.directory, ".", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .and_then(rustix::fs::fsync);
        Ok(self.place.path.clone())
    }

    fn place(&self) -> Result<(), DestinationError> {
        let Destination { directory, entry, force, .. } = &self.place;
        if !force {
            match renameat_with(directory, &self.temporary, directory, entry, RenameFlags::NOREPLACE) {
                Err(Errno::EXIST) => {
                    return Err(DestinationError::Exists { path: self.place.path.clone() });
                }
                // a file system that knows no such flag
                Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {}
                done => return done.map_err(|errno| self.place.unwritable(errno)),
            }
        }
        self.place.check()?;
        renameat(directory, &self.temporary, directory, entry).map_err(|errno| self.place.unwritable(errno))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.is_placed {
            let _ = unlinkat(&self.place.directory, &self.temporary, AtFlags::empty());
        }
    }
}

fn open_directory(path: &Path) -> Result<OwnedFd, DestinationError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty())
        .map_err(|errno| DestinationError::Unwritable { path: path.to_owned(), reason: errno.into() })
}

fn enter(directory: &OwnedFd, part: &OsStr, path: &Path) -> Result<OwnedFd, DestinationError> {
    let unwritable =
        |errno: Errno| DestinationError::Unwritable { path: path.to_owned(), reason: errno.into() };
    match mkdirat(directory, part, Mode::from_raw_mode(0o777)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(unwritable(errno)),
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(directory, part, flags, Mode::empty()).map_err(|errno| match errno {
        Errno::LOOP | Errno::NOTDIR => DestinationError::Link { path: path.to_owned() },
        errno => unwritable(errno),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    const META: Meta = Meta { size: 3, mtime_ms: -1_500, mode: 0o104_755 };

    fn name(text: &str) -> Name {
        Name::parse(text).unwrap()
    }

    fn write(place: Destination, bytes: &[u8]) -> Result<PathBuf, DestinationError> {
        let mut partial = place.create(&META)?;
        partial.write(bytes)?;
        partial.finish(&META)
    }

    #[test]
    fn a_file_comes_into_being_whole_with_its_time_and_without_special_bits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let place = Destination::of(Some(&path), &name("a/b"), false).unwrap();
        let mut partial = place.create(&META).unwrap();
        partial.write(b"abc").unwrap();
        assert!(!path.exists());
        assert_eq!(partial.finish(&META).unwrap(), path);
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"abc");
        assert_eq!((metadata.mtime(), metadata.mtime_nsec()), (-2, 500_000_000));
        assert!(metadata.mode() & 0o7000 == 0 && metadata.mode() & 0o700 == 0o700);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_given_up_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let place = Destination::of(Some(&dir.path().join("f")), &name("a"), false).unwrap();
        let mut partial = place.create(&META).unwrap();
        partial.write(b"half").unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        drop(partial);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn nothing_is_replaced_without_force_even_when_it_appears_late() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let late = Destination::of(Some(&path), &name("a"), false).unwrap();
        fs::write(&path, "old").unwrap();
        let early = Destination::of(Some(&path), &name("a"), false);
        assert!(matches!(early, Err(DestinationError::Exists { .. })));
        assert!(matches!(write(late, b"new"), Err(DestinationError::Exists { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        write(Destination::of(Some(&path), &name("a"), true).unwrap(), b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn force_replaces_a_link_and_never_what_it_leads_to() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("precious"), "old").unwrap();
        symlink("precious", dir.path().join("f")).unwrap();
        write(Destination::of(Some(&dir.path().join("f")), &name("a"), true).unwrap(), b"new").unwrap();
        assert_eq!(fs::read(dir.path().join("precious")).unwrap(), b"old");
        assert!(fs::symlink_metadata(dir.path().join("f")).unwrap().is_file());
    }

    #[test]
    fn a_device_or_directory_is_never_replaced() {
        let device = Destination::of(Some(Path::new("/dev/null")), &name("a"), true);
        assert!(matches!(device, Err(DestinationError::NoFile { .. })));
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("a")).unwrap();
        let directory = Destination::of(Some(dir.path()), &name("a"), true);
        assert!(matches!(directory, Err(DestinationError::NoFile { .. })));
    }

    #[test]
    fn below_a_directory_the_names_own_path_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = write(Destination::of(Some(dir.path()), &name("a/b/c"), false).unwrap(), b"abc").unwrap();
        assert_eq!(path, dir.path().join("a/b/c"));
        assert_eq!(fs::read(path).unwrap(), b"abc");
        write(Destination::of(Some(dir.path()), &name("a/b/d"), false).unwrap(), b"abc").unwrap();
        let missing = Destination::of(Some(&dir.path().join("missing/")), &name("a"), false).unwrap_err();
        assert_eq!(missing.kind(), Some(FailureKind::NotFound));
    }

    #[test]
    fn no_link_below_a_directory_is_followed_out_of_it() {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        symlink(outside.path(), dir.path().join("a")).unwrap();
        let place = Destination::of(Some(dir.path()), &name("a/b"), true);
        assert!(matches!(place, Err(DestinationError::Link { .. })));
        fs::write(dir.path().join("file"), "").unwrap();
        let place = Destination::of(Some(dir.path()), &name("file/b"), true);
        assert!(matches!(place, Err(DestinationError::Link { .. })));
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
        let link = dir.path().join("a");
        write(Destination::of(Some(&link), &name("x"), false).unwrap(), b"abc").unwrap();
        assert_eq!(fs::read(outside.path().join("x")).unwrap(), b"abc", "the directory asked for may be one");
    }

    #[test]
    fn a_path_without_a_name_is_refused() {
        let place = Destination::at(Path::new(".."), false);
        assert!(matches!(place, Err(DestinationError::NoName { .. })));
    }
}
