//! Test helpers that write segments and `directory.json` without a journal.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use super::directory::{DIRECTORY_FILE, Directory, directory_tag};
use crate::data_dir::disk::RealDisk;
use crate::data_dir::segment::{ACTIVE_FILE, DirectoryTag, Label, Tag, sealed_file_name};

/// The directory tag of `dir`, or a random one if it has no `directory.json`.
pub(crate) fn tag_of(dir: &Path) -> DirectoryTag {
    directory_tag(directory(dir).id)
}

fn directory(dir: &Path) -> Directory {
    let found = Directory::read(&RealDisk, dir).expect("it is read");
    found.unwrap_or_default()
}

/// The label that [`write_sealed`] writes.
pub(crate) fn label(dir: &Path, number: u64) -> Label {
    let tag = Tag {
        directory: tag_of(dir),
        token: 1,
    };
    Label { number, tag }
}

/// Writes a sealed native segment and advances `directory.json` past its number.
pub(crate) fn write_sealed(dir: &Path, number: u64, text: &str) -> PathBuf {
    let mut directory = directory(dir);
    directory.number = directory.number.max(number + 1);
    directory.write(&RealDisk, dir).expect("it is written");
    assert!(dir.join(DIRECTORY_FILE).exists());
    let label = label(dir, number);
    let at = UNIX_EPOCH + Duration::from_millis(1_795_329_660_123);
    let path = dir.join(sealed_file_name(label, at));
    fs::write(&path, labelled(label, text)).expect("it is written");
    path
}

/// Writes the active file, and a `directory.json` in which segment `number` has started.
pub(crate) fn write_active(dir: &Path, number: u64, text: &str) {
    let mut directory = directory(dir);
    directory.number = number;
    directory.token = 1;
    directory.started = true;
    directory.write(&RealDisk, dir).expect("it is written");
    let text = labelled(label(dir, number), text);
    fs::write(dir.join(ACTIVE_FILE), text).expect("it is written");
}

/// The text with the label at the end of its first line.
pub(crate) fn labelled(label: Label, text: &str) -> Vec<u8> {
    let (line, rest) = text.split_at(text.find('\n').unwrap_or(text.len()));
    let blanks = label.encode();
    [line.as_bytes(), blanks.as_slice(), rest.as_bytes()].concat()
}
