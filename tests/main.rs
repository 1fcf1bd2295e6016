//! Tests of the real binary, on a port chosen by the system, in a temporary directory.
//!
//! One crate, so that the harness is built and linked once. Except for the models at the end of the
//! list, which use the library, tests observe the program only from outside: by a response, an exit
//! code, a file, or the database opened read-only. Each test states which defect makes it fail.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::format_push_string,
    clippy::format_collect,
    clippy::naive_bytecount,
    reason = "a failed unwrap is a failed test, which prints the log of the server; simple code before speed"
)]

mod harness; // start, stop, kill and query the binary; an independent recount

mod access; // tokens, Origin, Host
mod alerts; // what the alerts query exists, and each is tested
mod backup; // backup and restore: under load, over other files, killed, damaged
mod bad_input; // every kind of invalid body, and the error that it gets
mod bounded; // upper bounds of the resources that one client can use
mod cli; // options, exit codes, errors before anything starts
mod cluster; // what a node shows of all nodes in one PostgreSQL database (`--ignored`)
mod copies; // copies of a data directory, and of files, at several nodes (`--ignored`)
mod crash; // kill -9 during ingestion and applying, ten times
mod database_errors; // a PostgreSQL database that cannot be used (`--ignored`)
mod database_locks; // the locks on the database, after each operation of the server
mod descriptors; // few file descriptors, and more clients than connections
mod end_to_end; // the main task on real input: totals equal an independent recount
mod folded; // large files that wait, in one transaction of PostgreSQL (`--ignored`)
mod formats; // CSV, UTF-16, wrapped arrays and other formats: one error with the way out
mod hostile; // clients that stall, send bursts, announce wrong lengths, or never read
mod http; // the HTTP contract, case by case
mod identity; // identity of segments: copies, merges, restored files, a second server
mod listings; // /segments and /rejected; waiting requests during a shutdown
mod locks; // nodes with common ids in PostgreSQL never deadlock (--ignored)
mod messages; // what a user reads after a wrong flag, address, variable, file or directory
mod odd_files; // FIFOs, sockets, devices, directories, broken links with names of segments
mod offline; // process, verify, query: odd files, directories and databases, no server
mod other_programs; // a database opened, removed, replaced and written by other programs
mod positions; // positions of several nodes in one PostgreSQL database (--ignored)
mod process; // files without a server: imported, damaged, named twice
mod provable; // verify, rebuild, retention, expiry of ids, a database mixed from two copies
mod ready; // `tallyline ready`: a server that is ready, not ready, gone
mod rotated; // a file that logrotate renames, copies or compresses between two sends
mod same_content; // files without a label, copied or renamed after they were applied
mod same_segment; // a segment of another data directory in several files
mod scale_out; // several nodes in one PostgreSQL database (`--ignored`)
mod sealed; // sealed files changed, moved or copied before they are applied
mod send; // unusual inputs, files sent before, rejected lines, waiting for totals
mod sums; // the sums over all users, wherever they are shown
mod torture; // a few rounds of `tallyline torture`
mod trouble; // a database locked, deleted, replaced, restored; files changed meanwhile

mod faults; // full disks, a failing database, a jumping clock (`--ignored`)
mod machine; // stderr that fails, file size limits, loopback addresses, starts that fail
mod node_rules; // rules of counting with several nodes, by forced interleavings (--ignored)
mod nodes; // connections to PostgreSQL, the identity of nodes (`--ignored`)
mod on_postgres; // the store on PostgreSQL, and the tests above once more on it (`--ignored`)
mod outside; // other programs: curl, wget, ab, Python, sqlite3, strace (`--ignored`)

mod layering; // dependencies between modules, read from src/
mod prose; // the wording of documentation, messages and comments
mod readme; // commands, responses and links of the README and its pages are correct

mod crash_points; // a power cut after each call of apply, archive, prune, rebuild (`--ignored`)
mod damage; // each kind of damage to each kind of file is reported, or totals are right
mod journal_model; // the journal on a simulated disk, crashed at every step and at random
mod kernel_log; // file operations recorded by strace, replayed on that disk
mod metamorphic; // the same events shuffled, split, re-batched, re-sent: the same totals
mod pipeline_model; // journal, processor and database on that disk, against a recount
mod sim_disk; // a disk in memory that loses what was not synced
mod wire; // HTTP byte by byte: the engine against a table and a model of RFC 9112
mod years; // the calls of a start and a scrape do not grow with the number of finished segments
