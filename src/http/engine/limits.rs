//! The bounds of the engine.

use std::time::Duration;

/// Bounds of the engine; the defaults are what `serve` uses.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Maximum bytes of a body; default 8 MiB. Of a larger body, up to four times this limit is read
    /// and discarded, so that the client reads the reply.
    pub body_bytes_max: usize,
    /// Maximum bytes of all bodies over 16 KiB together; default 32 MiB. A body waits up to 2 s until
    /// enough of this memory is free.
    pub bodies_bytes_max: usize,
    /// Maximum bytes of the buffers of all connections (heads, small bodies, replies); default 64 MiB.
    /// Above it, the connections that are idle longest are closed.
    pub buffers_bytes_max: usize,
    /// Maximum number of connections; default 16,384. It is lowered to what the limit of open
    /// descriptors allows. At the maximum, connections that have been idle or stalled for a second are
    /// closed to accept others; those that have sent a part of their first head, after 10 ms.
    pub connections_max: usize,
    /// Maximum time until the first byte of a new connection while the maximum number of connections is
    /// open; default 10 s. Meanwhile further connections wait in the kernel's queue.
    pub first_byte_time: Duration,
    /// Maximum number of unanswered requests; default 8192. Further requests are answered with 503.
    pub in_flight_max: usize,
    /// The announced time that an idle connection is kept; default 75 s, longer than the usual
    /// timeouts of proxies. It is closed one second later.
    pub keep_alive: Duration,
    /// Maximum time from the first byte of a head to its last; default 30 s.
    pub head_time: Duration,
    /// Maximum time for a body; default 20 s. It starts again if the client sent at least
    /// [`Self::rate_min`] in it.
    pub body_time: Duration,
    /// Maximum time for writing a reply, by the same rule; default 20 s.
    pub write_time: Duration,
    /// Minimum rate at which a client must send a body and read a reply, in bytes a second; default
    /// 1 KiB.
    pub rate_min: u64,
    /// How long a shutdown waits for requests in flight; default 3 s.
    pub drain_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes_max: 8 << 20,
            bodies_bytes_max: 32 << 20,
            buffers_bytes_max: 64 << 20,
            connections_max: 16_384,
            first_byte_time: Duration::from_secs(10),
            in_flight_max: 8192,
            keep_alive: Duration::from_secs(75),
            head_time: Duration::from_secs(30),
            body_time: Duration::from_secs(20),
            write_time: Duration::from_secs(20),
            rate_min: 1 << 10,
            drain_time: Duration::from_secs(3),
        }
    }
}
