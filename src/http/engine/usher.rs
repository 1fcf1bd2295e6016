//! The usher: a thread that keeps the library's accept loop and thread pool going.
//!
//! - Defect 1: the library's pool counts a thread as waiting until it has taken its lock again,
//!   so connections that come in a burst are queued for threads that are already spoken for, and
//!   sit there unread until some other connection ends. Whenever a request comes from a peer not
//!   seen before, the usher **visits**: it opens and drops a connection. For a visit the pool wakes
//!   or starts a thread, which takes a connection that is stuck, before the visit or after it. One
//!   visit frees one, its first request is the next new peer, and so on until none is stuck. Where
//!   that chain breaks, the kernel tells how many were not read from yet.
//! - Defect 3: a visit each 250 ms also keeps the listener's receive timeout from ending the
//!   accept loop.
//! - What hangs: it looks after those that hold something of ours without getting on ([`watch`]).
//! - Defect 5: the accept loop ends on any error, or panics without a word. The first is told by
//!   `recv`, either by its listener's descriptor, which is gone then. A new `Server` is built on a
//!   clone of the listener once there are descriptors for it, backing off while it ends at once;
//!   the old one's connections keep their door.
//! - Defect 8: the queue from the library's threads to the door has no bound, and is behind a lock
//!   that its hundreds of threads fight for with the one that takes. Connections that each bring
//!   thousands of requests and are gone again, none of them worth ending, filled it with gigabytes
//!   in seconds. Where the door has not kept up for a while and the process has grown by much, the
//!   flood is **shed**: all connections are ended, what waits to be accepted as well, and accepting
//!   begins anew when the queue is empty.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use socket2::{Domain, SockRef, Socket, Type};

use super::door::{self, Door};
use super::watch::{self, Watch};
use super::{EngineError, Shared, listener};

/// How far the library's threads stand back: a tenth of the time where all want it.
const NICE: i32 = 10;
/// Between two visits, at least.
const PACE: Duration = Duration::from_micros(500);
/// Visits in one go.
const VISITS_MAX: usize = 64;
/// A visit at least this often.
const TICK: Duration = Duration::from_millis(250);
/// How often crews are looked after.
const NUDGE_TICK: Duration = Duration::from_millis(50);
const BACK_OFF_MIN: Duration = Duration::from_millis(50);
const BACK_OFF_MAX: Duration = Duration::from_millis(500);
/// An accept loop that lasted for so long was no failure from the start.
const LASTED: Duration = Duration::from_secs(5);
/// With fewer descriptors left a new accept loop would end at once as well.
const DESCRIPTORS_MIN: u64 = 16;
/// Opening a connection to ourselves must not hold the usher up.
const CONNECT_TIME: Duration = Duration::from_millis(250);
/// A door that has not kept up for so long, ... (Measured: never 80 ms under full honest load, with
/// thousands of pipelined requests in flight or the processors taken by others.)
const FLOODED_AFTER: Duration = Duration::from_millis(500);
/// ... in a process that has grown by so much since it was smallest: 64 MiB, of pages of 4 KiB. A flood
/// takes twice that in the same time; a slow machine whose door is behind does not grow.
const FLOOD_PAGES: u64 = 64 << 8;
/// Connections that wait to be accepted and are ended in one go.
const TURNED_AWAY_MAX: usize = 4096;

/// What the usher is told.
#[derive(Debug)]
pub(super) enum Nudge {
    /// A request came from a peer not seen before.
    NewPeer,
    /// The accept loop of that generation's server ended.
    AcceptEnded(u64),
    /// Open no more connections, and end.
    Stop,
}

/// The usher's own state; lives on its thread.
pub(super) struct Usher {
    shared: Arc<Shared>,
    listener: TcpListener,
    own: SocketAddr,
    doors: Vec<Door>,
    /// The newest door's number.
    generation: u64,
    watch: Watch,
    /// The listener of the newest accept loop as `/proc` shows it: the path of its descriptor, and
    /// what that links to while the loop lives.
    accepts: Option<(PathBuf, PathBuf)>,
    visited: Instant,
    /// When to build the next server, and how long to wait if that fails too.
    rebuild: Option<Instant>,
    back_off: Duration,
    built: Instant,
    kept_up: KeptUp,
    /// A flood was shed, and what it left in the queue is not taken yet.
    shedding: bool,
}

