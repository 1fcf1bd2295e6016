//! `tallyline query`: shows totals from the database. The server need not run.
//!
//! It reads through [`Readers`] and changes nothing; closing the last connection removes the `-wal`
//! file. Amounts are shown exactly.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context as _, bail};
use serde::Serialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::cli::config::{QueryConfig, QueryFormat};
use crate::cli::exit::Exit;
use crate::cli::output::counted;
use crate::data_dir::disk::RealDisk;
use crate::data_dir::segment::{ACTIVE_FILE, SegmentId};
use crate::data_dir::{Directory, directory_tag};
use crate::store::{
    Database, Ledger, Listing, Order, Overall, Readers, SegmentRow, SegmentState, UserTotal,
};
use crate::timestamp;

/// Prints the totals. A user without applied events is reported on stderr, with exit code 1.
pub fn run(config: &QueryConfig) -> anyhow::Result<Exit> {
    let totals = &open_database(&config.data_dir, config.database_url.as_ref())?;
    let exit = if config.users.is_empty() {
        overall_totals(totals, config)
    } else {
        some_users(totals, config)
    };
    totals.readers.close();
    exit
}

/// Opens the database of a data directory for reading. Fails if there is none.
pub(super) fn open_database(data_dir: &Path, url: Option<&Database>) -> anyhow::Result<Totals> {
    let database = url.map_or_else(|| Database::in_dir(data_dir), Database::clone);
    let readers = Readers::of(&database, 1);
    let directory = match database.directory()? {
        Some(directory) => Some(directory),
        None => Directory::read(&RealDisk, data_dir)
            .ok()
            .flatten()
            .map(|directory| directory.id),
    };
    if let Some(directory) = directory {
        readers.belong_to(directory);
    }
    let totals = Totals { readers, directory };
    if let Some(path) = database.file()
        && !path.exists()
    {
        let pending = totals.unapplied(data_dir)?;
        if pending.bytes > 0 {
            bail!(
                "there is no database {}: {pending}; run `tallyline process` to apply them",
                path.display()
            );
        }
        bail!(
            "there is no database {}; start `tallyline serve`, run `tallyline process`, or name another data directory with --data-dir",
            path.display()
        );
    }
    totals.readers.check()?;
    Ok(totals)
}

fn overall_totals(totals: &Totals, config: &QueryConfig) -> anyhow::Result<Exit> {
    let readers = &totals.readers;
    // A page has at least one user, also for --top 0.
    let page = readers.users(&Listing::first(Order::RevenueDescending, config.top.max(1)))?;
    let mut users = page.map(|page| page.users).unwrap_or_default();
    users.truncate(config.top as usize);
    let text = match config.format {
        QueryFormat::Csv => csv(&users)?,
        QueryFormat::Json => {
            let pending = totals.unapplied(&config.data_dir)?;
            json_overall(&readers.overall()?, readers.ledger()?, &pending, &users)?
        }
        QueryFormat::Table => {
            let pending = totals.unapplied(&config.data_dir)?;
            table_overall(&readers.overall()?, readers.ledger()?, &pending, &users)
        }
    };
    crate::cli::output::print(text.as_bytes())
}

fn some_users(totals: &Totals, config: &QueryConfig) -> anyhow::Result<Exit> {
    let mut users = Vec::new();
    let mut unknown = Vec::new();
    for user_id in &config.users {
        match totals.readers.user(user_id)? {
            Some(user) => users.push(user),
            None => unknown.push(format!("{user_id:?}")),
        }
    }
    if !users.is_empty() || config.format != QueryFormat::Table {
        let text = match config.format {
            QueryFormat::Csv => csv(&users)?,
            QueryFormat::Json => json(&users.iter().map(Shown::of).collect::<Vec<_>>())?,
            QueryFormat::Table => table(&users),
        };
        crate::cli::output::print(text.as_bytes())?;
    }
    if !unknown.is_empty() {
        let unknown = unknown.join(", ");
        let pending = totals.unapplied(&config.data_dir)?;
        if pending.bytes > 0 {
            bail!("no events of {unknown} were applied; {pending}");
        }
        bail!("no events of {unknown} were applied");
    }
    Ok(Exit::Done)
}

/// The database, and the data directory whose segments are shown.
pub(super) struct Totals {
    pub(super) readers: Readers,
    directory: Option<Uuid>,
}

impl Totals {
    fn unapplied(&self, data_dir: &Path) -> anyhow::Result<Unapplied> {
        Unapplied::of(data_dir, self.directory, &self.readers)
    }
}

