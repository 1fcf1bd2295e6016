//! The counters of the last 15 minutes, one sample a second, for `GET /history` and the status page.
//!
//! The thread `http-history` takes the samples; it ends when the [`Sampler`] is dropped. The samples are in
//! memory only and start again with the process.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender};
use serde::Serialize;

/// The time between two samples.
const INTERVAL: Duration = Duration::from_secs(1);
/// The number of samples: 15 minutes.
const SAMPLES_MAX: usize = 900;

/// The counters at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Sample {
    /// Milliseconds since 1970 UTC.
    pub(super) at_ms: i64,
    /// Events accepted since the start.
    pub(super) accepted: u64,
    /// Lines applied, duplicates and rejected lines, all time.
    pub(super) processed: u64,
    /// Lines not yet applied.
    pub(super) pending: u64,
    /// Age of the oldest event that is not yet applied, in seconds.
    pub(super) lag_seconds: f64,
}

/// The samples, the oldest first.
#[derive(Debug, Default)]
pub(super) struct History(Mutex<VecDeque<Sample>>);

/// The samples as columns, which are a third of the size of objects.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Columns {
    at_ms: Vec<i64>,
    accepted: Vec<u64>,
    processed: Vec<u64>,
    pending: Vec<u64>,
    lag_seconds: Vec<f64>,
}

impl History {
    pub(super) fn add(&self, sample: Sample) {
        let mut samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if samples.len() == SAMPLES_MAX {
            samples.pop_front();
        }
        samples.push_back(sample);
    }

    /// All samples, oldest first.
    pub(super) fn columns(&self) -> Columns {
        let samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut columns = Columns::default();
        for sample in &*samples {
            columns.at_ms.push(sample.at_ms);
            columns.accepted.push(sample.accepted);
            columns.processed.push(sample.processed);
            columns.pending.push(sample.pending);
            columns.lag_seconds.push(sample.lag_seconds);
        }
        columns
    }
}

/// The running thread `http-history`.
#[derive(Debug)]
pub(super) struct Sampler {
    _ends_when_dropped: Sender<std::convert::Infallible>,
}

impl Sampler {
    /// Starts the thread. `sample` returns `None` while there are no counters yet.
    pub(super) fn start(
        history: Arc<History>,
        sample: impl Fn() -> Option<Sample> + Send + 'static,
    ) -> io::Result<Self> {
        let (sender, ended) = crossbeam_channel::bounded(0);
        std::thread::Builder::new()
            .name("http-history".into())
            .spawn(move || {
                let mut next = Instant::now();
                while ended.recv_deadline(next) == Err(RecvTimeoutError::Timeout) {
                    if let Some(sample) = sample() {
                        history.add(sample);
                    }
                    // Samples that are late, for example after a suspend, are left out.
                    next = (next + INTERVAL).max(Instant::now());
                }
            })?;
        Ok(Self {
            _ends_when_dropped: sender,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_samples_are_kept_in_order() {
        let history = History::default();
        for number in 0..1000 {
            history.add(Sample {
                accepted: number,
                ..Sample::default()
            });
        }
        let columns = history.columns();
        assert_eq!(columns.accepted, (100..1000).collect::<Vec<_>>());
        assert_eq!(columns.lag_seconds.len(), SAMPLES_MAX);
    }

    #[test]
    fn the_thread_samples_until_it_is_dropped() {
        let history = Arc::new(History::default());
        let (sender, receiver) = crossbeam_channel::unbounded();
        let sampler = Sampler::start(Arc::clone(&history), move || {
            sender.send(()).ok().map(|()| Sample::default())
        });
        let sampler = sampler.expect("a thread");
        let wait = Duration::from_secs(20);
        for _ in 0..2 {
            receiver.recv_timeout(wait).expect("a sample");
        }
        drop(sampler);
        // The thread has dropped its sender.
        while receiver.recv_timeout(wait).is_ok() {}
        assert_eq!(
            receiver.recv_timeout(wait),
            Err(RecvTimeoutError::Disconnected)
        );
        assert!(!history.columns().at_ms.is_empty());
    }
}
