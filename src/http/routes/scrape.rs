//! `GET /metrics`: a snapshot for Prometheus. It reads the database and the data directory on a thread
//! that may block. Values that cannot be read are left out.

use std::sync::Arc;

use super::{Inner, nodes, service};
use crate::http::counters::Route;
use crate::http::engine::{Figures, MayBlock, Reply, Request};
use crate::http::metrics::{CONTENT_TYPE, Process, Segments, Snapshot};
use crate::store::SegmentState;

/// Answers with all metrics.
pub(super) fn metrics(inner: &Arc<Inner>, request: Request) {
    let inner = Arc::clone(inner);
    request.on_blocking_thread(move |request, may_block| {
        let text = snapshot(&inner, request.figures(), may_block).render();
        let reply = Reply::new(200, CONTENT_TYPE, text.into_bytes());
        inner.answer(request, Route::Service, reply);
    });
}

fn snapshot(inner: &Inner, figures: Figures, may_block: &MayBlock) -> Snapshot {
    let files = inner.files.get(may_block);
    let (events, accounts) = service::accounts(inner);
    let tail = inner.journal.tail();
    let (queue_bytes, queue_bytes_max) = inner.journal.queued_bytes();
    Snapshot {
        started_at: inner.started_at,
        unready_reasons: service::reasons(inner).len() as u64,
        received: events.received,
        accepted: events.accepted,
        refused: events.refused,
        ledger: accounts.ledger,
        overall: accounts.overall,
        nodes: nodes::figures(inner, may_block),
        lag_seconds: inner.progress.lag_seconds(),
        queue_bytes,
        queue_bytes_max,
        segments: segments(inner, may_block),
        active_segment_bytes: tail.durable_end,
        data_bytes: files.disk.used_bytes(&files.data_dir).ok(),
        disk_free_bytes: files.disk.free_bytes(&files.data_dir).ok(),
        disk_size_bytes: files.disk.capacity_bytes(&files.data_dir).ok(),
        ack: inner.counters.ack().snapshot(),
        flush: inner.progress.flushes().snapshot(),
        requests: inner
            .counters
            .requests()
            .map(|(route, status, count)| (route.name(), status, count))
            .collect(),
        http_refused: inner.counters.refusals().collect(),
        http: figures,
        lost_log_lines: (inner.lost_log_lines)(),
        process: Process::read(),
    }
}

/// `None` if the database cannot be read; `/readyz` says why.
fn segments(inner: &Inner, may_block: &MayBlock) -> Option<Segments> {
    let mut segments = Segments::default();
    for (state, count) in inner.readers.get(may_block).segment_counts().ok()? {
        *match state {
            SegmentState::Active => &mut segments.active,
            SegmentState::Sealed => &mut segments.sealed,
            SegmentState::Applied => &mut segments.applied,
            SegmentState::Corrupt => &mut segments.corrupt,
            SegmentState::Missing => &mut segments.missing,
        } = count;
    }
    Some(segments)
}
