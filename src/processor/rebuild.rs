//! `process --rebuild`: builds a new database from all kept files and replaces the old one.
//!
//! The caller holds `serve.lock` and `process.lock`.
//! 1. The new database is built beside the old one under a temporary name, closed to a single file and
//!    synced.
//! 2. The old database is checkpointed and closed, until it has no `-wal`. A `-wal` that does not belong to
//!    it is moved to `quarantine/`.
//! 3. A rename puts the new database in place, and the directory is synced.
//!
//! After a crash at any point, either the old or the new database is in place and complete.
//!
//! # Data that is not in the files
//! - Pruned segments: their sums, the part of each user's total that the kept files do not explain, and the
//!   ids counted in them are carried over from the old database. This requires that the old database matches
//!   the files; otherwise nothing is changed, and the error says what to do.
//! - Corrupt files are applied with their present content; missing files are no longer counted. A note names
//!   each of them.
//! - Expired ids whose events are in kept files detect duplicates again.
//! - The ages for `--retention` and `--dedup-window` start again.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::applier::open_writer;
use super::batch::run_with;
use super::{
    BatchSummary, ProcessError, ProcessorConfig, RunProgress, describe, retention, run_once,
    unfinished,
};
use crate::data_dir::disk::{self, DirLock, Disk};
use crate::data_dir::{Catalog, Claims, QUARANTINE_DIR};
use crate::store::{
    Database, Existing, IdCount, Opening, Pruned, SegmentRow, SegmentState, Snapshot, Writer,
    is_in_use, read_kept, sibling,
};
use crate::verify::Finding;
use crate::verify::recount::recount;

/// The result of a rebuild.
#[derive(Clone, Debug, Default)]
pub struct Rebuilt {
    /// Events applied to the new database.
    pub summary: BatchSummary,
    /// How the new database differs from the old one, and what was carried over: sentences for the operator.
    pub notes: Vec<String>,
}

