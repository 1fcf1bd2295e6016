//! `POST /flush`, `/healthz` and `/readyz`: the state of the service.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use super::Inner;
use super::params::Params;
use crate::data_dir::segment::Position;
use crate::http::counters::{Events, Route};
use crate::http::engine::{Reply, Request};
use crate::http::problem::Problem;
use crate::progress::{Accounts, WaitOutcome};

const FLUSH_WAIT_DEFAULT: Duration = Duration::from_mins(1);
const FLUSH_WAIT_MAX: Duration = Duration::from_mins(10);

/// Rotates the active segment and answers when all events acknowledged before are applied.
pub(super) fn flush(inner: &Arc<Inner>, request: Request, query: &str) {
    let wait = Params::parse(query, &["wait"])
        .and_then(|params| params.wait(FLUSH_WAIT_DEFAULT, FLUSH_WAIT_MAX));
    let deadline = match wait {
        Ok(wait) => Instant::now() + wait,
        Err(problem) => return inner.answer(request, Route::Flush, problem.reply()),
    };
    let done = {
        let inner = Arc::clone(inner);
        move |rotated| match rotated {
            Ok(position) => when_applied(&inner, request, position, deadline),
            Err(error) => {
                let reply = Problem::of_append(&error).reply();
                inner.answer(request, Route::Flush, reply);
            }
        }
    };
    inner.journal.rotate(Box::new(done));
}

fn when_applied(inner: &Arc<Inner>, request: Request, position: Position, deadline: Instant) {
    let done = {
        let inner = Arc::clone(inner);
        move |waited| {
            let reply = flushed(&inner, position, waited);
            inner.answer(request, Route::Flush, reply);
        }
    };
    let progress = &inner.progress;
    progress.when_applied(position, deadline, Box::new(done));
}

fn flushed(inner: &Inner, position: Position, waited: WaitOutcome) -> Reply {
    let progress = &inner.progress;
    let applied = inner.shown(progress.applied()).to_string();
    let position = inner.shown(position).to_string();
    let problem = match waited {
        WaitOutcome::Applied => {
            let body = json!({"position": position, "applied": applied});
            return Reply::json(200, body.to_string());
        }
        WaitOutcome::TimedOut => {
            Problem::new(503, "rotated, but not all of it is applied yet").retry()
        }
        WaitOutcome::Unavailable => Problem::new(
            503,
            "rotated; this server does not apply events (--no-process), too many requests wait, or the server is stopping",
        ),
        WaitOutcome::Gone => Problem::new(
            410,
            "rotated; a segment before the position is missing or corrupt and will not be applied",
        ),
    };
    problem
        .member("position", position)
        .member("applied", applied)
        .member("lagSeconds", progress.lag_seconds())
        .reply()
}

/// Answers that the process runs.
pub(super) fn healthz(inner: &Inner, request: Request) {
    let reply = Reply::json(200, "{\"status\":\"ok\"}".into());
    inner.answer(request, Route::Service, reply);
}

/// Answers whether the server is ready, or why it is not.
pub(super) fn readyz(inner: &Inner, request: Request) {
    let reasons = reasons(inner);
    let reply = if reasons.is_empty() {
        Reply::json(200, "{\"ready\":true}".into())
    } else {
        Problem::new(503, "not ready").reasons(reasons).reply()
    };
    inner.answer(request, Route::Service, reply);
}

/// The events of this run, and the sums and the ledger of all time. `unaccounted` also counts accepted
/// events without a line, and lines without an accepted event.
pub(super) fn accounts(inner: &Inner) -> (Events, Accounts) {
    let before = inner.counters.events();
    let lines = inner.journal.tail().lines;
    let events = inner.counters.events();
    let journal = &inner.journal;
    let mut accounts = inner.progress.accounts(|| journal.tail().lines);
    accounts.ledger.unaccounted += Events::unaccounted(before, lines, events).unwrap_or(0);
    (events, accounts)
}

/// The reasons why the server is not ready; empty if it is.
pub(super) fn reasons(inner: &Inner) -> Vec<String> {
    let mut reasons = inner.health.reasons();
    // Before the first contact. If that fails, its reason says more.
    let is_shared = inner.other_nodes.is_some();
    if is_shared && reasons.is_empty() && !inner.progress.is_published() {
        reasons.push("the shared database is being opened".into());
    }
    let before = inner.counters.events();
    let lines = inner.journal.tail().lines;
    if let Some(off @ (1.. | ..=-1)) = Events::unaccounted(before, lines, inner.counters.events()) {
        let (accepted, off) = (before.accepted, off.abs());
        reasons.push(format!(
            "{accepted} events were accepted and {lines} lines appended in this run: {off} are unaccounted for; run `tallyline verify`"
        ));
    }
    if inner.is_stopping() {
        reasons.push("the server is stopping".into());
    }
    reasons
}
