//! Opens sealed files.

use std::path::Path;

use crate::data_dir::SegmentFile;
use crate::data_dir::disk::Disk;
use crate::data_dir::segment::{SegmentId, Tag};
use crate::processor::ProcessError;

/// Opens a sealed file and syncs it, so that only durable bytes are applied.
pub(in crate::processor) fn open_sealed(
    disk: &dyn Disk,
    id: &SegmentId,
    tag: Option<Tag>,
    path: &Path,
) -> Result<SegmentFile, ProcessError> {
    let segment = open(disk, id, tag, path)?;
    sync(&segment)?;
    Ok(segment)
}

/// Opens a sealed file without a sync.
pub(super) fn open(
    disk: &dyn Disk,
    id: &SegmentId,
    tag: Option<Tag>,
    path: &Path,
) -> Result<SegmentFile, ProcessError> {
    let file = disk
        .open_read(path)
        .map_err(ProcessError::io("open", path))?;
    Ok(SegmentFile {
        id: id.clone(),
        tag,
        path: path.to_owned(),
        file,
    })
}

pub(super) fn sync(segment: &SegmentFile) -> Result<(), ProcessError> {
    segment
        .file
        .sync_data()
        .map_err(ProcessError::io("sync", &segment.path))
}
