//! Watched folders: which files are complete, which are known, which may be deleted.
//!
//! A file is read when two looks at it, at least the settle time apart, saw the same version, and taken
//! only if it is still that version at its end. What the kernel did not tell, or what had no room, a scan
//! finds; scans go page by page. One file is read at a time. Files to be deleted wait for the upstream
//! acknowledgement of their binding; those that have no room are found again by a scan. A file is deleted only
//! as the very version that was read: one that a scan finds bound is read once more before that. A name that was
//! deleted does not come back with the file it was made of. Nor does a file put itself over another node's version
//! that is not older: it stays, and is bound as the copy of a conflict.

use super::stream::{Finished, Source, Stream};
use super::{Ingest, Purpose};
use crate::binding::{Binding, Content, Meta, Stored};
use crate::limits::FILES_NOTED_MAX;
use crate::message::{Bound, Effect, Effects, FileDone, FileId, FileJob, FileStat, Message, Question};
use crate::name::Name;
use crate::note::Note;
use crate::request::Failure;
use crate::settings::Watch;
use crate::time::{Deadline, Time};
use std::collections::{BTreeMap, VecDeque};
use std::ops::RangeBounds;

/// Milliseconds until a folder with unfinished business is scanned again, at first and at most.
const RESCAN_MS: u64 = 60_000;
const RESCAN_MS_MAX: u64 = 3_600_000;
/// Milliseconds until a folder is scanned of which the kernel did not tell everything; what else it does not
/// tell meanwhile is found by the same scan.
const MISSED_MS: u64 = 1_000;
/// Milliseconds by which a scan may be late.
const SCAN_SLACK_MS: u64 = 2_000;

pub(super) type Path = (u8, String);

/// A page of scanned files whose names are being looked up.
pub(super) struct Page {
    pub(super) watch: u8,
    files: Vec<(String, FileStat)>,
    end: bool,
}

/// A file that may be complete.
#[derive(Clone, Copy)]
struct Noted {
    /// As it was seen last.
    stat: Option<FileStat>,
    /// When to look again.
    look_at_ms: u64,
}

enum Work {
    Scan(u8),
    Stat(Path),
    Open(Path),
    Read(u32),
    Delete(Path),
}

struct Folder {
    /// A page is under way.
    scanning: bool,
    /// A scan has begun and not come to its end; none begins before that, lest one that is long never ends.
    begun: bool,
    /// Something was missed since it began: another scan follows soon.
    again: bool,
    /// Something was not finished since it began: another scan follows after a while.
    later: bool,
    /// Files found no room to wait for their deletion: another scan follows when there is some.
    crowded: bool,
    scan_at_ms: Option<u64>,
    rescan_wait_ms: u64,
    /// Something was not finished since the last scan ended, and is looked at with each: they become rarer.
    unfinished: bool,
}

/// All watched folders.
pub(super) struct Folders {
    folders: Vec<Folder>,
    noted: BTreeMap<Path, Noted>,
    work: BTreeMap<FileId, Work>,
    next_file: u32,
    /// The stream of the file being read.
    reading: Option<u32>,
    /// A look or an opening is under way.
    looking: bool,
    /// Everything up to this sequence number is acknowledged upstream. Of a master everything is: what is on
    /// flash here is safe.
    delivered: u64,
    /// Bound files that are deleted once acknowledged, in the order of their bindings, with the version that was
    /// read; none: it must be read again first.
    awaiting: VecDeque<(u64, Path, Option<FileStat>)>,
}

impl Folders {
    pub(super) fn new(count: usize, is_master: bool) -> Self {
        let folder = || Folder {
            scanning: false,
            begun: false,
            again: false,
            later: false,
            crowded: false,
            scan_at_ms: Some(0),
            rescan_wait_ms: RESCAN_MS,
            unfinished: false,
        };
        Folders {
            folders: std::iter::repeat_with(folder).take(count).collect(),
            noted: BTreeMap::new(),
            work: BTreeMap::new(),
            next_file: 0,
            reading: None,
            looking: false,
            delivered: if is_master { u64::MAX } else { 0 },
            awaiting: VecDeque::new(),
        }
    }

