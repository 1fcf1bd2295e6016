//! `tallyline demo`: a real server and a real client on a small sample, in a directory of its own.
//!
//! The client sends the sample to the server and reads the totals over HTTP.

#![expect(
    clippy::disallowed_methods,
    reason = "written before its server opens a database"
)]

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use anyhow::Context as _;

use crate::cli::config::{AfterDemo, DemoConfig, SendConfig, UsageError};
use crate::cli::exit::Exit;
use crate::client::{self, SendOutcome};
use crate::data_dir::SERVE_LOCK;
use crate::data_dir::disk::Lock;
use crate::server::Server;
use crate::shutdown::Shutdown;

const SAMPLE: &str = include_str!("../../data/sample.jsonl");
/// File that marks a directory as a demo's, which may be emptied.
const MARKER: &str = ".tallyline-demo";

/// Starts the server, sends the sample and shows the totals; then serves until a signal, or stops.
pub fn run(config: &DemoConfig) -> anyhow::Result<Exit> {
    let stop = Shutdown::on_signals_and_hangup().context("cannot catch signals")?;
    let dir = &config.serve.data_dir;
    make_empty(dir)?;
    let sample = dir.join("sample.jsonl");
    fs::write(&sample, SAMPLE).with_context(|| format!("cannot write {}", sample.display()))?;
    let server = Server::start(&config.serve).map_err(with_advice)?;
    let url = format!("http://{}", server.address());
    let sent = client::send(&SendConfig::of_file(sample, url.clone()), &stop);
    if let SendOutcome::Failed(error) = sent.verdict {
        return Err(error.into());
    }
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "Sent the {} events of data/sample.jsonl to {url}/liveEvent",
        sent.counts.accepted
    )?;
    let users = client::totals(&url)?;
    writeln!(
        out,
        "Counted {} of them: two have the same id, as after a retry, and count once",
        users.iter().map(|user| user.events).sum::<u64>()
    )?;
    for user in users {
        writeln!(out, "{:<24}{:>16}", user.user_id, user.revenue.get())?;
    }
    match config.then {
        AfterDemo::Serve => {
            write!(out, "{}", next_while_serving(&url, dir))?;
            drop(out);
            server.until(&stop, &crossbeam_channel::never());
        }
        AfterDemo::Exit => {
            let (program, dir) = (program(), dir.display());
            writeln!(
                out,
                "Next: {program} query --data-dir {dir}, or {program} serve"
            )?;
        }
    }
    server.stop()?;
    Ok(Exit::Done)
}

/// What to try while the demo serves. Each line can be typed as it is.
fn next_while_serving(url: &str, dir: &Path) -> String {
    let (program, dir) = (program(), dir.display());
    format!(
        r#"Serving on {url} until Ctrl-C; open it in a browser, or try in another terminal:
  curl -d '{{"userId": "user1", "name": "add_revenue", "value": 100}}' '{url}/liveEvent?ack=applied'
  curl {url}/userEvents/user1
  {program} query --data-dir {dir}
"#
    )
}

/// How this program is called in a shell: by its name if it is on the `PATH`, else by its path.
fn program() -> String {
    let name = env!("CARGO_PKG_NAME");
    let Ok(running) = std::env::current_exe() else {
        return name.to_owned();
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let first = std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|at| at.is_file());
    let is_first = first.and_then(|at| at.canonicalize().ok()) == running.canonicalize().ok();
    if is_first {
        name.to_owned()
    } else {
        running.display().to_string()
    }
}

/// Adds advice to the error of a port in use.
fn with_advice(error: anyhow::Error) -> anyhow::Error {
    let mut causes = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>());
    if causes.any(|cause| cause.kind() == io::ErrorKind::AddrInUse) {
        return error.context("the demo's port is in use; --listen 127.0.0.1:0 picks a free port");
    }
    error
}

/// Creates `dir`, or empties it if it is an earlier demo's. Fails if it holds anything else.
fn make_empty(dir: &Path) -> anyhow::Result<()> {
    let marker = dir.join(MARKER);
    if fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some()) {
        if !marker.exists() {
            let dir = dir.display();
            let reason = format!(
                "{dir} is not empty and not from an earlier demo; name a new directory with --data-dir"
            );
            return Err(UsageError::new(reason).into());
        }
        // Fails while a demo runs in the directory.
        let _lock = Lock::take(&dir.join(SERVE_LOCK))?;
        fs::remove_dir_all(dir).with_context(|| format!("cannot empty {}", dir.display()))?;
    }
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    fs::write(
        &marker,
        "A tallyline demo; the next demo empties this directory.\n",
    )
    .with_context(|| format!("cannot write {}", marker.display()))
}
