//! Whether the clock is to be believed, for what depends on ages: retention and the keeping of ids.
//!
//! Boards without a clock start in 1970 until they have asked the network; a wrong year in a BIOS
//! or a bad time server can set any time. If ages were measured by such a clock, files of seconds
//! ago would be pruned and their ids forgotten, and an event sent again would count again.
//!
//! So the last time seen is stored in the database, and while the process runs the clock is compared
//! with one that only counts up, sleep included. The clock is doubted
//! - at the first look, if it is before the time stored, more than a year past it, or before
//!   [`SET_FROM_MS`] (nobody has set it);
//! - later, if it jumped.
//!
//! While it is doubted nothing is pruned or expired. Records bear the later of its time and the last
//! one believed plus what has passed since, so that none looks older than it is; those that turn out
//! to be of a time to come, or of a clock that was not set, are dated again before they are judged
//! by their age ([`Clock::stamps`]). Once the new time has held for an hour it is believed; if the
//! clock comes back to where it was expected, at once. A laptop that slept for a week has not jumped:
//! the time of sleep is counted.
//!
//! The coordinator looks each round; any thread asks for the time.

use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::time::{ClockId, clock_gettime};

use crate::store::Stamps;
use crate::timestamp::{self, MS_MAX};

/// 2024-01-01: this program is younger, so a clock before has not been set.
pub(super) const SET_FROM_MS: i64 = 1_704_067_200_000;
/// How far clock and counter may part between two looks: time servers correct in small steps.
const TOLERANCE_MS: i64 = 60_000;
/// Further past the time stored than this, a clock is doubted at a start.
const AHEAD_MAX_MS: i64 = 366 * 24 * 3_600_000;
/// How long a new time must hold.
const HELD_MS: i64 = 3_600_000;
/// How often the time is stored.
const STORE_EVERY_MS: i64 = 600_000;

/// The clocks of the machine, or of a test.
pub(crate) trait Clocks: std::fmt::Debug + Send + Sync {
    /// The time of day: milliseconds since 1970 UTC, from 0 to [`MS_MAX`].
    fn wall_ms(&self) -> i64;
    /// Milliseconds that have passed since some moment, sleep included; nobody can set it.
    fn passed_ms(&self) -> i64;
}

/// The clocks of this machine.
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

/// The clock of a processor; see the module.
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
    /// What the time of day should be by the counter.
    fn at(self, passed_ms: i64) -> i64 {
        let since = passed_ms.saturating_sub(self.passed_ms);
        self.wall_ms.saturating_add(since).clamp(0, MS_MAX)
    }
}

#[derive(Debug, Default)]
struct State {
    /// The last look; `None` before the first.
    looked: Option<Moment>,
    /// The last time believed.
    believed: Option<Moment>,
    /// The counter when the time that is doubted was first seen.
    doubted_since_ms: Option<i64>,
    /// The time that the database has.
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

    /// Looks at the clock; `stored_ms` is the time that the database has, for the first look. Gives the
    /// time that is to be stored now, if one is.
    pub(super) fn look(&self, stored_ms: Option<i64>) -> Option<i64> {
        let now = Moment {
            wall_ms: self.clocks.wall_ms(),
            passed_ms: self.clocks.passed_ms(),
        };
        let mut state = self.lock();
        let doubt = match state.looked.replace(now) {
            None => state.first(now, stored_ms),
            Some(before) => state.next(before, now),
        };
        if let Some(why) = doubt {
            tracing::warn!(
                "the clock {why}: nothing is pruned and no id expires until the time has held for an hour"
            );
        }
        if state.doubted_since_ms.is_some() {
            return None;
        }
        state.believed = Some(now);
        let due = |stored: i64| now.wall_ms.abs_diff(stored) >= STORE_EVERY_MS.unsigned_abs();
        state.stored_ms.is_none_or(due).then_some(now.wall_ms)
    }

    /// Notes that the time is stored.
    pub(super) fn stored(&self, at_ms: i64) {
        self.lock().stored_ms = Some(at_ms);
    }

    /// Whether ages can be measured by it.
    pub(super) fn is_believed(&self) -> bool {
        let state = self.lock();
        state.looked.is_some() && state.doubted_since_ms.is_none()
    }

