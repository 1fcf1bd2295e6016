//! Sends an input that has an end: as a new run, or from where its run ended.

use super::await_applied::await_applied;
use super::cover::Cover;
use super::error::{SendError, SentBefore};
use super::input::InputSource;
use super::rejects::Keep;
use super::rotation::{self, Search};
use super::run::{Finished, Run};
use super::state::Record;
use super::summary::{SendOutcome, SendSummary};
use super::{begin, refuse_own, resume};
use crate::cli::config::{Ids, Repeat, SendConfig};
use crate::cli::output::counted;
use crate::shutdown::Shutdown;

/// A run that is continued.
type Begun = (Record, Cover);

/// Sends one input that has an end: as a new run, or where its run ended. If its file was rotated, the
/// lines that were added to the former one are sent first.
pub(super) fn send_once(
    config: &SendConfig,
    mut source: InputSource,
    stop: &Shutdown,
    summary: &mut SendSummary,
) -> Result<SendOutcome, SendError> {
    let Some((mut about, mut state, begun)) = begin(config, stop)? else {
        return Ok(SendOutcome::Stopped);
    };
    refuse_own(config, &mut source, &about)?;
    let mut keep = Keep::Nothing;
    let mut continued = None;
    if let Some(record) = begun {
        if let Some(cover) = resume(config, &mut source, &record)? {
            continued = Some(if record.complete {
                added_lines(config, &mut source, record, summary)?
            } else {
                (record, cover)
            });
        } else {
            let again = config.repeat == Repeat::Again && source.open_file().is_some();
            let rest = if again {
                None
            } else {
                rest_of_rotated(config, &source, record, stop, summary)?
            };
            source.rewind()?;
            let new_lines = again || source.has_more()?;
            if let Some((rotated, rest)) = rest {
                let run = Run::new(config, rotated, stop, state, about, Some(rest), keep)?;
                match finish(config, run, stop, summary)? {
                    SendOutcome::Complete if new_lines => keep = Keep::Existing,
                    ended => return Ok(ended),
                }
                match begin(config, stop)? {
                    Some(begun) => (about, state) = (begun.0, begun.1),
                    None => return Ok(SendOutcome::Stopped),
                }
            } else if !new_lines {
                // The state of the former content is kept: its writer may still have it open.
                summary.state.clone_from(&config.state);
                return Ok(SendOutcome::Complete);
            }
            source.rewind()?;
        }
    }
    let run = Run::new(config, source, stop, state, about, continued, keep)?;
    finish(config, run, stop, summary)
}

/// Sends a run, and waits until its events are applied.
fn finish(
    config: &SendConfig,
    run: Run<'_>,
    stop: &Shutdown,
    summary: &mut SendSummary,
) -> Result<SendOutcome, SendError> {
    let Finished {
        verdict,
        record,
        mut rejects,
        own,
    } = run.go(summary)?;
    if matches!(verdict, SendOutcome::Complete) {
        let settled = await_applied(config, stop, &record, own);
        summary.applied = settled.applied;
        summary.rejected += settled.rejected.len() as u64;
        rejects.write(&settled.rejected, "rejected")?;
    }
    Ok(verdict)
}

/// Continues a complete run with the lines that were added to its file since. Fails if there are none.
fn added_lines(
    config: &SendConfig,
    source: &mut InputSource,
    record: Record,
    summary: &mut SendSummary,
) -> Result<Begun, SendError> {
    if source.has_more()? {
        source.rewind()?;
        let record = reopened(record);
        if let Some(cover) = resume(config, source, &record)? {
            return Ok((record, cover));
        }
        return Err(changed(config, source, &record, summary));
    }
    summary.state.clone_from(&config.state);
    Err(SendError::SentBefore(Box::new(SentBefore {
        path: source.path().to_owned(),
        lines: record.lines,
        to: record.to,
        directory: record.directory,
        run: record.run,
        state: config.state.clone().unwrap_or_default(),
    })))
}

/// A complete run as it was before its end, so that added lines can be sent.
fn reopened(mut record: Record) -> Record {
    if record.open_bytes > 0 {
        // The last line had no line end and may have grown. It is sent again, with the same id.
        record.lines -= 1;
        record.bytes -= record.open_bytes;
        record.open_bytes = 0;
    }
    // Lines refused before were reported before.
    record.refused = 0;
    (record.complete, record.since) = (false, None);
    record
}

/// The rest of the former content of a file that was rotated, if not all of it was sent. Fails if the
/// former content is not found. With `--source`, the ids of the new file's lines would be those of the
/// former one's.
fn rest_of_rotated(
    config: &SendConfig,
    source: &InputSource,
    record: Record,
    stop: &Shutdown,
    summary: &mut SendSummary,
) -> Result<Option<(InputSource, Begun)>, SendError> {
    let search = Search::new(config, source.path(), &record, stop);
    let rotates = source.open_file().is_some() && !matches!(config.ids, Ids::Source(_));
    let Some((mut former, cover)) = rotates.then(|| search.by_name()).flatten() else {
        return Err(changed(config, source, &record, summary));
    };
    tracing::warn!(
        "{} is a new file: its former content is in {}",
        source.path().display(),
        former.path().display()
    );
    if !record.complete {
        return Ok(Some((former, (record, cover))));
    }
    if !former.has_more()? {
        return Ok(None);
    }
    let record = reopened(record);
    match rotation::resume_rotated(config, &mut former, &record) {
        Some(cover) => Ok(Some((former, (record, cover)))),
        None => Err(changed(config, source, &record, summary)),
    }
}

/// The error of an input that does not begin with what its run has sent, because lines may count again.
fn changed(
    config: &SendConfig,
    source: &InputSource,
    record: &Record,
    summary: &mut SendSummary,
) -> SendError {
    let state = config.state.clone().unwrap_or_default();
    if !record.complete {
        return SendError::Changed {
            input: source.path().to_owned(),
            state,
            bytes: record.checked_bytes,
            lines: record.lines,
        };
    }
    summary.state.clone_from(&config.state);
    SendError::Edited {
        path: source.path().to_owned(),
        lines: counted(record.lines, "line"),
        to: record.to.clone(),
        run: record.run.clone(),
        state,
    }
}
