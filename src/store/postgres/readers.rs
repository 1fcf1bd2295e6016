//! Reads of totals, segments and rejected lines from PostgreSQL, by any thread.
//!
//! A read is one statement, or several in a transaction. Totals are those of the cluster; segments, the ledger
//! and rejected lines are those of the node. If the node is not in the database yet, it has none.

mod connections;

use std::sync::{Arc, Mutex, OnceLock};

use ::postgres::types::Type;
use ::postgres::{IsolationLevel, Row};
use uuid::Uuid;

use self::connections::Pool;
use super::convert::{self, Malformed, get, get_i128, get_u64, to_i64};
use super::members::{SELECT_MEMBERS, member};
use super::segments::segment_rows;
use super::statement::{Param, of_segments, statement};
use super::user_count::UserCount;
use super::{Target, schema};
use crate::data_dir::segment::SegmentId;
use crate::event::Micros;
use crate::store::database_status::DatabaseStatus;
use crate::store::listing::{Cursor, end_of};
use crate::store::{
    AppliedSegments, Cluster, Ledger, Order, Overall, RejectedFilter, RejectedLine, SegmentRow,
    SegmentState, StoreError, UserTotal,
};

/// How many rejected lines are read together.
const REJECTED_PAGE: i64 = 500;

/// The pool of reading connections; cheap to clone.
#[derive(Clone)]
pub struct PostgresReaders {
    shared: Arc<Shared>,
}

struct Shared {
    target: Target,
    connections_max: u32,
    pool: Mutex<Option<Pool>>,
    directory: OnceLock<Uuid>,
    /// The number of the node, once it is in the database.
    node: OnceLock<i32>,
    user_count: UserCount,
}

impl PostgresReaders {
    /// A pool of up to `connections_max` connections, opened on demand.
    pub fn new(target: &Target, connections_max: u32) -> Self {
        Self {
            shared: Arc::new(Shared {
                target: target.clone(),
                connections_max,
                pool: Mutex::new(None),
                directory: OnceLock::new(),
                node: OnceLock::new(),
                user_count: UserCount::default(),
            }),
        }
    }

    /// Names the data directory whose node's rows are read.
    pub fn belong_to(&self, directory: Uuid) {
        let _same = self.shared.directory.set(directory);
    }

    /// Fails if the database cannot be read or has other tables.
    pub fn check(&self) -> Result<(), StoreError> {
        self.is_there().map(|_| ())
    }

    /// Whether the database has tables.
    pub(super) fn is_there(&self) -> Result<bool, StoreError> {
        let mut client = self.shared.target.connect()?;
        schema::is_there(&mut client, &self.shared.target)
    }

    /// See [`Readers::user`](crate::store::Readers::user).
    pub fn user(&self, user_id: &str) -> Result<Option<UserTotal>, StoreError> {
        let sql = statement!("select_user");
        self.read("read a user's total", |client| {
            let row = client.query_typed_opt(sql, &[(&user_id, Type::TEXT)])?;
            row.map(|row| {
                Ok(UserTotal {
                    user_id: user_id.to_owned(),
                    revenue: Micros(get_i128(&row, 0)?),
                    events: get_u64(&row, 1)?,
                    updated_at_ms: get(&row, 2)?,
                })
            })
            .transpose()
        })
    }

    /// See [`Readers::users_by_id`](crate::store::Readers::users_by_id).
    pub(in crate::store) fn users_by_id(
        &self,
        ids: &[&str],
    ) -> Result<Vec<Option<UserTotal>>, StoreError> {
        let found = self.read("read users' totals", |client| {
            let sql = statement!("select_users_by_id");
            let rows = client.query_typed(sql, &[(&ids, Type::TEXT_ARRAY)])?;
            let totals: Result<Vec<_>, _> = rows.iter().map(user_total).collect();
            Ok(totals?)
        })?;
        let total = |id: &&str| found.iter().find(|total| total.user_id == *id).cloned();
        Ok(ids.iter().map(total).collect())
    }

