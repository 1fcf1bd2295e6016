//! The sender: streams an input to a server until every line is answered, and reports the result.
//!
//! ```text
//!  input -> lines -> batches =bounded channel=> senders (one thread, one connection each)
//!             |                                    | ids, POST, retry, halve
//!             v                                    v
//!      state: checksum ahead              tally: counts, acknowledged up to -> state, rejects
//! ```
//!
//! The calling thread reads and splits the input ([`lines`]). Each sender thread adds ids to events
//! and delivers whole batches ([`deliver`]). Memory is bounded: a batch has at most 100,000 lines and
//! about 1 MiB, and the channel holds as many batches as there are connections.
//!
//! **Counted once.** An event without an id gets one made of the run's name and the line's number
//! ([`ids`]). A request whose answer was lost is sent again unchanged, and the processor counts each id
//! once. The run's name and progress are kept in a state file ([`state`]), so the same holds across
//! Ctrl-C, kill -9 and crashes of either side. A file that was sent in full is not sent again as new
//! events, and a file that has grown is sent from where it ended.
//!
//! **Applied.** When everything is acknowledged, the sender waits until it is in the totals, and lists
//! the lines that were rejected when they were applied (`await_applied`).
//!
//! **Failure.** An error stops all threads after their current requests. The state records how many
//! lines from the beginning are acknowledged, and the last line of the summary says FAILED.

#![expect(
    clippy::disallowed_methods,
    reason = "its input, its state and its rejects are files of a process that has no database open"
)]

mod agent;
mod array;
mod await_applied;
mod deliver;
mod error;
mod follow;
mod format;
mod ids;
mod input;
mod lines;
mod post;
mod reading;
mod ready;
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
use std::time::{Duration, Instant, SystemTime};

pub use self::await_applied::Applied;
pub use self::error::{SendError, SentBefore};
pub use self::ready::{NotReady, wait_until_ready};
pub use self::summary::{SendOutcome, Summary};
pub use self::tally::Counts;
pub use self::totals::{User, totals};
use crate::shutdown::Shutdown;

use self::await_applied::await_applied;
use self::input::Source;
use self::post::{About, Answer, Poster};
use self::reading::identity;
use self::rejects::Keep;
pub(crate) use self::run::without_credentials;
use self::run::{Finished, Run};
use self::state::{Cover, Record, StateFile};
use crate::cli::config::{Ids, Input, Repeat, SendConfig};
use crate::cli::output::counted;

/// Sends the input to its end, to a failure (which also requests `stop`), or until `stop`.
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
        Input::File(path) => Source::file(path, stop)
            .and_then(|source| send_once(config, source, stop, &mut summary)),
        Input::Stdin => Source::stream(std::io::stdin(), stop)
            .and_then(|source| send_once(config, source, stop, &mut summary)),
    };
    summary.verdict = verdict.unwrap_or_else(SendOutcome::Failed);
    summary.elapsed = began.elapsed();
    summary
}

/// Sends one input that has an end, in one run.
fn send_once(
    config: &SendConfig,
    mut source: Source,
    stop: &Shutdown,
    summary: &mut Summary,
) -> Result<SendOutcome, SendError> {
    let Some((about, state, begun)) = begin(config, stop)? else {
        return Ok(SendOutcome::Stopped);
    };
    refuse_own(config, &mut source, &about)?;
    let begun = match begun {
        None => None,
        Some(record) if record.complete => continue_complete(config, &mut source, record, summary)?,
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
        let settled = await_applied(config, stop, &record, own);
        summary.applied = settled.applied;
        summary.rejected = settled.rejected.len() as u64;
        rejects.write(&settled.rejected, "rejected")?;
    }
    Ok(verdict)
}

