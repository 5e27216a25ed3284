//! What the demo shows while it runs: a line for each of the three, on a terminal; else nothing.

use super::Source;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use larder_core::request::Status;
use std::io::IsTerminal;
use std::path::Path;

/// The lines.
pub(super) struct Screen {
    lines: Option<[ProgressBar; 3]>,
    all: MultiProgress,
    talks: bool,
}

impl Screen {
    pub(super) fn new(talks: bool, dir: &Path, sources: &[Source], skipped: u64) -> Self {
        let all = MultiProgress::new();
        if talks {
            let bytes: u64 = sources.iter().map(|source| source.bytes).sum();
            let skipped = if skipped == 0 { String::new() } else { format!(" ({skipped} left out)") };
            eprintln!(
                "taking {} files, {:.1} MB, from {}{skipped}",
                sources.len(),
                bytes as f64 / 1e6,
                dir.display()
            );
        }
        let is_live = talks && std::io::stderr().is_terminal();
        let style = ProgressStyle::with_template("{prefix:8} {bar:30} {pos:>6}/{len} objects  {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        let line = |name: &'static str| {
            let bar = ProgressBar::new(sources.len() as u64).with_style(style.clone()).with_prefix(name);
            all.add(bar)
        };
        let lines = is_live.then(|| [line("worker"), line("master"), line("leecher")]);
        Screen { lines, all, talks }
    }

    pub(super) fn show(&self, master: &Status, worker: &Status, leecher: &Status) {
        let Some([for_worker, for_master, for_leecher]) = &self.lines else { return };
        let link = |status: &Status| if status.link.up { "link up" } else { "link down" };
        for (bar, status, verb, bytes) in [
            (for_worker, worker, "taken", worker.ingest.bytes),
            (for_master, master, "received", master.sync.bytes_received),
            (for_leecher, leecher, "received", leecher.sync.bytes_received),
        ] {
            bar.set_position(status.store.names);
            bar.set_message(format!("{:.1} MB {verb}, {}", bytes as f64 / 1e6, link(status)));
        }
    }

    pub(super) fn say(&self, what: &str) {
        if self.lines.is_some() {
            // Only a line above the bars; a terminal that is gone is no reason to end.
            let _ = self.all.println(what);
        } else if self.talks {
            eprintln!("{what}");
        }
    }

    pub(super) fn finish(&self) {
        for line in self.lines.iter().flatten() {
            line.finish();
        }
    }
}