impl Usher {
    /// Opens the first door and starts the usher. The thread hands the doors back when it ends.
    pub(super) fn start(
        shared: Arc<Shared>,
        listener: TcpListener,
        own: SocketAddr,
        nudges: Receiver<Nudge>,
    ) -> Result<JoinHandle<Vec<Door>>, EngineError> {
        let now = Instant::now();
        let watch = Watch::new(own);
        let mut usher = Self {
            shared,
            listener,
            own,
            doors: Vec::new(),
            generation: 0,
            watch,
            accepts: None,
            visited: now,
            rebuild: None,
            back_off: BACK_OFF_MIN,
            built: now,
            kept_up: KeptUp::now(watch::resident_pages()),
            shedding: false,
        };
        usher.open_door()?;
        std::thread::Builder::new()
            .name("http-usher".into())
            .spawn(move || usher.run(&nudges))
            .map_err(EngineError::Thread)
    }

    fn run(mut self, nudges: &Receiver<Nudge>) -> Vec<Door> {
        // The nudge to stop only wakes it: others may stand before it, or have filled the channel.
        while !self.shared.is_stopping() {
            let wait = self.watch.due_in().unwrap_or(NUDGE_TICK);
            match nudges.recv_timeout(wait) {
                Ok(Nudge::NewPeer) => {
                    // A burst brings many nudges; the pace bounds what they cost.
                    if let Some(wait) = PACE.checked_sub(self.visited.elapsed()) {
                        std::thread::sleep(wait);
                    }
                    let _best_effort = self.visit();
                }
                Ok(Nudge::AcceptEnded(generation)) if generation == self.generation => {
                    self.plan_rebuild("the accept loop ended");
                }
                Ok(Nudge::AcceptEnded(_)) | Err(RecvTimeoutError::Timeout) => {}
                Ok(Nudge::Stop) | Err(RecvTimeoutError::Disconnected) => break,
            }
            self.tick();
        }
        self.doors
    }

    fn tick(&mut self) {
        self.shared.answers.nudge();
        self.shared.part();
        self.check_accepting();
        let pages = watch::resident_pages();
        self.check_queue(pages);
        self.shared.lookups.nudge();
        if self.watch.is_due(&self.shared, pages) {
            self.watch.look(&self.shared, pages);
        }
        watch::forget_strangers(&self.shared);
        if self.visited.elapsed() >= TICK {
            self.visit_the_stuck();
            watch::end_overdue_bodies(&self.shared);
            self.doors.retain(|door| !door.ended());
        }
        if self.rebuild.is_some_and(|at| Instant::now() >= at) {
            self.rebuild();
        }
    }

    /// Opens a connection and drops it: one stuck connection gets a thread (defect 1). An error
    /// without descriptors to spare, or where a crowd waits to be accepted; the next visit is soon.
    fn visit(&mut self) -> std::io::Result<()> {
        self.visited = Instant::now();
        let socket = connect(self.own)?;
        // Closed with a reset, it leaves nothing behind in the kernel.
        SockRef::from(&socket).set_linger(Some(Duration::ZERO))
    }

    /// One visit at least, and one for each connection that was not read from yet: those that send
    /// half a head and wait bring no request that would tell of the next.
    fn visit_the_stuck(&mut self) {
        // While nobody accepts, visits would only stand in line with the rest.
        let accepting = self.rebuild.is_none();
        let stuck = if accepting { self.watch.unread() } else { 0 };
        for _ in 0..stuck.clamp(1, VISITS_MAX) {
            if self.visit().is_err() {
                break;
            }
            std::thread::sleep(PACE);
        }
    }

    /// Whether the accept loop still has its listener: it alone owns that descriptor, and drops it
    /// however it ends. `None` where that is not known.
    fn accepts(&self) -> Option<bool> {
        let (path, link) = self.accepts.as_ref()?;
        Some(std::fs::read_link(path).ok().as_ref() == Some(link))
    }

    /// Sees whether the accept loop ended (defect 5).
    fn check_accepting(&mut self) {
        if self.rebuild.is_some() {
            return;
        }
        if self.accepts() == Some(false) {
            self.plan_rebuild("the accept loop ended");
        } else if self.built.elapsed() > TICK {
            self.shared.handler.accepting(true);
            if self.built.elapsed() > LASTED {
                self.back_off = BACK_OFF_MIN;
            }
        }
    }

