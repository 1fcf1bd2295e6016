//! Asks a server whether it is ready.

use std::time::{Duration, Instant};

use serde::Deserialize;

use super::agent::agent;
use crate::shutdown::Shutdown;

/// Timeout of one request.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Pause between two requests.
const PAUSE: Duration = Duration::from_millis(50);

/// Why a server is not ready.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    /// The server answered, and gave these reasons.
    #[error("{}", .0.join("; "))]
    Reasons(Vec<String>),
    /// An answer that `/readyz` of tallyline does not give.
    #[error("/readyz answered {0}; is it a tallyline server?")]
    Foreign(http::StatusCode),
    /// No connection, or no answer in time.
    #[error("no answer")]
    NoAnswer(#[source] Box<ureq::Error>),
}

#[derive(Deserialize)]
struct Problem {
    reasons: Vec<String>,
}

/// Returns once the server at the base URL `to` is ready. If it is not ready `within` this time
/// (`None`: no limit) or before `stop`, the result is the last answer. At least one request is made.
pub fn wait_until_ready(
    to: &str,
    within: Option<Duration>,
    stop: &Shutdown,
) -> Result<(), NotReady> {
    let began = Instant::now();
    let agent = agent(to, ANSWER_WITHIN);
    loop {
        let answer = ask(&agent, to);
        let over = within.is_some_and(|within| began.elapsed() + PAUSE > within);
        if answer.is_ok() || over || stop.wait(PAUSE) {
            return answer;
        }
    }
}

fn ask(agent: &ureq::Agent, to: &str) -> Result<(), NotReady> {
    let no_answer = |error| NotReady::NoAnswer(Box::new(error));
    let mut answer = agent
        .get(format!("{to}/readyz"))
        .call()
        .map_err(no_answer)?;
    let status = answer.status();
    match status.as_u16() {
        200 => Ok(()),
        503 => match answer.body_mut().read_json::<Problem>() {
            Ok(problem) => Err(NotReady::Reasons(problem.reasons)),
            Err(_) => Err(NotReady::Foreign(status)),
        },
        _ => Err(NotReady::Foreign(status)),
    }
}
