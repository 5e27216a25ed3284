//! The store as the core sees it: carries out jobs, keeps what is durable, forgets nothing else.
//!
//! A job is carried out whole or not at all, so what is here is what a crash leaves; a crash takes the jobs
//! that were not carried out, and the marks of a cleaning.

use bytes::Bytes;
use larder_core::binding::{Binding, Content, Stored};
use larder_core::id::BlockId;
use larder_core::message::{Answer, Bound, Change, ChangeDone, Job, JobDone, Question};
use larder_core::name::Name;
use larder_core::object::manifest::Manifest;
use larder_core::object::reach::{Page, Reach};
use larder_core::request::{Failure, FailureKind, StoreNumbers};
use larder_core::sync::buffer::Buffers;
use larder_core::sync::wire::Packing;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

const FIND_PAGE: usize = 256;

/// What one node has on flash.
#[derive(Clone, Default)]
pub(crate) struct Engine {
    pub(crate) blocks: BTreeMap<BlockId, Bytes>,
    pub(crate) names: BTreeMap<Name, Bound>,
    pub(crate) settings: BTreeMap<String, Bytes>,
    pub(crate) damaged: BTreeSet<BlockId>,
    buffers: Buffers,
    /// Damaged as well, which the first reading finds out.
    pub(crate) rotten: BTreeSet<BlockId>,
    pub(crate) quota_bytes: u64,
    /// Every name and root that was ever bound, to judge acknowledgements by.
    pub(crate) ever_bound: BTreeSet<(Name, BlockId)>,
    pub(crate) commits: u64,
    /// Blocks a cleaning has removed.
    pub(crate) cleaned: u64,
    /// Blocks that were deleted by request.
    pub(crate) erased: u64,
    /// A part of the log could not be read.
    pub(crate) is_unread: bool,
    /// The next so many commits fail.
    pub(crate) failing_commits: u32,
    /// The next so many questions for settings fail.
    pub(crate) failing_settings: u32,
    /// The next readings of blocks fail like this.
    pub(crate) failing_reads: VecDeque<FailureKind>,
    /// The next questions whether blocks are here fail like this.
    pub(crate) failing_has: VecDeque<FailureKind>,
    /// So many of the next look-ups of names fail.
    pub(crate) failing_lookups: u32,
    /// So many of the next readings of the log's changes fail.
    pub(crate) failing_changes: u32,
    by_seq: BTreeMap<u64, Name>,
    pub(crate) last_seq: u64,
    used_bytes: u64,
    marks: Option<BTreeSet<BlockId>>,
    failed_run: Option<u32>,
}

impl Engine {
    pub(crate) fn new(quota_bytes: u64) -> Engine {
        Engine { quota_bytes, ..Engine::default() }
    }

    pub(crate) fn crash(&mut self) {
        self.marks = None;
        self.failed_run = None;
    }

    pub(crate) fn run(&mut self, job: Job) -> JobDone {
        match job {
            Job::Commit { run, .. } if self.failed_run == Some(run) => {
                JobDone::Committed(Err(Failure::new(FailureKind::Disk, "the simulated disk failed before")))
            }
            Job::Commit { run, changes } => {
                let done = self.commit(changes);
                self.failed_run = done.is_err().then_some(run);
                JobDone::Committed(done)
            }
            Job::Ask(question) => JobDone::Answered(self.answer(question)),
        }
    }

    fn commit(&mut self, changes: Vec<Change>) -> Result<Vec<ChangeDone>, Failure> {
        self.commits += 1;
        if self.failing_commits > 0 {
            self.failing_commits -= 1;
            return Err(Failure::new(FailureKind::Disk, "the simulated disk failed"));
        }
        let new = |change: &Change| match change {
            Change::Put { id, bytes } if !self.blocks.contains_key(id) => bytes.len() as u64,
            Change::Put { .. } | Change::Bind { .. } | Change::Unbind { .. } | Change::Set { .. } => 0,
        };
        let grows: u64 = changes.iter().map(new).sum();
        if grows > 0 && self.used_bytes + grows > self.quota_bytes {
            return Err(Failure::new(FailureKind::Full, "the simulated quota is full"));
        }
        Ok(changes.into_iter().map(|change| self.change(change)).collect())
    }

