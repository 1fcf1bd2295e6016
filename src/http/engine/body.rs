//! Reading a request's body: bounded in bytes, in time, and in memory over all bodies at once.
//!
//! Defect 3: the library reads bodies without a deadline on whatever thread asks. So they are
//! read by a crew of their own, each until a deadline that an honest slow client meets and a
//! trickling one does not. Memory grows with the bytes that came, never with those announced.
//! Whoever reads may be held up inside the library; how far each has come is on a list
//! ([`Readings`]) for the usher, who ends the connections of those that do not end themselves.

use std::collections::HashMap;
use std::io::{ErrorKind, Read};
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// A body up to this length is read without asking anybody.
const SMALL_BYTES_MAX: usize = 256 << 10;
/// Larger bodies in memory at once.
const LARGE_AT_ONCE: usize = 12;
/// How long a large body waits for room.
const ROOM_WAIT: Duration = Duration::from_secs(2);
/// An upload at this rate (bytes a second) or faster meets its deadline however large it is.
const RATE_MIN: u64 = 128 << 10;

/// Past its deadline a body's reader has this time to see that itself.
const OVERDUE: Duration = Duration::from_millis(500);
/// A chunk may be one byte, with this many around it.
const BYTES_PER_BYTE: u64 = 8;
/// More than that may only be the size of a chunk, or what stands for it, that does not end.
const AROUND_BYTES_MAX: u64 = 1 << 20;

/// What one body may cost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Bytes kept.
    pub(super) bytes_max: usize,
    /// Bytes read and thrown away before the client is cut off.
    pub(super) discard_max: u64,
    /// The time it has; one second more for each [`RATE_MIN`] bytes that came.
    pub(super) time: Duration,
}

impl Bounds {
    pub(super) fn new(limits: &super::Limits) -> Self {
        Self {
            bytes_max: limits.body_bytes_max,
            discard_max: discard_max(limits),
            time: limits.body_time,
        }
    }
}

/// How far the reading of one body has come.
#[derive(Debug)]
pub(super) struct Reading {
    bounds: Bounds,
    begun: Instant,
    /// Bytes of the body.
    bytes: AtomicU64,
    /// Bytes read from its connection when the usher first looked.
    before: OnceLock<u64>,
}

impl Reading {
    fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            begun: Instant::now(),
            bytes: AtomicU64::new(0),
            before: OnceLock::new(),
        }
    }

    fn deadline(&self) -> Instant {
        let more = Duration::from_secs(self.bytes.load(Ordering::Relaxed) / RATE_MIN);
        self.begun + self.bounds.time + more
    }

    /// Past its deadline, with its reader held up.
    pub(super) fn is_overdue(&self, now: Instant) -> bool {
        now >= self.deadline() + OVERDUE
    }

    /// Whether far more was read from its connection, now that it is `wire` bytes in all, than
    /// came out of it.
    pub(super) fn is_flooded(&self, wire: u64) -> bool {
        let before = *self.before.get_or_init(|| wire);
        let bytes = self.bytes.load(Ordering::Relaxed);
        wire.saturating_sub(before) > bytes * BYTES_PER_BYTE + AROUND_BYTES_MAX
    }
}

/// The bodies that are being read just now, by whose they are.
#[derive(Debug, Default)]
pub(super) struct Readings(Mutex<HashMap<SocketAddr, Arc<Reading>>>);

/// A [`Reading`] on the list, until it is dropped.
pub(super) struct Listed<'a> {
    list: &'a Readings,
    peer: SocketAddr,
    reading: Arc<Reading>,
}

impl Readings {
    pub(super) fn begin(&self, peer: SocketAddr, bounds: Bounds) -> Listed<'_> {
        let reading = Arc::new(Reading::new(bounds));
        let mut list = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        list.insert(peer, Arc::clone(&reading));
        Listed {
            list: self,
            peer,
            reading,
        }
    }

    /// Whose bodies are in a state.
    pub(super) fn peers(&self, state: impl Fn(&SocketAddr, &Reading) -> bool) -> Vec<SocketAddr> {
        let list = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let those = list.iter().filter(|(peer, reading)| state(peer, reading));
        those.map(|(peer, _)| *peer).collect()
    }
}

impl Deref for Listed<'_> {
    type Target = Reading;

    fn deref(&self) -> &Reading {
        &self.reading
    }
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        let mut list = self.list.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Another connection may have had the same address since.
        if (list.get(&self.peer)).is_some_and(|there| Arc::ptr_eq(there, &self.reading)) {
            list.remove(&self.peer);
        }
    }
}

