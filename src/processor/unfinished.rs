//! The database that a rebuild builds, until it replaces the old one by a rename. If the rebuild is
//! interrupted, the next start or run removes it; the old database is still in its place.

use std::path::Path;

use super::ProcessError;
use crate::data_dir::disk::{Disk as _, RealDisk};

/// The temporary name of the new database.
pub(super) const DATABASE: &str = "revenue.db.rebuild";

/// Removes the files of a rebuild that was interrupted.
pub(super) fn remove(dir: &Path) -> Result<(), ProcessError> {
    for suffix in ["", "-wal", "-shm", "-journal"] {
        let path = dir.join(format!("{DATABASE}{suffix}"));
        match RealDisk.remove(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            removed => removed.map_err(ProcessError::io("remove", &path))?,
        }
    }
    Ok(())
}
