//! `tallyline serve`: runs a server until SIGINT or SIGTERM.

use anyhow::Context as _;

use crate::cli::args::ServeArgs;
use crate::cli::config::ServeConfig;
use crate::cli::exit::Exit;
use crate::cli::output::print;
use crate::server::{self, Server};
use crate::shutdown::{self, Shutdown};

/// Runs the server, or with `--check` prints the effective configuration.
pub fn run(args: ServeArgs) -> anyhow::Result<Exit> {
    let check = args.check;
    if let (false, Some(path)) = (check, ServeConfig::port_file_of(&args)) {
        // First, so that a program that waits for the file does not read an old port.
        server::remove_port_file(&path)?;
    }
    let effective = ServeConfig::from_args(args)?;
    if check {
        return print(effective.to_string().as_bytes());
    }
    let stop = Shutdown::on_signals().context("cannot catch SIGINT and SIGTERM")?;
    let reloads = shutdown::reloads(&stop).context("cannot catch SIGHUP")?;
    let server = Server::start(&effective.config)?;
    server.until(&stop, &reloads);
    server.stop()?;
    Ok(Exit::Done)
}
