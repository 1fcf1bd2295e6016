//! Recovery at start: from whatever a crash left to an active segment with a known durable end.
//!
//! What is seen after a crash is not yet durable: everything is synced before its length is
//! believed. Each step can be cut short by another crash and done again.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::catalog::{Catalog, QUARANTINE_DIR, lost_note};
use super::{JournalError, KnownSegment};
use crate::fs::{self, Disk, DiskFile};
use crate::segment::{ACTIVE_FILE, sealed_file_name};

/// What recovery found and did, for the log and for the processor.
#[derive(Debug, Default)]
pub struct Recovery {
    /// Bytes after the last line end, never acknowledged, and the file that keeps them now.
    pub torn: Option<(u64, PathBuf)>,
    /// The active segment's number whose file was gone though the database had applied of it.
    pub lost: Option<u64>,
    /// The number of an active segment shorter than what was applied of it; it was sealed.
    pub untrusted: Option<u64>,
}

/// The active segment, ready to be appended to.
pub(super) struct Active {
    pub(super) number: u64,
    pub(super) durable_end: u64,
    pub(super) file: Arc<dyn DiskFile>,
}

pub(super) fn recover(
    disk: &dyn Disk,
    data_dir: &Path,
    known: &[KnownSegment],
) -> Result<(Active, Recovery), JournalError> {
    let mut recovery = Recovery::default();
    let path = data_dir.join(ACTIVE_FILE);
    let quarantine = data_dir.join(QUARANTINE_DIR);
    disk.create_dir(&quarantine)
        .map_err(JournalError::io("create", &quarantine))?;

    // 0. What is seen is made durable before it is believed.
    let catalog = Catalog::scan(disk, data_dir).map_err(JournalError::io("list", data_dir))?;
    for dir in &catalog.dirs {
        disk.sync_dir(dir).map_err(JournalError::io("sync", dir))?;
    }
    let sealed_rows = known
        .iter()
        .filter(|row| row.sealed)
        .map(|row| row.number)
        .max();
    let number = 1 + catalog.highest_number().max(sealed_rows.unwrap_or(0));
    let row = known
        .iter()
        .find(|row| row.number == number && row.applied_bytes > 0);

    // 1. No active file.
    if disk
        .identity(&path)
        .map_err(JournalError::io("look at", &path))?
        .is_none()
    {
        let number = match row {
            None => number,
            Some(row) => {
                write_lost_note(disk, data_dir, row)?;
                recovery.lost = Some(number);
                number + 1
            }
        };
        return Ok((create(disk, data_dir, number)?, recovery));
    }
    let file = disk.open(&path).map_err(JournalError::io("open", &path))?;
    let size = file.size().map_err(JournalError::io("look at", &path))?;
    let applied = row.map_or(0, |row| row.applied_bytes.min(size));
    write_again(&*file, applied, size)
        .map_err(JournalError::io("write the end again of", &path))?;
    file.sync_data().map_err(JournalError::io("sync", &path))?;

    // 2. A torn tail.
    let durable_end = last_line_end(&*file, size).map_err(JournalError::io("read", &path))?;
    if durable_end < size {
        let kept = keep_torn_tail(disk, &quarantine, number, &*file, durable_end, size)?;
        file.set_len(durable_end)
            .map_err(JournalError::io("cut the torn tail off", &path))?;
        file.sync_data().map_err(JournalError::io("sync", &path))?;
        recovery.torn = Some((size - durable_end, kept));
    }

    // 3. Shorter than what was applied: sealed as it is; the processor finds and marks it.
    if row.is_some_and(|row| row.applied_bytes > durable_end) {
        let sealed = data_dir.join(sealed_file_name(number, SystemTime::now()));
        disk.rename_new(&path, &sealed)
            .map_err(JournalError::io("seal", &path))?;
        disk.sync_dir(data_dir)
            .map_err(JournalError::io("sync", data_dir))?;
        recovery.untrusted = Some(number);
        return Ok((create(disk, data_dir, number + 1)?, recovery));
    }
    Ok((
        Active {
            number,
            durable_end,
            file,
        },
        recovery,
    ))
}

