//! One node as its user has it: the real `larder` with a configuration, a key and a store of its own.
//!
//! Duty: make a node in a temporary folder, start and end its agent, run commands against it. Every process
//! is ended by its own id, at the latest when the [`Node`] is dropped. Nothing of the machine's own Larder is
//! touched: each node has its own environment. Fails by panic with what the program said.

use rustix::process::{Pid, Signal, geteuid, kill_process};
use serde_json::Value;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::chown;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long anything may take that is waited for; far more than it takes.
pub const SOON: Duration = Duration::from_secs(120);
/// A user to whom nothing belongs, and its group.
const NOBODY: u32 = 65_534;
/// Between the first two looks at something, and the longest between any: a look costs what is looked at its share
/// of the machine.
const POLL: Duration = Duration::from_millis(10);
const POLL_MAX: Duration = Duration::from_millis(200);

/// The program that `LARDER_BIN` names, such as one for another machine behind its emulator; else the `larder`
/// of this test's own build profile, built if it is not there or older than the test.
///
/// # Panics
/// When it cannot be built.
pub fn larder_bin() -> &'static Path {
    static BIN: OnceLock<PathBuf> = OnceLock::new();
    BIN.get_or_init(|| {
        if let Some(named) = std::env::var_os("LARDER_BIN") {
            return named.into();
        }
        let test = std::env::current_exe().expect("a test knows its own file");
        let profile = test.ancestors().nth(2).expect("a test lies in target/PROFILE/deps");
        let bin = profile.join("larder");
        let age = |path: &Path| path.metadata().and_then(|metadata| metadata.modified()).ok();
        if age(&bin).is_some_and(|bin| age(&test).is_some_and(|test| bin >= test)) {
            return bin;
        }
        let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        build
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .args(["build", "-q", "-p", "larder", "--bin", "larder"]);
        build.arg("--target-dir").arg(profile.parent().expect("a profile lies in the target folder"));
        // what cargo says of this test's package would have build scripts run again
        let of_this_package =
            ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_CRATE_", "CARGO_BIN_", "CARGO_PRIMARY_"];
        for (name, _) in std::env::vars_os() {
            if of_this_package.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
                build.env_remove(name);
            }
        }
        match profile.file_name().and_then(OsStr::to_str) {
            Some("debug") | None => {}
            Some(name) => {
                build.args(["--profile", name]);
            }
        }
        assert!(build.status().expect("cargo can be started").success(), "larder was not built");
        bin
    })
}

/// Notes that a test cannot run here; with `CI=true` the whole run then fails.
pub fn skip(name: &str, reason: &str) {
    println!("skipped: {name}: {reason}");
    if let Some(path) = std::env::var_os("LARDER_SKIPS") {
        use std::io::Write as _;
        let file = OpenOptions::new().create(true).append(true).open(path);
        let mut file = file.expect("the list of skipped tests is writable");
        writeln!(file, "{name}: {reason}").expect("the list of skipped tests is writable");
    }
}

/// Asks again and again until there is an answer.
///
/// # Panics
/// When there is none within [`SOON`].
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + SOON;
    let mut pause = POLL;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {SOON:?}");
        thread::sleep(pause);
        pause = POLL_MAX.min(pause * 5 / 4);
    }
}

/// Waits until a process has read so much.
///
/// # Panics
/// When it ends before.
pub fn wait_read(child: &Child, bytes: u64) {
    let io = format!("/proc/{}/io", child.id());
    wait_for("the command reads", || {
        let text = fs::read_to_string(&io).expect("the command runs");
        let read = text.lines().find_map(|line| line.strip_prefix("rchar: "))?.parse::<u64>().ok()?;
        (read >= bytes).then_some(())
    });
}

