//! The applied position, the requests that wait for one, the ledger and the lag, in memory.
//!
//! The processor publishes after each commit; HTTP waits for positions and reads the ledger and the lag.
//! Every method may be called from any thread. One lock protects the state. It is held briefly and never
//! while the callback of a waiter runs.
//!
//! The thread `process-clock` ([`Progress::run_clock`]) ends waits at their deadlines, so that a waiter gets
//! its result in time even if the processor is blocked by a locked database.

mod accounts;
mod lag;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::data_dir::segment::Position;
use crate::histogram::Histogram;
use crate::store::Ledger;

pub use self::accounts::{Accounts, Run, Settled};
use self::lag::Lag;

/// Most waiters at one time; a further wait is [`WaitOutcome::Unavailable`].
const WAITERS_MAX: usize = 4096;

/// How a wait for a position ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitOutcome {
    /// Everything at or before the position is in the database.
    Applied,
    /// The deadline came first.
    TimedOut,
    /// The segment is missing or corrupt, so the position will never be applied.
    Gone,
    /// There are too many waiters, the processor has stopped, or this process does not apply
    /// (`--no-process`).
    Unavailable,
}

/// Which process applies events to the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Processing {
    /// This one, continuously, so requests may wait for a position.
    Here,
    /// Another one, at times that this process does not know (`--no-process`), so that no request can wait.
    Elsewhere,
}

/// A missing or corrupt segment: nothing after `applied_bytes` will be applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeadSegment {
    /// The number of the segment.
    pub number: u64,
    /// Length of the applied prefix.
    pub applied_bytes: u64,
}

type Done = Box<dyn FnOnce(WaitOutcome) + Send>;

/// The progress of the processor, shared between it and HTTP.
pub struct Progress {
    processing: Processing,
    state: Mutex<State>,
    /// Signalled when a waiter demands a flush, and at shutdown.
    demanded: Condvar,
    /// Signalled when `run_clock` has a new deadline to observe, and at shutdown.
    clock: Condvar,
    flushes: Histogram,
}

struct State {
    applied: Position,
    /// Missing and corrupt segments: number to applied bytes.
    dead: BTreeMap<u64, u64>,
    /// `None` until the database was read.
    settled: Option<Settled>,
    waiters: BTreeMap<(Position, u64), Waiter>,
    deadlines: BTreeSet<(Instant, Position, u64)>,
    next_waiter: u64,
    demand: bool,
    stopping: bool,
    /// New waits are refused; flushing continues.
    waiting_ended: bool,
    lag: Lag,
}

struct Waiter {
    deadline: Instant,
    done: Done,
}

/// Callbacks of ended waits, to be called after the lock is released.
#[derive(Default)]
struct Calls(Vec<(Done, WaitOutcome)>);

impl Calls {
    fn make(self) {
        for (done, outcome) in self.0 {
            done(outcome);
        }
    }
}

impl Progress {
    /// Starts with nothing applied; the processor publishes the state of the database.
    pub fn new(processing: Processing) -> Self {
        let start = Position {
            segment: 1,
            offset: 0,
        };
        Self {
            processing,
            state: Mutex::new(State {
                applied: start,
                dead: BTreeMap::new(),
                settled: None,
                waiters: BTreeMap::new(),
                deadlines: BTreeSet::new(),
                next_waiter: 0,
                demand: false,
                stopping: false,
                waiting_ended: false,
                lag: Lag::new(start),
            }),
            demanded: Condvar::new(),
            clock: Condvar::new(),
            flushes: Histogram::default(),
        }
    }

    /// Whether another process applies events (`--no-process`).
    pub fn applies_elsewhere(&self) -> bool {
        self.processing == Processing::Elsewhere
    }

    /// Durations of flushes: reading, aggregating and committing one range.
    pub fn flushes(&self) -> &Histogram {
        &self.flushes
    }

    /// Every native segment is applied up to this position, except for missing and corrupt segments.
    pub fn applied(&self) -> Position {
        self.lock().applied
    }

