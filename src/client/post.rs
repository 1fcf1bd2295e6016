//! One request and what its answer means.
//!
//! Owned by one sending thread, with a connection of its own that is kept open. Whether a request
//! that brought no answer was taken is told as it is: nobody knows.

use std::time::Duration;

use serde::Deserialize;

use crate::config::SendConfig;

/// The longest wait for an answer; shorter where `--retry-for` is.
const ANSWER_WITHIN: Duration = Duration::from_mins(1);
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// The longest `Retry-After` that is heeded as it stands.
const RETRY_AFTER_MAX: Duration = Duration::from_mins(5);
/// An answer that names every line of the largest batch fits.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// What came of a request.
#[derive(Debug)]
pub(super) enum Answer {
    /// The good lines are durable.
    Taken {
        /// How many.
        accepted: u64,
        /// How many were not taken.
        refused: u64,
        /// Which, and why.
        errors: Vec<LineError>,
    },
    /// Nothing was taken, because of what was sent.
    Refused {
        /// Which lines, and why.
        errors: Vec<LineError>,
        /// Why, in general.
        reason: String,
    },
    /// Nothing was taken: the body is too large.
    TooLarge {
        /// In the server's words.
        reason: String,
    },
    /// Worth trying again.
    Again {
        /// What happened.
        reason: String,
        /// When the server wants to be asked again.
        after: Option<Duration>,
        /// Whether it may have been taken all the same.
        outcome: Outcome,
    },
    /// Trying again would bring the same.
    Hopeless {
        /// What happened, and what to do.
        reason: String,
    },
}

/// What became of a request that was not answered well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Nothing of it was taken.
    Nothing,
    /// All, nothing, or some of it was taken.
    Unknown,
}

/// A line the server did not take.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct LineError {
    /// Its number in the body, from 1.
    pub(super) line: u64,
    /// JSON pointer to the field.
    pub(super) pointer: String,
    /// For programs.
    pub(super) code: String,
    /// For people.
    pub(super) detail: String,
}

#[derive(Deserialize)]
struct Taken {
    accepted: u64,
    #[serde(default)]
    refused: u64,
    #[serde(default)]
    errors: Vec<LineError>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Problem {
    title: String,
    detail: String,
    outcome: String,
    errors: Vec<LineError>,
}

impl Problem {
    fn reason(&self, status: u16) -> String {
        let words = if self.detail.is_empty() {
            &self.title
        } else {
            &self.detail
        };
        if words.is_empty() {
            format!("answered {status}")
        } else {
            format!("answered {status}: {words}")
        }
    }
}

/// A connection to the server.
pub(super) struct Poster {
    agent: ureq::Agent,
    url: String,
    authorization: Option<String>,
    content_type: &'static str,
}

impl Poster {
    /// Connects at the first request.
    pub(super) fn new(config: &SendConfig) -> Self {
        let patience = config.retry_for.unwrap_or(ANSWER_WITHIN);
        let mut builder = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .max_idle_connections_per_host(1)
            .timeout_connect(Some(CONNECT_WITHIN))
            .timeout_global(Some(patience.clamp(Duration::from_secs(1), ANSWER_WITHIN)))
            .user_agent(concat!("tallyline/", env!("CARGO_PKG_VERSION")));
        if is_local(&config.to) {
            // A proxy for the wide world has no business between two programs of one machine.
            builder = builder.proxy(None);
        }
        Self {
            agent: builder.build().new_agent(),
            url: format!("{}/liveEvent?invalid=skip", config.to),
            authorization: config.token.as_ref().map(crate::config::Token::header),
            content_type: if config.batch.get() == 1 {
                "application/json"
            } else {
                "application/x-ndjson"
            },
        }
    }

    /// Sends `body` and waits for the answer.
    pub(super) fn post(&self, body: &[u8]) -> Answer {
        let mut request = self
            .agent
            .post(&self.url)
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
        let after = header("retry-after");
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
            // The status alone can be enough: a refusal took nothing whatever its words were.
            Err(error) if status < 400 => return unanswered(&error),
            Err(_) => Vec::new(),
        };
        let problem = if is_problem {
            serde_json::from_slice(&text).ok()
        } else {
            None
        };
        match status {
            200..=299 => taken(status, &text),
            300..=399 => Answer::Hopeless {
                reason: match location {
                    Some(to) => {
                        format!("answered {status}, elsewhere: {to}; name that base URL with --to")
                    }
                    None => format!("answered {status}; name another base URL with --to"),
                },
            },
            _ => refused(status, problem, after.as_deref()),
        }
    }
}

fn taken(status: u16, text: &[u8]) -> Answer {
    match serde_json::from_slice::<Taken>(text) {
        Ok(taken) => Answer::Taken {
            accepted: taken.accepted,
            refused: taken.refused,
            errors: taken.errors,
        },
        Err(_) => Answer::Hopeless {
            reason: format!(
                "answered {status}, but not in the way of a tallyline server; is --to right?"
            ),
        },
    }
}

fn refused(status: u16, problem: Option<Problem>, after: Option<&str>) -> Answer {
    let known = problem.is_some();
    let problem = problem.unwrap_or_default();
    let reason = problem.reason(status);
    match status {
        400 | 422 if known => Answer::Refused {
            errors: problem.errors,
            reason,
        },
        413 => Answer::TooLarge { reason },
        408 | 425 | 429 | 500.. => Answer::Again {
            reason,
            after: after
                .and_then(|seconds| seconds.trim().parse().ok())
                .map(|seconds| Duration::from_secs(seconds).min(RETRY_AFTER_MAX)),
            // A server of ours says so if it does not know; something in between never knows.
            outcome: if known && problem.outcome != "unknown" || status == 429 {
                Outcome::Nothing
            } else {
                Outcome::Unknown
            },
        },
        401 => Answer::Hopeless {
            reason: "answered 401: no token, or one that the server does not know; set TALLYLINE_TOKEN, or name a file with --token-file".to_owned(),
        },
        404 | 405 => Answer::Hopeless {
            reason: format!("{reason}; --to must be the base URL of a tallyline server"),
        },
        _ => Answer::Hopeless { reason },
    }
}

/// No answer. Where no connection came about, nothing can have been taken.
fn unanswered(error: &ureq::Error) -> Answer {
    let outcome = match error {
        ureq::Error::HostNotFound
        | ureq::Error::ConnectionFailed
        | ureq::Error::Timeout(ureq::Timeout::Resolve | ureq::Timeout::Connect) => Outcome::Nothing,
        ureq::Error::Io(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            Outcome::Nothing
        }
        ureq::Error::BadUri(_) | ureq::Error::Http(_) | ureq::Error::InvalidProxyUrl => {
            return Answer::Hopeless {
                reason: error.to_string(),
            };
        }
        _ => Outcome::Unknown,
    };
    let reason = match error {
        ureq::Error::Io(error) => error.to_string(), // without ureq's "io: "
        error => error.to_string(),
    };
    Answer::Again {
        reason,
        after: None,
        outcome,
    }
}

/// Whether a base URL leads to this machine.
fn is_local(to: &str) -> bool {
    let host = to.split("://").nth(1).unwrap_or(to);
    let host = host.split('/').next().unwrap_or(host);
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    host.starts_with("127.") || host.starts_with("localhost") || host.starts_with("[::1]")
}
