//! A request whose body is coming, and the room that a large one needs.

use std::time::{Duration, Instant};

use super::body::Body;
use super::request::Request;
use super::room::Share;
use super::{Lane, Reply};

/// A body up to this length is handled on the I/O thread where its lane allows; a larger one needs
/// room.
pub(super) const SMALL_BYTES_MAX: usize = 16 << 10;
/// How long a large body waits for room.
pub(super) const ROOM_WAIT: Duration = Duration::from_secs(2);
/// An upload slower than this, in bytes a second, yields its room when others wait for it.
const YIELDING_RATE: u64 = 128 << 10;

/// A request whose body is coming.
#[derive(Debug)]
pub(super) struct Upload {
    pub(super) request: Request,
    pub(super) body: Body,
    /// The announced length; `None` for chunks.
    pub(super) announced: Option<u64>,
    pub(super) then: Then,
    pub(super) began: Instant,
    /// It waits for room.
    pub(super) waits: bool,
    pub(super) asks_to_continue: bool,
}

/// What follows a whole body.
#[derive(Debug)]
pub(super) enum Then {
    Handle(Lane),
    /// The body is discarded.
    Answer(Reply),
}

impl Upload {
    /// How much room it needs and does not have. Of chunks nobody knows how many will come.
    pub(super) fn wants_room(&self) -> Option<usize> {
        if self.request.share.is_some() || matches!(self.then, Then::Answer(_)) {
            return None;
        }
        let expected = self.announced.unwrap_or(self.body.len() as u64);
        if expected <= SMALL_BYTES_MAX as u64 {
            return None;
        }
        let bytes = self.announced.and_then(|bytes| usize::try_from(bytes).ok());
        Some(bytes.unwrap_or(self.body.bytes_max()))
    }

    pub(super) fn grant(&mut self, share: Share) {
        self.waits = false;
        self.request.share = Some(share);
        if let Some(bytes) = self.announced.and_then(|bytes| usize::try_from(bytes).ok()) {
            self.body.reserve(bytes);
        }
    }

    /// Its rate in bytes a second, where it has room and is slow enough to yield it.
    pub(super) fn yielding_rate(&self, now: Instant) -> Option<u64> {
        self.request.share.as_ref()?;
        let elapsed = now.saturating_duration_since(self.began);
        let rate = self.body.count() * 1000 / millis(elapsed).max(1);
        (elapsed >= ROOM_WAIT && rate < YIELDING_RATE).then_some(rate)
    }
}

/// In whole milliseconds.
pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
