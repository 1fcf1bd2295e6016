//! How a send ended, for people and for programs. The last line can't be mistaken for success.

use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::HumanCount;
use serde_json::json;

use super::error::SendError;
use super::settle::Applied;
use super::tally::Counts;
use crate::cli::Span;
use crate::cli::exit::Exit;
use crate::cli::output::counted;

/// What `send` did.
#[derive(Debug)]
pub struct Summary {
    /// What was counted by this process.
    pub counts: Counts,
    /// Lines refused in earlier attempts of the same run.
    pub refused_earlier: u64,
    /// Lines acknowledged in earlier attempts of the same run; 0: it began here.
    pub lines_earlier: u64,
    /// The input's lines up to here are acknowledged.
    pub lines: u64,
    /// What the ids are made of; empty: none.
    pub run: String,
    /// How it ended.
    pub verdict: SendOutcome,
    /// Kept to go on with the run.
    pub state: Option<PathBuf>,
    /// Where refused lines were written.
    pub rejects: Option<PathBuf>,
    /// Whether what was sent is in the totals.
    pub applied: Applied,
    /// Lines that were accepted, but not counted: an id that names another event, an overflow.
    pub rejected: u64,
    /// How long to wait for `applied`; `None`: as long as it takes.
    pub wait: Option<Duration>,
    /// How long it took.
    pub elapsed: Duration,
}

/// How a send ended.
#[derive(Debug)]
pub enum SendOutcome {
    /// The whole input was acknowledged.
    Complete,
    /// Asked to stop before the end.
    Stopped,
    /// Asked to stop while following: there is no other end.
    Followed,
    /// It could not go on.
    Failed(SendError),
}

impl Summary {
    /// The exit code.
    pub fn exit(&self) -> Exit {
        match self.verdict {
            SendOutcome::Failed(SendError::SentBefore(_) | SendError::Edited { .. }) => Exit::Usage,
            SendOutcome::Failed(_) | SendOutcome::Stopped => Exit::Failed,
            _ if self.applied == Applied::Gone => Exit::Failed,
            _ if self.refused() > 0 || self.rejected > 0 => Exit::Refused,
            SendOutcome::Complete | SendOutcome::Followed => Exit::Done,
        }
    }

    /// Lines refused in the whole run.
    pub fn refused(&self) -> u64 {
        self.refused_earlier + self.counts.refused
    }

    /// One JSON object.
    pub fn to_json(&self) -> String {
        let error = match &self.verdict {
            SendOutcome::Failed(error) => Some(with_causes(error)),
            _ => None,
        };
        let outcome = match (&self.verdict, self.exit()) {
            (SendOutcome::Failed(SendError::SentBefore(_)), _) => "sentBefore",
            (SendOutcome::Failed(SendError::Edited { .. }), _) => "edited",
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
            "pending": self.describe_applied_sums(),
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

    /// Whether it came as far as to have something to go on from.
    fn began(&self) -> bool {
        let nothing_read = self.run.is_empty() && self.lines == 0 && self.counts.requests == 0;
        !(nothing_read && matches!(self.verdict, SendOutcome::Failed(_)))
    }

    /// Why what was sent may not be in the totals yet; `None`: it is, or it was not asked.
    fn describe_applied_sums(&self) -> Option<String> {
        match &self.applied {
            Applied::NotAsked | Applied::Yes => None,
            Applied::NotYet => {
                let wait = Span(self.wait);
                Some(format!("not applied yet after {wait}: the totals will follow"))
            }
            Applied::Elsewhere => Some(
                "not applied: this server applies nothing itself (--no-process); run `tallyline process` on its data directory".to_owned(),
            ),
            Applied::Gone => Some(
                "not applied, and it will not be: a segment of it is missing or corrupt; the server's /readyz says which".to_owned(),
            ),
            Applied::Unknown(reason) => {
                Some(format!("whether it is applied is not known: {reason}"))
            }
        }
    }

    fn refused_where(&self) -> String {
        match &self.rejects {
            Some(path) => format!("see {}", path.display()),
            None => "--rejects FILE keeps them".to_owned(),
        }
    }

    fn how_to_go_on(&self) -> String {
        match &self.state {
            Some(_) => "run the same command again to go on from there".to_owned(),
            None => format!(
                "no state was kept: what comes after line {} was not acknowledged",
                HumanCount(self.lines)
            ),
        }
    }
}

/// A path in JSON: what is not UTF-8 is shown as U+FFFD.
fn shown(path: Option<&Path>) -> Option<String> {
    path.map(|path| path.display().to_string())
}

/// The error with what caused it, on one line.
fn with_causes(error: &SendError) -> String {
    let mut words = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        let _infallible = write!(words, ": {error}");
        source = error.source();
    }
    words
}

impl fmt::Display for Summary {
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
            return write!(f, "NOT SENT: all of it was sent before");
        }
        if let SendOutcome::Failed(SendError::Edited { .. }) = &self.verdict {
            return write!(f, "NOT SENT: it was changed since it was sent before");
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
            write!(about, ", gone on with after line {earlier}")?;
        }
        writeln!(f, "{about}")?;
        if doubtful > 0 {
            writeln!(
                f,
                "up to {} may be counted twice: sent without ids, and no answer told what became of them",
                counted(doubtful, "event")
            )?;
        }
        if let Some(words) = self.describe_applied_sums() {
            writeln!(f, "{words}")?;
        }
        let lines = counted(self.lines, "line");
        let refused = HumanCount(self.refused());
        match &self.verdict {
            SendOutcome::Failed(_) if self.lines == 0 => {
                write!(
                    f,
                    "FAILED: nothing was acknowledged; {}",
                    self.how_to_go_on()
                )
            }
            SendOutcome::Failed(_) => write!(
                f,
                "FAILED: not everything was sent; acknowledged: {lines}, {refused} of them refused; {}",
                self.how_to_go_on()
            ),
            SendOutcome::Stopped => write!(
                f,
                "STOPPED before the end; acknowledged: {lines}, {refused} of them refused; {}",
                self.how_to_go_on()
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
                    "REFUSED: all of it, {events} ({place}); nothing was taken"
                )
            }
            SendOutcome::Complete | SendOutcome::Followed if self.refused() > 0 => write!(
                f,
                "REFUSED: {} not taken ({}); all others were",
                counted(self.refused(), "event"),
                self.refused_where()
            ),
            SendOutcome::Followed => {
                let last = HumanCount(self.lines);
                write!(f, "OK: stopped following after line {last}; none refused")
            }
            SendOutcome::Complete if self.lines == 0 => write!(f, "OK: nothing to send"),
            SendOutcome::Complete => write!(f, "OK: {lines} done, none refused"),
        }
    }
}
