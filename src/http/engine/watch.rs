//! Looking after connections that hold something of ours and do not get on.
//!
//! Defect 3: the library waits for a head for as long as bytes keep coming, keeps all of them, and
//! holds a thread and two descriptors meanwhile; the size of a chunk is read in the same way. Its
//! sockets' receive timeout ends those that are silent. The others are found here, on the usher's
//! thread, by looking at all connections, and ended:
//! - a trickle: no whole request in [`Limits::head_time`](super::Limits::head_time);
//! - a flood: more than [`Limits::head_bytes_max`](super::Limits::head_bytes_max) without one, or
//!   far more bytes than the body has that is being read. Looked for whenever the process has
//!   grown: a flood that does not make it grow does no harm;
//! - a body past its deadline whose reader is held up inside the library.
//!
//! What is being answered is left alone. A connection that was ended and is open all the same is
//! parked inside the library for good (defect 4); it is counted, and left alone.

use std::collections::{HashMap, HashSet};
use std::net::{Shutdown, SocketAddr};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Shared;
use super::diag::{Connection, Diag};
use super::sever::{Inode, Sever};
use super::usher::Stamp;

/// How often connections are looked at, in parts of the time they have.
const LOOKS: u32 = 6;
/// After so many looks a connection that was ended and is open will stay so.
const PARKED_AFTER: u32 = 3;
/// A process that has grown by so much is looked at now.
const GROWN_PAGES: u64 = 8 << 8; // 8 MiB, of 4 KiB each

/// ... and once more after this: time for a flood to bring more than a head.
const COMPARE_AFTER: Duration = Duration::from_millis(10);

/// What is known of the connections from the last looks.
pub(super) struct Watch {
    diag: Option<Diag>,
    known: HashMap<Inode, Known>,
    /// Ended by us, and how often they were looked at since.
    ended: HashMap<Inode, u32>,
    /// Those that will stay so.
    parked: HashSet<Inode>,
    looked: Instant,
    resident_pages: u64,
    /// When to look again: what floods shows when two looks are compared.
    compare_at: Option<Instant>,
}

/// A connection when it last was in order: new, or with a request in hand, or just after one.
struct Known {
    since: Instant,
    /// Bytes that had been read from it; `None` where the system does not tell.
    read: Option<u64>,
    last_request: Option<Stamp>,
    busy: bool,
}

impl Watch {
    /// For the connections of the listener at `local`.
    pub(super) fn new(local: SocketAddr) -> Self {
        Self {
            diag: Diag::new(local),
            known: HashMap::new(),
            ended: HashMap::new(),
            parked: HashSet::new(),
            looked: Instant::now(),
            resident_pages: resident_pages(),
            compare_at: None,
        }
    }

    /// Connections that sent something of which nothing was read: they wait for a thread of the
    /// library's pool, if they did not come just now. Zero where the system does not tell.
    pub(super) fn unread(&mut self) -> usize {
        let told = self.diag.as_mut().and_then(|diag| diag.connections().ok());
        let unread = |c: &&Connection| c.read == 0 && c.waiting > 0;
        told.map_or(0, |told| told.iter().filter(unread).count())
    }

    /// Whether it is time to look, in a process of so many `pages`.
    pub(super) fn is_due(&mut self, shared: &Shared, pages: u64) -> bool {
        self.resident_pages = self.resident_pages.min(pages);
        let compare = self.compare_at.is_some_and(|at| Instant::now() >= at);
        compare || self.has_grown(pages) || self.is_full_due(shared)
    }

    /// How long until a look that cannot wait.
    pub(super) fn due_in(&self) -> Option<Duration> {
        let at = self.compare_at?;
        Some(at.saturating_duration_since(Instant::now()))
    }

    fn has_grown(&self, pages: u64) -> bool {
        self.diag.is_some() && pages > self.resident_pages + GROWN_PAGES
    }

    fn is_full_due(&self, shared: &Shared) -> bool {
        self.looked.elapsed() >= shared.limits.head_time / LOOKS
    }

    /// Looks at all connections.
    pub(super) fn look(&mut self, shared: &Shared, pages: u64) {
        self.compare_at = (self.has_grown(pages)).then(|| Instant::now() + COMPARE_AFTER);
        self.resident_pages = pages;
        let full = self.is_full_due(shared);
        let connections = self.connections(shared);
        let before = std::mem::take(&mut self.known);
        let (mut over, mut floods) = (Vec::new(), Vec::new());
        for (inode, peer, read) in connections {
            if self.parked.contains(&inode) {
                continue;
            }
            if let Some(read) = read {
                floods.extend(
                    shared
                        .readings
                        .peers(|of, body| *of == peer && body.is_flooded(read)),
                );
            }
            let now = Known::now(shared, peer, read);
            let known = match before.get(&inode) {
                Some(before) if now.goes_on(before) => before.again(),
                _ => now,
            };
            let trickled =
                known.since.elapsed() >= shared.limits.head_time && !known.is_recent(shared);
            if trickled || known.is_flooded(read, shared.limits.head_bytes_max) {
                over.push(inode);
            } else {
                self.known.insert(inode, known);
            }
        }
        end(shared, &over, &floods);
        if full {
            self.looked = Instant::now();
            self.count_parked(shared);
        }
        self.ended.extend(over.into_iter().map(|inode| (inode, 0)));
    }

