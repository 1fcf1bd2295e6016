//! After sending: waits until the events are applied, and lists those that were rejected.
//!
//! One request does both: `GET /rejected?after=POSITION` answers when the position is applied, and
//! lists the rejected lines that have the run's ids. If the input has events with ids of their own, a
//! second request lists the latest rejected lines, and those that were sent are recognised by their
//! text. Nothing here changes the state file: acknowledged lines stay acknowledged.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::{Duration, Instant};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use super::post::Poster;
use super::rejects::Refusal;
use super::state::{Record, Written};
use crate::cli::config::SendConfig;
use crate::data_dir::node_position::NodePosition;
use crate::shutdown::Shutdown;

/// The server keeps this much of a rejected line.
const REJECTED_LINE_BYTES_MAX: usize = 1024;

/// Maximum time that one request waits, so that a stop takes effect.
const STEP: Duration = Duration::from_secs(1);
/// Pause after a request that was answered at once or failed.
const PAUSE: Duration = Duration::from_millis(200);
/// Maximum number of rejected lines that are requested.
const LISTED_MAX: usize = 1000;

/// Whether the sent events are in the totals.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Applied {
    /// Not requested: nothing was sent, `--wait 0s`, or the run did not complete.
    NotAsked,
    /// All events are applied.
    Yes,
    /// Some events were not applied within `--wait`.
    NotYet,
    /// The server does not apply events (`--no-process`).
    Elsewhere,
    /// Some events will not be applied: their segment is missing or corrupt.
    Gone,
    /// Unknown, for this reason.
    Unknown(String),
}

/// The result of [`await_applied`].
pub(super) struct AppliedReport {
    pub(super) applied: Applied,
    /// Rejected lines, by their number.
    pub(super) rejected: Vec<Refusal>,
}

/// Maximum number of remembered lines with ids of their own, 16 bytes each.
const OWN_MAX: usize = 1_000_000;

/// The sent lines with ids of their own: a hash of each, and its number in the input.
#[derive(Debug, Default)]
pub(super) struct OwnLines {
    lines: Vec<(u64, u64)>,
    /// Whether there were more than [`OWN_MAX`].
    more: bool,
}

impl OwnLines {
    /// Adds lines, by [`own_key`] and number.
    pub(super) fn add(&mut self, lines: Vec<(u64, u64)>) {
        let room = OWN_MAX.saturating_sub(self.lines.len());
        self.more |= lines.len() > room;
        self.lines.extend(lines.into_iter().take(room));
    }

    /// Selects the lines of this run from the listed ones. A line that was sent several times is
    /// returned as often as it is listed.
    fn rejected(mut self, listing: Listing) -> Vec<Refusal> {
        self.lines.sort_unstable();
        let mut found: HashMap<u64, usize> = HashMap::new();
        let mut rejected = Vec::new();
        for listed in listing.rejected {
            let key = own_key(listed.line.as_bytes());
            let first = self.lines.partition_point(|&(other, _)| other < key);
            let before = found.entry(key).or_default();
            let line = self.lines.get(first + *before);
            if let Some(&(_, line)) = line.filter(|(other, _)| *other == key) {
                *before += 1;
                rejected.push(listed.refusal(line));
            }
        }
        rejected
    }
}

/// A hash of a line as the server lists it: its first bytes, without trailing blanks.
pub(super) fn own_key(line: &[u8]) -> u64 {
    let shown = &line[..line.len().min(REJECTED_LINE_BYTES_MAX)];
    let shown = String::from_utf8_lossy(shown);
    let mut hasher = DefaultHasher::new();
    shown.trim_end().hash(&mut hasher);
    hasher.finish()
}

#[derive(Deserialize)]
struct Listing {
    rejected: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    #[serde(default)]
    code: String,
    reason: String,
    line: String,
}

