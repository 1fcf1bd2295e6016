//! Rules of exactly-once counting with several nodes, most of them by a forced interleaving (`--ignored`: needs
//! PostgreSQL 15). The comment of a test names the rule. The others have tests elsewhere:
//!
//! | rule | tests | fails, for example, if |
//! |---|---|---|
//! | S1: every writing transaction locks its node and compares the epoch | `nodes::a_restart_acquires_the_node_and_fences_the_process_before` | epoch and token are not compared |
//! | S2: tokens are durable before the database changes | `nodes::a_commit_with_an_unknown_outcome_is_resolved_by_the_tokens`, and the unit tests of `node_tokens` | the token is not written to `node.json` |
//! | S3: an unknown outcome is resolved by the tokens | the same; `nodes::a_copied_directory_is_refused_and_an_older_database_is_not` | any token is accepted |
//! | S4: an older database is not fenced, and reported | `nodes::a_copied_directory_is_refused_and_an_older_database_is_not`, `nodes::a_standby_that_lost_the_last_commits_keeps_its_nodes` | a lower epoch is refused |
//! | | `nodes::an_older_database_is_reported_with_its_cause` | epochs, or the identifiers of servers, are not compared |
//! | | `an_idle_node_notices_that_the_database_lost_commits`; `scale_out::a_standby_that_lost_the_last_seconds_catches_up_from_the_files`, where a lost connection is noticed, too | the node does not read its progress again |
//! | S5: the compare-and-set waits for a commit in doubt | `a_commit_that_comes_late_is_compared_with`; `a_commit_that_waits_for_a_standby_is_waited_for`, which also the lock of S1 guards; `on_postgres::nodes_with_cut_connections_count_exactly` | the offset is set and not compared |
//! | S6: COMMIT of an aborted transaction | `the_commit_of_an_aborted_transaction_is_an_error` | `commit.sql` is COMMIT alone |
//! | S7: insertion and look-up of ids | `an_id_that_expires_between_insertion_and_look_up_is_looked_up_again`; `on_postgres::an_id_counts_once_whichever_node_gets_it` | an id that is not found is new |
//! | S8: bytes, encodings, creation of the tables | `bytes_that_text_cannot_hold_do_not_stop_a_node`; `nodes::many_nodes_create_the_tables_once` | a NUL is left out |
//! | S9: one order of locks | `expiry_locks_segments_before_blocks`; `locks`; `scale_out::sixteen_nodes_agree_with_a_recount_of_all_files` | expiry does not lock segments first |
//! | S10: positions have the node | `positions::a_position_of_another_node_is_waited_for` | the node in a position is ignored |
//! | | `positions::a_sender_waits_for_the_node_that_took_its_events` | positions are shown without the node |
//! | S11: retention and expiry | `the_longest_deduplication_window_of_all_nodes_holds` | `forever` is ignored, or removed nodes are not |
//! | | `cli::retention_outlives_a_failover_of_the_shared_database`, `on_postgres::segments_are_pruned_and_ids_expire_and_the_sums_stay` | |
//! | S12: waits for positions | `positions::a_position_that_will_not_be_applied_is_an_error` | an unknown node, a removed one, the end of a segment, or a node of another database is not checked |
//! | | `positions::a_wait_survives_an_outage_of_the_database` | an error of the database ends waits |
//! | S13: a rebuild releases no id silently | `on_postgres::a_rebuild_counts_the_files_of_its_node_again_and_keeps_the_ids_of_others` | segments of other nodes are not marked for a recount |
//! | S14: removed and copied nodes | `nodes::a_copied_directory_is_refused_and_an_older_database_is_not`, `nodes::nodes_are_listed_adopted_and_removed` | the state of the node is not checked |
//! | | `nodes::a_copied_directory_with_another_uuid_is_refused`, `copies::a_copy_with_imported_files_only_is_not_counted` | tags of segments, or imported files in the archive, are not compared |
//! | S15: `verify` in one snapshot | `a_node_is_verified_while_all_nodes_count` | the snapshot is READ COMMITTED |
//! | S15: sums of more than 64 bits | `a_sum_over_nodes_may_be_larger_than_the_total_of_any` | a sum is cut to 64 bits |

use crate::harness::postgres::{Postgres, process, verify};
use crate::harness::{
    PATIENCE, Process, Scratch, Server, arg, event, event_with_id, run, tallyline, until,
};

/// Waits until so many transactions wait for a lock.
#[track_caller]
fn await_waiting(server: &Postgres, count: i64) {
    let query = "SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted";
    until(PATIENCE, "a transaction waits for a lock", || {
        (server.value::<i64>("tally", query) == count).then_some(())
    });
}

