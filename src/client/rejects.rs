//! Lines that were refused, with their number in the file and the reason.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::path::PathBuf;

use serde::Serialize;

use super::error::SendError;

/// Refused lines named in the log where no file takes them.
const LOGGED_MAX: u64 = 10;
/// Characters of a line shown in the log.
const LOGGED_CHARS: usize = 200;

/// One refused line, as it is written to the file of rejects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Refusal {
    /// Its number in the input, from 1.
    pub(super) line: u64,
    /// For programs.
    pub(super) code: String,
    /// JSON pointer to the field at fault; empty for the line as a whole.
    pub(super) pointer: String,
    /// For people.
    pub(super) detail: String,
    /// The line as it stands in the input.
    pub(super) text: String,
}

/// Whether the file of rejects is that of an earlier attempt of the same run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// A new run: what an earlier one left is cut off.
    Nothing,
    /// The same run goes on.
    Former,
}

/// Where refusals go.
#[derive(Debug)]
pub(super) struct Rejects {
    file: Option<(PathBuf, BufWriter<File>)>,
    logged: u64,
    logged_max: u64,
}

impl Rejects {
    /// To `path`, or to the log.
    pub(super) fn open(path: Option<&PathBuf>, keep: Keep) -> Result<Self, SendError> {
        let open = |path: &PathBuf| {
            OpenOptions::new()
                .create(true)
                .write(true)
                .append(keep == Keep::Former)
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

    /// Writes them out (`fate` says what became of them: refused, or rejected); when this returns they are the system's to keep.
    /// Where they cannot be written, they are logged instead, and the file is not tried again.
    pub(super) fn write(&mut self, refusals: &[Refusal], fate: &str) -> Result<(), SendError> {
        let Some((path, out)) = &mut self.file else {
            self.log(refusals, fate);
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
        self.log(refusals, fate);
        Err(SendError::Rejects { path, source })
    }

    fn log(&mut self, refusals: &[Refusal], fate: &str) {
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
            tracing::warn!("line {line} {fate}: {pointer}{colon}{detail}: {text}");
            if self.logged == self.logged_max {
                tracing::warn!("further lines are not shown; --rejects FILE keeps them all");
            }
        }
    }
}
