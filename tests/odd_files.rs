//! What is called like a segment and is no file that can be read: it is named, skipped, and the
//! others go on. Nothing is opened that could block.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use super::harness::{PATIENCE, Scratch, Server, arg, database, event, run, until};

/// Puts one of each kind into a directory; the words that name them.
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
fn a_server_names_what_is_no_file_and_applies_the_others() {
    // Red if a FIFO holds up the applying, a scrape or the stop, or an odd thing goes unnamed.
    for more in [&[][..], &["--no-process"]] {
        let scratch = Scratch::new();
        let data = scratch.data();
        fs::create_dir_all(&data).unwrap();
        let words = odd_things(&data);
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
        let ready = until(PATIENCE, "each is named", || {
            let ready = server.get("/readyz").text();
            let named =
                |word: &&str| ready.contains(*word) || !applies && word.contains("directory");
            words.iter().all(named).then_some(ready)
        });
        server.get("/metrics").expect(200);
        server.get("/segments").expect(200);
        // Moved away, they are forgotten.
        for entry in fs::read_dir(&data).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if name.starts_with("events_") && name != "events_zz.jsonl" {
                fs::remove_file(&path)
                    .or_else(|_| fs::remove_dir(&path))
                    .unwrap();
            }
        }
        until(PATIENCE, &format!("green again: {ready}"), || {
            (server.get("/readyz").status == 200).then_some(())
        });
        server.stop().expect(0);
    }
}

#[test]
fn process_skips_them_with_3_and_refuses_them_with_1_when_named() {
    // Red if `process` stops at the first of them, hangs, or ends as if all were well.
    let scratch = Scratch::new();
    let data = scratch.data();
    fs::create_dir_all(&data).unwrap();
    let words = odd_things(&data);
    fs::write(data.join("events_zz.jsonl"), event("z", 1)).unwrap();
    let ran = run(&["process", "--data-dir", arg(&data)]).expect(3);
    for word in &words {
        assert!(ran.stderr.contains(word), "{word}: {ran}");
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
fn a_month_that_is_a_link_is_followed() {
    // Red if archived segments that were moved to another disk, with a link in their place, are
    // taken for missing, or their numbers used again.
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
    // Without a database, what is there counts.
    fs::remove_file(data.join("revenue.db")).unwrap();
    run(&["process", "--data-dir", arg(&data)]).expect(0);
    assert_eq!(database(&data)["u"].1, 2);
    run(&["process", "--rebuild", "--data-dir", arg(&data)]).expect(0);
    assert_eq!(database(&data)["u"].1, 2);
}

#[test]
fn settings_and_tokens_that_do_not_end_are_refused() {
    // Red if start-up reads a file that a person named without a bound, or waits for a FIFO's writer
    // for ever.
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
    let large = scratch.file("large", "# a comment\n".repeat(100_000));
    let events = scratch.file("events.jsonl", event("u", 1));
    let serve = ["serve", "--listen", "127.0.0.1:0", "--data-dir", arg(&data)];
    let send = ["send", arg(&events)];
    for (command, flag, code) in [
        (&serve[..], "--token-file", 1),
        (&serve, "--config", 2),
        (&send, "--token-file", 2),
    ] {
        for (path, words) in [
            (large.as_path(), "it has more than 1048576 bytes"),
            (Path::new("/dev/zero"), "it has more than 1048576 bytes"),
            (&fifo, "timed out waiting for its end"),
        ] {
            let ran = run(&[command, &[flag, arg(path)]].concat()).expect(code);
            assert!(
                ran.stderr.contains(words),
                "{flag} {path:?}: {}",
                ran.stderr
            );
            assert!(ran.stderr.contains(arg(path)), "{flag}: {}", ran.stderr);
        }
    }
}

#[test]
fn a_state_file_that_does_not_read_says_that_a_new_run_counts_again() {
    // Red if the advice is to start anew without saying that what was sent counts twice.
    let scratch = Scratch::new();
    let events = scratch.file("events.jsonl", event("u", 1));
    for text in ["{\"version\":", "{\"version\":99,\"runs\":[]}"] {
        let state = scratch.file("state", text);
        let ran = run(&["send", arg(&events), "--state", arg(&state)]).expect(1);
        for words in [arg(&state), "restore it", "count twice"] {
            assert!(ran.stderr.contains(words), "{}", ran.stderr);
        }
    }
}
