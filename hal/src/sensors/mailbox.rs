//! The mailbox of a Raspberry Pi's firmware, asked as `vcgencmd` asks it: one property message through `/dev/vcio`.
//! On a Pi 5 it alone tells some things that no driver puts into sysfs.
//!
//! Needs access to that device (group `video`); without it what is asked is absent.

use std::fs::OpenOptions;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::ioctl::{self, Opcode, Updater};

const PROPERTY: Opcode = ioctl::opcode::read_write::<*mut u8>(100, 0);
const TAG_COMMAND: u32 = 0x0003_0080;
const TEXT_BYTES: usize = 1_024;
const HEAD_WORDS: usize = 6;
const WORDS: usize = HEAD_WORDS + TEXT_BYTES / 4 + 1;

/// Has the firmware carry out a command and gives the text it answers.
#[expect(unsafe_code, reason = "the firmware's mailbox is an ioctl with a buffer of its own layout")]
pub(super) fn ask(root: &Path, command: &str) -> Option<String> {
    let device = OpenOptions::new().read(true).write(true).open(root.join("dev/vcio")).ok()?;
    let mut message = [0u32; WORDS];
    message[0] = u32::try_from(size_of_val(&message)).ok()?;
    message[2] = TAG_COMMAND;
    message[3] = u32::try_from(TEXT_BYTES).ok()?;
    for (word, bytes) in message[HEAD_WORDS..].iter_mut().zip(command.as_bytes().chunks(4)) {
        let mut padded = [0; 4];
        padded[..bytes.len()].copy_from_slice(bytes);
        *word = u32::from_ne_bytes(padded);
    }
    // SAFETY: the driver of /dev/vcio reads the length in the first word, copies that many bytes in and the
    // same number out; the message is that long and borrowed for the call. A device that is another one
    // refuses the number of the request.
    let done = unsafe { ioctl::ioctl(device.as_fd(), Updater::<PROPERTY, _>::new(&mut message)) };
    done.ok()?;
    let bytes: Vec<u8> = message[HEAD_WORDS..WORDS - 1].iter().flat_map(|word| word.to_ne_bytes()).collect();
    let end = bytes.iter().position(|&byte| byte == 0)?;
    String::from_utf8(bytes[..end].to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_mailbox_answers_nothing() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("dev")).unwrap();
        std::fs::write(root.path().join("dev/vcio"), "plain").unwrap();
        assert_eq!(ask(root.path(), "get_throttled"), None);
    }
}
