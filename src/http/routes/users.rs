//! `GET /userEvents/{userId}` and `GET /userEvents`: the totals of users.
//!
//! The database is read on a thread that may block. A request that waits for a position occupies no
//! thread: [`crate::progress::Progress`] calls back.

mod csv;
pub(super) mod lookups;

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::params::{self, Params};
use super::{Inner, unreadable};
use crate::data_dir::node_position::NodePosition;
use crate::http::counters::Route;
use crate::http::engine::{MayBlock, Reply, Request};
use crate::http::problem::Problem;
use crate::store::{Listing, Order, Page, UserTotal};
use crate::timestamp;

pub(super) const WAIT_DEFAULT: Duration = Duration::from_secs(5);
pub(super) const WAIT_MAX: Duration = Duration::from_mins(1);
const LIMIT_DEFAULT: u32 = 50;
const LIMIT_MAX: u32 = 1000;

/// Answers with the total of a user, at once or after a position is applied.
pub(super) fn one(inner: &Arc<Inner>, request: Request, raw_id: &str, query: &str) {
    let (id, after, wait) = match parse(raw_id, query) {
        Ok(parsed) => parsed,
        Err(problem) => return inner.answer(request, Route::User, problem.reply()),
    };
    let Some(after) = after else {
        return lookups::look_up(inner, request, id, None);
    };
    let done = {
        let inner = Arc::clone(inner);
        move |waited: Result<(), Problem>| match waited {
            Ok(()) => {
                let after = inner.in_sealed_segment(after);
                lookups::look_up(&inner, request, id, after);
            }
            Err(problem) => inner.answer(request, Route::User, problem.reply()),
        }
    };
    inner.when_applied(after, Instant::now() + wait, done);
}

/// The user id, the position to wait for, and how long to wait.
fn parse(raw_id: &str, query: &str) -> Result<(String, Option<NodePosition>, Duration), Problem> {
    let id = params::decode(raw_id)
        .ok_or_else(|| Problem::new(400, "the user id in the path is not percent-encoded UTF-8"))?;
    let params = Params::parse(query, &["after", "wait"])?;
    let wait = params.wait(WAIT_DEFAULT, WAIT_MAX)?;
    let after = params.position("after")?;
    Ok((id, after, wait))
}

/// The problem of a user without a total. Pending lines may contain events of the user.
fn unknown(inner: &Inner) -> Problem {
    let progress = &inner.progress;
    let pending = progress.ledger(|| inner.journal.tail().lines).0.pending;
    let detail = if pending == 0 {
        let here = if inner.is_shared() {
            " at this node"
        } else {
            ""
        };
        format!("no event of this user has been applied, and none is pending{here}")
    } else if progress.applies_elsewhere() {
        format!(
            "no event of this user has been applied; {pending} lines are pending: `tallyline process` applies them"
        )
    } else {
        format!(
            "no event of this user has been applied; {pending} lines are pending: try again, or with after=POSITION"
        )
    };
    Problem::new(404, detail).member("pending", pending)
}

/// Answers with a page of users, or as CSV.
pub(super) fn list(inner: &Arc<Inner>, request: Request, query: &str) {
    if csv::is_preferred(request.header("Accept")) {
        csv::list(inner, request, query);
    } else {
        inner.answer_blocking(request, Route::Users, query, page);
    }
}

/// The parameters of a listing.
const LIST_PARAMS: [&str; 4] = ["order", "prefix", "limit", "cursor"];

fn listing(params: &Params) -> Result<Listing<'_>, Problem> {
    let orders = [
        ("userId", Order::UserId),
        ("revenue", Order::Revenue),
        ("-revenue", Order::RevenueDescending),
    ];
    Ok(Listing {
        order: params.one_of("order", &orders)?,
        prefix: params.get("prefix").unwrap_or_default(),
        limit: params.limit(LIMIT_DEFAULT, LIMIT_MAX)?,
        cursor: params.get("cursor"),
    })
}

fn read_page(inner: &Inner, listing: &Listing<'_>, may_block: &MayBlock) -> Result<Page, Problem> {
    inner
        .readers
        .get(may_block)
        .users(listing)
        .map_err(|error| unreadable(&error))?
        .ok_or_else(|| {
            Problem::new(
                400,
                "the cursor does not belong to this order; start again without a cursor",
            )
        })
}

fn page(inner: &Inner, query: &str, may_block: &MayBlock) -> Result<Reply, Problem> {
    let params = Params::parse(query, &LIST_PARAMS)?;
    let page = read_page(inner, &listing(&params)?, may_block)?;
    let mut json = String::with_capacity(32 + page.users.len() * 96);
    json.push_str("{\"users\":[");
    for (index, user) in page.users.iter().enumerate() {
        if index > 0 {
            json.push(',');
        }
        push_user(&mut json, user);
    }
    json.push_str("],\"next\":");
    match &page.next {
        Some(next) => push_string(&mut json, next),
        None => json.push_str("null"),
    }
    json.push('}');
    Ok(Reply::json(200, json).with("Vary", "Accept"))
}

fn push_user(json: &mut String, total: &UserTotal) {
    json.push_str("{\"userId\":");
    push_string(json, &total.user_id);
    let updated_at = timestamp::rfc3339_of_ms(total.updated_at_ms);
    // Writing to a String cannot fail. The revenue is an exact decimal, not a float.
    let _never = write!(
        json,
        ",\"revenue\":{},\"revenueMicros\":\"{}\",\"events\":{},\"updatedAt\":\"{updated_at}\"}}",
        total.revenue, total.revenue.0, total.events
    );
}

fn push_string(json: &mut String, text: &str) {
    // Serializing a string cannot fail.
    json.push_str(&serde_json::to_string(text).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Micros;

    #[test]
    fn a_user_as_json() {
        let mut json = String::new();
        push_user(
            &mut json,
            &UserTotal {
                user_id: "a\"b/é".into(),
                revenue: Micros(-10_500_000),
                events: 3,
                updated_at_ms: 1_795_329_660_123,
            },
        );
        assert_eq!(
            json,
            r#"{"userId":"a\"b/é","revenue":-10.5,"revenueMicros":"-10500000","events":3,"updatedAt":"2026-11-22T06:41:00.123Z"}"#
        );
    }

    #[test]
    fn the_path_and_the_query_are_parsed() {
        let (id, after, wait) = parse("caf%C3%A9%2F%25", "after=42-1834&wait=1s").expect("valid");
        assert_eq!(id, "café/%");
        assert_eq!(after, "42-1834".parse().ok());
        assert_eq!(wait, Duration::from_secs(1));
        for (id, query) in [
            ("%zz", ""),
            ("%ff", ""),
            ("u", "after=42"),
            ("u", "after="),
            ("u", "wait=1h"),
            ("u", "at=1"),
        ] {
            assert_eq!(
                parse(id, query).map_err(|p| p.status()).err(),
                Some(400),
                "{id} {query}"
            );
        }
    }
}
