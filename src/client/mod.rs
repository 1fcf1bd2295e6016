//! The sender: streams a file, brings every line to an answer, tells how it went.
//!
//! ```text
//!  input -> lines -> batches =bounded channel=> senders (one thread, one connection each)
//!             |                                    | ids, POST, retry, halve
//!             v                                    v
//!      state: covered ahead               tally: counts, done without a gap -> state, rejects
//! ```
//!
//! The calling thread reads and cuts ([`lines`]); each sender thread gives events their ids and
//! delivers whole batches ([`deliver`]). Nothing is unbounded: a batch has at most 100,000 lines
//! and about 1 MiB, as many wait as there are connections.
//!
//! **Counted once.** An event without an id gets one of the run's name and its line's number
//! ([`ids`]). A request whose answer was lost is sent again as it was; the processor counts an id
//! once. The run's name and progress live in a state file ([`state`]) until the run is complete,
//! so the same holds across Ctrl-C, kill -9 and crashes of either side.
//!
//! **Failure.** Whatever can't go on stops everybody; requests under way are waited for; the state
//! says how far all lines without a gap are acknowledged; the summary's last line says FAILED.

#![expect(
    clippy::disallowed_methods,
    reason = "its input, its state and its rejects are files of a process that has no database open"
)]

mod deliver;
mod error;
mod ids;
mod input;
mod lines;
mod post;
mod rejects;
mod run;
mod state;

mod summary;
mod tally;
mod totals;

#[cfg(test)]
mod fake_server;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;

pub use self::error::SendError;
pub use self::summary::{Summary, Verdict};
pub use self::tally::Counts;
pub use self::totals::{User, totals};
use crate::stop::Stop;

use self::input::{Source, identity};
use self::rejects::Keep;
use self::run::Run;
use self::state::{Cover, Record, StateFile};
use crate::config::{Ids, Input, Report, SendConfig};
use crate::exit::Exit;

/// `tallyline send`: sends, prints the summary; a failure is the error as well.
pub fn run(config: &SendConfig) -> anyhow::Result<Exit> {
    let stop = Stop::on_signals().context("cannot catch SIGINT and SIGTERM")?;
    let summary = send(config, &stop);
    match config.report {
        Report::Json => crate::manual::print(format!("{}\n", summary.to_json()).as_bytes())?,
        Report::Quiet if summary.exit() == Exit::Done => Exit::Done,
        Report::Text | Report::Quiet => crate::manual::print(format!("{summary}\n").as_bytes())?,
    };
    let exit = summary.exit();
    match summary.verdict {
        Verdict::Failed(error) => Err(error.into()),
        _ => Ok(exit),
    }
}

/// Sends the input to its end, to a failure (which requests `stop`, too) or until `stop`. Stdin is
/// the process's own.
pub fn send(config: &SendConfig, stop: &Stop) -> Summary {
    let began = Instant::now();
    let mut summary = Summary {
        counts: Counts::default(),
        refused_earlier: 0,
        lines_earlier: 0,
        lines: 0,
        run: String::new(),
        verdict: Verdict::Stopped,
        state: None,
        rejects: config.rejects.clone(),
        elapsed: Duration::ZERO,
    };
    let verdict = match &config.input {
        Input::Follow(path) => follow(config, path, stop, &mut summary),
        Input::File(path) => {
            Source::file(path, stop).and_then(|source| whole(config, source, stop, &mut summary))
        }
        Input::Stdin => Source::stream(std::io::stdin(), stop)
            .and_then(|source| whole(config, source, stop, &mut summary)),
    };
    summary.verdict = verdict.unwrap_or_else(Verdict::Failed);
    summary.elapsed = began.elapsed();
    summary
}

/// One input, one run.
fn whole(
    config: &SendConfig,
    mut source: Source,
    stop: &Stop,
    summary: &mut Summary,
) -> Result<Verdict, SendError> {
    let (state, begun) = open_state(config)?;
    let cover = match &begun {
        Some(record) => resume(config, &mut source, record)?.ok_or_else(|| SendError::Changed {
            input: source.path().to_owned(),
            state: config.state.clone().unwrap_or_default(),
            bytes: record.checked_bytes,
            lines: record.lines,
        })?,
        None => Cover::default(),
    };
    Run::new(config, source, stop, state, begun, cover, Keep::Nothing)?.go(summary)
}

