//! Replies in order: which request of a connection is answered next, and by whom.
//!
//! The library writes the replies of one connection in the order of its requests by *blocking*
//! the thread that is early. A thread that answers the second of two pipelined requests while it
//! is also the one that would answer the first waits for ever. So nobody is ever early here: a
//! reply that is ready before its elders is parked, and whoever finishes the elder writes it too.
//! At most one thread writes to a connection at any time, so a client that never reads holds up
//! one thread, not one for each of its requests.
//!
//! A connection is its peer's address. It has an entry only while it has requests unanswered, so
//! the map is bounded by the requests in flight. Connections we gave up on are remembered, for as
//! long as the library may still read requests from them, in a map of its own with a bound. Where
//! it is known which socket it was, that is until the socket is closed, and no longer: the next
//! client that is given the same port is another one, and to be believed.
//! Locks are held for map operations only.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::sever::Inode;

type Map<V> = hashbrown::HashMap<SocketAddr, V, rapidhash::fast::RandomState>;

const SHARDS: usize = 16;
/// Connections given up on that one shard remembers.
const GONE_MAX: usize = 4096;
/// What was read from a connection before its client reset it is taken from the library's queue
/// within this time.
const QUEUED_TIME: Duration = Duration::from_millis(250);
/// Of the requests that are not believed any more, so many may come before it is a flood. Who sends
/// these reads nothing as a rule, and what it is owed takes memory until that is seen.
const FLOOD: u64 = 1024;

/// What becomes of a request that just came.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Entered {
    /// It is the `seq`th of its connection's present run.
    Turn(u64),
    /// It is one more than may be unanswered at once: refuse it and end the connection.
    TooMany(u64),
    /// Its connection had its last request, and those before it are not all answered: what comes from
    /// it now is not to be believed, and [`Lines::wait`]s.
    Over {
        /// It sends far more than it may, and is to be cut off whatever it is still owed.
        flood: bool,
    },
    /// The last connection from there was given up, and is owed nothing: what comes from it now is not
    /// to be believed.
    Gone,
}

/// What is to be written now.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Turn<O> {
    pub(super) item: O,
    /// The connection was given up since: nothing of it is to be written.
    pub(super) gone: bool,
}

/// The unanswered requests of all connections. `O` is what waits to be written.
pub(super) struct Lines<O> {
    shards: Vec<Mutex<Shard<O>>>,
    outstanding_max: u64,
    gone_for: Duration,
    hasher: rapidhash::fast::RandomState,
}

struct Shard<O> {
    lines: Map<Line<O>>,
    gone: Map<Gone>,
}

/// A connection that was given up.
struct Gone {
    /// When, or when the last request came from it that was not believed.
    since: Instant,
    socket: Socket,
    /// A request came since strangers were looked for.
    came: bool,
}

/// What is known of the socket of a connection that was given up.
#[derive(Clone, Copy)]
enum Socket {
    /// Nothing (yet).
    Unknown,
    /// It is open.
    Open(Inode),
    /// Its client had reset it, then: it could not be told which it was.
    Reset(Instant),
}

impl<O> Shard<O> {
    fn is_gone(&self, peer: SocketAddr) -> bool {
        !self.gone.is_empty() && self.gone.contains_key(&peer)
    }
}

struct Line<O> {
    /// The number the next request gets.
    next: u64,
    /// The number of the request whose reply is written next.
    turn: u64,
    /// Somebody is writing (or holds the turn).
    writing: bool,
    /// The last request that is believed came, and so many that were not since.
    over: Option<u64>,
    /// Replies that wait for their elders.
    parked: BTreeMap<u64, O>,
}

impl<O> Line<O> {
    /// One more came that is not believed.
    fn over(&mut self) -> Entered {
        let more = self.over.get_or_insert(0);
        *more += 1;
        let flood = more.is_multiple_of(FLOOD);
        Entered::Over { flood }
    }
}

impl<O> Lines<O> {
    /// `outstanding_max` unanswered requests a connection; one given up is remembered `gone_for`.
    pub(super) fn new(outstanding_max: u64, gone_for: Duration) -> Self {
        let shard = || {
            Mutex::new(Shard {
                lines: Map::default(),
                gone: Map::default(),
            })
        };
        Self {
            shards: std::iter::repeat_with(shard).take(SHARDS).collect(),
            outstanding_max,
            gone_for,
            hasher: rapidhash::fast::RandomState::default(),
        }
    }

