//! The store as the helper thread of the disk has it: jobs carried out, failures in the words of requests.
//!
//! Opens the store, makes its index anew, and opens it again where that failed. A batch that failed has those of its
//! run that wait behind it fail too.

use bytes::Bytes;
use larder_core::id::BlockId;
use larder_core::limits::UNREAD_LISTED_MAX;
use larder_core::message::{Answer, Bound, Change, ChangeDone, Job, JobDone, Question};
use larder_core::name::Name;
use larder_core::object::manifest::Manifest;
use larder_core::request::{Failure, FailureKind, StoreNumbers};
use larder_core::start::STARTS_KEY;
use larder_core::sync::buffer::Buffers;
use larder_core::sync::wire::{Packing, Placed};
use larder_store::{
    Check, CommitError, MaintainError, Op, OpenError, OpenReport, Options, OsDisk, ReadError, ReadTo, Store,
    StoreStatus, VerifyPosition, rebuild_index,
};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Names looked through at once for a root.
const FIND_PAGE: usize = 1024;

/// How long after an opening that failed the next is tried: each may read the whole log.
const OPEN_AGAIN_AFTER: Duration = Duration::from_secs(2);

/// The store, and what it takes to make its index anew.
pub(super) struct StoreKeeper {
    store: Option<Store<OsDisk>>,
    /// When a store that a rebuild left closed was tried last.
    tried: Instant,
    pub(super) disk: OsDisk,
    options: Options,
    notes: Vec<String>,
    offered_bytes: u64,
    stored_bytes: u64,
    quarantined: u64,
    verify: Option<(u64, VerifyPosition)>,
    /// Of the messages that blocks are read to.
    buffers: Buffers,
    /// The run of the last batch that failed, see [`Job::Commit`].
    failed_run: Option<u32>,
}

impl StoreKeeper {
    pub(super) fn open(directory: PathBuf, options: Options) -> Result<(Self, OpenReport), OpenError> {
        let location = directory.display().to_string();
        if options.create {
            let failed =
                |source| OpenError::Io { doing: "creating it".into(), directory: location.clone(), source };
            std::fs::create_dir_all(&directory).map_err(failed)?;
        }
        let looking =
            |source| OpenError::Io { doing: "looking at it".into(), directory: location.clone(), source };
        let disk = OsDisk::new(&directory).map_err(looking)?;
        let (store, report) = Store::open(disk.clone(), options.clone())?;
        let keeper = StoreKeeper {
            store: Some(store),
            tried: Instant::now(),
            disk,
            options,
            notes: notes(&report),
            offered_bytes: 0,
            stored_bytes: 0,
            quarantined: report.damaged_blocks,
            verify: None,
            buffers: Buffers::default(),
            failed_run: None,
        };
        Ok((keeper, report))
    }

    /// A store that did not open behind a rebuild may do so by now.
    fn store(&mut self) -> Result<&mut Store<OsDisk>, Failure> {
        if self.store.is_none() && self.tried.elapsed() >= OPEN_AGAIN_AFTER {
            self.open_again()?;
        }
        let closed = "the store could not be opened behind the rebuild of its index; it is tried again";
        self.store.as_mut().ok_or_else(|| Failure::new(FailureKind::Disk, closed))
    }

    fn open_again(&mut self) -> Result<(), Failure> {
        let opened = Store::open(self.disk.clone(), self.options.clone());
        self.tried = Instant::now();
        let (store, report) = opened.map_err(of_open)?;
        self.store = Some(store);
        self.notes.extend(notes(&report));
        Ok(())
    }

    pub(super) fn set_quota(&mut self, bytes: u64, reserve_bytes: u64) {
        (self.options.quota_bytes, self.options.reserve_bytes) = (bytes, reserve_bytes);
        self.store.iter_mut().for_each(|store| store.set_quota(bytes, reserve_bytes));
    }

    /// About what a rebuild reads.
    pub(super) fn log_bytes(&self) -> u64 {
        let bytes = |status: StoreStatus| status.used_bytes.saturating_sub(status.spare_disk_bytes);
        self.store.as_ref().map_or(0, |store| bytes(store.status()))
    }

    pub(super) fn status(&self) -> StoreStatus {
        self.store.as_ref().expect("the store is open until it is closed").status()
    }

    /// Where it can not be read now, the starts before this one are not told.
    pub(super) fn starts(&mut self) -> Option<Bytes> {
        let settings = self.store.as_mut()?.settings(STARTS_KEY).ok()?;
        settings.into_iter().find_map(|(key, value)| (key == STARTS_KEY).then_some(value))
    }

