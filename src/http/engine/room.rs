//! Room for large bodies, shared by all connections: their bytes in memory have one bound.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Shared;
use super::mailbox::{Key, Message};

/// The uploads that wait for room, in order. Of the I/O thread.
pub(super) struct Room {
    shared: Arc<Shared>,
    waiting: VecDeque<(Key, usize)>,
}

/// A part of the room, in bytes; given back when dropped.
#[derive(Debug)]
pub(super) struct Share {
    shared: Arc<Shared>,
    bytes: usize,
}

impl Room {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let waiting = VecDeque::new();
        Self { shared, waiting }
    }

    /// Takes room for so many bytes. Where there is none, or others wait, it is queued.
    pub(super) fn take(&mut self, key: Key, bytes: usize) -> Option<Share> {
        let first = self.waiting.is_empty();
        let share = first.then(|| Share::take(&self.shared, bytes)).flatten();
        if share.is_none() {
            self.waiting.push_back((key, bytes));
        }
        share
    }

    /// The first of the queue, where there is room for it now.
    pub(super) fn next(&mut self) -> Option<(Key, Share)> {
        // Before the attempt: room that is given back after it wakes the I/O thread.
        let wanted = &self.shared.room_wanted;
        wanted.store(!self.waiting.is_empty(), Ordering::SeqCst);
        let (key, bytes) = self.waiting.front()?;
        let granted = (*key, Share::take(&self.shared, *bytes)?);
        self.waiting.pop_front();
        Some(granted)
    }

    /// A connection waits no longer.
    pub(super) fn leave(&mut self, key: Key) {
        self.waiting.retain(|(waiting, _)| *waiting != key);
    }
}

impl Share {
    /// Only the I/O thread takes.
    fn take(shared: &Arc<Shared>, bytes: usize) -> Option<Self> {
        let taken = shared.room_taken.load(Ordering::SeqCst);
        // A body that is larger than the room has it to itself.
        if taken > 0 && taken + bytes > shared.limits.bodies_bytes_max {
            return None;
        }
        shared.room_taken.fetch_add(bytes, Ordering::SeqCst);
        let shared = Arc::clone(shared);
        Some(Self { shared, bytes })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let shared = &self.shared;
        shared.room_taken.fetch_sub(self.bytes, Ordering::SeqCst);
        if shared.room_wanted.load(Ordering::SeqCst) {
            shared.mailbox.post(Message::Room);
        }
    }
}