    /// The first `rows` users after the cursor.
    pub(in crate::store) fn users(
        &self,
        order: Order,
        prefix: &str,
        rows: i64,
        after: &Cursor,
    ) -> Result<Vec<UserTotal>, StoreError> {
        let revenue = after.revenue.map(|micros| micros.to_string());
        let end = end_of(prefix);
        let by_revenue: [Param<'_>; 5] = [
            (&prefix, Type::TEXT),
            (&end, Type::TEXT),
            (&revenue, Type::TEXT),
            (&after.user_id, Type::TEXT),
            (&rows, Type::INT8),
        ];
        self.read("list users", |client| {
            let found = match order {
                Order::UserId => client.query_typed(
                    statement!("page_users_by_id"),
                    &[
                        (&prefix, Type::TEXT),
                        (&end, Type::TEXT),
                        (&after.user_id, Type::TEXT),
                        (&rows, Type::INT8),
                    ],
                ),
                Order::Revenue => {
                    client.query_typed(statement!("page_users_by_revenue"), &by_revenue)
                }
                Order::RevenueDescending => {
                    client.query_typed(statement!("page_users_by_revenue_descending"), &by_revenue)
                }
            }?;
            found.iter().map(|row| Ok(user_total(row)?)).collect()
        })
    }

    /// See [`Readers::ledger`](crate::store::Readers::ledger).
    pub fn ledger(&self) -> Result<Ledger, StoreError> {
        self.read_own(
            "read the ledger",
            statement!("select_ledger"),
            &[],
            |rows| convert::ledger(rows.first()),
        )
    }

    /// See [`Readers::overall`](crate::store::Readers::overall).
    pub fn overall(&self) -> Result<Overall, StoreError> {
        self.read("add up all users", |client| {
            let row = client.query_typed_one(statement!("select_overall"), &[])?;
            Ok(Overall {
                users: get_u64(&row, 0)?,
                events: get_u64(&row, 1)?,
                revenue: Micros(get_i128(&row, 2)?),
                updated_at_ms: get(&row, 3)?,
            })
        })
    }

    /// See [`Readers::cluster`](crate::store::Readers::cluster).
    pub fn cluster(&self) -> Result<Cluster, StoreError> {
        self.read("read its nodes", |client| {
            let rows = client.query_typed(SELECT_MEMBERS, &[])?;
            let nodes = rows.iter().map(member).collect::<Result<_, _>>()?;
            Ok(Cluster { nodes })
        })
    }

    /// See [`Readers::users_of`](crate::store::Readers::users_of).
    pub(in crate::store) fn count_users(&self, cluster: &Cluster) -> Result<u64, StoreError> {
        self.shared.user_count.get(cluster, || {
            self.read("count all users", |client| {
                let row = client.query_typed_one(statement!("count_users"), &[])?;
                Ok(get_u64(&row, 0)?)
            })
        })
    }

    /// See `Readers::status`.
    pub(in crate::store) fn status(&self) -> Result<DatabaseStatus, StoreError> {
        let Some(node) = self.node()? else {
            return Ok(DatabaseStatus::default());
        };
        self.read("read the ledger and the segments", |client| {
            let mut snapshot = client
                .build_transaction()
                .isolation_level(IsolationLevel::RepeatableRead)
                .read_only(true)
                .start()?;
            let mut own = |sql| snapshot.query_typed(sql, &[(&node, Type::INT4)]);
            let unfinished = segment_rows(&own(of_segments!("select_unfinished_segments"))?)?;
            let mut native = convert::numbers(&own(statement!("select_numbers"))?)?;
            for number in unfinished.iter().filter_map(|row| row.id.number()) {
                native.remove(number);
            }
            let imported = own(statement!("select_applied_imports"))?;
            let imported = imported
                .iter()
                .map(|row| get(row, 0))
                .collect::<Result<_, _>>()?;
            let ledger = convert::ledger(own(statement!("select_ledger"))?.first())?;
            let pruned = convert::pruned(own(statement!("select_pruned"))?.first())?;
            let overall = convert::overall(own(statement!("select_node_overall"))?.first())?;
            snapshot.commit()?;
            Ok(DatabaseStatus {
                ledger,
                overall,
                applied: AppliedSegments { native, imported },
                unfinished,
                pruned,
            })
        })
    }

