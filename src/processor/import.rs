//! The import of files that were named to `tallyline process`: each becomes a segment of the data directory.
//!
//! 1. **Detect the format**: a file in the data directory itself; JSON Lines; gzip; JSON arrays or objects
//!    over several lines; a native segment, by the label in its first line. Other formats are rejected before
//!    anything is stored ([`InputFormat`]).
//! 2. **Convert** to JSON Lines where necessary ([`convert`]).
//! 3. **Compare** with the segments of the data directory. A native segment is identified by its label, and
//!    only its lines that are not counted yet are imported ([`native`], [`part`]). Any other file is
//!    identified by its name: if a file of that name was imported, one with the same content is skipped, and
//!    one with another content is rejected.
//! 4. **Copy** to a temporary name (`.part`, which is not a segment's), sync, rename, sync of the directory.
//!    An error before the rename removes the temporary file. An interrupted run leaves it, and the next
//!    import under that name replaces it.
//!
//! The files and their names are enough to recognise a file again, so this works after a rebuild too. Runs on
//! the caller's thread, which holds `process.lock`.

mod convert;
mod native;
mod part;

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(super) use self::convert::head;
use self::convert::{ConvertError, convert};
pub(super) use self::part::Part;
use self::part::{further_label, in_common};
use super::Refused;
use super::{ProcessConfig, ProcessError, other_names};
use crate::aggregate::scan;
use crate::data_dir::disk::{Disk, DiskFile, FileStat, Identity, Unusable, with_suffix};
use crate::data_dir::segment::{ACTIVE_FILE, SegmentId, Tag, label_in_name};
use crate::data_dir::{Catalog, DIRECTORY_FILE, Directory, Found, Place, SegmentFile, read_label};
use crate::event::{Event, EventError, InputFormat, without_bom};
use crate::store::{SegmentState, Writer};
use crate::verify::contents::{self, compare_claims};

/// Longest file name on Linux file systems.
const NAME_BYTES_MAX: usize = 255;
const COPY_BLOCK: u64 = 1 << 20;
/// A file is refused if none of this many lines at its beginning is an event.
const LINES_TRIED: u64 = 1_000;
/// The size of the beginning in which they are looked for.
const TRIED_BYTES: u64 = 1 << 20;

/// The result of importing one file.
#[derive(Debug)]
pub(super) enum ImportOutcome {
    /// The segment with its events, which is to be applied.
    New(Found),
    /// All its events were applied before; the name to report.
    Known(String),
    /// It was named twice in this run.
    Repeated,
    /// Nothing of it was stored; the reason and what to do.
    Refused(String),
}

/// Imports files into one data directory.
pub(super) struct Importer<'i> {
    config: &'i ProcessConfig,
    disk: &'i dyn Disk,
    /// The data directory as an absolute path without symbolic links.
    home: PathBuf,
    /// The files at the start of the run and those imported since.
    catalog: Catalog,
    /// The content of `directory.json`; `None` if it is missing.
    directory: Option<Directory>,
    /// The files named so far.
    named: HashSet<Identity>,
    /// Named files that are a fork of a segment here.
    pub(super) forks: Vec<Refused>,
}

/// A file to import, as JSON Lines.
#[derive(Clone)]
struct Content {
    /// The path on the command line, for messages.
    path: PathBuf,
    /// The file at that path.
    source: Arc<dyn DiskFile>,
    /// Its identity and size when it was opened.
    stat: FileStat,
    /// The file name in the data directory.
    name: String,
    /// The file with the lines: `source`, or the result of its conversion.
    file: Arc<dyn DiskFile>,
    /// Size of `file` in bytes.
    size: u64,
    /// The path of the result of the conversion; `None` if `file` is `source`.
    staged: Option<PathBuf>,
}

impl<'i> Importer<'i> {
    pub(super) fn new(config: &'i ProcessConfig, disk: &'i dyn Disk) -> Result<Self, ProcessError> {
        let data_dir = &config.data_dir;
        let home = data_dir
            .canonicalize()
            .map_err(ProcessError::io("find", data_dir))?;
        let catalog = Catalog::scan(disk, data_dir, config.directory_tag())
            .map_err(ProcessError::io("list", data_dir))?;
        for dir in &catalog.dirs {
            disk.sync_dir(dir).map_err(ProcessError::io("sync", dir))?;
        }
        let directory = Directory::read(disk, data_dir)
            .map_err(ProcessError::io("read the identity of", data_dir))?;
        Ok(Self {
            config,
            disk,
            home,
            catalog,
            directory,
            named: HashSet::new(),
            forks: Vec::new(),
        })
    }

