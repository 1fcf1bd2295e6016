//! The files of a database: whether they are those that this process opened, and what is done if not.

use std::path::Path;

use crate::data_dir::disk::{Disk as _, Identity, RealDisk, with_suffix};

/// The suffixes of the files of a database.
const SUFFIXES: [&str; 3] = ["", "-wal", "-shm"];
const DATABASE: usize = 0;
pub(super) const WAL: usize = 1;
pub(super) const SHM: usize = 2;

pub(super) type Files = [Option<Identity>; SUFFIXES.len()];

/// Cleans up after files of the database were removed or replaced, when this process has none of them
/// open and before the next connection opens them. `ours` are the files that this process had open.
///
/// - The database file is another one or missing, and the old `-wal` still exists: SQLite would replay
///   it into the new file. It is removed together with its `-shm`. A new `-wal` belongs to the new file
///   and is kept.
/// - The database file is the same, but the `-wal` is another one: this process did not write it, and
///   it may be based on another state. It is renamed and never used. If the `-wal` is missing or was
///   renamed, the `-shm`, which describes the old one, is removed.
/// - The database file and the `-wal` are the same, and the `-shm` is missing or another one: the two
///   files contain all commits, and SQLite creates the `-shm` again. Nothing is removed.
pub(super) fn clear_away(path: &Path, ours: Files) {
    let now = files_at(path);
    let at = |file: usize| with_suffix(path, SUFFIXES[file]);
    let same = |file: usize| now[file].is_some() && now[file] == ours[file];
    let other_wal = ours[WAL].is_some() && !same(WAL);
    if same(DATABASE) {
        if other_wal {
            if now[WAL].is_some() {
                set_aside(&at(WAL));
            }
            remove(&at(SHM));
        }
    } else if same(WAL) {
        remove(&at(WAL));
        if same(SHM) {
            remove(&at(SHM));
        }
    }
}

fn remove(path: &Path) {
    match RealDisk.remove(path) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "cannot remove a file that belongs to the replaced database");
        }
    }
}

/// Renames a file, so that SQLite does not use it. It is not deleted, because this program did not
/// write it.
fn set_aside(path: &Path) {
    for number in 1.. {
        let aside = with_suffix(path, &format!(".aside-{number}"));
        match RealDisk.rename_new(path, &aside) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "cannot rename a file of the database that another program created");
                return;
            }
            Ok(()) => {
                tracing::warn!(
                    "{} was not written by this server and was renamed to {}; it can be deleted",
                    path.display(),
                    aside.display()
                );
                return;
            }
        }
    }
}

pub(super) fn files_at(path: &Path) -> Files {
    SUFFIXES.map(|suffix| RealDisk.identity(&with_suffix(path, suffix)).ok().flatten())
}

/// Describes a file that is no longer the one in `ours`; `None` if all are.
pub(super) fn change(path: &Path, ours: &Files) -> Option<String> {
    let now = files_at(path);
    (0..SUFFIXES.len())
        .find(|&file| ours[file].is_some() && now[file] != ours[file])
        .map(|file| {
            let name = with_suffix(path, SUFFIXES[file]);
            let name = name
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let what = if now[file].is_none() {
                "removed"
            } else {
                "replaced"
            };
            format!("{name} was {what}")
        })
}
