//! One HTTP request and the meaning of its answer.
//!
//! Owned by one sending thread, with a connection of its own that is kept open. If a request gets no
//! answer, its outcome is unknown: its events may have been stored.

use std::time::{Duration, SystemTime};

use serde::Deserialize;

use uuid::Uuid;

use super::agent::agent;
use super::state::Written;
use crate::cli::config::SendConfig;
use crate::data_dir::node_position::NodePosition;

/// Timeout of a POST request; shorter if `--retry-for` is.
const ANSWER_WITHIN: Duration = Duration::from_mins(1);
/// Timeout of a GET request.
const QUESTION_WITHIN: Duration = Duration::from_secs(5);
/// Maximum `Retry-After`; longer ones are shortened to it.
const RETRY_AFTER_MAX: Duration = Duration::from_mins(5);
/// Maximum size of an answer. One that names every line of the largest batch fits.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// Result of a request.
#[derive(Debug)]
pub(super) enum Answer {
    /// The valid lines are durable.
    Accepted {
        /// Number of valid lines.
        accepted: u64,
        /// Number of lines that were not stored.
        refused: u64,
        /// The refused lines that the answer names.
        errors: Vec<LineError>,
        /// End of the stored lines; `None` if the answer does not name it.
        position: Option<NodePosition>,
    },
    /// Nothing was stored, because lines are invalid.
    Refused {
        /// The invalid lines that the answer names.
        errors: Vec<LineError>,
        /// Number of invalid lines that it does not name.
        more_errors: u64,
        reason: String,
    },
    /// Nothing was stored, because the body is too large.
    TooLarge { reason: String },
    /// A temporary failure: the request can be sent again.
    Retry {
        reason: String,
        /// `Retry-After` of the answer; `None` if it has none.
        after: Option<Duration>,
        /// Whether events may have been stored nevertheless.
        outcome: Stored,
    },
    /// A permanent failure: the request would fail again.
    Failed {
        /// What happened, and advice.
        reason: String,
    },
}

/// What a server stored of a request that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stored {
    Nothing,
    /// All, some or none of the events were stored.
    Unknown,
}

/// A line that the server refused.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct LineError {
    /// Number of the line in the body, from 1.
    pub(super) line: u64,
    /// JSON pointer to the field.
    pub(super) pointer: String,
    pub(super) code: String,
    pub(super) detail: String,
}

#[derive(Deserialize)]
struct AcceptedBody {
    accepted: u64,
    #[serde(default)]
    refused: u64,
    #[serde(default)]
    errors: Vec<LineError>,
    #[serde(default)]
    position: String,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Problem {
    title: String,
    detail: String,
    outcome: String,
    errors: Vec<LineError>,
    more_errors: u64,
}

impl Problem {
    fn reason(&self, status: u16) -> String {
        let text = if self.detail.is_empty() {
            &self.title
        } else {
            &self.detail
        };
        if text.is_empty() {
            format!("answered {status}")
        } else {
            format!("answered {status}: {text}")
        }
    }
}

/// A connection to the server.
pub(super) struct Poster {
    agent: ureq::Agent,
    to: String,
    authorization: Option<String>,
    content_type: &'static str,
}

impl Poster {
    /// For POST requests. It connects at the first request.
    pub(super) fn new(config: &SendConfig) -> Self {
        let patience = config.retry_for.unwrap_or(ANSWER_WITHIN);
        let within = patience.clamp(Duration::from_secs(1), ANSWER_WITHIN);
        Self::within(config, within)
    }

    /// For GET requests. Their timeout is short, so that a stop takes effect soon.
    pub(super) fn for_get(config: &SendConfig) -> Self {
        Self::within(config, QUESTION_WITHIN)
    }

    fn within(config: &SendConfig, within: Duration) -> Self {
        Self {
            agent: agent(&config.to, within),
            to: config.to.clone(),
            authorization: config.token.as_ref().map(crate::cli::config::Token::header),
            content_type: if config.batch.get() == 1 {
                "application/json"
            } else {
                "application/x-ndjson"
            },
        }
    }

