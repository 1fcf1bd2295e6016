//! The rate of sending (`--rate`): the size of batches, and the time between them.

use std::time::{Duration, Instant};

use crate::cli::config::SendConfig;
use crate::shutdown::Shutdown;

/// Number of requests per second with `--rate`, for an even rate.
const PACED_REQUESTS_PER_SECOND: u64 = 10;
/// A send that is behind its rate by more than this does not catch up.
const PACE_LAG_MAX: Duration = Duration::from_millis(100);

/// Maximum lines of a batch. With `--rate`, batches are small enough for an even rate.
pub(super) fn lines_max(config: &SendConfig) -> u32 {
    let paced = config
        .rate
        .map_or(u64::MAX, |rate| rate.get() / PACED_REQUESTS_PER_SECOND);
    let paced = u32::try_from(paced).unwrap_or(u32::MAX);
    config.batch.get().min(paced.max(1))
}

/// Enforces a rate: a batch waits until the time of all events before it has passed.
pub(super) struct Pace {
    events_per_second: u64,
    next: Instant,
}

impl Pace {
    pub(super) fn new(events_per_second: u64) -> Self {
        Self {
            events_per_second,
            next: Instant::now(),
        }
    }

    /// Waits until the batch is due; true: a stop was requested meanwhile.
    pub(super) fn wait(&mut self, events: u64, stop: &Shutdown) -> bool {
        let now = Instant::now();
        // A pause that was too long is made up for; the time of a slow server is not.
        let earliest = now.checked_sub(PACE_LAG_MAX).unwrap_or(now);
        self.next = self.next.max(earliest);
        let stopped = stop.wait(self.next.saturating_duration_since(now));
        #[expect(
            clippy::cast_precision_loss,
            reason = "a pause needs no exact nanosecond"
        )]
        let cost = events as f64 / self.events_per_second as f64;
        self.next += Duration::from_secs_f64(cost);
        stopped
    }
}
