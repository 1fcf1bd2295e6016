//! Reads totals over HTTP.

use std::time::Duration;

use anyhow::Context as _;
use http::Response;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::agent::agent;

#[derive(Deserialize)]
struct Users {
    users: Vec<User>,
}

/// A user's total in the server's answer.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct User {
    /// The id, 1 to 256 bytes.
    pub user_id: String,
    /// The revenue as the server's JSON number, which a float could not represent exactly.
    pub revenue: Box<RawValue>,
    /// The number of counted events.
    pub events: u64,
}

/// Flushes the server at `url`, then reads its first 1000 users by id.
pub fn totals(url: &str) -> anyhow::Result<Vec<User>> {
    let agent = agent(url, Duration::from_secs(90));
    let flushed = agent.post(format!("{url}/flush")).send_empty();
    body(flushed).context("POST /flush")?;
    let users = agent
        .get(format!("{url}/userEvents?order=userId&limit=1000"))
        .call();
    let users = body(users).context("GET /userEvents")?;
    Ok(serde_json::from_str::<Users>(&users)
        .context("GET /userEvents")?
        .users)
}

/// The body of an answer with a success status.
fn body(answer: Result<Response<ureq::Body>, ureq::Error>) -> anyhow::Result<String> {
    let mut answer = answer?;
    let text = answer.body_mut().read_to_string()?;
    anyhow::ensure!(
        answer.status().is_success(),
        "answered {}: {text}",
        answer.status()
    );
    Ok(text)
}