    /// When to look or scan next; whatever ends a look, a scan or a lack of room goes on by itself.
    pub(super) fn deadline(&self, watches: &[Watch], has_room: bool) -> Option<Deadline> {
        let scan = self.folders.iter().filter_map(|folder| folder.scan_at_ms).filter(|_| self.may_scan());
        let scan = scan.min().map(|at_ms| Deadline { at_ms, slack_ms: SCAN_SLACK_MS, why: "scan a folder" });
        let is_idle = self.reading.is_none() && !self.looking && has_room;
        let settle = watches.iter().map(|watch| watch.settle_ms).min().unwrap_or(0);
        let look = self.noted.values().filter(|_| is_idle).map(|noted| noted.look_at_ms).min();
        let look = look.map(|at_ms| Deadline { at_ms, slack_ms: settle, why: "look at a file" });
        [scan, look].into_iter().flatten().min_by_key(|deadline| deadline.at_ms)
    }

    /// One scan at a time, and only while most of what it finds can be noted.
    fn may_scan(&self) -> bool {
        !self.folders.iter().any(|folder| folder.scanning) && self.noted.len() <= FILES_NOTED_MAX / 2
    }

    fn start(&mut self, work: Work, what: FileJob, out: &mut Effects) {
        self.next_file = self.next_file.wrapping_add(1);
        self.work.insert(FileId(self.next_file), work);
        out.emit(Effect::File { file: FileId(self.next_file), what });
    }

    /// The folder has something that is not finished: scan it after a while.
    pub(super) fn scan_later(&mut self, now: Time, watch: u8) {
        let Some(folder) = self.folders.get_mut(usize::from(watch)) else { return };
        folder.unfinished = true;
        if folder.begun {
            folder.later = true;
        } else if folder.scan_at_ms.is_none() {
            folder.scan_at_ms = Some(now.mono_ms + folder.rescan_wait_ms);
            // once a scan, not once a file: a full list would put the next one off for an hour
            folder.rescan_wait_ms = (folder.rescan_wait_ms * 2).min(RESCAN_MS_MAX);
        }
    }

    /// The scan can not go on: another begins after a while.
    pub(super) fn scan_failed(&mut self, now: Time, watch: u8) {
        let folder = &mut self.folders[usize::from(watch)];
        (folder.scanning, folder.begun, folder.again, folder.later) = (false, false, false, false);
        self.scan_later(now, watch);
    }

    /// The kernel did not tell everything: the folder is scanned soon, or once more after the present scan.
    fn scan_soon(&mut self, now: Time, watch: u8) {
        let Some(folder) = self.folders.get_mut(usize::from(watch)) else { return };
        if folder.begun {
            folder.again = true;
        } else {
            let soon = now.mono_ms + MISSED_MS;
            folder.scan_at_ms = Some(folder.scan_at_ms.map_or(soon, |at_ms| at_ms.min(soon)));
        }
    }

    /// Notes a file; without room the folder is scanned later. One that was seen like this already is not put off.
    fn note(&mut self, now: Time, path: Path, stat: Option<FileStat>, look_at_ms: u64) {
        if stat.is_some() && self.noted.get(&path).is_some_and(|noted| noted.stat == stat) {
            return;
        }
        if self.noted.len() >= FILES_NOTED_MAX && !self.noted.contains_key(&path) {
            return self.scan_later(now, path.0);
        }
        self.noted.insert(path, Noted { stat, look_at_ms });
    }

    fn await_delivery(&mut self, seq: u64, path: Path, read: Option<FileStat>) {
        let at = self.awaiting.partition_point(|(other, ..)| *other < seq);
        if let Some((other, of, known)) = self.awaiting.get_mut(at)
            && (*other, &*of) == (seq, &path)
        {
            *known = read.or(*known);
        } else if self.awaiting.len() < FILES_NOTED_MAX {
            self.awaiting.insert(at, (seq, path, read));
        } else {
            self.folders[usize::from(path.0)].crowded = true;
        }
    }

