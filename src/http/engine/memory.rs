//! The memory for large bodies, which all connections share: [`super::Limits::bodies_bytes_max`].
//!
//! A large body reserves its bytes before it is read, and releases them after its handler has returned.
//! If too few are free, the upload waits in a queue, first come, first served.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Shared;
use super::mailbox::{Key, Message};

/// The queue of uploads that wait for memory. The I/O thread owns it.
pub(super) struct BodyMemory {
    shared: Arc<Shared>,
    waiting: VecDeque<(Key, usize)>,
}

/// Bytes that are reserved for one body; dropping it releases them.
#[derive(Debug)]
pub(super) struct Reservation {
    shared: Arc<Shared>,
    bytes: usize,
}

impl BodyMemory {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let waiting = VecDeque::new();
        Self { shared, waiting }
    }

    /// Reserves bytes. If too few are free, or other uploads wait, the connection is queued and this
    /// returns `None`.
    pub(super) fn reserve(&mut self, key: Key, bytes: usize) -> Option<Reservation> {
        let is_first = self.waiting.is_empty();
        let reservation = is_first.then(|| Reservation::new(&self.shared, bytes));
        let reserved = reservation.flatten();
        if reserved.is_none() {
            self.waiting.push_back((key, bytes));
        }
        reserved
    }

    /// Removes the first connection of the queue if its bytes are free now, and reserves them.
    pub(super) fn reserve_for_next(&mut self) -> Option<(Key, Reservation)> {
        // Stored before the attempt, so that bytes released after it wake the I/O thread.
        let awaited = &self.shared.memory_awaited;
        awaited.store(!self.waiting.is_empty(), Ordering::SeqCst);
        let (key, bytes) = self.waiting.front()?;
        let reserved = (*key, Reservation::new(&self.shared, *bytes)?);
        self.waiting.pop_front();
        Some(reserved)
    }

    /// Removes a connection from the queue.
    pub(super) fn cancel(&mut self, key: Key) {
        self.waiting.retain(|(waiting, _)| *waiting != key);
    }
}

impl Reservation {
    /// Reserves bytes, on the I/O thread only: no other thread does so between the load and the addition.
    fn new(shared: &Arc<Shared>, bytes: usize) -> Option<Self> {
        let reserved = shared.body_bytes.load(Ordering::SeqCst);
        // A body that exceeds the bound is accepted if there is no other one.
        if reserved > 0 && reserved + bytes > shared.limits.bodies_bytes_max {
            return None;
        }
        shared.body_bytes.fetch_add(bytes, Ordering::SeqCst);
        let shared = Arc::clone(shared);
        Some(Self { shared, bytes })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let shared = &self.shared;
        shared.body_bytes.fetch_sub(self.bytes, Ordering::SeqCst);
        if shared.memory_awaited.load(Ordering::SeqCst) {
            shared.mailbox.post(Message::MemoryReleased);
        }
    }
}
