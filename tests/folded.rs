//! Large files that wait at the same time, whose sums PostgreSQL gets in one transaction (`--ignored`: needs
//! PostgreSQL 15): the rows are those of files applied one by one, or nothing is changed.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use postgres::{Client, NoTls};

use super::harness::postgres::{Postgres, process, verify};
use super::harness::recount::{event_files, recount_bytes};
use super::harness::{
    PATIENCE, Process, Scratch, Server, arg, recount_files, suite, tallyline, until,
};

/// Large files. Smaller ones are held in memory and committed together in another way.
const LINES: u64 = 12_000;

/// Events with and without ids. Half of the ids come again in the next file, and some of them with another value.
fn lines(file: u64) -> String {
    let mut random = fastrand::Rng::with_seed(file);
    let mut text = String::new();
    for line in 0..LINES {
        let user = random.u32(0..400);
        let number = file * LINES / 2 + line;
        let (value, id) = match line % 5 {
            0 => (number % 97, format!(",\"id\":\"row-{number}x\"")),
            1 => (number % 97, format!(",\"id\":\"run-{number:012}\"")),
            // Of the same id in two files, one value counts and the other is a conflict.
            2 if line % 50 == 2 => (file, format!(",\"id\":\"other-{number}x\"")),
            _ => (u64::from(user), String::new()),
        };
        let user = if id.is_empty() { user } else { 7 };
        let _infallible = match line % 1000 {
            999 => writeln!(text, "no event {file}"),
            _ => writeln!(
                text,
                "{{\"userId\":\"u{user}\",\"name\":\"add_revenue\",\"value\":{value}{id}}}"
            ),
        };
    }
    text
}

/// Those that a server stores.
fn valid_lines(file: u64) -> String {
    let lines = lines(file);
    let valid = lines.split_inclusive('\n');
    valid.filter(|line| line.starts_with('{')).collect()
}

/// Places files in a data directory.
fn place(data: &Path, files: std::ops::Range<u64>) -> Vec<PathBuf> {
    fs::create_dir_all(data).unwrap();
    let place = |file: u64| {
        let path = data.join(format!("events_{file:03}.jsonl"));
        fs::write(&path, lines(file)).unwrap();
        path
    };
    files.map(place).collect()
}

/// Everything that files change, but for dates and the keys of segments.
fn rows(url: &str) -> Vec<String> {
    let mut client = Client::connect(url, NoTls).unwrap();
    let mut all = Vec::new();
    for query in [
        "SELECT concat_ws(' ', 'segment', name, state, applied_bytes, checksum, lines, events, duplicates, rejected, net_check, id_events, id_net_check) AS row FROM tallyline.segment",
        "SELECT concat_ws(' ', 'total', user_id, node, revenue_micros, events) AS row FROM tallyline.user_total",
        "SELECT concat_ws(' ', 'id', id, payload, i.node, s.name, \"offset\") AS row FROM tallyline.event_id AS i LEFT JOIN tallyline.segment AS s ON s.node = i.node AND s.key = i.segment",
        "SELECT concat_ws(' ', 'block', prefix, width, block, encode(numbers, 'hex')) AS row FROM tallyline.id_block",
        "SELECT concat_ws(' ', 'rejected', node, segment, \"offset\", code, encode(line, 'hex')) AS row FROM tallyline.rejected_line",
        "SELECT concat_ws(' ', 'applied', segments, native, lines, events, duplicates, rejected) AS row FROM tallyline.applied_sum",
        "SELECT concat_ws(' ', 'overall', users, events, revenue_micros) AS row FROM tallyline.overall",
    ] {
        let sorted = format!("SELECT row FROM ({query}) AS r ORDER BY row COLLATE \"C\"");
        let found = client.query(&sorted, &[]).unwrap();
        assert!(!found.is_empty(), "{query}");
        all.extend(found.iter().map(|row| row.get::<_, String>(0)));
    }
    all
}

