//! Several nodes in one PostgreSQL database (`--ignored`: needs PostgreSQL 15). The totals must equal an independent
//! recount of the files of all nodes, whatever was cut, killed or lost.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::harness::cutting_proxy::CuttingProxy;
use crate::harness::http::Request;
use crate::harness::postgres::{Bouncer, Postgres};
use crate::harness::recount::{event_files, recount_bytes};
use crate::harness::{
    PATIENCE, Process, Scratch, Server, Totals, arg, copy_tree, event, names_in, run, tallyline,
    until,
};

/// Catching up includes waits between attempts, and a debug build on a loaded machine.
const LONG: Duration = Duration::from_mins(4);

/// Nodes with a data directory each.
struct Cluster {
    scratch: Scratch,
    nodes: Vec<Option<Server>>,
    flags: Vec<String>,
}

impl Cluster {
    /// Starts nodes with this database.
    #[track_caller]
    fn start(count: usize, url: &str, flags: &[&str]) -> Self {
        let mut cluster = Self {
            scratch: Scratch::new(),
            nodes: Vec::new(),
            flags: [
                "--database",
                url,
                "--flush-interval",
                "20ms",
                "--rotate-size",
                "64KiB",
            ]
            .iter()
            .chain(flags)
            .map(|&flag| flag.to_owned())
            .collect(),
        };
        for at in 0..count {
            cluster.nodes.push(None);
            cluster.start_node(at);
        }
        cluster
    }

    fn data(&self, at: usize) -> PathBuf {
        self.scratch.path().join(format!("node-{at}"))
    }

    #[track_caller]
    fn start_node(&mut self, at: usize) {
        let flags: Vec<&str> = self.flags.iter().map(String::as_str).collect();
        self.nodes[at] = Some(Server::with(&self.data(at), &flags));
    }

    fn node(&self, at: usize) -> &Server {
        self.nodes[at].as_ref().unwrap()
    }

    fn kill_node(&mut self, at: usize) {
        self.nodes[at].take().unwrap().kill();
    }

    fn ports(&self) -> Vec<u16> {
        self.nodes.iter().flatten().map(|node| node.port).collect()
    }

    /// Waits until every node has applied everything that it acknowledged.
    #[track_caller]
    fn settle(&self) {
        for (at, node) in self.nodes.iter().flatten().enumerate() {
            until(LONG, &format!("node {at} applies everything"), || {
                (node.post("/flush?wait=10s", "").status == 200).then_some(())
            });
        }
    }

    /// What the files of all nodes say. A file may be moved to the archive while it is looked for.
    fn expected(&self) -> Totals {
        let files = until(PATIENCE, "the files of all nodes are read", || {
            let list = || -> Vec<PathBuf> {
                let nodes = 0..self.nodes.len();
                nodes.flat_map(|at| event_files(&self.data(at))).collect()
            };
            let paths = list();
            let read: Result<Vec<_>, _> = paths.iter().map(std::fs::read).collect();
            read.ok().filter(|_| paths == list())
        });
        recount_bytes(files.iter().map(Vec::as_slice)).users
    }

    /// Compares the database with the files, and each node's part by `verify`.
    #[track_caller]
    fn assert_exact(&self, server: &Postgres, url: &str) {
        let (expected, found) = (self.expected(), totals(server));
        let differing: BTreeMap<_, _> = expected
            .iter()
            .filter(|(user, total)| found.get(*user) != Some(total))
            .map(|(user, total)| (user, (total, found.get(user))))
            .collect();
        assert!(differing.is_empty(), "expected and found: {differing:?}");
        assert_eq!(
            expected.len(),
            found.len(),
            "users without an event in a file"
        );
        for at in 0..self.nodes.len() {
            run(&[
                "verify",
                "--data-dir",
                arg(&self.data(at)),
                "--database",
                url,
            ])
            .expect(0);
        }
    }
}

/// The totals in the database `tally`.
fn totals(server: &Postgres) -> Totals {
    let query = "SELECT user_id, sum(revenue_micros)::text, sum(events)::bigint
                 FROM tallyline.user_total GROUP BY user_id";
    let rows = server.connect("tally").query(query, &[]).unwrap();
    rows.iter()
        .map(|row| {
            let micros: String = row.get(1);
            let events: i64 = row.get(2);
            (
                row.get(0),
                (micros.parse().unwrap(), events.try_into().unwrap()),
            )
        })
        .collect()
}