    /// Calls `done` once: when `position` is applied, at `deadline`, or before this returns if the outcome is
    /// known already. A wait demands an immediate flush; concurrent waits share one.
    pub fn when_applied(
        &self,
        position: Position,
        deadline: Instant,
        done: Box<dyn FnOnce(WaitOutcome) + Send>,
    ) {
        let mut state = self.lock();
        if let Some(outcome) = self.outcome(&state, position) {
            drop(state);
            return done(outcome);
        }
        let number = state.next_waiter;
        state.next_waiter += 1;
        state
            .waiters
            .insert((position, number), Waiter { deadline, done });
        state.deadlines.insert((deadline, position, number));
        state.demand = true;
        drop(state);
        self.demanded.notify_all();
        self.clock.notify_all();
    }

    /// Like [`Progress::when_applied`], but blocks until the outcome is known.
    #[cfg(any(test, feature = "testing"))]
    pub fn wait_applied(&self, position: Position, deadline: Instant) -> WaitOutcome {
        let (sender, receiver) = crossbeam_channel::bounded(1);
        self.when_applied(
            position,
            deadline,
            Box::new(move |outcome| {
                // Fails only if the wait below has timed out.
                let _timed_out = sender.send(outcome);
            }),
        );
        receiver
            .recv_deadline(deadline)
            .unwrap_or(WaitOutcome::TimedOut)
    }

    /// The outcome of a wait that starts now; `None` if it has to wait.
    fn outcome(&self, state: &State, position: Position) -> Option<WaitOutcome> {
        if let Some(&applied_bytes) = state.dead.get(&position.segment) {
            let is_applied = position.offset <= applied_bytes;
            return Some(if is_applied {
                WaitOutcome::Applied
            } else {
                WaitOutcome::Gone
            });
        }
        if position <= state.applied {
            Some(WaitOutcome::Applied)
        } else if self.processing == Processing::Elsewhere
            || state.stopping
            || state.waiting_ended
            || state.waiters.len() >= WAITERS_MAX
        {
            Some(WaitOutcome::Unavailable)
        } else {
            None
        }
    }

    /// Whether the database was read since the start; before that, the accounts are 0.
    pub fn is_published(&self) -> bool {
        self.lock().settled.is_some()
    }

    /// The ledger and the lines of this run, of [`Progress::accounts`].
    pub fn ledger(&self, tail_lines: impl FnOnce() -> u64) -> (Ledger, Run) {
        let accounts = self.accounts(tail_lines);
        (accounts.ledger, accounts.run)
    }

    /// The sums over all users, the ledger, and the lines of this run. `tail_lines` returns `Tail::lines`. If more lines are settled
    /// than were counted, the difference is unaccounted immediately; if fewer, they are pending until
    /// [`Settled::ledger`] reports them as unaccounted.
    pub fn accounts(&self, tail_lines: impl FnOnce() -> u64) -> Accounts {
        let settled = self.lock().settled.unwrap_or_default();
        // Read after `settled`, so that it includes every settled line.
        settled.accounts(tail_lines())
    }

    /// Age in seconds of the oldest line that is not applied, since it was acknowledged or its file was found;
    /// 0 if there is none. It may be too high by the interval of `run_clock`, but never too low.
    pub fn lag_seconds(&self) -> f64 {
        self.lock().lag.age().as_secs_f64()
    }

    /// Called by the processor after a commit, and after it has read the database. Ends every wait whose
    /// outcome is known now.
    pub fn publish(&self, applied: Position, dead: &[DeadSegment], settled: Settled) {
        let mut state = self.lock();
        state.applied = applied;
        state.dead = dead
            .iter()
            .map(|dead| (dead.number, dead.applied_bytes))
            .collect();
        state.settled = Some(settled);
        state.lag.applied(applied, settled.found_since);
        let mut calls = Calls::default();
        let ended: Vec<(Position, u64)> = state
            .waiters
            .keys()
            .filter(|(position, _)| {
                *position <= applied || state.dead.contains_key(&position.segment)
            })
            .copied()
            .collect();
        for key in ended {
            let outcome = self.outcome(&state, key.0).unwrap_or(WaitOutcome::TimedOut);
            state.take(key, outcome, &mut calls);
        }
        drop(state);
        calls.make();
    }