/// Builds a new database and puts it in place. `on_progress` is called after each commit. If it fails, the
/// old database is unchanged.
pub fn rebuild(
    config: &ProcessorConfig,
    disk: &Arc<dyn Disk>,
    on_progress: &mut dyn FnMut(RunProgress<'_>),
) -> Result<Rebuilt, ProcessError> {
    let config = &config.established(&**disk)?;
    let dir = &config.data_dir;
    let held = DirLock::try_exclusive(dir).map_err(ProcessError::io("lock", dir))?;
    let Some(_held) = held else {
        return Err(ProcessError::NotRebuilt(
            "`tallyline verify` is reading the files; try again when it has finished".to_owned(),
        ));
    };
    let Some(old) = config.database.file() else {
        return rebuild_node(config, disk, on_progress);
    };
    let new = dir.join(unfinished::DATABASE);
    unfinished::remove(dir)?;
    let (rows, pruned) = read_old(old)?;
    let catalog = Catalog::scan(&**disk, dir, config.directory_tag())
        .map_err(ProcessError::io("list", dir))?;
    if pruned.number > 0 {
        let writer = Writer::open(old, Existing::Only)?;
        retention::finish(&**disk, &catalog, &writer)?;
        writer.close()?;
    }
    let mut notes = changes(&catalog, &rows);
    if pruned.segments > 0 {
        let ids = carry(config, &**disk, &pruned, old, &new)?;
        notes.push(describe_carried(&pruned));
        notes.extend(describe_lost_ids(&ids));
    }
    notes.extend(describe_expired(&rows));
    let mut building = config.clone();
    building.database = Database::Sqlite(new.clone());
    let summary = run_once(&building, disk, &[], on_progress)?;
    if let Some(refused) = summary.refused.iter().chain(&summary.unusable).next() {
        let (path, reason) = (refused.path.display(), &refused.reason);
        let cause = format!("{path}: {reason}. The old database is unchanged");
        unfinished::remove(dir)?;
        return Err(ProcessError::NotRebuilt(cause));
    }
    notes.extend(close_old(&**disk, dir, old)?);
    disk::replace(&new, old).map_err(ProcessError::io("replace", old))?;
    Ok(Rebuilt { summary, notes })
}

/// Deletes the rows of this node in PostgreSQL and applies its files again, in one transaction.
fn rebuild_node(
    config: &ProcessorConfig,
    disk: &Arc<dyn Disk>,
    on_progress: &mut dyn FnMut(RunProgress<'_>),
) -> Result<Rebuilt, ProcessError> {
    let dir = &config.data_dir;
    let mut writer = open_writer(config, Opening::Load)?;
    let snapshot = Snapshot::of(&config.database, config.directory)?;
    let (rows, pruned) = snapshot
        .as_ref()
        .map(|snapshot| (snapshot.rows.clone(), snapshot.pruned))
        .unwrap_or_default();
    let catalog = Catalog::scan(&**disk, dir, config.directory_tag())
        .map_err(ProcessError::io("list", dir))?;
    if pruned.number > 0 {
        retention::finish(&**disk, &catalog, &writer)?;
    }
    let mut notes = changes(&catalog, &rows);
    let carried = snapshot.filter(|_| pruned.segments > 0);
    if let Some(snapshot) = &carried {
        if let Some(mismatch) = mismatch(snapshot, config, &**disk)? {
            return Err(ProcessError::NotRebuilt(format!(
                "{} events of {} pruned segments are only in the totals, and their share cannot be determined: {mismatch}. Nothing was changed. Restore a backup of the database or of the files",
                pruned.counts.events, pruned.segments
            )));
        }
        notes.push(describe_carried(&pruned));
    }
    notes.extend(describe_expired(&rows));
    writer.begin_rebuild(carried.as_ref(), config.clock.now_ms())?;
    drop(carried);
    let (mut writer, summary) = run_with(config, disk, &[], writer, on_progress)?;
    if let Some(refused) = summary.refused.iter().chain(&summary.unusable).next() {
        let (path, reason) = (refused.path.display(), &refused.reason);
        // Without a commit, nothing is changed.
        return Err(ProcessError::NotRebuilt(format!(
            "{path}: {reason}. The database is unchanged"
        )));
    }
    let released = writer.commit_rebuild(&rows)?;
    if released > 0 {
        notes.push(format!(
            "{released} ids were released because their events are no longer in the files; segments of other nodes that have duplicates are marked for a recount: run `tallyline process --rebuild` on each of those nodes"
        ));
    }
    writer.close()?;
    Ok(Rebuilt { summary, notes })
}

fn describe_carried(pruned: &Pruned) -> String {
    format!(
        "carried over: {} events of {} pruned segments (up to number {}), which cannot be recounted",
        pruned.counts.events, pruned.segments, pruned.number
    )
}

/// Ids that the old database has lost belong to pruned segments: those of kept segments match their rows, or
/// nothing is carried over.
fn describe_lost_ids(ids: &IdCount) -> Option<String> {
    let IdCount { stored, of_rows } = ids;
    (of_rows < stored).then(|| {
        format!(
            "the old database had {of_rows} ids instead of {stored}: an event with a lost id of a pruned segment that is sent again counts again"
        )
    })
}

fn describe_expired(rows: &[SegmentRow]) -> Option<String> {
    let ids: u64 = rows.iter().map(|row| row.ids_expired).sum();
    (ids > 0).then(|| {
        format!(
            "{ids} ids had expired (--dedup-window): an event with one of them that was counted again is now counted once"
        )
    })
}

/// The rows of the old database and the sums of its pruned segments.
fn read_old(old: &Path) -> Result<(Vec<SegmentRow>, Pruned), ProcessError> {
    read_kept(old).map_err(|error| {
        ProcessError::NotRebuilt(format!(
            "{}: it cannot be read, so the totals of pruned segments cannot be recovered: {}. Move it and its -wal away and run `tallyline process`, which builds a new one from all kept files",
            old.display(),
            describe(&error)
        ))
    })
}

/// Describes the events that will be counted differently.
fn changes(catalog: &Catalog, rows: &[SegmentRow]) -> Vec<String> {
    let mut notes = Vec::new();
    for row in rows {
        let kept = catalog
            .sealed
            .get(&row.id)
            .is_some_and(|found| Claims::of(found, Some(row.tag)).usable.is_some());
        if !kept && row.counts.events > 0 {
            notes.push(format!(
                "segment {}: its file {} is missing, so the {} events counted of it are no longer counted",
                row.id, row.file_name, row.counts.events
            ));
        } else if kept && row.state == SegmentState::Corrupt {
            notes.push(format!(
                "segment {}: was corrupt ({} events were counted before the file changed); its present content is applied",
                row.id, row.counts.events
            ));
        }
    }
    notes
}

/// Creates the new database with the sums of the pruned segments, if they can be determined.
fn carry(
    config: &ProcessorConfig,
    disk: &dyn Disk,
    pruned: &Pruned,
    old: &Path,
    new: &Path,
) -> Result<IdCount, ProcessError> {
    let refused = |reason: String| {
        ProcessError::NotRebuilt(format!(
            "{} events of {} pruned segments are only in the old totals, and their share cannot be determined: {reason}. The old database is unchanged. Restore a backup of it or of the files; or move {} away and run `tallyline process`: the totals then lack those events, and readiness names their segments",
            pruned.counts.events,
            pruned.segments,
            old.display()
        ))
    };
    let snapshot = match Snapshot::open(old) {
        Ok(Some(snapshot)) => snapshot,
        Ok(None) => return Err(refused("the old database is gone".to_owned())),
        Err(error) => return Err(refused(describe(&error))),
    };
    if let Some(mismatch) = mismatch(&snapshot, config, disk)? {
        return Err(refused(mismatch));
    }
    let mut writer = Writer::open(new, Existing::OrCreate)?;
    writer.belong_to(config.directory)?;
    writer.carry(&snapshot, config.clock.now_ms())?;
    writer.close()?;
    Ok(snapshot.ids)
}

/// Checks that the old database matches the files except for the pruned segments; only then can the share of
/// those be determined. Returns how it does not match.
fn mismatch(
    snapshot: &Snapshot,
    config: &ProcessorConfig,
    disk: &dyn Disk,
) -> Result<Option<String>, ProcessError> {
    let mut mismatch = None;
    let mut on_finding = |finding: &Finding| {
        if let Finding::Mismatch(text) | Finding::Inconclusive(text) = finding {
            mismatch.get_or_insert_with(|| text.clone());
        }
    };
    recount(
        snapshot,
        &config.target(),
        disk,
        &mut on_finding,
        &mut |_, _| {},
    )?;
    if mismatch.is_some() {
        return Ok(mismatch);
    }
    let (mut events, mut net) = (0, 0i64);
    snapshot.differences(&mut |_, database, files| {
        events += database.events - files.events;
        net = net.wrapping_add(database.micros.wrapping_sub(files.micros));
    })?;
    let carried = (u64::try_from(events).unwrap_or_default(), net);
    let pruned = (snapshot.pruned.counts.events, snapshot.pruned.net_check);
    Ok((carried != pruned).then(|| {
        "ids have expired, so which of their events were counted cannot be determined".to_owned()
    }))
}

/// Checkpoints the old database and closes it to a single file, because SQLite would apply a remaining `-wal`
/// to the new one. A `-wal` that does not belong to the old database (because one of them was restored) is
/// moved to `quarantine/`; the note says so.
fn close_old(disk: &dyn Disk, data_dir: &Path, old: &Path) -> Result<Option<String>, ProcessError> {
    let exists = |path: &Path| path.try_exists().unwrap_or(true);
    let mut note = None;
    if exists(old) {
        let closed = Writer::open(old, Existing::Only).and_then(Writer::close);
        match closed {
            Err(error) if !error.is_locked() && !is_in_use(old)? => {
                let moved = quarantine_wal(disk, data_dir, old)?;
                note = moved.map(|path| {
                    format!(
                        "the write-ahead log did not belong to the old database ({}); it is kept as {}",
                        describe(&error),
                        path.display()
                    )
                });
            }
            closed => closed?,
        }
    }
    for suffix in ["-wal", "-journal"] {
        if exists(&sibling(old, suffix)) {
            return Err(ProcessError::NotRebuilt(format!(
                "{} is in use by another program (such as an open sqlite3 shell); close that first",
                old.display()
            )));
        }
    }
    Ok(note)
}

/// Moves the `-wal`, or the `-journal` of a database that is not in WAL mode, to `quarantine/`. No process may
/// have the database open. Returns the new path.
fn quarantine_wal(
    disk: &dyn Disk,
    data_dir: &Path,
    old: &Path,
) -> Result<Option<PathBuf>, ProcessError> {
    let quarantine = data_dir.join(QUARANTINE_DIR);
    disk.create_dir(&quarantine)
        .map_err(ProcessError::io("create", &quarantine))?;
    let mut kept = None;
    for suffix in ["-wal", "-journal"] {
        let path = sibling(old, suffix);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let to = (1..=u16::MAX)
            .map(|copy| quarantine.join(format!("{name}.{copy}")))
            .find(|to| !to.try_exists().unwrap_or(true));
        let Some(to) = to else { continue };
        match disk.rename_new(&path, &to) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            moved => moved.map_err(ProcessError::io("move to the quarantine", &path))?,
        }
        kept = Some(to);
    }
    // SQLite creates it again if there is a -wal.
    let shm = sibling(old, "-shm");
    match disk.remove(&shm) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(ProcessError::io("remove", &shm)(error));
        }
        _ => {}
    }
    for dir in [&quarantine, data_dir] {
        disk.sync_dir(dir).map_err(ProcessError::io("sync", dir))?;
    }
    Ok(kept)
}
