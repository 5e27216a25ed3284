//! The demo: a master, a worker and a leecher in one process, each with its own store and key, and the
//! whole main job on a folder of real files.
//!
//! Everything in it is the real thing: three configuration files, three agents as `larder run` starts them,
//! the embedded broker, a watched folder. The link is cut once on purpose. At the end every byte is read
//! back from all three and compared with the file it came from. What it made is removed, unless it was
//! told to keep it; the folder itself is only read.

mod fleet;
mod samples;
mod screen;
mod summary;

use crate::config::{ConfigError, FOLDER_DEPTH_MAX, KeyError, init::InitError};
use crate::run::RunError;
use crate::socket::client::ClientError;
use fleet::{Fleet, Member};
use larder_core::name::Name;
use larder_core::request::{Request, Response, Status, Target};
use screen::Screen;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use summary::Summary;

/// Nothing may stand still for so long.
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(150);
/// How long the link stays cut.
const CUT: Duration = Duration::from_millis(1500);

/// What the demo is to do.
#[derive(Clone, Debug)]
pub struct DemoOptions {
    /// The folder to take; none: a small set is made.
    pub dir: Option<PathBuf>,
    /// Where stores and configurations are made and left; none: a temporary folder.
    pub keep: Option<PathBuf>,
    /// Print the summary as JSON.
    pub json: bool,
    /// Show no progress.
    pub quiet: bool,
    /// The power profile of all three.
    pub profile: String,
}

