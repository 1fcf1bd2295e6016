//! Exit codes.

use std::process::ExitCode;

/// The exit codes of every command. `main` turns an error into 1, or into 2 if it is a
/// [`UsageError`](crate::cli::config::UsageError).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// 0: success, and no event was refused.
    Done,
    /// 1: failed; for `serve`, also a shutdown that could not seal the active segment or apply all events; for
    /// `verify`, files and database differ or some files could not be checked.
    Failed,
    /// 2: invalid command line, environment variable or config file.
    Usage,
    /// 3: done, but events were refused, lines rejected or files skipped (`send` and `process` only).
    Refused,
}

impl Exit {
    /// The code that the process returns to the shell.
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Refused => 3,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}
