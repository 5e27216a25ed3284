//! The three agents of the demo, made as anybody would make them: keys, configuration files, agents.

use super::DemoError;
use crate::config::{Config, Environment, NodeKey, Overrides, PublicKey};
use crate::run::{Agent, Handle, Mode, RunError};
use crate::socket::client::{Client, ClientError};
use larder_core::request::{Request, Response, Status};
use larder_core::role::Role;
use larder_hal::board::{Machine, detect};
use std::path::{Path, PathBuf};
use tokio::io::DuplexStream;
use tokio::task::JoinHandle;

/// One agent.
pub(super) struct Member {
    pub(super) role: Role,
    pub(super) handle: Handle,
    pub(super) client: Client<DuplexStream>,
    task: JoinHandle<Result<(), RunError>>,
}

/// All three.
pub(super) struct Fleet {
    pub(super) master: Member,
    worker: Member,
    leecher: Member,
}

/// What a configuration needs to know.
struct Plan<'a> {
    home: &'a Path,
    profile: &'a str,
    machine: Machine,
}

impl Fleet {
    pub(super) async fn start(home: &Path, dir: &Path, profile: &str) -> Result<Self, DemoError> {
        let plan = Plan { home, profile, machine: detect(Path::new("/")) };
        let key = |role| plan.key(role);
        let (master, worker, leecher) = (key(Role::Master)?, key(Role::Worker)?, key(Role::Leecher)?);
        let below = format!("{}{}", peer(Role::Worker, &worker), peer(Role::Leecher, &leecher));
        let broker = "[mqtt]\nembedded_broker = true\nlisten = \"127.0.0.1:0\"\n";
        let master_config = plan.config(Role::Master, "", &format!("{broker}{below}"))?;
        let (agent, handle) = Agent::start(&master_config, &plan.machine, Mode::Guest).await?;
        let port = agent.broker_port().unwrap_or_default();
        let master_member = Member::run(Role::Master, agent, handle).await;

        let above = format!("[mqtt]\nhost = \"127.0.0.1\"\nport = {port}\n{}", peer(Role::Master, &master));
        let watch =
            format!("[[watch]]\npath = {}\nsettle_s = 0\n", toml::Value::from(dir.display().to_string()));
        let worker = plan.start(Role::Worker, "", &format!("{above}{watch}")).await?;
        let leecher = plan.start(Role::Leecher, "subscribe = [\"\"]\n", &above).await?;
        Ok(Fleet { master: master_member, worker, leecher })
    }

    pub(super) fn members(&mut self) -> [&mut Member; 3] {
        [&mut self.master, &mut self.worker, &mut self.leecher]
    }

    /// What master, worker and leecher say of themselves.
    pub(super) async fn statuses(&mut self) -> Result<[Status; 3], DemoError> {
        Ok([self.master.status().await?, self.worker.status().await?, self.leecher.status().await?])
    }

    /// Ends all three, the broker's last.
    pub(super) async fn stop(self) -> Result<(), DemoError> {
        for member in [self.leecher, self.worker, self.master] {
            member.handle.stop().await;
            let failed = |error| {
                let reason = format!("an agent failed: {error}");
                Err(RunError::Close(larder_store::MaintainError::Stopped { reason }))
            };
            member.task.await.unwrap_or_else(failed)?;
        }
        Ok(())
    }
}

impl Member {
    async fn run(role: Role, agent: Agent, handle: Handle) -> Self {
        let task = tokio::spawn(agent.run());
        let client = Client::new(handle.connect().await);
        Member { role, handle, client, task }
    }

    pub(super) async fn status(&mut self) -> Result<Status, DemoError> {
        let answer = self.client.ask(Request::Status, |_| {}).await?;
        let Response::Status(status) = answer else { return Err(ClientError::Unexpected.into()) };
        Ok(*status)
    }
}

impl Plan<'_> {
    fn folder(&self, role: Role) -> PathBuf {
        self.home.join(role.as_str())
    }

    fn key(&self, role: Role) -> Result<PublicKey, DemoError> {
        let folder = self.folder(role);
        std::fs::create_dir_all(&folder).map_err(|source| DemoError::Io { path: folder.clone(), source })?;
        let key = NodeKey::generate()?;
        key.write_new(&folder.join("node.key"))?;
        Ok(key.public())
    }

    /// Writes and reads the configuration of one of the three.
    fn config(&self, role: Role, node: &str, rest: &str) -> Result<Config, DemoError> {
        let path = self.folder(role).join("larder.toml");
        let text = format!(
            "[node]\nname = \"{role}\"\nfleet = \"demo\"\nrole = \"{role}\"\nkey = \"node.key\"\n\
             store = \"store\"\nsocket = \"larder.sock\"\nprofile = \"{}\"\n{node}{rest}",
            self.profile
        );
        std::fs::write(&path, text).map_err(|source| DemoError::Io { path: path.clone(), source })?;
        let overrides = Overrides { config: Some(path), ..Overrides::default() };
        Ok(Config::load(&overrides, &Environment::isolated([]), &self.machine)?)
    }

    async fn start(&self, role: Role, node: &str, rest: &str) -> Result<Member, DemoError> {
        let config = self.config(role, node, rest)?;
        let (agent, handle) = Agent::start(&config, &self.machine, Mode::Guest).await?;
        Ok(Member::run(role, agent, handle).await)
    }
}

fn peer(role: Role, key: &PublicKey) -> String {
    format!("[[peer]]\nname = \"{role}\"\nrole = \"{role}\"\nkey = \"{key}\"\n")
}
