//! The command line: what is understood, what is refused before anything starts, and exit codes.

use std::fs;

use super::harness::{
    Process, Scratch, Server, arg, event, names_in, recount_files, run, run_with_input, tallyline,
};

const COMMANDS: [&str; 12] = [
    "demo",
    "serve",
    "send",
    "process",
    "verify",
    "backup",
    "restore",
    "query",
    "generate",
    "completions",
    "man",
    "torture",
];

#[test]
fn every_command_has_help() {
    // Red if a command of the contract is missing or its help ends as a failure.
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
    // Red if a mistake on the command line passes for success or for a failed run (1).
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
fn an_unsafe_listen_address_is_refused_at_start() {
    // Red if the server ever opens itself to the network without being told how to guard itself.
    let scratch = Scratch::new();
    let data = scratch.data();
    for address in ["0.0.0.0:0", "[::]:0"] {
        let ran = run(&["serve", "--data-dir", arg(&data), "--listen", address]).expect(2);
        assert!(
            ran.stderr.contains("--token-file") && ran.stderr.contains("--no-auth"),
            "the refusal names both ways out: {ran}"
        );
        assert!(!data.exists(), "refused before anything was made");
    }
}

#[test]
fn an_empty_token_file_guards_nothing_and_is_refused() {
    // Red if `--token-file` with nothing in it is taken for a guard: any token, or none, would do.
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
fn a_second_server_is_refused_and_told_of_the_first() {
    // Red if two writers share a data directory, or if the refusal does not say who is there.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let data = scratch.data();
    let second = run(&["serve", "--data-dir", arg(&data), "--listen", "127.0.0.1:0"]);
    assert_eq!(second.code, Some(1), "{second}");
    let first = server.process.id().to_string();
    assert!(second.stderr.contains(&first), "pid {first}: {second}");
    // The lock dies with its holder, however it dies.
    server.kill();
    Server::start(&data).stop().expect(0);
}

#[test]
fn a_demo_whose_port_is_taken_names_a_way_out() {
    // Red if a newcomer with something else on port 8000 is left alone with "address in use".
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
fn a_file_of_unknown_settings_is_refused() {
    // Red if a misspelt key in the config file is passed over in silence.
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
fn flags_go_before_the_environment_before_the_file_before_defaults() {
    // Red if one of the four sources of a setting stops being read, or the order is turned round.
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
    assert!(!data.exists(), "--check makes nothing");
}

#[test]
fn generate_gives_the_same_bytes_for_the_same_arguments() {
    // Red if a workload can't be named by its three numbers: no figure could be checked again.
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
    // A shorter run is the beginning of a longer one.
    assert!(first.starts_with(&made("100", "50", "7")));
}

#[test]
fn completions_and_manual_are_on_stdout() {
    // Red if a package that installs these would install an empty file.
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
fn a_server_that_is_not_there_is_exit_code_1_and_named() {
    // Red if `send` calls it success when nobody took anything.
    let scratch = Scratch::new();
    // Bound and dropped: a port where nobody listens.
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
fn an_input_that_cannot_be_read_is_named_once_and_nothing_else_is_said() {
    // Red if a mistyped file name is answered with a summary of a run that never began, or the
    // system's words come twice.
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
fn process_and_verify_count_in_words_and_are_quiet_when_asked() {
    // Red if one file is "1 files", if --quiet still talks of what went well, or hides what did not.
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
fn with_json_logs_what_ended_the_program_is_json_too() {
    // Red if whoever reads the log by machine meets a line that is none.
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
fn send_tells_refused_from_done_and_keeps_the_refused() {
    // Red if a run in which lines were refused looks like one in which all were taken (or the other
    // way round), or if the refused lines are lost to the one who sent them.
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
fn send_reads_events_jsonl_here_by_default() {
    // Red if the original client's habit (no argument: ./events.jsonl) is broken.
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
    // Red if a total is shown otherwise than it is kept, or if reading leaves files behind.
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
fn verify_agrees_and_then_tells_a_forged_total() {
    // Red if `verify` would not notice a total that the files don't bear out.
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
fn a_variable_of_an_earlier_version_is_refused_by_name() {
    // Red if `TALLYLINE_RETAIN_FOR` in a unit file of an earlier version is ignored, so that nothing is
    // pruned any more.
    let mut command = tallyline(&["serve", "--check"]);
    command.env("TALLYLINE_RETAIN_FOR", "1day");
    let ran = Process::start(&mut command).finish().expect(2);
    assert!(
        ran.stderr
            .contains("TALLYLINE_RETAIN_FOR; did you mean TALLYLINE_RETENTION?"),
        "{ran}"
    );
}
