//! Nodes with common ids lock rows in one order, so that PostgreSQL never has to end a deadlock (`--ignored`: needs
//! PostgreSQL 15). Each test holds two transactions at a point where they would lock in crossing orders.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use postgres::{Client, Transaction};

use crate::harness::postgres::Postgres;
use crate::harness::{PATIENCE, Process, Scratch, arg, run, tallyline, until};

/// A database with tables, and the data directories of its nodes.
struct Nodes {
    server: Postgres,
    url: String,
    scratch: Scratch,
}

impl Nodes {
    fn new() -> Self {
        let server = Postgres::start();
        let url = server.database("tally");
        let nodes = Self {
            server,
            url,
            scratch: Scratch::new(),
        };
        for node in ["first", "second"] {
            nodes.write(node, &[]);
            nodes.process(node, &[]).finish().expect(0);
        }
        nodes
    }

    fn data(&self, node: &str) -> PathBuf {
        self.scratch.path().join(node)
    }

    /// Adds small files, which a run applies in one transaction, in this order.
    fn write(&self, node: &str, files: &[String]) {
        fs::create_dir_all(self.data(node)).unwrap();
        let before = fs::read_dir(self.data(node)).unwrap().count();
        for (at, lines) in files.iter().enumerate() {
            let name = format!("events_{}.jsonl", before + at);
            fs::write(self.data(node).join(name), lines).unwrap();
        }
    }

    fn process(&self, node: &str, flags: &[&str]) -> Process {
        let data = self.data(node);
        let args = ["process", "--data-dir", arg(&data), "--database", &self.url];
        Process::start(&mut tallyline(&[&args[..], flags].concat()))
    }

    fn connect(&self) -> Client {
        self.server.connect("tally")
    }

    /// Waits until so many transactions wait for a lock.
    #[track_caller]
    fn await_waiting(&self, count: i64) {
        let query = "SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted";
        until(PATIENCE, "the transactions wait", || {
            (self.server.value::<i64>("tally", query) == count).then_some(())
        });
    }

    /// How many deadlocks PostgreSQL has ended. A connection reports its own when it ends.
    #[track_caller]
    fn deadlocks(&self) -> i64 {
        let connected =
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tallyline'";
        until(PATIENCE, "the connections of the nodes end", || {
            (self.server.value::<i64>("tally", connected) == 0).then_some(())
        });
        let deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = 'tally'";
        self.server.value("tally", deadlocks)
    }

    #[track_caller]
    fn assert_counted(&self, events: i64) {
        let counted = "SELECT sum(events)::bigint FROM tallyline.user_total WHERE user_id = 'user'";
        assert_eq!(self.server.value::<i64>("tally", counted), events);
        for node in ["first", "second"] {
            let data = self.data(node);
            let args = ["verify", "--data-dir", arg(&data), "--database", &self.url];
            run(&args).expect(0);
        }
    }
}

/// A line for each id.
fn lines(ids: &[impl AsRef<str>]) -> String {
    let mut lines = String::new();
    for id in ids {
        let id = id.as_ref();
        writeln!(
            lines,
            "{{\"userId\":\"user\",\"name\":\"add_revenue\",\"value\":1,\"id\":\"{id}\"}}"
        )
        .unwrap();
    }
    lines
}

/// Inserts an id, so that others who insert it wait.
fn hold<'c>(client: &'c mut Client, id: &str) -> Transaction<'c> {
    let mut transaction = client.transaction().unwrap();
    let insert = "INSERT INTO tallyline.event_id VALUES ($1, 0, 0, 0, 0, 0)";
    transaction.execute(insert, &[&id]).unwrap();
    transaction
}

/// Two nodes apply two files each. Both wait for the id `A0`, which sorts before all others and is in the second
/// file.
#[track_caller]
fn cross(first: [&[&str]; 2], second: [&[&str]; 2], events: i64) {
    let nodes = Nodes::new();
    nodes.write("first", &first.map(lines));
    nodes.write("second", &second.map(lines));
    let mut client = nodes.connect();
    let held = hold(&mut client, "A0");
    let processes = ["first", "second"].map(|node| nodes.process(node, &[]));
    nodes.await_waiting(2);
    held.rollback().unwrap();
    for process in processes {
        process.finish().expect(0);
    }
    assert_eq!(nodes.deadlocks(), 0);
    nodes.assert_counted(events);
}

