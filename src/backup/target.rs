//! Compares the target directory of a restore with the backup.
//!
//! Read-only. An error here means that nothing was changed.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use uuid::Uuid;

use super::checksum;
use super::manifest::{Entry, Manifest};
use crate::data_dir::disk::{Disk, DiskFile, RealDisk, last_line_end};
use crate::data_dir::segment::{ACTIVE_FILE, DirectoryTag, Label, SegmentId, Tag};
use crate::data_dir::{
    Catalog, DIRECTORY_FILE, Directory, Found, Place, directory_tag, read_label,
};
use crate::store::{DATABASE_FILE, Pruned, SegmentRow, SegmentState, read_directory, read_kept};

/// What a restore has to do.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Files of the backup that the target lacks.
    pub(super) add: Vec<Entry>,
    /// Files of the target to move to the quarantine, because the backup has longer ones.
    pub(super) aside: Vec<PathBuf>,
    /// Number of segments of the backup that the target already has.
    pub(super) present: u64,
    /// The target's `directory.json`; `None` if there is none, or if it is malformed.
    pub(super) directory: Option<Directory>,
}

/// A file of the target compared with the backup's file of the same identity.
#[derive(Debug, PartialEq, Eq)]
enum Relation {
    Equal,
    /// The backup's file is the beginning of it.
    Longer,
    /// It is the beginning of the backup's file.
    Shorter,
    Other,
}

/// Plans a restore, or says why it is not possible.
pub(super) fn plan(backup: &Path, manifest: &Manifest, data_dir: &Path) -> anyhow::Result<Plan> {
    let tag = directory_tag(manifest.directory);
    let database = backup.join(DATABASE_FILE);
    let (rows, pruned) = match &manifest.database {
        Some(_) => read_kept(&database)?,
        None => (Vec::new(), Pruned::default()),
    };
    let directory = directory_of(data_dir)?;
    let mut target = Target {
        backup,
        manifest,
        data_dir,
        rows: rows
            .iter()
            .filter_map(|row| Some((row.id.number()?, row)))
            .collect(),
        here: BTreeSet::new(),
        plan: Plan {
            directory,
            ..Plan::default()
        },
    };
    let catalog = scan(data_dir, tag)?;
    let active = active(data_dir)?;
    target.sealed(&catalog)?;
    let same = directory.is_none_or(|directory| directory.id == manifest.directory);
    if let Some((label, path, end)) = &active {
        if same && label.tag.directory == tag {
            target.native(*label, path, Some(*end))?;
        } else {
            target.foreign(*label, path)?;
        }
    }
    let own = directory.map_or(manifest.directory, |directory| directory.id);
    refuse_to_discard_events(
        manifest,
        (&rows, &pruned),
        data_dir,
        own,
        active.map(|active| active.0),
    )?;
    let Target { here, mut plan, .. } = target;
    let add = |entry: &&Entry| entry.path != DIRECTORY_FILE && !here.contains(&entry.path);
    plan.add = manifest.files.iter().filter(add).cloned().collect();
    plan.present = here.len() as u64;
    Ok(plan)
}

/// The target's `directory.json`; `None` if there is none, or if it is malformed.
fn directory_of(data_dir: &Path) -> anyhow::Result<Option<Directory>> {
    let path = data_dir.join(DIRECTORY_FILE);
    match Directory::read(&RealDisk, data_dir) {
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            tracing::warn!("{}: {error}", path.display());
            Ok(None)
        }
        found => found.with_context(|| format!("cannot read {}", path.display())),
    }
}

fn scan(data_dir: &Path, tag: DirectoryTag) -> anyhow::Result<Catalog> {
    Catalog::scan(&RealDisk, data_dir, tag)
        .with_context(|| format!("cannot list {}", data_dir.display()))
}

/// Label, path and last line end of the active file; `None` if it has no events or no label.
fn active(data_dir: &Path) -> anyhow::Result<Option<(Label, PathBuf, u64)>> {
    let path = data_dir.join(ACTIVE_FILE);
    let file = match RealDisk.open_read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.with_context(|| format!("cannot open {}", path.display()))?,
    };
    let read = || -> io::Result<(Option<Label>, u64)> {
        Ok((read_label(&*file)?, last_line_end(&*file, file.size()?)?))
    };
    let (label, end) = read().with_context(|| format!("cannot read {}", path.display()))?;
    Ok(label.map(|label| (label, path, end)))
}

struct Target<'t> {
    backup: &'t Path,
    manifest: &'t Manifest,
    data_dir: &'t Path,
    /// Rows of native segments in the backup's database.
    rows: HashMap<u64, &'t SegmentRow>,
    /// Paths of the backup whose content the target has.
    here: BTreeSet<String>,
    plan: Plan,
}

