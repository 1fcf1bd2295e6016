//! An upload: a request whose body is being received. A large body reserves memory, see [`super::memory`].

use std::time::{Duration, Instant};

use super::body::{Decoder, LARGE_BYTES, reserve};
use super::framing::Length;
use super::memory::Reservation;
use super::request::Request;
use super::{Lane, Refusal, Reply, Shared};

/// Maximum bytes of a small body, which reserves no memory.
pub(super) const SMALL_BYTES_MAX: usize = 16 << 10;
/// How long a large body waits for memory before a slow upload, or else this one, is refused.
pub(super) const MEMORY_WAIT: Duration = Duration::from_secs(2);
/// An upload slower than this, in bytes a second, is refused if another upload waits for its memory.
const SLOW_RATE: u64 = 128 << 10;

/// A request whose body is being received.
#[derive(Debug)]
pub(super) struct Upload {
    /// The request, with the part of its body that was received and kept.
    pub(super) request: Request,
    pub(super) then: Then,
    decoder: Decoder,
    /// The announced length in bytes; `None` for a chunked body.
    announced: Option<usize>,
    /// Bytes of the body received so far, kept or discarded.
    pub(super) count: u64,
    began: Instant,
    /// When reading began: at once, or when the upload got its memory.
    read_since: Instant,
    /// The upload waits for memory; nothing is read.
    pub(super) awaits_memory: bool,
    /// The client waits for `100 Continue`.
    pub(super) asks_to_continue: bool,
}

/// What the connection does after the complete body.
#[derive(Debug)]
pub(super) enum Then {
    /// Pass the request to the handler.
    Handle(Lane),
    /// Discard the body and send this reply.
    Answer(Reply),
}

impl Upload {
    pub(super) fn new(request: Request, then: Then, length: Length, now: Instant) -> Self {
        Self {
            request,
            then,
            decoder: Decoder::new(length),
            announced: match length {
                Length::Bytes(bytes) => Some(usize::try_from(bytes).unwrap_or(usize::MAX)),
                Length::Chunked => None,
            },
            count: 0,
            began: now,
            read_since: now,
            awaits_memory: false,
            asks_to_continue: false,
        }
    }

    /// Maximum bytes of a body that is discarded: a longer one closes the connection.
    pub(super) fn discard_max(bytes_max: usize) -> u64 {
        4 * bytes_max as u64
    }

    pub(super) fn is_complete(&self) -> bool {
        self.decoder.is_complete()
    }

    /// Whether nothing more is read: the body is complete, or too long to be discarded.
    pub(super) fn ends(&self, bytes_max: usize) -> bool {
        self.is_complete() || self.count > Self::discard_max(bytes_max)
    }

    /// Consumes the bytes at the start of `input` that belong to the body and returns their number, or
    /// the error in the chunks. A body above the limit is discarded.
    pub(super) fn receive(&mut self, input: &[u8], shared: &Shared) -> Result<usize, &'static str> {
        let bytes_max = shared.limits.body_bytes_max;
        let mut at = 0;
        while !self.is_complete() && self.count <= Self::discard_max(bytes_max) {
            let (consumed, data) = self.decoder.decode(&input[at..])?;
            if consumed == 0 {
                break;
            }
            self.keep(&input[at..at + data], bytes_max);
            at += consumed;
        }
        if self.count > bytes_max as u64 && matches!(self.then, Then::Handle(_)) {
            self.then = Then::Answer(shared.handler.refusal(Refusal::BodyTooLarge));
        }
        Ok(at)
    }

    fn keep(&mut self, data: &[u8], bytes_max: usize) {
        let body = &mut self.request.body;
        self.count += data.len() as u64;
        if matches!(self.then, Then::Answer(_)) || self.count > bytes_max as u64 {
            *body = Vec::new();
            return;
        }
        if body.len() + data.len() > body.capacity().max(LARGE_BYTES) {
            reserve(body, bytes_max);
        } else if body.is_empty() {
            // One more for the line end that a body of one line may lack.
            body.reserve(data.len() + 1);
        }
        body.extend_from_slice(data);
    }

    /// The bytes that the upload must reserve before it continues. A chunked body reserves the maximum
    /// once it is no longer small, because its length is unknown.
    pub(super) fn bytes_to_reserve(&self, bytes_max: usize) -> Option<usize> {
        if self.request.reservation.is_some() || matches!(self.then, Then::Answer(_)) {
            return None;
        }
        let expected = self.announced.unwrap_or(self.request.body.len());
        (expected > SMALL_BYTES_MAX).then_some(self.announced.unwrap_or(bytes_max))
    }

    pub(super) fn grant(&mut self, reservation: Reservation, now: Instant) {
        self.awaits_memory = false;
        self.read_since = now;
        if self.asks_to_continue {
            // The client has sent nothing yet, as it should.
            self.began = now;
        }
        self.request.reservation = Some(reservation);
        if let Some(bytes) = self.announced {
            reserve(&mut self.request.body, bytes);
        }
    }

    /// The rate of the upload in bytes a second, if it has reserved memory and is slow enough to be refused.
    pub(super) fn slow_rate(&self, now: Instant) -> Option<u64> {
        self.request.reservation.as_ref()?;
        // Nothing was read while it waited for memory: that time says nothing about the client.
        let rate =
            self.count * 1000 / millis(now.saturating_duration_since(self.read_since)).max(1);
        let is_old = now.saturating_duration_since(self.began) >= MEMORY_WAIT;
        (is_old && rate < SLOW_RATE).then_some(rate)
    }
}

/// A duration in whole milliseconds.
pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