    /// A full device only costs the last checkpoint: the next start reads more of the log.
    pub(super) fn close(self) -> Result<(), MaintainError> {
        match self.store.map_or(Ok(()), Store::close) {
            Err(full @ MaintainError::Full { .. }) => {
                tracing::warn!("closed without a checkpoint: {full}");
                Ok(())
            }
            closed => closed,
        }
    }

    pub(super) fn work(&mut self, job: Job) -> JobDone {
        match job {
            Job::Commit { run, .. } if self.failed_run == Some(run) => {
                JobDone::Committed(Err(Failure::new(FailureKind::Disk, "a batch before this one failed")))
            }
            Job::Commit { run, changes } => {
                let done = self.commit(changes);
                self.failed_run = done.is_err().then_some(run);
                JobDone::Committed(done)
            }
            Job::Ask(question) => JobDone::Answered(self.answer(question).unwrap_or_else(Answer::Failed)),
        }
    }

    /// One batch: changes whose writer was outrun are left out, the rest is durable together.
    fn commit(&mut self, changes: Vec<Change>) -> Result<Vec<ChangeDone>, Failure> {
        let mut ops = Vec::with_capacity(changes.len());
        let mut done = Vec::with_capacity(changes.len());
        let mut bound = std::collections::BTreeMap::new();
        let mut offered = 0;
        for change in changes {
            let (op, outcome) = match change {
                Change::Put { id, bytes } => {
                    offered += bytes.len() as u64;
                    (Some(Op::Put { hash: id.0, bytes }), ChangeDone::Done)
                }
                Change::Set { key, value } => (Some(Op::Set { key, value: Some(value) }), ChangeDone::Done),
                Change::Bind { name, value, expected_seq } => {
                    let name = name.as_str().to_owned();
                    if bound.contains_key(&name) || self.seq(&name)? != expected_seq {
                        (None, ChangeDone::Outrun)
                    } else {
                        bound.insert(name.clone(), done.len());
                        (Some(Op::Bind { name, value }), ChangeDone::Done)
                    }
                }
                Change::Unbind { name, expected_seq } => {
                    let name = name.as_str().to_owned();
                    if bound.contains_key(&name) || self.seq(&name)? != Some(expected_seq) {
                        (None, ChangeDone::Outrun)
                    } else {
                        (Some(Op::Unbind { name }), ChangeDone::Done)
                    }
                }
            };
            ops.extend(op);
            done.push(outcome);
        }
        let store = self.store()?;
        let before = store.payload_bytes_written();
        store.commit(ops).map_err(of_commit)?;
        let written = store.payload_bytes_written() - before;
        self.offered_bytes += offered;
        self.stored_bytes += written.min(offered);
        for (name, index) in bound {
            let seq = self.seq(&name)?.unwrap_or_default();
            done[index] = ChangeDone::Bound { seq };
        }
        Ok(done)
    }

    pub(super) fn checkpoint_if_due(&mut self) {
        if let Some(store) = self.store.as_mut().filter(|store| store.needs_checkpoint()) {
            store.checkpoint().unwrap_or_else(|error| tracing::warn!("checkpoint put off: {error}"));
        }
    }

    fn seq(&mut self, name: &str) -> Result<Option<u64>, Failure> {
        Ok(self.store()?.binding(name).map_err(of_read)?.map(|binding| binding.seq))
    }