/// Clients that send batches to random nodes, and each batch with ids again to another one, as a client does that
/// got no answer. They stop when they are dropped.
struct Load {
    stop: std::sync::Arc<AtomicBool>,
    acknowledged: std::sync::Arc<AtomicU64>,
    clients: Vec<thread::JoinHandle<()>>,
}

impl Load {
    fn start(clients: u64, ports: impl Fn() -> Vec<u16> + Clone + Send + 'static) -> Self {
        let mut load = Self {
            stop: std::sync::Arc::default(),
            acknowledged: std::sync::Arc::default(),
            clients: Vec::new(),
        };
        for client in 0..clients {
            let (stop, acknowledged) = (load.stop.clone(), load.acknowledged.clone());
            let ports = ports.clone();
            load.clients.push(thread::spawn(move || {
                let mut random = fastrand::Rng::with_seed(client);
                for batch in 0_u64.. {
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                    let (body, count) = batch_of(client, batch, &mut random);
                    for _ in 0..random.u32(1..3) {
                        let ports = ports();
                        let Some(&port) = random.choice(&ports) else {
                            continue;
                        };
                        if post(port, &body) {
                            acknowledged.fetch_add(count, Ordering::SeqCst);
                        }
                    }
                }
            }));
        }
        load
    }

    fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::SeqCst)
    }

    /// Waits until this many more events were acknowledged.
    #[track_caller]
    fn await_more(&self, count: u64) {
        let from = self.acknowledged();
        until(LONG, "events are acknowledged", || {
            (self.acknowledged() >= from + count).then_some(())
        });
    }

    /// Returns how many events were acknowledged.
    fn stop(self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        for client in self.clients {
            client.join().unwrap();
        }
        self.acknowledged.load(Ordering::SeqCst)
    }
}

/// Events of a few users that all clients share, with numbered ids, random ids, and none: these count as often as
/// they are in a file.
fn batch_of(client: u64, batch: u64, random: &mut fastrand::Rng) -> (String, u64) {
    let count = random.u64(1..40);
    let mut body = String::new();
    for at in 0..count {
        let user = format!("user{}", random.u32(0..30));
        let name = if random.bool() {
            "add_revenue"
        } else {
            "subtract_revenue"
        };
        let value = random.u32(0..1000);
        let id = match random.u8(0..8) {
            0 => String::new(),
            1..=4 => format!(",\"id\":\"client{client}-{:09}\"", batch * 64 + at),
            _ => format!(",\"id\":\"{:016x}x{client}\"", random.u64(..)),
        };
        body += &format!("{{\"userId\":\"{user}\",\"name\":\"{name}\",\"value\":{value}{id}}}\n");
    }
    (body, count)
}

