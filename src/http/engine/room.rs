//! The memory for large bodies, which all connections share: [`super::Limits::bodies_bytes_max`].
//!
//! A body reserves its bytes before it is read, and releases them after its handler has returned. If too
//! few are free, the upload waits in a queue, first come, first served.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Shared;
use super::mailbox::{Key, Message};

/// The queue of uploads that wait for room. The I/O thread owns it.
pub(super) struct Room {
    shared: Arc<Shared>,
    waiting: VecDeque<(Key, usize)>,
}

/// Bytes that are reserved for one body; dropping it releases them.
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

    /// Reserves bytes. If too few are free, or other uploads wait, the connection is queued and this
    /// returns `None`.
    pub(super) fn take(&mut self, key: Key, bytes: usize) -> Option<Share> {
        let first = self.waiting.is_empty();
        let share = first.then(|| Share::take(&self.shared, bytes)).flatten();
        if share.is_none() {
            self.waiting.push_back((key, bytes));
        }
        share
    }

    /// Removes the first connection of the queue if there is room for it now.
    pub(super) fn next(&mut self) -> Option<(Key, Share)> {
        // Stored before the attempt, so that bytes released after it wake the I/O thread.
        let wanted = &self.shared.room_wanted;
        wanted.store(!self.waiting.is_empty(), Ordering::SeqCst);
        let (key, bytes) = self.waiting.front()?;
        let granted = (*key, Share::take(&self.shared, *bytes)?);
        self.waiting.pop_front();
        Some(granted)
    }

    /// Removes a connection from the queue.
    pub(super) fn leave(&mut self, key: Key) {
        self.waiting.retain(|(waiting, _)| *waiting != key);
    }
}

impl Share {
    /// Reserves bytes, on the I/O thread only: no other thread does so between the load and the addition.
    fn take(shared: &Arc<Shared>, bytes: usize) -> Option<Self> {
        let taken = shared.room_taken.load(Ordering::SeqCst);
        // A body that exceeds the bound is accepted if there is no other one.
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
