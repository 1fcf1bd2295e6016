//! The real binary in an unusual environment: stderr that cannot be written, limits on file sizes,
//! unusual loopback addresses, starts that fail.

use std::fs::{self, OpenOptions};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;

use tallyline::cli::config::ServeConfig;
use tallyline::server;

use super::harness::http::{Conn, Request};
use super::harness::{
    PATIENCE, Process, Scratch, Server, arg, event, quiet_environment, run, tallyline, until,
};

/// `tallyline ARGS...` in a shell that first runs `before`, such as `ulimit -f 8;`, and then starts
/// it with `redirection`.
fn by_shell(before: &str, redirection: &str, args: &[&str]) -> Command {
    let mut command = Command::new("sh");
    let script = format!("{before} exec \"$@\" {redirection}");
    command.args(["-c", &script, "sh", env!("CARGO_BIN_EXE_tallyline")]);
    command.args(args);
    quiet_environment(&mut command);
    command.env("RUST_BACKTRACE", "0");
    command
}

/// The value of one metric of `/metrics`.
fn metric(server: &Server, name: &str) -> u64 {
    let text = server.get("/metrics").expect(200).text();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let figure = line.unwrap_or_else(|| panic!("no {name} in {text}"));
    figure.trim().parse().unwrap()
}

const LOST_LINES: &str = "tallyline_log_lines_lost_total ";

/// Each event seals a file, which is logged.
const CHATTY: [&str; 3] = ["-vv", "--rotate-size", "1KiB"];

fn big_event() -> String {
    event("u", 1).replace('}', &format!(",\"pad\":\"{}\"}}", "x".repeat(1100)))
}

#[test]
fn a_log_that_cannot_be_written_stops_nothing() {
    // Fails if a failing write to the log panics, in the layer or in the hook, if it is not
    // counted, or if events are not sealed and applied without a log.
    for redirection in ["2>/dev/full", "2>&-", "2>/dev/null"] {
        for format in ["text", "json"] {
            let scratch = Scratch::new();
            let data = scratch.data();
            let flags = [&CHATTY[..], &["--log-format", format]].concat();
            let server = Server::by(&data, &flags, |args| by_shell("", redirection, args));
            for _ in 0..3 {
                server.accept(big_event());
            }
            // The panic of a request is logged as well.
            let mut panics = server.connect();
            let _no_answer = panics.try_ask(&Request::new("GET", "/panic"));
            server.flush();
            assert_eq!(server.get("/userEvents/u").json()["events"], 3);
            let lost = metric(&server, LOST_LINES);
            assert_eq!(lost > 3, redirection == "2>/dev/full", "{lost} lost");
            server.get("/readyz").expect(200);
            server.stop().expect(0);
            run(&["verify", "--data-dir", arg(&data)]).expect(0);
        }
    }
}

#[test]
fn a_log_that_is_not_read_blocks_nothing() {
    // Fails if the server blocks on a full pipe, while it runs or during a shutdown, or ends when
    // the reader closes the pipe.
    let scratch = Scratch::new();
    let data = scratch.data();
    let pipe = scratch.path().join("pipe");
    let mode = rustix::fs::Mode::RWXU;
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let open = || OpenOptions::new().read(true).write(true).open(&pipe);
    for reader_goes in [false, true] {
        let mut reader = Some(open().unwrap());
        let redirection = format!("2>{}", arg(&pipe));
        let server = Server::by(&data, &CHATTY, |args| by_shell("", &redirection, args));
        until(PATIENCE, "the log is full", || {
            for _ in 0..100 {
                // Each panic of a request is a line.
                let _no_answer = server.connect().try_ask(&Request::new("GET", "/panic"));
            }
            (metric(&server, LOST_LINES) > 0).then_some(())
        });
        if reader_goes {
            reader.take();
        }
        server.accept(big_event());
        server.flush();
        server.get("/readyz").expect(200);
        server.stop().expect(0);
    }
    // A start that fails prints the reason and ends, whether its output is read or not.
    let mut reader = open().unwrap();
    let full = vec![b'x'; 1 << 20];
    rustix::fs::fcntl_setfl(&reader, rustix::fs::OFlags::NONBLOCK).unwrap();
    while std::io::Write::write(&mut reader, &full).is_ok() {}
    let args = [
        "serve",
        "--data-dir",
        "/dev/null/no",
        "--listen",
        "127.0.0.1:0",
    ];
    let redirection = format!("2<>{}", arg(&pipe));
    rustix::fs::fcntl_setfl(&reader, rustix::fs::OFlags::empty()).unwrap();
    Process::start(&mut by_shell("", &redirection, &args))
        .finish()
        .expect(1);
}

