//! Whether a sealed file is unchanged since it was sealed.
//!
//! The name of a native segment has the length and checksum of the file when it was sealed ([`Seal`]), which
//! cover every acknowledged byte in it. The applied prefix is verified against the segment's row; the seal
//! verifies the bytes after it. Some names have no seal: those of segments that recovery sealed, of active
//! files from a backup, and of imported files. Their bytes cannot be verified here.

use std::io;
use std::path::Path;
use std::time::SystemTime;

use crc32fast::Hasher;

use crate::aggregate::lines;
use crate::data_dir::disk::DiskFile;
use crate::data_dir::segment::{Seal, label_in_name, seal_in_name, sealed_file_name};

/// The seal in the name of a file; `None` if it has none.
pub(crate) fn of_path(path: &Path) -> Option<Seal> {
    seal_in_name(path.file_name()?.to_str()?)
}

/// Compares a file with the seal in its name. Returns how it differs and what to do; `None` if it matches or
/// has no seal. `known` is the checksum of a prefix that is already verified; only the rest is read.
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
        "{} had {} bytes when it was sealed, according to its name, and {what}; its remaining events are not applied. Restore the file from a backup. Or, to count its present content, rename it to {}",
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