/// The number of transactions in which files were applied.
fn transactions(server: &Postgres, database: &str) -> i64 {
    let times = "SELECT count(DISTINCT applied_at_ms) FROM tallyline.segment";
    server.value(database, times)
}

#[test]
#[ignore = "needs PostgreSQL"]
fn files_that_wait_have_the_rows_of_files_applied_alone() {
    // Fails if files are committed together and an event that does not count, because of its id, stays in the sums, or
    // is counted in the row of another file.
    const FILES: u64 = 6;
    let server = Postgres::start();
    let scratch = Scratch::new();
    let (alone, together) = (
        scratch.path().join("alone"),
        scratch.path().join("together"),
    );
    let (alone_url, url) = (server.database("alone"), server.database("together"));
    for file in 0..FILES {
        place(&alone, file..file + 1);
        process(&alone, &alone_url, &[]).expect(3);
    }
    let files = place(&together, 0..FILES);
    let expected = recount_files(&files);
    process(&together, &url, &[]).expect(3);
    assert_eq!(
        transactions(&server, "alone"),
        i64::try_from(FILES).unwrap()
    );
    assert_eq!(transactions(&server, "together"), 1);
    let (found, one_by_one) = (rows(&url), rows(&alone_url));
    let differing: Vec<_> = one_by_one
        .iter()
        .zip(&found)
        .filter(|(a, b)| a != b)
        .collect();
    assert_eq!(differing.first(), None, "alone and together");
    assert_eq!(found.len(), one_by_one.len());
    assert_eq!(suite::totals(&url), expected.users);
    assert!(expected.duplicates > 1_000 && expected.rejected > 100);
    let sums = "SELECT concat_ws(' ', sum(lines), sum(events), sum(duplicates), sum(rejected)) FROM tallyline.segment";
    let sums: String = server.value("together", sums);
    let counted = [
        expected.lines,
        expected.applied,
        expected.duplicates,
        expected.rejected,
    ];
    assert_eq!(sums, counted.map(|count| count.to_string()).join(" "));
    verify(&together, &url);
}

#[test]
#[ignore = "needs PostgreSQL"]
fn files_whose_common_transaction_is_killed_are_not_applied() {
    // Fails if a transaction of several files that ends before its commit leaves a part of it, or is not repeated: killed
    // while it waits for a total, for an id of another node, and for the sum of the applied files.
    let server = Postgres::start();
    let url = server.database("tally");
    let scratch = Scratch::new();
    let (data, other) = (scratch.data(), scratch.path().join("other"));
    for dir in [&data, &other] {
        process(dir, &url, &[]).expect(0); // they are the nodes 1 and 2
    }
    let mut files = 0..0;
    for blocker in [
        "INSERT INTO tallyline.user_total (user_id, node, revenue_micros, events, updated_at_ms) VALUES ('u100', 1, 1, 1, 1) ON CONFLICT (user_id, node) DO UPDATE SET events = 1",
        "INSERT INTO tallyline.event_id SELECT 'row-' || n || 'x', 1, 2, 1, 0, 0 FROM generate_series(30000, 60000) AS n ON CONFLICT DO NOTHING",
        "SELECT FROM tallyline.applied_sum WHERE node = 1 FOR UPDATE",
    ] {
        files = files.end..files.end + 4;
        place(&data, files.clone());
        let before = server.value::<i64>("tally", "SELECT count(*) FROM tallyline.segment");
        let ids = "SELECT count(*) FROM tallyline.event_id";
        let ids_before = server.value::<i64>("tally", ids);
        let mut client = server.connect("tally");
        let mut blocks = client.transaction().unwrap();
        blocks.batch_execute(blocker).unwrap();
        let args = ["process", "--data-dir", arg(&data), "--database", &url];
        let mut process_of_it = Process::start(&mut tallyline(&args));
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tallyline' AND wait_event_type = 'Lock'";
        until(PATIENCE, "the transaction waits", || {
            assert!(
                process_of_it.exited().is_none(),
                "{}",
                process_of_it.stderr()
            );
            (server.value::<i64>("tally", waiting) == 1).then_some(())
        });
        process_of_it.kill();
        blocks.rollback().unwrap();
        let busy = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tallyline'";
        until(PATIENCE, "its connection is closed", || {
            (server.value::<i64>("tally", busy) == 0).then_some(())
        });
        let after = server.value::<i64>("tally", "SELECT count(*) FROM tallyline.segment");
        assert_eq!(after, before, "{blocker}");
        assert_eq!(server.value::<i64>("tally", ids), ids_before, "{blocker}");
        process(&data, &url, &[]).expect(3);
        let at_once = "SELECT count(DISTINCT applied_at_ms) FROM tallyline.segment WHERE key <= -";
        let at_once = format!("{at_once}{}", files.start + 1);
        assert_eq!(server.value::<i64>("tally", &at_once), 1, "{blocker}");
        let counted = recount_files(&event_files(&data));
        assert_eq!(suite::totals(&url), counted.users, "{blocker}");
        verify(&data, &url);
    }
}

