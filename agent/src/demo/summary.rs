//! What the demo has to show for itself.

use super::{Carried, Source};
use larder_core::request::Status;
use serde::Serialize;
use std::path::Path;

/// The figures; all three nodes share one process, so its own figures are given once.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    files: u64,
    bytes: u64,
    left_out: u64,
    verified_copies: u64,
    seconds: f64,
    megabytes_per_second: f64,
    dedup_ratio: f64,
    link_connects: u64,
    bytes_arrived_at_cut: u64,
    blocks_sent_by_worker: u64,
    bytes_sent_by_worker: u64,
    bytes_stored_by_worker: u64,
    nodes: Vec<NodeSummary>,
    process_wake_ups: Option<u64>,
    process_cpu_ms: Option<u64>,
    process_resident_bytes: Option<u64>,
}

#[derive(Debug, Serialize)]
struct NodeSummary {
    node: String,
    objects: u64,
    blocks: u64,
    batches: u64,
    syncs: u64,
    bytes_to_disk: u64,
    bytes_used: u64,
    timer_wake_ups: u64,
}

impl Summary {
    pub(super) fn new(statuses: &[Status; 3], sources: &[Source], left_out: u64, carried: &Carried) -> Self {
        let [master, worker, _] = statuses;
        let bytes: u64 = sources.iter().map(|source| source.bytes).sum();
        let took = carried.took;
        let ratio = |a: u64, b: u64| if b == 0 { 1.0 } else { a as f64 / b as f64 };
        Summary {
            files: sources.len() as u64,
            bytes,
            left_out,
            verified_copies: 3,
            seconds: took.as_secs_f64(),
            megabytes_per_second: bytes as f64 / 1e6 / took.as_secs_f64().max(1e-9),
            dedup_ratio: ratio(worker.store.offered_bytes, worker.store.stored_bytes),
            link_connects: worker.link.connects,
            bytes_arrived_at_cut: carried.bytes_at_cut,
            blocks_sent_by_worker: worker.sync.blocks_sent,
            bytes_sent_by_worker: worker.sync.bytes_sent,
            bytes_stored_by_worker: worker.store.stored_bytes,
            nodes: statuses.iter().map(NodeSummary::new).collect(),
            process_wake_ups: master.process.wake_ups,
            process_cpu_ms: master.process.cpu_ms,
            process_resident_bytes: master.process.resident_bytes,
        }
    }

    pub(super) fn print(&self, json: bool, kept: Option<&Path>) {
        if json {
            println!("{}", serde_json::to_string(self).expect("a summary holds only numbers and text"));
            return;
        }
        println!(
            "{} files, {:.1} MB: worker, master and leecher hold the same bytes, every one read back and compared",
            self.files,
            self.bytes as f64 / 1e6
        );
        println!(
            "{:.2} s with the link cut once, after {:.1} MB, {:.1} MB/s; {:.2} bytes taken for each one stored; the worker sent {:.1} MB in {} blocks over {} connections",
            self.seconds,
            self.bytes_arrived_at_cut as f64 / 1e6,
            self.megabytes_per_second,
            self.dedup_ratio,
            self.bytes_sent_by_worker as f64 / 1e6,
            self.blocks_sent_by_worker,
            self.link_connects
        );
        println!(
            "{:8} {:>8} {:>8} {:>8} {:>8} {:>14} {:>12}",
            "node", "objects", "blocks", "batches", "syncs", "MB to disk", "timer wakes"
        );
        for node in &self.nodes {
            println!(
                "{:8} {:>8} {:>8} {:>8} {:>8} {:>14.1} {:>12}",
                node.node,
                node.objects,
                node.blocks,
                node.batches,
                node.syncs,
                node.bytes_to_disk as f64 / 1e6,
                node.timer_wake_ups
            );
        }
        if let (Some(wakes), Some(cpu_ms), Some(resident)) =
            (self.process_wake_ups, self.process_cpu_ms, self.process_resident_bytes)
        {
            let resident = resident as f64 / 1e6;
            println!(
                "all three in one process: {wakes} wake-ups, {cpu_ms} ms of CPU, {resident:.1} MB resident"
            );
        }
        if let Some(kept) = kept {
            println!("stores, keys and configurations are kept in {}", kept.display());
        }
    }
}

impl NodeSummary {
    fn new(status: &Status) -> Self {
        NodeSummary {
            node: status.node.clone(),
            objects: status.store.names,
            blocks: status.store.blocks,
            batches: status.store.batches,
            syncs: status.store.syncs,
            bytes_to_disk: status.store.written_bytes,
            bytes_used: status.store.used_bytes,
            timer_wake_ups: status.power.timer_wakes.iter().map(|reason| reason.count).sum(),
        }
    }
}
