//! The queue of the committer.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Waker;

use crossbeam_channel::Receiver;

use super::{AppendDone, AppendError, Batch, Shared};
use crate::data_dir::segment::Position;

/// The committer's end of the queue.
pub(super) type Commands = Receiver<Command>;

pub(super) enum Command {
    Append(QueuedBatch),
    Rotate(QueuedBatch),
    Shutdown,
}

/// A batch and its completion callback. `done` is called exactly once, on drop at the latest.
pub(super) struct QueuedBatch {
    pub(super) batch: Batch,
    pub(super) done: Option<AppendDone>,
    pub(super) shared: Arc<Shared>,
}

impl QueuedBatch {
    pub(super) fn answer(mut self, result: Result<Position, AppendError>) -> Option<Waker> {
        self.finish(result)
    }

    /// Subtracts the bytes from the queue's size and calls `done`. A second call does nothing.
    fn finish(&mut self, result: Result<Position, AppendError>) -> Option<Waker> {
        let bytes = std::mem::take(&mut self.batch.bytes);
        self.shared
            .queued_bytes
            .fetch_sub(bytes.len() as u64, Ordering::Relaxed);
        self.done.take().and_then(|done| done(result))
    }
}

impl Drop for QueuedBatch {
    fn drop(&mut self) {
        let waker = self.finish(Err(AppendError::Stopping));
        waker.into_iter().for_each(Waker::wake);
    }
}

/// Wakers that are called, each once, when this is dropped.
#[derive(Default)]
pub(super) struct Wakers(Vec<Waker>);

impl Wakers {
    pub(super) fn add(&mut self, waker: Option<Waker>) {
        let is_new = |waker: &Waker| !self.0.iter().any(|known| known.will_wake(waker));
        self.0.extend(waker.filter(is_new));
    }
}

impl Drop for Wakers {
    fn drop(&mut self) {
        self.0.drain(..).for_each(Waker::wake);
    }
}
