//! The identity of a node in the database, its epoch and token.
//!
//! A node is a data directory, known by its UUID. A process that acts as the node acquires it: it appends a new
//! token to `node.json` ([`NodeTokens`]), and only then commits the change of epoch and token in the database from
//! the values that it read. Every writing transaction locks the node's row and compares both ([`Node::check`]). What is found in the
//! database decides:
//!
//! | row of the node | meaning | result |
//! |---|---|---|
//! | none | a new node, or the database lost it | registered |
//! | a token of `node.json` | the last process used this directory, or the one that it was copied from, or its commit had an unknown outcome | acquired; if the original still runs, its next transaction finds another token and fails |
//! | such a token with an earlier epoch | the database is older: restored, or a standby that lost commits | acquired, with a warning; the files are applied again from the offsets in the database |
//! | another token | another copy of this directory is or was in use, or this one was restored from a backup | refused; `tallyline nodes adopt` decides |
//! | removed | an operator removed the node | refused |
//!
//! A copy that was given another UUID has segments that another node applied: it is refused when it registers. So is
//! one with imported files only, by those in its archive.

mod copies;

use std::path::Path;

use ::postgres::types::Type;
use ::postgres::{Client, GenericClient, Transaction};
use uuid::Uuid;

use super::{Target, schema};
use crate::data_dir::disk::{Disk, RealDisk};
use crate::data_dir::node_tokens::{NodeToken, NodeTokens};
use crate::store::StoreError;

const SELECT_NODE: &str = include_str!("../../../sql/postgres/select_node_for_update.sql");
const CHECK_NODE: &str = include_str!("../../../sql/postgres/check_node.sql");
const LOCK_CLUSTER: &str = include_str!("../../../sql/postgres/lock_cluster.sql");
const INSERT_NODE: &str = include_str!("../../../sql/postgres/insert_node.sql");
const UPDATE_NODE: &str = include_str!("../../../sql/postgres/update_node.sql");
const INSERT_SUMS: &str = include_str!("../../../sql/postgres/insert_sums_of_node.sql");
const SELECT_SYSTEM: &str = include_str!("../../../sql/postgres/select_system_identifier.sql");

/// Numbers of segments are below this; the number of the node is above them in a [`Node::place`].
const SEGMENTS: i64 = 1 << 40;
/// How often acquiring is tried after a race or a commit with an unknown outcome.
const TRIES: usize = 5;
/// A node that this process has acquired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// `node.node`: the number that the database assigned, at least 1.
    pub number: i32,
    /// The UUID of the data directory.
    pub id: Uuid,
    epoch: i64,
    token: Uuid,
}

/// Whether a node whose token is not known here may be acquired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Takeover {
    /// No: another copy of the directory may be in use.
    Refuse,
    /// An operator decided that this directory is the node.
    Adopt,
}

/// The row of a node.
struct Found {
    number: i32,
    state: String,
    epoch: i64,
    token: Uuid,
    name: String,
}

/// The outcome of one attempt.
enum Attempt {
    /// The transaction changed the row, and its commit succeeded.
    Acquired(Node),
    /// Another transaction was in the way, or the outcome of the commit is unknown.
    Again(StoreError),
}

impl Node {
    /// Acquires the node of this data directory, and registers it if it is new. If the outcome of the commit is
    /// unknown, the client is replaced by a new connection. Fails with [`StoreError::Fenced`] if the directory
    /// is a copy, was restored from a backup, or was removed.
    pub fn acquire(
        client: &mut Client,
        target: &Target,
        data_dir: &Path,
        id: Uuid,
    ) -> Result<Self, StoreError> {
        Self::acquire_with(client, target, &RealDisk, data_dir, id, Takeover::Refuse)
    }

