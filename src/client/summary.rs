//! The summary of a send, as text and as JSON. The last line of the text states success or failure.

use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::HumanCount;
use serde_json::json;

use super::await_applied::Applied;
use super::error::SendError;
use super::tally::Counts;
use crate::cli::Span;
use crate::cli::exit::Exit;
use crate::cli::output::counted;

/// The summary of a send.
#[derive(Debug)]
pub struct SendSummary {
    /// Counts of this process.
    pub counts: Counts,
    /// Number of lines refused in earlier attempts of the run.
    pub refused_earlier: u64,
    /// Number of lines acknowledged in earlier attempts of the run; 0 for a new run.
    pub lines_earlier: u64,
    /// Number of lines from the beginning of the input that are acknowledged.
    pub lines: u64,
    /// Prefix of the run's ids; empty: no ids.
    pub run: String,
    /// How the send ended.
    pub verdict: SendOutcome,
    /// State file that remains, to continue the run; `None`: none remains.
    pub state: Option<PathBuf>,
    /// File of refused lines.
    pub rejects: Option<PathBuf>,
    /// Whether the sent events are in the totals.
    pub applied: Applied,
    /// Number of accepted events that are not counted: an id of another event, or an overflow.
    pub rejected: u64,
    /// Maximum time to wait for `applied`; `None`: no limit.
    pub wait: Option<Duration>,
    /// Duration of the send.
    pub elapsed: Duration,
}

/// How a send ended.
#[derive(Debug)]
pub enum SendOutcome {
    /// The whole input was acknowledged.
    Complete,
    /// Stopped before the end of the input.
    Stopped,
    /// Stopped while following, which has no other end.
    Followed,
    /// The run ended early; acknowledged lines stay acknowledged.
    Failed(SendError),
}

impl SendSummary {
    /// The exit code of the command.
    pub fn exit(&self) -> Exit {
        match self.verdict {
            SendOutcome::Failed(
                SendError::SentBefore(_) | SendError::Edited { .. } | SendError::OwnSegment { .. },
            ) => Exit::Usage,
            SendOutcome::Failed(_) | SendOutcome::Stopped => Exit::Failed,
            _ if self.applied == Applied::Gone => Exit::Failed,
            _ if self.refused() > 0 || self.rejected > 0 => Exit::Refused,
            SendOutcome::Complete | SendOutcome::Followed => Exit::Done,
        }
    }

    /// Number of lines refused in the whole run.
    pub fn refused(&self) -> u64 {
        self.refused_earlier + self.counts.refused
    }

    /// The summary as one JSON object.
    pub fn to_json(&self) -> String {
        let error = match &self.verdict {
            SendOutcome::Failed(error) => Some(with_causes(error)),
            _ => None,
        };
        let outcome = match (&self.verdict, self.exit()) {
            (SendOutcome::Failed(SendError::SentBefore(_)), _) => "sentBefore",
            (SendOutcome::Failed(SendError::Edited { .. }), _) => "edited",
            (SendOutcome::Failed(SendError::OwnSegment { .. }), _) => "ownSegment",
            (SendOutcome::Failed(_), _) => "failed",
            (SendOutcome::Stopped, _) => "stopped",
            (_, Exit::Refused) => "refused",
            _ => "done",
        };
        json!({
            "outcome": outcome,
            "accepted": self.counts.accepted,
            "refused": self.counts.refused,
            "rejected": self.rejected,
            "applied": self.applied == Applied::Yes,
            "pending": self.why_pending(),
            "maybeTwice": self.counts.doubtful,
            "lines": self.lines,
            "linesEarlier": self.lines_earlier,
            "refusedEarlier": self.refused_earlier,
            "requests": self.counts.requests,
            "retries": self.counts.retries,
            "seconds": self.elapsed.as_secs_f64(),
            "run": self.run,
            "state": shown(self.state.as_deref()),
            "rejects": shown(self.rejects.as_deref()),
            "error": error,
        })
        .to_string()
    }

    /// Whether a run was begun that can be continued.
    fn began(&self) -> bool {
        let nothing_read = self.run.is_empty() && self.lines == 0 && self.counts.requests == 0;
        !(nothing_read && matches!(self.verdict, SendOutcome::Failed(_)))
    }

    /// Why sent events may not be in the totals; `None`: they are, or it was not requested.
    fn why_pending(&self) -> Option<String> {
        match &self.applied {
            Applied::NotAsked | Applied::Yes => None,
            Applied::NotYet => {
                let wait = Span(self.wait);
                Some(format!("not applied yet after {wait}; the server applies it later"))
            }
            Applied::Elsewhere => Some(
                "not applied: the server does not apply events (--no-process); run `tallyline process` on its data directory".to_owned(),
            ),
            Applied::Gone => Some(
                "not applied, and will not be: a segment of it is missing or corrupt; see the server's /readyz".to_owned(),
            ),
            Applied::Unknown(reason) => {
                Some(format!("unknown whether it is applied: {reason}"))
            }
        }
    }

