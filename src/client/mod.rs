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
mod cover;
mod deliver;
mod error;
mod follow;
mod format;
mod group;
mod ids;
mod input;
mod lines;
mod once;
mod pace;
mod post;
mod reading;
mod ready;
mod rejects;
mod rotation;
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

use self::await_applied::Applied;
use self::cover::Cover;
pub use self::error::{SendError, SentBefore};
pub use self::ready::{NotReady, wait_until_ready};
pub use self::summary::{SendOutcome, SendSummary};
pub use self::tally::Counts;
pub use self::totals::{User, totals};
use crate::shutdown::Shutdown;

use self::input::InputSource;
use self::once::send_once;
use self::post::{About, Answer, Poster};
use self::rejects::Keep;
use self::rotation::Search;
use self::run::Run;
pub(crate) use self::run::without_credentials;
use self::state::{Record, StateFile};
use crate::cli::config::{Ids, Input, Repeat, SendConfig};

/// Sends the input to its end, to a failure (which also requests `stop`), or until `stop`.
pub fn send(config: &SendConfig, stop: &Shutdown) -> SendSummary {
    let began = Instant::now();
    let mut summary = SendSummary {
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
        Input::File(path) => InputSource::file(path, stop)
            .and_then(|source| send_once(config, source, stop, &mut summary)),
        Input::Stdin => InputSource::stream(std::io::stdin(), stop)
            .and_then(|source| send_once(config, source, stop, &mut summary)),
    };
    summary.verdict = verdict.unwrap_or_else(SendOutcome::Failed);
    summary.elapsed = began.elapsed();
    summary
}

/// Sends a growing file. Each file that its path names in turn is a run of its own.
fn follow(
    config: &SendConfig,
    path: &Path,
    stop: &Shutdown,
    summary: &mut SendSummary,
) -> Result<SendOutcome, SendError> {
    let mut keep = Keep::Nothing;
    loop {
        let Some((about, state, begun)) = begin(config, stop)? else {
            return Ok(SendOutcome::Followed);
        };
        let Some(mut source) = InputSource::growing(path, stop)? else {
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
                && let Some((rotated, cover)) =
                    Search::new(config, path, &record, stop).of_followed(written)
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
                source = match InputSource::growing(path, stop)? {
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
    source: &mut InputSource,
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
fn refuse_own(
    config: &SendConfig,
    source: &mut InputSource,
    about: &About,
) -> Result<(), SendError> {
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
