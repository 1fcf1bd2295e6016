//! A reply, and its bytes on the wire.

use std::borrow::Cow;
use std::io::Write as _;
use std::time::Duration;

use http::StatusCode;
use httpdate::HttpDate;

use super::stream::Coding;
use crate::timestamp;

const JSON: &str = "application/json";

/// A reply to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The HTTP status.
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

    /// A JSON reply.
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
    pub(super) fn encode(&self, to_head: bool, kept: Option<Duration>, out: &mut Vec<u8>) {
        self.encode_head(None, kept, out);
        if !to_head {
            out.extend_from_slice(&self.body);
        }
    }

    /// Appends the head. `coding` is that of a streamed body; otherwise the body has a length.
    // Writing to a Vec cannot fail.
    pub(super) fn encode_head(
        &self,
        coding: Option<Coding>,
        kept: Option<Duration>,
        out: &mut Vec<u8>,
    ) {
        out.reserve(256 + self.body.len());
        let status = StatusCode::from_u16(self.status).ok();
        let reason = status.and_then(|status| status.canonical_reason());
        let _never = write!(
            out,
            "HTTP/1.1 {} {}\r\nDate: {}\r\n",
            self.status,
            reason.unwrap_or("Unknown"),
            HttpDate::from(timestamp::of_ms(timestamp::now_ms()))
        );
        match coding {
            Some(Coding::Chunked) => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
            None if self.status != 204 => {
                let _never = write!(out, "Content-Length: {}\r\n", self.body.len());
            }
            Some(Coding::UntilClosed) | None => {}
        }
        if coding.is_some() || !self.body.is_empty() {
            let _never = write!(out, "Content-Type: {}\r\n", self.content_type);
        }
        for (name, value) in &self.headers {
            let _never = write!(out, "{name}: {value}\r\n");
        }
        let _never = match kept.map(|time| time.as_secs()) {
            None => write!(out, "Connection: close\r\n\r\n"),
            Some(secs) => write!(
                out,
                "Connection: keep-alive\r\nKeep-Alive: timeout={secs}\r\n\r\n"
            ),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(reply: &Reply, to_head: bool, kept: Option<u64>) -> String {
        let mut bytes = Vec::new();
        reply.encode(to_head, kept.map(Duration::from_secs), &mut bytes);
        let text = String::from_utf8(bytes).expect("text");
        let (before, date) = text.split_once("Date: ").expect("a date");
        format!("{before}{}", date.split_once("\r\n").expect("a line end").1)
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