    pub(super) fn acquire_with(
        client: &mut Client,
        target: &Target,
        disk: &dyn Disk,
        data_dir: &Path,
        id: Uuid,
        takeover: Takeover,
    ) -> Result<Self, StoreError> {
        let mut last = None;
        for _ in 0..TRIES {
            if client.is_closed() {
                *client = target.connect()?;
            }
            match attempt(client, target, disk, data_dir, id, takeover) {
                Ok(Attempt::Acquired(node)) => return Ok(node),
                Ok(Attempt::Again(error)) | Err(error @ StoreError::Conflict { .. }) => {
                    last = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| target.unsupported("cannot register this node")))
    }

    /// Locks the node's row for the transaction, and fails with [`StoreError::Fenced`] if another process has
    /// acquired the node, or the database is older: [`Node::acquire`] then decides. A plain SELECT would not
    /// suffice, because it could read an older snapshot than the rows that the transaction changes.
    pub fn check(
        &self,
        transaction: &mut impl GenericClient,
        target: &Target,
    ) -> Result<(), StoreError> {
        let rows = transaction
            .query_typed(CHECK_NODE, &[(&self.number, Type::INT4)])
            .map_err(target.failed("check the epoch of this node"))?;
        match rows.first() {
            Some(row)
                if (row.get(0), row.get(1), row.get(2)) == (self.id, self.epoch, self.token) =>
            {
                Ok(())
            }
            _ => Err(fenced(
                target,
                "this process is no longer the node: another one has acquired it, or the database is older than before".to_owned(),
            )),
        }
    }

    /// Whether these are the epoch and the token with which this process acquired the node.
    pub(in crate::store) fn is_held(&self, epoch: i64, token: Uuid) -> bool {
        (epoch, token) == (self.epoch, self.token)
    }

    /// The number of a node; `None` if it is not in the database yet. For readers.
    pub(in crate::store) fn number_of(
        client: &mut impl GenericClient,
        id: Uuid,
    ) -> Result<Option<i32>, ::postgres::Error> {
        let rows = client.query_typed(
            include_str!("../../../sql/postgres/select_node_number.sql"),
            &[(&id, Type::UUID)],
        )?;
        Ok(rows.first().map(|row| row.get(0)))
    }

    /// Node and `segment.key` in one number, which is unique in the cluster.
    pub(in crate::store) fn place(number: i32, key: i64) -> i64 {
        i64::from(number) * SEGMENTS + key
    }

    /// The node and the `segment.key` of a [`Node::place`].
    pub(in crate::store) fn of_place(place: i64) -> (i32, i64) {
        let number = (place + SEGMENTS / 2).div_euclid(SEGMENTS);
        let key = place - number * SEGMENTS;
        (i32::try_from(number).unwrap_or(i32::MAX), key)
    }
}

fn fenced(target: &Target, reason: String) -> StoreError {
    StoreError::Fenced {
        database: target.to_string(),
        reason,
    }
}

fn attempt(
    client: &mut Client,
    target: &Target,
    disk: &dyn Disk,
    data_dir: &Path,
    id: Uuid,
    takeover: Takeover,
) -> Result<Attempt, StoreError> {
    let failed = target.failed("acquire this node");
    let system = system_identifier(client, target)?;
    let database = schema::cluster_id(client)
        .map_err(&failed)?
        .ok_or_else(|| target.unsupported("the table tallyline.cluster is empty"))?;
    let mut tokens = NodeTokens::read(disk, data_dir).map_err(StoreError::NodeTokens)?;
    let mut transaction = target.begin(client)?;
    let found = find(&mut transaction, id).map_err(&failed)?;
    if let Some(found) = &found {
        refuse(target, found, &tokens, takeover)?;
    } else {
        copies::refuse_copy(&mut transaction, target, disk, data_dir)?;
    }
    warn_if_older(target, found.as_ref(), &tokens, database, system.as_deref());
    let epoch = found.as_ref().map_or(0, |found| found.epoch);
    let new = NodeToken {
        epoch: epoch.max(tokens.highest_epoch()) + 1,
        token: Uuid::new_v4(),
        database,
        system,
        confirmed: false,
    };
    let stored = match &found {
        Some(found) => replace(&mut transaction, found, &new).map(|()| Some(found.number)),
        None => register(&mut transaction, id, &new),
    };
    let number = match stored {
        Ok(Some(number)) => number,
        Ok(None) => {
            return Ok(Attempt::Again(fenced(
                target,
                "another process registers this node at the same time".to_owned(),
            )));
        }
        Err(error) => return Err(failed(error)),
    };
    // Durable before the commit, so that this directory knows its token after a crash. Not earlier: attempts that
    // fail before, again and again, must not fill the file.
    tokens
        .add(disk, data_dir, new.clone())
        .map_err(StoreError::NodeTokens)?;
    // After an error here the next attempt reads the row: its token is in `node.json` in any case.
    if let Err(error) = transaction.commit() {
        let again = failed(error);
        *client = target.connect()?;
        return Ok(Attempt::Again(again));
    }
    tokens
        .confirm(disk, data_dir)
        .map_err(StoreError::NodeTokens)?;
    Ok(Attempt::Acquired(Node {
        number,
        id,
        epoch: new.epoch,
        token: new.token,
    }))
}

fn find(transaction: &mut Transaction<'_>, id: Uuid) -> Result<Option<Found>, ::postgres::Error> {
    let rows = transaction.query_typed(SELECT_NODE, &[(&id, Type::UUID)])?;
    Ok(rows.first().map(|row| Found {
        number: row.get(0),
        state: row.get(1),
        epoch: row.get(2),
        token: row.get(3),
        name: row.get(4),
    }))
}

/// Rejects a node that was removed, and one that another copy of the directory has acquired.
fn refuse(
    target: &Target,
    found: &Found,
    tokens: &NodeTokens,
    takeover: Takeover,
) -> Result<(), StoreError> {
    if found.state == "removed" {
        return Err(fenced(
            target,
            "this node was removed with `tallyline nodes remove`; its totals stay in the database, and nothing more is applied from this data directory. To count events that were not applied, send them to another node with their ids".to_owned(),
        ));
    }
    if takeover == Takeover::Refuse && !tokens.contains(found.token) {
        return Err(fenced(
            target,
            format!(
                "another copy of this data directory is or was in use (last on {}), or this one was restored from a backup; nothing is applied, because its events could be counted twice. If this directory is the one to keep, stop the other one for good and run `tallyline nodes adopt`",
                found.name
            ),
        ));
    }
    Ok(())
}

/// Reports a database that does not have what this node committed to it before. Nothing is lost: progress is read
/// from the database, and the files are applied from there.
fn warn_if_older(
    target: &Target,
    found: Option<&Found>,
    tokens: &NodeTokens,
    database: Uuid,
    system: Option<&str>,
) {
    let Some(last) = tokens.last_confirmed(database) else {
        return;
    };
    let epoch = found.map_or(0, |found| found.epoch);
    let restored = system.is_some() && last.system.is_some() && last.system.as_deref() != system;
    if epoch < last.epoch {
        tracing::warn!(
            database = %target, epoch, expected = last.epoch,
            "the database is older than this node's last commit: {}; what it lost is applied again from the files",
            if restored { "it was restored from a backup" } else { "a standby without the last commits took over, or a backup was restored" }
        );
    } else if restored {
        tracing::warn!(
            database = %target,
            "the database is on another PostgreSQL server than before; make sure that no node still writes to the old one"
        );
    }
}

fn replace(
    transaction: &mut Transaction<'_>,
    found: &Found,
    new: &NodeToken,
) -> Result<(), ::postgres::Error> {
    let name = host_name();
    // The row is locked, so it has the values that were read.
    transaction.execute_typed(
        UPDATE_NODE,
        &[
            (&found.number, Type::INT4),
            (&new.epoch, Type::INT8),
            (&new.token, Type::UUID),
            (&name, Type::TEXT),
        ],
    )?;
    insert_sums(transaction, found.number)
}

/// `None` if another process registered this node meanwhile. Other nodes that register wait, however many they are.
fn register(
    transaction: &mut Transaction<'_>,
    id: Uuid,
    new: &NodeToken,
) -> Result<Option<i32>, ::postgres::Error> {
    let name = host_name();
    transaction.query_typed(LOCK_CLUSTER, &[])?;
    let rows = transaction.query_typed(
        INSERT_NODE,
        &[
            (&id, Type::UUID),
            (&name, Type::TEXT),
            (&new.epoch, Type::INT8),
            (&new.token, Type::UUID),
        ],
    )?;
    let number = rows.first().map(|row| row.get(0));
    if let Some(number) = number {
        insert_sums(transaction, number)?;
    }
    Ok(number)
}

fn insert_sums(transaction: &mut Transaction<'_>, number: i32) -> Result<(), ::postgres::Error> {
    transaction
        .execute_typed(INSERT_SUMS, &[(&number, Type::INT4)])
        .map(drop)
}

/// The identifier of the PostgreSQL server, which a standby shares; `None` for engines without one.
fn system_identifier(client: &mut Client, target: &Target) -> Result<Option<String>, StoreError> {
    match client.query_typed(SELECT_SYSTEM, &[]) {
        Ok(rows) => Ok(rows.first().map(|row| row.get(0))),
        Err(error) if error.as_db_error().is_some() => Ok(None),
        Err(error) => Err(target.failed("read the identifier of the server")(error)),
    }
}

fn host_name() -> String {
    let system = rustix::system::uname();
    system.nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests;
