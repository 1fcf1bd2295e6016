//! The nodes that share a PostgreSQL database: what each last reported and has applied.

use std::time::Duration;

use uuid::Uuid;

use super::{NodeReport, Overall};
use crate::event::Micros;

/// A node reports about once a second; one without a report for this long does not run, or cannot reach the
/// database.
const REPORTS_WITHIN: Duration = Duration::from_secs(30);

/// A node, with what it has applied.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(test, derive(Default))]
pub struct Member {
    /// The key of its row, `node.node`.
    pub number: i32,
    /// The UUID of its data directory.
    pub id: Uuid,
    /// The host name of its machine.
    pub name: String,
    /// Whether it was removed.
    pub is_removed: bool,
    /// When it was last started, adopted or removed, in milliseconds since 1970 UTC.
    pub acquired_at_ms: i64,
    /// Lines that it has read.
    pub lines: u64,
    /// Lines that are counted in totals.
    pub applied: u64,
    /// Lines that are not counted because of their id.
    pub duplicates: u64,
    /// Lines that are not counted for another reason.
    pub rejected: u64,
    /// Lines that are not applied because their file is corrupt.
    pub corrupt: u64,
    /// What it last reported; `None` if it has not.
    pub report: Option<ReportRow>,
    /// The sums over the events that it has applied.
    pub overall: Overall,
}

/// What a node last reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportRow {
    /// The version of the program.
    pub version: String,
    /// What the node reported last.
    pub report: NodeReport,
    /// How long ago, in milliseconds, by the clock of the database.
    pub age_ms: u64,
}

/// The state of a node, from its last report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NodeState {
    /// It reported lately, without a reason against its readiness.
    Ready,
    /// It gave reasons why it is not ready.
    NotReady,
    /// Its last report is older than 30 s: it was stopped, or cannot reach the database.
    NotReporting,
    /// It has never reported: only `tallyline process` has run on its directory.
    NeverReported,
    /// It was removed; its events stay in the totals.
    Removed,
}

impl NodeState {
    /// All states, in the order in which they are shown.
    pub const ALL: [Self; 5] = [
        Self::Ready,
        Self::NotReady,
        Self::NotReporting,
        Self::NeverReported,
        Self::Removed,
    ];

    /// The name for programs; for people, `_` is a space.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::NotReady => "not_ready",
            Self::NotReporting => "not_reporting",
            Self::NeverReported => "never_reported",
            Self::Removed => "removed",
        }
    }
}

impl Member {
    /// The state that follows from the last report and its age.
    pub fn state(&self) -> NodeState {
        match &self.report {
            _ if self.is_removed => NodeState::Removed,
            None => NodeState::NeverReported,
            Some(last) if u128::from(last.age_ms) > REPORTS_WITHIN.as_millis() => {
                NodeState::NotReporting
            }
            Some(last) if !last.report.reasons.is_empty() => NodeState::NotReady,
            Some(_) => NodeState::Ready,
        }
    }
}

/// The nodes of a database in order of their numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cluster {
    /// The nodes; empty if the database is not shared, or has no node yet.
    pub nodes: Vec<Member>,
}

impl Cluster {
    /// The number of users, if at most one node has any. `None`: a user may be at several nodes, so they must
    /// be counted.
    pub fn users(&self) -> Option<u64> {
        let mut with_users = self.nodes.iter().map(|node| node.overall.users);
        let first = with_users.by_ref().find(|&users| users > 0);
        let several = with_users.any(|users| users > 0);
        (!several).then(|| first.unwrap_or(0))
    }

    /// The sums over all nodes, removed ones too, given the number of users.
    pub fn overall(&self, users: u64) -> Overall {
        let sums = || self.nodes.iter().map(|node| &node.overall);
        Overall {
            users,
            events: sums().map(|sums| sums.events).sum(),
            revenue: Micros(sums().map(|sums| sums.revenue.0).sum()),
            updated_at_ms: sums().filter_map(|sums| sums.updated_at_ms).max(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: i32, users: u64, age_ms: Option<u64>, reasons: &str) -> Member {
        Member {
            number,
            report: age_ms.map(|age_ms| ReportRow {
                version: String::new(),
                report: NodeReport {
                    reasons: reasons.to_owned(),
                    ..NodeReport::default()
                },
                age_ms,
            }),
            overall: Overall {
                users,
                events: users * 2,
                revenue: Micros(i128::from(i64::MAX)),
                updated_at_ms: (users > 0).then_some(i64::from(number)),
            },
            ..Member::default()
        }
    }

    #[test]
    fn an_old_report_is_not_a_state_and_a_removed_node_is_removed() {
        // Fails if a node that was stopped is shown as ready, or with reasons of long ago.
        let removed = Member {
            is_removed: true,
            ..node(1, 0, Some(0), "")
        };
        let states = [
            node(1, 0, Some(30_000), ""),
            node(1, 0, Some(0), "why"),
            node(1, 0, Some(30_001), "why"),
            node(1, 0, None, ""),
            removed,
        ]
        .map(|node| node.state());
        assert_eq!(states, NodeState::ALL);
    }

    #[test]
    fn sums_go_beyond_64_bits_and_users_of_several_nodes_are_not_added() {
        let cluster = |users: &[u64]| Cluster {
            nodes: (1..)
                .zip(users)
                .map(|(number, &users)| node(number, users, None, ""))
                .collect(),
        };
        let one = cluster(&[0, 3, 0]);
        assert_eq!(one.users(), Some(3));
        let sums = one.overall(3);
        assert_eq!(
            (sums.users, sums.events, sums.updated_at_ms),
            (3, 6, Some(2))
        );
        assert_eq!(sums.revenue.0, 3 * i128::from(i64::MAX));
        assert_eq!(cluster(&[2, 3]).users(), None);
        assert_eq!(cluster(&[2, 3]).overall(4).updated_at_ms, Some(2));
        assert_eq!(cluster(&[]).users(), Some(0));
        assert_eq!(cluster(&[]).overall(0), Overall::default());
    }
}
