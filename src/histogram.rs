//! Durations, counted in fixed buckets. Any thread may add one; no method blocks.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds of the buckets, inclusive, in microseconds. An acknowledgement takes about one
/// fdatasync (0.1 ms on an SSD, 10 ms on a hard disk), a flush up to seconds.
const BOUNDS_US: [u64; 15] = [
    250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000,
];

/// A histogram of durations with fixed buckets.
#[derive(Debug, Default)]
pub struct Histogram {
    /// One for each bound, and one for durations above the last bound.
    counts: [AtomicU64; BOUNDS_US.len() + 1],
    sum_ns: AtomicU64,
}

/// A copy of a histogram.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HistogramSnapshot {
    counts: [u64; BOUNDS_US.len() + 1],
    sum: Duration,
}

impl Histogram {
    /// Adds one duration: two atomic additions, no lock.
    pub fn observe(&self, duration: Duration) {
        let bucket = BOUNDS_US.partition_point(|&bound| Duration::from_micros(bound) < duration);
        if let Some(count) = self.counts.get(bucket) {
            count.fetch_add(1, Relaxed);
        }
        let duration_ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.sum_ns.fetch_add(duration_ns, Relaxed);
    }

    /// Copies the histogram, one number after the other: durations that are added meanwhile may be
    /// in some of the numbers and not in others.
    pub fn snapshot(&self) -> HistogramSnapshot {
        HistogramSnapshot {
            counts: std::array::from_fn(|bucket| self.counts[bucket].load(Relaxed)),
            sum: Duration::from_nanos(self.sum_ns.load(Relaxed)),
        }
    }
}

impl HistogramSnapshot {
    /// The inclusive upper bound of each bucket (`None` for the last, which has none) and the number
    /// of durations in this bucket alone.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<Duration>, u64)> + '_ {
        let bounds = BOUNDS_US.iter().map(|us| Some(Duration::from_micros(*us)));
        bounds.chain([None]).zip(self.counts)
    }

    /// The sum of all durations.
    pub fn sum(&self) -> Duration {
        self.sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_fall_into_their_buckets() {
        let histogram = Histogram::default();
        for us in [1, 250, 251, 10_000_001] {
            histogram.observe(Duration::from_micros(us));
        }
        let snapshot = histogram.snapshot();
        let counts: Vec<u64> = snapshot.buckets().map(|(_, count)| count).collect();
        assert_eq!((counts[0], counts[1]), (2, 1));
        assert_eq!(snapshot.buckets().last(), Some((None, 1)));
        assert_eq!(snapshot.sum(), Duration::from_micros(10_000_503));
    }
}
