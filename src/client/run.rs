//! One run over one input: the calling thread reads, other threads send.
//!
//! The state that covers a line is durable before the line is passed to a sender (see
//! [`state`](super::state)). The run is complete when the input has ended and every batch was
//! delivered. Its state then records that, or is removed if it is not needed; otherwise it records how
//! many lines from the beginning are acknowledged.

use std::path::PathBuf;

use crossbeam_channel::{Sender, bounded, select};
use indicatif::{ProgressBar, ProgressStyle};

use super::await_applied::OwnLines;
use super::cover::Cover;
use super::deliver::{Deliverer, Halt};
use super::error::SendError;
use super::format::Format;
use super::ids::{IdMaker, run_name};
use super::input::InputSource;
use super::lines::{Batch, Batches, Checksum, Place};
use super::pace::{Pace, lines_max};
use super::post::{About, Poster};
use super::reading::identity;
use super::rejects::{Keep, Rejects};
use super::state::{Record, StateFile};
use super::summary::{SendOutcome, SendSummary};
use super::tally::{Ended, Tally};
use super::{input_error, kind_of};
use crate::cli::config::{Input, SendConfig};
use crate::cli::logging;
use crate::cli::output::counted;
use crate::shutdown::Shutdown;

/// An input is not sent further after this many refused lines at its beginning.
const REFUSED_AT_FIRST_MAX: u64 = 1_000;
/// One run over one input, new or continued.
pub(super) struct Run<'a> {
    config: &'a SendConfig,
    stop: &'a Shutdown,
    batches: Batches,
    cover: Cover,
    tally: Tally,
    ids: IdMaker,
    bar: ProgressBar,
    began_at: Record,
}

impl<'a> Run<'a> {
    /// Prepares a run. Nothing is sent yet.
    pub(super) fn new(
        config: &'a SendConfig,
        source: InputSource,
        stop: &'a Shutdown,
        state: Option<StateFile>,
        about: About,
        begun: Option<(Record, Cover)>,
        keep: Keep,
    ) -> Result<Self, SendError> {
        let keep = if begun.is_some() {
            Keep::Existing
        } else {
            keep
        };
        let rejects = Rejects::open(config.rejects.as_ref(), keep)?;
        let (mut record, cover) = match begun {
            Some(begun) => begun,
            None => (new_record(config, &source)?, Cover::default()),
        };
        record.settled = false;
        record.directory = about.directory.or(record.directory);
        record.to = without_credentials(&config.to);
        record.since = record.since.or(about.position);
        let checksum = match (&state, source.open_file()) {
            (Some(_), None) => Checksum::Kept,
            _ => Checksum::Apart,
        };
        let start = Place {
            lines: record.lines,
            bytes: record.bytes,
            crc32: record.checked_crc32,
            raw_bytes: 0,
            open_bytes: record.open_bytes,
            in_array: record.in_array,
        };
        let bar = progress(&source, record.bytes);
        let batches = Batches::new(source, lines_max(config), start, checksum);
        let ids = IdMaker::new(&record.run);
        let began_at = record.clone();
        let tally = Tally::new(record, state, rejects, checksum, bar.clone(), stop.clone());
        Ok(Self {
            config,
            stop,
            batches,
            cover,
            tally,
            ids,
            bar,
            began_at,
        })
    }

