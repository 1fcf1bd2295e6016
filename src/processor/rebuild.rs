//! `process --rebuild`: a new database from all kept files, in the place of the old one.
//!
//! The caller holds `serve.lock` and `process.lock`. The new database is made beside the old one,
//! under a temporary name, closed to a single file and fsynced; the old one is checkpointed and
//! closed until no `-wal` is left (one that does not fit it is set aside); then a rename puts the new one in its place, and the directory is
//! fsynced. A crash at any point leaves the old one or the new one, whole.
//!
//! # What becomes of what the files alone don't say
//! - Segments that were pruned: their sums are carried over, and with them of each user's total
//!   what the kept files don't come to, and the ids that counted in them. That needs an old database
//!   that agrees with the files; otherwise nothing is done, and the words say what can be.
//! - Corrupt files are applied as they are now; lost or deleted files no longer count. Each is
//!   named.
//! - Ids that were let go guard again, as far as their events are in kept files.
//! - Times (of applying, for `--retention` and `--dedup-window`) begin anew.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{ProcessConfig, ProcessError, RunProgress, Summary, describe, retention, run_once};
use crate::data_dir::disk::{self, DirHold, Disk, RealDisk};
use crate::data_dir::{Catalog, Claims, QUARANTINE_DIR};
use crate::store::{
    Existing, Pruned, SegmentRow, SegmentState, Snapshot, Writer, is_in_use, read_kept, sibling,
};
use crate::verify::Finding;
use crate::verify::recount::recount;

/// The new database while it is made, beside the old one.
const UNFINISHED: &str = "revenue.db.rebuild";

/// What a rebuild did.
#[derive(Clone, Debug, Default)]
pub struct Rebuilt {
    /// What was applied to the new database.
    pub summary: Summary,
    /// What the new database says otherwise than the old one, and what was carried over.
    pub notes: Vec<String>,
}