impl Listed {
    fn refusal(self, line: u64) -> Refusal {
        Refusal {
            line,
            code: self.code,
            pointer: String::new(),
            detail: self.reason,
            text: self.line.trim_end().to_owned(),
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Problem {
    detail: String,
    processing: Option<bool>,
}

/// The path that lists the rejected lines written after `since`, once everything up to `last` is applied.
fn listing_path(last: NodePosition, since: Option<Written>) -> String {
    let mut path = format!("/rejected?limit={LISTED_MAX}&after={last}");
    if let Some(since) = since.filter(|since| since.0.node == last.node) {
        let _infallible = write!(path, "&since={}", since.0);
    }
    path
}

/// Waits for up to `--wait` until the run's events are applied, and lists those that were rejected.
pub(super) fn await_applied(
    config: &SendConfig,
    stop: &Shutdown,
    record: &Record,
    own: OwnLines,
) -> AppliedReport {
    let mut report = AppliedReport {
        applied: Applied::NotAsked,
        rejected: Vec::new(),
    };
    let Some(last) = &record.last else {
        return report;
    };
    if config.wait == Some(Duration::ZERO) {
        return report;
    }
    let mut positions = last.positions();
    let (Some(last), None) = (positions.next(), positions.next()) else {
        let nodes = last.positions().len();
        report.applied = Applied::Unknown(format!(
            "{nodes} nodes acknowledged the events, and each lists only its own; see GET /rejected of each"
        ));
        return report;
    };
    let mut query = Query::new(config, record, last, own);
    let deadline = config.wait.map(|wait| Instant::now() + wait);
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let wait = left.map_or(STEP, |left| left.min(STEP));
        let asked = Instant::now();
        let (applied, is_final) = query.send(wait, &mut report.rejected);
        report.applied = applied;
        if is_final || deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return report;
        }
        let pause = PAUSE.saturating_sub(asked.elapsed());
        if stop.wait(pause) {
            return report;
        }
    }
}

/// The requests for the rejected lines of a run.
struct Query<'r> {
    poster: Poster,
    record: &'r Record,
    /// The path that lists the latest rejected lines.
    all: String,
    /// The path that lists those with the run's ids.
    of_run: String,
    /// The lines with ids of their own that are not searched for yet; `None` if there are none.
    own: Option<OwnLines>,
}

impl<'r> Query<'r> {
    fn new(config: &SendConfig, record: &'r Record, last: NodePosition, own: OwnLines) -> Self {
        let all = listing_path(last, record.since);
        let of_run = if record.run.is_empty() {
            all.clone()
        } else {
            let prefix = format!("{}-", record.run);
            let prefix = utf8_percent_encode(&prefix, NON_ALPHANUMERIC);
            format!("{all}&idPrefix={prefix}")
        };
        Self {
            poster: Poster::for_get(config),
            record,
            all,
            of_run,
            own: Some(own).filter(|own| !own.lines.is_empty()),
        }
    }

    /// Sends a request that the server answers after at most `wait`. Returns whether the events are applied,
    /// and whether that is final. If they are, `rejected` is set.
    fn send(&mut self, wait: Duration, rejected: &mut Vec<Refusal>) -> (Applied, bool) {
        let path = format!("{}&wait={}ms", self.of_run, wait.as_millis());
        match self.poster.get(&path) {
            Ok((200, body, _)) => match serde_json::from_slice::<Listing>(&body) {
                Ok(listing) => {
                    *rejected = made(listing, self.record);
                    if let Some(own) = self.own.take() {
                        add_own(&self.poster, &self.all, own, rejected);
                    }
                    (Applied::Yes, true)
                }
                Err(_) => (
                    Applied::Unknown("the server is not a tallyline server".into()),
                    true,
                ),
            },
            Ok((status, body, _)) => without_listing(status, &body),
            Err(error) => (Applied::Unknown(error.to_string()), false),
        }
    }
}

/// What an answer other than 200 means, and whether it is final.
fn without_listing(status: u16, body: &[u8]) -> (Applied, bool) {
    let problem: Problem = serde_json::from_slice(body).unwrap_or_default();
    match status {
        410 => (Applied::Gone, true),
        503 if problem.processing == Some(false) => (Applied::Elsewhere, true),
        503 => (Applied::NotYet, false),
        _ => {
            let reason = format!("GET /rejected answered {status}: {}", problem.detail);
            (Applied::Unknown(reason), status < 500)
        }
    }
}

