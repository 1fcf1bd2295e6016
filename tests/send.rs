//! `tallyline send`: unusual inputs, files sent before, rejected lines, waiting for totals.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Stdio;
use std::thread;

use rustix::process::Signal;
use serde_json::{Value, json};

use super::harness::http::Request;
use super::harness::{
    PATIENCE, Process, Ran, Scratch, Server, arg, event, run, run_with_input, tallyline, until,
};

fn send(server: &Server, file: &Path, flags: &[&str]) -> Ran {
    run(&[&["send", arg(file), "--to", &server.url()], flags].concat())
}

fn summary(ran: &Ran) -> Value {
    serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran}"))
}

#[test]
fn a_file_sent_in_full_is_not_sent_again_to_the_same_directory() {
    // Fails if the file counts twice, also after the directory was moved and the port changed.
    let scratch = Scratch::new();
    let file = scratch.file("e.jsonl", event("u", 1).repeat(3));
    let server = Server::start(&scratch.data());
    let directory = server.status()["directory"].as_str().unwrap().to_owned();
    send(&server, &file, &[]).expect(0);
    let again = send(&server, &file, &[]).expect(2);
    assert!(again.stderr.contains("was sent in full before"), "{again}");
    assert!(again.stderr.contains("--again"), "{again}");
    assert_eq!(server.counter("applied"), 3);
    server.stop().expect(0);
    let moved = scratch.path().join("moved");
    fs::rename(scratch.data(), &moved).unwrap();
    let server = Server::start(&moved);
    assert_eq!(server.status()["directory"], directory);
    send(&server, &file, &[]).expect(2);
    // Sending to another directory is a separate run, and does not delete the state of this one.
    let other = Server::start(&scratch.path().join("other"));
    send(&other, &file, &[]).expect(0);
    send(&other, &file, &[]).expect(2);
    send(&server, &file, &[]).expect(2);
    // New lines are sent from where the file ended.
    let mut grown = fs::OpenOptions::new().append(true).open(&file).unwrap();
    grown.write_all(event("u", 1).as_bytes()).unwrap();
    let ran = send(&server, &file, &["--json"]).expect(0);
    assert_eq!(summary(&ran)["accepted"], 1, "{ran}");
    assert_eq!(server.counter("applied"), 4);
    send(&server, &file, &["--again"]).expect(0);
    assert_eq!(server.counter("applied"), 8);
    // With a source, the lines count once more by their new ids; with `--no-ids` they count each
    // time. The state of the file is kept.
    for _ in 0..2 {
        send(&server, &file, &["--source", "till"]).expect(0);
    }
    assert_eq!(server.counter("applied"), 12);
    send(&server, &file, &["--no-ids"]).expect(0);
    assert_eq!(server.counter("applied"), 16);
    send(&server, &file, &[]).expect(2);
    assert_eq!(server.assert_balanced()["duplicates"], 4);
}

#[test]
fn output_that_cannot_be_written_does_not_make_a_sent_file_count_twice() {
    // Fails if a full disk behind stdout, or behind --rejects, is reported as a failed send.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let file = scratch.file("e.jsonl", event("u", 1));
    let url = server.url();
    let full = || Stdio::from(File::options().write(true).open("/dev/full").unwrap());
    let mut command = tallyline(&["send", arg(&file), "--to", &url]);
    let output = command.stdout(full()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("do not send the input again"), "{stderr}");
    send(&server, &file, &[]).expect(2);
    let flags = ["--rejects", "/dev/full", "--no-ids", "--batch", "2"];
    let file = scratch.file(
        "bad.jsonl",
        event("u", 1) + "{\"userId\": 7}\n" + &event("u", 1),
    );
    let ran = send(&server, &file, &flags).expect(1);
    assert!(
        ran.stderr
            .contains("cannot write refused lines to /dev/full"),
        "{ran}"
    );
    assert!(ran.stderr.contains("line 2 refused"), "{ran}");
    send(&server, &file, &["--no-ids", "--batch", "2"]).expect(3);
    assert_eq!(server.counter("accepted"), 3);
}