    /// Imports one file. While it is converted, `on_read` is called with the bytes read and its size.
    pub(super) fn import_file(
        &mut self,
        writer: &Writer,
        path: &Path,
        on_read: &mut dyn FnMut(u64, u64),
    ) -> Result<ImportOutcome, ProcessError> {
        let source = match self.disk.open_read(path) {
            Err(error) if Unusable::is_reason_of(&error) => {
                return Ok(ImportOutcome::Refused(not_opened(path, &error)));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && path == Path::new("-") => {
                return Ok(ImportOutcome::Refused(format!(
                    "stdin is not read. {TO_A_FILE}"
                )));
            }
            opened => opened.map_err(ProcessError::io("open", path))?,
        };
        let stat = source.stat().map_err(ProcessError::io("inspect", path))?;
        if !self.named.insert(stat.identity) {
            return Ok(ImportOutcome::Repeated);
        }
        let real = path
            .canonicalize()
            .map_err(ProcessError::io("find", path))?;
        let name = real.file_name().unwrap_or_default().to_string_lossy();
        if real.parent() == Some(&self.home) {
            return Ok(self.in_data_dir(&name));
        }
        let format = InputFormat::of(&head(&*source).map_err(ProcessError::io("read", path))?);
        let unpacked = match &format {
            InputFormat::Unsupported(unsupported) => {
                return Ok(ImportOutcome::Refused(format!(
                    "it looks like {}, not JSON Lines; nothing was stored. To import it, {}",
                    unsupported.what,
                    unsupported.cure(path)
                )));
            }
            InputFormat::Gzip => name.strip_suffix(".gz").unwrap_or(&name),
            _ => &name,
        };
        let content = Content {
            path: path.to_owned(),
            name: imported_name(unpacked),
            file: Arc::clone(&source),
            size: stat.size,
            staged: None,
            source,
            stat,
        };
        self.import(writer, content, &format, on_read)
    }

    /// Converts a file if necessary, and imports what is not counted yet.
    fn import(
        &mut self,
        writer: &Writer,
        mut content: Content,
        format: &InputFormat,
        on_read: &mut dyn FnMut(u64, u64),
    ) -> Result<ImportOutcome, ProcessError> {
        let part = with_suffix(Path::new(&content.name), ".part");
        let name_bytes = part.as_os_str().len();
        if name_bytes > NAME_BYTES_MAX {
            return Ok(ImportOutcome::Refused(format!(
                "its name is too long: in the data directory it becomes {}, which has {name_bytes} bytes, and at most {NAME_BYTES_MAX} are possible; nothing was stored. Give the file a shorter name",
                part.display()
            )));
        }
        let staged = match format {
            InputFormat::Lines => Ok(()),
            _ => self.stage(&mut content, format, on_read),
        };
        let outcome = match staged {
            Ok(()) => self.compare(writer, &content),
            Err(ConvertError::Write(source)) => {
                Err(ProcessError::io("write", &self.part_of(&content))(source))
            }
            Err(error) => Ok(ImportOutcome::Refused(error.to_string())),
        };
        self.discard(&content);
        outcome
    }

    /// A file in the data directory itself, which needs no import.
    fn in_data_dir(&self, name: &str) -> ImportOutcome {
        let data_dir = &self.config.data_dir;
        match SegmentId::of_file(name, self.config.directory_tag()) {
            Some((id, tag)) => ImportOutcome::New(Found {
                id,
                tag,
                place: Place::Incoming,
                path: data_dir.join(name),
            }),
            None if name == ACTIVE_FILE => ImportOutcome::Refused(
                "it is the active segment; run `tallyline process` without naming files while no server runs".to_owned(),
            ),
            None => ImportOutcome::Refused(format!(
                "it is in the data directory, but its name is not that of a segment; {}",
                other_names::advice(name)
            )),
        }
    }

    /// Converts the content to JSON Lines in a `.part` file.
    fn stage(
        &self,
        content: &mut Content,
        format: &InputFormat,
        on_read: &mut dyn FnMut(u64, u64),
    ) -> Result<(), ConvertError> {
        let part = self.part_of(content);
        let file = self.create_part(&part).map_err(ConvertError::Write)?;
        content.staged = Some(part);
        let size = content.size;
        convert(&*content.file, format, &*file, &mut |at| on_read(at, size))?;
        content.size = file.size().map_err(ConvertError::Write)?;
        content.file = file;
        Ok(())
    }

    /// The temporary path of the content.
    fn part_of(&self, content: &Content) -> PathBuf {
        with_suffix(&self.config.data_dir.join(&content.name), ".part")
    }

    /// Creates the temporary file, replacing one from an interrupted run.
    fn create_part(&self, part: &Path) -> io::Result<Arc<dyn DiskFile>> {
        match self.disk.remove(part) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => self.disk.create_new(part),
        }
    }

