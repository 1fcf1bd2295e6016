//! Whether the system clock can be trusted to measure ages, which retention and the deduplication window
//! depend on.
//!
//! Boards without a battery-backed clock start in 1970 until they reach a time server; a wrong year in a BIOS
//! or a faulty time server can set any time. If such a clock were trusted, segments that were applied seconds
//! ago would be pruned and their ids expired, and an event that is sent again would be counted again.
//!
//! Therefore the time is stored in the database, at the start and every 10 minutes, and while the process runs
//! the clock is compared with `CLOCK_BOOTTIME`, which cannot be set and includes time in suspend. The clock is doubted
//! - at the first check, if it is before the stored time, more than a year after it, or before
//!   [`SET_FROM_MS`], which means that it was never set;
//! - at a later check, if it has jumped by more than a minute against `CLOCK_BOOTTIME`.
//!
//! While the clock is doubted, nothing is pruned or expires. Records get the later of its time and the last
//! trusted time plus the time passed since, so that no record appears older than it is. Records that turn
//! out to be in the future, or from before the clock was set, are dated again before their age is used
//! ([`Clock::stamps`]). A new time is trusted after it has been consistent for an hour, and at once if the
//! clock returns to the expected time. A machine that was suspended for a week has not jumped.
//!
//! The thread `process` checks the clock in each round; any thread may read the time.

use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::time::{ClockId, clock_gettime};

use crate::store::{Stamps, StoreError, Writer};
use crate::timestamp::{self, MS_MAX};

/// 2024-01-01. The program is newer than this, so a clock that is earlier has not been set.
pub(super) const SET_FROM_MS: i64 = 1_704_067_200_000;
/// Largest difference between clock and counter from one check to the next; time servers correct in smaller
/// steps.
const TOLERANCE_MS: i64 = 60_000;
/// At start-up, a clock that is later than the stored time by more than this is doubted.
const AHEAD_MAX_MS: i64 = 366 * 24 * 3_600_000;
/// How long a new time must be consistent before it is trusted.
const CONSISTENT_MS: i64 = 3_600_000;
/// How often the time is stored.
const STORE_EVERY_MS: i64 = 600_000;

/// The clocks of the machine, or those of a test.
pub(crate) trait Clocks: std::fmt::Debug + Send + Sync {
    /// The time of day: milliseconds since 1970 UTC, from 0 to [`MS_MAX`].
    fn wall_ms(&self) -> i64;
    /// Milliseconds since an arbitrary moment, including time in suspend. It never jumps.
    fn passed_ms(&self) -> i64;
}

/// The system clock and `CLOCK_BOOTTIME`.
#[derive(Debug)]
struct Machine;

impl Clocks for Machine {
    fn wall_ms(&self) -> i64 {
        timestamp::now_ms()
    }

    fn passed_ms(&self) -> i64 {
        let passed = clock_gettime(ClockId::Boottime);
        passed.tv_sec.saturating_mul(1000) + passed.tv_nsec / 1_000_000
    }
}

/// A clock that knows whether it can be trusted; see the module.
#[derive(Debug)]
pub(crate) struct Clock {
    clocks: Box<dyn Clocks>,
    state: Mutex<State>,
}

/// A time of day, and the counter at that moment.
#[derive(Clone, Copy, Debug)]
struct Moment {
    wall_ms: i64,
    passed_ms: i64,
}

impl Moment {
    /// The expected time of day when the counter is at `passed_ms`.
    fn at(self, passed_ms: i64) -> i64 {
        let since = passed_ms.saturating_sub(self.passed_ms);
        self.wall_ms.saturating_add(since).clamp(0, MS_MAX)
    }
}

#[derive(Debug, Default)]
struct State {
    /// The last check; `None` before the first.
    checked: Option<Moment>,
    /// The last check at which the clock was trusted.
    trusted: Option<Moment>,
    /// The counter when the doubted time was first seen; `None` while the clock is trusted.
    doubted_since_ms: Option<i64>,
    /// The time that this process has stored in the database; `None` if none yet.
    stored_ms: Option<i64>,
}

impl Default for Clock {
    fn default() -> Self {
        Self::of(Box::new(Machine))
    }
}

impl Clock {
    pub(super) fn of(clocks: Box<dyn Clocks>) -> Self {
        Self {
            clocks,
            state: Mutex::default(),
        }
    }