    fn refused_where(&self) -> String {
        match &self.rejects {
            Some(path) => format!("see {}", path.display()),
            None => "use --rejects FILE to write them to a file".to_owned(),
        }
    }

    fn how_to_continue(&self) -> String {
        match &self.state {
            Some(_) => "run the same command again to continue".to_owned(),
            None => format!(
                "there is no state file: lines after line {} were not acknowledged",
                HumanCount(self.lines)
            ),
        }
    }

    /// The last line: success or failure of the send.
    fn write_verdict(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let accepted = self.counts.accepted;
        let lines = counted(self.lines, "line");
        let refused = HumanCount(self.refused());
        match &self.verdict {
            SendOutcome::Failed(SendError::NoEvents { .. }) => {
                write!(f, "FAILED: {lines} sent, all refused; nothing was stored")
            }
            SendOutcome::Failed(_) if self.lines == 0 => {
                write!(
                    f,
                    "FAILED: nothing was acknowledged; {}",
                    self.how_to_continue()
                )
            }
            SendOutcome::Failed(_) => write!(
                f,
                "FAILED: not everything was sent; acknowledged: {lines}, {refused} of them refused; {}",
                self.how_to_continue()
            ),
            SendOutcome::Stopped => write!(
                f,
                "STOPPED before the end; acknowledged: {lines}, {refused} of them refused; {}",
                self.how_to_continue()
            ),
            SendOutcome::Complete if self.applied == Applied::Gone => write!(
                f,
                "FAILED: {lines} were acknowledged, but not all of them will be counted"
            ),
            SendOutcome::Complete if self.rejected > 0 => write!(
                f,
                "REJECTED: {} accepted but not counted, {refused} refused ({})",
                counted(self.rejected, "event"),
                self.refused_where()
            ),
            SendOutcome::Complete
                if self.refused() > 0 && accepted == 0 && self.lines_earlier == 0 =>
            {
                let (events, place) = (counted(self.refused(), "event"), self.refused_where());
                write!(
                    f,
                    "REFUSED: all of it, {events} ({place}); nothing was stored"
                )
            }
            SendOutcome::Complete | SendOutcome::Followed if self.refused() > 0 => write!(
                f,
                "REFUSED: {} not stored ({}); all others were",
                counted(self.refused(), "event"),
                self.refused_where()
            ),
            SendOutcome::Followed => {
                let last = HumanCount(self.lines);
                write!(f, "OK: stopped following after line {last}; none refused")
            }
            SendOutcome::Complete if self.lines == 0 => write!(f, "OK: nothing to send"),
            SendOutcome::Complete => write!(f, "OK: {lines} acknowledged, none refused"),
        }
    }
}

/// A path in JSON. Bytes that are not UTF-8 become U+FFFD.
fn shown(path: Option<&Path>) -> Option<String> {
    path.map(|path| path.display().to_string())
}

/// The error and its causes, on one line.
fn with_causes(error: &SendError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        let _infallible = write!(text, ": {error}");
        source = error.source();
    }
    text
}

impl fmt::Display for SendSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts {
            accepted,
            doubtful,
            requests,
            retries,
            ..
        } = self.counts;
        let seconds = self.elapsed.as_secs_f64();
        if let SendOutcome::Failed(SendError::SentBefore(_)) = &self.verdict {
            return write!(f, "NOT SENT: the whole file was sent before");
        }
        if let SendOutcome::Failed(SendError::Edited { .. }) = &self.verdict {
            return write!(f, "NOT SENT: the file was changed since it was sent");
        }
        if let SendOutcome::Failed(SendError::OwnSegment { .. }) = &self.verdict {
            return write!(
                f,
                "NOT SENT: the file is a segment of the server's own directory"
            );
        }
        if !self.began() {
            return write!(f, "FAILED: nothing was sent");
        }
        let mut about = format!(
            "{} accepted in {seconds:.1} s, {}",
            counted(accepted, "event"),
            counted(requests, "request")
        );
        if retries > 0 {
            write!(about, ", {} sent again", HumanCount(retries))?;
        }
        if !self.run.is_empty() {
            write!(about, "; run {}", self.run)?;
        }
        if self.lines_earlier > 0 {
            let earlier = HumanCount(self.lines_earlier);
            write!(about, ", continued after line {earlier}")?;
        }
        writeln!(f, "{about}")?;
        if doubtful > 0 {
            writeln!(
                f,
                "up to {} may be counted twice: they have no ids, and the answers to their requests were lost",
                counted(doubtful, "event")
            )?;
        }
        if let Some(text) = self.why_pending() {
            writeln!(f, "{text}")?;
        }
        self.write_verdict(f)
    }
}
