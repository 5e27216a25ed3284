//! Real power cuts: an ext4 on a device whose every write and flush is logged, and the device as a cut at any
//! entry of the log would leave it.
//!
//! The device is a file behind `qemu-storage-daemon`'s `blklogwrites` (the dm-log-writes format), exported over
//! FUSE and looped; no device mapper is needed. A flush makes what was written before it durable; of later
//! writes each is kept, dropped or torn at a sector, as a seed says. Needs root. Everything started and mounted is
//! taken away when dropped.

use crate::sim::random::Random;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

const SECTOR: u64 = 512;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;
/// Bytes compared with zeros at once when a state is written.
const CHUNK: usize = 64 << 10;

/// A mounted file system on a logged device.
pub struct LoggedDisk {
    folder: PathBuf,
    loop_device: Option<String>,
    mounted: bool,
}

/// A write, a discard or a flush.
#[derive(Clone, Copy, Debug)]
struct Entry {
    offset: u64,
    length: u64,
    flags: u64,
    /// Where in the log the bytes lie.
    data: u64,
}

fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("{program} {}: {}", arguments.join(" "), said.trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

impl LoggedDisk {
    /// Makes a device of `bytes` in a folder and mounts an ext4 of it at `mnt` in there.
    ///
    /// # Errors
    /// Why this machine can not do it.
    pub fn start(folder: &Path, bytes: u64) -> Result<Self, String> {
        let words = |error: io::Error| error.to_string();
        for (name, length) in [("disk.img", bytes), ("log.img", 16 << 30), ("export", 0)] {
            File::create(folder.join(name)).and_then(|file| file.set_len(length)).map_err(words)?;
        }
        fs::create_dir(folder.join("mnt")).map_err(words)?;
        let mut disk = Self { folder: folder.to_owned(), loop_device: None, mounted: false };
        let path = |name: &str| folder.join(name).display().to_string();
        let (device, log) = (path("disk.img"), path("log.img"));
        run(
            "qemu-storage-daemon",
            &[
                "--daemonize",
                "--pidfile",
                &path("pid"),
                "--blockdev",
                &format!("driver=file,node-name=device,filename={device}"),
                "--blockdev",
                &format!("driver=file,node-name=log,filename={log}"),
                "--blockdev",
                "driver=blklogwrites,node-name=logged,file=device,log=log,log-sector-size=512",
                "--export",
                &format!("type=fuse,id=e,node-name=logged,mountpoint={},writable=on", path("export")),
            ],
        )?;
        run("mkfs.ext4", &["-q", &path("export")])?;
        disk.loop_device = Some(run("losetup", &["-f", "--show", &path("export")])?);
        let device = disk.loop_device.as_deref().unwrap_or_default();
        run("mount", &["-o", "noatime", device, &path("mnt")])?;
        disk.mounted = true;
        Ok(disk)
    }

    /// Where the file system is mounted.
    pub fn mount(&self) -> PathBuf {
        self.folder.join("mnt")
    }

    /// The log so far.
    pub fn log(&self) -> PathBuf {
        self.folder.join("log.img")
    }
}

impl Drop for LoggedDisk {
    fn drop(&mut self) {
        let mount = self.mount().display().to_string();
        let ended =
            !self.mounted || run("umount", &[&mount]).or_else(|_| run("umount", &["-l", &mount])).is_ok();
        let looped = self.loop_device.as_ref().is_none_or(|device| run("losetup", &["-d", device]).is_ok());
        let pid = fs::read_to_string(self.folder.join("pid")).ok();
        let pid = pid.and_then(|text| text.trim().parse().ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            let _gone_already = kill_process(pid, Signal::TERM);
            // its export keeps the folder busy until it is gone
            for _ in 0..500 {
                if !Path::new(&format!("/proc/{}", pid.as_raw_nonzero())).exists() {
                    break;
                }
                thread::sleep(Duration::from_millis(10));
            }
        }
        if !ended || !looped {
            eprintln!("{mount} or its loop device stays");
        }
    }
}

/// Entries in a log that is being written; up to date at each flush.
///
/// # Panics
/// When it can not be read.
pub fn entries(log: &Path) -> u64 {
    let mut bytes = [0; 8];
    let read = File::open(log).and_then(|file| file.read_exact_at(&mut bytes, 16));
    read.map(|()| u64::from_le_bytes(bytes)).expect("the log can be read")
}

/// A finished log, played again from its beginning.
pub struct Replay {
    log: File,
    entries: Vec<Entry>,
    /// The device with everything that was flushed before `next`.
    device: Vec<u8>,
    next: usize,
}

impl Replay {
    /// Reads a log of a device of this many bytes.
    ///
    /// # Errors
    /// It can not be read.
    pub fn new(log: &Path, bytes: u64) -> io::Result<Self> {
        let count = entries(log);
        let log = File::open(log)?;
        let mut found = Vec::new();
        let mut at = SECTOR;
        for _ in 0..count {
            let mut head = [0; 32];
            log.read_exact_at(&mut head, at)?;
            let word = |index: usize| {
                let bytes = head[index * 8..index * 8 + 8].try_into().expect("eight bytes are eight");
                u64::from_le_bytes(bytes)
            };
            let (sector, sectors, flags) = (word(0), word(1), word(2));
            at += SECTOR;
            found.push(Entry { offset: sector * SECTOR, length: sectors * SECTOR, flags, data: at });
            if flags & DISCARD == 0 {
                at += sectors * SECTOR;
            }
        }
        Ok(Self { log, entries: found, device: vec![0; bytes as usize], next: 0 })
    }

    /// How many entries it has.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Writes the device as a cut after `cut` entries leaves it; cuts come in their order.
    ///
    /// # Errors
    /// The log can not be read, or the state not be written.
    pub fn state(&mut self, cut: usize, seed: u64, to: &Path) -> io::Result<()> {
        let flushed = self.entries[..cut].iter().rposition(|entry| entry.flags & FLUSH != 0);
        let flushed = flushed.map_or(0, |entry| entry + 1);
        while self.next < flushed {
            let entry = self.entries[self.next];
            apply(&self.log, &entry, entry.length, &mut self.device)?;
            self.next += 1;
        }
        let mut state = self.device.clone();
        let mut random = Random::new(seed);
        let (lost, torn) = (*random.pick(&[100, 400, 800]), *random.pick(&[0, 200, 400]));
        for entry in &self.entries[flushed..cut] {
            let mut length = entry.length;
            if entry.flags & FUA == 0 {
                if random.chance(lost) {
                    continue;
                }
                if length > SECTOR && random.chance(torn) {
                    length = (1 + random.below(length / SECTOR - 1)) * SECTOR;
                }
            }
            apply(&self.log, entry, length, &mut state)?;
        }
        let file = File::create(to)?;
        file.set_len(state.len() as u64)?;
        for (number, chunk) in state.chunks(CHUNK).enumerate() {
            if chunk.iter().any(|byte| *byte != 0) {
                file.write_all_at(chunk, (number * CHUNK) as u64)?;
            }
        }
        Ok(())
    }
}

fn apply(log: &File, entry: &Entry, length: u64, device: &mut [u8]) -> io::Result<()> {
    let range = entry.offset as usize..(entry.offset + length) as usize;
    let Some(place) = device.get_mut(range) else { return Ok(()) };
    if entry.flags & DISCARD != 0 {
        place.fill(0);
        return Ok(());
    }
    log.read_exact_at(place, entry.data)
}

/// A state of the device, mounted; the kernel replays its journal.
pub struct Mounted(PathBuf);

impl Mounted {
    /// Mounts an image. The superblock of ext4 is longer than a sector and may be torn itself: then `e2fsck` takes
    /// another copy of it, as at a boot.
    ///
    /// # Errors
    /// The kernel's words.
    pub fn new(image: &Path, at: &Path) -> Result<Self, String> {
        let (image, place) = (image.display().to_string(), at.display().to_string());
        let mount = || run("mount", &["-o", "loop,noatime", &image, &place]);
        if let Err(refused) = mount() {
            let checked = Command::new("e2fsck").args(["-y", &image]).output();
            let checked = checked.map_err(|error| format!("{refused}; e2fsck: {error}"))?;
            println!("{refused}; e2fsck: {}", String::from_utf8_lossy(&checked.stdout));
            mount()?;
        }
        Ok(Self(at.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let at = self.0.display().to_string();
        if let Err(words) = run("umount", &[&at]).or_else(|_| run("umount", &["-l", &at])) {
            eprintln!("{words}");
        }
    }
}