/// Whether the batch was acknowledged. The node may be killed meanwhile.
fn post(port: u16, body: &str) -> bool {
    use std::io::{Read as _, Write as _};
    let send = || -> std::io::Result<bool> {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let head = format!(
            "POST /liveEvent HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes())?;
        stream.write_all(body.as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer.starts_with(b"HTTP/1.1 202"))
    };
    send().unwrap_or(false)
}

#[track_caller]
fn many_nodes_agree(server: &Postgres, count: usize, events: u64) {
    let url = server.database("tally");
    let cluster = Cluster::start(count, &url, &[]);
    let ports = cluster.ports();
    let load = Load::start(4, move || ports.clone());
    load.await_more(events);
    let acknowledged = load.stop();
    cluster.settle();
    cluster.assert_exact(server, &url);
    let deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = 'tally'";
    let deadlocks: i64 = server.value("tally", deadlocks);
    assert_eq!(deadlocks, 0, "{count} nodes, {acknowledged} events");
    // Any node answers for all of them.
    let (user, (micros, events)) = totals(server).into_iter().next().unwrap();
    for node in cluster.nodes.iter().flatten() {
        let shown = node.get(&format!("/userEvents/{user}")).expect(200).json();
        assert_eq!(shown["events"], Value::from(events));
        // The amounts of the batches are whole units.
        let units = i64::try_from(micros / 1_000_000).unwrap();
        assert_eq!(shown["revenue"], Value::from(units));
    }
}

#[test]
#[ignore = "needs PostgreSQL"]
fn four_nodes_agree_with_a_recount_of_all_files() {
    // Fails if two nodes count one id twice or not at all, or change each other's rows.
    many_nodes_agree(&Postgres::start(), 4, 20_000);
}

#[test]
#[ignore = "needs PostgreSQL"]
fn sixteen_nodes_agree_with_a_recount_of_all_files() {
    // Fails as with four nodes, or if so many nodes block each other.
    many_nodes_agree(&Postgres::start(), 16, 20_000);
}

#[test]
#[ignore = "needs PostgreSQL"]
fn a_server_whose_transactions_are_serializable_counts_exactly() {
    // Fails if the isolation level of the server or of the role decides how a transaction of a node runs.
    let server = Postgres::with(&["default_transaction_isolation=serializable"]);
    many_nodes_agree(&server, 4, 5_000);
}

#[test]
#[ignore = "needs PostgreSQL"]
fn nodes_and_the_database_server_are_killed() {
    // Fails if a kill -9 of a node or of PostgreSQL makes a total wrong, or if counting does not go on by itself.
    let mut server = Postgres::start();
    let url = server.database("tally");
    let mut cluster = Cluster::start(3, &url, &[]);
    let ports = std::sync::Arc::new(std::sync::Mutex::new(cluster.ports()));
    let shared = ports.clone();
    let load = Load::start(2, move || shared.lock().unwrap().clone());
    let mut random = fastrand::Rng::with_seed(5);
    for round in 0..8 {
        load.await_more(500);
        if round % 3 == 2 {
            server.kill();
            load.await_more(200);
            server.start_again();
        } else {
            let at = random.usize(0..3);
            cluster.kill_node(at);
            cluster.start_node(at);
            *ports.lock().unwrap() = cluster.ports();
        }
    }
    load.stop();
    cluster.settle();
    cluster.assert_exact(&server, &url);
}

#[test]
#[ignore = "needs PostgreSQL"]
fn a_standby_that_lost_the_last_seconds_catches_up_from_the_files() {
    // Fails if a node continues from an offset that the new primary server does not have.
    let mut primary = Postgres::start();
    primary.database("tally");
    let proxy = CuttingProxy::start(primary.port, 1);
    let cluster = Cluster::start(3, &proxy.url("tally"), &[]);
    let ports = cluster.ports();
    let load = Load::start(2, move || ports.clone());
    load.await_more(1_000);
    let mut standby = primary.standby();
    primary.await_standby(&standby);
    standby.kill();
    load.await_more(2_000);
    load.stop();
    cluster.settle();
    primary.kill();
    standby.start_again();
    standby.promote();
    assert_ne!(
        totals(&standby),
        cluster.expected(),
        "the standby has everything"
    );
    proxy.switch_to(standby.port);
    // The nodes are idle: they must notice by themselves.
    until(LONG, "what was lost is applied again", || {
        (totals(&standby) == cluster.expected()).then_some(())
    });
    cluster.settle();
    cluster.assert_exact(&standby, &standby.url("tally"));
}

#[test]
#[ignore = "needs PostgreSQL"]
fn a_cloned_data_directory_is_refused_in_words() {
    // Fails if both copies of a directory are counted.
    let server = Postgres::start();
    let url = server.database("tally");
    let mut cluster = Cluster::start(1, &url, &[]);
    cluster.node(0).accept(event("user", 1));
    cluster.node(0).flush();
    let (original, clone) = (cluster.data(0), cluster.data(1));
    // A copy made while the file is moved to the archive could have it twice.
    until(PATIENCE, "the file is in the archive", || {
        let names = names_in(&original);
        (!names.iter().any(|name| name.starts_with("events-"))).then_some(())
    });
    copy_tree(&original, &clone);
    cluster.nodes.push(None);
    cluster.start_node(1);
    cluster.node(1).accept(event("user", 10));
    cluster.node(1).flush();
    cluster.node(0).accept(event("user", 100));
    let reasons = until(PATIENCE, "the original is not ready", || {
        let ready = cluster.node(0).get("/readyz");
        (ready.status == 503).then(|| ready.text())
    });
    let reasons = until(PATIENCE, "the reason is the copy", || {
        let ready = cluster.node(0).get("/readyz");
        let text = ready.text();
        (text.contains("another copy") && text.contains("nodes adopt")).then_some(reasons.clone())
    });
    assert!(!reasons.is_empty());
    // Ingestion continues.
    cluster.node(0).accept(event("user", 1000));
    let total = |server: &Postgres| totals(server)["user"];
    assert_eq!(total(&server), (11_000_000, 2));
    cluster.node(1).get("/readyz").expect(200);
    // Two servers on one directory: the second is refused at start.
    let second = run(&[
        "serve",
        "--data-dir",
        arg(&clone),
        "--database",
        &url,
        "--listen",
        "127.0.0.1:0",
    ])
    .expect(1);
    assert!(second.stderr.contains("serve.lock"), "{second}");
}

#[test]
#[ignore = "needs PostgreSQL and pgbouncer"]
fn a_pooler_and_low_limits_do_not_stop_the_counting() {
    // Fails if an apply depends on the session, or is aborted by a limit that is too low for it each time.
    let server = Postgres::start();
    server.database("tally");
    server.run(
        "tally",
        "ALTER ROLE postgres SET statement_timeout = '50ms'; ALTER ROLE postgres SET idle_in_transaction_session_timeout = '50ms'; ALTER ROLE postgres SET synchronous_commit = off",
    );
    let bouncer = Bouncer::start(&server, 2);
    let cluster = Cluster::start(4, &bouncer.url("tally"), &[]);
    let ports = cluster.ports();
    let load = Load::start(2, move || ports.clone());
    load.await_more(5_000);
    load.stop();
    cluster.settle();
    server.run("tally", "ALTER ROLE postgres RESET ALL");
    cluster.assert_exact(&server, &server.url("tally"));
}

#[test]
#[ignore = "needs PostgreSQL"]
fn killed_backends_and_a_read_only_server_delay_the_counting_only() {
    // Fails if ingestion stops, if readiness does not say why counting has stopped, or if it does not go on.
    let server = Postgres::start();
    let url = server.database("tally");
    let cluster = Cluster::start(2, &url, &[]);
    let ports = cluster.ports();
    let load = Load::start(2, move || ports.clone());
    let terminate = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'tallyline'";
    let mut killed = 0;
    while killed < 30 {
        load.await_more(50);
        killed += server.value::<i64>("tally", terminate);
    }
    server.run(
        "tally",
        "ALTER DATABASE tally SET default_transaction_read_only = on",
    );
    server.value::<i64>("postgres", terminate);
    load.await_more(300);
    let reason = until(PATIENCE, "a node is not ready", || {
        let ready = cluster.node(0).get("/readyz");
        let text = ready.text();
        (ready.status == 503 && text.contains("read-only")).then_some(text)
    });
    assert!(reason.contains("reasons"), "{reason}");
    load.await_more(300);
    load.stop();
    let mut admin = server.connect("postgres");
    admin
        .batch_execute("ALTER DATABASE tally RESET default_transaction_read_only")
        .unwrap();
    cluster.settle();
    cluster.assert_exact(&server, &url);
    for node in cluster.nodes.iter().flatten() {
        until(PATIENCE, "the node is ready again", || {
            (node.get("/readyz").status == 200).then_some(())
        });
    }
}

#[test]
#[ignore = "needs PostgreSQL"]
fn a_start_with_a_database_that_cannot_work_fails() {
    // Fails if `serve` or `process` starts with a wrong URL and retries forever, or shows the password.
    let server = Postgres::start();
    let scratch = Scratch::new();
    let data = scratch.data();
    server.run("postgres", "CREATE ROLE weak LOGIN; CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'");
    let newer = server.database("newer");
    let first = scratch.path().join("first");
    run(&["process", "--data-dir", arg(&first), "--database", &newer]).expect(0);
    server.run("newer", "UPDATE tallyline.cluster SET version = 99");
    server.database("rights");
    let port = server.port;
    for (url, reason) in [
        (server.url("missing"), "createdb"),
        (server.url("latin"), "UTF8"),
        (newer, "newer"),
        (
            format!("postgres://weak:secret@127.0.0.1:{port}/rights"),
            "permission denied",
        ),
    ] {
        let ran = run(&["process", "--data-dir", arg(&data), "--database", &url]).expect(1);
        assert!(ran.stderr.contains(reason), "process {url}: {ran}");
        assert!(!ran.stderr.contains("secret"), "{ran}");
        // A server ingests nevertheless: the database may be mended while it runs.
        let node = Server::with(&data, &["--database", &url]);
        let ready = until(PATIENCE, "the server reports the reason", || {
            let ready = node.get("/readyz");
            let text = ready.text();
            (ready.status == 503 && text.contains(reason)).then_some(text)
        });
        assert!(!ready.contains("secret"), "serve {url}: {ready}");
        node.accept(event("refused", 1));
    }
    // Not reachable: `process` fails; a server ingests, and is not ready until it is.
    let unreachable = format!(
        "postgres://postgres:secret@127.0.0.1:{}/tally",
        crate::harness::postgres::free_port()
    );
    let ran = run(&[
        "process",
        "--data-dir",
        arg(&data),
        "--database",
        &unreachable,
    ])
    .expect(1);
    assert!(
        ran.stderr.contains("refused") && !ran.stderr.contains("secret"),
        "{ran}"
    );
    let mut server = server;
    let url = server.database("tally");
    server.stop();
    let node = Server::with(&data, &["--database", &url]);
    node.accept(event("user", 1));
    until(PATIENCE, "the server reports the database", || {
        let ready = node.get("/readyz");
        (ready.status == 503 && ready.text().contains("cannot connect")).then_some(())
    });
    server.start_again();
    until(PATIENCE, "the node is ready", || {
        (node.get("/readyz").status == 200).then_some(())
    });
    node.ask(&Request::new("POST", "/flush")).expect(200);
    assert_eq!(totals(&server)["user"], (1_000_000, 1));
    node.process.signal(Signal::TERM);
}

#[test]
#[ignore = "needs PostgreSQL"]
fn torture_with_two_servers_in_one_database_finds_nothing() {
    // Fails if a kill -9 of one of two servers loses or duplicates an event that a sender sends again to the other.
    let server = Postgres::start();
    let url = server.database("tally");
    let args = [
        "torture",
        "--rounds",
        "10",
        "--seed",
        "7",
        "--database",
        &url,
    ];
    let table = run(&args).expect(0).stdout;
    assert!(table.contains("counted once"), "{table}");
    let nodes: i64 = server.value("tally", "SELECT count(*) FROM tallyline.node");
    assert_eq!(nodes, 2);
    // The totals of other nodes would be changed.
    let again = run(&args).expect(1);
    assert!(again.stderr.contains("empty database"), "{again}");
}

#[test]
#[ignore = "needs PostgreSQL"]
fn torture_waits_for_the_database_before_it_compares() {
    // Fails if an outage of the database that outlasts the rounds is reported as lost events, or ends the run.
    let mut server = Postgres::start();
    let url = server.database("tally");
    let mut torture = Process::start(&mut tallyline(&[
        "torture",
        "--rounds",
        "3",
        "--seed",
        "3",
        "--database",
        &url,
    ]));
    until(LONG, "both nodes are registered", || {
        assert!(torture.exited().is_none(), "{}", torture.stderr());
        let nodes = "SELECT to_regclass('tallyline.node') IS NOT NULL";
        let count = "SELECT count(*) = 2 FROM tallyline.node";
        (server.value::<bool>("tally", nodes) && server.value::<bool>("tally", count)).then_some(())
    });
    server.kill();
    until(LONG, "it waits for the database", || {
        assert!(torture.exited().is_none(), "{}", torture.stderr());
        torture.stderr().contains("waiting until").then_some(())
    });
    server.start_again();
    let table = torture.finish().expect(0).stdout;
    assert!(table.contains("counted once"), "{table}");
}
