//! The published status: the applied position, dead segments and the ledger, updated after each commit.
//!
//! Only the thread `process` changes it; other threads see it through [`Progress`] and [`Health`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::accounting;
use super::{
    Commit, DATABASE, DeadSegment, Health, LAST_FLUSH_MAX, Position, Progress, PublishedStatus,
    SegmentId, Settled, StoreError, Tail, Watch, describe, topic,
};

impl PublishedStatus {
    pub(super) fn new(progress: Arc<Progress>, health: Arc<Health>) -> Self {
        Self {
            progress,
            health,
            sealed: BTreeMap::new(),
            lost: BTreeMap::new(),
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
            .filter(|(_, sealed)| !sealed.whole)
            .find_map(|(id, _)| id.number().filter(|number| !self.lost.contains_key(number)));
        let number = pending.unwrap_or(self.active).min(self.active);
        Position {
            segment: number,
            offset: applied(number),
        }
    }

    pub(super) fn publish(&self) {
        let dead: Vec<DeadSegment> = self.lost.values().copied().collect();
        self.progress.publish(self.frontier(), &dead, self.settled);
    }

    /// Records that nothing after `applied_bytes` will be applied; `lines` is the number of lines there.
    pub(super) fn marked_corrupt(&mut self, id: &SegmentId, applied_bytes: u64, lines: u64) {
        if let Some(number) = id.number() {
            self.lost.insert(
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
        let end = Position {
            segment: tail.number,
            offset: tail.durable_end,
        };
        let pending = self.sealed.values().any(|sealed| !sealed.whole);
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
            self.lost.remove(&number);
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
        }
        self.publish();
    }

    fn locked(&mut self, error: &StoreError) -> bool {
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
