//! A request, its place in its connection's line, and the reading of its body.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::answer::{Answer, Outgoing};
use super::body::{self, Bounds, Fault, Listed};
use super::framing::{Body, Head, Persistence};
use super::{Figures, Limits, Refusal, Reply, Shared};

/// The methods we tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// GET
    Get,
    /// HEAD: as GET, without the body.
    Head,
    /// POST
    Post,
    /// OPTIONS
    Options,
    /// Any other.
    Other,
}

/// A request. Send: it may be answered later, from any thread, also one that must not block.
/// Dropped without an answer it answers 500.
#[derive(Debug)]
pub struct Request {
    /// `None` once answered.
    wire: Option<tiny_http::Request>,
    ticket: Option<Ticket>,
    method: Method,
    persistence: Persistence,
    on_wire: Body,
    expects_continue: bool,
    body: Vec<u8>,
    received: Instant,
    /// How the connection goes on if it were answered now.
    pub(super) ending: Ending,
}

/// What is to become of the connection's reader after the reply (defect 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// The body was read, or there is none: the reader goes back to the library.
    Clean,
    /// Part of the body is unread: the connection is shut down, then the reader is dropped.
    Cut,
}

impl Ending {
    pub(super) fn of(head: &Result<Head, &'static str>) -> Self {
        match head.map(|head| head.body) {
            Ok(Body::None | Body::InMemory | Body::Uncounted(_)) => Self::Clean,
            Ok(Body::OnWire(_) | Body::Chunked) | Err(_) => Self::Cut,
        }
    }
}

/// A request's place in its connection's line; counts it in flight while it lives.
pub(super) struct Ticket {
    pub(super) shared: Arc<Shared>,
    pub(super) peer: SocketAddr,
    pub(super) seq: u64,
}

impl Ticket {
    pub(super) fn new(shared: Arc<Shared>, peer: SocketAddr, seq: u64) -> Self {
        shared.in_flight.fetch_add(1, Ordering::SeqCst);
        Self { shared, peer, seq }
    }
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} #{}", self.peer, self.seq)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let before = self.shared.in_flight.fetch_sub(1, Ordering::SeqCst);
        if before == 1 && self.shared.is_stopping() {
            // Under the lock, so that who is about to wait does not miss it.
            let (lock, drained) = &self.shared.drained;
            let _guard = lock.lock();
            drained.notify_all();
        }
    }
}

impl Request {
    pub(super) fn new(
        wire: tiny_http::Request,
        ticket: Ticket,
        head: &Result<Head, &'static str>,
        ending: Ending,
        received: Instant,
    ) -> Self {
        let method = match wire.method() {
            tiny_http::Method::Get => Method::Get,
            tiny_http::Method::Head => Method::Head,
            tiny_http::Method::Post => Method::Post,
            tiny_http::Method::Options => Method::Options,
            _ => Method::Other,
        };
        Self {
            wire: Some(wire),
            ticket: Some(ticket),
            method,
            persistence: head.map_or(Persistence::Kept, |head| head.persistence),
            on_wire: head.map_or(Body::None, |head| head.body),
            expects_continue: head.is_ok_and(|head| head.expects_continue),
            body: Vec::new(),
            received,
            ending,
        }
    }

    /// The method.
    pub fn method(&self) -> Method {
        self.method
    }

    /// The target as sent: a path with its query, or a whole URL, or `*`.
    pub fn target(&self) -> &str {
        self.wire.as_ref().map_or("", |wire| wire.url())
    }

    /// The first header of that name.
    pub fn header(&self, name: &'static str) -> Option<&str> {
        let wire = self.wire.as_ref()?;
        let found = wire
            .headers()
            .iter()
            .find(|header| header.field.equiv(name))?;
        Some(found.value.as_str())
    }

    /// Whether HTTP/1.1 or later is spoken.
    pub fn is_http11(&self) -> bool {
        self.wire
            .as_ref()
            .is_some_and(|wire| wire.http_version().1 >= 1)
    }

    /// The client's address (a proxy's, if there is one).
    pub fn peer(&self) -> Option<SocketAddr> {
        self.ticket.as_ref().map(|ticket| ticket.peer)
    }