    /// Now, for records: milliseconds since 1970 UTC, from 0 to [`MS_MAX`]. While the clock is doubted,
    /// the later of its time and what the last one believed has become.
    pub(super) fn now_ms(&self) -> i64 {
        let state = self.lock();
        let wall_ms = self.clocks.wall_ms();
        match (state.believed, state.doubted_since_ms) {
            (Some(believed), Some(_)) => believed.at(self.clocks.passed_ms()).max(wall_ms),
            _ => wall_ms,
        }
    }

    /// The time now, and the dates of records that can be.
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
    /// Why the time of the first look is doubted, if it is.
    fn first(&mut self, now: Moment, stored_ms: Option<i64>) -> Option<String> {
        self.stored_ms = stored_ms;
        let (wall, says) = (now.wall_ms, text(now.wall_ms));
        let why = match stored_ms {
            Some(stored) if wall < stored.saturating_sub(TOLERANCE_MS) => {
                format!("says {says}, before the last time seen, {}", text(stored))
            }
            Some(stored) if wall > stored.saturating_add(AHEAD_MAX_MS) => format!(
                "says {says}, more than a year after the last time seen, {}",
                text(stored)
            ),
            _ if !(SET_FROM_MS..MS_MAX).contains(&wall) => format!("is not set: it says {says}"),
            _ => return None,
        };
        self.doubted_since_ms = Some(now.passed_ms);
        self.believed = stored_ms.map(|stored_ms| Moment {
            wall_ms: stored_ms,
            passed_ms: now.passed_ms,
        });
        Some(why)
    }

    /// Why the time is doubted from now on, if it is.
    fn next(&mut self, before: Moment, now: Moment) -> Option<String> {
        let near = |expected: i64| now.wall_ms.abs_diff(expected) <= TOLERANCE_MS.unsigned_abs();
        let expected = before.at(now.passed_ms);
        let says = text(now.wall_ms);
        if let Some(since) = self.doubted_since_ms {
            let is_set = (SET_FROM_MS..MS_MAX).contains(&now.wall_ms);
            let is_back = self.believed.is_some_and(|at| near(at.at(now.passed_ms)));
            if is_back {
                self.doubted_since_ms = None;
                tracing::info!("the clock is back at {says}, where it was expected");
            } else if !near(expected) {
                self.doubted_since_ms = Some(now.passed_ms);
                return Some(format!("jumped from {} to {says}", text(expected)));
            } else if is_set && now.passed_ms.saturating_sub(since) >= HELD_MS {
                self.doubted_since_ms = None;
                tracing::info!("the clock has held for an hour; {says} is believed");
            }
            return None;
        }
        if near(expected) {
            return None;
        }
        self.doubted_since_ms = Some(now.passed_ms);
        Some(format!("jumped from {} to {says}", text(expected)))
    }
}

