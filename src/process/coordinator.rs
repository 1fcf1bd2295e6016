//! The coordinator thread: what is to be applied, in which order, and what to do when it fails.
//!
//! It alone owns the writer. Each round it looks at the journal's durable end and at the directory,
//! applies what is new, and publishes. Everything it knows of the database is read from the rows
//! when it starts over: at the start, after any error, when the database file was replaced.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use super::applier::{Applier, Confirmed, SegmentFile, Untrusted, Watch, open_sealed};
use super::pool::Pool;
use super::prune::{self, Retention};
use super::{ProcessConfig, ProcessError, archive, in_words, lines, sums};
use crate::fs::{Disk, Identity};
use crate::health::Health;
use crate::journal::{Catalog, Found, Journal, Place, Tail};
use crate::segment::{ACTIVE_FILE, Position, SegmentId};
use crate::store::{
    Applied, Lost, Progress, RangeEnd, SegmentRow, SegmentState, Settled, StoreError,
};

const DATABASE: &str = "database";
const SUMS: &str = "database sums";
const MISSING: &str = "missing segments";
/// Pauses after a failure grow up to this.
const PAUSE_MAX: Duration = Duration::from_secs(5);
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// How often the database's path is looked at between rounds.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A file that failed is tried again after this.
const FILE_RETRY_AFTER: Duration = Duration::from_secs(5);
/// How long the last flush waits for a locked database.
const LAST_FLUSH_MAX: Duration = Duration::from_secs(2);
/// How long a rotation may take before it is asked for again.
const ROTATE_MAX: Duration = Duration::from_secs(10);

/// A sealed file that is not wholly applied yet.
struct Sealed {
    path: PathBuf,
    place: Place,
    /// Its size at the last look, for files from elsewhere: those still being copied here wait.
    size: Option<u64>,
    retry_at: Option<Instant>,
    /// Whether its lines are in `pending`.
    counted: bool,
    /// Whether only its move to the archive is left.
    whole: bool,
}

/// What is known of the outside, and what is published. Apart from the applier, so that a commit
/// can be told here.
struct Board {
    progress: Arc<Progress>,
    health: Arc<Health>,
    sealed: BTreeMap<SegmentId, Sealed>,
    lost: BTreeMap<u64, Lost>,
    /// Applied bytes of the segments of ours that are not whole.
    applied: BTreeMap<u64, u64>,
    active: u64,
    /// Retention has let go the segments up to this number; a file of theirs is not applied.
    pruned: u64,
    settled: Settled,
    locked_since: Option<Instant>,
}

/// What outlives starting over.
struct Coordinator {
    config: ProcessConfig,
    disk: Arc<dyn Disk>,
    journal: Journal,
    board: Board,
    /// Files that were left alone, and why: not looked at again unless they change.
    left_alone: BTreeMap<PathBuf, Identity>,
    /// Numbers below the active one with neither file nor whole row.
    missing: BTreeSet<u64>,
    /// Whether the sums of the database are to be checked, and the thread that does.
    to_check: bool,
    check: Option<JoinHandle<()>>,
    retention: Retention,
}

/// Runs until told to stop, then applies what is left and closes the database.
pub(super) fn run(
    config: ProcessConfig,
    disk: Arc<dyn Disk>,
    journal: Journal,
    progress: &Arc<Progress>,
    health: &Arc<Health>,
    mut pool: Pool,
) {
    let mut coordinator = Coordinator {
        to_check: sums::was_left_open(&config),
        check: None,
        retention: Retention::new(&config),
        board: Board::new(Arc::clone(progress), Arc::clone(health)),
        config,
        disk,
        journal,
        left_alone: BTreeMap::new(),
        missing: BTreeSet::new(),
    };
    let mut pause = PAUSE_MIN;
    loop {
        // Once told to stop, one last try.
        let last = progress.is_stopping();
        let failed = match Applier::open(&coordinator.config, &mut pool) {
            Err(error) => error.into(),
            Ok(mut applier) => match coordinator.follow(&mut applier) {
                Ok(()) => {
                    coordinator.finish_check();
                    close(applier);
                    break;
                }
                Err(error) => {
                    applier.release();
                    error
                }
            },
        };
        if last || matches!(failed, ProcessError::Stopped) {
            break;
        }
        if matches!(failed, ProcessError::Replaced { .. }) {
            pause = PAUSE_MIN;
        }
        health.set(DATABASE, in_words(&failed));
        progress.wait_until(Instant::now() + pause);
        pause = (pause * 2).min(PAUSE_MAX);
    }
    progress.finish();
}