    /// Sees whether the door keeps up with what the library queues for it (defect 8).
    fn check_queue(&mut self, pages: u64) {
        if self.doors.last().is_none_or(Door::kept_up) {
            self.kept_up = KeptUp::now(pages);
            self.shedding = false;
        } else if self.shedding {
            self.shed();
        } else if self.kept_up.flooded_since(pages) {
            tracing::warn!("a flood of requests; all connections are ended");
            self.shed();
            self.plan_rebuild("a flood of requests");
        }
    }

    /// Ends all connections, and those that wait to be accepted.
    fn shed(&mut self) {
        self.shedding = true;
        // The accept loop shares the mode, and ends when there is nothing to accept (or all is lost).
        let _best_effort = self.listener.set_nonblocking(true);
        for _ in 0..TURNED_AWAY_MAX {
            let Ok((socket, _)) = self.listener.accept() else {
                break;
            };
            let _best_effort = SockRef::from(&socket).set_linger(Some(Duration::ZERO));
        }
        self.shared.sever.all_unread();
        if let Some(door) = self.doors.last() {
            door.retire(Duration::ZERO);
        }
    }

    fn plan_rebuild(&mut self, why: &str) {
        if self.shared.is_stopping() || self.rebuild.is_some() {
            return;
        }
        tracing::warn!(why, back_off = ?self.back_off, "accepting connections anew");
        self.shared.handler.accepting(false);
        self.rebuild = Some(Instant::now() + self.back_off);
        self.back_off = (self.back_off * 2).min(BACK_OFF_MAX);
    }

    fn rebuild(&mut self) {
        // Shedding asks the accept loop to end, which it does when somebody comes. What waits to be
        // accepted comes all at once, two descriptors each.
        if self.shedding
            || self.accepts() == Some(true)
            || listener::descriptors_left().is_some_and(|left| left < DESCRIPTORS_MIN)
        {
            self.rebuild = Some(Instant::now() + BACK_OFF_MIN);
            return;
        }
        self.rebuild = None;
        let idle_time = self.shared.limits.idle_time;
        let before = self.doors.last().map(|door| door.retire(idle_time));
        match self.open_door() {
            Ok(()) => tracing::info!(generation = self.generation, "accepting again"),
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections yet");
                if before.is_none() {
                    self.generation += 1;
                }
                self.plan_rebuild("building the server failed");
            }
        }
    }

    fn open_door(&mut self) -> Result<(), EngineError> {
        self.listener
            .set_nonblocking(false)
            .map_err(EngineError::Listener)?;
        let listener = self.listener.try_clone().map_err(EngineError::Listener)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", listener.as_raw_fd()));
        let accepts = std::fs::read_link(&path).ok().map(|link| (path, link));
        let server = behind_ours(|| tiny_http::Server::from_listener(listener, None))
            .map_err(EngineError::Thread)?
            .map_err(EngineError::Server)?;
        self.generation += 1;
        self.built = Instant::now();
        self.accepts = accepts;
        let door = door::open(Arc::clone(&self.shared), server, self.generation)?;
        self.doors.push(door);
        Ok(())
    }
}

/// Does it on a thread that yields to the others, as do all threads that come of it (Linux: `nice`
/// is a thread's, and inherited). The library reads requests into a queue without a bound: on a
/// busy machine many threads that fill it must not keep the few that empty it, and that end whoever
/// sends without end, from running.
fn behind_ours<T: Send>(work: impl FnOnce() -> T + Send) -> std::io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("http-library".to_owned())
            .spawn_scoped(scope, || {
                if let Err(error) = rustix::process::setpriority_process(None, NICE) {
                    tracing::warn!(%error, "cannot lower the priority of the library's threads");
                }
                work()
            })?;
        thread
            .join()
            .map_err(|_| std::io::Error::other("it panicked"))
    })
}

/// When the newest door had last kept up.
struct KeptUp {
    at: Instant,
    /// Pages of memory the process has had since, at the least: those that the last flood took may still
    /// be on their way back when the next one comes.
    pages: u64,
}

impl KeptUp {
    fn now(pages: u64) -> Self {
        let at = Instant::now();
        Self { at, pages }
    }

    /// Whether the process, of so many `pages` now, has been flooded since.
    fn flooded_since(&mut self, pages: u64) -> bool {
        self.pages = self.pages.min(pages);
        self.at.elapsed() >= FLOODED_AFTER && pages > self.pages + FLOOD_PAGES
    }
}

fn connect(own: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(own), Type::STREAM, None)?;
    socket.connect_timeout(&own.into(), CONNECT_TIME)?;
    Ok(socket.into())
}

