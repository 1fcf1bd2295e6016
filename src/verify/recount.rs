//! The recount behind `tallyline verify`: counts every kept file again and compares it with its row.
//!
//! It runs on the caller's thread with its own scanning threads, also while a server runs. It holds the
//! shared lock on the data directory, so that no segment is pruned and no id expires meanwhile. Events may
//! be appended, applied, sealed or archived meanwhile: each file is counted up to the `applied_bytes` of
//! its row in the snapshot that was taken first. A file is found by its number in any of the directories.
//!
//! An event without an id counts unless it is recorded as overflowing a total. An event with an id counts if
//! the row of the id has its segment and offset. Memory is bounded as it is for applying: the sums per user
//! are accumulated in a temporary database.
//!
//! A difference is a [`Finding`], not an error; the recount continues. An error means that the comparison
//! could not be made.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};

use crc32fast::Hasher;

use super::{Target, VerifyError, sums};
use crate::aggregate::REJECTED_LINES_MAX;
use crate::aggregate::delta::signed;
use crate::aggregate::lines;
use crate::aggregate::pool::{Pool, RangeAggregate};
use crate::aggregate::user_sums::UserBlock;
use crate::data_dir::disk::{DirHold, Disk};
use crate::data_dir::segment::{ACTIVE_FILE, Label, SegmentId};
use crate::data_dir::{Catalog, Place, SegmentFile, active_label, given_out, numbers};
use crate::event::{Event, Micros};
use crate::store::{AppliedSum, Counts, IdStatus, SegmentRow, SegmentState, Snapshot, UserSum};
use crate::verify::contents::{compare_claims, describe_rivals};
use crate::verify::seal;

/// How many times a file is searched for; it may be renamed between the listing and the opening.
const ATTEMPTS: u32 = 3;

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
    /// Files recounted.
    pub files: u64,
    /// Bytes recounted.
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
    let _held = DirHold::share(dir).map_err(VerifyError::io("lock", dir))?;
    let Some(snapshot) = Snapshot::open(&config.database)? else {
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
    for damage in snapshot.damages()? {
        report.differences += 1;
        on_finding(&Finding::Mismatch(format!(
            "database {}: the file is damaged: {}; run `tallyline process --rebuild`, which builds a new one from the files",
            config.database.display(),
            damage.replace('\n', " ")
        )));
    }
    Ok(Some(report))
}

/// [`verify`] for a caller that holds the lock on the directory and has taken the snapshot. Adds the sums of
/// the files to the snapshot.
pub(crate) fn recount(
    snapshot: &Snapshot,
    config: &Target,
    disk: &dyn Disk,
    on_finding: &mut dyn FnMut(&Finding),
    on_progress: &mut dyn FnMut(u64, u64),
) -> Result<VerifyReport, VerifyError> {
    let dir = &config.data_dir;
    let mut recount = Recount {
        snapshot,
        config,
        disk,
        ids_found: HashMap::new(),
        // Read before the listing, which then has every segment sealed by now.
        given_out: given_out(disk, dir)?,
        active: active_label(disk, dir, config.tag())?,
        catalog: Catalog::scan(disk, dir, config.tag()).map_err(VerifyError::io("list", dir))?,
        pool: Pool::start(&config.memory_budget()).map_err(VerifyError::Thread)?,
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
        Micros(row.net_check)
    )
}