fn close(applier: Applier<'_>) {
    if let Err(error) = applier.writer.close() {
        let error = in_words(&error);
        tracing::warn!(
            error,
            "the database was not closed cleanly; nothing is lost"
        );
    }
}

impl Coordinator {
    /// Reads the rows, then applies round by round; `Ok` once told to stop and all is applied.
    fn follow(&mut self, applier: &mut Applier<'_>) -> Result<(), ProcessError> {
        self.start_over(applier)?;
        loop {
            let began = Instant::now();
            let going_on = !self.board.progress.is_stopping();
            self.round(applier)?;
            self.board.health.clear(DATABASE);
            if !going_on {
                return Ok(());
            }
            let due = began + self.config.flush_every;
            while !self
                .board
                .progress
                .wait_for_demand(due.min(Instant::now() + LOOK_EVERY))
                && Instant::now() < due
            {
                self.look_at_database(applier)?;
            }
        }
    }

    /// Whether the database's path still leads to what is open.
    fn look_at_database(&mut self, applier: &mut Applier<'_>) -> Result<(), ProcessError> {
        if applier.writer.is_replaced() {
            self.to_check = true;
            return Err(ProcessError::Replaced {
                path: self.config.database(),
            });
        }
        Ok(())
    }

    /// Everything that is known of the database and the directory, from them alone.
    fn start_over(&mut self, applier: &mut Applier<'_>) -> Result<(), ProcessError> {
        let data_dir = &self.config.data_dir;
        let tail = self.journal.tail();
        let pruned = applier.writer.pruned()?;
        prune::finish_at_start(&*self.disk, data_dir, &pruned)?;
        let catalog =
            Catalog::scan(&*self.disk, data_dir).map_err(ProcessError::io("list", data_dir))?;
        for dir in &catalog.dirs {
            self.disk
                .sync_dir(dir)
                .map_err(ProcessError::io("sync", dir))?;
        }
        let whole = applier.writer.whole()?;
        let rows = applier.writer.unfinished()?;
        let board = &mut self.board;
        board.sealed.clear();
        board.lost.clear();
        board.applied.clear();
        board.active = tail.number;
        board.pruned = pruned.number;
        for (id, found) in &catalog.sealed {
            let has_row = whole.contains(id) || rows.iter().any(|row| row.id == *id);
            if !has_row && id.number().is_some_and(|number| number <= pruned.number) {
                continue; // Let go: named where it lies in the directory itself, never applied.
            }
            if whole.contains(id) {
                for found in found.iter().filter(|found| found.place == Place::Incoming) {
                    let sealed = Sealed {
                        whole: true,
                        counted: true,
                        ..Sealed::new(found)
                    };
                    board.sealed.insert(id.clone(), sealed);
                }
            } else if let Some(found) = usable(found) {
                board.sealed.insert(id.clone(), Sealed::new(found));
            }
        }
        self.find_missing(applier, &catalog, &rows)?;
        self.count_pending(applier, &rows, &tail)?;
        for row in rows {
            if let Some(number) = row.id.number() {
                self.board.applied.insert(number, row.applied_bytes);
            }
        }
        self.board.publish();
        self.check_sums();
        Ok(())
    }