#[test]
#[ignore = "needs PostgreSQL"]
fn ids_of_several_files_are_locked_in_one_order() {
    // Fails if the ids of the second file are locked after those of the first.
    cross([&["z1"], &["A0", "a1"]], [&["a1"], &["A0", "z1"]], 3);
}

#[test]
#[ignore = "needs PostgreSQL"]
fn blocks_of_ids_are_locked_after_ids() {
    // Fails if a block of the first file is locked before an id of the second.
    cross(
        [&["run-000001"], &["A0", "a1", "run-000002"]],
        [&["a1"], &["A0", "run-000001"]],
        4,
    );
}

#[test]
#[ignore = "needs PostgreSQL"]
fn an_overflow_replay_locks_ids_in_one_order() {
    // Fails if the lines of a replay lock their ids as they come: ascending at one node, descending at the other.
    let nodes = Nodes::new();
    let huge =
        "{\"userId\":\"rich\",\"name\":\"add_revenue\",\"value\":1000000000000}\n".repeat(10);
    let mut ids: Vec<String> = (0..300)
        .map(|at| match at % 3 {
            0 => format!("{}-{at:06}", at % 7),
            _ => format!("{at:03}x"),
        })
        .collect();
    nodes.write("first", &[huge.clone() + &lines(&ids)]);
    ids.reverse();
    nodes.write("second", &[lines(&ids) + &huge]);
    let processes = ["first", "second"].map(|node| nodes.process(node, &[]));
    for process in processes {
        // The tenth of the large amounts overflows the total of the node.
        process.finish().expect(3);
    }
    assert_eq!(nodes.deadlocks(), 0);
    nodes.assert_counted(300);
}

#[test]
#[ignore = "needs PostgreSQL"]
fn an_id_of_a_rejected_event_is_free_for_the_next_file() {
    // Fails if the id of an event that overflows stays locked in advance, or is not stored when the next event has it.
    let nodes = Nodes::new();
    let rich = |id: &str| {
        format!(
            "{{\"userId\":\"rich\",\"name\":\"add_revenue\",\"value\":1000000000000,\"id\":\"{id}\"}}\n"
        )
    };
    let full: String = (0..9).map(|at| rich(&format!("fit{at}"))).collect();
    let rejected = rich("late") + &rich("run-000001") + &rich("run-000129");
    nodes.write(
        "first",
        &[
            full + &rejected,
            lines(&["late", "run-000001"]),
            lines(&["late"]),
        ],
    );
    nodes.process("first", &[]).finish().expect(3);
    nodes.assert_counted(2);
    let ids = "SELECT count(*) FROM tallyline.event_id";
    assert_eq!(nodes.server.value::<i64>("tally", ids), 10);
    let blocks = "SELECT count(*) FROM tallyline.id_block";
    assert_eq!(
        nodes.server.value::<i64>("tally", blocks),
        1,
        "the second was not counted"
    );
}

#[test]
#[ignore = "needs PostgreSQL"]
fn a_rebuild_waits_for_nodes_that_count_and_they_for_it() {
    // Fails if a rebuild holds an id that another node needs, and needs one that it holds.
    let nodes = Nodes::new();
    nodes.write("first", &[lines(&["q1"])]);
    nodes.process("first", &[]).finish().expect(0);
    nodes.write("first", &[lines(&["a1"])]);
    nodes.write("second", &[lines(&["a1", "m0", "q1"])]);
    let mut client = nodes.connect();
    let held = hold(&mut client, "m0");
    let counting = nodes.process("second", &[]);
    nodes.await_waiting(1);
    let rebuild = nodes.process("first", &["--rebuild"]);
    nodes.await_waiting(2);
    held.rollback().unwrap();
    counting.finish().expect(0);
    rebuild.finish().expect(0);
    assert_eq!(nodes.deadlocks(), 0);
    nodes.assert_counted(3);
}