    /// Reads the input, sends it with threads, and joins them.
    pub(super) fn go(mut self, summary: &mut SendSummary) -> Result<Finished, SendError> {
        let connections = self.config.connections.get() as usize;
        let (batches, queue) = bounded::<Batch>(connections);
        let (config, stop, tally, ids) = (self.config, self.stop, &self.tally, &self.ids);
        let read = std::thread::scope(|scope| {
            for number in 1..=connections {
                let queue = queue.clone();
                let sender = move || {
                    let poster = Poster::new(config);
                    let deliverer = Deliverer {
                        config,
                        ids,
                        tally,
                        stop,
                        poster,
                    };
                    for batch in queue {
                        if stop.requested() {
                            return;
                        }
                        match deliverer.deliver(&batch) {
                            Ok(()) => {}
                            Err(Halt::Stopped) => return,
                            Err(Halt::Failed(error)) => return tally.fail(error),
                        }
                    }
                };
                let thread = std::thread::Builder::new().name(format!("send-{number}"));
                if let Err(error) = thread.spawn_scoped(scope, sender) {
                    tally.fail(SendError::Thread(error));
                    break;
                }
            }
            drop(queue);
            let read = read(
                config,
                stop,
                tally,
                &mut self.cover,
                &mut self.batches,
                &batches,
            );
            drop(batches);
            read.unwrap_or_else(|error| {
                tally.fail(error);
                None
            })
        });
        self.bar.finish_and_clear();
        let ended = self.tally.end();
        conclude(ended, read, &self.began_at, self.batches.source(), summary)
    }
}

/// The result of a run that did not fail.
pub(super) struct Finished {
    pub(super) verdict: SendOutcome,
    pub(super) record: Record,
    pub(super) rejects: Rejects,
    pub(super) own: OwnLines,
}

/// Writes the state before the first line is sent. A compressed file is covered as a whole.
fn begin_state(tally: &Tally, cover: &mut Cover, batches: &Batches) -> Result<(), SendError> {
    if let Some((file, true)) = batches.source().open_file() {
        let all = file
            .metadata()
            .and_then(|metadata| cover.extend_to(file, metadata.len()));
        all.map_err(|error| input_error(batches.source().path(), error))?;
    }
    match batches.source().open_file() {
        Some(_) => tally.covered(cover.checked()),
        None => tally.begin_state(),
    }
}

/// Passes all batches to the senders. Returns their number if the input ended.
fn read(
    config: &SendConfig,
    stop: &Shutdown,
    tally: &Tally,
    cover: &mut Cover,
    batches: &mut Batches,
    queue: &Sender<Batch>,
) -> Result<Option<u64>, SendError> {
    let covered = config.state.is_some();
    if covered {
        begin_state(tally, cover, batches)?;
    }
    let mut trial = is_tried(config, tally);
    let mut refused = 0;
    let mut pace = config.rate.map(|rate| Pace::new(rate.get()));
    let mut handed = 0;
    while let Some(batch) = batches.next()? {
        if stop.requested() {
            return Ok(None);
        }
        if trial && refused >= REFUSED_AT_FIRST_MAX {
            return Err(SendError::NoEvents {
                path: batches.source().path().to_owned(),
                lines: counted(refused, "line"),
            });
        }
        if covered
            && let Some((file, false)) = batches.source().open_file()
            && batch.end.bytes > cover.checked().0
        {
            cover
                .extend(file, batch.end.bytes)
                .map_err(|error| input_error(batches.source().path(), error))?;
            tally.covered(cover.checked())?;
        }
        if let Some(pace) = &mut pace
            && pace.wait(batch.lines.len() as u64, stop)
        {
            return Ok(None);
        }
        select! {
            send(queue, batch) -> sent => if sent.is_err() {
                return Ok(None);
            },
            recv(stop.channel()) -> _ => return Ok(None),
        }
        handed += 1;
        if trial {
            let Some(counts) = tally.after(handed) else {
                return Ok(None);
            };
            trial = counts.accepted == 0;
            refused = counts.refused;
        }
    }
    Ok((!stop.requested()).then_some(handed))
}

/// Whether batches are sent one at a time until an event is accepted, so that an input without events
/// is not sent to its end. A continued run had events before; a followed file may get some later; with
/// `--rejects` the invalid lines are wanted.
fn is_tried(config: &SendConfig, tally: &Tally) -> bool {
    let followed = matches!(config.input, Input::Follow(_));
    !followed && config.rejects.is_none() && tally.is_new()
}

