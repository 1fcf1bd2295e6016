//! A segment of another data directory that is in this one under several names: shorter and longer copies, and
//! the two ends that it has after its directory was copied and both went on.
//!
//! Its label tells that the files are one segment. The first is applied; the others are refused, and
//! `tallyline process FILE` imports what they have more.

use std::fs;
use std::path::{Path, PathBuf};

use super::harness::{
    PATIENCE, Ran, Scratch, Server, arg, copy_tree, event, files_below, names_in, run, until,
};
use super::identity::{post, process, reasons, revenue, sealed, serve, verify};

/// A directory whose one segment has 17 events, and a copy of its active file with the first 10.
fn other_directory(scratch: &Scratch) -> (PathBuf, PathBuf) {
    let a = scratch.path().join("a");
    let server = Server::start(&a);
    for _ in 0..10 {
        server.accept(event("u", 1));
    }
    let first = scratch.path().join("first.jsonl");
    fs::copy(a.join("events.jsonl"), &first).unwrap();
    post(&server, 7);
    server.stop().expect(0);
    (first, sealed(&a).pop().unwrap().1)
}

/// Copies a file into a directory under its own name, or another one.
fn drop_in(file: &Path, data: &Path, name: Option<&str>) -> PathBuf {
    fs::create_dir_all(data).unwrap();
    let to = data.join(name.unwrap_or(file.file_name().unwrap().to_str().unwrap()));
    fs::copy(file, &to).unwrap();
    to
}

/// Imports these files in one run.
fn import(data: &Path, files: &[impl AsRef<Path>]) -> Ran {
    let mut args = vec!["process", "--data-dir", arg(data)];
    args.extend(files.iter().map(|file| arg(file.as_ref())));
    run(&args)
}

fn rebuild(data: &Path) -> Ran {
    run(&["process", "--rebuild", "--data-dir", arg(data)])
}

/// Moves the file out, and imports it from there.
#[track_caller]
fn import_again(scratch: &Scratch, data: &Path, file: &Path) {
    let away = scratch.path().join(file.file_name().unwrap());
    fs::rename(file, &away).unwrap();
    import(data, &[&away]).expect(0);
}

const REFUSED: &str = "has lines of segment 1 of the data directory";

#[test]
fn a_longer_copy_of_an_imported_segment_is_refused_and_its_rest_can_be_imported() {
    // Fails if the common lines count twice (27 instead of 17), if readiness or verify do not say why the second
    // file is not applied, or if the advice does not lead to the right total.
    let scratch = Scratch::new();
    let (first, whole) = other_directory(&scratch);
    let data = scratch.data();
    let server = Server::with(&data, &["--flush-interval", "10ms"]);
    drop_in(&first, &data, Some("events_a.jsonl"));
    until(PATIENCE, "it is archived", || {
        (!data.join("events_a.jsonl").exists()).then_some(())
    });
    let refused = drop_in(&whole, &data, None);
    until(PATIENCE, "it is reported", || {
        reasons(&server).contains(REFUSED).then_some(())
    });
    assert!(reasons(&server).contains("so does events_a.jsonl"));
    server.stop().expect(0);
    assert_eq!(revenue(&data), 10);
    let ran = verify(&data).expect(1);
    assert!(ran.stdout.contains(REFUSED), "{ran}");
    import_again(&scratch, &data, &refused);
    assert_eq!(revenue(&data), 17);
    verify(&data).expect(0);
    // The labels are found again.
    rebuild(&data).expect(0);
    assert_eq!(revenue(&data), 17);
    drop_in(&whole, &data, None);
    let ran = process(&data).expect(1);
    assert!(ran.stderr.contains(REFUSED), "{ran}");
    assert_eq!(revenue(&data), 17);
}

