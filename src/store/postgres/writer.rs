//! The writing connection of a node. One thread owns it. It keeps no state that is not in the database, except
//! what a failover may take back: the offset of the last commit.
//!
//! A transaction that was rolled back because of another one is repeated here. After any other error the
//! owner drops the writer and opens another, which acquires the node again and reads the rows.

use std::cell::RefCell;
use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use ::postgres::types::Type;
use ::postgres::{Client, Row};
use uuid::Uuid;

use super::connect::SET_LIMITS;
use super::convert::{self, Malformed, to_i64};
use super::segments::{self, First, segment_rows};
use super::statement::{Param, RowsError, of_segments, statement};
use super::{Node, Target, schema};
use crate::data_dir::segment::{Label, Numbers, Prefix, SegmentId};
use crate::store::apply::{End, Failure};
use crate::store::{
    AppliedSegments, ImportContent, Ledger, Mark, NodeReport, Overall, Pruned, SegmentRow,
    SegmentState, StoreError,
};

/// How often a transaction is tried that was rolled back because of another one.
const ATTEMPTS: u32 = 10;

/// The writer of a node.
pub struct PostgresWriter {
    pub(super) target: Target,
    pub(super) client: RefCell<Client>,
    pub(super) node: Node,
    /// `segment.key` and applied bytes of the last commit of this writer.
    pub(super) last: Option<(i64, u64)>,
    pub(super) nesting: Nesting,
}

impl PostgresWriter {
    /// Connects, creates the tables if there are none, and takes over the node of the data directory.
    pub fn open(target: &Target, data_dir: &Path, directory: Uuid) -> Result<Self, StoreError> {
        let mut client = target.connect()?;
        schema::ensure(&mut client, target)?;
        let node = Node::acquire(&mut client, target, data_dir, directory)?;
        Ok(Self {
            target: target.clone(),
            client: RefCell::new(client),
            node,
            last: None,
            nesting: Nesting::Transaction,
        })
    }

    /// Stores the time for which this node keeps ids; `None`: for ever. The longest one of all nodes applies.
    pub fn keep_ids(&mut self, window: Option<Duration>) -> Result<(), StoreError> {
        let node = self.node.number;
        let keep_ms = window.map(|window| i64::try_from(window.as_millis()).unwrap_or(i64::MAX));
        let keep_ms = keep_ms.map(|ms| ms.max(1));
        self.write("store the deduplication window", |transaction| {
            transaction.execute_typed(
                statement!("set_keep_ids"),
                &[(&node, Type::INT4), (&keep_ms, Type::INT8)],
            )?;
            Ok(End::Commit(()))
        })
    }

    /// Stores what this node reports about itself.
    pub fn report(&mut self, report: &NodeReport) -> Result<(), StoreError> {
        let client = self.client.get_mut();
        self.node.report(client, &self.target, report)
    }

    /// Whether the database lost commits of this writer (a failover to a standby that did not have them), or
    /// another process has taken the node over; the latter is an error.
    pub fn is_changed_by_others(&mut self) -> Result<bool, StoreError> {
        let doing = "read the progress of this node";
        let node = self.node.number;
        let key = self.last.map(|(key, _)| key);
        let row = self.query_opt(
            doing,
            statement!("select_progress"),
            &[(&node, Type::INT4), (&key, Type::INT8)],
        )?;
        let read = || -> Result<_, Malformed> {
            let Some(row) = &row else { return Ok(None) };
            let applied = convert::get_opt_u64(row, 2)?;
            Ok(Some((
                convert::get(row, 0)?,
                convert::get(row, 1)?,
                applied,
            )))
        };
        let Some((epoch, token, applied)) =
            read().map_err(|error| self.malformed(doing, &error))?
        else {
            return Ok(true);
        };
        if !self.node.is_held(epoch, token) {
            return Ok(true); // Opening the node again finds out by whom.
        }
        Ok(self.last.is_some_and(|(_, bytes)| applied != Some(bytes)))
    }

    /// See [`Writer::mark`](crate::store::Writer::mark).
    pub fn mark(&mut self, mark: &Mark<'_>) -> Result<bool, StoreError> {
        let node = self.node.number;
        self.write("store the state of a segment", |transaction| {
            let mut row = segments::one(transaction, node, mark.segment)?;
            if row.is_none() {
                let first = First {
                    segment: mark.segment,
                    tag: mark.tag,
                    label: None,
                    file_name: mark.file_name,
                    state: SegmentState::Sealed,
                    applied_bytes: 0,
                    checksum: 0,
                    now_ms: mark.now_ms,
                };
                row = segments::insert_segment(transaction, node, &first)?;
            }
            let Some(row) = row else {
                return Ok(End::RollBack(false));
            };
            let changed = transaction.execute_typed(
                statement!("mark_segment"),
                &[
                    (&node, Type::INT4),
                    (&row.key, Type::INT8),
                    (&to_i64(mark.applied_bytes), Type::INT8),
                    (&mark.state.name(), Type::TEXT),
                    (&mark.file_name, Type::TEXT),
                    (&mark.reason, Type::TEXT),
                    (&to_i64(mark.corrupt_bytes), Type::INT8),
                    (&to_i64(mark.corrupt_lines), Type::INT8),
                    (&mark.now_ms, Type::INT8),
                ],
            )?;
            if changed == 1 && mark.state == SegmentState::Applied {
                segments::add_to_applied_sum(transaction, node, row.key)?;
            }
            Ok(End::Commit(changed == 1))
        })
    }

