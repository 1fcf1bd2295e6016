//! What the committer does after a failed write or sync: it undoes the group, or poisons the journal.

use std::io;
use std::time::Instant;

use super::{ActiveWriter, DISK, JOURNAL, State};
use crate::data_dir::disk::DiskFile;
use crate::journal::AppendError;

impl ActiveWriter {
    /// Truncates the file to the durable end after a failed write or sync.
    pub(super) fn undo(&mut self, file: &dyn DiskFile, error: &io::Error) -> AppendError {
        if let Err(cut) = file
            .set_len(self.durable_end)
            .and_then(|()| file.sync_data())
        {
            return self.poison(&format!(
                "could not be written ({error}), nor truncated to its durable end ({cut})"
            ));
        }
        let reason = format!(
            "cannot write {}: {error}; nothing of the write was kept",
            self.path.display()
        );
        if is_full(error) {
            self.free_space.checked_at = None;
            if error.kind() == io::ErrorKind::FileTooLarge && self.durable_end > 0 {
                // The limit applies to one file; rotation starts a new one.
                self.retry_at.get_or_insert_with(Instant::now);
            }
            self.health.set(DISK, &reason);
            return AppendError::DiskFull(reason);
        }
        self.health.set(JOURNAL, &reason);
        AppendError::Failed(reason)
    }

    /// Poisons the journal: nothing is acknowledged until a restart. Returns the error for appends
    /// whose bytes may have been written.
    pub(super) fn poison(&mut self, what: &str) -> AppendError {
        let reason = format!(
            "{} {what}; no events are accepted until the server is restarted, which recovers all durable events",
            self.path.display()
        );
        self.health.set(JOURNAL, &reason);
        self.state = State::Poisoned(reason.clone());
        AppendError::Unknown(reason)
    }

    /// Poisons the journal before anything of the group was written: the outcome is known.
    pub(super) fn poison_before(&mut self, what: &str) -> AppendError {
        match self.poison(what) {
            AppendError::Unknown(reason) => AppendError::Failed(reason),
            error => error,
        }
    }
}

/// Whether the disk, a quota or the maximum size of a file is exhausted.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}
