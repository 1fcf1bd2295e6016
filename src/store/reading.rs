//! Reads of totals, segments and rejected lines, from either database.
//!
//! Any thread may read. Totals are those of the database, which several nodes may share in PostgreSQL;
//! segments, the ledger and rejected lines are those of the data directory.

use std::fmt::Write as _;
use std::path::Path;

use uuid::Uuid;

#[cfg(feature = "postgres")]
use super::postgres::PostgresReaders;
use super::readers::SqliteReaders;
use super::{
    AppliedSegments, Database, Ledger, Pruned, RejectedFilter, RejectedLine, SegmentRow,
    SegmentState, StoreError,
};
use crate::data_dir::segment::SegmentId;
use crate::event::Micros;

/// One user's total.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserTotal {
    /// The user.
    pub user_id: String,
    /// The added minus the subtracted amounts.
    pub revenue: Micros,
    /// The number of counted events.
    pub events: u64,
    /// When the total last changed, in milliseconds since 1970 UTC.
    pub updated_at_ms: i64,
}

/// The order of a listing of users.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Smallest revenue first.
    Revenue,
    /// Largest revenue first.
    RevenueDescending,
    /// By user id.
    UserId,
}

/// One page of a listing of users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The users in the requested order.
    pub users: Vec<UserTotal>,
    /// The opaque cursor of the next page; `None` on the last page.
    pub next: Option<String>,
}

/// The sums over all users.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overall {
    /// The number of users with at least one counted event.
    pub users: u64,
    /// The number of counted events.
    pub events: u64,
    /// The sum of all revenues in micros.
    pub revenue_micros: i128,
    /// When any total last changed, in milliseconds since 1970 UTC; `None` if there are no users.
    pub updated_at_ms: Option<i64>,
}

/// See [`Readers::snapshot`].
pub(crate) type ReadSnapshot = (Ledger, AppliedSegments, Vec<SegmentRow>, Pruned);

/// The pool of reading connections; cheap to clone.
#[derive(Clone)]
pub enum Readers {
    /// Of an SQLite file. If there is no file, reads return empty results and no error.
    Sqlite(SqliteReaders),
    /// Of PostgreSQL.
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

    /// One user's total.
    pub fn user(&self, user_id: &str) -> Result<Option<UserTotal>, StoreError> {
        either!(self, readers => readers.user(user_id))
    }

    /// A page of at most `limit` users; `Ok(None)` if the cursor is invalid.
    pub fn users(
        &self,
        order: Order,
        limit: u32,
        cursor: Option<&str>,
    ) -> Result<Option<Page>, StoreError> {
        let Some(after) = Cursor::read(order, cursor) else {
            return Ok(None);
        };
        // One more than requested, to see whether there is a next page.
        let rows = i64::from(limit) + 1;
        let mut users = either!(self, readers => readers.users(order, rows, &after))?;
        let more = users.len() > limit as usize;
        users.truncate(limit as usize);
        let next = users
            .last()
            .filter(|_| more)
            .map(|last| Cursor::of(last).write(order));
        Ok(Some(Page { users, next }))
    }

    /// The number of lines in each state, as recorded in the database.
    pub fn ledger(&self) -> Result<Ledger, StoreError> {
        either!(self, readers => readers.ledger())
    }

    /// The sums over all users. Reads every row of `user_total`.
    pub fn overall(&self) -> Result<Overall, StoreError> {
        either!(self, readers => readers.overall())
    }

    /// The ledger, the fully applied segments, the rows of the other segments, and the sum of the
    /// pruned ones, read in one transaction.
    pub(crate) fn snapshot(&self) -> Result<ReadSnapshot, StoreError> {
        either!(self, readers => readers.snapshot())
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

    /// Closes the idle connections, so that the writer's last checkpoint can remove the `-wal` of an SQLite
    /// file. A later read opens new ones.
    pub fn close(&self) {
        either!(self, readers => readers.close());
    }
}

/// The position after a user in a listing. Its text is safe in a URL: `r`, `d` or `u` for the order,
/// the revenue, `.`, and the user id in hex.
pub(super) struct Cursor {
    /// `None` before the first user.
    pub(super) revenue: Option<i128>,
    /// Empty before the first user.
    pub(super) user_id: String,
}

impl Cursor {
    fn of(user: &UserTotal) -> Self {
        Self {
            revenue: Some(user.revenue.0),
            user_id: user.user_id.clone(),
        }
    }

    /// The revenue in a table whose totals have 64 bits; before the first user, the one from which the order
    /// begins.
    pub(super) fn revenue_within_i64(&self, order: Order) -> i64 {
        let first = match order {
            Order::RevenueDescending => i64::MAX,
            Order::Revenue | Order::UserId => i64::MIN,
        };
        self.revenue.map_or(first, |revenue| {
            let within = revenue.clamp(i64::MIN.into(), i64::MAX.into());
            i64::try_from(within).unwrap_or(first)
        })
    }

    fn letter(order: Order) -> char {
        match order {
            Order::Revenue => 'r',
            Order::RevenueDescending => 'd',
            Order::UserId => 'u',
        }
    }

    fn write(&self, order: Order) -> String {
        let revenue = self.revenue.unwrap_or_default();
        let mut text = format!("{}{revenue}.", Self::letter(order));
        for byte in self.user_id.bytes() {
            // Writing to a String cannot fail.
            let _infallible = write!(text, "{byte:02x}");
        }
        text
    }

    /// Parses a cursor; without one, the start of the listing. `None` if it is invalid for this order.
    fn read(order: Order, cursor: Option<&str>) -> Option<Self> {
        let Some(text) = cursor else {
            return Some(Self {
                revenue: None,
                user_id: String::new(),
            });
        };
        let (revenue, hex) = text.strip_prefix(Self::letter(order))?.split_once('.')?;
        if hex.len() % 2 != 0 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let bytes = (0..hex.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).ok())
            .collect::<Option<Vec<u8>>>()?;
        Some(Self {
            revenue: Some(revenue.parse().ok()?),
            user_id: String::from_utf8(bytes).ok()?,
        })
    }
}