    /// Names the segments of ours that have neither a file, nor a whole row, nor were pruned; those
    /// with a row are noted as lost.
    fn find_missing(
        &mut self,
        applier: &mut Applier<'_>,
        catalog: &Catalog,
        rows: &[SegmentRow],
    ) -> Result<(), ProcessError> {
        let active = self.board.active;
        let is_there = |id: &SegmentId| catalog.sealed.contains_key(id);
        let rows_of: BTreeSet<u64> = applier.writer.numbers()?.into_iter().collect();
        let unfinished: BTreeSet<u64> = rows.iter().filter_map(|row| row.id.number()).collect();
        let pruned = applier.writer.pruned()?.number;
        self.missing = (pruned + 1..active)
            .filter(|number| !rows_of.contains(number) || unfinished.contains(number))
            .filter(|&number| !is_there(&SegmentId::Ours(number)))
            .collect();
        for row in rows
            .iter()
            .filter(|row| row.id.number() != Some(active) && !is_there(&row.id))
        {
            let reason = "its file is gone before it was wholly applied";
            if matches!(row.state, SegmentState::Active | SegmentState::Sealed) {
                applier.note(row, SegmentState::Lost, Some(reason))?;
            }
            if let SegmentId::Elsewhere(name) = &row.id {
                self.board.health.set(
                    &topic(&row.id),
                    format!(
                        "{name}: {reason}; put it back into {}",
                        self.config.data_dir.display()
                    ),
                );
            }
        }
        for &number in &self.missing {
            let row = rows.iter().find(|row| row.id.number() == Some(number));
            let applied_bytes = row.map_or(0, |row| row.applied_bytes);
            self.board.lost.insert(
                number,
                Lost {
                    number,
                    applied_bytes,
                },
            );
        }
        for row in rows
            .iter()
            .filter(|row| row.state == SegmentState::Untrusted)
        {
            if let Some(number) = row.id.number() {
                self.board.lost.insert(
                    number,
                    Lost {
                        number,
                        applied_bytes: row.applied_bytes,
                    },
                );
            }
        }
        self.tell_missing();
        Ok(())
    }

    fn tell_missing(&self) {
        let (health, missing) = (&self.board.health, &self.missing);
        if missing.is_empty() {
            return health.clear(MISSING);
        }
        let segments = if missing.len() == 1 {
            "segment"
        } else {
            "segments"
        };
        let named = ranges(missing);
        health.set(
            MISSING,
            format!(
                "{segments} {named}: no file and not wholly applied, so events may be missing from the totals. Put what is missing back into {}",
                self.config.data_dir.display()
            ),
        );
    }

    /// Counts the lines that wait, so that the ledger balances from the start.
    fn count_pending(
        &mut self,
        applier: &Applier<'_>,
        rows: &[SegmentRow],
        tail: &Tail,
    ) -> Result<(), ProcessError> {
        let done = |id: &SegmentId| {
            rows.iter()
                .find(|row| row.id == *id)
                .map_or(0, |row| row.applied_bytes)
        };
        let untrusted = |id: &SegmentId| {
            rows.iter()
                .any(|row| row.id == *id && row.state == SegmentState::Untrusted)
        };
        let mut pending = 0;
        for (id, sealed) in &mut self.board.sealed {
            // What was sealed after the look at the tail is counted by the tail.
            let of_tail = id.number().is_some_and(|number| number >= tail.number);
            if !sealed.whole && !of_tail && !untrusted(id) {
                pending += count_lines(&*self.disk, &sealed.path, done(id)).unwrap_or(0);
            }
            sealed.counted = true;
        }
        let id = SegmentId::Ours(tail.number);
        let from = done(&id).min(tail.durable_end);
        let path = self.config.data_dir.join(ACTIVE_FILE);
        pending += lines::count(&*tail.file, from, tail.durable_end)
            .map_err(ProcessError::io("read", &path))?;
        self.board.settled = Settled {
            ledger: applier.writer.ledger()?,
            pending: i64::try_from(pending).unwrap_or(i64::MAX),
            tail_lines: tail.lines,
        };
        Ok(())
    }

