//! After everything was sent: waits until it is applied, and asks what became of it.
//!
//! One question does both: `GET /rejected?after=POSITION` answers once the position is applied, and
//! lists the rejected lines that carry the run's ids. Nothing here changes the state file: what was
//! acknowledged is acknowledged, whatever becomes known of it later.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use super::post::Poster;
use super::rejects::Refusal;
use super::state::Record;
use crate::cli::config::SendConfig;
use crate::stop::Stop;

/// The longest that one request waits: a stop is heard in between.
const STEP: Duration = Duration::from_secs(1);
/// The pause after a request that was answered at once, or not at all.
const PAUSE: Duration = Duration::from_millis(200);
/// Rejected lines asked for.
const LISTED_MAX: usize = 1000;

/// Whether what was sent is in the totals.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Applied {
    /// It was not asked: nothing was sent, `--wait 0s`, or the run did not come to its end.
    NotAsked,
    /// All of it.
    Yes,
    /// Not all of it within `--wait`.
    NotYet,
    /// The server applies nothing itself (`--no-process`).
    Elsewhere,
    /// A segment of it is missing or corrupt: it will never be applied.
    Lost,
    /// The server did not say, for this reason.
    Unknown(String),
}

/// What became of what was sent.
pub(super) struct Settled {
    pub(super) applied: Applied,
    /// Lines with the run's ids that were not counted, by their number.
    pub(super) rejected: Vec<Refusal>,
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

#[derive(Default, Deserialize)]
#[serde(default)]
struct Problem {
    detail: String,
    processing: Option<bool>,
}

/// Waits as long as the configuration says.
pub(super) fn settle(config: &SendConfig, stop: &Stop, record: &Record) -> Settled {
    let mut settled = Settled {
        applied: Applied::NotAsked,
        rejected: Vec::new(),
    };
    let Some(last) = record.last else {
        return settled;
    };
    if config.wait == Some(Duration::ZERO) {
        return settled;
    }
    let poster = Poster::asking(config);
    let mut target = format!("/rejected?limit={LISTED_MAX}&after={}", last.0);
    if let Some(since) = record.since {
        let _infallible = write!(target, "&since={}", since.0);
    }
    if !record.run.is_empty() {
        let prefix = format!("{}-", record.run);
        let prefix = utf8_percent_encode(&prefix, NON_ALPHANUMERIC);
        let _infallible = write!(target, "&idPrefix={prefix}");
    }
    let deadline = config.wait.map(|wait| Instant::now() + wait);
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let wait = left.map_or(STEP, |left| left.min(STEP));
        let asked = Instant::now();
        let answer = poster.get(&format!("{target}&wait={}ms", wait.as_millis()));
        let (applied, done) = match answer {
            Err(error) => (Applied::Unknown(error.to_string()), false),
            Ok((200, body, _)) => match serde_json::from_slice::<Listing>(&body) {
                Ok(listing) => {
                    settled.rejected = own(listing, record);
                    (Applied::Yes, true)
                }
                Err(_) => (Applied::Unknown("it is no tallyline server".into()), true),
            },
            Ok((410, ..)) => (Applied::Lost, true),
            Ok((503, body, _)) => {
                let problem: Problem = serde_json::from_slice(&body).unwrap_or_default();
                match problem.processing {
                    Some(false) => (Applied::Elsewhere, true),
                    _ => (Applied::NotYet, false),
                }
            }
            Ok((status, body, _)) => {
                let problem: Problem = serde_json::from_slice(&body).unwrap_or_default();
                let reason = format!("GET /rejected was answered {status}: {}", problem.detail);
                (Applied::Unknown(reason), status < 500)
            }
        };
        settled.applied = applied;
        if done || deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return settled;
        }
        let pause = PAUSE.saturating_sub(asked.elapsed());
        if stop.wait(pause) {
            return settled;
        }
    }
}

/// The lines whose ids were made by this run: its name, a dash and the line's number.
fn own(listing: Listing, record: &Record) -> Vec<Refusal> {
    let mut rejected: Vec<Refusal> = Vec::new();
    if record.run.is_empty() {
        return rejected;
    }
    for listed in listing.rejected {
        if let Some(line) = number(&listed.line, &record.run)
            && !rejected.iter().any(|known| known.line == line)
        {
            rejected.push(Refusal {
                line,
                code: listed.code,
                pointer: String::new(),
                detail: listed.reason,
                text: listed.line,
            });
        }
    }
    rejected.sort_by_key(|refusal| refusal.line);
    rejected
}

/// The number at the end of a made id, which stands first in its line.
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
    fn a_made_id_says_its_line() {
        let line = r#"{"id":"a \"b\"-000000000007","userId":"u"}"#;
        assert_eq!(number(line, "a \"b\""), Some(7));
        assert_eq!(number(r#"{"id":"a-2-000000000007"}"#, "a"), None);
        assert_eq!(number(r#"{"userId":"u","id":"a-000000000007"}"#, "a"), None);
    }
}
