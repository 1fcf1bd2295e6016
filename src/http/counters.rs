//! What the front door counts, in plain atomics: written by every thread, read by `/status` and
//! the metrics.
//!
//! Events are counted twice, apart from each other: as *received* where a request is read, and as
//! *accepted* or *refused* where its fate is decided. What is on its way to the disk is received and
//! neither of the others yet; once nothing is, the two sides are equal, or events were lost between.

use std::sync::atomic::{AtomicU64, Ordering};

use super::engine::Refusal;
use crate::histogram::Histogram;

/// The routes that are told apart.
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
    /// `/segments`
    Segments,
    /// `/rejected`
    Rejected,
    /// `/healthz`, `/readyz`, `/status` and the pages about the service itself
    Service,
    /// Anything else, and what is refused before its path is looked at
    Other,
}

impl Route {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::LiveEvent,
        Self::User,
        Self::Users,
        Self::Flush,
        Self::Segments,
        Self::Rejected,
        Self::Service,
        Self::Other,
    ];

    /// Its name as a metric's label.
    pub fn name(self) -> &'static str {
        match self {
            Self::LiveEvent => "/liveEvent",
            Self::User => "/userEvents/{userId}",
            Self::Users => "/userEvents",
            Self::Flush => "/flush",
            Self::Segments => "/segments",
            Self::Rejected => "/rejected",
            Self::Service => "service",
            Self::Other => "other",
        }
    }
}

/// The statuses that are answered; any other is counted as the last.
pub const STATUSES: [u16; 20] = [
    200, 202, 204, 400, 401, 403, 404, 405, 408, 410, 413, 415, 417, 422, 431, 500, 503, 505, 507,
    0,
];

/// Events of this run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// Read from requests.
    pub received: u64,
    /// Acknowledged.
    pub accepted: u64,
    /// Not taken: no events, or 503, or 507.
    pub refused: u64,
}

impl Events {
    /// Accepted events that are no line of the files, or (negative) lines that are no accepted event.
    /// `lines` were appended in this run, as read between the two looks `before` and `after`; `None`
    /// while events are on their way.
    pub fn unaccounted(before: Self, lines: u64, after: Self) -> Option<i64> {
        let settled = before.accepted + before.refused;
        // What is received is never less than what is settled, so nothing came or went between.
        (settled == after.received).then(|| before.accepted.cast_signed() - lines.cast_signed())
    }
}

/// The counters.
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
    /// So many events were read from a request; [`Self::settle`] says later what became of them.
    pub fn receive(&self, events: u64) {
        self.received.fetch_add(events, Ordering::SeqCst);
    }

    /// So many events were acknowledged and so many refused.
    pub fn settle(&self, accepted: u64, refused: u64) {
        self.accepted.fetch_add(accepted, Ordering::SeqCst);
        self.refused.fetch_add(refused, Ordering::SeqCst);
    }

    /// Events so far.
    pub fn events(&self) -> Events {
        let accepted = self.accepted.load(Ordering::SeqCst);
        let refused = self.refused.load(Ordering::SeqCst);
        Events {
            // Last: never less than the sum of the others.
            received: self.received.load(Ordering::SeqCst),
            accepted,
            refused,
        }
    }

    /// A request was answered.
    pub fn answered(&self, route: Route, status: u16) {
        let place = STATUSES.iter().position(|known| *known == status);
        let place = place.unwrap_or(STATUSES.len() - 1);
        self.requests[route as usize][place].fetch_add(1, Ordering::Relaxed);
    }

    /// Requests answered so, up to now.
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

    /// The engine refused a request.
    pub fn refused(&self, refusal: Refusal) {
        self.refusals[refusal.index()].fetch_add(1, Ordering::Relaxed);
    }

    /// How many requests the engine has refused, by reason.
    pub fn refusals(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let counts = self
            .refusals
            .iter()
            .map(|count| count.load(Ordering::Relaxed));
        Refusal::REASONS.into_iter().zip(counts)
    }

    /// Times from a request's arrival to its durable acknowledgement.
    pub fn ack(&self) -> &Histogram {
        &self.ack
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_accounted_for_once_none_is_on_its_way() {
        // Red if an event that got lost between request and file passes for one on its way.
        let counters = Counters::default();
        counters.receive(5);
        counters.settle(2, 1);
        let before = counters.events();
        assert_eq!(Events::unaccounted(before, 4, before), None);
        counters.settle(2, 0);
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
