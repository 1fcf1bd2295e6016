//! The store on PostgreSQL, which several nodes share.
//!
//! A node is a data directory whose processor applies its files to the database. Exactly-once application is
//! the argument of [`store`](super), in the same code (`store::apply`); this module implements its row
//! operations by set-based statements.
//!
//! # Keys
//! Every table has the node. A node has a small number, `node.node`, which the database assigned to the UUID of
//! its data directory; the other tables refer to it:
//! - `user_total (user_id, node)`: a user's total is the sum over the nodes. No two nodes write one row.
//! - `segment (node, key)`, `rejected_line (node, segment, "offset")`, `pruned (node)`, `applied_sum (node)`,
//!   `clock (node)`: one node's own.
//! - `event_id (id)` with the node, segment and offset of the event that counted, and
//!   `id_block (prefix, width, block)`: of the cluster. An id counts once, whichever node receives it. In a
//!   block, the segment of a run is a [`Node::place`]: node and `segment.key` in one number.
//!
//! # Transactions
//! Every writing transaction first locks the row of its node `FOR SHARE` and compares epoch and token
//! ([`Node::check`]), so that a data directory that was copied to two machines is applied by one of them only.
//! Every transaction locks in one order, so that none waits for another that waits for it: the node, segments by
//! node and name, ids by id, blocks by key, and then rows that belong to one node. A rebuild, which goes from file to
//! file, locks these tables. A serialization failure, or a deadlock with a transaction of another program, is repeated
//! ([`StoreError::Conflict`](super::StoreError::Conflict)). If the outcome of
//! a commit is unknown, the caller opens a new writer, which reads the rows again, and the compare-and-set of
//! the applied offset decides.
//!
//! # Files
//! - `connect`: URL, passwords, TLS, and the meaning of errors.
//! - `schema`: creates the tables and checks their version.
//! - `node`: the identity of a node, its epoch and token.
//! - `writer`, `ranges`, `rows`, `segments`, `ids`, `reserved_ids`, `retention`, `expiry`, `rebuild`: the writing connection and its row operations.
//! - `readers`, `positions`, `recovery`, `snapshot`: reads of any thread, of the progress of nodes, at the start, and
//!   for `verify`.
//! - `members`, `user_count`: the nodes, and the number of users of all nodes.
//! - `statement`, `convert`: the statements in `sql/postgres/query/`; rows as values of the store.

mod connect;
mod convert;
mod expiry;
mod ids;
mod members;
mod node;
mod password;
mod positions;
mod ranges;
mod readers;
mod rebuild;
mod recovery;
mod reserved_ids;
mod retention;
mod rows;
mod schema;
mod segments;
mod snapshot;
mod statement;
mod tls;
mod url;
mod user_count;
mod writer;

pub use self::connect::Target;
pub use self::members::{members, remove};
pub use self::node::Node;
pub use self::readers::PostgresReaders;
pub(in crate::store) use self::recovery::{read_checks, read_for_recovery};
pub use self::schema::ensure as ensure_tables;
pub(in crate::store) use self::snapshot::PostgresSnapshot;
pub use self::writer::PostgresWriter;

/// Reads a variable of the environment.
type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;
