//! The age of the oldest line that is not applied.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::data_dir::segment::Position;

/// Most times of acknowledgement that are kept.
const ACKNOWLEDGED_MAX: usize = 4096;

pub(super) struct Lag {
    /// (position, earliest time of acknowledgement) of positions not yet applied, ascending.
    acknowledged: VecDeque<(Position, Instant)>,
    /// The durable end at the last check, and the time of the check.
    checked: (Position, Instant),
    /// See `Settled::found_since`.
    found_since: Option<Instant>,
}

impl Lag {
    /// Nothing is acknowledged after `start`.
    pub(super) fn new(start: Position) -> Self {
        Self {
            acknowledged: VecDeque::new(),
            checked: (start, Instant::now()),
            found_since: None,
        }
    }

    /// Records the durable end at a check at the time `now`.
    pub(super) fn durable(&mut self, end: Position, applied: Position, now: Instant) {
        let (before, since) = self.checked;
        if end > before && end > applied {
            if self.acknowledged.len() >= ACKNOWLEDGED_MAX {
                // The oldest is the lag and is kept; the lag becomes coarser where one is dropped.
                self.acknowledged.remove(1);
            }
            // The first of these events was acknowledged after the last check.
            self.acknowledged.push_back((end, since));
        }
        self.checked = (end, now);
    }

    /// Forgets what is applied, up to `applied`. `found_since` is [`Settled::found_since`].
    ///
    /// [`Settled::found_since`]: super::Settled::found_since
    pub(super) fn applied(&mut self, applied: Position, found_since: Option<Instant>) {
        self.found_since = found_since;
        while let Some((position, _)) = self.acknowledged.front()
            && *position <= applied
        {
            self.acknowledged.pop_front();
        }
    }

    /// The age of the oldest line that is not applied, since it was acknowledged, or since its file was found
    /// if this process did not append it; zero if there is none. It may be too high by the interval of the
    /// checks, but never too low.
    pub(super) fn age(&self) -> Duration {
        let acknowledged = self.acknowledged.front().map(|(_, since)| *since);
        let oldest = [acknowledged, self.found_since].into_iter().flatten().min();
        oldest.map_or(Duration::ZERO, |since| since.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_pending_line_may_be_of_an_imported_file() {
        let at = |offset| Position { segment: 1, offset };
        let ago = |seconds| Instant::now().checked_sub(Duration::from_secs(seconds));
        let about = |lag: &Lag, seconds| (seconds..seconds + 10).contains(&lag.age().as_secs());
        let mut lag = Lag::new(at(0));
        assert_eq!(lag.age(), Duration::ZERO, "nothing is pending");
        lag.applied(at(0), ago(50));
        assert!(about(&lag, 50));
        lag.checked.1 = ago(70).expect("a time");
        lag.durable(at(10), at(0), Instant::now());
        assert!(about(&lag, 70));
        lag.applied(at(10), ago(50));
        assert!(about(&lag, 50));
        lag.applied(at(10), None);
        assert_eq!(lag.age(), Duration::ZERO, "everything is applied");
    }
}
