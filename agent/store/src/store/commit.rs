//! Writing: one batch, one gathered write (a long one goes in pieces), one sync; returning `Ok` is the acknowledgement.
//!
//! Duty: leave out what is stored already, keep within quota and limits, and put the rest into the open
//! segment. A failed sync is never retried: the segment is closed where it last was acknowledged and the
//! batch goes once more into a new one; if that fails too the store refuses writes and goes on reading. A batch that
//! finds too few open files or no memory is refused alone.

use super::Store;
use crate::Hash;
use crate::batch::{Encoded, Key, Record, encode, padded_length};
use crate::disk::Disk;
use crate::error::{CommitError, MaintainError, is_full, is_passing, lacks_means};
use crate::filter::probe;
use crate::format::{Kind, record_bytes};
use crate::index::{ByPrefix, IndexError, Place, Prefix, prefix_of};
use crate::limits::{
    BATCH_OPS_MAX, INDEX_BYTES_PER_BLOCK, KEY_BYTES_MAX, PAGE_BYTES, TABLE_BYTES_MAX, VALUE_BYTES_MAX,
};
use crate::options::Prepare;
use bytes::Bytes;
use larder_kernels::bloom::Probe;
use std::collections::BTreeMap;
use std::io;

/// What the index may grow by for each new name or setting.
const INDEX_BYTES_PER_TEXT: u64 = 256;
/// A leaf of redb's tree and its share of the branches above it.
const INDEX_LEAF_BYTES: u64 = 4608;
/// What a checkpoint may need whatever it holds.
const INDEX_BYTES_MIN: u64 = 64 << 10;

/// The shortest batch that is worth a call to forget it.
const FORGOTTEN_BYTES_MIN: u64 = 256 << 10;

/// One change. The store does not look into values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Stores a block. The caller computed the hash; the store checks it when it reads.
    Put {
        /// BLAKE3 of `bytes`.
        hash: Hash,
        /// The content.
        bytes: Bytes,
    },
    /// Forgets a block.
    Delete {
        /// Which.
        hash: Hash,
    },
    /// Binds a name to a value, in place of any older one.
    Bind {
        /// The name.
        name: String,
        /// The value.
        value: Bytes,
    },
    /// Takes a name away.
    Unbind {
        /// The name.
        name: String,
    },
    /// Sets or removes a setting.
    Set {
        /// Its key.
        key: String,
        /// Its value, or none to remove it.
        value: Option<Bytes>,
    },
}

/// An acknowledged batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// Sequence number of the first operation that was written; if none was, of the newest one there is.
    pub first_seq: u64,
    /// Sequence number of the last operation that was written; likewise.
    pub last_seq: u64,
    /// Blocks written.
    pub stored: usize,
    /// Blocks that were there.
    pub already_there: usize,
    /// Bytes of the values written.
    pub payload_bytes: u64,
    /// Bytes written to the log.
    pub bytes_written: u64,
}

/// What a batch is for, and so how much of the reserve it leaves alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To put blocks: all of it.
    Blocks,
    /// To bind or set: half of it, so that names alone never take the room in which they can be taken away.
    Texts,
    /// To take away: nothing.
    Removals,
    /// To write again what is there, so that space comes back or damage goes: nothing. A record from when segments
    /// were longer gets a segment as long as it needs.
    Moves,
}

/// What of a batch has to be written.
struct Plan {
    records: Vec<Record>,
    already_there: Vec<Hash>,
    payload_bytes: u64,
    stored: usize,
    unknown_at: UnknownAt,
}

/// How many checkpoints there had been when neither table nor index knew the blocks that are put. While there is no
/// further one, what became of them since is in the table.
pub(super) type UnknownAt = Option<u64>;

/// What the operations of a batch did so far: whether a block or text is there.
#[derive(Default)]
struct Seen {
    blocks: ByPrefix<bool>,
    texts: BTreeMap<(Text, String), bool>,
}

/// Operations that are looked at together: their filters' bits are fetched side by side.
const LOOKED_AT: usize = 256;

