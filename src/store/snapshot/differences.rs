//! Compares the totals of the database with the sums of the files.
//!
//! Both are read in the order of the user ids, so that neither has to fit into memory. The files' sums have
//! every event; events that are not counted, such as duplicates, are corrections in the temporary database,
//! in the row of their user.

use rusqlite::{Connection, OptionalExtension, Rows, params};

use super::Snapshot;
use crate::aggregate::delta::Sums;
use crate::store::{StoreError, UserSums};

const CORRECT: &str = include_str!("../../../sql/verify/correct.sql");
const SELECT_CORRECTION: &str = include_str!("../../../sql/verify/select_correction.sql");
const SET_CORRECTION: &str = include_str!("../../../sql/verify/set_correction.sql");
const SELECT_USERS: &str = include_str!("../../../sql/verify/select_users.sql");

/// Sums this far from the ends of 64 bits can be added in SQL.
const SAFE: i64 = 1 << 62;

/// A user's total, or the part of it that files account for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UserSum {
    /// Added minus subtracted, modulo 2^64.
    pub micros: i64,
    /// Events; negative in a correction.
    pub events: i64,
}

impl UserSum {
    fn of(sums: &Sums) -> Self {
        Self {
            micros: sums.net_wrapping(),
            events: i64::try_from(sums.events()).unwrap_or(i64::MAX),
        }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            micros: self.micros.wrapping_add(other.micros),
            events: self.events.wrapping_add(other.events),
        }
    }
}

impl Snapshot {
    /// Sets the sums of the files, once.
    pub fn set_files(&self, users: UserSums) {
        let _first = self.files.set(users);
    }

    /// Adds to the files' sums of these users.
    pub fn correct<'u>(
        &self,
        users: impl Iterator<Item = (&'u str, UserSum)>,
    ) -> Result<(), StoreError> {
        let write = || -> rusqlite::Result<()> {
            let writing = self.scratch.unchecked_transaction()?;
            {
                let mut correct = writing.prepare_cached(CORRECT)?;
                for (user, UserSum { micros, events }) in users {
                    let safe = (-SAFE..=SAFE).contains(&micros);
                    if !safe || correct.execute(params![user, micros, events, -SAFE, SAFE])? != 1 {
                        correct_wrapping(&writing, user, micros, events)?;
                    }
                }
            }
            writing.commit()
        };
        write().map_err(self.failed())
    }

    /// Calls `each` for every user whose totals differ, in ascending order, with the user, the database's
    /// total and the files' total.
    pub fn differences(
        &self,
        each: &mut dyn FnMut(&str, UserSum, UserSum),
    ) -> Result<(), StoreError> {
        let failed = self.failed();
        let mut compare = |user: &str, database: UserSum, files: UserSum| {
            if database != files {
                each(user, database, files);
            }
        };
        let mut select = self.scratch.prepare(SELECT_USERS).map_err(failed)?;
        let rows = select.query([]).map_err(self.failed())?;
        let mut rows = TotalsReader::new(rows).map_err(self.failed())?;
        if let Some(files) = self.files.get() {
            for block in files.blocks().map_err(StoreError::Source)? {
                for (user, sums) in block.map_err(StoreError::Source)?.iter() {
                    while rows.next_user().is_some_and(|next| next < user) {
                        compare(&rows.user, rows.database, rows.correction);
                        rows.advance().map_err(self.failed())?;
                    }
                    let sum = UserSum::of(sums);
                    if rows.next_user() == Some(user) {
                        compare(user, rows.database, sum.plus(rows.correction));
                        rows.advance().map_err(self.failed())?;
                    } else {
                        compare(user, UserSum::default(), sum);
                    }
                }
            }
        }
        while rows.next_user().is_some() {
            compare(&rows.user, rows.database, rows.correction);
            rows.advance().map_err(self.failed())?;
        }
        Ok(())
    }

    fn failed(&self) -> impl FnOnce(rusqlite::Error) -> StoreError + '_ {
        StoreError::sqlite(&self.path, "compare its totals")
    }
}

fn correct_wrapping(
    scratch: &Connection,
    user: &str,
    micros: i64,
    events: i64,
) -> rusqlite::Result<()> {
    let before: Option<i64> = scratch
        .prepare_cached(SELECT_CORRECTION)?
        .query_row([user], |row| row.get(0))
        .optional()?;
    let sum = before.unwrap_or(0).wrapping_add(micros);
    scratch
        .prepare_cached(SET_CORRECTION)?
        .execute(params![user, sum, events])
        .map(|_| ())
}

/// A position in the rows of the temporary database.
struct TotalsReader<'r> {
    rows: Rows<'r>,
    /// The user at this position; meaningless at the end.
    user: String,
    database: UserSum,
    correction: UserSum,
    is_at_end: bool,
}

impl<'r> TotalsReader<'r> {
    fn new(rows: Rows<'r>) -> rusqlite::Result<Self> {
        let mut reader = Self {
            rows,
            user: String::new(),
            database: UserSum::default(),
            correction: UserSum::default(),
            is_at_end: false,
        };
        reader.advance()?;
        Ok(reader)
    }

    fn next_user(&self) -> Option<&str> {
        (!self.is_at_end).then_some(&*self.user)
    }

    fn advance(&mut self) -> rusqlite::Result<()> {
        let Some(row) = self.rows.next()? else {
            self.is_at_end = true;
            return Ok(());
        };
        self.user.clear();
        self.user.push_str(row.get_ref(0)?.as_str()?);
        let sum = |at| -> rusqlite::Result<UserSum> {
            Ok(UserSum {
                micros: row.get(at)?,
                events: row.get(at + 1)?,
            })
        };
        (self.database, self.correction) = (sum(1)?, sum(3)?);
        Ok(())
    }
}
