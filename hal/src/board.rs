//! What the machine says of its own model: device tree, architecture, memory, pages.
//!
//! Duty: collect it for the choice of a board. Refuses nothing: an unknown machine is described as
//! well as it can be. Bound: 64 `compatible` strings of 128 bytes. Failure: absent values.

use std::path::Path;

use serde::Serialize;

const COMPATIBLE_MAX: usize = 64;
const COMPATIBLE_BYTES_MAX: usize = 128;

/// The machine, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// Device tree `compatible` strings, most specific first; empty without a device tree.
    pub compatible: Vec<String>,
    /// Architecture of this binary, as Rust names it (`aarch64`, `arm`, `x86_64`): a 32-bit agent
    /// on a 64-bit kernel lives within 32 bits.
    pub arch: &'static str,
    /// Memory the kernel manages.
    pub memory_bytes: Option<u64>,
    /// Bytes of a memory page.
    pub page_bytes: Option<u64>,
}

/// Reads the machine under `root`: `/` in production, a recorded tree in tests.
#[must_use]
pub fn detect(root: &Path) -> Machine {
    Machine {
        compatible: compatible(root),
        arch: std::env::consts::ARCH,
        memory_bytes: crate::read_text(&root.join("proc/meminfo"))
            .and_then(|text| crate::field(&text, "MemTotal")),
        page_bytes: crate::auxv::page_bytes(root),
    }
}

/// The kernel gives the strings one after another, each ended by a NUL.
fn compatible(root: &Path) -> Vec<String> {
    let bytes = crate::read_bytes(&root.join("proc/device-tree/compatible")).unwrap_or_default();
    bytes
        .split(|&byte| byte == 0)
        .filter(|text| !text.is_empty() && text.len() <= COMPATIBLE_BYTES_MAX)
        .filter_map(|text| std::str::from_utf8(text).ok())
        .map(str::to_owned)
        .take(COMPATIBLE_MAX)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn tree(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, bytes) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        root
    }

    #[test]
    fn a_raspberry_pi_4_tells_its_model_first_and_its_chip_second() {
        let root = tree(&[
            ("proc/device-tree/compatible", b"raspberrypi,4-model-b\0brcm,bcm2711\0"),
            ("proc/meminfo", b"MemTotal:        3884364 kB\nMemFree:          103492 kB\n"),
            ("proc/self/auxv", &crate::auxv::recorded(4_096, 100)),
        ]);
        let machine = detect(root.path());
        assert_eq!(machine.compatible, ["raspberrypi,4-model-b", "brcm,bcm2711"]);
        assert_eq!(machine.memory_bytes, Some(3_884_364 * 1_024));
        assert_eq!(machine.page_bytes, Some(4_096));
    }

    #[test]
    fn a_raspberry_pi_5_tells_its_16_kib_pages() {
        let root = tree(&[("proc/self/auxv", &crate::auxv::recorded(16_384, 100))]);
        assert_eq!(detect(root.path()).page_bytes, Some(16_384));
    }

    #[test]
    fn a_machine_without_a_device_tree_is_known_by_its_architecture_alone() {
        let root = tree(&[]);
        let machine = detect(root.path());
        assert_eq!(machine.compatible, [""; 0]);
        assert_eq!(machine.arch, std::env::consts::ARCH);
        assert_eq!((machine.memory_bytes, machine.page_bytes), (None, None));
    }

    #[test]
    fn garbage_is_absent_never_zero() {
        let root = tree(&[
            ("proc/device-tree/compatible", b"\0\0\xff\xfe\0good,board"),
            ("proc/meminfo", b"MemTotal: plenty kB\n"),
            ("proc/self/auxv", b"short"),
        ]);
        let machine = detect(root.path());
        assert_eq!(machine.compatible, ["good,board"]);
        assert_eq!((machine.memory_bytes, machine.page_bytes), (None, None));
    }

    #[test]
    fn a_device_tree_of_any_length_is_bounded() {
        let root = tree(&[("proc/device-tree/compatible", &b"maker,model\0".repeat(100_000))]);
        assert_eq!(detect(root.path()).compatible.len(), COMPATIBLE_MAX);
    }

    #[test]
    fn this_machine_has_memory_and_pages() {
        let machine = detect(Path::new("/"));
        assert!(machine.memory_bytes.is_some_and(|bytes| bytes > 64 << 20));
        assert!(machine.page_bytes.is_some_and(u64::is_power_of_two));
    }
}