#[test]
fn a_shorter_copy_of_an_imported_segment_is_refused_even_without_the_file_of_that() {
    // Fails if the label of an imported file is looked for in its file only, or if it is compared by its
    // checksum only, which a shorter copy does not have.
    let scratch = Scratch::new();
    let (first, whole) = other_directory(&scratch);
    let data = scratch.data();
    drop_in(&whole, &data, Some("events_whole.jsonl"));
    process(&data).expect(0);
    assert_eq!(revenue(&data), 17);
    fs::remove_dir_all(data.join("applied")).unwrap();
    drop_in(&first, &data, Some("events_a.jsonl"));
    let ran = process(&data).expect(1);
    assert!(ran.stderr.contains("so does events_whole.jsonl"), "{ran}");
    assert_eq!(revenue(&data), 17);
}

#[test]
fn two_copies_of_a_segment_dropped_together_count_once() {
    // Fails if a file is compared only with files that were committed before.
    let scratch = Scratch::new();
    let (first, whole) = other_directory(&scratch);
    let data = scratch.data();
    drop_in(&whole, &data, None);
    drop_in(&first, &data, Some("events_a.jsonl"));
    let ran = process(&data).expect(1);
    assert!(ran.stderr.contains(REFUSED), "{ran}");
    assert_eq!(revenue(&data), 17);
    let server = Server::start(&data);
    until(PATIENCE, "it is reported", || {
        reasons(&server).contains(REFUSED).then_some(())
    });
    server.stop().expect(0);
    assert_eq!(revenue(&data), 17);
    // All its lines are known.
    let away = scratch.path().join("a.jsonl");
    fs::rename(data.join("events_a.jsonl"), &away).unwrap();
    import(&data, &[&away]).expect(0);
    assert_eq!(revenue(&data), 17);
    verify(&data).expect(0);
}

#[test]
fn a_segment_with_two_ends_counts_its_beginning_once() {
    // Fails if the segments of two copies of a directory, which have different names, both count from their
    // start.
    let scratch = Scratch::new();
    let a = scratch.path().join("a");
    let server = Server::start(&a);
    for _ in 0..10 {
        server.accept(event("u", 1));
    }
    server.kill();
    let clone = scratch.path().join("clone");
    copy_tree(&a, &clone);
    serve(&a, 4).stop().expect(0);
    let server = Server::start(&clone);
    server.accept(event("u", 100));
    server.stop().expect(0);
    // In a rebuild, the part that is imported below comes after files with their own names and before the others.
    for names in [
        [None, None],
        [Some("events_x1.jsonl"), Some("events_x2.jsonl")],
    ] {
        let data = scratch
            .path()
            .join(if names[0].is_none() { "own" } else { "other" });
        for (of, name) in [&a, &clone].into_iter().zip(names) {
            drop_in(&sealed(of).first().unwrap().1, &data, name);
        }
        let ran = process(&data).expect(1);
        assert!(ran.stderr.contains(REFUSED), "{ran}");
        assert!([14, 110].contains(&revenue(&data)), "{}", revenue(&data));
        let is_left = |name: &String| name.starts_with("events") && name != "events.jsonl";
        let left = names_in(&data).into_iter().find(is_left).unwrap();
        let away = scratch.path().join("fork.jsonl");
        fs::rename(data.join(&left), &away).unwrap();
        // The own events of both are counted; which of the common ones were received twice is not known.
        let ran = import(&data, &[&away]).expect(3);
        assert!(ran.stderr.contains("received its own events"), "{ran}");
        assert_eq!(revenue(&data), 114);
        rebuild(&data).expect(0);
        assert_eq!(revenue(&data), 114, "both parts are applied by a rebuild");
        verify(&data).expect(0);
    }
}

#[test]
fn an_active_file_of_another_directory_is_named_and_can_be_imported() {
    // Fails if the reason says that it has no label, or if its lines do not count after the advice was followed.
    let scratch = Scratch::new();
    let (first, _) = other_directory(&scratch);
    let data = scratch.data();
    let server = Server::start(&data);
    server
        .post("/liveEvent?ack=applied", event("u", 100))
        .expect(200);
    server.kill();
    fs::copy(&first, data.join("events.jsonl")).unwrap();
    let server = Server::start(&data);
    let reported = reasons(&server);
    assert!(
        reported.contains("it is segment 1 of the data directory"),
        "{reported}"
    );
    server.stop().expect(0);
    let aside = files_below(&data.join("quarantine")).pop().unwrap();
    import(&data, &[&aside]).expect(0);
    assert_eq!(revenue(&data), 110);
}