fn create(disk: &dyn Disk, data_dir: &Path, number: u64) -> Result<Active, JournalError> {
    let path = data_dir.join(ACTIVE_FILE);
    let file = disk
        .create_new(&path)
        .map_err(JournalError::io("create", &path))?;
    disk.sync_dir(data_dir)
        .map_err(JournalError::io("sync", data_dir))?;
    Ok(Active {
        number,
        durable_end: 0,
        file,
    })
}

fn write_lost_note(
    disk: &dyn Disk,
    data_dir: &Path,
    row: &KnownSegment,
) -> Result<(), JournalError> {
    let note = lost_note(data_dir, row.number);
    let text = format!(
        "Segment {} is lost: {ACTIVE_FILE} was gone at start, though {} bytes of it had been applied to the database.\n\
         What had been applied still counts. What had been acknowledged after that is gone, unless the file is found:\n\
         then stop the server, name the file {} in the data directory, delete this note and start again.\n",
        row.number,
        row.applied_bytes,
        sealed_file_name(row.number, SystemTime::now()),
    );
    fs::write_new(disk, &note, |file| file.write_all_at(text.as_bytes(), 0))
        .map_err(JournalError::io("write", &note))
}

/// Writes the file once more, as it reads, from `applied` on: what is applied was durable before. A
/// sync that failed has marked pages clean that never reached the disk; if the process died before
/// it could cut them off, they still read as written, and a sync alone would succeed without
/// bringing them to the disk.
fn write_again(file: &dyn DiskFile, applied: u64, size: u64) -> io::Result<()> {
    let mut block = vec![0; 1 << 20];
    let mut at = applied;
    while at < size {
        let length = usize::try_from(size - at)
            .unwrap_or(usize::MAX)
            .min(block.len());
        read_exact_at(file, &mut block[..length], at)?;
        file.write_all_at(&block[..length], at)?;
        at += length as u64;
    }
    Ok(())
}

/// Looks back from the end, block by block, for the byte after the last `\n`.
fn last_line_end(file: &dyn DiskFile, size: u64) -> io::Result<u64> {
    const BLOCK: u64 = 64 << 10;
    let mut block = Vec::new();
    let mut end = size;
    while end > 0 {
        let start = end.saturating_sub(BLOCK);
        block.resize(usize::try_from(end - start).unwrap_or_default(), 0);
        read_exact_at(file, &mut block, start)?;
        if let Some(index) = memchr::memrchr(b'\n', &block) {
            return Ok(start + index as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

/// Copies `[from, to)` to `quarantine/torn-<number>-<from>`; an earlier copy (of a recovery that was
/// cut short, or of another tail) stays beside it.
fn keep_torn_tail(
    disk: &dyn Disk,
    quarantine: &Path,
    number: u64,
    file: &dyn DiskFile,
    from: u64,
    to: u64,
) -> Result<PathBuf, JournalError> {
    let name = format!("torn-{number}-{from}");
    let mut path = quarantine.join(&name);
    let mut copies = 1;
    while disk
        .identity(&path)
        .map_err(JournalError::io("look at", &path))?
        .is_some()
    {
        copies += 1;
        path = quarantine.join(format!("{name}.{copies}"));
    }
    fs::write_new(disk, &path, |copy| {
        let mut block = vec![0; 1 << 20];
        let mut at = from;
        while at < to {
            let length = usize::try_from(to - at)
                .unwrap_or(usize::MAX)
                .min(block.len());
            read_exact_at(file, &mut block[..length], at)?;
            copy.write_all_at(&block[..length], at - from)?;
            at += length as u64;
        }
        Ok(())
    })
    .map_err(JournalError::io("write", &path))?;
    Ok(path)
}

fn read_exact_at(file: &dyn DiskFile, mut buf: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buf.is_empty() {
        match file.read_at(buf, offset)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => {
                buf = &mut buf[count..];
                offset += count as u64;
            }
        }
    }
    Ok(())
}
