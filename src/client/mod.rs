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
//! once. The run's name and progress live in a state file ([`state`]), so the same holds across
//! Ctrl-C, kill -9 and crashes of either side; a file that was sent in full is not sent again as if
//! it were new, and one that has grown goes on where it ended.
//!
//! **Applied.** When all is acknowledged, the sender waits until it is in the totals, and lists the
//! lines that were rejected there (`settle`).
//!
//! **Failure.** Whatever can't go on stops everybody; requests under way are waited for; the state
//! says how far all lines without a gap are acknowledged; the summary's last line says FAILED.

#![expect(
    clippy::disallowed_methods,
    reason = "its input, its state and its rejects are files of a process that has no database open"
)]

mod agent;
mod array;
mod deliver;
mod error;
mod follow;
mod format;
mod ids;
mod input;
mod lines;
mod post;
mod rejects;
mod run;
mod settle;
mod state;
mod summary;
mod tally;
mod totals;

#[cfg(test)]
mod fake_server;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

pub use self::error::{SendError, SentBefore};
pub use self::settle::Applied;
pub use self::summary::{SendOutcome, Summary};
pub use self::tally::Counts;
pub use self::totals::{User, totals};
use crate::shutdown::Shutdown;

use self::input::{Source, identity};
use self::post::{About, Answer, Poster};
use self::rejects::Keep;
use self::run::{Finished, Run, without_credentials};
use self::settle::settle;
use self::state::{Cover, Record, StateFile};
use crate::cli::config::{Ids, Input, Repeat, SendConfig};
use crate::cli::output::counted;

/// Sends the input to its end, to a failure (which requests `stop`, too) or until `stop`. Stdin is
/// the process's own.
pub fn send(config: &SendConfig, stop: &Shutdown) -> Summary {
    let began = Instant::now();
    let mut summary = Summary {
        counts: Counts::default(),
        refused_earlier: 0,
        lines_earlier: 0,
        lines: 0,
        run: String::new(),
        verdict: SendOutcome::Stopped,
        state: None,
        rejects: config.rejects.clone(),
        applied: Applied::NotAsked,
        rejected: 0,
        wait: config.wait,
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
    summary.verdict = verdict.unwrap_or_else(SendOutcome::Failed);
    summary.elapsed = began.elapsed();
    summary
}

/// One input, one run.
fn whole(
    config: &SendConfig,
    mut source: Source,
    stop: &Shutdown,
    summary: &mut Summary,
) -> Result<SendOutcome, SendError> {
    let Some((about, state, begun)) = begin(config, stop)? else {
        return Ok(SendOutcome::Stopped);
    };
    let begun = match begun {
        None => None,
        Some(record) if record.complete => added(config, &mut source, record, summary)?,
        Some(record) => {
            let cover = resume(config, &mut source, &record)?;
            if cover.is_none() && config.repeat == Repeat::Again && source.open_file().is_some() {
                source.rewind()?;
            } else if cover.is_none() {
                return Err(SendError::Changed {
                    input: source.path().to_owned(),
                    state: config.state.clone().unwrap_or_default(),
                    bytes: record.checked_bytes,
                    lines: record.lines,
                });
            }
            cover.map(|cover| (record, cover))
        }
    };
    let run = Run::new(config, source, stop, state, about, begun, Keep::Nothing)?;
    let Finished {
        verdict,
        record,
        mut rejects,
        own,
    } = run.go(summary)?;
    if matches!(verdict, SendOutcome::Complete) {
        let settled = settle(config, stop, &record, own);
        summary.applied = settled.applied;
        summary.rejected = settled.rejected.len() as u64;
        rejects.write(&settled.rejected, "rejected")?;
    }
    Ok(verdict)
}

/// What was added to a file since its run was complete goes on with that run. The same content, and a
/// file of which something was changed that was sent, are refused, unless it is to be sent again
/// (`None`): nothing tells which of its lines were counted.
fn added(
    config: &SendConfig,
    source: &mut Source,
    mut record: Record,
    summary: &mut Summary,
) -> Result<Option<(Record, Cover)>, SendError> {
    if config.repeat == Repeat::Again {
        return Ok(None);
    }
    if resume(config, source, &record)?.is_none() {
        summary.state.clone_from(&config.state);
        return Err(SendError::Edited {
            path: source.path().to_owned(),
            lines: counted(record.lines, "line"),
            to: record.to,
            run: record.run,
            state: config.state.clone().unwrap_or_default(),
        });
    }
    let more = source.has_more()?;
    source.rewind()?;
    if !more {
        summary.state.clone_from(&config.state);
        return Err(SendError::SentBefore(Box::new(SentBefore {
            path: source.path().to_owned(),
            lines: record.lines,
            to: record.to,
            directory: record.directory,
            run: record.run,
            state: config.state.clone().unwrap_or_default(),
        })));
    }
    if record.open_bytes > 0 {
        // A last line without its end has got one, or more: it is sent again, under its id.
        record.lines -= 1;
        record.bytes -= record.open_bytes;
        record.open_bytes = 0;
    }
    // What was refused of the lines before was told then.
    record.refused = 0;
    (record.complete, record.since) = (false, None);
    Ok(resume(config, source, &record)?.map(|cover| (record, cover)))
}

/// A growing file: each file its path comes to lead to is a run of its own.
fn follow(
    config: &SendConfig,
    path: &Path,
    stop: &Shutdown,
    summary: &mut Summary,
) -> Result<SendOutcome, SendError> {
    let mut keep = Keep::Nothing;
    loop {
        let Some((about, state, begun)) = begin(config, stop)? else {
            return Ok(SendOutcome::Followed);
        };
        let Some(mut source) = Source::growing(path, stop)? else {
            return Ok(SendOutcome::Followed);
        };
        let mut go_on = None;
        let written = state.as_ref().and_then(StateFile::written);
        // What was followed here until now is done, whatever lies there next.
        if let Some(record) = begun
            && keep == Keep::Nothing
        {
            if let Some(cover) = resume(config, &mut source, &record)? {
                go_on = Some((record, cover));
            } else if !record.complete
                && let Some((rotated, cover)) = rotated(config, path, &record, written, stop)?
            {
                tracing::warn!("finishing {} first", rotated.path().display());
                source = rotated;
                go_on = Some((record, cover));
            } else {
                if !record.complete {
                    tracing::warn!(
                        "{} was replaced and what it was is gone: its lines after {} are not sent from here; the new file is a new run",
                        path.display(),
                        record.lines
                    );
                }
                source = match Source::growing(path, stop)? {
                    Some(source) => source,
                    None => return Ok(SendOutcome::Followed),
                };
            }
        }
        if let Some((record, _)) = &mut go_on {
            record.complete = false;
        }
        let run = Run::new(config, source, stop, state, about, go_on, keep)?;
        match run.go(summary)?.verdict {
            SendOutcome::Complete => keep = Keep::Former,
            SendOutcome::Stopped => return Ok(SendOutcome::Followed),
            other => return Ok(other),
        }
    }
}

/// What a followed file is called by now, if it is still in its directory: under another name, or as
/// a copy of a file that was cut short. A copy is no older than the run's last word (`written`).
fn rotated(
    config: &SendConfig,
    path: &Path,
    record: &Record,
    written: Option<SystemTime>,
    stop: &Shutdown,
) -> Result<Option<(Source, Cover)>, SendError> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    let Ok(entries) = std::fs::read_dir(dir.unwrap_or(Path::new("."))) else {
        return Ok(None);
    };
    let own = std::fs::metadata(path).map(|metadata| identity(&metadata));
    for entry in entries.flatten() {
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        let identity = identity(&metadata);
        let renamed = identity == (record.device, record.inode);
        let copy = || {
            let made = metadata.created().ok();
            metadata.len() >= record.checked_bytes && made >= written && made.is_some()
        };
        if !metadata.is_file() || own.as_ref().is_ok_and(|own| *own == identity) {
            continue;
        }
        if (renamed || record.bytes > 0 && copy())
            && let Ok(mut source) = Source::file(&entry.path(), stop)
            && let Some(cover) = resume(config, &mut source, record)?
        {
            return Ok(Some((source, cover)));
        }
    }
    Ok(None)
}

