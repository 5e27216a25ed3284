//! The agent and its command line.

fn main() {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let dir = std::env::args().nth(1).map(Into::into);
    let options = larder::demo::DemoOptions { dir, keep: None, json: false, quiet: false, profile: "performance".into() };
    if let Err(error) = runtime.block_on(larder::demo::demo(&options)) { eprintln!("{error}"); std::process::exit(1) }
}