    /// A request came from `peer`. Must be called in the order the requests came in.
    pub(super) fn enter(&self, peer: SocketAddr) -> Entered {
        let Shard { lines, gone } = &mut *self.shard(peer);
        if !gone.is_empty()
            && let Some(was) = gone.get_mut(&peer)
        {
            let known = !matches!(was.socket, Socket::Unknown);
            if known || was.since.elapsed() < self.gone_for {
                was.since = Instant::now();
                was.came = true;
                return lines.get_mut(&peer).map_or(Entered::Gone, Line::over);
            }
            gone.remove(&peer);
        }
        let line = lines.entry(peer).or_insert_with(|| Line {
            next: 0,
            turn: 0,
            writing: false,
            over: None,
            parked: BTreeMap::new(),
        });
        if line.over.is_some() {
            return line.over();
        }
        let seq = line.next;
        line.next += 1;
        if seq - line.turn >= self.outstanding_max {
            line.over = Some(0);
            return Entered::TooMany(seq);
        }
        Entered::Turn(seq)
    }

    /// The reply of `peer`'s request `seq` is ready. Handed back: write it now, then call
    /// [`Self::written`]. `None`: parked until its elders are written.
    #[must_use]
    pub(super) fn ready(&self, peer: SocketAddr, seq: u64, item: O) -> Option<Turn<O>> {
        let mut shard = self.shard(peer);
        let gone = shard.is_gone(peer);
        let Some(line) = shard.lines.get_mut(&peer) else {
            return Some(Turn { item, gone });
        };
        if line.turn == seq && !line.writing {
            line.writing = true;
            return Some(Turn { item, gone });
        }
        line.parked.insert(seq, item);
        None
    }

    /// The reply in turn was written. Handed back: the next one, to be written now.
    #[must_use]
    pub(super) fn written(&self, peer: SocketAddr) -> Option<Turn<O>> {
        let mut shard = self.shard(peer);
        let gone = shard.is_gone(peer);
        let line = shard.lines.get_mut(&peer)?;
        line.turn += 1;
        let next = line.parked.remove(&line.turn);
        line.writing = next.is_some();
        if line.turn == line.next {
            shard.lines.remove(&peer);
        }
        next.map(|item| Turn { item, gone })
    }

    /// Whoever holds the turn of `peer` gives it back without having written: the same request
    /// will be [`Self::ready`] later.
    pub(super) fn not_yet(&self, peer: SocketAddr) {
        if let Some(line) = self.shard(peer).lines.get_mut(&peer) {
            line.writing = false;
        }
    }

    /// From now on nothing that comes from `peer` is believed.
    pub(super) fn give_up(&self, peer: SocketAddr) {
        self.remember_gone(&mut self.shard(peer), peer);
    }

    /// The same of a connection that its client had reset, if that can be `known`; one given up
    /// before stays as it is.
    pub(super) fn give_up_ended(&self, peer: SocketAddr, known: bool) {
        let shard = &mut self.shard(peer);
        if !shard.is_gone(peer) {
            self.remember_gone(shard, peer);
            if known && let Some(gone) = shard.gone.get_mut(&peer) {
                gone.socket = Socket::Reset(Instant::now());
            }
        }
    }

    /// A turn, after all others, for a request that is [`Entered::Over`]; `None` if those before it
    /// are answered, or if as many wait as may be believed. With it the last one so far, where that
    /// `may_go`: this one waits in its place.
    ///
    /// The library writes replies of its own, to what is no request, and does so as soon as the request
    /// before that is let go: the last one must not be, while others are owed theirs.
    pub(super) fn wait(
        &self,
        peer: SocketAddr,
        may_go: impl Fn(&O) -> bool,
    ) -> Option<(u64, Option<O>)> {
        let mut shard = self.shard(peer);
        let line = shard.lines.get_mut(&peer)?;
        if let Some(last) = line.parked.last_entry()
            && last.key() + 1 == line.next
            && may_go(last.get())
        {
            let (seq, replaced) = last.remove_entry();
            return Some((seq, Some(replaced)));
        }
        let seq = line.next;
        (seq - line.turn < 2 * self.outstanding_max).then(|| {
            line.next += 1;
            (seq, None)
        })
    }