#[test]
#[ignore = "needs PostgreSQL"]
fn segments_of_two_killed_nodes_that_wait_for_the_database_count_once() {
    // Fails if the segments that waited for the database count twice, or not at all, when two nodes with the same ids
    // apply them and are killed meanwhile.
    let mut server = Postgres::start();
    let url = server.database("tally");
    let scratch = Scratch::new();
    let flags = [
        "--database",
        &url,
        "--flush-interval",
        "20ms",
        "--rotate-size",
        "1MiB",
    ];
    let dirs = ["a", "b"].map(|name| scratch.path().join(name));
    let start = |dir: &PathBuf| Server::with(dir, &flags);
    let nodes = dirs.each_ref().map(start);
    for node in &nodes {
        node.accept(valid_lines(0));
        node.flush();
    }
    server.kill();
    for file in 1..8 {
        for node in &nodes {
            node.accept(valid_lines(file));
        }
    }
    for node in nodes {
        node.kill();
    }
    server.start_again();
    let segments = "SELECT count(*) FROM tallyline.segment WHERE state = 'applied'";
    for round in 0..6 {
        let nodes = dirs.each_ref().map(start);
        let before = server.value::<i64>("tally", segments);
        until(PATIENCE, "a transaction is under way", || {
            let active = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tallyline' AND state = 'active'";
            let active = server.value::<i64>("tally", active) > round % 3;
            let applied = server.value::<i64>("tally", segments) > before;
            let idle = || nodes.iter().all(|node| node.counter("pending") == 0);
            (active || applied || idle()).then_some(())
        });
        nodes.into_iter().for_each(Server::kill);
    }
    let nodes = dirs.each_ref().map(start);
    for node in &nodes {
        node.flush();
        node.assert_balanced();
    }
    for node in nodes {
        node.stop().expect(0);
    }
    let together = "SELECT count(*) > count(DISTINCT (node, applied_at_ms)) FROM tallyline.segment";
    assert!(
        server.value::<bool>("tally", together),
        "no two were committed together"
    );
    let files: Vec<Vec<u8>> = dirs
        .iter()
        .flat_map(|dir| event_files(dir))
        .map(|path| fs::read(path).unwrap())
        .collect();
    // Which of two conflicting events counts depends on which node is first, but not how many do.
    let counted = recount_bytes(files.iter().map(Vec::as_slice)).users;
    let found = suite::totals(&url);
    let without = |user: &str| {
        let of = |totals: &super::harness::Totals| {
            let mut totals = totals.clone();
            totals.remove(user);
            totals
        };
        (of(&found), of(&counted))
    };
    let (found_others, counted_others) = without("u7");
    assert_eq!(found_others, counted_others);
    assert_eq!(found["u7"].1, counted["u7"].1, "events with ids");
    for dir in &dirs {
        verify(dir, &url);
    }
}
