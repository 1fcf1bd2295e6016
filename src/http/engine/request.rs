//! A request on its way to the handler, and its answer's way back.

use std::sync::Arc;
use std::time::Instant;

use super::head::{Head, Method};
use super::mailbox::{Key, Message};
use super::room::Share;
use super::workers::Workers;
use super::{Figures, MayBlock, Refusal, Reply, Shared};

/// A request. It may be answered later and from any thread: [`Self::answer`] never blocks.
/// Dropped without an answer it answers 500.
#[derive(Debug)]
pub struct Request {
    pub(super) head: Head,
    pub(super) body: Vec<u8>,
    /// Room that a large body takes, until its handler returns.
    pub(super) share: Option<Share>,
    pub(super) received: Instant,
    key: Key,
    /// `None` once answered.
    shared: Option<Arc<Shared>>,
    /// What it answers when it is dropped.
    if_dropped: Refusal,
}

impl Request {
    pub(super) fn new(head: Head, key: Key, now: Instant, shared: &Arc<Shared>) -> Self {
        Self {
            head,
            body: Vec::new(),
            share: None,
            received: now,
            key,
            shared: Some(Arc::clone(shared)),
            if_dropped: Refusal::Panicked,
        }
    }

    /// The method.
    pub fn method(&self) -> Method {
        self.head.method
    }

    /// The target as sent: a path with its query, or a whole URL, or `*`.
    pub fn target(&self) -> &str {
        self.head.target()
    }

    /// The first header of that name. What is not UTF-8 in it is U+FFFD.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.header(name)
    }

    /// Whether HTTP/1.1 is spoken.
    pub fn is_http11(&self) -> bool {
        self.head.is_http11
    }

    /// Figures of the engine it came through.
    pub fn figures(&self) -> Figures {
        let shared = self.shared.as_ref();
        shared.map_or_else(Figures::default, |shared| shared.figures())
    }

    /// When its last byte had been read.
    pub fn received(&self) -> Instant {
        self.received
    }

    /// The body; a second time it is empty.
    pub fn take_body(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.body)
    }

    /// Answers; never blocks.
    pub fn answer(mut self, reply: Reply) {
        self.answer_mut(reply);
    }

    fn answer_mut(&mut self, reply: Reply) {
        if let Some(shared) = self.shared.take() {
            shared.mailbox.post(Message::Reply(self.key, reply));
        }
    }

    /// Goes on with the request on a thread that may block.
    pub fn on_blocking_thread(self, work: impl FnOnce(Self, &MayBlock) + Send + 'static) {
        self.submit(
            |shared| &shared.blocking,
            |request| work(request, &MayBlock::on_this_thread()),
        );
    }

    /// Has it handled by a worker.
    pub(super) fn on_worker(self) {
        self.submit(|shared| &shared.workers, Self::handle);
    }

    fn submit(
        mut self,
        threads: fn(&Shared) -> &Workers,
        work: impl FnOnce(Self) + Send + 'static,
    ) {
        if let Some(shared) = self.shared.clone() {
            // Where the queue is full, the job is dropped, and the request with it.
            self.if_dropped = Refusal::Busy;
            threads(&shared).submit(Box::new(move || {
                self.if_dropped = Refusal::Panicked;
                work(self);
            }));
        }
    }

    /// Hands it to the handler, on this thread.
    pub(super) fn handle(mut self) {
        if let Some(shared) = self.shared.clone() {
            let _until_handled = self.share.take();
            shared.handler.handle(self);
        }
    }

    /// Method and path, for the log: the query may hold anything.
    pub(super) fn line(&self) -> String {
        self.head.line().to_owned()
    }

    /// The connection answers it, or has ended.
    pub(super) fn disarm(mut self) {
        self.shared = None;
    }

    /// Answers for the engine.
    pub(super) fn refuse(mut self, refusal: Refusal) {
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
