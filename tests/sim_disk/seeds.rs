//! Random choices of a case, and cases for many seeds.

use std::sync::atomic::{AtomicU64, Ordering};

/// A small generator of random choices (SplitMix64): the same seed gives the same crash.
pub(crate) struct Choices(fastrand::Rng);

impl Choices {
    pub(crate) fn new(seed: u64) -> Self {
        Self(fastrand::Rng::with_seed(seed))
    }

    /// A number below `bound`, which must not be 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0.usize(..bound)
    }
}

/// Runs `case` for each seed below `default` and returns the number of seeds; a failure names its
/// seed. `TALLYLINE_TEST_SEEDS=FROM..TO` selects other seeds: for a longer run, or to repeat a
/// failed one.
pub(crate) fn for_seeds(default: u64, case: fn(u64)) -> u64 {
    let (from, to) = std::env::var("TALLYLINE_TEST_SEEDS").map_or((0, default), |seeds| {
        let (from, to) = seeds.split_once("..").expect("FROM..TO");
        (from.parse().unwrap(), to.parse().unwrap())
    });
    // More threads than processors, because cases wait at times.
    let threads = std::thread::available_parallelism().map_or(2, |cores| cores.get() * 2);
    let next = AtomicU64::new(from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= to {
                        break;
                    }
                    if std::panic::catch_unwind(|| case(seed)).is_err() {
                        next.store(to, Ordering::Relaxed);
                        panic!("seed {seed}");
                    }
                }
            });
        }
    });
    to - from
}
