//! The sums over all users in `/status`, `/metrics` and `query`, which must equal the sum of all totals after
//! everything that changes one.

use std::fs;

use serde_json::Value;

use super::harness::{PATIENCE, Scratch, Server, arg, database, event, run, until};

/// Users, events and exact micros of `/status`. The metrics must have the same.
#[track_caller]
fn sums(server: &Server) -> (u64, u64, i128) {
    let text = server.get("/status").expect(200).text();
    let status: Value = serde_json::from_str(&text).expect("JSON");
    let count = |name: &str| status[name].as_u64().expect("a count");
    let micros = status["revenueMicros"].as_str().expect("a string");
    let micros: i128 = micros.parse().expect("a whole number");
    let metrics = server.get("/metrics").expect(200).text();
    let metric = |name: &str| {
        let line = metrics.lines().find_map(|line| line.strip_prefix(name));
        line.expect("the metric").trim().to_owned()
    };
    assert_eq!(metric("tallyline_users "), count("users").to_string());
    assert_eq!(metric("tallyline_events "), count("events").to_string());
    let revenue = metric("tallyline_revenue ");
    assert!(text.contains(&format!("\"revenue\":{revenue},")), "{text}");
    let (units, fraction) = revenue.split_once('.').unwrap_or((&revenue, ""));
    let digits: i128 = format!("{units}{fraction:0<6}").parse().expect("digits");
    assert_eq!(digits, micros, "{revenue} has every digit");
    (count("users"), count("events"), micros)
}

/// The sum of all totals in the database.
fn expected(server: &Server) -> (u64, u64, i128) {
    let users = database(&server.data);
    let events = users.values().map(|total| total.1).sum();
    let micros = users.values().map(|total| total.0).sum();
    (users.len() as u64, events, micros)
}

/// Waits until a server that was just started has read the database.
#[track_caller]
fn wait_for(server: &Server, expected: (u64, u64, i128)) {
    until(PATIENCE, "the database is read", || {
        (server.counter("events") > 0).then_some(())
    });
    assert_eq!(sums(server), expected);
}

fn subtract(user: &str, value: &str, id: &str) -> String {
    format!(
        "{{\"userId\":{user:?},\"name\":\"subtract_revenue\",\"value\":{value},\"id\":{id:?}}}\n"
    )
}

#[test]
fn the_sums_follow_every_total() {
    // Fails if the sums are wrong after new and known users, duplicates, rejected lines, an overflow, a
    // restart, or a rebuild; or if they are rounded.
    let scratch = Scratch::new();
    let data = scratch.data();
    let server = Server::start(&data);
    assert_eq!(sums(&server), (0, 0, 0));
    assert_eq!(server.status()["updatedAt"], Value::Null);
    server.accept(event("a", 5).repeat(3) + &event("b", 7));
    server.accept(subtract("a", "0.000001", "i") + &subtract("a", "0.000001", "i"));
    server.flush();
    assert_eq!(sums(&server), (2, 5, 21_999_999));
    let updated = server.status()["updatedAt"].as_str().map(str::to_owned);
    humantime::parse_rfc3339(&updated.expect("a time")).expect("RFC 3339");
    // The total of one user overflows; the sum over all of them exceeds 64 bits.
    let largest: String = ["c", "c", "d", "e"]
        .map(|user| event(user, 1_000_000_000_000).repeat(8))
        .concat();
    server.accept(largest);
    server.flush();
    assert!(server.counter("rejected") > 0);
    assert_eq!(sums(&server), expected(&server));
    let now = sums(&server);
    assert!(now.2 > i128::from(i64::MAX), "{now:?}");
    server.assert_balanced();
    server.stop().expect(0);

    // The same from the database, by each program that reads it.
    let ran = run(&["query", "--json", "--data-dir", arg(&data)]).expect(0);
    let shown: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!(
        (&shown["users"], &shown["events"]),
        (&now.0.into(), &now.1.into())
    );
    let server = Server::start(&data);
    wait_for(&server, now);
    server.stop().expect(0);
    // Some of its lines are rejected.
    run(&["process", "--rebuild", "--data-dir", arg(&data)]).expect(3);
    let server = Server::with(&data, &["--no-process"]);
    wait_for(&server, now);
    server.stop().expect(0);
    run(&["verify", "--data-dir", arg(&data)]).expect(0);
}

#[test]
fn the_sums_include_pruned_segments() {
    // Fails if pruning, or a rebuild that carries totals over, changes the sums.
    let scratch = Scratch::new();
    let data = scratch.data();
    let server = Server::with(&data, &["--retention", "0s", "--flush-interval", "10ms"]);
    for user in ["a", "b", "c", "a"] {
        server.accept(event(user, 1_000_000_000_000).repeat(4));
        server.flush();
    }
    until(PATIENCE, "all but the newest are pruned", || {
        let archived = fs::read_dir(data.join("applied")).ok()?;
        let files = archived
            .flatten()
            .filter_map(|month| fs::read_dir(month.path()).ok());
        (files.flatten().count() == 1).then_some(())
    });
    let now = (3, 16, 16_000_000_000_000_000_000);
    assert_eq!(sums(&server), now);
    server.stop().expect(0);
    let ran = run(&["process", "--rebuild", "--data-dir", arg(&data)]).expect(0);
    assert!(ran.stdout.contains("carried over"), "{ran}");
    let server = Server::start(&data);
    wait_for(&server, now);
    server.accept(event("d", 1));
    server.flush();
    assert_eq!(sums(&server), (4, 17, now.2 + 1_000_000));
    server.stop().expect(0);
    run(&["verify", "--data-dir", arg(&data)]).expect(0);
}