    /// Checks the clock. `stored_ms` is the time in the database, which only the first check uses. Returns
    /// the time to store now; `None` if storing is not due or the clock is doubted.
    pub(super) fn check(&self, stored_ms: Option<i64>) -> Option<i64> {
        let now = Moment {
            wall_ms: self.clocks.wall_ms(),
            passed_ms: self.clocks.passed_ms(),
        };
        let mut state = self.lock();
        let doubt = match state.checked.replace(now) {
            None => state.first(now, stored_ms),
            Some(before) => state.next(before, now),
        };
        if let Some(reason) = doubt {
            tracing::warn!(
                "the clock {reason}: nothing is pruned and no id expires until the time has been consistent for an hour"
            );
        }
        if state.doubted_since_ms.is_some() {
            return None;
        }
        state.trusted = Some(now);
        let due = |stored: i64| now.wall_ms.abs_diff(stored) >= STORE_EVERY_MS.unsigned_abs();
        state.stored_ms.is_none_or(due).then_some(now.wall_ms)
    }

    /// Records that the time `at_ms` was stored in the database.
    fn stored(&self, at_ms: i64) {
        self.lock().stored_ms = Some(at_ms);
    }

    /// Checks the clock again, and stores the time if that is due. Without a stored time, the next start would
    /// compare the clock with the newest records, whose dates may come from a clock that was doubted.
    pub(super) fn check_and_store(&self, writer: &mut Writer) -> Result<(), StoreError> {
        let Some(at_ms) = self.check(None) else {
            return Ok(());
        };
        match writer.set_clock(at_ms) {
            Ok(()) => self.stored(at_ms),
            Err(error) if error.is_locked() => {} // The next check tries again.
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Whether ages can be measured with it.
    pub(super) fn is_trusted(&self) -> bool {
        let state = self.lock();
        state.checked.is_some() && state.doubted_since_ms.is_none()
    }

    /// The present time for records: milliseconds since 1970 UTC, from 0 to [`MS_MAX`]. While the clock is
    /// doubted, the later of its time and the expected time.
    pub(super) fn now_ms(&self) -> i64 {
        let state = self.lock();
        let wall_ms = self.clocks.wall_ms();
        match (state.trusted, state.doubted_since_ms) {
            (Some(trusted), Some(_)) => trusted.at(self.clocks.passed_ms()).max(wall_ms),
            _ => wall_ms,
        }
    }

    /// The present time, and the range of dates that a record can have.
    pub(super) fn stamps(&self) -> Stamps {
        let now_ms = self.now_ms();
        Stamps {
            now_ms,
            earliest_ms: SET_FROM_MS.min(now_ms),
            latest_ms: now_ms.saturating_add(TOLERANCE_MS),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Judges the first check. Returns why the clock is doubted; `None` if it is trusted.
    fn first(&mut self, now: Moment, stored_ms: Option<i64>) -> Option<String> {
        let (wall, shown) = (now.wall_ms, text(now.wall_ms));
        let reason = match stored_ms {
            Some(stored) if wall < stored.saturating_sub(TOLERANCE_MS) => {
                format!(
                    "shows {shown}, before the last stored time, {}",
                    text(stored)
                )
            }
            Some(stored) if wall > stored.saturating_add(AHEAD_MAX_MS) => format!(
                "shows {shown}, more than a year after the last stored time, {}",
                text(stored)
            ),
            _ if !(SET_FROM_MS..MS_MAX).contains(&wall) => format!("is not set: it shows {shown}"),
            _ => return None,
        };
        self.doubted_since_ms = Some(now.passed_ms);
        self.trusted = stored_ms.map(|stored_ms| Moment {
            wall_ms: stored_ms,
            passed_ms: now.passed_ms,
        });
        Some(reason)
    }

    /// Judges a later check. Returns why the clock is doubted from now on; `None` if nothing changed for the
    /// worse.
    fn next(&mut self, before: Moment, now: Moment) -> Option<String> {
        let near = |expected: i64| now.wall_ms.abs_diff(expected) <= TOLERANCE_MS.unsigned_abs();
        let expected = before.at(now.passed_ms);
        let shown = text(now.wall_ms);
        if let Some(since) = self.doubted_since_ms {
            let is_set = (SET_FROM_MS..MS_MAX).contains(&now.wall_ms);
            let is_back = self.trusted.is_some_and(|at| near(at.at(now.passed_ms)));
            if is_back {
                self.doubted_since_ms = None;
                tracing::info!("the clock is back at the expected time, {shown}");
            } else if !near(expected) {
                self.doubted_since_ms = Some(now.passed_ms);
                return Some(format!("jumped from {} to {shown}", text(expected)));
            } else if is_set && now.passed_ms.saturating_sub(since) >= CONSISTENT_MS {
                self.doubted_since_ms = None;
                tracing::info!(
                    "the clock was consistent for an hour; its time, {shown}, is used from now on"
                );
            }
            return None;
        }
        if near(expected) {
            return None;
        }
        self.doubted_since_ms = Some(now.passed_ms);
        Some(format!("jumped from {} to {shown}", text(expected)))
    }
}

fn text(ms: i64) -> String {
    timestamp::rfc3339_seconds(timestamp::of_ms(ms))
}

#[cfg(test)]
pub(super) mod tests;