/// The result of the search for the applied bytes of a segment.
enum Located {
    /// The file that begins with them, and its size.
    Found(SegmentFile, u64),
    /// The only file with its name cannot be opened; this is reported already.
    Unopened,
    /// No file begins with them; these files have its name and another content.
    NotFound(Vec<PathBuf>),
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

/// The sums over the applied bytes of one file.
#[derive(Default)]
struct Tally {
    counts: Counts,
    net: i64,
    /// Events counted here by the row of their id.
    id_events: u64,
    /// Net revenue of those, in micros.
    id_net: i64,
    /// Events whose id has no row. They are included in `counts` if ids of the segment have expired.
    unknown: u64,
    /// Net revenue of those included, in micros.
    unknown_net: i64,
}

impl Tally {
    /// Whether everything matches the row except events whose ids have expired; which of those were counted
    /// cannot be determined. Only for a row with expired ids.
    fn agrees_but_for_expired(&self, row: &SegmentRow) -> bool {
        let events = self.counts.events - self.id_events - self.unknown;
        let net = self
            .net
            .wrapping_sub(self.id_net)
            .wrapping_sub(self.unknown_net);
        self.counts.lines == row.counts.lines
            && self.id_events + row.ids_expired == row.id_events
            && events == row.counts.events - row.id_events
            && net == row.net_check.wrapping_sub(row.id_net_check)
    }
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
        let tally = self.tally(row, &file)?;
        self.ids_found.insert(row.key, tally.id_events);
        self.report.files += 1;
        self.report.bytes += row.applied_bytes;
        self.report.counts.add(&tally.counts);
        self.report.net = self.report.net.wrapping_add(tally.net);
        self.compare(row, &file, &tally);
        Ok(())
    }

    /// Compares the file of a segment that is not fully applied with the seal in its name.
    fn broken_seal(row: &SegmentRow, file: &SegmentFile) -> Result<Option<String>, VerifyError> {
        if row.state == SegmentState::Applied {
            return Ok(None); // Its row has the same length and checksum.
        }
        let applied = Hasher::new_with_initial_len(row.checksum, row.applied_bytes);
        seal::contradiction(&*file.file, &file.path, &applied)
            .map_err(VerifyError::io("read", &file.path))
    }

    /// Whether the segment has files in the quarantine only.
    fn is_quarantined(&self, row: &SegmentRow) -> bool {
        let found = self.catalog.sealed.get(&row.id);
        let active = self.active.map(|label| label.number);
        row.id.number() != active
            && found.is_some_and(|found| found.iter().all(|file| file.place == Place::Quarantine))
    }

    fn not_found(&mut self, row: &SegmentRow, seen: &[PathBuf]) {
        let counted = not_recounted(row);
        self.add_finding(&match seen.first() {
            None => Finding::Inconclusive(format!(
                "segment {}: its file {} is missing; {counted}",
                row.id, row.file_name
            )),
            Some(path) => Finding::Mismatch(format!(
                "segment {}: {} does not begin with the {} bytes that were applied; {counted}",
                row.id,
                path.display(),
                row.applied_bytes
            )),
        });
    }

    /// Searches for the file that begins with the applied bytes of the segment. Lists the directory again
    /// while files move.
    fn locate(&mut self, row: &SegmentRow) -> Result<Located, VerifyError> {
        let dir = &self.config.data_dir;
        let mut seen = Vec::new();
        let mut unopened = None;
        for _ in 0..ATTEMPTS {
            let candidates = self.candidates(row);
            if !seen.is_empty() && seen == candidates {
                break; // No file moved since the last attempt.
            }
            for path in &candidates {
                let file = match self.disk.open_read(path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    // Reported below; another file may have the bytes.
                    Err(error) => {
                        unopened = Some((path.clone(), error));
                        continue;
                    }
                    Ok(file) => file,
                };
                let io = |error| VerifyError::io("read", path)(error);
                let size = file.size().map_err(io)?;
                if size >= row.applied_bytes
                    && lines::checksum(&*file, row.applied_bytes).map_err(io)? == row.checksum
                {
                    let file = SegmentFile {
                        id: row.id.clone(),
                        tag: row.tag,
                        path: path.clone(),
                        file,
                    };
                    return Ok(Located::Found(file, size));
                }
            }
            seen = candidates;
            self.active = active_label(self.disk, dir, self.config.tag())?;
            self.catalog = Catalog::scan(self.disk, dir, self.config.tag())
                .map_err(VerifyError::io("list", dir))?;
        }
        if let Some((path, error)) = unopened {
            self.add_finding(&Finding::Inconclusive(format!(
                "segment {}: cannot open {}: {error}; {}",
                row.id,
                path.display(),
                not_recounted(row)
            )));
            seen.retain(|seen| *seen != path);
            if seen.is_empty() {
                return Ok(Located::Unopened);
            }
        }
        Ok(Located::NotFound(seen))
    }

