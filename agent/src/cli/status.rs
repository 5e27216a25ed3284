//! `larder status` for people, and the reports of `verify` and `index rebuild`.
//!
//! Bound: what a node says of itself fits one answer. What a node does not know is left out, never shown as 0.

use std::fmt::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use indicatif::{HumanCount, HumanDuration};
use larder_core::limits::VERIFY_LISTED_MAX;
use larder_core::request::{PeerStatus, Request, Response, ScrubNumbers, Status};

use super::client::Connection;
use super::exit::{CommandError, Exit};
use super::output::{Output, bytes, count};

/// Runs `status`.
pub(super) async fn status(connection: &mut Connection, output: &mut Output) -> Result<Exit, CommandError> {
    let answer = connection.ask(Request::Status, output).await?;
    output.answer(&answer)?;
    let Response::Status(status) = answer else { return Err(CommandError::Answer("status")) };
    output.line(table(&status).trim_end()).map(|()| Exit::OK)
}

/// Runs `verify`.
pub(super) async fn verify(connection: &mut Connection, output: &mut Output) -> Result<Exit, CommandError> {
    let answer = connection.ask(Request::Verify, output).await?;
    output.answer(&answer)?;
    let Response::Verified { blocks, bytes: size, damaged, incomplete } = answer else {
        return Err(CommandError::Answer("verify"));
    };
    for id in &damaged {
        output.line(format_args!("damaged block {id}"))?;
    }
    for name in &incomplete {
        output.line(format_args!("incomplete {}", name.as_str()))?;
    }
    let whole = damaged.is_empty() && incomplete.is_empty();
    let (read, size) = (count(blocks, "block"), bytes(size));
    if whole {
        output.remark(format_args!("{read} read, {size}, all whole"))?;
        return Ok(Exit::OK);
    }
    let way = if incomplete.is_empty() {
        "what no object needs: `larder rm CID` deletes it"
    } else {
        "put or fetch these objects again to heal them"
    };
    let is_cut = damaged.len().max(incomplete.len()) >= VERIFY_LISTED_MAX;
    let more = if is_cut { ", perhaps more" } else { "" };
    output.remark(format_args!("{read} read, {size}, {} damaged{more}; {way}", damaged.len()))?;
    Ok(Exit::from(larder_core::request::FailureKind::Damaged))
}

/// Runs `index rebuild`.
pub(super) async fn rebuild(connection: &mut Connection, output: &mut Output) -> Result<Exit, CommandError> {
    let answer = connection.ask(Request::IndexRebuild, output).await?;
    output.answer(&answer)?;
    let Response::Rebuilt { blocks, names } = answer else {
        return Err(CommandError::Answer("index rebuild"));
    };
    let (blocks, names) = (count(blocks, "block"), count(names, "name"));
    output.remark(format_args!("the index is made again from the log: {blocks}, {names}"))?;
    Ok(Exit::OK)
}

/// Lines of a label and what it says; values begin in one column.
#[derive(Default)]
struct Table {
    text: String,
}

impl Table {
    fn row(&mut self, label: &str, value: impl fmt::Display) {
        let _ = writeln!(self.text, "{label:<12}{value}");
    }

    fn row_unless_empty(&mut self, label: &str, value: &str) {
        if !value.is_empty() {
            self.row(label, value);
        }
    }

    fn heading(&mut self, heading: &str) {
        let _ = writeln!(self.text, "\n{heading}");
    }
}

fn table(status: &Status) -> String {
    let mut table = Table::default();
    node(&mut table, status);
    store(&mut table, status);
    scrub(&mut table, &status.scrub);
    traffic(&mut table, status);
    costs(&mut table, status);
    peers(&mut table, &status.peers);
    settings(&mut table, status);
    for note in &status.store.notes {
        table.row("note", note);
    }
    table.text
}

fn node(table: &mut Table, status: &Status) {
    table.row_unless_empty("node", &status.node);
    table.row_unless_empty("fleet", &status.fleet);
    if let Some(role) = status.role {
        table.row("role", role);
    }
    let uptime = HumanDuration(Duration::from_millis(status.uptime_ms));
    table.row("version", format_args!("{}, up for {uptime}", status.version));
    let link = &status.link;
    if link.up {
        table.row("link", format_args!("up, {}", count(link.connects, "connect")));
    } else if link.reason.is_empty() {
        table.row("link", "none");
    } else {
        table.row("link", format_args!("down: {}", link.reason));
    }
}

