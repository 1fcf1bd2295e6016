//! tallyline takes revenue events over HTTP, keeps them in plain JSON Lines files, and keeps exact
//! per-user totals in one SQLite file.
//!
//! Most people run the program and need nothing of this. As a library it is for tests: a whole
//! server in your own process, and the client that sends files to it.
//!
//! # In a test of your own
//!
//! A [`Server`](server::Server) runs on a free port, with a directory of its own; several side by side
//! do not meet. `POST /flush` answers once all that was acknowledged is in the totals, so no test has
//! to sleep.
//!
//! ```
//! use tallyline::config::ServeConfig;
//! use tallyline::server::Server;
//!
//! let dir = tempfile::tempdir()?;
//! let server = Server::start(&ServeConfig::at(dir.path()))?;
//! let url = format!("http://{}", server.address());
//! let http: ureq::Agent = ureq::Agent::config_builder().proxy(None).build().into();
//!
//! let event = r#"{"userId": "user1", "name": "add_revenue", "value": 100}"#;
//! let answer = http.post(format!("{url}/liveEvent")).send(event)?;
//! assert_eq!(answer.status(), 202);
//! http.post(format!("{url}/flush")).send_empty()?;
//! let mut answer = http.get(format!("{url}/userEvents/user1")).call()?;
//! let user = answer.body_mut().read_to_string()?;
//! assert!(user.contains(r#""revenue":100,"events":1"#), "{user}");
//!
//! server.stop();
//! # Ok::<(), anyhow::Error>(())
//! ```
//!
//! | to | there is |
//! |---|---|
//! | start and stop a server | [`server::Server`], set up by [`config::ServeConfig`] |
//! | send a file as `tallyline send` does, with ids, retries and a state to go on from | [`client::send`], set up by [`config::SendConfig`] |
//! | read and check one event | [`event::Event`] |
//!
//! Everything else is private.
//!
//! # Architecture
//!
//! ```text
//!  POST /liveEvent                                                     GET /userEvents/{userId}
//!        |                                                                       ^
//!  http: parse, check ---- Batch ----> journal: committer                        |
//!        ^                             one write + one fdatasync        store: Readers (pool)
//!        |                             for all who wait                          ^
//!        +------- Position ------------+    |                                    |
//!                                           | committed bytes                    |
//!                                           v                                    |
//!                      process: cut at line ends, parse on a pool,               |
//!                      per-user deltas in memory                                 |
//!                                           |                                    |
//!                                           v                                    |
//!                      store: ONE transaction: totals += deltas, ids, rejected lines,
//!                      and segment.applied_bytes: old -> new
//! ```
//!
//! A [`Position`](data_dir::segment::Position), a segment and a byte offset, is the one idea that carries the
//! acknowledgement (an append returns one), exactly-once (the store holds the applied one), resume
//! after a crash, freshness and read-your-writes (a GET can wait for one).
//!
//! # Invariants
//!
//! 1. **ACK.** A 2xx is sent only when the event's bytes are fdatasync'd, and its file's directory
//!    entry too. A failed write acknowledges nobody. ([`journal`])
//! 2. **Exactly once.** Totals, seen ids, rejected lines and a segment's applied bytes change in one
//!    transaction, guarded by compare-and-set on the old offset. Memory changes after the commit.
//!    ([`store`])
//! 3. **The files are the truth**, the database is a view: delete it, process every file again, get
//!    the same totals. ([`processor`])
//! 4. **A segment is its number and its tag**, stored when it is created, never guessed from other
//!    files, an inode or a content; two segments of one number are reported. Its applied prefix is
//!    confirmed by a checksum before work goes on from there. Acknowledged bytes never change.
//!    ([`data_dir`], [`journal`])
//! 5. **Nothing silent.** Received = accepted + refused; lines in the files = applied + duplicates +
//!    rejected + pending + corrupt. Each side is counted where it happens, and what they differ by
//!    is published as unaccounted. ([`store::Ledger`])
//! 6. **Totals do not depend** on thread count, chunking, order or where rotation fell. ([`processor`])
//! 7. **Everything bounded**: queues, bodies, lines, waiters, maps, disk. ([`http`], [`journal`])
//! 8. **The database never stops the taking** of events; broken parts turn readiness red, in words.
//!    ([`health`])
//! 9. **One writer and one processor** per data directory. ([`data_dir::disk::Lock`])
//!
//! # Threads
//!
//! | name | owns | may block on |
//! |---|---|---|
//! | `main` | the start and stop of all others | a signal |
//! | `committer` | the active file, all of its writes, syncs and rotations | the disk |
//! | `process` | the database's only writing connection, how far each file is applied | the disk, the database |
//! | `process-scan-N` | a chunk of lines at a time, their sums | the disk (reading), its queue |
//! | `process-check` | nothing: adds the totals up after a start, for readiness | the database (reading) |
//! | `process-clock` | the clock that says how far applying is behind | nothing |
//! | `process-observe` | with `--no-process`: the ledger shown, read again now and then | the database (reading) |
//! | `http-io` | all sockets of the server; handles small requests | nothing |
//! | `http-worker-N` | a request with a large or compressed body | nothing |
//! | `http-blocking-N` | a request that reads the database or the data directory | the disk, the database (reading) |
//! | `log` | in a server: the log lines that wait | stderr |
//! | `disk-usage` | how many bytes the data directory holds: walks it now and then | the disk (listing) |
//! | `signals`, `reloads` | SIGINT and SIGTERM; SIGHUP | a signal |
//! | `send-N`, `stdin` | in `send`: a connection each; the lines of stdin | the server; stdin |
//!
//! No thread waits for a client. A request's `done` callback runs on the `committer` and never
//! blocks: it leaves the reply in the mailbox of `http-io`. All queues between them are bounded.
//!
//! # Who may know whom
//!
//! ```text
//! main > cli > config | serve (composition root) > http, process > journal, store > event, fs      client > event
//! ```
//!
//! `http` never sees `process`; `journal` knows no SQL and no HTTP; `store` knows no HTTP and no
//! files; only `http::engine` knows sockets; only `http`, `client` and `event` know wire JSON.
//!
//! # Deliberately absent
//!
//! An async runtime, unsafe code, a second writer, replication, a query language.

