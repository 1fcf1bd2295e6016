//! The transactions that apply ranges to an SQLite database.

use std::collections::HashSet;
use std::path::Path;

use rusqlite::TransactionBehavior;

use super::{JournalMode, SqliteWriter};
use crate::store::apply::{self, Attempt, Failure, FoldAttempt};
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
        self.leave_first_load()?;
        let path = &self.path;
        let failed = |failure| Self::failed(path, failure);
        let sqlite = |source| StoreError::sqlite(path, "apply ranges")(source);
        let mut transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(StoreError::sqlite(path, "begin a transaction"))?;
        let mut all = Vec::with_capacity(ranges.len());
        for (at, (range, source)) in ranges.iter_mut().enumerate() {
            let mut suspects = HashSet::new();
            // If a total might overflow, only this range is repeated.
            let mut savepoint = transaction.savepoint().map_err(sqlite)?;
            let applied = loop {
                let mut rows = SqliteRows::new(&savepoint, range.now_ms);
                let attempt = apply::attempt(&mut rows, range, &suspects, *source);
                drop(rows);
                match attempt.map_err(failed)? {
                    Attempt::Ready(applied) => break applied,
                    Attempt::Raced => return Ok(OutcomeOfAll::Raced(at)),
                    Attempt::Suspects(more) => {
                        suspects.extend(more);
                        savepoint.rollback().map_err(sqlite)?;
                    }
                }
            };
            savepoint.commit().map_err(sqlite)?;
            all.push(applied);
        }
        transaction
            .commit()
            .map_err(StoreError::sqlite(path, "commit ranges"))?;
        if self.journal == JournalMode::FirstLoad {
            self.journal = JournalMode::Loaded;
        }
        Ok(OutcomeOfAll::Applied(all))
    }

    /// Applies ranges of several segments whose sums per user are added up in `users`, in this order, in one
    /// transaction: all of them, or nothing. After an error other than a lock or [`StoreError::Source`] the writer
    /// must not be used again.
    pub fn apply_folded(
        &mut self,
        users: &UserSums,
        ranges: &mut [(Range<'_>, &mut dyn Source)],
    ) -> Result<OutcomeOfFold, StoreError> {
        self.leave_first_load()?;
        let path = &self.path;
        let now_ms = ranges.first().map_or(0, |(range, _)| range.now_ms);
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(StoreError::sqlite(path, "begin a transaction"))?;
        // Dropped without a commit, the transaction is rolled back.
        let mut rows = SqliteRows::new(&transaction, now_ms);
        if self.journal == JournalMode::FirstLoad {
            rows = rows.writing_back_to(path);
        }
        let attempt = apply::attempt_folded(&mut rows, users, ranges);
        drop(rows);
        let all = match attempt.map_err(|failure| Self::failed(path, failure))? {
            FoldAttempt::Ready(all) => all,
            FoldAttempt::Raced(at) => return Ok(OutcomeOfFold::Raced(at)),
            FoldAttempt::MayOverflow => return Ok(OutcomeOfFold::Separately),
        };
        transaction
            .commit()
            .map_err(StoreError::sqlite(path, "commit ranges"))?;
        if self.journal == JournalMode::FirstLoad {
            self.journal = JournalMode::Loaded;
        }
        Ok(OutcomeOfFold::Applied(all))
    }

    fn failed(path: &Path, failure: Failure<rusqlite::Error>) -> StoreError {
        match failure {
            Failure::Rows(source) => StoreError::sqlite(path, "apply a range")(source),
            Failure::Source(source) => StoreError::Source(source),
        }
    }

    fn attempt(
        &mut self,
        range: &Range<'_>,
        suspects: &HashSet<String>,
        source: &mut dyn Source,
    ) -> Result<Attempt, StoreError> {
        self.leave_first_load()?;
        let path = &self.path;
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(StoreError::sqlite(path, "begin a transaction"))?;
        // Dropped without a commit, the transaction is rolled back.
        let mut rows = SqliteRows::new(&transaction, range.now_ms);
        if self.journal == JournalMode::FirstLoad {
            rows = rows.writing_back_to(path);
        }
        let attempt = apply::attempt(&mut rows, range, suspects, source)
            .map_err(|failure| Self::failed(path, failure));
        drop(rows);
        let attempt = attempt?;
        if matches!(attempt, Attempt::Ready(..)) {
            transaction
                .commit()
                .map_err(StoreError::sqlite(path, "commit a range"))?;
            if self.journal == JournalMode::FirstLoad {
                self.journal = JournalMode::Loaded;
            }
        }
        Ok(attempt)
    }
}
