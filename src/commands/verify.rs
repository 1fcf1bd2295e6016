//! `tallyline verify`: recounts the files and compares with the database; also beside a server.
//!
//! Each difference is a line on stdout as it is found, then what no file proves, then the verdict. Of a
//! backup, every file is first compared with its manifest.

use std::fmt::Write as _;

use anyhow::bail;
use indicatif::HumanCount;

use crate::backup;
use crate::cli::config::{Say, VerifyConfig};
use crate::cli::exit::Exit;
use crate::cli::logging;
use crate::cli::output::{bar, counted, print};
use crate::data_dir::disk::RealDisk;
use crate::event::Micros;
use crate::verify::{Finding, Target, VerifyReport, verify};

/// Exit code 0 if files and database agree, 1 if they differ or it can't be told.
pub fn run(config: &VerifyConfig) -> anyhow::Result<Exit> {
    let target = Target::new(&config.data_dir);
    if !config.data_dir.is_dir() {
        bail!(
            "there is no data directory {}; --data-dir says where",
            config.data_dir.display()
        );
    }
    backup::refuse_unfinished(&config.data_dir)?;
    let bar = bar();
    let mut lost_words = None;
    let mut faults = 0;
    let mut on_fault = |words: String| {
        faults += 1;
        let line = format!("MISMATCH: {words}\n");
        if let Err(error) = logging::bars().suspend(|| print(line.as_bytes())) {
            lost_words.get_or_insert(error);
        }
    };
    let mut on_progress = |bytes, bytes_total| {
        bar.set_length(bytes_total);
        bar.set_position(bytes);
    };
    let backup = backup::check(&config.data_dir, &mut on_fault, &mut on_progress)?;
    let mut on_finding = |finding: &Finding| {
        let line = match finding {
            Finding::Mismatch(words) => format!("MISMATCH: {words}\n"),
            Finding::Inconclusive(words) => format!("INCONCLUSIVE: {words}\n"),
            Finding::Note(_) if config.say == Say::Trouble => return,
            Finding::Note(words) => format!("not provable: {words}\n"),
        };
        if let Err(error) = logging::bars().suspend(|| print(line.as_bytes())) {
            lost_words.get_or_insert(error);
        }
    };
    let verdict = verify(&target, &RealDisk, &mut on_finding, &mut on_progress)?;
    bar.finish_and_clear();
    if let Some(error) = lost_words {
        return Err(error);
    }
    if backup.is_some() && (config.say == Say::All || faults > 0) {
        let words = match faults {
            0 => "every file of the backup is as its manifest says\n".to_owned(),
            faults => format!(
                "the backup is not as its manifest says: {}\n",
                counted(faults, "difference")
            ),
        };
        print(words.as_bytes())?;
    }
    let Some(verdict) = verdict else {
        if backup == Some(false) {
            return Ok(if faults == 0 {
                Exit::Done
            } else {
                Exit::Failed
            });
        }
        bail!(
            "there is no database {}; `tallyline serve` or `tallyline process` makes it, --data-dir says where",
            target.database.display()
        );
    };
    if config.say == Say::All || !verdict.agrees() {
        print(describe(&verdict).as_bytes())?;
    }
    Ok(if verdict.agrees() && faults == 0 {
        Exit::Done
    } else {
        Exit::Failed
    })
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
        Micros(*net),
        counted(counts.duplicates, "duplicate"),
        HumanCount(counts.rejected)
    );
    let mut line = |words: String| {
        let _infallible = writeln!(text, "{words}");
    };
    if let Some(users) = users {
        line(format!(
            "compared the totals of {}, each exactly",
            counted(*users, "user")
        ));
    }
    if verdict.agrees() {
        line("files and database agree".to_owned());
    } else {
        line(format!(
            "files and database do not agree: {}, {} that can't be told",
            counted(*differences, "difference"),
            counted(*inconclusive, "thing")
        ));
    }
    text
}
