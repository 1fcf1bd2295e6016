//! The output formats: a table, JSON and CSV. Amounts are shown exactly.

use serde::Serialize;
use serde_json::value::RawValue;

use super::totals::Unapplied;
use crate::store::{Ledger, Overall, UserTotal};
use crate::timestamp;

/// A user in the format of `GET /userEvents/{userId}`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Shown<'a> {
    user_id: &'a str,
    revenue: Option<Box<RawValue>>,
    /// As text, because many JSON readers turn numbers into 64-bit floats.
    revenue_micros: String,
    events: u64,
    updated_at: String,
}

impl<'a> Shown<'a> {
    pub(super) fn of(user: &'a UserTotal) -> Self {
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

pub(super) fn json(value: &impl Serialize) -> anyhow::Result<String> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    Ok(text)
}

pub(super) fn json_overall(
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

pub(super) fn csv(users: &[UserTotal]) -> anyhow::Result<String> {
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

pub(super) fn table_overall(
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

pub(super) fn table(users: &[UserTotal]) -> String {
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
