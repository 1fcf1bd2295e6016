//! An independent recount of the files that shares no code with the program: it has its own parser
//! of lines and amounts.
//!
//! It is only as strict as the tests need: it accepts the lines that the tests write, and counts a
//! line as rejected if a field is missing or has the wrong type.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};
use serde_json::value::RawValue;

use super::{files_below, names_in};

/// Revenue of one user in micros, and the number of events.
pub(crate) type Total = (i128, u64);

/// Keyed by user id.
pub(crate) type Totals = BTreeMap<String, Total>;

/// The result of a recount.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Recount {
    pub(crate) users: Totals,
    pub(crate) lines: u64,
    pub(crate) applied: u64,
    pub(crate) duplicates: u64,
    pub(crate) rejected: u64,
    /// For each id, its user and its amount.
    pub(crate) ids: HashMap<String, (String, i128)>,
}

/// Every event file of a data directory in the order in which it is applied: native segments by
/// number, the active one, then imported ones by name.
pub(crate) fn event_files(data: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = names_in(data).iter().map(|name| data.join(name)).collect();
    files.extend(files_below(&data.join("applied")));
    let mut keyed: Vec<_> = files
        .into_iter()
        .filter_map(|path| {
            let name = path.file_name()?.to_str()?.to_owned();
            let stem = name.strip_suffix(".jsonl")?.strip_prefix("events")?;
            let number = stem
                .rsplit_once("Z-")
                .and_then(|(_, label)| label.split('-').next()?.parse().ok())
                .or_else(|| stem.is_empty().then_some(u64::MAX - 1))
                .unwrap_or(u64::MAX);
            Some(((number, name), path))
        })
        .collect();
    keyed.sort();
    keyed.into_iter().map(|(_, path)| path).collect()
}

/// Recounts the files of a data directory.
pub(crate) fn recount(data: &Path) -> Recount {
    recount_files(&event_files(data))
}

/// Recounts these files, in this order.
pub(crate) fn recount_files(paths: &[PathBuf]) -> Recount {
    let files: Vec<_> = paths.iter().map(|path| fs::read(path).unwrap()).collect();
    recount_bytes(files.iter().map(Vec::as_slice))
}

/// Recounts these contents, in this order.
pub(crate) fn recount_bytes<'a>(files: impl Iterator<Item = &'a [u8]>) -> Recount {
    let mut count = Recount::default();
    let lines = files.flat_map(|bytes| bytes.split(|&byte| byte == b'\n'));
    for line in lines.filter(|line| !line.is_empty()) {
        count.lines += 1;
        let Some(event) = Line::read(line) else {
            count.rejected += 1;
            continue;
        };
        if let Some(id) = event.id {
            let payload = (event.user.clone(), event.micros);
            match count.ids.get(&id) {
                Some(first) if *first == payload => {
                    count.duplicates += 1;
                    continue;
                }
                Some(_) => {
                    count.rejected += 1;
                    continue;
                }
                None => count.ids.insert(id, payload),
            };
        }
        count.applied += 1;
        let total = count.users.entry(event.user).or_default();
        total.0 += event.micros;
        total.1 += 1;
    }
    count
}

struct Line {
    user: String,
    /// Negative for an event that subtracts.
    micros: i128,
    id: Option<String>,
}

impl Line {
    fn read(line: &[u8]) -> Option<Self> {
        let fields: HashMap<String, &RawValue> = serde_json::from_slice(line).ok()?;
        let text = |name: &str| serde_json::from_str::<String>(fields.get(name)?.get()).ok();
        let micros = micros(fields.get("value")?.get())?;
        let micros = match text("name")?.as_str() {
            "add_revenue" => micros,
            "subtract_revenue" => -micros,
            _ => return None,
        };
        let id = match fields.get("id") {
            Some(_) => Some(text("id")?),
            None => None,
        };
        Some(Self {
            user: text("userId")?,
            micros,
            id,
        })
    }
}

/// A user as the server prints one, with the digits of the text: converted to a float, two amounts
/// could become equal.
#[track_caller]
pub(crate) fn shown(json: &str) -> Total {
    let fields: HashMap<String, &RawValue> = serde_json::from_str(json).unwrap();
    let revenue = fields["revenue"].get();
    let micros = match revenue.strip_prefix('-') {
        Some(positive) => -micros(positive).expect(revenue),
        None => micros(revenue).expect(revenue),
    };
    (
        micros,
        serde_json::from_str(fields["events"].get()).unwrap(),
    )
}

/// Millionths from a plain decimal or one with an exponent; `None` for an amount that the format
/// does not allow.
fn micros(literal: &str) -> Option<i128> {
    let (mantissa, exponent) = literal.split_once(['e', 'E']).unwrap_or((literal, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let power = exponent.parse::<i32>().ok()? - i32::try_from(fraction.len()).ok()? + 6;
    let micros = if power >= 0 {
        digits.checked_mul(10i128.checked_pow(power.unsigned_abs())?)?
    } else {
        let divisor = 10i128.checked_pow(power.unsigned_abs())?;
        (digits % divisor == 0).then(|| digits / divisor)?
    };
    (0..=1_000_000_000_000_000_000)
        .contains(&micros)
        .then_some(micros)
}

/// Opens revenue.db of a data directory read-only.
#[track_caller]
pub(crate) fn open_database(data: &Path) -> Connection {
    open_database_at(&data.join("revenue.db"))
}

fn open_database_at(path: &Path) -> Connection {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags).unwrap();
    db.busy_timeout(super::PATIENCE).unwrap();
    db
}

/// Every user's total in the database of a data directory.
#[track_caller]
pub(crate) fn database(data: &Path) -> Totals {
    if let Some(url) = super::suite::url(data) {
        return super::suite::totals(&url);
    }
    database_at(&data.join("revenue.db"))
}

/// Every user's total in this database.
#[track_caller]
pub(crate) fn database_at(path: &Path) -> Totals {
    let db = open_database_at(path);
    let mut statement = db
        .prepare("SELECT user_id, revenue_micros, events FROM user_total")
        .unwrap();
    let rows = statement
        .query_map([], |row| {
            let micros: i64 = row.get(1)?;
            let events: i64 = row.get(2)?;
            Ok((
                row.get(0)?,
                (i128::from(micros), u64::try_from(events).unwrap()),
            ))
        })
        .unwrap();
    rows.map(Result::unwrap).collect()
}

#[test]
fn amounts_with_the_same_nearest_float_differ() {
    // Fails if two different amounts with the same nearest float are equal.
    let shown = |revenue: &str| shown(&format!("{{\"revenue\":{revenue},\"events\":2}}"));
    assert_eq!(shown("-10.5"), (-10_500_000, 2));
    assert_eq!(shown("9007199254.740993").0, 9_007_199_254_740_993);
    assert_ne!(shown("900719925474.099301"), shown("900719925474.099300"));
}

#[test]
fn the_recount_reads_amounts_exactly() {
    // Fails if the recount itself parses an amount wrongly.
    for (literal, expected) in [
        ("100", Some(100_000_000)),
        ("10.5", Some(10_500_000)),
        ("0.000001", Some(1)),
        ("1e3", Some(1_000_000_000)),
        ("1.5000000", Some(1_500_000)),
        ("0.0000001", None),
        ("-5", None),
        ("1e13", None),
    ] {
        assert_eq!(micros(literal), expected, "{literal}");
    }
}
