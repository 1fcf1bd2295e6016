//! A run: sorted sums per user in a temporary file.
//!
//! A file is a sequence of blocks. The length and the CRC-32 of each block are kept in memory, so that a
//! damaged file is an error, and never a wrong total.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::delta::Sums;
use super::user_block::UserBlock;
use crate::data_dir::disk::{Disk, DiskFile, read_exactly};

struct BlockInfo {
    length: usize,
    checksum: u32,
}

/// Users in ascending order in a file, each once. Dropping it removes the file.
pub(crate) struct Run {
    /// `None`: the file has no name.
    disk: Option<Arc<dyn Disk>>,
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    blocks: Vec<BlockInfo>,
    /// The length of the file.
    bytes: u64,
    users: usize,
}

impl Run {
    /// The number of users.
    pub(super) fn len(&self) -> usize {
        self.users
    }

    /// A run without a user in a new file. Without `disk` the file has no name, and `path` is its directory's.
    pub(super) fn new(disk: Option<Arc<dyn Disk>>, path: PathBuf, file: Arc<dyn DiskFile>) -> Self {
        Self {
            disk,
            path,
            file,
            blocks: Vec::new(),
            bytes: 0,
            users: 0,
        }
    }

    /// Writes the next block; `buffer` is for its bytes.
    pub(super) fn push(&mut self, block: &UserBlock, buffer: &mut Vec<u8>) -> io::Result<()> {
        encode(block, buffer);
        self.file.write_all_at(buffer, self.bytes)?;
        self.bytes += buffer.len() as u64;
        self.users += block.len();
        self.blocks.push(BlockInfo {
            length: buffer.len(),
            checksum: crc32fast::hash(buffer),
        });
        Ok(())
    }

    /// Reads it from the start.
    pub(super) fn read(&self) -> io::Result<RunReader<'_>> {
        let mut reader = RunReader {
            run: self,
            next_block: 0,
            offset: 0,
            bytes: Vec::new(),
            block: UserBlock::default(),
            index: 0,
            start: 0,
        };
        reader.load()?;
        Ok(reader)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let Some(disk) = &self.disk else {
            return;
        };
        if let Err(error) = disk.remove(&self.path) {
            let path = self.path.display();
            tracing::warn!(%error, "cannot remove the temporary file {path}; the next start removes it");
        }
    }
}

/// A position in a run.
pub(super) struct RunReader<'r> {
    run: &'r Run,
    next_block: usize,
    /// Of the next block in the file.
    offset: u64,
    bytes: Vec<u8>,
    block: UserBlock,
    /// The next user of the block, and the start of its id.
    index: usize,
    start: usize,
}

impl RunReader<'_> {
    /// The user at this position; `None` at the end.
    #[inline]
    pub(super) fn next_user(&self) -> Option<(&str, &Sums)> {
        let (user_id, sums, _) = self.block.user_at(self.index, self.start)?;
        Some((user_id, sums))
    }

    /// Moves to the next user.
    #[inline]
    pub(super) fn advance(&mut self) -> io::Result<()> {
        if let Some((_, _, end)) = self.block.user_at(self.index, self.start) {
            self.start = end;
        }
        self.index += 1;
        if self.index >= self.block.len() {
            self.load()?;
        }
        Ok(())
    }

    /// Reads the next block; at the end, an empty one.
    fn load(&mut self) -> io::Result<()> {
        self.block = UserBlock::default();
        (self.index, self.start) = (0, 0);
        let Some(info) = self.run.blocks.get(self.next_block) else {
            return Ok(());
        };
        let failed = |error: io::Error| {
            let path = self.run.path.display();
            io::Error::new(
                error.kind(),
                format!("cannot read the temporary file {path}: {error}"),
            )
        };
        self.bytes.resize(info.length, 0);
        read_exactly(&*self.run.file, self.offset, &mut self.bytes).map_err(failed)?;
        let is_intact = crc32fast::hash(&self.bytes) == info.checksum;
        let decoded = is_intact.then(|| decode(&self.bytes)).flatten();
        self.block = decoded.ok_or_else(|| {
            failed(io::Error::new(
                io::ErrorKind::InvalidData,
                "it was changed by another program",
            ))
        })?;
        self.offset += info.length as u64;
        self.next_block += 1;
        Ok(())
    }
}

fn encode(block: &UserBlock, out: &mut Vec<u8>) {
    out.clear();
    for (user_id, sums) in block.iter() {
        put(out, user_id.len() as u128);
        out.extend_from_slice(user_id.as_bytes());
        put(out, sums.added());
        put(out, sums.subtracted());
        put(out, u128::from(sums.events()));
    }
}

/// `None` if the bytes are not from [`encode`].
fn decode(mut bytes: &[u8]) -> Option<UserBlock> {
    let mut block = UserBlock::default();
    while !bytes.is_empty() {
        let length = usize::try_from(get(&mut bytes)?).ok()?;
        let (user_id, rest) = bytes.split_at_checked(length)?;
        bytes = rest;
        let (added, subtracted) = (get(&mut bytes)?, get(&mut bytes)?);
        let events = u64::try_from(get(&mut bytes)?).ok()?;
        let sums = Sums::of(added, subtracted, events);
        block.push(std::str::from_utf8(user_id).ok()?, &sums);
    }
    Some(block)
}

/// LEB128: seven bits a byte, the lowest first.
fn put(out: &mut Vec<u8>, mut value: u128) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

#[inline]
fn get(bytes: &mut &[u8]) -> Option<u128> {
    let mut value = 0;
    for shift in (0..128).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u128::from(byte & 0x7F) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}
