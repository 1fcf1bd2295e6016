//! The transactions that apply ranges to the rows of a node.

use std::collections::HashSet;

use super::rows::PostgresRows;
use super::writer::{ATTEMPTS, End, PostgresWriter};
use crate::store::apply::{self, Attempt, FoldAttempt};
use crate::store::{Outcome, OutcomeOfAll, OutcomeOfFold, Range, Source, StoreError, UserSums};

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
    ///
    /// Several ranges in one transaction lock ids in the order of the ranges, so two nodes with the same ids may
    /// deadlock. Then each range gets a transaction of its own, in which ids are locked in their order. If one of
    /// these fails, the ones before it are committed; the caller reads the rows again in that case.
    pub fn apply_together(
        &mut self,
        ranges: &mut [(Range<'_>, &mut dyn Source)],
    ) -> Result<OutcomeOfAll, StoreError> {
        if ranges.len() > 1 {
            match self.apply_in_one(ranges, 1) {
                Err(StoreError::Conflict { .. }) => {}
                done => return done,
            }
        }
        let mut all = Vec::with_capacity(ranges.len());
        for (at, range) in ranges.chunks_mut(1).enumerate() {
            match self.apply_in_one(range, ATTEMPTS)? {
                OutcomeOfAll::Applied(applied) => all.extend(applied),
                OutcomeOfAll::Raced(_) => return Ok(OutcomeOfAll::Raced(at)),
            }
        }
        Ok(OutcomeOfAll::Applied(all))
    }

    /// Applies ranges in one transaction.
    fn apply_in_one(
        &mut self,
        ranges: &mut [(Range<'_>, &mut dyn Source)],
        attempts: u32,
    ) -> Result<OutcomeOfAll, StoreError> {
        let mut suspects: Vec<HashSet<String>> = vec![HashSet::new(); ranges.len()];
        let node = self.node.number;
        loop {
            let mut last = None;
            let outcome = self.write_within(attempts, "apply a range", |transaction| {
                let mut all = Vec::with_capacity(ranges.len());
                for (at, (range, source)) in ranges.iter_mut().enumerate() {
                    let mut rows = PostgresRows::new(transaction, node, range.now_ms);
                    match apply::attempt(&mut rows, range, &suspects[at], *source)? {
                        Attempt::Ready(applied, key) => {
                            last = Some((key, range.to));
                            all.push(applied);
                        }
                        Attempt::Raced => {
                            return Ok(End::RollBack(Tried::Done(OutcomeOfAll::Raced(at))));
                        }
                        Attempt::Suspects(more) => {
                            return Ok(End::RollBack(Tried::Again(at, more)));
                        }
                    }
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
        let to = ranges.last().map(|(range, _)| range.to);
        let mut last = None;
        let outcome = self.write_within(1, "apply ranges", |transaction| {
            let mut rows = PostgresRows::new(transaction, node, now_ms);
            Ok(match apply::attempt_folded(&mut rows, users, ranges)? {
                FoldAttempt::Ready(all, key) => {
                    last = key.zip(to);
                    End::Commit(OutcomeOfFold::Applied(all))
                }
                FoldAttempt::Raced(at) => End::RollBack(OutcomeOfFold::Raced(at)),
                FoldAttempt::MayOverflow => End::RollBack(OutcomeOfFold::Separately),
            })
        });
        match outcome {
            // Another node has the same ids, which several ranges do not lock in their order.
            Err(StoreError::Conflict { .. }) => Ok(OutcomeOfFold::Separately),
            Ok(OutcomeOfFold::Applied(all)) => {
                self.last = last;
                Ok(OutcomeOfFold::Applied(all))
            }
            outcome => outcome,
        }
    }
}

/// The outcome of one transaction.
enum Tried {
    Done(OutcomeOfAll),
    /// Totals of these users of a range might overflow.
    Again(usize, HashSet<String>),
}