#[test]
fn conflicts_of_a_changed_source_are_reported_and_duplicates_are_not() {
    // Fails if a line inserted into a source is silently not counted, or if a duplicate is reported
    // as an error.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let rejects = scratch.path().join("bad.jsonl");
    let flags = ["--source", "till", "--json", "--rejects", arg(&rejects)];
    let file = scratch.file("e.jsonl", event("a", 1) + &event("b", 2));
    for _ in 0..2 {
        let ran = send(&server, &file, &flags).expect(0);
        assert_eq!(summary(&ran)["rejected"], 0, "{ran}");
    }
    fs::write(&file, event("new", 9) + &event("a", 1) + &event("b", 2)).unwrap();
    // Another source with a common prefix of the name is not included.
    let other = scratch.file("other.jsonl", event("x", 1));
    send(&server, &other, &["--source", "till-2"]).expect(0);
    fs::write(&other, event("y", 1)).unwrap();
    send(&server, &other, &["--source", "till-2"]).expect(3);
    let ran = send(&server, &file, &flags).expect(3);
    assert_eq!(summary(&ran)["rejected"], 2, "{ran}");
    let listed: Vec<Value> = fs::read_to_string(&rejects)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let lines: Vec<_> = listed
        .iter()
        .map(|line| (&line["line"], &line["code"]))
        .collect();
    let conflict = json!("id_conflict");
    assert_eq!(lines, [(&json!(1), &conflict), (&json!(2), &conflict)]);
    // Lines rejected before are not reported again once the source has its former content.
    fs::write(&file, event("a", 1) + &event("b", 2)).unwrap();
    let ran = send(&server, &file, &flags).expect(0);
    assert_eq!(summary(&ran)["rejected"], 0, "{ran}");
}

#[test]
fn rejected_lines_are_filtered_by_id_and_position() {
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let post = |id: &str, value: u64| {
        let event = event("u", value);
        server.accept(format!(
            "{},\"id\":\"{id}\"}}",
            event.trim_end().trim_end_matches('}')
        ))
    };
    for id in ["a-1", "a%_2", "b-1"] {
        post(id, 1);
    }
    let before = post("a-1", 2);
    let last = post("a%_2", 2);
    post("b-1", 2);
    server.flush();
    let ids = |query: &str| {
        let listed = server.get(&format!("/rejected?{query}")).expect(200).json();
        let lines = listed["rejected"].as_array().unwrap().iter();
        let id = |line: &Value| {
            assert_eq!(line["code"], "id_conflict");
            let line: Value = serde_json::from_str(line["line"].as_str().unwrap()).unwrap();
            line["id"].as_str().unwrap().to_owned()
        };
        lines.map(id).collect::<Vec<_>>()
    };
    assert_eq!(
        ids(&format!("after={last}&wait=5s")),
        ["b-1", "a%_2", "a-1"]
    );
    assert_eq!(ids("idPrefix=a"), ["a%_2", "a-1"]);
    assert_eq!(ids("idPrefix=a%25"), ["a%_2"]);
    assert_eq!(ids(&format!("since={before}&idPrefix=a")), ["a%_2"]);
    assert_eq!(ids(&format!("since={before}&limit=1")), ["b-1"]);
    assert_eq!(ids("idPrefix=c"), Vec::<String>::new());
    server.get("/rejected?since=7").problem(400);
    server.get("/rejected?after=9-0&wait=10ms").problem(400);
}

#[test]
fn send_ends_when_the_totals_include_its_events() {
    // Fails if `query` right after `send` shows no totals; here events are applied once an hour, or
    // on request.
    let scratch = Scratch::new();
    let server = Server::with(&scratch.data(), &["--flush-interval", "1h"]);
    let file = scratch.file("e.jsonl", event("u", 1));
    let ran = send(&server, &file, &["--json"]).expect(0);
    assert_eq!(summary(&ran)["applied"], true, "{ran}");
    let ran = run(&["query", "u", "--data-dir", arg(&scratch.data())]).expect(0);
    assert!(ran.stdout.contains('u'), "{ran}");
    let again = send(&server, &file, &["--again", "--wait", "0s", "--json"]).expect(0);
    assert_eq!(summary(&again)["applied"], false, "{again}");
    assert_eq!(server.counter("pending"), 1);
    let ran = run(&["query", "other", "--data-dir", arg(&scratch.data())]).expect(1);
    assert!(
        ran.stderr.contains("in 1 file are not applied yet"),
        "{ran}"
    );
    let missing = server.get("/userEvents/other").problem(404);
    assert_eq!(missing["pending"], 1, "{missing}");
}

