//! Listings of users, page by page.
//!
//! A page in order of the user id reads only its own rows. A page in order of revenue reads all users, or
//! all that match the prefix, because there is no index: it would cost more in each transaction than it
//! saves in rare listings. Each page is a read of its own, so no read transaction stays open between pages.

use std::fmt::Write as _;

use rusqlite::types::Value;
use rusqlite::{Row, params};

use super::readers::SqliteReaders;
use super::{Readers, StoreError};
use crate::event::Micros;

const PAGE_BY_ID: &str = include_str!("../../sql/query/page_users_by_id.sql");
const PAGE_BY_REVENUE: &str = include_str!("../../sql/query/page_users_by_revenue.sql");
const PAGE_BY_REVENUE_DESCENDING: &str =
    include_str!("../../sql/query/page_users_by_revenue_descending.sql");

/// The total of one user, over all segments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserTotal {
    /// The id, 1 to 256 bytes.
    pub user_id: String,
    /// The added minus the subtracted amounts.
    pub revenue: Micros,
    /// The number of counted events.
    pub events: u64,
    /// When the total last changed, in milliseconds since 1970 UTC.
    pub updated_at_ms: i64,
}

/// The order of a listing of users.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// By revenue, the smallest first.
    Revenue,
    /// By revenue, the largest first.
    RevenueDescending,
    /// By user id, byte by byte.
    UserId,
}

/// One page of a listing of users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The users in the requested order.
    pub users: Vec<UserTotal>,
    /// The opaque cursor of the next page; `None` on the last page.
    pub next: Option<String>,
}

/// A request for a page.
#[derive(Clone, Copy, Debug)]
pub struct Listing<'a> {
    /// The order of the users.
    pub order: Order,
    /// Only users whose id starts with this text; empty for all.
    pub prefix: &'a str,
    /// The maximum number of users.
    pub limit: u32,
    /// [`Page::next`] of the page before; `None` for the first page.
    pub cursor: Option<&'a str>,
}

impl Listing<'_> {
    /// The first page of all users.
    pub fn first(order: Order, limit: u32) -> Self {
        Self {
            order,
            prefix: "",
            limit,
            cursor: None,
        }
    }
}

impl Readers {
    /// A page of users; `Ok(None)` if the cursor is invalid.
    pub fn users(&self, listing: &Listing<'_>) -> Result<Option<Page>, StoreError> {
        let &Listing {
            order,
            prefix,
            limit,
            cursor,
        } = listing;
        let Some(after) = Cursor::read(order, cursor) else {
            return Ok(None);
        };
        // One more than requested, to see whether there is a next page.
        let rows = i64::from(limit) + 1;
        let mut users = match self {
            Self::Sqlite(readers) => readers.users(order, prefix, rows, &after),
            #[cfg(feature = "postgres")]
            Self::Postgres(readers) => readers.users(order, prefix, rows, &after),
        }?;
        let more = users.len() > limit as usize;
        users.truncate(limit as usize);
        let next = users
            .last()
            .filter(|_| more)
            .map(|last| Cursor::of(last).write(order));
        Ok(Some(Page { users, next }))
    }
}

impl SqliteReaders {
    /// The first `rows` users after the cursor.
    fn users(
        &self,
        order: Order,
        prefix: &str,
        rows: i64,
        after: &Cursor,
    ) -> Result<Vec<UserTotal>, StoreError> {
        // An empty blob, which SQLite orders after every text.
        let end = end_of(prefix).map_or(Value::Blob(Vec::new()), Value::Text);
        let users = self.read("list users", |connection| {
            let page = |sql: &str, parameters: &[&dyn rusqlite::ToSql]| {
                connection
                    .prepare_cached(sql)?
                    .query_map(parameters, read_user)?
                    .collect::<rusqlite::Result<Vec<_>>>()
            };
            let revenue = after.revenue_within_i64(order);
            let id = after.user_id.as_deref().unwrap_or_default();
            match order {
                Order::UserId => page(PAGE_BY_ID, params![after.start(prefix), end, rows]),
                Order::Revenue => page(PAGE_BY_REVENUE, params![prefix, end, revenue, id, rows]),
                Order::RevenueDescending => page(
                    PAGE_BY_REVENUE_DESCENDING,
                    params![prefix, end, revenue, id, rows],
                ),
            }
        })?;
        Ok(users.unwrap_or_default())
    }
}

