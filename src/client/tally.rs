//! What was acknowledged so far: counts, and the number of batches done from the beginning.
//!
//! Shared by the sending threads behind one mutex. The mutex is held for counting and, at most twice a
//! second, for a write of the state. Refused lines are written to their file before the lines count as
//! done, so that after a crash in between they are written twice and not lost.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{HumanCount, ProgressBar};

use super::await_applied::OwnLines;
use super::error::SendError;
use super::lines::{Checksum, Place};
use super::rejects::{Refusal, Rejects};
use super::state::{Acknowledged, Record, StateFile};
use crate::shutdown::Shutdown;

/// Minimum interval between writes of the state that record progress only.
const STATE_EVERY: Duration = Duration::from_millis(500);

/// Interval at which a wait checks for a stop by a signal.
const STOP_EVERY: Duration = Duration::from_millis(50);

/// Counts of this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Number of accepted events.
    pub accepted: u64,
    /// Number of refused lines.
    pub refused: u64,
    /// Number of events without an id that were, or will be, sent again after a lost answer. They may
    /// be counted twice.
    pub doubtful: u64,
    /// Number of requests with a final answer.
    pub requests: u64,
    /// Number of requests that were sent again.
    pub retries: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.accepted += other.accepted;
        self.refused += other.refused;
        self.doubtful += other.doubtful;
        self.requests += other.requests;
        self.retries += other.retries;
    }
}

/// The tally of one run.
pub(super) struct Tally {
    inner: Mutex<Inner>,
    /// Notified when a batch is done and when the run fails.
    changed: Condvar,
    stop: Shutdown,
    bar: ProgressBar,
    began: Instant,
}

struct Inner {
    counts: Counts,
    /// Batches that are done before an earlier one, by sequence.
    waiting: BTreeMap<u64, Done>,
    next: u64,
    /// Number of raw input bytes that are done, for the progress bar.
    raw_bytes: u64,
    /// Number of batches that may have been sent in part.
    begun: u64,
    record: Record,
    state: Option<StateFile>,
    written: Instant,
    checksum: Checksum,
    rejects: Rejects,
    own: OwnLines,
    failure: Option<SendError>,
    /// Time of the server's last answer.
    answered: Instant,
    /// Whether the warning of a silent server was logged.
    silent: bool,
}

/// A batch whose lines are all answered.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) end: Place,
    pub(super) accepted: u64,
    pub(super) refused: u64,
    /// The last acknowledged positions.
    pub(super) last: Acknowledged,
    /// The lines among them with ids of their own: see [`OwnLines`].
    pub(super) own: Vec<(u64, u64)>,
}

/// How a run ended.
pub(super) struct Ended {
    pub(super) counts: Counts,
    pub(super) record: Record,
    pub(super) failure: Option<SendError>,
    pub(super) state: Option<StateFile>,
    pub(super) rejects: Rejects,
    /// The lines with ids of their own that this process sent.
    pub(super) own: OwnLines,
    /// Number of batches done from the beginning.
    pub(super) batches: u64,
}

impl Tally {
    pub(super) fn new(
        record: Record,
        state: Option<StateFile>,
        rejects: Rejects,
        checksum: Checksum,
        bar: ProgressBar,
        stop: Shutdown,
    ) -> Self {
        let now = Instant::now();
        Self {
            inner: Mutex::new(Inner {
                counts: Counts::default(),
                waiting: BTreeMap::new(),
                next: 0,
                raw_bytes: 0,
                begun: 0,
                record,
                state,
                written: now,
                checksum,
                rejects,
                own: OwnLines::default(),
                failure: None,
                answered: now,
                silent: false,
            }),
            changed: Condvar::new(),
            stop,
            bar,
            began: now,
        }
    }

    /// Records how far the input is covered. The state is durable before this returns.
    pub(super) fn covered(&self, (bytes, crc32): (u64, u32)) -> Result<(), SendError> {
        let mut inner = self.lock();
        inner.record.checked_bytes = bytes;
        inner.record.checked_crc32 = crc32;
        inner.write_state()
    }

    /// Records that the run has begun. Its name is durable before this returns.
    pub(super) fn begin_state(&self) -> Result<(), SendError> {
        self.lock().write_state()
    }

    /// Records that part of a batch is about to be sent.
    pub(super) fn begin(&self) {
        self.lock().begun += 1;
    }

