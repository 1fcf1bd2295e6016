//! What all parts of a run share: the directory, the program under test, random numbers and figures.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;

use super::figures::Figures;

/// Maximum time for a process to start or to finish, before the run fails.
pub(super) const PATIENCE: Duration = Duration::from_mins(2);

pub(super) struct Trial {
    pub(super) exe: PathBuf,
    /// The directory of the run.
    pub(super) dir: PathBuf,
    /// The URL of the database that the servers share; `None`: the SQLite file of the only server.
    pub(super) database: Option<String>,
    pub(super) random: fastrand::Rng,
    pub(super) figures: Figures,
}

impl Trial {
    /// A number below `bound`.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        let drawn = self.random.u64(..bound as u64);
        usize::try_from(drawn).unwrap_or_default()
    }

    /// The data directory of a server.
    pub(super) fn data_dir(&self, at: usize) -> PathBuf {
        self.dir.join(match at {
            0 => "data".to_owned(),
            at => format!("data-{}", at + 1),
        })
    }

    /// The log of a process with this name.
    pub(super) fn log(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.log"))
    }

    /// A command of this program whose output is appended to `name`'s log.
    pub(super) fn command(&self, name: &str) -> anyhow::Result<Command> {
        let path = self.log(name);
        let log = fs::OpenOptions::new().create(true).append(true).open(&path);
        let log = log.with_context(|| format!("cannot write {}", path.display()))?;
        let mut command = Command::new(&self.exe);
        // Not as an argument, which other users could read.
        match &self.database {
            Some(url) => command.env("TALLYLINE_DATABASE", url),
            None => command.env_remove("TALLYLINE_DATABASE"),
        };
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        Ok(command)
    }
}
