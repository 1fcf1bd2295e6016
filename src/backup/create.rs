//! Creates a backup of a stopped data directory, or while the server runs.
//!
//! # Steps
//! 1. `DIR.part` is created, with a marker that is locked until the end. A `DIR.part` that a killed
//!    backup left behind is removed; anything else of that name is an error.
//! 2. A shared lock on the data directory prevents pruning until the end.
//! 3. The database is copied.
//! 4. `directory.json` is read, and all sealed files are listed and copied.
//! 5. The active file is copied up to its last line end, under a sealed name.
//! 6. The directory is listed again, and segments below the active one that were sealed since are
//!    copied. This is repeated while a file moves between a listing and its copy.
//! 7. `directory.json` of the backup is written: the same UUID, and the number after the highest.
//! 8. Everything is synced, `manifest.json` is written, and `DIR.part` is renamed to `DIR`.
//!
//! An event acknowledged before step 2 is in a segment sealed before step 6, or in the active file of
//! step 5, because a segment is created only after the one before it was sealed. A file that is
//! archived meanwhile is recognised by its inode and name, and copied once.
//!
//! # Failure
//! `DIR.part` is removed and the error is returned; `DIR` never exists incomplete.

mod part;

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context as _, bail};

use self::part::{Part, refuse_place};
use super::manifest::{Entry, Manifest};
use super::{BLOCK, checksum, manifest, parent, refuse_backup, refuse_unfinished};
use crate::data_dir::disk::{DirLock, Disk, DiskFile, Identity, RealDisk, Unusable, last_line_end};
use crate::data_dir::segment::{ACTIVE_FILE, SegmentId, sealed_file_name};
use crate::data_dir::{
    Catalog, DIRECTORY_FILE, Directory, Place, QUARANTINE_DIR, directory_tag, read_label,
};
use crate::shutdown::Shutdown;
use crate::store::{Copied, DATABASE_FILE, copy_database, read_kept};
use crate::timestamp;

/// Copies `data_dir` to the new directory `to`. `on_progress` gets the bytes copied and the total.
pub(crate) fn create(
    data_dir: &Path,
    to: &Path,
    stop: &Shutdown,
    on_progress: &mut dyn FnMut(u64, u64),
) -> anyhow::Result<Manifest> {
    if !data_dir.is_dir() {
        bail!(
            "there is no data directory {}; name one with --data-dir",
            data_dir.display()
        );
    }
    refuse_unfinished(data_dir)?;
    refuse_backup(data_dir)?;
    refuse_place(data_dir, to)?;
    let part = Part::begin(to)?;
    let created = timestamp::rfc3339_seconds(SystemTime::now());
    let _stays =
        DirLock::shared(data_dir).with_context(|| format!("cannot lock {}", data_dir.display()))?;
    let Some(directory) = Directory::read(&RealDisk, data_dir)
        .with_context(|| format!("cannot read {}", data_dir.join(DIRECTORY_FILE).display()))?
    else {
        bail!(
            "cannot back up {}: it has no {DIRECTORY_FILE}, so tallyline has not used it yet; run `tallyline process --data-dir {}` first",
            data_dir.display(),
            data_dir.display()
        );
    };
    let mut copy = Copy {
        data_dir,
        part: &part.path,
        stop,
        on_progress,
        manifest: Manifest::new(directory.id, created),
        bytes: 0,
        bytes_total: 0,
        known: HashMap::new(),
        skipped: BTreeSet::new(),
        dirs: BTreeSet::new(),
    };
    copy.run()?;
    let manifest = copy.manifest;
    part.finish(to, &manifest)?;
    Ok(manifest)
}

struct Copy<'c> {
    data_dir: &'c Path,
    part: &'c Path,
    stop: &'c Shutdown,
    on_progress: &'c mut dyn FnMut(u64, u64),
    manifest: Manifest,
    bytes: u64,
    bytes_total: u64,
    /// Copied files, by inode and name of the source.
    known: HashMap<(Identity, OsString), PathBuf>,
    /// Sources that are not regular files.
    skipped: BTreeSet<PathBuf>,
    /// Directories created in the backup.
    dirs: BTreeSet<PathBuf>,
}

