//! Positions and `?after=` with several nodes in one PostgreSQL database (`--ignored`: needs PostgreSQL 15): a client
//! behind a load balancer reads its own writes at any node.

use std::time::{Duration, Instant};

use crate::harness::postgres::Postgres;
use crate::harness::{PATIENCE, Scratch, Server, arg, event, run, until};

/// A node that applies only when it is asked to, and another one.
struct Nodes {
    postgres: Postgres,
    url: String,
    scratch: Scratch,
    slow: Server,
    other: Server,
}

impl Nodes {
    fn start() -> Self {
        let postgres = Postgres::start();
        let url = postgres.database("tally");
        let scratch = Scratch::new();
        let start = |name: &str, interval: &str| {
            let data = scratch.path().join(name);
            let flags = ["--database", &url, "--flush-interval", interval];
            let node = Server::with(&data, &flags);
            // The node registers.
            node.accept(event("first", 1));
            node.flush();
            node
        };
        let (slow, other) = (start("slow", "1h"), start("other", "20ms"));
        Self {
            postgres,
            url,
            scratch,
            slow,
            other,
        }
    }

    fn data(&self, name: &str) -> std::path::PathBuf {
        self.scratch.path().join(name)
    }
}

fn id_of(node: &Server) -> String {
    node.status()["directory"].as_str().unwrap().to_owned()
}

#[test]
#[ignore = "needs PostgreSQL"]
fn a_position_of_another_node_is_waited_for() {
    // Fails if a node takes the position of another one for its own: it would answer at once, without the events.
    let nodes = Nodes::start();
    let (slow, other) = (&nodes.slow, &nodes.other);
    let position = slow.accept(event("user", 1));
    assert!(
        position.ends_with(&format!("@{}", id_of(slow))),
        "{position}"
    );
    let target = format!("/userEvents/user?after={position}");
    let early = other.get(&format!("{target}&wait=300ms")).expect(503);
    assert!(early.text().contains(&id_of(slow)), "{}", early.text());
    // A request that waits gets its answer when the other node has applied the position.
    let waiting = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| other.get(&format!("{target}&wait=60s")));
        slow.flush();
        waiting.join().unwrap()
    });
    assert_eq!(waiting.expect(200).json()["events"], 1);
    other.get(&target).expect(200);
    slow.get(&target).expect(200);
    // ... and with many events, each read includes what was acknowledged before.
    for round in 0..40_u64 {
        let position = other.accept(event("many", 1));
        let target = format!("/userEvents/many?after={position}");
        let shown = slow.get(&target).expect(200).json();
        assert_eq!(shown["events"], round + 1);
    }
    // Everything that returns a position names the node.
    for position in [&other.status()["position"], &other.flush()["applied"]] {
        assert!(position.as_str().unwrap().ends_with(&id_of(other)));
    }
    let applied = other.post("/liveEvent?ack=applied", event("user", 1));
    let position = applied.expect(200).json()["position"].clone();
    let plain = position
        .as_str()
        .unwrap()
        .split_once('@')
        .unwrap()
        .0
        .to_owned();
    other
        .get(&format!("/userEvents/user?after={plain}"))
        .expect(200);
}

