//! The helper thread of the disk: owns the store and the open files, takes jobs, gives results back.
//!
//! Everything slow happens here, so that the loop never waits for a disk. Between two batches whatever else
//! waits has its turn: to the core a batch that has not begun is one that is still filling. Bound: the core
//! hands over no more than [`JOBS_HELD_MAX`] jobs at once. A job that fails answers with a failure, and
//! so do the batches of its run that wait behind it; the thread itself ends only when it is told to, after a
//! checkpoint.

use super::files::Files;
use super::store::{StoreKeeper, store_number};
use bytes::Bytes;
use larder_core::message::{FileId, FileJob, Input, Job, JobId, Question};
use larder_store::{MaintainError, OpenError, OpenReport, Options, OsDisk};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::mpsc as blocking;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Interval;

/// Jobs waiting for the thread; the core's own bounds stay below it.
const JOBS_HELD_MAX: usize = 512;

/// How often it is said how far a rebuild is.
const PROGRESS: Duration = Duration::from_millis(500);

/// What the thread is told.
enum Order {
    Job(JobId, Job),
    File(FileId, FileJob),
    Quota { bytes: u64, reserve_bytes: u64 },
}

/// The loop's side of the thread.
pub(super) struct Engine {
    orders: blocking::SyncSender<Order>,
    done: mpsc::Receiver<Input>,
    thread: JoinHandle<Result<(), MaintainError>>,
    disk: OsDisk,
    rebuild: Option<Rebuild>,
}

/// The thread reads the whole log and says nothing meanwhile: its disk tells how far it is.
struct Rebuild {
    job: JobId,
    /// What the disk had read when it began.
    read_before: u64,
    total: u64,
    tick: Interval,
}

/// What opening the store has shown.
pub(super) struct Opened {
    /// The store's id, shortened to a number.
    pub(super) id: u64,
    /// The newest sequence number in its log.
    pub(super) log: u64,
    /// The setting that holds its last starts.
    pub(super) starts: Option<Bytes>,
    /// What was found and done.
    pub(super) report: OpenReport,
    /// Counts what the store writes and syncs.
    pub(super) disk: OsDisk,
}

impl Engine {
    /// Starts the thread, which opens the store.
    pub(super) async fn start(
        directory: PathBuf,
        options: Options,
        files: Files,
    ) -> Result<(Self, Opened), OpenError> {
        let (orders, taken) = blocking::sync_channel(JOBS_HELD_MAX);
        let (give, done) = mpsc::channel(JOBS_HELD_MAX);
        let (opened, is_open) = oneshot::channel();
        let location = directory.display().to_string();
        let body = move || run(directory, options, files, &taken, &give, opened);
        let thread = std::thread::Builder::new().name("larder-disk".into()).spawn(body);
        let failed = |source| OpenError::Io {
            doing: "starting the helper thread".into(),
            directory: location,
            source,
        };
        let thread = thread.map_err(failed)?;
        let ended =
            |_| OpenError::Index { directory: String::new(), reason: "the helper thread ended".into() };
        let opened = is_open.await.map_err(ended)??;
        let disk = opened.disk.clone();
        Ok((Engine { orders, done, thread, disk, rebuild: None }, opened))
    }

    pub(super) fn job(&self, job: JobId, what: Job) {
        self.order(Order::Job(job, what));
    }

    pub(super) fn file(&self, file: FileId, what: FileJob) {
        self.order(Order::File(file, what));
    }

    /// What the store may take from now on, and the part of it that it keeps free.
    pub(super) fn quota(&self, bytes: u64, reserve_bytes: u64) {
        self.order(Order::Quota { bytes, reserve_bytes });
    }

    fn order(&self, order: Order) {
        // A full channel would mean that the core broke its own bounds; waiting is then the lesser evil.
        if self.orders.send(order).is_err() {
            tracing::error!("the helper thread has ended; restart the agent");
        }
    }

    /// The next result. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<Input> {
        let input = match &mut self.rebuild {
            None => self.done.recv().await,
            Some(rebuild) => tokio::select! {
                input = self.done.recv() => input,
                _ = rebuild.tick.tick() => {
                    let read = self.disk.counts().bytes_read - rebuild.read_before;
                    let Rebuild { job, total, .. } = *rebuild;
                    return Some(Input::JobProgress { job, done: read.min(total), total });
                }
            },
        };
        Some(self.follow(input?))
    }

    /// A result that is there already.
    pub(super) fn ready(&mut self) -> Option<Input> {
        let input = self.done.try_recv().ok()?;
        Some(self.follow(input))
    }

    /// Takes notice of a rebuild's beginning and end.
    fn follow(&mut self, input: Input) -> Input {
        if let Input::JobProgress { job, total, .. } = input {
            let tick = tokio::time::interval_at(tokio::time::Instant::now() + PROGRESS, PROGRESS);
            self.rebuild = Some(Rebuild { job, read_before: self.disk.counts().bytes_read, total, tick });
        } else if let Input::JobDone { job, .. } = input {
            self.rebuild.take_if(|rebuild| rebuild.job == job);
        }
        input
    }

    /// Makes the index whole and closes the store.
    pub(super) fn close(self) -> Result<(), MaintainError> {
        let Engine { orders, mut done, thread, .. } = self;
        drop(orders);
        // The thread may be waiting to hand over a last result.
        done.close();
        thread
            .join()
            .unwrap_or_else(|_| Err(MaintainError::Stopped { reason: "the helper thread failed".into() }))
    }
}