/// Why the demo failed.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// A file or folder could not be read or made.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// `--keep` names a folder that has something in it.
    #[error("{0} is not empty; name a new folder to keep the demo in")]
    NotEmpty(PathBuf),
    /// The folder has nothing to take.
    #[error("{0} holds no regular file that can be read; name another folder")]
    Nothing(PathBuf),
    /// A configuration could not be made.
    #[error(transparent)]
    Init(#[from] InitError),
    /// A configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A key could not be made.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// An agent did not run.
    #[error(transparent)]
    Run(#[from] RunError),
    /// An agent did not answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Nothing moved any more.
    #[error("nothing has moved for two minutes: {0}")]
    Stuck(String),
    /// The user or the system asked to stop.
    #[error("interrupted; the folder was only read")]
    Interrupted,
    /// A byte is not what it was, or not there.
    #[error("verification failed: {0}")]
    Wrong(String),
}

/// A file the worker will take.
struct Source {
    path: PathBuf,
    name: Name,
    bytes: u64,
}

/// Runs the demo, or as much of it as there is time for until `interrupted` ends.
pub async fn demo(options: &DemoOptions, interrupted: impl Future<Output = ()>) -> Result<(), DemoError> {
    let temporary = match &options.keep {
        Some(_) => None,
        None => {
            Some(tempfile::tempdir().map_err(|source| DemoError::Io { path: std::env::temp_dir(), source })?)
        }
    };
    let home = match (&options.keep, &temporary) {
        (Some(keep), _) => empty_folder(keep)?,
        (None, Some(temporary)) => temporary.path().to_owned(),
        (None, None) => unreachable!("one of the two was just made"),
    };
    let dir = match &options.dir {
        Some(dir) => dir.canonicalize().map_err(|source| DemoError::Io { path: dir.clone(), source })?,
        None => samples::make(&home.join("files"))?,
    };
    let (sources, skipped) = inventory(&dir)?;
    if sources.is_empty() {
        return Err(DemoError::Nothing(dir));
    }
    let screen = Screen::new(!options.quiet && !options.json, &dir, &sources, skipped);
    let mut fleet = Fleet::start(&home, &dir, &options.profile).await?;
    let work = async {
        let carried = carry(&mut fleet, &sources, &screen).await?;
        verify(&mut fleet, &sources, &screen).await?;
        Ok((carried, fleet.statuses().await?))
    };
    let outcome = tokio::select! {
        outcome = work => outcome,
        () = interrupted => Err(DemoError::Interrupted),
    };
    // before anything else, so that nobody writes any more when the folder is removed
    fleet.stop().await?;
    let (carried, statuses) = outcome?;
    screen.finish();
    Summary::new(&statuses, &sources, skipped, &carried).print(options.json, options.keep.as_deref());
    Ok(())
}

fn empty_folder(path: &Path) -> Result<PathBuf, DemoError> {
    let failed = |source| DemoError::Io { path: path.to_owned(), source };
    std::fs::create_dir_all(path).map_err(failed)?;
    if std::fs::read_dir(path).map_err(failed)?.next().is_some() {
        return Err(DemoError::NotEmpty(path.to_owned()));
    }
    path.canonicalize().map_err(failed)
}

/// Everything below a folder that a watched folder would take, and how much it would not.
fn inventory(dir: &Path) -> Result<(Vec<Source>, u64), DemoError> {
    let mut sources = Vec::new();
    let mut skipped = 0;
    let mut folders = vec![(dir.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(source) if folder == dir => return Err(DemoError::Io { path: folder, source }),
            Err(_) => {
                skipped += 1;
                continue;
            }
        };
        for entry in entries.flatten() {
            let path = entry.path();
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() && depth < FOLDER_DEPTH_MAX {
                folders.push((path, depth + 1));
                continue;
            }
            let relative = path.strip_prefix(dir).ok().and_then(Path::to_str);
            let name = relative.and_then(|relative| Name::parse(relative).ok());
            match name.filter(|_| metadata.is_file() && std::fs::File::open(&path).is_ok()) {
                Some(name) => sources.push(Source { path, name, bytes: metadata.len() }),
                None => skipped += 1,
            }
        }
    }
    sources.sort_by(|a, b| a.name.cmp(&b.name));
    Ok((sources, skipped))
}

/// How everything came to be everywhere.
struct Carried {
    took: Duration,
    /// What the master had received when the link was cut.
    bytes_at_cut: u64,
}

/// Waits until all three have everything; cuts the link once when some of it has arrived.
async fn carry(fleet: &mut Fleet, sources: &[Source], screen: &Screen) -> Result<Carried, DemoError> {
    let began = Instant::now();
    let bytes: u64 = sources.iter().map(|source| source.bytes).sum();
    let mut bytes_at_cut = None;
    let mut last = (String::new(), Instant::now());
    loop {
        let [master, worker, leecher] = fleet.statuses().await?;
        screen.show(&master, &worker, &leecher);
        let arrived = master.sync.bytes_received;
        if bytes_at_cut.is_none() && (arrived * 3 >= bytes || master.sync.objects_received > 0) {
            screen.say("the link is cut, on purpose");
            fleet.master.handle.cut_broker().await;
            tokio::time::sleep(CUT).await;
            bytes_at_cut = Some(fleet.master.status().await?.sync.bytes_received);
            fleet.master.handle.restore_broker().await;
            screen.say("the link is restored; what is on flash is not sent again");
            continue;
        }
        if is_everywhere(&master, &worker, &leecher, sources.len() as u64) {
            let bytes_at_cut = bytes_at_cut.unwrap_or(arrived);
            return Ok(Carried { took: began.elapsed(), bytes_at_cut });
        }
        let progress = format!(
            "worker took {}, master has {}, leecher has {} of {} objects; {}",
            worker.ingest.objects + worker.ingest.unchanged,
            master.store.names,
            leecher.store.names,
            sources.len(),
            [&worker.ingest.last_problem, &worker.link.reason, &master.sync.last_problem]
                .map(String::as_str)
                .join(" ")
        );
        let moved = format!("{progress}{arrived}{}{}", leecher.sync.bytes_received, worker.ingest.bytes);
        if moved != last.0 {
            last = (moved, Instant::now());
        } else if last.1.elapsed() > PATIENCE {
            return Err(DemoError::Stuck(progress));
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn is_everywhere(master: &Status, worker: &Status, leecher: &Status, objects: u64) -> bool {
    let is_sent =
        |status: &Status| !status.peers.is_empty() && status.peers.iter().all(|peer| peer.outbox_empty);
    worker.store.names >= objects
        && master.store.names >= objects
        && leecher.store.names >= objects
        && is_sent(worker)
        && is_sent(master)
}

/// Reads every object back from all three and compares it with its file.
async fn verify(fleet: &mut Fleet, sources: &[Source], screen: &Screen) -> Result<(), DemoError> {
    let mut expected = BTreeMap::new();
    for source in sources {
        let hash = hash_file(&source.path)
            .map_err(|error| DemoError::Io { path: source.path.clone(), source: error })?;
        expected.insert(source.name.clone(), hash);
    }
    for member in fleet.members() {
        screen.say(&format!("reading everything back from the {}", member.role));
        verify_member(member, &expected).await?;
    }
    Ok(())
}

async fn verify_member(
    member: &mut Member,
    expected: &BTreeMap<Name, blake3::Hash>,
) -> Result<(), DemoError> {
    let role = member.role;
    let answer = member.client.ask(Request::Verify, |_| {}).await?;
    let is_whole = matches!(&answer, Response::Verified { damaged, incomplete, .. }
        if damaged.is_empty() && incomplete.is_empty());
    if !is_whole {
        return Err(DemoError::Wrong(format!("{role}: {answer:?}")));
    }
    for (name, hash) in expected {
        let mut hasher = blake3::Hasher::new();
        let target = Target::Name(name.clone());
        member
            .client
            .get(target, |bytes| {
                hasher.update(bytes);
            })
            .await?;
        if hasher.finalize() != *hash {
            return Err(DemoError::Wrong(format!("{role}: {} differs from its file", name.as_str())));
        }
    }
    Ok(())
}

fn hash_file(path: &Path) -> io::Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    io::copy(&mut std::fs::File::open(path)?, &mut hasher)?;
    Ok(hasher.finalize())
}