// Files are opened by `fs` alone, databases by `store` alone: see clippy.toml.
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

pub mod client;
pub mod event;
pub mod server;
pub mod shutdown;

pub use self::cli::config;

// The program itself, for `main.rs`.
#[doc(hidden)]
pub mod cli;
#[doc(hidden)]
pub mod commands;

// The rest is private. The tests in tests/ reach it through the feature `testing`, which the
// dev-dependency on this crate turns on; a default build has neither.
#[cfg(not(feature = "testing"))]
mod aggregate;
#[cfg(feature = "testing")]
pub mod aggregate;
#[cfg(not(feature = "testing"))]
mod backup;
#[cfg(feature = "testing")]
pub mod backup;
#[cfg(not(feature = "testing"))]
mod data_dir;
#[cfg(feature = "testing")]
pub mod data_dir;
#[cfg(not(feature = "testing"))]
mod health;
#[cfg(feature = "testing")]
pub mod health;
#[cfg(not(feature = "testing"))]
mod histogram;
#[cfg(feature = "testing")]
pub mod histogram;
#[cfg(not(feature = "testing"))]
mod http;
#[cfg(feature = "testing")]
pub mod http;
#[cfg(not(feature = "testing"))]
mod journal;
#[cfg(feature = "testing")]
pub mod journal;
#[cfg(not(feature = "testing"))]
mod processor;
#[cfg(feature = "testing")]
pub mod processor;
#[cfg(not(feature = "testing"))]
mod progress;
#[cfg(feature = "testing")]
pub mod progress;
#[cfg(not(feature = "testing"))]
mod store;
#[cfg(feature = "testing")]
pub mod store;
#[cfg(not(feature = "testing"))]
mod systemd;
#[cfg(feature = "testing")]
pub mod systemd;
#[cfg(not(feature = "testing"))]
mod timestamp;
#[cfg(feature = "testing")]
pub mod timestamp;
#[cfg(not(feature = "testing"))]
mod verify;
#[cfg(feature = "testing")]
pub mod verify;