    fn answer(&mut self, question: Question) -> Result<Answer, Failure> {
        let store = self.store()?;
        Ok(match question {
            Question::Read(id) => Answer::Block(store.get(&id.0).map_err(of_read)?),
            Question::Children(id) => {
                let block = store.get(&id.0).map_err(of_read)?;
                let manifest = block.and_then(|bytes| Manifest::decode(&bytes).ok());
                let children = manifest.as_ref().map_or(&[][..], Manifest::children);
                let hashes: Vec<[u8; 32]> = children.iter().map(|child| child.id.0).collect();
                Answer::Children { here: store.lengths(&hashes).map_err(of_read)?, manifest }
            }
            Question::Pack { group, ids, again } => {
                let buffers = self.buffers.clone();
                let check = if again { Check::Here } else { Check::ByReceiver };
                pack(self.store()?, Packing::new(group, &buffers), ids, check)?
            }
            Question::Has(ids) => {
                let hashes: Vec<[u8; 32]> = ids.into_iter().map(|id| id.0).collect();
                Answer::Has(store.lengths(&hashes).map_err(of_read)?)
            }
            Question::Lookup(names) => {
                let found = names.iter().map(|name| store.binding(name.as_str()));
                let found = found.map(|binding| Ok(binding.map_err(of_read)?.map(bound_of)));
                Answer::Bindings(found.collect::<Result<_, Failure>>()?)
            }
            Question::List { prefix, after, limit } => Answer::Page(self.names(&prefix, after, limit)?),
            Question::Changes { after, limit } => Answer::Page(self.changes(after, limit)?),
            Question::Find { root, after } => self.find(root, after)?,
            Question::Settings(prefix) => Answer::Settings(store.settings(&prefix).map_err(of_read)?),
            Question::Numbers => Answer::Numbers(Box::new(self.numbers())),
            Question::CleanBegin => {
                store.clean_begin();
                Answer::Done
            }
            Question::CleanMark(ids) => {
                let hashes: Vec<[u8; 32]> = ids.into_iter().map(|id| id.0).collect();
                store.clean_mark(&hashes).map_err(of_maintain)?;
                Answer::Done
            }
            Question::CleanDelete(ids) => {
                let hashes: Vec<[u8; 32]> = ids.into_iter().map(|id| id.0).collect();
                Answer::Deleted(store.clean_delete(&hashes).map_err(of_maintain)? as u64)
            }
            Question::CleanStep(bytes) => {
                let step = store.clean_step(bytes).map_err(of_maintain)?;
                Answer::Cleaned { done: step.done, bytes_freed: step.bytes_freed }
            }
            Question::CleanAbort => {
                store.clean_abort();
                Answer::Done
            }
            Question::Verify { position, bytes } => self.verify(position, bytes)?,
            Question::Rebuild => self.rebuild()?,
            Question::Checkpoint => {
                store.checkpoint().map_err(of_maintain)?;
                Answer::Done
            }
        })
    }

    /// One page of the names, looked through for a root.
    fn find(&mut self, root: BlockId, after: Option<Name>) -> Result<Answer, Failure> {
        let page = self.names("", after, FIND_PAGE)?;
        let next = if page.len() == FIND_PAGE { page.last().map(|(name, _)| name.clone()) } else { None };
        let is_it = |bound: &Bound| {
            use larder_core::binding::{Content, Stored};
            Stored::decode(&bound.value).is_ok_and(
                |stored| matches!(stored.binding.content, Content::Object { root: of, .. } if of == root),
            )
        };
        let binding = page.into_iter().find(|(_, bound)| is_it(bound));
        Ok(Answer::Found { binding, next })
    }

    fn names(
        &mut self,
        prefix: &str,
        after: Option<Name>,
        limit: usize,
    ) -> Result<Vec<(Name, Bound)>, Failure> {
        let store = self.store()?;
        let mut after = after.map(|name| name.as_str().to_owned());
        full_page(limit, |limit| {
            let page = store.bindings(prefix, after.as_deref(), limit).map_err(of_read)?;
            after = page.last().map(|(name, _)| name.clone());
            Ok(page)
        })
    }

    fn changes(&mut self, mut after: u64, limit: usize) -> Result<Vec<(Name, Bound)>, Failure> {
        let store = self.store()?;
        full_page(limit, |limit| {
            let page = store.changes(after, limit).map_err(of_read)?;
            after = page.last().map_or(after, |(seq, ..)| *seq);
            let bound = |(seq, name, value)| (name, larder_store::Binding { seq, value });
            Ok(page.into_iter().map(bound).collect())
        })
    }

    /// A step of a verification; one at a time is under way, and its position is a plain number outside.
    fn verify(&mut self, position: u64, bytes: u64) -> Result<Answer, Failure> {
        let at = match self.verify.take() {
            Some((number, at)) if number == position && position > 0 => Some(at),
            _ if position == 0 => None,
            _ => return Err(Failure::new(FailureKind::Busy, "another verification began; verify again")),
        };
        let step = self.store()?.verify_step(at, bytes).map_err(of_maintain)?;
        let next = step.next.is_some().then_some(position + 1);
        self.verify = step.next.map(|at| (position + 1, at));
        let damaged = step.damaged.into_iter().map(BlockId).collect();
        Ok(Answer::Verified { next, blocks: step.blocks, bytes: step.bytes, damaged })
    }

    fn rebuild(&mut self) -> Result<Answer, Failure> {
        if let Some(store) = self.store.take() {
            store.close().unwrap_or_else(|error| tracing::warn!("closing before the rebuild: {error}"));
        }
        let rebuilt = rebuild_index(self.disk.clone(), self.options.clone());
        self.open_again()?;
        // that it was made again is the answer
        self.notes.extend(notes(&OpenReport { index_rebuilt: None, ..rebuilt.map_err(of_open)? }));
        let status = self.status();
        Ok(Answer::Rebuilt { blocks: status.blocks, names: status.names })
    }

