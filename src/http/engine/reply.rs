//! A reply, and its bytes on the wire.
//!
//! Written in one piece: the library's own way costs twice the allocations and, without it, a
//! reply in two segments waits for the client's delayed ack (44 ms).

use std::borrow::Cow;
use std::cell::RefCell;
use std::io::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use super::framing::Persistence;

/// JSON.
pub(super) const JSON: &str = "application/json";

/// What a client is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// The media type of the body; nothing is said where the body is empty.
    pub content_type: &'static str,
    /// Further headers. Values are ours: nothing a client sent may be echoed here (a line end in
    /// it would be a header of the client's own).
    pub headers: Vec<(&'static str, Cow<'static, str>)>,
    /// The body, sent whole with its length.
    pub body: Cow<'static, [u8]>,
    /// The connection ends with this reply.
    pub close: bool,
}

impl Reply {
    /// A reply with a body.
    pub fn new(
        status: u16,
        content_type: &'static str,
        body: impl Into<Cow<'static, [u8]>>,
    ) -> Self {
        Self {
            status,
            content_type,
            headers: Vec::new(),
            body: body.into(),
            close: false,
        }
    }

    /// A JSON reply.
    pub fn json(status: u16, body: String) -> Self {
        Self::new(status, JSON, body.into_bytes())
    }

    /// A reply without a body.
    pub fn empty(status: u16) -> Self {
        Self::new(status, "", Vec::new())
    }

    /// With one more header; see [`Self::headers`] for what must not be in it.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<Cow<'static, str>>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// The same, ending the connection.
    #[must_use]
    pub fn closing(mut self) -> Self {
        self.close = true;
        self
    }

    /// The whole reply as it goes over the wire; without the body in answer to a HEAD.
    pub(super) fn encode(&self, to_head: bool, persistence: Persistence) -> Vec<u8> {
        let mut out = Vec::with_capacity(256 + self.body.len());
        out.extend_from_slice(b"HTTP/1.1 ");
        self.head(
            &mut out,
            match persistence {
                _ if self.close => Some("close"),
                Persistence::Ends => Some("close"),
                Persistence::KeptOnRequest => Some("keep-alive"),
                Persistence::Kept => None,
            },
        );
        if !to_head {
            out.extend_from_slice(&self.body);
        }
        out
    }

    /// The head after the version, up to and with the empty line.
    fn head(&self, out: &mut Vec<u8>, connection: Option<&str>) {
        // Writing to a Vec cannot fail.
        let _never = write!(out, "{} {}\r\n", self.status, reason(self.status));
        self.fields(out, connection);
        out.extend_from_slice(b"\r\n");
    }

    /// The header fields, each with its line end.
    pub(super) fn fields(&self, out: &mut Vec<u8>, connection: Option<&str>) {
        out.extend_from_slice(b"Date: ");
        push_date(out);
        out.extend_from_slice(b"\r\n");
        if self.status != 204 {
            let _never = write!(out, "Content-Length: {}\r\n", self.body.len());
        }
        if !self.body.is_empty() {
            let _never = write!(out, "Content-Type: {}\r\n", self.content_type);
        }
        for (name, value) in &self.headers {
            let _never = write!(out, "{name}: {value}\r\n");
        }
        if let Some(connection) = connection {
            let _never = write!(out, "Connection: {connection}\r\n");
        }
    }
}

/// The reason phrases of the statuses we send.
fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        202 => "Accepted",
        204 => "No Content",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        410 => "Gone",
        413 => "Content Too Large",
        415 => "Unsupported Media Type",
        422 => "Unprocessable Content",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        507 => "Insufficient Storage",
        _ => "Unknown",
    }
}

thread_local! {
    /// The second it was made for, and the text: made once a second by each thread that writes.
    static DATE: RefCell<(u64, [u8; 29])> = const { RefCell::new((u64::MAX, [b' '; 29])) };
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`
fn push_date(out: &mut Vec<u8>) {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    DATE.with_borrow_mut(|(second, text)| {
        if *second != now {
            let mut fresh = Vec::with_capacity(29);
            http_date(now, &mut fresh);
            if fresh.len() == text.len() {
                text.copy_from_slice(&fresh);
            }
            *second = now;
        }
        out.extend_from_slice(text);
    });
}

fn http_date(unix_seconds: u64, out: &mut Vec<u8>) {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let days = unix_seconds / 86_400;
    let (mut year, mut left) = (1970_u64, days);
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    while left >= 365 + u64::from(leap(year)) {
        left -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 0;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if left < length {
            break;
        }
        left -= length;
        month += 1;
    }
    let weekday = DAYS[usize::try_from(days % 7).unwrap_or(0)];
    let second = unix_seconds % 86_400;
    let _never = write!(
        out,
        "{weekday}, {:02} {} {year:04} {:02}:{:02}:{:02} GMT",
        left + 1,
        MONTHS[month],
        second / 3600,
        second / 60 % 60,
        second % 60
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(reply: &Reply, to_head: bool, persistence: Persistence) -> String {
        let bytes = reply.encode(to_head, persistence);
        let text = String::from_utf8(bytes).expect("text");
        let (before, date) = text.split_once("Date: ").expect("a date");
        format!("{before}{}", date.split_once("\r\n").expect("a line end").1)
    }

    #[test]
    fn a_reply_in_one_piece() {
        let reply = Reply::json(202, "{}".into()).with("Retry-After", "1");
        assert_eq!(
            text(&reply, false, Persistence::Kept),
            "HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\nContent-Type: application/json\r\nRetry-After: 1\r\n\r\n{}"
        );
        assert_eq!(
            text(&reply, true, Persistence::KeptOnRequest),
            "HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\nContent-Type: application/json\r\nRetry-After: 1\r\nConnection: keep-alive\r\n\r\n"
        );
        assert_eq!(
            text(&Reply::empty(204), false, Persistence::Ends),
            "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"
        );
        assert_eq!(
            text(&Reply::empty(400).closing(), false, Persistence::Kept),
            "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
    }

    #[test]
    fn dates() {
        for (seconds, date) in [
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
            (4_107_542_399, "Sun, 28 Feb 2100 23:59:59 GMT"),
            (4_107_542_400, "Mon, 01 Mar 2100 00:00:00 GMT"),
        ] {
            let mut out = Vec::new();
            http_date(seconds, &mut out);
            assert_eq!(String::from_utf8_lossy(&out), date);
        }
    }
}
