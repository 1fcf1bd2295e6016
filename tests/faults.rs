//! The real binary with faults: full disks, a database whose reads, writes and syncs fail, a clock
//! that jumps. Acknowledged events count once, responses follow the contract, and the server
//! recovers by itself when the fault is over, without a restart.
//!
//! Ignored by default: these tests mount, trace and preload, which needs root and Debian packages.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::harness::{
    PATIENCE, Process, Scratch, Server, arg, database, event, files_below, names_in,
    quiet_environment, recount, run, tallyline, until,
};
use super::kernel_log::{signal_traced, stop_traced};
use rustix::process::Signal;
use tallyline::data_dir::segment::label_in_name;

/// A file system of a few MiB in memory, unmounted on drop.
struct TinyDisk {
    at: PathBuf,
}

impl TinyDisk {
    #[track_caller]
    fn mount(at: &Path, size: &str) -> Self {
        fs::create_dir_all(at).unwrap();
        let size = format!("size={size}");
        let args = ["-t", "tmpfs", "-o", &size, "tallyline-test", arg(at)];
        Process::start(Command::new("mount").args(args))
            .finish()
            .expect(0);
        Self { at: at.to_owned() }
    }

    fn ballast(&self) -> PathBuf {
        self.at.join("ballast")
    }

    /// Fills it up, except for `spare` bytes.
    fn fill_up(&self, spare: u64) {
        let file = File::create(self.ballast()).unwrap();
        // The server allocates meanwhile, perhaps the block that was about to be allocated here.
        until(PATIENCE, "the rest is accepted", || {
            let free = rustix::fs::statvfs(&self.at).unwrap();
            let bytes = (free.f_bavail * free.f_frsize).saturating_sub(spare);
            let flags = rustix::fs::FallocateFlags::empty();
            (bytes == 0 || rustix::fs::fallocate(&file, flags, 0, bytes).is_ok()).then_some(())
        });
    }

    fn make_room(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }
}

