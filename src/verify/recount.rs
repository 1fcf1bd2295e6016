//! The recount behind `verify`: every kept file, counted again and held against its row.
//!
//! On the caller's thread, with scanning threads of its own; beside a running server. It shares the
//! hold on the data directory, so that nothing is pruned and no id let go meanwhile; what is
//! appended, applied, sealed or archived meanwhile is none of its business, for it counts each file
//! up to the `applied_bytes` it read at first. Files are looked for by number wherever they lie.
//!
//! An event without id counts, unless it is recorded as overflowing a total; one with an id counts
//! where the id's row says it was counted. Memory is bounded as when applying: totals per user are
//! added up in a temporary database.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};

use crc32fast::Hasher;

use super::{Target, VerifyError, sums};
use crate::aggregate::REJECTED_LINES_MAX;
use crate::aggregate::delta::signed;
use crate::aggregate::lines;
use crate::aggregate::pool::{Pool, RangeAggregate};
use crate::data_dir::SegmentFile;
use crate::data_dir::disk::{DirHold, Disk};
use crate::data_dir::segment::{ACTIVE_FILE, Label, SegmentId};
use crate::data_dir::{Catalog, Place, numbers};
use crate::data_dir::{active_label, given_out};
use crate::event::{Event, Micros};
use crate::store::{AppliedSum, Counts, IdStatus, SegmentRow, SegmentState, Snapshot, UserSum};
use crate::verify::contents::{describe_rivals, settle};
use crate::verify::seal;

/// How often a file is looked for: it may be renamed between the listing and the opening.
const LOOKS: u32 = 3;

/// What a recount has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Files and database differ.
    Mismatch(String),
    /// It can't be told whether they do: a file is missing or is not what was applied.
    Inconclusive(String),
    /// What no file proves, and need not: pruned, let go, pending.
    Note(String),
}

/// What a recount came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Files recounted.
    pub files: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// What became of their lines.
    pub counts: Counts,
    /// Micros of their events, modulo 2^64.
    pub net: i64,
    /// Users whose totals were compared one by one; `None` if that could not be exact.
    pub users: Option<u64>,
    /// How many findings are differences.
    pub differences: u64,
    /// How many findings are inconclusive.
    pub inconclusive: u64,
}

impl VerifyReport {
    /// Whether files and database agree.
    pub fn agrees(&self) -> bool {
        self.differences == 0 && self.inconclusive == 0
    }
}

/// Recounts a data directory; `None` where there is no database. `on_finding` is told of each
/// finding as it comes, `on_progress` of the bytes counted and the bytes to count.
pub fn verify(
    config: &Target,
    disk: &dyn Disk,
    on_finding: &mut dyn FnMut(&Finding),
    on_progress: &mut dyn FnMut(u64, u64),
) -> Result<Option<VerifyReport>, VerifyError> {
    let config = &config.identified(disk)?;
    let dir = &config.data_dir;
    let _stays = DirHold::share(dir).map_err(VerifyError::io("hold", dir))?;
    let Some(proof) = Snapshot::open(&config.database)? else {
        return Ok(None);
    };
    let mut verdict = recount(&proof, config, disk, on_finding, on_progress)?;
    for damage in proof.damages()? {
        verdict.differences += 1;
        on_finding(&Finding::Mismatch(format!(
            "database {}: the file is damaged: {}; `tallyline process --rebuild` makes a new one from the files",
            config.database.display(),
            damage.replace('\n', " ")
        )));
    }
    Ok(Some(verdict))
}

