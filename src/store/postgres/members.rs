//! The nodes of a database, for `tallyline nodes` and the status page: what each last reported and has applied,
//! adopting one and removing one.

use std::path::Path;

use ::postgres::types::Type;
use ::postgres::{Client, Row};
use uuid::Uuid;

use super::node::Takeover;
use super::{Node, Target, schema};
use crate::data_dir::disk::RealDisk;
use crate::store::{NodeReport, StoreError};

const SELECT_MEMBERS: &str = include_str!("../../../sql/postgres/select_members.sql");
const REMOVE_NODE: &str = include_str!("../../../sql/postgres/remove_node.sql");
const REPORT_NODE: &str = include_str!("../../../sql/postgres/report_node.sql");

/// A node, with what it has applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// `node.node`.
    pub number: i32,
    /// The UUID of its data directory.
    pub id: Uuid,
    /// The host name of its machine.
    pub name: String,
    /// Whether it was removed.
    pub is_removed: bool,
    /// When it was last started, adopted or removed, in milliseconds since 1970 UTC.
    pub acquired_at_ms: i64,
    /// Lines that it has read.
    pub lines: u64,
    /// Lines that are counted in totals.
    pub applied: u64,
    /// Lines that are not counted because of their id.
    pub duplicates: u64,
    /// Lines that are not counted for another reason.
    pub rejected: u64,
    /// Lines that are not applied because their file is corrupt.
    pub corrupt: u64,
    /// What it last reported; `None` if it has not.
    pub report: Option<ReportRow>,
}

/// What a node last reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportRow {
    /// The version of the program.
    pub version: String,
    /// The report.
    pub report: NodeReport,
    /// How long ago, in milliseconds, by the clock of the database.
    pub age_ms: u64,
}

/// The nodes of a database in order of their numbers; empty if it has no tables.
pub fn members(client: &mut Client, target: &Target) -> Result<Vec<Member>, StoreError> {
    if !schema::is_there(client, target)? {
        return Ok(Vec::new());
    }
    let rows = client
        .query_typed(SELECT_MEMBERS, &[])
        .map_err(target.failed("read its nodes"))?;
    Ok(rows.iter().map(member).collect())
}

fn member(row: &Row) -> Member {
    let count = |at: usize| u64::try_from(row.get::<_, i64>(at)).unwrap_or_default();
    let report = row.get::<_, Option<i64>>(10).map(|age_ms| ReportRow {
        age_ms: u64::try_from(age_ms).unwrap_or_default(),
        version: row.get(11),
        report: NodeReport {
            pending_lines: count(12),
            lag_ms: count(13),
            reasons: row.get(14),
        },
    });
    Member {
        number: row.get(0),
        id: row.get(1),
        name: row.get(2),
        is_removed: row.get::<_, String>(3) == "removed",
        acquired_at_ms: row.get(4),
        lines: count(5),
        applied: count(6),
        duplicates: count(7),
        rejected: count(8),
        corrupt: count(9),
        report,
    }
}

/// Removes a node: a process that still acts as the node can write nothing more, and none can acquire it again.
/// Returns false if it was removed before.
pub fn remove(client: &mut Client, target: &Target, node: i32) -> Result<bool, StoreError> {
    let failed = target.failed("remove a node");
    let token = Uuid::new_v4();
    let mut transaction = target.begin(client)?;
    let changed = transaction
        .execute_typed(REMOVE_NODE, &[(&node, Type::INT4), (&token, Type::UUID)])
        .map_err(&failed)?;
    transaction.commit().map_err(failed)?;
    Ok(changed == 1)
}

impl Node {
    /// Acquires the node of a data directory, whatever token the database has. The caller holds the lock of the
    /// data directory.
    pub fn adopt(
        client: &mut Client,
        target: &Target,
        data_dir: &Path,
        id: Uuid,
    ) -> Result<Self, StoreError> {
        Self::acquire_with(client, target, &RealDisk, data_dir, id, Takeover::Adopt)
    }

    /// Stores what this node reports about itself. It decides nothing, so it needs no lock.
    pub fn report(
        &self,
        client: &mut Client,
        target: &Target,
        report: &NodeReport,
    ) -> Result<(), StoreError> {
        let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let (pending_lines, lag_ms) = (number(report.pending_lines), number(report.lag_ms));
        // PostgreSQL's text cannot hold a NUL, which a path in a reason may quote.
        let reasons = report.reasons.replace('\0', "\u{fffd}");
        client
            .execute_typed(
                REPORT_NODE,
                &[
                    (&self.number, Type::INT4),
                    (&env!("CARGO_PKG_VERSION"), Type::TEXT),
                    (&pending_lines, Type::INT8),
                    (&lag_ms, Type::INT8),
                    (&reasons, Type::TEXT),
                ],
            )
            .map(drop)
            .map_err(target.failed("report this node's state"))
    }
}
