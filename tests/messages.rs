//! The messages that a user meets in the first minutes: a wrong flag, address, variable, file or
//! directory. Each names the cause and what to write instead.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::Signal;
use serde_json::Value;

use super::harness::{
    PATIENCE, Process, Ran, Scratch, Server, arg, event, quiet_environment, run, run_with_input,
    tallyline, until,
};

#[track_caller]
fn assert_says(ran: &Ran, expected: &str) {
    assert!(ran.stderr.contains(expected), "not {expected:?}: {ran}");
}

#[test]
fn flags_of_other_programs_are_answered_with_ours() {
    // Fails if `--port 9000` suggests `--port-file`, or the value is not in the suggestion.
    for (args, expected) in [
        (
            &["serve", "--port", "9000"][..],
            "error: unknown flag --port; did you mean --listen 127.0.0.1:9000?",
        ),
        (
            &["demo", "--port=9000"],
            "error: unknown flag --port; did you mean --listen 127.0.0.1:9000?",
        ),
        (
            &["serve", "--listen", "9000"],
            "error: --listen \"9000\": the address is missing; write an address and a port, such as 127.0.0.1:9000",
        ),
        (
            &["serve", "--listen", "127.0.0.1"],
            "error: --listen \"127.0.0.1\": the port is missing; write an address and a port, such as 127.0.0.1:8000",
        ),
        (
            &["send", "x", "--url", "http://h"],
            "error: unknown flag --url; did you mean --to http://h?",
        ),
        (
            &["send", "x", "--to", "localhost:8000"],
            "write a base URL such as http://localhost:8000",
        ),
        (
            &["servr"],
            "error: unknown command \"servr\"; did you mean `serve`?",
        ),
    ] {
        let ran = run(args).expect(2);
        assert_says(&ran, expected);
        assert!(ran.stdout.is_empty(), "{ran}");
    }
}

#[test]
fn a_bad_environment_variable_is_named() {
    // Fails if the error names the flag, which the user did not give.
    for (variable, value, args, expected) in [
        (
            "TALLYLINE_ROTATE_INTERVAL",
            "soon",
            &["serve", "--check"][..],
            "error: TALLYLINE_ROTATE_INTERVAL \"soon\": ",
        ),
        (
            "TALLYLINE_NO_AUTH",
            "maybe",
            &["serve", "--check"],
            "error: TALLYLINE_NO_AUTH \"maybe\": the value must be true or false",
        ),
        (
            "TALLYLINE_MEMORY",
            "1",
            &["serve", "--check"],
            "error: TALLYLINE_MEMORY 1 is out of range: from 32MiB to 1TiB",
        ),
        (
            "TALLYLINE_LISTEN",
            "9000",
            &["serve", "--check"],
            "error: TALLYLINE_LISTEN \"9000\": the address is missing",
        ),
        (
            "TALLYLINE_BATCH",
            "0",
            &["send", "x"],
            "error: TALLYLINE_BATCH \"0\": ",
        ),
        (
            "TALLYLINE_TO",
            "h",
            &["send", "x"],
            "error: TALLYLINE_TO \"h\" is not a base URL",
        ),
        (
            "TALLYLINE_DATA_DIR",
            "/dev/null",
            &["query"],
            "name a directory with TALLYLINE_DATA_DIR",
        ),
    ] {
        let ran = Process::start(tallyline(args).env(variable, value)).finish();
        assert_says(&ran.expect(2), expected);
    }
    // A flag goes before the variable, and then the flag is named.
    let mut command = tallyline(&["serve", "--check", "--memory", "2"]);
    let ran = Process::start(command.env("TALLYLINE_MEMORY", "1")).finish();
    assert_says(&ran.expect(2), "error: --memory 2 is out of range");
}

#[test]
fn a_data_directory_that_is_a_file_is_reported_as_such() {
    // Fails if a command says only "File exists" or "there is no data directory".
    let scratch = Scratch::new();
    let file = scratch.file("events", event("u", 1));
    let expected = format!(
        "error: cannot use {} as the data directory: it is a file; name a directory with --data-dir",
        file.display()
    );
    for args in [
        &["serve", "--listen", "127.0.0.1:0"][..],
        &["serve", "--check"],
        &["demo", "--exit", "--listen", "127.0.0.1:0"],
        &["process"],
        &["verify"],
        &["query"],
        &["rejected"],
        &["backup", "copy"],
        &["restore", "copy"],
    ] {
        let ran = run(&[args, &["--data-dir", arg(&file)]].concat()).expect(2);
        assert_says(&ran, &expected);
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), event("u", 1));
}

#[test]
fn an_address_that_is_not_ours_is_reported_as_such() {
    // Fails if the error asks whether another server runs there.
    let scratch = Scratch::new();
    let data = scratch.data();
    let flags = [
        "serve",
        "--listen",
        "192.0.2.1:0",
        "--no-auth",
        "--data-dir",
    ];
    let ran = run(&[&flags[..], &[arg(&data)]].concat()).expect(1);
    assert_says(
        &ran,
        "cannot listen on 192.0.2.1:0; no network interface of this machine has",
    );
    assert!(!ran.stderr.contains("another server"), "{ran}");
}

