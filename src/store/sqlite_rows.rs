//! The row operations of an attempt on SQLite, by prepared statements.
//!
//! Several rows in key order are written by one statement, which rarely needs a new search of the tree for
//! the next row.

mod statements;

use std::collections::{HashMap, HashSet};
use std::path::Path;

use rusqlite::{Connection, OptionalExtension, params};

use self::statements::{
    Prepared, ROWS, bind_totals, insert_blocks, insert_ids, load, many_rows, prepared,
    upsert_totals,
};
use super::apply::id_blocks::{Change, Work};
use super::apply::ids::{IdLookup, IdRow};
use super::apply::totals::SAFE;
use super::apply::{AddedCounts, Range, Rows};
use super::id_blocks::{Block, BlockKey, INSERT_ID_BLOCK, SELECT_ID_BLOCK};
use super::overall::{self, Added, NewUsers, Overall};
use super::write_back::WriteBack;
use super::{IdEvent, Rejected, SegmentState};
use super::{SegmentRow, segments};
use crate::data_dir::segment::{SegmentId, Tag};

const CLAIM_SEGMENT: &str = include_str!("../../sql/query/claim_segment.sql");
const INSERT_SEGMENT: &str = include_str!("../../sql/query/insert_segment.sql");
const ADD_COUNTS: &str = include_str!("../../sql/query/add_segment_counts.sql");
const NEXT_IMPORT_KEY: &str = include_str!("../../sql/query/next_import_key.sql");
const COUNT_REJECTED: &str = include_str!("../../sql/query/count_rejected_lines.sql");
const INSERT_REJECTED: &str = include_str!("../../sql/query/insert_rejected_line.sql");
const INSERT_EVENT_ID: &str = include_str!("../../sql/query/insert_event_id.sql");
const SELECT_EVENT_ID: &str = include_str!("../../sql/query/select_event_id.sql");
const UPDATE_ID_BLOCK: &str = include_str!("../../sql/query/update_id_block.sql");
const SELECT_REVENUE: &str = include_str!("../../sql/query/select_revenue.sql");
const UPSERT_USER_TOTAL: &str = include_str!("../../sql/query/upsert_user_total.sql");
const SET_USER_TOTAL: &str = include_str!("../../sql/query/set_user_total.sql");

/// The rows of one transaction.
pub(super) struct SqliteRows<'t> {
    transaction: &'t Connection,
    now_ms: i64,
    select_id: Prepared<'t>,
    insert_id: Prepared<'t>,
    /// Inserts [`ROWS`] rows.
    insert_ids: Prepared<'t>,
    select_block: Prepared<'t>,
    insert_block: Prepared<'t>,
    insert_blocks: Prepared<'t>,
    update_block: Prepared<'t>,
    upsert_total: Prepared<'t>,
    upsert_totals: Prepared<'t>,
    insert_rejected: Prepared<'t>,
    /// Rows of totals that were inserted or updated.
    totals_written: usize,
    /// In the first transaction into a new database, with the path of the file.
    write_back: Option<(WriteBack, &'t Path)>,
}

impl<'t> SqliteRows<'t> {
    /// The rows of a transaction; `now_ms` is the time of applying.
    pub(super) fn new(transaction: &'t Connection, now_ms: i64) -> Self {
        Self {
            transaction,
            now_ms,
            select_id: None,
            insert_id: None,
            insert_ids: None,
            select_block: None,
            insert_block: None,
            insert_blocks: None,
            update_block: None,
            upsert_total: None,
            upsert_totals: None,
            insert_rejected: None,
            totals_written: 0,
            write_back: None,
        }
    }

    /// Writes pages to the database at this path before the commit.
    pub(super) fn writing_back_to(mut self, path: &'t Path) -> Self {
        self.write_back = Some((WriteBack::new(), path));
        self
    }

    fn now_s(&self) -> i64 {
        self.now_ms.div_euclid(1000)
    }
}

