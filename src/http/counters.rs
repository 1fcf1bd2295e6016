//! The counters of the HTTP server: atomics that every thread adds to, and that `/status` and `/metrics`
//! read.
//!
//! Events are counted in two independent places: as *received* when a request is read, and as *accepted*
//! or *refused* when its outcome is known. Events that are being written to disk are received only. When
//! no such event is left, received equals accepted + refused; otherwise events were lost.

use std::sync::atomic::{AtomicU64, Ordering};

use super::engine::Refusal;
use crate::histogram::Histogram;

/// The routes with counters of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// `/liveEvent`
    LiveEvent,
    /// `/userEvents/{userId}`
    User,
    /// `/userEvents`
    Users,
    /// `/flush`
    Flush,
    /// `/nodes`
    Nodes,
    /// `/segments`
    Segments,
    /// `/rejected`
    Rejected,
    /// `/healthz`, `/readyz`, `/status`, `/metrics`, `/openapi.json` and the status page
    Service,
    /// Other paths, and requests that are refused before their path is checked
    Other,
}

impl Route {
    /// All routes, in the order of their discriminants.
    pub const ALL: [Self; 9] = [
        Self::LiveEvent,
        Self::User,
        Self::Users,
        Self::Flush,
        Self::Nodes,
        Self::Segments,
        Self::Rejected,
        Self::Service,
        Self::Other,
    ];

    /// The value of the metric label `route`.
    pub fn name(self) -> &'static str {
        match self {
            Self::LiveEvent => "/liveEvent",
            Self::User => "/userEvents/{userId}",
            Self::Users => "/userEvents",
            Self::Flush => "/flush",
            Self::Nodes => "/nodes",
            Self::Segments => "/segments",
            Self::Rejected => "/rejected",
            Self::Service => "service",
            Self::Other => "other",
        }
    }
}

/// The statuses with counters of their own; all others are counted as 0.
pub const STATUSES: [u16; 20] = [
    200, 202, 204, 400, 401, 403, 404, 405, 408, 410, 413, 415, 417, 422, 431, 500, 503, 505, 507,
    0,
];

/// The events of this run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// Events read from requests.
    pub received: u64,
    /// Events stored and acknowledged.
    pub accepted: u64,
    /// Events that were not stored: invalid, or answered with 503 or 507.
    pub refused: u64,
}

impl Events {
    /// The number of accepted events without a line in the files, or (negative) of lines without an
    /// accepted event. `lines` is the number of lines appended in this run, read after `before` and
    /// before `after`. `None` if events were being written at that time.
    pub fn unaccounted(before: Self, lines: u64, after: Self) -> Option<i64> {
        let settled = before.accepted + before.refused;
        // Received is never less than accepted + refused, so no counter changed between the two reads.
        (settled == after.received).then(|| before.accepted.cast_signed() - lines.cast_signed())
    }
}

/// The counters of an HTTP server.
#[derive(Debug, Default)]
pub struct Counters {
    received: AtomicU64,
    accepted: AtomicU64,
    refused: AtomicU64,
    requests: [[AtomicU64; STATUSES.len()]; Route::ALL.len()],
    refusals: [AtomicU64; Refusal::REASONS.len()],
    ack: Histogram,
}

impl Counters {
    /// Counts events read from a request. [`Self::record_outcome`] counts their outcome.
    pub fn receive(&self, events: u64) {
        self.received.fetch_add(events, Ordering::SeqCst);
    }

    /// Counts acknowledged and refused events.
    pub fn record_outcome(&self, accepted: u64, refused: u64) {
        self.accepted.fetch_add(accepted, Ordering::SeqCst);
        self.refused.fetch_add(refused, Ordering::SeqCst);
    }

    /// The current numbers of events.
    pub fn events(&self) -> Events {
        let accepted = self.accepted.load(Ordering::SeqCst);
        let refused = self.refused.load(Ordering::SeqCst);
        Events {
            // Read last, so that it is never less than the sum of the others.
            received: self.received.load(Ordering::SeqCst),
            accepted,
            refused,
        }
    }

    /// Counts an answered request.
    pub fn answered(&self, route: Route, status: u16) {
        let index = STATUSES.iter().position(|known| *known == status);
        let index = index.unwrap_or(STATUSES.len() - 1);
        self.requests[route as usize][index].fetch_add(1, Ordering::Relaxed);
    }

    /// The numbers of answered requests by route and status, without those that are 0.
    pub fn requests(&self) -> impl Iterator<Item = (Route, u16, u64)> + '_ {
        Route::ALL.into_iter().flat_map(move |route| {
            let counts = &self.requests[route as usize];
            STATUSES
                .iter()
                .zip(counts)
                .map(move |(status, count)| (route, *status, count.load(Ordering::Relaxed)))
                .filter(|(_, _, count)| *count > 0)
        })
    }

    /// Counts a request that the engine refused.
    pub fn refused(&self, refusal: Refusal) {
        self.refusals[refusal.index()].fetch_add(1, Ordering::Relaxed);
    }

    /// The numbers of requests that the engine refused, by reason.
    pub fn refusals(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let counts = self
            .refusals
            .iter()
            .map(|count| count.load(Ordering::Relaxed));
        Refusal::REASONS.into_iter().zip(counts)
    }

    /// The times from the last byte of a request to its durable acknowledgement.
    pub fn ack(&self) -> &Histogram {
        &self.ack
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_accounted_for_when_none_is_being_written() {
        // Fails if an event that was lost between request and file counts as being written.
        let counters = Counters::default();
        counters.receive(5);
        counters.record_outcome(2, 1);
        let before = counters.events();
        assert_eq!(Events::unaccounted(before, 4, before), None);
        counters.record_outcome(2, 0);
        let after = counters.events();
        for (lines, off) in [(4, 0), (3, 1), (6, -2)] {
            assert_eq!(Events::unaccounted(after, lines, after), Some(off));
        }
        assert_eq!(Events::unaccounted(before, 4, after), None);
    }

    #[test]
    fn requests_by_route_and_status() {
        let counters = Counters::default();
        counters.answered(Route::Flush, 200);
        counters.answered(Route::Flush, 200);
        counters.answered(Route::Other, 418);
        let seen: Vec<_> = counters.requests().collect();
        assert_eq!(seen, [(Route::Flush, 200, 2), (Route::Other, 0, 1)]);
    }
}