    /// See [`Readers::newest_segments`](crate::store::Readers::newest_segments).
    pub fn newest_segments(&self, limit: u32) -> Result<Vec<SegmentRow>, StoreError> {
        let sql = of_segments!("list_newest_segments");
        let limit = i64::from(limit);
        self.read_own("list segments", sql, &[(&limit, Type::INT8)], segment_rows)
    }

    /// See [`Readers::segment`](crate::store::Readers::segment).
    pub fn segment(&self, id: &SegmentId) -> Result<Option<SegmentRow>, StoreError> {
        let (sql, name) = (of_segments!("select_segment"), id.to_string());
        self.read_own("read a segment", sql, &[(&name, Type::TEXT)], |rows| {
            rows.first().map(convert::segment_row).transpose()
        })
    }

    /// See [`Readers::unfinished_segments`](crate::store::Readers::unfinished_segments).
    pub fn unfinished_segments(&self) -> Result<Vec<SegmentRow>, StoreError> {
        let sql = of_segments!("select_unfinished_segments");
        self.read_own("list unfinished segments", sql, &[], segment_rows)
    }

    /// See [`Readers::segment_counts`](crate::store::Readers::segment_counts).
    pub fn segment_counts(&self) -> Result<Vec<(SegmentState, u64)>, StoreError> {
        let sql = statement!("count_segments_by_state");
        self.read_own("count segments", sql, &[], |rows| {
            rows.iter()
                .map(|row| Ok((convert::state(get(row, 0)?, 0)?, get_u64(row, 1)?)))
                .collect()
        })
    }

    /// See [`Readers::newest_rejected`](crate::store::Readers::newest_rejected).
    pub fn newest_rejected(
        &self,
        limit: u32,
        filter: &RejectedFilter,
    ) -> Result<Vec<RejectedLine>, StoreError> {
        let Some(node) = self.node()? else {
            return Ok(Vec::new());
        };
        let since = filter
            .since
            .map(|since| (to_i64(since.segment), to_i64(since.offset)));
        let (since_key, since_offset) = since.unzip();
        let limit = limit as usize;
        self.read("list rejected lines", |client| {
            let mut lines = Vec::new();
            let mut after: Option<(i64, i64, i64)> = None;
            loop {
                let (at, key, offset) = after.map_or((None, None, None), |(at, key, offset)| {
                    (Some(at), Some(key), Some(offset))
                });
                let rows = client.query_typed(
                    statement!("list_newest_rejected_lines"),
                    &[
                        (&node, Type::INT4),
                        (&since_key, Type::INT8),
                        (&since_offset, Type::INT8),
                        (&at, Type::INT8),
                        (&key, Type::INT8),
                        (&offset, Type::INT8),
                        (&REJECTED_PAGE, Type::INT8),
                    ],
                )?;
                for row in &rows {
                    let line = rejected_line(row)?;
                    after = Some((get(row, 5)?, get(row, 6)?, get(row, 1)?));
                    if filter.has_prefix(&line) {
                        lines.push(line);
                    }
                    if lines.len() == limit {
                        return Ok(lines);
                    }
                }
                if to_i64(rows.len() as u64) < REJECTED_PAGE {
                    return Ok(lines);
                }
            }
        })
    }
}

fn user_total(row: &Row) -> Result<UserTotal, Malformed> {
    Ok(UserTotal {
        user_id: get(row, 0)?,
        revenue: Micros(get_i128(row, 1)?),
        events: get_u64(row, 2)?,
        updated_at_ms: get(row, 3)?,
    })
}

fn rejected_line(row: &Row) -> Result<RejectedLine, Malformed> {
    let text = |column| -> Result<String, Malformed> {
        Ok(String::from_utf8_lossy(get(row, column)?).into_owned())
    };
    Ok(RejectedLine {
        segment: get(row, 0)?,
        offset: get_u64(row, 1)?,
        code: get(row, 2)?,
        reason: text(3)?,
        line: text(4)?,
    })
}