    /// The files that may have the bytes of the segment: those with its id, and the active file if that has
    /// its label.
    fn candidates(&self, row: &SegmentRow) -> Vec<PathBuf> {
        let found = self.catalog.sealed.get(&row.id);
        let mut paths: Vec<PathBuf> = found
            .into_iter()
            .flatten()
            .filter(|found| found.tag == row.tag)
            .map(|found| found.path.clone())
            .collect();
        let active = self.active.filter(|label| Some(label.tag) == row.tag);
        if active.is_some_and(|label| Some(label.number) == row.id.number()) {
            paths.push(self.config.data_dir.join(ACTIVE_FILE));
        }
        paths
    }

    /// Counts the applied bytes, and adds their sums per user to the snapshot.
    fn tally(&mut self, row: &SegmentRow, file: &SegmentFile) -> Result<Tally, VerifyError> {
        let end = row.applied_bytes;
        let overflows = self.snapshot.overflows(&row.id, end)?;
        let mut tally = Tally::default();
        let mut at = 0;
        while at < end {
            let aggregate = self
                .pool
                .scan(&file.file, at, end)
                .map_err(VerifyError::io("read", &file.path))?;
            self.add(row, &aggregate, &overflows, &mut tally)?;
            (self.on_progress)(self.report.bytes + aggregate.to, self.bytes_total);
            at = aggregate.to;
        }
        if !overflows.is_empty() {
            self.subtract_overflows(file, end, &overflows, &mut tally)?;
        }
        let counts = &mut tally.counts;
        counts.rejected = counts.lines - counts.events - counts.duplicates;
        Ok(tally)
    }

    fn add(
        &self,
        row: &SegmentRow,
        aggregate: &RangeAggregate,
        overflows: &HashSet<u64>,
        tally: &mut Tally,
    ) -> Result<(), VerifyError> {
        tally.counts.lines += aggregate.partial.lines;
        let read = VerifyError::io("read", Path::new(&row.file_name));
        let blocks: io::Result<Vec<UserBlock>> =
            aggregate.users.blocks().and_then(Iterator::collect);
        let blocks = blocks.map_err(read)?;
        let users = || blocks.iter().flat_map(UserBlock::iter);
        for (_, sums) in users() {
            tally.counts.events += sums.events();
            tally.net = tally.net.wrapping_add(sums.net_wrapping());
        }
        // The sums have the events with an id as if all of them counted.
        let mut uncounted = HashMap::<&str, UserSum>::new();
        self.snapshot
            .statuses(row.key, &aggregate.partial.with_id, &mut |event, fate| {
                let net = signed(event.kind, event.amount_micros);
                match fate {
                    // The id may have been counted later, somewhere else.
                    _ if overflows.contains(&event.offset) => {}
                    IdStatus::Contradicted => {}
                    IdStatus::Duplicate => tally.counts.duplicates += 1,
                    IdStatus::Unknown => {
                        tally.unknown += 1;
                        if row.ids_expired > 0 {
                            tally.unknown_net = tally.unknown_net.wrapping_add(net);
                            return;
                        }
                    }
                    IdStatus::Counted => {
                        tally.id_events += 1;
                        tally.id_net = tally.id_net.wrapping_add(net);
                        return;
                    }
                }
                tally.counts.events -= 1;
                tally.net = tally.net.wrapping_sub(net);
                let sum = uncounted.entry(event.user_id).or_default();
                sum.micros = sum.micros.wrapping_add(net);
                sum.events += 1;
            })?;
        let users = users().filter_map(|(user, sums)| {
            let mut sum = UserSum {
                micros: sums.net_wrapping(),
                events: i64::try_from(sums.events()).unwrap_or(i64::MAX),
            };
            if let Some(out) = uncounted.get(user) {
                sum.micros = sum.micros.wrapping_sub(out.micros);
                sum.events -= out.events;
            }
            (sum.events > 0).then_some((user, sum))
        });
        Ok(self.snapshot.add_users(users)?)
    }

