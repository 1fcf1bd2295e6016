//! From a complete head to the handler: admission, the body, and memory for it.

use std::ops::ControlFlow::{Break, Continue};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;

use super::super::framing::Length;
use super::super::head::{Head, Method};
use super::super::memory::Reservation;
use super::super::request::Request;
use super::super::turn::{Next, Turn};
use super::super::upload::{SMALL_BYTES_MAX, Then, Upload};
use super::super::{Admission, Lane, Refusal};
use super::{Connection, State, Step};

/// The part of the same budget that a request uses besides its bytes: pipelined requests that are answered at
/// once take turns with those of other connections.
const REQUEST_BYTES: usize = 8 << 10;

/// Maximum bytes of a body that is handled on the I/O thread; parsing them takes about 0.2 ms. A batch of a thousand
/// events fits, so that it waits for one thread less: while other programs keep all processors busy, each wait
/// takes milliseconds.
const IO_BODY_BYTES_MAX: usize = 64 << 10;

impl Connection {
    /// Begins a request after its head was received.
    pub(super) fn begin(&mut self, turn: &mut Turn<'_>, head: Head) {
        turn.budget = turn.budget.saturating_sub(REQUEST_BYTES);
        let framing = head.framing;
        self.to_head = head.method == Method::Head;
        self.is_http11 = head.is_http11;
        self.persistence = framing.persistence;
        let bytes_max = turn.shared.limits.body_bytes_max;
        let announced = match framing.body {
            Length::Bytes(bytes) => bytes,
            Length::Chunked => 0,
        };
        if announced > Upload::discard_max(bytes_max) {
            return self.refuse(turn, Refusal::BodyTooLarge);
        }
        let request = Request::new(head, self.key, turn.now, turn.shared);
        let refuse = |refusal| Then::Answer(turn.shared.handler.refusal(refusal));
        let then = match turn.admit(&request) {
            None => refuse(Refusal::Panicked),
            Some(Admission::Accept(_)) if announced > bytes_max as u64 => {
                refuse(Refusal::BodyTooLarge)
            }
            Some(Admission::Accept(lane)) => Then::Handle(lane),
            Some(Admission::Refuse(reply)) => Then::Answer(reply),
        };
        let mut upload = Upload::new(request, then, framing.body, turn.now);
        upload.asks_to_continue = framing.expects_continue && self.input.is_empty();
        match upload.receive(&self.input, turn.shared) {
            Ok(consumed) => drop(self.input.drain(..consumed)),
            Err(why) => {
                upload.request.disarm();
                return self.refuse(turn, Refusal::Malformed(why));
            }
        }
        if upload.ends(bytes_max) {
            return self.received(turn, upload);
        }
        // The client waits for the reply before it sends a body.
        if upload.asks_to_continue && matches!(upload.then, Then::Answer(_)) {
            return self.received(turn, upload);
        }
        self.state = State::Upload(Box::new(upload));
        self.begin_window(turn.now);
    }

    pub(super) fn upload(&mut self, turn: &mut Turn<'_>) -> Step {
        let State::Upload(upload) = &mut self.state else {
            return Continue(());
        };
        if upload.awaits_memory {
            return Break(Next::Wait);
        }
        if let Some(bytes) = upload.bytes_to_reserve(turn.shared.limits.body_bytes_max) {
            if let Some(reservation) = turn.memory.reserve(self.key, bytes) {
                upload.grant(reservation, turn.now);
            } else {
                upload.awaits_memory = true;
                self.begin_window(turn.now);
                return Break(Next::Wait);
            }
        }
        if std::mem::take(&mut upload.asks_to_continue) {
            self.out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
            return Continue(());
        }
        // Without a reservation, one read of a chunked body is limited to the size of a small body.
        let bytes_max = match upload.request.reservation {
            None => SMALL_BYTES_MAX,
            Some(_) => usize::MAX,
        };
        match self.read(turn, bytes_max)? {
            0 => self.refuse(turn, Refusal::Malformed("the body ends early")),
            count => self.receive(turn, count),
        }
        Continue(())
    }

    /// Passes `input` and the `count` new bytes in the scratch buffer to the upload.
    fn receive(&mut self, turn: &mut Turn<'_>, count: usize) {
        let State::Upload(upload) = &mut self.state else {
            return;
        };
        let (input, fresh) = (&mut self.input, &turn.scratch[..count]);
        let received = if input.is_empty() {
            let consumed = upload.receive(fresh, turn.shared);
            consumed.map(|consumed| input.extend_from_slice(&fresh[consumed..]))
        } else {
            input.extend_from_slice(fresh);
            let consumed = upload.receive(input, turn.shared);
            consumed.map(|consumed| drop(input.drain(..consumed)))
        };
        let ends = upload.ends(turn.shared.limits.body_bytes_max);
        match received {
            Err(why) => self.refuse(turn, Refusal::Malformed(why)),
            Ok(()) if ends => {
                if let State::Upload(upload) = std::mem::replace(&mut self.state, State::Head) {
                    self.received(turn, *upload);
                }
            }
            Ok(()) => {}
        }
    }

    /// Ends an upload: the body is complete, or the rest of it is not read.
    fn received(&mut self, turn: &mut Turn<'_>, upload: Upload) {
        let is_complete = upload.is_complete();
        let mut request = upload.request;
        request.received = turn.now;
        match upload.then {
            Then::Handle(lane) => self.dispatch(turn, request, lane),
            Then::Answer(mut reply) => {
                request.disarm();
                reply.close |= !is_complete;
                self.reply(turn, &reply);
            }
        }
    }

    /// Passes a complete request to the handler.
    fn dispatch(&mut self, turn: &mut Turn<'_>, request: Request, lane: Lane) {
        self.served = true;
        self.state = State::Handling;
        let in_flight = turn.shared.in_flight.fetch_add(1, Ordering::SeqCst);
        if in_flight >= turn.shared.limits.in_flight_max {
            return request.refuse(Refusal::Busy);
        }
        match lane {
            Lane::Io if request.body.len() <= IO_BODY_BYTES_MAX => {
                // A panic drops the request, which answers it with 500.
                let _panicked = catch_unwind(AssertUnwindSafe(|| request.handle()));
            }
            Lane::Io | Lane::Worker => request.on_worker(),
        }
    }

    /// Continues its upload with the memory that it has waited for.
    pub(in super::super) fn grant(
        &mut self,
        turn: &mut Turn<'_>,
        reservation: Reservation,
    ) -> Next {
        if let State::Upload(upload) = &mut self.state {
            upload.grant(reservation, turn.now);
            self.begin_window(turn.now);
        }
        self.advance(turn)
    }
}
