//! What the database stores about the segments, for recovery.

use crate::data_dir::segment::{Numbers, Tag};

/// The database row of a native segment, as far as recovery needs it.
#[derive(Clone, Copy, Debug)]
pub struct KnownSegment {
    /// The number of the segment, from 1.
    pub number: u64,
    /// The segment's tag; `None` if unknown.
    pub tag: Option<Tag>,
    /// The number of applied bytes, from the start of the segment.
    pub applied_bytes: u64,
    /// CRC-32 of the applied bytes; `None` if unknown.
    pub checksum: Option<u32>,
    /// Whether the row says that the segment is sealed.
    pub sealed: bool,
}

/// What the database stores about the directory. Empty if the database cannot be read.
#[derive(Clone, Debug, Default)]
pub struct KnownSegments {
    /// The UUID of the data directory that the database belongs to; `None` if unknown.
    pub directory: Option<uuid::Uuid>,
    /// Rows of native segments: at least those of segments that are not fully applied, and those of
    /// [`active_numbers`].
    pub segments: Vec<KnownSegment>,
    /// The numbers of fully applied segments whose rows are not in `segments`.
    pub applied: Numbers,
    /// The highest number that retention has pruned; 0 if none.
    pub pruned: u64,
}

impl KnownSegments {
    /// The highest number in the database; 0 if none.
    pub fn highest(&self) -> u64 {
        let rows = self.segments.iter().map(|row| row.number).max();
        let applied = self.applied.last();
        rows.max(applied).unwrap_or(0).max(self.pruned)
    }

    /// The row of a segment. For a number in `applied`, a row that says only that the segment is sealed.
    pub(crate) fn row(&self, number: u64) -> Option<KnownSegment> {
        let row = self.segments.iter().find(|row| row.number == number);
        let applied = KnownSegment {
            number,
            tag: None,
            applied_bytes: 0,
            checksum: None,
            sealed: true,
        };
        row.copied()
            .or_else(|| self.applied.contains(number).then_some(applied))
    }
}
