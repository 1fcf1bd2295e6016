//! The command line: options, errors before anything starts, and exit codes.

use std::fs;

use super::harness::{
    Process, Scratch, Server, arg, event, names_in, recount_files, run, run_with_input, tallyline,
};

const COMMANDS: [&str; 14] = [
    "demo",
    "serve",
    "send",
    "ready",
    "process",
    "verify",
    "backup",
    "restore",
    "query",
    "rejected",
    "generate",
    "completions",
    "man",
    "torture",
];

#[test]
fn every_command_has_help() {
    // Fails if a documented command is missing, or its help exits with an error code.
    let all = run(&["--help"]).expect(0).stdout;
    for command in COMMANDS {
        assert!(
            all.lines().any(|line| line.trim().starts_with(command)),
            "{command} is not in:\n{all}"
        );
        let help = run(&[command, "--help"]).expect(0).stdout;
        assert!(help.contains("Usage: tallyline"), "{command}:\n{help}");
    }
    for (alias, command) in [
        ("server", "serve"),
        ("client", "send"),
        ("processor", "process"),
    ] {
        let by_alias = run(&[alias, "--help"]).expect(0).stdout;
        assert_eq!(
            by_alias,
            run(&[command, "--help"]).expect(0).stdout,
            "{alias}"
        );
    }
    let version = run(&["--version"]).expect(0).stdout;
    assert_eq!(
        version.trim(),
        concat!("tallyline ", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn wrong_usage_is_exit_code_2_and_on_stderr() {
    // Fails if wrong usage exits with 0, or with the code of a failed run (1).
    for args in [
        &[][..],
        &["brew"],
        &["serve", "--sideways"],
        &["serve", "--rotate-interval", "soon"],
        &["serve", "--rotate-interval", "1ms"],
        &["serve", "--flush-interval", "9ms"],
        &["serve", "--rotate-size", "many"],
        &["send", "--batch", "0"],
        &["generate", "--events", "-1"],
        &["completions", "abacus"],
    ] {
        let ran = run(args).expect(2);
        assert!(
            ran.stdout.is_empty() && !ran.stderr.is_empty(),
            "{args:?}: {ran}"
        );
    }
}

#[test]
fn an_unsafe_listen_address_is_rejected_at_start() {
    // Fails if the server listens on a network address without an explicit choice of access
    // control.
    let scratch = Scratch::new();
    let data = scratch.data();
    for address in ["0.0.0.0:0", "[::]:0"] {
        let ran = run(&["serve", "--data-dir", arg(&data), "--listen", address]).expect(2);
        assert!(
            ran.stderr.contains("--token-file") && ran.stderr.contains("--no-auth"),
            "the error names both options: {ran}"
        );
        assert!(!data.exists(), "rejected before anything was created");
    }
}

#[test]
fn an_empty_token_file_is_rejected() {
    // Fails if an empty `--token-file` is accepted: any token, or none, would do.
    let scratch = Scratch::new();
    let empty = scratch.file("tokens", "\n\n");
    let ran = run(&[
        "serve",
        "--data-dir",
        arg(&scratch.data()),
        "--listen",
        "127.0.0.1:0",
        "--token-file",
        arg(&empty),
    ]);
    assert!(ran.code.is_some_and(|code| code != 0), "{ran}");
    assert!(ran.stderr.contains(arg(&empty)), "{ran}");
}

#[test]
fn a_second_server_is_rejected_and_names_the_first() {
    // Fails if two servers share a data directory, or the error does not name the running one.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let data = scratch.data();
    let second = run(&["serve", "--data-dir", arg(&data), "--listen", "127.0.0.1:0"]);
    assert_eq!(second.code, Some(1), "{second}");
    let first = server.process.id().to_string();
    assert!(second.stderr.contains(&first), "pid {first}: {second}");
    // The kernel releases the lock when its holder ends, however it ends.
    server.kill();
    Server::start(&data).stop().expect(0);
}

#[test]
fn a_demo_whose_port_is_in_use_suggests_another() {
    // Fails if the error only says "address in use" when port 8000 is taken.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let taken = format!("127.0.0.1:{}", server.port);
    let dir = scratch.path().join("demo");
    let args = [
        "demo",
        "--exit",
        "--data-dir",
        arg(&dir),
        "--listen",
        &taken,
    ];
    let ran = run(&args).expect(1);
    assert!(
        ran.stderr.contains("--listen 127.0.0.1:0") && ran.stderr.contains(&taken),
        "{ran}"
    );
}

#[test]
fn an_unknown_setting_in_the_config_file_is_rejected() {
    // Fails if a misspelt key in the config file is ignored.
    let scratch = Scratch::new();
    let config = scratch.file("tallyline.toml", "rotate-evry = \"1s\"\n");
    let ran = run(&[
        "serve",
        "--check",
        "--config",
        arg(&config),
        "--data-dir",
        arg(&scratch.data()),
    ]);
    assert!(ran.code.is_some_and(|code| code != 0), "{ran}");
    assert!(ran.stderr.contains("rotate-evry"), "{ran}");
}

#[test]
fn retention_outlives_a_failover_of_the_shared_database() {
    // Fails if a server on PostgreSQL deletes files that a failover may need, or one on SQLite is refused.
    let scratch = Scratch::new();
    let data = scratch.data();
    let check = |flags: &[&str], code: i32| {
        let args = ["serve", "--check", "--data-dir", arg(&data)];
        run(&[&args[..], flags].concat()).expect(code)
    };
    let shared = ["--database", "postgres://db/tally"];
    let with = |flags: &[&'static str]| [&shared[..], flags].concat();
    let refused = check(&with(&["--retention", "59m"]), 2).stderr;
    assert!(
        refused.contains("--retention 59m") && refused.contains("--failover-window 1h"),
        "{refused}"
    );
    check(
        &with(&["--failover-window", "forever", "--retention", "1year"]),
        2,
    );
    check(&with(&["--retention", "1h"]), 0);
    check(&with(&["--retention", "1s", "--failover-window", "1s"]), 0);
    check(&with(&[]), 0);
    check(&["--retention", "1s"], 0);
}

#[test]
fn flags_override_the_environment_the_file_and_the_defaults() {
    // Fails if one of the four sources of a setting is not read, or their precedence changes.
    let scratch = Scratch::new();
    let config = scratch.file(
        "tallyline.toml",
        "rotate-interval = \"11s\"\nflush-interval = \"12s\"\nretention = \"13days\"\n",
    );
    let data = scratch.data();
    let mut command = tallyline(&[
        "serve",
        "--check",
        "--config",
        arg(&config),
        "--data-dir",
        arg(&data),
        "--rotate-interval",
        "31s",
    ]);
    command
        .env("TALLYLINE_ROTATE_INTERVAL", "21s")
        .env("TALLYLINE_FLUSH_INTERVAL", "22s");
    let shown = Process::start(&mut command).finish().expect(0).stdout;
    for effective in ["31s", "22s", "13days", "127.0.0.1:8000"] {
        assert!(shown.contains(effective), "{effective} is not in:\n{shown}");
    }
    for overridden in ["11s", "12s", "21s"] {
        assert!(!shown.contains(overridden), "{overridden} in:\n{shown}");
    }
    assert!(!data.exists(), "--check creates nothing");
}

#[test]
fn generate_gives_the_same_bytes_for_the_same_arguments() {
    // Fails if the three numbers do not determine the workload: no measurement could be repeated.
    let made = |events: &str, users: &str, seed: &str| {
        let args = [
            "generate", "--events", events, "--users", users, "--seed", seed,
        ];
        run(&args).expect(0).stdout
    };
    let first = made("2000", "50", "7");
    assert_eq!(first, made("2000", "50", "7"));
    assert_ne!(first, made("2000", "50", "8"));
    let scratch = Scratch::new();
    let count = recount_files(&[scratch.file("workload", &first)]);
    assert_eq!((count.lines, count.applied), (2000, 2000));
    assert!(
        (2..=50).contains(&count.users.len()),
        "{}",
        count.users.len()
    );
    // A shorter run is a prefix of a longer one.
    assert!(first.starts_with(&made("100", "50", "7")));
}

#[test]
fn completions_and_manual_are_on_stdout() {
    // Fails if a command that packagers use to generate files prints nothing.
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&["completions", shell]).expect(0).stdout;
        assert!(
            script.contains("tallyline") && script.contains("rotate-interval"),
            "{shell}"
        );
    }
    let page = run(&["man"]).expect(0).stdout;
    assert!(page.contains(".TH") && page.contains("rotate"), "{page}");
}

#[test]
fn send_without_a_server_exits_with_1_and_names_it() {
    // Fails if `send` exits with 0 although no server accepted anything.
    let scratch = Scratch::new();
    // Bound and dropped: no process listens on this port.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let url = format!("http://127.0.0.1:{port}");
    let input = scratch.file("in.jsonl", event("u", 1));
    let ran = run(&["send", arg(&input), "--to", &url, "--retry-for", "20ms"]).expect(1);
    assert!(ran.stderr.contains(&port.to_string()), "{ran}");
}

#[test]
fn an_unreadable_input_is_reported_once_without_a_summary() {
    // Fails if a missing input file prints a summary of a run that never began, or repeats the
    // system's error text.
    let scratch = Scratch::new();
    let missing = scratch.path().join("missing.jsonl");
    let ran = run(&["send", arg(&missing)]).expect(1);
    assert_eq!(ran.stdout, "FAILED: nothing was sent\n");
    let path = missing.display();
    assert_eq!(
        ran.stderr,
        format!(
            "error: cannot read {path}: there is no such file; name the file of events to send, or `-` for stdin\n"
        )
    );
    let ran = run(&["send", arg(scratch.path())]).expect(1);
    assert_eq!(ran.stderr.matches("is a directory").count(), 1, "{ran}");
    let ran = run(&["send", arg(&missing), "--json"]).expect(1);
    let json: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(json["outcome"], "failed");
    assert!(json["error"].as_str().unwrap().contains("missing.jsonl"));
}

#[test]
fn process_and_verify_use_plurals_and_honour_quiet() {
    // Fails if one file is printed as "1 files", if --quiet prints successes, or if it hides
    // failures.
    let scratch = Scratch::new();
    let data = scratch.data();
    let good = scratch.file("events_good.jsonl", event("u", 1));
    let process = |more: &[&str]| run(&[&["process", "--data-dir", arg(&data)], more].concat());
    let ran = process(&[arg(&good)]).expect(0);
    assert_eq!(
        ran.stdout,
        "1 file: 1 event applied, 0 duplicates, 0 rejected\n"
    );
    let ran = process(&[]).expect(0);
    assert!(ran.stdout.starts_with("nothing to do"), "{ran}");
    assert_eq!(process(&["--quiet"]).expect(0).stdout, "");
    let bad = scratch.file("events_bad.jsonl", "no event\n");
    let ran = process(&["--quiet", arg(&bad)]).expect(3);
    assert!(ran.stdout.contains("1 rejected"), "{ran}");

    let verify = |more: &[&str]| run(&[&["verify", "--data-dir", arg(&data)], more].concat());
    let ran = verify(&[]).expect(0);
    assert!(
        ran.stdout
            .contains("2 lines: 1 event (net 1), 0 duplicates, 1 rejected\n"),
        "{ran}"
    );
    assert!(ran.stdout.contains("totals of 1 user exactly"), "{ran}");
    assert_eq!(verify(&["--quiet"]).expect(0).stdout, "");
    fs::remove_dir_all(&data).unwrap();
    let ran = verify(&[]).expect(1);
    assert!(ran.stderr.contains("there is no data directory"), "{ran}");
}

#[test]
fn the_final_error_is_json_in_a_json_log() {
    // Fails if a line of the JSON log is not JSON.
    let scratch = Scratch::new();
    let _server = Server::start(&scratch.data());
    let data = scratch.data();
    let args = ["serve", "--data-dir", arg(&data), "--listen", "127.0.0.1:0"];
    let ran = run(&[&args[..], &["--log-format", "json"]].concat()).expect(1);
    let lines: Vec<serde_json::Value> = (ran.stderr.lines())
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}")))
        .collect();
    let last = lines.last().expect("a line");
    assert_eq!(last["level"], "ERROR", "{ran}");
    assert!(last["message"].as_str().unwrap().contains("serve.lock"));
}

#[test]
fn send_reports_and_keeps_rejected_lines() {
    // Fails if the exit code does not tell a run with rejected lines from one without, or if the
    // rejected lines are not kept.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let url = server.url();
    let bad = r#"{"userId":"u","name":"add_revenue","value":-1}"#;
    let rejects = scratch.path().join("rejects.jsonl");
    let mixed = format!("{}{bad}\n{}", event("u", 1), event("u", 2));
    let args = [
        "send",
        "-",
        "--to",
        &url,
        "--no-ids",
        "--rejects",
        arg(&rejects),
    ];
    let ran = run_with_input(&args, mixed.as_bytes()).expect(3);
    assert!(
        ran.stdout.contains('2') || ran.stderr.contains('2'),
        "{ran}"
    );
    let kept = fs::read_to_string(&rejects).unwrap();
    assert!(kept.contains("value") && kept.contains("-1"), "{kept}");
    assert_eq!(kept.lines().count(), 1, "{kept}");
    assert!(ran.stdout.contains("REFUSED: 1 event not stored"), "{ran}");
    run_with_input(&args, event("u", 4).as_bytes()).expect(0);
    let ran = run_with_input(&args, bad.as_bytes()).expect(3);
    assert!(ran.stdout.contains("REFUSED: all of it, 1 event"), "{ran}");
    server.flush();
    assert_eq!(server.get("/userEvents/u").expect(200).json()["revenue"], 7);
    server.assert_balanced();
}

#[test]
fn send_reads_events_jsonl_by_default() {
    // Fails if `send` without an argument does not read ./events.jsonl, as the original client
    // does.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    scratch.file("events.jsonl", event("here", 5));
    let mut command = tallyline(&["send", "--to", &server.url(), "--batch", "1"]);
    Process::start(command.current_dir(scratch.path()))
        .finish()
        .expect(0);
    server.flush();
    assert_eq!(
        server.get("/userEvents/here").expect(200).json()["revenue"],
        5
    );
}

#[test]
fn query_shows_users_as_table_json_and_csv() {
    // Fails if a total is not printed exactly as stored, or if reading leaves files behind.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    server.accept([event("ann", 3), event("bob", 10), event("a\"b,c", 1)].concat());
    server.flush();
    server.stop().expect(0);
    let data = scratch.data();
    let query = |more: &[&str]| {
        let args = [&["query", "--data-dir", arg(&data)], more].concat();
        run(&args).expect(0).stdout
    };
    let table = query(&[]);
    let place = |user: &str| {
        table
            .find(user)
            .unwrap_or_else(|| panic!("{user}: {table}"))
    };
    assert!(place("bob") < place("ann"), "largest first:\n{table}");
    let one = query(&["ann"]);
    assert!(one.contains("ann") && one.contains('3') && !one.contains("bob"));
    assert!(!query(&["--top", "1"]).contains("ann"));
    let json: serde_json::Value = serde_json::from_str(&query(&["--json"])).unwrap();
    assert!(json.to_string().contains("\"bob\""), "{json}");
    assert!(query(&["--csv"]).contains("\"a\"\"b,c\""));
    let left: Vec<_> = names_in(&data)
        .into_iter()
        .filter(|name| name.starts_with("revenue.db"))
        .collect();
    assert_eq!(left, ["revenue.db"]);
}

#[test]
fn verify_reports_a_changed_total() {
    // Fails if `verify` does not report a total that differs from the files.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    server.accept([event("ann", 3), event("bob", 10)].concat());
    server.stop().expect(0);
    let data = scratch.data();
    run(&["verify", "--data-dir", arg(&data)]).expect(0);
    let db = rusqlite::Connection::open(data.join("revenue.db")).unwrap();
    let forged = "UPDATE user_total SET revenue_micros = revenue_micros + 1 WHERE user_id = 'bob'";
    assert_eq!(db.execute(forged, []).unwrap(), 1);
    drop(db);
    let ran = run(&["verify", "--data-dir", arg(&data)]).expect(1);
    assert!(
        format!("{}{}", ran.stdout, ran.stderr).contains("bob"),
        "the difference is named: {ran}"
    );
}

#[test]
fn a_variable_of_an_earlier_version_is_rejected_by_name() {
    // Fails if `TALLYLINE_RETAIN_FOR` in a unit file of an earlier version is ignored, so that
    // nothing is pruned any more.
    let mut command = tallyline(&["serve", "--check"]);
    command.env("TALLYLINE_RETAIN_FOR", "1day");
    let ran = Process::start(&mut command).finish().expect(2);
    assert!(
        ran.stderr
            .contains("TALLYLINE_RETAIN_FOR; did you mean TALLYLINE_RETENTION?"),
        "{ran}"
    );
}
