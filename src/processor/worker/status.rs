//! The published status: the applied position, dead segments and the ledger, updated after each commit.
//!
//! Only the thread `process` changes it; other threads see it through [`Progress`] and [`Health`].

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::accounting;
use super::{
    Commit, DATABASE, DeadSegment, Found, Health, LAST_FLUSH_MAX, Place, Position, Progress,
    SegmentId, Settled, StoreError, Tag, Tail, Watch, describe, topic,
};

/// A sealed file that is not fully applied, or not yet archived.
#[expect(clippy::struct_excessive_bools, reason = "four independent facts")]
pub(super) struct Sealed {
    pub(super) path: PathBuf,
    pub(super) tag: Option<Tag>,
    pub(super) place: Place,
    /// Size of an imported file in the previous round. While it changes, the file is still being copied.
    pub(super) size: Option<u64>,
    /// After a failure: when the file is tried again.
    pub(super) retry_at: Option<Instant>,
    /// Whether its pending lines are included in the ledger.
    pub(super) counted: bool,
    /// When it was found; `None` if this process's journal appended its lines and knows their age.
    pub(super) found_at: Option<Instant>,
    /// Whether its number is above that of the active segment, so that another copy of the directory must
    /// have created it.
    pub(super) ahead: bool,
    /// Whether it is fully applied and has only to be archived.
    pub(super) applied: bool,
    /// Whether it could not be opened because it is not a regular file.
    pub(super) unusable: bool,
}

impl Sealed {
    pub(super) fn new(found: &Found) -> Self {
        Self {
            path: found.path.clone(),
            tag: found.tag,
            place: found.place,
            size: None,
            retry_at: None,
            counted: false,
            found_at: Some(Instant::now()),
            ahead: false,
            applied: false,
            unusable: false,
        }
    }
}

/// What is known of the segments, and what is published to [`Progress`] and [`Health`]. It is separate from
/// the applier, which reports each commit to it.
pub(super) struct PublishedStatus {
    pub(super) progress: Arc<Progress>,
    pub(super) health: Arc<Health>,
    pub(super) sealed: BTreeMap<SegmentId, Sealed>,
    /// Missing and corrupt segments, by number.
    pub(super) dead: BTreeMap<u64, DeadSegment>,
    /// Applied bytes of the native segments that are not fully applied, by number.
    pub(super) applied: BTreeMap<u64, u64>,
    /// Number of the active segment.
    pub(super) active: u64,
    /// Segments up to this number were pruned; a file with such a number is not applied.
    pub(super) pruned: u64,
    pub(super) settled: Settled,
    /// Lines that were settled when this process first read the database.
    pub(super) settled_before: Option<u64>,
    /// End of the last committed range of a native segment.
    committed: Position,
    /// Since when the database has been locked; `None` if it is not.
    locked_since: Option<Instant>,
}

impl PublishedStatus {
    pub(super) fn new(progress: Arc<Progress>, health: Arc<Health>) -> Self {
        Self {
            progress,
            health,
            sealed: BTreeMap::new(),
            dead: BTreeMap::new(),
            applied: BTreeMap::new(),
            active: 1,
            pruned: 0,
            settled: Settled::default(),
            settled_before: None,
            committed: Position {
                segment: 0,
                offset: 0,
            },
            locked_since: None,
        }
    }

    /// The position of the first byte of a native segment that is pending: everything before it is applied.
    pub(super) fn frontier(&self) -> Position {
        let applied = |number| self.applied.get(&number).copied().unwrap_or(0);
        let pending = self
            .sealed
            .iter()
            .take_while(|(id, _)| id.number().is_some()) // Ours come first.
            .filter(|(_, sealed)| !sealed.applied)
            .find_map(|(id, _)| id.number().filter(|number| !self.dead.contains_key(number)));
        let number = pending.unwrap_or(self.active).min(self.active);
        Position {
            segment: number,
            offset: applied(number),
        }
    }

