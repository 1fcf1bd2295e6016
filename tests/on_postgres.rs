//! The store on PostgreSQL (`--ignored`: needs PostgreSQL 15): the same tests as on SQLite, the same rows, and
//! what exists only with several nodes.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use postgres::{Client, NoTls};
use rusqlite::Connection;

use super::harness::cutting_proxy::CuttingProxy;
use super::harness::http::Request;
use super::harness::postgres::Postgres;
use super::harness::recount::{event_files, open_database};
use super::harness::suite;
use super::harness::{
    PATIENCE, Process, Scratch, Server, Totals, arg, event, recount_files, run, tallyline, until,
};

/// Modules whose tests run on both stores.
const MODULES: &[&str] = &[
    "access::",
    "bad_input::",
    "crash::",
    "end_to_end::",
    "http::",
    "listings::",
    "metamorphic::",
    "process::",
    "provable::",
    "same_segment::",
    "sealed::",
    "send::",
];

/// Tests in these modules that are about the SQLite file.
const ABOUT_THE_FILE: &[&str] = &[
    "end_to_end::the_user_revenue_view_agrees_with_the_exact_totals", // its view and pragmas
    "http::pending_lines_of_an_imported_file_have_an_age", // PostgreSQL reports a lock after a minute
    "metamorphic::imported_files_give_the_same_totals",    // calls the library with it
    "provable::a_backup_copied_beside_an_old_wal_is_detected_and_rebuilt",
    "provable::a_backup_put_in_place_of_an_open_database_is_caught_up",
    "provable::a_rebuild_is_rejected_beside_a_reader",
    "provable::a_rebuild_repairs_a_database_with_a_foreign_wal",
    "provable::ids_of_pruned_segments_lost_by_a_mixed_database_are_reported",
    "provable::process_reports_a_database_mixed_from_two_copies",
    "provable::verify_after_a_crash_agrees_and_leaves_one_file",
    "send::a_server_without_a_processor_is_reported", // `query` reports that there is none
];

#[test]
#[ignore = "needs PostgreSQL"]
fn the_tests_of_the_server_pass_on_postgres() {
    // Fails if a promise of the server holds on SQLite only.
    let server = Postgres::with(&["max_connections=400"]);
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(MODULES)
        .args(["--test-threads", "2"])
        .env(suite::PORT, server.port.to_string());
    for name in ABOUT_THE_FILE {
        command.args(["--skip", name]);
    }
    Process::start(&mut command)
        .finish_within(PATIENCE * 30)
        .expect(0);
}

/// A random number generator that needs no crate.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// Lines of every kind: with and without ids of both kinds, duplicates, conflicts, invalid ones, and totals that
/// overflow.
fn mixed_lines(seed: u64, lines: u64) -> String {
    let mut numbers = Numbers(seed);
    let mut text = String::new();
    for _ in 0..lines {
        let user = numbers.below(300);
        let value = numbers.below(50);
        let id = match numbers.below(6) {
            0 => format!(",\"id\":\"row-{}x\"", numbers.below(lines)),
            1 => format!(",\"id\":\"run-{:012}\"", numbers.below(lines)),
            2 => format!(",\"id\":\"other-{:06}\"", numbers.below(2000) * 128),
            _ => String::new(),
        };
        let name = if numbers.below(4) == 0 {
            "subtract_revenue"
        } else {
            "add_revenue"
        };
        let _infallible = match numbers.below(200) {
            0 => writeln!(
                text,
                "{{\"userId\":\"u{user}\",\"name\":\"none\",\"value\":1}}"
            ),
            1 => writeln!(text, "no event \u{0} \u{fffd}"),
            // Ten of them overflow 64 bits.
            2..=9 => writeln!(
                text,
                "{{\"userId\":\"rich{}\",\"name\":\"{name}\",\"value\":1000000000000{id}}}",
                user % 3
            ),
            _ => writeln!(
                text,
                "{{\"userId\":\"u{user}\",\"name\":\"{name}\",\"value\":{value}.5{id}}}"
            ),
        };
    }
    text
}

