//! A request whose body is coming, and the room that a large one needs.

use std::time::{Duration, Instant};

use super::body::{Decoder, LARGE_BYTES, reserve};
use super::framing::Length;
use super::request::Request;
use super::room::Share;
use super::{Lane, Refusal, Reply, Shared};

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
    /// With the part of the body that has come and is kept.
    pub(super) request: Request,
    pub(super) then: Then,
    decoder: Decoder,
    /// The announced length; `None` for chunks.
    announced: Option<usize>,
    /// Bytes of the body that have come, kept or not.
    pub(super) count: u64,
    began: Instant,
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
            waits: false,
            asks_to_continue: false,
        }
    }

    /// The longest body that is read to its end, though it is not kept.
    pub(super) fn discard_max(bytes_max: usize) -> u64 {
        4 * bytes_max as u64
    }

    pub(super) fn is_complete(&self) -> bool {
        self.decoder.is_complete()
    }

    /// Takes what belongs to the body from the start of `input`: how many bytes that was, or what is
    /// wrong with the chunks. Past the limit nothing is kept.
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
        }
        body.extend_from_slice(data);
    }

    /// How much room it needs and does not have. Of chunks it is unknown how many will come.
    pub(super) fn wants_room(&self, bytes_max: usize) -> Option<usize> {
        if self.request.share.is_some() || matches!(self.then, Then::Answer(_)) {
            return None;
        }
        let expected = self.announced.unwrap_or(self.request.body.len());
        (expected > SMALL_BYTES_MAX).then_some(self.announced.unwrap_or(bytes_max))
    }

    pub(super) fn grant(&mut self, share: Share) {
        self.waits = false;
        self.request.share = Some(share);
        if let Some(bytes) = self.announced {
            reserve(&mut self.request.body, bytes);
        }
    }

    /// Its rate in bytes a second, where it has room and is slow enough to yield it.
    pub(super) fn yielding_rate(&self, now: Instant) -> Option<u64> {
        self.request.share.as_ref()?;
        let elapsed = now.saturating_duration_since(self.began);
        let rate = self.count * 1000 / millis(elapsed).max(1);
        (elapsed >= ROOM_WAIT && rate < YIELDING_RATE).then_some(rate)
    }
}

/// In whole milliseconds.
pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
