//! `GET /status`, `/history` and `/refused`: the sums over all users, the ledger, and the state of the server.
//! With a shared database they are those of this node; `/nodes` has the others. They read memory only, so
//! they answer also while the database is locked or broken.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{Inner, service};
use crate::http::counters::Route;
use crate::http::engine::{Reply, Request};
use crate::http::history::Sample;
use crate::http::refused::Entry;
use crate::progress::Accounts;
use crate::timestamp;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Status<'a> {
    directory: &'a Uuid,
    shared: bool,
    position: String,
    users: u64,
    events: u64,
    revenue: Option<Box<RawValue>>,
    revenue_micros: String,
    updated_at: Option<String>,
    received: u64,
    accepted: u64,
    refused: u64,
    lines: u64,
    applied: u64,
    duplicates: u64,
    rejected: u64,
    pending: u64,
    corrupt: u64,
    unaccounted: i64,
    run: RunStatus,
    http_refused: BTreeMap<&'static str, u64>,
    lag_seconds: f64,
    ready: bool,
    reasons: Vec<String>,
}

/// The counters of this run of the process.
#[derive(Serialize)]
struct RunStatus {
    received: u64,
    accepted: u64,
    refused: u64,
    appended: u64,
    found: i64,
    settled: i64,
}

/// Answers with the counters and the state.
pub(super) fn status(inner: &Inner, request: Request) {
    // Serializing plain values cannot fail.
    let body = serde_json::to_string(&current(inner)).unwrap_or_default();
    inner.answer(request, Route::Service, Reply::json(200, body));
}

fn current(inner: &Inner) -> Status<'_> {
    let (events, accounts) = service::accounts(inner);
    let Accounts {
        overall,
        ledger,
        run,
    } = accounts;
    let tail = inner.journal.tail();
    let end = tail.end();
    let refused = inner.counters.refusals().filter(|(_, count)| *count > 0);
    let reasons = service::reasons(inner);
    Status {
        directory: &inner.directory,
        shared: inner.is_shared(),
        position: inner.shown(end).to_string(),
        users: overall.users,
        events: overall.events,
        // An exact decimal, not a float.
        revenue: RawValue::from_string(overall.revenue.to_string()).ok(),
        revenue_micros: overall.revenue.0.to_string(),
        updated_at: overall.updated_at_ms.map(timestamp::rfc3339_of_ms),
        received: events.received,
        accepted: events.accepted,
        refused: events.refused,
        lines: ledger.lines,
        applied: ledger.applied,
        duplicates: ledger.duplicates,
        rejected: ledger.rejected,
        pending: ledger.pending,
        corrupt: ledger.corrupt,
        unaccounted: ledger.unaccounted,
        run: RunStatus {
            received: events.received,
            accepted: events.accepted,
            refused: events.refused,
            appended: run.appended,
            found: run.found,
            settled: run.settled,
        },
        http_refused: refused.collect(),
        lag_seconds: inner.progress.lag_seconds(),
        ready: reasons.is_empty(),
        reasons,
    }
}

#[derive(Serialize)]
struct Refused {
    refused: Vec<Entry>,
}

/// Answers with the newest refused requests.
pub(super) fn refused(inner: &Inner, request: Request) {
    let refused = Refused {
        refused: inner.refused.newest(),
    };
    let body = serde_json::to_string(&refused).unwrap_or_default();
    inner.answer(request, Route::Service, Reply::json(200, body));
}

/// Answers with the samples of the last 15 minutes.
pub(super) fn history(inner: &Inner, request: Request) {
    let body = serde_json::to_string(&inner.history.columns()).unwrap_or_default();
    inner.answer(request, Route::Service, Reply::json(200, body));
}

/// The present counters, for the history; `None` until the database has been read.
pub(in crate::http) fn sample(inner: &Inner) -> Option<Sample> {
    if !inner.progress.is_published() {
        return None;
    }
    let (events, accounts) = service::accounts(inner);
    let ledger = accounts.ledger;
    Some(Sample {
        at_ms: timestamp::now_ms(),
        accepted: events.accepted,
        processed: ledger.applied + ledger.duplicates + ledger.rejected,
        pending: ledger.pending,
        lag_seconds: inner.progress.lag_seconds(),
    })
}