    /// The request that just came from `peer` is the last that is believed.
    pub(super) fn no_more(&self, peer: SocketAddr) {
        if let Some(line) = self.shard(peer).lines.get_mut(&peer) {
            line.over.get_or_insert(0);
        }
    }

    /// Which socket it was that was given up, `None` if its client had reset it: it counts as given
    /// up until it is closed, or until what was read from it has been taken.
    pub(super) fn was(&self, peer: SocketAddr, open: Option<Inode>) {
        if let Some(gone) = self.shard(peer).gone.get_mut(&peer) {
            gone.socket = open.map_or(Socket::Reset(Instant::now()), Socket::Open);
        }
    }

    /// The connection that was given up can send nothing more.
    pub(super) fn forget(&self, peer: SocketAddr) {
        self.shard(peer).gone.remove(&peer);
    }

    /// Whether connections given up are remembered.
    pub(super) fn any_gone(&self) -> bool {
        self.locked().any(|shard| !shard.gone.is_empty())
    }

    /// Forgets the connections given up whose sockets are not `open` any more; those that were opened
    /// or given up since these were `listed` are left alone. Handed back: peers
    /// from which requests came that were not believed, and the socket they were taken to be from,
    /// where it is open: what comes from another socket is another connection's.
    pub(super) fn forget_closed(
        &self,
        open: &HashSet<Inode>,
        listed: Instant,
    ) -> HashMap<SocketAddr, Option<Inode>> {
        let mut came = HashMap::new();
        for mut shard in self.locked() {
            let Shard { lines, gone } = &mut *shard;
            gone.retain(|peer, gone| {
                let (kept, socket) = match gone.socket {
                    Socket::Unknown => return gone.since.elapsed() < self.gone_for,
                    // Each request holds its socket: once it is closed, none of them is left.
                    Socket::Open(inode) => {
                        let unlisted = gone.since >= listed;
                        (unlisted || open.contains(&inode), Some(inode))
                    }
                    Socket::Reset(since) => (since.elapsed() < QUEUED_TIME, None),
                };
                if std::mem::take(&mut gone.came) {
                    came.insert(*peer, socket);
                }
                // Its line may still be on its way to be closed.
                kept || lines.contains_key(peer)
            });
        }
        came
    }

    /// Whether `seq` is the last request that came from `peer` so far.
    pub(super) fn is_last(&self, peer: SocketAddr, seq: u64) -> bool {
        let shard = self.shard(peer);
        shard
            .lines
            .get(&peer)
            .is_none_or(|line| seq + 1 == line.next)
    }

    /// Whether it has requests unanswered.
    pub(super) fn is_busy(&self, peer: SocketAddr) -> bool {
        self.shard(peer).lines.contains_key(&peer)
    }

    /// Connections with unanswered requests, and connections given up.
    #[cfg(test)]
    pub(super) fn sizes(&self) -> (usize, usize) {
        self.locked().fold((0, 0), |(lines, gone), shard| {
            (lines + shard.lines.len(), gone + shard.gone.len())
        })
    }

    fn remember_gone(&self, shard: &mut Shard<O>, peer: SocketAddr) {
        if shard.gone.len() >= GONE_MAX {
            shard
                .gone
                .retain(|_, gone| gone.since.elapsed() < self.gone_for);
            if shard.gone.len() >= GONE_MAX {
                // Still full of hostile connections: the oldest half is let go.
                let mut times: Vec<_> = shard.gone.values().map(|gone| gone.since).collect();
                times.sort_unstable();
                let middle = times[times.len() / 2];
                shard.gone.retain(|_, gone| gone.since > middle);
            }
        }
        let gone = Gone {
            since: Instant::now(),
            socket: Socket::Unknown,
            came: shard.gone.get(&peer).is_some_and(|gone| gone.came),
        };
        shard.gone.insert(peer, gone);
    }

