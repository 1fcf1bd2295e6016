//! The threads that scan besides the calling one, and their queue of jobs.
//!
//! The calling thread works, too. If it only waited, the kernel would often start the others on one core and
//! leave its own core idle for a tenth of a second.
//!
//! A panic is an error of the job, on every thread; the threads stay usable. The queue is bounded, so handing over a
//! job may block until a thread is free.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::{Builder, JoinHandle};

use crossbeam_channel::{Receiver, Sender};

use super::scan::ChunkScanner;

/// The threads `process-scan-N`; they end when this is dropped.
pub(super) struct Threads {
    /// `None` only in `drop`.
    jobs: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

/// Work for a thread, with its scanner.
type Job = Box<dyn FnOnce(&mut ChunkScanner) + Send>;

impl Threads {
    /// Starts so many threads, or none.
    pub(super) fn start(count: usize) -> io::Result<Self> {
        let (jobs, received) = crossbeam_channel::bounded::<Job>(count);
        let threads = (0..count)
            .map(|number| {
                let received = received.clone();
                Builder::new()
                    .name(format!("process-scan-{number}"))
                    .spawn(move || work(&received))
            })
            .collect::<io::Result<Vec<_>>>()?;
        Ok(Self {
            jobs: Some(jobs),
            threads,
        })
    }

    pub(super) fn len(&self) -> usize {
        self.threads.len()
    }

    /// Gives a job to the threads, which send its result under `index`.
    pub(super) fn submit<T: Send + 'static>(
        &self,
        index: usize,
        results: &Sender<(usize, io::Result<T>)>,
        work: impl FnOnce(&mut ChunkScanner) -> io::Result<T> + Send + 'static,
    ) -> io::Result<()> {
        let results = results.clone();
        let job: Job = Box::new(move |scanner| {
            let done = contained(|| work(scanner));
            // The receiver is closed if another job of the range has failed.
            let _failed = results.send((index, done));
        });
        let sent = self
            .jobs
            .as_ref()
            .is_some_and(|jobs| jobs.send(job).is_ok());
        if sent {
            Ok(())
        } else {
            Err(io::Error::other("the scanning threads have ended"))
        }
    }

    /// Runs `work` for each of `parts` parts, at least one, on the threads and this one, and waits for all of
    /// them.
    pub(super) fn in_parallel<T: Send + 'static>(
        &self,
        parts: usize,
        work: impl Fn(usize) -> T + Clone + Send + 'static,
    ) -> io::Result<Vec<T>> {
        let (sender, received) = crossbeam_channel::unbounded();
        for part in 1..parts {
            let work = work.clone();
            self.submit(part, &sender, move |_| Ok(work(part)))?;
        }
        drop(sender);
        let first = contained(|| Ok(work(0)));
        let others = received.iter().map(|(_, done)| done);
        std::iter::once(first).chain(others).collect()
    }
}

/// Does a part of the work of a range; a panic is an error of that part.
pub(super) fn contained<T>(work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        Err(io::Error::other(
            "a scanning thread panicked; please report this",
        ))
    })
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // `work` reports a panic as an error of its chunk.
            drop(thread.join());
        }
    }
}

fn work(jobs: &Receiver<Job>) {
    let mut scanner = ChunkScanner::new();
    for job in jobs {
        job(&mut scanner);
    }
}
