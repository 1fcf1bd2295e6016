//! Applies ranges of a node's segments in one transaction.
//!
//! Two transactions cannot deadlock, because all of them lock rows in one order: the row of the node, segments by
//! node and name, ids by id, blocks of ids by key. Everything after that belongs to one node. The statements of one
//! range have this order. Two cases have not, and lock the ids of all ranges in advance ([`ReservedIds`]): several
//! ranges with ids, and an overflow replay, which goes line by line.

use std::collections::{BTreeMap, HashSet};

use ::postgres::Client;

use super::PostgresWriter;
use super::reserved_ids::ReservedIds;
use super::rows::PostgresRows;
use super::segments;
use super::statement::RowsError;
use crate::store::apply::End;
use crate::store::apply::{self, Attempt, FoldAttempt};
use crate::store::{
    Outcome, OutcomeOfAll, OutcomeOfFold, Range, SegmentRow, Source, StoreError, UserSums,
};

/// The outcome of one transaction.
enum Tried {
    Done(OutcomeOfAll),
    /// Totals of these users of a range might overflow.
    Again(usize, HashSet<String>),
}

impl PostgresWriter {
    /// See [`Writer::apply`](crate::store::Writer::apply).
    pub fn apply(
        &mut self,
        range: &Range<'_>,
        source: &mut dyn Source,
    ) -> Result<Outcome, StoreError> {
        match self.apply_together(&mut [(*range, source)])? {
            OutcomeOfAll::Applied(applied) => match applied[..] {
                [applied] => Ok(Outcome::Applied(applied)),
                _ => Ok(Outcome::Raced),
            },
            OutcomeOfAll::Raced(_) => Ok(Outcome::Raced),
        }
    }

    /// See [`Writer::apply_together`](crate::store::Writer::apply_together).
    pub fn apply_together(
        &mut self,
        ranges: &mut [(Range<'_>, &mut dyn Source)],
    ) -> Result<OutcomeOfAll, StoreError> {
        let mut suspects: Vec<HashSet<String>> = vec![HashSet::new(); ranges.len()];
        let node = self.node.number;
        loop {
            let mut last = None;
            let outcome = self.write("apply a range", |transaction| {
                let plain: Vec<Range<'_>> = ranges.iter().map(|(range, _)| *range).collect();
                let claimed = match claim(transaction, node, &plain)? {
                    Claimed::All(rows) => rows,
                    Claimed::Raced(at) => {
                        return Ok(End::RollBack(Tried::Done(OutcomeOfAll::Raced(at))));
                    }
                };
                let keys: Vec<i64> = claimed.iter().map(|row| row.key).collect();
                last = keys.last().copied().zip(plain.last().map(|range| range.to));
                let mut reserved = None;
                if ReservedIds::is_needed(&plain, &suspects) {
                    reserved = Some(ReservedIds::of(transaction, node, &plain, &keys)?);
                }
                let mut all = Vec::with_capacity(ranges.len());
                for (at, ((range, source), row)) in ranges.iter_mut().zip(claimed).enumerate() {
                    let mut rows = PostgresRows::new(
                        transaction,
                        node,
                        range.now_ms,
                        vec![row],
                        reserved.as_mut(),
                    );
                    match apply::attempt(&mut rows, range, &suspects[at], *source)? {
                        Attempt::Ready(applied) => all.push(applied),
                        Attempt::Raced => {
                            return Ok(End::RollBack(Tried::Done(OutcomeOfAll::Raced(at))));
                        }
                        Attempt::Suspects(more) => {
                            return Ok(End::RollBack(Tried::Again(at, more)));
                        }
                    }
                }
                if let Some(reserved) = reserved {
                    reserved.delete_empty_blocks(transaction)?;
                }
                Ok(End::Commit(Tried::Done(OutcomeOfAll::Applied(all))))
            })?;
            match outcome {
                Tried::Again(at, more) => suspects[at].extend(more),
                Tried::Done(done) => {
                    if matches!(done, OutcomeOfAll::Applied(_)) {
                        self.last = last;
                    }
                    return Ok(done);
                }
            }
        }
    }

    /// See [`Writer::apply_folded`](crate::store::Writer::apply_folded).
    pub fn apply_folded(
        &mut self,
        users: &UserSums,
        ranges: &mut [(Range<'_>, &mut dyn Source)],
    ) -> Result<OutcomeOfFold, StoreError> {
        let node = self.node.number;
        let now_ms = ranges.first().map_or(0, |(range, _)| range.now_ms);
        let mut last = None;
        let outcome = self.write("apply ranges", |transaction| {
            let plain: Vec<Range<'_>> = ranges.iter().map(|(range, _)| *range).collect();
            let claimed = match claim(transaction, node, &plain)? {
                Claimed::All(rows) => rows,
                Claimed::Raced(at) => return Ok(End::RollBack(OutcomeOfFold::Raced(at))),
            };
            let keys: Vec<i64> = claimed.iter().map(|row| row.key).collect();
            last = keys.last().copied().zip(plain.last().map(|range| range.to));
            let mut reserved = None;
            if ReservedIds::is_needed(&plain, &[]) {
                reserved = Some(ReservedIds::of(transaction, node, &plain, &keys)?);
            }
            let mut rows = PostgresRows::new(transaction, node, now_ms, claimed, reserved.as_mut());
            let all = match apply::attempt_folded(&mut rows, users, ranges)? {
                FoldAttempt::Ready(all) => all,
                FoldAttempt::Raced(at) => return Ok(End::RollBack(OutcomeOfFold::Raced(at))),
                FoldAttempt::MayOverflow => return Ok(End::RollBack(OutcomeOfFold::Separately)),
            };
            if let Some(reserved) = reserved {
                reserved.delete_empty_blocks(transaction)?;
            }
            Ok(End::Commit(OutcomeOfFold::Applied(all)))
        })?;
        if matches!(outcome, OutcomeOfFold::Applied(_)) {
            self.last = last;
        }
        Ok(outcome)
    }
}

/// The outcome of changing the applied offsets of the segments of all ranges.
enum Claimed {
    /// The rows, in the order of the ranges.
    All(Vec<SegmentRow>),
    /// The applied offset of this range's segment was another one.
    Raced(usize),
}

/// Step 3 of all ranges. No two of them are of one segment.
fn claim(transaction: &mut Client, node: i32, ranges: &[Range<'_>]) -> Result<Claimed, RowsError> {
    let names = ranges.iter().map(|range| range.segment.to_string());
    let by_name: BTreeMap<String, usize> = names.zip(0..).collect();
    let mut claimed = BTreeMap::new();
    for at in by_name.into_values() {
        match segments::claim_segment(transaction, node, &ranges[at])? {
            Some(row) => claimed.insert(at, row),
            None => return Ok(Claimed::Raced(at)),
        };
    }
    Ok(Claimed::All(claimed.into_values().collect()))
}