#[test]
fn a_stuck_database_is_reported_and_not_an_error() {
    let scratch = Scratch::new();
    let (server, db) = Server::with_database_locked(&scratch.data());
    let file = scratch.file("e.jsonl", event("u", 1));
    let ran = send(&server, &file, &["--wait", "50ms"]).expect(0);
    assert!(ran.stdout.contains("not applied yet after 50ms"), "{ran}");
    drop(db);
    send(&server, &file, &[]).expect(2);
}

#[test]
fn a_server_without_a_processor_is_reported() {
    let scratch = Scratch::new();
    let server = Server::with(&scratch.data(), &["--no-process"]);
    let file = scratch.file("e.jsonl", event("u", 1));
    let ran = send(&server, &file, &[]).expect(0);
    assert!(ran.stdout.contains("--no-process"), "{ran}");
    let data = scratch.data();
    let ran = run(&["query", "--data-dir", arg(&data)]).expect(1);
    assert!(
        ran.stderr.contains("in 1 file are not applied yet"),
        "{ran}"
    );
    server.stop().expect(0);
    run(&["process", "--data-dir", arg(&data)]).expect(0);
    let ran = run(&["query", "--data-dir", arg(&data), "--json"]).expect(0);
    let all: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(
        (&all["events"], &all["pendingBytes"]),
        (&json!(1), &json!(0))
    );
}

#[test]
fn arrays_are_read_in_bounded_memory() {
    // Fails if only the last element counts, or if the whole array is held in memory.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let path = scratch.path().join("array.json");
    let mut file = std::io::BufWriter::new(File::create(&path).unwrap());
    let events = 400_000;
    for number in 0..events {
        let start = if number == 0 { '[' } else { ',' };
        let event = event("u", number);
        write!(file, "{start}{}", event.trim_end()).unwrap();
    }
    write!(file, "]").unwrap();
    file.into_inner().unwrap();
    assert!(fs::metadata(&path).unwrap().len() > 16 << 20);
    let url = server.url();
    let args = [
        "send",
        arg(&path),
        "--to",
        &url,
        "--batch",
        "5000",
        "--json",
    ];
    let mut process = Process::start(&mut tallyline(&args));
    let mut peak = 0;
    until(PATIENCE, "the file is sent", || {
        let status =
            fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
        peak = peak.max(kib.unwrap_or(0));
        process.exited()
    });
    let ran = process.finish().expect(0);
    assert_eq!(summary(&ran)["accepted"], events, "{ran}");
    assert!(peak > 0 && peak < 64 << 10, "{peak} KiB");
    let pretty = scratch.file("pretty.json", "\u{feff}[\n  {\n    \"userId\": \"p\",\n    \"name\": \"add_revenue\",\n    \"value\": 1.5\n  }\n]\n");
    for _ in 0..2 {
        send(&server, &pretty, &["--source", "pretty"]).expect(0);
    }
    let stdin = fs::read(&pretty).unwrap();
    run_with_input(&["send", "-", "--to", &url], &stdin).expect(0);
    assert_eq!(server.get("/userEvents/p").json()["revenue"], 3);
}

