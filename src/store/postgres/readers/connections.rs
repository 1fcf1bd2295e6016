//! The pool of connections for reading, and a read on one of them.

use std::fmt;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use ::postgres::error::SqlState;
use ::postgres::types::Type;
use ::postgres::{Client, Row};
use r2d2::ManageConnection;
use scheduled_thread_pool::ScheduledThreadPool;

use super::PostgresReaders;
use crate::store::StoreError;
use crate::store::postgres::convert::Malformed;
use crate::store::postgres::statement::Param;
use crate::store::postgres::{Node, Target};

/// How long a read waits for a free connection.
const CHECKOUT_TIMEOUT: Duration = Duration::from_secs(5);

/// Opens the connections of the pool.
pub(super) struct Manager {
    target: Target,
}

/// An error of a connection of the pool.
#[derive(Debug)]
pub(super) struct Unopened(StoreError);

impl fmt::Display for Unopened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Unopened {}

impl ManageConnection for Manager {
    type Connection = Client;
    type Error = Unopened;

    fn connect(&self) -> Result<Client, Unopened> {
        self.target.connect().map_err(Unopened)
    }

    fn is_valid(&self, client: &mut Client) -> Result<(), Unopened> {
        client
            .batch_execute("")
            .map_err(self.target.failed("use a reading connection"))
            .map_err(Unopened)
    }

    fn has_broken(&self, client: &mut Client) -> bool {
        client.is_closed()
    }
}

pub(super) type Pool = r2d2::Pool<Manager>;

impl PostgresReaders {
    /// Closes the idle connections. A later read opens new ones.
    pub fn close(&self) {
        let pool = self.lock().take();
        drop(pool);
    }

    /// Runs a statement about this node, whose number is the first parameter; without rows if the node is not
    /// in the database.
    pub(super) fn read_own<T: Default>(
        &self,
        doing: &'static str,
        sql: &str,
        params: &[Param<'_>],
        convert: impl Fn(&[Row]) -> Result<T, Malformed>,
    ) -> Result<T, StoreError> {
        let Some(node) = self.node()? else {
            return convert(&[]).map_err(|error| self.malformed(doing, &error));
        };
        self.read(doing, |client| {
            let mut all: Vec<Param<'_>> = vec![(&node, Type::INT4)];
            all.extend(params.iter().cloned());
            Ok(convert(&client.query_typed(sql, &all)?)?)
        })
    }

    pub(super) fn node(&self) -> Result<Option<i32>, StoreError> {
        if let Some(node) = self.shared.node.get() {
            return Ok(Some(*node));
        }
        let Some(directory) = self.shared.directory.get() else {
            return Ok(None);
        };
        let node = self.read("find this node", |client| {
            Ok(Node::number_of(client, *directory)?)
        })?;
        Ok(node.map(|node| *self.shared.node.get_or_init(|| node)))
    }

    /// Runs `read` on a connection of the pool. It is repeated on another one if the connection was lost, for
    /// it may have been idle.
    ///
    /// Before the first start of a node there are no tables, and the result is empty.
    pub(in crate::store::postgres) fn read<T: Default>(
        &self,
        doing: &'static str,
        mut read: impl FnMut(&mut Client) -> Result<T, ReadError>,
    ) -> Result<T, StoreError> {
        let pool = self.pool()?;
        let mut again = true;
        loop {
            let mut client = pool.get().map_err(|error| self.unavailable(&error))?;
            match read(&mut client) {
                Ok(value) => return Ok(value),
                Err(ReadError::Postgres(_)) if again && client.is_closed() => again = false,
                Err(ReadError::Postgres(error))
                    if error.code() == Some(&SqlState::UNDEFINED_TABLE) =>
                {
                    return Ok(T::default());
                }
                Err(error) => return Err(self.failed(doing, error)),
            }
        }
    }

    fn failed(&self, doing: &'static str, error: ReadError) -> StoreError {
        match error {
            ReadError::Postgres(error) => self.shared.target.failed(doing)(error),
            ReadError::Malformed(error) => self.malformed(doing, &error),
        }
    }

    fn malformed(&self, doing: &'static str, error: &Malformed) -> StoreError {
        error.of(&self.shared.target, doing)
    }

    fn unavailable(&self, error: &r2d2::Error) -> StoreError {
        StoreError::Postgres {
            database: self.shared.target.to_string(),
            doing: "get a reading connection",
            cause: error.to_string(),
            code: None,
            cure: None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Pool>> {
        self.shared
            .pool
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn pool(&self) -> Result<Pool, StoreError> {
        let mut held = self.lock();
        if let Some(pool) = &*held {
            return Ok(pool.clone());
        }
        let manager = Manager {
            target: self.shared.target.clone(),
        };
        let pool = r2d2::Pool::builder()
            .max_size(self.shared.connections_max)
            .min_idle(Some(0))
            .test_on_check_out(false)
            .thread_pool(Arc::new(ScheduledThreadPool::new(1)))
            .connection_timeout(CHECKOUT_TIMEOUT)
            .build(manager)
            .map_err(|error| self.unavailable(&error))?;
        *held = Some(pool.clone());
        Ok(pool)
    }
}

/// A read failed.
pub(in crate::store::postgres) enum ReadError {
    Postgres(::postgres::Error),
    Malformed(Malformed),
}

impl From<::postgres::Error> for ReadError {
    fn from(error: ::postgres::Error) -> Self {
        Self::Postgres(error)
    }
}

impl From<Malformed> for ReadError {
    fn from(error: Malformed) -> Self {
        Self::Malformed(error)
    }
}