fn store(table: &mut Table, status: &Status) {
    let store = &status.store;
    let share = (u128::from(store.used_bytes) * 100).checked_div(u128::from(store.quota_bytes));
    let share = share.map(|share| format!(" ({share} %)")).unwrap_or_default();
    let (used, quota, reserve) =
        (bytes(store.used_bytes), bytes(store.quota_bytes), bytes(store.reserve_bytes));
    table.row("store", format_args!("{used} of {quota} used{share}, {reserve} of it in reserve"));
    let spares = match store.spare_segments {
        0 => String::new(),
        spares => format!(", {} of {}", number(spares, "spare"), bytes(store.spare_bytes)),
    };
    table.row(
        "holds",
        format_args!(
            "{}, {}, {}{spares}",
            number(store.blocks, "block"),
            number(store.names, "name"),
            number(store.segments, "segment")
        ),
    );
    table.row(
        "written",
        format_args!(
            "{} offered, {} new, {} to disk in {} and {}",
            bytes(store.offered_bytes),
            bytes(store.stored_bytes),
            bytes(store.written_bytes),
            number(store.batches, "batch").replace("batchs", "batches"),
            number(store.syncs, "sync")
        ),
    );
    table.row(
        "read",
        format_args!(
            "{} from the cache, {} not, {} known absent by the filter",
            HumanCount(store.cache_hits),
            HumanCount(store.cache_misses),
            HumanCount(store.filter_skips)
        ),
    );
    if store.damaged > 0 || store.quarantined > 0 {
        let (damaged, quarantined) = (HumanCount(store.damaged), HumanCount(store.quarantined));
        table.row("damage", format_args!("{damaged} blocks; {quarantined} records set aside at start"));
    }
    if !store.unread.is_empty() {
        let segments = HumanCount(store.unread.len() as u64);
        let until = "no space is given back until the device reads them, or has not several times";
        table.row("unread", format_args!("{segments} segments: {until}"));
    }
}

fn scrub(table: &mut Table, scrub: &ScrubNumbers) {
    let duration = |ms: u64| HumanDuration(Duration::from_millis(ms));
    let mut parts = Vec::new();
    if let Some((done, total)) = scrub.under_way {
        parts.push(format!("under way, {} of {}", HumanCount(done), number(total, "block")));
    }
    if let Some(last_ms) = scrub.last_ms {
        parts.push(format!("ended last {}", ago(last_ms)));
    }
    if scrub.ended > 0 {
        let (read, damaged) = (number(scrub.blocks, "block"), HumanCount(scrub.damaged));
        parts.push(format!("{read} read, {damaged} damaged"));
    }
    if let Some(next_in_ms) = scrub.next_in_ms {
        parts.push(format!("next in {}", duration(next_in_ms)));
    }
    table.row_unless_empty("scrub", &parts.join(", "));
    for name in &scrub.incomplete {
        table.row("", format_args!("incomplete: {}", name.as_str()));
    }
}

/// How long a moment of the wall clock is past.
fn ago(moment_ms: i64) -> String {
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let since_ms = i128::try_from(now_ms).unwrap_or(i128::MAX) - i128::from(moment_ms);
    match u64::try_from(since_ms) {
        Ok(since_ms) => format!("{} ago", HumanDuration(Duration::from_millis(since_ms))),
        Err(_) => "by a clock that was ahead".to_owned(),
    }
}

fn traffic(table: &mut Table, status: &Status) {
    let ingest = &status.ingest;
    table.row(
        "ingest",
        format_args!(
            "{} ({} unchanged), {}, {} of it hashed beside the loop; of watched files {} deferred, {} refused, {} deleted after upload",
            number(ingest.objects, "object"),
            HumanCount(ingest.unchanged),
            bytes(ingest.bytes),
            bytes(ingest.hashed_beside),
            HumanCount(ingest.deferred),
            HumanCount(ingest.refused),
            HumanCount(ingest.deleted)
        ),
    );
    table.row_unless_empty("  problem", &ingest.last_problem);
    let sync = &status.sync;
    table.row(
        "sent",
        format_args!(
            "{}, {}; {} acknowledged, {} refused",
            number(sync.blocks_sent, "block"),
            bytes(sync.bytes_sent),
            number(sync.objects_acknowledged, "object"),
            HumanCount(sync.objects_refused)
        ),
    );
    table.row(
        "received",
        format_args!(
            "{}, {}; {}; {} not asked for",
            number(sync.blocks_received, "block"),
            bytes(sync.bytes_received),
            number(sync.objects_received, "object"),
            HumanCount(sync.blocks_unasked)
        ),
    );
    let (out, into) = (HumanCount(sync.messages_sent), HumanCount(sync.messages_received));
    let dropped = HumanCount(sync.messages_dropped);
    table.row("messages", format_args!("{out} sent, {into} received, {dropped} dropped"));
    table.row_unless_empty("  problem", &sync.last_problem);
    if sync.conflicts > 0 {
        table.row("conflicts", HumanCount(sync.conflicts));
        for name in &sync.conflicted_names {
            table.row("", name.as_str());
        }
    }
}

