//! Accepting connections, and evicting others for them.
//!
//! While no descriptor is left, or the maximum number of connections is open and none of them may be evicted,
//! the loop stops accepting and retries. Meanwhile new connections wait in the kernel's queue.

use std::io::ErrorKind;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mio::Token;

use super::super::connection::{Connection, IDLE_BUFFER_BYTES_MAX};
use super::super::mailbox::Key;
use super::super::system;
use super::{INTEREST, Io, failed};

/// Maximum number of connections accepted in one turn of the loop. Requests on open connections are handled
/// between two turns.
pub(super) const ACCEPTS_A_TURN: usize = 16;
/// How long accepting pauses after it failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);
/// How long accepting must fail until the handler is notified.
const ACCEPT_PATIENCE: Duration = Duration::from_secs(1);

impl Io {
    pub(super) fn accept(&mut self, now: Instant) {
        if self.buffered > self.shared.limits.buffers_bytes_max {
            let holds = |one: &Connection| one.buffered_bytes() > IDLE_BUFFER_BYTES_MAX;
            self.evict(self.expendable(now, holds));
        }
        if !self.acceptable || self.accept_at.is_some_and(|at| now < at) {
            return;
        }
        // After `ACCEPTS_A_TURN` connections the loop takes another turn at once and continues.
        self.accept_at = Some(now);
        for _ in 0..ACCEPTS_A_TURN {
            let Some(listener) = &self.listener else {
                return;
            };
            let full = self.connections.len() >= self.shared.limits.connections_max;
            let expendable = if full {
                self.expendable(now, |_| true)
            } else {
                Vec::new()
            };
            if full && expendable.is_empty() {
                // Before it is over, clients that have not sent anything are evicted.
                let patience = self.shared.limits.first_byte_time + ACCEPT_PATIENCE;
                return self.hold_off(now, patience, "the maximum number of connections is open");
            }
            match listener.accept() {
                Ok((stream, peer)) => {
                    self.evict(expendable);
                    self.add(stream, peer, now);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.acceptable = false;
                    break;
                }
                Err(error) if system::is_exhausted(&error) => {
                    self.evict(self.expendable(now, |_| true));
                    let why = "no file descriptor or no memory is left";
                    return self.hold_off(now, ACCEPT_PATIENCE, why);
                }
                // The client has closed this connection already.
                Err(_) => {}
            }
        }
        self.held_off = None;
        if std::mem::take(&mut self.reported) {
            tracing::info!("accepting connections again");
            self.shared.handler.accepting(true);
        }
    }

    fn add(&mut self, mut stream: mio::net::TcpStream, peer: std::net::SocketAddr, now: Instant) {
        let entry = self.connections.vacant_entry();
        let index = entry.key();
        let registry = self.poll.registry();
        if failed(&registry.register(&mut stream, Token(index), INTEREST)) {
            return;
        }
        self.serial += 1;
        let serial = self.serial;
        let key = Key { index, serial };
        entry.insert(Connection::new(stream, peer, key, now));
        self.advance(key, Connection::advance);
    }

    /// Pauses accepting. Logs and notifies the handler if it has failed for so long.
    fn hold_off(&mut self, now: Instant, patience: Duration, why: &str) {
        self.accept_at = Some(now + ACCEPT_PAUSE);
        let since = *self.held_off.get_or_insert(now);
        if !self.reported && now >= since + patience {
            self.reported = true;
            tracing::warn!("cannot accept connections: {why}; retrying");
            self.shared.handler.accepting(false);
        }
    }

    /// Indexes of the connections to evict among those that match `filter`, the longest idle first. It
    /// returns up to 1/64 of all connections at once, because the search visits all of them.
    fn expendable(&self, now: Instant, filter: fn(&Connection) -> bool) -> Vec<usize> {
        let ranked = |(index, connection): (usize, &Connection)| {
            let rank = connection.rank_to_evict(&self.shared.limits, now)?;
            filter(connection).then_some((rank, index))
        };
        let mut ranked: Vec<_> = self.connections.iter().filter_map(ranked).collect();
        ranked.sort_unstable();
        ranked.truncate(self.connections.len() / 64 + 1);
        ranked.into_iter().map(|(_, index)| index).collect()
    }

    fn evict(&mut self, expendable: Vec<usize>) {
        let count = expendable.len() as u64;
        self.shared.evicted.fetch_add(count, Ordering::Relaxed);
        for index in expendable {
            self.close(index);
        }
    }
}
