//! The newest refused requests with their first error, in memory, for `GET /refused` and the status page.
//!
//! The counters say how many requests were refused, and each client gets its reasons; this says them to the
//! operator. Requests that are refused for the same reason share an entry, so that a client that repeats its
//! error does not displace the others. The reason is the field and code of the first error; if no line is
//! invalid, the text.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use super::problem::Fault;
use crate::timestamp;

/// The number of entries.
const ENTRIES_MAX: usize = 20;
/// Maximum length of a text in an entry, in characters: an error may quote a part of the request.
const TEXT_CHARS_MAX: usize = 300;

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Entry {
    /// When the newest of them was refused.
    at: String,
    /// The status of the response.
    status: u16,
    detail: String,
    /// The first invalid line of the newest of them.
    error: Option<Fault>,
    requests: u64,
    /// How many events of them were not stored.
    events: u64,
}

/// The newest entries, the newest first.
#[derive(Debug, Default)]
pub(super) struct RefusedRequests(Mutex<VecDeque<Entry>>);

impl RefusedRequests {
    /// Records a request of which `events` events were not stored.
    pub(super) fn record(&self, status: u16, detail: &str, error: Option<&Fault>, events: u64) {
        let at = timestamp::rfc3339_of_ms(timestamp::now_ms());
        let entry = Entry {
            at,
            status,
            detail: shortened(detail).into_owned(),
            error: error.map(|fault| fault.with_texts(|text| shortened(text).into_owned())),
            requests: 1,
            events,
        };
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = entries.iter().position(|known| known.is_like(&entry));
        let (requests, before) = known
            .and_then(|at| entries.remove(at))
            .map_or((0, 0), |known| (known.requests, known.events));
        entries.push_front(Entry {
            requests: requests + 1,
            events: before + events,
            ..entry
        });
        entries.truncate(ENTRIES_MAX);
    }

    /// All entries, the newest first.
    pub(super) fn newest(&self) -> Vec<Entry> {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.iter().cloned().collect()
    }
}

impl Entry {
    /// Whether the requests were refused for the same reason.
    fn is_like(&self, other: &Self) -> bool {
        self.status == other.status
            && match (&self.error, &other.error) {
                (Some(mine), Some(others)) => mine.kind() == others.kind(),
                (None, None) => self.detail == other.detail,
                _ => false,
            }
    }
}

fn shortened(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(TEXT_CHARS_MAX) {
        None => Cow::Borrowed(text),
        Some((end, _)) => Cow::Owned(format!("{}…", &text[..end])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_kept_and_equal_ones_share_an_entry() {
        let refused = RefusedRequests::default();
        let detail = |number: usize| format!("reason {number}");
        for number in 0..25 {
            refused.record(400, &detail(number), None, 1);
        }
        refused.record(400, &detail(24), None, 3);
        refused.record(422, &detail(24), None, 0);
        let newest = refused.newest();
        assert_eq!(newest.len(), ENTRIES_MAX);
        let seen = |at: usize| (newest[at].status, newest[at].requests, newest[at].events);
        assert_eq!(
            (seen(0), seen(1), seen(2)),
            ((422, 1, 0), (400, 2, 4), (400, 1, 1))
        );
        assert_eq!(newest[19].detail, detail(6));
        refused.record(400, &detail(10), None, 1);
        let newest = refused.newest();
        assert_eq!((&*newest[0].detail, newest[0].requests), ("reason 10", 2));
        assert_eq!(newest.len(), ENTRIES_MAX);
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let refused = RefusedRequests::default();
        refused.record(400, &"é".repeat(1 << 20), None, 1);
        assert_eq!(
            refused.newest()[0].detail.chars().count(),
            TEXT_CHARS_MAX + 1
        );
    }
}