    /// Scans the folders again that had more files to be deleted than can wait for it, where most of the room is free.
    fn scan_crowded(&mut self, now: Time) {
        if self.awaiting.len() > FILES_NOTED_MAX / 2 {
            return;
        }
        let count = u8::try_from(self.folders.len()).expect("the configuration bounds the watched folders");
        for watch in 0..count {
            if std::mem::take(&mut self.folders[usize::from(watch)].crowded) {
                self.scan_soon(now, watch);
            }
        }
    }
}

impl Ingest {
    /// Something at this path may be complete.
    pub fn file_changed(&mut self, now: Time, watch: u8, path: String, out: &mut Effects) {
        self.folders.note(now, (watch, path), None, now.mono_ms);
        self.read_on(now, out);
    }

    /// The kernel dropped notices, or a folder came whose files it did not tell of.
    pub fn files_missed(&mut self, now: Time, watch: u8, out: &mut Effects) {
        self.folders.scan_soon(now, watch);
        self.read_on(now, out);
    }

    /// Upstream has acknowledged everything up to `seq`.
    pub fn delivered(&mut self, now: Time, seq: u64, out: &mut Effects) {
        // fewer than before, where the master has a new store
        self.folders.delivered = seq;
        self.delete_delivered(now, out);
    }

    /// Upstream is another: nothing has been acknowledged by it yet.
    pub fn forget_delivered(&mut self) {
        self.folders.delivered = 0;
    }

    /// Upstream will not take this name: its file stays, and is read again where that can help.
    pub fn undelivered(&mut self, now: Time, name: &Name, is_lost: bool) {
        for (watch, _) in self.keep_files(name, ..) {
            if is_lost {
                self.folders.scan_later(now, watch);
            }
        }
    }

    /// The name was bound anew here, by this file if by one, or by a peer. What it stood for before goes upstream no
    /// more, if it has not gone: other files, of that content, stay and are looked at again.
    pub(crate) fn superseded(&mut self, now: Time, name: &Name, by: u64, file: Option<&Path>) {
        for path in self.keep_files(name, self.folders.delivered.saturating_add(1)..by) {
            if Some(&path) != file {
                self.folders.scan_later(now, path.0);
            }
        }
    }

    /// These are the files of this name, bound by these sequence numbers, that do not wait for their deletion any more,
    /// nor will where they were read again and found so, and only their blocks are still being written.
    fn keep_files(&mut self, name: &Name, seqs: impl RangeBounds<u64>) -> Vec<Path> {
        let watches = &self.watches;
        let is_of_it = |(watch, path): &Path| {
            let prefix = &watches[usize::from(*watch)].prefix;
            name.as_str().strip_prefix(prefix.as_str()) == Some(path.as_str())
        };
        let mut kept = Vec::new();
        self.folders.awaiting.retain(|(seq, path, _)| {
            let stays = seqs.contains(seq) && is_of_it(path);
            if stays {
                kept.push(path.clone());
            }
            !stays
        });
        let is_bound_to_it = |stream: &&mut Stream| stream.name == *name && stream.copy_of.is_none();
        for stream in self.streams.values_mut().filter(is_bound_to_it) {
            if let Source::File { watch, path, .. } = &stream.source
                && watches[usize::from(*watch)].delete_after_ack
                && let Some(Finished::Unchanged { seq }) = &mut stream.finished
                && seq.take_if(|seq| seqs.contains(seq)).is_some()
            {
                kept.push((*watch, path.clone()));
            }
        }
        kept
    }

    fn delete_delivered(&mut self, now: Time, out: &mut Effects) {
        let folders = &mut self.folders;
        while folders.awaiting.front().is_some_and(|(seq, ..)| *seq <= folders.delivered)
            && folders.work.len() < 64
            && let Some((_, path, read)) = folders.awaiting.pop_front()
        {
            match read {
                Some(expected) => {
                    let what = FileJob::Delete { watch: path.0, path: path.1.clone(), expected };
                    folders.start(Work::Delete(path), what, out);
                }
                None => folders.note(now, path, None, now.mono_ms),
            }
        }
        folders.scan_crowded(now);
    }

