//! The transactions that apply ranges to an SQLite database.

use std::collections::HashSet;
use std::path::Path;

use rusqlite::{Transaction, TransactionBehavior};

use super::{JournalMode, SqliteWriter};
use crate::store::apply::{self, Attempt, End, Failure, FoldAttempt};
use crate::store::sqlite_rows::SqliteRows;
use crate::store::{Outcome, OutcomeOfAll, OutcomeOfFold, Range, Source, StoreError, UserSums};

impl SqliteWriter {
    /// Applies a range: all of it in one transaction, or nothing. After an error other than a lock or
    /// [`StoreError::Source`] the writer must not be used again.
    pub fn apply(
        &mut self,
        range: &Range<'_>,
        source: &mut dyn Source,
    ) -> Result<Outcome, StoreError> {
        let mut suspects = HashSet::new();
        loop {
            match self.attempt(range, &suspects, source)? {
                Attempt::Ready(applied) => return Ok(Outcome::Applied(applied)),
                Attempt::Raced => return Ok(Outcome::Raced),
                Attempt::Suspects(more) => suspects.extend(more),
            }
        }
    }

    /// Applies ranges of several segments, in this order, in one transaction: all of them, or nothing.
    /// The ranges must be small, because the transaction keeps the changed pages in memory. After an
    /// error other than a lock the writer must not be used again.
    pub fn apply_together(
        &mut self,
        ranges: &mut [(Range<'_>, &mut dyn Source)],
    ) -> Result<OutcomeOfAll, StoreError> {
        self.write("commit ranges", |transaction, path, _| {
            let sqlite = |source| StoreError::sqlite(path, "apply ranges")(source);
            let mut all = Vec::with_capacity(ranges.len());
            for (at, (range, source)) in ranges.iter_mut().enumerate() {
                let mut suspects = HashSet::new();
                // If a total might overflow, only this range is repeated.
                let mut savepoint = transaction.savepoint().map_err(sqlite)?;
                let applied = loop {
                    let mut rows = SqliteRows::new(&savepoint, range.now_ms);
                    let attempt = apply::attempt(&mut rows, range, &suspects, *source);
                    drop(rows);
                    match attempt.map_err(|failure| failed(path, failure))? {
                        Attempt::Ready(applied) => break applied,
                        Attempt::Raced => return Ok(End::RollBack(OutcomeOfAll::Raced(at))),
                        Attempt::Suspects(more) => {
                            suspects.extend(more);
                            savepoint.rollback().map_err(sqlite)?;
                        }
                    }
                };
                savepoint.commit().map_err(sqlite)?;
                all.push(applied);
            }
            Ok(End::Commit(OutcomeOfAll::Applied(all)))
        })
    }

    /// Applies ranges of several segments whose sums per user are added up in `users`, in this order, in one
    /// transaction: all of them, or nothing. After an error other than a lock or [`StoreError::Source`] the writer
    /// must not be used again.
    pub fn apply_folded(
        &mut self,
        users: &UserSums,
        ranges: &mut [(Range<'_>, &mut dyn Source)],
    ) -> Result<OutcomeOfFold, StoreError> {
        let now_ms = ranges.first().map_or(0, |(range, _)| range.now_ms);
        self.write("commit ranges", |transaction, path, is_first_load| {
            let mut rows = large_rows(transaction, now_ms, path, is_first_load);
            let attempt = apply::attempt_folded(&mut rows, users, ranges);
            Ok(match attempt.map_err(|failure| failed(path, failure))? {
                FoldAttempt::Ready(all) => End::Commit(OutcomeOfFold::Applied(all)),
                FoldAttempt::Raced(at) => End::RollBack(OutcomeOfFold::Raced(at)),
                FoldAttempt::MayOverflow => End::RollBack(OutcomeOfFold::Separately),
            })
        })
    }

    fn attempt(
        &mut self,
        range: &Range<'_>,
        suspects: &HashSet<String>,
        source: &mut dyn Source,
    ) -> Result<Attempt, StoreError> {
        self.write("commit a range", |transaction, path, is_first_load| {
            let mut rows = large_rows(transaction, range.now_ms, path, is_first_load);
            let attempt = apply::attempt(&mut rows, range, suspects, source);
            Ok(match attempt.map_err(|failure| failed(path, failure))? {
                ready @ Attempt::Ready(_) => End::Commit(ready),
                other => End::RollBack(other),
            })
        })
    }

    /// Calls `body` in a transaction, with the path of the database, and whether this is the first load of a new
    /// one. After an error the transaction is rolled back.
    fn write<T>(
        &mut self,
        committing: &'static str,
        body: impl FnOnce(&mut Transaction<'_>, &Path, bool) -> Result<End<T>, StoreError>,
    ) -> Result<T, StoreError> {
        self.leave_first_load()?;
        let path = &self.path;
        let is_first_load = self.journal == JournalMode::FirstLoad;
        let mut transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(StoreError::sqlite(path, "begin a transaction"))?;
        // Dropped without a commit, the transaction is rolled back.
        let done = match body(&mut transaction, path, is_first_load)? {
            End::Commit(done) => done,
            End::RollBack(done) => return Ok(done),
        };
        transaction
            .commit()
            .map_err(StoreError::sqlite(path, committing))?;
        if is_first_load {
            self.journal = JournalMode::Loaded;
        }
        Ok(done)
    }
}

/// The rows for a transaction that may change many.
fn large_rows<'t>(
    transaction: &'t Transaction<'_>,
    now_ms: i64,
    path: &'t Path,
    is_first_load: bool,
) -> SqliteRows<'t> {
    let rows = SqliteRows::new(transaction, now_ms);
    if is_first_load {
        rows.writing_back_to(path)
    } else {
        rows
    }
}

fn failed(path: &Path, failure: Failure<rusqlite::Error>) -> StoreError {
    match failure {
        Failure::Rows(source) => StoreError::sqlite(path, "apply a range")(source),
        Failure::Source(source) => StoreError::Source(source),
    }
}
