//! What this process has cost: memory, wake-ups, CPU time, bytes written.
//!
//! Duty: read it from `/proc/self` for `larder status` and the demo. Bound: 1,024 threads.
//! Failure: what the kernel does not tell (`/proc/self/io` needs `CONFIG_TASK_IO_ACCOUNTING`) is
//! absent.

use std::fs;
use std::path::Path;

use serde::Serialize;

const THREADS_MAX: usize = 1_024;

/// The costs of this process since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Memory resident now.
    pub resident_bytes: Option<u64>,
    /// Voluntary context switches of the threads alive now: each ends in one wake-up.
    pub wakeups: Option<u64>,
    /// CPU time of all threads, in user and kernel mode.
    pub cpu_ms: Option<u64>,
    /// Bytes this process caused to be written to storage, file system overhead not included.
    pub written_bytes: Option<u64>,
}

/// Reads the costs under `root`: `/` in production, a recorded tree in tests.
#[must_use]
pub fn read(root: &Path) -> Usage {
    let own = root.join("proc/self");
    let status = crate::read_text(&own.join("status")).unwrap_or_default();
    let io = crate::read_text(&own.join("io")).unwrap_or_default();
    Usage {
        resident_bytes: crate::field(&status, "VmRSS"),
        wakeups: wakeups(&own),
        cpu_ms: cpu_ms(root),
        written_bytes: crate::field(&io, "write_bytes"),
    }
}

/// `/proc/self/status` counts the main thread's switches alone, so the threads are summed.
fn wakeups(own: &Path) -> Option<u64> {
    let mut sum = None;
    for thread in fs::read_dir(own.join("task")).ok()?.take(THREADS_MAX).flatten() {
        // a thread may end between the listing and the reading
        let Some(status) = crate::read_text(&thread.path().join("status")) else { continue };
        if let Some(switches) = crate::field(&status, "voluntary_ctxt_switches") {
            sum = Some(sum.unwrap_or(0) + switches);
        }
    }
    sum
}

/// Fields 14 and 15 of `/proc/self/stat` (proc(5)), counted after the command name, which may hold
/// spaces and brackets of its own.
fn cpu_ms(root: &Path) -> Option<u64> {
    let stat = crate::read_text(&root.join("proc/self/stat"))?;
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let kernel: u64 = fields.next()?.parse().ok()?;
    let ticks = user.checked_add(kernel)?;
    ticks.checked_mul(1_000)?.checked_div(crate::auxv::clock_ticks(root)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, bytes) in files {
            let path = root.path().join("proc/self").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        root
    }

    #[test]
    fn every_cost_is_read_from_a_recorded_tree() {
        let stat = b"7 (a (b) c) S 1 7 7 0 -1 4194560 500 0 0 0 120 30 0 0 20 0 2 0 100 1 1";
        let root = recorded(&[
            ("status", b"Name:\tlarder\nVmHWM:\t   20000 kB\nVmRSS:\t   12000 kB\n"),
            ("task/7/status", b"voluntary_ctxt_switches:\t40\nnonvoluntary_ctxt_switches:\t9\n"),
            ("task/8/status", b"voluntary_ctxt_switches:\t2\nnonvoluntary_ctxt_switches:\t9\n"),
            ("stat", stat),
            ("auxv", &crate::auxv::recorded(4_096, 100)),
            ("io", b"rchar: 5\nwchar: 6\nread_bytes: 7\nwrite_bytes: 8192\ncancelled_write_bytes: 1\n"),
        ]);
        let usage = read(root.path());
        assert_eq!(usage.resident_bytes, Some(12_000 * 1_024));
        assert_eq!(usage.wakeups, Some(42));
        assert_eq!(usage.cpu_ms, Some(1_500));
        assert_eq!(usage.written_bytes, Some(8_192));
    }

    #[test]
    fn what_the_kernel_does_not_tell_is_absent_never_zero() {
        assert_eq!(read(recorded(&[]).path()), Usage::default());
        let root = recorded(&[("status", b"VmRSS:\tmuch kB\n"), ("stat", b"7 (x) S 1"), ("io", b"")]);
        assert_eq!(read(root.path()), Usage::default());
    }

    #[test]
    fn this_process_has_costs() {
        let usage = read(Path::new("/"));
        assert!(usage.resident_bytes.is_some_and(|bytes| bytes > 100_000));
        assert!(usage.wakeups.is_some() && usage.cpu_ms.is_some());
    }
}
