//! The bounds of a connection: its deadlines, its memory, and whether it may be closed for another one.

use std::time::{Duration, Instant};

use super::super::turn::{Next, Turn};
use super::super::upload::{MEMORY_WAIT, millis};
use super::super::{Limits, Refusal};
use super::{Connection, LINGER_TIME, State};

/// How long a client must have stalled, or be idle between requests, before its connection may be evicted.
const EVICT_IDLE_MIN: Duration = Duration::from_secs(1);
/// The same for a new client that has sent a part of its first head. Heads usually arrive as a whole, and
/// clients that send parts of heads must not keep others from being accepted.
const EVICT_PARTIAL_HEAD_MIN: Duration = Duration::from_millis(10);
/// Added to the announced keep-alive time, for a request that is sent just before its end.
const KEEP_ALIVE_GRACE: Duration = Duration::from_secs(1);

impl Connection {
    /// Whether no request has begun and all replies are written.
    pub(in super::super) fn is_idle(&self) -> bool {
        matches!(self.state, State::Head) && self.input.is_empty() && self.out.is_empty()
    }

    /// The rank of the connection if it may be evicted; lower ranks are evicted first: connections
    /// without a complete request, then those that are idle longest.
    pub(in super::super) fn rank_to_evict(
        &self,
        limits: &Limits,
        now: Instant,
    ) -> Option<(bool, Instant)> {
        let expendable = match &self.state {
            _ if !self.out.is_empty() => true,
            State::Head => !self.served || self.input.is_empty(),
            State::Upload(upload) => !self.served && upload.request.reservation.is_none(),
            State::Handling | State::Streaming(_) | State::Linger => false,
        };
        let idle_min = match self.state {
            // A client that opens thousands of connections at once sends its first requests seconds later.
            State::Head if !self.served && self.is_idle() => limits.first_byte_time,
            State::Head if !self.served && self.out.is_empty() => EVICT_PARTIAL_HEAD_MIN,
            _ => EVICT_IDLE_MIN,
        };
        let is_due = expendable && now >= self.since + idle_min;
        is_due.then_some((self.served, self.since))
    }

    /// Bytes of memory in its buffers, without bodies that have reserved memory.
    pub(in super::super) fn buffered_bytes(&self) -> usize {
        let body = match &self.state {
            State::Upload(upload) if upload.request.reservation.is_none() => {
                upload.request.body.len()
            }
            _ => 0,
        };
        self.input.capacity() + body + self.out.len()
    }

    /// The rate of its upload in bytes a second, if it has reserved memory and is slow enough to be refused.
    pub(in super::super) fn slow_rate(&self, now: Instant) -> Option<u64> {
        match &self.state {
            State::Upload(upload) => upload.slow_rate(now),
            _ => None,
        }
    }

    /// When its current state or window times out; `None` while the handler has the request or produces a
    /// piece of a body.
    pub(in super::super) fn deadline(&self, limits: &Limits) -> Option<Instant> {
        let time = match &self.state {
            _ if !self.out.is_empty() => limits.write_time,
            State::Head if self.input.is_empty() => limits.keep_alive + KEEP_ALIVE_GRACE,
            State::Head => limits.head_time,
            State::Upload(upload) if upload.awaits_memory => MEMORY_WAIT,
            State::Upload(_) => limits.body_time,
            State::Linger => LINGER_TIME,
            State::Handling | State::Streaming(_) => return None,
        };
        Some(self.since + time)
    }

    /// Handles a deadline that has passed.
    pub(in super::super) fn time_out(&mut self, turn: &mut Turn<'_>) -> Next {
        let limits = &turn.shared.limits;
        let least = |time: Duration| limits.rate_min * millis(time) / 1000;
        let moved = self.moved().saturating_sub(self.moved_before);
        match &self.state {
            _ if !self.out.is_empty() => {
                if moved < least(limits.write_time) {
                    return Next::Close;
                }
            }
            State::Upload(upload) if upload.awaits_memory => return Next::WaitedForMemory,
            State::Upload(_) => {
                if moved < least(limits.body_time) {
                    self.refuse(turn, Refusal::BodyTimedOut);
                }
            }
            State::Head if !self.input.is_empty() => self.refuse(turn, Refusal::HeadTimedOut),
            State::Head | State::Handling | State::Streaming(_) | State::Linger => {
                return Next::Close;
            }
        }
        self.begin_window(turn.now);
        self.advance(turn)
    }

    /// Bytes of the current body or reply that were transferred so far.
    fn moved(&self) -> u64 {
        match &self.state {
            _ if !self.out.is_empty() => self.written as u64,
            State::Upload(upload) => upload.count,
            _ => 0,
        }
    }

    pub(in super::super) fn begin_window(&mut self, now: Instant) {
        self.since = now;
        self.moved_before = self.moved();
    }
}
