//! The rows of the table `segment`, and the sums over them. No SQL: SQLite and PostgreSQL share these types.

use std::collections::HashSet;

use crate::data_dir::segment::{Numbers, Prefix, SegmentId, Tag};

/// The state of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentState {
    /// The server appends to it.
    Active,
    /// Nothing is appended any more; it is not fully applied yet.
    Sealed,
    /// Every byte is applied.
    Applied,
    /// The file was changed after a part of it was applied; the rest is not applied.
    Corrupt,
    /// The file disappeared before it was fully applied.
    Missing,
}

impl SegmentState {
    const ALL: [Self; 5] = [
        Self::Active,
        Self::Sealed,
        Self::Applied,
        Self::Corrupt,
        Self::Missing,
    ];

    /// The value of `segment.state` in the database.
    pub fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Sealed => "sealed",
            Self::Applied => "applied",
            Self::Corrupt => "corrupt",
            Self::Missing => "missing",
        }
    }

    /// The state with this name.
    pub(super) fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.name() == name)
    }
}

/// The number of lines in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// All lines except empty ones: the sum of the other three.
    pub lines: u64,
    /// Lines whose event is in the totals.
    pub events: u64,
    /// Events with an id that was counted before.
    pub duplicates: u64,
    /// Invalid lines, id conflicts, and events that would overflow a total.
    pub rejected: u64,
}

impl Counts {
    /// Adds the counts of other lines.
    pub fn add(&mut self, other: &Self) {
        self.lines += other.lines;
        self.events += other.events;
        self.duplicates += other.duplicates;
        self.rejected += other.rejected;
    }
}

/// One row of `segment`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentRow {
    /// The identity of the segment.
    pub id: SegmentId,
    /// The primary key: the number of a native segment, negative for an imported file.
    pub key: i64,
    /// The tag of a native segment; `None` for an imported file.
    pub tag: Option<Tag>,
    /// The name of the file when it was last applied from or marked.
    pub file_name: String,
    /// The state of the segment.
    pub state: SegmentState,
    /// The applied offset: all bytes before it are applied.
    pub applied_bytes: u64,
    /// CRC-32 of the applied bytes.
    pub checksum: u32,
    /// The lines in the applied bytes.
    pub counts: Counts,
    /// The sum of the counted events' micros, modulo 2^64.
    pub net_check: i64,
    /// The number of counted events with an id.
    pub id_events: u64,
    /// The part of `net_check` that belongs to events with an id.
    pub id_net_check: i64,
    /// The number of ids of this segment that have expired.
    pub ids_expired: u64,
    /// Bytes that are not applied because the file is corrupt.
    pub corrupt_bytes: u64,
    /// The number of lines in `corrupt_bytes`.
    pub corrupt_lines: u64,
    /// Why the segment was marked as corrupt or missing; `None` if it never was.
    pub reason: Option<String>,
    /// When the segment was fully applied, in milliseconds since 1970 UTC; `None` if it is not.
    pub completed_at_ms: Option<i64>,
}

impl SegmentRow {
    /// The length and checksum of what is applied.
    pub(crate) fn applied_prefix(&self) -> Prefix {
        Prefix {
            length: self.applied_bytes,
            checksum: self.checksum,
        }
    }
}

/// The sum over all pruned segments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// The highest pruned segment number; 0 if none.
    pub number: u64,
    /// The number of pruned segments.
    pub segments: u64,
    /// The sum of their counts.
    pub counts: Counts,
    /// The sum of their `net_check`, modulo 2^64.
    pub net_check: i64,
    /// The length of the file of segment `number` in bytes. The file may still exist.
    pub file_bytes: u64,
    /// CRC-32 of that file.
    pub file_checksum: u32,
}

impl Pruned {
    /// Adds a segment that is pruned.
    pub(super) fn add(&mut self, row: &SegmentRow) {
        self.number = row.id.number().unwrap_or_default().max(self.number);
        self.segments += 1;
        self.counts.add(&row.counts);
        self.net_check = self.net_check.wrapping_add(row.net_check);
        self.file_bytes = row.applied_bytes;
        self.file_checksum = row.checksum;
    }
}

/// The sum over the rows of fully applied segments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AppliedSum {
    /// The number of segments.
    pub segments: u64,
    /// The number of native segments among them.
    pub native: u64,
    /// The sum of their counts.
    pub counts: Counts,
    /// The sum of their `corrupt_lines`.
    pub corrupt_lines: u64,
}

impl AppliedSum {
    /// The sum over the fully applied segments among `rows`.
    pub fn of<'r>(rows: impl IntoIterator<Item = &'r SegmentRow>) -> Self {
        let mut sum = Self::default();
        for row in rows {
            if row.state == SegmentState::Applied {
                sum.segments += 1;
                sum.native += u64::from(row.key > 0);
                sum.counts.add(&row.counts);
                sum.corrupt_lines += row.corrupt_lines;
            }
        }
        sum
    }
}

/// The fully applied segments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppliedSegments {
    /// The numbers of native segments.
    pub native: Numbers,
    /// The names of imported files.
    pub imported: HashSet<String>,
}

impl AppliedSegments {
    /// Whether the segment is fully applied.
    pub fn contains(&self, id: &SegmentId) -> bool {
        match id {
            SegmentId::Native(number) => self.native.contains(*number),
            SegmentId::Imported(name) => self.imported.contains(name),
        }
    }
}
