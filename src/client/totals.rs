//! The totals, asked for over HTTP.

use std::time::Duration;

use anyhow::Context as _;
use serde::Deserialize;
use serde_json::value::RawValue;

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
    let agent = ureq::Agent::new_with_config(
        ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_secs(90)))
            .build(),
    );
    agent
        .post(format!("{url}/flush"))
        .send_empty()
        .context("POST /flush")?;
    let users = agent
        .get(format!("{url}/userEvents?order=userId&limit=1000"))
        .call();
    let users = users
        .and_then(|mut answer| answer.body_mut().read_to_string())
        .context("GET /userEvents")?;
    Ok(serde_json::from_str::<Users>(&users)
        .context("GET /userEvents")?
        .users)
}