/// What the server says of itself, the state file, and the run in it for the server's data
/// directory.
type Begun = (About, Option<StateFile>, Option<Record>);

/// Gets them; `None`: stopped meanwhile.
fn begin(config: &SendConfig, stop: &Shutdown) -> Result<Option<Begun>, SendError> {
    let state = config.state.as_deref().map(StateFile::open).transpose()?;
    let Some(about) = about(config, stop)? else {
        return Ok(None);
    };
    let (Some(mut state), Some(path)) = (state, &config.state) else {
        return Ok(Some((about, None, None)));
    };
    let (kind, name) = kind_of(&config.ids);
    let same = |record: &Record| record.ids == kind && name.is_none_or(|name| *name == record.run);
    let record = state.take(
        about.directory,
        &without_credentials(&config.to),
        |record| !record.complete || same(record),
    );
    if let Some(record) = &record {
        if record.complete && config.repeat == Repeat::Again {
            return Ok(Some((about, Some(state), None)));
        }
        if !same(record) {
            return Err(SendError::OtherIds {
                state: path.clone(),
                begun: shown_ids(&record.ids, &record.run),
                asked: shown_ids(kind, name.map_or("", String::as_str)),
            });
        }
    }
    Ok(Some((about, Some(state), record)))
}

/// Asks the server for the name of its data directory, as patiently as events are sent; `None`:
/// stopped meanwhile.
fn about(config: &SendConfig, stop: &Shutdown) -> Result<Option<About>, SendError> {
    let failed = |reason| SendError::Server {
        url: config.to.clone(),
        reason,
    };
    let poster = Poster::asking(config);
    let (mut pause, began, mut told) = (deliver::PAUSE_FIRST, Instant::now(), false);
    loop {
        let (reason, after) = match poster.about() {
            Ok(about) => return Ok(Some(about)),
            Err(Answer::Again { reason, after, .. }) => (reason, after),
            Err(Answer::Hopeless { reason }) => return Err(failed(reason)),
            Err(_) => return Ok(Some(About::default())),
        };
        let silent = began.elapsed();
        let Some(wait) = deliver::pause_before_retry(config.retry_for, silent, after, pause) else {
            return Err(failed(deliver::gave_up(&reason, config.retry_for)));
        };
        if !std::mem::replace(&mut told, true) {
            tracing::warn!("{}: {reason}; trying again", config.to);
        }
        pause = (pause * 2).min(deliver::PAUSE_MAX);
        if stop.wait(wait) {
            return Ok(None);
        }
    }
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