#[test]
fn a_byte_order_mark_at_the_very_start_is_ignored_everywhere() {
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let one = event("u", 1);
    let gzip = |text: &str| {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(text.as_bytes()).unwrap();
        gzip.finish().unwrap()
    };
    for body in [
        format!("\u{feff}{one}"),
        format!("\u{feff}{one}{one}"),
        format!("\u{feff}[{one},{one}]"),
        format!("\u{feff}\n{one}"),
    ] {
        server.accept(&body);
        let zipped = Request::new("POST", "/liveEvent").header("Content-Encoding", "gzip");
        server.ask(&zipped.body(gzip(&body))).expect(202);
    }
    let cloud = "\u{feff}{\"specversion\":\"1.0\",\"id\":\"1\",\"source\":\"/s\",\"type\":\"add_revenue\",\"subject\":\"u\",\"data\":{\"value\":1}}";
    let request =
        Request::new("POST", "/liveEvent").header("Content-Type", "application/cloudevents+json");
    server.ask(&request.body(cloud)).expect(202);
    server.post("/liveEvent", "\u{feff}").problem(400);
    server
        .post("/liveEvent", format!("{one}\u{feff}{one}"))
        .problem(400);
    let file = scratch.file("e.jsonl", format!("\u{feff}{one}{one}"));
    send(&server, &file, &[]).expect(0);
    let file = scratch.file("e.jsonl.gz", gzip(&format!("\u{feff}{one}")));
    send(&server, &file, &[]).expect(0);
    server.flush();
    assert_eq!(
        server.assert_balanced()["applied"],
        2 * (1 + 2 + 2 + 1) + 1 + 3
    );
}

#[test]
fn other_formats_are_reported_before_anything_is_sent() {
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let utf_16: Vec<u8> = event("u", 1)
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    for (name, bytes, text) in [
        ("a.csv", &b"userId,name,value\nu,add_revenue,1\n"[..], "CSV"),
        ("b.jsonl", &utf_16, "iconv -f UTF-16"),
        ("c.zip", b"PK\x03\x04\x14\0\0\0", "unzip -p"),
        ("d.zst", b"\x28\xb5\x2f\xfd\x24", "zstd -dc"),
    ] {
        let file = scratch.file(name, bytes);
        let ran = send(&server, &file, &[]).expect(1);
        assert!(
            ran.stderr.contains(text) && ran.stderr.contains(arg(&file)),
            "{ran}"
        );
        let ran = run_with_input(&["send", "-", "--to", &server.url()], bytes).expect(1);
        assert!(ran.stderr.contains(text), "{ran}");
    }
    assert_eq!(server.counter("received"), 0);
    let left: Vec<_> = super::harness::names_in(scratch.path());
    assert!(!left.iter().any(|name| name.contains("state")), "{left:?}");
}

#[test]
fn a_fifo_is_read_and_other_special_files_are_reported() {
    // Fails if `send` waits for a FIFO or reads a device for ever, or does not report a socket, a
    // directory or a link.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let at = |name: &str| scratch.path().join(name);
    let _socket = UnixListener::bind(at("socket")).unwrap();
    symlink("nowhere", at("dangling")).unwrap();
    symlink("loop", at("loop")).unwrap();
    fs::create_dir(at("dir")).unwrap();
    for (name, text) in [
        ("socket", "it is a socket"),
        (
            "dangling",
            "a symbolic link to nowhere, which does not exist",
        ),
        ("loop", "symbolic links"),
        ("dir", "it is a directory"),
        ("absent", "there is no such file"),
    ] {
        let ran = send(&server, &at(name), &[]).expect(1);
        assert!(
            ran.stderr.contains(text) && ran.stderr.contains(arg(&at(name))),
            "{ran}"
        );
        assert!(!at(&format!("{name}.tallyline-state")).exists());
    }
    let secret = scratch.file("secret", event("u", 1));
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o000)).unwrap();
    if File::open(&secret).is_err() {
        let ran = send(&server, &secret, &[]).expect(1);
        assert!(ran.stderr.contains("Permission denied"), "{ran}");
    }
    send(&server, Path::new("/dev/null"), &[]).expect(0);
    let ran = send(&server, Path::new("/dev/zero"), &[]).expect(1);
    assert!(
        ran.stderr
            .contains("/dev/zero further: line 1 has not ended"),
        "{ran}"
    );
    let fifo = at("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        0o600.into(),
        0,
    )
    .unwrap();
    let file = scratch.file("e.jsonl", event("u", 1));
    for flags in [["--follow", arg(&fifo)], ["--state", arg(&fifo)]] {
        let file = if flags[0] == "--follow" { &fifo } else { &file };
        let flags = if flags[0] == "--follow" {
            &flags[..1]
        } else {
            &flags[..]
        };
        let ran = send(&server, file, flags).expect(1);
        assert!(ran.stderr.contains("a FIFO"), "{ran}");
    }
    let writing = fifo.clone();
    let writer = thread::spawn(move || {
        let mut fifo = File::options().write(true).open(writing).unwrap();
        fifo.write_all(event("piped", 1).as_bytes()).unwrap();
    });
    send(&server, &fifo, &[]).expect(0);
    writer.join().unwrap();
    assert_eq!(
        server.get("/userEvents/piped").expect(200).json()["events"],
        1
    );
    assert!(!at("fifo.tallyline-state").exists());
}

