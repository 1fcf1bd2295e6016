//! How other threads reach the I/O thread.

use std::sync::{Mutex, MutexGuard, PoisonError};

use mio::Waker;

use super::Reply;

/// Names a connection: an index is used again, a serial number is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) index: usize,
    pub(super) serial: u64,
}

/// What is left for the I/O thread.
#[derive(Debug)]
pub(super) enum Message {
    /// The reply to the request of a connection.
    Reply(Key, Reply),
    /// Room for large bodies was given back.
    Room,
    /// Stop.
    Shutdown,
}

/// Messages for the I/O thread, and the way to wake it.
#[derive(Debug)]
pub(super) struct Mailbox {
    inbox: Mutex<Inbox>,
    waker: Waker,
}

#[derive(Debug, Default)]
struct Inbox {
    messages: Vec<Message>,
    /// The I/O thread is in `poll`, and was not woken yet.
    asleep: bool,
}

impl Mailbox {
    pub(super) fn new(waker: Waker) -> Self {
        Self {
            inbox: Mutex::default(),
            waker,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves a message; a system call only where the I/O thread sleeps.
    pub(super) fn post(&self, message: Message) {
        let mut inbox = self.lock();
        inbox.messages.push(message);
        let wakes = std::mem::take(&mut inbox.asleep);
        drop(inbox);
        if wakes {
            // It fails only where the loop has ended.
            let _ended = self.waker.wake();
        }
    }

    /// Whether the I/O thread may sleep: there is no message. From then on a message wakes it.
    pub(super) fn may_sleep(&self) -> bool {
        let mut inbox = self.lock();
        inbox.asleep = inbox.messages.is_empty();
        inbox.asleep
    }

    /// Takes the messages. The I/O thread is awake.
    pub(super) fn take(&self, into: &mut Vec<Message>) {
        let mut inbox = self.lock();
        inbox.asleep = false;
        std::mem::swap(&mut inbox.messages, into);
    }
}