    fn numbers(&self) -> StoreNumbers {
        let status = self.status();
        let disk = self.disk.counts();
        StoreNumbers {
            blocks: status.blocks,
            names: status.names,
            segments: status.segments,
            spare_segments: status.spare_segments,
            spare_bytes: status.spare_disk_bytes,
            used_bytes: status.used_bytes,
            quota_bytes: status.quota_bytes,
            reserve_bytes: status.reserve_bytes,
            offered_bytes: self.offered_bytes,
            stored_bytes: self.stored_bytes,
            written_bytes: disk.bytes,
            batches: status.batches,
            syncs: disk.file_syncs + disk.directory_syncs,
            cache_hits: status.cache_hits,
            cache_misses: status.cache_misses,
            filter_skips: status.filter_negatives,
            damaged: status.damaged,
            quarantined: self.quarantined,
            unread: status.unread.into_iter().take(UNREAD_LISTED_MAX).collect(),
            notes: self.notes.clone(),
        }
    }
}

fn bound_of(binding: larder_store::Binding) -> Bound {
    Bound { seq: binding.seq, value: binding.value }
}

/// A page of names that may be handed on, short only at the end: whoever reads on takes a short one for the
/// last, and a cleaning would then take what lies behind it for garbage.
fn full_page(
    limit: usize,
    mut read: impl FnMut(usize) -> Result<Vec<(String, larder_store::Binding)>, Failure>,
) -> Result<Vec<(Name, Bound)>, Failure> {
    let mut page = Vec::with_capacity(limit);
    while page.len() < limit {
        let raw = read(limit - page.len())?;
        if raw.is_empty() {
            break;
        }
        page.extend(raw.into_iter().filter_map(named));
    }
    Ok(page)
}

/// A name that came out of the store is checked again; one that does not pass is not handed on.
fn named((name, binding): (String, larder_store::Binding)) -> Option<(Name, Bound)> {
    match Name::parse(&name) {
        Ok(name) => Some((name, bound_of(binding))),
        Err(error) => {
            tracing::warn!("a name in the store is refused: {error}");
            None
        }
    }
}

/// A number that changes with the store; its peers forget what they knew of another.
pub(super) fn store_number(status: &StoreStatus) -> u64 {
    let hash = blake3::hash(status.store.as_bytes());
    u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("a hash has 32 bytes"))
}

/// What opening found, for people.
pub(super) fn notes(report: &OpenReport) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(why) = &report.index_rebuilt {
        notes.push(format!("the index was made again from the log: {why}"));
    }
    if report.torn {
        notes.push(
            "the last batch is not whole: torn before it was acknowledged, or damaged since; it was dropped"
                .into(),
        );
    }
    if report.damaged_bytes > 0 {
        notes.push(format!(
            "{} bytes of the log are damaged: {} records were saved from them, {} blocks can not be read until they are put again",
            report.damaged_bytes, report.salvaged_records, report.damaged_blocks
        ));
    }
    if report.superblock_restored {
        notes.push("the superblock was written again from a segment".into());
    }
    for file in &report.unreadable_files {
        notes.push(format!("nothing of this store was found in {file}; it was left alone"));
    }
    notes
}

fn of_commit(error: CommitError) -> Failure {
    let kind = match &error {
        CommitError::Full { .. } => FailureKind::Full,
        CommitError::TooLarge { .. } => FailureKind::Invalid,
        CommitError::Passing { .. } | CommitError::Stopped { .. } | CommitError::Index { .. } => {
            FailureKind::Disk
        }
    };
    Failure::new(kind, error.to_string())
}

fn pack(
    store: &mut Store<OsDisk>,
    mut packing: Packing,
    ids: Vec<BlockId>,
    check: Check,
) -> Result<Answer, Failure> {
    let mut missing = Vec::new();
    for id in ids {
        let read = |room: &mut [u8]| {
            Ok(match store.read_to(room, &id.0, check)? {
                ReadTo::Bytes(length) => Placed::Bytes(length),
                ReadTo::NotStored => Placed::Absent,
                ReadTo::TooLong => Placed::TooLong,
            })
        };
        // What is damaged is not there; any other failure is of the disk and passes.
        match packing.add(read) {
            Ok(true) => {}
            Ok(false) | Err(ReadError::Damaged { .. }) => missing.push(id),
            Err(error) => return Err(of_read(error)),
        }
    }
    Ok(Answer::Packed { packs: packing.finish(), missing })
}

