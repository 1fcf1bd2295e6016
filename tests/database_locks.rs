//! SQLite's locks of the server on its own database, as the kernel lists them: no operation drops them.
//!
//! Closing any descriptor of a file ends all POSIX locks that the process holds on it. Another program that
//! closes the database would then take itself for the last user and remove the `-wal`.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::harness::http::{Reply, Request};
use super::harness::{PATIENCE, Scratch, Server, arg, event, run, until};

/// SQLite's locks of the server on the database and its -shm: file, access and bytes.
///
/// From the descriptors of the server. `/proc/locks` lists the locks of every process, a page at a
/// time: a lock that is held throughout can be missing when others change meanwhile.
fn locks(server: &Server) -> Vec<String> {
    let files = ["revenue.db", "revenue.db-shm"].map(|name| (name, server.data.join(name)));
    let process = format!("/proc/{}", server.process.id());
    let mut locks = Vec::new();
    for descriptor in fs::read_dir(format!("{process}/fd")).unwrap() {
        let descriptor = descriptor.unwrap();
        let number = descriptor.file_name().into_string().unwrap();
        // A descriptor may be closed at any moment.
        let Ok(path) = fs::read_link(descriptor.path()) else {
            continue;
        };
        let Some((name, _)) = files.iter().find(|(_, file)| *file == path) else {
            continue;
        };
        let info = fs::read_to_string(format!("{process}/fdinfo/{number}")).unwrap_or_default();
        for line in info.lines() {
            let fields: Vec<&str> = line.split_whitespace().collect();
            if let ["lock:", _, "POSIX", _, access, _, _, from, to] = fields[..] {
                locks.push(format!("{name} {access} {from}-{to}"));
            }
        }
    }
    locks.sort();
    locks
}

/// A server with rotations, prunes, a limit of the disk and tokens, after an event of user1.
struct Watched {
    server: Server,
    /// Its locks on the database.
    before: Vec<String>,
}

impl Watched {
    fn start(scratch: &Scratch, max_disk: &str) -> Self {
        let tokens = scratch.file("tokens", "secret-token-of-this-test\n");
        let flags = [
            "--max-disk",
            max_disk,
            "--rotate-interval",
            "50ms",
            "--retention",
            "100ms",
            "--flush-interval",
            "10ms",
            "--token-file",
            arg(&tokens),
        ];
        let mut watched = Self {
            server: Server::with(&scratch.data(), &flags),
            before: Vec::new(),
        };
        // A statement that is running has additional locks: those that are held all the time remain.
        for sample in 0..10 {
            let posted = watched.ask("POST", "/liveEvent?ack=applied", event("user1", 1));
            posted.expect(200);
            watched.ask("GET", "/userEvents/user1", "").expect(200);
            let held = locks(&watched.server);
            if sample == 0 {
                watched.before = held;
            } else {
                watched.before.retain(|lock| held.contains(lock));
            }
        }
        for file in ["revenue.db ", "revenue.db-shm "] {
            let held = watched.before.iter().any(|lock| lock.starts_with(file));
            assert!(held, "{file}: {:?}", watched.before);
        }
        watched
    }

    fn ask(&self, method: &str, target: &str, body: impl AsRef<[u8]>) -> Reply {
        let token = "Bearer secret-token-of-this-test";
        let request = Request::new(method, target).header("Authorization", token);
        self.server.ask(&request.body(body))
    }

    #[track_caller]
    fn same_locks(&self, after: &str) {
        let what = format!("{:?} are held after {after}", self.before);
        until(PATIENCE, &what, || {
            let now = locks(&self.server);
            let held = self.before.iter().all(|lock| now.contains(lock));
            held.then_some(())
        });
    }

