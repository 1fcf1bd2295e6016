//! Which number the active segment gets, and what recovery says of a file that is not the active segment.

use std::fs;

use super::*;
use crate::data_dir::segment::{label_in_name, sealed_file_name};

/// The directory as a kill leaves it: the shutdown of the journal does not change the copy.
fn killed(dir: &Path) -> TempDir {
    let copy = TempDir::new().expect("a directory");
    for entry in fs::read_dir(dir).expect("a listing") {
        let path = entry.expect("an entry").path();
        if path.is_file() {
            let name = path.file_name().expect("a name");
            fs::copy(&path, copy.path().join(name)).expect("copied");
        }
    }
    copy
}

fn open_pruned(dir: &Path, pruned: u64) -> Open {
    let health = Arc::new(Health::default());
    let known = KnownSegments {
        pruned,
        ..KnownSegments::default()
    };
    let disk = Arc::new(RealDisk);
    let (journal, committer, recovery) =
        Journal::open(disk, dir, config(), &known, Arc::clone(&health)).expect("the journal opens");
    Open {
        journal,
        committer,
        recovery,
        health,
    }
}

/// The sealed files in the directory itself.
fn sealed_names(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).expect("a listing");
    let names = names.map(|entry| entry.expect("an entry").file_name());
    let names = names.map(|name| name.into_string().expect("UTF-8"));
    names.filter(|name| label_in_name(name).is_some()).collect()
}

#[test]
fn a_rotation_takes_no_number_that_the_processor_has_reserved() {
    // Fails if the next segment gets the number of a pruned segment or of a row, which the journal does not
    // know if the database could not be read at the start.
    let dir = TempDir::new().expect("a directory");
    let open = open(dir.path(), &[]);
    append(&open.journal, "one\n").expect("appended");
    open.journal.reserve_up_to(7);
    open.journal.reserve_all(&[9].into_iter().collect());
    for number in [8, 10] {
        rotate(&open.journal).expect("sealed");
        assert_eq!(open.journal.tail().number, number);
        append(&open.journal, "more\n").expect("appended");
    }
    open.committer.stop();
}

#[test]
fn a_pruned_number_is_neither_given_out_nor_continued() {
    // Fails if a directory that was restored beside a newer database appends to a segment whose number
    // retention has pruned: the processor would not apply it.
    let dir = TempDir::new().expect("a directory");
    open(dir.path(), &[]).committer.stop();
    let empty = open_pruned(dir.path(), 5);
    assert_eq!(empty.journal.tail().number, 6, "not started");
    empty.committer.stop();

    let dir = TempDir::new().expect("a directory");
    let first = open(dir.path(), &[]);
    append(&first.journal, "one\n").expect("appended");
    let dir = killed(dir.path());
    first.committer.stop();
    let again = open_pruned(dir.path(), 5);
    assert_eq!(again.journal.tail().number, 6, "with events");
    assert_eq!(sealed(dir.path()), [1], "kept, but not continued");
    again.committer.stop();
}

#[test]
fn a_started_segment_that_an_older_file_replaced_is_missing() {
    // Fails if recovery continues the older file and says nothing of the later one.
    let dir = TempDir::new().expect("a directory");
    let open = open(dir.path(), &[]);
    append(&open.journal, "one\n").expect("appended");
    let active = dir.path().join(ACTIVE_FILE);
    let older = fs::read(&active).expect("read");
    rotate(&open.journal).expect("sealed");
    append(&open.journal, "two\n").expect("appended");
    let copy = killed(dir.path());
    open.committer.stop();
    for name in sealed_names(copy.path()) {
        fs::remove_file(copy.path().join(name)).expect("removed");
    }
    fs::write(copy.path().join(ACTIVE_FILE), older).expect("written");
    let found = super::open(copy.path(), &[]);
    assert_eq!(found.recovery.missing, Some(2));
    assert_eq!(found.journal.tail().number, 3);
    found.committer.stop();
}

#[test]
fn an_active_file_with_the_number_of_another_sealed_one_is_set_aside() {
    // Fails if two segments of one number are accepted: only one of them would be applied.
    let dir = TempDir::new().expect("a directory");
    let open = open(dir.path(), &[]);
    append(&open.journal, "one\n").expect("appended");
    let copy = killed(dir.path());
    let tail = open.journal.tail();
    open.committer.stop();
    let mut label = Label {
        number: tail.number,
        tag: tail.tag,
    };
    label.tag.token ^= 1;
    let name = sealed_file_name(label, std::time::SystemTime::now());
    fs::write(copy.path().join(name), "other\n").expect("written");
    let found = super::open(copy.path(), &[]);
    let contradiction = found.recovery.contradiction.expect("reported");
    assert!(contradiction.contains("segment 1"), "{contradiction}");
    found.committer.stop();
}
