//! A request on its way to the handler, and the way back for its reply.

use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use super::head::{Head, Method};
use super::mailbox::{Key, Message};
use super::memory::Reservation;
use super::stream::{PieceSource, Rest};
use super::workers::Workers;
use super::{Figures, MayBlock, Refusal, Reply, Shared};

/// A request. Any thread may answer it, at any time; [`Self::answer`] never blocks. A request that is
/// dropped without an answer is answered with 500.
#[derive(Debug)]
pub struct Request {
    pub(super) head: Head,
    pub(super) body: Vec<u8>,
    /// The memory reserved for a large body; released when the handler returns.
    pub(super) reservation: Option<Reservation>,
    pub(super) received: Instant,
    key: Key,
    /// `None` after it was answered.
    shared: Option<Arc<Shared>>,
    /// The reply if the request is dropped.
    if_dropped: Refusal,
}

impl Request {
    pub(super) fn new(head: Head, key: Key, now: Instant, shared: &Arc<Shared>) -> Self {
        Self {
            head,
            body: Vec::new(),
            reservation: None,
            received: now,
            key,
            shared: Some(Arc::clone(shared)),
            if_dropped: Refusal::Panicked,
        }
    }

    /// The method; [`Method::Other`] for one that no route has.
    pub fn method(&self) -> Method {
        self.head.method
    }

    /// The target as sent: a path with its query, or a whole URL, or `*`.
    pub fn target(&self) -> &str {
        self.head.target()
    }

    /// The value of the first header `name`, in any case; invalid UTF-8 in it is replaced by U+FFFD.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.header(name)
    }

    /// The current counters of the engine.
    pub fn figures(&self) -> Figures {
        let shared = self.shared.as_ref();
        shared.map_or_else(Figures::default, |shared| shared.figures())
    }

    /// When its last byte was read.
    pub fn received(&self) -> Instant {
        self.received
    }

    /// Takes the body; a second call returns an empty one.
    pub fn take_body(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.body)
    }

    /// Sends the reply to the I/O thread. Never blocks.
    pub fn answer(mut self, reply: Reply) {
        self.answer_mut(reply);
    }

    /// Adds the reply to the queue of the I/O thread without waking it: it may be sent late if the caller
    /// does not call the waker. A thread that answers several requests at once wakes it once. Never blocks.
    #[must_use = "the reply may be sent late if the waker is not called"]
    pub fn answer_unwoken(mut self, reply: Reply) -> Option<Waker> {
        let shared = self.shared.take()?;
        shared.mailbox.add(Message::Reply(self.key, reply));
        Some(shared.into())
    }

    /// Sends the head and the first piece of the body to the I/O thread; `source` produces the rest. Never
    /// blocks.
    pub fn answer_with_stream(mut self, reply: Reply, source: PieceSource) {
        if let Some(shared) = self.shared.take() {
            let message = Message::Stream(self.key, reply, Rest(source));
            shared.mailbox.post(message);
        }
    }

    fn answer_mut(&mut self, reply: Reply) {
        if let Some(shared) = self.shared.take() {
            shared.mailbox.post(Message::Reply(self.key, reply));
        }
    }

    /// Runs `work` on a thread that may block. If its queue is full, the request is answered with 503.
    pub fn on_blocking_thread(self, work: impl FnOnce(Self, &MayBlock) + Send + 'static) {
        self.submit(
            |shared| &shared.blocking,
            |request| work(request, &MayBlock::on_this_thread()),
        );
    }

    /// Runs the handler on a worker. If its queue is full, the request is answered with 503.
    pub(super) fn on_worker(self) {
        self.submit(|shared| &shared.workers, Self::handle);
    }

    fn submit(
        mut self,
        threads: fn(&Shared) -> &Workers,
        work: impl FnOnce(Self) + Send + 'static,
    ) {
        if let Some(shared) = self.shared.clone() {
            // If the queue is full, the job is dropped, and the request with it.
            self.if_dropped = Refusal::Busy;
            threads(&shared).submit(Box::new(move || {
                self.if_dropped = Refusal::Panicked;
                work(self);
            }));
        }
    }

    /// Calls the handler on this thread.
    pub(super) fn handle(mut self) {
        if let Some(shared) = self.shared.clone() {
            let _held_until_handled = self.reservation.take();
            shared.handler.handle(self);
        }
    }

    /// Drops the request without a reply, because the connection replies itself or is closed.
    pub(super) fn disarm(mut self) {
        self.shared = None;
    }

    /// Answers with the reply to this refusal.
    pub fn refuse(mut self, refusal: Refusal) {
        self.if_dropped = refusal;
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if let Some(shared) = &self.shared {
            let reply = shared.handler.refusal(self.if_dropped);
            self.answer_mut(reply);
        }
    }
}
