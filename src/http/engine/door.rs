//! The door: the thread that takes requests from the library, in order, and hands them on.
//!
//! One door for each `Server` (there is one, but for accept loops that died). It takes a request,
//! gives it its place in its connection's line, checks its framing, and either handles it right
//! here (what never blocks) or gives it to a crew. It never reads from or writes to a socket, so
//! no client can hold it up. `recv` is never called through the library's iterator, which ends at
//! the first error (defect 5); every handler is run under `catch_unwind` (defect 7).

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, TryRecvError};

use super::answer;
use super::framing::{self, Body};
use super::lines::Entered;
use super::request::{BodyJob, Ending, Lookup, Request, Ticket};
use super::usher::Nudge;
use super::{Admission, EngineError, Lane, Refusal, Shared};

/// A door without an accept loop ends when no request came for so long after its connections must
/// have ended.
const RETIRE_AFTER: Duration = Duration::from_secs(5);
/// How often a door without an accept loop looks whether it is to end.
const RETIRE_TICK: Duration = Duration::from_millis(100);

/// A running door.
pub(super) struct Door {
    /// The thread alone keeps it: dropped, it connects to its own listener (defect 7), which takes
    /// minutes where a crowd waits to be accepted.
    server: Weak<tiny_http::Server>,
    /// Disconnected when the thread has ended.
    running: Receiver<Infallible>,
    /// Its accept loop is dead or given up; its connections live so long without a request.
    retiring: Arc<OnceLock<Duration>>,
    queue: Arc<Queue>,
}

/// What is known of the library's queue of requests, which has no bound and tells no length.
#[derive(Default)]
struct Queue {
    /// The door waits for a request.
    awaited: AtomicBool,
    /// It was found empty since somebody asked.
    emptied: AtomicBool,
}

/// Starts the door of `server`.
pub(super) fn open(
    shared: Arc<Shared>,
    server: tiny_http::Server,
    generation: u64,
) -> Result<Door, EngineError> {
    let server = Arc::new(server);
    let retiring = Arc::new(OnceLock::new());
    let queue = Arc::new(Queue::default());
    let (runs, running) = crossbeam_channel::bounded(0);
    let door = Door {
        server: Arc::downgrade(&server),
        running,
        retiring: Arc::clone(&retiring),
        queue: Arc::clone(&queue),
    };
    std::thread::Builder::new()
        .name(format!("http-door-{generation}"))
        .spawn(move || {
            let _until_it_ends = runs;
            run(&shared, &server, generation, &retiring, &queue);
        })
        .map_err(EngineError::Thread)?;
    Ok(door)
}

impl Door {
    /// Its server accepts no more; it stays for the connections there are, which live so long
    /// without a request.
    pub(super) fn retire(&self, idle: Duration) {
        if self.retiring.set(idle).is_ok()
            && let Some(server) = self.server.upgrade()
        {
            server.unblock();
        }
    }

    /// Whether all requests that came were taken at some moment since this was asked last.
    pub(super) fn kept_up(&self) -> bool {
        self.queue.emptied.swap(false, Ordering::Relaxed)
            || self.queue.awaited.load(Ordering::Relaxed)
    }

    /// Whether its thread has ended.
    pub(super) fn ended(&self) -> bool {
        self.running.try_recv() == Err(TryRecvError::Disconnected)
    }

    /// The engine is closed: it is to end when all that is queued was taken.
    fn wake(&self) {
        if let Some(server) = self.server.upgrade() {
            server.unblock();
        }
    }
}

/// Waits until `deadline` for the ends of the doors of an engine that is closed; whether all of them
/// ended. One that a flood keeps busy does not.
pub(super) fn close(doors: &[Door], deadline: Instant) -> bool {
    doors.iter().for_each(Door::wake);
    doors
        .iter()
        .all(|door| door.running.recv_deadline(deadline) == Err(RecvTimeoutError::Disconnected))
}

