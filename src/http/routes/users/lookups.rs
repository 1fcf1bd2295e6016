//! Lookups of single users. Those that wait are read together, in one transaction: under load, locking the
//! database file and examining it cost more than finding a user.
//!
//! A job on a thread that may block takes all lookups that wait when it begins, up to [`JOB_LOOKUPS_MAX`]. It
//! reads after they were received, so each sees what was committed before its request.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use super::super::positions::check_end;
use super::super::{Inner, unreadable};
use super::{push_user, unknown};
use crate::data_dir::segment::Position;
use crate::http::counters::Route;
use crate::http::engine::{MayBlock, Refusal, Reply, Request};
use crate::http::problem::Problem;
use crate::store::UserTotal;

/// Maximum number of lookups in one job. More of them would delay the first reply and save little.
const JOB_LOOKUPS_MAX: usize = 32;

/// The lookups that wait for a job.
#[derive(Debug, Default)]
pub(in crate::http) struct Lookups(Mutex<Queue<Lookup>>);

#[derive(Debug)]
struct Queue<T> {
    /// At most `JOB_LOOKUPS_MAX - 1` for each of the `jobs`, because each has a lookup of its own.
    waiting: VecDeque<T>,
    /// Jobs that were submitted and have not begun.
    jobs: usize,
}

/// A request for the total of a user.
#[derive(Debug)]
struct Lookup {
    request: Request,
    id: String,
    /// The applied position of the request, unless its segment is known to have it.
    after: Option<Position>,
}

/// A submitted job. If it is dropped before it begins, because the queue of the engine is full, the waiting
/// lookups that it would have taken are refused.
struct Job {
    inner: Arc<Inner>,
    has_begun: bool,
}

impl Lookups {
    fn lock(&self) -> MutexGuard<'_, Queue<Lookup>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self {
            waiting: VecDeque::new(),
            jobs: 0,
        }
    }
}

impl<T> Queue<T> {
    /// Adds a lookup for a job that was already submitted. Returns it if there is none with room for it: then
    /// the caller must submit one, which is counted here.
    fn add(&mut self, lookup: T) -> Option<T> {
        if self.waiting.len() < self.jobs * (JOB_LOOKUPS_MAX - 1) {
            self.waiting.push_back(lookup);
            return None;
        }
        self.jobs += 1;
        Some(lookup)
    }

    /// Begins a job: takes its lookups besides its own.
    fn begin_job(&mut self) -> Vec<T> {
        self.jobs -= 1;
        let count = self.waiting.len().min(JOB_LOOKUPS_MAX - 1);
        self.waiting.drain(..count).collect()
    }
}

/// Answers the request with the total of the user.
pub(super) fn look_up(inner: &Arc<Inner>, request: Request, id: String, after: Option<Position>) {
    let lookup = Lookup { request, id, after };
    let Some(Lookup { request, id, after }) = inner.lookups.lock().add(lookup) else {
        return;
    };
    let job = Job {
        inner: Arc::clone(inner),
        has_begun: false,
    };
    request.on_blocking_thread(move |request, may_block| {
        job.run(Lookup { request, id, after }, may_block);
    });
}

impl Job {
    fn begin(&mut self) -> Vec<Lookup> {
        self.has_begun = true;
        self.inner.lookups.lock().begin_job()
    }

    fn run(mut self, own: Lookup, may_block: &MayBlock) {
        let mut lookups = self.begin();
        lookups.push(own);
        let replies = read(&self.inner, &lookups, may_block);
        let mut waker = None;
        for (lookup, reply) in lookups.into_iter().zip(replies) {
            waker = self
                .inner
                .answer_unwoken(lookup.request, Route::User, reply);
        }
        waker.into_iter().for_each(Waker::wake);
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if !self.has_begun {
            for lookup in self.begin() {
                lookup.request.refuse(Refusal::Busy);
            }
        }
    }
}

/// The replies to the lookups, in their order.
fn read(inner: &Inner, lookups: &[Lookup], may_block: &MayBlock) -> Vec<Reply> {
    let ids: Vec<_> = lookups.iter().map(|lookup| lookup.id.as_str()).collect();
    let readers = inner.readers.get(may_block);
    match readers.users_by_id(&ids) {
        Ok(totals) => {
            let totals = totals.iter().zip(lookups);
            totals
                .map(|(total, lookup)| match lookup.after {
                    Some(after) => check_end(readers, after)
                        .map_or_else(Problem::reply, |()| reply_to(inner, total.as_ref())),
                    None => reply_to(inner, total.as_ref()),
                })
                .collect()
        }
        Err(error) => lookups.iter().map(|_| unreadable(&error).reply()).collect(),
    }
}

fn reply_to(inner: &Inner, total: Option<&UserTotal>) -> Reply {
    let Some(total) = total else {
        return unknown(inner).reply();
    };
    let mut json = String::with_capacity(128);
    push_user(&mut json, total);
    Reply::json(200, json)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lookups_that_wait_are_taken_by_one_job() {
        let mut queue = Queue::default();
        assert_eq!(queue.add(0), Some(0), "needs a job");
        for waits in 1..JOB_LOOKUPS_MAX {
            assert_eq!(queue.add(waits), None, "{waits}");
        }
        assert_eq!(queue.add(100), Some(100), "needs another one");
        assert_eq!(queue.add(101), None);
        let first: Vec<_> = (1..JOB_LOOKUPS_MAX).collect();
        assert_eq!(queue.begin_job(), first);
        assert_eq!(queue.begin_job(), [101]);
        assert_eq!(queue.add(102), Some(102), "no job is left");
    }

    #[test]
    fn each_lookup_that_waits_has_a_job() {
        // Fails if a lookup could wait without a job that takes it: its request would not be answered.
        let mut random = fastrand::Rng::with_seed(20);
        let (mut queue, mut added, mut taken) = (Queue::default(), 0, 0);
        for _ in 0..100_000 {
            let jobs = queue.jobs;
            if jobs > 0 && random.u8(..100) < 4 {
                taken += queue.begin_job().len() + 1;
            } else {
                queue.add(());
                added += 1;
            }
            let waiting = added - taken - queue.jobs;
            assert_eq!(queue.waiting.len(), waiting);
            assert!(waiting <= queue.jobs * (JOB_LOOKUPS_MAX - 1));
        }
        assert!(taken > 50_000, "{taken}");
    }
}
