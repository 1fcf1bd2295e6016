//! Ending connections that trickle: a byte now and then, never a whole request.
//!
//! Defect 3: the library waits for a head for as long as bytes keep coming, and holds a thread and
//! two descriptors meanwhile. Its sockets' receive timeout ends the silent ones; these are found
//! by looking at all connections every few seconds (the usher does) and ended once they have been
//! there for [`Limits::head_time`](super::Limits::head_time) without a request. What is being
//! answered is left alone, and so are bodies: they have a deadline of their own.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::Shared;
use super::sever::Inode;

/// How often connections are looked at, in parts of the time they have.
const LOOKS: u32 = 6;

/// When each connection was last known to be in order.
pub(super) struct Trickle {
    since: HashMap<Inode, Instant>,
    looked: Instant,
}

impl Trickle {
    pub(super) fn new() -> Self {
        Self {
            since: HashMap::new(),
            looked: Instant::now(),
        }
    }

    /// Looks, if it is time to. `own` are addresses that are not looked at.
    pub(super) fn look(&mut self, shared: &Shared, own: &[SocketAddr]) {
        let head_time = shared.limits.head_time;
        if self.looked.elapsed() < head_time / LOOKS {
            return;
        }
        let now = Instant::now();
        self.looked = now;
        let before = std::mem::take(&mut self.since);
        let mut over = Vec::new();
        for (inode, peer) in shared.sever.list() {
            if own.contains(&peer) {
                continue;
            }
            let idle = shared.seen.since_request(peer).unwrap_or(Duration::MAX);
            let busy = idle < head_time || shared.lines.is_busy(peer);
            let since = match before.get(&inode) {
                Some(&since) if !busy => since,
                _ => now,
            };
            if now - since >= head_time {
                over.push(inode);
            } else {
                self.since.insert(inode, since);
            }
        }
        if !over.is_empty() {
            tracing::info!(count = over.len(), "ended connections that only trickled");
            shared.sever.connections(&over);
        }
    }
}
