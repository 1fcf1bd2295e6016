//! The queue of messages from other threads to the I/O thread. Sending never blocks on the I/O thread:
//! the lock is held for a push or a swap.

use std::sync::atomic::{AtomicBool, Ordering};
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
    MemoryReleased,
    Shutdown,
}

/// The messages, and the waker of the I/O thread.
#[derive(Debug)]
pub(super) struct Mailbox {
    messages: Mutex<Vec<Message>>,
    /// The I/O thread is in `poll` or about to enter it, and was not woken yet.
    asleep: AtomicBool,
    waker: Waker,
}

impl Mailbox {
    pub(super) fn new(waker: Waker) -> Self {
        Self {
            messages: Mutex::default(),
            asleep: AtomicBool::new(false),
            waker,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Message>> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a message, and wakes the I/O thread if it sleeps.
    pub(super) fn post(&self, message: Message) {
        self.add(message);
        self.wake();
    }

    /// Adds a message. [`Self::wake`] must follow, else it may be handled late.
    pub(super) fn add(&self, message: Message) {
        self.lock().push(message);
    }

    /// Wakes the I/O thread if it sleeps.
    pub(super) fn wake(&self) {
        if self.asleep.swap(false, Ordering::SeqCst) {
            // This fails only after the loop has ended.
            let _ended = self.waker.wake();
        }
    }

    /// Whether the I/O thread may sleep, because there is no message. If so, the next message wakes it.
    pub(super) fn may_sleep(&self) -> bool {
        // Stored before the check, so that a message added after it wakes the thread.
        self.asleep.store(true, Ordering::SeqCst);
        let may_sleep = self.lock().is_empty();
        if !may_sleep {
            self.set_awake();
        }
        may_sleep
    }

    /// From now on messages do not wake the I/O thread.
    pub(super) fn set_awake(&self) {
        self.asleep.store(false, Ordering::SeqCst);
    }

    /// Moves all messages to `into`, which must be empty.
    pub(super) fn take(&self, into: &mut Vec<Message>) {
        std::mem::swap(&mut *self.lock(), into);
    }
}