    /// Removes the result of the conversion, unless it was renamed into place.
    fn discard(&self, content: &Content) {
        if let Some(part) = &content.staged {
            self.remove_part(part);
        }
    }

    fn remove_part(&self, part: &Path) {
        match self.disk.remove(part) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!("cannot remove {}: {error}", part.display());
            }
            _ => {}
        }
    }

    /// Determines which lines are new, and copies them in.
    fn compare(
        &mut self,
        writer: &Writer,
        content: &Content,
    ) -> Result<ImportOutcome, ProcessError> {
        let io = || ProcessError::io("read", &content.path);
        let label = read_label(&*content.file).map_err(io())?;
        if let Some((at, further)) = further_label(&*content.file, content.size).map_err(io())? {
            return Ok(ImportOutcome::Refused(format!(
                "the line that ends at byte {at} is the first of segment {}, so these are several segments in one file, and which of their lines were counted cannot be determined; nothing was stored. Name the original files of the segments instead",
                further.number
            )));
        }
        let brought = match label {
            Some(label) => self.labelled(writer, content, label)?,
            None => self.by_name(writer, content)?,
        };
        if let ImportOutcome::New(found) = &brought
            && found.place == Place::Incoming
        {
            let known = self.catalog.sealed.entry(found.id.clone()).or_default();
            if !known.contains(found) {
                known.push(found.clone());
            }
        }
        Ok(brought)
    }

    /// A file without a label, which is identified by its name.
    fn by_name(&self, writer: &Writer, content: &Content) -> Result<ImportOutcome, ProcessError> {
        let io = || ProcessError::io("read", &content.path);
        let id = SegmentId::Imported(content.name.clone());
        let row = writer.segment(&id)?;
        if let Some(row) = row
            .as_ref()
            .filter(|row| row.state == SegmentState::Applied)
        {
            let segment = SegmentFile {
                id: id.clone(),
                tag: None,
                path: content.path.clone(),
                file: Arc::clone(&content.file),
            };
            return Ok(if contents::is_what_was_applied(&segment, row)? {
                ImportOutcome::Known(content.name.clone())
            } else {
                let path = content.staged.is_none().then_some(&*content.path);
                let reason = contents::other_content(&*content.file, path, row).map_err(io())?;
                ImportOutcome::Refused(reason)
            });
        }
        let found = self.catalog.sealed.get(&id).map_or(&[][..], Vec::as_slice);
        if let Some(found) = compare_claims(self.disk, found, row.as_ref()).usable {
            let kept = self
                .disk
                .open_read(&found.path)
                .map_err(ProcessError::io("open", &found.path))?;
            let same = kept.size().map_err(io())? == content.size
                && in_common(&*content.file, 0, &*kept).map_err(io())? == content.size;
            return Ok(if same {
                ImportOutcome::New(found.clone())
            } else {
                ImportOutcome::Refused(format!(
                    "{} has the name that this file would get, has another content, and is not applied yet; nothing was stored. Rename this file only if none of its events is in that one",
                    found.path.display()
                ))
            });
        }
        if row.is_none()
            && let Some(error) = without_events(&*content.file, content.size).map_err(io())?
        {
            return Ok(ImportOutcome::Refused(format!(
                "none of its first {LINES_TRIED} lines is a valid event (line 1: {error}); nothing was stored. Correct the file, then name it again; or move it to {} to import it with its invalid lines",
                self.config.data_dir.join(&content.name).display()
            )));
        }
        self.copy_in(content, (0, content.size), id, None)
    }

    /// Copies the range `start..to` of the content into the data directory, under its name there.
    fn copy_in(
        &self,
        content: &Content,
        (start, to): (u64, u64),
        id: SegmentId,
        tag: Option<Tag>,
    ) -> Result<ImportOutcome, ProcessError> {
        let data_dir = &self.config.data_dir;
        let path = data_dir.join(&content.name);
        let staged = content.staged.as_ref();
        let whole = (start, to) == (0, content.size);
        let part = if let Some(staged) = staged.filter(|_| whole) {
            staged.clone()
        } else {
            let part = self.part_of(content);
            let file = self
                .create_part(&part)
                .map_err(ProcessError::io("write", &part))?;
            let from = (&*content.file, &*content.path);
            let copied = copy(from, (start, to), (&*file, &part));
            if let Err(error) = copied {
                self.remove_part(&part);
                return Err(error);
            }
            part
        };
        let put = || -> io::Result<bool> {
            if content.source.size()? != content.stat.size {
                return Ok(false);
            }
            self.disk.open(&part)?.sync_data()?;
            self.disk.rename_new(&part, &path)?;
            self.disk.sync_dir(data_dir)?;
            Ok(true)
        };
        let done = put();
        if !matches!(done, Ok(true)) {
            self.remove_part(&part);
        }
        Ok(if done.map_err(ProcessError::io("put in place", &path))? {
            ImportOutcome::New(Found {
                id,
                tag,
                place: Place::Incoming,
                path,
            })
        } else {
            ImportOutcome::Refused(
                "its length changed while it was read; nothing was stored. Name it again when no program writes to it".to_owned(),
            )
        })
    }
}

