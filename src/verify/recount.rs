//! The recount behind `tallyline verify`: counts every kept file again and compares it with its row.
//!
//! It runs on the caller's thread with its own scanning threads, also while a server runs. It holds the
//! shared lock on the data directory, so that no segment is pruned and no id expires meanwhile. Events may
//! be appended, applied, sealed or archived meanwhile: each file is counted up to the `applied_bytes` of
//! its row in the snapshot that was taken first. A file is found by its number in any of the directories.
//!
//! An event without an id counts unless it is recorded as overflowing a total. An event with an id counts if
//! the row of the id has its segment and offset. Memory is bounded as it is for applying: the sums per user
//! of all files that do not fit are written to temporary files.
//!
//! A difference is a [`Finding`], not an error; the recount continues. An error means that the comparison
//! could not be made.

mod file_sums;
mod files;
mod locate;
mod same_content;
mod totals;

use std::collections::HashMap;
use std::path::Path;

use self::locate::Located;
use super::{Target, VerifyError, sums};
use crate::aggregate::pool::{Fold, Pool};
use crate::aggregate::spill::SpillDir;
use crate::data_dir::disk::{DirLock, Disk};
use crate::data_dir::segment::{Label, SegmentId};
use crate::data_dir::{Catalog, active_label, given_out};
use crate::event::Micros;
use crate::store::{Counts, SegmentRow, SegmentState, Snapshot};

/// One result of a recount, as a sentence for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Files and database differ.
    Mismatch(String),
    /// Files and database cannot be compared: a file is missing, or has another content than was applied.
    Inconclusive(String),
    /// Neither: segments that were pruned, ids that expired, bytes that are pending.
    Note(String),
}

/// The result of a recount.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Number of files that were recounted.
    pub files: u64,
    /// Number of bytes that were recounted.
    pub bytes: u64,
    /// The lines in these bytes, by outcome.
    pub counts: Counts,
    /// Net revenue of their events, in micros, modulo 2^64.
    pub net: i64,
    /// Number of users whose totals were compared one by one; `None` if an exact comparison is impossible.
    pub users: Option<u64>,
    /// Number of [`Finding::Mismatch`].
    pub differences: u64,
    /// Number of [`Finding::Inconclusive`].
    pub inconclusive: u64,
}

impl VerifyReport {
    /// Whether files and database agree.
    pub fn agrees(&self) -> bool {
        self.differences == 0 && self.inconclusive == 0
    }
}

/// Recounts a data directory; `None` if it has no database. `on_finding` is called with each finding as it
/// is made, `on_progress` with the bytes counted and the bytes to count.
pub fn verify(
    config: &Target,
    disk: &dyn Disk,
    on_finding: &mut dyn FnMut(&Finding),
    on_progress: &mut dyn FnMut(u64, u64),
) -> Result<Option<VerifyReport>, VerifyError> {
    let config = &config.identified(disk)?;
    let dir = &config.data_dir;
    let _held = DirLock::shared(dir).map_err(VerifyError::io("lock", dir))?;
    let Some(snapshot) = Snapshot::of(&config.database, config.directory)? else {
        return Ok(None);
    };
    let mut report = recount(&snapshot, config, disk, on_finding, on_progress)?;
    // Not part of the recount: a rebuild does not need it.
    if let Some(difference) = sums::overall_difference(&snapshot.overall, &snapshot.totals) {
        report.differences += 1;
        on_finding(&Finding::Mismatch(format!(
            "{difference}; run `tallyline process --rebuild`, which builds a new database from the files"
        )));
    }
    if let Some(difference) = sums::id_difference(&snapshot.ids) {
        report.differences += 1;
        on_finding(&Finding::Mismatch(difference));
    }
    for damage in snapshot.damages()? {
        report.differences += 1;
        on_finding(&Finding::Mismatch(format!(
            "database {}: the file is damaged: {}; run `tallyline process --rebuild`, which builds a new one from the files",
            config.database,
            damage.replace('\n', " ")
        )));
    }
    for node in &snapshot.recounts {
        report.differences += 1;
        on_finding(&Finding::Mismatch(format!(
            "{node} have duplicates of ids that a rebuild of another node may have released, so events may be missing from the totals; run `tallyline process --rebuild` on that node"
        )));
    }
    Ok(Some(report))
}