impl<D: Disk> Store<D> {
    /// Makes all operations durable together, or none of them.
    ///
    /// Blocks that are there and not quarantined are left out, and so are deletions of what is not there; a
    /// batch with nothing left does no I/O.
    ///
    /// # Errors
    /// Full, too large, a machine out of means, stopped after a failed device, or an index that can not be made again.
    pub fn commit(&mut self, ops: Vec<Op>) -> Result<Committed, CommitError> {
        self.refuse_if_stopped()?;
        check_limits(&ops)?;
        self.make_room_in_table()?;
        let plan = self.plan(ops).map_err(index_error)?;
        if self.end_untold {
            self.tell_end()?;
        }
        let mut committed = Committed { already_there: plan.already_there.len(), ..Committed::default() };
        (committed.first_seq, committed.last_seq) = (self.next_seq - 1, self.next_seq - 1);
        if !plan.records.is_empty() {
            committed.first_seq = self.next_seq;
            committed.last_seq = self.next_seq + plan.records.len() as u64 - 1;
            committed.stored = plan.stored;
            committed.bytes_written = self.append_unknown(&plan.records, plan.purpose(), plan.unknown_at)?;
            committed.payload_bytes = plan.payload_bytes;
            self.counters.payload_bytes_written += plan.payload_bytes;
        }
        self.note_used(&plan.already_there);
        Ok(committed)
    }

    /// Writes a batch of new or moved records and applies it. Returns the bytes written to the log.
    pub(super) fn append(&mut self, records: &[Record], purpose: Purpose) -> Result<u64, CommitError> {
        self.append_unknown(records, purpose, None)
    }

    fn append_unknown(
        &mut self,
        records: &[Record],
        purpose: Purpose,
        unknown_at: UnknownAt,
    ) -> Result<u64, CommitError> {
        // Making the index again, on the way here, may have found what must stop it.
        self.refuse_if_stopped()?;
        let length = padded_length(records.iter());
        let limit = self.options.segment_bytes - PAGE_BYTES;
        if length > limit && purpose != Purpose::Moves {
            return Err(CommitError::TooLarge { what: "the batch", found: length, limit });
        }
        self.check_quota(length, records, purpose)?;
        self.clear_clean_mark()?;
        let newest = records.last().map_or(self.next_seq, |record| record.seq);
        let commit_seq = self.next_seq.max(newest + 1);
        let encoded = match self.write_batch(records, commit_seq, length) {
            Err(CommitError::Full { .. }) if self.segments.spares.give_back(0) => {
                self.write_batch(records, commit_seq, length)?
            }
            other => other?,
        };
        let Some((segment, _, start)) = self.segments.open_segment() else {
            return Err(CommitError::Stopped { reason: "no segment is open".into() });
        };
        self.segments.acknowledge(encoded.length);
        if !self.options.reads_back && encoded.length >= FORGOTTEN_BYTES_MIN {
            self.segments.forget_last(encoded.length);
        }
        self.next_seq = commit_seq + 1;
        self.counters.batches += 1;
        self.counters.log_bytes_written += encoded.length;
        self.log_since_checkpoint += encoded.length;
        // Half of a durable batch must answer nothing: the log has all of it, and the next question reads that.
        self.apply_all(records, &encoded.offsets, (segment, start), unknown_at)
            .inspect_err(|_| self.give_up_index())?;
        Ok(encoded.length)
    }

    /// Applies records that lie at these offsets behind a place in a segment.
    fn apply_all(
        &mut self,
        records: &[Record],
        offsets: &[u64],
        (segment, start): (u32, u64),
        unknown_at: UnknownAt,
    ) -> Result<(), CommitError> {
        let mut new_bytes = 0;
        for (record, offset) in records.iter().zip(offsets) {
            let place = Place {
                segment,
                offset: u32::try_from(start + offset).unwrap_or(u32::MAX),
                length: u32::try_from(record.value.len()).unwrap_or(u32::MAX),
            };
            // looked at each time: an index that is made again on the way has learnt of the whole batch
            let is_unknown = unknown_at == Some(self.counters.checkpoints);
            match (&record.key, record.kind) {
                (Key::Hash(hash), Kind::Block) if is_unknown && self.table.put_new_block(hash, place) => {
                    new_bytes += record_bytes(hash.len(), record.value.len());
                    self.blocks += 1;
                }
                _ => {
                    self.account_bytes(segment, std::mem::take(&mut new_bytes), true);
                    self.asked(|store| store.apply(record, place, unknown_at)).map_err(index_error)?;
                }
            }
        }
        self.account_bytes(segment, new_bytes, true);
        Ok(())
    }