/// The end of the range of texts that start with `prefix`, exclusive: the text after all of them; `None` if
/// there is none.
pub(super) fn end_of(prefix: &str) -> Option<String> {
    let mut end = prefix.to_owned();
    while let Some(last) = end.pop() {
        // The next character; the surrogates are not characters.
        let next = match last {
            '\u{d7ff}' => Some('\u{e000}'),
            last => char::from_u32(u32::from(last) + 1),
        };
        if let Some(next) = next {
            end.push(next);
            return Some(end);
        }
    }
    None
}

fn read_user(row: &Row<'_>) -> rusqlite::Result<UserTotal> {
    Ok(UserTotal {
        user_id: row.get(0)?,
        revenue: row.get::<_, i64>(1)?.into(),
        events: row.get(2)?,
        updated_at_ms: row.get(3)?,
    })
}

/// The position after a user in a listing. Its text is safe in a URL: `r`, `d` or `u` for the order,
/// the revenue, `.`, and the user id in hex.
pub(super) struct Cursor {
    /// `None` at the start of the listing.
    pub(super) revenue: Option<i128>,
    /// `None` at the start of the listing.
    pub(super) user_id: Option<String>,
}

impl Cursor {
    /// The first id of the page in order of the id, inclusive.
    fn start(&self, prefix: &str) -> String {
        match &self.user_id {
            // The text right after this id.
            Some(id) if id.as_str() >= prefix => format!("{id}\0"),
            _ => prefix.to_owned(),
        }
    }

    /// The revenue in a table whose totals have 64 bits; before the first user, the one from which the order
    /// begins.
    fn revenue_within_i64(&self, order: Order) -> i64 {
        let first = match order {
            Order::RevenueDescending => i64::MAX,
            Order::Revenue | Order::UserId => i64::MIN,
        };
        self.revenue.map_or(first, |revenue| {
            let within = revenue.clamp(i64::MIN.into(), i64::MAX.into());
            i64::try_from(within).unwrap_or(first)
        })
    }

    fn of(user: &UserTotal) -> Self {
        Self {
            revenue: Some(user.revenue.0),
            user_id: Some(user.user_id.clone()),
        }
    }

    fn letter(order: Order) -> char {
        match order {
            Order::Revenue => 'r',
            Order::RevenueDescending => 'd',
            Order::UserId => 'u',
        }
    }

    fn write(&self, order: Order) -> String {
        let revenue = self.revenue.unwrap_or_default();
        let mut text = format!("{}{revenue}.", Self::letter(order));
        for byte in self.user_id.iter().flat_map(|id| id.bytes()) {
            // Writing to a String cannot fail.
            let _infallible = write!(text, "{byte:02x}");
        }
        text
    }

    /// Parses a cursor; without one, the start of the listing. `None` if it is invalid for this order.
    fn read(order: Order, cursor: Option<&str>) -> Option<Self> {
        let Some(text) = cursor else {
            return Some(Self {
                revenue: None,
                user_id: None,
            });
        };
        let (revenue, hex) = text.strip_prefix(Self::letter(order))?.split_once('.')?;
        if hex.len() % 2 != 0 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let bytes = (0..hex.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).ok())
            .collect::<Option<Vec<u8>>>()?;
        Some(Self {
            revenue: Some(revenue.parse().ok()?),
            user_id: Some(String::from_utf8(bytes).ok()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_is_after_all_that_start_with_it() {
        let text = |text: &str| Some(text.to_owned());
        for (prefix, end) in [
            ("a", text("b")),
            ("a\u{10ffff}", text("b")),
            ("\u{d7ff}", text("\u{e000}")),
            ("x\u{7f}", text("x\u{80}")),
            ("", None),
            ("\u{10ffff}\u{10ffff}", None),
        ] {
            assert_eq!(end_of(prefix), end, "{prefix:?}");
        }
    }
}