/// The same for whoever holds the directory and has copied the database. Afterwards the proof has
/// the sums of the files beside the totals.
pub(crate) fn recount(
    proof: &Snapshot,
    config: &Target,
    disk: &dyn Disk,
    on_finding: &mut dyn FnMut(&Finding),
    on_progress: &mut dyn FnMut(u64, u64),
) -> Result<VerifyReport, VerifyError> {
    let dir = &config.data_dir;
    let mut recount = Recount {
        proof,
        config,
        disk,
        // Before the listing: what is sealed by then is in it.
        ids_found: HashMap::new(),
        given_out: given_out(disk, dir)?,
        active: active_label(disk, dir, config.tag())?,
        catalog: Catalog::scan(disk, dir, config.tag()).map_err(VerifyError::io("list", dir))?,
        pool: Pool::start(&config.shares()).map_err(VerifyError::Thread)?,
        on_finding,
        on_progress,
        bytes_total: proof.rows.iter().map(|row| row.applied_bytes).sum(),
        verdict: VerifyReport::default(),
        exact: true,
        pending: (0, 0),
    };
    for row in &proof.rows {
        recount.segment(row)?;
    }
    recount.rivals();
    recount.ids()?;
    recount.files_without_row();
    recount.missing();
    recount.pruned_and_expired();
    recount.sums();
    recount.users()?;
    Ok(recount.verdict)
}

fn not_recounted(row: &SegmentRow) -> String {
    format!(
        "the {} events counted of it ({}) can't be recounted",
        row.counts.events,
        Micros(row.net_check)
    )
}

/// Where the applied bytes of a segment were looked for.
enum Looked {
    /// The file that begins with them, and its size.
    Found(SegmentFile, u64),
    /// The only file of its name cannot be opened, which is a finding already.
    Unopened,
    /// In no file; these bear its name and hold something else.
    Nowhere(Vec<PathBuf>),
}

struct Recount<'r> {
    proof: &'r Snapshot,
    config: &'r Target,
    disk: &'r dyn Disk,
    catalog: Catalog,
    /// The segment that `events.jsonl` says it is.
    active: Option<Label>,
    /// The highest number that was given to a segment which is over, as `directory.json` says.
    given_out: u64,
    pool: Pool,
    on_finding: &'r mut dyn FnMut(&Finding),
    on_progress: &'r mut dyn FnMut(u64, u64),
    bytes_total: u64,
    verdict: VerifyReport,
    /// Of each recounted segment, by its key, the events that their id's row says were counted there.
    ids_found: HashMap<i64, u64>,
    /// Whether every user's total can be compared.
    exact: bool,
    /// Files with bytes that are not applied yet, and how many bytes.
    pending: (u64, u64),
}

/// What the applied bytes of a file come to.
#[derive(Default)]
struct Tally {
    counts: Counts,
    net: i64,
    /// Of the events, those whose id's row is here, and what they come to.
    id_events: u64,
    id_net: i64,
    /// Events whose id is in no row, counted in if ids were let go.
    unknown: u64,
    unknown_net: i64,
}

impl Tally {
    /// Whether all is as the row says but for events whose ids were let go, of which it can't be
    /// told which counted. For a row that has let ids go.
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

fn set_aside(id: &SegmentId, path: &Path, bytes: u64) -> String {
    format!(
        "segment {id}: {bytes} bytes of {} were not applied before it was moved to the quarantine, so its events are not counted. Move it back to the data directory; or, to accept that they do not count, replace it by an empty file of that name",
        path.display()
    )
}

impl Recount<'_> {
    fn find(&mut self, finding: &Finding) {
        match finding {
            Finding::Mismatch(_) => self.verdict.differences += 1,
            Finding::Inconclusive(_) => self.verdict.inconclusive += 1,
            Finding::Note(_) => {}
        }
        (self.on_finding)(finding);
    }