impl Target<'_> {
    /// The entries outside the quarantine.
    fn entries(&self) -> impl Iterator<Item = &Entry> + use<'_> {
        let entries = self.manifest.files.iter();
        entries.filter(|entry| !entry.is_in_quarantine() && entry.segment.is_some())
    }

    /// Compares the sealed files outside the quarantine.
    fn sealed(&mut self, catalog: &Catalog) -> anyhow::Result<()> {
        let found = catalog.sealed.values().flatten();
        for found in found.filter(|found| found.place != Place::Quarantine) {
            match (found.id.number(), found.tag) {
                (Some(number), Some(tag)) => {
                    self.native(Label { number, tag }, &found.path, None)?;
                }
                _ => self.imported(found)?,
            }
        }
        Ok(())
    }

    /// Compares a native segment of the backup's directory. `end`: only the bytes before it count.
    fn native(&mut self, label: Label, path: &Path, end: Option<u64>) -> anyhow::Result<()> {
        let id = SegmentId::Native(label.number);
        let row = self.rows.get(&label.number).copied();
        let name = id.to_string();
        let bearers: Vec<Entry> = self
            .entries()
            .filter(|entry| entry.segment.as_deref() == Some(&*name))
            .cloned()
            .collect();
        for entry in bearers {
            let other = self.backup.join(&entry.path);
            let tag: Option<Tag> = entry.tag.as_deref().and_then(|tag| tag.parse().ok());
            if tag != Some(label.tag) {
                bail!(
                    "cannot restore to {}: {} and {} are different segments of number {}. Both copies of the directory were used after they diverged. {CURE}",
                    self.data_dir.display(),
                    path.display(),
                    other.display(),
                    label.number
                );
            }
            let whole = row.is_some_and(|row| row.state == SegmentState::Applied);
            match relation(path, end, &other, &entry)? {
                Relation::Equal => self.here.insert(entry.path),
                Relation::Longer if !whole => self.here.insert(entry.path),
                Relation::Shorter => {
                    self.plan.aside.push(path.to_owned());
                    continue;
                }
                Relation::Longer | Relation::Other => bail!(
                    "cannot restore to {}: {} and {} are segment {} with different contents. {CURE}",
                    self.data_dir.display(),
                    path.display(),
                    other.display(),
                    label.number
                ),
            };
        }
        if let Some(other) = row.and_then(|row| row.tag).filter(|tag| *tag != label.tag) {
            bail!(
                "cannot restore to {}: {} is segment {} with tag {}, but in the backup's database {} that number has tag {other}. Both copies of the directory were used after they diverged. {CURE}",
                self.data_dir.display(),
                path.display(),
                label.number,
                label.tag,
                self.backup.join(DATABASE_FILE).display()
            );
        }
        Ok(())
    }

    /// Compares a file of the target that is identified by its name.
    fn imported(&mut self, found: &Found) -> anyhow::Result<()> {
        let path = &found.path;
        let name = found.id.to_string();
        let same_name: Vec<Entry> = self
            .entries()
            .filter(|entry| entry.name() == name)
            .cloned()
            .collect();
        for entry in &same_name {
            let other = self.backup.join(&entry.path);
            if relation(path, None, &other, entry)? != Relation::Equal {
                bail!(
                    "cannot restore to {}: {} and {} have the same name and different contents. Move the first away; to count its events, run `tallyline process FILE` with it under another name",
                    self.data_dir.display(),
                    path.display(),
                    other.display()
                );
            }
            self.here.insert(entry.path.clone());
        }
        if !same_name.is_empty() {
            return Ok(());
        }
        match label_of(path)? {
            Some(label) => self.foreign(label, path),
            None => Ok(()),
        }
    }

    /// Checks a segment whose name is not its native one. If the backup had it under another name, its
    /// events would count twice.
    fn foreign(&self, label: Label, path: &Path) -> anyhow::Result<()> {
        let tag = directory_tag(self.manifest.directory);
        if label.tag.directory == tag {
            bail!(
                "cannot restore to {}: according to its first line, {} is segment {} of the backup's own directory, and it would count twice under its name. Move it away; if the backup lacks its events, run `tallyline process FILE` with it afterwards",
                self.data_dir.display(),
                path.display(),
                label.number
            );
        }
        for entry in self.entries().filter(|entry| entry.tag.is_none()) {
            let other = self.backup.join(&entry.path);
            if label_of(&other)? == Some(label) && entry.name() != name_of(path) {
                bail!(
                    "cannot restore to {}: {} and {} are the same segment under two names, and would count twice. Move the first away",
                    self.data_dir.display(),
                    path.display(),
                    other.display()
                );
            }
        }
        Ok(())
    }
}

/// Advice about two segments of one number.
const CURE: &str = "Nothing was changed. Move the file in the target away and restore again; to count its events, run `tallyline process FILE` with it afterwards, or restore to a new directory";

