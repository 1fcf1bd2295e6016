//! Prunes one segment, and completes a prune that a crash interrupted. The module [`super`] lists the steps.

use std::path::{Path, PathBuf};

use crate::aggregate::lines;
use crate::data_dir::disk::{DirLock, Disk};
use crate::data_dir::segment::SegmentId;
use crate::data_dir::{Catalog, Place, SegmentFile};
use crate::processor::{ProcessError, ProcessorConfig};
use crate::store::{SegmentRow, Writer};
use crate::verify::contents;

/// The result of an attempt to prune a segment.
pub(super) enum PruneOutcome {
    /// The row and the files are removed.
    Pruned,
    /// Nothing is removed: this file has another content than was applied.
    OtherContent(PathBuf),
    /// Nothing is removed: the row has changed since it was read.
    Changed,
    /// The row is removed. The file is removed once a checkpoint is complete.
    Later,
}

/// Prunes one segment; see the ordered steps. Sets `pruned` after step 1.
pub(super) fn prune(
    writer: &mut Writer,
    disk: &dyn Disk,
    catalog: &Catalog,
    row: &SegmentRow,
    now_ms: i64,
    pruned: &mut Option<u64>,
) -> Result<PruneOutcome, ProcessError> {
    let mut paths = Vec::new();
    for path in files(catalog, &row.id) {
        match disk.open_read(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            file => {
                let file = file.map_err(ProcessError::io("open", path))?;
                let segment = SegmentFile {
                    id: row.id.clone(),
                    tag: row.tag,
                    path: path.to_owned(),
                    file,
                };
                if !contents::is_what_was_applied(&segment, row)? {
                    return Ok(PruneOutcome::OtherContent(segment.path));
                }
                paths.push(segment.path);
            }
        }
    }
    // Step 1: the transaction.
    if !writer.prune(row, now_ms)? {
        return Ok(PruneOutcome::Changed);
    }
    *pruned = row.id.number();
    // Step 2: the checkpoint.
    if !paths.is_empty() && !writer.checkpoint()? {
        return Ok(PruneOutcome::Later);
    }
    for path in &paths {
        remove(disk, path)?;
    }
    tracing::info!(segment = %row.id, bytes = row.applied_bytes, "pruned");
    Ok(PruneOutcome::Pruned)
}

/// The files of a segment that are removed with it; those in the quarantine are kept.
fn files<'c>(catalog: &'c Catalog, id: &SegmentId) -> impl Iterator<Item = &'c Path> {
    let found = catalog.sealed.get(id).into_iter().flatten();
    found
        .filter(|found| found.place != Place::Quarantine)
        .map(|found| found.path.as_path())
}

/// Steps 3 and 4: unlink, sync of the directory.
fn remove(disk: &dyn Disk, path: &Path) -> Result<(), ProcessError> {
    disk.remove(path)
        .map_err(ProcessError::io("remove", path))?;
    let dir = path.parent().unwrap_or(Path::new("."));
    disk.sync_dir(dir).map_err(ProcessError::io("sync", dir))
}

/// Whether the last prune is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::processor) enum Finished {
    /// No file of the last pruned segment is left.
    Yes,
    /// A file is left, because a reader prevents the checkpoint.
    Later,
}

/// Completes the last prune: removes the file of the last pruned segment if a crash left it, which is
/// recognised by its length and checksum in the `pruned` row. The caller holds the exclusive lock on the
/// directory.
///
/// The rows that the connection reads may not be durable, or be in a `-wal` that was removed. Therefore a
/// checkpoint must complete before the file is removed.
pub(in crate::processor) fn finish(
    disk: &dyn Disk,
    catalog: &Catalog,
    writer: &Writer,
) -> Result<Finished, ProcessError> {
    let pruned = writer.pruned()?;
    for path in files(catalog, &SegmentId::Native(pruned.number)) {
        let read = |source| ProcessError::io("read", path)(source);
        let file = match disk.open_read(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            file => file.map_err(read)?,
        };
        let size = file.size().map_err(read)?;
        if size == pruned.file_bytes
            && lines::checksum(&*file, size).map_err(read)? == pruned.file_checksum
        {
            if !writer.checkpoint()? {
                return Ok(Finished::Later);
            }
            remove(disk, path)?;
        }
    }
    Ok(Finished::Yes)
}

/// [`finish`] at a start, with the new listing `catalog`. Does nothing while another process holds the lock on
/// the directory. A file that cannot be removed does no harm, because it is not applied.
pub(in crate::processor) fn finish_at_start(
    disk: &dyn Disk,
    config: &ProcessorConfig,
    catalog: &mut Catalog,
    writer: &Writer,
) -> Result<(), ProcessError> {
    let pruned = writer.pruned()?.number;
    if pruned == 0 {
        return Ok(());
    }
    let data_dir = &config.data_dir;
    if let Some(_held) =
        DirLock::try_exclusive(data_dir).map_err(ProcessError::io("lock", data_dir))?
    {
        finish(disk, catalog, writer)?;
        if let Some(found) = catalog.sealed.get_mut(&SegmentId::Native(pruned)) {
            found.retain(|found| disk.identity(&found.path).is_ok_and(|file| file.is_some()));
        }
    }
    Ok(())
}

/// Describes why a file with a pruned number is not applied.
pub(in crate::processor) fn was_pruned(path: &Path, pruned: u64) -> String {
    format!(
        "{}: retention has pruned all segments up to {pruned}, and their events are still in the totals, so this file is not applied. Move it away",
        path.display()
    )
}
