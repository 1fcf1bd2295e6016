//! The bytes of `events.jsonl` after a crash: made durable, and recognised as those of an interrupted write.

use std::io;

use crate::data_dir::disk::{self, DiskFile};

/// Reads the file from `applied` on and writes the same bytes back; applied bytes are already durable.
/// A failed sync marks dirty pages as clean although they never reached the disk. If the process died
/// before it truncated them, they are still visible, and another sync would succeed without writing
/// them.
pub(super) fn rewrite(file: &dyn DiskFile, applied: u64, size: u64) -> io::Result<()> {
    each_block(file, applied, size, |at, block| {
        file.write_all_at(block, at)
    })
}

/// Calls `each` with the offset and the bytes of each block of `[from, to)`, in order.
pub(super) fn each_block(
    file: &dyn DiskFile,
    from: u64,
    to: u64,
    mut each: impl FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    if from >= to {
        return Ok(());
    }
    let mut block = vec![0; 1 << 20];
    let mut at = from;
    while at < to {
        let length = usize::try_from(to - at)
            .unwrap_or(usize::MAX)
            .min(block.len());
        disk::read_exactly(file, at, &mut block[..length])?;
        each(at, &block[..length])?;
        at += length as u64;
    }
    Ok(())
}

/// Whether the first line contains a NUL byte, which is never part of a line of JSON.
pub(super) fn has_zeros(file: &dyn DiskFile) -> io::Result<bool> {
    let mut block = vec![0; 64 << 10];
    let mut at = 0;
    loop {
        let count = file.read_at(&mut block, at)?;
        match memchr::memchr2(0, b'\n', &block[..count]) {
            Some(found) => return Ok(block[found] == 0),
            None if count == 0 => return Ok(false),
            None => at += count as u64,
        }
    }
}