/// Ends a finished or stopped run.
fn conclude(
    ended: Ended,
    handed: Option<u64>,
    began_at: &Record,
    source: &InputSource,
    summary: &mut SendSummary,
) -> Result<Finished, SendError> {
    let Ended {
        counts,
        mut record,
        failure,
        state,
        rejects,
        own,
        batches,
    } = ended;
    summary.counts += counts;
    summary.lines_earlier += began_at.lines;
    summary.refused_earlier += began_at.refused;
    summary.lines += record.lines;
    summary.run.clone_from(&record.run);
    let complete = handed == Some(batches);
    summary.state = state.as_ref().map(|state| state.path().to_owned());
    let no_events = matches!(failure, Some(SendError::NoEvents { .. }));
    if no_events && let Some(state) = state {
        // Nothing was stored, so the corrected file is a new run.
        state.remove()?;
        summary.state = None;
    } else if complete && let Some(mut state) = state {
        if stays(&record, source) {
            record.complete = true;
            if record.in_array || source.format() == Some(Format::Arrays) {
                // When an array grows, the bytes after its last element are replaced.
                record = covered_to_its_end(record, source)?;
            }
            state.write(&record)?;
        } else if failure.is_none() {
            state.remove()?;
            summary.state = None;
        }
    }
    match failure {
        Some(error) => Err(error),
        None => Ok(Finished {
            verdict: if complete {
                SendOutcome::Complete
            } else {
                SendOutcome::Stopped
            },
            record,
            rejects,
            own,
        }),
    }
}

/// Whether the state of a complete run is kept, so that the file is not sent again. It is not needed
/// if ids of the events or of `--source` prevent double counting, with `--no-ids`, for stdin, which
/// cannot be read again, or if nothing was accepted.
fn stays(record: &Record, source: &InputSource) -> bool {
    record.ids == "run" && record.accepted > 0 && source.open_file().is_some()
}

/// The base URL without user name and password.
pub(crate) fn without_credentials(to: &str) -> String {
    match to
        .split_once("://")
        .map(|(scheme, rest)| (scheme, rest.split_once('@')))
    {
        Some((scheme, Some((_, host)))) => format!("{scheme}://{host}"),
        _ => to.to_owned(),
    }
}

/// The record of a plain file, with the checksum over the acknowledged bytes only.
fn covered_to_its_end(mut record: Record, source: &InputSource) -> Result<Record, SendError> {
    if let Some((file, false)) = source.open_file() {
        let mut cover = Cover::default();
        cover
            .extend_to(file, record.bytes)
            .map_err(|error| input_error(source.path(), error))?;
        (record.checked_bytes, record.checked_crc32) = cover.checked();
    }
    Ok(record)
}

fn new_record(config: &SendConfig, source: &InputSource) -> Result<Record, SendError> {
    let (device, inode) = match source.open_file() {
        Some((file, _)) => file
            .metadata()
            .map(|metadata| identity(&metadata))
            .map_err(|error| input_error(source.path(), error))?,
        None => (0, 0),
    };
    let input = source.path();
    Ok(Record {
        run: run_name(&config.ids),
        ids: kind_of(&config.ids).0.to_owned(),
        input: input
            .canonicalize()
            .unwrap_or_else(|_| PathBuf::from(input))
            .display()
            .to_string(),
        device,
        inode,
        lines: 0,
        bytes: 0,
        accepted: 0,
        refused: 0,
        checked_bytes: 0,
        checked_crc32: 0,
        settled: false,
        directory: None,
        to: String::new(),
        complete: false,
        open_bytes: 0,
        in_array: false,
        since: None,
        last: None,
    })
}

/// A progress bar over the bytes of a file, or a spinner if the length is unknown.
fn progress(source: &InputSource, done_bytes: u64) -> ProgressBar {
    let length = match source.open_file() {
        Some((file, _)) if !source.grows() => file.metadata().map(|metadata| metadata.len()).ok(),
        _ => None,
    };
    let (bar, template) = match length {
        Some(length) => (
            ProgressBar::new(length).with_position(done_bytes),
            "{wide_bar} {percent:>3}% {msg}, {eta} left",
        ),
        None => (ProgressBar::no_length(), "{spinner} {elapsed} {msg}"),
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    // A bar belongs to `bars` before it is drawn.
    let bar = logging::bars().add(bar);
    bar.set_message("0 events");
    bar
}
