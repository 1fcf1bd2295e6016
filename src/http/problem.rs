//! Error replies: a status and an `application/problem+json` body (RFC 9457).
//!
//! A problem means that no event of the request was stored. The exceptions say so: `outcome` is
//! `unknown`, or the detail says what was done.

use std::borrow::Cow;

use serde::Serialize;

use super::engine::{Refusal, Reply};
use super::intake::{Intake, LineError};
use crate::event::Unsupported;
use crate::journal::AppendError;

/// The media type of problems.
pub(super) const PROBLEM_JSON: &str = "application/problem+json";

/// A problem. Boxed, because it is the rare case of many results.
#[derive(Clone, Debug)]
pub(super) struct Problem(Box<Content>);

/// The members of the body, and the headers.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Content {
    title: &'static str,
    status: u16,
    #[serde(skip_serializing_if = "str::is_empty")]
    detail: Cow<'static, str>,
    /// The invalid lines, at most [`super::intake::ERRORS_MAX`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<Fault>,
    /// The number of invalid lines that are not in `errors`.
    #[serde(skip_serializing_if = "is_zero")]
    more_errors: u64,
    /// Why the server is not ready.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    reasons: Vec<String>,
    /// `unknown` if the events may have been stored or not.
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<&'static str>,
    #[serde(flatten)]
    more: serde_json::Map<String, serde_json::Value>,
    #[serde(skip)]
    headers: Vec<(&'static str, Cow<'static, str>)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Fault {
    line: u64,
    pointer: String,
    code: &'static str,
    detail: String,
}

impl Fault {
    /// What distinguishes it from other kinds: the field and the code.
    pub(super) fn kind(&self) -> (&str, &'static str) {
        (&self.pointer, self.code)
    }

    /// The same with changed texts.
    pub(super) fn with_texts(&self, change: impl Fn(&str) -> String) -> Self {
        Self {
            pointer: change(&self.pointer),
            detail: change(&self.detail),
            ..*self
        }
    }
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde requires this signature"
)]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// The invalid lines as listed in replies.
pub(super) fn faults(errors: &[LineError]) -> Vec<Fault> {
    let fault = |error: &LineError| Fault {
        line: error.line,
        pointer: error.error.pointer.clone().into_owned(),
        code: error.error.code,
        detail: error.error.detail.clone(),
    };
    errors.iter().map(fault).collect()
}

impl Problem {
    /// A problem with a status and a detail: a sentence for people, with the next step.
    pub(super) fn new(status: u16, detail: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Content {
            title: title(status),
            status,
            detail: detail.into(),
            errors: Vec::new(),
            more_errors: 0,
            reasons: Vec::new(),
            outcome: None,
            more: serde_json::Map::new(),
            headers: Vec::new(),
        }))
    }

    /// Adds a header. Its value must not contain bytes from a client, see [`Reply::headers`].
    pub(super) fn header(
        mut self,
        name: &'static str,
        value: impl Into<Cow<'static, str>>,
    ) -> Self {
        self.0.headers.push((name, value.into()));
        self
    }

    /// Adds `Retry-After: 1`: the client may send the request again after a second.
    pub(super) fn retry(self) -> Self {
        self.header("Retry-After", "1")
    }

    /// Adds the reasons why the server is not ready.
    pub(super) fn reasons(mut self, reasons: Vec<String>) -> Self {
        self.0.reasons = reasons;
        self
    }

    /// Adds a member to the body.
    pub(super) fn member(mut self, name: &str, value: impl Into<serde_json::Value>) -> Self {
        self.0.more.insert(name.to_owned(), value.into());
        self
    }

    /// The problem of a body with invalid lines, of which nothing was stored.
    pub(super) fn of_intake(intake: &Intake) -> Self {
        let status = if intake.syntax { 400 } else { 422 };
        let lines = intake.refused + u64::from(intake.accepted);
        let detail = if lines == 1 {
            "invalid event; nothing was stored".to_owned()
        } else {
            let refused = intake.refused;
            let verb = if refused == 1 { "is" } else { "are" };
            format!("{refused} of {lines} lines {verb} invalid; nothing was stored")
        };
        if let Some(format) = &intake.format {
            return Self::of_format(status, intake, format);
        }
        let mut problem = Self::new(status, detail);
        problem.0.errors = faults(&intake.errors);
        problem.0.more_errors = intake.refused - problem.0.errors.len() as u64;
        problem
    }

    /// The problem of a body without events in a known format: one error, not one for each line.
    fn of_format(status: u16, intake: &Intake, format: &Unsupported) -> Self {
        let (what, cure) = (format.what, format.cure_of_body());
        let mut problem = Self::new(
            status,
            format!("the body looks like {what}; nothing was stored; {cure}"),
        );
        problem.0.errors = vec![Fault {
            line: 1,
            pointer: String::new(),
            code: "wrong_format",
            detail: format!("looks like {what}"),
        }];
        problem.0.more_errors = intake.refused - 1;
        problem
    }

    /// Changes the status to 422: none of several lines was stored.
    pub(super) fn unprocessable(mut self) -> Self {
        self.0.status = 422;
        self.0.title = title(422);
        self
    }

    /// The problem of a batch that was not acknowledged.
    pub(super) fn of_append(error: &AppendError) -> Self {
        let detail = error.to_string();
        match error {
            AppendError::DiskFull(_) => Self::new(507, detail),
            AppendError::Busy { .. } | AppendError::Stopping => Self::new(503, detail).retry(),
            AppendError::Failed(_) => Self::new(503, detail).header("Retry-After", "5"),
            AppendError::Unknown(_) => {
                let mut problem = Self::new(503, detail);
                problem.0.outcome = Some("unknown");
                problem
            }
        }
    }

    /// The problem of a request that the engine refuses.
    pub(super) fn of_refusal(refusal: Refusal, body_bytes_max: usize) -> Self {
        match refusal {
            Refusal::Malformed(why) => Self::new(400, format!("malformed request: {why}")),
            Refusal::Tls => Self::new(
                400,
                "this port serves plain HTTP, not TLS; use an http:// URL, or a reverse proxy for https://",
            ),
            Refusal::HeadTimedOut => Self::new(408, "the request head did not arrive in time"),
            Refusal::HeadTooLarge => Self::new(
                431,
                "the request head is longer than 16 KiB, or has more than 128 fields",
            ),
            Refusal::Expectation => {
                Self::new(417, "the only supported expectation is 100-continue")
            }
            Refusal::Version => Self::new(505, "the supported versions are HTTP/1.1 and HTTP/1.0"),
            Refusal::BodyTooLarge => Self::new(
                413,
                format!("the body is larger than {body_bytes_max} bytes; send smaller batches"),
            ),
            Refusal::BodyTimedOut => Self::new(408, "the body did not arrive in time"),
            Refusal::Busy => Self::new(503, "too many requests at once; try again").retry(),
            Refusal::Panicked => Self::new(
                500,
                "internal error, a defect in the server; see its log for details",
            ),
        }
    }

    /// The sentence for people, and the first invalid line.
    pub(super) fn reason(&self) -> (&str, Option<&Fault>) {
        let detail = match &*self.0.detail {
            "" => self.0.title,
            detail => detail,
        };
        (detail, self.0.errors.first())
    }

    pub(super) fn status(&self) -> u16 {
        self.0.status
    }

    /// Converts the problem to a reply.
    pub(super) fn reply(self) -> Reply {
        // This cannot fail: the members are strings, numbers and lists of them.
        let body = serde_json::to_vec(&self.0).unwrap_or_default();
        let mut reply = Reply::new(self.0.status, PROBLEM_JSON, body);
        reply.headers = self.0.headers;
        reply
    }
}