/// Bytes that look random and are the same for the same seed.
pub fn noise(length: usize, seed: &str) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(seed.as_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// What a command said and how it ended.
#[derive(Clone, Debug)]
pub struct Said {
    /// Its exit code; 128 and the signal's number if a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: String,
}

impl Said {
    fn of(output: Output) -> Said {
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        Said { code: code(output.status), stdout: output.stdout, stderr }
    }

    /// What a command said that runs beside the test with pipes, once it has ended.
    ///
    /// # Panics
    /// When it can not be waited for.
    pub fn at_end_of(child: Child) -> Said {
        Said::of(child.wait_with_output().expect("our own child can be waited for"))
    }

    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Each line of standard output as JSON.
    ///
    /// # Panics
    /// When one is none.
    pub fn json(&self) -> Vec<Value> {
        let parse = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line:?}"));
        self.text().lines().map(parse).collect()
    }

    /// Itself, if the command ended with `code`.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    pub fn expect(self, code: i32) -> Said {
        let text = self.text();
        let start = &text[..text.floor_char_boundary(2000)];
        assert_eq!(self.code, code, "stdout: {start}\nstderr: {}", self.stderr);
        self
    }
}

/// The exit code, or 128 and the signal's number.
pub fn code(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(-1)
}

/// A node: its folder, and its agent while that runs.
pub struct Node {
    name: String,
    folder: TempDir,
    stanza: String,
    child: Option<Child>,
    environment: Vec<(String, String)>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            let log = self.log();
            let from = log.ceil_char_boundary(log.len().saturating_sub(4000));
            eprintln!("--- the log of {} ends:\n{}", self.name, &log[from..]);
        }
    }
}

impl Node {
    /// Makes a node by `larder init`: a store and a socket in its own folder, profile `performance`, no link.
    pub fn new(name: &str, role: &str) -> Self {
        Self::by(name, &["init", "--name", name, "--role", role])
    }