    /// Subtracts lines without an id that overflowed a total: the scan included them, but they were not
    /// counted.
    fn subtract_overflows(
        &self,
        file: &SegmentFile,
        end: u64,
        overflows: &HashSet<u64>,
        tally: &mut Tally,
    ) -> Result<(), VerifyError> {
        let mut subtracted = Vec::new();
        lines::each(&*file.file, 0, end, |offset, line| {
            if overflows.contains(&offset)
                && let Ok(event) = Event::parse(line)
                && event.id.is_none()
            {
                let micros = signed(event.kind, event.amount_micros).wrapping_neg();
                subtracted.push((event.user_id.into_owned(), UserSum { micros, events: -1 }));
            }
        })
        .map_err(VerifyError::io("read", &file.path))?;
        for (_, sum) in &subtracted {
            tally.counts.events -= 1;
            tally.net = tally.net.wrapping_add(sum.micros);
        }
        let sums = subtracted.iter().map(|(user, sum)| (&**user, *sum));
        Ok(self.snapshot.add_users(sums)?)
    }

    fn compare(&mut self, row: &SegmentRow, file: &SegmentFile, tally: &Tally) {
        if tally.counts == row.counts && tally.net == row.net_check {
            return;
        }
        let path = file.path.display();
        if row.ids_expired > 0 && tally.agrees_but_for_expired(row) {
            self.exact = false;
            return self.add_finding(&Finding::Note(format!(
                "segment {} ({path}): {} ids of it have expired (--dedup-window), and {} events have an id that is not kept, so which of these were counted cannot be determined; everything else matches",
                row.id, row.ids_expired, tally.unknown
            )));
        }
        if row.counts.rejected > REJECTED_LINES_MAX
            && tally.counts.lines == row.counts.lines
            && tally.counts.duplicates == row.counts.duplicates
            && tally.counts.events > row.counts.events
        {
            self.exact = false;
            return self.add_finding(&Finding::Note(format!(
                "segment {} ({path}): only the first {REJECTED_LINES_MAX} of its {} rejected lines are kept, so whether {} events overflowed a total cannot be determined",
                row.id,
                row.counts.rejected,
                tally.counts.events - row.counts.events
            )));
        }
        self.add_finding(&Finding::Mismatch(format!(
            "segment {} ({path}): the file has {}, the database {}{}",
            row.id,
            describe(&tally.counts, tally.net),
            describe(&row.counts, row.net_check),
            match tally.unknown {
                0 => String::new(),
                unknown => format!("; {unknown} events have an id that is not in the database"),
            }
        )));
    }

    /// Compares the table of ids with the rows and the files. An id in the table without a counted line would
    /// make the next event with that id a duplicate although it was never counted.
    fn ids(&mut self) -> Result<(), VerifyError> {
        let snapshot = self.snapshot;
        let mut kept = snapshot.ids_by_segment()?;
        let cure = "an event that bears such an id again would not count; `tallyline process --rebuild` makes the table from the files";
        if let Some(count) = kept.remove(&None) {
            self.add_finding(&Finding::Mismatch(format!(
                "{count} ids belong to segments that are not in the database: {cure}"
            )));
        }
        for fault in &snapshot.blocks.faults {
            self.add_finding(&Finding::Mismatch(format!("{fault}: {cure}")));
        }
        let more = snapshot.blocks.fault_count - snapshot.blocks.faults.len() as u64;
        if more > 0 {
            self.add_finding(&Finding::Mismatch(format!(
                "{more} more blocks of ids contradict themselves: {cure}"
            )));
        }
        for row in &snapshot.rows {
            let kept = kept.get(&Some(row.key)).copied().unwrap_or(0);
            let expected = row.id_events - row.ids_expired;
            let found = self.ids_found.get(&row.key).copied();
            if kept != expected {
                self.add_finding(&Finding::Mismatch(format!(
                    "segment {}: the database has {kept} ids of it, but {} of its counted events have an id and {} of these expired: {cure}",
                    row.id, row.id_events, row.ids_expired
                )));
            } else if let Some(found) = found.filter(|found| *found != kept) {
                self.add_finding(&Finding::Mismatch(format!(
                    "segment {}: the database has {kept} ids of it, but only {found} of them are at the offset in their row: {cure}",
                    row.id
                )));
            }
        }
        Ok(())
    }

