//! Rotation: seals the active segment by renaming it and creates the next one. Runs on the committer
//! thread, between groups. The module above lists the steps and what each failure leads to.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Instant, SystemTime};

use super::super::{AppendError, Tail};
use super::{ActiveWriter, JOURNAL, RETRY_AFTER, ROTATION, State, is_full};
use crate::data_dir::first_free;
use crate::data_dir::segment::{Seal, sealed_file_name_with};

impl ActiveWriter {
    /// When the active segment is to be sealed by age, or a failed rotation or creation is to be
    /// retried; `None`: not by time.
    pub(super) fn rotation_due(&self) -> Option<Instant> {
        match self.state {
            State::Open(_) => self.retry_at.or_else(|| {
                self.first_line_at?
                    .checked_add(self.config.rotate_interval?)
            }),
            State::Uncreated(_) => self.retry_at,
            State::Poisoned(_) => None,
        }
    }

    /// Whether a rotation may be tried: none has failed, or the delay after the failure is over.
    pub(super) fn may_try(&self) -> bool {
        self.retry_at.is_none_or(|at| at <= Instant::now())
    }

    /// Seals the active segment, unless it is empty, and creates the next one.
    pub(super) fn rotate(&mut self) -> Result<(), AppendError> {
        match &self.state {
            State::Poisoned(reason) => return Err(AppendError::Failed(reason.clone())),
            State::Uncreated(_) => return Ok(()),
            State::Open(_) if self.durable_end == 0 => return Ok(()),
            State::Open(_) => {}
        }
        self.retry_at = Some(Instant::now() + RETRY_AFTER);
        self.check_path()?;
        if let State::Open(file) = &self.state {
            let file = Arc::clone(file);
            self.check_alone(&*file)?;
        }
        self.seal()?;
        let number = {
            let floor = self.shared.floor.load(Ordering::Relaxed);
            first_free(self.directory.number.max(floor) + 1, &self.shared.taken())
        };
        self.directory = self.directory.next(number);
        self.durable_end = 0;
        self.checksum.reset();
        self.first_line_at = None;
        {
            // The sealed file stays in the tail until the next one exists. A durable end of 0 keeps
            // readers from reading it under the new number.
            let mut tail = self.shared.tail();
            tail.number = number;
            tail.tag = self.directory.label().tag;
            tail.durable_end = 0;
        }
        self.create_next()
    }

    /// Steps 1 and 2 of a rotation: renames the file, never replacing another one, and syncs the directory.
    fn seal(&mut self) -> Result<(), AppendError> {
        // Opened before the rename, so that a lack of file descriptors leaves nothing to undo.
        let dir = match self.disk.open_dir(&self.data_dir) {
            Ok(dir) => dir,
            Err(error) => {
                let reason = format!("cannot open {}: {error}", self.data_dir.display());
                self.health.set(ROTATION, &reason);
                return Err(AppendError::Failed(reason));
            }
        };
        let seal = Seal {
            bytes: self.durable_end,
            checksum: self.checksum.clone().finalize(),
        };
        let name = sealed_file_name_with(self.directory.label(), seal, SystemTime::now());
        let sealed = self.data_dir.join(name);
        if let Err(error) = self.disk.rename_new(&self.path, &sealed) {
            let reason = format!(
                "cannot seal {} as {}: {error}",
                self.path.display(),
                sealed.display()
            );
            self.health.set(ROTATION, &reason);
            return Err(AppendError::Failed(reason));
        }
        if let Err(error) = dir.sync() {
            return Err(self.poison(&format!(
                "was sealed, but its directory could not be synced: {error}"
            )));
        }
        self.health.clear(ROTATION);
        tracing::debug!(
            segment = self.directory.number,
            bytes = self.durable_end,
            "sealed {}",
            sealed.display()
        );
        Ok(())
    }

    /// Steps 3 to 5 of a rotation. If the file cannot be created, the state becomes
    /// [`State::Uncreated`] and the result is `Ok`: the acknowledged events are sealed.
    pub(super) fn create_next(&mut self) -> Result<(), AppendError> {
        self.retry_at = Some(Instant::now() + RETRY_AFTER);
        let opened = self.disk.open_dir(&self.data_dir);
        let created = opened.and_then(|dir| {
            self.directory.replace(&*self.disk, &self.data_dir)?;
            let file = self.disk.create_new(&self.path)?;
            if file.try_lock()? {
                Ok((dir, file))
            } else {
                Err(io::Error::other("another process has locked it"))
            }
        });
        let (dir, file) = match created {
            Ok(created) => created,
            Err(error) => {
                let reason = format!(
                    "cannot create the next {}: {error}; trying again",
                    self.path.display()
                );
                self.health.set(ROTATION, &reason);
                let error = if is_full(&error) {
                    AppendError::DiskFull(reason)
                } else {
                    AppendError::Failed(reason)
                };
                self.state = State::Uncreated(error);
                return Ok(());
            }
        };
        if let Err(error) = dir.sync() {
            return Err(self.poison(&format!(
                "was created, but its directory could not be synced: {error}"
            )));
        }
        self.retry_at = None;
        self.health.clear(ROTATION);
        let lines = self.shared.tail().lines;
        *self.shared.tail() = Tail {
            number: self.directory.number,
            tag: self.directory.label().tag,
            durable_end: 0,
            lines,
            file: Arc::clone(&file),
        };
        self.state = State::Open(file);
        Ok(())
    }

    /// Poisons the journal if the path no longer leads to the open file.
    pub(super) fn check_path(&mut self) -> Result<(), AppendError> {
        let State::Open(file) = &self.state else {
            return Ok(());
        };
        let same = file
            .stat()
            .and_then(|stat| Ok(self.disk.identity(&self.path)? == Some(stat.identity)));
        match same {
            Ok(true) => Ok(()),
            Ok(false) => {
                let elsewhere =
                    self.disk.identity(&self.data_dir).ok().flatten() != self.data_dir_is;
                let what = if elsewhere {
                    format!(
                        "is not reachable: {} was moved, or another file system was mounted over it",
                        self.data_dir.display()
                    )
                } else {
                    "was moved, removed or replaced while the server had it open".to_owned()
                };
                Err(self.poison(&what))
            }
            Err(error) => {
                let reason = format!("cannot examine {}: {error}", self.path.display());
                self.health.set(JOURNAL, &reason);
                Err(AppendError::Failed(reason))
            }
        }
    }

    /// Seals the active segment at a clean shutdown, so that `process` finds sealed files only. Returns why
    /// it could not be sealed.
    pub(super) fn seal_at_stop(&mut self) -> Option<String> {
        let error = self.rotate().err()?;
        Some(format!(
            "cannot seal the active segment at shutdown: {error}. The next start or `tallyline process` recovers and seals what is in the file"
        ))
    }
}
