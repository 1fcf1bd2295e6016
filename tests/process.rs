//! `tallyline process`: files without a server, from elsewhere, damaged, or given twice.

use std::fs;
use std::path::{Path, PathBuf};

use super::harness::recount::open_database;
use super::harness::{
    PATIENCE, Ran, Scratch, Server, Totals, arg, database, event, files_below, names_in, recount,
    recount_files, run, until,
};

/// The original system's name for a file.
const FOREIGN: &str = "events_1700000000000.jsonl";

#[track_caller]
fn process(data: &Path) -> Ran {
    run(&["process", "--data-dir", arg(data)])
}

fn totals(pairs: &[(&str, i128, u64)]) -> Totals {
    pairs
        .iter()
        .map(|(user, revenue, events)| ((*user).to_owned(), (revenue * 1_000_000, *events)))
        .collect()
}

/// Where a file of this name lies in the archive.
fn archived(data: &Path, name: &str) -> Option<PathBuf> {
    files_below(&data.join("applied"))
        .into_iter()
        .find(|path| path.file_name().is_some_and(|found| found == name))
}

#[test]
fn files_of_the_original_system_are_applied_and_put_away() {
    // Red if a file that another program wrote is passed over, or its last line without a newline.
    let scratch = Scratch::new();
    let data = scratch.data();
    let content = format!("{}{}", event("user1", 100), event("user2", 200).trim_end());
    let file = scratch.file(&format!("data/{FOREIGN}"), content);
    scratch.file("data/events-old-style.jsonl", event("user1", 1));
    scratch.file("data/notes.txt", "not events");
    process(&data).expect(0);
    assert_eq!(
        database(&data),
        totals(&[("user1", 101, 2), ("user2", 200, 1)])
    );
    assert!(!file.exists() && archived(&data, FOREIGN).is_some());
    assert!(data.join("notes.txt").exists());
    process(&data).expect(0);
    assert_eq!(database(&data)["user1"].1, 2, "nothing left to do");
}

#[test]
fn files_named_are_copied_in_and_counted_once() {
    // Red if `process FILE` moves or changes somebody's file, or counts it again the next time.
    let scratch = Scratch::new();
    let data = scratch.data();
    let file = scratch.file("elsewhere/march.jsonl", event("u", 3));
    let args = ["process", "--data-dir", arg(&data), arg(&file)];
    for _ in 0..3 {
        run(&args).expect(0);
        assert_eq!(database(&data), totals(&[("u", 3, 1)]));
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), event("u", 3));
    assert!(archived(&data, "events_march.jsonl").is_some());
    let missing = scratch.path().join("april.jsonl");
    let ran = run(&["process", "--data-dir", arg(&data), arg(&missing)]).expect(1);
    assert!(ran.stderr.contains("april.jsonl"), "{ran}");
}

#[test]
fn a_name_already_applied_with_other_content_is_refused_and_left_alone() {
    // Red if a changed file is counted on top of the old one, or skipped without a word.
    let scratch = Scratch::new();
    let data = scratch.data();
    scratch.file(&format!("data/{FOREIGN}"), event("u", 3));
    process(&data).expect(0);
    let same = scratch.file(&format!("data/{FOREIGN}"), event("u", 3));
    process(&data).expect(0);
    assert_eq!(
        database(&data),
        totals(&[("u", 3, 1)]),
        "same content: skipped"
    );
    for other in [
        event("u", 4),
        format!("{}{}", event("u", 3), event("u", 4)),
        String::new(),
    ] {
        fs::write(&same, &other).unwrap();
        scratch.file("data/events_beside.jsonl", event("v", 1));
        let ran = process(&data).expect(1);
        assert!(ran.to_string().contains(FOREIGN), "{ran}");
        assert_eq!(fs::read_to_string(&same).unwrap(), other, "left alone");
        assert_eq!(
            database(&data),
            totals(&[("u", 3, 1), ("v", 1, 1)]),
            "the rest goes on"
        );
    }
}

