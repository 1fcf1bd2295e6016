//! A thread pool: a fixed number of named threads with a bounded queue.
//!
//! It runs work that takes too long for the I/O thread: parsing large bodies, decompressing, reading
//! the database. A panic ends the job, not the thread. If the queue is full, a new job is dropped.

use std::convert::Infallible;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender};

/// Work for one of the threads.
pub(super) type Job = Box<dyn FnOnce() + Send>;

pub(super) struct Workers {
    /// `None` after [`Self::stop`].
    jobs: Mutex<Option<Sender<Job>>>,
    /// Disconnected when the last thread ends.
    running: Receiver<Infallible>,
}

impl Workers {
    /// Starts the threads `name-1`, `name-2`, ...; the queue holds `queue_max` jobs.
    pub(super) fn start(name: &str, threads: usize, queue_max: usize) -> io::Result<Self> {
        let (jobs, queue) = crossbeam_channel::bounded::<Job>(queue_max);
        let (runs, running) = crossbeam_channel::bounded(0);
        for number in 1..=threads {
            let (queue, runs) = (queue.clone(), runs.clone());
            thread::Builder::new()
                .name(format!("{name}-{number}"))
                .spawn(move || {
                    let _until_it_ends = runs;
                    for job in queue {
                        // A panic drops the job's request, which answers it with 500.
                        let _panicked = catch_unwind(AssertUnwindSafe(job));
                    }
                })?;
        }
        Ok(Self {
            jobs: Mutex::new(Some(jobs)),
            running,
        })
    }

    /// Queues the job. Drops it if the queue is full or the pool was stopped.
    pub(super) fn submit(&self, job: Job) {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(jobs) = jobs.as_ref() {
            let _dropped_if_full = jobs.try_send(job);
        }
    }

    /// Stops accepting jobs, and waits until `deadline` for the queued ones.
    pub(super) fn stop(&self, deadline: Instant) {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        drop(jobs.take());
        drop(jobs);
        let _ended_or_late = self.running.recv_deadline(deadline);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    const PATIENCE: Duration = Duration::from_secs(20);

    #[test]
    fn a_panic_is_contained_and_a_stop_finishes_what_is_queued() {
        let workers = Workers::start("test", 1, 8).expect("started");
        let (done, finished) = mpsc::channel();
        for panics in [true, false, true, false] {
            let done = done.clone();
            workers.submit(Box::new(move || {
                assert!(!panics, "the job panics");
                done.send(()).expect("the test waits");
            }));
        }
        workers.stop(Instant::now() + PATIENCE);
        drop(done);
        assert_eq!(finished.iter().count(), 2);
        let (late, ran) = mpsc::channel::<()>();
        workers.submit(Box::new(move || late.send(()).expect("the test waits")));
        assert!(ran.recv().is_err(), "a job after the stop is dropped");
    }

    #[test]
    fn a_job_is_dropped_if_the_queue_is_full() {
        let workers = Workers::start("test", 1, 1).expect("started");
        let (begun, begins) = mpsc::channel();
        let (end, ends) = mpsc::channel::<()>();
        workers.submit(Box::new(move || {
            begun.send(()).expect("the test waits");
            assert!(ends.recv().is_err(), "the sender is dropped");
        }));
        begins.recv_timeout(PATIENCE).expect("it runs");
        let (done, finished) = mpsc::channel();
        for number in 0..3 {
            let done = done.clone();
            workers.submit(Box::new(move || {
                done.send(number).expect("the test waits");
            }));
        }
        drop((done, end));
        assert_eq!(finished.iter().collect::<Vec<_>>(), [0], "one is queued");
        workers.stop(Instant::now() + PATIENCE);
    }
}
