//! Files without a label, which are known by their name: copied, renamed or moved after they were applied.
//! Two files may have the same lines, so both count; but the log and `verify` say so.

use std::fs;
use std::path::{Path, PathBuf};

use super::harness::{
    PATIENCE, Ran, Scratch, Server, arg, database, event, files_below, run, until,
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