/// A body announced as longer than this is not read at all.
pub(super) fn discard_max(limits: &super::Limits) -> u64 {
    4 * limits.body_bytes_max as u64
}

/// Why there is no body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Over the limit, and read to its end.
    TooLarge,
    /// Over the limit and going on.
    TooLargeStill,
    /// The deadline, or the socket's own, passed.
    TimedOut,
    /// The client closed before the end.
    Incomplete,
    /// Chunks that are none.
    Malformed,
    /// Too many large bodies at once.
    NoRoom,
}

impl Fault {
    /// Whether nothing of the body is left to be read from the socket.
    pub(super) fn read_to_end(self) -> bool {
        matches!(self, Self::TooLarge | Self::Incomplete)
    }
}

/// Room for large bodies, shared by all who read.
#[derive(Debug, Default)]
pub(super) struct Room {
    taken: Mutex<usize>,
    left: Condvar,
}

/// A place in the room, given back when dropped.
#[derive(Debug)]
struct Place<'a>(&'a Room);

impl Room {
    fn place(&self, deadline: Instant) -> Option<Place<'_>> {
        let wait = deadline
            .saturating_duration_since(Instant::now())
            .min(ROOM_WAIT);
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut taken, _) = self
            .left
            .wait_timeout_while(taken, wait, |taken| *taken >= LARGE_AT_ONCE)
            .unwrap_or_else(PoisonError::into_inner);
        if *taken >= LARGE_AT_ONCE {
            return None;
        }
        *taken += 1;
        Some(Place(self))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        *self.0.taken.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.left.notify_one();
    }
}

/// Reads a body whose length was announced (`Some`) or that comes in chunks (`None`), and hands
/// it to `done` while its room is still held.
pub(super) fn read<T>(
    reader: &mut dyn Read,
    announced: Option<u64>,
    reading: &Reading,
    room: &Room,
    done: impl FnOnce(Vec<u8>) -> T,
) -> Result<T, Fault> {
    let bytes_max = reading.bounds.bytes_max;
    if announced.is_some_and(|bytes| bytes > bytes_max as u64) {
        discard(reader, announced, 0, reading)?;
        return Err(Fault::TooLarge);
    }
    let expected = usize::try_from(announced.unwrap_or(bytes_max as u64)).unwrap_or(usize::MAX);
    let step_min = if announced.is_some() {
        SMALL_BYTES_MAX
    } else {
        16 << 10
    };
    let mut body = Vec::new();
    let (mut filled, mut place) = (0, None);
    loop {
        if filled == body.len() {
            if announced.is_some() && filled == expected {
                break;
            }
            if filled >= bytes_max {
                // Chunks that end just here, or go on past the limit.
                if discard(reader, None, filled as u64, reading)? == 0 {
                    break;
                }
                return Err(Fault::TooLarge);
            }
            if filled >= SMALL_BYTES_MAX && place.is_none() {
                place = Some(room.place(reading.deadline()).ok_or(Fault::NoRoom)?);
                // Addresses only: what was not written to yet is not there.
                body.reserve_exact(expected - filled);
            }
            body.resize((filled * 2).max(step_min).min(expected), 0);
        }
        match read_some(reader, &mut body[filled..], reading)? {
            0 if announced.is_some() => return Err(Fault::Incomplete),
            0 => break,
            count => filled += count,
        }
    }
    body.truncate(filled);
    let result = done(body);
    drop(place);
    Ok(result)
}

/// Reads and throws away the rest of a body of which `before` bytes were read: to its end, or to
/// the bound or the deadline. Returns how many bytes were thrown away.
pub(super) fn discard(
    reader: &mut dyn Read,
    announced: Option<u64>,
    before: u64,
    reading: &Reading,
) -> Result<u64, Fault> {
    let mut sink = vec![0; 16 << 10];
    let mut count = before;
    loop {
        if announced == Some(count) {
            return Ok(count - before);
        }
        if count > reading.bounds.discard_max {
            return Err(Fault::TooLargeStill);
        }
        let left = announced.map_or(u64::MAX, |announced| announced - count);
        let step = usize::try_from(left).unwrap_or(usize::MAX).min(sink.len());
        match read_some(reader, &mut sink[..step], reading)? {
            0 if announced.is_some() => return Err(Fault::Incomplete),
            0 => return Ok(count - before),
            read => count += read as u64,
        }
    }
}

