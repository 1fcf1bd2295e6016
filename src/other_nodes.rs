//! Waits for positions of other nodes that share the database.
//!
//! A client behind a load balancer asks one node for the totals after a position that another one returned. How far
//! that node is applied is in the database only. The thread `other-nodes` reads it, for all positions in one
//! statement, every [`INTERVAL`] while a request waits. Totals and progress change in one transaction, so a read that
//! begins after the progress was seen has the totals.
//!
//! Failed reads are repeated until the deadline. While the database does not respond, a wait may end some seconds
//! after its deadline.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::data_dir::segment::Position;
use crate::store::{NodeProgress, Readers};

/// How often the progress of other nodes is read while a request waits.
const INTERVAL: Duration = Duration::from_millis(50);
/// Most waiters at one time; a further wait is [`NodeWait::Unavailable`].
const WAITERS_MAX: usize = 4096;

/// How a wait for a position of another node ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeWait {
    /// What the database says of the position. It is [`NodeProgress::Pending`] if the deadline came first.
    Is(NodeProgress),
    /// There are too many waiters, or the server is stopping.
    Unavailable,
}

type Done = Box<dyn FnOnce(NodeWait) + Send>;

struct Waiter {
    node: Uuid,
    position: Position,
    deadline: Instant,
    done: Done,
}

#[derive(Default)]
struct State {
    waiters: Vec<Waiter>,
    /// New waits are refused.
    ending: bool,
    stopping: bool,
}

/// The requests that wait for positions of other nodes.
#[derive(Default)]
pub struct NodeWaits {
    state: Mutex<State>,
    /// Signalled at a new waiter, and at the end.
    changed: Condvar,
}

/// The thread that ends the waits. Dropping this ends them all, and joins it.
pub struct OtherNodes {
    waits: Arc<NodeWaits>,
    thread: Option<JoinHandle<()>>,
}

impl OtherNodes {
    /// Starts the thread `other-nodes`; dropping the result ends it.
    pub fn start(readers: Readers) -> io::Result<Self> {
        let waits = Arc::new(NodeWaits::default());
        let shared = Arc::clone(&waits);
        let thread = Builder::new()
            .name("other-nodes".to_owned())
            .spawn(move || shared.run(&readers))?;
        Ok(Self {
            waits,
            thread: Some(thread),
        })
    }

    /// The waits, for requests.
    pub fn waits(&self) -> Arc<NodeWaits> {
        Arc::clone(&self.waits)
    }
}

impl Drop for OtherNodes {
    fn drop(&mut self) {
        self.waits.lock().stopping = true;
        self.waits.end();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread other-nodes panicked");
        }
    }
}

impl NodeWaits {
    /// Calls `done` once: when the outcome is known, or soon after `deadline`.
    pub fn when_applied(&self, node: Uuid, position: Position, deadline: Instant, done: Done) {
        let mut state = self.lock();
        if state.ending || state.waiters.len() >= WAITERS_MAX {
            drop(state);
            return done(NodeWait::Unavailable);
        }
        state.waiters.push(Waiter {
            node,
            position,
            deadline,
            done,
        });
        drop(state);
        self.changed.notify_all();
    }

    /// Ends all waits and refuses new ones.
    pub fn end(&self) {
        let mut state = self.lock();
        state.ending = true;
        let waiters = std::mem::take(&mut state.waiters);
        drop(state);
        self.changed.notify_all();
        for waiter in waiters {
            (waiter.done)(NodeWait::Unavailable);
        }
    }

    /// The body of the thread.
    fn run(&self, readers: &Readers) {
        loop {
            let state = self
                .changed
                .wait_while(self.lock(), |state| {
                    state.waiters.is_empty() && !state.stopping
                })
                .unwrap_or_else(PoisonError::into_inner);
            if state.stopping {
                return;
            }
            let positions: Vec<(Uuid, Position)> = state
                .waiters
                .iter()
                .map(|waiter| (waiter.node, waiter.position))
                .collect();
            drop(state);
            let progress = readers.progress_of(&positions).unwrap_or_else(|error| {
                tracing::debug!(%error, "cannot read the progress of other nodes");
                vec![NodeProgress::Pending; positions.len()]
            });
            self.end_known(&progress);
            drop(
                self.changed
                    .wait_timeout_while(self.lock(), INTERVAL, |state| !state.stopping),
            );
        }
    }

    /// Ends the waits whose outcome is known, and those past their deadlines. `progress` is that of the first
    /// waiters; more may have come meanwhile.
    fn end_known(&self, progress: &[NodeProgress]) {
        let mut state = self.lock();
        if state.ending {
            return;
        }
        let now = Instant::now();
        let mut ended = Vec::new();
        let mut left = Vec::with_capacity(state.waiters.len());
        for (at, waiter) in std::mem::take(&mut state.waiters).into_iter().enumerate() {
            match progress.get(at) {
                Some(&is) if is != NodeProgress::Pending || waiter.deadline <= now => {
                    ended.push((waiter.done, NodeWait::Is(is)));
                }
                _ => left.push(waiter),
            }
        }
        state.waiters = left;
        drop(state);
        for (done, outcome) in ended {
            done(outcome);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
