//! What has been applied, for those who wait for it and those who ask.
//!
//! The processor publishes after each commit; HTTP waits for positions and reads the ledger and
//! the lag. Any thread; one lock, held for bookkeeping only, never while a waiter is called. A
//! thread of its own ([`Progress::run_clock`]) keeps the deadlines, so that a waiter gets its
//! answer in time though the processor may be stuck on a locked database.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::data_dir::segment::Position;
use crate::histogram::Histogram;
use crate::store::Ledger;

/// The most that wait at once.
const WAITERS_MAX: usize = 4096;
/// The most times of acknowledgement that are remembered for the lag.
const ACKNOWLEDGED_MAX: usize = 4096;

/// How a wait for a position ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitOutcome {
    /// Everything at or before the position is in the database.
    Applied,
    /// The deadline came first.
    TimedOut,
    /// Its segment was lost or is corrupt: it will never be applied.
    Gone,
    /// Too many wait already, or nothing applies here (`--no-process`): don't wait.
    Unavailable,
}

/// Both sides of this run: found + appended = settled + pending + unaccounted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// Lines that were made durable in this run.
    pub appended: u64,
    /// Lines that waited in the files when this process came, and lines of files from elsewhere since.
    pub found: i64,
    /// Lines whose fate was committed since.
    pub settled: i64,
}

/// Who applies to the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applies {
    /// A processor in this process: waiting makes sense.
    Here,
    /// Another process, now and then (`--no-process`): nobody waits here.
    Elsewhere,
}

/// A segment of which nothing past `applied_bytes` will be applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeadSegment {
    /// Its number.
    pub number: u64,
    /// What of it is applied.
    pub applied_bytes: u64,
}

/// What the database says, and what is still to be applied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// Applied, duplicates, rejected and corrupt of the database, and what is unaccounted for; lines
    /// and pending are not used.
    pub ledger: Ledger,
    /// Lines in the files when `tail_lines` lines had been made durable by this process; counted
    /// there, whatever became of them.
    pub lines: u64,
    /// See `lines`.
    pub tail_lines: u64,
    /// Lines that were settled before this process came.
    pub settled_before: u64,
}

impl Settled {
    /// Lines in the files without a fate, now that this process has made `tail_lines` lines durable.
    pub fn waiting(&self, tail_lines: u64) -> i64 {
        self.lines_now(tail_lines)
            .saturating_sub(self.ledger.settled().cast_signed())
    }

    fn lines_now(&self, tail_lines: u64) -> i64 {
        let since = tail_lines.cast_signed() - self.tail_lines.cast_signed();
        self.lines.cast_signed().saturating_add(since)
    }
}

type Done = Box<dyn FnOnce(WaitOutcome) + Send>;

/// What has been applied, published by the processor after each commit; waited for by HTTP.
pub struct Progress {
    applies: Applies,
    state: Mutex<State>,
    /// Signalled when the processor has something to do now, or is to stop.
    demanded: Condvar,
    /// Signalled when the clock has to look again.
    clock: Condvar,
    /// How long flushes took.
    flushes: Histogram,
}

struct State {
    applied: Position,
    lost: BTreeMap<u64, u64>,
    settled: Settled,
    waiters: BTreeMap<(Position, u64), Waiter>,
    deadlines: BTreeSet<(Instant, Position, u64)>,
    next_waiter: u64,
    demand: bool,
    stopping: bool,
    /// Nobody waits any more; flushing goes on.
    waiting_ended: bool,
    /// (position, not acknowledged before): of positions not applied yet, ascending.
    acknowledged: VecDeque<(Position, Instant)>,
    /// The latest position seen to be durable, and when it was looked at.
    seen: (Position, Instant),
}

struct Waiter {
    deadline: Instant,
    done: Done,
}

/// Waiters to be called once the lock is released.
#[derive(Default)]
struct Calls(Vec<(Done, WaitOutcome)>);

impl Calls {
    fn make(self) {
        for (done, waited) in self.0 {
            done(waited);
        }
    }
}

impl Progress {
    /// Nothing applied yet; the processor publishes what the database says.
    pub fn new(applies: Applies) -> Self {
        let start = Position {
            segment: 1,
            offset: 0,
        };
        Self {
            applies,
            state: Mutex::new(State {
                applied: start,
                lost: BTreeMap::new(),
                settled: Settled::default(),
                waiters: BTreeMap::new(),
                deadlines: BTreeSet::new(),
                next_waiter: 0,
                demand: false,
                stopping: false,
                waiting_ended: false,
                acknowledged: VecDeque::new(),
                seen: (start, Instant::now()),
            }),
            demanded: Condvar::new(),
            clock: Condvar::new(),
            flushes: Histogram::default(),
        }
    }

    /// Whether another process applies (`--no-process`).
    pub fn applies_elsewhere(&self) -> bool {
        self.applies == Applies::Elsewhere
    }