fn events_of(server: &Postgres, user: &str) -> i64 {
    let sum = "SELECT coalesce(sum(events), 0)::bigint FROM tallyline.user_total WHERE user_id";
    server.value("tally", &format!("{sum} = '{user}'"))
}

#[test]
#[ignore = "needs PostgreSQL"]
fn a_commit_that_waits_for_a_standby_is_waited_for() {
    // S5. Fails if a node that was killed during its commit applies the range again, although that commit is still
    // waiting for replication and succeeds later.
    let server = Postgres::start();
    let url = server.database("tally");
    let scratch = Scratch::new();
    let flags = ["--database", &url, "--flush-interval", "20ms"];
    let node = Server::with(&scratch.data(), &flags);
    node.accept(event("user", 1));
    node.flush();
    let mut admin = server.connect("postgres");
    let mut standbys = |names: &str| {
        let set = format!("ALTER SYSTEM SET synchronous_standby_names = '{names}'");
        admin.batch_execute(&set).unwrap();
        admin.batch_execute("SELECT pg_reload_conf()").unwrap();
    };
    until(
        PATIENCE,
        "a range waits for a standby in its commit",
        || {
            standbys("nobody");
            let waiting = until(PATIENCE, "a commit waits for a standby", || {
                node.accept(event("user", 1));
                let waiting = "SELECT (SELECT query FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND application_name = 'tallyline' LIMIT 1)";
                server.value::<Option<String>>("tally", waiting)
            });
            // A report of the node may be the first to wait.
            if waiting.contains("COMMIT") {
                return Some(());
            }
            standbys("");
            None
        },
    );
    node.kill();
    let node = Server::with(&scratch.data(), &flags);
    await_waiting(&server, 1);
    node.accept(event("user", 1));
    standbys("");
    node.flush();
    node.assert_balanced();
    node.stop().expect(0);
    verify(&scratch.data(), &url);
}

#[test]
#[ignore = "needs PostgreSQL"]
fn an_idle_node_notices_that_the_database_lost_commits() {
    // S4. Fails if a node whose connection a pooler keeps open during a failover, and which gets no events, does not
    // apply again what the new server has lost.
    let server = Postgres::start();
    let url = server.database("tally");
    let scratch = Scratch::new();
    let data = scratch.data();
    let node = Server::with(&data, &["--database", &url, "--flush-interval", "20ms"]);
    let mut files = Vec::new();
    for _ in 0..2 {
        node.post("/liveEvent?ack=applied", event("user", 1))
            .expect(200);
        files.push(std::fs::read(data.join("events.jsonl")).unwrap());
    }
    assert_eq!(events_of(&server, "user"), 2);
    server
        .connect("tally")
        .batch_execute(&as_applied(&files[0], 1))
        .unwrap();
    until(PATIENCE, "the lost event is applied again", || {
        (events_of(&server, "user") == 2).then_some(())
    });
    node.flush();
    node.stop().expect(0);
    assert_eq!(events_of(&server, "user"), 2);
    verify(&data, &url);
}

/// Statements that leave the only segment, user and node as they are when these bytes, with so many events of 1, are
/// applied.
fn as_applied(file: &[u8], events: u64) -> String {
    let (bytes, checksum, micros) = (file.len(), crc32fast::hash(file), events * 1_000_000);
    format!(
        "UPDATE tallyline.segment SET applied_bytes = {bytes}, checksum = {checksum}, lines = {events}, events = {events}, net_check = {micros};
         UPDATE tallyline.user_total SET revenue_micros = {micros}, events = {events};
         UPDATE tallyline.overall SET revenue_micros = {micros}, events = {events}"
    )
}

#[test]
#[ignore = "needs PostgreSQL"]
fn a_commit_that_comes_late_is_compared_with() {
    // S5. Fails if a range is applied although a commit of this node whose outcome was not known, and which no longer
    // holds the row of the node, applied it in the meantime. The rival changes what that commit would have changed.
    let server = Postgres::start();
    let url = server.database("tally");
    let scratch = Scratch::new();
    let data = scratch.data();
    let node = Server::with(&data, &["--database", &url, "--flush-interval", "20ms"]);
    let line = event("user", 1);
    node.post("/liveEvent?ack=applied", &line).expect(200);
    let file = std::fs::read(data.join("events.jsonl")).unwrap();
    let file = [&file, line.as_bytes()].concat();
    let mut client = server.connect("tally");
    let mut late = client.transaction().unwrap();
    late.batch_execute(&as_applied(&file, 2)).unwrap();
    node.accept(&line);
    await_waiting(&server, 1);
    late.commit().unwrap();
    node.flush();
    assert_eq!(events_of(&server, "user"), 2);
    node.stop().expect(0);
    verify(&data, &url);
}

