//! Changes of the active file by other programs at moments when only one check can find them, and the
//! boundary of rotation by size. The periodic check does not run in these tests.

use std::fs::{self, OpenOptions};
use std::io::Write as _;

use super::*;
use crate::data_dir::disk::{DiskLayer, FileLayer};

fn unchecked() -> JournalConfig {
    JournalConfig {
        check_every: Duration::from_hours(1),
        ..config()
    }
}

/// Writes to the active file as another program does.
fn write_as_another_program(path: &Path) {
    let file = OpenOptions::new().append(true).open(path);
    file.and_then(|mut file| file.write_all(b"foreign\n"))
        .expect("written");
}

/// A disk on which another program appends to each file right after it was written to.
struct Racing;

struct RacingFile(Arc<dyn DiskFile>, std::path::PathBuf);

impl DiskLayer for Racing {
    fn below(&self) -> &dyn Disk {
        &RealDisk
    }

    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = RealDisk.create_new(path)?;
        Ok(Arc::new(RacingFile(file, path.to_owned())))
    }
}

impl FileLayer for RacingFile {
    fn below(&self) -> &dyn DiskFile {
        &*self.0
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)?;
        if self.1.ends_with(ACTIVE_FILE) {
            write_as_another_program(&self.1);
        }
        Ok(())
    }
}

#[test]
fn a_rotation_seals_no_file_that_another_program_has_written_to() {
    // Fails if the name of the sealed file says that it has fewer bytes than it has: its events would not be
    // applied.
    let dir = TempDir::new().expect("a directory");
    let open = open_with(Arc::new(RealDisk), dir.path(), unchecked(), &[]);
    append(&open.journal, "one\n").expect("appended");
    write_as_another_program(&dir.path().join(ACTIVE_FILE));
    let error = rotate(&open.journal).expect_err("not sealed").to_string();
    assert!(error.contains("another program wrote to it"), "{error}");
    assert_eq!(sealed(dir.path()), Vec::<u64>::new());
    let left = open
        .committer
        .stop()
        .expect("not sealed at the stop either");
    assert!(left.contains("another program wrote to it"), "{left}");
}

#[test]
fn an_append_beside_another_writer_is_not_acknowledged() {
    // Fails if the length of the file is not examined after the write: the line could have been overwritten.
    let dir = TempDir::new().expect("a directory");
    let open = open_with(Arc::new(Racing), dir.path(), unchecked(), &[]);
    let error = append(&open.journal, "one\n");
    assert!(matches!(error, Err(AppendError::Unknown(_))), "{error:?}");
    assert!(open.health.is_set("journal"));
    open.committer.stop();
}

#[test]
fn a_file_that_another_program_removed_is_not_acknowledged() {
    // Fails if a line is acknowledged that only a file without a name has.
    let dir = TempDir::new().expect("a directory");
    let open = open_with(Arc::new(RealDisk), dir.path(), unchecked(), &[]);
    append(&open.journal, "one\n").expect("appended");
    fs::remove_file(dir.path().join(ACTIVE_FILE)).expect("removed");
    let error = append(&open.journal, "two\n");
    assert!(matches!(error, Err(AppendError::Unknown(_))), "{error:?}");
    open.committer.stop();
}

#[test]
fn a_segment_of_exactly_the_maximum_size_is_sealed() {
    // Fails if `--rotate-size` is the last size at which a segment is continued.
    for (beyond, seals) in [(0, true), (5, false)] {
        let dir = TempDir::new().expect("a directory");
        let config = JournalConfig {
            rotate_size: LABEL + 4 + beyond,
            ..unchecked()
        };
        let open = open_with(Arc::new(RealDisk), dir.path(), config, &[]);
        append(&open.journal, "one\n").expect("appended");
        // Of two appends, the second is executed after the rotation that the first one causes.
        append(&open.journal, "two\n").expect("appended");
        assert_eq!(sealed(dir.path()).first() == Some(&1), seals, "{beyond}");
        open.committer.stop();
    }
}

/// A disk on which no file can grow beyond this many bytes, as with `ulimit -f`.
struct Limited(u64);

struct LimitedFile(Arc<dyn DiskFile>, u64);

impl DiskLayer for Limited {
    fn below(&self) -> &dyn Disk {
        &RealDisk
    }

    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(LimitedFile(RealDisk.create_new(path)?, self.0)))
    }
}

impl FileLayer for LimitedFile {
    fn below(&self) -> &dyn DiskFile {
        &*self.0
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if offset + bytes.len() as u64 > self.1 {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.write_all_at(bytes, offset)
    }
}

#[test]
fn a_segment_at_the_file_size_limit_is_sealed_at_once() {
    // Fails if events are refused until the segment is old enough to be sealed: the limit applies to one file.
    let dir = TempDir::new().expect("a directory");
    let open = open_with(Arc::new(Limited(500)), dir.path(), unchecked(), &[]);
    let line = "x".repeat(300) + "\n";
    append(&open.journal, &line).expect("appended");
    let error = append(&open.journal, &line);
    assert!(matches!(error, Err(AppendError::DiskFull(_))), "{error:?}");
    until("sealed", || open.journal.tail().number == 2);
    append(&open.journal, &line).expect("appended to the next segment");
    assert_eq!(open.committer.stop(), None);
    assert_eq!(sealed(dir.path()), [1, 2]);
}
