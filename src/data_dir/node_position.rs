//! Positions as clients see them.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

use super::segment::Position;

/// A position, and the node of which it is if several share a database: the UUID of its data directory. Written
/// `42-1834` without a node, and `42-1834@6f1e52e9-0b5f-4a3e-8f0e-3c1b8b0c9a55` with one.
///
/// Positions of one node are ordered; those of two nodes say nothing about each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodePosition {
    /// `None`: of the server that is asked.
    pub node: Option<Uuid>,
    /// A position in the segments of that node.
    pub position: Position,
}

impl fmt::Display for NodePosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.position.fmt(f)?;
        match self.node {
            Some(node) => write!(f, "@{node}"),
            None => Ok(()),
        }
    }
}

/// A position that is neither `number-offset` nor `number-offset@node`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "a position is SEGMENT-OFFSET, two whole numbers such as 42-1834, or SEGMENT-OFFSET@NODE with the node's UUID, as the server returned it"
)]
pub struct NodePositionError;

impl FromStr for NodePosition {
    type Err = NodePositionError;

    fn from_str(text: &str) -> Result<Self, NodePositionError> {
        let (position, node) = match text.split_once('@') {
            Some((position, node)) => (position, Some(node)),
            None => (text, None),
        };
        let position = position.parse().map_err(|_| NodePositionError)?;
        let node = node.map(uuid).transpose()?;
        Ok(Self { node, position })
    }
}

/// Parses the form that is written only: `Uuid` accepts others, too.
fn uuid(text: &str) -> Result<Uuid, NodePositionError> {
    let uuid: Uuid = text.parse().map_err(|_| NodePositionError)?;
    if uuid.to_string().eq_ignore_ascii_case(text) {
        Ok(uuid)
    } else {
        Err(NodePositionError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_has_a_node_or_none() {
        let node = "6f1e52e9-0b5f-4a3e-8f0e-3c1b8b0c9a55";
        for text in ["42-1834".to_owned(), format!("42-1834@{node}")] {
            let position: NodePosition = text.parse().expect("a position");
            assert_eq!(position.to_string(), text);
            assert_eq!(position.node.is_some(), text.contains('@'));
        }
        let simple = node.replace('-', "");
        for bad in [
            "42-1834@".to_owned(),
            "@".to_owned(),
            format!("@{node}"),
            format!("42@{node}"),
            format!("0-1@{node}"),
            format!("42-1834@{simple}"),
            format!("42-1834@{{{node}}}"),
            format!("42-1834@{node}@{node}"),
            format!("42-1834-{node}"),
        ] {
            assert_eq!(bad.parse::<NodePosition>(), Err(NodePositionError), "{bad}");
        }
    }
}
