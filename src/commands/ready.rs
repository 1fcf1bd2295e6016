//! `tallyline ready`: checks whether a server is ready, or waits until it is.

use anyhow::Context as _;

use crate::cli::config::{ReadyConfig, Verbosity};
use crate::cli::exit::Exit;
use crate::cli::output::print;
use crate::client;
use crate::shutdown::Shutdown;

/// Fails with the reasons if the server is not ready in time.
pub fn run(config: &ReadyConfig) -> anyhow::Result<Exit> {
    let to = client::without_credentials(&config.to);
    let stop = Shutdown::on_signals().context("cannot catch SIGINT and SIGTERM")?;
    client::wait_until_ready(&config.to, config.wait, &stop)
        .with_context(|| format!("{to} is not ready"))?;
    match config.verbosity {
        Verbosity::Normal => print(format!("{to} is ready\n").as_bytes()),
        Verbosity::Quiet => Ok(Exit::Done),
    }
}