#[test]
#[ignore = "needs PostgreSQL"]
fn the_commit_of_an_aborted_transaction_is_an_error() {
    // S6. Fails if COMMIT of a transaction that was aborted, which PostgreSQL answers with ROLLBACK and no error,
    // counts as a commit.
    const COMMIT: &str = include_str!("../sql/postgres/query/commit.sql");
    let server = Postgres::start();
    let mut client = server.connect("postgres");
    client.batch_execute("BEGIN").unwrap();
    assert!(client.batch_execute("SELECT 1/0").is_err());
    let error = client.batch_execute(COMMIT.trim_end()).unwrap_err();
    assert!(error.to_string().contains("db error"), "{error}");
    client.batch_execute("ROLLBACK; BEGIN").unwrap();
    client.batch_execute(COMMIT.trim_end()).unwrap();
}

#[test]
#[ignore = "needs PostgreSQL"]
fn an_id_that_expires_between_insertion_and_look_up_is_looked_up_again() {
    // S7. Fails if an event whose id was neither inserted nor found is counted, or dropped, or stops the node. The
    // trigger deletes the id between the two statements, once.
    let server = Postgres::start();
    let url = server.database("tally");
    let scratch = Scratch::new();
    let (first, second) = (scratch.path().join("first"), scratch.path().join("second"));
    let file = scratch.file("events_1.jsonl", event_with_id("x"));
    process(&first, &url, &[&file]).expect(0);
    let mut client = server.connect("tally");
    client
        .batch_execute(
            "CREATE SEQUENCE once;
             CREATE FUNCTION expire() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 IF nextval('once') = 1 THEN DELETE FROM tallyline.event_id WHERE id = 'x'; END IF;
                 RETURN NULL;
             END $$;
             CREATE TRIGGER expire AFTER INSERT ON tallyline.event_id FOR EACH STATEMENT EXECUTE FUNCTION expire()",
        )
        .unwrap();
    let file = scratch.file("events_2.jsonl", event_with_id("x") + &event_with_id("y"));
    process(&second, &url, &[&file]).expect(0);
    assert!(server.value::<i64>("tally", "SELECT last_value FROM once") > 1);
    assert_eq!(events_of(&server, "user"), 2);
    for data in [&first, &second] {
        verify(data, &url);
    }
}

#[test]
#[ignore = "needs PostgreSQL"]
fn bytes_that_text_cannot_hold_do_not_stop_a_node() {
    // S8. Fails if a line of zeros, as a crash of a machine may leave, cannot be stored as rejected, or if ids or
    // users are not ordered bytewise.
    let server = Postgres::start();
    let url = server.database("tally");
    let scratch = Scratch::new();
    let mut lines = vec![0; 4096];
    lines.push(b'\n');
    lines.extend(b"\xff\xfe\n".iter());
    for id in ["é", "Z", "a", "_", "\u{10ffff}", "ﬃ"] {
        lines.extend(
            event_with_id(id)
                .replace("user\"", &format!("{id}\""))
                .bytes(),
        );
    }
    let file = scratch.file("events_1.jsonl", &lines);
    process(&scratch.data(), &url, &[&file]).expect(3);
    let zeros =
        "SELECT count(*) FROM tallyline.rejected_line WHERE position('\\x00'::bytea IN line) = 1";
    assert_eq!(server.value::<i64>("tally", zeros), 1);
    verify(&scratch.data(), &url);
}

#[test]
#[ignore = "needs PostgreSQL"]
fn expiry_locks_segments_before_blocks() {
    // S9. Fails if the expiry of one node deletes a block and then waits for the segment of another node, which
    // holds that segment and waits for the block.
    let server = Postgres::start();
    let url = server.database("tally");
    let scratch = Scratch::new();
    let node = |name: &str, id: &str| {
        let flags = ["--database", &url, "--dedup-window", "1s"];
        let node = Server::with(&scratch.path().join(name), &flags);
        node.accept(event_with_id(id));
        node.flush();
        node
    };
    let other = node("other", "run-000002");
    other.stop().expect(0);
    let mut client = server.connect("tally");
    let mut applies = client.transaction().unwrap();
    let segment = "SELECT FROM tallyline.segment WHERE node = 1 FOR UPDATE";
    assert_eq!(applies.query(segment, &[]).unwrap().len(), 1);
    let expiring = node("expiring", "run-000001");
    await_waiting(&server, 1);
    // It waits for the segment, so it must not have the block.
    let block = "SELECT FROM tallyline.id_block FOR UPDATE NOWAIT";
    assert_eq!(applies.query(block, &[]).unwrap().len(), 1);
    applies.rollback().unwrap();
    let left = "SELECT count(*) FROM tallyline.id_block";
    until(PATIENCE, "the block expires", || {
        (server.value::<i64>("tally", left) == 0).then_some(())
    });
    expiring.stop().expect(0);
    for name in ["other", "expiring"] {
        verify(&scratch.path().join(name), &url);
    }
}

