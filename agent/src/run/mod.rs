//! The loop.

use crate::config::{Config, Overrides};

/// A loop that runs for one command.
#[derive(Debug)]
pub struct InProcess {}

impl InProcess {
    /// Stops it cleanly.
    ///
    /// # Errors
    /// The store could not be closed.
    pub async fn finish(self) -> anyhow::Result<()> {
        Ok(())
    }
}

/// Runs the loop for one command, without a link.
///
/// # Errors
/// The store can not be opened.
pub async fn in_process(config: &Config) -> anyhow::Result<(tokio::io::DuplexStream, InProcess)> {
    anyhow::bail!("the agent could not be started on {}", config.store.display())
}

/// Runs the agent until it is told to stop; `overrides` are applied again on reload.
///
/// # Errors
/// It could not be started.
pub async fn agent(config: Config, overrides: Overrides) -> anyhow::Result<()> {
    let _ = overrides;
    anyhow::bail!("the agent could not be started on {}", config.store.display())
}
