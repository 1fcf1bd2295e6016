//! Positions in requests and answers, and waits for them.
//!
//! In a database that several nodes share, positions have the node. A wait for a position of another node is a wait
//! for its progress in the database.

use std::sync::Arc;
use std::time::Instant;

use uuid::Uuid;

use super::{Inner, unreadable};
use crate::data_dir::node_position::NodePosition;
use crate::data_dir::segment::{Position, SegmentId};
use crate::http::problem::Problem;
use crate::other_nodes::NodeWait;
use crate::progress::WaitOutcome;
use crate::store::{NodeProgress, Readers, SegmentState};

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
            _ => self.when_own_applied(position.position, deadline, done),
        }
    }

    /// [`Inner::when_applied`] for a position of this server. One past the durable end was in no response of this
    /// server. Where a sealed segment ends, only the database knows: see [`check_end`].
    pub(super) fn when_own_applied(
        self: &Arc<Self>,
        position: Position,
        deadline: Instant,
        done: impl FnOnce(Result<(), Problem>) + Send + 'static,
    ) {
        let end = self.journal.tail().end();
        if position > end {
            let end = self.shown(end);
            let detail = format!(
                "after: the position is past the end of the events that this server has stored, {end}"
            );
            return done(Err(Problem::new(400, detail)));
        }
        let inner = Arc::clone(self);
        let done = move |waited| {
            done(match waited {
                WaitOutcome::Applied => Ok(()),
                other => Err(not_applied(&inner, other)),
            });
        };
        let progress = &self.progress;
        progress.when_applied(position, deadline, Box::new(done));
    }

    /// A position that was waited for, if it is one for [`check_end`]: of this server, in a sealed segment.
    pub(super) fn in_sealed_segment(&self, position: NodePosition) -> Option<Position> {
        let is_own = position.node.is_none_or(|node| node == self.directory);
        let position = position.position;
        (is_own && position.segment < self.journal.tail().number).then_some(position)
    }

    fn not_of_here(&self, node: Uuid) -> Problem {
        let detail = format!(
            "after: the position is of node {node}, and this server is {}, whose database is its own",
            self.directory
        );
        Problem::new(400, detail)
    }
}

/// Fails if an applied position of this server is past the end of its segment. The end of a segment that was pruned
/// is not known any more.
pub(super) fn check_end(readers: &Readers, position: Position) -> Result<(), Problem> {
    let segment = SegmentId::Native(position.segment);
    let row = readers.segment(&segment);
    let row = row.map_err(|error| unreadable(&error))?;
    match row {
        Some(row) if row.state == SegmentState::Applied && position.offset > row.applied_bytes => {
            let end = row.applied_bytes;
            let detail = format!(
                "after: the position is past the end of its segment, which has {end} bytes"
            );
            Err(Problem::new(400, detail))
        }
        _ => Ok(()),
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

/// The problem of a wait whose position was not applied.
fn not_applied(inner: &Inner, waited: WaitOutcome) -> Problem {
    let progress = &inner.progress;
    match waited {
        WaitOutcome::Gone => Problem::new(
            410,
            "the segment of the position is missing or corrupt; it will not be applied",
        ),
        WaitOutcome::Unavailable => Problem::new(
            503,
            "this server does not apply events (--no-process), too many requests wait, or the server is stopping",
        )
        .retry()
        .member("processing", !progress.applies_elsewhere()),
        WaitOutcome::Applied | WaitOutcome::TimedOut => Problem::new(
            503,
            "the position is not applied yet; try again, or with a longer wait",
        )
        .retry()
        .member("applied", inner.shown(progress.applied()).to_string()),
    }
}