    /// After an unclean stop, or when the file was replaced: the totals and the segments must add
    /// up to the same. In the background.
    fn check_sums(&mut self) {
        if !std::mem::take(&mut self.to_check) {
            return;
        }
        let (config, health) = (self.config.clone(), Arc::clone(&self.board.health));
        let check = move || match sums::difference(&config) {
            Ok(Some(words)) => health.set(SUMS, words),
            Ok(None) => health.clear(SUMS),
            Err(error) => {
                let error = in_words(&error);
                tracing::warn!(error, "the totals could not be checked");
            }
        };
        self.finish_check();
        match Builder::new().name("process-check".to_owned()).spawn(check) {
            Ok(thread) => self.check = Some(thread),
            Err(error) => tracing::warn!(%error, "the totals could not be checked"),
        }
    }

    fn finish_check(&mut self) {
        if let Some(thread) = self.check.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that checks the totals panicked");
        }
    }

    /// Applies what is there now.
    fn round(&mut self, applier: &mut Applier<'_>) -> Result<(), ProcessError> {
        self.look_at_database(applier)?;
        // Before the listing: what this tail says is sealed is in it then.
        let tail = self.journal.tail();
        self.board.active = tail.number;
        self.look_for_files()?;
        let ids: Vec<SegmentId> = self.board.sealed.keys().cloned().collect();
        for id in ids {
            if self.board.progress.is_stopping() && id.number().is_none() {
                break; // Files from elsewhere have time until the next start.
            }
            self.sealed_file(applier, &id)?;
        }
        self.active_file(applier, &tail)?;
        self.board.publish();
        self.let_go(applier)
    }

    /// Retention, unless the database's sums are wrong or not yet known to be right.
    fn let_go(&mut self, applier: &mut Applier<'_>) -> Result<(), ProcessError> {
        let checking = self
            .check
            .as_ref()
            .is_some_and(|check| !check.is_finished());
        if checking || self.board.health.is_set(SUMS) || self.board.progress.is_stopping() {
            return Ok(());
        }
        let (board, writer) = (&mut self.board, &mut applier.writer);
        if writer.is_replaced() {
            return Ok(()); // The next round says so.
        }
        let waiting = board.sealed.iter().filter(|(_, sealed)| !sealed.whole);
        let end = waiting
            .filter_map(|(id, _)| id.number())
            .min()
            .unwrap_or(board.active);
        match self
            .retention
            .round(writer, &*self.disk, end, &board.health)
        {
            Ok(None) => Ok(()),
            Ok(Some(pruned)) => {
                board.pruned = pruned;
                Ok(())
            }
            // Somebody holds the database: another time.
            Err(ProcessError::Store(error)) if error.is_locked() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// New sealed files in the directory itself.
    fn look_for_files(&mut self) -> Result<(), ProcessError> {
        let data_dir = self.config.data_dir.clone();
        let names = self
            .disk
            .list(&data_dir)
            .map_err(ProcessError::io("list", &data_dir))?;
        let mut new = false;
        let mut left_alone = BTreeMap::new();
        for name in names
            .into_iter()
            .filter(|(_, is_dir)| !is_dir)
            .map(|(name, _)| name)
        {
            let Some(id) = SegmentId::of_file(&name) else {
                continue;
            };
            let path = data_dir.join(&name);
            if let Some(&identity) = self.left_alone.get(&path)
                && self.disk.identity(&path).ok().flatten() == Some(identity)
            {
                left_alone.insert(path, identity);
            } else if !self.board.sealed.contains_key(&id) {
                new = true;
                self.new_file(id, path);
            }
        }
        let before = std::mem::replace(&mut self.left_alone, left_alone);
        for gone in before
            .keys()
            .filter(|path| !self.left_alone.contains_key(*path))
        {
            let name = gone.file_name().unwrap_or_default().to_string_lossy();
            if let Some(id) = SegmentId::of_file(&name) {
                self.board.health.clear(&topic(&id));
            }
        }
        if new {
            self.tell_missing();
            self.disk
                .sync_dir(&data_dir)
                .map_err(ProcessError::io("sync", &data_dir))?;
        }
        Ok(())
    }

    fn new_file(&mut self, id: SegmentId, path: PathBuf) {
        let back = id.number().is_some_and(|number| {
            self.board.lost.remove(&number);
            self.missing.remove(&number)
        });
        let found = Found {
            id: id.clone(),
            place: Place::Incoming,
            path,
        };
        // What this journal sealed is counted by it.
        let counted = id.number().is_some() && !back;
        self.board.sealed.insert(
            id,
            Sealed {
                counted,
                ..Sealed::new(&found)
            },
        );
    }

    /// A file that fails is named in readiness and tried again later; the others go on.
    fn sealed_file(
        &mut self,
        applier: &mut Applier<'_>,
        id: &SegmentId,
    ) -> Result<(), ProcessError> {
        let Some(sealed) = self.board.sealed.get_mut(id) else {
            return Ok(());
        };
        if sealed.retry_at.is_some_and(|at| at > Instant::now()) {
            return Ok(());
        }
        let (path, place) = (sealed.path.clone(), sealed.place);
        let done = match self.apply_sealed(applier, id, &path, place) {
            Err(
                error @ (ProcessError::Store(_)
                | ProcessError::Stopped
                | ProcessError::Raced { .. }),
            ) => {
                return Err(error);
            }
            Err(error) => {
                self.board.health.set(&topic(id), in_words(&error));
                if let Some(sealed) = self.board.sealed.get_mut(id) {
                    sealed.retry_at = Some(Instant::now() + FILE_RETRY_AFTER);
                }
                return Ok(());
            }
            Ok(done) => done,
        };
        if done {
            self.board.sealed.remove(id);
            if let Some(number) = id.number() {
                self.board.applied.remove(&number);
            }
            applier.forget(id);
            self.board.publish();
        }
        Ok(())
    }

    /// Whether nothing is left to be done with the file.
    fn apply_sealed(
        &mut self,
        applier: &mut Applier<'_>,
        id: &SegmentId,
        path: &std::path::Path,
        place: Place,
    ) -> Result<bool, ProcessError> {
        let segment = open_sealed(&*self.disk, id, path)?;
        let pruned = self.board.pruned;
        if id.number().is_some_and(|number| number <= pruned)
            && applier.writer.segment(id)?.is_none()
        {
            let stat = segment
                .file
                .stat()
                .map_err(ProcessError::io("look at", path))?;
            self.left_alone.insert(path.to_owned(), stat.identity);
            self.board
                .health
                .set(&topic(id), prune::was_let_go(path, pruned));
            return Ok(true);
        }
        let start = match applier.confirm(&segment)? {
            Confirmed::At(bytes) => bytes,
            Confirmed::Whole(row) => {
                return self.archive(applier, &segment, place, &row).map(|()| true);
            }
            Confirmed::Untrusted(untrusted) => {
                return self.distrust(applier, &segment, &untrusted).map(|()| true);
            }
            Confirmed::Restored(row) => {
                applier.note(&row, SegmentState::Sealed, None)?;
                self.board.restored(id, row.untrusted_lines);
                return Ok(false);
            }
        };
        let size = segment
            .file
            .size()
            .map_err(ProcessError::io("look at", path))?;
        if !self.is_complete(id, size) {
            return Ok(false);
        }
        self.count_once(id, &segment, start, size)?;
        applier.apply_sealed(&segment, start, size, &mut self.board)?;
        self.board.health.clear(&topic(id));
        if let Some(sealed) = self.board.sealed.get_mut(id) {
            sealed.whole = true;
        }
        if let Some(row) = applier.writer.segment(id)? {
            self.archive(applier, &segment, place, &row)?;
        }
        Ok(true)
    }

    fn distrust(
        &mut self,
        applier: &mut Applier<'_>,
        segment: &SegmentFile,
        untrusted: &Untrusted,
    ) -> Result<(), ProcessError> {
        let stat = segment
            .file
            .stat()
            .map_err(ProcessError::io("look at", &segment.path))?;
        if untrusted.known {
            applier.forget(&segment.id);
        } else {
            let lines = applier.distrust(segment, untrusted)?;
            self.board
                .distrusted(&segment.id, untrusted.applied_bytes, lines);
        }
        self.left_alone.insert(segment.path.clone(), stat.identity);
        self.board
            .health
            .set(&topic(&segment.id), untrusted.reason.clone());
        Ok(())
    }

    /// Ours are complete when sealed; one from elsewhere once its size stands still for a round.
    fn is_complete(&mut self, id: &SegmentId, size: u64) -> bool {
        let Some(sealed) = self.board.sealed.get_mut(id) else {
            return true;
        };
        id.number().is_some() || sealed.size.replace(size) == Some(size)
    }

    /// Adds a file's lines to those that wait, unless they are among them.
    fn count_once(
        &mut self,
        id: &SegmentId,
        segment: &SegmentFile,
        from: u64,
        size: u64,
    ) -> Result<(), ProcessError> {
        let Some(sealed) = self.board.sealed.get_mut(id) else {
            return Ok(());
        };
        if !std::mem::replace(&mut sealed.counted, true) {
            let lines = lines::count(&*segment.file, from, size)
                .map_err(ProcessError::io("read", &segment.path))?;
            self.board.settled.pending += i64::try_from(lines).unwrap_or(i64::MAX);
        }
        Ok(())
    }

    /// Moves a whole file away; what can't be moved stays and is named.
    fn archive(
        &mut self,
        applier: &Applier<'_>,
        segment: &SegmentFile,
        place: Place,
        row: &SegmentRow,
    ) -> Result<(), ProcessError> {
        if place != Place::Incoming {
            return Ok(());
        }
        let stat = segment
            .file
            .stat()
            .map_err(ProcessError::io("look at", &segment.path))?;
        let has_read = applier.has_read(&row.id, stat.identity, stat.size);
        let data_dir = &self.config.data_dir;
        let archived = archive::archive(&*self.disk, data_dir, segment, row, has_read)?;
        if let Some(refusal) = archived.refusal() {
            self.left_alone.insert(segment.path.clone(), stat.identity);
            let words = format!(
                "{}: {refusal}. Move it away or rename it",
                segment.path.display()
            );
            self.board.health.set(&topic(&row.id), words);
        }
        Ok(())
    }

    /// What is durable of the active segment.
    fn active_file(&mut self, applier: &mut Applier<'_>, tail: &Tail) -> Result<(), ProcessError> {
        let id = SegmentId::Ours(tail.number);
        let path = self.config.data_dir.join(ACTIVE_FILE);
        let segment = SegmentFile {
            id,
            path,
            file: Arc::clone(&tail.file),
        };
        if tail.durable_end == 0 && !self.board.applied.contains_key(&tail.number) {
            return Ok(());
        }
        match applier.confirm(&segment)? {
            Confirmed::At(bytes) if bytes <= tail.durable_end => {
                self.board.applied.insert(tail.number, bytes);
                applier.apply(
                    &segment,
                    tail.durable_end,
                    RangeEnd::Active,
                    &mut self.board,
                )
            }
            // Sealed, and perhaps applied, between the look at the tail and now.
            Confirmed::At(_) | Confirmed::Whole(_) => Ok(()),
            Confirmed::Restored(row) => Ok(applier.note(&row, SegmentState::Active, None)?),
            Confirmed::Untrusted(untrusted) => {
                self.board.health.set(&topic(&segment.id), untrusted.reason);
                self.seal_untrusted();
                Ok(())
            }
        }
    }

    /// The active segment is not what was applied of it: taking goes on in the next one. The
    /// sealed file is then found and marked.
    fn seal_untrusted(&self) {
        let (sender, receiver) = crossbeam_channel::bounded(1);
        self.journal.rotate(Box::new(move |rotated| {
            let _given_up = sender.send(rotated.map(|_| ()));
        }));
        match receiver.recv_timeout(ROTATE_MAX) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "the untrusted segment could not be sealed yet");
            }
            Err(error) => tracing::warn!(%error, "the untrusted segment was not sealed in time"),
        }
    }
}