    /// Every operation of the API, and the variants of which the server reads more.
    fn every_request(&self) {
        let described = self.ask("GET", "/openapi.json", "").expect(200).json();
        let paths = described["paths"].as_object().unwrap();
        let mut requests: Vec<(String, String)> = paths
            .iter()
            .flat_map(|(path, operations)| {
                let path = path.replace("{userId}", "user1");
                assert!(
                    !path.contains('{'),
                    "a parameter that the test does not know: {path}"
                );
                let methods = operations.as_object().unwrap().keys();
                methods.map(move |method| (method.to_uppercase(), path.clone()))
            })
            .collect();
        assert!(requests.len() > 9, "{requests:?}");
        for target in [
            "/",
            "/userEvents/nobody",
            "/userEvents/user1?after=1-10&wait=10ms",
            "/userEvents?order=revenue&limit=1",
            "/liveEvent?invalid=skip",
        ] {
            requests.push(("GET".to_owned(), target.to_owned()));
        }
        let one = event("user1", 1);
        for (method, target) in &requests {
            let body = if method == "POST" { &*one } else { "" };
            self.ask(method, target, body);
            self.same_locks(&format!("{method} {target}"));
        }
    }
}

#[test]
fn no_operation_of_the_server_drops_its_database_locks() {
    // Fails if any code path of the server closes a descriptor of the database or its -shm: by
    // name, by listing, through a link, at the disk limit, in a rotation, in a prune, or at SIGHUP.
    let scratch = Scratch::new();
    let data = scratch.data();
    fs::create_dir_all(data.join("quarantine")).unwrap();
    let watched = Watched::start(&scratch, "3MiB");
    let one = event("user1", 1);
    watched.every_request();
    for command in ["verify", "backup"] {
        let copy = scratch.path().join("copy");
        let mut args = vec![command, "--data-dir", arg(&data)];
        args.extend((command == "backup").then(|| arg(&copy)));
        run(&args).expect(0);
        watched.same_locks(command);
    }

    // Links to the database with names of segments: listed, archived, verified.
    for (name, of) in [
        ("events_hard.jsonl", "revenue.db"),
        ("events_hard_shm.jsonl", "revenue.db-shm"),
        ("quarantine/events_hard.jsonl", "revenue.db-wal"),
    ] {
        fs::hard_link(data.join(of), data.join(name)).unwrap();
    }
    std::os::unix::fs::symlink(data.join("revenue.db"), data.join("events_soft.jsonl")).unwrap();
    until(PATIENCE, "the names are reported", || {
        let reported = watched.ask("GET", "/readyz", "").text();
        (reported.contains("events_hard.jsonl") && reported.contains("events_soft.jsonl"))
            .then_some(())
    });
    for _ in 0..3 {
        watched.ask("GET", "/metrics", "").expect(200);
    }
    watched.same_locks("links");
    for name in [
        "events_hard.jsonl",
        "events_hard_shm.jsonl",
        "events_soft.jsonl",
    ] {
        fs::remove_file(data.join(name)).unwrap();
    }
    fs::remove_file(data.join("quarantine/events_hard.jsonl")).unwrap();

    watched.server.process.signal(Signal::HUP);
    until(PATIENCE, "the token file is read again", || {
        let logged = watched.server.process.stderr();
        logged.contains("tokens are in force").then_some(())
    });
    watched.same_locks("SIGHUP");

    // Load, with rotations and prunes, up to the limit.
    until(PATIENCE, "segments are pruned", || {
        watched.ask("POST", "/liveEvent?ack=applied", &one);
        let reported = watched.server.process.stderr();
        (reported.matches("pruned").count() > 3).then_some(())
    });
    watched.same_locks("prunes");
    let many = one.repeat(20_000);
    until(PATIENCE, "--max-disk is reached", || {
        (watched.ask("POST", "/liveEvent", &many).status == 507).then_some(())
    });
    watched.same_locks("--max-disk");
}

#[test]
#[ignore = "a minute of load"]
fn a_minute_of_load_drops_no_database_lock() {
    // Fails if something that happens rarely, such as a count of the disk's usage, opens and closes a file
    // of the database. The test above tries each operation once.
    let scratch = Scratch::new();
    let watched = Watched::start(&scratch, "64MiB");
    let end = Instant::now() + Duration::from_mins(1);
    while Instant::now() < end {
        let many = event("user1", 1).repeat(100);
        watched.ask("POST", "/liveEvent?ack=applied", many);
        for target in ["/metrics", "/userEvents/user1", "/status", "/segments"] {
            watched.ask("GET", target, "").expect(200);
        }
        watched.same_locks("a round of requests");
    }
    let pruned = watched.server.process.stderr();
    assert!(pruned.matches("pruned segment").count() > 100, "{pruned}");
}