fn of_read(error: ReadError) -> Failure {
    match &error {
        ReadError::Damaged { hash, file, offset } => Failure::new(
            FailureKind::Damaged,
            format!(
                "block {} is damaged in {file} at {offset}; put the object again, or fetch it from a peer",
                BlockId(*hash)
            ),
        ),
        ReadError::Io { .. } | ReadError::Index { .. } => Failure::new(FailureKind::Disk, error.to_string()),
    }
}

fn of_maintain(error: MaintainError) -> Failure {
    let kind = match &error {
        MaintainError::Full { .. } => FailureKind::Full,
        MaintainError::NotCleaning => FailureKind::Busy,
        MaintainError::Stopped { .. }
        | MaintainError::Index { .. }
        | MaintainError::Io { .. }
        | MaintainError::Unread { .. }
        | MaintainError::Read(_) => FailureKind::Disk,
    };
    Failure::new(kind, error.to_string())
}

fn of_open(error: OpenError) -> Failure {
    Failure::new(kind_of_open(&error), error.to_string())
}

/// What kind of failure it is that a store does not open.
pub(super) fn kind_of_open(error: &OpenError) -> FailureKind {
    match error {
        OpenError::Locked { .. } => FailureKind::Busy,
        OpenError::ReadOnly { .. } => FailureKind::Forbidden,
        OpenError::Missing { .. } => FailureKind::NotFound,
        OpenError::NewerFormat { .. } | OpenError::Option { .. } => FailureKind::Invalid,
        OpenError::Unrecognised { .. } => FailureKind::Damaged,
        full if full.is_full() => FailureKind::Full,
        OpenError::Io { .. } | OpenError::Index { .. } => FailureKind::Disk,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_found_by_its_root_behind_a_full_page_that_ends_with_a_refused_name() {
        use larder_core::binding::{Binding, Content, Meta, Stored};
        let folder = tempfile::tempdir().unwrap();
        let (mut keeper, _) = StoreKeeper::open(folder.path().to_owned(), Options::default()).unwrap();
        let root = BlockId([7; 32]);
        let me = "cam".parse().unwrap();
        let mut version = larder_core::version::Version::default();
        version.write(&me, 1).unwrap();
        let binding = Binding {
            version,
            content: Content::Object { root, depth: 0 },
            meta: Meta { size: 1, mtime_ms: 0, mode: 0 },
            origin: me,
            conflict_of: None,
        };
        let value = Bytes::from(Stored { binding, via: None, refused: false }.encode());
        let plain = (0..FIND_PAGE - 1).map(|index| (format!("a/{index:04}"), Bytes::new()));
        let names = plain.chain([("b/../c".to_owned(), Bytes::new()), ("d".to_owned(), value)]);
        keeper
            .store()
            .unwrap()
            .commit(names.map(|(name, value)| Op::Bind { name, value }).collect())
            .unwrap();
        let (mut after, mut found) = (None, None);
        while found.is_none() {
            let Answer::Found { binding, next } = keeper.find(root, after.take()).unwrap() else {
                panic!("an answer to another question");
            };
            assert!(binding.is_some() || next.is_some(), "it is not found");
            (found, after) = (binding.map(|(name, _)| name), next);
        }
        assert_eq!(found.unwrap().as_str(), "d");
        keeper.close().unwrap();
    }

    fn commit(run: u32, length: usize) -> Job {
        let bytes = Bytes::from(vec![7; length]);
        Job::Commit { run, changes: vec![Change::Put { id: BlockId::of(&bytes), bytes }] }
    }

    #[test]
    fn what_waits_behind_a_failed_batch_does_not_reach_the_store() {
        let folder = tempfile::tempdir().unwrap();
        let (mut keeper, _) = StoreKeeper::open(folder.path().to_owned(), Options::default()).unwrap();
        let too_large = Job::Commit {
            run: 0,
            changes: vec![Change::Put { id: BlockId([0; 32]), bytes: Bytes::from(vec![0; 1 << 24]) }],
        };
        let is_ok = |done: JobDone| matches!(done, JobDone::Committed(Ok(_)));
        assert!(!is_ok(keeper.work(too_large)));
        let before = keeper.status().batches;
        assert!(!is_ok(keeper.work(commit(0, 9))), "of the same run");
        assert_eq!(keeper.status().batches, before);
        assert!(is_ok(keeper.work(commit(1, 9))), "of the next run");
        keeper.close().unwrap();
    }
}