/// The peers seen lately and when, in bounded space: a table of fingerprints, two places for each.
/// A peer that was pushed out is new again, which costs a visit and nothing else.
pub(super) struct Seen {
    /// 40 bits of a hash that is never zero, 24 bits of the time since `start` ([`Stamp`]).
    slots: Vec<AtomicU64>,
    hasher: rapidhash::fast::RandomState,
    start: Instant,
}

const SEEN_SLOTS: usize = 1 << 13;
const STAMPS: u64 = (1 << 24) - 1;
const STAMPS_PER_SECOND: u32 = 16;

/// A moment, in parts of a second; they begin anew after twelve days.
pub(super) type Stamp = u64;

impl Seen {
    pub(super) fn new() -> Self {
        Self {
            slots: std::iter::repeat_with(AtomicU64::default)
                .take(SEEN_SLOTS)
                .collect(),
            hasher: rapidhash::fast::RandomState::default(),
            start: Instant::now(),
        }
    }

    /// Whether the peer is new; from now on it is not. A request came from it at `now`.
    pub(super) fn is_new(&self, peer: SocketAddr, now: Instant) -> bool {
        let (print, places) = self.places(peer);
        let entry = print | self.stamp(now);
        for place in places {
            let known = self.slots[place].load(Ordering::Relaxed);
            if known & !STAMPS == print {
                if known != entry {
                    self.slots[place].store(entry, Ordering::Relaxed);
                }
                return false;
            }
        }
        let [first, second] = places;
        let taken = self.slots[first].load(Ordering::Relaxed) != 0;
        let place = if taken && print & (1 << 25) == 0 {
            second
        } else {
            first
        };
        self.slots[place].store(entry, Ordering::Relaxed);
        true
    }

    /// When the last request came from the peer; `None` if that is not known.
    pub(super) fn last_request(&self, peer: SocketAddr) -> Option<Stamp> {
        let (print, places) = self.places(peer);
        let slots = places.map(|place| self.slots[place].load(Ordering::Relaxed));
        let known = slots.into_iter().find(|known| known & !STAMPS == print)?;
        Some(known & STAMPS)
    }

    /// How long ago that was.
    pub(super) fn since(&self, stamp: Stamp) -> Duration {
        let stamps = self.stamp(Instant::now()).wrapping_sub(stamp) & STAMPS;
        Duration::from_secs(stamps) / STAMPS_PER_SECOND
    }

    fn stamp(&self, now: Instant) -> Stamp {
        let stamps = (now - self.start).as_millis() * u128::from(STAMPS_PER_SECOND) / 1000;
        u64::try_from(stamps).unwrap_or(0) & STAMPS
    }

    fn places(&self, peer: SocketAddr) -> (u64, [usize; 2]) {
        use std::hash::BuildHasher as _;
        let hash = self.hasher.hash_one(peer);
        let place = |bits: u64| usize::try_from(bits).unwrap_or(0) % SEEN_SLOTS;
        let places = [place(hash & 0xffff), place(hash >> 8 & 0xffff)];
        ((hash | 1 << 24) & !STAMPS, places)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_told_by_growth_since_the_process_was_smallest() {
        let mut kept_up = KeptUp::now(2 * FLOOD_PAGES);
        assert!(!kept_up.flooded_since(9 * FLOOD_PAGES), "not for long");
        kept_up.at -= FLOODED_AFTER;
        assert!(!kept_up.flooded_since(3 * FLOOD_PAGES), "not by so much");
        assert!(!kept_up.flooded_since(FLOOD_PAGES / 2), "it shrinks");
        assert!(kept_up.flooded_since(2 * FLOOD_PAGES), "and grows again");
    }

    #[test]
    fn a_peer_is_new_once_and_the_table_does_not_grow() {
        let seen = Seen::new();
        let (start, peer) = (seen.start, |n: u16| SocketAddr::from(([127, 0, 0, 1], n)));
        assert_eq!(seen.last_request(peer(1)), None);
        assert!(seen.is_new(peer(1), start));
        assert!(!seen.is_new(peer(1), start));
        let ago = seen.since(seen.last_request(peer(1)).expect("seen"));
        assert!(ago < Duration::from_mins(1), "{ago:?}");
        let new = (0..u16::MAX).filter(|&n| seen.is_new(peer(n), start));
        let new = new.count();
        assert!(new > usize::from(u16::MAX) - 100, "{new}");
        assert_eq!(seen.slots.len(), SEEN_SLOTS);
    }
}