    /// Called by the processor: blocks until a wait demands a flush, until [`Progress::stop`], or until the
    /// time `until`. Returns false if only the time has passed.
    pub fn wait_for_demand(&self, until: Instant) -> bool {
        let mut state = self.wait_while(until, |state| !state.demand && !state.stopping);
        std::mem::take(&mut state.demand) || state.stopping
    }

    /// Called by the processor: blocks until the time `until` or until [`Progress::stop`].
    pub fn wait_until(&self, until: Instant) {
        drop(self.wait_while(until, |state| !state.stopping));
    }

    /// Blocks while `idle` holds, at most until the time `until`.
    fn wait_while(&self, until: Instant, idle: impl Fn(&State) -> bool) -> MutexGuard<'_, State> {
        let left = until.saturating_duration_since(Instant::now());
        self.demanded
            .wait_timeout_while(self.lock(), left, |state| idle(state))
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }

    /// Whether [`Progress::stop`] or [`Progress::finish`] was called.
    pub fn is_stopping(&self) -> bool {
        self.lock().stopping
    }

    /// Ends [`Progress::run_clock`] and [`Progress::wait_for_demand`], and refuses new waits. Present waits
    /// end with the last flush or at their deadline.
    pub fn stop(&self) {
        self.lock().stopping = true;
        self.demanded.notify_all();
        self.clock.notify_all();
    }

    /// Ends all waits with [`WaitOutcome::TimedOut`] and refuses new ones. Flushing continues.
    pub fn end_waiting(&self) {
        self.release(|state| state.waiting_ended = true);
    }

    /// Ends all waits with [`WaitOutcome::TimedOut`], because there will be no more flushes.
    pub fn finish(&self) {
        self.release(|state| state.stopping = true);
    }

    fn release(&self, change: impl FnOnce(&mut State)) {
        let mut calls = Calls::default();
        let mut state = self.lock();
        change(&mut state);
        let keys: Vec<_> = state.waiters.keys().copied().collect();
        for key in keys {
            state.take(key, WaitOutcome::TimedOut, &mut calls);
        }
        drop(state);
        self.clock.notify_all();
        calls.make();
    }

    /// The body of the thread `process-clock`: ends waits at their deadlines, and reads the durable end
    /// (`tail`) once per interval `every` for the lag. Returns after [`Progress::stop`], when no wait is left.
    pub fn run_clock(self: &Arc<Self>, every: Duration, tail: &dyn Fn() -> Position) {
        let mut next_check = Instant::now();
        loop {
            let now = Instant::now();
            if now >= next_check {
                let durable = tail();
                let mut state = self.lock();
                let applied = state.applied;
                state.lag.durable(durable, applied, now);
                drop(state);
                next_check = now + every;
            }
            let mut calls = Calls::default();
            let mut state = self.lock();
            while let Some(&(deadline, position, number)) = state.deadlines.first()
                && deadline <= now
            {
                state.take((position, number), WaitOutcome::TimedOut, &mut calls);
            }
            if state.stopping && state.waiters.is_empty() {
                drop(state);
                return calls.make();
            }
            if calls.0.is_empty() {
                let deadline = state.deadlines.first().map_or(next_check, |first| first.0);
                let left = deadline
                    .min(next_check)
                    .saturating_duration_since(Instant::now());
                drop(
                    self.clock
                        .wait_timeout(state, left)
                        .unwrap_or_else(PoisonError::into_inner),
                );
            } else {
                drop(state);
                calls.make();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Removes a waiter; its callback is added to `calls`.
    fn take(&mut self, key: (Position, u64), outcome: WaitOutcome, calls: &mut Calls) {
        if let Some(waiter) = self.waiters.remove(&key) {
            self.deadlines.remove(&(waiter.deadline, key.0, key.1));
            calls.0.push((waiter.done, outcome));
        }
    }
}
