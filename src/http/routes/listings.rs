//! `GET /segments` and `GET /rejected`: the segments and the rejected lines, for people and the status
//! page.
//!
//! Both run on a thread that may block. A segment shows the state in the database, and its file where
//! it is now; `file` is `null` if there is no file.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::params::Params;
use super::positions::check_end;
use super::users::{WAIT_DEFAULT, WAIT_MAX};
use super::{Files, Inner, unreadable};
use crate::data_dir::APPLIED_DIR;
use crate::data_dir::node_position::NodePosition;
use crate::data_dir::segment::{ACTIVE_FILE, Position, SegmentId, sealed_at};
use crate::http::counters::Route;
use crate::http::engine::{MayBlock, Reply, Request};
use crate::http::problem::Problem;
use crate::journal::Tail;
use crate::store::{RejectedFilter, SegmentRow, SegmentState};
use crate::timestamp;

const LIMIT_DEFAULT: u32 = 20;
const LIMIT_MAX: u32 = 1000;

/// Answers with the newest segments and their states.
pub(super) fn segments(inner: &Arc<Inner>, request: Request, query: &str) {
    inner.answer_blocking(request, Route::Segments, query, list_segments);
}

/// Answers with the newest rejected lines, at once or after a position is applied.
pub(super) fn rejected(inner: &Arc<Inner>, request: Request, query: &str) {
    let query = match RejectedQuery::parse(inner, query) {
        Ok(query) => query,
        Err(problem) => return inner.answer(request, Route::Rejected, problem.reply()),
    };
    let list = {
        let inner = Arc::clone(inner);
        move |request: Request, query: RejectedQuery| {
            // The current thread may be one that must not block.
            request.on_blocking_thread(move |request, may_block| {
                let reply = list_rejected(&inner, &query, may_block);
                let reply = reply.unwrap_or_else(Problem::reply);
                inner.answer(request, Route::Rejected, reply);
            });
        }
    };
    let Some(after) = query.after else {
        return list(request, query);
    };
    let deadline = Instant::now() + query.wait;
    let waiting = Arc::clone(inner);
    let done = move |waited: Result<(), Problem>| match waited {
        Ok(()) => list(request, query),
        Err(problem) => waiting.answer(request, Route::Rejected, problem.reply()),
    };
    inner.when_own_applied(after, deadline, done);
}

/// The query parameters of `/rejected`.
struct RejectedQuery {
    limit: u32,
    filter: RejectedFilter,
    after: Option<Position>,
    wait: Duration,
}

impl RejectedQuery {
    fn parse(inner: &Inner, query: &str) -> Result<Self, Problem> {
        let params = Params::parse(query, &["limit", "since", "idPrefix", "after", "wait"])?;
        let own = |name| {
            let position = params.position(name)?;
            position
                .map(|position| inner.own(name, position))
                .transpose()
        };
        Ok(Self {
            limit: params.limit(LIMIT_DEFAULT, LIMIT_MAX)?,
            filter: RejectedFilter {
                since: own("since")?,
                id_prefix: params.get("idPrefix").map(str::to_owned),
            },
            after: own("after")?,
            wait: params.wait(WAIT_DEFAULT, WAIT_MAX)?,
        })
    }
}

fn limit(query: &str) -> Result<u32, Problem> {
    Params::parse(query, &["limit"])?.limit(LIMIT_DEFAULT, LIMIT_MAX)
}

fn list_rejected(
    inner: &Inner,
    query: &RejectedQuery,
    may_block: &MayBlock,
) -> Result<Reply, Problem> {
    let readers = inner.readers.get(may_block);
    let after = query.after.map(|position| NodePosition {
        node: None,
        position,
    });
    if let Some(after) = after.and_then(|after| inner.in_sealed_segment(after)) {
        check_end(readers, after)?;
    }
    let lines = readers.newest_rejected(query.limit, &query.filter);
    let lines = lines.map_err(|error| unreadable(&error))?;
    let lines: Vec<Value> = lines
        .into_iter()
        .map(|line| {
            json!({
                "segment": line.segment,
                "offset": line.offset,
                "code": line.code,
                "reason": line.reason,
                "line": line.line,
            })
        })
        .collect();
    let body = json!({ "rejected": lines });
    Ok(Reply::json(200, body.to_string()))
}