    /// One write and one sync, tried once more in a new segment.
    fn write_batch<'a>(
        &mut self,
        records: &'a [Record],
        commit_seq: u64,
        length: u64,
    ) -> Result<Encoded<'a>, CommitError> {
        let mut failure = String::new();
        for _attempt in 0..2 {
            self.refuse_if_stopped()?;
            if let Err(error) = self.open_for(length) {
                if is_passing(&error) {
                    // A segment that was made and taken back may say that the one before it ended where it now goes on.
                    self.end_untold = true;
                    return Err(self.refusal(error));
                }
                failure = error.to_string();
                continue;
            }
            let generation = self.segments.open_segment().map_or(0, |(_, generation, _)| generation);
            let encoded = encode(records, commit_seq, generation, self.salt());
            match self.segments.write(&encoded.slices(), encoded.length) {
                Err(error) if is_passing(&error) => {
                    // All of it may have arrived but the padding: it is gone when the cut, or the next header, is
                    // durable.
                    self.end_untold = true;
                    if self.segments.cut().is_err() {
                        self.close_failed_segment(&error);
                    }
                    return Err(self.refusal(error));
                }
                Err(error) => failure = self.close_failed_segment(&error),
                Ok(()) => match self.sync_log() {
                    Ok(()) => {
                        self.end_untold = false;
                        return Ok(encoded);
                    }
                    Err(error) => {
                        failure = self.close_failed_segment(&error);
                        if is_passing(&error) {
                            return Err(self.refusal(error));
                        }
                    }
                },
            }
        }
        self.stopped = Some(failure.clone());
        Err(CommitError::Stopped { reason: failure })
    }

    fn sync_log(&mut self) -> io::Result<()> {
        self.counters.log_syncs += 1;
        #[cfg(planted)]
        if crate::planted::is(crate::planted::Bug::AckBeforeSync) {
            return Ok(());
        }
        let synced = self.segments.sync();
        #[cfg(planted)]
        if crate::planted::is(crate::planted::Bug::SyncRetried) {
            return synced.or_else(|_| self.segments.sync());
        }
        synced
    }

    fn close_failed_segment(&mut self, error: &io::Error) -> String {
        let name = self.segments.open_segment().map(|(id, _, _)| crate::format::segment_name(id));
        let failure = format!("writing {} failed: {error}", name.unwrap_or_default());
        if self.segments.seal_failed().is_err() {
            // The next start finds out what it holds.
            self.stopped = Some(failure.clone());
        }
        self.end_untold = true;
        self.counters.write_faults += 1;
        self.counters.last_fault = Some(failure.clone());
        failure
    }

    /// Sees to an open segment with room for `length` bytes.
    fn open_for(&mut self, length: u64) -> io::Result<()> {
        if let Some((_, _, end)) = self.segments.open_segment() {
            if end + length <= self.options.segment_bytes {
                return Ok(());
            }
            self.segments.seal();
        }
        self.create_segment()
    }

    /// The reserve is not prepared ahead: who may use it needs pages, not segments.
    fn create_segment(&mut self) -> io::Result<()> {
        let bytes = self.options.segment_bytes;
        let fits = self.used_bytes() + bytes + self.options.reserve_bytes <= self.options.quota_bytes;
        let prepare = if fits { self.options.prepare } else { Prepare::None };
        match self.segments.create(self.next_seq, prepare, bytes) {
            Err(error) if is_full(&error) => {
                self.segments.give_back_tail();
                self.segments.create(self.next_seq, Prepare::None, bytes)
            }
            other => other,
        }
    }

    /// Makes the cut durable, or the header that says where the segment before it ended.
    fn tell_end(&mut self) -> Result<(), CommitError> {
        let told = match self.segments.open_segment() {
            Some(_) => Ok(()),
            None => self.create_segment(),
        };
        match told.and_then(|()| self.sync_log()) {
            Ok(()) => {
                self.end_untold = false;
                Ok(())
            }
            Err(error) => {
                let reason = self.close_failed_segment(&error);
                if is_passing(&error) {
                    return Err(self.refusal(error));
                }
                self.stopped = Some(reason.clone());
                Err(CommitError::Stopped { reason })
            }
        }
    }

    fn plan(&mut self, ops: Vec<Op>) -> Result<Plan, IndexError> {
        // A block in quarantine is put although its place is known.
        let unknown_at = self.damaged.is_empty().then_some(self.counters.checkpoints);
        let mut plan = Plan {
            records: Vec::with_capacity(ops.len()),
            already_there: Vec::new(),
            payload_bytes: 0,
            stored: 0,
            unknown_at,
        };
        let unknown: Vec<bool> = ops.chunks(LOOKED_AT).flat_map(|ops| self.unknown(ops)).collect();
        let mut seen = Seen::default();
        seen.blocks.reserve(ops.len());
        let mut seq = self.next_seq;
        for (op, unknown) in ops.into_iter().zip(unknown) {
            let Some((kind, key, value)) = self.wanted(op, unknown, &mut seen, &mut plan.already_there)?
            else {
                continue;
            };
            plan.payload_bytes += value.len() as u64;
            plan.stored += usize::from(kind == Kind::Block);
            plan.records.push(Record { kind, key, value, seq });
            seq += 1;
        }
        Ok(plan)
    }

    /// Which of these operations put a block that neither table nor index knows.
    fn unknown(&mut self, ops: &[Op]) -> Vec<bool> {
        let put = |op: &Op| match op {
            Op::Put { hash, .. } => Some((prefix_of(hash), probe(self.options.kernels, hash))),
            Op::Delete { .. } | Op::Bind { .. } | Op::Unbind { .. } | Op::Set { .. } => None,
        };
        let puts: Vec<Option<(Prefix, Probe)>> = ops.iter().map(put).collect();
        let in_table = |(prefix, _): &(Prefix, Probe)| self.table.block(prefix).is_some();
        let mut unknown: Vec<bool> =
            puts.iter().map(|put| put.as_ref().is_some_and(|put| !in_table(put))).collect();
        self.index.sort_out_known(puts.iter().map(|put| put.as_ref().map(|(_, probe)| probe)), &mut unknown);
        unknown
    }

    /// What an operation has to write, given what the operations before it in the batch do.
    fn wanted(
        &mut self,
        op: Op,
        unknown: bool,
        seen: &mut Seen,
        already_there: &mut Vec<Hash>,
    ) -> Result<Option<(Kind, Key, Bytes)>, IndexError> {
        let Seen { blocks, texts } = seen;
        match op {
            Op::Put { hash, bytes } => {
                debug_assert_eq!(blake3::hash(&bytes).as_bytes(), &hash, "the caller computed the hash");
                self.counters.filter_negatives += u64::from(unknown);
                let there = match blocks.insert(prefix_of(&hash), true) {
                    Some(there) => there,
                    None if unknown => false,
                    None => self.asked(|s| s.find_block(&hash))?.is_some() && !self.is_quarantined(&hash),
                };
                if there {
                    already_there.push(hash);
                    return Ok(None);
                }
                Ok(Some((Kind::Block, Key::Hash(hash), bytes)))
            }
            Op::Delete { hash } => {
                let there = match blocks.insert(prefix_of(&hash), false) {
                    Some(there) => there,
                    None => self.asked(|s| s.find_block(&hash))?.is_some(),
                };
                Ok(there.then_some((Kind::Delete, Key::Hash(hash), Bytes::new())))
            }
            Op::Bind { name, value } => {
                texts.insert((Text::Name, name.clone()), true);
                Ok(Some((Kind::Bind, Key::Text(name), value)))
            }
            Op::Set { key, value: Some(value) } => {
                texts.insert((Text::Setting, key.clone()), true);
                Ok(Some((Kind::Setting, Key::Text(key), value)))
            }
            Op::Unbind { name } => {
                let there = match texts.insert((Text::Name, name.clone()), false) {
                    Some(there) => there,
                    None => self.asked(|s| s.find_name(&name))?.is_some(),
                };
                Ok(there.then_some((Kind::Unbind, Key::Text(name), Bytes::new())))
            }
            Op::Set { key, value: None } => {
                let there = match texts.insert((Text::Setting, key.clone()), false) {
                    Some(there) => there,
                    None => self.asked(|s| s.find_setting(&key))?.is_some(),
                };
                Ok(there.then_some((Kind::SettingRemoved, Key::Text(key), Bytes::new())))
            }
        }
    }

    /// Spares are given back before a batch is refused.
    fn check_quota(&mut self, length: u64, records: &[Record], purpose: Purpose) -> Result<(), CommitError> {
        self.lower_ceiling();
        let quota = match purpose {
            Purpose::Blocks => self.options.quota_bytes - self.options.reserve_bytes,
            // The core deletes a name by binding it to its deletion.
            Purpose::Texts => self.ceiling_bytes - self.options.reserve_bytes / 2,
            Purpose::Removals | Purpose::Moves => self.ceiling_bytes,
        };
        let index = self.index_growth(records);
        loop {
            let (log, spares_needed) = self.log_growth(length, purpose);
            let used = self.used_bytes() + log + index;
            if used <= quota {
                return Ok(());
            }
            let left = self.segments.spares.count().saturating_sub(1).max(spares_needed);
            if !self.segments.spares.give_back(left) {
                return Err(CommitError::Full { used, quota });
            }
        }
    }

    /// What the log takes more on the device with a batch of this length, and how many spares go into it.
    fn log_growth(&self, length: u64, purpose: Purpose) -> (u64, usize) {
        let segment = self.options.segment_bytes;
        match (self.segments.open_segment(), self.segments.spares.best()) {
            (Some((_, _, end)), _) if end + length <= segment => {
                ((end + length).saturating_sub(self.segments.open_disk_bytes()), 0)
            }
            (_, Some(spare)) => ((PAGE_BYTES + length).saturating_sub(spare.disk_bytes), 1),
            (_, None) => match self.options.prepare {
                Prepare::Allocate | Prepare::Zero if purpose == Purpose::Blocks => (segment, 0),
                Prepare::None | Prepare::Allocate | Prepare::Zero => (PAGE_BYTES + length, 0),
            },
        }
    }

    fn index_growth(&self, records: &[Record]) -> u64 {
        let texts = records.iter().filter(|record| matches!(record.key, Key::Text(_))).count();
        let blocks = self.table.blocks().len() + records.len() - texts;
        // Names are in no order: each new one may copy a leaf, but no leaf is copied twice in a checkpoint. Blocks
        // copy none.
        let texts = (self.table.texts() + texts) as u64;
        let copied = (texts * INDEX_LEAF_BYTES).min(self.index.bytes_on_disk());
        let blocks = blocks as u64 * INDEX_BYTES_PER_BLOCK;
        INDEX_BYTES_MIN + texts * INDEX_BYTES_PER_TEXT + copied + blocks
    }

    pub(super) fn full(&self) -> CommitError {
        CommitError::Full { used: self.used_bytes(), quota: self.options.quota_bytes }
    }

    /// What a batch is answered that may be taken the next time.
    fn refusal(&self, error: io::Error) -> CommitError {
        if lacks_means(&error) { CommitError::Passing { source: error } } else { self.full() }
    }

    pub(super) fn refuse_if_stopped(&self) -> Result<(), CommitError> {
        match &self.stopped {
            Some(reason) => Err(CommitError::Stopped { reason: reason.clone() }),
            None => Ok(()),
        }
    }

    /// Makes a checkpoint before the table holds more than twice what it should.
    pub(super) fn make_room_in_table(&mut self) -> Result<(), CommitError> {
        let crowded = self.table.entries() >= 2 * self.options.table_entries
            || self.table.text_bytes() >= 2 * TABLE_BYTES_MAX;
        if !crowded {
            return Ok(());
        }
        self.checkpoint().map_err(|error| match error {
            MaintainError::Full { used, quota } => CommitError::Full { used, quota },
            MaintainError::Stopped { reason } => CommitError::Stopped { reason },
            MaintainError::Index { .. }
            | MaintainError::Io { .. }
            | MaintainError::Read(_)
            | MaintainError::Unread { .. }
            | MaintainError::NotCleaning => CommitError::Index { reason: error.to_string() },
        })
    }
}

