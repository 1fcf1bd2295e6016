//! Finds the former content of an input whose file was rotated, as logrotate does.
//!
//! The path then names a new file, and the former one is beside it: renamed, copied, or compressed with
//! gzip. A file whose content is not the one that was sent may also have been edited, and then its
//! unchanged lines would count again. Therefore the former content must be found, under a name that
//! rotation gives, before the new content is sent as a new run. It is recognised by the length and the
//! checksum in the state file. Lines that were added to it before the rotation are sent first.

use std::ffi::OsStr;
use std::fs::Metadata;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::cover::Cover;
use super::error::SendError;
use super::input::InputSource;
use super::reading::{Filled, identity};
use super::resume;
use super::state::Record;
use crate::cli::config::SendConfig;
use crate::shutdown::Shutdown;

/// The former content of an input, at the end of what was acknowledged of it.
type Rotated = (InputSource, Cover);

/// The file at the path of an input, and the run that was sent from the former one.
pub(super) struct Search<'a> {
    config: &'a SendConfig,
    path: &'a Path,
    record: &'a Record,
    stop: &'a Shutdown,
}

impl<'a> Search<'a> {
    pub(super) fn new(
        config: &'a SendConfig,
        path: &'a Path,
        record: &'a Record,
        stop: &'a Shutdown,
    ) -> Self {
        Self {
            config,
            path,
            record,
            stop,
        }
    }

    /// The former content of a file that is not followed: only under a name that rotation gives. A copy
    /// must have another first line than the file: with the same one, the file was probably edited.
    pub(super) fn by_name(&self) -> Option<Rotated> {
        self.find(|name, renamed, _| {
            is_rotation_of(name, self.name())
                && (renamed || self.first_line(name) != self.first_line(self.name()))
        })
    }

    /// The former content of a followed file, which grows and is not edited: also under another name, if
    /// it was renamed, or copied after the last write of the state (`written`).
    pub(super) fn of_followed(&self, written: Option<SystemTime>) -> Option<Rotated> {
        self.find(|name, renamed, metadata| {
            let made = metadata.created().ok();
            let copied = self.record.bytes > 0 && made.is_some() && made >= written;
            renamed || copied || is_rotation_of(name, self.name())
        })
    }

    fn name(&self) -> &OsStr {
        self.path.file_name().unwrap_or_default()
    }

    fn dir(&self) -> &Path {
        let dir = self.path.parent();
        dir.filter(|dir| !dir.as_os_str().is_empty())
            .unwrap_or(Path::new("."))
    }

    /// The other regular files of the directory.
    fn others(&self) -> Vec<(PathBuf, Metadata)> {
        let own = std::fs::metadata(self.path).map(|metadata| identity(&metadata));
        let entries = std::fs::read_dir(self.dir()).into_iter().flatten();
        let files = entries.flatten().filter_map(|entry| {
            let metadata = entry.metadata().ok()?;
            let other = !own.as_ref().is_ok_and(|own| *own == identity(&metadata));
            (metadata.is_file() && other).then_some((entry.path(), metadata))
        });
        files.collect()
    }

    /// The newest file that may be the former one and has its content; before all others, that with its
    /// inode. Files that cannot be read are skipped.
    fn find(&self, may_be: impl Fn(&OsStr, bool, &Metadata) -> bool) -> Option<Rotated> {
        let run = (self.record.device, self.record.inode);
        let mut found = self.others();
        found.sort_by_key(|(_, metadata)| (identity(metadata) == run, metadata.modified().ok()));
        found.iter().rev().find_map(|(path, metadata)| {
            let name = path.file_name().unwrap_or_default();
            if !may_be(name, identity(metadata) == run, metadata) {
                return None;
            }
            let mut source = InputSource::file(path, self.stop).ok()?;
            let cover = resume_rotated(self.config, &mut source, self.record)?;
            self.warn_of_later(metadata);
            Some((source, cover))
        })
    }

    /// The first line of a file of the directory, inflated.
    fn first_line(&self, name: &OsStr) -> Option<Vec<u8>> {
        let mut source = InputSource::file(&self.dir().join(name), self.stop).ok()?;
        let mut text = Vec::new();
        loop {
            let filled = source.fill(&mut text).ok()?;
            if let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                text.truncate(end);
            } else if filled != Filled::End {
                continue;
            }
            return Some(text);
        }
    }

    /// Files that were rotated after the former one were at the path between two runs and are not sent.
    fn warn_of_later(&self, former: &Metadata) {
        for (path, metadata) in self.others() {
            let name = path.file_name().unwrap_or_default();
            if is_rotation_of(name, self.name())
                && metadata.modified().ok() > former.modified().ok()
            {
                tracing::warn!(
                    "{0} was rotated after the last send of {1} and is not part of this one; if it was not sent, run: tallyline send {0}",
                    path.display(),
                    self.path.display()
                );
            }
        }
    }
}

/// Advances a rotated file to where the run ended; `None` if it has other content.
pub(super) fn resume_rotated(
    config: &SendConfig,
    source: &mut InputSource,
    record: &Record,
) -> Option<Cover> {
    source.rewind().ok()?;
    if let Ok(Some(cover)) = resume(config, source, record) {
        return Some(cover);
    }
    let (_, compressed) = source.open_file()?;
    if !compressed || record.checked_bytes == 0 {
        return None;
    }
    // The compressed copy of a plain file. The state will hold the checksum of the compressed bytes.
    let mut skip = |bytes| -> Result<Option<u32>, SendError> {
        source.rewind()?;
        source.skip(bytes)
    };
    let same = skip(record.checked_bytes).ok()? == Some(record.checked_crc32);
    (same && skip(record.bytes).ok()?.is_some()).then(Cover::default)
}

/// Whether rotation may have given the name to a file called `of`: with a number or a date after it or
/// before its extension, such as `app.jsonl.1`, `app.jsonl-20261127.gz` or `app-2026-11-27.jsonl`.
fn is_rotation_of(name: &OsStr, of: &OsStr) -> bool {
    let (name, of) = (name.as_bytes(), of.as_bytes());
    let name = name.strip_suffix(b".gz").unwrap_or(name);
    let before_extension = || {
        let (stem, extension) = of.split_at(of.iter().rposition(|byte| *byte == b'.')?);
        name.strip_prefix(stem)?.strip_suffix(extension)
    };
    let added = name.strip_prefix(of).or_else(before_extension);
    matches!(added, Some([b'.' | b'-' | b'_', b'0'..=b'9', rest @ ..])
        if rest.iter().all(|byte| byte.is_ascii_digit() || b".-_:+TZ".contains(byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_rotated_files_have_a_number_or_a_date() {
        let is = |name: &str| is_rotation_of(OsStr::new(name), OsStr::new("app.jsonl"));
        for name in [
            "app.jsonl.1",
            "app.jsonl.12.gz",
            "app.jsonl-20261127",
            "app.jsonl-20261127-1764213300.gz",
            "app.jsonl.2026-11-27T03:15:00Z",
            "app.jsonl_2026-11-27",
            "app.1.jsonl",
            "app-2026-11-27.jsonl",
            "app-20261127.jsonl.gz",
        ] {
            assert!(is(name), "{name}");
        }
        for name in [
            "app.jsonl",
            "app.jsonl.gz",
            "app.jsonl~",
            "app.jsonl.bak",
            "app.jsonl.old",
            "app.jsonl.1.tallyline-state",
            "app.jsonl1",
            "app.jsonl.",
            "app-new.jsonl",
            "app1.jsonl",
            "other.jsonl.1",
        ] {
            assert!(!is(name), "{name}");
        }
    }
}
