//! A real Mosquitto for one test.

use super::{Certificates, free_port};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const START_WITHIN: Duration = Duration::from_secs(20);
const ACL: &str = include_str!("../../../packaging/mosquitto/larder.acl");
const CONFIG_WITH_TLS: &str = include_str!("../../../packaging/mosquitto/mosquitto.conf");

/// How the broker is set up.
#[derive(Default)]
pub struct Config<'a> {
    /// The port; absent: a free one.
    pub port: Option<u16>,
    /// TLS, client certificates and access rules exactly as `packaging/mosquitto` has them.
    pub tls: Option<&'a Certificates>,
    /// A folder that stands for `/etc/mosquitto` and has `conf.d/larder.conf` and `larder/` installed.
    pub installed: Option<&'a Path>,
    /// The one user and password it takes; absent: everybody may enter.
    pub login: Option<(&'a str, &'a str)>,
    /// Sessions and retained messages outlive [`Mosquitto::restart`].
    pub persistence: bool,
    /// Further lines of mosquitto.conf.
    pub lines: Vec<&'a str>,
}

/// A running Mosquitto, killed by its process id when dropped.
pub struct Mosquitto {
    child: Option<Child>,
    directory: TempDir,
    port: u16,
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Mosquitto {
    /// Starts a broker and waits until it listens.
    ///
    /// # Panics
    /// When Mosquitto is not installed or does not start; the message says which.
    pub fn start(config: Config<'_>) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let port = config.port.unwrap_or_else(free_port);
        let text = render(&config, port, directory.path());
        fs::write(directory.path().join("mosquitto.conf"), text).expect("the directory is writable");
        let mut mosquitto = Self { child: None, directory, port };
        mosquitto.launch();
        mosquitto
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Ends the broker as an administrator would; it saves its state if it was set up to.
    pub fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        kill_process(pid(&child), Signal::TERM).expect("our own child takes a signal");
        child.wait().expect("our own child can be waited for");
    }

    /// Ends the broker as a power cut would.
    pub fn kill(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        child.kill().expect("our own child can be killed");
        child.wait().expect("our own child can be waited for");
    }

    /// Starts it again on the same port, after [`Mosquitto::stop`] or instead of it.
    pub fn restart(&mut self, keep_state: bool) {
        self.stop();
        if !keep_state {
            // there is none without persistence
            let _there_was_one = fs::remove_file(self.directory.path().join("mosquitto.db")).is_ok();
        }
        self.launch();
    }

    /// The retained message on a topic, as JSON.
    pub fn retained(&self, topic: &str) -> Option<Value> {
        let mut ask = Command::new("mosquitto_sub");
        ask.args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-C", "1", "-W", "2", "-t", topic]);
        let said = ask.output().expect("mosquitto's clients are here");
        serde_json::from_slice(&said.stdout).ok()
    }

    /// What it wrote to its log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    fn launch(&mut self) {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.directory.path().join("log"))
            .expect("the directory is writable");
        let child = Command::new(binary())
            .arg("-c")
            .arg(self.directory.path().join("mosquitto.conf"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file can be shared"))
            .stderr(log)
            .spawn()
            .expect("mosquitto can be started");
        self.child = Some(child);
        let deadline = Instant::now() + START_WITHIN;
        loop {
            // what answers may be somebody else's, who took the port in the meantime
            let answers = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok();
            let ended = self.child.as_mut().is_none_or(|child| !matches!(child.try_wait(), Ok(None)));
            assert!(!ended && Instant::now() < deadline, "mosquitto does not start: {}", self.log());
            if answers {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

fn pid(child: &Child) -> Pid {
    let raw = i32::try_from(child.id()).expect("a process id fits");
    Pid::from_raw(raw).expect("a process id is not 0")
}

fn binary() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.push("/usr/sbin".into());
    let found = folders.into_iter().map(|folder| folder.join("mosquitto")).find(|file| file.is_file());
    found.expect("these tests need the Mosquitto broker: apt-get install mosquitto")
}

fn render(config: &Config<'_>, port: u16, directory: &Path) -> String {
    let folder = directory.to_str().expect("temporary directories have plain names");
    let with_port = |text: &str| text.replace("listener 8883", &format!("listener {port} 127.0.0.1"));
    let mut text = match (config.installed, config.tls) {
        (Some(etc), _) => {
            let text = fs::read_to_string(etc.join("conf.d/larder.conf")).expect("it is installed");
            with_port(&text)
                .replace("/etc/mosquitto", etc.to_str().expect("temporary directories have plain names"))
        }
        (None, Some(certificates)) => {
            fs::write(directory.join("larder.acl"), ACL).expect("the directory is writable");
            for file in ["ca.pem", "broker.pem", "broker.key"] {
                fs::copy(certificates.directory().join(file), directory.join(file))
                    .expect("the files are there");
            }
            with_port(CONFIG_WITH_TLS).replace("/etc/mosquitto/larder", folder)
        }
        (None, None) => format!("listener {port} 127.0.0.1\nallow_anonymous {}\n", config.login.is_none()),
    };
    // as root, it would otherwise change to a user who cannot read the test's files
    text.push_str("\nuser root\nlog_dest stdout\nlog_type all\n");
    if let Some((user, password)) = config.login {
        let made = Command::new("mosquitto_passwd")
            .args(["-b", "-c", &format!("{folder}/passwords"), user, password])
            .status()
            .expect("these tests need mosquitto_passwd: apt-get install mosquitto");
        assert!(made.success(), "mosquitto_passwd failed");
        text.push_str(&format!("password_file {folder}/passwords\n"));
    }
    if config.persistence {
        text.push_str(&format!("persistence true\npersistence_location {folder}/\n"));
    }
    for line in &config.lines {
        text.push_str(line);
        text.push('\n');
    }
    text
}