    fn change(&mut self, change: Change) -> ChangeDone {
        match change {
            Change::Put { id, bytes } => {
                assert_eq!(id, BlockId::of(&bytes), "a block is put under its own name");
                self.mark(&[id]);
                self.damaged.remove(&id);
                let length = bytes.len() as u64;
                if self.blocks.insert(id, bytes).is_none() {
                    self.used_bytes += length;
                }
                ChangeDone::Done
            }
            Change::Bind { name, value, expected_seq } => self.bind(name, value, expected_seq),
            Change::Unbind { name, expected_seq } => {
                if self.seq_of(&name) != Some(expected_seq) {
                    return ChangeDone::Outrun;
                }
                self.names.remove(&name);
                self.by_seq.remove(&expected_seq);
                ChangeDone::Done
            }
            Change::Set { key, value } => {
                self.settings.insert(key, value);
                ChangeDone::Done
            }
        }
    }

    fn bind(&mut self, name: Name, value: Bytes, expected_seq: Option<u64>) -> ChangeDone {
        let seq_now = self.seq_of(&name);
        if seq_now != expected_seq {
            return ChangeDone::Outrun;
        }
        if let Some(old) = seq_now {
            self.by_seq.remove(&old);
        }
        self.last_seq += 1;
        let binding = Stored::decode(&value).expect("the core writes bindings that can be read").binding;
        if let Content::Object { root, .. } = binding.content {
            self.ever_bound.insert((name.clone(), root));
        }
        self.by_seq.insert(self.last_seq, name.clone());
        self.names.insert(name, Bound { seq: self.last_seq, value });
        ChangeDone::Bound { seq: self.last_seq }
    }

    fn seq_of(&self, name: &Name) -> Option<u64> {
        self.names.get(name).map(|bound| bound.seq)
    }

    fn mark(&mut self, ids: &[BlockId]) {
        if let Some(marks) = &mut self.marks {
            marks.extend(ids);
        }
    }

    fn answer(&mut self, question: Question) -> Answer {
        let failing = match question {
            Question::Read(_) | Question::Children(_) | Question::Pack { .. } => {
                self.failing_reads.pop_front()
            }
            Question::Has(_) => self.failing_has.pop_front(),
            _ => None,
        };
        if let Some(kind) = failing {
            return Answer::Failed(Failure::new(kind, "the simulated disk can not be read now"));
        }
        if matches!(question, Question::Lookup(_)) && self.failing_lookups > 0 {
            self.failing_lookups -= 1;
            return Answer::Failed(Failure::new(FailureKind::Busy, "the simulated disk has too much to do"));
        }
        let looked_at = match &question {
            Question::Read(id) | Question::Children(id) => std::slice::from_ref(id),
            Question::Pack { ids, again: true, .. } => ids,
            _ => &[],
        };
        for id in looked_at {
            if self.rotten.remove(id) {
                self.damaged.insert(*id);
            }
        }
        match question {
            Question::Read(id) | Question::Children(id) if self.damaged.contains(&id) => {
                Answer::Failed(Failure::new(FailureKind::Damaged, format!("block {id} is damaged")))
            }
            Question::Read(id) => Answer::Block(self.blocks.get(&id).cloned()),
            Question::Children(id) => self.children(id),
            Question::Pack { group, ids, again: _ } => {
                let (mut packing, mut missing) = (Packing::new(group, &self.buffers), Vec::new());
                for id in ids {
                    match self.blocks.get(&id).filter(|_| !self.damaged.contains(&id)) {
                        Some(block) if self.rotten.contains(&id) => {
                            let mut bytes = block.to_vec();
                            bytes[0] ^= 1;
                            packing.add_block(&bytes);
                        }
                        Some(block) => packing.add_block(block),
                        None => missing.push(id),
                    }
                }
                Answer::Packed { packs: packing.finish(), missing }
            }
            Question::Has(ids) => {
                self.mark(&ids);
                Answer::Has(ids.iter().map(|id| self.length(id)).collect())
            }
            Question::Lookup(names) => {
                Answer::Bindings(names.iter().map(|name| self.names.get(name).cloned()).collect())
            }
            Question::List { prefix, after, limit } => {
                Answer::Page(self.list(&prefix, after.as_ref(), limit))
            }
            Question::Changes { .. } if self.failing_changes > 0 => {
                self.failing_changes -= 1;
                Answer::Failed(Failure::new(FailureKind::Disk, "the simulated disk failed"))
            }
            Question::Changes { after, limit } => {
                let page = self.by_seq.range(after + 1..).take(limit);
                Answer::Page(page.map(|(_, name)| (name.clone(), self.names[name].clone())).collect())
            }
            Question::Find { root, after } => self.find(root, after.as_ref()),
            Question::Settings(_) if self.failing_settings > 0 => {
                self.failing_settings -= 1;
                Answer::Failed(Failure::new(FailureKind::Disk, "the simulated disk failed"))
            }
            Question::Settings(prefix) => {
                let fits = |(key, _): &(&String, &Bytes)| key.starts_with(&prefix);
                let found = self.settings.iter().filter(fits);
                Answer::Settings(found.map(|(key, value)| (key.clone(), value.clone())).collect())
            }
            Question::Numbers => Answer::Numbers(Box::new(self.numbers())),
            Question::CleanMark(_) | Question::CleanDelete(_) | Question::CleanStep(_) if self.is_unread => {
                let why = "no space is given back while segment-00000007 could not be read whole";
                Answer::Failed(Failure::new(FailureKind::Disk, why))
            }
            Question::CleanBegin
            | Question::CleanMark(_)
            | Question::CleanDelete(_)
            | Question::CleanStep(_)
            | Question::CleanAbort => self.clean(question),
            Question::Verify { position, bytes } => self.verify(position, bytes),
            Question::Rebuild => {
                Answer::Rebuilt { blocks: self.blocks.len() as u64, names: self.names.len() as u64 }
            }
            Question::Checkpoint => Answer::Done,
        }
    }

