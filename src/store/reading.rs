//! Reads of totals, segments and rejected lines, from either database.
//!
//! Any thread may read. Totals are those of the database, which several nodes may share in PostgreSQL;
//! segments, the ledger and rejected lines are those of the data directory.

use std::path::Path;

use uuid::Uuid;

use super::database_status::DatabaseStatus;
#[cfg(feature = "postgres")]
use super::postgres::PostgresReaders;
use super::readers::SqliteReaders;
use super::{
    Cluster, Database, Ledger, Overall, RejectedFilter, RejectedLine, SegmentRow, SegmentState,
    StoreError, UserTotal,
};
use crate::data_dir::segment::{Position, SegmentId};

/// How far a position of a node is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    not(feature = "postgres"),
    expect(dead_code, reason = "nodes share PostgreSQL only")
)]
pub enum NodeProgress {
    /// Everything at or before it is in the database.
    Applied,
    /// It may be applied later.
    Pending,
    /// It will not be applied: its segment is missing or corrupt, or the node was removed.
    Gone,
    /// Its segment is sealed and ends before it.
    PastEnd,
    /// The database does not have the node.
    Unknown,
}

/// The pool of reading connections; cheap to clone.
#[derive(Clone)]
pub enum Readers {
    /// Of an SQLite file. If there is no file, reads return empty results and no error.
    Sqlite(SqliteReaders),
    /// Of PostgreSQL. If it is unreachable, reads return an error.
    #[cfg(feature = "postgres")]
    Postgres(PostgresReaders),
}

macro_rules! either {
    ($self:expr, $readers:ident => $call:expr) => {
        match $self {
            Readers::Sqlite($readers) => $call,
            #[cfg(feature = "postgres")]
            Readers::Postgres($readers) => $call,
        }
    };
}

impl Readers {
    /// A pool of up to `connections_max` connections to an SQLite file, opened on demand.
    pub fn new(path: &Path, connections_max: u32) -> Self {
        Self::Sqlite(SqliteReaders::new(path, connections_max))
    }

    /// A pool of up to `connections_max` connections to a database, opened on demand.
    pub fn of(database: &Database, connections_max: u32) -> Self {
        match database {
            Database::Sqlite(path) => Self::new(path, connections_max),
            #[cfg(feature = "postgres")]
            Database::Postgres(target) => {
                Self::Postgres(PostgresReaders::new(target, connections_max))
            }
        }
    }

    /// Names the data directory whose segments are read. An SQLite file has those of one directory only.
    #[cfg_attr(
        not(feature = "postgres"),
        expect(unused_variables, reason = "SQLite does not need it")
    )]
    pub fn belong_to(&self, directory: Uuid) {
        match self {
            Self::Sqlite(_) => {}
            #[cfg(feature = "postgres")]
            Self::Postgres(readers) => readers.belong_to(directory),
        }
    }

    /// Fails if the database is not one of this version, or cannot be read. The pool itself does not check
    /// that: it would retry until a checkout times out, or read the file. For commands that read once.
    pub fn check(&self) -> Result<(), StoreError> {
        either!(self, readers => readers.check())
    }

    /// The total of a user; `None` without a counted event.
    pub fn user(&self, user_id: &str) -> Result<Option<UserTotal>, StoreError> {
        either!(self, readers => readers.user(user_id))
    }

    /// The totals of several users, in the order of `ids`; `None` for a user without one. All are read in one
    /// transaction that begins after the call.
    pub fn users_by_id(&self, ids: &[&str]) -> Result<Vec<Option<UserTotal>>, StoreError> {
        if let [id] = ids {
            return Ok(vec![self.user(id)?]);
        }
        either!(self, readers => readers.users_by_id(ids))
    }

    /// The number of lines in each state, as recorded in the database.
    pub fn ledger(&self) -> Result<Ledger, StoreError> {
        either!(self, readers => readers.ledger())
    }

    /// The sums over all users. SQLite keeps them; in PostgreSQL this reads every row of `user_total`.
    pub fn overall(&self) -> Result<Overall, StoreError> {
        either!(self, readers => readers.overall())
    }

    /// Whether several nodes may share the database.
    pub fn is_shared(&self) -> bool {
        match self {
            Self::Sqlite(_) => false,
            #[cfg(feature = "postgres")]
            Self::Postgres(_) => true,
        }
    }

    /// The nodes that share the database; none with SQLite.
    pub fn cluster(&self) -> Result<Cluster, StoreError> {
        match self {
            Self::Sqlite(_) => Ok(Cluster::default()),
            #[cfg(feature = "postgres")]
            Self::Postgres(readers) => readers.cluster(),
        }
    }

    /// The number of users of a cluster. If several nodes have users, they are counted, which reads every row of
    /// `user_total`; the result is reused for 20 times as long as that took, and while nothing was applied.
    pub fn users_of(&self, cluster: &Cluster) -> Result<u64, StoreError> {
        if let Some(users) = cluster.users() {
            return Ok(users);
        }
        match self {
            Self::Sqlite(_) => Ok(0),
            #[cfg(feature = "postgres")]
            Self::Postgres(readers) => readers.count_users(cluster),
        }
    }

    /// What `/status` publishes of the database, read in one transaction.
    pub(crate) fn status(&self) -> Result<DatabaseStatus, StoreError> {
        either!(self, readers => readers.status())
    }

    /// At most `limit` segments: the active one, then the others by when they were first seen, newest
    /// first.
    pub fn newest_segments(&self, limit: u32) -> Result<Vec<SegmentRow>, StoreError> {
        either!(self, readers => readers.newest_segments(limit))
    }

    /// The row of one segment.
    pub fn segment(&self, id: &SegmentId) -> Result<Option<SegmentRow>, StoreError> {
        either!(self, readers => readers.segment(id))
    }

    /// The rows of segments that are not fully applied.
    pub fn unfinished_segments(&self) -> Result<Vec<SegmentRow>, StoreError> {
        either!(self, readers => readers.unfinished_segments())
    }

    /// The number of segments in each state; states without a segment are left out.
    pub fn segment_counts(&self) -> Result<Vec<(SegmentState, u64)>, StoreError> {
        either!(self, readers => readers.segment_counts())
    }

    /// At most `limit` rejected lines, newest first: those of the most recently applied segment first.
    pub fn newest_rejected(
        &self,
        limit: u32,
        filter: &RejectedFilter,
    ) -> Result<Vec<RejectedLine>, StoreError> {
        either!(self, readers => readers.newest_rejected(limit, filter))
    }

    /// How far positions of nodes are applied, in their order. An SQLite file has no nodes.
    pub fn progress_of(
        &self,
        positions: &[(Uuid, Position)],
    ) -> Result<Vec<NodeProgress>, StoreError> {
        match self {
            Self::Sqlite(_) => Ok(vec![NodeProgress::Unknown; positions.len()]),
            #[cfg(feature = "postgres")]
            Self::Postgres(readers) => readers.progress_of(positions),
        }
    }

    /// Closes the idle connections, so that the writer's last checkpoint can remove the `-wal` of an SQLite
    /// file. A later read opens new ones.
    pub fn close(&self) {
        either!(self, readers => readers.close());
    }
}
