//! `tallyline process`: files without a server, imported, damaged, or named twice.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use tallyline::data_dir::segment::label_in_name;

use super::harness::suite::{delete_database, number};
use super::harness::{
    PATIENCE, Ran, Scratch, Server, Totals, arg, copy_tree, database, event, files_below, names_in,
    recount, recount_files, run, until,
};

/// A file name of the original system.
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

/// The path of a file with this name in the archive.
fn archived(data: &Path, name: &str) -> Option<PathBuf> {
    files_below(&data.join("applied"))
        .into_iter()
        .find(|path| path.file_name().is_some_and(|found| found == name))
}

#[test]
fn files_of_the_original_system_are_applied_and_put_away() {
    // Fails if a file of another program is not applied, or its last line without a newline is not.
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
    // Fails if `process FILE` moves or changes the named file, or counts it again the next time.
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
    // Fails if a changed file is counted in addition to the old one, or silently skipped.
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
    // Fails if an invalid line ends the processing of the file, is not recorded, or is recorded
    // with the wrong offset.
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
        offsets.push(content.len() as u64);
        content.push_str(&format!("{line}\n{}", event("u", 1)));
    }
    scratch.file(&format!("data/{FOREIGN}"), content);
    process(&data).expect(3);
    assert_eq!(database(&data), totals(&[("u", 4, 4)]));
    let listed = run(&["rejected", "--json", "--data-dir", arg(&data)]).expect(0);
    let listed: serde_json::Value = serde_json::from_str(&listed.stdout).unwrap();
    let mut rows = listed["rejected"].as_array().unwrap().clone();
    rows.reverse(); // the newest line is the first
    let found: Vec<_> = rows
        .iter()
        .map(|row| row["offset"].as_u64().unwrap())
        .collect();
    assert_eq!(found, offsets, "{rows:?}");
    assert!(rows.iter().all(|row| row["segment"] == FOREIGN), "{rows:?}");
    assert!(
        rows[1]["reason"].as_str().unwrap().contains("value"),
        "{rows:?}"
    );
    process(&data).expect(0); // reported once: nothing new was rejected
}

#[test]
fn ids_count_once_across_files_and_contradictions_are_rejected() {
    // Fails if an id is forgotten between files, or an event that contradicts an earlier one with
    // the same id is counted.
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
    // Fails if acknowledged lines stay in events.jsonl until a server is started, or if the torn
    // line of the crash is counted or silently deleted.
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
    // The number is not reused: the next server continues with the following one.
    let server = Server::start(&data);
    let next = server.accept(event("u", 1));
    assert!(next.starts_with("2-"), "{next}");
}

#[test]
fn a_deleted_database_is_made_again_from_the_files() {
    // Fails if the database cannot be rebuilt from the files, including the archived ones.
    let scratch = Scratch::new();
    let data = scratch.data();
    let server = Server::with(&data, &["--rotate-size", "4KiB"]);
    for value in 0..400 {
        server.accept(event(&format!("u{}", value % 13), value));
    }
    server.stop().expect(0);
    scratch.file(&format!("data/{FOREIGN}"), event("u1", 7));
    process(&data).expect(0);
    let before = database(&data);
    delete_database(&data);
    process(&data).expect(0);
    assert_eq!(database(&data), before);
    assert_eq!(recount(&data).users, before);
    run(&["process", "--data-dir", arg(&data), "--rebuild"]).expect(0);
    assert_eq!(database(&data), before);
    run(&["verify", "--data-dir", arg(&data)]).expect(0);
}

#[test]
fn a_running_server_is_the_processor_and_a_second_one_is_told_so() {
    // Fails if two processors share a database, or if the error does not name the first.
    let scratch = Scratch::new();
    let data = scratch.data();
    let server = Server::start(&data);
    let ran = process(&data).expect(1);
    let pid = server.process.id().to_string();
    assert!(ran.stderr.contains(&pid), "pid {pid}: {ran}");
    // A file that appears there is applied by the running server without a restart.
    scratch.file("data/events_late.jsonl", event("late", 2));
    server.post("/flush", "").expect(200);
    until(PATIENCE, "the file put there is applied", || {
        (server.get("/userEvents/late").status == 200).then_some(())
    });
    server.assert_balanced();
}

