//! One run in a state file: what was sent, and how far the server has acknowledged it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::data_dir::node_position::{NodePosition, NodePositionError};
use crate::data_dir::segment::Position;

/// A position as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(in crate::client) struct Written(pub(in crate::client) NodePosition);

impl TryFrom<String> for Written {
    type Error = NodePositionError;

    fn try_from(text: String) -> Result<Self, NodePositionError> {
        text.parse().map(Self)
    }
}

impl From<Written> for String {
    fn from(position: Written) -> Self {
        position.0.to_string()
    }
}

/// The last position that each node has acknowledged; as text, separated by commas. A server without a shared
/// database is one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(in crate::client) struct Acknowledged(BTreeMap<Option<Uuid>, Position>);

impl Acknowledged {
    /// Keeps the later one of each node.
    pub(in crate::client) fn add(&mut self, NodePosition { node, position }: NodePosition) {
        let last = self.0.entry(node).or_insert(position);
        *last = position.max(*last);
    }

    /// Adds the positions of another one.
    pub(in crate::client) fn add_all(&mut self, other: &Self) {
        other.positions().for_each(|position| self.add(position));
    }

    /// The positions, one of each node.
    pub(in crate::client) fn positions(&self) -> impl ExactSizeIterator<Item = NodePosition> {
        let positions = self.0.iter();
        positions.map(|(&node, &position)| NodePosition { node, position })
    }
}

impl TryFrom<String> for Acknowledged {
    type Error = NodePositionError;

    fn try_from(text: String) -> Result<Self, NodePositionError> {
        let mut all = Self::default();
        for position in text.split(',') {
            all.add(position.parse()?);
        }
        Ok(all)
    }
}

impl From<Acknowledged> for String {
    fn from(all: Acknowledged) -> Self {
        let positions = all.positions().map(|position| position.to_string());
        positions.collect::<Vec<_>>().join(",")
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in crate::client) struct Record {
    /// Prefix of the run's ids; empty: no ids.
    pub(in crate::client) run: String,
    /// Kind of ids: `run`, `source` or `none`.
    pub(in crate::client) ids: String,
    /// Path of the input, for information only; bytes that are not UTF-8 become U+FFFD.
    pub(in crate::client) input: String,
    /// Device of the input. With the inode it helps to find a rotated file; the content is checked.
    pub(in crate::client) device: u64,
    /// Inode of the input.
    pub(in crate::client) inode: u64,
    /// Number of lines from the beginning that were acknowledged, accepted or refused.
    pub(in crate::client) lines: u64,
    /// Their length in bytes (inflated).
    pub(in crate::client) bytes: u64,
    /// Number of events among them that were accepted.
    pub(in crate::client) accepted: u64,
    /// Number of lines among them that were refused.
    pub(in crate::client) refused: u64,
    /// Number of bytes that the checksum covers (raw for a file, inflated for stdin).
    pub(in crate::client) checked_bytes: u64,
    /// CRC-32 of those bytes.
    pub(in crate::client) checked_crc32: u32,
    /// Whether no line after `lines` was sent: the run ended orderly.
    pub(in crate::client) settled: bool,
    /// Id of the data directory; `None` if the server does not report it.
    #[serde(default)]
    pub(in crate::client) directory: Option<Uuid>,
    /// Base URL of the last send; empty if unknown (version 1).
    #[serde(default)]
    pub(in crate::client) to: String,
    /// Whether the whole input was acknowledged.
    #[serde(default)]
    pub(in crate::client) complete: bool,
    /// Length of the last line if it has no line end; it may have grown since.
    #[serde(default)]
    pub(in crate::client) open_bytes: u64,
    /// Whether `bytes` is inside a JSON array.
    #[serde(default)]
    pub(in crate::client) in_array: bool,
    /// End of the server's acknowledged events when the run began.
    #[serde(default)]
    pub(in crate::client) since: Option<Written>,
    /// The last positions that the server acknowledged to the run; `None` if there is none.
    #[serde(default)]
    pub(in crate::client) last: Option<Acknowledged>,
}

impl Record {
    /// Whether the run belongs to that data directory, or to that URL if the directory is unknown.
    pub(super) fn is_of(&self, directory: Option<Uuid>, to: &str) -> bool {
        match (self.directory, directory) {
            (Some(ours), Some(theirs)) => ours == theirs,
            _ => self.to.is_empty() || self.to == to,
        }
    }
}