#[test]
fn https_to_a_plain_port_is_reported_as_such() {
    // Fails if `send` retries a TLS handshake for a minute and reports a corrupt message.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let file = scratch.file("e.jsonl", event("u", 1));
    let url = format!("https://127.0.0.1:{}", server.port);
    let ran = run(&["send", arg(&file), "--to", &url, "--retry-for", "forever"]).expect(1);
    assert_says(
        &ran,
        "plain HTTP on this port, not TLS; write http:// in --to",
    );
    assert_eq!(server.counter("received"), 0);
}

/// A data directory with two rejected lines: an invalid one in an imported file, and an id conflict.
fn with_rejected_lines(scratch: &Scratch) -> Server {
    let server = Server::with(&scratch.data(), &["--flush-interval", "10ms"]);
    let line =
        |value: u64, id: &str| event("u", value).replace("}\n", &format!(",\"id\":\"{id}\"}}\n"));
    server.accept(line(1, "a-1"));
    server.accept(line(2, "a-1"));
    server.accept(line(3, "b-1"));
    server.accept(line(4, "b-1"));
    server.flush();
    server
}

#[test]
fn rejected_lines_are_read_without_sqlite() {
    // Fails if the lines, their reasons or the filters differ from those of the HTTP listing.
    let scratch = Scratch::new();
    let server = with_rejected_lines(&scratch);
    let data = scratch.data();
    let rejected = |flags: &[&str]| run(&[&["rejected", "--data-dir", arg(&data)], flags].concat());
    let listed = server.get("/rejected").expect(200).json();
    let json = |flags: &[&str]| -> Value {
        let ran = rejected(&[flags, &["--json"]].concat()).expect(0);
        serde_json::from_str(&ran.stdout).unwrap()
    };
    assert_eq!(json(&[]), listed);
    assert_eq!(listed["rejected"].as_array().map(Vec::len), Some(2));
    let of_b = server.get("/rejected?idPrefix=b-").json();
    assert_eq!(json(&["--id-prefix", "b-"]), of_b);
    assert_eq!(of_b["rejected"].as_array().map(Vec::len), Some(1));
    assert_eq!(
        json(&["--limit", "1"]),
        server.get("/rejected?limit=1").json()
    );
    let since = format!("1-{}", listed["rejected"][0]["offset"]);
    assert_eq!(
        json(&["--since", &since]),
        server.get(&format!("/rejected?since={since}")).json()
    );
    server.stop().expect(0);

    let text = rejected(&[]).expect(0).stdout;
    assert!(
        text.contains("\"value\":4,\"id\":\"b-1\"}") && text.contains("at byte "),
        "{text}"
    );
    assert!(text.ends_with("2 of 2 lines rejected\n"), "{text}");
    let text = rejected(&["--limit", "1"]).expect(0).stdout;
    assert!(text.ends_with("1 of 2 lines rejected\n"), "{text}");
    let csv = rejected(&["--csv"]).expect(0).stdout;
    let mut rows = csv::Reader::from_reader(csv.as_bytes());
    assert_eq!(
        rows.headers().unwrap(),
        &["segment", "offset", "code", "reason", "line"][..]
    );
    assert_eq!(rows.records().count(), 2);

    let none = scratch.path().join("none");
    let ran = run(&["rejected", "--data-dir", arg(&none)]).expect(1);
    assert_says(&ran, "there is no database");
    let clean = scratch.path().join("clean");
    Server::start(&clean).stop().expect(0);
    let ran = run(&["rejected", "--data-dir", arg(&clean)]).expect(0);
    assert_eq!(ran.stdout, "0 lines rejected\n");
    rejected(&["--limit", "0"]).expect(2);
}

#[test]
fn control_characters_in_a_rejected_line_do_not_reach_the_terminal() {
    // Fails if a line of another user can write escape sequences to the terminal of the reader.
    let scratch = Scratch::new();
    let file = scratch.file("bad.jsonl", "\u{1b}]0;title\u{7}\n");
    let data = scratch.data();
    let ran = run(&["process", arg(&file), "--data-dir", arg(&data)]).expect(3);
    let hint = format!("`tallyline rejected --data-dir {}`", data.display());
    assert!(ran.stdout.contains(&hint), "{ran}");
    let ran = run(&["rejected", "--data-dir", arg(&data)]).expect(0);
    assert!(ran.stdout.contains("\\u{1b}]0;title\\u{7}"), "{ran}");
    assert!(!ran.stdout.contains('\u{1b}'), "{ran}");
}