#[test]
fn a_file_size_limit_is_507_and_the_server_continues() {
    // Fails if SIGXFSZ ends the server, or if it does not continue in the next file.
    let scratch = Scratch::new();
    let data = scratch.data();
    // In units of 512 bytes; the database fits, a body of a MiB does not.
    let server = Server::by(&data, &["--rotate-interval", "1h"], |args| {
        by_shell("ulimit -f 1500;", "", args)
    });
    let half = event("u", 1).replace('}', &format!(",\"pad\":\"{}\"}}", "x".repeat(500_000)));
    server
        .post("/liveEvent", format!("{half}\n{half}\n"))
        .problem(507);
    server.accept(&half);
    server.post("/liveEvent", &half).problem(507);
    until(PATIENCE, "the server continues in the next file", || {
        (server.post("/liveEvent", &half).status == 202).then_some(())
    });
    server.flush();
    assert_eq!(server.get("/userEvents/u").json()["events"], 2);
    server.assert_balanced();
    until(PATIENCE, "ready", || {
        (server.get("/readyz").status == 200).then_some(())
    });
    server.stop().expect(0);
    run(&["verify", "--data-dir", arg(&data)]).expect(0);
}

#[test]
fn every_loopback_address_can_be_used() {
    // Fails if configuration and HTTP server have different definitions of loopback, or if a
    // request to the address that is listened on gets 403.
    let scratch = Scratch::new();
    // `127.1` is no IP address in a `Host`, but a name that resolves to one.
    let mut addresses = ["127.0.0.2", "localhost", "127.1"]
        .map(str::to_owned)
        .to_vec();
    if TcpListener::bind("[::ffff:127.0.0.1]:0").is_ok() {
        addresses.push("[::ffff:127.0.0.1]".to_owned());
    }
    for address in &addresses {
        let data = scratch.path().join(address.trim_matches(['[', ']']));
        let listen = format!("{address}:0");
        let server = Server::with(&data, &["--listen", &listen]);
        let at: IpAddr = match address.as_str() {
            "localhost" | "127.1" | "[::ffff:127.0.0.1]" => [127, 0, 0, 1].into(),
            other => other.parse().unwrap(),
        };
        let ask = |host: &str| {
            let stream = TcpStream::connect(SocketAddr::from((at, server.port))).unwrap();
            let request = Request::new("GET", "/status").header("Host", host);
            Conn::over(stream).ask(&request).status
        };
        for host in [address.as_str(), "127.0.0.1", "localhost", "[::1]"] {
            assert_eq!(ask(host), 200, "{host} of {address}");
            assert_eq!(ask(&format!("{host}:{}", server.port)), 200, "{host}");
        }
        assert_eq!(ask("127.0.0.3"), 403, "{address}");
        assert_eq!(ask("evil.example"), 403, "{address}");
        server.stop().expect(0);
    }
}