    /// Figures of the engine it came through.
    pub fn figures(&self) -> Figures {
        let ticket = self.ticket.as_ref();
        ticket.map_or_else(Figures::default, |ticket| ticket.shared.figures())
    }

    /// When its head had been read.
    pub fn received(&self) -> Instant {
        self.received
    }

    /// The body; a second time it is empty.
    pub fn take_body(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.body)
    }

    /// Answers; never blocks where the thread must not.
    pub fn answer(mut self, reply: Reply) {
        self.answer_mut(reply);
    }

    /// Goes on with the request on the crew that may wait for the database.
    pub fn on_lookup_crew(self, work: impl FnOnce(Self) + Send + 'static) {
        if let Some(shared) = self.shared() {
            let work = Some(Box::new(work) as LookupWork);
            Lookup {
                request: self,
                work,
            }
            .submit(&shared);
        }
    }

    fn answer_mut(&mut self, reply: Reply) {
        let (Some(wire), Some(ticket)) = (self.wire.take(), self.ticket.take()) else {
            return;
        };
        super::answer::post(Answer {
            wire,
            ticket,
            reply,
            to_head: self.method == Method::Head,
            persistence: self.persistence,
            ending: self.ending,
            unwanted: false,
        });
    }

    /// Answers for the engine.
    pub(super) fn refuse(mut self, refusal: Refusal) {
        self.refuse_mut(refusal);
    }

    fn refuse_mut(&mut self, refusal: Refusal) {
        let Some(ticket) = &self.ticket else { return };
        let mut reply = ticket.shared.handler.refusal(refusal);
        let ends = matches!(refusal, Refusal::Framing(_) | Refusal::TooMany);
        reply.close |= ends || self.ending != Ending::Clean;
        self.answer_mut(reply);
    }

    /// Takes over the body that the library has in memory.
    pub(super) fn read_in_memory(&mut self) {
        if let Some(wire) = &mut self.wire {
            let mut body = Vec::with_capacity(wire.body_length().unwrap_or(0));
            // It is in memory: this neither blocks nor fails.
            let _in_memory = wire.as_reader().read_to_end(&mut body);
            self.body = body;
        }
    }

    /// Hands it to the handler.
    pub(super) fn handle(self) {
        if let Some(shared) = self.shared() {
            shared.handler.handle(self);
        }
    }

    fn shared(&self) -> Option<Arc<Shared>> {
        self.ticket
            .as_ref()
            .map(|ticket| Arc::clone(&ticket.shared))
    }

    /// The announced length; `None` for chunks.
    fn announced(&self) -> Option<u64> {
        match self.on_wire {
            Body::OnWire(bytes) | Body::Uncounted(bytes) => Some(bytes),
            Body::Chunked => None,
            Body::None | Body::InMemory => Some(0),
        }
    }

    /// Whether it announces more than would be thrown away.
    pub(super) fn is_hopeless(&self, limits: &Limits) -> bool {
        self.announced()
            .is_some_and(|bytes| bytes > body::discard_max(limits))
    }

    /// Reads the body from the socket and handles the request; blocks for as long as that takes.
    fn read_and_handle(mut self) {
        let (Some(shared), Some(peer)) = (self.shared(), self.peer()) else {
            return;
        };
        let Some(mut wire) = self.wire.take() else {
            return;
        };
        let announced = self.announced();
        let reading = shared.begin_reading(peer);
        let reader = wire.as_reader();
        // The wire goes back before the handler runs: the handler answers through it.
        let mut slot = Some(self);
        let read = body::read(reader, announced, &reading, &shared.room, |bytes| {
            if let Some(request) = &mut slot {
                request.body = bytes;
            }
        });
        drop(reading);
        let Some(mut request) = slot else { return };
        request.wire = Some(wire);
        match read {
            Ok(()) => {
                request.ending = Ending::Clean;
                shared.handler.handle(request);
            }
            Err(fault) => request.fault(fault),
        }
    }

    fn fault(mut self, fault: Fault) {
        if fault.read_to_end() {
            self.ending = Ending::Clean;
        }
        let refusal = match fault {
            Fault::TooLarge | Fault::TooLargeStill => Refusal::BodyTooLarge,
            Fault::TimedOut => Refusal::BodyTimedOut,
            Fault::Incomplete | Fault::Malformed => Refusal::BodyBroken,
            Fault::NoRoom => Refusal::Busy,
        };
        self.refuse(refusal);
    }

    /// Reads and throws away the body, then answers.
    fn discard_and_answer(mut self, mut reply: Reply) {
        let (Some(shared), Some(peer)) = (self.shared(), self.peer()) else {
            return;
        };
        let Some(mut wire) = self.wire.take() else {
            return;
        };
        let reading = shared.begin_reading(peer);
        let thrown = body::discard(wire.as_reader(), self.announced(), 0, &reading);
        drop(reading);
        self.wire = Some(wire);
        match thrown {
            Ok(_) => self.ending = Ending::Clean,
            Err(fault) if fault.read_to_end() => self.ending = Ending::Clean,
            Err(_) => reply.close = true,
        }
        self.answer(reply);
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if self.wire.is_some() {
            self.refuse_mut(Refusal::Panicked);
        }
    }
}

