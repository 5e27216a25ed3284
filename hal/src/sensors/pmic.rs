//! The Raspberry Pi 5's power chip, asked as `vcgencmd pmic_read_adc` does: one property message to the
//! firmware through `/dev/vcio`. No driver puts it into sysfs.
//!
//! Needs access to that device (group `video`); without it the power is absent.

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::path::Path;

use rustix::ioctl::{self, Opcode, Updater};

const PROPERTY: Opcode = ioctl::opcode::read_write::<*mut u8>(100, 0);
const TAG_COMMAND: u32 = 0x0003_0080;
const TEXT_BYTES: usize = 1_024;
const HEAD_WORDS: usize = 6;
const WORDS: usize = HEAD_WORDS + TEXT_BYTES / 4 + 1;

/// Power over all rails: the sum of volt times ampere.
pub(super) fn power_uw(root: &Path) -> Option<u64> {
    let device = OpenOptions::new().read(true).write(true).open(root.join("dev/vcio")).ok()?;
    parse(&command(&device, "pmic_read_adc")?)
}

/// Has the firmware carry out a command and gives the text it answers.
#[expect(unsafe_code, reason = "the firmware's mailbox is an ioctl with a buffer of its own layout")]
fn command(device: &File, command: &str) -> Option<String> {
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

/// Lines such as `VDD_CORE_A current(7)=1.32840000A` and `VDD_CORE_V volt(15)=0.72048570V`.
fn parse(text: &str) -> Option<u64> {
    let value = |rail: &str, unit: char| {
        let line = text.lines().map(str::trim).find(|line| line.split(' ').next() == Some(rail))?;
        let number: f64 = line.split_once('=')?.1.strip_suffix(unit)?.parse().ok()?;
        (0.0..1_000.0).contains(&number).then_some(number)
    };
    let mut sum = None;
    for line in text.lines() {
        let Some(rail) = line.trim().split(' ').next().and_then(|name| name.strip_suffix("_A")) else {
            continue;
        };
        let power = value(&format!("{rail}_A"), 'A').zip(value(&format!("{rail}_V"), 'V'));
        if let Some((amperes, volts)) = power {
            sum = Some(sum.unwrap_or(0.0) + amperes * volts);
        }
    }
    // far below 2^53: no rail has a kilovolt or a kiloampere
    sum.map(|watts| (watts * 1e6).round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORDED: &str = "  3V7_WL_SW_A current(0)=0.08489670A\n  3V3_SYS_A current(1)=0.06050000A\n \
        VDD_CORE_A current(7)=1.50000000A\n     3V7_WL_SW_V volt(8)=3.70000000V\n      3V3_SYS_V volt(9)=3.30000000V\n    \
        VDD_CORE_V volt(15)=0.80000000V\n      EXT5V_V volt(24)=5.15000000V\n       BATT_V volt(25)=0.00244200V";

    #[test]
    fn power_is_the_sum_over_rails_with_current_and_voltage() {
        assert_eq!(parse(RECORDED), Some(314_118 + 199_650 + 1_200_000));
    }

    #[test]
    fn an_answer_that_is_none_is_absent() {
        for text in ["", "error=1 error_msg=\"Command not registered\"", "VDD_CORE_A current(7)=1.5A"] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(parse("X_A current(0)=-3A\nX_V volt(1)=1V"), None);
    }

    #[test]
    fn a_file_that_is_no_mailbox_is_absent() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("dev")).unwrap();
        std::fs::write(root.path().join("dev/vcio"), "plain").unwrap();
        assert_eq!(power_uw(root.path()), None);
    }
}