#[test]
fn the_port_file_of_a_killed_server_is_removed_by_a_failing_start() {
    // Fails if a program that waits for the port file reads the port of a killed server.
    let scratch = Scratch::new();
    let data = scratch.data();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let none = scratch.path().join("none");
    let held = Server::start(&scratch.path().join("held"));
    for wrong in [
        ["--listen", &taken],
        ["--listen", "nonsense"],
        ["--token-file", arg(&none)],
        ["--data-dir", "/dev/null/no"],
        ["--data-dir", arg(&held.data)],
    ] {
        let port_file = scratch.file("port", "1\n");
        let mut args = vec!["serve", "--port-file", arg(&port_file)];
        if wrong[0] != "--listen" {
            args.extend(["--listen", "127.0.0.1:0"]);
        }
        if wrong[0] != "--data-dir" {
            args.extend(["--data-dir", arg(&data)]);
        }
        args.extend(wrong);
        let ran = run(&args);
        assert!(ran.code.is_some_and(|code| code != 0), "{wrong:?}: {ran}");
        assert!(!port_file.exists(), "{wrong:?}");
    }
    let port_file = scratch.file("port", "1\n");
    run(&["serve", "--check", "--port-file", arg(&port_file)]).expect(0);
    assert!(port_file.exists(), "a check changes nothing");
}

#[test]
fn a_port_file_from_the_config_file_is_removed_by_a_failing_start() {
    // Fails if only the port file of the flag is removed before the settings are checked.
    let scratch = Scratch::new();
    for wrong in [
        "listen = \"nonsense\"",
        "rotate-interval = \"1ms\"",
        "rotate-interval = 7",
        "no-such-setting = 1",
    ] {
        let port_file = scratch.file("port", "1\n");
        let text = format!("port-file = \"{}\"\n{wrong}\n", port_file.display());
        let config = scratch.file("config.toml", &text);
        run(&["serve", "--config", arg(&config)]).expect(2);
        assert!(!port_file.exists(), "{wrong}");
    }
}

#[test]
fn a_failing_start_keeps_the_port_file_of_a_running_server() {
    // Fails if the file is removed or replaced by a server that did not write it.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let port_file = server.data.with_extension("port");
    let port = fs::read_to_string(&port_file).unwrap();
    let second = |data: &Path| {
        run(&[
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--data-dir",
            arg(data),
            "--port-file",
            arg(&port_file),
        ])
    };
    let same = second(&server.data).expect(1);
    assert!(same.stderr.contains("serve.lock"), "{same}");
    let other = second(&scratch.path().join("other")).expect(1);
    assert!(other.stderr.contains("another running server"), "{other}");
    assert_eq!(fs::read_to_string(&port_file).unwrap(), port);
    let data = server.data.clone();
    server.kill();
    assert!(port_file.exists(), "nothing removed it");
    let again = Server::start(&data);
    assert_ne!(fs::read_to_string(&port_file).unwrap(), "");
    again.stop();
    assert!(!port_file.exists(), "a clean shutdown removes it");
}

/// Names of the threads of this process.
fn threads() -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let name = |task: std::io::Result<fs::DirEntry>| {
        fs::read_to_string(task.ok()?.path().join("comm")).ok()
    };
    tasks
        .filter_map(name)
        .map(|name| name.trim().to_owned())
        .collect()
}

