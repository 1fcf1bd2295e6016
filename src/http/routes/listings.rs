//! `GET /segments` and `GET /rejected`: what became of the files, for people and the status page.
//!
//! Both run on a thread that may block. A row says what the processor last saw; the files themselves are looked
//! for where they should lie now, and are `null` where they are not.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Value, json};

use super::params::Params;
use super::users::unreadable;
use super::{Files, Inner};
use crate::http::counters::Route;
use crate::http::engine::{MayBlock, Reply, Request};
use crate::http::problem::Problem;
use crate::journal::{APPLIED_DIR, Tail};
use crate::segment::{ACTIVE_FILE, SegmentId, sealed_at};
use crate::store::{SegmentRow, SegmentState};

const LIMIT_DEFAULT: u32 = 20;
const LIMIT_MAX: u32 = 1000;

/// The newest segments and their state.
pub(super) fn segments(inner: &Arc<Inner>, request: Request, query: &str) {
    inner.answer_blocking(request, Route::Segments, query, list_segments);
}

/// The newest lines that were not counted.
pub(super) fn rejected(inner: &Arc<Inner>, request: Request, query: &str) {
    inner.answer_blocking(request, Route::Rejected, query, list_rejected);
}

fn limit(query: &str) -> Result<u32, Problem> {
    Params::parse(query, &["limit"])?.limit(LIMIT_DEFAULT, LIMIT_MAX)
}

fn list_rejected(inner: &Inner, query: &str, may_block: &MayBlock) -> Result<Reply, Problem> {
    let limit = limit(query)?;
    let lines = inner.readers.get(may_block).newest_rejected(limit);
    let lines = lines.map_err(|error| unreadable(&error))?;
    let lines: Vec<Value> = lines
        .into_iter()
        .map(|line| {
            json!({
                "segment": line.segment,
                "offset": line.offset,
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
    let active = SegmentId::Ours(tail.number);
    let mut segments = Vec::with_capacity(rows.len() + 1);
    // What nothing was applied of yet has no row.
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
        "wholeAt": null,
        "reason": null,
    })
}

fn segment(files: &Files, row: &SegmentRow, tail: &Tail) -> Value {
    let file = file(files, row, tail);
    let whole_at = row.whole_at_ms.map(rfc3339);
    json!({
        "name": row.id.to_string(),
        "file": file.as_ref().map(|(path, _)| path),
        "state": state_name(row.state),
        "bytes": file.as_ref().map(|(_, bytes)| bytes),
        "appliedBytes": row.applied_bytes,
        "events": row.counts.events,
        "rejected": row.counts.rejected,
        "duplicates": row.counts.duplicates,
        "sealedAt": sealed_at(&row.file_name),
        "wholeAt": whole_at,
        "reason": row.reason,
    })
}

/// `applied` is the word of the API, as it is the name of the archive.
fn state_name(state: SegmentState) -> &'static str {
    match state {
        SegmentState::Whole => "applied",
        other => other.name(),
    }
}

/// Where a segment's file lies below the data directory, and its length.
fn file(files: &Files, row: &SegmentRow, tail: &Tail) -> Option<(String, u64)> {
    if row.file_name == ACTIVE_FILE {
        // Sealed since, it lies under a name that the processor has not seen yet.
        let is_active = row.id.number() == Some(tail.number);
        return is_active.then(|| (ACTIVE_FILE.to_owned(), tail.durable_end));
    }
    let archived = row.whole_at_ms.map(|at_ms| {
        let month = rfc3339(at_ms);
        let month = month.get(.."2026-11".len()).unwrap_or_default();
        format!("{APPLIED_DIR}/{month}/{}", row.file_name)
    });
    let places = [archived, Some(row.file_name.clone())];
    places.into_iter().flatten().find_map(|path| {
        let file = files.disk.open_read(&files.data_dir.join(&path));
        let bytes = file.and_then(|file| file.size()).ok()?;
        Some((path, bytes))
    })
}

fn rfc3339(at_ms: i64) -> String {
    let at = Duration::from_millis(u64::try_from(at_ms).unwrap_or(0));
    humantime::format_rfc3339_millis(UNIX_EPOCH + at).to_string()
}
