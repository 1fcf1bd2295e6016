//! `tallyline verify`: recounts the files and compares the result with the database. A server may run.
//!
//! Each difference is printed as it is found, then what no file can prove, then the verdict. The files
//! of a backup are first compared with its manifest.

use std::fmt::Write as _;

use anyhow::bail;
use indicatif::HumanCount;

use crate::backup;
use crate::cli::config::{Verbosity, VerifyConfig};
use crate::cli::exit::Exit;
use crate::cli::logging;
use crate::cli::output::{bar, counted, print};
use crate::data_dir::disk::RealDisk;
use crate::event::Micros;
use crate::verify::{Finding, Target, VerifyReport, verify};

/// Exit code 0 if files and database agree; 1 if they differ or some files could not be checked.
pub fn run(config: &VerifyConfig) -> anyhow::Result<Exit> {
    let mut target = Target::new(&config.data_dir);
    if let Some(database) = &config.database_url {
        target.database.clone_from(database);
    }
    if !config.data_dir.is_dir() {
        bail!(
            "there is no data directory {}; name one with --data-dir",
            config.data_dir.display()
        );
    }
    backup::refuse_unfinished(&config.data_dir)?;
    let bar = bar();
    let mut print_error = None;
    let mut print_line = |line: String| {
        if let Err(error) = logging::bars().suspend(|| print(line.as_bytes())) {
            print_error.get_or_insert(error);
        }
    };
    let mut faults = 0;
    let mut on_fault = |fault: String| {
        faults += 1;
        print_line(format!("MISMATCH: {fault}\n"));
    };
    let mut on_progress = |bytes, bytes_total| {
        bar.set_length(bytes_total);
        bar.set_position(bytes);
    };
    let backup = backup::check(&config.data_dir, &mut on_fault, &mut on_progress)?;
    let mut on_finding = |finding: &Finding| match finding {
        Finding::Mismatch(detail) => print_line(format!("MISMATCH: {detail}\n")),
        Finding::Inconclusive(detail) => print_line(format!("INCONCLUSIVE: {detail}\n")),
        Finding::Note(_) if config.verbosity == Verbosity::Quiet => {}
        Finding::Note(detail) => print_line(format!("not provable: {detail}\n")),
    };
    let verdict = verify(&target, &RealDisk, &mut on_finding, &mut on_progress)?;
    bar.finish_and_clear();
    if let Some(error) = print_error {
        return Err(error);
    }
    if backup.is_some() && (config.verbosity == Verbosity::Normal || faults > 0) {
        print(describe_backup(faults).as_bytes())?;
    }
    let Some(verdict) = verdict else {
        if backup == Some(false) {
            return Ok(exit_of(faults == 0));
        }
        bail!(
            "there is no database {}; start `tallyline serve`, run `tallyline process`, or name another data directory with --data-dir",
            target.database
        );
    };
    if config.verbosity == Verbosity::Normal || !verdict.agrees() {
        print(describe(&verdict).as_bytes())?;
    }
    Ok(exit_of(verdict.agrees() && faults == 0))
}

fn exit_of(agree: bool) -> Exit {
    if agree { Exit::Done } else { Exit::Failed }
}

fn describe_backup(faults: u64) -> String {
    match faults {
        0 => "every file of the backup matches its manifest\n".to_owned(),
        faults => format!(
            "the backup does not match its manifest: {}\n",
            counted(faults, "difference")
        ),
    }
}

fn describe(verdict: &VerifyReport) -> String {
    let VerifyReport {
        files,
        bytes,
        counts,
        net,
        users,
        differences,
        inconclusive,
    } = verdict;
    let mut text = format!(
        "recounted {}, {}, {}: {} (net {}), {}, {} rejected\n",
        counted(*files, "file"),
        counted(*bytes, "byte"),
        counted(counts.lines, "line"),
        counted(counts.events, "event"),
        Micros::from(*net),
        counted(counts.duplicates, "duplicate"),
        HumanCount(counts.rejected)
    );
    let mut line = |sentence: String| {
        let _infallible = writeln!(text, "{sentence}");
    };
    if let Some(users) = users {
        line(format!(
            "compared the totals of {} exactly",
            counted(*users, "user")
        ));
    }
    if verdict.agrees() {
        line("files and database agree".to_owned());
    } else {
        line(format!(
            "files and database do not agree: {}, {} could not be checked",
            counted(*differences, "difference"),
            counted(*inconclusive, "item")
        ));
    }
    text
}