#[test]
fn a_failing_start_leaves_no_thread_running() {
    // Fails if a thread continues, without the locks, in the process that tried to start a server.
    // Runs in a process of its own: other tests have threads with these names.
    if std::env::var_os("TALLYLINE_TEST_ALONE").is_none() {
        let test = "machine::a_failing_start_leaves_no_thread_running";
        let mut alone = Command::new(std::env::current_exe().unwrap());
        alone.args(["--exact", test, "--test-threads", "1"]);
        alone.env("TALLYLINE_TEST_ALONE", "1");
        Process::start(&mut alone).finish().expect(0);
        return;
    }
    let ours = || {
        let named = |name: &String| {
            ["committer", "process", "http-", "log"]
                .iter()
                .any(|ours| name.starts_with(ours))
        };
        threads().into_iter().filter(named).collect::<Vec<_>>()
    };
    // Threads of the HTTP library end by themselves, some time later.
    let assert_gone = |ours: &dyn Fn() -> Vec<String>| {
        let left = ours();
        let library = left.iter().all(|name| name.starts_with("http-library"));
        assert!(library, "{left:?}");
        until(PATIENCE, "the threads of the library end", || {
            ours().is_empty().then_some(())
        });
    };
    let scratch = Scratch::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = ServeConfig::at(scratch.data());
    let mut address_in_use = config.clone();
    address_in_use.listen = taken.local_addr().unwrap();
    let mut no_port_file = config.clone();
    no_port_file.port_file = Some("/dev/full/port".into());
    let mut no_port_file_dir = config.clone();
    no_port_file_dir.port_file = Some(scratch.path().join("missing/port"));
    for wrong in [&address_in_use, &no_port_file, &no_port_file_dir] {
        assert!(server::Server::start(wrong).is_err());
        assert_gone(&ours);
    }
    // The same after a server that ran.
    for flush_interval in [std::time::Duration::MAX, std::time::Duration::ZERO] {
        config.flush_interval = Some(flush_interval);
        config.rotate_interval = Some(std::time::Duration::MAX);
        config.retention = Some(std::time::Duration::MAX);
        config.dedup_window = Some(std::time::Duration::MAX);
        let server = server::Server::start(&config).expect("a server");
        // A thread sets its name once it runs.
        until(PATIENCE, "the threads of the server run", || {
            (!ours().is_empty()).then_some(())
        });
        drop(server);
        assert_gone(&ours);
    }
}

#[test]
fn absurd_durations_are_rejected_or_work() {
    // Fails if a duration that no clock can represent ends a thread.
    let scratch = Scratch::new();
    for wrong in ["forever", "1000years", "25h"] {
        let ran = run(&["serve", "--check", "--flush-interval", wrong]).expect(2);
        assert!(ran.stderr.contains("--flush-interval"), "{ran}");
    }
    let absurd = "584000000000years";
    let flags = [
        ["--rotate-interval", absurd],
        ["--retention", absurd],
        ["--dedup-window", absurd],
        ["--flush-interval", "24h"],
    ];
    let server = Server::with(&scratch.data(), flags.as_flattened());
    server.accept(event("u", 1));
    server.flush();
    server.get("/readyz").expect(200);
    server.stop().expect(0);
}

#[test]
#[ignore = "needs strace"]
fn a_rotation_without_descriptors_is_retried_within_seconds() {
    // Fails if a failed rotation is only retried at the next flush: in an hour here.
    let scratch = Scratch::new();
    let data = scratch.data();
    let log = scratch.path().join("strace");
    // strace counts the opens of the directory by each thread. The committer opens it three times a
    // segment (started, sealed, next created). For the tenth segment the third open fails, and then
    // two retries. A processor would open it as often, at times that nothing here determines.
    let inject = "inject=open,openat:error=EMFILE:when=30..32";
    let flags = ["--no-process", "--flush-interval", "1h"];
    let server = Server::by(&data, &flags, |args| {
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-o", arg(&log), "-P", arg(&data), "-e", inject]);
        command.arg(env!("CARGO_BIN_EXE_tallyline")).args(args);
        quiet_environment(&mut command);
        command
    });
    for _ in 0..10 {
        server.accept(event("u", 1));
        server.post("/flush?wait=1ms", "");
    }
    server.post("/liveEvent", event("u", 1)).problem(503);
    until(PATIENCE, "appends again", || {
        (server.post("/liveEvent", event("u", 1)).status == 202).then_some(())
    });
    let failed = fs::read_to_string(&log).unwrap();
    assert!(failed.contains("(INJECTED)"), "{failed}");
    super::kernel_log::stop_traced(server);
    run(&["process", "--data-dir", arg(&data)]).expect(0);
    run(&["verify", "--data-dir", arg(&data)]).expect(0);
}

