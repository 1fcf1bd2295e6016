//! Puts files into the data directory and into its quarantine. No file is replaced.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::backup::{BLOCK, exists, parent};
use crate::data_dir::QUARANTINE_DIR;
use crate::data_dir::disk::{self, Disk as _, DiskFile, RealDisk};

/// Copies one file of the backup to its path, where no file exists. The copy appears complete.
pub(super) fn copy_in(
    (backup, data_dir): (&Path, &Path),
    relative: &str,
    bytes: u64,
    crc: Option<u32>,
) -> anyhow::Result<()> {
    let (from, to) = (backup.join(relative), data_dir.join(relative));
    let context = || format!("cannot copy {} to {}", from.display(), to.display());
    let source = RealDisk.open_read(&from).with_context(context)?;
    disk::write_new(&RealDisk, &to, |part| {
        let copied = copy_bytes(&*source, part, bytes)?;
        if Some(copied) != crc {
            return Err(io::Error::other("the backup changed while it was read"));
        }
        part.release_cache(bytes);
        Ok(())
    })
    .with_context(context)
}

/// Moves a file to `quarantine/` without replacing any. Returns its new path.
pub(super) fn to_quarantine(data_dir: &Path, path: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let quarantine = data_dir.join(QUARANTINE_DIR);
    let context = || format!("cannot move {} to {}", path.display(), quarantine.display());
    make_dirs(data_dir, &quarantine)?;
    let mut kept = quarantine.join(name);
    let mut copies = 1;
    loop {
        match RealDisk.rename_new(path, &kept) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                copies += 1;
                kept = quarantine.join(format!("{name}.{copies}"));
            }
            moved => {
                moved.with_context(context)?;
                break;
            }
        }
    }
    RealDisk
        .sync_dir(&quarantine)
        .and_then(|()| RealDisk.sync_dir(parent(path)))
        .with_context(context)?;
    Ok(kept)
}

/// Copies `bytes` bytes and returns their CRC-32.
fn copy_bytes(from: &dyn DiskFile, to: &dyn DiskFile, bytes: u64) -> io::Result<u32> {
    let mut hasher = crc32fast::Hasher::new();
    let mut block = vec![0; BLOCK];
    let mut at = 0;
    while at < bytes {
        let want = usize::try_from(bytes - at).unwrap_or(BLOCK).min(BLOCK);
        match from.read_at(&mut block[..want], at)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => {
                to.write_all_at(&block[..count], at)?;
                hasher.update(&block[..count]);
                at += count as u64;
            }
        }
    }
    Ok(hasher.finalize())
}

/// Creates a directory in the data directory, and its parents, durably.
pub(super) fn make_dirs(data_dir: &Path, dir: &Path) -> anyhow::Result<()> {
    if dir == data_dir || exists(dir)? {
        return Ok(());
    }
    make_dirs(data_dir, parent(dir))?;
    RealDisk
        .create_dir(dir)
        .and_then(|()| RealDisk.sync_dir(parent(dir)))
        .with_context(|| format!("cannot create {}", dir.display()))
}