type LookupWork = Box<dyn FnOnce(Request) + Send>;

/// Work for the crew that may wait for the database.
pub(super) struct Lookup {
    request: Request,
    /// `None`: hand it to the handler.
    work: Option<LookupWork>,
}

impl Lookup {
    pub(super) fn handle(request: Request) -> Self {
        Self {
            request,
            work: None,
        }
    }

    pub(super) fn run(self) {
        match self.work {
            Some(work) => work(self.request),
            None => self.request.handle(),
        }
    }

    pub(super) fn submit(self, shared: &Shared) {
        if let Err(refused) = shared.lookups.submit(self) {
            refused.request.refuse(Refusal::Busy);
        }
    }
}

/// Work for the crew that may be held up by uploads.
pub(super) enum BodyJob {
    /// Read the body, then handle.
    Read(Request),
    /// Read and throw away the body, then answer.
    Discard(Request, Reply),
    /// Handle; the body is there.
    Handle(Request),
    /// End the connection of a request nobody believes.
    LetGo(tiny_http::Request, Option<SocketAddr>, Arc<Shared>),
    /// Read no further request from there; what is owed to it is still written.
    Deafen(SocketAddr, Arc<Shared>),
}

impl BodyJob {
    pub(super) fn run(self) {
        match self {
            Self::Read(request) => request.read_and_handle(),
            Self::Discard(request, reply) => request.discard_and_answer(reply),
            Self::Handle(request) => request.handle(),
            Self::LetGo(wire, peer, shared) => super::answer::cut_loose(&shared, wire, peer),
            Self::Deafen(peer, shared) => shared.sever.deafen(peer),
        }
    }

    /// Queues the job; refuses its request where the crew is overwhelmed.
    pub(super) fn submit(self, shared: &Shared) {
        if let Err(refused) = shared.bodies.submit(self) {
            match refused {
                Self::Read(request) | Self::Handle(request) => request.refuse(Refusal::Busy),
                Self::Discard(request, reply) => request.answer(reply.closing()),
                Self::LetGo(wire, ..) => super::answer::abandon(shared, wire),
                // Its socket's time-outs end it.
                Self::Deafen(..) => {}
            }
        }
    }

    /// The place in its line of a request that has to be told to go on (`100 Continue`): that is
    /// written like a reply, so it waits for its elders.
    pub(super) fn waits_for_turn(&self) -> Option<(SocketAddr, u64)> {
        match self {
            Self::Read(request) | Self::Discard(request, _) if request.expects_continue => request
                .ticket
                .as_ref()
                .map(|ticket| (ticket.peer, ticket.seq)),
            _ => None,
        }
    }
}

impl Shared {
    fn begin_reading(&self, peer: SocketAddr) -> Listed<'_> {
        self.readings.begin(peer, Bounds::new(&self.limits))
    }

    /// Has the job done by the body crew: now, or when its request's elders are answered.
    pub(super) fn later(&self, job: BodyJob) {
        let Some((peer, seq)) = job.waits_for_turn() else {
            return job.submit(self);
        };
        if let Some(turn) = self.lines.ready(peer, seq, Outgoing::Body(job)) {
            super::answer::begin(self, peer, turn);
        }
    }
}