/// A growing file: each file its path comes to lead to is a run of its own.
fn follow(
    config: &SendConfig,
    path: &Path,
    stop: &Stop,
    summary: &mut Summary,
) -> Result<Verdict, SendError> {
    let mut keep = Keep::Nothing;
    loop {
        let (state, begun) = open_state(config)?;
        let Some(mut source) = Source::growing(path, stop)? else {
            return Ok(Verdict::Followed);
        };
        let mut go_on = None;
        if let Some(record) = begun {
            if let Some(cover) = resume(config, &mut source, &record)? {
                go_on = Some((record, cover));
            } else if let Some(mut rotated) = rotated(path, &record, stop)
                && let Some(cover) = resume(config, &mut rotated, &record)?
            {
                tracing::warn!("finishing {} first", rotated.path().display());
                source = rotated;
                go_on = Some((record, cover));
            } else {
                tracing::warn!(
                    "{} was replaced and what it was is gone: its lines after {} are not sent from here; the new file is a new run",
                    path.display(),
                    record.lines
                );
                source = match Source::growing(path, stop)? {
                    Some(source) => source,
                    None => return Ok(Verdict::Followed),
                };
            }
        }
        let (begun, cover) = go_on.unzip();
        let cover = cover.unwrap_or_default();
        match Run::new(config, source, stop, state, begun, cover, keep)?.go(summary)? {
            Verdict::Complete => keep = Keep::Former,
            Verdict::Stopped => return Ok(Verdict::Followed),
            other => return Ok(other),
        }
    }
}

/// What a followed file is called by now, if it is still in its directory.
fn rotated(path: &Path, record: &Record, stop: &Stop) -> Option<Source> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    let entries = std::fs::read_dir(dir.unwrap_or(Path::new("."))).ok()?;
    let found = entries.flatten().find(|entry| {
        let metadata = entry.metadata();
        metadata.is_ok_and(|metadata| identity(&metadata) == (record.device, record.inode))
    })?;
    Source::file(&found.path(), stop).ok()
}

fn open_state(config: &SendConfig) -> Result<(Option<StateFile>, Option<Record>), SendError> {
    let Some(path) = &config.state else {
        return Ok((None, None));
    };
    let (state, record) = StateFile::open(path)?;
    if let Some(record) = &record {
        let (kind, name) = kind_of(&config.ids);
        if record.ids != kind || name.is_some_and(|name| *name != record.run) {
            return Err(SendError::OtherIds {
                state: path.clone(),
                begun: shown_ids(&record.ids, &record.run),
                asked: shown_ids(kind, name.map_or("", String::as_str)),
            });
        }
    }
    Ok((Some(state), record))
}

fn kind_of(ids: &Ids) -> (&'static str, Option<&String>) {
    match ids {
        Ids::Run => ("run", None),
        Ids::Source(name) => ("source", Some(name)),
        Ids::Off => ("none", None),
    }
}

fn shown_ids(kind: &str, name: &str) -> String {
    match kind {
        "none" => "--no-ids".to_owned(),
        "source" => format!("--source {name}"),
        _ => "ids of its own".to_owned(),
    }
}

/// Brings `source` to where the run stopped; `None` if it is not the same input.
fn resume(
    config: &SendConfig,
    source: &mut Source,
    record: &Record,
) -> Result<Option<Cover>, SendError> {
    let mut cover = Cover::default();
    if let Some((file, _)) = source.open_file() {
        cover
            .extend_to(file, record.checked_bytes)
            .map_err(|error| input_error(source.path(), error))?;
        if cover.checked() != (record.checked_bytes, record.checked_crc32) {
            return Ok(None);
        }
    }
    let seen = source.skip(record.bytes)?;
    let same = match (seen, source.open_file()) {
        (None, _) => false,
        (Some(_), Some(_)) => true,
        (Some(checksum), None) => checksum == record.checked_crc32,
    };
    if same && config.ids == Ids::Off && !record.settled {
        tracing::warn!(
            "the run was cut off and has no ids: events after line {} may have been counted and are sent again",
            record.lines
        );
    }
    Ok(same.then_some(cover))
}

fn input_error(path: &Path, source: std::io::Error) -> SendError {
    SendError::Input {
        path: path.to_owned(),
        source,
    }
}