impl Drop for TinyDisk {
    fn drop(&mut self) {
        let _gone_with_the_machine = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}

/// An event of user `u` that counts once, however often it is sent.
fn with_id(id: &str) -> String {
    let pad = "x".repeat(2000);
    format!(
        "{{\"userId\":\"u\",\"name\":\"add_revenue\",\"value\":1,\"id\":\"{id}\",\"pad\":\"{pad}\"}}\n"
    )
}

/// Posts events one by one until `done` returns true for the status of a response and the number of
/// posts; returns the acknowledged ids and the other responses.
fn post_until(
    server: &Server,
    prefix: &str,
    done: impl Fn(u16, usize) -> bool,
) -> (BTreeSet<String>, BTreeSet<u16>) {
    let (mut acked, mut others) = (BTreeSet::new(), BTreeSet::new());
    for n in 1.. {
        let id = format!("{prefix}-{n}");
        let status = server.post("/liveEvent", with_id(&id)).status;
        if status == 202 {
            acked.insert(id);
        } else {
            others.insert(status);
        }
        if done(status, n) {
            break;
        }
    }
    (acked, others)
}

/// Asserts that each acknowledged event counts once, no other event does, and readiness is green.
#[track_caller]
fn assert_just_these_count(data: &Path, acked: &BTreeSet<String>) {
    let count = recount(data);
    let found: BTreeSet<_> = count.ids.into_keys().collect();
    assert_eq!(&found, acked);
    assert_eq!(database(data)["u"].1, acked.len() as u64);
    run(&["verify", "--data-dir", arg(data)]).expect(0);
    assert_eq!(names_in(&data.join("quarantine")), Vec::<String>::new());
}

#[test]
#[ignore = "needs root: mounts a tmpfs"]
fn a_full_disk_is_507_and_recovers_without_a_restart() {
    // Fails if a write that did not fit is acknowledged or leaves a torn line, if the reserve is
    // not kept free, or if recovery needs a restart.
    for (reserve, spare) in [("0B", 0), ("0B", 3000), ("1MiB", 4096)] {
        let scratch = Scratch::new();
        let data = scratch.data();
        let disk = TinyDisk::mount(&data, "8m");
        let flags = ["--disk-reserve", reserve, "--flush-interval", "10ms"];
        let server = Server::with(&data, &flags);
        let (mut acked, _) = post_until(&server, "before", |_, n| n == 10);
        assert_eq!(acked.len(), 10);
        server.flush(); // so that the totals contain u before writes fail
        for round in 0..3 {
            disk.fill_up(spare);
            let full = format!("full-{round}");
            let (more, others) = post_until(&server, &full, |status, n| status != 202 && n > 20);
            assert_eq!(others, [507].into(), "{reserve} {spare}");
            assert!(more.len() <= 3, "{reserve} {spare}: {more:?} fitted");
            acked.extend(more);
            server.get("/healthz").expect(200);
            server.get("/userEvents/u").expect(200);
            disk.make_room();
            let again = format!("again-{round}");
            let (more, _) = post_until(&server, &again, |status, _| status == 202);
            acked.extend(more);
        }
        server.flush();
        server.assert_balanced();
        until(PATIENCE, "ready again", || {
            (server.get("/readyz").status == 200).then_some(())
        });
        server.stop().expect(0);
        assert_just_these_count(&data, &acked);
    }
}

#[test]
#[ignore = "needs root: mounts a tmpfs"]
fn a_full_database_disk_stops_only_applying() {
    // Fails if SQLITE_FULL rejects events, loses totals, is not reported, or needs a restart.
    let scratch = Scratch::new();
    let data = scratch.data();
    let disk = TinyDisk::mount(&scratch.path().join("tiny"), "1m");
    fs::create_dir(&data).unwrap();
    std::os::unix::fs::symlink(disk.at.join("revenue.db"), data.join("revenue.db")).unwrap();
    let server = Server::with(&data, &["--flush-interval", "10ms"]);
    let (mut acked, _) = post_until(&server, "before", |_, n| n == 10);
    server.flush();
    disk.fill_up(0);
    let (more, others) = post_until(&server, "full", |_, n| n == 500);
    assert_eq!((more.len(), others.len()), (500, 0), "ingestion continues");
    acked.extend(more);
    let reasons = until(PATIENCE, "/readyz answers 503", || {
        let ready = server.get("/readyz");
        (ready.status == 503).then(|| ready.text())
    });
    assert!(
        reasons.contains("revenue.db") && reasons.contains("full"),
        "{reasons}"
    );
    disk.make_room();
    server.flush();
    assert_eq!(server.get("/userEvents/u").json()["events"], 510);
    until(PATIENCE, "ready again", || {
        (server.get("/readyz").status == 200).then_some(())
    });
    server.assert_balanced();
    server.stop().expect(0);
    assert_just_these_count(&data, &acked);
}

#[test]
#[ignore = "needs strace"]
fn a_database_with_a_failing_disk_reaches_the_same_totals() {
    // Fails if an event counts twice or not at all after SQLITE_IOERR at any of these calls, or if
    // ingestion stops meanwhile.
    for (file, calls) in [
        ("revenue.db-wal", "pwrite64"),
        ("revenue.db-wal", "fsync,fdatasync"),
        ("revenue.db-wal", "pread64"),
        ("revenue.db", "pwrite64"),
        ("revenue.db", "fsync,fdatasync"),
    ] {
        for error in ["EIO", "ENOSPC"] {
            let scratch = Scratch::new();
            let data = scratch.data();
            let (log, at) = (scratch.path().join("strace"), data.join(file));
            // The tables exist, so that the faults hit the transactions that apply.
            let server = Server::start(&data);
            let (mut acked, _) = post_until(&server, "before", |_, n| n == 5);
            server.stop().expect(0);
            let inject = format!("inject={calls}:error={error}:when=2..24+11");
            let server = Server::by(&data, &["--flush-interval", "10ms"], |args| {
                let mut command = Command::new("strace");
                command.args(["-f", "-qq", "-o", arg(&log), "-P", arg(&at), "-e", &inject]);
                command.arg(env!("CARGO_BIN_EXE_tallyline")).args(args);
                quiet_environment(&mut command);
                command
            });
            for round in 0..8 {
                let (more, others) = post_until(&server, &format!("{round}"), |_, n| n == 5);
                assert_eq!(
                    others,
                    BTreeSet::new(),
                    "{file} {calls}: ingestion continues"
                );
                acked.extend(more);
                // Without a flush, which would seal the file: each range follows another one of the
                // same file.
                until(PATIENCE, "applied", || {
                    (server.get("/status").json()["pending"] == 0).then_some(())
                });
            }
            server.flush();
            server.assert_balanced();
            stop_traced(server);
            let failed = fs::read_to_string(&log)
                .unwrap()
                .matches("(INJECTED)")
                .count();
            assert!(
                failed > 0 || calls == "pread64",
                "{file} {calls}: none failed"
            );
            assert_just_these_count(&data, &acked);
        }
    }
}

/// `tallyline ARGS...` with a clock whose offset is read from the file `offset` at each call.
fn by_clock(offset: &Path, args: &[&str]) -> Command {
    let library = fs::read_dir("/usr/lib")
        .unwrap()
        .map(|entry| entry.unwrap().path().join("faketime/libfaketime.so.1"))
        .find(|path| path.exists())
        .expect("libfaketime, of the package faketime");
    let mut command = tallyline(args);
    command
        .env("LD_PRELOAD", library)
        .env("FAKETIME_TIMESTAMP_FILE", offset)
        .env("FAKETIME_NO_CACHE", "1")
        // Durations are measured by the monotonic clock, which cannot be set.
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    command
}

#[test]
#[ignore = "needs faketime"]
fn a_clock_that_jumps_back_and_forth_changes_no_total() {
    // Fails if numbers, order, rotation by age or waiting depend on the time of day, or if a jump
    // makes retention prune segments that are too young.
    let scratch = Scratch::new();
    let data = scratch.data();
    let clock = scratch.file("clock", "+0");
    let set_clock = |offset: &str| {
        // Replaced atomically: the server may read it at any time.
        let next = scratch.file("clock.next", offset);
        fs::rename(next, &clock).unwrap();
    };
    let flags = [
        "--rotate-interval",
        "20ms",
        "--retention",
        "2h",
        "--dedup-window",
        "2h",
    ];
    let server = Server::by(&data, &flags, |args| by_clock(&clock, args));
    let mut acked = BTreeSet::new();
    let offsets = ["+0", "+3600", "-3600", "+3600", "-3600", "+0"];
    for (round, offset) in offsets.iter().enumerate() {
        set_clock(offset);
        for id in [round, 0] {
            let id = id.to_string();
            let reply = server.post("/liveEvent?ack=applied", with_id(&id));
            reply.expect(200);
            acked.insert(id);
        }
        until(PATIENCE, "sealed by age", || {
            let sealed = files_below(&data.join("applied")).len();
            (sealed > round).then_some(())
        });
        let lag = server.status()["lagSeconds"].as_f64().unwrap();
        assert!((0.0..60.0).contains(&lag), "{offset}: {lag}");
        server.get("/readyz").expect(200);
    }
    server.assert_balanced();
    server.stop().expect(0);
    assert_just_these_count(&data, &acked);
    // Ordered by number, they are in the order of sending, and none is missing.
    let mut files = files_below(&data.join("applied"));
    files.sort_by_key(|path| {
        let label = label_in_name(path.file_name().unwrap().to_str().unwrap());
        label.unwrap().number
    });
    let numbers = files.iter().map(|path| {
        let name = path.file_name().unwrap().to_str().unwrap();
        usize::try_from(label_in_name(name).unwrap().number).unwrap()
    });
    assert!(numbers.eq(1..=files.len()), "{files:?}");
    let sent: String = files
        .iter()
        .map(|path| fs::read_to_string(path).unwrap())
        // Without the labels.
        .flat_map(|text| {
            let lines = text.lines().map(|line| format!("{}\n", line.trim_end()));
            lines.collect::<Vec<_>>()
        })
        .collect();
    let expected: String = (0..offsets.len())
        .flat_map(|round| [with_id(&round.to_string()), with_id("0")])
        .collect();
    assert!(sent == expected, "{sent}");
    let hours: BTreeSet<_> = names_of_hours(&files);
    assert!(hours.len() > 1, "the clock jumped: {hours:?}");
}

#[test]
#[ignore = "needs faketime"]
fn a_clock_in_any_year_causes_no_panic() {
    // Fails if a time that RFC 3339 cannot represent causes a panic in a file name, a lock, a
    // response, the log or the name of a run.
    for time in ["-24400d", "@9999-12-31 23:59:50", "+3000000d"] {
        let scratch = Scratch::new();
        let data = scratch.data();
        let clock = scratch.file("clock", time);
        let server = Server::by(&data, &[], |args| by_clock(&clock, args));
        let mut acked = BTreeSet::new();
        for round in 0..3 {
            let id = round.to_string();
            server.post("/liveEvent", with_id(&id)).expect(202);
            acked.insert(id);
            server.flush();
        }
        for target in ["/userEvents/u", "/segments", "/metrics", "/readyz", "/"] {
            server.get(target).expect(200);
        }
        let reported = server.process.stderr();
        let doubted = reported.contains("the clock is not set");
        assert_eq!(doubted, !time.starts_with("@9999"), "{time}: {reported}");
        let file = scratch.file("more.jsonl", with_id("sent"));
        let url = server.url();
        let state = scratch.path().join("state");
        let send = ["send", arg(&file), "--to", &url, "--state", arg(&state)];
        Process::start(&mut by_clock(&clock, &send))
            .finish()
            .expect(0);
        acked.insert("sent".to_owned());
        server.flush();
        server.assert_balanced();
        server.stop().expect(0);
        let more = scratch.file("other.jsonl", with_id("processed"));
        let process = ["process", "--data-dir", arg(&data), arg(&more)];
        Process::start(&mut by_clock(&clock, &process))
            .finish()
            .expect(0);
        acked.insert("processed".to_owned());
        for args in [&["query", "--json"][..], &["verify"]] {
            let args = [args, &["--data-dir", arg(&data)]].concat();
            Process::start(&mut by_clock(&clock, &args))
                .finish()
                .expect(0);
        }
        let rebuild = ["process", "--rebuild", "--data-dir", arg(&data)];
        Process::start(&mut by_clock(&clock, &rebuild))
            .finish()
            .expect(0);
        assert_just_these_count(&data, &acked);
    }
}

#[test]
#[ignore = "needs faketime"]
fn a_clock_set_after_the_start_prunes_and_expires_nothing() {
    // Fails if files written seconds ago are pruned, or their ids expire so that repeated events
    // count again, because a board without a clock started in 1970, or was reset to 1970.
    let flags = [
        ["--rotate-interval", "20ms"],
        ["--retention", "10days"],
        ["--dedup-window", "10days"],
    ];
    let scratch = Scratch::new();
    let data = scratch.data();
    let clock = scratch.file("clock", "+0");
    let set_clock = |offset: &str| {
        let next = scratch.file("clock.next", offset);
        fs::rename(next, &clock).unwrap();
    };
    let mut acked = BTreeSet::new();
    // The third clock is right at first; the last one is years ahead from the start.
    for (start, then) in [
        ("-20000d", "+0"),
        ("-20000d", "+0"),
        ("+0", "+1000d"),
        ("+1000d", "+1000d"),
    ] {
        set_clock(start);
        let server = Server::by(&data, flags.as_flattened(), |args| by_clock(&clock, args));
        let mut send = |id: &str| {
            server
                .post("/liveEvent?ack=applied", with_id(id))
                .expect(200);
            acked.insert(id.to_owned());
        };
        let archived = || files_below(&data.join("applied")).len();
        let before = archived();
        let ids = ["a", "b", "c"].map(|name| format!("{name}{before}"));
        for id in &ids {
            send(id);
            server.flush();
        }
        set_clock(then);
        // Several rounds pass in which retention could prune and expire them.
        for id in ids.iter().chain(&acked.clone()) {
            server
                .post("/liveEvent?ack=applied", with_id(id))
                .expect(200);
            server.flush();
        }
        let status = server.assert_balanced();
        assert_eq!(status["applied"], acked.len(), "{status}");
        assert!(archived() > before + 3, "nothing is pruned");
        let reported = server.process.stderr();
        assert!(
            reported.contains("nothing is pruned and no id expires"),
            "{reported}"
        );
        server.stop().expect(0);
        assert_just_these_count(&data, &acked);
    }
}

/// The hours in the names of the files.
fn names_of_hours(files: &[PathBuf]) -> BTreeSet<String> {
    let hour = |path: &PathBuf| {
        let name = path.file_name()?.to_str()?;
        Some(name.split_once('T')?.1[..2].to_owned())
    };
    files.iter().filter_map(hour).collect()
}

#[test]
#[ignore = "needs strace"]
fn a_failing_statfs_does_not_stop_ingestion() {
    // Fails if a failing statfs rejects every event, or is not reported. With --max-disk the used
    // space is known nevertheless.
    for flags in [&[][..], &["--max-disk", "64MiB"]] {
        let scratch = Scratch::new();
        let log = scratch.path().join("strace");
        let inject = ["-e", "inject=statfs,fstatfs:error=ENOSYS"];
        let server = super::outside::traced(&scratch.data(), &log, &inject, flags);
        server.accept(event("u", 1));
        server.flush();
        let reported = until(PATIENCE, "/readyz reports it", || {
            let ready = server.get("/readyz");
            (ready.status == 503).then(|| ready.text())
        });
        assert!(
            reported.contains("cannot determine the free space of the disk"),
            "{reported}"
        );
        server.accept(event("u", 1));
        server.flush();
        stop_traced(server);
        assert_eq!(database(&scratch.data())["u"].1, 2, "{flags:?}");
    }
}

#[test]
#[ignore = "needs root, to mount a small disk"]
fn a_lack_of_inodes_is_reported() {
    // Fails if the only report is "No space left on device" at the next rotation, while much space
    // is free.
    let scratch = Scratch::new();
    let disk = TinyDisk::mount(&scratch.path().join("disk"), "16m,nr_inodes=64");
    let data = disk.at.join("data");
    let flags = ["--flush-interval", "10ms", "--disk-reserve", "64KiB"];
    let server = Server::with(&data, &flags);
    server.accept(event("u", 1));
    server.flush();
    let many = disk.at.join("many");
    fs::create_dir(&many).unwrap();
    let full = (0..1000).find(|n| File::create(many.join(n.to_string())).is_err());
    assert!(full.is_some());
    until(PATIENCE, "/readyz reports it", || {
        let ready = server.get("/readyz");
        (ready.status == 503 && ready.text().contains("no inodes")).then_some(())
    });
    // The start of a segment is recorded in a new file.
    server.post("/liveEvent", event("u", 1)).problem(507);
    fs::remove_dir_all(&many).unwrap();
    until(PATIENCE, "ready again", || {
        (server.get("/readyz").status == 200).then_some(())
    });
    server.accept(event("u", 1));
    server.stop().expect(0);
    assert_eq!(database(&data)["u"].1, 2);
}

/// Remounts a file system with other options; false while files on it are open for writing.
fn remount(at: &Path, how: &str) -> bool {
    let how = format!("remount,{how}");
    let mut mount = Command::new("mount");
    mount.args(["-o", &how, arg(at)]);
    Process::start(&mut mount).finish().code == Some(0)
}

#[test]
#[ignore = "needs root: mounts a tmpfs"]
fn a_read_only_data_directory_can_be_read_but_not_served() {
    // Fails if a command that only reads needs to write, or if a command that writes does not
    // report the path and the cause.
    let scratch = Scratch::new();
    let disk = TinyDisk::mount(&scratch.path().join("disk"), "16m");
    let data = disk.at.join("data");
    let server = Server::with(&data, &["--disk-reserve", "64KiB"]);
    server.accept(event("u", 1));
    // While the server runs, the kernel refuses to unmount the file system.
    assert!(!remount(&disk.at, "ro"));
    server.accept(event("u", 1));
    server.stop().expect(0);
    assert!(remount(&disk.at, "ro"));
    let at = ["--data-dir", arg(&data)];
    for command in [&["serve", "--listen", "127.0.0.1:0"][..], &["process"]] {
        let ran = run(&[command, &at].concat()).expect(1);
        let lock = if command.len() > 1 {
            "serve.lock"
        } else {
            "process.lock"
        };
        let path = data.join(lock);
        assert!(
            ran.stderr.contains(arg(&path)) && ran.stderr.contains("Read-only file system"),
            "{ran}"
        );
    }
    run(&[&["verify"], &at[..]].concat()).expect(0);
    let ran = run(&[&["query"], &at[..], &["u"]].concat()).expect(0);
    assert!(ran.stdout.contains('2'), "{ran}");
    let copy = scratch.path().join("backup");
    run(&[&["backup", arg(&copy)], &at[..]].concat()).expect(0);
    assert!(remount(&disk.at, "rw"));
    let server = Server::with(&data, &["--disk-reserve", "64KiB"]);
    server.accept(event("u", 1));
    server.stop().expect(0);
    assert_eq!(database(&data)["u"].1, 3);
}

#[test]
#[ignore = "needs strace"]
fn nothing_is_acknowledged_after_a_file_system_became_read_only() {
    // Fails if an event is acknowledged that was not written because the file system became
    // read-only after an error, or if an event that was acknowledged before is missing after a
    // restart.
    let scratch = Scratch::new();
    let data = scratch.data();
    let (log, active) = (scratch.path().join("strace"), data.join("events.jsonl"));
    let inject = "inject=pwrite64,ftruncate,fdatasync:error=EROFS:when=4+";
    let server = Server::by(&data, &["--flush-interval", "10ms"], |args| {
        let mut command = Command::new("strace");
        command.args([
            "-f",
            "-qq",
            "-o",
            arg(&log),
            "-P",
            arg(&active),
            "-e",
            inject,
        ]);
        command.arg(env!("CARGO_BIN_EXE_tallyline")).args(args);
        quiet_environment(&mut command);
        command
    });
    let mut acked = 0;
    let answer = loop {
        let answer = server.post("/liveEvent", event("u", 1));
        if answer.status != 202 {
            break answer;
        }
        acked += 1;
    };
    let reported = answer.problem(503).to_string();
    assert!(reported.contains("Read-only file system"), "{reported}");
    assert!(acked > 0);
    server.post("/liveEvent", event("u", 1)).problem(503);
    let ready = server.get("/readyz");
    assert_eq!(ready.status, 503);
    assert!(ready.text().contains(arg(&active)), "{}", ready.text());
    signal_traced(&server, Signal::KILL);
    server.process.finish();
    let server = Server::start(&data);
    server.accept(event("u", 1));
    server.stop().expect(0);
    // The event whose outcome was unknown may be present.
    let counted = database(&data)["u"].1;
    assert!(
        (acked + 1..=acked + 2).contains(&counted),
        "{acked} {counted}"
    );
}