fn name_of(path: &Path) -> &str {
    path.file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default()
}

fn label_of(path: &Path) -> anyhow::Result<Option<Label>> {
    let file = match RealDisk.open_read(path) {
        Err(error) if crate::data_dir::disk::Unusable::is_reason_of(&error) => return Ok(None),
        file => file.with_context(|| format!("cannot open {}", path.display()))?,
    };
    read_label(&*file).with_context(|| format!("cannot read {}", path.display()))
}

fn relation(
    path: &Path,
    end: Option<u64>,
    other: &Path,
    entry: &Entry,
) -> anyhow::Result<Relation> {
    let read = || -> io::Result<Relation> {
        let file = RealDisk.open_read(path)?;
        let size = end.map_or_else(|| file.size(), Ok)?;
        let common = size.min(entry.bytes);
        let expected = if size < entry.bytes {
            let other: &dyn DiskFile = &*RealDisk.open_read(other)?;
            checksum(other, common)?
        } else {
            entry.checksum()
        };
        if checksum(&*file, common)? != expected {
            return Ok(Relation::Other);
        }
        Ok(match size.cmp(&entry.bytes) {
            std::cmp::Ordering::Equal => Relation::Equal,
            std::cmp::Ordering::Greater => Relation::Longer,
            std::cmp::Ordering::Less => Relation::Shorter,
        })
    };
    read().with_context(|| format!("cannot compare {} and {}", path.display(), other.display()))
}

/// The segments that have a file in the directory with this UUID, which is not in its quarantine.
fn segments_of_files(
    data_dir: &Path,
    directory: Uuid,
    active: Option<Label>,
) -> anyhow::Result<BTreeSet<String>> {
    let tag = directory_tag(directory);
    let catalog = scan(data_dir, tag)?;
    let mut kept = BTreeSet::new();
    for (id, found) in &catalog.sealed {
        if found.iter().any(|found| found.place != Place::Quarantine) {
            kept.insert(id.to_string());
        }
    }
    if let Some(label) = active.filter(|label| label.tag.directory == tag) {
        kept.insert(SegmentId::Native(label.number).to_string());
    }
    Ok(kept)
}

/// The segments whose events the backup has: in a file, or counted in its database.
fn segments_of_backup(manifest: &Manifest, rows: &[SegmentRow]) -> BTreeSet<String> {
    let files = manifest.files.iter();
    let files = files.filter(|entry| !entry.is_in_quarantine());
    let applied = rows.iter();
    let applied = applied.filter(|row| row.state == SegmentState::Applied);
    files
        .filter_map(|entry| entry.segment.clone())
        .chain(applied.map(|row| row.id.to_string()))
        .collect()
}

/// Fails if the target's database has counted events that no file has: those of segments that were
/// pruned after the backup, or whose files are missing. Does nothing if the database cannot be read.
fn refuse_to_discard_events(
    manifest: &Manifest,
    backup: (&[SegmentRow], &Pruned),
    data_dir: &Path,
    own: Uuid,
    active: Option<Label>,
) -> anyhow::Result<()> {
    let path = data_dir.join(DATABASE_FILE);
    let read = || -> Result<_, crate::store::StoreError> {
        Ok((read_kept(&path)?, read_directory(&path)?))
    };
    let ((rows, pruned), of) = match read() {
        Ok(read) => read,
        Err(error) => {
            tracing::warn!(
                "cannot read the database that is replaced: {:#}",
                anyhow::Error::from(error)
            );
            return Ok(());
        }
    };
    let own = of.unwrap_or(own);
    let mut kept = segments_of_files(data_dir, own, active)?;
    let mut pruned_before = 0;
    if own == manifest.directory {
        kept.extend(segments_of_backup(manifest, backup.0));
        pruned_before = backup.1.number;
    }
    let is_kept = |id: &SegmentId| kept.contains(&id.to_string());
    let gone_rows = rows
        .iter()
        .filter(|row| row.counts.events > 0 && row.id.number().is_none_or(|n| n > pruned_before))
        .map(|row| row.id.clone());
    let gone_pruned = (pruned_before + 1..=pruned.number)
        .filter(|_| pruned.counts.events > 0)
        .map(SegmentId::Native);
    let gone: Vec<String> = gone_pruned
        .chain(gone_rows)
        .filter(|id| !is_kept(id))
        .map(|id| id.to_string())
        .collect();
    let Some(first) = gone.first() else {
        return Ok(());
    };
    bail!(
        "cannot restore to {}: events of {} ({}{first}) are counted in {}, which would be replaced, and no file here or in the backup has them. To discard them, move that database away and restore again",
        data_dir.display(),
        crate::cli::output::counted(gone.len() as u64, "segment"),
        if gone.len() > 1 { "the first is " } else { "" },
        path.display()
    );
}
