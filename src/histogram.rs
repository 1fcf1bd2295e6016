//! How long things take, counted in fixed buckets: any thread adds, nobody waits.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds of a histogram's buckets, in microseconds: an acknowledgement takes about one
/// fdatasync (0.1 ms on a good disk, 10 ms on a spinning one), a flush up to seconds.
const BOUNDS_US: [u64; 15] = [
    250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000,
];

/// How long things took, in fixed buckets.
#[derive(Debug, Default)]
pub struct Histogram {
    /// One for each bound, and one for what lies above all of them.
    counts: [AtomicU64; BOUNDS_US.len() + 1],
    sum_ns: AtomicU64,
}

/// A histogram's figures at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HistogramSnapshot {
    counts: [u64; BOUNDS_US.len() + 1],
    sum: Duration,
}

impl Histogram {
    /// Adds one duration. Lock-free, two additions.
    pub fn observe(&self, took: Duration) {
        let bucket = BOUNDS_US.partition_point(|&bound| Duration::from_micros(bound) < took);
        if let Some(count) = self.counts.get(bucket) {
            count.fetch_add(1, Relaxed);
        }
        let took_ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.sum_ns.fetch_add(took_ns, Relaxed);
    }

    /// The figures now, read one after the other: a reader may see them a few observations out of
    /// step with each other, never wrong for good.
    pub fn snapshot(&self) -> HistogramSnapshot {
        HistogramSnapshot {
            counts: std::array::from_fn(|bucket| self.counts[bucket].load(Relaxed)),
            sum: Duration::from_nanos(self.sum_ns.load(Relaxed)),
        }
    }
}

impl HistogramSnapshot {
    /// Each bucket's upper bound, inclusive (`None`: none), and how many fell into it.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<Duration>, u64)> + '_ {
        let bounds = BOUNDS_US.iter().map(|us| Some(Duration::from_micros(*us)));
        bounds.chain([None]).zip(self.counts)
    }

    /// All of them added up.
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