impl Rows for SqliteRows<'_> {
    type Error = rusqlite::Error;
    const TOGETHER: usize = ROWS;

    fn claim(&mut self, range: &Range<'_>) -> rusqlite::Result<Option<SegmentRow>> {
        let state = range.end.state().name();
        let changed = match segments::one(self.transaction, range.segment)? {
            Some(row) => self
                .transaction
                .prepare_cached(CLAIM_SEGMENT)?
                .execute(params![
                    row.key,
                    range.from,
                    range.to,
                    range.checksum,
                    range.file_name,
                    state,
                    range.now_ms,
                    range.tag.map(|tag| tag.to_string()),
                    range.label.map(|label| label.to_string()),
                ])?,
            None if range.from == 0 => insert_segment(
                self.transaction,
                range.segment,
                range.tag,
                params![
                    range.file_name,
                    state,
                    range.to,
                    range.checksum,
                    range.now_ms,
                    range.label.map(|label| label.to_string()),
                ],
            )?,
            None => 0,
        };
        if changed != 1 {
            return Ok(None);
        }
        NewUsers::begin(self.transaction)?;
        segments::one(self.transaction, range.segment)
    }

    fn place(&self, key: i64) -> i64 {
        key
    }

    fn insert_ids(
        &mut self,
        place: i64,
        events: &[IdEvent<'_>],
        seen: &mut Vec<IdLookup>,
    ) -> rusqlite::Result<()> {
        let now_s = self.now_s();
        let mut inserted = 0;
        if events.len() == ROWS {
            let many = prepared(&mut self.insert_ids, self.transaction, || {
                many_rows(INSERT_EVENT_ID, 2, 3, "?1, ?2")
            })?;
            inserted = insert_ids(many, events, place, now_s)?;
        } else {
            let one = prepared(&mut self.insert_id, self.transaction, || INSERT_EVENT_ID)?;
            for event in events.chunks(1) {
                inserted += insert_ids(one, event, place, now_s)?;
            }
        }
        for event in events {
            seen.push(if inserted == events.len() {
                IdLookup::New
            } else {
                self.look_up_id(place, event)?
            });
        }
        Ok(())
    }

    fn look_up_id(&mut self, place: i64, event: &IdEvent<'_>) -> rusqlite::Result<IdLookup> {
        let select = prepared(&mut self.select_id, self.transaction, || SELECT_EVENT_ID)?;
        let found = select.query_row([event.id], |row| {
            Ok(IdRow {
                payload: row.get(0)?,
                place: row.get(1)?,
                offset: row.get(2)?,
            })
        });
        Ok(IdLookup::of(found.optional()?.as_ref(), place, event))
    }

    fn insert_id(&mut self, place: i64, event: &IdEvent<'_>) -> rusqlite::Result<()> {
        let now_s = self.now_s();
        let one = prepared(&mut self.insert_id, self.transaction, || INSERT_EVENT_ID)?;
        insert_ids(one, &[*event], place, now_s).map(|_| ())
    }

    /// A stored block with exactly the bytes that were to be inserted was inserted by this statement: its
    /// runs lie in this range, which was not applied before.
    fn upsert_blocks(
        &mut self,
        works: &mut [Work<'_>],
        mut merge: impl FnMut(&mut Work<'_>) -> Change,
    ) -> rusqlite::Result<()> {
        let now_s = self.now_s();
        let mut inserted = 0;
        if works.len() == ROWS {
            let many = prepared(&mut self.insert_blocks, self.transaction, || {
                many_rows(INSERT_ID_BLOCK, 1, 4, "?1")
            })?;
            inserted = insert_blocks(many, works, now_s)?;
        } else {
            let one = prepared(&mut self.insert_block, self.transaction, || INSERT_ID_BLOCK)?;
            for work in works.chunks(1) {
                inserted += insert_blocks(one, work, now_s)?;
            }
        }
        if inserted == works.len() {
            return Ok(());
        }
        for work in works {
            let select = prepared(&mut self.select_block, self.transaction, || SELECT_ID_BLOCK)?;
            if !load(select, &work.key, Some(&work.bytes), &mut work.block)? {
                continue; // as it was inserted
            }
            let change = merge(work);
            if change != Change::Nothing {
                self.update_block(work, change)?;
            }
        }
        Ok(())
    }

    fn load_block(&mut self, key: &BlockKey<'_>, block: &mut Block) -> rusqlite::Result<bool> {
        let select = prepared(&mut self.select_block, self.transaction, || SELECT_ID_BLOCK)?;
        load(select, key, None, block)
    }

    fn insert_block(&mut self, work: &Work<'_>) -> rusqlite::Result<()> {
        let now_s = self.now_s();
        let one = prepared(&mut self.insert_block, self.transaction, || INSERT_ID_BLOCK)?;
        insert_blocks(one, std::slice::from_ref(work), now_s).map(|_| ())
    }

    fn update_block(&mut self, work: &Work<'_>, change: Change) -> rusqlite::Result<()> {
        let now_s = (change == Change::Counted).then_some(self.now_s());
        let update = prepared(&mut self.update_block, self.transaction, || UPDATE_ID_BLOCK)?;
        let BlockKey {
            prefix,
            width,
            block,
        } = work.key;
        update
            .execute(params![prefix, width, block, work.bytes, now_s])
            .map(|_| ())
    }

    fn totals(&mut self, users: &HashSet<String>) -> rusqlite::Result<HashMap<String, i64>> {
        let mut select = self.transaction.prepare_cached(SELECT_REVENUE)?;
        let mut totals = HashMap::new();
        for user in users {
            if let Some(total) = select.query_row([user], |row| row.get(0)).optional()? {
                totals.insert(user.clone(), total);
            }
        }
        Ok(totals)
    }

    fn add_totals(
        &mut self,
        users: &[(&str, i64, i64)],
        suspects: &mut HashSet<String>,
    ) -> rusqlite::Result<()> {
        if users.len() != ROWS {
            let one = match &mut self.upsert_total {
                Some(one) => one,
                none => {
                    let one = self.transaction.prepare_cached(UPSERT_USER_TOTAL)?;
                    none.insert(bind_totals(one, self.now_ms)?)
                }
            };
            for user in users.chunks(1) {
                let written = upsert_totals(one, user)?;
                self.totals_written += written;
                if written != 1 {
                    suspects.extend(user.iter().map(|&(user, ..)| user.to_owned()));
                }
            }
            return Ok(());
        }
        let many = match &mut self.upsert_totals {
            Some(many) => many,
            none => {
                let sql = many_rows(UPSERT_USER_TOTAL, 3, 3, "?1");
                let many = self.transaction.prepare_cached(&sql)?;
                none.insert(bind_totals(many, self.now_ms)?)
            }
        };
        let written = upsert_totals(many, users)?;
        self.totals_written += written;
        if let Some((write_back, path)) = &mut self.write_back {
            write_back.inserted(written, self.transaction, path);
        }
        if written != users.len() {
            // At least one row was skipped because its total was out of bounds. A total that is out of
            // bounds only after this statement is replayed as well, which is slower but correct.
            let mut select = self.transaction.prepare_cached(SELECT_REVENUE)?;
            for &(user, ..) in users {
                let total: i64 = select.query_row([user], |row| row.get(0))?;
                if !(-SAFE..=SAFE).contains(&total) {
                    suspects.insert(user.to_owned());
                }
            }
        }
        Ok(())
    }

    fn set_total(&mut self, user: &str, micros: i64, events: u64) -> rusqlite::Result<()> {
        self.totals_written += self
            .transaction
            .prepare_cached(SET_USER_TOTAL)?
            .execute(params![user, micros, events, self.now_ms])?;
        Ok(())
    }

    fn rejected_lines(&mut self, segment: &str) -> rusqlite::Result<u64> {
        self.transaction
            .query_row(COUNT_REJECTED, [segment], |row| row.get(0))
    }

    fn insert_rejected(&mut self, segment: &str, line: &Rejected) -> rusqlite::Result<()> {
        let insert = prepared(&mut self.insert_rejected, self.transaction, || {
            INSERT_REJECTED
        })?;
        insert
            .execute(params![
                segment,
                line.offset,
                line.code,
                line.reason,
                line.line
            ])
            .map(|_| ())
    }

    fn add_overall(&mut self, added: &Added) -> rusqlite::Result<Overall> {
        let users = NewUsers::of_written(self.transaction, self.totals_written)?;
        overall::add(self.transaction, users, added, self.now_ms)
    }

    fn add_counts(&mut self, added: &AddedCounts, state: SegmentState) -> rusqlite::Result<()> {
        let AddedCounts {
            key,
            counts,
            net_check,
            id_events,
            id_net_check,
        } = added;
        self.transaction
            .prepare_cached(ADD_COUNTS)?
            .execute(params![
                key,
                counts.lines,
                counts.events,
                counts.duplicates,
                counts.rejected,
                net_check,
                id_events,
                id_net_check,
            ])?;
        if state == SegmentState::Applied {
            segments::add_to_applied_sum(self.transaction, *key)?;
        }
        Ok(())
    }
}

/// Inserts a row; `rest` are the parameters of the statement after key, name and tag. The key of an
/// imported file is never reused, because rows of `event_id` may outlive the row of their segment.
pub(super) fn insert_segment(
    connection: &Connection,
    segment: &SegmentId,
    tag: Option<Tag>,
    rest: &[&dyn rusqlite::ToSql],
) -> rusqlite::Result<usize> {
    let key: i64 = match segment.number() {
        Some(number) => i64::try_from(number).unwrap_or(i64::MAX),
        None => connection.query_row(NEXT_IMPORT_KEY, [], |row| row.get(0))?,
    };
    let name = segment.to_string();
    let tag = tag.map(|tag| tag.to_string());
    let all: Vec<&dyn rusqlite::ToSql> = [&key as &dyn rusqlite::ToSql, &name, &tag]
        .into_iter()
        .chain(rest.iter().copied())
        .collect();
    connection.prepare_cached(INSERT_SEGMENT)?.execute(&*all)
}