    /// Reports files with the number of a segment that is another file.
    fn rivals(&mut self) {
        let rows = self.snapshot.rows.iter().map(|row| (&row.id, row));
        let known: HashMap<&SegmentId, &SegmentRow> = rows.collect();
        let mut findings = Vec::new();
        for (id, found) in &self.catalog.sealed {
            let row = known.get(id).copied();
            let claims = compare_claims(self.disk, found, row);
            let pruned = id
                .number()
                .is_some_and(|number| number <= self.snapshot.pruned.number);
            if !claims.rivals.is_empty() && (known.contains_key(id) || !pruned) {
                findings.push(describe_rivals(self.disk, id, &claims.rivals, row));
            }
        }
        let path = self.config.data_dir.join(ACTIVE_FILE);
        if let Some(label) = self.active
            && let Some(row) = known.get(&SegmentId::Native(label.number))
            && row.tag != Some(label.tag)
        {
            findings.push(format!(
                "segment {}: {} is not the segment of that number that was applied",
                SegmentId::Native(label.number),
                path.display()
            ));
        }
        for finding in findings {
            self.add_finding(&Finding::Mismatch(finding));
        }
    }

    /// Reports files without a row in the database: pending, pruned or in the quarantine.
    fn files_without_row(&mut self) {
        let known: HashSet<&SegmentId> = self.snapshot.rows.iter().map(|row| &row.id).collect();
        let mut others: Vec<(SegmentId, PathBuf, Place)> = self
            .catalog
            .sealed
            .values()
            .flatten()
            .filter(|found| !known.contains(&found.id))
            .map(|found| (found.id.clone(), found.path.clone(), found.place))
            .collect();
        let active = self.active.map(|label| SegmentId::Native(label.number));
        if let Some(active) = active.filter(|active| !known.contains(active)) {
            let path = self.config.data_dir.join(ACTIVE_FILE);
            others.push((active, path, Place::Incoming));
        }
        for (id, path, place) in others {
            let pruned = self.snapshot.pruned.number;
            if id.number().is_some_and(|number| number <= pruned) {
                self.add_finding(&Finding::Note(format!(
                    "{}: not counted here; retention has pruned all segments up to {pruned}",
                    path.display()
                )));
            } else if place == Place::Quarantine
                && id.number().is_some()
                && !self.has_other_file(&id)
                && let Some(size) = self.disk.size_at(&path).ok().filter(|size| *size > 0)
            {
                self.add_finding(&Finding::Inconclusive(in_quarantine(&id, &path, size)));
            } else if place == Place::Quarantine {
                self.add_finding(&Finding::Note(format!(
                    "{}: in the quarantine, not counted",
                    path.display()
                )));
            } else {
                let opened = self.disk.open_read(&path);
                let compared =
                    opened.and_then(|file| seal::contradiction(&*file, &path, &Hasher::new()));
                if let Ok(Some(broken)) = compared {
                    self.add_finding(&Finding::Mismatch(format!("segment {id}: {broken}")));
                    continue;
                }
                let size = match self.disk.open_read(&path).and_then(|file| file.size()) {
                    // Moved since the listing, or there is no active file.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
                    Err(error) => {
                        let note = format!("{}: not counted: {error}", path.display());
                        self.add_finding(&Finding::Note(note));
                        0
                    }
                    Ok(size) => size,
                };
                self.pending.0 += u64::from(size > 0);
                self.pending.1 += size;
            }
        }
        let (files, bytes) = self.pending;
        if files > 0 {
            self.add_finding(&Finding::Note(format!(
                "pending: {bytes} bytes in {files} files are not applied yet"
            )));
        }
    }

