//! The demo: three agents in one process.

use std::path::PathBuf;

/// What the demo is to do.
#[derive(Clone, Debug)]
pub struct DemoOptions {
    /// The files to work on; a small set of its own without.
    pub dir: Option<PathBuf>,
    /// Where the stores stay; they are removed without.
    pub keep: Option<PathBuf>,
    /// Prints JSON.
    pub json: bool,
    /// Prints the end alone.
    pub quiet: bool,
    /// The power profile of all three.
    pub profile: String,
}

/// Runs it.
///
/// # Errors
/// The agents could not be started.
pub async fn demo(options: DemoOptions) -> anyhow::Result<()> {
    anyhow::bail!("the agents could not be started with profile {}", options.profile)
}