/// Events in the files of the data directory that are not in the database yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Unapplied {
    files: u64,
    bytes: u64,
}

impl Unapplied {
    /// Counts by file lengths; no file is opened. Archived segments are fully applied.
    fn of(data_dir: &Path, directory: Option<Uuid>, readers: &Readers) -> anyhow::Result<Self> {
        let cannot_list = || format!("cannot list {}", data_dir.display());
        let entries = match fs::read_dir(data_dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            entries => entries.with_context(cannot_list)?,
        };
        let unfinished = readers.unfinished_segments()?;
        let directory = directory.map_or(0, directory_tag);
        // The row of `events.jsonl` may belong to a segment that was sealed since.
        let mut active = unfinished.iter().find(|row| row.file_name == ACTIVE_FILE);
        let mut pending = Self::default();
        let mut active_bytes = None;
        for entry in entries {
            let entry = entry.with_context(cannot_list)?;
            let name = entry.file_name();
            // Renamed or removed meanwhile: it is applied, or listed under its new name.
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            let Some(name) = name.to_str().filter(|_| metadata.is_file()) else {
                continue;
            };
            if name == ACTIVE_FILE {
                active_bytes = Some(metadata.len());
            } else if let Some((id, _)) = SegmentId::of_file(name, directory) {
                active = active.filter(|row| row.id != id);
                let row = readers.segment(&id)?;
                pending.add(metadata.len(), row.as_ref());
            }
        }
        if let Some(bytes) = active_bytes {
            pending.add(bytes, active);
        }
        Ok(pending)
    }

    fn add(&mut self, file_bytes: u64, row: Option<&SegmentRow>) {
        let applied = row.map_or(0, |row| match row.state {
            SegmentState::Active | SegmentState::Sealed => row.applied_bytes,
            // The rest of these is never applied.
            SegmentState::Applied | SegmentState::Corrupt | SegmentState::Missing => file_bytes,
        });
        let bytes = file_bytes.saturating_sub(applied);
        self.bytes += bytes;
        self.files += u64::from(bytes > 0);
    }
}

impl fmt::Display for Unapplied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (bytes, files) = (counted(self.bytes, "byte"), counted(self.files, "file"));
        write!(f, "{bytes} in {files} are not applied yet")
    }
}

/// A user in the format of `GET /userEvents/{userId}`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown<'a> {
    user_id: &'a str,
    revenue: Option<Box<RawValue>>,
    /// As text, because many JSON readers turn numbers into 64-bit floats.
    revenue_micros: String,
    events: u64,
    updated_at: String,
}

impl<'a> Shown<'a> {
    fn of(user: &'a UserTotal) -> Self {
        Self {
            user_id: &user.user_id,
            revenue: number(user.revenue.to_string()),
            revenue_micros: user.revenue.0.to_string(),
            events: user.events,
            updated_at: timestamp::rfc3339_of_ms(user.updated_at_ms),
        }
    }
}

/// An amount as a JSON number with all its digits.
fn number(digits: String) -> Option<Box<RawValue>> {
    RawValue::from_string(digits).ok()
}

fn json(value: &impl Serialize) -> anyhow::Result<String> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    Ok(text)
}

fn json_overall(
    overall: &Overall,
    ledger: Ledger,
    pending: &Unapplied,
    users: &[UserTotal],
) -> anyhow::Result<String> {
    #[derive(Serialize)]
    struct Fates {
        lines: u64,
        applied: u64,
        duplicates: u64,
        rejected: u64,
        corrupt: u64,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct All<'a> {
        users: u64,
        events: u64,
        revenue: Option<Box<RawValue>>,
        revenue_micros: String,
        updated_at: Option<String>,
        ledger: Fates,
        pending_bytes: u64,
        top: Vec<Shown<'a>>,
    }
    json(&All {
        users: overall.users,
        events: overall.events,
        revenue: number(overall.revenue.to_string()),
        revenue_micros: overall.revenue.0.to_string(),
        updated_at: overall.updated_at_ms.map(timestamp::rfc3339_of_ms),
        ledger: Fates {
            lines: ledger.lines,
            applied: ledger.applied,
            duplicates: ledger.duplicates,
            rejected: ledger.rejected,
            corrupt: ledger.corrupt,
        },
        pending_bytes: pending.bytes,
        top: users.iter().map(Shown::of).collect(),
    })
}