    fn clean(&mut self, question: Question) -> Answer {
        match question {
            Question::CleanBegin => self.marks = Some(BTreeSet::new()),
            Question::CleanMark(ids) => self.mark(&ids),
            Question::CleanDelete(ids) => return self.clean_delete(ids),
            Question::CleanStep(bytes) => return self.clean_step(bytes),
            _ => self.marks = None,
        }
        Answer::Done
    }

    fn children(&mut self, id: BlockId) -> Answer {
        let manifest = self.blocks.get(&id).and_then(|bytes| Manifest::decode(bytes).ok());
        let children = manifest.as_ref().map_or(&[][..], Manifest::children);
        let ids: Vec<BlockId> = children.iter().map(|child| child.id).collect();
        self.mark(&ids);
        Answer::Children { here: ids.iter().map(|id| self.length(id)).collect(), manifest }
    }

    fn is_whole(&self, id: &BlockId) -> bool {
        self.blocks.contains_key(id) && !self.damaged.contains(id)
    }

    fn length(&self, id: &BlockId) -> Option<u32> {
        let block = self.blocks.get(id).filter(|_| self.is_whole(id))?;
        Some(u32::try_from(block.len()).expect("a block has at most 120 KiB"))
    }

    fn list(&self, prefix: &str, after: Option<&Name>, limit: usize) -> Vec<(Name, Bound)> {
        let names = self.names.iter().filter(|(name, _)| name.as_str().starts_with(prefix));
        let later = names.filter(|(name, _)| after.is_none_or(|after| *name > after));
        later.take(limit).map(|(name, bound)| (name.clone(), bound.clone())).collect()
    }

    fn find(&self, root: BlockId, after: Option<&Name>) -> Answer {
        let page = self.list("", after, FIND_PAGE);
        let next = (page.len() == FIND_PAGE).then(|| page[FIND_PAGE - 1].0.clone());
        let binding = page.into_iter().find(|(_, bound)| {
            let content = Stored::decode(&bound.value).map(|stored| stored.binding.content);
            matches!(content, Ok(Content::Object { root: found, .. }) if found == root)
        });
        Answer::Found { binding, next }
    }

