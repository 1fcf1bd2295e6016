//! A bounded, named crew of threads in front of a bounded queue.
//!
//! A job that blocks (a stalled upload, a client that never reads) must not hold up the jobs
//! behind it, so a crew grows while jobs wait and shrinks when they no longer do. What it grows
//! by is exact: waiting jobs and idle threads are counted under one lock, which is the very thing
//! the library's own pool gets wrong (defect 1). Past `queue_max` a job is handed back, never
//! queued without bound. A job that panics is contained: the thread goes on.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How a crew is sized.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    /// Threads that stay however idle.
    pub(super) threads_min: usize,
    /// Threads at most.
    pub(super) threads_max: usize,
    /// Jobs that may wait; one more is handed back.
    pub(super) queue_max: usize,
    /// How long the oldest job waits before another thread is added; zero: at once.
    pub(super) grow_after: Duration,
}

/// An idle thread above the minimum ends after this.
const IDLE_ENDS: Duration = Duration::from_secs(10);

/// A crew for jobs of type `J`, all done by one function.
pub(super) struct Crew<J: Send + 'static> {
    inner: Arc<Inner<J>>,
}

struct Inner<J> {
    name: &'static str,
    size: Size,
    work: fn(J),
    state: Mutex<State<J>>,
    /// Jobs came, or the crew stops.
    jobs: Condvar,
    /// A thread ended.
    ended: Condvar,
}

struct State<J> {
    jobs: VecDeque<(Instant, J)>,
    threads: usize,
    /// Threads that wait for jobs.
    idle: usize,
    /// Of those, how many were woken and are on their way: waking is a system call, and a group
    /// of answers comes all at once. Never more than really are; fewer costs a call too many.
    woken: usize,
    stopping: bool,
    spawned: u64,
}

