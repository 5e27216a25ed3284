//! File systems for one test: small ones, and read-only ones.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Something mounted, taken away when dropped.
pub struct Mount(PathBuf);

impl Mount {
    /// A file system in memory of this size; `None` where nobody may mount.
    pub fn tmpfs(at: &Path, size: &str) -> Option<Mount> {
        let option = format!("size={size}");
        mount(&["-t", "tmpfs", "-o", &option, "tmpfs"], at).then(|| Mount(at.to_owned()))
    }

    /// A folder that can be read and not written, not even by root; `None` where nobody may mount.
    pub fn read_only(at: &Path) -> Option<Mount> {
        let folder = at.to_str().expect("temporary folders have plain names").to_owned();
        let bound = mount(&["--bind", &folder], at).then(|| Mount(at.to_owned()))?;
        mount(&["-o", "remount,bind,ro"], at).then_some(bound)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let ended = Command::new("umount").arg("-l").arg(&self.0).status();
        if !ended.is_ok_and(|status| status.success()) {
            eprintln!("{} stays mounted", self.0.display());
        }
    }
}

/// Takes every byte that is left where a file is to be.
///
/// # Panics
/// When it can not be made.
pub fn fill_device(path: &Path) {
    let file = File::create(path).expect("the folder is writable");
    let mut at = 0;
    for piece in [1 << 20, 4096] {
        while let Ok(written) = file.write_at(&vec![1; piece], at) {
            at += written as u64;
        }
    }
}

fn mount(options: &[&str], at: &Path) -> bool {
    let done = Command::new("mount").args(options).arg(at).output();
    done.is_ok_and(|output| output.status.success())
}
