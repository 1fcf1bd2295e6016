//! What a node shows of the whole database (`--ignored`: needs PostgreSQL 15).

use serde_json::{Value, json};

use super::harness::postgres::Postgres;
use super::harness::{PATIENCE, Scratch, Server, arg, event, run, until};

#[track_caller]
fn node(scratch: &Scratch, name: &str, url: &str) -> Server {
    let flags = ["--database", url, "--flush-interval", "20ms"];
    Server::with(&scratch.path().join(name), &flags)
}

/// The value of a metric, as text.
#[track_caller]
fn metric<'m>(metrics: &'m str, name: &str) -> &'m str {
    let mut lines = metrics.lines();
    let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {name} in\n{metrics}"))
}

/// The states of the nodes, in order.
fn states(nodes: &Value) -> Vec<String> {
    let nodes = nodes["nodes"].as_array().unwrap();
    let state = |node: &Value| node["state"].as_str().unwrap().to_owned();
    nodes.iter().map(state).collect()
}

#[test]
#[ignore = "needs PostgreSQL"]
fn any_node_shows_the_totals_and_the_state_of_all_nodes() {
    // Fails if a page adds up the users of several nodes, mixes the figures of a node with those of all nodes, or
    // shows a node that was stopped as ready.
    let server = Postgres::start();
    let url = server.database("tally");
    let scratch = Scratch::new();
    let a = node(&scratch, "a", &url);
    let alone = a.get("/nodes").expect(200).json();
    assert_eq!((&alone["users"], &alone["revenue"]), (&json!(0), &json!(0)));
    a.post(
        "/liveEvent?ack=applied",
        event("both", 1) + &event("only-a", 2),
    )
    .expect(200);
    assert_eq!(a.get("/nodes").json()["users"], 2, "of the only node");
    let b = node(&scratch, "b", &url);
    let big = 9_000_000_000_000_u64 / 10;
    b.post(
        "/liveEvent?ack=applied",
        event("both", big) + &event("only-b", big),
    )
    .expect(200);
    for at in [&a, &b] {
        let all = at.get("/nodes").expect(200).json();
        assert_eq!(all["events"], 4, "{all}");
        assert_eq!(all["revenueMicros"], "1800000000003000000", "{all}");
        assert!(all["updatedAt"].is_string(), "{all}");
        assert_eq!(all["nodes"].as_array().unwrap().len(), 2, "{all}");
        assert_eq!(all["nodes"][0]["applied"], 2, "{all}");
        assert_eq!(all["nodes"][0]["users"], 2, "{all}");
        assert_eq!(all["nodes"][1]["revenueMicros"], "1800000000000000000");
        let counted = until(PATIENCE, "the users are counted", || {
            let all = at.get("/nodes").json();
            (all["users"] == 3).then_some(all)
        });
        assert_eq!(states(&counted), ["ready", "ready"], "{counted}");
        // The node's own figures.
        let status = at.assert_balanced();
        assert_eq!(status["shared"], true, "{status}");
        assert_eq!(
            (&status["users"], &status["events"]),
            (&json!(2), &json!(2))
        );
        let ids = [&counted["nodes"][0]["id"], &counted["nodes"][1]["id"]];
        assert!(ids.contains(&&status["directory"]), "{status}");
        let metrics = at.get("/metrics").text();
        assert_eq!(metric(&metrics, "tallyline_events"), "2");
        assert_eq!(metric(&metrics, "tallyline_cluster_events"), "4");
        assert_eq!(
            metric(&metrics, "tallyline_cluster_nodes{state=\"ready\"}"),
            "2"
        );
        at.get("/nodes?limit=1").problem(400);
    }
    // A node that was stopped, and one that is not ready.
    let b_dir = scratch.path().join("b");
    b.stop().expect(0);
    server.run("tally", "UPDATE tallyline.node_status SET seen_at_ms = seen_at_ms - 60000, pending_lines = 5 WHERE node = 2");
    let all = a.get("/nodes").expect(200).json();
    assert_eq!(states(&all), ["ready", "not_reporting"], "{all}");
    let metrics = a.get("/metrics").text();
    assert_eq!(metric(&metrics, "tallyline_cluster_pending_lines"), "5");
    let oldest = metric(&metrics, "tallyline_cluster_oldest_report_seconds");
    assert!(oldest.parse::<f64>().unwrap() >= 60., "{oldest}");
    std::fs::write(b_dir.join("events.jsonl"), "").unwrap();
    std::fs::create_dir(b_dir.join("events_1.jsonl")).unwrap();
    let b = node(&scratch, "b", &url);
    let all = until(PATIENCE, "the node reports why it is not ready", || {
        let all = a.get("/nodes").json();
        (states(&all)[1] == "not_ready").then_some(all)
    });
    assert!(
        all["nodes"][1]["reasons"].to_string().contains("events_1"),
        "{all}"
    );
    b.stop().expect(0);
    // `process` does not report.
    let c_dir = scratch.path().join("c");
    let file = scratch.file("events_2.jsonl", event("only-c", 1));
    run(&[
        "process",
        "--data-dir",
        arg(&c_dir),
        "--database",
        &url,
        arg(&file),
    ])
    .expect(0);
    let all = a.get("/nodes").expect(200).json();
    assert_eq!(states(&all)[2], "never_reported", "{all}");
    assert_eq!(
        (&all["nodes"][2]["applied"], &all["events"]),
        (&json!(1), &json!(5))
    );
    let listed = run(&["nodes", "--database", &url]).expect(0).stdout;
    assert!(listed.contains("never reported"), "{listed}");
    a.stop().expect(0);
}

#[test]
#[ignore = "needs PostgreSQL"]
fn an_outage_leaves_the_figures_of_the_node() {
    // Fails if `/status` or `/metrics` needs the database, or if `/nodes` shows zeros while it is away.
    let mut server = Postgres::start();
    let url = server.database("tally");
    let scratch = Scratch::new();
    let a = node(&scratch, "a", &url);
    a.post("/liveEvent?ack=applied", event("u", 1)).expect(200);
    server.kill();
    a.accept(event("u", 1));
    let problem = a.get("/nodes").expect(503);
    assert!(problem.header("Retry-After").is_some());
    let status = a.get("/status").expect(200).json();
    assert_eq!(
        (&status["accepted"], &status["events"]),
        (&json!(2), &json!(1))
    );
    let metrics = a.get("/metrics").expect(200).text();
    assert_eq!(metric(&metrics, "tallyline_events"), "1");
    assert!(!metrics.contains("tallyline_cluster_"), "{metrics}");
}
