//! `GET /metrics`: a snapshot for Prometheus. Runs on the lookup crew: it reads the database and the
//! data directory, and leaves out what either does not tell.

use std::sync::Arc;

use super::{Inner, service};
use crate::http::counters::Route;
use crate::http::engine::{Reply, Request};
use crate::http::metrics::{CONTENT_TYPE, Process, Segments, Snapshot};
use crate::store::SegmentState;

/// The figures now.
pub(super) fn metrics(inner: &Arc<Inner>, request: Request) {
    let text = snapshot(inner, &request).render();
    let reply = Reply::new(200, CONTENT_TYPE, text.into_bytes());
    inner.answer(request, Route::Service, reply);
}

fn snapshot(inner: &Inner, request: &Request) -> Snapshot {
    let app = &inner.app;
    let (events, ledger, _) = service::accounts(inner);
    let tail = app.journal.tail();
    let (queue_bytes, queue_bytes_max) = app.journal.queued_bytes();
    let figures = request.figures();
    Snapshot {
        started_at: inner.started_at,
        unready_reasons: service::reasons(inner, request).len() as u64,
        received: events.received,
        accepted: events.accepted,
        refused: events.refused,
        ledger: Some(ledger),
        lag_seconds: app.progress.lag_seconds(),
        queue_bytes,
        queue_bytes_max,
        segments: segments(inner),
        active_segment_bytes: tail.durable_end,
        data_bytes: app.disk.used_bytes(&app.data_dir).ok(),
        disk_free_bytes: app.disk.free_bytes(&app.data_dir).ok(),
        ack: inner.counters.ack().snapshot(),
        flush: app.progress.flushes().snapshot(),
        requests: inner
            .counters
            .requests()
            .map(|(route, status, count)| (route.name(), status, count))
            .collect(),
        requests_in_flight: figures.in_flight as u64,
        requests_abandoned: figures.abandoned,
        lost_log_lines: (app.lost_log_lines)(),
        process: Process::read(),
    }
}

/// `None` where the database can't be read: `/readyz` says why.
fn segments(inner: &Inner) -> Option<Segments> {
    let mut segments = Segments::default();
    for (state, count) in inner.app.readers.segment_counts().ok()? {
        *match state {
            SegmentState::Active => &mut segments.active,
            SegmentState::Sealed => &mut segments.sealed,
            SegmentState::Whole => &mut segments.applied,
            SegmentState::Untrusted => &mut segments.untrusted,
            SegmentState::Lost => &mut segments.lost,
        } = count;
    }
    Some(segments)
}