fn csv(users: &[UserTotal]) -> anyhow::Result<String> {
    let mut out = csv::Writer::from_writer(Vec::new());
    out.write_record(["userId", "revenue", "revenueMicros", "events", "updatedAt"])?;
    for user in users {
        let revenue = user.revenue.to_string();
        let events = user.events.to_string();
        let (micros, updated_at) = (
            user.revenue.0.to_string(),
            timestamp::rfc3339_of_ms(user.updated_at_ms),
        );
        out.write_record([&user.user_id, &revenue, &micros, &events, &updated_at])?;
    }
    Ok(String::from_utf8(out.into_inner()?)?)
}

fn table_overall(
    overall: &Overall,
    ledger: Ledger,
    pending: &Unapplied,
    users: &[UserTotal],
) -> String {
    let facts = [
        ("users", overall.users.to_string()),
        ("events counted", overall.events.to_string()),
        ("revenue", overall.revenue.to_string()),
        (
            "last updated",
            overall
                .updated_at_ms
                .map_or("never".to_owned(), timestamp::rfc3339_of_ms),
        ),
        ("lines read", ledger.lines.to_string()),
        ("duplicates", ledger.duplicates.to_string()),
        ("rejected", ledger.rejected.to_string()),
        ("corrupt", ledger.corrupt.to_string()),
        ("bytes pending", pending.bytes.to_string()),
    ];
    let rows = facts.map(|(name, value)| vec![name.to_owned(), value]);
    let mut text = aligned(&rows, &[Align::Left, Align::Right]);
    if !users.is_empty() {
        text.push('\n');
        text.push_str(&table(users));
    }
    text
}

fn table(users: &[UserTotal]) -> String {
    let heading = ["USER", "REVENUE", "EVENTS", "UPDATED"].map(str::to_owned);
    let mut rows = vec![heading.to_vec()];
    rows.extend(users.iter().map(|user| {
        vec![
            user.user_id.clone(),
            user.revenue.to_string(),
            user.events.to_string(),
            timestamp::rfc3339_of_ms(user.updated_at_ms),
        ]
    }));
    aligned(
        &rows,
        &[Align::Left, Align::Right, Align::Right, Align::Left],
    )
}

#[derive(Clone, Copy)]
enum Align {
    Left,
    Right,
}

/// Aligns columns, two spaces apart.
fn aligned(rows: &[Vec<String>], columns: &[Align]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for ((cell, align), width) in row.iter().zip(columns).zip(&widths) {
            let room = " ".repeat(width - cell.chars().count());
            match align {
                Align::Left => line.extend([cell.as_str(), &room, "  "]),
                Align::Right => line.extend([room.as_str(), cell, "  "]),
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Micros;

    fn user(user_id: &str, micros: i64) -> UserTotal {
        UserTotal {
            user_id: user_id.to_owned(),
            revenue: micros.into(),
            events: 2,
            updated_at_ms: 1_795_329_660_123,
        }
    }

    #[test]
    fn a_table_is_aligned() {
        let text = table(&[user("café", 50_000_000), user("b", -1_500_000)]);
        assert_eq!(
            text,
            "USER  REVENUE  EVENTS  UPDATED\n\
             café       50       2  2026-11-22T06:41:00.123Z\n\
             b        -1.5       2  2026-11-22T06:41:00.123Z\n"
        );
    }

    #[test]
    fn json_has_the_amounts_own_digits() {
        let users = [user("u", 9_007_199_254_740_993)];
        let overall = Overall {
            users: 1,
            events: 2,
            revenue: Micros(9_007_199_254_740_993),
            updated_at_ms: Some(1_795_329_660_123),
        };
        let text =
            json_overall(&overall, Ledger::default(), &Unapplied::default(), &users).expect("json");
        assert_eq!(text.matches(": 9007199254.740993").count(), 2, "{text}");
        assert_eq!(
            text.matches("\"revenueMicros\": \"9007199254740993\"")
                .count(),
            2,
            "{text}"
        );
        let updated = "\"updatedAt\": \"2026-11-22T06:41:00.123Z\"";
        assert_eq!(text.matches(updated).count(), 2, "{text}");
    }

    #[test]
    fn csv_quotes_what_must_be() {
        let text = csv(&[user("a,\"b\"", 0)]).expect("csv");
        assert!(
            text.starts_with(
                "userId,revenue,revenueMicros,events,updatedAt\n\"a,\"\"b\"\"\",0,0,2,"
            ),
            "{text}"
        );
    }
}
