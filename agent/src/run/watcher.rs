//! The kernel's notices of watched folders.
//!
//! Says only that something may be complete; the core looks for itself. A folder is watched by the scan that
//! comes to it, on the helper thread and before it is read: the scan finds what was made earlier, the kernel
//! tells what comes later. So a new folder is a reason to scan and nothing more. Where the kernel refuses to
//! watch (no inotify instances or watches left), or the folder itself is gone, it is scanned now and then.

use super::mounts::Mounts;
use crate::config::Watch;
use futures_core::Stream;
use inotify::{EventMask, EventOwned, EventStream, Inotify, WatchDescriptor, WatchMask, Watches};
use larder_core::message::Input;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::MissedTickBehavior;

const EVENT_BYTES: usize = 4096;
/// How often a folder that the kernel does not watch is scanned.
const BLIND_SCAN: Duration = Duration::from_secs(60);

/// What the kernel watches, shared by the scans and the loop; held for one look-up at a time.
#[derive(Default)]
struct Known {
    folders: HashMap<WatchDescriptor, (u8, PathBuf)>,
    /// Watched folders of which something is not watched.
    blind: BTreeSet<u8>,
}

/// The helper thread's side: has the kernel watch what a scan comes to.
pub(super) struct Watching {
    watches: Option<Watches>,
    known: Arc<Mutex<Known>>,
}

impl Watching {
    /// A scan begins and will find out what can be watched now.
    pub(super) fn begin(&self, watch: u8) {
        lock(&self.known).blind.remove(&watch);
    }

    /// Watches an open folder, as `relative` below the watched one; once more does no harm.
    pub(super) fn watch(&mut self, watch: u8, folder: BorrowedFd<'_>, path: &Path, relative: &Path) {
        let mask = WatchMask::CLOSE_WRITE
            | WatchMask::MOVED_TO
            | WatchMask::CREATE
            | WatchMask::ONLYDIR
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF;
        // the path may lead elsewhere by now
        let itself = format!("/proc/self/fd/{}", folder.as_raw_fd());
        let refused = || Err(io::Error::other("no inotify instance is left"));
        match self.watches.as_mut().map_or_else(refused, |watches| watches.add(itself, mask)) {
            Ok(descriptor) => {
                lock(&self.known).folders.insert(descriptor, (watch, relative.to_owned()));
            }
            Err(error) => self.unwatched(watch, path, &error),
        }
    }

    /// A folder is not watched: the whole is scanned now and then.
    pub(super) fn unwatched(&self, watch: u8, path: &Path, error: &io::Error) {
        if lock(&self.known).blind.insert(watch) {
            tracing::warn!("{} is not watched but scanned every minute: {error}", path.display());
        }
    }
}

fn lock(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All watched folders.
pub(super) struct Watcher {
    watches: Vec<Watch>,
    events: Option<EventStream<[u8; EVENT_BYTES]>>,
    known: Arc<Mutex<Known>>,
    mounts: Mounts,
    ready: VecDeque<Input>,
    blind_scan: tokio::time::Interval,
}

impl Watcher {
    /// The loop's side, `None` when there is nothing to watch, and the scans' side.
    pub(super) fn start(watches: &[Watch]) -> (Option<Self>, Watching) {
        let known = Arc::new(Mutex::new(Known::default()));
        if watches.is_empty() {
            return (None, Watching { watches: None, known });
        }
        let events = Inotify::init().and_then(|inotify| inotify.into_event_stream([0; EVENT_BYTES]));
        let events =
            events.inspect_err(|error| tracing::warn!("the kernel gives no notices of files: {error}")).ok();
        let watching = Watching { watches: events.as_ref().map(EventStream::watches), known: known.clone() };
        let start = tokio::time::Instant::now() + BLIND_SCAN;
        let mut blind_scan = tokio::time::interval_at(start, BLIND_SCAN);
        // nobody waits for it while all is watched: what passed meanwhile calls for one scan, not for many
        blind_scan.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mounts = Mounts::of(watches.iter().map(|watch| watch.path.as_path()));
        let watcher =
            Watcher { watches: watches.to_vec(), events, known, mounts, ready: VecDeque::new(), blind_scan };
        (Some(watcher), watching)
    }

    /// The next notice. Cancel safe.
    pub(super) async fn next(&mut self) -> Input {
        loop {
            if let Some(input) = self.ready.pop_front() {
                return input;
            }
            tokio::select! {
                event = next_event(&mut self.events) => match event {
                    Ok(event) => self.take(event),
                    Err(error) => {
                        tracing::warn!("watching folders failed: {error}");
                        self.missed();
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                },
                _ = self.blind_scan.tick(), if !lock(&self.known).blind.is_empty() => {
                    let blind = lock(&self.known).blind.clone();
                    self.ready.extend(blind.into_iter().map(|watch| Input::FilesMissed { watch }));
                }
                changed = self.mounts.changed() => self.ready.extend(changed.into_iter().map(files_missed)),
            }
        }
    }

    fn take(&mut self, event: EventOwned) {
        if event.mask.contains(EventMask::Q_OVERFLOW) {
            return self.missed();
        }
        let mut known = lock(&self.known);
        // One that a scan is just beginning to watch is read by it afterwards.
        let Some((watch, folder)) = known.folders.get(&event.wd).cloned() else { return };
        let is_root = folder.as_os_str().is_empty();
        let is_gone = event.mask.intersects(EventMask::IGNORED | EventMask::DELETE_SELF);
        if is_root && (is_gone || event.mask.contains(EventMask::MOVE_SELF)) {
            known.blind.insert(watch); // until a scan finds one in its place
            self.ready.push_back(Input::FilesMissed { watch });
            // what was below may live on elsewhere
            for (descriptor, _) in known.folders.extract_if(|_, (of, _)| *of == watch) {
                let _is_gone_itself = self.events.as_ref().map(|events| events.watches().remove(descriptor));
            }
        } else if is_gone {
            known.folders.remove(&event.wd);
        }
        if is_gone {
            return;
        }
        drop(known);
        let Some(name) = event.name else { return };
        let path = folder.join(name);
        if event.mask.contains(EventMask::ISDIR) {
            if self.watches[usize::from(watch)].recursive {
                self.ready.push_back(Input::FilesMissed { watch });
            }
        } else if !event.mask.contains(EventMask::CREATE) {
            self.changed(watch, &path);
        }
    }

    fn changed(&mut self, watch: u8, path: &Path) {
        if !self.watches[usize::from(watch)].takes(path) {
            return;
        }
        match path.to_str() {
            Some(path) => self.ready.push_back(Input::FileChanged { watch, path: path.to_owned() }),
            None => tracing::warn!("{}: its name is not UTF-8; rename it", path.display()),
        }
    }

    fn missed(&mut self) {
        self.ready.extend((0..self.watches.len()).map(files_missed));
    }
}

fn files_missed(place: usize) -> Input {
    Input::FilesMissed { watch: u8::try_from(place).expect("the configuration bounds the folders") }
}

async fn next_event(events: &mut Option<EventStream<[u8; EVENT_BYTES]>>) -> io::Result<EventOwned> {
    let Some(events) = events else { return std::future::pending().await };
    let next = std::future::poll_fn(|context| Pin::new(&mut *events).poll_next(context));
    next.await.unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into()))
}