/// Makes the database anew and puts it in place. `on_progress` is called after each commit.
pub fn rebuild(
    config: &ProcessConfig,
    disk: &Arc<dyn Disk>,
    on_progress: &mut dyn FnMut(RunProgress<'_>),
) -> Result<Rebuilt, ProcessError> {
    let config = &config.established(&**disk)?;
    let dir = &config.data_dir;
    let held = DirHold::alone(dir).map_err(ProcessError::io("hold", dir))?;
    let Some(_held) = held else {
        return Err(ProcessError::NotRebuilt(
            "a `tallyline verify` reads the files just now; try again once it is done".to_owned(),
        ));
    };
    let old = config.database();
    let new = dir.join(UNFINISHED);
    remove_unfinished(dir)?;
    let (rows, pruned) = read_kept(&old).map_err(|error| {
        ProcessError::NotRebuilt(format!(
            "the old database can't be read, so that it can't be told what retention has let go: {}. Move it and its -wal away and run `tallyline process`, which makes a new one from all kept files",
            describe(&error)
        ))
    })?;
    let catalog = Catalog::scan(&**disk, dir, config.directory_tag())
        .map_err(ProcessError::io("list", dir))?;
    if pruned.number > 0 {
        let writer = Writer::open(&old, Existing::Only)?;
        retention::finish(&**disk, &catalog, &writer)?;
        writer.close()?;
    }
    let mut notes = changes(&catalog, &rows);
    if pruned.segments > 0 {
        carry(config, &**disk, &pruned, &new)?;
        notes.push(format!(
            "carried over: {} events of {} pruned segments (up to number {}), which no file proves any more",
            pruned.counts.events, pruned.segments, pruned.number
        ));
    }
    let ids: u64 = rows.iter().map(|row| row.ids_expired).sum();
    if ids > 0 {
        notes.push(format!(
            "{ids} ids had been let go (--dedup-window): an event of theirs that had counted again counts once now"
        ));
    }
    let mut building = config.clone();
    building.database.clone_from(&new);
    let summary = run_once(&building, disk, &[], on_progress)?;
    if let Some(refused) = summary.refused.iter().chain(&summary.unusable).next() {
        let (path, reason) = (refused.path.display(), &refused.reason);
        let words = format!("{path}: {reason}. The old database is as it was");
        remove_unfinished(dir)?;
        return Err(ProcessError::NotRebuilt(words));
    }
    notes.extend(close_old(&**disk, dir, &old)?);
    disk::replace(&new, &old).map_err(ProcessError::io("put a new database in place of", &old))?;
    Ok(Rebuilt { summary, notes })
}

/// Removes what a rebuild left that did not get done.
pub(super) fn remove_unfinished(dir: &Path) -> Result<(), ProcessError> {
    for suffix in ["", "-wal", "-shm", "-journal"] {
        let path = dir.join(format!("{UNFINISHED}{suffix}"));
        match RealDisk.remove(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            removed => removed.map_err(ProcessError::io("remove", &path))?,
        }
    }
    Ok(())
}

/// What will count otherwise than it does.
fn changes(catalog: &Catalog, rows: &[SegmentRow]) -> Vec<String> {
    let mut notes = Vec::new();
    for row in rows {
        let kept = catalog
            .sealed
            .get(&row.id)
            .is_some_and(|found| Claims::of(found, Some(row.tag)).usable.is_some());
        if !kept && row.counts.events > 0 {
            notes.push(format!(
                "segment {}: its file {} is not kept here, so the {} events counted of it count no longer",
                row.id, row.file_name, row.counts.events
            ));
        } else if kept && row.state == SegmentState::Corrupt {
            notes.push(format!(
                "segment {}: was corrupt ({} events counted of it before it changed); it is applied as it is now",
                row.id, row.counts.events
            ));
        }
    }
    notes
}

/// Begins the new database with what was pruned, if that can be told from the rest.
fn carry(
    config: &ProcessConfig,
    disk: &dyn Disk,
    pruned: &Pruned,
    new: &Path,
) -> Result<(), ProcessError> {
    let old = config.database();
    let refused = |doubt: String| {
        ProcessError::NotRebuilt(format!(
            "{} events of {} pruned segments are in the old totals and in no file, and can't be told from the rest: {doubt}. The old database is as it was. Restore a backup of it or of the files; or move {} away and run `tallyline process`: the totals then lack those events, and readiness names their segments",
            pruned.counts.events,
            pruned.segments,
            old.display()
        ))
    };
    let proof = match Snapshot::open(&old) {
        Ok(Some(proof)) => proof,
        Ok(None) => return Err(refused("it is gone".to_owned())),
        Err(error) => return Err(refused(describe(&error))),
    };
    if let Some(doubt) = doubt(&proof, config, disk)? {
        return Err(refused(doubt));
    }
    let mut writer = Writer::open(new, Existing::OrCreate)?;
    writer.belong_to(config.directory)?;
    writer.carry(&proof, config.clock.now_ms())?;
    Ok(writer.close()?)
}

/// What was pruned can be told from the rest only if the rest is exactly what the files say; why it
/// is not.
fn doubt(
    proof: &Snapshot,
    config: &ProcessConfig,
    disk: &dyn Disk,
) -> Result<Option<String>, ProcessError> {
    let mut doubt = None;
    let mut on_finding = |finding: &Finding| {
        if let Finding::Mismatch(words) | Finding::Inconclusive(words) = finding {
            doubt.get_or_insert_with(|| words.clone());
        }
    };
    recount(
        proof,
        &config.target(),
        disk,
        &mut on_finding,
        &mut |_, _| {},
    )?;
    if doubt.is_some() {
        return Ok(doubt);
    }
    let (mut events, mut net) = (0, 0i64);
    proof.differences(&mut |_, database, files| {
        events += database.events - files.events;
        net = net.wrapping_add(database.micros.wrapping_sub(files.micros));
    })?;
    let carried = (u64::try_from(events).unwrap_or_default(), net);
    let pruned = (proof.pruned.counts.events, proof.pruned.net_check);
    Ok((carried != pruned).then(|| {
        "ids were let go, so that it can't be told which of their events counted".to_owned()
    }))
}

/// Checkpoints the old database and closes it to a single file: a `-wal` left beside the new one
/// would be played into it. A `-wal` that does not fit the old database (one of them was restored)
/// cannot be played into it; it is set aside.
fn close_old(disk: &dyn Disk, data_dir: &Path, old: &Path) -> Result<Option<String>, ProcessError> {
    let exists = |path: &Path| path.try_exists().unwrap_or(true);
    let mut note = None;
    if exists(old) {
        let closed = Writer::open(old, Existing::Only).and_then(Writer::close);
        match closed {
            Err(error) if !error.is_locked() && !is_in_use(old)? => {
                let aside = set_wal_aside(disk, data_dir, old)?;
                note = aside.map(|path| {
                    format!(
                        "the write-ahead log did not fit the old database ({}); it is kept as {}",
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
                "{} is in use by another program (such as an open sqlite3); close that one first",
                old.display()
            )));
        }
    }
    Ok(note)
}

/// Moves a `-wal` (or the `-journal` of a database that is none in WAL mode) to `quarantine/`. Nobody
/// has the database open. Without them the old database is what it was when it was copied.
fn set_wal_aside(
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
            moved => moved.map_err(ProcessError::io("set aside", &path))?,
        }
        kept = Some(to);
    }
    // SQLite makes it again from the -wal, wherever there is one.
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