/// Rows as text, in order.
fn rows_of_postgres(url: &str, sql: &str) -> Vec<String> {
    let mut client = Client::connect(url, NoTls).unwrap();
    let rows = client.query(sql, &[]).unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

fn rows_of_sqlite(db: &Connection, sql: &str) -> Vec<String> {
    let mut statement = db.prepare(sql).unwrap();
    let rows = statement.query_map([], |row| row.get(0)).unwrap();
    rows.map(Result::unwrap).collect()
}

#[test]
#[ignore = "needs PostgreSQL"]
fn both_stores_hold_the_same_rows_for_the_same_files() {
    // Fails if one of the two row operations differs: statuses of ids, blocks, overflows, rejected lines,
    // counts. Dates are left out; a block's bytes differ by the number of the node.
    let server = Postgres::start();
    let scratch = Scratch::new();
    let (on_file, on_server) = (scratch.path().join("file"), scratch.path().join("server"));
    let url = server.database("rows");
    for round in 0..3 {
        let mut files = Vec::new();
        for (index, lines) in [20_000, 50, 700].into_iter().enumerate() {
            let text = mixed_lines(round * 10 + index as u64, lines);
            files.push(scratch.file(&format!("events_{round}_{index}.jsonl"), text));
        }
        for (dir, database) in [(&on_file, None), (&on_server, Some(&url))] {
            let mut args = vec!["process", "--data-dir", arg(dir)];
            if let Some(url) = database {
                args.extend(["--database", url]);
            }
            args.extend(files.iter().map(|file| arg(file)));
            run(&args).expect(3);
        }
    }
    let db = open_database(&on_file);
    for (name, sqlite, postgres) in [
        (
            "totals",
            "SELECT user_id || ' ' || revenue_micros || ' ' || events FROM user_total ORDER BY user_id",
            "SELECT user_id || ' ' || revenue_micros || ' ' || events FROM tallyline.user_total ORDER BY user_id",
        ),
        (
            "segments",
            "SELECT concat_ws(' ', key, name, state, applied_bytes, checksum, lines, events, duplicates, rejected, net_check, id_events, id_net_check) FROM segment ORDER BY key",
            "SELECT concat_ws(' ', key, name, state, applied_bytes, checksum, lines, events, duplicates, rejected, net_check, id_events, id_net_check) FROM tallyline.segment ORDER BY key",
        ),
        (
            "rejected lines",
            "SELECT concat_ws(' ', segment, offset, code, hex(line)) FROM rejected_line ORDER BY segment, offset",
            "SELECT concat_ws(' ', segment, \"offset\", code, upper(encode(line, 'hex'))) FROM tallyline.rejected_line ORDER BY segment, \"offset\"",
        ),
        (
            "ids",
            "SELECT concat_ws(' ', id, payload, segment, offset) FROM event_id ORDER BY id",
            "SELECT concat_ws(' ', id, payload, segment, \"offset\") FROM tallyline.event_id ORDER BY id",
        ),
        (
            "blocks",
            "SELECT concat_ws(' ', prefix, width, block, hex(substr(numbers, 1, 17))) FROM id_block ORDER BY prefix, width, block",
            "SELECT concat_ws(' ', prefix, width, block, upper(encode(substr(numbers, 1, 17), 'hex'))) FROM tallyline.id_block WHERE length(numbers) > 30 ORDER BY prefix, width, block",
        ),
        (
            "sums",
            "SELECT concat_ws(' ', segments, native, lines, events, duplicates, rejected) FROM applied_sum",
            "SELECT concat_ws(' ', segments, native, lines, events, duplicates, rejected) FROM tallyline.applied_sum",
        ),
    ] {
        let mut expected = rows_of_sqlite(&db, sqlite);
        let found = rows_of_postgres(&url, postgres);
        if name == "blocks" {
            // Blocks of one number have no bitmap.
            let long = "SELECT concat_ws(' ', prefix, width, block, hex(substr(numbers, 1, 17))) FROM id_block WHERE length(numbers) > 30 ORDER BY prefix, width, block";
            let count = |db: &Connection| expected.len() - rows_of_sqlite(db, long).len();
            assert!(count(&db) > 0, "blocks of one number");
            let blocks: i64 = server.value("rows", "SELECT count(*) FROM tallyline.id_block");
            assert_eq!(blocks, i64::try_from(expected.len()).unwrap());
            // In the form of several numbers a run has at least 5 bytes more in PostgreSQL.
            expected.retain(|row| found.contains(row));
        }
        assert!(!expected.is_empty(), "{name}: no rows");
        for (expected, found) in expected.iter().zip(&found) {
            assert_eq!(found, expected, "{name}");
        }
        assert_eq!(found.len(), expected.len(), "{name}");
    }
    for (dir, database) in [(&on_file, None), (&on_server, Some(&url))] {
        let mut args = vec!["verify", "--data-dir", arg(dir)];
        if let Some(url) = database {
            args.extend(["--database", url]);
        }
        run(&args).expect(0);
    }
}

/// A server on a shared database.
#[track_caller]
fn node(scratch: &Scratch, name: &str, url: &str) -> Server {
    let flags = [
        "--database",
        url,
        "--flush-interval",
        "20ms",
        "--rotate-size",
        "64KiB",
    ];
    Server::with(&scratch.path().join(name), &flags)
}

/// Recounts the files of several nodes together. Which of two events with one id counts does not matter, because
/// both have one payload.
fn recount_nodes(scratch: &Scratch, names: &[&str]) -> Totals {
    let files: Vec<_> = names
        .iter()
        .flat_map(|name| event_files(&scratch.path().join(name)))
        .collect();
    recount_files(&files).users
}

#[test]
#[ignore = "needs PostgreSQL"]
fn an_id_counts_once_whichever_node_gets_it() {
    // Fails if ids are per node, in either table of ids, or if the totals of a user are not added up.
    let server = Postgres::start();
    let url = server.database("ids");
    let scratch = Scratch::new();
    let (a, b) = (node(&scratch, "a", &url), node(&scratch, "b", &url));
    let with_id = |id: &str, value: u64| {
        format!("{{\"id\":\"{id}\",\"userId\":\"u\",\"name\":\"add_revenue\",\"value\":{value}}}\n")
    };
    for id in ["row", "run-000000000001", "run-000000000002"] {
        a.post("/liveEvent?ack=applied", with_id(id, 1)).expect(200);
        b.post("/liveEvent?ack=applied", with_id(id, 1)).expect(200);
    }
    // The same id with another value is a conflict at any node.
    b.post("/liveEvent?ack=applied", with_id("row", 2))
        .expect(200);
    b.post("/liveEvent?ack=applied", with_id("run-000000000001", 2))
        .expect(200);
    b.post("/liveEvent?ack=applied", event("u", 10)).expect(200);
    for at in [&a, &b] {
        let shown = at.get("/userEvents/u").expect(200).json();
        assert_eq!(
            (shown["revenue"].as_u64(), shown["events"].as_u64()),
            (Some(13), Some(4))
        );
    }
    assert_eq!(b.counter("duplicates"), 3);
    assert_eq!(b.counter("rejected"), 2);
    let rejected = b.get("/rejected").expect(200).text();
    assert!(rejected.contains("id_conflict"), "{rejected}");
    assert!(
        !a.get("/rejected")
            .expect(200)
            .text()
            .contains("id_conflict")
    );
    a.assert_balanced();
    b.assert_balanced();
    a.stop().expect(0);
    b.stop().expect(0);
    for name in ["a", "b"] {
        let dir = scratch.path().join(name);
        run(&["verify", "--data-dir", arg(&dir), "--database", &url]).expect(0);
    }
}

#[test]
#[ignore = "needs PostgreSQL"]
fn an_outage_of_the_database_stops_only_the_counting() {
    // Fails if events are refused while the database is away, if readiness does not say why, or if an event is
    // lost or counted twice afterwards.
    let mut server = Postgres::start();
    let url = server.database("outage");
    let scratch = Scratch::new();
    let a = node(&scratch, "a", &url);
    a.post("/liveEvent?ack=applied", event("u", 1)).expect(200);
    server.kill();
    for _ in 0..100 {
        a.accept(event("u", 1));
    }
    let reason = until(PATIENCE, "readiness reports the outage", || {
        let ready = a.get("/readyz");
        (ready.status == 503).then(|| ready.text())
    });
    assert!(reason.contains("database"), "{reason}");
    assert!(!reason.contains("revenue.db"), "{reason}");
    a.get("/userEvents/u").expect(503);
    server.start_again();
    until(PATIENCE, "everything is counted", || {
        let reply = a.get("/userEvents/u");
        (reply.status == 200 && reply.json()["events"] == 101).then_some(())
    });
    until(PATIENCE, "it is ready", || {
        (a.get("/readyz").status == 200).then_some(())
    });
    // A server that starts during an outage takes events, too.
    a.stop().expect(0);
    server.kill();
    let a = node(&scratch, "a", &url);
    a.accept(event("u", 1));
    server.start_again();
    until(PATIENCE, "everything is counted", || {
        let reply = a.get("/userEvents/u");
        (reply.status == 200 && reply.json()["events"] == 102).then_some(())
    });
    a.stop().expect(0);
    let dir = scratch.path().join("a");
    run(&["verify", "--data-dir", arg(&dir), "--database", &url]).expect(0);
}

/// How many connections are cut: 40, or the number in `TALLYLINE_TEST_CUTS` for a longer run.
fn cuts_wanted() -> u32 {
    let wanted = std::env::var("TALLYLINE_TEST_CUTS");
    wanted.map_or(40, |wanted| wanted.parse().expect("a number of cuts"))
}

#[test]
#[ignore = "needs PostgreSQL"]
fn nodes_with_cut_connections_count_exactly() {
    // Fails if a commit whose outcome is unknown is applied again, or not at all; or if two nodes with the same
    // ids and blocks deadlock for good.
    let wanted = cuts_wanted();
    let server = Postgres::start();
    server.database("cut");
    let proxy = CuttingProxy::start(server.port, 1);
    proxy.cut(true);
    let url = proxy.url("cut");
    let scratch = Scratch::new();
    let names = ["a", "b", "c", "d"];
    let nodes: Vec<Server> = names
        .iter()
        .map(|name| node(&scratch, name, &url))
        .collect();
    let mut numbers = Numbers(7);
    let mut round = 0;
    until(PATIENCE * (5 + wanted / 8), "connections are cut", || {
        for at in &nodes {
            let mut body = String::new();
            for _ in 0..20 {
                let number = numbers.below(5_000);
                let user = number % 40;
                let id = match number % 3 {
                    0 => format!("row-{number}x"),
                    _ => format!("run-{number:012}"),
                };
                let _infallible = writeln!(
                    body,
                    "{{\"id\":\"{id}\",\"userId\":\"u{user}\",\"name\":\"add_revenue\",\"value\":{number}}}"
                );
            }
            if at.counter("pending") < 1_000 {
                at.accept(body);
            }
        }
        round += 1;
        let (before, after, elsewhere) = proxy.cuts();
        let all = before + after + elsewhere;
        let few = u64::from(wanted) / 10;
        (before > few && after > few && all > u64::from(wanted)).then_some(())
    });
    proxy.cut(false);
    let (before, after, elsewhere) = proxy.cuts();
    eprintln!("cut: {before} before a commit, {after} after one, {elsewhere} elsewhere");
    for at in &nodes {
        until(PATIENCE, "the node has applied its files", || {
            (at.counter("pending") == 0 && at.get("/readyz").status == 200).then_some(())
        });
        at.assert_balanced();
    }
    for at in nodes {
        at.stop().expect(0);
    }
    assert_eq!(
        suite::totals(&server.url("cut")),
        recount_nodes(&scratch, &names),
        "{round} rounds"
    );
    for name in names {
        let dir = scratch.path().join(name);
        run(&["verify", "--data-dir", arg(&dir), "--database", &url]).expect(0);
    }
}

/// Runs `process`; returns what it printed.
#[track_caller]
fn process(dir: &Path, url: &str, flags: &[&str]) -> String {
    let mut args = vec!["process", "--data-dir", arg(dir), "--database", url];
    args.extend(flags);
    run(&args).expect(0).stdout
}

#[test]
#[ignore = "needs PostgreSQL"]
fn a_rebuild_counts_the_files_of_its_node_again_and_keeps_the_ids_of_others() {
    // Fails if a rebuild changes totals that the files prove, touches another node, or releases an id silently.
    let server = Postgres::start();
    let url = server.database("rebuild");
    let scratch = Scratch::new();
    let (a, b) = (scratch.path().join("a"), scratch.path().join("b"));
    let line = |id: &str| {
        format!("{{\"id\":\"{id}\",\"userId\":\"u\",\"name\":\"add_revenue\",\"value\":1}}\n")
    };
    let first = [line("row"), line("run-000000000001"), event("u", 5)].concat();
    let second = [line("run-000000000002"), line("only")].concat();
    let first = scratch.file("events_1.jsonl", first);
    let second = scratch.file("events_2.jsonl", second);
    let at_b = [
        line("run-000000000001"),
        line("run-000000000002"),
        line("run-000000000003"),
        line("row"),
    ];
    let at_b = scratch.file("events_3.jsonl", at_b.concat());
    process(&a, &url, &[arg(&first), arg(&second)]);
    process(&b, &url, &[arg(&at_b)]);
    let before = suite::totals(&url);
    assert_eq!(before["u"], (10_000_000, 6));
    server.run(
        "rebuild",
        "UPDATE tallyline.user_total SET revenue_micros = 0 WHERE node = 1",
    );
    run(&["verify", "--data-dir", arg(&a), "--database", &url]).expect(1);
    process(&a, &url, &["--rebuild"]);
    assert_eq!(suite::totals(&url), before);
    for dir in [&a, &b] {
        run(&["verify", "--data-dir", arg(dir), "--database", &url]).expect(0);
    }
    // The file of one segment is gone: its ids are released, and b, which has one of them, must be rebuilt.
    let gone = event_files(&a)
        .into_iter()
        .find(|path| arg(path).contains("events_2"))
        .unwrap();
    fs::remove_file(gone).unwrap();
    let told = process(&a, &url, &["--rebuild"]);
    assert!(told.contains("2 ids were released"), "{told}");
    for dir in [&a, &b] {
        let found = run(&["verify", "--data-dir", arg(dir), "--database", &url]).expect(1);
        assert!(found.stdout.contains("--rebuild` on that node"), "{found}");
    }
    process(&b, &url, &["--rebuild"]);
    assert_eq!(suite::totals(&url)["u"], (9_000_000, 5));
    for dir in [&a, &b] {
        run(&["verify", "--data-dir", arg(dir), "--database", &url]).expect(0);
    }
}

#[test]
#[ignore = "needs PostgreSQL"]
fn segments_are_pruned_and_ids_expire_and_the_sums_stay() {
    // Fails if retention or the deduplication window do not work on PostgreSQL, or if a rebuild loses what was
    // pruned.
    let server = Postgres::start();
    let url = server.database("retention");
    let scratch = Scratch::new();
    let dir = scratch.path().join("a");
    let flags = [
        "--database",
        &url,
        "--flush-interval",
        "20ms",
        "--rotate-size",
        "1KiB",
        "--failover-window",
        "0s",
        "--retention",
        "0s",
        "--dedup-window",
        "1s",
    ];
    let a = Server::with(&dir, &flags);
    let mut sent = 1;
    let line = |number: u64| {
        format!(
            "{{\"id\":\"run-{number:012}\",\"userId\":\"u\",\"name\":\"add_revenue\",\"value\":1}}\n{{\"id\":\"row-{number}x\",\"userId\":\"u\",\"name\":\"add_revenue\",\"value\":1}}\n"
        )
    };
    a.post("/liveEvent?ack=applied", line(0)).expect(200);
    until(PATIENCE, "segments are pruned and ids expire", || {
        a.accept(line(sent));
        sent += 1;
        let pruned: Option<i64> = server
            .connect("retention")
            .query_opt(
                "SELECT segments FROM tallyline.pruned WHERE segments > 3",
                &[],
            )
            .unwrap()
            .map(|row| row.get(0));
        let rows: i64 = server.value("retention", "SELECT count(*) FROM tallyline.event_id");
        let blocks: i64 = server.value(
            "retention",
            "SELECT coalesce(sum(length(numbers)), 0) FROM tallyline.id_block",
        );
        (pruned.is_some() && rows < i64::try_from(sent).unwrap() / 2 && blocks > 0).then_some(())
    });
    a.stop().expect(0);
    assert_eq!(suite::totals(&url)["u"].1, 2 * sent);
    run(&["verify", "--data-dir", arg(&dir), "--database", &url]).expect(0);
}

#[test]
#[ignore = "needs PostgreSQL"]
fn commands_on_postgres_need_no_file_of_sqlite() {
    // Fails if a command opens or creates revenue.db with --database, or shows a password.
    let server = Postgres::start();
    let url = server.database("commands");
    let secret = url.replace("postgres@", "postgres:secret@");
    let scratch = Scratch::new();
    let data = scratch.data();
    let file = scratch.file("events_1.jsonl", event("u", 3) + "nonsense\n");
    let told = run(&[
        "process",
        "--data-dir",
        arg(&data),
        "--database",
        &secret,
        arg(&file),
    ])
    .expect(3);
    assert!(!told.stdout.contains("sqlite3"), "{told}");
    assert!(!format!("{told}").contains("secret"), "{told}");
    let warnings = told.stderr.matches("list of processes").count();
    assert_eq!(warnings, 1, "{told}");
    assert!(
        told.stderr.contains("PGPASSWORD") && told.stderr.contains(".pgpass"),
        "{told}"
    );
    // The environment of a process is visible to its user only.
    let mut command = tallyline(&["process", "--data-dir", arg(&data)]);
    let quiet = Process::start(command.env("TALLYLINE_DATABASE", &secret)).finish();
    assert!(!quiet.stderr.contains("list of processes"), "{quiet}");
    let shown = run(&[
        "query",
        "--data-dir",
        arg(&data),
        "--database",
        &secret,
        "u",
        "--csv",
    ])
    .expect(0);
    assert!(shown.stdout.contains("u,3,3000000,1,"), "{shown}");
    run(&["query", "--data-dir", arg(&data), "--database", &secret]).expect(0);
    let elsewhere = scratch.path().join("elsewhere");
    run(&[
        "query",
        "--data-dir",
        arg(&elsewhere),
        "--database",
        &secret,
        "u",
    ])
    .expect(0);
    let check = run(&[
        "serve",
        "--data-dir",
        arg(&data),
        "--database",
        &secret,
        "--check",
    ])
    .expect(0);
    assert!(
        check.stdout.contains("database = \"postgres://postgres"),
        "{check}"
    );
    assert!(!check.stdout.contains("secret"), "{check}");
    for wrong in ["revenue.db", "mysql://x/y", "postgres://[", ""] {
        let refused = run(&["serve", "--data-dir", arg(&data), "--database", wrong]).expect(2);
        assert!(refused.stderr.contains("--database"), "{refused}");
    }
    assert!(!data.join("revenue.db").exists());
    let a = Server::with(&data, &["--database", &url]);
    let page = a
        .ask(&Request::new("GET", "/userEvents?order=-revenue&limit=1"))
        .expect(200)
        .text();
    assert!(page.contains("\"u\""), "{page}");
    a.stop().expect(0);
    assert!(!data.join("revenue.db").exists());
}

#[test]
#[ignore = "needs PostgreSQL"]
fn a_backup_without_the_totals_is_refused() {
    // Fails if a backup of a node looks complete, or if the message does not say how to make one.
    let server = Postgres::start();
    let url = server.database("tally");
    let secret = url.replace("postgres@", "postgres:secret@");
    let scratch = Scratch::new();
    let data = scratch.data();
    let file = scratch.file("events_1.jsonl", event("u", 3));
    process(&data, &url, &[arg(&file)]);
    let backup = scratch.path().join("backup");
    for (command, verb) in [
        ("backup", "cannot back up"),
        ("restore", "cannot restore into"),
    ] {
        for flags in [&["--database", &secret][..], &[]] {
            let mut args = vec![command, arg(&backup), "--data-dir", arg(&data)];
            args.extend(flags);
            let refused = run(&args).expect(2);
            for text in [verb, "pg_", "data/docs/scaling.md", "Backup"] {
                assert!(refused.stderr.contains(text), "{args:?}: {refused}");
            }
            assert!(!refused.stderr.contains("secret"), "{refused}");
        }
        let mut args = tallyline(&[
            command,
            arg(&backup),
            "--data-dir",
            arg(&scratch.path().join("none")),
        ]);
        let refused = Process::start(args.env("TALLYLINE_DATABASE", &url))
            .finish()
            .expect(2);
        assert!(
            refused
                .stderr
                .contains("with TALLYLINE_DATABASE, the totals are in"),
            "{refused}"
        );
    }
    assert!(!backup.exists());
}
