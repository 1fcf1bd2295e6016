//! `tallyline rejected`: shows the rejected lines that the database keeps. The server need not run.

use std::fmt::Write as _;

use anyhow::{Context as _, ensure};
use serde::Serialize;

use super::query::open_database;
use crate::backup;
use crate::cli::config::{QueryFormat, RejectedConfig};
use crate::cli::exit::Exit;
use crate::cli::output::{counted, print};
use crate::data_dir::disk::RealDisk;
use crate::data_dir::node_position::NodePosition;
use crate::data_dir::segment::Position;
use crate::data_dir::{DIRECTORY_FILE, Directory};
use crate::store::{RejectedFilter, RejectedLine};

/// Prints the newest rejected lines.
pub fn run(config: &RejectedConfig) -> anyhow::Result<Exit> {
    backup::refuse_unfinished(&config.data_dir)?;
    let readers = open_database(&config.data_dir, config.database_url.as_ref())?.readers;
    let filter = RejectedFilter {
        since: config.since.map(|since| own(config, since)).transpose()?,
        id_prefix: config.id_prefix.clone(),
    };
    let lines = readers.newest_rejected(config.limit.get(), &filter)?;
    let all = readers.ledger()?.rejected;
    readers.close();
    let text = match config.format {
        QueryFormat::Table => text(&lines, all, filter != RejectedFilter::default()),
        QueryFormat::Json => json(&lines)?,
        QueryFormat::Csv => csv(&lines)?,
    };
    print(text.as_bytes())
}

/// The position, if it is of this data directory.
fn own(config: &RejectedConfig, since: NodePosition) -> anyhow::Result<Position> {
    let Some(node) = since.node else {
        return Ok(since.position);
    };
    let dir = &config.data_dir;
    let directory = Directory::read(&RealDisk, dir)
        .with_context(|| format!("cannot read {}", dir.join(DIRECTORY_FILE).display()))?;
    ensure!(
        directory.is_some_and(|directory| directory.id == node),
        "cannot list the lines since {since}: the position is not of {}; name the data directory of that node",
        dir.display()
    );
    Ok(since.position)
}

/// A line as in `GET /rejected`.
#[derive(Serialize)]
struct Shown<'a> {
    segment: &'a str,
    offset: u64,
    code: &'a str,
    reason: &'a str,
    line: &'a str,
}

impl<'a> Shown<'a> {
    fn of(line: &'a RejectedLine) -> Self {
        Self {
            segment: &line.segment,
            offset: line.offset,
            code: &line.code,
            reason: &line.reason,
            line: &line.line,
        }
    }
}

fn json(lines: &[RejectedLine]) -> anyhow::Result<String> {
    #[derive(Serialize)]
    struct Body<'a> {
        rejected: Vec<Shown<'a>>,
    }
    let mut text = serde_json::to_string_pretty(&Body {
        rejected: lines.iter().map(Shown::of).collect(),
    })?;
    text.push('\n');
    Ok(text)
}

fn csv(lines: &[RejectedLine]) -> anyhow::Result<String> {
    let mut out = csv::Writer::from_writer(Vec::new());
    if lines.is_empty() {
        out.write_record(["segment", "offset", "code", "reason", "line"])?;
    }
    for line in lines {
        out.serialize(Shown::of(line))?;
    }
    Ok(String::from_utf8(out.into_inner()?)?)
}

/// Two lines for each rejected line: the place and the reason; then the line itself, with control
/// characters escaped. `all` is the number of rejected lines of all segments.
fn text(lines: &[RejectedLine], all: u64, is_filtered: bool) -> String {
    let mut text = String::new();
    for line in lines {
        let shown: String = line.line.chars().flat_map(printable).collect();
        let _infallible = writeln!(
            text,
            "{} at byte {}: {}\n  {shown}",
            line.segment, line.offset, line.reason
        );
    }
    let all = counted(all, "line");
    let _infallible = match (lines.len() as u64, is_filtered) {
        (0, false) => writeln!(text, "{all} rejected"),
        (shown, false) => writeln!(text, "{shown} of {all} rejected"),
        (shown, true) => writeln!(text, "{shown} of {all} rejected, by the filter"),
    };
    text
}

/// A character that does not change the state of a terminal.
fn printable(c: char) -> Vec<char> {
    if c.is_control() && c != '\t' {
        c.escape_default().collect()
    } else {
        vec![c]
    }
}
