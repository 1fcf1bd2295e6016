//! `GET /nodes`: the totals of the whole database, and the nodes that share it.
//!
//! It reads the database on a thread that may block. Without a shared database, the totals are those of
//! `/status`, and there are no nodes.

use std::sync::Arc;

use serde::Serialize;
use serde_json::value::RawValue;

use super::params::Params;
use super::{Inner, service, unreadable};
use crate::event::Micros;
use crate::http::counters::Route;
use crate::http::engine::{MayBlock, Reply, Request};
use crate::http::metrics;
use crate::http::node_json::{NodeJson, seconds};
use crate::http::problem::Problem;
use crate::store::{Member, NodeState, Overall};
use crate::timestamp;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Nodes<'c> {
    users: u64,
    events: u64,
    revenue: Option<Box<RawValue>>,
    revenue_micros: String,
    updated_at: Option<String>,
    nodes: Vec<NodeJson<'c>>,
}

/// Answers with the totals and the nodes.
pub(super) fn nodes(inner: &Arc<Inner>, request: Request, query: &str) {
    inner.answer_blocking(request, Route::Nodes, query, list);
}

fn list(inner: &Inner, query: &str, may_block: &MayBlock) -> Result<Reply, Problem> {
    Params::parse(query, &[])?;
    if !inner.is_shared() {
        let (_, accounts) = service::accounts(inner);
        return Ok(reply(&accounts.overall, &[]));
    }
    let readers = inner.readers.get(may_block);
    let cluster = readers.cluster().map_err(|error| unreadable(&error))?;
    let users = readers.users_of(&cluster);
    let users = users.map_err(|error| unreadable(&error))?;
    Ok(reply(&cluster.overall(users), &cluster.nodes))
}

fn reply(overall: &Overall, nodes: &[Member]) -> Reply {
    let body = Nodes {
        users: overall.users,
        events: overall.events,
        revenue: exact(overall.revenue),
        revenue_micros: overall.revenue.0.to_string(),
        updated_at: overall.updated_at_ms.map(timestamp::rfc3339_of_ms),
        nodes: nodes.iter().map(NodeJson::of).collect(),
    };
    // Serializing plain values cannot fail.
    Reply::json(200, serde_json::to_string(&body).unwrap_or_default())
}

/// The figures of the whole database for `/metrics`; `None` if it is not shared or cannot be read.
pub(super) fn figures(inner: &Inner, may_block: &MayBlock) -> Option<metrics::Nodes> {
    if !inner.is_shared() {
        return None;
    }
    let cluster = inner.readers.get(may_block).cluster().ok()?;
    let overall = cluster.overall(0);
    let count = |state| {
        let nodes = cluster.nodes.iter();
        nodes.filter(|node| node.state() == state).count() as u64
    };
    let reports = || {
        let members = cluster.nodes.iter().filter(|node| !node.is_removed);
        members.filter_map(|node| node.report.as_ref())
    };
    Some(metrics::Nodes {
        by_state: NodeState::ALL.map(|state| (state.name(), count(state))),
        events: overall.events,
        revenue: overall.revenue,
        pending_lines: reports().map(|last| last.report.pending_lines).sum(),
        oldest_report_seconds: seconds(reports().map(|last| last.age_ms).max().unwrap_or(0)),
    })
}

/// An exact decimal, not a float.
fn exact(revenue: Micros) -> Option<Box<RawValue>> {
    RawValue::from_string(revenue.to_string()).ok()
}
