//! tallyline accepts revenue events over HTTP, stores them in plain JSON Lines files, and keeps exact
//! totals per user in one SQLite database, or in a PostgreSQL database that several servers share.
//!
//! Most users need only the program. The library is for tests: it runs a complete server in the test's
//! own process, and it has the client that sends files to a server.
//!
//! # Use in a test
//!
//! A [`Server`](server::Server) listens on a free port and has its own data directory, so several can run
//! in one process. `POST /flush` returns when every acknowledged event is in the totals, so a test does
//! not have to sleep.
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
//! assert!(user.contains(r#""revenue":100,"revenueMicros":"100000000","events":1"#), "{user}");
//!
//! server.stop()?;
//! # Ok::<(), anyhow::Error>(())
//! ```
//!
//! | to | use |
//! |---|---|
//! | start and stop a server | [`server::Server`], configured by [`config::ServeConfig`] |
//! | send a file as `tallyline send` does, with ids, retries and a state file to resume from | [`client::send`], configured by [`config::SendConfig`] |
//! | parse and validate one event | [`event::Event`] |
//!
//! Everything else is private.
//!
//! # Architecture
//!
//! ```text
//!  POST /liveEvent                                                     GET /userEvents/{userId}
//!        |                                                                       ^
//!  http: parse, validate -- Batch ---> journal: committer                        |
//!        ^                             one write + one fdatasync        store: Readers (pool)
//!        |                             for all queued batches                    ^
//!        +------- Position ------------+    |                                    |
//!                                           | durable bytes                      |
//!                                           v                                    |
//!                      processor: cut at line ends; aggregate: parse             |
//!                      on a pool of threads into deltas per user                 |
//!                                           |                                    |
//!                                           v                                    |
//!                      store: ONE transaction: totals += deltas, ids, rejected lines,
//!                      and segment.applied_bytes: old -> new
//!                                           |
//!                                           v
//!                      progress: applied Position -> waiting requests, lag
//! ```
//!
//! A [`Position`](data_dir::segment::Position) is a segment number and a byte offset. An append returns
//! the position up to which its bytes are durable; the store records the position up to which events are
//! applied. Comparing the two gives exactly-once application, resumption after a crash, the lag, and
//! read-your-writes: a GET can wait until a position is applied.
//!
//! # Modules
//!
//! From the command line to the files:
//!
//! | module | purpose |
//! |---|---|
//! | `commands` | the subcommands |
//! | [`cli`] | flags, configuration, logging, exit codes |
//! | [`server`] | the composition root: starts and stops the parts of a server |
//! | [`http`] | the HTTP engine, routes, body formats, authentication, metrics, the status page |
//! | [`event`] | one event: parsing, validation, exact amounts |
//! | [`journal`] | appends batches to the active segment with group commit; rotation, recovery |
//! | [`data_dir`] | names and positions of segments, listing, locks; `disk` is the interface to the file system |
//! | [`processor`] | applies segments to the database, archives and imports them; retention: prunes them, expires ids |
//! | [`aggregate`] | lines to deltas per user, in parallel; what exceeds the memory goes to temporary files |
//! | [`store`] | the database, SQLite or PostgreSQL: schema, transactions, readers |
//! | [`other_nodes`] | waits for positions of other nodes of a shared database |
//! | [`progress`] | the applied position, waiters and lag, in memory, between `processor` and `http` |
//! | [`verify`] | recounts the files and compares them with the database |
//! | [`backup`] | `tallyline backup` and `tallyline restore` |
//! | [`client`] | `tallyline send`: input, ids, delivery, retries, state |
//! | [`health`], [`systemd`], [`shutdown`] | why the server is not ready; notifications to systemd; signals |
//! | [`histogram`], [`timestamp`] | durations in buckets; dates |
//!
//! # Where to find it, where to change it
//!
//! | | |
//! |---|---|
//! | a line is validated | by the rules of [`event`]: [`Event::parse`](event::Event::parse), or `Event::plain` for lines in the usual form, which is faster. In `http::intake` before it is stored (an invalid one is *refused*), and again in `aggregate::scan` when it is applied (an invalid one, of an imported or edited file, is *rejected*) |
//! | it becomes durable | append 3 in `journal::committer`, and 4 for the first lines of a segment; only then is the request acknowledged |
//! | it is counted | `store::apply`: totals, ids, rejected lines and the segment's applied bytes, in one transaction, which `store::writer::applying` (SQLite) and `store::postgres::writer` begin and commit |
//! | who may write to `store` | the thread that owns a `store::Writer`: `process`, or `main` in a batch run. Only `processor` opens one, under `process.lock`. Without a writer, `commands::nodes` changes the rows of nodes in PostgreSQL, and `backup` copies a database to a new file |
//! | add an output format | of `query` and `rejected`: the flag in `cli::args`, `QueryFormat` in `cli::config`, `commands::query::format`; of `GET /userEvents`: `http::routes::users`, as `users::csv` does |
//! | add an input format | of requests: `http::intake`; of `process FILE`: `processor::import::convert`; of `send`: `client::format`; all of them recognise it in `event::input_format` |
//! | add a metric | count it in `http::counters`, or take it from the part that knows it in `http::routes::scrape` (a figure of the processor passes through `progress`); add it to `http::metrics` and its `render` |
//! | add a flag | `cli::args` (its name and help), `cli::config` (its default and bounds) |
//! | add a command | `cli::args`, `cli::config`, a file in `commands`, `main.rs` |
//!
//! # Invariants
//!
//! 1. **Acknowledgement.** A 2xx is sent only after the event's bytes and the directory entry of their
//!    file have been synced. If a write fails, no event of it is acknowledged. ([`journal`])
//! 2. **Exactly once.** Totals, ids, rejected lines and a segment's applied bytes change in one
//!    transaction, which compares the old offset before it sets the new one. State in memory changes
//!    after the commit. ([`store`])
//! 3. **The files are the source of truth**, and the database is derived from them. If it is deleted,
//!    processing all files again gives the same totals. ([`processor`])
//! 4. **A segment is identified by its number and its tag.** Both are stored when it is created and never
//!    derived from other files, an inode or the content. Two segments with the same number are reported.
//!    The applied prefix is verified by its checksum before more is applied. Acknowledged bytes never
//!    change. ([`data_dir`], [`journal`])
//! 5. **Every line is accounted for.** Lines received = accepted + refused; lines in the files = applied +
//!    duplicates + rejected + pending + corrupt. Each term is counted where it arises, and any difference
//!    is published as unaccounted. ([`store::Ledger`])
//! 6. **Totals are deterministic.** They do not depend on the number of threads, the chunking, the order
//!    of segments or the points of rotation. ([`aggregate`], [`processor`])
//! 7. **Every resource is bounded**: queues, bodies, lines, waiters, maps, disk. ([`http`], [`journal`])
//! 8. **The database never stops ingestion.** A failing part makes the server unready, and `/readyz` gives
//!    the reason. ([`health`])
//! 9. **One writer and one processor** per data directory, by locks ([`data_dir::disk::Lock`]); in PostgreSQL,
//!    also by an epoch and a token that each transaction compares. ([`store`])
//!
//! # A crash after any step
//!
//! The steps are numbered in the documentation of the modules. Temporary files are never read after a crash:
//! those of an import or a backup are replaced, those of sums that exceed the memory are removed.
//!
//! | crash after | found at the next start | outcome |
//! |---|---|---|
//! | append 2 (written) | lines that were not acknowledged, perhaps a torn one | complete lines are kept and count, because they look like synced ones, whose client may have received its response; a torn one is moved to `quarantine/` ([`journal`]) |
//! | append 3 to 5 (synced) | lines that were or were about to be acknowledged | they count |
//! | rotate 1 or 2 (renamed) | a sealed file or `events.jsonl`; no next segment | the next one is created ([`journal`]) |
//! | rotate 3 to 5 | both | the server continues |
//! | apply 1 to 6 (before the commit) | the old offset in the database | the range is applied again ([`store`]) |
//! | apply 7 (committed) | the new offset | the processor continues there |
//! | archive, any step | the file in one of two directories | it is moved if it is not in the archive yet ([`processor`]) |
//! | prune 1 or 2 (committed) | a file without a row | it is removed if its length and checksum are those that were pruned ([`processor`]) |
//! | prune 3 (removed) | no file, or the file again | as after prune 1 or 2 |
//! | prune 4 (synced) | no file | nothing is left to do |
//! | the database was deleted | no rows | all kept files are applied again; readiness reports what was pruned ([`processor`]) |
//! | an older database was restored | rows behind the files | the rest is applied |
//! | rebuild, before its rename | `revenue.db.rebuild` beside the old database | it is removed ([`processor`]) |
//! | import, before its rename | a `.part` file, which is not a segment | importing the file again replaces it ([`processor`]) |
//! | restore, any step | `restore.json`, and `restoring` in `directory.json`; other commands refuse to use the directory | the next restore repeats its steps ([`backup`]) |
//!
//! # Threads
//!
//! | name | owns | may block on |
//! |---|---|---|
//! | `main` | start and stop of all others | a signal |
//! | `committer` | the active file: its writes, syncs and rotations | the disk |
//! | `process` | the only writing connection to the database, and how far each file is applied; scans chunks, too; `tallyline process` does the same on `main` | the disk, the database |
//! | `process-scan-N` | while a large range is scanned: one chunk of lines at a time, and its sums; sorts them and writes temporary files | the disk |
//! | `process-merge` | while many users are committed: the merge of their sums | the disk (reading), its queue |
//! | `process-flush` | nothing: while a new database is loaded, starts writing its pages to the disk | the disk |
//! | `process-check` | nothing: compares the database's sums after an unclean stop, for readiness | the database (reading) |
//! | `process-clock` | deadlines of waiters, and the lag | nothing |
//! | `other-nodes` | with `--database`: the requests that wait for positions of other nodes, whose progress it reads | the database (reading) |
//! | `process-observe` | with `--no-process`: the published ledger, which it reads again each interval | the disk, the database (reading) |
//! | `http-io` | all sockets of the server; handles small requests | nothing |
//! | `http-worker-N` | a request with a large or compressed body | nothing |
//! | `http-blocking-N` | a request that reads the database or the data directory | the disk, the database (reading) |
//! | `http-history` | the counters of the last 15 minutes, which it samples each second | nothing |
//! | `log` | in a server: the queue of log lines | stderr |
//! | `postgres-connect` | one connection to PostgreSQL while it is opened | the network |
//! | `lock-notice` | nothing: logs that another process holds the lock on the directory, while this one waits for it | nothing |
//! | `disk-usage` | the number of bytes in the data directory, which it counts periodically | the disk (listing) |
//! | `signals`, `reloads` | SIGINT and SIGTERM; SIGHUP | a signal |
//! | `send-N`, `stdin` | in `send`: one connection each; the lines of stdin | the server; stdin |
//!
//! No thread blocks on a client. The callback that completes a request runs on `committer` after an append,
//! and on `process`, `process-clock` or `other-nodes` after a wait for a position. It never blocks: it only puts the
//! response into the mailbox of `http-io`. All queues between threads are bounded.
//!
//! A server stops in this order: `http`, `journal`, `processor`. A second signal ends the process at once.
//!
//! # Terms
//!
//! | term | meaning |
//! |---|---|
//! | segment | a file of events: the *active* one that grows, or a *sealed* one that does not; *native* if a server wrote it, so that it has a label, else *imported* |
//! | label, tag | what identifies a native segment: its number, and a tag of eight digits for its directory's UUID and eight random ones, so that segments which copies of a directory create differ |
//! | position | segment number and byte offset, such as `42-1800`; `42-1800@UUID` if several nodes share the database |
//! | batch | the events of one request; the committer writes several batches as one *group* |
//! | range | bytes of a segment that are applied in one transaction |
//! | delta | the sums of a range per user |
//! | folded | the sums of several segments that wait, added up and committed in one transaction |
//! | settled | applied, duplicate, rejected or corrupt: a line that is no longer pending |
//! | refused, rejected | an invalid event that was not stored; a stored line that is not counted |
//! | corrupt | a segment that has changed since it was applied or sealed |
//! | missing | a segment whose file is gone and that was not fully applied |
//! | rival | a file that has the name of a segment and is another one |
//! | archive | `applied/`, where fully applied files are moved |
//! | poisoned | of the journal: a failure left unknown what is in the file, so nothing is acknowledged until a restart |
//! | fenced | of a node: another process has acquired it, so this one applies nothing |
//! | token | of a segment: the random half of its tag; of a node: drawn at each start, see `node`; of a client: its password |
//! | quarantine | where bytes are kept that are not applied |
//! | prune, expire | delete old segments; delete old ids |
//! | node | a data directory whose events are counted in a PostgreSQL database, beside those of other nodes |
//! | block of ids | 128 consecutive numbers after one prefix, stored in one row |
//!
//! # Dependencies
//!
//! ```text
//! main > commands > cli, server, backup > http, processor, client > verify, progress, other_nodes
//!      > journal, store > aggregate > data_dir, event
//! ```
//!
//! A module may use only modules to its right or in its own group, with one exception: `client` takes its
//! configuration from `cli`. `journal` and `store` do not use each other, nor do `http`, `processor` and
//! `client`. `tests/layering.rs` has the exact table and enforces it. Only `http::engine` handles the
//! server's TCP sockets, only `store` runs SQL, and only `data_dir::disk` opens files.
//!
//! # Deliberately absent
//!
//! An async runtime, unsafe code, a second writer, replication, a query language.

// Only `data_dir::disk` opens files and only `store` opens databases: see clippy.toml.
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

// The rest is private in a default build. The feature `testing`, which the dev-dependency of this crate on
// itself enables, makes it public for the tests in tests/.
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
mod other_nodes;
#[cfg(feature = "testing")]
pub mod other_nodes;
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
