//! The queue of messages from other threads to the I/O thread. Sending never blocks on the I/O thread:
//! the lock is held for a push or a swap.

use std::sync::{Mutex, MutexGuard, PoisonError};

use mio::Waker;

use super::Reply;
use super::stream::{Piece, Rest};

/// Identifies a connection. An index is used again after its connection was closed; a serial number is
/// unique.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) index: usize,
    pub(super) serial: u64,
}

/// A message to the I/O thread.
#[derive(Debug)]
pub(super) enum Message {
    /// The reply to the request of a connection.
    Reply(Key, Reply),
    /// The reply to the request of a connection; its body is the first piece, and the rest follows.
    Stream(Key, Reply, Rest),
    /// The next piece of a body, and the source of the further ones.
    Piece(Key, Piece, Rest),
    /// Memory for large bodies was released while an upload waited for it.
    Room,
    /// Begin the shutdown.
    Shutdown,
}

/// The messages, and the waker of the I/O thread.
#[derive(Debug)]
pub(super) struct Mailbox {
    inbox: Mutex<Inbox>,
    waker: Waker,
}

#[derive(Debug, Default)]
struct Inbox {
    messages: Vec<Message>,
    /// The I/O thread is in `poll` or about to enter it, and was not woken yet.
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

    /// Adds a message, and wakes the I/O thread if it sleeps.
    pub(super) fn post(&self, message: Message) {
        let mut inbox = self.lock();
        inbox.messages.push(message);
        let wakes = std::mem::take(&mut inbox.asleep);
        drop(inbox);
        if wakes {
            // This fails only after the loop has ended.
            let _ended = self.waker.wake();
        }
    }

    /// Whether the I/O thread may sleep, because there is no message. If so, the next message wakes it.
    pub(super) fn may_sleep(&self) -> bool {
        let mut inbox = self.lock();
        inbox.asleep = inbox.messages.is_empty();
        inbox.asleep
    }

    /// Moves all messages to `into`, which must be empty. From now on messages do not wake the I/O thread.
    pub(super) fn take(&self, into: &mut Vec<Message>) {
        let mut inbox = self.lock();
        inbox.asleep = false;
        std::mem::swap(&mut inbox.messages, into);
    }
}