    /// The status that the server reports.
    pub(super) fn about(&self) -> Result<About, Answer> {
        let (status, text, after) = match self.get("/status") {
            Ok(got) => got,
            Err(error) => return Err(unanswered(&error)),
        };
        match status {
            // An older server reports less, and a proxy may not forward this request.
            200 => Ok(serde_json::from_slice(&text).unwrap_or_default()),
            401 | 408 | 425 | 429 | 500.. => {
                let problem = serde_json::from_slice(&text).ok();
                Err(refused(status, problem, after))
            }
            _ => Ok(About::default()),
        }
    }

    /// Whether a base URL of `https://` names a port that answers plain HTTP as a tallyline server does.
    /// No token is sent.
    pub(super) fn is_plain_http(&self) -> bool {
        let Some(rest) = self.to.strip_prefix("https://") else {
            return false;
        };
        let plain = format!("http://{rest}");
        let answer = agent(&plain, QUESTION_WITHIN)
            .get(format!("{plain}/healthz"))
            .call();
        answer.is_ok_and(|answer| answer.status() == 200)
    }

    /// Sends a GET request for `target`. Returns status, body and `Retry-After`.
    pub(super) fn get(
        &self,
        target: &str,
    ) -> Result<(u16, Vec<u8>, Option<Duration>), ureq::Error> {
        let mut request = self.agent.get(format!("{}{target}", self.to));
        if let Some(authorization) = &self.authorization {
            request = request.header("Authorization", authorization);
        }
        let mut response = request.call()?;
        let header = |name: &str| {
            let value = response.headers().get(name)?.to_str().ok()?;
            Some(value.to_owned())
        };
        let after = retry_after(header("retry-after"), header("date"));
        let status = response.status().as_u16();
        let body = response.body_mut().with_config().limit(ANSWER_BYTES_MAX);
        Ok((status, body.read_to_vec()?, after))
    }

    /// Sends `body` and waits for the answer.
    pub(super) fn post(&self, body: &[u8]) -> Answer {
        let mut request = self
            .agent
            .post(format!("{}/liveEvent?invalid=skip", self.to))
            .header("Content-Type", self.content_type);
        if let Some(authorization) = &self.authorization {
            request = request.header("Authorization", authorization);
        }
        let mut response = match request.send(body) {
            Ok(response) => response,
            Err(error) => return unanswered(&error),
        };
        let status = response.status().as_u16();
        let header = |name: &str| {
            let value = response.headers().get(name)?.to_str().ok()?;
            Some(value.to_owned())
        };
        let after = retry_after(header("retry-after"), header("date"));
        let is_problem = header("content-type")
            .is_some_and(|value| value.trim_start().starts_with("application/problem+json"));
        let location = header("location");
        let read = response
            .body_mut()
            .with_config()
            .limit(ANSWER_BYTES_MAX)
            .read_to_vec();
        let text = match read {
            Ok(text) => text,
            // An error status is sufficient without a body: nothing was stored.
            Err(error) if status < 400 => return unanswered(&error),
            Err(_) => Vec::new(),
        };
        let problem = if is_problem {
            serde_json::from_slice(&text).ok()
        } else {
            None
        };
        match status {
            200..=299 => accepted(status, &text),
            300..=399 => Answer::Failed {
                reason: match location {
                    Some(to) => {
                        format!(
                            "answered {status}, a redirect to {to}; name that base URL with --to"
                        )
                    }
                    None => {
                        format!("answered {status}, a redirect; name another base URL with --to")
                    }
                },
            },
            _ => refused(status, problem, after),
        }
    }
}

/// The fields of `GET /status` that the sender uses.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct About {
    /// Id of the data directory.
    pub(super) directory: Option<Uuid>,
    /// End of the acknowledged events.
    pub(super) position: Option<Written>,
}