#[test]
fn lines_that_are_no_events_are_recorded_with_offset_and_reason() {
    // Red if a bad line stops the file, vanishes, or is recorded at the wrong place.
    let scratch = Scratch::new();
    let data = scratch.data();
    let bad = [
        "nonsense",
        r#"{"userId":"u","name":"add_revenue","value":-1}"#,
        "\u{0}\u{0}\u{0}",
    ];
    let mut content = event("u", 1);
    let mut offsets = Vec::new();
    for line in bad {
        offsets.push(i64::try_from(content.len()).unwrap());
        content.push_str(&format!("{line}\n{}", event("u", 1)));
    }
    scratch.file(&format!("data/{FOREIGN}"), content);
    process(&data).expect(3);
    assert_eq!(database(&data), totals(&[("u", 4, 4)]));
    let db = open_database(&data);
    let mut statement = db
        .prepare("SELECT segment, \"offset\", reason FROM rejected_line ORDER BY \"offset\"")
        .unwrap();
    let rows: Vec<(String, i64, String)> = statement
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert_eq!(
        rows.iter().map(|row| row.1).collect::<Vec<_>>(),
        offsets,
        "{rows:?}"
    );
    assert!(rows.iter().all(|row| row.0 == FOREIGN), "{rows:?}");
    assert!(rows[1].2.contains("value"), "{rows:?}");
    process(&data).expect(0); // said once: nothing new was rejected
}

#[test]
fn ids_count_once_across_files_and_contradictions_are_rejected() {
    // Red if an id is forgotten between files, or a second meaning of an id is counted.
    let scratch = Scratch::new();
    let data = scratch.data();
    let with_id = |value: u64| {
        format!("{{\"userId\":\"u\",\"name\":\"add_revenue\",\"value\":{value},\"id\":\"a\"}}\n")
    };
    scratch.file("data/events_1.jsonl", with_id(5).repeat(2));
    process(&data).expect(0);
    scratch.file("data/events_2.jsonl", with_id(5));
    process(&data).expect(0);
    scratch.file("data/events_3.jsonl", with_id(6));
    process(&data).expect(3);
    assert_eq!(database(&data), totals(&[("u", 5, 1)]));
    assert_eq!(recount(&data).users, database(&data));
    run(&["verify", "--data-dir", arg(&data)]).expect(0);
}

#[test]
fn what_a_dead_server_left_is_sealed_and_counted() {
    // Red if acknowledged lines wait in events.jsonl for a server that never comes back, or if the
    // half line of the crash is counted or silently thrown away.
    let scratch = Scratch::new();
    let data = scratch.data();
    let server = Server::with(&data, &["--no-process"]);
    server.accept(event("u", 1).repeat(3));
    server.kill();
    let active = data.join("events.jsonl");
    let torn = "{\"userId\":\"u\",\"na";
    let bytes = [&*fs::read(&active).unwrap(), torn.as_bytes()].concat();
    fs::write(&active, bytes).unwrap();
    process(&data).expect(0);
    assert_eq!(database(&data), totals(&[("u", 3, 3)]));
    let quarantined = files_below(&data.join("quarantine"));
    assert!(
        quarantined
            .iter()
            .any(|path| fs::read_to_string(path).unwrap().contains(torn)),
        "the torn line is kept: {quarantined:?}"
    );
    // The number lives on: the next server goes on after it.
    let server = Server::start(&data);
    let next = server.accept(event("u", 1));
    assert!(next.starts_with("2-"), "{next}");
}

#[test]
fn a_deleted_database_is_made_again_from_the_files() {
    // Red if the files are not the whole truth, the archive included.
    let scratch = Scratch::new();
    let data = scratch.data();
    let server = Server::with(&data, &["--rotate-bytes", "4KiB"]);
    for value in 0..400 {
        server.accept(event(&format!("u{}", value % 13), value));
    }
    server.stop().expect(0);
    scratch.file(&format!("data/{FOREIGN}"), event("u1", 7));
    process(&data).expect(0);
    let before = database(&data);
    fs::remove_file(data.join("revenue.db")).unwrap();
    process(&data).expect(0);
    assert_eq!(database(&data), before);
    assert_eq!(recount(&data).users, before);
    run(&["process", "--data-dir", arg(&data), "--rebuild"]).expect(0);
    assert_eq!(database(&data), before);
    run(&["verify", "--data-dir", arg(&data)]).expect(0);
}

