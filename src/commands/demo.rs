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

/// The committed sample.
const SAMPLE: &str = include_str!("../../data/sample.jsonl");
/// File that marks a directory as a demo's, which may be emptied.
const MARKER: &str = ".tallyline-demo";

/// Starts the server, sends the sample and shows the totals; then serves until a signal, or stops.
pub fn run(config: &DemoConfig) -> anyhow::Result<Exit> {
    let stop = Shutdown::on_signals().context("cannot catch SIGINT and SIGTERM")?;
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
    for user in client::totals(&url)? {
        writeln!(out, "{:<24}{:>16}", user.user_id, user.revenue.get())?;
    }
    if config.then == AfterDemo::Serve {
        writeln!(
            out,
            "Serving on {url} until Ctrl-C; open it in a browser, or try:"
        )?;
        writeln!(out, "  curl {url}/userEvents/user1")?;
        writeln!(
            out,
            "  sqlite3 {} 'SELECT * FROM user_revenue'",
            dir.join(crate::store::DATABASE_FILE).display()
        )?;
        drop(out);
        server.until(&stop, &crossbeam_channel::never());
    }
    server.stop();
    Ok(Exit::Done)
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