    /// [`Node::new`] by this very `init`.
    pub fn by(name: &str, init: &[&str]) -> Self {
        let folder = tempfile::Builder::new().prefix("larder-").tempdir().expect("a folder can be made");
        let mut node = Node {
            name: name.to_owned(),
            folder,
            stanza: String::new(),
            child: None,
            environment: Vec::new(),
        };
        let made = node.run([init, &["--quiet"]].concat()).expect(0);
        node.stanza = made.text();
        node.set("node", "store", "\"store\"");
        node.set("node", "socket", "\"larder.sock\"");
        node.set("node", "profile", "\"performance\"");
        node
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its folder, with `larder.toml`, `node.key`, `larder.sock`, `store/` and `log`.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A path in its folder.
    pub fn path(&self, below: impl AsRef<Path>) -> PathBuf {
        self.folder.path().join(below)
    }

    /// Its configuration file.
    pub fn config(&self) -> PathBuf {
        self.path("larder.toml")
    }

    /// Its store.
    pub fn store(&self) -> PathBuf {
        self.path("store")
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.path("larder.sock")
    }

    /// The `[[peer]]` that others need to trust it.
    pub fn stanza(&self) -> &str {
        &self.stanza
    }

    /// What its agents wrote to their log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Sets a key of `[section]` in the configuration to a TOML value, in force from the next start.
    pub fn set(&self, section: &str, key: &str, value: &str) {
        let text = fs::read_to_string(self.config()).expect("the configuration is there");
        let header = format!("[{section}]");
        let mut edited = String::new();
        let (mut inside, mut found) = (false, false);
        for line in text.lines() {
            let is_key = line.split_once('=').is_some_and(|(name, _)| name.trim() == key);
            if line.starts_with('[') {
                inside = line.trim() == header;
            }
            if inside && is_key {
                continue;
            }
            edited.push_str(line);
            edited.push('\n');
            if line.trim() == header {
                found = true;
                let _ = writeln!(edited, "{key} = {value}");
            }
        }
        if !found {
            let _ = writeln!(edited, "\n{header}\n{key} = {value}");
        }
        fs::write(self.config(), edited).expect("the configuration is writable");
    }

    /// Adds text at the end of the configuration, as for a `[[peer]]`.
    pub fn append(&self, text: &str) {
        let before = fs::read_to_string(self.config()).expect("the configuration is there");
        fs::write(self.config(), format!("{before}\n{text}\n")).expect("the configuration is writable");
    }

    /// Has this one trust `other`.
    pub fn trust(&self, other: &Node) {
        self.append(other.stanza());
    }

    /// A variable for every command and agent from now on.
    pub fn variable(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// A command of this node, to be run by the caller.
    pub fn command<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new(larder_bin());
        self.prepare(&mut command);
        command.args(arguments);
        command
    }

    /// Gives any command, such as one that starts `larder` under another program, this node's environment.
    pub fn prepare(&self, command: &mut Command) {
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("HOME", self.folder()).env("LARDER_CONFIG", self.config()).env("RUST_BACKTRACE", "1");
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.current_dir(self.folder()).stdin(Stdio::null());
        if self.config().exists() {
            return;
        }
        // `init` asks for its place by the flag
        command.arg("--config").arg(self.config());
    }

    /// A `larder` in its folder, for users who may not have that of the build.
    pub fn program_for_all(&self) -> PathBuf {
        let program = self.path("larder");
        if program.exists() {
            return program;
        }
        // not by this process: what another test starts meanwhile would inherit the file open for writing, and so busy
        let copied = Command::new("cp").arg(larder_bin()).arg(&program).status();
        assert!(copied.is_ok_and(|status| status.success()), "the folder is writable");
        program
    }

    /// A command that permissions of files bind: root, whom they do not, has somebody else run it, to whom these paths
    /// below the folder are given.
    pub fn command_as_nobody<A: AsRef<OsStr>>(
        &self,
        own: &[&str],
        arguments: impl IntoIterator<Item = A>,
    ) -> Command {
        if !geteuid().is_root() {
            return self.command(arguments);
        }
        let program = self.program_for_all();
        for path in own {
            chown(self.path(path), Some(NOBODY), Some(NOBODY)).expect("root may give away what is there");
        }
        let mut command = Command::new("setpriv");
        self.prepare(&mut command);
        command.args([&format!("--reuid={NOBODY}"), &format!("--regid={NOBODY}"), "--clear-groups"]);
        command.arg(program).args(arguments);
        command
    }

    /// Runs [`Node::command_as_nobody`] to its end.
    pub fn run_as_nobody<A: AsRef<OsStr>>(
        &self,
        own: &[&str],
        arguments: impl IntoIterator<Item = A>,
    ) -> Said {
        Said::of(self.command_as_nobody(own, arguments).output().expect("larder can be started"))
    }

    /// Starts a command with pipes for what it says.
    pub fn spawn<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Child {
        let mut command = self.command(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("larder can be started")
    }

    /// Runs a command to its end.
    pub fn run<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Said {
        Said::of(self.command(arguments).output().expect("larder can be started"))
    }

    /// Runs a command with this standard input.
    pub fn run_with<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>, input: &[u8]) -> Said {
        use std::io::Write as _;
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("larder can be started");
        let mut stdin = child.stdin.take().expect("it was piped");
        thread::scope(|scope| {
            // a command that refuses its input closes it
            scope.spawn(move || stdin.write_all(input).is_ok());
            Said::of(child.wait_with_output().expect("our own child can be waited for"))
        })
    }

    /// The answers of a command that has to end well, as JSON.
    #[track_caller]
    pub fn json<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Vec<Value> {
        let arguments: Vec<A> = arguments.into_iter().collect();
        let arguments = std::iter::once(OsStr::new("--json")).chain(arguments.iter().map(AsRef::as_ref));
        self.run(arguments).expect(0).json()
    }

    /// `status`, whole.
    #[track_caller]
    pub fn status(&self) -> Value {
        self.json(["status"]).pop().expect("status has an answer")
    }

    /// Waits until `status` is as wanted, and gives what was wanted of it.
    pub fn wait_status<T>(&self, what: &str, mut wanted: impl FnMut(&Value) -> Option<T>) -> T {
        wait_for(what, || wanted(&self.status()))
    }

    /// The bytes of an object; `None` when `get` fails.
    pub fn get(&self, target: &str) -> Option<Vec<u8>> {
        let said = self.run(["get", target, "-o", "-"]);
        (said.code == 0).then_some(said.stdout)
    }

    /// All names under a prefix, in order.
    #[track_caller]
    pub fn names(&self, prefix: &str) -> Vec<String> {
        self.run(["ls", prefix]).expect(0).text().lines().map(str::to_owned).collect()
    }

    /// Starts the agent and waits until it answers.
    ///
    /// # Panics
    /// When it ends instead.
    #[track_caller]
    pub fn start(&mut self) {
        self.start_with::<&str>([]);
    }

    /// [`Node::start`] with flags for `larder run`.
    #[track_caller]
    pub fn start_with<A: AsRef<OsStr>>(&mut self, flags: impl IntoIterator<Item = A>) {
        let mut command = self.command(["run"]);
        command.args(flags);
        if let Err(ended) = self.launch(&mut command) {
            panic!("the agent of {} ended with {}: {}", self.name, ended.code, ended.stderr);
        }
    }

    /// Starts the agent by `command` and waits until it answers, or ends: then what it said.
    ///
    /// # Errors
    /// It ended.
    pub fn launch(&mut self, command: &mut Command) -> Result<(), Said> {
        assert!(self.child.is_none(), "the agent of {} runs already", self.name);
        let before = self.log().len();
        let log = OpenOptions::new().create(true).append(true).open(self.path("log"));
        let log: File = log.expect("the folder is writable");
        command.stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn().expect("larder can be started"));
        let deadline = Instant::now() + SOON;
        loop {
            let child = self.child.as_mut().expect("it was just started");
            if let Some(status) = child.try_wait().expect("our own child can be asked") {
                self.child = None;
                let stderr = self.log()[before..].to_owned();
                return Err(Said { code: code(status), stdout: Vec::new(), stderr });
            }
            if UnixStream::connect(self.socket()).is_ok() {
                return Ok(());
            }
            assert!(Instant::now() < deadline, "{} does not start: {}", self.name, self.log());
            thread::sleep(POLL);
        }
    }