    pub(super) fn publish(&self) {
        let dead: Vec<DeadSegment> = self.dead.values().copied().collect();
        let pending = self
            .sealed
            .values()
            .filter(|sealed| sealed.counted && !sealed.applied);
        let settled = Settled {
            found_since: pending.filter_map(|sealed| sealed.found_at).min(),
            ..self.settled
        };
        self.progress.publish(self.frontier(), &dead, settled);
    }

    /// Records that nothing after `applied_bytes` will be applied; `lines` is the number of lines there.
    pub(super) fn marked_corrupt(&mut self, id: &SegmentId, applied_bytes: u64, lines: u64) {
        if let Some(number) = id.number() {
            self.dead.insert(
                number,
                DeadSegment {
                    number,
                    applied_bytes,
                },
            );
        }
        self.settled.ledger.corrupt += lines;
    }

    /// Adds lines that were found in an imported or restored file.
    pub(super) fn found(&mut self, lines: u64) {
        self.settled.lines += lines;
    }

    /// Compares the lines that were appended or found with those that were committed, if none are pending.
    /// `tail` is the tail at the start of the round, which is applied. The difference is reported if it was
    /// the same in the previous round.
    pub(super) fn account(&mut self, tail: &Tail) {
        let end = tail.end();
        let pending = self.sealed.values().any(|sealed| !sealed.applied);
        let active = self.applied.get(&tail.number).copied().unwrap_or(0);
        // If a segment was sealed during the round, its lines are settled but not in `tail`.
        if pending || active != tail.durable_end || self.committed > end {
            return;
        }
        let before = self.settled.ledger.unaccounted;
        let now = self.settled.waiting(tail.lines);
        self.settled.ledger.unaccounted = now;
        if now == before {
            accounting::report(&self.health, now);
        }
    }

    /// Undoes [`PublishedStatus::marked_corrupt`]: the file has its applied prefix again, and the rest is
    /// pending.
    pub(super) fn restored(&mut self, id: &SegmentId, corrupt_lines: u64) {
        if let Some(number) = id.number() {
            self.dead.remove(&number);
        }
        if let Some(sealed) = self.sealed.get_mut(id) {
            sealed.counted = false;
        }
        // These lines are counted again as pending.
        let settled = &mut self.settled;
        settled.ledger.corrupt = settled.ledger.corrupt.saturating_sub(corrupt_lines);
        settled.lines = settled.lines.saturating_sub(corrupt_lines);
        self.health.clear(&topic(id));
    }
}

impl Watch for PublishedStatus {
    fn committed(&mut self, commits: &[Commit<'_>], took: Duration) {
        self.progress.flushes().observe(took);
        for commit in commits {
            let (id, to) = (&commit.segment.id, commit.to);
            if let Some(number) = id.number() {
                self.applied.insert(number, to);
                let ahead = self.sealed.get(id).is_some_and(|sealed| sealed.ahead);
                if !ahead {
                    self.committed = self.committed.max(Position {
                        segment: number,
                        offset: to,
                    });
                }
            }
            let (ledger, counts) = (&mut self.settled.ledger, commit.applied.counts);
            ledger.applied += counts.events;
            ledger.duplicates += counts.duplicates;
            ledger.rejected += counts.rejected;
            self.settled.overall = commit.applied.overall;
        }
        self.publish();
    }

    fn locked(&mut self, error: &StoreError) -> bool {
        if self.locked_since.is_none() {
            self.publish(); // The pending lines may have been counted since the last commit.
        }
        let since = *self.locked_since.get_or_insert_with(Instant::now);
        self.health.set(DATABASE, describe(error));
        !(self.progress.is_stopping() && since.elapsed() > LAST_FLUSH_MAX)
    }

    fn unlocked(&mut self) {
        if self.locked_since.take().is_some() {
            self.health.clear(DATABASE);
        }
    }
}
