//! The file of refused and rejected lines, with their numbers and reasons.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::path::PathBuf;

use serde::Serialize;

use super::error::SendError;

/// Maximum number of refused lines that are logged if there is no file for them.
const LOGGED_MAX: u64 = 10;
/// Characters of a line shown in the log.
const LOGGED_CHARS: usize = 200;

/// One refused or rejected line, as written to the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Refusal {
    /// Number of the line in the input, from 1.
    pub(super) line: u64,
    pub(super) code: String,
    /// JSON pointer to the invalid field; empty for the line as a whole.
    pub(super) pointer: String,
    pub(super) detail: String,
    /// The line as in the input.
    pub(super) text: String,
}

/// Whether the file's existing content is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// A new run: the file is truncated.
    Nothing,
    /// The run is continued: new lines are appended.
    Existing,
}

/// Writes refused lines to the file, or to the log.
#[derive(Debug)]
pub(super) struct Rejects {
    file: Option<(PathBuf, BufWriter<File>)>,
    logged: u64,
    logged_max: u64,
}

impl Rejects {
    /// Opens the file at `path`; `None`: refused lines are logged.
    pub(super) fn open(path: Option<&PathBuf>, keep: Keep) -> Result<Self, SendError> {
        let open = |path: &PathBuf| {
            OpenOptions::new()
                .create(true)
                .write(true)
                .append(keep == Keep::Existing)
                .truncate(keep == Keep::Nothing)
                .open(path)
                .map(|file| (path.clone(), BufWriter::new(file)))
                .map_err(|source| SendError::Rejects {
                    path: path.clone(),
                    source,
                })
        };
        Ok(Self {
            file: path.map(open).transpose()?,
            logged: 0,
            logged_max: LOGGED_MAX,
        })
    }

    /// Writes the lines; `status` is `refused` or `rejected`. On return the system has them. If they
    /// cannot be written, they are logged, and the file is not used again.
    pub(super) fn write(&mut self, refusals: &[Refusal], status: &str) -> Result<(), SendError> {
        let Some((path, out)) = &mut self.file else {
            self.log(refusals, status);
            return Ok(());
        };
        if refusals.is_empty() {
            return Ok(());
        }
        let mut write = || -> io::Result<()> {
            for refusal in refusals {
                serde_json::to_writer(&mut *out, refusal)?;
                out.write_all(b"\n")?;
            }
            out.flush()
        };
        let Err(source) = write() else {
            return Ok(());
        };
        let path = path.clone();
        self.file = None;
        self.logged_max = u64::MAX;
        self.log(refusals, status);
        Err(SendError::Rejects { path, source })
    }

    fn log(&mut self, refusals: &[Refusal], status: &str) {
        for refusal in refusals {
            self.logged += 1;
            if self.logged > self.logged_max {
                continue;
            }
            let Refusal {
                line,
                pointer,
                detail,
                text,
                ..
            } = refusal;
            let colon = if pointer.is_empty() { "" } else { ": " };
            let text: String = text.chars().take(LOGGED_CHARS).collect();
            tracing::warn!("line {line} {status}: {pointer}{colon}{detail}: {text}");
            if self.logged == self.logged_max {
                tracing::warn!(
                    "further lines are not shown; --rejects FILE writes all of them to a file"
                );
            }
        }
    }
}
