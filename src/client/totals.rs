//! The totals, asked for over HTTP.

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

/// A user's total as the server tells it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct User {
    /// Whose.
    pub user_id: String,
    /// Its own digits, for an amount is no float.
    pub revenue: Box<RawValue>,
}

/// Has the server at `url` apply what it took, then asks for its first thousand users by id.
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

/// The text of a good answer.
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