    /// Whether the segment has a file outside the quarantine.
    fn has_other_file(&self, id: &SegmentId) -> bool {
        let found = self.catalog.sealed.get(id).into_iter().flatten();
        found
            .into_iter()
            .any(|file| file.place != Place::Quarantine)
    }

    /// Reports numbers that have neither a file nor a row.
    fn missing(&mut self) {
        let rows = self.snapshot.rows.iter().filter_map(|row| row.id.number());
        let files = self.catalog.sealed.keys().filter_map(SegmentId::number);
        let active = self.active.map(|label| label.number);
        let present: BTreeSet<u64> = rows.chain(files).chain(active).collect();
        let highest = present
            .last()
            .copied()
            .unwrap_or(0)
            .max(self.catalog.highest_number())
            .max(self.given_out);
        let first = self.snapshot.pruned.number + 1;
        let missing: BTreeSet<u64> = numbers::gaps(
            first,
            highest + 1,
            present.iter().map(|&number| number..=number),
        )
        .take(numbers::MISSING_MAX)
        .collect();
        if !missing.is_empty() {
            self.add_finding(&Finding::Inconclusive(format!(
                "segments {}: neither a file nor a row in the database; their events may not be counted",
                numbers::ranges(&missing)
            )));
        }
    }

    fn pruned_and_expired(&mut self) {
        let pruned = &self.snapshot.pruned;
        if pruned.segments > 0 {
            self.exact = false;
            let note = format!(
                "{} segments up to number {} were pruned (--retention): their {} are in the totals and cannot be recounted; only the sum over all users is compared",
                pruned.segments,
                pruned.number,
                describe(&pruned.counts, pruned.net_check)
            );
            self.add_finding(&Finding::Note(note));
        }
        let ids: u64 = self.snapshot.rows.iter().map(|row| row.ids_expired).sum();
        if ids > 0 {
            self.add_finding(&Finding::Note(format!(
                "{ids} ids have expired (--dedup-window): an event with one of them that was sent again was counted again"
            )));
        }
    }

    /// Compares the sum of the rows and of the pruned segments with the sum of all totals.
    fn sums(&mut self) {
        let snapshot = self.snapshot;
        let (mut events, mut net) = (snapshot.pruned.counts.events, snapshot.pruned.net_check);
        for row in &snapshot.rows {
            events += row.counts.events;
            net = net.wrapping_add(row.net_check);
        }
        if (events, net) != (snapshot.totals.events, snapshot.totals.net_check()) {
            self.add_finding(&Finding::Mismatch(format!(
                "all users together have {} events ({}), but the segments have {events} ({}): the database was changed, or mixed from two; run `tallyline process --rebuild`, which builds a new one from the files",
                snapshot.totals.events,
                snapshot.totals.revenue,
                Micros(net)
            )));
        }
        let applied = AppliedSum::of(&snapshot.rows);
        if applied != snapshot.applied_sum {
            self.add_finding(&Finding::Mismatch(format!(
                "{}; run `tallyline process --rebuild`, which builds a new database from the files",
                sums::describe_applied_sums(&snapshot.applied_sum, &applied)
            )));
        }
    }

    fn users(&mut self) -> Result<(), VerifyError> {
        for user in &self.snapshot.twice {
            self.add_finding(&Finding::Mismatch(format!(
                "user {user:?} has two totals: the database file is corrupt; run `tallyline process --rebuild`, which builds a new one from the files"
            )));
        }
        if !self.exact {
            return Ok(());
        }
        self.report.users = Some(self.snapshot.totals.users);
        let snapshot = self.snapshot;
        snapshot.differences(&mut |user, database, files| {
            self.add_finding(&Finding::Mismatch(format!(
                "user {user:?}: the files have {} from {} events, the database {} from {}",
                Micros(files.micros),
                files.events,
                Micros(database.micros),
                database.events
            )));
        })?;
        Ok(())
    }
}

fn describe(counts: &Counts, net: i64) -> String {
    format!(
        "{} events ({}), {} duplicates and {} rejected lines",
        counts.events,
        Micros(net),
        counts.duplicates,
        counts.rejected
    )
}

#[cfg(test)]
mod tests;
