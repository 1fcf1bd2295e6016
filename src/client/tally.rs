//! What was acknowledged so far: the counts, and how far the input is done without a gap.
//!
//! Shared by the sending threads behind one mutex, held for counting and, at most twice a second,
//! for a write of the state. Order within: refused lines reach their file before the lines count
//! as done, so that a crash in between writes them twice rather than never.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{HumanCount, ProgressBar};

use super::error::SendError;
use super::lines::{Checksum, Place};
use super::rejects::{Refusal, Rejects};
use super::settle::OwnLines;
use super::state::{Record, StateFile, Written};
use crate::data_dir::segment::Position;
use crate::shutdown::Shutdown;

/// The state is written at most this often for the sake of progress.
const STATE_EVERY: Duration = Duration::from_millis(500);

/// What was counted by this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Events the server has taken.
    pub accepted: u64,
    /// Lines it has refused.
    pub refused: u64,
    /// Events without an id that were, or will be, sent again after a lost answer: so many may be
    /// counted twice.
    pub doubtful: u64,
    /// Requests that were answered well or refused for good.
    pub requests: u64,
    /// Requests that had to be sent again.
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
    stop: Shutdown,
    bar: ProgressBar,
    began: Instant,
}

struct Inner {
    counts: Counts,
    /// Done, but not all before it: by sequence.
    waiting: BTreeMap<u64, Done>,
    next: u64,
    /// Raw bytes of the input that are done, for the bar.
    raw_bytes: u64,
    /// Batches of which something may have been sent.
    begun: u64,
    record: Record,
    state: Option<StateFile>,
    written: Instant,
    checksum: Checksum,
    rejects: Rejects,
    own: OwnLines,
    failure: Option<SendError>,
    /// When the server last answered well.
    answered: Instant,
    /// Whether it is known that it does not.
    silent: bool,
}

/// A batch that came to its end.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) end: Place,
    pub(super) accepted: u64,
    pub(super) refused: u64,
    /// The last position that was answered.
    pub(super) last: Option<Position>,
    /// The lines among them that have ids of their own: see [`OwnLines`].
    pub(super) own: Vec<(u64, u64)>,
}

/// How a run ended.
pub(super) struct Ended {
    pub(super) counts: Counts,
    pub(super) record: Record,
    pub(super) failure: Option<SendError>,
    pub(super) state: Option<StateFile>,
    pub(super) rejects: Rejects,
    /// What this process sent of events with ids of their own.
    pub(super) own: OwnLines,
    /// Batches done without a gap.
    pub(super) batches: u64,
}

impl Tally {
    /// Goes on from `record`.
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
            stop,
            bar,
            began: now,
        }
    }

    /// The input's first bytes are covered so far: durable before this returns.
    pub(super) fn covered(&self, (bytes, crc32): (u64, u32)) -> Result<(), SendError> {
        let mut inner = self.lock();
        inner.record.checked_bytes = bytes;
        inner.record.checked_crc32 = crc32;
        inner.write_state()
    }

    /// The run has begun: its name is durable before this returns.
    pub(super) fn begin_state(&self) -> Result<(), SendError> {
        self.lock().write_state()
    }

    /// Something of a batch is about to be sent.
    pub(super) fn begin(&self) {
        self.lock().begun += 1;
    }

    /// A batch is done: each of its lines was accepted or refused.
    pub(super) fn done(
        &self,
        sequence: u64,
        mut done: Done,
        refusals: &[Refusal],
    ) -> Result<(), SendError> {
        let mut inner = self.lock();
        inner.own.add(std::mem::take(&mut done.own));
        // Whether they can be written changes nothing of what was acknowledged.
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
            reason = "a rate for people"
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

    /// The server answered.
    pub(super) fn answered(&self) {
        let mut inner = self.lock();
        inner.counts.requests += 1;
        inner.answered = Instant::now();
        if std::mem::take(&mut inner.silent) {
            tracing::warn!("the server answers again");
        }
    }

    /// A request has to be sent again; `doubtful` of its events may count twice. Gives how long
    /// ago the server last answered anybody. Said once, until it answers again.
    pub(super) fn unanswered(&self, reason: &str, doubtful: u64) -> Duration {
        let mut inner = self.lock();
        inner.counts.retries += 1;
        inner.counts.doubtful += doubtful;
        if !std::mem::replace(&mut inner.silent, true) {
            tracing::warn!("{reason}; trying again");
        }
        inner.answered.elapsed()
    }

    /// The run can't go on: the first reason is kept, and everybody stops.
    pub(super) fn fail(&self, error: SendError) {
        self.lock().failure.get_or_insert(error);
        self.stop.request();
    }

    /// Everybody has stopped: the state says how far we came.
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
    /// Takes into the record what is done without a gap.
    fn advance(&mut self) {
        while let Some(done) = self.waiting.remove(&self.next) {
            self.next += 1;
            let record = &mut self.record;
            record.lines = done.end.lines;
            record.bytes = done.end.bytes;
            record.open_bytes = done.end.open_bytes;
            record.in_array = done.end.in_array;
            record.last = record.last.max(done.last.map(Written));
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