#[test]
fn a_file_name_that_is_not_utf_8_is_supported() {
    // Fails if the state or the summary cannot be written for a name that is not UTF-8.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let file = scratch.path().join(OsStr::from_bytes(b"caf\xe9.jsonl"));
    fs::write(&file, event("u", 1)).unwrap();
    let url = server.url();
    let mut command = tallyline(&["send", "--to", &url, "--json"]);
    let ran = Process::start(command.arg(&file)).finish().expect(0);
    assert_eq!(summary(&ran)["accepted"], 1, "{ran}");
    Process::start(command.arg("--quiet")).finish().expect(2);
}

#[test]
fn a_file_of_which_nothing_was_accepted_can_be_sent_again() {
    // Fails if an empty file that is sent by a timer is reported as an error the second time.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let file = scratch.file("empty.jsonl", "\n");
    for _ in 0..2 {
        let ran = send(&server, &file, &[]).expect(0);
        assert!(ran.stdout.contains("OK"), "{ran}");
    }
    let file = scratch.file("bad.jsonl", "{\"userId\": 7}\n");
    for _ in 0..2 {
        send(&server, &file, &[]).expect(3);
    }
}

#[test]
fn a_state_file_of_the_former_format_is_continued() {
    // Fails if an unfinished run starts from the beginning after an update of the program.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let text = event("u", 1) + &event("u", 2);
    let file = scratch.file("e.jsonl", &text);
    let mut crc = flate2::Crc::new();
    crc.update(text.as_bytes());
    let first = event("u", 1).len();
    scratch.file("e.jsonl.tallyline-state", format!(
        r#"{{"version":1,"run":"20261122T064100Z-0badcafe","ids":"run","input":"e.jsonl","device":1,"inode":2,"lines":1,"bytes":{first},"accepted":1,"refused":0,"checkedBytes":{},"checkedCrc32":{},"settled":true}}"#,
        text.len(),
        crc.sum()
    ));
    let ran = send(&server, &file, &["--json"]).expect(0);
    let summary = summary(&ran);
    assert_eq!(
        (&summary["accepted"], &summary["run"]),
        (&json!(1), &json!("20261122T064100Z-0badcafe"))
    );
    send(&server, &file, &[]).expect(2);
}

#[test]
fn the_input_is_never_used_for_rejects() {
    // Fails if the input is truncated because another name of it is given to --rejects.
    let scratch = Scratch::new();
    let file = scratch.file("e.jsonl", event("u", 1));
    let hard = scratch.path().join("hard");
    fs::hard_link(&file, &hard).unwrap();
    let soft = scratch.path().join("soft");
    symlink(&file, &soft).unwrap();
    let to = ["--to", "http://127.0.0.1:1", "--retry-for", "0s"];
    for other in [&file, &hard, &soft] {
        for flag in ["--rejects", "--state"] {
            let args = [&["send", arg(&file), flag, arg(other)], &to[..]].concat();
            let ran = run(&args).expect(2);
            assert!(ran.stderr.contains("is the file to send"), "{ran}");
            let args = [&["send", "-", flag, arg(other)], &to[..]].concat();
            let stdin = Stdio::from(File::open(&file).unwrap());
            let ran = Process::start(tallyline(&args).stdin(stdin))
                .finish()
                .expect(2);
            assert!(ran.stderr.contains("is the file to send"), "{ran}");
        }
    }
    let appended = File::options().append(true).open(&hard).unwrap();
    let mut command = tallyline(&[&["send", arg(&file)], &to[..]].concat());
    assert_eq!(
        command.stdout(appended).output().unwrap().status.code(),
        Some(2)
    );
    let both = [
        &["send", arg(&file), "--rejects", "x", "--state", "x"],
        &to[..],
    ]
    .concat();
    run(&both).expect(2);
    assert_eq!(fs::read_to_string(&file).unwrap(), event("u", 1));
}