    /// What the agent says that refuses to start.
    #[track_caller]
    pub fn refused_start(&mut self) -> Said {
        let mut command = self.command(["run"]);
        match self.launch(&mut command) {
            Ok(()) => panic!("the agent of {} started", self.name),
            Err(said) => said,
        }
    }

    /// Whether the agent runs.
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// The agent's process id.
    ///
    /// # Panics
    /// When none runs.
    pub fn pid(&self) -> Pid {
        let child = self.child.as_ref().expect("the agent runs");
        Pid::from_raw(i32::try_from(child.id()).expect("a process id fits")).expect("a process id is not 0")
    }

    /// Sends the agent a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("our own child takes a signal");
    }

    /// Ends the agent by SIGTERM, as systemd does, and gives its exit code.
    pub fn stop(&mut self) -> i32 {
        self.signal(Signal::TERM);
        self.ended()
    }

    /// Waits until the agent has ended, and gives its exit code.
    pub fn ended(&mut self) -> i32 {
        let mut child = self.child.take().expect("the agent runs");
        let status = wait_for("the agent ends", || child.try_wait().expect("our own child can be asked"));
        code(status)
    }

    /// Ends the agent as the kernel would, with SIGKILL; does nothing when none runs.
    pub fn kill(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        child.kill().expect("our own child can be killed");
        child.wait().expect("our own child can be waited for");
    }

    /// Stops and starts the agent.
    #[track_caller]
    pub fn restart(&mut self) {
        assert_eq!(self.stop(), 0, "{} does not stop well: {}", self.name, self.log());
        self.start();
    }

    /// The most memory the agent had resident so far, in bytes.
    pub fn peak_bytes(&self) -> u64 {
        let path = format!("/proc/{}/status", self.pid().as_raw_nonzero());
        let text = fs::read_to_string(path).expect("Linux says how much memory a process has");
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
        kib.expect("Linux says how much memory a process has") << 10
    }

    /// A new connection to the agent's socket.
    pub fn connect(&self) -> UnixStream {
        UnixStream::connect(self.socket()).expect("the agent listens")
    }
}