    fn numbers(&self) -> StoreNumbers {
        StoreNumbers {
            blocks: self.blocks.len() as u64,
            names: self.names.len() as u64,
            used_bytes: self.used_bytes,
            quota_bytes: self.quota_bytes,
            batches: self.commits,
            damaged: self.damaged.len() as u64,
            unread: self.is_unread.then(|| "segment-00000007".to_owned()).into_iter().collect(),
            ..StoreNumbers::default()
        }
    }

    fn clean_delete(&mut self, ids: Vec<BlockId>) -> Answer {
        let Some(marks) = &self.marks else {
            return Answer::Failed(Failure::new(FailureKind::Invalid, "no cleaning was begun"));
        };
        let is_garbage = |id: &BlockId| self.blocks.contains_key(id) && !marks.contains(id);
        let dead: BTreeSet<BlockId> = ids.into_iter().filter(is_garbage).collect();
        let deleted = dead.len() as u64;
        self.erased += deleted;
        dead.into_iter().for_each(|id| {
            self.forget(id);
        });
        Answer::Deleted(deleted)
    }

    fn forget(&mut self, id: BlockId) -> u64 {
        let bytes = self.blocks.remove(&id).expect("it is here").len() as u64;
        self.damaged.remove(&id);
        self.used_bytes -= bytes;
        bytes
    }

    fn clean_step(&mut self, bytes: u64) -> Answer {
        let Some(marks) = &self.marks else {
            return Answer::Failed(Failure::new(FailureKind::Invalid, "no cleaning was begun"));
        };
        let mut freed = 0;
        let dead: Vec<BlockId> = self.blocks.keys().filter(|id| !marks.contains(*id)).copied().collect();
        for id in dead {
            if freed >= bytes {
                return Answer::Cleaned { done: false, bytes_freed: freed };
            }
            freed += self.forget(id);
            self.cleaned += 1;
        }
        self.marks = None;
        Answer::Cleaned { done: true, bytes_freed: freed }
    }

    fn verify(&self, position: u64, bytes: u64) -> Answer {
        let start = usize::try_from(position).expect("a position of this simulator");
        let (mut read, mut count, mut damaged) = (0, 0, Vec::new());
        for (id, block) in self.blocks.iter().skip(start) {
            if read >= bytes {
                break;
            }
            read += block.len() as u64;
            count += 1;
            if self.damaged.contains(id) {
                damaged.push(*id);
            }
        }
        let end = position + count;
        let next = (end < self.blocks.len() as u64).then_some(end);
        Answer::Verified { next, blocks: count, bytes: read, damaged }
    }

    /// The binding of a name, read.
    pub(crate) fn binding(&self, name: &Name) -> Option<Binding> {
        let bound = self.names.get(name)?;
        Some(Stored::decode(&bound.value).expect("checked when it was bound").binding)
    }

    /// Whether every block of an object is here and whole.
    pub(crate) fn is_complete(&self, binding: &Binding) -> bool {
        self.missing_of(binding).is_none()
    }

    /// The first block of an object that is not here.
    pub(crate) fn missing_of(&self, binding: &Binding) -> Option<BlockId> {
        let Content::Object { root, depth } = binding.content else { return None };
        let mut reach = Reach::new(root, depth, binding.meta.size);
        loop {
            match reach.next() {
                Page::Read(id) => match self.blocks.get(&id) {
                    Some(block) if self.is_whole(&id) => reach.supply(block),
                    _ => return Some(id),
                },
                Page::Leaves(children) => {
                    if let Some(child) = children.iter().find(|child| !self.is_whole(&child.id)) {
                        return Some(child.id);
                    }
                }
                Page::Done => return None,
                Page::Bad(_) => return Some(root),
            }
        }
    }

    /// Every name that stands for an object, and its root.
    pub(crate) fn table(&self) -> BTreeMap<String, BlockId> {
        let names = self.names.keys().filter_map(|name| match self.binding(name)?.content {
            Content::Object { root, .. } => Some((name.as_str().to_owned(), root)),
            Content::Deleted => None,
        });
        names.collect()
    }
}
