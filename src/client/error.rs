//! The errors of a send.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::cli::output::counted;

/// Why a send failed. Acknowledged lines stay acknowledged; with a state file, the same command
/// continues the run.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The input does not exist.
    #[error("cannot read {}: there is no such file; name the file of events to send, or `-` for stdin", path.display())]
    NoInput {
        /// Path of the input.
        path: PathBuf,
    },
    /// The input could not be opened or read.
    #[error("cannot read {}", path.display())]
    Input {
        /// Path of the input, or `-`.
        path: PathBuf,
        /// As the system call returned it.
        source: io::Error,
    },
    /// The input is a symbolic link whose target does not exist.
    #[error("cannot read {}: it is a symbolic link to {}, which does not exist", path.display(), target.display())]
    Dangling {
        /// Path of the link.
        path: PathBuf,
        /// Target of the link.
        target: PathBuf,
    },
    /// The input is a directory.
    #[error("cannot read {0}: it is a directory; name a file in it, or send all of them: for file in {0}/*.jsonl; do tallyline send \"$file\"; done", path.display())]
    Directory {
        /// Path of the input.
        path: PathBuf,
    },
    /// The input is not a kind of file that can be read.
    #[error("cannot read {}: it is {kind}; name a regular file, a FIFO, or `-` for stdin", path.display())]
    NotAFile {
        /// Path of the input.
        path: PathBuf,
        /// Kind of the file, such as `a directory`.
        kind: &'static str,
    },
    /// The input cannot be followed, because it is not a regular file of lines.
    #[error("cannot follow {}: it is {kind}; --follow reads regular files of one event a line", path.display())]
    NotFollowed {
        /// Path of the input.
        path: PathBuf,
        /// Kind of the file, such as `gzip'd`.
        kind: &'static str,
    },
    /// The input has another format. Nothing was sent.
    #[error("cannot send {}: it looks like {looks_like}; {cure}", path.display())]
    NotEvents {
        /// Path of the input, or `-`.
        path: PathBuf,
        /// Detected format, such as `CSV`.
        looks_like: &'static str,
        /// What to do instead, for the message.
        cure: String,
    },
    /// None of the first lines of the input is an event. Nothing was stored, and the rest was not sent.
    #[error("cannot send {}: none of its first {lines} is a valid event, so the rest was not sent; correct the file and run the same command again, or use --rejects FILE to send all of it and write the invalid lines to FILE", path.display())]
    NoEvents {
        /// Path of the input, or `-`.
        path: PathBuf,
        /// Number of lines that were refused, such as `1,000 lines`.
        lines: String,
    },
    /// A line of the input does not end. The rest was not read.
    #[error("cannot read {} further: line {line} has not ended after {bytes} bytes, and the longest event has {}; name a file of one event a line", path.display(), crate::event::LINE_BYTES_MAX)]
    EndlessLine {
        /// Path of the input, or `-`.
        path: PathBuf,
        /// Number of the line.
        line: u64,
        /// Bytes of it that were read.
        bytes: u64,
    },
    /// The input was sent in full to the same data directory before.
    #[error("{0}")]
    SentBefore(Box<SentBefore>),
    /// The input is a segment of the server's own data directory.
    #[error("cannot send {}: according to its first line it is segment {number} of the data directory of this server, so its events would count again. If the file is missing there, copy it into that directory; to send it as new events, use --again", path.display())]
    OwnSegment {
        /// Path of the input, or `-`.
        path: PathBuf,
        /// The number of the segment.
        number: u64,
    },
    /// Lines of the input that were sent before were changed or removed.
    #[error("cannot send {}: its content differs from what was sent before ({lines} to {to}, run {run}, according to {}), and lines that were counted would count again. If the file was rotated, keep the former content beside it under a name with a number or a date, such as {}.1, plain or gzip'd; else put added or changed lines into a new file, or send all of it as new events with --again", path.display(), state.display(), file_name(path))]
    Edited {
        /// Path of the input.
        path: PathBuf,
        /// Number of lines that were sent, such as `5 lines`.
        lines: String,
        /// Base URL they were sent to.
        to: String,
        /// Name of the run.
        run: String,
        /// Path of the state file.
        state: PathBuf,
    },
    /// The state file could not be read or written.
    #[error("cannot read or write the state file {}; name a writable file with --state", path.display())]
    State {
        /// Path of the state file.
        path: PathBuf,
        /// As the system call returned it.
        source: io::Error,
    },
    /// The state file is not a valid state of `send`.
    #[error("cannot use the state file {}: {reason}; restore it, or name another with --state: this sends everything as a new run, and events that were sent before count twice unless they have ids or were sent with --source", path.display())]
    StateUnreadable {
        /// Path of the state file.
        path: PathBuf,
        /// What is invalid, for the message.
        reason: String,
    },
    /// The state file is not a regular file.
    #[error("cannot write the state file {}: it is {kind}; name a regular file with --state", path.display())]
    StateNotAFile {
        /// Path of the state file.
        path: PathBuf,
        /// Kind of the file, such as `a FIFO`.
        kind: &'static str,
    },
    /// Another process has locked the state file.
    #[error("cannot lock the state file {}: another `tallyline send` uses it; wait until it ends, or name another file with --state", path.display())]
    StateBusy {
        /// Path of the state file.
        path: PathBuf,
    },
    /// The flags ask for other ids than those of the run in the state.
    #[error("cannot continue the run in {}: it was begun with {begun}, not with {asked}; use the same flags, or remove that file to send everything as a new run", state.display())]
    OtherIds {
        /// Path of the state file.
        state: PathBuf,
        /// Ids of the run.
        begun: String,
        /// Ids that the flags ask for.
        asked: String,
    },
    /// The input does not begin with the content that its unfinished run has sent.
    #[error("cannot continue the run of {}: its first {bytes} bytes have changed, and {lines} lines of them were acknowledged. If the file was rotated, keep the former content beside it under a name with a number or a date, such as {}.1, plain or gzip'd; else restore it, or send the file as new events with --again (the state file is {})", input.display(), file_name(input), state.display())]
    Changed {
        /// Path of the input.
        input: PathBuf,
        /// Path of the state file.
        state: PathBuf,
        /// Number of bytes that were compared.
        bytes: u64,
        /// Number of lines acknowledged before.
        lines: u64,
    },
    /// The file of refused lines could not be written.
    #[error("cannot write refused lines to {}", path.display())]
    Rejects {
        /// Path of the file.
        path: PathBuf,
        /// As the system call returned it.
        source: io::Error,
    },
    /// The server cannot be reached, or does not answer as expected.
    #[error("{url}: {reason}")]
    Server {
        /// Base URL of the server.
        url: String,
        /// What happened, and advice.
        reason: String,
    },
    /// A thread could not be started.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
}

/// The file name of a path, for messages.
fn file_name(path: &Path) -> Cow<'_, str> {
    path.file_name().unwrap_or_default().to_string_lossy()
}

/// A file that was sent in full before.
#[derive(Debug)]
pub struct SentBefore {
    /// Path of the file.
    pub path: PathBuf,
    /// Number of lines that were sent.
    pub lines: u64,
    /// Base URL they were sent to.
    pub to: String,
    /// Id of that server's data directory; `None` if the server did not report it.
    pub directory: Option<Uuid>,
    /// Name of the run.
    pub run: String,
    /// Path of the state file.
    pub state: PathBuf,
}

impl fmt::Display for SentBefore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            path,
            lines,
            to,
            directory,
            run,
            state,
        } = self;
        let lines = counted(*lines, "line");
        write!(
            f,
            "cannot send {}: it was sent in full before: {lines} to {to}",
            path.display()
        )?;
        if let Some(directory) = directory {
            write!(f, " (data directory {directory})")?;
        }
        write!(
            f,
            ", run {run}, according to {}; its events would count twice. \
             The same command sends lines that are added to it; --again sends all of it once more",
            state.display()
        )
    }
}
