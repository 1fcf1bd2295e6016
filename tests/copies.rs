//! Copies of a data directory with imported files only, and one file at two nodes of a PostgreSQL database
//! (`--ignored`: needs PostgreSQL 15). Native segments have a tag, by which their copies are found; imported files have
//! none.

use std::fs;

use super::harness::postgres::{Postgres, process, verify};
use super::harness::{Scratch, copy_tree, event, event_with_id, suite};

#[test]
#[ignore = "needs PostgreSQL"]
fn a_copy_with_imported_files_only_is_not_counted() {
    // Fails if the files of a copied directory count again because they have no tag: under the UUID of the original, and
    // under another one.
    let server = Postgres::start();
    let url = server.database("tally");
    let scratch = Scratch::new();
    let (original, copy) = (scratch.path().join("original"), scratch.path().join("copy"));
    let file = scratch.file("a.jsonl", event("user", 1).repeat(3));
    let ids = scratch.file("ids.jsonl", event_with_id("x"));
    process(&original, &url, &[&file, &ids]).expect(0);
    let counted = suite::totals(&url);
    assert_eq!(counted["user"], (4_000_000, 4));

    // The same UUID: the copy is the node from now on, with what was applied, and the original is refused.
    copy_tree(&original, &copy);
    process(&copy, &url, &[]).expect(0);
    assert_eq!(suite::totals(&url), counted);
    verify(&copy, &url);
    let late = scratch.file("late.jsonl", event("user", 1));
    let refused = process(&original, &url, &[&late]).expect(1);
    assert!(refused.stderr.contains("another copy"), "{refused}");
    assert!(refused.stderr.contains("nodes adopt"), "{refused}");
    assert_eq!(suite::totals(&url), counted);

    // Another UUID, as without directory.json.
    fs::remove_file(copy.join("directory.json")).unwrap();
    fs::remove_file(copy.join("node.json")).unwrap();
    let refused = process(&copy, &url, &[]).expect(1);
    for reason in ["a copy with another UUID", "has applied events_a.jsonl"] {
        assert!(refused.stderr.contains(reason), "{refused}");
    }
    assert_eq!(suite::totals(&url), counted);
    let nodes: i64 = server.value("tally", "SELECT count(*) FROM tallyline.node");
    assert_eq!(nodes, 1);

    // Without that file it is a new node. The other one has only events with ids, which count once anyway.
    let archive = copy.join("applied");
    for month in fs::read_dir(archive).unwrap() {
        let copied = month.unwrap().path().join("events_a.jsonl");
        if copied.exists() {
            fs::remove_file(copied).unwrap();
        }
    }
    process(&copy, &url, &[&late]).expect(0);
    assert_eq!(suite::totals(&url)["user"], (5_000_000, 5));
    verify(&copy, &url);
}

#[test]
#[ignore = "needs PostgreSQL"]
fn a_file_at_two_nodes_counts_twice_without_ids_and_the_log_says_so() {
    // Fails if a file that a person gives to two nodes counts twice silently, or if its events with ids count twice. It
    // may be meant: two files may have the same lines.
    let server = Postgres::start();
    let url = server.database("tally");
    let scratch = Scratch::new();
    let (a, b) = (scratch.path().join("a"), scratch.path().join("b"));
    let file = scratch.file("march.jsonl", event("user", 1).repeat(3));
    let ids = scratch.file(
        "ids.jsonl",
        event_with_id("x") + &event_with_id("run-000001"),
    );
    let first = process(&a, &url, &[&file, &ids]).expect(0);
    assert!(!first.stderr.contains("same length"), "{first}");
    let second = process(&b, &url, &[&file, &ids]).expect(0);
    let warned = "events_march.jsonl has the same length";
    assert!(second.stderr.contains(warned), "{second}");
    assert!(
        second.stderr.contains("as events_march.jsonl of node 1"),
        "{second}"
    );
    assert_eq!(second.stderr.matches("same length").count(), 1, "{second}");
    assert_eq!(suite::totals(&url)["user"], (8_000_000, 8));
    for data in [&a, &b] {
        verify(data, &url);
    }
    // At the same node, it is known by its name.
    process(&b, &url, &[&file]).expect(0);
    assert_eq!(suite::totals(&url)["user"], (8_000_000, 8));
}