impl Content {
    /// The file name of the source.
    fn file_name(&self) -> String {
        let name = self.path.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// The same content with another name in the data directory.
    fn named(&self, name: String) -> Self {
        Self {
            name,
            ..self.clone()
        }
    }
}

/// Copies the range `start..end` to the beginning of another file. Each file comes with its path, for errors.
fn copy(
    from: (&dyn DiskFile, &Path),
    (start, end): (u64, u64),
    to: (&dyn DiskFile, &Path),
) -> Result<(), ProcessError> {
    let mut block = Vec::new();
    let mut at = start;
    while at < end {
        let next = end.min(at + COPY_BLOCK);
        scan::read_range(from.0, at, next, &mut block).map_err(ProcessError::io("read", from.1))?;
        to.0.write_all_at(&block, at - start)
            .map_err(ProcessError::io("write", to.1))?;
        at = next;
    }
    Ok(())
}

/// The error of the first line, if the content begins with at least [`LINES_TRIED`] lines of which none is
/// an event.
fn without_events(file: &dyn DiskFile, size: u64) -> io::Result<Option<EventError>> {
    let mut head = Vec::new();
    scan::read_range(file, 0, size.min(TRIED_BYTES), &mut head)?;
    let mut first = None;
    let mut tried = 0;
    let complete = memchr::memrchr(b'\n', &head).unwrap_or(0);
    for line in without_bom(&head[..complete]).split(|byte| *byte == b'\n') {
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        let Err(error) = Event::parse(line) else {
            return Ok(None);
        };
        first.get_or_insert(error);
        tried += 1;
        if tried == LINES_TRIED {
            return Ok(first);
        }
    }
    Ok(None)
}

/// What to do with events that are not in a regular file.
const TO_A_FILE: &str = "A file that is processed is kept, so that it can be counted again: write the events to a file (COMMAND > FILE.jsonl) and name that, or send them to a server (COMMAND | tallyline send -)";

/// Describes why a path cannot be opened, and what to do.
fn not_opened(path: &Path, error: &io::Error) -> String {
    let unusable = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<Unusable>());
    let of_file = path;
    let path = path.display();
    match unusable {
        Some(Unusable::NotRegular("directory")) => {
            if of_file.join(DIRECTORY_FILE).exists() {
                return format!(
                    "it is a data directory; to apply its files, run `tallyline process --data-dir {path}`"
                );
            }
            format!("it is a directory; name the files in it, such as {path}/*.jsonl")
        }
        Some(Unusable::NotRegular(what)) => {
            format!("it is a {what}, not a regular file, so nothing was read from it. {TO_A_FILE}")
        }
        _ => error.to_string(),
    }
}

/// The name in the data directory for a file that is not a native segment.
fn imported_name(name: &str) -> String {
    // A file that has the name of a native segment but no label is not one, and gets another name.
    if label_in_name(name).is_none() && SegmentId::of_file(name, 0).is_some() {
        return name.to_owned();
    }
    let ending = if Path::new(name)
        .extension()
        .is_some_and(|ending| ending == "jsonl")
    {
        ""
    } else {
        ".jsonl"
    };
    format!("events_{name}{ending}")
}

#[cfg(test)]
mod tests {
    #[test]
    fn imported_names_are_never_native() {
        for (name, here) in [
            ("foo.jsonl", "events_foo.jsonl"),
            ("foo.json", "events_foo.json.jsonl"),
            ("events.jsonl", "events_events.jsonl"),
            ("events_1700000000000.jsonl", "events_1700000000000.jsonl"),
            (
                "events-2026-11-22T06-41-00.123Z-000042-5e3fa1c29b77d0e4.jsonl",
                "events_events-2026-11-22T06-41-00.123Z-000042-5e3fa1c29b77d0e4.jsonl",
            ),
        ] {
            assert_eq!(super::imported_name(name), here);
        }
    }
}