    /// How long each flush took: reading, counting, the transaction.
    pub fn flushes(&self) -> &Histogram {
        &self.flushes
    }

    /// Everything of our segments at or before it is in the database, but for lost segments.
    pub fn applied(&self) -> Position {
        self.lock().applied
    }

    /// Calls `done` once: when `position` is applied, at `deadline`, or right here. Demands a flush
    /// now; many waiters share one. At most 4096 wait.
    pub fn when_applied(
        &self,
        position: Position,
        deadline: Instant,
        done: Box<dyn FnOnce(WaitOutcome) + Send>,
    ) {
        let mut state = self.lock();
        if let Some(waited) = self.decided(&state, position) {
            drop(state);
            return done(waited);
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

    /// Blocks until then.
    pub fn wait_applied(&self, position: Position, deadline: Instant) -> WaitOutcome {
        let (sender, receiver) = crossbeam_channel::bounded(1);
        self.when_applied(
            position,
            deadline,
            Box::new(move |waited| {
                // Nobody receives any more only if this wait has given up.
                let _given_up = sender.send(waited);
            }),
        );
        receiver
            .recv_deadline(deadline)
            .unwrap_or(WaitOutcome::TimedOut)
    }

    fn decided(&self, state: &State, position: Position) -> Option<WaitOutcome> {
        if let Some(&applied_bytes) = state.lost.get(&position.segment) {
            let counted = position.offset <= applied_bytes;
            return Some(if counted {
                WaitOutcome::Applied
            } else {
                WaitOutcome::Gone
            });
        }
        if position <= state.applied {
            Some(WaitOutcome::Applied)
        } else if self.applies == Applies::Elsewhere
            || state.stopping
            || state.waiting_ended
            || state.waiters.len() >= WAITERS_MAX
        {
            Some(WaitOutcome::Unavailable)
        } else {
            None
        }
    }

    /// The ledger; `tail_lines` gives `Tail::lines`. More fates than lines are unaccounted for at once,
    /// fewer when nothing waits.
    pub fn ledger(&self, tail_lines: impl FnOnce() -> u64) -> (Ledger, Run) {
        let settled = self.lock().settled;
        // Looked at later: no line is settled before it is among these.
        let tail_lines = tail_lines();
        let waiting = settled.waiting(tail_lines) - settled.ledger.unaccounted;
        let ledger = Ledger {
            lines: u64::try_from(settled.lines_now(tail_lines)).unwrap_or(0),
            pending: u64::try_from(waiting).unwrap_or(0),
            unaccounted: settled.ledger.unaccounted + waiting.min(0),
            ..settled.ledger
        };
        let before = settled.settled_before.cast_signed();
        let run = Run {
            appended: tail_lines,
            found: settled.lines_now(0) - before,
            settled: settled.ledger.settled().cast_signed() - before,
        };
        (ledger, run)
    }

    /// Seconds since the oldest acknowledged event that is not yet applied was acknowledged; 0 if
    /// none. Never less than the truth, and more by a look of the clock at most.
    pub fn lag_seconds(&self) -> f64 {
        let state = self.lock();
        state
            .acknowledged
            .front()
            .map_or(0.0, |(_, since)| since.elapsed().as_secs_f64())
    }

    /// For the processor, after a commit (or when it has read the database anew).
    pub fn publish(&self, applied: Position, lost: &[DeadSegment], settled: Settled) {
        let mut state = self.lock();
        state.applied = applied;
        state.lost = lost
            .iter()
            .map(|lost| (lost.number, lost.applied_bytes))
            .collect();
        state.settled = settled;
        while state
            .acknowledged
            .front()
            .is_some_and(|(position, _)| *position <= applied)
        {
            state.acknowledged.pop_front();
        }
        let mut calls = Calls::default();
        let decided: Vec<(Position, u64)> = state
            .waiters
            .keys()
            .filter(|(position, _)| {
                *position <= applied || state.lost.contains_key(&position.segment)
            })
            .copied()
            .collect();
        for key in decided {
            let waited = self.decided(&state, key.0).unwrap_or(WaitOutcome::TimedOut);
            state.take(key, waited, &mut calls);
        }
        drop(state);
        calls.make();
    }

    /// For the processor: sleeps until somebody waits, `until` has come, or it is to stop; false if
    /// only the time has come.
    pub fn wait_for_demand(&self, until: Instant) -> bool {
        let mut state = self.lock();
        while !state.demand && !state.stopping {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self
                .demanded
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        std::mem::take(&mut state.demand) || state.stopping
    }

    /// For the processor: sleeps until then, whoever waits, or until it is to stop.
    pub fn wait_until(&self, until: Instant) {
        let mut state = self.lock();
        while !state.stopping {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = self
                .demanded
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Whether the processor is to stop.
    pub fn is_stopping(&self) -> bool {
        self.lock().stopping
    }

    /// Ends [`Progress::run_clock`] and [`Progress::wait_for_demand`]; nobody waits from now on,
    /// those who wait get their answer from the last flush or at their deadline.
    pub fn stop(&self) {
        self.lock().stopping = true;
        self.demanded.notify_all();
        self.clock.notify_all();
    }

    /// Answers everybody who still waits, as at their deadline; nobody waits from now on, but
    /// flushing goes on.
    pub fn end_waiting(&self) {
        self.release(|state| state.waiting_ended = true);
    }

    /// Answers everybody who still waits: there will be no more flushes.
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

    /// The clock's thread: answers those whose deadline has come and looks at the durable end
    /// (`tail`) every `every`, for the lag. Returns once stopped.
    pub fn run_clock(self: &Arc<Self>, every: Duration, tail: &dyn Fn() -> Position) {
        let mut next_look = Instant::now();
        loop {
            let now = Instant::now();
            if now >= next_look {
                self.note_acknowledged(tail(), now);
                next_look = now + every;
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
                let deadline = state.deadlines.first().map_or(next_look, |first| first.0);
                let left = deadline
                    .min(next_look)
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

    /// Notes that everything before `position` is acknowledged by `now`.
    fn note_acknowledged(&self, position: Position, now: Instant) {
        let mut state = self.lock();
        let (seen, since) = state.seen;
        if position > seen && position > state.applied {
            if state.acknowledged.len() >= ACKNOWLEDGED_MAX {
                // The oldest stays: it is the lag. Of the others a few may go.
                state.acknowledged.remove(1);
            }
            // The first of these events was acknowledged after the last look.
            state.acknowledged.push_back((position, since));
        }
        state.seen = (position, now);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take(&mut self, key: (Position, u64), waited: WaitOutcome, calls: &mut Calls) {
        if let Some(waiter) = self.waiters.remove(&key) {
            self.deadlines.remove(&(waiter.deadline, key.0, key.1));
            calls.0.push((waiter.done, waited));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiters_are_told_applied_lost_or_timed_out() {
        let progress = Progress::new(Applies::Here);
        let at = |segment, offset| Position { segment, offset };
        let (sender, told) = std::sync::mpsc::channel();
        let wait = |position| {
            let sender = sender.clone();
            let later = Instant::now() + Duration::from_hours(1);
            progress.when_applied(
                position,
                later,
                Box::new(move |waited| {
                    sender.send((position, waited)).expect("the test listens");
                }),
            );
        };
        wait(at(1, 10));
        wait(at(2, 10));
        wait(at(3, 10));
        assert!(told.try_recv().is_err());
        let lost = [DeadSegment {
            number: 2,
            applied_bytes: 5,
        }];
        progress.publish(at(1, 10), &lost, Settled::default());
        assert_eq!(told.try_recv(), Ok((at(1, 10), WaitOutcome::Applied)));
        assert_eq!(told.try_recv(), Ok((at(2, 10), WaitOutcome::Gone)));
        assert!(told.try_recv().is_err());
        wait(at(2, 5));
        assert_eq!(told.try_recv(), Ok((at(2, 5), WaitOutcome::Applied)));
        progress.finish();
        assert_eq!(told.try_recv(), Ok((at(3, 10), WaitOutcome::TimedOut)));
        let off = Progress::new(Applies::Elsewhere);
        assert_eq!(
            off.wait_applied(at(1, 1), Instant::now()),
            WaitOutcome::Unavailable
        );
    }

    #[test]
    fn the_ledger_balances_between_commits() {
        let progress = Progress::new(Applies::Here);
        let ledger = Ledger {
            applied: 5,
            duplicates: 1,
            rejected: 2,
            corrupt: 3,
            ..Ledger::default()
        };
        let mut settled = Settled {
            ledger,
            lines: 7,
            tail_lines: 10,
            settled_before: 2,
        };
        progress.publish(
            Position {
                segment: 1,
                offset: 0,
            },
            &[],
            settled,
        );
        let seen = |tail_lines| {
            let (seen, run) = progress.ledger(|| tail_lines);
            assert_eq!(
                seen.lines.cast_signed(),
                seen.settled().cast_signed() + seen.pending.cast_signed() + seen.unaccounted
            );
            assert_eq!(
                run.found + run.appended.cast_signed(),
                run.settled + seen.pending.cast_signed() + seen.unaccounted
            );
            (seen.lines, seen.pending, seen.unaccounted)
        };
        // 11 are settled, of 7 lines at 10.
        assert_eq!(seen(20), (17, 6, 0));
        assert_eq!(seen(14), (11, 0, 0));
        assert_eq!(seen(13), (10, 0, -1), "a fate without a line is not hidden");
        let (_, run) = progress.ledger(|| 20);
        assert_eq!((run.found, run.settled), (-5, 9));
        settled.ledger.unaccounted = 2;
        progress.publish(
            Position {
                segment: 1,
                offset: 0,
            },
            &[],
            settled,
        );
        assert_eq!(seen(20), (17, 4, 2));
    }
}