/// [`verify`] for a caller that holds the lock on the directory and has taken the snapshot. The snapshot then
/// has the sums of the files.
pub(crate) fn recount(
    snapshot: &Snapshot,
    config: &Target,
    disk: &dyn Disk,
    on_finding: &mut dyn FnMut(&Finding),
    on_progress: &mut dyn FnMut(u64, u64),
) -> Result<VerifyReport, VerifyError> {
    let dir = &config.data_dir;
    let mut pool = Pool::new(&config.memory_budget()).spilling_to(SpillDir::unnamed());
    let mut recount = Recount {
        snapshot,
        config,
        disk,
        ids_found: HashMap::new(),
        // Read before the listing, which then has every segment sealed by now.
        given_out: given_out(disk, dir)?,
        active: active_label(disk, dir, config.tag())?,
        catalog: Catalog::scan(disk, dir, config.tag()).map_err(VerifyError::io("list", dir))?,
        users: pool.begin(),
        pool,
        on_finding,
        on_progress,
        bytes_total: snapshot.rows.iter().map(|row| row.applied_bytes).sum(),
        report: VerifyReport::default(),
        exact: true,
        pending: (0, 0),
    };
    for row in &snapshot.rows {
        recount.segment(row)?;
    }
    recount.rivals();
    recount.same_contents();
    recount.ids()?;
    recount.files_without_row();
    recount.missing();
    recount.pruned_and_expired();
    recount.sums();
    recount.users()?;
    Ok(recount.report)
}

fn not_recounted(row: &SegmentRow) -> String {
    format!(
        "the {} events counted of it ({}) cannot be recounted",
        row.counts.events,
        Micros::from(row.net_check)
    )
}

struct Recount<'r> {
    snapshot: &'r Snapshot,
    config: &'r Target,
    disk: &'r dyn Disk,
    catalog: Catalog,
    /// The label in `events.jsonl`; `None` if there is none.
    active: Option<Label>,
    /// The highest number of a sealed segment according to `directory.json`.
    given_out: u64,
    pool: Pool,
    /// The sums per user of the files so far.
    users: Fold,
    on_finding: &'r mut dyn FnMut(&Finding),
    on_progress: &'r mut dyn FnMut(u64, u64),
    bytes_total: u64,
    report: VerifyReport,
    /// For each recounted segment, by key, the number of events that were counted there by the row of their
    /// id.
    ids_found: HashMap<i64, u64>,
    /// Whether the totals of each user can be compared.
    exact: bool,
    /// (files, bytes) not yet applied.
    pending: (u64, u64),
}

fn in_quarantine(id: &SegmentId, path: &Path, bytes: u64) -> String {
    format!(
        "segment {id}: {} was moved to the quarantine before {bytes} bytes of it were applied, so their events are not counted. Move it back to the data directory; or, to accept that they do not count, replace it by an empty file of that name",
        path.display()
    )
}

impl Recount<'_> {
    fn add_finding(&mut self, finding: &Finding) {
        match finding {
            Finding::Mismatch(_) => self.report.differences += 1,
            Finding::Inconclusive(_) => self.report.inconclusive += 1,
            Finding::Note(_) => {}
        }
        (self.on_finding)(finding);
    }

    fn segment(&mut self, row: &SegmentRow) -> Result<(), VerifyError> {
        let (file, size) = match self.locate(row)? {
            Located::Found(file, size) => (file, size),
            other => {
                if row.applied_bytes > 0 || row.state == SegmentState::Missing {
                    self.exact &= row.counts.events == 0;
                    if let Located::NotFound(seen) = other {
                        self.not_found(row, &seen);
                    }
                }
                return Ok(());
            }
        };
        let broken = Self::broken_seal(row, &file)?;
        if row.state != SegmentState::Corrupt
            && let Some(broken) = &broken
        {
            self.add_finding(&Finding::Mismatch(format!("segment {}: {broken}", row.id)));
        } else if size != row.applied_bytes || broken.is_some() {
            match row.state {
                SegmentState::Applied => self.add_finding(&Finding::Mismatch(format!(
                    "segment {}: {} has {size} bytes, but was fully applied at {}",
                    row.id,
                    file.path.display(),
                    row.applied_bytes
                ))),
                SegmentState::Corrupt => self.add_finding(&Finding::Inconclusive(format!(
                    "segment {}: the bytes of {} after the {} that were applied are not applied, because it is marked corrupt: {}",
                    row.id,
                    file.path.display(),
                    row.applied_bytes,
                    row.reason.as_deref().unwrap_or("no reason recorded")
                ))),
                _ if self.is_quarantined(row) => self.add_finding(&Finding::Inconclusive(in_quarantine(
                    &row.id,
                    &file.path,
                    size - row.applied_bytes,
                ))),
                _ => {
                    self.pending.0 += 1;
                    self.pending.1 += size - row.applied_bytes;
                }
            }
        }
        let sums = self.add_up(row, &file)?;
        self.ids_found.insert(row.key, sums.id_events);
        self.report.files += 1;
        self.report.bytes += row.applied_bytes;
        self.report.counts.add(&sums.counts);
        self.report.net = self.report.net.wrapping_add(sums.net);
        self.compare(row, &file, &sums);
        Ok(())
    }
}

fn describe(counts: &Counts, net: i64) -> String {
    format!(
        "{} events ({}), {} duplicates and {} rejected lines",
        counts.events,
        Micros::from(net),
        counts.duplicates,
        counts.rejected
    )
}

#[cfg(test)]
mod tests;