fn text(ms: i64) -> String {
    timestamp::rfc3339_seconds(timestamp::of_ms(ms))
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::*;

    /// Clocks that a test sets.
    #[derive(Clone, Debug, Default)]
    pub(in crate::processor) struct Fake {
        wall_ms: Arc<AtomicI64>,
        passed_ms: Arc<AtomicI64>,
    }

    impl Fake {
        pub(in crate::processor) fn at(wall_ms: i64) -> Self {
            let fake = Self::default();
            fake.set(wall_ms);
            fake
        }

        pub(in crate::processor) fn set(&self, wall_ms: i64) {
            self.wall_ms.store(wall_ms, Ordering::Relaxed);
        }

        pub(in crate::processor) fn pass(&self, ms: i64) {
            self.wall_ms.fetch_add(ms, Ordering::Relaxed);
            self.passed_ms.fetch_add(ms, Ordering::Relaxed);
        }
    }

    impl Clocks for Fake {
        fn wall_ms(&self) -> i64 {
            self.wall_ms.load(Ordering::Relaxed)
        }

        fn passed_ms(&self) -> i64 {
            self.passed_ms.load(Ordering::Relaxed)
        }
    }

    pub(in crate::processor) const NOW: i64 = 1_795_329_660_000;
    pub(in crate::processor) const MINUTE: i64 = 60_000;
    pub(in crate::processor) const HOUR: i64 = 60 * MINUTE;
    const DAY: i64 = 24 * HOUR;

    fn started(wall_ms: i64, stored_ms: Option<i64>) -> (Clock, Fake) {
        let fake = Fake::at(wall_ms);
        let clock = Clock::of(Box::new(fake.clone()));
        clock.look(stored_ms);
        (clock, fake)
    }

    /// Looks each minute of `ms`.
    fn hold(clock: &Clock, fake: &Fake, ms: i64) {
        for _ in 0..ms / MINUTE {
            fake.pass(MINUTE);
            clock.look(None);
        }
    }

    #[test]
    fn a_time_that_can_be_is_believed_at_once() {
        for stored in [
            None,
            Some(NOW),
            Some(NOW + MINUTE),
            Some(NOW - 7 * DAY),
            Some(NOW - 365 * DAY),
        ] {
            let (clock, _) = started(NOW, stored);
            assert!(clock.is_believed(), "{stored:?}");
            assert_eq!(clock.now_ms(), NOW);
        }
        let never_looked = Clock::of(Box::new(Fake::at(NOW)));
        assert!(!never_looked.is_believed());
    }

    #[test]
    fn a_time_that_cannot_be_is_believed_after_an_hour() {
        for (wall, stored) in [
            (NOW, Some(NOW + 2 * MINUTE)),
            (NOW, Some(NOW - 367 * DAY)),
            (NOW, Some(NOW + 1000 * DAY)),
        ] {
            let (clock, fake) = started(wall, stored);
            assert!(!clock.is_believed(), "{stored:?}");
            let later = stored.expect("stored").max(wall);
            assert_eq!(clock.now_ms(), later, "no record looks older than it is");
            hold(&clock, &fake, HOUR - MINUTE);
            assert!(!clock.is_believed(), "{stored:?}");
            assert_eq!(clock.now_ms(), later + HOUR - MINUTE);
            hold(&clock, &fake, MINUTE);
            assert!(clock.is_believed(), "{stored:?}");
            assert_eq!(clock.now_ms(), wall + HOUR);
        }
    }

    #[test]
    fn a_clock_that_is_not_set_is_never_believed() {
        for wall in [0, SET_FROM_MS - 2 * DAY, MS_MAX] {
            let (clock, fake) = started(wall, None);
            hold(&clock, &fake, 2 * HOUR);
            assert!(!clock.is_believed(), "{wall}");
            fake.set(NOW);
            clock.look(None);
            assert!(!clock.is_believed(), "set now, it must hold");
            hold(&clock, &fake, HOUR);
            assert!(clock.is_believed());
        }
    }

    #[test]
    fn a_jump_is_doubted_and_sleep_is_none() {
        let (clock, fake) = started(NOW, None);
        fake.pass(7 * DAY);
        assert!(clock.look(None).is_some(), "a week of sleep");
        assert!(clock.is_believed());
        for jump in [HOUR, -HOUR, 2 * MINUTE, -2 * MINUTE, 1000 * DAY] {
            let before = fake.wall_ms();
            fake.set(before + jump);
            assert_eq!(clock.look(None), None, "not stored");
            assert!(!clock.is_believed(), "{jump}");
            assert_eq!(clock.now_ms(), before.max(before + jump));
            // Another jump, and it must hold from there.
            hold(&clock, &fake, HOUR / 2);
            fake.set(fake.wall_ms() + jump);
            clock.look(None);
            hold(&clock, &fake, HOUR / 2);
            assert!(!clock.is_believed(), "{jump}");
            // Back where it was expected.
            fake.set(before + HOUR);
            clock.look(None);
            assert!(clock.is_believed(), "{jump}");
        }
        fake.set(fake.wall_ms() + MINUTE / 2);
        clock.look(None);
        assert!(clock.is_believed(), "a correction");
    }

    #[test]
    fn the_time_is_stored_now_and_then() {
        let fake = Fake::at(NOW);
        let clock = Clock::of(Box::new(fake.clone()));
        assert_eq!(clock.look(None), Some(NOW));
        assert_eq!(clock.look(None), Some(NOW), "until it is stored");
        clock.stored(NOW);
        assert_eq!(clock.look(None), None);
        fake.pass(STORE_EVERY_MS);
        assert_eq!(clock.look(None), Some(NOW + STORE_EVERY_MS));
    }

    #[test]
    fn this_machine_counts_up() {
        let clock = Clock::default();
        clock.look(None);
        assert!(Machine.passed_ms() > 0 && clock.now_ms() > 0);
    }
}