impl Plan {
    fn purpose(&self) -> Purpose {
        if self.stored > 0 {
            Purpose::Blocks
        } else if self.records.iter().any(|record| matches!(record.kind, Kind::Bind | Kind::Setting)) {
            Purpose::Texts
        } else {
            Purpose::Removals
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Text {
    Name,
    Setting,
}

fn index_error(error: IndexError) -> CommitError {
    CommitError::Index { reason: error.reason() }
}

fn check_limits(ops: &[Op]) -> Result<(), CommitError> {
    let bounded = |what, found: usize, limit: usize| {
        if found > limit {
            Err(CommitError::TooLarge { what, found: found as u64, limit: limit as u64 })
        } else {
            Ok(())
        }
    };
    bounded("the number of operations", ops.len(), BATCH_OPS_MAX)?;
    for op in ops {
        match op {
            Op::Put { bytes, .. } => bounded("a block", bytes.len(), VALUE_BYTES_MAX)?,
            Op::Delete { .. } => {}
            Op::Bind { name, value } => {
                bounded("a name", name.len(), KEY_BYTES_MAX)?;
                bounded("a binding", value.len(), VALUE_BYTES_MAX)?;
            }
            Op::Unbind { name } => bounded("a name", name.len(), KEY_BYTES_MAX)?,
            Op::Set { key, value } => {
                bounded("a setting's key", key.len(), KEY_BYTES_MAX)?;
                bounded("a setting", value.as_ref().map_or(0, Bytes::len), VALUE_BYTES_MAX)?;
            }
        }
    }
    Ok(())
}
