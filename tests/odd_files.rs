//! Paths with the name of a segment that are not readable files: each is reported and skipped, and
//! the other files are processed. No file whose open could block is opened.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use super::harness::{
    PATIENCE, Process, Scratch, Server, arg, database, event, run, tallyline, until,
};

/// Creates one of each kind in a directory; returns how each is reported.
fn odd_things(dir: &Path) -> Vec<&'static str> {
    let at = |name: &str| dir.join(format!("events_{name}.jsonl"));
    let made = Command::new("mkfifo").arg(at("fifo")).status().unwrap();
    assert!(made.success());
    drop(UnixListener::bind(at("socket")).unwrap());
    symlink("/dev/zero", at("device")).unwrap();
    fs::create_dir(at("directory")).unwrap();
    symlink("/nowhere/at/all", at("dangling")).unwrap();
    symlink(at("loop"), at("loop")).unwrap();
    fs::write(
        dir.join(OsStr::from_bytes(b"events_\xff.jsonl")),
        event("u", 1),
    )
    .unwrap();
    vec![
        "events_fifo.jsonl: it is a FIFO",
        "events_socket.jsonl: it is a socket",
        "events_device.jsonl: it is a character device",
        "events_directory.jsonl: it is a directory",
        "events_dangling.jsonl: it is a link to /nowhere/at/all",
        "events_loop.jsonl: it is a link that leads back",
        "its name is not UTF-8",
    ]
}

#[test]
fn a_server_reports_what_is_not_a_file_and_applies_the_others() {
    // Fails if a FIFO blocks applying, a scrape or the shutdown, or if one of the files is not
    // reported.
    for more in [&[][..], &["--no-process"]] {
        let scratch = Scratch::new();
        let data = scratch.data();
        fs::create_dir_all(&data).unwrap();
        let texts = odd_things(&data);
        fs::write(data.join("events_zz.jsonl"), event("z", 1)).unwrap();
        let server = Server::with(&data, &[&["--flush-interval", "10ms"], more].concat());
        server.accept(event("u", 1));
        let applies = more.is_empty();
        if applies {
            until(PATIENCE, "the others are applied", || {
                let found = |user: &str| server.get(&format!("/userEvents/{user}")).status == 200;
                (found("u") && found("z")).then_some(())
            });
        }
        let ready = until(PATIENCE, "each is reported", || {
            let ready = server.get("/readyz").text();
            let named =
                |text: &&str| ready.contains(*text) || !applies && text.contains("directory");
            texts.iter().all(named).then_some(ready)
        });
        server.get("/metrics").expect(200);
        server.get("/segments").expect(200);
        // After they were moved away, they are no longer reported.
        for entry in fs::read_dir(&data).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if name.starts_with("events_") && name != "events_zz.jsonl" {
                fs::remove_file(&path)
                    .or_else(|_| fs::remove_dir(&path))
                    .unwrap();
            }
        }
        until(
            PATIENCE,
            &format!("/readyz answers 200 again: {ready}"),
            || (server.get("/readyz").status == 200).then_some(()),
        );
        server.stop().expect(0);
    }
}

#[test]
fn process_skips_odd_files_with_3_and_rejects_named_ones_with_1() {
    // Fails if `process` ends at the first of them, hangs, or exits with 0.
    let scratch = Scratch::new();
    let data = scratch.data();
    fs::create_dir_all(&data).unwrap();
    let texts = odd_things(&data);
    fs::write(data.join("events_zz.jsonl"), event("z", 1)).unwrap();
    let ran = run(&["process", "--data-dir", arg(&data)]).expect(3);
    for text in &texts {
        assert!(ran.stderr.contains(text), "{text}: {ran}");
    }
    assert_eq!(database(&data)["z"].1, 1);
    run(&["verify", "--data-dir", arg(&data)]).expect(0);

    let other = scratch.path().join("other");
    fs::create_dir_all(&other).unwrap();
    odd_things(&other);
    let good = scratch.file("good.jsonl", event("g", 1));
    for name in ["fifo", "socket", "device", "directory", "dangling", "loop"] {
        for dir in [&other, &data] {
            let odd = dir.join(format!("events_{name}.jsonl"));
            let ran = run(&["process", "--data-dir", arg(&data), arg(&odd), arg(&good)]).expect(1);
            assert!(ran.stderr.contains(arg(&odd)), "{ran}");
            assert_eq!(database(&data)["g"].1, 1, "{name}");
        }
    }
}