fn run(
    shared: &Arc<Shared>,
    server: &tiny_http::Server,
    generation: u64,
    retiring: &OnceLock<Duration>,
    queue: &Queue,
) {
    let mut last = Instant::now();
    loop {
        let received = match server.try_recv() {
            Ok(None) => {
                queue.emptied.store(true, Ordering::Relaxed);
                queue.awaited.store(true, Ordering::Relaxed);
                // What we took for an empty queue may have been the call to wake up.
                let received = if retiring.get().is_some() || shared.is_closed() {
                    server.recv_timeout(RETIRE_TICK)
                } else {
                    server.recv().map(Some)
                };
                queue.awaited.store(false, Ordering::Relaxed);
                received
            }
            at_once => at_once,
        };
        match received {
            Ok(Some(wire)) => {
                last = Instant::now();
                take(shared, wire);
            }
            Ok(None) | Err(_) if shared.is_closed() => return,
            Ok(None) => {
                let idle = retiring.get();
                if idle.is_some_and(|idle| last.elapsed() > *idle + RETIRE_AFTER) {
                    return;
                }
            }
            Err(error) => {
                // Either the accept loop ended, or the usher found it dead and woke us.
                if retiring.set(shared.limits.idle_time).is_ok() && !shared.is_stopping() {
                    tracing::warn!(%error, generation, "the accept loop ended");
                    shared.nudge(Nudge::AcceptEnded(generation));
                }
            }
        }
    }
}

/// Takes one request in.
fn take(shared: &Arc<Shared>, wire: tiny_http::Request) {
    let received = Instant::now();
    let minor = wire.http_version().1;
    let checked = framing::check(
        minor,
        wire.headers()
            .iter()
            .map(|header| (header.field.as_str().as_str(), header.value.as_str())),
    );
    let Some(&peer) = wire.remote_addr() else {
        return answer::let_go(shared, wire, Ending::Cut, None);
    };
    if shared.seen.is_new(peer, received) {
        shared.nudge(Nudge::NewPeer);
    }
    let ending = Ending::of(&checked);
    let (seq, too_many) = match shared.lines.enter(peer) {
        Entered::Turn(seq) => (seq, shared.is_full()),
        Entered::TooMany(seq) => {
            BodyJob::Deafen(peer, Arc::clone(shared)).submit(shared);
            (seq, true)
        }
        Entered::Over { flood: true } => {
            return BodyJob::LetGo(wire, Some(peer), Arc::clone(shared)).submit(shared);
        }
        Entered::Over { flood: false } => {
            return answer::let_go_in_turn(shared, wire, ending, peer);
        }
        Entered::Gone => return answer::let_go(shared, wire, ending, Some(peer)),
    };
    let ticket = Ticket::new(Arc::clone(shared), peer, seq);
    let request = Request::new(wire, ticket, &checked, ending, received);
    match checked {
        Err(why) => {
            // Before the next one is taken: it may be this one's body.
            shared.lines.no_more(peer);
            request.refuse(Refusal::Framing(why));
        }
        Ok(_) if too_many => request.refuse(Refusal::TooMany),
        Ok(head) => {
            let admitted = catch_unwind(AssertUnwindSafe(|| shared.handler.admit(&request)));
            match admitted {
                Ok(admission) => admit(shared, request, admission, head.body),
                Err(_) => request.refuse(Refusal::Panicked),
            }
        }
    }
}

fn admit(shared: &Arc<Shared>, mut request: Request, admission: Admission, body: Body) {
    // Defect 2: what announces more than we would throw away is never read.
    if request.is_hopeless(&shared.limits) {
        return request.refuse(Refusal::BodyTooLarge);
    }
    let lane = match (admission, body) {
        (Admission::Refuse(reply), Body::None | Body::InMemory) => return request.answer(reply),
        (Admission::Refuse(reply), _) => {
            return shared.later(BodyJob::Discard(request, reply));
        }
        (Admission::Take(lane), Body::None) => lane,
        (Admission::Take(lane), Body::InMemory) => {
            request.read_in_memory();
            lane
        }
        (Admission::Take(_), _) => return shared.later(BodyJob::Read(request)),
    };
    match lane {
        Lane::Door => {
            // Defect 7. The request answers for itself when it is dropped.
            let _answered = catch_unwind(AssertUnwindSafe(|| shared.handler.handle(request)));
        }
        Lane::Body => shared.later(BodyJob::Handle(request)),
        Lane::Lookup => Lookup::handle(request).submit(shared),
    }
}