impl Copy<'_> {
    fn run(&mut self) -> anyhow::Result<()> {
        self.database()?;
        let before = self.read_directory()?;
        let catalog = self.list()?;
        self.bytes_total = self.bytes + self.size_of(&catalog);
        // A file that was moved meanwhile is in the next listing.
        self.sealed(&catalog, u64::MAX)?;
        let active = self.active(&before)?.unwrap_or(u64::MAX);
        loop {
            let catalog = self.list()?;
            if !self.sealed(&catalog, active)? {
                break;
            }
        }
        self.quarantine()?;
        self.name_next(&before)?;
        for dir in self.dirs.iter().rev() {
            RealDisk
                .sync_dir(dir)
                .with_context(|| format!("cannot sync {}", dir.display()))?;
        }
        self.manifest.files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(())
    }

    fn database(&mut self) -> anyhow::Result<()> {
        let from = self.data_dir.join(DATABASE_FILE);
        let to = self.part.join(DATABASE_FILE);
        let size = RealDisk.size_at(&from).unwrap_or(0);
        let (stop, on_progress) = (self.stop, &mut *self.on_progress);
        let mut go_on = |thousandths| {
            on_progress(size / 1000 * thousandths, size);
            !stop.requested()
        };
        match copy_database(&from, &to, &mut go_on)? {
            Copied::Missing => return Ok(()),
            Copied::Stopped => bail!("stopped; no backup was made"),
            Copied::Damaged(fault) => bail!(
                "cannot back up {}: the file is damaged: {}; no backup was made. Stop the server and run `tallyline process --rebuild`, which builds a new one from the files; if segments were pruned, restore an earlier backup",
                from.display(),
                fault.replace('\n', " ")
            ),
            Copied::Done => {}
        }
        let entry = self.entry_of(Path::new(DATABASE_FILE))?;
        self.bytes = entry.bytes;
        self.manifest.database = Some(entry);
        Ok(())
    }

    /// The manifest entry of a file in the backup. Syncs the file.
    fn entry_of(&self, relative: &Path) -> anyhow::Result<Entry> {
        let path = self.part.join(relative);
        let read = || -> io::Result<Entry> {
            let file = RealDisk.open_read(&path)?;
            file.sync_data()?;
            let size = file.size()?;
            let crc = checksum(&*file, size)?.ok_or(io::ErrorKind::UnexpectedEof)?;
            Ok(Entry::new(relative, self.manifest.directory, size, crc))
        };
        read().with_context(|| format!("cannot read {}", path.display()))
    }

    fn read_directory(&self) -> anyhow::Result<Directory> {
        let path = self.data_dir.join(DIRECTORY_FILE);
        let directory = Directory::read(&RealDisk, self.data_dir)
            .with_context(|| format!("cannot read {}", path.display()))?;
        match directory {
            Some(directory) if directory.id == self.manifest.directory => Ok(directory),
            _ => bail!(
                "cannot back up {}: it changed meanwhile; try again",
                path.display()
            ),
        }
    }

    fn list(&self) -> anyhow::Result<Catalog> {
        let tag = directory_tag(self.manifest.directory);
        Catalog::scan(&RealDisk, self.data_dir, tag)
            .with_context(|| format!("cannot list {}", self.data_dir.display()))
    }

    fn size_of(&self, catalog: &Catalog) -> u64 {
        let files = catalog.sealed.values().flatten();
        let active = self.data_dir.join(ACTIVE_FILE);
        files
            .map(|found| found.path.as_path())
            .chain([active.as_path()])
            .map(|path| RealDisk.size_at(path).unwrap_or(0))
            .sum()
    }

    /// Copies the sealed files outside the quarantine: imported ones, and native ones with a number
    /// below `end`. Returns whether one was moved before it could be opened.
    fn sealed(&mut self, catalog: &Catalog, end: u64) -> anyhow::Result<bool> {
        let mut moved = false;
        for found in catalog.sealed.values().flatten() {
            let beyond = found.id.number().is_some_and(|number| number >= end);
            if found.place != Place::Quarantine && !beyond {
                moved |= !self.file(&found.path)?;
            }
        }
        Ok(moved)
    }

    /// Copies one file; false if it no longer exists.
    fn file(&mut self, path: &Path) -> anyhow::Result<bool> {
        let context = || format!("cannot copy {}", path.display());
        let name = path.file_name().unwrap_or_default().to_owned();
        if let Ok(Some(identity)) = RealDisk.identity(path)
            && self.known.contains_key(&(identity, name.clone()))
        {
            return Ok(true);
        }
        let file = match RealDisk.open_read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) if Unusable::is_reason_of(&error) => {
                if self.skipped.insert(path.to_owned()) {
                    tracing::warn!("skipped {}: {error}", path.display());
                }
                return Ok(true);
            }
            file => file.with_context(context)?,
        };
        let stat = file.stat().with_context(context)?;
        let relative = path.strip_prefix(self.data_dir).with_context(context)?;
        self.copy(&*file, stat.size, relative)
            .with_context(context)?;
        self.known
            .insert((stat.identity, name), relative.to_owned());
        Ok(true)
    }

    /// Copies the active file up to its last line end. Returns its number, or `None` if it is empty.
    fn active(&mut self, directory: &Directory) -> anyhow::Result<Option<u64>> {
        let path = self.data_dir.join(ACTIVE_FILE);
        let context = || format!("cannot copy {}", path.display());
        let file = match RealDisk.open_read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.with_context(context)?,
        };
        let size = file.size().with_context(context)?;
        let end = last_line_end(&*file, size).with_context(context)?;
        if end == 0 {
            return Ok(None);
        }
        let label = read_label(&*file).with_context(context)?;
        let Some(label) = label.filter(|label| label.tag.directory == directory.tag()) else {
            bail!(
                "cannot back up {}: its first line does not belong to this data directory, so its segment is unknown; run `tallyline process --data-dir {}` while no server runs, which imports or quarantines it",
                path.display(),
                self.data_dir.display()
            );
        };
        let id = SegmentId::Native(label.number).to_string();
        let tag = label.tag.to_string();
        let is_it = |entry: &&Entry| {
            entry.segment.as_ref() == Some(&id) && entry.tag.as_ref() == Some(&tag)
        };
        if let Some(entry) = self.manifest.files.iter().find(is_it) {
            tracing::warn!(
                "skipped {}: it is a copy of segment {id}, which is sealed already: {}",
                path.display(),
                entry.path
            );
            return Ok(None);
        }
        let name = sealed_file_name(label, SystemTime::now());
        self.copy(&*file, end, Path::new(&name))
            .with_context(context)?;
        Ok(Some(label.number))
    }

    /// Copies the files in the quarantine.
    fn quarantine(&mut self) -> anyhow::Result<()> {
        for path in manifest::files_below(&self.data_dir.join(QUARANTINE_DIR))? {
            self.file(&path)?;
        }
        Ok(())
    }

    /// Writes the backup's `directory.json`. The number of a segment that had events is not used
    /// again, even if its file no longer exists.
    fn name_next(&mut self, before: &Directory) -> anyhow::Result<()> {
        let tag = directory_tag(self.manifest.directory);
        let copied = Catalog::scan(&RealDisk, self.part, tag)
            .with_context(|| format!("cannot list {}", self.part.display()))?;
        let (rows, pruned) = read_kept(&self.part.join(DATABASE_FILE))?;
        let rows = rows.iter().filter_map(|row| row.id.number()).max();
        let highest = copied
            .highest_number()
            .max(rows.unwrap_or(0))
            .max(pruned.number);
        let given_out = before.number + u64::from(before.started);
        before
            .next(given_out.max(highest + 1))
            .write(&RealDisk, self.part)?;
        let entry = self.entry_of(Path::new(DIRECTORY_FILE))?;
        self.manifest.files.push(entry);
        self.dirs.insert(self.part.to_owned());
        Ok(())
    }

    /// Copies the first `end` bytes of an open file into the backup and adds it to the manifest.
    fn copy(&mut self, from: &dyn DiskFile, end: u64, relative: &Path) -> anyhow::Result<()> {
        let target = self.part.join(relative);
        self.make_dirs(parent(&target))?;
        let to = RealDisk.create_new(&target)?;
        let mut hasher = crc32fast::Hasher::new();
        let mut block = vec![0; usize::try_from(end).unwrap_or(BLOCK).min(BLOCK)];
        let mut at = 0;
        while at < end {
            if self.stop.requested() {
                bail!("stopped; no backup was made");
            }
            let want = usize::try_from(end - at).unwrap_or(BLOCK).min(BLOCK);
            let count = from.read_at(&mut block[..want], at)?;
            if count == 0 {
                bail!("cannot read past byte {at}: it was truncated meanwhile; try again");
            }
            to.write_all_at(&block[..count], at)?;
            hasher.update(&block[..count]);
            at += count as u64;
            self.bytes += count as u64;
            (self.on_progress)(self.bytes, self.bytes_total.max(self.bytes));
        }
        to.sync_data()?;
        to.release_cache(end);
        let crc = hasher.finalize();
        self.manifest
            .files
            .push(Entry::new(relative, self.manifest.directory, end, crc));
        Ok(())
    }

    fn make_dirs(&mut self, dir: &Path) -> anyhow::Result<()> {
        if self.dirs.contains(dir) || dir == self.part {
            return Ok(());
        }
        self.make_dirs(parent(dir))?;
        RealDisk
            .create_dir(dir)
            .with_context(|| format!("cannot create {}", dir.display()))?;
        self.dirs.insert(dir.to_owned());
        Ok(())
    }
}
