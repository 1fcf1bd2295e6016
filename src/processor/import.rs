//! The import of files that were named to `tallyline process`: each becomes a segment of the data directory.
//!
//! 1. **Detect the format**: a file in the data directory itself; JSON Lines; gzip; JSON arrays or objects
//!    over several lines; a native segment, by the label in its first line. Other formats are rejected before
//!    anything is stored ([`InputFormat`]).
//! 2. **Convert** to JSON Lines where necessary ([`convert`]).
//! 3. **Compare** with the segments of the data directory. A native segment is identified by its label, and
//!    only its lines that are not counted yet are imported ([`native`], [`part`]). Any other file is
//!    identified by its name: if a file of that name was imported, one with the same content is skipped, and
//!    one with another content is rejected ([`by_name`]).
//! 4. **Copy** to a temporary name (`.part`, which is not a segment's), sync, rename, sync of the directory
//!    ([`part_file`]).
//!
//! The files and their names are enough to recognise a file again, so this works after a rebuild too. Runs on
//! the caller's thread, which holds `process.lock`.

mod by_name;
mod convert;
mod native;
mod part;
mod part_file;

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use self::by_name::imported_name;
use self::convert::ConvertError;
pub(super) use self::convert::head;
pub(super) use self::part::{further_label, in_common};
use super::Refused;
use super::{ProcessError, ProcessorConfig, other_names};
use crate::data_dir::disk::{Disk, DiskFile, FileStat, Identity, Unusable, with_suffix};
use crate::data_dir::segment::{ACTIVE_FILE, Part, SegmentId};
use crate::data_dir::{Catalog, DIRECTORY_FILE, Directory, Found, Place, read_label};
use crate::event::InputFormat;
use crate::store::Writer;

/// Longest file name on Linux file systems.
const NAME_BYTES_MAX: usize = 255;

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
    config: &'i ProcessorConfig,
    disk: &'i dyn Disk,
    /// The data directory as an absolute path without symbolic links.
    home: PathBuf,
    /// The files at the start of the run and those imported since.
    catalog: Catalog,
    /// The content of `directory.json`; `None` if it is missing.
    directory: Option<Directory>,
    /// The files named so far.
    named: HashSet<Identity>,
    /// The names of imported files that will be applied: those named in this run, and the parts that an interrupted
    /// run has copied.
    brought: BTreeSet<String>,
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
    pub(super) fn new(
        config: &'i ProcessorConfig,
        disk: &'i dyn Disk,
    ) -> Result<Self, ProcessError> {
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
        let waiting = catalog.sealed.values().flatten();
        let parts = waiting
            .filter(|found| found.place == Place::Incoming)
            .map(|found| found.id.to_string());
        let brought = parts.filter(|name| Part::of_name(name).is_some()).collect();
        Ok(Self {
            config,
            disk,
            home,
            catalog,
            directory,
            named: HashSet::new(),
            brought,
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
            if let SegmentId::Imported(name) = &found.id {
                self.brought.insert(name.clone());
            }
            let known = self.catalog.sealed.entry(found.id.clone()).or_default();
            if !known.contains(found) {
                known.push(found.clone());
            }
        }
        Ok(brought)
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
