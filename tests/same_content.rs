//! Files whose events are counted already, and that a person gives to the program once more.
//!
//! Files without a label are known by their name: copied, renamed or moved after they were applied, they
//! count, because two files may have the same lines; but the log and `verify` say so. A segment is known by
//! its label: `send` refuses it.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use super::harness::{
    PATIENCE, Process, Ran, Scratch, Server, arg, database, event, files_below, run,
    run_with_input, tallyline, until,
};

#[track_caller]
fn process(data: &Path) -> Ran {
    run(&["process", "--data-dir", arg(data)]).expect(0)
}

#[track_caller]
fn verify(data: &Path, code: i32) -> String {
    run(&["verify", "--data-dir", arg(data)])
        .expect(code)
        .stdout
}

/// The archived file of that name.
#[track_caller]
fn archived(data: &Path, name: &str) -> PathBuf {
    let files = files_below(&data.join("applied"));
    files.into_iter().find(|path| path.ends_with(name)).unwrap()
}

/// A directory in which three events of u, without ids, were applied from events_a.jsonl.
fn applied(scratch: &Scratch) -> PathBuf {
    let data = scratch.data();
    fs::create_dir_all(&data).unwrap();
    fs::write(data.join("events_a.jsonl"), event("u", 1).repeat(3)).unwrap();
    process(&data);
    data
}

const SAME: &str = "events_b.jsonl has the same length";

#[test]
fn a_copy_of_an_imported_file_under_another_name_is_reported() {
    // Fails if its events count twice and neither `process` nor `verify` says so, or if the advice does not
    // undo it.
    let scratch = Scratch::new();
    let data = applied(&scratch);
    fs::copy(
        archived(&data, "events_a.jsonl"),
        data.join("events_b.jsonl"),
    )
    .unwrap();
    let ran = process(&data);
    assert!(ran.stderr.contains(SAME), "{ran}");
    assert!(ran.stderr.contains("as events_a.jsonl"), "{ran}");
    assert_eq!(database(&data)["u"].1, 6);
    let found = verify(&data, 0);
    assert!(found.contains(SAME), "{found}");
    let away = scratch.path().join("events_b.jsonl");
    fs::rename(archived(&data, "events_b.jsonl"), away).unwrap();
    let ran = run(&["process", "--rebuild", "--data-dir", arg(&data)]).expect(0);
    assert!(!ran.stderr.contains("same length"), "{ran}");
    assert_eq!(database(&data)["u"].1, 3);
    let found = verify(&data, 0);
    assert!(!found.contains("same length"), "{found}");
}

#[test]
fn a_server_logs_a_copy_of_an_imported_file_once() {
    // Fails if only `process` notices a copy, or if every round logs it again.
    let scratch = Scratch::new();
    let data = applied(&scratch);
    let server = Server::with(&data, &["--flush-interval", "10ms"]);
    // Moved within the archive's file system, as a person does who renames a file.
    fs::rename(
        archived(&data, "events_a.jsonl"),
        data.join("events_b.jsonl"),
    )
    .unwrap();
    until(PATIENCE, "the log names it", || {
        server.process.stderr().contains(SAME).then_some(())
    });
    // A second file in a later round.
    fs::write(data.join("events_c.jsonl"), event("v", 1)).unwrap();
    until(PATIENCE, "it is archived", || {
        (files_below(&data.join("applied")).len() == 2).then_some(())
    });
    let ran = server.stop().expect(0);
    assert_eq!(ran.stderr.matches("the same length").count(), 1, "{ran}");
    // The renamed file is also missing under its former name.
    let found = verify(&data, 1);
    assert!(found.contains("events_a.jsonl is missing"), "{found}");
    assert!(found.contains(SAME), "{found}");
}

#[test]
fn files_with_ids_or_with_other_lines_are_no_copies() {
    // Fails if files that count correctly are reported: copies whose events have ids, and other events of
    // the same length.
    let scratch = Scratch::new();
    let data = applied(&scratch);
    let with_id = r#"{"userId":"w","name":"add_revenue","value":1,"id":"a"}"#;
    for (name, lines) in [
        ("events_b.jsonl", event("v", 1).repeat(3)),
        ("events_c.jsonl", format!("{with_id}\n")),
        ("events_d.jsonl", format!("{with_id}\n")),
        ("events_e.jsonl", String::new()),
        ("events_f.jsonl", String::new()),
    ] {
        fs::write(data.join(name), lines).unwrap();
    }
    let ran = process(&data);
    assert!(!ran.stderr.contains("same length"), "{ran}");
    let found = verify(&data, 0);
    assert!(!found.contains("same length"), "{found}");
    let totals = database(&data);
    assert_eq!((totals["u"].1, totals["v"].1, totals["w"].1), (3, 3, 1));
}

#[test]
fn copies_applied_together_are_reported() {
    // Fails if a file is compared only with files of earlier transactions.
    let scratch = Scratch::new();
    let data = applied(&scratch);
    for name in ["events_x.jsonl", "events_y.jsonl"] {
        fs::write(data.join(name), event("v", 1)).unwrap();
    }
    let ran = process(&data);
    assert_eq!(ran.stderr.matches("the same length").count(), 1, "{ran}");
    let found = verify(&data, 0);
    assert_eq!(found.matches("the same length").count(), 1, "{found}");
}

#[test]
fn a_segment_is_not_sent_to_the_server_that_wrote_it() {
    // Fails if its events count twice: `tallyline send` in the data directory sends events.jsonl, which the
    // server appends to; with `--follow` it would never end.
    let scratch = Scratch::new();
    let data = scratch.data();
    let server = Server::start(&data);
    server.accept(event("u", 1).repeat(3));
    let active = data.join("events.jsonl");
    let send = |url: &str, file: &Path, flags: &[&str]| {
        let mut command = tallyline(&["send", arg(file), "--to", url]);
        command.args(flags).current_dir(scratch.path());
        Process::start(&mut command).finish()
    };
    let refused = |ran: &Ran| {
        assert!(ran.stderr.contains("it is segment 1 of the data"), "{ran}");
        assert!(ran.stderr.contains("--again"), "{ran}");
    };
    let url = server.url();
    for flags in [&[][..], &["--follow"], &["--no-ids"], &["--source", "a"]] {
        refused(&send(&url, &active, flags).expect(2));
    }
    let ran = send(&url, &active, &["--json"]).expect(2);
    assert!(ran.stdout.contains("ownSegment"), "{ran}");
    server.flush();
    let sealed = until(PATIENCE, "it is archived", || {
        files_below(&data.join("applied")).pop()
    });
    refused(&send(&url, &sealed, &[]).expect(2));
    let text = fs::read(&sealed).unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&text).unwrap();
    let compressed = scratch.file("copy.jsonl.gz", gzip.finish().unwrap());
    refused(&send(&url, &compressed, &[]).expect(2));
    let ran = run_with_input(&["send", "-", "--to", &url], &text).expect(2);
    assert!(ran.stderr.contains("it is segment 1 of the data"), "{ran}");
    server.flush();
    assert_eq!(database(&data)["u"].1, 3);
    // To another directory, or on demand.
    let other = Server::start(&scratch.path().join("other"));
    send(&other.url(), &sealed, &[]).expect(0);
    assert_eq!(other.counter("applied"), 3);
    send(&url, &sealed, &["--again"]).expect(0);
    assert_eq!(server.counter("applied"), 6);
}