    fn segment(&mut self, row: &SegmentRow) -> Result<(), VerifyError> {
        let (file, size) = match self.look_for(row)? {
            Looked::Found(file, size) => (file, size),
            without => {
                if row.applied_bytes > 0 || row.state == SegmentState::Missing {
                    self.exact &= row.counts.events == 0;
                    if let Looked::Nowhere(seen) = without {
                        self.not_there(row, &seen);
                    }
                }
                return Ok(());
            }
        };
        let broken = Self::broken_seal(row, &file)?;
        if row.state != SegmentState::Corrupt
            && let Some(broken) = &broken
        {
            self.find(&Finding::Mismatch(format!("segment {}: {broken}", row.id)));
        } else if size != row.applied_bytes || broken.is_some() {
            match row.state {
                SegmentState::Applied => self.find(&Finding::Mismatch(format!(
                    "segment {}: {} has {size} bytes, but was wholly applied at {}",
                    row.id,
                    file.path.display(),
                    row.applied_bytes
                ))),
                SegmentState::Corrupt => self.find(&Finding::Inconclusive(format!(
                    "segment {}: what {} has beyond the {} bytes that were applied is not applied, because it is marked corrupt: {}",
                    row.id,
                    file.path.display(),
                    row.applied_bytes,
                    row.reason.as_deref().unwrap_or("no reason noted")
                ))),
                _ if self.is_set_aside(row) => self.find(&Finding::Inconclusive(set_aside(
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
        self.verdict.files += 1;
        self.verdict.bytes += row.applied_bytes;
        self.verdict.counts.add(&tally.counts);
        self.verdict.net = self.verdict.net.wrapping_add(tally.net);
        self.compare(row, &file, &tally);
        Ok(())
    }

    /// Why the file of a segment that is not wholly applied is not what was sealed.
    fn broken_seal(row: &SegmentRow, file: &SegmentFile) -> Result<Option<String>, VerifyError> {
        if row.state == SegmentState::Applied {
            return Ok(None); // Its row says all that its name does.
        }
        let applied = Hasher::new_with_initial_len(row.checksum, row.applied_bytes);
        seal::contradiction(&*file.file, &file.path, &applied)
            .map_err(VerifyError::io("read", &file.path))
    }

    /// Whether the segment's only files lie in the quarantine.
    fn is_set_aside(&self, row: &SegmentRow) -> bool {
        let found = self.catalog.sealed.get(&row.id);
        let active = self.active.map(|label| label.number);
        row.id.number() != active
            && found.is_some_and(|found| found.iter().all(|file| file.place == Place::Quarantine))
    }

    fn not_there(&mut self, row: &SegmentRow, seen: &[PathBuf]) {
        let counted = not_recounted(row);
        self.find(&match seen.first() {
            None => Finding::Inconclusive(format!(
                "segment {}: its file {} is not there; {counted}",
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

    /// The file that begins with what was applied of the segment, and its size; else all files that
    /// bear its name.
    fn look_for(&mut self, row: &SegmentRow) -> Result<Looked, VerifyError> {
        let dir = &self.config.data_dir;
        let mut seen = Vec::new();
        let mut unopened = None;
        for _ in 0..LOOKS {
            let candidates = self.candidates(row);
            if !seen.is_empty() && seen == candidates {
                break; // Nothing moved since the last look.
            }
            for path in &candidates {
                let file = match self.disk.open_read(path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    // Not what was applied, as far as can be seen; the others go on.
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
                    return Ok(Looked::Found(file, size));
                }
            }
            seen = candidates;
            self.active = active_label(self.disk, dir, self.config.tag())?;
            self.catalog = Catalog::scan(self.disk, dir, self.config.tag())
                .map_err(VerifyError::io("list", dir))?;
        }
        if let Some((path, error)) = unopened {
            self.find(&Finding::Inconclusive(format!(
                "segment {}: cannot open {}: {error}; {}",
                row.id,
                path.display(),
                not_recounted(row)
            )));
            seen.retain(|seen| *seen != path);
            if seen.is_empty() {
                return Ok(Looked::Unopened);
            }
        }
        Ok(Looked::Nowhere(seen))
    }

    /// Where the segment's bytes may be: files of its name, and the active one if it is that.
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

    /// Counts the applied bytes; their sums per user go to the proof.
    fn tally(&mut self, row: &SegmentRow, file: &SegmentFile) -> Result<Tally, VerifyError> {
        let end = row.applied_bytes;
        let overflows = self.proof.overflows(&row.id, end)?;
        let mut tally = Tally::default();
        let mut at = 0;
        while at < end {
            let aggregate = self
                .pool
                .scan(&file.file, at, end)
                .map_err(VerifyError::io("read", &file.path))?;
            self.take(row, &aggregate, &overflows, &mut tally)?;
            (self.on_progress)(self.verdict.bytes + aggregate.to, self.bytes_total);
            at = aggregate.to;
        }
        if !overflows.is_empty() {
            self.take_overflows(file, end, &overflows, &mut tally)?;
        }
        let counts = &mut tally.counts;
        counts.rejected = counts.lines - counts.events - counts.duplicates;
        Ok(tally)
    }

    fn take(
        &self,
        row: &SegmentRow,
        aggregate: &RangeAggregate,
        overflows: &HashSet<u64>,
        tally: &mut Tally,
    ) -> Result<(), VerifyError> {
        tally.counts.lines += aggregate.partial.lines;
        let frozen = aggregate.users.freeze();
        let users = frozen.sorted();
        for (_, sums) in &users {
            tally.counts.events += sums.events();
            tally.net = tally.net.wrapping_add(sums.net_wrapping());
        }
        // The sums have the events with an id as if all of them counted.
        let mut uncounted = HashMap::<&str, UserSum>::new();
        self.proof
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
        let users = users.iter().filter_map(|(user, sums)| {
            let mut sum = UserSum {
                micros: sums.net_wrapping(),
                events: i64::try_from(sums.events()).unwrap_or(i64::MAX),
            };
            if let Some(out) = uncounted.get(user) {
                sum.micros = sum.micros.wrapping_sub(out.micros);
                sum.events -= out.events;
            }
            (sum.events > 0).then_some((*user, sum))
        });
        Ok(self.proof.add_users(users)?)
    }

    /// Lines without id that overflowed a total were aggregate in, but did not count.
    fn take_overflows(
        &self,
        file: &SegmentFile,
        end: u64,
        overflows: &HashSet<u64>,
        tally: &mut Tally,
    ) -> Result<(), VerifyError> {
        let mut back = Vec::new();
        lines::each(&*file.file, 0, end, |offset, line| {
            if overflows.contains(&offset)
                && let Ok(event) = Event::parse(line)
                && event.id.is_none()
            {
                let micros = signed(event.kind, event.amount_micros).wrapping_neg();
                back.push((event.user_id.into_owned(), UserSum { micros, events: -1 }));
            }
        })
        .map_err(VerifyError::io("read", &file.path))?;
        for (_, sum) in &back {
            tally.counts.events -= 1;
            tally.net = tally.net.wrapping_add(sum.micros);
        }
        let back = back.iter().map(|(user, sum)| (&**user, *sum));
        Ok(self.proof.add_users(back)?)
    }

    fn compare(&mut self, row: &SegmentRow, file: &SegmentFile, tally: &Tally) {
        if tally.counts == row.counts && tally.net == row.net_check {
            return;
        }
        let path = file.path.display();
        if row.ids_expired > 0 && tally.agrees_but_for_expired(row) {
            self.exact = false;
            return self.find(&Finding::Note(format!(
                "segment {} ({path}): {} ids of it were let go (--dedup-window), and {} events bear an id that is not kept: which of these counted can't be told; all else agrees",
                row.id, row.ids_expired, tally.unknown
            )));
        }
        if row.counts.rejected > REJECTED_LINES_MAX
            && tally.counts.lines == row.counts.lines
            && tally.counts.duplicates == row.counts.duplicates
            && tally.counts.events > row.counts.events
        {
            self.exact = false;
            return self.find(&Finding::Note(format!(
                "segment {} ({path}): only the first {REJECTED_LINES_MAX} of its {} rejected lines are kept, so that {} events may or may not have overflowed a total",
                row.id,
                row.counts.rejected,
                tally.counts.events - row.counts.events
            )));
        }
        self.find(&Finding::Mismatch(format!(
            "segment {} ({path}): the file comes to {}, the database says {}{}",
            row.id,
            describe(&tally.counts, tally.net),
            describe(&row.counts, row.net_check),
            match tally.unknown {
                0 => String::new(),
                unknown => format!("; {unknown} events bear an id that the database does not know"),
            }
        )));
    }

    /// The table of ids against the rows and the files: an id that stands there without its line being
    /// counted would make the next event of that id a duplicate of nothing.
    fn ids(&mut self) -> Result<(), VerifyError> {
        let proof = self.proof;
        let mut kept = proof.ids_by_segment()?;
        let cure = "an event that bears such an id again would not count; `tallyline process --rebuild` makes the table from the files";
        if let Some(count) = kept.remove(&None) {
            self.find(&Finding::Mismatch(format!(
                "{count} ids are kept of segments that the database does not know: {cure}"
            )));
        }
        for fault in &proof.blocks.faults {
            self.find(&Finding::Mismatch(format!("{fault}: {cure}")));
        }
        let more = proof.blocks.fault_count - proof.blocks.faults.len() as u64;
        if more > 0 {
            self.find(&Finding::Mismatch(format!(
                "{more} more blocks of ids contradict themselves: {cure}"
            )));
        }
        for row in &proof.rows {
            let kept = kept.get(&Some(row.key)).copied().unwrap_or(0);
            let expected = row.id_events - row.ids_expired;
            let found = self.ids_found.get(&row.key).copied();
            if kept != expected {
                self.find(&Finding::Mismatch(format!(
                    "segment {}: {kept} ids of it are kept, but {} of its counted events have an id and {} of these expired: {cure}",
                    row.id, row.id_events, row.ids_expired
                )));
            } else if let Some(found) = found.filter(|found| *found != kept) {
                self.find(&Finding::Mismatch(format!(
                    "segment {}: {kept} ids of it are kept, but only {found} of them stand where their rows say: {cure}",
                    row.id
                )));
            }
        }
        Ok(())
    }

    /// Files that claim a number whose segment is another file.
    fn rivals(&mut self) {
        let rows = self.proof.rows.iter().map(|row| (&row.id, row));
        let known: HashMap<&SegmentId, &SegmentRow> = rows.collect();
        let mut findings = Vec::new();
        for (id, found) in &self.catalog.sealed {
            let row = known.get(id).copied();
            let claims = settle(self.disk, found, row);
            let pruned = id
                .number()
                .is_some_and(|number| number <= self.proof.pruned.number);
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
        for words in findings {
            self.find(&Finding::Mismatch(words));
        }
    }

    /// Files that the database has no row for: they wait, or were let go.
    fn files_without_row(&mut self) {
        let known: HashSet<&SegmentId> = self.proof.rows.iter().map(|row| &row.id).collect();
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
            let pruned = self.proof.pruned.number;
            if id.number().is_some_and(|number| number <= pruned) {
                self.find(&Finding::Note(format!(
                    "{}: not counted here; retention has let go everything up to segment {pruned}",
                    path.display()
                )));
            } else if place == Place::Quarantine
                && id.number().is_some()
                && !self.is_elsewhere(&id)
                && let Some(size) = self.disk.size_at(&path).ok().filter(|size| *size > 0)
            {
                self.find(&Finding::Inconclusive(set_aside(&id, &path, size)));
            } else if place == Place::Quarantine {
                self.find(&Finding::Note(format!(
                    "{}: set aside, not counted",
                    path.display()
                )));
            } else {
                let opened = self.disk.open_read(&path);
                let compared =
                    opened.and_then(|file| seal::contradiction(&*file, &path, &Hasher::new()));
                if let Ok(Some(broken)) = compared {
                    self.find(&Finding::Mismatch(format!("segment {id}: {broken}")));
                    continue;
                }
                let size = match self.disk.open_read(&path).and_then(|file| file.size()) {
                    // Moved on since the listing, or no active file.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
                    Err(error) => {
                        let words = format!("{}: not counted: {error}", path.display());
                        self.find(&Finding::Note(words));
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
            self.find(&Finding::Note(format!(
                "pending: {bytes} bytes in {files} files are not applied yet"
            )));
        }
    }

    /// Whether a file of the segment lies outside the quarantine.
    fn is_elsewhere(&self, id: &SegmentId) -> bool {
        let found = self.catalog.sealed.get(id).into_iter().flatten();
        found
            .into_iter()
            .any(|file| file.place != Place::Quarantine)
    }

    /// Numbers without file and without row.
    fn missing(&mut self) {
        let rows = self.proof.rows.iter().filter_map(|row| row.id.number());
        let files = self.catalog.sealed.keys().filter_map(SegmentId::number);
        let active = self.active.map(|label| label.number);
        let there: BTreeSet<u64> = rows.chain(files).chain(active).collect();
        let highest = there
            .last()
            .copied()
            .unwrap_or(0)
            .max(self.catalog.highest_number())
            .max(self.given_out);
        let first = self.proof.pruned.number + 1;
        let missing: BTreeSet<u64> = numbers::gaps(
            first,
            highest + 1,
            there.iter().map(|&number| number..=number),
        )
        .take(numbers::MISSING_MAX)
        .collect();
        if !missing.is_empty() {
            self.find(&Finding::Inconclusive(format!(
                "segments {}: neither file nor row; events of them may not be counted",
                numbers::ranges(&missing)
            )));
        }
    }

    fn pruned_and_expired(&mut self) {
        let pruned = &self.proof.pruned;
        if pruned.segments > 0 {
            self.exact = false;
            let words = format!(
                "{} segments up to number {} were pruned (--retention): their {} are in the totals, but no file proves them; users' totals are compared in sum only",
                pruned.segments,
                pruned.number,
                describe(&pruned.counts, pruned.net_check)
            );
            self.find(&Finding::Note(words));
        }
        let ids: u64 = self.proof.rows.iter().map(|row| row.ids_expired).sum();
        if ids > 0 {
            self.find(&Finding::Note(format!(
                "{ids} ids were let go (--dedup-window): an event of theirs that came again has counted again"
            )));
        }
    }

    /// The rows and what was pruned against all totals.
    fn sums(&mut self) {
        let proof = self.proof;
        let (mut events, mut net) = (proof.pruned.counts.events, proof.pruned.net_check);
        for row in &proof.rows {
            events += row.counts.events;
            net = net.wrapping_add(row.net_check);
        }
        if (events, net) != (proof.events, proof.net) {
            self.find(&Finding::Mismatch(format!(
                "all users together have {} events ({}), but the segments {events} ({}): the database was changed or put together from two; `tallyline process --rebuild` makes a new one from the files",
                proof.events,
                Micros(proof.net),
                Micros(net)
            )));
        }
        let applied = AppliedSum::of(&proof.rows);
        if applied != proof.applied_sum {
            self.find(&Finding::Mismatch(format!(
                "{}; `tallyline process --rebuild` makes a new database from the files",
                sums::describe_applied_sums(&proof.applied_sum, &applied)
            )));
        }
    }

    fn users(&mut self) -> Result<(), VerifyError> {
        for user in &self.proof.twice {
            self.find(&Finding::Mismatch(format!(
                "user {user:?} has two totals: the database file is corrupt; `tallyline process --rebuild` makes a new one from the files"
            )));
        }
        if !self.exact {
            return Ok(());
        }
        self.verdict.users = Some(self.proof.users);
        let proof = self.proof;
        proof.differences(&mut |user, database, files| {
            self.find(&Finding::Mismatch(format!(
                "user {user:?}: the files come to {} from {} events, the database says {} from {}",
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