    /// Starts whatever is due and has room: the next scan page, the next look, the next read.
    pub(super) fn read_on(&mut self, now: Time, out: &mut Effects) {
        if self.stopping {
            return;
        }
        self.scan_on(now, out);
        let has_room = self.has_room();
        if let Some(number) = self.folders.reading {
            let Some(Stream { source: Source::File { file, .. }, .. }) = self.streams.get(&number) else {
                return;
            };
            if has_room && !self.folders.work.contains_key(file) {
                self.folders.work.insert(*file, Work::Read(number));
                out.emit(Effect::File { file: *file, what: FileJob::Read });
            }
            return;
        }
        if self.folders.looking || !has_room {
            return;
        }
        let due = self.folders.noted.iter().filter(|(_, noted)| noted.look_at_ms <= now.mono_ms);
        if let Some(path) = due.min_by_key(|(_, noted)| noted.look_at_ms).map(|(path, _)| path.clone()) {
            self.folders.looking = true;
            let what = FileJob::Stat { watch: path.0, path: path.1.clone() };
            self.folders.start(Work::Stat(path), what, out);
        }
    }

    fn scan_on(&mut self, now: Time, out: &mut Effects) {
        let folders = &mut self.folders;
        if !folders.may_scan() {
            return;
        }
        let due = |folder: &Folder| folder.scan_at_ms.is_some_and(|at_ms| at_ms <= now.mono_ms);
        let Some(index) = folders.folders.iter().position(due) else { return };
        let watch = u8::try_from(index).expect("the configuration bounds the watched folders");
        let folder = &mut folders.folders[index];
        let restart = !folder.begun;
        (folder.scanning, folder.begun) = (true, true);
        folder.scan_at_ms = None;
        folders.start(Work::Scan(watch), FileJob::Scan { watch, restart }, out);
    }

    pub(super) fn folder_file_done(&mut self, now: Time, file: FileId, done: FileDone, out: &mut Effects) {
        let Some(work) = self.folders.work.remove(&file) else { return };
        match (work, done) {
            (Work::Scan(watch), FileDone::Page { files, end }) => {
                self.scanned(now, Page { watch, files, end }, out);
            }
            (Work::Scan(watch), FileDone::Failed(what)) => {
                self.problem(&watch_name(watch), what, out);
                self.folders.scan_failed(now, watch);
            }
            (Work::Stat(path), FileDone::Stat(stat)) => self.looked(now, path, stat, out),
            (Work::Open(path), FileDone::Opened(stat)) => self.opened(now, file, path, stat, out),
            (Work::Read(number), FileDone::Data { bytes, end }) => self.read(now, number, bytes, end, out),
            (Work::Read(number), FileDone::Failed(what)) => self.unreadable(now, number, what, out),
            (Work::Stat(path) | Work::Open(path), FileDone::Failed(what)) => {
                self.folders.looking = false;
                self.folders.noted.remove(&path);
                self.numbers.deferred += 1;
                self.problem(&path.1, what, out);
                self.folders.scan_later(now, path.0);
            }
            (Work::Delete(_), FileDone::Deleted(true)) => self.numbers.deleted += 1,
            (Work::Delete(path), FileDone::Failed(what)) => {
                self.problem(&path.1, what, out);
                self.folders.scan_later(now, path.0);
            }
            // Another version is there: its own change has been, or will be, noticed.
            (Work::Delete(path), _) => self.folders.scan_later(now, path.0),
            (Work::Stat(_) | Work::Open(_), _) => self.folders.looking = false,
            (Work::Scan(watch), _) => self.folders.scan_failed(now, watch),
            (Work::Read(number), _) => self.unreadable(now, number, "no data came".into(), out),
        }
        self.delete_delivered(now, out);
        self.read_on(now, out);
    }

