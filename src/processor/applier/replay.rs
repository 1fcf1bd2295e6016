//! The lines of a range that the store needs again, for its overflow replay and for rejected lines.

use std::collections::HashSet;
use std::io;

use crate::aggregate::{UserLine, lines, scan};
use crate::data_dir::disk::DiskFile;
use crate::event::Event;
use crate::processor::ProcessError;
use crate::store::{Source, StoreError};

/// Reads lines of the range again, for the overflow replay of the store.
pub(super) struct FileSource<'a> {
    pub(super) file: &'a dyn DiskFile,
    pub(super) from: u64,
    pub(super) to: u64,
    /// The most memory for the lines of a replay, in bytes, but at least [`REPLAY_MEMORY_MIN`].
    pub(super) memory_bytes_max: usize,
}

/// If the lines of a replay need too much memory, the range is scanned again in parts. They are not smaller
/// than this, whose lines always fit into [`REPLAY_MEMORY_MIN`].
pub(super) const REPLAY_RANGE_MIN: u64 = 512 << 10;
const REPLAY_MEMORY_MIN: usize = 4 << 20;

/// The lines of an overflow replay do not fit into the memory; the range must be divided.
#[derive(Debug, thiserror::Error)]
#[error("the lines of an overflow replay need more than {0} bytes of memory")]
struct ReplayTooLarge(usize);

pub(super) fn is_replay_too_large(error: &ProcessError) -> bool {
    match error {
        ProcessError::Store(StoreError::Source(error)) => error
            .get_ref()
            .is_some_and(|cause| cause.downcast_ref::<ReplayTooLarge>().is_some()),
        _ => false,
    }
}

impl Source for FileSource<'_> {
    fn lines_of(&mut self, users: &HashSet<String>) -> io::Result<Vec<UserLine>> {
        let mut found = Vec::new();
        let mut bytes = 0;
        let bytes_max = self.memory_bytes_max.max(REPLAY_MEMORY_MIN);
        lines::each(self.file, self.from, self.to, |offset, line| {
            if bytes > bytes_max {
                return;
            }
            if let Ok(event) = Event::parse(line)
                && event.id.is_none()
                && users.contains(&*event.user_id)
            {
                bytes += size_of::<UserLine>() + event.user_id.len();
                found.push(UserLine {
                    offset,
                    user_id: event.user_id.into_owned(),
                    kind: event.kind,
                    amount_micros: event.amount_micros,
                });
            }
        })?;
        if bytes > bytes_max {
            return Err(io::Error::other(ReplayTooLarge(bytes_max)));
        }
        Ok(found)
    }

    fn line_at(&mut self, offset: u64) -> io::Result<Vec<u8>> {
        scan::line_start(self.file, offset)
    }
}