impl Sealed {
    fn new(found: &Found) -> Self {
        Self {
            path: found.path.clone(),
            place: found.place,
            size: None,
            retry_at: None,
            counted: false,
            whole: false,
        }
    }
}

/// The file to apply of those that bear one name: what was set aside is not applied.
pub(super) fn usable(found: &[Found]) -> Option<&Found> {
    found
        .iter()
        .filter(|found| found.place != Place::Quarantine)
        .min_by_key(|found| found.place)
}

pub(super) fn topic(id: &SegmentId) -> String {
    format!("segment {id}")
}

fn count_lines(disk: &dyn Disk, path: &std::path::Path, from: u64) -> std::io::Result<u64> {
    let file = disk.open_read(path)?;
    let size = file.size()?;
    lines::count(&*file, from.min(size), size)
}

/// `3, 5 to 7`.
pub(super) fn ranges(numbers: &BTreeSet<u64>) -> String {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for &number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => ranges.push((number, number)),
        }
    }
    let named: Vec<String> = ranges
        .iter()
        .map(|&(first, last)| match last - first {
            0 => first.to_string(),
            1 => format!("{first}, {last}"),
            _ => format!("{first} to {last}"),
        })
        .collect();
    named.join(", ")
}

impl Board {
    fn new(progress: Arc<Progress>, health: Arc<Health>) -> Self {
        Self {
            progress,
            health,
            sealed: BTreeMap::new(),
            lost: BTreeMap::new(),
            applied: BTreeMap::new(),
            active: 1,
            pruned: 0,
            settled: Settled::default(),
            locked_since: None,
        }
    }

