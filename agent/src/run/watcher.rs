//! The kernel's notices of watched folders, on the loop's own thread.
//!
//! Says only that something may be complete; the core looks for itself. A folder below a watched one is
//! watched as soon as it is seen, and scanned, because files may have been made in it before. Where the
//! kernel refuses to watch (no inotify instances or watches left), the folder is scanned now and then.

use crate::config::{FOLDER_DEPTH_MAX, Watch};
use futures_core::Stream;
use inotify::{EventMask, EventOwned, EventStream, Inotify, WatchDescriptor, WatchMask};
use larder_core::message::Input;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

const EVENT_BYTES: usize = 4096;
/// How often a folder that the kernel does not watch is scanned.
const BLIND_SCAN: Duration = Duration::from_secs(60);

/// All watched folders.
pub(super) struct Watcher {
    watches: Vec<Watch>,
    events: EventStream<[u8; EVENT_BYTES]>,
    folders: HashMap<WatchDescriptor, (u8, PathBuf)>,
    ready: VecDeque<Input>,
    blind: Vec<u8>,
    blind_scan: tokio::time::Interval,
}

impl Watcher {
    /// Watches all folders; `None` when there are none.
    pub(super) fn start(watches: &[Watch]) -> io::Result<Option<Self>> {
        if watches.is_empty() {
            return Ok(None);
        }
        let start = tokio::time::Instant::now() + BLIND_SCAN;
        let mut watcher = Watcher {
            watches: watches.to_vec(),
            events: Inotify::init()?.into_event_stream([0; EVENT_BYTES])?,
            folders: HashMap::new(),
            ready: VecDeque::new(),
            blind: Vec::new(),
            blind_scan: tokio::time::interval_at(start, BLIND_SCAN),
        };
        for index in 0..watches.len() {
            watcher.add(
                u8::try_from(index).expect("the configuration bounds the folders"),
                PathBuf::new(),
                0,
            );
        }
        Ok(Some(watcher))
    }

    /// Watches a folder and, where wanted, those below it.
    fn add(&mut self, watch: u8, relative: PathBuf, depth: usize) {
        if depth > FOLDER_DEPTH_MAX {
            return;
        }
        let path = self.watches[usize::from(watch)].path.join(&relative);
        let mask = WatchMask::CLOSE_WRITE
            | WatchMask::MOVED_TO
            | WatchMask::CREATE
            | WatchMask::ONLYDIR
            | WatchMask::DONT_FOLLOW
            | WatchMask::DELETE_SELF;
        match self.events.watches().add(&path, mask) {
            Ok(descriptor) => {
                self.folders.insert(descriptor, (watch, relative.clone()));
            }
            Err(error) => {
                tracing::warn!("{} is not watched but scanned every minute: {error}", path.display());
                if !self.blind.contains(&watch) {
                    self.blind.push(watch);
                }
                return;
            }
        }
        if !self.watches[usize::from(watch)].recursive {
            return;
        }
        let Ok(entries) = std::fs::read_dir(&path) else { return };
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                self.add(watch, relative.join(entry.file_name()), depth + 1);
            }
        }
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
                _ = self.blind_scan.tick(), if !self.blind.is_empty() => {
                    for watch in std::mem::take(&mut self.blind) {
                        self.add(watch, PathBuf::new(), 0);
                        self.ready.push_back(Input::FilesMissed { watch });
                    }
                }
            }
        }
    }

    fn take(&mut self, event: EventOwned) {
        if event.mask.contains(EventMask::Q_OVERFLOW) {
            return self.missed();
        }
        let Some((watch, folder)) = self.folders.get(&event.wd).cloned() else { return };
        if event.mask.intersects(EventMask::IGNORED | EventMask::DELETE_SELF) {
            self.folders.remove(&event.wd);
            if folder.as_os_str().is_empty() && !self.blind.contains(&watch) {
                self.blind.push(watch); // the folder itself is gone: look for it again
            }
            return;
        }
        let Some(name) = event.name else { return };
        let path = folder.join(name);
        if event.mask.contains(EventMask::ISDIR) {
            if self.watches[usize::from(watch)].recursive {
                let depth = path.components().count();
                self.add(watch, path, depth);
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
        for index in 0..self.watches.len() {
            let watch = u8::try_from(index).expect("the configuration bounds the folders");
            self.ready.push_back(Input::FilesMissed { watch });
        }
    }
}

async fn next_event(events: &mut EventStream<[u8; EVENT_BYTES]>) -> io::Result<EventOwned> {
    let next = std::future::poll_fn(|context| Pin::new(&mut *events).poll_next(context));
    next.await.unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into()))
}