#[test]
fn a_hangup_ends_send_in_order_unless_it_is_ignored() {
    // Fails if a closing terminal kills `send` without a summary, or if nohup has no effect.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let url = server.url();
    let file = scratch.file("e.jsonl", event("u", 1));
    let follow = ["send", arg(&file), "--to", &url, "--follow"];
    let sent = |lines: u64| {
        until(PATIENCE, "the lines are accepted", || {
            (server.counter("accepted") == lines).then_some(())
        });
    };
    let process = Process::start(&mut tallyline(&follow));
    sent(1);
    process.signal(Signal::HUP);
    let ran = process.finish().expect(0);
    assert!(
        ran.stdout.contains("OK: stopped following after line 1"),
        "{ran}"
    );

    let mut ignoring = Command::new("sh");
    ignoring.args([
        "-c",
        "trap '' HUP; exec \"$0\" \"$@\"",
        env!("CARGO_BIN_EXE_tallyline"),
    ]);
    ignoring.args(follow);
    quiet_environment(&mut ignoring);
    let process = Process::start(&mut ignoring);
    append(&file, &event("u", 2));
    sent(2);
    process.signal(Signal::HUP);
    append(&file, &event("u", 3));
    sent(3);
    process.signal(Signal::TERM);
    process.finish().expect(0);
}

fn append(file: &Path, text: &str) {
    let mut file = fs::OpenOptions::new().append(true).open(file).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

#[test]
fn streams_and_directories_are_taken_or_answered_with_what_to_do() {
    // Fails if a way to name events is refused without the way that works.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let url = server.url();
    let one = scratch.file("in/one.jsonl", event("u", 1));
    let dir = one.parent().unwrap();
    let ran = run_with_input(
        &["send", "/dev/stdin", "--to", &url],
        event("u", 1).as_bytes(),
    );
    ran.expect(0);
    let mut piped = tallyline(&["send", "/dev/stdin", "--to", &url]);
    let mut child = piped
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(event("u", 1).as_bytes())
        .unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(server.counter("accepted"), 2);
    let ran = run(&["send", arg(dir), "--to", &url]).expect(1);
    assert_says(
        &ran,
        &format!("for file in {}/*.jsonl; do tallyline send", dir.display()),
    );

    let offline = scratch.path().join("offline");
    let process = |what: &str| run(&["process", what, "--data-dir", arg(&offline)]);
    assert_says(
        &process(arg(dir)).expect(1),
        &format!("name the files in it, such as {}/*.jsonl", dir.display()),
    );
    assert_says(
        &process(arg(&scratch.data())).expect(1),
        &format!(
            "`tallyline process --data-dir {}`",
            scratch.data().display()
        ),
    );
    assert_says(&process("-").expect(1), "COMMAND | tallyline send -");
    let fifo = scratch.path().join("fifo");
    assert!(
        Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .unwrap()
            .success()
    );
    assert_says(&process(arg(&fifo)).expect(1), "COMMAND > FILE.jsonl");
}

#[test]
fn files_of_events_with_another_name_are_named() {
    // Fails if such a file in the data directory is ignored and not reported.
    let scratch = Scratch::new();
    let data = scratch.data();
    let server = Server::with(&data, &["--flush-interval", "10ms"]);
    let today = scratch.file("data/today.jsonl", event("u", 1));
    scratch.file("data/notes.txt", "hello\n");
    let expected = format!(
        "{} is not applied, because its name is not that of a segment",
        today.display()
    );
    until(PATIENCE, "the file is named", || {
        server.process.stderr().contains(&expected).then_some(())
    });
    let log = server.stop().expect(0).stderr;
    assert_eq!(log.matches("is not applied").count(), 1, "{log}");
    scratch.file("data/events_1.json", event("u", 1));
    let ran = run(&["process", "--data-dir", arg(&data)]).expect(0);
    assert_says(&ran, &expected);
    assert_says(&ran, "events_1.json is not applied");
    assert!(!ran.stderr.contains("notes.txt"), "{ran}");
    // The advice works.
    let ran = run(&["process", arg(&today), "--data-dir", arg(&data)]).expect(1);
    assert_says(&ran, "rename it to events_today.jsonl");
    fs::rename(&today, data.join("events_today.jsonl")).unwrap();
    let ran = run(&["process", "--data-dir", arg(&data)]).expect(0);
    assert!(ran.stdout.contains("1 event applied"), "{ran}");
}

#[test]
fn the_demo_explains_its_numbers_and_what_is_next() {
    // Fails if 12 events are sent and 11 counted without a reason.
    let scratch = Scratch::new();
    let mut demo = tallyline(&["demo", "--exit", "--listen", "127.0.0.1:0"]);
    let ran = Process::start(demo.current_dir(scratch.path()))
        .finish()
        .expect(0);
    assert!(
        ran.stdout
            .contains("Counted 11 of them: two have the same id"),
        "{ran}"
    );
    // The binary of the test is not on the PATH, so it is named by its path.
    let next = format!(
        "Next: {} query --data-dir data/demo",
        env!("CARGO_BIN_EXE_tallyline")
    );
    assert!(ran.stdout.contains(&next), "{ran}");
}