    /// The shards, each locked while it is looked at.
    fn locked(&self) -> impl Iterator<Item = MutexGuard<'_, Shard<O>>> {
        let shards = self.shards.iter();
        shards.map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn shard(&self, peer: SocketAddr) -> MutexGuard<'_, Shard<O>> {
        use std::hash::BuildHasher as _;
        let hash = self.hasher.hash_one(peer);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "only the low bits choose the shard"
        )]
        let index = hash as usize % SHARDS;
        self.shards[index]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn lines(outstanding_max: u64) -> Lines<&'static str> {
        Lines::new(outstanding_max, Duration::from_mins(1))
    }

    #[expect(
        clippy::unnecessary_wraps,
        reason = "it is compared with what is returned"
    )]
    fn on(item: &'static str) -> Option<Turn<&'static str>> {
        Some(Turn { item, gone: false })
    }

    #[test]
    fn a_reply_before_its_elder_is_parked_and_then_handed_to_the_elders_writer() {
        let lines = lines(10);
        assert_eq!(lines.enter(peer(1)), Entered::Turn(0));
        assert_eq!(lines.enter(peer(1)), Entered::Turn(1));
        assert_eq!(lines.enter(peer(1)), Entered::Turn(2));
        assert_eq!(lines.enter(peer(2)), Entered::Turn(0));
        assert_eq!(lines.ready(peer(1), 2, "c"), None);
        assert_eq!(lines.ready(peer(1), 1, "b"), None);
        assert_eq!(lines.ready(peer(2), 0, "other"), on("other"));
        assert_eq!(lines.ready(peer(1), 0, "a"), on("a"));
        assert_eq!(lines.written(peer(1)), on("b"));
        assert_eq!(lines.enter(peer(1)), Entered::Turn(3));
        assert_eq!(lines.ready(peer(1), 3, "d"), None, "b is being written");
        assert_eq!(lines.written(peer(1)), on("c"));
        assert_eq!(lines.written(peer(1)), on("d"));
        assert_eq!(lines.written(peer(1)), None);
        assert_eq!(lines.written(peer(2)), None);
        assert_eq!(lines.sizes(), (0, 0), "nothing is kept");
    }

    #[test]
    fn a_turn_given_back_is_taken_again() {
        let lines = lines(10);
        assert_eq!(lines.enter(peer(1)), Entered::Turn(0));
        assert_eq!(
            lines.ready(peer(1), 0, "read the body"),
            on("read the body")
        );
        lines.not_yet(peer(1));
        assert_eq!(lines.ready(peer(1), 0, "reply"), on("reply"));
        assert_eq!(lines.written(peer(1)), None);
        assert_eq!(lines.sizes(), (0, 0));
    }

    #[test]
    fn one_too_many_ends_the_connection_and_the_map_of_those_is_bounded() {
        let lines = lines(2);
        assert_eq!(lines.enter(peer(1)), Entered::Turn(0));
        assert_eq!(lines.enter(peer(1)), Entered::Turn(1));
        assert_eq!(lines.enter(peer(1)), Entered::TooMany(2));
        assert_eq!(lines.enter(peer(1)), Entered::Over { flood: false });
        let floods = (0..2 * FLOOD).filter(|_| {
            let entered = lines.enter(peer(1));
            entered == Entered::Over { flood: true }
        });
        assert_eq!(floods.count(), 2);
        assert_eq!(
            lines.ready(peer(1), 0, "its elders are answered"),
            on("its elders are answered")
        );
        lines.give_up(peer(1));
        let over = Entered::Over { flood: false };
        assert_eq!(lines.enter(peer(1)), over, "others are owed theirs");
        assert_eq!(lines.ready(peer(1), 1, "b"), None);
        let unwanted = Turn {
            item: "b",
            gone: true,
        };
        assert_eq!(lines.written(peer(1)), Some(unwanted));
        for a in 0..4 {
            for port in 0..u16::MAX {
                lines.give_up(SocketAddr::from(([10, 0, 0, a], port)));
            }
        }
        assert!(lines.sizes().1 <= SHARDS * GONE_MAX);
    }

    #[test]
    fn of_those_that_are_not_believed_the_last_waits_behind_those_that_are() {
        let lines = lines(2);
        let wait = |may_go: fn(&&str) -> bool| lines.wait(peer(1), may_go);
        assert_eq!(wait(|_| true), None, "nobody is owed anything");
        assert_eq!(lines.enter(peer(1)), Entered::Turn(0));
        assert_eq!(lines.enter(peer(1)), Entered::Turn(1));
        lines.no_more(peer(1));
        assert_eq!(lines.ready(peer(1), 1, "refusal"), None);
        assert_eq!(wait(|_| false), Some((2, None)));
        assert_eq!(lines.ready(peer(1), 2, "x"), None);
        assert_eq!(wait(|last| *last == "x"), Some((2, Some("x"))));
        assert_eq!(lines.ready(peer(1), 2, "y"), None);
        assert_eq!(wait(|last| *last == "x"), Some((3, None)), "y may not go");
        assert_eq!(wait(|_| false), None, "too many");
        assert_eq!(lines.ready(peer(1), 0, "reply"), on("reply"));
        assert_eq!(lines.written(peer(1)), on("refusal"));
        assert_eq!(lines.written(peer(1)), on("y"));
        assert_eq!(lines.written(peer(1)), None);
        assert_eq!(lines.ready(peer(1), 3, "z"), on("z"), "it was not there");
        assert_eq!(lines.written(peer(1)), None);
        assert_eq!(lines.sizes(), (0, 0));
    }

    #[test]
    fn a_connection_given_up_is_forgotten_in_time() {
        let lines = Lines::<()>::new(2, Duration::ZERO);
        lines.give_up(peer(1));
        assert_eq!(lines.enter(peer(1)), Entered::Turn(0));
    }

    #[test]
    fn a_connection_given_up_is_gone_until_its_socket_is_closed() {
        let lines = Lines::<()>::new(2, Duration::ZERO);
        lines.give_up(peer(1));
        lines.was(peer(1), Some(7));
        lines.forget_closed(&HashSet::from([7]), Instant::now());
        for _ in 0..2 {
            assert_eq!(lines.enter(peer(1)), Entered::Gone);
        }
        let came = lines.forget_closed(&HashSet::from([7]), Instant::now());
        assert_eq!(came, [(peer(1), Some(7))].into());
        assert_eq!(
            lines.forget_closed(&HashSet::from([7]), Instant::now()),
            HashMap::new()
        );
        assert_eq!(lines.enter(peer(1)), Entered::Gone);
        assert_eq!(
            lines.forget_closed(&HashSet::new(), Instant::now()),
            [(peer(1), Some(7))].into()
        );
        assert_eq!(lines.enter(peer(1)), Entered::Turn(0), "somebody else's");
        lines.no_more(peer(1));
        lines.give_up(peer(1));
        lines.was(peer(1), Some(8));
        lines.forget_closed(&HashSet::new(), Instant::now());
        let over = Entered::Over { flood: false };
        assert_eq!(lines.enter(peer(1)), over, "its line is there");
        assert!(lines.written(peer(1)).is_none());
        lines.forget_closed(&HashSet::new(), Instant::now());
        assert_eq!(lines.enter(peer(1)), Entered::Turn(0));
        let listed = Instant::now();
        lines.give_up(peer(3));
        lines.was(peer(3), Some(9));
        lines.forget_closed(&HashSet::new(), listed);
        assert_eq!(lines.enter(peer(3)), Entered::Gone, "too new to be listed");
        lines.forget_closed(&HashSet::new(), Instant::now());
        assert_eq!(lines.enter(peer(3)), Entered::Turn(0));
        let start = Instant::now();
        lines.give_up(peer(2));
        lines.was(peer(2), None);
        assert_eq!(lines.enter(peer(2)), Entered::Gone);
        assert_eq!(
            lines.forget_closed(&HashSet::new(), Instant::now()),
            [(peer(2), None)].into()
        );
        while lines.any_gone() {
            assert!(start.elapsed() < Duration::from_secs(20), "forgotten");
            lines.forget_closed(&HashSet::new(), Instant::now());
        }
        assert!(start.elapsed() >= QUEUED_TIME, "not while it is queued");
    }
}