/// Both parts of the segment of `a` that another directory has imported, the first one first.
fn parts(scratch: &Scratch, first: &Path, whole: &Path) -> Vec<PathBuf> {
    let other = scratch.path().join("importer");
    fs::create_dir_all(&other).unwrap();
    for file in [first, whole] {
        import(&other, &[&file]).expect(0);
    }
    let mut parts = files_below(&other.join("applied"));
    parts.sort();
    assert_eq!(parts.len(), 2);
    parts
}

#[test]
fn parts_of_an_own_segment_do_not_count_beside_it() {
    // Fails if parts of our segment, which another directory has imported, count when they come back; or if the
    // segment counts when its parts do already.
    let scratch = Scratch::new();
    let (first, whole) = other_directory(&scratch);
    let a = scratch.path().join("a");
    let identity = fs::read(a.join("directory.json")).unwrap();
    for part in parts(&scratch, &first, &whole) {
        drop_in(&part, &a, None);
    }
    let ran = process(&a).expect(1);
    assert_eq!(ran.stderr.matches(REFUSED).count(), 2, "{ran}");
    assert_eq!(revenue(&a), 17);
    rebuild(&a).expect(1);
    assert_eq!(revenue(&a), 17, "they are in one transaction");
    let data = scratch.data();
    for part in parts(&scratch, &first, &whole) {
        drop_in(&part, &data, None);
    }
    fs::write(data.join("directory.json"), identity).unwrap();
    let ran = process(&data).expect(1);
    assert!(ran.stdout.contains("missing: segments 1"), "{ran}");
    assert_eq!(revenue(&data), 17);
    drop_in(&whole, &data, None);
    let ran = process(&data).expect(1);
    assert!(ran.stderr.contains(REFUSED), "{ran}");
    assert_eq!(revenue(&data), 17);
}

#[test]
fn the_beginning_of_a_segment_is_imported_beside_its_rest() {
    // Fails if all lines before a part that is counted are taken for counted.
    let scratch = Scratch::new();
    let (first, whole) = other_directory(&scratch);
    let rest = parts(&scratch, &first, &whole).pop().unwrap();
    let data = scratch.data();
    drop_in(&rest, &data, None);
    process(&data).expect(0);
    assert_eq!(revenue(&data), 7);
    import(&data, &[&whole]).expect(0);
    assert_eq!(revenue(&data), 17);
    let ran = import(&data, &[&whole]).expect(0);
    assert!(ran.stdout.contains("skipped"), "{ran}");
    assert_eq!(revenue(&data), 17);
}

#[test]
fn files_of_one_segment_named_together_count_once() {
    // Fails if a file is compared only with what is applied, not with the files named before it.
    let scratch = Scratch::new();
    let (first, whole) = other_directory(&scratch);
    for (at, files) in [[&first, &whole], [&whole, &first]].into_iter().enumerate() {
        let data = scratch.path().join(at.to_string());
        fs::create_dir_all(&data).unwrap();
        import(&data, &files).expect(0);
        assert_eq!(revenue(&data), 17);
        verify(&data).expect(0);
    }
    // Two ends of a segment, of which one is there in two lengths.
    let fork = fs::read_to_string(&first).unwrap() + &event("u", 100);
    let longer = scratch.file("longer.jsonl", fork.clone() + &event("u", 1000));
    let shorter = scratch.file("shorter.jsonl", fork);
    for (at, files) in [[&longer, &shorter], [&shorter, &longer]]
        .into_iter()
        .enumerate()
    {
        let data = scratch.path().join(format!("fork{at}"));
        drop_in(&whole, &data, Some("events_a.jsonl"));
        process(&data).expect(0);
        import(&data, &files).expect(3);
        assert_eq!(revenue(&data), 17 + 1100);
    }
}