    /// Records that a batch is done: each of its lines was accepted or refused.
    pub(super) fn done(
        &self,
        sequence: u64,
        mut done: Done,
        refusals: &[Refusal],
    ) -> Result<(), SendError> {
        let mut inner = self.lock();
        inner.own.add(std::mem::take(&mut done.own));
        // A write error does not change what was acknowledged.
        let written = inner.rejects.write(refusals, "refused");
        inner.counts.accepted += done.accepted;
        inner.counts.refused += done.refused;
        inner.waiting.insert(sequence, done);
        inner.advance();
        if inner.written.elapsed() >= STATE_EVERY {
            inner.write_state()?;
        }
        let (accepted, refused) = (inner.record.accepted, inner.record.refused);
        let place = inner.raw_bytes;
        let taken = inner.counts.accepted;
        drop(inner);
        self.changed.notify_all();
        self.show(place, accepted, refused, taken);
        written
    }

    fn show(&self, place: u64, accepted: u64, refused: u64, taken: u64) {
        if self.bar.is_hidden() {
            return;
        }
        self.bar.set_position(place);
        let rate = f64::from(u32::try_from(taken).unwrap_or(u32::MAX))
            / self.began.elapsed().as_secs_f64().max(0.001);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "an approximate rate"
        )]
        let rate = HumanCount(rate as u64);
        let refused = match refused {
            0 => String::new(),
            refused => format!(", {} refused", HumanCount(refused)),
        };
        let accepted = HumanCount(accepted);
        self.bar
            .set_message(format!("{accepted} events{refused}, {rate}/s"));
    }

    /// Records an answer of the server.
    pub(super) fn answered(&self) {
        let mut inner = self.lock();
        inner.counts.requests += 1;
        inner.answered = Instant::now();
        if std::mem::take(&mut inner.silent) {
            tracing::warn!("the server is answering again");
        }
    }

    /// Records that a request has to be sent again; `doubtful` of its events may count twice. Returns
    /// the time since the server's last answer to any request. Logs a warning once, until an answer.
    pub(super) fn unanswered(&self, reason: &str, doubtful: u64) -> Duration {
        let mut inner = self.lock();
        inner.counts.retries += 1;
        inner.counts.doubtful += doubtful;
        if !std::mem::replace(&mut inner.silent, true) {
            tracing::warn!("{reason}; trying again");
        }
        inner.answered.elapsed()
    }

    /// Records a failure and stops all threads. The first failure is kept.
    pub(super) fn fail(&self, error: SendError) {
        self.lock().failure.get_or_insert(error);
        self.stop.request();
        self.changed.notify_all();
    }

    /// Whether no line was acknowledged before.
    pub(super) fn is_new(&self) -> bool {
        self.lock().record.lines == 0
    }

    /// Waits until the first `batches` batches are done. Returns the counts of this process; `None` on
    /// a stop.
    pub(super) fn after(&self, batches: u64) -> Option<Counts> {
        let mut inner = self.lock();
        while inner.next < batches {
            if self.stop.requested() {
                return None;
            }
            inner = self
                .changed
                .wait_timeout(inner, STOP_EVERY)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        Some(inner.counts)
    }

    /// Ends the run after all threads have stopped. The state records the final progress.
    pub(super) fn end(self) -> Ended {
        let mut inner = self
            .inner
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        inner.record.settled = inner.waiting.is_empty() && inner.next == inner.begun;
        if let Err(error) = inner.write_state() {
            inner.failure.get_or_insert(error);
        }
        Ended {
            counts: inner.counts,
            record: inner.record,
            failure: inner.failure,
            state: inner.state,
            rejects: inner.rejects,
            own: inner.own,
            batches: inner.next,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Moves batches that are done without a gap into the record.
    fn advance(&mut self) {
        while let Some(done) = self.waiting.remove(&self.next) {
            self.next += 1;
            let record = &mut self.record;
            record.lines = done.end.lines;
            record.bytes = done.end.bytes;
            record.open_bytes = done.end.open_bytes;
            record.in_array = done.end.in_array;
            if done.last.positions().len() > 0 {
                record
                    .last
                    .get_or_insert_with(Acknowledged::default)
                    .add_all(&done.last);
            }
            record.accepted += done.accepted;
            record.refused += done.refused;
            if self.checksum == Checksum::Kept {
                record.checked_bytes = done.end.bytes;
                record.checked_crc32 = done.end.crc32;
            }
            self.raw_bytes = done.end.raw_bytes;
        }
    }

    fn write_state(&mut self) -> Result<(), SendError> {
        self.written = Instant::now();
        match &mut self.state {
            Some(state) => state.write(&self.record),
            None => Ok(()),
        }
    }
}