fn run(
    directory: PathBuf,
    options: Options,
    mut files: Files,
    orders: &blocking::Receiver<Order>,
    done: &mpsc::Sender<Input>,
    opened: oneshot::Sender<Result<Opened, OpenError>>,
) -> Result<(), MaintainError> {
    let keeper = match StoreKeeper::open(directory, options) {
        Ok((mut keeper, report)) => {
            let (id, log) = (store_number(&keeper.status()), keeper.status().last_seq);
            let (starts, disk) = (keeper.starts(), keeper.disk.clone());
            let _ = opened.send(Ok(Opened { id, log, starts, report, disk }));
            keeper
        }
        Err(error) => {
            let _ = opened.send(Err(error));
            return Ok(());
        }
    };
    let mut keeper = keeper;
    let mut queue = Queue::default();
    while queue.fill(orders) {
        for order in queue.round() {
            if let Order::Job(job, Job::Ask(Question::Rebuild)) = &order {
                let begun = Input::JobProgress { job: *job, done: 0, total: keeper.log_bytes() };
                if done.blocking_send(begun).is_err() {
                    return keeper.close();
                }
            }
            let input = match order {
                Order::Job(job, what) => Input::JobDone { job, done: keeper.work(what) },
                Order::File(file, what) => match files.work(file, what) {
                    Some(done) => Input::FileDone { file, done },
                    None => continue,
                },
                Order::Quota { bytes, reserve_bytes } => {
                    keeper.set_quota(bytes, reserve_bytes);
                    continue;
                }
            };
            if done.blocking_send(input).is_err() {
                return keeper.close();
            }
            // Nobody's answer waits for it: what was answered is in the log.
            keeper.checkpoint_if_due();
        }
    }
    keeper.close()
}

/// What waits for the thread: batches in their order, everything else in its own.
#[derive(Default)]
struct Queue {
    commits: VecDeque<Order>,
    others: VecDeque<Order>,
}

impl Queue {
    /// Takes in all that has been ordered; `false` when nothing is left and no more will come.
    fn fill(&mut self, orders: &blocking::Receiver<Order>) -> bool {
        if self.commits.is_empty() && self.others.is_empty() {
            match orders.recv() {
                Ok(order) => self.add(order),
                Err(_) => return false,
            }
        }
        while let Ok(order) = orders.try_recv() {
            self.add(order);
        }
        true
    }

    fn add(&mut self, order: Order) {
        match order {
            Order::Job(_, Job::Commit { .. }) => self.commits.push_back(order),
            Order::Job(_, Job::Ask(_)) | Order::File(..) | Order::Quota { .. } => {
                self.others.push_back(order)
            }
        }
    }

    /// One round: everything else that waits, then one batch, so that neither starves the other.
    fn round(&mut self) -> impl Iterator<Item = Order> {
        self.others.drain(..).chain(self.commits.pop_front())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_go_before_a_batch_and_one_batch_goes_a_round() {
        let (orders, taken) = blocking::sync_channel(8);
        let commit = || Job::Commit { run: 0, changes: Vec::new() };
        let jobs = [commit(), commit(), Job::Ask(Question::Numbers), Job::Ask(Question::Numbers)];
        for (number, job) in (0..).zip(jobs) {
            orders.send(Order::Job(JobId(number), job)).unwrap();
        }
        let mut queue = Queue::default();
        let mut round = || {
            assert!(queue.fill(&taken), "something waits");
            let numbers = queue.round().map(|order| match order {
                Order::Job(JobId(number), _) => number,
                Order::File(..) | Order::Quota { .. } => unreachable!("none was ordered"),
            });
            numbers.collect::<Vec<_>>()
        };
        assert_eq!(round(), [2, 3, 0]);
        orders.send(Order::Job(JobId(4), Job::Ask(Question::Numbers))).unwrap();
        assert_eq!(round(), [4, 1]);
        drop(orders);
        assert!(!queue.fill(&taken), "all is done");
    }
}
