//! A reply, and its bytes on the wire.

use std::borrow::Cow;
use std::time::Duration;

use http::StatusCode;
use httpdate::HttpDate;

use super::stream::Coding;
use crate::timestamp;

const JSON: &str = "application/json";

/// A reply to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The HTTP status, such as 202.
    pub status: u16,
    /// The media type of the body; not sent if the body is empty.
    pub content_type: &'static str,
    /// Further headers. A value must not contain bytes from a client, because a line end in it would
    /// add another header.
    pub headers: Vec<(&'static str, Cow<'static, str>)>,
    /// The body; it is sent with a `Content-Length`.
    pub body: Cow<'static, [u8]>,
    /// Close the connection after this reply.
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

    /// A reply with `Content-Type: application/json`.
    pub fn json(status: u16, body: String) -> Self {
        Self::new(status, JSON, body.into_bytes())
    }

    /// A reply without a body.
    pub fn empty(status: u16) -> Self {
        Self::new(status, "", Vec::new())
    }

    /// Adds a header; [`Self::headers`] says what its value must not contain.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<Cow<'static, str>>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Closes the connection after this reply.
    #[must_use]
    pub fn closing(mut self) -> Self {
        self.close = true;
        self
    }

    /// Appends the bytes on the wire to `out`, without the body if the request was HEAD. `kept` is how
    /// long the connection stays open; `None` closes it.
    pub(super) fn encode(
        &self,
        to_head: bool,
        kept: Option<Duration>,
        date: &str,
        out: &mut Vec<u8>,
    ) {
        self.encode_head(None, kept, date, out);
        if !to_head {
            out.extend_from_slice(&self.body);
        }
    }

    /// Appends the head. `coding` is that of a streamed body; otherwise the body has a length.
    pub(super) fn encode_head(
        &self,
        coding: Option<Coding>,
        kept: Option<Duration>,
        date: &str,
        out: &mut Vec<u8>,
    ) {
        out.reserve(256 + self.body.len());
        // Formatting with `write!` takes several times as long.
        let mut push = |parts: &[&str]| {
            for part in parts {
                out.extend_from_slice(part.as_bytes());
            }
        };
        let status = StatusCode::from_u16(self.status);
        let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let reason = status.canonical_reason().unwrap_or("Unknown");
        let line = ["HTTP/1.1 ", status.as_str(), " ", reason];
        push(&line);
        push(&["\r\nDate: ", date]);
        match coding {
            Some(Coding::Chunked) => push(&["\r\nTransfer-Encoding: chunked"]),
            None if self.status != 204 => {
                push(&["\r\nContent-Length: ", &self.body.len().to_string()]);
            }
            Some(Coding::UntilClosed) | None => {}
        }
        if coding.is_some() || !self.body.is_empty() {
            push(&["\r\nContent-Type: ", self.content_type]);
        }
        for (name, value) in &self.headers {
            push(&["\r\n", name, ": ", value]);
        }
        match kept {
            None => push(&["\r\nConnection: close\r\n\r\n"]),
            Some(time) => {
                let seconds = time.as_secs().to_string();
                push(&[
                    "\r\nConnection: keep-alive\r\nKeep-Alive: timeout=",
                    &seconds,
                ]);
                push(&["\r\n\r\n"]);
            }
        }
    }
}

/// The value of the `Date` header, formatted once a second.
#[derive(Debug, Default)]
pub(super) struct DateCache {
    second: i64,
    text: String,
}

impl DateCache {
    pub(super) fn now(&mut self) -> &str {
        let second = timestamp::now_ms() / 1000;
        if second != self.second || self.text.is_empty() {
            self.second = second;
            self.text = HttpDate::from(timestamp::of_ms(second * 1000)).to_string();
        }
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn text(reply: &Reply, to_head: bool, kept: Option<u64>) -> String {
        let mut bytes = Vec::new();
        let kept = kept.map(Duration::from_secs);
        reply.encode(to_head, kept, DateCache::default().now(), &mut bytes);
        let text = String::from_utf8(bytes).expect("text");
        let (before, date) = text.split_once("Date: ").expect("a date");
        format!("{before}{}", date.split_once("\r\n").expect("a line end").1)
    }

    #[test]
    fn the_date_follows_the_clock() {
        let mut date = DateCache::default();
        let first = date.now().to_owned();
        let seconds = |text: &str| SystemTime::from(text.parse::<HttpDate>().expect("a date"));
        let age = SystemTime::now().duration_since(seconds(&first));
        assert!(age.expect("not later") < Duration::from_mins(1), "{first}");
        date.second -= 1;
        date.text = "old".into();
        assert!(seconds(date.now()) >= seconds(&first));
    }

    #[test]
    fn a_reply_on_the_wire() {
        let reply = Reply::json(202, "{}".into()).with("Retry-After", "1");
        let head = "HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\nContent-Type: application/json\r\nRetry-After: 1\r\nConnection: keep-alive\r\nKeep-Alive: timeout=75\r\n\r\n";
        assert_eq!(text(&reply, false, Some(75)), format!("{head}{{}}"));
        assert_eq!(text(&reply, true, Some(75)), head);
        assert_eq!(
            text(&Reply::empty(204), false, None),
            "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"
        );
        assert_eq!(
            text(&Reply::empty(400), false, None),
            "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
    }
}