#[test]
fn lines_of_a_file_that_is_not_applied_are_imported() {
    // Fails if the lines of a copy that was broken off, and that is never applied, are taken for counted.
    let scratch = Scratch::new();
    let (_, whole) = other_directory(&scratch);
    let data = scratch.data();
    let broken = drop_in(&whole, &data, None);
    fs::OpenOptions::new()
        .write(true)
        .open(&broken)
        .and_then(|file| file.set_len(600))
        .unwrap();
    import(&data, &[&whole]).expect(0);
    assert_eq!(revenue(&data), 17);
}

#[test]
fn a_last_line_without_its_end_is_not_imported_again() {
    // Fails if the line before the last line end is taken for the last one that is counted.
    let scratch = Scratch::new();
    let (first, whole) = other_directory(&scratch);
    let data = scratch.data();
    let cut = drop_in(&first, &data, Some("events_a.jsonl"));
    let text = fs::read(&cut).unwrap();
    fs::write(&cut, text.strip_suffix(b"\n").unwrap()).unwrap();
    process(&data).expect(0);
    assert_eq!(revenue(&data), 10);
    import(&data, &[&whole]).expect(0);
    assert_eq!(revenue(&data), 17);
}

#[test]
fn several_segments_in_one_file_are_refused() {
    // Fails if a file with the lines of two segments is applied: each of them alone would count again.
    let scratch = Scratch::new();
    let (_, whole) = other_directory(&scratch);
    let other = scratch.path().join("other");
    serve(&other, 3).stop().expect(0);
    let further = sealed(&other).pop().unwrap().1;
    let data = scratch.data();
    fs::create_dir_all(&data).unwrap();
    let both = [fs::read(&whole).unwrap(), fs::read(&further).unwrap()].concat();
    fs::write(data.join("events_all.jsonl"), both).unwrap();
    let ran = process(&data).expect(1);
    assert!(ran.stderr.contains("several segments in one file"), "{ran}");
    assert_eq!(revenue(&data), 0);
}

#[test]
fn a_part_that_was_truncated_or_edited_is_not_applied() {
    // Fails if the length and the checksum in its name are not compared: the original would be skipped afterwards.
    let scratch = Scratch::new();
    let (first, whole) = other_directory(&scratch);
    let part = parts(&scratch, &first, &whole).remove(0);
    let data = scratch.data();
    let dropped = drop_in(&part, &data, None);
    let text = fs::read_to_string(&dropped).unwrap();
    let edited = text.replace("\"value\":1", "\"value\":9");
    assert_ne!(edited, text);
    for (bad, reason) in [
        (edited.as_str(), "it was changed"),
        (&text[..500], "has only 500"),
    ] {
        fs::write(&dropped, bad).unwrap();
        let ran = process(&data).expect(1);
        assert!(ran.stderr.contains(reason), "{ran}");
        assert_eq!(revenue(&data), 0);
    }
    fs::create_dir_all(data.join("quarantine")).unwrap();
    let aside = data.join("quarantine").join(dropped.file_name().unwrap());
    fs::rename(&dropped, aside).unwrap();
    import(&data, &[&whole]).expect(0);
    assert_eq!(revenue(&data), 17);
}

#[test]
fn an_own_segment_with_a_changed_beginning_is_not_imported() {
    // Fails if a byte order mark makes all lines of an applied segment count again.
    let scratch = Scratch::new();
    let (_, whole) = other_directory(&scratch);
    let marked = [b"\xef\xbb\xbf", &fs::read(&whole).unwrap()[..]].concat();
    let file = scratch.file("marked.jsonl", marked);
    let a = scratch.path().join("a");
    import(&a, &[&file]).expect(1);
    assert_eq!(revenue(&a), 17);
}