#[test]
#[ignore = "needs PostgreSQL"]
fn a_position_that_will_not_be_applied_is_an_error() {
    // Fails if a request waits for a position that never comes, or is answered as if it had been applied.
    let nodes = Nodes::start();
    let (slow, other) = (&nodes.slow, &nodes.other);
    let long = "&wait=60s";
    let refused = |node: &Server, target: &str, status: u16, reason: &str| {
        let began = Instant::now();
        let text = node.get(&format!("{target}{long}")).expect(status).text();
        assert!(text.contains(reason), "{target}: {text}");
        assert!(began.elapsed() < Duration::from_mins(1), "{target}");
    };
    let unknown = "/userEvents/user?after=1-5@6f1e52e9-0b5f-4a3e-8f0e-3c1b8b0c9a55";
    refused(other, unknown, 503, "no node 6f1e52e9");
    refused(other, "/userEvents/user?after=1-5@6f1e", 400, "NODE");
    let position = slow.accept(event("user", 1));
    slow.flush();
    let (segment, node) = position.split_once('-').unwrap();
    let node = node.split_once('@').unwrap().1;
    let past = format!("/userEvents/user?after={segment}-999999@{node}");
    refused(other, &past, 400, "past the end");
    for parameter in ["after", "since"] {
        let target = format!("/rejected?{parameter}={position}");
        refused(other, &target, 400, &id_of(slow));
        slow.get(&target).expect(200);
    }
    // A server with a database of its own.
    let alone = Server::with(&nodes.data("alone"), &[]);
    let own = alone.accept(event("user", 1));
    assert!(!own.contains('@'), "{own}");
    let foreign = format!("/userEvents/user?after={position}");
    refused(&alone, &foreign, 400, node);
    alone
        .get(&format!("/userEvents/user?after={own}@{}", id_of(&alone)))
        .expect(200);
    // The command line, for lines of one node.
    let since = |data: &str, code: i32| {
        let data = nodes.data(data);
        let args = ["rejected", "--database", &nodes.url, "--data-dir"];
        run(&[&args[..], &[arg(&data), "--since", &position]].concat()).expect(code)
    };
    since("slow", 0);
    assert!(since("other", 1).stderr.contains("is not of"));

    let position = slow.accept(event("user", 1));
    run(&["nodes", "remove", node, "--yes", "--database", &nodes.url]).expect(0);
    let target = format!("/userEvents/user?after={position}");
    refused(other, &target, 410, "removed");
}

#[test]
#[ignore = "needs PostgreSQL"]
fn a_wait_survives_an_outage_of_the_database() {
    // Fails if a wait for a position of another node is lost, or never answered, when the database is away.
    let mut nodes = Nodes::start();
    let position = nodes.slow.accept(event("user", 1));
    let target = format!("/userEvents/user?after={position}");
    nodes.postgres.kill();
    let Nodes {
        postgres,
        slow,
        other,
        ..
    } = &mut nodes;
    let shown = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| other.get(&format!("{target}&wait=60s")));
        // It is answered at its deadline, and others are not.
        other.get(&format!("{target}&wait=300ms")).expect(503);
        assert!(!waiting.is_finished());
        postgres.start_again();
        until(PATIENCE, "the position is applied", || {
            (slow.post("/flush?wait=5s", "").status == 200).then_some(())
        });
        waiting.join().unwrap().expect(200)
    });
    assert_eq!(shown.json()["events"], 1);
}

#[test]
#[ignore = "needs PostgreSQL"]
fn a_sender_waits_for_the_node_that_took_its_events() {
    // Fails if `send` cannot read a position with a node: it would not wait, and not list rejected lines.
    let nodes = Nodes::start();
    let file = nodes.scratch.file("in.jsonl", event("user", 1).repeat(3));
    let to = format!("http://127.0.0.1:{}", nodes.slow.port);
    let sent = run(&["send", arg(&file), "--to", &to, "--json"]).expect(0);
    let summary: serde_json::Value = serde_json::from_str(&sent.stdout).unwrap();
    assert_eq!(summary["applied"], true, "{sent}");
    let state = std::fs::read_dir(nodes.scratch.path()).unwrap();
    let state = state.flatten().find(|entry| {
        let name = entry.file_name();
        name != "in.jsonl" && name.to_string_lossy().contains("in.jsonl")
    });
    let state = std::fs::read_to_string(state.unwrap().path()).unwrap();
    assert!(
        state.contains(&format!("@{}", id_of(&nodes.slow))),
        "{state}"
    );
    let events = "SELECT sum(events)::bigint FROM tallyline.user_total WHERE user_id = 'user'";
    assert_eq!(nodes.postgres.value::<i64>("tally", events), 3);
}