/// Parses `Retry-After`: seconds, or a date by the server's clock.
fn retry_after(after: Option<String>, date: Option<String>) -> Option<Duration> {
    let after = after?;
    let after = after.trim();
    let wait = if let Ok(seconds) = after.parse() {
        Duration::from_secs(seconds)
    } else {
        let at = httpdate::parse_http_date(after).ok()?;
        let now = date.and_then(|date| httpdate::parse_http_date(date.trim()).ok());
        let now = now.unwrap_or_else(SystemTime::now);
        at.duration_since(now).unwrap_or_default()
    };
    Some(wait.min(RETRY_AFTER_MAX))
}

fn accepted(status: u16, text: &[u8]) -> Answer {
    match serde_json::from_slice::<AcceptedBody>(text) {
        Ok(body) => Answer::Accepted {
            accepted: body.accepted,
            refused: body.refused,
            errors: body.errors,
            position: body.position.parse().ok(),
        },
        Err(_) => Answer::Failed {
            reason: format!("answered {status}, but not as a tallyline server does; check --to"),
        },
    }
}

fn refused(status: u16, problem: Option<Problem>, after: Option<Duration>) -> Answer {
    let known = problem.is_some();
    let problem = problem.unwrap_or_default();
    let reason = problem.reason(status);
    match status {
        400 | 422 if known => Answer::Refused {
            errors: problem.errors,
            more_errors: problem.more_errors,
            reason,
        },
        413 => Answer::TooLarge { reason },
        408 | 425 | 429 | 500.. => Answer::Retry {
            reason,
            after,
            // A tallyline server reports an unknown outcome; a proxy in between does not know it.
            outcome: if known && problem.outcome != "unknown" || status == 429 {
                Stored::Nothing
            } else {
                Stored::Unknown
            },
        },
        401 => Answer::Failed {
            reason: "answered 401: the token is missing or not accepted; set TALLYLINE_TOKEN, or name a file with --token-file".to_owned(),
        },
        404 | 405 => Answer::Failed {
            reason: format!("{reason}; --to must be the base URL of a tallyline server"),
        },
        _ => Answer::Failed { reason },
    }
}

/// The result of a request without an answer. Without a connection, nothing was stored.
fn unanswered(error: &ureq::Error) -> Answer {
    let outcome = match error {
        ureq::Error::HostNotFound
        | ureq::Error::ConnectionFailed
        | ureq::Error::Timeout(ureq::Timeout::Resolve | ureq::Timeout::Connect) => Stored::Nothing,
        ureq::Error::Io(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            Stored::Nothing
        }
        ureq::Error::BadUri(_) | ureq::Error::Http(_) | ureq::Error::InvalidProxyUrl => {
            return Answer::Failed {
                reason: error.to_string(),
            };
        }
        _ => Stored::Unknown,
    };
    let reason = match error {
        ureq::Error::Io(error) => error.to_string(), // without ureq's "io: "
        error => error.to_string(),
    };
    Answer::Retry {
        reason,
        after: None,
        outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let date = "Sun, 22 Nov 2026 06:41:00 GMT";
        let wait = |after: &str| retry_after(Some(after.to_owned()), Some(date.to_owned()));
        assert_eq!(wait(" 7 "), Some(Duration::from_secs(7)));
        assert_eq!(wait("86400"), Some(RETRY_AFTER_MAX));
        assert_eq!(
            wait("Sun, 22 Nov 2026 06:41:30 GMT"),
            Some(Duration::from_secs(30))
        );
        assert_eq!(
            wait("Sunday, 22-Nov-26 06:41:05 GMT"),
            Some(Duration::from_secs(5))
        );
        assert_eq!(wait("Sun, 22 Nov 2026 06:40:00 GMT"), Some(Duration::ZERO));
        assert_eq!(wait("soon"), None);
        let by_our_clock = retry_after(Some("Sun, 22 Nov 1998 06:40:00 GMT".to_owned()), None);
        assert_eq!(by_our_clock, Some(Duration::ZERO));
    }
}
