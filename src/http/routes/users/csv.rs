//! `GET /userEvents` with `Accept: text/csv`: all users, or a page, as CSV (RFC 4180).
//!
//! All users are sent in order of their id, as a stream: each piece is a page, which is read in a transaction
//! of its own when the client has read the piece before. A slow client therefore holds no read transaction,
//! which would keep the WAL from being reset, and no more memory than a page. Each row is correct as of the
//! time when its page was read, and each user that exists the whole time is in the result once.

use std::fmt::Write as _;
use std::sync::Arc;

use super::super::Inner;
use super::super::params::Params;
use super::{LIMIT_MAX, LIST_PARAMS, listing, read_page};
use crate::http::counters::Route;
use crate::http::engine::{MayBlock, Piece, Reply, Request};
use crate::http::problem::Problem;
use crate::store::{Listing, Order, Page, UserTotal};
use crate::timestamp;

const CSV: &str = "text/csv; charset=utf-8; header=present";
const HEADING: &str = "userId,revenue,revenueMicros,events,updatedAt\n";

/// Whether an `Accept` header asks for CSV rather than JSON. Without a header, or with wildcards, it does
/// not.
pub(super) fn is_preferred(accept: Option<&str>) -> bool {
    let quality = |wanted: &str| {
        let ranges = accept.unwrap_or_default().split(',');
        ranges
            .filter_map(|range| {
                let mut parts = range.split(';').map(str::trim);
                let kind = parts.next()?;
                let quality = parts
                    .find_map(|part| part.strip_prefix("q=").or(part.strip_prefix("Q=")))
                    .map_or(Some(1.0), |quality| quality.parse::<f32>().ok())?;
                kind.eq_ignore_ascii_case(wanted).then_some(quality)
            })
            .fold(0.0, f32::max)
    };
    let csv = quality("text/csv");
    csv > 0.0 && csv >= quality("application/json")
}

/// Answers with one page, if there is a `limit`, or with all users.
pub(super) fn list(inner: &Arc<Inner>, request: Request, query: &str) {
    let (inner, query) = (Arc::clone(inner), query.to_owned());
    request.on_blocking_thread(
        move |request, may_block| match answer(&inner, &query, may_block) {
            Err(problem) => inner.answer(request, Route::Users, problem.reply()),
            Ok((text, None)) => inner.answer(request, Route::Users, reply(text)),
            Ok((text, Some(mut rest))) => {
                inner.counters.answered(Route::Users, 200);
                let source = move |may_block: &MayBlock| rest.next(&inner, may_block);
                request.answer_with_stream(reply(text), Box::new(source));
            }
        },
    );
}

fn reply(text: String) -> Reply {
    Reply::new(200, CSV, text.into_bytes()).with("Vary", "Accept")
}

/// The first piece, and the rest if there is more.
fn answer(
    inner: &Inner,
    query: &str,
    may_block: &MayBlock,
) -> Result<(String, Option<Rest>), Problem> {
    let params = Params::parse(query, &LIST_PARAMS)?;
    let mut listing = listing(&params)?;
    let is_whole = params.get("limit").is_none();
    if is_whole {
        if listing.order != Order::UserId {
            let detail = "all users as CSV are in the order of userId; leave order out, or give a limit (at most 1000) for one page in another order";
            return Err(Problem::new(400, detail));
        }
        listing.limit = LIMIT_MAX;
    }
    let page = read_page(inner, &listing, may_block)?;
    let mut text = HEADING.to_owned();
    push_users(&mut text, &page);
    let rest = page.next.filter(|_| is_whole).map(|cursor| Rest {
        prefix: listing.prefix.to_owned(),
        cursor,
    });
    Ok((text, rest))
}

/// The users after those that were sent.
struct Rest {
    prefix: String,
    cursor: String,
}

impl Rest {
    fn next(&mut self, inner: &Inner, may_block: &MayBlock) -> Piece {
        let listing = Listing {
            prefix: &self.prefix,
            cursor: Some(&self.cursor),
            ..Listing::first(Order::UserId, LIMIT_MAX)
        };
        // The head is sent already: the problem is logged, and the connection is closed.
        let Ok(page) = read_page(inner, &listing, may_block) else {
            return Piece::Failed;
        };
        let mut text = String::new();
        push_users(&mut text, &page);
        let bytes = text.into_bytes();
        match page.next {
            None => Piece::Last(bytes),
            Some(cursor) => {
                self.cursor = cursor;
                Piece::More(bytes)
            }
        }
    }
}

fn push_users(text: &mut String, page: &Page) {
    text.reserve(page.users.len() * 64);
    for user in &page.users {
        push_user(text, user);
    }
}

fn push_user(text: &mut String, user: &UserTotal) {
    // A user id has no control characters, so no line ends.
    if user.user_id.contains([',', '"']) {
        let _never = write!(text, "\"{}\"", user.user_id.replace('"', "\"\""));
    } else {
        text.push_str(&user.user_id);
    }
    let updated_at = timestamp::rfc3339_of_ms(user.updated_at_ms);
    // Writing to a String cannot fail.
    let _never = writeln!(
        text,
        ",{},{},{},{updated_at}",
        user.revenue, user.revenue.0, user.events
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Micros;

    #[test]
    fn csv_is_sent_if_it_is_asked_for() {
        for accept in [
            "text/csv",
            "TEXT/CSV; charset=utf-8",
            "text/csv, application/json;q=0.9, */*;q=0.1",
            "application/json;q=0.5,text/csv;q=0.8",
        ] {
            assert!(is_preferred(Some(accept)), "{accept}");
        }
        for accept in [
            "",
            "*/*",
            "text/*",
            "application/json, text/csv;q=0.9",
            "text/csv;q=0",
            "text/csvx",
            "text/html,application/xhtml+xml,*/*;q=0.8",
        ] {
            assert!(!is_preferred(Some(accept)), "{accept}");
        }
        assert!(!is_preferred(None));
    }

    #[test]
    fn a_user_is_a_row() {
        let row = |user_id: &str| {
            let mut text = String::new();
            push_user(
                &mut text,
                &UserTotal {
                    user_id: user_id.to_owned(),
                    revenue: Micros(-10_500_000),
                    events: 3,
                    updated_at_ms: 1_795_329_660_123,
                },
            );
            text
        };
        let rest = "-10.5,-10500000,3,2026-11-22T06:41:00.123Z\n";
        assert_eq!(row("é x"), format!("é x,{rest}"));
        assert_eq!(row("a,\"b\""), format!("\"a,\"\"b\"\"\",{rest}"));
    }
}