impl<J: Send + 'static> Crew<J> {
    /// Starts the crew's minimum of threads, named `name-1` and so on.
    pub(super) fn start(name: &'static str, size: Size, work: fn(J)) -> std::io::Result<Self> {
        let crew = Self {
            inner: Arc::new(Inner {
                name,
                size,
                work,
                state: Mutex::new(State {
                    jobs: VecDeque::new(),
                    threads: 0,
                    idle: 0,
                    woken: 0,
                    stopping: false,
                    spawned: 0,
                }),
                jobs: Condvar::new(),
                ended: Condvar::new(),
            }),
        };
        for _ in 0..size.threads_min {
            crew.inner.add_thread(&mut crew.inner.lock())?;
        }
        Ok(crew)
    }

    /// Queues the job, or hands it back where the queue is full or the crew has stopped.
    pub(super) fn submit(&self, job: J) -> Result<(), J> {
        let mut state = self.inner.lock();
        if state.jobs.len() >= self.inner.size.queue_max || state.stopping {
            return Err(job);
        }
        state.jobs.push_back((Instant::now(), job));
        self.inner.grow(&mut state);
        let wake = state.idle > state.woken;
        state.woken += usize::from(wake);
        drop(state);
        if wake {
            self.inner.jobs.notify_one();
        }
        Ok(())
    }

    /// Adds a thread where jobs have waited too long although nobody submits any more.
    pub(super) fn nudge(&self) {
        self.inner.grow(&mut self.inner.lock());
    }

    /// Threads now, for the figures.
    pub(super) fn threads(&self) -> usize {
        self.inner.lock().threads
    }

    /// Takes no more jobs, finishes those queued, and waits for the threads until `deadline`.
    /// Threads that are still blocked then are left to end by themselves.
    pub(super) fn stop(&self, deadline: Instant) {
        let mut state = self.inner.lock();
        state.stopping = true;
        self.inner.jobs.notify_all();
        while state.threads > 0 {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                tracing::warn!(
                    crew = self.inner.name,
                    threads = state.threads,
                    "threads are still blocked by their clients; not waiting for them"
                );
                return;
            };
            state = self
                .inner
                .ended
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

impl<J: Send + 'static> Inner<J> {
    fn lock(&self) -> MutexGuard<'_, State<J>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn grow(self: &Arc<Self>, state: &mut State<J>) {
        let short = state.jobs.len() > state.idle && state.threads < self.size.threads_max;
        let Some((since, _)) = state.jobs.front() else {
            return;
        };
        if short
            && (self.size.grow_after.is_zero() || since.elapsed() > self.size.grow_after)
            && let Err(error) = self.add_thread(state)
        {
            // The threads there are go on; the queue's bound holds the rest.
            tracing::warn!(crew = self.name, %error, "cannot start another thread");
        }
    }

    fn add_thread(self: &Arc<Self>, state: &mut State<J>) -> std::io::Result<()> {
        state.spawned += 1;
        let inner = Arc::clone(self);
        thread::Builder::new()
            .name(format!("{}-{}", self.name, state.spawned))
            .spawn(move || inner.run())?;
        state.threads += 1;
        Ok(())
    }

    fn run(&self) {
        super::may_block_here();
        let mut state = self.lock();
        loop {
            if let Some((_, job)) = state.jobs.pop_front() {
                drop(state);
                // Defect 7: a panic in a handler would end the thread.
                if catch_unwind(AssertUnwindSafe(|| (self.work)(job))).is_err() {
                    tracing::error!(crew = self.name, "a request's handler panicked");
                }
                state = self.lock();
                continue;
            }
            if state.stopping {
                break;
            }
            state.idle += 1;
            let (woken, timeout) = self
                .jobs
                .wait_timeout(state, IDLE_ENDS)
                .unwrap_or_else(PoisonError::into_inner);
            state = woken;
            state.idle -= 1;
            state.woken = state.woken.saturating_sub(1);
            let spare = state.threads > self.size.threads_min;
            if timeout.timed_out() && state.jobs.is_empty() && spare {
                break;
            }
        }
        state.threads -= 1;
        self.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    type Job = Box<dyn FnOnce() + Send>;

    #[test]
    fn a_blocked_job_does_not_hold_up_the_next() {
        let size = Size {
            threads_min: 1,
            threads_max: 3,
            queue_max: 3,
            grow_after: Duration::ZERO,
        };
        let crew: Crew<Job> = Crew::start("test", size, |job: Job| job()).expect("a crew");
        let (release, blocked) = mpsc::channel::<()>();
        let blocked = Arc::new(Mutex::new(blocked));
        for _ in 0..2 {
            let blocked = Arc::clone(&blocked);
            let job: Job = Box::new(move || {
                let _end = blocked.lock().map(|end| end.recv());
            });
            assert!(crew.submit(job).is_ok());
        }
        let (done, seen) = mpsc::channel();
        let job: Job = Box::new(move || done.send(()).expect("the test waits"));
        assert!(crew.submit(job).is_ok());
        seen.recv_timeout(Duration::from_secs(10)).expect("done");
        drop(release);
        crew.stop(Instant::now() + Duration::from_secs(10));
        assert_eq!(crew.threads(), 0);
        assert!(crew.submit(Box::new(|| ())).is_err());
    }

    #[test]
    fn past_its_bound_a_job_is_handed_back_and_a_panic_is_contained() {
        let size = Size {
            threads_min: 1,
            threads_max: 1,
            queue_max: 1,
            grow_after: Duration::ZERO,
        };
        let crew: Crew<Option<mpsc::Receiver<()>>> =
            Crew::start("test", size, |job: Option<mpsc::Receiver<()>>| match job {
                Some(end) => drop(end.recv()),
                None => panic!("as a handler might"),
            })
            .expect("a crew");
        let (release, blocked) = mpsc::channel();
        let (release2, blocked2) = mpsc::channel();
        assert!(crew.submit(None).is_ok());
        let mut first = Some(blocked);
        while let Err(Some(back)) = crew.submit(first.take()) {
            first = Some(back);
            thread::yield_now();
        }
        let mut second = Some(blocked2);
        while let Err(Some(back)) = crew.submit(second.take()) {
            second = Some(back);
            thread::yield_now();
        }
        assert!(crew.submit(None).is_err());
        drop((release, release2));
        crew.stop(Instant::now() + Duration::from_secs(10));
        assert_eq!(crew.threads(), 0);
    }
}