#[test]
fn a_running_server_is_the_processor_and_a_second_one_is_told_so() {
    // Red if two processors share a database, or if the refusal does not name the first.
    let scratch = Scratch::new();
    let data = scratch.data();
    let server = Server::start(&data);
    let ran = process(&data).expect(1);
    let pid = server.process.id().to_string();
    assert!(ran.stderr.contains(&pid), "pid {pid}: {ran}");
    // A file put there is the running server's to apply, without a restart.
    scratch.file("data/events_late.jsonl", event("late", 2));
    server.post("/flush", "").expect(200);
    until(PATIENCE, "the file put there is applied", || {
        (server.get("/userEvents/late").status == 200).then_some(())
    });
    server.assert_balanced();
}

#[test]
fn processing_beside_a_taking_server_leaves_its_active_file_alone() {
    // Red if `process` seals or reads the file that a running server appends to.
    let scratch = Scratch::new();
    let data = scratch.data();
    let server = Server::with(&data, &["--no-process"]);
    server.accept(event("sealed", 1));
    server.post("/flush", "").problem(503); // rotated; nobody applies here
    server.accept(event("active", 1));
    process(&data).expect(0);
    assert_eq!(database(&data), totals(&[("sealed", 1, 1)]));
    server.accept(event("active", 1));
    server.stop().expect(0);
    process(&data).expect(0);
    assert_eq!(
        database(&data),
        totals(&[("active", 2, 2), ("sealed", 1, 1)])
    );
}

#[test]
fn however_the_lines_are_cut_into_files_the_totals_are_the_same() {
    // Red if totals depend on order, file borders, or what lies together in a chunk.
    let scratch = Scratch::new();
    let lines: Vec<String> = (0..3000u64)
        .map(|n| event(&format!("u{}", n * n % 97), n % 1000))
        .collect();
    let whole = scratch.file("whole.jsonl", lines.concat());
    let truth = recount_files(&[whole]).users;
    for (name, files) in [("one", 1), ("many", 11)] {
        let data = scratch.path().join(name);
        fs::create_dir(&data).unwrap();
        for part in 0..files {
            // Dealt like cards: neighbours come apart.
            let dealt: String = lines
                .iter()
                .skip(part)
                .step_by(files)
                .rev()
                .cloned()
                .collect();
            fs::write(data.join(format!("events_{part}.jsonl")), dealt).unwrap();
        }
        process(&data).expect(0);
        assert_eq!(database(&data), truth, "{files} files");
        assert_eq!(names_in(&data.join("quarantine")), Vec::<String>::new());
    }
}

#[test]
fn a_total_past_64_bits_rejects_the_line_that_overflows() {
    // Red if a sum wraps round, or if one overflow takes the rest of the file with it.
    let scratch = Scratch::new();
    let data = scratch.data();
    let most = event("rich", 1_000_000_000_000);
    scratch.file(
        &format!("data/{FOREIGN}"),
        format!("{}{}", most.repeat(10), event("other", 1)),
    );
    process(&data).expect(3);
    let most_events = 9; // 9 * 10^18 micros fit into 63 bits, 10 * 10^18 don't
    assert_eq!(
        database(&data),
        totals(&[("other", 1, 1), ("rich", 9_000_000_000_000, most_events)])
    );
    run(&["verify", "--data-dir", arg(&data)]).expect(0);
}

#[test]
fn memory_is_bounded_whatever_there_is_to_apply() {
    // Red if a range's users or ids, or what sorting them takes, are not counted against --memory:
    // these come to over 90 MiB when they are applied at once.
    const BOUND_MIB: u64 = 32;
    let scratch = Scratch::new();
    let lines: String = (0..200_000)
        .map(|n| {
            format!(
                "{{\"userId\":\"user{n}\",\"name\":\"add_revenue\",\"value\":1}}\n\
                 {{\"userId\":\"user{n}\",\"name\":\"add_revenue\",\"value\":1,\"id\":\"{n}\"}}\n"
            )
        })
        .collect();
    scratch.file(&format!("data/{FOREIGN}"), lines);
    let flags = ["--memory", &format!("{BOUND_MIB}MiB")];
    let server = Server::with(&scratch.data(), &flags);
    until(PATIENCE, "all to be applied", || {
        (server.counter("applied") == 400_000).then_some(())
    });
    let peak_mib = server.proc_status("VmHWM") >> 10;
    assert!(peak_mib <= BOUND_MIB, "{peak_mib} MiB at the peak");
}
