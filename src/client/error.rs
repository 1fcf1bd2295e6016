//! Why a send did not come to its end.

use std::fmt;
use std::io;
use std::path::PathBuf;

use uuid::Uuid;

use crate::cli::output::counted;

/// The lines acknowledged until then stay acknowledged, and the state (where one is kept) lets the
/// same command go on.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// There is no such file.
    #[error("there is no file {}; name the file of events to send, or `-` for stdin", path.display())]
    NoInput {
        /// The file.
        path: PathBuf,
    },
    /// The input could not be opened or read.
    #[error("cannot read {}", path.display())]
    Input {
        /// The file, or `-`.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A symbolic link that leads nowhere.
    #[error("cannot read {}: it is a symbolic link to {}, which does not exist", path.display(), target.display())]
    Dangling {
        /// The link.
        path: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },
    /// Nothing that events can be read from.
    #[error("cannot read {}: it is {kind}; name a regular file, a FIFO, or `-` for stdin", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
        /// Such as `a directory`.
        kind: &'static str,
    },
    /// Only a regular file grows line by line.
    #[error("cannot follow {}: it is {kind}; --follow reads regular files of one event a line", path.display())]
    NotFollowed {
        /// The path.
        path: PathBuf,
        /// Such as `gzip'd`.
        kind: &'static str,
    },
    /// The input is something else than events; nothing of it was sent.
    #[error("cannot send {}: it looks like {looks_like}; {cure}", path.display())]
    NotEvents {
        /// The file, or `-`.
        path: PathBuf,
        /// Such as `CSV`.
        looks_like: &'static str,
        /// What to do.
        cure: String,
    },
    /// All of it was sent to the same data directory before.
    #[error("{0}")]
    SentBefore(Box<SentBefore>),
    /// Lines of it that were sent before were changed or removed.
    #[error("cannot send {}: it is not what was sent from it before ({lines} to {to}, run {run}, as {} says), and lines of it that were counted would count again. If only some were added or changed, put these into a file of another name; --again sends all of it as new events", path.display(), state.display())]
    Edited {
        /// The file.
        path: PathBuf,
        /// How many lines were sent, in words.
        lines: String,
        /// The base URL they were sent to.
        to: String,
        /// The run's name.
        run: String,
        /// The state file.
        state: PathBuf,
    },
    /// The state file could not be read or written.
    #[error("cannot keep the progress in {}; name a writable file with --state", path.display())]
    State {
        /// The state file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The state file is not one of ours.
    #[error("{} does not read as a state of `tallyline send` ({reason}); restore it, or name another with --state: that sends everything as a new run, and events that were sent before count twice unless they carry ids or were sent with --source", path.display())]
    StateUnreadable {
        /// The state file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The state file is no file that a state can be kept in.
    #[error("cannot keep the progress in {}: it is {kind}; name a regular file with --state", path.display())]
    StateNotAFile {
        /// The path.
        path: PathBuf,
        /// Such as `a FIFO`.
        kind: &'static str,
    },
    /// Another process sends with this state.
    #[error("another `tallyline send` is at work with {}; wait for it, or name another --state", path.display())]
    StateBusy {
        /// The state file.
        path: PathBuf,
    },
    /// The state was made with other ids.
    #[error("the run in {} was begun with {begun}, not with {asked}; go on the same way, or remove that file to send everything as a new run", state.display())]
    OtherIds {
        /// The state file.
        state: PathBuf,
        /// What the run has.
        begun: String,
        /// What the flags ask for.
        asked: String,
    },
    /// The input is not what the run in the state began with.
    #[error("{} is not what its unfinished run began with: the first {bytes} bytes differ, {lines} lines of them were acknowledged; put the former content back to go on, or send this one as new events by --again (the progress is in {})", input.display(), state.display())]
    Changed {
        /// The input.
        input: PathBuf,
        /// The state file.
        state: PathBuf,
        /// How many bytes were compared.
        bytes: u64,
        /// Lines acknowledged before.
        lines: u64,
    },
    /// The file of refused lines could not be written.
    #[error("cannot write refused lines to {}", path.display())]
    Rejects {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The server can't be reached, or does not answer as it should.
    #[error("{url}: {reason}")]
    Server {
        /// Where we sent to.
        url: String,
        /// What happened, and what to do.
        reason: String,
    },
    /// A thread could not be started.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
}

/// A file that need not be sent.
#[derive(Debug)]
pub struct SentBefore {
    /// The file.
    pub path: PathBuf,
    /// Its lines.
    pub lines: u64,
    /// The base URL they were sent to.
    pub to: String,
    /// The data directory of that server, if it named it.
    pub directory: Option<Uuid>,
    /// The run's name.
    pub run: String,
    /// The state file.
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
            "{} was sent in full before: {lines} to {to}",
            path.display()
        )?;
        if let Some(directory) = directory {
            write!(f, " (data directory {directory})")?;
        }
        write!(
            f,
            ", run {run}, as {} says; sent again, its events would count twice. \
             The same command sends lines that are added to it; --again sends all of it once more",
            state.display()
        )
    }
}