#[test]
#[ignore = "needs PostgreSQL"]
fn the_longest_deduplication_window_of_all_nodes_holds() {
    // S11. Fails if a node with a short window expires ids that another node still needs, or if the window of a
    // removed node holds for ever.
    let server = Postgres::start();
    let url = server.database("tally");
    let scratch = Scratch::new();
    let node = |name: &str, window: &str| {
        let flags = ["--database", &url, "--dedup-window", window];
        let node = Server::with(&scratch.path().join(name), &flags);
        node.flush();
        node
    };
    let long = node("long", "forever");
    long.stop().expect(0);
    let short = node("short", "0s");
    short.accept(event_with_id("x") + &event_with_id("run-000001"));
    short.flush();
    // Rounds of expiry pass: the clock is stored by each of them.
    let seen = "SELECT coalesce(max(seen_at_ms), 0) FROM tallyline.node_status";
    let before: i64 = server.value("tally", seen);
    until(PATIENCE, "the node has reported again", || {
        (server.value::<i64>("tally", seen) > before + 2_500).then_some(())
    });
    let ids = "SELECT (SELECT count(*) FROM tallyline.event_id) + (SELECT count(*) FROM tallyline.id_block)";
    assert_eq!(server.value::<i64>("tally", ids), 2);
    run(&["nodes", "remove", "1", "--yes", "--database", &url]).expect(0);
    until(PATIENCE, "the ids expire", || {
        (server.value::<i64>("tally", ids) == 0).then_some(())
    });
    short.stop().expect(0);
}

#[test]
#[ignore = "needs PostgreSQL"]
fn a_sum_over_nodes_may_be_larger_than_the_total_of_any() {
    // S15. Fails if a total that fits 64 bits at each node is added up in 64 bits.
    let server = Postgres::start();
    let url = server.database("tally");
    let scratch = Scratch::new();
    let huge = "{\"userId\":\"user\",\"name\":\"add_revenue\",\"value\":1000000000000}\n".repeat(9);
    for name in ["a", "b", "c"] {
        let data = scratch.path().join(name);
        let file = scratch.file("events_1.jsonl", &huge);
        process(&data, &url, &[&file]).expect(0);
        verify(&data, &url);
    }
    let node = Server::with(&scratch.path().join("a"), &["--database", &url]);
    let shown = node.get("/userEvents/user").expect(200).json();
    assert_eq!(shown["revenueMicros"], "27000000000000000000");
    let listed = node.get("/userEvents?order=-revenue").expect(200).text();
    assert!(listed.contains("27000000000000000000"), "{listed}");
    node.stop().expect(0);
}

#[test]
#[ignore = "needs PostgreSQL"]
fn a_node_is_verified_while_all_nodes_count() {
    // S15. Fails if `verify` reads totals, segments and ids of different times.
    let server = Postgres::start();
    let url = server.database("tally");
    let scratch = Scratch::new();
    let nodes = ["a", "b"].map(|name| {
        let flags = ["--database", &url, "--flush-interval", "10ms"];
        let node = Server::with(&scratch.path().join(name), &flags);
        // The node registers.
        node.accept(event("first", 1));
        node.flush();
        node
    });
    let mut sent = 0_u64;
    for _ in 0..5 {
        let mut verify = Process::start(&mut tallyline(&[
            "verify",
            "--database",
            &url,
            "--data-dir",
            arg(&scratch.path().join("a")),
        ]));
        while verify.exited().is_none() {
            for node in &nodes {
                // Each id goes to both nodes.
                let ids = [format!("run-{sent:09}"), format!("row-{sent}x")];
                node.accept(ids.map(|id| event_with_id(&id)).concat());
            }
            sent += 1;
        }
        verify.finish().expect(0);
    }
    for node in &nodes {
        node.flush();
    }
    assert_eq!(events_of(&server, "user").cast_unsigned(), 2 * sent);
}
