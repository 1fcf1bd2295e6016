//! Finds the file that begins with the applied bytes of a segment, while files may be sealed and archived.

use std::io;
use std::path::PathBuf;

use crc32fast::Hasher;

use super::{Finding, Recount, not_recounted};
use crate::aggregate::lines;
use crate::data_dir::segment::ACTIVE_FILE;
use crate::data_dir::{Catalog, Place, SegmentFile, active_label};
use crate::store::{SegmentRow, SegmentState};
use crate::verify::{VerifyError, seal};

/// How many times a file is searched for; it may be renamed between the listing and the opening.
const ATTEMPTS: u32 = 3;

/// The result of the search for the applied bytes of a segment.
pub(super) enum Located {
    /// The file that begins with them, and its size.
    Found(SegmentFile, u64),
    /// The only file with its name cannot be opened; this is reported already.
    Unopened,
    /// No file begins with them; these files have its name and another content.
    NotFound(Vec<PathBuf>),
}

impl Recount<'_> {
    /// Compares the file of a segment that is not fully applied with the seal in its name.
    pub(super) fn broken_seal(
        row: &SegmentRow,
        file: &SegmentFile,
    ) -> Result<Option<String>, VerifyError> {
        if row.state == SegmentState::Applied {
            return Ok(None); // Its row has the same length and checksum.
        }
        let applied = Hasher::new_with_initial_len(row.checksum, row.applied_bytes);
        seal::contradiction(&*file.file, &file.path, &applied)
            .map_err(VerifyError::io("read", &file.path))
    }

    /// Whether the segment has files in the quarantine only.
    pub(super) fn is_quarantined(&self, row: &SegmentRow) -> bool {
        let found = self.catalog.sealed.get(&row.id);
        let active = self.active.map(|label| label.number);
        row.id.number() != active
            && found.is_some_and(|found| found.iter().all(|file| file.place == Place::Quarantine))
    }

    pub(super) fn not_found(&mut self, row: &SegmentRow, seen: &[PathBuf]) {
        let counted = not_recounted(row);
        self.add_finding(&match seen.first() {
            None => Finding::Inconclusive(format!(
                "segment {}: its file {} is missing; {counted}",
                row.id, row.file_name
            )),
            Some(path) => Finding::Mismatch(format!(
                "segment {}: {} does not begin with the {} bytes that were applied; {counted}",
                row.id,
                path.display(),
                row.applied_bytes
            )),
        });
    }

    /// Searches for the file that begins with the applied bytes of the segment. Lists the directory again
    /// while files move.
    pub(super) fn locate(&mut self, row: &SegmentRow) -> Result<Located, VerifyError> {
        let dir = &self.config.data_dir;
        let mut seen = Vec::new();
        let mut unopened = None;
        for _ in 0..ATTEMPTS {
            let candidates = self.candidates(row);
            if !seen.is_empty() && seen == candidates {
                break; // No file moved since the last attempt.
            }
            for path in &candidates {
                let file = match self.disk.open_read(path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    // Reported below; another file may have the bytes.
                    Err(error) => {
                        unopened = Some((path.clone(), error));
                        continue;
                    }
                    Ok(file) => file,
                };
                let io = |error| VerifyError::io("read", path)(error);
                let size = file.size().map_err(io)?;
                if size >= row.applied_bytes
                    && lines::checksum(&*file, row.applied_bytes).map_err(io)? == row.checksum
                {
                    let file = SegmentFile {
                        id: row.id.clone(),
                        tag: row.tag,
                        path: path.clone(),
                        file,
                    };
                    return Ok(Located::Found(file, size));
                }
            }
            seen = candidates;
            self.active = active_label(self.disk, dir, self.config.tag())?;
            self.catalog = Catalog::scan(self.disk, dir, self.config.tag())
                .map_err(VerifyError::io("list", dir))?;
        }
        if let Some((path, error)) = unopened {
            self.add_finding(&Finding::Inconclusive(format!(
                "segment {}: cannot open {}: {error}; {}",
                row.id,
                path.display(),
                not_recounted(row)
            )));
            seen.retain(|seen| *seen != path);
            if seen.is_empty() {
                return Ok(Located::Unopened);
            }
        }
        Ok(Located::NotFound(seen))
    }

    /// The files that may have the bytes of the segment: those with its id, and the active file if that has
    /// its label.
    fn candidates(&self, row: &SegmentRow) -> Vec<PathBuf> {
        let found = self.catalog.sealed.get(&row.id);
        let mut paths: Vec<PathBuf> = found
            .into_iter()
            .flatten()
            .filter(|found| found.tag == row.tag)
            .map(|found| found.path.clone())
            .collect();
        let active = self.active.filter(|label| Some(label.tag) == row.tag);
        if active.is_some_and(|label| Some(label.number) == row.id.number()) {
            paths.push(self.config.data_dir.join(ACTIVE_FILE));
        }
        paths
    }
}
