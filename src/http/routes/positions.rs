//! Positions in requests and answers, and waits for them.
//!
//! In a database that several nodes share, positions have the node. A wait for a position of another node is a wait
//! for its progress in the database.

use std::sync::Arc;
use std::time::Instant;

use uuid::Uuid;

use super::Inner;
use super::users::not_applied;
use crate::data_dir::node_position::NodePosition;
use crate::data_dir::segment::Position;
use crate::http::problem::Problem;
use crate::other_nodes::NodeWait;
use crate::progress::WaitOutcome;
use crate::store::NodeProgress;

impl Inner {
    /// Whether several nodes may share the database.
    pub(super) fn is_shared(&self) -> bool {
        self.other_nodes.is_some()
    }

    /// A position of this server as clients see it.
    pub(super) fn shown(&self, position: Position) -> NodePosition {
        let node = self.is_shared().then_some(self.directory);
        NodePosition { node, position }
    }

    /// The position, if it is of this server. `name` is the parameter.
    pub(super) fn own(&self, name: &str, position: NodePosition) -> Result<Position, Problem> {
        match position.node {
            Some(node) if node != self.directory => {
                let detail = format!(
                    "{name}: the position is of node {node}, and this server is node {}, which lists only its own lines; send the request to that node",
                    self.directory
                );
                Err(Problem::new(400, detail))
            }
            _ => Ok(position.position),
        }
    }

    /// Calls `done` once: when the position is applied, or with the problem that the request gets.
    pub(super) fn when_applied(
        self: &Arc<Self>,
        position: NodePosition,
        deadline: Instant,
        done: impl FnOnce(Result<(), Problem>) + Send + 'static,
    ) {
        let inner = Arc::clone(self);
        match (position.node, &self.other_nodes) {
            (Some(node), Some(others)) if node != self.directory => {
                let done = move |waited| done(of_other(&inner, node, waited));
                others.when_applied(node, position.position, deadline, Box::new(done));
            }
            (Some(node), None) if node != self.directory => done(Err(self.not_of_here(node))),
            _ => {
                let done = move |waited| {
                    done(match waited {
                        WaitOutcome::Applied => Ok(()),
                        other => Err(not_applied(&inner, other)),
                    });
                };
                let progress = &self.progress;
                progress.when_applied(position.position, deadline, Box::new(done));
            }
        }
    }

    fn not_of_here(&self, node: Uuid) -> Problem {
        let detail = format!(
            "after: the position is of node {node}, and this server is {}, whose database is its own",
            self.directory
        );
        Problem::new(400, detail)
    }
}

/// The result of a wait for a position of another node.
fn of_other(inner: &Inner, node: Uuid, waited: NodeWait) -> Result<(), Problem> {
    let problem = match waited {
        NodeWait::Is(NodeProgress::Applied) => return Ok(()),
        NodeWait::Is(NodeProgress::Pending) => Problem::new(
            503,
            format!(
                "the position is not applied yet by node {node}; try again, or with a longer wait"
            ),
        )
        .retry(),
        NodeWait::Is(NodeProgress::Gone) => Problem::new(
            410,
            format!(
                "the segment of the position is missing or corrupt at node {node}, or the node was removed; it will not be applied"
            ),
        ),
        NodeWait::Is(NodeProgress::PastEnd) => Problem::new(
            400,
            format!("after: the position is past the end of its segment of node {node}"),
        ),
        // A new node acknowledges events before it is in the database.
        NodeWait::Is(NodeProgress::Unknown) => Problem::new(
            503,
            format!(
                "the database has no node {node}: it has just started and will be there soon, or the position is of another database"
            ),
        )
        .retry(),
        NodeWait::Unavailable => not_applied(inner, WaitOutcome::Unavailable),
    };
    Err(problem)
}