/// Adds the lines with ids of their own. Everything is applied, so the answer comes at once.
fn add_own(poster: &Poster, target: &str, own: OwnLines, rejected: &mut Vec<Refusal>) {
    let remembered = own.more.then_some(own.lines.len());
    let failed = |reason: String| {
        tracing::warn!(
            "cannot list the rejected lines of events with ids of their own: {reason}; see GET /rejected"
        );
    };
    let listing = match poster.get(target) {
        Ok((200, body, _)) => serde_json::from_slice::<Listing>(&body).map_err(|e| e.to_string()),
        Ok((status, ..)) => Err(format!("GET /rejected answered {status}")),
        Err(error) => Err(error.to_string()),
    };
    let listing = match listing {
        Ok(listing) => listing,
        Err(reason) => return failed(reason),
    };
    if listing.rejected.len() >= LISTED_MAX {
        failed(format!("only the newest {LISTED_MAX} are searched"));
    } else if let Some(remembered) = remembered {
        failed(format!("only the first {remembered} of them are searched"));
    }
    rejected.extend(own.rejected(listing));
    rejected.sort_by_key(|refusal| refusal.line);
    rejected.dedup_by_key(|refusal| refusal.line);
}

/// The lines whose ids this run made: its name, a dash and the line's number.
fn made(listing: Listing, record: &Record) -> Vec<Refusal> {
    let mut rejected: Vec<Refusal> = Vec::new();
    if record.run.is_empty() {
        return rejected;
    }
    for listed in listing.rejected {
        if let Some(line) = number(&listed.line, &record.run)
            && !rejected.iter().any(|known| known.line == line)
        {
            rejected.push(listed.refusal(line));
        }
    }
    rejected.sort_by_key(|refusal| refusal.line);
    rejected
}

/// The number at the end of an id that this run made. The id is the first member of the line.
fn number(line: &str, run: &str) -> Option<u64> {
    let opened = serde_json::Value::from(run).to_string();
    let opened = opened.strip_suffix('"')?;
    let rest = line.strip_prefix("{\"id\":")?.strip_prefix(opened)?;
    let digits = rest.strip_prefix('-')?.split('"').next()?;
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_its_own_id_is_found_as_often_as_it_is_listed_and_was_sent() {
        let listed = |line: &str| Listed {
            code: "id_conflict".into(),
            reason: "r".into(),
            line: line.into(),
        };
        let (a, b) = (r#"{"id":"a"}"#, r#"{"id":"b"}"#);
        let mut own = OwnLines::default();
        own.add(vec![(own_key(b.as_bytes()), 1), (own_key(a.as_bytes()), 2)]);
        own.add(vec![(own_key(a.as_bytes()), 7)]);
        let blanks = format!("{a}{}", " \t".repeat(48));
        let lines = [a, r#"{"id":"others"}"#, &blanks, a];
        let listing = Listing {
            rejected: lines.into_iter().map(listed).collect(),
        };
        let found = own.rejected(listing);
        let lines: Vec<u64> = found.iter().map(|refusal| refusal.line).collect();
        assert_eq!(lines, [2, 7]);
        let long = format!("{{\"id\":\"{}\"}}", "x".repeat(2000));
        assert_eq!(own_key(long.as_bytes()), own_key(&long.as_bytes()[..1024]));
    }

    #[test]
    fn a_made_id_says_its_line() {
        let line = r#"{"id":"a \"b\"-000000000007","userId":"u"}"#;
        assert_eq!(number(line, "a \"b\""), Some(7));
        assert_eq!(number(r#"{"id":"a-2-000000000007"}"#, "a"), None);
        assert_eq!(number(r#"{"userId":"u","id":"a-000000000007"}"#, "a"), None);
    }
}
