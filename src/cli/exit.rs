//! How a command ended, as the shell is told.

use std::process::ExitCode;

/// The exit codes of every command. An error (`Err` up to `main`) is 1, or 2 where it is a
/// [`UsageError`](crate::cli::config::UsageError).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// 0: done, and nothing was refused.
    Done,
    /// 1: failed; for `verify`, files and database differ.
    Failed,
    /// 2: the command line, the environment or the config file asks for something that can't be.
    Usage,
    /// 3: done, but events were refused, lines rejected or files skipped (`send` and `process` only).
    Refused,
}

impl Exit {
    /// The number.
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