fn read_some(reader: &mut dyn Read, into: &mut [u8], reading: &Reading) -> Result<usize, Fault> {
    loop {
        if Instant::now() >= reading.deadline() {
            return Err(Fault::TimedOut);
        }
        let read = reader.read(into);
        // The usher ends the connection of a reader that is held up past its deadline.
        let ended = Instant::now() >= reading.deadline();
        match read {
            Ok(0) | Err(_) if ended => return Err(Fault::TimedOut),
            Ok(count) => {
                reading.bytes.fetch_add(count as u64, Ordering::Relaxed);
                return Ok(count);
            }
            Err(error) => match error.kind() {
                ErrorKind::Interrupted => {}
                ErrorKind::WouldBlock | ErrorKind::TimedOut => return Err(Fault::TimedOut),
                ErrorKind::InvalidInput => return Err(Fault::Malformed),
                _ => return Err(Fault::Incomplete),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    fn reading(bytes_max: usize, time: Duration) -> Reading {
        Reading::new(Bounds {
            bytes_max,
            discard_max: 4 * bytes_max as u64,
            time,
        })
    }

    fn length(bytes: &[u8], announced: Option<u64>, bytes_max: usize) -> Result<usize, Fault> {
        let room = Room::default();
        let mut bytes = bytes;
        let reading = reading(bytes_max, Duration::from_mins(1));
        read(&mut bytes, announced, &reading, &room, |body| body.len())
    }

    #[test]
    fn a_body_is_read_to_its_announced_end_and_no_further() {
        let bytes = vec![7; 1 << 20];
        for announced in [1, 1024, 1025, SMALL_BYTES_MAX, SMALL_BYTES_MAX + 1, 1 << 20] {
            assert_eq!(
                length(&bytes, Some(announced as u64), 1 << 20),
                Ok(announced)
            );
        }
        assert_eq!(
            length(&bytes, Some((1 << 20) + 1), 2 << 20),
            Err(Fault::Incomplete)
        );
        assert_eq!(length(&bytes[..5000], None, 1 << 20), Ok(5000));
        assert_eq!(length(&[], None, 1 << 20), Ok(0));
    }

    #[test]
    fn over_the_limit_it_is_read_and_thrown_away_up_to_four_times_the_limit() {
        let bytes = vec![7; 100_000];
        assert_eq!(
            length(&bytes[..40_000], Some(40_000), 10_000),
            Err(Fault::TooLarge)
        );
        assert_eq!(length(&bytes[..40_000], None, 10_000), Err(Fault::TooLarge));
        assert_eq!(length(&bytes, None, 10_000), Err(Fault::TooLargeStill));
        assert_eq!(
            length(&bytes[..9_999], Some(40_000), 10_000),
            Err(Fault::Incomplete)
        );
        assert_eq!(
            length(&bytes[..10_000], None, 10_000),
            Ok(10_000),
            "just at it"
        );
    }

    /// Gives one byte at a time, for ever.
    struct Trickle;

    impl Read for Trickle {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            into[0] = b'x';
            Ok(1)
        }
    }

    #[test]
    fn a_trickle_ends_at_the_deadline() {
        let reading = reading(1 << 20, Duration::ZERO);
        let room = Room::default();
        let read = read(&mut Trickle, Some(1 << 20), &reading, &room, |_| ());
        assert_eq!(read, Err(Fault::TimedOut));
    }

    #[test]
    fn whoever_sends_fast_enough_has_time_and_whoever_floods_is_told() {
        let reading = reading(1 << 20, Duration::ZERO);
        let now = Instant::now();
        assert!(reading.is_overdue(now + OVERDUE) && !reading.is_overdue(reading.begun));
        reading.bytes.store(10 * RATE_MIN, Ordering::Relaxed);
        assert!(!reading.is_overdue(now + Duration::from_secs(9)));
        assert!(!reading.is_flooded(500), "what came before does not count");
        assert!(
            !reading.is_flooded(500 + 6 * 10 * RATE_MIN),
            "bytes one by one"
        );
        assert!(reading.is_flooded(500 + 8 * 10 * RATE_MIN + (2 << 20)));
    }

    #[test]
    fn a_body_is_on_the_list_while_it_is_read() {
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        let (list, bounds) = (Readings::default(), reading(1, Duration::ZERO).bounds);
        let elder = list.begin(peer, bounds);
        let reading = list.begin(peer, bounds);
        drop(elder);
        assert_eq!(list.peers(|_, _| true), [peer], "that of the second");
        drop(reading);
        assert!(list.peers(|_, _| true).is_empty());
    }

    #[test]
    fn large_bodies_at_once_are_bounded() {
        let room = Room::default();
        let now = Instant::now();
        let places: Vec<_> = (0..LARGE_AT_ONCE).map(|_| room.place(now)).collect();
        assert!(places.iter().all(Option::is_some));
        assert!(room.place(now).is_none());
        drop(places);
        assert!(room.place(now).is_some());
    }
}
