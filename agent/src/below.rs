//! Files and folders below an open folder, reached without following any link; and reading until full.
//!
//! Every part of a path is opened relative to the one before it, so that a tree somebody changes meanwhile
//! leads nowhere else.

use rustix::fs::{CWD, Mode, OFlags, openat};
use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path};

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// A pipe that has taken a file's place keeps nobody waiting.
const FILE: OFlags = OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

/// A folder by its path, where links lead on: whoever configures or types it may use them.
pub(crate) fn root(path: &Path) -> io::Result<OwnedFd> {
    Ok(openat(CWD, path, FOLDER, Mode::empty())?)
}

/// A folder in another one.
pub(crate) fn folder(parent: impl AsFd, entry: &OsStr) -> io::Result<OwnedFd> {
    Ok(openat(parent, entry, FOLDER | OFlags::NOFOLLOW, Mode::empty())?)
}

/// A file by its path, to be read, where links lead on. Whoever opens it has to see what it is.
pub(crate) fn named_file(path: &Path) -> io::Result<File> {
    Ok(openat(CWD, path, FILE, Mode::empty())?.into())
}

/// A file in a folder, to be read. Whoever opens it has to see what it is.
pub(crate) fn file(parent: impl AsFd, entry: &OsStr) -> io::Result<File> {
    Ok(openat(parent, entry, FILE | OFlags::NOFOLLOW, Mode::empty())?.into())
}

/// About an entry of a folder; about a link itself, not about what it leads to.
pub(crate) fn look(parent: impl AsFd, entry: &OsStr) -> io::Result<Metadata> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    File::from(openat(parent, entry, flags, Mode::empty())?).metadata()
}

/// The folder that holds the last part of a path, and that part. Refused: a path with anything but names in it.
pub(crate) fn parent<'a>(root: BorrowedFd<'_>, path: &'a Path) -> io::Result<(OwnedFd, &'a OsStr)> {
    let mut parts = path.components().map(|part| match part {
        Component::Normal(name) => Ok(name),
        Component::Prefix(_) | Component::RootDir | Component::CurDir | Component::ParentDir => {
            Err(io::Error::from(io::ErrorKind::InvalidInput))
        }
    });
    let mut last = parts.next().unwrap_or(Err(io::ErrorKind::InvalidInput.into()))?;
    let mut parent = root.try_clone_to_owned()?;
    for part in parts {
        parent = folder(&parent, last)?;
        last = part?;
    }
    Ok((parent, last))
}

/// Reads until the buffer is full or nothing is left; how much it was.
pub(crate) fn read_full(source: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match source.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(more) => filled += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