/// The standard phrase of the status: the title that RFC 9457 requires of a problem without a type.
fn title(status: u16) -> &'static str {
    let status = http::StatusCode::from_u16(status).ok();
    status
        .and_then(|status| status.canonical_reason())
        .unwrap_or("Error")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::intake;

    fn json(problem: Problem) -> (u16, serde_json::Value) {
        let reply = problem.reply();
        assert_eq!(reply.content_type, PROBLEM_JSON);
        let json = serde_json::from_slice(&reply.body).expect("JSON");
        (reply.status, json)
    }

    #[test]
    fn invalid_lines_are_listed_up_to_a_bound_and_counted_above_it() {
        let bad = "{\"userId\":\"u\",\"name\":\"add_revenue\",\"value\":-1}\n";
        let intake = intake::read(bad.repeat(250).into()).expect("lines");
        let (status, json) = json(Problem::of_intake(&intake));
        assert_eq!((status, &json["status"]), (422, &422.into()));
        assert_eq!(json["errors"].as_array().map(Vec::len), Some(100));
        assert_eq!(json["moreErrors"], 150);
        assert_eq!(json["errors"][2]["line"], 3);
        assert_eq!(json["errors"][2]["pointer"], "/value");
        assert_eq!(json["errors"][2]["code"], "negative");
        assert_eq!(
            json["detail"],
            "250 of 250 lines are invalid; nothing was stored"
        );
    }

    #[test]
    fn not_json_is_400() {
        let intake = intake::read("nonsense".into()).expect("lines");
        assert_eq!(json(Problem::of_intake(&intake)).0, 400);
    }

    #[test]
    fn an_append_error_has_a_status_and_a_next_step() {
        for (error, status, outcome, retry) in [
            (AppendError::DiskFull("full".into()), 507, None, false),
            (AppendError::Busy { waiting: 1 }, 503, None, true),
            (AppendError::Stopping, 503, None, true),
            (AppendError::Failed("EIO".into()), 503, None, true),
            (
                AppendError::Unknown("EIO".into()),
                503,
                Some("unknown"),
                false,
            ),
        ] {
            let problem = Problem::of_append(&error);
            let has_retry = problem
                .0
                .headers
                .iter()
                .any(|(name, _)| *name == "Retry-After");
            assert_eq!(has_retry, retry, "{error:?}");
            let (was, json) = json(problem);
            assert_eq!(was, status, "{error:?}");
            assert_eq!(json.get("outcome").and_then(|o| o.as_str()), outcome);
        }
    }
}