#[test]
fn an_invalid_port_is_rejected() {
    // Fails if it is replaced by port 80, which then receives the token.
    let ran = run(&["send", "--to", "http://127.0.0.1:99999"]).expect(2);
    assert!(
        ran.stderr.contains("\"99999\", which is not 1 to 65535"),
        "{ran}"
    );
}

#[test]
fn retry_after_is_limited_by_retry_for() {
    // Fails (after a minute) if Retry-After takes precedence over --retry-for.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut stream = stream;
            let mut head = [0; 4096];
            let _some = stream.read(&mut head);
            let answer = "HTTP/1.1 503 Busy\r\nRetry-After: Fri, 31 Dec 9999 23:59:59 GMT\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            let _gone = stream.write_all(answer.as_bytes());
        }
    });
    let scratch = Scratch::new();
    let file = scratch.file("e.jsonl", event("u", 1));
    let ran = run(&["send", arg(&file), "--to", &url, "--retry-for", "300ms"]).expect(1);
    assert!(ran.stderr.contains("gave up after 300ms"), "{ran}");
}

#[test]
fn loopback_requests_bypass_a_proxy() {
    // Fails if requests of `send` to its own machine go through a proxy.
    let scratch = Scratch::new();
    let mut demo = tallyline(&["demo", "--exit", "--listen", "127.0.0.1:0"]);
    for name in ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"] {
        demo.env(name, "http://127.0.0.1:1");
    }
    let ran = Process::start(demo.current_dir(scratch.path()))
        .finish()
        .expect(0);
    assert!(ran.stdout.contains("user1"), "{ran}");
}

#[test]
fn rejected_lines_are_counted_once_by_the_server() {
    // Fails if lines that the response does not list are sent again: 1000 were counted 3000 times.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let file = scratch.file("bad.jsonl", "{\"userId\": 7}\n".repeat(1000));
    send(&server, &file, &[]).expect(3);
    assert_eq!(server.assert_balanced()["refused"], 1000);
}

#[test]
fn a_deleted_archived_file_is_listed_as_missing() {
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    server.accept(event("u", 1));
    server.flush();
    let first = || {
        let listed = server.get("/segments").expect(200).json();
        listed["segments"][0].clone()
    };
    let file = until(PATIENCE, "the segment is archived", || {
        let file = first()["file"].as_str()?.to_owned();
        file.starts_with("applied/").then_some(file)
    });
    assert_eq!(first()["state"], "applied");
    fs::remove_file(scratch.data().join(file)).unwrap();
    let gone = first();
    assert_eq!(
        (&gone["state"], &gone["file"]),
        (&json!("file_missing"), &Value::Null)
    );
}

#[test]
fn copytruncate_of_a_followed_file_is_detected_by_content() {
    // Fails if only the length of the file is checked: the new content is longer than the old one
    // at the next poll, and its first lines were skipped. The line that exists only in the copy is
    // read from the copy.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let lines = |values: std::ops::RangeInclusive<u64>| -> String {
        values.map(|value| event(&format!("u{value}"), 1)).collect()
    };
    let file = scratch.file("app.jsonl", lines(1..=5));
    let url = server.url();
    let sender = Process::start(&mut tallyline(&[
        "send",
        arg(&file),
        "--to",
        &url,
        "--follow",
    ]));
    let accepted = |count: u64| {
        until(PATIENCE, "the lines are sent", || {
            (server.counter("accepted") >= count).then_some(())
        });
    };
    accepted(5);
    scratch.file("app.jsonl.1", lines(1..=6));
    let mut replaced = File::options().write(true).open(&file).unwrap();
    replaced.write_all(lines(100..=120).as_bytes()).unwrap();
    accepted(27);
    sender.signal(Signal::TERM);
    sender.finish().expect(0);
    server.flush();
    assert_eq!(server.counter("applied"), 27);
    for user in (1..=6).chain(100..=120) {
        let shown = server.get(&format!("/userEvents/u{user}")).expect(200);
        assert_eq!(shown.json()["events"], 1, "u{user}");
    }
}