#[test]
fn a_symlinked_month_of_the_archive_is_followed() {
    // Fails if archived segments on another disk, behind a symlink, are reported as missing, or if
    // their numbers are used again.
    let scratch = Scratch::new();
    let data = scratch.data();
    let server = Server::start(&data);
    server.accept(event("u", 1));
    server.stop().expect(0);
    let applied = data.join("applied");
    let month = fs::read_dir(&applied)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let elsewhere = scratch.path().join("elsewhere");
    fs::rename(&month, &elsewhere).unwrap();
    symlink(&elsewhere, &month).unwrap();
    run(&["verify", "--data-dir", arg(&data)]).expect(0);
    let server = Server::start(&data);
    server.get("/readyz").expect(200);
    let position = server.accept(event("u", 1));
    assert!(position.starts_with("2-"), "{position}");
    server.stop().expect(0);
    assert_eq!(database(&data)["u"].1, 2);
    // Without a database, the existing files are counted.
    fs::remove_file(data.join("revenue.db")).unwrap();
    run(&["process", "--data-dir", arg(&data)]).expect(0);
    assert_eq!(database(&data)["u"].1, 2);
    run(&["process", "--rebuild", "--data-dir", arg(&data)]).expect(0);
    assert_eq!(database(&data)["u"].1, 2);
}

#[test]
fn endless_config_and_token_files_are_rejected() {
    // Fails if start-up reads a file of unlimited size that an option names, or waits for the
    // writer of a FIFO for ever.
    let scratch = Scratch::new();
    let fifo = scratch.path().join("fifo");
    assert!(
        Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .unwrap()
            .success()
    );
    let large = scratch.file("large", "# a comment\n".repeat(100_000));
    let events = scratch.file("events.jsonl", event("u", 1));
    let mut started = Vec::new();
    for (serves, flag, code) in [
        (true, "--token-file", 1),
        (true, "--config", 2),
        (false, "--token-file", 2),
    ] {
        for (path, text) in [
            (large.as_path(), "it has more than 1048576 bytes"),
            (Path::new("/dev/zero"), "it has more than 1048576 bytes"),
            (&fifo, "timed out waiting for its end"),
        ] {
            let data = scratch.path().join(started.len().to_string());
            let serve = ["serve", "--listen", "127.0.0.1:0", "--data-dir", arg(&data)];
            let command = if serves {
                &serve[..]
            } else {
                &["send", arg(&events)]
            };
            let mut command = tallyline(&[command, &[flag, arg(path)]].concat());
            started.push((Process::start(&mut command), flag, path, code, text));
        }
    }
    // Together, because those that read the FIFO wait for ten seconds or more.
    for (process, flag, path, code, text) in started {
        let ran = process.finish().expect(code);
        assert!(ran.stderr.contains(text), "{flag} {path:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(arg(path)), "{flag}: {}", ran.stderr);
    }
}

#[test]
fn an_unreadable_state_file_warns_that_a_new_run_counts_twice() {
    // Fails if the message suggests a new run without the warning that events would count twice.
    let scratch = Scratch::new();
    let events = scratch.file("events.jsonl", event("u", 1));
    for text in ["{\"version\":", "{\"version\":99,\"runs\":[]}"] {
        let state = scratch.file("state", text);
        let ran = run(&["send", arg(&events), "--state", arg(&state)]).expect(1);
        for text in [arg(&state), "restore it", "count twice"] {
            assert!(ran.stderr.contains(text), "{}", ran.stderr);
        }
    }
}