fn list_segments(inner: &Inner, query: &str, may_block: &MayBlock) -> Result<Reply, Problem> {
    let limit = limit(query)?;
    let tail = inner.journal.tail();
    let files = inner.files.get(may_block);
    let rows = inner.readers.get(may_block).newest_segments(limit);
    let rows = rows.map_err(|error| unreadable(&error))?;
    let active = SegmentId::Native(tail.number);
    let mut segments = Vec::with_capacity(rows.len() + 1);
    // The active segment has no row until a part of it is applied.
    if tail.durable_end > 0 && !rows.iter().any(|row| row.id == active) {
        segments.push(unapplied(&active, &tail));
    }
    segments.extend(rows.iter().map(|row| segment(files, row, &tail)));
    segments.truncate(limit as usize);
    let body = json!({ "segments": segments });
    Ok(Reply::json(200, body.to_string()))
}

fn unapplied(id: &SegmentId, tail: &Tail) -> Value {
    json!({
        "name": id.to_string(),
        "file": ACTIVE_FILE,
        "state": SegmentState::Active.name(),
        "bytes": tail.durable_end,
        "appliedBytes": 0,
        "events": 0,
        "rejected": 0,
        "duplicates": 0,
        "sealedAt": null,
        "completedAt": null,
        "reason": null,
    })
}

fn segment(files: &Files, row: &SegmentRow, tail: &Tail) -> Value {
    let file = file(files, row, tail);
    let completed_at = row.completed_at_ms.map(timestamp::rfc3339_of_ms);
    let state = match &file {
        None if row.state == SegmentState::Applied => FILE_MISSING,
        _ => row.state.name(),
    };
    json!({
        "name": row.id.to_string(),
        "file": file.as_ref().map(|(path, _)| path),
        "state": state,
        "bytes": file.as_ref().map(|(_, bytes)| bytes),
        "appliedBytes": row.applied_bytes,
        "events": row.counts.events,
        "rejected": row.counts.rejected,
        "duplicates": row.counts.duplicates,
        "sealedAt": sealed_at(&row.file_name),
        "completedAt": completed_at,
        "reason": row.reason,
    })
}

/// The state of an applied segment without a file.
const FILE_MISSING: &str = "file_missing";

/// The path of a segment's file below the data directory, and its length in bytes.
fn file(files: &Files, row: &SegmentRow, tail: &Tail) -> Option<(String, u64)> {
    if row.file_name == ACTIVE_FILE {
        // If the segment was sealed since, the processor does not know the new name yet.
        let is_active = row.id.number() == Some(tail.number);
        return is_active.then(|| (ACTIVE_FILE.to_owned(), tail.durable_end));
    }
    let archived = row.completed_at_ms.map(|at_ms| {
        let month = timestamp::rfc3339_of_ms(at_ms);
        let month = month.get(.."2026-11".len()).unwrap_or_default();
        format!("{APPLIED_DIR}/{month}/{}", row.file_name)
    });
    // The archive is checked twice, because the file may be moved there between the two checks.
    let places = [archived.clone(), Some(row.file_name.clone()), archived];
    places.into_iter().flatten().find_map(|path| {
        let bytes = files.disk.size_at(&files.data_dir.join(&path)).ok()?;
        Some((path, bytes))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::page;
    use std::collections::BTreeSet;

    #[test]
    fn the_page_and_the_api_description_have_every_state() {
        // Fails if a state has no text on the status page, or is not in the enum of the description.
        let states = [
            SegmentState::Active,
            SegmentState::Sealed,
            SegmentState::Applied,
            SegmentState::Corrupt,
            SegmentState::Missing,
        ];
        let states = states.iter().map(|state| state.name());
        let states: BTreeSet<_> = states.chain([FILE_MISSING]).collect();
        let (_, table) = page::HTML.split_once("const STATES = {").expect("a table");
        let (table, _) = table.split_once("};").expect("its end");
        for state in &states {
            assert!(table.contains(&format!(" {state}: [")), "{state}");
        }
        let api: Value = serde_json::from_str(include_str!("../openapi.json")).expect("JSON");
        let schema = &api["components"]["schemas"]["Segments"];
        let listed = &schema["properties"]["segments"]["items"]["properties"]["state"]["enum"];
        let listed = listed.as_array().expect("an enum");
        assert_eq!(listed.len(), states.len(), "{listed:?}");
        let listed: BTreeSet<_> = listed.iter().filter_map(Value::as_str).collect();
        assert_eq!(listed, states);
    }
}
