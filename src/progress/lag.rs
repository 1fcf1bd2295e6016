//! The age of the oldest acknowledged event that is not applied.

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
}

impl Lag {
    /// Nothing is acknowledged after `start`.
    pub(super) fn new(start: Position) -> Self {
        Self {
            acknowledged: VecDeque::new(),
            checked: (start, Instant::now()),
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

    /// Forgets what is applied, up to `applied`.
    pub(super) fn applied(&mut self, applied: Position) {
        while let Some((position, _)) = self.acknowledged.front()
            && *position <= applied
        {
            self.acknowledged.pop_front();
        }
    }

    /// The age of the oldest event that is not applied; zero if there is none. It may be too high by the
    /// interval of the checks, but never too low.
    pub(super) fn age(&self) -> Duration {
        let oldest = self.acknowledged.front();
        oldest.map_or(Duration::ZERO, |(_, since)| since.elapsed())
    }
}
