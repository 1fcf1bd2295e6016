//! Whether a sealed file still is what it was when it was sealed.
//!
//! The name of a native segment says its length and checksum at that moment ([`Seal`]), which is every
//! byte that was acknowledged in it. What is applied is confirmed by the segment's row; this is what
//! confirms the bytes that no row knows yet. A name without the two (a segment that recovery sealed,
//! an active file out of a backup, an imported file) confirms nothing.

use std::io;
use std::path::Path;
use std::time::SystemTime;

use crc32fast::Hasher;

use crate::aggregate::lines;
use crate::data_dir::disk::DiskFile;
use crate::data_dir::segment::{Seal, label_in_name, seal_in_name, sealed_file_name};

/// What the name of a file says of its content.
pub(crate) fn of_path(path: &Path) -> Option<Seal> {
    seal_in_name(path.file_name()?.to_str()?)
}

/// Why the file is not what was sealed, and what to do; `None` if it is, or its name does not say.
/// `known` is the checksum of a prefix that is confirmed; the rest is read.
pub(crate) fn contradiction(
    file: &dyn DiskFile,
    path: &Path,
    known: &Hasher,
) -> io::Result<Option<String>> {
    let Some(seal) = of_path(path) else {
        return Ok(None);
    };
    let size = file.size()?;
    let what = if size == seal.bytes {
        let found = lines::checksum_from(file, known, size)?;
        if found == seal.checksum {
            return Ok(None);
        }
        "has another content now".to_owned()
    } else {
        format!("has {size} bytes now")
    };
    Ok(Some(format!(
        "{} had {} bytes when it was sealed, as its name says, and {what}; what of it was not applied before is not applied. Restore the file from a backup. Or, to count what it holds now, rename it to {}",
        path.display(),
        seal.bytes,
        unsealed_name(path)
    )))
}

/// The name of the same segment without a length and a checksum.
fn unsealed_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    label_in_name(&name).map_or_else(
        || name.to_string(),
        |label| sealed_file_name(label, SystemTime::now()),
    )
}