    /// See [`Writer::segment`](crate::store::Writer::segment).
    pub fn segment(&self, id: &SegmentId) -> Result<Option<SegmentRow>, StoreError> {
        let name = id.to_string();
        self.read(
            of_segments!("select_segment"),
            &[(&name, Type::TEXT)],
            |rows| rows.first().map(convert::segment_row).transpose(),
        )
    }

    /// See [`Writer::applied`](crate::store::Writer::applied).
    pub fn applied(&self) -> Result<(AppliedSegments, Vec<SegmentRow>), StoreError> {
        let unfinished = self.read(
            of_segments!("select_unfinished_segments"),
            &[],
            segment_rows,
        )?;
        // Only this process changes the rows of the node.
        let mut native = self.numbers()?;
        for number in unfinished.iter().filter_map(|row| row.id.number()) {
            native.remove(number);
        }
        let imported = self.applied_imports()?;
        Ok((AppliedSegments { native, imported }, unfinished))
    }

    /// See [`Writer::applied_imports`](crate::store::Writer::applied_imports).
    pub fn applied_imports(&self) -> Result<HashSet<String>, StoreError> {
        self.read(statement!("select_applied_imports"), &[], |rows| {
            rows.iter().map(|row| convert::get(row, 0)).collect()
        })
    }

    /// See [`Writer::import_contents`](crate::store::Writer::import_contents).
    pub fn import_contents(&self) -> Result<Vec<(String, ImportContent)>, StoreError> {
        self.read(statement!("select_import_contents"), &[], |rows| {
            rows.iter().map(convert::import_content).collect()
        })
    }

    /// See [`Writer::imports_of`](crate::store::Writer::imports_of).
    pub fn imports_of(&self, label: Label) -> Result<Vec<(String, Prefix)>, StoreError> {
        let label = label.to_string();
        self.read(
            statement!("select_imports_of"),
            &[(&label, Type::TEXT)],
            |rows| rows.iter().map(convert::import_of).collect(),
        )
    }

    /// See [`Writer::numbers`](crate::store::Writer::numbers).
    pub fn numbers(&self) -> Result<Numbers, StoreError> {
        self.read(statement!("select_numbers"), &[], convert::numbers)
    }

    /// See [`Writer::pruned`](crate::store::Writer::pruned).
    pub fn pruned(&self) -> Result<Pruned, StoreError> {
        self.read(statement!("select_pruned"), &[], |rows| {
            convert::pruned(rows.first())
        })
    }

    /// See [`Writer::ledger`](crate::store::Writer::ledger).
    pub fn ledger(&self) -> Result<Ledger, StoreError> {
        self.read(statement!("select_ledger"), &[], |rows| {
            convert::ledger(rows.first())
        })
    }

    /// See [`Writer::overall`](crate::store::Writer::overall).
    pub fn overall(&self) -> Result<Overall, StoreError> {
        self.read(statement!("select_node_overall"), &[], |rows| {
            convert::overall(rows.first())
        })
    }

    /// See [`Writer::clock`](crate::store::Writer::clock).
    pub fn clock(&self) -> Result<Option<i64>, StoreError> {
        self.read(statement!("select_clock"), &[], |rows| {
            rows.first().map_or(Ok(None), |row| convert::get(row, 0))
        })
    }

    /// See [`Writer::set_clock`](crate::store::Writer::set_clock).
    pub fn set_clock(&mut self, at_ms: i64) -> Result<(), StoreError> {
        let node = self.node.number;
        self.write("store the time", |transaction| {
            transaction.execute_typed(
                statement!("set_clock"),
                &[(&node, Type::INT4), (&at_ms, Type::INT8)],
            )?;
            Ok(End::Commit(()))
        })
    }

    /// See [`Writer::oldest_applied`](crate::store::Writer::oldest_applied).
    pub fn oldest_applied(&self) -> Result<Option<SegmentRow>, StoreError> {
        let sql = of_segments!("select_oldest_applied_segment");
        self.read(sql, &[], |rows| {
            rows.first().map(convert::segment_row).transpose()
        })
    }