    /// Everything before this is applied: up to the first byte of ours that is not.
    fn frontier(&self) -> Position {
        let applied = |number| self.applied.get(&number).copied().unwrap_or(0);
        let waiting = self
            .sealed
            .iter()
            .filter(|(_, sealed)| !sealed.whole)
            .find_map(|(id, _)| id.number().filter(|number| !self.lost.contains_key(number)));
        let number = waiting.unwrap_or(self.active).min(self.active);
        Position {
            segment: number,
            offset: applied(number),
        }
    }

    fn publish(&self) {
        let lost: Vec<Lost> = self.lost.values().copied().collect();
        self.progress.publish(self.frontier(), &lost, self.settled);
    }

    fn distrusted(&mut self, id: &SegmentId, applied_bytes: u64, lines: u64) {
        if let Some(number) = id.number() {
            self.lost.insert(
                number,
                Lost {
                    number,
                    applied_bytes,
                },
            );
        }
        self.settled.ledger.untrusted += lines;
        self.settled.pending -= i64::try_from(lines).unwrap_or(i64::MAX);
    }
}

impl Board {
    /// A file is what was applied of it again: what is left of it waits.
    fn restored(&mut self, id: &SegmentId, untrusted_lines: u64) {
        if let Some(number) = id.number() {
            self.lost.remove(&number);
        }
        if let Some(sealed) = self.sealed.get_mut(id) {
            sealed.counted = false;
        }
        let untrusted = &mut self.settled.ledger.untrusted;
        *untrusted = untrusted.saturating_sub(untrusted_lines);
        self.health.clear(&topic(id));
    }
}

impl Watch for Board {
    fn committed(&mut self, segment: &SegmentId, to: u64, applied: &Applied, took: Duration) {
        self.progress.flushes().observe(took);
        if let Some(number) = segment.number() {
            self.applied.insert(number, to);
        }
        let (ledger, counts) = (&mut self.settled.ledger, applied.counts);
        ledger.applied += counts.events;
        ledger.duplicates += counts.duplicates;
        ledger.rejected += counts.rejected;
        self.settled.pending -= i64::try_from(counts.lines).unwrap_or(i64::MAX);
        self.publish();
    }

    fn locked(&mut self, error: &StoreError) -> bool {
        let since = *self.locked_since.get_or_insert_with(Instant::now);
        self.health.set(DATABASE, in_words(error));
        !(self.progress.is_stopping() && since.elapsed() > LAST_FLUSH_MAX)
    }

    fn unlocked(&mut self) {
        if self.locked_since.take().is_some() {
            self.health.clear(DATABASE);
        }
    }
}