fn costs(table: &mut Table, status: &Status) {
    let power = &status.power;
    table.row(
        "loop",
        format_args!(
            "{}, {} over 20 ms, the longest {} ms",
            number(power.turns, "turn"),
            HumanCount(power.stalls),
            power.longest_turn_ms
        ),
    );
    if power.dropped > 0 {
        table.row("", format_args!("{} dropped at a bound: please report this", HumanCount(power.dropped)));
    }
    for wake in &power.timer_wakes {
        table.row("", format_args!("woken {} times to {}", HumanCount(wake.count), wake.why));
    }
    let process = &status.process;
    let known: Vec<String> = [
        process.resident_bytes.map(|size| format!("{} resident", bytes(size))),
        process.wake_ups.map(|times| number(times, "wake-up")),
        process.cpu_ms.map(|ms| format!("{} ms of CPU", HumanCount(ms))),
        process.disk_bytes.map(|size| format!("{} to disk", bytes(size))),
    ]
    .into_iter()
    .flatten()
    .collect();
    table.row_unless_empty("process", &known.join(", "));
}

fn peers(table: &mut Table, peers: &[PeerStatus]) {
    if peers.is_empty() {
        return;
    }
    table.heading("peers");
    for peer in peers {
        let session = if peer.session { "in session" } else { "not heard" };
        let outbox = if peer.outbox_empty {
            "has everything".to_owned()
        } else {
            format!("has everything up to {}", peer.acknowledged_seq)
        };
        let _ = writeln!(table.text, "  {:<24} {:<8} {session}, {outbox}", peer.node, peer.role);
    }
}

fn settings(table: &mut Table, status: &Status) {
    if status.settings.is_empty() {
        return;
    }
    table.heading("settings in force");
    let width = |text: fn(&larder_core::request::SettingInForce) -> usize| {
        status.settings.iter().map(text).max().unwrap_or_default()
    };
    let (key, value) = (width(|setting| setting.key.len()), width(|setting| setting.value.len()));
    for setting in &status.settings {
        let _ = writeln!(table.text, "  {:<key$}  {:<value$}  {}", setting.key, setting.value, setting.from);
    }
}

/// A number with thousands marked, and its word.
fn number(value: u64, word: &str) -> String {
    count(value, word).replacen(&value.to_string(), &HumanCount(value).to_string(), 1)
}

#[cfg(test)]
mod tests {
    use larder_core::request::{SettingInForce, WakeReason};
    use larder_core::role::Role;

    use super::*;

    #[test]
    fn a_node_that_knows_nothing_of_itself_has_a_table() {
        let text = table(&Status::default());
        assert!(text.contains("link        none") && !text.contains("process"), "{text}");
    }

    #[test]
    fn the_table_says_what_there_is_and_where_settings_came_from() {
        let mut status = Status { node: "attic".into(), role: Some(Role::Master), ..Status::default() };
        status.store.used_bytes = 512 << 20;
        status.store.quota_bytes = 1 << 30;
        status.store.batches = 1_234;
        status.store.notes.push("the index was made again".into());
        status.link.reason = "refused: check the login".into();
        status.power.timer_wakes.push(WakeReason { why: "flush".into(), count: 7 });
        status.peers.push(PeerStatus {
            node: "cam".parse().unwrap(),
            role: Role::Worker,
            session: true,
            acknowledged_seq: 9,
            outbox_empty: false,
        });
        status.settings.push(SettingInForce {
            key: "tick_ms".into(),
            value: "250".into(),
            from: "profile balanced".into(),
        });
        let text = table(&status);
        for line in [
            "node        attic",
            "role        master",
            "link        down: refused: check the login",
            "store       512.00 MiB of 1.00 GiB used (50 %), 0 B of it in reserve",
            "1,234 batches",
            "woken 7 times to flush",
            "cam                      worker   in session, has everything up to 9",
            "tick_ms  250  profile balanced",
            "note        the index was made again",
        ] {
            assert!(text.contains(line), "{line} is missing in:\n{text}");
        }
    }
}
