//! Changes of the database file by programs that do not follow SQLite's locking.

use std::path::Path;

use crate::data_dir::disk::with_suffix;
use crate::store::{DATABASE_FILE, Existing, Writer};

/// A change of the file at this path.
type Change = fn(&Path);

#[test]
fn only_a_write_in_place_is_an_overwritten_file() {
    // Fails if a file that was removed or replaced after the files were compared, and before the file
    // was examined, is taken for one that was written in place: its -wal would be treated as the one of
    // the file at the path.
    let changes: [(&str, Change, bool); 5] = [
        ("nothing", |_| {}, false),
        (
            "its -wal is emptied",
            |path| {
                let wal = std::fs::OpenOptions::new()
                    .write(true)
                    .open(with_suffix(path, "-wal"));
                wal.and_then(|wal| wal.set_len(0)).expect("emptied");
            },
            true,
        ),
        (
            "written",
            |path| {
                let file = std::fs::OpenOptions::new().append(true).open(path);
                let file = file.expect("it opens");
                let later = std::time::SystemTime::now() + std::time::Duration::from_secs(9);
                file.set_modified(later).expect("set");
            },
            true,
        ),
        (
            "removed",
            |path| std::fs::remove_file(path).expect("removed"),
            false,
        ),
        (
            "replaced",
            |path| {
                let other = with_suffix(path, ".new");
                std::fs::copy(path, &other).expect("copied");
                std::fs::rename(&other, path).expect("renamed");
            },
            false,
        ),
    ];
    for (name, change, overwritten) in changes {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(DATABASE_FILE);
        let mut writer = Writer::open(&path, Existing::OrCreate).expect("it opens");
        writer.note_written().expect("noted");
        assert_eq!(writer.replaced(), None, "{name}");
        // Between the comparison of the files and the examination.
        change(&path);
        let found = writer.is_overwritten().expect("examined");
        assert_eq!(found, overwritten, "{name}");
        let other_file = name == "removed" || name == "replaced";
        assert_eq!(writer.replaced().is_some(), other_file, "{name}");
        writer.abandon();
    }
}

#[test]
fn a_checkpoint_is_incomplete_while_the_wal_is_not_at_its_path() {
    // Fails if a file is pruned whose commit is only in a -wal that another program removed: that ends
    // with the process.
    for replaced in [false, true] {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(DATABASE_FILE);
        let mut writer = Writer::open(&path, Existing::OrCreate).expect("it opens");
        writer.set_clock(1).expect("written");
        let wal = with_suffix(&path, "-wal");
        std::fs::remove_file(&wal).expect("removed");
        if replaced {
            std::fs::write(&wal, "").expect("written");
        }
        assert!(!writer.checkpoint().expect("examined"), "{replaced}");
        writer.abandon();
    }
}
