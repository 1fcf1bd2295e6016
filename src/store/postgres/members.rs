//! The nodes of a database, for `tallyline nodes` and the status page: what each last reported and has applied,
//! adopting one and removing one.

use std::path::Path;

use ::postgres::types::Type;
use ::postgres::{Client, Row};
use uuid::Uuid;

use super::convert::{Malformed, get, get_i128, get_u64};
use super::node::Takeover;
use super::{Node, Target, schema};
use crate::data_dir::disk::RealDisk;
use crate::event::Micros;
use crate::store::{Member, NodeReport, Overall, ReportRow, StoreError};

pub(super) const SELECT_MEMBERS: &str = include_str!("../../../sql/postgres/select_members.sql");
const REMOVE_NODE: &str = include_str!("../../../sql/postgres/remove_node.sql");
const REPORT_NODE: &str = include_str!("../../../sql/postgres/report_node.sql");

/// The nodes of a database in order of their numbers; empty if it has no tables.
pub fn members(client: &mut Client, target: &Target) -> Result<Vec<Member>, StoreError> {
    if !schema::is_there(client, target)? {
        return Ok(Vec::new());
    }
    let rows = client
        .query_typed(SELECT_MEMBERS, &[])
        .map_err(target.failed("read its nodes"))?;
    rows.iter()
        .map(member)
        .collect::<Result<_, _>>()
        .map_err(|error: Malformed| error.of(target, "read its nodes"))
}

/// A row of [`SELECT_MEMBERS`].
pub(super) fn member(row: &Row) -> Result<Member, Malformed> {
    let age_ms: Option<i64> = get(row, 10)?;
    let report = age_ms.map(|age_ms| -> Result<ReportRow, Malformed> {
        Ok(ReportRow {
            age_ms: u64::try_from(age_ms).unwrap_or_default(),
            version: get(row, 11)?,
            report: NodeReport {
                pending_lines: get_u64(row, 12)?,
                lag_ms: get_u64(row, 13)?,
                reasons: get(row, 14)?,
            },
        })
    });
    Ok(Member {
        number: get(row, 0)?,
        id: get(row, 1)?,
        name: get(row, 2)?,
        is_removed: get::<String>(row, 3)? == "removed",
        acquired_at_ms: get(row, 4)?,
        lines: get_u64(row, 5)?,
        applied: get_u64(row, 6)?,
        duplicates: get_u64(row, 7)?,
        rejected: get_u64(row, 8)?,
        corrupt: get_u64(row, 9)?,
        report: report.transpose()?,
        overall: Overall {
            users: get_u64(row, 15)?,
            events: get_u64(row, 6)?,
            revenue: Micros(get_i128(row, 16)?),
            updated_at_ms: get(row, 17)?,
        },
    })
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
