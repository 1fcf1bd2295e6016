//! A running `tallyline serve`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;

use super::http::{Conn, Reply, Request};
use super::suite::{self, Locked};
use super::{PATIENCE, Process, Ran, arg, event, tallyline, until};

/// A server on a port chosen by the system. Killed on drop; its log is printed if the test failed.
pub(crate) struct Server {
    pub(crate) process: Process,
    pub(crate) port: u16,
    pub(crate) data: PathBuf,
}

impl Server {
    /// Starts it with defaults.
    #[track_caller]
    pub(crate) fn start(data: &Path) -> Self {
        Self::with(data, &[])
    }

    /// Starts it with more flags, and waits until it has opened a database of the suite on PostgreSQL, as a
    /// server with `revenue.db` has when its port responds. At another address it is not asked.
    #[track_caller]
    pub(crate) fn with(data: &Path, flags: &[&str]) -> Self {
        let server = Self::by(data, flags, tallyline);
        if suite::is_used() && !flags.contains(&"--listen") {
            until(PATIENCE, "the server opens the shared database", || {
                let reasons = server.get("/readyz").text();
                (!reasons.contains("is being opened")).then_some(())
            });
        }
        server
    }

    /// Starts it with the command that `command` makes of the arguments (for example a shell that sets
    /// limits first), and waits until it has written its port file and responds.
    #[track_caller]
    pub(crate) fn by(
        data: &Path,
        flags: &[&str],
        command: impl FnOnce(&[&str]) -> Command,
    ) -> Self {
        let port_file = data.with_extension("port");
        let _missing = fs::remove_file(&port_file);
        let mut args = vec!["serve", "--data-dir", arg(data)];
        args.extend(["--port-file", arg(&port_file)]);
        if !flags.contains(&"--listen") {
            args.extend(["--listen", "127.0.0.1:0"]);
        }
        args.extend(flags);
        let mut process = Process::start(&mut command(&args));
        let port = until(PATIENCE, "the server writes its port file", || {
            if let Some(status) = process.exited() {
                panic!("the server exited at start: {status}\n{}", process.stderr());
            }
            fs::read_to_string(&port_file).ok()
        });
        // The file is written atomically once the port responds, so it is read once.
        let port = port.trim().parse().expect("the port file holds a number");
        Self {
            process,
            port,
            data: data.to_owned(),
        }
    }

    /// A server that has counted an event of user u. It can count no more until the returned
    /// lock is dropped.
    #[track_caller]
    pub(crate) fn with_database_locked(data: &Path) -> (Self, Locked) {
        let server = Self::with(data, &["--flush-interval", "10ms"]);
        server.accept(event("u", 1));
        server.flush();
        (server, Locked::database(data))
    }

    /// `http://127.0.0.1:PORT`
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Opens a connection.
    pub(crate) fn connect(&self) -> Conn {
        Conn::open(self.port)
    }

    /// One request on a new connection.
    #[track_caller]
    pub(crate) fn ask(&self, request: &Request) -> Reply {
        self.connect().ask(request)
    }

    #[track_caller]
    pub(crate) fn get(&self, target: &str) -> Reply {
        self.ask(&Request::new("GET", target))
    }

    /// POST with a body.
    #[track_caller]
    pub(crate) fn post(&self, target: &str, body: impl AsRef<[u8]>) -> Reply {
        self.ask(&Request::new("POST", target).body(body))
    }

    /// POST /liveEvent, which must be acknowledged; returns the position.
    #[track_caller]
    pub(crate) fn accept(&self, body: impl AsRef<[u8]>) -> String {
        let answer = self.post("/liveEvent", body).expect(202).json();
        answer["position"].as_str().expect("a position").to_owned()
    }

    /// POST /flush, which must complete within its time limit.
    #[track_caller]
    pub(crate) fn flush(&self) -> Value {
        self.post("/flush", "").expect(200).json()
    }

    #[track_caller]
    pub(crate) fn status(&self) -> Value {
        self.get("/status").expect(200).json()
    }

    /// One number of /status.
    #[track_caller]
    pub(crate) fn counter(&self, name: &str) -> u64 {
        let status = self.status();
        status[name]
            .as_u64()
            .unwrap_or_else(|| panic!("/status has no number {name}: {status}"))
    }

    /// Asserts that every event that arrived was accepted or rejected, and that every line is
    /// accounted for.
    #[track_caller]
    pub(crate) fn assert_balanced(&self) -> Value {
        // Events of clients that did not wait for their response may still be in progress.
        let status = until(PATIENCE, "no event is in progress", || {
            let status = self.status();
            let count = |name: &str| status[name].as_u64();
            let settled = count("accepted")? + count("refused")?;
            (count("received") == Some(settled)).then_some(status)
        });
        let number = |status: &Value, name: &str| {
            status[name]
                .as_i64()
                .unwrap_or_else(|| panic!("/status has no number {name}: {status}"))
        };
        let count = |name| number(&status, name);
        assert_eq!(count("unaccounted"), 0, "{status}");
        let run = &status["run"];
        assert_eq!(
            number(run, "accepted"),
            number(run, "appended"),
            "from requests to files: {status}"
        );
        assert_eq!(
            number(run, "found") + number(run, "appended"),
            number(run, "settled") + count("pending"),
            "from the files to the totals: {status}"
        );
        assert_eq!(
            count("lines"),
            count("applied")
                + count("duplicates")
                + count("rejected")
                + count("pending")
                + count("corrupt"),
            "in the files: {status}"
        );
        assert_eq!(count("events"), count("applied"), "in the totals: {status}");
        status
    }

    /// Sends SIGKILL.
    pub(crate) fn kill(mut self) {
        self.process.kill();
    }

    /// Sends SIGTERM and waits for the shutdown.
    #[track_caller]
    pub(crate) fn stop(self) -> Ran {
        self.process.signal(Signal::TERM);
        self.process.finish()
    }

    /// A number of `/proc/PID/status`: `Threads`, `VmRSS` (KiB).
    pub(crate) fn proc_status(&self, name: &str) -> u64 {
        let path = format!("/proc/{}/status", self.process.id());
        let text = fs::read_to_string(path).unwrap();
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
            .unwrap_or_else(|| panic!("no {name} in {text}"))
    }

    /// The number of open descriptors.
    pub(crate) fn descriptors(&self) -> usize {
        let path = format!("/proc/{}/fd", self.process.id());
        fs::read_dir(path).unwrap().count()
    }
}
