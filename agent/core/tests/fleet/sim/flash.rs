//! The real store of a machine, beside the simulated one: what its flash is told, and for what.
//!
//! It takes the changes that the simulated store has carried out, and checkpoints when the core asks or the store
//! wants, as the agent's helper thread does. It answers nothing.

use larder_core::message::{Change, ChangeDone, Job, JobDone, Question};
use larder_store::{Op, Options, OsDisk, Store, StoreStatus};
use tempfile::TempDir;

pub(crate) struct Flash {
    store: Store<OsDisk>,
    disk: OsDisk,
    _folder: TempDir,
}

impl Flash {
    /// Of a machine with this many entries in memory between checkpoints.
    pub(crate) fn new(table_entries: u64) -> Flash {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let disk = OsDisk::new(folder.path()).expect("it is there");
        let table_entries = usize::try_from(table_entries).expect("it fits memory");
        let options = Options { table_entries, ..Options::default() };
        let (store, _) = Store::open(disk.clone(), options).expect("an empty folder becomes a store");
        Flash { store, disk, _folder: folder }
    }

    /// What of a job has to be told when it is done.
    pub(crate) fn ops(job: &Job) -> Vec<Op> {
        match job {
            Job::Commit { changes, .. } => changes.iter().cloned().map(op).collect(),
            Job::Ask(_) => Vec::new(),
        }
    }

    pub(crate) fn done(&mut self, ops: Vec<Op>, wants_checkpoint: bool, done: &JobDone) {
        if let JobDone::Committed(Ok(done)) = done {
            let is_in_time = |done: &ChangeDone| !matches!(done, ChangeDone::Outrun);
            let ops = ops.into_iter().zip(done).filter(|(_, done)| is_in_time(done)).map(|(op, _)| op);
            self.store.commit(ops.collect()).expect("there is room");
        }
        if wants_checkpoint || self.store.needs_checkpoint() {
            self.store.checkpoint().expect("there is room");
        }
    }

    pub(crate) fn status(&self) -> StoreStatus {
        self.store.status()
    }

    /// All that was written to it.
    pub(crate) fn bytes(&self) -> u64 {
        self.disk.counts().bytes
    }
}

pub(crate) fn wants_checkpoint(job: &Job) -> bool {
    matches!(job, Job::Ask(Question::Checkpoint))
}

fn op(change: Change) -> Op {
    match change {
        Change::Put { id, bytes } => Op::Put { hash: id.0, bytes },
        Change::Bind { name, value, .. } => Op::Bind { name: name.as_str().to_owned(), value },
        Change::Unbind { name, .. } => Op::Unbind { name: name.as_str().to_owned() },
        Change::Set { key, value } => Op::Set { key, value: Some(value) },
    }
}
