//! Room for large bodies, shared by all connections: their bytes in memory have one bound.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::io::Mailbox;

/// The room that there is.
#[derive(Debug)]
pub(super) struct Room {
    bytes_max: usize,
    taken: AtomicUsize,
    /// Somebody waits for room: who gives some back wakes the I/O thread.
    wanted: AtomicBool,
    mailbox: Arc<Mailbox>,
}

/// A part of the room, given back when dropped.
#[derive(Debug)]
pub(super) struct Share {
    room: Arc<Room>,
    bytes: usize,
}

impl Room {
    pub(super) fn new(bytes_max: usize, mailbox: Arc<Mailbox>) -> Self {
        Self {
            bytes_max,
            taken: AtomicUsize::new(0),
            wanted: AtomicBool::new(false),
            mailbox,
        }
    }

    /// Takes room for so many bytes, if there is. Only the I/O thread takes.
    pub(super) fn take(self: &Arc<Self>, bytes: usize) -> Option<Share> {
        let taken = self.taken.load(Ordering::SeqCst);
        // A body that is larger than the room has it to itself.
        if taken > 0 && taken + bytes > self.bytes_max {
            return None;
        }
        self.taken.fetch_add(bytes, Ordering::SeqCst);
        Some(Share {
            room: Arc::clone(self),
            bytes,
        })
    }

    /// Whether somebody waits. Set before a last attempt to take: room given back after that wakes.
    pub(super) fn set_wanted(&self, wanted: bool) {
        self.wanted.store(wanted, Ordering::SeqCst);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.room.taken.fetch_sub(self.bytes, Ordering::SeqCst);
        if self.room.wanted.load(Ordering::SeqCst) {
            self.room.mailbox.wake();
        }
    }
}
