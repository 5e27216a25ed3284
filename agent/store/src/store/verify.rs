//! Verifying: read every live record and check it, a budget at a time.
//!
//! Duty: find damage before somebody needs the bytes. Damaged blocks are quarantined and named. A name or
//! setting whose record is damaged is written again from the index, with its sequence number.

use super::Store;
use super::commit::Purpose;
use super::names::read_error;
use crate::Hash;
use crate::batch::{Key, Record};
use crate::disk::{Disk, DiskFile};
use crate::error::{MaintainError, ReadError};
use crate::format::{Kind, RECORD_HEADER_BYTES, RecordHeader, array_at};
use crate::index::{Entry, IndexError, Prefix};

/// Where a verification goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VerifyPosition {
    /// Behind the block whose hash begins so, or at the first.
    Blocks(Option<[u8; 24]>),
    /// Behind this name.
    Names(Option<String>),
    /// Behind this setting.
    Settings(Option<String>),
}

/// What a step of a verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyStep {
    /// Where to go on; none at the end.
    pub next: Option<VerifyPosition>,
    /// Blocks read.
    pub blocks: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Blocks found damaged; the last bytes of a hash are zeros if its record can not be read.
    pub damaged: Vec<Hash>,
    /// Names and settings whose records were written again.
    pub mended: u64,
}

/// Names or settings verified in one step.
const TEXTS_PAGE: usize = 256;

impl<D: Disk> Store<D> {
    /// Verifies from a position, `None` for the beginning, for about `budget_bytes`.
    ///
    /// # Errors
    /// A file or the index can not be read, or a mended record can not be written.
    pub fn verify_step(
        &mut self,
        position: Option<VerifyPosition>,
        budget_bytes: u64,
    ) -> Result<VerifyStep, MaintainError> {
        match position.unwrap_or(VerifyPosition::Blocks(None)) {
            VerifyPosition::Blocks(after) => self.verify_blocks(after, budget_bytes),
            VerifyPosition::Names(after) => {
                let page = self.asked(|store| store.names_page("", after.as_deref(), TEXTS_PAGE));
                let mut step = self.verify_texts(Kind::Bind, &page.map_err(failed)?)?;
                step.next = Some(match step.next.take() {
                    Some(VerifyPosition::Names(last)) => VerifyPosition::Names(last),
                    Some(VerifyPosition::Blocks(_) | VerifyPosition::Settings(_)) | None => {
                        VerifyPosition::Settings(None)
                    }
                });
                Ok(step)
            }
            VerifyPosition::Settings(after) => {
                let page = self.asked(|store| store.settings_page("", after.as_deref(), TEXTS_PAGE));
                self.verify_texts(Kind::Setting, &page.map_err(failed)?)
            }
        }
    }

    fn verify_blocks(&mut self, after: Option<Prefix>, budget: u64) -> Result<VerifyStep, MaintainError> {
        let mut step = VerifyStep::default();
        let mut after = after;
        while step.bytes < budget.max(1) {
            let page = self.asked(|store| store.blocks_page(after.as_ref())).map_err(failed)?;
            if page.is_empty() {
                step.next = Some(VerifyPosition::Names(None));
                return Ok(step);
            }
            for (prefix, place) in page {
                match self.read_known(&prefix, &place) {
                    Ok(_whole) => {}
                    Err(ReadError::Damaged { hash, .. }) => step.damaged.push(hash),
                    Err(error @ (ReadError::Io { .. } | ReadError::Index { .. })) => {
                        return Err(MaintainError::Read(error));
                    }
                }
                step.blocks += 1;
                step.bytes += u64::from(place.length);
                after = Some(prefix);
                if step.bytes >= budget {
                    break;
                }
            }
        }
        step.next = Some(VerifyPosition::Blocks(after));
        Ok(step)
    }

    fn verify_texts(&mut self, kind: Kind, page: &[(String, Entry)]) -> Result<VerifyStep, MaintainError> {
        let mut step = VerifyStep::default();
        for (key, entry) in page {
            step.bytes += (key.len() + entry.value.len()) as u64;
            if !self.is_whole(kind, key, entry) {
                let (seq, value) = (entry.seq, entry.value.clone());
                self.make_room_in_table()?;
                self.append(&[Record { kind, key: Key::Text(key.clone()), value, seq }], Purpose::Moves)?;
                step.mended += 1;
            }
        }
        let last = page.last().map(|(key, _)| key.clone());
        step.next = last.map(|last| match kind {
            Kind::Bind => VerifyPosition::Names(Some(last)),
            Kind::Block
            | Kind::Unbind
            | Kind::Delete
            | Kind::Setting
            | Kind::SettingRemoved
            | Kind::Commit => VerifyPosition::Settings(Some(last)),
        });
        Ok(step)
    }

    /// Whether the log still has what the index says of a name or setting.
    fn is_whole(&mut self, kind: Kind, key: &str, entry: &Entry) -> bool {
        let mut bytes = vec![0; RECORD_HEADER_BYTES + key.len() + entry.value.len()];
        let salt = self.salt();
        let reader = self.segments.reader(entry.place.segment);
        if reader.and_then(|file| file.read_at(&mut bytes, u64::from(entry.place.offset))).is_err() {
            return false;
        }
        let value_start = RECORD_HEADER_BYTES + key.len();
        RecordHeader::decode(&array_at(&bytes, 0)).is_some_and(|header| {
            header.kind == kind
                && header.value_offset() == value_start as u64
                && header.check_fits(salt, &bytes[..value_start])
                && bytes[value_start..] == entry.value
        })
    }
}

fn failed(error: IndexError) -> MaintainError {
    MaintainError::Index { reason: read_error(error).to_string() }
}
