//! The temporary file (`.part`) of an import: written by a conversion or a copy, then renamed to a segment.
//!
//! An error before the rename removes it. An interrupted run leaves it, and the next import under that name
//! replaces it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::convert::{ConvertError, convert};
use super::{Content, ImportOutcome, Importer};
use crate::aggregate::scan;
use crate::data_dir::disk::{DiskFile, with_suffix};
use crate::data_dir::segment::{SegmentId, Tag};
use crate::data_dir::{Found, Place};
use crate::event::InputFormat;
use crate::processor::ProcessError;

/// How much is copied at once, in bytes.
const COPY_BLOCK: u64 = 1 << 20;

impl Importer<'_> {
    /// Converts the content to JSON Lines in a `.part` file.
    pub(super) fn stage(
        &self,
        content: &mut Content,
        format: &InputFormat,
        on_read: &mut dyn FnMut(u64, u64),
    ) -> Result<(), ConvertError> {
        let part = self.part_of(content);
        let file = self.create_part(&part).map_err(ConvertError::Write)?;
        content.staged = Some(part);
        let size = content.size;
        convert(&*content.file, format, &*file, &mut |at| on_read(at, size))?;
        content.size = file.size().map_err(ConvertError::Write)?;
        content.file = file;
        Ok(())
    }

    /// The temporary path of the content.
    pub(super) fn part_of(&self, content: &Content) -> PathBuf {
        with_suffix(&self.config.data_dir.join(&content.name), ".part")
    }

    /// Creates the temporary file, replacing one from an interrupted run.
    fn create_part(&self, part: &Path) -> io::Result<Arc<dyn DiskFile>> {
        match self.disk.remove(part) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => self.disk.create_new(part),
        }
    }

    /// Removes the result of the conversion, unless it was renamed into place.
    pub(super) fn discard(&self, content: &Content) {
        if let Some(part) = &content.staged {
            self.remove_part(part);
        }
    }

    fn remove_part(&self, part: &Path) {
        match self.disk.remove(part) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!("cannot remove {}: {error}", part.display());
            }
            _ => {}
        }
    }

    /// Copies the range `start..to` of the content into the data directory, under its name there.
    pub(super) fn copy_in(
        &self,
        content: &Content,
        (start, to): (u64, u64),
        id: SegmentId,
        tag: Option<Tag>,
    ) -> Result<ImportOutcome, ProcessError> {
        let data_dir = &self.config.data_dir;
        let path = data_dir.join(&content.name);
        let staged = content.staged.as_ref();
        let whole = (start, to) == (0, content.size);
        let part = if let Some(staged) = staged.filter(|_| whole) {
            staged.clone()
        } else {
            let part = self.part_of(content);
            let file = self
                .create_part(&part)
                .map_err(ProcessError::io("write", &part))?;
            let from = (&*content.file, &*content.path);
            let copied = copy(from, (start, to), (&*file, &part));
            if let Err(error) = copied {
                self.remove_part(&part);
                return Err(error);
            }
            part
        };
        let put = || -> io::Result<bool> {
            if content.source.size()? != content.stat.size {
                return Ok(false);
            }
            self.disk.open(&part)?.sync_data()?;
            self.disk.rename_new(&part, &path)?;
            self.disk.sync_dir(data_dir)?;
            Ok(true)
        };
        let done = put();
        if !matches!(done, Ok(true)) {
            self.remove_part(&part);
        }
        Ok(if done.map_err(ProcessError::io("put in place", &path))? {
            ImportOutcome::New(Found {
                id,
                tag,
                place: Place::Incoming,
                path,
            })
        } else {
            ImportOutcome::Refused(
                "its length changed while it was read; nothing was stored. Name it again when no program writes to it".to_owned(),
            )
        })
    }
}

/// Copies the range `start..end` to the beginning of another file. Each file comes with its path, for errors.
fn copy(
    from: (&dyn DiskFile, &Path),
    (start, end): (u64, u64),
    to: (&dyn DiskFile, &Path),
) -> Result<(), ProcessError> {
    let mut block = Vec::new();
    let mut at = start;
    while at < end {
        let next = end.min(at + COPY_BLOCK);
        scan::read_range(from.0, at, next, &mut block).map_err(ProcessError::io("read", from.1))?;
        to.0.write_all_at(&block, at - start)
            .map_err(ProcessError::io("write", to.1))?;
        at = next;
    }
    Ok(())
}
