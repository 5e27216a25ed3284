//! A terminal for one command: what somebody sees who watches.

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Command, ExitStatus};

/// Runs a command to its end on a terminal of 24 lines of 80 characters; how it ended, and all it wrote there.
///
/// # Panics
/// When there is no terminal to be had, or the command can not be started.
pub fn watch(command: Command) -> (ExitStatus, String) {
    let (mut child, screen) = show(command, |_| false);
    (child.wait().expect("our own child can be waited for"), screen)
}

/// Runs a command that does not end by itself until what it wrote there is enough; all it wrote until then.
///
/// # Panics
/// As [`watch`].
pub fn watch_until(command: Command, is_enough: impl FnMut(&str) -> bool) -> String {
    let (mut child, screen) = show(command, is_enough);
    child.kill().and_then(|()| child.wait()).expect("our own child can be ended");
    screen
}

/// The command, and what it wrote until that was enough or it ended.
fn show(mut command: Command, mut is_enough: impl FnMut(&str) -> bool) -> (Child, String) {
    let mut ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
        .map(File::from)
        .expect("a terminal can be made");
    grantpt(&ours).and_then(|()| unlockpt(&ours)).expect("the terminal is ours");
    let path = ptsname(&ours, Vec::new()).expect("the terminal has a name");
    let theirs = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(rustix::fs::OFlags::NOCTTY.bits().cast_signed())
        .open(OsStr::from_bytes(path.to_bytes()))
        .expect("the terminal can be opened");
    let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&theirs, size).expect("the terminal has a size");
    command.env("TERM", "xterm").stdout(theirs.try_clone().expect("a file can be shared")).stderr(theirs);
    let child = command.spawn().expect("the command can be started");
    drop(command); // and with it our hold on their side, so that reading ends
    let (mut seen, mut screen) = (Vec::new(), String::new());
    let mut piece = [0; 4096];
    // a terminal that nobody has open any more gives an error
    while !is_enough(&screen)
        && let Ok(read @ 1..) = ours.read(&mut piece)
    {
        seen.extend_from_slice(&piece[..read]);
        screen = String::from_utf8_lossy(&seen).into_owned();
    }
    (child, screen)
}