    fn scanned(&mut self, now: Time, mut page: Page, out: &mut Effects) {
        let prefix = self.watches[usize::from(page.watch)].prefix.clone();
        let mut names = Vec::new();
        let mut refused = Vec::new();
        page.files.retain(|(path, _)| match Name::parse(&format!("{prefix}{path}")) {
            Ok(name) => {
                names.push(name);
                true
            }
            Err(error) => {
                refused.push((path.clone(), error.to_string()));
                false
            }
        });
        for (path, what) in refused {
            self.numbers.refused += 1;
            self.problem(&path, what, out);
        }
        if names.is_empty() {
            return self.page_looked_up(now, page, Vec::new(), out);
        }
        let ticket = self.ticket(Purpose::Page(page));
        out.tell(Message::Ask { ticket, question: Question::Lookup(names) });
    }

    /// Files that are bound as they are need nothing more than, perhaps, their deletion. They are read once more
    /// before it: what was bound may have been another file of this size and time, and a master's blocks, of
    /// which no acknowledgement tells that they are whole, are mended by it.
    pub(super) fn page_looked_up(
        &mut self,
        now: Time,
        page: Page,
        found: Vec<Option<Bound>>,
        out: &mut Effects,
    ) {
        let watch = &self.watches[usize::from(page.watch)];
        let (delete, settle_ms) = (watch.delete_after_ack, watch.settle_ms);
        for ((path, stat), bound) in page.files.into_iter().zip(found) {
            let path = (page.watch, path);
            match bound.and_then(|bound| Some((bound_for(&bound, &stat)?, bound.seq))) {
                Some((Content::Deleted, _)) => {}
                Some((Content::Object { .. }, _)) if !delete => {}
                Some((Content::Object { .. }, seq)) if seq > self.folders.delivered => {
                    self.folders.await_delivery(seq, path, None);
                }
                Some((Content::Object { .. }, _)) | None => {
                    self.folders.note(now, path, Some(stat), now.mono_ms + settle_ms);
                }
            }
        }
        let folder = &mut self.folders.folders[usize::from(page.watch)];
        (folder.scanning, folder.begun) = (false, !page.end);
        if page.end {
            let (again, later) = (std::mem::take(&mut folder.again), std::mem::take(&mut folder.later));
            if !std::mem::take(&mut folder.unfinished) {
                folder.rescan_wait_ms = RESCAN_MS;
            }
            if again {
                self.folders.scan_soon(now, page.watch);
            } else if later {
                self.folders.scan_later(now, page.watch);
            }
        } else {
            folder.scan_at_ms = Some(now.mono_ms);
        }
        self.delete_delivered(now, out);
        self.read_on(now, out);
    }

    /// A file that looks as it did a settle time ago is opened; another is looked at again later.
    fn looked(&mut self, now: Time, path: Path, stat: Option<FileStat>, out: &mut Effects) {
        self.folders.looking = false;
        let Some(noted) = self.folders.noted.remove(&path) else { return };
        let Some(stat) = stat else { return };
        if noted.stat != Some(stat) {
            let look_at_ms = now.mono_ms + self.watches[usize::from(path.0)].settle_ms;
            return self.folders.note(now, path, Some(stat), look_at_ms);
        }
        self.folders.looking = true;
        let what = FileJob::Open { watch: path.0, path: path.1.clone() };
        self.folders.start(Work::Open(path), what, out);
    }

    fn opened(&mut self, now: Time, file: FileId, path: Path, stat: FileStat, out: &mut Effects) {
        self.folders.looking = false;
        let prefix = &self.watches[usize::from(path.0)].prefix;
        let name = match Name::parse(&format!("{prefix}{}", path.1)) {
            Ok(name) => name,
            Err(error) => {
                self.numbers.refused += 1;
                out.emit(Effect::File { file, what: FileJob::Close });
                return self.problem(&path.1, error.to_string(), out);
            }
        };
        let meta = Meta { size: stat.size, mtime_ms: stat.mtime_ms, mode: stat.mode };
        let source = Source::File { file, watch: path.0, path: path.1, stat };
        self.folders.reading = Some(self.open(source, name, meta));
        self.read_on(now, out);
    }

