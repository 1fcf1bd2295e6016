//! Drives the real binary, on a port of the system's choosing, in a directory of its own.
//!
//! One crate, so that the harness is built and linked once. But for the models at the end of the
//! list, which use the library, nothing here looks inside the program: what a test knows, it knows
//! from an answer, an exit code, a file, or the database opened read-only. Each test says which bug
//! turns it red.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::format_push_string,
    clippy::format_collect,
    clippy::naive_bytecount,
    reason = "a failed unwrap is a failed test, which shows the server's log; plain words before speed"
)]

mod harness; // start, stop, kill, talk to, and recount behind the back of the binary

mod access; // tokens, Origin, Host
mod backup; // backup and restore: under load, over other files, killed, damaged
mod bad_input; // every kind of body that is refused, and how the refusal is worded
mod bounded; // what one client may cost at most
mod cli; // flags, exit codes, what is refused before anything starts
mod crash; // kill -9 in the middle, ten times over
mod end_to_end; // the main job on real input: totals equal an independent recount
mod hostile; // clients that stall, burst, lie about lengths, or never read
mod http; // the HTTP contract, row by row
mod identity; // which segment a file is: copies, merged directories, files put back, a second server
mod listings; // /segments and /rejected; waiting while the server stops
mod odd_files; // FIFOs, sockets, devices, directories, links to nothing called like segments
mod offline; // process, verify, query: odd files, directories and databases, without a server
mod other_programs; // the database opened, removed, replaced and written by others
mod process; // files without a server: from elsewhere, damaged, given twice
mod provable; // verify, rebuild, retention, ids let go, a database put together from two
mod sealed; // sealed files changed, moved or doubled before they are applied
mod send; // odd inputs, files sent before, rejected lines, waiting until it is applied
mod torture; // the shipped torture, a few rounds of it
mod trouble; // a database locked, deleted, replaced, restored; files changed under us

mod faults; // full disks, a failing database, a jumping clock (`--ignored`)
mod machine; // stderr that fails, file size limits, loopback by any name, starts that fail
mod outside; // other people's programs: curl, wget, ab, Python, sqlite3, strace (`--ignored`)

mod layering; // who may know whom, read from src/
mod prose; // the wording of documentation, messages and comments
mod readme; // what the README and its pages show exists and answers as shown

mod crash_points; // power cut off after each call of apply, archive, prune, rebuild (`--ignored`)
mod damage; // each kind of file damaged in each way: somebody is told, or the totals are right
mod journal_model; // the journal on a simulated disk, crashed at every step and at random
mod kernel_log; // what strace saw a program do to files, done again on that disk
mod metamorphic; // the same events shuffled, split, re-batched, re-sent: the same totals and ledger
mod pipeline_model; // journal, processor and database on that disk, against a recount
mod sim_disk; // a disk in memory that forgets what was not synced
mod wire; // HTTP byte by byte: the engine against a table and a model of RFC 9112