#[test]
fn processing_beside_a_taking_server_leaves_its_active_file_alone() {
    // Fails if `process` seals or reads the file that a running server appends to.
    let scratch = Scratch::new();
    let data = scratch.data();
    let server = Server::with(&data, &["--no-process"]);
    server.accept(event("sealed", 1));
    server.post("/flush", "").problem(503); // rotated; this server does not apply
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
    // Fails if totals depend on order, on file boundaries, or on which lines are in the same chunk.
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
            // Distributed in turn: adjacent lines are in different files.
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
    // Fails if a sum wraps around, or if the lines after an overflow are not counted.
    let scratch = Scratch::new();
    let data = scratch.data();
    let most = event("rich", 1_000_000_000_000);
    scratch.file(
        &format!("data/{FOREIGN}"),
        format!("{}{}", most.repeat(10), event("other", 1)),
    );
    process(&data).expect(3);
    let most_events = 9; // 9 * 10^18 micros fit into 63 bits, 10 * 10^18 do not
    assert_eq!(
        database(&data),
        totals(&[("other", 1, 1), ("rich", 9_000_000_000_000, most_events)])
    );
    run(&["verify", "--data-dir", arg(&data)]).expect(0);
}

#[test]
fn thousands_of_named_files_are_applied_and_named_again_nothing_is() {
    // Fails if a list of names is bounded by the descriptors of the process, or each file by a transaction.
    const FILES: u64 = 2000;
    let scratch = Scratch::new();
    let data = scratch.data();
    let mut args = vec![
        "process".to_owned(),
        "--data-dir".to_owned(),
        arg(&data).to_owned(),
    ];
    for number in 0..FILES {
        let path = scratch.file(
            &format!("in/{number}.jsonl"),
            event(&format!("u{}", number % 7), 1),
        );
        args.push(arg(&path).to_owned());
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let ran = run(&args).expect(0);
    assert!(ran.stdout.contains("2,000 files"), "{}", ran.stdout);
    let counted = database(&data);
    assert_eq!(counted.values().map(|total| total.1).sum::<u64>(), FILES);
    let times = "SELECT count(DISTINCT applied_at_ms) FROM segment";
    let commits = number(&data, times);
    assert!(commits <= 10, "{commits} transactions");
    run(&args).expect(0);
    assert_eq!(database(&data), counted);
}

#[test]
fn memory_is_bounded_whatever_there_is_to_apply() {
    // Fails if the users or ids of a range, or the memory for sorting them, are not counted against
    // --memory: they need over 90 MiB when they are applied at once.
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
    // PostgreSQL gets 400,000 rows from a debug build.
    until(PATIENCE * 3, "all to be applied", || {
        (server.counter("applied") == 400_000).then_some(())
    });
    let peak_mib = server.proc_status("VmHWM") >> 10;
    assert!(peak_mib <= BOUND_MIB, "{peak_mib} MiB at the peak");
}

/// Runs `process` with named files.
#[track_caller]
fn import(data: &Path, files: &[&Path]) -> Ran {
    let mut args = vec!["process", "--data-dir", arg(data)];
    args.extend(files.iter().map(|file| arg(file)));
    run(&args)
}

fn gzip(bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    packed.write_all(bytes.as_ref()).unwrap();
    packed.finish().unwrap()
}

/// The number of lines that the database has recorded as rejected.
fn rejected_lines(data: &Path) -> u64 {
    let count = number(data, "SELECT count(*) FROM rejected_line");
    count.try_into().unwrap()
}

fn rebuild_and_verify(data: &Path) {
    run(&["process", "--rebuild", "--data-dir", arg(data)]).expect(0);
    run(&["verify", "--data-dir", arg(data)]).expect(0);
}

/// Temporary files that an import left behind.
fn parts(data: &Path) -> Vec<String> {
    let mut names = names_in(data);
    names.retain(|name| name.contains(".part"));
    names
}

/// Archived native segments in order of their numbers.
fn native_files(data: &Path) -> Vec<PathBuf> {
    let mut files: Vec<(u64, PathBuf)> = files_below(&data.join("applied"))
        .into_iter()
        .filter_map(|path| {
            let label = label_in_name(path.file_name()?.to_str()?)?;
            Some((label.number, path))
        })
        .collect();
    files.sort();
    files.into_iter().map(|(_, path)| path).collect()
}

#[test]
fn a_fifo_that_is_named_keeps_its_events_for_the_cure() {
    // Fails if a FIFO is opened, which consumes events that are then lost, or if a special file
    // stops the processing of the others.
    let scratch = Scratch::new();
    let data = scratch.data();
    let fifo = scratch.path().join("fifo");
    assert!(
        Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .unwrap()
            .success()
    );
    let source = scratch.file("source", event("f", 7));
    let script = format!("exec cat '{}' > '{}'", arg(&source), arg(&fifo));
    let mut writer = Command::new("sh").args(["-c", &script]).spawn().unwrap();
    let good = scratch.file("good.jsonl", event("g", 1));
    let dir = scratch.path().join("dir");
    fs::create_dir(&dir).unwrap();
    let ran = import(&data, &[&fifo, &dir, &good]).expect(1);
    assert!(ran.stderr.contains("COMMAND > FILE.jsonl"), "{ran}");
    assert!(
        ran.stderr.contains(&format!("{}/*.jsonl", arg(&dir))),
        "{ran}"
    );
    assert_eq!(database(&data), totals(&[("g", 1, 1)]));
    // The fix.
    let copied = scratch.file("copied.jsonl", fs::read(&fifo).unwrap());
    assert!(writer.wait().unwrap().success());
    import(&data, &[&copied]).expect(0);
    assert_eq!(database(&data), totals(&[("f", 7, 1), ("g", 1, 1)]));
}

#[test]
fn a_file_that_may_not_be_read_is_named_and_the_others_go_on() {
    // Fails if the first file that cannot be opened ends the run.
    let scratch = Scratch::new();
    let data = scratch.data();
    fs::create_dir_all(&data).unwrap();
    let closed = scratch.file("closed.jsonl", event("c", 1));
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
    let good = scratch.file("good.jsonl", event("g", 1));
    let mut command = super::harness::tallyline(&[
        "process",
        "--data-dir",
        arg(&data),
        arg(&closed),
        arg(&good),
    ]);
    if rustix::process::geteuid().is_root() {
        // Root can read any file.
        for path in [scratch.path(), &data] {
            chown(path, Some(65534), Some(65534)).unwrap();
        }
        command.uid(65534).gid(65534);
    }
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    let words = format!("cannot open {}", arg(&closed));
    assert!(stderr.contains(&words), "{stderr}");
    assert_eq!(database(&data), totals(&[("g", 1, 1)]));
}

#[test]
fn one_file_named_twice_by_whatever_names_counts_once() {
    // Fails if naming a file twice stops the run or counts it again.
    let scratch = Scratch::new();
    let data = scratch.data();
    let t = scratch.file("t.jsonl", event("t", 1));
    let z = scratch.file("z.jsonl", event("z", 1));
    let (hard, soft) = (scratch.path().join("hard"), scratch.path().join("soft"));
    fs::hard_link(&t, &hard).unwrap();
    symlink(&t, &soft).unwrap();
    // Another file with the same name and content.
    let copy = scratch.file("copy/t.jsonl", event("t", 1));
    let dotted = scratch.path().join(".").join("t.jsonl");
    import(&data, &[&t, &t, &copy, &dotted, &hard, &soft, &z]).expect(0);
    assert_eq!(database(&data), totals(&[("t", 1, 1), ("z", 1, 1)]));
    // Without a database, the file in the archive is compared.
    delete_database(&data);
    let archived = archived(&data, "events_t.jsonl").unwrap();
    import(&data, &[&t, &archived]).expect(0);
    assert_eq!(database(&data), totals(&[("t", 1, 1)]));
    assert_eq!(
        names_in(&data)
            .iter()
            .filter(|name| name.contains("_t"))
            .count(),
        0
    );
}

#[test]
fn a_native_segment_is_recognised_wherever_it_is_named_from() {
    // Fails if a copy of a segment counts again: named in the archive, under another name,
    // compressed, truncated, placed in the directory, or concatenated with others.
    let scratch = Scratch::new();
    let data = scratch.data();
    for value in [3, 4] {
        let server = Server::start(&data);
        server.accept(event("u", value).repeat(2));
        server.stop().expect(0);
    }
    let expected = totals(&[("u", 14, 4)]);
    let files = native_files(&data);
    let content = fs::read(&files[0]).unwrap();
    let renamed = scratch.file("aside.jsonl", &content);
    let packed = scratch.file("aside.jsonl.gz", gzip(&content));
    let short = scratch.file("short.jsonl", &content[..content.len() - 5]);
    for file in [&files[0], &renamed, &packed, &short] {
        let ran = import(&data, &[file]).expect(0);
        assert!(ran.stdout.contains("applied before"), "{ran}");
        assert_eq!(database(&data), expected, "{file:?}");
    }
    let both = [content.clone(), fs::read(&files[1]).unwrap()].concat();
    let both = scratch.file("both.jsonl", both);
    let ran = import(&data, &[&both]).expect(1);
    assert!(ran.stderr.contains("several segments in one file"), "{ran}");
    let dropped = scratch.file("data/events_x.jsonl", &content);
    let ran = process(&data).expect(1);
    assert!(ran.stderr.contains("under another name"), "{ran}");
    assert_eq!(database(&data), expected);
    fs::remove_file(dropped).unwrap();
    // Before it is applied, a copy is compared with the native file.
    delete_database(&data);
    import(&data, &[&renamed]).expect(0);
    assert_eq!(database(&data), totals(&[("u", 6, 2)]));
    process(&data).expect(0);
    assert_eq!(database(&data), expected);
    rebuild_and_verify(&data);
    // Without the native file, the rows still say what was applied of it, and nothing beyond.
    fs::remove_file(&files[0]).unwrap();
    let ran = import(&data, &[&renamed]).expect(0);
    assert!(ran.stdout.contains("applied before"), "{ran}");
    let ran = import(&data, &[&short]).expect(1);
    assert!(ran.stderr.contains("nothing to compare it with"), "{ran}");
    assert_eq!(database(&data), expected);
    assert_eq!(parts(&data), Vec::<String>::new());
}

#[test]
fn a_segment_that_went_on_in_a_clone_counts_what_is_new_in_it_once() {
    // Fails if the common part counts twice, if naming the file again, or after it has grown,
    // counts its part again, or if a rebuild gives other totals.
    let scratch = Scratch::new();
    let (a, b) = (scratch.path().join("a"), scratch.path().join("b"));
    let server = Server::start(&a);
    for _ in 0..2 {
        server
            .post("/liveEvent?ack=applied", event("u", 1))
            .expect(200);
    }
    server.kill();
    copy_tree(&a, &b);
    let go_on = |data: &Path, value: u64, events: usize| {
        let server = Server::start(data);
        server.accept(event("u", value).repeat(events));
        server.flush();
        server.stop().expect(0);
    };
    go_on(&a, 1, 3);
    // The file of the clone while it is active, and once it is sealed.
    let server = Server::with(&b, &["--no-process"]);
    server.accept(event("u", 1).repeat(2));
    let early = scratch.path().join("early");
    fs::copy(b.join("events.jsonl"), &early).unwrap();
    let torn = [&fs::read(&early).unwrap()[..], b"{\"userId\":\"u\",\"na"].concat();
    fs::write(&early, torn).unwrap();
    server.accept(event("u", 10).repeat(4));
    server.stop().expect(0);
    process(&b).expect(0);
    let late = &native_files(&b)[0];

    // The two lines after the common ones are equal in both files, so they count as the same lines.
    for (name, value) in [("1", 5), ("2", 5)] {
        let copy = scratch.file(name, fs::read(&early).unwrap());
        import(&a, &[&copy]).expect(0);
        assert_eq!(database(&a), totals(&[("u", value, 5)]));
    }
    for name in ["3", "4.gz", "5"] {
        let bytes = fs::read(late).unwrap();
        let bytes = if name == "4.gz" { gzip(bytes) } else { bytes };
        let copy = scratch.file(name, bytes);
        // Lines without an id may have been counted too few times, so the first import warns.
        import(&a, &[&copy]).expect(if name == "3" { 3 } else { 0 });
        assert_eq!(database(&a), totals(&[("u", 45, 9)]), "{name}");
        fs::remove_file(&copy).unwrap();
    }
    // It is extended once more, by hand.
    let more = [&fs::read(late).unwrap()[..], event("u", 100).as_bytes()].concat();
    let more = scratch.file("more", more);
    import(&a, &[&more]).expect(0);
    import(&a, &[&more, late]).expect(0);
    assert_eq!(database(&a), totals(&[("u", 145, 10)]));
    run(&["verify", "--data-dir", arg(&a)]).expect(0);
    rebuild_and_verify(&a);
    assert_eq!(database(&a), totals(&[("u", 145, 10)]));
    import(&a, &[&more, late]).expect(0);
    assert_eq!(database(&a), totals(&[("u", 145, 10)]));
}

#[test]
fn a_segment_that_was_moved_away_comes_back_under_its_number() {
    // Fails if it is imported as a separate file while its number stays missing.
    let scratch = Scratch::new();
    let data = scratch.data();
    for value in [1, 2] {
        let server = Server::with(&data, &["--no-process"]);
        server.accept(event("u", value));
        server.stop().expect(0);
    }
    let name = names_in(&data)
        .into_iter()
        .find(|name| label_in_name(name).is_some_and(|label| label.number == 1))
        .unwrap();
    let away = scratch.path().join("away");
    fs::rename(data.join(name), &away).unwrap();
    process(&data).expect(1);
    run(&["verify", "--data-dir", arg(&data)]).expect(1);
    import(&data, &[&away]).expect(0);
    assert_eq!(database(&data), totals(&[("u", 3, 2)]));
    run(&["verify", "--data-dir", arg(&data)]).expect(0);
}

#[test]
fn segments_of_another_directory_count_once_under_whatever_name() {
    // Fails if a segment of another directory counts again under a second name.
    let scratch = Scratch::new();
    let (data, other) = (scratch.data(), scratch.path().join("other"));
    let server = Server::start(&other);
    server.accept(event("u", 3));
    server.stop().expect(0);
    let theirs = &native_files(&other)[0];
    let renamed = scratch.file("renamed.jsonl", fs::read(theirs).unwrap());
    for file in [theirs, &renamed, theirs] {
        import(&data, &[file]).expect(0);
        assert_eq!(database(&data), totals(&[("u", 3, 1)]));
    }
    rebuild_and_verify(&data);
    import(&data, &[&renamed]).expect(0);
    assert_eq!(database(&data), totals(&[("u", 3, 1)]));
    // First placed in the directory under its own name, then named.
    let third = scratch.path().join("third");
    fs::create_dir(&third).unwrap();
    fs::copy(theirs, third.join(theirs.file_name().unwrap())).unwrap();
    process(&third).expect(0);
    import(&third, &[&renamed]).expect(0);
    assert_eq!(database(&third), totals(&[("u", 3, 1)]));
}

/// The same two events as JSON, but not as JSON Lines.
fn arrays() -> [(&'static str, String); 4] {
    let (a, b) = (event("a", 1), event("b", 2));
    let (a, b) = (a.trim_end(), b.trim_end());
    let pretty = |text: &str| {
        let value: serde_json::Value = serde_json::from_str(text).unwrap();
        serde_json::to_string_pretty(&value).unwrap()
    };
    let line = format!("[{a},{b}]");
    [
        ("one line", format!("{line}\n")),
        ("pretty-printed", pretty(&line)),
        ("one object a line", format!("[\n{a},\n{b}\n]\n")),
        ("no array", format!("{}\n{}\n", pretty(a), pretty(b))),
    ]
}

#[test]
fn arrays_are_converted_and_recognised_again() {
    // Fails if an array is parsed as lines, counts again, or is not recognized after a rebuild.
    for (shape, text) in arrays() {
        let scratch = Scratch::new();
        let data = scratch.data();
        let expected = totals(&[("a", 1, 1), ("b", 2, 1)]);
        // An incomplete file is rejected, and its name can be used again.
        let file = scratch.file("march.json", &text[..text.trim_end().len() - 1]);
        let ran = import(&data, &[&file]).expect(1);
        assert!(ran.stderr.contains("incomplete"), "{shape}: {ran}");
        assert_eq!(database(&data), totals(&[]));
        fs::write(&file, &text).unwrap();
        import(&data, &[&file]).expect(0);
        assert_eq!(database(&data), expected, "{shape}");
        let packed = scratch.file("march.json.gz", gzip(&text));
        for rebuilt in [false, true] {
            for file in [&file, &packed] {
                let ran = import(&data, &[file]).expect(0);
                assert!(ran.stdout.contains("applied before"), "{shape}: {ran}");
                assert_eq!(database(&data), expected, "{shape}, rebuilt: {rebuilt}");
            }
            rebuild_and_verify(&data);
        }
        // Corrected and named again, it must not count again.
        fs::write(&file, text.replace('2', "3")).unwrap();
        let ran = import(&data, &[&file]).expect(1);
        assert!(ran.stderr.contains("another content"), "{shape}: {ran}");
        assert_eq!(database(&data), expected, "{shape}");
        assert_eq!(rejected_lines(&data), 0);
        assert_eq!(parts(&data), Vec::<String>::new());
    }
}

#[test]
fn what_is_not_json_lines_is_refused_where_it_was_dropped() {
    // Fails if the contents of an array, a compressed or a foreign file in the directory are
    // recorded as rejected lines, by `process` or by a server, or if it blocks the others.
    let mut files: Vec<(&str, Vec<u8>)> = arrays()
        .map(|(shape, text)| (shape, text.into_bytes()))
        .to_vec();
    files.push(("gzip", gzip(event("u", 1))));
    files.push(("CSV", b"userId,name,value\nu,add_revenue,1\n".to_vec()));
    for (shape, bytes) in files {
        let scratch = Scratch::new();
        let data = scratch.data();
        let dropped = scratch.file("data/events_x.jsonl", &bytes);
        scratch.file("data/events_y.jsonl", event("y", 1));
        for named in [&[][..], &[&*dropped]] {
            let ran = import(&data, named).expect(1);
            assert!(ran.stderr.contains(arg(&dropped)), "{shape}: {ran}");
            assert!(ran.stderr.contains("Move it out of"), "{shape}: {ran}");
        }
        let server = Server::start(&data);
        until(PATIENCE, "readiness names it", || {
            let reasons = server.status()["reasons"].to_string();
            reasons.contains("Move it out of").then_some(())
        });
        server.accept(event("z", 1));
        server.flush();
        server.stop().expect(0);
        assert_eq!(
            database(&data),
            totals(&[("y", 1, 1), ("z", 1, 1)]),
            "{shape}"
        );
        assert_eq!(rejected_lines(&data), 0, "{shape}");
        assert_eq!(fs::read(&dropped).unwrap(), bytes);
        if shape != "CSV" {
            let out = scratch.path().join("x.jsonl");
            fs::rename(&dropped, &out).unwrap();
            import(&data, &[&out]).expect(0);
            run(&["verify", "--data-dir", arg(&data)]).expect(0);
        }
    }
}

#[test]
fn a_byte_order_mark_at_the_start_is_ignored() {
    // Fails if the first event of a file with a byte order mark is lost: imported, compressed, in
    // an array, placed in the directory, applied by a server, or recounted by `verify`.
    let scratch = Scratch::new();
    let data = scratch.data();
    let marked = |text: String| format!("\u{feff}{text}");
    let plain = scratch.file("plain.jsonl", marked(event("u", 1) + &event("u", 2)));
    let packed = scratch.file("packed.jsonl.gz", gzip(marked(event("u", 4))));
    let array = scratch.file("array.json", marked(format!("[{}]", event("u", 8))));
    let with_id = event("u", 16).replace("\"userId\"", "\"id\":\"a\",\"userId\"");
    scratch.file("data/events_dropped.jsonl", marked(with_id.clone()));
    scratch.file("data/events_empty.jsonl", marked("\n".to_owned()));
    process(&data).expect(0);
    import(&data, &[&plain, &packed, &array]).expect(0);
    assert_eq!(database(&data), totals(&[("u", 31, 5)]));
    rebuild_and_verify(&data);
    let server = Server::start(&data);
    scratch.file("data/events_late.jsonl", marked(event("late", 1)));
    until(PATIENCE, "it is applied", || {
        (server.get("/userEvents/late").status == 200).then_some(())
    });
    server.assert_balanced();
    server.stop().expect(0);
    run(&["verify", "--data-dir", arg(&data)]).expect(0);
    assert_eq!(rejected_lines(&data), 0);
}

#[test]
fn gzip_is_unpacked_and_known_under_the_name_without_it() {
    // Fails if gzip data is recorded as rejected lines, or if a file that was compressed after it
    // was imported counts again.
    let scratch = Scratch::new();
    let data = scratch.data();
    let two = [gzip(event("u", 1)), gzip(event("u", 2))].concat();
    let packed = scratch.file("march.jsonl.gz", two);
    let cut = fs::read(&packed).unwrap();
    let cut = scratch.file("cut.jsonl.gz", &cut[..cut.len() - 9]);
    let twice = scratch.file("twice.gz", gzip(gzip(event("u", 1))));
    let ran = import(&data, &[&cut, &twice, &packed]).expect(1);
    assert!(
        ran.stderr
            .contains("cut.jsonl.gz: it is compressed with gzip, but incomplete"),
        "{ran}"
    );
    assert!(ran.stderr.contains("twice"), "{ran}");
    assert_eq!(database(&data), totals(&[("u", 3, 2)]));
    let plain = scratch.file("march.jsonl", event("u", 1) + &event("u", 2));
    for file in [&plain, &packed] {
        let ran = import(&data, &[file]).expect(0);
        assert!(ran.stdout.contains("applied before"), "{ran}");
    }
    rebuild_and_verify(&data);
    import(&data, &[&packed]).expect(0);
    assert_eq!(database(&data), totals(&[("u", 3, 2)]));
    assert_eq!(parts(&data), Vec::<String>::new());
}

#[test]
fn what_cannot_be_converted_is_refused_and_its_name_stays_usable() {
    // Fails if such a file leaves a row, a rejected line or a file behind, or is rejected without a
    // reason.
    let utf_16: Vec<u8> = event("u", 1)
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    let marked = [&[0xff, 0xfe], &utf_16[..]].concat();
    let csv = b"userId,name,value\nu,add_revenue,1\n".to_vec();
    for (words, bytes) in [
        ("UTF-16", utf_16),
        ("UTF-16", marked),
        ("CSV", csv.clone()),
        ("CSV", gzip(csv)),
        ("zip", b"PK\x03\x04\x14\0\0\0".to_vec()),
        ("zstd", b"\x28\xb5\x2f\xfd\x24".to_vec()),
        ("SQLite", b"SQLite format 3\0".to_vec()),
    ] {
        let scratch = Scratch::new();
        let data = scratch.data();
        let file = scratch.file("x.jsonl", bytes);
        let beside = scratch.file("beside.jsonl", event("v", 1));
        let ran = import(&data, &[&file, &beside]).expect(1);
        let refused = ran.stderr.lines().find(|line| line.contains(arg(&file)));
        assert!(refused.is_some_and(|line| line.contains(words)), "{ran}");
        assert!(
            !files_below(&data)
                .iter()
                .any(|path| arg(path).contains("_x"))
        );
        assert_eq!(rejected_lines(&data), 0);
        fs::write(&file, event("u", 1)).unwrap();
        import(&data, &[&file]).expect(0);
        assert_eq!(database(&data), totals(&[("u", 1, 1), ("v", 1, 1)]));
    }
}

#[test]
fn the_advice_for_a_file_that_has_grown_cannot_count_its_applied_part_twice() {
    // Fails if the message recommends another name, or if its recommendation leads to wrong totals.
    for dropped in [false, true] {
        let scratch = Scratch::new();
        let data = scratch.data();
        let at = if dropped {
            "data/events_a b.jsonl"
        } else {
            "a b.jsonl"
        };
        let file = scratch.file(at, event("u", 1));
        let named: &[&Path] = if dropped { &[] } else { &[&file] };
        import(&data, named).expect(0);
        fs::write(&file, event("u", 1) + &event("u", 2)).unwrap();
        let ran = import(&data, named).expect(1);
        assert!(!ran.stderr.contains("give it another name"), "{ran}");
        let command = ran.stderr.split('`').find(|part| part.starts_with("tail"));
        let command = command.unwrap_or_else(|| panic!("a command: {ran}"));
        let mut shell = Command::new("sh");
        shell.args(["-c", command]).current_dir(scratch.path());
        assert!(shell.status().unwrap().success(), "{command}");
        let rest = names_in(scratch.path())
            .into_iter()
            .find(|name| name.contains("-from-"))
            .unwrap();
        import(&data, &[&scratch.path().join(rest)]).expect(0);
        assert_eq!(database(&data), totals(&[("u", 3, 2)]));
        if !dropped {
            continue;
        }
        let server = Server::start(&data);
        until(PATIENCE, "readiness says the same", || {
            let reasons = server.status()["reasons"].to_string();
            assert!(!reasons.contains("rename"), "{reasons}");
            reasons.contains("tail -c").then_some(())
        });
        server.stop().expect(0);
        assert_eq!(database(&data), totals(&[("u", 3, 2)]));
    }
}

#[test]
fn an_interrupted_conversion_leaves_a_part_file_and_nothing_else() {
    // Fails if an incomplete copy counts, or if what is left blocks the next run.
    let scratch = Scratch::new();
    let data = scratch.data();
    let events = 400_000;
    let line = event("u", 1);
    let array = format!("[{}]", vec![line.trim_end(); events].join(","));
    let file = scratch.file("big.json", array);
    let part = data.join("events_big.json.jsonl.part");
    let mut child = super::harness::tallyline(&["process", "--data-dir", arg(&data), arg(&file)])
        .spawn()
        .unwrap();
    until(PATIENCE, "the conversion has begun", || {
        part.exists().then_some(())
    });
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(!child.wait().unwrap().success());
    let jsonl = |name: &String| name.contains(".jsonl");
    let left: Vec<String> = names_in(&data).into_iter().filter(jsonl).collect();
    assert_eq!(left, ["events_big.json.jsonl.part"]);
    process(&data).expect(0);
    assert_eq!(database(&data), totals(&[]));
    import(&data, &[&file]).expect(0);
    let count = i128::try_from(events).unwrap();
    assert_eq!(database(&data), totals(&[("u", count, events as u64)]));
    assert!(!part.exists());
}