    fn read(
        &mut self,
        now: Time,
        number: u32,
        bytes: bytes::Bytes,
        end: Option<FileStat>,
        out: &mut Effects,
    ) {
        if !bytes.is_empty() {
            self.push(number, bytes, out);
        }
        let Some(at_end) = end else { return };
        self.folders.reading = None;
        let Some(stream) = self.streams.get_mut(&number) else { return };
        let Source::File { file, watch, path, stat } = &stream.source else { return };
        out.emit(Effect::File { file: *file, what: FileJob::Close });
        if *stat == at_end && stream.size == stat.size {
            return self.end(number, out);
        }
        let (path, watch) = ((*watch, path.clone()), *watch);
        let look_at_ms = now.mono_ms + self.watches[usize::from(watch)].settle_ms;
        self.numbers.deferred += 1;
        self.drop_stream(now, number, "it changed while it was read", out);
        self.folders.note(now, path, Some(at_end), look_at_ms);
    }

    fn unreadable(&mut self, now: Time, number: u32, what: String, out: &mut Effects) {
        self.folders.reading = None;
        if let Some(Stream { source: Source::File { watch, path, .. }, .. }) = self.streams.get(&number) {
            let (watch, path) = (*watch, path.clone());
            self.numbers.deferred += 1;
            self.problem(&path, what.clone(), out);
            self.folders.scan_later(now, watch);
        }
        self.drop_stream(now, number, &what, out);
    }

    fn drop_stream(&mut self, now: Time, number: u32, what: &str, out: &mut Effects) {
        self.fail(now, number, Failure::new(crate::request::FailureKind::Invalid, what), out);
    }

    /// The stream of an open file has failed: the file is closed, and the next may be read.
    pub(super) fn stop_reading(&mut self, number: u32, file: FileId, out: &mut Effects) {
        if self.folders.reading == Some(number) {
            self.folders.reading = None;
            self.folders.work.remove(&file);
            out.emit(Effect::File { file, what: FileJob::Close });
        }
    }

    /// A file's stream has ended: it may be deleted later, or must be tried again. One that was bound as a copy stays:
    /// who keeps files from their deletion looks for them by their own names.
    pub(super) fn file_finished(
        &mut self,
        now: Time,
        path: Path,
        stat: FileStat,
        is_copy: bool,
        finished: Finished,
        out: &mut Effects,
    ) {
        let delete = self.watches[usize::from(path.0)].delete_after_ack && !is_copy;
        match finished {
            Finished::Bound { seq } | Finished::Unchanged { seq: Some(seq) } if delete => {
                self.folders.await_delivery(seq, path, Some(stat));
                self.delete_delivered(now, out);
            }
            Finished::Bound { .. } | Finished::Unchanged { .. } => {}
            Finished::Failed(failure) => {
                self.problem(&path.1, failure.message, out);
                self.folders.scan_later(now, path.0);
            }
        }
    }

    pub(super) fn problem(&mut self, path: &str, what: String, out: &mut Effects) {
        self.numbers.last_problem = format!("{path}: {what}");
        out.note(Note::File { path: path.to_owned(), what });
    }
}

/// What a file's name stands for, if it was bound for a file that looks like this one; a deletion keeps
/// everything of it but the size.
fn bound_for(bound: &Bound, stat: &FileStat) -> Option<Content> {
    let Stored { binding: Binding { content, meta, .. }, refused, .. } = Stored::decode(&bound.value).ok()?;
    let size = if content == Content::Deleted { 0 } else { stat.size };
    let looks_like_it = meta == Meta { size, mtime_ms: stat.mtime_ms, mode: stat.mode };
    (looks_like_it && !refused).then_some(content)
}

fn watch_name(watch: u8) -> String {
    format!("watched folder {}", watch + 1)
}
