//! The binary: parse, run, and end with the exit code.

use std::process::ExitCode;

use larder::cli::{self, Cli, Exit};

fn main() -> ExitCode {
    start().unwrap_or_else(|exit| exit).into()
}

fn start() -> Result<Exit, Exit> {
    let cli = Cli::of_process()?;
    cli.start_log()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| {
        eprintln!("larder: the runtime can not be started: {error}");
        Exit::OTHER
    })?;
    let exit = runtime.block_on(cli::run(cli));
    // a read of standard input that never ends must not keep the process
    runtime.shutdown_background();
    Ok(exit)
}