/// Continues a complete run with the lines that were added to its file since. Fails if the file is
/// unchanged, or if lines that were sent were changed, because they may count again. With `--again`
/// the answer is `None`: the file is sent as a new run.
fn continue_complete(
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
        // The last line had no line end and may have grown. It is sent again, with the same id.
        record.lines -= 1;
        record.bytes -= record.open_bytes;
        record.open_bytes = 0;
    }
    // Lines refused before were reported before.
    record.refused = 0;
    (record.complete, record.since) = (false, None);
    Ok(resume(config, source, &record)?.map(|cover| (record, cover)))
}

/// Sends a growing file. Each file that its path names in turn is a run of its own.
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
        let mut resumed = None;
        let written = state.as_ref().and_then(StateFile::written);
        // First the rest of the file that was followed before, whichever file is at the path now.
        if let Some(record) = begun
            && keep == Keep::Nothing
        {
            if let Some(cover) = resume(config, &mut source, &record)? {
                resumed = Some((record, cover));
            } else if !record.complete
                && let Some((rotated, cover)) = rotated(config, path, &record, written, stop)?
            {
                tracing::warn!("sending the rest of {} first", rotated.path().display());
                source = rotated;
                resumed = Some((record, cover));
            } else {
                if !record.complete {
                    tracing::warn!(
                        "{} was replaced and its former content was not found: lines after line {} of it are not sent; the new file is a new run",
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
        if let Some((record, _)) = &mut resumed {
            record.complete = false;
        }
        refuse_own(config, &mut source, &about)?;
        let run = Run::new(config, source, stop, state, about, resumed, keep)?;
        match run.go(summary)?.verdict {
            SendOutcome::Complete => keep = Keep::Existing,
            SendOutcome::Stopped => return Ok(SendOutcome::Followed),
            other => return Ok(other),
        }
    }
}

/// Finds a followed file after its rotation, in the same directory: renamed, or as the copy of a file
/// that was truncated. A copy is created after the last write of the state (`written`).
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

/// The server's status, the state file, and the run in it for the server's data directory.
type Begun = (About, Option<StateFile>, Option<Record>);

/// Reads them. `None`: stopped meanwhile.
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

/// Requests the id of the server's data directory, with the same retries as events. `None`: stopped
/// meanwhile.
fn about(config: &SendConfig, stop: &Shutdown) -> Result<Option<About>, SendError> {
    let failed = |reason| SendError::Server {
        url: config.to.clone(),
        reason,
    };
    let poster = Poster::for_get(config);
    let (mut pause, began, mut warned) = (deliver::PAUSE_FIRST, Instant::now(), false);
    loop {
        let (reason, after) = match poster.about() {
            Ok(about) => return Ok(Some(about)),
            Err(Answer::Retry { reason, after, .. }) => (reason, after),
            Err(Answer::Failed { reason }) => return Err(failed(reason)),
            Err(_) => return Ok(Some(About::default())),
        };
        let silent = began.elapsed();
        let Some(wait) = deliver::pause_before_retry(config.retry_for, silent, after, pause) else {
            return Err(failed(deliver::gave_up(&reason, config.retry_for)));
        };
        if !std::mem::replace(&mut warned, true) {
            if poster.is_plain_http() {
                let reason =
                    "the server answers plain HTTP on this port, not TLS; write http:// in --to";
                return Err(failed(reason.to_owned()));
            }
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
        _ => "generated ids".to_owned(),
    }
}

/// Advances `source` to where the run ended; `None` if it is not the same input.
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
            "the run was interrupted and has no ids: events after line {} may have been counted and are sent again",
            record.lines
        );
    }
    Ok(same.then_some(cover))
}

/// Fails if the input is a segment of the server's data directory, unless it is to be sent again.
fn refuse_own(config: &SendConfig, source: &mut Source, about: &About) -> Result<(), SendError> {
    match config.repeat {
        Repeat::Again => Ok(()),
        Repeat::Refuse => source.refuse_segments_of(about.directory),
    }
}

fn input_error(path: &Path, source: std::io::Error) -> SendError {
    SendError::Input {
        path: path.to_owned(),
        source,
    }
}
