//! A fixed number of named threads behind a bounded queue.
//!
//! They do what would hold up the I/O thread: parse large bodies, inflate, read the database. A job
//! that panics is contained: the thread goes on. Past the queue's bound a job is handed back.

use std::convert::Infallible;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, TrySendError};

/// Threads for jobs of type `J`, all run by one function.
pub(super) struct Workers<J> {
    /// `None` once stopped.
    jobs: Mutex<Option<Sender<J>>>,
    /// Disconnected when all threads have ended.
    running: Receiver<Infallible>,
}

impl<J: Send + 'static> Workers<J> {
    /// Starts `threads` threads named `name-1` and so on; `queue_max` jobs may wait.
    pub(super) fn start(
        name: &str,
        threads: usize,
        queue_max: usize,
        run: fn(J),
    ) -> io::Result<Self> {
        let (jobs, queue) = crossbeam_channel::bounded(queue_max);
        let (runs, running) = crossbeam_channel::bounded(0);
        for number in 1..=threads {
            let (queue, runs) = (queue.clone(), runs.clone());
            thread::Builder::new()
                .name(format!("{name}-{number}"))
                .spawn(move || {
                    let _until_it_ends = runs;
                    for job in queue {
                        // The job's request answers 500 when it is dropped.
                        let _panicked = catch_unwind(AssertUnwindSafe(|| run(job)));
                    }
                })?;
        }
        Ok(Self {
            jobs: Mutex::new(Some(jobs)),
            running,
        })
    }

    /// Queues the job, or hands it back where the queue is full or the threads were stopped.
    pub(super) fn submit(&self, job: J) -> Result<(), J> {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(jobs) = jobs.as_ref() else {
            return Err(job);
        };
        jobs.try_send(job).map_err(TrySendError::into_inner)
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

    enum Job {
        Wait(mpsc::Receiver<()>),
        Tell(mpsc::Sender<()>),
        Panic,
    }

    fn run(job: Job) {
        match job {
            Job::Wait(end) => drop(end.recv()),
            Job::Tell(done) => done.send(()).expect("the test waits"),
            Job::Panic => panic!("as a handler might"),
        }
    }

    #[test]
    fn a_panic_is_contained_and_a_stop_finishes_what_is_queued() {
        let workers = Workers::start("test", 1, 8, run).expect("started");
        let (done, told) = mpsc::channel();
        for job in [
            Job::Panic,
            Job::Tell(done.clone()),
            Job::Panic,
            Job::Tell(done),
        ] {
            assert!(workers.submit(job).is_ok());
        }
        workers.stop(Instant::now() + PATIENCE);
        assert_eq!(told.iter().count(), 2);
        assert!(workers.submit(Job::Panic).is_err());
    }

    #[test]
    fn past_its_bound_a_job_is_handed_back() {
        let workers = Workers::start("test", 1, 1, run).expect("started");
        let (ends, mut waits): (Vec<_>, Vec<_>) = (0..3).map(|_| mpsc::channel()).unzip();
        // One runs, one is queued; nobody else finds room.
        let mut refused = 0;
        while refused < 1 {
            match workers.submit(Job::Wait(waits.pop().expect("enough"))) {
                Ok(()) => {}
                Err(Job::Wait(back)) => {
                    refused += usize::from(waits.is_empty());
                    waits.push(back);
                    thread::yield_now();
                }
                Err(_) => unreachable!(),
            }
        }
        let started = Instant::now();
        workers.stop(started + Duration::from_millis(1));
        drop(ends);
        workers.stop(started + PATIENCE);
    }
}
