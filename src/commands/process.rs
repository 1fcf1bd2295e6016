//! `tallyline process`: applies all sealed files, or imports and applies named files, then exits.
//!
//! If no server runs, it seals `events.jsonl` first, so that all events are counted. With `--rebuild`
//! it builds a new database from all files; then no server may run.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use indicatif::HumanCount;

use crate::backup;
use crate::cli::config::{DatabaseMode, ProcessConfig, Verbosity};
use crate::cli::exit::Exit;
use crate::cli::output::{bar, counted, print};
use crate::data_dir::disk::{Disk, Lock, LockError, RealDisk};
use crate::data_dir::segment::ACTIVE_FILE;
use crate::data_dir::{Directory, PROCESS_LOCK, SERVE_LOCK, numbers};
use crate::processor::{self, BatchSummary, RunProgress, Step};
use crate::store::Database;

/// Applies the files and prints a summary.
pub fn run(config: &ProcessConfig) -> anyhow::Result<Exit> {
    let dir = &config.data_dir;
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let _lock = Lock::take(&dir.join(PROCESS_LOCK))?;
    backup::refuse_unfinished(dir)?;
    backup::refuse_backup(dir)?;
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let database = (config.database_url.clone()).unwrap_or_else(|| Database::in_dir(dir));
    // A rebuild holds the lock to its end, so that no server opens the database.
    let serve_lock = seal_active(config, &database, &disk)?;
    let mut process = processor::ProcessorConfig::new(dir);
    process.database.clone_from(&database);
    process.memory_bytes = usize::try_from(config.memory_bytes).unwrap_or(usize::MAX);
    let bar = bar();
    let mut show = |progress: RunProgress<'_>| {
        bar.set_length(progress.bytes_total);
        bar.set_position(progress.bytes);
        bar.set_message(match progress.step {
            Step::Import => format!("converting {}", progress.segment),
            Step::Apply => progress.segment.to_owned(),
        });
    };
    let (summary, notes) = match config.database {
        DatabaseMode::Keep => {
            drop(serve_lock);
            let summary = processor::run_once(&process, &disk, &config.files, &mut show)?;
            (summary, Vec::new())
        }
        DatabaseMode::Rebuild => {
            let rebuilt = processor::rebuild(&process, &disk, &mut show)?;
            (rebuilt.summary, rebuilt.notes)
        }
    };
    bar.finish_and_clear();
    log_problems(&summary);
    let mut text = describe(&summary, dir);
    for note in notes {
        let _infallible = writeln!(text, "{note}");
    }
    if summary.counts.rejected > 0 {
        let _infallible = writeln!(
            text,
            "to see them with their reasons, run `tallyline rejected --data-dir {}`",
            dir.display()
        );
    }
    let exit = exit_of(&summary);
    if config.verbosity == Verbosity::Normal || exit != Exit::Done {
        print(text.as_bytes())?;
    }
    Ok(exit)
}

/// Seals the active file if no server runs. Returns the lock that keeps servers away; `None` if one runs.
fn seal_active(
    config: &ProcessConfig,
    database: &Database,
    disk: &Arc<dyn Disk>,
) -> anyhow::Result<Option<Lock>> {
    let dir = &config.data_dir;
    let lock = match (config.database, Lock::take(&dir.join(SERVE_LOCK))) {
        (DatabaseMode::Keep, Err(LockError::Held { holder, .. })) => {
            tracing::info!("{ACTIVE_FILE} is not sealed because a server runs ({holder})");
            return Ok(None);
        }
        (_, lock) => lock?,
    };
    // A segment that has events but no file is missing; recovery reports it.
    let started =
        Directory::read(&**disk, dir).is_ok_and(|found| found.is_some_and(|it| it.started));
    if started || dir.join(ACTIVE_FILE).exists() {
        processor::seal(dir, database, disk)?;
    }
    Ok(Some(lock))
}

/// Logs each file that was not or may not have been counted.
fn log_problems(summary: &BatchSummary) {
    for refused in &summary.refused {
        tracing::error!("refused {}: {}", refused.path.display(), refused.reason);
    }
    for unusable in &summary.unusable {
        tracing::error!("skipped {}: {}", unusable.path.display(), unusable.reason);
    }
    for fork in &summary.forks {
        tracing::warn!("{}: {}", fork.path.display(), fork.reason);
    }
}

fn exit_of(summary: &BatchSummary) -> Exit {
    if !(summary.refused.is_empty() && summary.missing.is_empty()) {
        Exit::Failed
    } else if summary.counts.rejected > 0
        || !(summary.unusable.is_empty() && summary.forks.is_empty())
    {
        Exit::Refused
    } else {
        Exit::Done
    }
}

fn describe(summary: &BatchSummary, dir: &Path) -> String {
    let mut text = String::new();
    let counts = &summary.counts;
    let mut line = |sentence: String| {
        let _infallible = writeln!(text, "{sentence}");
    };
    if !summary.skipped.is_empty() {
        line(format!(
            "skipped, applied before: {}",
            summary.skipped.join(", ")
        ));
    }
    if !summary.missing.is_empty() {
        line(format!(
            "missing: segments {} have no file and are not fully applied, so events may be missing from the totals. Move their files back to {} and run this command again",
            numbers::ranges(&summary.missing),
            dir.display()
        ));
    }
    if summary.applied.is_empty() && summary.refused.is_empty() {
        let dir = dir.display();
        line(format!("nothing to do: {dir} has no unapplied file"));
    } else {
        line(format!(
            "{}: {} applied, {}, {} rejected",
            counted(summary.applied.len() as u64, "file"),
            counted(counts.events, "event"),
            counted(counts.duplicates, "duplicate"),
            HumanCount(counts.rejected)
        ));
    }
    text
}