    fn connections(&mut self, shared: &Shared) -> Vec<(Inode, SocketAddr, Option<u64>)> {
        let told = self.diag.as_mut().and_then(|diag| diag.connections().ok());
        if let Some(told) = told {
            let told = told.into_iter();
            return told.map(|c| (c.inode, c.peer, Some(c.read))).collect();
        }
        let list = shared.sever.list().into_iter();
        list.map(|(inode, peer)| (inode, peer, None)).collect()
    }

    /// Of those ended a while ago, the ones still open will stay so.
    fn count_parked(&mut self, shared: &Shared) {
        if self.ended.is_empty() && self.parked.is_empty() {
            return;
        }
        let open = Sever::open();
        self.parked.retain(|inode| open.contains(inode));
        self.ended.retain(|inode, _| open.contains(inode));
        self.ended.values_mut().for_each(|looks| *looks += 1);
        let parked = self.ended.extract_if(|_, looks| *looks > PARKED_AFTER);
        let parked: Vec<_> = parked.map(|(inode, _)| inode).collect();
        if !parked.is_empty() {
            let count = parked.len();
            tracing::warn!(
                count,
                "connections were ended, and hold a thread each until a restart"
            );
            shared.abandoned.fetch_add(count as u64, Ordering::Relaxed);
            self.parked.extend(parked);
        }
    }
}

impl Known {
    fn now(shared: &Shared, peer: SocketAddr, read: Option<u64>) -> Self {
        Self {
            since: Instant::now(),
            read,
            last_request: shared.seen.last_request(peer),
            busy: shared.lines.is_busy(peer),
        }
    }

    /// Nothing came of it between `before` and now but bytes.
    fn goes_on(&self, before: &Self) -> bool {
        !self.busy && !before.busy && self.last_request == before.last_request
    }

    fn again(&self) -> Self {
        Self { ..*self }
    }

    /// It had a request not long ago: it is idle, which the receive timeout ends.
    fn is_recent(&self, shared: &Shared) -> bool {
        let since = self.last_request.map(|stamp| shared.seen.since(stamp));
        since.is_some_and(|since| since < shared.limits.head_time)
    }

    fn is_flooded(&self, read: Option<u64>, bytes_max: u64) -> bool {
        let came = read
            .zip(self.read)
            .map(|(now, before)| now.saturating_sub(before));
        came.is_some_and(|came| came > bytes_max)
    }
}

fn end(shared: &Shared, over: &[Inode], floods: &[SocketAddr]) {
    if !over.is_empty() {
        let count = over.len();
        tracing::info!(count, "ended connections that sent bytes and no request");
        shared.sever.connections(over);
    }
    for &peer in floods {
        tracing::info!(%peer, "ended a connection that sent bytes and no body");
        if let Some(found) = shared.sever.find(peer) {
            found.reset();
        }
    }
}

/// Ends the reading of bodies that are past their deadline; their clients are answered.
pub(super) fn end_overdue_bodies(shared: &Shared) {
    let now = Instant::now();
    for peer in shared.readings.peers(|_, body| body.is_overdue(now)) {
        shared.sever.peer(peer, Shutdown::Read);
    }
}

/// Sees which connections that were given up are closed by now. Of other connections from the same
/// peers, a request may have been thrown away: their clients are told at least that nobody listens,
/// and can come again.
pub(super) fn forget_strangers(shared: &Shared) {
    if !shared.lines.any_gone() {
        return;
    }
    let listed = Instant::now();
    let came = shared.lines.forget_closed(&Sever::open(), listed);
    if came.is_empty() {
        return;
    }
    let list = shared.sever.list().into_iter();
    let is_stranger = |(inode, peer): &(Inode, SocketAddr)| {
        came.get(peer)
            .is_some_and(|given_up| *given_up != Some(*inode))
    };
    let strangers: Vec<_> = list.filter(is_stranger).map(|(inode, _)| inode).collect();
    shared.sever.connections(&strangers);
}

/// Pages of memory the process has; zero where that is not known.
pub(super) fn resident_pages() -> u64 {
    let statm = crate::fs::read_to_string(Path::new("/proc/self/statm")).unwrap_or_default();
    let pages = statm.split_ascii_whitespace().nth(1);
    pages.and_then(|pages| pages.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(read: u64, busy: bool, last_request: Option<Stamp>) -> Known {
        Known {
            since: Instant::now(),
            read: Some(read),
            last_request,
            busy,
        }
    }

    #[test]
    fn bytes_count_only_while_no_request_is_in_hand() {
        let before = known(100, false, None);
        assert!(known(900, false, None).goes_on(&before));
        assert!(!known(900, true, None).goes_on(&before), "one is in hand");
        assert!(!known(900, false, Some(1)).goes_on(&before), "one came");
        let busy = known(100, true, Some(1));
        assert!(
            !known(900, false, Some(1)).goes_on(&busy),
            "its body, maybe"
        );
        assert!(before.is_flooded(Some(1101), 1000) && !before.is_flooded(Some(1100), 1000));
        assert!(!before.is_flooded(None, 0), "nobody tells");
    }

    #[test]
    fn the_size_of_the_process_is_known() {
        assert!(resident_pages() > 100);
    }
}
