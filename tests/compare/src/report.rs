//! The table: a row for each size and question, a column for each peer, in Markdown.

use crate::contest::{Outcome, SIZES, WAYS};
use crate::peers;
use std::fmt::Write;

/// The peer reads are measured by.
const READS_BY: &str = "redb";

/// All outcomes as one table.
pub fn table(outcomes: &[Outcome]) -> String {
    let mut names: Vec<&str> = outcomes.iter().map(|outcome| outcome.peer.as_str()).collect();
    names.dedup();
    names.truncate(outcomes.len() / SIZES.len());
    let mut text = format!("| block | question | {} |\n", names.join(" | "));
    let _ = writeln!(text, "|---|---|{}", "---:|".repeat(names.len()));
    for size in SIZES {
        let of_size: Vec<&Outcome> = outcomes.iter().filter(|outcome| outcome.size == size).collect();
        for (question, cells) in questions(&of_size) {
            let _ = writeln!(text, "| {} | {question} | {} |", length(size), cells.join(" | "));
        }
    }
    text
}

fn questions(outcomes: &[&Outcome]) -> Vec<(String, Vec<String>)> {
    let cells = |value: &dyn Fn(&Outcome) -> String| outcomes.iter().map(|outcome| value(outcome)).collect();
    let by = |name: &str| outcomes.iter().find(|outcome| outcome.peer == name);
    let mut rows: Vec<(String, Vec<String>)> = Vec::new();
    for (index, (_, words)) in WAYS.into_iter().enumerate() {
        let measure = by("append").map_or(f64::NAN, |append| append.written[index].bytes_per_second);
        let ratio = |outcome: &Outcome| number(outcome.written[index].bytes_per_second / measure, 2);
        rows.push((format!("{words}, append = 1 ({:.1} MB/s)", measure / 1e6), cells(&ratio)));
        rows.push((
            format!("{words}, device flushes a write"),
            cells(&|o| number(o.written[index].flushes, 1)),
        ));
        rows.push((
            format!("{words}, device bytes a byte"),
            cells(&|o| number(o.written[index].bytes_per_byte, 2)),
        ));
    }
    let (get, miss) = by(READS_BY).map_or((f64::NAN, f64::NAN), |redb| (redb.get_ns, redb.miss_ns));
    let checked = |outcome: &Outcome| if peers::checks(&outcome.peer) { " ✓" } else { "" };
    let read = |outcome: &Outcome| number(get / outcome.get_ns, 2) + checked(outcome);
    rows.push((
        format!("warm random reads, {READS_BY} = 1 ({:.2} µs); ✓ checks them", get / 1e3),
        cells(&read),
    ));
    rows.push((
        format!("`has` that misses, {READS_BY} = 1 ({miss:.0} ns)"),
        cells(&|o| number(miss / o.miss_ns, 1)),
    ));
    rows.push(("open after a kill, ms".into(), cells(&|o| number(o.open_ms, 0))));
    rows.push(("space a byte".into(), cells(&|o| number(o.space, 2))));
    rows.push(("peak resident, MiB".into(), cells(&|o| number(o.memory / f64::from(1 << 20), 0))));
    rows
}

fn number(value: f64, digits: usize) -> String {
    if value.is_finite() { format!("{value:.digits$}") } else { String::new() }
}

/// A size in words.
pub fn length(size: usize) -> String {
    if size < 1024 { format!("{size} B") } else { format!("{} KiB", size >> 10) }
}