#[test]
#[ignore = "needs strace"]
fn a_file_system_without_rename_noreplace_is_supported() {
    // Fails if sealing or archiving needs the flag, or if `process` fails and exits with 0.
    for error in ["EINVAL", "ENOSYS", "EOPNOTSUPP"] {
        let scratch = Scratch::new();
        let data = scratch.data();
        let log = scratch.path().join("strace");
        let inject = format!("inject=renameat2:error={error}");
        let traced = |args: &[&str]| {
            let mut command = Command::new("strace");
            command.args(["-f", "-qq", "-o", arg(&log), "-e", "trace=renameat2"]);
            command.args(["-e", &inject, env!("CARGO_BIN_EXE_tallyline")]);
            command.args(args);
            quiet_environment(&mut command);
            command
        };
        let server = Server::by(&data, &[], traced);
        server.accept(event("u", 1));
        server.flush();
        server.accept(event("u", 2));
        server.get("/readyz").expect(200);
        super::kernel_log::stop_traced(server);
        let other = scratch.file("more.jsonl", event("u", 4));
        fs::write(data.join("events.jsonl"), event("u", 3)).unwrap();
        let args = ["process", "--data-dir", arg(&data)];
        Process::start(&mut traced(&args)).finish().expect(0);
        let args = ["process", "--data-dir", arg(&data), arg(&other)];
        Process::start(&mut traced(&args)).finish().expect(0);
        assert!(fs::read_to_string(&log).unwrap().contains("(INJECTED)"));
        assert_eq!(super::harness::database(&data)["u"].1, 4, "{error}");
        run(&["verify", "--data-dir", arg(&data)]).expect(0);
    }
}

#[test]
#[ignore = "needs strace"]
fn process_never_exits_with_0_after_an_error() {
    // Fails if the active file could not be sealed, so that its events are not applied, and the
    // exit code is 0.
    let scratch = Scratch::new();
    let data = scratch.data();
    let server = Server::with(&data, &["--no-process"]);
    server.accept(event("u", 1));
    server.kill();
    let log = scratch.path().join("strace");
    for error in ["EIO", "ENOSPC", "EPERM"] {
        let mut command = Command::new("strace");
        let inject = format!("inject=renameat2:error={error}");
        command.args(["-f", "-qq", "-o", arg(&log), "-e", "trace=renameat2", "-e"]);
        command.args([&inject, env!("CARGO_BIN_EXE_tallyline")]);
        command.args(["process", "--data-dir", arg(&data)]);
        quiet_environment(&mut command);
        let ran = Process::start(&mut command).finish().expect(1);
        assert!(ran.stderr.contains("events.jsonl"), "{ran}");
    }
    Process::start(&mut tallyline(&["process", "--data-dir", arg(&data)]))
        .finish()
        .expect(0);
    assert_eq!(super::harness::database(&data)["u"].1, 1);
}

#[test]
#[ignore = "needs strace"]
fn a_network_file_system_causes_a_warning_at_start() {
    // Fails if no warning is logged for a data directory on NFS, where SQLite's WAL is not safe.
    let scratch = Scratch::new();
    let data = scratch.data();
    let log = scratch.path().join("strace");
    // The first field of struct statfs.
    let inject = "inject=statfs:poke_exit=@arg2=6969000000000000";
    let server = Server::by(&data, &[], |args| {
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-o", arg(&log), "-P", arg(&data)]);
        command.args(["-e", "trace=statfs", "-e", inject]);
        command.arg(env!("CARGO_BIN_EXE_tallyline")).args(args);
        quiet_environment(&mut command);
        command
    });
    let reported = server.process.stderr();
    assert!(
        reported.contains("NFS") && reported.contains(arg(&data)),
        "{reported}"
    );
    super::kernel_log::stop_traced(server);
}
