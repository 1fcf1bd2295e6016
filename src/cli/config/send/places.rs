//! The files that a send reads and writes must be different ones.

use std::fs::{File, Metadata};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::Input;
use crate::cli::config::UsageError;

/// Fails if a file that is written is also read or written as something else.
pub(super) fn refuse_one_file_for_two(
    input: &Input,
    token_file: Option<&Path>,
    rejects: Option<&Path>,
    state: Option<&Path>,
) -> Result<(), UsageError> {
    let read = [
        ("the file to send", Place::of_input(input)),
        ("the --token-file", token_file.map(Place::of_path)),
    ];
    let rejects = rejects.map(Place::of_path);
    let state = state.map(Place::of_path);
    for (flag, place) in [("--rejects", &rejects), ("--state", &state)] {
        for (name, other) in &read {
            differ(flag, place.as_ref(), name, other.as_ref())?;
        }
    }
    differ("--rejects", rejects.as_ref(), "the --state", state.as_ref())?;
    let stdout = Place::of_descriptor(std::io::stdout());
    let (name, input) = &read[0];
    differ("stdout", stdout.as_ref(), name, input.as_ref())
}

/// Identity of a regular file: its path, which may not exist yet, and its inode.
#[derive(Debug)]
struct Place {
    path: Option<PathBuf>,
    /// Device and inode; `None` if it does not exist yet.
    identity: Option<(u64, u64)>,
}

impl Place {
    fn of_path(path: &Path) -> Self {
        let metadata = std::fs::metadata(path).ok();
        Self {
            path: Some(path.canonicalize().unwrap_or_else(|_| path.to_owned())),
            identity: metadata.and_then(|metadata| regular(&metadata)),
        }
    }

    fn of_descriptor(descriptor: impl AsFd) -> Option<Self> {
        let file = File::from(descriptor.as_fd().try_clone_to_owned().ok()?);
        let identity = regular(&file.metadata().ok()?)?;
        Some(Self {
            path: None,
            identity: Some(identity),
        })
    }

    fn of_input(input: &Input) -> Option<Self> {
        match input.path() {
            Some(path) => Some(Self::of_path(path)),
            None => Self::of_descriptor(std::io::stdin()),
        }
    }

    fn is(&self, other: &Self) -> bool {
        self.path.is_some() && self.path == other.path
            || self.identity.is_some() && self.identity == other.identity
    }
}

fn regular(metadata: &Metadata) -> Option<(u64, u64)> {
    metadata.is_file().then(|| (metadata.dev(), metadata.ino()))
}

/// Fails if the file `written` is the file `other`, which is read.
fn differ(
    flag: &str,
    written: Option<&Place>,
    name: &str,
    other: Option<&Place>,
) -> Result<(), UsageError> {
    if let (Some(written), Some(other)) = (written, other)
        && written.is(other)
    {
        let path = written.path.as_deref().or(other.path.as_deref());
        let path = path.map_or(String::new(), |path| format!(" {}", path.display()));
        return Err(UsageError::new(format!(
            "{flag}{path} is {name}; name another file"
        )));
    }
    Ok(())
}
