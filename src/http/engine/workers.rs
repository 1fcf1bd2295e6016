//! A fixed number of named threads behind a bounded queue.
//!
//! They do what would hold up the I/O thread: parse large bodies, inflate, read the database. A job
//! that panics is contained: the thread goes on. Past the queue's bound a job is dropped.

use std::convert::Infallible;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender};

/// Something to do for one of the threads.
pub(super) type Job = Box<dyn FnOnce() + Send>;

/// The threads.
pub(super) struct Workers {
    /// `None` once stopped.
    jobs: Mutex<Option<Sender<Job>>>,
    /// Disconnected when all threads have ended.
    running: Receiver<Infallible>,
}

impl Workers {
    /// Starts `threads` threads named `name-1` and so on; `queue_max` jobs may wait.
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
                        // The job's request answers 500 when it is dropped.
                        let _panicked = catch_unwind(AssertUnwindSafe(job));
                    }
                })?;
        }
        Ok(Self {
            jobs: Mutex::new(Some(jobs)),
            running,
        })
    }

    /// Queues the job, or drops it where the queue is full or the threads were stopped.
    pub(super) fn submit(&self, job: Job) {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(jobs) = jobs.as_ref() {
            let _dropped_if_full = jobs.try_send(job);
        }
    }

    /// Takes no more jobs, and waits until `deadline` for those there are.
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
        let (done, told) = mpsc::channel();
        for panics in [true, false, true, false] {
            let done = done.clone();
            workers.submit(Box::new(move || {
                assert!(!panics, "as a handler might");
                done.send(()).expect("the test waits");
            }));
        }
        workers.stop(Instant::now() + PATIENCE);
        drop(done);
        assert_eq!(told.iter().count(), 2);
        let (late, ran) = mpsc::channel::<()>();
        workers.submit(Box::new(move || late.send(()).expect("the test waits")));
        assert!(ran.recv().is_err(), "after a stop it is dropped");
    }

    #[test]
    fn past_its_bound_a_job_is_dropped() {
        let workers = Workers::start("test", 1, 1).expect("started");
        let (begun, begins) = mpsc::channel();
        let (end, ends) = mpsc::channel::<()>();
        workers.submit(Box::new(move || {
            begun.send(()).expect("the test waits");
            assert!(ends.recv().is_err(), "the end is dropped");
        }));
        begins.recv_timeout(PATIENCE).expect("it runs");
        let (done, told) = mpsc::channel();
        for number in 0..3 {
            let done = done.clone();
            workers.submit(Box::new(move || {
                done.send(number).expect("the test waits");
            }));
        }
        drop((done, end));
        assert_eq!(told.iter().collect::<Vec<_>>(), [0], "one is queued");
        workers.stop(Instant::now() + PATIENCE);
    }
}