    /// See [`Writer::highest_sealed`](crate::store::Writer::highest_sealed).
    pub fn highest_sealed(&self) -> Result<u64, StoreError> {
        self.read(statement!("select_highest_sealed"), &[], convert::one_count)
    }

    /// Runs a writing transaction, which first locks the row of the node. It is repeated if it was rolled back
    /// because of another one. After any other error the outcome may be unknown.
    pub(super) fn write<T>(
        &mut self,
        doing: &'static str,
        mut body: impl FnMut(&mut Client) -> Result<End<T>, Failure<RowsError>>,
    ) -> Result<T, StoreError> {
        let Self {
            target,
            client,
            node,
            nesting,
            ..
        } = self;
        let client = client.get_mut();
        let mut attempt = 1;
        loop {
            match once(target, client, node, *nesting, doing, &mut body) {
                Err(StoreError::Conflict { .. }) if attempt < ATTEMPTS => attempt += 1,
                done => return done,
            }
        }
    }

    /// Reads rows of this node, whose number is the first parameter.
    pub(super) fn read<T>(
        &self,
        sql: &str,
        params: &[Param<'_>],
        convert: impl FnOnce(&[Row]) -> Result<T, Malformed>,
    ) -> Result<T, StoreError> {
        let doing = "read how far the segments are applied";
        let node = self.node.number;
        let mut all: Vec<Param<'_>> = vec![(&node, Type::INT4)];
        all.extend(params.iter().cloned());
        let rows = self.client.borrow_mut().query_typed(sql, &all);
        let rows = rows.map_err(self.target.failed(doing))?;
        convert(&rows).map_err(|error| self.malformed(doing, &error))
    }

    /// Rows after `params`, outside a transaction.
    pub(super) fn query(
        &self,
        doing: &'static str,
        sql: &str,
        params: &[Param<'_>],
    ) -> Result<Vec<Row>, StoreError> {
        let rows = self.client.borrow_mut().query_typed(sql, params);
        rows.map_err(self.target.failed(doing))
    }

    fn query_opt(
        &self,
        doing: &'static str,
        sql: &str,
        params: &[Param<'_>],
    ) -> Result<Option<Row>, StoreError> {
        let row = self.client.borrow_mut().query_typed_opt(sql, params);
        row.map_err(self.target.failed(doing))
    }

    pub(super) fn malformed(&self, doing: &'static str, error: &Malformed) -> StoreError {
        error.of(&self.target, doing)
    }
}

/// One attempt of a transaction.
fn once<T>(
    target: &Target,
    client: &mut Client,
    node: &Node,
    nesting: Nesting,
    doing: &'static str,
    body: &mut impl FnMut(&mut Client) -> Result<End<T>, Failure<RowsError>>,
) -> Result<T, StoreError> {
    let failed = target.failed(doing);
    client.batch_execute(&nesting.begin()).map_err(&failed)?;
    let done = node.check(client, target).and_then(|()| {
        body(client).map_err(|failure| match failure {
            Failure::Source(error) => StoreError::Source(error),
            Failure::Rows(RowsError::Postgres(error)) => failed(error),
            Failure::Rows(RowsError::Malformed(error)) => error.of(target, doing),
            Failure::Rows(RowsError::Gone(what)) => StoreError::Conflict {
                database: target.to_string(),
                doing,
                cause: format!("another node changed {what} meanwhile"),
            },
        })
    });
    match done {
        Ok(End::Commit(done)) => {
            client.batch_execute(nesting.commit()).map_err(failed)?;
            Ok(done)
        }
        Ok(End::RollBack(done)) => {
            client.batch_execute(nesting.roll_back()).map_err(failed)?;
            Ok(done)
        }
        Err(error) => {
            // If this fails, the connection is lost, and the server rolls back.
            let _lost = client.batch_execute(nesting.roll_back());
            Err(error)
        }
    }
}

/// Whether a write is a transaction, or a part of the one of a rebuild.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Nesting {
    Transaction,
    Savepoint,
}

impl Nesting {
    pub(super) fn begin(self) -> String {
        match self {
            Self::Transaction => {
                format!("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; {SET_LIMITS}")
            }
            Self::Savepoint => "SAVEPOINT step".to_owned(),
        }
    }

    pub(super) fn commit(self) -> &'static str {
        match self {
            Self::Transaction => statement!("commit").trim_end(),
            Self::Savepoint => "RELEASE SAVEPOINT step",
        }
    }

    fn roll_back(self) -> &'static str {
        match self {
            Self::Transaction => "ROLLBACK",
            Self::Savepoint => "ROLLBACK TO SAVEPOINT step; RELEASE SAVEPOINT step",
        }
    }
}
