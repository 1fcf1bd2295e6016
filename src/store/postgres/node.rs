//! The identity of a node in the database, its epoch and token.

use std::path::Path;

use ::postgres::{Client, GenericClient, Transaction};
use uuid::Uuid;

use super::Target;
use crate::store::StoreError;

/// Numbers of segments are below this; the number of the node is above them in a [`Node::place`].
const SEGMENTS: i64 = 1 << 40;

/// A node that this process has acquired.
#[derive(Clone, Debug)]
pub struct Node {
    /// `node.node`: the number that the database assigned, at least 1.
    pub number: i32,
    /// The UUID of the data directory.
    pub id: Uuid,
    epoch: i64,
    token: Uuid,
}

impl Node {
    /// Takes the node of this data directory over, and registers it if it is new (S2 to S4).
    pub(in crate::store) fn acquire(
        client: &mut Client,
        target: &Target,
        _data_dir: &Path,
        id: Uuid,
    ) -> Result<Self, StoreError> {
        let token = Uuid::new_v4();
        let row = client
            .query_one(
                "INSERT INTO tallyline.node AS node (node, id, name, state, epoch, token, created_at_ms, acquired_at_ms) VALUES ((SELECT coalesce(max(node), 0) + 1 FROM tallyline.node), $1, 'x', 'member', 1, $2, 0, 0)
                 ON CONFLICT (id) DO UPDATE SET epoch = node.epoch + 1, token = $2
                 RETURNING node, epoch",
                &[&id, &token],
            )
            .map_err(target.failed("register this node"))?;
        Ok(Self {
            number: row.get(0),
            id,
            epoch: row.get(1),
            token,
        })
    }

    /// Locks the node's row for the transaction and fails if another process has taken the node over (S1).
    pub(in crate::store) fn check(
        &self,
        transaction: &mut Transaction<'_>,
        target: &Target,
    ) -> Result<(), StoreError> {
        let row = transaction
            .query_opt(
                "SELECT epoch, token FROM tallyline.node WHERE node = $1 FOR SHARE",
                &[&self.number],
            )
            .map_err(target.failed("check the epoch of this node"))?;
        match row {
            Some(row) if (row.get(0), row.get(1)) == (self.epoch, self.token) => Ok(()),
            _ => Err(StoreError::Fenced {
                database: target.to_string(),
                reason: "another process has taken this node over".to_owned(),
            }),
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
        let row = client.query_opt("SELECT node FROM tallyline.node WHERE id = $1", &[&id])?;
        Ok(row.map(|row| row.get(0)))
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
