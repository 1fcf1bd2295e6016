//! Why a send did not come to its end.

use std::io;
use std::path::PathBuf;

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
    /// A compressed file does not grow line by line.
    #[error("{} is gzip'd; --follow reads plain files only", path.display())]
    FollowCompressed {
        /// The file.
        path: PathBuf,
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
    #[error("{} does not read as a state of `tallyline send` ({reason}); remove it to send everything as a new run", path.display())]
    StateUnreadable {
        /// The state file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
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
    #[error("{} is not what its unfinished run began with: the first {bytes} bytes differ, {lines} lines of them were acknowledged; put the former content back to go on, or remove {} to send this one as a new run", input.display(), state.display())]
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
