//! Times as RFC 3339 text and as milliseconds since 1970. Only [`now_ms`] reads the clock.
//!
//! A clock that is not set may show any year, and `humantime` panics for times outside the years
//! 1970 to 9999. Every function here therefore clamps such a time to the nearest one inside. Whether
//! a time is plausible is decided by the caller.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// 9999-12-31T23:59:59.999Z in milliseconds since 1970.
pub const MS_MAX: i64 = 253_402_300_799_999;

/// The current time in milliseconds since 1970 UTC, from 0 to [`MS_MAX`].
pub fn now_ms() -> i64 {
    to_ms(SystemTime::now())
}

/// A time in milliseconds since 1970 UTC, clamped to 0 to [`MS_MAX`].
pub fn to_ms(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).map_or(MS_MAX, |ms| ms.min(MS_MAX))
}

/// The time `ms` milliseconds after 1970 UTC, clamped to the years 1970 to 9999.
pub fn of_ms(ms: i64) -> SystemTime {
    let since = Duration::from_millis(u64::try_from(ms.clamp(0, MS_MAX)).unwrap_or_default());
    UNIX_EPOCH.checked_add(since).unwrap_or(UNIX_EPOCH)
}

/// The time as text with milliseconds: `2026-11-22T06:41:00.123Z`.
pub fn rfc3339_millis(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(of_ms(to_ms(time))).to_string()
}

/// The time `ms` milliseconds after 1970 UTC as [`rfc3339_millis`] writes it.
pub fn rfc3339_of_ms(ms: i64) -> String {
    rfc3339_millis(of_ms(ms))
}

/// The time as text with seconds, rounded down: `2026-11-22T06:41:00Z`.
pub fn rfc3339_seconds(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(of_ms(to_ms(time))).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_outside_1970_to_9999_is_clamped() {
        // Fails if formatting a time outside these years panics.
        let second = Duration::from_secs(1);
        let before = UNIX_EPOCH.checked_sub(second).expect("a time");
        let after = of_ms(MS_MAX).checked_add(second).expect("a time");
        for (time, text) in [
            (before, "1970-01-01T00:00:00.000Z"),
            (after, "9999-12-31T23:59:59.999Z"),
            (of_ms(1_795_329_660_123), "2026-11-22T06:41:00.123Z"),
            (of_ms(i64::MIN), "1970-01-01T00:00:00.000Z"),
            (of_ms(i64::MAX), "9999-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(rfc3339_millis(time), text);
            let (seconds, _) = text.split_once('.').expect("a fraction");
            assert_eq!(rfc3339_seconds(time), format!("{seconds}Z"));
        }
        assert_eq!((to_ms(before), to_ms(after)), (0, MS_MAX));
    }
}