#[test]
fn conflicts_of_events_with_own_ids_are_listed_and_duplicates_are_not() {
    // Fails if only lines with generated ids are looked up among the rejected ones.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let own =
        |id: &str, value: u64| event("u", value).replacen('{', &format!("{{\"id\":\"{id}\","), 1);
    server
        .post(
            "/liveEvent?ack=applied",
            own("a", 1) + &own("b", 1) + &own("c", 1),
        )
        .expect(200);
    // Conflicts of another sender, before or meanwhile, are not listed.
    server
        .post("/liveEvent?ack=applied", own("c", 9))
        .expect(200);
    // A duplicate, two conflicts of one line, an event without an id, another conflict, a new one.
    let text = own("a", 1) + &own("a", 2).repeat(2) + &event("u", 1) + &own("b", 3) + &own("d", 1);
    let file = scratch.file("e.jsonl", text);
    let rejects = scratch.path().join("bad.jsonl");
    for flags in [vec![], vec!["--no-ids"], vec!["--source", "s"]] {
        let mut flags = flags;
        flags.extend(["--json", "--again", "--rejects", arg(&rejects)]);
        let ran = send(&server, &file, &flags).expect(3);
        assert_eq!(summary(&ran)["rejected"], 3, "{ran}");
        let listed: Vec<(u64, String)> = fs::read_to_string(&rejects)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap())
            .map(|line| {
                (
                    line["line"].as_u64().unwrap(),
                    line["code"].as_str().unwrap().to_owned(),
                )
            })
            .collect();
        let conflict = "id_conflict".to_owned();
        let expected = [2, 3, 5].map(|line| (line, conflict.clone()));
        assert_eq!(listed, expected, "{flags:?}");
    }
    let good = scratch.file("good.jsonl", own("a", 1) + &own("e", 1));
    let ran = send(&server, &good, &["--json"]).expect(0);
    assert_eq!(summary(&ran)["rejected"], 0, "{ran}");
}

#[test]
fn a_file_edited_after_it_was_sent_is_rejected() {
    // Fails if it is treated as a new file: the lines that were not edited would count twice.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let lines =
        |values: &[u64]| -> String { values.iter().map(|value| event("u", *value)).collect() };
    let file = scratch.file("e.jsonl", lines(&[1, 2, 3]));
    send(&server, &file, &[]).expect(0);
    for (what, edited) in [
        ("a line changed", lines(&[1, 7, 3])),
        ("a line changed, and it has grown", lines(&[1, 7, 3, 4])),
        ("a line inserted", lines(&[9, 1, 2, 3])),
        ("a line removed", lines(&[1, 3])),
        ("its end removed", lines(&[1, 2])),
    ] {
        // As most editors do, by writing a new file.
        let new = scratch.file("new", edited);
        fs::rename(new, &file).unwrap();
        let ran = send(&server, &file, &[]).expect(2);
        let path = file.to_str().unwrap();
        assert!(
            ran.stderr.contains(path) && ran.stderr.contains("--again"),
            "{what}: {ran}"
        );
        assert_eq!(server.counter("applied"), 3, "{what}");
        let ran = send(&server, &file, &["--json"]).expect(2);
        assert_eq!(summary(&ran)["outcome"], "edited", "{what}: {ran}");
    }
    // The former content with lines appended.
    fs::write(&file, lines(&[1, 2, 3, 4])).unwrap();
    send(&server, &file, &[]).expect(0);
    assert_eq!(server.counter("applied"), 4);
    fs::write(&file, lines(&[5])).unwrap();
    send(&server, &file, &["--again"]).expect(0);
    assert_eq!(server.counter("applied"), 5);
    send(&server, &file, &[]).expect(2);
    assert_eq!(server.assert_balanced()["duplicates"], 0);
}
