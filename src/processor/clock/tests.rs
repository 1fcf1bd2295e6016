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
    clock.check(stored_ms);
    (clock, fake)
}

/// Checks once per minute for `ms`.
fn hold(clock: &Clock, fake: &Fake, ms: i64) {
    for _ in 0..ms / MINUTE {
        fake.pass(MINUTE);
        clock.check(None);
    }
}

#[test]
fn a_plausible_time_is_trusted_at_once() {
    for stored in [
        None,
        Some(NOW),
        Some(NOW + MINUTE),
        Some(NOW - 7 * DAY),
        Some(NOW - 365 * DAY),
    ] {
        let (clock, _) = started(NOW, stored);
        assert!(clock.is_trusted(), "{stored:?}");
        assert_eq!(clock.now_ms(), NOW);
    }
    let never_checked = Clock::of(Box::new(Fake::at(NOW)));
    assert!(!never_checked.is_trusted());
}

#[test]
fn an_implausible_time_is_trusted_after_an_hour() {
    for (wall, stored) in [
        (NOW, Some(NOW + 2 * MINUTE)),
        (NOW, Some(NOW - 367 * DAY)),
        (NOW, Some(NOW + 1000 * DAY)),
    ] {
        let (clock, fake) = started(wall, stored);
        assert!(!clock.is_trusted(), "{stored:?}");
        let later = stored.expect("stored").max(wall);
        assert_eq!(clock.now_ms(), later, "no record appears older than it is");
        hold(&clock, &fake, HOUR - MINUTE);
        assert!(!clock.is_trusted(), "{stored:?}");
        assert_eq!(clock.now_ms(), later + HOUR - MINUTE);
        hold(&clock, &fake, MINUTE);
        assert!(clock.is_trusted(), "{stored:?}");
        assert_eq!(clock.now_ms(), wall + HOUR);
    }
}

#[test]
fn a_clock_that_is_not_set_is_never_trusted() {
    for wall in [0, SET_FROM_MS - 2 * DAY, MS_MAX] {
        let (clock, fake) = started(wall, None);
        hold(&clock, &fake, 2 * HOUR);
        assert!(!clock.is_trusted(), "{wall}");
        fake.set(NOW);
        clock.check(None);
        assert!(
            !clock.is_trusted(),
            "set just now, so not consistent for an hour yet"
        );
        hold(&clock, &fake, HOUR);
        assert!(clock.is_trusted());
    }
}

#[test]
fn a_jump_is_doubted_and_suspend_is_not_a_jump() {
    let (clock, fake) = started(NOW, None);
    fake.pass(7 * DAY);
    assert!(clock.check(None).is_some(), "a week in suspend");
    assert!(clock.is_trusted());
    for jump in [HOUR, -HOUR, 2 * MINUTE, -2 * MINUTE, 1000 * DAY] {
        let before = fake.wall_ms();
        fake.set(before + jump);
        assert_eq!(clock.check(None), None, "not stored");
        assert!(!clock.is_trusted(), "{jump}");
        assert_eq!(clock.now_ms(), before.max(before + jump));
        // After another jump the hour starts again.
        hold(&clock, &fake, HOUR / 2);
        fake.set(fake.wall_ms() + jump);
        clock.check(None);
        hold(&clock, &fake, HOUR / 2);
        assert!(!clock.is_trusted(), "{jump}");
        // Back at the expected time.
        fake.set(before + HOUR);
        clock.check(None);
        assert!(clock.is_trusted(), "{jump}");
    }
    fake.set(fake.wall_ms() + MINUTE / 2);
    clock.check(None);
    assert!(clock.is_trusted(), "a small correction");
}

#[test]
fn the_time_is_stored_at_the_start_and_every_ten_minutes() {
    let fake = Fake::at(NOW);
    let clock = Clock::of(Box::new(fake.clone()));
    assert_eq!(clock.check(Some(NOW - MINUTE)), Some(NOW));
    assert_eq!(clock.check(None), Some(NOW), "until it is stored");
    clock.stored(NOW);
    assert_eq!(clock.check(None), None);
    fake.pass(STORE_EVERY_MS);
    assert_eq!(clock.check(None), Some(NOW + STORE_EVERY_MS));
}

#[test]
fn the_counter_of_this_machine_runs() {
    let clock = Clock::default();
    clock.check(None);
    assert!(Machine.passed_ms() > 0 && clock.now_ms() > 0);
}
